/* SPDX-License-Identifier: Apache-2.0 */
/* What a copy looked like over time; see timeline.h. */
#include "migration/timeline.h"

#include <stdbool.h>
#include <stdlib.h>

#include "base/xalloc.h"

#define FIRST_DISTANCE_US 200000
#define LONGEST_DISTANCE_US (INT64_C(86400) * 1000000)
#define POINTS_AFTER_THINNING_MAX (TIMELINE_POINTS_MAX / 4 * 3)

/* The picture's edges, and those of a pass: there what is left jumps, and it is lowest right before. */
static bool is_edge(const struct timeline *timeline, size_t i)
{
	const struct timeline_point *points = timeline->points;
	return i == 0 || i + 1 == timeline->point_count || points[i].pass != points[i - 1].pass ||
	       points[i].pass != points[i + 1].pass;
}

static void thin_out(struct timeline *timeline)
{
	struct timeline_point *points = timeline->points;
	size_t kept = 0;
	/* Hundreds of passes within a moment double it for nothing: beyond a day no more, and no overflow. */
	if (timeline->distance_us < LONGEST_DISTANCE_US)
		timeline->distance_us = timeline->distance_us ? timeline->distance_us * 2 : FIRST_DISTANCE_US;
	for (size_t i = 0; i < timeline->point_count; i++)
		if (is_edge(timeline, i) || points[i].at_us - points[kept - 1].at_us >= timeline->distance_us)
			points[kept++] = points[i];
	timeline->point_count = kept;
	if (kept <= POINTS_AFTER_THINNING_MAX)
		return;
	/* Hundreds of short passes: every second one goes, as a pair of edges, or only the highest points would be left. */
	kept = 0;
	for (size_t i = 0; i < timeline->point_count; i++)
		if (i % 4 < 2 || i + 1 == timeline->point_count)
			points[kept++] = points[i];
	timeline->point_count = kept;
}

/* Whether the last point is there only because nothing has come after it. */
static bool last_is_passing(const struct timeline *timeline)
{
	const struct timeline_point *last = &timeline->points[timeline->point_count - 1];
	return timeline->point_count >= 2 && last->pass == last[-1].pass && last->at_us - last[-1].at_us < timeline->distance_us;
}

void timeline_add(struct timeline *timeline, const struct timeline_point *point)
{
	if (timeline->point_count > 0 && last_is_passing(timeline) &&
	    timeline->points[timeline->point_count - 1].pass == point->pass)
		timeline->point_count--;
	if (timeline->point_count == TIMELINE_POINTS_MAX)
		thin_out(timeline);
	timeline->points[timeline->point_count++] = *point;
}

void timeline_say(struct timeline *timeline, int64_t at_us, const char *words)
{
	if (timeline->event_count == TIMELINE_EVENTS_MAX) {
		free(timeline->events[--timeline->event_count].words);
		timeline->events_lost++;
	}
	timeline->events[timeline->event_count++] = (struct timeline_event){.at_us = at_us, .words = xstrdup(words)};
}

static json_t *at_ms(int64_t us)
{
	return json_real((double)(us / 100) / 10.0);
}

json_t *timeline_view(const struct timeline *timeline)
{
	json_t *points = json_array(), *events = json_array();
	for (size_t i = 0; i < timeline->point_count; i++) {
		const struct timeline_point *point = &timeline->points[i];
		json_array_append_new(points, json_pack("{s:o, s:I, s:I, s:I, s:I, s:i, s:i, s:i}", "at_ms", at_ms(point->at_us),
							"remaining_bytes", (json_int_t)point->remaining_bytes, "rate_bytes_per_s",
							(json_int_t)point->rate_bytes_per_s, "dirty_bytes_per_s",
							(json_int_t)point->dirty_bytes_per_s, "wire_bytes", (json_int_t)point->wire_bytes,
							"pass", (int)point->pass, "throttle_percent", (int)point->throttle_percent,
							"limit_ms", (int)point->limit_ms));
	}
	for (size_t i = 0; i < timeline->event_count; i++)
		json_array_append_new(events, json_pack("{s:o, s:s}", "at_ms", at_ms(timeline->events[i].at_us), "words",
							timeline->events[i].words));
	return json_pack("{s:o, s:o, s:i}", "points", points, "events", events, "events_lost", (int)timeline->events_lost);
}

void timeline_done(struct timeline *timeline)
{
	for (size_t i = 0; i < timeline->event_count; i++)
		free(timeline->events[i].words);
	timeline->event_count = timeline->point_count = 0;
}
