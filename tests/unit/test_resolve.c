/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What is left when a host is gone for good, or a journal: a migration in doubt that a person settles (resolve.h), on two
 * hosts in memory (fakes/two_hosts.h). "Fenced" is a power cut here: fake_world_reboot(). Whatever is settled, the guest
 * runs nowhere by itself, both journals name one owner in the end, and only that one can start it.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/file.h"
#include "base/json.h"
#include "base/xalloc.h"
#include "fakes/two_hosts.h"
#include "migration/resolve.h"
#include "migration/source.h"

static struct two_hosts *hosts;

/* ---- the two hosts ---- */

static int setup(void **state)
{
	(void)state;
	hosts = two_hosts_new();
	return 0;
}

static int teardown(void **state)
{
	(void)state;
	return two_hosts_free(hosts) ? 0 : -1;
}

/* ---- what must hold ---- */

static void assert_start(struct test_host *host, const char *refused)
{
	struct vm *vm = NULL;
	cleanup_error struct error *e = NULL;
	if (inventory_lock(host->host.inventory, GUEST_UUID, "start", &vm, &e) < 0) {
		assert_non_null(refused);
		assert_string_equal(error_code_name(e->code), refused);
		return;
	}
	int r = vm_start(host->host.inventory, vm, &e);
	inventory_unlock(host->host.inventory, vm);
	if (!refused && r < 0)
		fail_msg("%s: %s", host->name, e->message);
	assert_int_equal(r < 0, refused != NULL);
	if (refused)
		assert_string_equal(error_code_name(e->code), refused);
}

/* Both journals name this owner, at this epoch (0 for a journal that does not know the VM); nothing runs. */
static void assert_owner(const char *owner, int64_t epoch_on_a, int64_t epoch_on_b)
{
	struct test_host *all[] = {&hosts->a, &hosts->b};
	int64_t wanted[] = {epoch_on_a, epoch_on_b};
	assert_int_equal(fake_world_running(GUEST_UUID), 0);
	for (size_t i = 0; i < 2; i++) {
		int64_t epoch = 0;
		cleanup_free char *word = journal_owner(all[i], &epoch);
		assert_string_equal(word, wanted[i] ? owner : "");
		assert_int_equal(epoch, wanted[i]);
	}
}

static int refused_with(struct test_host *host, struct migration *migration, const char *owner, const char *fenced)
{
	cleanup_error struct error *e = NULL;
	assert_int_equal(resolve_migration(&host->host, migration, owner, fenced, &e), -1);
	return (int)e->code;
}

static void settle(struct test_host *host, struct migration *migration, const char *owner, const char *fenced)
{
	cleanup_error struct error *e = NULL;
	if (resolve_migration(&host->host, migration, owner, fenced, &e) < 0)
		fail_msg("%s", e->message);
}

static void power_off(struct test_host *host)
{
	test_host_crash(hosts, host);
	fake_world_reboot(host->name);
	test_host_stop(host);
}

/* The migration of the guest from a to b, in doubt because b died at this point, with its machine. */
static struct migration *in_doubt(const char *point)
{
	two_hosts_crash_at(hosts, &hosts->b, point);
	struct migration *migration = begin_migration(&hosts->a, &hosts->b, "");
	assert_true(wait_status(migration, MIGRATION_IN_DOUBT));
	fake_world_reboot("host-b");
	test_host_stop(&hosts->b);
	hosts->b.crashed = false;
	return migration;
}

static struct migration *find_migration(struct test_host *host, const char *id)
{
	struct migration *migration = NULL;
	assert_int_equal(migration_find(host->host.migrations, id, &migration, NULL), 0);
	return migration;
}

/* ---- at the source ---- */

