/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The destination's half of the relay; see page_receiver.h.
 *
 * A page that was asked for and found is copied at once, and the copy is what the other side is promised: nothing that happens
 * to an image or a store afterwards can change it. So there is no "it is gone after all" in the protocol.
 */
#include "relay/page_receiver.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/xalloc.h"
#include "net/socket.h"
#include "qemu/stream_writer.h"
#include "relay/memory.h"
#include "relay/record.h"

#define OUT_BYTES (256 * 1024)
#define ANSWER_BYTES (1 + 2 + 2 + RECORD_ASK_MAX / 8)

/* A page that was asked for and is not named yet. */
struct asked {
	struct page_digest digest;
	bool found;
};

struct page_receiver {
	struct page_receiver_options options;
	struct stream_writer writer;
	size_t block_count;
	struct stream_block *blocks; /* STREAM_BLOCKS_MAX; only names are known */
	uint64_t next_address;
	uint8_t *latest; /* RECORD_LATEST pages, the next at latest_number of them */
	uint64_t latest_number;
	uint8_t *held; /* RECORD_ASKED_MAX pages, those that were found */
	struct asked asked[RECORD_ASKED_MAX];
	uint64_t asked_number, named_number;
	struct record_sum sum;
	size_t out_bytes;
	uint8_t out[OUT_BYTES];
};

/* ---- to QEMU ---- */

static int flush(struct page_receiver *receiver, struct error **e)
{
	if (!socket_send_all(receiver->options.fd, receiver->out, receiver->out_bytes))
		return error_set_errno(e, ERROR_DATA_RELAY, errno, "QEMU does not take its stream any more");
	receiver->out_bytes = 0;
	return 0;
}

static int put(struct page_receiver *receiver, const uint8_t *data, size_t size_bytes, struct error **e)
{
	while (size_bytes > 0) {
		const size_t room = OUT_BYTES - receiver->out_bytes, part = size_bytes < room ? size_bytes : room;
		memcpy(receiver->out + receiver->out_bytes, data, part);
		receiver->out_bytes += part;
		data += part;
		size_bytes -= part;
		if (receiver->out_bytes == OUT_BYTES && flush(receiver, e) < 0)
			return -1;
	}
	return 0;
}

static int put_page(struct page_receiver *receiver, uint64_t address, const uint8_t *page, struct error **e)
{
	uint8_t head[STREAM_HEAD_MAX_BYTES];
	const size_t size = stream_write_page(&receiver->writer, head, &receiver->blocks[record_block(address)], record_offset(address));
	record_sum_add_number(&receiver->sum, address);
	record_sum_add(&receiver->sum, page, STREAM_PAGE_BYTES);
	return put(receiver, head, size, e) < 0 ? -1 : put(receiver, page, STREAM_PAGE_BYTES, e);
}

/* ---- what both sides keep ---- */

static uint8_t *latest_at(struct page_receiver *receiver, uint64_t number)
{
	return receiver->latest + number % RECORD_LATEST * STREAM_PAGE_BYTES;
}

static uint8_t *held_at(struct page_receiver *receiver, uint64_t number)
{
	return receiver->held + number % RECORD_ASKED_MAX * STREAM_PAGE_BYTES;
}

static const uint8_t *keep(struct page_receiver *receiver, const uint8_t *page)
{
	return memcpy(latest_at(receiver, receiver->latest_number++), page, STREAM_PAGE_BYTES);
}

/* ---- records ---- */

static int set_wrong(struct error **e, const char *what)
{
	return error_set(e, ERROR_PEER_PROTOCOL, "the other relay sends %s", what);
}

static int take_address(struct page_receiver *receiver, struct bytes *bytes, bool next, uint64_t *ret, struct error **e)
{
	*ret = receiver->next_address;
	if (!next && !bytes_take_u64(bytes, ret))
		return set_wrong(e, "a record that is cut off");
	if (record_block(*ret) >= receiver->block_count)
		return set_wrong(e, "a page of memory that it has not named");
	receiver->next_address = *ret + 1;
	return 0;
}

static int take_bytes(struct page_receiver *receiver, struct bytes *bytes, struct error **e)
{
	uint32_t count;
	const uint8_t *data;
	if (!bytes_take_u32(bytes, &count) || !bytes_take(bytes, count, &data))
		return set_wrong(e, "bytes that are cut off");
	receiver->writer.last = NULL; /* whatever they name */
	record_sum_add(&receiver->sum, data, count);
	return put(receiver, data, count, e);
}

