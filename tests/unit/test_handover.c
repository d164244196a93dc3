/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The handover of a VM between two hosts: whole migrations through source.c, copy.c and destination.c, in memory (see
 * fakes/two_hosts.h), with every call of the driver, every message, every record of the journal and each of the two
 * daemons failing in turn. What must hold every time:
 *
 *   - at no moment do two machines of the guest run, nor one from a state that the guest has left behind (the fake
 * world watches this throughout);
 *   - in the end both journals name the same owner, the guest runs there (unless its own machine was killed), nothing
 * of it is left on the other host, and nobody holds its job.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/fault.h"
#include "base/json.h"
#include "base/xalloc.h"
#include "fakes/two_hosts_asserts.h"
#include "migration/source.h"
#include "net/http_client.h"

static struct two_hosts *setup(void)
{
	return two_hosts_new();
}

static void teardown(struct two_hosts *hosts)
{
	assert_true(two_hosts_free(hosts));
}

/* ---- good ones ---- */

static void test_success(void **state)
{
	(void)state;
	struct two_hosts *hosts = setup();
	struct migration *migration = begin_migration(&hosts->a, &hosts->b, "");
	assert_true(wait_ended(hosts, migration));
	assert_settled(hosts, &hosts->b, RUNS);
	assert_status(migration, "completed", NULL);
	cleanup_json json_t *view = migration_view(migration);
	assert_string_equal(json_string_value(json_object_get(view, "owner")), "host-b");
	assert_string_equal(json_string_value(json_object_get(view, "handover")), "released");
	assert_int_equal(json_integer_value(json_object_get(view, "epoch")), 2);
	assert_true(json_is_true(json_object_get(view, "encrypted")));
	assert_true(json_is_false(json_object_get(view, "cleanup_pending")));
	int64_t epoch;
	free(journal_owner(&hosts->a, &epoch));
	assert_int_equal(epoch, 2);
	free(journal_owner(&hosts->b, &epoch));
	assert_int_equal(epoch, 2);
	/* It is defined only where it is now. */
	cleanup_json json_t *left = inventory_list(hosts->a.host.inventory);
	cleanup_json json_t *there = inventory_list(hosts->b.host.inventory);
	assert_int_equal(json_array_size(left), 0);
	assert_int_equal(json_array_size(there), 1);
	migration_unref(migration);
	teardown(hosts);
}

static void test_there_and_back(void **state)
{
	(void)state;
	struct two_hosts *hosts = setup();
	for (int i = 0; i < 3; i++) {
		struct test_host *from = i % 2 ? &hosts->b : &hosts->a, *to = i % 2 ? &hosts->a : &hosts->b;
		struct migration *migration = begin_migration(from, to, "");
		assert_true(wait_ended(hosts, migration));
		assert_settled(hosts, to, RUNS);
		assert_status(migration, "completed", NULL);
		assert_int_equal(migration->epoch, i + 2);
		migration_unref(migration);
	}
	teardown(hosts);
}

static void test_keeps_definition(void **state)
{
	(void)state;
	struct two_hosts *hosts = setup();
	struct migration *migration = begin_migration(&hosts->a, &hosts->b, "\"keep_source_definition\": true");
	assert_true(wait_ended(hosts, migration));
	assert_settled(hosts, &hosts->b, RUNS);
	migration_unref(migration);
	/* Still there, and it cannot be started, also after a restart. */
	for (int i = 0; i < 2; i++) {
		cleanup_json json_t *view = NULL;
		struct vm *vm = NULL;
		cleanup_error struct error *e = NULL;
		assert_int_equal(inventory_show(hosts->a.host.inventory, GUEST_NAME, &view, NULL), 0);
		assert_string_equal(json_string_value(json_object_get(view, "state")), "moved");
		assert_int_equal(inventory_lock(hosts->a.host.inventory, GUEST_NAME, "start", &vm, NULL), 0);
		assert_int_equal(vm_start(hosts->a.host.inventory, vm, &e), -1);
		assert_int_equal(e->code, ERROR_VM_NOT_OWNER);
		inventory_unlock(hosts->a.host.inventory, vm);
		if (i == 0)
			test_host_restart(&hosts->a);
	}
	/* A way back that fails brings back what was kept. */
	fake_driver_fail("host-b", FAKE_MOVE_START, FAKE_FAIL, 1);
	migration = begin_migration(&hosts->b, &hosts->a, "");
	assert_true(wait_ended(hosts, migration));
	assert_settled(hosts, &hosts->b, RUNS);
	migration_unref(migration);
	cleanup_json json_t *view = NULL;
	assert_int_equal(inventory_show(hosts->a.host.inventory, GUEST_NAME, &view, NULL), 0);
	teardown(hosts);
}

static void test_paused_stays_paused(void **state)
{
	(void)state;
	struct two_hosts *hosts = setup();
	struct vm *vm = NULL;
	assert_int_equal(inventory_lock(hosts->a.host.inventory, GUEST_NAME, "pause", &vm, NULL), 0);
	assert_int_equal(vm_driver_fake.pause(vm->machine, NULL), 0);
	inventory_unlock(hosts->a.host.inventory, vm);
	/* Back where it was after a failure: paused. */
	fake_driver_script_move(FAKE_MOVE_BREAKS_LATE);
	struct migration *migration = begin_migration(&hosts->a, &hosts->b, "");
	assert_true(wait_ended(hosts, migration));
	assert_settled(hosts, &hosts->a, PAUSED);
	migration_unref(migration);
	fake_driver_script_move(FAKE_MOVE_GOOD);
	migration = begin_migration(&hosts->a, &hosts->b, "");
	assert_true(wait_ended(hosts, migration));
	assert_settled(hosts, &hosts->b, PAUSED);
	assert_status(migration, "completed", NULL);
	migration_unref(migration);
	teardown(hosts);
}

static void test_to_itself(void **state)
{
	(void)state;
	struct two_hosts *hosts = setup();
	struct migration *migration = begin_migration(&hosts->a, &hosts->a, "");
	assert_true(wait_ended(hosts, migration));
	assert_settled(hosts, &hosts->a, RUNS);
	assert_status(migration, "failed", "dest.same_host");
	migration_unref(migration);
	teardown(hosts);
}

/* ---- one thing fails ---- */

struct failing {
	const char *host;
	enum fake_call call;
	enum fake_failure failure;
	unsigned int count;
	enum fake_move_end move;
	/* what comes of it */
	const char *status, *reason;
	bool moved;
	enum running running;
};

