/* SPDX-License-Identifier: Apache-2.0 */
/* Records of migrations, and the list of them; see migration.h. */
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

static const struct {
	const char *name;
	bool ended;
} status_table[] = {
#define MIGRATION_STATUS(symbol, name, ended, meaning) [symbol] = {name, ended},
#include "migration/status.tbl"
#undef MIGRATION_STATUS
};

static const char *const handover_names[] = {
#define HANDOVER_STATE(symbol, name, side, may_run) [symbol] = name,
#include "migration/handover.tbl"
#undef HANDOVER_STATE
};

static const struct {
	enum handover_state from, to;
} handover_steps[] = {
#define HANDOVER_STEP(from, to, when) {from, to},
#include "migration/handover.tbl"
#undef HANDOVER_STEP
};

const char *migration_status_name(enum migration_status status)
{
	return status_table[status].name;
}

bool migration_status_ended(enum migration_status status)
{
	return status_table[status].ended;
}

enum migration_status migration_status_from_name(const char *name)
{
	enum migration_status status = 0;
	while (status < MIGRATION_STATUS_COUNT && strcmp(status_table[status].name, name) != 0)
		status++;
	return status;
}

const char *handover_state_name(enum handover_state state)
{
	return handover_names[state];
}

enum handover_state handover_state_from_name(const char *name)
{
	enum handover_state state = 0;
	while (state < HANDOVER_STATE_COUNT && strcmp(handover_names[state], name) != 0)
		state++;
	return state;
}

bool handover_step_allowed(enum handover_state from, enum handover_state to)
{
	for (size_t i = 0; i < sizeof(handover_steps) / sizeof(handover_steps[0]); i++)
		if (handover_steps[i].from == from && handover_steps[i].to == to)
			return true;
	return false;
}

/* ---- requests ---- */

#define MIGRATION_MAPS_MAX 64
#define MIGRATION_MAP_BYTES_MAX 8256 /* "disk:", two of the longest paths */
/* Beyond these the sums of a promise would not fit into 64 bits; as in the units of `ferry`. */
#define MIGRATION_BANDWIDTH_MAX INT64_C(10000000000000) /* 80 Tbit/s */
#define MIGRATION_DEADLINE_MS_MAX INT64_C(3600000000)	/* 1000 hours */

int migration_request_parse(const json_t *json, struct migration_request *ret, struct error **e)
{
	static const char *const keys[] = {"to", "dry_run", "paused", "keep_source_definition", "transport", "channels",
					   "bandwidth_bytes_per_s", "max_downtime_ms", "deadline_ms", "maps", NULL};
	const char *to = NULL, *transport = "auto";
	int64_t channels = 1, bandwidth = 0, max_downtime_ms = 300, deadline_ms = 0;
	json_t *maps = NULL;
	struct migration_request request = {0};
	if (json_check_keys(json, keys, e) < 0 || json_get_string(json, "to", &to, e) < 0 ||
	    json_get_bool_opt(json, "dry_run", &request.dry_run, e) < 0 ||
	    json_get_bool_opt(json, "paused", &request.paused, e) < 0 ||
	    json_get_bool_opt(json, "keep_source_definition", &request.keep_source_definition, e) < 0 ||
	    json_get_string_opt(json, "transport", &transport, e) < 0 ||
	    json_get_integer_opt(json, "channels", 1, 64, &channels, e) < 0 ||
	    json_get_integer_opt(json, "bandwidth_bytes_per_s", 0, MIGRATION_BANDWIDTH_MAX, &bandwidth, e) < 0 ||
	    json_get_integer_opt(json, "max_downtime_ms", 1, 2000000, &max_downtime_ms, e) < 0 ||
	    json_get_integer_opt(json, "deadline_ms", 0, MIGRATION_DEADLINE_MS_MAX, &deadline_ms, e) < 0 ||
	    json_get_array_opt(json, "maps", &maps, e) < 0)
		return -1;
	if (strcmp(transport, "auto") != 0 && strcmp(transport, "native") != 0)
		return error_set(e, ERROR_INVALID_ARGUMENT, "transport '%s' is not one of auto, native", transport);
	size_t i;
	const json_t *map;
	if (json_array_size(maps) > MIGRATION_MAPS_MAX)
		return error_set(e, ERROR_TOO_LARGE, "more than %d maps", MIGRATION_MAPS_MAX);
	json_array_foreach (maps, i, map)
		if (!json_is_string(map) || json_string_length(map) > MIGRATION_MAP_BYTES_MAX)
			return error_set(e, ERROR_INVALID_ARGUMENT, "maps[%zu] must be a string such as bridge:br0=br1, of %d bytes at most",
					 i, MIGRATION_MAP_BYTES_MAX);
	if (!definition_name_valid(to))
		return error_set(e, ERROR_INVALID_ARGUMENT, "key 'to' is not a host name: letters, digits, '-', '_' and '.', at most %d",
				 DEFINITION_NAME_MAX);
	request.to = xstrdup(to);
	request.transport = xstrdup(transport);
	request.channels = (unsigned int)channels;
	request.bandwidth_bytes_per_s = (uint64_t)bandwidth;
	request.max_downtime_ms = max_downtime_ms;
	request.deadline_ms = deadline_ms;
	request.maps = xcalloc(json_array_size(maps) + 1, sizeof(*request.maps));
	json_array_foreach (maps, i, map)
		request.maps[request.map_count++] = xstrdup(json_string_value(map));
	*ret = request;
	return 0;
}

