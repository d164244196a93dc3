/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The disk load; disk.h says what is written where and why.
 *
 * Two threads: one ticks, one goes through the blocks. What each block must hold is kept as a stamp, and the block's
 * content follows from stamp, index and counter; the stamp before is kept too, to tell an own write that got lost from
 * a write of somebody else. Whatever was found is counted once and put right by the rewriting.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif

#include "disk.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <sched.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "common.h"
#include "pages.h"

#define BLOCK_WORDS (DISK_BLOCK_BYTES / 8)
#define HEAD_WORDS (sizeof(struct disk_block) / 8)
#define LOG_BYTES_MAX (UINT64_C(4) << 20)
#define BYTES_MIN (UINT64_C(64) << 10)
#define FILL_BLOCKS 16
/* A turn of the block thread: short beside a migration's pause. */
#define TURN_NS UINT64_C(5000000)
/* One that is this far behind gives up the debt. */
#define DEBT_BLOCKS 32
#define REPORTS_MAX 32

struct stamp {
	uint64_t monotonic_ns, realtime_ns;
};

/* What this copy has written last into a block, and before that. */
struct written {
	uint64_t counter;
	struct stamp stamp, before;
};

enum finding { FINDING_RIGHT, FINDING_STALE, FINDING_FOREIGN, FINDING_DAMAGED };

static struct {
	struct disk_options options;
	struct disk_counts *counts;
	int fd;
	uint64_t log_slots;
	uint64_t first_block, block_count;
	struct written *written;
	_Atomic unsigned int reports;
	pthread_t ticker, writer;
} disk;

static struct stamp stamp_now(void)
{
	return (struct stamp){now_ns(CLOCK_MONOTONIC), now_ns(CLOCK_REALTIME)};
}

static bool stamp_is(const struct stamp *stamp, uint64_t monotonic_ns, uint64_t realtime_ns)
{
	return stamp->monotonic_ns == monotonic_ns && stamp->realtime_ns == realtime_ns;
}

static uint64_t stamp_digest(const struct stamp *stamp)
{
	return page_mix(page_mix(stamp->monotonic_ns) ^ stamp->realtime_ns);
}

/* Word 1, after the magic, is where a record and a block have their sum. */
static uint64_t sum_of(const uint64_t *words, size_t count)
{
	uint64_t sum = 0;
	for (size_t i = 0; i < count; i++)
		sum += i == 1 ? 0 : words[i];
	return sum;
}

static void count_one(_Atomic uint64_t *counter)
{
	atomic_fetch_add_explicit(counter, 1, memory_order_relaxed);
}

/* Counts, and says what, for the first of them; a copy that runs beside another would fill the console. */
static void report(enum finding finding, const char *where, uint64_t number, const uint64_t *words)
{
	static const char *const names[] = {"right", "older than it was written", "of ANOTHER WRITER", "damaged"};
	count_one(finding == FINDING_FOREIGN ? &disk.counts->foreign : &disk.counts->wrong);
	if (atomic_fetch_add(&disk.reports, 1) < REPORTS_MAX) {
		printf("load: DISK %s %" PRIu64 " is %s; it begins with %016" PRIx64 " %016" PRIx64 " %016" PRIx64
		       " %016" PRIx64 " %016" PRIx64 " %016" PRIx64 " %016" PRIx64 "\n",
		       where, number, names[finding], words[0], words[1], words[2], words[3], words[4], words[5],
		       words[6]);
		fflush(stdout);
	}
}

/* Whether it was done; a failure counts as a wrong block. */
static bool transfer(bool write, void *buffer, size_t bytes, uint64_t at)
{
	ssize_t n = write ? pwrite(disk.fd, buffer, bytes, (off_t)at) : pread(disk.fd, buffer, bytes, (off_t)at);
	if (n == (ssize_t)bytes)
		return true;
	count_one(&disk.counts->wrong);
	if (atomic_fetch_add(&disk.reports, 1) < REPORTS_MAX) {
		printf("load: DISK %s of %zu bytes at %" PRIu64 " ended with %zd, %s\n", write ? "write" : "read",
		       bytes, at, n, n < 0 ? strerror(errno) : "short");
		fflush(stdout);
	}
	return false;
}

/* ---- blocks ---- */

