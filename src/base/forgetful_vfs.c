/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Files that forget; see forgetful_vfs.h. A file that forgets is a disk's write-back cache: sectors that were written and not
 * synced, over the real file. The real file's bytes count up to `solid` only: beyond it the file was cut since the last sync,
 * and what is there is no longer part of it.
 */
#include "base/forgetful_vfs.h"

#include <pthread.h>
#include <sqlite3.h>
#include <stdlib.h>
#include <string.h>

#include "base/fault.h"
#include "base/log.h"
#include "base/xalloc.h"

#define SECTOR_BYTES 512
#define FORGETFUL_NAME "forgetful"

struct sector {
	sqlite3_int64 number;
	bool lost; /* a sync of it failed: it is read, and not written any more */
	unsigned char bytes[SECTOR_BYTES];
};

/* One open file; SQLite allocates szOsFile bytes, the real one stands behind ours. */
struct forgetful_file {
	sqlite3_file base;
	sqlite3_file *real;
	bool faults;	/* it belongs to a database, not to a sort */
	bool forgets;
	uint64_t chance; /* 0: nothing is written early */
	sqlite3_int64 size, solid;
	struct sector *sectors; /* by number */
	size_t sector_count, sector_room;
};

static sqlite3_vfs *system_vfs;
static sqlite3_vfs own_vfs;
static unsigned int forgetting; /* open files that forget; atomic */

static struct forgetful_file *file_of(sqlite3_file *base)
{
	return (struct forgetful_file *)(void *)base;
}

/* ---- the cache ---- */

/* Where the sector is, or would be. */
static size_t sector_position(const struct forgetful_file *file, sqlite3_int64 number)
{
	size_t low = 0, high = file->sector_count;
	while (low < high) {
		size_t middle = (low + high) / 2;
		if (file->sectors[middle].number < number)
			low = middle + 1;
		else
			high = middle;
	}
	return low;
}

/* Bytes of the real file; zeros where it has none. */
static int read_solid(struct forgetful_file *file, void *to, sqlite3_int64 from, int length)
{
	memset(to, 0, (size_t)length);
	if (from >= file->solid)
		return SQLITE_OK;
	int solid = from + length > file->solid ? (int)(file->solid - from) : length;
	int status = file->real->pMethods->xRead(file->real, to, solid, from);
	return status == SQLITE_IOERR_SHORT_READ ? SQLITE_OK : status;
}

static int sector_get(struct forgetful_file *file, sqlite3_int64 number, struct sector **ret)
{
	size_t at = sector_position(file, number);
	if (at < file->sector_count && file->sectors[at].number == number) {
		*ret = &file->sectors[at];
		return SQLITE_OK;
	}
	struct sector sector = {.number = number};
	int status = read_solid(file, sector.bytes, number * SECTOR_BYTES, SECTOR_BYTES);
	if (status != SQLITE_OK)
		return status;
	if (file->sector_count == file->sector_room) {
		file->sector_room = file->sector_room ? file->sector_room * 2 : 64;
		file->sectors = xreallocarray(file->sectors, file->sector_room, sizeof(*file->sectors));
	}
	memmove(&file->sectors[at + 1], &file->sectors[at], (file->sector_count - at) * sizeof(*file->sectors));
	file->sector_count++;
	file->sectors[at] = sector;
	*ret = &file->sectors[at];
	return SQLITE_OK;
}

static bool coin(struct forgetful_file *file)
{
	file->chance = file->chance * 6364136223846793005u + 1442695040888963407u;
	return (file->chance >> 40) & 1;
}

static int sector_write(struct forgetful_file *file, const struct sector *sector)
{
	sqlite3_int64 from = sector->number * SECTOR_BYTES, left = file->size - from;
	if (left <= 0)
		return SQLITE_OK;
	return file->real->pMethods->xWrite(file->real, sector->bytes, left < SECTOR_BYTES ? (int)left : SECTOR_BYTES, from);
}

static int cache_write(struct forgetful_file *file, const unsigned char *from, int length, sqlite3_int64 offset)
{
	if (offset + length > file->size)
		file->size = offset + length;
	while (length > 0) {
		struct sector *sector;
		int start = (int)(offset % SECTOR_BYTES), part = SECTOR_BYTES - start < length ? SECTOR_BYTES - start : length;
		int status = sector_get(file, offset / SECTOR_BYTES, &sector);
		if (status != SQLITE_OK)
			return status;
		memcpy(sector->bytes + start, from, (size_t)part);
		sector->lost = false;
		if (file->chance && coin(file) && (status = sector_write(file, sector)) != SQLITE_OK)
			return status;
		from += part;
		offset += part;
		length -= part;
	}
	return SQLITE_OK;
}

