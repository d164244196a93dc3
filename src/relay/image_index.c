/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The index of an image; see image_index.h.
 *
 * The file: a head (struct head), then for each page that is not zero the first 64 bits of its digest, in ascending order, then in the
 * same order its number in the image, 32 bits. In this machine's byte order, as it is a cache. Digests are spread evenly, so that where one must
 * stand can be told from its value to within a few places: a search costs one or two cache misses.
 */
#include "relay/image_index.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/xalloc.h"

#define MAGIC 0x31305849595252u /* "RRYIX01" and what byte order it is */
#define READ_BYTES (1024 * 1024)

struct head {
	uint64_t magic;
	uint64_t count;
	struct image_version version;
};

struct place {
	uint64_t prefix;
	uint32_t page;
};

struct image_index {
	int image_fd;
	void *map;
	size_t map_bytes;
	const struct head *head;
	const uint64_t *prefixes;
	const uint32_t *pages;
};

static uint64_t digest_prefix(const struct page_digest *digest)
{
	uint64_t prefix;
	memcpy(&prefix, digest->bytes, sizeof(prefix));
	return prefix;
}

/* ---- which state of which file ---- */

static int version_of(int fd, const char *path, struct image_version *ret, struct error **e)
{
	struct stat status;
	if (fstat(fd, &status) < 0)
		return error_set_errno(e, ERROR_SYSTEM, errno, "%s", path);
	if (!S_ISREG(status.st_mode) && !S_ISBLK(status.st_mode))
		return error_set(e, ERROR_INVALID_ARGUMENT, "%s is neither a file nor a block device", path);
	const off_t end = lseek(fd, 0, SEEK_END);
	if (end < 0)
		return error_set_errno(e, ERROR_SYSTEM, errno, "%s", path);
	*ret = (struct image_version){
		.device = S_ISBLK(status.st_mode) ? status.st_rdev : status.st_dev,
		.inode = status.st_ino,
		.size_bytes = (uint64_t)end,
		.changed_ns = status.st_mtim.tv_sec * INT64_C(1000000000) + status.st_mtim.tv_nsec,
	};
	return 0;
}

static int open_image(const char *path, struct image_version *ret_version, struct error **e)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
	if (fd < 0)
		return error_set_errno(e, errno == ENOENT ? ERROR_NOT_FOUND : ERROR_SYSTEM, errno, "cannot read the image %s", path);
	if (version_of(fd, path, ret_version, e) < 0) {
		close(fd);
		return -1;
	}
	return fd;
}

int image_version_read(const char *path, struct image_version *ret, struct error **e)
{
	cleanup_close int fd = open_image(path, ret, e);
	return fd < 0 ? -1 : 0;
}

int image_check_local(const char *path, struct error **e)
{
	static const unsigned int remote[] = {NFS_SUPER_MAGIC, CEPH_SUPER_MAGIC, CIFS_SUPER_MAGIC, SMB2_SUPER_MAGIC, V9FS_MAGIC};
	struct statfs status;
	if (statfs(path, &status) < 0)
		return error_set_errno(e, errno == ENOENT ? ERROR_NOT_FOUND : ERROR_SYSTEM, errno, "%s", path);
	for (size_t i = 0; i < sizeof(remote) / sizeof(remote[0]); i++)
		if ((unsigned int)status.f_type == remote[i])
			return error_set(e, ERROR_UNSUPPORTED, "%s is on a network's file system, from which nothing is supplied", path);
	return 0;
}

bool image_version_equal(const struct image_version *a, const struct image_version *b)
{
	return a->device == b->device && a->inode == b->inode && a->size_bytes == b->size_bytes && a->changed_ns == b->changed_ns;
}

/* ---- making ---- */

struct places {
	struct place *array;
	size_t count, room;
};

static void add_place(struct places *places, const struct page_digest *digest, uint64_t page)
{
	if (places->count == places->room) {
		places->room = places->room ? places->room * 2 : 4096;
		places->array = xreallocarray(places->array, places->room, sizeof(*places->array));
	}
	places->array[places->count++] = (struct place){.prefix = digest_prefix(digest), .page = (uint32_t)page};
}

