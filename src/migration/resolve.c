/* SPDX-License-Identifier: Apache-2.0 */
/* What a person settles; see resolve.h. */
#include "migration/resolve.h"

#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/json.h"
#include "base/log.h"
#include "base/xalloc.h"
#include "migration/arrival.h"

#define ASK_TIMEOUT_MS 2000
#define ASK_ALL_US 20000000 /* all hosts that are known here */

/* ---- the request ---- */

static int resolve_check(struct migration *migration, const char *owner, const char *fenced, struct error **e)
{
	const bool source_owns = strcmp(owner, migration->source) == 0;
	if (!source_owns && strcmp(owner, migration->destination) != 0)
		return error_set(e, ERROR_INVALID_ARGUMENT, "the owner must be one of the migration's hosts, %s or %s, not '%s'",
				 migration->source, migration->destination, owner);
	const char *other = source_owns ? migration->destination : migration->source;
	if (!fenced || strcmp(fenced, other) != 0)
		return error_set(e, ERROR_MIGRATION_NOT_FENCED,
				 "to give the VM to %s, state that %s is fenced: that no copy of it runs there, and that it can"
				 " reach neither the VM's disks nor its network until it has heard of this",
				 owner, other);
	if (migration_ended(migration))
		return error_set(e, ERROR_MIGRATION_ENDED, "the migration has ended: %s owns the VM", migration->owner);
	return 0;
}

/* `work` is held. */
static int resolve_arrival(struct migration_host *host, struct migration *migration, bool ours, struct error **e)
{
	struct machine_state state = {.run = MACHINE_GONE};
	if (migration->handover != HANDOVER_PREPARED || !migration->vm || !migration_in_doubt(migration))
		return error_set(e, ERROR_MIGRATION_NOT_IN_DOUBT, "the migration is not in doubt here: it is %s",
				 handover_state_name(migration->handover));
	if (!ours)
		return arrival_refuse(host, migration, ERROR_MIGRATION_RESOLVED,
				      "a person has settled that the source owns the VM", e);
	if (migration->vm->machine)
		inventory_driver(host->inventory)->state(migration->vm->machine, &state);
	if (state.run != MACHINE_INCOMING || state.move != MOVE_COMPLETED)
		return error_set(e, ERROR_MIGRATION_NOT_IN_DOUBT, "not everything of the VM has arrived here");
	return arrival_take_settled(host, migration, e);
}

static int resolve_departure(struct migration *migration, const char *owner, const char *fenced, struct error **e)
{
	enum migration_status status = MIGRATION_STATUS_COUNT;
	if (!migration_try_resolve(migration, owner, fenced, &status))
		return error_set(e, ERROR_MIGRATION_NOT_IN_DOUBT,
				 status == MIGRATION_IN_DOUBT
					 ? "the migration cannot be settled as long as the journal cannot be written (%s); then restart ferryd"
					 : "the migration is not in doubt: it is %s",
				 migration_status_name(status));
	log_warning("a person settles that %s owns the VM, and states that %s is fenced", owner, fenced);
	return 0; /* its worker sees it within a moment */
}

/* The VM may have been handed on, to a third host, by the one that is said to be fenced: whoever can be asked is asked. */
static int resolve_ask_others(struct migration_host *host, const struct migration *migration, const char *fenced, struct error **e)
{
	cleanup_json json_t *peers = peers_list(host->peers);
	const int64_t deadline_us = clock_monotonic_us() + ASK_ALL_US;
	size_t i;
	const json_t *peer;
	json_array_foreach (peers, i, peer) {
		const char *name = json_string_value(json_object_get(peer, "name"));
		cleanup_free char *owner = NULL;
		uint64_t epoch = 0;
		if (strcmp(name, fenced) == 0)
			continue;
		if (clock_monotonic_us() > deadline_us ||
		    !peers_ask_owner(host->peers, name, migration->vm_uuid, ASK_TIMEOUT_MS, &owner, &epoch))
			log_warning("%s has not said that the VM is not there", name);
		else if (strcmp(owner, name) == 0 && epoch >= migration->epoch)
			return error_set(e, ERROR_VM_NOT_OWNER, "%s says that it owns the VM, at epoch %llu: it has moved on", name,
					 (unsigned long long)epoch);
	}
	return 0;
}

int resolve_migration(struct migration_host *host, struct migration *migration, const char *owner, const char *fenced,
		      struct error **e)
{
	if (resolve_check(migration, owner, fenced, e) < 0 ||
	    (strcmp(owner, host->name) == 0 && resolve_ask_others(host, migration, fenced, e) < 0))
		return -1;
	if (migration->role == MIGRATION_SOURCE)
		return resolve_departure(migration, owner, fenced, e);
	pthread_mutex_lock(&migration->work);
	int r = resolve_arrival(host, migration, strcmp(owner, host->name) == 0, e);
	if (r == 0) {
		log_warning("a person has settled that %s owns the VM, and stated that %s is fenced", owner, fenced);
		migration_set_resolution(migration, owner, fenced, migration->epoch + 1, clock_wall_ms());
	}
	pthread_mutex_unlock(&migration->work);
	if (r == 0 && journal_keep_view(host->journal, migration, NULL) < 0)
		log_error("cannot keep the result");
	return r;
}

void resolve_recall(struct migration *migration)
{
	const struct vm *vm = migration->vm;
	if (vm->epoch != migration->epoch + 1 || migration_resolution_epoch(migration, NULL))
		return;
	bool source_owns = strcmp(vm->owner, migration->source) == 0;
	migration_set_resolution(migration, vm->owner, source_owns ? migration->destination : migration->source, vm->epoch,
				 clock_wall_ms());
}

