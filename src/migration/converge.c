/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Ferry's policy; see converge.h.
 *
 * Theory of operation. QEMU stops the guest by itself as soon as a synchronisation of the dirty bitmap finds less to send
 * than rate × downtime-limit. Ferry keeps that limit small, so that a guest that can be moved with a pause of a few
 * milliseconds is, and takes further steps only when the copy stops making progress. It looks at the beginning of a pass,
 * the only moment at which the remaining bytes are a fact and not a remainder:
 *
 * - Progress is a new lowest point, below four fifths of the one before, or seven tenths of the one before two short passes. Two
 *   passes without (one, if it lasted: then the guest has written its whole working set anew), and the copy stands still. So it
 *   does at once when the guest has written in the pass before at four fifths of what the link carries or more, and what is left
 *   does not fit into the pause; and when at the present pace the deadline would pass.
 * - If what the lowest point needs fits into the promised pause, the limit is raised to it, at least by half. It takes QEMU a moment
 *   to reckon by it, in which what fits is waited for. Near the deadline the limit is all of the promise at once, also in the middle
 *   of a pass.
 * - If not, the next means that is allowed is used. Throttling: so that the next pass is a seventh of this one. It is cheaper
 *   for the guest to be slowed down much for a moment than a little for long: what it loses is the throttle times the time,
 *   and each pass costs the time that the working set takes on the link. But a throttled processor runs for a few milliseconds
 *   (4 between the ticks of most kernels, 10 where it is left to QEMU) and then sleeps, at 93 % for 53 ms (133); a throttle whose
 *   sleep is as long as half of the promised pause would break the promise in its own way, and is the most that is used. One that
 *   leaves twice as much as it was to leave is made stronger with the next pass: a guest may need less of its processors than it uses.
 * - A longer pause, where that is allowed, is the last: the limit becomes what the lowest point needs, up to its bound.
 * - With nothing left to use, the limit goes up to the ceiling. There the copy may go on for a while, as guests have calmer
 *   moments; then it is given up.
 *
 * The limit is never 0: QEMU 7.2 would then stop the guest after the first pass without synchronising again.
 */
#include "migration/converge.h"

#include "migration/converge_peers.h"

#include <stdio.h>
#include <string.h>

#define FIRST_LIMIT_MS 5
#define EARLY_POSTCOPY_MS 1500
#define EARLY_THROTTLE_MS 10000 /* the look was of a second only */
#define HURRY_PASSES 3
#define LIMIT_PERCENT 90 /* of what the promise leaves */
#define STALLED_PASSES 2
/* Of the lowest point before; what is more is no progress. Of short passes two are looked at, and must bring more. */
#define PROGRESS_PERCENT 80
#define PROGRESS_SHORT_PERCENT 70
#define LIMIT_FELT_US 100000 /* QEMU reckons by a new limit when it next counts what it has sent, ten times a second */
#define LONG_PASS_US 500000 /* one pass of that length tells as much as two short ones */
#define TELLING_PASS_US 50000 /* of one that is shorter its beginning and end are too much */
/* At the ceiling: no new lowest point for this long, and at least so many passes, and it is not going to happen. */
#define PATIENCE_US 30000000
#define PATIENCE_PASSES 5
/* Of what the link carries: a guest that writes this much does not converge in any useful time. */
#define DIVERGING_PERCENT 80
/* What is dirtied while a pass is sent should be this part of it. */
#define THROTTLED_PASS_PERCENT 15
#define WEAK_TIMES 2 /* if it is so many times that, it is throttled more */
#define THROTTLE_MIN_PERCENT 50
#define THROTTLE_SLICE_MS 10 /* QEMU's own throttle: where nothing else is known */
#define THROTTLE_MAX_PERCENT 99
#define THROTTLE_SLEEP_MIN_MS 50
#define THROTTLE_SOON_US 500000
#define THROTTLE_PATIENCE_PASSES 6 /* after which it is not going to be in force */

#define MB(bytes) ((double)(bytes) / 1e6)

/* ---- figures ---- */

