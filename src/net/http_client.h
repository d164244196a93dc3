/* SPDX-License-Identifier: Apache-2.0 */
/*
 * HTTP/JSON client (libcurl): one kept-alive connection to one ferryd. One thread at a time a client; blocking.
 *
 * An answer with an error body gives back that error (code restored from its name, http_client_answered() true). When no
 * answer came, the code is ERROR_DAEMON_UNREACHABLE, ERROR_TLS or ERROR_TIMEOUT and nobody knows whether the request was
 * carried out: whoever must know asks again.
 */
#ifndef FERRY_NET_HTTP_CLIENT_H
#define FERRY_NET_HTTP_CLIENT_H

#include <jansson.h>
#include <stdint.h>

#include "base/fault.h"
#include "net/tls.h"

struct http_client;

/* A ferryd's unix socket. */
int http_client_new_unix(const char *path, struct http_client **ret, struct error **e) MUST_CHECK;
/* A ferryd by mutual TLS: connects to address:port and verifies that its certificate says `name`. */
int http_client_new_tls(const char *name, const char *address, uint16_t port, const struct tls_files *files,
			struct http_client **ret, struct error **e) MUST_CHECK;
void http_client_free(struct http_client *client);

/* body is borrowed and may be NULL. *ret_body may be NULL if the answer does not matter. timeout_ms covers all of it. */
int http_client_request(struct http_client *client, const char *method, const char *path, const json_t *body,
			int64_t timeout_ms, json_t **ret_body, struct error **e) MUST_CHECK;
/* Whether the last failed request was answered by the other side (as opposed to not reached or no answer in time). */
bool http_client_answered(const struct http_client *client);
/* Called now and then (at least each 100 ms) during a request, from the requesting thread; true cuts the request short with
 * ERROR_CANCELLED. */
void http_client_set_interrupt(struct http_client *client, bool (*interrupted)(void *user), void *user);
/* All requests may go out twice (each of them does no more when it comes again): then one that meets a kept-alive connection
 * which has died since is sent again on a new one, instead of failing. */
void http_client_set_repeatable(struct http_client *client);
/* A longer answer is ERROR_TOO_LARGE. Until it is called: 16 MiB. */
void http_client_set_answer_limit(struct http_client *client, size_t limit_bytes);
/* Wall time of the last request on the wire, from request sent to answer received, for estimating the round trip. */
int64_t http_client_last_us(const struct http_client *client);

#ifdef FERRY_FAULTS
/* The next request only: FAULT_CUT closes the connection in the middle of it, FAULT_CORRUPT changes bytes of its body (of its
 * path's last part when it has none) as fault_corrupt() does. */
void http_client_break_next(struct http_client *client, enum fault_action how, int64_t seed);
#endif

#endif
