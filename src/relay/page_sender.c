/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The source's half of the relay; see page_sender.h.
 *
 * Theory of operation
 *
 * Two threads. The one that reads puts QEMU's stream into a ring and makes an entry of each piece of it: a page that stands at the
 * destination already, one that is to be asked for, bytes that are passed on, and so on. All that depends on what was sent
 * before it decides there and then, in the stream's order. The one that says takes the entries in the same order, waits where a question is not
 * answered yet, and fills blocks of the link. Content lies in the ring until it has been said; it is copied once, into the block.
 *
 *   QEMU --> ring:  said | entries, some of them asked for | not read yet
 *
 * Only pages that are sent for the first time are asked for. What is sent again has just been written by the guest, and is in no image;
 * and so the last pages, which the guest is standing still for, never wait for an answer.
 *
 * How much may be in the ring: as little as keeps the saying busy, as all of it has to go when the guest stands still. While pages are asked
 * for that is as much as is read in the time that an answer takes; it grows where the saying waits for an answer and the reading for
 * room, and shrinks where what could be said has waited.
 *
 * QEMU leaves out a page's block's name where it is that of the page before, and does so in bytes that are passed on, too. Thus a page
 * is left out only where the destination's QEMU has the same block as its last as the source's.
 */
#include "relay/page_sender.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/xalloc.h"
#include "qemu/delta.h"
#include "qemu/stream_reader.h"
#include "relay/memory.h"
#include "relay/page_digest.h"
#include "relay/record.h"
#include "relay/sent_pages.h"

#define RING_BYTES (32 * 1024 * 1024)
#define READ_BYTES (256 * 1024) /* at a time */
#define AHEAD_LEAST_BYTES (512 * 1024)
#define AHEAD_LATE_US 20000 /* what could be said has waited too long */
#define AHEAD_SHRINK_US 10000 /* from one time to the next */
#define ENTRIES 32768
#define DELTA_MAX_BYTES 2048
#define ASK_AT_ONCE 64 /* questions that go without waiting for more, while there is something else to say */
/* Where the destination has fewer than one of so many pages, only one of so many is asked for, to see whether that changes. */
#define ASK_WORTH 64
#define ASK_SELDOM 16
#define ASK_LOOK 1024 /* the latest answers, by which that is judged */

enum entry_kind {
	ENTRY_BYTES,
	ENTRY_BLOCK, /* bytes, with a name for the other side */
	ENTRY_LEFT_OUT,
	ENTRY_ZERO,
	ENTRY_AGAIN,
	ENTRY_ASKED,
	ENTRY_KEPT,
	ENTRY_WHOLE,
	ENTRY_CHANGED, /* as whole, or what has changed in it */
};

struct entry {
	uint64_t at;   /* in the stream, and so in the ring */
	uint32_t size; /* of all that it stands for */
	uint32_t pages; /* zero, left out */
	uint8_t kind, name_length;
	uint64_t address;
	uint64_t number; /* asked: of the question; again: how many pages ago */
	const uint8_t *content; /* of a page, in the ring; block: its name */
	int64_t read_us;
};

struct page_sender {
	struct page_sender_options options;
	uint8_t *ring;
	struct entry entries[ENTRIES];
	struct page_digest questions[RECORD_ASKED_MAX];
	bool found[RECORD_ASKED_MAX]; /* answers */

	/* Of the thread that reads. */
	struct stream_reader *reader; /* NULL: the rest is passed on as it is */
	struct page_digester *digester;
	struct sent_pages *sent; /* see there which thread */
	struct page_digest zero_digest;
	uint64_t parsed; /* of the stream */
	uint64_t made;	 /* entries, published or not */
	uint64_t made_questions;
	uint64_t last_block; /* that the destination's QEMU will have had last; UINT64_MAX: none */
	bool may_leave_out, may_ask;
	bool worth_asking;	/* as of late */
	unsigned int not_asked;
	uint64_t entries_limit; /* made may become so much */

	/* Of the thread that says. */
	uint8_t *block, *at; /* being filled; NULL: none */
	size_t block_bytes;
	uint64_t said_questions;
	uint64_t entry_said_bytes; /* of the first entry */
	uint64_t next_address;
	struct record_sum sum;
	struct page_sender_counts said; /* since they were last added to counts */
	int64_t shrunk_us;

