/* SPDX-License-Identifier: Apache-2.0 */
/*
 * When to switch (migration/converge.h): copies replayed through it. A copy is made up by a small model of QEMU: a pass
 * sends what the last synchronisation found, at the link's rate; meanwhile the guest writes; QEMU switches by itself
 * when a synchronisation finds no more than rate x limit.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <string.h>

#include "migration/converge.h"

#define MB 1000000ULL
#define GUEST_BYTES (1024 * MB)
#define LINK_RATE (117 * MB) /* a gigabit's worth */

static const struct converge_options usual = {.max_downtime_ms = 300, .overhead_ms = 20};
/* What usual leaves for memory. */
#define CEILING_MS 252 /* nine tenths of what 300 ms leave beside the overhead */

struct replay {
	uint64_t rate_bytes_per_s, dirty_bytes_per_s, working_set_bytes; /* the guest writes within so much */
	/* Of the result: */
	unsigned int raised, passes, limit_ms;
	int64_t at_us;
	uint64_t remaining_bytes;
	bool switched;
	enum converge_reason gave_up;
};

static uint64_t least(uint64_t a, uint64_t b)
{
	return a < b ? a : b;
}

static void replay(struct replay *r, const struct converge_options *options)
{
	struct converge converge;
	converge_init(&converge, &converge_policy_ferry, options);
	r->limit_ms = converge.settings.limit_ms;
	uint64_t remaining = GUEST_BYTES;
	for (unsigned int pass = 1; pass < 10000; pass++) {
		struct converge_sample sample = {
			.at_us = r->at_us,
			.pass = pass,
			.pass_began = true,
			.remaining_bytes = remaining,
			.rate_bytes_per_s = r->rate_bytes_per_s,
			.dirty_bytes_per_s = pass > 1 ? r->dirty_bytes_per_s : 0,
		};
		struct converge_decision decision = converge_decide(&converge, &sample);
		r->passes = pass;
		r->remaining_bytes = remaining;
		if (decision.action == CONVERGE_GIVE_UP) {
			r->gave_up = decision.reason;
			return;
		}
		if (decision.changed) {
			assert_true(decision.settings.limit_ms > r->limit_ms);
			assert_int_equal(decision.settings.limit_ms, converge.settings.limit_ms);
			r->limit_ms = decision.settings.limit_ms;
			r->raised++;
		}
		assert_true((int64_t)r->limit_ms <= options->max_downtime_ms - options->overhead_ms ||
			    r->limit_ms == 1);
		assert_true(r->limit_ms > 0); /* QEMU 7.2 takes 0 for "at once" */
		/* Looks in the middle of a pass decide nothing. */
		sample.pass_began = false;
		sample.remaining_bytes = remaining / 2;
		decision = converge_decide(&converge, &sample);
		assert_true(decision.action == CONVERGE_GO_ON || decision.reason == CONVERGE_REASON_DEADLINE);
		/* QEMU's own decision, at least after the first pass. */
		if (pass > 1 && remaining <= r->rate_bytes_per_s * r->limit_ms / 1000) {
			int64_t pause_ms;
			assert_true(converge_fits(&converge, remaining, r->rate_bytes_per_s, &pause_ms));
			r->switched = true;
			return;
		}
		int64_t took_us = (int64_t)(remaining * 1000000 / r->rate_bytes_per_s) + 1000;
		r->at_us += took_us;
		remaining = least(r->working_set_bytes, r->dirty_bytes_per_s * (uint64_t)took_us / 1000000);
	}
	fail_msg("neither switched nor given up");
}

static void test_idle(void **state)
{
	(void)state;
	struct replay r = {.rate_bytes_per_s = LINK_RATE, .dirty_bytes_per_s = 10000, .working_set_bytes = MB};
	replay(&r, &usual);
	assert_true(r.switched);
	assert_int_equal(r.raised, 0);
	assert_true(r.passes <= 3);
}

/* Each pass is a sixth of the one before: it gets there with the shortest pause. */
static void test_writer(void **state)
{
	(void)state;
	struct replay r = {.rate_bytes_per_s = LINK_RATE, .dirty_bytes_per_s = 20 * MB, .working_set_bytes = 512 * MB};
	replay(&r, &usual);
	assert_true(r.switched);
	assert_int_equal(r.raised, 0);
	assert_true(r.passes < 10);
}

