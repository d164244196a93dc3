/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The destination's side of a move: a QEMU that waits for it, whether all has arrived, and taking over; and the guest's ports,
 * which forward nothing before that, and nothing at a source that has handed over.
 *
 * The destination (started -S) takes the images' locks only at `cont`.
 */
#include "vm/qemu_machine.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/xalloc.h"
#include "net/socket.h"
#include "network/port.h"

#define ACTIVATE_NAME "ferry-activate"
#define LAST_WORDS_PATIENCE_US 1000000
#define DEVICES_LOOK_US 2000

/* ---- ports ---- */

int qemu_ports_shut(struct machine *machine, struct error **e)
{
	for (unsigned int i = 0; i < machine->definition->nic_count; i++) {
		char name[IF_NAMESIZE];
		port_name(machine->definition->uuid, i, name);
		if (port_shut(name, e) < 0)
			return -1;
	}
	return 0;
}

static int open_ports(struct machine *machine, struct error **e)
{
	for (unsigned int i = 0; i < machine->definition->nic_count; i++) {
		const struct definition_nic *nic = &machine->definition->nics[i];
		char name[IF_NAMESIZE];
		port_name(machine->definition->uuid, i, name);
		if (port_open(name, nic->bridge, nic->mac, e) < 0)
			return -1;
	}
	return 0;
}

/* Tell the network's switches where the guest is now: at once, then again at growing distances, as one may be lost. */
static void announce(struct machine *machine)
{
	cleanup_error struct error *e = NULL;
	if (machine->definition->nic_count == 0)
		return;
	if (machine_command(machine, "announce-self",
			    json_pack("{s:i, s:i, s:i, s:i}", "initial", 50, "max", 550, "rounds", 5, "step", 100),
			    &e) < 0)
		log_failure(LOG_LEVEL_WARNING, "the guest could not be announced to the network", e);
}

int qemu_ports_open(struct machine *machine, struct error **e)
{
	if (open_ports(machine, e) < 0)
		return -1;
	announce(machine);
	return 0;
}

/* ---- destination ---- */

/* Whether the port is free, before the start of a QEMU is spent on it. QEMU's own bind decides in the end. */
static int check_port_free(const struct move_options *move, struct error **e)
{
	cleanup_error struct error *problem = NULL;
	cleanup_close int fd = -1;
	if (socket_listen_tcp(move->address, move->port, &fd, &problem) == 0)
		return 0;
	if (problem->sys_errno == EADDRINUSE)
		return error_set_errno(e, ERROR_DATA_PORTS, EADDRINUSE, "port %u", move->port);
	return error_move(e, take_ptr(problem));
}

static int listen_for_move(struct machine *machine, const struct move_options *move, struct error **e)
{
	cleanup_error struct error *problem = NULL;
	cleanup_free char *uri = qemu_move_uri(move);
	if (qemu_move_apply_settings(machine, move, true, e) < 0 ||
	    (move->stream_fd > 0 && qemu_give_stream(machine, move->stream_fd, e) < 0))
		return -1;
	if (machine_command(machine, "migrate-incoming", json_pack("{s:s}", "uri", uri), &problem) == 0)
		return 0;
	return qemu_move_cannot_listen(move, take_ptr(problem), e);
}

int qemu_start_incoming(const struct driver_host *host, const struct definition *definition,
			const struct move_options *move, const struct machine_observer *observer, struct machine **ret,
			struct error **e)
{
	struct machine *machine;
	if ((move->stream_fd <= 0 && check_port_free(move, e) < 0) || qemu_machine_start(host, definition, true, observer, &machine, e) < 0)
		return -1;
	if (listen_for_move(machine, move, e) < 0) {
		cleanup_error struct error *end_error = NULL;
		if (qemu_machine_end(machine, &end_error) < 0)
			log_failure(LOG_LEVEL_ERROR, "cannot end a QEMU that could not listen", end_error);
		machine_free(machine);
		return -1;
	}
	*ret = machine;
	return 0;
}

/* In post-copy QEMU says when it begins to load the devices' state, but not when it has: then it is no longer `inmigrate`. */
static int wait_devices_loaded(struct machine *machine, int64_t deadline_us, struct error **e)
{
	struct machine_state state;
	for (;;) {
		cleanup_json json_t *reply = NULL;
		machine_state(machine, &state);
		if (state.run == MACHINE_GONE || (MASK(state.move) & MOVE_ENDED_MASK) != 0)
			return 0;
		if (qmp_execute(machine->qmp, "query-status", NULL, &reply, QMP_TIMEOUT_MS, e) < 0)
			return -1;
		const char *status = json_string_value(json_object_get(reply, "status"));
		if (status && strcmp(status, "inmigrate") != 0)
			return 0;
		if (clock_monotonic_us() > deadline_us)
			return error_set(e, ERROR_TIMEOUT, "the devices' state of VM '%s' has not arrived in time",
					 machine->definition->name);
		(void)machine_wait_change(machine, state.change, clock_monotonic_us() + DEVICES_LOOK_US);
	}
}

