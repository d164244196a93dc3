/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The destination's side of a migration.
 *
 * Theory of operation. The source asks; every answer follows from the journal's state of this migration (handover.tbl)
 * and moves it on at most one decision:
 *
 *	check     none                 looks at everything, reserves a data port; nothing durable
 *	prepare   none -> prepared     the VM is known here from now on, owned by the source; QEMU waits
 *	finish    prepared -> taken    once QEMU has everything; then cont; taken -> running; answers "running"
 *	          prepared -> refused  if QEMU could not load it
 *	          taken -> prepared -> refused   only if the guest provably never ran
 *	refuse    prepared -> refused  the machine is ended
 *	          none -> refused      a tombstone: finish for this id is refused for ever
 *
 * A record is durable before the act that it names. Messages are answered under the migration's `work` mutex, so two of
 * them never decide at once. A watcher thread looks after a prepared machine: if QEMU ends, or nothing is heard of the
 * source for too long and it does not answer a question either, the destination refuses by itself; that is always safe,
 * because as long as it is only prepared nobody has been told that the VM runs here. Only if everything has arrived it
 * waits (in-doubt): its machine may be all that is left of the guest.
 *
 * A person may have settled what nobody can tell any more (resolve.c): then refuse carries a higher epoch, and even
 * taken or running becomes refused.
 */
#include "migration/destination.h"

#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/fault.h"
#include "base/json.h"
#include "base/log.h"
#include "base/xalloc.h"
#include "migration/arrival.h"
#include "migration/checks.h"
#include "migration/resolve.h"
#include "net/socket.h"

/* ---- check ---- */

/* What prepare must repeat of the offer that was checked: all of it; the key comes only with prepare. */
static json_t *offer_to_compare(const struct offer *offer)
{
	json_t *json = offer_to_json(offer);
	json_object_del(json, "tls_key_hex");
	return json;
}

struct source_count {
	const char *source;
	unsigned int checked;
};

static void count_checked(void *user, struct migration *migration)
{
	struct source_count *count = user;
	/* Read without `work`: one that is prepared just now may still count. */
	if (migration->role == MIGRATION_DESTINATION && strcmp(migration->source, count->source) == 0) {
		pthread_mutex_lock(&migration->mutex);
		count->checked += migration->handover == HANDOVER_NONE && migration->status == MIGRATION_CHECKING;
		pthread_mutex_unlock(&migration->mutex);
	}
}

/* Each check holds a port until prepare, so one source may hold no more than half of them. */
static int check_source_not_busy(struct migration_host *host, const char *source, struct error **e)
{
	const unsigned int ports = (unsigned int)(host->data_port_max - host->data_port_min + 1);
	struct source_count count = {.source = source};
	migration_list_each(host->migrations, count_checked, &count);
	if (count.checked >= (ports + 1) / 2)
		return error_set(e, ERROR_PEER_BUSY, "%u migrations of %s have been checked and not prepared; no more than %u may be",
				 count.checked, source, (ports + 1) / 2);
	return 0;
}

static int parse_offer_of(const char *caller, const json_t *body, struct offer *ret, struct error **e)
{
	if (offer_parse(body, ret, e) < 0)
		return -1;
	if (strcmp(ret->source, caller) == 0)
		return 0;
	error_set(e, ERROR_PERMISSION, "the certificate says '%s', the message '%s'", caller, ret->source);
	offer_done(ret);
	return -1;
}

static void drop_if_stale(void *user, struct migration *migration)
{
	struct migration_host *host = user;
	if (migration->role != MIGRATION_DESTINATION || pthread_mutex_trylock(&migration->work) != 0)
		return; /* somebody works on it: it is not stale */
	if (migration->handover == HANDOVER_NONE && migration->arrival &&
	    clock_monotonic_us() - migration->arrival->heard_us >= host->times.check_lifetime_ms * 1000)
		arrival_forget_checked(host, migration);
	pthread_mutex_unlock(&migration->work);
}