	pthread_mutex_t mutex; /* all below */
	pthread_cond_t changed;
	uint64_t read, freed; /* of the stream: what is in the ring is between */
	uint64_t entries_made, entries_said;
	uint64_t questions_made, questions_answered;
	uint64_t ahead_bytes; /* how much may be in the ring */
	bool reader_waits;
	bool ended, stopped;
	uint64_t looked_answers, looked_found; /* of late */
	/* How long an answer takes: of the question that is being timed. */
	uint64_t timed_question;
	int64_t timed_us, answer_us;
	bool timing;
	struct page_sender_counts counts;
};

/* ---- reading: entries ---- */

static struct entry *entry_at(struct page_sender *sender, uint64_t number)
{
	return &sender->entries[number % ENTRIES];
}

/* The last one, if it is of this kind, can still be changed, and ends where the next piece begins. */
static struct entry *entry_to_extend(struct page_sender *sender, enum entry_kind kind)
{
	if (sender->made == sender->entries_made) /* only this thread writes it */
		return NULL;
	struct entry *last = entry_at(sender, sender->made - 1);
	return last->kind == kind && last->at + last->size == sender->parsed && last->size < RING_BYTES / 2 ? last : NULL;
}

static struct entry *entry_add(struct page_sender *sender, enum entry_kind kind, size_t size)
{
	struct entry *entry = entry_at(sender, sender->made++);
	*entry = (struct entry){.at = sender->parsed, .size = (uint32_t)size, .kind = (uint8_t)kind};
	return entry;
}

static void add_bytes(struct page_sender *sender, size_t size)
{
	struct entry *last = entry_to_extend(sender, ENTRY_BYTES);
	if (last)
		last->size += (uint32_t)size;
	else
		entry_add(sender, ENTRY_BYTES, size);
}

static void add_left_out(struct page_sender *sender, size_t size)
{
	struct entry *last = entry_to_extend(sender, ENTRY_LEFT_OUT);
	if (last)
		last->size += (uint32_t)size;
	else
		last = entry_add(sender, ENTRY_LEFT_OUT, size);
	last->pages++;
}

static void add_zero(struct page_sender *sender, const struct stream_item *item, uint64_t address)
{
	struct entry *last = entry_to_extend(sender, ENTRY_ZERO);
	if (last && last->address + last->pages == address && last->pages < RECORD_RUN_MAX) {
		last->pages++;
		last->size += (uint32_t)item->size_bytes;
		return;
	}
	last = entry_add(sender, ENTRY_ZERO, item->size_bytes);
	last->address = address;
	last->pages = 1;
}

/* Whether questions have been worth it of late; else one now and then. */
static bool asks(struct page_sender *sender)
{
	return sender->may_ask && (sender->worth_asking || ++sender->not_asked % ASK_SELDOM == 0);
}

static void add_content(struct page_sender *sender, const struct stream_item *item, uint64_t address, const struct page_digest *digest,
			bool first)
{
	struct entry *entry;
	const int back = sent_pages_latest(sender->sent, digest);
	if (back >= 0) {
		entry = entry_add(sender, ENTRY_AGAIN, item->size_bytes);
		entry->number = (uint64_t)back;
	} else if (first && asks(sender)) {
		entry = entry_add(sender, ENTRY_ASKED, item->size_bytes);
		sender->questions[sender->made_questions % RECORD_ASKED_MAX] = *digest;
		entry->number = sender->made_questions++;
		sent_pages_keep_latest(sender->sent, digest);
	} else if (first) {
		entry = entry_add(sender, ENTRY_KEPT, item->size_bytes);
		sent_pages_keep_latest(sender->sent, digest);
	} else {
		entry = entry_add(sender, sender->may_leave_out ? ENTRY_CHANGED : ENTRY_WHOLE, item->size_bytes);
	}
	entry->address = address;
	entry->content = item->data;
}

static uint64_t address_of(const struct page_sender *sender, const struct stream_item *item)
{
	const struct stream_block *blocks;
	stream_reader_blocks(sender->reader, &blocks);
	return record_address((uint64_t)(item->block - blocks), item->offset);
}

