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
/* All about one migration, for `migration show`. */
void report_show(const struct cli *cli, const json_t *migration);
/* "for host-b to say whether it has taken the VM, for 3 m 20 s (asked 41 times; last: connection refused)"; NULL where
 * nothing is awaited. The caller frees it. */
char *report_waiting(const json_t *migration);

#endif
