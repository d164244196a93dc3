/* SPDX-License-Identifier: Apache-2.0 */
/* HTTP server and client over a unix socket: routes, bodies, errors, limits, time, and what the client does not repeat.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/file.h"
#include "base/xalloc.h"
#include "fakes/scripted_server.h"
#include "net/http_client.h"
#include "net/http_server.h"
#include "net/socket.h"

static char folder[] = "/tmp/ferry-test-http-XXXXXX";
static char *socket_path;
static struct http_server *server;

/* A gate in which handlers wait until a test opens it. */
static struct {
	pthread_mutex_t mutex;
	pthread_cond_t changed;
	unsigned int inside;
	bool open;
} gate = {.mutex = PTHREAD_MUTEX_INITIALIZER};
static atomic_uint handler_calls;

static void gate_close(void)
{
	LOCK_SCOPE(&gate.mutex);
	gate.open = false;
}

static void gate_open(void)
{
	LOCK_SCOPE(&gate.mutex);
	gate.open = true;
	pthread_cond_broadcast(&gate.changed);
}

static bool gate_wait_inside(unsigned int count, int64_t timeout_ms)
{
	const int64_t deadline_us = clock_monotonic_us() + timeout_ms * 1000;
	LOCK_SCOPE(&gate.mutex);
	while (gate.inside < count)
		if (!cond_wait_until(&gate.changed, &gate.mutex, deadline_us))
			return false;
	return true;
}

/* ---- Handlers ---- */

static int on_echo(void *user, struct http_request *request, json_t **ret_body, struct error **e)
{
	(void)e;
	assert_ptr_equal(user, &gate);
	handler_calls++;
	json_t *parameters = json_array();
	for (size_t i = 0; request->parameters[i]; i++)
		json_array_append_new(parameters, json_string(request->parameters[i]));
	const char *query = http_request_query(request, "q");
	*ret_body = json_pack("{s:s, s:s, s:s, s:o, s:O?, s:s?, s:I}", "method", request->method, "path", request->path,
			      "caller", request->caller_name, "parameters", parameters, "body", request->body, "query",
			      query, "connection", (json_int_t)(intptr_t)request->connection);
	return 0;
}

static int on_nothing(void *user, struct http_request *request, json_t **ret_body, struct error **e)
{
	(void)user;
	(void)ret_body;
	(void)e;
	request->status = 202;
	return 0;
}

static int on_fail(void *user, struct http_request *request, json_t **ret_body, struct error **e)
{
	(void)user;
	(void)ret_body;
	return error_set(e, error_code_from_name(request->parameters[0]), "because of %s", request->parameters[0]);
}

static int on_refuse(void *user, struct http_request *request, json_t **ret_body, struct error **e)
{
	(void)user;
	(void)request;
	*ret_body = json_pack("{s:[s]}", "failures", "first");
	return error_set(e, ERROR_DEST_MEMORY, "too little");
}

static int on_wait(void *user, struct http_request *request, json_t **ret_body, struct error **e)
{
	(void)user;
	(void)request;
	(void)ret_body;
	(void)e;
	LOCK_SCOPE(&gate.mutex);
	gate.inside++;
	pthread_cond_broadcast(&gate.changed);
	while (!gate.open)
		pthread_cond_wait(&gate.changed, &gate.mutex);
	gate.inside--;
	return 0;
}

static int on_large(void *user, struct http_request *request, json_t **ret_body, struct error **e)
{
	(void)user;
	(void)request;
	(void)e;
	cleanup_free char *text = xmalloc(4000001);
	memset(text, 'x', 4000000);
	text[4000000] = '\0';
	*ret_body = json_pack("{s:s}", "text", text);
	return 0;
}

static const struct http_route routes[] = {
	{"GET", "/v1/echo", HTTP_CALLER_CLIENT, on_echo},
	{"POST", "/v1/echo", HTTP_CALLER_CLIENT, on_echo},
	{"DELETE", "/v1/echo", HTTP_CALLER_CLIENT, on_echo},
	{"POST", "/v1/vms/{name}/{verb}", HTTP_CALLER_CLIENT, on_echo},
	{"POST", "/v1/nothing", HTTP_CALLER_CLIENT, on_nothing},
	{"POST", "/v1/fail/{code}", HTTP_CALLER_CLIENT, on_fail},
	{"POST", "/v1/refuse", HTTP_CALLER_CLIENT, on_refuse},
	{"POST", "/v1/wait", HTTP_CALLER_CLIENT, on_wait},
	{"GET", "/v1/large", HTTP_CALLER_CLIENT, on_large},
	{"POST", "/v1/peer", HTTP_CALLER_HOST, on_echo},
	{NULL},
};

