/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The HTTP/JSON server; see http_server.h.
 *
 * Theory of operation. Two libmicrohttpd daemons (unix socket, TLS) share one table of routes. Each connection has a
 * thread of its own with a small stack. libmicrohttpd calls, in this order:
 *   connection started   who is it: peer credentials of the unix socket, or the TLS session is set up (tls_server.h)
 *   request line seen    an exchange is made, which keeps the path as it came (still percent-encoded)
 *   headers, body parts  the body is collected up to its limit; at its end the handler runs and its answer is queued
 *   request completed    the exchange is freed
 *   connection closed    the peer is freed
 * While a handler runs, its connection has no time limit, since it may wait for a migration. Before a client's first
 * request its limit is short, so that strangers cannot hold connections.
 */
#include "net/http_server.h"

#include <gnutls/abstract.h>
#include <microhttpd.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/json.h"
#include "base/log.h"
#include "base/xalloc.h"
#include "net/http_patience.h"
#include "net/socket.h"
#include "net/tls_server.h"

#define HTTP_BODY_LIMIT_BYTES (1024 * 1024)
#define HTTP_UNIX_CONNECTION_LIMIT 512u
#define HTTP_TLS_CONNECTION_LIMIT 768u
#define HTTP_OTHERS_CONNECTION_LIMIT 320u  /* by TLS, from all addresses that are not known hosts' */
#define HTTP_ADDRESS_CONNECTION_LIMIT 320u /* from one address: even a known host cannot take all */
#define HTTP_STACK_BYTES ((size_t)256 * 1024)
#define HTTP_FIRST_REQUEST_S 10u
#define HTTP_IDLE_S 60u
#define HTTP_REQUEST_MS 30000 /* from its first line to its end */
#define HTTP_ANSWER_MS 120000 /* until it has been read */
#define HTTP_STOP_MS 5000
#define HTTP_PARAMETERS_MAX 4

struct http_server {
	const struct http_route *routes;
	void *user;
	unsigned int idle_s;
	char *unix_path;
	struct tls_server *tls;
	struct http_patience *patience;
	bool (*is_host_address)(void *user, const char *address);
	struct MHD_Daemon *unix_daemon, *tls_daemon;
	pthread_mutex_t mutex;
	pthread_cond_t idle;
	unsigned int answering; /* requests whose handler runs or whose answer is being sent; under mutex */
	unsigned int others;	/* TLS connections from addresses that are not known hosts'; under mutex */
	bool stopping;          /* under mutex */
};

/* A connection's other side. */
struct http_peer {
	bool allowed;
	bool is_tls;
	bool is_other; /* counted among the server's others */
	struct http_patience_entry patience;
	struct tls_server_peer tls;
	struct tls_server_credentials *credentials;
};

/* A request and its answer. */
struct http_exchange {
	char *uri; /* as it came: percent-encoded, with the query */
	char *body;
	size_t body_length, body_room;
	bool headers_seen, too_large, answering;
};

const char *http_request_query(const struct http_request *request, const char *key)
{
	return MHD_lookup_connection_value(request->connection, MHD_GET_ARGUMENT_KIND, key);
}

static struct http_peer *http_peer_of(struct MHD_Connection *connection)
{
	const union MHD_ConnectionInfo *info = MHD_get_connection_info(connection, MHD_CONNECTION_INFO_SOCKET_CONTEXT);
	return info ? info->socket_context : NULL;
}

/* ---- Paths ---- */

