/* SPDX-License-Identifier: Apache-2.0 */
/* Faults on purpose: the specification and what is wrong with one, which pass, and what each action does. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/fault.h"
#include "base/file.h"
#include "base/json.h"
#include "base/log.h"
#include "base/xalloc.h"
#include "migration/peers.h"
#include "net/http_server.h"

static char folder[] = "/tmp/ferry-test-fault-XXXXXX";
static char *socket_path, *file_path;
static struct http_server *server;

static void set(const char *specification)
{
	cleanup_error struct error *e = NULL;
	if (fault_set(specification, &e) < 0)
		fail_msg("%s", e->message);
}

static int forget_faults(void **state)
{
	(void)state;
	set("");
	return 0;
}

static size_t fired(void)
{
	cleanup_json json_t *report = fault_report();
	return json_array_size(json_object_get(report, "fired"));
}

/* ---- what is said ---- */

static void test_grammar(void **state)
{
	(void)state;
	static const char *const good[] = {
		"",
		"after-taken=kill",
		"finish-answer=drop,prepare-received=delay:500",
		"clock-wall=jump:-3600@*",
		"journal-sync=forget:7, journal-write=full@3, journal-sync=error@2+",
		"check-send=corrupt, check-send=corrupt:9@2",
	};
	static const char *const bad[] = {
		"after-taken",
		"after-taken=",
		"=kill",
		"nowhere=kill",
		"after-taken=explode",
		"after-taken=drop",	    /* not of a record */
		"finish-send=hold",	    /* nor this of a message that leaves */
		"finish-answer=repeat",
		"journal-sync=full",	    /* nothing is written there */
		"journal-write=forget",
		"file-sync=forget",
		"copy-begun=error",
		"after-taken=error", /* it has been recorded */
		"clock-wall=jump",	    /* by how much? */
		"after-taken=delay",
		"after-taken=delay:",
		"after-taken=delay:-1",
		"after-taken=delay:12x",
		"after-taken=delay:99999999999",
		"after-taken=kill:1",
		"after-taken=kill@0",
		"after-taken=kill@",
		"after-taken=kill@+",
		"after-taken=kill@1+1",
		"after-taken=kill@*2",
		"after-taken=kill@-1",
		"AFTER-TAKEN=kill",
		"after-taken = kill",
		"before-taken=kill,after-taken=drop", /* the second one */
	};
	for (size_t i = 0; i < sizeof(good) / sizeof(good[0]); i++)
		set(good[i]);
	set("before-holds=stop");
	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		cleanup_error struct error *e = NULL;
		if (fault_set(bad[i], &e) == 0)
			fail_msg("'%s' was taken", bad[i]);
		assert_int_equal(e->code, ERROR_INVALID_ARGUMENT);
	}
	/* What was wrong has changed nothing. */
	cleanup_json json_t *report = fault_report();
	assert_string_equal(json_string_value(json_object_get(report, "faults")), "before-holds=stop");
	cleanup_free char *many = xstrdup("after-taken=kill");
	for (int i = 0; i < 32; i++) {
		cleanup_free char *longer = xasprintf("%s,after-taken=kill", many);
		free(many);
		many = take_ptr(longer);
	}
	assert_int_equal(fault_set(many, NULL), -1);
}

static void test_environment(void **state)
{
	(void)state;
	setenv("FERRY_FAULT", "before-holds=error", 1);
	assert_int_equal(fault_set_from_environment(NULL), 0);
	assert_int_equal(fault_pass(FAULT_BEFORE_HOLDS, NULL), FAULT_ERROR);
	setenv("FERRY_FAULT", "before-holds", 1);
	assert_int_equal(fault_set_from_environment(NULL), -1);
	unsetenv("FERRY_FAULT");
	assert_int_equal(fault_set_from_environment(NULL), 0);
}

/* Each action of each point is one that can be set, and none that is not listed. */
static void test_table(void **state)
{
	(void)state;
	cleanup_json json_t *table = fault_table();
	json_t *points = json_object_get(table, "points"), *by_kind = json_object_get(table, "actions"), *point, *action;
	size_t i, n;
	assert_int_equal(json_array_size(points), FAULT_POINT_COUNT);
	json_array_foreach (points, i, point) {
		const char *name = json_string_value(json_object_get(point, "name"));
		json_t *of_kind = json_object_get(by_kind, json_string_value(json_object_get(point, "kind")));
		assert_string_equal(name, fault_point_name((enum fault_point)i));
		size_t taken = 0;
		json_array_foreach (of_kind, n, action) {
			const char *word = json_string_value(action);
			bool number = strcmp(word, "delay") == 0 || strcmp(word, "jump") == 0;
			cleanup_free char *specification = xasprintf("%s=%s%s", name, word, number ? ":1" : "");
			taken += fault_set(specification, NULL) == 0;
		}
		assert_int_equal(taken, json_array_size(json_object_get(point, "actions")));
		assert_true(taken >= 3); /* kill, stop and delay */
	}
}

