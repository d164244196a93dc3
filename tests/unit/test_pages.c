/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the relay is for: a guest that is made up here is moved through both ends, in QEMU's own stream, and what comes out is
 * put into a second memory as QEMU would. The two must be equal, whatever was left out on the way. And deltas alone.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "qemu/delta.h"
#include "qemu/stream_reader.h"
#include "qemu/stream_writer.h"
#include "relay/pipe.h"

#include "fakes/made_pages.h"

#define RAM_ID 2

/* ---- a guest ---- */

#define BLOCKS 2
static const char *const block_names[BLOCKS] = {"pc.ram", "vga.vram"};
static const size_t block_pages[BLOCKS] = {600, 40};
#define MEMORY_PAGES 640

struct guest {
	uint8_t memory[MEMORY_PAGES][PAGE];
};

static uint8_t *page_of(struct guest *guest, size_t block, size_t page)
{
	return guest->memory[(block == 0 ? 0 : block_pages[0]) + page];
}

/* ---- the source's QEMU ---- */

struct writer {
	int fd;
	const char *last;
	uint8_t bytes[1 << 20];
	size_t size;
};

static void flush(struct writer *writer)
{
	for (size_t sent = 0; sent < writer->size;) {
		ssize_t n = send(writer->fd, writer->bytes + sent, writer->size - sent, MSG_NOSIGNAL);
		assert_true(n > 0);
		sent += (size_t)n;
	}
	writer->size = 0;
}

static void put(struct writer *writer, const void *data, size_t size)
{
	if (writer->size + size > sizeof(writer->bytes))
		flush(writer);
	memcpy(writer->bytes + writer->size, data, size);
	writer->size += size;
}

static void put_number(struct writer *writer, uint64_t value, size_t width)
{
	for (size_t i = width; i > 0; i--) {
		const uint8_t byte = (uint8_t)(value >> (8 * (i - 1)));
		put(writer, &byte, 1);
	}
}

static void put_name(struct writer *writer, const char *name)
{
	put_number(writer, strlen(name), 1);
	put(writer, name, strlen(name));
}

static void put_begin(struct writer *writer)
{
	put(writer, "QEVM", 4);
	put_number(writer, STREAM_VERSION, 4);
	put_number(writer, STREAM_BYTE_CONFIGURATION, 1);
	put_number(writer, 10, 4);
	put(writer, "pc-q35-9.2", 10);
	put_number(writer, STREAM_SECTION_START, 1);
	put_number(writer, RAM_ID, 4);
	put_name(writer, "ram");
	put_number(writer, 0, 4);
	put_number(writer, STREAM_RAM_VERSION, 4);
	put_number(writer, (uint64_t)MEMORY_PAGES * PAGE | STREAM_RAM_SIZES, 8);
	for (size_t i = 0; i < BLOCKS; i++) {
		put_name(writer, block_names[i]);
		put_number(writer, block_pages[i] * PAGE, 8);
	}
}

static void put_end_of_body(struct writer *writer)
{
	put_number(writer, STREAM_RAM_END, 8);
	put_number(writer, STREAM_FOOTER_MARK, 1);
	put_number(writer, RAM_ID, 4);
}

static void put_part(struct writer *writer, enum stream_section_kind kind)
{
	put_number(writer, kind, 1);
	put_number(writer, RAM_ID, 4);
}

static void put_page(struct writer *writer, struct guest *guest, size_t block, size_t page)
{
	static const uint8_t zero[PAGE];
	const uint8_t *content = page_of(guest, block, page);
	const bool same = writer->last == block_names[block], is_zero = memcmp(content, zero, PAGE) == 0;
	put_number(writer, page * PAGE | (is_zero ? STREAM_RAM_ZERO : STREAM_RAM_PAGE) | (same ? STREAM_RAM_SAME_BLOCK : 0), 8);
	if (!same)
		put_name(writer, block_names[block]);
	writer->last = block_names[block];
	put(writer, is_zero ? zero : content, is_zero ? 1 : PAGE);
}

