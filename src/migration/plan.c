/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Plans; see plan.h. While the guest's dirty rate is measured, as much as goes through is sent to the port that the destination has
 * reserved. What earlier moves have told is taken where it says less than the link: QEMU may not send as fast as the link carries.
 */
#include "migration/plan.h"

#include "base/cleanup.h"
#include "base/log.h"
#include "migration/link_probe.h"
#include "migration/source_steps.h"

#define PROBE_MS 1000
#define PROBE_BYTES_MAX (UINT64_C(3) << 30) /* less than what the other side throws away */
#define DIRTY_RATE_MS 1000
#define DIRTY_RATE_PATIENCE_US 7000000 /* beyond the probe of the link; as long as a quiet look at the guest takes */
#define DIRTY_RATE_LOOK_MS 20
/* What QEMU sends over one plain connection, where no move has shown it yet and the link carries more; measured on a small machine. */
#define QEMU_BYTES_PER_S UINT64_C(600000000)

/* What was found out, and how. */
struct plan {
	struct predict_guest guest;
	struct predict_link link;
	uint64_t touched_bytes, probed_bytes_per_s, dirty_bytes_per_s;
	int64_t round_trip_us;
	const char *link_from, *writes_from;
	bool encrypted;
	bool link_moved; /* earlier moves have told what the link carries */
	struct prediction prediction;
};

/* For a second at most, so that bytes are bytes a second; what the user wants to be used of the link is not exceeded. */
static void probe_link(struct source *s, struct plan *plan)
{
	cleanup_error struct error *e = NULL;
	cleanup_close int fd = -1;
	const uint64_t limit_bytes = migration_promise_rate(&s->migration->request.promise, PROBE_BYTES_MAX);
	if (source_connect_data_port(s, &fd, &e) < 0 ||
	    link_probe(fd, PROBE_MS, limit_bytes, &plan->probed_bytes_per_s, &plan->round_trip_us, &e) < 0)
		log_failure(LOG_LEVEL_WARNING, "the link cannot be probed", e);
}

static void settle_link(struct source *s, struct plan *plan)
{
	const uint64_t probed = plan->probed_bytes_per_s, moved = plan->link.rate_bytes_per_s;
	uint64_t rate = probed;
	plan->link_from = probed ? "probe" : "assumption";
	if (plan->link_moved && (!probed || moved < probed)) {
		rate = moved;
		plan->link_from = "earlier moves";
	} else if (!plan->link_moved && (!probed || probed > QEMU_BYTES_PER_S)) {
		rate = QEMU_BYTES_PER_S;
		plan->link_from = "assumption";
	}
	plan->link.rate_bytes_per_s = migration_promise_rate(&s->migration->request.promise, rate);
	plan->link.bandwidth_bytes_per_s = s->migration->request.promise.bandwidth_bytes_per_s;
}

static void take_dirty_rate(struct source *s, struct plan *plan)
{
	cleanup_error struct error *e = NULL;
	const int64_t until_us = clock_monotonic_us() + DIRTY_RATE_PATIENCE_US;
	int ready = 0;
	unsigned int for_ms = DIRTY_RATE_MS;
	plan->writes_from = plan->guest.writes_count ? "earlier looks" : "assumption";
	while (!plan->guest.stands && (ready = s->driver->dirty_rate(s->machine, &plan->dirty_bytes_per_s, &for_ms, &e)) == 0 &&
	       clock_monotonic_us() < until_us && !migration_host_wait_stopping(s->host, DIRTY_RATE_LOOK_MS))
		;
	if (ready <= 0 || for_ms == 0)
		return;
	plan->writes_from = "measured";
	forecast_take_writes(&plan->guest, (int64_t)for_ms * 1000, plan->dirty_bytes_per_s * for_ms / 1000);
}

static void measure(struct source *s, void *user)
{
	struct plan *plan = user;
	cleanup_error struct error *e = NULL;
	struct converge_options options;
	plan->encrypted = *s->tls_key_hex != '\0';
	forecast_know_guest(s->host, s->migration->vm_uuid, s->machine, true, &plan->guest, &plan->touched_bytes);
	plan->link_moved = forecast_know_link(s->host, s->migration->destination, &plan->link);
	/* Where it is being measured already, that will do. */
	if (!plan->guest.stands && s->driver->measure_dirty_rate(s->machine, DIRTY_RATE_MS, &e) < 0)
		log_failure(LOG_LEVEL_INFO, "the guest's dirty rate is not measured anew", e);
	probe_link(s, plan);
	settle_link(s, plan);
	take_dirty_rate(s, plan);
	forecast_options(s->host, &s->migration->request.promise, 0, &options);
	predict_move(&plan->guest, &plan->link, s->migration->request.policy, &options, &plan->prediction);
}

static json_t *number_or_null(uint64_t number)
{
	return number ? json_integer((json_int_t)number) : json_null();
}

static json_t *view_known(const struct plan *plan)
{
	struct simulated_guest guest;
	predict_fill_guest(&plan->guest, &guest);
	return json_pack("{s:I, s:s, s:o, s:o, s:b, s:I, s:I, s:I, s:I, s:s, s:o, s:I, s:I}", "link_bytes_per_s",
			 (json_int_t)plan->link.rate_bytes_per_s, "link_from", plan->link_from, "probed_bytes_per_s",
			 number_or_null(plan->probed_bytes_per_s), "round_trip_us", number_or_null((uint64_t)plan->round_trip_us),
			 "encrypted", plan->encrypted, "memory_bytes", (json_int_t)plan->guest.memory_bytes, "used_bytes",
			 (json_int_t)plan->guest.used_bytes, "writes_bytes_per_s", (json_int_t)guest.writes_bytes_per_s,
			 "working_set_bytes", (json_int_t)guest.working_set_bytes, "writes_from",
			 plan->guest.stands ? "paused" : plan->writes_from, "measured_bytes_per_s",
			 number_or_null(plan->dirty_bytes_per_s), "setup_ms", (json_int_t)(plan->link.before_us / 1000), "release_ms",
			 (json_int_t)(plan->link.after_us / 1000));
}

int plan_migration(struct migration_host *host, const char *vm_name, struct migration_request *request, json_t **ret_view,
		   struct error **e)
{
	json_t *failures = NULL;
	struct plan plan = {0};
	if (source_rehearse(host, vm_name, request, measure, &plan, &failures, e) < 0)
		return -1;
	const bool ok = json_array_size(failures) == 0;
	*ret_view = json_pack("{s:b, s:o, s:o, s:o}", "ok", ok, "failures", failures, "predicted",
			      ok ? predict_view(&plan.prediction) : json_null(), "known", ok ? view_known(&plan) : json_null());
	return 0;
}