static int cache_read(struct forgetful_file *file, unsigned char *to, int length, sqlite3_int64 offset)
{
	int status = read_solid(file, to, offset, length);
	if (status != SQLITE_OK)
		return status;
	for (size_t i = sector_position(file, offset / SECTOR_BYTES); i < file->sector_count; i++) {
		const struct sector *sector = &file->sectors[i];
		sqlite3_int64 begin = sector->number * SECTOR_BYTES, end = begin + SECTOR_BYTES;
		if (begin >= offset + length)
			break;
		sqlite3_int64 first = begin > offset ? begin : offset, last = end < offset + length ? end : offset + length;
		memcpy(to + (first - offset), sector->bytes + (first - begin), (size_t)(last - first));
	}
	if (offset + length <= file->size)
		return SQLITE_OK;
	sqlite3_int64 have = file->size > offset ? file->size - offset : 0;
	memset(to + have, 0, (size_t)(length - have));
	return SQLITE_IOERR_SHORT_READ;
}

static void cache_cut(struct forgetful_file *file, sqlite3_int64 size)
{
	size_t keep = sector_position(file, (size + SECTOR_BYTES - 1) / SECTOR_BYTES);
	file->sector_count = keep;
	if (keep > 0 && size % SECTOR_BYTES && file->sectors[keep - 1].number == size / SECTOR_BYTES)
		memset(file->sectors[keep - 1].bytes + size % SECTOR_BYTES, 0, (size_t)(SECTOR_BYTES - size % SECTOR_BYTES));
	if (size < file->solid)
		file->solid = size;
	file->size = size;
}

/* All that was not lost goes to the real file. */
static int cache_flush(struct forgetful_file *file)
{
	size_t kept = 0;
	int status = file->real->pMethods->xTruncate(file->real, file->solid);
	for (size_t i = 0; i < file->sector_count; i++) {
		struct sector *sector = &file->sectors[i];
		if (status == SQLITE_OK && !sector->lost)
			status = sector_write(file, sector);
		if (status != SQLITE_OK || sector->lost)
			file->sectors[kept++] = *sector;
	}
	file->sector_count = kept;
	/* A file that has grown by sectors which were lost is as long as it is: only its content is not there. */
	if (status == SQLITE_OK)
		status = file->real->pMethods->xTruncate(file->real, file->size);
	if (status == SQLITE_OK)
		file->solid = file->size;
	return status;
}

/* A sync that fails: what it was to write has reached the disk or has not, and will not be tried again. */
static void cache_lose(struct forgetful_file *file)
{
	for (size_t i = 0; i < file->sector_count; i++) {
		if (file->chance && coin(file))
			(void)sector_write(file, &file->sectors[i]);
		file->sectors[i].lost = true;
	}
}

/* ---- SQLite's calls ---- */

static int on_close(sqlite3_file *base)
{
	struct forgetful_file *file = file_of(base);
	if (file->forgets) {
		/* The kernel would keep it too, until the power goes; and nobody who comes later is told. */
		(void)cache_flush(file);
		__atomic_sub_fetch(&forgetting, 1, __ATOMIC_RELAXED);
	}
	free(file->sectors);
	return file->real->pMethods->xClose(file->real);
}

static int on_read(sqlite3_file *base, void *to, int length, sqlite3_int64 offset)
{
	struct forgetful_file *file = file_of(base);
	if (file->forgets)
		return cache_read(file, to, length, offset);
	return file->real->pMethods->xRead(file->real, to, length, offset);
}

static int write_through(struct forgetful_file *file, const void *from, int length, sqlite3_int64 offset)
{
	if (file->forgets)
		return cache_write(file, from, length, offset);
	return file->real->pMethods->xWrite(file->real, from, length, offset);
}

static int on_write(sqlite3_file *base, const void *from, int length, sqlite3_int64 offset)
{
	struct forgetful_file *file = file_of(base);
	switch (file->faults ? fault_pass(FAULT_JOURNAL_WRITE, NULL) : FAULT_NONE) {
	case FAULT_ERROR:
		return SQLITE_IOERR_WRITE;
	case FAULT_FULL:
		return SQLITE_FULL;
	case FAULT_SHORT:
		(void)write_through(file, from, length / 2, offset);
		return SQLITE_FULL;
	default:
		return write_through(file, from, length, offset);
	}
}

static int on_truncate(sqlite3_file *base, sqlite3_int64 size)
{
	struct forgetful_file *file = file_of(base);
	if (!file->forgets)
		return file->real->pMethods->xTruncate(file->real, size);
	cache_cut(file, size);
	return SQLITE_OK;
}

