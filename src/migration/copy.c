/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The copy; see copy.h. A loop around two events: a new pass over memory (only then are the remaining bytes a fact), and
 * the guest stopped at pre-switchover (the last moment at which all can be undone at no cost). In between QEMU is looked at
 * every SAMPLE_MS, for the progress line and to hear of an abort. What to do is decided by converge.c, a pure function.
 */
#include "migration/copy.h"

#include "base/cleanup.h"
#include "base/fault.h"
#include "base/log.h"
#include "migration/converge.h"

#define SAMPLE_MS 100
/* What a pause costs besides memory: QEMU's stop and device state, loading, two round trips of ours; measured 6-9 ms. */
#define PAUSE_OVERHEAD_MS 15
#define SWITCH_PATIENCE_MS 1000
#define BANDWIDTH_PERIOD_US 500000
#define BANDWIDTH_CORRECTION_MAX 8

struct copy {
	struct migration_host *host;
	struct migration *migration;
	const struct vm_driver *driver;
	struct machine *machine;
	struct copy_result *result;
	struct converge converge;
	unsigned int pass; /* the last one that was looked at */
	int64_t next_sample_us;
	uint64_t rate_bytes_per_s; /* smoothed over samples: QEMU's own is of the last 100 ms */
	uint64_t last_transferred;
	int64_t last_us;
	uint64_t bandwidth_told; /* what QEMU was told to stay below; 0: no limit */
	int64_t bandwidth_us;	 /* since when, and what had been sent by then */
	uint64_t bandwidth_transferred;
};

/* The baton is offered before the guest can be stopped for good; doing it while memory is still copied keeps it out of the pause. */
static int copy_offer(struct copy *copy, struct error **e)
{
	if (copy->migration->handover == HANDOVER_OFFERED)
		return 0;
	return journal_step(copy->host->journal, copy->migration, HANDOVER_OFFERED, NULL, e);
}

static void copy_measure_rate(struct copy *copy, const struct move_sample *sample)
{
	int64_t elapsed_us = sample->at_us - copy->last_us;
	if (copy->last_us && elapsed_us < 20000)
		return; /* too short to say anything */
	if (copy->last_us && sample->transferred_bytes >= copy->last_transferred) {
		uint64_t rate = (sample->transferred_bytes - copy->last_transferred) * 1000000 / (uint64_t)elapsed_us;
		copy->rate_bytes_per_s = copy->rate_bytes_per_s ? (copy->rate_bytes_per_s * 6 + rate * 4) / 10 : rate;
	}
	copy->last_us = sample->at_us;
	copy->last_transferred = sample->transferred_bytes;
}

/* QEMU counts what it has sent in slices of 100 ms, and with several channels exceeds each by what these had taken already:
 * by two fifths at 20 MB/s. So it is told less, in proportion, until what was asked for is what goes out. */
static int copy_hold_bandwidth(struct copy *copy, const struct move_sample *sample, struct error **e)
{
	const uint64_t wanted = copy->migration->request.bandwidth_bytes_per_s;
	int64_t elapsed_us = sample->at_us - copy->bandwidth_us;
	if (!wanted || (copy->bandwidth_us && elapsed_us < BANDWIDTH_PERIOD_US))
		return 0;
	uint64_t told = copy->bandwidth_told ? copy->bandwidth_told : wanted;
	uint64_t sent = sample->transferred_bytes - copy->bandwidth_transferred;
	if (copy->bandwidth_us && sent > 0) {
		double rate = (double)sent * 1e6 / (double)elapsed_us, next = (double)told * (double)wanted / rate;
		if (next > (double)wanted)
			next = (double)wanted;
		if (next < (double)wanted / BANDWIDTH_CORRECTION_MAX)
			next = (double)wanted / BANDWIDTH_CORRECTION_MAX;
		told = (uint64_t)next;
	}
	copy->bandwidth_us = sample->at_us;
	copy->bandwidth_transferred = sample->transferred_bytes;
	uint64_t before = copy->bandwidth_told ? copy->bandwidth_told : wanted;
	if (told > before - before / 50 && told < before + before / 50)
		return 0; /* not worth a word */
	copy->bandwidth_told = told;
	return copy->driver->move_set_bandwidth(copy->machine, told, e);
}

