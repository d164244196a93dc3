/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The control event loop; see loop.h.
 *
 * Theory of operation. Every source is one descriptor in one epoll set: the caller's own, a timerfd, a signalfd; an
 * eventfd wakes the loop for posts and quitting. epoll hands back a pointer to the source, so what matters is that a
 * source stays in memory as long as a batch of events may still name it, and that nobody runs it once it was removed:
 *
 *   - loop_source_remove() marks the source, takes it out of the epoll set and puts it on the list of the removed. The
 *     loop skips marked sources in the batch that it is working on, and frees the list just before it asks for a new
 *     batch, which can no longer name them.
 *   - The loop publishes which source's callback is running (`current`). A remove from another thread waits until it
 *     has ended; a remove from the callback itself returns at once, and the loop does not touch the source again.
 *
 * The lock guards the lists and `current`; it is never held while a callback runs.
 */
#include "net/loop.h"

#include <assert.h>
#include <errno.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/signalfd.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/xalloc.h"

enum source_kind { SOURCE_FD, SOURCE_TIMER, SOURCE_SIGNAL };

struct loop_source {
	struct loop *loop;
	struct loop_source *next, **link; /* in loop->sources; after removal `next` is in loop->removed */
	enum source_kind kind;
	bool is_removed;
	int fd; /* ours for timers and signals, the caller's otherwise */
	union {
		void (*on_fd)(void *user, uint32_t epoll_events);
		void (*on_timer)(void *user);
		void (*on_signal)(void *user, int signal_number);
	} callback;
	void *user;
};

struct post {
	struct post *next;
	void (*callback)(void *user);
	void *user;
};

struct loop {
	int epoll_fd;
	int wake_fd;
	pthread_mutex_t lock;
	pthread_cond_t callback_ended;
	struct loop_source *sources;
	struct loop_source *removed;
	struct loop_source *current; /* whose callback is running now */
	struct post *posts, **posts_end;
	pthread_t thread; /* valid while running */
	bool is_running;
	bool must_quit;
};

int loop_new(struct loop **ret, struct error **e)
{
	cleanup_close int epoll_fd = epoll_create1(EPOLL_CLOEXEC);
	cleanup_close int wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	struct epoll_event wake = {.events = EPOLLIN}; /* data.ptr NULL: not a source */
	if (epoll_fd < 0 || wake_fd < 0 || epoll_ctl(epoll_fd, EPOLL_CTL_ADD, wake_fd, &wake) < 0)
		return error_set_errno(e, ERROR_SYSTEM, errno, "cannot make an event loop");
	struct loop *loop = xcalloc(1, sizeof(*loop));
	loop->epoll_fd = take_fd(epoll_fd);
	loop->wake_fd = take_fd(wake_fd);
	pthread_mutex_init(&loop->lock, NULL);
	pthread_cond_init(&loop->callback_ended, NULL);
	loop->posts_end = &loop->posts;
	*ret = loop;
	return 0;
}

static void source_free(struct loop_source *source)
{
	if (source->kind != SOURCE_FD)
		close(source->fd);
	free(source);
}

static void loop_free_removed(struct loop *loop)
{
	while (loop->removed) {
		struct loop_source *source = loop->removed;
		loop->removed = source->next;
		source_free(source);
	}
}

void loop_free(struct loop *loop)
{
	if (!loop)
		return;
	assert(!loop->is_running);
	loop_free_removed(loop);
	while (loop->sources) {
		struct loop_source *source = loop->sources;
		loop->sources = source->next;
		source_free(source);
	}
	while (loop->posts) {
		struct post *post = loop->posts;
		loop->posts = post->next;
		free(post);
	}
	close(loop->epoll_fd);
	close(loop->wake_fd);
	pthread_mutex_destroy(&loop->lock);
	pthread_cond_destroy(&loop->callback_ended);
	free(loop);
}

