/* SPDX-License-Identifier: Apache-2.0 */
/* The source's side of a migration: from the request to the VM released. docs/migration.md tells the whole story. */
#ifndef FERRY_MIGRATION_SOURCE_H
#define FERRY_MIGRATION_SOURCE_H

#include "migration/host.h"

/* Accept a migration of a VM of this host: takes its job, makes the record, starts the worker. *ret has a reference of the
 * caller. `request` is stolen, also on failure. */
int source_begin(struct migration_host *host, const char *vm_name, struct migration_request *request, struct migration **ret,
		 struct error **e) MUST_CHECK;
/* Run the checks of both sides and start nothing; *ret_failures is [{code, side, message}], the caller's. `request` is stolen. */
int source_dry_run(struct migration_host *host, const char *vm_name, struct migration_request *request, json_t **ret_failures,
		   struct error **e) MUST_CHECK;
/* Ask for a rollback. ERROR_MIGRATION_TOO_LATE once the destination has been asked to take over. */
int source_abort(struct migration_host *host, struct migration *migration, struct error **e) MUST_CHECK;
/* Change what is promised while it is copied: keys as in the request (migration_promise_parse()); what is not named stays.
 * ERROR_MIGRATION_ENDED, ERROR_MIGRATION_TOO_LATE, or what is wrong with it. Any thread. */
int source_set(struct migration_host *host, struct migration *migration, const json_t *changes, struct error **e) MUST_CHECK;
/* Switch as soon as QEMU can, whatever the pause. The same errors. Any thread. */
int source_complete(struct migration_host *host, struct migration *migration, struct error **e) MUST_CHECK;
/* Try at once to mend a post-copy that is recovering, which is tried by itself all the time, at growing distances.
 * ERROR_MIGRATION_NOT_RECOVERING. Any thread. */
int source_mend_now(struct migration_host *host, struct migration *migration, struct error **e) MUST_CHECK;
/* Go on with a migration that an earlier ferryd left unsettled; the VM's machine (if any) is attached, its job taken here. */
int source_recover(struct migration_host *host, struct migration *migration, struct error **e) MUST_CHECK;
/* Go on telling the destination of one that has ended, which an earlier ferryd could not. */
void source_recover_ended(struct migration_host *host, struct migration *migration);

#endif
