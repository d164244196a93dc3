/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The source's side of a migration.
 *
 * Theory of operation. One worker thread walks the stages in the order of this file:
 *
 *	begin    describe the VM as it really runs, open the journal (holds)
 *	check    both sides' checks, all failures at once; the data port is really connected to
 *	prepare  the destination starts a QEMU that waits
 *	copy     memory, until little enough is left (copy.c); the baton is offered before the guest may stop
 *	finish   only after our QEMU says completed: ask the destination to take the VM, until it has decided
 *	confirm  it runs there: release ours
 *
 * What may be done when a stage fails follows from the baton alone (handover.tbl): as long as finish was never sent, the VM is
 * ours whatever our QEMU says, and is taken back. Once it was sent, only the destination's answer decides; until it comes the
 * guest stays paused and the migration is in doubt. Nothing here ever resumes the guest because of a time-out.
 */
#include "migration/source.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/fault.h"
#include "base/json.h"
#include "base/log.h"
#include "base/xalloc.h"
#include "migration/checks.h"
#include "migration/copy.h"
#include "migration/offer.h"
#include "net/socket.h"

#define CHECK_TIMEOUT_MS 20000
#define PREPARE_TIMEOUT_MS 60000
#define PROBE_TIMEOUT_MS 3000
#define REFUSE_TIMEOUT_MS 10000
#define REFUSE_RETRY_FIRST_MS 500
#define REFUSE_RETRY_MAX_MS 30000
#define FORGET_TIMEOUT_MS 1000
#define QMP_CANCEL_TIMEOUT_MS 20000
/* How long finish may go unanswered before the migration is called in doubt; and between two questions then. */
#define FINISH_RETRY_FIRST_MS 200
#define FINISH_RETRY_MAX_MS 5000

/* What one worker has in its hands. */
struct source {
	struct migration_host *host;
	struct migration *migration;
	const struct vm_driver *driver;
	struct machine *machine;
	struct http_client *peer;
	struct offer offer;
	json_t *description;
	char data_address[64]; /* the destination's */
	uint16_t data_port;
	char probe_token[RANDOM_ID_SIZE];
	char tls_key_hex[65]; /* "" when the copy goes in plain text */
	bool refuse_pending;
	bool destination_asked;	   /* to check: it may have reserved a port for us */
	bool destination_prepared; /* it may have started a machine for us */
	int64_t round_trip_us;
	struct copy_result copied;
};

/* ---- begin ---- */

static bool source_interrupted(void *user)
{
	const struct source *s = user;
	return migration_abort_requested(s->migration) || migration_host_stopping(s->host);
}

/* For what must be answered although somebody would like to abort. */
static bool source_stopping(void *user)
{
	const struct source *s = user;
	return migration_host_stopping(s->host);
}

/* An interrupted request: because somebody aborted the migration, or because ferryd is stopping, which cancels nothing. */
static int source_interrupted_why(const struct source *s, struct error *problem, struct error **e)
{
	if (problem->code == ERROR_CANCELLED && !migration_abort_requested(s->migration) && migration_host_stopping(s->host))
		problem->code = ERROR_SHUTTING_DOWN;
	return error_move(e, problem);
}

static int source_stop_requested(const struct source *s, struct error **e)
{
	if (migration_abort_requested(s->migration))
		return error_set(e, ERROR_CANCELLED, "cancelled on request");
	return 0;
}

