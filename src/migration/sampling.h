/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Quiet looks at running guests: how much memory each has touched and how fast it writes, so that a move of it can be predicted
 * before it begins (rates.h). One at a time, each not more often than the configuration says, none while a migration of this
 * host goes on. A worker of the host (host.h); it ends when the workers are told to.
 */
#ifndef FERRY_MIGRATION_SAMPLING_H
#define FERRY_MIGRATION_SAMPLING_H

#include "migration/host.h"

/* Nothing happens where the host's sampling_ms is 0. */
void sampling_start(struct migration_host *host);

#endif
