/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A small durable database (SQLite, WAL, synchronous=FULL): a commit that has returned survives a power cut, and what a
 * database that was opened says can be acted upon: it would say so after a power cut too.
 *
 * A write that fails has not happened and never will, with one exception. When a commit's last sync fails, the disk may have it
 * or not. Then a small commit of another table is tried at once, which takes its place; only if that fails too does the error say
 * that the outcome is not known, and nothing else is written before that has been settled (database_settle()). If the process ends
 * first, whoever opens the database next finds one or the other.
 *
 * One connection, one lock: any thread may call; a transaction holds the lock, and the calls that its body makes from the
 * same thread belong to it. Errors have code ERROR_JOURNAL.
 *
 * Values are given by a string of types: 's' const char * (NULL is SQL NULL), 'i' int64_t.
 */
#ifndef FERRY_BASE_DATABASE_H
#define FERRY_BASE_DATABASE_H

#include <stdint.h>

#include "base/error.h"

struct database;

int database_open(const char *path, struct database **ret, struct error **e) MUST_CHECK;
void database_close(struct database *db);

/* One statement without rows. Returns the number of rows changed. */
int database_run(struct database *db, struct error **e, const char *sql, const char *types, ...) MUST_CHECK;

/* A row of a query: columns by number; text is borrowed until the callback returns ("" for NULL). */
struct database_row;
const char *database_text(const struct database_row *row, int column);
int64_t database_integer(const struct database_row *row, int column);
/* Call on_row for each row; a negative return of it stops the query with its error. Returns the number of rows. */
int database_query(struct database *db, struct error **e, int (*on_row)(void *user, const struct database_row *row, struct error **e),
		   void *user, const char *sql, const char *types, ...) MUST_CHECK;

/* Run body in one transaction: all of it is durable when this returns 0, nothing of it has happened otherwise
 * (but see above). */
int database_transaction(struct database *db, int (*body)(void *user, struct error **e), void *user, struct error **e) MUST_CHECK;

/* 0: no write whose outcome is not known is left. Call it before an act that may only be done if an earlier write that failed
 * has really not happened; costs nothing when none has failed. */
int database_settle(struct database *db, struct error **e) MUST_CHECK;

/* What one durable commit costs here: the median of a few, measured by writing. */
int database_measure_commit_us(struct database *db, int64_t *ret_us, struct error **e) MUST_CHECK;

#endif