/* ---- a source that learns of it ---- */

int resolve_yield(struct migration_host *host, struct migration *migration, struct error **e)
{
	const struct vm_driver *driver = inventory_driver(host->inventory);
	struct vm *vm = migration->vm;
	if (!vm && inventory_lock(host->inventory, migration->vm_uuid, "given to another host", &vm, e) < 0)
		return -1;
	int r = 0;
	struct machine_state state = {.run = MACHINE_GONE};
	if (vm->machine)
		driver->state(vm->machine, &state);
	if (vm->epoch + 1 != migration->epoch)
		r = error_set(e, ERROR_PEER_STALE, "%s runs VM '%s' at epoch %llu, and here it is at %llu", migration->destination,
			      vm->name, (unsigned long long)migration->epoch, (unsigned long long)vm->epoch);
	if (r == 0 && state.run == MACHINE_RUNNING) {
		log_error("pausing the guest: a person has given the VM to %s, which runs it", migration->destination);
		r = driver->pause(vm->machine, e);
	}
	struct journal_ownership theirs = {
		.vm = vm, .owner = migration->destination, .epoch = migration->epoch, .definition = vm->definition};
	if (r == 0)
		r = journal_step(host->journal, migration, HANDOVER_RELEASED, &theirs, e);
	if (r == 0) {
		migration_set_owner(migration, migration->destination);
		migration_set_reason(migration, ERROR_MIGRATION_RESOLVED,
				     "a person has settled that the destination owns the VM");
	}
	if (!migration->vm)
		inventory_unlock(host->inventory, vm);
	return r;
}

/* ---- after a reboot ---- */

/* One VM whose job is held until the host that it came from has been asked. */
struct returned {
	struct migration *migration; /* the one that brought it */
	struct vm *vm;
	struct returned *next;
};

struct asking {
	struct migration_host *host;
	struct returned *first;
};

static void find_returned(void *user, struct migration *migration)
{
	struct asking *asking = user;
	struct vm *vm = NULL;
	if (migration->role != MIGRATION_DESTINATION || migration->handover != HANDOVER_RUNNING || !migration_ended(migration))
		return;
	/* Earlier ones of a VM that was found would wait for its job, and ferryd's start with them. */
	for (const struct returned *one = asking->first; one; one = one->next)
		if (strcmp(one->migration->vm_uuid, migration->vm_uuid) == 0)
			return;
	if (inventory_lock(asking->host->inventory, migration->vm_uuid, "asking whether it is still ours", &vm, NULL) < 0)
		return;
	inventory_job_ends_soon(asking->host->inventory, vm);
	if (vm->machine || !vm->definition || vm->epoch != migration->epoch || strcmp(vm->owner, asking->host->name) != 0) {
		inventory_unlock(asking->host->inventory, vm);
		return;
	}
	struct returned *one = xcalloc(1, sizeof(*one));
	*one = (struct returned){.migration = migration_ref(migration), .vm = vm, .next = asking->first};
	asking->first = one;
}

/* Returns false when the other host does not answer. */
static bool ask_returned(struct migration_host *host, struct returned *one)
{
	struct migration *migration = one->migration;
	struct http_client *client = NULL;
	cleanup_error struct error *e = NULL;
	cleanup_json json_t *answer = NULL;
	int64_t resolved_epoch = 0;
	const struct peer_question question = {PEER_OUTCOME, migration->source, migration->id, NULL, ASK_TIMEOUT_MS};
	bool answered = false;
	if (peers_take(host->peers, migration->source, &client, &e) < 0)
		return true; /* not a host that is known any more */
	int r = peers_ask(client, &question, &answer, &answered, &e);
	peers_give_back(host->peers, migration->source, client, !answered);
	if (r < 0 || json_get_integer_opt(answer, "resolved_epoch", (int64_t)migration->epoch + 1, INT64_MAX, &resolved_epoch, NULL) < 0)
		return answered;
	if (!resolved_epoch)
		return true;
	/* Whoever works on it has just been told the same, and waits for the job. */
	if (pthread_mutex_trylock(&migration->work) != 0)
		return true;
	migration->vm = one->vm; /* with its job: nobody may start it in between */
	if (arrival_cede(host, migration, (uint64_t)resolved_epoch, &e) < 0)
		log_failure(LOG_LEVEL_ERROR, "the VM has been given to another host, and that cannot be recorded", e);
	else
		one->vm = NULL;
	migration->vm = NULL;
	pthread_mutex_unlock(&migration->work);
	return true;
}

static void *ask_main(void *user)
{
	struct asking *asking = user;
	struct migration_host *host = asking->host;
	cleanup_free char *silent = NULL; /* the host that was asked last, if it did not answer */
	while (asking->first) {
		struct returned *one = asking->first;
		log_context_set(one->migration->id, one->migration->vm_name);
		if (!migration_host_stopping(host) && !(silent && strcmp(silent, one->migration->source) == 0) &&
		    !ask_returned(host, one)) {
			free(silent);
			silent = xstrdup(one->migration->source);
		}
		if (one->vm)
			inventory_unlock(host->inventory, one->vm);
		migration_unref(one->migration);
		asking->first = one->next;
		free(one);
	}
	log_context_set(NULL, NULL);
	if (!migration_host_stopping(host))
		inventory_autostart(host->inventory);
	free(asking);
	migration_host_worker_done(host);
	return NULL;
}

void resolve_ask_at_start(struct migration_host *host)
{
	struct asking *asking = xcalloc(1, sizeof(*asking));
	asking->host = host;
	migration_list_each(host->migrations, find_returned, asking);
	migration_host_start_worker(host, ask_main, asking, NULL);
}
