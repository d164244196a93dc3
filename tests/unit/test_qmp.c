/* SPDX-License-Identifier: Apache-2.0 */
/* The QMP client against a scripted server (fakes/fake_qmp.h). */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <semaphore.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/json.h"
#include "base/log.h"
#include "base/xalloc.h"
#include "fakes/fake_qmp.h"
#include "net/loop.h"
#include "qemu/qmp.h"

#define LONG_MS 10000 /* never waited for in a test that passes */

struct fixture {
	struct loop *loop;
	pthread_t thread;
	struct fake_qmp *fake;
	struct qmp *qmp;
	sem_t event_came, closed_came;
	pthread_mutex_t lock;
	char events[1024]; /* "NAME DATA;" each */
	unsigned int closed_count;
	bool free_in_event;
	bool stay_in_event; /* until event_ends */
	sem_t event_ends;
	atomic_bool in_closed;
};

static void on_event(void *user, const char *name, const json_t *data, int64_t received_us)
{
	struct fixture *fixture = user;
	if (received_us > clock_monotonic_us() || received_us < clock_monotonic_us() - 5000000)
		abort(); /* cmocka's assertions are for the main thread only */
	cleanup_free char *text = data ? json_text(data) : xstrdup("-");
	pthread_mutex_lock(&fixture->lock);
	size_t used = strlen(fixture->events);
	snprintf(fixture->events + used, sizeof(fixture->events) - used, "%s %s;", name, text);
	pthread_mutex_unlock(&fixture->lock);
	if (fixture->free_in_event)
		qmp_free(take_ptr(fixture->qmp));
	sem_post(&fixture->event_came);
	while (fixture->stay_in_event && sem_wait(&fixture->event_ends) < 0)
		;
}

static void on_closed(void *user)
{
	struct fixture *fixture = user;
	pthread_mutex_lock(&fixture->lock);
	fixture->closed_count++;
	pthread_mutex_unlock(&fixture->lock);
	fixture->in_closed = true;
	for (int i = 0; i < 50; i++) /* stay a while, for test_free_races_with_death */
		sched_yield();
	fixture->in_closed = false;
	sem_post(&fixture->closed_came);
}

static void *run_loop(void *user)
{
	struct fixture *fixture = user;
	return loop_run(fixture->loop, NULL) < 0 ? fixture : NULL;
}

static int setup(void **state)
{
	struct fixture *fixture = xcalloc(1, sizeof(*fixture));
	if (loop_new(&fixture->loop, NULL) < 0)
		return -1;
	sem_init(&fixture->event_came, 0, 0);
	sem_init(&fixture->closed_came, 0, 0);
	sem_init(&fixture->event_ends, 0, 0);
	pthread_mutex_init(&fixture->lock, NULL);
	*state = fixture;
	return pthread_create(&fixture->thread, NULL, run_loop, fixture);
}

static int teardown(void **state)
{
	struct fixture *fixture = *state;
	qmp_free(fixture->qmp);
	loop_quit(fixture->loop);
	pthread_join(fixture->thread, NULL);
	loop_free(fixture->loop);
	cleanup_free char *failure = fixture->fake ? fake_qmp_end(fixture->fake) : NULL;
	if (failure)
		print_error("the script: %s\n", failure);
	sem_destroy(&fixture->event_came);
	sem_destroy(&fixture->closed_came);
	sem_destroy(&fixture->event_ends);
	pthread_mutex_destroy(&fixture->lock);
	free(fixture);
	return failure ? -1 : 0;
}

static void wait_for(sem_t *semaphore)
{
	struct timespec until;
	clock_gettime(CLOCK_REALTIME, &until);
	until.tv_sec += LONG_MS / 1000;
	int result;
	while ((result = sem_timedwait(semaphore, &until)) < 0 && errno == EINTR)
		;
	assert_int_equal(result, 0);
}

static int connect_fixture(struct fixture *fixture, const struct fake_qmp_step *steps, unsigned long count,
			   int64_t timeout_ms, struct error **e)
{
	int fd = -1;
	fixture->fake = fake_qmp_new(steps, count, &fd);
	struct qmp_callbacks callbacks = {.event = on_event, .closed = on_closed, .user = fixture};
	return qmp_new(fixture->loop, fd, &callbacks, timeout_ms, &fixture->qmp, e);
}
#define CONNECT(fixture, steps, timeout_ms, e)                                                                         \
	connect_fixture(fixture, steps, sizeof(steps) / sizeof((steps)[0]), timeout_ms, e)
