/* SPDX-License-Identifier: Apache-2.0 */
/* The memory load; memory.h says what is written how and why. One thread writes and checks. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif

#include "memory.h"

#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#include "common.h"
#include "pages.h"

#define MIB (UINT64_C(1) << 20)

/* The writer works in slices: short beside a migration's pause, long beside the cost of a sleep. */
#define SLICE_NS (2 * NS_PER_MS)
/* A writer that is this far behind gives up the debt, instead of writing in a burst that no migration could follow. */
#define DEBT_NS (50 * NS_PER_MS)
/* Rate at which regions that do not change are checked. */
#define VERIFY_BYTES_PER_S (8 * MIB)
/* Wrong pages that are described one by one; all are counted. */
#define REPORTS_MAX 32
#define FILL_FIRST_INDEX (UINT64_C(1) << 32)
#define HOT_TURNS 10 /* of so many, all but one */
#define HOT_SHARE 10 /* of a skewed region: one part in so many */
#define LOT_TURNS 64

enum region_kind { REGION_PAGES, REGION_SPARSE, REGION_TEXT };

struct region {
	enum region_kind kind;
	uint64_t *base;
	uint64_t pages;
	uint64_t first_index; /* of its page 0: no two regions share an index */
	uint64_t pass; /* each page holds this counter, those before position one more (if the region is rewritten) */
	uint64_t position;
};

/* Pages that are due by now at a rate, with the debt bounded. */
struct pace {
	uint64_t bytes_per_s;
	uint64_t since_ns;
	uint64_t done; /* pages since then */
};

enum { HOT, COLD, ZONES };

static struct {
	struct memory_options options;
	struct memory_counts *counts;
	pthread_t writer;

	/* The writer's own. */
	struct memory_load load;
	uint64_t *mapped;
	struct region zones[ZONES]; /* of the load, one after the other; what is not skewed has only the first */
	uint64_t turn;
	struct region fill;
	bool broken;

	/* The last order, guarded by mutex; its number may be looked at without. */
	pthread_mutex_t mutex;
	pthread_cond_t ordered;
	struct memory_load order;
	_Atomic uint64_t order_number;
} memory = {.mutex = PTHREAD_MUTEX_INITIALIZER, .ordered = PTHREAD_COND_INITIALIZER};

/* ---- regions ---- */