/* A working set that is written faster than it is sent: no pass is smaller than it, but the promise has room for it. */
static void test_working_set(void **state)
{
	(void)state;
	struct replay r = {.rate_bytes_per_s = LINK_RATE, .dirty_bytes_per_s = 1000 * MB, .working_set_bytes = 20 * MB};
	replay(&r, &usual);
	assert_true(r.switched);
	assert_true(r.raised >= 1);
	assert_int_equal(r.remaining_bytes, 20 * MB);
	assert_true(r.limit_ms >= 171 && r.limit_ms <= CEILING_MS); /* 20 MB at 117 MB/s */
}

/* More than the promise has room for: the limit goes up to the ceiling, step by step, and no further. */
static void test_never_converges(void **state)
{
	(void)state;
	struct replay r = {.rate_bytes_per_s = LINK_RATE, .dirty_bytes_per_s = 150 * MB, .working_set_bytes = 512 * MB};
	replay(&r, &usual);
	assert_false(r.switched);
	assert_int_equal(r.gave_up, CONVERGE_REASON_NOT_CONVERGING);
	assert_int_equal(r.limit_ms, CEILING_MS);
	assert_true(r.at_us > 30000000); /* guests have calmer moments */
}

/* The limit by itself, sample by sample. */
static void test_steps(void **state)
{
	(void)state;
	struct converge converge;
	converge_init(&converge, &converge_policy_ferry, &usual);
	assert_int_equal(converge.settings.limit_ms, 5);
	/* 1 MB is left after each pass: 10 ms. Of the first pass nothing is known. */
	struct converge_sample sample = {
		.pass = 1, .pass_began = true, .remaining_bytes = MB, .rate_bytes_per_s = 100 * MB};
	for (sample.pass = 1; sample.pass < 4; sample.pass++, sample.at_us += 100000)
		assert_int_equal(converge_decide(&converge, &sample).action, CONVERGE_GO_ON);
	struct converge_decision decision = converge_decide(&converge, &sample);
	assert_true(decision.changed);
	assert_int_equal(decision.settings.limit_ms, 11); /* what the lowest point needs, and one */
	/* From then on by half, every second pass that brings nothing. */
	unsigned int limits[16], count = 0;
	for (int i = 0; i < 60 && count < 16; i++) {
		sample.pass++;
		sample.at_us += 100000;
		decision = converge_decide(&converge, &sample);
		if (decision.changed)
			limits[count++] = decision.settings.limit_ms;
	}
	static const unsigned int wanted[] = {17, 26, 40, 61, 92, 139, 209, CEILING_MS};
	assert_int_equal(count, sizeof(wanted) / sizeof(wanted[0]));
	assert_memory_equal(limits, wanted, sizeof(wanted));
	/* A new lowest point is progress, and a little less is none. */
	sample.pass++;
	sample.remaining_bytes = MB * 95 / 100;
	(void)converge_decide(&converge, &sample);
	assert_int_equal(converge.best_remaining_bytes, MB);
	sample.remaining_bytes = MB / 2;
	(void)converge_decide(&converge, &sample);
	assert_int_equal(converge.best_remaining_bytes, MB / 2);
	assert_int_equal(converge.passes_without_progress, 0);
}

/* QEMU takes up to a tenth of a second to reckon by a new limit: until then what fits into it is no reason for another. */
static void test_limit_takes_a_moment(void **state)
{
	(void)state;
	struct converge converge;
	converge_init(&converge, &converge_policy_ferry, &usual);
	struct converge_sample sample = {.at_us = 1000000, .pass = 1, .pass_began = true, .remaining_bytes = MB, .rate_bytes_per_s = 100 * MB};
	while (converge.settings.limit_ms == 5) {
		sample.pass++;
		sample.at_us += 10000;
		(void)converge_decide(&converge, &sample);
	}
	assert_int_equal(converge.settings.limit_ms, 11);
	for (int i = 0; i < 9; i++) {
		sample.pass++;
		sample.at_us += 10000;
		assert_false(converge_decide(&converge, &sample).changed);
	}
	sample.at_us += 10000;
	assert_true(converge_decide(&converge, &sample).changed);
}

