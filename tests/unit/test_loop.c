/* SPDX-License-Identifier: Apache-2.0 */
/* The control event loop: sources of each kind, and adding and removing them from everywhere. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <semaphore.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "net/loop.h"

#define LONG_MS 10000 /* never waited for in a test that passes */

static struct loop *loop;

static int setup(void **state)
{
	(void)state;
	return loop_new(&loop, NULL);
}

static int teardown(void **state)
{
	(void)state;
	loop_free(loop);
	return 0;
}

static void quit(void *user)
{
	(void)user;
	loop_quit(loop);
}

static void run(void)
{
	struct loop_source *alarm = loop_add_timer(loop, LONG_MS, 0, quit, NULL); /* a test that hangs fails instead */
	int64_t start_ms = clock_monotonic_ms();
	assert_int_equal(loop_run(loop, NULL), 0);
	assert_true(clock_monotonic_ms() - start_ms < LONG_MS / 2);
	loop_source_remove(alarm);
}

/* ---- in one thread ---- */

static void test_quit_before_run(void **state)
{
	(void)state;
	loop_quit(loop);
	run();
	loop_post(loop, quit, NULL); /* and it is used up: the next run needs its own */
	run();
}

static char order[16];

static char marks[] = "1234";

static void note(void *user)
{
	size_t used = strlen(order);
	order[used] = *(char *)user;
	order[used + 1] = '\0';
}

static void note_and_post(void *user)
{
	note(user);
	loop_post(loop, note, &marks[3]);
	loop_post(loop, quit, NULL);
}

static void test_posts_run_in_order(void **state)
{
	(void)state;
	order[0] = '\0';
	loop_post(loop, note, &marks[0]);
	loop_post(loop, note_and_post, &marks[1]);
	loop_post(loop, note, &marks[2]);
	run();
	assert_string_equal(order, "1234");
}

static void test_posts_are_dropped_with_the_loop(void **state)
{
	(void)state;
	order[0] = '\0';
	loop_post(loop, note, &marks[0]);
	loop_free(loop);
	assert_string_equal(order, "");
	assert_int_equal(loop_new(&loop, NULL), 0);
}

struct reader {
	int fd;
	struct loop_source *source, *other;
	uint32_t events;
	int calls;
};

static void on_readable(void *user, uint32_t epoll_events)
{
	struct reader *reader = user;
	char byte;
	reader->events |= epoll_events;
	reader->calls++;
	if (read(reader->fd, &byte, 1) != 1)
		loop_quit(loop);
}

static void test_descriptor(void **state)
{
	(void)state;
	int fds[2];
	assert_int_equal(pipe2(fds, O_NONBLOCK), 0);
	struct reader reader = {.fd = fds[0]};
	reader.source = loop_add_fd(loop, fds[0], EPOLLIN, on_readable, &reader);
	assert_int_equal(write(fds[1], "ab", 2), 2);
	close(fds[1]); /* two bytes, then the end */
	run();
	assert_int_equal(reader.calls, 3);
	assert_true(reader.events & EPOLLIN);
	assert_true(reader.events & EPOLLHUP);
	loop_source_remove(reader.source);
	loop_source_remove(NULL);
	close(fds[0]);
}

/* Two descriptors are ready in one batch; the first callback removes the other's source: that must not run. */
static void remove_both(void *user, uint32_t epoll_events)
{
	(void)epoll_events;
	struct reader *reader = user;
	reader->calls++;
	loop_source_remove(reader->other);
	loop_source_remove(reader->source); /* itself too */
	loop_post(loop, quit, NULL);
}

static void test_remove_in_the_same_batch(void **state)
{
	(void)state;
	int fds[2];
	assert_int_equal(pipe2(fds, O_NONBLOCK), 0);
	int second_fd = dup(fds[0]);
	struct reader first = {.fd = fds[0]}, second = {.fd = second_fd};
	first.source = loop_add_fd(loop, fds[0], EPOLLIN, remove_both, &first);
	second.source = loop_add_fd(loop, second_fd, EPOLLIN, remove_both, &second);
	first.other = second.source;
	second.other = first.source;
	assert_int_equal(write(fds[1], "x", 1), 1);
	run();
	assert_int_equal(first.calls + second.calls, 1);
	/* The number may come back at once with another source. */
	struct reader third = {.fd = fds[0]};
	third.source = loop_add_fd(loop, fds[0], EPOLLIN, on_readable, &third);
	close(fds[1]);
	run();
	assert_int_equal(third.calls, 2);
	loop_source_remove(third.source);
	close(fds[0]);
	close(second_fd);
}

