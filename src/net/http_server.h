/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The HTTP/JSON server (libmicrohttpd): a unix socket for local root and, when there are certificates, a TLS listener with
 * mutual authentication. One thread a connection, so a handler may block (wait for a migration, start a QEMU), and a slow
 * client holds up nobody. Limits: 1 MiB a body, 512 connections on the unix socket, 768 by TLS, of which no more than 320 from
 * addresses that are not those of known hosts and no more than 320 from one address: neither clients nor one other host can
 * lock the rest out. 60 s idle; a request must have come within 30 s, a connection's first one within 10 s of its beginning,
 * and an answer must have been read within 120 s.
 *
 * Handlers run on connection threads, several at once. They return 0 and a body (owned by the server from then on; NULL
 * means {}), or -1 and an error, which is answered as {"error": {"code", "message"}} with the status of its code.
 * With -1 a body may be returned too: its keys stand beside "error". log_context_set() holds for the one request.
 */
#ifndef FERRY_NET_HTTP_SERVER_H
#define FERRY_NET_HTTP_SERVER_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/fault.h"
#include "net/tls.h"

/* Who is asking; ordered by what they may do. */
enum http_caller {
	HTTP_CALLER_CLIENT, /* a client's certificate, or uid 0 on the unix socket: the whole API but peer messages */
	HTTP_CALLER_HOST,   /* another host's certificate: peer messages only */
};

struct http_request {
	enum http_caller caller;
	char caller_name[TLS_NAME_SIZE]; /* the certificate's name; "root" for the unix socket */
	const char *method;
	const char *path;
	const char *const *parameters; /* what stood for each {…} of the route's pattern, in order */
	const json_t *body;	       /* the parsed body, an object; NULL when there was none */
	void *connection;	       /* for http_request_query() */
	unsigned int status;	       /* a handler may set 201 or 202; 200 otherwise */
#ifdef FERRY_FAULTS
	bool local;		 /* it came by the unix socket */
	enum fault_action fault; /* a handler may set what becomes of its answer: drop, hold, cut or corrupt */
	int64_t fault_seed;
#endif
};

/* The value of ?key=… or NULL. Borrowed. */
const char *http_request_query(const struct http_request *request, const char *key);

struct http_route {
	const char *method;
	const char *pattern; /* "/v1/vms/{name}/start": {…} matches one path segment (percent-decoded) */
	enum http_caller caller;
	int (*handler)(void *user, struct http_request *request, json_t **ret_body, struct error **e);
};

struct http_server_options {
	const char *unix_path;	       /* socket to create (mode 0600), or NULL */
	const char *address;	       /* to listen on with TLS; NULL: all addresses */
	uint16_t port;		       /* 0: no TLS listener */
	const struct tls_files *files; /* needed with port */
	const struct http_route *routes; /* ends with a row whose method is NULL; must outlive the server */
	void *user;
	/* Whether a numeric address is that of a known host; NULL: of none. Called for each connection, must not block. */
	bool (*is_host_address)(void *user, const char *address);
	unsigned int idle_s; /* a kept-alive connection without a request is closed after this; 0: 60 s */
};

struct http_server;
int http_server_start(const struct http_server_options *options, struct http_server **ret, struct error **e) MUST_CHECK;
/* Stop accepting; answers under way are finished or cut after 5 s. Handlers that wait must be woken by their owner first. */
void http_server_stop(struct http_server *server);

#endif
