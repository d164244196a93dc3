/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The policies of other systems, each reduced to what it tells QEMU and when: the pause limit, the throttle, the end. They
 * are here to be measured beside Ferry's, by name (`ferry migrate --policy`), on the same QEMU, guest and link. What each
 * one does is taken from its sources and design papers: libvirt 9's defaults, Proxmox VE's qemu-server 9.2, the migration
 * policies of oVirt 4.5 as VDSM carries them out, KubeVirt's stall detector (its design proposal 248). Their own polling
 * intervals are kept, since they are part of what makes them slow.
 */
#include "migration/converge_peers.h"

#include <stdio.h>

#define QEMU_DOWNTIME_MS 300
#define QEMU_THROTTLE_INITIAL 20
#define QEMU_THROTTLE_INCREMENT 10

static void set_limit(struct converge *converge, unsigned int limit_ms, struct converge_decision *decision)
{
	if (converge->settings.limit_ms == limit_ms)
		return;
	converge->settings.limit_ms = limit_ms;
	decision->changed = true;
	snprintf(decision->words, sizeof(decision->words), "policy %s: the memory part of the pause may be %u ms now",
		 converge->policy->name, limit_ms);
}

static void give_up(const struct converge *converge, struct converge_decision *decision, const char *why)
{
	decision->action = CONVERGE_GIVE_UP;
	decision->reason = CONVERGE_REASON_NOT_CONVERGING;
	decision->changed = true;
	snprintf(decision->words, sizeof(decision->words), "policy %s: %s", converge->policy->name, why);
}

/* Whether the system would look now. */
static bool polls(struct converge *converge, const struct converge_sample *sample, int64_t every_us)
{
	if (converge->peer.began_us == 0)
		converge->peer.began_us = converge->peer.polled_us = sample->at_us;
	if (sample->at_us - converge->peer.polled_us < every_us)
		return false;
	converge->peer.polled_us = sample->at_us;
	return true;
}

/* ---- libvirt's defaults: QEMU decides ---- */

static void qemu_init(struct converge *converge)
{
	converge->settings.limit_ms = QEMU_DOWNTIME_MS;
}

static void auto_converge_init(struct converge *converge)
{
	converge->settings = (struct converge_settings){QEMU_DOWNTIME_MS, QEMU_THROTTLE_INITIAL, QEMU_THROTTLE_INCREMENT};
}

/* The pause that is asked for, as a person would set it once, and never look again. */
static void fixed_init(struct converge *converge)
{
	const int64_t limit_ms = converge->options.max_downtime_ms;
	converge->settings.limit_ms = limit_ms < 1 ? 1 : (unsigned int)limit_ms;
}

static void fixed_throttle_init(struct converge *converge)
{
	fixed_init(converge);
	converge->settings.throttle_percent = QEMU_THROTTLE_INITIAL;
	converge->settings.throttle_increment = QEMU_THROTTLE_INCREMENT;
}

static void qemu_decide(struct converge *converge, const struct converge_sample *sample, struct converge_decision *decision)
{
	(void)converge;
	(void)sample;
	(void)decision;
}

/* ---- Proxmox VE: double the pause whenever it has not helped six times; without bound ---- */

#define PROXMOX_DOWNTIME_MS 100
#define PROXMOX_DOWNTIME_MAX_MS 2000000
#define PROXMOX_POLL_US 1000000
#define PROXMOX_SETBACKS 5

static void proxmox_init(struct converge *converge)
{
	converge->settings = (struct converge_settings){PROXMOX_DOWNTIME_MS, QEMU_THROTTLE_INITIAL, QEMU_THROTTLE_INCREMENT};
}

static void proxmox_decide(struct converge *converge, const struct converge_sample *sample, struct converge_decision *decision)
{
	if (!polls(converge, sample, PROXMOX_POLL_US))
		return;
	if (converge->peer.last_remaining_bytes && sample->remaining_bytes > converge->peer.last_remaining_bytes)
		converge->peer.count++;
	converge->peer.last_remaining_bytes = sample->remaining_bytes;
	if (converge->peer.count <= PROXMOX_SETBACKS)
		return;
	converge->peer.count = 0;
	unsigned int doubled_ms = converge->settings.limit_ms * 2;
	set_limit(converge, doubled_ms > PROXMOX_DOWNTIME_MAX_MS ? PROXMOX_DOWNTIME_MAX_MS : doubled_ms, decision);
}

/* ---- oVirt: a ladder of pauses by iteration, one rung a look, a look every ten seconds ---- */

#define OVIRT_POLL_US 10000000

