/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How much may be on the way over a link, so that it is always busy and nothing waits in it for long: what is on the way when a guest
 * stops has to arrive within its pause.
 *
 * As congestion controls do that look at delay (Vegas: Brakmo and Peterson, IEEE JSAC 13-8, 1995): a block that took no longer than the
 * fastest has found the link idle, so more may be on the way; one that took PACE_WAIT_US longer has waited for others, so less. Now and
 * then much less is allowed for a moment, to see how long a block takes that finds nobody before it (as BBR does).
 *
 * Pure. Times in microseconds on one clock.
 */
#ifndef FERRY_RELAY_PACE_H
#define FERRY_RELAY_PACE_H

#include <stdbool.h>
#include <stdint.h>

#define PACE_WAIT_US 15000
#define PACE_SPAN_US 20000   /* from one look to the next, and no shorter than a block takes */
#define PACE_PROBE_US 5000000 /* from one measurement of the fastest to the next */

struct pace {
	uint64_t least_bytes, most_bytes; /* the bounds of the answer */
	uint64_t limit_bytes;
	int64_t fastest_us; /* 0: not known yet */
	bool has_waited;    /* once: from then on it grows in small steps */
	bool blocked;	    /* since the last look somebody waited for the answer to be more */
	bool probing;
	int64_t span_us;       /* when the current span began; 0: nothing has arrived yet */
	int64_t span_least_us; /* that a block took in it; 0: none arrived */
	int64_t probed_us;
};

void pace_init(struct pace *pace, uint64_t least_bytes, uint64_t most_bytes);
/* How many bytes may be on the way. */
uint64_t pace_limit_bytes(const struct pace *pace);
/* Somebody waits because as much is on the way already. */
void pace_blocked(struct pace *pace);
/* A block has arrived, and took so long from being given to the link. */
void pace_note(struct pace *pace, int64_t now_us, int64_t took_us);

#endif