/* NULL and a message when there is no room. */
static uint64_t *map(uint64_t mib)
{
	void *base = mmap(NULL, mib * MIB, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (base != MAP_FAILED)
		return base;
	fprintf(stderr, "load: cannot map %" PRIu64 " MiB: %s\n", mib, strerror(errno));
	return NULL;
}

static uint64_t *region_page(const struct region *region, uint64_t at)
{
	return region->base + at * PAGE_WORDS;
}

static void region_write_page(const struct region *region, uint64_t at, uint64_t counter)
{
	uint64_t *page = region_page(region, at), index = region->first_index + at;
	switch (region->kind) {
	case REGION_PAGES:
		page_write(page, memory.options.seed, index, counter);
		break;
	case REGION_SPARSE:
		page_write_sparse(page, memory.options.seed, index, counter);
		break;
	case REGION_TEXT:
		page_write_text(page, memory.options.seed, index);
		break;
	}
}

static void region_fill(struct region *region)
{
	region->pass = 1;
	for (uint64_t at = 0; at < region->pages && !*memory.options.ending; at++)
		region_write_page(region, at, region->pass);
}

/* Counts and describes the page at the region's position, which is wrong, and puts it right again: one fault is one
 * fault, not one on each pass from now on. */
static void region_page_wrong(struct region *region)
{
	const uint64_t *page = region_page(region, region->position), seed = memory.options.seed;
	uint64_t index = region->first_index + region->position;
	count(&memory.counts->wrong, 1);
	if (value(&memory.counts->wrong) <= REPORTS_MAX) {
		if (region->kind == REGION_PAGES)
			printf("load: WRONG page %" PRIu64 ": %s, should have counter %" PRIu64 ", says index %" PRIu64
			       " counter %" PRIu64 ", first wrong byte %zu, address %p\n",
			       index, page_fault_name(page_diagnose(page, seed, index, region->pass)), region->pass, page[1],
			       page[2], page_first_wrong_byte(page, seed, index, region->pass), (const void *)page);
		else
			printf("load: WRONG %s page %" PRIu64 "\n", region->kind == REGION_TEXT ? "text" : "sparse", index);
		fflush(stdout);
	}
	region_write_page(region, region->position, region->pass);
}

/* Of the page at the region's position; whole: also where it would be enough to look at what is going to be written. */
static void region_check_page(struct region *region, bool whole)
{
	const uint64_t *page = region_page(region, region->position), seed = memory.options.seed;
	uint64_t index = region->first_index + region->position, expected[PAGE_WORDS];
	bool right = false;
	switch (region->kind) {
	case REGION_PAGES:
		right = page_is_right(page, seed, index, region->pass);
		break;
	case REGION_SPARSE:
		right = whole ? page_is_right_sparse(page, seed, index, region->pass)
			      : page_cell_is_right(page, seed, index, region->pass);
		break;
	case REGION_TEXT:
		page_write_text(expected, seed, index);
		right = memcmp(page, expected, PAGE_BYTES) == 0;
		break;
	}
	if (!right)
		region_page_wrong(region);
	count(&memory.counts->checked, 1);
}

/* Spoils the region, half a pass away from where the writer is, so that it does not see it at once. */
static void region_break(struct region *region, enum memory_break breakage)
{
	uint64_t at = (region->position + region->pages / 2) % region->pages;
	uint64_t *page = region_page(region, at);
	uint64_t *next = region_page(region, (at + 1) % region->pages);
	uint64_t kept[PAGE_WORDS];
	switch (breakage) {
	case MEMORY_BREAK_FLIP:
		page[300] ^= UINT64_C(1) << 41;
		break;
	case MEMORY_BREAK_STALE:
		region_write_page(region, at, region->pass - 1);
		break;
	case MEMORY_BREAK_SWAP:
		memcpy(kept, page, PAGE_BYTES);
		memcpy(page, next, PAGE_BYTES);
		memcpy(next, kept, PAGE_BYTES);
		break;
	case MEMORY_BREAK_ZERO:
		memset(page, 0, PAGE_BYTES);
		break;
	case MEMORY_BREAK_NONE:
		break;
	}
}

static void region_step(struct region *region, bool rewrite)
{
	uint64_t *page = region_page(region, region->position), index = region->first_index + region->position;
	region_check_page(region, !rewrite || (region->position + region->pass) % MEMORY_SPARSE_CHECK_EVERY == 0);
	if (rewrite) {
		if (region->kind == REGION_SPARSE)
			page_write_cell(page, memory.options.seed, index, region->pass + 1);
		else
			page_write(page, memory.options.seed, index, region->pass + 1);
		count(&memory.counts->dirty_bytes, PAGE_BYTES);
	}
	count(&memory.counts->work, 1);
	region->position++;
	if (region->position == region->pages) {
		region->position = 0;
		if (rewrite)
			region->pass++;
	}
}

/* Every page, as it must be now: those behind the position hold what they got in this pass. */
static void region_check_all(struct region *region, bool rewrite)
{
	const uint64_t position = region->position, pass = region->pass;
	for (uint64_t at = 0; at < region->pages && !*memory.options.ending; at++) {
		region->position = at;
		region->pass = rewrite && at < position ? pass + 1 : pass;
		region_check_page(region, true);
	}
	region->position = position;
	region->pass = pass;
}

/* ---- the load ---- */

static bool load_rewrites(void)
{
	return memory.load.bytes_per_s != 0;
}

static uint64_t load_pages(void)
{
	return memory.zones[HOT].pages + memory.zones[COLD].pages;
}

/* Memory for the load, and its zones; nothing is written yet. */
static int load_map(void)
{
	const enum region_kind kind = memory.load.mode == MEMORY_SPARSE ? REGION_SPARSE : REGION_PAGES;
	const uint64_t pages = memory.load.mib * MIB / PAGE_BYTES;
	const uint64_t hot = memory.load.mode == MEMORY_SKEWED ? pages / HOT_SHARE : pages;
	memset(memory.zones, 0, sizeof(memory.zones));
	memory.mapped = pages ? map(memory.load.mib) : NULL;
	if (!memory.mapped)
		return pages ? -1 : 0;
	memory.zones[HOT] = (struct region){.kind = kind, .base = memory.mapped, .pages = hot};
	memory.zones[COLD] = (struct region){.kind = kind,
					     .base = memory.mapped + hot * PAGE_WORDS,
					     .pages = pages - hot,
					     .first_index = hot};
	return 0;
}

static void load_fill(void)
{
	for (int zone = HOT; zone < ZONES; zone++)
		region_fill(&memory.zones[zone]);
}

/* Another load: what there was is checked once more and given back. Without room for it there is none. */
static void load_change(const struct memory_load *load)
{
	for (int zone = HOT; zone < ZONES; zone++)
		region_check_all(&memory.zones[zone], load_rewrites());
	if (memory.mapped)
		munmap(memory.mapped, memory.load.mib * MIB);
	memory.load = *load;
	(void)load_map();
	load_fill();
}

static void load_step(void)
{
	const int last = memory.zones[COLD].pages ? COLD : HOT;
	const int zone = last == COLD && memory.turn++ % HOT_TURNS == HOT_TURNS - 1 ? COLD : HOT;
	region_step(&memory.zones[zone], load_rewrites());
	if (zone == last && memory.zones[zone].position == 0)
		count(&memory.counts->passes, 1);
}

static uint64_t load_pace_bytes_per_s(void)
{
	return load_rewrites() ? memory.load.bytes_per_s : VERIFY_BYTES_PER_S;
}

/* ---- the writer ---- */

static uint64_t pace_due(struct pace *pace, uint64_t now)
{
	uint64_t due;
	if (pace->bytes_per_s == MEMORY_RATE_MAX)
		return LOT_TURNS;
	due = (uint64_t)((double)(now - pace->since_ns) * (double)pace->bytes_per_s / (double)(NS_PER_S * PAGE_BYTES));
	if (due <= pace->done)
		return 0;
	if (due - pace->done > DEBT_NS / 1000 * pace->bytes_per_s / (1000000 * (uint64_t)PAGE_BYTES) + LOT_TURNS) {
		pace->since_ns = now;
		pace->done = 0;
		return 1;
	}
	/* In small lots, so that the clock is looked at often. */
	return due - pace->done < LOT_TURNS ? due - pace->done : LOT_TURNS;
}

/* Carries out an order that has come meanwhile; with nothing else to do, waits for one. */
static void obey(struct pace *load_pace)
{
	const bool idle = load_pages() == 0 && memory.fill.pages == 0;
	struct memory_load order;
	uint64_t number;
	if (!idle && value(&memory.order_number) == value(&memory.counts->order))
		return;
	pthread_mutex_lock(&memory.mutex);
	while (idle && memory.order_number == value(&memory.counts->order) && !*memory.options.ending)
		pthread_cond_wait(&memory.ordered, &memory.mutex);
	order = memory.order;
	number = memory.order_number;
	pthread_mutex_unlock(&memory.mutex);
	if (number == value(&memory.counts->order))
		return;
	if (order.mib == memory.load.mib && order.mode == memory.load.mode && load_rewrites() == (order.bytes_per_s != 0))
		memory.load = order;
	else
		load_change(&order);
	*load_pace = (struct pace){.bytes_per_s = load_pace_bytes_per_s(), .since_ns = now_ns(CLOCK_MONOTONIC)};
	count(&memory.counts->order, number - value(&memory.counts->order));
}

static void *writer_run(void *unused)
{
	struct region *fill = &memory.fill;
	struct pace load_pace = {.bytes_per_s = load_pace_bytes_per_s()}, fill_pace = {.bytes_per_s = VERIFY_BYTES_PER_S};
	(void)unused;

	region_fill(fill);
	load_fill();
	count(&memory.counts->ready, 1);
	printf("load: ready, %" PRIu64 " pages rewritten or checked, %" PRIu64 " filled\n", load_pages(), fill->pages);
	fflush(stdout);

	load_pace.since_ns = fill_pace.since_ns = now_ns(CLOCK_MONOTONIC);
	while (!*memory.options.ending) {
		obey(&load_pace);
		uint64_t now = now_ns(CLOCK_MONOTONIC);
		uint64_t turns = load_pages() ? pace_due(&load_pace, now) : 0;
		uint64_t fill_turns = fill->pages ? pace_due(&fill_pace, now) : 0;
		for (uint64_t i = 0; i < turns; i++)
			load_step();
		for (uint64_t i = 0; i < fill_turns; i++)
			region_step(fill, false);
		load_pace.done += turns;
		fill_pace.done += fill_turns;
		if (!memory.broken && memory.options.breakage != MEMORY_BREAK_NONE && memory.zones[HOT].pages >= 4 &&
		    value(&memory.counts->passes) >= memory.options.break_pass) {
			region_break(&memory.zones[HOT], memory.options.breakage);
			memory.broken = true;
		}
		if (turns == 0 && fill_turns == 0)
			sleep_until(now + SLICE_NS);
	}
	return NULL;
}

/* ---- start ---- */

static int parse_mode(const char *text, enum memory_mode *ret)
{
	static const char *const names[] = {"pages", "skewed", "sparse"};
	for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++)
		if (strcmp(names[i], text) == 0) {
			*ret = (enum memory_mode)i;
			return 0;
		}
	return -1;
}

