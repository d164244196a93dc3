/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One connection of a relay: bytes both ways, by TLS or, on a network that the configuration trusts, in plain text. Blocking. One
 * thread may send while another receives; relay_connection_shut() ends both from any thread.
 */
#ifndef FERRY_RELAY_CONNECTION_H
#define FERRY_RELAY_CONNECTION_H

#include <stddef.h>
#include <stdint.h>

#include "base/error.h"
#include "net/tls_channel.h"

struct relay_connection;

/* Takes over a connected descriptor, or a channel. */
struct relay_connection *relay_connection_new_plain(int fd);
struct relay_connection *relay_connection_new_tls(struct tls_channel *channel);
/* No thread may be in one of the calls below. */
void relay_connection_free(struct relay_connection *connection);

/* All of it. ERROR_DATA_RELAY when the connection is broken, or shut. */
int relay_connection_send(struct relay_connection *connection, const void *data, size_t size_bytes, struct error **e) MUST_CHECK;
/* Exactly so many bytes. The same error, also when the other side has closed it. */
int relay_connection_receive(struct relay_connection *connection, void *ret, size_t size_bytes, struct error **e) MUST_CHECK;
void relay_connection_shut(struct relay_connection *connection);
/* For options of the socket. */
int relay_connection_fd(const struct relay_connection *connection);

/* What went over it, as the kernel counts it, acknowledged or not, retransmissions included; 0 where it cannot be told. */
uint64_t relay_connection_wire_bytes(const struct relay_connection *connection);

#endif