static void test_passes(void **state)
{
	(void)state;
	assert_int_equal(fault_pass(FAULT_FINISH_SEND, NULL), FAULT_NONE);
	set("finish-send=drop@2, finish-send=cut@4+, finish-answer=hold@*, check-send=corrupt:42");
	static const enum fault_action wanted[] = {FAULT_NONE, FAULT_DROP, FAULT_NONE, FAULT_CUT, FAULT_CUT};
	for (size_t i = 0; i < sizeof(wanted) / sizeof(wanted[0]); i++) {
		assert_int_equal(fault_pass(FAULT_FINISH_SEND, NULL), wanted[i]);
		assert_int_equal(fault_pass(FAULT_FINISH_ANSWER, NULL), FAULT_HOLD);
		assert_int_equal(fault_pass(FAULT_FINISH_RECEIVED, NULL), FAULT_NONE);
	}
	int64_t number = -1;
	assert_int_equal(fault_pass(FAULT_CHECK_SEND, &number), FAULT_CORRUPT);
	assert_int_equal(number, 42);
	assert_int_equal(fault_pass(FAULT_CHECK_SEND, &number), FAULT_NONE);
	assert_int_equal(number, 0);
	cleanup_json json_t *report = fault_report();
	json_t *list = json_object_get(report, "fired");
	assert_int_equal(json_array_size(list), 3 + 5 + 1);
	assert_string_equal(json_string_value(json_object_get(json_array_get(list, 1), "point")), "finish-send");
	assert_string_equal(json_string_value(json_object_get(json_array_get(list, 1), "action")), "drop");
	assert_int_equal(json_integer_value(json_object_get(json_array_get(list, 1), "pass")), 2);
	/* Counted anew. */
	set("finish-send=drop@2");
	assert_int_equal(fired(), 0);
	assert_int_equal(fault_pass(FAULT_FINISH_SEND, NULL), FAULT_NONE);
	assert_int_equal(fault_pass(FAULT_FINISH_SEND, NULL), FAULT_DROP);
}

/* ---- what is done to the process ---- */

static void test_kill_and_stop(void **state)
{
	(void)state;
	for (int stops = 0; stops < 2; stops++) {
		pid_t pid = fork();
		if (pid == 0) {
			if (fault_set(stops ? "after-taken=stop" : "after-taken=kill", NULL) < 0)
				_exit(1);
			FAULT(FAULT_BEFORE_TAKEN);
			FAULT(FAULT_AFTER_TAKEN);
			_exit(7);
		}
		int status = 0;
		assert_int_equal(waitpid(pid, &status, WUNTRACED), pid);
		if (stops) {
			assert_true(WIFSTOPPED(status));
			assert_int_equal(kill(pid, SIGCONT), 0);
			assert_int_equal(waitpid(pid, &status, 0), pid);
			assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 7);
		} else {
			assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
		}
	}
}

static void test_delay(void **state)
{
	(void)state;
	set("copy-begun=delay:50");
	int64_t before_us = clock_monotonic_us();
	assert_int_equal(fault_pass(FAULT_COPY_BEGUN, NULL), FAULT_NONE);
	assert_true(clock_monotonic_us() - before_us >= 50000);
	assert_int_equal(fired(), 1);
}

static void test_clock(void **state)
{
	(void)state;
	int64_t before_ms = clock_wall_ms(), monotonic_ms = clock_monotonic_ms();
	set("clock-wall=jump:86400@2, clock-wall=jump:-86400@4");
	assert_true(clock_wall_ms() - before_ms < 3600000);
	assert_true(clock_wall_ms() - before_ms >= 86400000);
	assert_true(clock_wall_ms() - before_ms >= 86400000); /* it stays ahead */
	assert_true(clock_wall_ms() - before_ms <= -86400000 + 3600000);
	assert_true(clock_monotonic_ms() - monotonic_ms < 3600000);
	set("clock-wall=jump:0");
	assert_true(clock_wall_ms() - before_ms < 3600000);
}

/* ---- files; the database has test_forgetful.c ---- */