#define CONNECT_OK(fixture, steps) assert_int_equal(CONNECT(fixture, steps, LONG_MS, NULL), 0)

/* Execute a command that must fail with that code, with those words in the message. */
static void assert_fails(struct fixture *fixture, const char *command, int64_t timeout_ms, enum error_code code,
			 const char *words)
{
	cleanup_error struct error *error = NULL;
	assert_int_equal(qmp_execute(fixture->qmp, command, NULL, NULL, timeout_ms, &error), -1);
	assert_string_equal(error_code_name(error->code), error_code_name(code));
	assert_non_null(strstr(error->message, words));
}

/* Execute a command whose return must be this JSON. */
static void assert_returns(struct fixture *fixture, const char *command, const char *wanted)
{
	cleanup_error struct error *error = NULL;
	cleanup_json json_t *value = NULL;
	if (qmp_execute(fixture->qmp, command, NULL, &value, LONG_MS, &error) < 0)
		fail_msg("%s", error->message);
	cleanup_free char *text = json_text(value);
	assert_string_equal(text, wanted);
}

/* A command in a thread of its own. */
struct executor {
	struct fixture *fixture;
	const char *command;
	pthread_t thread;
	int result;
	json_t *value;
	struct error *error;
};

static void *executor_run(void *user)
{
	struct executor *executor = user;
	executor->result = qmp_execute(executor->fixture->qmp, executor->command, NULL, &executor->value, LONG_MS,
				       &executor->error);
	return NULL;
}

static void executor_start(struct executor *executor, struct fixture *fixture, const char *command)
{
	*executor = (struct executor){.fixture = fixture, .command = command};
	assert_int_equal(pthread_create(&executor->thread, NULL, executor_run, executor), 0);
}

static void executor_join(struct executor *executor)
{
	pthread_join(executor->thread, NULL);
}

static void executor_done(struct executor *executor)
{
	json_decref(executor->value);
	error_free(executor->error);
}

/* ---- negotiation ---- */

static void test_enables_oob_where_offered(void **state)
{
	static const struct fake_qmp_step steps[] = {
		FAKE_QMP_HELLO,
		{FAKE_QMP_EXPECT, "exec-oob:yank {\"instances\": []}", 0},
		{FAKE_QMP_SEND, "{\"return\": {}, \"id\": $2}\r\n", 0},
		{FAKE_QMP_EXPECT_END, NULL, 0},
	};
	struct fixture *fixture = *state;
	CONNECT_OK(fixture, steps);
	assert_int_equal(qmp_execute_oob(fixture->qmp, "yank", json_pack("{s:[]}", "instances"), NULL, LONG_MS, NULL),
			 0);
}

static void test_does_without_oob(void **state)
{
	static const struct fake_qmp_step steps[] = {
		{FAKE_QMP_SEND, "{\"QMP\": {\"version\": {}, \"capabilities\": []}}\r\n", 0},
		{FAKE_QMP_EXPECT, "qmp_capabilities", 0},
		{FAKE_QMP_SEND, "{\"return\": {}, \"id\": $1}\r\n", 0},
		{FAKE_QMP_EXPECT_END, NULL, 0},
	};
	struct fixture *fixture = *state;
	CONNECT_OK(fixture, steps);
	cleanup_error struct error *error = NULL;
	assert_int_equal(qmp_execute_oob(fixture->qmp, "yank", NULL, NULL, LONG_MS, &error), -1);
	assert_int_equal(error->code, ERROR_UNSUPPORTED);
}

static void test_no_greeting_is_a_timeout(void **state)
{
	static const struct fake_qmp_step steps[] = {{FAKE_QMP_EXPECT_END, NULL, 0}};
	cleanup_error struct error *error = NULL;
	assert_int_equal(CONNECT(*state, steps, 20, &error), -1);
	assert_int_equal(error->code, ERROR_TIMEOUT);
}

static void test_end_before_greeting(void **state)
{
	static const struct fake_qmp_step steps[] = {{FAKE_QMP_CLOSE, NULL, 0}};
	struct fixture *fixture = *state;
	cleanup_error struct error *error = NULL;
	assert_int_equal(CONNECT(fixture, steps, LONG_MS, &error), -1);
	assert_int_equal(error->code, ERROR_QEMU_GONE);
	assert_int_equal(fixture->closed_count, 0);
}

