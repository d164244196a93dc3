/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The journal; see journal.h. A step is one transaction: the migration's row moves from the state that it must be in, and
 * the VM's row gets the owner that the step means. If the row is not in that state, somebody else has decided: the step
 * fails and nothing changes.
 */
#include "migration/journal.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/fault.h"
#include "base/json.h"
#include "base/log.h"
#include "base/xalloc.h"

struct journal {
	struct database *db;
	struct inventory *inventory;
	char id[RANDOM_ID_SIZE];
	int64_t commit_us;
};

static const char *const schema[] = {
	"CREATE TABLE IF NOT EXISTS journal(id TEXT NOT NULL) STRICT",
	"CREATE TABLE IF NOT EXISTS migration("
	" id TEXT NOT NULL, role TEXT NOT NULL, state TEXT NOT NULL, vm_uuid TEXT NOT NULL, vm_name TEXT NOT NULL,"
	" source TEXT NOT NULL, destination TEXT NOT NULL, epoch INTEGER NOT NULL, peer_journal TEXT NOT NULL,"
	" began_ms INTEGER NOT NULL, ended INTEGER NOT NULL, paused INTEGER NOT NULL, keep INTEGER NOT NULL,"
	" offered INTEGER NOT NULL DEFAULT 0, view TEXT,"
	" PRIMARY KEY(id, role)) STRICT",
	/* Apart from the views: it is read only when somebody asks for it. Numbered in the order of writing. */
	"CREATE TABLE IF NOT EXISTS timeline("
	" number INTEGER PRIMARY KEY, migration_id TEXT NOT NULL, role TEXT NOT NULL, view TEXT NOT NULL,"
	" UNIQUE(migration_id, role),"
	" FOREIGN KEY(migration_id, role) REFERENCES migration(id, role) ON DELETE CASCADE) STRICT",
};

static const char *role_name(enum migration_role role)
{
	return role == MIGRATION_SOURCE ? "source" : "destination";
}

static int read_id(void *user, const struct database_row *row, struct error **e)
{
	(void)e;
	struct journal *journal = user;
	snprintf(journal->id, sizeof(journal->id), "%s", database_text(row, 0));
	return 0;
}

int journal_open(struct database *db, struct inventory *inventory, struct journal **ret, struct error **e)
{
	struct journal *journal = xcalloc(1, sizeof(*journal));
	journal->db = db;
	journal->inventory = inventory;
	for (size_t i = 0; i < sizeof(schema) / sizeof(schema[0]); i++)
		if (database_run(db, e, schema[i], "") < 0)
			goto free_journal;
	int rows = database_query(db, e, read_id, journal, "SELECT id FROM journal", "");
	if (rows == 0) {
		random_id(journal->id);
		rows = database_run(db, e, "INSERT INTO journal(id) VALUES(?)", "s", journal->id);
	}
	if (rows < 0 || database_measure_commit_us(db, &journal->commit_us, e) < 0)
		goto free_journal;
	*ret = journal;
	return 0;

free_journal:
	free(journal);
	return -1;
}

void journal_free(struct journal *journal)
{
	free(journal);
}

const char *journal_id(const struct journal *journal)
{
	return journal->id;
}

int64_t journal_commit_us(const struct journal *journal)
{
	return journal->commit_us;
}

int journal_settle(struct journal *journal, struct error **e)
{
	return database_settle(journal->db, e);
}

struct step {
	struct journal *journal;
	struct migration *migration;
	enum handover_state to;
	const struct journal_ownership *ownership;
};