/* A deadline that comes soon after this pass leaves no time for small steps: all of the pause may be used, also in its middle. */
static void test_deadline_is_near(void **state)
{
	(void)state;
	struct converge converge;
	struct converge_options options = usual;
	options.deadline_us = 2000000;
	converge_init(&converge, &converge_policy_ferry, &options);
	struct converge_sample sample = {.at_us = 1000000, .pass = 2, .remaining_bytes = 79 * MB, .rate_bytes_per_s = 100 * MB};
	assert_false(converge_decide(&converge, &sample).changed);
	sample.at_us += 20000;
	assert_int_equal(converge_decide(&converge, &sample).settings.limit_ms, CEILING_MS);
	assert_false(converge_decide(&converge, &sample).changed);
}

/* There is no time for other means any more: a longer pause that comes last among them is used, if nothing less will do. */
static void test_deadline_is_near_with_a_pause(void **state)
{
	(void)state;
	struct converge converge;
	struct converge_options options = usual;
	options.deadline_us = 2000000;
	options.means[0] = CONVERGE_THROTTLE;
	options.means[1] = CONVERGE_PAUSE;
	options.means_count = 2;
	options.longest_pause_ms = 700;
	converge_init(&converge, &converge_policy_ferry, &options);
	struct converge_sample sample = {.at_us = 1500000, .pass = 2, .remaining_bytes = 40 * MB, .rate_bytes_per_s = 100 * MB};
	struct converge_decision decision = converge_decide(&converge, &sample);
	assert_int_equal(decision.action, CONVERGE_GO_ON);
	assert_true(decision.settings.limit_ms > 400 && decision.settings.limit_ms < 700);
	assert_int_equal(converge_longest_pause_ms(&converge), 700);
	/* What fits into the usual one stays there. */
	converge_init(&converge, &converge_policy_ferry, &options);
	sample.at_us = 1800000;
	sample.remaining_bytes = 5 * MB;
	assert_int_equal(converge_decide(&converge, &sample).settings.limit_ms, CEILING_MS);
	assert_int_equal(converge_longest_pause_ms(&converge), usual.max_downtime_ms);
}

/* It is given up only at the ceiling, after enough passes, and after enough time. */
static void test_patience(void **state)
{
	(void)state;
	struct converge converge;
	const struct converge_options tight = {.max_downtime_ms = 21, .overhead_ms = 20};
	converge_init(&converge, &converge_policy_ferry, &tight);
	assert_int_equal(converge.settings.limit_ms, 1); /* at the ceiling from the start */
	struct converge_sample sample = {.at_us = 1000000,
					 .pass = 2,
					 .pass_began = true,
					 .remaining_bytes = 500 * MB,
					 .rate_bytes_per_s = 100 * MB};
	assert_int_equal(converge_decide(&converge, &sample).action, CONVERGE_GO_ON);
	/* Many passes in no time. */
	for (int i = 0; i < 100; i++) {
		sample.pass++;
		assert_int_equal(converge_decide(&converge, &sample).action, CONVERGE_GO_ON);
	}
	sample.at_us += 29999999;
	assert_int_equal(converge_decide(&converge, &sample).action, CONVERGE_GO_ON);
	sample.at_us += 1;
	struct converge_decision decision = converge_decide(&converge, &sample);
	assert_int_equal(decision.action, CONVERGE_GIVE_UP);
	assert_int_equal(decision.reason, CONVERGE_REASON_NOT_CONVERGING);
	/* Much time in few passes. */
	converge_init(&converge, &converge_policy_ferry, &tight);
	sample.at_us = 0;
	for (int i = 0; i < 5; i++) {
		assert_int_equal(converge_decide(&converge, &sample).action, CONVERGE_GO_ON);
		sample.at_us += 60000000;
	}
	assert_int_equal(converge_decide(&converge, &sample).action, CONVERGE_GIVE_UP);
	/* A new lowest point starts both anew. */
	converge_init(&converge, &converge_policy_ferry, &tight);
	for (int i = 0; i < 100; i++) {
		sample.at_us += 10000000;
		sample.remaining_bytes = i % 4 == 0 ? sample.remaining_bytes * 7 / 10 : sample.remaining_bytes;
		assert_int_equal(converge_decide(&converge, &sample).action, CONVERGE_GO_ON);
	}
}

