/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The source's end of the handover: ask the destination until it has decided, then release the VM, or take it back. See
 * source.c for the whole, and handover.tbl for what each state allows.
 */
#include "migration/source_steps.h"

#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/fault.h"
#include "base/json.h"
#include "base/log.h"
#include "base/xalloc.h"
#include "migration/resolve.h"

#define REFUSE_RETRY_FIRST_MS 500
#define FORGET_TIMEOUT_MS 1000
#define QMP_CANCEL_TIMEOUT_MS 20000
/* Between two questions, when finish goes unanswered and the migration is in doubt. */
#define FINISH_RETRY_FIRST_MS 200
#define FINISH_RETRY_MAX_MS 5000
#define JOURNAL_RETRY_MS 1000
#define RESOLUTION_LOOK_MS 200 /* how soon what a person settles meanwhile is seen */

/* ---- finish ---- */

/* Where the destination listens for another stream, if it was asked to. */
static int source_read_mended(struct source *s, const json_t *answer, struct error **e)
{
	int64_t port = 0;
	const char *address = NULL;
	s->mend_port = 0;
	if (!s->mend)
		return 0;
	if (json_get_integer_opt(answer, "port", 1, UINT16_MAX, &port, e) < 0 ||
	    json_get_string_opt(answer, "address", &address, e) < 0)
		return -1;
	if (address && snprintf(s->data_address, sizeof(s->data_address), "%s", address) >= (int)sizeof(s->data_address))
		return error_set(e, ERROR_PEER_PROTOCOL, "the destination's data address is too long");
	s->mend_port = (uint16_t)port;
	return 0;
}

enum finish_answer source_ask_outcome(struct source *s, enum peer_message asked, int64_t timeout_ms, struct error **e)
{
	cleanup_json json_t *body = json_pack("{ss ss sI ss sb}", "migration", s->migration->id, "vm_uuid",
					      s->migration->vm_uuid, "epoch", (json_int_t)s->migration->epoch, "source",
					      s->host->name, "dry_run", (int)!s->destination_prepared);
	cleanup_json json_t *answer = NULL;
	/* While the question is still open, what a person settles meanwhile is not part of it: it may be the opposite. */
	uint64_t resolved_epoch = s->settling ? 0 : migration_resolution_epoch(s->migration, NULL);
	if (resolved_epoch)
		json_object_set_new(body, "resolved_epoch", json_integer((json_int_t)resolved_epoch));
	if (s->mend) {
		json_object_set_new(body, "mend", json_true());
		if (*s->tls_key_hex)
			json_object_set_new(body, "tls_key_hex", json_string(s->tls_key_hex));
	}
	if (!s->peer && peers_take(s->host->peers, s->migration->destination, &s->peer, e) < 0)
		return FINISH_NO_ANSWER;
	http_client_set_interrupt(s->peer, source_stopping, s);
	const struct peer_question question = {asked, s->migration->destination, s->migration->id, body, timeout_ms};
	if (peers_ask(s->peer, &question, &answer, NULL, e) < 0) {
		peers_give_back(s->host->peers, s->migration->destination, take_ptr(s->peer), true);
		return FINISH_NO_ANSWER;
	}
	const char *state = NULL, *journal = NULL, *message = NULL;
	int64_t took_us = 0;
	if (json_get_string(answer, "state", &state, e) < 0 || json_get_string(answer, "journal", &journal, e) < 0 ||
	    json_get_string_opt(answer, "message", &message, e) < 0 ||
	    json_get_integer_opt(answer, "took_us", 0, INT64_MAX, &took_us, e) < 0)
		return FINISH_NO_ANSWER;
	s->settled_there = json_is_true(json_object_get(answer, "settled"));
	s->done_there = !json_is_false(json_object_get(answer, "done"));
	s->lost_there = json_is_true(json_object_get(answer, "lost"));
	if (source_read_mended(s, answer, e) < 0)
		return FINISH_NO_ANSWER;
	int64_t wire_us = http_client_last_us(s->peer) - took_us;
	s->round_trip_us = wire_us > 0 ? wire_us : 0;
	/* A journal other than the one that it prepared with proves nothing, whatever it says: a refusal is written into a
	 * new one for the mere question, although the guest may run there. */
	const bool same_journal = strcmp(journal, s->migration->peer_journal_id) == 0;
	if (same_journal && strcmp(state, handover_state_name(HANDOVER_RUNNING)) == 0)
		return FINISH_RUNNING;
	if (same_journal && strcmp(state, handover_state_name(HANDOVER_REFUSED)) == 0) {
		error_set(e, ERROR_PEER_REFUSED, "%s", message ? message : "the destination refused");
		return FINISH_REFUSED;
	}
	/* It does not know the migration: then it never took the VM. */
	if (same_journal && strcmp(state, handover_state_name(HANDOVER_NONE)) == 0) {
		error_set(e, ERROR_PEER_REFUSED, "the destination never prepared this migration");
		return FINISH_REFUSED;
	}
	error_set(
		e, ERROR_MIGRATION_IN_DOUBT,
		"%s answers '%s' with journal %s, but prepared with journal %s: it cannot tell whether it took the VM",
		s->migration->destination, state, journal, s->migration->peer_journal_id);
	return FINISH_NO_ANSWER;
}