static void test_wait_is_told(void **state)
{
	(void)state;
	struct migration *migration = in_doubt("before-taken");
	cleanup_json json_t *view = migration_view(migration);
	const json_t *wait = json_object_get(view, "waiting");
	assert_string_equal(json_string_value(json_object_get(wait, "for")), "host-b");
	assert_string_equal(json_string_value(json_object_get(wait, "what")), "whether it has taken the VM");
	assert_true(json_integer_value(json_object_get(wait, "asked")) >= 1);
	assert_true(json_integer_value(json_object_get(wait, "since_ms")) > 0);
	assert_string_equal(json_string_value(json_object_get(json_object_get(wait, "last"), "code")), "daemon.unreachable");
	test_host_start(&hosts->b); /* and it ends when it has been answered */
	assert_true(wait_all_ended(hosts));
	cleanup_json json_t *after = migration_view(migration);
	assert_true(json_is_null(json_object_get(after, "waiting")));
	migration_unref(migration);
}

static void test_what_is_demanded(void **state)
{
	(void)state;
	struct migration *migration = in_doubt("after-taken");
	assert_int_equal(refused_with(&hosts->a, migration, "host-c", "host-b"), ERROR_INVALID_ARGUMENT);
	assert_int_equal(refused_with(&hosts->a, migration, "host-a", NULL), ERROR_MIGRATION_NOT_FENCED);
	assert_int_equal(refused_with(&hosts->a, migration, "host-a", "host-a"), ERROR_MIGRATION_NOT_FENCED);
	assert_int_equal(refused_with(&hosts->a, migration, "host-b", "host-b"), ERROR_MIGRATION_NOT_FENCED);
	settle(&hosts->a, migration, "host-a", "host-b");
	assert_true(wait_ended(hosts, migration));
	assert_int_equal(refused_with(&hosts->a, migration, "host-a", "host-b"), ERROR_MIGRATION_ENDED);
	migration_unref(migration);
}

/* A third host has it: the one that is said to be fenced had handed it on. */
static void test_moved_on(void **state)
{
	(void)state;
	struct test_host c = {.name = "host-c", .silence_limit_ms = 60000};
	struct vm *vm = NULL;
	snprintf(c.folder, sizeof(c.folder), "/tmp/ferry-test-XXXXXX");
	assert_non_null(mkdtemp(c.folder));
	test_host_start(&c);
	assert_int_equal(peers_add(hosts->a.host.peers, "host-c", "127.0.0.1", CONTROL_PORT, NULL), 0);
	struct migration *migration = in_doubt("after-running");
	assert_int_equal(inventory_lock_arriving(c.host.inventory, GUEST_UUID, GUEST_NAME, "test", &vm, NULL), 0);
	assert_int_equal(vm_write(c.host.inventory, vm, "host-c", 3, NULL, NULL), 0);
	inventory_unlock(c.host.inventory, vm);
	assert_int_equal(refused_with(&hosts->a, migration, "host-a", "host-b"), ERROR_VM_NOT_OWNER);
	/* Giving it up is right all the same. */
	settle(&hosts->a, migration, "host-b", "host-a");
	assert_true(wait_ended(hosts, migration));
	migration_unref(migration);
	test_host_stop(&c);
	assert_int_equal(file_remove_tree(c.folder, NULL), 0);
}

static void check_not_in_doubt(void *user)
{
	struct migration **migration = user;
	if (*migration)
		assert_int_equal(refused_with(&hosts->a, *migration, "host-a", "host-b"), ERROR_MIGRATION_NOT_IN_DOUBT);
}

static void test_not_in_doubt(void **state)
{
	(void)state;
	static struct migration *migration;
	fake_driver_script_move(FAKE_MOVE_STAYS_ACTIVE);
	migration = begin_migration(&hosts->a, &hosts->b, "");
	assert_true(wait_status(migration, MIGRATION_COPYING));
	check_not_in_doubt(&migration);
	assert_int_equal(source_abort(&hosts->a.host, migration, NULL), 0);
	assert_true(wait_ended(hosts, migration));
	migration_unref(migration);
}

