/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the relay is for: a guest that is made up here is moved through both ends, in QEMU's own stream, and what comes out is
 * put into a second memory as QEMU would. The two must be equal, whatever was left out on the way. And the parts alone: deltas, indexes of
 * images, the store.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <fcntl.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/file.h"
#include "base/xalloc.h"
#include "qemu/delta.h"
#include "qemu/image_chain.h"
#include "qemu/stream_reader.h"
#include "qemu/stream_writer.h"
#include "relay/image_index.h"
#include "relay/page_store.h"
#include "relay/page_supply.h"
#include "relay/pipe.h"

#define LONG_MS 20000
#define PAGE STREAM_PAGE_BYTES
#define RAM_ID 2

/* ---- pages ---- */

static uint64_t random_state;

/* xorshift64 (Marsaglia, 2003): the same in each run. */
static uint64_t next_random(void)
{
	random_state ^= random_state << 13;
	random_state ^= random_state >> 7;
	random_state ^= random_state << 17;
	return random_state;
}

static uint64_t below(uint64_t limit)
{
	return next_random() % limit;
}

static void fill_page(uint8_t *page, uint64_t seed)
{
	uint64_t state = seed * 0x9e3779b97f4a7c15u + 1;
	for (size_t i = 0; i < PAGE; i += sizeof(state)) {
		state = state * 6364136223846793005u + 1442695040888963407u;
		memcpy(page + i, &state, sizeof(state));
	}
}

/* ---- folders and images ---- */

struct folder {
	char path[64];
};

static void folder_make(struct folder *folder)
{
	snprintf(folder->path, sizeof(folder->path), "/tmp/test-pages-XXXXXX");
	assert_non_null(mkdtemp(folder->path));
}

static void folder_remove(struct folder *folder)
{
	assert_int_equal(file_remove_tree(folder->path, NULL), 0);
}

/* Pages of the seeds from first on, with a hole of as many before them. The caller frees the path. */
static char *make_image(const struct folder *folder, const char *name, uint64_t first, size_t pages)
{
	char *path = xasprintf("%s/%s", folder->path, name);
	uint8_t page[PAGE];
	cleanup_close int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	assert_true(fd >= 0);
	for (size_t i = 0; i < pages; i++) {
		fill_page(page, first + i);
		assert_int_equal(pwrite(fd, page, PAGE, (off_t)((pages + i) * PAGE)), PAGE);
	}
	return path;
}

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