/* Each call of the driver that a migration makes, failing in each way. */
static const struct failing failing[] = {
	/* Before anything was started. */
	{"host-a", FAKE_DESCRIBE, FAKE_FAIL, 1, 0, "failed", "qemu.qmp", false, RUNS},
	{"host-a", FAKE_DESCRIBE, FAKE_FAIL_GONE, 1, 0, "rolled-back", "qemu.qmp", false, ENDED},
	{"host-b", FAKE_CHECK_INCOMING, FAKE_FAIL, 1, 0, "failed", "qemu.qmp", false, RUNS},
	{"host-b", FAKE_CHECK_INCOMING, FAKE_FAIL_DONE, 1, 0, "failed", "dest.machine_type", false, RUNS},
	{"host-b", FAKE_START_INCOMING, FAKE_FAIL, 1, 0, "failed", "qemu.qmp", false, RUNS},
	/* During the copy, at the source. */
	{"host-a", FAKE_MOVE_PREPARE, FAKE_FAIL, 1, 0, "rolled-back", "qemu.qmp", false, RUNS},
	{"host-a", FAKE_MOVE_PREPARE, FAKE_FAIL_GONE, 1, 0, "rolled-back", "qemu.qmp", false, ENDED},
	{"host-a", FAKE_MOVE_START, FAKE_FAIL, 1, 0, "rolled-back", "qemu.qmp", false, RUNS},
	{"host-a", FAKE_MOVE_START, FAKE_FAIL_DONE, 1, 0, "rolled-back", "qemu.qmp", false, RUNS},
	{"host-a", FAKE_MOVE_START, FAKE_FAIL_GONE, 1, 0, "rolled-back", "qemu.qmp", false, ENDED},
	{"host-a", FAKE_MOVE_SAMPLE, FAKE_FAIL, 1, 0, "rolled-back", "qemu.qmp", false, RUNS},
	{"host-a", FAKE_MOVE_SET_LIMITS, FAKE_FAIL, 1, FAKE_MOVE_NEVER_CONVERGES, "rolled-back", "qemu.qmp",
	 false, RUNS},
	{"host-a", FAKE_MOVE_CONTINUE, FAKE_FAIL, 1, 0, "rolled-back", "qemu.qmp", false, RUNS},
	{"host-a", FAKE_MOVE_CONTINUE, FAKE_FAIL_DONE, 1, 0, "rolled-back", "qemu.qmp", false, RUNS},
	{"host-a", FAKE_MOVE_CONTINUE, FAKE_FAIL_GONE, 1, 0, "rolled-back", "qemu.qmp", false, ENDED},
	{"host-a", FAKE_PORTS_SHUT, FAKE_FAIL, 1, 0, "rolled-back", "qemu.qmp", false, RUNS},
	/* On the way back. */
	{"host-a", FAKE_MOVE_RESTORE, FAKE_FAIL, 1, FAKE_MOVE_BREAKS_LATE, "rolled-back", "migration.qemu", false,
	 RUNS},
	{"host-a", FAKE_PORTS_OPEN, FAKE_FAIL, 1, FAKE_MOVE_BREAKS_LATE, "rolled-back", "migration.qemu", false, RUNS},
	{"host-a", FAKE_RESUME, FAKE_FAIL, 1, FAKE_MOVE_BREAKS_LATE, "rolled-back", "migration.qemu", false, RUNS},
	{"host-a", FAKE_MOVE_CANCEL, FAKE_FAIL_GONE, 1, FAKE_MOVE_BREAKS, "rolled-back", "migration.qemu", false,
	 ENDED},
	/* At the destination, when it is to take over. */
	{"host-b", FAKE_WAIT_LOADED, FAKE_FAIL, 1, 0, "rolled-back", "peer.refused", false, RUNS},
	{"host-b", FAKE_WAIT_LOADED, FAKE_FAIL_GONE, 1, 0, "rolled-back", "peer.refused", false, RUNS},
	{"host-b", FAKE_WAIT_LOADED, FAKE_FAIL_LATER, 2, 0, "completed", NULL, true, RUNS},
	{"host-b", FAKE_TAKE_OVER, FAKE_FAIL, 1, 0, "rolled-back", "peer.refused", false, RUNS},
	{"host-b", FAKE_TAKE_OVER, FAKE_FAIL_GONE, 1, 0, "rolled-back", "peer.refused", false, RUNS},
	{"host-b", FAKE_TAKE_OVER, FAKE_FAIL_DONE, 1, 0, "completed", NULL, true, RUNS},
	/* When it has moved. */
	{"host-b", FAKE_MOVE_RESTORE, FAKE_FAIL, 1, 0, "completed", NULL, true, RUNS},
	/* The copy itself. */
	{"host-a", FAKE_START, FAKE_FAIL, 0, FAKE_MOVE_BREAKS, "rolled-back", "migration.qemu", false, RUNS},
	{"host-a", FAKE_START, FAKE_FAIL, 0, FAKE_MOVE_BREAKS_LATE, "rolled-back", "migration.qemu", false, RUNS},
	{"host-a", FAKE_START, FAKE_FAIL, 0, FAKE_MOVE_LOST_LAST_ACK, "rolled-back", "migration.qemu", false, RUNS},
	{"host-a", FAKE_START, FAKE_FAIL, 0, FAKE_MOVE_TOO_MUCH_AT_SWITCH, "rolled-back", "migration.max_downtime",
	 false, RUNS},
	{"host-a", FAKE_START, FAKE_FAIL, 0, FAKE_MOVE_NEVER_CONVERGES, "rolled-back", "migration.not_converging",
	 false, RUNS},
};

static void test_calls_fail(void **state)
{
	(void)state;
	for (size_t i = 0; i < sizeof(failing) / sizeof(failing[0]); i++) {
		const struct failing *row = &failing[i];
		struct two_hosts *hosts = setup();
		struct test_host *owner = row->moved ? &hosts->b : &hosts->a;
		fake_driver_fail(row->host, row->call, row->failure, row->count);
		fake_driver_script_move(row->move);
		struct migration *migration = begin_migration(&hosts->a, &hosts->b, "");
		assert_true(wait_ended(hosts, migration));
		print_message("# %s on %s fails (%d, move %d)\n", fake_call_name(row->call), row->host, row->failure,
			      row->move);
		assert_true(wait_all_ended(hosts));
		if (row->count > 0)
			assert_true(fake_driver_calls(row->host, row->call) > 0);
		assert_status(migration, row->status, row->reason);
		assert_owned_by(hosts, owner, row->running);
		migration_unref(migration);
		/* All is as if nothing had been: it can be migrated now. */
		if (row->running == RUNS) {
			fake_driver_script_move(FAKE_MOVE_GOOD);
			struct test_host *to = row->moved ? &hosts->a : &hosts->b;
			migration = begin_migration(owner, to, "");
			assert_true(wait_ended(hosts, migration));
			assert_settled(hosts, to, RUNS);
			assert_status(migration, "completed", NULL);
			migration_unref(migration);
		}
		teardown(hosts);
	}
}

