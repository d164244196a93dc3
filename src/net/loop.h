/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The control event loop: one epoll, one thread. Callbacks run on the loop's thread, must not block, and no lock of the
 * loop is held while they run. Sources may be added, changed and removed from any thread; a callback never runs once
 * loop_source_remove() has returned (called from another thread, it waits for a running callback of that source to end).
 */
#ifndef FERRY_NET_LOOP_H
#define FERRY_NET_LOOP_H

#include <signal.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"

struct loop;
struct loop_source;

int loop_new(struct loop **ret, struct error **e) MUST_CHECK;
void loop_free(struct loop *loop);
/* Run until loop_quit(). */
int loop_run(struct loop *loop, struct error **e) MUST_CHECK;
/* From any thread or callback. Before loop_run() it makes that return at once. */
void loop_quit(struct loop *loop);
/* Is this the thread that runs the loop? For assertions of what may block. */
bool loop_is_current(struct loop *loop);

/* A descriptor: callback when it is readable (EPOLLIN), hung up or in error. The loop does not own fd: remove the source
 * before closing it. A pidfd is readable once its process has ended. */
struct loop_source *loop_add_fd(struct loop *loop, int fd, uint32_t epoll_events,
				void (*callback)(void *user, uint32_t epoll_events), void *user);
/* A timer: first after delay_ms (0: at once, negative: not before it is set), then each period_ms (0: once only; the
 * source stays until it is removed). */
struct loop_source *loop_add_timer(struct loop *loop, int64_t delay_ms, int64_t period_ms, void (*callback)(void *user),
				   void *user);
void loop_timer_set(struct loop_source *timer, int64_t delay_ms, int64_t period_ms);
/* A signal, which must be blocked in every thread. */
struct loop_source *loop_add_signal(struct loop *loop, int signal_number, void (*callback)(void *user, int signal_number),
				    void *user);
/* Run callback(user) once on the loop's thread, soon; in the order of the posts. Dropped if the loop is freed first. */
void loop_post(struct loop *loop, void (*callback)(void *user), void *user);
/* Accepts NULL. From another thread, hold no lock that the callback may take. */
void loop_source_remove(struct loop_source *source);

#endif
