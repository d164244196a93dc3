/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the journal's database keeps when the process is killed and the disk forgets what was not synced, or fails, at each of
 * its calls in turn. A child works on a database until something happens to it, and says what it was told about each step;
 * then the database is opened again, with a good disk, and what is in it is compared with that.
 *
 * Each step is a transaction over two tables that must say the same number.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <signal.h>
#include <sqlite3.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/database.h"
#include "base/fault.h"
#include "base/file.h"
#include "base/forgetful_vfs.h"
#include "base/log.h"
#include "base/xalloc.h"

#define STEPS 6
#define CALLS_MAX 400
#define SEEDS 3

static char folder[64];
static char *path;

/* In memory where that can be had: what forgets is the layer under test, not the disk. */
static int make_folder(void **state)
{
	(void)state;
	snprintf(folder, sizeof(folder), "%s/ferry-forget-XXXXXX", access("/dev/shm", W_OK) == 0 ? "/dev/shm" : "/tmp");
	if (!mkdtemp(folder))
		return -1;
	path = xasprintf("%s/journal.db", folder);
	log_set_level((enum log_level)0);
	return 0;
}

static int remove_folder(void **state)
{
	(void)state;
	free(path);
	return file_remove_tree(folder, NULL);
}

static void remove_database(void)
{
	static const char *const ends[] = {"", "-wal", "-journal", "-shm"};
	for (size_t i = 0; i < sizeof(ends) / sizeof(ends[0]); i++) {
		cleanup_free char *name = xasprintf("%s%s", path, ends[i]);
		(void)unlink(name);
	}
}

/* ---- the child ---- */

/* What the child says on the pipe: a step is begun, and what came of it. */
struct word {
	char what; /* 'o' opened, 'b' begun, 'y' it returned 0, 'n' it returned an error, 'u' and its outcome is not known */
	int step;
};

static void say(int fd, char what, int step)
{
	struct word word = {what, step};
	if (write(fd, &word, sizeof(word)) != sizeof(word))
		_exit(9);
}

struct step {
	struct database *db;
	int64_t number;
};

/* Wide rows, so that a step is several pages long and its frames can be torn apart. */
static int write_step(void *user, struct error **e)
{
	const struct step *step = user;
	if (database_run(step->db, e, "UPDATE one SET n = ?, wide = zeroblob(6000)", "i", step->number) < 0 ||
	    database_run(step->db, e, "UPDATE two SET n = ?", "i", step->number) < 0)
		return -1;
	return 0;
}

static void run_child(int fd, const char *faults)
{
	struct error *e = NULL;
	struct database *db = NULL;
	signal(SIGPIPE, SIG_IGN);
	if (fault_set(faults, NULL) < 0 || database_open(path, &db, &e) < 0)
		_exit(1);
	say(fd, 'o', 0);
	for (int i = 1; i <= STEPS; i++) {
		struct step step = {db, i};
		say(fd, 'b', i);
		if (database_transaction(db, write_step, &step, &e) == 0) {
			say(fd, 'y', i);
			continue;
		}
		say(fd, strstr(e->message, "not known") ? 'u' : 'n', i);
		error_free(take_ptr(e));
	}
	raise(SIGKILL);
}

struct told {
	bool opened, killed, unknown; /* unknown: of the last step that was begun */
	int errors;
	int begun, acknowledged;
	int refused; /* the last one that was said not to have happened, with nothing behind it */
};

static struct told run(const char *faults)
{
	int ends[2];
	struct told told = {0};
	struct word word;
	assert_int_equal(pipe(ends), 0);
	pid_t pid = fork();
	assert_true(pid >= 0);
	if (pid == 0) {
		close(ends[0]);
		run_child(ends[1], faults);
		_exit(8);
	}
	close(ends[1]);
	while (read(ends[0], &word, sizeof(word)) == sizeof(word)) {
		told.opened = true;
		if (word.what == 'b')
			told.begun = word.step;
		if (word.what == 'y') {
			told.acknowledged = word.step;
			told.unknown = false;
			told.refused = 0;
		}
		if (word.what == 'n' || word.what == 'u')
			told.errors++;
		if (word.what == 'n') {
			told.refused = word.step;
			told.unknown = false; /* of an earlier one too: it has been settled */
		}
		if (word.what == 'u')
			told.unknown = true;
	}
	close(ends[0]);
	int status = 0;
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_true((WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL) || (WIFEXITED(status) && WEXITSTATUS(status) == 1));
	told.killed = WIFSIGNALED(status) && (told.begun < STEPS || told.acknowledged + told.errors < STEPS);
	return told;
}

static int read_number(void *user, const struct database_row *row, struct error **e)
{
	(void)e;
	*(int64_t *)user = database_integer(row, 0);
	return 0;
}