/* A timer of the loop. */
static void drop_stale(void *user)
{
	struct migration_host *host = user;
	migration_list_each(host->migrations, drop_if_stale, host);
}

struct superseding {
	struct migration_host *host;
	const struct offer *offer;
};

/* The owner offers a VM of which an earlier arrival waits here still: it has given that one up, and its refusal has not
 * reached us. As long as it is only prepared, refusing is ours to decide. */
static void refuse_if_superseded(void *user, struct migration *migration)
{
	const struct superseding *superseding = user;
	const struct offer *offer = superseding->offer;
	cleanup_error struct error *e = NULL;
	if (migration->role != MIGRATION_DESTINATION || strcmp(migration->vm_uuid, offer->definition->uuid) != 0 ||
	    strcmp(migration->source, offer->source) != 0)
		return;
	bool another = strcmp(migration->id, offer->migration_id) != 0; /* else the message has come twice */
	pthread_mutex_lock(&migration->work);
	if (migration->handover == HANDOVER_PREPARED && another &&
	    arrival_refuse(superseding->host, migration, ERROR_CANCELLED,
			   "the source has begun another migration of the VM", &e) < 0)
		log_failure(LOG_LEVEL_ERROR, "refusing", e);
	else if (migration->handover == HANDOVER_NONE && migration->arrival)
		arrival_forget_checked(superseding->host, migration);
	pthread_mutex_unlock(&migration->work);
}

/* A check may come again as long as nothing has followed it. */
static int check_goes_on(struct migration_host *host, const char *id, struct error **e)
{
	struct migration *migration = NULL;
	if (migration_find(host->migrations, id, &migration, NULL) < 0)
		return 0;
	pthread_mutex_lock(&migration->mutex);
	bool only_checked = migration->role == MIGRATION_DESTINATION && migration->handover == HANDOVER_NONE;
	pthread_mutex_unlock(&migration->mutex);
	migration_unref(migration);
	return only_checked ? 0 : error_set(e, ERROR_PEER_STALE, "migration %s is known here already", id);
}

int destination_check(struct migration_host *host, const char *caller, const json_t *body, json_t **ret,
		      struct error **e)
{
	struct offer offer = {0};
	if (parse_offer_of(caller, body, &offer, e) < 0)
		return -1;
	struct migration *migration = NULL;
	if (check_goes_on(host, offer.migration_id, e) < 0) {
		offer_done(&offer);
		return -1;
	}
	/* What was refused before it was heard of must not begin either. */
	enum handover_state earlier = HANDOVER_NONE;
	if (journal_state(host->journal, offer.migration_id, &earlier, e) < 0 ||
	    (earlier != HANDOVER_NONE && error_set(e, ERROR_PEER_STALE, "migration %s is %s here", offer.migration_id,
						   handover_state_name(earlier)) < 0)) {
		offer_done(&offer);
		return -1;
	}
	/* Now, and not for an old one that comes late: that must not end a newer arrival. */
	struct superseding superseding = {host, &offer};
	migration_list_each(host->migrations, refuse_if_superseded, &superseding);
	if (migration_find(host->migrations, offer.migration_id, &migration, NULL) == 0) { /* prepared in this very moment */
		migration_unref(migration);
		error_set(e, ERROR_PEER_STALE, "migration %s is known here already", offer.migration_id);
		offer_done(&offer);
		return -1;
	}
	log_context_set(offer.migration_id, offer.definition->name);
	cleanup_json json_t *failures = json_array();
	if (check_source_not_busy(host, offer.source, e) < 0 || checks_destination(host, &offer, failures, e) < 0) {
		offer_done(&offer);
		return -1;
	}
	cleanup_json json_t *answer = json_pack("{si ss ss}", "protocol", MIGRATION_PROTOCOL, "host", host->name,
						"journal", journal_id(host->journal));
	struct destination_arrival *arrival = xcalloc(1, sizeof(*arrival));
	struct error *no_port = NULL;
	arrival->heard_us = clock_monotonic_us();
	arrival->checked = offer_to_compare(&offer);
	arrival->checks_failed = json_array_size(failures) > 0;
	checks_disk_files(offer.definition, arrival->files);
	arrival->timer = loop_add_timer(host->loop, host->times.check_lifetime_ms + 1, 0, drop_stale, host);
	if (offer.relay && !host->gate)
		error_set(&no_port, ERROR_DATA_RELAY, "'%s' has no certificate, so that no relay can come to it", host->name);
	if (no_port || data_port_reserve(host, &arrival->port, &no_port) < 0) {
		checks_add_error(failures, "destination", no_port);
		arrival_free(arrival);
	} else {
		json_object_set_new(answer, "data",
				    json_pack("{ss si ss sb}", "address", host->data_address, "port",
					      (int)arrival->port.port, "token", arrival->port.token, "trusted",
					      (int)socket_address_in_networks(host->data_address, host->trusted)));
		if (offer.relay) {
			arrival->relay = arrival_relay_new(host->gate, offer.source);
			json_object_set_new(answer, "relay", arrival_relay_view(arrival->relay));
		}
		migration = migration_new(host->migrations, offer.migration_id, MIGRATION_DESTINATION,
					  offer.definition->name, offer.definition->uuid, offer.source, host->name,
					  offer.epoch);
		migration->arrival = arrival;
		migration_set_status(migration, MIGRATION_CHECKING);
		migration_unref(migration);
	}
	json_object_set(answer, "failures", failures);
	offer_done(&offer);
	*ret = take_ptr(answer);
	return 0;
}

