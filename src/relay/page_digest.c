/* SPDX-License-Identifier: Apache-2.0 */
/* Digests of pages; see page_digest.h. GnuTLS uses the processor's own instructions for SHA-256 where it has them. */
#include "relay/page_digest.h"

#include <gnutls/crypto.h>
#include <stdlib.h>
#include <string.h>

#include "base/xalloc.h"

#define SHA256_BYTES 32

struct page_digester {
	gnutls_hash_hd_t hash;
};

struct page_digester *page_digester_new(void)
{
	struct page_digester *digester = xcalloc(1, sizeof(*digester));
	if (gnutls_hash_init(&digester->hash, GNUTLS_DIG_SHA256) < 0)
		abort(); /* there is no GnuTLS without it, and small allocations do not fail */
	return digester;
}

void page_digester_free(struct page_digester *digester)
{
	if (!digester)
		return;
	gnutls_hash_deinit(digester->hash, NULL);
	free(digester);
}

struct page_digest page_digest(struct page_digester *digester, const uint8_t page[STREAM_PAGE_BYTES])
{
	struct page_digest digest;
	uint8_t whole[SHA256_BYTES];
	if (gnutls_hash(digester->hash, page, STREAM_PAGE_BYTES) < 0)
		abort();
	gnutls_hash_output(digester->hash, whole); /* and begins anew */
	memcpy(digest.bytes, whole, sizeof(digest.bytes));
	return digest;
}

bool page_is_zero(const uint8_t page[STREAM_PAGE_BYTES])
{
	return page[0] == 0 && memcmp(page, page + 1, STREAM_PAGE_BYTES - 1) == 0;
}
