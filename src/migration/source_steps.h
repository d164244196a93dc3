/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The stages of the source's worker, and what it has in its hands. Between source.c (the worker, in straight lines),
 * source_check.c (begin and check) and source_outcome.c (finish, confirm, and the way back) only. All of it runs on the
 * migration's one worker thread.
 */
#ifndef FERRY_MIGRATION_SOURCE_STEPS_H
#define FERRY_MIGRATION_SOURCE_STEPS_H

#include "migration/copy.h"
#include "migration/host.h"
#include "migration/offer.h"

/* What one worker has in its hands. */
struct source {
	struct migration_host *host;
	struct migration *migration;
	const struct vm_driver *driver;
	struct machine *machine;
	struct http_client *peer;
	struct offer offer;
	json_t *description;
	char data_address[64]; /* the destination's */
	uint16_t data_port;
	char probe_token[RANDOM_ID_SIZE];
	struct source_relay *relay; /* NULL: the copy goes from QEMU to QEMU */
	char tls_key_hex[OFFER_KEY_HEX_SIZE]; /* "" when the copy goes in plain text */
	bool news_pending; /* the destination has not heard how it has ended */
	bool remains;      /* the VM is the destination's, and our QEMU could not be ended */
	bool destination_asked;    /* to check: it may have reserved a port for us */
	bool destination_prepared; /* it may have started a machine for us */
	bool settling;		   /* in source_settle(): what a person settles meanwhile cuts the question short */
	bool settled_there;	   /* the last answer said that a person has settled it there */
	bool done_there;	   /* the last answer said that the destination needs nothing of us any more */
	bool lost_there;	   /* the last answer said that its QEMU ended before it had everything */
	bool mend;		   /* the next question is to make it listen again, for a broken post-copy */
	uint16_t mend_port;	   /* where it does, by the last answer; 0: it does not */
	int64_t running_us;	   /* when it first said that the guest runs there */
	int64_t round_trip_us;
	struct copy_result copied;
	struct forecast forecast;
};

/* Whether it may come to post-copy. A guest that is paused, or is to be, has no use for it. */
bool source_may_postcopy(const struct source *s);
/* An error when somebody has asked for an abort. */
int source_stop_requested(const struct source *s, struct error **e) MUST_CHECK;
/* http_client_set_interrupt(): aborted or stopping; and only stopping, for what must be answered although somebody
 * would like to abort. */
bool source_interrupted(void *user);
bool source_stopping(void *user);
/* Hand on the error of an interrupted request: because of an abort, or because ferryd is stopping, which cancels
 * nothing. */
int source_interrupted_why(const struct source *s, struct error *problem, struct error **e);

/* Begin and check: describe the VM, run both sides' checks. Returns 0 with an empty list when nothing speaks against
 * it. */
int source_check(struct source *s, json_t *failures, struct error **e) MUST_CHECK;
/* Turn a list of failures into the migration's end. Returns -1. */
/* Connect to the port that the destination has reserved for its QEMU, as long as its ferryd answers there: what is then sent is
 * thrown away (data_port.h). ERROR_DATA_UNREACHABLE. */
int source_connect_data_port(const struct source *s, int *ret_fd, struct error **e) MUST_CHECK;
/* The checks of both sides, without a migration; then, if all were passed and `then` is not NULL, that, while the destination keeps
 * what it has reserved. `request` is stolen. */
int source_rehearse(struct migration_host *host, const char *vm_name, struct migration_request *request,
		    void (*then)(struct source *s, void *user), void *user, json_t **ret_failures, struct error **e) MUST_CHECK;
int source_fail_checks(struct source *s, json_t *failures, struct error **e);

/* What became of a question to the destination. */
enum finish_answer {
	FINISH_RUNNING,
	FINISH_REFUSED,
	FINISH_NO_ANSWER,
	/* A person has settled it meanwhile. */
	FINISH_RESOLVED_HERE,
	FINISH_RESOLVED_THERE,
};
/* Ask the destination to take the VM (or to refuse it), once; both decide durably there and may be repeated. */
enum finish_answer source_ask_outcome(struct source *s, enum peer_message asked, int64_t timeout_ms, struct error **e);
/* In post-copy, once the guest runs there: serve what it needs, mend the stream when it breaks, until neither side needs the
 * other. False when ferryd is stopping. */
bool source_serve(struct source *s);

/* From "our QEMU has completed" to the end: repeat the question (finish, or refuse where that is all that may still
 * be asked) until the destination has decided, then release the VM or take it back. */
void source_settle(struct source *s, enum peer_message question);
/* It runs at the destination: release ours. */
int source_confirm(struct source *s, struct error **e) MUST_CHECK;
/* The migration failed with `why` while the VM is ours. */
void source_roll_back(struct source *s, const struct error *why);
/* Tell the destination that it must not take the VM (or can forget a check). */
void source_send_refuse(struct source *s);
/* The destination must hear how it has ended: until then there is something to clean up. */
void source_owe_news(struct source *s);
/* After the end, without the VM's job: until nothing is pending any more, or ferryd stops. */
void source_await_cleanup(struct source *s);
/* The end: set the status, keep the record. */
void source_end(struct source *s, enum migration_status status);

/* ---- source_relay.c ---- */

/* Connect to the destination's gate. On failure, too, s->relay is to be freed. */
int source_relay_reach(struct source *s, uint16_t port, const char *ticket, struct error **e) MUST_CHECK;
/* The end of the relay here begins; the socket for QEMU is the caller's. */
int source_relay_open(struct source *s, int *ret_fd, struct error **e) MUST_CHECK;
void source_relay_free(struct source *s);

#endif
