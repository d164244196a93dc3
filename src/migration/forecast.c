/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The prediction of one migration; see forecast.h.
 *
 * It is made three times and more: at the start, from what earlier moves and quiet looks at the guest have left; if nothing is known
 * of the link, a moment after the copy has begun, when that shows; after the first pass, which tells how much of memory is not
 * zero and how fast the guest writes; and then at each pass (not more often than twice a second), for the progress line.
 */
#include "migration/forecast.h"

#include <stdio.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/json.h"
#include "base/log.h"

/* What is assumed where nothing is known; measured on a small machine. */
#define BEFORE_US 400000
#define AFTER_US 80000
#define PAUSE_US 8000
#define SCAN_BYTES_PER_S UINT64_C(2000000000)
#define SENT_PERCENT 100
/* What a pause costs besides memory, at most: QEMU's stop and device state, loading, two round trips of ours; measured 6-9 ms. */
#define PAUSE_OVERHEAD_MS 15
/* A measure of a copy that was told to stay below its bandwidth tells nothing of the link. */
#define BANDWIDTH_REACHED_PERCENT 85
#define AGREES_PERCENT 30
#define LOOK_US 500000
#define SAMPLED_US 1000000 /* how long a copy's own look at the guest's pages takes */
#define SCAN_TELLING_BYTES (UINT64_C(64) << 20)
#define SCAN_TELLING_US 50000
#define TELL_TIMEOUT_MS 2000
/* Beyond these it is no figure that anybody has measured; within them no sum and no quotient of ours is out of range. */
#define LEARNED_MAX (INT64_C(1) << 50)
#define LEARNED_TIME_MAX_US (INT64_C(86400) * 1000000)
#define LEARNED_RATE_MIN 1000
/* Later passes beyond these parts of the first one's rate have shown something else than the link. */
#define LATER_PART_MIN 2
#define LATER_TIMES_MAX 4
#define LATER_FULL_PERCENT 90 /* between two passes little is sent for a moment, which is no part of the rate */
#define ALIKE_TIMES 1.5 /* a link that has carried so much more or less before is the same one */
#define PASS_TELLING_US 200000 /* one that is shorter, at the end of a copy, is of a moment */

/* ---- what is known ---- */

void forecast_options(struct migration_host *host, const struct migration_promise *promise, int64_t from_us,
		      struct converge_options *ret)
{
	*ret = (struct converge_options){
		.max_downtime_ms = promise->max_downtime_ms,
		.overhead_ms = PAUSE_OVERHEAD_MS + 3 * journal_commit_us(host->journal) / 1000,
		.deadline_us = promise->deadline_ms ? from_us + promise->deadline_ms * 1000 : 0,
		.means_count = promise->means_count,
		.longest_pause_ms = promise->pause_ms,
	};
	memcpy(ret->means, promise->means, sizeof(ret->means));
}

void forecast_know_guest(struct migration_host *host, const char *vm_uuid, struct machine *machine, bool closely,
			 struct predict_guest *ret, uint64_t *ret_touched_bytes)
{
	const struct vm_driver *driver = inventory_driver(host->inventory);
	cleanup_error struct error *e = NULL;
	struct machine_state state;
	struct rates_vm vm = {0};
	uint64_t total_bytes = 0, touched_bytes = 0;
	driver->state(machine, &state);
	*ret = (struct predict_guest){.stands = state.run != MACHINE_RUNNING};
	(void)rates_vm(host->rates, vm_uuid, &vm);
	if (driver->memory_use(machine, closely, &total_bytes, &touched_bytes, &e) == 0 && touched_bytes == 0)
		touched_bytes = vm.touched_bytes < total_bytes ? vm.touched_bytes : total_bytes;
	if (!e && touched_bytes == 0)
		(void)driver->memory_use(machine, true, &total_bytes, &touched_bytes, &e);
	if (e)
		log_failure(LOG_LEVEL_WARNING, "how much memory the guest uses is not known", e);
	const unsigned int sent_percent = vm.sent_percent ? vm.sent_percent : SENT_PERCENT;
	ret->memory_bytes = total_bytes;
	ret->used_bytes = touched_bytes / 100 * sent_percent;
	for (size_t i = 0; i < sizeof(vm.writes) / sizeof(vm.writes[0]); i++)
		predict_add_writes(ret, vm.writes[i].for_us, vm.writes[i].bytes);
	*ret_touched_bytes = touched_bytes;
}

