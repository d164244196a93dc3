/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a QEMU binary can do; see probe.h.
 *
 * One QEMU without a guest answers query-machines, query-cpu-definitions and the expansion of the model `max` (= every
 * CPU feature that the accelerator gives on this host). The data folders come from `-L help`, since QMP does not tell
 * them.
 *
 * Leaves to others: comparing two hosts (vm/qemu_describe.c).
 */
#include "qemu/probe.h"

#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/un.h>

#include "base/cleanup.h"
#include "base/log.h"
#include "base/process.h"
#include "base/xalloc.h"
#include "qemu/qmp.h"

#define PROBE_TIMEOUT_MS 20000
#define LAST_WORDS_BYTES 1024
#define DATA_FOLDERS_MAX 16

static const char *const usual_binaries[] = {"/usr/bin/qemu-system-x86_64", "/usr/bin/kvm", "/usr/libexec/qemu-kvm",
					     "/usr/local/bin/qemu-system-x86_64", NULL};

enum probe_stage { PROBE_ASKING, PROBE_READY };

struct qemu_probe {
	struct qemu_probe *next;
	enum probe_stage stage;
	/* what it is a probe of */
	char *binary, *accelerator;
	off_t size_bytes;
	struct timespec changed;
	/* what came out */
	char *version;
	bool postcopy;
	unsigned int major;
	json_t *machines;     /* {name or alias: versioned type} */
	json_t *cpu_models;   /* {name: [unavailable feature]} */
	json_t *cpu_features; /* {name: true} of what `max` has here */
	json_t *data_folders; /* [path] */
};

static pthread_mutex_t cache_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t cache_changed = PTHREAD_COND_INITIALIZER;
static struct qemu_probe *cache;

static void probe_free(struct qemu_probe *probe)
{
	free(probe->binary);
	free(probe->accelerator);
	free(probe->version);
	json_decref(probe->machines);
	json_decref(probe->cpu_models);
	json_decref(probe->cpu_features);
	json_decref(probe->data_folders);
	free(probe);
}

/* ---- asking ---- */

static void ignore_event(void *user, const char *name, const json_t *data, int64_t received_us)
{
	(void)user, (void)name, (void)data, (void)received_us;
}

static void ignore_closed(void *user)
{
	(void)user;
}

static int ask_version(struct qmp *qmp, struct qemu_probe *probe, struct error **e)
{
	cleanup_json json_t *reply = NULL;
	if (qmp_execute(qmp, "query-version", NULL, &reply, QMP_TIMEOUT_MS, e) < 0)
		return -1;
	const json_t *numbers = json_object_get(reply, "qemu");
	probe->major = (unsigned int)json_integer_value(json_object_get(numbers, "major"));
	const char *package = json_string_value(json_object_get(reply, "package"));
	probe->version =
		xasprintf("%lld.%lld.%lld%s%s%s", json_integer_value(json_object_get(numbers, "major")),
			  json_integer_value(json_object_get(numbers, "minor")),
			  json_integer_value(json_object_get(numbers, "micro")), package && package[0] ? " (" : "",
			  package ? package : "", package && package[0] ? ")" : "");
	return 0;
}

static int ask_machines(struct qmp *qmp, struct qemu_probe *probe, struct error **e)
{
	cleanup_json json_t *reply = NULL;
	if (qmp_execute(qmp, "query-machines", NULL, &reply, QMP_TIMEOUT_MS, e) < 0)
		return -1;
	probe->machines = json_object();
	size_t i;
	json_t *machine;
	json_array_foreach (reply, i, machine) {
		json_t *name = json_object_get(machine, "name");
		const char *alias = json_string_value(json_object_get(machine, "alias"));
		if (!json_is_string(name))
			continue;
		json_object_set(probe->machines, json_string_value(name), name);
		if (alias)
			json_object_set(probe->machines, alias, name);
	}
	return 0;
}

