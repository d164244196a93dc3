/* SPDX-License-Identifier: Apache-2.0 */
/*
 * QEMU's migration stream: what is read of it, however it is cut into windows; what is written of it again; what is said of
 * streams that are damaged, and of the devices' fields. The streams are made here byte by byte; those of a real QEMU are
 * tests/system/test_stream.py's.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/json.h"
#include "base/xalloc.h"
#include "qemu/device_state.h"
#include "qemu/stream_reader.h"
#include "qemu/stream_writer.h"
#include "relay/page_census.h"
#include "relay/stream_analysis.h"

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))
#define RAM_ID 2

/* ---- making streams ---- */

struct stream {
	uint8_t bytes[256 * 1024];
	size_t size;
};

static struct stream stream;

static void put(const void *bytes, size_t count)
{
	assert_true(stream.size + count <= sizeof(stream.bytes));
	if (count > 0)
		memcpy(stream.bytes + stream.size, bytes, count);
	stream.size += count;
}

static void put_number(uint64_t value, size_t width)
{
	for (size_t i = width; i > 0; i--) {
		const uint8_t byte = (uint8_t)(value >> (8 * (i - 1)));
		put(&byte, 1);
	}
}

static void put_text(const char *text)
{
	put(text, strlen(text));
}

static void put_name(const char *name)
{
	put_number(strlen(name), 1);
	put_text(name);
}

static void put_header(void)
{
	stream.size = 0;
	put_text("QEVM");
	put_number(3, 4);
}

static void put_configuration(void)
{
	put_number(STREAM_BYTE_CONFIGURATION, 1);
	put_number(10, 4);
	put_text("pc-q35-7.2");
}

static void put_start(void)
{
	put_number(STREAM_SECTION_START, 1);
	put_number(RAM_ID, 4);
	put_name("ram");
	put_number(0, 4);
	put_number(4, 4);
}

static void put_blocks(void)
{
	put_number(0x30000 | STREAM_RAM_SIZES, 8);
	put_name("pc.ram");
	put_number(0x20000, 8);
	put_name("vga.vram");
	put_number(0x10000, 8);
}

static void put_body_end(void)
{
	put_number(STREAM_RAM_END, 8);
	put_number(STREAM_FOOTER_MARK, 1);
	put_number(RAM_ID, 4);
}

static void put_part(enum stream_section_kind kind)
{
	put_number(kind, 1);
	put_number(RAM_ID, 4);
}

/* Content that no other page has. */
static void put_page(uint8_t content)
{
	uint8_t page[STREAM_PAGE_BYTES];
	for (size_t i = 0; i < sizeof(page); i++)
		page[i] = (uint8_t)(content + i * content);
	put(page, sizeof(page));
}

static void put_command(enum stream_command command, const void *data, size_t size)
{
	put_number(STREAM_BYTE_COMMAND, 1);
	put_number(command, 2);
	put_number(size, 2);
	put(data, size);
}

/* Every kind of record, over three sections. */
static void put_memory(void)
{
	put_start();
	put_blocks();
	put_body_end();
	put_part(STREAM_SECTION_PART);
	put_number(0x1000 | STREAM_RAM_PAGE, 8);
	put_name("pc.ram");
	put_page(1);
	put_number(0x2000 | STREAM_RAM_PAGE | STREAM_RAM_SAME_BLOCK, 8);
	put_page(2);
	put_number(0x3000 | STREAM_RAM_ZERO | STREAM_RAM_SAME_BLOCK, 8);
	put_number(0, 1);
	put_number(STREAM_RAM_MULTIFD_FLUSH, 8);
	put_number(0xf000 | STREAM_RAM_ZERO, 8);
	put_name("vga.vram");
	put_number(0, 1);
	put_body_end();
	put_part(STREAM_SECTION_END);
	put_number(0x1000 | STREAM_RAM_DELTA | STREAM_RAM_SAME_BLOCK, 8); /* of vga.vram: it is remembered over sections */
	put_number(STREAM_DELTA_MARK, 1);
	put_number(3, 2);
	put_text("\5\1x");
	put_number(0x1f000 | STREAM_RAM_COMPRESSED, 8);
	put_name("pc.ram");
	put_number(5, 4);
	put_text("zlib!");
	put_body_end();
}

