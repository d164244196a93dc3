/* SPDX-License-Identifier: Apache-2.0 */
/* What is said of a migration when it has ended; see report.h. */
#include "cli/report.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/xalloc.h"
#include "cli/interrupt.h"
#include "cli/output.h"
#include "cli/units.h"

static bool report_is(const json_t *migration, const char *status)
{
	return strcmp(output_string(migration, "status"), status) == 0;
}

static bool report_true(const json_t *migration, const char *key)
{
	return json_is_true(json_object_get(migration, key));
}

/* Whose record it is. */
static bool report_is_destination(const json_t *migration)
{
	return strcmp(output_string(migration, "role"), "destination") == 0;
}

/* What a person has settled leaves something to be done: the guest is paused, say. */
static bool report_reason_is_resolution(const json_t *migration)
{
	return strcmp(output_string(json_object_get(migration, "reason"), "code"), error_code_name(ERROR_MIGRATION_RESOLVED)) == 0;
}

/* It went over in post-copy, and a QEMU ended before all of its memory had. */
static bool report_is_lost(const json_t *migration)
{
	return report_is(migration, "completed") &&
	       strcmp(output_string(json_object_get(migration, "reason"), "code"), error_code_name(ERROR_QEMU_GONE)) == 0;
}

int report_status(const json_t *migration)
{
	if (report_is(migration, "completed"))
		return report_is_lost(migration) ? EXIT_FAILED : EXIT_COMPLETED;
	if (report_is(migration, "cancelled"))
		return EXIT_CANCELLED;
	if (report_is(migration, "in-doubt") || report_is(migration, "recovering"))
		return EXIT_IN_DOUBT;
	if (report_is(migration, "failed")) {
		if (report_true(migration, "refused"))
			return EXIT_REFUSED;
		return cli_migration_refusal(
			error_code_from_name(output_string(json_object_get(migration, "reason"), "code")));
	}
	return EXIT_FAILED;
}

void report_failures(const json_t *failures, const char *vm, const char *to)
{
	size_t count = json_array_size(failures);
	fprintf(stderr, "ferry: %s cannot move to %s: %zu check%s failed\n", vm, to, count, count == 1 ? "" : "s");
	for (size_t i = 0; i < count; i++) {
		const json_t *failure = json_array_get(failures, i);
		const char *code = output_string(failure, "code");
		cleanup_free char *message = output_safe(output_message(failure, "message"));
		fprintf(stderr, "  %s: %s (%s)\n", output_string(failure, "side"), message, code);
		enum error_code known = error_code_from_name(code);
		if (known != ERROR_CODE_COUNT)
			fprintf(stderr, "    %s\n", error_code_meaning(known));
	}
}

/* ---- waiting for another host ---- */

char *report_waiting(const json_t *migration)
{
	const json_t *waiting = json_object_get(migration, "waiting");
	if (!json_is_object(waiting) || report_true(migration, "ended"))
		return NULL;
	char length[UNITS_SIZE];
	long long asked = output_integer(waiting, "asked");
	cleanup_free char *count = asked == 0	? xstrdup("not asked yet")
				   : asked == 1 ? xstrdup("asked once")
						: xasprintf("asked %lld times", asked);
	const json_t *last = json_object_get(waiting, "last");
	cleanup_free char *words = xasprintf("for %s to say %s, for %s (%s%s%s)", output_string(waiting, "for"),
					     output_string(waiting, "what"),
					     units_format_ms(length, output_number(waiting, "for_ms")), count,
					     json_is_object(last) ? "; last: " : "",
					     json_is_object(last) ? output_message(last, "message") : "");
	return output_safe(words);
}

