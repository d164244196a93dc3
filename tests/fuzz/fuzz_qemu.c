/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What QEMU says, as all that asks it reads it: the state of a machine (src/vm/qemu_machine.c), its migration
 * (src/qemu/migration.c), what the binary can do (src/qemu/probe.c). The first line of the input is QEMU's greeting;
 * then each command is answered by the next lines, up to the first that is no event. "id" is put into a reply here.
 *
 * Properties: whatever a QEMU says that its guest has taken over, ferryd neither crashes nor hangs, and what it tells
 * others of the machine is whole.
 */
#include "qemu/probe.c" /* for what asks */

#include <poll.h>

#include "base/json.h"
#include "fuzz.h"
#include "vm/qemu_machine.h"

#define SILENCE_MS 100 /* for what no reply fits to */

struct qemu {
	int fd;
	const char *at, *end;
};

static bool send_all(int fd, const char *bytes, size_t length)
{
	while (length > 0) {
		ssize_t n = send(fd, bytes, length, MSG_NOSIGNAL);
		if (n <= 0)
			return false;
		bytes += n;
		length -= (size_t)n;
	}
	return true;
}

/* The lines up to a reply, which gets the command's id. */
static bool answer(struct qemu *qemu, long long id)
{
	const char *part;
	size_t length;
	while (fuzz_next_part(&qemu->at, qemu->end, '\n', &part, &length)) {
		bool event = memmem(part, length, "\"event\"", 7) != NULL;
		bool open = length > 1 && part[0] == '{' && !event;
		cleanup_free char *line = open ? xasprintf("{\"id\": %lld, %.*s\n", id, (int)length - 1, part + 1)
					       : xasprintf("%.*s\n", (int)length, part);
		if (!send_all(qemu->fd, line, strlen(line)))
			return false;
		if (!event)
			return true;
	}
	return false;
}

static void *qemu_main(void *user)
{
	struct qemu *qemu = user;
	const char *part;
	size_t length, used = 0;
	char command[8192];
	bool good = fuzz_next_part(&qemu->at, qemu->end, '\n', &part, &length) && send_all(qemu->fd, part, length) &&
		    send_all(qemu->fd, "\n", 1);
	while (good) {
		struct pollfd pollfd = {.fd = qemu->fd, .events = POLLIN};
		if (poll(&pollfd, 1, SILENCE_MS) <= 0)
			break;
		ssize_t n = recv(qemu->fd, command + used, sizeof(command) - 1 - used, 0);
		if (n <= 0)
			break;
		used += (size_t)n;
		command[used] = '\0';
		if (!strchr(command, '\n'))
			continue;
		const char *id = strstr(command, "\"id\":");
		REQUIRE(id);
		good = answer(qemu, strtoll(id + 5, NULL, 10));
		used = 0;
	}
	shutdown(qemu->fd, SHUT_RDWR);
	return NULL;
}

static void *loop_main(void *user)
{
	REQUIRE(loop_run(user, NULL) == 0);
	return NULL;
}

/* Give back an error if the step failed; the next one fails too, then. */
static void step(int result, struct error **e)
{
	if (result < 0)
		fuzz_check_error(take_ptr(*e));
}

static void ask_machine(struct machine *machine)
{
	struct error *e = NULL;
	cleanup_json json_t *description = NULL;
	cleanup_json json_t *settings = NULL;
	struct machine_state state;
	struct move_sample sample = {0};
	static const char *const capabilities[] = {"events", "pause-before-switchover", NULL};
	step(machine_refresh(machine, &e), &e);
	step(qemu_describe(machine, &description, &e), &e);
	step(qemu_move_sample(machine, &sample, &e), &e);
	free(sample.failure);
	step(qemu_migration_settings_read(machine->qmp, &settings, &e), &e);
	if (settings) {
		step(qemu_migration_set_capabilities(machine->qmp, settings, capabilities, &e), &e);
		step(qemu_migration_settings_restore(machine->qmp, settings, &e), &e);
	}
	step(qemu_move_cancel(machine, 10, &e), &e);
	machine_state(machine, &state);
	REQUIRE(machine_run_name(state.run) && move_state_name(state.move));
	if (description) {
		cleanup_free char *text = json_text(description);
		REQUIRE(text[0] == '{');
	}
}

static void ask_binary(struct qmp *qmp)
{
	struct qemu_probe probe = {0};
	struct error *e = NULL;
	char *features[] = {(char[]){"+aes"}, (char[]){"-svm"}};
	int result = ask_version(qmp, &probe, &e);
	if (result == 0)
		result = ask_machines(qmp, &probe, &e);
	if (result == 0)
		result = ask_cpu_models(qmp, &probe, &e);
	step(result, &e);
	if (result == 0) {
		json_decref(qemu_probe_cpu_missing(&probe, "qemu64", features, 2));
		(void)qemu_probe_machine(&probe, "pc");
		REQUIRE(probe.version);
	}
	free(probe.version);
	json_decref(probe.machines);
	json_decref(probe.cpu_models);
	json_decref(probe.cpu_features);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	int fds[2];
	pthread_t loop_thread, qemu_thread;
	struct driver_host host = {.run_folder = "/nonexistent", .log_folder = "/nonexistent", .accelerator = "tcg"};
	struct definition *definition = NULL;
	cleanup_json json_t *json = json_pack("{ss si}", "name", "guest", "memory_mib", 16);
	REQUIRE(definition_parse(json, &definition, NULL) == 0);
	REQUIRE(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds) == 0);
	REQUIRE(loop_new(&host.loop, NULL) == 0);
	struct qemu qemu = {fds[1], (const char *)data, (const char *)data + size};
	pthread_create(&loop_thread, NULL, loop_main, host.loop);
	pthread_create(&qemu_thread, NULL, qemu_main, &qemu);

	struct machine *machine = machine_new(&host, definition, NULL);
	struct error *e = NULL;
	if (machine_connect(machine, fds[0], 2000, &e) < 0) {
		fuzz_check_error(e);
	} else {
		ask_machine(machine);
		ask_binary(machine->qmp);
	}
	machine_free(machine);
	pthread_join(qemu_thread, NULL);
	close(fds[1]);
	loop_quit(host.loop);
	pthread_join(loop_thread, NULL);
	loop_free(host.loop);
	return 0;
}
