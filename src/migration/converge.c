/* SPDX-License-Identifier: Apache-2.0 */
/*
 * When to switch; see converge.h.
 *
 * Theory of operation. QEMU stops the guest by itself as soon as a synchronisation of the dirty bitmap finds less to send
 * than rate × downtime-limit. Ferry keeps that limit small, so that a guest that can be moved with a pause of a few
 * milliseconds is, and relaxes it only when the copy stops making progress: at the beginning of a pass (the only moment
 * at which the remaining bytes are a fact and not a remainder) the remaining bytes are compared with the lowest seen. When
 * two passes in a row have not come below nine tenths of it, the limit is raised to what that lowest point needs, at
 * least by half, at most to what the promised pause leaves for memory. At that ceiling the copy may go on for a while, as
 * guests have calmer moments; then it is given up. Never told 0: QEMU 7.2 would then stop the guest after the first
 * pass without synchronising again.
 */
#include "migration/converge.h"

#define CONVERGE_FIRST_LIMIT_MS 5
#define CONVERGE_STALLED_PASSES 2
/* At the ceiling: no new lowest point for this long, and at least so many passes, and it is not going to happen. */
#define CONVERGE_PATIENCE_US 30000000
#define CONVERGE_PATIENCE_PASSES 20

static unsigned int converge_ceiling_ms(const struct converge *converge)
{
	int64_t left_ms = converge->options.max_downtime_ms - converge->options.overhead_ms;
	return left_ms < 1 ? 1 : (unsigned int)left_ms;
}

void converge_init(struct converge *converge, const struct converge_options *options)
{
	*converge = (struct converge){.options = *options, .best_remaining_bytes = UINT64_MAX};
	unsigned int ceiling_ms = converge_ceiling_ms(converge);
	converge->limit_ms = ceiling_ms < CONVERGE_FIRST_LIMIT_MS ? ceiling_ms : CONVERGE_FIRST_LIMIT_MS;
}

static int64_t converge_time_ms(uint64_t bytes, uint64_t rate_bytes_per_s)
{
	if (rate_bytes_per_s == 0)
		return bytes ? INT64_MAX / 2 : 0;
	/* Rounded up. Nobody has looked at whether the figures make sense, so no product of them may wrap round. */
	unsigned __int128 time_ms = ((unsigned __int128)bytes * 1000 + rate_bytes_per_s - 1) / rate_bytes_per_s;
	return time_ms > INT64_MAX / 2 ? INT64_MAX / 2 : (int64_t)time_ms;
}

struct converge_decision converge_decide(struct converge *converge, const struct converge_sample *sample)
{
	struct converge_decision decision = {.action = CONVERGE_WAIT, .limit_ms = converge->limit_ms};
	if (converge->options.deadline_us && sample->at_us >= converge->options.deadline_us) {
		decision.action = CONVERGE_GIVE_UP;
		decision.reason = CONVERGE_REASON_DEADLINE;
		return decision;
	}
	if (!sample->pass_began || sample->pass < 2)
		return decision;

	if (converge->best_remaining_bytes == UINT64_MAX ||
	    sample->remaining_bytes < converge->best_remaining_bytes / 10 * 9) {
		converge->best_remaining_bytes = sample->remaining_bytes;
		converge->best_at_us = sample->at_us;
		converge->passes_without_progress = 0;
		return decision;
	}
	converge->passes_without_progress++;

	unsigned int ceiling_ms = converge_ceiling_ms(converge);
	if (converge->limit_ms < ceiling_ms) {
		if (converge->passes_without_progress < CONVERGE_STALLED_PASSES)
			return decision;
		int64_t wanted_ms = converge_time_ms(converge->best_remaining_bytes, sample->rate_bytes_per_s) + 1;
		int64_t half_more_ms = (int64_t)converge->limit_ms + converge->limit_ms / 2 + 1;
		if (wanted_ms < half_more_ms)
			wanted_ms = half_more_ms;
		converge->limit_ms = wanted_ms > ceiling_ms ? ceiling_ms : (unsigned int)wanted_ms;
		converge->passes_without_progress = 0;
		converge->best_at_us = sample->at_us;
		decision.action = CONVERGE_SET_LIMIT;
		decision.limit_ms = converge->limit_ms;
		return decision;
	}
	if (converge->passes_without_progress >= CONVERGE_PATIENCE_PASSES &&
	    sample->at_us - converge->best_at_us >= CONVERGE_PATIENCE_US) {
		decision.action = CONVERGE_GIVE_UP;
		decision.reason = CONVERGE_REASON_NOT_CONVERGING;
	}
	return decision;
}

bool converge_fits(const struct converge *converge, uint64_t remaining_bytes, uint64_t rate_bytes_per_s, int64_t *ret_pause_ms)
{
	int64_t pause_ms = converge_time_ms(remaining_bytes, rate_bytes_per_s) + converge->options.overhead_ms;
	*ret_pause_ms = pause_ms;
	return pause_ms <= converge->options.max_downtime_ms;
}