struct ticker {
	struct loop_source *timer;
	int ticks, quit_at;
	int64_t last_us;
};

static void tick(void *user)
{
	struct ticker *ticker = user;
	ticker->last_us = clock_monotonic_us();
	if (++ticker->ticks == ticker->quit_at)
		loop_quit(loop);
}

static void test_timers(void **state)
{
	(void)state;
	struct ticker once = {0}, never = {0}, at_once = {0}, periodic = {.quit_at = 5};
	int64_t start_us = clock_monotonic_us();
	once.timer = loop_add_timer(loop, 5, 0, tick, &once);
	never.timer = loop_add_timer(loop, -1, 0, tick, &never);
	at_once.timer = loop_add_timer(loop, 0, 0, tick, &at_once);
	periodic.timer = loop_add_timer(loop, 20, 10, tick, &periodic);
	run();
	assert_int_equal(once.ticks, 1);
	assert_int_equal(never.ticks, 0);
	assert_int_equal(at_once.ticks, 1);
	assert_true(once.last_us - start_us >= 5000);
	/* Periods that passed while the machine was busy come as one call, so only a lower limit holds. */
	assert_true(periodic.last_us - start_us >= 20000 + 4 * 10000 - 1000);

	/* Set anew: a single one again, the periodic one never again. */
	loop_timer_set(periodic.timer, -1, 0);
	once.quit_at = 2;
	loop_timer_set(once.timer, 1, 0);
	run();
	assert_int_equal(once.ticks, 2);
	assert_int_equal(periodic.ticks, 5);
	loop_source_remove(once.timer);
	loop_source_remove(never.timer);
	loop_source_remove(at_once.timer);
	loop_source_remove(periodic.timer);
}

/* Two timers are due in one batch, and the callback of each puts the other off: only one may run. */
static struct ticker pair[2];

static void put_other_off(void *user)
{
	struct ticker *mine = user;
	mine->ticks++;
	loop_timer_set(pair[mine == &pair[0]].timer, -1, 0);
	loop_post(loop, quit, NULL);
}

static void test_timer_set_overrides_what_is_due(void **state)
{
	(void)state;
	memset(pair, 0, sizeof(pair));
	for (int i = 0; i < 2; i++)
		pair[i].timer = loop_add_timer(loop, 0, 0, put_other_off, &pair[i]);
	run();
	assert_int_equal(pair[0].ticks + pair[1].ticks, 1);
	for (int i = 0; i < 2; i++)
		loop_source_remove(pair[i].timer);
}

static int signal_seen;

static void on_signal(void *user, int signal_number)
{
	(void)user;
	signal_seen = signal_number;
	loop_quit(loop);
}

static void test_signal(void **state)
{
	(void)state;
	sigset_t set;
	sigemptyset(&set);
	sigaddset(&set, SIGUSR1);
	pthread_sigmask(SIG_BLOCK, &set, NULL);
	struct loop_source *source = loop_add_signal(loop, SIGUSR1, on_signal, NULL);
	kill(getpid(), SIGUSR1);
	run();
	assert_int_equal(signal_seen, SIGUSR1);
	loop_source_remove(source);
	pthread_sigmask(SIG_UNBLOCK, &set, NULL);
}

static void note_if_current(void *user)
{
	*(bool *)user = loop_is_current(loop);
	loop_quit(loop);
}

static void test_is_current(void **state)
{
	(void)state;
	bool is_current = false;
	assert_false(loop_is_current(loop));
	loop_post(loop, note_if_current, &is_current);
	run();
	assert_true(is_current);
	assert_false(loop_is_current(loop));
}

/* ---- across threads ---- */

static void *run_thread(void *user)
{
	(void)user;
	(void)!loop_run(loop, NULL);
	return NULL;
}

struct slow {
	int fd;
	sem_t entered, leave;
	atomic_bool inside;
};

static void stay(void *user, uint32_t epoll_events)
{
	(void)epoll_events;
	struct slow *slow = user;
	char byte;
	slow->inside = true;
	if (read(slow->fd, &byte, 1) != 1) /* so that it comes in only once a round */
		abort();
	sem_post(&slow->entered);
	sem_wait(&slow->leave);
	sched_yield();
	slow->inside = false;
}