bool forecast_know_link(struct migration_host *host, const char *destination, struct predict_link *ret)
{
	struct rates_link known = {0};
	(void)rates_link(host->rates, destination, &known);
	*ret = known.link;
	ret->before_us = ret->before_us ? ret->before_us : BEFORE_US;
	ret->after_us = ret->after_us ? ret->after_us : AFTER_US;
	ret->pause_us = ret->pause_us ? ret->pause_us : PAUSE_US;
	ret->scan_bytes_per_s = ret->scan_bytes_per_s ? ret->scan_bytes_per_s : SCAN_BYTES_PER_S;
	return ret->rate_bytes_per_s > 0;
}

/* ---- predicting ---- */

static void say(const char *when, const struct prediction *prediction)
{
	log_info("predicted %s: total_ms=%lld downtime_ms=%lld wire_bytes=%llu: %s", when, (long long)prediction->total_us / 1000,
		 (long long)prediction->downtime_us / 1000, (unsigned long long)prediction->wire_bytes, prediction->words);
}

/* What a prediction is made from, in the log: the whole of it can be made again from that. */
static void log_known(const struct predict_guest *guest, const struct predict_link *link)
{
	char writes[PREDICT_WRITES_MAX * 40] = "";
	for (size_t i = 0; i < guest->writes_count; i++)
		snprintf(writes + strlen(writes), sizeof(writes) - strlen(writes), " %lld:%llu", (long long)guest->writes[i].for_us,
			 (unsigned long long)guest->writes[i].bytes);
	log_debug("known memory=%llu used=%llu stands=%d rate=%llu later=%llu bandwidth=%llu scan=%llu before_us=%lld after_us=%lld"
		  " pause_us=%lld writes:%s",
		  (unsigned long long)guest->memory_bytes, (unsigned long long)guest->used_bytes, (int)guest->stands,
		  (unsigned long long)link->rate_bytes_per_s, (unsigned long long)link->later_bytes_per_s,
		  (unsigned long long)link->bandwidth_bytes_per_s,
		  (unsigned long long)link->scan_bytes_per_s, (long long)link->before_us, (long long)link->after_us,
		  (long long)link->pause_us, writes);
}

/* Of passes that are still to come, by what the first one's rate is, and the most that it had for a moment. What earlier moves have shown of those says more than this
 * copy's first pass, in which the destination's processors and the guest's pages count as well; unless it is another link by now. */
static uint64_t later_rate(const struct forecast *forecast, uint64_t first)
{
	const uint64_t best = rates_meter_best(&forecast->meter);
	const double known = (double)forecast->known_bytes_per_s, later = (double)forecast->link.later_bytes_per_s, now = (double)first;
	if (known <= 0 || later <= 0)
		return best > first ? best : first;
	if (now > known * ALIKE_TIMES || now * ALIKE_TIMES < known)
		return (uint64_t)(later * now / known);
	return later > now ? (uint64_t)later : first;
}

static void predict_from_start(struct forecast *forecast, struct prediction *kept)
{
	struct migration *migration = forecast->migration;
	struct prediction prediction;
	struct converge_options options;
	if (forecast->guest.memory_bytes == 0)
		return;
	struct predict_link link = forecast->link;
	link.later_bytes_per_s = later_rate(forecast, link.rate_bytes_per_s);
	link.bandwidth_bytes_per_s = migration->request.promise.bandwidth_bytes_per_s;
	forecast_options(forecast->host, &migration->request.promise, 0, &options);
	predict_move(&forecast->guest, &link, migration->request.policy, &options, &prediction);
	prediction.at_us = clock_monotonic_us() - migration->began_us;
	migration_note_prediction(migration, &prediction, kept);
	if (!kept)
		return;
	log_known(&forecast->guest, &link);
	say("at the start", &prediction);
}

void forecast_begin(struct forecast *forecast, struct migration_host *host, struct migration *migration, struct machine *machine)
{
	*forecast = (struct forecast){.host = host,
				      .migration = migration,
				      .pause_memory_us = -1,
				      .later_meter = {.full_percent = LATER_FULL_PERCENT}};
	const bool link_known = forecast_know_link(host, migration->destination, &forecast->link);
	forecast->known_bytes_per_s = forecast->link.rate_bytes_per_s;
	if (!machine)
		return;
	forecast_know_guest(host, migration->vm_uuid, machine, false, &forecast->guest, &forecast->touched_bytes);
	if (link_known)
		predict_from_start(forecast, &migration->predicted);
}

