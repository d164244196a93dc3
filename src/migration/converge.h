/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Convergence: a pure function from what is seen of a memory copy to what to do next. It asks nobody and keeps its whole
 * memory in struct converge, so that a recorded copy can be replayed through it, and a made-up one (simulate.h) can be run
 * through it by the thousand. Single-threaded; no allocation.
 *
 * What it decides by is a policy. "ferry" is Ferry's own (converge.c); beside it stand those of other systems
 * (converge_peers.c), so that they can be measured on the same QEMU, guest and link.
 */
#ifndef FERRY_MIGRATION_CONVERGE_H
#define FERRY_MIGRATION_CONVERGE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* What may be done about a guest that writes faster than the link carries, beyond waiting. */
enum converge_means {
	CONVERGE_THROTTLE, /* slow the guest's processors down */
	CONVERGE_POSTCOPY, /* let it run at the destination before everything is there */
	CONVERGE_PAUSE,	   /* a pause longer than promised, with a bound of its own */
	CONVERGE_MEANS_COUNT
};

struct converge_options {
	int64_t max_downtime_ms; /* the pause that was promised, all of it */
	int64_t overhead_ms;	 /* the part of a pause that is not memory: device state, round trips, durable records, loading */
	int64_t deadline_us;	 /* on the samples' clock; 0: none */
	enum converge_means means[CONVERGE_MEANS_COUNT]; /* in the order in which they may be used */
	size_t means_count;
	int64_t longest_pause_ms; /* the bound of CONVERGE_PAUSE */
};

struct converge_sample {
	int64_t at_us;
	unsigned int pass;
	bool pass_began;	    /* remaining_bytes is the result of a synchronisation just now */
	uint64_t remaining_bytes;
	uint64_t rate_bytes_per_s;  /* what the link carries */
	uint64_t dirty_bytes_per_s; /* by the last synchronisation; 0: not known yet */
	uint64_t sampled_dirty_bytes_per_s; /* by looking at some pages for a second at the beginning; 0: not known, or little */
	unsigned int throttle_percent; /* in force */
	bool throttle_at_once;	       /* it is in force as soon as it is told */
	unsigned int busy_percent; /* of its time, the busiest processor while it is not throttled; 0: not known */
	unsigned int throttle_slice_ms; /* how long a throttled processor runs between two sleeps, at most; 0: not known */
	uint64_t total_bytes;	       /* the guest's memory */
};

/* What QEMU is told. */
struct converge_settings {
	unsigned int limit_ms;	       /* the memory part of the pause at which it may switch by itself; never 0 */
	unsigned int throttle_percent; /* of the processors' time that the guest does without; 0: it is not throttled */
	uint64_t dirty_bytes_per_s; /* what that throttle is to leave of the guest's writing; 0: not known */
	unsigned int throttle_increment; /* 0: exactly so much; else QEMU begins there and adds so much each time, by itself */
};

enum converge_action {
	CONVERGE_GO_ON,	   /* with decision.settings */
	CONVERGE_START_POSTCOPY,
	CONVERGE_GIVE_UP   /* nothing allowed keeps the promise: roll back, for decision.reason */
};

enum converge_reason { CONVERGE_REASON_NONE, CONVERGE_REASON_NOT_CONVERGING, CONVERGE_REASON_DEADLINE };

#define CONVERGE_WORDS_SIZE 256
#define CONVERGE_LOWS_MAX 64

struct converge_decision {
	enum converge_action action;
	bool changed; /* settings differ from those before, or the action is not CONVERGE_GO_ON; then words say why */
	struct converge_settings settings;
	enum converge_reason reason;
	char words[CONVERGE_WORDS_SIZE]; /* a clause for people: "dirties 114 MB/s, the link carries 112 MB/s; ..." */
};

struct converge_policy;

struct converge {
	struct converge_options options;
	const struct converge_policy *policy;
	struct converge_settings settings; /* what QEMU has been told */

	/* Ferry's own. */
	uint64_t lowest_remaining_bytes; /* at the beginning of any pass but the first */
	uint64_t best_remaining_bytes;	 /* the last of these that was progress */
	int64_t best_at_us;
	int64_t limit_us; /* when the limit was raised last; 0: never */
	unsigned int passes_without_progress;
	uint64_t last_remaining_bytes; /* of the pass before */
	int64_t last_pass_us;
	size_t means_next;	   /* the one of options.means that is in use, or comes next */
	int64_t throttled_us;	   /* when what was told was first seen in force; 0: not yet */
	uint64_t best_rate_bytes_per_s; /* the link's, as far as seen */
	uint64_t dirty_bytes_per_s;	/* the last that was known */
	unsigned int throttle_slice_ms; /* as in the samples */
	int64_t ceiling_extra_ms;  /* CONVERGE_PAUSE has raised the ceiling by this */
	/* The other systems'. */
	struct {
		int64_t began_us, polled_us, since_us, patience_us;
		uint64_t last_remaining_bytes, best_remaining_bytes, lowest_bytes;
		double rate_bytes_per_s;
		unsigned int count, step;
		bool switching;
		struct converge_low {
			int64_t at_us;
			uint64_t remaining_bytes;
		} lows[CONVERGE_LOWS_MAX]; /* of earlier passes, the oldest first, each lower than the one before */
		size_t low_count;
	} peer;
};

/* How one system decides. */
struct converge_policy {
	const char *name;
	const char *summary; /* one line, for --help and the benchmark */
	bool keeps_promises; /* false: it switches when it likes, and what was promised is not looked at */
	void (*init)(struct converge *converge); /* options are in place; gives settings to begin with */
	void (*decide)(struct converge *converge, const struct converge_sample *sample, struct converge_decision *decision);
};

extern const struct converge_policy converge_policy_ferry;
/* NULL when there is no such policy. By index, for lists: NULL after the last; the first is Ferry's. */
const struct converge_policy *converge_policy_find(const char *name);
const struct converge_policy *converge_policy_at(size_t index);

/* Also gives the settings to begin with, in converge->settings. */
void converge_init(struct converge *converge, const struct converge_policy *policy, const struct converge_options *options);
/* The promise has changed while the copy is under way. */
void converge_set_options(struct converge *converge, const struct converge_options *options);
struct converge_decision converge_decide(struct converge *converge, const struct converge_sample *sample);
/* Whether a pause with this much left is allowed; asked once more when the guest has stopped. From then on the bound of
 * CONVERGE_PAUSE counts if it takes that. */
bool converge_fits(struct converge *converge, uint64_t remaining_bytes, uint64_t rate_bytes_per_s, int64_t *ret_pause_ms);
/* The longest pause that is allowed by now: what was promised, or the bound of CONVERGE_PAUSE once that is in use. */
int64_t converge_longest_pause_ms(const struct converge *converge);
/* How long so much takes, rounded up; no product wraps round. */
int64_t converge_time_ms(uint64_t bytes, uint64_t rate_bytes_per_s);

const char *converge_means_name(enum converge_means means);
/* Whether it is among these. */
bool converge_allows(const enum converge_means *allowed, size_t count, enum converge_means means);

#endif
