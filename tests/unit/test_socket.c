/* SPDX-License-Identifier: Apache-2.0 */
/* Sockets: who may replace a unix socket and with which mode, how TCP connects fail, lists of networks. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/file.h"
#include "base/xalloc.h"
#include "net/socket.h"

static char folder[] = "/tmp/ferry-test-socket-XXXXXX";

static int make_folder(void **state)
{
	(void)state;
	return mkdtemp(folder) ? 0 : -1;
}

static int remove_folder(void **state)
{
	(void)state;
	return file_remove_tree(folder, NULL);
}

static uint16_t port_of(int fd)
{
	struct sockaddr_storage at;
	socklen_t length = sizeof(at);
	assert_int_equal(getsockname(fd, (struct sockaddr *)&at, &length), 0);
	return ntohs(at.ss_family == AF_INET6 ? ((struct sockaddr_in6 *)&at)->sin6_port
					      : ((struct sockaddr_in *)&at)->sin_port);
}

static void test_unix_listen_and_connect(void **state)
{
	(void)state;
	cleanup_free char *path = xasprintf("%s/a.sock", folder);
	cleanup_close int listener = -1, client = -1;
	mode_t umask_before = umask(0077); /* what the umask takes is put back */
	assert_int_equal(socket_listen_unix(path, 0660, &listener, NULL), 0);
	umask(umask_before);
	struct stat st;
	assert_int_equal(stat(path, &st), 0);
	assert_true(S_ISSOCK(st.st_mode));
	assert_int_equal(st.st_mode & 0777, 0660);
	assert_int_equal(fcntl(listener, F_GETFD) & FD_CLOEXEC, FD_CLOEXEC);
	assert_int_equal(socket_connect_unix(path, &client, NULL), 0);
	assert_int_equal(fcntl(client, F_GETFD) & FD_CLOEXEC, FD_CLOEXEC);
}

static void test_unix_replaces_only_dead_sockets(void **state)
{
	(void)state;
	cleanup_free char *path = xasprintf("%s/b.sock", folder);
	cleanup_error struct error *e = NULL;
	int first = -1, other = -1;
	assert_int_equal(socket_listen_unix(path, 0600, &first, &e), 0);
	/* Somebody listens there: two daemons on one path would each get some of the clients. */
	assert_int_equal(socket_listen_unix(path, 0600, &other, &e), -1);
	assert_int_equal(e->code, ERROR_EXISTS);
	close(first);
	assert_int_equal(socket_connect_unix(path, &other, &e), -1);
	assert_int_equal(e->sys_errno, ECONNREFUSED);
	assert_int_equal(socket_listen_unix(path, 0600, &first, NULL), 0);
	assert_int_equal(socket_connect_unix(path, &other, NULL), 0);
	close(first);
	close(other);
}

static void test_unix_keeps_other_files(void **state)
{
	(void)state;
	cleanup_free char *path = xasprintf("%s/file", folder);
	cleanup_free char *text = NULL;
	cleanup_error struct error *e = NULL;
	int fd = -1;
	assert_int_equal(file_write_atomic(path, "precious", 8, 0600, NULL), 0);
	assert_int_equal(socket_listen_unix(path, 0600, &fd, &e), -1);
	assert_int_equal(e->code, ERROR_EXISTS);
	assert_int_equal(file_read(path, 100, &text, NULL, NULL), 0);
	assert_string_equal(text, "precious");
}

static void test_unix_path_too_long(void **state)
{
	(void)state;
	char path[200];
	memset(path, 'x', sizeof(path));
	path[0] = '/';
	path[sizeof(path) - 1] = '\0';
	cleanup_error struct error *e = NULL;
	int fd = -1;
	assert_int_equal(socket_listen_unix(path, 0600, &fd, &e), -1);
	assert_int_equal(e->code, ERROR_INVALID_ARGUMENT);
	assert_int_equal(socket_connect_unix(path, &fd, &e), -1);
	assert_int_equal(e->code, ERROR_INVALID_ARGUMENT);
}