int memory_load_parse(const char *text, struct memory_load *ret)
{
	struct memory_load load = {0};
	char *end;
	load.mib = strtoull(text, &end, 10);
	if (end == text)
		return -1;
	if (*end == ':') {
		text = end + 1;
		if (strncmp(text, "max", 3) == 0) {
			load.bytes_per_s = MEMORY_RATE_MAX;
			end += sizeof(":max") - 1;
		} else {
			double rate = strtod(text, &end);
			if (end == text || !(rate >= 0) || rate > 1e6)
				return -1;
			load.bytes_per_s = (uint64_t)(rate * 1e6);
		}
		if (*end == ':' && parse_mode(end + 1, &load.mode) == 0)
			end = strchr(end, '\0');
	}
	if (*end != '\0')
		return -1;
	*ret = load;
	return 0;
}

int memory_start(const struct memory_options *options, struct memory_counts *counts)
{
	memory.options = *options;
	memory.counts = counts;
	memory.load = options->load;
	memory.fill = (struct region){.kind = options->fill_kind == MEMORY_FILL_TEXT ? REGION_TEXT : REGION_PAGES,
				      .pages = options->fill_mib * MIB / PAGE_BYTES,
				      .first_index = FILL_FIRST_INDEX};
	if (memory.fill.pages && !(memory.fill.base = map(options->fill_mib)))
		return -1;
	if (load_map() < 0)
		return -1;
	if (pthread_create(&memory.writer, NULL, writer_run, NULL) != 0) {
		fprintf(stderr, "load: cannot start the memory's thread\n");
		return -1;
	}
	return 0;
}