/* Whether a person has settled it while the question was repeated. */
static enum finish_answer source_resolved(struct source *s, struct error **e)
{
	cleanup_free char *owner = NULL;
	if (!migration_resolution_epoch(s->migration, &owner))
		return FINISH_NO_ANSWER;
	bool here = strcmp(owner, s->host->name) == 0;
	if (here)
		error_set(e, ERROR_MIGRATION_RESOLVED,
			  "a person has settled that %s owns the VM, and stated that %s is fenced; the guest is left paused: if it"
			  " may have run on %s, stop and start it, else resume it",
			  owner, s->migration->destination, s->migration->destination);
	else
		error_set(e, ERROR_MIGRATION_RESOLVED, "a person has settled that %s owns the VM", owner);
	return here ? FINISH_RESOLVED_HERE : FINISH_RESOLVED_THERE;
}

/* Wait before the next question, as long as there need be one. */
static void source_wait_between(struct source *s, int64_t wait_ms)
{
	for (int64_t slice_ms; wait_ms > 0; wait_ms -= slice_ms) {
		slice_ms = wait_ms < RESOLUTION_LOOK_MS ? wait_ms : RESOLUTION_LOOK_MS;
		if (migration_host_wait_stopping(s->host, slice_ms) || migration_resolution_epoch(s->migration, NULL))
			return;
	}
}

/* Twice as long the next time, but no longer than the limit of the configuration. */
static int64_t source_longer_wait_ms(const struct source *s, int64_t wait_ms)
{
	return wait_ms * 2 > s->host->times.retry_limit_ms ? s->host->times.retry_limit_ms : wait_ms * 2;
}

/* Repeat the question (finish, or refuse where that is all that may still be asked) until the destination has
 * decided, or a person has. Returns FINISH_NO_ANSWER only when ferryd is stopping. */
static enum finish_answer source_finish(struct source *s, enum peer_message question, struct error **e)
{
	struct migration *migration = s->migration;
	int64_t wait_ms = FINISH_RETRY_FIRST_MS;
	migration_begin_settling(migration);
	s->settling = true;
	for (;;) {
		struct error *problem = NULL;
		enum finish_answer answer = source_ask_outcome(s, question, s->host->times.finish_timeout_ms, &problem);
		if (answer == FINISH_NO_ANSWER && !migration_host_stopping(s->host)) {
			log_failure(LOG_LEVEL_WARNING, "no answer from the destination; asking again", problem);
			migration_set_in_doubt(migration, migration->destination, "whether it has taken the VM", problem);
			error_free(take_ptr(problem));
			source_wait_between(s, wait_ms);
			answer = source_resolved(s, &problem);
		}
		if (answer != FINISH_NO_ANSWER || migration_host_stopping(s->host)) {
			if (answer != FINISH_NO_ANSWER)
				migration_clear_doubt(migration);
			migration_end_settling(migration, answer == FINISH_RUNNING || answer == FINISH_REFUSED);
			s->settling = false;
			error_move(e, problem);
			return answer;
		}
		wait_ms = source_longer_wait_ms(s, wait_ms);
		if (wait_ms > FINISH_RETRY_MAX_MS)
			wait_ms = FINISH_RETRY_MAX_MS;
	}
}

/* ---- confirm ---- */

void source_end(struct source *s, enum migration_status status)
{
	cleanup_error struct error *e = NULL;
	/* Whoever reads the new status may want the VM at once. */
	inventory_job_ends_soon(s->host->inventory, s->migration->vm);
	migration_set_status(s->migration, status);
	if (journal_keep_view(s->host->journal, s->migration, &e) < 0)
		log_failure(LOG_LEVEL_WARNING, "cannot keep the result", e);
}

