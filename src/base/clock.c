/* SPDX-License-Identifier: Apache-2.0 */
/* Time and random identifiers; see clock.h. */
#include "base/clock.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/random.h>
#include <time.h>

#include "base/fault.h"

int64_t clock_monotonic_us(void)
{
	struct timespec now;
	clock_gettime(CLOCK_MONOTONIC, &now);
	return (int64_t)now.tv_sec * 1000000 + now.tv_nsec / 1000;
}

int64_t clock_monotonic_ms(void)
{
	return clock_monotonic_us() / 1000;
}

int64_t clock_wall_ms(void)
{
	struct timespec now;
	clock_gettime(CLOCK_REALTIME, &now);
	int64_t ahead_ms = 0;
#ifdef FERRY_FAULTS
	static int64_t jumped_ms; /* atomic */
	if (fault_pass(FAULT_CLOCK_WALL, &ahead_ms) == FAULT_JUMP)
		__atomic_store_n(&jumped_ms, ahead_ms * 1000, __ATOMIC_RELAXED);
	ahead_ms = __atomic_load_n(&jumped_ms, __ATOMIC_RELAXED);
#endif
	return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000 + ahead_ms;
}

void cond_init(pthread_cond_t *cond)
{
	pthread_condattr_t attributes;
	pthread_condattr_init(&attributes);
	pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
	pthread_cond_init(cond, &attributes);
	pthread_condattr_destroy(&attributes);
}

bool cond_wait_until(pthread_cond_t *cond, pthread_mutex_t *mutex, int64_t deadline_us)
{
	struct timespec until = {.tv_sec = deadline_us / 1000000, .tv_nsec = (deadline_us % 1000000) * 1000};
	return pthread_cond_timedwait(cond, mutex, &until) != ETIMEDOUT;
}

void random_bytes(void *ret_bytes, size_t size_bytes)
{
	char *at = ret_bytes;
	while (size_bytes > 0) {
		ssize_t n = getrandom(at, size_bytes, 0);
		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			abort(); /* Linux always has getrandom; an id that is not random would break one-owner */
		at += n;
		size_bytes -= (size_t)n;
	}
}

void random_id(char ret_id[RANDOM_ID_SIZE])
{
	unsigned char bytes[16];
	random_bytes(bytes, sizeof(bytes));
	for (size_t i = 0; i < sizeof(bytes); i++)
		snprintf(ret_id + 2 * i, 3, "%02x", bytes[i]);
}
