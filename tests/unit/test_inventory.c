/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The inventory (vm/inventory.h): definitions, jobs, ownership, and what of it a restart of ferryd finds again.
 * Machines are those of the fake driver.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/file.h"
#include "base/json.h"
#include "base/log.h"
#include "base/xalloc.h"
#include "fakes/fake_driver.h"
#include "vm/inventory.h"

#define HOST "host-a"
#define UUID_1 "11111111-7c2d-4e5f-8a6b-112233445566"
#define UUID_2 "22222222-7c2d-4e5f-8a6b-112233445566"

struct fixture {
	char folder[64];
	struct database *db;
	struct loop *loop;
	pthread_t loop_thread;
	struct driver_host driver_host;
	struct inventory *inventory;
};

static void *loop_main(void *user)
{
	if (loop_run(user, NULL) < 0)
		abort();
	return NULL;
}

static void begin(struct fixture *f)
{
	cleanup_free char *path = xasprintf("%s/journal.db", f->folder);
	assert_int_equal(database_open(path, &f->db, NULL), 0);
	assert_int_equal(loop_new(&f->loop, NULL), 0);
	assert_int_equal(pthread_create(&f->loop_thread, NULL, loop_main, f->loop), 0);
	f->driver_host = (struct driver_host){.loop = f->loop, .run_folder = HOST, .log_folder = f->folder};
	struct inventory_options options = {
		.db = f->db, .host_name = HOST, .driver = &vm_driver_fake, .driver_host = &f->driver_host};
	struct error *e = NULL;
	if (inventory_new(&options, &f->inventory, &e) < 0)
		fail_msg("%s", e->message);
}

static void end(struct fixture *f)
{
	inventory_free(f->inventory);
	loop_quit(f->loop);
	pthread_join(f->loop_thread, NULL);
	loop_free(f->loop);
	database_close(f->db);
}

static void restart(struct fixture *f)
{
	end(f);
	begin(f);
	inventory_attach_machines(f->inventory);
}

static int setup(void **state)
{
	struct fixture *f = xcalloc(1, sizeof(*f));
	snprintf(f->folder, sizeof(f->folder), "%s/ferry-test-XXXXXX",
		 access("/dev/shm", W_OK) == 0 ? "/dev/shm" : "/tmp");
	if (!mkdtemp(f->folder))
		return -1;
	fake_world_reset();
	begin(f);
	*state = f;
	return 0;
}

static int teardown(void **state)
{
	struct fixture *f = *state;
	end(f);
	fake_world_reset();
	int r = file_remove_tree(f->folder, NULL);
	free(f);
	return r;
}

/* ---- small parts ---- */

static int try_define(struct fixture *f, const char *name, const char *uuid, unsigned int memory_mib, struct error **e)
{
	cleanup_json json_t *view = NULL;
	cleanup_json json_t *json = json_pack("{ss si}", "name", name, "memory_mib", (int)memory_mib);
	if (uuid)
		json_object_set_new(json, "uuid", json_string(uuid));
	return inventory_define(f->inventory, json, &view, e);
}

static void define(struct fixture *f, const char *name, const char *uuid)
{
	cleanup_error struct error *e = NULL;
	if (try_define(f, name, uuid, 64, &e) < 0)
		fail_msg("%s", e->message);
}

static struct vm *lock(struct fixture *f, const char *name)
{
	struct vm *vm = NULL;
	cleanup_error struct error *e = NULL;
	if (inventory_lock(f->inventory, name, "test", &vm, &e) < 0)
		fail_msg("%s", e->message);
	return vm;
}

/* Do it with the job held; the error's code, ERROR_CODE_COUNT for success. */
static enum error_code with_job(struct fixture *f, const char *name,
				int (*verb)(struct inventory *inventory, struct vm *vm, struct error **e))
{
	struct vm *vm = lock(f, name);
	cleanup_error struct error *e = NULL;
	int r = verb(f->inventory, vm, &e);
	inventory_unlock(f->inventory, vm);
	return r < 0 ? e->code : ERROR_CODE_COUNT;
}

