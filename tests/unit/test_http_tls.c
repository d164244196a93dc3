/* SPDX-License-Identifier: Apache-2.0 */
/*
 * HTTP over mutual TLS on the loopback: who gets in and as what, what both sides say about bad certificates, that
 * nobody without a certificate gets a byte of an answer, renewal while running, many clients at once, and latency.
 */
#include "fakes/pki_fixture.h"

#include <arpa/inet.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/clock.h"
#include "net/http_client.h"
#include "net/http_server.h"
#include "net/socket.h"

static char folder[] = "/tmp/ferry-test-tls-XXXXXX";
static struct http_server *server;
static uint16_t port;
static struct tls_files host_a, host_b, alice, stranger, old_client, old_host, fake_host;
static atomic_uint handler_calls;

static struct {
	pthread_mutex_t mutex;
	pthread_cond_t all;
	unsigned int inside, wanted;
} meeting = {.mutex = PTHREAD_MUTEX_INITIALIZER};

static int on_who(void *user, struct http_request *request, json_t **ret_body, struct error **e)
{
	(void)user;
	(void)e;
	handler_calls++;
	*ret_body = json_pack("{s:s, s:s, s:I}", "name", request->caller_name, "as",
			      request->caller == HTTP_CALLER_HOST ? "host" : "client", "connection",
			      (json_int_t)(intptr_t)request->connection);
	return 0;
}

/* Answers once `wanted` clients are inside at the same time. */
static int on_meet(void *user, struct http_request *request, json_t **ret_body, struct error **e)
{
	(void)user;
	(void)request;
	(void)ret_body;
	const int64_t deadline_us = clock_monotonic_us() + 30000000;
	LOCK_SCOPE(&meeting.mutex);
	meeting.inside++;
	pthread_cond_broadcast(&meeting.all);
	while (meeting.inside < meeting.wanted)
		if (!cond_wait_until(&meeting.all, &meeting.mutex, deadline_us))
			return error_set(e, ERROR_TIMEOUT, "%u of %u came", meeting.inside, meeting.wanted);
	return 0;
}

static const struct http_route routes[] = {
	{"POST", "/v1/client", HTTP_CALLER_CLIENT, on_who}, {"POST", "/v1/host", HTTP_CALLER_HOST, on_who},
	{"POST", "/v1/both", HTTP_CALLER_CLIENT, on_who},   {"POST", "/v1/both", HTTP_CALLER_HOST, on_who},
	{"POST", "/v1/meet", HTTP_CALLER_CLIENT, on_meet},  {NULL},
};

static uint16_t free_port(void)
{
	int fd = -1;
	struct sockaddr_in at;
	socklen_t length = sizeof(at);
	assert_int_equal(socket_listen_tcp("127.0.0.1", 0, &fd, NULL), 0);
	assert_int_equal(getsockname(fd, (struct sockaddr *)&at, &length), 0);
	close(fd);
	return ntohs(at.sin_port);
}

static void issue(const char *ca, const char *out, const char *name, enum tls_role role, bool expired,
		  struct tls_files *files)
{
	cleanup_free char *ca_folder = xasprintf("%s/%s", folder, ca), *out_folder = xasprintf("%s/%s", folder, out);
	fixture_issue(ca_folder, out_folder, name, role, expired, files);
}

static int start(void **state)
{
	(void)state;
	cond_init(&meeting.all);
	if (!mkdtemp(folder))
		return -1;
	cleanup_free char *ca = xasprintf("%s/ca", folder), *other_ca = xasprintf("%s/other-ca", folder);
	if (pki_init(ca, NULL) < 0 || pki_init(other_ca, NULL) < 0)
		return -1;
	issue("ca", "host-a", "host-a", TLS_ROLE_HOST, false, &host_a);
	issue("ca", "host-b", "host-b", TLS_ROLE_HOST, false, &host_b);
	issue("ca", "alice", "alice", TLS_ROLE_CLIENT, false, &alice);
	issue("other-ca", "stranger", "alice", TLS_ROLE_CLIENT, false, &stranger);
	issue("ca", "old-client", "bob", TLS_ROLE_CLIENT, true, &old_client);
	issue("ca", "old-host", "host-a", TLS_ROLE_HOST, true, &old_host);
	issue("ca", "fake-host", "host-a", TLS_ROLE_CLIENT, false, &fake_host); /* a client who is called like a host */
	port = free_port();
	const struct http_server_options options = {
		.address = "127.0.0.1", .port = port, .files = &host_a, .routes = routes};
	return http_server_start(&options, &server, NULL);
}

