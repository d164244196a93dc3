/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The API (src/net/http_server.c's paths and bodies, src/host/api.c and what stands behind it). The input is up to eight
 * requests to one host with the fake driver, a line each: "POST /v1/vms {…}"; with '@' in front another host asks.
 *
 * Properties: each request is answered with JSON or with an error that has a code and a message; hosts get at peer
 * messages only, clients at all else; what cannot be parsed is refused.
 */
#include "net/http_server.c" /* for the functions between libmicrohttpd and the handlers */

#include "fakes/fake_driver.h"
#include "fuzz.h"
#include "host.h"
#include "host/api.h"
#include "net/http_client.h"

#define REQUESTS_MAX 8

/* libmicrohttpd cuts the query out of the URI; here it is cut out by this. */
static _Thread_local char *query_values[8];
static _Thread_local size_t query_value_count;

const char *__wrap_MHD_lookup_connection_value(struct MHD_Connection *connection, enum MHD_ValueKind kind, const char *key);
const char *__wrap_MHD_lookup_connection_value(struct MHD_Connection *connection, enum MHD_ValueKind kind, const char *key)
{
	const struct http_exchange *exchange = (const void *)connection;
	const char *query = strchr(exchange->uri, '?');
	size_t length = strlen(key);
	(void)kind;
	for (; query; query = strchr(query + 1, '&')) {
		if (strncmp(query + 1, key, length) != 0 || query[1 + length] != '=' || query_value_count == 8)
			continue;
		const char *value = query + 2 + length;
		size_t value_length = strcspn(value, "&");
		/* Nothing happens here that would be worth waiting for. */
		if (strcmp(key, "wait_ms") == 0 && value_length > 1)
			return NULL;
		query_values[query_value_count] = xasprintf("%.*s", (int)value_length, value);
		return query_values[query_value_count++];
	}
	return NULL;
}

static void run_request(struct http_server *server, char *line)
{
	bool by_host = line[0] == '@';
	char *method = line + by_host;
	char *uri = strchr(method, ' ');
	if (!uri)
		return;
	*uri++ = '\0';
	char *body_text = strchrnul(uri, ' ');
	struct http_exchange exchange = {.uri = uri};
	if (*body_text) {
		*body_text++ = '\0';
		exchange.body = body_text;
		exchange.body_length = strlen(body_text);
	}
	struct http_request request = {.method = method, .connection = &exchange, .status = MHD_HTTP_OK};
	request.caller = by_host ? HTTP_CALLER_HOST : HTTP_CALLER_CLIENT;
	snprintf(request.caller_name, sizeof(request.caller_name), "%s", by_host ? FUZZ_PEER : "root");

	cleanup_json json_t *answer = NULL;
	struct error *e = NULL;
	if (http_run(server, &exchange, &request, &answer, &e) < 0) {
		REQUIRE(error_code_http_status(e->code) >= 400);
		fuzz_check_error(e);
	} else {
		cleanup_free char *text = answer ? json_text(answer) : xstrdup("{}");
		REQUIRE(strlen(text) < 16 << 20);
		bool peer_message = strncmp(uri, "/v1/peer/", 9) == 0 || strchr(uri, '%');
		REQUIRE(!by_host || peer_message);
	}
	while (query_value_count > 0)
		free(query_values[--query_value_count]);
	REQUIRE(!fake_world_breach());
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct fuzz_host fuzz;
	fuzz_answer = NULL;
	fuzz_host_open(&fuzz);
	REQUIRE(fuzz_host_load(&fuzz, NULL) == 0);
	struct api api = {.host = &fuzz.host};
	struct http_server server = {.routes = api_routes, .user = &api};
	const char *at = (const char *)data, *end = at + size, *part;
	size_t length;
	for (int i = 0; i < REQUESTS_MAX && fuzz_next_part(&at, end, '\n', &part, &length); i++) {
		cleanup_free char *line = fuzz_text((const uint8_t *)part, length);
		run_request(&server, line);
	}
	fuzz_host_close(&fuzz);
	return 0;
}
