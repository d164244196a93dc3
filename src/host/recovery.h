/* SPDX-License-Identifier: Apache-2.0 */
/* What ferryd does with what an earlier ferryd (or an earlier boot) left behind. */
#ifndef FERRY_HOST_RECOVERY_H
#define FERRY_HOST_RECOVERY_H

#include "migration/host.h"

/* Read the journal, find the machines again, take up unsettled migrations, then start what is marked autostart. Called once,
 * before the API answers. */
int recovery_run(struct migration_host *host, struct error **e) MUST_CHECK;

#endif
