/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The link of two relays; see link.h.
 *
 * Theory of operation
 *
 * Blocks are numbered. The sender keeps each in a slot until the other side has acknowledged it, which it does when it has taken it
 * out; so the number of slots is the window, and slot N of the one side is slot N of the other. Each connection has a thread that
 * sends, which takes whatever is next to be sent, and one that receives. When a connection breaks, what it has sent and is not
 * acknowledged is to be sent again by the others.
 *
 *   a slot for sending    FREE --commit--> READY --a sender takes it--> SENT --acknowledged--> FREE
 *                                            ^---------its connection broke---'
 *
 * A block may so come twice, even by two connections at once, one of which is about to break. Therefore a receiver reads into a
 * buffer of its own and then changes buffers with the slot, if nobody was there before; no byte is copied, and a block that was cut
 * off leaves nothing.
 *
 * Acknowledgements are cumulative, and go before blocks; when a connection breaks the last one is said again, as it may have been lost.
 *
 * The threads that send compress what they send, as far as it pays (relay/thrift.h), and those that receive undo it: as many at a time as
 * there are connections.
 *
 * A frame: u32 length of what follows the head, u8 kind, u8 1 where that is a block compressed by zstd, two bytes 0, u64 number;
 * big-endian.
 */
#include "relay/link.h"

#include <assert.h>
#include <endian.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <zstd.h>

#include "base/bytes.h"
#include "base/cleanup.h"
#include "base/clock.h"
#include "base/xalloc.h"
#include "relay/pace.h"
#include "relay/thrift.h"

#define HEAD_BYTES 16
#define WHY_MAX_BYTES 1024
#define COMPRESSION_LEVEL 1
#define LAST_WORD_US 1000000
#define RATE_BURST_US 5000 /* a limited rate is kept over any time longer than this */
#define BLOCK_PARTS 8 /* the shortest block is such a part of the longest */
#define BLOCKS_ON_THE_WAY 4 /* at least, unless they are the shortest */

enum frame_kind {
	FRAME_BLOCK = 1,
	FRAME_END = 2,	  /* as a block, of no bytes: the stream's end */
	FRAME_TAKEN = 3,  /* number: the first that has not been taken */
	FRAME_BROKEN = 4, /* why, in words */
};

struct frame {
	uint32_t length;
	uint8_t kind, packed;
	uint64_t number;
};

struct out_slot {
	enum { FREE, READY, SENT } state;
	const struct member *by; /* SENT: over which connection */
	unsigned int senders;	 /* threads that read the buffer just now; one of a broken connection may do so for a moment longer */
	uint8_t *buffer;	 /* HEAD_BYTES, then the block */
	uint32_t length;
	int64_t committed_us;
};

struct in_slot {
	bool full, is_end;
	uint8_t *buffer;
	uint32_t length;
};

/* A connection, and its two threads. */
struct member {
	struct member *next;
	struct relay_link *link;
	struct relay_connection *connection;
	pthread_t sender, receiver;
	bool broken;
	bool telling, told; /* the other side, why we broke the link */
	uint8_t *spare;	  /* what the receiver reads into */
	/* For blocks as they travel when compressed: of the sender, with room for a head before it, and of the receiver. */
	uint8_t *out_packed, *in_packed;
	ZSTD_CCtx *packer;
	ZSTD_DCtx *unpacker;
	struct thrift thrift;
};

struct relay_link {
	struct relay_link_options options;
	pthread_t taker;
	pthread_mutex_t mutex; /* all below; never held while anything is sent, received, or taken */
	pthread_cond_t changed;
	struct member *members;
	size_t whole_members;
	int64_t alone_us; /* since when there is no connection */
	bool closing;	  /* relay_link_free() */
	struct error *why; /* broken */
	bool telling;	   /* the user of it, just now */

	struct out_slot *out;
	uint64_t out_next;  /* the next to be committed */
	uint64_t out_taken; /* the other side has taken all before */
	uint64_t out_bytes; /* on the way: committed, and not taken */
	struct pace pace;
	uint64_t rate_bytes_per_s; /* the limit; 0: none */
	int64_t rate_free_us;	   /* when what was sent before will have used up its time */
	bool out_reserved, out_ended;

	struct in_slot *in;
	uint64_t in_next; /* the next to be taken */
	bool in_ended;
	bool taken_due; /* the other side is to be told of in_next */
};

/* ---- frames ---- */

