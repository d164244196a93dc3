/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The handover of a VM by post-copy, in memory, as test_handover.c does it for pre-copy: the stream breaks, each daemon dies,
 * each QEMU ends, messages get lost, at each moment. The fake world sees to it that the guest never runs twice, nor from a state
 * that it has left behind, and that nobody ends what the other side still needs. Where one of the two QEMUs ends while memory is
 * missing the guest is lost: the destination's VM, ended, with the reason in its record and nothing left anywhere.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/json.h"
#include "base/xalloc.h"
#include "fakes/two_hosts_asserts.h"
#include "migration/resolve.h"
#include "migration/source.h"

#define SILENCE_MS 20 /* the destination asks soon when its stream is broken */
#define COUNT(array) (sizeof(array) / sizeof((array)[0]))

static struct two_hosts *hosts;

static int setup(void **state)
{
	(void)state;
	hosts = two_hosts_new();
	hosts->b.silence_limit_ms = hosts->b.host.times.silence_limit_ms = SILENCE_MS;
	fake_driver_script_move(FAKE_MOVE_NEVER_CONVERGES);
	return 0;
}

static int teardown(void **state)
{
	(void)state;
	return two_hosts_free(hosts) ? 0 : -1;
}

/* For what is done again and again in one test. */
static void start_anew(void)
{
	assert_int_equal(teardown(NULL), 0);
	setup(NULL);
}

static struct migration *begin(struct test_host *from, const struct test_host *to)
{
	return begin_migration(from, to, "\"converge\": [\"postcopy\"]");
}

/* The record that b has of it. */
static void assert_status_there(const char *id, const char *status, const char *reason)
{
	struct migration *there = NULL;
	assert_int_equal(migration_find(hosts->b.host.migrations, id, &there, NULL), 0);
	assert_status(there, status, reason);
	migration_unref(there);
}

static bool was_postcopy(struct migration *migration)
{
	cleanup_json json_t *view = migration_view(migration);
	return json_is_true(json_object_get(view, "postcopy"));
}

/* ---- good ones ---- */

static void test_success(void **state)
{
	(void)state;
	for (int i = 0; i < 3; i++) {
		struct test_host *from = i % 2 ? &hosts->b : &hosts->a, *to = i % 2 ? &hosts->a : &hosts->b;
		struct migration *migration = begin(from, to);
		assert_true(wait_ended(hosts, migration));
		assert_settled(hosts, to, RUNS);
		assert_status(migration, "completed", NULL);
		assert_true(was_postcopy(migration));
		assert_int_equal(migration->epoch, i + 2);
		migration_unref(migration);
	}
	assert_true(fake_driver_calls("host-a", FAKE_MOVE_START_POSTCOPY) > 0);
	assert_true(wire_handled("finish") >= 6); /* to take it, and until it is done */
}

/* Not allowed: then it is not done. */
static void test_only_when_allowed(void **state)
{
	(void)state;
	struct migration *migration = begin_migration(&hosts->a, &hosts->b, "\"converge\": []");
	assert_true(wait_ended(hosts, migration));
	assert_settled(hosts, &hosts->a, RUNS);
	assert_status(migration, "rolled-back", "migration.not_converging");
	assert_false(was_postcopy(migration));
	assert_int_equal(fake_driver_calls("host-a", FAKE_MOVE_START_POSTCOPY), 0);
	migration_unref(migration);
}

/* ---- the stream breaks ---- */

static void look_recovering(void *user)
{
	enum migration_status *seen = user;
	struct migration *migration = NULL;
	cleanup_json json_t *list = migration_list_view(hosts->a.host.migrations);
	const char *id = json_string_value(json_object_get(json_array_get(list, 0), "id"));
	if (migration_find(hosts->a.host.migrations, id, &migration, NULL) == 0) {
		*seen = migration->status;
		migration_unref(migration);
	}
}