/* ---- prepare ---- */

/* Make the VM known here, owned by the source, and start its machine. On failure the caller refuses. */
static int start_arrival(struct migration_host *host, struct migration *migration, struct error **e)
{
	struct destination_arrival *arrival = migration->arrival;
	const struct offer *offer = &arrival->offer;
	struct vm *vm = migration->vm;
	cleanup_json json_t *definition_json = definition_to_json(offer->definition);
	struct definition *definition = NULL;
	if (definition_parse(definition_json, &definition, e) < 0)
		return -1;
	arrival->new_here = vm->epoch == 0;
	arrival->old_owner = vm->epoch ? xstrdup(vm->owner) : NULL;
	arrival->old_epoch = vm->epoch;
	if (vm->definition) {
		cleanup_json json_t *old_json = definition_to_json(vm->definition);
		if (definition_parse(old_json, &arrival->old_definition, e) < 0)
			arrival->old_definition = NULL;
	}
	/* No more than what was known already; see arrival_refuse(). Of a VM that is new here: that it is the source's. */
	struct journal_ownership known = {.vm = vm,
					  .owner = vm->epoch ? vm->owner : migration->source,
					  .epoch = vm->epoch ? vm->epoch : 1,
					  .definition = definition};
	if (journal_step(host->journal, migration, HANDOVER_PREPARED, &known, e) < 0) {
		definition_free(definition);
		return -1;
	}
	vm->arriving = true;
	migration_set_status(migration, MIGRATION_PREPARING);

	struct move_options move = {
		.address = *host->data_address ? host->data_address : "0.0.0.0",
		.port = arrival->port.port,
		.tls_key_hex = offer->tls_key_hex,
		.channels = offer->channels,
		.may_postcopy = offer->postcopy,
	};
	struct machine_observer observer = vm_observer(host->inventory, vm);
	struct machine *machine = NULL;
	cleanup_close int stream_fd = -1;
	data_port_release(&arrival->port); /* the machine listens there now */
	if (arrival->relay && arrival_relay_open(arrival->relay, host, vm->definition->owner, &stream_fd, e) < 0)
		return -1;
	move.stream_fd = stream_fd > 0 ? stream_fd : 0;
	if (inventory_driver(host->inventory)
		    ->start_incoming(inventory_driver_host(host->inventory), vm->definition, &move, &observer, &machine,
				     e) < 0)
		return -1;
	vm_set_machine(host->inventory, vm, machine);
	FAULT(FAULT_INCOMING_STARTED);
	migration_lock(migration);
	migration->relayed = offer->relay;
	migration->encrypted = offer->tls_key_hex != NULL || offer->relay;
	migration_unlock_changed(migration);
	migration_set_status(migration, MIGRATION_COPYING);
	arrival_watch(host, migration);
	return 0;
}