static int ask_cpu_models(struct qmp *qmp, struct qemu_probe *probe, struct error **e)
{
	cleanup_json json_t *models = NULL, *expansion = NULL;
	if (qmp_execute(qmp, "query-cpu-definitions", NULL, &models, QMP_TIMEOUT_MS, e) < 0 ||
	    qmp_execute(qmp, "query-cpu-model-expansion",
			json_pack("{s:s, s:{s:s}}", "type", "full", "model", "name", "max"), &expansion, QMP_TIMEOUT_MS,
			e) < 0)
		return -1;

	probe->cpu_models = json_object();
	size_t i;
	json_t *model;
	json_array_foreach (models, i, model) {
		const char *name = json_string_value(json_object_get(model, "name"));
		json_t *unavailable = json_object_get(model, "unavailable-features");
		/* Without that list QEMU does not know either; what is missing then shows at the start (enforce). */
		if (name)
			json_object_set_new(probe->cpu_models, name,
					    json_is_array(unavailable) ? json_incref(unavailable) : json_array());
	}

	probe->cpu_features = json_object();
	const char *name;
	json_t *value;
	json_object_foreach (json_object_get(json_object_get(expansion, "model"), "props"), name, value) {
		if (json_is_boolean(value))
			json_object_set(probe->cpu_features, name, value);
	}
	return 0;
}

/* One folder a line. */
static int ask_data_folders(struct qemu_probe *probe, struct error **e)
{
	const char *const argv[] = {probe->binary, "-L", "help", NULL};
	cleanup_free char *output = NULL;
	int status = process_run(argv, PROBE_TIMEOUT_MS, 65536, &output, e);
	if (status < 0)
		return -1;
	probe->data_folders = json_array();
	char *position = NULL;
	for (char *line = strtok_r(output, "\n", &position); line; line = strtok_r(NULL, "\n", &position)) {
		if (line[0] == '/' && json_array_size(probe->data_folders) < DATA_FOLDERS_MAX)
			json_array_append_new(probe->data_folders, json_string(line));
	}
	return 0;
}

/* QEMU looks at the host itself when one that waits for a migration is told to be ready for post-copy. What it says of it is
 * in its log; why it cannot is nearly always that its user may not use userfaultfd. */
static void ask_postcopy(struct qmp *qmp, struct qemu_probe *probe)
{
	cleanup_error struct error *e = NULL;
	probe->postcopy = qmp_execute(qmp, "migrate-set-capabilities",
				      json_pack("{s:[{s:s, s:b}]}", "capabilities", "capability", "postcopy-ram", "state", 1), NULL,
				      QMP_TIMEOUT_MS, &e) == 0;
	if (!probe->postcopy)
		log_debug("no post-copy: %s", e->message);
}

static int ask_qmp(struct qemu_probe *probe, struct loop *loop, int fd, struct error **e)
{
	const struct qmp_callbacks callbacks = {.event = ignore_event, .closed = ignore_closed};
	struct qmp *qmp = NULL;
	if (qmp_new(loop, fd, &callbacks, PROBE_TIMEOUT_MS, &qmp, e) < 0)
		return -1;
	int result = ask_version(qmp, probe, e);
	if (result == 0)
		result = ask_machines(qmp, probe, e);
	if (result == 0)
		result = ask_cpu_models(qmp, probe, e);
	if (result == 0)
		ask_postcopy(qmp, probe);
	qmp_free(qmp);
	return result;
}

