/* SPDX-License-Identifier: Apache-2.0 */
/* What is said of a migration when it has ended, or when we stop following it; as text or as JSON. */
#ifndef FERRY_CLI_REPORT_H
#define FERRY_CLI_REPORT_H

#include "cli/cli.h"

/* The exit status for a migration object as it stands. */
int report_status(const json_t *migration);
/* The final report: total, pause, bytes, iterations, transport, owner; the reason on stderr where it failed. */
int report_end(const struct cli *cli, const json_t *migration);
/* A signal made us leave; the migration goes on. migration may be NULL (then id is said). */
int report_left(const struct cli *cli, const json_t *migration, const char *id, bool abort_asked);
/* ferryd did not answer any more. */
int report_lost(const struct cli *cli, const json_t *migration, const char *id, const struct error *e);
/* The failed checks of a dry run or of a refused migration, on stderr. */
void report_failures(const json_t *failures, const char *vm, const char *to);
/* All about one migration, for `migration show`; timeline may be NULL. */
void report_show(const struct cli *cli, const json_t *migration, const json_t *timeline);
/* "a pause of 300 ms at most, within 2 m 00 s; may throttle; kept", or why it was not; NULL where nothing was promised. The
 * caller frees it. */
char *report_promise(const json_t *migration);
/* Whether a prediction is that it will not get there. */
bool report_expects_failure(const json_t *predicted);
/* "14.0 s, a pause of 45.0 ms, 780 MiB to send", with the verdict's words where it is no plain success; only these where none is
 * expected, and NULL where nothing is. The caller frees it. */
char *report_prediction(const json_t *predicted);
/* "for host-b to say whether it has taken the VM, for 3 m 20 s (asked 41 times; last: connection refused)"; NULL where
 * nothing is awaited. The caller frees it. */
char *report_waiting(const json_t *migration);

#endif