/* What post-copy has beside it. */
static void put_postcopy(void)
{
	const uint8_t advice[16] = {[6] = 0x10, [14] = 0x10}, ping[4] = {0, 0, 0, 1}, length[4] = {0, 0, 0, 7};
	put_header();
	put_configuration();
	put_command(STREAM_OPEN_RETURN_PATH, NULL, 0);
	put_command(STREAM_PING, ping, sizeof(ping));
	put_command(STREAM_POSTCOPY_ADVISE, advice, sizeof(advice));
	put_start();
	put_blocks();
	put_body_end();
	put_command(STREAM_PACKAGED, length, sizeof(length));
	put_text("devices");
	put_part(STREAM_SECTION_END);
	put_number(0x5000 | STREAM_RAM_PAGE, 8);
	put_name("pc.ram");
	put_page(9);
	put_body_end();
	put_number(STREAM_BYTE_EOF, 1);
}

/* ---- reading them ---- */

/* All that is said of the stream, a word an item, reading windows that grow by `step` bytes. The caller frees it. */
static char *read_all(size_t step, struct error **e)
{
	struct stream_reader *reader = stream_reader_new();
	char *text = NULL;
	size_t length = 0, at = 0, end = 0;
	FILE *file = open_memstream(&text, &length);
	int r = 0;
	for (;;) {
		struct stream_item item;
		r = stream_reader_next(reader, stream.bytes + at, end - at, &item, e);
		if (r < 0)
			break;
		if (r == 0 && end < stream.size) {
			end = stream.size - end < step ? stream.size : end + step;
			continue;
		}
		if (r == 0) {
			r = stream_reader_finish(reader, e);
			break;
		}
		assert_ptr_equal(item.bytes, stream.bytes + at);
		assert_true(item.size_bytes <= end - at);
		at += item.size_bytes;
		assert_int_equal(stream_reader_offset(reader), at);
		const bool is_piece = item.kind == STREAM_PACKAGE || item.kind == STREAM_DESCRIPTION_PIECE;
		fprintf(file, "%s", is_piece ? "" : stream_item_name(item.kind));
		if (item.block)
			fprintf(file, ":%s", item.block->name);
		if (item.kind == STREAM_BLOCK && item.block->page_bytes)
			fprintf(file, ":page=%llx", (unsigned long long)item.block->page_bytes);
		if (item.name)
			fprintf(file, ":%s", item.name);
		if (item.offset)
			fprintf(file, ":%llx", (unsigned long long)item.offset);
		if (item.kind == STREAM_COMMAND)
			fprintf(file, ":%d", item.command);
		if (item.kind == STREAM_PAGE)
			assert_int_equal(item.data_bytes, STREAM_PAGE_BYTES);
		else if (item.kind == STREAM_DELTA || item.kind == STREAM_COMPRESSED || is_piece)
			fprintf(file, "%s%.*s", is_piece ? "" : "=", (int)item.data_bytes, (const char *)item.data);
		if (!is_piece)
			fputc(' ', file);
		if (item.kind == STREAM_REST) {
			fprintf(file, "%s", item.why);
			assert_int_equal(item.size_bytes, 0);
			assert_int_equal(stream_reader_next(reader, stream.bytes + at, stream.size - at, &item, e), 0);
			r = stream_reader_finish(reader, e);
			break;
		}
	}
	fclose(file);
	stream_reader_free(reader);
	if (r == 0)
		return text;
	free(text);
	return NULL;
}

static void assert_reads(const char *wanted)
{
	static const size_t steps[] = {1, 2, 7, 8, 4095, 4096, 5000, sizeof(stream.bytes)};
	for (size_t i = 0; i < COUNT(steps); i++) {
		cleanup_error struct error *e = NULL;
		cleanup_free char *text = read_all(steps[i], &e);
		if (e)
			fail_msg("%s", e->message);
		assert_string_equal(text, wanted);
	}
}

static void assert_damaged(const char *words)
{
	static const size_t steps[] = {1, sizeof(stream.bytes)};
	for (size_t i = 0; i < COUNT(steps); i++) {
		cleanup_error struct error *e = NULL;
		cleanup_free char *text = read_all(steps[i], &e);
		if (text)
			fail_msg("it was read: %s", text);
		assert_int_equal(e->code, ERROR_DATA_STREAM);
		if (!strstr(e->message, words))
			fail_msg("'%s' is not '%s'", e->message, words);
	}
}