/* What a person can do about it: each line begins with `indent`. */
static void report_remedy(const struct cli *cli, const json_t *migration, FILE *to, const char *indent)
{
	cleanup_free char *awaited = output_safe(output_string(json_object_get(migration, "waiting"), "for"));
	const char *source = output_string(migration, "source"), *destination = output_string(migration, "destination");
	const char *owner = strcmp(awaited, source) == 0 ? destination : source;
	fprintf(to,
		"%sNothing needs to be done: %s is asked again by itself, and its answer settles it. Only if it will never give one\n"
		"%s(it is gone for good, or has lost its journal), and once it is fenced (`ferry migration resolve --help`):\n"
		"%s  ferry %s%s%smigration resolve %s --owner %s --fenced %s\n",
		indent, awaited, indent, indent, cli->host ? "-H " : "", cli->host ? cli->host : "", cli->host ? " " : "",
		output_string(migration, "id"), owner, awaited);
}

static bool report_waits(const json_t *migration)
{
	return json_is_object(json_object_get(migration, "waiting")) && report_status(migration) == EXIT_IN_DOUBT;
}

/* ---- what is expected ---- */

bool report_expects_failure(const json_t *predicted)
{
	return strcmp(output_string(predicted, "verdict"), "will-not-converge") == 0;
}

char *report_prediction(const json_t *predicted)
{
	char total[UNITS_SIZE], pause[UNITS_SIZE], sent[UNITS_SIZE];
	if (!json_is_object(predicted))
		return NULL;
	const char *words = output_message(predicted, "words");
	if (report_expects_failure(predicted))
		return output_safe(words);
	const double pause_ms = output_number(predicted, "downtime_ms");
	const bool plain = strcmp(words, "converges") == 0;
	cleanup_free char *all = xasprintf("%s, %s%s, %s to send%s%s", units_format_ms(total, output_number(predicted, "total_ms")),
					   pause_ms > 0 ? "a pause of " : "no pause",
					   pause_ms > 0 ? units_format_ms(pause, pause_ms) : "",
					   units_format_bytes(sent, output_number(predicted, "wire_bytes")), plain ? "" : "; it ",
					   plain ? "" : words);
	return output_safe(all);
}

/* At the start, and after the first pass; the first that is there comes after `name`. */
static void report_predictions(const json_t *migration, const char *name)
{
	cleanup_free char *start = report_prediction(json_object_get(migration, "predicted"));
	cleanup_free char *first_pass = report_prediction(json_object_get(migration, "predicted_first_pass"));
	if (start)
		printf("%s%s\n", name, start);
	if (first_pass)
		printf("%safter the first pass: %s\n", start ? "             " : name, first_pass);
}

/* ---- the end ---- */

/* Why it did not move, on stderr. */
static void report_reason(const json_t *migration)
{
	const char *vm = output_string(migration, "vm");
	const json_t *failures = json_object_get(migration, "failures");
	if (json_array_size(failures) > 0) {
		report_failures(failures, vm, output_string(migration, "destination"));
		return;
	}
	const json_t *reason = json_object_get(migration, "reason");
	const char *code = output_string(reason, "code");
	cleanup_free char *awaited = report_waits(migration) ? report_waiting(migration) : NULL;
	cleanup_free char *message = awaited ? xasprintf("waiting %s", awaited)
					     : output_safe(json_is_object(reason) ? output_message(reason, "message")
										  : "no reason is known");
	bool resolved = report_reason_is_resolution(migration);
	const char *what = resolved				       ? "was settled by a person"
			   : report_is(migration, "cancelled")	       ? "was cancelled"
			   : report_status(migration) == EXIT_IN_DOUBT ? "is not settled"
								       : "did not succeed";
	fprintf(stderr, "ferry: the move of %s to %s %s: %s (%s)\n", vm, output_string(migration, "destination"), what, message,
		code);
	enum error_code known = error_code_from_name(code);
	if (known != ERROR_CODE_COUNT && !resolved && known != ERROR_CANCELLED && known != ERROR_INVALID_ARGUMENT &&
	    known != ERROR_SYSTEM)
		fprintf(stderr, "  %s\n", error_code_meaning(known));
}

/* A ferryd that was started in the middle of the switch cannot tell. */
static bool report_pause_unknown(const json_t *migration)
{
	return json_is_null(json_object_get(migration, "downtime_ms"));
}