static struct http_server *start_server(const char *path, unsigned int idle_s)
{
	struct http_server *started = NULL;
	const struct http_server_options options = {
		.unix_path = path, .routes = routes, .user = &gate, .idle_s = idle_s};
	cleanup_error struct error *e = NULL;
	if (http_server_start(&options, &started, &e) < 0)
		fail_msg("%s", e->message);
	return started;
}

static struct http_client *new_client(const char *path)
{
	struct http_client *client = NULL;
	assert_int_equal(http_client_new_unix(path, &client, NULL), 0);
	return client;
}

static int start(void **state)
{
	(void)state;
	cond_init(&gate.changed);
	if (!mkdtemp(folder))
		return -1;
	socket_path = xasprintf("%s/ferryd.sock", folder);
	server = start_server(socket_path, 0);
	return 0;
}

static int stop(void **state)
{
	(void)state;
	http_server_stop(server);
	free(socket_path);
	return file_remove_tree(folder, NULL);
}

/* ---- Requests and answers ---- */

static void test_request_and_answer(void **state)
{
	(void)state;
	struct http_client *client = new_client(socket_path);
	cleanup_json json_t *body = json_pack("{s:i}", "n", 7), *answer = NULL;
	assert_int_equal(
		http_client_request(client, "POST", "/v1/vms/my%20vm%2F1/start?q=a%2Fb%26c", body, 5000, &answer, NULL),
		0);
	assert_true(http_client_answered(client));
	assert_true(http_client_last_us(client) > 0 && http_client_last_us(client) < 5000000);
	assert_string_equal(json_string_value(json_object_get(answer, "method")), "POST");
	assert_string_equal(json_string_value(json_object_get(answer, "caller")), "root");
	assert_string_equal(json_string_value(json_object_get(answer, "query")), "a/b&c");
	/* A slash inside a segment stays inside: the path was split before it was decoded. */
	const json_t *parameters = json_object_get(answer, "parameters");
	assert_int_equal(json_array_size(parameters), 2);
	assert_string_equal(json_string_value(json_array_get(parameters, 0)), "my vm/1");
	assert_string_equal(json_string_value(json_array_get(parameters, 1)), "start");
	assert_true(json_equal(json_object_get(answer, "body"), body));
	http_client_free(client);
}

static void test_methods_and_empty_bodies(void **state)
{
	(void)state;
	struct http_client *client = new_client(socket_path);
	static const char *const methods[] = {"GET", "POST", "DELETE", "GET"};
	for (size_t i = 0; i < 4; i++) {
		cleanup_json json_t *answer = NULL;
		assert_int_equal(http_client_request(client, methods[i], "/v1/echo", NULL, 5000, &answer, NULL), 0);
		assert_string_equal(json_string_value(json_object_get(answer, "method")), methods[i]);
		assert_true(json_is_null(json_object_get(answer, "body")));
	}
	cleanup_json json_t *answer = NULL;
	assert_int_equal(http_client_request(client, "POST", "/v1/nothing", NULL, 5000, &answer, NULL), 0);
	assert_true(json_is_object(answer) && json_object_size(answer) == 0);
	assert_int_equal(http_client_request(client, "POST", "/v1/nothing", NULL, 5000, NULL, NULL), 0);
	http_client_free(client);
}

/* Send text to the server and return all that it answers until it closes or the time is over. */
static char *raw_exchange(const char *text, size_t length, int64_t timeout_ms, bool *ret_closed)
{
	cleanup_close int fd = -1;
	assert_int_equal(socket_connect_unix(socket_path, &fd, NULL), 0);
	assert_int_equal(send(fd, text, length, MSG_NOSIGNAL), length);
	char *answer = xcalloc(1, 65536);
	size_t got = 0;
	*ret_closed = false;
	for (;;) {
		struct pollfd poller = {.fd = fd, .events = POLLIN};
		if (poll(&poller, 1, (int)timeout_ms) <= 0)
			return answer;
		ssize_t n = read(fd, answer + got, 65535 - got);
		if (n <= 0) {
			*ret_closed = true;
			return answer;
		}
		got += (size_t)n;
	}
}

