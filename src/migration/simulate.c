/* SPDX-License-Identifier: Apache-2.0 */
/* A memory copy made up; see simulate.h for the model. Time goes by in steps: a look of the policy, or less. */
#include "migration/simulate.h"

#include <math.h>
#include <stdio.h>

#define PAGE_BYTES 4096.0
#define PAGE_HEADER_BYTES 8.0
#define ZERO_PAGE_BYTES 9.0
#define LOOK_US 100000.0
#define LOOKS_MAX 200.0 /* in one pass: a long one need not be looked at that often */
#define SAMPLED_US 1000000
#define LIMIT_FELT_US 50000 /* QEMU reckons by a new limit when it next counts what it has sent, every 100 ms */
#define THROTTLE_LOOK_US 1000000 /* QEMU judges by what has happened in a second at least */
#define THROTTLE_STEPS 2
#define THROTTLE_TICK_MS 4 /* at which the kernel looks, as most distributions build it */
#define THROTTLE_MAX_PERCENT 99
#define SYNCHRONISATION_US 3000 /* a guest of 1 GiB on a small machine */
#define STEPS_MAX 200000 /* beyond, it is endless: tens of milliseconds of ours */

struct simulation {
	const struct simulated_guest *guest;
	const struct simulated_link *link;
	struct converge converge;
	double now_us;
	double dirty_bytes; /* written since the last synchronisation */
	double pass_bytes; /* that this pass has to send */
	double sent_bytes;
	double rate_bytes_per_s; /* of this pass and of memory: the headers of pages taken off */
	unsigned int limit_ms, told_limit_ms; /* QEMU's, and what it has been told since then */
	double limit_told_us;
	unsigned int throttle_percent, throttle_count;
	double judged_us, judged_sent_bytes, judged_dirty_bytes; /* QEMU's throttle: since when, and what had happened by then */
	double found_bytes; /* by all synchronisations */
	double began_us;
	unsigned int steps;
	double sampled_bytes_per_s;
	struct simulated_copy *result;
};

static bool is_calm(const struct simulation *s)
{
	const struct simulated_guest *guest = s->guest;
	return guest->calm_every_us > 0 && fmod(s->now_us, (double)guest->calm_every_us) < (double)guest->calm_for_us;
}

/* Pages written, in bytes a second, by a guest that is throttled as it is now. */
static double writes_per_s(const struct simulation *s)
{
	const double wants = s->guest->busy_percent ? s->guest->busy_percent : 100, gets = 100 - s->throttle_percent;
	return is_calm(s) ? 0 : (double)s->guest->writes_bytes_per_s * (gets < wants ? gets / wants : 1);
}

static void let_guest_write(struct simulation *s, double for_us)
{
	const double set = (double)s->guest->working_set_bytes, writes = writes_per_s(s) * for_us / 1e6;
	const double wants = s->guest->busy_percent ? s->guest->busy_percent : 100, gets = 100 - s->throttle_percent;
	if (gets < wants)
		s->result->lost_work_us += (int64_t)(for_us * (1 - gets / wants));
	if (set <= 0)
		return;
	if (s->guest->in_turn)
		s->dirty_bytes = fmin(set, s->dirty_bytes + writes);
	else
		s->dirty_bytes = set - (set - s->dirty_bytes) * exp(-writes / set);
}

static struct converge_sample look(const struct simulation *s, double remaining_bytes, double dirty_per_s, bool pass_began)
{
	return (struct converge_sample){
		.at_us = (int64_t)s->now_us,
		.pass = s->result->passes,
		.pass_began = pass_began,
		.remaining_bytes = (uint64_t)remaining_bytes,
		.rate_bytes_per_s = (uint64_t)s->rate_bytes_per_s,
		.dirty_bytes_per_s = (uint64_t)dirty_per_s,
		.sampled_dirty_bytes_per_s = s->now_us >= SAMPLED_US && !s->link->no_sampling ? (uint64_t)s->sampled_bytes_per_s : 0,
		.throttle_percent = s->throttle_percent,
		.throttle_at_once = !s->link->qemu_throttles,
		.busy_percent = s->guest->busy_percent,
		.throttle_slice_ms = s->link->qemu_throttles ? 0 : THROTTLE_TICK_MS,
		.total_bytes = s->guest->memory_bytes,
	};
}