static void put_command(struct writer *writer, enum stream_command command, size_t size)
{
	static const uint8_t sizes[16] = {[6] = 0x10, [14] = 0x10};
	put_number(writer, STREAM_BYTE_COMMAND, 1);
	put_number(writer, command, 2);
	put_number(writer, size, 2);
	put(writer, sizes, size);
}

/* ---- the destination's QEMU ---- */

struct loader {
	int fd;
	struct guest *guest;
	uint64_t pages, deltas, commands;
	size_t rest_bytes;
	uint8_t rest[256];
	char problem[256];
};

static size_t block_of(const char *name)
{
	return strcmp(name, block_names[0]) == 0 ? 0 : 1;
}

static bool load_item(struct loader *loader, const struct stream_item *item)
{
	uint8_t *page = item->block ? page_of(loader->guest, block_of(item->block->name), item->offset / PAGE) : NULL;
	switch (item->kind) {
	case STREAM_PAGE:
		memcpy(page, item->data, PAGE);
		loader->pages++;
		return true;
	case STREAM_ZERO:
		memset(page, item->data[0], PAGE);
		return true;
	case STREAM_DELTA:
		loader->deltas++;
		return delta_apply(page, item->data, item->data_bytes) == 0;
	case STREAM_COMMAND:
		loader->commands++;
		return true;
	default:
		return true;
	}
}

/* What stands in the window; behind the memory all goes to `rest`. */
static bool load(struct loader *loader, struct stream_reader *reader, const uint8_t *window, size_t *at, size_t end, bool *rest)
{
	struct stream_item item;
	cleanup_error struct error *why = NULL;
	int r;
	while (!*rest && (r = stream_reader_next(reader, window + *at, end - *at, &item, &why)) != 0) {
		if (r < 0 || !load_item(loader, &item)) {
			snprintf(loader->problem, sizeof(loader->problem), "%s", why ? why->message : "a delta that is none");
			return false;
		}
		*at += item.size_bytes;
		*rest = item.kind == STREAM_REST;
	}
	if (*rest && loader->rest_bytes + (end - *at) <= sizeof(loader->rest)) {
		memcpy(loader->rest + loader->rest_bytes, window + *at, end - *at);
		loader->rest_bytes += end - *at;
		*at = end;
	}
	return true;
}

static void *load_main(void *user)
{
	struct loader *loader = user;
	static uint8_t window[1 << 20];
	struct stream_reader *reader = stream_reader_new();
	size_t at = 0, end = 0;
	bool rest = false;
	for (ssize_t n; (n = recv(loader->fd, window + end, sizeof(window) - end, 0)) > 0;) {
		end += (size_t)n;
		if (!load(loader, reader, window, &at, end, &rest))
			break;
		memmove(window, window + at, end - at);
		end -= at;
		at = 0;
	}
	stream_reader_free(reader);
	shutdown(loader->fd, SHUT_RDWR);
	return NULL;
}

/* ---- a move ---- */

struct move {
	struct relay_pipe *pipes[2];
	struct writer writer;
	struct loader loader;
	pthread_t thread;
	struct guest source, destination;
};

static struct move *move_begin(struct page_supplier *supplier, bool ask, size_t copies_bytes)
{
	struct move *move = xcalloc(1, sizeof(*move));
	int qemus[2];
	for (int i = 0; i < 2; i++) {
		int fds[2];
		assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), 0);
		const struct relay_pipe_options options = {.qemu_fd = fds[1], .source = i == 0, .patience_ms = LONG_MS, .ask = ask,
							   .copies_bytes = copies_bytes, .supplier = supplier};
		move->pipes[i] = relay_pipe_new(&options, NULL);
		assert_non_null(move->pipes[i]);
		qemus[i] = fds[0];
	}
	for (int i = 0; i < 2; i++) {
		int fds[2];
		assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), 0);
		relay_pipe_add(move->pipes[0], relay_connection_new_plain(fds[0]));
		relay_pipe_add(move->pipes[1], relay_connection_new_plain(fds[1]));
	}
	memset(&move->destination, 0x5a, sizeof(move->destination)); /* what is there first is unknown, not zero */
	move->writer.fd = qemus[0];
	move->loader = (struct loader){.fd = qemus[1], .guest = &move->destination};
	assert_int_equal(pthread_create(&move->thread, NULL, load_main, &move->loader), 0);
	put_begin(&move->writer);
	put_end_of_body(&move->writer);
	return move;
}