/* The source's QEMU cannot be ended: what is left there never runs again, the migration says so, and it is ended as soon as it can be. */
static void test_source_not_ended(void **state)
{
	(void)state;
	for (int restarts = 0; restarts < 2; restarts++) {
		struct two_hosts *hosts = setup();
		/* The second time it still cannot when ferryd starts again. */
		fake_driver_fail("host-a", FAKE_END, FAKE_FAIL, restarts ? 1000 : 1);
		struct migration *migration = begin_migration(&hosts->a, &hosts->b, "");
		assert_true(wait_ended(hosts, migration));
		assert_status(migration, "completed", NULL);
		assert_int_equal(fake_world_run("host-b", GUEST_UUID), MACHINE_RUNNING);
		if (restarts) {
			assert_int_equal(fake_world_run("host-a", GUEST_UUID), MACHINE_HANDED_OVER);
			cleanup_json json_t *view = migration_view(migration);
			assert_true(json_is_true(json_object_get(view, "cleanup_pending")));
			fake_driver_fail("host-a", FAKE_END, FAKE_FAIL, 0);
			migration_unref(migration);
			test_host_restart(&hosts->a);
		} else {
			assert_true(wait_final(migration));
			migration_unref(migration);
		}
		assert_true(wait_remains_gone(&hosts->a));
		assert_settled(hosts, &hosts->b, RUNS);
		teardown(hosts);
	}
}

/* The source's QEMU neither cancels nor ends: it is not touched further, but the destination never gets the guest. */
static void test_cannot_cancel(void **state)
{
	(void)state;
	struct two_hosts *hosts = setup();
	fake_driver_script_move(FAKE_MOVE_TOO_MUCH_AT_SWITCH);
	fake_driver_fail("host-a", FAKE_MOVE_CANCEL, FAKE_FAIL, 1);
	struct migration *migration = begin_migration(&hosts->a, &hosts->b, "");
	assert_true(wait_ended(hosts, migration));
	assert_status(migration, "rolled-back", "migration.max_downtime");
	assert_settled(hosts, &hosts->a, PAUSED);
	/* A person can let it run on. */
	struct vm *vm = NULL;
	assert_int_equal(inventory_lock(hosts->a.host.inventory, GUEST_NAME, "resume", &vm, NULL), 0);
	assert_int_equal(vm_driver_fake.resume(vm->machine, NULL), 0);
	inventory_unlock(hosts->a.host.inventory, vm);
	migration_unref(migration);
	/* And no restart asks the destination to take what has run on since. */
	test_host_restart(&hosts->a);
	assert_settled(hosts, &hosts->a, RUNS);
	teardown(hosts);
}

/* QEMU ends at each point, on either side. */
static void test_qemu_ends(void **state)
{
	(void)state;
	static const struct {
		const char *point, *host;
		bool moved;
		enum running running;
	} rows[] = {
		{"prepare-answered", "host-a", false, ENDED},
		{"copy-begun", "host-a", false, ENDED},
		{"after-offered", "host-a", false, ENDED},
		{"switch-begun", "host-a", false, ENDED},
		{"copy-completed", "host-a", true, RUNS},
		{"before-taken", "host-a", true, RUNS},
		{"before-released", "host-a", true, RUNS},
		{"prepare-answered", "host-b", false, RUNS},
		{"copy-begun", "host-b", false, RUNS},
		{"after-offered", "host-b", false, RUNS},
		{"switch-begun", "host-b", false, RUNS},
		{"copy-completed", "host-b", false, RUNS},
		{"before-taken", "host-b", false, RUNS},
		{"after-taken", "host-b", false, RUNS},
		{"before-running", "host-b", true, ENDED},
		{"after-running", "host-b", true, ENDED},
		{"before-released", "host-b", true, ENDED},
	};
	for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
		struct two_hosts *hosts = setup();
		print_message("# QEMU of %s ends at %s\n", rows[i].host, rows[i].point);
		two_hosts_at(rows[i].point, kill_guest, (void *)(uintptr_t)rows[i].host);
		struct migration *migration = begin_migration(&hosts->a, &hosts->b, "");
		assert_true(wait_ended(hosts, migration));
		two_hosts_at("", NULL, NULL);
		assert_settled(hosts, rows[i].moved ? &hosts->b : &hosts->a, rows[i].running);
		migration_unref(migration);
		teardown(hosts);
	}
}

/* The journal cannot be written, once, at each step. */
static void test_journal_fails(void **state)
{
	(void)state;
	static const struct {
		bool on_a;
		const char *to;
		enum fake_move_end move;
		enum fake_call b_fails;
		bool moved;
	} rows[] = {
		{true, "holds", FAKE_MOVE_GOOD, FAKE_CALL_COUNT, false},
		{true, "offered", FAKE_MOVE_GOOD, FAKE_CALL_COUNT, false},
		{false, "prepared", FAKE_MOVE_GOOD, FAKE_CALL_COUNT, false},
		{false, "taken", FAKE_MOVE_GOOD, FAKE_CALL_COUNT, true},
		{false, "running", FAKE_MOVE_GOOD, FAKE_CALL_COUNT, true},
		{false, "refused", FAKE_MOVE_BREAKS, FAKE_CALL_COUNT, false},
	};
	for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
		struct two_hosts *hosts = setup();
		print_message("# '%s' cannot be recorded\n", rows[i].to);
		two_hosts_fail_journal(hosts, rows[i].on_a ? &hosts->a : &hosts->b, rows[i].to);
		fake_driver_script_move(rows[i].move);
		struct migration *migration = begin_migration(&hosts->a, &hosts->b, "");
		assert_true(wait_ended(hosts, migration));
		assert_settled(hosts, rows[i].moved ? &hosts->b : &hosts->a, RUNS);
		migration_unref(migration);
		teardown(hosts);
	}
}

static void somebody_else_decided(void *user)
{
	struct test_host *host = user;
	if (database_run(host->db, NULL, "UPDATE migration SET state = 'refused' WHERE state = 'prepared'", "") != 1)
		abort();
}

/* A step is taken only from the state that the journal has, whatever memory says. */
static void test_journal_decides(void **state)
{
	(void)state;
	struct two_hosts *hosts = setup();
	two_hosts_at("before-taken", somebody_else_decided, &hosts->b);
	struct migration *migration = begin_migration(&hosts->a, &hosts->b, "");
	assert_true(wait_status(migration, MIGRATION_IN_DOUBT));
	two_hosts_at("", NULL, NULL);
	assert_int_equal(fake_world_running(GUEST_UUID), 0);
	migration_unref(migration);
	fake_world_reboot("host-b");
	test_host_restart(&hosts->b);
	assert_settled(hosts, &hosts->a, RUNS);
	teardown(hosts);
}

struct arming {
	struct two_hosts *hosts;
	const char *state;
};

static void arm(void *user)
{
	const struct arming *arming = user;
	two_hosts_fail_journal(arming->hosts, &arming->hosts->a, arming->state);
}

/* The source cannot record that it has let the guest go, or that it holds it again: it must not act as if it had. The
 * guest stays locked until a restart has settled it. */
