/* SPDX-License-Identifier: Apache-2.0 */
/* ferry migration stats: how the migrations of a host have gone. */
#include <stdio.h>

#include "base/cleanup.h"
#include "base/xalloc.h"
#include "cli/client.h"
#include "cli/output.h"
#include "cli/units.h"

typedef const char *stats_format(char ret[UNITS_SIZE], double value);

static const char *format_percent(char ret[UNITS_SIZE], double value)
{
	snprintf(ret, UNITS_SIZE, "%.1f %%", value);
	return ret;
}

/* One line: "  total      median 5.7 s, 90 % within 8.1 s" */
static void stats_line(const json_t *summary, const char *key, const char *label, stats_format *format)
{
	char middle[UNITS_SIZE], most[UNITS_SIZE];
	const json_t *figure = json_object_get(summary, key);
	if (json_is_object(figure))
		printf("  %-10s median %s, 90 %% within %s\n", label, format(middle, output_number(figure, "median")),
		       format(most, output_number(figure, "p90")));
}

static void stats_show_prediction(const json_t *prediction, const char *key, const char *when)
{
	const json_t *summary = json_object_get(prediction, key);
	const json_t *right = json_object_get(summary, "verdicts_right_percent");
	if (!json_is_number(right))
		return;
	printf("Predicted %s, and off by\n", when);
	stats_line(summary, "total_percent", "total", format_percent);
	stats_line(summary, "downtime_ms", "pause", units_format_ms);
	stats_line(summary, "wire_percent", "sent", format_percent);
	printf("  %-10s right in %lld of %lld (%.1f %%)\n", "verdict", (long long)output_integer(summary, "verdicts_right"),
	       (long long)output_integer(summary, "verdicts"), json_number_value(right));
}

static char *stats_cell(const json_t *summary, const char *key, stats_format *format)
{
	char text[UNITS_SIZE];
	const json_t *figure = json_object_get(summary, key);
	return json_is_object(figure) ? xstrdup(format(text, output_number(figure, "median"))) : NULL;
}

static void stats_show_destinations(const json_t *list)
{
	if (json_array_size(list) < 2)
		return;
	struct table *table = table_new(6);
	table_add(table, "TO", "MIGRATIONS", "COMPLETED", "TOTAL", "PAUSE", "SENT");
	for (size_t i = 0; i < json_array_size(list); i++) {
		const json_t *one = json_array_get(list, i);
		cleanup_free char *count = xasprintf("%lld", (long long)output_integer(one, "count"));
		cleanup_free char *completed =
			xasprintf("%lld", (long long)output_integer(json_object_get(one, "by_status"), "completed"));
		cleanup_free char *total = stats_cell(one, "total_ms", units_format_ms);
		cleanup_free char *pause = stats_cell(one, "downtime_ms", units_format_ms);
		cleanup_free char *sent = stats_cell(one, "wire_bytes", units_format_bytes);
		table_add(table, output_string(one, "destination"), count, completed, total, pause, sent);
	}
	printf("\n");
	table_print(table);
}

static void stats_show(const json_t *stats)
{
	const json_t *promise = json_object_get(stats, "promise");
	const char *status;
	json_t *count;
	printf("%lld migrations from here have ended", (long long)output_integer(stats, "count"));
	const char *before = ": ";
	json_object_foreach (json_object_get(stats, "by_status"), status, count) {
		cleanup_free char *name = output_safe(status);
		printf("%s%lld %s", before, (long long)json_integer_value(count), name);
		before = ", ";
	}
	printf("\n");
	stats_line(stats, "total_ms", "total", units_format_ms);
	stats_line(stats, "downtime_ms", "pause", units_format_ms);
	stats_line(stats, "wire_bytes", "sent", units_format_bytes);
	if (output_integer(promise, "count") > 0)
		printf("  %-10s kept in %lld of %lld (%.1f %%)\n", "promise", (long long)output_integer(promise, "kept"),
		       (long long)output_integer(promise, "count"), output_number(promise, "kept_percent"));
	stats_show_prediction(json_object_get(stats, "prediction"), "start", "at the start");
	stats_show_prediction(json_object_get(stats, "prediction"), "first_pass", "after the first pass");
	stats_show_destinations(json_object_get(stats, "by_destination"));
}

int run_migration_stats(struct cli *cli)
{
	cleanup_error struct error *e = NULL;
	cleanup_client struct client *client = NULL;
	cleanup_json json_t *stats = NULL;
	if (client_open(cli, &client, &e) < 0 ||
	    client_request(client, "GET", "/v1/migrations/stats", NULL, CLIENT_TIMEOUT_MS, &stats, &e) < 0)
		return cli_fail(cli, e);
	if (cli->json)
		output_json(stats);
	else
		stats_show(stats);
	return EXIT_COMPLETED;
}
