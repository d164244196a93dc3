/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Quiet looks at running guests; see sampling.h. Each is measured over a short time, which says how fast it writes, and over a
 * longer one, which says how much of that goes to the same pages again; if all of that was written within the short time already,
 * over a still shorter one. The VM's job is held only while its hypervisor is asked something, never while it measures.
 */
#include "migration/sampling.h"

#include <string.h>

#include "base/cleanup.h"
#include "base/log.h"

#define SHORT_MS 200
#define SHORT_WHOLE_MS 1000 /* where the hypervisor counts in seconds */
#define BRIEF_MS 50 /* where all that the guest writes to is written within SHORT_MS already */
#define LONG_MS 6000
/* Between two looks at the list of VMs: a part of the interval, within bounds. */
#define ROUND_PART 20
#define ROUND_MIN_MS 1000
#define ROUND_MAX_MS 30000
/* After the time that was asked for, until the figure is there. */
#define FIGURE_LOOK_MS 200
#define FIGURE_LOOKS_MAX 25

static void look_for_active(void *user, struct migration *migration)
{
	*(bool *)user |= !migration_ended(migration);
}

static bool host_migrates(struct migration_host *host)
{
	bool active = false;
	migration_list_each(host->migrations, look_for_active, &active);
	return active;
}

/* Begin to measure a VM; false when it is busy, gone, or cannot be measured. */
static bool begin_measure(struct migration_host *host, const char *uuid, unsigned int for_ms)
{
	cleanup_error struct error *e = NULL;
	struct vm *vm;
	if (!inventory_lock_to_glance(host->inventory, uuid, &vm))
		return false;
	const int r = inventory_driver(host->inventory)->measure_dirty_rate(vm->machine, for_ms, &e);
	inventory_unlock(host->inventory, vm);
	if (r < 0)
		log_failure(LOG_LEVEL_DEBUG, "how fast a guest writes cannot be measured", e);
	return r == 0;
}

static bool measure(struct migration_host *host, const char *uuid, unsigned int for_ms, struct predict_writes *ret)
{
	uint64_t bytes_per_s = 0;
	unsigned int measured_ms = 0;
	if (!begin_measure(host, uuid, for_ms) || migration_host_wait_stopping(host, for_ms))
		return false;
	for (int look = 0; look < FIGURE_LOOKS_MAX; look++) {
		cleanup_error struct error *e = NULL;
		struct vm *vm;
		if (migration_host_wait_stopping(host, FIGURE_LOOK_MS) || !inventory_lock_to_glance(host->inventory, uuid, &vm))
			return false;
		const int ready = inventory_driver(host->inventory)->dirty_rate(vm->machine, &bytes_per_s, &measured_ms, &e);
		inventory_unlock(host->inventory, vm);
		/* It may have taken longer on a busy host; or somebody else has measured meanwhile. */
		if (ready < 0 || (ready > 0 && (measured_ms < for_ms || measured_ms >= 2 * for_ms)))
			return false;
		if (ready > 0) {
			*ret = (struct predict_writes){(int64_t)measured_ms * 1000, bytes_per_s * measured_ms / 1000};
			return true;
		}
	}
	return false;
}

/* How fast it writes, and how much in the long run. False when nothing came of it. */
static bool measure_writes(struct migration_host *host, const char *uuid, struct predict_writes ret[2])
{
	struct predict_writes brief;
	if ((!measure(host, uuid, SHORT_MS, &ret[0]) && !measure(host, uuid, SHORT_WHOLE_MS, &ret[0])) || host_migrates(host) ||
	    !measure(host, uuid, LONG_MS, &ret[1]))
		return false;
	if (ret[0].bytes > 0 && ret[0].for_us < SHORT_WHOLE_MS * 1000 && predict_writes_alike(&ret[0], &ret[1]) && !host_migrates(host) &&
	    measure(host, uuid, BRIEF_MS, &brief) && brief.bytes > 0)
		ret[0] = brief;
	return !host_migrates(host); /* then it may have been throttled, or be another machine */
}

static void sample(struct migration_host *host, const char *uuid)
{
	const struct vm_driver *driver = inventory_driver(host->inventory);
	cleanup_error struct error *e = NULL;
	uint64_t total_bytes = 0, touched_bytes = 0;
	struct predict_writes writes[2];
	struct vm *vm;
	if (!inventory_lock_to_glance(host->inventory, uuid, &vm))
		return;
	if (driver->memory_use(vm->machine, true, &total_bytes, &touched_bytes, &e) < 0)
		log_failure(LOG_LEVEL_DEBUG, "how much memory a guest uses cannot be measured", e);
	inventory_unlock(host->inventory, vm);
	rates_note_touched(host->rates, uuid, touched_bytes); /* whatever comes: its turn is over */
	if (!measure_writes(host, uuid, writes))
		return;
	rates_note_writes(host->rates, uuid, writes);
	log_debug("sampled vm_uuid=%s touched_bytes=%llu written_bytes=%llu for_ms=%lld written_bytes=%llu for_ms=%lld", uuid,
		  (unsigned long long)touched_bytes, (unsigned long long)writes[0].bytes, (long long)writes[0].for_us / 1000,
		  (unsigned long long)writes[1].bytes, (long long)writes[1].for_us / 1000);
}

static bool is_due(struct migration_host *host, const json_t *view)
{
	struct rates_vm known = {0};
	const char *uuid = json_string_value(json_object_get(view, "uuid")), *state = json_string_value(json_object_get(view, "state"));
	if (!state || strcmp(state, machine_run_name(MACHINE_RUNNING)) != 0 || json_object_get(view, "job"))
		return false;
	const int64_t now_ms = clock_wall_ms();
	/* A clock that was set back must not end it for good. */
	return !rates_vm(host->rates, uuid, &known) || known.touched_wall_ms > now_ms ||
	       known.touched_wall_ms + host->sampling_ms <= now_ms;
}

static void *sampling_main(void *user)
{
	struct migration_host *host = user;
	int64_t round_ms = host->sampling_ms / ROUND_PART;
	round_ms = round_ms < ROUND_MIN_MS ? ROUND_MIN_MS : round_ms > ROUND_MAX_MS ? ROUND_MAX_MS : round_ms;
	while (!migration_host_wait_stopping(host, round_ms)) {
		cleanup_json json_t *list = inventory_list(host->inventory);
		size_t i;
		const json_t *view;
		json_array_foreach (list, i, view) {
			if (migration_host_stopping(host) || host_migrates(host))
				break;
			if (is_due(host, view))
				sample(host, json_string_value(json_object_get(view, "uuid")));
		}
	}
	migration_host_worker_done(host);
	return NULL;
}

void sampling_start(struct migration_host *host)
{
	if (host->sampling_ms > 0 && host->rates)
		migration_host_start_worker(host, sampling_main, host, NULL);
}
