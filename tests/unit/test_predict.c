/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Prediction: figures by hand, what is remembered of links and VMs, what a link is measured to carry, and the summary of how good
 * predictions were.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <netinet/in.h>
#include <pthread.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/json.h"
#include "fakes/fake_driver.h"
#include "migration/converge_peers.h"
#include "migration/data_port.h"
#include "migration/forecast.h"
#include "migration/link_probe.h"
#include "migration/rates.h"
#include "migration/stats.h"
#include "net/socket.h"
#include "vm/qemu_machine.h"

#define MB UINT64_C(1000000)
#define MIB UINT64_C(1048576)

static const struct predict_link gigabit = {
	.rate_bytes_per_s = 112 * MB, .before_us = 500000, .after_us = 100000, .pause_us = 8000};
static const struct converge_options promise = {
	.max_downtime_ms = 300, .overhead_ms = 15, .means = {CONVERGE_THROTTLE}, .means_count = 1};

static struct prediction predict(const struct predict_guest *guest, const struct predict_link *link,
				 const struct converge_options *options)
{
	struct prediction prediction;
	predict_move(guest, link, &converge_policy_ferry, options, &prediction);
	return prediction;
}

/* ---- predictions ---- */

static void test_idle(void **state)
{
	(void)state;
	/* 561.1 MB with headers at 112 MB/s: 5.01 s; and what is around it. */
	const struct predict_guest guest = {.memory_bytes = 1024 * MIB, .used_bytes = 560 * MB};
	struct prediction prediction = predict(&guest, &gigabit, &promise);
	assert_int_equal(prediction.verdict, PREDICT_CONVERGES);
	assert_in_range(prediction.total_us, 5600000, 5640000);
	assert_int_equal(prediction.downtime_us, 8000);
	assert_in_range(prediction.wire_bytes, 562 * MB, 563 * MB); /* and 9 bytes for each of 125 thousand zero pages */
	assert_string_equal(prediction.words, "converges");
	/* Looking for zero pages takes its time, too: 514 MB at 1 GB/s. */
	struct predict_link slow = gigabit;
	slow.scan_bytes_per_s = 1000 * MB;
	assert_in_range(predict(&guest, &slow, &promise).total_us, 6110000, 6160000);
	/* A pause that costs more than is promised, without any memory: nothing was allowed, and it is said. */
	struct predict_link costly = gigabit;
	costly.pause_us = 400000;
	prediction = predict(&guest, &costly, &promise);
	assert_int_equal(prediction.verdict, PREDICT_CONVERGES);
	assert_string_equal(prediction.words, "converges, but pauses for longer than promised");
	/* Of a paused guest there is no pause. */
	struct predict_guest paused = guest;
	paused.stands = true;
	predict_add_writes(&paused, 1000000, 500 * MB); /* before */
	prediction = predict(&paused, &gigabit, &promise);
	assert_int_equal(prediction.downtime_us, 0);
	assert_in_range(prediction.total_us, 5600000, 5640000);
}

/* 40 MB/s of a 112 MB/s link: passes of 5, 1.8, 0.64, ... s, a geometric series; in all 5/(1 - 40/112) = 7.8 s. */
static void test_writing(void **state)
{
	(void)state;
	struct predict_guest guest = {.memory_bytes = 1024 * MIB, .used_bytes = 560 * MB};
	predict_add_writes(&guest, 1000000, 40 * MB);
	struct prediction prediction = predict(&guest, &gigabit, &promise);
	assert_int_equal(prediction.verdict, PREDICT_CONVERGES);
	assert_in_range(prediction.total_us, 8200000, 8600000);
	assert_in_range(prediction.wire_bytes, 850 * MB, 900 * MB);
	assert_true(prediction.downtime_us < 20000);
	/* The same rate into 20 MB only: all of these are written anew in every pass, 0.18 s, which fit into the pause. */
	predict_add_writes(&guest, 6000000, 20 * MB);
	prediction = predict(&guest, &gigabit, &promise);
	assert_int_equal(prediction.verdict, PREDICT_CONVERGES);
	assert_true(prediction.total_us < 6500000);
}

