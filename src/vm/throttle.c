/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Slowing threads down; see throttle.h. A thread that was SCHED_OTHER keeps its nice value while it is SCHED_DEADLINE
 * (getpriority(2) still tells it), so there is nothing to remember: whoever finds one of a guest's threads under
 * SCHED_DEADLINE, also a later ferryd, knows that it was throttled and what it was before.
 */
#include "vm/throttle.h"

#include <errno.h>
#include <sched.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/file.h"
#include "base/log.h"
#include "base/xalloc.h"

#define PERIOD_NS 10000000ULL

#define LEAST_RUNTIME_NS 1024 /* that the kernel takes */
#define STAT_BYTES_MAX 1024
#define STUCK_US 500000
#define BUSY_MIN_US 500000 /* less tells too little */
#define BUSY_MAX_US 2000000
#define RESET_ON_FORK 1 /* SCHED_FLAG_RESET_ON_FORK, sched_setattr(2) */

#ifndef SCHED_DEADLINE
#define SCHED_DEADLINE 6
#endif

/* glibc has no wrapper before 2.41; this is the first version of the structure, which every kernel takes. sched_setattr(2) */
struct thread_attributes {
	uint32_t size;
	uint32_t policy;
	uint64_t flags;
	int32_t nice;
	uint32_t priority;
	uint64_t runtime_ns, deadline_ns, period_ns;
};

static int get_policy(pid_t thread)
{
	int policy = sched_getscheduler(thread);
	return policy < 0 ? policy : policy & ~SCHED_RESET_ON_FORK;
}

static int set_attributes(pid_t thread, const struct thread_attributes *attributes)
{
	return (int)syscall(SYS_sched_setattr, thread, attributes, 0);
}

static int slow_down(pid_t thread, unsigned int percent)
{
	const struct thread_attributes attributes = {
		.size = sizeof(attributes),
		.policy = SCHED_DEADLINE,
		/* Without it such a thread cannot start another; one that it starts is not throttled. */
		.flags = RESET_ON_FORK,
		.runtime_ns = PERIOD_NS * (100 - percent) / 100,
		.deadline_ns = PERIOD_NS,
		.period_ns = PERIOD_NS,
	};
	return set_attributes(thread, &attributes);
}

/* Neither running nor about to, nor held back: such a one counts as running. proc(5) */
static bool sleeps(pid_t thread)
{
	char state = '?';
	cleanup_free char *path = xasprintf("/proc/%d/stat", (int)thread), *text = NULL;
	const char *name_end = file_read(path, STAT_BYTES_MAX, &text, NULL, NULL) == 0 ? strrchr(text, ')') : NULL;
	return name_end && sscanf(name_end, ") %c", &state) == 1 && strchr("SDI", state);
}

/*
 * What a thread had been lent of the processors' time is lost to all until the next boot when it leaves SCHED_DEADLINE in its
 * sleep (Linux 6.18, and nothing says that it is the only one): after some dozen releases of an idle guest none could be throttled
 * any more. What it has at that moment counts, so that is made next to nothing: a ten-thousandth. But only for one that sleeps. A
 * thread is held back at the processor's next tick only, and what it has had too much by then is taken off its next periods: of
 * such small ones so many that, throttled again, it would stand still for minutes.
 */
static void lend_nothing(pid_t thread)
{
	const struct thread_attributes attributes = {
		.size = sizeof(attributes),
		.policy = SCHED_DEADLINE,
		.flags = RESET_ON_FORK,
		.runtime_ns = LEAST_RUNTIME_NS,
		.deadline_ns = PERIOD_NS,
		.period_ns = PERIOD_NS,
	};
	(void)set_attributes(thread, &attributes); /* at worst it costs what it did */
}

/* How long a thread sleeps until it runs again, at most, in microseconds. */
static int64_t longest_sleep_us(unsigned int percent)
{
	return (int64_t)PERIOD_NS / 1000 + (int64_t)throttle_slice_ms() * 1000 * percent / (100 - percent);
}

/*
 * When a thread that is held back becomes an ordinary one, the kernel forgets that it was a moment later only: when what it has had
 * too much would have been paid back. Made SCHED_DEADLINE before that it is still held back, and the timer that would let it run
 * has gone off (Linux 6.18). Twice the time that this may take, as ticks come late on a busy host.
 */
