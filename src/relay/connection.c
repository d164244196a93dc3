/* SPDX-License-Identifier: Apache-2.0 */
/* A connection of a relay; see connection.h. */
#include "relay/connection.h"

#include <errno.h>
#include <linux/tcp.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/xalloc.h"
#include "net/socket.h"

struct relay_connection {
	int fd;
	struct tls_channel *channel; /* NULL: plain text */
};

struct relay_connection *relay_connection_new_plain(int fd)
{
	struct relay_connection *connection = xcalloc(1, sizeof(*connection));
	connection->fd = fd;
	return connection;
}

struct relay_connection *relay_connection_new_tls(struct tls_channel *channel)
{
	struct relay_connection *connection = relay_connection_new_plain(tls_channel_fd(channel));
	connection->channel = channel;
	return connection;
}

void relay_connection_free(struct relay_connection *connection)
{
	if (!connection)
		return;
	if (connection->channel)
		tls_channel_free(connection->channel);
	else
		close(connection->fd);
	free(connection);
}

static int set_broken(struct error **e, const char *why)
{
	return error_set(e, ERROR_DATA_RELAY, "a connection between the two hosts' relays broke: %s", why);
}

int relay_connection_send(struct relay_connection *connection, const void *data, size_t size_bytes, struct error **e)
{
	if (!connection->channel)
		return socket_send_all(connection->fd, data, size_bytes) ? 0 : set_broken(e, strerror(errno));
	for (const uint8_t *at = data; size_bytes > 0;) {
		const ssize_t n = tls_channel_send(connection->channel, at, size_bytes, e);
		if (n < 0)
			return -1;
		at += n;
		size_bytes -= (size_t)n;
	}
	return 0;
}

int relay_connection_receive(struct relay_connection *connection, void *ret, size_t size_bytes, struct error **e)
{
	uint8_t *at = ret;
	while (size_bytes > 0) {
		ssize_t n = connection->channel ? tls_channel_receive(connection->channel, at, size_bytes, e)
						: recv(connection->fd, at, size_bytes, MSG_WAITALL);
		if (n < 0 && !connection->channel && errno == EINTR)
			continue;
		if (n < 0)
			return connection->channel ? -1 : set_broken(e, strerror(errno));
		if (n == 0)
			return set_broken(e, "the other side has closed it");
		at += n;
		size_bytes -= (size_t)n;
	}
	return 0;
}

void relay_connection_shut(struct relay_connection *connection)
{
	shutdown(connection->fd, SHUT_RDWR);
}

int relay_connection_fd(const struct relay_connection *connection)
{
	return connection->fd;
}

uint64_t relay_connection_wire_bytes(const struct relay_connection *connection)
{
	struct tcp_info info = {0};
	socklen_t size = sizeof(info);
	return getsockopt(connection->fd, IPPROTO_TCP, TCP_INFO, &info, &size) == 0 ? info.tcpi_bytes_sent : 0;
}