static int step_body(void *user, struct error **e)
{
	const struct step *step = user;
	const struct migration *migration = step->migration;
	struct database *db = step->journal->db;
	const struct journal_ownership *ownership = step->ownership;
	int changed;
	if (migration->handover == HANDOVER_NONE)
		changed = database_run(
			db, e,
			"INSERT INTO migration(id, role, state, vm_uuid, vm_name, source, destination, epoch, peer_journal, began_ms,"
			" ended, paused, keep) VALUES(?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 0, ?, ?)",
			"sssssssisiii", migration->id, role_name(migration->role), handover_state_name(step->to),
			migration->vm_uuid, migration->vm_name, migration->source, migration->destination,
			(int64_t)migration->epoch, migration->peer_journal_id, migration->began_wall_ms,
			(int64_t)migration->guest_paused, (int64_t)migration->request.keep_source_definition);
	else
		changed = database_run(db, e,
				       "UPDATE migration SET state = ?, peer_journal = ?, paused = ?, offered = ?"
				       " WHERE id = ? AND role = ? AND state = ?",
				       "ssiisss", handover_state_name(step->to), migration->peer_journal_id,
				       (int64_t)migration->guest_paused,
				       (int64_t)(migration->offered || step->to == HANDOVER_OFFERED), migration->id,
				       role_name(migration->role), handover_state_name(migration->handover));
	if (changed < 0)
		return error_wrap(e, "recording '%s'", handover_state_name(step->to));
	if (changed != 1)
		return error_set(e, ERROR_JOURNAL, "migration %s is no longer '%s' in the journal", migration->id,
				 handover_state_name(migration->handover));
	/* Whoever opens a migration has the VM's job: every earlier one of it here is over, also where its end could not be written.
	 * Taken up again after a restart, it would release, or resume, what belongs to a later one. */
	if (migration->handover == HANDOVER_NONE && step->to != HANDOVER_REFUSED &&
	    database_run(db, e, "UPDATE migration SET ended = 1 WHERE vm_uuid = ? AND id <> ? AND ended = 0", "ss",
			 migration->vm_uuid, migration->id) < 0)
		return error_wrap(e, "closing earlier migrations");
	if (ownership && vm_write_row(step->journal->inventory, ownership->vm, ownership->owner, ownership->epoch,
				      ownership->definition, e) < 0)
		return -1;
	return 0;
}

static const struct {
	enum fault_point before, after;
} step_points[HANDOVER_STATE_COUNT] = {
	[HANDOVER_HOLDS] = {FAULT_BEFORE_HOLDS, FAULT_AFTER_HOLDS},
	[HANDOVER_OFFERED] = {FAULT_BEFORE_OFFERED, FAULT_AFTER_OFFERED},
	[HANDOVER_RELEASED] = {FAULT_BEFORE_RELEASED, FAULT_AFTER_RELEASED},
	[HANDOVER_PREPARED] = {FAULT_BEFORE_PREPARED, FAULT_AFTER_PREPARED},
	[HANDOVER_TAKEN] = {FAULT_BEFORE_TAKEN, FAULT_AFTER_TAKEN},
	[HANDOVER_RUNNING] = {FAULT_BEFORE_RUNNING, FAULT_AFTER_RUNNING},
	[HANDOVER_REFUSED] = {FAULT_BEFORE_REFUSED, FAULT_AFTER_REFUSED},
};

/* Right before a record, which may not be writable. */
static int pass_before(enum fault_point point, struct error **e)
{
	if (fault_pass(point, NULL) == FAULT_ERROR)
		return error_set(e, ERROR_JOURNAL, "the journal cannot be written, for a test");
	return 0;
}

int journal_step(struct journal *journal, struct migration *migration, enum handover_state to,
		 const struct journal_ownership *ownership, struct error **e)
{
	assert(handover_step_allowed(migration->handover, to));
	struct step step = {journal, migration, to, ownership};
	bool back = migration->handover == HANDOVER_OFFERED && to == HANDOVER_HOLDS;
	if (pass_before(back ? FAULT_BEFORE_TAKEN_BACK : step_points[to].before, e) < 0 ||
	    database_transaction(journal->db, step_body, &step, e) < 0)
		return -1;
	FAULT(back ? FAULT_AFTER_TAKEN_BACK : step_points[to].after);
	log_info("handover=%s", handover_state_name(to));
	migration_lock(migration); /* its worker reads it without, readers do not */
	migration->handover = to;
	migration->offered |= to == HANDOVER_OFFERED;
	migration_unlock_changed(migration);
	if (ownership)
		vm_apply(journal->inventory, ownership->vm, ownership->owner, ownership->epoch, ownership->definition);
	return 0;
}

