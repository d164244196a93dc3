/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a host can supply; see page_supply.h.
 *
 * Images are in a list that only grows, and suppliers look at those that were in it when they last looked. An index is replaced by a
 * new one as a whole; whoever uses the old one keeps it until it is done with it.
 */
#include "relay/page_supply.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/file.h"
#include "base/log.h"
#include "base/xalloc.h"
#include "qemu/image_chain.h"
#include "relay/image_index.h"
#include "relay/page_store.h"

#define IMAGES_MAX 4096
#define OWNERS_MAX 65536
#define LOWEST_PRIORITY 19
/* A disk that a guest writes to is another one each time: it is not worth an index more often than so. */
#define AGAIN_MS (10 * 60 * 1000)

/* An index and how many hold it. */
struct shared_index {
	atomic_uint references;
	struct image_index *index;
};

struct image {
	char *path;
	uint32_t *owners;
	size_t owner_count;
	bool is_public, is_qcow2;
	bool due, being_made;
	int64_t made_ms; /* 0: never */
	struct error *problem; /* of the last attempt; NULL: it was good */
	struct shared_index *shared; /* NULL: there is none */
};

struct page_supply {
	char *folder;
	uint64_t index_bytes;
	struct page_store *store;
	pthread_t maker;
	atomic_bool stop;
	pthread_mutex_t mutex; /* all below */
	pthread_cond_t changed;
	char **owners; /* owner number N is at N */
	size_t owner_count;
	struct image *images[IMAGES_MAX];
	size_t image_count;
	uint64_t generation; /* of indexes */
};

struct page_supplier {
	struct page_supply *supply;
	struct page_digester *digester;
	uint32_t owner;
	uint64_t generation;
	struct shared_index **indexes;
	size_t index_count;
};

/* ---- indexes that are shared ---- */

static struct shared_index *share(struct image_index *index)
{
	struct shared_index *shared = xcalloc(1, sizeof(*shared));
	shared->index = index;
	atomic_init(&shared->references, 1);
	return shared;
}

static void let_go(struct shared_index *shared)
{
	if (!shared || atomic_fetch_sub(&shared->references, 1) > 1)
		return;
	image_index_free(shared->index);
	free(shared);
}

/* ---- owners and images; the mutex is held ---- */

static uint32_t owner_number(struct page_supply *supply, const char *owner)
{
	for (size_t i = 0; i < supply->owner_count; i++)
		if (strcmp(supply->owners[i], owner) == 0)
			return (uint32_t)i;
	if (supply->owner_count == OWNERS_MAX)
		return UINT32_MAX; /* whose nothing is */
	supply->owners = xreallocarray(supply->owners, supply->owner_count + 1, sizeof(*supply->owners));
	supply->owners[supply->owner_count] = xstrdup(owner);
	return (uint32_t)supply->owner_count++;
}

static bool image_serves(const struct image *image, uint32_t owner)
{
	for (size_t i = 0; i < image->owner_count; i++)
		if (image->owners[i] == owner)
			return true;
	return image->is_public;
}

static struct image *image_of(struct page_supply *supply, const char *path)
{
	for (size_t i = 0; i < supply->image_count; i++)
		if (strcmp(supply->images[i]->path, path) == 0)
			return supply->images[i];
	if (supply->image_count == IMAGES_MAX)
		return NULL;
	struct image *image = supply->images[supply->image_count++] = xcalloc(1, sizeof(*image));
	image->path = xstrdup(path);
	return image;
}

static void serve(struct page_supply *supply, struct image *image, const char *owner)
{
	if (!owner) {
		supply->generation += !image->is_public;
		image->is_public = true;
		return;
	}
	const uint32_t number = owner_number(supply, owner);
	if (image_serves(image, number) || number == UINT32_MAX)
		return;
	image->owners = xreallocarray(image->owners, image->owner_count + 1, sizeof(*image->owners));
	image->owners[image->owner_count++] = number;
	supply->generation++;
}

static bool is_due(const struct image *image)
{
	return image->made_ms == 0 || clock_monotonic_ms() - image->made_ms > AGAIN_MS;
}