static int stop(void **state)
{
	(void)state;
	http_server_stop(server);
	struct tls_files *const all[] = {&host_a, &host_b, &alice, &stranger, &old_client, &old_host, &fake_host};
	for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++)
		tls_files_done(all[i]);
	return file_remove_tree(folder, NULL);
}

static struct http_client *new_client(const char *name, uint16_t to_port, const struct tls_files *files)
{
	struct http_client *client = NULL;
	cleanup_error struct error *e = NULL;
	if (http_client_new_tls(name, "127.0.0.1", to_port, files, &client, &e) < 0)
		fail_msg("%s", e->message);
	return client;
}

static void expect_error(struct http_client *client, const char *path, enum error_code code, const char *words)
{
	cleanup_error struct error *e = NULL;
	if (http_client_request(client, "POST", path, NULL, 5000, NULL, &e) == 0)
		fail_msg("%s was answered", path);
	if (e->code != code || !strstr(e->message, words))
		fail_msg("%s: %s (%s) instead of '%s'", path, e->message, error_code_name(e->code), words);
}

/* ---- A TLS peer that is not ours: a client or server of plain GnuTLS, with files (or without) ---- */

struct raw_tls {
	gnutls_certificate_credentials_t credentials;
	gnutls_session_t session;
	int fd;
};

static void raw_tls_init(struct raw_tls *raw, int fd, bool is_server, const struct tls_files *files)
{
	raw->fd = fd;
	assert_true(gnutls_certificate_allocate_credentials(&raw->credentials) >= 0);
	if (files)
		assert_true(gnutls_certificate_set_x509_key_file(raw->credentials, files->cert_path, files->key_path,
								 GNUTLS_X509_FMT_PEM) >= 0);
	assert_true(gnutls_init(&raw->session, (is_server ? GNUTLS_SERVER : GNUTLS_CLIENT) | GNUTLS_NO_SIGNAL |
						       GNUTLS_FORCE_CLIENT_CERT) >= 0);
	gnutls_set_default_priority(raw->session);
	gnutls_credentials_set(raw->session, GNUTLS_CRD_CERTIFICATE, raw->credentials);
	gnutls_transport_set_int(raw->session, fd);
	gnutls_handshake_set_timeout(raw->session, 5000);
	gnutls_record_set_timeout(raw->session, 5000);
}

static int raw_tls_handshake(struct raw_tls *raw)
{
	int rc;
	do
		rc = gnutls_handshake(raw->session);
	while (rc < 0 && !gnutls_error_is_fatal(rc));
	return rc;
}

static void raw_tls_done(struct raw_tls *raw)
{
	gnutls_deinit(raw->session);
	gnutls_certificate_free_credentials(raw->credentials);
	close(raw->fd);
}

/* Connect with files, send a request at once and read: how many bytes come back, or the negative error that comes
 * instead. */
static ssize_t raw_tls_try(const struct tls_files *files, int *ret_alert)
{
	static const char request[] = "POST /v1/both HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n";
	char answer[4096];
	struct raw_tls raw;
	int fd = -1;
	assert_int_equal(socket_connect_tcp("127.0.0.1", port, 5000, &fd, NULL), 0);
	raw_tls_init(&raw, fd, false, files);
	ssize_t n = raw_tls_handshake(&raw);
	if (n >= 0) {
		gnutls_record_send(raw.session, request, strlen(request));
		do
			n = gnutls_record_recv(raw.session, answer, sizeof(answer));
		while (n == GNUTLS_E_INTERRUPTED || n == GNUTLS_E_WARNING_ALERT_RECEIVED);
	}
	*ret_alert = n == GNUTLS_E_FATAL_ALERT_RECEIVED ? (int)gnutls_alert_get(raw.session) : -1;
	raw_tls_done(&raw);
	return n;
}

