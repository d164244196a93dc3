/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How far a migration is, on stderr: one line that renews itself on a terminal; elsewhere one line a phase; nothing with
 * --output json unless stderr is a terminal.
 */
#ifndef FERRY_CLI_PROGRESS_H
#define FERRY_CLI_PROGRESS_H

#include <jansson.h>
#include <stdbool.h>

struct progress;
struct progress *progress_new(bool json);
void progress_free(struct progress *progress);
bool progress_is_live(const struct progress *progress);
/* Show a migration object of the API. */
void progress_show(struct progress *progress, const json_t *migration);
/* A line of its own, which stays. */
void progress_note(struct progress *progress, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* Take the live line away. */
void progress_end(struct progress *progress);

#endif