/* The source keeps it; the other comes back and hears so, at each state that it can have died in. */
static void test_to_the_source(void **state)
{
	static const struct {
		const char *point;
		int64_t epoch_on_b;
		const char *refused_on_b;
	} rows[] = {{"before-taken", 1, "vm.not_found"},
		    {"after-taken", 3, "vm.not_owner"},
		    {"before-running", 3, "vm.not_owner"},
		    {"after-running", 3, "vm.not_owner"}};
	for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
		print_message("# host-b died at %s\n", rows[i].point);
		if (i > 0)
			assert_int_equal(setup(state), 0);
		struct migration *migration = in_doubt(rows[i].point);
		settle(&hosts->a, migration, "host-a", "host-b");
		assert_true(wait_ended(hosts, migration));
		cleanup_json json_t *view = migration_view(migration);
		assert_string_equal(json_string_value(json_object_get(view, "status")), "rolled-back");
		assert_string_equal(json_string_value(json_object_get(json_object_get(view, "reason"), "code")),
				    "migration.resolved");
		assert_true(json_is_true(json_object_get(view, "cleanup_pending")));
		assert_string_equal(json_string_value(json_object_get(json_object_get(view, "resolved"), "fenced")), "host-b");
		/* It does not run on by itself: its memory may be older than its disks. */
		assert_int_equal(fake_world_run("host-a", GUEST_UUID), MACHINE_HANDED_OVER);
		test_host_start(&hosts->b);
		assert_true(wait_final(migration));
		assert_owner("host-a", 3, rows[i].epoch_on_b);
		assert_start(&hosts->b, rows[i].refused_on_b);
		migration_unref(migration);
		if (i + 1 < sizeof(rows) / sizeof(rows[0]))
			assert_int_equal(teardown(state), 0);
	}
}

/* The first answer is lost. With the second under way a person settles the opposite of it, too late: what the destination
 * says by itself counts, at the epoch that it was offered. */
static void settle_too_late(void *user)
{
	struct migration *migration = *(struct migration **)user;
	if (migration && migration_in_doubt(migration))
		settle(&hosts->a, migration, "host-a", "host-b");
}

static void test_answer_overtakes(void **state)
{
	(void)state;
	static struct migration *migration;
	migration = NULL;
	wire_fault("finish", WIRE_LOSE_ANSWER, 1);
	wire_hook("finish", true, settle_too_late, &migration);
	migration = begin_migration(&hosts->a, &hosts->b, "");
	assert_true(wait_ended(hosts, migration));
	assert_true(wait_final(migration));
	cleanup_json json_t *view = migration_view(migration);
	assert_string_equal(json_string_value(json_object_get(view, "status")), "completed");
	assert_true(json_is_null(json_object_get(view, "resolved")));
	assert_int_equal(fake_world_run("host-b", GUEST_UUID), MACHINE_RUNNING);
	migration_unref(take_ptr(migration));
	struct migration *back = begin_migration(&hosts->b, &hosts->a, ""); /* no epoch is in its way */
	assert_true(wait_ended(hosts, back));
	cleanup_json json_t *back_view = migration_view(back);
	assert_string_equal(json_string_value(json_object_get(back_view, "status")), "completed");
	migration_unref(back);
}

static void cut_off(void *user)
{
	(void)user;
	wire_fault("finish", WIRE_LOSE_REQUEST, 1000000);
}

/* The statement was not true: the guest runs over there, cut off. It may be the only copy that ran, so it is paused. */
static void not_fenced(const char *journal_fails)
{
	wire_hook("finish", true, cut_off, NULL);
	if (journal_fails)
		two_hosts_fail_journal_for_good(hosts, &hosts->b, journal_fails);
	else
		wire_fault("finish", WIRE_LOSE_ANSWER, 1);
	struct migration *migration = begin_migration(&hosts->a, &hosts->b, "");
	assert_true(wait_status(migration, MIGRATION_IN_DOUBT));
	assert_int_equal(fake_world_run("host-b", GUEST_UUID), MACHINE_RUNNING);
	settle(&hosts->a, migration, "host-a", "host-b");
	assert_true(wait_ended(hosts, migration));
	assert_true(wait_final(migration));
	assert_owner("host-a", 3, 3);
	assert_int_equal(fake_world_run("host-b", GUEST_UUID), MACHINE_PAUSED);
	assert_start(&hosts->b, "vm.running");
	migration_unref(migration);
}

static void test_not_fenced_running(void **state)
{
	(void)state;
	not_fenced(NULL);
}

static void test_not_fenced_taken(void **state)
{
	(void)state;
	not_fenced("running");
}

