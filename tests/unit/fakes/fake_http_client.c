/* SPDX-License-Identifier: Apache-2.0 */
/* A client of nobody; see fake_http_client.h. */
#include "fakes/fake_http_client.h"

#include <stdio.h>
#include <stdlib.h>

#include "base/fault.h"
#include "base/xalloc.h"

int http_client_new_unix(const char *path, struct http_client **ret, struct error **e)
{
	(void)ret;
	return error_set(e, ERROR_DAEMON_UNREACHABLE, "%s does not answer", path);
}

int http_client_new_tls(const char *name, const char *address, uint16_t port, const struct tls_files *files,
			struct http_client **ret, struct error **e)
{
	(void)address;
	(void)port;
	(void)e;
	struct http_client *client = xcalloc(1, sizeof(*client));
	client->files = files;
	snprintf(client->name, sizeof(client->name), "%s", name);
	*ret = client;
	return 0;
}

void http_client_free(struct http_client *client)
{
	free(client);
}

bool http_client_answered(const struct http_client *client)
{
	return client->answered;
}

void http_client_set_interrupt(struct http_client *client, bool (*interrupted)(void *user), void *user)
{
	client->interrupted = interrupted;
	client->interrupted_user = user;
}

void http_client_set_repeatable(struct http_client *client)
{
	(void)client; /* what goes out twice is the test's to say */
}

void http_client_set_answer_limit(struct http_client *client, size_t limit_bytes)
{
	(void)client;
	(void)limit_bytes;
}

#ifdef FERRY_FAULTS
void http_client_break_next(struct http_client *client, enum fault_action how, int64_t seed)
{
	(void)client;
	(void)how;
	(void)seed;
	abort(); /* there are no bytes that could be broken; fake_wire.h says what happens to a message */
}
#endif

int64_t http_client_last_us(const struct http_client *client)
{
	(void)client;
	return 100;
}
