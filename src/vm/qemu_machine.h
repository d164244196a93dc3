/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A machine of the QEMU driver from the inside: what the driver's files share. Nobody else includes this; the contract
 * to the outside is vm/driver.h.
 *
 *   driver_qemu.c    the table of functions, the daily verbs
 *   qemu_start.c     run folder, sockets, ports, process: from a definition to a QEMU that answers; and finding it
 * again qemu_machine.c   its state, kept up to date from QMP events and the pidfd (this header) qemu_move.c      both
 * sides of a migration qemu_describe.c  what it is, and whether this host could run what another describes
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

	pthread_mutex_t lock; /* guards all below; never held across I/O or a callback */
	pthread_cond_t changed;
	struct machine_state state;
	bool never_ran; /* as the file */
	int move_connection; /* a second descriptor of the source's stream, to count its bytes; -1: none */
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
/* Hold this descriptor of the stream (-1: none) instead of the one held so far, which is closed. */
void machine_set_connection(struct machine *machine, int fd);
/* Forget an earlier move. */
void machine_reset_move(struct machine *machine);
/* The state after `cont` or `stop` that QEMU has answered, where no event says so. */
void machine_set_run(struct machine *machine, enum machine_run run);

#define MASK(value) (1U << (value))
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

/* ---- qemu_move.c: the functions of struct vm_driver of the same names ---- */

int qemu_start_incoming(const struct driver_host *host, const struct definition *definition,
			const struct move_options *move, const struct machine_observer *observer, struct machine **ret,
			struct error **e) MUST_CHECK;
int qemu_wait_loaded(struct machine *machine, int64_t deadline_us, struct error **e) MUST_CHECK;
int qemu_take_over(struct machine *machine, bool paused, bool *ret_ran, struct error **e) MUST_CHECK;
int qemu_move_prepare(struct machine *machine, const struct move_options *move, struct error **e) MUST_CHECK;
int qemu_move_start(struct machine *machine, const struct move_options *move, struct error **e) MUST_CHECK;
int qemu_move_sample(struct machine *machine, struct move_sample *ret, struct error **e) MUST_CHECK;
int qemu_move_set_downtime_limit(struct machine *machine, unsigned int limit_ms, struct error **e) MUST_CHECK;
int qemu_move_set_bandwidth(struct machine *machine, uint64_t bytes_per_s, struct error **e) MUST_CHECK;
int qemu_move_continue(struct machine *machine, struct error **e) MUST_CHECK;
int qemu_move_cancel(struct machine *machine, int64_t timeout_ms, struct error **e) MUST_CHECK;
int qemu_move_restore(struct machine *machine, struct error **e) MUST_CHECK;
int qemu_ports_shut(struct machine *machine, struct error **e) MUST_CHECK;
int qemu_ports_open(struct machine *machine, struct error **e) MUST_CHECK;

#endif
