/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The log: one line an event, key=value, to the journal's stream protocol or a terminal on standard error.
 * Where a line belongs to a migration or a VM, say so with log_context_set() at the top of the thread or request: the
 * keys are put on every line of that thread. Never log a secret. Library functions return errors; the top logs once.
 * Any thread.
 */
#ifndef FERRY_BASE_LOG_H
#define FERRY_BASE_LOG_H

#include "base/error.h"

enum log_level { LOG_LEVEL_ERROR = 3, LOG_LEVEL_WARNING = 4, LOG_LEVEL_INFO = 6, LOG_LEVEL_DEBUG = 7 };

void log_set_level(enum log_level level);
/* Keys for all further lines of this thread; NULL clears. Values are copied (cut at 63 bytes). */
void log_context_set(const char *migration, const char *vm);

void log_write(enum log_level level, const char *format, ...) __attribute__((format(printf, 2, 3)));
#define log_error(...) log_write(LOG_LEVEL_ERROR, __VA_ARGS__)
#define log_warning(...) log_write(LOG_LEVEL_WARNING, __VA_ARGS__)
#define log_info(...) log_write(LOG_LEVEL_INFO, __VA_ARGS__)
#define log_debug(...) log_write(LOG_LEVEL_DEBUG, __VA_ARGS__)
/* "what: message" with code=…; e may be NULL. */
void log_failure(enum log_level level, const char *what, const struct error *e);

#endif