static void test_source_journal_fails_late(void **state)
{
	(void)state;
	static const struct {
		const char *record;
		enum fake_move_end move;
		bool moved, restart;
	} rows[] = {{"released", FAKE_MOVE_GOOD, true, true},
		    {"holds", FAKE_MOVE_TOO_MUCH_AT_SWITCH, false, true},
		    /* It is tried again, and nobody needs to do anything. */
		    {"released", FAKE_MOVE_GOOD, true, false},
		    {"holds", FAKE_MOVE_TOO_MUCH_AT_SWITCH, false, false}};
	for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
		struct two_hosts *hosts = setup();
		print_message("# '%s' cannot be recorded\n", rows[i].record);
		struct arming arming = {hosts, rows[i].record};
		two_hosts_at("after-offered", arm, &arming);
		fake_driver_script_move(rows[i].move);
		struct migration *migration = begin_migration(&hosts->a, &hosts->b, "");
		assert_true(wait_status(migration, MIGRATION_IN_DOUBT));
		two_hosts_at("", NULL, NULL);
		struct vm *vm = NULL;
		cleanup_error struct error *e = NULL;
		if (rows[i].restart) {
			/* Nobody touches it as long as it is not settled. */
			if (inventory_lock(hosts->a.host.inventory, GUEST_NAME, "start", &vm, &e) < 0) {
				assert_int_equal(e->code, ERROR_VM_BUSY);
			} else {
				assert_true(migration_ended(migration));
				inventory_unlock(hosts->a.host.inventory, vm);
			}
			test_host_restart(&hosts->a);
		} else {
			assert_true(wait_ended(hosts, migration));
			assert_status(migration, rows[i].moved ? "completed" : "rolled-back",
				      rows[i].moved ? NULL : "migration.max_downtime");
		}
		migration_unref(migration);
		assert_settled(hosts, rows[i].moved ? &hosts->b : &hosts->a, RUNS);
		teardown(hosts);
	}
}

/* ---- messages get lost, come twice, come late ---- */

static void test_messages(void **state)
{
	(void)state;
	static const struct {
		const char *message;
		enum wire_fault fault;
		unsigned int count;
		enum fake_move_end move;
		bool moved;
	} rows[] = {
		{"check", WIRE_LOSE_REQUEST, 1, FAKE_MOVE_GOOD, false},
		{"check", WIRE_LOSE_ANSWER, 1, FAKE_MOVE_GOOD, false},
		{"check", WIRE_KEEP, 1, FAKE_MOVE_GOOD, false},
		{"prepare", WIRE_LOSE_REQUEST, 1, FAKE_MOVE_GOOD, false},
		{"prepare", WIRE_LOSE_ANSWER, 1, FAKE_MOVE_GOOD, false},
		{"prepare", WIRE_TWICE, 1, FAKE_MOVE_GOOD, true},
		{"prepare", WIRE_KEEP, 1, FAKE_MOVE_GOOD, false},
		{"finish", WIRE_LOSE_REQUEST, 3, FAKE_MOVE_GOOD, true},
		{"finish", WIRE_LOSE_ANSWER, 3, FAKE_MOVE_GOOD, true},
		{"finish", WIRE_TWICE, 1, FAKE_MOVE_GOOD, true},
		{"finish", WIRE_KEEP, 2, FAKE_MOVE_GOOD, true},
		{"refuse", WIRE_LOSE_REQUEST, 3, FAKE_MOVE_LOST_LAST_ACK, false},
		{"refuse", WIRE_LOSE_ANSWER, 3, FAKE_MOVE_LOST_LAST_ACK, false},
		{"refuse", WIRE_TWICE, 1, FAKE_MOVE_LOST_LAST_ACK, false},
		{"refuse", WIRE_KEEP, 2, FAKE_MOVE_LOST_LAST_ACK, false},
	};
	for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
		struct two_hosts *hosts = setup();
		print_message("# %s suffers fault %d, %u times\n", rows[i].message, rows[i].fault, rows[i].count);
		wire_fault(rows[i].message, rows[i].fault, rows[i].count);
		fake_driver_script_move(rows[i].move);
		struct migration *migration = begin_migration(&hosts->a, &hosts->b, "");
		assert_true(wait_ended(hosts, migration));
		struct test_host *owner = rows[i].moved ? &hosts->b : &hosts->a;
		if (strcmp(rows[i].message, "check") != 0)
			assert_settled(hosts, owner, RUNS);
		/* What was kept comes now, when all is over, and changes nothing. */
		(void)wire_deliver_kept();
		if (strcmp(rows[i].message, "check") != 0)
			assert_settled(hosts, owner, RUNS);
		else
			assert_owned_by(hosts, owner, RUNS);
		migration_unref(migration);
		teardown(hosts);
	}
}

/* The copy has ended badly, the refusal does not get through, and ferryd ends: the destination asks by itself, hears
 * that the migration has ended, and gives up. */
static void test_destination_asks(void **state)
{
	(void)state;
	struct two_hosts *hosts = setup();
	hosts->b.host.times.silence_limit_ms = 20;
	wire_fault("refuse", WIRE_LOSE_REQUEST, 1000);
	fake_driver_script_move(FAKE_MOVE_LOST_LAST_ACK);
	struct migration *migration = begin_migration(&hosts->a, &hosts->b, "");
	assert_true(wait_ended(hosts, migration));
	assert_settled(hosts, &hosts->a, RUNS);
	assert_true(wire_handled("outcome") > 0);
	migration_unref(migration);
	teardown(hosts);
}

static void abort_it(void *user)
{
	struct two_hosts *hosts = user;
	struct migration *migration = NULL;
	json_t *list = migration_list_view(hosts->a.host.migrations);
	const char *id = json_string_value(json_object_get(json_array_get(list, 0), "id"));
	if (migration_find(hosts->a.host.migrations, id, &migration, NULL) == 0) {
		(void)!source_abort(&hosts->a.host, migration, NULL);
		migration_unref(migration);
	}
	json_decref(list);
}

/* A silent source that still works on it is left alone. */
static void test_destination_waits(void **state)
{
	(void)state;
	struct two_hosts *hosts = setup();
	hosts->b.host.times.silence_limit_ms = 10;
	fake_driver_script_move(FAKE_MOVE_STAYS_ACTIVE);
	struct migration *migration = begin_migration(&hosts->a, &hosts->b, "");
	while (wire_handled("outcome") < 3)
		assert_true(wait_status(migration, MIGRATION_COPYING));
	assert_int_equal(fake_world_run("host-b", GUEST_UUID), MACHINE_INCOMING);
	abort_it(hosts);
	assert_true(wait_ended(hosts, migration));
	assert_settled(hosts, &hosts->a, RUNS);
	assert_status(migration, "cancelled", "cancelled");
	migration_unref(migration);
	teardown(hosts);
}

