/* SPDX-License-Identifier: Apache-2.0 */
/* The writer of records of memory; see stream_writer.h. */
#include "qemu/stream_writer.h"

#include <assert.h>
#include <endian.h>
#include <stdbool.h>
#include <string.h>


/* The word, and the block's name where it is another than before. */
static size_t write_start(struct stream_writer *writer, uint8_t *ret, const struct stream_block *block, uint64_t offset,
			  uint64_t flags)
{
	const bool same = block == writer->last;
	uint64_t word = htobe64(offset | flags | (same ? STREAM_RAM_SAME_BLOCK : 0));
	size_t at = sizeof(word);
	assert(offset % STREAM_PAGE_BYTES == 0);
	memcpy(ret, &word, sizeof(word));
	if (!same) {
		ret[at++] = block->name_length;
		memcpy(ret + at, block->name, block->name_length);
		at += block->name_length;
	}
	writer->last = block;
	return at;
}

size_t stream_write_page(struct stream_writer *writer, uint8_t ret[STREAM_HEAD_MAX_BYTES], const struct stream_block *block,
			 uint64_t offset)
{
	return write_start(writer, ret, block, offset, STREAM_RAM_PAGE);
}

size_t stream_write_zero(struct stream_writer *writer, uint8_t ret[STREAM_HEAD_MAX_BYTES], const struct stream_block *block,
			 uint64_t offset, uint8_t fill)
{
	size_t at = write_start(writer, ret, block, offset, STREAM_RAM_ZERO);
	ret[at] = fill;
	return at + 1;
}

size_t stream_write_delta(struct stream_writer *writer, uint8_t ret[STREAM_HEAD_MAX_BYTES], const struct stream_block *block,
			  uint64_t offset, size_t delta_bytes)
{
	assert(delta_bytes > 0 && delta_bytes <= STREAM_PAGE_BYTES);
	const uint16_t length = htobe16((uint16_t)delta_bytes);
	size_t at = write_start(writer, ret, block, offset, STREAM_RAM_DELTA);
	ret[at] = STREAM_DELTA_MARK;
	memcpy(ret + at + 1, &length, sizeof(length));
	return at + 1 + sizeof(length);
}

size_t stream_write_compressed(struct stream_writer *writer, uint8_t ret[STREAM_HEAD_MAX_BYTES],
			       const struct stream_block *block, uint64_t offset, uint32_t compressed_bytes)
{
	const uint32_t length = htobe32(compressed_bytes);
	size_t at = write_start(writer, ret, block, offset, STREAM_RAM_COMPRESSED);
	memcpy(ret + at, &length, sizeof(length));
	return at + sizeof(length);
}