/* Later passes are faster than the first: it converges, and sooner; unless the bandwidth is bounded. */
static void test_later_passes(void **state)
{
	(void)state;
	struct predict_guest guest = {.memory_bytes = 1024 * MIB, .used_bytes = 560 * MB};
	struct predict_link link = gigabit;
	predict_add_writes(&guest, 1000000, 112 * MB);
	struct converge_options none = promise;
	none.means_count = 0;
	assert_int_equal(predict(&guest, &link, &none).verdict, PREDICT_FAILS);
	link.later_bytes_per_s = 224 * MB;
	assert_int_equal(predict_later_rate(&link), 224 * MB);
	struct prediction prediction = predict(&guest, &link, &none);
	assert_int_equal(prediction.verdict, PREDICT_CONVERGES);
	/* 5 s; then 560 MB anew at 224 MB/s, 2.5 s, and a half less each time. */
	assert_in_range(prediction.total_us, 10000000, 10800000);
	link.bandwidth_bytes_per_s = 100 * MB;
	assert_int_equal(predict_later_rate(&link), 100 * MB);
	assert_int_equal(predict(&guest, &link, &none).verdict, PREDICT_FAILS);
}

static void test_too_fast(void **state)
{
	(void)state;
	struct predict_guest guest = {.memory_bytes = 1024 * MIB, .used_bytes = 640 * MB};
	predict_add_writes(&guest, 1000000, 114 * MB);
	predict_add_writes(&guest, 6000000, 512 * MIB);
	struct prediction prediction = predict(&guest, &gigabit, &promise);
	assert_int_equal(prediction.verdict, PREDICT_THROTTLED);
	assert_true(prediction.throttle_percent >= 80);
	assert_non_null(strstr(prediction.words, "throttled to"));
	struct converge_options none = promise;
	none.means_count = 0;
	prediction = predict(&guest, &gigabit, &none);
	assert_int_equal(prediction.verdict, PREDICT_FAILS);
	assert_non_null(strstr(prediction.words, "will not converge: the guest dirties"));
	assert_non_null(strstr(prediction.words, "allow throttling"));
	struct converge_options pause = none;
	pause.means[0] = CONVERGE_PAUSE;
	pause.means_count = 1;
	pause.longest_pause_ms = 6000;
	prediction = predict(&guest, &gigabit, &pause);
	assert_int_equal(prediction.verdict, PREDICT_LONGER_PAUSE);
	assert_in_range(prediction.downtime_us, 4000000, 6000000);
	/* 5.8 s are needed for the first pass alone; what comes before the first byte counts. */
	struct converge_options hurried = promise;
	hurried.deadline_us = 3000000;
	prediction = predict(&guest, &gigabit, &hurried);
	assert_int_equal(prediction.verdict, PREDICT_FAILS);
	/* A policy that never gives up is not waited for. */
	struct prediction endless;
	const int64_t before_us = clock_monotonic_us();
	assert_non_null(strstr(prediction.words, "deadline"));
	assert_non_null(strstr(prediction.words, "once takes 5.7 s"));
	predict_move(&guest, &gigabit, &converge_policy_qemu, &none, &endless);
	assert_int_equal(endless.verdict, PREDICT_FAILS);
	assert_non_null(strstr(endless.words, "for ever"));
	assert_true(clock_monotonic_us() - before_us < 5000000);
}

/* What is left follows while the guest runs at the destination: the end of the first pass, and once more what was written during it. */
static void test_postcopy(void **state)
{
	(void)state;
	struct predict_guest guest = {.memory_bytes = 1024 * MIB, .used_bytes = 640 * MB};
	struct converge_options options = promise;
	options.means[0] = CONVERGE_POSTCOPY;
	predict_add_writes(&guest, 1000000, 114 * MB);
	predict_add_writes(&guest, 6000000, 512 * MIB);
	struct prediction prediction = predict(&guest, &gigabit, &options);
	assert_int_equal(prediction.verdict, PREDICT_POSTCOPY);
	assert_int_equal(prediction.downtime_us, 8000);
	assert_in_range(prediction.total_us, 8500000, 11500000);
	assert_in_range(prediction.wire_bytes, 950 * MB, 1200 * MB);
}

