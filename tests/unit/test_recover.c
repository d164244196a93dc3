/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A destination that is to listen again for the rest of a post-copy (vm/qemu_postcopy.c), against a scripted QEMU. Its main loop may
 * wait for a page that only the new stream brings, and then answers nothing but what is asked out of band. With real QEMUs, whose main
 * loops seldom wait just then, see test_driver_qemu.c.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <pthread.h>
#include <stdlib.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/file.h"
#include "base/xalloc.h"
#include "fakes/fake_qmp.h"
#include "net/loop.h"
#include "vm/qemu_machine.h"

#define PATIENCE_MS 10000
#define KEY "ff112233445566778899aabbccddeeff00112233445566778899aabbccddeeff"
#define DONE(id) {FAKE_QMP_SEND, "{\"return\": {}, \"id\": $" #id "}\r\n", 0}

static struct loop *loop;

static void *loop_main(void *unused)
{
	(void)unused;
	if (loop_run(loop, NULL) < 0)
		abort();
	return NULL;
}

/* Whatever the script does not have ends the connection. */
static void listen_again(const char *folder, enum move_state state, const struct fake_qmp_step *steps, size_t count)
{
	int fd;
	pthread_t thread;
	struct driver_host host = {.uid = geteuid(), .gid = getegid()};
	const struct move_options move = {.address = "198.18.0.2", .port = 49160, .tls_key_hex = KEY, .channels = 1};
	cleanup_free char *path = xstrdup(folder);
	struct machine machine = {.host = &host, .folder = path, .state = {.run = MACHINE_RUNNING, .move = state}};
	pthread_mutex_init(&machine.lock, NULL);
	assert_int_equal(loop_new(&loop, NULL), 0);
	assert_int_equal(pthread_create(&thread, NULL, loop_main, NULL), 0);
	struct fake_qmp *fake = fake_qmp_new(steps, count, &fd);
	assert_int_equal(qmp_new(loop, fd, NULL, PATIENCE_MS, &machine.qmp, NULL), 0);
	struct error *e = NULL;
	int r = qemu_move_listen_again(&machine, &move, &e);
	cleanup_free char *message = e ? xstrdup(e->message) : NULL;
	error_free(e);
	qmp_free(machine.qmp);
	cleanup_free char *problem = fake_qmp_end(fake);
	loop_quit(loop);
	pthread_join(thread, NULL);
	loop_free(loop);
	pthread_mutex_destroy(&machine.lock);
	if (problem || r < 0)
		fail_msg("%s; %s", problem ? problem : "by the script", message ? message : "no error");
}

static const struct fake_qmp_step steps[] = {
	FAKE_QMP_HELLO,
	{FAKE_QMP_EXPECT, "exec-oob:migrate-recover {\"uri\": \"tcp:198.18.0.2:49160\"}", 0}, DONE(2),
	{FAKE_QMP_EXPECT_END, NULL, 0},
};

static void test_plain(void **state)
{
	(void)state;
	char folder[] = "/tmp/ferry-test-XXXXXX";
	assert_non_null(mkdtemp(folder));
	listen_again(folder, MOVE_POSTCOPY_PAUSED, steps, sizeof(steps) / sizeof(steps[0]));
	cleanup_free char *keys = xasprintf("%s/move/keys.psk", folder);
	assert_int_equal(access(keys, F_OK), -1);
	assert_int_equal(file_remove_tree(folder, NULL), 0);
}

/* The old key's file is gone since the stream flowed; what it stood in tells that there was one, to another ferryd too. */
static void test_encrypted(void **state)
{
	(void)state;
	char folder[] = "/tmp/ferry-test-XXXXXX";
	assert_non_null(mkdtemp(folder));
	cleanup_free char *move = xasprintf("%s/move", folder), *keys = xasprintf("%s/keys.psk", move), *text = NULL;
	assert_int_equal(file_make_folders(move, 0700, NULL), 0);
	listen_again(folder, MOVE_POSTCOPY_PAUSED, steps, sizeof(steps) / sizeof(steps[0]));
	assert_int_equal(file_read(keys, 1000, &text, NULL, NULL), 0);
	assert_string_equal(text, "ferry:" KEY "\n");
	assert_int_equal(file_remove_tree(folder, NULL), 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_plain),
		cmocka_unit_test(test_encrypted),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
