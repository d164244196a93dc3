/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One migration as this host sees it, and the list of them. Each side has a record of its own under the same id.
 *
 * A migration is worked on by one thread at a time: at the source its worker (source.c), at the destination whichever
 * request of the source is being answered (destination.c), under `work`. What readers see is guarded by `mutex` and never
 * held during work, so `migration show` answers during every step. Every visible change raises `change` and wakes those
 * who wait for it.
 */
#ifndef FERRY_MIGRATION_MIGRATION_H
#define FERRY_MIGRATION_MIGRATION_H

#include <jansson.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/clock.h"
#include "migration/converge.h"
#include "migration/predict.h"
#include "migration/request.h"
#include "migration/timeline.h"
#include "relay/page_sender.h"
#include "vm/driver.h"
#include "vm/inventory.h"

enum migration_status {
#define MIGRATION_STATUS(symbol, name, ended, meaning, source_waits_for, destination_waits_for) symbol,
#include "migration/status.tbl"
#undef MIGRATION_STATUS
	MIGRATION_STATUS_COUNT
};

enum migration_role { MIGRATION_SOURCE, MIGRATION_DESTINATION };

enum handover_state {
#define HANDOVER_STATE(symbol, name, side, may_run) symbol,
#include "migration/handover.tbl"
#undef HANDOVER_STATE
	HANDOVER_STATE_COUNT
};

const char *migration_status_name(enum migration_status status);
bool migration_status_ended(enum migration_status status);
/* In words, of one of the two sides. */
const char *migration_status_waits_for(enum migration_status status, enum migration_role role);
enum migration_status migration_status_from_name(const char *name);
const char *handover_state_name(enum handover_state state);
enum handover_state handover_state_from_name(const char *name);
/* Whether the table has this step. */
bool handover_step_allowed(enum handover_state from, enum handover_state to);

#define MIGRATION_PHASES_MAX 12
struct migration_phase {
	enum migration_status status;
	int64_t start_us, end_us; /* after the beginning; end 0: still in it */
};

/* Whom a migration in doubt waits for. */
struct migration_wait {
	char *host;	  /* NULL: nobody is waited for */
	const char *what; /* "whether it has taken the VM" */
	int64_t since_us, since_wall_ms;
	unsigned int asked;
	enum error_code last_code; /* what the last question came back with */
	char *last_message;
};

/* What a person has settled (resolve.h). */
struct migration_resolution {
	char *owner, *fenced; /* host names; NULL: nobody has settled anything */
	int64_t at_wall_ms;
	uint64_t epoch; /* of the VM from then on */
};

struct migration {
	/* Fixed at creation. */
	char id[RANDOM_ID_SIZE];
	enum migration_role role;
	char vm_uuid[DEFINITION_UUID_SIZE];
	char *vm_name;
	char *source, *destination; /* host names */
	uint64_t epoch;		    /* of the VM once the destination has taken it */
	int64_t began_wall_ms, began_us;

	/* Read and written by whoever works on it (`work` at the destination). */
	struct migration_request request;
	pthread_mutex_t work;
	enum handover_state handover;
	char peer_journal_id[RANDOM_ID_SIZE]; /* of the other side, exchanged at prepare */
	struct vm *vm;			      /* with its job held while the migration is not settled */
	struct destination_arrival *arrival;  /* the destination's own: arrival.h */
	bool offered;			      /* the baton was offered once: the destination may have the whole of it */
	bool insisting;			      /* a thread of the destination tries again to record that it runs */
	bool awaiting;			      /* a thread of the destination waits for the rest of a post-copy */
	bool settling;			      /* the destination is tidying up after it has answered "running" */
	bool guest_paused;		      /* it was paused before, and stays so after, whoever has it then */
	pthread_t worker;
	bool has_worker;

	/* Guarded by mutex. */
	pthread_mutex_t mutex;
	pthread_cond_t changed;
	uint64_t change;
	enum migration_status status;
	char *owner;
	enum error_code reason_code; /* ERROR_CODE_COUNT: none */
	char *reason_message;
	json_t *failures; /* of checks; NULL when there are none */
	bool abort_requested, too_late_to_abort;
	bool postcopy;		 /* it has come to that: the guest runs at the destination, or is about to, and pages follow */
	bool complete_requested; /* switch now, whatever the pause */
	bool promise_changed;	 /* promise_wanted has not been taken up yet */
	bool promise_settled;	 /* the guest has stopped to switch, or nobody would take a change up any more */
	struct migration_promise promise_wanted;
	bool pause_unknown;	  /* the guest was stopped by an earlier ferryd, and nobody has seen for how long */
	int64_t pause_allowed_ms; /* the longest that was allowed in the end; 0: not known yet */
	struct timeline *timeline; /* NULL: nothing has been copied, or it is kept elsewhere */
	bool timeline_kept;	   /* in the journal, and no longer here */
	struct prediction predicted, predicted_first_pass; /* at the start; and once the whole of memory was sent for the first time */
	int64_t predicted_total_us; /* by the last look; 0: nothing is predicted, negative: it is not going to get there */
	bool promise_was_changed;   /* after the start: what was predicted then is not to be judged by what has become of it */
	bool may_be_resolved; /* somebody works on it who looks for a resolution */
	struct migration_wait wait;
	struct migration_resolution resolution;
	bool cleanup_pending;
	bool relayed;
	struct relay_pipe *pipe; /* of a source: its worker's, as long as that goes on */
	struct page_sender_counts pages; /* of a source, by the relay: how they went */
	bool encrypted;
	struct migration_phase phases[MIGRATION_PHASES_MAX];
	size_t phase_count;
	int64_t total_us, downtime_us, setup_ms, qemu_total_ms;
	uint64_t wire_bytes, ram_bytes;
	unsigned int iterations;
	struct move_sample progress; /* the last look at the copy */
	json_t *archived;	     /* the view of a migration of an earlier run of ferryd */

