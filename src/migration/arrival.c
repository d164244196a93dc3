/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What becomes of an arriving VM: watched while it is prepared, then taken or refused; see arrival.h, and destination.c
 * for the messages that decide it.
 */
#include "migration/arrival.h"

#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/json.h"
#include "base/log.h"
#include "base/xalloc.h"

#define ASK_SOURCE_TIMEOUT_MS 5000
#define WATCH_PERIOD_US 500000
#define LOAD_TIMEOUT_US 20000000 /* one try; the source asks again */

void arrival_free(struct destination_arrival *arrival)
{
	if (!arrival)
		return;
	data_port_release(&arrival->port);
	loop_source_remove(arrival->timer);
	offer_done(&arrival->offer);
	definition_free(arrival->old_definition);
	free(arrival);
}

/* What was only checked is forgotten, and its port let go. `work` is held. */
void arrival_forget_checked(struct migration_host *host, struct migration *migration)
{
	arrival_free(take_ptr(migration->arrival));
	migration_list_remove(host->migrations, migration);
}

/* ---- refusing; `work` is held ---- */

void arrival_end(struct migration_host *host, struct migration *migration, enum migration_status status)
{
	cleanup_error struct error *e = NULL;
	migration_set_status(migration, status);
	if (journal_keep_view(host->journal, migration, &e) < 0)
		log_failure(LOG_LEVEL_WARNING, "cannot keep the result", e);
}

static void arrival_unwatch(struct migration_host *host, struct migration *migration)
{
	struct destination_arrival *arrival = migration->arrival;
	if (!arrival || !arrival->watched)
		return;
	arrival->watched = false;
	if (pthread_equal(pthread_self(), arrival->watcher)) { /* the watcher itself refuses; it ends right after */
		pthread_detach(pthread_self());
		return;
	}
	__atomic_store_n(&arrival->watch_ends, true, __ATOMIC_RELEASE);
	inventory_driver(host->inventory)->nudge(migration->vm->machine);
	pthread_join(arrival->watcher, NULL); /* it takes `work` only by trying */
}

/* prepared -> refused or taken -> refused: end the machine, then say so durably, then let the VM go. When the guest
 * cannot have run, ending its process first is what makes the refusal true. */
int arrival_refuse(struct migration_host *host, struct migration *migration, enum error_code code, const char *why,
		   struct error **e)
{
	struct destination_arrival *arrival = migration->arrival;
	struct vm *vm = migration->vm;
	log_info("refusing: %s", why);
	if (vm && vm->machine) {
		arrival_unwatch(host, migration);
		if (vm_end(host->inventory, vm, e) < 0)
			return error_wrap(e, "ending the incoming QEMU");
	}
	/* The source owned it before the epoch that did not come. */
	struct journal_ownership back = {
		.vm = vm,
		.owner = migration->source,
		.epoch = migration->epoch - 1,
		.definition = arrival ? arrival->old_definition : NULL,
	};
	if (journal_step(host->journal, migration, HANDOVER_REFUSED, vm ? &back : NULL, e) < 0)
		return -1;
	migration_set_reason(migration, code, why);
	bool forget = vm && arrival && arrival->new_here;
	if (arrival)
		arrival->old_definition = NULL; /* the VM has it now */
	arrival_free(take_ptr(migration->arrival));
	if (vm) {
		struct error *problem = NULL;
		vm->arriving = false;
		/* The tombstone is in the migration's row; the VM itself need not be remembered if it was new here. */
		if (forget && vm_forget(host->inventory, vm, &problem) < 0)
			log_failure(LOG_LEVEL_WARNING, "cannot forget the VM", problem);
		error_free(problem);
		migration->vm = NULL;
		inventory_unlock(host->inventory, vm);
	}
	arrival_end(host, migration, code == ERROR_CANCELLED ? MIGRATION_CANCELLED : MIGRATION_ROLLED_BACK);
	return 0;
}

/* ---- the watch over a prepared machine ---- */

