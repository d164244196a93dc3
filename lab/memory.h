/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The memory load: a part of the load program (load.c) that rewrites memory at a given rate, and checks each page before it
 * does.
 *
 * What a page must hold follows from the pass and the position alone (pages.h), so there is no table of expectations that
 * could be stale together with the pages. A region is gone through in order, again and again. How it is written is the
 * load's mode:
 *
 *	pages   whole pages, one after the other
 *	skewed  whole pages; nine writes of ten go to a tenth of the region, as with a key-value store that has hot keys
 *	sparse  64 bytes of each page, one page after the other: the page is dirty as a whole, and hardly anything is new.
 *	        Each time those 64 bytes are checked, and the whole page one time in SPARSE_CHECK_EVERY
 *
 * Another region is filled once, with random bytes or with text, and checked slowly.
 *
 * The load can be ordered to change while it runs: at a new rate only it just goes on; for a new size or mode all pages that
 * there are get checked once more, then the region is made anew.
 */
#ifndef FERRY_LAB_MEMORY_H
#define FERRY_LAB_MEMORY_H

#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>

#define MEMORY_RATE_MAX UINT64_MAX /* as fast as it goes */
#define MEMORY_SPARSE_CHECK_EVERY 16

enum memory_mode { MEMORY_PAGES, MEMORY_SKEWED, MEMORY_SPARSE };
enum memory_fill { MEMORY_FILL_RANDOM, MEMORY_FILL_TEXT };
enum memory_break { MEMORY_BREAK_NONE, MEMORY_BREAK_FLIP, MEMORY_BREAK_STALE, MEMORY_BREAK_SWAP, MEMORY_BREAK_ZERO };

struct memory_load {
	uint64_t mib;
	uint64_t bytes_per_s; /* a page counts as a whole, also where 64 bytes of it are written; 0: written once, then checked */
	enum memory_mode mode;
};

struct memory_options {
	struct memory_load load;
	uint64_t fill_mib;
	enum memory_fill fill_kind;
	enum memory_break breakage; /* the load spoils its own memory, once so many passes are done */
	uint64_t break_pass;
	uint64_t seed;
	const volatile sig_atomic_t *ending;
};

/* Each has one writer; read them at any time. */
struct memory_counts {
	_Atomic uint64_t ready;	  /* all is filled and the rewriting has begun */
	_Atomic uint64_t work;	  /* pages gone through */
	_Atomic uint64_t passes;  /* over the whole of the rewritten region */
	_Atomic uint64_t checked; /* pages */
	_Atomic uint64_t wrong;	  /* pages */
	_Atomic uint64_t dirty_bytes;
	_Atomic uint64_t order; /* the number of the last order that was carried out */
};

/* MIB[:MBPS|:max[:pages|skewed|sparse]]; -1 when it is not. */
int memory_load_parse(const char *text, struct memory_load *ret);
/* Starts the thread; -1 and a message if that cannot be. To be called once. */
int memory_start(const struct memory_options *options, struct memory_counts *counts);
/* The load is to become this; returns at once, counts->order says when it is done. */
void memory_change_load(uint64_t number, const struct memory_load *load);
/* Once *ending is set. */
void memory_join(void);
/* Prints what checking and rewriting cost here, apart. */
void memory_bench(uint64_t seed);

#endif