static int64_t settles_us(pid_t thread)
{
	struct thread_attributes attributes = {.size = sizeof(attributes)};
	if (syscall(SYS_sched_getattr, thread, &attributes, sizeof(attributes), 0) < 0 || attributes.period_ns == 0)
		return 0;
	const uint64_t kept_percent = attributes.runtime_ns * 100 / attributes.period_ns;
	const unsigned int percent = kept_percent > 1 ? 100 - (unsigned int)kept_percent : THROTTLE_PERCENT_MAX;
	return clock_monotonic_us() + 2 * longest_sleep_us(percent);
}

static int let_go(pid_t thread)
{
	if (sleeps(thread))
		lend_nothing(thread);
	errno = 0;
	int nice_value = getpriority(PRIO_PROCESS, (id_t)thread);
	const struct thread_attributes attributes = {
		.size = sizeof(attributes), .policy = SCHED_OTHER, .nice = errno ? 0 : nice_value};
	return set_attributes(thread, &attributes);
}

int throttle_set(const pid_t *threads, size_t count, unsigned int percent, struct error **e)
{
	for (size_t i = 0; i < count; i++) {
		const int policy = get_policy(threads[i]);
		if (policy != SCHED_OTHER && policy != SCHED_DEADLINE)
			return error_set(e, ERROR_UNSUPPORTED, "thread %d has a scheduling policy of its own", (int)threads[i]);
	}
	for (size_t i = 0; i < count; i++) {
		if (slow_down(threads[i], percent) == 0)
			continue;
		error_set_errno(e, ERROR_UNSUPPORTED, errno, "thread %d cannot be throttled", (int)threads[i]);
		(void)throttle_release(threads, count);
		return -1;
	}
	return 0;
}

unsigned int throttle_slice_ms(void)
{
	struct timespec tick;
	/* The coarse clocks go by it. clock_getres(2) */
	if (clock_getres(CLOCK_MONOTONIC_COARSE, &tick) < 0 || tick.tv_sec > 0)
		return PERIOD_NS / 1000000;
	return (unsigned int)((tick.tv_nsec + 999999) / 1000000);
}

int64_t throttle_release(const pid_t *threads, size_t count)
{
	int64_t settled_us = 0;
	for (size_t i = 0; i < count; i++) {
		if (get_policy(threads[i]) != SCHED_DEADLINE)
			continue;
		const int64_t us = settles_us(threads[i]);
		if (let_go(threads[i]) < 0 && errno != ESRCH)
			log_error("thread %d stays throttled: error %d", (int)threads[i], errno);
		settled_us = us > settled_us ? us : settled_us;
	}
	return settled_us;
}

/* The time that it has worked; 0 when it is gone. proc(5) */
static uint64_t worked_ns(pid_t thread)
{
	unsigned long long worked;
	cleanup_free char *path = xasprintf("/proc/%d/schedstat", (int)thread), *text = NULL;
	if (file_read(path, STAT_BYTES_MAX, &text, NULL, NULL) < 0 || sscanf(text, "%llu", &worked) != 1)
		return 0;
	return worked;
}

unsigned int throttle_busy_percent(const pid_t *threads, size_t count, struct throttle_watch *watches)
{
	const int64_t now_us = clock_monotonic_us();
	unsigned int busiest = 0;
	for (size_t i = 0; i < count; i++) {
		const uint64_t worked = worked_ns(threads[i]);
		const int64_t for_us = now_us - watches[i].since_us;
		if (watches[i].since_us == 0 || for_us > BUSY_MAX_US || worked < watches[i].worked_ns) {
			watches[i] = (struct throttle_watch){worked, now_us};
		} else if (for_us >= BUSY_MIN_US) {
			const unsigned int percent = (unsigned int)((worked - watches[i].worked_ns) / 10 / (uint64_t)for_us) + 1;
			busiest = percent > 100 ? 100 : percent > busiest ? percent : busiest;
		}
	}
	return busiest;
}

bool throttle_is_stuck(const pid_t *threads, size_t count, unsigned int percent, struct throttle_watch *watches)
{
	const int64_t now_us = clock_monotonic_us(), patience_us = STUCK_US + 2 * longest_sleep_us(percent);
	bool stuck = false;
	for (size_t i = 0; i < count; i++) {
		const uint64_t worked = sleeps(threads[i]) ? 0 : worked_ns(threads[i]);
		if (worked == 0 || worked != watches[i].worked_ns)
			watches[i] = (struct throttle_watch){worked, now_us};
		stuck |= now_us > watches[i].since_us + patience_us;
	}
	return stuck;
}
