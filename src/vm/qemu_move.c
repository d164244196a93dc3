/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Both sides of a QEMU-to-QEMU migration.
 *
 * Theory of operation. Each side's capabilities and parameters are read first and kept (settings.json), set for the
 * move, and put back after it. Both sides get `return-path`, without which a source calls anything that swallowed its
 * bytes a success; the source stops at pre-switchover until move_continue(); the destination (started -S) takes the
 * images' locks only at `cont`.
 *
 * The connection of a move with one channel is made here and passed to the source's QEMU: a refused connection is then
 * an error at once and in plain words, a peer that has vanished is noticed (QEMU has no time-outs of its own), and what
 * waits unsent in the socket is bounded, since that backlog is sent while the guest is paused (measured at 1 Gbit/s: 12
 * ms of pause instead of 30). With several channels (multifd) QEMU 7.2 insists on connecting itself.
 *
 * TLS is QEMU's own, with a key made for this one move. It goes by a file, which is all that QEMU reads keys from: on
 * the source it is read when the object is made, on the destination at each handshake, so it goes when the stream flows
 * (vm/qemu_machine.c) or the move ends. AES-128-GCM under TLS 1.3: 1.6 times as fast as what is negotiated otherwise.
 */
#include "vm/qemu_machine.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/tcp.h>
#include <netinet/in.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/file.h"
#include "base/json.h"
#include "base/log.h"
#include "base/xalloc.h"
#include "net/socket.h"
#include "net/tls.h"
#include "network/port.h"

#define KEY_OBJECT "ferry-move"
#define ACTIVATE_NAME "ferry-activate"
#define KEY_USER "ferry"
#define KEY_PRIORITY "NORMAL:-CIPHER-ALL:+AES-128-GCM:-VERS-ALL:+VERS-TLS1.3"
#define KEY_HEX_LENGTH 64

#define CONNECT_TIMEOUT_MS 10000
#define UNSENT_BYTES_MAX (128 * 1024)
#define PEER_TIMEOUT_MS 30000
/* How long a cancelled migration may take before its sockets are shut: QEMU's thread may sit in a write to a peer that
 * does not read. */
#define CANCEL_PATIENCE_US 300000
#define CANCEL_ANSWER_MS 1000
#define LAST_WORDS_PATIENCE_US 1000000

/* ---- settings and key, both sides ---- */

static int write_key_file(struct machine *machine, const char *key_hex, bool incoming, struct error **e)
{
	const struct driver_host *host = machine->host;
	cleanup_free char *folder = machine_path(machine, "move");
	cleanup_free char *path = machine_path(machine, "move/keys.psk");
	if (strlen(key_hex) != KEY_HEX_LENGTH || strspn(key_hex, "0123456789abcdefABCDEF") != KEY_HEX_LENGTH)
		return error_set(e, ERROR_INVALID_ARGUMENT, "the key of a move must have %d hex digits",
				 KEY_HEX_LENGTH);
	if (file_remove_tree(folder, e) < 0)
		return -1;
	if (mkdir(folder, 0700) < 0)
		return error_set_errno(e, ERROR_SYSTEM, errno, "cannot make '%s'", folder);
	cleanup_close int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600);
	if (fd < 0 || dprintf(fd, KEY_USER ":%s\n", key_hex) != KEY_HEX_LENGTH + (int)sizeof(KEY_USER ":"))
		return error_set_errno(e, ERROR_SYSTEM, errno, "cannot write '%s'", path);
	/* Without such a file a server makes up its own parameters, for seconds, although TLS 1.3 with this key has no use for
	 * them. */
	cleanup_free char *parameters = NULL;
	cleanup_free char *parameters_path = machine_path(machine, "move/dh-params.pem");
	if (incoming && (tls_dh_parameters(&parameters, e) < 0 ||
			 file_write_atomic(parameters_path, parameters, strlen(parameters), 0644, e) < 0))
		return -1;
	/* The folder last: from then on it is QEMU's, and we open nothing in it any more. */
	if (host->uid != geteuid() && (fchown(fd, host->uid, host->gid) < 0 || chown(folder, host->uid, host->gid) < 0))
		return error_set_errno(e, ERROR_SYSTEM, errno, "cannot give '%s' to QEMU's user", folder);
	return 0;
}

static void remove_key_file(struct machine *machine)
{
	cleanup_error struct error *e = NULL;
	cleanup_free char *folder = machine_path(machine, "move");
	if (file_remove_tree(folder, &e) < 0)
		log_failure(LOG_LEVEL_WARNING, "cannot remove the key of a move", e);
}