/* One key of what the API shows, as text; "-" when there is no such VM. */
static const char *shown(struct fixture *f, const char *name, const char *key)
{
	static char text[128];
	cleanup_json json_t *view = NULL;
	if (inventory_show(f->inventory, name, &view, NULL) < 0)
		return "-";
	const json_t *value = json_object_get(view, key);
	if (json_is_integer(value))
		snprintf(text, sizeof(text), "%lld", (long long)json_integer_value(value));
	else
		snprintf(text, sizeof(text), "%s", json_is_string(value) ? json_string_value(value) : "");
	return text;
}

static size_t listed(struct fixture *f)
{
	cleanup_json json_t *list = inventory_list(f->inventory);
	return json_array_size(list);
}

/* Give a VM to another host, as a migration would. */
static void give_away(struct fixture *f, const char *name, const char *owner, uint64_t epoch, bool keep_definition)
{
	struct vm *vm = lock(f, name);
	assert_int_equal(vm_write(f->inventory, vm, owner, epoch, keep_definition ? vm->definition : NULL, NULL), 0);
	inventory_unlock(f->inventory, vm);
}

/* ---- definitions ---- */

static void test_define(void **state)
{
	struct fixture *f = *state;
	define(f, "web", UUID_1);
	assert_string_equal(shown(f, "web", "uuid"), UUID_1);
	assert_string_equal(shown(f, UUID_1, "name"), "web"); /* by its uuid as well */
	assert_string_equal(shown(f, "web", "state"), "stopped");
	assert_string_equal(shown(f, "web", "owner"), HOST);
	assert_string_equal(shown(f, "web", "epoch"), "1");
	assert_string_equal(shown(f, "web", "job"), "");
	assert_string_equal(shown(f, "web", "memory_mib"), "64");
	/* A uuid is made up where there is none. */
	define(f, "other", NULL);
	assert_int_equal(strlen(shown(f, "other", "uuid")), 36);
	/* Sorted by name; the list has no whole definitions. */
	cleanup_json json_t *list = inventory_list(f->inventory);
	assert_int_equal(json_array_size(list), 2);
	assert_string_equal(json_string_value(json_object_get(json_array_get(list, 0), "name")), "other");
	assert_null(json_object_get(json_array_get(list, 0), "definition"));
	cleanup_error struct error *e = NULL;
	json_t *view = NULL;
	assert_int_equal(inventory_show(f->inventory, "nobody", &view, &e), -1);
	assert_int_equal(e->code, ERROR_VM_NOT_FOUND);
}

static void test_define_bad(void **state)
{
	struct fixture *f = *state;
	cleanup_error struct error *e = NULL;
	assert_int_equal(try_define(f, "-x", UUID_1, 64, &e), -1);
	assert_int_equal(e->code, ERROR_VM_DEFINITION);
	define(f, "web", UUID_1);
	/* Its name belongs to it. */
	assert_int_equal(try_define(f, "web", UUID_2, 64, &e), -1);
	assert_int_equal(e->code, ERROR_VM_EXISTS);
	assert_non_null(strstr(e->message, UUID_1));
	assert_int_equal(try_define(f, "web", NULL, 64, &e), -1);
	assert_int_equal(e->code, ERROR_VM_EXISTS);
	/* Nor can it take another one's by being defined again. */
	define(f, "db", UUID_2);
	assert_int_equal(try_define(f, "web", UUID_2, 64, &e), -1);
	assert_int_equal(e->code, ERROR_VM_EXISTS);
	assert_string_equal(shown(f, UUID_2, "name"), "db");
	assert_int_equal(listed(f), 2);
}

static void test_define_again(void **state)
{
	struct fixture *f = *state;
	define(f, "web", UUID_1);
	assert_int_equal(try_define(f, "shop", UUID_1, 128, NULL), 0); /* a new name, too */
	assert_int_equal(listed(f), 1);
	assert_string_equal(shown(f, "shop", "memory_mib"), "128");
	assert_string_equal(shown(f, "web", "name"), "-");
	define(f, "web", UUID_2); /* the old name is free */
	/* Not while it runs, nor while somebody works on it. */
	assert_int_equal(with_job(f, "shop", vm_start), ERROR_CODE_COUNT);
	cleanup_error struct error *e = NULL;
	assert_int_equal(try_define(f, "shop", UUID_1, 256, &e), -1);
	assert_int_equal(e->code, ERROR_VM_RUNNING);
	struct vm *vm = lock(f, "web");
	assert_int_equal(try_define(f, "web", UUID_2, 256, &e), -1);
	assert_int_equal(e->code, ERROR_VM_BUSY);
	inventory_unlock(f->inventory, vm);
	restart(f);
	assert_string_equal(shown(f, "shop", "memory_mib"), "128");
	assert_string_equal(shown(f, "web", "uuid"), UUID_2);
}