/* A TLS server with any certificate, for one connection: it never answers. */
struct raw_server {
	pthread_t thread;
	int listener;
	uint16_t port;
	const struct tls_files *files;
	ssize_t got; /* bytes of a request that the client sent to it */
};

static void *raw_server_run(void *user)
{
	struct raw_server *raw_server = user;
	struct raw_tls raw;
	char text[4096];
	int fd = accept(raw_server->listener, NULL, NULL);
	raw_tls_init(&raw, fd, true, raw_server->files);
	raw_server->got = 0;
	if (raw_tls_handshake(&raw) >= 0)
		raw_server->got = gnutls_record_recv(raw.session, text, sizeof(text));
	raw_tls_done(&raw);
	return NULL;
}

static void raw_server_start(struct raw_server *raw_server, const struct tls_files *files)
{
	struct sockaddr_in at;
	socklen_t length = sizeof(at);
	raw_server->files = files;
	assert_int_equal(socket_listen_tcp("127.0.0.1", 0, &raw_server->listener, NULL), 0);
	assert_int_equal(getsockname(raw_server->listener, (struct sockaddr *)&at, &length), 0);
	raw_server->port = ntohs(at.sin_port);
	assert_int_equal(pthread_create(&raw_server->thread, NULL, raw_server_run, raw_server), 0);
}

static void raw_server_stop(struct raw_server *raw_server)
{
	pthread_join(raw_server->thread, NULL);
	close(raw_server->listener);
}

/* ---- Who gets in ---- */

static void test_roles(void **state)
{
	(void)state;
	struct http_client *as_client = new_client("host-a", port, &alice),
			   *as_host = new_client("host-a", port, &host_b);
	cleanup_json json_t *client_answer = NULL, *host_answer = NULL;
	assert_int_equal(http_client_request(as_client, "POST", "/v1/both", NULL, 5000, &client_answer, NULL), 0);
	assert_string_equal(json_string_value(json_object_get(client_answer, "name")), "alice");
	assert_string_equal(json_string_value(json_object_get(client_answer, "as")), "client");
	assert_int_equal(http_client_request(as_host, "POST", "/v1/both", NULL, 5000, &host_answer, NULL), 0);
	assert_string_equal(json_string_value(json_object_get(host_answer, "name")), "host-b");
	assert_string_equal(json_string_value(json_object_get(host_answer, "as")), "host");

	assert_int_equal(http_client_request(as_client, "POST", "/v1/client", NULL, 5000, NULL, NULL), 0);
	assert_int_equal(http_client_request(as_host, "POST", "/v1/host", NULL, 5000, NULL, NULL), 0);
	unsigned int calls_before = handler_calls;
	expect_error(as_client, "/v1/host", ERROR_PERMISSION, "alice");
	expect_error(as_host, "/v1/client", ERROR_PERMISSION, "host-b");
	assert_int_equal(handler_calls, calls_before);
	http_client_free(as_client);
	http_client_free(as_host);
}

static void test_no_certificate_no_answer(void **state)
{
	(void)state;
	unsigned int calls_before = handler_calls;
	int alert = 0;
	assert_true(raw_tls_try(&alice, &alert) > 0); /* so that the rest shows something */
	assert_int_equal(handler_calls, calls_before + 1);
	assert_true(raw_tls_try(NULL, &alert) < 0);
	assert_int_equal(handler_calls, calls_before + 1);

	/* Nor is there an answer to plain text. */
	cleanup_close int fd = -1;
	static const char request[] = "POST /v1/both HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n";
	char answer[4096] = "";
	assert_int_equal(socket_connect_tcp("127.0.0.1", port, 5000, &fd, NULL), 0);
	assert_int_equal(send(fd, request, strlen(request), MSG_NOSIGNAL), strlen(request));
	ssize_t n = recv(fd, answer, sizeof(answer) - 1, 0);
	assert_true(n <= 0 || !strstr(answer, "HTTP/"));
	assert_int_equal(handler_calls, calls_before + 1);
}