static void test_refused_negotiation(void **state)
{
	static const struct fake_qmp_step steps[] = {
		FAKE_QMP_GREETING_OOB,
		{FAKE_QMP_EXPECT, "qmp_capabilities", 0},
		{FAKE_QMP_SEND, "{\"error\": {\"class\": \"GenericError\", \"desc\": \"not today\"}, \"id\": $1}\n", 0},
		{FAKE_QMP_EXPECT_END, NULL, 0},
	};
	struct fixture *fixture = *state;
	cleanup_error struct error *error = NULL;
	assert_int_equal(CONNECT(fixture, steps, LONG_MS, &error), -1);
	assert_int_equal(error->code, ERROR_QEMU_QMP);
	assert_non_null(strstr(error->message, "not today"));
	assert_int_equal(fixture->closed_count, 0);
}

/* An event right behind the reply to qmp_capabilities must not be lost while qmp_new() is still about to return. */
static void test_event_right_after_negotiation(void **state)
{
	static const struct fake_qmp_step steps[] = {
		FAKE_QMP_GREETING_OOB,
		{FAKE_QMP_EXPECT, "qmp_capabilities", 0},
		{FAKE_QMP_SEND, "{\"return\": {}, \"id\": $1}\r\n{\"event\": \"RESUME\", \"timestamp\": {}}\r\n", 0},
		{FAKE_QMP_EXPECT_END, NULL, 0},
	};
	struct fixture *fixture = *state;
	CONNECT_OK(fixture, steps);
	wait_for(&fixture->event_came);
	assert_string_equal(fixture->events, "RESUME -;");
}

/* ---- replies and events ---- */

static void test_events_between_replies(void **state)
{
	static const struct fake_qmp_step steps[] = {
		FAKE_QMP_HELLO,
		{FAKE_QMP_EXPECT, "query-status", 0},
		{FAKE_QMP_SEND, "{\"event\": \"STOP\", \"timestamp\": {\"seconds\": 1, \"microseconds\": 2}}\r\n", 0},
		{FAKE_QMP_SEND, "{\"event\": \"MIGRATION\", \"data\": {\"status\": \"active\"}}\r\n", 0},
		{FAKE_QMP_SEND, "{\"return\": {\"status\": \"paused\"}, \"id\": $2}\r\n", 0},
		{FAKE_QMP_SEND, "{\"event\": \"RESUME\"}\r\n", 0},
		{FAKE_QMP_EXPECT_END, NULL, 0},
	};
	struct fixture *fixture = *state;
	CONNECT_OK(fixture, steps);
	assert_returns(fixture, "query-status", "{\"status\":\"paused\"}");
	for (int i = 0; i < 3; i++)
		wait_for(&fixture->event_came);
	assert_string_equal(fixture->events, "STOP -;MIGRATION {\"status\":\"active\"};RESUME -;");
}

static void test_split_and_merged_lines(void **state)
{
	static const struct fake_qmp_step steps[] = {
		FAKE_QMP_HELLO,
		{FAKE_QMP_EXPECT, "one", 0},
		{FAKE_QMP_SEND_BYTES, "{\"event\": \"A\"}\r\n\r\n{\"return\": 1, \"id\": $2}\r\n{\"event\": \"B\"}\n",
		 0},
		{FAKE_QMP_EXPECT, "two", 0},
		{FAKE_QMP_SEND, "{\"event\": \"C\"}\n{\"event\": \"D\"}\n{\"return\": 2, \"id\": $3}\n{\"event\": \"E",
		 0},
		{FAKE_QMP_EXPECT, "three", 0},
		{FAKE_QMP_SEND, "\"}\n{\"return\": 3, \"id\": $4}\n", 0},
		{FAKE_QMP_EXPECT_END, NULL, 0},
	};
	struct fixture *fixture = *state;
	CONNECT_OK(fixture, steps);
	assert_returns(fixture, "one", "1");
	assert_returns(fixture, "two", "2");
	assert_returns(fixture, "three", "3");
	for (int i = 0; i < 5; i++)
		wait_for(&fixture->event_came);
	assert_string_equal(fixture->events, "A -;B -;C -;D -;E -;");
}

