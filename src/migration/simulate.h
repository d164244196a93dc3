/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A memory copy made up: a guest that writes, a link that carries, QEMU's passes in between, and a policy (converge.h) that
 * decides. What comes out is how such a copy would go; so it is both the bench on which policies are tried by the thousand
 * and what a prediction is made with (predict.h). Deterministic, without allocation; any thread.
 *
 * The model. A pass sends what the last synchronisation found; meanwhile the guest writes into its working set, page after
 * page in turn or at random. The synchronisation finds the pages that were written, and when there are less of them than
 * rate × limit, QEMU stops the guest. A throttle is in force at once, or, where it is QEMU's, at every second synchronisation,
 * a second or more apart, at which the guest had written more than a part of what was sent.
 */
#ifndef FERRY_MIGRATION_SIMULATE_H
#define FERRY_MIGRATION_SIMULATE_H

#include "migration/converge.h"

struct simulated_guest {
	uint64_t memory_bytes;
	uint64_t zero_bytes; /* of these: pages that were never written, sent as a few bytes each */
	uint64_t working_set_bytes;
	uint64_t writes_bytes_per_s; /* pages written, in bytes; as often as they are */
	bool in_turn;		     /* sweeps through its working set; false: at random */
	unsigned int busy_percent;   /* of its processors' time, when it is not throttled; 100: all, and a throttle is felt at once */
	int64_t calm_every_us, calm_for_us; /* it writes nothing for so long so often; 0: never */
};

struct simulated_link {
	uint64_t rate_bytes_per_s;
	uint64_t later_bytes_per_s; /* in passes after the first; 0: the same */
	uint64_t scan_bytes_per_s; /* how fast zero pages are found; 0: no time */
	int64_t overhead_ms;	   /* what a pause costs beside memory, really */
	bool qemu_throttles;	   /* nobody can throttle from outside (vm/throttle.h) */
	bool no_sampling;	   /* nobody can say how fast the guest writes before it was synchronised */
};

enum simulated_end { SIMULATED_SWITCHED, SIMULATED_POSTCOPY, SIMULATED_GAVE_UP, SIMULATED_ENDLESS };

struct simulated_copy {
	enum simulated_end end;
	int64_t total_us;  /* until the guest runs at the destination, or it is given up */
	int64_t first_pass_us;
	int64_t pause_us;
	uint64_t wire_bytes;
	uint64_t remaining_bytes; /* at the end */
	unsigned int passes;
	unsigned int throttle_percent; /* the most that was in force */
	int64_t lost_work_us;	       /* of the guest's processors, by the throttle */
	enum converge_reason reason;
	char words[CONVERGE_WORDS_SIZE];
};

/* Longer is endless. */
#define SIMULATE_LONGEST_US (INT64_C(86400) * 1000000)

/* deadline_us of the options counts from 0, the beginning of the copy. */
void simulate_copy(const struct simulated_guest *guest, const struct simulated_link *link, const struct converge_policy *policy,
		   const struct converge_options *options, struct simulated_copy *ret);
/* How one that is under way would go on: from the beginning of a pass, whose sample the policy has not seen yet. Times and bytes
 * count from there; words and reason are those of what is still to be decided. */
void simulate_rest(const struct simulated_guest *guest, const struct simulated_link *link, const struct converge *converge,
		   const struct converge_sample *sample, struct simulated_copy *ret);

#endif