static void loop_wake(struct loop *loop)
{
	uint64_t one = 1;
	(void)!write(loop->wake_fd, &one, sizeof(one)); /* EAGAIN: it is awake already */
}

bool loop_is_current(struct loop *loop)
{
	LOCK_SCOPE(&loop->lock);
	return loop->is_running && pthread_equal(loop->thread, pthread_self());
}

/* Run all posts that are queued now; those that they queue in turn come after the next look at the descriptors. */
static void loop_run_posts(struct loop *loop)
{
	uint64_t count;
	(void)!read(loop->wake_fd, &count, sizeof(count));
	pthread_mutex_lock(&loop->lock);
	struct post *posts = loop->posts;
	loop->posts = NULL;
	loop->posts_end = &loop->posts;
	pthread_mutex_unlock(&loop->lock);
	while (posts) {
		struct post *post = posts;
		posts = post->next;
		post->callback(post->user);
		free(post);
	}
}

static void source_call(struct loop_source *source, uint32_t epoll_events)
{
	switch (source->kind) {
	case SOURCE_FD:
		source->callback.on_fd(source->user, epoll_events);
		return;
	case SOURCE_TIMER: {
		/* Set anew or taken by loop_timer_set() since the event was reported: then there is nothing to read. */
		uint64_t expirations;
		if (read(source->fd, &expirations, sizeof(expirations)) == sizeof(expirations))
			source->callback.on_timer(source->user);
		return;
	}
	case SOURCE_SIGNAL: {
		struct signalfd_siginfo info;
		if (read(source->fd, &info, sizeof(info)) == sizeof(info))
			source->callback.on_signal(source->user, (int)info.ssi_signo);
		return;
	}
	}
}

static void loop_dispatch(struct loop *loop, struct loop_source *source, uint32_t epoll_events)
{
	pthread_mutex_lock(&loop->lock);
	if (source->is_removed) {
		pthread_mutex_unlock(&loop->lock);
		return;
	}
	loop->current = source;
	pthread_mutex_unlock(&loop->lock);

	source_call(source, epoll_events);

	pthread_mutex_lock(&loop->lock);
	loop->current = NULL;
	pthread_cond_broadcast(&loop->callback_ended);
	pthread_mutex_unlock(&loop->lock);
}

int loop_run(struct loop *loop, struct error **e)
{
	pthread_mutex_lock(&loop->lock);
	assert(!loop->is_running);
	loop->is_running = true;
	loop->thread = pthread_self();
	pthread_mutex_unlock(&loop->lock);

	int result = 0;
	bool must_quit = false;
	while (!must_quit) {
		struct epoll_event events[64];
		int count = epoll_wait(loop->epoll_fd, events, (int)(sizeof(events) / sizeof(events[0])), -1);
		if (count < 0 && errno != EINTR) {
			result = error_set_errno(e, ERROR_SYSTEM, errno, "cannot wait for events");
			break;
		}
		for (int i = 0; i < count; i++) {
			if (events[i].data.ptr)
				loop_dispatch(loop, events[i].data.ptr, events[i].events);
			else
				loop_run_posts(loop);
		}
		pthread_mutex_lock(&loop->lock);
		loop_free_removed(loop);
		must_quit = loop->must_quit;
		pthread_mutex_unlock(&loop->lock);
	}

	pthread_mutex_lock(&loop->lock);
	loop->must_quit = false;
	loop->is_running = false;
	pthread_mutex_unlock(&loop->lock);
	return result;
}

void loop_quit(struct loop *loop)
{
	pthread_mutex_lock(&loop->lock);
	loop->must_quit = true;
	pthread_mutex_unlock(&loop->lock);
	loop_wake(loop);
}

void loop_post(struct loop *loop, void (*callback)(void *user), void *user)
{
	struct post *post = xcalloc(1, sizeof(*post));
	post->callback = callback;
	post->user = user;
	pthread_mutex_lock(&loop->lock);
	*loop->posts_end = post;
	loop->posts_end = &post->next;
	pthread_mutex_unlock(&loop->lock);
	loop_wake(loop);
}