static void test_replies_out_of_order_find_their_threads(void **state)
{
	static const struct fake_qmp_step steps[] = {
		FAKE_QMP_HELLO,
		{FAKE_QMP_EXPECT, "one", 0},
		{FAKE_QMP_SEND, "{\"event\": \"GOT_ONE\"}\n", 0},
		{FAKE_QMP_EXPECT, "two", 0},
		{FAKE_QMP_SEND, "{\"return\": 22, \"id\": $3}\n{\"return\": 11, \"id\": $2}\n", 0},
		{FAKE_QMP_EXPECT_END, NULL, 0},
	};
	struct fixture *fixture = *state;
	CONNECT_OK(fixture, steps);
	struct executor one, two;
	executor_start(&one, fixture, "one");
	wait_for(&fixture->event_came);
	executor_start(&two, fixture, "two");
	executor_join(&one);
	executor_join(&two);
	assert_int_equal(one.result, 0);
	assert_int_equal(two.result, 0);
	assert_int_equal(json_integer_value(one.value), 11);
	assert_int_equal(json_integer_value(two.value), 22);
	executor_done(&one);
	executor_done(&two);
}

static void test_late_reply_is_dropped(void **state)
{
	static const struct fake_qmp_step steps[] = {
		FAKE_QMP_HELLO,
		{FAKE_QMP_EXPECT, "slow", 0},
		{FAKE_QMP_EXPECT, "next", 0},
		{FAKE_QMP_SEND, "{\"return\": \"late\", \"id\": $2}\n{\"return\": \"mine\", \"id\": $3}\n", 0},
		{FAKE_QMP_EXPECT, "last", 0},
		{FAKE_QMP_SEND, "{\"return\": \"again\", \"id\": $2}\n{\"return\": \"last\", \"id\": $4}\n", 0},
		{FAKE_QMP_EXPECT_END, NULL, 0},
	};
	struct fixture *fixture = *state;
	CONNECT_OK(fixture, steps);
	assert_fails(fixture, "slow", 20, ERROR_TIMEOUT, "slow");
	assert_returns(fixture, "next", "\"mine\"");
	assert_returns(fixture, "last", "\"last\"");
}

static void test_refusal_carries_qemus_words(void **state)
{
	static const struct fake_qmp_step steps[] = {
		FAKE_QMP_HELLO,
		{FAKE_QMP_EXPECT, "cont", 0},
		{FAKE_QMP_SEND,
		 "{\"id\": $2, \"error\": {\"class\": \"GenericError\", \"desc\": \"Failed to get \\\"write\\\" "
		 "lock\"}}\n",
		 0},
		{FAKE_QMP_EXPECT, "stop", 0},
		{FAKE_QMP_SEND, "{\"id\": $3, \"error\": 7}\n", 0},
		{FAKE_QMP_EXPECT, "stop", 0},
		{FAKE_QMP_SEND, "{\"return\": {}, \"id\": $4}\n", 0},
		{FAKE_QMP_EXPECT_END, NULL, 0},
	};
	struct fixture *fixture = *state;
	CONNECT_OK(fixture, steps);
	assert_fails(fixture, "cont", LONG_MS, ERROR_QEMU_QMP, "Failed to get \"write\" lock");
	assert_fails(fixture, "stop", LONG_MS, ERROR_QEMU_QMP, "stop");
	assert_returns(fixture, "stop", "{}");
}

/* QEMU has properties up to 2^64-1, which the JSON library cannot hold. */
static void test_numbers_too_large(void **state)
{
	static const struct fake_qmp_step steps[] = {
		FAKE_QMP_HELLO,
		{FAKE_QMP_EXPECT, "big", 0},
		{FAKE_QMP_SEND,
		 "{\"return\": [18446744073709551615, 9223372036854775807, \"a\\\"18446744073709551615\", -1, 42], "
		 "\"id\": $2}\n",
		 0},
		{FAKE_QMP_EXPECT_END, NULL, 0},
	};
	struct fixture *fixture = *state;
	CONNECT_OK(fixture, steps);
	assert_returns(fixture, "big", "[9223372036854775807,9223372036854775807,\"a\\\"18446744073709551615\",-1,42]");
}