static int prepare_held(struct migration_host *host, struct migration *migration, struct offer *offer, struct error **e)
{
	struct destination_arrival *arrival = migration->arrival;
	if (migration->handover == HANDOVER_PREPARED)
		return 0; /* said twice */
	if (migration->handover != HANDOVER_NONE || !arrival)
		return error_set(e, ERROR_PEER_STALE, "migration %s is %s here", migration->id,
				 handover_state_name(migration->handover));
	cleanup_json json_t *offered = offer_to_compare(offer);
	if (!json_equal(offered, arrival->checked))
		return error_set(e, ERROR_PEER_PROTOCOL, "prepare and check of migration %s disagree", migration->id);
	if (arrival->checks_failed)
		return error_set(e, ERROR_PEER_PROTOCOL, "the checks of migration %s speak against it", migration->id);
	struct checks_file files[DEFINITION_DISKS_MAX];
	checks_disk_files(offer->definition, files);
	if (memcmp(files, arrival->files, sizeof(files)) != 0)
		return error_set(e, ERROR_DEST_NOT_SAME_FILE, "a disk of the VM is another file than when it was checked");
	cleanup_free char *job = xasprintf("migration %s", migration->id);
	if (inventory_lock_arriving(host->inventory, migration->vm_uuid, migration->vm_name, job, &migration->vm, e) <
	    0)
		return -1;
	struct vm *vm = migration->vm;
	if (vm->machine || vm->epoch >= offer->epoch || (vm->epoch && strcmp(vm->owner, host->name) == 0)) {
		error_set(e, ERROR_PEER_STALE, "%s has the VM at epoch %llu, owned by '%s'; the offer is of epoch %llu",
			  host->name, (unsigned long long)vm->epoch, vm->owner, (unsigned long long)offer->epoch);
		migration->vm = NULL;
		inventory_unlock(host->inventory, vm);
		return -1;
	}
	offer_done(&arrival->offer);
	arrival->offer = *offer;
	*offer = (struct offer){0};
	arrival->heard_us = clock_monotonic_us();
	migration->guest_paused = arrival->offer.paused;
	snprintf(migration->peer_journal_id, sizeof(migration->peer_journal_id), "%s", arrival->offer.source_journal);
	struct error *problem = NULL;
	if (start_arrival(host, migration, &problem) == 0)
		return 0;
	struct error *second = NULL;
	if (migration->handover == HANDOVER_PREPARED &&
	    arrival_refuse(host, migration, problem->code, problem->message, &second) < 0) {
		log_failure(LOG_LEVEL_ERROR, "refusing", second);
	} else if (migration->vm) {
		migration->vm = NULL;
		inventory_unlock(host->inventory, vm);
	}
	error_free(second);
	return error_move(e, problem);
}

int destination_prepare(struct migration_host *host, const char *caller, const json_t *body, json_t **ret,
			struct error **e)
{
	struct offer offer = {0};
	struct migration *migration = NULL;
	if (parse_offer_of(caller, body, &offer, e) < 0)
		return -1;
	log_context_set(offer.migration_id, offer.definition->name);
	if (migration_find(host->migrations, offer.migration_id, &migration, e) < 0) {
		offer_done(&offer);
		return -1;
	}
	pthread_mutex_lock(&migration->work);
	int r = migration->role == MIGRATION_DESTINATION
			? prepare_held(host, migration, &offer, e)
			: error_set(e, ERROR_PEER_PROTOCOL, "migration %s is not one that comes here", migration->id);
	pthread_mutex_unlock(&migration->work);
	migration_unref(migration);
	offer_done(&offer);
	if (r == 0)
		*ret = json_pack("{ss}", "journal", journal_id(host->journal));
	return r;
}

/* ---- the source's questions ---- */