void page_supply_add_image(struct page_supply *supply, const char *path, bool is_qcow2, const char *owner)
{
	LOCK_SCOPE(&supply->mutex);
	struct image *image = image_of(supply, path);
	if (!image)
		return;
	serve(supply, image, owner);
	image->due |= is_due(image) || (is_qcow2 && !image->is_qcow2);
	image->is_qcow2 |= is_qcow2;
	pthread_cond_broadcast(&supply->changed);
}

/* ---- making indexes ---- */

/* By what a file is, not by what it is called: there may be several ways to it. The caller frees it. */
static char *index_path(const struct page_supply *supply, const struct image_version *version)
{
	return xasprintf("%s/%" PRIx64 "-%" PRIx64 ".index", supply->folder, version->device, version->inode);
}

static int open_fresh(const char *image_path, const char *path, const struct image_version *version, struct image_index **ret,
		      struct error **e)
{
	struct image_index *index = NULL;
	if (image_index_open(image_path, path, &index, e) < 0)
		return -1;
	if (!image_version_equal(image_index_version(index), version)) {
		image_index_free(index);
		return error_set(e, ERROR_NOT_FOUND, "the image has changed");
	}
	*ret = index;
	return 0;
}

/* An index of the image as it is now: the one that is there, or a new one. */
static int provide_index(struct page_supply *supply, const char *image_path, struct image_index **ret, struct error **e)
{
	struct image_version version;
	if (image_check_local(image_path, e) < 0 || image_version_read(image_path, &version, e) < 0)
		return -1;
	cleanup_free char *path = index_path(supply, &version);
	if (open_fresh(image_path, path, &version, ret, NULL) == 0) {
		(void)utimensat(AT_FDCWD, path, NULL, 0); /* it is of use */
		return 0;
	}
	if (file_make_folders(supply->folder, 0700, e) < 0 || image_index_make(image_path, path, &supply->stop, e) < 0)
		return -1;
	return image_index_open(image_path, path, ret, e);
}

struct old_index {
	char *path;
	uint64_t bytes;
	struct timespec used;
};

static int compare_used(const void *one, const void *other)
{
	const struct timespec *a = &((const struct old_index *)one)->used, *b = &((const struct old_index *)other)->used;
	return a->tv_sec != b->tv_sec ? (a->tv_sec < b->tv_sec ? -1 : 1) : (a->tv_nsec > b->tv_nsec) - (a->tv_nsec < b->tv_nsec);
}

/* The array and what is in it are the caller's. */
static size_t list_indexes(const char *folder, struct old_index **ret)
{
	size_t count = 0;
	DIR *dir = opendir(folder);
	*ret = NULL;
	for (struct dirent *entry; dir && (entry = readdir(dir));) {
		struct stat status;
		const char *end = strrchr(entry->d_name, '.');
		if (!end || strcmp(end, ".index") != 0 || fstatat(dirfd(dir), entry->d_name, &status, 0) < 0)
			continue;
		*ret = xreallocarray(*ret, count + 1, sizeof(**ret));
		(*ret)[count++] = (struct old_index){xasprintf("%s/%s", folder, entry->d_name), (uint64_t)status.st_size, status.st_mtim};
	}
	if (dir)
		closedir(dir);
	return count;
}

/* What is in use stays mapped although its name is gone. */
static void keep_space_bounded(const struct page_supply *supply)
{
	struct old_index *indexes;
	const size_t count = list_indexes(supply->folder, &indexes);
	uint64_t bytes = 0;
	for (size_t i = 0; i < count; i++)
		bytes += indexes[i].bytes;
	if (count > 0)
		qsort(indexes, count, sizeof(*indexes), compare_used);
	for (size_t i = 0; i < count; i++) {
		if (bytes > supply->index_bytes && unlink(indexes[i].path) == 0)
			bytes -= indexes[i].bytes;
		free(indexes[i].path);
	}
	free(indexes);
}

static struct image *next_due(struct page_supply *supply)
{
	for (size_t i = 0; i < supply->image_count; i++)
		if (supply->images[i]->due)
			return supply->images[i];
	return NULL;
}