/* In the middle: from the second pass on, as it stands. */
static void test_rest(void **state)
{
	(void)state;
	struct predict_guest guest = {.memory_bytes = 1024 * MIB, .used_bytes = 560 * MB};
	struct converge converge;
	struct prediction prediction;
	predict_add_writes(&guest, 5000000, 200 * MB);
	converge_init(&converge, &converge_policy_ferry, &promise);
	const struct converge before = converge;
	struct converge_sample sample = {.at_us = 1000000000000, .pass = 2, .pass_began = true, .remaining_bytes = 200 * MB,
					 .rate_bytes_per_s = 112 * MB, .dirty_bytes_per_s = 40 * MB, .throttle_at_once = true};
	predict_rest(&guest, &gigabit, &converge, &sample, 5500000, 560 * MB, &prediction);
	assert_memory_equal(&before, &converge, sizeof(before)); /* it is only asked */
	/* 200 MB and what follows from them: 1.79/(1 - 40/112) = 2.8 s. */
	assert_int_equal(prediction.verdict, PREDICT_CONVERGES);
	assert_in_range(prediction.total_us, 5500000 + 2600000, 5500000 + 3100000);
	assert_in_range(prediction.wire_bytes, 850 * MB, 900 * MB);
	/* Little is left: it ends here. */
	sample.remaining_bytes = 100000;
	predict_rest(&guest, &gigabit, &converge, &sample, 5500000, 560 * MB, &prediction);
	assert_in_range(prediction.total_us, 5600000, 5620000);
	assert_in_range(prediction.downtime_us, 8000, 9500);
}

static void test_views(void **state)
{
	(void)state;
	struct prediction prediction = {0};
	cleanup_json json_t *unknown = predict_view(&prediction);
	assert_true(json_is_null(unknown));
	prediction = (struct prediction){.verdict = PREDICT_CONVERGES, .total_us = 11000000, .downtime_us = 20000, .wire_bytes = 900};
	cleanup_json json_t *good = predict_error_view(&prediction, true, 10000000, 25000, 1000);
	assert_true(json_is_true(json_object_get(good, "verdict_right")));
	assert_true(json_real_value(json_object_get(good, "total_percent")) == 10.0);
	assert_true(json_real_value(json_object_get(good, "downtime_ms")) == -5.0);
	assert_true(json_real_value(json_object_get(good, "wire_percent")) == -10.0);
	cleanup_json json_t *stayed = predict_error_view(&prediction, false, 10000000, 0, 1000);
	assert_true(json_is_false(json_object_get(stayed, "verdict_right")));
	assert_true(json_is_null(json_object_get(stayed, "total_percent")));
	prediction.verdict = PREDICT_FAILS;
	cleanup_json json_t *expected = predict_error_view(&prediction, false, 10000000, 0, 1000);
	assert_true(json_is_true(json_object_get(expected, "verdict_right")));
	cleanup_json json_t *surprise = predict_error_view(&prediction, true, 10000000, 0, 1000);
	assert_true(json_is_false(json_object_get(surprise, "verdict_right")));
}

/* The newest are kept; bursts do not count where there is more. */
static void test_writes(void **state)
{
	(void)state;
	struct predict_guest guest = {.memory_bytes = 1024 * MIB, .used_bytes = 500 * MB};
	struct simulated_guest fitted;
	predict_fill_guest(&guest, &fitted);
	assert_int_equal(fitted.writes_bytes_per_s, 0);
	predict_add_writes(&guest, 0, 5);
	assert_int_equal(guest.writes_count, 0);
	predict_add_writes(&guest, 10000, 10 * MB); /* 1 GB/s, for 10 ms */
	predict_fill_guest(&guest, &fitted);
	assert_int_equal(fitted.writes_bytes_per_s, 1000 * MB);
	predict_add_writes(&guest, 2000000, 100 * MB);
	predict_fill_guest(&guest, &fitted);
	assert_int_equal(fitted.writes_bytes_per_s, 50 * MB);
	assert_int_equal(fitted.working_set_bytes, 500 * MB); /* may be all of it */
	predict_add_writes(&guest, 10000000, 150 * MB);
	predict_fill_guest(&guest, &fitted);
	assert_int_equal(fitted.working_set_bytes, 150 * MB);
	/* A look at a sample says a little more than an exact one of longer: that is its error, and not a working set. */
	struct predict_guest sampled = {.memory_bytes = 1024 * MIB, .used_bytes = 500 * MB};
	predict_add_writes(&sampled, 1000000, 55 * MB);
	predict_add_writes(&sampled, 6000000, 300 * MB);
	predict_fill_guest(&sampled, &fitted);
	assert_int_equal(fitted.writes_bytes_per_s, 50 * MB);
	assert_int_equal(fitted.working_set_bytes, 500 * MB);
	/* The shorter look has found as much as the longer: how fast it writes into that is not known, but faster. */
	struct predict_guest hot = {.memory_bytes = 1024 * MIB, .used_bytes = 500 * MB};
	predict_add_writes(&hot, PREDICT_WRITES_TELLING_US, 30 * MB);
	predict_add_writes(&hot, 6000000, 31 * MB);
	predict_fill_guest(&hot, &fitted);
	assert_int_equal(fitted.writes_bytes_per_s, 750 * MB);
	assert_int_equal(fitted.working_set_bytes, 31 * MB);
	/* And a look of another time that fits agrees with both; one that does not takes their place. */
	forecast_take_writes(&hot, 1000000, 29 * MB);
	assert_int_equal(hot.writes_count, 3);
	forecast_take_writes(&hot, 1000000, 90 * MB);
	assert_int_equal(hot.writes_count, 1);
	/* It has calmed down: what the longest, latest look has found is all. */
	predict_add_writes(&guest, 12000000, 3 * MB);
	predict_fill_guest(&guest, &fitted);
	assert_int_equal(fitted.working_set_bytes, 3 * MB);
	for (uint64_t i = 0; i < 2 * PREDICT_WRITES_MAX; i++)
		predict_add_writes(&guest, 1000000, i * MB);
	assert_int_equal(guest.writes_count, PREDICT_WRITES_MAX);
	assert_int_equal(guest.writes[0].bytes, PREDICT_WRITES_MAX * MB);
	/* More than it has, as another host may say. */
	predict_add_writes(&guest, 30000000, UINT64_C(1) << 50);
	predict_fill_guest(&guest, &fitted);
	assert_int_equal(fitted.working_set_bytes, guest.memory_bytes);
}