/* As many as there are views. Returns how many rows were written: 0 where the journal has no such migration, as of one that the
 * checks have refused. */
static int write_timeline(struct journal *journal, const struct migration *migration, const char *text, struct error **e)
{
	int written = database_run(journal->db, e,
				   "REPLACE INTO timeline(migration_id, role, view)"
				   " SELECT id, role, ? FROM migration WHERE id = ? AND role = ?",
				   "sss", text, migration->id, role_name(migration->role));
	if (written > 0 && database_run(journal->db, e,
					"DELETE FROM timeline WHERE number <= (SELECT MAX(number) FROM timeline) - ?", "i",
					(int64_t)MIGRATIONS_KEPT) < 0)
		return -1;
	return written;
}

/* The destination measures nothing. */
static void keep_timeline(struct journal *journal, struct migration *migration)
{
	cleanup_error struct error *e = NULL;
	cleanup_json json_t *timeline = migration->role == MIGRATION_SOURCE ? migration_timeline_view(migration) : NULL;
	if (!timeline)
		return;
	cleanup_free char *text = json_text(timeline);
	int written = write_timeline(journal, migration, text, &e);
	if (written < 0)
		log_failure(LOG_LEVEL_WARNING, "cannot keep how the copy went", e);
	else if (written > 0)
		migration_forget_timeline(migration);
}

static int read_timeline(void *user, const struct database_row *row, struct error **e)
{
	const char *text = database_text(row, 0);
	return json_parse(text, strlen(text), user, e);
}

int journal_timeline(struct journal *journal, struct migration *migration, json_t **ret, struct error **e)
{
	json_t *timeline = migration_timeline_view(migration);
	if (!timeline && database_query(journal->db, e, read_timeline, &timeline,
					"SELECT view FROM timeline WHERE migration_id = ? AND role = ?", "ss", migration->id,
					role_name(migration->role)) < 0)
		return -1;
	if (!timeline)
		return error_set(e, ERROR_MIGRATION_NO_TIMELINE, "how migration %s went has not been kept", migration->id);
	*ret = timeline;
	return 0;
}

int journal_keep_view(struct journal *journal, struct migration *migration, struct error **e)
{
	cleanup_json json_t *view = migration_view(migration);
	cleanup_free char *text = json_text(view);
	int64_t ended = json_is_true(json_object_get(view, "ended"));
	if (pass_before(FAULT_BEFORE_ENDED, e) < 0 ||
	    database_run(journal->db, e, "UPDATE migration SET view = ?, ended = ? WHERE id = ? AND role = ?", "siss", text, ended,
			 migration->id, role_name(migration->role)) < 0)
		return -1;
	if (ended)
		keep_timeline(journal, migration);
	FAULT(FAULT_AFTER_ENDED);
	return 0;
}

static int read_state(void *user, const struct database_row *row, struct error **e)
{
	(void)e;
	*(enum handover_state *)user = handover_state_from_name(database_text(row, 0));
	return 0;
}

int journal_state(struct journal *journal, const char *migration_id, enum handover_state *ret, struct error **e)
{
	enum handover_state state = HANDOVER_NONE;
	if (database_query(journal->db, e, read_state, &state,
			   "SELECT state FROM migration WHERE id = ? AND role = 'destination'", "s", migration_id) < 0)
		return -1;
	*ret = state;
	return 0;
}

int journal_refuse_unknown(struct journal *journal, const char *migration_id, const char *vm_uuid, const char *source,
			   uint64_t epoch, struct error **e)
{
	if (pass_before(FAULT_BEFORE_REFUSED, e) < 0 ||
	    database_run(journal->db, e,
			 "INSERT OR IGNORE INTO migration(id, role, state, vm_uuid, vm_name, source, destination, epoch,"
			 " peer_journal, began_ms, ended, paused, keep) VALUES(?, 'destination', 'refused', ?, '', ?, '', ?, '', ?, 1, 0, 0)",
			 "sssii", migration_id, vm_uuid, source, (int64_t)epoch, clock_wall_ms()) < 0)
		return -1;
	FAULT(FAULT_AFTER_REFUSED);
	return 0;
}