/* "total 5.7 s, of it 7.9 ms paused" and so on. */
static void report_figures(const json_t *migration)
{
	char total[UNITS_SIZE], pause[UNITS_SIZE], sent[UNITS_SIZE];
	long long iterations = output_integer(migration, "iterations");
	double pause_ms = output_number(migration, "downtime_ms");
	/* Only the source measures. */
	bool stopped = report_is_destination(migration);
	const json_t *phases = json_object_get(migration, "phases");
	for (size_t i = 0; i < json_array_size(phases); i++)
		stopped |= strcmp(output_string(json_array_get(phases, i), "name"), "switching") == 0;
	printf("  total      %s%s%s\n", units_format_ms(total, output_number(migration, "total_ms")),
	       pause_ms > 0			   ? "; the guest was paused for "
	       : report_pause_unknown(migration) ? "; nobody has seen for how long the guest was paused"
	       : stopped			   ? ""
						   : "; the guest was not paused",
	       pause_ms > 0 ? units_format_ms(pause, pause_ms) : "");
	if (report_is_destination(migration))
		return;
	printf("  sent       %s in %lld iteration%s, %s, %s\n", units_format_bytes(sent, output_number(migration, "wire_bytes")),
	       iterations, iterations == 1 ? "" : "s", output_string(migration, "transport"),
	       report_true(migration, "encrypted") ? "encrypted" : "not encrypted");
}

/* "by a person: host-a owns it, host-b was stated to be fenced", or NULL. The caller frees it. */
static char *report_resolved(const json_t *migration)
{
	const json_t *resolved = json_object_get(migration, "resolved");
	if (!json_is_object(resolved))
		return NULL;
	bool untold = report_true(migration, "cleanup_pending");
	cleanup_free char *words =
		xasprintf("by a person: %s owns it, %s was stated to be fenced%s%s%s", output_string(resolved, "owner"),
			  output_string(resolved, "fenced"), untold ? "; " : "",
			  untold ? output_string(migration, report_is_destination(migration) ? "source" : "destination") : "",
			  untold ? " is told as soon as it answers" : "");
	return output_safe(words);
}

int report_end(const struct cli *cli, const json_t *migration)
{
	int status = report_status(migration);
	if (status != EXIT_COMPLETED || report_reason_is_resolution(migration))
		report_reason(migration);
	if (report_waits(migration))
		report_remedy(cli, migration, stderr, "  ");
	if (cli->json) {
		output_json(migration);
		return status;
	}
	const char *vm = output_string(migration, "vm"), *owner = output_string(migration, "owner");
	if (status == EXIT_COMPLETED)
		printf("%s moved from %s to %s, which owns it now.\n", vm, output_string(migration, "source"), owner);
	else if (report_is_lost(migration))
		printf("%s stopped, and is %s's now; start it there.\n", vm, owner);
	else if (status == EXIT_IN_DOUBT)
		printf("%s waits; its last known owner is %s. Follow it with: ferry migration watch %s\n", vm, owner,
		       output_string(migration, "id"));
	else
		printf("%s stays on %s, which owns it.\n", vm, owner);
	cleanup_free char *resolved = report_resolved(migration);
	if (resolved)
		printf("  resolved   %s\n", resolved);
	if (!report_is(migration, "failed")) {
		report_figures(migration);
		report_predictions(migration, "  predicted  ");
	}
	cleanup_free char *promise = report_is(migration, "failed") ? NULL : report_promise(migration);
	if (promise)
		printf("  promised   %s\n", promise);
	printf("  migration  %s\n", output_string(migration, "id"));
	if (report_true(migration, "cleanup_pending"))
		printf("  Cleaning up is not finished; ferryd goes on with it.\n");
	return status;
}

