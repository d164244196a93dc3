/* SPDX-License-Identifier: Apache-2.0 */
/* The copy: from QEMU's first byte to its word that the other side has everything, with the decision when to switch. */
#ifndef FERRY_MIGRATION_COPY_H
#define FERRY_MIGRATION_COPY_H

#include "migration/forecast.h"

struct copy_result {
	bool begun;	   /* the machine has been told to migrate: the way back must cancel that */
	bool was_running;  /* the guest ran when the copy began */
	bool ports_shut;
	bool postcopy;	   /* QEMU has been told to go over to post-copy */
	int64_t begun_us;   /* on our monotonic clock, as the next; 0: by an earlier ferryd */
	int64_t stopped_us; /* when the guest stopped; 0: it was paused all along */
};

/* Run the copy until QEMU has completed it. On failure (or cancellation) the machine is left as it is; *ret says what the
 * way back has to undo. Blocking; from the migration's worker. */
int copy_run(struct migration_host *host, struct migration *migration, struct machine *machine, const struct move_options *move,
	     struct forecast *forecast, struct copy_result *ret, struct error **e) MUST_CHECK;
/*
 * In post-copy: wait until finish is due. QEMU calls itself post-copy before it has sent the devices' state; if the stream errs in
 * between it fails, and lets the guest run on here, although that state may have arrived. Once it serves pages that is over:
 * from then on it lets nothing run here by itself. Fails when it never comes to that, or when ferryd is stopping.
 */
int copy_await_serving(struct migration_host *host, struct machine *machine, struct error **e) MUST_CHECK;
/* Put QEMU's figures of now into the record; `on_the_way`: into the timeline too, as there will be others. */
void copy_keep_figures(const struct vm_driver *driver, struct machine *machine, struct migration *migration, bool on_the_way);

#endif