static void test_replies_to_nobody_are_ignored(void **state)
{
	static const struct fake_qmp_step steps[] = {
		FAKE_QMP_HELLO,
		{FAKE_QMP_SEND,
		 "{\"return\": {}, \"id\": 123456}\n{\"error\": {\"desc\": \"parse\"}}\n{\"id\": \"x\"}\n", 0},
		{FAKE_QMP_EXPECT, "stop", 0},
		{FAKE_QMP_SEND, "{\"return\": {}, \"id\": $2}\n", 0},
		{FAKE_QMP_EXPECT_END, NULL, 0},
	};
	struct fixture *fixture = *state;
	CONNECT_OK(fixture, steps);
	assert_returns(fixture, "stop", "{}");
}

static void test_passes_a_descriptor(void **state)
{
	static const struct fake_qmp_step steps[] = {
		FAKE_QMP_HELLO,
		{FAKE_QMP_EXPECT_FD, "getfd {\"fdname\": \"m\"}", 0},
		{FAKE_QMP_SEND, "{\"return\": {}, \"id\": $2}\n", 0},
		{FAKE_QMP_EXPECT_END, NULL, 0},
	};
	struct fixture *fixture = *state;
	CONNECT_OK(fixture, steps);
	int fds[2];
	assert_int_equal(pipe(fds), 0);
	assert_int_equal(qmp_execute_with_fd(fixture->qmp, "getfd", json_pack("{s:s}", "fdname", "m"), fds[0], NULL,
					     LONG_MS, NULL),
			 0);
	struct stat mine, theirs;
	assert_int_equal(fstat(fds[0], &mine), 0); /* still ours */
	assert_int_equal(fstat(fake_qmp_received_fd(fixture->fake), &theirs), 0);
	assert_int_equal(mine.st_ino, theirs.st_ino);
	cleanup_error struct error *error = NULL;
	close(fds[0]);
	assert_int_equal(qmp_execute_with_fd(fixture->qmp, "getfd", NULL, fds[0], NULL, LONG_MS, &error), -1);
	assert_int_equal(error->code, ERROR_SYSTEM);
	assert_int_equal(error->sys_errno, EBADF);
	close(fds[1]);
}

/* QEMU would stop reading at 8 commands: the 8th must not be sent, while one out of band gets through. */
static void test_no_more_than_seven_in_band(void **state)
{
	static const struct fake_qmp_step steps[] = {
		FAKE_QMP_HELLO,
		{FAKE_QMP_EXPECT, "c", 0},
		{FAKE_QMP_EXPECT, "c", 0},
		{FAKE_QMP_EXPECT, "c", 0},
		{FAKE_QMP_EXPECT, "c", 0},
		{FAKE_QMP_EXPECT, "c", 0},
		{FAKE_QMP_EXPECT, "c", 0},
		{FAKE_QMP_EXPECT, "c", 0},
		{FAKE_QMP_SEND, "{\"event\": \"FULL\"}\n", 0},
		{FAKE_QMP_EXPECT, "exec-oob:yank", 0},
		{FAKE_QMP_SEND, "{\"return\": {}, \"id\": $9}\n{\"return\": 1, \"id\": $2}\n", 0},
		{FAKE_QMP_EXPECT, "c", 0},
		{FAKE_QMP_SEND,
		 "{\"return\": 1, \"id\": $3}\n{\"return\": 1, \"id\": $4}\n{\"return\": 1, \"id\": $5}\n", 0},
		{FAKE_QMP_SEND,
		 "{\"return\": 1, \"id\": $6}\n{\"return\": 1, \"id\": $7}\n{\"return\": 1, \"id\": $8}\n", 0},
		{FAKE_QMP_SEND, "{\"return\": 1, \"id\": $10}\n", 0},
		{FAKE_QMP_EXPECT_END, NULL, 0},
	};
	struct fixture *fixture = *state;
	CONNECT_OK(fixture, steps);
	struct executor executors[8];
	for (size_t i = 0; i < 8; i++)
		executor_start(&executors[i], fixture, "c");
	wait_for(&fixture->event_came);
	assert_fails(fixture, "c", 50, ERROR_TIMEOUT, "c"); /* a ninth has no place either, and leaves no trace */
	assert_int_equal(qmp_execute_oob(fixture->qmp, "yank", NULL, NULL, LONG_MS, NULL), 0);
	for (size_t i = 0; i < 8; i++) {
		executor_join(&executors[i]);
		assert_int_equal(executors[i].result, 0);
		executor_done(&executors[i]);
	}
}

