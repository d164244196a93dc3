/* SPDX-License-Identifier: Apache-2.0 */
/* Listening and connecting on TCP and unix sockets, and lists of networks; see socket.h. */
#include "net/socket.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/xalloc.h"

#define SOCKET_BACKLOG 512

static int socket_unix_address(const char *path, struct sockaddr_un *ret_address, struct error **e)
{
	*ret_address = (struct sockaddr_un){.sun_family = AF_UNIX};
	if (!path[0] || strlen(path) >= sizeof(ret_address->sun_path))
		return error_set(e, ERROR_INVALID_ARGUMENT,
				 "the path of the socket '%s' is empty or longer than %zu bytes", path,
				 sizeof(ret_address->sun_path) - 1);
	strcpy(ret_address->sun_path, path);
	return 0;
}

/* What stands at path may be replaced: nothing, or a socket that nobody listens on any more. */
static int socket_unix_replaceable(const char *path, struct error **e)
{
	struct stat st;
	if (lstat(path, &st) < 0)
		return errno == ENOENT ? 0 : error_set_errno(e, ERROR_SYSTEM, errno, "cannot look at '%s'", path);
	if (!S_ISSOCK(st.st_mode))
		return error_set(e, ERROR_EXISTS, "'%s' is there and is no socket", path);
	cleanup_close int fd = -1;
	if (socket_connect_unix(path, &fd, NULL) == 0)
		return error_set(e, ERROR_EXISTS, "another process listens on '%s'", path);
	return 0;
}

int socket_listen_unix(const char *path, mode_t mode, int *ret_fd, struct error **e)
{
	/* Bound beside the path and renamed over it: whoever opens path finds a socket that listens and has its mode.
	 */
	cleanup_free char *beside = xasprintf("%s.new", path);
	struct sockaddr_un address;
	if (socket_unix_address(beside, &address, e) < 0 || socket_unix_replaceable(path, e) < 0)
		return -1;
	cleanup_close int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (fd < 0)
		return error_set_errno(e, ERROR_SYSTEM, errno, "cannot make a unix socket");
	unlink(beside);
	/* bind() gives the file the socket's own mode less the umask; chmod() then adds what the umask took. */
	if (fchmod(fd, mode) < 0 || bind(fd, (struct sockaddr *)&address, sizeof(address)) < 0)
		return error_set_errno(e, ERROR_SYSTEM, errno, "cannot make the socket '%s'", path);
	if (chmod(beside, mode) < 0 || listen(fd, SOCKET_BACKLOG) < 0 || rename(beside, path) < 0) {
		error_set_errno(e, ERROR_SYSTEM, errno, "cannot listen on '%s'", path);
		unlink(beside);
		return -1;
	}
	*ret_fd = take_fd(fd);
	return 0;
}

int socket_connect_unix(const char *path, int *ret_fd, struct error **e)
{
	struct sockaddr_un address;
	if (socket_unix_address(path, &address, e) < 0)
		return -1;
	cleanup_close int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (fd < 0)
		return error_set_errno(e, ERROR_SYSTEM, errno, "cannot make a unix socket");
	while (connect(fd, (struct sockaddr *)&address, sizeof(address)) < 0)
		if (errno != EINTR)
			return error_set_errno(e, ERROR_SYSTEM, errno, "cannot connect to '%s'", path);
	*ret_fd = take_fd(fd);
	return 0;
}

static int socket_tcp_address(const char *address, uint16_t port, struct sockaddr_storage *ret_address,
			      socklen_t *ret_length, struct error **e)
{
	char service[8];
	snprintf(service, sizeof(service), "%u", port);
	struct addrinfo hints = {.ai_flags = AI_NUMERICHOST | AI_NUMERICSERV, .ai_socktype = SOCK_STREAM}, *list = NULL;
	if (getaddrinfo(address, service, &hints, &list) != 0 || !list)
		return error_set(e, ERROR_INVALID_ARGUMENT, "'%s' is no IP address", address);
	memcpy(ret_address, list->ai_addr, list->ai_addrlen);
	*ret_length = list->ai_addrlen;
	freeaddrinfo(list);
	return 0;
}

static int socket_listen_on(const struct sockaddr *address, socklen_t length, int *ret_fd)
{
	cleanup_close int fd = socket(address->sa_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
	const int on = 1, off = 0;
	if (fd < 0)
		return -errno;
	/* Accepted sockets inherit TCP_NODELAY: no answer waits for an acknowledgement. */
	if (setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on)) < 0 ||
	    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on)) < 0)
		return -errno;
	if (address->sa_family == AF_INET6 && setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &off, sizeof(off)) < 0)
		return -errno;
	if (bind(fd, address, length) < 0 || listen(fd, SOCKET_BACKLOG) < 0)
		return -errno;
	*ret_fd = take_fd(fd);
	return 0;
}

