/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The link of two relays, in one process, over pairs of sockets: what goes in comes out, both ways, in order and once, while
 * connections break and others come; and what is said when it cannot.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <endian.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/xalloc.h"
#include "relay/link.h"

#define LONG_MS 20000
#define BIG_BYTES 4096
#define SMALL_BYTES 512

/* A side, and what it has taken: bytes of a sequence that both can make. */
struct side {
	struct relay_link *link;
	uint32_t seed; /* of what it takes */
	pthread_mutex_t mutex;
	pthread_cond_t changed;
	uint64_t taken_bytes;
	bool ended, wrong;
	struct error *why;
	int64_t slow_us;       /* how long a block takes */
	uint64_t fails_at;     /* bytes; 0: never */
	int last_fd, other_fd; /* of the newest connection */
};

/* Noise and what can be compressed, in turn. */
static uint8_t byte_at(uint32_t seed, uint64_t position)
{
	if (position >> 15 & 1)
		return (uint8_t)(position >> 6);
	uint64_t x = (position / 8 + 1) * 0x9e3779b97f4a7c15 ^ seed;
	x ^= x >> 29;
	x *= 0xbf58476d1ce4e5b9;
	return (uint8_t)(x >> (8 * (position % 8)));
}

static int take(void *user, const uint8_t *data, size_t size, struct error **e)
{
	struct side *side = user;
	if (side->slow_us > 0)
		nanosleep(&(struct timespec){.tv_nsec = side->slow_us * 1000}, NULL);
	LOCK_SCOPE(&side->mutex);
	side->ended = !data;
	for (size_t i = 0; i < size; i++)
		side->wrong |= data[i] != byte_at(side->seed, side->taken_bytes + i);
	side->taken_bytes += size;
	pthread_cond_broadcast(&side->changed);
	if (side->fails_at > 0 && side->taken_bytes >= side->fails_at)
		return error_set(e, ERROR_SYSTEM, "QEMU has closed its end");
	return 0;
}

static void broken(void *user, const struct error *why)
{
	struct side *side = user;
	LOCK_SCOPE(&side->mutex);
	side->why = error_copy(why);
	pthread_cond_broadcast(&side->changed);
}

static void begin(struct side sides[2], int64_t patience_ms)
{
	for (int i = 0; i < 2; i++) {
		struct side *side = &sides[i];
		const struct relay_link_options options = {
			.out_blocks = i == 0 ? 16 : 4,
			.in_blocks = i == 0 ? 4 : 16,
			.out_block_bytes = i == 0 ? BIG_BYTES : SMALL_BYTES,
			.in_block_bytes = i == 0 ? SMALL_BYTES : BIG_BYTES,
			.patience_ms = patience_ms,
			.take = take,
			.broken = broken,
			.user = side,
		};
		*side = (struct side){.seed = (uint32_t)i};
		pthread_mutex_init(&side->mutex, NULL);
		cond_init(&side->changed);
		side->link = relay_link_new(&options);
	}
}

static void end(struct side sides[2])
{
	for (int i = 0; i < 2; i++) {
		relay_link_free(sides[i].link);
		error_free(sides[i].why);
		pthread_cond_destroy(&sides[i].changed);
		pthread_mutex_destroy(&sides[i].mutex);
	}
}

static void connect_sides(struct side sides[2])
{
	int fds[2];
	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), 0);
	for (int i = 0; i < 2; i++) {
		if (sides[i].last_fd > 0)
			close(sides[i].last_fd);
		sides[i].last_fd = dup(fds[i]);
		relay_link_add(sides[i].link, relay_connection_new_plain(fds[i]));
	}
}

static void forget_last(struct side sides[2])
{
	for (int i = 0; i < 2; i++)
		close(sides[i].last_fd);
}

struct sending {
	struct side *side; /* its link */
	uint32_t seed;
	uint64_t bytes;
	size_t block_bytes;
	bool failed;
	struct error *why;
};

/* Blocks of all lengths. */
static void *send_all(void *user)
{
	struct sending *sending = user;
	for (uint64_t at = 0; at < sending->bytes && !sending->failed;) {
		uint8_t *block = NULL;
		size_t size = 1 + at * 7919 % sending->block_bytes;
		size = sending->bytes - at < size ? (size_t)(sending->bytes - at) : size;
		if (relay_link_reserve(sending->side->link, &block, &sending->why) < 0) {
			sending->failed = true;
			break;
		}
		for (size_t i = 0; i < size; i++)
			block[i] = byte_at(sending->seed, at + i);
		relay_link_commit(sending->side->link, size);
		at += size;
	}
	if (!sending->failed)
		sending->failed = relay_link_end(sending->side->link, LONG_MS, &sending->why) < 0;
	return NULL;
}

