/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The driver boundary: what a migration and the daily verbs need of a hypervisor, and nothing else. A `machine` is one
 * running (or incoming) guest process on this host. It outlives ferryd: attach() finds it again by its run folder.
 *
 * Threads: every call may block and may be made from any thread but the loop's; a machine's state is kept up to date by
 * the loop's thread, so state() and wait_change() cost no round trip. Out-parameters are untouched on failure.
 */
#ifndef FERRY_VM_DRIVER_H
#define FERRY_VM_DRIVER_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/error.h"
#include "net/loop.h"
#include "vm/definition.h"

struct machine;

/* What this host gives to all of its machines; from the configuration. Must outlive them. */
struct driver_host {
	struct loop *loop;
	const char *run_folder; /* /run/ferry/vms: one folder a machine below it, named by uuid; gone after a reboot */
	const char *log_folder; /* /var/lib/ferry/vms: NAME.log (QEMU's words), NAME.console.log */
	const char *binary;	/* QEMU's path; NULL: the first of the usual ones */
	const char *accelerator; /* "kvm" or "tcg": what probing settled on */
	bool dirty_ring; /* KVM guests get one: QEMU can then hold back those processors that write, no others */
	uid_t uid;
	gid_t gid; /* what QEMU runs as */
	int64_t stream_timeout_ms; /* how long what a move has sent may stay unacknowledged before its stream is broken; 0: the kernel's */
};

enum machine_run {
	MACHINE_INCOMING,   /* waits for or loads a migration; never ran here */
	MACHINE_RUNNING,
	MACHINE_PAUSED,	    /* by a user, an I/O error, or -S; can be resumed */
	MACHINE_HANDED_OVER, /* its state has been sent whole (QEMU: postmigrate); resuming it is a decision about ownership */
	MACHINE_SHUT_DOWN,  /* the guest powered off; the process is about to go */
	MACHINE_GONE	    /* the process has ended */
};

enum move_state {
	MOVE_NONE,
	MOVE_SETUP,
	MOVE_ACTIVE,
	MOVE_PRE_SWITCHOVER, /* the guest is stopped, everything can still be undone; waits for move_continue() */
	MOVE_DEVICE,
	/* The guest runs at the destination, or is about to; what is missing there follows. Neither side is whole, and at the
	 * source nothing lets the guest run any more. */
	MOVE_POSTCOPY,
	MOVE_POSTCOPY_PAUSED,	/* the same, but the stream is broken; both sides wait for another */
	MOVE_POSTCOPY_RECOVER,	/* there is another, and the two sides compare what is missing */
	MOVE_COMPLETED,
	MOVE_CANCELLING,
	MOVE_CANCELLED,
	MOVE_FAILED
};

struct machine_state {
	enum machine_run run;
	enum move_state move;
	unsigned int pass;     /* of the memory copy: 1 is the first */
	int64_t pass_us;       /* when it began, on our monotonic clock */
	int64_t stopped_us;    /* when the guest last stopped (STOP seen); 0: never */
	int64_t resumed_us;    /* when it last began to run */
	int64_t move_ended_us; /* when move became completed, cancelled or failed */
	uint64_t change;       /* raised at every change of the above */
};

/* A look at a memory copy under way (QEMU: query-migrate). Sizes in bytes, rates in bytes a second. */
struct move_sample {
	enum move_state state;
	int64_t at_us;		/* our monotonic clock */
	uint64_t total_bytes;	/* the guest's RAM */
	uint64_t remaining_bytes; /* dirty or never sent */
	uint64_t transferred_bytes;
	uint64_t postcopy_bytes; /* of these, sent after the guest had stopped here for post-copy */
	uint64_t wire_bytes; /* by the kernel's count of the stream's sockets, retransmissions included; 0 where it cannot be told */
	uint64_t normal_pages, zero_pages;
	uint64_t page_size_bytes;
	uint64_t dirty_bytes_per_s; /* by the last synchronisation; 0 before the second pass */
	uint64_t rate_bytes_per_s;  /* what the stream carries now */
	unsigned int pass;
	unsigned int throttle_percent;
	bool throttle_at_once; /* it is in force as soon as it is told */
	unsigned int busy_percent; /* of its time, the busiest processor while it is not throttled; 0: not known */
	unsigned int throttle_slice_ms; /* how long a processor that is throttled runs between two sleeps, at most */
	int64_t total_ms, setup_ms, downtime_ms; /* QEMU's own words; downtime only after completion */
	char *failure; /* QEMU's error-desc; NULL when there is none. move_sample_done() frees it. */
};
void move_sample_done(struct move_sample *sample);

