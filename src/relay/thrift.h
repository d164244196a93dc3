/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Whether it pays to try to compress the next block. What could not be compressed is seldom followed by what can: after a few blocks in
 * vain some are let go untried, and more each time, so that a stream of noise costs next to nothing; one that went well ends that.
 * Pure.
 */
#ifndef FERRY_RELAY_THRIFT_H
#define FERRY_RELAY_THRIFT_H

#include <stdbool.h>
#include <stddef.h>

#define THRIFT_WORTH_PERCENT 90 /* of what it was; more than that is in vain */
#define THRIFT_VAIN_MAX 3
#define THRIFT_SKIP_MAX 64

/* {0} at the beginning. */
struct thrift {
	unsigned int vain; /* tried one after the other */
	unsigned int skip; /* to be let go now */
	unsigned int next_skip;
};

static inline bool thrift_tries(struct thrift *thrift)
{
	if (thrift->skip == 0)
		return true;
	thrift->skip--;
	return false;
}

static inline void thrift_note(struct thrift *thrift, size_t bytes, size_t packed_bytes)
{
	if (packed_bytes * 100 <= bytes * THRIFT_WORTH_PERCENT) {
		*thrift = (struct thrift){0};
		return;
	}
	if (++thrift->vain < THRIFT_VAIN_MAX)
		return;
	thrift->next_skip = thrift->next_skip == 0 ? 4 : thrift->next_skip * 2 > THRIFT_SKIP_MAX ? THRIFT_SKIP_MAX : thrift->next_skip * 2;
	thrift->skip = thrift->next_skip;
	thrift->vain = THRIFT_VAIN_MAX - 1;
}

#endif
