/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Threads that are slowed down from outside (vm/throttle.h), on the kernel itself: what policy they get, what is put back, and
 * that those that are not for us to change are not changed.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "vm/throttle.h"

#define LONG_US 30000000

#ifndef SCHED_DEADLINE
#define SCHED_DEADLINE 6
#endif

/* sched_setattr(2) */
struct thread_attributes {
	uint32_t size, policy;
	uint64_t flags;
	int32_t nice;
	uint32_t priority;
	uint64_t runtime_ns, deadline_ns, period_ns;
};

static struct thread_attributes attributes_of(pid_t thread)
{
	struct thread_attributes attributes = {.size = sizeof(attributes)};
	assert_int_equal(syscall(SYS_sched_getattr, thread, &attributes, sizeof(attributes), 0), 0);
	return attributes;
}

/* ---- threads that do as they are told ---- */

struct worker {
	pthread_t thread;
	pthread_mutex_t mutex;
	pthread_cond_t changed;
	pid_t id; /* 0: not known yet */
	bool spins, starts_another, ends;
	int another; /* what starting another has brought; -1: nothing yet */
	int another_policy;
};

static void *another_main(void *user)
{
	*(int *)user = sched_getscheduler(0);
	return NULL;
}

static void *worker_main(void *user)
{
	struct worker *worker = user;
	LOCK_SCOPE(&worker->mutex);
	worker->id = (pid_t)syscall(SYS_gettid);
	pthread_cond_broadcast(&worker->changed);
	while (!worker->ends) {
		if (worker->starts_another && worker->another < 0) {
			pthread_t thread;
			worker->another = pthread_create(&thread, NULL, another_main, &worker->another_policy);
			if (worker->another == 0)
				pthread_join(thread, NULL);
			pthread_cond_broadcast(&worker->changed);
		}
		if (worker->spins) {
			pthread_mutex_unlock(&worker->mutex);
			for (volatile unsigned int i = 0; i < 100000; i++)
				;
			pthread_mutex_lock(&worker->mutex);
		} else {
			pthread_cond_wait(&worker->changed, &worker->mutex);
		}
	}
	return NULL;
}

static void worker_start(struct worker *worker)
{
	*worker = (struct worker){.another = -1};
	pthread_mutex_init(&worker->mutex, NULL);
	cond_init(&worker->changed);
	assert_int_equal(pthread_create(&worker->thread, NULL, worker_main, worker), 0);
	LOCK_SCOPE(&worker->mutex);
	while (!worker->id)
		pthread_cond_wait(&worker->changed, &worker->mutex);
}

static void worker_end(struct worker *worker)
{
	pthread_mutex_lock(&worker->mutex);
	worker->ends = true;
	pthread_cond_broadcast(&worker->changed);
	pthread_mutex_unlock(&worker->mutex);
	pthread_join(worker->thread, NULL);
	pthread_cond_destroy(&worker->changed);
	pthread_mutex_destroy(&worker->mutex);
}

static struct worker one, two;

static int setup(void **state)
{
	(void)state;
	worker_start(&one);
	worker_start(&two);
	return 0;
}

static int teardown(void **state)
{
	(void)state;
	worker_end(&one);
	worker_end(&two);
	return 0;
}

/* Where the kernel does not let us there is nothing to be tested. */
#define NEEDS_DEADLINE_SCHEDULER()                                                                                     \
	do {                                                                                                           \
		cleanup_error struct error *needs_error = NULL;                                                        \
		if (throttle_set(&one.id, 1, 50, &needs_error) < 0) {                                                  \
			print_message("# skipped, needs CAP_SYS_NICE and threads on all processors: %s\n",             \
				      needs_error->message);                                                           \
			skip();                                                                                        \
		}                                                                                                      \
		release(&one.id, 1);                                                                                   \
	} while (0)

/* Until they may be throttled again. */
static void release(const pid_t *threads, size_t count)
{
	const int64_t wait_us = throttle_release(threads, count) - clock_monotonic_us();
	assert_true(wait_us < 3000000);
	if (wait_us > 0)
		usleep((useconds_t)wait_us);
}

/* ---- tests ---- */

static void test_set_and_release(void **state)
{
	(void)state;
	NEEDS_DEADLINE_SCHEDULER();
	const pid_t threads[] = {one.id, two.id};
	static const unsigned int percents[] = {60, 93, THROTTLE_PERCENT_MAX, 80};
	for (size_t i = 0; i < sizeof(percents) / sizeof(percents[0]); i++) {
		assert_int_equal(throttle_set(threads, 2, percents[i], NULL), 0);
		for (size_t thread = 0; thread < 2; thread++) {
			const struct thread_attributes attributes = attributes_of(threads[thread]);
			assert_int_equal(attributes.policy, SCHED_DEADLINE);
			assert_int_equal(attributes.period_ns, 10000000);
			assert_int_equal(attributes.deadline_ns, 10000000);
			assert_int_equal(attributes.runtime_ns, 100000 * (100 - percents[i]));
		}
	}
	release(threads, 2);
	for (size_t thread = 0; thread < 2; thread++) {
		const struct thread_attributes attributes = attributes_of(threads[thread]);
		assert_int_equal(attributes.policy, SCHED_OTHER);
		assert_int_equal(attributes.flags & 1, 0); /* SCHED_FLAG_RESET_ON_FORK */
	}
	/* And nothing of it is left that would be in the way of the next time. */
	assert_int_equal(throttle_set(threads, 2, 50, NULL), 0);
	release(threads, 2);
}