static int source_describe(struct source *s, json_t *failures, struct error **e)
{
	struct migration *migration = s->migration;
	struct vm *vm = migration->vm;
	if (strcmp(migration->destination, s->host->name) == 0) {
		checks_add(failures, "source", ERROR_DEST_SAME_HOST, "the VM is on %s already", s->host->name);
		return 0;
	}
	struct error *not_owned = NULL;
	if (vm_check_owned(s->host->inventory, vm, &not_owned) < 0) {
		checks_add_error(failures, "source", not_owned);
		return 0;
	}
	if (!vm->machine) {
		checks_add(failures, "source", ERROR_VM_NOT_RUNNING, "VM '%s' is stopped; start it, or move it when it runs", vm->name);
		return 0;
	}
	s->machine = vm->machine;
	if (s->driver->describe(s->machine, &s->description, e) < 0)
		return -1;
	struct machine_state state;
	s->driver->state(s->machine, &state);
	checks_source(&state, s->description, failures);

	snprintf(s->offer.migration_id, sizeof(s->offer.migration_id), "%s", migration->id);
	snprintf(s->offer.source_journal, sizeof(s->offer.source_journal), "%s", journal_id(s->host->journal));
	s->offer.source = xstrdup(s->host->name);
	s->offer.epoch = migration->epoch;
	s->offer.description = json_incref(s->description);
	migration->guest_paused = state.run == MACHINE_PAUSED;
	s->offer.paused = migration->request.paused || migration->guest_paused;
	s->offer.channels = migration->request.channels;
	return definition_map(s->driver->definition(s->machine), (const char *const *)migration->request.maps,
			      migration->request.map_count, &s->offer.definition, e);
}

/* ---- check ---- */

/* Really connect to where the destination's QEMU will listen: a firewall is found now, not in the middle. */
static void source_check_data_port(struct source *s, json_t *failures)
{
	cleanup_error struct error *e = NULL;
	cleanup_close int fd = -1;
	char token[RANDOM_ID_SIZE] = "";
	size_t length = 0;
	if (socket_connect_tcp(s->data_address, s->data_port, PROBE_TIMEOUT_MS, &fd, &e) < 0) {
		checks_add(failures, "source", ERROR_DATA_UNREACHABLE, "%s", e->message);
		return;
	}
	struct timeval limit = {.tv_sec = PROBE_TIMEOUT_MS / 1000};
	setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
	while (length < sizeof(token) - 1) {
		ssize_t n = read(fd, token + length, sizeof(token) - 1 - length);
		if (n <= 0)
			break;
		length += (size_t)n;
	}
	token[length] = '\0';
	if (strcmp(token, s->probe_token) != 0)
		checks_add(failures, "source", ERROR_DATA_UNREACHABLE,
			   "something other than %s's ferryd answers at %s port %u", s->migration->destination, s->data_address,
			   s->data_port);
}

static int source_read_check_answer(struct source *s, const json_t *answer, json_t *failures, struct error **e)
{
	json_t *theirs = NULL, *data = NULL;
	const char *journal, *address, *token;
	int64_t port;
	bool trusted = false;
	if (json_get_array(answer, "failures", &theirs, e) < 0 || json_get_string(answer, "journal", &journal, e) < 0 ||
	    json_get_object_opt(answer, "data", &data, e) < 0)
		return -1;
	if (!offer_id_valid(journal))
		return error_set(e, ERROR_PEER_PROTOCOL, "the destination's journal has no valid id");
	snprintf(s->migration->peer_journal_id, sizeof(s->migration->peer_journal_id), "%s", journal);
	if (strcmp(journal, journal_id(s->host->journal)) == 0)
		checks_add(failures, "source", ERROR_DEST_SAME_HOST, "'%s' is this host under another name", s->migration->destination);
	json_array_extend(failures, theirs);
	if (!data)
		return 0; /* they had no port for us; that is among their failures */
	if (json_get_string(data, "address", &address, e) < 0 || json_get_integer(data, "port", 1, 65535, &port, e) < 0 ||
	    json_get_string(data, "token", &token, e) < 0 || json_get_bool(data, "trusted", &trusted, e) < 0)
		return -1;
	cleanup_json json_t *peer = NULL;
	if (!*address) { /* it listens on all of its addresses: the one of its control port is reached already */
		if (peers_get(s->host->peers, s->migration->destination, &peer, e) < 0)
			return -1;
		address = json_string_value(json_object_get(peer, "address"));
	}
	snprintf(s->data_address, sizeof(s->data_address), "%s", address);
	snprintf(s->probe_token, sizeof(s->probe_token), "%s", token);
	s->data_port = (uint16_t)port;
	/* Plain text only where both sides' configuration calls the network trusted. */
	if (!trusted || !socket_address_in_networks(s->data_address, s->host->trusted)) {
		unsigned char key[32];
		random_bytes(key, sizeof(key));
		for (size_t i = 0; i < sizeof(key); i++)
			snprintf(s->tls_key_hex + 2 * i, 3, "%02x", key[i]);
		explicit_bzero(key, sizeof(key));
	}
	source_check_data_port(s, failures);
	return 0;
}

