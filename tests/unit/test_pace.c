/* SPDX-License-Identifier: Apache-2.0 */
/* How much may be on the way over a link (relay/pace.h): a link is played, whoever sends keeps to the answer. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "relay/pace.h"
#include "relay/thrift.h"

#define BLOCK 262144
#define LEAST (2 * BLOCK)
#define MOST (64 * BLOCK)

struct played {
	double carried;	    /* of what the link could, percent; after the first second */
	double waited_us;   /* in the link, beside what it takes by itself, at most; the same */
};

/* A link of so many bytes a second and so long a round trip, for some seconds. */
static struct played play(struct pace *pace, double bytes_per_s, int64_t round_trip_us, int64_t for_us)
{
	int64_t done_us = 0, arrival[4096], committed[4096];
	uint64_t sent = 0, taken = 0, late = 0;
	struct played played = {0};
	const int64_t block_us = (int64_t)(BLOCK * 1e6 / bytes_per_s);
	for (int64_t now_us = 1; now_us < for_us; now_us += 100) { /* from the beginning of time, whoever played before */
		pace->span_us = pace->span_us > now_us ? 1 : pace->span_us;
		pace->probed_us = pace->probed_us > now_us ? 1 : pace->probed_us;
		for (; taken < sent && arrival[taken % 4096] <= now_us; taken++) {
			pace_note(pace, now_us, now_us - committed[taken % 4096]);
			late += now_us > 1000000;
		}
		while ((sent - taken) * BLOCK < pace_limit_bytes(pace) && sent - taken < MOST / BLOCK) {
			done_us = (done_us > now_us ? done_us : now_us) + block_us;
			arrival[sent % 4096] = done_us + round_trip_us;
			committed[sent % 4096] = now_us;
			const double waited_us = (double)(done_us - block_us - now_us);
			if (now_us > 1000000 && waited_us > played.waited_us)
				played.waited_us = waited_us;
			sent++;
		}
		pace_blocked(pace);
	}
	played.carried = 100.0 * (double)late * BLOCK / (bytes_per_s * (double)(for_us - 1000000) / 1e6);
	return played;
}

static void test_links(void **state)
{
	(void)state;
	static const double rates[] = {12.5e6, 125e6, 1250e6};
	static const int64_t trips[] = {100, 20000, 50000};
	for (unsigned int i = 0; i < 3; i++)
		for (unsigned int j = 0; j < 3; j++) {
			struct pace pace;
			pace_init(&pace, LEAST, MOST);
			const struct played played = play(&pace, rates[i], trips[j], 4000000);
			const double possible = 100.0 * MOST / ((double)trips[j] / 1e6 + BLOCK / rates[i]) / rates[i];
			print_message("# %.0f MB/s, %lld us: %.1f %%, waits %.0f us at most\n", rates[i] / 1e6, (long long)trips[j],
				      played.carried, played.waited_us);
			assert_true(played.carried > (possible < 95 ? possible * 0.9 : 95));
			/* The bound, the least that is always allowed, and a block more. */
			assert_true(played.waited_us < 2 * PACE_WAIT_US + (LEAST + BLOCK) * 1e6 / rates[i]);
		}
}

/* It becomes faster, and slower: both are found. */
static void test_changes(void **state)
{
	(void)state;
	struct pace pace;
	pace_init(&pace, LEAST, MOST);
	assert_int_equal(pace_limit_bytes(&pace), LEAST);
	(void)play(&pace, 125e6, 1000, 3000000);
	const uint64_t before = pace_limit_bytes(&pace);
	assert_in_range(before, 125000 * 8, 125000 * 30);
	(void)play(&pace, 1250e6, 1000, 3000000);
	assert_true(pace_limit_bytes(&pace) > 4 * before);
	(void)play(&pace, 12.5e6, 1000, 4000000);
	assert_int_equal(pace_limit_bytes(&pace), LEAST);
}

/* ---- thrift.h ---- */

static unsigned int tried_of(struct thrift *thrift, unsigned int blocks, size_t packed)
{
	unsigned int tried = 0;
	for (unsigned int i = 0; i < blocks; i++)
		if (thrift_tries(thrift)) {
			tried++;
			thrift_note(thrift, 1000, packed);
		}
	return tried;
}

static void test_thrift(void **state)
{
	(void)state;
	struct thrift thrift = {0};
	assert_int_equal(tried_of(&thrift, 100, 500), 100);
	assert_in_range(tried_of(&thrift, 10000, 1000), 100, 300); /* noise: a try now and then */
	assert_in_range(tried_of(&thrift, 1000, 300), 935, 1000);  /* and what is none is found again */
}

int main(void)
{
	const struct CMUnitTest tests[] = {cmocka_unit_test(test_links), cmocka_unit_test(test_changes), cmocka_unit_test(test_thrift)};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
