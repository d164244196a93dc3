/* SPDX-License-Identifier: Apache-2.0 */
/* Both ends of a relay in one process, with threads in place of the two QEMUs. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/xalloc.h"
#include "relay/pipe.h"

#define LONG_MS 20000
#define MEMORY_BYTES 9000001
#define REQUEST "page"

struct ends {
	struct relay_pipe *pipes[2]; /* source, destination */
	int qemus[2];		     /* QEMU's own ends of their sockets */
};

static void connect_ends(struct ends *ends)
{
	int fds[2];
	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), 0);
	for (int i = 0; i < 2; i++)
		relay_pipe_add(ends->pipes[i], relay_connection_new_plain(fds[i]));
}

static void begin(struct ends *ends, unsigned int connections)
{
	for (int i = 0; i < 2; i++) {
		int fds[2];
		assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), 0);
		ends->qemus[i] = fds[0];
		const struct relay_pipe_options options = {.qemu_fd = fds[1], .source = i == 0, .patience_ms = LONG_MS};
		ends->pipes[i] = relay_pipe_new(&options, NULL);
		assert_non_null(ends->pipes[i]);
	}
	while (connections-- > 0)
		connect_ends(ends);
}

static void end(struct ends *ends)
{
	for (int i = 0; i < 2; i++) {
		relay_pipe_free(ends->pipes[i]);
		if (ends->qemus[i] >= 0)
			close(ends->qemus[i]);
	}
}

static uint8_t memory_at(size_t at)
{
	return (uint8_t)(at * 2654435761u >> 13);
}

/* The source's QEMU: sends memory, in pieces of all sizes. */
static void *send_memory(void *user)
{
	int fd = *(int *)user;
	uint8_t piece[70000];
	for (size_t at = 0; at < MEMORY_BYTES;) {
		size_t size = 1 + at * 31 % sizeof(piece);
		size = MEMORY_BYTES - at < size ? MEMORY_BYTES - at : size;
		for (size_t i = 0; i < size; i++)
			piece[i] = memory_at(at + i);
		for (size_t sent = 0; sent < size;) {
			ssize_t n = send(fd, piece + sent, size - sent, MSG_NOSIGNAL);
			if (n < 0)
				return user;
			sent += (size_t)n;
		}
		at += size;
	}
	shutdown(fd, SHUT_WR);
	return NULL;
}

static size_t receive_memory(int fd, bool *ret_right)
{
	static uint8_t piece[65536];
	size_t at = 0;
	*ret_right = true;
	for (ssize_t n; (n = recv(fd, piece, sizeof(piece), 0)) > 0; at += (size_t)n)
		for (ssize_t i = 0; i < n; i++)
			*ret_right &= piece[i] == memory_at(at + (size_t)i);
	return at;
}

static void whole(unsigned int connections)
{
	struct ends ends;
	pthread_t sender;
	void *failed;
	bool right;
	char request[sizeof(REQUEST)] = "";
	begin(&ends, connections);
	assert_int_equal(pthread_create(&sender, NULL, send_memory, &ends.qemus[0]), 0);
	assert_int_equal(receive_memory(ends.qemus[1], &right), MEMORY_BYTES);
	assert_true(right);
	pthread_join(sender, &failed);
	assert_null(failed);
	/* The other way is open still. */
	for (int i = 0; i < 3; i++) {
		assert_int_equal(send(ends.qemus[1], REQUEST, sizeof(REQUEST), MSG_NOSIGNAL), sizeof(REQUEST));
		assert_int_equal(recv(ends.qemus[0], request, sizeof(request), MSG_WAITALL), sizeof(request));
		assert_string_equal(request, REQUEST);
	}
	shutdown(ends.qemus[1], SHUT_WR);
	assert_int_equal(recv(ends.qemus[0], request, sizeof(request), 0), 0);
	assert_int_equal(relay_pipe_wait(ends.pipes[0], LONG_MS, NULL), 0);
	assert_int_equal(relay_pipe_wait(ends.pipes[1], LONG_MS, NULL), 0);
	end(&ends);
}

static void test_whole(void **state)
{
	(void)state;
	whole(1);
	whole(4);
}

/* One of the two QEMUs ends: the other sees it at once, and both pipes say so. */
static void qemu_ends(int which)
{
	struct ends ends;
	char byte;
	begin(&ends, 2);
	/* No stream of QEMU's, and passed on as it is. */
	assert_int_equal(send(ends.qemus[0], "xxxx", 4, MSG_NOSIGNAL), 4);
	for (int i = 0; i < 4; i++)
		assert_int_equal(recv(ends.qemus[1], &byte, 1, 0), 1);
	close(ends.qemus[which]);
	ends.qemus[which] = -1;
	if (which == 1) /* what is sent there finds nobody */
		while (send(ends.qemus[0], "x", 1, MSG_NOSIGNAL) == 1)
			;
	else
		assert_int_equal(recv(ends.qemus[1], &byte, 1, 0), 0);
	end(&ends);
}

static void test_qemu_ends(void **state)
{
	(void)state;
	qemu_ends(0);
	qemu_ends(1);
}

static void test_broken(void **state)
{
	(void)state;
	struct ends ends;
	char byte;
	cleanup_error struct error *why = NULL, *heard = NULL, *own = NULL;
	begin(&ends, 3);
	error_set(&why, ERROR_CANCELLED, "somebody has called it off");
	relay_pipe_break(ends.pipes[0], why);
	assert_int_equal(relay_pipe_wait(ends.pipes[0], LONG_MS, &own), -1);
	assert_int_equal(own->code, ERROR_CANCELLED);
	assert_int_equal(relay_pipe_wait(ends.pipes[1], LONG_MS, &heard), -1);
	assert_int_equal(heard->code, ERROR_DATA_RELAY);
	assert_non_null(strstr(heard->message, "given up: somebody has called it off"));
	for (int i = 0; i < 2; i++)
		assert_int_equal(recv(ends.qemus[i], &byte, 1, 0), 0);
	end(&ends);
}

/* Freed in the middle of it, by either side first. */
static void test_freed(void **state)
{
	(void)state;
	for (int first = 0; first < 2; first++) {
		struct ends ends;
		pthread_t sender;
		char byte;
		begin(&ends, 2);
		assert_int_equal(pthread_create(&sender, NULL, send_memory, &ends.qemus[0]), 0);
		assert_int_equal(recv(ends.qemus[1], &byte, 1, 0), 1);
		relay_pipe_free(take_ptr(ends.pipes[first]));
		pthread_join(sender, NULL);
		cleanup_error struct error *heard = NULL;
		assert_int_equal(relay_pipe_wait(ends.pipes[1 - first], LONG_MS, &heard), -1);
		if (!strstr(heard->message, "given up: it is not wanted any more"))
			fail_msg("%s", heard->message);
		end(&ends);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_whole),
		cmocka_unit_test(test_qemu_ends),
		cmocka_unit_test(test_broken),
		cmocka_unit_test(test_freed),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