int socket_listen_tcp(const char *address, uint16_t port, int *ret_fd, struct error **e)
{
	int rc;
	if (address) {
		struct sockaddr_storage to;
		socklen_t length = 0;
		if (socket_tcp_address(address, port, &to, &length, e) < 0)
			return -1;
		rc = socket_listen_on((struct sockaddr *)&to, length, ret_fd);
	} else {
		const struct sockaddr_in6 all6 = {.sin6_family = AF_INET6, .sin6_port = htons(port)};
		const struct sockaddr_in all4 = {.sin_family = AF_INET, .sin_port = htons(port)};
		rc = socket_listen_on((const struct sockaddr *)&all6, sizeof(all6), ret_fd);
		if (rc == -EAFNOSUPPORT || rc == -EADDRNOTAVAIL) /* a kernel without IPv6 */
			rc = socket_listen_on((const struct sockaddr *)&all4, sizeof(all4), ret_fd);
	}
	if (rc < 0)
		return error_set_errno(e, ERROR_SYSTEM, -rc, "cannot listen on %s port %u",
				       address ? address : "any address", port);
	return 0;
}

/* Wait until a connect() under way has ended; its errno, 0 when connected, ETIMEDOUT when the time is over. */
static int socket_connect_wait(int fd, int64_t deadline_us)
{
	for (;;) {
		int64_t left_us = deadline_us - clock_monotonic_us();
		if (left_us <= 0)
			return ETIMEDOUT;
		int64_t left_ms = (left_us + 999) / 1000;
		struct pollfd poller = {.fd = fd, .events = POLLOUT};
		int rc = poll(&poller, 1, left_ms > 3600000 ? 3600000 : (int)left_ms);
		if (rc < 0 && errno != EINTR)
			return errno;
		if (rc <= 0)
			continue;
		int failure = 0;
		socklen_t length = sizeof(failure);
		return getsockopt(fd, SOL_SOCKET, SO_ERROR, &failure, &length) < 0 ? errno : failure;
	}
}

int socket_connect_tcp(const char *address, uint16_t port, int64_t timeout_ms, int *ret_fd, struct error **e)
{
	const int64_t deadline_us = clock_monotonic_us() + timeout_ms * 1000;
	struct sockaddr_storage to;
	socklen_t length = 0;
	if (socket_tcp_address(address, port, &to, &length, e) < 0)
		return -1;
	cleanup_close int fd = socket(to.ss_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	const int on = 1;
	if (fd < 0 || setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on)) < 0)
		return error_set_errno(e, ERROR_SYSTEM, errno, "cannot make a TCP socket");

	int failure = connect(fd, (struct sockaddr *)&to, length) < 0 ? errno : 0;
	if (failure == EINPROGRESS || failure == EINTR)
		failure = socket_connect_wait(fd, deadline_us);
	if (failure == ETIMEDOUT)
		return error_set_errno(e, ERROR_TIMEOUT, failure,
				       "no answer from %s port %u (is a firewall in the way?)", address, port);
	if (failure)
		return error_set_errno(e, ERROR_SYSTEM, failure, "cannot connect to %s port %u", address, port);

	int flags = fcntl(fd, F_GETFL);
	if (flags < 0 || fcntl(fd, F_SETFL, flags & ~O_NONBLOCK) < 0)
		return error_set_errno(e, ERROR_SYSTEM, errno, "cannot set up a TCP socket");
	*ret_fd = take_fd(fd);
	return 0;
}

/* An IPv4 address is kept as the IPv6 one that maps it, so that one comparison serves both. */
struct socket_network {
	unsigned char bytes[16];
	unsigned int prefix_bits;
};

static bool socket_parse_address(const char *text, unsigned char ret_bytes[16], bool *ret_is_v4)
{
	static const unsigned char mapped[12] = {[10] = 0xff, [11] = 0xff};
	unsigned char bytes[16];
	if (inet_pton(AF_INET, text, bytes + 12) == 1) {
		memcpy(bytes, mapped, sizeof(mapped));
		*ret_is_v4 = true;
	} else if (inet_pton(AF_INET6, text, bytes) == 1) {
		*ret_is_v4 = false;
	} else {
		return false;
	}
	memcpy(ret_bytes, bytes, sizeof(bytes));
	return true;
}

/* One item, "198.18.0.0/24"; without a length it is the one address. */
static bool socket_parse_network(const char *item, struct socket_network *ret_network)
{
	char text[INET6_ADDRSTRLEN + 8];
	if (snprintf(text, sizeof(text), "%s", item) >= (int)sizeof(text))
		return false;
	char *slash = strchr(text, '/');
	if (slash)
		*slash = '\0';
	struct socket_network network;
	bool is_v4;
	if (!socket_parse_address(text, network.bytes, &is_v4))
		return false;
	unsigned long most = is_v4 ? 32 : 128, bits = most;
	if (slash) {
		const char *digits = slash + 1;
		if (!digits[0] || strlen(digits) > 3 || strspn(digits, "0123456789") != strlen(digits))
			return false;
		bits = strtoul(digits, NULL, 10);
		if (bits > most)
			return false;
	}
	network.prefix_bits = (unsigned int)(bits + (is_v4 ? 96 : 0));
	*ret_network = network;
	return true;
}