static struct converge_decision decide_in_first_pass(enum converge_means first, uint64_t dirty, uint64_t remaining, int64_t deadline_us)
{
	struct converge converge;
	struct converge_options options = usual;
	options.means[0] = first;
	options.means_count = 1;
	options.deadline_us = deadline_us;
	converge_init(&converge, &converge_policy_ferry, &options);
	const struct converge_sample sample = {.at_us = 1200000,
					       .pass = 1,
					       .remaining_bytes = remaining,
					       .rate_bytes_per_s = LINK_RATE,
					       .sampled_dirty_bytes_per_s = dirty,
					       .throttle_slice_ms = 4};
	return converge_decide(&converge, &sample);
}

/* What a look at some pages has told is enough to act on, where waiting for the end of the pass costs more. */
static void test_first_pass(void **state)
{
	(void)state;
	/* A guest that writes much more than is sent; not for long, though. */
	struct converge_decision decision = decide_in_first_pass(CONVERGE_THROTTLE, 200 * MB, 600 * MB, 0);
	assert_int_equal(decision.action, CONVERGE_GO_ON);
	assert_true(decision.settings.throttle_percent >= 80);
	assert_false(decide_in_first_pass(CONVERGE_THROTTLE, 200 * MB, 4000 * MB, 0).changed);
	assert_false(decide_in_first_pass(CONVERGE_THROTTLE, 114 * MB, 600 * MB, 0).changed);
	/* Or there is no time to lose. */
	assert_true(decide_in_first_pass(CONVERGE_THROTTLE, 114 * MB, 600 * MB, 15000000).settings.throttle_percent >= 80);
	assert_false(decide_in_first_pass(CONVERGE_THROTTLE, 114 * MB, 600 * MB, 25000000).changed);
	decision = decide_in_first_pass(CONVERGE_POSTCOPY, 114 * MB, 150 * MB, 0);
	assert_int_equal(decision.action, CONVERGE_START_POSTCOPY);
	assert_non_null(strstr(decision.words, "dirties 114 MB/s, the link carries 117 MB/s"));
	/* Not for a rest that takes long; nor for one who would get there by himself, or with a longer pause only. */
	assert_false(decide_in_first_pass(CONVERGE_POSTCOPY, 114 * MB, 600 * MB, 0).changed);
	assert_false(decide_in_first_pass(CONVERGE_POSTCOPY, 60 * MB, 150 * MB, 0).changed);
	assert_false(decide_in_first_pass(CONVERGE_THROTTLE, 60 * MB, 600 * MB, 15000000).changed);
	assert_false(decide_in_first_pass(CONVERGE_PAUSE, 114 * MB, 150 * MB, 0).changed);
}

/* What is taken of a processor that sleeps most of its time slows nobody down. */
static void test_busy_guest(void **state)
{
	(void)state;
	static const struct {
		unsigned int busy_percent, throttle_percent;
	} rows[] = {{0, 85}, {100, 85}, {50, 92}, {10, 97}};
	for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
		struct converge converge;
		struct converge_options options = usual;
		options.means[0] = CONVERGE_THROTTLE;
		options.means_count = 1;
		converge_init(&converge, &converge_policy_ferry, &options);
		const struct converge_sample sample = {.at_us = 5000000,
						       .pass = 2,
						       .pass_began = true,
						       .remaining_bytes = 500 * MB,
						       .rate_bytes_per_s = 100 * MB,
						       .dirty_bytes_per_s = 100 * MB,
						       .busy_percent = rows[i].busy_percent,
						       .throttle_slice_ms = 4};
		assert_int_equal(converge_decide(&converge, &sample).settings.throttle_percent, rows[i].throttle_percent);
	}
}

