/* SPDX-License-Identifier: Apache-2.0 */
/* What a connection carries, by sending as fast as it takes for a moment to somebody who throws it away. Any thread; blocking. */
#ifndef FERRY_MIGRATION_LINK_PROBE_H
#define FERRY_MIGRATION_LINK_PROBE_H

#include <stdint.h>

#include "base/error.h"

/* Send for at most for_ms, and at most limit_bytes (0: no limit), then see what has been acknowledged; what goes out while TCP finds
 * its speed does not count. Plain TCP: encryption may carry less. Fails when too little went through to say anything. */
int link_probe(int fd, int64_t for_ms, uint64_t limit_bytes, uint64_t *ret_bytes_per_s, int64_t *ret_round_trip_us,
	       struct error **e) MUST_CHECK;

#endif