struct ovirt_rung {
	unsigned int after_passes;
	unsigned int limit_ms; /* 0: give it up */
};

static void ovirt_init(struct converge *converge)
{
	converge->settings = (struct converge_settings){100, QEMU_THROTTLE_INITIAL, QEMU_THROTTLE_INCREMENT};
}

static void ovirt_climb(struct converge *converge, const struct converge_sample *sample, const struct ovirt_rung *rungs,
			size_t count, struct converge_decision *decision)
{
	if (!polls(converge, sample, OVIRT_POLL_US) || converge->peer.step >= count)
		return;
	const struct ovirt_rung *rung = &rungs[converge->peer.step];
	/* The last ones come with the next new pass. */
	if (sample->pass <= rung->after_passes || sample->pass == converge->peer.count)
		return;
	converge->peer.count = sample->pass;
	converge->peer.step++;
	if (rung->limit_ms)
		set_limit(converge, rung->limit_ms, decision);
	else
		give_up(converge, decision, "the last step has not helped");
}

static void ovirt_decide(struct converge *converge, const struct converge_sample *sample, struct converge_decision *decision)
{
	static const struct ovirt_rung rungs[] = {{1, 150}, {2, 200}, {3, 300}, {4, 400}, {6, 500}, {6, 0}};
	ovirt_climb(converge, sample, rungs, sizeof(rungs) / sizeof(rungs[0]), decision);
}

static void ovirt_suspend_decide(struct converge *converge, const struct converge_sample *sample, struct converge_decision *decision)
{
	static const struct ovirt_rung rungs[] = {{1, 150}, {2, 200}, {3, 300}, {4, 400}, {6, 500}, {6, 5000}, {6, 0}};
	ovirt_climb(converge, sample, rungs, sizeof(rungs) / sizeof(rungs[0]), decision);
}

/* ---- KubeVirt: a stall is a window without progress; then switch at a local minimum, or give up ---- */

#define KUBEVIRT_DOWNTIME_MS 300
#define KUBEVIRT_DOWNTIME_MAX_MS 900
#define KUBEVIRT_POSSIBLE_FACTOR 1.5
#define KUBEVIRT_WINDOW_US 40000000
#define KUBEVIRT_SWITCH_US 60000000
#define KUBEVIRT_MARGIN 0.04
#define KUBEVIRT_RATE_WEIGHT 0.4
#define KUBEVIRT_POLL_US 400000
#define KUBEVIRT_S_PER_GIB 150.0
#define KUBEVIRT_TIMEOUT_FACTOR 2.0

static void kubevirt_init(struct converge *converge)
{
	converge->settings.limit_ms = KUBEVIRT_DOWNTIME_MS;
	converge->peer.patience_us = KUBEVIRT_WINDOW_US;
	converge->peer.lowest_bytes = converge->peer.best_remaining_bytes = UINT64_MAX;
}

/* The lowest of the passes that are older than the window; UINT64_MAX: there are none. */
static uint64_t kubevirt_lowest_before(struct converge *converge, const struct converge_sample *sample)
{
	while (converge->peer.low_count > 0 && converge->peer.lows[0].at_us < sample->at_us - KUBEVIRT_WINDOW_US) {
		if (converge->peer.lows[0].remaining_bytes < converge->peer.lowest_bytes)
			converge->peer.lowest_bytes = converge->peer.lows[0].remaining_bytes;
		converge->peer.low_count--;
		for (size_t i = 0; i < converge->peer.low_count; i++)
			converge->peer.lows[i] = converge->peer.lows[i + 1];
	}
	return converge->peer.lowest_bytes;
}

static void kubevirt_remember(struct converge *converge, const struct converge_sample *sample)
{
	struct converge_low *last = converge->peer.low_count ? &converge->peer.lows[converge->peer.low_count - 1] : NULL;
	if (last && (sample->remaining_bytes >= last->remaining_bytes || converge->peer.low_count == CONVERGE_LOWS_MAX))
		return;
	converge->peer.lows[converge->peer.low_count++] = (struct converge_low){sample->at_us, sample->remaining_bytes};
}

