/* SPDX-License-Identifier: Apache-2.0 */
/* What a migration would be, without one: the checks of both sides, then a prediction from what can be measured in a second. */
#ifndef FERRY_MIGRATION_PLAN_H
#define FERRY_MIGRATION_PLAN_H

#include "migration/host.h"

/* *ret_view is {ok, failures: [{code, side, message}], predicted, known}, the caller's; the last two (docs/openapi.yaml) are null
 * where a check fails. The VM's job is held for two seconds or so. `request` is stolen. Any thread. */
int plan_migration(struct migration_host *host, const char *vm_name, struct migration_request *request, json_t **ret_view,
		   struct error **e) MUST_CHECK;

#endif
