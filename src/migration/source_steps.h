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
	char tls_key_hex[65]; /* "" when the copy goes in plain text */
	bool news_pending; /* the destination has not heard how it has ended */
	bool destination_asked;    /* to check: it may have reserved a port for us */
	bool destination_prepared; /* it may have started a machine for us */
	bool settling;		   /* in source_settle(): what a person settles meanwhile cuts the question short */
	bool settled_there;	   /* the last answer said that a person has settled it there */
	int64_t round_trip_us;
	struct copy_result copied;
};

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
int source_fail_checks(struct source *s, json_t *failures, struct error **e);

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
/* After the end, without the VM's job: go on telling it until it has heard. */
void source_retry_news(struct source *s);
/* The end: set the status, keep the record. */
void source_end(struct source *s, enum migration_status status);

#endif
