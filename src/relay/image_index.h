/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Where the pages of a disk image stand in it, by content: a file of its own for each image, made once and mapped. Any format of image
 * will do, as it is taken as a row of 4096 bytes at a time; what a format compresses or does not align is just not found.
 *
 * An index is a hint. Each page is read from the image and its digest taken before it is given to anybody, so that one that is
 * out of date can cost time, and never give a wrong page.
 */
#ifndef FERRY_RELAY_IMAGE_INDEX_H
#define FERRY_RELAY_IMAGE_INDEX_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"
#include "relay/page_digest.h"

/* Of so many pages that are not zero at most, the first of the image: 12 bytes of memory each while it is made. */
#define IMAGE_INDEX_PAGES_MAX ((uint64_t)16 * 1024 * 1024)

/* Which state of which file it is of. */
struct image_version {
	uint64_t device, inode, size_bytes;
	int64_t changed_ns; /* since 1970: of its content */
};

/* ERROR_NOT_FOUND, ERROR_SYSTEM, or ERROR_INVALID_ARGUMENT where it is neither a file nor a disk. */
int image_version_read(const char *path, struct image_version *ret, struct error **e) MUST_CHECK;
/* ERROR_UNSUPPORTED where it lies on a network's file system: to look for pages in it would send it over a network instead. */
int image_check_local(const char *path, struct error **e) MUST_CHECK;
bool image_version_equal(const struct image_version *a, const struct image_version *b);

/* Read the image and write its index, which takes the place of one that is there when it is whole. Takes a core for about a second a
 * GiB. ERROR_CANCELLED when *stop has become true. */
int image_index_make(const char *image_path, const char *index_path, const atomic_bool *stop, struct error **e) MUST_CHECK;

struct image_index;
/* ERROR_NOT_FOUND where there is none, and ERROR_INVALID_ARGUMENT where it is damaged or of another version of Ferry. */
int image_index_open(const char *image_path, const char *index_path, struct image_index **ret, struct error **e) MUST_CHECK;
void image_index_free(struct image_index *index);
/* What it was made of; the image may have changed since. */
const struct image_version *image_index_version(const struct image_index *index);
uint64_t image_index_pages(const struct image_index *index);

/* The page of this digest, read and verified: true, and all of ret_page is written. Any number of threads, a digester each. */
bool image_index_find(const struct image_index *index, struct page_digester *digester, const struct page_digest *digest,
		      uint8_t ret_page[STREAM_PAGE_BYTES]);
/* It will be asked for soon: the kernel may begin to read it. */
void image_index_expect(const struct image_index *index, const struct page_digest *digest);

#endif