/* Of `size` bytes from `at` on, which are whole pages. */
static void add_pages(struct places *places, struct page_digester *digester, const uint8_t *data, size_t size, uint64_t at)
{
	for (size_t i = 0; i + STREAM_PAGE_BYTES <= size && places->count < IMAGE_INDEX_PAGES_MAX; i += STREAM_PAGE_BYTES) {
		if (page_is_zero(data + i))
			continue;
		const struct page_digest digest = page_digest(digester, data + i);
		add_place(places, &digest, (at + i) / STREAM_PAGE_BYTES);
	}
}

/* Where data begins, from `at` on; the end where there is none. A page that is a hole in part begins before it. */
static uint64_t skip_hole(int fd, uint64_t at, uint64_t end)
{
	const off_t data = lseek(fd, (off_t)at, SEEK_DATA);
	if (data < 0)
		return errno == ENXIO ? end : at; /* a device knows of no holes */
	return (uint64_t)data / STREAM_PAGE_BYTES * STREAM_PAGE_BYTES;
}

static int read_places(int fd, const char *path, uint64_t end, const atomic_bool *stop, struct places *ret, struct error **e)
{
	cleanup_free uint8_t *buffer = xmalloc(READ_BYTES);
	struct page_digester *digester = page_digester_new();
	const uint64_t pages_end = (uint64_t)UINT32_MAX * STREAM_PAGE_BYTES;
	int r = 0;
	end = end > pages_end ? pages_end : end;
	for (uint64_t at = skip_hole(fd, 0, end); at < end && ret->count < IMAGE_INDEX_PAGES_MAX; at = skip_hole(fd, at, end)) {
		if (atomic_load_explicit(stop, memory_order_relaxed)) {
			r = error_set(e, ERROR_CANCELLED, "the index of %s was called off", path);
			break;
		}
		const ssize_t n = pread(fd, buffer, READ_BYTES, (off_t)at);
		if (n < 0) {
			r = error_set_errno(e, ERROR_SYSTEM, errno, "cannot read the image %s", path);
			break;
		}
		if (n < STREAM_PAGE_BYTES) /* the rest is no whole page, or it has become shorter */
			break;
		add_pages(ret, digester, buffer, (size_t)n, at);
		at += (uint64_t)n / STREAM_PAGE_BYTES * STREAM_PAGE_BYTES;
	}
	page_digester_free(digester);
	return r;
}

static int compare_places(const void *one, const void *other)
{
	const struct place *a = one, *b = other;
	return a->prefix != b->prefix ? (a->prefix < b->prefix ? -1 : 1) : (a->page > b->page) - (a->page < b->page);
}

/* Each content once. */
static void sort_places(struct places *places)
{
	size_t kept = 0;
	if (places->count > 0)
		qsort(places->array, places->count, sizeof(*places->array), compare_places);
	for (size_t i = 0; i < places->count; i++)
		if (i == 0 || places->array[i].prefix != places->array[kept - 1].prefix)
			places->array[kept++] = places->array[i];
	places->count = kept;
}

static bool write_places(FILE *file, const struct image_version *version, const struct places *places)
{
	const struct head head = {.magic = MAGIC, .count = places->count, .version = *version};
	bool good = fwrite(&head, sizeof(head), 1, file) == 1;
	for (size_t i = 0; good && i < places->count; i++)
		good = fwrite(&places->array[i].prefix, sizeof(places->array[i].prefix), 1, file) == 1;
	for (size_t i = 0; good && i < places->count; i++)
		good = fwrite(&places->array[i].page, sizeof(places->array[i].page), 1, file) == 1;
	return good && fflush(file) == 0;
}

static int write_index(const char *path, const struct image_version *version, const struct places *places, struct error **e)
{
	cleanup_free char *beside = xasprintf("%s.new", path);
	cleanup_fclose FILE *file = fopen(beside, "we");
	if (!file || !write_places(file, version, places) || rename(beside, path) < 0) {
		error_set_errno(e, ERROR_SYSTEM, errno, "cannot write the index %s", path);
		unlink(beside);
		return -1;
	}
	return 0; /* one that a crash cuts off is seen to be, and made anew */
}

int image_index_make(const char *image_path, const char *index_path, const atomic_bool *stop, struct error **e)
{
	struct image_version version;
	struct places places = {0};
	cleanup_close int fd = open_image(image_path, &version, e);
	if (fd < 0)
		return -1;
	int r = read_places(fd, image_path, version.size_bytes, stop, &places, e);
	if (r == 0) {
		sort_places(&places);
		r = write_index(index_path, &version, &places, e);
	}
	free(places.array);
	return r;
}