static void put_all(struct move *move)
{
	put_part(&move->writer, STREAM_SECTION_PART);
	for (size_t block = 0; block < BLOCKS; block++)
		for (size_t page = 0; page < block_pages[block]; page++)
			put_page(&move->writer, &move->source, block, page);
	put_end_of_body(&move->writer);
}

/* The devices' state, and the end; both memories must be equal then. */
static struct page_sender_counts move_end(struct move *move)
{
	static const char devices[] = "\4\0\0\0\11\3cpu and so on, which nobody can read";
	struct page_sender_counts counts;
	put_part(&move->writer, STREAM_SECTION_END);
	put_end_of_body(&move->writer);
	put(&move->writer, devices, sizeof(devices));
	flush(&move->writer);
	shutdown(move->writer.fd, SHUT_WR);
	pthread_join(move->thread, NULL);
	assert_string_equal(move->loader.problem, "");
	assert_int_equal(relay_pipe_wait(move->pipes[0], LONG_MS, NULL), 0);
	assert_int_equal(relay_pipe_wait(move->pipes[1], LONG_MS, NULL), 0);
	assert_int_equal(move->loader.rest_bytes, sizeof(devices));
	assert_memory_equal(move->loader.rest, devices, sizeof(devices));
	assert_memory_equal(&move->source, &move->destination, sizeof(move->source));
	relay_pipe_counts(move->pipes[0], &counts);
	relay_pipe_free(move->pipes[0]);
	relay_pipe_free(move->pipes[1]);
	close(move->writer.fd);
	close(move->loader.fd);
	free(move);
	return counts;
}

static void fill_guest(struct guest *guest, uint64_t first)
{
	for (size_t i = 0; i < MEMORY_PAGES; i++)
		fill_page(guest->memory[i], first + i);
}

/* ---- moves ---- */

static void test_whole(void **state)
{
	(void)state;
	struct move *move = move_begin(NULL, false, 0);
	fill_guest(&move->source, 1000);
	put_all(move);
	const struct page_sender_counts counts = move_end(move);
	assert_int_equal(counts.whole, MEMORY_PAGES);
	assert_int_equal(counts.asked, 0);
}

static void test_zero_and_again(void **state)
{
	(void)state;
	struct move *move = move_begin(NULL, false, 0);
	for (size_t i = 0; i < MEMORY_PAGES; i++)
		if (i % 3)
			fill_page(move->source.memory[i], i % 7);
	put_all(move);
	const struct page_sender_counts counts = move_end(move);
	assert_int_equal(counts.zero, (MEMORY_PAGES + 2) / 3);
	assert_int_equal(counts.whole, 7);
	assert_int_equal(counts.again, MEMORY_PAGES - counts.zero - 7);
}

static void test_unchanged_and_delta(void **state)
{
	(void)state;
	struct move *move = move_begin(NULL, false, 64 << 20);
	fill_guest(&move->source, 1);
	put_all(move);
	for (size_t i = 0; i < MEMORY_PAGES; i += 4)
		move->source.memory[i][i % PAGE] ^= 1;
	put_all(move);
	const struct page_sender_counts counts = move_end(move);
	assert_int_equal(counts.whole, MEMORY_PAGES);
	assert_int_equal(counts.delta, MEMORY_PAGES / 4);
	/* The first one of the other block may be said again for its name's sake. */
	assert_in_range(counts.unchanged, MEMORY_PAGES * 3 / 4 - 4, MEMORY_PAGES * 3 / 4);
}

