/* SPDX-License-Identifier: Apache-2.0 */
/*
 * An arriving VM in post-copy: it is ours and runs, and a part of its memory is still to come. Until that is here the migration
 * has not ended and its VM stays locked. No fault ends its QEMU but one: the source has let go of the VM although something is
 * missing here, which it does only when its own QEMU has ended. Then the guest is lost, and what is left of it is ended.
 * See arrival.h, and source_postcopy.c for the other side.
 */
#include "migration/arrival.h"

#include <errno.h>

#include "base/cleanup.h"
#include "base/fault.h"
#include "base/log.h"
#include "base/xalloc.h"

#define AWAIT_LOOK_US 500000
#define END_AGAIN_MS 1000 /* a process that does not end */
#define MEND_PORTS_MAX 8 /* tried, when others take the one that was free a moment ago */

/* QEMU's view of it; a machine that is gone has nothing to wait for. */
static struct machine_state arrival_state(struct migration_host *host, const struct migration *migration)
{
	struct machine_state state = {.run = MACHINE_GONE};
	if (migration->vm && migration->vm->machine)
		inventory_driver(host->inventory)->state(migration->vm->machine, &state);
	return state;
}

static bool is_whole(const struct machine_state *state)
{
	return state->run == MACHINE_GONE || !move_in_postcopy(state->move);
}

bool arrival_is_whole(struct migration_host *host, const struct migration *migration)
{
	const struct machine_state state = arrival_state(host, migration);
	return is_whole(&state);
}

bool arrival_is_lost(struct migration_host *host, struct migration *migration)
{
	const bool gone = migration->awaiting && arrival_state(host, migration).run == MACHINE_GONE; /* not said yet */
	LOCK_SCOPE(&migration->mutex);
	return migration->postcopy && migration->handover == HANDOVER_RUNNING && (gone || migration->reason_code == ERROR_QEMU_GONE);
}

/* What readers see while the rest is awaited. */
static void show_progress(struct migration *migration, const struct machine_state *state)
{
	cleanup_error struct error *e = NULL;
	if (state->move == MOVE_POSTCOPY_PAUSED) {
		error_set(&e, ERROR_MIGRATION_RECOVERING, "the stream between the two QEMUs broke");
		migration_set_waiting(migration, MIGRATION_RECOVERING, migration->source, "the rest of the guest's memory", e);
	} else if (migration->status == MIGRATION_RECOVERING && state->move == MOVE_POSTCOPY) {
		migration_clear_doubt(migration);
		migration_set_status(migration, MIGRATION_COMPLETING);
	}
}

struct await {
	struct migration_host *host;
	struct migration *migration;
	struct machine *machine; /* the VM's, which is locked as long as the thread lives */
	int64_t asked_us; /* the source */
};

/* A person may have given the VM to the source meanwhile (arrival_cede()). */
static bool is_ceded(struct migration *migration)
{
	LOCK_SCOPE(&migration->mutex);
	return migration->handover != HANDOVER_RUNNING;
}

/* Whether the rest will never come. The source is asked only when nothing seems to come any more, or for long enough. */
static bool is_lost(struct await *await, struct machine_state *state)
{
	struct migration_host *host = await->host;
	cleanup_error struct error *silence = NULL;
	const int64_t period_us = state->move == MOVE_POSTCOPY_PAUSED ? arrival_ask_period_us(host) : host->times.silence_limit_ms * 1000;
	if (clock_monotonic_us() < await->asked_us + period_us)
		return false;
	const enum source_word word = arrival_ask_source(host, await->migration, &silence);
	await->asked_us = clock_monotonic_us();
	/* After the answer: if all had come before the source let go, it is seen now. */
	inventory_driver(host->inventory)->state(await->machine, state);
	return word == SOURCE_GAVE_AWAY && !is_whole(state);
}

/* Nobody has the rest any more. What is here waits for it, with the disks open; `work` is held. */
static int end_lost(struct await *await, struct error **e)
{
	struct migration *migration = await->migration;
	cleanup_free char *why = xasprintf("the guest is lost: the source's QEMU, on %s, ended before all of the memory was here",
					   migration->source);
	arrival_unwatch(await->host, migration);
	if (vm_end(await->host->inventory, migration->vm, e) < 0)
		return error_wrap(e, "ending what is left of the guest");
	log_error("%s", why);
	migration_set_reason(migration, ERROR_QEMU_GONE, why);
	return 0;
}