#define MEMORY                                                                                                                   \
	"section:ram sizes:30000 block:pc.ram block:vga.vram body end footer section:ram page:pc.ram:1000 page:pc.ram:2000 "    \
	"zero:pc.ram:3000 flush zero:vga.vram:f000 body end footer section:ram delta:vga.vram:1000=\5\1x "                      \
	"compressed:pc.ram:1f000=zlib! body end footer "

static void test_precopy(void **state)
{
	(void)state;
	put_header();
	put_configuration();
	put_command(STREAM_SWITCHOVER_START, NULL, 0);
	put_memory();
	put_number(STREAM_BYTE_EOF, 1);
	assert_reads("header configuration:pc-q35-7.2 command:11 " MEMORY "eof ");
	put_number(STREAM_BYTE_DESCRIPTION, 1);
	put_number(10, 4);
	put_text("{\"a\": \"b\"}");
	assert_reads("header configuration:pc-q35-7.2 command:11 " MEMORY "eof description:a {\"a\": \"b\"}");
}

static void test_postcopy(void **state)
{
	(void)state;
	put_postcopy();
	assert_reads("header configuration:pc-q35-7.2 command:1 command:2 command:3 section:ram sizes:30000 block:pc.ram "
		     "block:vga.vram body end footer command:7 devicessection:ram page:pc.ram:5000 body end footer eof ");
}

/* Machine types of old. */
static void test_no_footers(void **state)
{
	(void)state;
	put_header();
	put_start();
	put_blocks();
	put_number(STREAM_RAM_END, 8);
	put_part(STREAM_SECTION_END);
	put_number(STREAM_RAM_END, 8);
	put_number(STREAM_BYTE_EOF, 1);
	assert_reads("header section:ram sizes:30000 block:pc.ram block:vga.vram body end section:ram body end eof ");
}

/* With post-copy a block of huge pages says so, and one without does not. */
static void test_huge_pages(void **state)
{
	const uint8_t advice[16] = {[5] = 0x20, [6] = 0x10, [14] = 0x10};
	(void)state;
	put_header();
	put_command(STREAM_POSTCOPY_ADVISE, advice, sizeof(advice));
	put_start();
	put_number(0x410000 | STREAM_RAM_SIZES, 8);
	put_name("huge");
	put_number(0x200000, 8);
	put_number(0x200000, 8);
	put_name("small");
	put_number(0x10000, 8);
	put_name("last");
	put_number(0x200000, 8);
	put_number(0x200000, 8);
	put_body_end();
	assert_damaged("it ends at byte");
	put_part(STREAM_SECTION_END);
	put_body_end();
	put_number(STREAM_BYTE_EOF, 1);
	assert_reads("header command:3 section:ram sizes:410000 block:huge:page=200000 block:small block:last:page=200000 body end footer "
		     "section:ram body end footer eof ");
}

static void put_subsection(const char *name)
{
	put_number(STREAM_BYTE_SUBSECTION, 1);
	put_name(name);
	put_number(1, 4);
}

static void test_configuration(void **state)
{
	(void)state;
	put_header();
	put_configuration();
	put_subsection("configuration/target-page-bits");
	put_number(12, 4);
	put_subsection("configuration/uuid");
	put_text("0123456789abcdef");
	put_subsection("configuration/capabilities");
	put_number(1, 4);
	put_name("x-ignore-shared");
	put_start();
	put_number(0x10000 | STREAM_RAM_SIZES, 8);
	put_name("ram");
	put_number(0x10000, 8);
	put_number(0x100000000, 8); /* where the guest has it */
	put_body_end();
	put_part(STREAM_SECTION_END);
	put_body_end();
	put_number(STREAM_BYTE_EOF, 1);
	assert_reads("header configuration:pc-q35-7.2 subsection:configuration/target-page-bits subsection:configuration/uuid "
		     "subsection:configuration/capabilities section:ram sizes:10000 block:ram body end footer section:ram body end footer eof ");
}