static int take_block(struct page_receiver *receiver, struct bytes *bytes, struct error **e)
{
	const uint8_t *name;
	uint8_t length;
	if (!bytes_take_name(bytes, &name, &length) || length == 0)
		return set_wrong(e, "a name that is cut off");
	if (receiver->block_count == STREAM_BLOCKS_MAX)
		return set_wrong(e, "too many blocks of memory");
	struct stream_block *block = &receiver->blocks[receiver->block_count++];
	memcpy(block->name, name, length);
	block->name_length = length;
	return 0;
}

static int take_zero(struct page_receiver *receiver, struct bytes *bytes, uint64_t address, struct error **e)
{
	uint16_t count;
	if (!bytes_take_u16(bytes, &count) || count == 0 || record_block(address + count - 1) != record_block(address))
		return set_wrong(e, "zeros without a number");
	record_sum_add_number(&receiver->sum, address);
	record_sum_add_number(&receiver->sum, count);
	receiver->next_address = address + count;
	for (uint64_t i = 0; i < count; i++) {
		uint8_t head[STREAM_HEAD_MAX_BYTES];
		const size_t size = stream_write_zero(&receiver->writer, head, &receiver->blocks[record_block(address)],
						      record_offset(address + i), 0);
		if (put(receiver, head, size, e) < 0)
			return -1;
	}
	return 0;
}

static int take_delta(struct page_receiver *receiver, struct bytes *bytes, uint64_t address, struct error **e)
{
	uint16_t length;
	const uint8_t *delta;
	uint8_t head[STREAM_HEAD_MAX_BYTES];
	if (!bytes_take_u16(bytes, &length) || length == 0 || length > STREAM_PAGE_BYTES || !bytes_take(bytes, length, &delta))
		return set_wrong(e, "a change that is cut off");
	record_sum_add_number(&receiver->sum, address);
	record_sum_add(&receiver->sum, delta, length);
	const size_t size = stream_write_delta(&receiver->writer, head, &receiver->blocks[record_block(address)], record_offset(address),
					       length);
	return put(receiver, head, size, e) < 0 ? -1 : put(receiver, delta, length, e);
}

static int take_again(struct page_receiver *receiver, struct bytes *bytes, uint64_t address, struct error **e)
{
	uint16_t back;
	if (!bytes_take_u16(bytes, &back) || back >= RECORD_LATEST || back >= receiver->latest_number)
		return set_wrong(e, "a page that was never sent");
	return put_page(receiver, address, latest_at(receiver, receiver->latest_number - 1 - back), e);
}

/* The next one that was asked for is named now. */
static int take_asked(struct page_receiver *receiver, struct bytes *bytes, uint64_t address, bool found, struct error **e)
{
	const uint64_t number = receiver->named_number;
	const struct asked *asked = &receiver->asked[number % RECORD_ASKED_MAX];
	const uint8_t *page = held_at(receiver, number);
	if (number == receiver->asked_number || asked->found != found)
		return set_wrong(e, "a page that it did not ask for");
	if (!found && !bytes_take(bytes, STREAM_PAGE_BYTES, &page))
		return set_wrong(e, "a page that is cut off");
	if (!found && receiver->options.supplier)
		page_supplier_keep(receiver->options.supplier, &asked->digest, page);
	receiver->named_number++;
	return put_page(receiver, address, keep(receiver, page), e);
}

static int take_page(struct page_receiver *receiver, struct bytes *bytes, uint64_t address, bool kept, struct error **e)
{
	const uint8_t *page;
	if (!bytes_take(bytes, STREAM_PAGE_BYTES, &page))
		return set_wrong(e, "a page that is cut off");
	return put_page(receiver, address, kept ? keep(receiver, page) : page, e);
}

/* ---- questions ---- */

static enum page_origin find(struct page_receiver *receiver, const struct page_digest *digest)
{
	const uint64_t number = receiver->asked_number++;
	struct asked *asked = &receiver->asked[number % RECORD_ASKED_MAX];
	const enum page_origin origin = receiver->options.supplier ?
		page_supplier_find(receiver->options.supplier, digest, held_at(receiver, number)) : PAGE_NOWHERE;
	*asked = (struct asked){.digest = *digest, .found = origin != PAGE_NOWHERE};
	return origin;
}

