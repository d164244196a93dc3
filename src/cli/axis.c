/* SPDX-License-Identifier: Apache-2.0 */
/* The axes of a picture; see axis.h. */
#include "cli/axis.h"

#include <math.h>
#include <stdio.h>

#define DAY_MS 86400e3

/* The next round number. */
static double axis_round_up(double value)
{
	static const double steps[] = {1, 1.5, 2, 3, 4, 5, 6, 8, 10};
	if (value <= 0)
		return 1;
	const double power = pow(10, floor(log10(value)));
	size_t i = 0;
	while (i + 1 < sizeof(steps) / sizeof(steps[0]) && steps[i] * power < value * (1 - 1e-9))
		i++;
	return steps[i] * power;
}

static double axis_round_up_bytes(double bytes)
{
	double unit = 1;
	while (bytes / unit >= 1024)
		unit *= 1024;
	return axis_round_up(bytes / unit) * unit;
}

struct axis axis_fit(enum axis_scale scale, double lowest, double highest)
{
	struct axis axis = {.scale = scale};
	switch (scale) {
	case AXIS_BYTES:
		axis.high = axis_round_up_bytes(highest);
		break;
	case AXIS_RATE:
		axis.high = axis_round_up(highest);
		break;
	case AXIS_PERCENT:
		axis.high = 100;
		break;
	case AXIS_LOG_MS:
		/* Whole powers of ten, and one at least. */
		highest = fmax(highest, 1);
		axis.low = pow(10, floor(log10(fmax(fmin(lowest, highest), 0.1))));
		axis.high = fmax(pow(10, ceil(log10(highest))), axis.low * 10);
		break;
	}
	return axis;
}

double axis_y(const struct axis *axis, double value)
{
	double part = axis->scale == AXIS_LOG_MS ? log10(fmax(value, axis->low) / axis->low) / log10(axis->high / axis->low)
						 : value / axis->high;
	return axis->top + axis->height * (1 - fmin(part, 1));
}

size_t axis_values(const struct axis *axis, double ret[AXIS_VALUES_MAX])
{
	size_t count = 0;
	if (axis->scale == AXIS_LOG_MS) {
		for (double value = axis->low; value <= axis->high * 1.001 && count < AXIS_VALUES_MAX; value *= 10)
			ret[count++] = value;
		return count;
	}
	for (; count <= 2; count++)
		ret[count] = axis->high * (double)count / 2;
	return count;
}

/* Decimal, as in the words of decisions. */
static void axis_format_rate(char ret[UNITS_SIZE], double bytes_per_s)
{
	static const char *const units[] = {"B/s", "kB/s", "MB/s", "GB/s", "TB/s"};
	size_t i = 0;
	for (; bytes_per_s >= 1000 && i + 1 < sizeof(units) / sizeof(units[0]); i++)
		bytes_per_s /= 1000;
	snprintf(ret, UNITS_SIZE, "%.4g %s", bytes_per_s, units[i]);
}

const char *axis_format(char ret[UNITS_SIZE], const struct axis *axis, double value)
{
	if (axis->scale == AXIS_PERCENT)
		snprintf(ret, UNITS_SIZE, "%.0f %%", value);
	else if (value <= 0)
		snprintf(ret, UNITS_SIZE, "0");
	else if (axis->scale == AXIS_BYTES)
		units_format_bytes(ret, value);
	else if (axis->scale == AXIS_RATE)
		axis_format_rate(ret, value);
	else
		units_format_ms(ret, value);
	return ret;
}

double axis_time_step_ms(double end_ms)
{
	static const double steps[] = {1,    2,	   5,	  10,	 20,	50,	100,	200,	500,	 1000,	  2000,
				       5000, 10e3, 15e3, 30e3, 60e3, 120e3, 300e3, 600e3, 1800e3, 3600e3, 7200e3, 21600e3};
	for (size_t i = 0; i < sizeof(steps) / sizeof(steps[0]); i++)
		if (end_ms / steps[i] <= 12)
			return steps[i];
	return axis_round_up(end_ms / 12 / DAY_MS) * DAY_MS;
}