static void test_tcp_listen_and_connect(void **state)
{
	(void)state;
	cleanup_close int listener = -1, client = -1;
	assert_int_equal(socket_listen_tcp("127.0.0.1", 0, &listener, NULL), 0);
	uint16_t port = port_of(listener);
	assert_int_equal(socket_connect_tcp("127.0.0.1", port, 1000, &client, NULL), 0);
	int on = 0;
	socklen_t length = sizeof(on);
	assert_int_equal(getsockopt(client, IPPROTO_TCP, TCP_NODELAY, &on, &length), 0);
	assert_true(on);
	assert_int_equal(fcntl(client, F_GETFL) & O_NONBLOCK, 0);
	int accepted = accept(listener, NULL, NULL);
	assert_true(accepted >= 0);
	assert_int_equal(getsockopt(accepted, IPPROTO_TCP, TCP_NODELAY, &on, &length), 0);
	assert_true(on);
	close(accepted);

	cleanup_error struct error *e = NULL;
	int second = -1;
	assert_int_equal(socket_listen_tcp("127.0.0.1", port, &second, &e), -1);
	assert_int_equal(e->sys_errno, EADDRINUSE);
}

static void test_tcp_all_addresses(void **state)
{
	(void)state;
	cleanup_close int listener = -1, client = -1;
	assert_int_equal(socket_listen_tcp(NULL, 0, &listener, NULL), 0);
	assert_int_equal(socket_connect_tcp("127.0.0.1", port_of(listener), 1000, &client, NULL), 0);
}

static void test_tcp_refused(void **state)
{
	(void)state;
	int listener = -1, client = -1;
	assert_int_equal(socket_listen_tcp("127.0.0.1", 0, &listener, NULL), 0);
	uint16_t port = port_of(listener);
	close(listener);
	cleanup_error struct error *e = NULL;
	assert_int_equal(socket_connect_tcp("127.0.0.1", port, 1000, &client, &e), -1);
	assert_int_equal(e->sys_errno, ECONNREFUSED);
	assert_int_equal(socket_connect_tcp("not-an-address", port, 1000, &client, &e), -1);
	assert_int_equal(e->code, ERROR_INVALID_ARGUMENT);
}

/* A listener whose queue is full drops connection requests, as a firewall would. */
static void test_tcp_times_out(void **state)
{
	(void)state;
	cleanup_close int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	assert_int_equal(bind(listener, (struct sockaddr *)&at, sizeof(at)), 0);
	assert_int_equal(listen(listener, 0), 0);
	uint16_t port = port_of(listener);
	int clients[8], count = 0;
	cleanup_error struct error *e = NULL;
	int64_t before_ms = clock_monotonic_ms();
	for (; count < 8; count++) {
		before_ms = clock_monotonic_ms();
		if (socket_connect_tcp("127.0.0.1", port, 200, &clients[count], &e) < 0)
			break;
	}
	int64_t took_ms = clock_monotonic_ms() - before_ms;
	assert_true(count < 8);
	assert_int_equal(e->code, ERROR_TIMEOUT);
	assert_true(took_ms >= 199 && took_ms < 2000);
	while (count > 0)
		close(clients[--count]);
}

static void test_networks(void **state)
{
	(void)state;
	static const struct {
		const char *address, *networks;
		bool inside;
	} cases[] = {
		{"198.18.0.7", "198.18.0.0/24", true},
		{"198.18.1.7", "198.18.0.0/24", false},
		{"198.18.1.7", "198.18.0.0/23", true},
		{"198.18.128.0", "198.18.0.0/17", false},
		{"198.18.0.7", "10.0.0.0/8 , 198.18.0.7", true},
		{"198.18.0.8", "10.0.0.0/8, 198.18.0.7", false},
		{"1.2.3.4", "0.0.0.0/0", true},
		{"1.2.3.4", "::/0", false}, /* what is said of IPv6 says nothing of IPv4 */
		{"fd00::1", "0.0.0.0/0", false},
		{"fd00::1", "198.18.0.0/24, fd00::/8", true},
		{"fe00::1", "fd00::/8", false},
		{"::ffff:198.18.0.7", "198.18.0.0/24", true}, /* as an IPv6 socket shows an IPv4 client */
		{"198.18.0.7", "", false},
		{"198.18.0.7", "198.18.0.0/33", false},
		{"nonsense", "0.0.0.0/0", false},
		{NULL, "0.0.0.0/0", false},
		{"1.2.3.4", NULL, false},
	};
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++)
		if (socket_address_in_networks(cases[i].address, cases[i].networks) != cases[i].inside)
			fail_msg("%s in '%s' is not %d", cases[i].address, cases[i].networks, cases[i].inside);
}