/* It stands still: wait for the lowest point to come again, with less and less patience. */
static void kubevirt_stalled(struct converge *converge, const struct converge_sample *sample, struct converge_decision *decision)
{
	const bool first = converge->peer.since_us == 0;
	if (first)
		converge->peer.since_us = sample->at_us;
	if (sample->remaining_bytes < converge->peer.best_remaining_bytes)
		converge->peer.best_remaining_bytes = sample->remaining_bytes;
	if (first)
		return; /* two looks at least */
	if (sample->at_us - converge->peer.since_us > converge->peer.patience_us) {
		converge->peer.best_remaining_bytes = sample->remaining_bytes;
		converge->peer.since_us = sample->at_us;
		converge->peer.patience_us /= 2;
	}
	if ((double)sample->remaining_bytes > (double)converge->peer.best_remaining_bytes * (1 + KUBEVIRT_MARGIN))
		return;
	const double implied_ms = (double)sample->remaining_bytes * 1e3 / (converge->peer.rate_bytes_per_s + 1);
	const double budget_ms = (double)sample->total_bytes / 1073741824.0 * KUBEVIRT_S_PER_GIB * KUBEVIRT_TIMEOUT_FACTOR * 1e3;
	if (implied_ms > budget_ms - (double)(sample->at_us - converge->peer.began_us) / 1e3)
		return;
	if (implied_ms > KUBEVIRT_DOWNTIME_MAX_MS * KUBEVIRT_POSSIBLE_FACTOR) {
		give_up(converge, decision, "at its lowest point it needs a longer pause than is allowed");
		return;
	}
	converge->peer.switching = true;
	converge->peer.since_us = sample->at_us;
	set_limit(converge, KUBEVIRT_DOWNTIME_MAX_MS, decision);
}

static void kubevirt_decide(struct converge *converge, const struct converge_sample *sample, struct converge_decision *decision)
{
	if (polls(converge, sample, KUBEVIRT_POLL_US))
		converge->peer.rate_bytes_per_s =
			converge->peer.rate_bytes_per_s > 0
				? KUBEVIRT_RATE_WEIGHT * (double)sample->rate_bytes_per_s + (1 - KUBEVIRT_RATE_WEIGHT) * converge->peer.rate_bytes_per_s
				: (double)sample->rate_bytes_per_s;
	const double limit_us = (double)sample->total_bytes / 1073741824.0 * KUBEVIRT_S_PER_GIB * 1e6;
	const int64_t elapsed_us = sample->at_us - converge->peer.began_us;
	if (converge->peer.switching) {
		if (sample->at_us - converge->peer.since_us > KUBEVIRT_SWITCH_US)
			give_up(converge, decision, "it has not switched in time");
		return;
	}
	if (sample->total_bytes && (double)elapsed_us >= limit_us) {
		give_up(converge, decision, "the time for its memory has passed");
		return;
	}
	if (!sample->pass_began || sample->pass < 2)
		return;
	const uint64_t lowest = kubevirt_lowest_before(converge, sample);
	if (lowest != UINT64_MAX && (double)sample->remaining_bytes >= (double)lowest * (1 - KUBEVIRT_MARGIN))
		kubevirt_stalled(converge, sample, decision);
	else
		converge->peer.since_us = 0;
	kubevirt_remember(converge, sample);
}

/* ---- the table ---- */

const struct converge_policy converge_policy_qemu = {
	.name = "qemu", .summary = "a pause of 300 ms and nothing else, as virsh does", .init = qemu_init, .decide = qemu_decide};
const struct converge_policy converge_policy_auto_converge = {
	.name = "auto-converge",
	.summary = "the same with QEMU's own throttling, from 20 % in steps of 10",
	.init = auto_converge_init,
	.decide = qemu_decide};
const struct converge_policy converge_policy_fixed = {
	.name = "fixed", .summary = "the pause that is asked for as QEMU's limit, and nothing else", .init = fixed_init, .decide = qemu_decide};
const struct converge_policy converge_policy_fixed_throttle = {
	.name = "fixed-throttle",
	.summary = "the same with QEMU's own throttling",
	.init = fixed_throttle_init,
	.decide = qemu_decide};
const struct converge_policy converge_policy_proxmox = {
	.name = "proxmox",
	.summary = "a pause of 100 ms, doubled after every six setbacks, without bound; QEMU's throttling",
	.init = proxmox_init,
	.decide = proxmox_decide};
const struct converge_policy converge_policy_ovirt = {
	.name = "ovirt",
	.summary = "a ladder of pauses up to 500 ms, a step each ten seconds, then the end; QEMU's throttling",
	.init = ovirt_init,
	.decide = ovirt_decide};
const struct converge_policy converge_policy_ovirt_suspend = {
	.name = "ovirt-suspend",
	.summary = "the same, with a last step of 5 s",
	.init = ovirt_init,
	.decide = ovirt_suspend_decide};
const struct converge_policy converge_policy_kubevirt = {
	.name = "kubevirt",
	.summary = "a pause of 300 ms; after 40 s without progress one of 900 ms at a local minimum, or the end",
	.init = kubevirt_init,
	.decide = kubevirt_decide};