static int copy_sample(struct copy *copy, const struct machine_state *state, struct error **e)
{
	struct move_sample sample = {0};
	if (copy->driver->move_sample(copy->machine, &sample, e) < 0)
		return -1;
	sample.pass = state->pass;
	copy_measure_rate(copy, &sample);
	migration_set_progress(copy->migration, &sample);
	struct converge_sample seen = {
		.at_us = sample.at_us,
		.pass = state->pass,
		.pass_began = state->pass != copy->pass,
		.remaining_bytes = sample.remaining_bytes,
		.rate_bytes_per_s = copy->rate_bytes_per_s,
		.dirty_bytes_per_s = sample.dirty_bytes_per_s,
	};
	int held = copy_hold_bandwidth(copy, &sample, e);
	move_sample_done(&sample);
	if (held < 0)
		return -1;
	copy->pass = state->pass;
	if (seen.pass >= 2 && copy_offer(copy, e) < 0)
		return -1;

	struct converge_decision decision = converge_decide(&copy->converge, &seen);
	if (decision.action == CONVERGE_SET_LIMIT) {
		log_info("pass=%u remaining=%llu: the memory part of the pause may be %u ms now", seen.pass,
			 (unsigned long long)seen.remaining_bytes, decision.limit_ms);
		return copy->driver->move_set_downtime_limit(copy->machine, decision.limit_ms, e);
	}
	if (decision.action == CONVERGE_GIVE_UP && decision.reason == CONVERGE_REASON_DEADLINE)
		return error_set(e, ERROR_MIGRATION_DEADLINE, "the deadline of %lld ms passed with %llu MiB left to copy",
				 (long long)copy->migration->request.deadline_ms,
				 (unsigned long long)seen.remaining_bytes >> 20);
	if (decision.action == CONVERGE_GIVE_UP)
		return error_set(e, ERROR_MIGRATION_NOT_CONVERGING,
				 "the guest dirties %llu MB/s, the link carries %llu MB/s, and %llu MiB are left after pass %u;"
				 " allow a longer pause with --max-downtime",
				 (unsigned long long)seen.dirty_bytes_per_s / 1000000,
				 (unsigned long long)seen.rate_bytes_per_s / 1000000,
				 (unsigned long long)seen.remaining_bytes >> 20, seen.pass);
	return 0;
}

/* The guest is stopped and everything can still be undone: look once more whether the promise will be kept, then go on. */
static int copy_switch(struct copy *copy, const struct machine_state *state, struct error **e)
{
	if (copy->result->was_running)
		copy->result->stopped_us = state->stopped_us;
	if (copy_offer(copy, e) < 0)
		return -1;
	struct move_sample sample = {0};
	if (copy->driver->move_sample(copy->machine, &sample, e) < 0)
		return -1;
	uint64_t remaining = sample.remaining_bytes;
	move_sample_done(&sample);
	int64_t pause_ms = 0;
	/* A first pass so short that no rate is known is no reason to turn back. */
	if (copy->result->was_running && copy->rate_bytes_per_s &&
	    !converge_fits(&copy->converge, remaining, copy->rate_bytes_per_s, &pause_ms))
		return error_set(e, ERROR_MIGRATION_DOWNTIME, "the pause would have been %lld ms, %lld ms are allowed",
				 (long long)pause_ms, (long long)copy->migration->request.max_downtime_ms);
	if (copy->driver->move_continue(copy->machine, e) < 0)
		return -1;
	FAULT(FAULT_SWITCH_BEGUN);
	/* While QEMU sends the devices' state: nothing of the guest leaves here any more, whatever its QEMU announces. */
	migration_set_status(copy->migration, MIGRATION_SWITCHING);
	copy->result->ports_shut = true;
	return copy->driver->ports_shut(copy->machine, e);
}

static int copy_failed(struct copy *copy, const struct machine_state *state, struct error **e)
{
	struct move_sample sample = {0};
	if (copy->driver->move_sample(copy->machine, &sample, e) < 0)
		return -1;
	error_set(e, ERROR_MIGRATION_QEMU, "QEMU's migration is %s: %s", move_state_name(state->move),
		  sample.failure ? sample.failure : "no reason given");
	move_sample_done(&sample);
	return -1;
}