/* When the baton is to be offered: shortly before the first pass may end. */
static void test_first_pass_ends(void **state)
{
	(void)state;
	struct migration migration = {0};
	struct forecast forecast = {.migration = &migration, .guest = {.used_bytes = 500 * MB}, .last_sent_bytes = 100 * MB};
	struct converge_sample seen = {.pass = 1, .remaining_bytes = 900 * MB};
	assert_false(forecast_first_pass_ends(&forecast, &seen, 1500000)); /* nothing is known of the link */
	forecast.link.rate_bytes_per_s = 100 * MB;
	assert_false(forecast_first_pass_ends(&forecast, &seen, 3900000));
	assert_true(forecast_first_pass_ends(&forecast, &seen, 4000000)); /* 400 MB, then zero pages */
	rates_meter_add(&forecast.meter, 80 * MB, 200000); /* what this copy has shown counts more */
	assert_true(forecast_first_pass_ends(&forecast, &seen, 1000000));
	forecast.last_sent_bytes = 600 * MB; /* it uses more than was thought */
	assert_false(forecast_first_pass_ends(&forecast, &seen, 1500000));
	seen.remaining_bytes = 600 * MB;
	assert_true(forecast_first_pass_ends(&forecast, &seen, 1500000));
}

/* ---- what is remembered ---- */