static void add_page(struct page_sender *sender, const struct stream_item *item)
{
	const bool zero = item->kind == STREAM_ZERO || page_is_zero(item->data); /* add_item() has looked at what fills it */
	const uint64_t address = address_of(sender, item), block = record_block(address);
	const struct page_digest digest = zero ? sender->zero_digest : page_digest(sender->digester, item->data);
	const bool first = sent_pages_first(sender->sent, address);
	if (sent_pages_same(sender->sent, address, &digest) && sender->may_leave_out && block == sender->last_block) {
		add_left_out(sender, item->size_bytes);
		return;
	}
	sender->last_block = block;
	if (zero)
		add_zero(sender, item, address);
	else
		add_content(sender, item, address, &digest, first);
}

/* A page in a form of QEMU's own: it is passed on, and nobody here knows its content. */
static void add_unknown_page(struct page_sender *sender, const struct stream_item *item)
{
	const uint64_t address = address_of(sender, item);
	struct page_digest none;
	memset(&none, 0xff, sizeof(none));
	sent_pages_first(sender->sent, address);
	sent_pages_same(sender->sent, address, &none);
	sender->last_block = record_block(address);
	add_bytes(sender, item->size_bytes);
	sender->may_leave_out = false; /* nor is what a delta would be of */
}

static void add_block(struct page_sender *sender, const struct stream_item *item)
{
	struct entry *entry = entry_add(sender, ENTRY_BLOCK, item->size_bytes);
	entry->content = (const uint8_t *)item->block->name;
	entry->name_length = item->block->name_length;
	sent_pages_add_block(sender->sent, item->block->size_bytes);
}

static void add_item(struct page_sender *sender, const struct stream_item *item)
{
	switch (item->kind) {
	case STREAM_PAGE:
		add_page(sender, item);
		break;
	case STREAM_ZERO:
		if (item->data[0] == 0)
			add_page(sender, item);
		else
			add_unknown_page(sender, item);
		break;
	case STREAM_DELTA:
	case STREAM_COMPRESSED:
		add_unknown_page(sender, item);
		break;
	case STREAM_BLOCK:
		add_block(sender, item);
		break;
	case STREAM_COMMAND:
		/* From here on the destination's QEMU must get every page, and may discard some. */
		if (item->command == STREAM_POSTCOPY_ADVISE || item->command == STREAM_POSTCOPY_LISTEN)
			sender->may_leave_out = false;
		if (item->command == STREAM_POSTCOPY_LISTEN)
			sender->may_ask = false; /* a guest waits for them */
		add_bytes(sender, item->size_bytes);
		break;
	default:
		if (item->size_bytes > 0)
			add_bytes(sender, item->size_bytes);
		break;
	}
}

/* ---- reading: the stream ---- */

static void read_no_more(struct page_sender *sender, const char *why)
{
	log_debug("from byte %" PRIu64 " on the stream is passed on as it is: %s", sender->parsed, why);
	stream_reader_free(sender->reader);
	sender->reader = NULL;
}

/* Entries of what has been read, up to `end`, as far as it is whole. */
static void parse(struct page_sender *sender, uint64_t end)
{
	while (sender->reader && sender->made < sender->entries_limit) {
		cleanup_error struct error *why = NULL;
		struct stream_item item;
		int r = stream_reader_next(sender->reader, sender->ring + sender->parsed % RING_BYTES, end - sender->parsed, &item, &why);
		if (r == 0)
			return;
		if (r < 0) {
			read_no_more(sender, why->message);
			break;
		}
		add_item(sender, &item);
		sender->parsed += item.size_bytes;
		if (item.kind == STREAM_REST)
			read_no_more(sender, item.why);
	}
	if (!sender->reader && end > sender->parsed && sender->made < sender->entries_limit) {
		add_bytes(sender, end - sender->parsed);
		sender->parsed = end;
	}
}

/* What the other thread has come to. The mutex is held. */
static void look_up(struct page_sender *sender)
{
	sender->entries_limit = sender->entries_said + ENTRIES;
	sender->worth_asking = sender->looked_answers < ASK_LOOK || sender->looked_found * ASK_WORTH >= sender->looked_answers;
}

/* The mutex is held. */
static void publish(struct page_sender *sender)
{
	const int64_t now_us = clock_monotonic_us();
	for (uint64_t i = sender->entries_made; i < sender->made; i++)
		entry_at(sender, i)->read_us = now_us;
	sender->entries_made = sender->made;
	sender->questions_made = sender->made_questions;
	pthread_cond_broadcast(&sender->changed);
}

