/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The reader of QEMU's migration stream; see stream_reader.h, and stream.h for what stands in it.
 *
 * Theory of operation
 *
 * A state says what must come next; one function a state looks at the window. It moves a cursor over what the item has, and
 * where the window ends too early nothing has happened: the same is looked at again when there is more. Only when the item
 * is whole the state changes, in next(). Most items are pages, so that their way is short: one word, the block that was
 * meant before, 4096 bytes.
 *
 * The stream says neither how long a section of devices is nor which capabilities were set. What has to be known of the
 * latter shows elsewhere: validated ones stand in the configuration, and with post-copy the "advise" command says which
 * sizes the pages of the blocks' memory have. A block then carries its own behind its length if it is not the usual one.
 * Such a number has its lower twelve bits clear and its first byte zero; a block's name or a record can begin with neither.
 */
#include "qemu/stream_reader.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/xalloc.h"

#define COMPRESSED_MAX_BYTES (2 * STREAM_PAGE_BYTES)
#define MACHINE_NAME_MAX 255
#define CAPABILITIES_MAX 200
#define OFFSET_MASK (~(uint64_t)(STREAM_PAGE_BYTES - 1))

enum reader_state {
	AT_HEADER,
	AT_TOP,
	BEHIND_CONFIGURATION, /* AT_TOP, but subsections may come */
	AT_BLOCKS,
	AT_RECORD,
	AT_FOOTER,
	AT_PACKAGE,
	BEHIND_EOF,
	AT_DESCRIPTION,
	AT_END,
	AT_REST, /* STREAM_REST was returned */
	AT_UNKNOWN, /* it will be */
};

enum footers {
	FOOTERS_UNKNOWN, /* machine types of old have none */
	FOOTERS_THERE,
	FOOTERS_NOT_THERE,
};

struct stream_reader {
	enum reader_state state;
	uint64_t offset;
	uint64_t left_bytes; /* AT_BLOCKS: of the sizes to come; AT_PACKAGE, AT_DESCRIPTION: of bytes */
	enum footers footers;
	bool ram_begun, ram_over, blocks_known;
	uint32_t ram_id;
	enum stream_section_kind section_kind;
	bool shared_ignored;	      /* capability x-ignore-shared: blocks carry an address, too */
	uint64_t page_sizes;	      /* or-ed, from "advise"; 0: blocks do not carry theirs */
	const char *unknown;	      /* AT_UNKNOWN: why */
	char name[STREAM_NAME_MAX + 1]; /* of the item */
	const struct stream_block *last;
	size_t block_count;
	struct stream_block blocks[STREAM_BLOCKS_MAX];
};

const char *stream_item_name(enum stream_item_kind kind)
{
	static const char *const names[] = {
		[STREAM_HEADER] = "header",
		[STREAM_CONFIGURATION] = "configuration",
		[STREAM_SUBSECTION] = "subsection",
		[STREAM_SECTION] = "section",
		[STREAM_FOOTER] = "footer",
		[STREAM_SIZES] = "sizes",
		[STREAM_BLOCK] = "block",
		[STREAM_ZERO] = "zero",
		[STREAM_PAGE] = "page",
		[STREAM_DELTA] = "delta",
		[STREAM_COMPRESSED] = "compressed",
		[STREAM_FLUSH] = "flush",
		[STREAM_BODY_END] = "body end",
		[STREAM_COMMAND] = "command",
		[STREAM_PACKAGE] = "package",
		[STREAM_EOF] = "eof",
		[STREAM_DESCRIPTION] = "description",
		[STREAM_DESCRIPTION_PIECE] = "description piece",
		[STREAM_REST] = "rest",
	};
	return names[kind];
}

/* ---- what goes wrong ---- */

