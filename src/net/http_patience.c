/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Time limits of connections; see http_patience.h. A thread looks at the list every LOOK_MS as long as there is anything in
 * it, and shuts the sockets of those whose time is over: their own threads then find the end of the connection and close it.
 * (It does not close them itself: the number could belong to another connection by then.)
 */
#include "net/http_patience.h"

#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>
#include <sys/socket.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/xalloc.h"

#define LOOK_MS 500

struct http_patience {
	pthread_mutex_t mutex;
	pthread_cond_t changed;
	pthread_t thread;
	bool stopping;
	struct http_patience_entry *first;
};

static void *patience_main(void *user)
{
	struct http_patience *patience = user;
	LOCK_SCOPE(&patience->mutex);
	while (!patience->stopping) {
		if (!patience->first) {
			pthread_cond_wait(&patience->changed, &patience->mutex);
			continue;
		}
		int64_t now_us = clock_monotonic_us();
		for (struct http_patience_entry *entry = patience->first; entry; entry = entry->next) {
			if (!entry->deadline_us || now_us < entry->deadline_us)
				continue;
			log_debug("a connection is cut off: it has taken too long");
			shutdown(entry->fd, SHUT_RDWR);
			entry->deadline_us = 0;
		}
		while (!patience->stopping &&
		       cond_wait_until(&patience->changed, &patience->mutex, now_us + LOOK_MS * 1000))
			;
	}
	return NULL;
}

struct http_patience *http_patience_new(void)
{
	struct http_patience *patience = xcalloc(1, sizeof(*patience));
	pthread_mutex_init(&patience->mutex, NULL);
	cond_init(&patience->changed);
	if (pthread_create(&patience->thread, NULL, patience_main, patience) != 0)
		abort(); /* ferryd has just begun: nothing will work */
	return patience;
}

void http_patience_free(struct http_patience *patience)
{
	if (!patience)
		return;
	pthread_mutex_lock(&patience->mutex);
	patience->stopping = true;
	pthread_cond_signal(&patience->changed);
	pthread_mutex_unlock(&patience->mutex);
	pthread_join(patience->thread, NULL);
	pthread_cond_destroy(&patience->changed);
	pthread_mutex_destroy(&patience->mutex);
	free(patience);
}

void http_patience_add(struct http_patience *patience, struct http_patience_entry *entry, int fd, int64_t limit_ms)
{
	*entry = (struct http_patience_entry){
		.patience = patience, .fd = fd, .deadline_us = clock_monotonic_us() + limit_ms * 1000};
	LOCK_SCOPE(&patience->mutex);
	entry->next = patience->first;
	if (entry->next)
		entry->next->previous = entry;
	else
		pthread_cond_signal(&patience->changed); /* it slept */
	patience->first = entry;
}

void http_patience_set(struct http_patience_entry *entry, int64_t limit_ms)
{
	if (!entry->patience)
		return;
	LOCK_SCOPE(&entry->patience->mutex);
	entry->deadline_us = limit_ms ? clock_monotonic_us() + limit_ms * 1000 : 0;
}

void http_patience_remove(struct http_patience_entry *entry)
{
	if (!entry->patience)
		return;
	LOCK_SCOPE(&entry->patience->mutex);
	if (entry->previous)
		entry->previous->next = entry->next;
	else
		entry->patience->first = entry->next;
	if (entry->next)
		entry->next->previous = entry->previous;
	entry->patience = NULL;
}
