/* SPDX-License-Identifier: Apache-2.0 */
/*
 * QEMU's migration stream (src/qemu/stream_reader.c, stream_writer.c, device_state.c). The first byte says what the rest is:
 *   s  a stream from its beginning
 *   d  its end, from the first byte of the devices' state on, the description included
 *
 * Properties: the same items come out, or the same error, however the bytes are cut into windows, none longer than
 * STREAM_ITEM_MAX_BYTES unless it is a piece; all bytes are accounted for; what is written of a record is what was read, but for
 * the block's name where it was said without need; what is decoded is JSON that can be written and read.
 */
#include <string.h>

#include "base/cleanup.h"
#include "base/json.h"
#include "base/xalloc.h"
#include "qemu/device_state.h"
#include "qemu/stream_reader.h"
#include "qemu/stream_writer.h"

#include "fuzz.h"

/* The record as it is written, behind each other head and payload. */
static void check_written(struct stream_writer *writer, const struct stream_item *item)
{
	uint8_t head[STREAM_HEAD_MAX_BYTES];
	size_t size = 0;
	const bool same = writer->last == item->block;
	if (item->kind == STREAM_PAGE)
		size = stream_write_page(writer, head, item->block, item->offset);
	else if (item->kind == STREAM_ZERO)
		size = stream_write_zero(writer, head, item->block, item->offset, item->data[0]) - 1;
	else if (item->kind == STREAM_DELTA)
		size = stream_write_delta(writer, head, item->block, item->offset, item->data_bytes);
	else if (item->kind == STREAM_COMPRESSED)
		size = stream_write_compressed(writer, head, item->block, item->offset, (uint32_t)item->data_bytes);
	else
		return;
	if (same != item->same_block)
		return; /* QEMU names a block only where it must */
	REQUIRE(size + item->data_bytes == item->size_bytes);
	REQUIRE(memcmp(head, item->bytes, size) == 0);
}

static void describe(FILE *file, const struct stream_item *item)
{
	if (item->kind != STREAM_PACKAGE && item->kind != STREAM_DESCRIPTION_PIECE)
		fprintf(file, "%s %s %s %llx %zu %d\n", stream_item_name(item->kind), item->name ? item->name : "-",
			item->block ? item->block->name : "-", (unsigned long long)item->offset, item->size_bytes, item->command);
}

/* All that is read, a line each, and how it ended. The caller frees it. */
static char *read_stream(const uint8_t *data, size_t size, size_t step)
{
	struct stream_reader *reader = stream_reader_new();
	struct stream_writer writer = {0};
	struct error *e = NULL;
	char *text = NULL;
	size_t length = 0, at = 0, end = 0;
	FILE *file = open_memstream(&text, &length);
	for (;;) {
		struct stream_item item;
		int r = stream_reader_next(reader, data + at, end - at, &item, &e);
		if (r < 0)
			break;
		if (r == 0 && end < size) {
			REQUIRE(end - at < STREAM_ITEM_MAX_BYTES || size - end > 0);
			end = size - end < step ? size : end + step;
			continue;
		}
		if (r == 0)
			break;
		REQUIRE(item.size_bytes <= end - at);
		REQUIRE(item.size_bytes <= STREAM_ITEM_MAX_BYTES || item.kind == STREAM_PACKAGE || item.kind == STREAM_DESCRIPTION_PIECE);
		at += item.size_bytes;
		REQUIRE(stream_reader_offset(reader) == at);
		describe(file, &item);
		check_written(&writer, &item);
		if (item.kind == STREAM_REST)
			break;
	}
	if (!e && stream_reader_finish(reader, &e) == 0)
		fprintf(file, "whole\n");
	if (e) {
		fprintf(file, "%s\n", e->message);
		fuzz_check_error(e);
	}
	fclose(file);
	stream_reader_free(reader);
	return text;
}

static void check_stream(const uint8_t *data, size_t size)
{
	cleanup_free char *whole = read_stream(data, size, size > 0 ? size : 1);
	static const size_t steps[] = {1, 3, 4096};
	for (size_t i = size > 65536 ? 2 : 0; i < sizeof(steps) / sizeof(steps[0]); i++) {
		cleanup_free char *cut = read_stream(data, size, steps[i]);
		REQUIRE(strcmp(cut, whole) == 0);
	}
}

static void check_devices(const uint8_t *data, size_t size)
{
	cleanup_json json_t *description = NULL, *fields = NULL;
	struct error *e = NULL;
	size_t begins_at = 0;
	if (device_state_description(data, size, &description, &begins_at, &e) < 0 ||
	    device_state_decode(data, begins_at, 0, description, &fields, &e) < 0) {
		fuzz_check_error(e);
		return;
	}
	REQUIRE(begins_at <= size && json_is_object(fields));
	cleanup_free char *text = json_text(fields);
	cleanup_json json_t *again = json_loads(text, 0, NULL);
	REQUIRE(again && json_equal(again, fields));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	if (size == 0)
		return -1;
	/* A copy of its own, so that a byte too many is noticed. */
	cleanup_free uint8_t *copy = xmalloc(size > 1 ? size - 1 : 1);
	memcpy(copy, data + 1, size - 1);
	if (*data == 's')
		check_stream(copy, size - 1);
	else if (*data == 'd')
		check_devices(copy, size - 1);
	else
		return -1;
	return 0;
}
