/* SPDX-License-Identifier: Apache-2.0 */
/* Two hosts; see two_hosts.h. */
#include "fakes/two_hosts.h"

#include "fakes/fake_http_client.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/cleanup.h"
#include "base/fault.h"
#include "base/file.h"
#include "base/json.h"
#include "base/log.h"
#include "base/xalloc.h"
#include "host/recovery.h"
#include "migration/destination.h"
#include "migration/source.h"

#define PATIENCE_US 5000000

/* ---- points of the program ---- */

static struct {
	pthread_mutex_t mutex;
	struct two_hosts *hosts;
	struct test_host *host;
	char crash_at[64], call_at[64], fail_state[64];
	struct test_host *fail_host;
	bool fail_armed, fail_for_good;
	void (*hook)(void *user);
	void *user;
} points = {.mutex = PTHREAD_MUTEX_INITIALIZER};

/* Refuse one state in the migration's row, by the database itself: the step's transaction fails as a full disk's would.
 */
static void fail_journal(struct test_host *host, const char *state, bool fail)
{
	cleanup_free char *update =
		xasprintf("CREATE TEMP TRIGGER fail_update BEFORE UPDATE ON migration WHEN NEW.state = '%s'"
			  " BEGIN SELECT RAISE(ABORT, 'the disk is full'); END",
			  state);
	cleanup_free char *insert =
		xasprintf("CREATE TEMP TRIGGER fail_insert BEFORE INSERT ON migration WHEN NEW.state = '%s'"
			  " BEGIN SELECT RAISE(ABORT, 'the disk is full'); END",
			  state);
	cleanup_error struct error *e = NULL;
	if (database_run(host->db, &e, fail ? update : "DROP TRIGGER IF EXISTS fail_update", "") < 0 ||
	    database_run(host->db, &e, fail ? insert : "DROP TRIGGER IF EXISTS fail_insert", "") < 0)
		abort();
}

/* Whether the state is about to be recorded at this point. */
static bool records_state(const char *point, const char *state)
{
	if (strcmp(point, "before-taken-back") == 0)
		return strcmp(state, "holds") == 0;
	return strncmp(point, "before-", strlen("before-")) == 0 && strcmp(point + strlen("before-"), state) == 0;
}

enum fault_action __real_fault_pass(enum fault_point point, int64_t *ret_number);
enum fault_action __wrap_fault_pass(enum fault_point point, int64_t *ret_number);

enum fault_action __wrap_fault_pass(enum fault_point passed, int64_t *ret_number)
{
	const char *point = fault_point_name(passed);
	pthread_mutex_lock(&points.mutex);
	struct test_host *crash = strcmp(points.crash_at, point) == 0 ? points.host : NULL;
	void (*hook)(void *user) = strcmp(points.call_at, point) == 0 ? points.hook : NULL;
	void *user = points.user;
	cleanup_free char *state = xstrdup(points.fail_state);
	struct test_host *fail = records_state(point, state) ? points.fail_host : NULL;
	bool arm = fail && !points.fail_armed;
	if (crash)
		*points.crash_at = '\0';
	if (fail)
		points.fail_armed = arm;
	if (fail && (!arm || points.fail_for_good))
		*points.fail_state = '\0';
	pthread_mutex_unlock(&points.mutex);
	if (fail)
		fail_journal(fail, state, arm);
	if (hook)
		hook(user);
	if (crash)
		test_host_crash(points.hosts, crash);
	return __real_fault_pass(passed, ret_number);
}

void two_hosts_crash_at(struct two_hosts *hosts, struct test_host *host, const char *point)
{
	LOCK_SCOPE(&points.mutex);
	points.hosts = hosts;
	points.host = host;
	snprintf(points.crash_at, sizeof(points.crash_at), "%s", point ? point : "");
}

void two_hosts_fail_journal(struct two_hosts *hosts, struct test_host *host, const char *state)
{
	LOCK_SCOPE(&points.mutex);
	points.hosts = hosts;
	points.fail_host = host;
	points.fail_armed = points.fail_for_good = false;
	snprintf(points.fail_state, sizeof(points.fail_state), "%s", state);
}

void two_hosts_fail_journal_for_good(struct two_hosts *hosts, struct test_host *host, const char *state)
{
	two_hosts_fail_journal(hosts, host, state);
	LOCK_SCOPE(&points.mutex);
	points.fail_for_good = true;
}

