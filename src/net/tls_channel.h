/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A plain stream of bytes by mutual TLS 1.3 between two hosts, each of which knows by the other's certificate who it is. Blocking: one
 * thread may send while another receives, and shutdown(2) of its descriptor ends both from any thread.
 */
#ifndef FERRY_NET_TLS_CHANNEL_H
#define FERRY_NET_TLS_CHANNEL_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "net/tls_server.h"

struct tls_channel;

/* Over a connected descriptor, which is taken over even on failure, to the host of this name. */
int tls_channel_connect(int fd, const char *name, const struct tls_files *files, int64_t timeout_ms, struct tls_channel **ret,
			struct error **e) MUST_CHECK;
/* The other side of it; *ret_peer says who is there: a host or a client. */
int tls_channel_accept(int fd, struct tls_server *server, int64_t timeout_ms, struct tls_channel **ret,
		       struct tls_server_peer *ret_peer, struct error **e) MUST_CHECK;
void tls_channel_free(struct tls_channel *channel);

/* As send(2) and recv(2): at least one byte; 0 from receive is the end. ERROR_TLS. */
ssize_t tls_channel_send(struct tls_channel *channel, const void *data, size_t size_bytes, struct error **e) MUST_CHECK;
ssize_t tls_channel_receive(struct tls_channel *channel, void *ret, size_t size_bytes, struct error **e) MUST_CHECK;
/* For options of the socket, to count what went over it, and to shut it. */
int tls_channel_fd(const struct tls_channel *channel);

#endif