static char *raw_request(const char *text)
{
	cleanup_free char *with_close = xasprintf("%sConnection: close\r\n\r\n", text);
	bool closed;
	char *answer = raw_exchange(with_close, strlen(with_close), 5000, &closed);
	assert_true(closed);
	return answer;
}

static void test_status_and_body_on_the_wire(void **state)
{
	(void)state;
	cleanup_free char *accepted = raw_request("POST /v1/nothing HTTP/1.1\r\nHost: x\r\n");
	assert_non_null(strstr(accepted, "HTTP/1.1 202 "));
	assert_non_null(strstr(accepted, "application/json"));
	assert_non_null(strstr(accepted, "\r\n\r\n{}"));
	cleanup_free char *refused = raw_request("POST /v1/refuse HTTP/1.1\r\nHost: x\r\n");
	assert_non_null(strstr(refused, "HTTP/1.1 409 "));
	assert_non_null(strstr(refused, "\"failures\":[\"first\"]"));
	assert_non_null(strstr(refused, "\"code\":\"dest.memory\""));
}

static void test_errors_keep_their_codes(void **state)
{
	(void)state;
	struct http_client *client = new_client(socket_path);
	for (int code = 0; code < ERROR_CODE_COUNT; code++) {
		cleanup_free char *path = xasprintf("/v1/fail/%s", error_code_name((enum error_code)code));
		cleanup_free char *message = xasprintf("because of %s", error_code_name((enum error_code)code));
		cleanup_error struct error *e = NULL;
		json_t *answer = NULL;
		assert_int_equal(http_client_request(client, "POST", path, NULL, 5000, &answer, &e), -1);
		assert_int_equal(e->code, code);
		assert_string_equal(e->message, message);
		assert_true(http_client_answered(client));
		assert_null(answer);
	}
	http_client_free(client);
}

static void expect_error(struct http_client *client, const char *method, const char *path, const json_t *body,
			 enum error_code code)
{
	cleanup_error struct error *e = NULL;
	if (http_client_request(client, method, path, body, 5000, NULL, &e) == 0)
		fail_msg("%s %s was answered", method, path);
	if (e->code != code)
		fail_msg("%s %s: %s (%s)", method, path, e->message, error_code_name(e->code));
	assert_true(http_client_answered(client));
}

static void test_wrong_requests(void **state)
{
	(void)state;
	struct http_client *client = new_client(socket_path);
	cleanup_json json_t *array = json_pack("[i]", 1);
	expect_error(client, "GET", "/v1/none", NULL, ERROR_NOT_FOUND);
	expect_error(client, "GET", "/", NULL, ERROR_NOT_FOUND);
	expect_error(client, "GET", "/v1/echo/", NULL, ERROR_NOT_FOUND);
	expect_error(client, "POST", "/v1/vms//start", NULL, ERROR_NOT_FOUND);
	expect_error(client, "POST", "/v1/vms/a%00b/start", NULL, ERROR_NOT_FOUND);
	expect_error(client, "POST", "/v1/vms/a%zz/start", NULL, ERROR_NOT_FOUND);
	expect_error(client, "POST", "/v1/vms/a/start/now", NULL, ERROR_NOT_FOUND);
	expect_error(client, "PUT", "/v1/echo", NULL, ERROR_UNSUPPORTED);
	expect_error(client, "POST", "/v1/echo", array, ERROR_INVALID_JSON);
	expect_error(client, "POST", "/v1/peer", NULL, ERROR_PERMISSION); /* root is no host */
	http_client_free(client);
	cleanup_free char *answer = raw_request("POST /v1/echo HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n");
	assert_non_null(strstr(answer, " 200 "));
	static const char broken[] =
		"POST /v1/echo HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nConnection: close\r\n\r\n{\"a\":";
	bool closed;
	cleanup_free char *refused = raw_exchange(broken, strlen(broken), 5000, &closed);
	assert_non_null(strstr(refused, " 400 "));
	assert_non_null(strstr(refused, "invalid_json"));
}

static json_t *body_of_length(size_t length)
{
	static const char frame[] = "{\"t\":\"\"}";
	cleanup_free char *text = xmalloc(length);
	memset(text, 'x', length);
	text[length - (sizeof(frame) - 1)] = '\0';
	return json_pack("{s:s}", "t", text);
}

