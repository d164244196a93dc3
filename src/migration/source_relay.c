/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The source's end of the relay of one migration; declared in source_steps.h. The check makes the first connection, which shows that the
 * destination's gate can be reached, and is used. A thread makes the others once there is something to send, and makes new ones for those that
 * break.
 */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/log.h"
#include "base/xalloc.h"
#include "migration/source_steps.h"
#include "net/socket.h"
#include "relay/pipe.h"

#define CONNECT_TIMEOUT_MS 3000
#define AGAIN_FIRST_MS 200
#define AGAIN_LAST_MS 5000
#define CONNECTIONS_LEAST 2
#define CONNECTIONS_MOST 4

struct source_relay {
	struct migration_host *host;
	const char *destination;
	char address[64];
	uint16_t port;
	char ticket[RANDOM_ID_SIZE];
	size_t wanted; /* connections */
	struct relay_connection *first; /* made by the check; NULL: taken */
	struct relay_pipe *pipe;
	pthread_t keeper;
	bool keeper_runs;
};

/* As many as there are processors to encrypt and compress, within reason. */
static size_t connections_wanted(unsigned int channels)
{
	const long processors = sysconf(_SC_NPROCESSORS_ONLN);
	if (channels > 1)
		return channels;
	return processors < CONNECTIONS_LEAST ? CONNECTIONS_LEAST : processors > CONNECTIONS_MOST ? CONNECTIONS_MOST : (size_t)processors;
}

static int connect_gate(const struct source_relay *relay, struct relay_connection **ret, struct error **e)
{
	return relay_gate_connect(relay->destination, relay->address, relay->port, relay->host->files, relay->ticket, CONNECT_TIMEOUT_MS, ret, e);
}

int source_relay_reach(struct source *s, uint16_t port, const char *ticket, struct error **e)
{
	struct source_relay *relay = s->relay = xcalloc(1, sizeof(*relay));
	relay->host = s->host;
	relay->destination = s->migration->destination;
	relay->port = port;
	relay->wanted = connections_wanted(s->migration->request.channels);
	snprintf(relay->address, sizeof(relay->address), "%s", s->data_address);
	snprintf(relay->ticket, sizeof(relay->ticket), "%s", ticket);
	return connect_gate(relay, &relay->first, e);
}

static void *keep_main(void *user)
{
	struct source_relay *relay = user;
	int64_t again_ms = 0;
	log_context_set(NULL, NULL);
	while (relay_pipe_await_fewer(relay->pipe, relay->wanted, again_ms)) {
		struct relay_connection *connection = NULL;
		cleanup_error struct error *e = NULL;
		if (connect_gate(relay, &connection, &e) == 0) {
			relay_pipe_add(relay->pipe, connection);
			again_ms = 0;
			continue;
		}
		if (e->code == ERROR_NOT_FOUND) { /* its ferryd has given up the migration, or was started anew */
			e->code = ERROR_DATA_RELAY;
			relay_pipe_break(relay->pipe, e);
			break;
		}
		if (again_ms == 0)
			log_failure(LOG_LEVEL_INFO, "a connection of the relay cannot be made now", e);
		again_ms = again_ms == 0 ? AGAIN_FIRST_MS : again_ms * 2 < AGAIN_LAST_MS ? again_ms * 2 : AGAIN_LAST_MS;
	}
	return NULL;
}

int source_relay_open(struct source *s, int *ret_fd, struct error **e)
{
	struct source_relay *relay = s->relay;
	cleanup_close int ours = -1, qemus = -1;
	if (socket_make_pair(&ours, &qemus, e) < 0)
		return -1;
	const struct relay_pipe_options options = {
		.qemu_fd = ours,
		.source = true,
		.patience_ms = s->host->times.prepare_timeout_ms,
		.ask = true,
		.copies_bytes = s->host->copies_bytes,
	};
	relay->pipe = relay_pipe_new(&options, e);
	if (!relay->pipe)
		return -1;
	(void)take_fd(ours);
	relay_pipe_limit_rate(relay->pipe, s->migration->request.promise.bandwidth_bytes_per_s);
	relay_pipe_add(relay->pipe, take_ptr(relay->first));
	if (pthread_create(&relay->keeper, NULL, keep_main, relay) != 0)
		abort(); /* no memory for a stack */
	relay->keeper_runs = true;
	migration_lock(s->migration);
	s->migration->pipe = relay->pipe;
	migration_unlock_changed(s->migration);
	*ret_fd = take_fd(qemus);
	return 0;
}

void source_relay_free(struct source *s)
{
	struct source_relay *relay = take_ptr(s->relay);
	if (!relay)
		return;
	migration_lock(s->migration);
	s->migration->pipe = NULL;
	migration_unlock_changed(s->migration);
	if (relay->pipe)
		relay_pipe_end(relay->pipe); /* so that the keeper ends */
	if (relay->keeper_runs)
		pthread_join(relay->keeper, NULL);
	relay_pipe_free(relay->pipe);
	relay_connection_free(relay->first);
	free(relay);
}