static void test_bad_client_certificates(void **state)
{
	(void)state;
	unsigned int calls_before = handler_calls;
	int alert = 0;
	assert_true(raw_tls_try(&stranger, &alert) < 0);
	assert_int_equal(alert, GNUTLS_A_UNKNOWN_CA);
	assert_true(raw_tls_try(&old_client, &alert) < 0);
	assert_int_equal(alert, GNUTLS_A_CERTIFICATE_EXPIRED);
	assert_int_equal(handler_calls, calls_before);
}

static void test_only_tls_1_3(void **state)
{
	(void)state;
	int fd = -1;
	struct raw_tls raw;
	assert_int_equal(socket_connect_tcp("127.0.0.1", port, 5000, &fd, NULL), 0);
	raw_tls_init(&raw, fd, false, &alice);
	assert_true(gnutls_priority_set_direct(raw.session, "NORMAL:-VERS-ALL:+VERS-TLS1.2", NULL) >= 0);
	assert_true(raw_tls_handshake(&raw) < 0);
	raw_tls_done(&raw);
}

/* ---- What the client says ---- */

static void test_client_of_another_ca(void **state)
{
	(void)state;
	/* Each side trusts another CA: our own check of the server fails first. */
	struct http_client *client = new_client("host-a", port, &stranger);
	expect_error(client, "/v1/both", ERROR_TLS, "not issued by the CA that we trust");
	assert_false(http_client_answered(client));
	http_client_free(client);

	/* A client that trusts the server but shows a certificate of another CA, as after a botched re-issue. */
	struct tls_files mixed = {host_a.ca_path, stranger.cert_path, stranger.key_path};
	struct http_client *none = NULL;
	cleanup_error struct error *e = NULL;
	assert_int_equal(http_client_new_tls("host-a", "127.0.0.1", port, &mixed, &none, &e), -1);
	assert_int_equal(e->code, ERROR_PKI);
	assert_non_null(strstr(e->message, "not issued by the CA"));
}

/* All is well as far as the client can see, but the server does not know its CA. */
static void test_server_refuses_client(void **state)
{
	(void)state;
	cleanup_free char *bundle = xasprintf("%s/bundle.crt", folder), *ours = NULL, *theirs = NULL;
	assert_int_equal(file_read(alice.ca_path, 65536, &ours, NULL, NULL), 0);
	assert_int_equal(file_read(stranger.ca_path, 65536, &theirs, NULL, NULL), 0);
	cleanup_free char *both = xasprintf("%s%s", ours, theirs);
	assert_int_equal(file_write_atomic(bundle, both, strlen(both), 0644, NULL), 0);
	struct tls_files files = {bundle, stranger.cert_path, stranger.key_path};
	for (size_t i = 0; i < 20; i++) { /* the alert races with the request */
		struct http_client *client = new_client("host-a", port, &files);
		expect_error(client, "/v1/both", ERROR_TLS, "did not accept our certificate");
		assert_false(http_client_answered(client));
		http_client_free(client);
	}
}

static void test_expired_own_certificate(void **state)
{
	(void)state;
	struct http_client *none = NULL;
	cleanup_error struct error *e = NULL;
	assert_int_equal(http_client_new_tls("host-a", "127.0.0.1", port, &old_client, &none, &e), -1);
	assert_int_equal(e->code, ERROR_PKI);
	assert_non_null(strstr(e->message, "expired on"));
	assert_non_null(strstr(e->message, "ferry pki renew"));

	/* One that expires while the program runs. */
	struct tls_files files;
	cleanup_free char *ca = xasprintf("%s/ca", folder);
	issue("ca", "expiring", "carol", TLS_ROLE_CLIENT, false, &files);
	struct http_client *client = new_client("host-a", port, &files);
	fixture_move_times(ca, files.cert_path, time(NULL) - 2000, time(NULL) - 1000);
	expect_error(client, "/v1/both", ERROR_TLS, "expired on");
	assert_false(http_client_answered(client));
	http_client_free(client);
	tls_files_done(&files);
}