static void start_sending(struct sending *sending, struct side sides[2], int from, uint64_t bytes, pthread_t *ret)
{
	*sending = (struct sending){
		.side = &sides[from], .seed = (uint32_t)(1 - from), .bytes = bytes, .block_bytes = from == 0 ? BIG_BYTES : SMALL_BYTES};
	assert_int_equal(pthread_create(ret, NULL, send_all, sending), 0);
}

static void assert_all_taken(struct side *side, uint64_t bytes)
{
	LOCK_SCOPE(&side->mutex);
	assert_false(side->wrong);
	assert_int_equal(side->taken_bytes, bytes);
	assert_true(side->ended);
	assert_null(side->why);
}

static bool wait_bytes(struct side *side, uint64_t bytes)
{
	const int64_t until_us = clock_monotonic_us() + LONG_MS * 1000;
	LOCK_SCOPE(&side->mutex);
	while (side->taken_bytes < bytes && !side->why)
		if (!cond_wait_until(&side->changed, &side->mutex, until_us))
			break;
	return side->taken_bytes >= bytes;
}

/* Both ways at once. */
struct both {
	struct sending there, back;
	pthread_t threads[2];
};

static void start_both(struct both *both, struct side sides[2], uint64_t big, uint64_t small)
{
	start_sending(&both->there, sides, 0, big, &both->threads[0]);
	start_sending(&both->back, sides, 1, small, &both->threads[1]);
}

/* All has come, and the link goes. */
static void end_both(struct both *both, struct side sides[2])
{
	pthread_join(both->threads[0], NULL);
	pthread_join(both->threads[1], NULL);
	assert_false(both->there.failed);
	assert_false(both->back.failed);
	assert_all_taken(&sides[1], both->there.bytes);
	assert_all_taken(&sides[0], both->back.bytes);
	forget_last(sides);
	end(sides);
}

static void both_ways(unsigned int connections, int64_t slow_us)
{
	struct side sides[2];
	struct both both;
	begin(sides, LONG_MS);
	sides[1].slow_us = slow_us;
	for (unsigned int i = 0; i < connections; i++)
		connect_sides(sides);
	assert_int_equal(relay_link_connections(sides[0].link), connections);
	start_both(&both, sides, 3000000, 60000);
	end_both(&both, sides);
}

static void test_one_connection(void **state)
{
	(void)state;
	both_ways(1, 0);
}

static void test_many_connections(void **state)
{
	(void)state;
	both_ways(5, 0);
	both_ways(3, 200);
}

/* A rate is kept over all connections together: half of the bytes are noise, and cannot be sent in less than that. */
static void test_rate(void **state)
{
	(void)state;
	const uint64_t bytes = 2000000, rate = 4000000;
	struct side sides[2];
	struct sending there, back;
	pthread_t threads[2];
	begin(sides, LONG_MS);
	relay_link_limit_rate(sides[0].link, rate);
	for (int i = 0; i < 3; i++)
		connect_sides(sides);
	const int64_t began_us = clock_monotonic_us();
	start_sending(&there, sides, 0, bytes, &threads[0]);
	pthread_join(threads[0], NULL);
	assert_true(clock_monotonic_us() - began_us > (int64_t)(bytes / 2 * 1000000 / rate) - 20000);
	start_sending(&back, sides, 1, 1000, &threads[1]);
	pthread_join(threads[1], NULL);
	assert_all_taken(&sides[1], bytes);
	/* Nothing is left to be done: nobody needs another connection. */
	assert_false(relay_link_await_fewer(sides[0].link, 10, 0));
	forget_last(sides);
	end(sides);
}

static void *await_fewer(void *user)
{
	return relay_link_await_fewer(user, 2, 0) ? user : NULL;
}

static void test_await_fewer(void **state)
{
	(void)state;
	struct side sides[2];
	pthread_t thread;
	void *fewer;
	begin(sides, LONG_MS);
	connect_sides(sides);
	assert_true(relay_link_await_fewer(sides[0].link, 2, 0));
	connect_sides(sides);
	assert_int_equal(pthread_create(&thread, NULL, await_fewer, sides[0].link), 0);
	shutdown(sides[1].last_fd, SHUT_RDWR);
	pthread_join(thread, &fewer);
	assert_non_null(fewer);
	connect_sides(sides);
	assert_int_equal(pthread_create(&thread, NULL, await_fewer, sides[0].link), 0);
	cleanup_error struct error *why = NULL;
	error_set(&why, ERROR_CANCELLED, "called off");
	relay_link_break(sides[0].link, why);
	pthread_join(thread, &fewer);
	assert_null(fewer);
	forget_last(sides);
	end(sides);
}

/* Each time that some more has arrived, a connection breaks and another comes. */
static void test_connections_break(void **state)
{
	(void)state;
	const uint64_t big = 6000000;
	struct side sides[2];
	struct both both;
	begin(sides, LONG_MS);
	connect_sides(sides);
	connect_sides(sides);
	start_both(&both, sides, big, 100000);
	for (unsigned int i = 1; i <= 40; i++) {
		assert_true(wait_bytes(&sides[1], big / 45 * i));
		/* Either end, or what is on the way is lost. */
		shutdown(sides[i % 2].last_fd, i % 3 == 0 ? SHUT_RD : i % 3 == 1 ? SHUT_WR : SHUT_RDWR);
		connect_sides(sides);
	}
	end_both(&both, sides);
}

