/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A machine of the QEMU driver from the inside: what the driver's files share. Nobody else includes this; the contract
 * to the outside is vm/driver.h.
 *
 *   driver_qemu.c      the table of functions, the daily verbs
 *   qemu_start.c       run folder, sockets, ports, process: from a definition to a QEMU that answers; and finding it again
 *   qemu_machine.c     its state, kept up to date from QMP events and the pidfd (this header)
 *   qemu_describe.c    what it is, and whether this host could run what another describes
 *   qemu_memory.c      how much memory it uses, and how fast it writes
 *   qemu_move.c        a move: settings and key, the source's side
 *   qemu_connection.c  its stream
 *   qemu_arrive.c      the destination's side, ports
 *   qemu_postcopy.c, qemu_throttle.c
 *
 * Files in a machine's run folder (RUN_FOLDER/UUID, 0711 so that QEMU's user can pass to move/):
 *   actual.json   what is really in use: {definition, binary, version, accelerator, firmware, memory_bytes}
 *   pid           "PID START_TIME", written by the child before it becomes QEMU
 *   qmp.sock, console.sock   listening sockets that ferryd made and QEMU was born with
 *   never-ran     there as long as this QEMU waits for a migration and has never been told to run: removed just before
 *                 `cont`, so its presence is proof, over a restart of ferryd too
 *   settings.json QEMU's migration settings of before a move, to be put back after it
 *   move/         QEMU's user's, 0700: the key of a move, while it is needed
 */
#ifndef FERRY_VM_QEMU_MACHINE_H
#define FERRY_VM_QEMU_MACHINE_H

#include <pthread.h>

#include "base/process.h"
#include "qemu/migration.h"
#include "qemu/probe.h"
#include "qemu/qmp.h"
#include "vm/driver.h"

#define QEMU_CONNECTIONS_MAX 65 /* multifd's most channels, and the one beside them */

struct machine {
	const struct driver_host *host;
	struct machine_observer observer;
	struct definition *definition; /* with the versioned machine type */
	json_t *record;                /* actual.json */
	char *folder;
	char *log_path;
	struct process_id process;
	int pidfd;
	struct loop_source *pidfd_source;
	struct qmp *qmp;
	/* Its ports, held beside QEMU: if QEMU held the last descriptors, its end would take as long as the kernel takes to
	 * remove the devices. A ferryd that found the machine again holds none. */
	int nic_fds[DEFINITION_NICS_MAX];
	size_t nic_count;

	/* One move at a time; its functions are called by one thread at a time. */
	json_t *settings;    /* settings.json; NULL outside of a move */
	bool has_move_key;   /* the TLS object exists in QEMU */
	bool may_throttle;   /* the move has begun with QEMU's throttling allowed */
	bool qemu_throttles; /* by itself: we cannot, or were told to leave it to it */
	bool no_dirty_limit; /* QEMU has been asked to limit the guest's writing, and cannot */
	bool dirty_limited;  /* it does */
	unsigned int throttle_percent; /* by us (qemu_throttle.c); 0: not */
	pid_t *processors;	       /* the threads that the guest's processors run in; NULL: not asked for yet */
	size_t processor_count;
	struct throttle_watch *watches; /* one for each of them */
	unsigned int busy_percent; /* the busiest of them, before it was throttled; 0: not known */
	int64_t throttle_settled_us; /* not before then may they be throttled again */
	/* The connections that QEMU makes itself, as far as they are not held yet. */
	char *awaited_address;
	uint16_t awaited_port;
	size_t awaited_count;

	/* What QEMU used beside the guest's memory at the last close look at it; -1: there was none. Atomic. */
	int64_t other_bytes;
	bool dirty_rate_in_ms; /* the last look at how fast it writes; atomic */

	pthread_mutex_t lock; /* guards all below; never held across I/O or a callback */
	pthread_cond_t changed;
	struct machine_state state;
	bool never_ran; /* as the file */
	bool arriving;	/* its move, if there is one, brought it here: true until it leaves by another */
	/* Second descriptors of the source's stream, to count its bytes and to shut it (qemu_connection.c). */
	int connections[QEMU_CONNECTIONS_MAX];
	size_t connection_count;
};

/* ---- qemu_machine.c ---- */

/* An empty machine of a definition that it takes over. Free it with machine_free(), which ends nothing. */
struct machine *machine_new(const struct driver_host *host, struct definition *definition,
			    const struct machine_observer *observer);