void two_hosts_at(const char *point, void (*hook)(void *user), void *user)
{
	LOCK_SCOPE(&points.mutex);
	points.hook = hook;
	points.user = user;
	snprintf(points.call_at, sizeof(points.call_at), "%s", point);
}

/* ---- in the way of the program (--wrap, see meson.build) ---- */

bool __real_migration_host_wait_stopping(struct migration_host *host, int64_t timeout_ms);
bool __wrap_migration_host_wait_stopping(struct migration_host *host, int64_t timeout_ms);
int __real_journal_step(struct journal *journal, struct migration *migration, enum handover_state to,
			const struct journal_ownership *ownership, struct error **e);
int __wrap_journal_step(struct journal *journal, struct migration *migration, enum handover_state to,
			const struct journal_ownership *ownership, struct error **e);

/* The waits between two questions are a hundred times shorter here. */
bool __wrap_migration_host_wait_stopping(struct migration_host *host, int64_t timeout_ms)
{
	return __real_migration_host_wait_stopping(host, timeout_ms / 100 + 1);
}

bool two_hosts_steps_taken[HANDOVER_STATE_COUNT][HANDOVER_STATE_COUNT];

int __wrap_journal_step(struct journal *journal, struct migration *migration, enum handover_state to,
			const struct journal_ownership *ownership, struct error **e)
{
	enum handover_state from = migration->handover;
	int r = __real_journal_step(journal, migration, to, ownership, e);
	if (r == 0)
		__atomic_store_n(&two_hosts_steps_taken[from][to], true, __ATOMIC_RELAXED);
	return r;
}

/* ---- one host ---- */

static void *loop_main(void *user)
{
	if (loop_run(user, NULL) < 0)
		abort();
	return NULL;
}

static void need(int r, const struct error *e, const char *what)
{
	if (r < 0) {
		print_error("%s: %s\n", what, e ? e->message : "?");
		abort();
	}
}

void test_host_start(struct test_host *th)
{
	struct migration_host *host = &th->host;
	struct error *e = NULL;
	cleanup_free char *path = xasprintf("%s/journal.db", th->folder);
	th->host = (struct migration_host){
		.name = th->name,
		.data_address = "127.0.0.1",
		.data_port_min = 21000,
		.data_port_max = 29000,
		.trusted = "",
		.times = FAKE_TIMES,
	};
	th->host.times.silence_limit_ms = th->silence_limit_ms;
	th->crashed = false;
	fake_world_set_dead(th->name, false);
	need(database_open(path, &th->db, &e), e, "database");
	need(loop_new(&host->loop, &e), e, "loop");
	pthread_create(&th->loop_thread, NULL, loop_main, host->loop);
	th->driver_host = (struct driver_host){
		.loop = host->loop, .run_folder = th->name, .log_folder = th->folder, .accelerator = "tcg"};
	struct inventory_options options = {
		.db = th->db, .host_name = th->name, .driver = &vm_driver_fake, .driver_host = &th->driver_host};
	migration_host_init(host);
	host->migrations = migration_list_new();
	need(inventory_new(&options, &host->inventory, &e), e, "inventory");
	need(journal_open(th->db, host->inventory, &host->journal, &e), e, "journal");
	need(peers_new(th->db, &th->files, &host->peers, &e), e, "peers");
	/* Only names count on the fake wire. */
	for (const char *peer = "ab"; *peer; peer++) {
		char name[] = "host-?";
		name[5] = *peer;
		need(peers_add(host->peers, name, "127.0.0.1", CONTROL_PORT, &e), e, "peers");
	}
	th->up = true;
	/* As ferryd does: what is left of earlier is taken up before anybody can ask. A host that is recovered may
	 * crash in it. */
	need(recovery_run(host, &e), e, "recovery");
	wire_connect(th->name, &th->files, host);
	if (th->crashed)
		wire_cut(th->name);
}

void test_host_stop(struct test_host *th)
{
	struct migration_host *host = &th->host;
	if (!th->up)
		return;
	migration_host_stop_workers(host);
	wire_disconnect(th->name);
	migration_host_stop_workers(host); /* those that the last messages have started */
	destination_stop(host);
	migration_list_free(host->migrations);
	inventory_free(host->inventory);
	peers_free(host->peers);
	journal_free(host->journal);
	loop_quit(host->loop);
	pthread_join(th->loop_thread, NULL);
	loop_free(host->loop);
	database_close(th->db);
	pthread_mutex_destroy(&host->workers.mutex);
	pthread_cond_destroy(&host->workers.changed);
	th->up = false;
}