/* What an image stands on serves whom it serves. */
static void add_below(struct page_supply *supply, const struct image *image, const struct image_backing *backing)
{
	struct image *below = image_of(supply, backing->path);
	if (!below)
		return;
	below->is_qcow2 |= backing->is_qcow2;
	below->is_public |= image->is_public;
	for (size_t i = 0; i < image->owner_count; i++)
		serve(supply, below, supply->owners[image->owners[i]]);
	below->due |= is_due(below);
}

/* The mutex is held, and given back meanwhile. */
static void make_index(struct page_supply *supply, struct image *image)
{
	struct image_index *index = NULL;
	cleanup_error struct error *why = NULL;
	struct image_backing below = {0};
	const bool is_qcow2 = image->is_qcow2;
	image->due = false;
	image->being_made = true;
	pthread_mutex_unlock(&supply->mutex);
	if (provide_index(supply, image->path, &index, &why) == 0) {
		keep_space_bounded(supply);
		if (is_qcow2 && image_backing_read(image->path, &below, &why) < 0)
			log_failure(LOG_LEVEL_WARNING, "what an image stands on supplies no pages", why);
	} else if (why->code != ERROR_CANCELLED) {
		log_failure(why->code == ERROR_UNSUPPORTED ? LOG_LEVEL_INFO : LOG_LEVEL_WARNING, "an image supplies no pages", why);
	}
	pthread_mutex_lock(&supply->mutex);
	image->being_made = false;
	image->made_ms = clock_monotonic_ms();
	error_free(image->problem);
	image->problem = take_ptr(why);
	if (index) {
		let_go(image->shared);
		image->shared = share(index);
		supply->generation++;
	}
	if (below.path)
		add_below(supply, image, &below);
	free(below.path);
	pthread_cond_broadcast(&supply->changed);
}

static void *make_main(void *user)
{
	struct page_supply *supply = user;
	(void)setpriority(PRIO_PROCESS, (id_t)syscall(SYS_gettid), LOWEST_PRIORITY); /* of this thread alone */
	pthread_mutex_lock(&supply->mutex);
	while (!atomic_load(&supply->stop)) {
		struct image *image = next_due(supply);
		if (image)
			make_index(supply, image);
		else
			pthread_cond_wait(&supply->changed, &supply->mutex);
	}
	pthread_mutex_unlock(&supply->mutex);
	return NULL;
}

static json_t *view_image(const struct page_supply *supply, const struct image *image)
{
	json_t *owners = json_array();
	for (size_t i = 0; i < image->owner_count; i++)
		json_array_append_new(owners, json_string(supply->owners[image->owners[i]]));
	const char *state = image->due || image->being_made ? "indexing" : image->shared ? "ready" : "failed";
	json_t *view = json_pack("{s:s, s:s, s:b, s:o, s:I}", "path", image->path, "state", state, "public", (int)image->is_public, "owners",
				 owners, "pages", (json_int_t)(image->shared ? image_index_pages(image->shared->index) : 0));
	json_object_set_new(view, "problem",
			    image->problem ? json_pack("{s:s, s:s}", "code", error_code_name(image->problem->code), "message",
						       image->problem->message)
					   : json_null());
	return view;
}

json_t *page_supply_view(struct page_supply *supply)
{
	json_t *views = json_array();
	LOCK_SCOPE(&supply->mutex);
	for (size_t i = 0; i < supply->image_count; i++)
		json_array_append_new(views, view_image(supply, supply->images[i]));
	return views;
}

bool page_supply_wait(struct page_supply *supply, int64_t timeout_ms)
{
	const int64_t until_us = clock_monotonic_us() + timeout_ms * 1000;
	LOCK_SCOPE(&supply->mutex);
	for (;;) {
		bool busy = next_due(supply) != NULL;
		for (size_t i = 0; i < supply->image_count; i++)
			busy |= supply->images[i]->being_made;
		if (!busy)
			return true;
		if (!cond_wait_until(&supply->changed, &supply->mutex, until_us))
			return false;
	}
}