void migration_request_done(struct migration_request *request)
{
	for (size_t i = 0; i < request->map_count; i++)
		free(request->maps[i]);
	free(request->maps);
	free(request->to);
	free(request->transport);
	*request = (struct migration_request){0};
}

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

/* ---- what readers see ---- */

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
		json_t *one = json_pack("{ss}", "name", migration_status_name(phase->status));
		json_object_set_new(one, "start_ms", view_ms(phase->start_us));
		json_object_set_new(one, "end_ms", phase->end_us ? view_ms(phase->end_us) : json_null());
		json_array_append_new(phases, one);
	}
	return phases;
}

static json_t *view_progress(const struct migration *migration)
{
	const struct move_sample *sample = &migration->progress;
	json_t *progress = json_pack("{sI sI sI sI si sI}", "ram_total_bytes", (json_int_t)sample->total_bytes,
				     "ram_remaining_bytes", (json_int_t)sample->remaining_bytes, "rate_bytes_per_s",
				     (json_int_t)sample->rate_bytes_per_s, "dirty_bytes_per_s",
				     (json_int_t)sample->dirty_bytes_per_s, "iteration", (int)sample->pass, "elapsed_ms",
				     (json_int_t)((clock_monotonic_us() - migration->began_us) / 1000));
	/* What is left at the present rate, as far as the guest's own writing leaves anything of it. */
	if (sample->rate_bytes_per_s > sample->dirty_bytes_per_s)
		json_object_set_new(progress, "predicted_ms",
				    json_integer((json_int_t)(sample->remaining_bytes * 1000 /
							      (sample->rate_bytes_per_s - sample->dirty_bytes_per_s))));
	else
		json_object_set_new(progress, "predicted_ms", json_null());
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

static json_t *view_resolution(const struct migration_resolution *resolution)
{
	if (!resolution->owner)
		return json_null();
	return json_pack("{ss ss sI sI}", "owner", resolution->owner, "fenced", resolution->fenced, "epoch",
			 (json_int_t)resolution->epoch, "at_ms", (json_int_t)resolution->at_wall_ms);
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
		(json_int_t)migration->epoch, "transport", "native", "encrypted", (int)migration->encrypted, "started_at_ms",
		(json_int_t)migration->began_wall_ms, "ended", (int)ended, "wire_bytes", (json_int_t)migration->wire_bytes,
		"ram_bytes", (json_int_t)migration->ram_bytes, "iterations", (int)migration->iterations, "setup_ms",
		(json_int_t)migration->setup_ms, "cleanup_pending", (int)migration->cleanup_pending);
	json_object_set_new(view, "total_ms",
			    view_ms(ended ? migration->total_us : clock_monotonic_us() - migration->began_us));
	json_object_set_new(view, "downtime_ms", view_ms(migration->downtime_us));
	json_object_set_new(view, "qemu_total_ms", json_integer(migration->qemu_total_ms));
	json_object_set_new(view, "handover", json_string(handover_state_name(migration->handover)));
	json_object_set_new(view, "reason",
			    migration->reason_code == ERROR_CODE_COUNT
				    ? json_null()
				    : json_pack("{ss ss}", "code", error_code_name(migration->reason_code), "message",
						migration->reason_message));
	json_object_set_new(view, "waiting", view_wait(&migration->wait));
	json_object_set_new(view, "resolved", view_resolution(&migration->resolution));
	json_object_set_new(view, "refused", json_boolean(migration->status == MIGRATION_FAILED && migration->failures));
	if (migration->failures)
		json_object_set(view, "failures", migration->failures);
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

void migration_set_reason(struct migration *migration, enum error_code code, const char *message)
{
	migration_lock(migration);
	set_reason(migration, code, message);
	migration_unlock_changed(migration);
}

/* ---- doubt, and what a person says to it ---- */

void migration_set_in_doubt(struct migration *migration, const char *host, const char *what, const struct error *last)
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
	set_reason(migration, ERROR_MIGRATION_IN_DOUBT, words);
	const bool new_doubt = migration->status != MIGRATION_IN_DOUBT;
	if (new_doubt)
		set_status(migration, MIGRATION_IN_DOUBT);
	migration_unlock_changed(migration);
	if (new_doubt)
		log_status(MIGRATION_IN_DOUBT);
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
	if (migration->reason_code == ERROR_MIGRATION_IN_DOUBT)
		migration->reason_code = ERROR_CODE_COUNT;
	migration_unlock_changed(migration);
}

void migration_set_resolution(struct migration *migration, const char *owner, const char *fenced, uint64_t epoch, int64_t at_wall_ms)
{
	migration_lock(migration);
	struct migration_resolution *resolution = &migration->resolution;
	free(resolution->owner);
	free(resolution->fenced);
	*resolution = (struct migration_resolution){
		.owner = xstrdup(owner), .fenced = xstrdup(fenced), .at_wall_ms = at_wall_ms, .epoch = epoch};
	archive_set(migration, "resolved", view_resolution(resolution));
	migration_unlock_changed(migration);
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

bool migration_abort_requested(struct migration *migration)
{
	LOCK_SCOPE(&migration->mutex);
	return migration->abort_requested;
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