void test_host_restart(struct test_host *host)
{
	test_host_stop(host);
	test_host_start(host);
}

void test_host_crash(struct two_hosts *hosts, struct test_host *th)
{
	/* Its other threads go on meanwhile, and what they cannot do any more must not be written down as done. */
	if (database_run(th->db, NULL, "PRAGMA query_only = ON", "") < 0)
		abort();
	fake_world_set_dead(th->name, true);
	wire_cut(th->name);
	pthread_mutex_lock(&th->host.workers.mutex);
	th->host.workers.stopping = true;
	pthread_cond_broadcast(&th->host.workers.changed);
	pthread_mutex_unlock(&th->host.workers.mutex);
	LOCK_SCOPE(&hosts->mutex);
	th->crashed = true;
	pthread_cond_broadcast(&hosts->changed);
}

/* ---- both ---- */

static void make_folder(struct test_host *th, const char *name)
{
	/* In memory where that can be had: what is durable on a disk is not what is tested here. */
	th->name = name;
	th->silence_limit_ms = 60000;
	snprintf(th->folder, sizeof(th->folder), "%s/ferry-test-XXXXXX",
		 access("/dev/shm", W_OK) == 0 ? "/dev/shm" : "/tmp");
	if (!mkdtemp(th->folder))
		abort();
}

static void start_guest(struct test_host *th)
{
	struct error *e = NULL;
	struct vm *vm = NULL;
	cleanup_json json_t *view = NULL;
	cleanup_json json_t *definition =
		json_pack("{ss ss si}", "name", GUEST_NAME, "uuid", GUEST_UUID, "memory_mib", 1);
	need(inventory_define(th->host.inventory, definition, &view, &e), e, "define");
	need(inventory_lock(th->host.inventory, GUEST_NAME, "start", &vm, &e), e, "lock");
	need(vm_start(th->host.inventory, vm, &e), e, "start");
	inventory_unlock(th->host.inventory, vm);
}

/* What a failed test has left: cmocka jumps out of it. */
static struct two_hosts *current;

struct two_hosts *two_hosts_new(void)
{
	if (current)
		(void)two_hosts_free(current);
	struct two_hosts *hosts = xcalloc(1, sizeof(*hosts));
	pthread_mutex_init(&hosts->mutex, NULL);
	cond_init(&hosts->changed);
	current = hosts;
	make_folder(&hosts->a, "host-a");
	make_folder(&hosts->b, "host-b");
	fake_world_reset();
	wire_reset();
	two_hosts_crash_at(hosts, NULL, NULL);
	two_hosts_at("", NULL, NULL);
	pthread_mutex_lock(&points.mutex);
	*points.fail_state = '\0';
	pthread_mutex_unlock(&points.mutex);
	log_set_level(getenv("FERRY_TEST_LOG") ? LOG_LEVEL_DEBUG : (enum log_level)0);
	test_host_start(&hosts->a);
	test_host_start(&hosts->b);
	start_guest(&hosts->a);
	return hosts;
}

bool two_hosts_free(struct two_hosts *hosts)
{
	test_host_stop(&hosts->a);
	test_host_stop(&hosts->b);
	(void)!file_remove_tree(hosts->a.folder, NULL);
	(void)!file_remove_tree(hosts->b.folder, NULL);
	const char *breach = fake_world_breach();
	if (breach)
		print_error("BREACH: %s\n", breach);
	fake_world_reset();
	pthread_mutex_destroy(&hosts->mutex);
	pthread_cond_destroy(&hosts->changed);
	current = NULL;
	free(hosts);
	return !breach;
}

/* ---- migrations ---- */

struct migration *begin_migration(struct test_host *from, const struct test_host *to, const char *more)
{
	cleanup_free char *text = xasprintf("{\"to\": \"%s\"%s%s}", to->name, *more ? ", " : "", more);
	cleanup_json json_t *json = NULL;
	struct migration_request request = {0};
	struct migration *migration = NULL;
	cleanup_error struct error *e = NULL;
	if (json_parse(text, strlen(text), &json, &e) < 0 || migration_request_parse(json, &request, &e) < 0 ||
	    source_begin(&from->host, GUEST_NAME, &request, &migration, &e) < 0)
		fail_msg("cannot begin: %s", e->message);
	return migration;
}