/* All are gone for a while, then one comes. */
static void test_alone_for_a_while(void **state)
{
	(void)state;
	struct side sides[2];
	struct sending there;
	pthread_t thread;
	begin(sides, LONG_MS);
	start_sending(&there, sides, 0, 500000, &thread);
	connect_sides(sides);
	assert_true(wait_bytes(&sides[1], 100000));
	shutdown(sides[0].last_fd, SHUT_RDWR);
	for (int i = 0; i < 2; i++)
		while (relay_link_connections(sides[i].link) > 0)
			nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
	connect_sides(sides);
	pthread_join(thread, NULL);
	assert_false(there.failed);
	assert_all_taken(&sides[1], 500000);
	forget_last(sides);
	end(sides);
}

static void test_alone_for_too_long(void **state)
{
	(void)state;
	struct side sides[2];
	struct sending there;
	pthread_t thread;
	begin(sides, 50);
	start_sending(&there, sides, 0, 500000, &thread);
	pthread_join(thread, NULL);
	assert_true(there.failed);
	assert_int_equal(there.why->code, ERROR_DATA_RELAY);
	assert_non_null(strstr(there.why->message, "no connection between the two hosts' relays for 50 ms"));
	error_free(there.why);
	assert_false(wait_bytes(&sides[0], 1));
	assert_int_equal(sides[0].why->code, ERROR_DATA_RELAY);
	end(sides);
}

/* Whoever cannot take any more is heard at the other side. */
static void test_taking_fails(void **state)
{
	(void)state;
	struct side sides[2];
	struct sending there;
	pthread_t thread;
	begin(sides, LONG_MS);
	sides[1].fails_at = 100000;
	connect_sides(sides);
	connect_sides(sides);
	start_sending(&there, sides, 0, 500000, &thread);
	pthread_join(thread, NULL);
	assert_true(there.failed);
	assert_non_null(strstr(there.why->message, "the other host's relay has given up: QEMU has closed its end"));
	error_free(there.why);
	assert_false(wait_bytes(&sides[1], 500000));
	assert_int_equal(sides[1].why->code, ERROR_SYSTEM);
	forget_last(sides);
	end(sides);
}

/* A peer that does not keep to the protocol: one end of a connection is ours. */
static void assert_refused(uint32_t length, uint8_t kind, uint64_t number, const char *words)
{
	struct side sides[2];
	int fds[2];
	uint8_t head[16] = {[4] = kind & 0x7f, [5] = kind >> 7};
	const uint32_t length_be = htobe32(length);
	const uint64_t number_be = htobe64(number);
	memcpy(head, &length_be, sizeof(length_be));
	memcpy(head + 8, &number_be, sizeof(number_be));
	begin(sides, LONG_MS);
	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), 0);
	relay_link_add(sides[1].link, relay_connection_new_plain(fds[1]));
	assert_int_equal(send(fds[0], head, sizeof(head), MSG_NOSIGNAL), sizeof(head));
	if (length == 1)
		assert_int_equal(send(fds[0], "x", 1, MSG_NOSIGNAL), 1);
	assert_false(wait_bytes(&sides[1], 1));
	assert_int_equal(sides[1].why->code, ERROR_PEER_PROTOCOL);
	if (!strstr(sides[1].why->message, words))
		fail_msg("'%s' is not '%s'", sides[1].why->message, words);
	close(fds[0]);
	end(sides);
}

static void test_peer_lies(void **state)
{
	(void)state;
	assert_refused(BIG_BYTES + 1, 1, 0, "a block of a wrong length");
	assert_refused(0, 1, 0, "a block of a wrong length");
	assert_refused(1, 2, 0, "a block of a wrong length");
	assert_refused(1, 1 | 0x80, 0, "a block that cannot be decompressed");
	assert_refused(0, 2 | 0x80, 0, "a block of a wrong length");
	assert_refused(1, 1, 16, "more than the window");
	assert_refused(1, 1, UINT64_MAX, "more than the window");
	assert_refused(0, 3, 1, "an acknowledgement of what was not sent");
	assert_refused(1, 3, 0, "an acknowledgement with something in it");
	assert_refused(5000, 4, 0, "too many words");
	assert_refused(0, 77, 0, "what is not known");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_one_connection),
		cmocka_unit_test(test_many_connections),
		cmocka_unit_test(test_rate),
		cmocka_unit_test(test_await_fewer),
		cmocka_unit_test(test_connections_break),
		cmocka_unit_test(test_alone_for_a_while),
		cmocka_unit_test(test_alone_for_too_long),
		cmocka_unit_test(test_taking_fails),
		cmocka_unit_test(test_peer_lies),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
