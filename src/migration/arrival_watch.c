/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The watch over a prepared machine; see arrival.h. One thread an arrival: it refuses when QEMU ends, and asks the source when
 * nothing was heard of it for too long. What is done then is in watch_decide().
 */
#include "migration/arrival.h"

#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/json.h"
#include "base/log.h"
#include "base/xalloc.h"

#define ASK_SOURCE_PERIOD_MAX_US 2000000 /* while it stays silent */
#define WATCH_PERIOD_US 500000
#define REFUSE_AGAIN_MS 1000 /* when the journal could not be written */

/* ---- asking the source ---- */

/* It does not know the migration. That means something only if its journal is the one that it began it with. */
static enum source_word source_knows_nothing(const struct migration_host *host, struct http_client *client,
					     const struct migration *migration, struct error **e)
{
	cleanup_json json_t *answer = NULL;
	const char *journal = NULL;
	if (http_client_request(client, "GET", "/v1/peer/hello", NULL, host->times.outcome_timeout_ms, &answer, e) < 0 ||
	    json_get_string(answer, "journal", &journal, e) < 0)
		return SOURCE_SILENT;
	if (strcmp(journal, migration->peer_journal_id) == 0)
		return SOURCE_GAVE_UP;
	error_set(e, ERROR_MIGRATION_IN_DOUBT, "%s has lost the journal that it began the migration with", migration->source);
	return SOURCE_SILENT;
}

enum source_word arrival_ask_source(struct migration_host *host, struct migration *migration, struct error **e)
{
	cleanup_json json_t *answer = NULL;
	struct http_client *client = NULL;
	if (peers_take(host->peers, migration->source, &client, e) < 0)
		return SOURCE_SILENT;
	struct error *problem = NULL;
	enum source_word word = SOURCE_SILENT;
	const char *state = NULL;
	const struct peer_question question = {PEER_OUTCOME, migration->source, migration->id, NULL, host->times.outcome_timeout_ms};
	if (peers_ask(client, &question, &answer, NULL, &problem) == 0 &&
	    json_get_string(answer, "state", &state, &problem) == 0)
		word = strcmp(state, handover_state_name(HANDOVER_RELEASED)) == 0 ? SOURCE_GAVE_AWAY
		       : json_is_true(json_object_get(answer, "ended"))		  ? SOURCE_GAVE_UP
										  : SOURCE_WORKS;
	else if (problem->code == ERROR_MIGRATION_NOT_FOUND) {
		error_free(take_ptr(problem));
		word = source_knows_nothing(host, client, migration, &problem);
	}
	bool broken = problem && !http_client_answered(client);
	peers_give_back(host->peers, migration->source, client, broken);
	if (problem)
		error_move(e, problem);
	return word;
}

int64_t arrival_ask_period_us(const struct migration_host *host)
{
	int64_t limit_us = host->times.silence_limit_ms * 1000;
	return limit_us < ASK_SOURCE_PERIOD_MAX_US ? limit_us : ASK_SOURCE_PERIOD_MAX_US;
}

/* ---- the watcher ---- */

struct watch {
	struct migration_host *host;
	struct migration *migration;
	enum error_code refusal_code; /* what is to be refused with, when that has failed */
	char *refusal;
};

/* Refuse, `work` held. The machine may be gone after this although the refusal could not be recorded (a full disk): then the
 * watcher tries again, see watch_main(). */
static void watch_refuse(struct watch *watch, enum error_code code, const char *why)
{
	cleanup_error struct error *e = NULL;
	/* Nobody waits for this thread from here on, so that it may wait for `work` when it tries again. */
	arrival_unwatch(watch->host, watch->migration);
	if (arrival_refuse(watch->host, watch->migration, code, why, &e) == 0)
		return;
	log_failure(LOG_LEVEL_ERROR, "refusing", e);
	watch->refusal_code = code;
	free(watch->refusal);
	watch->refusal = xstrdup(why);
}

/* One look, `work` held. Returns false when there is nothing to watch any more. */
static bool watch_look(struct watch *watch, const struct machine_state *state)
{
	struct migration *migration = watch->migration;
	if (migration->handover != HANDOVER_PREPARED)
		return false;
	if (state->run != MACHINE_GONE)
		return true;
	cleanup_free char *words = inventory_driver(watch->host->inventory)->last_words(migration->vm->machine);
	cleanup_free char *why = xasprintf("the destination's QEMU ended: %s", words);
	watch_refuse(watch, ERROR_QEMU_GONE, why);
	return false;
}

/* `work` is held and it is still only prepared. Returns whether there still is something to watch. */
static bool watch_decide(struct watch *watch, enum source_word word, bool loaded, const struct error *silence)
{
	struct migration_host *host = watch->host;
	struct migration *migration = watch->migration;
	cleanup_error struct error *e = NULL;
	int r = 0;
	if (word == SOURCE_WORKS || (word == SOURCE_GAVE_AWAY && !loaded)) {
		migration->arrival->heard_us = clock_monotonic_us();
		if (migration_in_doubt(migration)) {
			migration_clear_doubt(migration);
			migration_set_status(migration, MIGRATION_COPYING);
		}
		return true;
	}
	if (word == SOURCE_SILENT && loaded) {
		/* What is here may be all that is left of the guest, and the source may be about to ask us to run it. */
		migration_set_in_doubt(migration, migration->source, "whether it still has the VM", silence);
		return true;
	}
	if (word == SOURCE_GAVE_AWAY) {
		r = arrival_take_settled(host, migration, &e);
		if (r < 0)
			log_failure(LOG_LEVEL_ERROR, "taking over", e);
		return migration->handover == HANDOVER_PREPARED && migration->arrival && migration->arrival->watched;
	}
	watch_refuse(watch, word == SOURCE_GAVE_UP ? ERROR_CANCELLED : ERROR_PEER_UNREACHABLE,
		     word == SOURCE_GAVE_UP ? "the source has given the migration up" : "the source does not answer");
	return false;
}

