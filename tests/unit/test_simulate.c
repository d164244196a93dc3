/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Ferry's policy on thousands of made-up copies (migration/simulate.h): whatever the guest, the link and the promise, what
 * was promised is kept or the guest stays, nothing is used that was not allowed, it ends, and it gets there wherever some
 * fixed setting of QEMU would have. FERRY_SIMULATIONS=N makes more of them, FERRY_SEED=N others.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdlib.h>
#include <string.h>

#include "migration/converge_peers.h"
#include "migration/simulate.h"

#define MB 1000000ULL
#define MIB (1024ULL * 1024)
#define LINK_RATE (112 * MB) /* what a gigabit carries of memory */
#define OVERHEAD_MS 15

static const struct simulated_link gigabit = {.rate_bytes_per_s = LINK_RATE, .overhead_ms = 8};

static struct simulated_copy copy(const struct simulated_guest *guest, const struct simulated_link *link,
				  const struct converge_policy *policy, const struct converge_options *options)
{
	struct simulated_copy result;
	simulate_copy(guest, link, policy, options, &result);
	return result;
}

/* ---- single cases, with their figures by hand ---- */

static void test_idle(void **state)
{
	(void)state;
	const struct simulated_guest guest = {.memory_bytes = 1024 * MIB, .zero_bytes = 907 * MIB};
	const struct converge_options options = {.max_downtime_ms = 300, .overhead_ms = OVERHEAD_MS};
	struct simulated_copy result = copy(&guest, &gigabit, &converge_policy_ferry, &options);
	assert_int_equal(result.end, SIMULATED_SWITCHED);
	assert_int_equal(result.passes, 2);
	assert_in_range(result.wire_bytes, 124 * MB, 126 * MB); /* 117 MiB, their headers, and 9 bytes for each zero page */
	assert_in_range(result.total_us, 1100000, 1150000);
	assert_int_equal(result.pause_us, 8000);
	assert_int_equal(result.throttle_percent, 0);
}

/* A guest that writes as fast as the link carries: never by itself, soon with the throttle. */
static const struct simulated_guest writer = {
	.memory_bytes = 1024 * MIB, .zero_bytes = 420 * MIB, .working_set_bytes = 512 * MIB, .writes_bytes_per_s = 114 * MB, .in_turn = true};

static void test_throttle(void **state)
{
	(void)state;
	struct converge_options options = {.max_downtime_ms = 300, .overhead_ms = OVERHEAD_MS};
	struct simulated_copy alone = copy(&writer, &gigabit, &converge_policy_ferry, &options);
	assert_int_equal(alone.end, SIMULATED_GAVE_UP);
	assert_int_equal(alone.reason, CONVERGE_REASON_NOT_CONVERGING);
	assert_non_null(strstr(alone.words, "allow throttling, or post-copy, or a pause of 5."));
	options.means[options.means_count++] = CONVERGE_THROTTLE;
	struct simulated_copy throttled = copy(&writer, &gigabit, &converge_policy_ferry, &options);
	assert_int_equal(throttled.end, SIMULATED_SWITCHED);
	struct simulated_copy theirs = copy(&writer, &gigabit, &converge_policy_auto_converge, &options);
	assert_int_equal(theirs.end, SIMULATED_SWITCHED);
	print_message("# throttled: %.1f s, %.2f GB, %.1f s of work lost; auto-converge: %.1f s, %.2f GB, %.1f s\n",
		      (double)throttled.total_us / 1e6, (double)throttled.wire_bytes / 1e9, (double)throttled.lost_work_us / 1e6,
		      (double)theirs.total_us / 1e6, (double)theirs.wire_bytes / 1e9, (double)theirs.lost_work_us / 1e6);
	assert_true(throttled.total_us * 2 < theirs.total_us);
	assert_true(throttled.wire_bytes * 2 < theirs.wire_bytes);
	assert_true(throttled.lost_work_us * 2 < theirs.lost_work_us * 3);
}