static int on_sync(sqlite3_file *base, int flags)
{
	struct forgetful_file *file = file_of(base);
	if (file->faults && fault_pass(FAULT_JOURNAL_SYNC, NULL) == FAULT_ERROR) {
		cache_lose(file);
		return SQLITE_IOERR_FSYNC;
	}
	if (file->forgets && cache_flush(file) != SQLITE_OK)
		return SQLITE_IOERR_FSYNC;
	return file->real->pMethods->xSync(file->real, flags);
}

static int on_file_size(sqlite3_file *base, sqlite3_int64 *ret)
{
	struct forgetful_file *file = file_of(base);
	if (!file->forgets)
		return file->real->pMethods->xFileSize(file->real, ret);
	*ret = file->size;
	return SQLITE_OK;
}

static int on_lock(sqlite3_file *base, int level)
{
	return file_of(base)->real->pMethods->xLock(file_of(base)->real, level);
}

static int on_unlock(sqlite3_file *base, int level)
{
	return file_of(base)->real->pMethods->xUnlock(file_of(base)->real, level);
}

static int on_check_reserved(sqlite3_file *base, int *ret)
{
	return file_of(base)->real->pMethods->xCheckReservedLock(file_of(base)->real, ret);
}

static int on_control(sqlite3_file *base, int operation, void *argument)
{
	struct forgetful_file *file = file_of(base);
	if (file->forgets && (operation == SQLITE_FCNTL_SIZE_HINT || operation == SQLITE_FCNTL_CHUNK_SIZE))
		return SQLITE_NOTFOUND; /* they would change the real file */
	return file->real->pMethods->xFileControl(file->real, operation, argument);
}

static int on_sector_size(sqlite3_file *base)
{
	return file_of(base)->real->pMethods->xSectorSize(file_of(base)->real);
}

static int on_characteristics(sqlite3_file *base)
{
	return file_of(base)->real->pMethods->xDeviceCharacteristics(file_of(base)->real);
}

/* Version 1, without shared memory: a database here is opened by one process, in exclusive mode (base/database.c). */
static const sqlite3_io_methods methods = {
	.iVersion = 1,
	.xClose = on_close,
	.xRead = on_read,
	.xWrite = on_write,
	.xTruncate = on_truncate,
	.xSync = on_sync,
	.xFileSize = on_file_size,
	.xLock = on_lock,
	.xUnlock = on_unlock,
	.xCheckReservedLock = on_check_reserved,
	.xFileControl = on_control,
	.xSectorSize = on_sector_size,
	.xDeviceCharacteristics = on_characteristics,
};

static int on_open(sqlite3_vfs *vfs, const char *name, sqlite3_file *base, int flags, int *ret_flags)
{
	(void)vfs;
	struct forgetful_file *file = file_of(base);
	int64_t seed = 0;
	memset(file, 0, sizeof(*file));
	file->real = (sqlite3_file *)(void *)(file + 1);
	int status = system_vfs->xOpen(system_vfs, name, file->real, flags, ret_flags);
	/* An open that failed may have methods all the same; then it is to be closed. */
	if (status != SQLITE_OK) {
		if (file->real->pMethods)
			file->real->pMethods->xClose(file->real);
		return status;
	}
	base->pMethods = &methods;
	file->faults = name && (flags & (SQLITE_OPEN_MAIN_DB | SQLITE_OPEN_MAIN_JOURNAL | SQLITE_OPEN_WAL));
	file->forgets = file->faults && fault_waits(FAULT_JOURNAL_SYNC, FAULT_FORGET, &seed);
	if (!file->forgets)
		return SQLITE_OK;
	__atomic_add_fetch(&forgetting, 1, __ATOMIC_RELAXED);
	/* Two files of one seed do not share their luck. */
	file->chance = seed ? (uint64_t)seed * 0x9e3779b97f4a7c15u + (uint64_t)flags : 0;
	status = file->real->pMethods->xFileSize(file->real, &file->size);
	file->solid = file->size;
	if (flags & SQLITE_OPEN_MAIN_DB)
		log_warning("fault=%s action=forget seed=%lld", fault_point_name(FAULT_JOURNAL_SYNC), (long long)seed);
	return status;
}

static void register_vfs(void)
{
	system_vfs = sqlite3_vfs_find(NULL);
	own_vfs = *system_vfs;
	own_vfs.szOsFile = (int)sizeof(struct forgetful_file) + system_vfs->szOsFile;
	own_vfs.pNext = NULL;
	own_vfs.zName = FORGETFUL_NAME;
	own_vfs.xOpen = on_open;
	if (sqlite3_vfs_register(&own_vfs, 0) != SQLITE_OK)
		abort();
}

const char *forgetful_vfs(void)
{
	static pthread_once_t once = PTHREAD_ONCE_INIT;
	pthread_once(&once, register_vfs);
	return FORGETFUL_NAME;
}

bool forgetful_vfs_forgets(void)
{
	return __atomic_load_n(&forgetting, __ATOMIC_RELAXED) > 0;
}