/* Of a copy that may throttle, over 100 MB/s; the sample that the policy has seen at its beginning. */
static struct converge_sample begin_first_pass(struct converge *converge, int64_t max_downtime_ms, uint64_t remaining_bytes)
{
	struct converge_options options = usual;
	options.max_downtime_ms = max_downtime_ms;
	options.means[0] = CONVERGE_THROTTLE;
	options.means_count = 1;
	converge_init(converge, &converge_policy_ferry, &options);
	const struct converge_sample sample = {.at_us = 1000000, .pass = 1, .pass_began = true, .remaining_bytes = remaining_bytes,
					       .rate_bytes_per_s = 100 * MB, .throttle_slice_ms = 4};
	(void)converge_decide(converge, &sample);
	return sample;
}

/* What counts is what this pass has found, and not a figure of the last seconds. A throttle that leaves twice what it was to leave
 * is made stronger with the next pass; one that leaves less is not. */
static void test_weak_throttle(void **state)
{
	(void)state;
	static const struct {
		uint64_t left_bytes;
		unsigned int throttle_percent;
	} rows[] = {{20 * MB, 85}, {60 * MB, 96}};
	for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
		struct converge converge;
		struct converge_sample sample = begin_first_pass(&converge, 400, 1000 * MB);
		sample.at_us += 1000000;
		sample.pass++;
		sample.remaining_bytes = 100 * MB;
		sample.dirty_bytes_per_s = 30 * MB; /* of longer: it has come back to the same pages */
		assert_int_equal(converge_decide(&converge, &sample).settings.throttle_percent, 85);
		sample.at_us += 600000;
		sample.pass_began = false;
		sample.throttle_percent = 85;
		(void)converge_decide(&converge, &sample);
		sample.at_us += 400000;
		sample.pass++;
		sample.pass_began = true;
		sample.remaining_bytes = 90 * MB; /* it came into force in the middle: that says nothing of it */
		assert_int_equal(converge_decide(&converge, &sample).settings.throttle_percent, 85);
		sample.at_us += 900000;
		sample.pass++;
		sample.remaining_bytes = rows[i].left_bytes;
		assert_int_equal(converge_decide(&converge, &sample).settings.throttle_percent, rows[i].throttle_percent);
	}
}

/* In a first pass of five seconds it has come back to the same pages: what it wrote within one of them tells how fast it is. */
static void test_first_pass_hides_the_rate(void **state)
{
	(void)state;
	static const struct {
		uint64_t sampled;
		bool throttled;
	} rows[] = {{0, false}, {70 * MB, false}, {95 * MB, true}};
	for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
		struct converge converge;
		struct converge_sample sample = begin_first_pass(&converge, usual.max_downtime_ms, 600 * MB);
		sample.at_us += 5000000;
		sample.pass++;
		sample.remaining_bytes = 300 * MB;
		sample.sampled_dirty_bytes_per_s = rows[i].sampled;
		assert_int_equal(converge_decide(&converge, &sample).settings.throttle_percent > 0, rows[i].throttled);
	}
}

static void test_deadline(void **state)
{
	(void)state;
	struct converge_options options = usual;
	options.deadline_us = 5000000;
	struct replay r = {.rate_bytes_per_s = LINK_RATE, .dirty_bytes_per_s = 114 * MB, .working_set_bytes = 512 * MB};
	replay(&r, &options);
	assert_int_equal(r.gave_up, CONVERGE_REASON_DEADLINE);
	/* Also in the first pass, and in the middle of any; not a moment before. */
	struct converge converge;
	converge_init(&converge, &converge_policy_ferry, &options);
	struct converge_sample sample = {.at_us = 4999999, .pass = 1, .remaining_bytes = MB};
	assert_int_equal(converge_decide(&converge, &sample).action, CONVERGE_GO_ON);
	sample.at_us = 5000000;
	struct converge_decision decision = converge_decide(&converge, &sample);
	assert_int_equal(decision.action, CONVERGE_GIVE_UP);
	assert_int_equal(decision.reason, CONVERGE_REASON_DEADLINE);
	assert_string_equal(decision.words, "1 MB have not been sent for the first time yet");
	sample.rate_bytes_per_s = 2 * MB;
	assert_string_equal(converge_decide(&converge, &sample).words,
			    "1 MB have not been sent for the first time yet, the link carries 2 MB/s; allow 0.5 s more");
}

