/* SPDX-License-Identifier: Apache-2.0 */
/* Post-copy: begun, and gone on with over another stream when one has broken. What is done at the destination and at the source. */
#include "vm/qemu_machine.h"

#include "base/cleanup.h"
#include "base/clock.h"

#define PAUSE_PATIENCE_US 5000000

int qemu_move_start_postcopy(struct machine *machine, struct error **e)
{
	return machine_command(machine, "migrate-start-postcopy", NULL, e);
}

/* A side that has not noticed yet that the other end is gone is to let go of what it holds. Out of band: the main loop may wait
 * for a page that does not come. */
static int pause_postcopy(struct machine *machine, struct error **e)
{
	struct machine_state state;
	machine_state(machine, &state);
	if (state.move == MOVE_POSTCOPY && qmp_execute_oob(machine->qmp, "migrate-pause", NULL, NULL, QMP_TIMEOUT_MS, e) < 0)
		return -1;
	if (!machine_wait_for(machine, MASK(MACHINE_GONE), MASK(MOVE_POSTCOPY_PAUSED) | MOVE_ENDED_MASK,
			      clock_monotonic_us() + PAUSE_PATIENCE_US, &state) ||
	    state.move != MOVE_POSTCOPY_PAUSED)
		return error_set(e, ERROR_MIGRATION_QEMU, "QEMU's post-copy is not paused: it is %s", move_state_name(state.move));
	return 0;
}

int qemu_move_listen_again(struct machine *machine, const struct move_options *move, struct error **e)
{
	cleanup_error struct error *problem = NULL;
	cleanup_free char *uri = qemu_move_uri(move);
	if (pause_postcopy(machine, e) < 0 || qemu_move_renew_key(machine, move, true, e) < 0)
		return -1;
	if (qmp_execute_oob(machine->qmp, "migrate-recover", json_pack("{s:s}", "uri", uri), NULL, QMP_TIMEOUT_MS, &problem) == 0)
		return 0;
	return qemu_move_cannot_listen(move, take_ptr(problem), e);
}

int qemu_move_resume(struct machine *machine, const struct move_options *move, struct error **e)
{
	if (pause_postcopy(machine, e) < 0 || qemu_move_renew_key(machine, move, false, e) < 0)
		return -1;
	return qemu_connection_migrate(machine, move, true, e);
}