int64_t converge_time_ms(uint64_t bytes, uint64_t rate_bytes_per_s)
{
	if (rate_bytes_per_s == 0)
		return bytes ? INT64_MAX / 2 : 0;
	/* Nobody has looked at whether the figures make sense, so no product of them may wrap round. */
	unsigned __int128 time_ms = ((unsigned __int128)bytes * 1000 + rate_bytes_per_s - 1) / rate_bytes_per_s;
	return time_ms > INT64_MAX / 2 ? INT64_MAX / 2 : (int64_t)time_ms;
}

int64_t converge_longest_pause_ms(const struct converge *converge)
{
	return converge->options.max_downtime_ms + converge->ceiling_extra_ms;
}

static int64_t throttle_slice_ms(const struct converge *converge)
{
	return converge->throttle_slice_ms ? converge->throttle_slice_ms : THROTTLE_SLICE_MS;
}

/* The most that QEMU is told. Between its decision and the guest's stop more gets dirty, and its rate is not the one that is
 * looked at then (converge_fits()): without some room what QEMU switches with at the edge would be thrown away there. And a throttled
 * guest may have been asleep when it is stopped: who waits for it hears both as one pause. */
static int64_t ceiling_of(int64_t pause_ms, const struct converge *converge)
{
	const int64_t room_ms = pause_ms - converge->options.overhead_ms, percent = converge->settings.throttle_percent;
	int64_t sleep_ms = percent < 100 ? throttle_slice_ms(converge) * percent / (100 - percent) : room_ms;
	if (sleep_ms > room_ms / 2)
		sleep_ms = room_ms / 2;
	const int64_t left_ms = (room_ms - sleep_ms) * LIMIT_PERCENT / 100;
	return left_ms < 1 ? 1 : left_ms;
}

static int64_t ceiling_ms(const struct converge *converge)
{
	return ceiling_of(converge_longest_pause_ms(converge), converge);
}

/* Of a limit that cannot be had any more; it is raised again if need be. */
static void keep_below_ceiling(struct converge *converge)
{
	if (converge->policy->keeps_promises && converge->settings.limit_ms > ceiling_ms(converge))
		converge->settings.limit_ms = (unsigned int)ceiling_ms(converge);
}

/* What the lowest point needs, and one. */
static int64_t needed_ms(const struct converge *converge, const struct converge_sample *sample)
{
	return converge_time_ms(converge->lowest_remaining_bytes, sample->rate_bytes_per_s) + 1;
}

/* The most that its sleeps leave of the promise: none of them is to be longer than half of it. */
static unsigned int throttle_max_percent(const struct converge *converge)
{
	const int64_t slice_ms = throttle_slice_ms(converge);
	int64_t sleep_ms = converge->options.max_downtime_ms / 2;
	if (sleep_ms < THROTTLE_SLEEP_MIN_MS)
		sleep_ms = THROTTLE_SLEEP_MIN_MS;
	const int64_t percent = 100 * sleep_ms / (sleep_ms + slice_ms);
	return percent > THROTTLE_MAX_PERCENT ? THROTTLE_MAX_PERCENT : (unsigned int)percent;
}

/* Of each second, what a guest uses of its busiest processor. Only what is taken of that slows it down. */
static double busy_percent(const struct converge_sample *sample)
{
	return sample->busy_percent ? sample->busy_percent : 100;
}

/* How fast the guest would write if it were not throttled. */
static double unthrottled_bytes_per_s(const struct converge_sample *sample)
{
	const double left = sample->throttle_percent < 99 ? 100 - sample->throttle_percent : 1, wants = busy_percent(sample);
	return (double)sample->dirty_bytes_per_s * (left < wants ? wants / left : 1);
}

/* ---- standing still ---- */