static void test_body_limits(void **state)
{
	(void)state;
	struct http_client *client = new_client(socket_path);
	cleanup_json json_t *most = body_of_length(1024 * 1024), *more = body_of_length(1024 * 1024 + 1),
			    *answer = NULL;
	cleanup_json json_t *large = NULL;
	assert_int_equal(http_client_request(client, "POST", "/v1/echo", most, 10000, &answer, NULL), 0);
	assert_true(json_equal(json_object_get(answer, "body"), most));
	unsigned int calls_before = handler_calls;
	expect_error(client, "POST", "/v1/echo", more, ERROR_TOO_LARGE);
	assert_int_equal(handler_calls, calls_before);
	/* The other way there is room for long lists. */
	assert_int_equal(http_client_request(client, "GET", "/v1/large", NULL, 10000, &large, NULL), 0);
	assert_int_equal(json_string_length(json_object_get(large, "text")), 4000000);
	http_client_free(client);

	/* A body that announces no length is cut off when it has got too long. */
	cleanup_close int fd = -1;
	assert_int_equal(socket_connect_unix(socket_path, &fd, NULL), 0);
	static const char head[] = "POST /v1/echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n";
	assert_int_equal(send(fd, head, strlen(head), MSG_NOSIGNAL), strlen(head));
	char chunk[4096 + 8];
	memcpy(chunk, "1000\r\n", 6);
	memset(chunk + 6, 'x', 4096);
	memcpy(chunk + 6 + 4096, "\r\n", 2);
	size_t sent = 0;
	while (sent < 64 * 1024 * 1024 && send(fd, chunk, sizeof(chunk), MSG_NOSIGNAL) > 0)
		sent += sizeof(chunk);
	assert_true(sent < 4 * 1024 * 1024);
	assert_int_equal(handler_calls, calls_before);
}

/* ---- Several at once, time ---- */

struct waiter {
	pthread_t thread;
	struct http_client *client;
	int rc;
	struct error *e;
	int64_t timeout_ms;
};

static void *run_waiter(void *user)
{
	struct waiter *waiter = user;
	waiter->rc =
		http_client_request(waiter->client, "POST", "/v1/wait", NULL, waiter->timeout_ms, NULL, &waiter->e);
	return NULL;
}

static void start_waiter(struct waiter *waiter, const char *path, int64_t timeout_ms)
{
	*waiter = (struct waiter){.client = new_client(path), .timeout_ms = timeout_ms};
	assert_int_equal(pthread_create(&waiter->thread, NULL, run_waiter, waiter), 0);
}

static void end_waiter(struct waiter *waiter)
{
	pthread_join(waiter->thread, NULL);
	http_client_free(waiter->client);
}

static void test_waiting_handlers_hold_up_nobody(void **state)
{
	(void)state;
	enum { WAITERS = 200 };
	static struct waiter waiters[WAITERS];
	gate_close();
	for (size_t i = 0; i < WAITERS; i++)
		start_waiter(&waiters[i], socket_path, 60000);
	assert_true(gate_wait_inside(WAITERS, 30000)); /* all 200 wait at once */
	struct http_client *client = new_client(socket_path);
	for (size_t i = 0; i < 20; i++)
		assert_int_equal(http_client_request(client, "GET", "/v1/echo", NULL, 5000, NULL, NULL), 0);
	http_client_free(client);
	gate_open();
	for (size_t i = 0; i < WAITERS; i++) {
		end_waiter(&waiters[i]);
		assert_int_equal(waiters[i].rc, 0);
	}
}

static void test_slow_client_holds_up_nobody(void **state)
{
	(void)state;
	int fds[50];
	for (size_t i = 0; i < 50; i++) {
		static const char half[] = "POST /v1/echo HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{";
		assert_int_equal(socket_connect_unix(socket_path, &fds[i], NULL), 0);
		size_t length = i % 2 ? 20 : strlen(half);
		assert_int_equal(send(fds[i], half, length, MSG_NOSIGNAL), length);
	}
	struct http_client *client = new_client(socket_path);
	for (size_t i = 0; i < 20; i++)
		assert_int_equal(http_client_request(client, "GET", "/v1/echo", NULL, 5000, NULL, NULL), 0);
	http_client_free(client);
	for (size_t i = 0; i < 50; i++)
		close(fds[i]);
}

