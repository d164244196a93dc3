/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Writes records of memory of QEMU's migration stream (stream.h): what stands before a page's content. The content itself
 * is the caller's to put behind, so that it need not be copied.
 *
 * A record names its block only where it is another than that of the record before, so that records can be left out, put in
 * or changed between any two: what is written is always whole. All else of a stream is passed on as it was read.
 *
 * One thread at a time a writer; one writer a connection to QEMU.
 */
#ifndef FERRY_QEMU_STREAM_WRITER_H
#define FERRY_QEMU_STREAM_WRITER_H

#include <stddef.h>

#include "qemu/stream.h"

/* {0} at the beginning of a stream. */
struct stream_writer {
	const struct stream_block *last; /* of the record before */
};

/* The longest head: word, name, mark or length. */
#define STREAM_HEAD_MAX_BYTES (8 + 1 + STREAM_NAME_MAX + 4)

/* Each writes to `ret` and returns how many bytes it wrote. The block must live as long as the writer is used. */

/* Behind it: STREAM_PAGE_BYTES. */
size_t stream_write_page(struct stream_writer *writer, uint8_t ret[STREAM_HEAD_MAX_BYTES], const struct stream_block *block,
			 uint64_t offset);
/* Whole: nothing belongs behind it. */
size_t stream_write_zero(struct stream_writer *writer, uint8_t ret[STREAM_HEAD_MAX_BYTES], const struct stream_block *block,
			 uint64_t offset, uint8_t fill);
/* Behind it: 1 to STREAM_PAGE_BYTES bytes of XBZRLE. */
size_t stream_write_delta(struct stream_writer *writer, uint8_t ret[STREAM_HEAD_MAX_BYTES], const struct stream_block *block,
			  uint64_t offset, size_t delta_bytes);
/* Behind it: so many bytes of zlib. */
size_t stream_write_compressed(struct stream_writer *writer, uint8_t ret[STREAM_HEAD_MAX_BYTES],
			       const struct stream_block *block, uint64_t offset, uint32_t compressed_bytes);

#endif
