/* SPDX-License-Identifier: Apache-2.0 */
/* The source's half of the relay, and the thread of it that says what was read; see page_sender.h, and page_sender_parts.h for how it works. */
#include "relay/page_sender.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/xalloc.h"
#include "qemu/delta.h"
#include "relay/memory.h"
#include "relay/page_sender_parts.h"

#define AHEAD_LEAST_BYTES (512 * 1024)
#define AHEAD_LATE_US 20000 /* what could be said has waited too long */
#define AHEAD_SHRINK_US 10000 /* from one time to the next */
#define DELTA_MAX_BYTES 2048
#define ASK_AT_ONCE 64 /* questions that go without waiting for more, while there is something else to say */

/* ---- records ---- */

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

/* ---- when ---- */

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
	int r = page_sender_read(sender, e);
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