/* The mutex is held. */
static void wait_for_other(struct page_sender *sender)
{
	sender->reader_waits = true;
	pthread_cond_broadcast(&sender->changed);
	pthread_cond_wait(&sender->changed, &sender->mutex);
	sender->reader_waits = false;
}

/* Room in the ring for how many bytes, once there is any; 0: stopped. */
static size_t wait_for_room(struct page_sender *sender)
{
	LOCK_SCOPE(&sender->mutex);
	while (!sender->stopped) {
		const uint64_t inside = sender->read - sender->freed;
		/* What is not whole yet must become so. */
		const uint64_t most = sender->parsed == sender->freed ? RING_BYTES : sender->ahead_bytes;
		assert(most <= RING_BYTES);
		if (inside < most) {
			look_up(sender);
			return most - inside < READ_BYTES ? (size_t)(most - inside) : READ_BYTES;
		}
		wait_for_other(sender);
	}
	return 0;
}

/* Entries of all that has been read, waiting until there is room for them. False: stopped. */
static bool make_entries(struct page_sender *sender, uint64_t end, bool ended)
{
	for (;;) {
		parse(sender, end);
		const bool full = sender->made == sender->entries_limit;
		LOCK_SCOPE(&sender->mutex);
		sender->read = end;
		sender->ended = ended && !full;
		publish(sender);
		if (!full)
			return true;
		while (!sender->stopped && sender->entries_said + ENTRIES == sender->entries_limit)
			wait_for_other(sender);
		if (sender->stopped)
			return false;
		look_up(sender);
	}
}

static int read_stream(struct page_sender *sender, struct error **e)
{
	for (;;) {
		const size_t room = wait_for_room(sender);
		if (room == 0)
			return 0; /* whoever stopped it says why */
		ssize_t n = recv(sender->options.fd, sender->ring + sender->read % RING_BYTES, room, 0);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return error_set_errno(e, ERROR_DATA_RELAY, errno, "QEMU's stream broke");
		if (n == 0 && sender->reader)
			read_no_more(sender, "it has ended");
		if (!make_entries(sender, sender->read + (uint64_t)n, n == 0) || n == 0)
			return 0;
	}
}

/* ---- saying ---- */

static size_t room_left(const struct page_sender *sender)
{
	return (size_t)(sender->block + sender->block_bytes - RECORD_SUM_BYTES - sender->at);
}

static void say_questions(struct page_sender *sender, uint64_t made)
{
	while (sender->said_questions < made) {
		uint64_t count = made - sender->said_questions;
		const size_t fit = room_left(sender) < 3 ? 0 : (room_left(sender) - 3) / PAGE_DIGEST_BYTES;
		count = count > RECORD_ASK_MAX ? RECORD_ASK_MAX : count;
		count = count > fit ? fit : count;
		if (count == 0)
			return;
		*sender->at++ = RECORD_ASK;
		sender->at = record_put_u16(sender->at, (uint16_t)count);
		for (; count > 0; count--, sender->said_questions++, sender->at += PAGE_DIGEST_BYTES)
			memcpy(sender->at, &sender->questions[sender->said_questions % RECORD_ASKED_MAX], PAGE_DIGEST_BYTES);
	}
}

static void say_bytes(struct page_sender *sender, const uint8_t *bytes, size_t count)
{
	*sender->at++ = RECORD_BYTES;
	sender->at = record_put_u32(sender->at, (uint32_t)count);
	memcpy(sender->at, bytes, count);
	sender->at += count;
	record_sum_add(&sender->sum, bytes, count);
	sender->said.other_bytes += count;
}

static void say_page(struct page_sender *sender, enum record_kind kind, const struct entry *entry)
{
	sender->at = record_put_head(sender->at, kind, entry->address, &sender->next_address);
	record_sum_add_number(&sender->sum, entry->address);
	record_sum_add(&sender->sum, entry->content, STREAM_PAGE_BYTES);
	sent_pages_keep(sender->sent, entry->address, entry->content, entry->kind == ENTRY_CHANGED);
	if (kind == RECORD_FOUND || kind == RECORD_AGAIN)
		return;
	memcpy(sender->at, entry->content, STREAM_PAGE_BYTES);
	sender->at += STREAM_PAGE_BYTES;
	sender->said.whole++;
}

