/* SPDX-License-Identifier: Apache-2.0 */
/*
 * When to switch: a pure function from what is seen of a memory copy to what to do next. It asks nobody and keeps its whole
 * memory in struct converge, so that a recorded copy can be replayed through it. Single-threaded.
 */
#ifndef FERRY_MIGRATION_CONVERGE_H
#define FERRY_MIGRATION_CONVERGE_H

#include <stdbool.h>
#include <stdint.h>

struct converge_options {
	int64_t max_downtime_ms; /* the pause that was promised, all of it */
	int64_t overhead_ms;	 /* the part of a pause that is not memory: device state, round trips, durable records, loading */
	int64_t deadline_us;	 /* on the samples' clock; 0: none */
};

struct converge_sample {
	int64_t at_us;
	unsigned int pass;
	bool pass_began;	    /* remaining_bytes is the result of a synchronisation just now */
	uint64_t remaining_bytes;
	uint64_t rate_bytes_per_s;  /* what the link carries */
	uint64_t dirty_bytes_per_s; /* by the last synchronisation; 0: not known yet */
};

struct converge {
	struct converge_options options;
	unsigned int limit_ms;	     /* what QEMU has been told: the memory part of the pause that it may switch at */
	uint64_t best_remaining_bytes; /* lowest at the beginning of any pass but the first */
	int64_t best_at_us;
	unsigned int passes_without_progress;
};

enum converge_action {
	CONVERGE_WAIT,
	CONVERGE_SET_LIMIT, /* tell QEMU decision.limit_ms */
	CONVERGE_GIVE_UP    /* nothing allowed keeps the promise: roll back, with decision.reason */
};

enum converge_reason { CONVERGE_REASON_NONE, CONVERGE_REASON_NOT_CONVERGING, CONVERGE_REASON_DEADLINE };

struct converge_decision {
	enum converge_action action;
	unsigned int limit_ms;
	enum converge_reason reason;
};

/* Also gives the limit to begin with, in converge->limit_ms. */
void converge_init(struct converge *converge, const struct converge_options *options);
struct converge_decision converge_decide(struct converge *converge, const struct converge_sample *sample);
/* Whether a pause with this much left keeps the promise; asked once more when the guest has stopped. */
bool converge_fits(const struct converge *converge, uint64_t remaining_bytes, uint64_t rate_bytes_per_s, int64_t *ret_pause_ms);

#endif