/* What is not known ends the reading, not the stream. */
static void test_rest(void **state)
{
	(void)state;
	put_header();
	put_memory();
	put_number(STREAM_SECTION_FULL, 1);
	put_text("devices");
	assert_reads("header " MEMORY "rest the devices' state follows");

	put_header();
	put_start();
	put_blocks();
	put_number(0x1000 | 0x400, 8);
	put_text("something new");
	assert_reads("header section:ram sizes:30000 block:pc.ram block:vga.vram rest a record of memory has flags that are not known");

	put_header();
	put_number(STREAM_SECTION_START, 1);
	put_number(3, 4);
	put_name("dirty-bitmap");
	put_number(0, 4);
	put_number(1, 4);
	assert_reads("header section:dirty-bitmap rest there are sections in parts that are not of memory");

	put_header();
	put_configuration();
	put_subsection("configuration/capabilities");
	put_number(1, 4);
	put_name("mapped-ram");
	assert_reads("header configuration:pc-q35-7.2 subsection:configuration/capabilities rest memory stands at fixed places of the file "
		     "(mapped-ram), which is no stream");

	put_header();
	put_configuration();
	put_subsection("configuration/new");
	assert_reads("header configuration:pc-q35-7.2 subsection:configuration/new rest the configuration has a part that is not known");
}

/* ---- damaged ones ---- */

static void test_cut_off(void **state)
{
	(void)state;
	put_header();
	put_configuration();
	put_memory();
	put_number(STREAM_BYTE_EOF, 1);
	const size_t whole = stream.size;
	for (size_t size = 0; size < whole; size += size < 200 || size > whole - 200 ? 1 : 97) {
		cleanup_error struct error *e = NULL;
		stream.size = size;
		assert_null(read_all(sizeof(stream.bytes), &e));
		assert_int_equal(e->code, ERROR_DATA_STREAM);
		assert_non_null(strstr(e->message, "cut off"));
	}
}

static void put_page_record(uint64_t word, const char *name)
{
	put_header();
	put_start();
	put_blocks();
	put_number(word, 8);
	if (name)
		put_name(name);
	put_page(1);
}

static void test_damaged(void **state)
{
	(void)state;
	put_header();
	stream.bytes[0] = 'X';
	assert_damaged("this is not a migration stream of QEMU");
	put_header();
	stream.bytes[7] = 2;
	assert_damaged("of version 2");
	put_header();
	put_number(0x55, 1);
	assert_damaged("at byte 8: neither a section nor a command begins with 55");
	put_header();
	put_part(STREAM_SECTION_PART);
	assert_damaged("a part of section 2, which has not begun");
	put_header();
	put_memory();
	put_part(STREAM_SECTION_PART);
	assert_damaged("which has not begun or is over");
	put_header();
	put_memory();
	put_start();
	assert_damaged("memory begins a second time");
	put_header();
	put_memory();
	put_number(STREAM_BYTE_EOF, 1);
	put_number(9, 1);
	assert_damaged("the stream has ended, and 09 follows");

	put_page_record(0x1000 | STREAM_RAM_PAGE | STREAM_RAM_SAME_BLOCK, NULL);
	assert_damaged("none came before");
	put_page_record(0x1000 | STREAM_RAM_PAGE, "other");
	assert_damaged("a block that was not named before");
	put_page_record(0x20000 | STREAM_RAM_PAGE, "pc.ram");
	assert_damaged("a page at 131072 of 'pc.ram', which has 131072 bytes");
	put_header();
	put_start();
	put_number(0x1000 | STREAM_RAM_PAGE, 8);
	assert_damaged("a page before the sizes of memory");
	put_page_record(0x30000 | STREAM_RAM_SIZES, "pc.ram");
	assert_damaged("the sizes of memory come a second time");
	put_page_record(0x1000 | STREAM_RAM_DELTA, "pc.ram");
	stream.bytes[stream.size - STREAM_PAGE_BYTES] = STREAM_DELTA_MARK + 1;
	assert_damaged("a delta of 515 bytes, marked 2");
	put_page_record(0x1000 | STREAM_RAM_COMPRESSED, "pc.ram");
	assert_damaged("a page compressed to 16909060 bytes");

	put_header();
	put_start();
	put_number(0x30000 | STREAM_RAM_SIZES, 8);
	put_name("pc.ram");
	put_number(0x31000, 8);
	assert_damaged("a block of 200704 bytes of 196608 to come");
	put_header();
	put_start();
	put_number(0x30000 | STREAM_RAM_SIZES, 8);
	put_name("pc.ram");
	put_number(0x10000, 8);
	put_name("pc.ram");
	put_number(0x10000, 8);
	assert_damaged("the block 'pc.ram' comes twice");
	put_header();
	put_start();
	put_number(0x30000 | STREAM_RAM_SIZES, 8);
	put_name("pc\x1bram");
	put_number(0x10000, 8);
	assert_damaged("a block of memory without a name");

	put_header();
	put_start();
	put_blocks();
	put_number(STREAM_RAM_END, 8);
	put_number(STREAM_FOOTER_MARK, 1);
	put_number(7, 4);
	assert_damaged("section 7 ends, and 2 had begun");
	put_header();
	put_command(STREAM_PACKAGED, "abc", 3);
	assert_damaged("a package is announced in 3 bytes");
	put_header();
	put_command(STREAM_POSTCOPY_ADVISE, "abc", 3);
	assert_damaged("post-copy is advised in 3 bytes");
}

