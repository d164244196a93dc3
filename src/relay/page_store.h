/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Pages that have come to this host through the relay, the latest ones, for guests that come after: they are often the same. Bounded; the
 * oldest goes first. Each belongs to an owner, and is found for that owner only.
 *
 * The digest is the word of the host that sent the page, so that it is only a hint: it is taken anew before the page is given to anybody.
 *
 * Any thread.
 */
#ifndef FERRY_RELAY_PAGE_STORE_H
#define FERRY_RELAY_PAGE_STORE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "relay/page_digest.h"

struct page_store;
/* Memory is used as pages come. 0: nothing is kept. */
struct page_store *page_store_new(size_t size_bytes);
void page_store_free(struct page_store *store);

/* Owners are numbers of the caller's. */
void page_store_keep(struct page_store *store, uint32_t owner, const struct page_digest *digest, const uint8_t page[STREAM_PAGE_BYTES]);
/* Verified: true, and all of ret_page is written. */
bool page_store_find(struct page_store *store, uint32_t owner, struct page_digester *digester, const struct page_digest *digest,
		     uint8_t ret_page[STREAM_PAGE_BYTES]);
/* Forget all, and give the memory back. */
void page_store_clear(struct page_store *store);
size_t page_store_used_bytes(struct page_store *store);

#endif