/* ---- the end of a connection ---- */

static void test_death_in_the_middle_of_a_reply(void **state)
{
	static const struct fake_qmp_step steps[] = {
		FAKE_QMP_HELLO,
		{FAKE_QMP_EXPECT, "stop", 0},
		{FAKE_QMP_SEND, "{\"event\": \"STOP\"}\n{\"return\": {}, \"i", 0},
		{FAKE_QMP_CLOSE, NULL, 0},
	};
	struct fixture *fixture = *state;
	CONNECT_OK(fixture, steps);
	assert_fails(fixture, "stop", LONG_MS, ERROR_QEMU_GONE, "stop");
	wait_for(&fixture->closed_came);
	assert_string_equal(fixture->events, "STOP -;"); /* whole lines before the end count */
	assert_fails(fixture, "cont", LONG_MS, ERROR_QEMU_GONE, "cont");
	assert_int_equal(fixture->closed_count, 1);
}

static void test_reply_then_death(void **state)
{
	static const struct fake_qmp_step steps[] = {
		FAKE_QMP_HELLO,
		{FAKE_QMP_EXPECT, "quit", 0},
		{FAKE_QMP_SEND, "{\"return\": {}, \"id\": $2}\n{\"event\": \"SHUTDOWN\"}\n", 0},
		{FAKE_QMP_CLOSE, NULL, 0},
	};
	struct fixture *fixture = *state;
	CONNECT_OK(fixture, steps);
	assert_returns(fixture, "quit", "{}");
	wait_for(&fixture->closed_came);
	assert_string_equal(fixture->events, "SHUTDOWN -;");
}

/* A command that fails because QEMU is dead: whether it can have been carried out. */
static void assert_gone(struct fixture *fixture, bool wanted_heard)
{
	cleanup_error struct error *error = NULL;
	bool heard = !wanted_heard;
	assert_int_equal(qmp_execute_heard(fixture->qmp, "cont", NULL, NULL, LONG_MS, &heard, &error), -1);
	assert_int_equal(error->code, ERROR_QEMU_GONE);
	assert_int_equal(heard, wanted_heard);
}

/* It was sent, and all but its last byte was read. */
static void test_unread_at_death(void **state)
{
	struct fixture *fixture = *state;
	static const struct fake_qmp_step steps[] = {
		FAKE_QMP_HELLO, {FAKE_QMP_READ, NULL, sizeof("{\"execute\":\"cont\",\"id\":4}") - 2}, {FAKE_QMP_CLOSE, NULL, 0}};
	CONNECT_OK(fixture, steps);
	assert_gone(fixture, false);
	wait_for(&fixture->closed_came);
}

static void test_heard_before_death(void **state)
{
	struct fixture *fixture = *state;
	static const struct fake_qmp_step steps[] = {FAKE_QMP_HELLO, {FAKE_QMP_EXPECT, "cont", 0}, {FAKE_QMP_CLOSE, NULL, 0}};
	CONNECT_OK(fixture, steps);
	assert_gone(fixture, true);
	wait_for(&fixture->closed_came);
	assert_gone(fixture, false);
}

/* The death shows first to the thread that writes: the loop's is busy. */
static void test_dead_and_not_noticed(void **state)
{
	struct fixture *fixture = *state;
	static const struct fake_qmp_step steps[] = {
		FAKE_QMP_HELLO, {FAKE_QMP_SEND, "{\"event\": \"STOP\"}\r\n", 0}, {FAKE_QMP_CLOSE, NULL, 0}};
	fixture->stay_in_event = true;
	CONNECT_OK(fixture, steps);
	wait_for(&fixture->event_came);
	cleanup_free char *failure = fake_qmp_end(take_ptr(fixture->fake));
	assert_null(failure);
	assert_gone(fixture, false);
	assert_int_equal(fixture->closed_count, 0);
	sem_post(&fixture->event_ends);
	wait_for(&fixture->closed_came);
}