/* A promise that overhead alone breaks still gives QEMU a limit of 1 ms; converge_fits() then says no. */
static void test_small_promises(void **state)
{
	(void)state;
	static const int64_t promises[] = {1, 5, 20, 21, 24, 25, 26, 2000000};
	for (size_t i = 0; i < sizeof(promises) / sizeof(promises[0]); i++) {
		struct converge converge;
		const struct converge_options options = {.max_downtime_ms = promises[i], .overhead_ms = 20};
		converge_init(&converge, &converge_policy_ferry, &options);
		int64_t left_ms = (promises[i] - 20) * 9 / 10;
		assert_int_equal(converge.settings.limit_ms, left_ms < 1 ? 1 : left_ms < 5 ? left_ms : 5);
		int64_t pause_ms;
		assert_int_equal(converge_fits(&converge, 0, MB, &pause_ms), promises[i] >= 20);
	}
}

static void test_fits(void **state)
{
	(void)state;
	struct converge converge;
	converge_init(&converge, &converge_policy_ferry, &usual);
	static const struct {
		uint64_t remaining, rate;
		int64_t pause_ms; /* -1: beyond all measure */
		bool fits;
	} rows[] = {
		{0, 0, 20, true},
		{1, 0, -1, false},
		{UINT64_MAX, 0, -1, false},
		{0, 100 * MB, 20, true},
		{1, 100 * MB, 21, true}, /* rounded up */
		{28 * MB, 100 * MB, 300, true},
		{28 * MB + 1, 100 * MB, 301, false},
		{UINT64_MAX, UINT64_MAX, 1020, false},
		{UINT64_MAX, 1, -1, false},
		{UINT64_MAX / 1000 + 1, MB, -1, false}, /* the product by 1000 just does not fit into 64 bits */
		{1, UINT64_MAX, 21, true},
		{16ULL << 40, 1000 * MB, 20 + 17592187, false},
	};
	for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
		int64_t pause_ms = 0;
		assert_int_equal(converge_fits(&converge, rows[i].remaining, rows[i].rate, &pause_ms), rows[i].fits);
		if (rows[i].pause_ms >= 0)
			assert_int_equal(pause_ms, rows[i].pause_ms);
		else
			assert_true(pause_ms > 1000000000);
	}
}

/* Figures without sense do not make it do anything rash. */
static void test_odd_samples(void **state)
{
	(void)state;
	struct converge converge;
	converge_init(&converge, &converge_policy_ferry, &usual);
	struct converge_sample sample = {.pass = 2, .pass_began = true, .remaining_bytes = UINT64_MAX - 1};
	for (int i = 0; i < 100; i++) { /* rate 0 */
		struct converge_decision decision = converge_decide(&converge, &sample);
		assert_int_not_equal(decision.action, CONVERGE_GIVE_UP);
		assert_true(decision.settings.limit_ms <= CEILING_MS && decision.settings.limit_ms >= 1);
	}
	converge_init(&converge, &converge_policy_ferry, &usual);
	sample.remaining_bytes = 0;
	sample.rate_bytes_per_s = UINT64_MAX;
	for (int i = 0; i < 100; i++)
		assert_true(converge_decide(&converge, &sample).settings.limit_ms <= CEILING_MS);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_idle),        cmocka_unit_test(test_writer),
		cmocka_unit_test(test_working_set), cmocka_unit_test(test_never_converges),
		cmocka_unit_test(test_steps),       cmocka_unit_test(test_patience),
		cmocka_unit_test(test_first_pass),  cmocka_unit_test(test_busy_guest),
		cmocka_unit_test(test_weak_throttle), cmocka_unit_test(test_limit_takes_a_moment),
		cmocka_unit_test(test_deadline_is_near), cmocka_unit_test(test_deadline_is_near_with_a_pause), cmocka_unit_test(test_first_pass_hides_the_rate),
		cmocka_unit_test(test_deadline),    cmocka_unit_test(test_small_promises),
		cmocka_unit_test(test_fits),        cmocka_unit_test(test_odd_samples),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
