/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The destination's data port before QEMU listens on it; see data_port.h. Holding the listening socket is the reservation:
 * two arrivals can never be given the same port, and a port that somebody else uses is passed over.
 */
#include "migration/data_port.h"

#include <errno.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "net/socket.h"

static void data_port_answer(void *user, uint32_t epoll_events)
{
	(void)epoll_events;
	const struct data_port *data_port = user;
	cleanup_close int fd = accept4(data_port->fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
	if (fd >= 0) /* 32 bytes always fit into a fresh socket's buffer */
		(void)!send(fd, data_port->token, strlen(data_port->token), MSG_NOSIGNAL);
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
	if (data_port->fd > 0)
		close(data_port->fd);
	data_port->fd = -1;
}