static void block_make(uint64_t *words, uint64_t index, uint64_t counter, const struct stamp *stamp)
{
	struct disk_block *block = (struct disk_block *)words;
	struct page_stream stream =
		page_stream_start(disk.options.seed ^ DISK_BLOCK_MAGIC ^ stamp_digest(stamp), index, counter);
	*block = (struct disk_block){.magic = DISK_BLOCK_MAGIC,
				     .boot_id = disk.options.boot_id,
				     .index = index,
				     .counter = counter,
				     .monotonic_ns = stamp->monotonic_ns,
				     .realtime_ns = stamp->realtime_ns};
	for (size_t i = HEAD_WORDS; i < BLOCK_WORDS; i++)
		words[i] = page_stream_next(&stream);
	block->sum = sum_of(words, BLOCK_WORDS);
}

static enum finding block_judge(const uint64_t *words, uint64_t index)
{
	const struct disk_block *block = (const struct disk_block *)words;
	const struct written *written = &disk.written[index - disk.first_block];
	uint64_t right[BLOCK_WORDS];

	block_make(right, index, written->counter, &written->stamp);
	if (memcmp(words, right, DISK_BLOCK_BYTES) == 0)
		return FINDING_RIGHT;
	if (block->magic != DISK_BLOCK_MAGIC || block->index != index || block->sum != sum_of(words, BLOCK_WORDS))
		return FINDING_DAMAGED;
	if (block->boot_id == disk.options.boot_id && written->counter > 1 &&
	    stamp_is(&written->before, block->monotonic_ns, block->realtime_ns))
		return FINDING_STALE;
	return FINDING_FOREIGN;
}

static void block_rewrite(uint64_t *buffer, uint64_t index)
{
	struct written *written = &disk.written[index - disk.first_block];
	struct stamp stamp = stamp_now();

	block_make(buffer, index, written->counter + 1, &stamp);
	/* Remembered only if it was done; what a failed write has left is anybody's guess, and counted already. */
	if (transfer(true, buffer, DISK_BLOCK_BYTES, index * DISK_BLOCK_BYTES))
		*written = (struct written){written->counter + 1, stamp, written->stamp};
}

static int blocks_fill(void)
{
	uint64_t *buffer = aligned_alloc(DISK_BLOCK_BYTES, FILL_BLOCKS * DISK_BLOCK_BYTES);
	if (!buffer)
		return -1;
	for (uint64_t i = 0; i < disk.block_count && !*disk.options.ending;) {
		uint64_t first = i, lot = 0;
		for (; lot < FILL_BLOCKS && i < disk.block_count; lot++, i++) {
			disk.written[i] = (struct written){.counter = 1, .stamp = stamp_now()};
			block_make(buffer + lot * BLOCK_WORDS, disk.first_block + i, 1, &disk.written[i].stamp);
		}
		transfer(true, buffer, lot * DISK_BLOCK_BYTES, (disk.first_block + first) * DISK_BLOCK_BYTES);
	}
	free(buffer);
	return 0;
}

static void *writer_run(void *argument)
{
	uint64_t *buffer = argument, position = 0, since = now_ns(CLOCK_MONOTONIC), done = 0;

	while (!*disk.options.ending && disk.options.bytes_per_s != 0) {
		uint64_t now = now_ns(CLOCK_MONOTONIC);
		uint64_t due = (uint64_t)((double)(now - since) * (double)disk.options.bytes_per_s /
					  (double)(NS_PER_S * DISK_BLOCK_BYTES));
		if (due > done + DEBT_BLOCKS) {
			since = now;
			done = 0;
			due = 1;
		}
		for (; done < due && !*disk.options.ending; done++) {
			uint64_t index = disk.first_block + position;
			if (transfer(false, buffer, DISK_BLOCK_BYTES, index * DISK_BLOCK_BYTES)) {
				enum finding finding = block_judge(buffer, index);
				if (finding != FINDING_RIGHT)
					report(finding, "block", index, buffer);
			}
			block_rewrite(buffer, index);
			if (++position == disk.block_count) {
				position = 0;
				count_one(&disk.counts->passes);
			}
		}
		struct timespec pause = {.tv_nsec = TURN_NS};
		nanosleep(&pause, NULL);
	}
	free(buffer);
	return NULL;
}

/* ---- ticks ---- */

static enum finding now_judge(const uint64_t *words, const uint64_t *last)
{
	const struct disk_record *record = (const struct disk_record *)words, *mine = (const struct disk_record *)last;

	if (memcmp(words, last, DISK_BLOCK_BYTES) == 0)
		return FINDING_RIGHT;
	if (record->magic != DISK_NOW_MAGIC || record->sum != sum_of(words, BLOCK_WORDS))
		return FINDING_DAMAGED;
	if (record->boot_id == mine->boot_id && record->monotonic_ns == mine->previous_monotonic_ns &&
	    record->realtime_ns == mine->previous_realtime_ns)
		return FINDING_STALE;
	return FINDING_FOREIGN;
}