/* ---- using ---- */

static int map_index(struct image_index *index, const char *path, struct error **e)
{
	struct stat status;
	cleanup_close int fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return error_set_errno(e, errno == ENOENT ? ERROR_NOT_FOUND : ERROR_SYSTEM, errno, "cannot read the index %s", path);
	if (fstat(fd, &status) < 0)
		return error_set_errno(e, ERROR_SYSTEM, errno, "%s", path);
	if ((size_t)status.st_size < sizeof(struct head))
		return error_set(e, ERROR_INVALID_ARGUMENT, "the index %s is cut off", path);
	index->map_bytes = (size_t)status.st_size;
	index->map = mmap(NULL, index->map_bytes, PROT_READ, MAP_PRIVATE, fd, 0);
	if (index->map == MAP_FAILED)
		return error_set_errno(e, ERROR_SYSTEM, errno, "cannot map the index %s", path);
	index->head = index->map;
	if (index->head->magic != MAGIC || index->head->count > IMAGE_INDEX_PAGES_MAX ||
	    index->map_bytes != sizeof(struct head) + index->head->count * (sizeof(uint64_t) + sizeof(uint32_t)))
		return error_set(e, ERROR_INVALID_ARGUMENT, "%s is no index of this version of Ferry, or it is cut off", path);
	index->prefixes = (const uint64_t *)(index->head + 1);
	index->pages = (const uint32_t *)(index->prefixes + index->head->count);
	return 0;
}

int image_index_open(const char *image_path, const char *index_path, struct image_index **ret, struct error **e)
{
	struct image_version version;
	struct image_index *index = xcalloc(1, sizeof(*index));
	index->map = MAP_FAILED;
	index->image_fd = open_image(image_path, &version, e);
	if (index->image_fd < 0 || map_index(index, index_path, e) < 0) {
		image_index_free(index);
		return -1;
	}
	*ret = index;
	return 0;
}

void image_index_free(struct image_index *index)
{
	if (!index)
		return;
	if (index->map != MAP_FAILED)
		munmap(index->map, index->map_bytes);
	if (index->image_fd >= 0)
		close(index->image_fd);
	free(index);
}

const struct image_version *image_index_version(const struct image_index *index)
{
	return &index->head->version;
}

uint64_t image_index_pages(const struct image_index *index)
{
	return index->head->count;
}

/* Its place; count where there is none. From where it should be the search goes on in steps that double, then halves. */
static uint64_t find_place(const struct image_index *index, uint64_t prefix)
{
	const uint64_t count = index->head->count;
	if (count == 0)
		return 0;
	uint64_t low = (uint64_t)(((unsigned __int128)prefix * count) >> 64), high = low + 1, step = 4;
	while (low > 0 && index->prefixes[low] > prefix) {
		high = low;
		low = low > step ? low - step : 0;
		step *= 2;
	}
	while (high < count && index->prefixes[high] <= prefix) {
		low = high;
		high = high + step < count ? high + step : count;
		step *= 2;
	}
	while (high - low > 1) { /* what is sought, if it is there, is at low or behind it and before high */
		const uint64_t middle = low + (high - low) / 2;
		if (index->prefixes[middle] <= prefix)
			low = middle;
		else
			high = middle;
	}
	return index->prefixes[low] == prefix ? low : count;
}

bool image_index_find(const struct image_index *index, struct page_digester *digester, const struct page_digest *digest,
		      uint8_t ret_page[STREAM_PAGE_BYTES])
{
	const uint64_t place = find_place(index, digest_prefix(digest));
	if (place == index->head->count)
		return false;
	const off_t at = (off_t)index->pages[place] * STREAM_PAGE_BYTES;
	if (pread(index->image_fd, ret_page, STREAM_PAGE_BYTES, at) != STREAM_PAGE_BYTES)
		return false;
	const struct page_digest found = page_digest(digester, ret_page);
	return memcmp(&found, digest, sizeof(found)) == 0;
}

void image_index_expect(const struct image_index *index, const struct page_digest *digest)
{
	const uint64_t place = find_place(index, digest_prefix(digest));
	if (place < index->head->count)
		(void)posix_fadvise(index->image_fd, (off_t)index->pages[place] * STREAM_PAGE_BYTES, STREAM_PAGE_BYTES, POSIX_FADV_WILLNEED);
}