static void test_idle_connections_end_but_waiting_ones_do_not(void **state)
{
	(void)state;
	cleanup_free char *path = xasprintf("%s/idle.sock", folder);
	struct http_server *impatient = start_server(path, 1);
	gate_close();
	struct waiter waiter;
	start_waiter(&waiter, path, 30000);
	assert_true(gate_wait_inside(1, 5000));

	/* One that has had an answer and then says nothing is closed after about 1 s … */
	cleanup_close int fd = -1;
	static const char request[] = "GET /v1/echo HTTP/1.1\r\nHost: x\r\n\r\n";
	char answer[4096];
	assert_int_equal(socket_connect_unix(path, &fd, NULL), 0);
	assert_int_equal(send(fd, request, strlen(request), MSG_NOSIGNAL), strlen(request));
	assert_true(read(fd, answer, sizeof(answer)) > 0);
	struct pollfd poller = {.fd = fd, .events = POLLIN};
	const int64_t before_ms = clock_monotonic_ms();
	assert_int_equal(poll(&poller, 1, 10000), 1);
	assert_int_equal(read(fd, answer, sizeof(answer)), 0);
	assert_in_range(clock_monotonic_ms() - before_ms, 500, 5000);

	/* … and one whose handler has waited for longer than that still gets its answer. */
	poller.fd = -1;
	poll(&poller, 1, 1500);
	gate_open();
	end_waiter(&waiter);
	assert_int_equal(waiter.rc, 0);
	http_server_stop(impatient);
}

static void test_timeout(void **state)
{
	(void)state;
	gate_close();
	struct waiter waiter;
	const int64_t before_ms = clock_monotonic_ms();
	start_waiter(&waiter, socket_path, 200);
	pthread_join(waiter.thread, NULL);
	assert_int_equal(waiter.rc, -1);
	assert_int_equal(waiter.e->code, ERROR_TIMEOUT);
	assert_false(http_client_answered(waiter.client));
	assert_in_range(clock_monotonic_ms() - before_ms, 199, 3000);
	error_free(waiter.e);
	gate_open();

	/* The next request of this client is not mixed up with the late answer. */
	cleanup_json json_t *answer = NULL;
	cleanup_error struct error *e = NULL;
	assert_int_equal(http_client_request(waiter.client, "GET", "/v1/echo", NULL, 5000, &answer, NULL), 0);
	assert_string_equal(json_string_value(json_object_get(answer, "method")), "GET");
	assert_int_equal(http_client_request(waiter.client, "GET", "/v1/echo", NULL, 0, NULL, &e), -1);
	assert_int_equal(e->code, ERROR_TIMEOUT);
	http_client_free(waiter.client);
}

static bool interrupt_when_inside(void *user)
{
	(void)user;
	return gate_wait_inside(1, 0);
}

static void test_interrupt(void **state)
{
	(void)state;
	gate_close();
	struct http_client *client = new_client(socket_path);
	http_client_set_interrupt(client, interrupt_when_inside, NULL);
	cleanup_error struct error *e = NULL;
	const int64_t before_ms = clock_monotonic_ms();
	assert_int_equal(http_client_request(client, "POST", "/v1/wait", NULL, 60000, NULL, &e), -1);
	assert_in_range(clock_monotonic_ms() - before_ms, 0, 1000);
	assert_int_equal(e->code, ERROR_CANCELLED);
	assert_false(http_client_answered(client));
	gate_open();
	http_client_set_interrupt(client, NULL, NULL);
	assert_int_equal(http_client_request(client, "GET", "/v1/echo", NULL, 5000, NULL, NULL), 0);
	http_client_free(client);
}

static void test_connection_is_kept(void **state)
{
	(void)state;
	struct http_client *client = new_client(socket_path), *other = new_client(socket_path);
	json_int_t first = 0;
	for (size_t i = 0; i < 10; i++) {
		cleanup_json json_t *answer = NULL;
		assert_int_equal(http_client_request(client, "POST", "/v1/echo", NULL, 5000, &answer, NULL), 0);
		json_int_t connection = json_integer_value(json_object_get(answer, "connection"));
		assert_true(i == 0 || connection == first);
		first = connection;
		expect_error(client, "POST", "/v1/fail/vm.busy", NULL, ERROR_VM_BUSY); /* an error does not end it */
	}
	cleanup_json json_t *answer = NULL;
	assert_int_equal(http_client_request(other, "POST", "/v1/echo", NULL, 5000, &answer, NULL), 0);
	assert_true(json_integer_value(json_object_get(answer, "connection")) != first);
	http_client_free(client);
	http_client_free(other);
}

