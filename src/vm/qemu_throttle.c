/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How much a guest is slowed down for its move. Its writing is limited where QEMU can do that; else its processors are held back
 * from outside (vm/throttle.h); else QEMU throttles by itself, by its parameters, which also carry the pause at which it may
 * switch.
 */
#include "vm/qemu_machine.h"

#include <string.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/xalloc.h"
#include "vm/throttle.h"

#define THROTTLE_MAX_PERCENT 99
#define QEMU_SLICE_MS 10 /* CPU_THROTTLE_TIMESLICE_NS */
#define THROTTLE_LADDER_THRESHOLD 50 /* QEMU's default: it has written half of what was sent */

/*
 * QEMU throttles by itself, at every second synchronisation at which the guest had written more than a part of what was sent:
 * first to cpu-throttle-initial, then by cpu-throttle-increment more, never beyond max-cpu-throttle. With the same initial and
 * maximum, and a part of a hundredth, that is exactly so much, soon. It cannot be told to wait, but a hundredth at most, if
 * the guest writes more than is sent, is next to nothing.
 */
void qemu_throttle_add_limits(json_t *parameters, const struct move_limits *limits, bool may_throttle)
{
	const unsigned int percent = limits->throttle_percent ? limits->throttle_percent : 1;
	json_object_set_new(parameters, "downtime-limit", json_integer(limits->downtime_ms));
	if (!may_throttle)
		return;
	json_object_set_new(parameters, "cpu-throttle-initial", json_integer(percent));
	json_object_set_new(parameters, "cpu-throttle-increment",
			    json_integer(limits->throttle_increment ? limits->throttle_increment : THROTTLE_MAX_PERCENT));
	json_object_set_new(parameters, "max-cpu-throttle",
			    json_integer(limits->throttle_increment ? THROTTLE_MAX_PERCENT : percent));
	json_object_set_new(parameters, "throttle-trigger-threshold",
			    json_integer(limits->throttle_increment  ? THROTTLE_LADDER_THRESHOLD
					 : limits->throttle_percent ? 1
								    : 100));
}

/* The threads that the guest's processors run in; they stay the same as long as the machine lives. */
static int find_processors(struct machine *machine, struct error **e)
{
	cleanup_json json_t *list = NULL;
	if (machine->processors)
		return 0;
	if (qmp_execute(machine->qmp, "query-cpus-fast", NULL, &list, QMP_TIMEOUT_MS, e) < 0)
		return -1;
	size_t i;
	const json_t *processor;
	machine->processors = xcalloc(json_array_size(list) + 1, sizeof(*machine->processors));
	machine->watches = xcalloc(json_array_size(list) + 1, sizeof(*machine->watches));
	json_array_foreach (list, i, processor) {
		const json_int_t thread = json_integer_value(json_object_get(processor, "thread-id"));
		if (thread > 0 && thread <= INT32_MAX)
			machine->processors[machine->processor_count++] = (pid_t)thread;
	}
	return 0;
}

static bool is_kvm(const struct machine *machine)
{
	const char *accelerator = json_string_value(json_object_get(machine->record, "accelerator"));
	return accelerator && strcmp(accelerator, "kvm") == 0;
}

/*
 * With KVM's dirty ring QEMU can hold a processor back each time that it has filled its ring with pages it has written: who only
 * reads is not slowed down. In force at once, and for each processor alone, so each gets its part. QEMU itself says whether it can:
 * "dirty page limit feature requires KVM with accelerator property 'dirty-ring-size' set".
 */
static bool limit_writing(struct machine *machine, const struct move_limits *limits)
{
	cleanup_error struct error *e = NULL;
	if (machine->no_dirty_limit || limits->dirty_bytes_per_s == 0 || !is_kvm(machine))
		return false;
	const uint64_t each = limits->dirty_bytes_per_s / (machine->processor_count ? machine->processor_count : 1);
	const json_int_t each_mib = each >> 20 > 0 ? (json_int_t)(each >> 20) : 1; /* 0 is no limit */
	if (machine_command(machine, "set-vcpu-dirty-limit", json_pack("{s:I}", "dirty-rate", each_mib), &e) == 0)
		return machine->dirty_limited = true;
	log_failure(LOG_LEVEL_INFO, "QEMU cannot limit the guest's writing", e);
	machine->no_dirty_limit = true;
	return false;
}