static void say_changed(struct page_sender *sender, const struct entry *entry)
{
	uint8_t delta[DELTA_MAX_BYTES];
	const uint8_t *copy = sent_pages_copy(sender->sent, entry->address);
	const int size = copy ? delta_encode(copy, entry->content, delta, sizeof(delta)) : -1;
	if (size <= 0) {
		say_page(sender, RECORD_PAGE, entry);
		return;
	}
	sender->at = record_put_head(sender->at, RECORD_DELTA, entry->address, &sender->next_address);
	sender->at = record_put_u16(sender->at, (uint16_t)size);
	memcpy(sender->at, delta, (size_t)size);
	sender->at += size;
	record_sum_add_number(&sender->sum, entry->address);
	record_sum_add(&sender->sum, delta, (size_t)size);
	sent_pages_keep(sender->sent, entry->address, entry->content, true);
	sender->said.delta++;
	sender->said.delta_bytes += (uint64_t)size;
}

static void say_zero(struct page_sender *sender, const struct entry *entry)
{
	sender->at = record_put_head(sender->at, RECORD_ZERO, entry->address, &sender->next_address);
	sender->at = record_put_u16(sender->at, (uint16_t)entry->pages);
	sender->next_address = entry->address + entry->pages;
	record_sum_add_number(&sender->sum, entry->address);
	record_sum_add_number(&sender->sum, entry->pages);
	for (uint64_t i = 0; i < entry->pages; i++)
		sent_pages_keep(sender->sent, entry->address + i, NULL, false);
	sender->said.zero += entry->pages;
}

/* False: it does not fit any more, or not all of it. */
static bool say_entry(struct page_sender *sender, const struct entry *entry)
{
	const size_t room = room_left(sender);
	const uint8_t *bytes = sender->ring + (entry->at + sender->entry_said_bytes) % RING_BYTES;
	size_t left = entry->size - sender->entry_said_bytes;
	if (entry->kind == ENTRY_BYTES) {
		if (room < RECORD_HEAD_MAX + 1)
			return false;
		const bool whole = left <= room - RECORD_HEAD_MAX;
		left = whole ? left : room - RECORD_HEAD_MAX;
		say_bytes(sender, bytes, left);
		sender->entry_said_bytes += left;
		return whole;
	}
	if (room < RECORD_PAGE_MAX)
		return false;
	switch ((enum entry_kind)entry->kind) {
	case ENTRY_BLOCK:
		*sender->at++ = RECORD_BLOCK;
		*sender->at++ = entry->name_length;
		memcpy(sender->at, entry->content, entry->name_length);
		sender->at += entry->name_length;
		say_bytes(sender, bytes, left);
		break;
	case ENTRY_ZERO:
		say_zero(sender, entry);
		break;
	case ENTRY_AGAIN:
		say_page(sender, RECORD_AGAIN, entry);
		sender->at = record_put_u16(sender->at, (uint16_t)entry->number);
		sender->said.again++;
		break;
	case ENTRY_ASKED:
		say_page(sender, sender->found[entry->number % RECORD_ASKED_MAX] ? RECORD_FOUND : RECORD_MISSED, entry);
		break;
	case ENTRY_KEPT:
		say_page(sender, RECORD_KEPT, entry);
		break;
	case ENTRY_WHOLE:
		say_page(sender, RECORD_PAGE, entry);
		break;
	case ENTRY_CHANGED:
		say_changed(sender, entry);
		break;
	case ENTRY_LEFT_OUT:
	case ENTRY_BYTES:
		break;
	}
	return true;
}

/* ---- saying: when ---- */

/* The first entry can be said. The mutex is held. */
static bool entry_ready(struct page_sender *sender)
{
	if (sender->entries_said == sender->entries_made)
		return false;
	const struct entry *entry = entry_at(sender, sender->entries_said);
	return entry->kind != ENTRY_ASKED || entry->number < sender->questions_answered;
}

/* The mutex is held. */
static bool questions_due(struct page_sender *sender)
{
	const uint64_t waiting = sender->questions_made - sender->said_questions;
	return waiting >= ASK_AT_ONCE || (waiting > 0 && !entry_ready(sender));
}