/* What is owed to the fenced host survives the source's own restart. */
static void test_news_is_durable(void **state)
{
	(void)state;
	struct migration *migration = in_doubt("after-running");
	settle(&hosts->a, migration, "host-a", "host-b");
	assert_true(wait_ended(hosts, migration));
	cleanup_free char *id = xstrdup(migration->id);
	migration_unref(migration);
	test_host_restart(&hosts->a);
	migration = find_migration(&hosts->a, id);
	assert_false(migration_final(migration));
	test_host_start(&hosts->b);
	assert_true(wait_final(migration));
	assert_owner("host-a", 3, 3);
	migration_unref(migration);
}

static void gives_away(const char *point, enum machine_run wanted)
{
	struct migration *migration = in_doubt(point);
	settle(&hosts->a, migration, "host-b", "host-a");
	assert_true(wait_ended(hosts, migration));
	assert_false(fake_world_has("host-a", GUEST_UUID));
	assert_start(&hosts->a, "vm.not_owner");
	test_host_start(&hosts->b);
	assert_true(wait_final(migration));
	assert_true(wait_all_ended(hosts));
	assert_int_equal(fake_world_run("host-b", GUEST_UUID), wanted);
	migration_unref(migration);
}

static void test_to_the_destination(void **state)
{
	(void)state;
	gives_away("before-running", MACHINE_GONE);
	assert_owner("host-b", 3, 3);
	assert_start(&hosts->b, NULL);
}

/* It had been prepared only, and its machine is gone: what the source knows of the VM is all that is left, and kept. */
static void test_to_a_destination_that_forgot(void **state)
{
	(void)state;
	gives_away("before-taken", MACHINE_GONE);
	cleanup_json json_t *view = NULL;
	assert_int_equal(inventory_show(hosts->a.host.inventory, GUEST_NAME, &view, NULL), 0);
	assert_string_equal(json_string_value(json_object_get(view, "state")), "moved");
	assert_owner("host-b", 3, 3); /* so it can be defined there again */
}

static void wait_crashed(struct test_host *host)
{
	int64_t deadline_us = clock_monotonic_us() + 5000000;
	for (;;) {
		pthread_mutex_lock(&hosts->mutex);
		bool crashed = host->crashed;
		pthread_mutex_unlock(&hosts->mutex);
		if (crashed)
			return;
		if (clock_monotonic_us() > deadline_us)
			fail_msg("%s has not crashed", host->name);
		usleep(500);
	}
}

/* The source's ferryd dies right after the record of what was settled: it is not forgotten. */
static void test_source_dies_settling(void **state)
{
	static const struct {
		const char *point, *owner, *fenced;
	} rows[] = {{"after-taken-back", "host-a", "host-b"}, {"after-released", "host-b", "host-a"}};
	for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
		print_message("# at %s\n", rows[i].point);
		if (i > 0)
			assert_int_equal(setup(state), 0);
		struct migration *migration = in_doubt("before-running");
		cleanup_free char *id = xstrdup(migration->id);
		two_hosts_crash_at(hosts, &hosts->a, rows[i].point);
		settle(&hosts->a, migration, rows[i].owner, rows[i].fenced);
		wait_crashed(&hosts->a);
		migration_unref(migration);
		test_host_restart(&hosts->a);
		migration = find_migration(&hosts->a, id);
		assert_true(wait_ended(hosts, migration));
		assert_false(migration_final(migration)); /* the other has not heard */
		assert_int_equal(fake_world_running(GUEST_UUID), 0);
		test_host_start(&hosts->b);
		assert_true(wait_final(migration));
		assert_owner(rows[i].owner, 3, 3);
		migration_unref(migration);
		if (i + 1 < sizeof(rows) / sizeof(rows[0]))
			assert_int_equal(teardown(state), 0);
	}
}

