/* SPDX-License-Identifier: Apache-2.0 */
/* Pages, images and folders that tests of the relay make up: the same in each run. Include behind cmocka.h. */
#ifndef FERRY_TEST_MADE_PAGES_H
#define FERRY_TEST_MADE_PAGES_H

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/file.h"
#include "base/xalloc.h"
#include "relay/page_supply.h"

#define LONG_MS 20000
#define PAGE STREAM_PAGE_BYTES

/* ---- pages ---- */

static uint64_t random_state;

/* xorshift64 (Marsaglia, 2003): the same in each run. */
static inline uint64_t next_random(void)
{
	random_state ^= random_state << 13;
	random_state ^= random_state >> 7;
	random_state ^= random_state << 17;
	return random_state;
}

static inline uint64_t below(uint64_t limit)
{
	return next_random() % limit;
}

static inline void fill_page(uint8_t *page, uint64_t seed)
{
	uint64_t state = seed * 0x9e3779b97f4a7c15u + 1;
	for (size_t i = 0; i < PAGE; i += sizeof(state)) {
		state = state * 6364136223846793005u + 1442695040888963407u;
		memcpy(page + i, &state, sizeof(state));
	}
}

/* ---- folders and images ---- */

struct folder {
	char path[64];
};

static inline void folder_make(struct folder *folder)
{
	snprintf(folder->path, sizeof(folder->path), "/tmp/test-pages-XXXXXX");
	assert_non_null(mkdtemp(folder->path));
}

static inline void folder_remove(struct folder *folder)
{
	assert_int_equal(file_remove_tree(folder->path, NULL), 0);
}

/* Pages of the seeds from first on, with a hole of as many before them. The caller frees the path. */
static inline char *make_image(const struct folder *folder, const char *name, uint64_t first, size_t pages)
{
	char *path = xasprintf("%s/%s", folder->path, name);
	uint8_t page[PAGE];
	cleanup_close int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	assert_true(fd >= 0);
	for (size_t i = 0; i < pages; i++) {
		fill_page(page, first + i);
		assert_int_equal(pwrite(fd, page, PAGE, (off_t)((pages + i) * PAGE)), PAGE);
	}
	return path;
}

static inline struct page_supply *supply_of(const struct folder *folder, size_t received_bytes)
{
	cleanup_free char *indexes = xasprintf("%s/indexes", folder->path);
	const struct page_supply_options options = {.folder = indexes, .received_bytes = received_bytes, .index_bytes = 1 << 20};
	return page_supply_new(&options);
}

#endif