/* Cut the next item out of a list; false at its end. An item may be empty, which then does not parse. */
static bool socket_next_item(char **list, char **ret_item)
{
	char *item = strsep(list, ",");
	if (!item)
		return false;
	item += strspn(item, " \t");
	for (size_t n = strlen(item); n > 0 && (item[n - 1] == ' ' || item[n - 1] == '\t'); n--)
		item[n - 1] = '\0';
	*ret_item = item;
	return true;
}

static bool socket_network_holds(const struct socket_network *network, const unsigned char bytes[16])
{
	static const unsigned char mapped[12] = {[10] = 0xff, [11] = 0xff};
	if (network->prefix_bits < 96 && memcmp(bytes, mapped, sizeof(mapped)) == 0)
		return false; /* "::/0" says nothing about IPv4 */
	size_t whole = network->prefix_bits / 8;
	unsigned int rest = network->prefix_bits % 8;
	if (memcmp(network->bytes, bytes, whole) != 0)
		return false;
	return rest == 0 || ((network->bytes[whole] ^ bytes[whole]) >> (8 - rest)) == 0;
}

void socket_address_text(const struct sockaddr *address, char ret[SOCKET_ADDRESS_SIZE])
{
	ret[0] = '\0';
	if (address->sa_family == AF_INET) {
		struct sockaddr_in v4;
		memcpy(&v4, address, sizeof(v4));
		inet_ntop(AF_INET, &v4.sin_addr, ret, SOCKET_ADDRESS_SIZE);
	} else if (address->sa_family == AF_INET6) {
		struct sockaddr_in6 v6;
		memcpy(&v6, address, sizeof(v6));
		if (IN6_IS_ADDR_V4MAPPED(&v6.sin6_addr))
			inet_ntop(AF_INET, &v6.sin6_addr.s6_addr[12], ret, SOCKET_ADDRESS_SIZE);
		else
			inet_ntop(AF_INET6, &v6.sin6_addr, ret, SOCKET_ADDRESS_SIZE);
	}
}

bool socket_address_in_networks(const char *address, const char *networks)
{
	unsigned char bytes[16];
	bool is_v4;
	if (!address || !networks || !socket_parse_address(address, bytes, &is_v4))
		return false;
	cleanup_free char *copy = xstrdup(networks);
	char *list = copy, *item;
	while (socket_next_item(&list, &item)) {
		struct socket_network network;
		if (socket_parse_network(item, &network) && socket_network_holds(&network, bytes))
			return true;
	}
	return false;
}

bool socket_address_is_remote(const char *address)
{
	static const char not_remote[] = "0.0.0.0/8, 127.0.0.0/8, 169.254.0.0/16, 224.0.0.0/3, ::/127, fe80::/10, ff00::/8";
	unsigned char bytes[16];
	bool is_v4;
	return socket_parse_address(address, bytes, &is_v4) && !socket_address_in_networks(address, not_remote);
}

int socket_networks_check(const char *networks, struct error **e)
{
	cleanup_free char *copy = xstrdup(networks);
	char *list = copy, *item;
	if (networks[strspn(networks, " \t")] == '\0')
		return 0;
	while (socket_next_item(&list, &item)) {
		struct socket_network network;
		if (!socket_parse_network(item, &network))
			return error_set(e, ERROR_INVALID_ARGUMENT,
					 "'%s' is no network; write it as 198.18.0.0/24 or fd00::/8", item);
	}
	return 0;
}

void socket_set_timeout(int fd, int64_t timeout_ms)
{
	const struct timeval value = {.tv_sec = timeout_ms / 1000, .tv_usec = timeout_ms % 1000 * 1000};
	(void)setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &value, sizeof(value));
	(void)setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &value, sizeof(value));
}

bool socket_send_all(int fd, const void *data, size_t size_bytes)
{
	for (const uint8_t *at = data; size_bytes > 0;) {
		const ssize_t n = send(fd, at, size_bytes, MSG_NOSIGNAL);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return false;
		at += n;
		size_bytes -= (size_t)n;
	}
	return true;
}

int socket_make_pair(int *ret_one, int *ret_other, struct error **e)
{
	int fds[2];
	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds) < 0)
		return error_set_errno(e, ERROR_SYSTEM, errno, "cannot make a pair of sockets");
	*ret_one = fds[0];
	*ret_other = fds[1];
	return 0;
}