static void test_means_in_order(void **state)
{
	(void)state;
	struct converge_options options = {
		.max_downtime_ms = 300, .overhead_ms = OVERHEAD_MS, .means = {CONVERGE_POSTCOPY, CONVERGE_THROTTLE}, .means_count = 2};
	struct simulated_copy result = copy(&writer, &gigabit, &converge_policy_ferry, &options);
	assert_int_equal(result.end, SIMULATED_POSTCOPY);
	assert_int_equal(result.passes, 1); /* at once: what comes is known after a second */
	assert_int_equal(result.throttle_percent, 0);
	struct simulated_link unsampled = gigabit;
	unsampled.no_sampling = true;
	result = copy(&writer, &unsampled, &converge_policy_ferry, &options);
	assert_int_equal(result.end, SIMULATED_POSTCOPY);
	assert_int_equal(result.passes, 2); /* or after the first pass */
	options.means[0] = CONVERGE_PAUSE;
	options.longest_pause_ms = 6000;
	result = copy(&writer, &gigabit, &converge_policy_ferry, &options);
	assert_int_equal(result.end, SIMULATED_SWITCHED);
	assert_int_equal(result.throttle_percent, 0);
	assert_in_range(result.pause_us, 4000000, 6000000);
	options.longest_pause_ms = 2000; /* not enough of a pause: the next one is used */
	result = copy(&writer, &gigabit, &converge_policy_ferry, &options);
	assert_int_equal(result.end, SIMULATED_SWITCHED);
	assert_true(result.throttle_percent > 50);
	assert_true(result.pause_us < 300000);
}

/* A guest that cannot be slowed down enough without sleeps as long as a pause: the throttle stays below that. */
static void test_throttle_keeps_the_promise(void **state)
{
	(void)state;
	static const int64_t promises[] = {20, 100, 300, 2000, 20, 100, 300, 2000};
	for (size_t i = 0; i < sizeof(promises) / sizeof(promises[0]); i++) {
		const bool by_qemu = i < 4;
		const struct converge_options options = {
			.max_downtime_ms = promises[i], .overhead_ms = OVERHEAD_MS, .means = {CONVERGE_THROTTLE}, .means_count = 1};
		struct simulated_guest guest = writer;
		guest.writes_bytes_per_s = 5000 * MB;
		struct simulated_link link = gigabit;
		link.qemu_throttles = by_qemu;
		struct simulated_copy result = copy(&guest, &link, &converge_policy_ferry, &options);
		const int64_t sleep_ms = (by_qemu ? 10 : 4) * result.throttle_percent / (100 - result.throttle_percent);
		assert_true(result.throttle_percent > 0);
		assert_true(sleep_ms <= 50 || sleep_ms * 2 <= promises[i] + 20);
	}
}

/* The other systems' policies do what they are known for. */
static void test_peers(void **state)
{
	(void)state;
	const struct converge_options options = {.max_downtime_ms = 300, .overhead_ms = OVERHEAD_MS};
	assert_int_equal(copy(&writer, &gigabit, &converge_policy_qemu, &options).end, SIMULATED_ENDLESS);
	struct simulated_guest fast = writer;
	fast.writes_bytes_per_s = 20000 * MB;
	struct simulated_copy proxmox = copy(&fast, &gigabit, &converge_policy_proxmox, &options);
	assert_int_equal(proxmox.end, SIMULATED_SWITCHED);
	assert_true(proxmox.pause_us > 1000000); /* without bound */
	assert_int_equal(copy(&fast, &gigabit, &converge_policy_kubevirt, &options).end, SIMULATED_GAVE_UP);
	const struct converge_options patient = {.max_downtime_ms = 6000, .overhead_ms = OVERHEAD_MS};
	assert_int_equal(copy(&writer, &gigabit, &converge_policy_fixed, &options).end, SIMULATED_ENDLESS);
	assert_int_equal(copy(&writer, &gigabit, &converge_policy_fixed, &patient).end, SIMULATED_SWITCHED);
	assert_int_equal(copy(&writer, &gigabit, &converge_policy_fixed_throttle, &options).end, SIMULATED_SWITCHED);
	struct simulated_copy ovirt = copy(&fast, &gigabit, &converge_policy_ovirt_suspend, &options);
	assert_true(ovirt.end == SIMULATED_SWITCHED && ovirt.total_us > 60000000);
	for (size_t i = 0; converge_policy_at(i); i++) {
		assert_ptr_equal(converge_policy_find(converge_policy_at(i)->name), converge_policy_at(i));
		assert_non_null(converge_policy_at(i)->summary);
	}
	assert_ptr_equal(converge_policy_at(0), &converge_policy_ferry);
	assert_null(converge_policy_find("none"));
}

