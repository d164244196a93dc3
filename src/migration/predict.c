/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Prediction; see predict.h. The guest's writing is taken for a sweep through a working set, the simplest thing that goes through
 * what was measured: the steepest of the measurements is how fast it writes, and if the longest found much less than that, what it
 * found is all that the guest writes to; if not, it is the most exact of them. Where none was long enough to tell, it may be all of
 * the memory in use.
 */
#include "migration/predict.h"

#include <stdio.h>
#include <string.h>

/* A look at a sample of the pages is wrong by so much now and then. A longer measurement that is within it says how fast the guest
 * writes; below that it says that the guest came back to the same pages. */
#define SAMPLE_ERROR_PERCENT 15
#define FASTER_TIMES 1.25 /* what has been written anew within the shortest time, and so may have been more than once */

static bool any_tells(const struct predict_guest *guest)
{
	for (size_t i = 0; i < guest->writes_count; i++)
		if (guest->writes[i].for_us >= PREDICT_WRITES_TELLING_US)
			return true;
	return false;
}

void predict_add_writes(struct predict_guest *guest, int64_t for_us, uint64_t bytes)
{
	if (for_us <= 0 || (for_us < PREDICT_WRITES_TELLING_US && any_tells(guest)))
		return;
	if (guest->writes_count == PREDICT_WRITES_MAX)
		memmove(guest->writes, guest->writes + 1, --guest->writes_count * sizeof(*guest->writes));
	guest->writes[guest->writes_count++] = (struct predict_writes){for_us, bytes};
}

bool predict_writes_alike(const struct predict_writes *writes, const struct predict_writes *other)
{
	return writes->bytes / 5 * 4 <= other->bytes && other->bytes / 5 * 4 <= writes->bytes;
}

static double rate_of(const struct predict_writes *writes)
{
	return (double)writes->bytes * 1e6 / (double)writes->for_us;
}

void predict_fill_guest(const struct predict_guest *guest, struct simulated_guest *ret)
{
	const uint64_t used = guest->used_bytes < guest->memory_bytes ? guest->used_bytes : guest->memory_bytes;
	const bool selective = any_tells(guest);
	double rate = 0;
	uint64_t set_bytes = 0;
	const struct predict_writes *longest = NULL, *shortest = NULL, *newest = NULL;
	*ret = (struct simulated_guest){
		.memory_bytes = guest->memory_bytes, .zero_bytes = guest->memory_bytes - used, .in_turn = true, .busy_percent = 100};
	if (guest->stands)
		return;
	for (size_t i = 0; i < guest->writes_count; i++) {
		const struct predict_writes *writes = &guest->writes[i];
		if (selective && writes->for_us < PREDICT_WRITES_TELLING_US)
			continue;
		rate = rate_of(writes) > rate ? rate_of(writes) : rate;
		newest = writes;
		shortest = !shortest || writes->for_us < shortest->for_us ? writes : shortest;
		longest = !longest || writes->for_us > longest->for_us ? writes : longest;
	}
	if (!longest)
		return;
	const bool saturated = rate * 100 > rate_of(longest) * (100 + SAMPLE_ERROR_PERCENT);
	/* The shortest has found all of the set already: how fast it was written nothing tells, but faster. */
	if (saturated && longest->for_us >= 2 * shortest->for_us && predict_writes_alike(shortest, longest))
		rate *= FASTER_TIMES;
	ret->writes_bytes_per_s = (uint64_t)(saturated ? rate : rate_of(longest));
	set_bytes = longest->bytes > newest->bytes ? longest->bytes : newest->bytes;
	if (set_bytes > guest->memory_bytes) /* another host may have said so */
		set_bytes = guest->memory_bytes;
	ret->working_set_bytes = saturated || used < set_bytes ? set_bytes : used;
}

uint64_t predict_within(uint64_t rate_bytes_per_s, uint64_t bandwidth_bytes_per_s)
{
	return bandwidth_bytes_per_s && bandwidth_bytes_per_s < rate_bytes_per_s ? bandwidth_bytes_per_s : rate_bytes_per_s;
}

uint64_t predict_later_rate(const struct predict_link *link)
{
	return predict_within(link->later_bytes_per_s ? link->later_bytes_per_s : link->rate_bytes_per_s, link->bandwidth_bytes_per_s);
}

