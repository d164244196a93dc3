/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What was sent; see sent_pages.h. All tables have a fixed size and one place for each address (or a few for each digest): what comes
 * later takes the place.
 */
#include "relay/sent_pages.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "base/xalloc.h"
#include "relay/memory.h"
#include "relay/record.h"

#define PAGES_MAX ((uint64_t)1 << 32) /* 16 TiB: a bit each */
#define KNOWN_MAX ((size_t)1 << 21)
#define WAYS 4
#define NO_ADDRESS UINT64_MAX

struct known {
	uint64_t address;
	struct page_digest digest;
};

struct latest {
	uint64_t number; /* from 1; 0: none */
	struct page_digest digest;
};

struct sent_pages {
	size_t block_count;
	uint64_t first_page[STREAM_BLOCKS_MAX + 1]; /* of each block, all pages in a row; behind the last: how many there are */
	uint8_t *named;				   /* a bit a page */
	struct known *known;			   /* a power of two */
	size_t known_count;
	struct latest latest[RECORD_LATEST / WAYS * 2][WAYS];
	uint64_t latest_number;
	size_t copy_count;
	uint64_t *copy_addresses;
	uint8_t *copies;
};

struct sent_pages *sent_pages_new(size_t copies_bytes)
{
	struct sent_pages *sent = xcalloc(1, sizeof(*sent));
	sent->copy_count = copies_bytes / STREAM_PAGE_BYTES;
	if (sent->copy_count == 0)
		return sent;
	sent->copies = memory_map(sent->copy_count * STREAM_PAGE_BYTES);
	if (!sent->copies) {
		sent->copy_count = 0;
		return sent;
	}
	sent->copy_addresses = xreallocarray(NULL, sent->copy_count, sizeof(*sent->copy_addresses));
	for (size_t i = 0; i < sent->copy_count; i++)
		sent->copy_addresses[i] = NO_ADDRESS;
	return sent;
}

void sent_pages_free(struct sent_pages *sent)
{
	if (!sent)
		return;
	memory_unmap(sent->copies, sent->copy_count * STREAM_PAGE_BYTES);
	free(sent->copy_addresses);
	free(sent->known);
	free(sent->named);
	free(sent);
}

/* ---- by address ---- */

/* Among all pages in a row; NO_ADDRESS where nothing is remembered. */
static uint64_t page_index(const struct sent_pages *sent, uint64_t address)
{
	const uint64_t block = record_block(address);
	if (block >= sent->block_count)
		return NO_ADDRESS;
	const uint64_t index = sent->first_page[block] + record_offset(address) / STREAM_PAGE_BYTES;
	return index < sent->first_page[block + 1] ? index : NO_ADDRESS;
}

static void grow_known(struct sent_pages *sent, uint64_t pages)
{
	size_t count = 1024;
	while (count < pages && count < KNOWN_MAX)
		count *= 2;
	if (count <= sent->known_count)
		return;
	free(sent->known); /* blocks are added before pages are sent, as a rule */
	sent->known_count = count;
	sent->known = xreallocarray(NULL, count, sizeof(*sent->known));
	for (size_t i = 0; i < count; i++)
		sent->known[i].address = NO_ADDRESS;
}

void sent_pages_add_block(struct sent_pages *sent, uint64_t size_bytes)
{
	const uint64_t before = sent->first_page[sent->block_count];
	const uint64_t pages = before + size_bytes / STREAM_PAGE_BYTES;
	if (sent->block_count == STREAM_BLOCKS_MAX || pages > PAGES_MAX || pages < before)
		return;
	sent->first_page[++sent->block_count] = pages;
	sent->named = xreallocarray(sent->named, pages / 8 + 1, 1);
	const size_t begun = before == 0 ? 0 : (size_t)(before / 8 + 1);
	memset(sent->named + begun, 0, (size_t)(pages / 8 + 1) - begun);
	grow_known(sent, pages);
}

bool sent_pages_first(struct sent_pages *sent, uint64_t address)
{
	const uint64_t index = page_index(sent, address);
	if (index == NO_ADDRESS)
		return true;
	const uint8_t bit = (uint8_t)(1 << index % 8);
	const bool first = !(sent->named[index / 8] & bit);
	sent->named[index / 8] |= bit;
	return first;
}

bool sent_pages_same(struct sent_pages *sent, uint64_t address, const struct page_digest *digest)
{
	const uint64_t index = page_index(sent, address);
	if (index == NO_ADDRESS)
		return false;
	struct known *known = &sent->known[index & (sent->known_count - 1)];
	const bool same = known->address == index && memcmp(&known->digest, digest, sizeof(*digest)) == 0;
	known->address = index;
	known->digest = *digest;
	return same;
}

/* ---- by content ---- */

static size_t latest_set(const struct page_digest *digest)
{
	uint32_t word;
	memcpy(&word, digest->bytes, sizeof(word));
	return word % (RECORD_LATEST / WAYS * 2);
}

int sent_pages_latest(const struct sent_pages *sent, const struct page_digest *digest)
{
	const struct latest *set = sent->latest[latest_set(digest)];
	for (int i = 0; i < WAYS; i++)
		if (set[i].number > 0 && memcmp(&set[i].digest, digest, sizeof(*digest)) == 0) {
			const uint64_t back = sent->latest_number - set[i].number;
			return back < RECORD_LATEST ? (int)back : -1;
		}
	return -1;
}

/* In place of the same, or of the oldest. */
void sent_pages_keep_latest(struct sent_pages *sent, const struct page_digest *digest)
{
	struct latest *set = sent->latest[latest_set(digest)], *place = &set[0];
	for (int i = 0; i < WAYS; i++) {
		if (set[i].number > 0 && memcmp(&set[i].digest, digest, sizeof(*digest)) == 0) {
			place = &set[i];
			break;
		}
		if (set[i].number < place->number)
			place = &set[i];
	}
	*place = (struct latest){.number = ++sent->latest_number, .digest = *digest};
}

/* ---- copies ---- */

/* Pages of a block side by side, the blocks anywhere. */
static size_t copy_place(const struct sent_pages *sent, uint64_t address)
{
	return (size_t)((address + record_block(address) * UINT64_C(0x9e3779b97f4a7c15)) % sent->copy_count);
}

const uint8_t *sent_pages_copy(const struct sent_pages *sent, uint64_t address)
{
	if (sent->copy_count == 0)
		return NULL;
	const size_t place = copy_place(sent, address);
	return sent->copy_addresses[place] == address ? sent->copies + place * STREAM_PAGE_BYTES : NULL;
}

void sent_pages_keep(struct sent_pages *sent, uint64_t address, const uint8_t *page, bool again)
{
	if (sent->copy_count == 0)
		return;
	const size_t place = copy_place(sent, address);
	const bool own = sent->copy_addresses[place] == address;
	if (!page) {
		if (own)
			sent->copy_addresses[place] = NO_ADDRESS;
		return;
	}
	if (!own && !again && sent->copy_addresses[place] != NO_ADDRESS)
		return; /* whoever came first is as likely to change */
	memcpy(sent->copies + place * STREAM_PAGE_BYTES, page, STREAM_PAGE_BYTES);
	sent->copy_addresses[place] = address;
}