static int ask(struct qemu_probe *probe, const struct qemu_probe_options *options, struct error **e)
{
	/* QEMU takes a listening socket; one without a name in the file system needs no clean-up. */
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	socklen_t address_size = sizeof(address);
	cleanup_close int listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	cleanup_close int connection = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	cleanup_close int output = memfd_create("qemu-probe", MFD_CLOEXEC);
	/* bind() with the family alone makes the kernel choose an abstract name. */
	if (listener < 0 || connection < 0 || output < 0 ||
	    bind(listener, (struct sockaddr *)&address, sizeof(sa_family_t)) < 0 || listen(listener, 1) < 0 ||
	    getsockname(listener, (struct sockaddr *)&address, &address_size) < 0 ||
	    connect(connection, (struct sockaddr *)&address, address_size) < 0)
		return error_set_errno(e, ERROR_SYSTEM, errno, "cannot make a socket for QEMU's monitor");

	const char *const argv[] = {probe->binary,
				    "-nodefaults",
				    "-no-user-config",
				    "-display",
				    "none",
				    "-machine",
				    "none",
				    "-accel",
				    probe->accelerator,
				    "-S",
				    "-incoming",
				    "defer",
				    "-chardev",
				    "socket,id=qmp,fd=3,server=on,wait=off",
				    "-mon",
				    "chardev=qmp,mode=control",
				    NULL};
	struct process_fd fds[] = {{.fd = listener, .child_fd = 3}};
	struct process_options process = {
		.argv = argv,
		.uid = options->uid,
		.gid = options->gid,
		.extra_gid = options->extra_gid,
		.change_user = options->change_user,
		.fds = fds,
		.fd_count = 1,
		.output_fd = output,
		.no_new_privileges = true,
	};
	struct process_id id;
	cleanup_close int pidfd = -1;
	if (process_start(&process, &id, &pidfd, e) < 0)
		return -1;
	/* The child must be the only holder, so that its death ends the connection. */
	close(take_fd(listener));
	int result = ask_qmp(probe, options->loop, take_fd(connection), e);
	if (process_signal(pidfd, SIGKILL, NULL) < 0)
		log_debug("the probed QEMU has ended by itself");
	(void)process_wait(pidfd, PROBE_TIMEOUT_MS);
	if (result < 0) {
		char words[LAST_WORDS_BYTES + 1];
		ssize_t length = pread(output, words, LAST_WORDS_BYTES, 0);
		while (length > 0 && words[length - 1] == '\n')
			length--;
		words[length > 0 ? length : 0] = 0;
		if (words[0])
			return error_set(e, ERROR_QEMU_START, "%s: %s", probe->binary, words);
		return error_wrap(e, "%s", probe->binary);
	}
	return ask_data_folders(probe, e);
}

/* ---- the cache ---- */

static int find_binary(const char *wanted, const char **ret, struct stat *ret_stat, struct error **e)
{
	if (wanted) {
		if (stat(wanted, ret_stat) < 0)
			return error_set_errno(e, ERROR_QEMU_MISSING, errno, "%s", wanted);
		*ret = wanted;
		return 0;
	}
	for (size_t i = 0; usual_binaries[i]; i++) {
		if (stat(usual_binaries[i], ret_stat) == 0 && access(usual_binaries[i], X_OK) == 0) {
			*ret = usual_binaries[i];
			return 0;
		}
	}
	return error_set(e, ERROR_QEMU_MISSING,
			 "there is no %s, nor QEMU at another usual place; install qemu-system-x86", usual_binaries[0]);
}

/* With the lock held. */
static struct qemu_probe *cache_find(const char *binary, const char *accelerator, const struct stat *st)
{
	for (struct qemu_probe *probe = cache; probe; probe = probe->next) {
		if (strcmp(probe->binary, binary) == 0 && strcmp(probe->accelerator, accelerator) == 0 &&
		    probe->size_bytes == st->st_size && probe->changed.tv_sec == st->st_mtim.tv_sec &&
		    probe->changed.tv_nsec == st->st_mtim.tv_nsec)
			return probe;
	}
	return NULL;
}

static void cache_remove(struct qemu_probe *probe)
{
	for (struct qemu_probe **link = &cache; *link; link = &(*link)->next) {
		if (*link == probe) {
			*link = probe->next;
			return;
		}
	}
}