static void frame_write(uint8_t ret[HEAD_BYTES], const struct frame *frame)
{
	const uint32_t length = htobe32(frame->length);
	const uint64_t number = htobe64(frame->number);
	memset(ret, 0, HEAD_BYTES);
	memcpy(ret, &length, sizeof(length));
	ret[4] = frame->kind;
	ret[5] = frame->packed;
	memcpy(ret + 8, &number, sizeof(number));
}

static struct frame frame_read(const uint8_t head[HEAD_BYTES])
{
	struct bytes bytes = {.data = head, .size_bytes = HEAD_BYTES};
	struct frame frame;
	const uint8_t *unused;
	bool whole = bytes_take_u32(&bytes, &frame.length) && bytes_take_u8(&bytes, &frame.kind) &&
		     bytes_take_u8(&bytes, &frame.packed) && bytes_take(&bytes, 2, &unused) &&
		     bytes_take_u64(&bytes, &frame.number);
	assert(whole);
	return frame;
}

/* ---- breaking; the mutex is held ---- */

/* The user is told at once, by whoever noticed: the thread that takes may wait for a QEMU that reads no more, until the user has shut
 * its socket. The mutex is given back meanwhile. */
static void break_link(struct relay_link *link, struct error *why)
{
	if (link->why || link->closing) {
		error_free(why);
		return;
	}
	link->why = why;
	pthread_cond_broadcast(&link->changed);
	struct error *copy = error_copy(why);
	link->telling = true;
	pthread_mutex_unlock(&link->mutex);
	link->options.broken(link->options.user, copy);
	error_free(copy);
	pthread_mutex_lock(&link->mutex);
	link->telling = false;
	pthread_cond_broadcast(&link->changed);
}

/* What it has sent and nobody has acknowledged is for the others. */
static void break_member(struct member *member)
{
	struct relay_link *link = member->link;
	if (member->broken)
		return;
	member->broken = true;
	if (--link->whole_members == 0)
		link->alone_us = clock_monotonic_us();
	for (uint64_t number = link->out_taken; number < link->out_next; number++) {
		struct out_slot *slot = &link->out[number % link->options.out_blocks];
		if (slot->state == SENT && slot->by == member)
			slot->state = READY;
	}
	link->taken_due = true;
	relay_connection_shut(member->connection);
	pthread_cond_broadcast(&link->changed);
}

/* ---- sending ---- */

static struct out_slot *next_ready(struct relay_link *link)
{
	for (uint64_t number = link->out_taken; number < link->out_next; number++) {
		struct out_slot *slot = &link->out[number % link->options.out_blocks];
		if (slot->state == READY)
			return slot;
	}
	return NULL;
}

/* The mutex is held, and given back while it sends. */
static int send_unlocked(struct member *member, const void *data, size_t size_bytes)
{
	pthread_mutex_unlock(&member->link->mutex);
	int r = relay_connection_send(member->connection, data, size_bytes, NULL);
	pthread_mutex_lock(&member->link->mutex);
	return r;
}

static int send_broken(struct member *member)
{
	uint8_t frame[HEAD_BYTES + WHY_MAX_BYTES];
	const char *why = member->link->why->message;
	const size_t length = strnlen(why, WHY_MAX_BYTES);
	frame_write(frame, &(struct frame){.kind = FRAME_BROKEN, .length = (uint32_t)length});
	memcpy(frame + HEAD_BYTES, why, length);
	member->telling = true;
	int r = send_unlocked(member, frame, HEAD_BYTES + length);
	member->told = true;
	pthread_cond_broadcast(&member->link->changed);
	return r;
}

static int send_taken(struct member *member)
{
	uint8_t head[HEAD_BYTES];
	frame_write(head, &(struct frame){.kind = FRAME_TAKEN, .number = member->link->in_next});
	member->link->taken_due = false;
	int r = send_unlocked(member, head, sizeof(head));
	pthread_cond_broadcast(&member->link->changed);
	return r;
}

