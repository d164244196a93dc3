/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Start-up recovery; see recovery.h. The order matters: machines first, because what becomes of a migration depends on what
 * QEMU says; migrations before anything may be started, because they hold the jobs of VMs whose owner is not settled.
 */
#include "host/recovery.h"

#include "base/cleanup.h"
#include "base/log.h"
#include "migration/checks.h"
#include "migration/destination.h"
#include "migration/resolve.h"
#include "migration/source.h"

static void recover_one(void *user, struct migration *migration)
{
	struct migration_host *host = user;
	cleanup_error struct error *e = NULL;
	if (migration_ended(migration)) {
		if (migration->role == MIGRATION_SOURCE && !migration_final(migration))
			source_recover_ended(host, migration);
		return;
	}
	int r = migration->role == MIGRATION_SOURCE ? source_recover(host, migration, &e) : destination_recover(host, migration, &e);
	if (r < 0)
		log_failure(LOG_LEVEL_ERROR, "a migration cannot be taken up again", e);
}

int recovery_run(struct migration_host *host, struct error **e)
{
	inventory_attach_machines(host->inventory);
	if (journal_load(host->journal, host->migrations, e) < 0)
		return error_wrap(e, "reading the journal");
	checks_remove_old_probes(host);
	migration_list_each(host->migrations, recover_one, host);
	inventory_tidy_up(host->inventory);
	resolve_ask_at_start(host); /* then what is marked autostart is started */
	return 0;
}
