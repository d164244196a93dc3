/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The stream of a move, between the two QEMUs.
 *
 * The connection of a move with one channel is made here and passed to the source's QEMU, so a refused connection is an error
 * at once and in plain words. With several channels (multifd) QEMU insists on connecting itself. Of such connections we take
 * a second descriptor each (pidfd_getfd(2)), as they come up one after another: at each look at the move, until all are there.
 *
 * Either way we set on them what QEMU does not, and which is of the socket, whoever sets it: a peer that has vanished is noticed
 * (QEMU has no time-outs of its own), and what waits unsent is bounded, since that backlog is sent while the guest is paused
 * (measured at 1 Gbit/s: 12 ms of pause instead of 30, with two channels of multifd 25 instead of 72). And we hold on to the
 * descriptors, to count the bytes; so they must be shut when QEMU has given the stream up (shut_connections() in
 * vm/qemu_machine.c).
 *
 * Taking descriptors needs Linux 5.6 and the right to trace QEMU (CAP_SYS_PTRACE, if it runs as another user). Without it
 * a move goes on as QEMU alone would do it.
 */
#include "vm/qemu_machine.h"

#include <dirent.h>
#include <errno.h>
#include <linux/tcp.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/log.h"
#include "base/xalloc.h"
#include "net/socket.h"

#define CONNECTION_NAME "ferry-move"
#define STREAM_URI "fd:" CONNECTION_NAME
#define CONNECT_TIMEOUT_MS 10000
#define UNSENT_BYTES_MAX (128 * 1024)

int qemu_give_stream(struct machine *machine, int fd, struct error **e)
{
	return qmp_execute_with_fd(machine->qmp, "getfd", json_pack("{s:s}", "fdname", CONNECTION_NAME), fd, NULL, QMP_TIMEOUT_MS, e);
}

/* "tcp:198.18.0.2:49152", "tcp:[fd00::2]:49152" */
char *qemu_move_uri(const struct move_options *move)
{
	if (move->stream_fd > 0)
		return xstrdup(STREAM_URI);
	bool ipv6 = strchr(move->address, ':') != NULL;
	return xasprintf("tcp:%s%s%s:%u", ipv6 ? "[" : "", move->address, ipv6 ? "]" : "", move->port);
}

int qemu_move_cannot_listen(const struct move_options *move, struct error *problem, struct error **e)
{
	/* QMP has no errno; this is strerror's text. */
	if (!strstr(problem->message, strerror(EADDRINUSE)))
		return error_move(e, problem);
	error_free(problem);
	return error_set_errno(e, ERROR_DATA_PORTS, EADDRINUSE, "port %u", move->port);
}

static int set_options(const struct machine *machine, int fd, struct error **e)
{
	const int on = 1, unsent_bytes_max = UNSENT_BYTES_MAX, timeout_ms = (int)machine->host->stream_timeout_ms;
	const int idle_s = 10, interval_s = 5;
	/* QEMU writes whole buffers and waits for answers: nothing is gained by the kernel's waiting for more. */
	if (setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on)) < 0 ||
	    setsockopt(fd, IPPROTO_TCP, TCP_NOTSENT_LOWAT, &unsent_bytes_max, sizeof(unsent_bytes_max)) < 0 ||
	    setsockopt(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, &timeout_ms, sizeof(timeout_ms)) < 0 ||
	    setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof(on)) < 0 ||
	    setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, &idle_s, sizeof(idle_s)) < 0 ||
	    setsockopt(fd, IPPROTO_TCP, TCP_KEEPINTVL, &interval_s, sizeof(interval_s)) < 0)
		return error_set_errno(e, ERROR_SYSTEM, errno, "cannot set up the connection to the destination's QEMU");
	return 0;
}

/* ---- connections that QEMU makes ---- */

static bool leads_to(int fd, const char *address, uint16_t port)
{
	union {
		struct sockaddr any;
		struct sockaddr_in v4;
		struct sockaddr_in6 v6;
	} peer;
	socklen_t size = sizeof(peer);
	char text[SOCKET_ADDRESS_SIZE];
	if (getpeername(fd, &peer.any, &size) < 0 || (peer.any.sa_family != AF_INET && peer.any.sa_family != AF_INET6))
		return false;
	socket_address_text(&peer.any, text);
	return ntohs(peer.any.sa_family == AF_INET ? peer.v4.sin_port : peer.v6.sin6_port) == port &&
	       socket_address_in_networks(text, address);
}

