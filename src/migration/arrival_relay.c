/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The destination's end of the relay of one arrival; declared in arrival.h. It is expected from the check on, so that the source can see
 * that it gets here, and what arrives before there is a machine waits for it.
 */
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/xalloc.h"
#include "migration/arrival.h"
#include "net/socket.h"
#include "relay/pipe.h"

#define WAITING_MAX 64

struct arrival_relay {
	struct relay_gate *gate;
	char ticket[RANDOM_ID_SIZE];
	struct page_supplier *supplier; /* of pages that this host has */
	pthread_mutex_t mutex;		/* all below */
	struct relay_pipe *pipe;	/* to QEMU; NULL: there is none yet */
	struct relay_connection *waiting[WAITING_MAX];
	size_t waiting_count;
};

/* On a thread of the gate's. */
static void add_connection(void *user, struct relay_connection *connection)
{
	struct arrival_relay *relay = user;
	LOCK_SCOPE(&relay->mutex);
	if (relay->pipe)
		relay_pipe_add(relay->pipe, connection);
	else if (relay->waiting_count < WAITING_MAX)
		relay->waiting[relay->waiting_count++] = connection;
	else
		relay_connection_free(connection);
}

struct arrival_relay *arrival_relay_new(struct relay_gate *gate, const char *source)
{
	struct arrival_relay *relay = xcalloc(1, sizeof(*relay));
	relay->gate = gate;
	pthread_mutex_init(&relay->mutex, NULL);
	random_id(relay->ticket);
	relay_gate_expect(gate, relay->ticket, source, add_connection, relay);
	return relay;
}

void arrival_relay_free(struct arrival_relay *relay)
{
	if (!relay)
		return;
	relay_gate_forget(relay->gate, relay->ticket);
	relay_pipe_free(relay->pipe);
	page_supplier_free(relay->supplier);
	for (size_t i = 0; i < relay->waiting_count; i++)
		relay_connection_free(relay->waiting[i]);
	pthread_mutex_destroy(&relay->mutex);
	free(relay);
}

json_t *arrival_relay_view(const struct arrival_relay *relay)
{
	return json_pack("{si ss}", "port", (int)relay_gate_port(relay->gate), "ticket", relay->ticket);
}

int arrival_relay_open(struct arrival_relay *relay, const struct migration_host *host, const char *owner, int *ret_fd, struct error **e)
{
	cleanup_close int ours = -1, qemus = -1;
	if (socket_make_pair(&ours, &qemus, e) < 0)
		return -1;
	if (host->supply)
		relay->supplier = page_supplier_new(host->supply, owner);
	const struct relay_pipe_options options = {
		.qemu_fd = ours, .patience_ms = host->times.prepare_timeout_ms, .supplier = relay->supplier};
	struct relay_pipe *pipe = relay_pipe_new(&options, e);
	if (!pipe)
		return -1;
	(void)take_fd(ours);
	*ret_fd = take_fd(qemus);
	LOCK_SCOPE(&relay->mutex);
	relay->pipe = pipe;
	for (size_t i = 0; i < relay->waiting_count; i++)
		relay_pipe_add(pipe, relay->waiting[i]);
	relay->waiting_count = 0;
	return 0;
}