static bool crashed(struct two_hosts *hosts)
{
	LOCK_SCOPE(&hosts->mutex);
	return hosts->a.crashed || hosts->b.crashed;
}

static uint64_t seen(struct migration *migration, enum migration_status *ret_status)
{
	LOCK_SCOPE(&migration->mutex);
	*ret_status = migration->status;
	return migration->change;
}

bool wait_ended(struct two_hosts *hosts, struct migration *migration)
{
	int64_t deadline_us = clock_monotonic_us() + PATIENCE_US;
	for (;;) {
		enum migration_status status;
		uint64_t change = seen(migration, &status);
		if (migration_status_ended(status) || crashed(hosts))
			return true;
		if (clock_monotonic_us() > deadline_us)
			return false;
		/* A crash raises no change of a migration: look again soon. */
		(void)migration_wait_change(migration, change, clock_monotonic_us() + 2000);
	}
}

bool wait_status(struct migration *migration, enum migration_status wanted)
{
	int64_t deadline_us = clock_monotonic_us() + PATIENCE_US;
	for (;;) {
		enum migration_status status;
		uint64_t change = seen(migration, &status);
		if (status == wanted)
			return true;
		if (migration_status_ended(status) || !migration_wait_change(migration, change, deadline_us))
			return false;
	}
}

bool wait_final(struct migration *migration)
{
	const int64_t deadline_us = clock_monotonic_us() + PATIENCE_US;
	enum migration_status status;
	uint64_t change = seen(migration, &status);
	while (!migration_final(migration)) {
		if (!migration_wait_change(migration, change, deadline_us))
			return false;
		change = seen(migration, &status);
	}
	return true;
}

bool wait_remains_gone(struct test_host *host)
{
	const int64_t deadline_us = clock_monotonic_us() + PATIENCE_US;
	while (inventory_has_remains(host->host.inventory, GUEST_UUID)) {
		if (clock_monotonic_us() > deadline_us)
			return false;
		sched_yield();
	}
	return true;
}

struct waiting {
	struct two_hosts *hosts;
	int64_t deadline_us;
	bool all_ended;
};

static void wait_one(void *user, struct migration *migration)
{
	struct waiting *waiting = user;
	enum migration_status status;
	/* A port in reserve for a prepare that never came; it goes with one of the next checks. */
	pthread_mutex_lock(&migration->mutex);
	bool only_checked = migration->role == MIGRATION_DESTINATION && migration->handover == HANDOVER_NONE;
	pthread_mutex_unlock(&migration->mutex);
	if (only_checked)
		return;
	uint64_t change = seen(migration, &status);
	while (!migration_status_ended(status) && !crashed(waiting->hosts)) {
		(void)migration_wait_change(migration, change, clock_monotonic_us() + 2000);
		if (clock_monotonic_us() > waiting->deadline_us) {
			print_error("%s: migration is still %s (%s)\n",
				    migration->role == MIGRATION_SOURCE ? "source" : "destination",
				    migration_status_name(status),
				    migration->reason_message ? migration->reason_message : "no reason");
			waiting->all_ended = false;
			return;
		}
		change = seen(migration, &status);
	}
}

bool wait_all_ended(struct two_hosts *hosts)
{
	struct waiting waiting = {hosts, clock_monotonic_us() + PATIENCE_US, true};
	migration_list_each(hosts->a.host.migrations, wait_one, &waiting);
	migration_list_each(hosts->b.host.migrations, wait_one, &waiting);
	return waiting.all_ended;
}

struct found {
	char *text;
	int64_t number;
};

static int read_found(void *user, const struct database_row *row, struct error **e)
{
	(void)e;
	struct found *found = user;
	free(found->text);
	found->text = xstrdup(database_text(row, 0));
	found->number = database_integer(row, 1);
	return 0;
}

char *journal_owner(struct test_host *host, int64_t *ret_epoch)
{
	struct found found = {xstrdup(""), 0};
	if (database_query(host->db, NULL, read_found, &found, "SELECT owner, epoch FROM vm WHERE uuid = ?", "s",
			   GUEST_UUID) < 0)
		abort();
	if (ret_epoch)
		*ret_epoch = found.number;
	return found.text;
}

char *journal_handover(struct test_host *host, const char *role)
{
	struct found found = {xstrdup("none"), 0};
	if (database_query(host->db, NULL, read_found, &found,
			   "SELECT state, ended FROM migration WHERE role = ? ORDER BY began_ms, rowid", "s", role) < 0)
		abort();
	return found.text;
}
