/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The source's first two stages: describe the VM as it really runs, and find everything that speaks against the move
 * before anything is started. See source.c for the whole.
 */
#include "migration/source_steps.h"

#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/fault.h"
#include "base/json.h"
#include "base/xalloc.h"
#include "migration/checks.h"
#include "net/socket.h"

#define PROBE_TIMEOUT_MS 3000
#define THEIR_FAILURES_MAX 256
#define THEIR_CODE_MAX_BYTES 64
#define DATA_PORT_MIN 1024

/* ---- begin ---- */

bool source_interrupted(void *user)
{
	const struct source *s = user;
	return migration_abort_requested(s->migration) || migration_host_stopping(s->host);
}

/* For what must be answered although somebody would like to abort. */
bool source_stopping(void *user)
{
	const struct source *s = user;
	return migration_host_stopping(s->host) || (s->settling && migration_resolution_epoch(s->migration, NULL));
}

/* An interrupted request: because somebody aborted the migration, or because ferryd is stopping, which cancels nothing.
 */
int source_interrupted_why(const struct source *s, struct error *problem, struct error **e)
{
	if (problem->code == ERROR_CANCELLED && !migration_abort_requested(s->migration) &&
	    migration_host_stopping(s->host))
		problem->code = ERROR_SHUTTING_DOWN;
	return error_move(e, problem);
}

bool source_may_postcopy(const struct source *s)
{
	const struct migration *migration = s->migration;
	return migration_promise_allows(&migration->request.promise, CONVERGE_POSTCOPY) && !migration->request.paused &&
	       !migration->guest_paused;
}

int source_stop_requested(const struct source *s, struct error **e)
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
		checks_add(failures, "source", ERROR_VM_NOT_RUNNING,
			   "VM '%s' is stopped; start it, or move it when it runs", vm->name);
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
	s->offer.relay = strcmp(migration->request.transport, "relay") == 0;
	s->offer.channels = s->offer.relay ? 1 : migration->request.channels;
	s->offer.postcopy = source_may_postcopy(s);
	return definition_map(s->driver->definition(s->machine), (const char *const *)migration->request.maps,
			      migration->request.map_count, &s->offer.definition, e);
}

/* ---- check ---- */

