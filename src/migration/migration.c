/* SPDX-License-Identifier: Apache-2.0 */
/* Records of migrations, and the list of them; see migration.h. What they are called is in status.c, what is shown in migration_view.c. */
#include "migration/migration.h"

#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/json.h"
#include "base/log.h"
#include "base/xalloc.h"

struct migration_list {
	pthread_mutex_t mutex;
	struct migration *newest;
};

/* ---- the list ---- */

struct migration_list *migration_list_new(void)
{
	struct migration_list *list = xcalloc(1, sizeof(*list));
	pthread_mutex_init(&list->mutex, NULL);
	return list;
}

void migration_list_free(struct migration_list *list)
{
	if (!list)
		return;
	while (list->newest) {
		struct migration *migration = list->newest;
		list->newest = migration->next;
		migration_unref(migration);
	}
	pthread_mutex_destroy(&list->mutex);
	free(list);
}

/* The mutex is held. Forget the oldest of those that have ended, one for the one that comes. */
static void list_make_room(struct migration_list *list)
{
	size_t count = 0;
	struct migration **oldest = NULL;
	for (struct migration **at = &list->newest; *at; at = &(*at)->next) {
		count++;
		if (migration_ended(*at))
			oldest = at;
	}
	if (count < MIGRATIONS_KEPT || !oldest)
		return;
	struct migration *gone = *oldest;
	*oldest = gone->next;
	migration_unref(gone);
}

struct migration *migration_new(struct migration_list *list, const char *id, enum migration_role role, const char *vm_name,
				const char *vm_uuid, const char *source, const char *destination, uint64_t epoch)
{
	struct migration *migration = xcalloc(1, sizeof(*migration));
	if (id)
		snprintf(migration->id, sizeof(migration->id), "%s", id);
	else
		random_id(migration->id);
	migration->role = role;
	snprintf(migration->vm_uuid, sizeof(migration->vm_uuid), "%s", vm_uuid);
	migration->vm_name = xstrdup(vm_name);
	migration->source = xstrdup(source);
	migration->destination = xstrdup(destination);
	migration->owner = xstrdup(source);
	migration->epoch = epoch;
	migration->began_wall_ms = clock_wall_ms();
	migration->began_us = clock_monotonic_us();
	migration->reason_code = ERROR_CODE_COUNT;
	migration->change = 1;
	pthread_mutex_init(&migration->work, NULL);
	pthread_mutex_init(&migration->mutex, NULL);
	cond_init(&migration->changed);
	migration->references = 2;
	LOCK_SCOPE(&list->mutex);
	list_make_room(list);
	migration->next = list->newest;
	list->newest = migration;
	return migration;
}

struct migration *migration_ref(struct migration *migration)
{
	__atomic_add_fetch(&migration->references, 1, __ATOMIC_RELAXED);
	return migration;
}

void migration_unref(struct migration *migration)
{
	if (!migration || __atomic_sub_fetch(&migration->references, 1, __ATOMIC_ACQ_REL) > 0)
		return;
	migration_request_done(&migration->request);
	move_sample_done(&migration->progress);
	if (migration->timeline)
		timeline_done(migration->timeline);
	free(migration->timeline);
	json_decref(migration->failures);
	json_decref(migration->archived);
	free(migration->vm_name);
	free(migration->source);
	free(migration->destination);
	free(migration->owner);
	free(migration->reason_message);
	free(migration->wait.host);
	free(migration->wait.last_message);
	free(migration->resolution.owner);
	free(migration->resolution.fenced);
	pthread_mutex_destroy(&migration->work);
	pthread_mutex_destroy(&migration->mutex);
	pthread_cond_destroy(&migration->changed);
	free(migration);
}

int migration_find(struct migration_list *list, const char *id, struct migration **ret, struct error **e)
{
	LOCK_SCOPE(&list->mutex);
	struct migration *found = NULL;
	size_t length = strlen(id);
	for (struct migration *migration = list->newest; migration && length >= 4; migration = migration->next) {
		if (strncmp(migration->id, id, length) != 0)
			continue;
		if (found)
			return error_set(e, ERROR_INVALID_ARGUMENT, "'%s' is the beginning of several migrations' ids", id);
		found = migration;
	}
	if (!found)
		return error_set(e, ERROR_MIGRATION_NOT_FOUND, "no migration '%s'", id);
	*ret = migration_ref(found);
	return 0;
}