static void test_files(void **state)
{
	(void)state;
	static const struct {
		const char *faults;
		int wanted;
		const char *there; /* afterwards; a failed sync of the folder comes too late to keep the old */
	} rows[] = {
		{"file-write=error", EIO, "old"}, {"file-write=full", ENOSPC, "old"}, {"file-write=short", ENOSPC, "old"},
		{"file-sync=error", EIO, "old"},  {"file-sync=error@2", EIO, "new"},
	};
	for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
		cleanup_error struct error *e = NULL;
		cleanup_free char *text = NULL;
		set("");
		assert_int_equal(file_write_atomic(file_path, "old", 3, 0600, NULL), 0);
		set(rows[i].faults);
		assert_int_equal(file_write_atomic(file_path, "new", 3, 0600, &e), -1);
		assert_int_equal(e->sys_errno, rows[i].wanted);
		assert_int_equal(file_read(file_path, 100, &text, NULL, NULL), 0);
		assert_string_equal(text, rows[i].there);
	}
}

/* ---- messages ---- */

static unsigned int handled; /* only one client asks at a time */
static char last_migration[64];

static int on_message(struct http_request *request, enum fault_point received, enum fault_point answer, json_t **ret)
{
	request->fault = fault_pass(received, &request->fault_seed);
	if (request->fault != FAULT_NONE)
		return 0;
	handled++;
	snprintf(last_migration, sizeof(last_migration), "%s",
		 request->body ? json_string_value(json_object_get(request->body, "migration")) : request->parameters[0]);
	*ret = json_pack("{si ss}", "handled", handled, "words", "what is answered to the one who has asked");
	request->fault = fault_pass(answer, &request->fault_seed);
	return 0;
}

static int on_finish(void *user, struct http_request *request, json_t **ret, struct error **e)
{
	(void)user;
	(void)e;
	return on_message(request, FAULT_FINISH_RECEIVED, FAULT_FINISH_ANSWER, ret);
}

static int on_outcome(void *user, struct http_request *request, json_t **ret, struct error **e)
{
	(void)user;
	(void)e;
	return on_message(request, FAULT_OUTCOME_RECEIVED, FAULT_OUTCOME_ANSWER, ret);
}

static const struct http_route routes[] = {{"POST", "/v1/peer/finish", HTTP_CALLER_CLIENT, on_finish},
					   {"GET", "/v1/peer/outcome/{id}", HTTP_CALLER_CLIENT, on_outcome},
					   {0}};

static int start_server(void **state)
{
	(void)state;
	if (!mkdtemp(folder))
		return -1;
	socket_path = xasprintf("%s/socket", folder);
	file_path = xasprintf("%s/file", folder);
	log_set_level((enum log_level)0);
	struct http_server_options options = {.unix_path = socket_path, .routes = routes};
	return http_server_start(&options, &server, NULL);
}

static int stop_server(void **state)
{
	(void)state;
	http_server_stop(server);
	free(socket_path);
	free(file_path);
	return file_remove_tree(folder, NULL);
}

struct asked {
	bool answered;
	int rc;
	enum error_code code;
	int number; /* of those that were handled, as the answer says */
};

static struct asked ask(struct http_client *client, enum peer_message message, const char *id, int64_t timeout_ms)
{
	cleanup_json json_t *body = message == PEER_OUTCOME ? NULL : json_pack("{ss}", "migration", id);
	cleanup_json json_t *answer = NULL;
	cleanup_error struct error *e = NULL;
	const struct peer_question question = {message, "host-b", id, body, timeout_ms};
	struct asked asked = {.answered = true};
	asked.rc = peers_ask(client, &question, &answer, &asked.answered, &e);
	asked.code = e ? e->code : ERROR_CODE_COUNT;
	asked.number = (int)json_integer_value(json_object_get(answer, "handled"));
	return asked;
}

#define ID_1 "0123456789abcdef0123456789abcdef"
#define ID_2 "fedcba9876543210fedcba9876543210"