/* cont (here: taking the images) is refused, with nobody to give the VM back to: it stays, stopped. */
static void test_no_way_back(void **state)
{
	(void)state;
	wire_hook("finish", false, NULL, NULL);
	wire_fault("finish", WIRE_LOSE_REQUEST, 1000000);
	struct migration *migration = begin_migration(&hosts->a, &hosts->b, "");
	assert_true(wait_status(migration, MIGRATION_IN_DOUBT));
	fake_driver_fail("host-b", FAKE_TAKE_OVER, FAKE_FAIL, 1);
	settle(&hosts->a, migration, "host-b", "host-a");
	assert_true(wait_ended(hosts, migration));
	wire_fault("finish", WIRE_LOSE_REQUEST, 0);
	assert_true(wait_final(migration));
	assert_owner("host-b", 3, 3);
	assert_false(fake_world_has("host-b", GUEST_UUID));
	assert_start(&hosts->b, NULL);
	migration_unref(migration);
}

/* It has everything, and hears late that the VM is its own: nothing runs by itself, also not after its ferryd has died. */
static void test_destination_hears_late(void **state)
{
	(void)state;
	wire_fault("finish", WIRE_LOSE_REQUEST, 1000000);
	struct migration *migration = begin_migration(&hosts->a, &hosts->b, "");
	assert_true(wait_status(migration, MIGRATION_IN_DOUBT));
	two_hosts_crash_at(hosts, &hosts->b, "after-taken");
	settle(&hosts->a, migration, "host-b", "host-a");
	assert_true(wait_ended(hosts, migration));
	wire_fault("finish", WIRE_LOSE_REQUEST, 0);
	wait_crashed(&hosts->b);
	test_host_restart(&hosts->b);
	assert_true(wait_final(migration));
	assert_owner("host-b", 3, 3);
	assert_int_equal(fake_world_run("host-b", GUEST_UUID), MACHINE_PAUSED);
	migration_unref(migration);
}

/* It had refused, and nobody has heard: the tombstone stays, the VM, which was known there before, is its all the same. */
static void test_to_a_destination_that_refused(void **state)
{
	(void)state;
	/* There and back once, keeping the definitions, so that host-b knows the VM. */
	struct migration *migration = begin_migration(&hosts->a, &hosts->b, "\"keep_source_definition\": true");
	assert_true(wait_ended(hosts, migration));
	migration_unref(migration);
	assert_true(wait_all_ended(hosts));
	migration = begin_migration(&hosts->b, &hosts->a, "\"keep_source_definition\": true");
	assert_true(wait_ended(hosts, migration));
	migration_unref(migration);
	assert_true(wait_all_ended(hosts));
	fake_driver_fail("host-b", FAKE_WAIT_LOADED, FAKE_FAIL_GONE, 1);
	migration = in_doubt("after-refused");
	settle(&hosts->a, migration, "host-b", "host-a");
	assert_true(wait_ended(hosts, migration));
	test_host_start(&hosts->b);
	assert_true(wait_final(migration));
	cleanup_free char *handover = journal_handover(&hosts->b, "destination");
	assert_string_equal(handover, "refused");
	assert_owner("host-b", 5, 5);
	assert_start(&hosts->b, NULL);
	migration_unref(migration);
}

/* ---- at the destination ---- */

/* It cannot record that the guest runs, and nobody asks again: it tries again by itself. */
static void test_destination_insists(void **state)
{
	(void)state;
	wire_hook("finish", true, cut_off, NULL);
	two_hosts_fail_journal(hosts, &hosts->b, "running");
	struct migration *departure = begin_migration(&hosts->a, &hosts->b, "");
	assert_true(wait_status(departure, MIGRATION_IN_DOUBT));
	struct migration *migration = find_migration(&hosts->b, departure->id);
	assert_true(wait_ended(hosts, migration));
	assert_int_equal(fake_world_run("host-b", GUEST_UUID), MACHINE_RUNNING);
	migration_unref(migration);
	wire_fault("finish", WIRE_LOSE_REQUEST, 0);
	assert_true(wait_ended(hosts, departure));
	migration_unref(departure);
}

