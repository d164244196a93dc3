/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The journal: what each side of a handover has durably decided. One row a migration and side, in the same database as the
 * VMs' ownership, so that a step of the baton and the change of owner that it means are one commit. A record is durable
 * before the act that it names. Any thread.
 */
#ifndef FERRY_MIGRATION_JOURNAL_H
#define FERRY_MIGRATION_JOURNAL_H

#include "base/database.h"
#include "migration/migration.h"

struct journal;

int journal_open(struct database *db, struct inventory *inventory, struct journal **ret, struct error **e) MUST_CHECK;
void journal_free(struct journal *journal);
/* A random id made with the journal: a peer that has lost its journal has another one. */
const char *journal_id(const struct journal *journal);
/* What one durable record costs here, measured at start. */
int64_t journal_commit_us(const struct journal *journal);

/* A change of who owns the VM that goes with a step. */
struct journal_ownership {
	struct vm *vm;
	const char *owner;
	uint64_t epoch;
	struct definition *definition; /* what stays defined here: vm->definition, another (stolen on success), or NULL */
};
/* Take a step of the baton (asserts that the table allows it): durable when it returns 0; migration->handover and the VM
 * follow only then. ownership may be NULL. The first step of a migration makes its row. */
int journal_step(struct journal *journal, struct migration *migration, enum handover_state to,
		 const struct journal_ownership *ownership, struct error **e) MUST_CHECK;
/* 0 when every step that failed is certain not to have been taken. Where the disk fails in the middle of a record, nobody can tell
 * whether it is there, and a ferryd that is started later may find that it is: so ask before doing what only the state before
 * that step allows. */
int journal_settle(struct journal *journal, struct error **e) MUST_CHECK;
/* Keep the final (or latest) view of the migration; with the source's final one its timeline, which leaves memory by that. That
 * the timeline cannot be written is no failure. */
int journal_keep_view(struct journal *journal, struct migration *migration, struct error **e) MUST_CHECK;
/* How the copy went (timeline.h), out of memory or out of the journal; the caller owns *ret. ERROR_MIGRATION_NO_TIMELINE when none
 * was kept. */
int journal_timeline(struct journal *journal, struct migration *migration, json_t **ret, struct error **e) MUST_CHECK;
/* The state of a migration that is not in memory: HANDOVER_NONE when the journal does not know it. */
int journal_state(struct journal *journal, const char *migration_id, enum handover_state *ret, struct error **e) MUST_CHECK;
/* A tombstone for a migration that was never prepared here. */
int journal_refuse_unknown(struct journal *journal, const char *migration_id, const char *vm_uuid, const char *source,
			   uint64_t epoch, struct error **e) MUST_CHECK;
/* Read all rows into the list, unended ones with their state, for recovery and for showing. */
int journal_load(struct journal *journal, struct migration_list *list, struct error **e) MUST_CHECK;

#endif