static void test_stream_breaks(void **state)
{
	(void)state;
	static const unsigned int breaks[] = {1, 4};
	for (size_t i = 0; i < COUNT(breaks); i++) {
		enum migration_status seen = MIGRATION_QUEUED;
		start_anew();
		fake_driver_script_postcopy(FAKE_POSTCOPY_GOOD, breaks[i]);
		two_hosts_at("postcopy-mending", look_recovering, &seen);
		struct migration *migration = begin(&hosts->a, &hosts->b);
		assert_true(wait_ended(hosts, migration));
		two_hosts_at("", NULL, NULL);
		assert_settled(hosts, &hosts->b, RUNS);
		assert_status(migration, "completed", NULL);
		assert_status_there(migration->id, "completed", NULL);
		assert_int_equal(seen, MIGRATION_RECOVERING);
		assert_int_equal(fake_driver_calls("host-a", FAKE_MOVE_RESUME), breaks[i]);
		migration_unref(migration);
	}
}

/* Each attempt to mend it may fail in each way; it is mended in the end. */
static void test_mending_fails(void **state)
{
	(void)state;
	static const struct {
		const char *host;
		enum fake_call call;
		enum fake_failure failure;
		unsigned int attempts;
	} rows[] = {
		{"host-b", FAKE_MOVE_LISTEN_AGAIN, FAKE_FAIL, 3},
		{"host-b", FAKE_MOVE_LISTEN_AGAIN, FAKE_FAIL_DONE, 3},
		{"host-a", FAKE_MOVE_RESUME, FAKE_FAIL, 3},
		{"host-a", FAKE_MOVE_RESUME, FAKE_FAIL_DONE, 1}, /* it goes on, whatever was answered */
	};
	for (size_t i = 0; i < COUNT(rows); i++) {
		start_anew();
		print_message("# %s on %s fails (%d)\n", fake_call_name(rows[i].call), rows[i].host, rows[i].failure);
		fake_driver_script_postcopy(FAKE_POSTCOPY_GOOD, 1);
		fake_driver_fail(rows[i].host, rows[i].call, rows[i].failure, 2);
		struct migration *migration = begin(&hosts->a, &hosts->b);
		assert_true(wait_ended(hosts, migration));
		assert_settled(hosts, &hosts->b, RUNS);
		assert_status(migration, "completed", NULL);
		assert_int_equal(fake_driver_calls(rows[i].host, rows[i].call), rows[i].attempts);
		migration_unref(migration);
	}
}

/* ---- it does not come to it ---- */

/* QEMU calls itself post-copy, fails, and lets the guest run on: the destination must never run what it has. */
static void test_fails_at_the_switch(void **state)
{
	(void)state;
	static const enum fake_postcopy ends[] = {FAKE_POSTCOPY_FAILS, FAKE_POSTCOPY_FAILS_LATE};
	for (size_t i = 0; i < COUNT(ends); i++) {
		start_anew();
		fake_driver_script_postcopy(ends[i], 0);
		struct migration *migration = begin(&hosts->a, &hosts->b);
		assert_true(wait_ended(hosts, migration));
		assert_settled(hosts, &hosts->a, RUNS);
		assert_status(migration, "rolled-back", "migration.qemu");
		assert_int_equal(wire_handled("finish"), 0);
		migration_unref(migration);
	}
}

/* Calls of the driver that only post-copy makes, or that do otherwise in it. */
static void test_calls_fail(void **state)
{
	(void)state;
	static const struct {
		const char *host;
		enum fake_call call;
		enum fake_failure failure;
		bool moved;
		enum running running;
	} rows[] = {
		{"host-a", FAKE_MOVE_START_POSTCOPY, FAKE_FAIL, false, RUNS},
		{"host-a", FAKE_MOVE_START_POSTCOPY, FAKE_FAIL_DONE, false, RUNS},
		{"host-a", FAKE_MOVE_START_POSTCOPY, FAKE_FAIL_GONE, false, ENDED},
		{"host-a", FAKE_MOVE_CONTINUE, FAKE_FAIL, false, RUNS},
		{"host-a", FAKE_MOVE_CONTINUE, FAKE_FAIL_DONE, false, RUNS},
		{"host-a", FAKE_PORTS_SHUT, FAKE_FAIL, true, RUNS}, /* it is too late to turn back for that */
		/* The guest has not run there, so it is the source's; but QEMU lets it run no more. */
		{"host-b", FAKE_WAIT_LOADED, FAKE_FAIL, false, STUCK},
		{"host-b", FAKE_TAKE_OVER, FAKE_FAIL, false, STUCK},
		{"host-b", FAKE_TAKE_OVER, FAKE_FAIL_GONE, false, STUCK},
		{"host-b", FAKE_TAKE_OVER, FAKE_FAIL_DONE, true, RUNS},
		{"host-b", FAKE_MOVE_RESTORE, FAKE_FAIL, true, RUNS},
	};
	for (size_t i = 0; i < COUNT(rows); i++) {
		start_anew();
		print_message("# %s on %s fails (%d)\n", fake_call_name(rows[i].call), rows[i].host, rows[i].failure);
		fake_driver_fail(rows[i].host, rows[i].call, rows[i].failure, 1);
		struct migration *migration = begin(&hosts->a, &hosts->b);
		assert_true(wait_ended(hosts, migration));
		assert_settled(hosts, rows[i].moved ? &hosts->b : &hosts->a, rows[i].running);
		migration_unref(migration);
	}
}