/* The mutex is held. False: there is nothing more. */
static bool wait_for_something(struct page_sender *sender)
{
	while (!sender->stopped && !entry_ready(sender) && !questions_due(sender)) {
		if (sender->entries_said == sender->entries_made && sender->ended)
			return false;
		if (sender->entries_said < sender->entries_made && sender->reader_waits && sender->ahead_bytes < RING_BYTES) {
			/* Only an answer is awaited, and meanwhile nothing more is read. */
			sender->ahead_bytes = sender->ahead_bytes * 2 < RING_BYTES ? sender->ahead_bytes * 2 : RING_BYTES;
			pthread_cond_broadcast(&sender->changed);
		}
		pthread_cond_wait(&sender->changed, &sender->mutex);
	}
	return !sender->stopped;
}

/* What is said now could have been said earlier: the ring holds more than is of use. The mutex is held. */
static void keep_ahead_small(struct page_sender *sender, const struct entry *entry)
{
	const int64_t now_us = clock_monotonic_us();
	const int64_t answer_us = entry->kind == ENTRY_ASKED ? sender->answer_us : 0;
	if (now_us - entry->read_us <= answer_us + AHEAD_LATE_US || now_us - sender->shrunk_us < AHEAD_SHRINK_US)
		return;
	sender->shrunk_us = now_us;
	sender->ahead_bytes -= sender->ahead_bytes / 8;
	if (sender->ahead_bytes < AHEAD_LEAST_BYTES)
		sender->ahead_bytes = AHEAD_LEAST_BYTES;
}

static void add_counts(struct page_sender_counts *counts, const struct page_sender_counts *more)
{
	counts->zero += more->zero;
	counts->unchanged += more->unchanged;
	counts->images += more->images;
	counts->received += more->received;
	counts->again += more->again;
	counts->delta += more->delta;
	counts->whole += more->whole;
	counts->delta_bytes += more->delta_bytes;
	counts->other_bytes += more->other_bytes;
	counts->asked += more->asked;
}

/* What can be said now and fits into the block. */
static void fill(struct page_sender *sender)
{
	pthread_mutex_lock(&sender->mutex);
	uint64_t questions = sender->questions_made;
	if (sender->said_questions < questions && !sender->timing) {
		sender->timing = true;
		sender->timed_question = questions - 1;
		sender->timed_us = clock_monotonic_us();
	}
	if (entry_ready(sender))
		keep_ahead_small(sender, entry_at(sender, sender->entries_said));
	const uint64_t first = sender->entries_said, made = sender->entries_made, answered = sender->questions_answered;
	pthread_mutex_unlock(&sender->mutex);

	say_questions(sender, questions);
	uint64_t said = first;
	const struct entry *entry = NULL;
	for (; said < made; said++) {
		entry = entry_at(sender, said);
		if ((entry->kind == ENTRY_ASKED && entry->number >= answered) || !say_entry(sender, entry))
			break;
		if (entry->kind == ENTRY_LEFT_OUT)
			sender->said.unchanged += entry->pages;
		sender->entry_said_bytes = 0;
	}
	LOCK_SCOPE(&sender->mutex);
	sender->entries_said = said;
	if (said > first) {
		const struct entry *last = entry_at(sender, said - 1);
		sender->freed = last->at + last->size;
	}
	add_counts(&sender->counts, &sender->said);
	sender->said = (struct page_sender_counts){0};
	pthread_cond_broadcast(&sender->changed);
}

static int say_stream(struct page_sender *sender, int64_t timeout_ms, struct error **e)
{
	for (;;) {
		pthread_mutex_lock(&sender->mutex);
		const bool more = wait_for_something(sender), stopped = sender->stopped;
		pthread_mutex_unlock(&sender->mutex);
		if (stopped)
			return error_set(e, ERROR_DATA_RELAY, "the relay has been stopped");
		if (!more)
			return relay_link_end(sender->options.link, timeout_ms, e);
		if (!sender->block && relay_link_reserve(sender->options.link, &sender->block, e) < 0)
			return -1;
		sender->at = sender->block;
		sender->block_bytes = relay_link_block_bytes(sender->options.link);
		fill(sender);
		if (sender->at == sender->block)
			continue; /* only what is left out */
		*sender->at++ = RECORD_SUM;
		sender->at = record_put_u64(sender->at, record_sum_value(&sender->sum));
		relay_link_commit(sender->options.link, (size_t)(sender->at - sender->block));
		sender->block = NULL;
	}
}

struct saying {
	struct page_sender *sender;
	int64_t timeout_ms;
	struct error *why;
	int result;
};

static void *say_main(void *user)
{
	struct saying *saying = user;
	saying->result = say_stream(saying->sender, saying->timeout_ms, &saying->why);
	if (saying->result < 0)
		page_sender_stop(saying->sender);
	return NULL;
}