static void test_rates(void **state)
{
	(void)state;
	cleanup_error struct error *e = NULL;
	struct database *db = NULL;
	struct rates *rates = NULL;
	struct rates_link link;
	struct rates_vm vm;
	assert_false(rates_link(NULL, "host-b", &link));
	rates_note_touched(NULL, "uuid", 1);
	assert_int_equal(database_open(":memory:", &db, &e), 0);
	assert_int_equal(rates_open(db, &rates, &e), 0);
	assert_false(rates_link(rates, "host-b", &link));
	assert_false(rates_vm(rates, "uuid", &vm));

	struct rates_link seen = {.link = {.rate_bytes_per_s = 100 * MB, .before_us = 400, .after_us = 100, .pause_us = 8000},
				  .round_trip_us = 50};
	rates_note_link(rates, "host-b", &seen);
	seen.link = (struct predict_link){.rate_bytes_per_s = 120 * MB, .scan_bytes_per_s = 7, .before_us = 600};
	rates_note_link(rates, "host-b", &seen);
	assert_true(rates_link(rates, "host-b", &link));
	assert_int_equal(link.link.rate_bytes_per_s, 110 * MB); /* the new one counts for half */
	assert_int_equal(link.link.scan_bytes_per_s, 7);
	assert_int_equal(link.link.before_us, 500);
	assert_int_equal(link.link.after_us, 100); /* nothing new of it */
	assert_int_equal(link.link.pause_us, 8000);
	assert_int_equal(link.moves, 2);
	seen.link.later_bytes_per_s = 150 * MB;
	rates_note_link(rates, "host-b", &seen);
	seen.link.later_bytes_per_s = 0; /* it had but one pass */
	rates_note_link(rates, "host-b", &seen);
	assert_true(rates_link(rates, "host-b", &link));
	assert_int_equal(link.link.later_bytes_per_s, 150 * MB);
	static const uint64_t changed[] = {12 * MB, 1000 * MB, 700 * MB};
	static const uint64_t believed[] = {12 * MB, 1000 * MB, 850 * MB};
	for (size_t i = 0; i < 3; i++) {
		seen.link.rate_bytes_per_s = changed[i];
		rates_note_link(rates, "host-b", &seen);
		assert_true(rates_link(rates, "host-b", &link));
		assert_int_equal(link.link.rate_bytes_per_s, believed[i]);
		assert_int_equal(link.link.later_bytes_per_s, 0); /* another link */
	}
	assert_false(rates_link(rates, "host-c", &link));

	const struct predict_writes writes[2] = {{1000000, 5 * MB}, {6000000, 20 * MB}};
	rates_note_writes(rates, "uuid", writes);
	rates_note_touched(rates, "uuid", 300 * MB);
	rates_note_sent(rates, "uuid", 80);
	rates_note_sent(rates, "uuid", 90);
	assert_true(rates_vm(rates, "uuid", &vm));
	assert_int_equal(vm.touched_bytes, 300 * MB);
	assert_int_equal(vm.sent_percent, 85);
	assert_memory_equal(vm.writes, writes, sizeof(writes));
	assert_true(vm.touched_wall_ms > 0 && vm.writes_wall_ms > 0);
	rates_note_arrived(rates, "uuid", 200 * MB);
	rates_note_arrived(rates, "new", 100 * MB);
	assert_true(rates_vm(rates, "uuid", &vm));
	assert_int_equal(vm.touched_bytes, 200 * MB);
	assert_int_equal(vm.sent_percent, 100);
	assert_memory_equal(vm.writes, writes, sizeof(writes));
	assert_true(rates_vm(rates, "new", &vm));
	assert_int_equal(vm.touched_bytes, 100 * MB);
	/* What the first look finds beyond what has come is none of the guest's, within reason; later ones tell nothing of that. */
	static const struct {
		uint64_t touched_bytes;
		unsigned int sent_percent;
	} looks[] = {{0, 100}, {125 * MB, 80}, {400 * MB, 80}};
	for (size_t i = 0; i < sizeof(looks) / sizeof(looks[0]); i++) {
		rates_note_touched(rates, "new", looks[i].touched_bytes);
		assert_true(rates_vm(rates, "new", &vm));
		assert_int_equal(vm.sent_percent, looks[i].sent_percent);
	}
	rates_note_touched(rates, "uuid", 1000 * MB); /* it has begun to use more */
	assert_true(rates_vm(rates, "uuid", &vm));
	assert_int_equal(vm.sent_percent, 70);
	rates_free(rates);
	/* A later ferryd finds them, but for what is from long ago. */
	assert_true(database_run(db, &e, "INSERT INTO vm_rate(vm_uuid, touched_ms) VALUES('old', 1000)", "") == 1);
	assert_int_equal(rates_open(db, &rates, &e), 0);
	assert_true(rates_vm(rates, "uuid", &vm));
	assert_false(rates_vm(rates, "old", &vm));
	rates_free(rates);
	database_close(db);
}

static void test_meter(void **state)
{
	(void)state;
	struct rates_meter meter = {0};
	assert_int_equal(rates_meter_read(&meter), 0);
	rates_meter_add(&meter, 4 * MB, 10000); /* what fits into buffers */
	assert_int_equal(rates_meter_read(&meter), 0);
	rates_meter_add(&meter, 36 * MB, 390000);
	assert_int_equal(rates_meter_read(&meter), 100 * MB);
	for (int i = 0; i < 20; i++) /* zero pages */
		rates_meter_add(&meter, 1 * MB, 100000);
	assert_int_equal(rates_meter_read(&meter), 100 * MB);
	rates_meter_add(&meter, 60 * MB, 300000); /* it carries more than was seen before */
	assert_int_equal(rates_meter_read(&meter), 200 * MB);
	/* Of what is nine tenths of the best. */
	struct rates_meter strict = {.full_percent = 90};
	assert_int_equal(rates_meter_best(&strict), 0);
	rates_meter_add(&strict, 20 * MB, 200000);
	rates_meter_add(&strict, 17 * MB, 200000);
	assert_int_equal(rates_meter_read(&strict), 100 * MB);
	assert_int_equal(rates_meter_best(&strict), 100 * MB);
}

/* ---- memory in use ---- */