struct page_supply *page_supply_new(const struct page_supply_options *options)
{
	struct page_supply *supply = xcalloc(1, sizeof(*supply));
	supply->folder = xstrdup(options->folder);
	supply->index_bytes = options->index_bytes;
	supply->store = page_store_new(options->received_bytes);
	supply->generation = 1;
	pthread_mutex_init(&supply->mutex, NULL);
	cond_init(&supply->changed);
	if (pthread_create(&supply->maker, NULL, make_main, supply) != 0)
		abort(); /* no memory for a stack */
	return supply;
}

void page_supply_free(struct page_supply *supply)
{
	if (!supply)
		return;
	pthread_mutex_lock(&supply->mutex);
	atomic_store(&supply->stop, true);
	pthread_cond_broadcast(&supply->changed);
	pthread_mutex_unlock(&supply->mutex);
	pthread_join(supply->maker, NULL);
	for (size_t i = 0; i < supply->image_count; i++) {
		let_go(supply->images[i]->shared);
		error_free(supply->images[i]->problem);
		free(supply->images[i]->owners);
		free(supply->images[i]->path);
		free(supply->images[i]);
	}
	for (size_t i = 0; i < supply->owner_count; i++)
		free(supply->owners[i]);
	free(supply->owners);
	page_store_free(supply->store);
	free(supply->folder);
	pthread_cond_destroy(&supply->changed);
	pthread_mutex_destroy(&supply->mutex);
	free(supply);
}

/* ---- suppliers ---- */

struct page_supplier *page_supplier_new(struct page_supply *supply, const char *owner)
{
	struct page_supplier *supplier = xcalloc(1, sizeof(*supplier));
	supplier->supply = supply;
	supplier->digester = page_digester_new();
	LOCK_SCOPE(&supply->mutex);
	supplier->owner = owner_number(supply, owner);
	return supplier;
}

static void let_all_go(struct page_supplier *supplier)
{
	for (size_t i = 0; i < supplier->index_count; i++)
		let_go(supplier->indexes[i]);
	supplier->index_count = 0;
}

void page_supplier_free(struct page_supplier *supplier)
{
	if (!supplier)
		return;
	let_all_go(supplier);
	free(supplier->indexes);
	page_digester_free(supplier->digester);
	free(supplier);
}

/* The indexes that there are now. */
static void look_again(struct page_supplier *supplier)
{
	struct page_supply *supply = supplier->supply;
	LOCK_SCOPE(&supply->mutex);
	if (supplier->generation == supply->generation)
		return;
	supplier->generation = supply->generation;
	let_all_go(supplier);
	supplier->indexes = xreallocarray(supplier->indexes, supply->image_count + 1, sizeof(struct shared_index *));
	for (size_t i = 0; i < supply->image_count; i++) {
		struct image *image = supply->images[i];
		if (!image->shared || !image_serves(image, supplier->owner))
			continue;
		atomic_fetch_add(&image->shared->references, 1);
		supplier->indexes[supplier->index_count++] = image->shared;
	}
}

enum page_origin page_supplier_find(struct page_supplier *supplier, const struct page_digest *digest, uint8_t ret_page[STREAM_PAGE_BYTES])
{
	for (size_t i = 0; i < supplier->index_count; i++)
		if (image_index_find(supplier->indexes[i]->index, supplier->digester, digest, ret_page))
			return PAGE_IN_IMAGE;
	return page_store_find(supplier->supply->store, supplier->owner, supplier->digester, digest, ret_page) ? PAGE_RECEIVED : PAGE_NOWHERE;
}

void page_supplier_expect(struct page_supplier *supplier, const struct page_digest *digests, size_t count)
{
	look_again(supplier);
	for (size_t i = 0; i < supplier->index_count; i++)
		for (size_t j = 0; j < count; j++)
			image_index_expect(supplier->indexes[i]->index, &digests[j]);
}

void page_supplier_keep(struct page_supplier *supplier, const struct page_digest *digest, const uint8_t page[STREAM_PAGE_BYTES])
{
	page_store_keep(supplier->supply->store, supplier->owner, digest, page);
}
