/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The state of one QEMU machine.
 *
 * Theory of operation. QEMU tells by events what happens to it; the loop's thread turns each into the new state under
 * the machine's lock, wakes whoever waits, and then calls the observer with a copy, without the lock. The pidfd says
 * that the process has ended, which nothing else proves. So a look at the state costs no round trip, and a reply to a
 * command is never seen before the events that QEMU sent ahead of it.
 *
 *   event                what it does
 *   STOP                 run = PAUSED (SHUT_DOWN stays)          stopped_us
 *   RESUME               run = RUNNING                           resumed_us
 *   SHUTDOWN             run = SHUT_DOWN
 *   MIGRATION status     move = status; completed: run = HANDED_OVER on a source (a destination stays INCOMING)
 *   MIGRATION_PASS n     pass = n                                pass_us
 *   pidfd                run = GONE; a move that had not ended = FAILED
 *
 * A source that has completed is in QEMU's run state `postmigrate`; one whose move failed runs again by itself and says
 * RESUME. A destination is INCOMING until it is told to run (never_ran), whatever QEMU calls its state.
 */
#include "vm/qemu_machine.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/file.h"
#include "base/log.h"
#include "base/xalloc.h"
#include "network/port.h"
#include "vm/throttle.h"

#define LAST_WORDS_BYTES 4096
#define LAST_WORDS_SHOWN_BYTES 1000

struct machine *machine_new(const struct driver_host *host, struct definition *definition,
			    const struct machine_observer *observer)
{
	struct machine *machine = xcalloc(1, sizeof(*machine));
	machine->host = host;
	if (observer)
		machine->observer = *observer;
	machine->definition = definition;
	machine->folder = xasprintf("%s/%s", host->run_folder, definition->uuid);
	machine->log_path = xasprintf("%s/%s.log", host->log_folder, definition->name);
	machine->pidfd = -1;
	machine->other_bytes = -1;
	machine->state.run = MACHINE_PAUSED;
	pthread_mutex_init(&machine->lock, NULL);
	cond_init(&machine->changed);
	return machine;
}

void machine_release_ports(struct machine *machine)
{
	if (machine->nic_count > 0)
		port_release(machine->nic_fds, machine->nic_count);
	machine->nic_count = 0;
}

void machine_free(struct machine *machine)
{
	if (!machine)
		return;
	machine_release_ports(machine);
	/* After these two no callback runs any more. */
	loop_source_remove(machine->pidfd_source);
	if (machine->qmp)
		qmp_free(machine->qmp);
	/* A guest is slow for as long as somebody sees to it that this ends, and not while no ferryd runs. */
	if (machine->throttle_percent && machine->state.run != MACHINE_GONE)
		(void)throttle_release(machine->processors, machine->processor_count);
	if (machine->pidfd >= 0)
		close(machine->pidfd);
	machine_release_connections(machine);
	free(machine->awaited_address);
	json_decref(machine->settings);
	free(machine->processors);
	free(machine->watches);
	json_decref(machine->record);
	definition_free(machine->definition);
	free(machine->folder);
	free(machine->log_path);
	pthread_cond_destroy(&machine->changed);
	pthread_mutex_destroy(&machine->lock);
	free(machine);
}

/* ---- changes ---- */

/* With the lock held: count the change, wake the waiters, return a copy for the observer. */
static struct machine_state state_changed(struct machine *machine)
{
	machine->state.change++;
	pthread_cond_broadcast(&machine->changed);
	return machine->state;
}

/* Without the lock, on the loop's thread. */
static void tell_observer(struct machine *machine, const struct machine_state *state)
{
	if (machine->observer.changed)
		machine->observer.changed(machine->observer.user, state);
}

static bool move_ended(enum move_state move)
{
	return (MASK(move) & MOVE_ENDED_MASK) != 0;
}

