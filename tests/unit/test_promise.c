/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What is promised of a migration: what is shown of it, and, in whole migrations between two hosts in memory
 * (fakes/two_hosts.h), what the copy is told because of it, also when it is changed while the copy is under way.
 * How it is asked for: test_request.c.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/json.h"
#include "base/xalloc.h"
#include "fakes/two_hosts.h"
#include "migration/source.h"

static json_t *parsed(const char *text)
{
	json_t *json = NULL;
	assert_int_equal(json_parse(text, strlen(text), &json, NULL), 0);
	return json;
}

/* ---- what is shown of it ---- */

static const char *words_of(const json_t *promise)
{
	const char *words = json_string_value(json_object_get(promise, "words"));
	return words ? words : "";
}

static struct migration *a_migration(struct migration_list *list, const char *request)
{
	struct migration *migration =
		migration_new(list, NULL, MIGRATION_SOURCE, "guest", GUEST_UUID, "host-a", "host-b", 2);
	cleanup_json json_t *json = parsed(request);
	assert_int_equal(migration_request_parse(json, &migration->request, NULL), 0);
	return migration;
}

static void test_view(void **state)
{
	(void)state;
	struct migration_list *list = migration_list_new();
	struct migration *migration =
		a_migration(list, "{\"to\": \"host-b\", \"converge\": [\"throttle\", \"pause\"], \"pause_ms\": 4000, \"deadline_ms\": 60000,"
				  " \"bandwidth_bytes_per_s\": 5000}");
	cleanup_json json_t *view = migration_view(migration);
	cleanup_json json_t *wanted = parsed("{\"max_downtime_ms\": 300, \"deadline_ms\": 60000, \"pause_ms\": 4000, \"policy\": \"ferry\","
					     " \"converge\": [\"throttle\", \"pause\"], \"bandwidth_bytes_per_s\": 5000,"
					     " \"kept\": null, \"words\": null}");
	assert_true(json_equal(json_object_get(view, "promise"), wanted));
	/* The destination has promised nothing. */
	struct migration *other = migration_new(list, NULL, MIGRATION_DESTINATION, "guest", GUEST_UUID, "host-a", "host-b", 2);
	cleanup_json json_t *other_view = migration_view(other);
	assert_true(json_is_null(json_object_get(other_view, "promise")));
	migration_unref(other);
	migration_unref(migration);
	migration_list_free(list);
}

static void test_kept(void **state)
{
	(void)state;
	static const struct {
		enum migration_status status;
		int64_t total_ms, downtime_ms, allowed_ms;
		const char *words; /* NULL: kept */
	} rows[] = {
		{MIGRATION_COMPLETED, 60000, 300, 0, NULL},
		{MIGRATION_COMPLETED, 60000, 301, 0, "paused for 301.0 ms, 300 ms were promised"},
		/* The bound of a longer pause that was allowed and used. */
		{MIGRATION_COMPLETED, 60000, 3000, 4000, NULL},
		{MIGRATION_COMPLETED, 60000, 4001, 4000, "paused for 4001.0 ms, 4000 ms were promised"},
		{MIGRATION_COMPLETED, 60100, 300, 0, "it took 60.1 s, 60.0 s were promised"},
		{MIGRATION_COMPLETED, 60100, 301, 0, "paused for"},
		/* It has not moved: the deadline is not missed by what came after it. */
		{MIGRATION_ROLLED_BACK, 60100, 0, 0, NULL},
		{MIGRATION_CANCELLED, 60100, 300, 0, NULL},
		{MIGRATION_ROLLED_BACK, 60100, 1500, 0, "paused for 1500.0 ms, 300 ms were promised"},
		{MIGRATION_COPYING, 60100, 0, 0, NULL},
	};
	for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
		struct migration_list *list = migration_list_new();
		struct migration *migration = a_migration(list, "{\"to\": \"host-b\", \"deadline_ms\": 60000}");
		migration->status = rows[i].status;
		migration->total_us = rows[i].total_ms * 1000;
		migration->downtime_us = rows[i].downtime_ms * 1000;
		migration->pause_allowed_ms = rows[i].allowed_ms;
		cleanup_json json_t *view = migration_view(migration);
		const json_t *promise = json_object_get(view, "promise"), *kept = json_object_get(promise, "kept");
		print_message("# row %zu\n", i);
		if (!migration_status_ended(rows[i].status))
			assert_true(json_is_null(kept));
		else
			assert_int_equal(json_is_true(kept), !rows[i].words);
		if (rows[i].words)
			assert_non_null(strstr(words_of(promise), rows[i].words));
		else
			assert_true(json_is_null(json_object_get(promise, "words")));
		migration_unref(migration);
		migration_list_free(list);
	}
}

