/* SPDX-License-Identifier: Apache-2.0 */
/* Plain socket helpers: listening and connecting on TCP and unix sockets. Descriptors are CLOEXEC; the caller owns them. Any thread. */
#ifndef FERRY_NET_SOCKET_H
#define FERRY_NET_SOCKET_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/error.h"

/* Listen on a unix socket (an old socket file is replaced). */
int socket_listen_unix(const char *path, mode_t mode, int *ret_fd, struct error **e) MUST_CHECK;
int socket_connect_unix(const char *path, int *ret_fd, struct error **e) MUST_CHECK;
/* address: numeric IPv4/IPv6, NULL for all. EADDRINUSE is in (*e)->sys_errno. */
int socket_listen_tcp(const char *address, uint16_t port, int *ret_fd, struct error **e) MUST_CHECK;
/* Connect within timeout_ms; errors say whether it was refused or timed out. */
int socket_connect_tcp(const char *address, uint16_t port, int64_t timeout_ms, int *ret_fd, struct error **e) MUST_CHECK;
/* How long a blocking send or receive may take, each; 0: for ever. */
void socket_set_timeout(int fd, int64_t timeout_ms);
#define SOCKET_ADDRESS_SIZE 46
/* A peer's address as people write it; an IPv4 one that came by an IPv6 socket as IPv4. "" for what is no IP address. */
struct sockaddr;
void socket_address_text(const struct sockaddr *address, char ret[SOCKET_ADDRESS_SIZE]);
/* Whether a numeric address lies in one of the networks of a comma-separated list such as "198.18.0.0/24, fd00::/8". */
bool socket_address_in_networks(const char *address, const char *networks);
/* Whether a numeric address can be that of an interface of another host: not this host itself, nor all or many hosts. */
bool socket_address_is_remote(const char *address);
/* That every item of such a list is well formed. */
int socket_networks_check(const char *networks, struct error **e) MUST_CHECK;

/* All of it to a blocking socket; false, errno says why, when it takes no more. No SIGPIPE. */
bool socket_send_all(int fd, const void *data, size_t size_bytes);
/* A pair of connected sockets within this host, each closed on exec; both are the caller's. */
int socket_make_pair(int *ret_one, int *ret_other, struct error **e) MUST_CHECK;

#endif