void machine_free(struct machine *machine);
/* Let go of the ports that are held here. */
void machine_release_ports(struct machine *machine);
/* Connect to its monitor (fd is taken over) and watch its process. */
int machine_connect(struct machine *machine, int qmp_fd, int64_t timeout_ms, struct error **e) MUST_CHECK;
void machine_watch_process(struct machine *machine);

void machine_state(struct machine *machine, struct machine_state *ret);
bool machine_wait_change(struct machine *machine, uint64_t seen, int64_t deadline_us);
void machine_nudge(struct machine *machine);
int machine_refresh(struct machine *machine, struct error **e) MUST_CHECK;
/* Wait until one of the runs (bit MACHINE_X) or one of the moves (bit MOVE_X) holds; false at the deadline. */
bool machine_wait_for(struct machine *machine, unsigned int run_mask, unsigned int move_mask, int64_t deadline_us,
		      struct machine_state *ret);
/* Hold this descriptor of the stream too, which is taken over; and close all that are held, and wait for no more. */
void machine_hold_connection(struct machine *machine, int fd);
void machine_release_connections(struct machine *machine);
/* Forget an earlier move. */
void machine_reset_move(struct machine *machine);
/* The state after `cont` or `stop` that QEMU has answered, where no event says so. */
void machine_set_run(struct machine *machine, enum machine_run run);

#define MASK(value) (1U << (value))
#define MOVE_POSTCOPY_MASK (MASK(MOVE_POSTCOPY) | MASK(MOVE_POSTCOPY_PAUSED) | MASK(MOVE_POSTCOPY_RECOVER))
#define MOVE_ENDED_MASK (MASK(MOVE_COMPLETED) | MASK(MOVE_CANCELLED) | MASK(MOVE_FAILED))

enum move_state machine_move_state(enum qemu_migration_status status);

/* The run folder's files. */
char *machine_path(const struct machine *machine, const char *file);
/* Set or clear never-ran, in the file first. */
int machine_mark_never_ran(struct machine *machine, bool never_ran, struct error **e) MUST_CHECK;
bool machine_never_ran(struct machine *machine);
char *machine_last_words(struct machine *machine);

/* One command without interesting arguments or answer. */
int machine_command(struct machine *machine, const char *command, json_t *arguments, struct error **e) MUST_CHECK;

/* The line that each start writes into the log, so that last words are of this start only. */
#define QEMU_LOG_MARK "ferryd: starting "

/* ---- qemu_start.c ---- */

/* Start QEMU for the definition, stopped; it answers QMP when this returns. Nothing is left behind on failure. */
int qemu_machine_start(const struct driver_host *host, const struct definition *definition, bool incoming,
		       const struct machine_observer *observer, struct machine **ret, struct error **e) MUST_CHECK;
int qemu_machine_attach(const struct driver_host *host, const char *uuid, const struct machine_observer *observer,
			struct machine **ret, struct error **e) MUST_CHECK;
/* SIGKILL, wait, remove the run folder. */
int qemu_machine_end(struct machine *machine, struct error **e) MUST_CHECK;
int qemu_machine_probe(const struct driver_host *host, const struct qemu_probe **ret, struct error **e) MUST_CHECK;

/* ---- qemu_describe.c ---- */

int qemu_describe(struct machine *machine, json_t **ret, struct error **e) MUST_CHECK;
int qemu_check_incoming(const struct driver_host *host, const json_t *description, json_t *failures,
			struct error **e) MUST_CHECK;
/* [{name, size_bytes}] of the files that this definition makes QEMU put into guest memory, as they are on this host
 * now. */
json_t *qemu_firmware_list(const struct definition *definition, const struct qemu_probe *probe);
/* The guest's memory if it started on this host now. */
uint64_t qemu_memory_bytes(const struct definition *definition, const struct driver_host *host,
			   const struct qemu_probe *probe);

/* ---- qemu_memory.c ---- */

int qemu_memory_use(struct machine *machine, bool closely, uint64_t *ret_total_bytes, uint64_t *ret_used_bytes, struct error **e) MUST_CHECK;
/* Of the text of /proc/PID/smaps: what is resident of a mapping of exactly this size; 0 when there is none. */
uint64_t qemu_memory_of_mappings(const char *smaps, uint64_t memory_bytes);
int qemu_measure_dirty_rate(struct machine *machine, unsigned int for_ms, struct error **e) MUST_CHECK;
int qemu_dirty_rate(struct machine *machine, uint64_t *ret_bytes_per_s, unsigned int *ret_for_ms, struct error **e) MUST_CHECK;