/* What goes for this block: compressed, if that is less. The slot is ours as long as this takes, and nothing is locked. */
static const uint8_t *pack(struct member *member, const struct out_slot *slot, size_t *ret_bytes)
{
	*ret_bytes = HEAD_BYTES + slot->length;
	if (slot->length == 0 || !thrift_tries(&member->thrift))
		return slot->buffer;
	const size_t packed = ZSTD_compressCCtx(member->packer, member->out_packed + HEAD_BYTES, slot->length, slot->buffer + HEAD_BYTES,
						slot->length, COMPRESSION_LEVEL);
	const bool less = !ZSTD_isError(packed) && packed < slot->length; /* an error: it does not fit into as much */
	thrift_note(&member->thrift, slot->length, less ? packed : slot->length);
	if (!less)
		return slot->buffer;
	struct frame frame = frame_read(slot->buffer);
	frame.length = (uint32_t)packed;
	frame.packed = 1;
	frame_write(member->out_packed, &frame);
	*ret_bytes = HEAD_BYTES + packed;
	return member->out_packed;
}

/* Until so much more may be sent. */
static void wait_for_rate(struct member *member, size_t bytes)
{
	struct relay_link *link = member->link;
	LOCK_SCOPE(&link->mutex);
	const int64_t now_us = clock_monotonic_us();
	if (link->rate_bytes_per_s == 0)
		return;
	if (link->rate_free_us < now_us - RATE_BURST_US)
		link->rate_free_us = now_us - RATE_BURST_US;
	const int64_t from_us = link->rate_free_us;
	link->rate_free_us += (int64_t)((double)bytes * 1e6 / (double)link->rate_bytes_per_s);
	while (!link->closing && !link->why && !member->broken && link->rate_bytes_per_s > 0 && clock_monotonic_us() < from_us)
		(void)cond_wait_until(&link->changed, &link->mutex, from_us);
}

static int send_packed(struct member *member, const struct out_slot *slot)
{
	size_t bytes;
	const uint8_t *data = pack(member, slot, &bytes);
	wait_for_rate(member, bytes);
	return relay_connection_send(member->connection, data, bytes, NULL);
}

/* It stays in its slot, and the slot belongs to it, until the other side has taken it. */
static int send_block(struct member *member, struct out_slot *slot)
{
	slot->state = SENT;
	slot->by = member;
	slot->senders++;
	pthread_mutex_unlock(&member->link->mutex);
	int r = send_packed(member, slot);
	pthread_mutex_lock(&member->link->mutex);
	if (--slot->senders == 0 && slot->state == FREE)
		pthread_cond_broadcast(&member->link->changed);
	return r;
}

static void *send_main(void *user)
{
	struct member *member = user;
	struct relay_link *link = member->link;
	pthread_mutex_lock(&link->mutex);
	while (!member->broken && !link->closing) {
		struct out_slot *slot = link->why ? NULL : next_ready(link);
		int r = 0;
		if (link->why && !member->telling)
			r = send_broken(member);
		else if (!link->why && link->taken_due)
			r = send_taken(member);
		else if (slot)
			r = send_block(member, slot);
		else
			pthread_cond_wait(&link->changed, &link->mutex);
		if (r < 0)
			break_member(member);
	}
	pthread_mutex_unlock(&link->mutex);
	return NULL;
}

/* ---- receiving ---- */

/* A peer that does not keep to the protocol. */
static int set_wrong(struct error **e, const char *what, const struct frame *frame)
{
	return error_set(e, ERROR_PEER_PROTOCOL, "the other relay sends %s (kind %u, length %u, number %" PRIu64 ")", what, frame->kind,
			 frame->length, frame->number);
}

/* The block is in the member's spare buffer. The mutex is held. */
static void keep_block(struct member *member, const struct frame *frame)
{
	struct relay_link *link = member->link;
	struct in_slot *slot = &link->in[frame->number % link->options.in_blocks];
	if (frame->number < link->in_next || slot->full) { /* it has come by another connection */
		link->taken_due = true;
		pthread_cond_broadcast(&link->changed);
		return;
	}
	uint8_t *buffer = slot->buffer;
	slot->buffer = member->spare;
	member->spare = buffer;
	slot->length = frame->length;
	slot->is_end = frame->kind == FRAME_END;
	slot->full = true;
	pthread_cond_broadcast(&link->changed);
}

static void heed_taken(struct relay_link *link, uint64_t number)
{
	const int64_t now_us = clock_monotonic_us();
	for (; link->out_taken < number; link->out_taken++) {
		struct out_slot *slot = &link->out[link->out_taken % link->options.out_blocks];
		slot->state = FREE;
		link->out_bytes -= slot->length;
		pace_note(&link->pace, now_us, now_us - slot->committed_us);
	}
	pthread_cond_broadcast(&link->changed);
}