int source_confirm(struct source *s, struct error **e)
{
	struct migration *migration = s->migration;
	const uint64_t resolved_epoch = migration_resolution_epoch(migration, NULL);
	struct vm *vm = migration->vm;
	struct journal_ownership gone = {
		.vm = vm,
		.owner = migration->destination,
		.epoch = resolved_epoch ? resolved_epoch : migration->epoch,
		/* Given away unheard: the destination may have refused and forgotten it, so what is known here is kept. */
		.definition = migration->request.keep_source_definition || resolved_epoch ? vm->definition : NULL,
	};
	if (migration->handover == HANDOVER_OFFERED &&
	    journal_step(s->host->journal, migration, HANDOVER_RELEASED, &gone, e) < 0)
		return -1;
	migration_set_owner(migration, migration->destination);
	struct error *problem = NULL;
	FAULT(FAULT_SOURCE_RELEASED);
	if (vm_end(s->host->inventory, vm, &problem) < 0) {
		/* The VM runs over there; what is left here is a process that has been told to end, and cannot yet (a disk that
		 * hangs, say). The inventory tidies up when it has. */
		log_failure(LOG_LEVEL_WARNING, "cannot end the source's QEMU", problem);
		migration_set_cleanup_pending(s->migration, true);
		s->remains = true;
		error_free(problem);
	}
	return 0;
}

/* ---- the way back ---- */

/* Keep the first error; nobody is helped if a port that does not open keeps the guest from running on. */
static void keep_first(struct error **first, struct error **next)
{
	if (*next)
		log_failure(LOG_LEVEL_ERROR, "on the way back", *next);
	if (*first)
		error_free(*next);
	else
		*first = *next;
	*next = NULL;
}

/* The VM is ours again. Where a person has settled it, with a higher epoch: whatever the destination believes of the one
 * that it was offered is void. */
static int source_record_holds(struct source *s, struct error **e)
{
	struct migration *migration = s->migration;
	struct vm *vm = migration->vm;
	uint64_t epoch = migration_resolution_epoch(migration, NULL);
	if (migration->handover != HANDOVER_OFFERED)
		return 0;
	struct journal_ownership ours = {.vm = vm, .owner = s->host->name, .epoch = epoch, .definition = vm->definition};
	return journal_step(s->host->journal, migration, HANDOVER_HOLDS, epoch ? &ours : NULL, e);
}

/* A step that must be recorded before anything else is done: the guest stays stopped until the journal can be written again.
 * Fails only when ferryd is stopping. */
static int source_insist(struct source *s, int (*record)(struct source *s, struct error **e), struct error **e)
{
	for (;;) {
		struct error *problem = NULL;
		if (record(s, &problem) == 0) {
			migration_clear_doubt(s->migration);
			return 0;
		}
		log_failure(LOG_LEVEL_ERROR, "the journal cannot be written; trying again", problem);
		migration_set_in_doubt(s->migration, s->host->name, "whether its journal can be written", problem);
		if (migration_host_wait_stopping(s->host, JOURNAL_RETRY_MS))
			return error_move(e, problem);
		error_free(problem);
	}
}

/* How long the guest stood still although it has not gone: until it ran again, or until now where it does not. */
static void source_keep_pause(struct source *s)
{
	struct machine_state state;
	s->driver->state(s->machine, &state);
	/* It was not told by an earlier ferryd when it stopped, and by nobody when it stopped for something else before. */
	if (!s->copied.was_running || !s->copied.begun_us || state.stopped_us < s->copied.begun_us)
		return;
	const int64_t ended_us = state.resumed_us > state.stopped_us ? state.resumed_us : clock_monotonic_us();
	migration_lock(s->migration);
	s->migration->downtime_us = ended_us - state.stopped_us;
	migration_unlock_changed(s->migration);
}