static void test_mappings(void **state)
{
	(void)state;
	static const char smaps[] =
		"55c9731b2000-55c973649000 r--p 00000000 fe:00 5310562  /usr/bin/qemu-system-x86_64\nRss:                4572 kB\n"
		"7f4357e00000-7f4397e00000 rw-p 00000000 00:00 0 \nSize:            1048576 kB\nRss:              135168 kB\nPss: 1 kB\n"
		"7f439c000000-7f439c916000 rw-p 00000000 00:00 0 \nRss:                4896 kB\n"
		"7f43a0000000-7f43e0000000 rwxp 00000000 00:00 0 \nRss:               36864 kB\n";
	assert_int_equal(qemu_memory_of_mappings(smaps, 1024 * MIB), 135168 * UINT64_C(1024));
	assert_int_equal(qemu_memory_of_mappings(smaps, 512 * MIB), 0);
	assert_int_equal(qemu_memory_of_mappings("", 512 * MIB), 0);
}

/* ---- what another host has learned ---- */

/* The worst that is believed, of the largest guest: the sums are right all the same. */
static void test_worst_that_is_heard(void **state)
{
	(void)state;
	static const uint64_t rates[] = {1000, UINT64_C(1) << 50};
	const uint64_t memory = UINT64_C(1) << 44;
	struct predict_guest guest = {.memory_bytes = memory, .used_bytes = memory};
	predict_add_writes(&guest, 500000, UINT64_C(1) << 50);
	for (size_t i = 0; i < 4; i++) {
		const struct predict_link link = {.rate_bytes_per_s = rates[i / 2], .scan_bytes_per_s = 1};
		const struct converge_options options = {.max_downtime_ms = 300, .means = {CONVERGE_POSTCOPY}, .means_count = i % 2};
		struct prediction prediction;
		predict_move(&guest, &link, &converge_policy_ferry, &options, &prediction);
		print_message("# %s: %lld s\n", prediction.words, (long long)prediction.total_us / 1000000);
		assert_true(prediction.total_us >= (int64_t)((double)memory / (double)(rates[i / 2] * 400) * 1e6));
		assert_true(prediction.wire_bytes < 100 * memory);
	}
}

static json_t *learned(const char *uuid, int64_t bytes, int64_t rate)
{
	return json_pack("{s:s, s:I, s:[{s:I, s:I}, {s:I, s:I}], s:I, s:I, s:I}", "vm_uuid", uuid, "used_bytes", (json_int_t)9, "writes",
			 "for_us", (json_int_t)1000000, "bytes", (json_int_t)bytes, "for_us", (json_int_t)0, "bytes", (json_int_t)0, "link_bytes_per_s", (json_int_t)rate,
			 "scan_bytes_per_s", (json_int_t)0, "later_bytes_per_s", (json_int_t)(rate < (INT64_C(1) << 49) ? rate * 3 / 2 : 150));
}

static enum error_code hear(struct migration_host *host, json_t *stolen)
{
	cleanup_error struct error *e = NULL;
	cleanup_json json_t *body = stolen;
	return forecast_hear(host, "host-b", body, &e) == 0 ? ERROR_CODE_COUNT : e->code;
}

static void test_hear(void **state)
{
	(void)state;
	static const char uuid[] = "11111111-2222-3333-4444-555555555555";
	struct database *db = NULL;
	struct driver_host driver_host = {.run_folder = "host-a"};
	struct migration_host host = {.name = "host-a"};
	struct rates_link link = {.link = {.rate_bytes_per_s = 50}};
	struct rates_vm vm;
	cleanup_json json_t *definition = json_pack("{ss ss si}", "name", "vm", "uuid", uuid, "memory_mib", 1), *view = NULL;
	assert_int_equal(database_open(":memory:", &db, NULL), 0);
	struct inventory_options options = {
		.db = db, .host_name = "host-a", .driver = &vm_driver_fake, .driver_host = &driver_host};
	assert_int_equal(inventory_new(&options, &host.inventory, NULL), 0);
	assert_int_equal(rates_open(db, &host.rates, NULL), 0);
	assert_int_equal(hear(&host, learned(uuid, 7, 5000)), ERROR_VM_NOT_OWNER); /* not here */
	assert_int_equal(inventory_define(host.inventory, definition, &view, NULL), 0);
	assert_int_equal(hear(&host, learned(uuid, -1, 5000)), ERROR_INVALID_ARGUMENT);
	assert_int_equal(hear(&host, learned(uuid, 7, INT64_MAX)), ERROR_INVALID_ARGUMENT);
	assert_int_equal(hear(&host, learned(uuid, 7, 999)), ERROR_INVALID_ARGUMENT);
	json_t *moment = learned(uuid, 7, 5000);
	json_object_set_new(json_array_get(json_object_get(moment, "writes"), 0), "for_us", json_integer(49999));
	assert_int_equal(hear(&host, moment), ERROR_INVALID_ARGUMENT);
	json_t *short_list = learned(uuid, 7, 5000), *more = learned(uuid, 7, 5000);
	json_array_remove(json_object_get(short_list, "writes"), 1);
	json_object_set_new(more, "more", json_true());
	assert_int_equal(hear(&host, short_list), ERROR_INVALID_ARGUMENT);
	assert_int_equal(hear(&host, more), ERROR_INVALID_ARGUMENT);
	assert_false(rates_vm(host.rates, uuid, &vm)); /* nothing of all that */
	assert_int_equal(hear(&host, learned(uuid, 7, 5000)), ERROR_CODE_COUNT);
	assert_true(rates_vm(host.rates, uuid, &vm));
	assert_int_equal(vm.writes[0].bytes, 7);
	assert_int_equal(vm.touched_bytes, 9);
	assert_int_equal(hear(&host, learned(uuid, 8, 6000)), ERROR_CODE_COUNT);
	assert_true(rates_link(host.rates, "host-b", &link));
	assert_int_equal(link.link.later_bytes_per_s, 7500);
	assert_int_equal(link.link.rate_bytes_per_s, 5000); /* what is known counts more than what is said */
	rates_free(host.rates);
	inventory_free(host.inventory);
	database_close(db);
}