/* Its own QEMU ended, and has taken the guest with it. */
static void note_gone(const struct await *await)
{
	cleanup_free char *words = inventory_driver(await->host->inventory)->last_words(await->machine);
	cleanup_free char *why =
		xasprintf("the guest is lost: the destination's QEMU ended before all of the memory was there: %s", words);
	log_error("%s", why);
	migration_set_reason(await->migration, ERROR_QEMU_GONE, why);
}

/* Nothing is awaited any more. False when what is left of a lost guest cannot be ended yet. */
static bool await_end(struct await *await, const struct machine_state *state, bool lost)
{
	struct migration *migration = await->migration;
	cleanup_error struct error *e = NULL;
	LOCK_SCOPE(&migration->work);
	const bool ours = migration->handover == HANDOVER_RUNNING && migration->vm && !migration->settling;
	if (lost && ours && end_lost(await, &e) < 0) {
		log_failure(LOG_LEVEL_ERROR, "trying again", e);
		return false;
	}
	migration->awaiting = false;
	if (migration->handover == HANDOVER_REFUSED)
		inventory_unlock(await->host->inventory, take_ptr(migration->vm));
	if ((lost || is_whole(state)) && ours) {
		migration_clear_doubt(migration);
		if (!lost && state->run == MACHINE_GONE)
			note_gone(await);
		arrival_settle(await->host, migration);
	}
	return true;
}

static void *await_main(void *user)
{
	struct await *await = user;
	struct migration_host *host = await->host;
	struct migration *migration = await->migration;
	const struct vm_driver *driver = inventory_driver(host->inventory);
	struct machine_state state;
	bool lost = false;
	log_context_set(migration->id, migration->vm_name);
	do {
		driver->state(await->machine, &state);
		while (!is_whole(&state) && !lost && !is_ceded(migration) && !migration_host_stopping(host)) {
			show_progress(migration, &state);
			lost = is_lost(await, &state);
			if (!lost && !is_whole(&state))
				(void)driver->wait_change(await->machine, state.change, clock_monotonic_us() + AWAIT_LOOK_US);
			driver->state(await->machine, &state);
		}
		if (state.run != MACHINE_GONE && is_whole(&state))
			FAULT(FAULT_POSTCOPY_DONE);
	} while (!await_end(await, &state, lost) && !migration_host_wait_stopping(host, END_AGAIN_MS));
	migration_unref(migration);
	free(await);
	migration_host_worker_done(host);
	return NULL;
}

void arrival_settle_when_whole(struct migration_host *host, struct migration *migration, bool soon)
{
	if (!arrival_is_whole(host, migration)) {
		migration_set_postcopy(migration);
		if (migration->awaiting)
			return;
		struct await *await = xcalloc(1, sizeof(*await));
		*await = (struct await){host, migration_ref(migration), migration->vm->machine, clock_monotonic_us()};
		migration->awaiting = true;
		migration_host_start_worker(host, await_main, await, NULL);
	} else if (!migration->awaiting) {
		if (soon)
			arrival_settle_soon(host, migration);
		else
			arrival_settle(host, migration);
	}
}

int arrival_mend(struct migration_host *host, struct migration *migration, const char *tls_key_hex, uint16_t *ret_port,
		 struct error **e)
{
	const struct machine_state state = arrival_state(host, migration);
	if (is_whole(&state))
		return 0;
	for (unsigned int i = 0;; i++) {
		struct data_port port = {0};
		cleanup_error struct error *problem = NULL;
		if (data_port_reserve(host, &port, e) < 0)
			return -1;
		const struct move_options move = {.address = *host->data_address ? host->data_address : "0.0.0.0",
						  .port = port.port,
						  .tls_key_hex = tls_key_hex,
						  .channels = 1};
		data_port_release(&port); /* the machine listens there now */
		if (inventory_driver(host->inventory)->move_listen_again(migration->vm->machine, &move, &problem) == 0) {
			FAULT(FAULT_POSTCOPY_LISTENING);
			*ret_port = move.port;
			return 0;
		}
		if (problem->code != ERROR_DATA_PORTS || problem->sys_errno != EADDRINUSE || i == MEND_PORTS_MAX)
			return error_move(e, take_ptr(problem));
	}
}