static void *let_leave(void *user)
{
	struct slow *slow = user;
	for (int i = 0; i < 100; i++)
		sched_yield(); /* so that the remove is most likely waiting by now */
	sem_post(&slow->leave);
	return NULL;
}

static void test_remove_waits_for_the_callback(void **state)
{
	(void)state;
	pthread_t loop_thread, helper;
	assert_int_equal(pthread_create(&loop_thread, NULL, run_thread, NULL), 0);
	int fds[2];
	assert_int_equal(pipe(fds), 0);
	struct slow slow = {.fd = fds[0]};
	sem_init(&slow.entered, 0, 0);
	sem_init(&slow.leave, 0, 0);
	for (int i = 0; i < 50; i++) {
		struct loop_source *source = loop_add_fd(loop, fds[0], EPOLLIN, stay, &slow);
		assert_int_equal(write(fds[1], "x", 1), 1);
		sem_wait(&slow.entered);
		assert_int_equal(pthread_create(&helper, NULL, let_leave, &slow), 0);
		loop_source_remove(source);
		assert_false(slow.inside);
		pthread_join(helper, NULL);
	}
	loop_quit(loop);
	pthread_join(loop_thread, NULL);
	close(fds[0]);
	close(fds[1]);
	sem_destroy(&slow.entered);
	sem_destroy(&slow.leave);
}

/* Threads add and remove sources that are ready all the time; a callback after the remove would find its flag down. */
struct watched {
	atomic_bool is_allowed;
	atomic_int calls;
};

static atomic_bool was_late;

static void on_watched(void *user, uint32_t epoll_events)
{
	(void)epoll_events;
	struct watched *watched = user;
	if (!watched->is_allowed)
		was_late = true;
	watched->calls++;
}

static void on_watched_timer(void *user)
{
	on_watched(user, 0);
}

static void on_watched_post(void *user)
{
	atomic_int *posts = user;
	(*posts)++;
}

static atomic_int posts_run;

static void *churn(void *user)
{
	(void)user;
	int fds[2];
	if (pipe(fds) < 0 || write(fds[1], "x", 1) != 1)
		abort();
	int calls = 0;
	for (int i = 0; i < 400; i++) {
		struct watched *watched = malloc(sizeof(*watched)); /* freed right after: a late call would be seen */
		if (!watched)
			abort();
		atomic_init(&watched->is_allowed, true);
		atomic_init(&watched->calls, 0);
		struct loop_source *source = loop_add_fd(loop, fds[0], EPOLLIN, on_watched, watched);
		struct loop_source *timer = loop_add_timer(loop, 0, 1, on_watched_timer, watched);
		loop_post(loop, on_watched_post, &posts_run);
		for (int spin = 0; spin < i % 7; spin++)
			sched_yield();
		loop_source_remove(source);
		loop_source_remove(timer);
		watched->is_allowed = false;
		calls += watched->calls;
		free(watched);
	}
	close(fds[0]);
	close(fds[1]);
	return (void *)(intptr_t)calls;
}

static void test_churn_from_many_threads(void **state)
{
	(void)state;
	pthread_t loop_thread, threads[4];
	posts_run = 0;
	assert_int_equal(pthread_create(&loop_thread, NULL, run_thread, NULL), 0);
	for (size_t i = 0; i < 4; i++)
		assert_int_equal(pthread_create(&threads[i], NULL, churn, NULL), 0);
	intptr_t calls = 0;
	for (size_t i = 0; i < 4; i++) {
		void *result;
		pthread_join(threads[i], &result);
		calls += (intptr_t)result;
	}
	loop_post(loop, quit, NULL); /* behind all other posts */
	pthread_join(loop_thread, NULL);
	assert_false(was_late);
	assert_true(calls > 0);
	assert_int_equal(posts_run, 4 * 400);
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
	const struct CMUnitTest tests[] = {
		TEST(test_quit_before_run),
		TEST(test_posts_run_in_order),
		TEST(test_posts_are_dropped_with_the_loop),
		TEST(test_descriptor),
		TEST(test_remove_in_the_same_batch),
		TEST(test_timers),
		TEST(test_timer_set_overrides_what_is_due),
		TEST(test_signal),
		TEST(test_is_current),
		TEST(test_remove_waits_for_the_callback),
		TEST(test_churn_from_many_threads),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
