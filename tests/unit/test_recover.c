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

#include <stdlib.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/file.h"
#include "base/xalloc.h"
#include "fakes/scripted_machine.h"

#define KEY "ff112233445566778899aabbccddeeff00112233445566778899aabbccddeeff"
#define DONE(id) {FAKE_QMP_SEND, "{\"return\": {}, \"id\": $" #id "}\r\n", 0}

/* Whatever the script does not have ends the connection. */
static void listen_again(const char *folder, enum move_state state, const struct fake_qmp_step *steps, size_t count)
{
	struct driver_host host = {.uid = geteuid(), .gid = getegid()};
	const struct move_options move = {.address = "198.18.0.2", .port = 49160, .tls_key_hex = KEY, .channels = 1};
	cleanup_free char *path = xstrdup(folder);
	struct scripted_machine scripted = {
		.machine = {.host = &host, .folder = path, .state = {.run = MACHINE_RUNNING, .move = state}}};
	cleanup_error struct error *e = NULL;
	pthread_mutex_init(&scripted.machine.lock, NULL);
	scripted_machine_begin(&scripted, steps, count);
	int r = qemu_move_listen_again(&scripted.machine, &move, &e);
	cleanup_free char *problem = scripted_machine_end(&scripted);
	pthread_mutex_destroy(&scripted.machine.lock);
	if (problem || r < 0)
		fail_msg("%s; %s", problem ? problem : "by the script", e ? e->message : "no error");
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