static int source_ask_destination_to_check(struct source *s, json_t *failures, struct error **e)
{
	struct error *problem = NULL;
	if (peers_take(s->host->peers, s->migration->destination, &s->peer, &problem) < 0) {
		checks_add_error(failures, "source", problem);
		return 0;
	}
	http_client_set_interrupt(s->peer, source_interrupted, s);
	if (checks_place_probes(s->driver->definition(s->machine), journal_id(s->host->journal), s->migration->id,
				 &s->offer.proofs, &problem) < 0) {
		checks_add_error(failures, "source", problem);
		return 0;
	}
	fault_point("", "probes-placed");
	cleanup_json json_t *body = offer_to_json(&s->offer);
	cleanup_json json_t *answer = NULL;
	int r = http_client_request(s->peer, "POST", "/v1/peer/check", body, CHECK_TIMEOUT_MS, &answer, &problem);
	s->destination_asked = r == 0 || http_client_answered(s->peer) || problem->code == ERROR_CANCELLED;
	int r2 = 0;
	if (r < 0 && problem->code == ERROR_CANCELLED) {
		r2 = source_interrupted_why(s, problem, e);
	} else if (r < 0) {
		if (!http_client_answered(s->peer))
			problem->code = problem->code == ERROR_TLS ? ERROR_TLS : ERROR_PEER_UNREACHABLE;
		checks_add_error(failures, http_client_answered(s->peer) ? "destination" : "source", problem);
	} else {
		r2 = source_read_check_answer(s, answer, failures, e);
	}
	checks_remove_probes(s->offer.proofs);
	return r2;
}

/* Returns 0 with an empty list when nothing speaks against the migration. */
static int source_check(struct source *s, json_t *failures, struct error **e)
{
	if (source_describe(s, failures, e) < 0)
		return -1;
	/* Without a machine or with a wrong destination there is nothing that could be asked over there. */
	if (s->offer.definition && source_ask_destination_to_check(s, failures, e) < 0)
		return -1;
	return source_stop_requested(s, e);
}

static int source_fail_checks(struct source *s, json_t *failures, struct error **e)
{
	const json_t *first = json_array_get(failures, 0);
	migration_lock(s->migration);
	json_decref(s->migration->failures);
	s->migration->failures = json_incref(failures);
	migration_unlock_changed(s->migration);
	enum error_code code = error_code_from_name(json_string_value(json_object_get(first, "code")));
	return error_set(e, code < ERROR_CODE_COUNT ? code : ERROR_PEER_REFUSED, "%s",
			 json_string_value(json_object_get(first, "message")));
}

/* ---- prepare ---- */

static void source_fill_move(const struct source *s, struct move_options *ret)
{
	*ret = (struct move_options){
		.address = s->data_address,
		.port = s->data_port,
		.tls_key_hex = *s->tls_key_hex ? s->tls_key_hex : NULL,
		.channels = s->migration->request.channels,
		.bandwidth_bytes_per_s = s->migration->request.bandwidth_bytes_per_s,
	};
}

