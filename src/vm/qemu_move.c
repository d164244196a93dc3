/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A QEMU-to-QEMU migration: its settings and its key, on both sides, and the source's side of it. The rest has files of its own:
 * the stream (qemu_connection.c), the destination (qemu_arrive.c), post-copy (qemu_postcopy.c), throttling (qemu_throttle.c).
 *
 * Theory of operation. Each side's capabilities and parameters are read first and kept (settings.json), set for the
 * move, and put back after it. Both sides get `return-path`, without which a source calls anything that swallowed its
 * bytes a success; the source stops at pre-switchover until move_continue().
 *
 * TLS is QEMU's own, with a key made for this one move. It goes by a file, which is all that QEMU reads keys from: on
 * the source it is read when the object is made, on the destination at each handshake, so it goes when the stream flows
 * (vm/qemu_machine.c) or the move ends. AES-128-GCM under TLS 1.3: 1.6 times as fast as what is negotiated otherwise.
 */
#include "vm/qemu_machine.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/file.h"
#include "base/json.h"
#include "base/log.h"
#include "base/xalloc.h"
#include "net/tls.h"

#define KEY_OBJECT "ferry-move"
#define KEY_USER "ferry"
#define KEY_PRIORITY "NORMAL:-CIPHER-ALL:+AES-128-GCM:-VERS-ALL:+VERS-TLS1.3"
#define KEY_HEX_LENGTH 64

/* How long a cancelled migration may take before its sockets are shut: QEMU's thread may sit in a write to a peer that
 * does not read. */
#define CANCEL_PATIENCE_US 300000
#define CANCEL_ANSWER_MS 1000

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

/* We may have been restarted since it was made. At the destination the folder of the key tells, and not QEMU: its main loop may wait
 * for a page of the stream that is to be mended. */
static int is_encrypted(struct machine *machine, bool incoming, struct error **e)
{
	cleanup_json json_t *parameters = NULL;
	cleanup_free char *folder = machine_path(machine, "move");
	if (incoming)
		return access(folder, F_OK) == 0;
	if (qmp_execute(machine->qmp, "query-migrate-parameters", NULL, &parameters, QMP_TIMEOUT_MS, e) < 0)
		return -1;
	const char *credentials = json_string_value(json_object_get(parameters, "tls-creds"));
	return credentials && *credentials;
}

/* A stream that was encrypted stays so, with a key of its own. */
int qemu_move_renew_key(struct machine *machine, const struct move_options *move, bool incoming, struct error **e)
{
	const int encrypted = is_encrypted(machine, incoming, e);
	if (encrypted <= 0)
		return encrypted;
	if (!move->tls_key_hex)
		return error_set(e, ERROR_INVALID_ARGUMENT, "the stream is encrypted, and there is no key for another");
	machine->has_move_key = true;
	if (incoming) /* read at each handshake */
		return write_key_file(machine, move->tls_key_hex, true, e);
	if (machine_command(machine, "object-del", json_pack("{s:s}", "id", KEY_OBJECT), e) < 0)
		return -1;
	return make_key_object(machine, move->tls_key_hex, false, e);
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

int qemu_move_apply_settings(struct machine *machine, const struct move_options *move, bool incoming, struct error **e)
{
	const char *on[8] = {"events", "return-path", incoming ? "late-block-activate" : "pause-before-switchover"};
	size_t count = 3;
	bool multifd = move->channels > 1;
	if (multifd)
		on[count++] = "multifd";
	if (move->may_throttle && !incoming)
		on[count++] = "auto-converge";
	if (move->may_postcopy)
		on[count++] = "postcopy-ram";

	if (keep_settings(machine, e) < 0 ||
	    qemu_migration_set_capabilities(machine->qmp, machine->settings, on, e) < 0 ||
	    (move->tls_key_hex && make_key_object(machine, move->tls_key_hex, incoming, e) < 0))
		return -1;
	json_t *parameters = json_pack("{s:I, s:I, s:s, s:s}", "max-bandwidth", (json_int_t)move->bandwidth_bytes_per_s,
				       "max-postcopy-bandwidth", (json_int_t)move->bandwidth_bytes_per_s, "tls-creds",
				       move->tls_key_hex ? KEY_OBJECT : "", "tls-hostname",
				       /* Not looked at with such a key, but wanted with a passed connection. */
				       move->tls_key_hex ? move->address : "");
	if (!incoming)
		qemu_throttle_add_limits(parameters, &move->limits, move->may_throttle);
	machine->may_throttle = move->may_throttle && !incoming;
	if (multifd)
		json_object_set_new(parameters, "multifd-channels", json_integer(move->channels));
	return machine_command(machine, "migrate-set-parameters", parameters, e);
}

int qemu_move_restore(struct machine *machine, struct error **e)
{
	struct machine_state state;
	machine_state(machine, &state);
	machine_release_connections(machine);
	remove_key_file(machine);
	if (!machine->settings)
		return 0;
	if (state.run != MACHINE_GONE) {
		qemu_throttle_release(machine);
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

/* ---- source ---- */

int qemu_move_prepare(struct machine *machine, const struct move_options *move, struct error **e)
{
	machine_reset_move(machine);
	machine->qemu_throttles = false;
	machine->busy_percent = 0;
	return qemu_move_apply_settings(machine, move, false, e);
}

int qemu_move_start(struct machine *machine, const struct move_options *move, struct error **e)
{
	return qemu_connection_migrate(machine, move, false, e);
}

int qemu_move_sample(struct machine *machine, struct move_sample *ret, struct error **e)
{
	struct qemu_migration_info info;
	qemu_throttle_watch(machine); /* before QEMU is asked, which one of them may keep from answering */
	if (qemu_migration_query(machine->qmp, &info, e) < 0)
		return -1;
	qemu_connection_adopt(machine);
	*ret = (struct move_sample){
		.state = machine_move_state(info.status),
		.at_us = clock_monotonic_us(),
		.total_bytes = info.total_bytes,
		.remaining_bytes = info.remaining_bytes,
		.transferred_bytes = info.transferred_bytes,
		.postcopy_bytes = info.postcopy_bytes,
		.wire_bytes = qemu_connection_wire_bytes(machine),
		.normal_pages = info.normal_pages,
		.zero_pages = info.zero_pages,
		.page_size_bytes = info.page_size_bytes,
		.dirty_bytes_per_s = info.dirty_bytes_per_s,
		.rate_bytes_per_s = info.rate_bytes_per_s,
		.pass = info.pass,
		/* QEMU's hundredth is what it is told for none at all. */
		.throttle_percent = machine->throttle_percent	? machine->throttle_percent
				    : info.throttle_percent > 1 ? info.throttle_percent
								: 0,
		.throttle_at_once = !machine->qemu_throttles,
		.busy_percent = machine->busy_percent,
		.throttle_slice_ms = qemu_throttle_slice_ms(machine),
		.total_ms = info.total_ms,
		.setup_ms = info.setup_ms,
		.downtime_ms = info.downtime_ms,
		.failure = take_ptr(info.failure),
	};
	qemu_migration_info_done(&info);
	return 0;
}

int qemu_move_set_bandwidth(struct machine *machine, uint64_t bytes_per_s, struct error **e)
{
	return machine_command(machine, "migrate-set-parameters",
			       json_pack("{s:I, s:I}", "max-bandwidth", (json_int_t)bytes_per_s, "max-postcopy-bandwidth",
					 (json_int_t)bytes_per_s),
			       e);
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
	if (state.run != MACHINE_GONE && machine->throttle_percent)
		qemu_throttle_release(machine);
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