/* The number that both tables say, by a good disk. */
static int64_t look(void)
{
	struct database *db = NULL;
	struct error *e = NULL;
	int64_t one = -1, two = -2;
	if (database_open(path, &db, &e) < 0)
		fail_msg("cannot be opened again: %s", e->message);
	assert_int_equal(database_query(db, NULL, read_number, &one, "SELECT n FROM one", ""), 1);
	assert_int_equal(database_query(db, NULL, read_number, &two, "SELECT n FROM two", ""), 1);
	assert_int_equal(one, two);
	database_close(db);
	return one;
}

/* A database whose steps have come to nought yet, opened and closed in good order. */
static void make_database(void)
{
	struct database *db = NULL;
	remove_database();
	assert_int_equal(database_open(path, &db, NULL), 0);
	assert_true(database_run(db, NULL, "CREATE TABLE one(n INTEGER, wide BLOB)", "") >= 0 &&
		    database_run(db, NULL, "CREATE TABLE two(n INTEGER)", "") >= 0 &&
		    database_run(db, NULL, "INSERT INTO one VALUES(0, NULL)", "") == 1 &&
		    database_run(db, NULL, "INSERT INTO two VALUES(0)", "") == 1);
	database_close(db);
}

/* What is there must be what was said: all that returned 0, nothing that was said not to have happened. */
static void assert_kept(const struct told *told, const char *faults)
{
	int64_t there = look();
	bool good = there >= told->acknowledged && there <= told->begun;
	/* More than was acknowledged can only be the last step, while it was under way or of unknown outcome. */
	if (there > told->acknowledged)
		good = good && (told->unknown || (there == told->begun && told->refused != there));
	if (!good)
		fail_msg("%s: %d was acknowledged, %d begun, %d refused%s; there is %lld", faults, told->acknowledged, told->begun,
			 told->refused, told->unknown ? ", one of unknown outcome" : "", (long long)there);
}

/* ---- tests ---- */

static int forget_faults(void **state)
{
	(void)state;
	return fault_set("", NULL);
}

static void test_nothing_happens(void **state)
{
	(void)state;
	make_database();
	struct told told = run("");
	assert_int_equal(told.acknowledged, STEPS);
	assert_int_equal(look(), STEPS);
	/* What was synced is there though the process never gave its cache back. */
	for (int seed = 0; seed < SEEDS; seed++) {
		cleanup_free char *faults = xasprintf("journal-sync=forget:%d", seed);
		make_database();
		told = run(faults);
		assert_int_equal(told.acknowledged, STEPS);
		assert_int_equal(look(), STEPS);
	}
}

/* SQLite itself, told not to sync: all is lost, which shows that the layer forgets. */
static void test_forgets(void **state)
{
	(void)state;
	for (int forgets = 0; forgets < 2; forgets++) {
		make_database();
		pid_t pid = fork();
		if (pid == 0) {
			sqlite3 *db = NULL;
			if (fault_set(forgets ? "journal-sync=forget" : "", NULL) < 0 ||
			    sqlite3_open_v2(path, &db, SQLITE_OPEN_READWRITE, forgetful_vfs()) != SQLITE_OK ||
			    sqlite3_exec(db, "PRAGMA locking_mode=EXCLUSIVE; PRAGMA journal_mode=WAL; PRAGMA synchronous=OFF;"
					     "BEGIN; UPDATE one SET n = 7; UPDATE two SET n = 7; COMMIT", NULL, NULL, NULL) != SQLITE_OK)
				_exit(1);
			/* The process itself reads what it wrote. */
			sqlite3_stmt *statement = NULL;
			if (sqlite3_prepare_v2(db, "SELECT n FROM two", -1, &statement, NULL) != SQLITE_OK ||
			    sqlite3_step(statement) != SQLITE_ROW || sqlite3_column_int(statement, 0) != 7)
				_exit(2);
			raise(SIGKILL);
		}
		int status = 0;
		assert_int_equal(waitpid(pid, &status, 0), pid);
		assert_true(WIFSIGNALED(status));
		assert_int_equal(look(), forgets ? 0 : 7);
	}
}

/* Something once, at the Nth call, for each N, until a run has so few that it does not happen. Returns the number of runs. */
static int at_each_call(const char *point, const char *action, const char *with)
{
	for (int n = 1; n <= CALLS_MAX; n++) {
		cleanup_free char *faults = xasprintf("%s=%s@%d%s", point, action, n, with);
		make_database();
		struct told told = run(faults);
		if (told.opened)
			assert_kept(&told, faults);
		else
			assert_int_equal(look(), 0); /* it happened when it was opened: nothing was begun */
		if (told.opened && !told.killed && told.errors == 0)
			return n - 1;
	}
	fail_msg("%s=%s happened in each of %d runs", point, action, CALLS_MAX);
	return 0;
}

static void test_killed_at_each_call(void **state)
{
	(void)state;
	for (int seed = 0; seed < SEEDS; seed++) {
		cleanup_free char *with = xasprintf(", journal-sync=forget:%d", seed);
		/* A step is a write of each frame's head and page, and a sync. */
		assert_true(at_each_call("journal-write", "kill", with) >= STEPS * 4);
		assert_true(at_each_call("journal-sync", "kill", with) >= STEPS);
	}
}