static int http_hex_digit(char c)
{
	if (c >= '0' && c <= '9')
		return c - '0';
	c = (char)(c | 0x20);
	return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

/* Percent-decode one segment in place; false when it is malformed, empty or has a NUL in it. */
static bool http_decode_segment(char *segment)
{
	char *to = segment;
	for (const char *from = segment; *from; from++) {
		if (*from != '%') {
			*to++ = *from;
			continue;
		}
		int high = http_hex_digit(from[1]), low = high < 0 ? -1 : http_hex_digit(from[2]);
		if (low < 0 || high * 16 + low == 0)
			return false;
		*to++ = (char)(high * 16 + low);
		from += 2;
	}
	*to = '\0';
	return to != segment;
}

/* Whether path (without its query; cut up by this) matches pattern; the parameters point into path. */
static bool http_match_path(const char *pattern, char *path, const char *ret_parameters[HTTP_PARAMETERS_MAX + 1])
{
	size_t count = 0;
	if (*pattern != '/' || *path != '/')
		return false;
	pattern++;
	path++;
	for (;;) {
		char *path_end = strchrnul(path, '/');
		size_t pattern_length = (size_t)(strchrnul(pattern, '/') - pattern);
		bool path_last = *path_end == '\0', pattern_last = pattern[pattern_length] == '\0';
		*path_end = '\0';
		if (path_last != pattern_last || !http_decode_segment(path))
			return false;
		if (pattern[0] == '{') {
			if (count == HTTP_PARAMETERS_MAX)
				return false;
			ret_parameters[count++] = path;
		} else if (strlen(path) != pattern_length || memcmp(path, pattern, pattern_length) != 0) {
			return false;
		}
		if (path_last) {
			ret_parameters[count] = NULL;
			return true;
		}
		path = path_end + 1;
		pattern += pattern_length + 1;
	}
}

/* ---- Answers ---- */

static enum MHD_Result http_send(struct MHD_Connection *connection, unsigned int status, const json_t *body,
				 const char *extra_header, const char *extra_value)
{
	char *text = json_dumps(body, JSON_COMPACT);
	if (!text) /* a string that is no UTF-8 cannot get into a json_t, so this is a handler's mistake */
		return MHD_NO;
	struct MHD_Response *response = MHD_create_response_from_buffer(strlen(text), text, MHD_RESPMEM_MUST_FREE);
	if (!response) {
		free(text);
		return MHD_NO;
	}
	MHD_add_response_header(response, MHD_HTTP_HEADER_CONTENT_TYPE, "application/json");
	if (extra_header)
		MHD_add_response_header(response, extra_header, extra_value);
	enum MHD_Result result = MHD_queue_response(connection, status, response);
	MHD_destroy_response(response);
	return result;
}

/* beside: further keys of the body, or NULL. */
static json_t *http_error_body(const struct error *error, json_t *beside)
{
	enum error_code code = error ? error->code : ERROR_INTERNAL;
	json_t *body = beside ? json_incref(beside) : json_object();
	/* A message may hold bytes of a guest or a peer that are no UTF-8, which JSON cannot carry. */
	json_t *message = json_string(error ? error->message : "no reason given");
	if (!message)
		message = json_string(error_code_meaning(code));
	json_object_set_new(body, "error", json_pack("{s:s, s:o}", "code", error_code_name(code), "message", message));
	return body;
}

static enum MHD_Result http_send_error(struct MHD_Connection *connection, const struct error *error, json_t *beside)
{
	enum error_code code = error ? error->code : ERROR_INTERNAL;
	cleanup_json json_t *body = http_error_body(error, beside);
	/* Before the body was read to its end, the connection cannot be used again. */
	bool close = code == ERROR_TOO_LARGE || code == ERROR_SHUTTING_DOWN;
	return http_send(connection, error_code_http_status(code), body, close ? MHD_HTTP_HEADER_CONNECTION : NULL, "close");
}

static enum MHD_Result http_refuse(struct MHD_Connection *connection, enum error_code code, const char *message)
{
	cleanup_error struct error *why = NULL;
	error_set(&why, code, "%s", message);
	return http_send_error(connection, why, NULL);
}

#ifdef FERRY_FAULTS
/* Until the asker has gone away or the server stops: open, and not a word. */
static void http_hold(struct http_server *server, struct MHD_Connection *connection)
{
	const union MHD_ConnectionInfo *info = MHD_get_connection_info(connection, MHD_CONNECTION_INFO_CONNECTION_FD);
	struct pollfd gone = {.fd = info ? info->connect_fd : -1, .events = POLLRDHUP};
	for (bool stopping = false; !stopping && poll(&gone, 1, 100) == 0;) {
		LOCK_SCOPE(&server->mutex);
		stopping = server->stopping;
	}
}

struct half_answer {
	size_t length;
	char text[];
};

static ssize_t http_read_half(void *cls, uint64_t position, char *buffer, size_t room)
{
	const struct half_answer *half = cls;
	size_t left = half->length - (size_t)position, length = left < room ? left : room;
	if (length == 0)
		return MHD_CONTENT_READER_END_WITH_ERROR;
	memcpy(buffer, half->text + position, length);
	return (ssize_t)length;
}

/* What a bad line makes of an answer. */
static enum MHD_Result http_send_broken(struct http_server *server, struct MHD_Connection *connection,
					const struct http_request *request, const json_t *body)
{
	cleanup_free char *text = json_text(body);
	size_t length = strlen(text);
	struct MHD_Response *response = NULL;
	if (request->fault == FAULT_HOLD)
		http_hold(server, connection);
	if (request->fault == FAULT_CUT) {
		struct half_answer *half = xcalloc(1, sizeof(*half) + length);
		half->length = length / 2;
		memcpy(half->text, text, half->length);
		response = MHD_create_response_from_callback(length, 4096, http_read_half, half, free);
	} else if (request->fault == FAULT_CORRUPT) {
		fault_corrupt(text, length, request->fault_seed);
		response = MHD_create_response_from_buffer(length, text, MHD_RESPMEM_MUST_COPY);
	}
	if (!response)
		return MHD_NO;
	enum MHD_Result result = MHD_queue_response(connection, request->status, response);
	MHD_destroy_response(response);
	return result;
}
#endif

/* ---- Requests ---- */

/* The route of a request; NULL with an error set. allowed methods, for the answer, are in the message. */
static const struct http_route *http_find_route(const struct http_server *server, const struct http_request *request,
						const char *path, char **ret_storage,
						const char *ret_parameters[HTTP_PARAMETERS_MAX + 1], struct error **e)
{
	bool path_known = false, method_known = false;
	for (const struct http_route *route = server->routes; route->method; route++) {
		cleanup_free char *storage = xstrdup(path);
		if (!http_match_path(route->pattern, storage, ret_parameters))
			continue;
		path_known = true;
		if (strcmp(route->method, request->method) != 0)
			continue;
		method_known = true;
		if (route->caller != request->caller)
			continue;
		*ret_storage = take_ptr(storage);
		return route;
	}
	if (method_known)
		error_set(e, ERROR_PERMISSION, "'%s' may not ask for %s %s: that is for %s", request->caller_name,
			  request->method, path,
			  request->caller == HTTP_CALLER_HOST ? "clients, not hosts" : "other hosts only");
	else if (path_known)
		error_set(e, ERROR_UNSUPPORTED, "%s does not go with %s", request->method, path);
	else
		error_set(e, ERROR_NOT_FOUND, "the API has no %s", path);
	return NULL;
}

static int http_parse_body(const struct http_exchange *exchange, json_t **ret_body, struct error **e)
{
	if (exchange->body_length == 0)
		return 0;
	cleanup_json json_t *body = NULL;
	if (json_parse(exchange->body, exchange->body_length, &body, e) < 0)
		return error_wrap(e, "the request's body");
	if (!json_is_object(body))
		return error_set(e, ERROR_INVALID_JSON, "the request's body must be an object");
	*ret_body = take_ptr(body);
	return 0;
}

/* Find and run the handler. *ret_body is the answer, or what stands beside the error. */
static int http_run(struct http_server *server, const struct http_exchange *exchange, struct http_request *request,
		    json_t **ret_body, struct error **e)
{
	cleanup_free char *path = strndup(exchange->uri, strcspn(exchange->uri, "?"));
	cleanup_free char *storage = NULL;
	cleanup_json json_t *body = NULL;
	const char *parameters[HTTP_PARAMETERS_MAX + 1] = {NULL};
	const struct http_route *route = http_find_route(server, request, path, &storage, parameters, e);
	if (!route || http_parse_body(exchange, &body, e) < 0)
		return -1;
	request->path = path;
	request->parameters = parameters;
	request->body = body;
	return route->handler(server->user, request, ret_body, e);
}

static enum MHD_Result http_answer(struct http_server *server, struct MHD_Connection *connection,
				   struct http_peer *peer, struct http_exchange *exchange, const char *method)
{
	struct http_request request = {.method = method, .connection = connection, .status = MHD_HTTP_OK};
	request.caller = peer->tls.role == TLS_ROLE_HOST ? HTTP_CALLER_HOST : HTTP_CALLER_CLIENT;
	snprintf(request.caller_name, sizeof(request.caller_name), "%s", peer->is_tls ? peer->tls.name : "root");
#ifdef FERRY_FAULTS
	request.local = !peer->is_tls;
#endif

	pthread_mutex_lock(&server->mutex);
	bool stopping = server->stopping;
	if (!stopping) {
		exchange->answering = true;
		server->answering++;
	}
	pthread_mutex_unlock(&server->mutex);
	if (stopping)
		return http_refuse(connection, ERROR_SHUTTING_DOWN, "this ferryd is stopping");

	MHD_set_connection_option(connection, MHD_CONNECTION_OPTION_TIMEOUT, 0);
	http_patience_set(&peer->patience, 0);
	cleanup_json json_t *body = NULL;
	cleanup_error struct error *why = NULL;
	int rc = http_run(server, exchange, &request, &body, &why);
	log_context_set(NULL, NULL); /* the thread's next request is about something else */
	/* From 0 to a number also starts the time anew. */
	MHD_set_connection_option(connection, MHD_CONNECTION_OPTION_TIMEOUT, server->idle_s);
	http_patience_set(&peer->patience, HTTP_ANSWER_MS);

	if (rc >= 0 && !body)
		body = json_object();
#ifdef FERRY_FAULTS
	if (request.fault != FAULT_NONE) {
		cleanup_json json_t *text = rc >= 0 ? json_incref(body) : http_error_body(why, NULL);
		request.status = rc >= 0 ? request.status : error_code_http_status(why ? why->code : ERROR_INTERNAL);
		return http_send_broken(server, connection, &request, text);
	}
#endif
	if (rc >= 0)
		return http_send(connection, request.status, body, NULL, NULL);
	if (!why || error_code_http_status(why->code) == MHD_HTTP_INTERNAL_SERVER_ERROR) {
		cleanup_free char *what = xasprintf("%s %s of '%s'", method, exchange->uri, request.caller_name);
		log_failure(LOG_LEVEL_WARNING, what, why);
	}
	return http_send_error(connection, why, json_is_object(body) ? body : NULL);
}

/* Whether a body of this announced length may come. */
static bool http_length_allowed(struct MHD_Connection *connection)
{
	const char *length = MHD_lookup_connection_value(connection, MHD_HEADER_KIND, MHD_HTTP_HEADER_CONTENT_LENGTH);
	return !length || strtoull(length, NULL, 10) <= HTTP_BODY_LIMIT_BYTES;
}

static void http_collect_body(struct http_exchange *exchange, const char *data, size_t length)
{
	if (exchange->too_large || length > HTTP_BODY_LIMIT_BYTES - exchange->body_length) {
		exchange->too_large = true;
		return;
	}
	if (length > exchange->body_room - exchange->body_length) {
		while (exchange->body_room < exchange->body_length + length)
			exchange->body_room = exchange->body_room ? exchange->body_room * 2 : 1024;
		exchange->body = xreallocarray(exchange->body, exchange->body_room, 1);
	}
	memcpy(exchange->body + exchange->body_length, data, length);
	exchange->body_length += length;
}

/* libmicrohttpd's access handler: once when the headers are there, once for each part of the body, once at its end. */
static enum MHD_Result http_on_access(void *cls, struct MHD_Connection *connection, const char *url, const char *method,
				      const char *version, const char *upload_data, size_t *upload_data_size,
				      void **request_context)
{
	(void)url;
	(void)version;
	struct http_exchange *exchange = *request_context;
	struct http_peer *peer = http_peer_of(connection);
	if (!exchange || !peer)
		return MHD_NO;

	if (!exchange->headers_seen) {
		exchange->headers_seen = true;
		/* A TLS handshake without a good certificate has failed long before; this is the second lock on that
		 * door. */
		if (!peer->allowed || (peer->is_tls && peer->tls.role == TLS_ROLE_NONE))
			return http_refuse(connection, ERROR_PERMISSION, "only root may use this socket");
		if (!http_length_allowed(connection))
			return http_refuse(connection, ERROR_TOO_LARGE, "the request's body is larger than 1 MiB");
		return MHD_YES;
	}
	if (*upload_data_size > 0) {
		http_collect_body(exchange, upload_data, *upload_data_size);
		*upload_data_size = 0;
		/* A body without an announced length that does not end: nobody listens to it any longer. */
		return exchange->too_large ? MHD_NO : MHD_YES;
	}
	return http_answer(cls, connection, peer, exchange, method);
}

static void *http_on_request_line(void *cls, const char *uri, struct MHD_Connection *connection)
{
	(void)cls;
	struct http_peer *peer = http_peer_of(connection);
	struct http_exchange *exchange = xcalloc(1, sizeof(*exchange));
	exchange->uri = xstrdup(uri);
	if (peer)
		http_patience_set(&peer->patience, HTTP_REQUEST_MS);
	return exchange;
}

static void http_on_completed(void *cls, struct MHD_Connection *connection, void **request_context,
			      enum MHD_RequestTerminationCode code)
{
	(void)code;
	struct http_server *server = cls;
	struct http_peer *peer = http_peer_of(connection);
	struct http_exchange *exchange = *request_context;
	if (peer) /* the next request's first line; libmicrohttpd has a limit for silence only */
		http_patience_set(&peer->patience, (int64_t)server->idle_s * 1000 + HTTP_REQUEST_MS);
	if (!exchange)
		return;
	if (exchange->answering) {
		LOCK_SCOPE(&server->mutex);
		if (--server->answering == 0)
			pthread_cond_broadcast(&server->idle);
	}
	free(exchange->uri);
	free(exchange->body);
	free(exchange);
	*request_context = NULL;
}

/* ---- Connections ---- */

/* Root, and the user ferryd itself runs as. The socket's mode says the same; a wrong chmod must not open the host. */
static bool http_unix_peer_allowed(int fd)
{
	struct ucred who;
	socklen_t length = sizeof(who);
	return getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &who, &length) == 0 && (who.uid == 0 || who.uid == geteuid());
}

