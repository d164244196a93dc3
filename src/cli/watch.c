/* SPDX-License-Identifier: Apache-2.0 */
/* Following one migration to its end; see watch.h. */
#include "cli/watch.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/xalloc.h"
#include "cli/interrupt.h"
#include "cli/output.h"
#include "cli/report.h"

/* How long the daemon may hold an answer back: as long as the live line may stand still. */
#define WATCH_WAIT_LIVE_MS 500
#define WATCH_WAIT_MS 20000
/* On top of it, for an answer to arrive. */
#define WATCH_ANSWER_MS 10000

int watch_open(struct watch *watch, struct cli *cli, struct error **e)
{
	*watch = (struct watch){.cli = cli};
	if (client_open(cli, &watch->client, e) < 0)
		return -1;
	interrupt_catch();
	client_set_interrupts(0);
	watch->progress = progress_new(cli->json);
	return 0;
}

void watch_done(struct watch *watch)
{
	progress_free(watch->progress);
	client_free(watch->client);
	json_decref(watch->migration);
	*watch = (struct watch){0};
}

/* Between two attempts to reach a ferryd that is away. A signal ends it early. */
static void watch_pause(int attempt)
{
	if (client_interrupted())
		return;
	long wait_ms = 10L << (attempt < 6 ? attempt : 6);
	struct timespec wait = {.tv_sec = wait_ms / 1000, .tv_nsec = wait_ms % 1000 * 1000000};
	ppoll(NULL, 0, &wait, interrupt_waiting_mask());
}

/* Nobody answered: whether it has been so for too long. */
static bool watch_out_of_patience(struct watch *watch)
{
	if (watch->lost_us == 0)
		watch->lost_us = clock_monotonic_us();
	return clock_monotonic_us() - watch->lost_us >= (int64_t)WATCH_PATIENCE_MS * 1000;
}

int watch_request(struct watch *watch, const char *method, const char *path, int64_t timeout_ms, json_t **ret, struct error **e)
{
	bool told = false;
	for (int attempt = 0;; attempt++) {
		cleanup_error struct error *failure = NULL;
		int result = client_request(watch->client, method, path, NULL, timeout_ms, ret, &failure);
		bool answered = result == 0 || client_answered(watch->client);
		/* A daemon that is stopping answers, but its successor will know better. */
		bool stopping = result < 0 && answered && failure->code == ERROR_SHUTTING_DOWN;
		if (answered && !stopping) {
			watch->lost_us = 0;
			if (told)
				progress_note(watch->progress, "ferryd answers again");
			return result == 0 ? 0 : error_move(e, take_ptr(failure));
		}
		if (client_interrupted())
			return error_set(e, ERROR_CANCELLED, "interrupted");
		if (watch_out_of_patience(watch))
			return error_move(e, take_ptr(failure));
		if (!told && attempt >= 2) {
			progress_note(watch->progress, "ferryd does not answer; asking again for up to %d s", WATCH_PATIENCE_MS / 1000);
			told = true;
		}
		watch_pause(attempt);
	}
}

/* Replace what is known of the migration. */
static void watch_take(struct watch *watch, json_t *migration)
{
	json_decref(watch->migration);
	watch->migration = migration;
	progress_show(watch->progress, migration);
}

/* A signal came: false to leave. */
static bool watch_interrupted(struct watch *watch)
{
	if (!watch->abort_on_interrupt || watch->interrupts_seen > 0)
		return false;
	watch->interrupts_seen = interrupt_count();
	client_set_interrupts(watch->interrupts_seen);
	watch->abort_wanted = true;
	progress_note(watch->progress, "Cancelling; waiting until the VM is settled (once more to leave at once)");
	return true;
}

static int watch_abort(struct watch *watch, const char *id, struct error **e)
{
	cleanup_free char *path = client_path("migrations", id, "/abort");
	cleanup_json json_t *answer = NULL;
	cleanup_error struct error *failure = NULL;
	if (watch_request(watch, "POST", path, CLIENT_TIMEOUT_MS, &answer, &failure) == 0) {
		watch->abort_wanted = false;
		return 0;
	}
	if (!client_answered(watch->client) || failure->code == ERROR_CANCELLED)
		return error_move(e, take_ptr(failure));
	watch->abort_wanted = false;
	if (failure->code == ERROR_MIGRATION_ENDED || failure->code == ERROR_MIGRATION_TOO_LATE) {
		progress_note(watch->progress, "It can no longer be cancelled: %s", failure->message);
		return 0;
	}
	return error_move(e, take_ptr(failure));
}

