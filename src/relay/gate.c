/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The gate of the relay; see gate.h. One thread accepts; each connection has a thread of its own until it has said what it is for, of
 * which there are GUESTS_MAX at most, so that nobody can make more than that by connecting and saying nothing.
 *
 * After the TLS handshake the source says, in 48 bytes: "FERRYRLY", u32 version, u32 0, the ticket's 32 digits; the destination
 * answers, in 8: u32 version, u32 0 for welcome, 1 for not. Big-endian. Then both are a link's (link.h).
 */
#include "relay/gate.h"

#include <arpa/inet.h>
#include <endian.h>
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/cleanup.h"
#include "base/log.h"
#include "base/xalloc.h"
#include "net/socket.h"
#include "net/tls_server.h"

#define MAGIC "FERRYRLY"
#define MAGIC_BYTES 8
#define VERSION 1
#define TICKET_BYTES (RANDOM_ID_SIZE - 1)
#define HELLO_BYTES (MAGIC_BYTES + 8 + TICKET_BYTES)
#define ANSWER_BYTES 8
#define WELCOME 0
#define NOT_WELCOME 1
#define GUESTS_MAX 128
#define GUEST_TIMEOUT_MS 10000

struct expected {
	struct expected *next;
	char ticket[RANDOM_ID_SIZE];
	char host[TLS_NAME_SIZE];
	void (*add)(void *user, struct relay_connection *connection);
	void *user;
	unsigned int adding; /* threads that are in add() */
};

struct relay_gate {
	int fd, wake_fd;
	struct tls_server *tls;
	pthread_t accepter;
	pthread_mutex_t mutex; /* all below */
	pthread_cond_t changed;
	struct expected *expected;
	struct guest *guests;
	bool closing;
};

/* A connection that has not said yet what it is for. */
struct guest {
	struct guest *next;
	struct relay_gate *gate;
	int fd; /* for shutting it only; -1 once it is no guest any more */
	pthread_t thread;
	bool done;
};

/* ---- what a connection says first ---- */

static struct expected *find_expected(struct relay_gate *gate, const char *ticket, const char *host)
{
	for (struct expected *expected = gate->expected; expected; expected = expected->next)
		if (strcmp(expected->ticket, ticket) == 0 && strcmp(expected->host, host) == 0)
			return expected;
	return NULL;
}

/* The ticket that it shows. */
static int read_hello(struct relay_connection *connection, char ret_ticket[RANDOM_ID_SIZE], struct error **e)
{
	uint8_t hello[HELLO_BYTES];
	const uint8_t *magic, *ticket;
	uint32_t version, reserved;
	if (relay_connection_receive(connection, hello, sizeof(hello), e) < 0)
		return -1;
	struct bytes bytes = {.data = hello, .size_bytes = sizeof(hello)};
	if (!bytes_take(&bytes, MAGIC_BYTES, &magic) || !bytes_take_u32(&bytes, &version) || !bytes_take_u32(&bytes, &reserved) ||
	    !bytes_take(&bytes, TICKET_BYTES, &ticket) || memcmp(magic, MAGIC, MAGIC_BYTES) != 0)
		return error_set(e, ERROR_PEER_PROTOCOL, "it does not speak as a relay");
	if (version != VERSION)
		return error_set(e, ERROR_PEER_VERSION, "its relay is of version %u, ours of version %d", version, VERSION);
	memcpy(ret_ticket, ticket, TICKET_BYTES);
	ret_ticket[TICKET_BYTES] = '\0';
	return 0;
}

static int send_answer(struct relay_connection *connection, uint32_t answer, struct error **e)
{
	const uint32_t words[] = {htobe32(VERSION), htobe32(answer)};
	return relay_connection_send(connection, words, sizeof(words), e);
}

/* To whoever expects it. Takes the connection over, also where nobody does. */
static int hand_on(struct relay_gate *gate, struct relay_connection *connection, const struct tls_server_peer *peer, struct error **e)
{
	char ticket[RANDOM_ID_SIZE];
	struct expected *expected = NULL;
	int r = read_hello(connection, ticket, e);
	if (r == 0) {
		LOCK_SCOPE(&gate->mutex);
		expected = gate->closing || peer->role != TLS_ROLE_HOST ? NULL : find_expected(gate, ticket, peer->name);
		if (expected)
			expected->adding++;
	}
	if (r == 0 && !expected)
		r = error_set(e, ERROR_PERMISSION, "'%s' is not expected, or shows a ticket that is not", peer->name);
	if (send_answer(connection, expected ? WELCOME : NOT_WELCOME, r == 0 ? e : NULL) < 0)
		r = -1;
	socket_set_timeout(relay_connection_fd(connection), 0);
	if (r == 0)
		expected->add(expected->user, connection);
	else
		relay_connection_free(connection);
	if (expected) {
		LOCK_SCOPE(&gate->mutex);
		expected->adding--;
		pthread_cond_broadcast(&gate->changed);
	}
	return r;
}