/* Whether a connection from this address is one of the others, which have a limit of their own. */
static bool http_is_other(const struct http_server *server, const struct sockaddr *address)
{
	char text[SOCKET_ADDRESS_SIZE];
	socket_address_text(address, text);
	return !server->is_host_address || !server->is_host_address(server->user, text);
}

/* Before anything is done for a TLS connection. A few more than allowed may get in at once; they are not the problem. */
static enum MHD_Result http_on_accept(void *cls, const struct sockaddr *address, socklen_t length)
{
	struct http_server *server = cls;
	(void)length;
	pthread_mutex_lock(&server->mutex);
	bool full = server->others >= HTTP_OTHERS_CONNECTION_LIMIT;
	pthread_mutex_unlock(&server->mutex);
	return full && http_is_other(server, address) ? MHD_NO : MHD_YES;
}

static void http_count_other(struct http_server *server, struct http_peer *peer, struct MHD_Connection *connection)
{
	const union MHD_ConnectionInfo *info = MHD_get_connection_info(connection, MHD_CONNECTION_INFO_CLIENT_ADDRESS);
	peer->is_other = !info || http_is_other(server, info->client_addr);
	if (!peer->is_other)
		return;
	LOCK_SCOPE(&server->mutex);
	server->others++;
}

static void http_peer_free(struct http_server *server, struct http_peer *peer)
{
	if (!peer)
		return;
	http_patience_remove(&peer->patience);
	if (peer->credentials)
		tls_server_release(server->tls, peer->credentials);
	if (peer->is_other) {
		LOCK_SCOPE(&server->mutex);
		server->others--;
	}
	free(peer);
}