static int watch_poll(struct watch *watch, const char *id, int64_t seen, struct error **e)
{
	int wait_ms = progress_is_live(watch->progress) ? WATCH_WAIT_LIVE_MS : WATCH_WAIT_MS;
	int64_t left_ms = (watch->in_doubt_until_us - clock_monotonic_us()) / 1000;
	if (left_ms >= 0 && left_ms < wait_ms)
		wait_ms = (int)left_ms + 1;
	/* A daemon that has restarted counts anew, so what was seen means nothing to it; it is left out after a break. */
	char rest[64] = "";
	if (seen >= 0)
		snprintf(rest, sizeof(rest), "?seen=%lld&wait_ms=%d", (long long)seen, wait_ms);
	cleanup_free char *path = client_path("migrations", id, rest);
	json_t *migration = NULL;
	int64_t began_us = clock_monotonic_us();
	int result = seen < 0 ? watch_request(watch, "GET", path, WATCH_ANSWER_MS, &migration, e)
			      : client_request(watch->client, "GET", path, NULL, wait_ms + WATCH_ANSWER_MS, &migration, e);
	if (result < 0)
		return -1;
	watch->lost_us = 0;
	watch_take(watch, migration);
	/* A ferryd that is stopping holds nothing back; do not ask it as fast as it answers. */
	bool early = output_integer(migration, "change") == seen && clock_monotonic_us() - began_us < wait_ms * 1000LL / 2;
	watch->early_count = early ? watch->early_count + 1 : 0;
	if (early)
		watch_pause(watch->early_count);
	return 0;
}

static bool watch_is(const struct watch *watch, const char *status)
{
	return watch->migration && strcmp(output_string(watch->migration, "status"), status) == 0;
}

/* Whether it waits for what may take for ever, and we shall not. */
static bool watch_stops_in_doubt(const struct watch *watch)
{
	return watch->stop_in_doubt && (watch_is(watch, "in-doubt") || watch_is(watch, "recovering")) &&
	       clock_monotonic_us() >= watch->in_doubt_until_us;
}

enum watch_end watch_follow(struct watch *watch, const char *id, struct error **e)
{
	int64_t seen = watch->migration ? output_integer(watch->migration, "change") : -1;
	if (watch->migration)
		progress_show(watch->progress, watch->migration);
	client_set_interrupts(watch->interrupts_seen);
	for (;;) {
		if (watch->migration && json_is_true(json_object_get(watch->migration, "ended")))
			return WATCH_ENDED;
		if (watch_stops_in_doubt(watch))
			return WATCH_IN_DOUBT;
		if (client_interrupted() && !watch_interrupted(watch))
			return WATCH_LEFT;
		/* A shortened id may fit another migration, too, later on. */
		cleanup_free char *own_id = xstrdup(watch->migration ? output_string(watch->migration, "id") : id);
		cleanup_error struct error *failure = NULL;
		int result = watch->abort_wanted ? watch_abort(watch, own_id, &failure) : watch_poll(watch, own_id, seen, &failure);
		if (result == 0) {
			seen = watch->migration ? output_integer(watch->migration, "change") : -1;
		} else if (failure->code == ERROR_CANCELLED && client_interrupted()) {
			continue;
		} else if (!client_answered(watch->client) || failure->code == ERROR_SHUTTING_DOWN) {
			if (watch_out_of_patience(watch)) {
				error_move(e, take_ptr(failure));
				return WATCH_LOST;
			}
			seen = -1;
		} else {
			error_move(e, take_ptr(failure));
			return WATCH_ERROR;
		}
	}
}

int watch_to_end(struct watch *watch, const char *id)
{
	cleanup_error struct error *e = NULL;
	enum watch_end end = watch_follow(watch, id, &e);
	progress_end(watch->progress);
	switch (end) {
	case WATCH_ENDED:
	case WATCH_IN_DOUBT:
		return report_end(watch->cli, watch->migration);
	case WATCH_LEFT:
		return report_left(watch->cli, watch->migration, id, watch->interrupts_seen > 0);
	case WATCH_LOST:
		return report_lost(watch->cli, watch->migration, id, e);
	case WATCH_ERROR:
		break;
	}
	return cli_fail(watch->cli, e);
}