/* ---- thousands ---- */

static uint64_t seed = 1;

/* xorshift64*; from 0 to 1. */
static double random_part(void)
{
	seed ^= seed >> 12;
	seed ^= seed << 25;
	seed ^= seed >> 27;
	return (double)((seed * 0x2545F4914F6CDD1DULL) >> 11) / 9007199254740992.0;
}

static uint64_t random_between(double low, double high) /* each size as likely as its double */
{
	double part = random_part(), result = low;
	while (part > 0.05 && result < high) {
		result *= 1.15;
		part -= 0.1 / ((high - low) / low > 100 ? 8 : 4);
	}
	return (uint64_t)(result < high ? result : high);
}

struct random_case {
	struct simulated_guest guest;
	struct simulated_link link;
	struct converge_options options;
};

static struct random_case random_case(void)
{
	struct random_case c = {0};
	c.guest.memory_bytes = random_between(256e6, 64e9);
	c.guest.zero_bytes = (uint64_t)((double)c.guest.memory_bytes * random_part() * 0.8);
	const double used = (double)(c.guest.memory_bytes - c.guest.zero_bytes);
	c.guest.working_set_bytes = (uint64_t)(used * random_part());
	c.link.rate_bytes_per_s = random_between(10e6, 4e9);
	c.link.overhead_ms = 3 + (int64_t)(random_part() * 10);
	c.guest.writes_bytes_per_s = (uint64_t)((double)c.link.rate_bytes_per_s * random_part() * (random_part() < 0.3 ? 5 : 1.2));
	c.guest.in_turn = random_part() < 0.5;
	c.guest.busy_percent = 20 + (unsigned int)(random_part() * 80);
	if (random_part() < 0.3) {
		c.guest.calm_every_us = 1000000 + (int64_t)(random_part() * 30e6);
		c.guest.calm_for_us = (int64_t)((double)c.guest.calm_every_us * random_part() * 0.5);
	}
	static const int64_t downtimes[] = {30, 100, 300, 1000};
	c.options.max_downtime_ms = downtimes[(size_t)(random_part() * 4)];
	c.options.overhead_ms = OVERHEAD_MS;
	if (random_part() < 0.5)
		c.options.deadline_us = (int64_t)(used / (double)c.link.rate_bytes_per_s * (1 + 10 * random_part()) * 1e6);
	if (random_part() < 0.7)
		c.options.means[c.options.means_count++] = CONVERGE_THROTTLE;
	if (random_part() < 0.3)
		c.options.means[c.options.means_count++] = CONVERGE_POSTCOPY;
	if (random_part() < 0.3) {
		c.options.means[c.options.means_count++] = CONVERGE_PAUSE;
		c.options.longest_pause_ms = c.options.max_downtime_ms * 2 + (int64_t)(random_part() * 10000);
	}
	return c;
}

static bool may(const struct converge_options *options, enum converge_means means)
{
	return converge_allows(options->means, options->means_count, means);
}

/* Settings that stay as they are: what somebody who knew everything might have set by hand. */
static struct converge_settings fixed;

static void fixed_init(struct converge *converge)
{
	converge->settings = fixed;
}

static void fixed_decide(struct converge *converge, const struct converge_sample *sample, struct converge_decision *decision)
{
	(void)decision;
	if (converge->options.deadline_us && sample->at_us > converge->options.deadline_us)
		decision->action = CONVERGE_GIVE_UP;
}

static const struct converge_policy fixed_policy = {.name = "fixed", .init = fixed_init, .decide = fixed_decide};

