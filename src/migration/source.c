/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The source's side of a migration.
 *
 * Theory of operation. One worker thread walks the stages:
 *
 *	begin    describe the VM as it really runs (source_check.c); open the journal (holds)
 *	check    both sides' checks, all failures at once; the data port is really connected to (source_check.c)
 *	prepare  the destination starts a QEMU that waits
 *	copy     memory, until little enough is left (copy.c); the baton is offered before the guest may stop
 *	finish   only after our QEMU says completed: ask the destination to take the VM, until it has decided
 *	         (source_outcome.c)
 *	confirm  it runs there: release ours (source_outcome.c)
 *
 * What may be done when a stage fails follows from the baton alone (handover.tbl): as long as finish was never sent,
 * the VM is ours whatever our QEMU says, and is taken back. Once it was sent, only the destination's answer decides;
 * until it comes the guest stays paused and the migration is in doubt. Nothing here ever resumes the guest because of a
 * time-out.
 */
#include "migration/source.h"

#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/json.h"
#include "base/log.h"
#include "base/xalloc.h"
#include "migration/resolve.h"
#include "migration/source_steps.h"

/* ---- prepare ---- */

static void source_fill_move(const struct source *s, struct move_options *ret)
{
	*ret = (struct move_options){
		.address = s->data_address,
		.port = s->data_port,
		.tls_key_hex = *s->tls_key_hex ? s->tls_key_hex : NULL,
		.channels = s->migration->request.channels,
		.bandwidth_bytes_per_s = s->migration->request.promise.bandwidth_bytes_per_s,
		.may_postcopy = source_may_postcopy(s),
	};
}

static int source_prepare(struct source *s, struct error **e)
{
	if (*s->tls_key_hex)
		s->offer.tls_key_hex = xstrdup(s->tls_key_hex);
	migration_lock(s->migration);
	s->migration->relayed = s->offer.relay;
	s->migration->encrypted = *s->tls_key_hex != '\0' || s->offer.relay;
	migration_unlock_changed(s->migration);
	cleanup_json json_t *body = offer_to_json(&s->offer);
	s->destination_prepared = true; /* from here on it may have started something, even if no answer comes */
	struct error *problem = NULL;
	const struct peer_question question = {PEER_PREPARE, s->migration->destination, s->migration->id, body,
					       s->host->times.prepare_timeout_ms};
	cleanup_json json_t *answer = NULL;
	const char *journal = NULL;
	if (peers_ask(s->peer, &question, &answer, NULL, &problem) < 0) {
		if (problem->code == ERROR_DAEMON_UNREACHABLE)
			problem->code = ERROR_PEER_UNREACHABLE;
		(void)source_interrupted_why(s, problem, e);
		return error_wrap(e, "preparing %s", s->migration->destination);
	}
	/* Whatever it says of this migration later must be said by this journal. */
	if (json_get_string(answer, "journal", &journal, NULL) < 0 || strcmp(journal, s->migration->peer_journal_id) != 0)
		return error_set(e, ERROR_PEER_PROTOCOL, "%s has prepared with another journal than it has checked with",
				 s->migration->destination);
	return source_stop_requested(s, e);
}

/* ---- the worker ---- */

static void source_done(struct source *s, bool peer_broken)
{
	peers_give_back(s->host->peers, s->migration->destination, s->peer, peer_broken);
	offer_done(&s->offer);
	json_decref(s->description);
	source_relay_free(s);
	explicit_bzero(s->tls_key_hex, sizeof(s->tls_key_hex));
}

/* Finish will be sent: whoever asked for an abort before has been told that it will be done. */
static int source_pass_point_of_no_return(struct source *s, struct error **e)
{
	migration_lock(s->migration);
	bool aborted = s->migration->abort_requested;
	s->migration->too_late_to_abort = !aborted;
	migration_unlock_changed(s->migration);
	return aborted ? error_set(e, ERROR_CANCELLED, "cancelled on request") : 0;
}

