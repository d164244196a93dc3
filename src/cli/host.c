/* SPDX-License-Identifier: Apache-2.0 */
/* ferry host add | list | show | remove. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/json.h"
#include "base/xalloc.h"
#include "cli/address.h"
#include "cli/client.h"
#include "cli/output.h"

int run_host_add(struct cli *cli)
{
	cleanup_error struct error *e = NULL;
	cleanup_client struct client *client = NULL;
	cleanup_json json_t *answer = NULL, *body = NULL;
	cleanup_free char *address = NULL;
	uint16_t port = 0;
	if (address_parse(cli->arguments[1], &address, &port, &e) < 0)
		return cli_usage(cli, "%s", e->message);
	body = json_pack("{ssss}", "name", cli->arguments[0], "address", address);
	if (!body)
		return cli_usage(cli, "a name or address is not UTF-8");
	if (port)
		json_object_set_new(body, "port", json_integer(port));
	if (client_open(cli, &client, &e) < 0 ||
	    client_request(client, "POST", "/v1/hosts", body, CLIENT_TIMEOUT_MS, &answer, &e) < 0)
		return cli_fail(cli, e);
	if (cli->json)
		output_json(answer);
	else
		printf("%s is known here now.\n", cli->arguments[0]);
	return EXIT_COMPLETED;
}

int run_host_list(struct cli *cli)
{
	cleanup_error struct error *e = NULL;
	cleanup_client struct client *client = NULL;
	cleanup_json json_t *answer = NULL;
	if (client_open(cli, &client, &e) < 0 ||
	    client_request(client, "GET", "/v1/hosts", NULL, CLIENT_TIMEOUT_MS, &answer, &e) < 0)
		return cli_fail(cli, e);
	const json_t *list = json_object_get(answer, "hosts");
	if (cli->json) {
		output_json(list);
		return EXIT_COMPLETED;
	}
	struct table *table = table_new(3);
	table_add(table, "NAME", "ADDRESS", "PORT");
	for (size_t i = 0; i < json_array_size(list); i++) {
		const json_t *host = json_array_get(list, i);
		cleanup_free char *port = xasprintf("%lld", (long long)output_integer(host, "port"));
		table_add(table, output_string(host, "name"), output_string(host, "address"), port);
	}
	table_print(table);
	return EXIT_COMPLETED;
}

/* A value as people read it: strings bare, an error as "message (code)". The caller frees it. */
static char *host_value_text(const json_t *value)
{
	if (json_is_boolean(value))
		return xstrdup(json_is_true(value) ? "yes" : "no");
	if (json_is_string(value))
		return output_safe(json_string_value(value));
	if (json_is_object(value) && json_object_get(value, "code")) {
		cleanup_free char *text = xasprintf("%s (%s)", output_message(value, "message"), output_string(value, "code"));
		return output_safe(text);
	}
	if (json_is_real(value))
		return xasprintf("%.1f", json_real_value(value));
	return json_text(value);
}

/* Whatever the object has, one line a key. */
static void host_print(const json_t *host)
{
	const char *key;
	json_t *value;
	json_object_foreach ((json_t *)(uintptr_t)host, key, value) {
		if (json_is_null(value))
			continue;
		cleanup_free char *text = host_value_text(value);
		printf("%-18s %s\n", key, text);
	}
}

int run_host_show(struct cli *cli)
{
	cleanup_error struct error *e = NULL;
	cleanup_client struct client *client = NULL;
	cleanup_json json_t *host = NULL;
	cleanup_free char *path = cli->argument_count > 0 ? client_path("hosts", cli->arguments[0], "") : xstrdup("/v1/host");
	if (client_open(cli, &client, &e) < 0 || client_request(client, "GET", path, NULL, CLIENT_TIMEOUT_MS, &host, &e) < 0)
		return cli_fail(cli, e);
	if (cli->json)
		output_json(host);
	else
		host_print(host);
	return EXIT_COMPLETED;
}

int run_host_remove(struct cli *cli)
{
	cleanup_error struct error *e = NULL;
	cleanup_client struct client *client = NULL;
	cleanup_json json_t *answer = NULL;
	cleanup_free char *path = client_path("hosts", cli->arguments[0], "");
	if (client_open(cli, &client, &e) < 0 ||
	    client_request(client, "DELETE", path, NULL, CLIENT_TIMEOUT_MS, &answer, &e) < 0)
		return cli_fail(cli, e);
	if (cli->json)
		output_json(answer);
	else
		printf("%s is no longer known here.\n", cli->arguments[0]);
	return EXIT_COMPLETED;
}