static void fill_link(const struct predict_link *link, struct simulated_link *ret)
{
	*ret = (struct simulated_link){.rate_bytes_per_s = predict_within(link->rate_bytes_per_s, link->bandwidth_bytes_per_s),
				       .later_bytes_per_s = predict_later_rate(link),
				       .scan_bytes_per_s = link->scan_bytes_per_s,
				       .overhead_ms = (link->pause_us + 999) / 1000};
}

static void judge(const struct simulated_copy *copy, const struct converge_options *options, struct prediction *ret)
{
	ret->throttle_percent = copy->throttle_percent;
	switch (copy->end) {
	case SIMULATED_SWITCHED:
		ret->downtime_us = copy->pause_us;
		if (copy->pause_us > options->max_downtime_ms * 1000 && converge_allows(options->means, options->means_count, CONVERGE_PAUSE))
			ret->verdict = PREDICT_LONGER_PAUSE;
		else
			ret->verdict = copy->throttle_percent ? PREDICT_THROTTLED : PREDICT_CONVERGES;
		break;
	case SIMULATED_POSTCOPY:
		ret->downtime_us = copy->pause_us;
		ret->verdict = PREDICT_POSTCOPY;
		break;
	case SIMULATED_GAVE_UP:
	case SIMULATED_ENDLESS:
		ret->verdict = PREDICT_FAILS;
		break;
	}
}

static void explain(const struct simulated_copy *copy, const struct converge_options *options, const struct simulated_guest *guest,
		    const struct simulated_link *link, struct prediction *ret)
{
	/* What a pause costs beside memory may be more than is promised, whatever is done about memory. */
	const char *overrun = copy->pause_us > options->max_downtime_ms * 1000 ? ", but pauses for longer than promised" : "";
	switch (ret->verdict) {
	case PREDICT_CONVERGES:
		snprintf(ret->words, sizeof(ret->words), "converges%s", overrun);
		break;
	case PREDICT_THROTTLED:
		snprintf(ret->words, sizeof(ret->words), "converges with the guest throttled to %u %%%s", copy->throttle_percent, overrun);
		break;
	case PREDICT_LONGER_PAUSE:
		snprintf(ret->words, sizeof(ret->words), "converges with a pause of %.1f s, which is allowed",
			 (double)copy->pause_us / 1e6);
		break;
	case PREDICT_POSTCOPY:
		snprintf(ret->words, sizeof(ret->words), "goes on at the destination before everything is there");
		break;
	case PREDICT_FAILS:
	case PREDICT_UNKNOWN:
		if (copy->reason == CONVERGE_REASON_DEADLINE && copy->passes == 1)
			snprintf(ret->words, sizeof(ret->words),
				 "will not get there within the deadline: sending its memory once takes %.1f s at %.0f MB/s",
				 (double)(guest->memory_bytes - guest->zero_bytes) / (double)link->rate_bytes_per_s,
				 (double)link->rate_bytes_per_s / 1e6);
		else if (copy->reason == CONVERGE_REASON_DEADLINE)
			snprintf(ret->words, sizeof(ret->words), "will not get there within the deadline: %.210s", copy->words);
		else if (copy->end == SIMULATED_GAVE_UP)
			snprintf(ret->words, sizeof(ret->words), "will not converge: %.230s", copy->words);
		else
			snprintf(ret->words, sizeof(ret->words),
				 "will not converge: the guest dirties %.0f MB/s, the link carries %.0f MB/s, and it would go on for ever",
				 (double)guest->writes_bytes_per_s / 1e6, (double)link->rate_bytes_per_s / 1e6);
		break;
	}
}

/* What comes after the policy's last word: post-copy sends the rest while the guest runs over there already. */
static void finish(struct simulated_copy *copy, const struct predict_link *link)
{
	const uint64_t rate = predict_later_rate(link);
	if (copy->end != SIMULATED_POSTCOPY || rate == 0)
		return;
	copy->pause_us = link->pause_us;
	copy->total_us += copy->pause_us + (int64_t)((double)copy->remaining_bytes * 1e6 / (double)rate);
	copy->wire_bytes += copy->remaining_bytes;
}