static int source_move(struct source *s, struct error **e)
{
	struct migration *migration = s->migration;
	cleanup_json json_t *failures = json_array();
	migration_set_status(migration, MIGRATION_CHECKING);
	forecast_begin(&s->forecast, s->host, migration, migration->vm->machine);
	if (source_check(s, failures, e) < 0)
		return -1;
	if (json_array_size(failures) > 0)
		return source_fail_checks(s, failures, e);

	migration_set_status(migration, MIGRATION_PREPARING);
	if (journal_step(s->host->journal, migration, HANDOVER_HOLDS, NULL, e) < 0 || source_prepare(s, e) < 0)
		return -1;

	migration_set_status(migration, MIGRATION_COPYING);
	struct move_options move;
	cleanup_close int stream_fd = -1;
	source_fill_move(s, &move);
	if (s->relay) {
		if (source_relay_open(s, &stream_fd, e) < 0)
			return -1;
		move.stream_fd = stream_fd;
		move.channels = 1;
		move.bandwidth_bytes_per_s = 0; /* it is the relay's to keep */
	}
	if (copy_run(s->host, migration, s->machine, &move, &s->forecast, &s->copied, e) < 0)
		return -1;
	return source_pass_point_of_no_return(s, e);
}

static void source_release_job(struct migration_host *host, struct migration *migration)
{
	struct vm *vm = migration->vm;
	migration->vm = NULL;
	inventory_unlock(host->inventory, vm);
}

/* How each worker ends, whatever has become of the migration. Frees s. */
static void *source_worker_end(struct source *s)
{
	struct migration_host *host = s->host;
	struct migration *migration = s->migration;
	/* A VM whose owner is not settled stays locked, so that nobody starts or stops it meanwhile. */
	if (migration_ended(migration) && migration->vm)
		source_release_job(host, migration);
	forecast_learn(&s->forecast, s->round_trip_us);
	source_await_cleanup(s);
	source_done(s, false);
	free(s);
	migration_host_worker_done(host);
	migration_unref(migration);
	return NULL;
}

static void *source_main(void *user)
{
	struct source *s = user;
	struct migration *migration = s->migration;
	cleanup_error struct error *e = NULL;
	log_context_set(migration->id, migration->vm_name);
	if (source_move(s, &e) == 0)
		source_settle(s, PEER_FINISH);
	else if (e->code != ERROR_SHUTTING_DOWN) /* then the next ferryd takes it up */
		source_roll_back(s, e);
	return source_worker_end(s);
}

static struct source *source_new(struct migration_host *host, struct migration *migration)
{
	struct source *s = xcalloc(1, sizeof(*s));
	s->host = host;
	s->migration = migration;
	s->driver = inventory_driver(host->inventory);
	return s;
}

/* ---- after a restart ---- */

static void source_recover_postcopy(struct source *s)
{
	cleanup_error struct error *e = NULL;
	migration_set_postcopy(s->migration);
	if (copy_await_serving(s->host, s->machine, &e) == 0)
		source_settle(s, PEER_FINISH);
	else if (e->code == ERROR_QEMU_GONE) /* whether finish had been sent before nobody can tell */
		source_settle(s, PEER_REFUSE);
	else if (e->code != ERROR_SHUTTING_DOWN)
		source_roll_back(s, e);
}

static void *source_recover_main(void *user)
{
	struct source *s = user;
	struct migration *migration = s->migration;
	struct machine_state state = {.run = MACHINE_GONE};
	cleanup_error struct error *e = NULL;
	log_context_set(migration->id, migration->vm_name);
	if (s->machine)
		s->driver->state(s->machine, &state);
	s->copied = (struct copy_result){
		.begun = s->machine != NULL, .was_running = !migration->guest_paused, .ports_shut = s->machine != NULL};
	s->destination_prepared = true;
	if (s->copied.was_running && state.run != MACHINE_RUNNING)
		migration_set_pause_unknown(migration);
	log_info("recovering: handover=%s, the guest is %s, the copy is %s", handover_state_name(migration->handover),
		 machine_run_name(state.run), move_state_name(state.move));
	bool resolved = migration_resolution_epoch(migration, NULL) > 0;
	if (resolved)
		error_set(&e, ERROR_MIGRATION_RESOLVED, "a person has settled that %s owns the VM", migration->vm->owner);
	else
		error_set(&e, ERROR_MIGRATION_INTERRUPTED, "ferryd was restarted during the copy");
	if (migration->handover == HANDOVER_RELEASED) {
		migration_set_status(migration, MIGRATION_COMPLETING);
		if (resolved)
			source_owe_news(s);
		if (source_confirm(s, &e) == 0)
			source_end(s, MIGRATION_COMPLETED);
	} else if (migration->handover == HANDOVER_OFFERED && state.run == MACHINE_GONE) {
		/* Finish may have been sent, so the answer decides. But it must not be sent now: nobody can tell any
		 * more whether our QEMU had completed, or had lost the last acknowledgement and let the guest run on
		 * until it ended. */
		source_settle(s, PEER_REFUSE);
	} else if (migration->handover == HANDOVER_OFFERED && state.move == MOVE_COMPLETED) {
		source_settle(s, PEER_FINISH);
	} else if (migration->handover == HANDOVER_OFFERED && move_in_postcopy(state.move)) {
		source_recover_postcopy(s);
	} else {
		/* Finish is sent only after our QEMU has completed: it never was. */
		source_roll_back(s, e);
	}
	return source_worker_end(s);
}

