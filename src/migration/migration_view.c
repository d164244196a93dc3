/* SPDX-License-Identifier: Apache-2.0 */
/* What readers see of a migration; see migration.h. */
#include "migration/migration.h"

#include "base/cleanup.h"
#include "base/json.h"
#include "base/xalloc.h"

static json_t *view_ms(int64_t us)
{
	/* One decimal: pauses are a few milliseconds. */
	return json_real((double)(us / 100) / 10.0);
}

static json_t *view_phases(const struct migration *migration)
{
	json_t *phases = json_array();
	for (size_t i = 0; i < migration->phase_count; i++) {
		const struct migration_phase *phase = &migration->phases[i];
		json_t *one = json_pack("{ss ss}", "name", migration_status_name(phase->status), "waited_for",
					migration_status_waits_for(phase->status, migration->role));
		json_object_set_new(one, "start_ms", view_ms(phase->start_us));
		json_object_set_new(one, "end_ms", phase->end_us ? view_ms(phase->end_us) : json_null());
		json_array_append_new(phases, one);
	}
	return phases;
}

/* Null where nobody can tell, and for a migration that is not expected to get there. */
static json_t *view_time_left(const struct migration *migration)
{
	const int64_t left_us = migration->predicted_total_us - (clock_monotonic_us() - migration->began_us);
	if (migration->predicted_total_us <= 0 || migration_status_ended(migration->status))
		return json_null();
	return json_integer(left_us > 0 ? left_us / 1000 : 0);
}

static json_t *view_progress(const struct migration *migration)
{
	const struct move_sample *sample = &migration->progress;
	json_t *progress = json_pack("{sI sI sI sI si si sI}", "ram_total_bytes", (json_int_t)sample->total_bytes,
				     "ram_remaining_bytes", (json_int_t)sample->remaining_bytes, "rate_bytes_per_s",
				     (json_int_t)sample->rate_bytes_per_s, "dirty_bytes_per_s",
				     (json_int_t)sample->dirty_bytes_per_s, "throttle_percent", (int)sample->throttle_percent, "iteration",
				     (int)sample->pass, "elapsed_ms",
				     (json_int_t)((clock_monotonic_us() - migration->began_us) / 1000));
	json_object_set_new(progress, "predicted_ms", view_time_left(migration));
	return progress;
}

static json_t *view_wait(const struct migration_wait *wait)
{
	if (!wait->host)
		return json_null();
	json_t *view = json_pack("{ss ss sI sI si}", "for", wait->host, "what", wait->what, "since_ms",
				 (json_int_t)wait->since_wall_ms, "for_ms",
				 (json_int_t)((clock_monotonic_us() - wait->since_us) / 1000), "asked", (int)wait->asked);
	json_object_set_new(view, "last",
			    json_pack("{ss ss}", "code", error_code_name(wait->last_code), "message", wait->last_message));
	return view;
}

json_t *migration_view_resolution(const struct migration_resolution *resolution)
{
	if (!resolution->owner)
		return json_null();
	return json_pack("{ss ss sI sI}", "owner", resolution->owner, "fenced", resolution->fenced, "epoch",
			 (json_int_t)resolution->epoch, "at_ms", (json_int_t)resolution->at_wall_ms);
}

/* Whether the guest's pause and the time it took were as promised, and in words if not. A move that did not take place has
 * kept its deadline by that. */
static bool promise_kept(const struct migration *migration, char **ret_words)
{
	const struct migration_promise *promise = &migration->request.promise;
	const int64_t allowed_ms = migration->pause_allowed_ms ? migration->pause_allowed_ms : promise->max_downtime_ms;
	if (migration->downtime_us > allowed_ms * 1000)
		*ret_words = xasprintf("the guest was paused for %.1f ms, %lld ms were promised",
				       (double)(migration->downtime_us / 100) / 10, (long long)allowed_ms);
	else if (migration->status == MIGRATION_COMPLETED && promise->deadline_ms &&
		 migration->total_us > promise->deadline_ms * 1000)
		*ret_words = xasprintf("it took %.1f s, %.1f s were promised", (double)(migration->total_us / 100000) / 10,
				       (double)promise->deadline_ms / 1e3);
	return *ret_words == NULL;
}

static json_t *view_promise(const struct migration *migration)
{
	/* Whoever has changed it wants to see it so, also where it has not been taken up yet. */
	const struct migration_promise *promise = migration->promise_changed ? &migration->promise_wanted : &migration->request.promise;
	cleanup_free char *words = NULL;
	const bool kept = promise_kept(migration, &words), ended = migration_status_ended(migration->status);
	const bool pauses = migration_promise_allows(promise, CONVERGE_PAUSE);
	json_t *means = json_array();
	for (size_t i = 0; i < promise->means_count; i++)
		json_array_append_new(means, json_string(converge_means_name(promise->means[i])));
	json_t *view = json_pack("{s:I, s:o, s:s, s:o, s:o}", "max_downtime_ms", (json_int_t)promise->max_downtime_ms, "converge", means,
				 "policy", migration->request.policy->name, "kept", ended ? json_boolean(kept) : json_null(), "words",
				 words && ended ? json_string(words) : json_null());
	json_object_set_new(view, "deadline_ms", promise->deadline_ms ? json_integer(promise->deadline_ms) : json_null());
	json_object_set_new(view, "pause_ms", pauses ? json_integer(promise->pause_ms) : json_null());
	json_object_set_new(view, "bandwidth_bytes_per_s",
			    promise->bandwidth_bytes_per_s ? json_integer((json_int_t)promise->bandwidth_bytes_per_s) : json_null());
	return view;
}