enum move_state machine_move_state(enum qemu_migration_status status)
{
	switch (status) {
	case QEMU_MIGRATION_NONE:
		return MOVE_NONE;
	case QEMU_MIGRATION_SETUP:
	case QEMU_MIGRATION_WAIT_UNPLUG:
		return MOVE_SETUP;
	case QEMU_MIGRATION_PRE_SWITCHOVER:
		return MOVE_PRE_SWITCHOVER;
	case QEMU_MIGRATION_DEVICE:
		return MOVE_DEVICE;
	case QEMU_MIGRATION_COMPLETED:
		return MOVE_COMPLETED;
	case QEMU_MIGRATION_CANCELLING:
		return MOVE_CANCELLING;
	case QEMU_MIGRATION_CANCELLED:
		return MOVE_CANCELLED;
	case QEMU_MIGRATION_FAILED:
		return MOVE_FAILED;
	case QEMU_MIGRATION_POSTCOPY_ACTIVE:
		return MOVE_POSTCOPY;
	case QEMU_MIGRATION_POSTCOPY_PAUSED:
		return MOVE_POSTCOPY_PAUSED;
	case QEMU_MIGRATION_POSTCOPY_RECOVER:
		return MOVE_POSTCOPY_RECOVER;
	case QEMU_MIGRATION_ACTIVE:
	case QEMU_MIGRATION_COLO:
	case QEMU_MIGRATION_UNKNOWN:
		break;
	}
	return MOVE_ACTIVE;
}

/* The destination's key file is read at each handshake; once the stream flows, all channels have shaken hands. */
static void forget_incoming_key(struct machine *machine)
{
	cleanup_free char *path = machine_path(machine, "move/keys.psk");
	unlink(path);
}

/* With the lock held. Our second descriptors must not keep the stream open when QEMU has given it up: the destination
 * would wait for what never comes. */
static void shut_connections(struct machine *machine)
{
	for (size_t i = 0; i < machine->connection_count; i++)
		shutdown(machine->connections[i], SHUT_RDWR);
}

/* With the lock held. */
static bool stream_given_up(const struct machine_state *state)
{
	return state->run == MACHINE_GONE || state->move == MOVE_FAILED || state->move == MOVE_CANCELLED;
}

void machine_hold_connection(struct machine *machine, int fd)
{
	LOCK_SCOPE(&machine->lock);
	assert(machine->connection_count < QEMU_CONNECTIONS_MAX);
	machine->connections[machine->connection_count++] = fd;
	if (stream_given_up(&machine->state))
		shut_connections(machine);
}

void machine_release_connections(struct machine *machine)
{
	LOCK_SCOPE(&machine->lock);
	while (machine->connection_count > 0)
		close(machine->connections[--machine->connection_count]);
	machine->awaited_count = 0;
}

/* With the lock held. */
static void apply_migration(struct machine *machine, const char *status, int64_t received_us)
{
	struct machine_state *state = &machine->state;
	state->move = machine_move_state(qemu_migration_status_from_name(status));
	if (move_ended(state->move))
		state->move_ended_us = received_us;
	if (stream_given_up(state))
		shut_connections(machine);
	/* A source says STOP before; a guest that runs has begun here, from a state that QEMU itself loaded at its start. One that
	 * came here in post-copy may run, and be paused, before all of it is here. */
	const bool leaves = state->move == MOVE_COMPLETED || move_in_postcopy(state->move);
	if (leaves && !machine->arriving && state->run != MACHINE_SHUT_DOWN && state->run != MACHINE_RUNNING)
		state->run = MACHINE_HANDED_OVER;
}

/* With the lock held; false for an event that changes nothing here. */
static bool apply_event(struct machine *machine, const char *name, const json_t *data, int64_t received_us)
{
	struct machine_state *state = &machine->state;

	if (state->run == MACHINE_GONE)
		return false;
	if (strcmp(name, "STOP") == 0) {
		if (state->run == MACHINE_RUNNING)
			state->run = MACHINE_PAUSED;
		state->stopped_us = received_us;
	} else if (strcmp(name, "RESUME") == 0) {
		state->run = MACHINE_RUNNING;
		state->resumed_us = received_us;
	} else if (strcmp(name, "SHUTDOWN") == 0) {
		state->run = MACHINE_SHUT_DOWN;
	} else if (strcmp(name, "MIGRATION") == 0) {
		const char *status = json_string_value(json_object_get(data, "status"));
		if (!status)
			return false;
		apply_migration(machine, status, received_us);
	} else if (strcmp(name, "MIGRATION_PASS") == 0) {
		state->pass = (unsigned int)json_integer_value(json_object_get(data, "pass"));
		state->pass_us = received_us;
	} else {
		return false;
	}
	return true;
}