/* QEMU waits for a page before it answers that the guest runs: that is no failure, and none is told. */
static void test_runs_late(void **state)
{
	(void)state;
	fake_driver_fail("host-b", FAKE_TAKE_OVER, FAKE_FAIL_LATER, 1);
	struct migration *migration = begin(&hosts->a, &hosts->b);
	assert_true(wait_ended(hosts, migration));
	assert_settled(hosts, &hosts->b, RUNS);
	assert_status(migration, "completed", NULL);
	assert_status_there(migration->id, "completed", NULL);
	migration_unref(migration);
}

/* ---- somebody aborts ---- */

static int abort_refused; /* with this code, or -1 when it was accepted */

static void abort_it(void *user)
{
	(void)user;
	struct migration *migration = NULL;
	cleanup_error struct error *e = NULL;
	cleanup_json json_t *list = migration_list_view(hosts->a.host.migrations);
	const char *id = json_string_value(json_object_get(json_array_get(list, 0), "id"));
	if (migration_find(hosts->a.host.migrations, id, &migration, NULL) < 0)
		return;
	abort_refused = source_abort(&hosts->a.host, migration, &e) < 0 ? (int)e->code : -1;
	migration_unref(migration);
}

/* As long as the guest has not been stopped for it, it is done; afterwards it is refused, and nothing comes of it. */
static void test_abort(void **state)
{
	(void)state;
	static const char *const points[] = {"postcopy-begun", "before-taken", "postcopy-serving", "postcopy-mending", "postcopy-done"};
	fake_driver_hook("host-a", FAKE_MOVE_START_POSTCOPY, abort_it, NULL);
	struct migration *migration = begin(&hosts->a, &hosts->b);
	assert_true(wait_ended(hosts, migration));
	assert_settled(hosts, &hosts->a, RUNS);
	assert_status(migration, "cancelled", "cancelled");
	assert_int_equal(abort_refused, -1);
	migration_unref(migration);
	for (size_t i = 0; i < COUNT(points); i++) {
		start_anew();
		print_message("# aborted at %s\n", points[i]);
		fake_driver_script_postcopy(FAKE_POSTCOPY_GOOD, 1);
		abort_refused = -1;
		two_hosts_at(points[i], abort_it, NULL);
		migration = begin(&hosts->a, &hosts->b);
		assert_true(wait_ended(hosts, migration));
		assert_settled(hosts, &hosts->b, RUNS);
		two_hosts_at("", NULL, NULL);
		assert_status(migration, "completed", NULL);
		assert_true(abort_refused == ERROR_MIGRATION_TOO_LATE || abort_refused == ERROR_MIGRATION_ENDED);
		migration_unref(migration);
	}
}

/* ---- a person settles it ---- */

/* Nobody hears that the destination has taken it; a person gives it to the source, although the other copy runs. That is paused,
 * and can be stopped at once: nobody looks at its machine any more. */