/* Whether the source still works on this migration: asked when nothing was heard for a while. */
static bool source_still_there(struct migration_host *host, struct migration *migration, const char **ret_why)
{
	cleanup_error struct error *e = NULL;
	cleanup_json json_t *answer = NULL;
	struct http_client *client = NULL;
	*ret_why = "the source does not answer";
	if (peers_take(host->peers, migration->source, &client, &e) < 0)
		return false;
	const struct peer_question question = {PEER_OUTCOME, migration->source, migration->id, NULL, ASK_SOURCE_TIMEOUT_MS};
	bool answered;
	int r = peers_ask(client, &question, &answer, &answered, &e);
	peers_give_back(host->peers, migration->source, client, !answered);
	if (!answered)
		return false;
	*ret_why = "the source has given the migration up";
	return r == 0 && !json_is_true(json_object_get(answer, "ended"));
}

struct watch {
	struct migration_host *host;
	struct migration *migration;
};

/* One look, `work` held. Returns false when there is nothing to watch any more. */
static bool watch_look(const struct watch *watch, const struct machine_state *state)
{
	struct migration *migration = watch->migration;
	cleanup_error struct error *e = NULL;
	if (migration->handover != HANDOVER_PREPARED)
		return false;
	if (state->run != MACHINE_GONE)
		return true;
	cleanup_free char *words = inventory_driver(watch->host->inventory)->last_words(migration->vm->machine);
	cleanup_free char *why = xasprintf("the destination's QEMU ended: %s", words);
	if (arrival_refuse(watch->host, migration, ERROR_QEMU_GONE, why, &e) < 0)
		log_failure(LOG_LEVEL_ERROR, "refusing", e);
	return false;
}

/* Nothing was heard for too long: ask, without holding `work`; refuse when the answer (or the silence) says so. */
static bool watch_silence(const struct watch *watch)
{
	struct migration_host *host = watch->host;
	struct migration *migration = watch->migration;
	const char *why;
	if (source_still_there(host, migration, &why)) {
		if (pthread_mutex_trylock(&migration->work) == 0) {
			if (migration->arrival)
				migration->arrival->heard_us = clock_monotonic_us();
			pthread_mutex_unlock(&migration->work);
		}
		return true;
	}
	if (pthread_mutex_trylock(&migration->work) != 0)
		return true; /* a message of the source is being answered just now */
	bool go_on = migration->handover != HANDOVER_PREPARED;
	if (!go_on) {
		cleanup_error struct error *e = NULL;
		if (arrival_refuse(host, migration, ERROR_PEER_UNREACHABLE, why, &e) < 0)
			log_failure(LOG_LEVEL_ERROR, "refusing", e);
	}
	pthread_mutex_unlock(&migration->work);
	return false;
}

static void *watch_main(void *user)
{
	struct watch *watch = user;
	struct migration_host *host = watch->host;
	struct migration *migration = watch->migration;
	struct destination_arrival *arrival =
		migration->arrival; /* lives as long as the watch does, see arrival_unwatch() */
	const struct vm_driver *driver = inventory_driver(host->inventory);
	struct machine *machine = migration->vm->machine;
	log_context_set(migration->id, migration->vm_name);
	for (;;) {
		struct machine_state state;
		driver->state(machine, &state);
		if (__atomic_load_n(&arrival->watch_ends, __ATOMIC_ACQUIRE) || migration_host_stopping(host))
			break;
		if (pthread_mutex_trylock(&migration->work) == 0) {
			int64_t silent_ms = (clock_monotonic_us() - arrival->heard_us) / 1000;
			bool go_on = watch_look(watch, &state);
			pthread_mutex_unlock(&migration->work);
			if (!go_on || (silent_ms > host->silence_limit_ms && !watch_silence(watch)))
				break;
		}
		(void)driver->wait_change(machine, state.change, clock_monotonic_us() + WATCH_PERIOD_US);
	}
	free(watch);
	migration_unref(migration);
	migration_host_worker_done(host);
	return NULL;
}

void arrival_watch(struct migration_host *host, struct migration *migration)
{
	struct watch *watch = xcalloc(1, sizeof(*watch));
	watch->host = host;
	watch->migration = migration_ref(migration);
	migration->arrival->watched = true;
	migration_host_start_worker(host, watch_main, watch, &migration->arrival->watcher);
}

/* ---- finish; `work` is held ---- */