static bool is_held(const struct machine *machine, unsigned long long inode)
{
	for (size_t i = 0; i < machine->connection_count; i++) {
		struct stat held;
		if (fstat(machine->connections[i], &held) == 0 && held.st_ino == inode)
			return true;
	}
	return false;
}

/* Take up what this one of /proc/PID/fd is. 0 also when it is none of those awaited, or has just been closed. */
static int adopt_one(struct machine *machine, int folder_fd, const char *name, struct error **e)
{
	char link[64] = "";
	unsigned long long inode;
	if (readlinkat(folder_fd, name, link, sizeof(link) - 1) < 0)
		return errno == ENOENT ? 0 : error_set_errno(e, ERROR_SYSTEM, errno, "cannot look at QEMU's descriptors");
	if (sscanf(link, "socket:[%llu]", &inode) != 1 || is_held(machine, inode))
		return 0;
	cleanup_close int fd = (int)syscall(SYS_pidfd_getfd, machine->pidfd, atoi(name), 0);
	if (fd < 0)
		return errno == EBADF || errno == ESRCH ? 0 : error_set_errno(e, ERROR_SYSTEM, errno, "pidfd_getfd");
	if (!leads_to(fd, machine->awaited_address, machine->awaited_port))
		return 0;
	machine->awaited_count--;
	int result = set_options(machine, fd, e);
	machine_hold_connection(machine, take_fd(fd));
	return result;
}

static int adopt_all(struct machine *machine, struct error **e)
{
	cleanup_free char *path = xasprintf("/proc/%d/fd", (int)machine->process.pid);
	DIR *folder = opendir(path);
	const struct dirent *entry;
	int result = 0;
	if (!folder)
		return errno == ENOENT ? 0 : error_set_errno(e, ERROR_SYSTEM, errno, "cannot look into '%s'", path);
	while (result == 0 && machine->awaited_count > 0 && (entry = readdir(folder)))
		if (entry->d_name[0] != '.')
			result = adopt_one(machine, dirfd(folder), entry->d_name, e);
	closedir(folder);
	return result;
}

void qemu_connection_adopt(struct machine *machine)
{
	cleanup_error struct error *e = NULL;
	if (machine->awaited_count == 0 || adopt_all(machine, &e) == 0)
		return;
	log_failure(LOG_LEVEL_INFO, "QEMU's own connections stay as it has made them", e);
	machine->awaited_count = 0;
}

static int migrate_over_qemus(struct machine *machine, const struct move_options *move, struct error **e)
{
	cleanup_free char *uri = qemu_move_uri(move);
	free(machine->awaited_address);
	machine->awaited_address = xstrdup(move->address);
	machine->awaited_port = move->port;
	machine->awaited_count = move->channels + 1;
	return machine_command(machine, "migrate", json_pack("{s:s}", "uri", uri), e);
}

/* ---- a connection that is made here ---- */

/* Start the move, or go on with it (`resume`), over a connection that is made here. */
static int migrate_over_ours(struct machine *machine, const struct move_options *move, bool resume, struct error **e)
{
	cleanup_close int fd = -1;
	if (socket_connect_tcp(move->address, move->port, CONNECT_TIMEOUT_MS, &fd, e) < 0)
		return error_wrap(e, "the destination's QEMU");
	if (set_options(machine, fd, e) < 0 || qemu_give_stream(machine, fd, e) < 0)
		return -1;
	machine_hold_connection(machine, take_fd(fd));
	json_t *arguments = json_pack("{s:s}", "uri", STREAM_URI);
	if (resume)
		json_object_set_new(arguments, "resume", json_true());
	return machine_command(machine, "migrate", arguments, e);
}

int qemu_connection_migrate(struct machine *machine, const struct move_options *move, bool resume, struct error **e)
{
	machine_release_connections(machine);
	if (move->stream_fd > 0) {
		if (qemu_give_stream(machine, move->stream_fd, e) < 0)
			return -1;
		return machine_command(machine, "migrate", json_pack("{s:s}", "uri", STREAM_URI), e);
	}
	return move->channels > 1 ? migrate_over_qemus(machine, move, e) : migrate_over_ours(machine, move, resume, e);
}

uint64_t qemu_connection_wire_bytes(struct machine *machine)
{
	uint64_t bytes = 0;
	LOCK_SCOPE(&machine->lock);
	for (size_t i = 0; i < machine->connection_count; i++) {
		struct tcp_info info = {0};
		socklen_t size = sizeof(info);
		if (getsockopt(machine->connections[i], IPPROTO_TCP, TCP_INFO, &info, &size) == 0)
			bytes += info.tcpi_bytes_sent;
	}
	return bytes;
}
