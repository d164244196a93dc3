/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One end of a relay; see pipe.h. One thread reads QEMU's socket (of a source, page_sender.h has another that says what was read); the link's
 * own writes it. At the destination two threads reply: that one, with what QEMU says, and the link's, with answers.
 */
#include "relay/pipe.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/xalloc.h"
#include "net/socket.h"
#include "relay/link.h"
#include "relay/page_receiver.h"
#include "relay/record.h"

/* Memory: 16 MiB on the way at most. Its sockets hold less than a block. */
#define MEMORY_BLOCK_BYTES (256 * 1024)
#define MEMORY_BLOCKS 64
/* The way back: answers, and QEMU's requests for pages, a few dozen bytes each. */
#define RETURN_BLOCK_BYTES 4096
#define RETURN_BLOCKS 64
#define END_TIMEOUT_MS 60000 /* until the other QEMU has taken what was on the way */

struct relay_pipe {
	int fd;
	struct relay_link *link;
	struct page_sender *sender;	/* of a source, else NULL */
	struct page_receiver *receiver; /* of a destination, else NULL */
	pthread_t reader;
	pthread_mutex_t replying; /* from reserving a block for the other side to its commit; and: */
	bool return_ended;
	pthread_mutex_t mutex;	  /* all below */
	pthread_cond_t changed;
	bool out_ended, in_ended;
	struct error *why; /* broken */
};

/* ---- from the link to QEMU ---- */

/* What the destination's relay has sent. */
static int take_return(struct relay_pipe *pipe, const uint8_t *data, size_t size, struct error **e)
{
	switch (data[0]) {
	case RETURN_BYTES:
		return socket_send_all(pipe->fd, data + 1, size - 1)
			       ? 0
			       : error_set_errno(e, ERROR_DATA_RELAY, errno, "QEMU does not take its stream any more");
	case RETURN_ANSWER:
		return page_sender_answer(pipe->sender, data + 1, size - 1, e);
	default:
		return error_set(e, ERROR_PEER_PROTOCOL, "the other relay sends a block of a kind that is not known (%u)", data[0]);
	}
}

static int take(void *user, const uint8_t *data, size_t size, struct error **e)
{
	struct relay_pipe *pipe = user;
	if (data)
		return pipe->sender ? take_return(pipe, data, size, e) : page_receiver_take(pipe->receiver, data, size, e);
	shutdown(pipe->fd, SHUT_WR);
	LOCK_SCOPE(&pipe->mutex);
	pipe->in_ended = true;
	pthread_cond_broadcast(&pipe->changed);
	return 0;
}

static void note_broken(struct relay_pipe *pipe, const struct error *why)
{
	shutdown(pipe->fd, SHUT_RDWR);
	pthread_mutex_lock(&pipe->mutex);
	const bool first = !pipe->why;
	if (first)
		pipe->why = error_copy(why);
	pthread_cond_broadcast(&pipe->changed);
	pthread_mutex_unlock(&pipe->mutex);
	if (first && why->code != ERROR_CANCELLED)
		log_failure(LOG_LEVEL_WARNING, "the relay of a migration has broken", why);
	if (pipe->sender)
		page_sender_stop(pipe->sender);
}

static void broken(void *user, const struct error *why)
{
	note_broken(user, why);
}

/* ---- from the destination's QEMU to the link ---- */

static int reply(void *user, const uint8_t *block, size_t size, struct error **e)
{
	struct relay_pipe *pipe = user;
	uint8_t *room;
	LOCK_SCOPE(&pipe->replying);
	if (pipe->return_ended)
		return error_set(e, ERROR_DATA_RELAY, "QEMU has ended its stream before the other side has");
	if (relay_link_reserve(pipe->link, &room, e) < 0)
		return -1;
	memcpy(room, block, size);
	relay_link_commit(pipe->link, size);
	return 0;
}

static int read_return(struct relay_pipe *pipe, struct error **e)
{
	uint8_t block[RETURN_BLOCK_BYTES] = {RETURN_BYTES};
	for (;;) {
		ssize_t n = recv(pipe->fd, block + 1, sizeof(block) - 1, 0);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return error_set_errno(e, ERROR_DATA_RELAY, errno, "QEMU's stream broke");
		if (n == 0) {
			/* QEMU is done with the stream, so that nothing is left to be asked. */
			LOCK_SCOPE(&pipe->replying);
			pipe->return_ended = true;
			return relay_link_end(pipe->link, END_TIMEOUT_MS, e);
		}
		if (reply(pipe, block, (size_t)n + 1, e) < 0)
			return -1;
	}
}

