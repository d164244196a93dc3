/* SPDX-License-Identifier: Apache-2.0 */
/* ferry image index | list | forget. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/cleanup.h"
#include "base/xalloc.h"
#include "cli/client.h"
#include "cli/output.h"
#include "cli/units.h"

#define LOOK_MS 200
#define PAGE_BYTES 4096

const struct verb_option image_options[] = {
	{"owner", "LABEL", "for VMs whose definition names this owner (those without one)"},
	{"format", "raw|qcow2", "of qcow2, what it stands on as well (raw)"},
	{"public", NULL, "for VMs of everybody: nothing in it is a secret"},
	{"detach", NULL, "do not wait"},
	{NULL},
};

/* A path of that host: a relative one is taken from here only where ferryd is here too. The caller frees it. */
static char *image_path(const struct cli *cli)
{
	const char *path = cli->arguments[0];
	if (*path == '/' || cli->host)
		return xstrdup(path);
	char *whole = realpath(path, NULL);
	return whole ? whole : xstrdup(path);
}

static const json_t *find_image(const json_t *answer, const char *path)
{
	const json_t *list = json_object_get(answer, "images");
	for (size_t i = 0; i < json_array_size(list); i++)
		if (strcmp(output_string(json_array_get(list, i), "path"), path) == 0)
			return json_array_get(list, i);
	return NULL;
}

/* Until it is not "indexing" any more. *ret is the caller's. */
static int wait_for_index(struct client *client, const char *path, json_t **ret, struct error **e)
{
	for (;;) {
		cleanup_json json_t *answer = NULL;
		if (client_request(client, "GET", "/v1/images", NULL, CLIENT_TIMEOUT_MS, &answer, e) < 0)
			return -1;
		const json_t *image = find_image(answer, path);
		if (!image)
			return error_set(e, ERROR_NOT_FOUND, "%s was forgotten meanwhile", path);
		if (strcmp(output_string(image, "state"), "indexing") != 0) {
			*ret = json_deep_copy(image);
			return 0;
		}
		nanosleep(&(struct timespec){.tv_nsec = LOOK_MS * 1000000L}, NULL);
	}
}

static int show_index(const struct cli *cli, const json_t *image)
{
	char size[UNITS_SIZE];
	if (cli->json)
		output_json(image);
	if (strcmp(output_string(image, "state"), "ready") != 0) {
		if (!cli->json)
			fprintf(stderr, "ferry: %s\n", output_string(json_object_get(image, "problem"), "message"));
		return EXIT_FAILED;
	}
	if (!cli->json)
		printf("%s: %" PRId64 " pages, %s, can be supplied from it.\n", output_string(image, "path"), output_integer(image, "pages"),
		       units_format_bytes(size, output_number(image, "pages") * PAGE_BYTES));
	return EXIT_COMPLETED;
}

int run_image_index(struct cli *cli)
{
	cleanup_error struct error *e = NULL;
	cleanup_client struct client *client = NULL;
	cleanup_json json_t *answer = NULL, *image = NULL;
	cleanup_free char *path = image_path(cli);
	const char *owner = cli_option(cli, "owner");
	cleanup_json json_t *body = json_pack("{s:s, s:b}", "path", path, "public", (int)cli_flag(cli, "public"));
	if (owner && cli_flag(cli, "public"))
		return cli_usage(cli, "--owner and --public exclude each other");
	if (!body)
		return cli_usage(cli, "the path is not UTF-8");
	if (owner)
		json_object_set_new(body, "owner", json_string(owner));
	if (cli_option(cli, "format"))
		json_object_set_new(body, "format", json_string(cli_option(cli, "format")));
	if (client_open(cli, &client, &e) < 0 || client_request(client, "POST", "/v1/images", body, CLIENT_TIMEOUT_MS, &answer, &e) < 0)
		return cli_fail(cli, e);
	if (cli_flag(cli, "detach")) {
		if (cli->json)
			output_json(find_image(answer, path));
		return EXIT_COMPLETED;
	}
	if (wait_for_index(client, path, &image, &e) < 0)
		return cli_fail(cli, e);
	return show_index(cli, image);
}

int run_image_list(struct cli *cli)
{
	cleanup_error struct error *e = NULL;
	cleanup_client struct client *client = NULL;
	cleanup_json json_t *answer = NULL;
	if (client_open(cli, &client, &e) < 0 || client_request(client, "GET", "/v1/images", NULL, CLIENT_TIMEOUT_MS, &answer, &e) < 0)
		return cli_fail(cli, e);
	const json_t *list = json_object_get(answer, "images");
	if (cli->json) {
		output_json(list);
		return EXIT_COMPLETED;
	}
	struct table *table = table_new(4);
	table_add(table, "IMAGE", "STATE", "SUPPLIES", "FOR");
	for (size_t i = 0; i < json_array_size(list); i++) {
		const json_t *image = json_array_get(list, i), *owners = json_object_get(image, "owners");
		char size[UNITS_SIZE];
		units_format_bytes(size, output_number(image, "pages") * PAGE_BYTES);
		const size_t count = json_array_size(owners);
		const char *first = count > 0 ? json_string_value(json_array_get(owners, 0)) : "";
		cleanup_free char *who = json_is_true(json_object_get(image, "public")) ? xstrdup("everybody")
					 : count == 1					  ? xasprintf("%s", *first ? first : "no owner")
											  : xasprintf("%zu owners", count);
		table_add(table, output_string(image, "path"), output_string(image, "state"), size, who);
	}
	table_print(table);
	return EXIT_COMPLETED;
}

int run_image_forget(struct cli *cli)
{
	cleanup_error struct error *e = NULL;
	cleanup_client struct client *client = NULL;
	cleanup_json json_t *answer = NULL;
	cleanup_free char *path = image_path(cli);
	cleanup_json json_t *body = json_pack("{s:s}", "path", path);
	if (!body)
		return cli_usage(cli, "the path is not UTF-8");
	if (client_open(cli, &client, &e) < 0 || client_request(client, "DELETE", "/v1/images", body, CLIENT_TIMEOUT_MS, &answer, &e) < 0)
		return cli_fail(cli, e);
	if (cli->json)
		output_json(json_null());
	return EXIT_COMPLETED;
}
