/* SPDX-License-Identifier: Apache-2.0 */
/* How far a migration is, on stderr; see progress.h. */
#include "cli/progress.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/xalloc.h"
#include "cli/output.h"
#include "cli/report.h"
#include "cli/units.h"

/* People read no more than this many renewals a second, and a slow terminal should not get more. */
#define PROGRESS_INTERVAL_US 100000

struct progress {
	enum { PROGRESS_QUIET, PROGRESS_PLAIN, PROGRESS_LIVE } mode;
	bool line_shown;
	int64_t shown_us;
	char status[32];
	size_t phases_told;
	bool predictions_told[2]; /* at the start, and after the first pass */
};

struct progress *progress_new(bool json)
{
	struct progress *progress = xcalloc(1, sizeof(*progress));
	const char *terminal = getenv("TERM");
	bool live = isatty(STDERR_FILENO) && terminal && *terminal && strcmp(terminal, "dumb") != 0;
	progress->mode = live ? PROGRESS_LIVE : json ? PROGRESS_QUIET : PROGRESS_PLAIN;
	return progress;
}

void progress_free(struct progress *progress)
{
	free(progress);
}

bool progress_is_live(const struct progress *progress)
{
	return progress->mode == PROGRESS_LIVE;
}

void progress_end(struct progress *progress)
{
	if (progress->line_shown)
		fputs("\r\033[K", stderr);
	progress->line_shown = false;
}

void progress_note(struct progress *progress, const char *format, ...)
{
	if (progress->mode == PROGRESS_QUIET)
		return;
	progress_end(progress);
	va_list ap;
	va_start(ap, format);
	cleanup_free char *words = xvasprintf(format, ap);
	va_end(ap);
	cleanup_free char *safe = output_safe(words);
	fprintf(stderr, "%s\n", safe);
}

/* "web1: copying 38 %  4.1 s, about 1.2 s left  614 MiB sent, 112 MiB/s  guest writes 20 MiB/s, throttled 85 %  iteration 2" */
static char *progress_line(const json_t *migration)
{
	const json_t *state = json_object_get(migration, "progress");
	double total = output_number(state, "ram_total_bytes"), remaining = output_number(state, "ram_remaining_bytes");
	char elapsed[UNITS_SIZE], sent[UNITS_SIZE], rate[UNITS_SIZE], dirty[UNITS_SIZE], left[UNITS_SIZE];
	units_format_ms(elapsed, output_number(state, "elapsed_ms"));
	const char *status = output_string(migration, "status");
	cleanup_free char *vm = output_safe(output_string(migration, "vm"));
	/* Nothing moves then; what is awaited is the news. */
	cleanup_free char *awaited = report_waiting(migration);
	if (awaited)
		return xasprintf("%s: %s  waiting %s", vm, status, awaited);
	const json_t *reason = json_object_get(migration, "reason");
	if (strcmp(status, "in-doubt") == 0 || strcmp(status, "recovering") == 0) {
		cleanup_free char *message = output_safe(output_string(reason, "message"));
		return xasprintf("%s: %s  %s  %s", vm, status, message, elapsed);
	}
	if (total <= 0)
		return xasprintf("%s: %s  %s", vm, status, elapsed);
	int percent = (int)(100 * (total - remaining) / total);
	const json_t *predicted = json_object_get(state, "predicted_ms");
	cleanup_free char *end = json_is_number(predicted)
					 ? xasprintf(", about %s left", units_format_ms(left, json_number_value(predicted)))
					 : xstrdup("");
	const long long throttle = output_integer(state, "throttle_percent");
	cleanup_free char *throttled = throttle > 0 ? xasprintf(", throttled %lld %%", throttle) : xstrdup("");
	/* What matters most comes first: a narrow terminal cuts the end. */
	return xasprintf("%s: %s %d %%  %s%s  %s sent, %s/s  guest writes %s/s%s  iteration %lld", vm, status,
			 percent < 0 ? 0 : percent, elapsed, end, units_format_bytes(sent, output_number(migration, "wire_bytes")),
			 units_format_bytes(rate, output_number(state, "rate_bytes_per_s")),
			 units_format_bytes(dirty, output_number(state, "dirty_bytes_per_s")), throttled,
			 (long long)output_integer(state, "iteration"));
}

/* What was expected by then, each once; after the first pass only if it is something else. */
static void progress_predictions(struct progress *progress, const json_t *migration, double until_ms)
{
	static const char *const keys[] = {"predicted", "predicted_first_pass"};
	const char *verdict = output_string(json_object_get(migration, keys[0]), "verdict");
	for (size_t i = 0; i < 2; i++) {
		const json_t *predicted = json_object_get(migration, keys[i]);
		const double at_ms = output_number(predicted, "at_ms");
		if (!json_is_object(predicted) || progress->predictions_told[i] || at_ms > until_ms)
			continue;
		progress->predictions_told[i] = true;
		if (i == 1 && strcmp(output_string(predicted, "verdict"), verdict) == 0)
			continue;
		cleanup_free char *words = report_prediction(predicted);
		if (progress->mode == PROGRESS_LIVE)
			progress_note(progress, "predicted  %s", words);
		else
			fprintf(stderr, "%8.3f s  predicted  %s\n", at_ms / 1000, words);
	}
}

static void progress_live(struct progress *progress, const json_t *migration, bool news)
{
	int64_t now_us = clock_monotonic_us();
	progress_predictions(progress, migration, INFINITY);
	if (!news && now_us - progress->shown_us < PROGRESS_INTERVAL_US)
		return;
	progress->shown_us = now_us;
	progress->line_shown = true;
	struct winsize size = {0};
	int columns = ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 1 ? size.ws_col - 1 : 79;
	cleanup_free char *line = progress_line(migration);
	/* Longer than the terminal is wide, it would leave its upper part behind at every renewal. */
	fprintf(stderr, "\r%.*s\033[K", columns, line);
}

static void progress_plain(struct progress *progress, const json_t *migration)
{
	/* From the list of phases, since a short one may have passed between two looks. */
	const json_t *phases = json_object_get(migration, "phases");
	for (; progress->phases_told < json_array_size(phases); progress->phases_told++) {
		const json_t *phase = json_array_get(phases, progress->phases_told);
		progress_predictions(progress, migration, output_number(phase, "start_ms"));
		cleanup_free char *awaited =
			strcmp(output_string(phase, "name"), "in-doubt") == 0 ? report_waiting(migration) : NULL;
		fprintf(stderr, "%8.3f s  %s%s%s\n", output_number(phase, "start_ms") / 1000, output_string(phase, "name"),
			awaited ? ": waiting " : "", awaited ? awaited : "");
	}
	progress_predictions(progress, migration, INFINITY);
}

void progress_show(struct progress *progress, const json_t *migration)
{
	const char *status = output_string(migration, "status");
	bool news = strcmp(status, progress->status) != 0;
	snprintf(progress->status, sizeof(progress->status), "%s", status);
	if (progress->mode == PROGRESS_LIVE && !json_is_true(json_object_get(migration, "ended")))
		progress_live(progress, migration, news);
	else if (progress->mode == PROGRESS_PLAIN)
		progress_plain(progress, migration);
}
