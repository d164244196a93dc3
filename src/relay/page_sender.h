/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The source's half of what the relay is for: reads QEMU's stream from a socket and says it to the other relay in records (record.h),
 * with no page's content that the destination can get otherwise. A stream, or the rest of one, that cannot be read is passed on as
 * it is.
 */
#ifndef FERRY_RELAY_PAGE_SENDER_H
#define FERRY_RELAY_PAGE_SENDER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"
#include "relay/link.h"

struct page_sender_options {
	int fd; /* QEMU's socket; the caller's */
	struct relay_link *link; /* its blocks hold a few pages at least, also the shortest */
	bool ask;	     /* the destination may have pages */
	size_t copies_bytes; /* for copies of pages, to send what has changed in them only; 0: none */
};

/* Pages that were sent, by how; each counts once a time. */
struct page_sender_counts {
	uint64_t zero;
	uint64_t unchanged; /* left out: it stands there already */
	uint64_t images;    /* found in an image at the destination */
	uint64_t received;  /* found among pages that came there earlier */
	uint64_t again;	    /* said to be the same as one shortly before */
	uint64_t delta;	    /* what has changed in it */
	uint64_t whole;
	uint64_t delta_bytes; /* before they are compressed */
	uint64_t other_bytes; /* of the stream, that are no pages: devices, and heads */
	uint64_t asked;
};

struct page_sender;
struct page_sender *page_sender_new(const struct page_sender_options *options, struct error **e) MUST_CHECK;
/* Nobody is in a call below any more. */
void page_sender_free(struct page_sender *sender);

/* Until QEMU has ended its stream and the other side has taken it, or timeout_ms later. One thread. */
int page_sender_run(struct page_sender *sender, int64_t timeout_ms, struct error **e) MUST_CHECK;
/* What the other relay has answered, without its kind: on any thread. Fails with ERROR_PEER_PROTOCOL. */
int page_sender_answer(struct page_sender *sender, const uint8_t *data, size_t size_bytes, struct error **e) MUST_CHECK;
/* The link is broken, and the socket shut: run() ends. Any thread. */
void page_sender_stop(struct page_sender *sender);

/* Any thread. */
void page_sender_counts(struct page_sender *sender, struct page_sender_counts *ret);

#endif
