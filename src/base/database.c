/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A small durable database; see database.h. Statements are prepared each time: there are a handful a migration, and a
 * cache would outlive schema changes. The mutex is recursive because a transaction's body runs further statements.
 *
 * Two things that SQLite leaves to its user, because a failed fsync leaves in the page cache what is not on the disk, and no later
 * fsync writes it:
 *   - A COMMIT whose sync fails is rolled back, but its frames stand in the log, whole and with a commit mark: a process that
 *     opens the database later finds it committed, if they reached the disk. The next commit is written over them, and what is
 *     left behind it no longer follows from it. So one is made right away (database_settle()).
 *   - What is read from the log at opening may come out of the page cache alone, after an earlier process failed to sync it. So
 *     all of it is written anew, to the database, and synced, before anybody acts on it.
 */
#include "base/database.h"

#include <fcntl.h>
#include <pthread.h>
#include <sqlite3.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/clock.h"
#ifdef FERRY_FAULTS
#include "base/forgetful_vfs.h"
#endif
#include "base/xalloc.h"

#define OPEN_PATIENCE_MS 1000

struct database {
	sqlite3 *sqlite;
	pthread_mutex_t mutex;
	bool unsettled; /* a commit failed that may be on the disk all the same */
};

struct database_row {
	sqlite3_stmt *statement;
};

static int database_failed(struct database *db, const char *doing, struct error **e)
{
	return error_set(e, ERROR_JOURNAL, "%s: %s", doing, sqlite3_errmsg(db->sqlite));
}

static int database_execute(struct database *db, const char *sql, struct error **e)
{
	if (sqlite3_exec(db->sqlite, sql, NULL, NULL, NULL) != SQLITE_OK)
		return database_failed(db, sql, e);
	return 0;
}

/* Whether a failed commit may come to light later. */
static bool database_outcome_unknown(struct database *db)
{
	int code = sqlite3_errcode(db->sqlite) & 0xff;
	return code == SQLITE_IOERR || code == SQLITE_FULL;
}

static int database_write_probe(struct database *db, struct error **e)
{
	cleanup_free char *sql = xasprintf("REPLACE INTO commit_probe(rowid, n) VALUES(1, %lld)", (long long)clock_monotonic_us());
	return database_execute(db, sql, e);
}

int database_settle(struct database *db, struct error **e)
{
	LOCK_SCOPE(&db->mutex);
	if (!db->unsettled || !sqlite3_get_autocommit(db->sqlite))
		return 0;
	if (database_write_probe(db, e) < 0)
		return error_wrap(e, "whether an earlier record was made is not known");
	db->unsettled = false;
	return 0;
}

/* After a write outside of a transaction, or a COMMIT, has failed with *e. */
static void database_settle_failed(struct database *db, struct error **e)
{
	if (db->unsettled && database_settle(db, NULL) < 0)
		error_wrap(e, "it is not known whether this was recorded");
}

/* Write what the log holds to the database, and sync it. */
static int database_make_durable(struct database *db, struct error **e)
{
	if (sqlite3_wal_checkpoint_v2(db->sqlite, NULL, SQLITE_CHECKPOINT_TRUNCATE, NULL, NULL) != SQLITE_OK)
		return database_failed(db, "making durable what is recorded", e);
	return 0;
}

int database_open(const char *path, struct database **ret, struct error **e)
{
	struct database *db = xcalloc(1, sizeof(*db));
	pthread_mutexattr_t attributes;
	pthread_mutexattr_init(&attributes);
	pthread_mutexattr_settype(&attributes, PTHREAD_MUTEX_RECURSIVE);
	pthread_mutex_init(&db->mutex, &attributes);
	pthread_mutexattr_destroy(&attributes);

	/* SQLite would make it readable for everybody; its log gets the mode of the database. (Only if it is not there: closing a
	 * file lets go of all locks that this process has on it.) What is wrong with the path SQLite says, too. */
	int fd = *path == ':' ? -1 : open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600); /* ":memory:" is no file */
	if (fd >= 0)
		close(fd);
	int flags = SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE | SQLITE_OPEN_NOMUTEX;
	const char *vfs = NULL;
#ifdef FERRY_FAULTS
	vfs = forgetful_vfs();
#endif
	if (sqlite3_open_v2(path, &db->sqlite, flags, vfs) != SQLITE_OK) {
		error_set(e, ERROR_JOURNAL, "cannot open the journal '%s': %s", path,
			  db->sqlite ? sqlite3_errmsg(db->sqlite) : "out of memory");
		database_close(db);
		return -1;
	}
	/* One that was killed lets go of its locks only when its last thread has ended. */
	sqlite3_busy_timeout(db->sqlite, OPEN_PATIENCE_MS);
	/* EXCLUSIVE: a second ferryd on the same journal must fail, not share it; it also keeps the WAL index in memory. */
	if (database_execute(db,
			     "PRAGMA locking_mode=EXCLUSIVE; PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL;"
			     "PRAGMA foreign_keys=ON; PRAGMA cache_size=-256",
			     e) < 0 ||
	    database_make_durable(db, e) < 0 ||
	    database_execute(db, "CREATE TABLE IF NOT EXISTS commit_probe(n INTEGER)", e) < 0) {
		error_wrap(e, "opening the journal '%s'", path);
		database_close(db);
		return -1;
	}
	*ret = db;
	return 0;
}