/* The VM is ours and runs: give up what was only for the arrival. */
void arrival_settle(struct migration_host *host, struct migration *migration)
{
	struct vm *vm = migration->vm;
	struct error *problem = NULL;
	arrival_unwatch(host, migration);
	arrival_free(take_ptr(migration->arrival));
	if (vm->machine && inventory_driver(host->inventory)->move_restore(vm->machine, &problem) < 0)
		log_failure(LOG_LEVEL_WARNING, "cannot put QEMU's migration settings back", problem);
	error_free(problem);
	vm->arriving = false;
	migration->vm = NULL;
	inventory_unlock(host->inventory, vm);
	arrival_end(host, migration, MIGRATION_COMPLETED);
}

struct settling {
	struct migration_host *host;
	struct migration *migration;
};

static void *settle_main(void *user)
{
	struct settling *settling = user;
	struct migration_host *host = settling->host;
	log_context_set(settling->migration->id, settling->migration->vm_name);
	pthread_mutex_lock(&settling->migration->work);
	arrival_settle(host, settling->migration);
	pthread_mutex_unlock(&settling->migration->work);
	migration_unref(settling->migration);
	free(settling);
	migration_host_worker_done(host);
	return NULL;
}

/* Settling takes some round trips to a QEMU that has just begun to run its guest; the source, whose user is waiting,
 * need not wait for it too. The job stays held until it is done, and whoever wants it meanwhile waits. */
void arrival_settle_soon(struct migration_host *host, struct migration *migration)
{
	struct settling *settling = xcalloc(1, sizeof(*settling));
	settling->host = host;
	settling->migration = migration_ref(migration);
	migration->settling = true;
	inventory_job_ends_soon(host->inventory, migration->vm);
	migration_host_start_worker(host, settle_main, settling, NULL);
}

/* taken -> running (or, with proof that it never ran, refused). Also after a restart in between. */
int arrival_take_over(struct migration_host *host, struct migration *migration, struct error **e)
{
	const struct vm_driver *driver = inventory_driver(host->inventory);
	struct machine *machine = migration->vm->machine;
	struct error *problem = NULL;
	bool ran = true; /* without a machine: it may have run before it ended */
	if (machine && driver->take_over(machine, migration->guest_paused, &ran, &problem) < 0 && !ran) {
		int r = arrival_refuse(host, migration, problem->code, problem->message, e);
		error_free(problem);
		return r;
	}
	if (!machine)
		error_set(&problem, ERROR_QEMU_GONE, "the destination's QEMU ended while it took over");
	if (journal_step(host->journal, migration, HANDOVER_RUNNING, NULL, e) < 0) {
		error_free(problem);
		return -1;
	}
	migration_set_owner(migration, host->name);
	if (problem) { /* it is ours, and it crashed: the source must not resume, for disks may have changed */
		log_failure(LOG_LEVEL_ERROR, "the guest was taken over and ended", problem);
		migration_set_reason(migration, problem->code, problem->message);
		error_free(problem);
	}
	return 0;
}

int arrival_take(struct migration_host *host, struct migration *migration, struct error **e)
{
	const struct vm_driver *driver = inventory_driver(host->inventory);
	struct vm *vm = migration->vm;
	if (!vm || !vm->machine) /* an earlier refusal could not be recorded */
		return arrival_refuse(host, migration, ERROR_QEMU_GONE, "the destination has no QEMU for it", e);
	migration_set_status(migration, MIGRATION_COMPLETING);
	struct error *problem = NULL;
	if (driver->wait_loaded(vm->machine, clock_monotonic_us() + LOAD_TIMEOUT_US, &problem) < 0) {
		if (problem->code == ERROR_TIMEOUT)
			return error_move(e, problem); /* still loading: decide nothing, the source asks again */
		int r = arrival_refuse(host, migration, problem->code, problem->message, e);
		error_free(problem);
		return r;
	}
	struct journal_ownership ours = {
		.vm = vm, .owner = host->name, .epoch = migration->epoch, .definition = vm->definition};
	if (journal_step(host->journal, migration, HANDOVER_TAKEN, &ours, e) < 0)
		return -1;
	return arrival_take_over(host, migration, e);
}