/* Once it may come to post-copy, QEMU must get every page. */
static void test_postcopy(void **state)
{
	(void)state;
	struct move *move = move_begin(NULL, false, 64 << 20);
	put_part(&move->writer, STREAM_SECTION_PART);
	put_end_of_body(&move->writer);
	fill_guest(&move->source, 1);
	put_all(move);
	put_command(&move->writer, STREAM_POSTCOPY_ADVISE, 16);
	for (size_t i = 0; i < MEMORY_PAGES; i += 4)
		move->source.memory[i][i % PAGE] ^= 1;
	put_all(move);
	flush(&move->writer);
	const struct page_sender_counts counts = move_end(move);
	assert_int_equal(counts.unchanged + counts.delta, 0);
	assert_int_equal(counts.whole + counts.again, 2 * MEMORY_PAGES);
}

static void test_images(void **state)
{
	(void)state;
	struct folder folder;
	folder_make(&folder);
	struct page_supply *supply = supply_of(&folder, 0);
	cleanup_free char *image = make_image(&folder, "image", 100, 300);
	page_supply_add_image(supply, image, false, "red");
	assert_true(page_supply_wait(supply, LONG_MS));
	for (int i = 0; i < 2; i++) {
		struct page_supplier *supplier = page_supplier_new(supply, i == 0 ? "red" : "blue");
		struct move *move = move_begin(supplier, true, 0);
		fill_guest(&move->source, 250);
		put_all(move);
		const struct page_sender_counts counts = move_end(move);
		assert_int_equal(counts.asked, MEMORY_PAGES);
		assert_int_equal(counts.images, i == 0 ? 150 : 0); /* nobody else learns what is in it */
		assert_int_equal(counts.whole, MEMORY_PAGES - counts.images);
		page_supplier_free(supplier);
	}
	page_supply_free(supply);
	folder_remove(&folder);
}

/* The image is written to after its index was made: what was to be found is sent. */
static void test_stale_image(void **state)
{
	(void)state;
	struct folder folder;
	folder_make(&folder);
	struct page_supply *supply = supply_of(&folder, 0);
	cleanup_free char *image = make_image(&folder, "image", 0, MEMORY_PAGES);
	page_supply_add_image(supply, image, false, "");
	assert_true(page_supply_wait(supply, LONG_MS));
	free(make_image(&folder, "image", 5000, MEMORY_PAGES / 2)); /* into the same file */
	struct page_supplier *supplier = page_supplier_new(supply, "");
	struct move *move = move_begin(supplier, true, 0);
	fill_guest(&move->source, 0);
	put_all(move);
	const struct page_sender_counts counts = move_end(move);
	assert_int_equal(counts.images, MEMORY_PAGES); /* what was written lies before them: they are still there */
	page_supplier_free(supplier);

	assert_int_equal(truncate(image, (off_t)((MEMORY_PAGES + MEMORY_PAGES / 2) * PAGE)), 0);
	supplier = page_supplier_new(supply, "");
	move = move_begin(supplier, true, 0);
	fill_guest(&move->source, 0);
	put_all(move);
	assert_int_equal(move_end(move).images, MEMORY_PAGES / 2);
	page_supplier_free(supplier);
	page_supply_free(supply);
	folder_remove(&folder);
}

/* A second guest of the same content, of the same owner and of another. */
static void test_siblings(void **state)
{
	(void)state;
	struct folder folder;
	folder_make(&folder);
	struct page_supply *supply = supply_of(&folder, 16 << 20);
	static const char *const owners[] = {"red", "red", "blue"};
	for (int i = 0; i < 3; i++) {
		struct page_supplier *supplier = page_supplier_new(supply, owners[i]);
		struct move *move = move_begin(supplier, true, 0);
		fill_guest(&move->source, 1);
		put_all(move);
		const struct page_sender_counts counts = move_end(move);
		assert_int_equal(counts.received, i == 1 ? MEMORY_PAGES : 0);
		assert_int_equal(counts.whole, i == 1 ? 0 : MEMORY_PAGES);
		page_supplier_free(supplier);
	}
	page_supply_free(supply);
	folder_remove(&folder);
}