/* It has ended, and the destination has not heard so. */
static void *source_tell_main(void *user)
{
	struct source *s = user;
	log_context_set(s->migration->id, s->migration->vm_name);
	s->destination_prepared = s->news_pending = true;
	return source_worker_end(s);
}

void source_recover_ended(struct migration_host *host, struct migration *migration)
{
	if (migration->handover == HANDOVER_HOLDS || migration_resolution_epoch(migration, NULL))
		migration_host_start_worker(host, source_tell_main, source_new(host, migration_ref(migration)), NULL);
	else /* what was left was a process that could not be ended: the inventory has found it again, or it is gone */
		migration_set_cleanup_pending(migration, false);
}

int source_recover(struct migration_host *host, struct migration *migration, struct error **e)
{
	cleanup_free char *job = xasprintf("migration %s", migration->id);
	if (inventory_lock(host->inventory, migration->vm_uuid, job, &migration->vm, e) < 0)
		return -1;
	resolve_recall(migration);
	migration->promise_settled = true; /* nobody else works on it yet; and nothing is copied any more */
	struct source *s = source_new(host, migration_ref(migration));
	s->machine = migration->vm->machine;
	migration_host_start_worker(host, source_recover_main, s, NULL);
	return 0;
}

/* ---- requests ---- */

int source_begin(struct migration_host *host, const char *vm_name, struct migration_request *request,
		 struct migration **ret, struct error **e)
{
	struct vm *vm = NULL;
	char id[RANDOM_ID_SIZE];
	random_id(id);
	cleanup_free char *job = xasprintf("migration %s", id);
	if (inventory_lock(host->inventory, vm_name, job, &vm, e) < 0) {
		migration_request_done(request);
		return -1;
	}
	if (!vm->definition) {
		error_set(e, ERROR_VM_NOT_FOUND, "no VM '%s' is defined on %s; it is owned by %s", vm_name, host->name,
			  vm->owner);
		inventory_unlock(host->inventory, vm);
		migration_request_done(request);
		return -1;
	}
	struct migration *migration = migration_new(host->migrations, id, MIGRATION_SOURCE, vm->name, vm->uuid,
						    host->name, request->to, vm->epoch + 1);
	migration_lock(migration); /* it can be looked at already */
	migration->request = *request;
	migration_unlock_changed(migration);
	*request = (struct migration_request){0};
	migration->vm = vm;
	*ret = migration_ref(migration);
	migration_host_start_worker(host, source_main, source_new(host, migration), NULL);
	return 0;
}

int source_rehearse(struct migration_host *host, const char *vm_name, struct migration_request *request,
		    void (*then)(struct source *s, void *user), void *user, json_t **ret_failures, struct error **e)
{
	struct vm *vm = NULL;
	if (inventory_lock(host->inventory, vm_name, "checks before a migration", &vm, e) < 0) {
		migration_request_done(request);
		return -1;
	}
	struct migration *migration = migration_new(host->migrations, NULL, MIGRATION_SOURCE, vm->name, vm->uuid,
						    host->name, request->to, vm->epoch + 1);
	migration_list_remove(host->migrations, migration); /* a dry run is no migration that anybody could look at */
	migration->request = *request;
	migration->request.dry_run = true;
	*request = (struct migration_request){0};
	migration->vm = vm;
	struct source *s = source_new(host, migration);
	cleanup_json json_t *failures = json_array();
	int r = source_check(s, failures, e);
	if (r == 0 && then && json_array_size(failures) == 0)
		then(s, user);
	if (s->destination_asked)
		source_send_refuse(s); /* lets the port go that was reserved for the probe */
	source_done(s, false);
	free(s);
	migration->vm = NULL;
	inventory_unlock(host->inventory, vm);
	migration_unref(migration);
	if (r < 0)
		return -1;
	*ret_failures = take_ptr(failures);
	return 0;
}