void forecast_copying(struct forecast *forecast)
{
	forecast->copying_us = forecast->pass_us = clock_monotonic_us();
	forecast->pass = 1;
}

void forecast_take_writes(struct predict_guest *guest, int64_t for_us, uint64_t bytes)
{
	struct simulated_guest known;
	predict_fill_guest(guest, &known);
	double expected = (double)known.writes_bytes_per_s * (double)for_us / 1e6;
	if (expected > (double)known.working_set_bytes)
		expected = (double)known.working_set_bytes;
	if (expected * 100 < (double)bytes * (100 - AGREES_PERCENT) || expected * 100 > (double)bytes * (100 + AGREES_PERCENT))
		guest->writes_count = 0;
	predict_add_writes(guest, for_us, bytes);
}

/* A pass is about to be believed by itself, so what was known before of as long a time counts no more. But how fast the guest writes
 * within a shorter one only those looks can tell. */
static void forget_known_writes(struct forecast *forecast, int64_t pass_us)
{
	struct predict_guest *guest = &forecast->guest;
	size_t kept = 0;
	for (size_t i = 0; i < guest->writes_count; i++)
		if (guest->writes[i].for_us < pass_us)
			guest->writes[kept++] = guest->writes[i];
	guest->writes_count = kept;
}

/* A pass has ended: what it has sent, and what the guest has written meanwhile. */
static void end_pass(struct forecast *forecast, const struct move_sample *sample)
{
	const int64_t took_us = sample->at_us - forecast->pass_us;
	if (forecast->pass == 1) {
		forecast->first_pass_us = took_us;
		forecast->first_pass_bytes = sample->normal_pages * sample->page_size_bytes;
		forecast->scanned_bytes = sample->zero_pages * sample->page_size_bytes;
	}
	if (!forecast->pass_throttled && took_us > 0) {
		if (!forecast->measured)
			forget_known_writes(forecast, took_us);
		forecast->measured = true;
		if (took_us >= PASS_TELLING_US || forecast->guest.writes_count == 0)
			predict_add_writes(&forecast->guest, took_us, sample->remaining_bytes);
	}
	forecast->pass = sample->pass;
	forecast->pass_us = sample->at_us;
	forecast->pass_throttled = false;
}

/* What the copy has shown of the link, and for passes that are still to come, if it has not yet, what earlier ones have. False: it has
 * shown nothing, *ret is what was known before or seen_bytes_per_s. */
static bool know_link_by_now(const struct forecast *forecast, uint64_t seen_bytes_per_s, struct predict_link *ret)
{
	const uint64_t first = rates_meter_read(&forecast->meter), later = rates_meter_read(&forecast->later_meter);
	*ret = forecast->link;
	ret->bandwidth_bytes_per_s = forecast->migration->request.promise.bandwidth_bytes_per_s;
	if (later)
		ret->rate_bytes_per_s = ret->later_bytes_per_s = later;
	else if (first || seen_bytes_per_s)
		ret->rate_bytes_per_s = first ? first : seen_bytes_per_s;
	if (!later)
		ret->later_bytes_per_s = later_rate(forecast, ret->rate_bytes_per_s);
	return first || later;
}

static void predict_from_here(struct forecast *forecast, const struct move_sample *sample, const struct converge *converge,
			      const struct converge_sample *seen, struct prediction *kept)
{
	struct migration *migration = forecast->migration;
	struct prediction prediction;
	struct predict_link link;
	(void)know_link_by_now(forecast, seen->rate_bytes_per_s, &link);
	predict_rest(&forecast->guest, &link, converge, seen, sample->at_us - migration->began_us,
		     sample->wire_bytes ? sample->wire_bytes : sample->transferred_bytes, &prediction);
	migration_note_prediction(migration, &prediction, kept);
	if (!kept)
		return;
	log_known(&forecast->guest, &link);
	say("after the first pass", &prediction);
}