/* ---- a link ---- */

struct reader {
	int fd;
	int64_t pause_us; /* after each 64 KiB */
};

static void *read_slowly(void *user)
{
	const struct reader *reader = user;
	static char buffer[65536];
	while (recv(reader->fd, buffer, sizeof(buffer), MSG_WAITALL) > 0)
		usleep((useconds_t)reader->pause_us);
	return NULL;
}

static void test_link_probe(void **state)
{
	(void)state;
	cleanup_error struct error *e = NULL;
	cleanup_close int listener = -1, fd = -1;
	struct sockaddr_in address;
	socklen_t size = sizeof(address);
	const int small = 65536;
	uint64_t rate = 0;
	int64_t round_trip_us = -1;
	assert_int_equal(socket_listen_tcp("127.0.0.1", 0, &listener, &e), 0);
	setsockopt(listener, SOL_SOCKET, SO_RCVBUF, &small, sizeof(small));
	assert_int_equal(getsockname(listener, (struct sockaddr *)&address, &size), 0);
	assert_int_equal(socket_connect_tcp("127.0.0.1", ntohs(address.sin_port), 1000, &fd, &e), 0);
	struct reader reader = {.pause_us = 10000}; /* 6.5 MB/s at most */
	while ((reader.fd = accept(listener, NULL, NULL)) < 0)
		;
	pthread_t thread;
	assert_int_equal(pthread_create(&thread, NULL, read_slowly, &reader), 0);
	assert_int_equal(link_probe(fd, 600, 0, &rate, &round_trip_us, &e), 0);
	assert_in_range(rate, 500000, 7 * MB);
	assert_true(round_trip_us >= 0);
	shutdown(fd, SHUT_RDWR);
	pthread_join(thread, NULL);
	close(reader.fd);
	/* Nobody reads any more. */
	assert_int_equal(link_probe(fd, 50, 0, &rate, &round_trip_us, &e), -1);
}

static void *run_loop(void *loop)
{
	assert_int_equal(loop_run(loop, NULL), 0);
	return NULL;
}

/* The port that a destination reserves says its token and throws away what comes; also while it is let go. */
static void test_data_port(void **state)
{
	(void)state;
	cleanup_error struct error *e = NULL;
	struct migration_host host = {.data_address = "127.0.0.1", .data_port_min = 49700, .data_port_max = 49790};
	struct data_port port = {.fd = -1};
	pthread_t thread;
	assert_int_equal(loop_new(&host.loop, &e), 0);
	assert_int_equal(pthread_create(&thread, NULL, run_loop, host.loop), 0);
	for (int round = 0; round < 3; round++) {
		assert_int_equal(data_port_reserve(&host, &port, &e), 0);
		for (int connection = 0; connection < 2; connection++) { /* the second ends the first */
			cleanup_close int fd = -1;
			char token[RANDOM_ID_SIZE] = "";
			uint64_t rate = 0;
			int64_t round_trip_us;
			assert_int_equal(socket_connect_tcp("127.0.0.1", port.port, 1000, &fd, &e), 0);
			assert_int_equal(recv(fd, token, sizeof(token) - 1, MSG_WAITALL), sizeof(token) - 1);
			assert_string_equal(token, port.token);
			if (link_probe(fd, 500, 64 * MB, &rate, &round_trip_us, &e) != 0)
				fail_msg("%s", e->message);
			assert_true(rate > 1 * MB);
			if (connection == 1) {
				data_port_release(&port);
				char end;
				assert_true(recv(fd, &end, 1, 0) <= 0);
			}
		}
	}
	loop_quit(host.loop);
	pthread_join(thread, NULL);
	loop_free(host.loop);
}

