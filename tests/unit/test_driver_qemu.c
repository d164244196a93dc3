/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The QEMU driver with real QEMUs: TCG, 32 MiB, no disk unless the test is about disks; two "hosts" are two sets of
 * folders on this machine. Root only (QEMU runs as another user; a network namespace keeps the taps to ourselves).
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <net/if.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/file.h"
#include "base/json.h"
#include "base/log.h"
#include "base/xalloc.h"
#include "net/socket.h"
#include "network/port.h"
#include "vm/driver.h"
#include "vm/qemu_machine.h"

#define QEMU_UID 61000
#define LONG_US 20000000 /* never waited for in a test that passes */
#define KEY "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff"
#define OTHER_KEY "ffeeddccbbaa99887766554433221100ffeeddccbbaa99887766554433221100"

struct site {
	struct driver_host host;
	int network; /* its namespace */
	const char *address;
	char *run_folder, *log_folder;
};

static const char *binary = "/usr/bin/qemu-system-x86_64"; /* $FERRY_TEST_QEMU names another */
static struct loop *loop;
static pthread_t loop_thread;
static char folder[] = "/tmp/ferry-test-XXXXXX";
static struct site a, b;
static const struct vm_driver *const driver = &vm_driver_qemu;
static uint16_t next_port = 49152;

