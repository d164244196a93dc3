/* SPDX-License-Identifier: Apache-2.0 */
/* ferry plan: what a migration would be, without one. */
#include <stdio.h>
#include <string.h>

#include "base/cleanup.h"
#include "cli/client.h"
#include "cli/output.h"
#include "cli/report.h"
#include "cli/units.h"

static void plan_show_known(const json_t *known)
{
	char a[UNITS_SIZE], b[UNITS_SIZE], c[UNITS_SIZE];
	printf("  link       %s/s (%s)%s\n", units_format_bytes(a, output_number(known, "link_bytes_per_s")),
	       output_string(known, "link_from"),
	       !json_is_true(json_object_get(known, "encrypted")) || strcmp(output_string(known, "link_from"), "probe") != 0
		       ? ""
		       : "; probed in plain text, encrypted it may be less");
	printf("  memory     %s of %s in use\n", units_format_bytes(a, output_number(known, "used_bytes")),
	       units_format_bytes(b, output_number(known, "memory_bytes")));
	const char *from = output_string(known, "writes_from");
	if (strcmp(from, "paused") == 0)
		printf("  writes     nothing, it is paused\n");
	else if (output_number(known, "writes_bytes_per_s") <= 0)
		printf("  writes     little (%s)\n", from);
	else
		printf("  writes     %s/s to %s of it, at most (%s)\n", units_format_bytes(a, output_number(known, "writes_bytes_per_s")),
		       units_format_bytes(c, output_number(known, "working_set_bytes")), from);
	printf("  around it  %s before the first byte", units_format_ms(a, output_number(known, "setup_ms")));
	printf(", %s after the last\n", units_format_ms(b, output_number(known, "release_ms")));
}

static void plan_show(const json_t *plan, const char *vm, const char *to)
{
	char total[UNITS_SIZE], pause[UNITS_SIZE], sent[UNITS_SIZE];
	const json_t *predicted = json_object_get(plan, "predicted");
	if (!json_is_object(predicted)) {
		printf("%s can move to %s; nothing more can be said.\n", vm, to);
		return;
	}
	cleanup_free char *words = output_safe(output_message(predicted, "words"));
	const bool fails = report_expects_failure(predicted);
	printf("%s %s move to %s: it %s.\n", vm, fails ? "would not" : "can", to, words);
	printf("  %s  %s", fails ? "given up " : "total    ", units_format_ms(total, output_number(predicted, "total_ms")));
	if (fails)
		printf(" after the request\n");
	else
		printf("; the guest would be paused for %s\n", units_format_ms(pause, output_number(predicted, "downtime_ms")));
	printf("  sent       %s\n", units_format_bytes(sent, output_number(predicted, "wire_bytes")));
	plan_show_known(json_object_get(plan, "known"));
}

int run_plan(struct cli *cli)
{
	cleanup_error struct error *e = NULL;
	cleanup_client struct client *client = NULL;
	cleanup_json json_t *body = json_object(), *plan = NULL;
	cleanup_free char *path = client_path("vms", cli->arguments[0], "/plan");
	const char *vm = cli->arguments[0], *to = cli_option(cli, "to");
	if (!to || !*to)
		return cli_usage(cli, "'ferry plan' needs --to HOST");
	if (migrate_request(cli, body, &e) < 0)
		return cli_usage(cli, "%s", e->message);
	if (client_open(cli, &client, &e) < 0)
		return cli_fail(cli, e);
	if (client_request(client, "POST", path, body, CLIENT_LONG_TIMEOUT_MS, &plan, &e) < 0) {
		cli_fail(cli, e);
		return cli_migration_refusal(e->code);
	}
	const bool ok = json_is_true(json_object_get(plan, "ok"));
	if (!ok)
		report_failures(json_object_get(plan, "failures"), vm, to);
	if (cli->json)
		output_json(plan);
	else if (ok)
		plan_show(plan, vm, to);
	if (!ok)
		return EXIT_REFUSED;
	return report_expects_failure(json_object_get(plan, "predicted")) ? EXIT_FAILED : EXIT_COMPLETED;
}