int source_dry_run(struct migration_host *host, const char *vm_name, struct migration_request *request,
		   json_t **ret_failures, struct error **e)
{
	return source_rehearse(host, vm_name, request, NULL, NULL, ret_failures, e);
}

/* Whether it is still for its source to change; the mutex is held. */
static int source_check_changeable(const struct migration *migration, const char *what, struct error **e)
{
	if (migration->role != MIGRATION_SOURCE)
		return error_set(e, ERROR_INVALID_ARGUMENT, "a migration is %s at its source, %s", what, migration->source);
	if (migration_status_ended(migration->status))
		return error_set(e, ERROR_MIGRATION_ENDED, "the migration has ended already: %s",
				 migration_status_name(migration->status));
	if (migration->too_late_to_abort)
		return error_set(e, ERROR_MIGRATION_TOO_LATE,
				 "%s has been asked to take over; the migration can no longer be %s", migration->destination, what);
	return 0;
}

int source_abort(struct migration_host *host, struct migration *migration, struct error **e)
{
	migration_lock(migration);
	int r = source_check_changeable(migration, "aborted", e);
	migration->abort_requested |= r == 0;
	migration_unlock_changed(migration);
	(void)host; /* copy_run() sees the request within one sample */
	return r;
}

/* The same, as long as something of it is still to be decided; the mutex is held. */
static int source_check_undecided(const struct migration *migration, const char *what, struct error **e)
{
	if (source_check_changeable(migration, what, e) < 0)
		return -1;
	if (migration->promise_settled)
		return error_set(e, ERROR_MIGRATION_TOO_LATE, "the copy is over; the migration can no longer be %s", what);
	return 0;
}

int source_set(struct migration_host *host, struct migration *migration, const json_t *changes, struct error **e)
{
	migration_lock(migration);
	int r = source_check_undecided(migration, "changed", e);
	struct migration_promise wanted = migration->promise_changed ? migration->promise_wanted : migration->request.promise;
	if (r == 0 && json_object_size(changes) == 0)
		r = error_set(e, ERROR_INVALID_ARGUMENT, "there is nothing to change");
	if (r == 0 && migration_promise_parse(changes, &wanted, e) < 0)
		r = -1;
	if (r == 0 && migration_promise_allows(&wanted, CONVERGE_POSTCOPY) &&
	    !migration_promise_allows(&migration->request.promise, CONVERGE_POSTCOPY))
		r = error_set(e, ERROR_INVALID_ARGUMENT,
			      "post-copy must be allowed from the beginning: both sides have to get ready for it");
	if (r == 0) {
		migration->promise_wanted = wanted;
		migration->promise_changed = true;
	}
	migration_unlock_changed(migration);
	(void)host;
	return r;
}

int source_complete(struct migration_host *host, struct migration *migration, struct error **e)
{
	migration_lock(migration);
	int r = source_check_undecided(migration, "completed", e);
	migration->complete_requested |= r == 0;
	migration_unlock_changed(migration);
	(void)host;
	return r;
}

int source_mend_now(struct migration_host *host, struct migration *migration, struct error **e)
{
	migration_lock(migration);
	const enum migration_status status = migration->status;
	const bool ours = migration->role == MIGRATION_SOURCE;
	/* The VM's job is held, by the migration, as long as that recovers. */
	struct machine *machine = ours && status == MIGRATION_RECOVERING && migration->vm ? migration->vm->machine : NULL;
	if (machine)
		inventory_driver(host->inventory)->nudge(machine);
	migration_unlock_changed(migration);
	if (!ours)
		return error_set(e, ERROR_INVALID_ARGUMENT, "a migration is recovered at its source, %s", migration->source);
	if (!machine)
		return error_set(e, ERROR_MIGRATION_NOT_RECOVERING, "the migration is not recovering: it is %s",
				 migration_status_name(status));
	return 0;
}
