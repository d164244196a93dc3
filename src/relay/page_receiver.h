/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The destination's half of what the relay is for: makes QEMU's stream again of the records (record.h) that the source's
 * relay sends, with the pages that this host could supply, and writes it to QEMU's socket.
 *
 * One thread at a time.
 */
#ifndef FERRY_RELAY_PAGE_RECEIVER_H
#define FERRY_RELAY_PAGE_RECEIVER_H

#include <stddef.h>
#include <stdint.h>

#include "base/error.h"
#include "relay/page_supply.h"

struct page_receiver_options {
	int fd;			       /* QEMU's socket; the caller's */
	struct page_supplier *supplier; /* what this host has; NULL: nothing. The caller's */
	/* One block for the other relay (record.h, return_kind and all). Waits for room. */
	int (*reply)(void *user, const uint8_t *block, size_t size_bytes, struct error **e);
	void *user;
};

struct page_receiver;
struct page_receiver *page_receiver_new(const struct page_receiver_options *options, struct error **e) MUST_CHECK;
void page_receiver_free(struct page_receiver *receiver);

/* The next block of records: when this returns, QEMU has been given all that is in it. Fails with ERROR_PEER_PROTOCOL where it is
 * not what a relay sends, and ERROR_DATA_RELAY where QEMU takes no more or the sum is wrong. */
int page_receiver_take(struct page_receiver *receiver, const uint8_t *block, size_t size_bytes, struct error **e) MUST_CHECK;

#endif