static void http_on_connection(void *cls, struct MHD_Connection *connection, void **socket_context,
			       enum MHD_ConnectionNotificationCode code)
{
	struct http_server *server = cls;
	struct http_peer *peer = *socket_context;
	if (code == MHD_CONNECTION_NOTIFY_CLOSED) { /* the socket is closed after this */
		http_peer_free(server, peer);
		*socket_context = NULL;
		return;
	}
	peer = xcalloc(1, sizeof(*peer));
	*socket_context = peer;
	const union MHD_ConnectionInfo *info = MHD_get_connection_info(connection, MHD_CONNECTION_INFO_CONNECTION_FD);
	const int fd = info ? info->connect_fd : -1;
	if (info)
		http_patience_add(server->patience, &peer->patience, fd, (int64_t)HTTP_FIRST_REQUEST_S * 1000);
	info = MHD_get_connection_info(connection, MHD_CONNECTION_INFO_GNUTLS_SESSION);
	if (info && info->tls_session) {
		peer->is_tls = true;
		peer->allowed = true;
		peer->credentials = tls_server_attach(server->tls, info->tls_session, &peer->tls);
		http_count_other(server, peer, connection);
		return;
	}
	peer->allowed = http_unix_peer_allowed(fd);
}

/* ---- Start and stop ---- */

