/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Counts the pages of a migration by what need not be sent of them: zeros, pages that stand in an image, pages that came
 * before; and how far the others can be compressed. In three steps, as an image is searched for what the stream has, and only
 * what is found nowhere is compressed:
 *
 *   page_census_add() for each page; page_census_search() for each image; page_census_compress() for each page again, in
 *   the same order
 *
 * Takes some 40 bytes of memory for each page. One thread at a time.
 */
#ifndef FERRY_RELAY_PAGE_CENSUS_H
#define FERRY_RELAY_PAGE_CENSUS_H

#include <stddef.h>
#include <stdint.h>

#include "base/error.h"
#include "qemu/stream.h"

struct page_counts {
	uint64_t pages;	     /* all that were added; the sum of those that follow */
	uint64_t zero;
	uint64_t in_images;  /* byte for byte, at a multiple of 4 KiB of the file */
	uint64_t duplicates; /* of a page before, and in no image */
	uint64_t others;
	uint64_t compressed_bytes; /* of the others, by zstd of level 1 in blocks of 256 KiB */
};

struct page_census;
struct page_census *page_census_new(void);
void page_census_free(struct page_census *census);

void page_census_add(struct page_census *census, const uint8_t page[STREAM_PAGE_BYTES]);
/* A file, read as it is: of a format with a header only what stands at whole 4 KiB in it is found. */
int page_census_search(struct page_census *census, const char *path, struct error **e) MUST_CHECK;
void page_census_compress(struct page_census *census, const uint8_t page[STREAM_PAGE_BYTES]);
/* Once all is compressed. */
struct page_counts page_census_counts(struct page_census *census);

#endif