static int make_key_object(struct machine *machine, const char *key_hex, bool incoming, struct error **e)
{
	cleanup_free char *folder = machine_path(machine, "move");
	if (write_key_file(machine, key_hex, incoming, e) < 0)
		return -1;
	/* `s*`: a server has no user of its own. */
	json_t *object = json_pack("{s:s, s:s, s:s, s:s, s:s, s:s*}", "qom-type", "tls-creds-psk", "id", KEY_OBJECT,
				   "endpoint", incoming ? "server" : "client", "dir", folder, "priority", KEY_PRIORITY,
				   "username", incoming ? NULL : KEY_USER);
	if (machine_command(machine, "object-add", object, e) < 0)
		return error_wrap(e, "the key of the move");
	machine->has_move_key = true;
	if (!incoming)
		remove_key_file(machine);
	return 0;
}

/* What is put back is on file before anything is changed. */
static int keep_settings(struct machine *machine, struct error **e)
{
	cleanup_json json_t *settings = NULL;
	cleanup_free char *path = machine_path(machine, "settings.json");
	if (machine->settings)
		return error_set(e, ERROR_VM_BUSY, "an earlier move of VM '%s' has not been tidied up",
				 machine->definition->name);
	if (qemu_migration_settings_read(machine->qmp, &settings, e) < 0)
		return -1;
	cleanup_free char *text = json_text(settings);
	size_t length = strlen(text);
	cleanup_close int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600);
	if (fd < 0 || write(fd, text, length) != (ssize_t)length)
		return error_set_errno(e, ERROR_SYSTEM, errno, "cannot write '%s'", path);
	machine->settings = take_ptr(settings);
	return 0;
}

static int apply_settings(struct machine *machine, const struct move_options *move, bool incoming, struct error **e)
{
	const char *on[8] = {"events", "return-path", incoming ? "late-block-activate" : "pause-before-switchover"};
	size_t count = 3;
	bool multifd = move->channels > 1;
	if (multifd)
		on[count++] = "multifd";

	if (keep_settings(machine, e) < 0 ||
	    qemu_migration_set_capabilities(machine->qmp, machine->settings, on, e) < 0 ||
	    (move->tls_key_hex && make_key_object(machine, move->tls_key_hex, incoming, e) < 0))
		return -1;
	json_t *parameters = json_pack("{s:I, s:I, s:s, s:s}", "max-bandwidth", (json_int_t)move->bandwidth_bytes_per_s,
				       "downtime-limit", (json_int_t)move->downtime_limit_ms, "tls-creds",
				       move->tls_key_hex ? KEY_OBJECT : "", "tls-hostname",
				       /* Not looked at with such a key, but wanted with a passed connection. */
				       move->tls_key_hex ? move->address : "");
	if (multifd)
		json_object_set_new(parameters, "multifd-channels", json_integer(move->channels));
	return machine_command(machine, "migrate-set-parameters", parameters, e);
}

int qemu_move_restore(struct machine *machine, struct error **e)
{
	struct machine_state state;
	machine_state(machine, &state);
	machine_set_connection(machine, -1);
	remove_key_file(machine);
	if (!machine->settings)
		return 0;
	if (state.run != MACHINE_GONE) {
		if (qemu_migration_settings_restore(machine->qmp, machine->settings, e) < 0)
			return error_wrap(e, "putting QEMU's migration settings back");
		/* After a restart of ferryd nobody remembers whether there is one. */
		if (machine_command(machine, "object-del", json_pack("{s:s}", "id", KEY_OBJECT),
				    machine->has_move_key ? e : NULL) < 0 &&
		    machine->has_move_key)
			return -1;
	}
	machine->has_move_key = false;
	cleanup_free char *path = machine_path(machine, "settings.json");
	unlink(path);
	json_decref(take_ptr(machine->settings));
	return 0;
}

/* "tcp:198.18.0.2:49152", "tcp:[fd00::2]:49152" */
static char *tcp_uri(const struct move_options *move)
{
	bool ipv6 = strchr(move->address, ':') != NULL;
	return xasprintf("tcp:%s%s%s:%u", ipv6 ? "[" : "", move->address, ipv6 ? "]" : "", move->port);
}

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
	cleanup_free char *uri = tcp_uri(move);
	if (apply_settings(machine, move, true, e) < 0)
		return -1;
	if (machine_command(machine, "migrate-incoming", json_pack("{s:s}", "uri", uri), &problem) == 0)
		return 0;
	/* QMP has no errno; this is strerror's text. */
	if (strstr(problem->message, strerror(EADDRINUSE)))
		return error_set_errno(e, ERROR_DATA_PORTS, EADDRINUSE, "port %u", move->port);
	return error_move(e, take_ptr(problem));
}