static void set_throttle(struct simulation *s, unsigned int percent)
{
	s->throttle_percent = percent;
	if (percent > s->result->throttle_percent)
		s->result->throttle_percent = percent;
}

/* False: it has ended here. */
static bool decide(struct simulation *s, const struct converge_sample *sample)
{
	struct converge_decision decision = converge_decide(&s->converge, sample);
	if (decision.changed)
		snprintf(s->result->words, sizeof(s->result->words), "%s", decision.words);
	s->result->reason = decision.reason;
	if (!s->link->qemu_throttles && !decision.settings.throttle_increment)
		set_throttle(s, decision.settings.throttle_percent);
	s->result->remaining_bytes = sample->remaining_bytes;
	if (decision.action == CONVERGE_GO_ON)
		return true;
	s->result->end = decision.action == CONVERGE_GIVE_UP ? SIMULATED_GAVE_UP : SIMULATED_POSTCOPY;
	/* In the middle of a pass the last synchronisation is still to come: it finds again what had been sent before. */
	if (s->result->end == SIMULATED_POSTCOPY && !sample->pass_began)
		s->result->remaining_bytes += (uint64_t)(s->dirty_bytes * (1 - (double)sample->remaining_bytes / s->pass_bytes));
	return false;
}

/* Send so much while the guest writes. False: it has ended in the middle. */
static bool send(struct simulation *s, double bytes, double scan_us)
{
	double left_us = bytes / s->rate_bytes_per_s * 1e6 + scan_us, total_us = left_us;
	s->pass_bytes = bytes;
	const double look_us = fmax(LOOK_US, total_us / LOOKS_MAX);
	while (left_us > 0) {
		double step_us = fmin(left_us, look_us);
		const double deadline_us = (double)s->converge.options.deadline_us;
		if (deadline_us > s->now_us && deadline_us < s->now_us + step_us)
			step_us = deadline_us - s->now_us;
		let_guest_write(s, step_us);
		s->now_us += step_us;
		left_us -= step_us;
		if (s->now_us - s->began_us > (double)SIMULATE_LONGEST_US || ++s->steps > STEPS_MAX)
			return false;
		const struct converge_sample sample = look(s, bytes * left_us / total_us, 0, false);
		if (left_us > 0 && !decide(s, &sample)) {
			s->sent_bytes += bytes * (1 - left_us / total_us);
			return false;
		}
	}
	s->sent_bytes += bytes;
	return true;
}

static void judge_throttle(struct simulation *s)
{
	const struct converge_settings *told = &s->converge.settings;
	if (!s->link->qemu_throttles && !told->throttle_increment)
		return;
	if (s->now_us - s->judged_us < THROTTLE_LOOK_US)
		return;
	const double sent = s->sent_bytes - s->judged_sent_bytes, found = s->found_bytes - s->judged_dirty_bytes;
	s->judged_us = s->now_us;
	s->judged_sent_bytes = s->sent_bytes;
	s->judged_dirty_bytes = s->found_bytes;
	/* QEMU's own ladder wants half of what was sent, ours a hundredth. */
	if (found <= sent / (told->throttle_increment ? 2 : 100) || ++s->throttle_count < THROTTLE_STEPS)
		return;
	s->throttle_count = 0;
	if (!told->throttle_increment || !s->throttle_percent)
		set_throttle(s, told->throttle_percent);
	else if (s->throttle_percent + told->throttle_increment > THROTTLE_MAX_PERCENT)
		set_throttle(s, THROTTLE_MAX_PERCENT);
	else
		set_throttle(s, s->throttle_percent + told->throttle_increment);
}

/* Of memory, in this pass. */
static double rate_now(const struct simulation *s)
{
	const uint64_t later = s->link->later_bytes_per_s;
	return (double)(s->result->passes > 1 && later ? later : s->link->rate_bytes_per_s) * PAGE_BYTES / (PAGE_BYTES + PAGE_HEADER_BYTES);
}

