/* SPDX-License-Identifier: Apache-2.0 */
/*
 * QMP client: one connection to one QEMU's monitor. The loop's thread reads the socket and hands replies to the thread that
 * waits for them and events to the owner's callback; any thread but the loop's may execute commands, several at once.
 * QMP itself: QEMU's docs/interop/qmp-spec; commands are answered in order, events may come between. `oob` is enabled
 * where QEMU offers it, for the commands that must work while its main loop is stuck (yank, migrate-pause).
 */
#ifndef FERRY_QEMU_QMP_H
#define FERRY_QEMU_QMP_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"
#include "net/loop.h"

struct qmp;

struct qmp_callbacks {
	/* An event, on the loop's thread. received_us is our monotonic clock when the line was read; data may be NULL. */
	void (*event)(void *user, const char *name, const json_t *data, int64_t received_us);
	/* The connection ended, on the loop's thread; no event follows. Waiting commands fail with ERROR_QEMU_GONE. Called at
	 * most once, and only where qmp_new() succeeds; not after qmp_free(). */
	void (*closed)(void *user);
	void *user;
};

/* Take over a connected socket: waits for the greeting and negotiates, at most timeout_ms. Owns fd even on failure.
 * Not from the loop's thread, which must be running. Callbacks may come before it has returned. */
int qmp_new(struct loop *loop, int fd, const struct qmp_callbacks *callbacks, int64_t timeout_ms, struct qmp **ret,
	    struct error **e) MUST_CHECK;
/* Any thread, also from a callback; no callback runs once it has returned. Threads that wait for a reply get
 * ERROR_QEMU_GONE; no new command may be executed. */
void qmp_free(struct qmp *qmp);

/* Execute a command. arguments are stolen (NULL for none). *ret (may be NULL) is the "return" value, owned by the caller.
 * QEMU's refusal is ERROR_QEMU_QMP with its description; no answer in time is ERROR_TIMEOUT (a late reply is dropped). */
int qmp_execute(struct qmp *qmp, const char *command, json_t *arguments, json_t **ret, int64_t timeout_ms,
		struct error **e) MUST_CHECK;
/* As qmp_execute. On failure *ret_heard is false where QEMU has certainly not read the command to its end: nothing could be sent, or
 * QEMU died with a part of it unread. */
int qmp_execute_heard(struct qmp *qmp, const char *command, json_t *arguments, json_t **ret, int64_t timeout_ms, bool *ret_heard,
		      struct error **e) MUST_CHECK;
/* As qmp_execute, with a descriptor passed along (for getfd, add-fd). fd stays the caller's. */
int qmp_execute_with_fd(struct qmp *qmp, const char *command, json_t *arguments, int fd, json_t **ret, int64_t timeout_ms,
			struct error **e) MUST_CHECK;
/* Out of band: answered even when QEMU's main loop is stuck. ERROR_UNSUPPORTED when this QEMU has no oob. */
int qmp_execute_oob(struct qmp *qmp, const char *command, json_t *arguments, json_t **ret, int64_t timeout_ms,
		    struct error **e) MUST_CHECK;

#define QMP_TIMEOUT_MS 10000

#endif