static void test_disk_fails_once(void **state)
{
	(void)state;
	static const char *const actions[] = {"error", "full", "short"};
	for (int seed = -1; seed < SEEDS; seed++) {
		cleanup_free char *with = seed < 0 ? xstrdup("") : xasprintf(", journal-sync=forget:%d", seed);
		for (size_t i = 0; i < sizeof(actions) / sizeof(actions[0]); i++)
			assert_true(at_each_call("journal-write", actions[i], with) >= STEPS * 4);
		assert_true(at_each_call("journal-sync", "error", with) >= STEPS);
	}
}

/* From the Nth call on, until the end: then it is killed. */
static void test_disk_fails_for_good(void **state)
{
	(void)state;
	static const struct {
		const char *point, *action;
	} rows[] = {{"journal-write", "error"}, {"journal-write", "full"}, {"journal-write", "short"}, {"journal-sync", "error"}};
	int unknown = 0;
	for (int seed = -1; seed < SEEDS; seed++)
		for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++)
			for (int n = 1; n < 32; n++) {
				cleanup_free char *with = seed < 0 ? xstrdup("") : xasprintf(", journal-sync=forget:%d", seed);
				cleanup_free char *faults = xasprintf("%s=%s@%d+%s", rows[i].point, rows[i].action, n, with);
				make_database();
				struct told told = run(faults);
				if (told.opened)
					assert_kept(&told, faults);
				unknown += told.unknown;
			}
	assert_true(unknown > 0);
}

/* A step whose sync fails, and the disk has it all the same: said not to have happened, so it must not come to light. */
static void test_failed_commit_stays_failed(void **state)
{
	(void)state;
	int failed = 0;
	for (int n = 1; n < 8; n++) {
		cleanup_free char *faults = xasprintf("journal-sync=error@%d, journal-sync=kill@%d", n, n + 2);
		make_database();
		/* Without forgetting: what was written is on the disk when the process is gone. */
		struct told told = run(faults);
		if (!told.opened)
			continue;
		failed += told.refused > 0;
		assert_kept(&told, faults);
	}
	assert_true(failed > 0);
}

/* While the outcome of a step is not known, nothing else is written; and then it is settled. */
static void test_unknown_outcome(void **state)
{
	(void)state;
	struct database *db = NULL;
	struct error *e = NULL;
	make_database();
	assert_int_equal(database_open(path, &db, NULL), 0);
	struct step step = {db, 1};
	assert_int_equal(fault_set("journal-sync=error@*", NULL), 0);
	assert_int_equal(database_transaction(db, write_step, &step, &e), -1);
	assert_non_null(strstr(e->message, "not known"));
	error_free(take_ptr(e));
	assert_int_equal(database_settle(db, &e), -1);
	error_free(take_ptr(e));
	/* It is not read as if it had happened. */
	int64_t n = -1;
	assert_int_equal(database_query(db, NULL, read_number, &n, "SELECT n FROM one", ""), 1);
	assert_int_equal(n, 0);
	assert_int_equal(database_run(db, &e, "UPDATE two SET n = 5", ""), -1);
	error_free(take_ptr(e));
	assert_int_equal(fault_set("", NULL), 0);
	assert_int_equal(database_settle(db, NULL), 0);
	assert_int_equal(database_transaction(db, write_step, &step, NULL), 0);
	database_close(db);
	assert_int_equal(look(), 1);
}

/* What is recovered from the log may never have been synced by those who wrote it: opening syncs it, or fails. */
static void test_opening_makes_durable(void **state)
{
	(void)state;
	struct database *db = NULL;
	cleanup_error struct error *e = NULL;
	cleanup_free char *log = xasprintf("%s-wal", path);
	struct stat st;
	make_database();
	struct told told = run("");
	assert_int_equal(told.acknowledged, STEPS);
	assert_int_equal(stat(log, &st), 0);
	assert_true(st.st_size > 0);
	assert_int_equal(fault_set("journal-sync=error@*", NULL), 0);
	assert_int_equal(database_open(path, &db, &e), -1);
	assert_int_equal(fault_set("", NULL), 0);
	assert_int_equal(database_open(path, &db, NULL), 0);
	assert_int_equal(stat(log, &st), 0);
	assert_int_equal(st.st_size, 0);
	database_close(db);
	assert_int_equal(look(), STEPS);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_nothing_happens),
		cmocka_unit_test(test_forgets),
		cmocka_unit_test(test_killed_at_each_call),
		cmocka_unit_test(test_disk_fails_once),
		cmocka_unit_test(test_disk_fails_for_good),
		cmocka_unit_test(test_failed_commit_stays_failed),
		cmocka_unit_test_teardown(test_unknown_outcome, forget_faults),
		cmocka_unit_test_teardown(test_opening_makes_durable, forget_faults),
	};
	return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
