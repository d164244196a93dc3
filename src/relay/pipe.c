/* SPDX-License-Identifier: Apache-2.0 */
/* One end of a relay; see pipe.h. One thread reads QEMU's socket; the link's own writes it. */
#include "relay/pipe.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/xalloc.h"
#include "relay/link.h"

/* Memory: 16 MiB on the way at most. Its sockets hold less than a block. */
#define MEMORY_BLOCK_BYTES (256 * 1024)
#define MEMORY_BLOCKS 64
/* The way back: QEMU's requests for pages, a few dozen bytes each. */
#define RETURN_BLOCK_BYTES 4096
#define RETURN_BLOCKS 64
#define END_TIMEOUT_MS 60000 /* until the other QEMU has taken what was on the way */

struct relay_pipe {
	int fd;
	size_t block_bytes;
	struct relay_link *link;
	pthread_t reader;
	pthread_mutex_t mutex; /* all below */
	pthread_cond_t changed;
	bool out_ended, in_ended;
	struct error *why; /* broken */
};

/* ---- from the link to QEMU ---- */

static int write_all(int fd, const uint8_t *data, size_t size, struct error **e)
{
	while (size > 0) {
		ssize_t n = send(fd, data, size, MSG_NOSIGNAL);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return error_set_errno(e, ERROR_DATA_RELAY, errno, "QEMU does not take its stream any more");
		data += n;
		size -= (size_t)n;
	}
	return 0;
}

static int take(void *user, const uint8_t *data, size_t size, struct error **e)
{
	struct relay_pipe *pipe = user;
	if (data)
		return write_all(pipe->fd, data, size, e);
	shutdown(pipe->fd, SHUT_WR);
	LOCK_SCOPE(&pipe->mutex);
	pipe->in_ended = true;
	pthread_cond_broadcast(&pipe->changed);
	return 0;
}

static void note_broken(struct relay_pipe *pipe, const struct error *why)
{
	shutdown(pipe->fd, SHUT_RDWR);
	LOCK_SCOPE(&pipe->mutex);
	if (!pipe->why)
		pipe->why = error_copy(why);
	pthread_cond_broadcast(&pipe->changed);
}

static void broken(void *user, const struct error *why)
{
	note_broken(user, why);
}

/* ---- from QEMU to the link ---- */

/* What is there, and at least one byte, unless it is the end: 0. */
static ssize_t read_some(int fd, uint8_t *ret, size_t size)
{
	size_t got = 0;
	while (got < size) {
		ssize_t n = recv(fd, ret + got, size - got, got > 0 ? MSG_DONTWAIT : 0);
		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0 && got > 0)
			break; /* an end or an error shows again */
		if (n <= 0)
			return n;
		got += (size_t)n;
	}
	return (ssize_t)got;
}

static int read_all(struct relay_pipe *pipe, struct error **e)
{
	for (;;) {
		uint8_t *block;
		if (relay_link_reserve(pipe->link, &block, e) < 0)
			return -1;
		ssize_t n = read_some(pipe->fd, block, pipe->block_bytes);
		if (n < 0)
			return error_set_errno(e, ERROR_DATA_RELAY, errno, "QEMU's stream broke");
		if (n == 0)
			return relay_link_end(pipe->link, END_TIMEOUT_MS, e);
		relay_link_commit(pipe->link, (size_t)n);
	}
}

static void *read_main(void *user)
{
	struct relay_pipe *pipe = user;
	cleanup_error struct error *why = NULL;
	if (read_all(pipe, &why) < 0) {
		relay_link_break(pipe->link, why);
		note_broken(pipe, why);
		return NULL;
	}
	LOCK_SCOPE(&pipe->mutex);
	pipe->out_ended = true;
	pthread_cond_broadcast(&pipe->changed);
	return NULL;
}

/* ---- for the user ---- */

struct relay_pipe *relay_pipe_new(int qemu_fd, bool source, int64_t patience_ms)
{
	struct relay_pipe *pipe = xcalloc(1, sizeof(*pipe));
	const struct relay_link_options options = {
		.out_blocks = source ? MEMORY_BLOCKS : RETURN_BLOCKS,
		.in_blocks = source ? RETURN_BLOCKS : MEMORY_BLOCKS,
		.out_block_bytes = source ? MEMORY_BLOCK_BYTES : RETURN_BLOCK_BYTES,
		.in_block_bytes = source ? RETURN_BLOCK_BYTES : MEMORY_BLOCK_BYTES,
		.patience_ms = patience_ms,
		.take = take,
		.broken = broken,
		.user = pipe,
	};
	pipe->fd = qemu_fd;
	pipe->block_bytes = options.out_block_bytes;
	pthread_mutex_init(&pipe->mutex, NULL);
	cond_init(&pipe->changed);
	pipe->link = relay_link_new(&options);
	if (pthread_create(&pipe->reader, NULL, read_main, pipe) != 0)
		abort(); /* no memory for a stack */
	return pipe;
}

void relay_pipe_free(struct relay_pipe *pipe)
{
	cleanup_error struct error *why = NULL;
	if (!pipe)
		return;
	pthread_mutex_lock(&pipe->mutex);
	const bool over = pipe->in_ended && pipe->out_ended;
	pthread_mutex_unlock(&pipe->mutex);
	if (!over) {
		error_set(&why, ERROR_CANCELLED, "it is not wanted any more");
		relay_pipe_break(pipe, why);
	}
	pthread_join(pipe->reader, NULL);
	relay_link_free(pipe->link);
	close(pipe->fd);
	error_free(pipe->why);
	pthread_cond_destroy(&pipe->changed);
	pthread_mutex_destroy(&pipe->mutex);
	free(pipe);
}

void relay_pipe_add(struct relay_pipe *pipe, struct relay_connection *connection)
{
	relay_link_add(pipe->link, connection);
}

size_t relay_pipe_connections(struct relay_pipe *pipe)
{
	return relay_link_connections(pipe->link);
}

int relay_pipe_wait(struct relay_pipe *pipe, int64_t timeout_ms, struct error **e)
{
	const int64_t until_us = clock_monotonic_us() + timeout_ms * 1000;
	LOCK_SCOPE(&pipe->mutex);
	while (!pipe->why && !(pipe->in_ended && pipe->out_ended))
		if (!cond_wait_until(&pipe->changed, &pipe->mutex, until_us) && !pipe->why && !(pipe->in_ended && pipe->out_ended))
			return error_set(e, ERROR_TIMEOUT, "the relayed stream has not ended");
	if (!pipe->why)
		return 0;
	if (e)
		*e = error_copy(pipe->why);
	return -1;
}

void relay_pipe_break(struct relay_pipe *pipe, const struct error *why)
{
	relay_link_break(pipe->link, why);
	note_broken(pipe, why);
}

uint64_t relay_pipe_wire_bytes(struct relay_pipe *pipe)
{
	return relay_link_wire_bytes(pipe->link);
}