int report_left(const struct cli *cli, const json_t *migration, const char *id, bool abort_asked)
{
	const char *name = migration ? output_string(migration, "id") : id;
	if (abort_asked)
		fprintf(stderr, "ferry: left. Cancelling was asked for and goes on without us; see how it ends with: ferry migration watch %s\n",
			name);
	else
		fprintf(stderr, "ferry: left. The migration goes on; see it with: ferry migration watch %s\n", name);
	if (cli->json) {
		cleanup_json json_t *error = json_pack("{s{ssss}}", "error", "code", error_code_name(ERROR_CANCELLED), "message",
						       "left before ferryd answered");
		output_json(migration ? migration : error);
	}
	return EXIT_BY_SIGNAL + interrupt_signal();
}

int report_lost(const struct cli *cli, const json_t *migration, const char *id, const struct error *e)
{
	const char *name = migration ? output_string(migration, "id") : id;
	cleanup_free char *message = output_safe(e->message);
	fprintf(stderr, "ferry: %s (%s)\n  What became of the migration is not known here. Once ferryd runs: ferry migration watch %s\n",
		message, error_code_name(e->code), name);
	if (cli->json) {
		cleanup_json json_t *value = json_pack("{s{ssss}sO*}", "error", "code", error_code_name(e->code), "message",
						       message, "migration", migration);
		output_json(value);
	}
	return EXIT_IN_DOUBT;
}

/* "a pause of 300 ms at most, within 2 m 00 s; may throttle, then pause for 4.0 s", or NULL where nothing was promised. */
static char *report_promised(const json_t *promise)
{
	char pause[UNITS_SIZE], deadline[UNITS_SIZE], longest[UNITS_SIZE];
	if (!json_is_object(promise))
		return NULL;
	const json_t *means = json_object_get(promise, "converge"), *within = json_object_get(promise, "deadline_ms");
	char *words = xasprintf("a pause of %s at most%s%s",
				units_format_ms(pause, output_number(promise, "max_downtime_ms")),
				json_is_number(within) ? ", within " : "",
				json_is_number(within) ? units_format_ms(deadline, json_number_value(within)) : "");
	for (size_t i = 0; i < json_array_size(means); i++) {
		cleanup_free char *before = words;
		const char *name = json_string_value(json_array_get(means, i));
		bool pauses = name && strcmp(name, "pause") == 0;
		words = xasprintf("%s%s%s%s%s", before, i == 0 ? "; may " : ", then ", name ? name : "?", pauses ? " for " : "",
				  pauses ? units_format_ms(longest, output_number(promise, "pause_ms")) : "");
	}
	return words;
}

char *report_promise(const json_t *migration)
{
	const json_t *promise = json_object_get(migration, "promise"), *kept = json_object_get(promise, "kept");
	cleanup_free char *promised = report_promised(promise);
	if (!promised)
		return NULL;
	bool broken = json_is_false(kept);
	cleanup_free char *words = xasprintf("%s%s%s", promised, json_is_true(kept) ? "; kept" : broken ? "; not kept: " : "",
					     broken ? output_message(promise, "words") : "");
	return output_safe(words);
}

static void report_phases(const json_t *migration)
{
	const json_t *phases = json_object_get(migration, "phases");
	for (size_t i = 0; i < json_array_size(phases); i++) {
		const json_t *phase = json_array_get(phases, i);
		double start_ms = output_number(phase, "start_ms");
		const json_t *end = json_object_get(phase, "end_ms");
		char length[UNITS_SIZE] = "goes on";
		if (json_is_number(end))
			units_format_ms(length, json_number_value(end) - start_ms);
		/* An earlier ferryd did not say it. */
		cleanup_free char *awaited = output_safe(output_message(phase, "waited_for"));
		bool said = strcmp(awaited, "-") != 0;
		printf("%s %-10s from %.3f s: %s%s%s\n", i == 0 ? "phases      " : "            ", output_string(phase, "name"),
		       start_ms / 1000, length, said ? ", waiting for " : "", said ? awaited : "");
	}
}