struct question {
	const char *id, *vm_uuid, *source;
	int64_t epoch, resolved_epoch; /* the second: what a person has settled on, or 0 */
	bool dry_run;
	bool mend;		 /* in post-copy: listen for another stream */
	const char *tls_key_hex; /* that is encrypted with this */
};

static int read_question(const char *caller, const json_t *body, struct question *ret, struct error **e)
{
	struct question question = {0};
	if (json_get_string(body, "migration", &question.id, e) < 0 ||
	    json_get_string(body, "vm_uuid", &question.vm_uuid, e) < 0 ||
	    json_get_string(body, "source", &question.source, e) < 0 ||
	    json_get_integer(body, "epoch", 2, OFFER_EPOCH_MAX, &question.epoch, e) < 0 ||
	    json_get_integer_opt(body, "resolved_epoch", question.epoch + 1, question.epoch + 1, &question.resolved_epoch, e) < 0 ||
	    json_get_bool_opt(body, "dry_run", &question.dry_run, e) < 0 ||
	    json_get_bool_opt(body, "mend", &question.mend, e) < 0 ||
	    json_get_string_opt(body, "tls_key_hex", &question.tls_key_hex, e) < 0)
		return -1;
	if (question.tls_key_hex && !offer_key_valid(question.tls_key_hex))
		return error_set(e, ERROR_PEER_PROTOCOL, "key 'tls_key_hex' must be 64 hex digits");
	if (!offer_id_valid(question.id))
		return error_set(e, ERROR_PEER_PROTOCOL, "key 'migration' is not an id");
	if (!offer_uuid_valid(question.vm_uuid))
		return error_set(e, ERROR_PEER_PROTOCOL, "key 'vm_uuid' is not a uuid");
	if (strcmp(question.source, caller) != 0)
		return error_set(e, ERROR_PERMISSION, "the certificate says '%s', the message '%s'", caller,
				 question.source);
	*ret = question;
	return 0;
}

static json_t *answer_state(struct migration_host *host, enum handover_state state, const char *message,
			    int64_t began_us)
{
	return json_pack("{ss ss ss* sI}", "state", handover_state_name(state), "journal", journal_id(host->journal),
			 "message", message, "took_us", (json_int_t)(clock_monotonic_us() - began_us));
}

typedef int decide_function(struct migration_host *host, struct migration *migration, const struct question *question,
			    struct error **e);

static int decide_finish(struct migration_host *host, struct migration *migration, const struct question *question,
			 struct error **e)
{
	if (migration->arrival)
		migration->arrival->heard_us = clock_monotonic_us();
	if (question->resolved_epoch && migration->handover == HANDOVER_PREPARED)
		return arrival_take_settled(host, migration, e);
	if (question->resolved_epoch &&
	    (migration->handover == HANDOVER_REFUSED || migration->handover == HANDOVER_RUNNING))
		return arrival_inherit(host, migration, (uint64_t)question->resolved_epoch, e);
	if (migration->handover == HANDOVER_PREPARED)
		return arrival_take(host, migration, e);
	if (migration->handover == HANDOVER_TAKEN)
		return arrival_take_over(host, migration, e);
	return 0;
}

static int decide_refuse(struct migration_host *host, struct migration *migration, const struct question *question,
			 struct error **e)
{
	if (migration->handover == HANDOVER_PREPARED)
		return arrival_refuse(host, migration, ERROR_CANCELLED, "the source took the VM back", e);
	if (migration->handover == HANDOVER_NONE && question->dry_run) {
		arrival_forget_checked(host, migration);
		return 0;
	}
	if (migration->handover == HANDOVER_NONE)
		return arrival_refuse(host, migration, ERROR_CANCELLED, "the source gave the migration up", e);
	if (question->resolved_epoch &&
	    (migration->handover == HANDOVER_TAKEN || migration->handover == HANDOVER_RUNNING))
		return arrival_cede(host, migration, (uint64_t)question->resolved_epoch, e);
	if (migration->handover == HANDOVER_TAKEN) /* the record of what followed failed: the question moves it on */
		return arrival_take_over(host, migration, e);
	return 0; /* running: too late, and the answer says so */
}

