/* SPDX-License-Identifier: Apache-2.0 */
/* ferry pki init | issue | renew, over net/pki. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/xalloc.h"
#include "cli/output.h"
#include "cli/remote.h"
#include "net/pki.h"

#define PKI_FOLDER "/etc/ferry/pki"

static const char *pki_option(const struct cli *cli, const char *name)
{
	const char *value = cli_option(cli, name);
	return value && *value ? value : PKI_FOLDER;
}

/* Name the files that are there now. */
static int pki_print(const struct cli *cli, const char *folder, const char *const names[])
{
	if (!cli->json)
		for (size_t i = 0; names[i]; i++)
			printf("%s/%s\n", folder, names[i]);
	else {
		cleanup_json json_t *answer = json_pack("{sss[]}", "folder", folder, "files");
		for (size_t i = 0; names[i]; i++)
			json_array_append_new(json_object_get(answer, "files"), json_string(names[i]));
		output_json(answer);
	}
	return EXIT_COMPLETED;
}

static const char *const pki_ca_files[] = {"ca.crt", "ca.key", NULL};
static const char *const pki_host_files[] = {"ca.crt", "host.crt", "host.key", NULL};
static const char *const pki_client_files[] = {"ca.crt", "client.crt", "client.key", NULL};

static int run_init(struct cli *cli)
{
	cleanup_error struct error *e = NULL;
	const char *folder = pki_option(cli, "folder");
	if (pki_init(folder, &e) < 0)
		return cli_fail(cli, e);
	return pki_print(cli, folder, pki_ca_files);
}

static int run_issue(struct cli *cli)
{
	cleanup_error struct error *e = NULL;
	cleanup_free const char **addresses = xcalloc(cli->option_count + 1, sizeof(*addresses));
	size_t count = 0;
	for (const char *address; (address = cli_option_nth(cli, "address", count)); count++)
		addresses[count] = address;
	bool client = cli_flag(cli, "client");
	const char *out = pki_option(cli, "out");
	if (pki_issue(pki_option(cli, "ca"), out, cli->arguments[0], client ? TLS_ROLE_CLIENT : TLS_ROLE_HOST, addresses, count,
		      &e) < 0)
		return cli_fail(cli, e);
	return pki_print(cli, out, client ? pki_client_files : pki_host_files);
}

static int run_renew(struct cli *cli)
{
	cleanup_error struct error *e = NULL;
	bool client = cli_flag(cli, "client");
	const char *folder = pki_option(cli, "folder");
	if (pki_renew(pki_option(cli, "ca"), folder, client ? TLS_ROLE_CLIENT : TLS_ROLE_HOST, &e) < 0)
		return cli_fail(cli, e);
	return pki_print(cli, folder, client ? pki_client_files : pki_host_files);
}

int pki_run(struct cli *cli)
{
	if (strcmp(cli->verb->name, "pki init") == 0)
		return run_init(cli);
	if (strcmp(cli->verb->name, "pki issue") == 0)
		return run_issue(cli);
	return run_renew(cli);
}
