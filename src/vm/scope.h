/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A machine's process in a systemd scope of its own, ferry-vm-NAME.scope in machine.slice: a restart of ferryd's
 * service then does not take its guests with it, and `systemctl status` shows each. Any thread; blocks at most
 * timeout_ms.
 */
#ifndef FERRY_VM_SCOPE_H
#define FERRY_VM_SCOPE_H

#include <stdint.h>
#include <sys/types.h>

#include "base/error.h"

/* Move the process into a new scope. 0 also where systemd does not run: there a session of its own is all it needs. */
int scope_register(const char *vm_name, pid_t pid, int64_t timeout_ms, struct error **e) MUST_CHECK;

#endif