int qemu_probe_get(const struct qemu_probe_options *options, const struct qemu_probe **ret, struct error **e)
{
	const char *binary = NULL;
	struct stat st;
	struct qemu_probe *probe;
	if (find_binary(options->binary, &binary, &st, e) < 0)
		return -1;

	pthread_mutex_lock(&cache_lock);
	while ((probe = cache_find(binary, options->accelerator, &st)) && probe->stage == PROBE_ASKING)
		pthread_cond_wait(&cache_changed, &cache_lock);
	if (!probe) {
		probe = xcalloc(1, sizeof(*probe));
		*probe = (struct qemu_probe){
			.next = cache,
			.stage = PROBE_ASKING,
			.binary = xstrdup(binary),
			.accelerator = xstrdup(options->accelerator),
			.size_bytes = st.st_size,
			.changed = st.st_mtim,
		};
		cache = probe;
		pthread_mutex_unlock(&cache_lock);
		int result = ask(probe, options, e);
		pthread_mutex_lock(&cache_lock);
		if (result < 0) {
			/* Whoever waited asks again for himself: what failed may have been a matter of the moment. */
			cache_remove(probe);
			probe_free(probe);
			probe = NULL;
		} else {
			probe->stage = PROBE_READY;
			log_info("probed QEMU binary=%s version='%s' accelerator=%s", binary, probe->version,
				 probe->accelerator);
		}
		pthread_cond_broadcast(&cache_changed);
	}
	pthread_mutex_unlock(&cache_lock);
	if (!probe)
		return -1;
	*ret = probe;
	return 0;
}

/* ---- answers ---- */

const char *qemu_probe_binary(const struct qemu_probe *probe)
{
	return probe->binary;
}

const char *qemu_probe_version(const struct qemu_probe *probe)
{
	return probe->version;
}

bool qemu_probe_postcopy(const struct qemu_probe *probe)
{
	return probe->postcopy;
}

unsigned int qemu_probe_major(const struct qemu_probe *probe)
{
	return probe->major;
}

const char *qemu_probe_machine(const struct qemu_probe *probe, const char *name)
{
	return json_string_value(json_object_get(probe->machines, name));
}

bool qemu_probe_cpu_known(const struct qemu_probe *probe, const char *model)
{
	return json_object_get(probe->cpu_models, model) != NULL;
}

/* QEMU has several spellings of one name: sse4.1, sse4-1, sse4_1. */
static bool feature_equal(const char *a, const char *b)
{
	for (; *a && *b; a++, b++) {
		char x = *a == '_' || *a == '.' ? '-' : *a;
		char y = *b == '_' || *b == '.' ? '-' : *b;
		if (x != y)
			return false;
	}
	return *a == *b;
}

json_t *qemu_probe_cpu_missing(const struct qemu_probe *probe, const char *model, char *const *features,
			       size_t feature_count)
{
	json_t *missing = json_array();
	size_t i;
	json_t *unavailable;
	json_array_foreach (json_object_get(probe->cpu_models, model), i, unavailable) {
		const char *name = json_string_value(unavailable);
		bool removed = false;
		for (size_t j = 0; j < feature_count && name; j++) {
			if (feature_equal(features[j] + 1, name))
				removed = features[j][0] == '-'; /* the last one counts */
		}
		if (name && !removed)
			json_array_append(missing, unavailable);
	}
	for (size_t j = 0; j < feature_count; j++) {
		const char *name = features[j] + 1;
		json_t *available = json_object_get(probe->cpu_features, name);
		bool listed = false;
		json_array_foreach (missing, i, unavailable)
			listed = listed || feature_equal(json_string_value(unavailable), name);
		if (features[j][0] == '+' && !listed && !json_is_true(available))
			json_array_append_new(missing, json_string(name));
	}
	return missing;
}

int64_t qemu_probe_firmware_size(const struct qemu_probe *probe, const char *name)
{
	size_t i;
	json_t *folder;
	struct stat st;
	/* A bare name only: it may come from another host. */
	if (strchr(name, '/') || name[0] == '.')
		return -1;
	json_array_foreach (probe->data_folders, i, folder) {
		cleanup_free char *path = xasprintf("%s/%s", json_string_value(folder), name);
		if (stat(path, &st) == 0 && S_ISREG(st.st_mode))
			return st.st_size;
	}
	return -1;
}