/* ---- moves; what is not explained here are functions of struct vm_driver of the same names ---- */

/* ---- qemu_move.c ---- */

int qemu_move_prepare(struct machine *machine, const struct move_options *move, struct error **e) MUST_CHECK;
int qemu_move_start(struct machine *machine, const struct move_options *move, struct error **e) MUST_CHECK;
int qemu_move_sample(struct machine *machine, struct move_sample *ret, struct error **e) MUST_CHECK;
int qemu_move_set_bandwidth(struct machine *machine, uint64_t bytes_per_s, struct error **e) MUST_CHECK;
int qemu_move_continue(struct machine *machine, struct error **e) MUST_CHECK;
int qemu_move_cancel(struct machine *machine, int64_t timeout_ms, struct error **e) MUST_CHECK;
int qemu_move_restore(struct machine *machine, struct error **e) MUST_CHECK;
/* Keep the settings as they are, set those of the move and make its key. */
int qemu_move_apply_settings(struct machine *machine, const struct move_options *move, bool incoming, struct error **e) MUST_CHECK;
/* Another key, for another stream of the same move. */
int qemu_move_renew_key(struct machine *machine, const struct move_options *move, bool incoming, struct error **e) MUST_CHECK;

/* ---- qemu_connection.c ---- */

/* Give QEMU a socket as the stream of a move, which qemu_move_uri() then names. */
int qemu_give_stream(struct machine *machine, int fd, struct error **e) MUST_CHECK;
/* "tcp:198.18.0.2:49152", "tcp:[fd00::2]:49152", or that of the socket that was given. The caller frees it. */
char *qemu_move_uri(const struct move_options *move);
/* QEMU has refused to listen there: ERROR_DATA_PORTS with EADDRINUSE where the port is taken, else `problem` as it is. Takes it. */
int qemu_move_cannot_listen(const struct move_options *move, struct error *problem, struct error **e) MUST_CHECK;
/* Let QEMU send to the destination: a move, or (resume) the rest of one in post-copy. */
int qemu_connection_migrate(struct machine *machine, const struct move_options *move, bool resume, struct error **e) MUST_CHECK;
/* Take up those of QEMU's own connections that are there by now; at each look at the move. */
void qemu_connection_adopt(struct machine *machine);
/* By the kernel's count; 0 where it cannot be told. */
uint64_t qemu_connection_wire_bytes(struct machine *machine);

/* ---- qemu_arrive.c ---- */

int qemu_start_incoming(const struct driver_host *host, const struct definition *definition,
			const struct move_options *move, const struct machine_observer *observer, struct machine **ret,
			struct error **e) MUST_CHECK;
int qemu_wait_loaded(struct machine *machine, int64_t deadline_us, struct error **e) MUST_CHECK;
int qemu_take_over(struct machine *machine, bool paused, bool *ret_ran, struct error **e) MUST_CHECK;
int qemu_ports_shut(struct machine *machine, struct error **e) MUST_CHECK;
int qemu_ports_open(struct machine *machine, struct error **e) MUST_CHECK;

/* ---- qemu_postcopy.c ---- */

int qemu_move_start_postcopy(struct machine *machine, struct error **e) MUST_CHECK;
int qemu_move_listen_again(struct machine *machine, const struct move_options *move, struct error **e) MUST_CHECK;
int qemu_move_resume(struct machine *machine, const struct move_options *move, struct error **e) MUST_CHECK;

/* ---- qemu_throttle.c ---- */

int qemu_move_set_limits(struct machine *machine, const struct move_limits *limits, struct error **e) MUST_CHECK;
/* The limits as QEMU's parameters. */
void qemu_throttle_add_limits(json_t *parameters, const struct move_limits *limits, bool may_throttle);
/* Let the guest's processors go. */
void qemu_throttle_release(struct machine *machine);
/* To be called every now and then: sees how busy the guest is, and to it that the throttle does not stop it. */
void qemu_throttle_watch(struct machine *machine);
unsigned int qemu_throttle_slice_ms(const struct machine *machine);

#endif
