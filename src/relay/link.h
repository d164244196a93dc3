/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Two relays that are linked: an ordered stream of blocks each way, over any number of connections at once.
 *
 * What one side puts in comes out at the other whole, once and in the same order, as long as one connection is left; a connection
 * that breaks is no loss, and others can be added at any time. Neither side ever holds more than its window: whoever puts in
 * waits when the other does not take out; and never much more is on the way than keeps the link busy (pace.h).
 *
 * Any thread, but one at a time between relay_link_reserve() and relay_link_commit().
 */
#ifndef FERRY_RELAY_LINK_H
#define FERRY_RELAY_LINK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"
#include "relay/connection.h"

struct relay_link_options {
	/* Both sides must agree on them, as each keeps room for what the other may have sent: a link's out is the other's in. */
	size_t out_blocks, in_blocks;
	size_t out_block_bytes, in_block_bytes; /* the longest that a block may be */
	int64_t patience_ms; /* how long there may be no connection before the link is broken */
	/* The next block, in order, on a thread of the link's own; `data` is NULL and size 0 when the other side has ended its
	 * stream. A failure breaks the link, and the other side is told its message. */
	int (*take)(void *user, const uint8_t *data, size_t size_bytes, struct error **e);
	/* Once, on any thread, also one that is in relay_link_break(): the link is broken. A take() that waits must end then. Not
	 * after relay_link_free() has returned. */
	void (*broken)(void *user, const struct error *why);
	void *user;
};

struct relay_link;
struct relay_link *relay_link_new(const struct relay_link_options *options);
/* Ends all that goes on. Not from a callback. */
void relay_link_free(struct relay_link *link);

/* One connection more; takes it over. */
void relay_link_add(struct relay_link *link, struct relay_connection *connection);
/* How many there are that are not broken. */
size_t relay_link_connections(struct relay_link *link);

/* Wait until there are fewer than so many whole ones, and for at_least_ms in any case: true; false when nothing is left to be sent or taken, or the
 * link is broken. */
bool relay_link_await_fewer(struct relay_link *link, size_t count, int64_t at_least_ms);

/* Room for one block of up to out_block_bytes: waits for it. Fails when the link is broken. */
int relay_link_reserve(struct relay_link *link, uint8_t **ret, struct error **e) MUST_CHECK;
/* How long a block should be at present, out_block_bytes at most: on a slow link a long one would be in the way of what follows. */
size_t relay_link_block_bytes(struct relay_link *link);
/* The block is so long, more than 0, and goes. */
void relay_link_commit(struct relay_link *link, size_t size_bytes);
/* Nothing follows, and room that is reserved is not wanted; waits until the other side has taken all, at most timeout_ms. */
int relay_link_end(struct relay_link *link, int64_t timeout_ms, struct error **e) MUST_CHECK;

/* No more than this over all its connections, frames' heads and all, but neither TLS's nor TCP's; 0: as fast as it goes. */
void relay_link_limit_rate(struct relay_link *link, uint64_t bytes_per_s);

/* Break it: waits end, and the other side is told why if it can be. */
void relay_link_break(struct relay_link *link, const struct error *why);

/* Over all its connections, those that broke included; see relay_connection_wire_bytes(). */
uint64_t relay_link_wire_bytes(struct relay_link *link);

#endif