/* Whether some fixed setting keeps what was promised. */
static bool some_fixed_setting_does(const struct random_case *c)
{
	static const unsigned int throttles[] = {0, 50, 80, 95};
	for (size_t i = 0; i < (may(&c->options, CONVERGE_THROTTLE) ? sizeof(throttles) / sizeof(throttles[0]) : 1); i++) {
		fixed = (struct converge_settings){
			.limit_ms = c->options.max_downtime_ms > OVERHEAD_MS ? (unsigned int)(c->options.max_downtime_ms - OVERHEAD_MS) : 1,
			.throttle_percent = throttles[i]};
		struct simulated_copy result = copy(&c->guest, &c->link, &fixed_policy, &c->options);
		if (result.end == SIMULATED_SWITCHED && result.total_us < (c->options.deadline_us ? c->options.deadline_us : 300000000))
			return true;
	}
	return false;
}

/* For whoever wants to know why: FERRY_SIMULATIONS_SHOW=1. */
static void show(const char *what, const struct random_case *c, const struct simulated_copy *result)
{
	if (!getenv("FERRY_SIMULATIONS_SHOW"))
		return;
	print_message("# %s: memory %llu set %llu writes %llu rate %llu turn %d busy %u calm %lld/%lld down %lld deadline %.1f means %zu:"
		      " %.1f s, %u passes, throttle %u: %s\n",
		      what, (unsigned long long)(c->guest.memory_bytes / MB), (unsigned long long)(c->guest.working_set_bytes / MB),
		      (unsigned long long)(c->guest.writes_bytes_per_s / MB), (unsigned long long)(c->link.rate_bytes_per_s / MB),
		      c->guest.in_turn, c->guest.busy_percent, (long long)c->guest.calm_for_us / 1000,
		      (long long)c->guest.calm_every_us / 1000, (long long)c->options.max_downtime_ms,
		      (double)c->options.deadline_us / 1e6, c->options.means_count, (double)result->total_us / 1e6, result->passes,
		      result->throttle_percent, result->words);
}

static void check_promise(const struct random_case *c, const struct simulated_copy *result)
{
	const struct converge_options *options = &c->options;
	if (result->end == SIMULATED_ENDLESS)
		show("endless", c, result);
	assert_int_not_equal(result->end, SIMULATED_ENDLESS);
	if (result->end == SIMULATED_SWITCHED) {
		const int64_t allowed_ms = may(options, CONVERGE_PAUSE) ? options->longest_pause_ms : options->max_downtime_ms;
		assert_true(result->pause_us <= allowed_ms * 1000);
	}
	if (options->deadline_us)
		assert_true(result->total_us - result->pause_us <= options->deadline_us + 100000);
	if (!may(options, CONVERGE_THROTTLE))
		assert_int_equal(result->throttle_percent, 0);
	if (result->end == SIMULATED_POSTCOPY)
		assert_true(may(options, CONVERGE_POSTCOPY));
	if (result->end == SIMULATED_GAVE_UP) {
		assert_int_not_equal(result->reason, CONVERGE_REASON_NONE);
		assert_true(strstr(result->words, "dirties") || strstr(result->words, "for the first time"));
	}
}

static void test_thousands(void **state)
{
	(void)state;
	const char *count_text = getenv("FERRY_SIMULATIONS"), *seed_text = getenv("FERRY_SEED");
	const unsigned long count = count_text ? strtoul(count_text, NULL, 10) : 4000;
	unsigned long possible = 0, missed = 0, switched = 0;
	seed = seed_text ? strtoull(seed_text, NULL, 10) : 20261121;
	for (unsigned long i = 0; i < count; i++) {
		const struct random_case c = random_case();
		const struct simulated_copy result = copy(&c.guest, &c.link, &converge_policy_ferry, &c.options);
		check_promise(&c, &result);
		switched += result.end == SIMULATED_SWITCHED;
		if (!some_fixed_setting_does(&c))
			continue;
		possible++;
		if (result.end != SIMULATED_GAVE_UP)
			continue;
		missed++;
		show("missed", &c, &result);
	}
	print_message("# %lu copies: %lu switched; in %lu some fixed setting would have, of these %lu given up\n", count, switched,
		      possible, missed);
	assert_true(missed * 100 <= possible * 2);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_idle),	      cmocka_unit_test(test_throttle),
		cmocka_unit_test(test_means_in_order), cmocka_unit_test(test_throttle_keeps_the_promise),
		cmocka_unit_test(test_peers),	      cmocka_unit_test(test_thousands),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
