/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The count of pages; see page_census.h. A table of digests with open addresses, at most two thirds full, says which contents
 * there are; a list says for each page in turn which of them it has, so that a page is hashed once.
 */
#include "relay/page_census.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <zstd.h>

#include "base/cleanup.h"
#include "base/xalloc.h"
#include "relay/page_digest.h"

#define BLOCK_PAGES 64 /* 256 KiB */
#define COMPRESSION_LEVEL 1
#define READ_BYTES (1 << 20)
#define NO_CONTENT UINT32_MAX
#define SLOTS_AT_FIRST 4096

/* One that is not all zeros. */
struct content {
	struct page_digest digest;
	bool in_image;
	bool seen; /* by page_census_compress() */
};

struct page_census {
	struct page_digester *digester;
	struct content *contents;
	size_t content_count, content_room;
	uint32_t *slots; /* a power of two of them: indices of contents, or NO_CONTENT */
	size_t slot_count;
	uint32_t *pages; /* in the order in which they were added: indices of contents, NO_CONTENT for zeros */
	size_t page_count, page_room;
	size_t next; /* the page that is compressed next */
	ZSTD_CCtx *compressor;
	uint8_t block[BLOCK_PAGES * STREAM_PAGE_BYTES];
	size_t block_pages;
	struct page_counts counts;
};

struct page_census *page_census_new(void)
{
	struct page_census *census = xcalloc(1, sizeof(*census));
	census->digester = page_digester_new();
	census->compressor = ZSTD_createCCtx();
	if (!census->compressor)
		abort();
	census->slot_count = SLOTS_AT_FIRST;
	census->slots = xreallocarray(NULL, census->slot_count, sizeof(*census->slots));
	memset(census->slots, 0xff, census->slot_count * sizeof(*census->slots));
	return census;
}

void page_census_free(struct page_census *census)
{
	if (!census)
		return;
	page_digester_free(census->digester);
	ZSTD_freeCCtx(census->compressor);
	free(census->contents);
	free(census->slots);
	free(census->pages);
	free(census);
}

/* Where it is, or would go. A digest is as good as random, so that its beginning says where to look first. */
static uint32_t *find_slot(const struct page_census *census, const struct page_digest *digest)
{
	uint64_t hash;
	memcpy(&hash, digest->bytes, sizeof(hash));
	for (size_t at = hash & (census->slot_count - 1);; at = (at + 1) & (census->slot_count - 1)) {
		uint32_t *slot = &census->slots[at];
		if (*slot == NO_CONTENT || memcmp(&census->contents[*slot].digest, digest, sizeof(*digest)) == 0)
			return slot;
	}
}

static void grow_slots(struct page_census *census)
{
	census->slot_count *= 2;
	census->slots = xreallocarray(census->slots, census->slot_count, sizeof(*census->slots));
	memset(census->slots, 0xff, census->slot_count * sizeof(*census->slots));
	for (size_t i = 0; i < census->content_count; i++)
		*find_slot(census, &census->contents[i].digest) = (uint32_t)i;
}

static uint32_t add_content(struct page_census *census, const struct page_digest *digest)
{
	uint32_t *slot = find_slot(census, digest);
	if (*slot != NO_CONTENT)
		return *slot;
	if (census->content_count == census->content_room) {
		census->content_room = census->content_room ? 2 * census->content_room : SLOTS_AT_FIRST / 2;
		census->contents = xreallocarray(census->contents, census->content_room, sizeof(*census->contents));
	}
	const uint32_t index = (uint32_t)census->content_count++;
	census->contents[index] = (struct content){.digest = *digest};
	*slot = index;
	if (3 * census->content_count > 2 * census->slot_count)
		grow_slots(census);
	return index;
}

void page_census_add(struct page_census *census, const uint8_t page[STREAM_PAGE_BYTES])
{
	assert(census->page_count < NO_CONTENT);
	if (census->page_count == census->page_room) {
		census->page_room = census->page_room ? 2 * census->page_room : SLOTS_AT_FIRST;
		census->pages = xreallocarray(census->pages, census->page_room, sizeof(*census->pages));
	}
	uint32_t content = NO_CONTENT;
	if (!page_is_zero(page)) {
		const struct page_digest digest = page_digest(census->digester, page);
		content = add_content(census, &digest);
	}
	census->pages[census->page_count++] = content;
}

int page_census_search(struct page_census *census, const char *path, struct error **e)
{
	cleanup_close int fd = open(path, O_RDONLY | O_CLOEXEC);
	cleanup_free uint8_t *buffer = xmalloc(READ_BYTES);
	if (fd < 0)
		return error_set_errno(e, errno == ENOENT ? ERROR_NOT_FOUND : ERROR_SYSTEM, errno, "cannot open '%s'", path);
	for (size_t filled = 0;;) {
		ssize_t got = read(fd, buffer + filled, READ_BYTES - filled);
		if (got < 0 && errno == EINTR)
			continue;
		if (got < 0)
			return error_set_errno(e, ERROR_SYSTEM, errno, "cannot read '%s'", path);
		if (got == 0)
			return 0; /* what is less than a page at its end is none */
		filled += (size_t)got;
		size_t at = 0;
		for (; filled - at >= STREAM_PAGE_BYTES; at += STREAM_PAGE_BYTES) {
			if (page_is_zero(buffer + at))
				continue;
			const struct page_digest digest = page_digest(census->digester, buffer + at);
			const uint32_t content = *find_slot(census, &digest);
			if (content != NO_CONTENT)
				census->contents[content].in_image = true;
		}
		memmove(buffer, buffer + at, filled - at);
		filled -= at;
	}
}

static void compress_block(struct page_census *census)
{
	uint8_t compressed[ZSTD_COMPRESSBOUND(sizeof(census->block))];
	const size_t size = census->block_pages * STREAM_PAGE_BYTES;
	const size_t result =
		ZSTD_compressCCtx(census->compressor, compressed, sizeof(compressed), census->block, size, COMPRESSION_LEVEL);
	census->counts.compressed_bytes += ZSTD_isError(result) || result > size ? size : result;
	census->block_pages = 0;
}

void page_census_compress(struct page_census *census, const uint8_t page[STREAM_PAGE_BYTES])
{
	assert(census->next < census->page_count);
	const uint32_t index = census->pages[census->next++];
	struct content *content = index == NO_CONTENT ? NULL : &census->contents[index];
	census->counts.pages++;
	if (!content) {
		census->counts.zero++;
	} else if (content->in_image) {
		census->counts.in_images++;
	} else if (content->seen) {
		census->counts.duplicates++;
	} else {
		content->seen = true;
		census->counts.others++;
		memcpy(census->block + census->block_pages++ * STREAM_PAGE_BYTES, page, STREAM_PAGE_BYTES);
		if (census->block_pages == BLOCK_PAGES)
			compress_block(census);
	}
}

struct page_counts page_census_counts(struct page_census *census)
{
	assert(census->next == census->page_count);
	if (census->block_pages > 0)
		compress_block(census);
	return census->counts;
}
