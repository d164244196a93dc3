/* SPDX-License-Identifier: Apache-2.0 */
/* The workers of a host's migrations; see host.h. */
#include "migration/host.h"

#include <stdlib.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/log.h"

#define WORKER_STACK_BYTES (512 * 1024)

void migration_host_init(struct migration_host *host)
{
	pthread_mutex_init(&host->workers.mutex, NULL);
	cond_init(&host->workers.changed);
}

void migration_host_start_worker(struct migration_host *host, void *(*main)(void *argument), void *argument,
				 pthread_t *ret_thread)
{
	pthread_mutex_lock(&host->workers.mutex);
	host->workers.count++;
	pthread_mutex_unlock(&host->workers.mutex);
	pthread_attr_t attributes;
	pthread_t thread, *at = ret_thread ? ret_thread : &thread;
	pthread_attr_init(&attributes);
	pthread_attr_setdetachstate(&attributes, ret_thread ? PTHREAD_CREATE_JOINABLE : PTHREAD_CREATE_DETACHED);
	pthread_attr_setstacksize(&attributes, WORKER_STACK_BYTES);
	if (pthread_create(at, &attributes, main, argument) != 0)
		abort(); /* no memory for a thread: as in xalloc.h; the journal has all that matters */
	pthread_attr_destroy(&attributes);
}

void migration_host_worker_done(struct migration_host *host)
{
	LOCK_SCOPE(&host->workers.mutex);
	host->workers.count--;
	pthread_cond_broadcast(&host->workers.changed);
}

bool migration_host_stopping(struct migration_host *host)
{
	LOCK_SCOPE(&host->workers.mutex);
	return host->workers.stopping;
}

bool migration_host_wait_stopping(struct migration_host *host, int64_t timeout_ms)
{
	LOCK_SCOPE(&host->workers.mutex);
	int64_t deadline_us = clock_monotonic_us() + timeout_ms * 1000;
	while (!host->workers.stopping && cond_wait_until(&host->workers.changed, &host->workers.mutex, deadline_us))
		;
	return host->workers.stopping;
}

void migration_host_stop_workers(struct migration_host *host)
{
	LOCK_SCOPE(&host->workers.mutex);
	host->workers.stopping = true;
	pthread_cond_broadcast(&host->workers.changed);
	while (host->workers.count > 0)
		pthread_cond_wait(&host->workers.changed, &host->workers.mutex);
}
