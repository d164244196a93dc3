/* SPDX-License-Identifier: Apache-2.0 */
/*
 * When nobody is left who could tell who has the VM, a person settles it: says which host owns it, and states that the
 * other one is fenced, that is, runs no copy and can reach neither the disks nor the network until it has heard of this.
 *
 * The host that is given the VM takes it at a higher epoch than was ever offered, so that what the fenced one still
 * believes is void; it owes the other one that news until it answers (cleanup_pending), also across restarts. The fenced
 * one, when it comes back, asks before it starts anything.
 */
#ifndef FERRY_MIGRATION_RESOLVE_H
#define FERRY_MIGRATION_RESOLVE_H

#include "migration/host.h"

/* Settle a migration that waits in doubt on this host; `owner` and `fenced` are its two hosts. At the source the migration's
 * worker does the rest, at the destination it is done when this returns. ERROR_INVALID_ARGUMENT,
 * ERROR_MIGRATION_NOT_FENCED, ERROR_MIGRATION_NOT_IN_DOUBT, ERROR_MIGRATION_ENDED; ERROR_VM_NOT_OWNER when a third host says that
 * the VM has moved on to it (all that are known here are asked, for 20 s at most). Any thread. */
int resolve_migration(struct migration_host *host, struct migration *migration, const char *owner, const char *fenced,
		      struct error **e) MUST_CHECK;

/* After a restart, of one that has not ended, with its VM's job held: what a person settled before is in the VM's row, whose
 * epoch is beyond what was offered. */
void resolve_recall(struct migration *migration);

/* At a source that holds the VM, whose destination answers that it runs there: a person has given it the VM. The guest is
 * paused here (it should not have run) and the VM is the destination's. Takes the VM's job unless the migration has it. */
int resolve_yield(struct migration_host *host, struct migration *migration, struct error **e) MUST_CHECK;

/* At ferryd's start: VMs that came here by a migration, are ours and do not run may have been given to another host while
 * this one was away. Takes their jobs at once, then asks, in a thread of its own, the host that each came from; then what is
 * marked autostart is started. Nothing waits for hosts that do not answer longer than a few seconds. */
void resolve_ask_at_start(struct migration_host *host);

#endif