/* Somebody aborts at each point: until finish has been sent it is done, afterwards it is refused. */
static void test_abort(void **state)
{
	(void)state;
	static const struct {
		const char *point;
		bool moved;
	} rows[] = {{"prepare-answered", false}, {"after-prepared", false}, {"copy-begun", false},
		    {"after-offered", false},        {"switch-begun", false},   {"copy-completed", false},
		    {"before-taken", true},          {"before-released", true}};
	for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
		struct two_hosts *hosts = setup();
		print_message("# aborted at %s\n", rows[i].point);
		two_hosts_at(rows[i].point, abort_it, hosts);
		struct migration *migration = begin_migration(&hosts->a, &hosts->b, "");
		assert_true(wait_ended(hosts, migration));
		two_hosts_at("", NULL, NULL);
		assert_settled(hosts, rows[i].moved ? &hosts->b : &hosts->a, RUNS);
		assert_status(migration, rows[i].moved ? "completed" : "cancelled", rows[i].moved ? NULL : "cancelled");
		struct error *e = NULL;
		assert_int_equal(source_abort(&hosts->a.host, migration, &e), -1);
		assert_int_equal(e->code, ERROR_MIGRATION_ENDED);
		error_free(e);
		migration_unref(migration);
		teardown(hosts);
	}
}

/* ---- messages that nobody should send ---- */

#define ID_A "00112233445566778899aabbccddeeff"
#define ID_B "ffeeddccbbaa99887766554433221100"

static json_t *make_offer(struct test_host *from, const char *id, int64_t epoch)
{
	json_t *definition = json_pack("{ss ss si}", "name", GUEST_NAME, "uuid", GUEST_UUID, "memory_mib", 1);
	return json_pack("{si ss ss ss sI sb si so s{} s[]}", "protocol", MIGRATION_PROTOCOL, "migration", id, "source",
			 from->name, "journal", journal_id(from->host.journal), "epoch", (json_int_t)epoch, "paused", 0,
			 "channels", 1, "definition", definition, "description", "proofs");
}

/* A message of host-a to host-b; the body is stolen. The error's code, or ERROR_CODE_COUNT when it was answered. */
static enum error_code say(const char *from, const char *message, json_t *body, char **ret_state)
{
	json_t *answer = NULL;
	cleanup_error struct error *e = NULL;
	int r = wire_ask(from, "host-b", message, body, &answer, &e);
	json_decref(body);
	if (ret_state) {
		const char *word = json_string_value(json_object_get(answer, "state"));
		*ret_state = xstrdup(word ? word : "");
	}
	json_decref(answer);
	return r < 0 ? e->code : ERROR_CODE_COUNT;
}

static json_t *make_question(const char *id, const char *uuid, const char *source, int64_t epoch)
{
	return json_pack("{ss ss sI ss}", "migration", id, "vm_uuid", uuid, "epoch", (json_int_t)epoch, "source",
			 source);
}

static void assert_answer(const char *message, const char *id, const char *wanted)
{
	cleanup_free char *word = NULL;
	assert_int_equal(say("host-a", message, make_question(id, GUEST_UUID, "host-a", 2), &word), ERROR_CODE_COUNT);
	assert_string_equal(word, wanted);
}

/* What is refused stays refused: said early, late, often, after a restart. */
static void test_refused_for_ever(void **state)
{
	(void)state;
	struct two_hosts *hosts = setup();
	/* A refusal for something that was never heard of is remembered. */
	assert_answer("finish", ID_A, "none");
	assert_answer("refuse", ID_A, "refused");
	assert_answer("finish", ID_A, "refused");
	assert_int_equal(say("host-a", "check", make_offer(&hosts->a, ID_A, 2), NULL), ERROR_PEER_STALE);
	assert_int_not_equal(say("host-a", "prepare", make_offer(&hosts->a, ID_A, 2), NULL), ERROR_CODE_COUNT);
	assert_answer("finish", ID_A, "refused");
	assert_answer("refuse", ID_A, "refused");
	/* And one for something that was prepared. */
	assert_int_equal(say("host-a", "check", make_offer(&hosts->a, ID_B, 2), NULL), ERROR_CODE_COUNT);
	assert_int_equal(say("host-a", "prepare", make_offer(&hosts->a, ID_B, 2), NULL), ERROR_CODE_COUNT);
	assert_int_equal(fake_world_run("host-b", GUEST_UUID), MACHINE_INCOMING);
	for (int i = 0; i < 2; i++) {
		assert_answer("refuse", ID_B, "refused");
		assert_answer("finish", ID_B, "refused");
		assert_int_equal(say("host-a", "prepare", make_offer(&hosts->a, ID_B, 2), NULL), ERROR_PEER_STALE);
		assert_int_equal(say("host-a", "check", make_offer(&hosts->a, ID_B, 2), NULL), ERROR_PEER_STALE);
		assert_answer("finish", ID_B, "refused");
		assert_answer("finish", ID_A, "refused");
		test_host_restart(&hosts->b);
	}
	assert_owned_by(hosts, &hosts->a, RUNS);
	teardown(hosts);
}

static void test_prepare_twice(void **state)
{
	(void)state;
	struct two_hosts *hosts = setup();
	for (int i = 0; i < 2; i++)
		assert_int_equal(say("host-a", "check", make_offer(&hosts->a, ID_A, 2), NULL), ERROR_CODE_COUNT);
	/* Not what was checked. */
	assert_int_equal(say("host-a", "prepare", make_offer(&hosts->a, ID_A, 3), NULL), ERROR_PEER_PROTOCOL);
	assert_int_equal(say("host-a", "prepare", make_offer(&hosts->a, ID_B, 2), NULL), ERROR_MIGRATION_NOT_FOUND);
	for (int i = 0; i < 2; i++)
		assert_int_equal(say("host-a", "prepare", make_offer(&hosts->a, ID_A, 2), NULL), ERROR_CODE_COUNT);
	assert_int_equal(fake_driver_calls("host-b", FAKE_START_INCOMING), 1);
	assert_answer("refuse", ID_A, "refused");
	/* A check of the one that has been refused comes late: it ends nothing of the next one. */
	assert_int_equal(say("host-a", "check", make_offer(&hosts->a, ID_B, 2), NULL), ERROR_CODE_COUNT);
	assert_int_equal(say("host-a", "prepare", make_offer(&hosts->a, ID_B, 2), NULL), ERROR_CODE_COUNT);
	assert_int_equal(say("host-a", "check", make_offer(&hosts->a, ID_A, 2), NULL), ERROR_PEER_STALE);
	assert_int_equal(fake_world_run("host-b", GUEST_UUID), MACHINE_INCOMING);
	assert_answer("refuse", ID_B, "refused");
	assert_owned_by(hosts, &hosts->a, RUNS);
	teardown(hosts);
}

static void break_disks(void *user)
{
	(void)user;
	if (fault_set("journal-sync=error@*", NULL) < 0)
		abort();
}

/* Nobody can tell whether `taken` is on the disk. Until that is settled the destination does not act as if it were not, or a
 * later ferryd might find the VM taken and its QEMU ended. */
