/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The source's part of post-copy, after the destination has said that the guest runs there.
 *
 * Theory of operation. Each of the two QEMUs has a part of the guest now, so neither is ended before both are done with each
 * other, and no fault rolls anything back: the VM is the destination's. The question `finish` is repeated; its answer says
 * `done` once the destination has everything. A stream that breaks leaves both QEMUs waiting (post-copy-paused): then the same
 * question asks the destination to listen again, and our QEMU connects to where it does; as often as it takes. Only the end
 * of one of the two QEMUs ends this otherwise: if it is ours, the guest over there waits for pages that nobody has.
 */
#include "migration/source_steps.h"

#include "base/cleanup.h"
#include "base/fault.h"
#include "base/log.h"
#include "base/xalloc.h"

#define SERVE_LOOK_US 500000
#define DONE_LOOK_US 20000 /* the destination knew first */
#define HEAR_DONE_US 10000000
/* How long an answer may take, and no longer than finish itself: what asks is what sees a broken stream, too. */
#define SERVE_ANSWER_MS 3000
#define MEND_ANSWER_MS 15000 /* its QEMU may take some time to let go of the old stream */
#define MEND_FIRST_MS 500
#define MEND_MAX_MS 10000

static enum finish_answer source_ask_again(struct source *s, int64_t patience_ms, struct error **e)
{
	const int64_t longest_ms = s->host->times.finish_timeout_ms;
	return source_ask_outcome(s, PEER_FINISH, patience_ms < longest_ms ? patience_ms : longest_ms, e);
}

/* One attempt to give the two QEMUs another stream. */
static int source_mend(struct source *s, struct error **e)
{
	/* Used only if the stream was encrypted before, which the two QEMUs know, also after a restart of ferryd. */
	offer_make_key(s->tls_key_hex);
	s->mend = true;
	enum finish_answer answer = source_ask_again(s, MEND_ANSWER_MS, e);
	s->mend = false;
	if (answer != FINISH_RUNNING)
		return -1;
	if (s->done_there)
		return 0;
	if (!s->mend_port)
		return error_set(e, ERROR_PEER_PROTOCOL, "%s does not say where it listens", s->migration->destination);
	const struct move_options move = {.address = s->data_address,
					  .port = s->mend_port,
					  .tls_key_hex = s->tls_key_hex,
					  .channels = 1,
					  .bandwidth_bytes_per_s = s->migration->request.promise.bandwidth_bytes_per_s};
	log_info("post-copy goes on over another stream, to port %u", s->mend_port);
	FAULT(FAULT_POSTCOPY_MENDING);
	return s->driver->move_resume(s->machine, &move, e);
}

static void source_recovering(struct source *s, const char *why)
{
	cleanup_error struct error *e = NULL;
	error_set(&e, ERROR_MIGRATION_RECOVERING, "%s", why);
	migration_set_waiting(s->migration, MIGRATION_RECOVERING, s->migration->destination, "where the rest of memory is to go", e);
}

/* Until QEMU's state is another than the one that was seen, or somebody wants the next attempt now (source_mend_now()). */
static void source_wait_change(struct source *s, const struct machine_state *seen, int64_t wait_ms)
{
	const int64_t until_us = clock_monotonic_us() + wait_ms * 1000;
	for (int64_t now_us; (now_us = clock_monotonic_us()) < until_us && !migration_host_stopping(s->host);) {
		const int64_t look_us = now_us + SERVE_LOOK_US;
		if (s->driver->wait_change(s->machine, seen->change, look_us < until_us ? look_us : until_us))
			return;
	}
}

/* One attempt, and a wait for what comes of it; longer each time. */
static void source_mend_again(struct source *s, int64_t *wait_ms)
{
	struct machine_state seen;
	cleanup_error struct error *e = NULL;
	if (*wait_ms == 0)
		source_recovering(s, "the stream between the two QEMUs broke");
	*wait_ms = *wait_ms == 0 ? MEND_FIRST_MS : *wait_ms * 2 > MEND_MAX_MS ? MEND_MAX_MS : *wait_ms * 2;
	s->driver->state(s->machine, &seen);
	if (source_mend(s, &e) < 0) {
		log_failure(LOG_LEVEL_WARNING, "post-copy cannot go on yet; trying again", e);
		source_recovering(s, e->message);
		s->driver->state(s->machine, &seen); /* what the attempt itself has changed is no news */
	}
	if (!s->done_there)
		source_wait_change(s, &seen, *wait_ms);
}

/* Each of the two had a part of the guest, and one of them has ended. */
static void source_lost(struct source *s, const char *whose)
{
	cleanup_free char *why = xasprintf("the guest is lost: the %s's QEMU ended before %s had all of the memory", whose,
					   s->migration->destination);
	log_error("%s", why);
	migration_clear_doubt(s->migration);
	migration_set_reason(s->migration, ERROR_QEMU_GONE, why);
}

bool source_serve(struct source *s)
{
	struct machine_state state = {.run = MACHINE_GONE};
	int64_t wait_ms = 0;
	while (!s->done_there && !migration_host_stopping(s->host)) {
		if (s->machine)
			s->driver->state(s->machine, &state);
		if (state.run == MACHINE_GONE) {
			source_lost(s, "source");
			return true;
		}
		if (state.move == MOVE_POSTCOPY_PAUSED) {
			source_mend_again(s, &wait_ms);
			continue;
		}
		if (wait_ms > 0 && state.move == MOVE_POSTCOPY) {
			wait_ms = 0;
			migration_clear_doubt(s->migration);
			migration_set_status(s->migration, MIGRATION_COMPLETING);
		}
		FAULT(FAULT_POSTCOPY_SERVING);
		copy_keep_figures(s->driver, s->machine, s->migration, true);
		(void)s->driver->wait_change(s->machine, state.change,
					     clock_monotonic_us() + (state.move == MOVE_COMPLETED ? DONE_LOOK_US : SERVE_LOOK_US));
		cleanup_error struct error *e = NULL;
		if (source_ask_again(s, SERVE_ANSWER_MS, &e) != FINISH_RUNNING && e)
			log_failure(LOG_LEVEL_WARNING, "post-copy: the destination does not answer", e);
	}
	if (s->lost_there)
		source_lost(s, "destination");
	/* It has everything; our QEMU hears so a moment later, or never, if that is because it is gone with its host. */
	const int64_t patience_us = clock_monotonic_us() + HEAR_DONE_US;
	while (s->machine && s->done_there && !s->lost_there && !migration_host_stopping(s->host) && clock_monotonic_us() < patience_us) {
		s->driver->state(s->machine, &state);
		if (!move_in_postcopy(state.move) || state.move == MOVE_POSTCOPY_PAUSED || state.run == MACHINE_GONE)
			break;
		(void)s->driver->wait_change(s->machine, state.change, clock_monotonic_us() + SERVE_LOOK_US);
	}
	return s->done_there || !migration_host_stopping(s->host);
}