static void test_undefine(void **state)
{
	struct fixture *f = *state;
	define(f, "web", UUID_1);
	assert_int_equal(with_job(f, "web", vm_start), ERROR_CODE_COUNT);
	assert_int_equal(with_job(f, "web", vm_undefine), ERROR_VM_RUNNING);
	assert_int_equal(with_job(f, "web", vm_end), ERROR_CODE_COUNT);
	assert_int_equal(with_job(f, "web", vm_undefine), ERROR_CODE_COUNT);
	assert_int_equal(listed(f), 0);
	struct vm *vm = NULL;
	cleanup_error struct error *e = NULL;
	assert_int_equal(inventory_lock(f->inventory, "web", "test", &vm, &e), -1);
	assert_int_equal(e->code, ERROR_VM_NOT_FOUND);
	restart(f);
	assert_int_equal(listed(f), 0);
	define(f, "web", UUID_2);
}

/* ---- machines ---- */

static void test_start_and_end(void **state)
{
	struct fixture *f = *state;
	define(f, "web", UUID_1);
	assert_int_equal(with_job(f, "web", vm_start), ERROR_CODE_COUNT);
	assert_string_equal(shown(f, "web", "state"), "running");
	assert_int_equal(with_job(f, "web", vm_start), ERROR_VM_RUNNING);
	assert_int_equal(with_job(f, "web", vm_end), ERROR_CODE_COUNT);
	assert_string_equal(shown(f, "web", "state"), "stopped");
	assert_int_equal(with_job(f, "web", vm_end), ERROR_CODE_COUNT); /* of nothing: nothing */
	fake_driver_fail(HOST, FAKE_START, FAKE_FAIL, 1);
	assert_int_equal(with_job(f, "web", vm_start), ERROR_QEMU_QMP);
	assert_string_equal(shown(f, "web", "state"), "stopped");
	/* An end that fails leaves the machine known. */
	assert_int_equal(with_job(f, "web", vm_start), ERROR_CODE_COUNT);
	fake_driver_fail(HOST, FAKE_END, FAKE_FAIL, 1);
	assert_int_equal(with_job(f, "web", vm_end), ERROR_QEMU_QMP);
	assert_string_equal(shown(f, "web", "state"), "running");
}

/* Wait until the state is so: what the janitor does is not done by whoever asks. */
static bool becomes(struct fixture *f, const char *name, const char *wanted)
{
	int64_t deadline_us = clock_monotonic_us() + 3000000;
	while (strcmp(shown(f, name, "state"), wanted) != 0) {
		if (clock_monotonic_us() > deadline_us)
			return false;
		sched_yield();
	}
	return true;
}

static void test_guest_ends_by_itself(void **state)
{
	struct fixture *f = *state;
	define(f, "web", UUID_1);
	assert_int_equal(with_job(f, "web", vm_start), ERROR_CODE_COUNT);
	fake_world_kill(HOST, UUID_1);
	assert_true(becomes(f, "web", "stopped"));
	assert_false(fake_world_has(HOST, UUID_1));
	/* It can be started at once, although the janitor may still be at it. */
	assert_int_equal(with_job(f, "web", vm_start), ERROR_CODE_COUNT);
	/* Under a job it is its holder's affair: left as it is until then. */
	struct vm *vm = lock(f, "web");
	fake_world_kill(HOST, UUID_1);
	assert_true(becomes(f, "web", "gone"));
	assert_true(fake_world_has(HOST, UUID_1));
	inventory_unlock(f->inventory, vm);
	assert_true(becomes(f, "web", "stopped"));
	assert_false(fake_world_has(HOST, UUID_1));
}

static int no_verb(struct inventory *inventory, struct vm *vm, struct error **e)
{
	(void)inventory;
	(void)vm;
	(void)e;
	return 0;
}