static void test_expired_server_certificate(void **state)
{
	(void)state;
	struct raw_server raw_server;
	raw_server_start(&raw_server, &old_host);
	struct http_client *client = new_client("host-a", raw_server.port, &alice);
	expect_error(client, "/v1/both", ERROR_TLS, "has expired");
	http_client_free(client);
	raw_server_stop(&raw_server);
	assert_true(raw_server.got <= 0); /* not a byte of the request went to it */

	/* And ferryd does not start with one. */
	struct http_server *none = NULL;
	const struct http_server_options options = {
		.address = "127.0.0.1", .port = free_port(), .files = &old_host, .routes = routes};
	cleanup_error struct error *e = NULL;
	assert_int_equal(http_server_start(&options, &none, &e), -1);
	assert_int_equal(e->code, ERROR_PKI);
}

static void test_wrong_host_name(void **state)
{
	(void)state;
	struct http_client *client = new_client("host-b", port, &alice);
	expect_error(client, "/v1/both", ERROR_TLS, "another name");
	http_client_free(client);
}

/* A client's certificate with the host's name, signed by our CA: it must not be able to play the host. */
static void test_client_certificate_as_server(void **state)
{
	(void)state;
	struct raw_server raw_server;
	raw_server_start(&raw_server, &fake_host);
	struct http_client *client = new_client("host-a", raw_server.port, &alice);
	expect_error(client, "/v1/both", ERROR_TLS, "of a client, not of a host");
	assert_false(http_client_answered(client));
	http_client_free(client);
	raw_server_stop(&raw_server);
	assert_true(raw_server.got <= 0);
}

static void test_nobody_there(void **state)
{
	(void)state;
	struct http_client *client = new_client("host-a", free_port(), &alice);
	expect_error(client, "/v1/both", ERROR_DAEMON_UNREACHABLE, "host-a");
	http_client_free(client);
}

/* Somebody who listens but never says a word. */
static void test_silent_server(void **state)
{
	(void)state;
	cleanup_close int listener = -1;
	struct sockaddr_in at;
	socklen_t length = sizeof(at);
	assert_int_equal(socket_listen_tcp("127.0.0.1", 0, &listener, NULL), 0);
	assert_int_equal(getsockname(listener, (struct sockaddr *)&at, &length), 0);
	struct http_client *client = new_client("host-a", ntohs(at.sin_port), &alice);
	cleanup_error struct error *e = NULL;
	const int64_t before_ms = clock_monotonic_ms();
	assert_int_equal(http_client_request(client, "POST", "/v1/both", NULL, 300, NULL, &e), -1);
	assert_in_range(clock_monotonic_ms() - before_ms, 299, 3000);
	assert_int_equal(e->code, ERROR_TIMEOUT);
	http_client_free(client);
}

/* ---- Renewal ---- */

static gnutls_datum_t server_certificate(void)
{
	int fd = -1;
	struct raw_tls raw;
	unsigned int count = 0;
	assert_int_equal(socket_connect_tcp("127.0.0.1", port, 5000, &fd, NULL), 0);
	raw_tls_init(&raw, fd, false, &alice);
	assert_true(raw_tls_handshake(&raw) >= 0);
	const gnutls_datum_t *shown = gnutls_certificate_get_peers(raw.session, &count);
	gnutls_datum_t copy = {xmalloc(shown[0].size), shown[0].size};
	memcpy(copy.data, shown[0].data, copy.size);
	raw_tls_done(&raw);
	return copy;
}

/* Answers one request on each connection, then dies in the middle of the next: no farewell, as when a process is killed. */
static void *dying_server_run(void *user)
{
	static const char answer[] = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}";
	struct raw_server *raw_server = user;
	char text[4096];
	for (;;) {
		struct raw_tls raw;
		int fd = accept(raw_server->listener, NULL, NULL);
		if (fd < 0)
			return NULL;
		raw_tls_init(&raw, fd, true, raw_server->files);
		if (raw_tls_handshake(&raw) >= 0 && gnutls_record_recv(raw.session, text, sizeof(text)) > 0 &&
		    gnutls_record_send(raw.session, answer, sizeof(answer) - 1) > 0)
			raw_server->got += gnutls_record_recv(raw.session, text, sizeof(text)) > 0;
		gnutls_deinit(raw.session);
		gnutls_certificate_free_credentials(raw.credentials);
		close(fd);
	}
}