/* All that the guest needs in order to run, at least. */
static bool is_loaded(const struct machine_state *state)
{
	return state->run == MACHINE_INCOMING && (state->move == MOVE_COMPLETED || move_in_postcopy(state->move));
}

/* Nothing was heard for too long: ask, without holding `work`, and do what follows from the answer, or the silence. */
static bool watch_silence(struct watch *watch, struct machine *machine)
{
	struct migration *migration = watch->migration;
	const struct vm_driver *driver = inventory_driver(watch->host->inventory);
	struct machine_state state;
	cleanup_error struct error *silence = NULL, *e = NULL;
	enum source_word word = arrival_ask_source(watch->host, migration, &silence);
	driver->state(machine, &state);
	/* It may have got there while this host, or this ferryd, stood still, and the word of it is still to be read. In post-copy
	 * the source's QEMU lets the guest run no more, so that to refuse it then is to end it. */
	if (word != SOURCE_WORKS && !is_loaded(&state)) {
		if (driver->refresh(machine, &e) < 0) {
			log_failure(LOG_LEVEL_WARNING, "how much has arrived is not known; looking again", e);
			return true;
		}
		driver->state(machine, &state);
	}
	const bool loaded = is_loaded(&state);
	if (pthread_mutex_trylock(&migration->work) != 0)
		return true; /* a message of the source is being answered just now */
	bool go_on = migration->handover == HANDOVER_PREPARED && watch_decide(watch, word, loaded, silence);
	pthread_mutex_unlock(&migration->work);
	return go_on;
}

static void *watch_main(void *user)
{
	struct watch *watch = user;
	struct migration_host *host = watch->host;
	struct migration *migration = watch->migration;
	struct destination_arrival *arrival =
		migration->arrival; /* lives as long as the watch does, see arrival_unwatch() */
	const struct vm_driver *driver = inventory_driver(host->inventory);
	struct machine *machine = migration->vm->machine;
	int64_t next_question_us = 0;
	log_context_set(migration->id, migration->vm_name);
	for (;;) {
		struct machine_state state;
		driver->state(machine, &state);
		if (__atomic_load_n(&arrival->watch_ends, __ATOMIC_ACQUIRE) || migration_host_stopping(host))
			break;
		if (pthread_mutex_trylock(&migration->work) == 0) {
			int64_t silent_ms = (clock_monotonic_us() - arrival->heard_us) / 1000;
			bool go_on = watch_look(watch, &state);
			pthread_mutex_unlock(&migration->work);
			if (!go_on)
				break;
			int64_t now_us = clock_monotonic_us();
			if (silent_ms > host->times.silence_limit_ms && now_us >= next_question_us) {
				if (!watch_silence(watch, machine))
					break;
				next_question_us = clock_monotonic_us() + arrival_ask_period_us(host);
			}
		}
		const int64_t ask_us = arrival_ask_period_us(host), period_us = ask_us < WATCH_PERIOD_US ? ask_us : WATCH_PERIOD_US;
		(void)driver->wait_change(machine, state.change, clock_monotonic_us() + period_us);
	}
	while (watch->refusal && !migration_host_wait_stopping(host, REFUSE_AGAIN_MS)) {
		cleanup_free char *why = take_ptr(watch->refusal);
		pthread_mutex_lock(&migration->work);
		if (migration->handover == HANDOVER_PREPARED)
			watch_refuse(watch, watch->refusal_code, why);
		pthread_mutex_unlock(&migration->work);
	}
	free(watch->refusal);
	free(watch);
	migration_unref(migration);
	migration_host_worker_done(host);
	return NULL;
}

void arrival_watch(struct migration_host *host, struct migration *migration)
{
	struct watch *watch = xcalloc(1, sizeof(*watch));
	watch->host = host;
	watch->migration = migration_ref(migration);
	migration->arrival->watched = true;
	migration_host_start_worker(host, watch_main, watch, &migration->arrival->watcher);
}

void arrival_unwatch(struct migration_host *host, struct migration *migration)
{
	struct destination_arrival *arrival = migration->arrival;
	if (!arrival || !arrival->watched)
		return;
	arrival->watched = false;
	if (pthread_equal(pthread_self(), arrival->watcher)) { /* the watcher itself refuses; it ends right after */
		pthread_detach(pthread_self());
		return;
	}
	__atomic_store_n(&arrival->watch_ends, true, __ATOMIC_RELEASE);
	inventory_driver(host->inventory)->nudge(migration->vm->machine);
	pthread_join(arrival->watcher, NULL); /* it takes `work` only by trying */
}