/* A process that does not go away is not tried to be ended in a tight loop. */
static void test_untidy_guest(void **state)
{
	struct fixture *f = *state;
	define(f, "web", UUID_1);
	assert_int_equal(with_job(f, "web", vm_start), ERROR_CODE_COUNT);
	unsigned int before = fake_driver_calls(HOST, FAKE_END);
	fake_driver_fail(HOST, FAKE_END, FAKE_FAIL, 1000000);
	fake_world_kill(HOST, UUID_1);
	while (fake_driver_calls(HOST, FAKE_END) == before)
		sched_yield();
	for (int i = 0; i < 50; i++)
		assert_int_equal(with_job(f, "web", no_verb), ERROR_CODE_COUNT);
	assert_int_equal(fake_driver_calls(HOST, FAKE_END), before + 1);
	fake_driver_fail(HOST, FAKE_END, FAKE_FAIL, 0);
	assert_int_equal(with_job(f, "web", vm_end), ERROR_CODE_COUNT);
}

static void test_restart(void **state)
{
	struct fixture *f = *state;
	define(f, "runs", UUID_1);
	define(f, "ended", UUID_2);
	define(f, "stopped", NULL);
	assert_int_equal(with_job(f, "runs", vm_start), ERROR_CODE_COUNT);
	assert_int_equal(with_job(f, "ended", vm_start), ERROR_CODE_COUNT);
	end(f);
	fake_world_kill(HOST, UUID_2);
	begin(f);
	assert_string_equal(shown(f, "runs", "state"), "stopped"); /* not looked for yet */
	inventory_attach_machines(f->inventory);
	assert_string_equal(shown(f, "runs", "state"), "running");
	assert_string_equal(shown(f, "ended", "state"), "stopped");
	assert_string_equal(shown(f, "stopped", "state"), "stopped");
	assert_int_equal(fake_world_running(UUID_1), 1);
	/* It is watched as before. */
	fake_world_kill(HOST, UUID_1);
	assert_true(becomes(f, "runs", "stopped"));
	/* A machine that cannot be taken up again does not keep ferryd from starting. */
	assert_int_equal(with_job(f, "runs", vm_start), ERROR_CODE_COUNT);
	end(f);
	begin(f);
	fake_driver_fail(HOST, FAKE_ATTACH, FAKE_FAIL, 3);
	inventory_attach_machines(f->inventory);
	assert_int_equal(listed(f), 3);
	assert_int_equal(fake_world_running(UUID_1), 1);
	restart(f);
	assert_string_equal(shown(f, "runs", "state"), "running");
}

static void test_autostart(void **state)
{
	struct fixture *f = *state;
	static const char *const names[] = {"mine", "running", "moved", "busy"};
	for (size_t i = 0; i < 4; i++) {
		cleanup_json json_t *view = NULL;
		cleanup_json json_t *json = json_pack("{ss si sb}", "name", names[i], "memory_mib", 64, "autostart", 1);
		assert_int_equal(inventory_define(f->inventory, json, &view, NULL), 0);
	}
	define(f, "not-marked", NULL);
	assert_int_equal(with_job(f, "running", vm_start), ERROR_CODE_COUNT);
	give_away(f, "moved", "host-b", 2, true);
	restart(f);
	struct vm *vm = lock(f, "busy"); /* a migration that is being recovered */
	inventory_autostart(f->inventory);
	inventory_unlock(f->inventory, vm);
	assert_string_equal(shown(f, "mine", "state"), "running");
	assert_string_equal(shown(f, "running", "state"), "running");
	assert_string_equal(shown(f, "moved", "state"), "moved");
	assert_string_equal(shown(f, "busy", "state"), "stopped");
	assert_string_equal(shown(f, "not-marked", "state"), "stopped");
}

/* ---- jobs ---- */