static int source_prepare(struct source *s, struct error **e)
{
	if (*s->tls_key_hex)
		s->offer.tls_key_hex = xstrdup(s->tls_key_hex);
	migration_lock(s->migration);
	s->migration->encrypted = *s->tls_key_hex != '\0';
	migration_unlock_changed(s->migration);
	cleanup_json json_t *body = offer_to_json(&s->offer);
	s->destination_prepared = true; /* from here on it may have started something, even if no answer comes */
	struct error *problem = NULL;
	if (http_client_request(s->peer, "POST", "/v1/peer/prepare", body, PREPARE_TIMEOUT_MS, NULL, &problem) < 0) {
		(void)source_interrupted_why(s, problem, e);
		return error_wrap(e, "preparing %s", s->migration->destination);
	}
	fault_point("", "destination-prepared");
	return source_stop_requested(s, e);
}

/* ---- finish ---- */

enum finish_answer { FINISH_RUNNING, FINISH_REFUSED, FINISH_NO_ANSWER };

/* Ask the destination to take the VM (or to refuse it); both decide durably there and may be repeated. */
static enum finish_answer source_ask_outcome(struct source *s, const char *question, int64_t timeout_ms, struct error **e)
{
	cleanup_json json_t *body =
		json_pack("{ss ss sI ss sb}", "migration", s->migration->id, "vm_uuid", s->migration->vm_uuid, "epoch",
			  (json_int_t)s->migration->epoch, "source", s->host->name, "dry_run", (int)!s->destination_prepared);
	cleanup_json json_t *answer = NULL;
	cleanup_free char *path = xasprintf("/v1/peer/%s", question);
	if (!s->peer && peers_take(s->host->peers, s->migration->destination, &s->peer, e) < 0)
		return FINISH_NO_ANSWER;
	http_client_set_interrupt(s->peer, source_stopping, s);
	if (http_client_request(s->peer, "POST", path, body, timeout_ms, &answer, e) < 0) {
		peers_give_back(s->host->peers, s->migration->destination, take_ptr(s->peer), true);
		return FINISH_NO_ANSWER;
	}
	const char *state = NULL, *journal = NULL, *message = NULL;
	int64_t took_us = 0;
	if (json_get_string(answer, "state", &state, e) < 0 || json_get_string(answer, "journal", &journal, e) < 0 ||
	    json_get_string_opt(answer, "message", &message, e) < 0 ||
	    json_get_integer_opt(answer, "took_us", 0, INT64_MAX, &took_us, e) < 0)
		return FINISH_NO_ANSWER;
	int64_t wire_us = http_client_last_us(s->peer) - took_us;
	s->round_trip_us = wire_us > 0 ? wire_us : 0;
	if (strcmp(state, handover_state_name(HANDOVER_RUNNING)) == 0)
		return FINISH_RUNNING;
	if (strcmp(state, handover_state_name(HANDOVER_REFUSED)) == 0) {
		error_set(e, ERROR_PEER_REFUSED, "%s", message ? message : "the destination refused");
		return FINISH_REFUSED;
	}
	/* It does not know the migration. If its journal is the one that it prepared with, it never took the VM; a journal that
	 * has been lost since proves nothing. */
	if (strcmp(state, handover_state_name(HANDOVER_NONE)) == 0 && strcmp(journal, s->migration->peer_journal_id) == 0) {
		error_set(e, ERROR_PEER_REFUSED, "the destination never prepared this migration");
		return FINISH_REFUSED;
	}
	error_set(e, ERROR_MIGRATION_IN_DOUBT,
		  "%s answers '%s' with journal %s, but prepared with journal %s: it cannot tell whether it took the VM",
		  s->migration->destination, state, journal, s->migration->peer_journal_id);
	return FINISH_NO_ANSWER;
}

