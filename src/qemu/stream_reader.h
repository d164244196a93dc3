/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Reads QEMU's migration stream (stream.h) item by item, out of whatever piece of it is there: a file in memory, or a ring
 * into which it arrives. Nothing is copied but the names of blocks, nothing is allocated after stream_reader_new().
 *
 * Where sections begin whose length nobody can know from the stream alone (the devices' state), or something that this
 * reader does not know (a flag of a QEMU to come), an item of the kind STREAM_REST says why, and there is nothing more to
 * read: what follows can only be passed on as it is. What contradicts itself is an error, with the offset.
 *
 * One thread at a time.
 */
#ifndef FERRY_QEMU_STREAM_READER_H
#define FERRY_QEMU_STREAM_READER_H

#include <stdbool.h>
#include <stddef.h>

#include "base/error.h"
#include "qemu/stream.h"

enum stream_item_kind {
	STREAM_HEADER,
	STREAM_CONFIGURATION, /* name: the machine type's */
	STREAM_SUBSECTION,    /* of the configuration. name */
	STREAM_SECTION,	      /* its head. section, name (part and end: that of its start) */
	STREAM_FOOTER,
	STREAM_SIZES, /* blocks follow; offset: their sizes together */
	STREAM_BLOCK, /* block: a new one */
	STREAM_ZERO,  /* block, offset, data: the byte that fills it */
	STREAM_PAGE,  /* block, offset, data: STREAM_PAGE_BYTES of them */
	STREAM_DELTA, /* block, offset, data */
	STREAM_COMPRESSED, /* block, offset, data */
	STREAM_FLUSH,
	STREAM_BODY_END, /* of "ram" */
	STREAM_COMMAND,	 /* command, data */
	STREAM_PACKAGE,  /* data: a piece of what a packaged command has announced */
	STREAM_EOF,
	STREAM_DESCRIPTION,	 /* offset: its size. Pieces follow */
	STREAM_DESCRIPTION_PIECE, /* data */
	STREAM_REST,		 /* of no size: nothing more can be read; why */
	STREAM_ITEM_KIND_COUNT
};
const char *stream_item_name(enum stream_item_kind kind);

struct stream_item {
	enum stream_item_kind kind;
	const uint8_t *bytes; /* the whole item, as it stands in the window */
	size_t size_bytes;

	/* What it says; see the kinds for what is set. */
	struct {
		enum stream_section_kind kind;
		uint32_t id, instance, version;
	} section;
	const char *name;		  /* the reader's, until the next call */
	const struct stream_block *block; /* the reader's, as long as it lives */
	uint64_t offset;
	bool same_block; /* the record did not name it */
	const uint8_t *data; /* within bytes */
	size_t data_bytes;
	enum stream_command command;
	const char *why;       /* static */
	bool devices;	       /* STREAM_REST: what follows is the devices' state, as is to be expected */
};

/* An item, without the pieces of what is longer, has at most so many bytes: what a window must be able to hold. */
#define STREAM_ITEM_MAX_BYTES (70 * 1024)

struct stream_reader;
struct stream_reader *stream_reader_new(void);
void stream_reader_free(struct stream_reader *reader);

/*
 * The item at the beginning of the window, whose `size_bytes` are then counted as read: the next window begins behind it.
 * Returns 1, or 0 when the window must hold more first. At the end of the stream, and once STREAM_REST was returned, there
 * is nothing more to read: 0. Fails with ERROR_DATA_STREAM.
 */
int stream_reader_next(struct stream_reader *reader, const uint8_t *window, size_t window_bytes, struct stream_item *ret,
		       struct error **e) MUST_CHECK;

/* No byte follows behind those read: whether the stream may end there. */
int stream_reader_finish(const struct stream_reader *reader, struct error **e) MUST_CHECK;

/* How many bytes have been read: where the next window begins. */
uint64_t stream_reader_offset(const struct stream_reader *reader);
/* The blocks so far, in the stream's order; they live as long as the reader. */
size_t stream_reader_blocks(const struct stream_reader *reader, const struct stream_block **ret);

#endif
