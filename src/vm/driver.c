/* SPDX-License-Identifier: Apache-2.0 */
/* What all drivers share: the names of states. */
#include "vm/driver.h"

#include <stdlib.h>

const char *machine_run_name(enum machine_run run)
{
	static const char *const names[] = {
		[MACHINE_INCOMING] = "incoming",       [MACHINE_RUNNING] = "running",     [MACHINE_PAUSED] = "paused",
		[MACHINE_HANDED_OVER] = "handed-over", [MACHINE_SHUT_DOWN] = "shut-down", [MACHINE_GONE] = "gone",
	};
	return names[run];
}

const char *move_state_name(enum move_state state)
{
	static const char *const names[] = {
		[MOVE_NONE] = "none",
		[MOVE_SETUP] = "setup",
		[MOVE_ACTIVE] = "active",
		[MOVE_PRE_SWITCHOVER] = "pre-switchover",
		[MOVE_DEVICE] = "device",
		[MOVE_POSTCOPY] = "post-copy",
		[MOVE_POSTCOPY_PAUSED] = "post-copy-paused",
		[MOVE_POSTCOPY_RECOVER] = "post-copy-recover",
		[MOVE_COMPLETED] = "completed",
		[MOVE_CANCELLING] = "cancelling",
		[MOVE_CANCELLED] = "cancelled",
		[MOVE_FAILED] = "failed",
	};
	return names[state];
}

bool move_in_postcopy(enum move_state state)
{
	return state == MOVE_POSTCOPY || state == MOVE_POSTCOPY_PAUSED || state == MOVE_POSTCOPY_RECOVER;
}

void move_sample_done(struct move_sample *sample)
{
	free(sample->failure);
	sample->failure = NULL;
}