void database_close(struct database *db)
{
	if (!db)
		return;
	if (db->sqlite)
		(void)!database_settle(db, NULL);
	sqlite3_close(db->sqlite);
	pthread_mutex_destroy(&db->mutex);
	free(db);
}

static int database_prepare(struct database *db, sqlite3_stmt **ret, const char *sql, const char *types, va_list ap,
			    struct error **e)
{
	if (sqlite3_prepare_v2(db->sqlite, sql, -1, ret, NULL) != SQLITE_OK)
		return database_failed(db, sql, e);
	for (int i = 0; types[i]; i++) {
		int status = SQLITE_MISUSE;
		if (types[i] == 's')
			status = sqlite3_bind_text(*ret, i + 1, va_arg(ap, const char *), -1, SQLITE_TRANSIENT);
		else if (types[i] == 'i')
			status = sqlite3_bind_int64(*ret, i + 1, va_arg(ap, int64_t));
		if (status != SQLITE_OK) {
			database_failed(db, sql, e);
			sqlite3_finalize(*ret);
			return -1;
		}
	}
	return 0;
}

int database_run(struct database *db, struct error **e, const char *sql, const char *types, ...)
{
	LOCK_SCOPE(&db->mutex);
	sqlite3_stmt *statement = NULL;
	va_list ap;
	va_start(ap, types);
	int r = database_prepare(db, &statement, sql, types, ap, e);
	va_end(ap);
	if (r < 0)
		return -1;
	bool writes = !sqlite3_stmt_readonly(statement) && sqlite3_get_autocommit(db->sqlite);
	if (writes && database_settle(db, e) < 0) {
		sqlite3_finalize(statement);
		return -1;
	}
	int status = sqlite3_step(statement);
	if (status != SQLITE_DONE && status != SQLITE_ROW) {
		r = database_failed(db, sql, e);
		db->unsettled |= writes && database_outcome_unknown(db);
	} else {
		r = sqlite3_changes(db->sqlite);
	}
	sqlite3_finalize(statement);
	if (r < 0 && writes)
		database_settle_failed(db, e);
	return r;
}

const char *database_text(const struct database_row *row, int column)
{
	const unsigned char *text = sqlite3_column_text(row->statement, column);
	return text ? (const char *)text : "";
}

int64_t database_integer(const struct database_row *row, int column)
{
	return sqlite3_column_int64(row->statement, column);
}

int database_query(struct database *db, struct error **e, int (*on_row)(void *user, const struct database_row *row, struct error **e),
		   void *user, const char *sql, const char *types, ...)
{
	LOCK_SCOPE(&db->mutex);
	struct database_row row = {0};
	va_list ap;
	va_start(ap, types);
	int r = database_prepare(db, &row.statement, sql, types, ap, e);
	va_end(ap);
	if (r < 0)
		return -1;
	int rows = 0, status;
	while ((status = sqlite3_step(row.statement)) == SQLITE_ROW) {
		rows++;
		if (on_row(user, &row, e) < 0) {
			sqlite3_finalize(row.statement);
			return -1;
		}
	}
	if (status != SQLITE_DONE)
		rows = database_failed(db, sql, e);
	sqlite3_finalize(row.statement);
	return rows;
}

int database_transaction(struct database *db, int (*body)(void *user, struct error **e), void *user, struct error **e)
{
	LOCK_SCOPE(&db->mutex);
	if (database_settle(db, e) < 0 || database_execute(db, "BEGIN IMMEDIATE", e) < 0)
		return -1;
	bool done = body(user, e) >= 0;
	if (done && database_execute(db, "COMMIT", e) == 0)
		return 0;
	db->unsettled |= done && database_outcome_unknown(db);
	/* A failed COMMIT may have ended the transaction already; then there is nothing to roll back. */
	if (!sqlite3_get_autocommit(db->sqlite))
		(void)database_execute(db, "ROLLBACK", NULL);
	database_settle_failed(db, e);
	return -1;
}

static int compare_int64(const void *a, const void *b)
{
	int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
	return (x > y) - (x < y);
}

int database_measure_commit_us(struct database *db, int64_t *ret_us, struct error **e)
{
	int64_t took_us[7];
	const size_t runs = sizeof(took_us) / sizeof(took_us[0]);
	for (size_t i = 0; i < runs; i++) {
		int64_t before_us = clock_monotonic_us();
		if (database_run(db, e, "REPLACE INTO commit_probe(rowid, n) VALUES(1, ?)", "i", before_us) < 0)
			return -1;
		took_us[i] = clock_monotonic_us() - before_us;
	}
	qsort(took_us, runs, sizeof(took_us[0]), compare_int64);
	*ret_us = took_us[runs / 2];
	return 0;
}