/* In the first pass the link shows what it carries. */
static void look_at_first_pass(struct forecast *forecast, const struct move_sample *sample)
{
	struct migration *migration = forecast->migration;
	const bool unknown = forecast->link.rate_bytes_per_s == 0;
	const uint64_t measured = rates_meter_read(&forecast->meter);
	if (measured == 0 || (!unknown && sample->at_us < forecast->predicted_us + LOOK_US))
		return;
	forecast->predicted_us = sample->at_us;
	forecast->link.rate_bytes_per_s = measured;
	forecast->link.before_us = forecast->copying_us - migration->began_us;
	predict_from_start(forecast, unknown ? &migration->predicted : NULL);
}

void forecast_look(struct forecast *forecast, const struct move_sample *sample, const struct converge *converge,
		   const struct converge_sample *seen)
{
	if (forecast->last_us)
		rates_meter_add(forecast->pass < 2 ? &forecast->meter : &forecast->later_meter,
				sample->transferred_bytes - forecast->last_sent_bytes, sample->at_us - forecast->last_us);
	forecast->last_us = sample->at_us;
	forecast->last_sent_bytes = sample->transferred_bytes;
	forecast->pass_throttled |= sample->throttle_percent > 0;
	if (seen->sampled_dirty_bytes_per_s && !forecast->sampled_bytes) {
		forecast->sampled_bytes = seen->sampled_dirty_bytes_per_s;
		forecast_take_writes(&forecast->guest, SAMPLED_US, forecast->sampled_bytes);
	}
	if (sample->pass < 2)
		look_at_first_pass(forecast, sample);
	if (!seen->pass_began || sample->pass < 2)
		return;
	const bool first = forecast->pass == 1;
	end_pass(forecast, sample);
	if (!first && sample->at_us < forecast->predicted_us + LOOK_US)
		return;
	forecast->predicted_us = sample->at_us;
	predict_from_here(forecast, sample, converge, seen, first ? &forecast->migration->predicted_first_pass : NULL);
}

bool forecast_first_pass_ends(const struct forecast *forecast, const struct converge_sample *seen, int64_t within_us)
{
	const uint64_t used = forecast->guest.used_bytes, sent = forecast->last_sent_bytes;
	struct predict_link link;
	(void)know_link_by_now(forecast, 0, &link);
	uint64_t left = seen->remaining_bytes;
	/* Of that zero pages take no time; how much they are, only what the guest is known to use tells. */
	if (sent < used && used - sent < left)
		left = used - sent;
	return link.rate_bytes_per_s > 0 && converge_time_ms(left, link.rate_bytes_per_s) <= within_us / 1000;
}

/* A first pass after which so little was left that the guest has been stopped at once. */
static void predict_switch(struct forecast *forecast, const struct move_sample *sample, int64_t memory_us)
{
	struct migration *migration = forecast->migration;
	struct prediction prediction = {
		.verdict = PREDICT_CONVERGES,
		.at_us = sample->at_us - migration->began_us,
		.downtime_us = forecast->guest.stands ? 0 : memory_us + forecast->link.pause_us,
		.wire_bytes = (sample->wire_bytes ? sample->wire_bytes : sample->transferred_bytes) + sample->remaining_bytes,
	};
	prediction.total_us = prediction.at_us + prediction.downtime_us + forecast->link.after_us;
	snprintf(prediction.words, sizeof(prediction.words), "converges");
	migration_note_prediction(migration, &prediction, &migration->predicted_first_pass);
	say("after the first pass", &prediction);
}

void forecast_switching(struct forecast *forecast, const struct move_sample *sample)
{
	struct predict_link link;
	const uint64_t rate = know_link_by_now(forecast, 0, &link) ? predict_later_rate(&link) : 0;
	const int64_t memory_us = rate ? converge_time_ms(sample->remaining_bytes, rate) * 1000 : 0;
	if (rate)
		forecast->pause_memory_us = memory_us;
	if (forecast->pass != 1)
		return;
	end_pass(forecast, sample);
	predict_switch(forecast, sample, memory_us);
}

/* ---- learning ---- */

/* 0 where the copy tells nothing of it. */
static uint64_t learned_rate(const struct forecast *forecast)
{
	const uint64_t rate = rates_meter_read(&forecast->meter);
	const uint64_t allowed = forecast->migration->request.promise.bandwidth_bytes_per_s;
	const bool held_back = allowed && rate / BANDWIDTH_REACHED_PERCENT >= allowed / 100;
	return held_back || rate < LEARNED_RATE_MIN ? 0 : rate;
}