static void test_unknown_whether_taken(void **state)
{
	(void)state;
	for (int crashes = 0; crashes < 2; crashes++) {
		struct two_hosts *hosts = setup();
		two_hosts_at("before-taken", break_disks, NULL);
		struct migration *migration = begin_migration(&hosts->a, &hosts->b, "");
		assert_true(wait_status(migration, MIGRATION_IN_DOUBT));
		two_hosts_at("", NULL, NULL);
		cleanup_json json_t *question = make_question(migration->id, GUEST_UUID, "host-a", (int64_t)migration->epoch);
		cleanup_json json_t *answer = NULL;
		assert_int_equal(wire_ask("host-a", "host-b", "refuse", question, &answer, NULL), -1);
		assert_true(fake_world_has("host-b", GUEST_UUID));
		if (crashes)
			test_host_crash(hosts, &hosts->b);
		assert_int_equal(fault_set("", NULL), 0);
		if (crashes)
			test_host_restart(&hosts->b);
		migration_unref(migration);
		assert_settled(hosts, &hosts->b, RUNS);
		teardown(hosts);
	}
}

static void test_wrong_questions(void **state)
{
	(void)state;
	static const char other_uuid[] = "11111111-7c2d-4e5f-8a6b-112233445566";
	struct two_hosts *hosts = setup();
	/* The certificate and the message must say the same. */
	assert_int_equal(say("host-c", "check", make_offer(&hosts->a, ID_A, 2), NULL), ERROR_PERMISSION);
	assert_int_equal(say("host-a", "check", make_offer(&hosts->a, ID_A, 2), NULL), ERROR_CODE_COUNT);
	assert_int_equal(say("host-c", "prepare", make_offer(&hosts->a, ID_A, 2), NULL), ERROR_PERMISSION);
	assert_int_equal(say("host-a", "prepare", make_offer(&hosts->a, ID_A, 2), NULL), ERROR_CODE_COUNT);
	for (int i = 0; i < 2; i++) {
		const char *message = i ? "finish" : "refuse";
		assert_int_equal(say("host-c", message, make_question(ID_A, GUEST_UUID, "host-a", 2), NULL),
				 ERROR_PERMISSION);
		assert_int_equal(say("host-c", message, make_question(ID_A, GUEST_UUID, "host-c", 2), NULL),
				 ERROR_PEER_STALE);
		assert_int_equal(say("host-a", message, make_question(ID_A, other_uuid, "host-a", 2), NULL),
				 ERROR_PEER_STALE);
		assert_int_equal(say("host-a", message, make_question(ID_A, GUEST_UUID, "host-a", 3), NULL),
				 ERROR_PEER_STALE);
		assert_int_equal(say("host-a", message, make_question(ID_A, GUEST_UUID, "host-a", 1), NULL),
				 ERROR_INVALID_ARGUMENT);
		assert_int_equal(say("host-a", message, make_question("0011", GUEST_UUID, "host-a", 2), NULL),
				 ERROR_PEER_PROTOCOL);
		assert_int_equal(say("host-a", message, json_object(), NULL), ERROR_INVALID_ARGUMENT);
	}
	/* None of it changed anything. */
	assert_int_equal(fake_world_run("host-b", GUEST_UUID), MACHINE_INCOMING);
	assert_answer("refuse", ID_A, "refused");
	assert_owned_by(hosts, &hosts->a, RUNS);
	teardown(hosts);
}

/* Offers of a VM that this host has, or knows to have moved on since. */
static void test_older_epoch(void **state)
{
	(void)state;
	struct two_hosts *hosts = setup();
	struct migration *migration = begin_migration(&hosts->a, &hosts->b, "\"keep_source_definition\": true");
	assert_true(wait_ended(hosts, migration));
	assert_settled(hosts, &hosts->b, RUNS);
	cleanup_free char *id = xstrdup(migration->id);
	migration_unref(migration);
	for (int64_t epoch = 2; epoch < 5; epoch++) {
		(void)say("host-a", "check", make_offer(&hosts->a, ID_A, epoch), NULL);
		assert_int_not_equal(say("host-a", "prepare", make_offer(&hosts->a, ID_A, epoch), NULL),
				     ERROR_CODE_COUNT);
	}
	/* Questions about the migration that has ended are answered as they were, whatever is asked, after a restart
	 * too. */
	for (int i = 0; i < 2; i++) {
		assert_answer("finish", id, "running");
		assert_answer("refuse", id, "running");
		if (i == 0)
			test_host_restart(&hosts->b);
	}
	assert_owned_by(hosts, &hosts->b, RUNS);
	/* It has moved on, and back: what host-b remembers of epoch 2 is older than what it knows. */
	migration = begin_migration(&hosts->b, &hosts->a, "");
	assert_true(wait_ended(hosts, migration));
	assert_settled(hosts, &hosts->a, RUNS);
	migration_unref(migration);
	for (int64_t epoch = 2; epoch < 4; epoch++) {
		(void)say("host-a", "check", make_offer(&hosts->a, ID_B, epoch), NULL);
		assert_int_not_equal(say("host-a", "prepare", make_offer(&hosts->a, ID_B, epoch), NULL),
				     ERROR_CODE_COUNT);
	}
	assert_false(fake_world_has("host-b", GUEST_UUID));
	teardown(hosts);
}

static void test_outcome(void **state)
{
	(void)state;
	struct two_hosts *hosts = setup();
	struct migration *migration = begin_migration(&hosts->a, &hosts->b, "");
	assert_true(wait_ended(hosts, migration));
	assert_true(wait_all_ended(hosts));
	json_t *answer = NULL;
	cleanup_error struct error *e = NULL;
	struct tls_files *files = &hosts->b.files;
	struct http_client *client = NULL;
	cleanup_free char *path = xasprintf("/v1/peer/outcome/%s", migration->id);
	assert_int_equal(http_client_new_tls("host-a", "", 0, files, &client, NULL), 0);
	assert_int_equal(http_client_request(client, "GET", path, NULL, 1000, &answer, NULL), 0);
	assert_string_equal(json_string_value(json_object_get(answer, "state")), "released");
	assert_string_equal(json_string_value(json_object_get(answer, "role")), "source");
	assert_true(json_is_true(json_object_get(answer, "ended")));
	json_decref(answer);
	/* A host that has no part in it is told nothing. */
	struct tls_files third = {0};
	wire_connect("host-c", &third, &hosts->b.host);
	http_client_free(client);
	assert_int_equal(http_client_new_tls("host-a", "", 0, &third, &client, NULL), 0);
	assert_int_equal(http_client_request(client, "GET", path, NULL, 1000, &answer, &e), -1);
	assert_int_equal(e->code, ERROR_PERMISSION);
	http_client_free(client);
	wire_disconnect("host-c");
	migration_unref(migration);
	teardown(hosts);
}

/* ---- a daemon dies ---- */