/* Repeat finish until the destination has decided. Returns FINISH_NO_ANSWER only when ferryd is stopping. */
static enum finish_answer source_finish(struct source *s, struct error **e)
{
	struct migration *migration = s->migration;
	int64_t wait_ms = FINISH_RETRY_FIRST_MS;
	migration_lock(migration);
	migration->too_late_to_abort = true;
	migration_unlock_changed(migration);
	for (;;) {
		struct error *problem = NULL;
		enum finish_answer answer = source_ask_outcome(s, "finish", s->host->finish_timeout_ms, &problem);
		if (answer != FINISH_NO_ANSWER) {
			error_move(e, problem);
			return answer;
		}
		log_failure(LOG_LEVEL_WARNING, "no answer to finish; asking again", problem);
		cleanup_free char *words = xasprintf("waiting for %s to say whether it has taken the VM: %s", migration->destination,
						     problem->message);
		migration_set_reason(migration, ERROR_MIGRATION_IN_DOUBT, words);
		migration_set_status(migration, MIGRATION_IN_DOUBT);
		error_free(problem);
		if (migration_host_wait_stopping(s->host, wait_ms))
			return FINISH_NO_ANSWER;
		wait_ms = wait_ms * 2 > FINISH_RETRY_MAX_MS ? FINISH_RETRY_MAX_MS : wait_ms * 2;
	}
}

/* ---- confirm ---- */

static void source_end(struct source *s, enum migration_status status)
{
	cleanup_error struct error *e = NULL;
	/* Whoever reads the new status may want the VM at once. */
	inventory_job_ends_soon(s->host->inventory, s->migration->vm);
	migration_set_status(s->migration, status);
	if (journal_keep_view(s->host->journal, s->migration, &e) < 0)
		log_failure(LOG_LEVEL_WARNING, "cannot keep the result", e);
}

static void source_set_cleanup_pending(struct source *s, bool pending)
{
	migration_lock(s->migration);
	s->migration->cleanup_pending = pending;
	migration_unlock_changed(s->migration);
}

