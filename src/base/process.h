/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Processes that outlive us: start one as another user in a session of its own, know it again by pid and start time
 * (a pid alone may have been given to somebody else), watch and end it through a pidfd. Any thread.
 */
#ifndef FERRY_BASE_PROCESS_H
#define FERRY_BASE_PROCESS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/error.h"

struct process_id {
	pid_t pid;
	uint64_t start_time; /* field 22 of /proc/PID/stat: clock ticks after boot; 0 = unknown */
};

struct process_fd {
	int fd;		/* ours, to be passed on */
	int child_fd;	/* its number in the child */
};

struct process_options {
	const char *const *argv; /* argv[0] is the path of the program */
	uid_t uid;		 /* with gid: what the child becomes, when change_user */
	gid_t gid;
	gid_t extra_gid; /* one more group (kvm), (gid_t)-1 for none */
	bool change_user;
	const struct process_fd *fds; /* descriptors that the child gets; all others are closed */
	size_t fd_count;
	int output_fd;		/* standard output and error; -1: /dev/null */
	const char *pid_path;	/* where the child writes "PID START_TIME" before it executes; NULL: nowhere */
	bool no_new_privileges;
	const char *working_folder; /* NULL: / */
	uint64_t memlock_bytes;	 /* RLIMIT_MEMLOCK, 0: leave */
};

/* Start a program in a session of its own. *ret_pidfd is the caller's. Fails when the program cannot be executed
 * (the errno of the child's exec is reported), so success means that it runs. The child gets default signals, umask 077
 * and an environment of PATH, TMPDIR and LC_ALL=C.UTF-8 only. */
int process_start(const struct process_options *options, struct process_id *ret_id, int *ret_pidfd, struct error **e) MUST_CHECK;
/* Open a pidfd for a process known from an earlier life; ERROR_NOT_FOUND when it has gone (or the pid is another's). */
int process_open(const struct process_id *id, int *ret_pidfd, struct error **e) MUST_CHECK;
int process_read_pid_file(const char *path, struct process_id *ret_id, struct error **e) MUST_CHECK;
int process_signal(int pidfd, int signal_number, struct error **e) MUST_CHECK;
/* True once it has ended; waits at most timeout_ms (0: looks only). Reaps it if it is our child. */
bool process_wait(int pidfd, int64_t timeout_ms);
/* Reap children that have ended but whom nobody waits for. */
void process_reap(int pidfd);

/* Run a helper to its end within timeout_ms (0-terminated argv; argv[0] is looked for in PATH), collect at most limit_bytes
 * of its standard output; what exceeds them is dropped. Its standard error is ours. ret_output may be NULL.
 * Returns the exit status (0-255) or -1 when it could not be run, was killed or took too long. */
int process_run(const char *const *argv, int64_t timeout_ms, size_t limit_bytes, char **ret_output, struct error **e) MUST_CHECK;

#endif