/* Every point of a migration (base/fault.h), in the order of a good one, then of the way back. */
static const char *const points[] = {
	"probes-placed",    "before-holds",         "after-holds",    "before-prepared", "after-prepared",
	"incoming-started", "prepare-answered",     "copy-begun",     "before-offered",  "after-offered",
	"switch-begun",     "copy-completed",       "before-taken",   "after-taken",     "before-running",
	"after-running",    "before-released",      "after-released", "source-released", "copy-cancelled",
	"taken-back",       "before-refused",       "after-refused",
};
#define POINT_COUNT (sizeof(points) / sizeof(points[0]))

/* One migration, one crash. */
static void run_crash(const char *point, bool at_a, enum aftermath aftermath, enum fake_move_end move)
{
	struct two_hosts *hosts = setup();
	struct test_host *victim = at_a ? &hosts->a : &hosts->b;
	print_message("# %s dies at %s, aftermath %d, move %d\n", victim->name, point, aftermath, move);
	fake_driver_script_move(move);
	two_hosts_crash_at(hosts, victim, point);
	struct migration *migration = begin_migration(&hosts->a, &hosts->b, "");
	assert_true(wait_ended(hosts, migration));
	assert_true(wait_all_ended(hosts));
	migration_unref(migration);
	bool crashed = victim->crashed;
	if (crashed)
		come_back(victim, aftermath);
	two_hosts_crash_at(hosts, NULL, NULL);
	assert_true(wait_all_ended(hosts));
	struct test_host *owner = agreed_owner(hosts);
	assert_owned_by(hosts, owner, crashed && aftermath == REBOOTS && owner == victim ? ENDED : RUNS);
	teardown(hosts);
}

static void test_crashes(void **state)
{
	(void)state;
	for (size_t i = 0; i < POINT_COUNT; i++)
		for (int at_a = 0; at_a < 2; at_a++)
			for (int aftermath = RESTARTS; aftermath <= REBOOTS; aftermath++)
				run_crash(points[i], at_a, (enum aftermath)aftermath, FAKE_MOVE_GOOD);
}

static void test_crashes_on_the_way_back(void **state)
{
	(void)state;
	static const enum fake_move_end moves[] = {FAKE_MOVE_TOO_MUCH_AT_SWITCH, FAKE_MOVE_LOST_LAST_ACK};
	for (size_t i = 0; i < POINT_COUNT; i++)
		for (int at_a = 0; at_a < 2; at_a++)
			for (size_t m = 0; m < sizeof(moves) / sizeof(moves[0]); m++)
				for (int aftermath = RESTARTS; aftermath <= REBOOTS; aftermath++)
					run_crash(points[i], at_a, (enum aftermath)aftermath, moves[m]);
}

/* QEMU has sent everything, lost the last acknowledgement and let the guest run on, while no ferryd looked; then the
 * host loses its power. The destination has a whole guest in hand, and must not run it: it is older than the disks. */
static void test_lost_last_ack_then_reboot(void **state)
{
	(void)state;
	struct two_hosts *hosts = setup();
	fake_driver_script_move(FAKE_MOVE_LOST_LAST_ACK);
	two_hosts_crash_at(hosts, &hosts->a, "switch-begun");
	struct migration *migration = begin_migration(&hosts->a, &hosts->b, "");
	assert_true(wait_ended(hosts, migration));
	migration_unref(migration);
	fake_world_go_on("host-a", GUEST_UUID);
	assert_int_equal(fake_world_run("host-a", GUEST_UUID), MACHINE_RUNNING);
	come_back(&hosts->a, REBOOTS);
	assert_settled(hosts, &hosts->a, ENDED);
	teardown(hosts);
}

/* ferryd is stopped in good order in the middle of a copy: it leaves all as it is, and the next one takes the guest
 * back. */
static void test_orderly_stop(void **state)
{
	(void)state;
	for (int at_a = 0; at_a < 2; at_a++) {
		struct two_hosts *hosts = setup();
		fake_driver_script_move(FAKE_MOVE_STAYS_ACTIVE);
		struct migration *migration = begin_migration(&hosts->a, &hosts->b, "");
		assert_true(wait_status(migration, MIGRATION_COPYING));
		cleanup_free char *id = xstrdup(migration->id);
		test_host_stop(at_a ? &hosts->a : &hosts->b);
		if (at_a)
			assert_int_equal(fake_driver_calls("host-a", FAKE_MOVE_CANCEL), 0);
		test_host_start(at_a ? &hosts->a : &hosts->b);
		if (!at_a) /* the copy has not noticed */
			assert_int_equal(source_abort(&hosts->a.host, migration, NULL), 0);
		migration_unref(migration);
		assert_settled(hosts, &hosts->a, RUNS);
		assert_int_equal(migration_find(hosts->a.host.migrations, id, &migration, NULL), 0);
		assert_status(migration, at_a ? "rolled-back" : "cancelled",
			      at_a ? "migration.interrupted" : "cancelled");
		migration_unref(migration);
		teardown(hosts);
	}
}

/* The source stays away: the destination gives up by itself, and the source, back again, holds the guest. */
static void test_source_stays_away(void **state)
{
	(void)state;
	struct two_hosts *hosts = setup();
	hosts->b.host.times.silence_limit_ms = 10;
	two_hosts_crash_at(hosts, &hosts->a, "switch-begun");
	struct migration *migration = begin_migration(&hosts->a, &hosts->b, "");
	assert_true(wait_ended(hosts, migration));
	migration_unref(migration);
	hosts->a.crashed = false; /* so that the wait below waits */
	test_host_stop(&hosts->a);
	for (int i = 0; i < 2000 && fake_world_has("host-b", GUEST_UUID); i++)
		(void)migration_host_wait_stopping(&hosts->b.host, 100);
	assert_false(fake_world_has("host-b", GUEST_UUID));
	test_host_start(&hosts->a);
	assert_settled(hosts, &hosts->a, RUNS);
	teardown(hosts);
}

/* The destination comes back without its journal: nobody can know whether it took the guest. */
static void test_journal_lost(void **state)
{
	(void)state;
	struct two_hosts *hosts = setup();
	two_hosts_crash_at(hosts, &hosts->b, "before-taken");
	struct migration *migration = begin_migration(&hosts->a, &hosts->b, "");
	assert_true(wait_ended(hosts, migration));
	test_host_stop(&hosts->b);
	static const char *const files[] = {"journal.db", "journal.db-wal", "journal.db-shm"};
	for (size_t i = 0; i < sizeof(files) / sizeof(files[0]); i++) {
		cleanup_free char *path = xasprintf("%s/%s", hosts->b.folder, files[i]);
		(void)unlink(path);
	}
	fake_world_reboot("host-b");
	test_host_start(&hosts->b);
	unsigned int before = wire_handled("finish");
	while (wire_handled("finish") < before + 3)
		assert_true(wait_status(migration, MIGRATION_IN_DOUBT));
	assert_int_equal(fake_world_running(GUEST_UUID), 0);
	assert_int_equal(fake_world_run("host-a", GUEST_UUID), MACHINE_HANDED_OVER);
	/* Not even a restart makes it run, or lets somebody start it. */
	migration_unref(migration);
	test_host_restart(&hosts->a);
	before = wire_handled("finish");
	while (wire_handled("finish") < before + 2)
		(void)migration_host_wait_stopping(&hosts->a.host, 100);
	assert_int_equal(fake_world_running(GUEST_UUID), 0);
	struct vm *vm = NULL;
	assert_int_equal(inventory_lock(hosts->a.host.inventory, GUEST_NAME, "start", &vm, NULL), -1);
	cleanup_free char *owner = journal_owner(&hosts->a, NULL);
	cleanup_free char *baton = journal_handover(&hosts->a, "source");
	assert_string_equal(owner, "host-a");
	assert_string_equal(baton, "offered");
	teardown(hosts);
}