struct load {
	struct migration_list *list;
};

static const char *json_text_of(const json_t *object, const char *key)
{
	const char *text = json_string_value(json_object_get(object, key));
	return text ? text : "";
}

/* A row of an earlier run: what has ended is shown as it was; what has not is left for recovery, with its state. */
static int load_row(void *user, const struct database_row *row, struct error **e)
{
	struct load *load = user;
	enum migration_role role = strcmp(database_text(row, 1), "source") == 0 ? MIGRATION_SOURCE : MIGRATION_DESTINATION;
	enum handover_state state = handover_state_from_name(database_text(row, 2));
	if (state == HANDOVER_STATE_COUNT)
		return error_set(e, ERROR_JOURNAL, "migration %s has the unknown state '%s'", database_text(row, 0),
				 database_text(row, 2));
	bool ended = database_integer(row, 10);
	const char *text = database_text(row, 13);
	if (ended && !*text)
		return 0; /* a tombstone of a migration that was never here */
	cleanup_json json_t *view = NULL;
	enum migration_status status = MIGRATION_STATUS_COUNT;
	if (ended && json_parse(text, strlen(text), &view, NULL) == 0)
		status = migration_status_from_name(json_text_of(view, "status"));
	if (ended && (status == MIGRATION_STATUS_COUNT || !migration_status_ended(status))) {
		/* What was decided stands in the other columns; it must not be taken up again for want of words about it. */
		log_warning("the record of migration %s cannot be read; it is not shown", database_text(row, 0));
		return 0;
	}
	struct migration *migration = migration_new(load->list, database_text(row, 0), role, database_text(row, 4),
						    database_text(row, 3), database_text(row, 5), database_text(row, 6),
						    (uint64_t)database_integer(row, 7));
	migration->handover = state;
	migration->began_wall_ms = database_integer(row, 9);
	migration->guest_paused = database_integer(row, 11);
	migration->offered = database_integer(row, 14);
	migration->request.keep_source_definition = database_integer(row, 12);
	snprintf(migration->peer_journal_id, sizeof(migration->peer_journal_id), "%s", database_text(row, 8));
	if (ended) {
		migration->status = status;
		migration->timeline_kept = role == MIGRATION_SOURCE;
		migration->cleanup_pending = json_is_true(json_object_get(view, "cleanup_pending"));
		const json_t *resolved = json_object_get(view, "resolved");
		if (json_is_object(resolved))
			migration_set_resolution(migration, json_text_of(resolved, "owner"), json_text_of(resolved, "fenced"),
						 (uint64_t)json_integer_value(json_object_get(resolved, "epoch")),
						 json_integer_value(json_object_get(resolved, "at_ms")));
		migration->archived = take_ptr(view);
	}
	migration_unref(migration);
	return 0;
}

int journal_load(struct journal *journal, struct migration_list *list, struct error **e)
{
	struct load load = {list};
	/* The decisions stay, in case somebody asks late; the words about them go. */
	if (database_run(journal->db, e,
			 "UPDATE migration SET view = NULL WHERE ended = 1 AND view IS NOT NULL AND began_ms <"
			 " (SELECT MIN(began_ms) FROM (SELECT began_ms FROM migration ORDER BY began_ms DESC LIMIT ?))",
			 "i", (int64_t)MIGRATIONS_KEPT) < 0 ||
	    database_run(journal->db, e,
			 "DELETE FROM timeline WHERE (migration_id, role) IN (SELECT id, role FROM migration WHERE view IS NULL)", "") < 0)
		return -1;
	return database_query(journal->db, e, load_row, &load,
			      "SELECT id, role, state, vm_uuid, vm_name, source, destination, epoch, peer_journal, began_ms, ended,"
			      " paused, keep, view, offered FROM migration ORDER BY began_ms",
			      "") < 0
		       ? -1
		       : 0;
}
