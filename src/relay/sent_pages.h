/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a source's relay remembers of the pages that it has sent, so as to say the next ones shortly: which addresses it has
 * named, what stands there at the destination, the latest contents, and copies of some to tell what has changed in them. Bounded:
 * what is forgotten costs bytes, and is never taken for anything else.
 *
 * Pages are addressed as in record.h. sent_pages_copy() and sent_pages_keep() are one thread's, all the rest another's.
 */
#ifndef FERRY_RELAY_SENT_PAGES_H
#define FERRY_RELAY_SENT_PAGES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "relay/page_digest.h"

struct sent_pages;
/* copies_bytes: how much memory copies may take; what else it takes is 32 bytes a page, and no more than 64 MiB. */
struct sent_pages *sent_pages_new(size_t copies_bytes);
void sent_pages_free(struct sent_pages *sent);
/* One block of memory more. Of more than STREAM_BLOCKS_MAX, or of terabytes, nothing is remembered. */
void sent_pages_add_block(struct sent_pages *sent, uint64_t size_bytes);

/* It is sent now. True: for the first time. */
bool sent_pages_first(struct sent_pages *sent, uint64_t address);
/* Whether the destination is known to have this there already; it will have it from now on. */
bool sent_pages_same(struct sent_pages *sent, uint64_t address, const struct page_digest *digest);

/* How many pages before the latest one that is kept this content was kept; -1: it was not, or too long ago. */
int sent_pages_latest(const struct sent_pages *sent, const struct page_digest *digest);
/* It is kept as the next. */
void sent_pages_keep_latest(struct sent_pages *sent, const struct page_digest *digest);

/* A copy of what was sent there last; NULL where there is none. */
const uint8_t *sent_pages_copy(const struct sent_pages *sent, uint64_t address);
/* This is sent there now. page NULL: zeros, which are not worth a copy. again: it was sent before, so that it may be once more. */
void sent_pages_keep(struct sent_pages *sent, uint64_t address, const uint8_t *page, bool again);

#endif
