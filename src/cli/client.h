/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The ferryd that a verb talks to: the local one by its unix socket, or another by mutual TLS. It reconnects by itself at
 * the next request.
 *
 * Errors are those of net/http_client.h: an error body gives back that error and client_answered() is true; otherwise
 * nobody knows whether the request was carried out, and whoever must know asks again.
 */
#ifndef FERRY_CLI_CLIENT_H
#define FERRY_CLI_CLIENT_H

#include "cli/cli.h"

/* For requests that do nothing long. */
#define CLIENT_TIMEOUT_MS 30000
/* For those that start or stop a QEMU. */
#define CLIENT_LONG_TIMEOUT_MS 180000

/* A way to reach a ferryd; the two are in local.c and remote.c. */
struct client_operations {
	int (*request)(void *connection, const char *method, const char *path, const json_t *body, int64_t timeout_ms,
		       json_t **ret, struct error **e);
	bool (*answered)(const void *connection);
	void (*free)(void *connection);
};
/* connection is stolen. */
struct client *client_new(const struct client_operations *operations, void *connection);

/* Open the client for cli->host, or for the local ferryd. Nothing is sent yet. The small program turns into the one with
 * TLS here where that is needed, so call it before anything that cannot be done again, such as reading stdin. */
int client_open(struct cli *cli, struct client **ret, struct error **e) MUST_CHECK;
void client_free(struct client *client);
/* The local ferryd's socket: FERRY_SOCKET or /run/ferry/ferryd.sock. */
const char *client_local_socket(void);

/* body is borrowed and may be NULL; *ret is the caller's. A request that is cut short because more than `interrupts`
 * signals have come (see client_set_interrupts()) fails with ERROR_CANCELLED. */
int client_request(struct client *client, const char *method, const char *path, const json_t *body, int64_t timeout_ms,
		   json_t **ret, struct error **e) MUST_CHECK;
bool client_answered(const struct client *client);
/* Cut requests short once interrupt_count() is larger than this; at first they are never cut. */
void client_set_interrupts(int interrupts);
bool client_interrupted(void);

/* "/v1/vms/" and the name, percent-encoded, and what follows ("" for nothing). The caller frees it. */
char *client_path(const char *collection, const char *name, const char *rest);

static inline void cleanup_client_ptr(struct client **client)
{
	client_free(*client);
}
#define cleanup_client __attribute__((cleanup(cleanup_client_ptr)))

#endif