/* Make the guest run here again (if it did before). Finish was never sent, or was refused durably. */
static int source_take_back(struct source *s, struct error **e)
{
	struct migration *migration = s->migration;
	struct machine_state state;
	struct error *first = NULL, *next = NULL;
	/* The copy must have ended before anything else is touched. That QEMU may have completed it by now changes
	 * nothing: nobody was asked to take the VM. */
	s->driver->state(s->machine, &state);
	if (s->copied.begun && state.run != MACHINE_GONE && !move_in_postcopy(state.move) &&
	    s->driver->move_cancel(s->machine, QMP_CANCEL_TIMEOUT_MS, &next) < 0) {
		s->driver->state(s->machine, &state);
		if (state.run != MACHINE_GONE) { /* it is left as it is; but ours, as nobody was asked to take it */
			if (source_insist(s, source_record_holds, NULL) < 0)
				log_error("the journal cannot be written either");
			return error_move(e, next);
		}
		error_free(take_ptr(next));
	}
	FAULT(FAULT_COPY_CANCELLED);
	if (source_insist(s, source_record_holds, e) < 0)
		return -1;
	s->driver->state(s->machine, &state);
	if (state.run == MACHINE_GONE) {
		cleanup_free char *words = s->driver->last_words(s->machine);
		return error_set(e, ERROR_QEMU_GONE, "the source's QEMU has ended, and the guest with it: %s", words);
	}
	if (!s->copied.begun)
		return 0;
	(void)s->driver->move_restore(s->machine, &next);
	keep_first(&first, &next);
	if (s->copied.ports_shut)
		(void)s->driver->ports_open(s->machine, &next);
	keep_first(&first, &next);
	/* The destination may have let the guest run before it was fenced: then our memory does not fit the disks any more, and
	 * only the person who has settled it can tell. */
	if (s->copied.was_running && !migration_resolution_epoch(migration, NULL))
		/* QEMU has seen to it by itself, or must be told; telling it twice does no harm. */
		(void)s->driver->resume(s->machine, &next);
	keep_first(&first, &next);
	source_keep_pause(s);
	return first ? error_move(e, first) : 0;
}

/* Tell the destination once how it has ended: that it must not take the VM, or, where a person has said so, that it must.
 * True when it has heard (or has said that it knows better, and we have followed). */
static bool source_tell(struct source *s)
{
	cleanup_error struct error *e = NULL;
	const bool ours = s->migration->handover != HANDOVER_RELEASED;
	enum finish_answer answer = source_ask_outcome(s, ours ? PEER_REFUSE : PEER_FINISH, s->host->times.refuse_timeout_ms, &e);
	if (answer == FINISH_RUNNING && ours) {
		/* Finish was never sent, or refused: only a person can have given the VM to it, and only if it was offered. */
		if (migration_resolution_epoch(s->migration, NULL) > 0)
			error_set(&e, ERROR_PEER_STALE, "%s has the VM although it was said to be fenced",
				  s->migration->destination);
		else if (!s->migration->offered || !s->settled_there)
			error_set(&e, ERROR_PEER_PROTOCOL, "%s claims to run a VM that it was not given",
				  s->migration->destination);
		else if (resolve_yield(s->host, s->migration, &e) == 0)
			return true;
	} else if (answer != FINISH_NO_ANSWER || e->code == ERROR_MIGRATION_IN_DOUBT) {
		return true; /* the last: it has lost its journal, so there is nothing there that could be told */
	}
	log_failure(LOG_LEVEL_WARNING, "the destination has not heard how the migration ended; telling it again later", e);
	return false;
}

void source_owe_news(struct source *s)
{
	migration_set_cleanup_pending(s->migration, true);
	s->news_pending = true;
}

/* Tell the destination that it must not take the VM, or, if it never prepared, that it can forget us: then it has
 * nothing but a port in reserve, for a minute. */
void source_send_refuse(struct source *s)
{
	cleanup_error struct error *e = NULL;
	if (!s->destination_prepared)
		(void)source_ask_outcome(s, PEER_REFUSE, FORGET_TIMEOUT_MS, &e);
	else if (!source_tell(s))
		source_owe_news(s);
}

/* After the end: whose the VM is is settled and written down. What is still to be done then, until it is: the destination may not know
 * it yet, and a QEMU that could not be ended is the inventory's. What is owed is in the kept record, too, and taken up again by the
 * next ferryd. */