/* ---- whole migrations ---- */

/* Who asks for something while the copy is under way, and what came of it. */
struct asker {
	struct two_hosts *hosts;
	const char *changes; /* NULL: that it switches now */
	bool at_switch;	     /* only when the guest has stopped */
	unsigned int asked;
	enum error_code code; /* of the first answer; ERROR_CODE_COUNT: done */
};

static struct migration *newest(struct test_host *host)
{
	struct migration *migration = NULL;
	cleanup_json json_t *list = migration_list_view(host->host.migrations);
	const char *id = json_string_value(json_object_get(json_array_get(list, 0), "id"));
	assert_int_equal(migration_find(host->host.migrations, id, &migration, NULL), 0);
	return migration;
}

static void ask(void *user)
{
	struct asker *asker = user;
	cleanup_error struct error *e = NULL;
	if (asker->asked || (asker->at_switch && fake_world_run("host-a", GUEST_UUID) == MACHINE_RUNNING))
		return;
	asker->asked++;
	struct migration *migration = newest(&asker->hosts->a);
	cleanup_json json_t *json = asker->changes ? parsed(asker->changes) : NULL;
	int r = json ? source_set(&asker->hosts->a.host, migration, json, &e)
		     : source_complete(&asker->hosts->a.host, migration, &e);
	asker->code = r == 0 ? ERROR_CODE_COUNT : e->code;
	migration_unref(migration);
}

/* The result of a migration; the caller owns it. */
static json_t *run(struct two_hosts *hosts, const char *request)
{
	struct migration *migration = begin_migration(&hosts->a, &hosts->b, request);
	assert_true(wait_ended(hosts, migration));
	assert_true(wait_all_ended(hosts));
	for (enum fake_call call = 0; call < FAKE_CALL_COUNT; call++) {
		fake_driver_hook("host-a", call, NULL, NULL);
		fake_driver_hook("host-b", call, NULL, NULL);
	}
	json_t *view = migration_view(migration);
	migration_unref(migration);
	return view;
}

static void assert_ended(const json_t *view, const char *status, const char *code)
{
	const json_t *reason = json_object_get(view, "reason");
	const char *is = json_string_value(json_object_get(reason, "code"));
	if (strcmp(json_string_value(json_object_get(view, "status")), status) != 0 || strcmp(is ? is : "", code) != 0)
		fail_msg("it is %s, %s: %s", json_string_value(json_object_get(view, "status")), is,
			 json_string_value(json_object_get(reason, "message")));
}

static void test_throttled_and_given_up(void **state)
{
	(void)state;
	struct two_hosts *hosts = two_hosts_new();
	struct move_limits told[8];
	fake_driver_script_move(FAKE_MOVE_NEVER_CONVERGES);
	cleanup_json json_t *view = run(hosts, "");
	assert_ended(view, "rolled-back", "migration.not_converging");
	assert_true(json_is_true(json_object_get(json_object_get(view, "promise"), "kept")));
	size_t count = fake_driver_limits("host-a", told, 8);
	assert_in_range(count, 3, 8);
	assert_int_equal(told[0].downtime_ms, 5);
	assert_int_equal(told[0].throttle_percent, 0);
	assert_int_equal(told[0].throttle_increment, 0);
	assert_in_range(told[1].throttle_percent, 50, 99);
	for (size_t i = 1; i < count; i++)
		assert_true(told[i].throttle_percent >= told[i - 1].throttle_percent);
	/* What is promised, less what it costs otherwise and a sleep of the throttle. */
	assert_in_range(told[count - 1].downtime_ms, 100, 145);
	/* That is what releases the guest. */
	assert_int_equal(fake_driver_calls("host-a", FAKE_MOVE_RESTORE), 1);
	assert_true(two_hosts_free(hosts));
}