static void on_event(void *user, const char *name, const json_t *data, int64_t received_us)
{
	struct machine *machine = user;
	struct machine_state copy;
	bool changed, stream_flows;

	log_debug("QEMU event vm=%s event=%s status=%s", machine->definition->name, name,
		  data && json_object_get(data, "status") ? json_string_value(json_object_get(data, "status")) : "");
	pthread_mutex_lock(&machine->lock);
	changed = apply_event(machine, name, data, received_us);
	if (changed)
		copy = state_changed(machine);
	stream_flows = changed && machine->never_ran && machine->state.move == MOVE_ACTIVE;
	pthread_mutex_unlock(&machine->lock);
	if (stream_flows)
		forget_incoming_key(machine);
	if (changed)
		tell_observer(machine, &copy);
}

static void on_closed(void *user)
{
	/* Commands fail from now on; whether the process has ended is for the pidfd to say. */
	machine_nudge(user);
}

static void on_process_ended(void *user, uint32_t epoll_events)
{
	struct machine *machine = user;
	struct machine_state copy;

	(void)epoll_events;
	process_reap(machine->pidfd);

	pthread_mutex_lock(&machine->lock);
	machine->state.run = MACHINE_GONE;
	shut_connections(machine);
	if (machine->state.move != MOVE_NONE && !move_ended(machine->state.move)) {
		machine->state.move = MOVE_FAILED;
		machine->state.move_ended_us = clock_monotonic_us();
	}
	copy = state_changed(machine);
	pthread_mutex_unlock(&machine->lock);
	tell_observer(machine, &copy);
}

void machine_watch_process(struct machine *machine)
{
	/* Once only: a pidfd stays readable. */
	machine->pidfd_source =
		loop_add_fd(machine->host->loop, machine->pidfd, EPOLLIN | EPOLLONESHOT, on_process_ended, machine);
}

int machine_connect(struct machine *machine, int qmp_fd, int64_t timeout_ms, struct error **e)
{
	const struct qmp_callbacks callbacks = {.event = on_event, .closed = on_closed, .user = machine};
	return qmp_new(machine->host->loop, qmp_fd, &callbacks, timeout_ms, &machine->qmp, e);
}

/* ---- looking at it ---- */

void machine_state(struct machine *machine, struct machine_state *ret)
{
	LOCK_SCOPE(&machine->lock);
	*ret = machine->state;
}

bool machine_wait_change(struct machine *machine, uint64_t seen, int64_t deadline_us)
{
	LOCK_SCOPE(&machine->lock);
	while (machine->state.change == seen) {
		if (!cond_wait_until(&machine->changed, &machine->lock, deadline_us))
			return machine->state.change != seen;
	}
	return true;
}

void machine_nudge(struct machine *machine)
{
	/* A change in which nothing differs: it wakes also a waiter that comes a moment later. */
	LOCK_SCOPE(&machine->lock);
	state_changed(machine);
}

bool machine_wait_for(struct machine *machine, unsigned int run_mask, unsigned int move_mask, int64_t deadline_us,
		      struct machine_state *ret)
{
	struct machine_state state;
	bool in_time = true;
	for (;;) {
		machine_state(machine, &state);
		bool holds = (MASK(state.run) & run_mask) != 0 || (MASK(state.move) & move_mask) != 0;
		if (holds || !in_time) {
			*ret = state;
			return holds;
		}
		in_time = machine_wait_change(machine, state.change, deadline_us);
	}
}

void machine_reset_move(struct machine *machine)
{
	LOCK_SCOPE(&machine->lock);
	machine->state.move = MOVE_NONE;
	machine->arriving = false;
	machine->state.pass = 0;
	machine->state.pass_us = 0;
	machine->state.move_ended_us = 0;
	state_changed(machine);
}

void machine_set_run(struct machine *machine, enum machine_run run)
{
	LOCK_SCOPE(&machine->lock);
	if (machine->state.run != MACHINE_GONE && machine->state.run != MACHINE_SHUT_DOWN) {
		machine->state.run = run;
		state_changed(machine);
	}
}

/* ---- asking QEMU ---- */

int machine_command(struct machine *machine, const char *command, json_t *arguments, struct error **e)
{
	return qmp_execute(machine->qmp, command, arguments, NULL, QMP_TIMEOUT_MS, e);
}