/* A call that must succeed; says why it did not. */
#define OK(call)                                                                                                       \
	do {                                                                                                           \
		struct error *ok_error = NULL;                                                                         \
		struct error **e = &ok_error;                                                                          \
		if ((call) < 0)                                                                                        \
			fail_msg("%s: %s", #call, ok_error->message);                                                  \
	} while (0)

/* A call that must fail with this code. */
#define FAILS(expected, call)                                                                                          \
	do {                                                                                                           \
		cleanup_error struct error *fails_error = NULL;                                                        \
		struct error **e = &fails_error;                                                                       \
		if ((call) >= 0)                                                                                       \
			fail_msg("%s should have failed", #call);                                                      \
		if (fails_error->code != (expected))                                                                   \
			fail_msg("%s: code %s: %s", #call, error_code_name(fails_error->code), fails_error->message);  \
	} while (0)

static void *loop_main(void *unused)
{
	(void)unused;
	if (loop_run(loop, NULL) < 0)
		abort();
	return NULL;
}

static void site_init(struct site *site, const char *name)
{
	site->run_folder = xasprintf("%s/%s/run", folder, name);
	site->log_folder = xasprintf("%s/%s/log", folder, name);
	OK(file_make_folders(site->run_folder, 0711, e));
	OK(file_make_folders(site->log_folder, 0711, e));
	site->host = (struct driver_host){
		.loop = loop,
		.run_folder = site->run_folder,
		.log_folder = site->log_folder,
		.binary = binary,
		.accelerator = "tcg",
		.uid = QEMU_UID,
		.gid = QEMU_UID,
		.stream_timeout_ms = 20000,
	};
}

static void run_ip(const char *arguments)
{
	cleanup_free char *copy = xstrdup(arguments);
	const char *argv[16] = {"/sbin/ip"};
	size_t count = 1;
	char *position = NULL;
	for (char *word = strtok_r(copy, " ", &position); word; word = strtok_r(NULL, " ", &position))
		argv[count++] = word;
	cleanup_free char *output = NULL;
	struct error *e = NULL;
	int status = process_run(argv, 10000, 4096, &output, &e);
	if (status != 0)
		fail_msg("ip %s: %s", arguments, e ? e->message : "failed");
}

/* Act on that host from here on: taps and QEMUs come to be in this thread's namespace. */
static void enter(const struct site *site)
{
	assert_int_equal(setns(site->network, CLONE_NEWNET), 0);
}

static void make_network(struct site *site, const char *address)
{
	assert_int_equal(unshare(CLONE_NEWNET), 0);
	site->network = open("/proc/thread-self/ns/net", O_RDONLY | O_CLOEXEC);
	assert_true(site->network >= 0);
	site->address = address;
	run_ip("link set lo up");
	run_ip("link add br0 type bridge");
	run_ip("link set br0 up");
}

/* A cable between the two. */
static void connect_networks(void)
{
	enter(&a);
	cleanup_free char *cable =
		xasprintf("link add data0 type veth peer name data0 netns /proc/%d/fd/%d", getpid(), b.network);
	run_ip(cable);
	const struct site *const sites[] = {&b, &a};
	for (size_t i = 0; i < 2; i++) {
		enter(sites[i]);
		cleanup_free char *address = xasprintf("address add %s/24 dev data0", sites[i]->address);
		run_ip(address);
		run_ip("link set data0 up");
	}
}

static bool port_is_up(const char *name)
{
	struct ifreq request = {0};
	cleanup_close int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	strncpy(request.ifr_name, name, IFNAMSIZ - 1);
	assert_int_equal(ioctl(fd, SIOCGIFFLAGS, &request), 0);
	return (request.ifr_flags & IFF_UP) != 0;
}

static int setup(void **state)
{
	(void)state;
	log_set_level(getenv("FERRY_TEST_DEBUG") ? LOG_LEVEL_DEBUG : LOG_LEVEL_ERROR);
	if (getenv("FERRY_TEST_QEMU"))
		binary = getenv("FERRY_TEST_QEMU");
	if (geteuid() != 0 || access(binary, X_OK) < 0 || access("/sbin/ip", X_OK) < 0)
		return 0;
	make_network(&a, "198.18.250.1");
	make_network(&b, "198.18.250.2");
	connect_networks();
	OK(loop_new(&loop, e));
	assert_int_equal(pthread_create(&loop_thread, NULL, loop_main, NULL), 0);
	assert_non_null(mkdtemp(folder));
	chmod(folder, 0755);
	site_init(&a, "a");
	site_init(&b, "b");
	return 0;
}

/* What a test that failed has left running. Its own struct machine is lost, and with the loop goes its last user. */
static void end_left_over(const struct site *site)
{
	DIR *machines = opendir(site->run_folder);
	const struct dirent *entry;
	while (machines && (entry = readdir(machines))) {
		cleanup_free char *path = xasprintf("%s/%s/pid", site->run_folder, entry->d_name);
		cleanup_close int pidfd = -1;
		struct process_id id;
		if (entry->d_name[0] != '.' && process_read_pid_file(path, &id, NULL) == 0 &&
		    process_open(&id, &pidfd, NULL) == 0 && process_signal(pidfd, SIGKILL, NULL) == 0)
			(void)process_wait(pidfd, 10000);
	}
	if (machines)
		closedir(machines);
}

static int teardown(void **state)
{
	(void)state;
	if (!loop)
		return 0;
	end_left_over(&a);
	end_left_over(&b);
	loop_quit(loop);
	pthread_join(loop_thread, NULL);
	loop_free(loop);
	OK(file_remove_tree(folder, e));
	close(a.network);
	close(b.network);
	free(a.run_folder);
	free(a.log_folder);
	free(b.run_folder);
	free(b.log_folder);
	return 0;
}

#define NEEDS_QEMU()                                                                                                   \
	do {                                                                                                           \
		if (!loop)                                                                                             \
			skip();                                                                                        \
	} while (0)

static struct definition *define(const char *more)
{
	cleanup_free char *text = xasprintf("{\"name\": \"guest\", \"memory_mib\": 32%s%s}", more[0] ? ", " : "", more);
	cleanup_json json_t *json = NULL;
	struct definition *definition = NULL;
	OK(json_parse(text, strlen(text), &json, e));
	OK(definition_parse(json, &definition, e));
	return definition;
}

static enum machine_run run_of(struct machine *machine)
{
	struct machine_state state;
	driver->state(machine, &state);
	return state.run;
}

static void wait_for(struct machine *machine, unsigned int run_mask, unsigned int move_mask)
{
	struct machine_state state;
	if (!machine_wait_for(machine, run_mask, move_mask, clock_monotonic_us() + LONG_US, &state)) {
		cleanup_free char *words = driver->last_words(machine);
		fail_msg("machine stays %s, move %s: %s", machine_run_name(state.run), move_state_name(state.move),
			 words);
	}
}

static void end(struct machine *machine)
{
	cleanup_free char *machine_folder = xstrdup(machine->folder);
	OK(driver->end(machine, e));
	assert_int_equal(run_of(machine), MACHINE_GONE);
	OK(driver->end(machine, e));
	driver->detach(machine);
	assert_int_equal(access(machine_folder, F_OK), -1);
}

/* Start on b an incoming machine for one that runs on a, on the next free port. */
static struct machine *start_incoming(const struct definition *definition, struct move_options *move)
{
	struct machine *machine = NULL;
	enter(&b);
	move->address = b.address;
	for (;;) {
		struct error *e = NULL;
		move->port = next_port++;
		if (driver->start_incoming(&b.host, definition, move, NULL, &machine, &e) == 0) {
			enter(&a);
			return machine;
		}
		if (e->code != ERROR_DATA_PORTS)
			fail_msg("start_incoming: %s", e->message);
		error_free(e);
	}
}

static void assert_no_folder(const struct machine *machine, const char *file)
{
	cleanup_free char *path = machine_path(machine, file);
	if (access(path, F_OK) == 0)
		fail_msg("%s is still there", path);
}

/* ---- tests ---- */

static void test_start_and_daily_verbs(void **state)
{
	(void)state;
	NEEDS_QEMU();
	struct definition *definition = define("");
	struct machine *machine = NULL, *second = NULL;
	struct machine_state before, after;

	OK(driver->start(&a.host, definition, true, NULL, &machine, e));
	assert_int_equal(run_of(machine), MACHINE_PAUSED);
	FAILS(ERROR_VM_RUNNING, driver->start(&a.host, definition, true, NULL, &second, e));
	OK(driver->resume(machine, e));
	driver->state(machine, &before);
	assert_int_equal(before.run, MACHINE_RUNNING);
	assert_true(before.resumed_us > 0);
	OK(driver->pause(machine, e));
	driver->state(machine, &after);
	assert_int_equal(after.run, MACHINE_PAUSED);
	assert_true(after.stopped_us > before.resumed_us);
	assert_true(after.change > before.change);
	OK(driver->resume(machine, e));
	OK(driver->reset(machine, e));
	OK(driver->power_down(machine, e));
	assert_string_equal(driver->definition(machine)->uuid, definition->uuid);
	/* The alias became the version it stands for. */
	assert_non_null(strstr(driver->definition(machine)->machine, "pc-i440fx-"));
	end(machine);
	definition_free(definition);
}

static void test_attach(void **state)
{
	(void)state;
	NEEDS_QEMU();
	struct definition *definition = define("");
	struct machine *machine = NULL;
	FAILS(ERROR_QEMU_GONE, driver->attach(&a.host, definition->uuid, NULL, &machine, e));
	OK(driver->start(&a.host, definition, false, NULL, &machine, e));
	pid_t pid = machine->process.pid;
	driver->detach(machine);
	machine = NULL;
	OK(driver->attach(&a.host, definition->uuid, NULL, &machine, e));
	assert_int_equal(machine->process.pid, pid);
	assert_int_equal(run_of(machine), MACHINE_RUNNING);
	OK(driver->pause(machine, e));
	driver->detach(machine);
	OK(driver->attach(&a.host, definition->uuid, NULL, &machine, e));
	assert_int_equal(run_of(machine), MACHINE_PAUSED);

	/* One that died while nobody looked is gone, and so is its folder. */
	cleanup_free char *machine_folder = xstrdup(machine->folder);
	driver->detach(machine);
	assert_int_equal(kill(pid, SIGKILL), 0);
	struct machine *none = NULL;
	struct error *problem = NULL;
	int64_t deadline_us = clock_monotonic_us() + LONG_US;
	while (driver->attach(&a.host, definition->uuid, NULL, &none, &problem) == 0 ||
	       problem->code != ERROR_QEMU_GONE) {
		assert_true(clock_monotonic_us() < deadline_us);
		if (none)
			driver->detach(take_ptr(none));
		error_free(take_ptr(problem));
		sched_yield();
	}
	error_free(problem);
	assert_int_equal(access(machine_folder, F_OK), -1);
	definition_free(definition);
}

struct seen {
	pthread_mutex_t lock;
	unsigned int runs;
};

static void on_changed(void *user, const struct machine_state *state)
{
	struct seen *seen = user;
	LOCK_SCOPE(&seen->lock);
	seen->runs |= MASK(state->run);
}

static void test_observer_and_death(void **state)
{
	(void)state;
	NEEDS_QEMU();
	struct seen seen = {.lock = PTHREAD_MUTEX_INITIALIZER};
	struct machine_observer observer = {.changed = on_changed, .user = &seen};
	struct definition *definition = define("");
	struct machine *machine = NULL;
	OK(driver->start(&a.host, definition, false, &observer, &machine, e));
	OK(driver->pause(machine, e));
	OK(driver->resume(machine, e));
	OK(process_signal(machine->pidfd, SIGTERM, e));
	wait_for(machine, MASK(MACHINE_GONE), 0);
	FAILS(ERROR_QEMU_GONE, driver->pause(machine, e));
	end(machine); /* also waits for the callback to have ended */
	assert_int_equal(seen.runs & MASK(MACHINE_PAUSED), MASK(MACHINE_PAUSED));
	assert_int_equal(seen.runs & MASK(MACHINE_RUNNING), MASK(MACHINE_RUNNING));
	assert_int_equal(seen.runs & MASK(MACHINE_GONE), MASK(MACHINE_GONE));
	definition_free(definition);
}

static void test_start_fails_cleanly(void **state)
{
	(void)state;
	NEEDS_QEMU();
	struct definition *definition =
		define("\"nics\": [{\"bridge\": \"br0\"}], \"extra_args\": [\"-device\", \"no-such\"]");
	struct machine *machine = NULL;
	cleanup_error struct error *problem = NULL;
	assert_int_equal(driver->start(&a.host, definition, false, NULL, &machine, &problem), -1);
	assert_int_equal(problem->code, ERROR_QEMU_START);
	assert_non_null(strstr(problem->message, "no-such"));
	char port[IF_NAMESIZE];
	port_name(definition->uuid, 0, port);
	port_wait_released();
	assert_int_equal(if_nametoindex(port), 0);
	cleanup_free char *path = xasprintf("%s/%s", a.run_folder, definition->uuid);
	assert_int_equal(access(path, F_OK), -1);
	definition_free(definition);

	definition = define("\"nics\": [{\"bridge\": \"br7\"}]");
	FAILS(ERROR_PORT, driver->start(&a.host, definition, false, NULL, &machine, e));
	definition_free(definition);
	definition = define("\"machine\": \"pc-i440fx-99.9\"");
	FAILS(ERROR_QEMU_START, driver->start(&a.host, definition, false, NULL, &machine, e));
	definition_free(definition);
}

static void test_devices(void **state)
{
	(void)state;
	NEEDS_QEMU();
	cleanup_free char *disk = xasprintf("%s/disk", folder);
	cleanup_free char *other = xasprintf("%s/other", folder);
	cleanup_free char *third = xasprintf("%s/third", folder);
	const char *const paths[] = {disk, other, third};
	for (size_t i = 0; i < 3; i++) {
		cleanup_close int fd = open(paths[i], O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
		assert_int_equal(ftruncate(fd, 1 << 20), 0);
	}
	const char *const machines[] = {"pc", "q35"};
	for (size_t i = 0; i < 2; i++) {
		cleanup_free char *more = xasprintf(
			"\"machine\": \"%s\", \"vcpus\": 2, \"nics\": [{\"bridge\": \"br0\"}, {\"bridge\": \"br0\", "
			"\"model\": "
			"\"e1000\"}], \"cpu\": {\"features\": [\"-svm\"]}, \"disks\": ["
			"{\"target\": \"vda\", \"path\": \"%s\", \"format\": \"raw\", \"cache\": \"writeback\"},"
			"{\"target\": \"sda\", \"path\": \"%s\", \"format\": \"raw\", \"bus\": \"scsi\", \"cache\": "
			"\"directsync\"},"
			"{\"target\": \"sdb\", \"path\": \"%s\", \"format\": \"raw\", \"bus\": \"sata\", \"cache\": "
			"\"writethrough\"}]",
			machines[i], disk, other, third);
		struct definition *definition = define(more);
		struct machine *machine = NULL, *second = NULL;
		OK(driver->start(&a.host, definition, false, NULL, &machine, e));
		struct stat st;
		assert_int_equal(stat(disk, &st), 0);
		assert_int_equal(st.st_uid, QEMU_UID); /* given to QEMU's user */
		/* Another VM with the same disk is kept off by QEMU's image locks. */
		cleanup_free char *same_disk =
			xasprintf("\"disks\": [{\"target\": \"vda\", \"path\": \"%s\", \"format\": \"raw\"}]", disk);
		struct definition *thief = define(same_disk);
		FAILS(ERROR_QEMU_START, driver->start(&a.host, thief, false, NULL, &second, e));
		definition_free(thief);
		char port[IF_NAMESIZE];
		port_name(definition->uuid, 1, port);
		assert_int_not_equal(if_nametoindex(port), 0);
		OK(driver->ports_shut(machine, e));
		OK(driver->ports_open(machine, e));
		end(machine);
	port_wait_released();
	assert_int_equal(if_nametoindex(port), 0);
		definition_free(definition);
	}
}

static void test_describe_and_check(void **state)
{
	(void)state;
	NEEDS_QEMU();
	struct definition *definition = define("\"extra_args\": [\"-snapshot\"]");
	struct machine *machine = NULL;
	json_t *description = NULL;
	cleanup_json json_t *failures = json_array();
	OK(driver->start(&a.host, definition, false, NULL, &machine, e));
	OK(driver->describe(machine, &description, e));
	assert_true(json_is_true(json_object_get(description, "snapshot_mode")));
	assert_string_equal(json_string_value(json_object_get(description, "run")), "running");
	assert_int_equal(json_array_size(json_object_get(description, "blocked_reasons")), 0);
	const char *version = json_string_value(json_object_get(description, "qemu_version"));
	const int extra_bytes = strtol(version, NULL, 10) < 9 ? 8192 : 0;
	assert_int_equal(json_integer_value(json_object_get(description, "memory_bytes")), (32 << 20) + extra_bytes);
	json_t *firmware = json_object_get(description, "firmware");
	assert_true(json_array_size(firmware) >= 1);

	OK(driver->check_incoming(&b.host, description, failures, e));
	assert_int_equal(json_array_size(failures), 0);

	/* From a QEMU of the other side of 9.0. */
	json_object_set_new(description, "memory_bytes", json_integer((32 << 20) + 8192 - extra_bytes));
	OK(driver->check_incoming(&b.host, description, failures, e));
	assert_int_equal(json_array_size(failures), 1);
	assert_string_equal(json_string_value(json_object_get(json_array_get(failures, 0), "code")),
			    error_code_name(ERROR_DEST_MACHINE_TYPE));
	json_array_clear(failures);

	/* Everything wrong at once, all of it reported. */
	json_t *described = json_object_get(description, "definition");
	json_object_set_new(description, "accelerator", json_string("kvm"));
	json_object_set_new(described, "machine", json_string("pc-i440fx-99.9"));
	json_object_set_new(described, "cpu", json_pack("{s:s, s:[]}", "model", "Skylake-Server", "features"));
	json_object_set_new(json_array_get(firmware, 0), "size_bytes", json_integer(1));
	json_array_append_new(firmware, json_pack("{s:s, s:i}", "name", "../../etc/passwd", "size_bytes", 1));
	OK(driver->check_incoming(&b.host, description, failures, e));
	static const enum error_code wanted[] = {ERROR_DEST_ACCELERATOR, ERROR_DEST_MACHINE_TYPE,
						 ERROR_DEST_CPU_FEATURES, ERROR_DEST_FIRMWARE, ERROR_DEST_FIRMWARE};
	assert_int_equal(json_array_size(failures), sizeof(wanted) / sizeof(*wanted));
	for (size_t i = 0; i < json_array_size(failures); i++)
		assert_string_equal(json_string_value(json_object_get(json_array_get(failures, i), "code")),
				    error_code_name(wanted[i]));
	json_array_clear(failures);
	json_object_set_new(described, "cpu", json_pack("{s:s, s:[]}", "model", "max", "features"));
	OK(driver->check_incoming(&b.host, description, failures, e));
	assert_string_equal(json_string_value(json_object_get(json_array_get(failures, 2), "code")),
			    error_code_name(ERROR_DEST_CPU_MODEL));
	json_decref(description);
	end(machine);
	definition_free(definition);
}

/* All connections of the stream are held, whoever made them, and set up as ours are. */
static void assert_connections(struct machine *source, const struct move_options *move)
{
	struct move_sample sample;
	OK(driver->move_sample(source, &sample, e));
	move_sample_done(&sample);
	assert_int_equal(source->connection_count, move->channels > 1 ? move->channels + 1 : 1);
	for (size_t i = 0; i < source->connection_count; i++) {
		int timeout_ms = 0, unsent_bytes = 0;
		socklen_t size = sizeof(int);
		assert_int_equal(getsockopt(source->connections[i], IPPROTO_TCP, TCP_USER_TIMEOUT, &timeout_ms, &size), 0);
		assert_int_equal(timeout_ms, 20000);
		assert_int_equal(getsockopt(source->connections[i], IPPROTO_TCP, TCP_NOTSENT_LOWAT, &unsent_bytes, &size), 0);
		assert_int_equal(unsent_bytes, 128 << 10);
	}
}

/* From move_prepare() to a loaded destination. */
static void move_to_b(struct machine *source, struct machine *destination, const struct move_options *move)
{
	struct move_sample sample;
	OK(driver->move_prepare(source, move, e));
	OK(driver->move_start(source, move, e));
	assert_no_folder(source, "move");
	wait_for(source, 0, MASK(MOVE_PRE_SWITCHOVER));
	assert_int_not_equal(run_of(source), MACHINE_RUNNING);
	assert_connections(source, move);
	OK(driver->move_continue(source, e));
	wait_for(source, 0, MASK(MOVE_COMPLETED));
	assert_int_equal(run_of(source), MACHINE_HANDED_OVER);
	OK(driver->move_sample(source, &sample, e));
	assert_int_equal(sample.state, MOVE_COMPLETED);
	assert_true(sample.total_bytes >= 32 << 20);
	assert_true(sample.wire_bytes >= sample.transferred_bytes);
	move_sample_done(&sample);
	OK(driver->wait_loaded(destination, clock_monotonic_us() + LONG_US, e));
	assert_int_equal(run_of(destination), MACHINE_INCOMING);
}

static void move_there(const struct move_options *options, bool paused)
{
	struct move_options move = *options;
	struct definition *definition = define("");
	struct machine *source = NULL;
	bool ran = false;
	json_t *before = NULL, *after = NULL;

	OK(driver->start(&a.host, definition, paused, NULL, &source, e));
	OK(qemu_migration_settings_read(source->qmp, &before, e));
	struct machine *destination = start_incoming(driver->definition(source), &move);
	FAILS(ERROR_VM_NOT_OWNER, driver->resume(destination, e));
	move_to_b(source, destination, &move);
	assert_no_folder(destination, "move/keys.psk");

	OK(driver->take_over(destination, paused, &ran, e));
	assert_int_equal(run_of(destination), paused ? MACHINE_PAUSED : MACHINE_RUNNING);
	OK(driver->move_restore(destination, e));
	OK(driver->move_restore(source, e));
	OK(qemu_migration_settings_read(source->qmp, &after, e));
	assert_true(json_equal(before, after));
	json_decref(after);
	OK(qemu_migration_settings_read(destination->qmp, &after, e));
	assert_true(json_equal(before, after));
	json_decref(after);
	json_decref(before);
	end(source);

	/* ferryd restarts: the one that was taken over is no longer a waiting one. */
	driver->detach(destination);
	destination = NULL;
	OK(driver->attach(&b.host, definition->uuid, NULL, &destination, e));
	assert_int_equal(run_of(destination), paused ? MACHINE_PAUSED : MACHINE_RUNNING);
	OK(driver->resume(destination, e));
	assert_int_equal(run_of(destination), MACHINE_RUNNING);
	end(destination);
	definition_free(definition);
}

static void test_move_plain(void **state)
{
	(void)state;
	NEEDS_QEMU();
	move_there(&(struct move_options){.channels = 1, .limits.downtime_ms = 300}, false);
}

static void test_move_tls(void **state)
{
	(void)state;
	NEEDS_QEMU();
	move_there(&(struct move_options){.channels = 1, .limits.downtime_ms = 300, .tls_key_hex = KEY}, false);
}

static void test_move_multifd(void **state)
{
	(void)state;
	NEEDS_QEMU();
	move_there(&(struct move_options){.channels = 2, .limits.downtime_ms = 300}, false);
}

static void test_move_multifd_tls(void **state)
{
	(void)state;
	NEEDS_QEMU();
	move_there(&(struct move_options){.channels = 2, .limits.downtime_ms = 300, .tls_key_hex = KEY}, false);
}

static void test_move_paused(void **state)
{
	(void)state;
	NEEDS_QEMU();
	move_there(&(struct move_options){.channels = 1, .limits.downtime_ms = 300}, true);
}

/* There and back, paused all the way: images that were never activated at the destination leave it again. */
static void test_move_paused_with_disk_and_back(void **state)
{
	(void)state;
	NEEDS_QEMU();
	cleanup_free char *disk = xasprintf("%s/paused-disk", folder);
	cleanup_close int fd = open(disk, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
	assert_int_equal(ftruncate(fd, 1 << 20), 0);
	cleanup_free char *more =
		xasprintf("\"disks\": [{\"target\": \"vda\", \"path\": \"%s\", \"format\": \"raw\"}]", disk);
	struct definition *definition = define(more);
	struct move_options move = {.channels = 1, .limits.downtime_ms = 300};
	struct machine *first = NULL, *second = NULL;
	bool ran;
	OK(driver->start(&a.host, definition, true, NULL, &first, e));
	second = start_incoming(driver->definition(first), &move);
	move_to_b(first, second, &move);
	OK(driver->take_over(second, true, &ran, e));
	OK(driver->move_restore(second, e));
	end(first);

	/* The sites change places. */
	struct site other = a;
	a = b;
	b = other;
	enter(&a);
	first = start_incoming(driver->definition(second), &move);
	move_to_b(second, first, &move);
	OK(driver->take_over(first, false, &ran, e));
	assert_int_equal(run_of(first), MACHINE_RUNNING);
	end(second);
	end(first);
	definition_free(definition);
}

/* The ports: shut at the destination until it takes over, shut at the source when it is told, opened by a rollback. */
static void test_move_with_ports(void **state)
{
	(void)state;
	NEEDS_QEMU();
	struct move_options move = {.channels = 1, .limits.downtime_ms = 300};
	struct definition *definition =
		define("\"nics\": [{\"bridge\": \"br0\"}, {\"bridge\": \"br0\", \"model\": \"e1000\"}]");
	struct machine *source = NULL;
	bool ran;
	char port[IF_NAMESIZE];
	port_name(definition->uuid, 1, port);
	enter(&a);
	OK(driver->start(&a.host, definition, false, NULL, &source, e));
	assert_true(port_is_up(port));
	struct machine *destination = start_incoming(driver->definition(source), &move);
	enter(&b);
	assert_false(port_is_up(port));
	enter(&a);
	move_to_b(source, destination, &move);
	OK(driver->ports_shut(source, e));
	assert_false(port_is_up(port));
	OK(driver->ports_open(source, e));
	assert_true(port_is_up(port));
	OK(driver->ports_shut(source, e));
	enter(&b);
	assert_false(port_is_up(port));
	OK(driver->take_over(destination, false, &ran, e));
	assert_true(port_is_up(port));
	assert_int_equal(run_of(destination), MACHINE_RUNNING);
	end(destination);
	port_wait_released();
	assert_int_equal(if_nametoindex(port), 0);
	enter(&a);
	end(source);
	port_wait_released();
	assert_int_equal(if_nametoindex(port), 0);
	definition_free(definition);
}

/* ---- post-copy ---- */

/* QEMU's user may use userfaultfd only where the host's administrator has said so; root may always. */
static void run_as(uid_t user)
{
	a.host.uid = b.host.uid = user;
	a.host.gid = b.host.gid = user;
}

/* Into post-copy: the guest runs at the destination, most of its memory is not there. */
static void into_postcopy(struct machine *source, struct machine *destination, const struct move_options *move)
{
	bool ran;
	OK(driver->move_prepare(source, move, e));
	OK(driver->move_start(source, move, e));
	wait_for(source, 0, MASK(MOVE_ACTIVE));
	OK(driver->move_start_postcopy(source, e));
	wait_for(source, 0, MASK(MOVE_PRE_SWITCHOVER));
	assert_int_equal(run_of(destination), MACHINE_INCOMING);
	OK(driver->move_continue(source, e));
	wait_for(source, 0, MASK(MOVE_POSTCOPY));
	assert_int_equal(run_of(source), MACHINE_HANDED_OVER);
	for (struct move_sample sample = {0}; sample.postcopy_bytes == 0; move_sample_done(&sample))
		OK(driver->move_sample(source, &sample, e));
	OK(driver->wait_loaded(destination, clock_monotonic_us() + LONG_US, e));
	assert_int_equal(run_of(destination), MACHINE_INCOMING);
	OK(driver->take_over(destination, false, &ran, e));
	assert_int_equal(run_of(destination), MACHINE_RUNNING);
}

static void both_complete(struct machine *source, struct machine *destination)
{
	wait_for(destination, 0, MASK(MOVE_COMPLETED));
	wait_for(source, 0, MASK(MOVE_COMPLETED));
	assert_int_equal(run_of(destination), MACHINE_RUNNING);
	assert_int_equal(run_of(source), MACHINE_HANDED_OVER);
	OK(driver->move_restore(destination, e));
	OK(driver->move_restore(source, e));
}

static void test_postcopy(void **state)
{
	(void)state;
	NEEDS_QEMU();
	run_as(0);
	struct move_options move = {.channels = 1, .limits.downtime_ms = 1, .bandwidth_bytes_per_s = 2000000, .may_postcopy = true};
	struct definition *definition = define("");
	struct machine *source = NULL;
	OK(driver->start(&a.host, definition, false, NULL, &source, e));
	struct machine *destination = start_incoming(driver->definition(source), &move);
	into_postcopy(source, destination, &move);
	OK(driver->move_set_bandwidth(source, 0, e));
	both_complete(source, destination);
	end(source);
	end(destination);
	run_as(QEMU_UID);
	definition_free(definition);
}

/* The stream breaks: neither side ends, both can be found again by another ferryd, and it goes on over another stream. */
static void recover_postcopy(const char *key)
{
	run_as(0);
	struct move_options move = {.channels = 1, .limits.downtime_ms = 1, .bandwidth_bytes_per_s = 500000, .may_postcopy = true,
				    .tls_key_hex = key};
	struct definition *definition = define("");
	struct machine *source = NULL;
	OK(driver->start(&a.host, definition, false, NULL, &source, e));
	struct machine *destination = start_incoming(driver->definition(source), &move);
	into_postcopy(source, destination, &move);
	for (int i = 0; i < 2; i++) {
		shutdown(source->connections[0], SHUT_RDWR);
		wait_for(source, 0, MASK(MOVE_POSTCOPY_PAUSED));
		wait_for(destination, 0, MASK(MOVE_POSTCOPY_PAUSED));
		if (i == 1) { /* other ferryds */
			driver->detach(source);
			driver->detach(destination);
			OK(driver->attach(&a.host, definition->uuid, NULL, &source, e));
			OK(driver->attach(&b.host, definition->uuid, NULL, &destination, e));
		}
		assert_int_equal(run_of(source), MACHINE_HANDED_OVER);
		assert_int_equal(run_of(destination), MACHINE_RUNNING);
		if (key) /* each stream has one of its own */
			move.tls_key_hex = i == 0 ? OTHER_KEY : KEY;
		move.port = next_port++;
		OK(driver->move_listen_again(destination, &move, e));
		OK(driver->move_resume(source, &move, e));
		wait_for(source, 0, MASK(MOVE_POSTCOPY));
		wait_for(destination, 0, MASK(MOVE_POSTCOPY));
	}
	OK(driver->move_set_bandwidth(source, 0, e));
	both_complete(source, destination);
	end(source);
	end(destination);
	run_as(QEMU_UID);
	definition_free(definition);
}

static void test_postcopy_recovers(void **state)
{
	(void)state;
	NEEDS_QEMU();
	recover_postcopy(NULL);
}

static void test_postcopy_recovers_encrypted(void **state)
{
	(void)state;
	NEEDS_QEMU();
	recover_postcopy(KEY);
}

static void test_wrong_key(void **state)
{
	(void)state;
	NEEDS_QEMU();
	struct move_options move = {.channels = 1, .limits.downtime_ms = 300, .tls_key_hex = KEY};
	struct definition *definition = define("");
	struct machine *source = NULL;
	OK(driver->start(&a.host, definition, false, NULL, &source, e));
	struct machine *destination = start_incoming(driver->definition(source), &move);
	cleanup_free char *other_key = xstrdup(KEY);
	other_key[0] = 'f';
	move.tls_key_hex = other_key;
	OK(driver->move_prepare(source, &move, e));
	OK(driver->move_start(source, &move, e));
	wait_for(source, 0, MASK(MOVE_FAILED));
	OK(driver->move_cancel(source, 5000, e));
	OK(driver->move_restore(source, e));
	assert_int_equal(run_of(source), MACHINE_RUNNING);
	/* QEMU 7.2 goes on listening after a failed handshake: nothing has arrived. */
	assert_int_equal(run_of(destination), MACHINE_INCOMING);
	end(destination);
	end(source);
	definition_free(definition);
}

/* Cancelled in the copy, then at pre-switchover; a second move then succeeds. */
static void test_cancel_and_again(void **state)
{
	(void)state;
	NEEDS_QEMU();
	struct move_options slow = {.channels = 1, .limits.downtime_ms = 1, .bandwidth_bytes_per_s = 4096};
	struct definition *definition = define("");
	struct machine *source = NULL;
	OK(driver->start(&a.host, definition, false, NULL, &source, e));

	struct machine *destination = start_incoming(driver->definition(source), &slow);
	OK(driver->move_prepare(source, &slow, e));
	OK(driver->move_start(source, &slow, e));
	wait_for(source, 0, MASK(MOVE_ACTIVE));
	FAILS(ERROR_TIMEOUT, driver->wait_loaded(destination, clock_monotonic_us(), e));
	OK(driver->move_cancel(source, 5000, e));
	assert_int_equal(run_of(source), MACHINE_RUNNING);
	OK(driver->move_cancel(source, 5000, e));
	OK(driver->move_restore(source, e));
	FAILS(ERROR_QEMU_GONE, driver->wait_loaded(destination, clock_monotonic_us() + LONG_US, e));
	end(destination);

	struct move_options fast = {.channels = 1, .limits.downtime_ms = 300};
	destination = start_incoming(driver->definition(source), &fast);
	OK(driver->move_prepare(source, &fast, e));
	OK(driver->move_start(source, &fast, e));
	wait_for(source, 0, MASK(MOVE_PRE_SWITCHOVER));
	OK(driver->move_cancel(source, 5000, e));
	assert_int_equal(run_of(source), MACHINE_RUNNING);
	OK(driver->move_restore(source, e));
	end(destination);

	bool ran;
	destination = start_incoming(driver->definition(source), &fast);
	move_to_b(source, destination, &fast);
	OK(driver->take_over(destination, false, &ran, e));
	OK(driver->move_restore(destination, e));
	end(source);
	end(destination);
	definition_free(definition);
}

/* A destination that takes nothing more: the source's QEMU sits in a write, and only shutting its socket gets it out.
 */
/* ---- limits and throttling ---- */

#define PROCESSORS 2

static void find_processors(const struct machine *machine, pid_t ret[PROCESSORS])
{
	cleanup_free char *tasks = xasprintf("/proc/%d/task", (int)machine->process.pid);
	DIR *list = opendir(tasks);
	assert_non_null(list);
	size_t count = 0;
	for (const struct dirent *entry; (entry = readdir(list));) {
		cleanup_free char *path = xasprintf("%s/%s/comm", tasks, entry->d_name);
		char name[32] = "";
		cleanup_close int fd = open(path, O_RDONLY | O_CLOEXEC);
		if (fd < 0 || read(fd, name, sizeof(name) - 1) < 0 || strncmp(name, "CPU ", 4) != 0)
			continue;
		assert_in_range(count, 0, PROCESSORS - 1);
		ret[count++] = (pid_t)atoi(entry->d_name);
	}
	closedir(list);
	assert_int_equal(count, PROCESSORS);
}

static bool processors_have(const struct machine *machine, int policy)
{
	pid_t threads[PROCESSORS];
	find_processors(machine, threads);
	unsigned int right = 0;
	for (size_t i = 0; i < PROCESSORS; i++)
		right += (sched_getscheduler(threads[i]) & ~SCHED_RESET_ON_FORK) == policy;
	assert_true(right == 0 || right == PROCESSORS);
	return right > 0;
}

static void assert_parameter(struct machine *machine, const char *name, json_int_t wanted)
{
	json_t *settings = NULL;
	OK(qemu_migration_settings_read(machine->qmp, &settings, e));
	json_int_t is = json_integer_value(json_object_get(json_object_get(settings, "parameters"), name));
	json_decref(settings);
	if (is != wanted)
		fail_msg("QEMU's %s is %lld, not %lld", name, (long long)is, (long long)wanted);
}

/* A guest of two processors and a copy of it that does not get on. */
struct slow_move {
	struct definition *definition;
	struct machine *source, *destination;
	json_t *before; /* its settings */
};

static struct slow_move slow_move_begin(void)
{
	struct slow_move slow = {.definition = define("\"vcpus\": 2")};
	struct move_options move = {
		.channels = 1, .bandwidth_bytes_per_s = 4096, .may_throttle = true, .limits.downtime_ms = 5};
	OK(driver->start(&a.host, slow.definition, false, NULL, &slow.source, e));
	OK(qemu_migration_settings_read(slow.source->qmp, &slow.before, e));
	slow.destination = start_incoming(driver->definition(slow.source), &move);
	OK(driver->move_prepare(slow.source, &move, e));
	OK(driver->move_start(slow.source, &move, e));
	wait_for(slow.source, 0, MASK(MOVE_ACTIVE));
	return slow;
}

/* Called off: nothing of it is left. */
static void slow_move_end(struct slow_move *slow, int policy)
{
	json_t *after = NULL;
	OK(driver->move_cancel(slow->source, 5000, e));
	OK(driver->move_restore(slow->source, e));
	assert_true(processors_have(slow->source, policy));
	OK(qemu_migration_settings_read(slow->source->qmp, &after, e));
	assert_true(json_equal(slow->before, after));
	json_decref(after);
	json_decref(slow->before);
	end(slow->source);
	end(slow->destination);
	definition_free(slow->definition);
}

static void set_limits(struct machine *machine, unsigned int downtime_ms, unsigned int percent, unsigned int increment)
{
	const struct move_limits limits = {
		.downtime_ms = downtime_ms, .throttle_percent = percent, .throttle_increment = increment};
	OK(driver->move_set_limits(machine, &limits, e));
}

/* Whether the kernel lets us; else it is told why nothing was tested. */
static bool throttled_from_outside(const struct slow_move *slow)
{
	if (slow->source->qemu_throttles)
		print_message("# skipped, needs CAP_SYS_NICE and threads on all processors\n");
	return !slow->source->qemu_throttles;
}

static void test_throttle_from_outside(void **state)
{
	(void)state;
	NEEDS_QEMU();
	struct slow_move slow = slow_move_begin();
	struct move_sample sample;
	assert_parameter(slow.source, "downtime-limit", 5);
	set_limits(slow.source, 77, 80, 0);
	assert_parameter(slow.source, "downtime-limit", 77);
	if (throttled_from_outside(&slow)) {
		/* QEMU is left out of it: a hundredth is the least that it can be told. */
		assert_parameter(slow.source, "max-cpu-throttle", 1);
		assert_true(processors_have(slow.source, SCHED_DEADLINE));
		OK(driver->move_sample(slow.source, &sample, e));
		assert_int_equal(sample.throttle_percent, 80);
		assert_true(sample.throttle_at_once);
		assert_in_range(sample.throttle_slice_ms, 1, 10);
		move_sample_done(&sample);
		set_limits(slow.source, 77, 0, 0);
		assert_true(processors_have(slow.source, SCHED_OTHER));
		set_limits(slow.source, 77, 95, 0);
		assert_true(processors_have(slow.source, SCHED_DEADLINE));
		/* Before QEMU has been asked anything, as it may hang. */
		OK(driver->move_cancel(slow.source, 5000, e));
		assert_true(processors_have(slow.source, SCHED_OTHER));
	}
	slow_move_end(&slow, SCHED_OTHER);
}

static void test_throttle_is_released_later(void **state)
{
	(void)state;
	NEEDS_QEMU();
	struct slow_move slow = slow_move_begin();
	set_limits(slow.source, 5, 80, 0);
	if (throttled_from_outside(&slow)) {
		/* A ferryd that is killed undoes nothing; whoever finds the machine again does. */
		slow.source->throttle_percent = 0;
		driver->detach(slow.source);
		OK(driver->attach(&a.host, slow.definition->uuid, NULL, &slow.source, e));
		assert_true(processors_have(slow.source, SCHED_DEADLINE));
	}
	slow_move_end(&slow, SCHED_OTHER);
}

static void test_throttle_ends_with_ferryd(void **state)
{
	(void)state;
	NEEDS_QEMU();
	struct slow_move slow = slow_move_begin();
	set_limits(slow.source, 5, 80, 0);
	if (throttled_from_outside(&slow))
		assert_true(processors_have(slow.source, SCHED_DEADLINE));
	driver->detach(slow.source);
	OK(driver->attach(&a.host, slow.definition->uuid, NULL, &slow.source, e));
	assert_true(processors_have(slow.source, SCHED_OTHER));
	slow_move_end(&slow, SCHED_OTHER);
}

static size_t limited_processors(struct machine *machine)
{
	json_t *list = NULL;
	OK(qmp_execute(machine->qmp, "query-vcpu-dirty-limit", NULL, &list, 10000, e));
	const size_t count = json_array_size(list);
	json_decref(list);
	return count;
}

/* On the machine's KVM, where there is one. The guest does not run: that some KVMs cannot. */
static void test_dirty_limit(void **state)
{
	(void)state;
	NEEDS_QEMU();
	struct driver_host host = a.host;
	struct machine *machine = NULL;
	cleanup_error struct error *problem = NULL;
	struct definition *definition = define("\"vcpus\": 2, \"cpu\": {\"model\": \"host\", \"features\": [\"-arch-capabilities\"]}");
	const struct move_options move = {.channels = 1, .bandwidth_bytes_per_s = 4096, .may_throttle = true, .limits.downtime_ms = 5};
	const struct move_limits limited = {.downtime_ms = 5, .throttle_percent = 80, .dirty_bytes_per_s = 20 << 20}, none = {.downtime_ms = 5};
	host.accelerator = "kvm";
	host.dirty_ring = true;
	host.uid = host.gid = 0; /* who else may open it is the machine's affair */
	if (driver->start(&host, definition, true, NULL, &machine, &problem) < 0) {
		print_message("# skipped, there is no KVM for it: %s\n", problem->message);
		definition_free(definition);
		skip();
	}
	OK(driver->move_prepare(machine, &move, e));
	OK(driver->move_set_limits(machine, &limited, e));
	assert_true(machine->dirty_limited);
	assert_int_equal(limited_processors(machine), 2);
	assert_true(processors_have(machine, SCHED_OTHER));
	OK(driver->move_set_limits(machine, &none, e));
	assert_int_equal(limited_processors(machine), 0);
	/* Whoever comes after a ferryd that was killed finds it. */
	OK(driver->move_set_limits(machine, &limited, e));
	driver->detach(machine);
	OK(driver->attach(&host, definition->uuid, NULL, &machine, e));
	assert_int_equal(limited_processors(machine), 2);
	OK(driver->move_restore(machine, e));
	assert_int_equal(limited_processors(machine), 0);
	end(machine);
	definition_free(definition);
}

/* As other systems have it, or where it cannot be done from outside. */
static void test_throttle_by_qemu(void **state)
{
	(void)state;
	NEEDS_QEMU();
	struct slow_move slow = slow_move_begin();
	set_limits(slow.source, 300, 20, 10);
	assert_parameter(slow.source, "cpu-throttle-initial", 20);
	assert_parameter(slow.source, "cpu-throttle-increment", 10);
	assert_parameter(slow.source, "max-cpu-throttle", 99);
	assert_parameter(slow.source, "throttle-trigger-threshold", 50);
	assert_true(processors_have(slow.source, SCHED_OTHER));

	pid_t threads[PROCESSORS];
	const struct sched_param none = {0};
	find_processors(slow.source, threads);
	for (size_t i = 0; i < PROCESSORS; i++)
		assert_int_equal(sched_setscheduler(threads[i], SCHED_BATCH, &none), 0);
	set_limits(slow.source, 300, 80, 0);
	assert_parameter(slow.source, "cpu-throttle-initial", 80);
	assert_parameter(slow.source, "max-cpu-throttle", 80);
	assert_parameter(slow.source, "throttle-trigger-threshold", 1);
	assert_true(processors_have(slow.source, SCHED_BATCH));
	slow_move_end(&slow, SCHED_BATCH);
}

static void test_cancel_with_stuck_destination(void **state)
{
	(void)state;
	NEEDS_QEMU();
	for (unsigned int channels = 1; channels <= 2; channels++) {
		struct move_options move = {.channels = channels, .limits.downtime_ms = 300};
		cleanup_free char *random = xmalloc(24 << 20);
		cleanup_free char *image = xasprintf("%s/random", folder);
		random_bytes(random, 24 << 20);
		OK(file_write_atomic(image, random, 24 << 20, 0644, e));
		/* Memory full of what does not compress to nothing, so that the stream fills the socket. */
		cleanup_free char *more = xasprintf(
			"\"extra_args\": [\"-device\", \"loader,file=%s,addr=0x400000,force-raw=on\"]", image);
		struct definition *definition = define(more);
		struct machine *source = NULL;
		OK(driver->start(&a.host, definition, false, NULL, &source, e));
		struct machine *destination = start_incoming(driver->definition(source), &move);
		OK(process_signal(destination->pidfd, SIGSTOP, e));
		OK(driver->move_prepare(source, &move, e));
		OK(driver->move_start(source, &move, e));
		wait_for(source, 0, MASK(channels == 1 ? MOVE_ACTIVE : MOVE_SETUP) | MASK(MOVE_ACTIVE));
		int64_t begin_us = clock_monotonic_us();
		OK(driver->move_cancel(source, 5000, e));
		assert_true(clock_monotonic_us() - begin_us < 3000000);
		assert_int_equal(run_of(source), MACHINE_RUNNING);
		OK(driver->move_restore(source, e));
		end(destination);
		end(source);
		definition_free(definition);
	}
}

static void test_destination_dies(void **state)
{
	(void)state;
	NEEDS_QEMU();
	struct move_options slow = {.channels = 1, .limits.downtime_ms = 1, .bandwidth_bytes_per_s = 65536};
	struct definition *definition = define("");
	struct machine *source = NULL;
	bool ran = true;
	OK(driver->start(&a.host, definition, false, NULL, &source, e));
	struct machine *destination = start_incoming(driver->definition(source), &slow);
	OK(driver->move_prepare(source, &slow, e));
	OK(driver->move_start(source, &slow, e));
	wait_for(destination, 0, MASK(MOVE_ACTIVE));
	OK(process_signal(destination->pidfd, SIGKILL, e));
	wait_for(source, 0, MASK(MOVE_FAILED));
	OK(driver->move_cancel(source, 5000, e));
	OK(driver->move_restore(source, e));
	assert_int_equal(run_of(source), MACHINE_RUNNING);
	FAILS(ERROR_QEMU_GONE, driver->wait_loaded(destination, clock_monotonic_us() + LONG_US, e));
	FAILS(ERROR_QEMU_GONE, driver->take_over(destination, false, &ran, e));
	assert_false(ran);
	end(destination);
	end(source);
	definition_free(definition);
}

/* The source's QEMU dies: our own hold on the connections must not keep the destination waiting. */
static void source_dies(unsigned int channels)
{
	struct move_options slow = {.channels = channels, .limits.downtime_ms = 1, .bandwidth_bytes_per_s = 65536};
	struct definition *definition = define("");
	struct machine *source = NULL;
	OK(driver->start(&a.host, definition, false, NULL, &source, e));
	struct machine *destination = start_incoming(driver->definition(source), &slow);
	OK(driver->move_prepare(source, &slow, e));
	OK(driver->move_start(source, &slow, e));
	wait_for(destination, 0, MASK(MOVE_ACTIVE));
	wait_for(source, 0, MASK(MOVE_ACTIVE));
	assert_connections(source, &slow);
	OK(process_signal(source->pidfd, SIGKILL, e));
	FAILS(ERROR_QEMU_GONE, driver->wait_loaded(destination, clock_monotonic_us() + LONG_US, e));
	wait_for(source, MASK(MACHINE_GONE), 0);
	end(destination);
	end(source);
	definition_free(definition);
}

static void test_source_dies(void **state)
{
	(void)state;
	NEEDS_QEMU();
	source_dies(1);
	source_dies(2);
}

/* Of this thread. */
static void set_capability(unsigned int number, bool on)
{
	struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
	struct __user_cap_data_struct data[_LINUX_CAPABILITY_U32S_3];
	const uint32_t bit = UINT32_C(1) << number % 32;
	assert_int_equal(syscall(SYS_capget, &header, data), 0);
	data[number / 32].effective = on ? data[number / 32].effective | bit : data[number / 32].effective & ~bit;
	assert_int_equal(syscall(SYS_capset, &header, data), 0);
}

/* Where QEMU's descriptors cannot be had, its connections stay as it has made them. */
static void test_move_multifd_untouched(void **state)
{
	(void)state;
	NEEDS_QEMU();
	struct move_options move = {.channels = 2, .limits.downtime_ms = 300};
	struct definition *definition = define("");
	struct machine *source = NULL;
	struct move_sample sample;
	OK(driver->start(&a.host, definition, false, NULL, &source, e));
	struct machine *destination = start_incoming(driver->definition(source), &move);
	OK(driver->move_prepare(source, &move, e));
	OK(driver->move_start(source, &move, e));
	wait_for(source, 0, MASK(MOVE_PRE_SWITCHOVER));
	set_capability(CAP_SYS_PTRACE, false);
	OK(driver->move_sample(source, &sample, e));
	set_capability(CAP_SYS_PTRACE, true);
	assert_int_equal(sample.wire_bytes, 0);
	move_sample_done(&sample);
	OK(driver->move_sample(source, &sample, e)); /* asked once */
	assert_int_equal(sample.wire_bytes, 0);
	move_sample_done(&sample);
	OK(driver->move_continue(source, e));
	wait_for(source, 0, MASK(MOVE_COMPLETED));
	OK(driver->wait_loaded(destination, clock_monotonic_us() + LONG_US, e));
	end(destination);
	end(source);
	definition_free(definition);
}

/* ferryd restarts on both sides in the middle: what it left in QEMU is put back by the next one. */
static void test_restart_during_move(void **state)
{
	(void)state;
	NEEDS_QEMU();
	struct move_options move = {.channels = 1, .limits.downtime_ms = 300, .tls_key_hex = KEY};
	struct definition *definition = define("");
	struct machine *source = NULL;
	json_t *before = NULL, *after = NULL;
	bool ran;
	OK(driver->start(&a.host, definition, false, NULL, &source, e));
	OK(qemu_migration_settings_read(source->qmp, &before, e));
	struct machine *destination = start_incoming(driver->definition(source), &move);
	OK(driver->move_prepare(source, &move, e));
	OK(driver->move_start(source, &move, e));
	wait_for(source, 0, MASK(MOVE_PRE_SWITCHOVER));
	driver->detach(source);
	driver->detach(destination);

	OK(driver->attach(&a.host, definition->uuid, NULL, &source, e));
	OK(driver->attach(&b.host, definition->uuid, NULL, &destination, e));
	struct machine_state now;
	driver->state(source, &now);
	assert_int_equal(now.run, MACHINE_PAUSED);
	assert_int_equal(now.move, MOVE_PRE_SWITCHOVER);
	assert_int_equal(run_of(destination), MACHINE_INCOMING);
	OK(driver->move_continue(source, e));
	wait_for(source, MASK(MACHINE_HANDED_OVER), 0);
	OK(driver->wait_loaded(destination, clock_monotonic_us() + LONG_US, e));

	/* Once more, now that everything is there: it is still a waiting one. */
	driver->detach(destination);
	OK(driver->attach(&b.host, definition->uuid, NULL, &destination, e));
	assert_int_equal(run_of(destination), MACHINE_INCOMING);
	OK(driver->wait_loaded(destination, clock_monotonic_us() + LONG_US, e));
	OK(driver->take_over(destination, false, &ran, e));
	OK(driver->take_over(destination, false, &ran, e));
	OK(driver->move_restore(destination, e));
	OK(qemu_migration_settings_read(destination->qmp, &after, e));
	assert_true(json_equal(before, after));
	json_decref(before);
	json_decref(after);
	end(source);
	end(destination);
	definition_free(definition);
}

static void test_port_taken(void **state)
{
	(void)state;
	NEEDS_QEMU();
	struct move_options move = {.channels = 1, .port = 48999};
	struct definition *definition = define("");
	struct machine *machine = NULL;
	cleanup_close int fd = -1;
	move.address = b.address;
	enter(&b);
	OK(socket_listen_tcp(move.address, move.port, &fd, e));
	cleanup_error struct error *problem = NULL;
	assert_int_equal(driver->start_incoming(&b.host, definition, &move, NULL, &machine, &problem), -1);
	assert_int_equal(problem->code, ERROR_DATA_PORTS);
	assert_int_equal(problem->sys_errno, EADDRINUSE);
	enter(&a);
	definition_free(definition);
}

static void test_nobody_listens(void **state)
{
	(void)state;
	NEEDS_QEMU();
	struct move_options move = {.address = b.address, .channels = 1, .port = 48998};
	struct definition *definition = define("");
	struct machine *machine = NULL;
	OK(driver->start(&a.host, definition, false, NULL, &machine, e));
	OK(driver->move_prepare(machine, &move, e));
	cleanup_error struct error *problem = NULL;
	assert_int_equal(driver->move_start(machine, &move, &problem), -1);
	OK(driver->move_cancel(machine, 5000, e));
	OK(driver->move_restore(machine, e));
	assert_int_equal(run_of(machine), MACHINE_RUNNING);
	end(machine);
	definition_free(definition);
}

/* The lab's guests start from a saved state that QEMU loads by itself. `cont` may come before it is loaded, and the word that
 * it is comes after the guest has begun: that is no hand-over. */
static void test_guest_begins_from_a_state(void **state)
{
	(void)state;
	NEEDS_QEMU();
	struct definition *definition = define("");
	struct driver_host host = b.host;
	struct machine *source = NULL, *machine = NULL;
	cleanup_free char *uri = xasprintf("tcp:%s:48997", b.address);
	cleanup_free char *path = xasprintf("%s/qemu-that-waits", folder);
	cleanup_free char *script = xasprintf("#!/bin/sh\nexec %s \"$@\" -incoming defer\n", binary);
	OK(file_write_atomic(path, script, strlen(script), 0755, e));
	host.binary = path;
	OK(driver->start(&a.host, definition, false, NULL, &source, e));
	enter(&b);
	OK(driver->start(&host, definition, false, NULL, &machine, e));
	assert_int_not_equal(run_of(machine), MACHINE_RUNNING);
	OK(machine_command(machine, "migrate-incoming", json_pack("{s:s}", "uri", uri), e));
	enter(&a);
	OK(machine_command(source, "migrate", json_pack("{s:s}", "uri", uri), e));
	wait_for(source, MASK(MACHINE_HANDED_OVER), 0);
	wait_for(machine, 0, MASK(MOVE_COMPLETED));
	assert_int_equal(run_of(machine), MACHINE_RUNNING);
	OK(driver->refresh(machine, e));
	assert_int_equal(run_of(machine), MACHINE_RUNNING);
	end(source);
	end(machine);
	definition_free(definition);
}

/* clang-format off */
/*
 * A boot sector that enters protected mode, says '!' on the serial line and then increments a word in each of 128 pages at
 * 2 MiB for ever, with a pause between two pages:
 *	cli; xor ax,ax; mov ds,ax; lgdt [gdtr]; mov eax,cr0; or al,1; mov cr0,eax; jmp 8:pm
 *	pm: mov ax,0x10; mov ds,ax; mov dx,0x3f8; mov al,'!'; out dx,al
 *	again: mov edi,0x200000
 *	next: inc dword [edi]; mov ecx,2000; delay: dec ecx; jnz delay
 *	add edi,4096; cmp edi,0x280000; jb next; jmp again
 */
static const unsigned char writer[] = {
	0xfa, 0x31, 0xc0, 0x8e, 0xd8, 0x66, 0x0f, 0x01, 0x16, 0x60, 0x7c, 0x0f, 0x20, 0xc0, 0x0c, 0x01,
	0x0f, 0x22, 0xc0, 0x66, 0xea, 0x1b, 0x7c, 0x00, 0x00, 0x08, 0x00, 0x66, 0xb8, 0x10, 0x00, 0x8e,
	0xd8, 0x66, 0xba, 0xf8, 0x03, 0xb0, 0x21, 0xee, 0xbf, 0x00, 0x00, 0x20, 0x00, 0xff, 0x07, 0xb9,
	0xd0, 0x07, 0x00, 0x00, 0x49, 0x75, 0xfd, 0x81, 0xc7, 0x00, 0x10, 0x00, 0x00, 0x81, 0xff, 0x00,
	0x00, 0x28, 0x00, 0x72, 0xe8, 0xeb, 0xe1, 0x90, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,
	0xff, 0xff, 0x00, 0x00, 0x00, 0x9a, 0xcf, 0x00, 0xff, 0xff, 0x00, 0x00, 0x00, 0x92, 0xcf, 0x00,
	0x17, 0x00, 0x48, 0x7c,
};
/* clang-format on */
#define WRITER_FIRST_BYTE (2 << 20)
#define WRITER_BYTES (128 * 4096)

static char *read_guest_memory(struct machine *machine, const char *path)
{
	char *memory = NULL;
	size_t length = 0;
	OK(machine_command(
		machine, "pmemsave",
		json_pack("{s:i, s:i, s:s}", "val", WRITER_FIRST_BYTE, "size", WRITER_BYTES, "filename", path), e));
	OK(file_read(path, WRITER_BYTES, &memory, &length, e));
	assert_int_equal(length, WRITER_BYTES);
	unlink(path);
	return memory;
}

/* Every write of the guest arrives, over many passes: QEMU 7.2 loses some of an emulated guest's without the two pages
 * more that qemu_arguments.c gives it. */
static void test_no_write_is_lost(void **state)
{
	(void)state;
	NEEDS_QEMU();
	cleanup_free char *disk = xasprintf("%s/writer", folder);
	char sector[512] = {0};
	memcpy(sector, writer, sizeof(writer));
	sector[510] = 0x55;
	sector[511] = (char)0xaa;
	cleanup_free char *dumps = xasprintf("%s/dumps", folder);
	OK(file_make_folders(dumps, 0700, e));
	assert_int_equal(chown(dumps, QEMU_UID, QEMU_UID), 0);
	cleanup_free char *dump = xasprintf("%s/memory", dumps);
	cleanup_free char *more =
		xasprintf("\"disks\": [{\"target\": \"vda\", \"path\": \"%s\", \"format\": \"raw\"}]", disk);
	OK(file_write_atomic(disk, sector, sizeof(sector), 0600, e));
	assert_int_equal(truncate(disk, 1 << 20), 0); /* the BIOS boots from no smaller one */

	struct definition *definition = define(more);
	struct move_options move = {.channels = 1, .limits.downtime_ms = 1, .bandwidth_bytes_per_s = 4000000};
	struct machine *source = NULL;
	OK(driver->start(&a.host, definition, true, NULL, &source, e));
	cleanup_free char *console = machine_path(source, "console.sock");
	cleanup_close int fd = -1;
	char said = 0;
	OK(socket_connect_unix(console, &fd, e));
	const struct timeval patience = {.tv_sec = LONG_US / 1000000};
	assert_int_equal(setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience)), 0);
	OK(driver->resume(source, e));
	while (said != '!')
		assert_int_equal(read(fd, &said, 1), 1);

	struct machine *destination = start_incoming(driver->definition(source), &move);
	OK(driver->move_prepare(source, &move, e));
	OK(driver->move_start(source, &move, e));
	struct machine_state now;
	do {
		driver->state(source, &now);
		if (now.pass < 6 && now.move != MOVE_PRE_SWITCHOVER)
			assert_true(driver->wait_change(source, now.change, clock_monotonic_us() + LONG_US));
	} while (now.pass < 6 && now.move != MOVE_PRE_SWITCHOVER);
	OK(driver->move_set_limits(source, &(struct move_limits){.downtime_ms = 2000}, e));
	wait_for(source, 0, MASK(MOVE_PRE_SWITCHOVER));
	OK(driver->move_continue(source, e));
	wait_for(source, MASK(MACHINE_HANDED_OVER), 0);
	OK(driver->wait_loaded(destination, clock_monotonic_us() + LONG_US, e));
	cleanup_free char *sent = read_guest_memory(source, dump);
	cleanup_free char *arrived = read_guest_memory(destination, dump);
	assert_true(sent[0] != 0 || sent[1] != 0 || sent[2] != 0);
	unsigned int wrong = 0;
	for (size_t i = 0; i < WRITER_BYTES; i += 4096)
		wrong += memcmp(sent + i, arrived + i, 4096) != 0;
	if (wrong)
		fail_msg("%u of %d pages differ after %u passes", wrong, WRITER_BYTES / 4096, now.pass);
	end(source);
	end(destination);
	definition_free(definition);
}

static size_t count_descriptors(void)
{
	size_t count = 0;
	DIR *fds = opendir("/proc/self/fd");
	while (readdir(fds))
		count++;
	closedir(fds);
	return count;
}

/* Run last: nothing that came before has left a descriptor behind. */
static void test_no_descriptor_leaks(void **state)
{
	(void)state;
	NEEDS_QEMU();
	test_move_tls(state);
	size_t before = count_descriptors();
	test_move_tls(state);
	test_move_multifd(state);
	test_cancel_and_again(state);
	test_destination_dies(state);
	test_start_fails_cleanly(state);
	assert_int_equal(count_descriptors(), before);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_start_and_daily_verbs),
		cmocka_unit_test(test_attach),
		cmocka_unit_test(test_observer_and_death),
		cmocka_unit_test(test_start_fails_cleanly),
		cmocka_unit_test(test_devices),
		cmocka_unit_test(test_describe_and_check),
		cmocka_unit_test(test_move_plain),
		cmocka_unit_test(test_move_tls),
		cmocka_unit_test(test_move_multifd),
		cmocka_unit_test(test_move_multifd_untouched),
		cmocka_unit_test(test_move_multifd_tls),
		cmocka_unit_test(test_move_paused),
		cmocka_unit_test(test_move_paused_with_disk_and_back),
		cmocka_unit_test(test_move_with_ports),
		cmocka_unit_test(test_postcopy),
		cmocka_unit_test(test_postcopy_recovers),
		cmocka_unit_test(test_postcopy_recovers_encrypted),
		cmocka_unit_test(test_wrong_key),
		cmocka_unit_test(test_cancel_and_again),
		cmocka_unit_test(test_throttle_from_outside),
		cmocka_unit_test(test_throttle_is_released_later),
		cmocka_unit_test(test_throttle_ends_with_ferryd),
		cmocka_unit_test(test_throttle_by_qemu),
		cmocka_unit_test(test_dirty_limit),
		cmocka_unit_test(test_cancel_with_stuck_destination),
		cmocka_unit_test(test_destination_dies),
		cmocka_unit_test(test_source_dies),
		cmocka_unit_test(test_restart_during_move),
		cmocka_unit_test(test_port_taken),
		cmocka_unit_test(test_nobody_listens),
		cmocka_unit_test(test_guest_begins_from_a_state),
		cmocka_unit_test(test_no_write_is_lost),
		cmocka_unit_test(test_no_descriptor_leaks),
	};
	cmocka_set_test_filter(getenv("FERRY_TEST_FILTER"));
	return cmocka_run_group_tests(tests, setup, teardown);
}