int qemu_start_incoming(const struct driver_host *host, const struct definition *definition,
			const struct move_options *move, const struct machine_observer *observer, struct machine **ret,
			struct error **e)
{
	struct machine *machine;
	if (check_port_free(move, e) < 0 || qemu_machine_start(host, definition, true, observer, &machine, e) < 0)
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

int qemu_wait_loaded(struct machine *machine, int64_t deadline_us, struct error **e)
{
	struct machine_state state;
	if (!machine_wait_for(machine, MASK(MACHINE_GONE), MOVE_ENDED_MASK, deadline_us, &state))
		return error_set(e, ERROR_TIMEOUT, "not everything of VM '%s' has arrived in time",
				 machine->definition->name);
	if (state.run != MACHINE_GONE && state.move == MOVE_COMPLETED)
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

/* From here on `cont` may reach QEMU; only its own refusal proves that the guest did not run. */
static int let_run(struct machine *machine, bool *ret_ran, struct error **e)
{
	cleanup_error struct error *problem = NULL;
	bool never_ran = machine_never_ran(machine);

	if (machine_mark_never_ran(machine, false, e) < 0)
		return -1;
	if (machine_command(machine, "cont", NULL, &problem) == 0)
		return 0;
	*ret_ran = true;
	if (problem->code == ERROR_QEMU_QMP && never_ran) {
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

/* ---- source ---- */

int qemu_move_prepare(struct machine *machine, const struct move_options *move, struct error **e)
{
	machine_reset_move(machine);
	return apply_settings(machine, move, false, e);
}

static int connect_to_destination(const struct move_options *move, int *ret_fd, struct error **e)
{
	const int on = 1, unsent_bytes_max = UNSENT_BYTES_MAX, peer_timeout_ms = PEER_TIMEOUT_MS;
	const int idle_s = 10, interval_s = 5;
	cleanup_close int fd = -1;
	if (socket_connect_tcp(move->address, move->port, CONNECT_TIMEOUT_MS, &fd, e) < 0)
		return error_wrap(e, "the destination's QEMU");
	/* QEMU writes whole buffers and waits for answers: nothing is gained by the kernel's waiting for more. */
	if (setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on)) < 0 ||
	    setsockopt(fd, IPPROTO_TCP, TCP_NOTSENT_LOWAT, &unsent_bytes_max, sizeof(unsent_bytes_max)) < 0 ||
	    setsockopt(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, &peer_timeout_ms, sizeof(peer_timeout_ms)) < 0 ||
	    setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof(on)) < 0 ||
	    setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, &idle_s, sizeof(idle_s)) < 0 ||
	    setsockopt(fd, IPPROTO_TCP, TCP_KEEPINTVL, &interval_s, sizeof(interval_s)) < 0)
		return error_set_errno(e, ERROR_SYSTEM, errno,
				       "cannot set up the connection to the destination's QEMU");
	*ret_fd = take_fd(fd);
	return 0;
}

int qemu_move_start(struct machine *machine, const struct move_options *move, struct error **e)
{
	if (move->channels > 1) {
		cleanup_free char *uri = tcp_uri(move);
		return machine_command(machine, "migrate", json_pack("{s:s}", "uri", uri), e);
	}
	int fd = -1;
	if (connect_to_destination(move, &fd, e) < 0)
		return -1;
	/* We hold it too, to count its bytes. It must end when QEMU's end of it would have: see shut_connection() in
	 * vm/qemu_machine.c. */
	machine_set_connection(machine, fd);
	if (qmp_execute_with_fd(machine->qmp, "getfd", json_pack("{s:s}", "fdname", KEY_OBJECT), fd, NULL,
				QMP_TIMEOUT_MS, e) < 0)
		return -1;
	return machine_command(machine, "migrate", json_pack("{s:s}", "uri", "fd:" KEY_OBJECT), e);
}

static uint64_t wire_bytes(struct machine *machine)
{
	struct tcp_info info = {0};
	socklen_t size = sizeof(info);
	if (machine->move_connection < 0 ||
	    getsockopt(machine->move_connection, IPPROTO_TCP, TCP_INFO, &info, &size) < 0)
		return 0;
	return info.tcpi_bytes_sent;
}