static bool deadline_would_pass(const struct converge *converge, const struct converge_sample *sample)
{
	if (!converge->options.deadline_us)
		return false;
	/* What is left at the present pace: a geometric series whose ratio is that of the last two passes. */
	double first_us = (double)converge_time_ms(sample->remaining_bytes, sample->rate_bytes_per_s) * 1e3;
	double ratio = converge->last_remaining_bytes ? (double)sample->remaining_bytes / (double)converge->last_remaining_bytes
						      : (double)sample->dirty_bytes_per_s / ((double)sample->rate_bytes_per_s + 1);
	double left_us = ratio < 0.99 ? first_us / (1 - ratio) : first_us * 100;
	return (double)sample->at_us + left_us + LIMIT_FELT_US > (double)converge->options.deadline_us;
}

static bool diverges(const struct converge_sample *sample)
{
	return sample->dirty_bytes_per_s > 0 && sample->rate_bytes_per_s > 0 &&
	       sample->dirty_bytes_per_s / DIVERGING_PERCENT >= sample->rate_bytes_per_s / 100;
}

/* Notes what this pass has brought. */
static bool stands_still(struct converge *converge, const struct converge_sample *sample)
{
	const int64_t took_us = sample->at_us - converge->last_pass_us;
	const unsigned int percent = took_us >= LONG_PASS_US ? PROGRESS_PERCENT : PROGRESS_SHORT_PERCENT;
	if (sample->remaining_bytes < converge->lowest_remaining_bytes)
		converge->lowest_remaining_bytes = sample->remaining_bytes;
	if (converge->best_remaining_bytes == UINT64_MAX || sample->remaining_bytes < converge->best_remaining_bytes / 100 * percent) {
		converge->best_remaining_bytes = sample->remaining_bytes;
		converge->best_at_us = sample->at_us;
		converge->passes_without_progress = 0;
		if (deadline_would_pass(converge, sample))
			return true;
		return diverges(sample) && needed_ms(converge, sample) > ceiling_ms(converge);
	}
	converge->passes_without_progress++;
	return converge->passes_without_progress >= STALLED_PASSES || took_us >= LONG_PASS_US ||
	       deadline_would_pass(converge, sample);
}

/* ---- what can be done about it ---- */

static void explain(const struct converge *converge, const struct converge_sample *sample, struct converge_decision *decision,
		    const char *consequence)
{
	decision->changed = true;
	snprintf(decision->words, sizeof(decision->words), "the guest dirties %.0f MB/s, the link carries %.0f MB/s; %s",
		 MB(sample->dirty_bytes_per_s ? sample->dirty_bytes_per_s : converge->dirty_bytes_per_s), MB(sample->rate_bytes_per_s),
		 consequence);
}

static void set_limit(struct converge *converge, const struct converge_sample *sample, int64_t limit_ms,
		      struct converge_decision *decision)
{
	char words[96];
	int64_t half_more_ms = (int64_t)converge->settings.limit_ms + converge->settings.limit_ms / 2 + 1;
	if (limit_ms < half_more_ms)
		limit_ms = half_more_ms;
	if (limit_ms > ceiling_ms(converge))
		limit_ms = ceiling_ms(converge);
	converge->settings.limit_ms = (unsigned int)limit_ms;
	converge->limit_us = sample->at_us;
	converge->passes_without_progress = 0;
	converge->best_at_us = sample->at_us;
	snprintf(words, sizeof(words), "the memory part of the pause may be %lld ms now", (long long)limit_ms);
	explain(converge, sample, decision, words);
}

/* What was told may take QEMU a synchronisation or two, and can be judged by the first pass that was throttled as good as from
 * its beginning. */
static bool throttle_not_felt_yet(const struct converge *converge)
{
	if (converge->settings.throttle_percent == 0 || converge->passes_without_progress > THROTTLE_PATIENCE_PASSES)
		return false;
	return converge->throttled_us == 0 || converge->throttled_us > converge->last_pass_us + THROTTLE_SOON_US;
}