/* The block that the frame announces, into the member's spare buffer; frame->length is then its own. As receive_frame(). */
static int receive_block(struct member *member, struct frame *frame, struct error **e)
{
	const size_t room = member->link->options.in_block_bytes;
	if (frame->length > room || (frame->length == 0) != (frame->kind == FRAME_END) || frame->packed > (frame->kind == FRAME_BLOCK))
		return set_wrong(e, "a block of a wrong length", frame);
	if (relay_connection_receive(member->connection, frame->packed ? member->in_packed : member->spare, frame->length, NULL) < 0)
		return 0;
	if (!frame->packed)
		return 1;
	const size_t size = ZSTD_decompressDCtx(member->unpacker, member->spare, room, member->in_packed, frame->length);
	if (ZSTD_isError(size) || size == 0)
		return set_wrong(e, "a block that cannot be decompressed", frame);
	frame->length = (uint32_t)size;
	return 1;
}

/* 1: go on; 0: the connection is broken; -1: the link is, *e. */
static int receive_frame(struct member *member, struct error **e)
{
	struct relay_link *link = member->link;
	uint8_t head[HEAD_BYTES];
	char why[WHY_MAX_BYTES + 1] = "";
	if (relay_connection_receive(member->connection, head, sizeof(head), NULL) < 0)
		return 0;
	struct frame frame = frame_read(head);
	int r;
	switch (frame.kind) {
	case FRAME_BLOCK:
	case FRAME_END:
		r = receive_block(member, &frame, e);
		if (r <= 0)
			return r;
		break;
	case FRAME_TAKEN:
		if (frame.length != 0)
			return set_wrong(e, "an acknowledgement with something in it", &frame);
		break;
	case FRAME_BROKEN:
		if (frame.length > WHY_MAX_BYTES)
			return set_wrong(e, "too many words", &frame);
		if (relay_connection_receive(member->connection, why, frame.length, NULL) < 0)
			return 0;
		return error_set(e, ERROR_DATA_RELAY, "the other host's relay has given up: %s", why);
	default:
		return set_wrong(e, "what is not known", &frame);
	}
	LOCK_SCOPE(&link->mutex);
	if (frame.kind == FRAME_TAKEN) {
		if (frame.number > link->out_next)
			return set_wrong(e, "an acknowledgement of what was not sent", &frame);
		heed_taken(link, frame.number);
	} else {
		if (frame.number >= link->in_next + link->options.in_blocks)
			return set_wrong(e, "more than the window", &frame);
		keep_block(member, &frame);
	}
	return 1;
}

static void *receive_main(void *user)
{
	struct member *member = user;
	struct relay_link *link = member->link;
	struct error *why = NULL;
	int r;
	do
		r = receive_frame(member, &why);
	while (r > 0);
	pthread_mutex_lock(&link->mutex);
	if (r < 0)
		break_link(link, why);
	else
		break_member(member);
	pthread_mutex_unlock(&link->mutex);
	return NULL;
}

/* ---- taking out; and the watch over the connections ---- */

static void take_next(struct relay_link *link, struct in_slot *slot)
{
	struct error *why = NULL;
	pthread_mutex_unlock(&link->mutex);
	int r = link->options.take(link->options.user, slot->is_end ? NULL : slot->buffer, slot->length, &why);
	pthread_mutex_lock(&link->mutex);
	if (r < 0) {
		break_link(link, why);
		return;
	}
	link->in_ended = slot->is_end;
	slot->full = false;
	link->in_next++;
	link->taken_due = true;
	pthread_cond_broadcast(&link->changed);
}

/* Both streams have ended, and both sides know. Then connections may go. */
static bool is_over(const struct relay_link *link)
{
	return link->in_ended && link->out_ended && link->out_taken == link->out_next;
}

static void *take_main(void *user)
{
	struct relay_link *link = user;
	pthread_mutex_lock(&link->mutex);
	while (!link->closing) {
		struct in_slot *slot = &link->in[link->in_next % link->options.in_blocks];
		const int64_t until_us = link->alone_us + link->options.patience_ms * 1000;
		if (!link->why && slot->full && !link->in_ended) {
			take_next(link, slot);
		} else if (link->why || link->whole_members > 0 || is_over(link)) {
			pthread_cond_wait(&link->changed, &link->mutex);
		} else if (!cond_wait_until(&link->changed, &link->mutex, until_us) && link->whole_members == 0) {
			struct error *why = NULL;
			error_set(&why, ERROR_DATA_RELAY, "there was no connection between the two hosts' relays for %" PRId64 " ms",
				  link->options.patience_ms);
			break_link(link, why);
		}
	}
	pthread_mutex_unlock(&link->mutex);
	return NULL;
}

