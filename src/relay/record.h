/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What two relays say to each other in the blocks of their link: QEMU's stream, with its pages of memory said as shortly as can be.
 * A record lies in one block whole. Integers are big-endian.
 *
 * From the source, each with its kind in the first byte:
 *
 *   bytes    u32 length, so many bytes: a piece of the stream as it is
 *   block    u8 length, a name: the next block of memory, numbered from 0
 *   zero     address, u16 count: so many pages of zeros from there on
 *   page     address, the page
 *   kept     the same, and both sides keep it as the next of the latest pages
 *   missed   the same, of a page that was asked for
 *   found    address: the page that was asked for, and was found; kept as well
 *   again    address, u16 count: the latest page but so many (0: the latest)
 *   delta    address, u16 length, XBZRLE: what has changed in it
 *   ask      u16 count, so many digests (page_digest.h): can you supply these? Each is followed, in this order, by its
 *            missed or found when it was answered
 *   sum      u64: record_sum_value() of all that was said before
 *
 * An address is u16 the block's number, u48 the page's in it; it is not there where the kind has RECORD_NEXT, which means the page
 * behind that of the record before.
 *
 * From the destination, one a block, its kind in the first byte:
 *
 *   bytes    the rest of the block: what QEMU says
 *   answer   the rest: to the next questions that are not answered yet, in their order, u16 how many, a bit each from the lowest of the
 *            first byte on: 1: found, and held until the page is named
 */
#ifndef FERRY_RELAY_RECORD_H
#define FERRY_RELAY_RECORD_H

#include <endian.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "base/bytes.h"
#include "qemu/stream.h"

enum record_kind {
	RECORD_BYTES = 1,
	RECORD_BLOCK,
	RECORD_ZERO,
	RECORD_PAGE,
	RECORD_KEPT,
	RECORD_MISSED,
	RECORD_FOUND,
	RECORD_AGAIN,
	RECORD_DELTA,
	RECORD_ASK,
	RECORD_SUM,
};
#define RECORD_NEXT 0x80

enum return_kind {
	RETURN_BYTES = 1,
	RETURN_ANSWER,
};

#define RECORD_LATEST 8192     /* pages that both sides keep */
#define RECORD_ASKED_MAX 8192 /* pages that were asked for and have not been named yet */
#define RECORD_ASK_MAX 256     /* questions in one record */
#define RECORD_RUN_MAX 65535   /* pages of zeros */
/* What stands before a page's content, or all of a record without. */
#define RECORD_HEAD_MAX 16
#define RECORD_PAGE_MAX (RECORD_HEAD_MAX + STREAM_PAGE_BYTES)
#define RECORD_SUM_BYTES 9

/* ---- addresses ---- */

#define RECORD_PAGE_BITS 48

static inline uint64_t record_address(uint64_t block, uint64_t offset)
{
	return block << RECORD_PAGE_BITS | offset / STREAM_PAGE_BYTES;
}

static inline uint64_t record_block(uint64_t address)
{
	return address >> RECORD_PAGE_BITS;
}

static inline uint64_t record_offset(uint64_t address)
{
	return (address & (((uint64_t)1 << RECORD_PAGE_BITS) - 1)) * STREAM_PAGE_BYTES;
}

/* ---- writing; each returns what is behind what it wrote ---- */

static inline uint8_t *record_put_u16(uint8_t *at, uint16_t value)
{
	value = htobe16(value);
	memcpy(at, &value, sizeof(value));
	return at + sizeof(value);
}

static inline uint8_t *record_put_u32(uint8_t *at, uint32_t value)
{
	value = htobe32(value);
	memcpy(at, &value, sizeof(value));
	return at + sizeof(value);
}

static inline uint8_t *record_put_u64(uint8_t *at, uint64_t value)
{
	value = htobe64(value);
	memcpy(at, &value, sizeof(value));
	return at + sizeof(value);
}

/* *next: the address that would follow by itself, kept by the caller. */
static inline uint8_t *record_put_head(uint8_t *at, enum record_kind kind, uint64_t address, uint64_t *next)
{
	const bool follows = address == *next;
	*next = address + 1;
	*at++ = (uint8_t)(kind | (follows ? RECORD_NEXT : 0));
	return follows ? at : record_put_u64(at, address);
}

/* ---- the sum ---- */

/* Of what the other side's QEMU is to get, in its order, with the content of every page that is not a delta. Not against an enemy, which
 * is TLS's; against mistakes, of ours or of memory. Both sides add the same pieces. */
struct record_sum {
	XXH3_state_t *state;
};

static inline void record_sum_init(struct record_sum *sum)
{
	sum->state = XXH3_createState();
	if (!sum->state)
		abort(); /* no memory */
	XXH3_64bits_reset(sum->state);
}

static inline void record_sum_done(struct record_sum *sum)
{
	XXH3_freeState(sum->state);
}

static inline void record_sum_add(struct record_sum *sum, const void *data, size_t size_bytes)
{
	XXH3_64bits_update(sum->state, data, size_bytes);
}

static inline void record_sum_add_number(struct record_sum *sum, uint64_t value)
{
	value = htobe64(value);
	record_sum_add(sum, &value, sizeof(value));
}

static inline uint64_t record_sum_value(const struct record_sum *sum)
{
	return XXH3_64bits_digest(sum->state);
}

#endif
