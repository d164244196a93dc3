/* SPDX-License-Identifier: Apache-2.0 */
/* The gate of the relay on the loopback: who gets in, who does not, and what both sides say about it. */
#include "fakes/pki_fixture.h"

#include <pthread.h>
#include <sys/socket.h>
#include <unistd.h>

#include "net/socket.h"
#include "relay/gate.h"

#define LONG_MS 20000
#define TICKET "0123456789abcdef0123456789abcdef"
#define OTHER_TICKET "0123456789abcdef0123456789abcdee"

static char folder[] = "/tmp/ferry-test-gate-XXXXXX";
static struct tls_files host_a, host_b, alice, stranger;
static struct relay_gate *gate;

/* What is let in, one at a time. */
static struct {
	pthread_mutex_t mutex;
	pthread_cond_t changed;
	struct relay_connection *connection;
	unsigned int count;
} door = {.mutex = PTHREAD_MUTEX_INITIALIZER};

static void let_in(void *user, struct relay_connection *connection)
{
	assert_ptr_equal(user, &door);
	LOCK_SCOPE(&door.mutex);
	relay_connection_free(door.connection);
	door.connection = connection;
	door.count++;
	pthread_cond_broadcast(&door.changed);
}

static struct relay_connection *await_guest(void)
{
	const int64_t until_us = clock_monotonic_us() + LONG_MS * 1000;
	LOCK_SCOPE(&door.mutex);
	while (!door.connection)
		assert_true(cond_wait_until(&door.changed, &door.mutex, until_us));
	return take_ptr(door.connection);
}

static int setup(void **state)
{
	(void)state;
	if (!mkdtemp(folder))
		return -1;
	cond_init(&door.changed);
	cleanup_free char *other = xasprintf("%s/other-ca", folder), *a = xasprintf("%s/a", folder), *b = xasprintf("%s/b", folder),
			  *c = xasprintf("%s/c", folder), *s = xasprintf("%s/s", folder);
	assert_int_equal(pki_init(folder, NULL), 0);
	assert_int_equal(pki_init(other, NULL), 0);
	fixture_issue(folder, a, "host-a", TLS_ROLE_HOST, false, &host_a);
	fixture_issue(folder, b, "host-b", TLS_ROLE_HOST, false, &host_b);
	fixture_issue(folder, c, "alice", TLS_ROLE_CLIENT, false, &alice);
	fixture_issue(other, s, "host-a", TLS_ROLE_HOST, false, &stranger);
	assert_int_equal(relay_gate_new("127.0.0.1", 0, &host_b, &gate, NULL), 0);
	return 0;
}

static int teardown(void **state)
{
	(void)state;
	relay_gate_free(gate);
	tls_files_done(&host_a);
	tls_files_done(&host_b);
	tls_files_done(&alice);
	tls_files_done(&stranger);
	return file_remove_tree(folder, NULL);
}

static int connect_as(const struct tls_files *files, const char *host, const char *ticket, struct relay_connection **ret,
		      struct error **e)
{
	return relay_gate_connect(host, "127.0.0.1", relay_gate_port(gate), files, ticket, LONG_MS, ret, e);
}

static void assert_refused(const struct tls_files *files, const char *host, const char *ticket, enum error_code code, const char *words)
{
	struct relay_connection *connection = NULL;
	cleanup_error struct error *e = NULL;
	assert_int_equal(connect_as(files, host, ticket, &connection, &e), -1);
	if (e->code != code || !strstr(e->message, words))
		fail_msg("%s: %s", error_code_name(e->code), e->message);
	assert_int_equal(door.count, 0);
}

static void test_welcome(void **state)
{
	(void)state;
	relay_gate_expect(gate, TICKET, "host-a", let_in, &door);
	for (unsigned int i = 1; i <= 3; i++) {
		struct relay_connection *there = NULL;
		char heard[6] = "";
		cleanup_error struct error *e = NULL;
		if (connect_as(&host_a, "host-b", TICKET, &there, &e) < 0)
			fail_msg("%s", e->message);
		struct relay_connection *here = await_guest();
		assert_int_equal(door.count, i);
		assert_int_equal(relay_connection_send(there, "hello", 5, NULL), 0);
		assert_int_equal(relay_connection_receive(here, heard, 5, NULL), 0);
		assert_string_equal(heard, "hello");
		assert_int_equal(relay_connection_send(here, "world", 5, NULL), 0);
		assert_int_equal(relay_connection_receive(there, heard, 5, NULL), 0);
		assert_string_equal(heard, "world");
		assert_true(relay_connection_wire_bytes(there) > 1000); /* the handshake's, too */
		if (i % 2)
			relay_connection_shut(there);
		else
			relay_connection_free(take_ptr(there));
		assert_int_equal(relay_connection_receive(here, heard, 1, NULL), -1);
		relay_connection_free(there);
		relay_connection_free(here);
	}
	relay_gate_forget(gate, TICKET);
	door.count = 0;
	assert_refused(&host_a, "host-b", TICKET, ERROR_NOT_FOUND, "does not expect this migration");
}

static void test_refused(void **state)
{
	(void)state;
	relay_gate_expect(gate, TICKET, "host-a", let_in, &door);
	assert_refused(&host_a, "host-b", OTHER_TICKET, ERROR_NOT_FOUND, "does not expect this migration");
	/* Another host with the right ticket; a person's certificate; one of another authority. */
	assert_refused(&host_b, "host-b", TICKET, ERROR_NOT_FOUND, "does not expect this migration");
	assert_refused(&alice, "host-b", TICKET, ERROR_NOT_FOUND, "does not expect this migration");
	assert_refused(&stranger, "host-b", TICKET, ERROR_TLS, "");
	/* Whom we reach is not whom we want. */
	assert_refused(&host_a, "host-c", TICKET, ERROR_TLS, "the certificate of the host 'host-b', not of the host 'host-c'");
	relay_gate_forget(gate, TICKET);
	relay_gate_forget(gate, OTHER_TICKET);
}

static void test_nobody_there(void **state)
{
	(void)state;
	struct relay_connection *connection = NULL;
	cleanup_error struct error *e = NULL;
	int fd = -1;
	assert_int_equal(socket_listen_tcp("127.0.0.1", 0, &fd, NULL), 0);
	close(fd);
	assert_int_equal(relay_gate_connect("host-b", "127.0.0.1", 1, &host_a, TICKET, LONG_MS, &connection, &e), -1);
	assert_int_equal(e->code, ERROR_DATA_UNREACHABLE);
}

/* Strangers who say nothing, or nonsense, hold up nobody. */
static void test_silent_strangers(void **state)
{
	(void)state;
	int fds[20];
	for (size_t i = 0; i < 20; i++) {
		assert_int_equal(socket_connect_tcp("127.0.0.1", relay_gate_port(gate), LONG_MS, &fds[i], NULL), 0);
		if (i % 2)
			assert_int_equal(send(fds[i], "GET / HTTP/1.1\r\n\r\n", 18, MSG_NOSIGNAL), 18);
	}
	test_welcome(NULL);
	for (size_t i = 0; i < 20; i++)
		close(fds[i]);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_welcome),
		cmocka_unit_test(test_refused),
		cmocka_unit_test(test_nobody_there),
		cmocka_unit_test(test_silent_strangers),
	};
	return cmocka_run_group_tests(tests, setup, teardown);
}