static void let_write(struct machine *machine, bool surely_limited)
{
	cleanup_error struct error *e = NULL;
	if (machine_command(machine, "cancel-vcpu-dirty-limit", NULL, &e) < 0 && surely_limited)
		log_failure(LOG_LEVEL_WARNING, "the guest's writing may still be limited", e);
	machine->dirty_limited = false;
}

static void release_processors(struct machine *machine)
{
	const int64_t settled_us = throttle_release(machine->processors, machine->processor_count);
	if (settled_us > machine->throttle_settled_us)
		machine->throttle_settled_us = settled_us;
}

static int hold_processors_back(struct machine *machine, unsigned int percent, struct error **e)
{
	const int64_t wait_us = machine->throttle_settled_us - clock_monotonic_us();
	if (wait_us > 0) /* for one that was called off a moment ago; a second at most */
		usleep((useconds_t)wait_us);
	memset(machine->watches, 0, machine->processor_count * sizeof(*machine->watches));
	return throttle_set(machine->processors, machine->processor_count, percent, e);
}

/* By what slows the guest down least: its writing, its processors from outside, or by QEMU itself. */
static int throttle_processors(struct machine *machine, const struct move_limits *limits, struct error **e)
{
	const bool ours = machine->may_throttle && !limits->throttle_increment && !machine->qemu_throttles;
	const unsigned int percent = ours ? limits->throttle_percent : 0;
	cleanup_error struct error *problem = NULL;
	if (percent == machine->throttle_percent)
		return 0;
	if (find_processors(machine, e) < 0)
		return -1;
	if (percent == 0) {
		release_processors(machine);
		if (machine->dirty_limited)
			let_write(machine, true);
	} else if (!limit_writing(machine, limits) && hold_processors_back(machine, percent, &problem) < 0) {
		log_failure(LOG_LEVEL_INFO, "QEMU throttles by itself", problem);
		machine->qemu_throttles = true;
		machine->throttle_percent = 0;
		return 0;
	}
	machine->throttle_percent = percent;
	return 0;
}

/* Without a word to QEMU, which may hang, if it was us who throttled them from outside; else an earlier ferryd may have. */
void qemu_throttle_release(struct machine *machine)
{
	cleanup_error struct error *e = NULL;
	const bool ours = machine->may_throttle, limited = machine->dirty_limited;
	if (ours && !machine->throttle_percent)
		return;
	machine->throttle_percent = 0;
	if (limited || (!ours && is_kvm(machine)))
		let_write(machine, limited);
	if (find_processors(machine, &e) < 0)
		log_failure(LOG_LEVEL_WARNING, "the guest may still be throttled", e);
	else
		release_processors(machine);
}

void qemu_throttle_watch(struct machine *machine)
{
	if (machine->may_throttle && !machine->throttle_percent && !machine->qemu_throttles && find_processors(machine, NULL) == 0) {
		const unsigned int percent = throttle_busy_percent(machine->processors, machine->processor_count, machine->watches);
		machine->busy_percent = percent ? percent : machine->busy_percent;
	}
	if (!machine->throttle_percent || machine->dirty_limited ||
	    !throttle_is_stuck(machine->processors, machine->processor_count, machine->throttle_percent, machine->watches))
		return;
	log_error("the kernel lets a processor of the guest not run at all; QEMU throttles by itself");
	release_processors(machine);
	machine->qemu_throttles = true;
	machine->throttle_percent = 0;
}

unsigned int qemu_throttle_slice_ms(const struct machine *machine)
{
	return machine->qemu_throttles ? QEMU_SLICE_MS : throttle_slice_ms();
}

int qemu_move_set_limits(struct machine *machine, const struct move_limits *limits, struct error **e)
{
	json_t *parameters = json_object();
	struct move_limits told = *limits;
	if (throttle_processors(machine, limits, e) < 0) {
		json_decref(parameters);
		return -1;
	}
	if (machine->throttle_percent)
		told.throttle_percent = 0;
	qemu_throttle_add_limits(parameters, &told, machine->may_throttle);
	return machine_command(machine, "migrate-set-parameters", parameters, e);
}
