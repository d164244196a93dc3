/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The copy; see copy.h. A loop around two events: a new pass over memory (only then are the remaining bytes a fact), and
 * the guest stopped at pre-switchover (the last moment at which all can be undone at no cost). In between QEMU is looked at
 * every SAMPLE_MS, for the progress line and to hear of an abort. What to do is decided by converge.c, a pure function.
 */
#include "migration/copy.h"

#include <stdio.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/fault.h"
#include "base/log.h"
#include "migration/converge.h"
#include "relay/pipe.h"

#define SAMPLE_MS 100
#define SWITCH_PATIENCE_MS 1000
#define SERVES_LOOK_US 1000
#define DIRTY_RATE_MS 1000
#define LONGEST_LIMIT_MS 2000000 /* that QEMU takes */
#define BANDWIDTH_PERIOD_US 500000
#define OFFER_AHEAD_US 1500000 /* more than a disk that others use, too, takes for a commit */
#define BANDWIDTH_CORRECTION_MAX 8

struct copy {
	struct migration_host *host;
	struct migration *migration;
	const struct vm_driver *driver;
	struct machine *machine;
	struct copy_result *result;
	struct forecast *forecast;
	struct converge converge;
	unsigned int pass; /* the last one that was looked at */
	int64_t next_sample_us;
	uint64_t rate_bytes_per_s; /* smoothed over samples: QEMU's own is of the last 100 ms */
	uint64_t last_transferred;
	int64_t last_us;
	uint64_t bandwidth_told; /* what QEMU was told to stay below; 0: no limit */
	int64_t bandwidth_us;	 /* since when, and what had been sent by then */
	uint64_t bandwidth_transferred;
	bool samples_dirty_rate;
	uint64_t sampled_dirty_bytes_per_s;
	bool hurried; /* told to switch on request: there is nothing left to decide */
};

/* What the policy goes by, in the log: with "pass=" above its decisions, the whole of it can be replayed (tests/unit/traces). */
static void copy_log_options(const struct converge_options *options, const struct converge_policy *policy)
{
	char means[64] = "";
	for (size_t i = 0; i < options->means_count; i++)
		snprintf(means + strlen(means), sizeof(means) - strlen(means), " %s", converge_means_name(options->means[i]));
	log_debug("options policy=%s max_downtime_ms=%lld overhead_ms=%lld deadline_us=%lld longest_pause_ms=%lld means:%s", policy->name,
		  (long long)options->max_downtime_ms, (long long)options->overhead_ms, (long long)options->deadline_us,
		  (long long)options->longest_pause_ms, means);
}

static void copy_log_sample(const struct converge_sample *seen)
{
	log_debug("sample at_us=%lld pass=%u began=%d remaining=%llu rate=%llu dirty=%llu sampled=%llu throttle=%u slice_ms=%u busy=%u total=%llu",
		  (long long)seen->at_us, seen->pass, (int)seen->pass_began, (unsigned long long)seen->remaining_bytes,
		  (unsigned long long)seen->rate_bytes_per_s, (unsigned long long)seen->dirty_bytes_per_s,
		  (unsigned long long)seen->sampled_dirty_bytes_per_s, seen->throttle_percent, seen->throttle_slice_ms, seen->busy_percent,
		  (unsigned long long)seen->total_bytes);
}

/* The baton is offered before the guest can be stopped for good; doing it while memory is still copied keeps it out of the pause: also
 * where the disk takes its time, as QEMU may stop the guest as soon as the first pass is over. But not long before, since a host that
 * goes down then must ask the other one whose the guest is. */
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

/* False where QEMU is just doing it for somebody else, or cannot. */
static bool copy_measure_dirty_rate(struct copy *copy)
{
	cleanup_error struct error *e = NULL;
	if (copy->driver->measure_dirty_rate(copy->machine, DIRTY_RATE_MS, &e) == 0)
		return true;
	log_failure(LOG_LEVEL_INFO, "the guest's dirty rate is not measured now", e);
	return false;
}