static struct loop_source *source_new(struct loop *loop, enum source_kind kind, int fd, void *user)
{
	struct loop_source *source = xcalloc(1, sizeof(*source));
	source->loop = loop;
	source->kind = kind;
	source->fd = fd;
	source->user = user;
	return source;
}

/* From here on the callback may run, so the source must be whole. */
static void source_attach(struct loop_source *source, uint32_t epoll_events)
{
	struct loop *loop = source->loop;
	struct epoll_event event = {.events = epoll_events, .data.ptr = source};
	LOCK_SCOPE(&loop->lock);
	source->next = loop->sources;
	source->link = &loop->sources;
	if (source->next)
		source->next->link = &source->next;
	loop->sources = source;
	/* A file, a closed descriptor, one that is here already: errors of the program. No kernel memory: as xalloc. */
	if (epoll_ctl(loop->epoll_fd, EPOLL_CTL_ADD, source->fd, &event) < 0)
		abort();
}

struct loop_source *loop_add_fd(struct loop *loop, int fd, uint32_t epoll_events,
				void (*callback)(void *user, uint32_t epoll_events), void *user)
{
	struct loop_source *source = source_new(loop, SOURCE_FD, fd, user);
	source->callback.on_fd = callback;
	source_attach(source, epoll_events);
	return source;
}

static struct timespec timespec_from_ms(int64_t ms)
{
	return (struct timespec){.tv_sec = ms / 1000, .tv_nsec = (ms % 1000) * 1000000};
}

void loop_timer_set(struct loop_source *timer, int64_t delay_ms, int64_t period_ms)
{
	assert(timer->kind == SOURCE_TIMER && period_ms >= 0);
	struct itimerspec when = {0}; /* all zero: never */
	if (delay_ms >= 0) {
		when.it_value = timespec_from_ms(delay_ms);
		when.it_interval = timespec_from_ms(period_ms);
		if (delay_ms == 0)
			when.it_value.tv_nsec = 1; /* at once */
	}
	if (timerfd_settime(timer->fd, 0, &when, NULL) < 0)
		abort();
}

struct loop_source *loop_add_timer(struct loop *loop, int64_t delay_ms, int64_t period_ms, void (*callback)(void *user),
				   void *user)
{
	int fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
	if (fd < 0)
		abort(); /* out of descriptors or kernel memory: as xalloc */
	struct loop_source *source = source_new(loop, SOURCE_TIMER, fd, user);
	source->callback.on_timer = callback;
	loop_timer_set(source, delay_ms, period_ms);
	source_attach(source, EPOLLIN);
	return source;
}

struct loop_source *loop_add_signal(struct loop *loop, int signal_number,
				    void (*callback)(void *user, int signal_number), void *user)
{
	sigset_t set;
	sigemptyset(&set);
	sigaddset(&set, signal_number);
	int fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
	if (fd < 0)
		abort();
	struct loop_source *source = source_new(loop, SOURCE_SIGNAL, fd, user);
	source->callback.on_signal = callback;
	source_attach(source, EPOLLIN);
	return source;
}

void loop_source_remove(struct loop_source *source)
{
	if (!source)
		return;
	struct loop *loop = source->loop;
	LOCK_SCOPE(&loop->lock);
	assert(!source->is_removed);
	source->is_removed = true;
	epoll_ctl(loop->epoll_fd, EPOLL_CTL_DEL, source->fd, NULL);
	*source->link = source->next;
	if (source->next)
		source->next->link = source->link;
	bool in_loop = loop->is_running && pthread_equal(loop->thread, pthread_self());
	/* Not on the list of the removed before this wait: the loop could free it while we still compare pointers. */
	while (!in_loop && loop->current == source)
		pthread_cond_wait(&loop->callback_ended, &loop->lock);
	source->next = loop->removed;
	loop->removed = source;
}
