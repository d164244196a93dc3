/* SPDX-License-Identifier: Apache-2.0 */
/* The axes of a picture: where they end, which values are written beside them, and where a value stands. One thread. */
#ifndef FERRY_CLI_AXIS_H
#define FERRY_CLI_AXIS_H

#include <stddef.h>

#include "cli/units.h"

enum axis_scale {
	AXIS_BYTES,
	AXIS_RATE, /* bytes a second */
	AXIS_PERCENT,
	AXIS_LOG_MS, /* milliseconds; all others begin at 0 and are linear */
};

struct axis {
	enum axis_scale scale;
	double low, high;   /* low is 0 unless it is logarithmic */
	double top, height; /* in the picture; the caller's to set */
};

/* For values from lowest to highest, neither below 0 nor above 1e15. It ends at round numbers. */
struct axis axis_fit(enum axis_scale scale, double lowest, double highest);
/* The y of a value; what is out of range stands at the edge. */
double axis_y(const struct axis *axis, double value);
/* The values that are worth a line; returns how many. */
#define AXIS_VALUES_MAX 20
size_t axis_values(const struct axis *axis, double ret[AXIS_VALUES_MAX]);
const char *axis_format(char ret[UNITS_SIZE], const struct axis *axis, double value);

/* Between two marks on an axis of time that lasts so long (1 or more): about ten of them, at times that people count in. */
double axis_time_step_ms(double end_ms);

#endif