static struct page_supply *supply_of(const struct folder *folder, size_t received_bytes)
{
	cleanup_free char *indexes = xasprintf("%s/indexes", folder->path);
	const struct page_supply_options options = {.folder = indexes, .received_bytes = received_bytes, .index_bytes = 1 << 20};
	return page_supply_new(&options);
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

static void test_image_index(void **state)
{
	(void)state;
	struct folder folder;
	struct image_index *index;
	atomic_bool stop = false;
	uint8_t page[PAGE], found[PAGE];
	folder_make(&folder);
	struct page_digester *digester = page_digester_new();
	cleanup_free char *image = make_image(&folder, "image", 0, 3000), *path = xasprintf("%s/index", folder.path);
	assert_int_equal(image_index_make(image, path, &stop, NULL), 0);
	assert_int_equal(image_index_open(image, path, &index, NULL), 0);
	assert_int_equal(image_index_pages(index), 3000);
	for (uint64_t i = 0; i < 6000; i++) {
		fill_page(page, i);
		const struct page_digest digest = page_digest(digester, page);
		image_index_expect(index, &digest);
		assert_int_equal(image_index_find(index, digester, &digest, found), i < 3000);
		if (i < 3000)
			assert_memory_equal(found, page, PAGE);
	}
	image_index_free(index);

	/* One that is cut off, one of something else, none. */
	cleanup_error struct error *cut = NULL, *other = NULL, *none = NULL, *stopped = NULL;
	assert_int_equal(truncate(path, 1000), 0);
	assert_int_equal(image_index_open(image, path, &index, &cut), -1);
	assert_int_equal(cut->code, ERROR_INVALID_ARGUMENT);
	assert_int_equal(image_index_open(image, image, &index, &other), -1);
	assert_int_equal(other->code, ERROR_INVALID_ARGUMENT);
	unlink(path);
	assert_int_equal(image_index_open(image, path, &index, &none), -1);
	assert_int_equal(none->code, ERROR_NOT_FOUND);
	atomic_store(&stop, true);
	assert_int_equal(image_index_make(image, path, &stop, &stopped), -1);
	assert_int_equal(stopped->code, ERROR_CANCELLED);
	assert_int_equal(access(path, F_OK), -1);
	page_digester_free(digester);
	folder_remove(&folder);
}

/* The bound of disk space, and what is there already when the daemon starts anew. */
static void test_index_space(void **state)
{
	(void)state;
	struct folder folder;
	folder_make(&folder);
	cleanup_free char *indexes = xasprintf("%s/indexes", folder.path), *one = make_image(&folder, "one", 0, 500),
			  *two = make_image(&folder, "two", 500, 500);
	const struct page_supply_options options = {.folder = indexes, .index_bytes = 500 * 12 + 200};
	struct image_version version;
	assert_int_equal(image_version_read(one, &version, NULL), 0);
	cleanup_free char *first = xasprintf("%s/%lx-%lx.index", indexes, (unsigned long)version.device, (unsigned long)version.inode);
	struct page_supply *supply = page_supply_new(&options);
	page_supply_add_image(supply, one, false, NULL);
	assert_true(page_supply_wait(supply, LONG_MS));
	assert_int_equal(access(first, F_OK), 0);
	page_supply_add_image(supply, two, false, NULL);
	assert_true(page_supply_wait(supply, LONG_MS));
	assert_int_equal(access(first, F_OK), -1);
	page_supply_free(supply);
	folder_remove(&folder);
}

/* A qcow2 header that names a backing file, and says its format where that is given. The caller frees the path. */
static char *make_qcow2(const struct folder *folder, const char *name, const char *below, const char *format)
{
	uint8_t head[4096] = {'Q', 'F', 'I', 0xfb, [7] = 3, [14] = 0x08, [103] = 104};
	head[19] = (uint8_t)strlen(below);
	memcpy(head + 0x800, below, strlen(below));
	if (format) {
		memcpy(head + 104, "\xe2\x79\x2a\xca\0\0", 6);
		head[111] = (uint8_t)strlen(format);
		memcpy(head + 112, format, strlen(format));
	}
	char *path = xasprintf("%s/%s", folder->path, name);
	cleanup_close int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	assert_int_equal(write(fd, head, sizeof(head)), sizeof(head));
	return path;
}

static void test_backing(void **state)
{
	(void)state;
	struct folder folder;
	folder_make(&folder);
	cleanup_free char *base = make_image(&folder, "base", 0, 10), *raw = make_qcow2(&folder, "raw", "base", NULL),
			  *top = make_qcow2(&folder, "top", "raw", "raw"), *over = make_qcow2(&folder, "over", "raw", "qcow2"),
			  *url = make_qcow2(&folder, "url", "nbd://host/x", NULL), *damaged = make_qcow2(&folder, "damaged", "", NULL);
	struct image_backing backing;
	assert_int_equal(image_backing_read(top, &backing, NULL), 0);
	assert_string_equal(backing.path, raw);
	assert_false(backing.is_qcow2);
	free(backing.path);
	assert_int_equal(image_backing_read(url, &backing, NULL), 0);
	assert_null(backing.path);
	assert_int_equal(image_backing_read(damaged, &backing, NULL), -1);
	assert_int_equal(image_backing_read(base, &backing, NULL), -1);

	/* What a guest may have written into a raw disk leads nowhere; what is known to be qcow2 does, as far as that is known. */
	const struct {
		const char *path;
		bool is_qcow2;
		size_t images;
	} cases[] = {{raw, false, 1}, {raw, true, 2}, {top, true, 2}, {over, true, 3}};
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		struct page_supply *supply = supply_of(&folder, 0);
		page_supply_add_image(supply, cases[i].path, cases[i].is_qcow2, "");
		assert_true(page_supply_wait(supply, LONG_MS));
		cleanup_json json_t *view = page_supply_view(supply);
		assert_int_equal(json_array_size(view), cases[i].images);
		page_supply_free(supply);
	}
	folder_remove(&folder);
}

static void test_store(void **state)
{
	(void)state;
	struct page_digester *digester = page_digester_new();
	struct page_store *store = page_store_new(100 * PAGE);
	uint8_t page[PAGE], found[PAGE];
	for (uint64_t i = 0; i < 1000; i++) {
		fill_page(page, i);
		const struct page_digest digest = page_digest(digester, page);
		page_store_keep(store, i % 2, &digest, page);
		assert_true(page_store_find(store, i % 2, digester, &digest, found));
		assert_memory_equal(found, page, PAGE);
		assert_false(page_store_find(store, 1 - i % 2, digester, &digest, found));
	}
	assert_int_equal(page_store_used_bytes(store), 100 * PAGE);
	for (uint64_t i = 0; i < 1000; i++) {
		fill_page(page, i);
		const struct page_digest digest = page_digest(digester, page);
		assert_int_equal(page_store_find(store, i % 2, digester, &digest, found), i >= 900);
	}
	/* A host that says a wrong digest poisons nobody. */
	fill_page(page, 5000);
	const struct page_digest right = page_digest(digester, page);
	fill_page(page, 5001);
	page_store_keep(store, 0, &right, page);
	assert_false(page_store_find(store, 0, digester, &right, found));
	page_store_clear(store);
	assert_int_equal(page_store_used_bytes(store), 0);
	page_store_free(store);
	page_digester_free(digester);
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
		cmocka_unit_test(test_image_index),
		cmocka_unit_test(test_index_space),
		cmocka_unit_test(test_backing),
		cmocka_unit_test(test_store),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