/* By which QEMU decides now. */
static unsigned int limit_in_force(struct simulation *s)
{
	const unsigned int told_ms = s->converge.settings.limit_ms;
	if (told_ms != s->told_limit_ms) {
		s->told_limit_ms = told_ms;
		s->limit_told_us = s->now_us;
	}
	if (s->limit_ms == 0 || s->now_us >= s->limit_told_us + LIMIT_FELT_US)
		s->limit_ms = told_ms;
	return s->limit_ms;
}

/* From the beginning of a pass on, whose figures these are. */
static void run(struct simulation *s, double remaining, double dirty_per_s, double scan_us)
{
	s->result->end = SIMULATED_ENDLESS;
	for (;; s->result->passes++) {
		const double began_us = s->now_us;
		s->rate_bytes_per_s = rate_now(s);
		struct converge_sample sample = look(s, remaining, dirty_per_s, true);
		if (!decide(s, &sample))
			return;
		/* The first pass is sent as a whole. */
		if (remaining < s->rate_bytes_per_s * limit_in_force(s) / 1e3 && s->result->passes > 1) {
			s->result->end = SIMULATED_SWITCHED;
			s->result->pause_us = (int64_t)(remaining / s->rate_bytes_per_s * 1e6) + s->link->overhead_ms * 1000;
			s->sent_bytes += remaining;
			return;
		}
		if (!send(s, remaining, scan_us))
			return;
		scan_us = 0;
		let_guest_write(s, SYNCHRONISATION_US);
		s->now_us += SYNCHRONISATION_US;
		remaining = s->dirty_bytes;
		s->dirty_bytes = 0;
		s->found_bytes += remaining;
		dirty_per_s = remaining * 1e6 / (s->now_us - began_us);
		if (s->result->passes == 1)
			s->result->first_pass_us = (int64_t)s->now_us;
		judge_throttle(s);
	}
}

static struct simulation begin(const struct simulated_guest *guest, const struct simulated_link *link, struct simulated_copy *ret)
{
	*ret = (struct simulated_copy){.end = SIMULATED_ENDLESS, .passes = 1};
	return (struct simulation){
		.guest = guest,
		.link = link,
		.result = ret,
		.sampled_bytes_per_s = fmin((double)guest->writes_bytes_per_s, (double)guest->working_set_bytes),
	};
}

static uint64_t wire_bytes(const struct simulation *s)
{
	return (uint64_t)(s->sent_bytes * (PAGE_BYTES + PAGE_HEADER_BYTES) / PAGE_BYTES);
}

void simulate_copy(const struct simulated_guest *guest, const struct simulated_link *link, const struct converge_policy *policy,
		   const struct converge_options *options, struct simulated_copy *ret)
{
	struct simulation s = begin(guest, link, ret);
	const double scan_us = link->scan_bytes_per_s ? (double)guest->zero_bytes * 1e6 / (double)link->scan_bytes_per_s : 0;
	converge_init(&s.converge, policy, options);
	if (link->rate_bytes_per_s > 0)
		run(&s, (double)(guest->memory_bytes - guest->zero_bytes), 0, scan_us);
	ret->total_us = (int64_t)s.now_us + ret->pause_us;
	ret->wire_bytes = wire_bytes(&s) + (uint64_t)((double)guest->zero_bytes * ZERO_PAGE_BYTES / PAGE_BYTES);
}

void simulate_rest(const struct simulated_guest *guest, const struct simulated_link *link, const struct converge *converge,
		   const struct converge_sample *sample, struct simulated_copy *ret)
{
	struct simulation s = begin(guest, link, ret);
	ret->passes = sample->pass;
	s.converge = *converge;
	s.began_us = s.now_us = s.judged_us = (double)sample->at_us;
	s.sampled_bytes_per_s = (double)sample->sampled_dirty_bytes_per_s;
	set_throttle(&s, sample->throttle_percent);
	if (link->rate_bytes_per_s > 0)
		run(&s, (double)sample->remaining_bytes, (double)sample->dirty_bytes_per_s, 0);
	ret->total_us = (int64_t)(s.now_us - s.began_us) + ret->pause_us;
	ret->wire_bytes = wire_bytes(&s);
}