static void test_nothing_allowed(void **state)
{
	(void)state;
	struct two_hosts *hosts = two_hosts_new();
	struct move_limits told[8];
	fake_driver_script_move(FAKE_MOVE_NEVER_CONVERGES);
	cleanup_json json_t *view = run(hosts, "\"converge\": [], \"deadline_ms\": 20000");
	/* A second a pass: it has had twenty when time is up. */
	assert_ended(view, "rolled-back", "migration.deadline");
	assert_in_range(json_integer_value(json_object_get(view, "iterations")), 15, 21);
	size_t count = fake_driver_limits("host-a", told, 8);
	assert_in_range(count, 1, 8);
	for (size_t i = 0; i < count; i++)
		assert_int_equal(told[i].throttle_percent, 0);
	assert_true(two_hosts_free(hosts));
}

static void test_deadline_before_anything_is_copied(void **state)
{
	(void)state;
	struct two_hosts *hosts = two_hosts_new();
	cleanup_json json_t *view = run(hosts, "\"deadline_ms\": 1, \"max_downtime_ms\": 1000");
	if (strcmp(json_string_value(json_object_get(view, "status")), "completed") != 0) /* in a millisecond: well done */
		assert_ended(view, "rolled-back", "migration.deadline");
	assert_true(two_hosts_free(hosts));
}

static void test_longer_pause(void **state)
{
	(void)state;
	struct two_hosts *hosts = two_hosts_new();
	struct move_limits told[8];
	fake_driver_script_move(FAKE_MOVE_NEVER_CONVERGES);
	cleanup_json json_t *view = run(hosts, "\"converge\": [\"pause\"], \"pause_ms\": 9000");
	assert_ended(view, "completed", "");
	assert_true(json_is_true(json_object_get(json_object_get(view, "promise"), "kept")));
	size_t count = fake_driver_limits("host-a", told, 8);
	assert_in_range(count, 2, 8);
	/* 64 MiB at 10 MB/s. */
	assert_in_range(told[count - 1].downtime_ms, 6712, 9000);
	assert_true(two_hosts_free(hosts));
}

/* It takes longer than promised, and that is seen when the guest has stopped: the longer pause is better than all for nothing. */
static void test_longer_pause_at_switch(void **state)
{
	(void)state;
	static const struct {
		const char *request, *status, *code;
	} rows[] = {{"\"converge\": [\"throttle\", \"pause\"], \"pause_ms\": 9000", "completed", ""},
		    {"\"converge\": [\"throttle\", \"pause\"], \"pause_ms\": 6000", "rolled-back", "migration.max_downtime"},
		    {"\"converge\": [\"throttle\"], \"pause_ms\": 9000", "rolled-back", "migration.max_downtime"}};
	for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
		struct two_hosts *hosts = two_hosts_new();
		print_message("# %s\n", rows[i].request);
		fake_driver_script_move(FAKE_MOVE_TOO_MUCH_AT_SWITCH);
		cleanup_json json_t *view = run(hosts, rows[i].request);
		assert_ended(view, rows[i].status, rows[i].code);
		assert_true(json_is_true(json_object_get(json_object_get(view, "promise"), "kept")));
		assert_true(two_hosts_free(hosts));
	}
}

/* At each of these moments somebody changes what is promised so that the guest, which does not converge, can go. */
static void test_changed_meanwhile(void **state)
{
	(void)state;
	static const struct {
		const char *host;
		enum fake_call call;
		enum fake_move_end script;
		bool at_switch;
	} rows[] = {{"host-b", FAKE_CHECK_INCOMING, FAKE_MOVE_NEVER_CONVERGES, false},
		    {"host-b", FAKE_START_INCOMING, FAKE_MOVE_NEVER_CONVERGES, false},
		    {"host-a", FAKE_MOVE_START, FAKE_MOVE_NEVER_CONVERGES, false},
		    {"host-a", FAKE_MOVE_SAMPLE, FAKE_MOVE_NEVER_CONVERGES, false},
		    /* The last look, after which the switch would be undone. */
		    {"host-a", FAKE_MOVE_SAMPLE, FAKE_MOVE_TOO_MUCH_AT_SWITCH, true}};
	for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
		struct two_hosts *hosts = two_hosts_new();
		struct asker asker = {.hosts = hosts,
				      .changes = "{\"max_downtime_ms\": 8000, \"bandwidth_bytes_per_s\": 123456}",
				      .at_switch = rows[i].at_switch};
		print_message("# changed at %s\n", fake_call_name(rows[i].call));
		fake_driver_script_move(rows[i].script);
		fake_driver_hook(rows[i].host, rows[i].call, ask, &asker);
		cleanup_json json_t *view = run(hosts, "\"converge\": [\"throttle\"], \"bandwidth_bytes_per_s\": 5000000");
		assert_int_equal(asker.asked, 1);
		assert_int_equal(asker.code, ERROR_CODE_COUNT);
		assert_ended(view, "completed", "");
		const json_t *promise = json_object_get(view, "promise");
		assert_int_equal(json_integer_value(json_object_get(promise, "max_downtime_ms")), 8000);
		assert_true(json_is_true(json_object_get(promise, "kept")));
		/* Or less, as the fake's link does not keep to it. */
		assert_in_range(fake_driver_bandwidth("host-a"), 123456 / 8, 123456);
		assert_true(two_hosts_free(hosts));
	}
}