void memory_change_load(uint64_t number, const struct memory_load *load)
{
	pthread_mutex_lock(&memory.mutex);
	memory.order = *load;
	atomic_store(&memory.order_number, number);
	pthread_cond_signal(&memory.ordered);
	pthread_mutex_unlock(&memory.mutex);
}

void memory_join(void)
{
	pthread_mutex_lock(&memory.mutex);
	pthread_cond_signal(&memory.ordered);
	pthread_mutex_unlock(&memory.mutex);
	pthread_join(memory.writer, NULL);
}

void memory_bench(uint64_t seed)
{
	enum { PAGES = 2048, ROUNDS = 8 };
	uint64_t start, wrong = 0, *pages = map((uint64_t)PAGES * PAGE_BYTES / MIB);
	double s;
	if (!pages)
		return;
	for (uint64_t i = 0; i < PAGES; i++)
		page_write(pages + i * PAGE_WORDS, seed, i, 1);
	start = now_ns(CLOCK_MONOTONIC);
	for (int r = 0; r < ROUNDS; r++)
		for (uint64_t i = 0; i < PAGES; i++)
			page_write(pages + i * PAGE_WORDS, seed, i, 1);
	s = (double)(now_ns(CLOCK_MONOTONIC) - start) / 1e9;
	printf("load: bench write %.0f MB/s\n", (double)ROUNDS * PAGES * PAGE_BYTES / 1e6 / s);
	start = now_ns(CLOCK_MONOTONIC);
	for (int r = 0; r < ROUNDS; r++)
		for (uint64_t i = 0; i < PAGES; i++)
			wrong += !page_is_right(pages + i * PAGE_WORDS, seed, i, 1);
	s = (double)(now_ns(CLOCK_MONOTONIC) - start) / 1e9;
	printf("load: bench check %.0f MB/s, %" PRIu64 " wrong\n", (double)ROUNDS * PAGES * PAGE_BYTES / 1e6 / s, wrong);
	fflush(stdout);
	munmap(pages, (size_t)PAGES * PAGE_BYTES);
}