/* In the first pass nothing but a look at some pages tells how fast the guest writes. */
static void copy_sample_dirty_rate(struct copy *copy, unsigned int pass)
{
	cleanup_error struct error *e = NULL;
	if (!copy->samples_dirty_rate || pass > 1)
		return;
	unsigned int for_ms;
	uint64_t bytes_per_s;
	const int ready = copy->driver->dirty_rate(copy->machine, &bytes_per_s, &for_ms, &e);
	if (ready < 0)
		log_failure(LOG_LEVEL_WARNING, "the guest's dirty rate cannot be measured", e);
	if (ready == 0)
		return;
	/* Another time tells another rate: pages that are written twice in it count once. */
	const bool somebody_elses = ready > 0 && for_ms != DIRTY_RATE_MS;
	copy->samples_dirty_rate = somebody_elses && copy_measure_dirty_rate(copy);
	if (ready < 0 || somebody_elses)
		return;
	copy->sampled_dirty_bytes_per_s = bytes_per_s;
	log_info("sampled dirty_bytes_per_s=%llu", (unsigned long long)bytes_per_s);
}

static int copy_set_bandwidth(struct copy *copy, uint64_t bytes_per_s, struct error **e)
{
	if (!copy->migration->pipe)
		return copy->driver->move_set_bandwidth(copy->machine, bytes_per_s, e);
	relay_pipe_limit_rate(copy->migration->pipe, bytes_per_s);
	return 0;
}

/* QEMU counts what it has sent in slices of 100 ms, and with several channels exceeds each by what these had taken already:
 * by two fifths at 20 MB/s. So it is told less, in proportion, until what was asked for is what goes out. */