/* 0 where one of the two is not known. */
static uint64_t sensible_later_rate(uint64_t first, uint64_t later)
{
	if (first == 0 || later == 0)
		return 0;
	return later < first / LATER_PART_MIN ? first / LATER_PART_MIN : later > first * LATER_TIMES_MAX ? first * LATER_TIMES_MAX : later;
}

static uint64_t learned_later_rate(const struct forecast *forecast)
{
	if (forecast->migration->request.promise.bandwidth_bytes_per_s) /* it may be that which the later ones have reached */
		return 0;
	return sensible_later_rate(learned_rate(forecast), rates_meter_read(&forecast->later_meter));
}

static void learn_link(const struct forecast *forecast, int64_t round_trip_us)
{
	struct migration *migration = forecast->migration;
	struct rates_link seen = {.link = {.rate_bytes_per_s = rates_meter_read(&forecast->meter),
					   .before_us = forecast->copying_us - migration->began_us},
				  .round_trip_us = round_trip_us};
	const double sending_us =
		seen.link.rate_bytes_per_s ? (double)forecast->first_pass_bytes * 1e6 / (double)seen.link.rate_bytes_per_s : 0;
	double scanning_us = (double)forecast->first_pass_us - sending_us;
	if (scanning_us < SCAN_TELLING_US) /* at least that fast */
		scanning_us = SCAN_TELLING_US;
	if (sending_us > 0 && forecast->scanned_bytes >= SCAN_TELLING_BYTES)
		seen.link.scan_bytes_per_s = (uint64_t)((double)forecast->scanned_bytes * 1e6 / scanning_us);
	if (migration->status == MIGRATION_COMPLETED) {
		seen.link.after_us = migration->total_us - seen.link.before_us - migration->qemu_total_ms * 1000;
		if (forecast->pause_memory_us >= 0 && migration->downtime_us > forecast->pause_memory_us)
			seen.link.pause_us = migration->downtime_us - forecast->pause_memory_us;
	}
	seen.link.rate_bytes_per_s = learned_rate(forecast);
	seen.link.later_bytes_per_s = learned_later_rate(forecast);
	rates_note_link(forecast->host->rates, migration->destination, &seen);
}

/* The shortest and the longest time of which anything is known; false when nothing is. */
static bool shortest_and_longest(const struct predict_guest *guest, struct predict_writes ret[2])
{
	ret[0] = ret[1] = guest->writes[0];
	for (size_t i = 1; i < guest->writes_count; i++) {
		const struct predict_writes *one = &guest->writes[i];
		if (one->for_us < ret[0].for_us && one->for_us >= PREDICT_WRITES_TELLING_US)
			ret[0] = *one;
		if (one->for_us > ret[1].for_us)
			ret[1] = *one;
	}
	if (ret[1].for_us == ret[0].for_us)
		ret[1] = (struct predict_writes){0};
	return guest->writes_count > 0 && ret[0].for_us >= PREDICT_WRITES_TELLING_US;
}

/* Nobody waits for it, and nothing is lost if it does not arrive. */
static void tell_destination(const struct forecast *forecast, const struct predict_writes writes[2])
{
	const struct migration *migration = forecast->migration;
	const struct predict_link *link = &forecast->link;
	cleanup_error struct error *e = NULL;
	cleanup_json json_t *body =
		json_pack("{s:s, s:I, s:[{s:I, s:I}, {s:I, s:I}], s:I, s:I, s:I}", "vm_uuid", migration->vm_uuid, "used_bytes",
			  (json_int_t)forecast->first_pass_bytes, "writes", "for_us", (json_int_t)writes[0].for_us, "bytes",
			  (json_int_t)writes[0].bytes, "for_us", (json_int_t)writes[1].for_us, "bytes", (json_int_t)writes[1].bytes,
			  "link_bytes_per_s", (json_int_t)learned_rate(forecast), "scan_bytes_per_s",
			  (json_int_t)link->scan_bytes_per_s, "later_bytes_per_s", (json_int_t)learned_later_rate(forecast));
	struct http_client *peer = NULL;
	if (peers_take(forecast->host->peers, migration->destination, &peer, &e) < 0)
		return;
	const int r = http_client_request(peer, "POST", "/v1/peer/learned", body, TELL_TIMEOUT_MS, NULL, &e);
	if (r < 0)
		log_failure(LOG_LEVEL_DEBUG, "the destination does not hear what was learned", e);
	peers_give_back(forecast->host->peers, migration->destination, peer, r < 0 && !http_client_answered(peer));
}

