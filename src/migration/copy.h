/* SPDX-License-Identifier: Apache-2.0 */
/* The copy: from QEMU's first byte to its word that the other side has everything, with the decision when to switch. */
#ifndef FERRY_MIGRATION_COPY_H
#define FERRY_MIGRATION_COPY_H

#include "migration/host.h"

struct copy_result {
	bool begun;	   /* the machine has been told to migrate: the way back must cancel that */
	bool was_running;  /* the guest ran when the copy began */
	bool ports_shut;
	int64_t stopped_us; /* when the guest stopped, on our monotonic clock; 0: it was paused all along */
};

/* Run the copy until QEMU has completed it. On failure (or cancellation) the machine is left as it is; *ret says what the
 * way back has to undo. Blocking; from the migration's worker. */
int copy_run(struct migration_host *host, struct migration *migration, struct machine *machine, const struct move_options *move,
	     struct copy_result *ret, struct error **e) MUST_CHECK;
/* Put QEMU's last figures into the record. */
void copy_keep_final_figures(const struct vm_driver *driver, struct machine *machine, struct migration *migration);

#endif