/* ---- the summary ---- */

static json_t *one(const char *destination, const char *status, double total_ms, double off_percent, int kept)
{
	return json_pack("{s:s, s:s, s:b, s:s, s:s, s:f, s:f, s:i, s:{s:b}, s:{s:{s:b, s:f, s:f}, s:n}}", "id", "x", "role", "source",
			 "ended", 1, "destination", destination, "status", status, "total_ms", total_ms, "downtime_ms", total_ms / 100,
			 "wire_bytes", 1000, "promise", "kept", kept, "prediction_error", "start", "verdict_right", kept,
			 "total_percent", off_percent, "downtime_ms", 1.0, "first_pass");
}

static double at(const json_t *object, const char *a, const char *b)
{
	return json_number_value(json_object_get(json_object_get(object, a), b));
}

static void test_stats(void **state)
{
	(void)state;
	cleanup_json json_t *views = json_array();
	cleanup_json json_t *nothing = stats_of_migrations(views);
	assert_true(json_is_null(json_object_get(nothing, "total_ms")));
	assert_int_equal(json_integer_value(json_object_get(nothing, "count")), 0);
	for (int i = 1; i <= 10; i++)
		json_array_append_new(views, one(i % 2 ? "host-b" : "host-c", "completed", i * 1000, i % 2 ? -i : i, i != 3));
	json_array_append_new(views, one("host-b", "rolled-back", 99000, 99, 1));
	json_t *running = one("host-b", "copying", 1, 1, 1), *arrival = one("host-a", "completed", 1, 1, 1);
	json_object_set_new(running, "ended", json_false());
	json_object_set_new(arrival, "role", json_string("destination"));
	json_array_append_new(views, running);
	json_array_append_new(views, arrival);
	cleanup_json json_t *stats = stats_of_migrations(views);
	assert_int_equal(json_integer_value(json_object_get(stats, "count")), 11);
	assert_true(at(stats, "by_status", "completed") == 10 && at(stats, "by_status", "rolled-back") == 1);
	assert_true(at(stats, "total_ms", "median") == 5500 && at(stats, "total_ms", "p90") == 9000);
	assert_true(at(stats, "promise", "count") == 11 && at(stats, "promise", "kept") == 10);
	assert_true(at(stats, "promise", "kept_percent") == 90.9);
	const json_t *start = json_object_get(json_object_get(stats, "prediction"), "start");
	assert_true(at(start, "total_percent", "median") == 5.5 && at(start, "total_percent", "count") == 10);
	assert_true(json_integer_value(json_object_get(start, "verdicts_right")) == 10);
	const json_t *first = json_object_get(json_object_get(stats, "prediction"), "first_pass");
	assert_true(json_is_null(json_object_get(first, "total_percent")));
	assert_true(json_is_null(json_object_get(first, "verdicts_right_percent")));
	const json_t *destinations = json_object_get(stats, "by_destination");
	assert_int_equal(json_array_size(destinations), 2);
	assert_string_equal(json_string_value(json_object_get(json_array_get(destinations, 0), "destination")), "host-b");
	assert_int_equal(json_integer_value(json_object_get(json_array_get(destinations, 0), "count")), 6);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_idle),	     cmocka_unit_test(test_writing),
		cmocka_unit_test(test_later_passes), cmocka_unit_test(test_too_fast),
		cmocka_unit_test(test_postcopy),     cmocka_unit_test(test_hear),
		cmocka_unit_test(test_rest),	     cmocka_unit_test(test_worst_that_is_heard),
		cmocka_unit_test(test_views),	     cmocka_unit_test(test_writes),
		cmocka_unit_test(test_rates),	     cmocka_unit_test(test_first_pass_ends),
		cmocka_unit_test(test_meter),	     cmocka_unit_test(test_mappings),
		cmocka_unit_test(test_link_probe),   cmocka_unit_test(test_data_port),
		cmocka_unit_test(test_stats),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