	unsigned int references;
	struct migration *next;
};

/* So many are remembered; of older ones that have ended only the journal's decision is. */
#define MIGRATIONS_KEPT 1000

struct migration_list;
struct migration_list *migration_list_new(void);
void migration_list_free(struct migration_list *list);

/* A new record with one reference of the caller and one of the list. */
struct migration *migration_new(struct migration_list *list, const char *id /* NULL: a new one */, enum migration_role role,
				const char *vm_name, const char *vm_uuid, const char *source, const char *destination,
				uint64_t epoch);
/* By id or a unique beginning of at least four digits; a reference is the caller's. */
int migration_find(struct migration_list *list, const char *id, struct migration **ret, struct error **e) MUST_CHECK;
struct migration *migration_ref(struct migration *migration);
void migration_unref(struct migration *migration);
void migration_list_remove(struct migration_list *list, struct migration *migration);
/* Call visit for each, newest first, with a reference held. */
void migration_list_each(struct migration_list *list, void (*visit)(void *user, struct migration *migration), void *user);

/* What the API shows (DESIGN 7); the caller owns it. */
json_t *migration_view(struct migration *migration);
json_t *migration_list_view(struct migration_list *list);
/* {owner, fenced, epoch, at_ms}, or null. Its migration's mutex is held. */
json_t *migration_view_resolution(const struct migration_resolution *resolution);

/* ---- changes, by whoever works on it ---- */
/* The one function that changes the status: it ends the phase, begins the next, logs, wakes. */
void migration_set_status(struct migration *migration, enum migration_status status);
void migration_set_owner(struct migration *migration, const char *host);
void migration_set_pause_unknown(struct migration *migration);
void migration_set_reason(struct migration *migration, enum error_code code, const char *message);
/* It is in doubt: `host` has been asked `what` (a string that stays) once more, without an answer that settles it. */
void migration_set_in_doubt(struct migration *migration, const char *host, const char *what, const struct error *last);
/* The same, with another status than in doubt: recovering. */
void migration_set_waiting(struct migration *migration, enum migration_status status, const char *host, const char *what,
			   const struct error *last);
bool migration_in_doubt(struct migration *migration);
/* The guest is about to be in two places: from here on it can be neither aborted nor changed. False when somebody has asked for an
 * abort before. By the worker. */
bool migration_begin_postcopy(struct migration *migration);
/* It was found to be so already. */
void migration_set_postcopy(struct migration *migration);
/* The doubt has been cleared up; the next status is the caller's affair. */
void migration_clear_doubt(struct migration *migration);
void migration_set_cleanup_pending(struct migration *migration, bool pending);
void migration_set_resolution(struct migration *migration, const char *owner, const char *fenced, uint64_t epoch, int64_t at_wall_ms);
/* The source's side of it, in which the other host's answer may come at the same moment. Between these two calls a person may
 * settle it. `answered`: the other host has decided by itself, so what a person has settled meanwhile counts for nothing. */
void migration_begin_settling(struct migration *migration);
void migration_end_settling(struct migration *migration, bool answered);
/* Settle it if it is in doubt, may be settled, and nobody has done so before; else false, with its status. */
bool migration_try_resolve(struct migration *migration, const char *owner, const char *fenced, enum migration_status *ret_status);
/* The epoch that a person has settled on, 0 if nobody has; *ret_owner (may be NULL) is the caller's. */
uint64_t migration_resolution_epoch(struct migration *migration, char **ret_owner);
void migration_set_pages(struct migration *migration, const struct page_sender_counts *pages);
void migration_set_progress(struct migration *migration, const struct move_sample *sample);
/* Lock-free helpers are not needed: small changes are made between these two. The second wakes the waiters. */
void migration_lock(struct migration *migration);
void migration_unlock_changed(struct migration *migration);
bool migration_abort_requested(struct migration *migration);
/* Take up a promise that has been changed meanwhile; false when there is none. By the worker. */
bool migration_take_promise(struct migration *migration);
/* From here on nothing of the promise can be changed: the switch goes on, with a pause of at most so much. False when there
 * is a change that must be taken up first. By the worker. */
bool migration_settle_promise(struct migration *migration, int64_t pause_allowed_ms);
bool migration_complete_requested(struct migration *migration);
/* One more look at the copy, with what QEMU has been told by then; and a decision, in words. */
void migration_note_sample(struct migration *migration, const struct move_sample *sample, const struct converge_settings *settings);
void migration_note_decision(struct migration *migration, const char *words);
/* What is to be expected by now; `kept`, where it is not NULL, is the one of the two above that it is to be remembered as. */
void migration_note_prediction(struct migration *migration, const struct prediction *prediction, struct prediction *kept);
/* What has been noted, for the API; NULL when it is in the journal by now (journal_timeline() knows both). */
json_t *migration_timeline_view(struct migration *migration);
/* It is in the journal: nothing will be noted any more. */
void migration_forget_timeline(struct migration *migration);
bool migration_ended(struct migration *migration);
/* Ended, and nothing of it will change any more. */
bool migration_final(struct migration *migration);
/* Wait until change differs from seen (true) or the monotonic deadline passes (false). */
bool migration_wait_change(struct migration *migration, uint64_t seen, int64_t deadline_us);

#endif
