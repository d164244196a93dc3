/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The destination's data port before QEMU listens on it; see data_port.h. Holding the listening socket is the reservation:
 * two arrivals can never be given the same port, and a port that somebody else uses is passed over.
 */
#include "migration/data_port.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/xalloc.h"
#include "net/socket.h"

#define SINK_BYTES_MAX (INT64_C(4) << 30)
#define SINK_BYTES_AT_ONCE ((size_t)4 * 1024 * 1024) /* then the loop's other sources have their turn */

/* A connection whose bytes are thrown away. */
struct data_port_sink {
	struct data_port *data_port;
	struct loop_source *source;
	int fd;
	int64_t left_bytes;
};

/* Take the sink out and end it, unless somebody else does. On the loop's thread, or such that its callback does not run any more. */
static void data_port_end_sink(struct data_port *data_port)
{
	struct data_port_sink *sink = __atomic_exchange_n(&data_port->sink, NULL, __ATOMIC_ACQ_REL);
	if (!sink)
		return;
	loop_source_remove(sink->source); /* waits for its callback: from here on nobody else has it */
	close(sink->fd);
	free(sink);
}

static void data_port_swallow(void *user, uint32_t epoll_events)
{
	(void)epoll_events;
	struct data_port_sink *sink = user;
	/* MSG_TRUNC: the kernel drops what it has received, and copies none of it. */
	ssize_t n = recv(sink->fd, NULL, SINK_BYTES_AT_ONCE, MSG_TRUNC | MSG_DONTWAIT);
	if (n > 0)
		sink->left_bytes -= n;
	if (n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR) || sink->left_bytes <= 0)
		data_port_end_sink(sink->data_port);
}

static void data_port_answer(void *user, uint32_t epoll_events)
{
	(void)epoll_events;
	struct data_port *data_port = user;
	int fd = accept4(data_port->fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
	if (fd < 0)
		return;
	(void)!send(fd, data_port->token, strlen(data_port->token), MSG_NOSIGNAL); /* always fits into a fresh socket's buffer */
	data_port_end_sink(data_port);
	struct data_port_sink *sink = xcalloc(1, sizeof(*sink));
	*sink = (struct data_port_sink){.data_port = data_port, .fd = fd, .left_bytes = SINK_BYTES_MAX};
	sink->source = loop_add_fd(data_port->loop, fd, EPOLLIN, data_port_swallow, sink);
	__atomic_store_n(&data_port->sink, sink, __ATOMIC_RELEASE);
}

int data_port_reserve(struct migration_host *host, struct data_port *ret, struct error **e)
{
	static uint16_t last; /* go round, so that a port is not used again while the kernel may still remember connections */
	uint16_t count = (uint16_t)(host->data_port_max - host->data_port_min + 1);
	for (uint16_t i = 0; i < count; i++) {
		uint16_t offset = (uint16_t)(__atomic_add_fetch(&last, 1, __ATOMIC_RELAXED) % count);
		struct error *problem = NULL;
		data_port_release(ret);
		ret->port = (uint16_t)(host->data_port_min + offset);
		if (socket_listen_tcp(*host->data_address ? host->data_address : NULL, ret->port, &ret->fd, &problem) == 0) {
			random_id(ret->token);
			ret->loop = host->loop;
			ret->source = loop_add_fd(host->loop, ret->fd, EPOLLIN, data_port_answer, ret);
			return 0;
		}
		if (problem->sys_errno != EADDRINUSE)
			return error_move(e, problem);
		error_free(problem);
	}
	return error_set(e, ERROR_DATA_PORTS, "all ports from %u to %u are in use", host->data_port_min, host->data_port_max);
}

void data_port_release(struct data_port *data_port)
{
	loop_source_remove(data_port->source);
	data_port->source = NULL;
	data_port_end_sink(data_port); /* no new one can come */
	if (data_port->fd > 0)
		close(data_port->fd);
	data_port->fd = -1;
}