/* Whom it waits for, how it was settled, why it did not move. */
static void report_state(const struct cli *cli, const json_t *migration)
{
	char date[OUTPUT_DATE_SIZE];
	cleanup_free char *awaited = report_waiting(migration), *resolved = report_resolved(migration);
	if (awaited)
		printf("waiting      %s\n", awaited);
	if (report_waits(migration))
		report_remedy(cli, migration, stdout, "             ");
	if (resolved)
		printf("resolved     %s (%s, epoch %lld)\n", resolved,
		       output_date(date, output_integer(json_object_get(migration, "resolved"), "at_ms")),
		       (long long)output_integer(json_object_get(migration, "resolved"), "epoch"));
	const json_t *reason = json_object_get(migration, "reason");
	if (json_is_object(reason) && !awaited) {
		cleanup_free char *message = output_safe(output_message(reason, "message"));
		printf("reason       %s (%s)\n", message, output_string(reason, "code"));
	}
	const json_t *failures = json_object_get(migration, "failures");
	for (size_t i = 0; i < json_array_size(failures); i++) {
		const json_t *failure = json_array_get(failures, i);
		cleanup_free char *message = output_safe(output_message(failure, "message"));
		printf("check        %s: %s (%s)\n", output_string(failure, "side"), message, output_string(failure, "code"));
	}
}

static void report_decisions(const json_t *timeline)
{
	const json_t *events = json_object_get(timeline, "events"), *event;
	const long long lost = (long long)output_integer(timeline, "events_lost");
	size_t i;
	json_array_foreach (events, i, event) {
		char at[UNITS_SIZE];
		cleanup_free char *words = output_safe(output_message(event, "words"));
		printf("%s +%-9s %s\n", i == 0 ? "decisions   " : "            ",
		       units_format_ms(at, output_number(event, "at_ms")), words);
	}
	if (lost > 0)
		printf("             (before the last one, %lld more that have not been kept)\n", lost);
}

void report_show(const struct cli *cli, const json_t *migration, const json_t *timeline)
{
	char date[OUTPUT_DATE_SIZE], total[UNITS_SIZE], pause[UNITS_SIZE], sent[UNITS_SIZE], ram[UNITS_SIZE];
	printf("migration    %s\n", output_string(migration, "id"));
	printf("vm           %s (%s)\n", output_string(migration, "vm"), output_string(migration, "vm_uuid"));
	printf("from, to     %s, %s\n", output_string(migration, "source"), output_string(migration, "destination"));
	printf("status       %s%s\n", output_string(migration, "status"),
	       report_true(migration, "cleanup_pending") ? ", cleaning up" : "");
	printf("owner        %s\n", output_string(migration, "owner"));
	/* What has been put on record, and whose record this is: when in doubt, each host's is worth a look. */
	if (json_object_get(migration, "handover"))
		printf("handover     %s (%s)%s\n", output_string(migration, "handover"), output_string(migration, "role"),
		       report_true(migration, "postcopy") ? ", post-copy" : "");
	report_state(cli, migration);
	printf("started      %s\n", output_date(date, output_integer(migration, "started_at_ms")));
	printf("total        %s\n", units_format_ms(total, output_number(migration, "total_ms")));
	printf("pause        %s\n",
	       report_pause_unknown(migration) ? "not known" : units_format_ms(pause, output_number(migration, "downtime_ms")));
	cleanup_free char *promise = report_promise(migration);
	if (promise)
		printf("promise      %s\n", promise);
	report_predictions(migration, "predicted    ");
	const json_t *left = json_object_get(json_object_get(migration, "progress"), "predicted_ms");
	if (json_is_number(left))
		printf("left         about %s\n", units_format_ms(total, json_number_value(left)));
	long long iterations = output_integer(migration, "iterations");
	printf("sent         %s (memory %s) in %lld iteration%s\n",
	       units_format_bytes(sent, output_number(migration, "wire_bytes")),
	       units_format_bytes(ram, output_number(migration, "ram_bytes")), iterations, iterations == 1 ? "" : "s");
	printf("transport    %s, %s\n", output_string(migration, "transport"),
	       report_true(migration, "encrypted") ? "encrypted" : "not encrypted");
	report_phases(migration);
	report_decisions(timeline);
}