int source_connect_data_port(const struct source *s, int *ret_fd, struct error **e)
{
	cleanup_close int fd = -1;
	char token[RANDOM_ID_SIZE] = "";
	size_t length = 0;
	struct error *problem = NULL;
	if (socket_connect_tcp(s->data_address, s->data_port, PROBE_TIMEOUT_MS, &fd, &problem) < 0) {
		problem->code = ERROR_DATA_UNREACHABLE;
		return error_move(e, problem);
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
		return error_set(e, ERROR_DATA_UNREACHABLE, "something other than %s's ferryd answers at %s port %u",
				 s->migration->destination, s->data_address, s->data_port);
	*ret_fd = take_fd(fd);
	return 0;
}

/* Really connect to where the destination's QEMU will listen: a firewall is found now, not in the middle. */
static void source_check_data_port(struct source *s, json_t *failures)
{
	cleanup_close int fd = -1;
	struct error *e = NULL;
	if (source_connect_data_port(s, &fd, &e) < 0)
		checks_add_error(failures, "source", e);
}

/* What the destination found, in our own form: nothing of it that we do not know. */
static int source_read_their_failures(const json_t *theirs, json_t *ret_failures, struct error **e)
{
	size_t n;
	const json_t *failure;
	if (json_array_size(theirs) > THEIR_FAILURES_MAX)
		return error_set(e, ERROR_TOO_LARGE, "more than %d failures", THEIR_FAILURES_MAX);
	json_array_foreach (theirs, n, failure) {
		const char *code = NULL, *message = NULL;
		if (json_get_string(failure, "code", &code, e) < 0 || json_get_string(failure, "message", &message, e) < 0)
			return error_wrap(e, "failures[%zu]", n);
		cleanup_free char *name = xstrdup(code), *words = xstrdup(message);
		error_cut_text(name, THEIR_CODE_MAX_BYTES);
		error_cut_text(words, ERROR_MESSAGE_MAX_BYTES);
		json_array_append_new(ret_failures,
				      json_pack("{ss ss ss}", "code", name, "side", "destination", "message", words));
	}
	return 0;
}

/* Where the guest's memory shall go is the destination's to say, but only within reason: a port that no service of ours or
 * of others has, and the address of another host. */
static int source_read_data_port(struct source *s, const json_t *data, bool *ret_trusted, struct error **e)
{
	const char *address = NULL, *token = NULL;
	int64_t port = 0;
	cleanup_json json_t *peer = NULL;
	if (json_get_string(data, "address", &address, e) < 0 ||
	    json_get_integer(data, "port", DATA_PORT_MIN, 65535, &port, e) < 0 || json_get_string(data, "token", &token, e) < 0 ||
	    json_get_bool(data, "trusted", ret_trusted, e) < 0 || peers_get(s->host->peers, s->migration->destination, &peer, e) < 0)
		return -1;
	const char *control_address = json_string_value(json_object_get(peer, "address"));
	if (!*address) /* it listens on all of its addresses: the one of its control port is reached already */
		address = control_address;
	else if (strcmp(address, control_address) != 0 && !socket_address_is_remote(address))
		return error_set(e, ERROR_PEER_PROTOCOL, "'%.64s' cannot be the address of another host", address);
	/* Ours to compare with what answers there: were it free to choose, another service's greeting could be named. */
	if (!offer_id_valid(token))
		return error_set(e, ERROR_PEER_PROTOCOL, "data.token is not an id");
	snprintf(s->data_address, sizeof(s->data_address), "%s", address);
	snprintf(s->probe_token, sizeof(s->probe_token), "%s", token);
	s->data_port = (uint16_t)port;
	return 0;
}

static int source_read_check_answer(struct source *s, const json_t *answer, json_t *failures, struct error **e)
{
	json_t *theirs = NULL, *data = NULL;
	const char *journal = NULL, *host = NULL;
	int64_t protocol = 0;
	bool trusted = false;
	if (json_get_integer(answer, "protocol", MIGRATION_PROTOCOL, MIGRATION_PROTOCOL, &protocol, e) < 0 ||
	    json_get_string(answer, "host", &host, e) < 0 || json_get_array(answer, "failures", &theirs, e) < 0 ||
	    json_get_string(answer, "journal", &journal, e) < 0 || json_get_object_opt(answer, "data", &data, e) < 0)
		return -1;
	if (strcmp(host, s->migration->destination) != 0)
		return error_set(e, ERROR_PEER_PROTOCOL, "it is of '%.64s'", host);
	if (!offer_id_valid(journal))
		return error_set(e, ERROR_PEER_PROTOCOL, "its journal has no valid id");
	if (source_read_their_failures(theirs, failures, e) < 0)
		return -1;
	snprintf(s->migration->peer_journal_id, sizeof(s->migration->peer_journal_id), "%s", journal);
	if (strcmp(journal, journal_id(s->host->journal)) == 0)
		checks_add(failures, "source", ERROR_DEST_SAME_HOST, "'%s' is this host under another name",
			   s->migration->destination);
	if (!data && json_array_size(theirs) > 0)
		return 0; /* they had no port for us; that is among their failures */
	if (!data)
		return error_set(e, ERROR_PEER_PROTOCOL, "it names neither a port nor a reason");
	if (source_read_data_port(s, data, &trusted, e) < 0)
		return -1;
	if (s->offer.relay) {
		json_t *relay = NULL;
		const char *ticket = NULL;
		int64_t port = 0;
		if (json_get_object(answer, "relay", &relay, e) < 0 || json_get_integer(relay, "port", 1, 65535, &port, e) < 0 ||
		    json_get_string(relay, "ticket", &ticket, e) < 0)
			return -1;
		if (!offer_id_valid(ticket))
			return error_set(e, ERROR_PEER_PROTOCOL, "relay.ticket is not an id");
		struct error *problem = NULL;
		if (source_relay_reach(s, (uint16_t)port, ticket, &problem) < 0)
			checks_add_error(failures, "source", problem);
		return 0;
	}
	/* Plain text only where both sides' configuration calls the network trusted. */
	if (!trusted || !socket_address_in_networks(s->data_address, s->host->trusted))
		offer_make_key(s->tls_key_hex);
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
	FAULT(FAULT_PROBES_PLACED);
	cleanup_json json_t *body = offer_to_json(&s->offer);
	cleanup_json json_t *answer = NULL;
	bool answered = false;
	const struct peer_question question = {PEER_CHECK, s->migration->destination, s->migration->id, body,
					       s->host->times.check_timeout_ms};
	int r = peers_ask(s->peer, &question, &answer, &answered, &problem);
	s->destination_asked = answered || problem->code == ERROR_CANCELLED;
	int r2 = 0;
	if (r < 0 && problem->code == ERROR_CANCELLED) {
		r2 = source_interrupted_why(s, problem, e);
	} else if (r < 0) {
		if (!answered)
			problem->code = problem->code == ERROR_TLS ? ERROR_TLS : ERROR_PEER_UNREACHABLE;
		checks_add_error(failures, answered ? "destination" : "source", problem);
	} else {
		r2 = source_read_check_answer(s, answer, failures, &problem);
		if (r2 < 0) {
			problem->code = ERROR_PEER_PROTOCOL;
			error_move(e, problem);
			error_wrap(e, "the answer of %s to check", s->migration->destination);
		}
	}
	checks_remove_probes(s->offer.proofs);
	return r2;
}

/* Returns 0 with an empty list when nothing speaks against the migration. */
int source_check(struct source *s, json_t *failures, struct error **e)
{
	if (source_describe(s, failures, e) < 0)
		return -1;
	/* Without a machine or with a wrong destination there is nothing that could be asked over there. */
	if (s->offer.definition && source_ask_destination_to_check(s, failures, e) < 0)
		return -1;
	return source_stop_requested(s, e);
}

int source_fail_checks(struct source *s, json_t *failures, struct error **e)
{
	const json_t *first = json_array_get(failures, 0);
	migration_lock(s->migration);
	json_decref(s->migration->failures);
	s->migration->failures = json_incref(failures);
	migration_unlock_changed(s->migration);
	enum error_code code = error_code_from_name(json_string_value(json_object_get(first, "code")));
	return error_set(e, peers_code_of_other(code), "%s", json_string_value(json_object_get(first, "message")));
}