static void test_settled_meanwhile(void **state)
{
	(void)state;
	wire_fault("finish", WIRE_LOSE_ANSWER, 1000);
	struct migration *migration = begin(&hosts->a, &hosts->b), *there = NULL;
	assert_true(wait_status(migration, MIGRATION_IN_DOUBT));
	assert_int_equal(fake_world_run("host-b", GUEST_UUID), MACHINE_RUNNING);
	assert_int_equal(migration_find(hosts->b.host.migrations, migration->id, &there, NULL), 0);
	assert_int_equal(resolve_migration(&hosts->a.host, migration, "host-a", "host-b", NULL), 0);
	assert_true(wait_ended(hosts, migration));
	assert_true(wait_ended(hosts, there));
	struct vm *vm = NULL;
	assert_int_equal(inventory_lock(hosts->b.host.inventory, GUEST_UUID, "stop", &vm, NULL), 0);
	assert_false(there->awaiting);
	assert_int_equal(fake_world_run("host-b", GUEST_UUID), MACHINE_PAUSED);
	assert_int_equal(vm_end(hosts->b.host.inventory, vm, NULL), 0);
	inventory_unlock(hosts->b.host.inventory, vm);
	assert_settled(hosts, &hosts->a, STUCK);
	migration_unref(there);
	migration_unref(migration);
}

/* ---- messages ---- */

static void test_messages(void **state)
{
	(void)state;
	static const enum wire_fault faults[] = {WIRE_LOSE_REQUEST, WIRE_LOSE_ANSWER, WIRE_TWICE, WIRE_KEEP};
	for (size_t i = 0; i < COUNT(faults); i++)
		for (unsigned int breaks = 0; breaks < 2; breaks++) {
			start_anew();
			print_message("# finish suffers fault %d, %u breaks\n", faults[i], breaks);
			fake_driver_script_postcopy(FAKE_POSTCOPY_GOOD, breaks);
			wire_fault("finish", faults[i], 3);
			struct migration *migration = begin(&hosts->a, &hosts->b);
			assert_true(wait_ended(hosts, migration));
			assert_settled(hosts, &hosts->b, RUNS);
			(void)wire_deliver_kept();
			assert_settled(hosts, &hosts->b, RUNS);
			assert_status(migration, "completed", NULL);
			migration_unref(migration);
		}
}

/* ---- a QEMU ends ---- */

static void test_qemu_ends(void **state)
{
	(void)state;
	static const struct {
		const char *point, *host;
		bool moved;
		enum running running;
		const char *reason_there; /* in the destination's record, and, if it is lost, in the source's */
	} rows[] = {
		/* The source still has all of it, or the guest dies where it is owned. */
		{"postcopy-begun", "host-a", false, ENDED, NULL},
		{"postcopy-begun", "host-b", false, RUNS, NULL},
		/* It has not run at the destination: it is the source's, whose QEMU lets it run no more. */
		{"before-taken", "host-b", false, STUCK, NULL},
		{"after-taken", "host-b", false, STUCK, NULL},
		/* From here on each of the two has a part of it: it is lost, and the destination's. */
		{"before-taken", "host-a", true, ENDED, "qemu.gone"},
		{"after-taken", "host-a", true, ENDED, "qemu.gone"},
		{"before-running", "host-a", true, ENDED, "qemu.gone"},
		{"after-running", "host-a", true, ENDED, "qemu.gone"},
		{"postcopy-serving", "host-a", true, ENDED, "qemu.gone"},
		{"postcopy-listening", "host-a", true, ENDED, "qemu.gone"},
		{"postcopy-mending", "host-a", true, ENDED, "qemu.gone"},
		{"before-running", "host-b", true, ENDED, NULL}, /* it may not have lacked anything: nobody can tell */
		{"after-running", "host-b", true, ENDED, NULL},
		{"postcopy-serving", "host-b", true, ENDED, "qemu.gone"},
		{"postcopy-listening", "host-b", true, ENDED, "qemu.gone"},
		{"postcopy-mending", "host-b", true, ENDED, "qemu.gone"},
		/* Everything is there. */
		{"postcopy-done", "host-a", true, RUNS, NULL},
		{"before-released", "host-a", true, RUNS, NULL},
	};
	for (size_t i = 0; i < COUNT(rows); i++) {
		start_anew();
		print_message("# QEMU of %s ends at %s\n", rows[i].host, rows[i].point);
		fake_driver_script_postcopy(FAKE_POSTCOPY_GOOD, 1);
		two_hosts_at(rows[i].point, kill_guest, (void *)(uintptr_t)rows[i].host);
		struct migration *migration = begin(&hosts->a, &hosts->b);
		assert_true(wait_ended(hosts, migration));
		assert_settled(hosts, rows[i].moved ? &hosts->b : &hosts->a, rows[i].running);
		two_hosts_at("", NULL, NULL);
		if (rows[i].moved)
			assert_status_there(migration->id, "completed", rows[i].reason_there);
		if (rows[i].reason_there) /* both say it */
			assert_status(migration, "completed", rows[i].reason_there);
		migration_unref(migration);
	}
}

