/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a page is known by: the SHA-256 of its 4096 bytes, cut to 160 bits. Long enough that nobody can make two pages of one
 * digest, which a guest could use to get at another's page.
 */
#ifndef FERRY_RELAY_PAGE_DIGEST_H
#define FERRY_RELAY_PAGE_DIGEST_H

#include <stdbool.h>
#include <stdint.h>

#include "qemu/stream.h"

#define PAGE_DIGEST_BYTES 20

struct page_digest {
	uint8_t bytes[PAGE_DIGEST_BYTES];
};

/* Takes digests, one after the other, without allocating anything. One thread at a time. */
struct page_digester;
struct page_digester *page_digester_new(void);
void page_digester_free(struct page_digester *digester);
struct page_digest page_digest(struct page_digester *digester, const uint8_t page[STREAM_PAGE_BYTES]);

/* Whether it is all zeros. */
bool page_is_zero(const uint8_t page[STREAM_PAGE_BYTES]);

#endif