static int take_ask(struct page_receiver *receiver, struct bytes *bytes, struct error **e)
{
	uint16_t count, received = 0;
	const uint8_t *data;
	struct page_digest digests[RECORD_ASK_MAX];
	uint8_t answer[ANSWER_BYTES] = {RETURN_ANSWER};
	if (!bytes_take_u16(bytes, &count) || count == 0 || count > RECORD_ASK_MAX ||
	    !bytes_take(bytes, (size_t)count * PAGE_DIGEST_BYTES, &data))
		return set_wrong(e, "a question that is cut off");
	if (receiver->asked_number - receiver->named_number + count > RECORD_ASKED_MAX)
		return set_wrong(e, "too many questions");
	memcpy(digests, data, (size_t)count * PAGE_DIGEST_BYTES);
	if (receiver->options.supplier)
		page_supplier_expect(receiver->options.supplier, digests, count);
	uint8_t *bits = record_put_u16(answer + 1, count) + sizeof(received);
	for (size_t i = 0; i < count; i++) {
		const enum page_origin origin = find(receiver, &digests[i]);
		if (origin != PAGE_NOWHERE)
			bits[i / 8] |= (uint8_t)(1 << i % 8);
		if (origin == PAGE_RECEIVED)
			received++;
	}
	record_put_u16(answer + 1 + sizeof(count), received);
	return receiver->options.reply(receiver->options.user, answer, (size_t)(bits - answer) + ((size_t)count + 7) / 8, e);
}

/* ---- ---- */

static int take_sum(struct page_receiver *receiver, struct bytes *bytes, struct error **e)
{
	uint64_t sum;
	if (!bytes_take_u64(bytes, &sum))
		return set_wrong(e, "a sum that is cut off");
	if (sum != record_sum_value(&receiver->sum))
		return error_set(e, ERROR_DATA_RELAY, "what has arrived is not what was sent: the sums differ");
	return 0;
}

static int take_record(struct page_receiver *receiver, struct bytes *bytes, struct error **e)
{
	uint8_t kind;
	uint64_t address;
	if (!bytes_take_u8(bytes, &kind))
		return set_wrong(e, "nothing");
	const bool next = kind & RECORD_NEXT;
	switch (kind) {
	case RECORD_BYTES:
		return take_bytes(receiver, bytes, e);
	case RECORD_BLOCK:
		return take_block(receiver, bytes, e);
	case RECORD_ASK:
		return take_ask(receiver, bytes, e);
	case RECORD_SUM:
		return take_sum(receiver, bytes, e);
	default:
		break;
	}
	kind &= (uint8_t)~RECORD_NEXT;
	if (kind < RECORD_ZERO || kind > RECORD_DELTA)
		return set_wrong(e, "a record of a kind that is not known");
	if (take_address(receiver, bytes, next, &address, e) < 0)
		return -1;
	switch (kind) {
	case RECORD_ZERO:
		return take_zero(receiver, bytes, address, e);
	case RECORD_DELTA:
		return take_delta(receiver, bytes, address, e);
	case RECORD_AGAIN:
		return take_again(receiver, bytes, address, e);
	case RECORD_FOUND:
	case RECORD_MISSED:
		return take_asked(receiver, bytes, address, kind == RECORD_FOUND, e);
	default:
		return take_page(receiver, bytes, address, kind == RECORD_KEPT, e);
	}
}

int page_receiver_take(struct page_receiver *receiver, const uint8_t *block, size_t size_bytes, struct error **e)
{
	struct bytes bytes = {.data = block, .size_bytes = size_bytes};
	while (bytes_left(&bytes) > 0)
		if (take_record(receiver, &bytes, e) < 0)
			return -1;
	return flush(receiver, e);
}

struct page_receiver *page_receiver_new(const struct page_receiver_options *options, struct error **e)
{
	struct page_receiver *receiver = xcalloc(1, sizeof(*receiver));
	receiver->options = *options;
	receiver->blocks = xcalloc(STREAM_BLOCKS_MAX, sizeof(*receiver->blocks));
	receiver->next_address = UINT64_MAX;
	record_sum_init(&receiver->sum);
	receiver->latest = memory_map((size_t)RECORD_LATEST * STREAM_PAGE_BYTES);
	receiver->held = memory_map((size_t)RECORD_ASKED_MAX * STREAM_PAGE_BYTES);
	if (!receiver->latest || !receiver->held) {
		error_set_errno(e, ERROR_SYSTEM, errno, "no memory for the relay");
		page_receiver_free(receiver);
		return NULL;
	}
	return receiver;
}

void page_receiver_free(struct page_receiver *receiver)
{
	if (!receiver)
		return;
	memory_unmap(receiver->latest, (size_t)RECORD_LATEST * STREAM_PAGE_BYTES);
	memory_unmap(receiver->held, (size_t)RECORD_ASKED_MAX * STREAM_PAGE_BYTES);
	record_sum_done(&receiver->sum);
	free(receiver->blocks);
	free(receiver);
}