static void test_remote_addresses(void **state)
{
	(void)state;
	static const char *const remote[] = {"198.18.0.7", "10.0.0.1", "fd00::1", "2001:db8::1", "::ffff:198.18.0.7", "223.255.255.255"};
	static const char *const not_remote[] = {"", "nonsense", "host-b", "0.0.0.0", "127.0.0.1", "127.255.0.1", "169.254.169.254",
						 "224.0.0.1", "255.255.255.255", "::", "::1", "fe80::1", "ff02::1",
						 "::ffff:127.0.0.1", "198.18.0.7 ", "198.18.0.7:22", "198.18.0.7/32", "fe80::1%lo"};
	for (size_t i = 0; i < sizeof(remote) / sizeof(remote[0]); i++)
		if (!socket_address_is_remote(remote[i]))
			fail_msg("'%s' was not taken", remote[i]);
	for (size_t i = 0; i < sizeof(not_remote) / sizeof(not_remote[0]); i++)
		if (socket_address_is_remote(not_remote[i]))
			fail_msg("'%s' was taken", not_remote[i]);
}

static void test_address_text(void **state)
{
	(void)state;
	char text[SOCKET_ADDRESS_SIZE];
	struct sockaddr_in v4 = {.sin_family = AF_INET};
	struct sockaddr_in6 v6 = {.sin6_family = AF_INET6};
	struct sockaddr other = {.sa_family = AF_UNIX};
	inet_pton(AF_INET, "198.18.0.7", &v4.sin_addr);
	socket_address_text((const struct sockaddr *)&v4, text);
	assert_string_equal(text, "198.18.0.7");
	inet_pton(AF_INET6, "::ffff:198.18.0.8", &v6.sin6_addr);
	socket_address_text((const struct sockaddr *)&v6, text);
	assert_string_equal(text, "198.18.0.8");
	inet_pton(AF_INET6, "fd00::9", &v6.sin6_addr);
	socket_address_text((const struct sockaddr *)&v6, text);
	assert_string_equal(text, "fd00::9");
	socket_address_text(&other, text);
	assert_string_equal(text, "");
}

static void test_networks_check(void **state)
{
	(void)state;
	static const char *const good[] = {"", " ", "198.18.0.0/24", "198.18.0.1", "10.0.0.0/8, fd00::/8", "::/0"};
	static const char *const bad[] = {
		"198.18.0.0/33", "198.18.0.0/",           "198.18.0.0/-1", "fd00::/129",   "a",
		"10.0.0.0/8,",   "10.0.0.0/8 11.0.0.0/8", "10.0.0.0/0x8",  "10.0.0.0/8/8", ","};
	for (size_t i = 0; i < sizeof(good) / sizeof(good[0]); i++)
		assert_int_equal(socket_networks_check(good[i], NULL), 0);
	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		cleanup_error struct error *e = NULL;
		if (socket_networks_check(bad[i], &e) == 0)
			fail_msg("'%s' was taken", bad[i]);
		assert_int_equal(e->code, ERROR_INVALID_ARGUMENT);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_unix_listen_and_connect),
		cmocka_unit_test(test_unix_replaces_only_dead_sockets),
		cmocka_unit_test(test_unix_keeps_other_files),
		cmocka_unit_test(test_unix_path_too_long),
		cmocka_unit_test(test_tcp_listen_and_connect),
		cmocka_unit_test(test_tcp_all_addresses),
		cmocka_unit_test(test_tcp_refused),
		cmocka_unit_test(test_tcp_times_out),
		cmocka_unit_test(test_networks),
		cmocka_unit_test(test_remote_addresses),
		cmocka_unit_test(test_address_text),
		cmocka_unit_test(test_networks_check),
	};
	return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