/* It has been in force for the whole of a pass, and yet so much was written in it that it will take many more. */
static bool throttle_is_weak(const struct converge *converge, const struct converge_sample *sample)
{
	const struct converge_options *options = &converge->options;
	return converge->settings.throttle_percent > 0 && converge->throttled_us > 0 && converge->throttled_us <= converge->last_pass_us &&
	       converge->means_next < options->means_count && options->means[converge->means_next] == CONVERGE_THROTTLE &&
	       sample->remaining_bytes / (WEAK_TIMES * THROTTLED_PASS_PERCENT) > converge->last_remaining_bytes / 100 &&
	       converge_time_ms(sample->remaining_bytes, sample->rate_bytes_per_s) > ceiling_ms(converge);
}

/* False: it can do no more than it does. */
static bool use_throttle(struct converge *converge, const struct converge_sample *sample, struct converge_decision *decision)
{
	char words[64];
	const unsigned int most = throttle_max_percent(converge), before = converge->settings.throttle_percent;
	const double wanted_bytes_per_s = (double)sample->rate_bytes_per_s * THROTTLED_PASS_PERCENT / 100;
	const double writes_bytes_per_s = unthrottled_bytes_per_s(sample);
	double percent = writes_bytes_per_s > wanted_bytes_per_s ? 100 - busy_percent(sample) * wanted_bytes_per_s / writes_bytes_per_s : 0;
	if (percent < before + (100 - before) / 2.0)
		percent = before + (100 - before) / 2.0;
	if (percent < THROTTLE_MIN_PERCENT)
		percent = THROTTLE_MIN_PERCENT;
	if (percent > most)
		percent = most;
	if ((unsigned int)percent <= before)
		return false;
	converge->settings.throttle_percent = (unsigned int)percent;
	converge->settings.dirty_bytes_per_s = (uint64_t)(writes_bytes_per_s * (100 - converge->settings.throttle_percent) / busy_percent(sample));
	keep_below_ceiling(converge);
	converge->throttled_us = 0;
	converge->passes_without_progress = 0;
	converge->best_at_us = sample->at_us;
	snprintf(words, sizeof(words), "it is throttled to %u %%", converge->settings.throttle_percent);
	explain(converge, sample, decision, words);
	return true;
}

static bool use_pause(struct converge *converge, const struct converge_sample *sample, struct converge_decision *decision)
{
	const int64_t bound_ms = converge->options.longest_pause_ms;
	if (bound_ms <= converge->options.max_downtime_ms || needed_ms(converge, sample) > ceiling_of(bound_ms, converge))
		return false;
	converge->ceiling_extra_ms = bound_ms - converge->options.max_downtime_ms;
	set_limit(converge, sample, needed_ms(converge, sample) * 11 / 10, decision);
	return true;
}

static void use_postcopy(const struct converge *converge, const struct converge_sample *sample, struct converge_decision *decision)
{
	decision->action = CONVERGE_START_POSTCOPY;
	explain(converge, sample, decision, "it goes on at the destination, and what is missing follows");
}

/* Use the next of the means that are allowed; one that cannot help is passed over for good. */
static bool use_means(struct converge *converge, const struct converge_sample *sample, struct converge_decision *decision)
{
	const struct converge_options *options = &converge->options;
	if (throttle_not_felt_yet(converge))
		return true;
	for (; converge->means_next < options->means_count; converge->means_next++) {
		switch (options->means[converge->means_next]) {
		case CONVERGE_THROTTLE:
			if (use_throttle(converge, sample, decision))
				return true;
			break;
		case CONVERGE_POSTCOPY:
			use_postcopy(converge, sample, decision);
			converge->means_next++;
			return true;
		case CONVERGE_PAUSE:
			if (use_pause(converge, sample, decision))
				return true;
			break;
		case CONVERGE_MEANS_COUNT:
			break;
		}
	}
	return false;
}

/* ---- giving up ---- */

static bool may_use(const struct converge_options *options, enum converge_means means)
{
	return converge_allows(options->means, options->means_count, means);
}

