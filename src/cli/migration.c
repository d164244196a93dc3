/* SPDX-License-Identifier: Apache-2.0 */
/* ferry migration list | show | watch | abort; `resolve` is in resolve.c. */
#include <stdio.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/xalloc.h"
#include "cli/output.h"
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

int run_migration_show(struct cli *cli)
{
	cleanup_error struct error *e = NULL;
	cleanup_client struct client *client = NULL;
	cleanup_json json_t *migration = NULL;
	cleanup_free char *path = client_path("migrations", cli->arguments[0], "");
	if (client_open(cli, &client, &e) < 0 ||
	    client_request(client, "GET", path, NULL, CLIENT_TIMEOUT_MS, &migration, &e) < 0)
		return cli_fail(cli, e);
	if (cli->json)
		output_json(migration);
	else
		report_show(cli, migration);
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

int run_migration_abort(struct cli *cli)
{
	cleanup_error struct error *e = NULL;
	struct watch watch;
	if (watch_open(&watch, cli, &e) < 0)
		return cli_fail(cli, e);
	watch.stop_in_doubt = true;
	cleanup_free char *path = client_path("migrations", cli->arguments[0], "/abort");
	int status;
	/* Not watch_abort(): here it is an error, not news, that it is too late. */
	if (client_request(watch.client, "POST", path, NULL, CLIENT_TIMEOUT_MS, &watch.migration, &e) < 0) {
		status = cli_fail(cli, e);
	} else {
		status = watch_to_end(&watch, NULL);
		if (status == EXIT_CANCELLED)
			status = EXIT_COMPLETED;
		else if (status == EXIT_COMPLETED)
			status = EXIT_FAILED;
	}
	watch_done(&watch);
	return status;
}
