/* SPDX-License-Identifier: Apache-2.0 */
/* What has changed in a page; see delta.h. Eight bytes at a time, as nearly all are equal. */
#include "qemu/delta.h"

#include <assert.h>
#include <stdbool.h>
#include <string.h>

#define WORD sizeof(uint64_t)
#define LENGTH_MAX_BYTES 2 /* 4096 in LEB128 */

static uint64_t load(const uint8_t *at)
{
	uint64_t word;
	memcpy(&word, at, sizeof(word));
	return word;
}

static size_t end_of_equal(const uint8_t *a, const uint8_t *b, size_t at)
{
	while (at + WORD <= STREAM_PAGE_BYTES && load(a + at) == load(b + at))
		at += WORD;
	while (at < STREAM_PAGE_BYTES && a[at] == b[at])
		at++;
	return at;
}

/* A few equal bytes between two changes are cheaper said than left out. */
static size_t end_of_changed(const uint8_t *a, const uint8_t *b, size_t at)
{
	for (;;) {
		while (at < STREAM_PAGE_BYTES && a[at] != b[at])
			at++;
		const size_t next = end_of_equal(a, b, at);
		if (next == STREAM_PAGE_BYTES || next - at > 2 * LENGTH_MAX_BYTES)
			return at;
		at = next;
	}
}

static size_t put_length(uint8_t *at, size_t length)
{
	if (length < 0x80) {
		at[0] = (uint8_t)length;
		return 1;
	}
	at[0] = (uint8_t)(length & 0x7f) | 0x80;
	at[1] = (uint8_t)(length >> 7);
	return 2;
}

int delta_encode(const uint8_t old_page[STREAM_PAGE_BYTES], const uint8_t new_page[STREAM_PAGE_BYTES], uint8_t *ret, size_t limit_bytes)
{
	size_t size = 0, at = 0;
	assert(limit_bytes <= STREAM_PAGE_BYTES);
	for (;;) {
		const size_t changed = end_of_equal(old_page, new_page, at);
		if (changed == STREAM_PAGE_BYTES)
			return (int)size;
		const size_t end = end_of_changed(old_page, new_page, changed);
		if (size + 2 * LENGTH_MAX_BYTES + (end - changed) > limit_bytes)
			return -1;
		size += put_length(ret + size, changed - at);
		size += put_length(ret + size, end - changed);
		memcpy(ret + size, new_page + changed, end - changed);
		size += end - changed;
		at = end;
	}
}

static bool take_length(const uint8_t *delta, size_t delta_bytes, size_t *at, size_t *ret)
{
	if (*at >= delta_bytes)
		return false;
	*ret = delta[(*at)++];
	if (*ret < 0x80)
		return true;
	if (*at >= delta_bytes || delta[*at] >= 0x80)
		return false;
	*ret = (*ret & 0x7f) | (size_t)delta[(*at)++] << 7;
	return true;
}

int delta_apply(uint8_t page[STREAM_PAGE_BYTES], const uint8_t *delta, size_t delta_bytes)
{
	size_t at = 0, in_page = 0;
	while (at < delta_bytes) {
		size_t equal, changed;
		const bool first = at == 0;
		if (!take_length(delta, delta_bytes, &at, &equal) || (equal == 0 && !first) || equal > STREAM_PAGE_BYTES - in_page)
			return -1;
		in_page += equal;
		if (!take_length(delta, delta_bytes, &at, &changed) || changed == 0 || changed > STREAM_PAGE_BYTES - in_page ||
		    changed > delta_bytes - at)
			return -1;
		memcpy(page + in_page, delta + at, changed);
		in_page += changed;
		at += changed;
	}
	return 0;
}