void forecast_learn(const struct forecast *forecast, int64_t round_trip_us)
{
	struct predict_writes writes[2];
	if (!forecast->copying_us || !forecast->host->rates || forecast->first_pass_bytes == 0)
		return;
	learn_link(forecast, round_trip_us);
	if (forecast->touched_bytes)
		rates_note_sent(forecast->host->rates, forecast->migration->vm_uuid,
				(unsigned int)(forecast->first_pass_bytes / (forecast->touched_bytes / 100 + 1)));
	if (!forecast->measured || forecast->guest.stands || !shortest_and_longest(&forecast->guest, writes))
		return;
	rates_note_writes(forecast->host->rates, forecast->migration->vm_uuid, writes);
	if (forecast->migration->status == MIGRATION_COMPLETED)
		tell_destination(forecast, writes);
}

static int parse_writes(const json_t *body, struct predict_writes ret[2], struct error **e)
{
	static const char *const keys[] = {"for_us", "bytes", NULL};
	json_t *list = NULL;
	int64_t bytes = 0;
	if (json_get_array(body, "writes", &list, e) < 0)
		return -1;
	if (json_array_size(list) != 2)
		return error_set(e, ERROR_INVALID_ARGUMENT, "'writes' must have two entries");
	for (size_t i = 0; i < 2; i++) {
		const json_t *one = json_array_get(list, i);
		if (json_check_keys(one, keys, e) < 0 || json_get_integer(one, "for_us", 0, LEARNED_TIME_MAX_US, &ret[i].for_us, e) < 0 ||
		    json_get_integer(one, "bytes", 0, LEARNED_MAX, &bytes, e) < 0)
			return error_wrap(e, "writes[%zu]", i);
		if (ret[i].for_us > 0 && ret[i].for_us < PREDICT_WRITES_TELLING_US)
			return error_set(e, ERROR_INVALID_ARGUMENT, "writes[%zu]: for_us must be 0, or %d at least", i,
					 PREDICT_WRITES_TELLING_US);
		ret[i].bytes = (uint64_t)bytes;
	}
	return 0;
}

int forecast_hear(struct migration_host *host, const char *from, const json_t *body, struct error **e)
{
	static const char *const keys[] = {"vm_uuid",	      "used_bytes",	  "writes",
					   "link_bytes_per_s", "scan_bytes_per_s", "later_bytes_per_s", NULL};
	const char *uuid = NULL;
	cleanup_free char *owner = NULL;
	uint64_t epoch;
	struct predict_writes writes[2];
	int64_t rate = 0, scan = 0, used = 0, later = 0;
	struct rates_link known;
	if (json_check_keys(body, keys, e) < 0 || json_get_string(body, "vm_uuid", &uuid, e) < 0 || parse_writes(body, writes, e) < 0 ||
	    json_get_integer(body, "used_bytes", 0, LEARNED_MAX, &used, e) < 0 ||
	    json_get_integer(body, "link_bytes_per_s", 0, LEARNED_MAX, &rate, e) < 0 ||
	    json_get_integer(body, "scan_bytes_per_s", 0, LEARNED_MAX, &scan, e) < 0 ||
	    json_get_integer(body, "later_bytes_per_s", 0, LEARNED_MAX, &later, e) < 0)
		return -1;
	if (rate > 0 && rate < LEARNED_RATE_MIN)
		return error_set(e, ERROR_INVALID_ARGUMENT, "link_bytes_per_s must be 0, or %d at least", LEARNED_RATE_MIN);
	if (!inventory_ownership(host->inventory, uuid, &owner, &epoch) || strcmp(owner, host->name) != 0)
		return error_set(e, ERROR_VM_NOT_OWNER, "the VM is not this host's");
	rates_note_writes(host->rates, uuid, writes);
	/* Its zero pages have not come along. */
	if (used > 0)
		rates_note_arrived(host->rates, uuid, (uint64_t)used);
	/* Most links are the same in both directions. */
	const struct rates_link link = {.link = {.rate_bytes_per_s = (uint64_t)rate,
						 .later_bytes_per_s = sensible_later_rate((uint64_t)rate, (uint64_t)later),
						 .scan_bytes_per_s = (uint64_t)scan}};
	if (rate > 0 && !rates_link(host->rates, from, &known))
		rates_note_link(host->rates, from, &link);
	return 0;
}