static void test_kept_connection_dies(void **state)
{
	(void)state;
	struct raw_server dying = {.files = &host_a};
	struct sockaddr_in at;
	socklen_t length = sizeof(at);
	assert_int_equal(socket_listen_tcp("127.0.0.1", 0, &dying.listener, NULL), 0);
	assert_int_equal(getsockname(dying.listener, (struct sockaddr *)&at, &length), 0);
	assert_int_equal(pthread_create(&dying.thread, NULL, dying_server_run, &dying), 0);
	struct http_client *client = new_client("host-a", ntohs(at.sin_port), &host_b);
	/* Once for all that may be said twice … */
	http_client_set_repeatable(client);
	assert_int_equal(http_client_request(client, "POST", "/v1/both", NULL, 5000, NULL, NULL), 0);
	assert_int_equal(http_client_request(client, "POST", "/v1/both", NULL, 5000, NULL, NULL), 0);
	http_client_free(client);
	/* … and what may not is not a matter of certificates. */
	client = new_client("host-a", ntohs(at.sin_port), &host_b);
	assert_int_equal(http_client_request(client, "POST", "/v1/both", NULL, 5000, NULL, NULL), 0);
	expect_error(client, "/v1/both", ERROR_DAEMON_UNREACHABLE, "host-a");
	assert_false(http_client_answered(client));
	http_client_free(client);
	shutdown(dying.listener, SHUT_RDWR);
	raw_server_stop(&dying);
	assert_true(dying.got >= 2);
}

/* A connection that ends before the handshake has: its listener's process was killed. */
static void *closing_server_run(void *user)
{
	struct raw_server *raw_server = user;
	int fd = accept(raw_server->listener, NULL, NULL);
	shutdown(fd, SHUT_WR);
	char text[4096];
	while (read(fd, text, sizeof(text)) > 0)
		;
	close(fd);
	return NULL;
}

static void test_killed_before_the_handshake(void **state)
{
	(void)state;
	struct raw_server closing = {.files = &host_a};
	struct sockaddr_in at;
	socklen_t length = sizeof(at);
	assert_int_equal(socket_listen_tcp("127.0.0.1", 0, &closing.listener, NULL), 0);
	assert_int_equal(getsockname(closing.listener, (struct sockaddr *)&at, &length), 0);
	assert_int_equal(pthread_create(&closing.thread, NULL, closing_server_run, &closing), 0);
	struct http_client *client = new_client("host-a", ntohs(at.sin_port), &host_b);
	expect_error(client, "/v1/both", ERROR_DAEMON_UNREACHABLE, "closed the connection");
	http_client_free(client);
	raw_server_stop(&closing);
}

static void test_renewal_while_running(void **state)
{
	(void)state;
	cleanup_free char *ca = xasprintf("%s/ca", folder), *own = xasprintf("%s/host-a", folder);
	struct http_client *kept = new_client("host-a", port, &alice);
	cleanup_json json_t *before = NULL, *after = NULL;
	assert_int_equal(http_client_request(kept, "POST", "/v1/both", NULL, 5000, &before, NULL), 0);
	gnutls_datum_t old = server_certificate();
	assert_int_equal(pki_renew(ca, own, TLS_ROLE_HOST, NULL), 0);
	gnutls_datum_t new = server_certificate();
	assert_true(old.size != new.size || memcmp(old.data, new.data, old.size) != 0);
	/* Connections that stand go on with the old one. */
	assert_int_equal(http_client_request(kept, "POST", "/v1/both", NULL, 5000, &after, NULL), 0);
	assert_true(json_equal(json_object_get(before, "connection"), json_object_get(after, "connection")));
	http_client_free(kept);

	/* Rubbish in the file leaves the last good certificate in use. */
	cleanup_free char *good = NULL;
	assert_int_equal(file_read(host_a.cert_path, 65536, &good, NULL, NULL), 0);
	assert_int_equal(file_write_atomic(host_a.cert_path, "rubbish", 7, 0644, NULL), 0);
	gnutls_datum_t still = server_certificate();
	assert_int_equal(still.size, new.size);
	assert_memory_equal(still.data, new.data, new.size);
	assert_int_equal(file_write_atomic(host_a.cert_path, good, strlen(good), 0644, NULL), 0);
	free(old.data);
	free(new.data);
	free(still.data);
}

