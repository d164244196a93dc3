/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Received pages; see page_store.h. A ring of pages, and chains of those whose digests begin alike. What a chain leads to may have been
 * overwritten since, together with its own link; then it shows there, as the digest is another, and ends.
 */
#include "relay/page_store.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "base/cleanup.h"
#include "base/xalloc.h"
#include "relay/memory.h"

#define CHAIN_MAX 16 /* nobody can make searching slow */

struct kept {
	uint64_t number; /* from 1, as kept */
	uint64_t before; /* in its chain; 0: none */
	uint32_t owner;
	struct page_digest digest;
};

struct page_store {
	size_t room, chain_count; /* pages */
	uint8_t *pages;
	pthread_mutex_t mutex; /* all below, and the content of pages */
	uint64_t last;	       /* number */
	uint64_t *chains;      /* the latest of each; 0: none */
	struct kept *kept;
};

struct page_store *page_store_new(size_t size_bytes)
{
	struct page_store *store = xcalloc(1, sizeof(*store));
	pthread_mutex_init(&store->mutex, NULL);
	store->room = size_bytes / STREAM_PAGE_BYTES;
	if (store->room == 0)
		return store;
	store->pages = memory_map(store->room * STREAM_PAGE_BYTES);
	if (!store->pages) {
		store->room = 0;
		return store;
	}
	for (store->chain_count = 1; store->chain_count < store->room;)
		store->chain_count *= 2;
	store->chains = xcalloc(store->chain_count, sizeof(*store->chains));
	store->kept = xcalloc(store->room, sizeof(*store->kept));
	return store;
}

void page_store_free(struct page_store *store)
{
	if (!store)
		return;
	memory_unmap(store->pages, store->room * STREAM_PAGE_BYTES);
	free(store->chains);
	free(store->kept);
	pthread_mutex_destroy(&store->mutex);
	free(store);
}

static uint64_t *chain_of(const struct page_store *store, const struct page_digest *digest)
{
	uint64_t word;
	memcpy(&word, digest->bytes, sizeof(word));
	return &store->chains[word & (store->chain_count - 1)];
}

/* NULL: not there. The mutex is held. */
static const struct kept *search(const struct page_store *store, uint32_t owner, const struct page_digest *digest)
{
	uint64_t number = *chain_of(store, digest);
	for (int i = 0; number > 0 && i < CHAIN_MAX; i++) {
		const struct kept *kept = &store->kept[number % store->room];
		if (kept->number != number)
			return NULL;
		if (kept->owner == owner && memcmp(&kept->digest, digest, sizeof(*digest)) == 0)
			return kept;
		number = kept->before;
	}
	return NULL;
}

void page_store_keep(struct page_store *store, uint32_t owner, const struct page_digest *digest, const uint8_t page[STREAM_PAGE_BYTES])
{
	if (store->room == 0)
		return;
	LOCK_SCOPE(&store->mutex);
	if (search(store, owner, digest))
		return;
	const uint64_t number = ++store->last;
	uint64_t *chain = chain_of(store, digest);
	store->kept[number % store->room] = (struct kept){.number = number, .before = *chain, .owner = owner, .digest = *digest};
	*chain = number;
	memcpy(store->pages + number % store->room * STREAM_PAGE_BYTES, page, STREAM_PAGE_BYTES);
}

bool page_store_find(struct page_store *store, uint32_t owner, struct page_digester *digester, const struct page_digest *digest,
		     uint8_t ret_page[STREAM_PAGE_BYTES])
{
	if (store->room == 0)
		return false;
	pthread_mutex_lock(&store->mutex);
	const struct kept *kept = search(store, owner, digest);
	if (kept)
		memcpy(ret_page, store->pages + kept->number % store->room * STREAM_PAGE_BYTES, STREAM_PAGE_BYTES);
	pthread_mutex_unlock(&store->mutex);
	if (!kept)
		return false;
	const struct page_digest found = page_digest(digester, ret_page);
	return memcmp(&found, digest, sizeof(found)) == 0;
}

void page_store_clear(struct page_store *store)
{
	LOCK_SCOPE(&store->mutex);
	if (store->room == 0 || store->last == 0)
		return;
	memset(store->chains, 0, store->chain_count * sizeof(*store->chains));
	memset(store->kept, 0, store->room * sizeof(*store->kept));
	store->last = 0;
	madvise(store->pages, store->room * STREAM_PAGE_BYTES, MADV_DONTNEED);
}

size_t page_store_used_bytes(struct page_store *store)
{
	LOCK_SCOPE(&store->mutex);
	return (store->last < store->room ? (size_t)store->last : store->room) * STREAM_PAGE_BYTES;
}