void migration_list_remove(struct migration_list *list, struct migration *migration)
{
	LOCK_SCOPE(&list->mutex);
	for (struct migration **at = &list->newest; *at; at = &(*at)->next) {
		if (*at == migration) {
			*at = migration->next;
			migration_unref(migration);
			return;
		}
	}
}

void migration_list_each(struct migration_list *list, void (*visit)(void *user, struct migration *migration), void *user)
{
	/* The visitor may take its time, and may remove: work on references, not under the lock. */
	pthread_mutex_lock(&list->mutex);
	size_t count = 0;
	for (struct migration *migration = list->newest; migration; migration = migration->next)
		count++;
	cleanup_free struct migration **all = xcalloc(count, sizeof(struct migration *));
	size_t i = 0;
	for (struct migration *migration = list->newest; migration; migration = migration->next)
		all[i++] = migration_ref(migration);
	pthread_mutex_unlock(&list->mutex);
	for (i = 0; i < count; i++) {
		visit(user, all[i]);
		migration_unref(all[i]);
	}
}

/* ---- changes ---- */

void migration_lock(struct migration *migration)
{
	pthread_mutex_lock(&migration->mutex);
}

void migration_unlock_changed(struct migration *migration)
{
	migration->change++;
	pthread_cond_broadcast(&migration->changed);
	pthread_mutex_unlock(&migration->mutex);
}

/* The mutex is held. What an earlier run has kept of it is what readers see; some of them may be reading it just now. */
static void archive_set(struct migration *migration, const char *key, json_t *value)
{
	if (migration->archived) {
		json_t *changed = json_copy(migration->archived);
		json_decref(migration->archived);
		migration->archived = changed;
		json_object_set(changed, key, value);
	}
	json_decref(value);
}

/* The mutex is held. */
static void set_status(struct migration *migration, enum migration_status status)
{
	int64_t now_us = clock_monotonic_us() - migration->began_us;
	if (migration->phase_count > 0 && !migration->phases[migration->phase_count - 1].end_us)
		migration->phases[migration->phase_count - 1].end_us = now_us;
	migration->status = status;
	if (migration_status_ended(status))
		migration->total_us = now_us;
	else if (migration->phase_count < MIGRATION_PHASES_MAX)
		migration->phases[migration->phase_count++] = (struct migration_phase){.status = status, .start_us = now_us};
	archive_set(migration, "status", json_string(migration_status_name(status)));
}

/* Without the mutex: whoever takes the log may let us wait, and readers must not wait with us. */
static void log_status(enum migration_status status)
{
	log_info("status=%s", migration_status_name(status));
}

void migration_set_status(struct migration *migration, enum migration_status status)
{
	migration_lock(migration);
	set_status(migration, status);
	migration_unlock_changed(migration);
	log_status(status);
}

void migration_set_owner(struct migration *migration, const char *host)
{
	migration_lock(migration);
	free(migration->owner);
	migration->owner = xstrdup(host);
	archive_set(migration, "owner", json_string(host));
	migration_unlock_changed(migration);
}

void migration_set_cleanup_pending(struct migration *migration, bool pending)
{
	migration_lock(migration);
	migration->cleanup_pending = pending;
	archive_set(migration, "cleanup_pending", json_boolean(pending));
	migration_unlock_changed(migration);
}

/* The mutex is held. */
static void set_reason(struct migration *migration, enum error_code code, const char *message)
{
	migration->reason_code = code;
	free(migration->reason_message);
	migration->reason_message = xstrdup(message);
	archive_set(migration, "reason", json_pack("{ss ss}", "code", error_code_name(code), "message", message));
}

void migration_set_pause_unknown(struct migration *migration)
{
	migration_lock(migration);
	migration->pause_unknown = true;
	migration_unlock_changed(migration);
}

void migration_set_reason(struct migration *migration, enum error_code code, const char *message)
{
	migration_lock(migration);
	set_reason(migration, code, message);
	migration_unlock_changed(migration);
}

/* ---- doubt, and what a person says to it ---- */