static int answer_question(struct migration_host *host, const char *caller, const json_t *body, decide_function *decide,
			   bool refusing, json_t **ret, struct error **e)
{
	int64_t began_us = clock_monotonic_us();
	struct question question;
	struct migration *migration = NULL;
	if (read_question(caller, body, &question, e) < 0)
		return -1;
	log_context_set(question.id, NULL);
	if (migration_find(host->migrations, question.id, &migration, NULL) < 0) {
		/* Not in memory: an old one, or never heard of. A refusal is written down either way, so that a finish
		 * that comes late finds it. */
		enum handover_state state = HANDOVER_NONE;
		if (journal_state(host->journal, question.id, &state, e) < 0)
			return -1;
		if (state == HANDOVER_NONE && refusing && !question.dry_run) {
			if (journal_refuse_unknown(host->journal, question.id, question.vm_uuid, question.source,
						   (uint64_t)question.epoch, e) < 0)
				return -1;
			state = HANDOVER_REFUSED;
		}
		*ret = answer_state(host, state, "this migration is not known here", began_us);
		return 0;
	}
	log_context_set(question.id, migration->vm_name);
	pthread_mutex_lock(&migration->work);
	int r = 0;
	if (migration->role != MIGRATION_DESTINATION || strcmp(migration->source, caller) != 0 ||
	    strcmp(migration->vm_uuid, question.vm_uuid) != 0 || migration->epoch != (uint64_t)question.epoch)
		r = error_set(e, ERROR_PEER_STALE, "the question does not fit migration %s as it is known here",
			      migration->id);
	else
		r = decide(host, migration, &question, e);
	uint16_t port = 0;
	if (r == 0 && question.mend && migration->handover == HANDOVER_RUNNING)
		r = arrival_mend(host, migration, question.tls_key_hex, &port, e);
	if (r == 0) { /* in post-copy a thread of ours may just be saying what it waits for */
		LOCK_SCOPE(&migration->mutex);
		*ret = answer_state(host, migration->handover, migration->reason_message, began_us);
	}
	if (r == 0 && port) {
		json_object_set_new(*ret, "port", json_integer(port));
		json_object_set_new(*ret, "address", json_string(host->data_address));
	}
	if (r == 0 && (migration_resolution_epoch(migration, NULL) || (migration->vm && migration->vm->epoch > migration->epoch)))
		json_object_set_new(*ret, "settled", json_true());
	if (r == 0 && arrival_is_lost(host, migration))
		json_object_set_new(*ret, "lost", json_true());
	if (r == 0 && migration->handover == HANDOVER_RUNNING && migration->vm && !migration->settling) {
		json_object_set_new(*ret, "done", json_boolean(arrival_is_whole(host, migration)));
		arrival_settle_when_whole(host, migration, true);
	}
	pthread_mutex_unlock(&migration->work);
	migration_unref(migration);
	return r;
}

int destination_finish(struct migration_host *host, const char *caller, const json_t *body, json_t **ret,
		       struct error **e)
{
	return answer_question(host, caller, body, decide_finish, false, ret, e);
}

int destination_refuse(struct migration_host *host, const char *caller, const json_t *body, json_t **ret,
		       struct error **e)
{
	return answer_question(host, caller, body, decide_refuse, true, ret, e);
}