/* A guest that does everything at once, over many passes. */
static void mix(uint64_t seed)
{
	struct folder folder;
	random_state = seed;
	folder_make(&folder);
	struct page_supply *supply = supply_of(&folder, 1 << 20);
	cleanup_free char *image = make_image(&folder, "image", 0, 200);
	page_supply_add_image(supply, image, false, NULL);
	if (seed % 2)
		assert_true(page_supply_wait(supply, LONG_MS));
	struct page_supplier *supplier = page_supplier_new(supply, "");
	struct move *move = move_begin(supplier, seed % 5 != 0, below(3) << 20);
	for (int pass = 0; pass < 12; pass++) {
		put_part(&move->writer, STREAM_SECTION_PART);
		for (size_t i = 0; i < MEMORY_PAGES; i++) {
			const size_t block = below(10) == 0, page = below(block_pages[block]);
			uint8_t *content = page_of(&move->source, block, page);
			switch (below(6)) {
			case 0:
				memset(content, 0, PAGE);
				break;
			case 1:
				fill_page(content, below(300));
				break;
			case 2:
				fill_page(content, next_random());
				break;
			case 3:
				content[below(PAGE)] = (uint8_t)below(256);
				break;
			case 4:
				memset(content + below(PAGE / 2), (int)below(256), below(PAGE / 2));
				break;
			default:
				break;
			}
			put_page(&move->writer, &move->source, block, page);
		}
		put_end_of_body(&move->writer);
	}
	put_all(move);
	const struct page_sender_counts counts = move_end(move);
	assert_true(counts.whole > 0 && counts.zero > 0 && counts.again > 0 && counts.unchanged > 0);
	page_supplier_free(supplier);
	page_supply_free(supply);
	folder_remove(&folder);
}

static void test_mix(void **state)
{
	(void)state;
	for (uint64_t seed = 1; seed <= 20; seed++)
		mix(seed);
}

/* ---- parts ---- */

static void check_delta(const uint8_t *old_page, const uint8_t *new_page)
{
	uint8_t delta[PAGE], page[PAGE];
	const int size = delta_encode(old_page, new_page, delta, sizeof(delta));
	if (size < 0)
		return;
	assert_true((size == 0) == (memcmp(old_page, new_page, PAGE) == 0));
	memcpy(page, old_page, PAGE);
	assert_int_equal(delta_apply(page, delta, (size_t)size), 0);
	assert_memory_equal(page, new_page, PAGE);
}

static void test_delta(void **state)
{
	(void)state;
	uint8_t old_page[PAGE], new_page[PAGE], delta[PAGE];
	random_state = 7;
	for (int i = 0; i < 3000; i++) {
		fill_page(old_page, below(3));
		memcpy(new_page, old_page, PAGE);
		for (uint64_t changes = below(40); changes > 0; changes--) {
			const size_t at = below(PAGE), size = below(PAGE - at) % (1 + below(200));
			memset(new_page + at, (int)below(256), size);
		}
		check_delta(old_page, new_page);
	}
	/* QEMU's documentation: 1 byte at the beginning, one at the end. */
	memset(old_page, 0, PAGE);
	memset(new_page, 0, PAGE);
	new_page[0] = 1;
	new_page[PAGE - 1] = 2;
	assert_int_equal(delta_encode(old_page, new_page, delta, sizeof(delta)), 7);
	assert_memory_equal(delta, "\x00\x01\x01\xfe\x1f\x01\x02", 7);
	assert_int_equal(delta_encode(old_page, new_page, delta, 6), -1);
	static const struct {
		const char *bytes;
		size_t size;
	} wrong[] = {{"\x00", 1}, {"\x00\x02x", 3}, {"\x80", 1}, {"\x80\x80\x01", 3}, {"\x00\x00", 2}, {"\x00\x01x\x00\x01x", 6},
		     {"\xff\x1f\x02xx", 5}, {"\x81\x20\x01x", 4}};
	for (size_t i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++)
		assert_int_equal(delta_apply(new_page, (const uint8_t *)wrong[i].bytes, wrong[i].size), -1);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_whole),
		cmocka_unit_test(test_zero_and_again),
		cmocka_unit_test(test_unchanged_and_delta),
		cmocka_unit_test(test_postcopy),
		cmocka_unit_test(test_images),
		cmocka_unit_test(test_stale_image),
		cmocka_unit_test(test_siblings),
		cmocka_unit_test(test_mix),
		cmocka_unit_test(test_delta),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