static void tick(uint64_t *last, uint64_t *buffer)
{
	struct disk_record *record = (struct disk_record *)last;
	struct stamp stamp;

	/* Sequence 0: nothing of ours is there yet. */
	if (record->sequence != 0 && transfer(false, buffer, DISK_BLOCK_BYTES, 0)) {
		enum finding finding = now_judge(buffer, last);
		if (finding != FINDING_RIGHT)
			report(finding, "tick", record->sequence, buffer);
	}
	stamp = stamp_now();
	*record = (struct disk_record){.magic = DISK_NOW_MAGIC,
				       .boot_id = disk.options.boot_id,
				       .sequence = record->sequence + 1,
				       .monotonic_ns = stamp.monotonic_ns,
				       .realtime_ns = stamp.realtime_ns,
				       .previous_monotonic_ns = record->monotonic_ns,
				       .previous_realtime_ns = record->realtime_ns,
				       .wrong = atomic_load(&disk.counts->wrong),
				       .foreign = atomic_load(&disk.counts->foreign)};
	record->sum = sum_of(last, BLOCK_WORDS);
	transfer(true, last, DISK_BLOCK_BYTES, 0);
	transfer(true, last, DISK_RECORD_BYTES,
		 DISK_BLOCK_BYTES + stamp_digest(&stamp) % disk.log_slots * DISK_RECORD_BYTES);
	count_one(&disk.counts->ticks);
}

static void *ticker_run(void *argument)
{
	uint64_t *last = argument, deadline = now_ns(CLOCK_MONOTONIC);

	memset(last, 0, DISK_BLOCK_BYTES);
	while (!*disk.options.ending) {
		tick(last, last + BLOCK_WORDS);
		uint64_t now = now_ns(CLOCK_MONOTONIC);
		deadline += DISK_TICK_NS;
		if (deadline < now)
			deadline = now;
		sleep_until(deadline);
	}
	free(last);
	return NULL;
}

/* The ticks begin when every block has been written. */
static void *fill_and_tick(void *argument)
{
	struct sched_param real_time = {.sched_priority = 20};

	if (blocks_fill() < 0) {
		free(argument);
		return NULL;
	}
	atomic_store(&disk.counts->ready, 1);
	void *buffer = aligned_alloc(DISK_BLOCK_BYTES, DISK_BLOCK_BYTES);
	bool writing = buffer && pthread_create(&disk.writer, NULL, writer_run, buffer) == 0;
	if (!writing) {
		free(buffer);
		count_one(&disk.counts->wrong);
	}
	/* After the other thread, which must not inherit it. Without the right to it, ticks are only less regular. */
	pthread_setschedparam(pthread_self(), SCHED_FIFO, &real_time);
	ticker_run(argument);
	if (writing)
		pthread_join(disk.writer, NULL);
	return NULL;
}

/* ---- start ---- */

int disk_start(const struct disk_options *options, struct disk_counts *counts)
{
	off_t bytes = -1;
	uint64_t log_bytes;
	void *buffer;

	disk.options = *options;
	disk.counts = counts;
	disk.fd = open(options->device, O_RDWR | O_DIRECT | O_CLOEXEC);
	if (disk.fd >= 0)
		bytes = lseek(disk.fd, 0, SEEK_END);
	if (bytes < (off_t)BYTES_MIN) {
		fprintf(stderr, "load: cannot use %s, of %jd bytes: %s\n", options->device, (intmax_t)bytes,
			bytes < 0 ? strerror(errno) : "too small");
		return -1;
	}
	log_bytes = (uint64_t)bytes / 4 < LOG_BYTES_MAX ? (uint64_t)bytes / 4 : LOG_BYTES_MAX;
	log_bytes -= log_bytes % DISK_BLOCK_BYTES;
	disk.log_slots = log_bytes / DISK_RECORD_BYTES;
	disk.first_block = 1 + log_bytes / DISK_BLOCK_BYTES;
	disk.block_count = (uint64_t)bytes / DISK_BLOCK_BYTES - disk.first_block;
	disk.written = calloc(disk.block_count, sizeof(*disk.written));
	buffer = aligned_alloc(DISK_BLOCK_BYTES, 2 * DISK_BLOCK_BYTES);
	if (!disk.written || !buffer || pthread_create(&disk.ticker, NULL, fill_and_tick, buffer) != 0) {
		fprintf(stderr, "load: cannot start the disk's thread\n");
		return -1;
	}
	return 0;
}

void disk_join(void)
{
	pthread_join(disk.ticker, NULL);
}
