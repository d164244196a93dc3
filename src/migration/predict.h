/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a move is going to be: a pure function from what is known of the guest, the link and the promise to the time, the pause and
 * the bytes that it will take, and whether it will get there at all. It lets the move's own policy decide on a copy made up
 * (simulate.h), so what is predicted and what is done cannot drift apart. Asks nobody; any thread.
 */
#ifndef FERRY_MIGRATION_PREDICT_H
#define FERRY_MIGRATION_PREDICT_H

#include <jansson.h>

#include "migration/simulate.h"

/* So many bytes of different pages were written within so long, by a guest that was not throttled. */
struct predict_writes {
	int64_t for_us;
	uint64_t bytes;
};

#define PREDICT_WRITES_MAX 8

struct predict_guest {
	uint64_t memory_bytes;
	uint64_t used_bytes; /* of these, that is not zero */
	bool stands;	     /* it is paused, and writes nothing */
	struct predict_writes writes[PREDICT_WRITES_MAX]; /* none: nothing is known, and it is taken for idle */
	size_t writes_count;
};

/* In microseconds: what is shorter says how fast a burst is, and little of what comes. It is left out where there is more. */
#define PREDICT_WRITES_TELLING_US 50000
/* Both have found about the same, though one took longer: the guest has come back to the same pages within the shorter time. */
bool predict_writes_alike(const struct predict_writes *writes, const struct predict_writes *other);
/* The newest is kept, the oldest goes. */
void predict_add_writes(struct predict_guest *guest, int64_t for_us, uint64_t bytes);

/* What it is taken for. */
void predict_fill_guest(const struct predict_guest *guest, struct simulated_guest *ret);

/* What every move between two hosts costs. */
struct predict_link {
	uint64_t rate_bytes_per_s; /* in the first pass */
	/* In those after it; 0: the same. Where processors and not the wire are the bound they are faster: the destination's pages are
	 * there already. */
	uint64_t later_bytes_per_s;
	uint64_t bandwidth_bytes_per_s; /* that may be used; 0: all */
	uint64_t scan_bytes_per_s; /* how fast zero pages are found; 0: no time */
	int64_t before_us;	   /* from the request to the first byte: checks, the destination's QEMU */
	int64_t after_us;	   /* from the last byte to the source freed */
	int64_t pause_us;	   /* what a pause costs beside memory */
};

/* As much of a rate as a bandwidth, 0 for none, allows. */
uint64_t predict_within(uint64_t rate_bytes_per_s, uint64_t bandwidth_bytes_per_s);
/* Of the passes after the first, in bytes a second; 0: not known. */
uint64_t predict_later_rate(const struct predict_link *link);

enum predict_verdict {
	PREDICT_UNKNOWN,
	PREDICT_CONVERGES,
	PREDICT_THROTTLED,    /* with the guest slowed down */
	PREDICT_LONGER_PAUSE, /* with the longer pause that is allowed */
	PREDICT_POSTCOPY,
	PREDICT_FAILS
};

struct prediction {
	enum predict_verdict verdict;
	int64_t at_us; /* since the migration began */
	int64_t total_us, downtime_us; /* of a move that fails: until it is given up, and 0 */
	uint64_t wire_bytes;
	unsigned int throttle_percent;
	char words[CONVERGE_WORDS_SIZE]; /* a clause */
};

/* Of a move as a whole. options->deadline_us counts from the request. */
void predict_move(const struct predict_guest *guest, const struct predict_link *link, const struct converge_policy *policy,
		  const struct converge_options *options, struct prediction *ret);
/* Of one under way, at the beginning of a pass whose sample the policy has not seen yet: so long and so much after the request
 * and on the wire. */
void predict_rest(const struct predict_guest *guest, const struct predict_link *link, const struct converge *converge,
		  const struct converge_sample *sample, int64_t elapsed_us, uint64_t sent_bytes, struct prediction *ret);

const char *predict_verdict_name(enum predict_verdict verdict);
bool predict_succeeds(enum predict_verdict verdict);
/* {at_ms, total_ms, downtime_ms, wire_bytes, verdict, throttle_percent, words}; null when it is unknown. The caller owns it. */
json_t *predict_view(const struct prediction *prediction);
/* How far it was off, once the move has ended: {verdict_right, total_percent, downtime_ms, wire_percent}, predicted less actual; the
 * last three null where it did not get there, or was not expected to. Null when nothing was predicted. The caller owns it. */
json_t *predict_error_view(const struct prediction *prediction, bool moved, int64_t total_us, int64_t downtime_us, uint64_t wire_bytes);

#endif