int qemu_move_sample(struct machine *machine, struct move_sample *ret, struct error **e)
{
	struct qemu_migration_info info;
	if (qemu_migration_query(machine->qmp, &info, e) < 0)
		return -1;
	*ret = (struct move_sample){
		.state = machine_move_state(info.status),
		.at_us = clock_monotonic_us(),
		.total_bytes = info.total_bytes,
		.remaining_bytes = info.remaining_bytes,
		.transferred_bytes = info.transferred_bytes,
		.wire_bytes = wire_bytes(machine),
		.normal_pages = info.normal_pages,
		.zero_pages = info.zero_pages,
		.page_size_bytes = info.page_size_bytes,
		.dirty_bytes_per_s = info.dirty_bytes_per_s,
		.rate_bytes_per_s = info.rate_bytes_per_s,
		.pass = info.pass,
		.throttle_percent = info.throttle_percent,
		.total_ms = info.total_ms,
		.setup_ms = info.setup_ms,
		.downtime_ms = info.downtime_ms,
		.failure = take_ptr(info.failure),
	};
	qemu_migration_info_done(&info);
	return 0;
}

int qemu_move_set_downtime_limit(struct machine *machine, unsigned int limit_ms, struct error **e)
{
	return machine_command(machine, "migrate-set-parameters",
			       json_pack("{s:I}", "downtime-limit", (json_int_t)limit_ms), e);
}

int qemu_move_set_bandwidth(struct machine *machine, uint64_t bytes_per_s, struct error **e)
{
	return machine_command(machine, "migrate-set-parameters",
			       json_pack("{s:I}", "max-bandwidth", (json_int_t)bytes_per_s), e);
}

int qemu_move_continue(struct machine *machine, struct error **e)
{
	return machine_command(machine, "migrate-continue", json_pack("{s:s}", "state", "pre-switchover"), e);
}

/* A source that QEMU stopped for the switch starts again by itself when the move has failed or been cancelled, a moment
 * after saying so; what comes next should not meet it in between. */
static int wait_for_resume(struct machine *machine, int64_t deadline_us, struct error **e)
{
	struct machine_state state;
	for (;;) {
		cleanup_json json_t *reply = NULL;
		machine_state(machine, &state);
		if (state.run != MACHINE_PAUSED)
			return 0;
		if (qmp_execute(machine->qmp, "query-status", NULL, &reply, QMP_TIMEOUT_MS, e) < 0)
			return -1;
		const char *status = json_string_value(json_object_get(reply, "status"));
		if (!status || strcmp(status, "finish-migrate") != 0)
			return 0;
		if (!machine_wait_change(machine, state.change, deadline_us))
			return error_set(e, ERROR_TIMEOUT, "QEMU has not let the guest go on after the cancelled move");
	}
}

int qemu_move_cancel(struct machine *machine, int64_t timeout_ms, struct error **e)
{
	const int64_t now_us = clock_monotonic_us();
	const int64_t deadline_us = now_us + timeout_ms * 1000;
	const int64_t patience_us =
		now_us + CANCEL_PATIENCE_US < deadline_us ? now_us + CANCEL_PATIENCE_US : deadline_us;
	const unsigned int ended = MOVE_ENDED_MASK | MASK(MOVE_NONE);
	struct machine_state state;

	machine_state(machine, &state);
	if ((MASK(state.move) & ended) == 0 && state.run != MACHINE_GONE) {
		/* It needs QEMU's main loop, which may hang on a socket just as the migration does: no answer is no
		 * end. */
		cleanup_error struct error *unanswered = NULL;
		if (qmp_execute(machine->qmp, "migrate_cancel", NULL, NULL, CANCEL_ANSWER_MS, &unanswered) < 0 &&
		    unanswered->code != ERROR_TIMEOUT)
			return error_move(e, take_ptr(unanswered));
		if (!machine_wait_for(machine, MASK(MACHINE_GONE), ended, patience_us, &state)) {
			cleanup_error struct error *problem = NULL;
			if (qmp_execute_oob(machine->qmp, "yank",
					    json_pack("{s:[{s:s}]}", "instances", "type", "migration"), NULL,
					    QMP_TIMEOUT_MS, &problem) < 0)
				log_failure(LOG_LEVEL_WARNING, "cannot shut the channels of a cancelled move", problem);
			if (!machine_wait_for(machine, MASK(MACHINE_GONE), ended, deadline_us, &state))
				return error_set(e, ERROR_TIMEOUT,
						 "QEMU has not ended the cancelled move within %lld ms",
						 (long long)timeout_ms);
		}
	}
	if (state.run == MACHINE_GONE)
		return error_set(e, ERROR_QEMU_GONE, "QEMU of VM '%s' has ended", machine->definition->name);
	return state.move == MOVE_COMPLETED ? 0 : wait_for_resume(machine, deadline_us, e);
}