/* How long the switch may take before it is undone. That it breaks the promise is certain then, either way; some patience
 * beyond it, as the next attempt would not be quicker on a host that is merely busy. What it is for is a link that is gone. */
static int64_t copy_longest_pause_us(const struct copy *copy)
{
	return (copy->migration->request.max_downtime_ms + SWITCH_PATIENCE_MS) * 1000;
}

static int copy_loop(struct copy *copy, struct error **e)
{
	bool switched = false;
	for (;;) {
		struct machine_state state;
		copy->driver->state(copy->machine, &state);
		/* First: if QEMU ended after it had sent everything, the destination can still save the guest. */
		if (state.move == MOVE_COMPLETED) {
			if (copy->result->was_running && !copy->result->stopped_us)
				copy->result->stopped_us = state.stopped_us;
			FAULT(FAULT_COPY_COMPLETED);
			return copy_offer(copy, e);
		}
		if (state.run == MACHINE_GONE) {
			cleanup_free char *words = copy->driver->last_words(copy->machine);
			return error_set(e, ERROR_QEMU_GONE, "the source's QEMU ended during the copy: %s", words);
		}
		if (state.move == MOVE_FAILED || state.move == MOVE_CANCELLED)
			return copy_failed(copy, &state, e);
		if (migration_abort_requested(copy->migration))
			return error_set(e, ERROR_CANCELLED, "cancelled on request");
		if (state.move == MOVE_PRE_SWITCHOVER && !switched) {
			switched = true;
			if (copy_switch(copy, &state, e) < 0)
				return -1;
			continue;
		}
		int64_t now_us = clock_monotonic_us();
		if (switched && copy->result->stopped_us && now_us > copy->result->stopped_us + copy_longest_pause_us(copy))
			return error_set(e, ERROR_MIGRATION_DOWNTIME,
					 "the guest was paused for %lld ms and not everything had arrived; %lld ms are allowed",
					 (long long)(now_us - copy->result->stopped_us) / 1000,
					 (long long)copy->migration->request.max_downtime_ms);
		if (state.move == MOVE_ACTIVE && (state.pass != copy->pass || now_us >= copy->next_sample_us)) {
			if (copy_sample(copy, &state, e) < 0)
				return -1;
			copy->next_sample_us = now_us + SAMPLE_MS * 1000;
		}
		(void)copy->driver->wait_change(copy->machine, state.change, now_us + SAMPLE_MS * 1000);
		if (migration_host_stopping(copy->host))
			return error_set(e, ERROR_SHUTTING_DOWN, "ferryd is stopping");
	}
}

int copy_run(struct migration_host *host, struct migration *migration, struct machine *machine, const struct move_options *move,
	     struct copy_result *ret, struct error **e)
{
	struct copy copy = {
		.host = host,
		.migration = migration,
		.driver = inventory_driver(host->inventory),
		.machine = machine,
		.result = ret,
	};
	struct machine_state state;
	copy.driver->state(machine, &state);
	ret->was_running = state.run == MACHINE_RUNNING;

	struct converge_options options = {
		.max_downtime_ms = migration->request.max_downtime_ms,
		.overhead_ms = PAUSE_OVERHEAD_MS + 3 * journal_commit_us(host->journal) / 1000,
		.deadline_us = migration->request.deadline_ms ? migration->began_us + migration->request.deadline_ms * 1000 : 0,
	};
	converge_init(&copy.converge, &options);
	struct move_options with_limit = *move;
	with_limit.downtime_limit_ms = copy.converge.limit_ms;
	ret->begun = true;
	if (copy.driver->move_prepare(machine, &with_limit, e) < 0 || copy.driver->move_start(machine, &with_limit, e) < 0)
		return -1;
	FAULT(FAULT_COPY_BEGUN);
	return copy_loop(&copy, e);
}

void copy_keep_final_figures(const struct vm_driver *driver, struct machine *machine, struct migration *migration)
{
	struct move_sample sample = {0};
	cleanup_error struct error *e = NULL;
	if (driver->move_sample(machine, &sample, &e) < 0) {
		log_failure(LOG_LEVEL_WARNING, "cannot read the final figures", e);
		return;
	}
	struct machine_state state;
	driver->state(machine, &state);
	sample.pass = state.pass;
	migration_set_progress(migration, &sample);
	move_sample_done(&sample);
}