/* Whether it would converge is not known yet, nor is that what it lacks. */
static void explain_first_pass(const struct converge_sample *sample, struct converge_decision *decision)
{
	char more[96] = "";
	if (sample->rate_bytes_per_s > 0)
		snprintf(more, sizeof(more), ", the link carries %.0f MB/s; allow %.1f s more", MB(sample->rate_bytes_per_s),
			 (double)converge_time_ms(sample->remaining_bytes, sample->rate_bytes_per_s) / 1e3);
	decision->changed = true;
	snprintf(decision->words, sizeof(decision->words), "%.0f MB have not been sent for the first time yet%s",
		 MB(sample->remaining_bytes), more);
}

static void give_up(const struct converge *converge, const struct converge_sample *sample, enum converge_reason reason,
		    struct converge_decision *decision)
{
	char advice[128];
	const struct converge_options *options = &converge->options;
	const uint64_t best = converge->lowest_remaining_bytes == UINT64_MAX ? sample->remaining_bytes : converge->lowest_remaining_bytes;
	/* What has to be allowed for it, rounded up: a part of what is allowed is kept for the last look. */
	const int64_t allowed_ms = converge_time_ms(best, sample->rate_bytes_per_s) * 100 / LIMIT_PERCENT + options->overhead_ms;
	const double pause_s = (double)((allowed_ms + 99) / 100) / 10;
	decision->action = CONVERGE_GIVE_UP;
	decision->reason = reason;
	if (sample->pass < 2) {
		explain_first_pass(sample, decision);
		return;
	}
	snprintf(advice, sizeof(advice), "allow %s%sa pause of %.1f s",
		 may_use(options, CONVERGE_THROTTLE) ? "" : "throttling, or ", may_use(options, CONVERGE_POSTCOPY) ? "" : "post-copy, or ",
		 pause_s);
	explain(converge, sample, decision, advice);
}

/* ---- the policy ---- */

static void ferry_init(struct converge *converge)
{
	converge->best_remaining_bytes = converge->lowest_remaining_bytes = UINT64_MAX;
	converge->settings.limit_ms = ceiling_ms(converge) < FIRST_LIMIT_MS ? (unsigned int)ceiling_ms(converge) : FIRST_LIMIT_MS;
}

static void ferry_stalled(struct converge *converge, const struct converge_sample *sample, struct converge_decision *decision)
{
	const bool at_ceiling = converge->settings.limit_ms >= ceiling_ms(converge);
	/* It is about to be stopped. */
	if (converge->limit_us > 0 && sample->at_us < converge->limit_us + LIMIT_FELT_US &&
	    converge_time_ms(sample->remaining_bytes, sample->rate_bytes_per_s) < converge->settings.limit_ms)
		return;
	if (!at_ceiling && needed_ms(converge, sample) <= ceiling_ms(converge)) {
		set_limit(converge, sample,
			  deadline_would_pass(converge, sample) ? ceiling_ms(converge) : needed_ms(converge, sample), decision);
		return;
	}
	if (use_means(converge, sample, decision))
		return;
	if (!at_ceiling)
		set_limit(converge, sample, ceiling_ms(converge), decision);
	else if (converge->passes_without_progress >= PATIENCE_PASSES && sample->at_us - converge->best_at_us >= PATIENCE_US)
		give_up(converge, sample, CONVERGE_REASON_NOT_CONVERGING, decision);
}

/* What the guest has written by the end of the pass must be sent again, with the guest throttled; so it loses as much work as that
 * takes. Throttled already now it loses the rest of the pass as well, which pays only if it writes more than is sent meanwhile; or
 * where time is short. */
static bool throttle_pays_now(const struct converge *converge, const struct converge_sample *known)
{
	const int64_t rest_ms = converge_time_ms(known->remaining_bytes, known->rate_bytes_per_s);
	const int64_t deadline_us = converge->options.deadline_us;
	if (deadline_us && rest_ms > (deadline_us - known->at_us) / 1000 / HURRY_PASSES)
		return true;
	return rest_ms <= EARLY_THROTTLE_MS && known->dirty_bytes_per_s / 6 > known->rate_bytes_per_s / 5;
}

