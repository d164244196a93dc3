/* SPDX-License-Identifier: Apache-2.0 */
/* How a migration is asked for, and its promise changed: every key, its bounds, and how they go together. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <string.h>

#include "base/cleanup.h"
#include "base/json.h"
#include "base/xalloc.h"
#include "migration/converge_peers.h"
#include "migration/request.h"

static json_t *parsed(const char *text)
{
	json_t *json = NULL;
	assert_int_equal(json_parse(text, strlen(text), &json, NULL), 0);
	return json;
}

static void test_defaults(void **state)
{
	(void)state;
	struct migration_request request = {0};
	cleanup_json json_t *json = parsed("{\"to\": \"host-b\"}");
	assert_int_equal(migration_request_parse(json, &request, NULL), 0);
	const struct migration_promise *promise = &request.promise;
	assert_int_equal(promise->max_downtime_ms, 300);
	assert_int_equal(promise->deadline_ms, 0);
	assert_int_equal(promise->bandwidth_bytes_per_s, 0);
	assert_int_equal(promise->means_count, 1);
	assert_int_equal(promise->means[0], CONVERGE_THROTTLE);
	assert_ptr_equal(request.policy, &converge_policy_ferry);
	migration_request_done(&request);
}

static void test_every_key(void **state)
{
	(void)state;
	struct migration_request request = {0};
	cleanup_json json_t *json =
		parsed("{\"to\": \"host-b\", \"bandwidth_bytes_per_s\": 7, \"max_downtime_ms\": 20, \"deadline_ms\": 30000,"
		       " \"converge\": [\"pause\", \"throttle\"], \"pause_ms\": 21, \"policy\": \"qemu\"}");
	assert_int_equal(migration_request_parse(json, &request, NULL), 0);
	const struct migration_promise *promise = &request.promise;
	assert_int_equal(promise->bandwidth_bytes_per_s, 7);
	assert_int_equal(promise->max_downtime_ms, 20);
	assert_int_equal(promise->deadline_ms, 30000);
	assert_int_equal(promise->pause_ms, 21);
	assert_int_equal(promise->means_count, 2);
	assert_int_equal(promise->means[0], CONVERGE_PAUSE);
	assert_int_equal(promise->means[1], CONVERGE_THROTTLE);
	assert_ptr_equal(request.policy, &converge_policy_qemu);
	migration_request_done(&request);
}

/* Keys of a promise that has 300 ms and throttling; what is wrong with them, or NULL. */
static const struct {
	const char *keys, *wrong;
} changes[] = {
	{"", NULL},
	{"\"max_downtime_ms\": 1", NULL},
	{"\"max_downtime_ms\": 0", "max_downtime_ms"},
	{"\"max_downtime_ms\": 2000000", NULL},
	{"\"max_downtime_ms\": 2000001", "max_downtime_ms"},
	{"\"max_downtime_ms\": \"300ms\"", "max_downtime_ms"},
	{"\"deadline_ms\": 0", NULL},
	{"\"deadline_ms\": -1", "deadline_ms"},
	{"\"deadline_ms\": 3600000000", NULL},
	{"\"deadline_ms\": 3600000001", "deadline_ms"},
	{"\"bandwidth_bytes_per_s\": 0", NULL},
	{"\"bandwidth_bytes_per_s\": -1", "bandwidth_bytes_per_s"},
	{"\"bandwidth_bytes_per_s\": 10000000000000", NULL},
	{"\"bandwidth_bytes_per_s\": 10000000000001", "bandwidth_bytes_per_s"},
	{"\"converge\": []", NULL},
	{"\"converge\": [\"throttle\"]", NULL},
	{"\"converge\": [\"throttle\", \"throttle\"]", "twice"},
	{"\"converge\": [\"pause\", \"throttle\", \"pause\"], \"pause_ms\": 4000", "twice"},
	{"\"converge\": [\"pause\"], \"pause_ms\": 4000", NULL},
	{"\"converge\": [\"pause\"]", "bound"},
	{"\"converge\": [\"pause\"], \"pause_ms\": 300", "more than max_downtime_ms"},
	{"\"converge\": [\"pause\"], \"pause_ms\": 301", NULL},
	{"\"converge\": [\"pause\"], \"pause_ms\": 4000, \"max_downtime_ms\": 4000", "more than max_downtime_ms"},
	{"\"converge\": [\"pause\"], \"pause_ms\": 2000001", "pause_ms"},
	{"\"pause_ms\": 0", "pause_ms"},
	{"\"pause_ms\": 100", NULL}, /* of no effect */
	{"\"converge\": [\"post-copy\"]", "is not one of"},
	{"\"converge\": [\"throttle\", 7]", "converge[1] is not one of"},
	{"\"converge\": \"throttle\"", "converge"},
	{"\"policy\": \"qemu\"", "policy"}, /* cannot be changed */
	{"\"to\": \"host-c\"", "to"},
	{"\"Max_downtime_ms\": 1", "Max_downtime_ms"},
};

