/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Starting, finding and ending processes. Children are /bin/sh and friends; what a child sees of itself it writes to
 * its output, which is a temporary file.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/file.h"
#include "base/process.h"
#include "base/xalloc.h"

#define LONG_MS 10000 /* never waited for in a test that passes */

static char folder[] = "/tmp/ferry-test-process-XXXXXX";

static int group_setup(void **state)
{
	(void)state;
	return mkdtemp(folder) ? 0 : -1;
}

static int group_teardown(void **state)
{
	(void)state;
	return file_remove_tree(folder, NULL);
}

/* No child may be left over, not even a zombie. */
static int teardown(void **state)
{
	(void)state;
	return waitpid(-1, NULL, WNOHANG) < 0 && errno == ECHILD ? 0 : -1;
}

static const char *path_of(const char *name)
{
	static char path[256];
	snprintf(path, sizeof(path), "%s/%s", folder, name);
	return path;
}

/* Run a shell script with these options to its end; what it wrote. The caller frees it. */
static char *run_script(struct process_options options, const char *script)
{
	const char *argv[] = {"/bin/sh", "-c", script, NULL};
	options.argv = argv;
	cleanup_close int output_fd = open(path_of("output"), O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	assert_true(output_fd >= 0);
	options.output_fd = output_fd;
	struct process_id id;
	cleanup_close int pidfd = -1;
	cleanup_error struct error *error = NULL;
	if (process_start(&options, &id, &pidfd, &error) < 0)
		fail_msg("%s", error->message);
	assert_true(process_wait(pidfd, LONG_MS));
	char *text = NULL;
	assert_int_equal(file_read(path_of("output"), 1 << 20, &text, NULL, NULL), 0);
	return text;
}

static const struct process_options plain = {.extra_gid = (gid_t)-1, .output_fd = -1};

static void assert_script(struct process_options options, const char *script, const char *wanted)
{
	cleanup_free char *text = run_script(options, script);
	assert_string_equal(text, wanted);
}

/* ---- what the child is given ---- */

static void test_session_folder_mask_environment(void **state)
{
	(void)state;
	setenv("FERRY_SECRET", "x", 1);
	setenv("NOTIFY_SOCKET", "/x", 1);
	assert_script(
		plain,
		"read pid name state parent group session rest < /proc/self/stat; "
		"[ $session = $$ ] && [ $group = $$ ] && echo leader; pwd; umask; echo \"$FERRY_SECRET$NOTIFY_SOCKET\"",
		"leader\n/\n0077\n\n");
	unsetenv("FERRY_SECRET");
	unsetenv("NOTIFY_SOCKET");
	struct process_options options = plain;
	options.working_folder = folder;
	cleanup_free char *wanted = xasprintf("%s\n", folder);
	assert_script(options, "pwd", wanted);
}

static void test_signals_are_reset(void **state)
{
	(void)state;
	sigset_t set, before;
	sigfillset(&set);
	pthread_sigmask(SIG_BLOCK, &set, &before);
	void (*handler)(int) = signal(SIGPIPE, SIG_IGN);
	signal(SIGUSR2, SIG_IGN);
	/* Signals 32 and 33 are glibc's own: whoever starts us by posix_spawn() may leave either ignored, and nobody can tell glibc
	 * otherwise. */
	assert_script(plain,
		      "grep -E 'Sig(Blk|Ign|Pnd)' /proc/self/status | tr -d '\\t\\n' |"
		      " sed 's/SigIgn:0000000[01][08]0000000/SigIgn:0000000000000000/'",
		      "SigPnd:0000000000000000SigBlk:0000000000000000SigIgn:0000000000000000");
	signal(SIGPIPE, handler);
	signal(SIGUSR2, SIG_DFL);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
}

static int descriptor_of(const char *text)
{
	int fds[2];
	assert_int_equal(pipe2(fds, O_CLOEXEC), 0);
	assert_int_equal(write(fds[1], text, strlen(text)), (ssize_t)strlen(text));
	close(fds[1]);
	return fds[0];
}

static void test_descriptors(void **state)
{
	(void)state;
	int leaked = open("/dev/null", O_RDONLY); /* without close-on-exec: must be closed all the same */
	int high = fcntl(leaked, F_DUPFD, 200);
	int a = descriptor_of("a\n"), b = descriptor_of("b\n"), c = descriptor_of("c\n");
	/* Numbers cross: a goes where b stands, b where a stands; c keeps its number; a goes to a high one, too. */
	const struct process_fd fds[] = {{a, b}, {b, a}, {c, c}, {leaked, 0}, {a, 150}};
	struct process_options options = plain;
	options.fds = fds;
	options.fd_count = sizeof(fds) / sizeof(fds[0]);
	/* No pipe in the script, and something behind ls: the shell must have no descriptors of its own meanwhile. */
	cleanup_free char *script = xasprintf("cat <&%d; cat <&%d; cat <&%d; ls -v /proc/$$/fd; :", b, a, c);
	cleanup_free char *wanted = xasprintf("a\nb\nc\n0\n1\n2\n%d\n%d\n%d\n150\n", a, b, c);
	assert_script(options, script, wanted);
	assert_script(plain, "readlink /proc/$$/fd/0; ls /proc/$$/fd; :", "/dev/null\n0\n1\n2\n");
	assert_true(fcntl(a, F_GETFD) & FD_CLOEXEC); /* ours are as they were */
	close(leaked);
	close(high);
	close(a);
	close(b);
	close(c);
}

static void test_user(void **state)
{
	(void)state;
	if (geteuid() != 0) {
		print_message("# skip: only root can change the user\n");
		skip();
	}
	struct process_options options = plain;
	options.change_user = true;
	options.uid = 61000;
	options.gid = 61001;
	options.no_new_privileges = true;
	options.memlock_bytes = 3 << 20;
	assert_script(
		options,
		"grep -E '^(Uid|Gid|Groups|CapEff|CapPrm|NoNewPrivs):' /proc/self/status | tr '\\t' ' '; ulimit -l",
		"Uid: 61000 61000 61000 61000\nGid: 61001 61001 61001 61001\nGroups:  \n"
		"CapPrm: 0000000000000000\nCapEff: 0000000000000000\nNoNewPrivs: 1\n3072\n");
	options.extra_gid = 61002;
	assert_script(options, "grep Groups: /proc/self/status | tr -d '\\t '", "Groups:61002\n");
	assert_int_equal(geteuid(), 0);
}

/* ---- the pid file ---- */

static void test_pid_file_is_there_before_the_program_runs(void **state)
{
	(void)state;
	cleanup_free char *pid_path = xstrdup(path_of("pid"));
	struct process_options options = plain;
	options.pid_path = pid_path;
	cleanup_free char *script =
		xasprintf("cat %s; echo $$ $(cut -d' ' -f22 /proc/$$/stat); ls %s", pid_path, folder);
	cleanup_free char *text = run_script(options, script);
	struct process_id id;
	assert_int_equal(process_read_pid_file(pid_path, &id, NULL), 0);
	cleanup_free char *wanted =
		xasprintf("%d %llu\n%d %llu\noutput\npid\n", id.pid, (unsigned long long)id.start_time, id.pid,
			  (unsigned long long)id.start_time);
	assert_string_equal(text, wanted);
	assert_true(id.start_time > 0);
}

static void test_pid_files_that_are_none(void **state)
{
	(void)state;
	static const char *const texts[] = {
		"",
		"12",
		"12\n",
		"12 \n",
		"12 x\n",
		" 12 3\n",
		"0 3\n",
		"-1 3\n",
		"12 3",
		"12 3\n\n",
		"12 3 4\n",
		"99999999999 3\n",
		"12 99999999999999999999999\n",
		"abc\n",
	};
	struct process_id id = {.pid = 77};
	for (size_t i = 0; i < sizeof(texts) / sizeof(texts[0]); i++) {
		assert_int_equal(file_write_atomic(path_of("bad"), texts[i], strlen(texts[i]), 0600, NULL), 0);
		cleanup_error struct error *error = NULL;
		assert_int_equal(process_read_pid_file(path_of("bad"), &id, &error), -1);
		assert_int_equal(error->code, ERROR_INVALID_ARGUMENT);
	}
	assert_int_equal(id.pid, 77);
	cleanup_error struct error *error = NULL;
	assert_int_equal(process_read_pid_file(path_of("absent"), &id, &error), -1);
	assert_int_equal(error->code, ERROR_NOT_FOUND);
}

/* ---- what goes wrong ---- */

static void assert_start_fails(struct process_options options, const char *program, int errnum, const char *words)
{
	const char *argv[] = {program, NULL};
	options.argv = argv;
	struct process_id id = {.pid = 77};
	int pidfd = 77;
	cleanup_error struct error *error = NULL;
	assert_int_equal(process_start(&options, &id, &pidfd, &error), -1);
	assert_int_equal(error->code, ERROR_SYSTEM);
	assert_int_equal(error->sys_errno, errnum);
	assert_non_null(strstr(error->message, words));
	assert_non_null(strstr(error->message, program));
	assert_int_equal(id.pid, 77);
	assert_int_equal(pidfd, 77);
	if (options.pid_path)
		assert_int_equal(access(options.pid_path, F_OK), -1);
}

static void test_failures_name_the_step(void **state)
{
	(void)state;
	struct process_options options = plain;
	cleanup_free char *pid_path = xstrdup(path_of("failed.pid"));
	options.pid_path = pid_path;
	assert_start_fails(options, "/nonexistent/program", ENOENT, "cannot execute");
	assert_start_fails(options, "/etc/passwd", EACCES, "cannot execute");
	options.working_folder = "/nonexistent";
	assert_start_fails(options, "/bin/true", ENOENT, "working folder");
	options.working_folder = NULL;
	options.pid_path = "/nonexistent/pid";
	assert_start_fails(options, "/bin/true", ENOENT, "pid file");
	options.pid_path = NULL;
	const struct process_fd fds[] = {{.fd = 999, .child_fd = 3}};
	options.fds = fds;
	options.fd_count = 1;
	assert_start_fails(options, "/bin/true", EBADF, "descriptors");
}

/* ---- finding, waiting, signalling ---- */

static void start_sleeper(struct process_id *id, int *pidfd)
{
	static const char *const argv[] = {"/bin/sleep", "1000", NULL};
	struct process_options options = plain;
	options.argv = argv;
	assert_int_equal(process_start(&options, id, pidfd, NULL), 0);
}

static void test_open_wait_signal(void **state)
{
	(void)state;
	struct process_id id;
	int pidfd = -1, again = -1;
	start_sleeper(&id, &pidfd);
	assert_true(fcntl(pidfd, F_GETFD) & FD_CLOEXEC);
	assert_false(process_wait(pidfd, 0));
	int64_t start_us = clock_monotonic_us();
	assert_false(process_wait(pidfd, 30));
	assert_true(clock_monotonic_us() - start_us >= 30000);

	assert_int_equal(process_open(&id, &again, NULL), 0);
	struct process_id unknown_time = {.pid = id.pid};
	int third = -1;
	assert_int_equal(process_open(&unknown_time, &third, NULL), 0);
	/* The same pid at another time is another process. */
	struct process_id other = {.pid = id.pid, .start_time = id.start_time - 1};
	cleanup_error struct error *error = NULL;
	assert_int_equal(process_open(&other, &third, &error), -1);
	assert_int_equal(error->code, ERROR_NOT_FOUND);

	assert_int_equal(process_signal(again, 0, NULL), 0);
	assert_int_equal(process_signal(again, SIGKILL, NULL), 0);
	assert_true(process_wait(pidfd, LONG_MS));
	assert_true(process_wait(pidfd, 0)); /* reaped, and still true */
	assert_true(process_wait(again, 0));
	assert_int_equal(process_signal(pidfd, SIGKILL, &error), -1);
	assert_int_equal(error->code, ERROR_NOT_FOUND);
	int fourth = -1;
	assert_int_equal(process_open(&id, &fourth, &error), -1);
	assert_int_equal(error->code, ERROR_NOT_FOUND);
	assert_int_equal(fourth, -1);
	close(pidfd);
	close(again);
	close(third);
}

static void test_a_zombie_has_ended(void **state)
{
	(void)state;
	struct process_id id;
	int pidfd = -1, again = -1;
	start_sleeper(&id, &pidfd);
	assert_int_equal(process_signal(pidfd, SIGKILL, NULL), 0);
	siginfo_t info;
	assert_int_equal(waitid(P_PID, (id_t)id.pid, &info, WEXITED | WNOWAIT), 0); /* ended, not reaped */
	cleanup_error struct error *error = NULL;
	assert_int_equal(process_open(&id, &again, &error), -1);
	assert_int_equal(error->code, ERROR_NOT_FOUND);
	process_reap(pidfd);
	process_reap(pidfd);
	close(pidfd);
}

static void test_numbers_that_are_no_process(void **state)
{
	(void)state;
	static const pid_t pids[] = {0, -1, 0x7fffffff};
	for (size_t i = 0; i < sizeof(pids) / sizeof(pids[0]); i++) {
		struct process_id id = {.pid = pids[i]};
		int pidfd = -1;
		cleanup_error struct error *error = NULL;
		assert_int_equal(process_open(&id, &pidfd, &error), -1);
		assert_int_equal(error->code, ERROR_NOT_FOUND);
	}
}

/* A process of an earlier life is nobody's child here: it can be found, watched and ended all the same. */
static void test_not_our_child(void **state)
{
	(void)state;
	cleanup_free char *text = run_script(plain, "sleep 1000 & echo $! $(cut -d' ' -f22 /proc/$!/stat)");
	cleanup_free char *pid_path = xstrdup(path_of("orphan"));
	assert_int_equal(file_write_atomic(pid_path, text, strlen(text), 0600, NULL), 0);
	struct process_id id;
	int pidfd = -1;
	assert_int_equal(process_read_pid_file(pid_path, &id, NULL), 0);
	assert_int_equal(process_open(&id, &pidfd, NULL), 0);
	assert_false(process_wait(pidfd, 0));
	assert_int_equal(process_signal(pidfd, SIGKILL, NULL), 0);
	assert_true(process_wait(pidfd, LONG_MS));
	process_reap(pidfd);
	close(pidfd);
}

/* The name of a program may look like the rest of the line. */
static void test_strange_program_name(void **state)
{
	(void)state;
	cleanup_free char *program = xasprintf("%s/a) R 1 (b", folder);
	cleanup_free char *command = xasprintf("cp /bin/sleep '%s'", program);
	const char *const copy[] = {"/bin/sh", "-c", command, NULL};
	assert_int_equal(process_run(copy, LONG_MS, 0, NULL, NULL), 0);
	const char *const argv[] = {program, "1000", NULL};
	struct process_options options = plain;
	options.argv = argv;
	struct process_id id, now;
	int pidfd = -1, again = -1;
	cleanup_free char *pid_path = xstrdup(path_of("strange.pid"));
	options.pid_path = pid_path;
	assert_int_equal(process_start(&options, &id, &pidfd, NULL), 0);
	assert_int_equal(process_read_pid_file(pid_path, &now, NULL), 0);
	assert_int_equal(now.start_time, id.start_time); /* written under the old name, read under the new one */
	assert_int_equal(process_open(&now, &again, NULL), 0);
	assert_int_equal(process_signal(pidfd, SIGKILL, NULL), 0);
	assert_true(process_wait(pidfd, LONG_MS));
	close(pidfd);
	close(again);
}

/* ---- helpers that run to their end ---- */

static int run_shell(const char *script, int64_t timeout_ms, size_t limit_bytes, char **ret_output, struct error **e)
{
	const char *const argv[] = {"sh", "-c", script, NULL};
	return process_run(argv, timeout_ms, limit_bytes, ret_output, e);
}

static void test_run(void **state)
{
	(void)state;
	cleanup_free char *output = NULL;
	assert_int_equal(run_shell("echo hello; exit 3", LONG_MS, 100, &output, NULL), 3);
	assert_string_equal(output, "hello\n");
	cleanup_free char *empty = NULL;
	assert_int_equal(run_shell("cat", LONG_MS, 100, &empty, NULL), 0); /* standard input is empty */
	assert_string_equal(empty, "");
	assert_int_equal(run_shell("exit 255", LONG_MS, 0, NULL, NULL), 255);
}

static void test_run_keeps_to_its_limit(void **state)
{
	(void)state;
	cleanup_free char *output = NULL;
	assert_int_equal(run_shell("head -c 3000000 /dev/zero | tr '\\0' x; exit 1", LONG_MS, 1000, &output, NULL), 1);
	assert_int_equal(strlen(output), 1000);
}

static void test_run_fails(void **state)
{
	(void)state;
	char *output = NULL;
	cleanup_error struct error *error = NULL;
	assert_int_equal(run_shell("kill -9 $$", LONG_MS, 100, &output, &error), -1);
	assert_non_null(strstr(error->message, "signal 9"));
	const char *const argv[] = {"ferry-no-such-program", NULL};
	assert_int_equal(process_run(argv, LONG_MS, 100, &output, &error), -1);
	assert_int_equal(error->sys_errno, ENOENT);
	assert_null(output);
}

static void test_run_ends_what_takes_too_long(void **state)
{
	(void)state;
	cleanup_error struct error *error = NULL;
	int64_t start_ms = clock_monotonic_ms();
	/* Its child must go too, and neither may hold us up. */
	cleanup_free char *script = xasprintf("sleep 1000 & echo $! > %s; wait", path_of("grandchild"));
	assert_int_equal(run_shell(script, 100, 100, NULL, &error), -1);
	assert_int_equal(error->code, ERROR_TIMEOUT);
	assert_true(clock_monotonic_ms() - start_ms < LONG_MS / 2);
	cleanup_free char *text = NULL;
	assert_int_equal(file_read(path_of("grandchild"), 100, &text, NULL, NULL), 0);
	struct process_id id = {.pid = atoi(text)};
	int pidfd = -1;
	if (process_open(&id, &pidfd, NULL) == 0) { /* its end may be on its way */
		assert_true(process_wait(pidfd, LONG_MS));
		close(pidfd);
	}
}

/* A helper that leaves a process behind, which holds the output open, has ended all the same. */
static void test_run_does_not_wait_for_daemons(void **state)
{
	(void)state;
	cleanup_free char *output = NULL;
	int64_t start_ms = clock_monotonic_ms();
	assert_int_equal(run_shell("sleep 1000 & echo $!", LONG_MS, 100, &output, NULL), 0);
	assert_true(clock_monotonic_ms() - start_ms < LONG_MS / 2);
	assert_int_equal(kill(atoi(output), SIGKILL), 0);
}

/* ---- many threads ---- */

static atomic_bool must_end;

/* Holds the allocator's lock most of the time: a child that allocated would hang sooner or later. */
static void *allocate(void *user)
{
	(void)user;
	while (!must_end)
		free(xmalloc(100000));
	return NULL;
}

static void *start_many(void *user)
{
	const char *const argv[] = {"/bin/true", NULL};
	struct process_options options = plain;
	cleanup_free char *pid_path = xasprintf("%s/many-%d.pid", folder, *(int *)user);
	options.argv = argv;
	options.pid_path = pid_path;
	for (int i = 0; i < 30; i++) {
		struct process_id id;
		cleanup_close int pidfd = -1;
		if (process_start(&options, &id, &pidfd, NULL) < 0 || !process_wait(pidfd, LONG_MS))
			return user;
	}
	return NULL;
}

static void test_from_many_threads(void **state)
{
	(void)state;
	pthread_t allocators[2], starters[4];
	int numbers[4];
	for (size_t i = 0; i < 2; i++)
		assert_int_equal(pthread_create(&allocators[i], NULL, allocate, NULL), 0);
	for (size_t i = 0; i < 4; i++) {
		numbers[i] = (int)i;
		assert_int_equal(pthread_create(&starters[i], NULL, start_many, &numbers[i]), 0);
	}
	for (size_t i = 0; i < 4; i++) {
		void *failed;
		pthread_join(starters[i], &failed);
		assert_null(failed);
	}
	must_end = true;
	for (size_t i = 0; i < 2; i++)
		pthread_join(allocators[i], NULL);
}

int main(void)
{
#define TEST(name) cmocka_unit_test_teardown(name, teardown)
	const struct CMUnitTest tests[] = {
		TEST(test_session_folder_mask_environment),
		TEST(test_signals_are_reset),
		TEST(test_descriptors),
		TEST(test_user),
		TEST(test_pid_file_is_there_before_the_program_runs),
		TEST(test_pid_files_that_are_none),
		TEST(test_failures_name_the_step),
		TEST(test_open_wait_signal),
		TEST(test_a_zombie_has_ended),
		TEST(test_numbers_that_are_no_process),
		TEST(test_not_our_child),
		TEST(test_strange_program_name),
		TEST(test_run),
		TEST(test_run_keeps_to_its_limit),
		TEST(test_run_fails),
		TEST(test_run_ends_what_takes_too_long),
		TEST(test_run_does_not_wait_for_daemons),
		TEST(test_from_many_threads),
	};
	return cmocka_run_group_tests(tests, group_setup, group_teardown);
}
