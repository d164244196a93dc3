/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The disk load: a part of the load program (load.c) that writes a disk, and finds out whether anybody else does.
 *
 * A second copy of a guest, made by a migration that went wrong, has the same memory: the same random numbers, the same
 * counters. What it cannot share is the time at which each copy does a thing. So everything that is written carries a
 * stamp, both clocks to the nanosecond, and before a block is rewritten it is read and must be what this copy wrote last.
 * If it is not, it is either what this copy wrote before that (a lost write, or a stale read), or it is whole and of
 * another stamp (a second writer), or it is neither (damage).
 *
 *	block 0         "now": rewritten each TICK. Two copies that run at once both see it within a tick or two
 *	a quarter, at   the log: at each tick a record goes to a slot that is drawn from its stamp, so that the records of
 *	most 4 MiB      two copies do not cover each other. Each holds the stamp of the one before. lab/ferrylab/disk.py
 *	                reads it from outside: two records of one number, or one that does not follow on its predecessor,
 *	                prove two copies, even if no heartbeat got out and the guest itself is gone
 *	the rest        blocks of 4 KiB, checked and rewritten one after the other at a given rate
 *
 * All I/O is O_DIRECT. The image must not be locked (QEMU's locking=off), or the locks would hide what is looked for:
 * the hosts of a lab share one kernel. Words stand in the machine's own order.
 */
#ifndef FERRY_LAB_DISK_H
#define FERRY_LAB_DISK_H

#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>

#define DISK_NOW_MAGIC UINT64_C(0x31574f4e52524546) /* "FERRNOW1" */
#define DISK_BLOCK_MAGIC UINT64_C(0x314b4c4252524546) /* "FERRBLK1" */
#define DISK_BLOCK_BYTES 4096u
#define DISK_RECORD_BYTES 512u
#define DISK_TICK_NS UINT64_C(10000000)

/* At the start of the "now" block and of each slot of the log; the rest is zero. */
struct disk_record {
	uint64_t magic;
	uint64_t sum; /* of all other words of the slot or block, modulo 2^64 */
	uint64_t boot_id;
	uint64_t sequence; /* of ticks, from 1 */
	uint64_t monotonic_ns, realtime_ns; /* the stamp */
	uint64_t previous_monotonic_ns, previous_realtime_ns; /* that of the record before */
	uint64_t wrong, foreign; /* what this copy had found so far */
};

/* At the start of each other block; then comes a key stream that follows from all of it. */
struct disk_block {
	uint64_t magic;
	uint64_t sum;
	uint64_t boot_id;
	uint64_t index; /* of the block on the disk */
	uint64_t counter; /* of passes, from 1 */
	uint64_t monotonic_ns, realtime_ns;
};

/* Each has one writer a thread; read them at any time. */
struct disk_counts {
	_Atomic uint64_t ready; /* the disk has been written once */
	_Atomic uint64_t wrong; /* blocks with an older content of our own, or damaged, and I/O that failed */
	_Atomic uint64_t foreign; /* blocks that somebody else had written */
	_Atomic uint64_t passes; /* over the blocks */
	_Atomic uint64_t ticks;
};

struct disk_options {
	const char *device; /* or a file */
	uint64_t bytes_per_s; /* 0: written once, then ticks only */
	uint64_t boot_id, seed;
	const volatile sig_atomic_t *ending;
};

/* Starts the threads; -1 and a message if that cannot be. To be called once. */
int disk_start(const struct disk_options *options, struct disk_counts *counts);
/* Once *ending is set: waits until the last write is done. */
void disk_join(void);

#endif
