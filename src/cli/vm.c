/* SPDX-License-Identifier: Apache-2.0 */
/* ferry vm define | list | show | start | shutdown | stop | reboot | pause | resume | undefine. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/file.h"
#include "base/json.h"
#include "base/xalloc.h"
#include "cli/client.h"
#include "cli/output.h"

/* Far more than any definition needs. */
#define DEFINITION_MAX_BYTES (1 << 20)

static int vm_print(const struct cli *cli, const json_t *vm)
{
	if (cli->json)
		output_json(vm);
	else
		printf("%s: %s\n", output_string(vm, "name"), output_string(vm, "state"));
	return EXIT_COMPLETED;
}

int run_vm_define(struct cli *cli)
{
	cleanup_error struct error *e = NULL;
	cleanup_client struct client *client = NULL;
	cleanup_json json_t *definition = NULL, *vm = NULL;
	const char *path = strcmp(cli->arguments[0], "-") == 0 ? "/dev/stdin" : cli->arguments[0];
	if (client_open(cli, &client, &e) < 0 || json_parse_file(path, DEFINITION_MAX_BYTES, &definition, &e) < 0 ||
	    client_request(client, "POST", "/v1/vms", definition, CLIENT_TIMEOUT_MS, &vm, &e) < 0)
		return cli_fail(cli, e);
	if (!cli->json) {
		printf("%s is defined (%s).\n", output_string(vm, "name"), output_string(vm, "uuid"));
		return EXIT_COMPLETED;
	}
	return vm_print(cli, vm);
}

int run_vm_list(struct cli *cli)
{
	cleanup_error struct error *e = NULL;
	cleanup_client struct client *client = NULL;
	cleanup_json json_t *answer = NULL;
	if (client_open(cli, &client, &e) < 0 ||
	    client_request(client, "GET", "/v1/vms", NULL, CLIENT_TIMEOUT_MS, &answer, &e) < 0)
		return cli_fail(cli, e);
	const json_t *list = json_object_get(answer, "vms");
	if (cli->json) {
		output_json(list);
		return EXIT_COMPLETED;
	}
	struct table *table = table_new(4);
	table_add(table, "NAME", "STATE", "OWNER", "UUID");
	for (size_t i = 0; i < json_array_size(list); i++) {
		const json_t *vm = json_array_get(list, i);
		const char *migration = json_string_value(json_object_get(vm, "migration"));
		cleanup_free char *state = migration ? xasprintf("%s, moving", output_string(vm, "state"))
						     : xstrdup(output_string(vm, "state"));
		table_add(table, output_string(vm, "name"), state, output_string(vm, "owner"), output_string(vm, "uuid"));
	}
	table_print(table);
	return EXIT_COMPLETED;
}

static void vm_show_text(const json_t *vm)
{
	const json_t *definition = json_object_get(vm, "definition");
	printf("name       %s\n", output_string(vm, "name"));
	printf("uuid       %s\n", output_string(vm, "uuid"));
	printf("state      %s\n", output_string(vm, "state"));
	printf("owner      %s (epoch %lld)\n", output_string(vm, "owner"), (long long)output_integer(vm, "epoch"));
	if (json_is_string(json_object_get(vm, "migration")))
		printf("migration  %s\n", output_string(vm, "migration"));
	if (output_integer(vm, "pid") > 0)
		printf("pid        %lld\n", (long long)output_integer(vm, "pid"));
	if (!json_is_object(definition))
		return;
	printf("machine    %s, %lld processor%s %s, %lld MiB\n", output_string(definition, "machine"),
	       (long long)output_integer(definition, "vcpus"), output_integer(definition, "vcpus") == 1 ? "" : "s",
	       output_string(json_object_get(definition, "cpu"), "model"), (long long)output_integer(definition, "memory_mib"));
	const json_t *disks = json_object_get(definition, "disks"), *nics = json_object_get(definition, "nics");
	for (size_t i = 0; i < json_array_size(disks); i++) {
		const json_t *disk = json_array_get(disks, i);
		cleanup_free char *path = output_safe(output_string(disk, "path"));
		printf("disk       %s %s (%s%s)\n", output_string(disk, "target"), path, output_string(disk, "format"),
		       json_is_true(json_object_get(disk, "readonly")) ? ", read-only" : "");
	}
	for (size_t i = 0; i < json_array_size(nics); i++) {
		const json_t *nic = json_array_get(nics, i);
		printf("nic        %s on %s (%s)\n", output_string(nic, "mac"), output_string(nic, "bridge"),
		       output_string(nic, "model"));
	}
}

int run_vm_show(struct cli *cli)
{
	cleanup_error struct error *e = NULL;
	cleanup_client struct client *client = NULL;
	cleanup_json json_t *vm = NULL;
	cleanup_free char *path = client_path("vms", cli->arguments[0], "");
	if (client_open(cli, &client, &e) < 0 || client_request(client, "GET", path, NULL, CLIENT_TIMEOUT_MS, &vm, &e) < 0)
		return cli_fail(cli, e);
	if (cli->json)
		output_json(vm);
	else
		vm_show_text(vm);
	return EXIT_COMPLETED;
}

int run_vm_change(struct cli *cli)
{
	cleanup_error struct error *e = NULL;
	cleanup_client struct client *client = NULL;
	cleanup_json json_t *vm = NULL;
	/* The API's words are the verbs': "vm start" is POST …/start. */
	cleanup_free char *rest = xasprintf("/%s", strchr(cli->verb->name, ' ') + 1);
	cleanup_free char *path = client_path("vms", cli->arguments[0], rest);
	if (client_open(cli, &client, &e) < 0 ||
	    client_request(client, "POST", path, NULL, CLIENT_LONG_TIMEOUT_MS, &vm, &e) < 0)
		return cli_fail(cli, e);
	return vm_print(cli, vm);
}

int run_vm_undefine(struct cli *cli)
{
	cleanup_error struct error *e = NULL;
	cleanup_client struct client *client = NULL;
	cleanup_json json_t *answer = NULL;
	cleanup_free char *path = client_path("vms", cli->arguments[0], "");
	if (client_open(cli, &client, &e) < 0 ||
	    client_request(client, "DELETE", path, NULL, CLIENT_TIMEOUT_MS, &answer, &e) < 0)
		return cli_fail(cli, e);
	if (cli->json)
		output_json(answer);
	else
		printf("%s is no longer defined.\n", cli->arguments[0]);
	return EXIT_COMPLETED;
}