static int copy_hold_bandwidth(struct copy *copy, const struct move_sample *sample, struct error **e)
{
	const uint64_t wanted = copy->migration->request.promise.bandwidth_bytes_per_s;
	int64_t elapsed_us = sample->at_us - copy->bandwidth_us;
	if (!wanted || copy->migration->pipe || (copy->bandwidth_us && elapsed_us < BANDWIDTH_PERIOD_US))
		return 0; /* the relay keeps to what it is told */
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

/* Tell QEMU what has been decided. */
static int copy_tell_settings(struct copy *copy, const struct converge_settings *settings, struct error **e)
{
	const struct move_limits limits = {.downtime_ms = settings->limit_ms,
					   .throttle_percent = settings->throttle_percent,
					   .dirty_bytes_per_s = settings->dirty_bytes_per_s,
					   .throttle_increment = settings->throttle_increment};
	return copy->driver->move_set_limits(copy->machine, &limits, e);
}

static int copy_obey(struct copy *copy, const struct converge_decision *decision, struct error **e)
{
	if (!decision->changed)
		return 0;
	log_info("pass=%u limit_ms=%u throttle=%u%%: %s", copy->pass, decision->settings.limit_ms,
		 decision->settings.throttle_percent, decision->words);
	migration_note_decision(copy->migration, decision->words);
	if (decision->action == CONVERGE_START_POSTCOPY) {
		if (copy_offer(copy, e) < 0 || copy->driver->move_start_postcopy(copy->machine, e) < 0)
			return -1;
		copy->result->postcopy = copy->hurried = true; /* there is nothing left to decide */
		return 0;
	}
	if (decision->action != CONVERGE_GIVE_UP)
		return copy_tell_settings(copy, &decision->settings, e);
	if (decision->reason == CONVERGE_REASON_DEADLINE)
		return error_set(e, ERROR_MIGRATION_DEADLINE, "the deadline of %lld ms has come: %s",
				 (long long)copy->migration->request.promise.deadline_ms, decision->words);
	return error_set(e, ERROR_MIGRATION_NOT_CONVERGING, "%s", decision->words);
}

/* What somebody has asked for meanwhile: another promise, or the end of all patience. */
static int copy_take_requests(struct copy *copy, struct error **e)
{
	if (migration_take_promise(copy->migration)) {
		struct converge_options options;
		forecast_options(copy->host, &copy->migration->request.promise, copy->migration->began_us, &options);
		converge_set_options(&copy->converge, &options);
		copy_log_options(&options, copy->converge.policy);
		const uint64_t bandwidth = copy->migration->request.promise.bandwidth_bytes_per_s;
		copy->bandwidth_told = 0;
		copy->bandwidth_us = 0;
		migration_note_decision(copy->migration, "the promise was changed on request");
		log_info("the promise was changed on request");
		if (copy_set_bandwidth(copy, bandwidth, e) < 0 || (!copy->hurried && copy_tell_settings(copy, &copy->converge.settings, e) < 0))
			return -1;
	}
	if (!copy->hurried && migration_complete_requested(copy->migration)) {
		copy->hurried = true;
		migration_note_decision(copy->migration, "it switches on request, whatever the pause");
		log_info("switching on request");
		const struct converge_settings now = {.limit_ms = LONGEST_LIMIT_MS,
						      .throttle_percent = copy->converge.settings.throttle_percent};
		return copy_tell_settings(copy, &now, e);
	}
	return 0;
}

/* What crosses the link is the relay's to say, where there is one. */
static int copy_look(const struct vm_driver *driver, struct machine *machine, struct migration *migration, struct move_sample *ret,
		     struct error **e)
{
	if (driver->move_sample(machine, ret, e) < 0)
		return -1;
	if (migration->pipe) {
		struct page_sender_counts pages;
		ret->wire_bytes = relay_pipe_wire_bytes(migration->pipe);
		relay_pipe_counts(migration->pipe, &pages);
		migration_set_pages(migration, &pages);
	}
	return 0;
}

static int copy_sample(struct copy *copy, const struct machine_state *state, struct error **e)
{
	struct move_sample sample = {0};
	if (copy_look(copy->driver, copy->machine, copy->migration, &sample, e) < 0)
		return -1;
	sample.pass = state->pass;
	copy_measure_rate(copy, &sample);
	copy_sample_dirty_rate(copy, sample.pass);
	migration_set_progress(copy->migration, &sample);
	migration_note_sample(copy->migration, &sample, &copy->converge.settings);
	struct converge_sample seen = {
		.at_us = sample.at_us,
		.pass = state->pass,
		.pass_began = state->pass != copy->pass,
		.remaining_bytes = sample.remaining_bytes,
		.rate_bytes_per_s = copy->rate_bytes_per_s,
		.dirty_bytes_per_s = sample.dirty_bytes_per_s,
		.sampled_dirty_bytes_per_s = copy->sampled_dirty_bytes_per_s,
		.throttle_percent = sample.throttle_percent,
		.throttle_at_once = sample.throttle_at_once,
		.throttle_slice_ms = sample.throttle_slice_ms,
		.busy_percent = sample.busy_percent,
		.total_bytes = sample.total_bytes,
	};
	forecast_look(copy->forecast, &sample, &copy->converge, &seen);
	int held = copy_hold_bandwidth(copy, &sample, e);
	move_sample_done(&sample);
	if (held < 0)
		return -1;
	copy->pass = state->pass;
	if ((seen.pass >= 2 || forecast_first_pass_ends(copy->forecast, &seen, OFFER_AHEAD_US)) && copy_offer(copy, e) < 0)
		return -1;
	if (copy->hurried)
		return 0;
	copy_log_sample(&seen);
	const struct converge_decision decision = converge_decide(&copy->converge, &seen);
	return copy_obey(copy, &decision, e);
}

static bool copy_deadline_passes(const struct copy *copy, int64_t at_us)
{
	const int64_t deadline_us = copy->converge.options.deadline_us;
	return deadline_us && at_us > deadline_us && copy->converge.policy->keeps_promises;
}

/* Whether a switch with this much left keeps what was promised. */
static int copy_check_promise(struct copy *copy, uint64_t remaining_bytes, struct error **e)
{
	int64_t pause_ms = 0;
	if (copy->hurried)
		return 0;
	/* A first pass so short that no rate is known is no reason to turn back. */
	if (copy->result->was_running && copy->rate_bytes_per_s &&
	    !converge_fits(&copy->converge, remaining_bytes, copy->rate_bytes_per_s, &pause_ms))
		return error_set(e, ERROR_MIGRATION_DOWNTIME, "the pause would have been %lld ms, %lld ms are allowed",
				 (long long)pause_ms, (long long)converge_longest_pause_ms(&copy->converge));
	if (copy_deadline_passes(copy, clock_monotonic_us() + pause_ms * 1000))
		return error_set(e, ERROR_MIGRATION_DEADLINE, "the deadline of %lld ms would have passed during the switch",
				 (long long)copy->migration->request.promise.deadline_ms);
	return 0;
}

/* What was asked for until now still counts; from then on nothing can be changed. */
static int copy_settle_promise(struct copy *copy, uint64_t remaining_bytes, struct error **e)
{
	do {
		if (copy_take_requests(copy, e) < 0 || copy_check_promise(copy, remaining_bytes, e) < 0)
			return -1;
	} while (!migration_settle_promise(copy->migration, converge_longest_pause_ms(&copy->converge)));
	return 0;
}

/* Nothing of the guest leaves here any more, whatever its QEMU announces. In post-copy there is no way back by now: the
 * destination has opened its own ports, or is about to. */
static int copy_shut_ports(struct copy *copy, struct error **e)
{
	cleanup_error struct error *problem = NULL;
	copy->result->ports_shut = true;
	if (copy->driver->ports_shut(copy->machine, &problem) == 0)
		return 0;
	if (!copy->result->postcopy)
		return error_move(e, take_ptr(problem));
	log_failure(LOG_LEVEL_ERROR, "the source's ports", problem);
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
	if (copy_look(copy->driver, copy->machine, copy->migration, &sample, e) < 0)
		return -1;
	uint64_t remaining = sample.remaining_bytes;
	sample.pass = state->pass;
	forecast_switching(copy->forecast, &sample);
	migration_note_sample(copy->migration, &sample, &copy->converge.settings);
	move_sample_done(&sample);
	if (copy->result->postcopy && !migration_begin_postcopy(copy->migration))
		return error_set(e, ERROR_CANCELLED, "cancelled on request");
	if (!copy->result->postcopy && copy_settle_promise(copy, remaining, e) < 0)
		return -1;
	if (copy->driver->move_continue(copy->machine, e) < 0)
		return -1;
	FAULT(copy->result->postcopy ? FAULT_POSTCOPY_BEGUN : FAULT_SWITCH_BEGUN);
	migration_set_status(copy->migration, MIGRATION_SWITCHING);
	return copy_shut_ports(copy, e); /* while QEMU sends the devices' state */
}

static int copy_failed(const struct vm_driver *driver, struct machine *machine, const struct machine_state *state, struct error **e)
{
	struct move_sample sample = {0};
	if (driver->move_sample(machine, &sample, e) < 0)
		return -1;
	error_set(e, ERROR_MIGRATION_QEMU, "QEMU's migration is %s: %s", move_state_name(state->move),
		  sample.failure ? sample.failure : "no reason given");
	move_sample_done(&sample);
	return -1;
}

static int copy_qemu_gone(const struct vm_driver *driver, struct machine *machine, struct error **e)
{
	cleanup_free char *words = driver->last_words(machine);
	return error_set(e, ERROR_QEMU_GONE, "the source's QEMU ended during the copy: %s", words);
}

/* How long the switch may take before it is undone. That it breaks the promise is certain then, either way; some patience
 * beyond it, as the next attempt would not be quicker on a host that is merely busy. What it is for is a link that is gone. */
static int64_t copy_longest_pause_us(const struct copy *copy)
{
	if (copy->hurried || !copy->converge.policy->keeps_promises) /* whatever the pause: QEMU's own bound */
		return (int64_t)LONGEST_LIMIT_MS * 1000;
	return (converge_longest_pause_ms(&copy->converge) + SWITCH_PATIENCE_MS) * 1000;
}

/* It is in post-copy. One that pauses has served before: its stream broke. */
static bool copy_serves(const struct vm_driver *driver, struct machine *machine, const struct machine_state *state)
{
	struct move_sample sample = {0};
	cleanup_error struct error *e = NULL;
	if (state->move != MOVE_POSTCOPY)
		return true;
	if (driver->move_sample(machine, &sample, &e) < 0) {
		log_failure(LOG_LEVEL_WARNING, "whether QEMU serves pages is not known yet", e);
		return false;
	}
	const bool serves = sample.state == MOVE_COMPLETED || (sample.state == MOVE_POSTCOPY && sample.postcopy_bytes > 0);
	move_sample_done(&sample);
	return serves;
}

int copy_await_serving(struct migration_host *host, struct machine *machine, struct error **e)
{
	const struct vm_driver *driver = inventory_driver(host->inventory);
	for (;;) {
		struct machine_state state;
		driver->state(machine, &state);
		if (state.move == MOVE_COMPLETED)
			return 0;
		if (state.run == MACHINE_GONE)
			return copy_qemu_gone(driver, machine, e);
		if (!move_in_postcopy(state.move))
			return copy_failed(driver, machine, &state, e);
		if (copy_serves(driver, machine, &state))
			return 0;
		if (migration_host_stopping(host))
			return error_set(e, ERROR_SHUTTING_DOWN, "ferryd is stopping");
		(void)driver->wait_change(machine, state.change, clock_monotonic_us() + SERVES_LOOK_US);
	}
}

/* A guest is slow for as long as somebody sees to it that this ends, and not while no ferryd runs. */
static void copy_leave(struct copy *copy)
{
	cleanup_error struct error *e = NULL;
	struct converge_settings settings = copy->converge.settings;
	if (settings.throttle_percent == 0)
		return;
	settings.throttle_percent = 0;
	if (copy_tell_settings(copy, &settings, &e) < 0)
		log_failure(LOG_LEVEL_WARNING, "the guest may still be throttled", e);
}

static void copy_note_stop(struct copy *copy, const struct machine_state *state)
{
	if (copy->result->was_running && !copy->result->stopped_us)
		copy->result->stopped_us = state->stopped_us;
}

static int copy_loop(struct copy *copy, struct error **e)
{
	bool switched = false;
	for (;;) {
		struct machine_state state;
		copy->driver->state(copy->machine, &state);
		/* First: if QEMU ended after it had sent everything, the destination can still save the guest. */
		if (state.move == MOVE_COMPLETED) {
			copy_note_stop(copy, &state);
			FAULT(FAULT_COPY_COMPLETED);
			return copy_offer(copy, e);
		}
		if (move_in_postcopy(state.move)) {
			copy_note_stop(copy, &state);
			return copy_await_serving(copy->host, copy->machine, e);
		}
		if (state.run == MACHINE_GONE)
			return copy_qemu_gone(copy->driver, copy->machine, e);
		if (state.move == MOVE_FAILED || state.move == MOVE_CANCELLED)
			return copy_failed(copy->driver, copy->machine, &state, e);
		if (migration_abort_requested(copy->migration))
			return error_set(e, ERROR_CANCELLED, "cancelled on request");
		if (state.move == MOVE_PRE_SWITCHOVER && !switched) {
			switched = true;
			if (copy_switch(copy, &state, e) < 0)
				return -1;
			continue;
		}
		int64_t now_us = clock_monotonic_us();
		/* Not in post-copy: QEMU may have begun it by now, and it cannot be called off any more. */
		if (switched && !copy->result->postcopy && copy->result->stopped_us && now_us > copy->result->stopped_us + copy_longest_pause_us(copy))
			return error_set(e, ERROR_MIGRATION_DOWNTIME,
					 "the guest was paused for %lld ms and not everything had arrived; %lld ms are allowed",
					 (long long)(now_us - copy->result->stopped_us) / 1000,
					 (long long)converge_longest_pause_ms(&copy->converge));
		if (state.move == MOVE_ACTIVE && copy_take_requests(copy, e) < 0)
			return -1;
		if (state.move == MOVE_SETUP && copy_deadline_passes(copy, now_us))
			return error_set(e, ERROR_MIGRATION_DEADLINE, "the deadline of %lld ms has come before anything was copied",
					 (long long)copy->migration->request.promise.deadline_ms);
		if (state.move == MOVE_ACTIVE && (state.pass != copy->pass || now_us >= copy->next_sample_us)) {
			if (copy_sample(copy, &state, e) < 0)
				return -1;
			copy->next_sample_us = now_us + SAMPLE_MS * 1000;
		}
		(void)copy->driver->wait_change(copy->machine, state.change, now_us + SAMPLE_MS * 1000);
		if (migration_host_stopping(copy->host)) {
			copy_leave(copy);
			return error_set(e, ERROR_SHUTTING_DOWN, "ferryd is stopping");
		}
	}
}

int copy_run(struct migration_host *host, struct migration *migration, struct machine *machine, const struct move_options *move,
	     struct forecast *forecast, struct copy_result *ret, struct error **e)
{
	struct copy copy = {
		.host = host,
		.migration = migration,
		.driver = inventory_driver(host->inventory),
		.machine = machine,
		.result = ret,
		.forecast = forecast,
	};
	struct machine_state state;
	copy.driver->state(machine, &state);
	ret->was_running = state.run == MACHINE_RUNNING;
	ret->begun_us = clock_monotonic_us();

	struct converge_options options;
	forecast_options(host, &migration->request.promise, migration->began_us, &options);
	converge_init(&copy.converge, migration->request.policy, &options);
	copy_log_options(&options, migration->request.policy);
	struct move_options with_limits = *move;
	/* Allowed also where it is not asked for: what is promised may be changed meanwhile, QEMU's capabilities may not. */
	with_limits.may_throttle = true;
	with_limits.limits = (struct move_limits){.downtime_ms = copy.converge.settings.limit_ms,
						  .throttle_percent = copy.converge.settings.throttle_percent,
						  .throttle_increment = copy.converge.settings.throttle_increment};
	ret->begun = true;
	if (copy.driver->move_prepare(machine, &with_limits, e) < 0 || copy.driver->move_start(machine, &with_limits, e) < 0)
		return -1;
	FAULT(FAULT_COPY_BEGUN);
	forecast_copying(forecast);
	copy.samples_dirty_rate = ret->was_running;
	if (ret->was_running)
		(void)copy_measure_dirty_rate(&copy);
	return copy_loop(&copy, e);
}

void copy_keep_figures(const struct vm_driver *driver, struct machine *machine, struct migration *migration, bool on_the_way)
{
	struct move_sample sample = {0};
	cleanup_error struct error *e = NULL;
	struct machine_state state;
	driver->state(machine, &state);
	if (copy_look(driver, machine, migration, &sample, &e) < 0) {
		log_failure(on_the_way ? LOG_LEVEL_DEBUG : LOG_LEVEL_WARNING, "the copy's figures cannot be read", e);
		return;
	}
	sample.pass = state.pass;
	migration_set_progress(migration, &sample);
	if (on_the_way)
		migration_note_sample(migration, &sample, &(struct converge_settings){0});
	move_sample_done(&sample);
}
