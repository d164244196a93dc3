/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The one port at which connections of relays arrive, and the way to it. A source shows its certificate and then the ticket that the
 * destination has given it for one migration; a connection without both is closed, and nobody hears of it but the log.
 *
 * Any thread.
 */
#ifndef FERRY_RELAY_GATE_H
#define FERRY_RELAY_GATE_H

#include <stdint.h>

#include "base/clock.h"
#include "base/error.h"
#include "net/tls.h"
#include "relay/connection.h"

#define RELAY_PORT 4711

struct relay_gate;

/* Listen. address NULL: on all. The files are looked at again when they change. */
int relay_gate_new(const char *address, uint16_t port, const struct tls_files *files, struct relay_gate **ret, struct error **e)
	MUST_CHECK;
/* Nothing may be expected any more. */
void relay_gate_free(struct relay_gate *gate);
/* The port, for one that was asked for as 0. */
uint16_t relay_gate_port(const struct relay_gate *gate);

/* From now on each connection of this host that shows the ticket is given to add(), on a thread of the gate's. */
void relay_gate_expect(struct relay_gate *gate, const char ticket[RANDOM_ID_SIZE], const char *host,
		       void (*add)(void *user, struct relay_connection *connection), void *user);
/* No more, and add() does not run any more when this returns. Accepts what was never expected. */
void relay_gate_forget(struct relay_gate *gate, const char *ticket);

/* The other side: a connection to the gate of this host. ERROR_DATA_UNREACHABLE, ERROR_TLS, ERROR_DATA_RELAY where it broke; ERROR_NOT_FOUND
 * where the answer is that nobody there expects this. */
int relay_gate_connect(const char *host, const char *address, uint16_t port, const struct tls_files *files,
		       const char ticket[RANDOM_ID_SIZE], int64_t timeout_ms, struct relay_connection **ret, struct error **e) MUST_CHECK;

#endif