/* ---- writing ---- */

/* What is written of each record, with all else as it was, is what was read; where records are left out (each `drop`th) what is
 * left says whose it is. */
static void rewrite(unsigned int drop, struct stream *ret)
{
	struct stream_reader *reader = stream_reader_new();
	struct stream_writer writer = {0};
	unsigned int records = 0;
	size_t at = 0;
	ret->size = 0;
	for (;;) {
		struct stream_item item;
		uint8_t head[STREAM_HEAD_MAX_BYTES];
		size_t head_size = 0;
		if (stream_reader_next(reader, stream.bytes + at, stream.size - at, &item, NULL) <= 0)
			break;
		at += item.size_bytes;
		const bool is_record = item.kind >= STREAM_ZERO && item.kind <= STREAM_COMPRESSED;
		if (is_record && drop > 0 && ++records % drop == 0)
			continue;
		if (item.kind == STREAM_PAGE)
			head_size = stream_write_page(&writer, head, item.block, item.offset);
		else if (item.kind == STREAM_DELTA)
			head_size = stream_write_delta(&writer, head, item.block, item.offset, item.data_bytes);
		else if (item.kind == STREAM_COMPRESSED)
			head_size = stream_write_compressed(&writer, head, item.block, item.offset, (uint32_t)item.data_bytes);
		else if (item.kind == STREAM_ZERO)
			head_size = stream_write_zero(&writer, head, item.block, item.offset, item.data[0]);
		const uint8_t *rest = is_record ? item.data : item.bytes;
		const size_t rest_size = item.kind == STREAM_ZERO ? 0 : is_record ? item.data_bytes : item.size_bytes;
		memcpy(ret->bytes + ret->size, head, head_size);
		memcpy(ret->bytes + ret->size + head_size, rest, rest_size);
		ret->size += head_size + rest_size;
	}
	stream_reader_free(reader);
}

static void test_written_again(void **state)
{
	(void)state;
	static struct stream again;
	put_header();
	put_configuration();
	put_memory();
	put_number(STREAM_BYTE_EOF, 1);
	rewrite(0, &again);
	assert_int_equal(again.size, stream.size);
	assert_memory_equal(again.bytes, stream.bytes, stream.size);

	rewrite(2, &again); /* pc.ram 1000, 3000, vga.vram delta */
	stream = again;
	assert_reads("header configuration:pc-q35-7.2 section:ram sizes:30000 block:pc.ram block:vga.vram body end footer section:ram "
		     "page:pc.ram:1000 zero:pc.ram:3000 flush body end footer section:ram delta:vga.vram:1000=\5\1x body end footer eof ");
}

/* ---- the devices' fields ---- */

static const char description[] =
	"{\"page_size\": 4096, \"devices\": [{\"name\": \"cpu\", \"instance_id\": 1, \"fields\": ["
	"{\"name\": \"regs\", \"type\": \"uint16\", \"size\": 2, \"array_len\": 2},"
	"{\"name\": \"level\", \"type\": \"int8\", \"size\": 1}, {\"name\": \"on\", \"type\": \"bool\", \"size\": 1},"
	"{\"name\": \"raw\", \"type\": \"timer\", \"size\": 3}, {\"name\": \"none\", \"type\": \"buffer\", \"size\": 0},"
	"{\"name\": \"pointer\", \"type\": \"nullptr\", \"size\": 1}, {\"name\": \"cap\", \"type\": \"capability\", \"size\": 4},"
	"{\"name\": \"inner\", \"type\": \"struct\", \"size\": 1, \"struct\": {\"fields\": ["
	"{\"name\": \"x\", \"type\": \"uint8\", \"size\": 1}]}}],"
	"\"subsections\": [{\"vmsd_name\": \"cpu/more\", \"version\": 1, \"fields\": [{\"name\": \"y\", \"type\": \"int32\", \"size\": 4}]}]}]}";

