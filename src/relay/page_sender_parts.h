/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the two threads of the source's half of the relay share (page_sender.h): page_reading.c, which reads QEMU's stream and decides how
 * each piece of it is to be said, and page_sender.c, which says it.
 *
 * Theory of operation
 *
 * Two threads. The one that reads puts QEMU's stream into a ring and makes an entry of each piece of it: a page that stands at the
 * destination already, one that is to be asked for, bytes that are passed on, and so on. All that depends on what was sent
 * before it decides there and then, in the stream's order. The one that says takes the entries in the same order, waits where a question is not
 * answered yet, and fills blocks of the link. Content lies in the ring until it has been said; it is copied once, into the block.
 *
 *   QEMU --> ring:  said | entries, some of them asked for | not read yet
 *
 * Only pages that are sent for the first time are asked for. What is sent again has just been written by the guest, and is in no image;
 * and so the last pages, which the guest is standing still for, never wait for an answer.
 *
 * How much may be in the ring: as little as keeps the saying busy, as all of it has to go when the guest stands still. While pages are asked
 * for that is as much as is read in the time that an answer takes; it grows where the saying waits for an answer and the reading for
 * room, and shrinks where what could be said has waited.
 *
 * QEMU leaves out a page's block's name where it is that of the page before, and does so in bytes that are passed on, too. Thus a page
 * is left out only where the destination's QEMU has the same block as its last as the source's.
 */
#ifndef FERRY_RELAY_PAGE_SENDER_PARTS_H
#define FERRY_RELAY_PAGE_SENDER_PARTS_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "qemu/stream_reader.h"
#include "relay/page_digest.h"
#include "relay/page_sender.h"
#include "relay/record.h"
#include "relay/sent_pages.h"

#define RING_BYTES (32 * 1024 * 1024)
#define ENTRIES 32768
#define ASK_LOOK 1024 /* the latest answers, by which it is judged whether asking is worth it */

enum entry_kind {
	ENTRY_BYTES,
	ENTRY_BLOCK, /* bytes, with a name for the other side */
	ENTRY_LEFT_OUT,
	ENTRY_ZERO,
	ENTRY_AGAIN,
	ENTRY_ASKED,
	ENTRY_KEPT,
	ENTRY_WHOLE,
	ENTRY_CHANGED, /* as whole, or what has changed in it */
};

struct entry {
	uint64_t at;   /* in the stream, and so in the ring */
	uint32_t size; /* of all that it stands for */
	uint32_t pages; /* zero, left out */
	uint8_t kind, name_length;
	uint64_t address;
	uint64_t number; /* asked: of the question; again: how many pages ago */
	const uint8_t *content; /* of a page, in the ring; block: its name */
	int64_t read_us;
};

struct page_sender {
	struct page_sender_options options;
	uint8_t *ring;
	struct entry entries[ENTRIES];
	struct page_digest questions[RECORD_ASKED_MAX];
	bool found[RECORD_ASKED_MAX]; /* answers */

	/* Of the thread that reads. */
	struct stream_reader *reader; /* NULL: the rest is passed on as it is */
	struct page_digester *digester;
	struct sent_pages *sent; /* see there which thread */
	struct page_digest zero_digest;
	uint64_t parsed; /* of the stream */
	uint64_t made;	 /* entries, published or not */
	uint64_t made_questions;
	uint64_t last_block; /* that the destination's QEMU will have had last; UINT64_MAX: none */
	bool may_leave_out, may_ask;
	bool worth_asking;	/* as of late */
	unsigned int not_asked;
	uint64_t entries_limit; /* made may become so much */

	/* Of the thread that says. */
	uint8_t *block, *at; /* being filled; NULL: none */
	size_t block_bytes;
	uint64_t said_questions;
	uint64_t entry_said_bytes; /* of the first entry */
	uint64_t next_address;
	struct record_sum sum;
	struct page_sender_counts said; /* since they were last added to counts */
	int64_t shrunk_us;

	pthread_mutex_t mutex; /* all below */
	pthread_cond_t changed;
	uint64_t read, freed; /* of the stream: what is in the ring is between */
	uint64_t entries_made, entries_said;
	uint64_t questions_made, questions_answered;
	uint64_t ahead_bytes; /* how much may be in the ring */
	bool reader_waits;
	bool ended, stopped;
	uint64_t looked_answers, looked_found; /* of late */
	/* How long an answer takes: of the question that is being timed. */
	uint64_t timed_question;
	int64_t timed_us, answer_us;
	bool timing;
	struct page_sender_counts counts;
};

static inline struct entry *entry_at(struct page_sender *sender, uint64_t number)
{
	return &sender->entries[number % ENTRIES];
}

/* ---- page_reading.c ---- */

/* Until QEMU has ended its stream, or the sender is stopped: 0. */
int page_sender_read(struct page_sender *sender, struct error **e) MUST_CHECK;

#endif