/* ---- Many at once, latency ---- */

struct visitor {
	pthread_t thread;
	int rc;
	char reason[256];
};

static void *run_visitor(void *user)
{
	struct visitor *visitor = user;
	struct http_client *client = NULL;
	cleanup_error struct error *e = NULL;
	visitor->rc = http_client_new_tls("host-a", "127.0.0.1", port, &alice, &client, &e);
	if (visitor->rc >= 0)
		visitor->rc = http_client_request(client, "POST", "/v1/meet", NULL, 30000, NULL, &e);
	snprintf(visitor->reason, sizeof(visitor->reason), "%s", e ? e->message : "");
	http_client_free(client);
	return NULL;
}

static void test_200_clients_at_once(void **state)
{
	(void)state;
	static struct visitor visitors[200];
	/* Meanwhile 50 strangers hold connections without a handshake. */
	int strangers[50];
	for (size_t i = 0; i < 50; i++)
		assert_int_equal(socket_connect_tcp("127.0.0.1", port, 5000, &strangers[i], NULL), 0);
	meeting.inside = 0;
	meeting.wanted = 200;
	for (size_t i = 0; i < 200; i++)
		assert_int_equal(pthread_create(&visitors[i].thread, NULL, run_visitor, &visitors[i]), 0);
	for (size_t i = 0; i < 200; i++)
		pthread_join(visitors[i].thread, NULL);
	for (size_t i = 0; i < 200; i++)
		if (visitors[i].rc < 0)
			fail_msg("client %zu: %s", i, visitors[i].reason);
	for (size_t i = 0; i < 50; i++)
		close(strangers[i]);
}

static void test_one_connection_and_latency(void **state)
{
	(void)state;
	enum { ROUNDS = 500 };
	struct http_client *client = new_client("host-a", port, &host_b);
	cleanup_json json_t *body = json_pack("{s:s, s:i}", "vm", "tiny", "epoch", 3);
	json_int_t connection = 0;
	const int64_t before_us = clock_monotonic_us();
	for (size_t i = 0; i < ROUNDS; i++) {
		cleanup_json json_t *answer = NULL;
		assert_int_equal(http_client_request(client, "POST", "/v1/host", body, 5000, &answer, NULL), 0);
		json_int_t now = json_integer_value(json_object_get(answer, "connection"));
		assert_true(i == 0 || now == connection);
		connection = now;
	}
	int64_t mean_us = (clock_monotonic_us() - before_us) / ROUNDS;
	http_client_free(client);
	print_message("# round trip %lld us\n", (long long)mean_us);
	/* 0.05 ms on an idle machine; a delayed acknowledgement (40 ms) or Nagle would show even on a busy one. */
	assert_true(mean_us < 10000);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_roles),
		cmocka_unit_test(test_no_certificate_no_answer),
		cmocka_unit_test(test_bad_client_certificates),
		cmocka_unit_test(test_only_tls_1_3),
		cmocka_unit_test(test_client_of_another_ca),
		cmocka_unit_test(test_server_refuses_client),
		cmocka_unit_test(test_expired_own_certificate),
		cmocka_unit_test(test_expired_server_certificate),
		cmocka_unit_test(test_wrong_host_name),
		cmocka_unit_test(test_client_certificate_as_server),
		cmocka_unit_test(test_nobody_there),
		cmocka_unit_test(test_silent_server),
		cmocka_unit_test(test_kept_connection_dies),
		cmocka_unit_test(test_killed_before_the_handshake),
		cmocka_unit_test(test_renewal_while_running),
		cmocka_unit_test(test_200_clients_at_once),
		cmocka_unit_test(test_one_connection_and_latency),
	};
	return cmocka_run_group_tests(tests, start, stop);
}
