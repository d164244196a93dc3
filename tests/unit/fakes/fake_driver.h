/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A hypervisor made of nothing: struct vm_driver with machines that live in a world of their own, so that they outlive
 * the inventory that let go of them (a "restart of ferryd"), and a migration takes microseconds. The copy moves on each
 * time that its source is waited for: pass 1, pass 2, ..., pre-switchover, device, completed; or, once post-copy was asked for,
 * device, post-copy (the devices' state arrives, then the source serves pages), completed.
 *
 * The world watches what the whole of Ferry is about, and remembers the first breach in fake_world_breach():
 *   - two machines of one uuid never run at the same time;
 *   - a destination never lets a guest run from a state that the guest has left behind since (it ran on elsewhere);
 *   - nobody ends either machine of a guest that runs in post-copy as long as the other one waits for it.
 *
 * Hosts are told apart by their driver_host's run_folder, which is the host's name here. Any thread.
 */
#ifndef FERRY_TESTS_FAKE_DRIVER_H
#define FERRY_TESTS_FAKE_DRIVER_H

#include "vm/driver.h"

extern const struct vm_driver vm_driver_fake;

/* The calls that can be made to fail, and that a hook can be put on. */
enum fake_call {
	FAKE_START,
	FAKE_ATTACH,
	FAKE_RESUME,
	FAKE_END,
	FAKE_DESCRIBE,
	FAKE_CHECK_INCOMING,
	FAKE_START_INCOMING,
	FAKE_WAIT_LOADED,
	FAKE_TAKE_OVER,
	FAKE_MOVE_PREPARE,
	FAKE_MOVE_START,
	FAKE_MOVE_SAMPLE,
	FAKE_MOVE_SET_LIMITS,
	FAKE_MOVE_CONTINUE,
	FAKE_MOVE_CANCEL,
	FAKE_MOVE_RESTORE,
	FAKE_PORTS_SHUT,
	FAKE_PORTS_OPEN,
	FAKE_MOVE_START_POSTCOPY,
	FAKE_MOVE_LISTEN_AGAIN,
	FAKE_MOVE_RESUME,
	FAKE_REFRESH,
	FAKE_CALL_COUNT
};
const char *fake_call_name(enum fake_call call);

enum fake_failure {
	FAKE_FAIL,       /* an error, nothing done */
	FAKE_FAIL_DONE,  /* an error, but it was done (take_over: the guest runs, *ret_ran is true) */
	FAKE_FAIL_GONE,  /* the machine ends (before anything is done), then an error */
	FAKE_FAIL_LATER, /* ERROR_TIMEOUT; wait_loaded: the load goes on, take_over: the guest runs all the same, *ret_ran is true */
};

/* ---- the script; reset by fake_world_reset() ---- */

/* The next `count` calls of this kind on this host fail so. */
void fake_driver_fail(const char *host, enum fake_call call, enum fake_failure failure, unsigned int count);
/* Called at the beginning of each such call, with no lock of the world held. */
void fake_driver_hook(const char *host, enum fake_call call, void (*hook)(void *user), void *user);

enum fake_move_end {
	FAKE_MOVE_GOOD,
	FAKE_MOVE_BREAKS,      /* fails in pass 2; the guest never stopped */
	FAKE_MOVE_BREAKS_LATE, /* fails in the device phase; QEMU lets the guest run on, the destination's QEMU ends */
	FAKE_MOVE_LOST_LAST_ACK,     /* as before, but the destination's QEMU has everything and waits */
	FAKE_MOVE_NEVER_CONVERGES,   /* pass after pass, with all of memory left at 10 MB/s, as long as no pause for that is allowed
				      * and nobody asks for post-copy */
	FAKE_MOVE_STAYS_ACTIVE,      /* nothing happens in pass 2 until somebody cancels */
	FAKE_MOVE_TOO_MUCH_AT_SWITCH /* at pre-switchover far more is left than fits into the promised pause */
};
void fake_driver_script_move(enum fake_move_end end);

enum fake_postcopy {
	FAKE_POSTCOPY_GOOD,
	/* The stream errs when the source calls itself post-copy and serves nothing yet: it fails, and lets the guest run on. */
	FAKE_POSTCOPY_FAILS,
	FAKE_POSTCOPY_FAILS_LATE, /* the same, when the devices' state has arrived */
};
/* What becomes of a post-copy, and how often its stream breaks while pages are served. */
void fake_driver_script_postcopy(enum fake_postcopy postcopy, unsigned int breaks);

/* No event of this host's machines is read any more: how far a move is stays as it was last seen, until it is asked for
 * (driver->refresh). */
void fake_driver_leave_unread(const char *host);

/* What the copy from this host was told since the reset, the first at its start: the last `room` of them. Returns how many. */
size_t fake_driver_limits(const char *host, struct move_limits *ret, size_t room);
/* The last word about its bandwidth. */
uint64_t fake_driver_bandwidth(const char *host);

/* ---- the world ---- */

void fake_world_reset(void); /* every host must have let go of its machines */
/* NULL, or what should never have happened. */
const char *fake_world_breach(void);
/* How many machines of this uuid run, on all hosts. */
unsigned int fake_world_running(const char *uuid);
/* The state of the machine there; MACHINE_GONE when there is none. */
enum machine_run fake_world_run(const char *host, const char *uuid);
/* How far its move is; MOVE_NONE when there is none. */
enum move_state fake_world_move(const char *host, const char *uuid);
/* Whether a machine is there, alive or not yet tidied up. */
bool fake_world_has(const char *host, const char *uuid);
/* The guest process ends by itself. Its observer is told. */
void fake_world_kill(const char *host, const char *uuid);
/* As a power cut: all machines of this host are gone, and nothing of them is left to tidy up. */
void fake_world_reboot(const char *host);
/* What QEMU goes on with while no ferryd looks: the copy from this machine, as far as it gets by itself. */
void fake_world_go_on(const char *host, const char *uuid);
/* A host whose ferryd is dead: its calls fail and do nothing, until it is called alive again. */
void fake_world_set_dead(const char *host, bool dead);
/* How often a call was made on a host since the reset, failures included. */
unsigned int fake_driver_calls(const char *host, enum fake_call call);

#endif
