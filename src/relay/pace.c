/* SPDX-License-Identifier: Apache-2.0 */
/* How much may be on the way; see pace.h. */
#include "relay/pace.h"

void pace_init(struct pace *pace, uint64_t least_bytes, uint64_t most_bytes)
{
	*pace = (struct pace){.least_bytes = least_bytes, .most_bytes = most_bytes, .limit_bytes = least_bytes};
}

uint64_t pace_limit_bytes(const struct pace *pace)
{
	return pace->probing ? pace->limit_bytes / 4 < pace->least_bytes ? pace->least_bytes : pace->limit_bytes / 4 : pace->limit_bytes;
}

void pace_blocked(struct pace *pace)
{
	pace->blocked = true;
}

static void set_limit(struct pace *pace, uint64_t bytes)
{
	pace->limit_bytes = bytes < pace->least_bytes ? pace->least_bytes : bytes > pace->most_bytes ? pace->most_bytes : bytes;
}

/* At the end of a span in which something arrived. */
static void look(struct pace *pace)
{
	const int64_t waited_us = pace->span_least_us - pace->fastest_us;
	if (waited_us > PACE_WAIT_US) {
		pace->has_waited = true;
		/* Half of what waits is to be gone at the next look. */
		const double share = (double)waited_us / 2 / (double)pace->span_least_us;
		set_limit(pace, (uint64_t)((double)pace->limit_bytes * (1 - (share > 0.5 ? 0.5 : share))));
	} else if (waited_us < PACE_WAIT_US / 2 && pace->blocked) {
		set_limit(pace, pace->has_waited ? pace->limit_bytes + pace->limit_bytes / 8 : pace->limit_bytes * 2);
	}
}

void pace_note(struct pace *pace, int64_t now_us, int64_t took_us)
{
	took_us = took_us < 1 ? 1 : took_us;
	if (pace->span_us == 0) {
		pace->span_us = pace->probed_us = now_us;
		pace->fastest_us = took_us;
	}
	if (pace->span_least_us == 0 || took_us < pace->span_least_us)
		pace->span_least_us = took_us;
	if (took_us < pace->fastest_us)
		pace->fastest_us = took_us;
	const int64_t span_us = pace->fastest_us > PACE_SPAN_US ? pace->fastest_us : PACE_SPAN_US;
	if (now_us - pace->span_us < span_us)
		return;
	if (pace->probing) {
		/* The last of a span of little; what was before it on the way has gone in the first. */
		pace->fastest_us = took_us < pace->span_least_us ? took_us : pace->span_least_us;
		pace->probing = false;
	} else if (now_us - pace->probed_us >= PACE_PROBE_US) {
		pace->probing = true;
		pace->probed_us = now_us;
	} else {
		look(pace);
	}
	pace->span_us = now_us;
	pace->span_least_us = 0;
	pace->blocked = false;
}