/* ---- for the user ---- */

static void start(pthread_t *ret, void *(*run)(void *user), void *user)
{
	if (pthread_create(ret, NULL, run, user) != 0)
		abort(); /* no memory for a stack */
}

struct relay_link *relay_link_new(const struct relay_link_options *options)
{
	struct relay_link *link = xcalloc(1, sizeof(*link));
	link->options = *options;
	pthread_mutex_init(&link->mutex, NULL);
	cond_init(&link->changed);
	link->alone_us = clock_monotonic_us();
	pace_init(&link->pace, 2 * options->out_block_bytes / BLOCK_PARTS, options->out_blocks * options->out_block_bytes);
	link->out = xcalloc(options->out_blocks, sizeof(*link->out));
	for (size_t i = 0; i < options->out_blocks; i++)
		link->out[i].buffer = xmalloc(HEAD_BYTES + options->out_block_bytes);
	link->in = xcalloc(options->in_blocks, sizeof(*link->in));
	for (size_t i = 0; i < options->in_blocks; i++)
		link->in[i].buffer = xmalloc(options->in_block_bytes);
	start(&link->taker, take_main, link);
	return link;
}

static void member_free(struct member *member)
{
	pthread_join(member->sender, NULL);
	pthread_join(member->receiver, NULL);
	relay_connection_free(member->connection);
	ZSTD_freeCCtx(member->packer);
	ZSTD_freeDCtx(member->unpacker);
	free(member->out_packed);
	free(member->in_packed);
	free(member->spare);
	free(member);
}

/* That all was taken, or why the link is broken: the other side may wait for no more than that. The mutex is held. */
static bool owes_a_word(const struct relay_link *link)
{
	if (!link->why)
		return link->taken_due && link->in_ended && link->whole_members > 0;
	for (const struct member *member = link->members; member; member = member->next)
		if (!member->broken && !member->told)
			return true;
	return false;
}

void relay_link_free(struct relay_link *link)
{
	if (!link)
		return;
	pthread_mutex_lock(&link->mutex);
	const int64_t until_us = clock_monotonic_us() + LAST_WORD_US;
	while (link->telling)
		pthread_cond_wait(&link->changed, &link->mutex);
	while (owes_a_word(link) && cond_wait_until(&link->changed, &link->mutex, until_us))
		;
	link->closing = true;
	for (struct member *member = link->members; member; member = member->next)
		relay_connection_shut(member->connection);
	pthread_cond_broadcast(&link->changed);
	pthread_mutex_unlock(&link->mutex);
	pthread_join(link->taker, NULL);
	while (link->members) {
		struct member *member = link->members;
		link->members = member->next;
		member_free(member);
	}
	for (size_t i = 0; i < link->options.out_blocks; i++)
		free(link->out[i].buffer);
	for (size_t i = 0; i < link->options.in_blocks; i++)
		free(link->in[i].buffer);
	free(link->out);
	free(link->in);
	error_free(link->why);
	pthread_cond_destroy(&link->changed);
	pthread_mutex_destroy(&link->mutex);
	free(link);
}

void relay_link_add(struct relay_link *link, struct relay_connection *connection)
{
	struct member *member = xcalloc(1, sizeof(*member));
	member->link = link;
	member->connection = connection;
	member->spare = xmalloc(link->options.in_block_bytes);
	member->in_packed = xmalloc(link->options.in_block_bytes);
	member->out_packed = xmalloc(HEAD_BYTES + link->options.out_block_bytes);
	member->packer = ZSTD_createCCtx();
	member->unpacker = ZSTD_createDCtx();
	if (!member->packer || !member->unpacker)
		abort(); /* no memory */
	LOCK_SCOPE(&link->mutex);
	member->next = link->members;
	link->members = member;
	link->whole_members++;
	link->taken_due = true;
	start(&member->sender, send_main, member);
	start(&member->receiver, receive_main, member);
	pthread_cond_broadcast(&link->changed);
}

size_t relay_link_connections(struct relay_link *link)
{
	LOCK_SCOPE(&link->mutex);
	return link->whole_members;
}