static void test_nice_is_kept(void **state)
{
	(void)state;
	NEEDS_DEADLINE_SCHEDULER();
	assert_int_equal(setpriority(PRIO_PROCESS, (id_t)one.id, 7), 0);
	const pid_t threads[] = {one.id, two.id};
	assert_int_equal(throttle_set(threads, 2, 80, NULL), 0);
	assert_int_equal(throttle_set(threads, 2, 90, NULL), 0);
	release(threads, 2);
	assert_int_equal(attributes_of(one.id).nice, 7);
	assert_int_equal(attributes_of(two.id).nice, 0);
}

static void spin(struct worker *worker)
{
	pthread_mutex_lock(&worker->mutex);
	worker->spins = true;
	pthread_cond_broadcast(&worker->changed);
	pthread_mutex_unlock(&worker->mutex);
}

/* How long it takes to do 30 ms of work, in microseconds. */
static int64_t time_work(const struct worker *worker)
{
	clockid_t clock;
	struct timespec before, after;
	assert_int_equal(pthread_getcpuclockid(worker->thread, &clock), 0);
	const int64_t began_us = clock_monotonic_us();
	clock_gettime(clock, &before);
	do {
		clock_gettime(clock, &after);
		if (clock_monotonic_us() - began_us > LONG_US)
			fail_msg("it does not work at all");
	} while ((after.tv_sec - before.tv_sec) * 1000000000 + after.tv_nsec - before.tv_nsec < 30000000);
	return clock_monotonic_us() - began_us;
}

static void test_really_slower(void **state)
{
	(void)state;
	NEEDS_DEADLINE_SCHEDULER();
	spin(&one);
	assert_int_equal(throttle_set(&one.id, 1, 90, NULL), 0);
	const int64_t took_us = time_work(&one); /* 300 ms */
	release(&one.id, 1);
	if (took_us < 150000)
		fail_msg("30 ms of work took %lld us only", (long long)took_us);
}

/* One that was held back when it was let go works as well the next time. */
static void test_again(void **state)
{
	(void)state;
	NEEDS_DEADLINE_SCHEDULER();
	static const unsigned int percents[] = {99, 85, 97, 50};
	spin(&one);
	for (size_t i = 0; i < sizeof(percents) / sizeof(percents[0]); i++) {
		assert_int_equal(throttle_set(&one.id, 1, percents[i], NULL), 0);
		(void)time_work(&one); /* 3 s at most */
		release(&one.id, 1);
		(void)time_work(&one);
	}
}

/* One that sleeps is none, nor is one that gets its little time. */
static void test_stuck(void **state)
{
	(void)state;
	NEEDS_DEADLINE_SCHEDULER();
	const pid_t threads[] = {one.id, two.id};
	struct throttle_watch watches[2] = {{0}}, stopped = {0};
	spin(&one);
	assert_int_equal(throttle_set(threads, 2, 97, NULL), 0);
	for (const int64_t until_us = clock_monotonic_us() + 1500000; clock_monotonic_us() < until_us; usleep(50000))
		assert_false(throttle_is_stuck(threads, 2, 97, watches));
	release(threads, 2);
	/* Nobody lets it run: as much as it has worked was seen long ago. */
	assert_false(throttle_is_stuck(&one.id, 1, 97, &stopped));
	struct timespec before, after;
	clockid_t clock;
	assert_int_equal(pthread_getcpuclockid(one.thread, &clock), 0);
	assert_int_equal(throttle_set(&one.id, 1, 97, NULL), 0);
	bool stuck = false;
	for (int i = 0; i < 1000 && !stuck; i++) { /* it has not worked between two looks that are none */
		clock_gettime(clock, &before);
		stopped.since_us -= 10000000;
		const bool now = throttle_is_stuck(&one.id, 1, 97, &stopped);
		clock_gettime(clock, &after);
		stuck = now && before.tv_nsec == after.tv_nsec;
	}
	release(&one.id, 1);
	assert_true(stuck);
}

static void test_slice(void **state)
{
	(void)state;
	assert_in_range(throttle_slice_ms(), 1, 10);
}