/* Two crashes, lost messages and failing calls together, thrown with a die that falls the same way every time. */
static void test_many_faults(void **state)
{
	(void)state;
	static const char *const messages[] = {"prepare", "finish", "refuse", "outcome"};
	static const enum fake_move_end moves[] = {FAKE_MOVE_GOOD, FAKE_MOVE_GOOD, FAKE_MOVE_BREAKS_LATE,
						   FAKE_MOVE_LOST_LAST_ACK, FAKE_MOVE_TOO_MUCH_AT_SWITCH};
	const char *wanted = getenv("FERRY_TEST_RUNS");
	unsigned int runs = wanted ? (unsigned int)atoi(wanted) : 150;
	for (unsigned int run = getenv("FERRY_TEST_FIRST") ? (unsigned int)atoi(getenv("FERRY_TEST_FIRST")) : 0;
	     run < runs; run++) {
		seed_die(run);
		struct two_hosts *hosts = setup();
		bool rebooted[2] = {false, false};
		enum fake_move_end move = moves[throw_die(sizeof(moves) / sizeof(moves[0]))];
		fake_driver_script_move(move);
		const char *message = messages[throw_die(4)];
		unsigned int fault = throw_die(3), times = throw_die(3);
		wire_fault(message, (enum wire_fault)fault, times);
		enum fake_call call =
			(enum fake_call)(FAKE_START_INCOMING + throw_die(FAKE_CALL_COUNT - FAKE_START_INCOMING));
		if (throw_die(3) == 0 && call != FAKE_MOVE_CANCEL)
			fake_driver_fail(throw_die(2) ? "host-a" : "host-b", call,
					 throw_die(2) ? FAKE_FAIL : FAKE_FAIL_DONE, 1);
		struct migration *migration = NULL;
		print_message("# run %u: move %d, %s fault %u x%u\n", run, move, message, fault, times);
		for (int crash = 0; crash < 3; crash++) {
			struct test_host *victim = throw_die(2) ? &hosts->a : &hosts->b;
			const char *point = points[throw_die(POINT_COUNT)];
			enum aftermath aftermath = (enum aftermath)throw_die(3);
			if (crash < 2)
				two_hosts_crash_at(hosts, victim, point);
			else
				two_hosts_crash_at(hosts, NULL, NULL);
			if (!migration)
				migration = begin_migration(&hosts->a, &hosts->b, "");
			assert_true(wait_all_ended(hosts));
			for (int i = 0; i < 2; i++) {
				struct test_host *host = i ? &hosts->b : &hosts->a;
				if (!host->crashed)
					continue;
				print_message("#   %s died at %s, aftermath %d\n", host->name, point, aftermath);
				rebooted[i] = rebooted[i] || aftermath == REBOOTS;
				/* The proof that the guest never ran there has died with both its QEMU and ferryd: it
				 * counts as taken. */
				rebooted[i] =
					rebooted[i] || (call == FAKE_TAKE_OVER && strcmp(point, "before-refused") == 0);
				come_back(host, aftermath);
			}
		}
		migration_unref(migration);
		assert_true(wait_all_ended(hosts));
		struct test_host *owner = agreed_owner(hosts);
		/* A guest that a person would have to resume is no breach (its QEMU refused to). */
		bool may_be_gone = rebooted[owner == &hosts->b];
		bool runs_now = fake_world_running(GUEST_UUID) == 1;
		if (!may_be_gone && !runs_now && fake_driver_calls("host-a", FAKE_RESUME) == 0)
			fail_msg("nobody runs the guest");
		assert_null(fake_world_breach());
		cleanup_free char *word_a = journal_owner(&hosts->a, NULL);
		cleanup_free char *word_b = journal_owner(&hosts->b, NULL);
		if (*word_b)
			assert_string_equal(word_a, word_b);
		assert_free(&hosts->a);
		assert_free(&hosts->b);
		teardown(hosts);
	}
}

/* The table of the handover has no step that nothing takes (journal_step() itself asserts that none is missing). Those that only
 * a person's word allows are taken in test_resolve.c. */
static void test_table_is_used(void **state)
{
	(void)state;
#define HANDOVER_STEP(from, to, when)                                                                                  \
	if (!two_hosts_steps_taken[from][to] && !strstr(when, "a person"))                                                       \
		fail_msg("no test has taken the step %s -> %s", handover_state_name(from), handover_state_name(to));
#include "migration/handover.tbl"
#undef HANDOVER_STEP
	for (enum handover_state from = 0; from < HANDOVER_STATE_COUNT; from++)
		for (enum handover_state to = 0; to < HANDOVER_STATE_COUNT; to++)
			if (two_hosts_steps_taken[from][to])
				assert_true(handover_step_allowed(from, to));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_success),
		cmocka_unit_test(test_there_and_back),
		cmocka_unit_test(test_keeps_definition),
		cmocka_unit_test(test_paused_stays_paused),
		cmocka_unit_test(test_to_itself),
		cmocka_unit_test(test_calls_fail),
		cmocka_unit_test(test_source_not_ended),
		cmocka_unit_test(test_cannot_cancel),
		cmocka_unit_test(test_qemu_ends),
		cmocka_unit_test(test_journal_fails),
		cmocka_unit_test(test_journal_decides),
		cmocka_unit_test(test_unknown_whether_taken),
		cmocka_unit_test(test_source_journal_fails_late),
		cmocka_unit_test(test_messages),
		cmocka_unit_test(test_destination_asks),
		cmocka_unit_test(test_destination_waits),
		cmocka_unit_test(test_abort),
		cmocka_unit_test(test_refused_for_ever),
		cmocka_unit_test(test_prepare_twice),
		cmocka_unit_test(test_wrong_questions),
		cmocka_unit_test(test_older_epoch),
		cmocka_unit_test(test_outcome),
		cmocka_unit_test(test_crashes),
		cmocka_unit_test(test_crashes_on_the_way_back),
		cmocka_unit_test(test_lost_last_ack_then_reboot),
		cmocka_unit_test(test_orderly_stop),
		cmocka_unit_test(test_source_stays_away),
		cmocka_unit_test(test_journal_lost),
		cmocka_unit_test(test_many_faults),
		cmocka_unit_test(test_table_is_used),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