/* ---- What the client makes of other servers ---- */

#define OK_ANSWER "HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\n{\"a\": 1}"

static void test_client_repeats_only_get(void **state)
{
	(void)state;
	cleanup_free char *path = xasprintf("%s/script.sock", folder);
	/* The second request on a kept connection is read (and perhaps carried out), then the connection breaks. */
	static const char *const answers[] = {OK_ANSWER, NULL, OK_ANSWER, NULL, OK_ANSWER};
	struct scripted_server script;
	int listener = -1;
	assert_int_equal(socket_listen_unix(path, 0600, &listener, NULL), 0);
	scripted_server_start(&script, listener, answers, 5);

	struct http_client *client = new_client(path);
	cleanup_error struct error *e = NULL;
	assert_int_equal(http_client_request(client, "POST", "/x", NULL, 5000, NULL, NULL), 0);
	assert_int_equal(http_client_request(client, "POST", "/x", NULL, 5000, NULL, &e), -1);
	assert_int_equal(e->code, ERROR_DAEMON_UNREACHABLE);
	assert_false(http_client_answered(client));
	assert_int_equal(script.requests, 2); /* it was not sent again */
	assert_int_equal(http_client_request(client, "POST", "/x", NULL, 5000, NULL, NULL), 0);
	assert_int_equal(script.requests, 3);
	assert_int_equal(http_client_request(client, "GET", "/x", NULL, 5000, NULL, NULL), 0);
	assert_int_equal(script.requests, 5);
	http_client_free(client);
	scripted_server_stop(&script);
}

static void test_client_and_strange_answers(void **state)
{
	(void)state;
	cleanup_free char *path = xasprintf("%s/strange.sock", folder);
	static const char *const answers[] = {
		/* In brackets, so that clang sees that no comma is missing. */
		("HTTP/1.1 418 No\r\nContent-Length: 59\r\n\r\n{\"error\": {\"code\": \"of.a.later.version\", "
		 "\"message\": \"why\"}}"),
		"HTTP/1.1 500 No\r\nContent-Length: 5\r\n\r\n<html",
		"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n<html",
		"HTTP/1.1 302 Found\r\nLocation: http://198.51.100.1/\r\nContent-Length: 0\r\n\r\n",
		"HTTP/1.1 200 OK\r\nContent-Length: 20000000\r\n\r\nx",
		"\r\n\r\nrubbish",
	};
	static const enum error_code codes[] = {ERROR_PEER_REFUSED,  ERROR_PEER_PROTOCOL, ERROR_PEER_PROTOCOL,
						ERROR_PEER_PROTOCOL, ERROR_TIMEOUT,       ERROR_DAEMON_UNREACHABLE};
	struct scripted_server script;
	int listener = -1;
	assert_int_equal(socket_listen_unix(path, 0600, &listener, NULL), 0);
	scripted_server_start(&script, listener, answers, 6);
	for (size_t i = 0; i < 6; i++) {
		struct http_client *client = new_client(path);
		cleanup_error struct error *e = NULL;
		assert_int_equal(http_client_request(client, "POST", "/x", NULL, 500, NULL, &e), -1);
		if (e->code != codes[i])
			fail_msg("answer %zu: %s (%s)", i, e->message, error_code_name(e->code));
		http_client_free(client);
	}
	scripted_server_stop(&script);
}

static void test_nobody_there(void **state)
{
	(void)state;
	cleanup_free char *path = xasprintf("%s/nobody.sock", folder);
	struct http_client *client = new_client(path);
	cleanup_error struct error *e = NULL;
	assert_int_equal(http_client_request(client, "GET", "/v1/echo", NULL, 5000, NULL, &e), -1);
	assert_int_equal(e->code, ERROR_DAEMON_UNREACHABLE);
	assert_non_null(strstr(e->message, path));
	assert_false(http_client_answered(client));
	http_client_free(client);
}

/* ---- Who may ask, stopping ---- */