void migration_set_waiting(struct migration *migration, enum migration_status status, const char *host, const char *what,
			   const struct error *last)
{
	migration_lock(migration);
	struct migration_wait *wait = &migration->wait;
	if (!wait->host) {
		wait->host = xstrdup(host);
		wait->since_us = clock_monotonic_us();
		wait->since_wall_ms = clock_wall_ms();
		wait->asked = 0;
	}
	wait->what = what;
	wait->asked++;
	wait->last_code = last->code;
	free(wait->last_message);
	wait->last_message = xstrdup(last->message);
	cleanup_free char *words = xasprintf("waiting for %s to say %s: %s", host, what, last->message);
	set_reason(migration, status == MIGRATION_IN_DOUBT ? ERROR_MIGRATION_IN_DOUBT : ERROR_MIGRATION_RECOVERING, words);
	const bool new_wait = migration->status != status;
	if (new_wait)
		set_status(migration, status);
	migration_unlock_changed(migration);
	if (new_wait)
		log_status(status);
}

/* With the mutex held. */
static void set_postcopy(struct migration *migration)
{
	migration->postcopy = migration->too_late_to_abort = migration->promise_settled = true;
}

bool migration_begin_postcopy(struct migration *migration)
{
	migration_lock(migration);
	const bool begins = !migration->abort_requested;
	if (begins)
		set_postcopy(migration);
	migration_unlock_changed(migration);
	return begins;
}

void migration_set_postcopy(struct migration *migration)
{
	migration_lock(migration);
	set_postcopy(migration);
	migration_unlock_changed(migration);
}

void migration_set_in_doubt(struct migration *migration, const char *host, const char *what, const struct error *last)
{
	migration_set_waiting(migration, MIGRATION_IN_DOUBT, host, what, last);
}

bool migration_in_doubt(struct migration *migration)
{
	LOCK_SCOPE(&migration->mutex);
	return migration->status == MIGRATION_IN_DOUBT;
}

void migration_clear_doubt(struct migration *migration)
{
	migration_lock(migration);
	free(take_ptr(migration->wait.host));
	free(take_ptr(migration->wait.last_message));
	if (migration->reason_code == ERROR_MIGRATION_IN_DOUBT || migration->reason_code == ERROR_MIGRATION_RECOVERING)
		migration->reason_code = ERROR_CODE_COUNT;
	migration_unlock_changed(migration);
}

/* The mutex is held. */
static void set_resolution(struct migration *migration, struct migration_resolution resolution)
{
	free(migration->resolution.owner);
	free(migration->resolution.fenced);
	migration->resolution = resolution;
	archive_set(migration, "resolved", migration_view_resolution(&resolution));
}

void migration_set_resolution(struct migration *migration, const char *owner, const char *fenced, uint64_t epoch, int64_t at_wall_ms)
{
	migration_lock(migration);
	set_resolution(migration,
		       (struct migration_resolution){
			       .owner = xstrdup(owner), .fenced = xstrdup(fenced), .at_wall_ms = at_wall_ms, .epoch = epoch});
	migration_unlock_changed(migration);
}

void migration_begin_settling(struct migration *migration)
{
	migration_lock(migration);
	migration->too_late_to_abort = migration->may_be_resolved = true;
	migration_unlock_changed(migration);
}

void migration_end_settling(struct migration *migration, bool answered)
{
	migration_lock(migration);
	migration->may_be_resolved = false;
	if (answered)
		set_resolution(migration, (struct migration_resolution){0});
	migration_unlock_changed(migration);
}

bool migration_try_resolve(struct migration *migration, const char *owner, const char *fenced, enum migration_status *ret_status)
{
	migration_lock(migration);
	const bool waits = migration->may_be_resolved && migration->status == MIGRATION_IN_DOUBT && !migration->resolution.owner;
	*ret_status = migration->status;
	/* Beyond what was offered, whoever is to have it: nothing of what was said before counts any more. */
	if (waits)
		set_resolution(migration, (struct migration_resolution){.owner = xstrdup(owner),
									.fenced = xstrdup(fenced),
									.at_wall_ms = clock_wall_ms(),
									.epoch = migration->epoch + 1});
	migration_unlock_changed(migration);
	return waits;
}

uint64_t migration_resolution_epoch(struct migration *migration, char **ret_owner)
{
	LOCK_SCOPE(&migration->mutex);
	if (migration->resolution.owner && ret_owner)
		*ret_owner = xstrdup(migration->resolution.owner);
	return migration->resolution.owner ? migration->resolution.epoch : 0;
}