void predict_move(const struct predict_guest *guest, const struct predict_link *link, const struct converge_policy *policy,
		  const struct converge_options *options, struct prediction *ret)
{
	struct simulated_guest simulated;
	struct simulated_link line;
	struct simulated_copy copy;
	struct converge_options copying = *options;
	*ret = (struct prediction){0};
	predict_fill_guest(guest, &simulated);
	fill_link(link, &line);
	if (guest->stands)
		line.overhead_ms = 0;
	/* What is left of the time for copying. */
	if (copying.deadline_us)
		copying.deadline_us = copying.deadline_us > link->before_us ? copying.deadline_us - link->before_us : 1;
	simulate_copy(&simulated, &line, policy, &copying, &copy);
	finish(&copy, link);
	ret->total_us = link->before_us + copy.total_us + link->after_us;
	ret->wire_bytes = copy.wire_bytes;
	judge(&copy, options, ret);
	explain(&copy, options, &simulated, &line, ret);
}

void predict_rest(const struct predict_guest *guest, const struct predict_link *link, const struct converge *converge,
		  const struct converge_sample *sample, int64_t elapsed_us, uint64_t sent_bytes, struct prediction *ret)
{
	struct simulated_guest simulated;
	struct simulated_link line;
	struct simulated_copy copy;
	*ret = (struct prediction){.at_us = elapsed_us};
	predict_fill_guest(guest, &simulated);
	fill_link(link, &line);
	line.qemu_throttles = !sample->throttle_at_once;
	simulate_rest(&simulated, &line, converge, sample, &copy);
	finish(&copy, link);
	ret->total_us = elapsed_us + copy.total_us + link->after_us;
	ret->wire_bytes = sent_bytes + copy.wire_bytes;
	judge(&copy, &converge->options, ret);
	explain(&copy, &converge->options, &simulated, &line, ret);
}

/* ---- what readers see ---- */

const char *predict_verdict_name(enum predict_verdict verdict)
{
	static const char *const names[] = {"unknown", "converges", "needs-throttling", "needs-longer-pause", "needs-postcopy",
					    "will-not-converge"};
	return names[verdict];
}

bool predict_succeeds(enum predict_verdict verdict)
{
	return verdict != PREDICT_UNKNOWN && verdict != PREDICT_FAILS;
}

static json_t *view_tenths(double value)
{
	return json_real((double)(int64_t)(value * 10 + (value < 0 ? -0.5 : 0.5)) / 10);
}

json_t *predict_view(const struct prediction *prediction)
{
	if (prediction->verdict == PREDICT_UNKNOWN)
		return json_null();
	return json_pack("{s:o, s:o, s:o, s:I, s:s, s:I, s:s}", "at_ms", view_tenths((double)prediction->at_us / 1e3), "total_ms",
			 view_tenths((double)prediction->total_us / 1e3), "downtime_ms",
			 view_tenths((double)prediction->downtime_us / 1e3), "wire_bytes", (json_int_t)prediction->wire_bytes,
			 "verdict", predict_verdict_name(prediction->verdict), "throttle_percent",
			 (json_int_t)prediction->throttle_percent, "words", prediction->words);
}

json_t *predict_error_view(const struct prediction *prediction, bool moved, int64_t total_us, int64_t downtime_us, uint64_t wire_bytes)
{
	if (prediction->verdict == PREDICT_UNKNOWN)
		return json_null();
	json_t *view = json_pack("{s:b, s:n, s:n, s:n}", "verdict_right", predict_succeeds(prediction->verdict) == moved, "total_percent",
				 "downtime_ms", "wire_percent");
	if (!moved || !predict_succeeds(prediction->verdict) || total_us <= 0)
		return view;
	const double off_us = (double)(prediction->total_us - total_us), off_bytes = (double)prediction->wire_bytes - (double)wire_bytes;
	json_object_set_new(view, "total_percent", view_tenths(off_us * 100 / (double)total_us));
	json_object_set_new(view, "downtime_ms", view_tenths((double)(prediction->downtime_us - downtime_us) / 1e3));
	if (wire_bytes)
		json_object_set_new(view, "wire_percent", view_tenths(off_bytes * 100 / (double)wire_bytes));
	return view;
}