static void test_one_job(void **state)
{
	struct fixture *f = *state;
	define(f, "web", UUID_1);
	struct vm *vm = NULL, *second = NULL;
	assert_int_equal(inventory_lock(f->inventory, "web", "migration 1f3c", &vm, NULL), 0);
	assert_string_equal(shown(f, "web", "job"), "migration 1f3c"); /* reading does not wait */
	cleanup_error struct error *e = NULL;
	int64_t before_us = clock_monotonic_us();
	assert_int_equal(inventory_lock(f->inventory, UUID_1, "start", &second, &e), -1);
	assert_int_equal(e->code, ERROR_VM_BUSY);
	assert_non_null(strstr(e->message, "migration 1f3c"));
	assert_int_equal(inventory_lock_arriving(f->inventory, UUID_1, "web", "arrival", &second, &e), -1);
	assert_int_equal(e->code, ERROR_VM_BUSY);
	assert_true(clock_monotonic_us() - before_us < 1000000); /* told at once */
	assert_null(second);
	inventory_unlock(f->inventory, vm);
	assert_string_equal(shown(f, "web", "job"), "");
	inventory_unlock(f->inventory, lock(f, "web"));
}

struct later {
	struct fixture *f;
	struct vm *vm;
	int (*verb)(struct inventory *inventory, struct vm *vm, struct error **e);
	pthread_barrier_t barrier;
};

static void *unlock_later(void *user)
{
	struct later *later = user;
	pthread_barrier_wait(&later->barrier);
	if (later->verb)
		(void)!later->verb(later->f->inventory, later->vm, NULL);
	inventory_unlock(later->f->inventory, later->vm);
	return NULL;
}

/* A job that ends soon is waited for. The VM may be gone when it has ended. */
static void test_ends_soon(void **state)
{
	struct fixture *f = *state;
	for (int forget = 0; forget < 2; forget++) {
		define(f, "web", UUID_1);
		struct later later = {.f = f, .vm = lock(f, "web"), .verb = forget ? vm_forget : NULL};
		inventory_job_ends_soon(f->inventory, later.vm);
		pthread_barrier_init(&later.barrier, NULL, 2);
		pthread_t thread;
		assert_int_equal(pthread_create(&thread, NULL, unlock_later, &later), 0);
		pthread_barrier_wait(&later.barrier);
		struct vm *vm = NULL;
		cleanup_error struct error *e = NULL;
		int r = inventory_lock(f->inventory, "web", "start", &vm, &e);
		pthread_join(thread, NULL);
		pthread_barrier_destroy(&later.barrier);
		if (forget) {
			assert_int_equal(r, -1);
			assert_int_equal(e->code, ERROR_VM_NOT_FOUND);
		} else {
			assert_int_equal(r, 0);
			/* The word held for that one job only. */
			struct vm *second = NULL;
			assert_int_equal(inventory_lock(f->inventory, "web", "stop", &second, &e), -1);
			assert_int_equal(e->code, ERROR_VM_BUSY);
			inventory_unlock(f->inventory, vm);
		}
	}
}

static void *count_up(void *user)
{
	struct fixture *f = user;
	for (int done = 0; done < 200;) {
		struct vm *vm = NULL;
		if (inventory_lock(f->inventory, "web", "count", &vm, NULL) < 0)
			continue;
		if (vm_write(f->inventory, vm, vm->owner, vm->epoch + 1, vm->definition, NULL) < 0)
			abort();
		inventory_unlock(f->inventory, vm);
		done++;
	}
	return NULL;
}

static void test_jobs_exclude(void **state)
{
	struct fixture *f = *state;
	define(f, "web", UUID_1);
	pthread_t threads[3];
	for (size_t i = 0; i < 3; i++)
		assert_int_equal(pthread_create(&threads[i], NULL, count_up, f), 0);
	for (size_t i = 0; i < 3; i++)
		pthread_join(threads[i], NULL);
	assert_string_equal(shown(f, "web", "epoch"), "601");
}

/* ---- ownership ---- */