/* ---- a daemon dies ---- */

static const char *const points[] = {
	"before-offered", "after-offered",    "postcopy-begun",     "before-taken",     "after-taken",   "before-running",  "after-running",
	"postcopy-serving", "postcopy-listening", "postcopy-mending", "postcopy-done", "before-released", "after-released", "source-released",
};

/* Whatever has become of it: whoever owns it has it, or it was lost with the host that had a part of it. */
static void assert_outcome(const struct test_host *rebooted)
{
	struct test_host *owner = agreed_owner(hosts);
	const enum machine_run run = fake_world_run(owner->name, GUEST_UUID);
	const bool lost = run == MACHINE_GONE;
	if (!rebooted && run != MACHINE_RUNNING)
		fail_msg("the guest is %s on %s", machine_run_name(run), owner->name);
	/* A source whose destination lost it before it ran may have to be started anew; nobody else is left standing. */
	const bool stuck = owner == &hosts->a && run == MACHINE_HANDED_OVER;
	assert_owned_by(hosts, owner, lost ? ENDED : stuck ? STUCK : RUNS);
}

static void run_crash(const char *point, bool at_a, enum aftermath aftermath, unsigned int breaks)
{
	start_anew();
	struct test_host *victim = at_a ? &hosts->a : &hosts->b;
	print_message("# %s dies at %s, aftermath %d, %u breaks\n", victim->name, point, aftermath, breaks);
	fake_driver_script_postcopy(FAKE_POSTCOPY_GOOD, breaks);
	two_hosts_crash_at(hosts, victim, point);
	struct migration *migration = begin(&hosts->a, &hosts->b);
	assert_true(wait_ended(hosts, migration));
	assert_true(wait_all_ended(hosts));
	migration_unref(migration);
	const bool crashed = victim->crashed;
	if (crashed)
		come_back(victim, aftermath);
	two_hosts_crash_at(hosts, NULL, NULL);
	assert_true(wait_all_ended(hosts));
	assert_outcome(crashed && aftermath == REBOOTS ? victim : NULL);
}

static void test_crashes(void **state)
{
	(void)state;
	for (size_t i = 0; i < COUNT(points); i++)
		for (int at_a = 0; at_a < 2; at_a++)
			for (int aftermath = RESTARTS; aftermath <= REBOOTS; aftermath++)
				for (unsigned int breaks = 0; breaks < 2; breaks++)
					run_crash(points[i], at_a, (enum aftermath)aftermath, breaks);
}

static void crash_before_serving(void *user)
{
	(void)user;
	if (fake_world_move("host-a", GUEST_UUID) == MOVE_POSTCOPY && !hosts->a.crashed)
		test_host_crash(hosts, &hosts->a);
}

/* The source's ferryd dies when its QEMU calls itself post-copy and serves nothing yet: the next one must not send finish before it
 * does, as QEMU may still fail, and let the guest run on. */
static void test_source_dies_before_it_serves(void **state)
{
	(void)state;
	static const enum fake_postcopy ends[] = {FAKE_POSTCOPY_GOOD, FAKE_POSTCOPY_FAILS, FAKE_POSTCOPY_FAILS_LATE};
	for (size_t i = 0; i < COUNT(ends); i++) {
		start_anew();
		fake_driver_script_postcopy(ends[i], 0);
		fake_driver_hook("host-a", FAKE_MOVE_SAMPLE, crash_before_serving, NULL);
		struct migration *migration = begin(&hosts->a, &hosts->b);
		assert_true(wait_ended(hosts, migration));
		assert_true(hosts->a.crashed);
		migration_unref(migration);
		fake_driver_hook("host-a", FAKE_MOVE_SAMPLE, NULL, NULL);
		come_back(&hosts->a, RESTARTS);
		assert_settled(hosts, ends[i] == FAKE_POSTCOPY_GOOD ? &hosts->b : &hosts->a, RUNS);
	}
}