static void __attribute__((format(printf, 2, 0))) http_log_library(void *cls, const char *format, va_list ap)
{
	(void)cls;
	/* Each stranger's port scan makes it complain, so these are not the operator's business. */
	char line[256];
	int length = vsnprintf(line, sizeof(line), format, ap);
	for (; length > 0 && length < (int)sizeof(line) && line[length - 1] == '\n'; length--)
		line[length - 1] = '\0';
	log_debug("libmicrohttpd: %s", line);
}

/* libmicrohttpd wants a certificate of its own to start with TLS. Each session gets ours before its handshake, so that
 * this is never asked. */
static int http_no_certificate(gnutls_session_t session, const gnutls_datum_t *issuers, int issuer_count,
			       const gnutls_pk_algorithm_t *algorithms, int algorithm_count,
			       gnutls_pcert_st **ret_chain, unsigned int *ret_length, gnutls_privkey_t *ret_key)
{
	(void)session;
	(void)issuers;
	(void)issuer_count;
	(void)algorithms;
	(void)algorithm_count;
	(void)ret_chain;
	(void)ret_length;
	(void)ret_key;
	return -1;
}

/* Start a libmicrohttpd daemon on a listening descriptor, which it owns from then on. NULL on failure. */
static struct MHD_Daemon *http_start_daemon(struct http_server *server, int listen_fd, bool is_tls)
{
	const unsigned int flags = MHD_USE_INTERNAL_POLLING_THREAD | MHD_USE_THREAD_PER_CONNECTION | MHD_USE_POLL |
				   MHD_USE_ITC | MHD_USE_ERROR_LOG | (is_tls ? (unsigned int)MHD_USE_TLS : 0);
	struct MHD_OptionItem tls_options[] = {
		{MHD_OPTION_HTTPS_PRIORITIES, 0, (void *)(uintptr_t)TLS_PRIORITIES},
		{MHD_OPTION_HTTPS_CERT_CALLBACK, 0, (void *)(intptr_t)http_no_certificate},
		{MHD_OPTION_PER_IP_CONNECTION_LIMIT, (intptr_t)HTTP_ADDRESS_CONNECTION_LIMIT, NULL},
		{MHD_OPTION_END, 0, NULL},
	};
	struct MHD_OptionItem no_options[] = {{MHD_OPTION_END, 0, NULL}};
	/* clang-format off */
	return MHD_start_daemon(flags, 0, is_tls ? http_on_accept : NULL, server, http_on_access, server,
				MHD_OPTION_EXTERNAL_LOGGER, http_log_library, NULL, /* must stand first */
				MHD_OPTION_LISTEN_SOCKET, listen_fd,
				MHD_OPTION_CONNECTION_LIMIT, is_tls ? HTTP_TLS_CONNECTION_LIMIT : HTTP_UNIX_CONNECTION_LIMIT,
				MHD_OPTION_CONNECTION_TIMEOUT, HTTP_FIRST_REQUEST_S,
				MHD_OPTION_THREAD_STACK_SIZE, HTTP_STACK_BYTES,
				MHD_OPTION_URI_LOG_CALLBACK, http_on_request_line, server,
				MHD_OPTION_NOTIFY_COMPLETED, http_on_completed, server,
				MHD_OPTION_NOTIFY_CONNECTION, http_on_connection, server,
				MHD_OPTION_ARRAY, is_tls ? tls_options : no_options, MHD_OPTION_END);
	/* clang-format on */
}