/* Strangers can cause this line, so not more than one a second. */
static void log_refusal(const struct error *why)
{
	static _Atomic int64_t last_ms;
	int64_t now_ms = clock_monotonic_ms(), before_ms = atomic_load(&last_ms);
	if (now_ms - before_ms >= 1000 && atomic_compare_exchange_strong(&last_ms, &before_ms, now_ms))
		log_failure(LOG_LEVEL_INFO, "a connection to the relay was refused", why);
}

static void *guest_main(void *user)
{
	struct guest *guest = user;
	struct relay_gate *gate = guest->gate;
	struct tls_channel *channel = NULL;
	struct tls_server_peer peer;
	cleanup_error struct error *e = NULL;
	/* A descriptor of its own, which is taken over; the guest's is for shutting it as long as it is a guest. */
	int fd = dup(guest->fd);
	if (fd >= 0 && tls_channel_accept(fd, gate->tls, GUEST_TIMEOUT_MS, &channel, &peer, &e) == 0) {
		socket_set_timeout(fd, GUEST_TIMEOUT_MS);
		(void)hand_on(gate, relay_connection_new_tls(channel), &peer, &e);
	}
	if (e)
		log_refusal(e);
	LOCK_SCOPE(&gate->mutex);
	close(take_fd(guest->fd));
	guest->done = true;
	return NULL;
}

/* ---- accepting ---- */

/* Those that are done; all of them if `all`. The mutex is held, and given back meanwhile. */
static size_t reap_guests(struct relay_gate *gate, bool all)
{
	size_t left = 0;
	for (struct guest **at = &gate->guests; *at;) {
		struct guest *guest = *at;
		if (!guest->done && !all) {
			left++;
			at = &guest->next;
			continue;
		}
		*at = guest->next;
		pthread_mutex_unlock(&gate->mutex);
		pthread_join(guest->thread, NULL);
		free(guest);
		pthread_mutex_lock(&gate->mutex);
		at = &gate->guests; /* only this thread adds and removes */
		left = 0;
	}
	return left;
}

static void receive_guest(struct relay_gate *gate)
{
	int fd = accept4(gate->fd, NULL, NULL, SOCK_CLOEXEC);
	if (fd < 0)
		return;
	LOCK_SCOPE(&gate->mutex);
	if (reap_guests(gate, false) >= GUESTS_MAX) {
		close(fd);
		return;
	}
	struct guest *guest = xcalloc(1, sizeof(*guest));
	guest->gate = gate;
	guest->fd = fd;
	guest->next = gate->guests;
	gate->guests = guest;
	if (pthread_create(&guest->thread, NULL, guest_main, guest) != 0)
		abort(); /* no memory for a stack */
}

static void *accept_main(void *user)
{
	struct relay_gate *gate = user;
	for (;;) {
		struct pollfd fds[] = {{.fd = gate->fd, .events = POLLIN}, {.fd = gate->wake_fd, .events = POLLIN}};
		if (poll(fds, 2, -1) < 0)
			continue;
		if (fds[1].revents)
			break;
		receive_guest(gate);
	}
	LOCK_SCOPE(&gate->mutex);
	for (struct guest *guest = gate->guests; guest; guest = guest->next)
		if (guest->fd >= 0)
			shutdown(guest->fd, SHUT_RDWR);
	(void)reap_guests(gate, true);
	return NULL;
}

/* ---- for the user ---- */

int relay_gate_new(const char *address, uint16_t port, const struct tls_files *files, struct relay_gate **ret, struct error **e)
{
	struct relay_gate *gate = xcalloc(1, sizeof(*gate));
	gate->fd = gate->wake_fd = -1;
	if (tls_server_new(files, &gate->tls, e) < 0 || socket_listen_tcp(address, port, &gate->fd, e) < 0) {
		tls_server_free(gate->tls);
		free(gate);
		return -1;
	}
	gate->wake_fd = eventfd(0, EFD_CLOEXEC);
	pthread_mutex_init(&gate->mutex, NULL);
	cond_init(&gate->changed);
	if (gate->wake_fd < 0 || pthread_create(&gate->accepter, NULL, accept_main, gate) != 0)
		abort(); /* no descriptors or no memory, at the start */
	*ret = gate;
	return 0;
}