/* Everything has arrived and the source's host is gone: what is here may be all that is left. */
static struct migration *loaded_and_left_alone(const char *point)
{
	hosts->b.silence_limit_ms = 20;
	test_host_restart(&hosts->b);
	two_hosts_crash_at(hosts, &hosts->a, point);
	struct migration *departure = begin_migration(&hosts->a, &hosts->b, "");
	assert_true(wait_ended(hosts, departure));
	struct migration *migration = find_migration(&hosts->b, departure->id);
	migration_unref(departure);
	fake_world_reboot("host-a");
	test_host_stop(&hosts->a);
	hosts->a.crashed = false;
	return migration;
}

static void test_destination_keeps_what_it_has(void **state)
{
	(void)state;
	struct migration *migration = loaded_and_left_alone("copy-completed");
	assert_true(wait_status(migration, MIGRATION_IN_DOUBT));
	assert_true(fake_world_has("host-b", GUEST_UUID));
	/* The source has lost its machine, and cannot vouch for the copy: it takes the VM back. */
	test_host_start(&hosts->a);
	assert_true(wait_all_ended(hosts));
	assert_owner("host-a", 1, 0);
	migration_unref(migration);
}

static void test_destination_goes_on(void **state)
{
	(void)state;
	hosts->b.silence_limit_ms = 20;
	test_host_restart(&hosts->b);
	two_hosts_crash_at(hosts, &hosts->a, "copy-completed");
	struct migration *departure = begin_migration(&hosts->a, &hosts->b, "");
	assert_true(wait_ended(hosts, departure));
	struct migration *migration = find_migration(&hosts->b, departure->id);
	migration_unref(departure);
	assert_true(wait_status(migration, MIGRATION_IN_DOUBT));
	test_host_restart(&hosts->a); /* only ferryd had died: its QEMU says completed, so finish is sent */
	assert_true(wait_all_ended(hosts));
	assert_int_equal(fake_world_run("host-b", GUEST_UUID), MACHINE_RUNNING);
	cleanup_json json_t *view = migration_view(migration);
	assert_true(json_is_null(json_object_get(view, "waiting")));
	migration_unref(migration);
}

static void test_destination_is_given_it(void **state)
{
	(void)state;
	struct migration *migration = loaded_and_left_alone("copy-completed");
	assert_true(wait_status(migration, MIGRATION_IN_DOUBT));
	assert_int_equal(refused_with(&hosts->b, migration, "host-b", "host-b"), ERROR_MIGRATION_NOT_FENCED);
	settle(&hosts->b, migration, "host-b", "host-a");
	assert_true(wait_ended(hosts, migration));
	/* The source may have let it run on before it died: nobody here can know. */
	assert_int_equal(fake_world_run("host-b", GUEST_UUID), MACHINE_PAUSED);
	test_host_start(&hosts->a);
	assert_true(wait_all_ended(hosts));
	assert_owner("host-b", 2, 3);
	assert_start(&hosts->a, "vm.not_found");
	migration_unref(migration);
}

static void test_destination_is_told_to_give_it_back(void **state)
{
	(void)state;
	struct migration *migration = loaded_and_left_alone("copy-completed");
	assert_true(wait_status(migration, MIGRATION_IN_DOUBT));
	settle(&hosts->b, migration, "host-a", "host-b");
	assert_true(migration_final(migration));
	assert_false(fake_world_has("host-b", GUEST_UUID));
	test_host_start(&hosts->a);
	assert_true(wait_all_ended(hosts));
	assert_owner("host-a", 1, 0);
	assert_start(&hosts->a, NULL);
	migration_unref(migration);
}

/* The source had taken it back and could not say so; then a person gave the VM to the destination. */
static void test_source_learns_late(void **state)
{
	(void)state;
	hosts->b.silence_limit_ms = 20;
	test_host_restart(&hosts->b);
	fake_driver_script_move(FAKE_MOVE_LOST_LAST_ACK);
	two_hosts_crash_at(hosts, &hosts->a, "taken-back");
	struct migration *departure = begin_migration(&hosts->a, &hosts->b, "");
	assert_true(wait_ended(hosts, departure));
	struct migration *migration = find_migration(&hosts->b, departure->id);
	migration_unref(departure);
	power_off(&hosts->a);
	hosts->a.crashed = false;
	assert_true(wait_status(migration, MIGRATION_IN_DOUBT));
	settle(&hosts->b, migration, "host-b", "host-a");
	test_host_start(&hosts->a);
	departure = find_migration(&hosts->a, migration->id);
	assert_true(wait_ended(hosts, departure));
	assert_true(wait_final(departure));
	migration_unref(departure);
	assert_owner("host-b", 2, 3);
	assert_start(&hosts->a, "vm.not_owner");
	migration_unref(migration);
}

