/* SPDX-License-Identifier: Apache-2.0 */
/* What a host can supply of guests' memory, part by part: indexes of images and what these stand on, the space that they take, and pages
 * that were received. Whole moves with them are test_pages.c's. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "qemu/image_chain.h"
#include "relay/image_index.h"
#include "relay/page_store.h"

#include "fakes/made_pages.h"

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
		cmocka_unit_test(test_image_index),
		cmocka_unit_test(test_index_space),
		cmocka_unit_test(test_backing),
		cmocka_unit_test(test_store),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