static void crash_with_words_unread(void *user)
{
	if (fake_world_move("host-b", GUEST_UUID) != MOVE_POSTCOPY)
		fake_driver_leave_unread("host-b");
	else
		crash_before_serving(user);
}

/* The same while the destination has not read yet that its QEMU went over to post-copy, and asks a source that does not answer: it
 * looks again before it refuses, as the guest may run nowhere else by then; and again where it could not look. */
static void test_source_dies_with_words_unread(void **state)
{
	(void)state;
	for (unsigned int failures = 0; failures < 3; failures++) {
		start_anew();
		fake_driver_hook("host-a", FAKE_MOVE_SAMPLE, crash_with_words_unread, NULL);
		fake_driver_fail("host-b", FAKE_REFRESH, FAKE_FAIL, failures);
		struct migration *migration = begin(&hosts->a, &hosts->b);
		assert_true(wait_ended(hosts, migration));
		assert_true(hosts->a.crashed);
		struct migration *there = NULL;
		assert_int_equal(migration_find(hosts->b.host.migrations, migration->id, &there, NULL), 0);
		assert_true(wait_status(there, MIGRATION_IN_DOUBT));
		assert_int_equal(fake_driver_calls("host-b", FAKE_REFRESH), failures + 1);
		migration_unref(there);
		migration_unref(migration);
		fake_driver_hook("host-a", FAKE_MOVE_SAMPLE, NULL, NULL);
		come_back(&hosts->a, RESTARTS);
		assert_settled(hosts, &hosts->b, RUNS);
	}
}

/* The source's host loses its power while pages are missing: lost, and both say so as soon as it is back. */
static void test_source_host_lost(void **state)
{
	(void)state;
	two_hosts_crash_at(hosts, &hosts->a, "postcopy-serving");
	struct migration *migration = begin(&hosts->a, &hosts->b);
	assert_true(wait_ended(hosts, migration));
	cleanup_free char *id = xstrdup(migration->id);
	migration_unref(migration);
	/* As long as it is away nobody knows whether it comes back with what is missing. */
	assert_int_equal(fake_world_run("host-b", GUEST_UUID), MACHINE_RUNNING);
	come_back(&hosts->a, REBOOTS);
	two_hosts_crash_at(hosts, NULL, NULL);
	assert_settled(hosts, &hosts->b, ENDED);
	assert_status_there(id, "completed", "qemu.gone");
	/* It can be started there. */
	struct vm *vm = NULL;
	assert_int_equal(inventory_lock(hosts->b.host.inventory, GUEST_NAME, "start", &vm, NULL), 0);
	assert_int_equal(vm_start(hosts->b.host.inventory, vm, NULL), 0);
	inventory_unlock(hosts->b.host.inventory, vm);
	assert_settled(hosts, &hosts->b, RUNS);
}

/* ---- all of it together ---- */

