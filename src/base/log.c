/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The log; see log.h. A line is put together in one buffer and written with one write(2), so that lines of several
 * threads never mix. Under systemd (JOURNAL_STREAM set) lines carry the "<6>" level prefix that its journal understands;
 * elsewhere they start with the time of day.
 */
#include "base/log.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/xalloc.h"

static enum log_level log_level_limit = LOG_LEVEL_INFO;
static _Thread_local char log_migration[64];
static _Thread_local char log_vm[64];

void log_set_level(enum log_level level)
{
	log_level_limit = level;
}

void log_context_set(const char *migration, const char *vm)
{
	snprintf(log_migration, sizeof(log_migration), "%s", migration ? migration : "");
	snprintf(log_vm, sizeof(log_vm), "%s", vm ? vm : "");
}

static const char *log_level_name(enum log_level level)
{
	switch (level) {
	case LOG_LEVEL_ERROR:
		return "error";
	case LOG_LEVEL_WARNING:
		return "warning";
	case LOG_LEVEL_INFO:
		return "info";
	case LOG_LEVEL_DEBUG:
		return "debug";
	}
	return "?";
}

void log_write(enum log_level level, const char *format, ...)
{
	if (level > log_level_limit)
		return;
	va_list ap;
	va_start(ap, format);
	cleanup_free char *words = xvasprintf(format, ap);
	va_end(ap);
	for (char *c = words; *c; c++) /* one event is one line, whatever a peer or guest put into it */
		if (*c == '\n' || *c == '\r')
			*c = ' ';

	char stamp[48];
	if (getenv("JOURNAL_STREAM")) {
		snprintf(stamp, sizeof(stamp), "<%d>", (int)level);
	} else {
		struct timespec now;
		struct tm tm;
		clock_gettime(CLOCK_REALTIME, &now);
		gmtime_r(&now.tv_sec, &tm);
		size_t n = strftime(stamp, sizeof(stamp), "%Y-%m-%dT%H:%M:%S", &tm);
		snprintf(stamp + n, sizeof(stamp) - n, ".%03ldZ ", now.tv_nsec / 1000000);
	}
	cleanup_free char *line = xasprintf("%s%s%s%s%s%s %s\n", stamp, log_level_name(level),
					    log_migration[0] ? " migration=" : "", log_migration,
					    log_vm[0] ? " vm=" : "", log_vm, words);
	(void)!write(STDERR_FILENO, line, strlen(line));
}

void log_failure(enum log_level level, const char *what, const struct error *e)
{
	if (e)
		log_write(level, "%s: %s code=%s", what, e->message, error_code_name(e->code));
	else
		log_write(level, "%s", what);
}