static int http_start_unix(struct http_server *server, const char *path, struct error **e)
{
	cleanup_close int fd = -1;
	if (socket_listen_unix(path, 0600, &fd, e) < 0)
		return -1;
	server->unix_path = xstrdup(path);
	server->unix_daemon = http_start_daemon(server, fd, false);
	if (!server->unix_daemon)
		return error_set(e, ERROR_SYSTEM, "cannot start the HTTP server on '%s'", path);
	(void)take_fd(fd);
	return 0;
}

static int http_start_tls(struct http_server *server, const struct http_server_options *options, struct error **e)
{
	cleanup_close int fd = -1;
	if (tls_server_new(options->files, &server->tls, e) < 0 ||
	    socket_listen_tcp(options->address, options->port, &fd, e) < 0)
		return -1;
	server->tls_daemon = http_start_daemon(server, fd, true);
	if (!server->tls_daemon)
		return error_set(e, ERROR_SYSTEM, "cannot start the HTTPS server on port %u", options->port);
	(void)take_fd(fd);
	return 0;
}

int http_server_start(const struct http_server_options *options, struct http_server **ret, struct error **e)
{
	struct http_server *server = xcalloc(1, sizeof(*server));
	server->routes = options->routes;
	server->user = options->user;
	server->is_host_address = options->is_host_address;
	server->idle_s = options->idle_s ? options->idle_s : HTTP_IDLE_S;
	server->patience = http_patience_new();
	pthread_mutex_init(&server->mutex, NULL);
	cond_init(&server->idle);
	if ((options->unix_path && http_start_unix(server, options->unix_path, e) < 0) ||
	    (options->port && http_start_tls(server, options, e) < 0)) {
		http_server_stop(server);
		return -1;
	}
	*ret = server;
	return 0;
}

void http_server_stop(struct http_server *server)
{
	if (!server)
		return;
	if (server->unix_path)
		unlink(server->unix_path);
	int unix_fd = server->unix_daemon ? MHD_quiesce_daemon(server->unix_daemon) : -1;
	int tls_fd = server->tls_daemon ? MHD_quiesce_daemon(server->tls_daemon) : -1;

	const int64_t deadline_us = clock_monotonic_us() + HTTP_STOP_MS * 1000;
	pthread_mutex_lock(&server->mutex);
	server->stopping = true;
	while (server->answering > 0 && cond_wait_until(&server->idle, &server->mutex, deadline_us))
		;
	pthread_mutex_unlock(&server->mutex);

	if (server->unix_daemon)
		MHD_stop_daemon(server->unix_daemon);
	if (server->tls_daemon)
		MHD_stop_daemon(server->tls_daemon);
	if (unix_fd >= 0)
		close(unix_fd);
	if (tls_fd >= 0)
		close(tls_fd);
	http_patience_free(server->patience);
	tls_server_free(server->tls);
	pthread_cond_destroy(&server->idle);
	pthread_mutex_destroy(&server->mutex);
	free(server->unix_path);
	free(server);
}
