/* SPDX-License-Identifier: Apache-2.0 */
/*
 * From a definition to a QEMU that answers; finding one again after a restart of ferryd; ending one.
 *
 * Everything that QEMU needs and may not make itself is made here and handed over as descriptors: the monitor's and the
 * console's listening sockets, the console's log, the taps. The connection to the monitor is made before QEMU exists
 * (it waits in the socket's queue), so the greeting comes the moment QEMU is ready and nothing is polled. Our copies of
 * the listening sockets are closed once the process runs: its death then ends the connection instead of leaving it
 * hanging.
 *
 * Order matters for a ferryd that dies in between: actual.json is complete before the process is started, the pid file
 * is written by the child before it becomes QEMU.
 */
#include "vm/qemu_machine.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/file.h"
#include "base/json.h"
#include "base/log.h"
#include "base/xalloc.h"
#include "net/socket.h"
#include "network/port.h"
#include "vm/disk_access.h"
#include "vm/qemu_arguments.h"
#include "vm/scope.h"

#define GREETING_TIMEOUT_MS 30000
#define ATTACH_TIMEOUT_MS 5000
#define END_TIMEOUT_MS 30000
#define SCOPE_TIMEOUT_MS 1000
#define RECORD_BYTES_MAX (1024 * 1024)
#define LOG_BYTES_MAX (4 * 1024 * 1024)

/* What is passed to the child; all -1 at first. */
struct start_fds {
	int qmp, console, console_log, output;
	int nics[DEFINITION_NICS_MAX];
	int connection; /* ours, to the monitor */
};

static void start_fds_init(struct start_fds *fds)
{
	fds->qmp = fds->console = fds->console_log = fds->output = fds->connection = -1;
	for (size_t i = 0; i < DEFINITION_NICS_MAX; i++)
		fds->nics[i] = -1;
}

static void start_fds_close(struct start_fds *fds)
{
	int *const all[] = {&fds->qmp, &fds->console, &fds->console_log, &fds->output, &fds->connection};
	for (size_t i = 0; i < sizeof(all) / sizeof(*all); i++) {
		if (*all[i] >= 0)
			close(take_fd(*all[i]));
	}
	for (size_t i = 0; i < DEFINITION_NICS_MAX; i++) {
		if (fds->nics[i] >= 0)
			close(take_fd(fds->nics[i]));
	}
}

/* The group that may open /dev/kvm, where not everybody may. */
static gid_t accelerator_group(const struct driver_host *host)
{
	struct stat st;
	if (strcmp(host->accelerator, "kvm") != 0 || stat("/dev/kvm", &st) < 0 || (st.st_mode & S_IWOTH) ||
	    !(st.st_mode & S_IWGRP))
		return (gid_t)-1;
	return st.st_gid;
}

int qemu_machine_probe(const struct driver_host *host, const struct qemu_probe **ret, struct error **e)
{
	struct qemu_probe_options options = {
		.loop = host->loop,
		.binary = host->binary,
		.accelerator = host->accelerator,
		.uid = host->uid,
		.gid = host->gid,
		.extra_gid = accelerator_group(host),
		.change_user = host->uid != geteuid(),
	};
	return qemu_probe_get(&options, ret, e);
}

/* ---- the pieces ---- */

/* Whether the process of an earlier start still lives; if so *ret_pidfd is its. */
static bool process_of_folder(const char *folder, struct process_id *ret_id, int *ret_pidfd)
{
	cleanup_free char *path = xasprintf("%s/pid", folder);
	return process_read_pid_file(path, ret_id, NULL) == 0 && process_open(ret_id, ret_pidfd, NULL) == 0;
}

static int make_run_folder(struct machine *machine, struct error **e)
{
	struct process_id id;
	cleanup_close int pidfd = -1;
	if (process_of_folder(machine->folder, &id, &pidfd))
		return error_set(e, ERROR_VM_RUNNING, "QEMU of VM '%s' runs already, pid %d", machine->definition->name,
				 id.pid);
	if (file_remove_tree(machine->folder, e) < 0 || file_make_folders(machine->host->run_folder, 0711, e) < 0 ||
	    file_make_folders(machine->host->log_folder, 0700, e) < 0)
		return -1;
	/* 0711 whatever the umask: QEMU's user passes through, to move/, and cannot list. */
	if (mkdir(machine->folder, 0711) < 0 || chmod(machine->folder, 0711) < 0)
		return error_set_errno(e, ERROR_SYSTEM, errno, "cannot make '%s'", machine->folder);
	return 0;
}

