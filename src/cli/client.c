/* SPDX-License-Identifier: Apache-2.0 */
/* The ferryd that a verb talks to; see client.h. */
#include "cli/client.h"

#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/xalloc.h"
#include "cli/interrupt.h"
#include "cli/local.h"

struct client {
	const struct client_operations *operations;
	void *connection;
};

static int client_interrupts = INT_MAX;

struct client *client_new(const struct client_operations *operations, void *connection)
{
	struct client *client = xcalloc(1, sizeof(*client));
	client->operations = operations;
	client->connection = connection;
	return client;
}

const char *client_local_socket(void)
{
	const char *path = getenv("FERRY_SOCKET");
	return path && *path ? path : "/run/ferry/ferryd.sock";
}

int client_open(struct cli *cli, struct client **ret, struct error **e)
{
	if (!cli->host)
		return local_connect(client_local_socket(), ret, e);
	if (!cli->remote)
		exit(cli_become_remote(cli));
	return cli->remote->connect(cli->host, ret, e);
}

void client_free(struct client *client)
{
	if (!client)
		return;
	client->operations->free(client->connection);
	free(client);
}

int client_request(struct client *client, const char *method, const char *path, const json_t *body, int64_t timeout_ms,
		   json_t **ret, struct error **e)
{
	return client->operations->request(client->connection, method, path, body, timeout_ms, ret, e);
}

bool client_answered(const struct client *client)
{
	return client->operations->answered(client->connection);
}

void client_set_interrupts(int interrupts)
{
	client_interrupts = interrupts;
}

bool client_interrupted(void)
{
	return interrupt_count() > client_interrupts;
}

char *client_path(const char *collection, const char *name, const char *rest)
{
	static const char plain[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_.~";
	char *encoded = xmalloc(3 * strlen(name) + 1), *at = encoded;
	/* "." and ".." would be taken for steps in the path. */
	bool dots = strspn(name, ".") == strlen(name);
	for (; *name; name++)
		if (strchr(plain, *name) && !dots)
			*at++ = *name;
		else
			at += sprintf(at, "%%%02X", (unsigned char)*name);
	*at = '\0';
	char *path = xasprintf("/v1/%s/%s%s", collection, encoded, rest);
	free(encoded);
	return path;
}