/* A deadline that is taken away, and one that is set when it has passed already. */
static void test_deadline_changed(void **state)
{
	(void)state;
	struct two_hosts *hosts = two_hosts_new();
	struct asker asker = {.hosts = hosts, .changes = "{\"deadline_ms\": 0}"};
	fake_driver_script_move(FAKE_MOVE_NEVER_CONVERGES);
	fake_driver_hook("host-a", FAKE_MOVE_SAMPLE, ask, &asker);
	cleanup_json json_t *view = run(hosts, "\"deadline_ms\": 10000");
	assert_ended(view, "rolled-back", "migration.not_converging");
	struct asker hasty = {.hosts = hosts, .changes = "{\"deadline_ms\": 1}"};
	fake_driver_hook("host-a", FAKE_MOVE_SAMPLE, ask, &hasty);
	cleanup_json json_t *second = run(hosts, "");
	assert_ended(second, "rolled-back", "migration.deadline");
	assert_true(two_hosts_free(hosts));
}

static void test_complete(void **state)
{
	(void)state;
	for (int early = 0; early < 2; early++) {
		struct two_hosts *hosts = two_hosts_new();
		struct asker asker = {.hosts = hosts};
		struct move_limits told[64];
		fake_driver_script_move(FAKE_MOVE_NEVER_CONVERGES);
		if (early)
			fake_driver_hook("host-b", FAKE_START_INCOMING, ask, &asker);
		else
			fake_driver_hook("host-a", FAKE_MOVE_SAMPLE, ask, &asker);
		cleanup_json json_t *view = run(hosts, "");
		assert_int_equal(asker.code, ERROR_CODE_COUNT);
		assert_ended(view, "completed", "");
		size_t count = fake_driver_limits("host-a", told, 64);
		assert_in_range(count, 2, 64);
		assert_int_equal(told[count - 1].downtime_ms, 2000000);
		assert_true(two_hosts_free(hosts));
	}
}

/* Once the guest has stopped for good there is nothing to change, and afterwards even less. */
static void test_too_late(void **state)
{
	(void)state;
	static const char *const asked[] = {"{\"max_downtime_ms\": 8000}", NULL};
	for (size_t i = 0; i < 2; i++) {
		struct two_hosts *hosts = two_hosts_new();
		struct asker at_switch = {.hosts = hosts, .changes = asked[i]}, at_finish = at_switch, ended = at_switch;
		fake_driver_hook("host-a", FAKE_MOVE_CONTINUE, ask, &at_switch);
		fake_driver_hook("host-b", FAKE_TAKE_OVER, ask, &at_finish);
		cleanup_json json_t *view = run(hosts, "");
		assert_ended(view, "completed", "");
		assert_int_equal(json_integer_value(json_object_get(json_object_get(view, "promise"), "max_downtime_ms")), 300);
		assert_int_equal(at_switch.code, ERROR_MIGRATION_TOO_LATE);
		assert_int_equal(at_finish.code, ERROR_MIGRATION_TOO_LATE);
		ask(&ended);
		assert_int_equal(ended.code, ERROR_MIGRATION_ENDED);
		/* The destination's record is not the place to ask. */
		struct migration *there = newest(&hosts->b);
		cleanup_error struct error *e = NULL;
		cleanup_json json_t *changes_there = parsed("{\"deadline_ms\": 7}");
		assert_int_equal(source_set(&hosts->b.host, there, changes_there, &e), -1);
		assert_int_equal(e->code, ERROR_INVALID_ARGUMENT);
		assert_non_null(strstr(e->message, "host-a"));
		migration_unref(there);
		assert_true(two_hosts_free(hosts));
	}
}

