/* SPDX-License-Identifier: Apache-2.0 */
/* How this host's migrations have gone, as a summary of their records. A pure function; any thread. */
#ifndef FERRY_MIGRATION_STATS_H
#define FERRY_MIGRATION_STATS_H

#include <jansson.h>

/* Of the views of migrations (migration_view()): those count that have ended and began here, as only the source measures.
 * {count, by_status: {STATUS: count}, total_ms, downtime_ms, wire_bytes, promise: {count, kept, kept_percent},
 *  prediction: {start, first_pass: {total_percent, downtime_ms, wire_percent, verdicts, verdicts_right, verdicts_right_percent}},
 *  by_destination: [{destination, count, by_status, total_ms, downtime_ms, wire_bytes}]}
 * Every figure is {count, median, p90}; of migrations that completed, and of predictions how far they were off, whichever way.
 * Where nothing is known it is null. The caller owns it. */
json_t *stats_of_migrations(const json_t *views);

#endif