static void test_messages(void **state)
{
	(void)state;
	static const struct {
		const char *action;	/* behind the message's name */
		unsigned int handled;	/* how often by the other side */
		bool answered, fails;
	} rows[] = {
		{"send=drop", 0, false, true},	    {"send=cut", 0, false, true},     {"send=repeat", 2, true, false},
		{"send=old", 1, true, false} /* there is no earlier one yet */,
		{"received=drop", 0, false, true},  {"received=hold", 0, false, true}, {"answer=drop", 1, false, true},
		{"answer=hold", 1, false, true},    {"answer=cut", 1, false, true},   {"answered=drop", 1, false, true},
		{"received=delay:20", 1, true, false},
	};
	static const char *const names[PEER_MESSAGE_COUNT] = {[PEER_FINISH] = "finish", [PEER_OUTCOME] = "outcome"};
	for (size_t message = 0; message < PEER_MESSAGE_COUNT; message++)
		for (size_t i = 0; names[message] && i < sizeof(rows) / sizeof(rows[0]); i++) {
			cleanup_free char *faults = xasprintf("%s-%s", names[message], rows[i].action);
			struct http_client *client = NULL;
			print_message("# %s\n", faults);
			assert_int_equal(http_client_new_unix(socket_path, &client, NULL), 0);
			set("");
			assert_int_equal(ask(client, (enum peer_message)message, ID_1, 5000).rc, 0);
			/* A new one: where a kept-alive connection ends, the message is sent again on another. */
			http_client_free(client);
			assert_int_equal(http_client_new_unix(socket_path, &client, NULL), 0);
			handled = 0;
			set(faults);
			struct asked asked = ask(client, (enum peer_message)message, ID_1, 500);
			assert_int_equal(asked.rc < 0, rows[i].fails);
			assert_int_equal(asked.answered, rows[i].answered);
			assert_int_equal(handled, rows[i].handled);
			if (rows[i].answered)
				assert_int_equal(asked.number, handled);
			assert_int_equal(fired(), 1);
			/* The next one goes through, on the same client. */
			asked = ask(client, (enum peer_message)message, ID_1, 5000);
			assert_int_equal(asked.rc, 0);
			assert_string_equal(last_migration, ID_1);
			http_client_free(client);
		}
}

static void test_corrupt(void **state)
{
	(void)state;
	struct http_client *client = NULL;
	assert_int_equal(http_client_new_unix(socket_path, &client, NULL), 0);
	int different = 0, refused = 0;
	for (int seed = 0; seed < 20; seed++) {
		cleanup_free char *faults = xasprintf("finish-send=corrupt:%d", seed);
		set(faults);
		*last_migration = '\0';
		struct asked asked = ask(client, PEER_FINISH, ID_1, 5000);
		assert_true(asked.answered);
		refused += asked.rc < 0;
		different += asked.rc == 0 && strcmp(last_migration, ID_1) != 0;
		set("outcome-send=corrupt:3");
		assert_int_equal(ask(client, PEER_OUTCOME, ID_1, 5000).rc, 0);
		assert_int_equal(strlen(last_migration), strlen(ID_1));
		assert_string_not_equal(last_migration, ID_1);
	}
	/* Some no longer parse, some say something else. */
	assert_true(refused > 0 && different > 0);
	int unlike = 0;
	for (int seed = 0; seed < 20; seed++) {
		cleanup_free char *faults = xasprintf("finish-answer=corrupt:%d", seed);
		cleanup_free char *text = NULL;
		set("");
		handled = 0;
		cleanup_json json_t *body = json_pack("{ss}", "migration", ID_1), *answer = NULL;
		set(faults);
		if (http_client_request(client, "POST", "/v1/peer/finish", body, 5000, &answer, NULL) == 0)
			text = json_text(answer);
		unlike += !text || strcmp(text, "{\"handled\":1,\"words\":\"what is answered to the one who has asked\"}") != 0;
	}
	assert_int_equal(unlike, 20);
	http_client_free(client);
}

/* The last message of an earlier migration goes out before the new one. */
static void test_old(void **state)
{
	(void)state;
	struct http_client *client = NULL;
	assert_int_equal(http_client_new_unix(socket_path, &client, NULL), 0);
	for (int i = 0; i < 2; i++) {
		enum peer_message message = i ? PEER_OUTCOME : PEER_FINISH;
		set("");
		assert_int_equal(ask(client, message, ID_1, 5000).rc, 0);
		handled = 0;
		/* The new one is lost, so that the old one is what was handled last. */
		set(i ? "outcome-send=old, outcome-received=drop@2+" : "finish-send=old, finish-received=drop@2");
		assert_int_equal(ask(client, message, ID_2, 1000).rc, -1);
		assert_int_equal(handled, 1);
		assert_string_equal(last_migration, ID_1);
	}
	http_client_free(client);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_teardown(test_grammar, forget_faults),
		cmocka_unit_test_teardown(test_environment, forget_faults),
		cmocka_unit_test_teardown(test_table, forget_faults),
		cmocka_unit_test_teardown(test_passes, forget_faults),
		cmocka_unit_test_teardown(test_kill_and_stop, forget_faults),
		cmocka_unit_test_teardown(test_delay, forget_faults),
		cmocka_unit_test_teardown(test_clock, forget_faults),
		cmocka_unit_test_teardown(test_files, forget_faults),
		cmocka_unit_test_teardown(test_messages, forget_faults),
		cmocka_unit_test_teardown(test_corrupt, forget_faults),
		cmocka_unit_test_teardown(test_old, forget_faults),
	};
	return cmocka_run_group_tests(tests, start_server, stop_server);
}
