/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The host's HTTP API: the routes of /v1 for clients and for other hosts, as docs/openapi.yaml describes them. Handlers translate between JSON and the modules below; they decide nothing themselves.
 */
#ifndef FERRY_HOST_API_H
#define FERRY_HOST_API_H

#include "base/database.h"
#include "migration/host.h"
#include "net/http_server.h"

struct api {
	struct migration_host *host;
	struct database *db; /* the journal's */
};

/* The routes, for http_server_options; user is a struct api. */
extern const struct http_route api_routes[];
/* For http_server_options. */
bool api_is_host_address(void *user, const char *address);

#endif
