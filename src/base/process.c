/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Processes that outlive us; see process.h.
 *
 * ferryd has many threads, and between fork and exec the child has one thread and locks that nobody will ever release:
 * everything that needs memory or a lock is prepared before the fork (struct child_plan), the child makes system calls
 * only, and tells of a failure through a close-on-exec pipe. fork and not vfork: in a shared address space a change of
 * user clears the dumpable flag of the parent too. fork costs some 30 us a MiB of resident memory, under 1 ms for
 * ferryd; vfork costs 0.1 ms whatever the size, should ferryd grow.
 *
 * The pid file is written by the child before it executes: there is no instant in which the program runs and a ferryd
 * that starts again would not find it. What is in it (pid and start time) does not change with exec.
 */
#include "base/process.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <limits.h>
#include <linux/close_range.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/file.h"
#include "base/xalloc.h"

#ifndef P_PIDFD
#define P_PIDFD 3
#endif

/* What the child was doing when it failed. Order does not matter; the words end up in the error. */
enum child_step {
	CHILD_READY, /* not a failure: nothing is left but exec */
	CHILD_SESSION,
	CHILD_PID_FILE,
	CHILD_DESCRIPTORS,
	CHILD_LIMITS,
	CHILD_USER,
	CHILD_PRIVILEGES,
	CHILD_FOLDER,
	CHILD_EXECUTE
};

static const char *const child_step_words[] = {
	[CHILD_READY] = "start",
	[CHILD_SESSION] = "make a session for",
	[CHILD_PID_FILE] = "write the pid file of",
	[CHILD_DESCRIPTORS] = "pass the descriptors to",
	[CHILD_LIMITS] = "set the resource limits of",
	[CHILD_USER] = "change the user of",
	[CHILD_PRIVILEGES] = "lock the privileges of",
	[CHILD_FOLDER] = "change to the working folder of",
	[CHILD_EXECUTE] = "execute",
};

struct child_report {
	int step;
	int errnum;
};

/* Everything that the child needs, made before the fork. */
struct child_plan {
	const struct process_options *options;
	const char *program;
	char **environment;
	const char *pid_path_new; /* written first, then renamed, so that a pid file is whole or absent */
	int null_fd;
	int stdout_fd, stderr_fd;
	int report_fd;
	int *moved_fds; /* room for one number a descriptor */
	int first_free; /* above every number that the child's descriptors take */
};

/* The child: system calls only from here to exec. */

static void child_fail(const struct child_plan *plan, enum child_step step)
{
	struct child_report report = {.step = (int)step, .errnum = errno};
	(void)!write(plan->report_fd, &report, sizeof(report));
	_exit(127);
}

/* Decimal digits of value at `at`; returns what follows them. */
static char *child_put_number(char *at, uint64_t value)
{
	char digits[20];
	size_t count = 0;
	do {
		digits[count++] = (char)('0' + value % 10);
		value /= 10;
	} while (value > 0);
	while (count > 0)
		*at++ = digits[--count];
	return at;
}

/*
 * Field 22 of a stat line. The second field is the program's name in parentheses, which may itself hold blanks and
 * parentheses, so count from the last one. 0 when the line is not one.
 */
static uint64_t stat_start_time(const char *line)
{
	const char *at = NULL;
	for (const char *c = line; *c; c++)
		if (*c == ')')
			at = c;
	if (!at)
		return 0;
	for (int field = 2; field < 22; field++) {
		while (*at && *at != ' ')
			at++;
		if (!*at)
			return 0;
		at++;
	}
	uint64_t value = 0;
	for (; *at >= '0' && *at <= '9'; at++)
		value = value * 10 + (uint64_t)(*at - '0');
	return value;
}