int destination_outcome(struct migration_host *host, const char *caller, const char *migration_id, json_t **ret,
			struct error **e)
{
	struct migration *migration = NULL;
	if (!offer_id_valid(migration_id)) /* for users a beginning will do */
		return error_set(e, ERROR_PEER_PROTOCOL, "'%.64s' is not an id", migration_id);
	if (migration_find(host->migrations, migration_id, &migration, e) < 0)
		return -1;
	bool concerned = strcmp(migration->source, caller) == 0 || strcmp(migration->destination, caller) == 0;
	pthread_mutex_lock(&migration->mutex);
	enum handover_state handover = migration->handover;
	pthread_mutex_unlock(&migration->mutex);
	uint64_t resolved_epoch = migration_resolution_epoch(migration, NULL);
	if (concerned)
		*ret = json_pack("{ss ss sb ss}", "state", handover_state_name(handover), "role",
				 migration->role == MIGRATION_SOURCE ? "source" : "destination", "ended",
				 (int)migration_ended(migration), "journal", journal_id(host->journal));
	/* A person has given the VM back to the source. */
	if (concerned && resolved_epoch && migration->role == MIGRATION_SOURCE && handover == HANDOVER_HOLDS)
		json_object_set_new(*ret, "resolved_epoch", json_integer((json_int_t)resolved_epoch));
	if (!concerned)
		error_set(e, ERROR_PERMISSION, "migration %s is between other hosts", migration_id);
	migration_unref(migration);
	return concerned ? 0 : -1;
}

int destination_owner(struct migration_host *host, const char *vm_uuid, json_t **ret, struct error **e)
{
	cleanup_free char *owner = NULL;
	uint64_t epoch = 0;
	if (!offer_uuid_valid(vm_uuid))
		return error_set(e, ERROR_PEER_PROTOCOL, "'%.64s' is not a uuid", vm_uuid);
	if (!inventory_ownership(host->inventory, vm_uuid, &owner, &epoch))
		return error_set(e, ERROR_VM_NOT_FOUND, "%s knows nothing of VM %s", host->name, vm_uuid);
	*ret = json_pack("{ss ss sI}", "vm_uuid", vm_uuid, "owner", owner, "epoch", (json_int_t)epoch);
	return 0;
}

/* ---- after a restart ---- */

int destination_recover(struct migration_host *host, struct migration *migration, struct error **e)
{
	log_context_set(migration->id, migration->vm_name);
	if (migration->handover == HANDOVER_REFUSED) { /* all is said; the VM may be forgotten already */
		arrival_end(host, migration, MIGRATION_ROLLED_BACK);
		log_context_set(NULL, NULL);
		return 0;
	}
	if (inventory_lock(host->inventory, migration->vm_uuid, "migration", &migration->vm, e) < 0)
		return -1;
	struct vm *vm = migration->vm;
	resolve_recall(migration);
	pthread_mutex_lock(&migration->work);
	int r = 0;
	switch (migration->handover) {
	case HANDOVER_PREPARED:
		vm->arriving = true;
		if (!vm->machine) {
			r = arrival_refuse(host, migration, ERROR_QEMU_GONE,
					   "the destination's QEMU was gone after a restart", e);
			break;
		}
		migration->arrival = xcalloc(1, sizeof(*migration->arrival));
		migration->arrival->port.fd = -1;
		migration->arrival->heard_us = clock_monotonic_us();
		migration_set_status(migration, MIGRATION_COPYING);
		arrival_watch(host, migration);
		break;
	case HANDOVER_TAKEN:
		migration_set_status(migration, MIGRATION_COMPLETING);
		r = arrival_take_over(host, migration, e);
		if (r == 0 && migration->handover == HANDOVER_RUNNING)
			arrival_settle_when_whole(host, migration, false);
		break;
	case HANDOVER_RUNNING:
		migration_set_owner(migration, host->name);
		migration_set_status(migration, MIGRATION_COMPLETING);
		arrival_settle_when_whole(host, migration, false);
		break;
	default:
		break; /* the source's states, and refused */
	}
	pthread_mutex_unlock(&migration->work);
	log_context_set(NULL, NULL);
	return r;
}

/* ---- when ferryd stops ---- */

static void let_go(void *user, struct migration *migration)
{
	(void)user;
	struct destination_arrival *arrival = migration->arrival;
	if (migration->role != MIGRATION_DESTINATION || !arrival)
		return;
	if (arrival->watched)
		pthread_join(arrival->watcher, NULL);
	arrival_free(take_ptr(migration->arrival));
}

void destination_stop(struct migration_host *host)
{
	migration_list_each(host->migrations, let_go, NULL);
}
