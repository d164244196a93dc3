/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Following one migration to its end by long polls, through restarts of ferryd, with Ctrl-C.
 *
 * Theory of operation: each answer carries a change number; the next request waits at the daemon until it differs, so that
 * news and the end arrive when they happen. When ferryd goes away it is asked again for up to a minute: a restart of it
 * does not end a migration. The first signal asks ferryd to abort and goes on following, because the end of the rollback
 * matters; a second one leaves.
 */
#ifndef FERRY_CLI_WATCH_H
#define FERRY_CLI_WATCH_H

#include "cli/client.h"
#include "cli/progress.h"

#define WATCH_PATIENCE_MS 60000

enum watch_end {
	WATCH_ENDED,
	WATCH_IN_DOUBT, /* or recovering, if asked to stop there */
	WATCH_LEFT,	/* by a signal; the migration goes on */
	WATCH_LOST,	/* nobody answered for WATCH_PATIENCE_MS */
	WATCH_ERROR,	/* ferryd answered an error */
};

struct watch {
	struct cli *cli;
	struct client *client;
	struct progress *progress;
	json_t *migration;	 /* owned: as last seen; NULL before the first answer */
	bool abort_on_interrupt; /* the first signal asks for an abort; otherwise it leaves */
	bool abort_wanted;	 /* ask for it now, and until ferryd has answered */
	bool stop_in_doubt;
	int64_t in_doubt_until_us; /* stop_in_doubt holds from then on; 0: at once */
	int interrupts_seen;
	int early_count; /* answers in a row that had no news and yet did not wait */
	int64_t lost_us; /* since when nobody answers; 0: ferryd answered the last request */
};

/* Fill with the client of cli. Signals are counted from here on. */
int watch_open(struct watch *watch, struct cli *cli, struct error **e) MUST_CHECK;
void watch_done(struct watch *watch);

/* A request that is asked again while nobody answers, for WATCH_PATIENCE_MS. Harmless requests only.
 * ERROR_CANCELLED when a signal came. */
int watch_request(struct watch *watch, const char *method, const char *path, int64_t timeout_ms, json_t **ret,
		  struct error **e) MUST_CHECK;
/* Follow the migration `id`, or the one in watch->migration for NULL. *e is set for WATCH_LOST and WATCH_ERROR. */
enum watch_end watch_follow(struct watch *watch, const char *id, struct error **e);

/* Follow and tell how it ended: report and exit status. */
int watch_to_end(struct watch *watch, const char *id);

#endif