static void put_devices(void)
{
	stream.size = 0;
	put_number(STREAM_SECTION_FULL, 1);
	put_number(5, 4);
	put_name("cpu");
	put_number(1, 4);
	put_number(12, 4);
	put_number(0x00120034, 4);
	put_number(0xff, 1);
	put_number(1, 1);
	put_number(0x0a0b0c, 3);
	put_text("0");
	put_name("abc");
	put_number(7, 1);
	put_number(STREAM_BYTE_SUBSECTION, 1);
	put_name("cpu/more");
	put_number(1, 4);
	put_number(0xfffffffe, 4);
	put_number(STREAM_FOOTER_MARK, 1);
	put_number(5, 4);
	put_number(STREAM_BYTE_EOF, 1);
}

static void put_description(const char *text)
{
	put_number(STREAM_BYTE_DESCRIPTION, 1);
	put_number(strlen(text), 4);
	put_text(text);
}

static int decode(json_t **ret, struct error **e)
{
	cleanup_json json_t *described = NULL;
	size_t begins_at = 0;
	if (device_state_description(stream.bytes, stream.size, &described, &begins_at, e) < 0)
		return -1;
	return device_state_decode(stream.bytes, begins_at, 1000, described, ret, e);
}

static void assert_misfit(const char *words)
{
	cleanup_error struct error *e = NULL;
	cleanup_json json_t *fields = NULL;
	assert_int_equal(decode(&fields, &e), -1);
	assert_int_equal(e->code, ERROR_DATA_STREAM);
	if (!strstr(e->message, words))
		fail_msg("'%s' is not '%s'", e->message, words);
}

static void test_devices(void **state)
{
	(void)state;
	cleanup_json json_t *fields = NULL;
	put_devices();
	put_description(description);
	assert_int_equal(decode(&fields, NULL), 0);
	cleanup_free char *text = json_text(fields);
	assert_string_equal(text,
			    "{\"cpu (5)\":{\"regs\":[\"0x0012\",\"0x0034\"],\"level\":\"0xff (-1)\",\"on\":true,\"raw\":\"0a 0b 0c\","
			    "\"none\":\"\",\"pointer\":\"nullptr\",\"cap\":\"abc\",\"inner\":{\"x\":\"0x07\"},"
			    "\"cpu/more\":{\"y\":\"0xfffffffe (-2)\"}}}");
}

static void test_devices_misfit(void **state)
{
	(void)state;
	put_devices();
	stream.size--;
	put_description(description);
	assert_misfit("at byte 1055, in 'cpu': it has no end");
	put_devices();
	put_description("{\"devices\": []}");
	assert_misfit("in 'cpu': the description does not have it");
	put_devices();
	put_description("{\"devices\": [{\"name\": \"cpu\", \"instance_id\": 1, \"fields\": [{\"name\": \"a\", \"type\": \"b\", \"size\": 900}]}]}");
	assert_misfit("'a' has 900 bytes");
	put_devices();
	put_description("{\"devices\": [{\"name\": \"cpu\", \"instance_id\": 1, \"fields\": [{\"name\": \"a\", \"type\": \"b\", \"size\": 9}]}]}");
	assert_misfit("neither a section nor a command");
	put_devices();
	put_description("{\"devices\": [{\"name\": \"cpu\", \"instance_id\": 1, \"fields\": [{\"name\": \"a\", \"type\": \"b\", \"size\": 0, "
			"\"array_len\": 9000000}]}]}");
	assert_misfit("array_len");
	put_devices();
	put_description("{\"devices\": [{\"name\": \"cpu\", \"instance_id\": 1}]}");
	assert_misfit("the description of 'cpu'");
	put_devices();
	put_description("{\"devices\": [{\"name\": \"cpu\", \"instance_id\": 1, \"fields\": [{\"name\": \"a\", \"type\": \"struct\"}]}]}");
	assert_misfit("the description of 'cpu'");
	put_devices();
	put_description(description);
	stream.size -= 5;
	assert_misfit("cut off");
	put_devices();
	stream.size--;
	assert_misfit("cut off in the devices' state");
}

/* ---- the pages ---- */

static void page_of(uint8_t page[STREAM_PAGE_BYTES], uint8_t content)
{
	for (size_t i = 0; i < STREAM_PAGE_BYTES; i++)
		page[i] = (uint8_t)(content * (i / 64 + 1));
}