/* By QEMU's run state. What the guest was paused for does not matter here. */
static enum machine_run run_from_status(const char *status, bool running, enum move_state move)
{
	if (strcmp(status, "postmigrate") == 0 || (strcmp(status, "finish-migrate") == 0 && move_in_postcopy(move)))
		return MACHINE_HANDED_OVER;
	if (strcmp(status, "shutdown") == 0)
		return MACHINE_SHUT_DOWN;
	if (strcmp(status, "inmigrate") == 0)
		return MACHINE_INCOMING;
	return running ? MACHINE_RUNNING : MACHINE_PAUSED;
}

/* With the lock held. */
static void apply_answers(struct machine *machine, enum machine_run run, const struct qemu_migration_info *info)
{
	struct machine_state *state = &machine->state;
	state->run = machine->never_ran && run != MACHINE_SHUT_DOWN ? MACHINE_INCOMING : run;
	state->move = machine_move_state(info->status);
	/* One that came here by a move and was taken over: that move is history. */
	if (state->move == MOVE_COMPLETED && !machine->never_ran && state->run != MACHINE_HANDED_OVER)
		state->move = MOVE_NONE;
	if (move_in_postcopy(state->move) && state->run != MACHINE_HANDED_OVER)
		machine->arriving = true;
	state->pass = info->pass;
	state_changed(machine);
}

int machine_refresh(struct machine *machine, struct error **e)
{
	struct machine_state before;
	bool settled = false;
	while (!settled) {
		cleanup_json json_t *reply = NULL;
		struct qemu_migration_info info;
		machine_state(machine, &before);
		if (qmp_execute(machine->qmp, "query-status", NULL, &reply, QMP_TIMEOUT_MS, e) < 0)
			return -1;
		const char *status = json_string_value(json_object_get(reply, "status"));
		if (!status)
			return error_set(e, ERROR_QEMU_QMP, "query-status did not tell the status");
		if (qemu_migration_query(machine->qmp, &info, e) < 0)
			return -1;

		pthread_mutex_lock(&machine->lock);
		/* An event in between is newer than the answers: ask again. */
		settled = machine->state.change == before.change || machine->state.run == MACHINE_GONE;
		if (settled && machine->state.run != MACHINE_GONE)
			apply_answers(machine,
				      run_from_status(status, json_is_true(json_object_get(reply, "running")),
						      machine_move_state(info.status)),
				      &info);
		pthread_mutex_unlock(&machine->lock);
		qemu_migration_info_done(&info);
	}
	return 0;
}

/* ---- files ---- */

char *machine_path(const struct machine *machine, const char *file)
{
	return xasprintf("%s/%s", machine->folder, file);
}

int machine_mark_never_ran(struct machine *machine, bool never_ran, struct error **e)
{
	cleanup_free char *path = machine_path(machine, "never-ran");
	if (never_ran) {
		cleanup_close int fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
		if (fd < 0)
			return error_set_errno(e, ERROR_SYSTEM, errno, "cannot make '%s'", path);
	} else if (unlink(path) < 0 && errno != ENOENT) {
		return error_set_errno(e, ERROR_SYSTEM, errno, "cannot remove '%s'", path);
	}
	LOCK_SCOPE(&machine->lock);
	machine->never_ran = never_ran;
	machine->arriving |= never_ran;
	return 0;
}

bool machine_never_ran(struct machine *machine)
{
	LOCK_SCOPE(&machine->lock);
	return machine->never_ran;
}

char *machine_last_words(struct machine *machine)
{
	cleanup_free char *tail = file_tail(machine->log_path, LAST_WORDS_BYTES);
	const char *words = tail;
	/* A tail that was cut begins in the middle of a line. */
	if (strlen(tail) >= LAST_WORDS_BYTES - 1)
		words += strcspn(tail, "\n");
	/* Only what was said since the line that this start wrote. */
	for (const char *mark = tail; (mark = strstr(mark, QEMU_LOG_MARK)); mark++) {
		words = strchr(mark, '\n');
		if (!words)
			return xstrdup("");
	}
	words += strspn(words, "\n ");
	size_t length = strlen(words);
	if (length > LAST_WORDS_SHOWN_BYTES) {
		words += length - LAST_WORDS_SHOWN_BYTES;
		length = LAST_WORDS_SHOWN_BYTES;
	}
	while (length > 0 && words[length - 1] == '\n')
		length--;
	return xasprintf("%.*s", (int)length, words);
}