static void *read_main(void *user)
{
	struct relay_pipe *pipe = user;
	cleanup_error struct error *why = NULL;
	if ((pipe->sender ? page_sender_run(pipe->sender, END_TIMEOUT_MS, &why) : read_return(pipe, &why)) < 0) {
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

/* Of a pipe that has no thread yet. */
static int add_half(struct relay_pipe *pipe, const struct relay_pipe_options *options, struct error **e)
{
	const struct page_sender_options sender = {
		.fd = options->qemu_fd,
		.link = pipe->link,
		.ask = options->ask,
		.copies_bytes = options->copies_bytes,
	};
	const struct page_receiver_options receiver = {
		.fd = options->qemu_fd, .supplier = options->supplier, .reply = reply, .user = pipe};
	if (options->source)
		pipe->sender = page_sender_new(&sender, e);
	else
		pipe->receiver = page_receiver_new(&receiver, e);
	return pipe->sender || pipe->receiver ? 0 : -1;
}

static void free_halves(struct relay_pipe *pipe)
{
	relay_link_free(pipe->link);
	page_sender_free(pipe->sender);
	page_receiver_free(pipe->receiver);
	error_free(pipe->why);
	pthread_cond_destroy(&pipe->changed);
	pthread_mutex_destroy(&pipe->mutex);
	pthread_mutex_destroy(&pipe->replying);
	free(pipe);
}

struct relay_pipe *relay_pipe_new(const struct relay_pipe_options *options, struct error **e)
{
	const bool source = options->source;
	struct relay_pipe *pipe = xcalloc(1, sizeof(*pipe));
	const struct relay_link_options link = {
		.out_blocks = source ? MEMORY_BLOCKS : RETURN_BLOCKS,
		.in_blocks = source ? RETURN_BLOCKS : MEMORY_BLOCKS,
		.out_block_bytes = source ? MEMORY_BLOCK_BYTES : RETURN_BLOCK_BYTES,
		.in_block_bytes = source ? RETURN_BLOCK_BYTES : MEMORY_BLOCK_BYTES,
		.patience_ms = options->patience_ms,
		.take = take,
		.broken = broken,
		.user = pipe,
	};
	pipe->fd = options->qemu_fd;
	pthread_mutex_init(&pipe->mutex, NULL);
	pthread_mutex_init(&pipe->replying, NULL);
	cond_init(&pipe->changed);
	pipe->link = relay_link_new(&link);
	if (add_half(pipe, options, e) < 0) {
		free_halves(pipe);
		return NULL;
	}
	if (pthread_create(&pipe->reader, NULL, read_main, pipe) != 0)
		abort(); /* no memory for a stack */
	return pipe;
}

void relay_pipe_end(struct relay_pipe *pipe)
{
	cleanup_error struct error *why = NULL;
	pthread_mutex_lock(&pipe->mutex);
	const bool over = pipe->in_ended && pipe->out_ended;
	pthread_mutex_unlock(&pipe->mutex);
	if (over)
		return;
	error_set(&why, ERROR_CANCELLED, "it is not wanted any more");
	relay_pipe_break(pipe, why);
}

void relay_pipe_free(struct relay_pipe *pipe)
{
	if (!pipe)
		return;
	relay_pipe_end(pipe);
	pthread_join(pipe->reader, NULL);
	close(pipe->fd);
	free_halves(pipe);
}

void relay_pipe_add(struct relay_pipe *pipe, struct relay_connection *connection)
{
	relay_link_add(pipe->link, connection);
}

bool relay_pipe_await_fewer(struct relay_pipe *pipe, size_t count, int64_t at_least_ms)
{
	return relay_link_await_fewer(pipe->link, count, at_least_ms);
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

void relay_pipe_limit_rate(struct relay_pipe *pipe, uint64_t bytes_per_s)
{
	relay_link_limit_rate(pipe->link, bytes_per_s);
}

uint64_t relay_pipe_wire_bytes(struct relay_pipe *pipe)
{
	return relay_link_wire_bytes(pipe->link);
}

void relay_pipe_counts(struct relay_pipe *pipe, struct page_sender_counts *ret)
{
	page_sender_counts(pipe->sender, ret);
}
