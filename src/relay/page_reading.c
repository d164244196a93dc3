/* SPDX-License-Identifier: Apache-2.0 */
/* The thread of the source's relay that reads QEMU's stream and decides how it is to be said; see page_sender_parts.h. */
#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <string.h>
#include <sys/socket.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/log.h"
#include "relay/page_sender_parts.h"

#define READ_BYTES (256 * 1024) /* at a time */
/* Where the destination has fewer than one of so many pages, only one of so many is asked for, to see whether that changes. */
#define ASK_WORTH 64
#define ASK_SELDOM 16

/* ---- entries ---- */

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

/* ---- the stream ---- */

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

int page_sender_read(struct page_sender *sender, struct error **e)
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
