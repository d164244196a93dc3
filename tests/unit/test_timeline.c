/* SPDX-License-Identifier: Apache-2.0 */
/* What is kept of a copy's course: the edges, where passes begin and end, the last word; and never too much. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdbool.h>
#include <stdlib.h>

#include "base/cleanup.h"
#include "base/xalloc.h"
#include "migration/timeline.h"

#define SAMPLE_US 100000

/* A look at a copy whose passes take so many samples each: what is left falls, and jumps up where the next pass begins. */
static struct timeline_point look(size_t i, size_t samples_per_pass)
{
	const size_t in_pass = i % samples_per_pass;
	return (struct timeline_point){
		.at_us = (int64_t)i * SAMPLE_US,
		.pass = (unsigned int)(1 + i / samples_per_pass),
		.remaining_bytes = samples_per_pass - in_pass,
		.wire_bytes = i,
	};
}

/* Add so many looks, and check after each what must always hold. */
static struct timeline *timeline_of_looks(size_t count, size_t samples_per_pass)
{
	struct timeline *timeline = xcalloc(1, sizeof(*timeline));
	for (size_t i = 0; i < count; i++) {
		const struct timeline_point point = look(i, samples_per_pass);
		timeline_add(timeline, &point);
		assert_in_range(timeline->point_count, 1, TIMELINE_POINTS_MAX);
		assert_int_equal(timeline->points[0].at_us, 0);
		assert_int_equal(timeline->points[timeline->point_count - 1].at_us, point.at_us);
	}
	for (size_t i = 1; i < timeline->point_count; i++)
		assert_true(timeline->points[i].at_us > timeline->points[i - 1].at_us);
	return timeline;
}

static void timeline_free(struct timeline *timeline)
{
	timeline_done(timeline);
	free(timeline);
}

static bool has_look(const struct timeline *timeline, size_t look_number)
{
	for (size_t i = 0; i < timeline->point_count; i++)
		if (timeline->points[i].wire_bytes == look_number)
			return true;
	return false;
}

static void test_short_copy_is_kept_whole(void **state)
{
	(void)state;
	struct timeline *timeline = timeline_of_looks(TIMELINE_POINTS_MAX, 10);
	assert_int_equal(timeline->point_count, TIMELINE_POINTS_MAX);
	timeline_free(timeline);
}

/* One pass of an hour: few points, about as far from each other as they should be. */
static void test_long_pass(void **state)
{
	(void)state;
	const size_t count = 36000;
	struct timeline *timeline = timeline_of_looks(count, count);
	assert_in_range(timeline->point_count, TIMELINE_POINTS_MAX / 4, TIMELINE_POINTS_MAX);
	for (size_t i = 1; i + 1 < timeline->point_count; i++)
		assert_in_range(timeline->points[i].at_us - timeline->points[i - 1].at_us, timeline->distance_us,
				2 * timeline->distance_us);
	timeline_free(timeline);
}

/* As long as they find room, all beginnings and ends of passes are there after any amount of thinning. */
static void test_pass_edges_are_kept(void **state)
{
	(void)state;
	const size_t samples = 1000, passes = 80;
	struct timeline *timeline = timeline_of_looks(samples * passes, samples);
	assert_true(timeline->distance_us > 10 * SAMPLE_US);
	for (size_t pass = 0; pass < passes; pass++) {
		assert_true(has_look(timeline, pass * samples));
		assert_true(has_look(timeline, pass * samples + samples - 1));
	}
	timeline_free(timeline);
}

/* More passes than there is room: highest and lowest points both are among those that stay, from all of the time. */
static void test_countless_passes(void **state)
{
	(void)state;
	const size_t count = 40000;
	struct timeline *timeline = timeline_of_looks(count, 2);
	size_t highs = 0, lows = 0, first_half = 0;
	for (size_t i = 0; i < timeline->point_count; i++) {
		highs += timeline->points[i].remaining_bytes == 2;
		lows += timeline->points[i].remaining_bytes == 1;
		first_half += timeline->points[i].wire_bytes < count / 2;
	}
	assert_in_range(highs, timeline->point_count / 3, timeline->point_count);
	assert_in_range(lows, timeline->point_count / 3, timeline->point_count);
	assert_true(first_half > 0 && first_half < timeline->point_count);
	timeline_free(timeline);
}

/* The last word, which says how it ended, is always there; what is lost is counted. */
static void test_last_words_are_kept(void **state)
{
	(void)state;
	struct timeline *timeline = xcalloc(1, sizeof(*timeline));
	for (int i = 0; i < TIMELINE_EVENTS_MAX + 5; i++) {
		cleanup_free char *words = xasprintf("decision %d", i);
		timeline_say(timeline, i * SAMPLE_US, words);
		assert_string_equal(timeline->events[timeline->event_count - 1].words, words);
	}
	assert_int_equal(timeline->event_count, TIMELINE_EVENTS_MAX);
	assert_int_equal(timeline->events_lost, 5);
	assert_string_equal(timeline->events[TIMELINE_EVENTS_MAX - 2].words, "decision 62");
	timeline_free(timeline);
}

static void test_view(void **state)
{
	(void)state;
	struct timeline *timeline = xcalloc(1, sizeof(*timeline));
	cleanup_json json_t *empty = timeline_view(timeline);
	cleanup_json json_t *nothing = json_pack("{s[]s[]si}", "points", "events", "events_lost", 0);
	assert_true(json_equal(empty, nothing));
	timeline_add(timeline, &(struct timeline_point){.at_us = 1234567, .remaining_bytes = 1, .rate_bytes_per_s = 2,
							.dirty_bytes_per_s = 3, .wire_bytes = 4, .pass = 5, .throttle_percent = 6,
							.limit_ms = 7});
	timeline_say(timeline, 2000000, "it is throttled to 85 %");
	cleanup_json json_t *view = timeline_view(timeline);
	cleanup_json json_t *expected = json_pack(
		"{s[{sf si si si si si si si}] s[{sf ss}] si}", "points", "at_ms", 1234.5, "remaining_bytes", 1, "rate_bytes_per_s", 2,
		"dirty_bytes_per_s", 3, "wire_bytes", 4, "pass", 5, "throttle_percent", 6, "limit_ms", 7, "events", "at_ms", 2000.0,
		"words", "it is throttled to 85 %", "events_lost", 0);
	assert_true(json_equal(view, expected));
	timeline_free(timeline);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_short_copy_is_kept_whole), cmocka_unit_test(test_long_pass),
		cmocka_unit_test(test_pass_edges_are_kept),	 cmocka_unit_test(test_countless_passes),
		cmocka_unit_test(test_last_words_are_kept),	 cmocka_unit_test(test_view),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