#define WRONG(format, ...)                                                                                                       \
	error_set(e, ERROR_DATA_STREAM, "the migration stream is damaged: at byte %" PRIu64 ": " format, reader->offset, ##__VA_ARGS__)

/* The next call says STREAM_REST. */
static void leave_rest(struct stream_reader *reader, const char *why)
{
	reader->state = AT_UNKNOWN;
	reader->unknown = why;
}

/* A name goes into messages and JSON: it must be what QEMU gives. */
static bool is_name(const uint8_t *bytes, size_t length)
{
	if (length == 0)
		return false;
	for (size_t i = 0; i < length; i++)
		if (bytes[i] < 0x20 || bytes[i] > 0x7e)
			return false;
	return true;
}

static void keep_name(struct stream_reader *reader, struct stream_item *ret, const uint8_t *bytes, size_t length)
{
	memcpy(reader->name, bytes, length);
	reader->name[length] = '\0';
	ret->name = reader->name;
}

/* ---- one function a state. 1: the item is whole; 0: the window ends before; -1 ---- */

static int read_header(struct stream_reader *reader, struct bytes *cursor, struct stream_item *ret, struct error **e)
{
	uint32_t magic, version;
	if (!bytes_take_u32(cursor, &magic))
		return 0;
	if (magic != STREAM_MAGIC)
		return error_set(e, ERROR_DATA_STREAM, "this is not a migration stream of QEMU: it begins with %08x", magic);
	if (!bytes_take_u32(cursor, &version))
		return 0;
	if (version != STREAM_VERSION)
		return error_set(e, ERROR_DATA_STREAM, "the migration stream is of version %u; Ferry reads version %d", version,
				 STREAM_VERSION);
	ret->kind = STREAM_HEADER;
	reader->state = AT_TOP;
	return 1;
}

static int read_configuration(struct stream_reader *reader, struct bytes *cursor, struct stream_item *ret, struct error **e)
{
	uint32_t length;
	const uint8_t *name;
	if (reader->ram_begun)
		return WRONG("a configuration behind the first section");
	if (!bytes_take_u32(cursor, &length))
		return 0;
	if (length > MACHINE_NAME_MAX)
		return WRONG("a machine type with a name of %u bytes", length);
	if (!bytes_take(cursor, length, &name))
		return 0;
	if (!is_name(name, length))
		return WRONG("a machine type that is no name");
	keep_name(reader, ret, name, length);
	ret->kind = STREAM_CONFIGURATION;
	reader->state = BEHIND_CONFIGURATION;
	return 1;
}

/* The capabilities that both sides must have: u32 count, names. */
static int read_capabilities(struct stream_reader *reader, struct bytes *cursor, struct error **e)
{
	uint32_t count;
	bool shared_ignored = false, mapped = false;
	if (!bytes_take_u32(cursor, &count))
		return 0;
	if (count > CAPABILITIES_MAX)
		return WRONG("%u capabilities", count);
	for (uint32_t i = 0; i < count; i++) {
		const uint8_t *name;
		uint8_t length;
		if (!bytes_take_name(cursor, &name, &length))
			return 0;
		shared_ignored |= length == strlen("x-ignore-shared") && memcmp(name, "x-ignore-shared", length) == 0;
		mapped |= length == strlen("mapped-ram") && memcmp(name, "mapped-ram", length) == 0;
	}
	reader->shared_ignored = shared_ignored;
	if (mapped)
		leave_rest(reader, "memory stands at fixed places of the file (mapped-ram), which is no stream");
	return 1;
}

static int read_subsection(struct stream_reader *reader, struct bytes *cursor, struct stream_item *ret, struct error **e)
{
	const uint8_t *name, *body;
	uint8_t length;
	uint32_t version;
	int r = 1;
	if (!bytes_take_name(cursor, &name, &length) || !bytes_take_u32(cursor, &version))
		return 0;
	if (!is_name(name, length))
		return WRONG("a subsection without a name");
	keep_name(reader, ret, name, length);
	ret->kind = STREAM_SUBSECTION;
	if (strcmp(ret->name, "configuration/target-page-bits") == 0) {
		uint32_t bits;
		if (!bytes_take_u32(cursor, &bits))
			return 0;
		if (bits != (uint32_t)__builtin_ctz(STREAM_PAGE_BYTES))
			leave_rest(reader, "the guest's pages are not of 4096 bytes");
	} else if (strcmp(ret->name, "configuration/capabilities") == 0) {
		r = read_capabilities(reader, cursor, e);
	} else if (strcmp(ret->name, "configuration/uuid") == 0) {
		r = bytes_take(cursor, 16, &body);
	} else {
		leave_rest(reader, "the configuration has a part that is not known");
	}
	return r;
}

static int read_section_start(struct stream_reader *reader, struct bytes *cursor, struct stream_item *ret, struct error **e)
{
	const uint8_t *name;
	uint8_t length;
	if (!bytes_take_u32(cursor, &ret->section.id) || !bytes_take_name(cursor, &name, &length) || !bytes_take_u32(cursor, &ret->section.instance) ||
	    !bytes_take_u32(cursor, &ret->section.version))
		return 0;
	if (!is_name(name, length))
		return WRONG("a section without a name");
	keep_name(reader, ret, name, length);
	if (strcmp(ret->name, "ram") != 0) {
		leave_rest(reader, "there are sections in parts that are not of memory");
		return 1;
	}
	if (reader->ram_begun)
		return WRONG("memory begins a second time");
	if (ret->section.instance != 0 || ret->section.version != STREAM_RAM_VERSION) {
		leave_rest(reader, "memory is coded in a way that is not known");
		return 1;
	}
	reader->ram_begun = true;
	reader->ram_id = ret->section.id;
	reader->state = AT_RECORD;
	return 1;
}

static int read_section(struct stream_reader *reader, struct bytes *cursor, struct stream_item *ret, struct error **e)
{
	ret->kind = STREAM_SECTION;
	reader->section_kind = ret->section.kind;
	if (ret->section.kind == STREAM_SECTION_START)
		return read_section_start(reader, cursor, ret, e);
	if (!bytes_take_u32(cursor, &ret->section.id))
		return 0;
	if (!reader->ram_begun || reader->ram_over || ret->section.id != reader->ram_id)
		return WRONG("a part of section %u, which has not begun or is over", ret->section.id);
	strcpy(reader->name, "ram");
	ret->name = reader->name;
	ret->section.version = STREAM_RAM_VERSION;
	reader->state = AT_RECORD;
	return 1;
}

/* What a command means for the rest of the stream. */
static int heed_command(struct stream_reader *reader, const struct stream_item *command, struct error **e)
{
	uint64_t sizes[2];
	uint32_t length;
	switch (command->command) {
	case STREAM_POSTCOPY_ADVISE:
		if (command->data_bytes == 0)
			return 0;
		if (command->data_bytes != sizeof(sizes))
			return WRONG("post-copy is advised in %zu bytes", command->data_bytes);
		memcpy(sizes, command->data, sizeof(sizes));
		if (be64toh(sizes[1]) != STREAM_PAGE_BYTES)
			return WRONG("post-copy is advised for pages of %" PRIu64 " bytes", be64toh(sizes[1]));
		reader->page_sizes = be64toh(sizes[0]) == STREAM_PAGE_BYTES ? 0 : be64toh(sizes[0]);
		return 0;
	case STREAM_PACKAGED:
		if (command->data_bytes != sizeof(length))
			return WRONG("a package is announced in %zu bytes", command->data_bytes);
		memcpy(&length, command->data, sizeof(length));
		reader->left_bytes = be32toh(length);
		reader->state = reader->left_bytes > 0 ? AT_PACKAGE : AT_TOP;
		return 0;
	default:
		return 0;
	}
}

static int read_command(struct stream_reader *reader, struct bytes *cursor, struct stream_item *ret, struct error **e)
{
	uint16_t command, length;
	if (!bytes_take_u16(cursor, &command) || !bytes_take_u16(cursor, &length) || !bytes_take(cursor, length, &ret->data))
		return 0;
	ret->kind = STREAM_COMMAND;
	ret->command = command;
	ret->data_bytes = length;
	reader->state = AT_TOP;
	if (heed_command(reader, ret, e) < 0)
		return -1;
	return 1;
}

static int read_top(struct stream_reader *reader, struct bytes *cursor, struct stream_item *ret, struct error **e)
{
	uint8_t kind;
	if (!bytes_take_u8(cursor, &kind))
		return 0;
	switch (kind) {
	case STREAM_BYTE_EOF:
		ret->kind = STREAM_EOF;
		reader->state = BEHIND_EOF;
		return 1;
	case STREAM_SECTION_START:
	case STREAM_SECTION_PART:
	case STREAM_SECTION_END:
		ret->section.kind = (enum stream_section_kind)kind;
		return read_section(reader, cursor, ret, e);
	case STREAM_SECTION_FULL:
		ret->kind = STREAM_REST;
		ret->why = reader->ram_over ? "the devices' state follows" : "devices' state stands before the end of memory";
		ret->devices = reader->ram_over;
		cursor->at = 0;
		reader->state = AT_REST;
		return 1;
	case STREAM_BYTE_SUBSECTION:
		if (reader->state != BEHIND_CONFIGURATION)
			return WRONG("a subsection where none can be");
		return read_subsection(reader, cursor, ret, e);
	case STREAM_BYTE_CONFIGURATION:
		return read_configuration(reader, cursor, ret, e);
	case STREAM_BYTE_COMMAND:
		return read_command(reader, cursor, ret, e);
	default:
		return WRONG("neither a section nor a command begins with %02x", kind);
	}
}

static int read_block(struct stream_reader *reader, struct bytes *cursor, struct stream_item *ret, struct error **e)
{
	struct stream_block *block = &reader->blocks[reader->block_count];
	const uint8_t *name;
	uint8_t length;
	uint64_t size, address, page_bytes = 0;
	if (!bytes_take_name(cursor, &name, &length) || !bytes_take_u64(cursor, &size))
		return 0;
	if (!is_name(name, length))
		return WRONG("a block of memory without a name");
	if (size == 0 || size > reader->left_bytes || size % STREAM_PAGE_BYTES != 0)
		return WRONG("a block of %" PRIu64 " bytes of %" PRIu64 " to come", size, reader->left_bytes);
	if (reader->page_sizes != 0) {
		struct bytes ahead = *cursor;
		if (!bytes_take_u64(&ahead, &page_bytes))
			return 0;
		if (page_bytes != 0 && (page_bytes & (page_bytes - 1)) == 0 && page_bytes >= STREAM_PAGE_BYTES &&
		    (page_bytes & reader->page_sizes) != 0)
			*cursor = ahead;
		else
			page_bytes = 0;
	}
	if (reader->shared_ignored && !bytes_take_u64(cursor, &address))
		return 0;
	for (size_t i = 0; i < reader->block_count; i++)
		if (reader->blocks[i].name_length == length && memcmp(reader->blocks[i].name, name, length) == 0)
			return WRONG("the block '%s' comes twice", reader->blocks[i].name);
	if (reader->block_count == STREAM_BLOCKS_MAX - 1 && size < reader->left_bytes)
		return WRONG("more than %d blocks of memory", STREAM_BLOCKS_MAX);
	memcpy(block->name, name, length);
	block->name[length] = '\0';
	block->name_length = length;
	block->size_bytes = size;
	block->page_bytes = page_bytes;
	reader->block_count++;
	ret->kind = STREAM_BLOCK;
	ret->block = block;
	reader->left_bytes -= size;
	if (reader->left_bytes == 0)
		reader->state = AT_RECORD;
	return 1;
}

static int read_sizes(struct stream_reader *reader, uint64_t total, struct stream_item *ret, struct error **e)
{
	if (reader->section_kind != STREAM_SECTION_START || reader->blocks_known)
		return WRONG("the sizes of memory come a second time");
	if (total == 0)
		return WRONG("a guest without memory");
	ret->kind = STREAM_SIZES;
	ret->offset = total;
	reader->blocks_known = true;
	reader->left_bytes = total;
	reader->state = AT_BLOCKS;
	return 1;
}

/* Whose page it is: named, or as before. */
static int read_page_block(struct stream_reader *reader, struct bytes *cursor, bool same, const struct stream_block **ret,
			   struct error **e)
{
	const uint8_t *name;
	uint8_t length;
	*ret = reader->last;
	if (same)
		return reader->last ? 1 : WRONG("a page of the same block as the one before, and none came before");
	if (!bytes_take_name(cursor, &name, &length))
		return 0;
	for (size_t i = 0; i < reader->block_count; i++) {
		const struct stream_block *block = &reader->blocks[i];
		if (block->name_length == length && memcmp(block->name, name, length) == 0) {
			*ret = block;
			return 1;
		}
	}
	return WRONG("a page of a block that was not named before");
}

static int read_payload(struct stream_reader *reader, struct bytes *cursor, uint64_t kind, struct stream_item *ret,
			struct error **e)
{
	uint32_t length;
	uint16_t short_length;
	uint8_t mark;
	switch (kind) {
	case STREAM_RAM_ZERO:
		ret->kind = STREAM_ZERO;
		ret->data_bytes = 1;
		break;
	case STREAM_RAM_PAGE:
		ret->kind = STREAM_PAGE;
		ret->data_bytes = STREAM_PAGE_BYTES;
		break;
	case STREAM_RAM_DELTA:
		if (!bytes_take_u8(cursor, &mark) || !bytes_take_u16(cursor, &short_length))
			return 0;
		if (mark != STREAM_DELTA_MARK || short_length == 0 || short_length > STREAM_PAGE_BYTES)
			return WRONG("a delta of %u bytes, marked %u", short_length, mark);
		ret->kind = STREAM_DELTA;
		ret->data_bytes = short_length;
		break;
	default:
		if (!bytes_take_u32(cursor, &length))
			return 0;
		if (length == 0 || length > COMPRESSED_MAX_BYTES)
			return WRONG("a page compressed to %u bytes", length);
		ret->kind = STREAM_COMPRESSED;
		ret->data_bytes = length;
	}
	return bytes_take(cursor, ret->data_bytes, &ret->data);
}

static int read_page(struct stream_reader *reader, struct bytes *cursor, uint64_t word, struct stream_item *ret,
		     struct error **e)
{
	ret->offset = word & OFFSET_MASK;
	ret->same_block = (word & STREAM_RAM_SAME_BLOCK) != 0;
	if (!reader->blocks_known)
		return WRONG("a page before the sizes of memory");
	int r = read_page_block(reader, cursor, ret->same_block, &ret->block, e);
	if (r <= 0)
		return r;
	if (ret->offset >= ret->block->size_bytes)
		return WRONG("a page at %" PRIu64 " of '%s', which has %" PRIu64 " bytes", ret->offset, ret->block->name,
			     ret->block->size_bytes);
	r = read_payload(reader, cursor, word & ~OFFSET_MASK & ~(uint64_t)STREAM_RAM_SAME_BLOCK, ret, e);
	if (r > 0)
		reader->last = ret->block;
	return r;
}

static int read_record(struct stream_reader *reader, struct bytes *cursor, struct stream_item *ret, struct error **e)
{
	uint64_t word;
	if (!bytes_take_u64(cursor, &word))
		return 0;
	switch (word & ~OFFSET_MASK & ~(uint64_t)STREAM_RAM_SAME_BLOCK) {
	case STREAM_RAM_ZERO:
	case STREAM_RAM_PAGE:
	case STREAM_RAM_DELTA:
	case STREAM_RAM_COMPRESSED:
		return read_page(reader, cursor, word, ret, e);
	default:
		break;
	}
	if ((word & ~OFFSET_MASK) == STREAM_RAM_SIZES)
		return read_sizes(reader, word & OFFSET_MASK, ret, e);
	if (word == STREAM_RAM_MULTIFD_FLUSH) {
		ret->kind = STREAM_FLUSH;
		return 1;
	}
	if (word == STREAM_RAM_END) {
		ret->kind = STREAM_BODY_END;
		reader->ram_over = reader->section_kind == STREAM_SECTION_END;
		reader->state = reader->footers == FOOTERS_NOT_THERE ? AT_TOP : AT_FOOTER;
		return 1;
	}
	ret->kind = STREAM_REST;
	ret->why = "a record of memory has flags that are not known";
	cursor->at = 0;
	reader->state = AT_REST;
	return 1;
}

static int read_footer(struct stream_reader *reader, struct bytes *cursor, struct stream_item *ret, struct error **e)
{
	uint8_t mark;
	uint32_t id;
	if (!bytes_take_u8(cursor, &mark))
		return 0;
	if (mark != STREAM_FOOTER_MARK && reader->footers == FOOTERS_UNKNOWN) {
		reader->footers = FOOTERS_NOT_THERE;
		reader->state = AT_TOP;
		cursor->at = 0;
		return read_top(reader, cursor, ret, e);
	}
	if (mark != STREAM_FOOTER_MARK)
		return WRONG("a section does not end where its memory does");
	if (!bytes_take_u32(cursor, &id))
		return 0;
	if (id != reader->ram_id)
		return WRONG("section %u ends, and %u had begun", id, reader->ram_id);
	ret->kind = STREAM_FOOTER;
	ret->section.id = id;
	reader->footers = FOOTERS_THERE;
	reader->state = AT_TOP;
	return 1;
}

/* As much as is there of what has a length. */
static int read_piece(struct stream_reader *reader, struct bytes *cursor, struct stream_item *ret, enum stream_item_kind kind,
		      enum reader_state behind)
{
	const size_t there = bytes_left(cursor);
	const size_t size = reader->left_bytes < there ? (size_t)reader->left_bytes : there;
	if (size == 0)
		return 0;
	ret->kind = kind;
	ret->data_bytes = size;
	if (!bytes_take(cursor, size, &ret->data))
		return 0;
	reader->left_bytes -= size;
	if (reader->left_bytes == 0)
		reader->state = behind;
	return 1;
}

static int read_description(struct stream_reader *reader, struct bytes *cursor, struct stream_item *ret, struct error **e)
{
	uint8_t kind;
	uint32_t length;
	if (!bytes_take_u8(cursor, &kind))
		return 0;
	if (kind != STREAM_BYTE_DESCRIPTION)
		return WRONG("the stream has ended, and %02x follows", kind);
	if (!bytes_take_u32(cursor, &length))
		return 0;
	ret->kind = STREAM_DESCRIPTION;
	ret->offset = length;
	reader->left_bytes = length;
	reader->state = length > 0 ? AT_DESCRIPTION : AT_END;
	return 1;
}

static int read_item(struct stream_reader *reader, struct bytes *cursor, struct stream_item *ret, struct error **e)
{
	switch (reader->state) {
	case AT_HEADER:
		return read_header(reader, cursor, ret, e);
	case AT_TOP:
	case BEHIND_CONFIGURATION:
		return read_top(reader, cursor, ret, e);
	case AT_BLOCKS:
		return read_block(reader, cursor, ret, e);
	case AT_RECORD:
		return read_record(reader, cursor, ret, e);
	case AT_FOOTER:
		return read_footer(reader, cursor, ret, e);
	case AT_PACKAGE:
		return read_piece(reader, cursor, ret, STREAM_PACKAGE, AT_TOP);
	case BEHIND_EOF:
		return read_description(reader, cursor, ret, e);
	case AT_DESCRIPTION:
		return read_piece(reader, cursor, ret, STREAM_DESCRIPTION_PIECE, AT_END);
	case AT_END:
		return cursor->size_bytes > 0 ? WRONG("bytes behind the end of the stream") : 0;
	case AT_UNKNOWN:
		ret->kind = STREAM_REST;
		ret->why = reader->unknown;
		reader->state = AT_REST;
		return 1;
	case AT_REST:
		break;
	}
	return 0;
}

int stream_reader_next(struct stream_reader *reader, const uint8_t *window, size_t window_bytes, struct stream_item *ret,
		       struct error **e)
{
	struct bytes cursor = {.data = window, .size_bytes = window_bytes};
	*ret = (struct stream_item){0};
	int r = read_item(reader, &cursor, ret, e);
	if (r <= 0)
		return r;
	ret->bytes = window;
	ret->size_bytes = cursor.at;
	reader->offset += cursor.at;
	return 1;
}

int stream_reader_finish(const struct stream_reader *reader, struct error **e)
{
	switch (reader->state) {
	case BEHIND_EOF:
	case AT_END:
	case AT_REST:
	case AT_UNKNOWN:
		return 0;
	default:
		return error_set(e, ERROR_DATA_STREAM, "the migration stream is cut off: it ends at byte %" PRIu64 ", %s", reader->offset,
				 reader->state == AT_HEADER ? "before its beginning was whole"
				 : reader->ram_over	    ? "behind memory"
				 : reader->ram_begun	    ? "in the middle of memory"
							    : "before memory");
	}
}

/* ---- the rest ---- */

struct stream_reader *stream_reader_new(void)
{
	return xcalloc(1, sizeof(struct stream_reader));
}

void stream_reader_free(struct stream_reader *reader)
{
	free(reader);
}

uint64_t stream_reader_offset(const struct stream_reader *reader)
{
	return reader->offset;
}

size_t stream_reader_blocks(const struct stream_reader *reader, const struct stream_block **ret)
{
	*ret = reader->blocks;
	return reader->block_count;
}