static int write_record(struct machine *machine, const struct qemu_probe *probe, struct error **e)
{
	machine->record =
		json_pack("{s:o, s:s, s:s, s:s, s:o, s:I}", "definition", definition_to_json(machine->definition),
			  "binary", qemu_probe_binary(probe), "version", qemu_probe_version(probe), "accelerator",
			  machine->host->accelerator, "firmware", qemu_firmware_list(machine->definition, probe),
			  "memory_bytes", (json_int_t)qemu_memory_bytes(machine->definition, machine->host, probe));
	cleanup_free char *path = machine_path(machine, "actual.json");
	cleanup_free char *text = json_text(machine->record);
	/* No fsync: the folder is gone after a crash of the host anyway, and so is QEMU. */
	cleanup_close int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	size_t length = strlen(text);
	if (fd < 0 || write(fd, text, length) != (ssize_t)length)
		return error_set_errno(e, ERROR_SYSTEM, errno, "cannot write '%s'", path);
	return 0;
}

/* A guest writes into its console's log as it likes: begin a new one where it has grown, and keep one old one. */
static int open_log(const char *path, int *ret_fd, struct error **e)
{
	struct stat st;
	cleanup_free char *old = xasprintf("%s.1", path);
	if (stat(path, &st) == 0 && st.st_size > LOG_BYTES_MAX && rename(path, old) < 0)
		log_warning("cannot rename '%s': %s", path, strerror(errno));
	int fd = open(path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
	if (fd < 0)
		return error_set_errno(e, ERROR_SYSTEM, errno, "cannot open '%s'", path);
	*ret_fd = fd;
	return 0;
}

static int open_sockets_and_logs(struct machine *machine, struct start_fds *fds, struct error **e)
{
	cleanup_free char *qmp_path = machine_path(machine, "qmp.sock");
	cleanup_free char *console_path = machine_path(machine, "console.sock");
	cleanup_free char *console_log =
		xasprintf("%s/%s.console.log", machine->host->log_folder, machine->definition->name);
	if (open_log(machine->log_path, &fds->output, e) < 0 || socket_listen_unix(qmp_path, 0600, &fds->qmp, e) < 0 ||
	    socket_connect_unix(qmp_path, &fds->connection, e) < 0)
		return -1;
	if (machine->definition->serial && (open_log(console_log, &fds->console_log, e) < 0 ||
					    socket_listen_unix(console_path, 0600, &fds->console, e) < 0))
		return -1;
	return 0;
}

static int make_ports(struct machine *machine, bool open, struct start_fds *fds, struct error **e)
{
	const struct definition *definition = machine->definition;
	for (unsigned int i = 0; i < definition->nic_count; i++) {
		char name[IF_NAMESIZE];
		port_name(definition->uuid, i, name);
		if (port_create(name, definition->nics[i].bridge, open, &fds->nics[i], e) < 0)
			return error_wrap(e, "NIC %u of VM '%s'", i, definition->name);
	}
	return 0;
}

static void log_command_line(int fd, char *const *arguments)
{
	char when[32];
	time_t now = time(NULL);
	struct tm tm;
	cleanup_free char *text = qemu_arguments_text(arguments);
	strftime(when, sizeof(when), "%Y-%m-%dT%H:%M:%SZ", gmtime_r(&now, &tm));
	cleanup_free char *line = xasprintf("%s " QEMU_LOG_MARK "%s\n", when, text);
	if (write(fd, line, strlen(line)) < 0)
		log_warning("cannot write into QEMU's log: %s", strerror(errno));
}

static int start_process(struct machine *machine, char *const *arguments, const struct start_fds *fds, struct error **e)
{
	const struct driver_host *host = machine->host;
	struct process_fd child_fds[3 + DEFINITION_NICS_MAX];
	size_t count = 0;
	child_fds[count++] = (struct process_fd){.fd = fds->qmp, .child_fd = QEMU_FD_QMP};
	if (machine->definition->serial) {
		child_fds[count++] = (struct process_fd){.fd = fds->console, .child_fd = QEMU_FD_CONSOLE};
		child_fds[count++] = (struct process_fd){.fd = fds->console_log, .child_fd = QEMU_FD_CONSOLE_LOG};
	}
	for (unsigned int i = 0; i < machine->definition->nic_count; i++)
		child_fds[count++] = (struct process_fd){.fd = fds->nics[i], .child_fd = QEMU_FD_NIC + (int)i};

	cleanup_free char *pid_path = machine_path(machine, "pid");
	struct process_options options = {
		.argv = (const char *const *)arguments,
		.uid = host->uid,
		.gid = host->gid,
		.extra_gid = accelerator_group(host),
		.change_user = host->uid != geteuid(),
		.fds = child_fds,
		.fd_count = count,
		.output_fd = fds->output,
		.pid_path = pid_path,
		.no_new_privileges = true,
	};
	return process_start(&options, &machine->process, &machine->pidfd, e);
}

static void register_scope(struct machine *machine)
{
	cleanup_error struct error *e = NULL;
	if (scope_register(machine->definition->name, machine->process.pid, SCOPE_TIMEOUT_MS, &e) < 0)
		log_failure(LOG_LEVEL_WARNING, "the VM runs within ferryd's own service", e);
}

/* QEMU's own words say more than "the connection was closed". */
static int start_failed(struct machine *machine, struct error **e)
{
	/* It is on its way out; let it finish speaking. */
	(void)process_wait(machine->pidfd, 1000);
	cleanup_free char *words = machine_last_words(machine);
	if (words[0])
		return error_set(e, ERROR_QEMU_START, "QEMU did not start: %s", words);
	return error_wrap(e, "QEMU did not start");
}

/* ---- start ---- */

static int start_steps(struct machine *machine, bool incoming, const struct qemu_probe *probe, struct start_fds *fds,
		       struct error **e)
{
	struct qemu_arguments_host arguments_host = {
		.binary = qemu_probe_binary(probe),
		.machine_type = machine->definition->machine,
		.accelerator = machine->host->accelerator,
		.dirty_ring = machine->host->dirty_ring,
		.qemu_major = qemu_probe_major(probe),
		.incoming = incoming,
	};
	if (disk_access_prepare(machine->definition, machine->host->uid, machine->host->gid,
				arguments_host.disk_is_block_device, e) < 0 ||
	    open_sockets_and_logs(machine, fds, e) < 0 || write_record(machine, probe, e) < 0 ||
	    (incoming && machine_mark_never_ran(machine, true, e) < 0) || make_ports(machine, !incoming, fds, e) < 0)
		return -1;

	char **arguments = qemu_arguments_build(machine->definition, &arguments_host);
	log_command_line(fds->output, arguments);
	int started = start_process(machine, arguments, fds, e);
	qemu_arguments_free(arguments);
	if (started < 0)
		return error_wrap(e, "QEMU");
	int connection = take_fd(fds->connection);
	for (; machine->nic_count < machine->definition->nic_count; machine->nic_count++)
		machine->nic_fds[machine->nic_count] = take_fd(fds->nics[machine->nic_count]);
	start_fds_close(fds);
	/* While QEMU starts. */
	register_scope(machine);
	machine_watch_process(machine);
	if (machine_connect(machine, connection, GREETING_TIMEOUT_MS, e) < 0)
		return start_failed(machine, e);

	/* For good: state is followed by events, from whichever ferryd. */
	return machine_command(machine, "migrate-set-capabilities",
			       json_pack("{s:[{s:s, s:b}]}", "capabilities", "capability", "events", "state", 1), e);
}

/* The definition with what its names stand for on this host. */
static int resolve_definition(const struct definition *definition, const struct qemu_probe *probe,
			      struct definition **ret, struct error **e)
{
	const char *machine_type = qemu_probe_machine(probe, definition->machine);
	if (!machine_type)
		return error_set(e, ERROR_QEMU_START, "QEMU %s has no machine type '%s'", qemu_probe_version(probe),
				 definition->machine);
	cleanup_json json_t *json = definition_to_json(definition);
	json_object_set_new(json, "machine", json_string(machine_type));
	return definition_parse(json, ret, e);
}

int qemu_machine_start(const struct driver_host *host, const struct definition *definition, bool incoming,
		       const struct machine_observer *observer, struct machine **ret, struct error **e)
{
	const struct qemu_probe *probe;
	struct definition *resolved;
	if (qemu_machine_probe(host, &probe, e) < 0 || resolve_definition(definition, probe, &resolved, e) < 0)
		return -1;

	struct machine *machine = machine_new(host, resolved, observer);
	if (incoming)
		machine->state.run = MACHINE_INCOMING;
	if (make_run_folder(machine, e) < 0) {
		machine_free(machine); /* the folder may be another's */
		return -1;
	}
	struct start_fds fds;
	start_fds_init(&fds);
	int result = start_steps(machine, incoming, probe, &fds, e);
	start_fds_close(&fds);
	if (result < 0) {
		cleanup_error struct error *end_error = NULL;
		if (qemu_machine_end(machine, &end_error) < 0)
			log_failure(LOG_LEVEL_ERROR, "cannot tidy up after a QEMU that did not start", end_error);
		machine_free(machine);
		return -1;
	}
	*ret = machine;
	return 0;
}

/* ---- attach ---- */

static int read_record(const char *folder, json_t **ret_record, struct definition **ret_definition, struct error **e)
{
	cleanup_free char *path = xasprintf("%s/actual.json", folder);
	cleanup_json json_t *record = NULL;
	json_t *definition = NULL;
	if (json_parse_file(path, RECORD_BYTES_MAX, &record, e) < 0)
		return -1;
	if (json_get_object(record, "definition", &definition, e) < 0 ||
	    definition_parse(definition, ret_definition, e) < 0)
		return error_wrap(e, "%s", path);
	*ret_record = take_ptr(record);
	return 0;
}

static void read_marks(struct machine *machine)
{
	cleanup_free char *never_ran = machine_path(machine, "never-ran");
	cleanup_free char *settings = machine_path(machine, "settings.json");
	machine->never_ran = machine->arriving = access(never_ran, F_OK) == 0;
	if (access(settings, F_OK) == 0 && json_parse_file(settings, RECORD_BYTES_MAX, &machine->settings, NULL) < 0)
		log_warning("'%s' cannot be read; QEMU's migration settings stay as they are", settings);
}

/* It did not answer: because it was ending, which is as good as gone, or for another reason. */
static int attach_failed(struct machine *machine, struct error *problem, struct error **e)
{
	pid_t pid = machine->process.pid;
	bool gone = process_wait(machine->pidfd, problem->code == ERROR_QEMU_GONE ? ATTACH_TIMEOUT_MS : 0);
	int result = gone ? file_remove_tree(machine->folder, e) : 0;
	machine_free(machine);
	if (gone)
		error_free(problem);
	if (result < 0)
		return -1;
	if (gone)
		return error_set(e, ERROR_QEMU_GONE, "QEMU with pid %d has just ended", pid);
	/* The code would say that nothing runs any more. */
	if (problem->code == ERROR_QEMU_GONE)
		problem->code = ERROR_TIMEOUT;
	error_move(e, problem);
	return error_wrap(e, "QEMU with pid %d runs, but", pid);
}

int qemu_machine_attach(const struct driver_host *host, const char *uuid, const struct machine_observer *observer,
			struct machine **ret, struct error **e)
{
	cleanup_free char *folder = xasprintf("%s/%s", host->run_folder, uuid);
	struct process_id id;
	cleanup_close int pidfd = -1;
	if (!process_of_folder(folder, &id, &pidfd)) {
		if (file_remove_tree(folder, e) < 0)
			return -1;
		return error_set(e, ERROR_QEMU_GONE, "no QEMU of VM %s runs here", uuid);
	}

	json_t *record = NULL;
	struct definition *definition = NULL;
	if (read_record(folder, &record, &definition, e) < 0)
		return error_wrap(e, "QEMU with pid %d runs, but", id.pid);
	struct machine *machine = machine_new(host, definition, observer);
	machine->record = record;
	machine->process = id;
	machine->pidfd = take_fd(pidfd);
	read_marks(machine);

	cleanup_free char *qmp_path = machine_path(machine, "qmp.sock");
	cleanup_error struct error *problem = NULL;
	int connection = -1;
	machine_watch_process(machine);
	if (socket_connect_unix(qmp_path, &connection, &problem) < 0 ||
	    machine_connect(machine, connection, ATTACH_TIMEOUT_MS, &problem) < 0 ||
	    machine_refresh(machine, &problem) < 0)
		return attach_failed(machine, take_ptr(problem), e);
	*ret = machine;
	return 0;
}

/* ---- end ---- */

int qemu_machine_end(struct machine *machine, struct error **e)
{
	if (machine->pidfd >= 0) {
		/* An error means that it has gone already. */
		if (process_signal(machine->pidfd, SIGKILL, NULL) < 0)
			log_debug("QEMU has ended already vm=%s", machine->definition->name);
		/* Its descriptors are closed before the kernel says that it has ended. */
		if (!process_wait(machine->pidfd, END_TIMEOUT_MS))
			return error_set(e, ERROR_TIMEOUT, "QEMU of VM '%s', pid %d, does not end (a disk that hangs?)",
					 machine->definition->name, machine->process.pid);
		if (machine->pidfd_source) {
			struct machine_state state;
			(void)machine_wait_for(machine, MASK(MACHINE_GONE), 0, clock_monotonic_us() + 1000000, &state);
		}
	}
	machine_release_ports(machine);
	return file_remove_tree(machine->folder, e);
}