/* What a move may be told while it is under way. */
struct move_limits {
	unsigned int downtime_ms;	 /* the memory part of the pause at which the hypervisor may switch by itself; 1 or more */
	unsigned int throttle_percent;	 /* of its processors' time the guest does without; 0: none (move_options.may_throttle) */
	uint64_t dirty_bytes_per_s;	 /* what that is to leave of the guest's writing, for a hypervisor that can see to it; 0: not known */
	unsigned int throttle_increment; /* 0: exactly so much; else it begins there and goes up by so much at a time, by itself */
};

/* How memory travels: between the two hypervisors, or by a relay's socket on either side. */
struct move_options {
	int stream_fd; /* a connected socket that leads to the other side, and stays the caller's; 0: none, what follows counts */
	const char *address; /* the destination's data address: what it listens on, what the source connects to */
	uint16_t port;
	const char *tls_key_hex; /* pre-shared key of this migration, 64 hex digits; NULL: plain text */
	unsigned int channels;	 /* 1: one stream; more: multifd with that many */
	uint64_t bandwidth_bytes_per_s; /* 0: unlimited */
	bool may_throttle;
	bool may_postcopy;	   /* move_start_postcopy() may follow; the same on both sides */
	struct move_limits limits; /* at the start */
};

/* Called on the loop's thread after the state changed; must not block. */
struct machine_observer {
	void (*changed)(void *user, const struct machine_state *state);
	void *user;
};

struct vm_driver {
	const char *name;

	/* Find out what the hypervisor can do on this host, so that the first start or migration need not wait for it. */
	int (*warm_up)(const struct driver_host *host, struct error **e);

	/* ---- daily verbs ---- */
	/* Start a guest; returns when it runs (or is paused, for start_paused). Nothing is left behind on failure. */
	int (*start)(const struct driver_host *host, const struct definition *definition, bool start_paused,
		     const struct machine_observer *observer, struct machine **ret, struct error **e);
	/* Find a machine again by the run folder of an earlier ferryd. ERROR_QEMU_GONE when its process has ended (the folder is
	 * then tidied up). */
	int (*attach)(const struct driver_host *host, const char *uuid, const struct machine_observer *observer,
		      struct machine **ret, struct error **e);
	int (*resume)(struct machine *machine, struct error **e);
	int (*pause)(struct machine *machine, struct error **e);
	/* Ask the guest to power off / reset it. */
	int (*power_down)(struct machine *machine, struct error **e);
	int (*reset)(struct machine *machine, struct error **e);
	/* End the process (SIGKILL) and wait until it and its ports are gone; then tidy up its run folder. Idempotent. */
	int (*end)(struct machine *machine, struct error **e);
	/* Forget the machine without ending it (ferryd stops), or after it is gone. */
	void (*detach)(struct machine *machine);

	/* ---- what it is ---- */
	void (*state)(struct machine *machine, struct machine_state *ret);
	/* Wait until the state's change counter differs from `seen` or the monotonic deadline passes; false at the deadline.
	 * A second thread may wake the waiter by nudge(). */
	bool (*wait_change)(struct machine *machine, uint64_t seen, int64_t deadline_us);
	void (*nudge)(struct machine *machine);
	/* Ask the hypervisor itself and bring the state up to date, for after attach(). */
	int (*refresh)(struct machine *machine, struct error **e);
	/* What a destination must match and the source's checks look at, one object (owned by the caller):
	 *   definition (with the versioned machine type and CPU model really in use), qemu_version, accelerator,
	 *   firmware: [{name, size_bytes}], memory_bytes, blocked_reasons: [text], snapshot_mode: bool, run */
	int (*describe)(struct machine *machine, json_t **ret, struct error **e);
	/* The last words of the process (its log's tail), for errors. The caller frees them. */
	char *(*last_words)(struct machine *machine);
	const struct definition *(*definition)(const struct machine *machine);