static int source_confirm(struct source *s, struct error **e)
{
	struct migration *migration = s->migration;
	struct vm *vm = migration->vm;
	struct journal_ownership gone = {
		.vm = vm,
		.owner = migration->destination,
		.epoch = migration->epoch,
		.definition = migration->request.keep_source_definition ? vm->definition : NULL,
	};
	if (migration->handover == HANDOVER_OFFERED && journal_step(s->host->journal, migration, HANDOVER_RELEASED, &gone, e) < 0)
		return -1;
	migration_set_owner(migration, migration->destination);
	struct error *problem = NULL;
	fault_point("", "source-released");
	if (vm_end(s->host->inventory, vm, &problem) < 0) {
		/* The VM runs over there; what is left here is a stopped process. Tried again at the next start of ferryd. */
		log_failure(LOG_LEVEL_WARNING, "cannot end the source's QEMU", problem);
		source_set_cleanup_pending(s, true);
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

/* Make the guest run here again (if it did before). Finish was never sent, or was refused durably. */
static int source_take_back(struct source *s, struct error **e)
{
	struct migration *migration = s->migration;
	struct machine_state state;
	struct error *first = NULL, *next = NULL;
	/* The copy must have ended before anything else is touched. That QEMU may have completed it by now changes nothing:
	 * nobody was asked to take the VM. */
	s->driver->state(s->machine, &state);
	if (s->copied.begun && state.run != MACHINE_GONE && s->driver->move_cancel(s->machine, QMP_CANCEL_TIMEOUT_MS, &next) < 0) {
		s->driver->state(s->machine, &state);
		if (state.run != MACHINE_GONE)
			return error_move(e, next);
		error_free(take_ptr(next));
	}
	fault_point("", "copy-cancelled");
	if (migration->handover == HANDOVER_OFFERED && journal_step(s->host->journal, migration, HANDOVER_HOLDS, NULL, e) < 0)
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
	if (s->copied.was_running) /* QEMU has seen to it by itself, or must be told; telling it twice does no harm */
		(void)s->driver->resume(s->machine, &next);
	keep_first(&first, &next);
	return first ? error_move(e, first) : 0;
}

/* Tell the destination that it must not take the VM, or, if it never prepared, that it can forget us: then it has nothing
 * but a port in reserve, for a minute. */
static void source_send_refuse(struct source *s)
{
	cleanup_error struct error *e = NULL;
	if (!s->destination_prepared) {
		(void)source_ask_outcome(s, "refuse", FORGET_TIMEOUT_MS, &e);
	} else if (source_ask_outcome(s, "refuse", REFUSE_TIMEOUT_MS, &e) != FINISH_REFUSED) {
		log_failure(LOG_LEVEL_WARNING, "the destination did not confirm the rollback; telling it again later", e);
		source_set_cleanup_pending(s, true);
		s->refuse_pending = true;
	}
}

/* After the end: the VM is ours and free, the destination does not know it yet. Finish was never sent or was refused, so any
 * answer will do. (If ferryd stops meanwhile, the destination will ask, and hears that the migration has ended.) */
static void source_retry_refuse(struct source *s)
{
	int64_t wait_ms = REFUSE_RETRY_FIRST_MS;
	while (s->refuse_pending && !migration_host_wait_stopping(s->host, wait_ms)) {
		cleanup_error struct error *e = NULL;
		wait_ms = wait_ms * 2 > REFUSE_RETRY_MAX_MS ? REFUSE_RETRY_MAX_MS : wait_ms * 2;
		if (source_ask_outcome(s, "refuse", REFUSE_TIMEOUT_MS, &e) == FINISH_NO_ANSWER && e->code != ERROR_MIGRATION_IN_DOUBT)
			continue;
		s->refuse_pending = false;
		source_set_cleanup_pending(s, false);
		cleanup_error struct error *problem = NULL;
		if (journal_keep_view(s->host->journal, s->migration, &problem) < 0)
			log_failure(LOG_LEVEL_WARNING, "cannot keep the result", problem);
	}
}

/* The migration failed with `why` while the VM is ours. */
static void source_roll_back(struct source *s, const struct error *why)
{
	struct migration *migration = s->migration;
	struct error *problem = NULL;
	enum migration_status status = s->copied.begun ? MIGRATION_ROLLED_BACK : MIGRATION_FAILED;
	log_failure(LOG_LEVEL_WARNING, "rolling back", why);
	migration_set_reason(migration, why->code, why->message);
	if (s->machine && source_take_back(s, &problem) < 0) {
		struct machine_state state;
		s->driver->state(s->machine, &state);
		log_failure(LOG_LEVEL_ERROR, "rollback", problem);
		cleanup_free char *words = xasprintf("%s; then the way back failed (the guest is %s): %s", why->message,
						     machine_run_name(state.run), problem->message);
		migration_set_reason(migration, why->code, words);
		status = MIGRATION_ROLLED_BACK;
	}
	/* Without a machine (it ended while the answer was awaited) it is ours all the same: stopped. */
	if (!s->machine && migration->handover == HANDOVER_OFFERED &&
	    journal_step(s->host->journal, migration, HANDOVER_HOLDS, NULL, &problem) < 0)
		log_failure(LOG_LEVEL_ERROR, "rollback", problem);
	error_free(problem);
	fault_point("", "taken-back");
	if (s->destination_asked || s->destination_prepared)
		source_send_refuse(s);
	source_end(s, why->code == ERROR_CANCELLED ? MIGRATION_CANCELLED : status);
}

/* ---- the worker ---- */

static void source_done(struct source *s, bool peer_broken)
{
	peers_give_back(s->host->peers, s->migration->destination, s->peer, peer_broken);
	offer_done(&s->offer);
	json_decref(s->description);
	explicit_bzero(s->tls_key_hex, sizeof(s->tls_key_hex));
}

/* From "our QEMU has completed" to the end, whatever the destination decides. */
static void source_settle(struct source *s)
{
	struct migration *migration = s->migration;
	cleanup_error struct error *e = NULL;
	migration_set_status(migration, MIGRATION_COMPLETING);
	enum finish_answer answer = source_finish(s, &e);
	int64_t answered_us = clock_monotonic_us();
	if (answer == FINISH_NO_ANSWER)
		return; /* ferryd is stopping: the journal says offered, the guest stays paused, and the next ferryd asks again */
	if (answer == FINISH_REFUSED) {
		source_roll_back(s, e);
		return;
	}
	migration_lock(migration);
	if (s->copied.stopped_us)
		migration->downtime_us = answered_us - s->copied.stopped_us - s->round_trip_us / 2;
	migration->reason_code = ERROR_CODE_COUNT; /* a doubt that has been cleared up is no reason */
	migration_unlock_changed(migration);
	if (s->machine)
		copy_keep_final_figures(s->driver, s->machine, migration);
	if (source_confirm(s, &e) < 0) {
		/* The journal cannot be written: leave the guest stopped, the record `offered`; a restart settles it. */
		log_failure(LOG_LEVEL_ERROR, "cannot release the VM", e);
		migration_set_reason(migration, e->code, e->message);
		migration_set_status(migration, MIGRATION_IN_DOUBT);
		return;
	}
	source_end(s, MIGRATION_COMPLETED);
}

static int source_move(struct source *s, struct error **e)
{
	struct migration *migration = s->migration;
	cleanup_json json_t *failures = json_array();
	migration_set_status(migration, MIGRATION_CHECKING);
	if (source_check(s, failures, e) < 0)
		return -1;
	if (json_array_size(failures) > 0)
		return source_fail_checks(s, failures, e);

	migration_set_status(migration, MIGRATION_PREPARING);
	if (journal_step(s->host->journal, migration, HANDOVER_HOLDS, NULL, e) < 0 || source_prepare(s, e) < 0)
		return -1;

	migration_set_status(migration, MIGRATION_COPYING);
	struct move_options move;
	source_fill_move(s, &move);
	return copy_run(s->host, migration, s->machine, &move, &s->copied, e);
}

static void source_release_job(struct migration_host *host, struct migration *migration)
{
	struct vm *vm = migration->vm;
	migration->vm = NULL;
	inventory_unlock(host->inventory, vm);
}

static void *source_main(void *user)
{
	struct source *s = user;
	struct migration_host *host = s->host;
	struct migration *migration = s->migration;
	cleanup_error struct error *e = NULL;
	log_context_set(migration->id, migration->vm_name);
	if (source_move(s, &e) == 0)
		source_settle(s);
	else if (e->code != ERROR_SHUTTING_DOWN) /* then the next ferryd takes it up */
		source_roll_back(s, e);
	/* A VM whose owner is not settled stays locked, so that nobody starts or stops it meanwhile. */
	if (migration_ended(migration))
		source_release_job(host, migration);
	source_retry_refuse(s);
	source_done(s, false);
	free(s);
	migration_host_worker_done(host);
	migration_unref(migration);
	return NULL;
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

static void *source_recover_main(void *user)
{
	struct source *s = user;
	struct migration_host *host = s->host;
	struct migration *migration = s->migration;
	struct machine_state state = {.run = MACHINE_GONE};
	cleanup_error struct error *e = NULL;
	log_context_set(migration->id, migration->vm_name);
	if (s->machine)
		s->driver->state(s->machine, &state);
	s->copied = (struct copy_result){.begun = s->machine != NULL, .was_running = !migration->guest_paused, .ports_shut = s->machine != NULL};
	s->destination_prepared = true;
	log_info("recovering: handover=%s, the guest is %s, the copy is %s", handover_state_name(migration->handover),
		 machine_run_name(state.run), move_state_name(state.move));
	error_set(&e, ERROR_MIGRATION_INTERRUPTED, "ferryd was restarted during the copy");
	if (migration->handover == HANDOVER_RELEASED) {
		migration_set_status(migration, MIGRATION_COMPLETING);
		if (source_confirm(s, &e) == 0)
			source_end(s, MIGRATION_COMPLETED);
	} else if (migration->handover == HANDOVER_OFFERED && (state.run == MACHINE_GONE || state.move == MOVE_COMPLETED)) {
		/* Finish may have been sent, or our QEMU is gone and only the destination can still have the guest: in both cases
		 * the answer decides. */
		source_settle(s);
	} else {
		/* Finish is sent only after our QEMU has completed: it never was. */
		source_roll_back(s, e);
	}
	if (migration_ended(migration))
		source_release_job(host, migration);
	source_retry_refuse(s);
	source_done(s, false);
	free(s);
	migration_host_worker_done(host);
	migration_unref(migration);
	return NULL;
}

int source_recover(struct migration_host *host, struct migration *migration, struct error **e)
{
	cleanup_free char *job = xasprintf("migration %s", migration->id);
	if (inventory_lock(host->inventory, migration->vm_uuid, job, &migration->vm, e) < 0)
		return -1;
	struct source *s = source_new(host, migration_ref(migration));
	s->machine = migration->vm->machine;
	migration_host_start_worker(host, source_recover_main, s, NULL);
	return 0;
}

/* ---- requests ---- */

int source_begin(struct migration_host *host, const char *vm_name, struct migration_request *request, struct migration **ret,
		 struct error **e)
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
		error_set(e, ERROR_VM_NOT_FOUND, "no VM '%s' is defined on %s; it is owned by %s", vm_name, host->name, vm->owner);
		inventory_unlock(host->inventory, vm);
		migration_request_done(request);
		return -1;
	}
	struct migration *migration = migration_new(host->migrations, id, MIGRATION_SOURCE, vm->name, vm->uuid, host->name,
						    request->to, vm->epoch + 1);
	migration->request = *request;
	*request = (struct migration_request){0};
	migration->vm = vm;
	*ret = migration_ref(migration);
	migration_host_start_worker(host, source_main, source_new(host, migration), NULL);
	return 0;
}

int source_dry_run(struct migration_host *host, const char *vm_name, struct migration_request *request, json_t **ret_failures,
		   struct error **e)
{
	struct vm *vm = NULL;
	if (inventory_lock(host->inventory, vm_name, "checks before a migration", &vm, e) < 0) {
		migration_request_done(request);
		return -1;
	}
	struct migration *migration = migration_new(host->migrations, NULL, MIGRATION_SOURCE, vm->name, vm->uuid, host->name,
						    request->to, vm->epoch + 1);
	migration_list_remove(host->migrations, migration); /* a dry run is no migration that anybody could look at */
	migration->request = *request;
	migration->request.dry_run = true;
	*request = (struct migration_request){0};
	migration->vm = vm;
	struct source *s = source_new(host, migration);
	cleanup_json json_t *failures = json_array();
	int r = source_check(s, failures, e);
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

int source_abort(struct migration_host *host, struct migration *migration, struct error **e)
{
	migration_lock(migration);
	bool ended = migration_status_ended(migration->status), too_late = migration->too_late_to_abort;
	bool theirs = migration->role != MIGRATION_SOURCE;
	if (!ended && !too_late && !theirs)
		migration->abort_requested = true;
	migration_unlock_changed(migration);
	if (theirs)
		return error_set(e, ERROR_INVALID_ARGUMENT, "a migration is aborted at its source, %s", migration->source);
	if (ended)
		return error_set(e, ERROR_MIGRATION_ENDED, "the migration has ended already: %s", migration_status_name(migration->status));
	if (too_late)
		return error_set(e, ERROR_MIGRATION_TOO_LATE,
				 "%s has been asked to take over; the migration can no longer be aborted", migration->destination);
	(void)host; /* copy_run() sees the request within one sample */
	return 0;
}