static void test_garbage_closes(void **state)
{
	static const char *const garbage[] = {
		"hello\n",
		"{\"return\": {}, \"id\": \n",
		"[1]\n",
		"{\"event\": \"A\", \"event\": \"B\"}\n",
		"{\"event\": \"\xff\"}\n",
	};
	struct fixture *fixture = *state;
	for (size_t i = 0; i < sizeof(garbage) / sizeof(garbage[0]); i++) {
		const struct fake_qmp_step steps[] = {
			FAKE_QMP_HELLO,
			{FAKE_QMP_EXPECT, "stop", 0},
			{FAKE_QMP_SEND, garbage[i], 0},
			{FAKE_QMP_EXPECT_END, NULL, 0},
		};
		CONNECT_OK(fixture, steps);
		assert_fails(fixture, "stop", LONG_MS, ERROR_QEMU_GONE, "not QMP");
		wait_for(&fixture->closed_came);
		qmp_free(take_ptr(fixture->qmp));
		char *failure = fake_qmp_end(take_ptr(fixture->fake));
		assert_null(failure);
	}
	assert_string_equal(fixture->events, "");
}

static void test_line_without_end_closes(void **state)
{
	static const struct fake_qmp_step steps[] = {
		FAKE_QMP_HELLO,
		{FAKE_QMP_EXPECT, "stop", 0},
		{FAKE_QMP_FLOOD, NULL, 64UL << 20},
		{FAKE_QMP_EXPECT_END, NULL, 0},
	};
	struct fixture *fixture = *state;
	CONNECT_OK(fixture, steps);
	assert_fails(fixture, "stop", LONG_MS, ERROR_QEMU_GONE, "more than 16777216 bytes");
	wait_for(&fixture->closed_came);
}

static void test_long_line_is_taken(void **state)
{
	const size_t size = (size_t)15 << 20;
	cleanup_free char *reply = xcalloc(size + 100, 1);
	size_t used = (size_t)snprintf(reply, 100, "{\"return\": \"");
	memset(reply + used, 'y', size);
	snprintf(reply + used + size, 50, "\", \"id\": $2}\n");
	const struct fake_qmp_step steps[] = {
		FAKE_QMP_HELLO,
		{FAKE_QMP_EXPECT, "long", 0},
		{FAKE_QMP_SEND, reply, 0},
		{FAKE_QMP_EXPECT, "short", 0},
		{FAKE_QMP_SEND, "{\"return\": 5, \"id\": $3}\n", 0},
		{FAKE_QMP_EXPECT_END, NULL, 0},
	};
	struct fixture *fixture = *state;
	CONNECT_OK(fixture, steps);
	cleanup_json json_t *value = NULL;
	assert_int_equal(qmp_execute(fixture->qmp, "long", NULL, &value, LONG_MS, NULL), 0);
	assert_int_equal(json_string_length(value), size);
	assert_returns(fixture, "short", "5");
}

/* A QEMU that does not read its monitor: the command ends in time, and half a line is never followed by another. */
static void test_peer_that_does_not_read(void **state)
{
	static const struct fake_qmp_step steps[] = {
		FAKE_QMP_HELLO,
		{FAKE_QMP_GATE, NULL, 0},
		{FAKE_QMP_CLOSE, NULL, 0},
	};
	struct fixture *fixture = *state;
	CONNECT_OK(fixture, steps);
	const size_t size = (size_t)4 << 20;
	cleanup_free char *text = xcalloc(size + 1, 1);
	memset(text, 'z', size);
	cleanup_error struct error *error = NULL;
	assert_int_equal(qmp_execute(fixture->qmp, "big", json_pack("{s:s}", "x", text), NULL, 50, &error), -1);
	assert_int_equal(error->code, ERROR_TIMEOUT);
	wait_for(&fixture->closed_came);
	assert_fails(fixture, "stop", LONG_MS, ERROR_QEMU_GONE, "stop");
	fake_qmp_open_gate(fixture->fake);
}

static void test_free_while_a_command_waits(void **state)
{
	static const struct fake_qmp_step steps[] = {
		FAKE_QMP_HELLO,
		{FAKE_QMP_EXPECT, "wait", 0},
		{FAKE_QMP_SEND, "{\"event\": \"GOT\"}\n", 0},
		{FAKE_QMP_EXPECT_END, NULL, 0},
	};
	struct fixture *fixture = *state;
	CONNECT_OK(fixture, steps);
	struct executor executor;
	executor_start(&executor, fixture, "wait");
	wait_for(&fixture->event_came);
	qmp_free(take_ptr(fixture->qmp));
	executor_join(&executor);
	assert_int_equal(executor.result, -1);
	assert_int_equal(executor.error->code, ERROR_QEMU_GONE);
	assert_int_equal(fixture->closed_count, 0);
	executor_done(&executor);
}