void migration_set_progress(struct migration *migration, const struct move_sample *sample)
{
	migration_lock(migration);
	char *old_failure = migration->progress.failure;
	migration->progress = *sample;
	migration->progress.failure = xstrdup_null(sample->failure);
	free(old_failure);
	migration->iterations = sample->pass;
	migration->wire_bytes = sample->wire_bytes ? sample->wire_bytes : sample->transferred_bytes;
	migration->ram_bytes = sample->normal_pages * sample->page_size_bytes;
	migration->qemu_total_ms = sample->total_ms;
	migration->setup_ms = sample->setup_ms;
	migration_unlock_changed(migration);
}

void migration_set_pages(struct migration *migration, const struct page_sender_counts *pages)
{
	LOCK_SCOPE(&migration->mutex);
	migration->pages = *pages;
}

bool migration_abort_requested(struct migration *migration)
{
	LOCK_SCOPE(&migration->mutex);
	return migration->abort_requested;
}

bool migration_complete_requested(struct migration *migration)
{
	LOCK_SCOPE(&migration->mutex);
	return migration->complete_requested;
}

bool migration_take_promise(struct migration *migration)
{
	LOCK_SCOPE(&migration->mutex);
	if (!migration->promise_changed)
		return false;
	migration->request.promise = migration->promise_wanted;
	migration->promise_changed = false;
	migration->promise_was_changed = true;
	return true;
}

bool migration_settle_promise(struct migration *migration, int64_t pause_allowed_ms)
{
	LOCK_SCOPE(&migration->mutex);
	if (migration->promise_changed)
		return false;
	migration->pause_allowed_ms = pause_allowed_ms;
	migration->promise_settled = true;
	return true;
}

/* The mutex is held. */
static struct timeline *timeline_of(struct migration *migration)
{
	if (!migration->timeline)
		migration->timeline = xcalloc(1, sizeof(*migration->timeline));
	return migration->timeline;
}

void migration_note_sample(struct migration *migration, const struct move_sample *sample, const struct converge_settings *settings)
{
	LOCK_SCOPE(&migration->mutex);
	const struct timeline_point point = {
		.at_us = sample->at_us - migration->began_us,
		.remaining_bytes = sample->remaining_bytes,
		.rate_bytes_per_s = sample->rate_bytes_per_s,
		.dirty_bytes_per_s = sample->dirty_bytes_per_s,
		.wire_bytes = sample->wire_bytes ? sample->wire_bytes : sample->transferred_bytes,
		.pass = sample->pass,
		.throttle_percent = sample->throttle_percent,
		.limit_ms = settings->limit_ms,
	};
	timeline_add(timeline_of(migration), &point);
}

void migration_note_decision(struct migration *migration, const char *words)
{
	LOCK_SCOPE(&migration->mutex);
	timeline_say(timeline_of(migration), clock_monotonic_us() - migration->began_us, words);
}

void migration_note_prediction(struct migration *migration, const struct prediction *prediction, struct prediction *kept)
{
	LOCK_SCOPE(&migration->mutex);
	migration->predicted_total_us = predict_succeeds(prediction->verdict) ? prediction->total_us : -1;
	if (kept)
		*kept = *prediction;
}

json_t *migration_timeline_view(struct migration *migration)
{
	static const struct timeline nothing;
	LOCK_SCOPE(&migration->mutex);
	if (migration->timeline_kept)
		return NULL;
	return timeline_view(migration->timeline ? migration->timeline : &nothing);
}

void migration_forget_timeline(struct migration *migration)
{
	LOCK_SCOPE(&migration->mutex);
	migration->timeline_kept = true;
	if (migration->timeline)
		timeline_done(migration->timeline);
	free(take_ptr(migration->timeline));
}

bool migration_ended(struct migration *migration)
{
	LOCK_SCOPE(&migration->mutex);
	return migration_status_ended(migration->status);
}

bool migration_final(struct migration *migration)
{
	LOCK_SCOPE(&migration->mutex);
	return migration_status_ended(migration->status) && !migration->cleanup_pending;
}

bool migration_wait_change(struct migration *migration, uint64_t seen, int64_t deadline_us)
{
	LOCK_SCOPE(&migration->mutex);
	while (migration->change == seen && cond_wait_until(&migration->changed, &migration->mutex, deadline_us))
		;
	return migration->change != seen;
}
