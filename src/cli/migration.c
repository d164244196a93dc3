/* SPDX-License-Identifier: Apache-2.0 */
/* ferry migration list | show | watch | abort | set | complete; `resolve` is in resolve.c. */
#include <stdio.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/xalloc.h"
#include "cli/output.h"
#include "cli/plot.h"
#include "cli/report.h"
#include "cli/units.h"
#include "cli/watch.h"

/* As much of an id as people need. */
#define SHORT_ID 12

int run_migration_list(struct cli *cli)
{
	cleanup_error struct error *e = NULL;
	cleanup_client struct client *client = NULL;
	cleanup_json json_t *answer = NULL;
	if (client_open(cli, &client, &e) < 0 ||
	    client_request(client, "GET", "/v1/migrations", NULL, CLIENT_TIMEOUT_MS, &answer, &e) < 0)
		return cli_fail(cli, e);
	const json_t *list = json_object_get(answer, "migrations");
	if (cli->json) {
		output_json(list);
		return EXIT_COMPLETED;
	}
	struct table *table = table_new(10);
	table_add(table, "ID", "VM", "FROM", "TO", "STATUS", "OWNER", "STARTED", "TOTAL", "PAUSE", "WAITING");
	for (size_t i = 0; i < json_array_size(list); i++) {
		const json_t *one = json_array_get(list, i);
		char id[SHORT_ID + 1], date[OUTPUT_DATE_SIZE], total[UNITS_SIZE], pause[UNITS_SIZE], length[UNITS_SIZE];
		const json_t *waiting = json_object_get(one, "waiting");
		cleanup_free char *awaited = json_is_object(waiting) && !json_is_true(json_object_get(one, "ended"))
						     ? xasprintf("for %s, %s", output_string(waiting, "for"),
								 units_format_ms(length, output_number(waiting, "for_ms")))
						     : NULL;
		snprintf(id, sizeof(id), "%s", output_string(one, "id"));
		double pause_ms = output_number(one, "downtime_ms");
		table_add(table, id, output_string(one, "vm"), output_string(one, "source"), output_string(one, "destination"),
			  output_string(one, "status"), output_string(one, "owner"),
			  output_date(date, output_integer(one, "started_at_ms")),
			  units_format_ms(total, output_number(one, "total_ms")), pause_ms > 0 ? units_format_ms(pause, pause_ms) : "-", awaited);
	}
	table_print(table);
	return EXIT_COMPLETED;
}

const struct verb_option show_options[] = {
	{"plot", "FILE", "also draw how it went, as SVG; - for standard output, and then nothing else"},
	{NULL},
};

/* The migration's own id, and not the beginning of one that was given: by now that may fit another one, too. */
static int show_timeline(struct client *client, const json_t *migration, json_t **ret, struct error **e)
{
	cleanup_free char *path = client_path("migrations", output_string(migration, "id"), "/timeline");
	if (client_request(client, "GET", path, NULL, CLIENT_TIMEOUT_MS, ret, e) == 0)
		return 0;
	if (e && (*e)->code == ERROR_NOT_FOUND) {
		error_free(take_ptr(*e));
		return error_set(e, ERROR_MIGRATION_NO_TIMELINE, "that ferryd is of a version which keeps nothing of how a migration went");
	}
	return -1;
}

int run_migration_show(struct cli *cli)
{
	cleanup_error struct error *e = NULL;
	cleanup_client struct client *client = NULL;
	cleanup_json json_t *migration = NULL, *timeline = NULL;
	cleanup_free char *path = client_path("migrations", cli->arguments[0], "");
	const char *picture = cli_option(cli, "plot");
	const bool to_stdout = picture && strcmp(picture, "-") == 0;
	if (to_stdout && cli->json)
		return cli_usage(cli, "--plot - and --output json both want standard output");
	if (client_open(cli, &client, &e) < 0 ||
	    client_request(client, "GET", path, NULL, CLIENT_TIMEOUT_MS, &migration, &e) < 0)
		return cli_fail(cli, e);
	if (picture) {
		if (show_timeline(client, migration, &timeline, &e) < 0)
			return cli_fail(cli, e);
		cleanup_free char *svg = plot_svg(migration, timeline);
		if (plot_write(picture, svg, &e) < 0)
			return cli_fail(cli, e);
	} else if (!cli->json) {
		(void)show_timeline(client, migration, &timeline, NULL); /* all else is worth showing without it */
	}
	if (cli->json)
		output_json(migration);
	else if (!to_stdout)
		report_show(cli, migration, timeline);
	return EXIT_COMPLETED;
}

int run_migration_watch(struct cli *cli)
{
	cleanup_error struct error *e = NULL;
	struct watch watch;
	if (watch_open(&watch, cli, &e) < 0)
		return cli_fail(cli, e);
	int status = watch_to_end(&watch, cli->arguments[0]);
	watch_done(&watch);
	return status;
}

/* A request without a body, then the way to the end. */
static int migration_ask_and_follow(struct cli *cli, const char *request)
{
	cleanup_error struct error *e = NULL;
	struct watch watch;
	if (watch_open(&watch, cli, &e) < 0)
		return cli_fail(cli, e);
	watch.stop_in_doubt = true;
	cleanup_free char *path = client_path("migrations", cli->arguments[0], request);
	int status;
	if (client_request(watch.client, "POST", path, NULL, CLIENT_TIMEOUT_MS, &watch.migration, &e) < 0)
		status = cli_fail(cli, e);
	else
		status = watch_to_end(&watch, NULL);
	watch_done(&watch);
	return status;
}

/* Cancelled is what was wanted. Unlike in watch_abort() it is an error, not news, that it is too late. */
int run_migration_abort(struct cli *cli)
{
	const int status = migration_ask_and_follow(cli, "/abort");
	return status == EXIT_CANCELLED ? EXIT_COMPLETED : status == EXIT_COMPLETED ? EXIT_FAILED : status;
}

/* ---- while it is copied ---- */

const struct verb_option set_options[] = {
	{"max-downtime", "TIME", "longest pause of the guest"},
	{"deadline", "TIME", "give up after this long, counted from the beginning; or none"},
	{"converge", "LIST", "what may be done about a guest that writes too fast: throttle, postcopy, pause=TIME, or none"},
	{"bandwidth", "RATE", "use no more of the link than this; or none"},
	{NULL},
};

int run_migration_set(struct cli *cli)
{
	cleanup_error struct error *e = NULL;
	cleanup_client struct client *client = NULL;
	cleanup_json json_t *body = json_object(), *migration = NULL;
	cleanup_free char *path = client_path("migrations", cli->arguments[0], "/set");
	if (migrate_promise(cli, body, &e) < 0)
		return cli_usage(cli, "%s", e->message);
	if (json_object_size(body) == 0)
		return cli_usage(cli, "'ferry migration set' needs something to change");
	if (client_open(cli, &client, &e) < 0 ||
	    client_request(client, "POST", path, body, CLIENT_TIMEOUT_MS, &migration, &e) < 0)
		return cli_fail(cli, e);
	if (cli->json)
		output_json(migration);
	else
		printf("%s: the promise is changed. Follow it with: ferry migration watch %s\n", output_string(migration, "vm"),
		       output_string(migration, "id"));
	return EXIT_COMPLETED;
}

int run_migration_complete(struct cli *cli)
{
	return migration_ask_and_follow(cli, "/complete");
}

int run_migration_recover(struct cli *cli)
{
	return migration_ask_and_follow(cli, "/recover");
}
