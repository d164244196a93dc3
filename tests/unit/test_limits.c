/* SPDX-License-Identifier: Apache-2.0 */
/* Limits on sizes and counts that no other unit test has (docs/limits.md): migration requests, VMs and hosts on one
 * host. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/json.h"
#include "base/xalloc.h"
#include "fakes/fake_driver.h"
#include "migration/migration.h"
#include "migration/peers.h"

/* ---- migration requests ---- */

static json_t *request_json(void)
{
	return json_pack("{ss}", "to", "host-b");
}

static void accepted(const char *key, json_t *stolen_value)
{
	cleanup_json json_t *json = request_json();
	struct migration_request request = {0};
	cleanup_error struct error *e = NULL;
	json_object_set_new(json, key, stolen_value);
	if (migration_request_parse(json, &request, &e) < 0)
		fail_msg("%s: %s", key, e->message);
	migration_request_done(&request);
}

static void refused(const char *key, json_t *stolen_value, enum error_code code)
{
	cleanup_json json_t *json = request_json();
	struct migration_request request = {0};
	cleanup_error struct error *e = NULL;
	json_object_set_new(json, key, stolen_value);
	if (migration_request_parse(json, &request, &e) == 0)
		fail_msg("%s was accepted", key);
	assert_string_equal(error_code_name(e->code), error_code_name(code));
	assert_null(request.to); /* untouched on failure */
}

static json_t *text_of_length(size_t length)
{
	cleanup_free char *text = xmalloc(length + 1);
	memset(text, 'a', length);
	text[length] = '\0';
	return json_string(text);
}

static json_t *maps_of(size_t count, size_t length)
{
	json_t *maps = json_array();
	for (size_t i = 0; i < count; i++)
		json_array_append_new(maps, text_of_length(length));
	return maps;
}

static void test_requests(void **state)
{
	(void)state;
	accepted("to", text_of_length(63));
	refused("to", text_of_length(64), ERROR_INVALID_ARGUMENT);
	refused("to", json_string(""), ERROR_INVALID_ARGUMENT);
	refused("to", json_string("../host-b"), ERROR_INVALID_ARGUMENT);
	accepted("channels", json_integer(64));
	refused("channels", json_integer(65), ERROR_INVALID_ARGUMENT);
	refused("channels", json_integer(0), ERROR_INVALID_ARGUMENT);
	accepted("bandwidth_bytes_per_s", json_integer(10000000000000));
	refused("bandwidth_bytes_per_s", json_integer(10000000000001), ERROR_INVALID_ARGUMENT);
	refused("bandwidth_bytes_per_s", json_integer(-1), ERROR_INVALID_ARGUMENT);
	accepted("deadline_ms", json_integer(3600000000));
	refused("deadline_ms", json_integer(3600000001), ERROR_INVALID_ARGUMENT);
	refused("deadline_ms", json_integer(INT64_MAX), ERROR_INVALID_ARGUMENT);
	accepted("max_downtime_ms", json_integer(2000000));
	refused("max_downtime_ms", json_integer(2000001), ERROR_INVALID_ARGUMENT);
	refused("max_downtime_ms", json_integer(0), ERROR_INVALID_ARGUMENT);
	accepted("maps", maps_of(64, 8256));
	refused("maps", maps_of(65, 1), ERROR_TOO_LARGE);
	refused("maps", maps_of(1, 8257), ERROR_INVALID_ARGUMENT);
	refused("unknown", json_true(), ERROR_INVALID_ARGUMENT);
}

/* ---- counts ---- */

static int define(struct inventory *inventory, unsigned int number, struct error **e)
{
	cleanup_free char *name = xasprintf("vm-%u", number);
	cleanup_json json_t *definition = json_pack("{ss si}", "name", name, "memory_mib", 1);
	cleanup_json json_t *view = NULL;
	return inventory_define(inventory, definition, &view, e);
}

static void test_vms(void **state)
{
	(void)state;
	struct database *db = NULL;
	struct driver_host driver_host = {.run_folder = "host-a"};
	struct inventory *inventory = NULL;
	cleanup_error struct error *e = NULL;
	assert_int_equal(database_open(":memory:", &db, NULL), 0);
	struct inventory_options options = {
		.db = db, .host_name = "host-a", .driver = &vm_driver_fake, .driver_host = &driver_host};
	assert_int_equal(inventory_new(&options, &inventory, NULL), 0);
	for (unsigned int i = 0; i < INVENTORY_VMS_MAX; i++)
		if (define(inventory, i, &e) < 0)
			fail_msg("%u: %s", i, e->message);
	assert_int_equal(define(inventory, INVENTORY_VMS_MAX, &e), -1);
	assert_int_equal(e->code, ERROR_TOO_LARGE);
	/* Changing one is no new one; and for one that goes another may come. */
	struct vm *vm = NULL;
	cleanup_json json_t *view = NULL;
	assert_int_equal(inventory_show(inventory, "vm-7", &view, NULL), 0);
	cleanup_json json_t *again = json_deep_copy(json_object_get(view, "definition"));
	cleanup_json json_t *changed = NULL;
	assert_int_equal(inventory_define(inventory, again, &changed, NULL), 0);
	assert_int_equal(inventory_lock(inventory, "vm-7", "undefine", &vm, NULL), 0);
	assert_int_equal(vm_undefine(inventory, vm, NULL), 0);
	inventory_unlock(inventory, vm);
	assert_int_equal(define(inventory, INVENTORY_VMS_MAX, NULL), 0);
	inventory_free(inventory);
	database_close(db);
}

static void test_hosts(void **state)
{
	(void)state;
	static const struct tls_files files;
	struct database *db = NULL;
	struct peers *peers = NULL;
	cleanup_error struct error *e = NULL;
	assert_int_equal(database_open(":memory:", &db, NULL), 0);
	assert_int_equal(peers_new(db, &files, &peers, NULL), 0);
	for (unsigned int i = 0; i < PEERS_MAX; i++) {
		cleanup_free char *name = xasprintf("host-%u", i);
		if (peers_add(peers, name, "198.18.0.1", 4710, &e) < 0)
			fail_msg("%u: %s", i, e->message);
	}
	assert_int_equal(peers_add(peers, "another", "198.18.0.1", 4710, &e), -1);
	assert_int_equal(e->code, ERROR_TOO_LARGE);
	assert_true(peers_add(peers, "host-7", "198.18.0.7", 4711, NULL) >= 0);
	assert_int_equal(peers_remove(peers, "host-8", NULL), 0);
	assert_true(peers_add(peers, "another", "198.18.0.1", 4710, NULL) >= 0);
	peers_free(peers);
	database_close(db);
}

int main(void)
{
	const struct CMUnitTest tests[] = {cmocka_unit_test(test_requests), cmocka_unit_test(test_vms),
					   cmocka_unit_test(test_hosts)};
	return cmocka_run_group_tests_name("limits", tests, NULL, NULL);
}