static void test_nothing_to_change(void **state)
{
	(void)state;
	struct two_hosts *hosts = two_hosts_new();
	struct asker nothing = {.hosts = hosts, .changes = "{}"}, wrong = {.hosts = hosts, .changes = "{\"max_downtime_ms\": 0}"};
	fake_driver_hook("host-a", FAKE_MOVE_SAMPLE, ask, &nothing);
	fake_driver_hook("host-a", FAKE_MOVE_PREPARE, ask, &wrong);
	cleanup_json json_t *view = run(hosts, "");
	assert_ended(view, "completed", "");
	assert_int_equal(nothing.code, ERROR_INVALID_ARGUMENT);
	assert_int_equal(wrong.code, ERROR_INVALID_ARGUMENT);
	assert_true(two_hosts_free(hosts));
}

/* ---- a pause that led nowhere ---- */

#define PAUSE_US 40000

static void take_a_while(void *user)
{
	(void)user;
	for (int64_t began_us = clock_monotonic_us(); clock_monotonic_us() < began_us + PAUSE_US;)
		;
}

/* The switch fails when the guest has been paused for a while: it runs on at the source, and the pause is told. */
static void test_pause_of_a_failed_switch(void **state)
{
	(void)state;
	static const struct {
		const char *request;
		bool kept;
	} rows[] = {{"\"max_downtime_ms\": 30", false}, {"\"max_downtime_ms\": 60000", true}};
	for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
		struct two_hosts *hosts = two_hosts_new();
		fake_driver_script_move(FAKE_MOVE_BREAKS_LATE);
		fake_driver_hook("host-a", FAKE_PORTS_SHUT, take_a_while, NULL);
		cleanup_json json_t *view = run(hosts, rows[i].request);
		assert_ended(view, "rolled-back", "migration.qemu");
		const double pause_ms = json_number_value(json_object_get(view, "downtime_ms"));
		if (pause_ms < PAUSE_US / 1000)
			fail_msg("the pause was %.1f ms", pause_ms);
		const json_t *promise = json_object_get(view, "promise");
		assert_int_equal(json_is_true(json_object_get(promise, "kept")), rows[i].kept);
		assert_int_equal(strstr(words_of(promise), "30 ms were promised") != NULL, !rows[i].kept);
		assert_true(two_hosts_free(hosts));
	}
}

/* Failed before it stopped, or paused all along by somebody else: there was no pause of ours. */
static void test_no_pause(void **state)
{
	(void)state;
	struct two_hosts *hosts = two_hosts_new();
	fake_driver_script_move(FAKE_MOVE_BREAKS);
	cleanup_json json_t *view = run(hosts, "");
	assert_ended(view, "rolled-back", "migration.qemu");
	assert_true(json_number_value(json_object_get(view, "downtime_ms")) == 0);
	struct vm *vm = NULL;
	assert_int_equal(inventory_lock(hosts->a.host.inventory, GUEST_UUID, "test", &vm, NULL), 0);
	assert_int_equal(vm_driver_fake.pause(vm->machine, NULL), 0);
	inventory_unlock(hosts->a.host.inventory, vm);
	fake_driver_script_move(FAKE_MOVE_BREAKS_LATE);
	fake_driver_hook("host-a", FAKE_PORTS_SHUT, take_a_while, NULL);
	cleanup_json json_t *paused = run(hosts, "");
	assert_ended(paused, "rolled-back", "migration.qemu");
	assert_true(json_number_value(json_object_get(paused, "downtime_ms")) == 0);
	assert_true(two_hosts_free(hosts));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_view),
		cmocka_unit_test(test_kept),
		cmocka_unit_test(test_throttled_and_given_up),
		cmocka_unit_test(test_nothing_allowed),
		cmocka_unit_test(test_deadline_before_anything_is_copied),
		cmocka_unit_test(test_longer_pause),
		cmocka_unit_test(test_longer_pause_at_switch),
		cmocka_unit_test(test_changed_meanwhile),
		cmocka_unit_test(test_deadline_changed),
		cmocka_unit_test(test_complete),
		cmocka_unit_test(test_too_late),
		cmocka_unit_test(test_nothing_to_change),
		cmocka_unit_test(test_pause_of_a_failed_switch),
		cmocka_unit_test(test_no_pause),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