/* Whether the move has shown by its end that what was predicted of it is right or wrong: it got there, or was given up because it
 * would not have within what was promised; and nobody has interfered. */
static bool has_shown(const struct migration *migration)
{
	const enum error_code code = migration->reason_code;
	if (migration->promise_was_changed || migration->complete_requested)
		return false;
	if (migration->status == MIGRATION_COMPLETED)
		return true;
	return migration->status == MIGRATION_ROLLED_BACK && (code == ERROR_MIGRATION_NOT_CONVERGING ||
							      code == ERROR_MIGRATION_DEADLINE || code == ERROR_MIGRATION_DOWNTIME);
}

static json_t *view_prediction_error(const struct migration *migration)
{
	const bool moved = migration->status == MIGRATION_COMPLETED;
	if (!has_shown(migration))
		return json_null();
	return json_pack("{s:o, s:o}", "start",
			 predict_error_view(&migration->predicted, moved, migration->total_us, migration->downtime_us,
					    migration->wire_bytes),
			 "first_pass",
			 predict_error_view(&migration->predicted_first_pass, moved, migration->total_us, migration->downtime_us,
					    migration->wire_bytes));
}

static json_t *view_pages(const struct page_sender_counts *pages)
{
	return json_pack("{sI sI sI sI sI sI sI sI sI sI}", "zero", (json_int_t)pages->zero, "unchanged", (json_int_t)pages->unchanged,
			 "images", (json_int_t)pages->images, "received", (json_int_t)pages->received, "again",
			 (json_int_t)pages->again, "delta", (json_int_t)pages->delta, "whole", (json_int_t)pages->whole, "delta_bytes",
			 (json_int_t)pages->delta_bytes, "other_bytes", (json_int_t)pages->other_bytes, "asked",
			 (json_int_t)pages->asked);
}

json_t *migration_view(struct migration *migration)
{
	LOCK_SCOPE(&migration->mutex);
	if (migration->archived)
		return json_incref(migration->archived);
	bool ended = migration_status_ended(migration->status);
	json_t *view = json_pack(
		"{ss sI ss ss ss ss ss ss ss sI ss sb sI sb sI sI si sI sb}", "id", migration->id, "change",
		(json_int_t)migration->change, "role", migration->role == MIGRATION_SOURCE ? "source" : "destination", "vm",
		migration->vm_name, "vm_uuid", migration->vm_uuid, "source", migration->source, "destination",
		migration->destination, "status", migration_status_name(migration->status), "owner", migration->owner, "epoch",
		(json_int_t)migration->epoch, "transport", migration->relayed ? "relay" : "native", "encrypted", (int)migration->encrypted, "started_at_ms",
		(json_int_t)migration->began_wall_ms, "ended", (int)ended, "wire_bytes", (json_int_t)migration->wire_bytes,
		"ram_bytes", (json_int_t)migration->ram_bytes, "iterations", (int)migration->iterations, "setup_ms",
		(json_int_t)migration->setup_ms, "cleanup_pending", (int)migration->cleanup_pending);
	json_object_set_new(view, "total_ms",
			    view_ms(ended ? migration->total_us : clock_monotonic_us() - migration->began_us));
	json_object_set_new(view, "downtime_ms", migration->pause_unknown ? json_null() : view_ms(migration->downtime_us));
	json_object_set_new(view, "qemu_total_ms", json_integer(migration->qemu_total_ms));
	json_object_set_new(view, "handover", json_string(handover_state_name(migration->handover)));
	json_object_set_new(view, "reason",
			    migration->reason_code == ERROR_CODE_COUNT
				    ? json_null()
				    : json_pack("{ss ss}", "code", error_code_name(migration->reason_code), "message",
						migration->reason_message));
	json_object_set_new(view, "waiting", view_wait(&migration->wait));
	json_object_set_new(view, "resolved", migration_view_resolution(&migration->resolution));
	json_object_set_new(view, "refused", json_boolean(migration->status == MIGRATION_FAILED && migration->failures));
	if (migration->failures)
		json_object_set(view, "failures", migration->failures);
	json_object_set_new(view, "postcopy", json_boolean(migration->postcopy));
	json_object_set_new(view, "promise", migration->request.policy ? view_promise(migration) : json_null());
	json_object_set_new(view, "predicted", predict_view(&migration->predicted));
	json_object_set_new(view, "predicted_first_pass", predict_view(&migration->predicted_first_pass));
	json_object_set_new(view, "prediction_error", view_prediction_error(migration));
	json_object_set_new(view, "pages", migration->relayed && migration->role == MIGRATION_SOURCE ? view_pages(&migration->pages)
												      : json_null());
	json_object_set_new(view, "phases", view_phases(migration));
	json_object_set_new(view, "progress", view_progress(migration));
	return view;
}

static void append_view(void *user, struct migration *migration)
{
	json_array_append_new(user, migration_view(migration));
}

json_t *migration_list_view(struct migration_list *list)
{
	json_t *views = json_array();
	migration_list_each(list, append_view, views);
	return views;
}
