/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The prediction of one migration: what is known of its guest and link is gathered (rates.h, the driver, the copy itself), the
 * future computed from it (predict.h), and what has become of it remembered for the next. It adds no probe to the move, and
 * nothing depends on it: where something is not known, less is predicted. By the migration's worker.
 */
#ifndef FERRY_MIGRATION_FORECAST_H
#define FERRY_MIGRATION_FORECAST_H

#include "migration/host.h"
#include "migration/rates.h"

struct forecast {
	struct migration_host *host;
	struct migration *migration;
	struct predict_guest guest;
	struct predict_link link; /* its rate is 0 as long as nothing is known of it */
	uint64_t known_bytes_per_s; /* that rate as it was at the beginning */
	uint64_t touched_bytes;	  /* of the guest's memory, at the beginning; 0: not known */
	/* By the copy. */
	struct rates_meter meter, later_meter; /* of the first pass, and of those after it */
	int64_t copying_us, last_us, pass_us, predicted_us; /* when it began, was looked at, the pass began, and the last prediction */
	uint64_t last_sent_bytes, first_pass_bytes, scanned_bytes;
	int64_t first_pass_us;
	unsigned int pass;
	uint64_t sampled_bytes;
	bool pass_throttled, measured; /* measured: the guest's writes are this run's own */
	int64_t pause_memory_us; /* what memory took of the pause, by the rate; -1: it was not stopped */
};

/* What can be said before anything is done. machine may be NULL, or paused. */
void forecast_begin(struct forecast *forecast, struct migration_host *host, struct migration *migration, struct machine *machine);
/* The copy has begun. */
void forecast_copying(struct forecast *forecast);
/* A look at the copy, and what the policy was before it has seen it. */
void forecast_look(struct forecast *forecast, const struct move_sample *sample, const struct converge *converge,
		   const struct converge_sample *seen);
/* Whether the first pass may be over within this time; false when nothing is known of the link. After forecast_look(). */
bool forecast_first_pass_ends(const struct forecast *forecast, const struct converge_sample *seen, int64_t within_us);
/* The guest has stopped; what is left then. */
void forecast_switching(struct forecast *forecast, const struct move_sample *sample);
/* It has ended, well or not: keep what it has told, and tell the host that has the VM now. */
void forecast_learn(const struct forecast *forecast, int64_t round_trip_us);
/* What another host has learned of a VM that is ours now, and of the link to us: what is not known here is believed until it is
 * measured. It can only mislead predictions. */
int forecast_hear(struct migration_host *host, const char *from, const json_t *body, struct error **e) MUST_CHECK;

/* What is known of a machine and of a link, without a probe, for `ferry plan` too. False: of the link's rate nothing is known.
 * `closely`: there is time for a close look at the guest's memory (driver.h), otherwise made only where nothing is known. */
void forecast_know_guest(struct migration_host *host, const char *vm_uuid, struct machine *machine, bool closely,
			 struct predict_guest *ret, uint64_t *ret_touched_bytes);
bool forecast_know_link(struct migration_host *host, const char *destination, struct predict_link *ret);
/* It was measured just now how much the guest writes within a time. That takes the place of what was known, unless it is much the
 * same: then that says more, of longer times. */
void forecast_take_writes(struct predict_guest *guest, int64_t for_us, uint64_t bytes);
/* What is promised, for a policy; the deadline counts from `from_us`. */
void forecast_options(struct migration_host *host, const struct migration_promise *promise, int64_t from_us,
		      struct converge_options *ret);

#endif