static void test_changes(void **state)
{
	(void)state;
	for (size_t i = 0; i < sizeof(changes) / sizeof(changes[0]); i++) {
		const struct migration_promise before = {.max_downtime_ms = 300, .means = {CONVERGE_THROTTLE}, .means_count = 1};
		struct migration_promise promise = before;
		cleanup_free char *text = xasprintf("{%s}", changes[i].keys);
		cleanup_json json_t *json = parsed(text);
		cleanup_error struct error *e = NULL;
		print_message("# %s\n", text);
		if (!changes[i].wrong) {
			assert_int_equal(migration_promise_parse(json, &promise, &e), 0);
			continue;
		}
		assert_int_equal(migration_promise_parse(json, &promise, &e), -1);
		assert_int_equal(e->code, ERROR_INVALID_ARGUMENT);
		if (!strstr(e->message, changes[i].wrong))
			fail_msg("'%s' does not say '%s'", e->message, changes[i].wrong);
		assert_memory_equal(&promise, &before, sizeof(promise));
	}
}

/* What is not named stays; what is named is looked at together with what stays. */
static void test_changes_add_up(void **state)
{
	(void)state;
	struct migration_promise promise = {.max_downtime_ms = 300, .means = {CONVERGE_THROTTLE}, .means_count = 1};
	static const struct {
		const char *text;
		bool good;
	} steps[] = {{"{\"converge\": [\"pause\"], \"pause_ms\": 1000}", true},
		     {"{\"deadline_ms\": 5000}", true},
		     {"{\"max_downtime_ms\": 1000}", false},
		     {"{\"max_downtime_ms\": 999}", true},
		     {"{\"pause_ms\": 900}", false},
		     {"{\"converge\": [], \"max_downtime_ms\": 1500}", true},
		     {"{\"converge\": [\"pause\"]}", false}};
	for (size_t i = 0; i < sizeof(steps) / sizeof(steps[0]); i++) {
		cleanup_json json_t *json = parsed(steps[i].text);
		cleanup_error struct error *e = NULL;
		print_message("# %s\n", steps[i].text);
		assert_int_equal(migration_promise_parse(json, &promise, &e), steps[i].good ? 0 : -1);
	}
	assert_int_equal(promise.max_downtime_ms, 1500);
	assert_int_equal(promise.deadline_ms, 5000);
	assert_int_equal(promise.pause_ms, 1000);
	assert_int_equal(promise.means_count, 0);
}

static void test_policies(void **state)
{
	(void)state;
	for (size_t i = 0; converge_policy_at(i); i++) {
		struct migration_request request = {0};
		cleanup_free char *text = xasprintf("{\"to\": \"host-b\", \"policy\": \"%s\"}", converge_policy_at(i)->name);
		cleanup_json json_t *json = parsed(text);
		assert_int_equal(migration_request_parse(json, &request, NULL), 0);
		assert_ptr_equal(request.policy, converge_policy_at(i));
		migration_request_done(&request);
	}
	cleanup_json json_t *json = parsed("{\"to\": \"host-b\", \"policy\": \"hope\"}");
	struct migration_request request = {0};
	cleanup_error struct error *e = NULL;
	assert_int_equal(migration_request_parse(json, &request, &e), -1);
	assert_int_equal(e->code, ERROR_INVALID_ARGUMENT);
	assert_non_null(strstr(e->message, "'hope' is not one of ferry, qemu, "));
}

static void test_rate(void **state)
{
	(void)state;
	const struct migration_promise none = {0}, some = {.bandwidth_bytes_per_s = 1000};
	assert_int_equal(migration_promise_rate(&none, 5000), 5000);
	assert_int_equal(migration_promise_rate(&some, 5000), 1000);
	assert_int_equal(migration_promise_rate(&some, 999), 999);
	assert_int_equal(migration_promise_rate(&some, 0), 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_defaults),
		cmocka_unit_test(test_every_key),
		cmocka_unit_test(test_changes),
		cmocka_unit_test(test_changes_add_up),
		cmocka_unit_test(test_policies),
		cmocka_unit_test(test_rate),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