/* ---- for the user ---- */

struct page_sender *page_sender_new(const struct page_sender_options *options, struct error **e)
{
	static const uint8_t zero[STREAM_PAGE_BYTES];
	struct page_sender *sender = xcalloc(1, sizeof(*sender));
	sender->options = *options;
	if (memory_map_twice(RING_BYTES, &sender->ring, e) < 0) {
		free(sender);
		return NULL;
	}
	sender->reader = stream_reader_new();
	sender->digester = page_digester_new();
	sender->sent = sent_pages_new(options->copies_bytes);
	sender->zero_digest = page_digest(sender->digester, zero);
	sender->last_block = UINT64_MAX;
	sender->next_address = UINT64_MAX;
	sender->may_leave_out = true;
	sender->may_ask = options->ask;
	sender->ahead_bytes = AHEAD_LEAST_BYTES;
	record_sum_init(&sender->sum);
	pthread_mutex_init(&sender->mutex, NULL);
	cond_init(&sender->changed);
	return sender;
}

void page_sender_free(struct page_sender *sender)
{
	if (!sender)
		return;
	stream_reader_free(sender->reader);
	page_digester_free(sender->digester);
	sent_pages_free(sender->sent);
	record_sum_done(&sender->sum);
	memory_unmap(sender->ring, 2 * (size_t)RING_BYTES);
	pthread_cond_destroy(&sender->changed);
	pthread_mutex_destroy(&sender->mutex);
	free(sender);
}

int page_sender_run(struct page_sender *sender, int64_t timeout_ms, struct error **e)
{
	struct saying saying = {.sender = sender, .timeout_ms = timeout_ms};
	pthread_t thread;
	if (pthread_create(&thread, NULL, say_main, &saying) != 0)
		abort(); /* no memory for a stack */
	int r = read_stream(sender, e);
	if (r < 0)
		page_sender_stop(sender);
	pthread_join(thread, NULL);
	if (r == 0 && saying.result < 0) {
		error_free(e ? *e : NULL);
		if (e)
			*e = take_ptr(saying.why);
		r = -1;
	}
	error_free(saying.why);
	return r;
}

int page_sender_answer(struct page_sender *sender, const uint8_t *data, size_t size_bytes, struct error **e)
{
	struct bytes bytes = {.data = data, .size_bytes = size_bytes};
	uint16_t count, received;
	const uint8_t *bits;
	if (!bytes_take_u16(&bytes, &count) || !bytes_take_u16(&bytes, &received) || !bytes_take(&bytes, ((size_t)count + 7) / 8, &bits) ||
	    bytes_left(&bytes) > 0)
		return error_set(e, ERROR_PEER_PROTOCOL, "the other relay sends an answer of %zu bytes", size_bytes);
	LOCK_SCOPE(&sender->mutex);
	if (sender->questions_answered + count > sender->questions_made)
		return error_set(e, ERROR_PEER_PROTOCOL, "the other relay answers what it was not asked");
	uint64_t found = 0;
	for (size_t i = 0; i < count; i++) {
		const bool bit = bits[i / 8] & 1 << i % 8;
		sender->found[sender->questions_answered++ % RECORD_ASKED_MAX] = bit;
		found += bit;
	}
	if (received > found)
		return error_set(e, ERROR_PEER_PROTOCOL, "the other relay has found %u of %" PRIu64 " pages", received, found);
	sender->counts.asked += count;
	sender->counts.received += received;
	sender->counts.images += found - received;
	if (sender->looked_answers >= ASK_LOOK) {
		sender->looked_answers /= 2;
		sender->looked_found /= 2;
	}
	sender->looked_answers += count;
	sender->looked_found += found;
	if (sender->timing && sender->timed_question < sender->questions_answered) {
		sender->timing = false;
		sender->answer_us = clock_monotonic_us() - sender->timed_us;
	}
	pthread_cond_broadcast(&sender->changed);
	return 0;
}

void page_sender_stop(struct page_sender *sender)
{
	LOCK_SCOPE(&sender->mutex);
	sender->stopped = true;
	pthread_cond_broadcast(&sender->changed);
}

void page_sender_counts(struct page_sender *sender, struct page_sender_counts *ret)
{
	LOCK_SCOPE(&sender->mutex);
	*ret = sender->counts;
}