	/* ---- destination ---- */
	/* Whether this host can run what `description` describes: machine type, CPU, firmware, accelerator. Adds
	 * {code, message} objects to failures. Starts nothing. */
	int (*check_incoming)(const struct driver_host *host, const json_t *description, json_t *failures, struct error **e);
	/* Whether a guest can arrive here by post-copy: ERROR_DEST_POSTCOPY. */
	int (*check_postcopy)(const struct driver_host *host, struct error **e);
	/* Start a machine that waits for a migration: paused, images not activated, ports shut. Listens when it returns.
	 * ERROR_DATA_PORTS with EADDRINUSE in sys_errno when move->port is taken. */
	int (*start_incoming)(const struct driver_host *host, const struct definition *definition,
			      const struct move_options *move, const struct machine_observer *observer,
			      struct machine **ret, struct error **e);
	/* All arrived? Waits until the load has ended: 0 = loaded and paused; an error (QEMU's last words) otherwise. In post-copy:
	 * all that the guest needs in order to run. */
	int (*wait_loaded)(struct machine *machine, int64_t deadline_us, struct error **e);
	/* Open the ports, let the guest run, announce it to the network. On failure *ret_ran says whether the guest can have
	 * run: false is proof that it has not. */
	int (*take_over)(struct machine *machine, bool paused, bool *ret_ran, struct error **e);

	/* ---- how much memory it uses, and how fast it writes ---- */
	/* The guest's memory, and how much of it has been touched, in bytes; some of that may be zero again. Without an effect on the
	 * guest. `closely`: by a look at each page, 25 ms a GiB; else at once, by what has changed since the last close look, and *ret_used_bytes
	 * is 0 when there was none. */
	int (*memory_use)(struct machine *machine, bool closely, uint64_t *ret_total_bytes, uint64_t *ret_used_bytes, struct error **e);
	/* Begin to measure, for so many milliseconds (not every hypervisor can do other than whole seconds), how much memory the guest
	 * dirties: a page counts once, however often it is written. Cheap, and without an effect on the guest; an error when it is being measured already. Then ask: 1 with the figure and the
	 * time that it was measured for (which whoever began it has chosen), 0 while it is being measured. A figure of 0 says that it is
	 * little, or that nobody can tell. */
	int (*measure_dirty_rate)(struct machine *machine, unsigned int for_ms, struct error **e);
	int (*dirty_rate)(struct machine *machine, uint64_t *ret_bytes_per_s, unsigned int *ret_for_ms, struct error **e);

	/* ---- source ---- */
	/* Set capabilities and parameters (the old ones are kept for move_restore()). */
	int (*move_prepare)(struct machine *machine, const struct move_options *move, struct error **e);
	int (*move_start)(struct machine *machine, const struct move_options *move, struct error **e);
	int (*move_sample)(struct machine *machine, struct move_sample *ret, struct error **e);
	int (*move_set_limits)(struct machine *machine, const struct move_limits *limits, struct error **e);
	int (*move_set_bandwidth)(struct machine *machine, uint64_t bytes_per_s, struct error **e);
	int (*move_continue)(struct machine *machine, struct error **e);
	/* From pre-copy to post-copy: the guest stops at MOVE_PRE_SWITCHOVER, and after move_continue() the move is MOVE_POSTCOPY. */
	int (*move_start_postcopy)(struct machine *machine, struct error **e);
	/* After MOVE_POSTCOPY_PAUSED: the destination listens again, then the source connects again. */
	int (*move_listen_again)(struct machine *machine, const struct move_options *move, struct error **e);
	int (*move_resume)(struct machine *machine, const struct move_options *move, struct error **e);
	/* Ask for cancellation, then wait until the move has ended (cancelled, failed or, too late, completed), shutting QEMU's
	 * channels (yank) if it does not end by itself. */
	int (*move_cancel)(struct machine *machine, int64_t timeout_ms, struct error **e);
	/* Put capabilities and parameters back and delete the key, on either side, after the move has ended. */
	int (*move_restore)(struct machine *machine, struct error **e);
	/* Shut the ports (before the other side opens its own) and open them again, with an announcement, on rollback. */
	int (*ports_shut)(struct machine *machine, struct error **e);
	int (*ports_open)(struct machine *machine, struct error **e);
};

/* The drivers. The migration knows none of them by name. */
extern const struct vm_driver vm_driver_qemu;

const char *machine_run_name(enum machine_run run);
const char *move_state_name(enum move_state state);
/* One of the three post-copy states: each side has a part of the guest. */
bool move_in_postcopy(enum move_state state);

#endif