static void child_write_pid_file(const struct child_plan *plan)
{
	char line[1024];
	int fd = open("/proc/self/stat", O_RDONLY | O_CLOEXEC);
	ssize_t n = fd < 0 ? -1 : read(fd, line, sizeof(line) - 1);
	if (n <= 0)
		child_fail(plan, CHILD_PID_FILE);
	close(fd);
	line[n] = '\0';
	uint64_t start_time = stat_start_time(line);

	char *at = child_put_number(line, (uint64_t)syscall(SYS_getpid));
	*at++ = ' ';
	at = child_put_number(at, start_time);
	*at++ = '\n';
	fd = open(plan->pid_path_new, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
	if (fd < 0 || write(fd, line, (size_t)(at - line)) != at - line || close(fd) < 0 ||
	    rename(plan->pid_path_new, plan->options->pid_path) < 0)
		child_fail(plan, CHILD_PID_FILE);
}

/*
 * A number that the child wants may be one that we still need, so first move everything out of the way, then mark all
 * descriptors close-on-exec, then put each where it belongs (dup2 clears the mark).
 */
static void child_place_descriptors(struct child_plan *plan)
{
	const struct process_options *options = plan->options;
	int report_fd = fcntl(plan->report_fd, F_DUPFD_CLOEXEC, plan->first_free);
	if (report_fd < 0)
		child_fail(plan, CHILD_DESCRIPTORS);
	plan->report_fd = report_fd;
	int standard[3] = {plan->null_fd, plan->stdout_fd, plan->stderr_fd};
	for (int i = 0; i < 3; i++)
		if ((standard[i] = fcntl(standard[i], F_DUPFD_CLOEXEC, plan->first_free)) < 0)
			child_fail(plan, CHILD_DESCRIPTORS);
	for (size_t i = 0; i < options->fd_count; i++)
		if ((plan->moved_fds[i] = fcntl(options->fds[i].fd, F_DUPFD_CLOEXEC, plan->first_free)) < 0)
			child_fail(plan, CHILD_DESCRIPTORS);
	if (syscall(SYS_close_range, 3U, ~0U, CLOSE_RANGE_CLOEXEC) < 0)
		child_fail(plan, CHILD_DESCRIPTORS);
	for (int i = 0; i < 3; i++)
		if (dup2(standard[i], i) < 0)
			child_fail(plan, CHILD_DESCRIPTORS);
	for (size_t i = 0; i < options->fd_count; i++)
		if (dup2(plan->moved_fds[i], options->fds[i].child_fd) < 0)
			child_fail(plan, CHILD_DESCRIPTORS);
}

/* Raw calls: glibc's wrappers change every thread of the process by signals, with locks that we must not touch. */
static void child_change_user(const struct child_plan *plan)
{
	const struct process_options *options = plan->options;
	gid_t groups[1] = {options->extra_gid};
	size_t group_count = options->extra_gid == (gid_t)-1 ? 0 : 1;
	if (syscall(SYS_setgroups, group_count, groups) < 0 ||
	    syscall(SYS_setresgid, options->gid, options->gid, options->gid) < 0 ||
	    syscall(SYS_setresuid, options->uid, options->uid, options->uid) < 0)
		child_fail(plan, CHILD_USER);
}

static void child_reset_signals(void)
{
	struct sigaction action = {.sa_handler = SIG_DFL};
	for (int number = 1; number < NSIG; number++)
		sigaction(number, &action, NULL); /* fails for SIGKILL, SIGSTOP and glibc's own: as it should */
	sigset_t none;
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
}

static void __attribute__((noreturn)) child_run(struct child_plan *plan)
{
	const struct process_options *options = plan->options;
	child_reset_signals();
	if (setsid() < 0)
		child_fail(plan, CHILD_SESSION);
	if (plan->pid_path_new)
		child_write_pid_file(plan);
	child_place_descriptors(plan);
	umask(077);
	if (options->memlock_bytes) {
		struct rlimit limit = {.rlim_cur = options->memlock_bytes, .rlim_max = options->memlock_bytes};
		if (setrlimit(RLIMIT_MEMLOCK, &limit) < 0)
			child_fail(plan, CHILD_LIMITS);
	}
	if (options->change_user)
		child_change_user(plan);
	if (options->no_new_privileges && prctl(PR_SET_NO_NEW_PRIVS, 1L, 0L, 0L, 0L) < 0)
		child_fail(plan, CHILD_PRIVILEGES);
	if (chdir(options->working_folder ? options->working_folder : "/") < 0)
		child_fail(plan, CHILD_FOLDER);
	struct child_report ready = {.step = CHILD_READY};
	(void)!write(plan->report_fd, &ready, sizeof(ready));
	/* argv is ours to read only, whatever the prototype of execve says. */
	execve(plan->program, (char **)(uintptr_t)options->argv, plan->environment);
	child_fail(plan, CHILD_EXECUTE);
	_exit(127);
}

/* The parent. */

/*
 * A small environment of its own: what systemd tells ferryd (NOTIFY_SOCKET, LISTEN_FDS, JOURNAL_STREAM) is not meant
 * for its children, and what else stands there is no business of a process that runs a guest.
 */
static char **environment_new(void)
{
	static const char *const kept[] = {"PATH", "TMPDIR"};
	char **environment = xcalloc(2 + sizeof(kept) / sizeof(kept[0]), sizeof(*environment));
	size_t count = 0;
	environment[count++] = xstrdup("LC_ALL=C.UTF-8");
	for (size_t i = 0; i < sizeof(kept) / sizeof(kept[0]); i++) {
		const char *value = getenv(kept[i]);
		if (value)
			environment[count++] = xasprintf("%s=%s", kept[i], value);
	}
	return environment;
}

static void environment_free(char ***environment)
{
	for (char **entry = *environment; entry && *entry; entry++)
		free(*entry);
	free(*environment);
}

static int pidfd_open_raw(pid_t pid)
{
	return (int)syscall(SYS_pidfd_open, pid, 0U);
}

/* Start time of a process that is there (or a zombie); 0 when it is not. */
static uint64_t read_start_time(pid_t pid)
{
	char path[32];
	snprintf(path, sizeof(path), "/proc/%d/stat", (int)pid);
	cleanup_free char *line = NULL;
	return file_read(path, 4096, &line, NULL, NULL) < 0 ? 0 : stat_start_time(line);
}

/* Wait for the child's exec. 0 when it was executed, else *ret says what went wrong. */
static int read_reports(int fd, struct child_report *ret)
{
	struct child_report report;
	bool ready = false;
	for (;;) {
		ssize_t n = read(fd, &report, sizeof(report)); /* one write below PIPE_BUF is read whole */
		if (n < 0 && errno == EINTR)
			continue;
		if (n == sizeof(report) && report.step == CHILD_READY) {
			ready = true;
			continue;
		}
		if (n == sizeof(report)) {
			*ret = report;
			return -1;
		}
		if (ready)
			return 0; /* the pipe was closed by exec */
		*ret = (struct child_report){.step = CHILD_READY, .errnum = ECHILD}; /* killed before it came so far */
		return -1;
	}
}

static int spawn(const struct process_options *options, const char *program, int stdout_fd, int stderr_fd,
		 struct process_id *ret_id, int *ret_pidfd, struct error **e)
{
	assert(options->argv && options->argv[0]);
	__attribute__((cleanup(environment_free))) char **environment = environment_new();
	cleanup_free char *pid_path_new = options->pid_path ? xasprintf("%s.new", options->pid_path) : NULL;
	cleanup_free int *moved_fds = xcalloc(options->fd_count + 1, sizeof(*moved_fds));
	int first_free = 3;
	for (size_t i = 0; i < options->fd_count; i++)
		if (options->fds[i].child_fd >= first_free)
			first_free = options->fds[i].child_fd + 1;
	cleanup_close int null_fd = open("/dev/null", O_RDWR | O_CLOEXEC);
	if (null_fd < 0)
		return error_set_errno(e, ERROR_SYSTEM, errno, "cannot open '/dev/null'");
	int pipe_fds[2];
	if (pipe2(pipe_fds, O_CLOEXEC) < 0)
		return error_set_errno(e, ERROR_SYSTEM, errno, "cannot make a pipe");
	cleanup_close int report_fd = pipe_fds[0];
	cleanup_close int child_report_fd = pipe_fds[1];
	struct child_plan plan = {
		.options = options,
		.program = program,
		.environment = environment,
		.pid_path_new = pid_path_new,
		.null_fd = null_fd,
		.stdout_fd = stdout_fd >= 0 ? stdout_fd : null_fd,
		.stderr_fd = stderr_fd >= 0 ? stderr_fd : null_fd,
		.report_fd = child_report_fd,
		.moved_fds = moved_fds,
		.first_free = first_free,
	};

	/* No handler of ours may run in the child before it has put them off. */
	sigset_t all, before;
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	pid_t pid = fork();
	if (pid == 0)
		child_run(&plan);
	int fork_errno = errno;
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	if (pid < 0)
		return error_set_errno(e, ERROR_SYSTEM, fork_errno, "cannot fork for '%s'", program);

	/* The child stays a zombie until we reap it, so its pid is its own whatever it does. */
	cleanup_close int pidfd = pidfd_open_raw(pid);
	int pidfd_errno = errno;
	close(take_fd(child_report_fd));
	struct child_report report;
	if (read_reports(report_fd, &report) < 0) {
		error_set_errno(e, ERROR_SYSTEM, report.errnum, "cannot %s '%s'", child_step_words[report.step],
				program);
		goto reap_child;
	}
	if (pidfd < 0) {
		error_set_errno(e, ERROR_SYSTEM, pidfd_errno, "cannot watch '%s'", program);
		kill(pid, SIGKILL);
		goto reap_child;
	}
	*ret_id = (struct process_id){.pid = pid, .start_time = read_start_time(pid)};
	*ret_pidfd = take_fd(pidfd);
	return 0;

reap_child:
	while (waitpid(pid, NULL, 0) < 0 && errno == EINTR)
		;
	if (options->pid_path) {
		unlink(pid_path_new);
		unlink(options->pid_path);
	}
	return -1;
}

int process_start(const struct process_options *options, struct process_id *ret_id, int *ret_pidfd, struct error **e)
{
	return spawn(options, options->argv[0], options->output_fd, options->output_fd, ret_id, ret_pidfd, e);
}

int process_open(const struct process_id *id, int *ret_pidfd, struct error **e)
{
	if (id->pid <= 0)
		return error_set(e, ERROR_NOT_FOUND, "there is no process %d", (int)id->pid);
	cleanup_close int pidfd = pidfd_open_raw(id->pid);
	/* EINVAL and ENOENT: the number is a thread's now. */
	if (pidfd < 0 && (errno == ESRCH || errno == EINVAL || errno == ENOENT))
		return error_set(e, ERROR_NOT_FOUND, "process %d has ended", (int)id->pid);
	if (pidfd < 0)
		return error_set_errno(e, ERROR_SYSTEM, errno, "cannot open process %d", (int)id->pid);
	/*
	 * Look at the start time after the pidfd is open: if the pid changed hands in between, the time is another's.
	 * If it is the right one, the pidfd holds the right process, for it was there all along.
	 */
	if (id->start_time != 0 && read_start_time(id->pid) != id->start_time)
		return error_set(e, ERROR_NOT_FOUND, "process %d has ended; its number is another's now", (int)id->pid);
	if (process_wait(pidfd, 0))
		return error_set(e, ERROR_NOT_FOUND, "process %d has ended", (int)id->pid);
	*ret_pidfd = take_fd(pidfd);
	return 0;
}

static bool read_number(const char **at, uint64_t max, uint64_t *ret)
{
	const char *digit = *at;
	uint64_t value = 0;
	for (; *digit >= '0' && *digit <= '9'; digit++) {
		uint64_t next = (uint64_t)(*digit - '0');
		if (value > (max - next) / 10)
			return false;
		value = value * 10 + next;
	}
	if (digit == *at)
		return false;
	*at = digit;
	*ret = value;
	return true;
}

int process_read_pid_file(const char *path, struct process_id *ret_id, struct error **e)
{
	cleanup_free char *text = NULL;
	if (file_read(path, 256, &text, NULL, e) < 0)
		return -1;
	const char *at = text;
	uint64_t pid = 0, start_time = 0;
	if (!read_number(&at, INT_MAX, &pid) || pid == 0 || *at++ != ' ' ||
	    !read_number(&at, UINT64_MAX, &start_time) || strcmp(at, "\n") != 0)
		return error_set(e, ERROR_INVALID_ARGUMENT, "'%s' is not a pid file: \"PID START_TIME\" is expected",
				 path);
	*ret_id = (struct process_id){.pid = (pid_t)pid, .start_time = start_time};
	return 0;
}

int process_signal(int pidfd, int signal_number, struct error **e)
{
	if (syscall(SYS_pidfd_send_signal, pidfd, signal_number, NULL, 0U) == 0)
		return 0;
	return error_set_errno(e, errno == ESRCH ? ERROR_NOT_FOUND : ERROR_SYSTEM, errno, "cannot send signal %d",
			       signal_number);
}

bool process_wait(int pidfd, int64_t timeout_ms)
{
	int64_t deadline_us = clock_monotonic_us() + (timeout_ms > 0 ? timeout_ms : 0) * 1000;
	struct pollfd pollfd = {.fd = pidfd, .events = POLLIN};
	for (;;) {
		int64_t left_us = deadline_us - clock_monotonic_us();
		int64_t left_ms = left_us > 0 ? (left_us + 999) / 1000 : 0;
		int n = poll(&pollfd, 1, left_ms > INT_MAX ? INT_MAX : (int)left_ms);
		if (n > 0) {
			process_reap(pidfd);
			return true;
		}
		if (n == 0 && left_us <= 0)
			return false;
		if (n < 0 && errno != EINTR)
			return false;
	}
}

void process_reap(int pidfd)
{
	siginfo_t info;
	waitid((idtype_t)P_PIDFD, (id_t)pidfd, &info, WEXITED | WNOHANG); /* ECHILD: not our child, nothing to reap */
}

/* ---- helpers that are run to their end ---- */

/* The first executable of that name in PATH; a name with a slash is a path already. The caller frees it. */
static char *find_program(const char *name)
{
	if (strchr(name, '/'))
		return xstrdup(name);
	const char *path = getenv("PATH");
	for (const char *at = path ? path : "/usr/sbin:/usr/bin:/sbin:/bin"; *at;) {
		size_t length = strcspn(at, ":");
		char *candidate = xasprintf("%.*s/%s", (int)length, at, name);
		if (length > 0 && access(candidate, X_OK) == 0)
			return candidate;
		free(candidate);
		at += length + (at[length] == ':');
	}
	return xstrdup(name);
}

/* Read what is there now into the buffer, dropping what exceeds its limit. False at the end of the output. */
static bool collect_output(int fd, char *output, size_t limit_bytes, size_t *length)
{
	char surplus[4096];
	for (;;) {
		size_t room = limit_bytes - *length;
		ssize_t n = read(fd, room > 0 ? output + *length : surplus, room > 0 ? room : sizeof(surplus));
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return errno == EAGAIN;
		if (n == 0)
			return false;
		if (room > 0)
			*length += (size_t)n;
	}
}

int process_run(const char *const *argv, int64_t timeout_ms, size_t limit_bytes, char **ret_output, struct error **e)
{
	int64_t deadline_us = clock_monotonic_us() + timeout_ms * 1000;
	cleanup_free char *program = find_program(argv[0]);
	cleanup_free char *output = xmalloc(limit_bytes + 1);
	size_t length = 0;
	int pipe_fds[2];
	if (pipe2(pipe_fds, O_CLOEXEC) < 0)
		return error_set_errno(e, ERROR_SYSTEM, errno, "cannot make a pipe");
	cleanup_close int read_fd = pipe_fds[0];
	cleanup_close int write_fd = pipe_fds[1];
	if (fcntl(read_fd, F_SETFL, O_NONBLOCK) < 0)
		return error_set_errno(e, ERROR_SYSTEM, errno, "cannot make a pipe");

	struct process_options options = {.argv = argv, .extra_gid = (gid_t)-1};
	struct process_id id;
	cleanup_close int pidfd = -1;
	/* Its complaints go where ours go: to the log. */
	if (spawn(&options, program, write_fd, STDERR_FILENO, &id, &pidfd, e) < 0)
		return -1;
	close(take_fd(write_fd));

	/* The end is the end of the process: a helper may leave a daemon behind that holds the pipe open for ever. */
	struct pollfd pollfds[2] = {{.fd = pidfd, .events = POLLIN}, {.fd = read_fd, .events = POLLIN}};
	while (!(pollfds[0].revents & POLLIN)) {
		int64_t left_us = deadline_us - clock_monotonic_us();
		int64_t left_ms = left_us > 0 ? (left_us + 999) / 1000 : 0;
		int n = poll(pollfds, 2, left_ms > INT_MAX ? INT_MAX : (int)left_ms);
		if (n < 0 && errno != EINTR) {
			error_set_errno(e, ERROR_SYSTEM, errno, "cannot wait for '%s'", program);
			goto kill_group;
		}
		if (n <= 0)
			pollfds[0].revents = pollfds[1].revents = 0;
		if (n == 0 && left_us <= 0) {
			error_set(e, ERROR_TIMEOUT, "'%s' did not end within %lld ms", program, (long long)timeout_ms);
			goto kill_group;
		}
		if (pollfds[1].revents && !collect_output(read_fd, output, limit_bytes, &length))
			pollfds[1].fd = -1;
	}
	if (pollfds[1].fd >= 0)
		collect_output(read_fd, output, limit_bytes, &length);
	siginfo_t info = {0};
	if (waitid((idtype_t)P_PIDFD, (id_t)pidfd, &info, WEXITED) < 0)
		return error_set_errno(e, ERROR_SYSTEM, errno, "cannot learn how '%s' ended", program);
	if (info.si_code != CLD_EXITED)
		return error_set(e, ERROR_SYSTEM, "'%s' was ended by signal %d", program, info.si_status);
	output[length] = '\0';
	if (ret_output)
		*ret_output = take_ptr(output);
	return info.si_status & 0xff;

kill_group:
	kill(-id.pid, SIGKILL); /* it leads a group of its own and is not reaped yet, so the number is right */
	waitid((idtype_t)P_PIDFD, (id_t)pidfd, &info, WEXITED);
	return -1;
}