int qemu_wait_loaded(struct machine *machine, int64_t deadline_us, struct error **e)
{
	struct machine_state state;
	if (!machine_wait_for(machine, MASK(MACHINE_GONE), MOVE_ENDED_MASK | MOVE_POSTCOPY_MASK, deadline_us, &state))
		return error_set(e, ERROR_TIMEOUT, "not everything of VM '%s' has arrived in time",
				 machine->definition->name);
	if (state.run != MACHINE_GONE && move_in_postcopy(state.move)) {
		if (wait_devices_loaded(machine, deadline_us, e) < 0)
			return -1;
		machine_state(machine, &state);
	}
	if (state.run != MACHINE_GONE && (state.move == MOVE_COMPLETED || move_in_postcopy(state.move)))
		return 0;
	/* QEMU exits when loading fails, and says why just before. */
	(void)machine_wait_for(machine, MASK(MACHINE_GONE), 0, clock_monotonic_us() + LAST_WORDS_PATIENCE_US, &state);
	cleanup_free char *words = machine_last_words(machine);
	return error_set(e, state.run == MACHINE_GONE ? ERROR_QEMU_GONE : ERROR_MIGRATION_QEMU,
			 "the destination's QEMU could not load the VM: %s", words[0] ? words : "it said nothing");
}

/* The nodes that devices stand on. */
static int list_images(struct machine *machine, json_t **ret, struct error **e)
{
	cleanup_json json_t *devices = NULL;
	if (qmp_execute(machine->qmp, "query-block", NULL, &devices, QMP_TIMEOUT_MS, e) < 0)
		return -1;
	json_t *names = json_array();
	size_t i;
	json_t *device;
	json_array_foreach (devices, i, device) {
		json_t *name = json_object_get(json_object_get(device, "inserted"), "node-name");
		if (json_is_string(name))
			json_array_append(names, name);
	}
	*ret = names;
	return 0;
}

/*
 * Make the images this QEMU's without letting the guest run. With late-block-activate `cont` does that; a guest that
 * stays paused would keep inactive images, and QEMU 7.2 aborts when such a guest is moved on (an assertion in
 * bdrv_inactivate_recurse): the VM would be lost. QEMU 10 has a command for it. Before that, an NBD export activates
 * what it exports; so each image is exported, to nobody, for a moment.
 */
static int activate_images(struct machine *machine, struct error **e)
{
	cleanup_error struct error *problem = NULL;
	cleanup_json json_t *images = NULL;
	if (list_images(machine, &images, e) < 0)
		return -1;
	if (json_array_size(images) == 0 ||
	    machine_command(machine, "blockdev-set-active", json_pack("{s:b}", "active", 1), &problem) == 0)
		return 0;

	/* In the run folder, which nobody but us can look into. */
	cleanup_free char *path = machine_path(machine, "activate.sock");
	cleanup_close int fd = -1;
	if (socket_listen_unix(path, 0600, &fd, e) < 0)
		return -1;
	unlink(path);
	if (qmp_execute_with_fd(machine->qmp, "getfd", json_pack("{s:s}", "fdname", ACTIVATE_NAME), fd, NULL,
				QMP_TIMEOUT_MS, e) < 0 ||
	    machine_command(machine, "nbd-server-start",
			    json_pack("{s:{s:s, s:{s:s}}}", "addr", "type", "fd", "data", "str", ACTIVATE_NAME), e) < 0)
		return -1;
	int result = 0;
	for (size_t i = 0; i < json_array_size(images) && result == 0; i++)
		result = machine_command(machine, "block-export-add",
					 json_pack("{s:s, s:o, s:O, s:b}", "type", "nbd", "id",
						   json_sprintf(ACTIVATE_NAME "-%zu", i), "node-name",
						   json_array_get(images, i), "writable", 0),
					 e);
	/* Ends the exports too. */
	if (machine_command(machine, "nbd-server-stop", NULL, result < 0 ? NULL : e) < 0)
		return -1;
	return result;
}

/* From here on `cont` may reach QEMU; only its own refusal, or that it has died without reading it, proves that the guest did not
 * run. */
static int let_run(struct machine *machine, bool *ret_ran, struct error **e)
{
	cleanup_error struct error *problem = NULL;
	bool never_ran = machine_never_ran(machine), heard = true;

	if (machine_mark_never_ran(machine, false, e) < 0)
		return -1;
	if (qmp_execute_heard(machine->qmp, "cont", NULL, NULL, QMP_TIMEOUT_MS, &heard, &problem) == 0)
		return 0;
	*ret_ran = true;
	if (never_ran && (!heard || problem->code == ERROR_QEMU_QMP)) {
		*ret_ran = machine_mark_never_ran(machine, true, NULL) < 0;
		machine_set_run(machine, MACHINE_INCOMING);
	}
	return error_move(e, take_ptr(problem));
}

int qemu_take_over(struct machine *machine, bool paused, bool *ret_ran, struct error **e)
{
	struct machine_state state;
	machine_state(machine, &state);
	*ret_ran = !machine_never_ran(machine);
	if (state.run == MACHINE_RUNNING)
		return 0; /* asked again */
	if (state.run == MACHINE_GONE) {
		cleanup_free char *words = machine_last_words(machine);
		return error_set(e, ERROR_QEMU_GONE, "the destination's QEMU has ended: %s", words);
	}
	if (open_ports(machine, e) < 0)
		return -1;
	if (paused) {
		if (activate_images(machine, e) < 0)
			return error_wrap(e, "taking the images");
		if (machine_mark_never_ran(machine, false, e) < 0)
			return -1;
		machine_set_run(machine, MACHINE_PAUSED);
		return 0;
	}
	if (let_run(machine, ret_ran, e) < 0)
		return -1;
	announce(machine);
	return 0;
}