/*
 * Nothing has been synchronised yet, but a look at some pages tells how fast the guest writes. If that is as much as the link
 * carries, and already in a second more than the pause has room for, it will not get there by itself. Then the throttle, if that
 * is the first of the means, may come at once; and post-copy before the pass is over: what is sent until then of the memory that
 * the guest writes is sent for nothing, but the rest spares it waiting for what it reads.
 */
static void decide_in_first_pass(struct converge *converge, const struct converge_sample *sample, struct converge_decision *decision)
{
	struct converge_sample known = *sample;
	known.dirty_bytes_per_s = sample->sampled_dirty_bytes_per_s;
	known.rate_bytes_per_s = converge->best_rate_bytes_per_s; /* it is less while QEMU looks through empty pages */
	if (converge->settings.throttle_percent > 0 || converge->options.means_count == 0 || known.rate_bytes_per_s == 0 ||
	    !diverges(&known) || converge_time_ms(known.dirty_bytes_per_s, known.rate_bytes_per_s) <= ceiling_ms(converge))
		return;
	if (converge->options.means[0] == CONVERGE_THROTTLE && throttle_pays_now(converge, &known))
		(void)use_throttle(converge, &known, decision);
	else if (converge->options.means[0] == CONVERGE_POSTCOPY &&
		 converge_time_ms(known.remaining_bytes, known.rate_bytes_per_s) <= EARLY_POSTCOPY_MS)
		use_postcopy(converge, &known, decision);
}

/* By what was found at the end of the pass. The hypervisor's own figure is of the last second or more, in which the guest may have
 * been throttled otherwise, or have written the same pages several times. In the first pass, which lasts, it mostly has: of that the
 * look at some pages in its first second tells more. */
static void tell_dirty_rate(const struct converge *converge, struct converge_sample *sample)
{
	const int64_t took_us = sample->at_us - converge->last_pass_us;
	if (sample->pass_began && sample->pass >= 2 && converge->last_pass_us > 0 && took_us >= TELLING_PASS_US)
		sample->dirty_bytes_per_s = (uint64_t)((double)sample->remaining_bytes * 1e6 / (double)took_us);
	if (sample->pass_began && sample->pass == 2 && converge->settings.throttle_percent == 0 &&
	    sample->sampled_dirty_bytes_per_s > sample->dirty_bytes_per_s)
		sample->dirty_bytes_per_s = sample->sampled_dirty_bytes_per_s;
}

/* After this pass there is time for one more look at the most, and it takes QEMU a moment to reckon by another limit. */
static bool deadline_is_near(const struct converge *converge, const struct converge_sample *sample)
{
	const int64_t deadline_us = converge->options.deadline_us;
	return deadline_us && sample->rate_bytes_per_s > 0 &&
	       converge_time_ms(sample->remaining_bytes, sample->rate_bytes_per_s) > (deadline_us - sample->at_us - 2 * LIMIT_FELT_US) / 1000;
}

/* There is no time for other means: all of the pause that is allowed is, the longer one where that comes after them, too. */
static void hurry(struct converge *converge, const struct converge_sample *sample, struct converge_decision *decision)
{
	const int64_t bound_ms = converge->options.longest_pause_ms;
	if (may_use(&converge->options, CONVERGE_PAUSE) && bound_ms > converge_longest_pause_ms(converge) &&
	    converge_time_ms(sample->remaining_bytes, sample->rate_bytes_per_s) > ceiling_ms(converge))
		converge->ceiling_extra_ms = bound_ms - converge->options.max_downtime_ms;
	if (converge->settings.limit_ms < ceiling_ms(converge))
		set_limit(converge, sample, ceiling_ms(converge), decision);
}

