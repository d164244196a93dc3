/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One end of a relay: QEMU's socket on the one side, the link to the other host on the other. What QEMU writes comes out of the other
 * end's socket, both ways, or what means the same to QEMU (page_sender.h, page_receiver.h); an end of one way is an end there; and when
 * anything breaks both QEMUs see their sockets shut at once, since QEMU has no time-outs of its own. Any thread.
 */
#ifndef FERRY_RELAY_PIPE_H
#define FERRY_RELAY_PIPE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"
#include "relay/connection.h"
#include "relay/page_sender.h"
#include "relay/page_supply.h"

struct relay_pipe;

struct relay_pipe_options {
	int qemu_fd; /* QEMU's socket; the pipe takes it over, unless it cannot be made */
	bool source; /* memory goes out here, and comes in at the other end */
	int64_t patience_ms; /* how long there may be no connection to the other host */
	/* Of a source. */
	bool ask;	     /* the destination may have pages already */
	size_t copies_bytes; /* see page_sender.h */
	/* Of a destination. */
	struct page_supplier *supplier; /* what this host has; the caller's, until the pipe is freed. NULL: nothing */
};
struct relay_pipe *relay_pipe_new(const struct relay_pipe_options *options, struct error **e) MUST_CHECK;
/* Breaks what is not over yet. */
void relay_pipe_free(struct relay_pipe *pipe);

/* One connection more to the other end; takes it over. */
void relay_pipe_add(struct relay_pipe *pipe, struct relay_connection *connection);

/* See relay_link_await_fewer(). */
bool relay_pipe_await_fewer(struct relay_pipe *pipe, size_t count, int64_t at_least_ms);

/* Wait until both ways have ended: 0. Fails when it broke, or with ERROR_TIMEOUT. */
int relay_pipe_wait(struct relay_pipe *pipe, int64_t timeout_ms, struct error **e) MUST_CHECK;
/* Both QEMUs see the end of their sockets; the other end is told why. */
void relay_pipe_break(struct relay_pipe *pipe, const struct error *why);
/* It is not wanted any more: break it, unless it is over. */
void relay_pipe_end(struct relay_pipe *pipe);

/* See relay_link_limit_rate(). */
void relay_pipe_limit_rate(struct relay_pipe *pipe, uint64_t bytes_per_s);
uint64_t relay_pipe_wire_bytes(struct relay_pipe *pipe);
/* Of a source: how the pages went. */
void relay_pipe_counts(struct relay_pipe *pipe, struct page_sender_counts *ret);

#endif
