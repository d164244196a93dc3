/* SPDX-License-Identifier: Apache-2.0 */
/* A systemd scope for a machine's process, by StartTransientUnit on the system bus; see scope.h. */
#include "vm/scope.h"

#include <errno.h>
#include <systemd/sd-bus.h>
#include <systemd/sd-daemon.h>

#include "base/cleanup.h"
#include "base/xalloc.h"

static int scope_call(sd_bus *bus, const char *unit, const char *vm_name, pid_t pid, int64_t timeout_ms,
		      sd_bus_error *bus_error)
{
	__attribute__((cleanup(sd_bus_message_unrefp))) sd_bus_message *message = NULL;
	cleanup_free char *description = xasprintf("Ferry VM %s", vm_name);
	int r = sd_bus_message_new_method_call(bus, &message, "org.freedesktop.systemd1", "/org/freedesktop/systemd1",
					       "org.freedesktop.systemd1.Manager", "StartTransientUnit");
	if (r < 0)
		return r;
	/* CollectMode: without it a scope whose QEMU was killed stays as "failed", and the name would be taken. */
	r = sd_bus_message_append(message, "ssa(sv)a(sa(sv))", unit, "replace", 4, "Description", "s", description,
				  "Slice", "s", "machine.slice", "CollectMode", "s", "inactive-or-failed", "PIDs", "au",
				  1, (uint32_t)pid, 0);
	if (r < 0)
		return r;
	return sd_bus_call(bus, message, (uint64_t)timeout_ms * 1000, bus_error, NULL);
}

int scope_register(const char *vm_name, pid_t pid, int64_t timeout_ms, struct error **e)
{
	if (sd_booted() <= 0)
		return 0;

	__attribute__((cleanup(sd_bus_flush_close_unrefp))) sd_bus *bus = NULL;
	__attribute__((cleanup(sd_bus_error_free))) sd_bus_error bus_error = SD_BUS_ERROR_NULL;
	cleanup_free char *unit = xasprintf("ferry-vm-%s.scope", vm_name);
	int r = sd_bus_open_system(&bus);
	if (r >= 0)
		r = scope_call(bus, unit, vm_name, pid, timeout_ms, &bus_error);
	if (r < 0)
		return error_set_errno(e, ERROR_SYSTEM, -r, "cannot make %s%s%s", unit, bus_error.message ? ": " : "",
				       bus_error.message ? bus_error.message : "");
	return 0;
}