static void lose_journal(struct test_host *host)
{
	test_host_stop(host);
	cleanup_free char *command = xasprintf("rm -f %s/journal.db*", host->folder);
	assert_int_equal(system(command), 0);
	test_host_start(host);
}

/* A source that has lost its journal proves nothing to a destination that has everything. */
static void test_source_lost_its_journal(void **state)
{
	(void)state;
	struct migration *migration = loaded_and_left_alone("copy-completed");
	assert_true(wait_status(migration, MIGRATION_IN_DOUBT));
	lose_journal(&hosts->a);
	cleanup_json json_t *before = migration_view(migration);
	int64_t asked = json_integer_value(json_object_get(json_object_get(before, "waiting"), "asked"));
	for (int64_t now = asked; now < asked + 2;) {
		cleanup_json json_t *view = migration_view(migration);
		assert_string_equal(json_string_value(json_object_get(view, "status")), "in-doubt");
		now = json_integer_value(json_object_get(json_object_get(view, "waiting"), "asked"));
		(void)migration_wait_change(migration, (uint64_t)json_integer_value(json_object_get(view, "change")),
					    clock_monotonic_us() + 5000000);
	}
	assert_true(fake_world_has("host-b", GUEST_UUID));
	settle(&hosts->b, migration, "host-b", "host-a");
	assert_owner("host-b", 0, 3);
	migration_unref(migration);
}

/* ---- cont was refused ---- */

/* The proof that the guest never ran is durable before the QEMU that could prove it is gone. */
static void test_never_ran_is_durable(void **state)
{
	(void)state;
	fake_driver_fail("host-b", FAKE_TAKE_OVER, FAKE_FAIL, 1);
	struct migration *migration = in_doubt("before-refused");
	test_host_start(&hosts->b);
	assert_true(wait_ended(hosts, migration));
	assert_true(wait_all_ended(hosts));
	assert_int_equal(fake_world_run("host-a", GUEST_UUID), MACHINE_RUNNING);
	cleanup_free char *owner = journal_owner(&hosts->a, NULL);
	assert_string_equal(owner, "host-a");
	migration_unref(migration);
}

/* The steps of the table that only a person's word allows; test_handover.c takes all others. */
static void test_table_is_used(void **state)
{
	(void)state;
#define HANDOVER_STEP(from, to, when)                                                                                  \
	if (strstr(when, "a person") && !two_hosts_steps_taken[from][to])                                                        \
		fail_msg("no test has taken the step %s -> %s", handover_state_name(from), handover_state_name(to));
#include "migration/handover.tbl"
#undef HANDOVER_STEP
}

int main(void)
{
#define TEST(function) cmocka_unit_test_setup_teardown(function, setup, teardown)
	const struct CMUnitTest tests[] = {
		TEST(test_wait_is_told),
		TEST(test_what_is_demanded),
		TEST(test_moved_on),
		TEST(test_not_in_doubt),
		TEST(test_to_the_source),
		TEST(test_answer_overtakes),
		TEST(test_not_fenced_running),
		TEST(test_not_fenced_taken),
		TEST(test_news_is_durable),
		TEST(test_to_the_destination),
		TEST(test_to_a_destination_that_refused),
		TEST(test_to_a_destination_that_forgot),
		TEST(test_source_dies_settling),
		TEST(test_no_way_back),
		TEST(test_destination_hears_late),
		TEST(test_destination_insists),
		TEST(test_destination_keeps_what_it_has),
		TEST(test_destination_goes_on),
		TEST(test_destination_is_given_it),
		TEST(test_destination_is_told_to_give_it_back),
		TEST(test_source_learns_late),
		TEST(test_source_lost_its_journal),
		TEST(test_never_ran_is_durable),
		cmocka_unit_test(test_table_is_used),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