void source_await_cleanup(struct source *s)
{
	int64_t wait_ms = REFUSE_RETRY_FIRST_MS;
	while ((s->news_pending || s->remains) && !migration_host_wait_stopping(s->host, wait_ms)) {
		wait_ms = source_longer_wait_ms(s, wait_ms);
		s->news_pending = s->news_pending && !source_tell(s);
		s->remains = s->remains && inventory_has_remains(s->host->inventory, s->migration->vm_uuid);
		if (s->news_pending || s->remains)
			continue;
		migration_set_cleanup_pending(s->migration, false);
		cleanup_error struct error *problem = NULL;
		if (journal_keep_view(s->host->journal, s->migration, &problem) < 0)
			log_failure(LOG_LEVEL_WARNING, "cannot keep the result", problem);
	}
}

/* The migration failed with `why` while the VM is ours. */
void source_roll_back(struct source *s, const struct error *why)
{
	struct migration *migration = s->migration;
	struct error *problem = NULL;
	const bool offered = migration->handover == HANDOVER_OFFERED;
	enum migration_status status = s->copied.begun || offered ? MIGRATION_ROLLED_BACK : MIGRATION_FAILED;
	log_failure(LOG_LEVEL_WARNING, "rolling back", why);
	migration_lock(migration);
	migration->promise_settled = true;
	migration_unlock_changed(migration);
	migration_set_reason(migration, why->code, why->message);
	if (s->machine && source_take_back(s, &problem) < 0) {
		struct machine_state state;
		s->driver->state(s->machine, &state);
		log_failure(LOG_LEVEL_ERROR, "rollback", problem);
		cleanup_free char *words = xasprintf("%s; then the way back failed (the guest is %s): %s", why->message,
						     machine_run_name(state.run), problem->message);
		migration_set_reason(migration, why->code, words);
		status = MIGRATION_ROLLED_BACK;
	} else { /* once more: a journal that could not be written may have had its say meanwhile */
		migration_set_reason(migration, why->code, why->message);
	}
	/* Without a machine (it ended while the answer was awaited) it is ours all the same: stopped. */
	if (!s->machine && source_insist(s, source_record_holds, &problem) < 0)
		log_failure(LOG_LEVEL_ERROR, "rollback", problem);
	error_free(problem);
	FAULT(FAULT_TAKEN_BACK);
	if (s->destination_asked || s->destination_prepared)
		source_send_refuse(s);
	if (migration->handover == HANDOVER_RELEASED) { /* it has said that a person gave it the VM */
		source_end(s, MIGRATION_COMPLETED);
		return;
	}
	if (migration->handover == HANDOVER_OFFERED) {
		/* The journal cannot be written: a later ferryd would send finish, so the guest stays stopped and
		 * locked until one has settled it. */
		migration_set_status(migration, MIGRATION_IN_DOUBT);
		return;
	}
	source_end(s, why->code == ERROR_CANCELLED ? MIGRATION_CANCELLED : status);
}

/* ---- settle ---- */

/* From "our QEMU has completed" to the end, whatever the destination decides. */
void source_settle(struct source *s, enum peer_message question)
{
	struct migration *migration = s->migration;
	cleanup_error struct error *e = NULL;
	migration_set_status(migration, MIGRATION_COMPLETING);
	enum finish_answer answer = source_finish(s, question, &e);
	s->running_us = clock_monotonic_us();
	if (answer == FINISH_NO_ANSWER)
		return; /* ferryd is stopping: the journal says offered, the guest stays paused, and the next ferryd
			   asks again */
	if (answer == FINISH_REFUSED || answer == FINISH_RESOLVED_HERE) {
		source_roll_back(s, e);
		return;
	}
	migration_lock(migration);
	if (s->copied.stopped_us && answer == FINISH_RUNNING)
		migration->downtime_us = s->running_us - s->copied.stopped_us - s->round_trip_us / 2;
	migration_unlock_changed(migration);
	if (answer == FINISH_RUNNING && !source_serve(s))
		return; /* ferryd is stopping: both QEMUs go on, and the next one serves on */
	if (answer == FINISH_RESOLVED_THERE)
		source_owe_news(s);
	if (s->machine)
		copy_keep_figures(s->driver, s->machine, migration, false);
	cleanup_free char *why_resolved = answer == FINISH_RESOLVED_THERE ? xstrdup(e->message) : NULL;
	error_free(take_ptr(e));
	if (source_insist(s, source_confirm, &e) < 0)
		return; /* ferryd is stopping: the guest stays stopped, the record `offered`; the next one settles it */
	if (answer == FINISH_RESOLVED_THERE)
		migration_set_reason(migration, ERROR_MIGRATION_RESOLVED, why_resolved);
	source_end(s, MIGRATION_COMPLETED);
}