static void test_free_from_an_event(void **state)
{
	static const struct fake_qmp_step steps[] = {
		FAKE_QMP_HELLO,
		{FAKE_QMP_GATE, NULL, 0},
		{FAKE_QMP_SEND, "{\"event\": \"A\"}\n{\"event\": \"B\"}\ngarbage\n", 0},
		{FAKE_QMP_EXPECT_END, NULL, 0},
	};
	struct fixture *fixture = *state;
	CONNECT_OK(fixture, steps);
	fixture->free_in_event = true;
	fake_qmp_open_gate(fixture->fake);
	wait_for(&fixture->event_came);
	cleanup_free char *failure = fake_qmp_end(take_ptr(fixture->fake));
	assert_null(failure);
	assert_string_equal(fixture->events, "A -;");
	assert_int_equal(fixture->closed_count, 0);
}

/* Free and the peer's death at once, many times: each resource is let go once, whoever comes first. */
static void test_free_races_with_death(void **state)
{
	static const struct fake_qmp_step steps[] = {
		FAKE_QMP_HELLO, {FAKE_QMP_GATE, NULL, 0}, {FAKE_QMP_CLOSE, NULL, 0}};
	struct fixture *fixture = *state;
	for (int i = 0; i < 300; i++) {
		CONNECT_OK(fixture, steps);
		fake_qmp_open_gate(fixture->fake);
		for (int spin = 0; spin < i % 30; spin++)
			sched_yield();
		qmp_free(take_ptr(fixture->qmp));
		assert_false(fixture->in_closed); /* no callback after qmp_free() */
		unsigned int closed_count = fixture->closed_count;
		assert_null(fake_qmp_end(take_ptr(fixture->fake)));
		assert_int_equal(fixture->closed_count, closed_count);
	}
}

/* Many threads at once, each gets its own reply. */
static void *hammer(void *user)
{
	struct fixture *fixture = user;
	for (int i = 0; i < 200; i++)
		if (qmp_execute(fixture->qmp, "x", NULL, NULL, LONG_MS, NULL) < 0)
			return fixture;
	return NULL;
}

static void test_many_threads(void **state)
{
	static const struct fake_qmp_step steps[] = {FAKE_QMP_HELLO, {FAKE_QMP_SERVE, NULL, 0}};
	struct fixture *fixture = *state;
	CONNECT_OK(fixture, steps);
	pthread_t threads[12];
	for (size_t i = 0; i < 12; i++)
		assert_int_equal(pthread_create(&threads[i], NULL, hammer, fixture), 0);
	for (size_t i = 0; i < 12; i++) {
		void *failed;
		pthread_join(threads[i], &failed);
		assert_null(failed);
	}
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
	const struct CMUnitTest tests[] = {
		TEST(test_enables_oob_where_offered),
		TEST(test_does_without_oob),
		TEST(test_no_greeting_is_a_timeout),
		TEST(test_end_before_greeting),
		TEST(test_refused_negotiation),
		TEST(test_event_right_after_negotiation),
		TEST(test_events_between_replies),
		TEST(test_split_and_merged_lines),
		TEST(test_replies_out_of_order_find_their_threads),
		TEST(test_late_reply_is_dropped),
		TEST(test_refusal_carries_qemus_words),
		TEST(test_numbers_too_large),
		TEST(test_replies_to_nobody_are_ignored),
		TEST(test_passes_a_descriptor),
		TEST(test_no_more_than_seven_in_band),
		TEST(test_death_in_the_middle_of_a_reply),
		TEST(test_reply_then_death),
		TEST(test_unread_at_death),
		TEST(test_heard_before_death),
		TEST(test_dead_and_not_noticed),
		TEST(test_garbage_closes),
		TEST(test_line_without_end_closes),
		TEST(test_long_line_is_taken),
		TEST(test_peer_that_does_not_read),
		TEST(test_free_while_a_command_waits),
		TEST(test_free_from_an_event),
		TEST(test_free_races_with_death),
		TEST(test_many_threads),
	};
	log_set_level(LOG_LEVEL_ERROR);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