void relay_gate_free(struct relay_gate *gate)
{
	const uint64_t one = 1;
	if (!gate)
		return;
	pthread_mutex_lock(&gate->mutex);
	gate->closing = true;
	pthread_mutex_unlock(&gate->mutex);
	(void)!write(gate->wake_fd, &one, sizeof(one));
	pthread_join(gate->accepter, NULL);
	close(gate->fd);
	close(gate->wake_fd);
	tls_server_free(gate->tls);
	pthread_cond_destroy(&gate->changed);
	pthread_mutex_destroy(&gate->mutex);
	free(gate);
}

uint16_t relay_gate_port(const struct relay_gate *gate)
{
	union {
		struct sockaddr any;
		struct sockaddr_in v4;
		struct sockaddr_in6 v6;
	} own;
	socklen_t size = sizeof(own);
	if (getsockname(gate->fd, &own.any, &size) < 0)
		return 0;
	return ntohs(own.any.sa_family == AF_INET ? own.v4.sin_port : own.v6.sin6_port);
}

void relay_gate_expect(struct relay_gate *gate, const char ticket[RANDOM_ID_SIZE], const char *host,
		       void (*add)(void *user, struct relay_connection *connection), void *user)
{
	struct expected *expected = xcalloc(1, sizeof(*expected));
	snprintf(expected->ticket, sizeof(expected->ticket), "%s", ticket);
	snprintf(expected->host, sizeof(expected->host), "%s", host);
	expected->add = add;
	expected->user = user;
	LOCK_SCOPE(&gate->mutex);
	expected->next = gate->expected;
	gate->expected = expected;
}

void relay_gate_forget(struct relay_gate *gate, const char *ticket)
{
	LOCK_SCOPE(&gate->mutex);
	for (struct expected **at = &gate->expected; *at; at = &(*at)->next) {
		struct expected *expected = *at;
		if (strcmp(expected->ticket, ticket) != 0)
			continue;
		*at = expected->next;
		while (expected->adding > 0)
			pthread_cond_wait(&gate->changed, &gate->mutex);
		free(expected);
		return;
	}
}

static int greet(struct relay_connection *connection, const char *ticket, struct error **e)
{
	uint8_t hello[HELLO_BYTES] = MAGIC;
	uint32_t answer[ANSWER_BYTES / sizeof(uint32_t)];
	const uint32_t version = htobe32(VERSION);
	memcpy(hello + MAGIC_BYTES, &version, sizeof(version));
	memcpy(hello + HELLO_BYTES - TICKET_BYTES, ticket, TICKET_BYTES);
	if (relay_connection_send(connection, hello, sizeof(hello), e) < 0 ||
	    relay_connection_receive(connection, answer, sizeof(answer), e) < 0)
		return -1;
	if (be32toh(answer[1]) != WELCOME)
		return error_set(e, ERROR_NOT_FOUND, "the destination's relay does not expect this migration, or speaks another version (%u)",
				 be32toh(answer[0]));
	return 0;
}

int relay_gate_connect(const char *host, const char *address, uint16_t port, const struct tls_files *files,
		       const char ticket[RANDOM_ID_SIZE], int64_t timeout_ms, struct relay_connection **ret, struct error **e)
{
	struct tls_channel *channel = NULL;
	struct error *problem = NULL;
	int fd = -1;
	if (socket_connect_tcp(address, port, timeout_ms, &fd, &problem) < 0) {
		error_set(e, ERROR_DATA_UNREACHABLE, "the destination's relay cannot be reached: %s; check firewalls and [data] port",
			  problem->message);
		error_free(problem);
		return -1;
	}
	if (tls_channel_connect(fd, host, files, timeout_ms, &channel, e) < 0)
		return error_wrap(e, "the destination's relay");
	struct relay_connection *connection = relay_connection_new_tls(channel);
	socket_set_timeout(fd, timeout_ms);
	if (greet(connection, ticket, e) < 0) {
		relay_connection_free(connection);
		return -1;
	}
	socket_set_timeout(fd, 0);
	*ret = connection;
	return 0;
}