bool relay_link_await_fewer(struct relay_link *link, size_t count, int64_t at_least_ms)
{
	const int64_t from_us = clock_monotonic_us() + at_least_ms * 1000;
	LOCK_SCOPE(&link->mutex);
	while (!link->why && !is_over(link)) {
		if (clock_monotonic_us() < from_us)
			(void)cond_wait_until(&link->changed, &link->mutex, from_us);
		else if (link->whole_members >= count)
			pthread_cond_wait(&link->changed, &link->mutex);
		else
			return true;
	}
	return false;
}

/* The mutex is held. */
static int fail_if_broken(struct relay_link *link, struct error **e)
{
	if (!link->why)
		return 0;
	if (e)
		*e = error_copy(link->why);
	return -1;
}

/* The mutex is held. */
static int reserve(struct relay_link *link, struct error **e)
{
	const struct out_slot *slot = &link->out[link->out_next % link->options.out_blocks];
	while (!link->why && (slot->state != FREE || slot->senders > 0 || link->out_bytes >= pace_limit_bytes(&link->pace))) {
		pace_blocked(&link->pace);
		pthread_cond_wait(&link->changed, &link->mutex);
	}
	if (fail_if_broken(link, e) < 0)
		return -1;
	link->out_reserved = true;
	return 0;
}

int relay_link_reserve(struct relay_link *link, uint8_t **ret, struct error **e)
{
	LOCK_SCOPE(&link->mutex);
	assert(!link->out_reserved && !link->out_ended);
	if (reserve(link, e) < 0)
		return -1;
	*ret = link->out[link->out_next % link->options.out_blocks].buffer + HEAD_BYTES;
	return 0;
}

/* The mutex is held. */
static void commit(struct relay_link *link, size_t size_bytes, enum frame_kind kind)
{
	struct out_slot *slot = &link->out[link->out_next % link->options.out_blocks];
	slot->length = (uint32_t)size_bytes;
	frame_write(slot->buffer, &(struct frame){.length = slot->length, .kind = (uint8_t)kind, .number = link->out_next});
	slot->state = READY;
	slot->committed_us = clock_monotonic_us();
	link->out_bytes += size_bytes;
	link->out_next++;
	link->out_reserved = false;
	pthread_cond_broadcast(&link->changed);
}

size_t relay_link_block_bytes(struct relay_link *link)
{
	LOCK_SCOPE(&link->mutex);
	const size_t most = link->options.out_block_bytes, least = most / BLOCK_PARTS;
	const uint64_t part = pace_limit_bytes(&link->pace) / BLOCKS_ON_THE_WAY;
	return part < least ? least : part > most ? most : (size_t)part;
}

void relay_link_commit(struct relay_link *link, size_t size_bytes)
{
	LOCK_SCOPE(&link->mutex);
	assert(link->out_reserved && size_bytes > 0 && size_bytes <= link->options.out_block_bytes);
	commit(link, size_bytes, FRAME_BLOCK);
}

int relay_link_end(struct relay_link *link, int64_t timeout_ms, struct error **e)
{
	const int64_t until_us = clock_monotonic_us() + timeout_ms * 1000;
	LOCK_SCOPE(&link->mutex);
	assert(!link->out_ended);
	if (!link->out_reserved && reserve(link, e) < 0)
		return -1;
	commit(link, 0, FRAME_END);
	link->out_ended = true;
	while (!link->why && link->out_taken < link->out_next)
		if (!cond_wait_until(&link->changed, &link->mutex, until_us) && link->out_taken < link->out_next && !link->why)
			return error_set(e, ERROR_TIMEOUT, "the other host's relay has not taken all within %" PRId64 " ms", timeout_ms);
	return fail_if_broken(link, e);
}

void relay_link_break(struct relay_link *link, const struct error *why)
{
	LOCK_SCOPE(&link->mutex);
	break_link(link, error_copy(why));
}

void relay_link_limit_rate(struct relay_link *link, uint64_t bytes_per_s)
{
	LOCK_SCOPE(&link->mutex);
	link->rate_bytes_per_s = bytes_per_s;
	link->rate_free_us = 0;
	pthread_cond_broadcast(&link->changed);
}

uint64_t relay_link_wire_bytes(struct relay_link *link)
{
	uint64_t bytes = 0;
	LOCK_SCOPE(&link->mutex);
	for (const struct member *member = link->members; member; member = member->next)
		bytes += relay_connection_wire_bytes(member->connection);
	return bytes;
}
