/* SPDX-License-Identifier: Apache-2.0 */
/*
 * An arriving VM at the destination, and what can be done with it. Between destination.c (the messages), resolve.c (a person's
 * word), arrival.c and arrival_watch.c only. All of it is called with the migration's `work` mutex held; the watcher's own
 * thread takes it by trying.
 */
#ifndef FERRY_MIGRATION_ARRIVAL_H
#define FERRY_MIGRATION_ARRIVAL_H

#include "migration/checks.h"
#include "migration/data_port.h"
#include "migration/host.h"
#include "migration/offer.h"

/* Guarded by migration->work. */
struct destination_arrival {
	struct data_port port;
	struct loop_source *timer; /* drops it if prepare does not follow the check */
	json_t *checked;	   /* the offer that was looked at: no other can be prepared */
	bool checks_failed;	   /* nor can this one */
	struct checks_file files[DEFINITION_DISKS_MAX];
	struct offer offer;
	struct arrival_relay *relay; /* NULL: memory does not come by the relay */
	bool new_here;                     /* the VM was unknown before: a refusal forgets it again */
	struct definition *old_definition; /* what was kept of an earlier stay here; a refusal brings it back */
	char *old_owner;		   /* and what was known of the owner: NULL when a restart has lost it */
	uint64_t old_epoch;
	int64_t heard_us;                  /* of the source, last */
	bool watched;
	bool watch_ends; /* atomic: read without `work` */
	pthread_t watcher;
};

/* Accepts NULL. */
void arrival_free(struct destination_arrival *arrival);
/* What was only checked is forgotten, and its port let go. */
void arrival_forget_checked(struct migration_host *host, struct migration *migration);

/* Look after a prepared machine: if it ends, or nothing is heard of the source for too long and it does not answer a
 * question either, refuse. */
void arrival_watch(struct migration_host *host, struct migration *migration);
/* End that, and wait for it; before the machine is ended or lives on as the VM's. Also by the watcher itself. */
void arrival_unwatch(struct migration_host *host, struct migration *migration);
/* What the source says of this migration when nothing was heard of it for a while. */
enum source_word {
	SOURCE_WORKS,	  /* it will go on with it */
	SOURCE_GAVE_UP,	  /* it has the VM */
	SOURCE_GAVE_AWAY, /* it has let go of the VM, which is ours */
	SOURCE_SILENT,	  /* no answer, or one that proves nothing */
};
/* Ask it; the caller does not hold `work`. An error with SOURCE_SILENT only. */
enum source_word arrival_ask_source(struct migration_host *host, struct migration *migration, struct error **e) MUST_CHECK;
/* How often, as long as the answer changes nothing. */
int64_t arrival_ask_period_us(const struct migration_host *host);
/* To refused (from prepared, from none, or, with proof that the guest never ran, from taken): the machine is ended
 * first, then it is said durably, then the VM is let go. */
int arrival_refuse(struct migration_host *host, struct migration *migration, enum error_code code, const char *why,
		   struct error **e) MUST_CHECK;
/* prepared -> taken -> running on the word of a person, or the news of it from the source. Whether the guest ran on at the
 * source after it had been copied, and changed its disks, nobody here can know: it is left paused, and that person says what
 * is to become of it. The VM's epoch is one more than was offered: so a later ferryd knows that there is no way back. */
int arrival_take_settled(struct migration_host *host, struct migration *migration, struct error **e) MUST_CHECK;
/* The same where it was refused here and the answer got lost: the refusal stands, and the VM, which the source has given up, is
 * this host's, stopped; without a definition if it was new here. Where it runs here already, only its epoch follows; where it has
 * moved on, nothing does. */
int arrival_inherit(struct migration_host *host, struct migration *migration, uint64_t epoch, struct error **e) MUST_CHECK;
/* From taken or running to refused, on the word of a person who has settled that the source owns the VM at this epoch.
 * ERROR_PEER_STALE when the VM has moved on since. */
int arrival_cede(struct migration_host *host, struct migration *migration, uint64_t epoch, struct error **e) MUST_CHECK;
/* prepared -> taken -> running (or refused): waits until everything has been loaded. ERROR_TIMEOUT decides nothing. */
int arrival_take(struct migration_host *host, struct migration *migration, struct error **e) MUST_CHECK;
/* taken -> running (or refused). Also after a restart in between. */
int arrival_take_over(struct migration_host *host, struct migration *migration, struct error **e) MUST_CHECK;
/* The VM is ours and runs: give up what was only for the arrival, let the job go; at once, or by a thread of its own so
 * that nobody waits for it. */
void arrival_settle(struct migration_host *host, struct migration *migration);
void arrival_settle_soon(struct migration_host *host, struct migration *migration);
/* Whether all of the guest is here: false only in post-copy. */
bool arrival_is_whole(struct migration_host *host, const struct migration *migration);
/* Whether one of the two QEMUs ended before that, and the guest with it. */
bool arrival_is_lost(struct migration_host *host, struct migration *migration);
/* The same as arrival_settle(), or, `soon`, as arrival_settle_soon(), once all of it is. */
void arrival_settle_when_whole(struct migration_host *host, struct migration *migration, bool soon);
/* In post-copy whose stream broke: listen for another one, at *ret_port, which is untouched when there is no need to. */
int arrival_mend(struct migration_host *host, struct migration *migration, const char *tls_key_hex, uint16_t *ret_port,
		 struct error **e) MUST_CHECK;
/* Set the last status and keep the record. */
void arrival_end(struct migration_host *host, struct migration *migration, enum migration_status status);

/* ---- arrival_relay.c ---- */

/* From now on the source may connect. */
struct arrival_relay *arrival_relay_new(struct relay_gate *gate, const char *source);
void arrival_relay_free(struct arrival_relay *relay);
/* {port, ticket}, for the source. */
json_t *arrival_relay_view(const struct arrival_relay *relay);
/* The end of the relay here begins, for a VM of this owner; the socket for QEMU is the caller's. */
int arrival_relay_open(struct arrival_relay *relay, const struct migration_host *host, const char *owner, int *ret_fd, struct error **e)
	MUST_CHECK;

#endif