static void test_not_ours(void **state)
{
	struct fixture *f = *state;
	define(f, "kept", UUID_1);
	define(f, "gone", UUID_2);
	give_away(f, "kept", "host-b", 2, true);
	give_away(f, "gone", "host-b", 2, false);
	for (int i = 0; i < 2; i++) {
		/* What is still defined here is shown, and cannot be started or changed. */
		assert_string_equal(shown(f, "kept", "state"), "moved");
		assert_string_equal(shown(f, "kept", "owner"), "host-b");
		assert_int_equal(with_job(f, "kept", vm_start), ERROR_VM_NOT_OWNER);
		cleanup_error struct error *e = NULL;
		assert_int_equal(try_define(f, "kept", UUID_1, 128, &e), -1);
		assert_int_equal(e->code, ERROR_VM_NOT_OWNER);
		/* What is not defined any more is remembered: who has it is said, and it cannot be brought back by a
		 * file. */
		json_t *view = NULL;
		assert_int_equal(inventory_show(f->inventory, "gone", &view, &e), -1);
		assert_int_equal(e->code, ERROR_VM_NOT_FOUND);
		assert_non_null(strstr(e->message, "host-b"));
		assert_int_equal(with_job(f, "gone", vm_start), ERROR_VM_NOT_FOUND);
		assert_int_equal(try_define(f, "gone", UUID_2, 64, &e), -1);
		assert_int_equal(e->code, ERROR_VM_NOT_OWNER);
		assert_int_equal(listed(f), 1);
		restart(f);
	}
	/* Undefined, it is still remembered. */
	assert_int_equal(with_job(f, "kept", vm_undefine), ERROR_CODE_COUNT);
	assert_int_equal(listed(f), 0);
	restart(f);
	cleanup_error struct error *e = NULL;
	assert_int_equal(try_define(f, "kept", UUID_1, 64, &e), -1);
	assert_int_equal(e->code, ERROR_VM_NOT_OWNER);
	/* Its name is free for another. */
	define(f, "kept", NULL);
	assert_string_equal(shown(f, "kept", "owner"), HOST);
}

/* The epoch is what it was after all that can be done to a VM here. */
static void test_epoch(void **state)
{
	struct fixture *f = *state;
	define(f, "web", UUID_1);
	give_away(f, "web", HOST, 7, true);
	assert_int_equal(try_define(f, "web", UUID_1, 128, NULL), 0);
	assert_string_equal(shown(f, "web", "epoch"), "7");
	assert_int_equal(with_job(f, "web", vm_start), ERROR_CODE_COUNT);
	assert_int_equal(with_job(f, "web", vm_end), ERROR_CODE_COUNT);
	restart(f);
	assert_string_equal(shown(f, "web", "epoch"), "7");
	assert_string_equal(shown(f, "web", "owner"), HOST);
	assert_string_equal(shown(f, "web", "memory_mib"), "128");
	give_away(f, "web", "host-b", 8, true);
	assert_int_equal(with_job(f, "web", vm_undefine), ERROR_CODE_COUNT);
	struct vm *vm = NULL;
	assert_int_equal(inventory_lock_arriving(f->inventory, UUID_1, "web", "arrival", &vm, NULL), 0);
	assert_int_equal(vm->epoch, 8);
	assert_string_equal(vm->owner, "host-b");
	inventory_unlock(f->inventory, vm);
}

static void test_write_fails(void **state)
{
	struct fixture *f = *state;
	define(f, "web", UUID_1);
	assert_true(database_run(f->db, NULL, "PRAGMA query_only = ON", "") >= 0);
	struct vm *vm = lock(f, "web");
	struct definition *definition = NULL;
	cleanup_json json_t *json = definition_to_json(vm->definition);
	assert_int_equal(definition_parse(json, &definition, NULL), 0);
	cleanup_error struct error *e = NULL;
	/* Nothing has changed in memory that is not on disk; the new definition is freed, the own one is not. */
	assert_int_equal(vm_write(f->inventory, vm, "host-b", 2, definition, &e), -1);
	assert_int_equal(e->code, ERROR_JOURNAL);
	assert_int_equal(vm_write(f->inventory, vm, "host-b", 2, vm->definition, NULL), -1);
	assert_int_equal(vm_forget(f->inventory, vm, NULL), -1);
	inventory_unlock(f->inventory, vm);
	assert_string_equal(shown(f, "web", "owner"), HOST);
	assert_string_equal(shown(f, "web", "epoch"), "1");
	assert_string_equal(shown(f, "web", "memory_mib"), "64");
	assert_int_equal(try_define(f, "new", UUID_2, 64, &e), -1);
	assert_int_equal(e->code, ERROR_JOURNAL);
	assert_int_equal(listed(f), 1);
}

/* ---- arrivals ---- */

