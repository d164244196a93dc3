/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a migration uses of the host that it runs on. Filled in by ferryd at its start; then only `workers` changes.
 * Workers are detached threads that are counted: when ferryd stops, they are told and waited for.
 */
#ifndef FERRY_MIGRATION_HOST_H
#define FERRY_MIGRATION_HOST_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "migration/journal.h"
#include "migration/peers.h"
#include "migration/rates.h"
#include "net/loop.h"
#include "relay/gate.h"
#include "relay/page_supply.h"
#include "vm/inventory.h"

/* Time limits, from the configuration. */
struct migration_times {
	int64_t finish_timeout_ms; /* how long the destination may take to load and answer, one try */
	int64_t silence_limit_ms;  /* a prepared destination that hears nothing of the source for this long asks, then refuses */
	int64_t check_timeout_ms, prepare_timeout_ms, refuse_timeout_ms, outcome_timeout_ms; /* how long each may go unanswered */
	int64_t check_lifetime_ms; /* how long a checked destination keeps its port */
	int64_t retry_limit_ms;	   /* the longest wait before what was not answered is said again */
};

struct migration_host {
	const char *name;
	struct loop *loop;
	struct inventory *inventory;
	struct journal *journal;
	struct migration_list *migrations;
	struct peers *peers;
	struct rates *rates; /* NULL: nothing is known, and nothing is remembered */
	const char *data_address;  /* where this host's QEMUs listen for migrations; "": on all addresses */
	uint16_t data_port_min, data_port_max;
	struct relay_gate *gate;   /* where memory comes by the relay; NULL: this host has no certificate */
	const struct tls_files *files;
	struct page_supply *supply; /* what this host can supply of guests that come by the relay; NULL: nothing */
	uint64_t copies_bytes;	    /* memory a VM that leaves by the relay, for copies of its pages */
	const char *trusted;	   /* networks on which plain text is allowed; "" none */
	bool refuse_extra_args;	   /* of VMs that come from other hosts */
	struct migration_times times;
	int64_t sampling_ms;	   /* how often each running guest is looked at, at most (sampling.h); 0: never */

	struct migration_workers {
		pthread_mutex_t mutex;
		pthread_cond_t changed;
		unsigned int count;
		bool stopping;
	} workers;
};

void migration_host_init(struct migration_host *host);
/* Run main(argument) in a counted thread, which ends with migration_host_worker_done(). Detached, unless the caller wants
 * *ret_thread, which it then joins. */
void migration_host_start_worker(struct migration_host *host, void *(*main)(void *argument), void *argument,
				 pthread_t *ret_thread);
void migration_host_worker_done(struct migration_host *host);
bool migration_host_stopping(struct migration_host *host);
/* Wait at most timeout_ms; true at once when ferryd is stopping. */
bool migration_host_wait_stopping(struct migration_host *host, int64_t timeout_ms);
/* Tell all workers to stop where they are and wait until they have. What is durable is taken up again at the next start. */
void migration_host_stop_workers(struct migration_host *host);

/* The version of the messages between hosts; a peer that does not know it is refused before anything is started. */
#define MIGRATION_PROTOCOL 1

#endif