static void test_census(void **state)
{
	(void)state;
	/* 1 stands in the image, 2 comes twice, 1 too. */
	static const uint8_t contents[] = {0, 1, 2, 3, 2, 1, 4, 0};
	uint8_t page[STREAM_PAGE_BYTES];
	char path[] = "/tmp/ferry-test-XXXXXX";
	cleanup_close int fd = mkstemp(path);
	struct page_census *census = page_census_new();
	for (size_t i = 0; i < COUNT(contents); i++) {
		page_of(page, contents[i]);
		page_census_add(census, page);
	}
	page_of(page, 5);
	assert_int_equal(write(fd, page, sizeof(page)), sizeof(page));
	page_of(page, 1);
	assert_int_equal(write(fd, page, sizeof(page)), sizeof(page));
	page_of(page, 3); /* not at a whole page */
	assert_int_equal(write(fd, "x", 1), 1);
	assert_int_equal(write(fd, page, sizeof(page)), sizeof(page));
	assert_int_equal(page_census_search(census, path, NULL), 0);
	unlink(path);
	assert_int_equal(page_census_search(census, path, NULL), -1);
	for (size_t i = 0; i < COUNT(contents); i++) {
		page_of(page, contents[i]);
		page_census_compress(census, page);
	}
	const struct page_counts counts = page_census_counts(census);
	assert_int_equal(counts.pages, COUNT(contents));
	assert_int_equal(counts.zero, 2);
	assert_int_equal(counts.in_images, 2);
	assert_int_equal(counts.duplicates, 1);
	assert_int_equal(counts.others, 3);
	assert_in_range(counts.compressed_bytes, 100, STREAM_PAGE_BYTES);
	page_census_free(census);
}

/* So many contents that the table grows, each found again. */
static void test_census_grows(void **state)
{
	(void)state;
	struct page_census *census = page_census_new();
	for (int walk = 0; walk < 4; walk++)
		for (uint32_t i = 1; i <= 20000; i++) {
			uint8_t page[STREAM_PAGE_BYTES] = {0};
			memcpy(page + 100, &i, sizeof(i));
			if (walk < 2)
				page_census_add(census, page);
			else
				page_census_compress(census, page);
		}
	const struct page_counts counts = page_census_counts(census);
	assert_int_equal(counts.others, 20000);
	assert_int_equal(counts.duplicates, 20000);
	page_census_free(census);
}

static void test_analysis(void **state)
{
	(void)state;
	char path[] = "/tmp/ferry-test-XXXXXX";
	cleanup_close int fd = mkstemp(path);
	cleanup_json json_t *analysis = NULL;
	static struct stream devices;
	put_devices();
	put_description(description);
	devices = stream;
	put_header();
	put_configuration();
	put_memory();
	put(devices.bytes, devices.size);
	assert_int_equal(write(fd, stream.bytes, stream.size), (ssize_t)stream.size);
	assert_int_equal(stream_analyze(path, NULL, 0, &analysis, NULL), 0);
	unlink(path);
	assert_string_equal(json_string_value(json_object_get(analysis, "machine")), "pc-q35-7.2");
	cleanup_free char *records = json_text(json_object_get(analysis, "records"));
	assert_string_equal(records, "{\"zero\":2,\"page\":2,\"delta\":1,\"compressed\":1}");
	cleanup_free char *ram = json_text(json_object_get(json_object_get(analysis, "state"), "ram (2)"));
	assert_string_equal(ram, "{\"section sizes\":{\"pc.ram\":\"0x0000000000020000\",\"vga.vram\":\"0x0000000000010000\"}}");
	assert_non_null(json_object_get(json_object_get(analysis, "state"), "cpu (5)"));
	assert_int_equal(json_integer_value(json_object_get(analysis, "bytes")), stream.size);
	assert_int_equal(json_integer_value(json_object_get(analysis, "description_bytes")), strlen(description) + 5);
	assert_true(json_is_null(json_object_get(analysis, "unread")));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_precopy),
		cmocka_unit_test(test_postcopy),
		cmocka_unit_test(test_no_footers),
		cmocka_unit_test(test_huge_pages),
		cmocka_unit_test(test_configuration),
		cmocka_unit_test(test_rest),
		cmocka_unit_test(test_cut_off),
		cmocka_unit_test(test_damaged),
		cmocka_unit_test(test_written_again),
		cmocka_unit_test(test_devices),
		cmocka_unit_test(test_devices_misfit),
		cmocka_unit_test(test_census),
		cmocka_unit_test(test_census_grows),
		cmocka_unit_test(test_analysis),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