static void test_only_root_may_ask(void **state)
{
	(void)state;
	if (geteuid() != 0)
		skip();
	/* Even if somebody opens up the socket's mode. */
	assert_int_equal(chmod(folder, 0755), 0);
	assert_int_equal(chmod(socket_path, 0666), 0);
	unsigned int calls_before = handler_calls;
	pid_t child = fork();
	if (child == 0) {
		if (setgid(65534) < 0 || setuid(65534) < 0)
			_exit(1);
		int fd = -1;
		static const char request[] = "GET /v1/echo HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
		char answer[4096] = "";
		if (socket_connect_unix(socket_path, &fd, NULL) < 0 || write(fd, request, strlen(request)) < 0 ||
		    read(fd, answer, sizeof(answer) - 1) <= 0)
			_exit(2);
		_exit(strstr(answer, " 403 ") && strstr(answer, "permission_denied") ? 0 : 3);
	}
	int status = 0;
	assert_int_equal(waitpid(child, &status, 0), child);
	assert_true(WIFEXITED(status));
	assert_int_equal(WEXITSTATUS(status), 0);
	assert_int_equal(handler_calls, calls_before);
	assert_int_equal(chmod(socket_path, 0600), 0);
}

static void *stop_server(void *user)
{
	http_server_stop(user);
	return NULL;
}

static void test_stop_finishes_answers(void **state)
{
	(void)state;
	cleanup_free char *path = xasprintf("%s/stop.sock", folder);
	struct http_server *stopping = start_server(path, 0);
	struct http_client *kept = new_client(path);
	assert_int_equal(http_client_request(kept, "GET", "/v1/echo", NULL, 5000, NULL, NULL), 0);
	gate_close();
	struct waiter waiter;
	pthread_t stopper;
	start_waiter(&waiter, path, 30000);
	assert_true(gate_wait_inside(1, 5000));
	assert_int_equal(pthread_create(&stopper, NULL, stop_server, stopping), 0);

	/* Nobody new gets in, on a new connection or on one that was kept … */
	struct http_client *late = new_client(path);
	cleanup_error struct error *e = NULL;
	while (access(path, F_OK) == 0)
		sched_yield();
	assert_int_equal(http_client_request(late, "GET", "/v1/echo", NULL, 5000, NULL, &e), -1);
	assert_int_equal(e->code, ERROR_DAEMON_UNREACHABLE);
	http_client_free(late);
	for (;;) { /* the flag is set a moment after the socket has gone */
		cleanup_error struct error *why = NULL;
		if (http_client_request(kept, "GET", "/v1/echo", NULL, 5000, NULL, &why) == 0)
			continue;
		assert_true(why->code == ERROR_SHUTTING_DOWN || why->code == ERROR_DAEMON_UNREACHABLE);
		break;
	}
	http_client_free(kept);

	/* … but whoever is being answered gets the answer. */
	gate_open();
	pthread_join(stopper, NULL);
	end_waiter(&waiter);
	assert_int_equal(waiter.rc, 0);
}

static void test_second_server_on_the_socket(void **state)
{
	(void)state;
	struct http_server *second = NULL;
	const struct http_server_options options = {.unix_path = socket_path, .routes = routes};
	cleanup_error struct error *e = NULL;
	assert_int_equal(http_server_start(&options, &second, &e), -1);
	assert_int_equal(e->code, ERROR_EXISTS);
	struct http_client *client = new_client(socket_path); /* the first is not harmed */
	assert_int_equal(http_client_request(client, "GET", "/v1/echo", NULL, 5000, NULL, NULL), 0);
	http_client_free(client);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_request_and_answer),
		cmocka_unit_test(test_methods_and_empty_bodies),
		cmocka_unit_test(test_status_and_body_on_the_wire),
		cmocka_unit_test(test_errors_keep_their_codes),
		cmocka_unit_test(test_wrong_requests),
		cmocka_unit_test(test_body_limits),
		cmocka_unit_test(test_waiting_handlers_hold_up_nobody),
		cmocka_unit_test(test_slow_client_holds_up_nobody),
		cmocka_unit_test(test_idle_connections_end_but_waiting_ones_do_not),
		cmocka_unit_test(test_timeout),
		cmocka_unit_test(test_interrupt),
		cmocka_unit_test(test_connection_is_kept),
		cmocka_unit_test(test_client_repeats_only_get),
		cmocka_unit_test(test_client_and_strange_answers),
		cmocka_unit_test(test_nobody_there),
		cmocka_unit_test(test_only_root_may_ask),
		cmocka_unit_test(test_stop_finishes_answers),
		cmocka_unit_test(test_second_server_on_the_socket),
	};
	return cmocka_run_group_tests(tests, start, stop);
}