static void test_many_faults(void **state)
{
	(void)state;
	static const enum wire_fault faults[] = {WIRE_LOSE_REQUEST, WIRE_LOSE_ANSWER, WIRE_TWICE};
	static const char *const messages[] = {"prepare", "finish", "refuse", "outcome"};
	const char *wanted = getenv("FERRY_TEST_RUNS"), *first = getenv("FERRY_TEST_FIRST");
	const unsigned int runs = wanted ? (unsigned int)atoi(wanted) : 150;
	for (unsigned int run = first ? (unsigned int)atoi(first) : 0; run < runs; run++) {
		start_anew();
		seed_die(run);
		bool may_be_gone = false;
		const unsigned int breaks = throw_die(4);
		const enum fake_postcopy end = throw_die(5) == 0 ? (enum fake_postcopy)throw_die(3) : FAKE_POSTCOPY_GOOD;
		fake_driver_script_postcopy(end, breaks);
		const char *message = messages[throw_die(COUNT(messages))];
		wire_fault(message, faults[throw_die(COUNT(faults))], throw_die(4));
		const enum fake_call call = (enum fake_call)(FAKE_START_INCOMING + throw_die(FAKE_CALL_COUNT - FAKE_START_INCOMING));
		if (throw_die(3) == 0 && call != FAKE_MOVE_CANCEL)
			fake_driver_fail(throw_die(2) ? "host-a" : "host-b", call, throw_die(2) ? FAKE_FAIL : FAKE_FAIL_DONE, 1);
		if (throw_die(6) == 0) {
			may_be_gone = true;
			two_hosts_at(points[throw_die(COUNT(points))], kill_guest,
				     (void *)(uintptr_t)(throw_die(2) ? "host-a" : "host-b"));
		}
		print_message("# run %u: %u breaks, end %d, %s, %s\n", run, breaks, end, message, fake_call_name(call));
		struct migration *migration = NULL;
		for (int crash = 0; crash < 3; crash++) {
			struct test_host *victim = throw_die(2) ? &hosts->a : &hosts->b;
			const char *point = points[throw_die(COUNT(points))];
			const enum aftermath aftermath = (enum aftermath)throw_die(3);
			two_hosts_crash_at(hosts, crash < 2 ? victim : NULL, crash < 2 ? point : NULL);
			if (!migration)
				migration = begin(&hosts->a, &hosts->b);
			assert_true(wait_all_ended(hosts));
			for (int i = 0; i < 2; i++) {
				struct test_host *host = i ? &hosts->b : &hosts->a;
				if (!host->crashed)
					continue;
				print_message("#   %s died at %s, aftermath %d\n", host->name, point, aftermath);
				may_be_gone = may_be_gone || aftermath == REBOOTS;
				come_back(host, aftermath);
			}
		}
		migration_unref(migration);
		two_hosts_at("", NULL, NULL);
		assert_true(wait_all_ended(hosts));
		assert_null(fake_world_breach());
		struct test_host *owner = agreed_owner(hosts), *other = owner == &hosts->a ? &hosts->b : &hosts->a;
		const enum machine_run state_now = fake_world_run(owner->name, GUEST_UUID);
		/* One that QEMU lets run no more is the source's, paused; a person starts it anew. */
		if (state_now != MACHINE_RUNNING && !may_be_gone && fake_driver_calls("host-a", FAKE_RESUME) == 0)
			fail_msg("nobody runs the guest: it is %s", machine_run_name(state_now));
		cleanup_free char *own_word = journal_owner(owner, NULL);
		cleanup_free char *other_word = journal_owner(other, NULL);
		if (*other_word)
			assert_string_equal(own_word, other_word);
		assert_free(&hosts->a);
		assert_free(&hosts->b);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_success, setup, teardown),
		cmocka_unit_test_setup_teardown(test_only_when_allowed, setup, teardown),
		cmocka_unit_test_setup_teardown(test_stream_breaks, setup, teardown),
		cmocka_unit_test_setup_teardown(test_mending_fails, setup, teardown),
		cmocka_unit_test_setup_teardown(test_fails_at_the_switch, setup, teardown),
		cmocka_unit_test_setup_teardown(test_calls_fail, setup, teardown),
		cmocka_unit_test_setup_teardown(test_runs_late, setup, teardown),
		cmocka_unit_test_setup_teardown(test_abort, setup, teardown),
		cmocka_unit_test_setup_teardown(test_settled_meanwhile, setup, teardown),
		cmocka_unit_test_setup_teardown(test_messages, setup, teardown),
		cmocka_unit_test_setup_teardown(test_qemu_ends, setup, teardown),
		cmocka_unit_test_setup_teardown(test_crashes, setup, teardown),
		cmocka_unit_test_setup_teardown(test_source_dies_before_it_serves, setup, teardown),
		cmocka_unit_test_setup_teardown(test_source_dies_with_words_unread, setup, teardown),
		cmocka_unit_test_setup_teardown(test_source_host_lost, setup, teardown),
		cmocka_unit_test_setup_teardown(test_many_faults, setup, teardown),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
