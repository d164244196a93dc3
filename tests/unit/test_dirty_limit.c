/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A guest whose writing is limited while it moves (vm/qemu_throttle.c), against a scripted QEMU, as that wants KVM with a dirty
 * ring and a guest that runs: what it is told, when it is not asked again, and how that ends. With a real KVM, where there is
 * one, see test_driver_qemu.c.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdlib.h>

#include "base/cleanup.h"
#include "base/error.h"
#include "fakes/scripted_machine.h"

#define MIB (UINT64_C(1) << 20)
#define DONE(id) {FAKE_QMP_SEND, "{\"return\": {}, \"id\": $" #id "}\r\n", 0}
/* Four processors, whose threads are none that could be held back from outside. */
#define PROCESSOR "{\"thread-id\": 2147483646}"
#define PROCESSORS                                                                                                     \
	{FAKE_QMP_EXPECT, "query-cpus-fast", 0},                                                                       \
	{                                                                                                              \
		FAKE_QMP_SEND,                                                                                         \
			"{\"return\": [" PROCESSOR ", " PROCESSOR ", " PROCESSOR ", " PROCESSOR "], \"id\": $2}\r\n", 0      \
	}
#define TOLD(id) {FAKE_QMP_EXPECT, "migrate-set-parameters", 0}, DONE(id)

static void begin(struct scripted_machine *scripted, const char *accelerator, const struct fake_qmp_step *steps, size_t count)
{
	scripted->machine = (struct machine){.record = json_pack("{s:s}", "accelerator", accelerator), .may_throttle = true};
	scripted_machine_begin(scripted, steps, count);
}

static void end(struct scripted_machine *scripted)
{
	cleanup_free char *problem = scripted_machine_end(scripted);
	json_decref(scripted->machine.record);
	free(scripted->machine.processors);
	free(scripted->machine.watches);
	if (problem)
		fail_msg("%s", problem);
}

static void throttle(struct scripted_machine *fixture, unsigned int percent, uint64_t dirty_bytes_per_s)
{
	const struct move_limits limits = {.downtime_ms = 5, .throttle_percent = percent, .dirty_bytes_per_s = dirty_bytes_per_s};
	assert_int_equal(qemu_move_set_limits(&fixture->machine, &limits, NULL), 0);
}

/* Each processor gets its part, 1 MiB/s at least; and it is taken off at the end, whoever ends it. */
static void test_limited(void **state)
{
	(void)state;
	static const struct fake_qmp_step steps[] = {
		FAKE_QMP_HELLO,
		PROCESSORS,
		{FAKE_QMP_EXPECT, "set-vcpu-dirty-limit {\"dirty-rate\": 5}", 0}, DONE(3), TOLD(4),
		{FAKE_QMP_EXPECT, "set-vcpu-dirty-limit {\"dirty-rate\": 1}", 0}, DONE(5), TOLD(6),
		{FAKE_QMP_EXPECT, "cancel-vcpu-dirty-limit", 0}, DONE(7), TOLD(8),
		{FAKE_QMP_EXPECT, "set-vcpu-dirty-limit {\"dirty-rate\": 2}", 0}, DONE(9), TOLD(10),
		{FAKE_QMP_EXPECT, "cancel-vcpu-dirty-limit", 0}, DONE(11),
		{FAKE_QMP_EXPECT_END, NULL, 0},
	};
	struct scripted_machine fixture;
	begin(&fixture, "kvm", steps, sizeof(steps) / sizeof(steps[0]));
	throttle(&fixture, 80, 20 * MIB);
	assert_true(fixture.machine.dirty_limited);
	assert_int_equal(fixture.machine.throttle_percent, 80);
	throttle(&fixture, 99, MIB);
	throttle(&fixture, 0, 0);
	assert_false(fixture.machine.dirty_limited);
	throttle(&fixture, 80, 11 * MIB);
	qemu_throttle_release(&fixture.machine);
	assert_int_equal(fixture.machine.throttle_percent, 0);
	end(&fixture);
}

/* Asked once, as what QEMU is started with does not change. */
static void test_refused(void **state)
{
	(void)state;
	static const struct fake_qmp_step steps[] = {
		FAKE_QMP_HELLO,
		PROCESSORS,
		{FAKE_QMP_EXPECT, "set-vcpu-dirty-limit {\"dirty-rate\": 5}", 0},
		{FAKE_QMP_SEND, "{\"error\": {\"class\": \"GenericError\", \"desc\": \"no dirty ring\"}, \"id\": $3}\r\n", 0},
		TOLD(4),
		TOLD(5),
		{FAKE_QMP_EXPECT_END, NULL, 0},
	};
	struct scripted_machine fixture;
	begin(&fixture, "kvm", steps, sizeof(steps) / sizeof(steps[0]));
	throttle(&fixture, 80, 20 * MIB);
	assert_false(fixture.machine.dirty_limited);
	assert_true(fixture.machine.qemu_throttles); /* nothing else was to be had either */
	throttle(&fixture, 90, 10 * MIB);
	end(&fixture);
}

/* Neither without KVM, nor where nobody knows how much is to be left. */
static void test_not_asked(void **state)
{
	(void)state;
	static const struct fake_qmp_step steps[] = {FAKE_QMP_HELLO, PROCESSORS, TOLD(3), {FAKE_QMP_EXPECT_END, NULL, 0}};
	static const struct {
		const char *accelerator;
		uint64_t dirty_bytes_per_s;
	} rows[] = {{"tcg", 20 * MIB}, {"kvm", 0}};
	for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
		struct scripted_machine fixture;
		begin(&fixture, rows[i].accelerator, steps, sizeof(steps) / sizeof(steps[0]));
		throttle(&fixture, 80, rows[i].dirty_bytes_per_s);
		assert_false(fixture.machine.dirty_limited || fixture.machine.no_dirty_limit);
		end(&fixture);
	}
}

/* A limit that an earlier ferryd has left. */
static void test_left_over(void **state)
{
	(void)state;
	static const struct fake_qmp_step steps[] = {
		FAKE_QMP_HELLO,
		{FAKE_QMP_EXPECT, "cancel-vcpu-dirty-limit", 0}, DONE(2),
		{FAKE_QMP_EXPECT, "query-cpus-fast", 0}, {FAKE_QMP_SEND, "{\"return\": [], \"id\": $3}\r\n", 0},
		{FAKE_QMP_EXPECT_END, NULL, 0},
	};
	struct scripted_machine fixture;
	begin(&fixture, "kvm", steps, sizeof(steps) / sizeof(steps[0]));
	fixture.machine.may_throttle = false;
	qemu_throttle_release(&fixture.machine);
	end(&fixture);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_limited),
		cmocka_unit_test(test_refused),
		cmocka_unit_test(test_not_asked),
		cmocka_unit_test(test_left_over),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