static void test_can_start_threads(void **state)
{
	(void)state;
	NEEDS_DEADLINE_SCHEDULER();
	assert_int_equal(throttle_set(&one.id, 1, 50, NULL), 0);
	pthread_mutex_lock(&one.mutex);
	one.starts_another = true;
	pthread_cond_broadcast(&one.changed);
	while (one.another < 0)
		pthread_cond_wait(&one.changed, &one.mutex);
	pthread_mutex_unlock(&one.mutex);
	release(&one.id, 1);
	assert_int_equal(one.another, 0);
	assert_int_equal(one.another_policy, SCHED_OTHER);
}

/* What the kernel lends to such threads comes back, also from those that sleep: it would be used up after four. */
static void test_nothing_is_used_up(void **state)
{
	(void)state;
	NEEDS_DEADLINE_SCHEDULER();
	for (int i = 0; i < 50; i++) {
		cleanup_error struct error *e = NULL;
		if (throttle_set(&one.id, 1, 50, &e) < 0)
			fail_msg("the %d. time: %s", i + 1, e->message);
		release(&one.id, 1);
	}
}

/* One among them has a policy of its own: none is throttled, and that one is never let go of what it has. */
static void test_own_policy(void **state)
{
	(void)state;
	NEEDS_DEADLINE_SCHEDULER();
	static const struct {
		int policy, priority;
	} rows[] = {{SCHED_FIFO, 3}, {SCHED_RR, 1}, {SCHED_BATCH, 0}, {SCHED_IDLE, 0}};
	const pid_t threads[] = {one.id, two.id};
	for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
		const struct sched_param own = {.sched_priority = rows[i].priority};
		cleanup_error struct error *e = NULL;
		if (sched_setscheduler(two.id, rows[i].policy, &own) < 0) {
			print_message("# policy %d is not to be had: %s\n", rows[i].policy, strerror(errno));
			continue;
		}
		assert_int_equal(throttle_set(threads, 2, 50, &e), -1);
		assert_int_equal(e->code, ERROR_UNSUPPORTED);
		release(threads, 2);
		assert_int_equal(attributes_of(one.id).policy, SCHED_OTHER);
		assert_int_equal(attributes_of(two.id).policy, rows[i].policy);
		assert_int_equal(attributes_of(two.id).priority, rows[i].priority);
	}
}

/* The kernel refuses the second: the first is let go again. */
static void test_all_or_none(void **state)
{
	(void)state;
	NEEDS_DEADLINE_SCHEDULER();
	const pid_t threads[] = {one.id, two.id};
	cpu_set_t first;
	cleanup_error struct error *e = NULL;
	if (sysconf(_SC_NPROCESSORS_ONLN) < 2) {
		print_message("# skipped, needs two processors\n");
		skip();
	}
	assert_int_equal(sched_getaffinity(two.id, sizeof(first), &first), 0);
	size_t processor = 0;
	while (!CPU_ISSET(processor, &first))
		processor++;
	CPU_ZERO(&first);
	CPU_SET(processor, &first);
	assert_int_equal(sched_setaffinity(two.id, sizeof(first), &first), 0);
	assert_int_equal(throttle_set(threads, 2, 50, &e), -1);
	assert_int_equal(e->code, ERROR_UNSUPPORTED);
	assert_int_equal(attributes_of(one.id).policy, SCHED_OTHER);
	assert_int_equal(attributes_of(two.id).policy, SCHED_OTHER);
}

static void test_thread_is_gone(void **state)
{
	(void)state;
	NEEDS_DEADLINE_SCHEDULER();
	struct worker third;
	cleanup_error struct error *e = NULL;
	worker_start(&third);
	const pid_t threads[] = {one.id, third.id};
	assert_int_equal(throttle_set(threads, 2, 50, NULL), 0);
	worker_end(&third);
	while (syscall(SYS_tgkill, getpid(), third.id, 0) == 0) /* joined a moment before the kernel has done with it */
		sched_yield();
	release(threads, 2);
	assert_int_equal(attributes_of(one.id).policy, SCHED_OTHER);
	assert_int_equal(throttle_set(threads, 2, 50, &e), -1);
	assert_int_equal(attributes_of(one.id).policy, SCHED_OTHER);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_set_and_release, setup, teardown),
		cmocka_unit_test_setup_teardown(test_nice_is_kept, setup, teardown),
		cmocka_unit_test_setup_teardown(test_really_slower, setup, teardown),
		cmocka_unit_test_setup_teardown(test_again, setup, teardown),
		cmocka_unit_test_setup_teardown(test_stuck, setup, teardown),
		cmocka_unit_test(test_slice),
		cmocka_unit_test_setup_teardown(test_can_start_threads, setup, teardown),
		cmocka_unit_test_setup_teardown(test_nothing_is_used_up, setup, teardown),
		cmocka_unit_test_setup_teardown(test_own_policy, setup, teardown),
		cmocka_unit_test_setup_teardown(test_all_or_none, setup, teardown),
		cmocka_unit_test_setup_teardown(test_thread_is_gone, setup, teardown),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