static void test_arriving(void **state)
{
	struct fixture *f = *state;
	struct vm *vm = NULL;
	cleanup_error struct error *e = NULL;
	assert_int_equal(inventory_lock_arriving(f->inventory, UUID_1, "web", "migration 1", &vm, NULL), 0);
	assert_string_equal(vm->owner, "");
	assert_int_equal(vm->epoch, 0);
	assert_null(vm->definition);
	assert_int_equal(vm_check_owned(f->inventory, vm, &e), -1);
	assert_int_equal(e->code, ERROR_VM_OWNER_UNKNOWN);
	assert_int_equal(listed(f), 0); /* until it is really on its way */
	vm->arriving = true;
	assert_string_equal(shown(f, "web", "state"), "incoming");
	assert_int_equal(listed(f), 1);
	assert_int_equal(try_define(f, "web", UUID_1, 64, &e), -1);
	assert_int_equal(e->code, ERROR_VM_BUSY);
	/* Nothing came of it: nothing is remembered. */
	vm->arriving = false;
	inventory_unlock(f->inventory, vm);
	assert_int_equal(inventory_lock(f->inventory, UUID_1, "test", &vm, &e), -1);
	assert_int_equal(e->code, ERROR_VM_NOT_FOUND);
	restart(f);
	assert_int_equal(listed(f), 0);
}

static void test_arriving_namesake(void **state)
{
	struct fixture *f = *state;
	struct vm *vm = NULL;
	cleanup_error struct error *e = NULL;
	define(f, "web", UUID_1);
	assert_int_equal(inventory_lock_arriving(f->inventory, UUID_2, "web", "migration 1", &vm, &e), -1);
	assert_int_equal(e->code, ERROR_DEST_VM_EXISTS);
	assert_non_null(strstr(e->message, UUID_1));
	/* One that is only remembered does not own its name. */
	give_away(f, "web", "host-b", 2, false);
	assert_int_equal(inventory_lock_arriving(f->inventory, UUID_2, "web", "migration 1", &vm, NULL), 0);
	assert_string_equal(vm->uuid, UUID_2);
	struct definition *definition = NULL;
	cleanup_json json_t *json = json_pack("{ss ss si}", "name", "web", "uuid", UUID_2, "memory_mib", 64);
	assert_int_equal(definition_parse(json, &definition, NULL), 0);
	assert_int_equal(vm_write(f->inventory, vm, HOST, 5, definition, NULL), 0);
	inventory_unlock(f->inventory, vm);
	/* The name means the one that is defined, whichever stands first. */
	assert_string_equal(shown(f, "web", "uuid"), UUID_2);
	restart(f);
	assert_string_equal(shown(f, "web", "uuid"), UUID_2);
	assert_string_equal(shown(f, "web", "epoch"), "5");
}

static void test_broken_journal(void **state)
{
	struct fixture *f = *state;
	define(f, "web", UUID_1);
	assert_int_equal(database_run(f->db, NULL, "UPDATE vm SET definition = '{\"name\": 7}'", ""), 1);
	struct inventory_options options = {
		.db = f->db, .host_name = HOST, .driver = &vm_driver_fake, .driver_host = &f->driver_host};
	struct inventory *inventory = NULL;
	cleanup_error struct error *e = NULL;
	assert_int_equal(inventory_new(&options, &inventory, &e), -1);
	assert_non_null(strstr(e->message, "the journal's definition of VM 'web'"));
	assert_null(inventory);
}

int main(void)
{
	log_set_level(getenv("FERRY_TEST_LOG") ? LOG_LEVEL_DEBUG : (enum log_level)0);
#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
	const struct CMUnitTest tests[] = {
		TEST(test_define),         TEST(test_define_bad),
		TEST(test_define_again),   TEST(test_undefine),
		TEST(test_start_and_end),  TEST(test_guest_ends_by_itself), TEST(test_untidy_guest),
		TEST(test_restart),        TEST(test_autostart),
		TEST(test_one_job),        TEST(test_ends_soon),
		TEST(test_jobs_exclude),   TEST(test_not_ours),
		TEST(test_epoch),          TEST(test_write_fails),
		TEST(test_arriving),       TEST(test_arriving_namesake),
		TEST(test_broken_journal),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