static void ferry_decide(struct converge *converge, const struct converge_sample *seen, struct converge_decision *decision)
{
	struct converge_sample told = *seen;
	const struct converge_sample *sample = &told;
	tell_dirty_rate(converge, &told);
	if (converge->options.deadline_us && sample->at_us >= converge->options.deadline_us) {
		give_up(converge, sample, CONVERGE_REASON_DEADLINE, decision);
		return;
	}
	converge->throttle_slice_ms = sample->throttle_slice_ms;
	if (sample->dirty_bytes_per_s)
		converge->dirty_bytes_per_s = sample->dirty_bytes_per_s;
	if (sample->rate_bytes_per_s > converge->best_rate_bytes_per_s)
		converge->best_rate_bytes_per_s = sample->rate_bytes_per_s;
	if (converge->settings.throttle_percent > 0 && converge->throttled_us == 0 &&
	    sample->throttle_percent >= converge->settings.throttle_percent)
		converge->throttled_us = sample->at_us;
	if (sample->pass == 1)
		decide_in_first_pass(converge, sample, decision);
	if (!decision->changed && deadline_is_near(converge, sample))
		hurry(converge, sample, decision);
	if (!sample->pass_began)
		return;
	if (sample->pass >= 2) {
		if (stands_still(converge, sample))
			ferry_stalled(converge, sample, decision);
		else if (throttle_is_weak(converge, sample))
			(void)use_throttle(converge, sample, decision);
		converge->last_remaining_bytes = sample->remaining_bytes;
	}
	converge->last_pass_us = sample->at_us;
}

const struct converge_policy converge_policy_ferry = {
	.name = "ferry",
	.summary = "the shortest pause that converges; then throttling, post-copy or a longer pause, as allowed",
	.keeps_promises = true,
	.init = ferry_init,
	.decide = ferry_decide,
};

/* ---- of every policy ---- */

static const struct converge_policy *const policies[] = {
	&converge_policy_ferry,		 &converge_policy_qemu,	   &converge_policy_auto_converge, &converge_policy_fixed,
	&converge_policy_fixed_throttle, &converge_policy_proxmox, &converge_policy_ovirt,	   &converge_policy_ovirt_suspend,
	&converge_policy_kubevirt,
};

void converge_init(struct converge *converge, const struct converge_policy *policy, const struct converge_options *options)
{
	*converge = (struct converge){.options = *options, .policy = policy};
	policy->init(converge);
}

void converge_set_options(struct converge *converge, const struct converge_options *options)
{
	converge->options = *options;
	converge->means_next = 0;
	converge->ceiling_extra_ms = 0;
	keep_below_ceiling(converge);
}

struct converge_decision converge_decide(struct converge *converge, const struct converge_sample *sample)
{
	struct converge_decision decision = {.action = CONVERGE_GO_ON};
	converge->policy->decide(converge, sample, &decision);
	decision.settings = converge->settings;
	return decision;
}

bool converge_fits(struct converge *converge, uint64_t remaining_bytes, uint64_t rate_bytes_per_s, int64_t *ret_pause_ms)
{
	const struct converge_options *options = &converge->options;
	int64_t pause_ms = converge_time_ms(remaining_bytes, rate_bytes_per_s) + options->overhead_ms;
	*ret_pause_ms = pause_ms;
	if (!converge->policy->keeps_promises || pause_ms <= converge_longest_pause_ms(converge))
		return true;
	/* The last resort: at this point the other way out is to throw the whole copy away. */
	if (!may_use(options, CONVERGE_PAUSE) || pause_ms > options->longest_pause_ms)
		return false;
	converge->ceiling_extra_ms = options->longest_pause_ms - options->max_downtime_ms;
	return true;
}

const struct converge_policy *converge_policy_at(size_t index)
{
	return index < sizeof(policies) / sizeof(policies[0]) ? policies[index] : NULL;
}

const struct converge_policy *converge_policy_find(const char *name)
{
	for (size_t i = 0; i < sizeof(policies) / sizeof(policies[0]); i++)
		if (strcmp(policies[i]->name, name) == 0)
			return policies[i];
	return NULL;
}

bool converge_allows(const enum converge_means *allowed, size_t count, enum converge_means means)
{
	for (size_t i = 0; i < count; i++)
		if (allowed[i] == means)
			return true;
	return false;
}

const char *converge_means_name(enum converge_means means)
{
	static const char *const names[] = {"throttle", "postcopy", "pause"};
	return names[means];
}
