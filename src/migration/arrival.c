/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What becomes of an arriving VM: taken, refused, or given away by a person; see arrival.h, destination.c for the messages
 * that decide it, and arrival_watch.c for the time before.
 */
#include "migration/arrival.h"

#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/json.h"
#include "base/log.h"
#include "base/xalloc.h"

#define RECORD_AGAIN_MS 1000 /* when the journal could not be written */
#define LOAD_TIMEOUT_US 20000000 /* one try; the source asks again */

void arrival_free(struct destination_arrival *arrival)
{
	if (!arrival)
		return;
	arrival_relay_free(arrival->relay);
	data_port_release(&arrival->port);
	loop_source_remove(arrival->timer);
	offer_done(&arrival->offer);
	definition_free(arrival->old_definition);
	free(arrival->old_owner);
	json_decref(arrival->checked);
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
	migration_clear_doubt(migration);
	migration_set_status(migration, status);
	if (journal_keep_view(host->journal, migration, &e) < 0)
		log_failure(LOG_LEVEL_WARNING, "cannot keep the result", e);
}

/* none -> refused or prepared -> refused: end the machine, then say so durably, then let the VM go. When the guest cannot
 * have run, ending its process first is what makes the refusal true. */
int arrival_refuse(struct migration_host *host, struct migration *migration, enum error_code code, const char *why,
		   struct error **e)
{
	struct destination_arrival *arrival = migration->arrival;
	struct vm *vm = migration->vm;
	log_info("refusing: %s", why);
	/* If `taken` may be on the disk although writing it failed, a later ferryd will look for this QEMU. */
	if (journal_settle(host->journal, e) < 0)
		return -1;
	if (vm && vm->machine) {
		arrival_unwatch(host, migration);
		if (vm_end(host->inventory, vm, e) < 0)
			return error_wrap(e, "ending the incoming QEMU");
	}
	/* Prepare has changed nothing of what was known about the owner, and an offer that came to nothing teaches nothing: its
	 * epoch is one host's word, and one that is much too high would keep the VM away from here. */
	struct journal_ownership back = {
		.vm = vm,
		.owner = vm ? vm->owner : "",
		.epoch = vm ? vm->epoch : 0,
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

int arrival_inherit(struct migration_host *host, struct migration *migration, uint64_t epoch, struct error **e)
{
	struct vm *vm = NULL;
	/* One that was new here has been forgotten by the refusal: that it is ours is remembered again, and it can be defined. */
	if (inventory_lock_arriving(host->inventory, migration->vm_uuid, migration->vm_name, "given to this host", &vm, e) < 0)
		return -1;
	int r = 0;
	const char *expected = migration->handover == HANDOVER_REFUSED ? migration->source : host->name;
	if (vm->epoch < epoch && (vm->epoch == 0 || strcmp(vm->owner, expected) == 0)) {
		r = vm_write(host->inventory, vm, host->name, epoch, vm->definition, e);
		if (r == 0)
			migration_set_owner(migration, host->name);
	}
	inventory_unlock(host->inventory, vm);
	return r;
}

/* A person has given the VM to the source, and stated that this host was fenced: what is here is not the VM any more. */
int arrival_cede(struct migration_host *host, struct migration *migration, uint64_t epoch, struct error **e)
{
	bool settled = migration->vm == NULL; /* then the VM has gone on to live here, and its job must be taken */
	if (migration->settling && !settled)
		return error_set(e, ERROR_TIMEOUT, "the VM is being tidied up after");
	if (settled && inventory_lock(host->inventory, migration->vm_uuid, "given to another host", &migration->vm, e) < 0)
		return -1;
	struct vm *vm = migration->vm;
	struct machine_state state = {.run = MACHINE_GONE};
	int r = 0;
	if (vm->epoch != migration->epoch || strcmp(vm->owner, host->name) != 0)
		r = error_set(e, ERROR_PEER_STALE, "VM '%s' has moved on since, to %s, at epoch %llu", vm->name, vm->owner,
			      (unsigned long long)vm->epoch);
	if (vm->machine)
		inventory_driver(host->inventory)->state(vm->machine, &state);
	if (r == 0 && state.run == MACHINE_RUNNING) {
		/* It may be the only copy that ran: a person decides what becomes of it, `vm stop` ends it. */
		log_error("pausing a copy that was said to be fenced: %s owns the VM", migration->source);
		r = inventory_driver(host->inventory)->pause(vm->machine, e);
	} else if (r == 0 && state.run == MACHINE_INCOMING) {
		arrival_unwatch(host, migration);
		r = vm_end(host->inventory, vm, e);
	}
	struct journal_ownership theirs = {
		.vm = vm, .owner = migration->source, .epoch = epoch, .definition = vm->definition};
	if (r == 0)
		r = journal_step(host->journal, migration, HANDOVER_REFUSED, &theirs, e);
	if (r == 0) {
		vm->arriving = false;
		arrival_free(take_ptr(migration->arrival));
	}
	if (r == 0 && migration->awaiting) { /* that thread looks at the machine: it lets the job go, at once */
		inventory_job_ends_soon(host->inventory, vm);
		inventory_driver(host->inventory)->nudge(vm->machine);
	} else if (r == 0 || settled) {
		migration->vm = NULL;
		inventory_unlock(host->inventory, vm);
	}
	if (r < 0)
		return -1;
	migration_set_owner(migration, migration->source);
	migration_set_reason(migration, ERROR_MIGRATION_RESOLVED, "a person has settled that the source owns the VM");
	arrival_end(host, migration, MIGRATION_ROLLED_BACK);
	return 0;
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

/* What is gone on with in a thread of its own. */
struct arrival_work {
	struct migration_host *host;
	struct migration *migration;
};

static void arrival_start(struct migration_host *host, struct migration *migration, void *(*main)(void *user))
{
	struct arrival_work *work = xcalloc(1, sizeof(*work));
	*work = (struct arrival_work){host, migration_ref(migration)};
	migration_host_start_worker(host, main, work, NULL);
}

static void *arrival_work_end(struct arrival_work *work)
{
	struct migration_host *host = work->host;
	migration_unref(work->migration);
	free(work);
	migration_host_worker_done(host);
	return NULL;
}

static void *settle_main(void *user)
{
	struct arrival_work *work = user;
	struct migration *migration = work->migration;
	log_context_set(migration->id, migration->vm_name);
	pthread_mutex_lock(&migration->work);
	arrival_settle(work->host, migration);
	pthread_mutex_unlock(&migration->work);
	return arrival_work_end(work);
}

/* Settling takes some round trips to a QEMU that has just begun to run its guest; the source, whose user is waiting,
 * need not wait for it too. The job stays held until it is done, and whoever wants it meanwhile waits. */
void arrival_settle_soon(struct migration_host *host, struct migration *migration)
{
	migration->settling = true;
	inventory_job_ends_soon(host->inventory, migration->vm);
	arrival_start(host, migration, settle_main);
}

/* The source asks again; but it may be gone for good, and then nobody does. */
static void *insist_main(void *user)
{
	struct arrival_work *work = user;
	struct migration_host *host = work->host;
	struct migration *migration = work->migration;
	bool again = true;
	log_context_set(migration->id, migration->vm_name);
	while (again && !migration_host_wait_stopping(host, RECORD_AGAIN_MS)) {
		cleanup_error struct error *e = NULL;
		pthread_mutex_lock(&migration->work);
		again = migration->handover == HANDOVER_TAKEN && arrival_take_over(host, migration, &e) < 0;
		if (!again && migration->handover == HANDOVER_RUNNING && migration->vm && !migration->settling)
			arrival_settle_when_whole(host, migration, false);
		pthread_mutex_unlock(&migration->work);
		if (again)
			log_failure(LOG_LEVEL_ERROR, "cannot record what has become of the VM", e);
	}
	return arrival_work_end(work);
}

static void arrival_insist(struct migration_host *host, struct migration *migration)
{
	if (migration->insisting)
		return;
	migration->insisting = true;
	arrival_start(host, migration, insist_main);
}

/* cont was refused, which proves that the guest never ran: the VM is the source's again. That is durable before its QEMU is
 * ended, for without QEMU nobody could prove anything: a ferryd that dies in between finds it prepared, and refuses. */
static int arrival_give_back(struct migration_host *host, struct migration *migration, enum error_code code, const char *why,
			     struct error **e)
{
	struct vm *vm = migration->vm;
	const struct destination_arrival *arrival = migration->arrival;
	const bool known = arrival && arrival->old_owner; /* before, and not lost in a restart */
	struct journal_ownership back = {.vm = vm,
					 .owner = known ? arrival->old_owner : migration->source,
					 .epoch = known ? arrival->old_epoch : migration->epoch - 1,
					 .definition = vm->definition};
	if (journal_step(host->journal, migration, HANDOVER_PREPARED, &back, e) < 0)
		return -1;
	return arrival_refuse(host, migration, code, why, e);
}

/* taken -> running (or, with proof that it never ran, back to prepared and refused). Also after a restart in between. */
int arrival_take_over(struct migration_host *host, struct migration *migration, struct error **e)
{
	const struct vm_driver *driver = inventory_driver(host->inventory);
	struct machine *machine = migration->vm->machine;
	struct error *problem = NULL;
	bool ran = true; /* without a machine: it may have run before it ended */
	if (machine && driver->take_over(machine, migration->guest_paused, &ran, &problem) < 0 && !ran) {
		bool settled = migration->vm->epoch > migration->epoch;
		if (!settled) {
			int r = arrival_give_back(host, migration, problem->code, problem->message, e);
			error_free(problem);
			return r;
		}
		/* A person has given the VM to this host, and the source has let go: there is nobody to give it back to. */
		arrival_unwatch(host, migration);
		if (vm_end(host->inventory, migration->vm, e) < 0) {
			error_free(problem);
			return -1;
		}
	}
	if (!machine)
		error_set(&problem, ERROR_QEMU_GONE, "the destination's QEMU ended while it took over");
	if (journal_step(host->journal, migration, HANDOVER_RUNNING, NULL, e) < 0) {
		error_free(problem);
		arrival_insist(host, migration);
		return -1;
	}
	migration_set_owner(migration, host->name);
	if (problem && problem->code == ERROR_TIMEOUT && !arrival_is_whole(host, migration)) {
		/* In post-copy QEMU may wait for a page in the middle of it, and does it when that has come. */
		log_failure(LOG_LEVEL_WARNING, "the guest was taken over; QEMU has not said that it runs", problem);
		error_free(problem);
	} else if (problem) { /* it is ours, and it crashed: the source must not resume, for disks may have changed */
		log_failure(LOG_LEVEL_ERROR, "the guest was taken over and ended", problem);
		migration_set_reason(migration, problem->code, problem->message);
		error_free(problem);
	}
	return 0;
}

static int take(struct migration_host *host, struct migration *migration, uint64_t epoch, struct error **e)
{
	const struct vm_driver *driver = inventory_driver(host->inventory);
	struct vm *vm = migration->vm;
	if (!vm || !vm->machine) /* an earlier refusal could not be recorded */
		return arrival_refuse(host, migration, ERROR_QEMU_GONE, "the destination has no QEMU for it", e);
	migration_clear_doubt(migration);
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
		.vm = vm, .owner = host->name, .epoch = epoch, .definition = vm->definition};
	if (journal_step(host->journal, migration, HANDOVER_TAKEN, &ours, e) < 0)
		return -1;
	return arrival_take_over(host, migration, e);
}

int arrival_take(struct migration_host *host, struct migration *migration, struct error **e)
{
	return take(host, migration, migration->epoch, e);
}

int arrival_take_settled(struct migration_host *host, struct migration *migration, struct error **e)
{
	migration->guest_paused = true;
	if (take(host, migration, migration->epoch + 1, e) < 0)
		return -1;
	if (migration->handover != HANDOVER_RUNNING)
		return 0;
	if (migration->reason_code == ERROR_CODE_COUNT)
		migration_set_reason(migration, ERROR_MIGRATION_RESOLVED,
				     "a person has settled that this host owns the VM; it is left paused");
	if (migration->vm)
		arrival_settle(host, migration);
	return 0;
}
