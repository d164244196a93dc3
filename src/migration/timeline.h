/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a copy looked like over time: points (what was left, the rates, the throttle, the pause limit) and, between them, what
 * was decided and why. Kept with the migration and shown by `ferry migration show --plot`. Of bounded size: when there are
 * too many points, the distance between two doubles, so a copy of an hour costs no more than one of a minute.
 *
 * Written by the migration's worker and read by whoever asks, under the migration's mutex.
 */
#ifndef FERRY_MIGRATION_TIMELINE_H
#define FERRY_MIGRATION_TIMELINE_H

#include <jansson.h>
#include <stdint.h>

#define TIMELINE_POINTS_MAX 256
#define TIMELINE_EVENTS_MAX 64

struct timeline_point {
	int64_t at_us; /* since the migration began */
	uint64_t remaining_bytes, rate_bytes_per_s, dirty_bytes_per_s, wire_bytes;
	unsigned int pass, throttle_percent, limit_ms;
};

struct timeline_event {
	int64_t at_us;
	char *words; /* "the guest dirties 114 MB/s, the link carries 117 MB/s; it is throttled to 85 %" */
};

struct timeline {
	struct timeline_point points[TIMELINE_POINTS_MAX];
	size_t point_count;
	int64_t distance_us; /* between two points that are kept; 0: all are */
	struct timeline_event events[TIMELINE_EVENTS_MAX];
	size_t event_count;
	unsigned int events_lost; /* beyond the most that are kept: those before the last one */
};

/* Where a pass begins and the one before ends is kept whatever the distance, as long as there is room: what is left then is a
 * fact, and not a remainder. The newest point is always there. */
void timeline_add(struct timeline *timeline, const struct timeline_point *point);
void timeline_say(struct timeline *timeline, int64_t at_us, const char *words);
/* {points: [{at_ms, remaining_bytes, rate_bytes_per_s, dirty_bytes_per_s, wire_bytes, pass, throttle_percent, limit_ms}],
 *  events: [{at_ms, words}], events_lost}; the caller owns it. */
json_t *timeline_view(const struct timeline *timeline);
void timeline_done(struct timeline *timeline);

#endif
