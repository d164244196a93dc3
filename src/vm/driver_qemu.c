/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The QEMU driver: vm/driver.h on top of one QEMU process a machine, by QMP. This file has the table of its functions
 * and the daily verbs; the others are listed in vm/qemu_machine.h.
 */
#include "vm/qemu_machine.h"

#include "base/cleanup.h"
#include "base/log.h"

static int qemu_warm_up(const struct driver_host *host, struct error **e)
{
	const struct qemu_probe *probe;
	return qemu_machine_probe(host, &probe, e);
}

static int qemu_check_postcopy(const struct driver_host *host, struct error **e)
{
	const struct qemu_probe *probe;
	if (qemu_machine_probe(host, &probe, e) < 0)
		return -1;
	if (qemu_probe_postcopy(probe))
		return 0;
	return error_set(e, ERROR_DEST_POSTCOPY,
			 "QEMU %s cannot take a guest by post-copy as user %u: it may not use userfaultfd (allow it to open"
			 " /dev/userfaultfd, for QEMU 8 or later, or set vm.unprivileged_userfaultfd=1; then restart ferryd)",
			 qemu_probe_version(probe), (unsigned int)host->uid);
}

static int qemu_resume(struct machine *machine, struct error **e)
{
	/* RESUME, which QEMU says before it answers, brings the state up to date. */
	if (machine_never_ran(machine))
		return error_set(e, ERROR_VM_NOT_OWNER, "VM '%s' waits for a migration; it is not this host's to run",
				 machine->definition->name);
	return machine_command(machine, "cont", NULL, e);
}

static int qemu_pause(struct machine *machine, struct error **e)
{
	return machine_command(machine, "stop", NULL, e);
}

static int qemu_power_down(struct machine *machine, struct error **e)
{
	return machine_command(machine, "system_powerdown", NULL, e);
}

static int qemu_reset(struct machine *machine, struct error **e)
{
	return machine_command(machine, "system_reset", NULL, e);
}

static int qemu_start(const struct driver_host *host, const struct definition *definition, bool start_paused,
		      const struct machine_observer *observer, struct machine **ret, struct error **e)
{
	struct machine *machine;
	if (qemu_machine_start(host, definition, false, observer, &machine, e) < 0)
		return -1;
	if (!start_paused && qemu_resume(machine, e) < 0) {
		cleanup_error struct error *end_error = NULL;
		if (qemu_machine_end(machine, &end_error) < 0)
			log_failure(LOG_LEVEL_ERROR, "cannot end a QEMU whose guest did not run", end_error);
		machine_free(machine);
		return -1;
	}
	*ret = machine;
	return 0;
}

static const struct definition *qemu_definition(const struct machine *machine)
{
	return machine->definition;
}

const struct vm_driver vm_driver_qemu = {
	.name = "qemu",

	.warm_up = qemu_warm_up,

	.start = qemu_start,
	.attach = qemu_machine_attach,
	.resume = qemu_resume,
	.pause = qemu_pause,
	.power_down = qemu_power_down,
	.reset = qemu_reset,
	.end = qemu_machine_end,
	.detach = machine_free,

	.state = machine_state,
	.wait_change = machine_wait_change,
	.nudge = machine_nudge,
	.refresh = machine_refresh,
	.describe = qemu_describe,
	.last_words = machine_last_words,
	.definition = qemu_definition,

	.check_incoming = qemu_check_incoming,
	.check_postcopy = qemu_check_postcopy,
	.start_incoming = qemu_start_incoming,
	.wait_loaded = qemu_wait_loaded,
	.take_over = qemu_take_over,

	.memory_use = qemu_memory_use,
	.measure_dirty_rate = qemu_measure_dirty_rate,
	.dirty_rate = qemu_dirty_rate,

	.move_prepare = qemu_move_prepare,
	.move_start = qemu_move_start,
	.move_sample = qemu_move_sample,
	.move_set_limits = qemu_move_set_limits,
	.move_set_bandwidth = qemu_move_set_bandwidth,
	.move_continue = qemu_move_continue,
	.move_start_postcopy = qemu_move_start_postcopy,
	.move_listen_again = qemu_move_listen_again,
	.move_resume = qemu_move_resume,
	.move_cancel = qemu_move_cancel,
	.move_restore = qemu_move_restore,
	.ports_shut = qemu_ports_shut,
	.ports_open = qemu_ports_open,
};
