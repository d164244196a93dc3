/* SPDX-License-Identifier: Apache-2.0 */
/* The offer of a VM (migration/offer.h): there and back, and everything that a wrong one may be wrong in. */
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
#include "migration/host.h"
#include "migration/offer.h"

#define ID "00112233445566778899aabbccddeeff"
#define JOURNAL "ffeeddccbbaa99887766554433221100"
#define KEY "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"

static const char good[] = "{\"protocol\": 1, \"migration\": \"" ID
			   "\", \"source\": \"host-a\", \"journal\": \"" JOURNAL "\", \"epoch\": 7,"
			   " \"paused\": true, \"channels\": 4, \"postcopy\": true, \"relay\": false, \"tls_key_hex\": \"" KEY "\","
			   " \"definition\": {\"name\": \"web-1\", \"uuid\": \"0b3f1a9e-7c2d-4e5f-8a6b-112233445566\", "
			   "\"memory_mib\": 512,"
			   "   \"disks\": [{\"target\": \"vda\", \"path\": \"/srv/a\", \"format\": \"raw\"}]},"
			   " \"description\": {\"accelerator\": \"tcg\"},"
			   " \"proofs\": [{\"target\": \"vda\", \"path\": \"/srv/a\", \"inode\": 12, \"probe\": "
			   "\"/srv/.p\", \"token\": \"" ID "\"}]}";

static json_t *good_json(void)
{
	json_t *json = NULL;
	assert_int_equal(json_parse(good, strlen(good), &json, NULL), 0);
	return json;
}

static void test_round_trip(void **state)
{
	(void)state;
	cleanup_json json_t *json = good_json();
	struct offer offer = {0}, again = {0};
	assert_int_equal(offer_parse(json, &offer, NULL), 0);
	assert_string_equal(offer.migration_id, ID);
	assert_string_equal(offer.source, "host-a");
	assert_string_equal(offer.source_journal, JOURNAL);
	assert_int_equal(offer.epoch, 7);
	assert_true(offer.paused);
	assert_int_equal(offer.channels, 4);
	assert_true(offer.postcopy);
	assert_string_equal(offer.tls_key_hex, KEY);
	assert_string_equal(offer.definition->name, "web-1");
	assert_int_equal(json_array_size(offer.proofs), 1);
	cleanup_json json_t *written = offer_to_json(&offer);
	assert_int_equal(offer_parse(written, &again, NULL), 0);
	cleanup_json json_t *written_again = offer_to_json(&again);
	assert_true(json_equal(written, written_again));
	/* What is written holds all that was read; only the definition says its defaults too. */
	json_object_set(json, "definition", json_object_get(written, "definition"));
	assert_true(json_equal(written, json));
	offer_done(&offer);
	offer_done(&again);
	offer_done(&again); /* of an empty one: nothing */
}

static void test_without_key(void **state)
{
	(void)state;
	cleanup_json json_t *json = good_json();
	struct offer offer = {0};
	json_object_del(json, "tls_key_hex");
	assert_int_equal(offer_parse(json, &offer, NULL), 0);
	assert_null(offer.tls_key_hex);
	cleanup_json json_t *written = offer_to_json(&offer);
	assert_null(json_object_get(written, "tls_key_hex"));
	offer_done(&offer);
}

/* The value of `key` (a path such as "proofs/inode") replaced by this text, or taken out; refused with this code and
 * word. */
static void refused(const char *key, const char *value, enum error_code code, const char *word)
{
	cleanup_json json_t *json = good_json();
	json_t *in = json;
	if (strncmp(key, "proofs/", 7) == 0) {
		in = json_array_get(json_object_get(json, "proofs"), 0);
		key += 7;
	}
	if (strncmp(key, "definition/", 11) == 0) {
		in = json_object_get(json, "definition");
		key += 11;
	}
	if (value)
		assert_int_equal(
			json_object_set_new(in, key, json_loads(value, JSON_DECODE_ANY | JSON_ALLOW_NUL, NULL)), 0);
	else
		assert_int_equal(json_object_del(in, key), 0);
	struct offer offer = {0};
	cleanup_error struct error *e = NULL;
	if (offer_parse(json, &offer, &e) == 0)
		fail_msg("accepted: %s = %s", key, value ? value : "(nothing)");
	if (e->code != code || !strstr(e->message, word))
		fail_msg("%s = %s: %s '%s'", key, value ? value : "(nothing)", error_code_name(e->code), e->message);
	assert_null(offer.definition); /* untouched on failure */
}

static void test_missing(void **state)
{
	(void)state;
	static const char *const keys[] = {"protocol",     "migration",    "source",        "journal",
					   "epoch",        "paused",       "channels",      "definition",
					   "description",  "proofs",       "proofs/target", "proofs/path",
					   "proofs/probe", "proofs/token", "proofs/inode"};
	for (size_t i = 0; i < sizeof(keys) / sizeof(keys[0]); i++) {
		refused(keys[i], NULL, ERROR_INVALID_ARGUMENT, "is missing");
		refused(keys[i], "null", ERROR_INVALID_ARGUMENT, "is missing");
	}
	refused("definition/name", NULL, ERROR_VM_DEFINITION, "offered definition");
}

static void test_wrong(void **state)
{
	(void)state;
	static const char *const strings[] = {"migration",   "source",        "journal",
					      "tls_key_hex", "proofs/target", "proofs/token"};
	for (size_t i = 0; i < sizeof(strings) / sizeof(strings[0]); i++) {
		refused(strings[i], "7", ERROR_INVALID_ARGUMENT, "a string");
		refused(strings[i], "[\"x\"]", ERROR_INVALID_ARGUMENT, "a string");
	}
	refused("protocol", "\"1\"", ERROR_INVALID_ARGUMENT, "a whole number");
	refused("protocol", "2", ERROR_PEER_VERSION, "protocol 2");
	refused("protocol", "0", ERROR_PEER_VERSION, "protocol 0");
	refused("epoch", "1", ERROR_INVALID_ARGUMENT, "epoch"); /* the first that can be taken is 2 */
	refused("epoch", "-1", ERROR_INVALID_ARGUMENT, "epoch");
	refused("epoch", "2.0", ERROR_INVALID_ARGUMENT, "a whole number");
	refused("paused", "1", ERROR_INVALID_ARGUMENT, "true or false");
	refused("channels", "0", ERROR_INVALID_ARGUMENT, "channels");
	refused("channels", "65", ERROR_INVALID_ARGUMENT, "channels");
	refused("definition", "[]", ERROR_INVALID_ARGUMENT, "an object");
	refused("definition/memory_mib", "0", ERROR_VM_DEFINITION, "memory_mib");
	refused("definition/unknown", "1", ERROR_VM_DEFINITION, "unknown");
	refused("definition/uuid", "\"../../etc\"", ERROR_VM_DEFINITION, "uuid");
	refused("definition/name", "\"a/b\"", ERROR_VM_DEFINITION, "name");
	refused("description", "\"x\"", ERROR_INVALID_ARGUMENT, "an object");
	refused("proofs", "{}", ERROR_INVALID_ARGUMENT, "an array");
	refused("proofs", "[7]", ERROR_INVALID_ARGUMENT, "proofs[0]");
	refused("proofs/inode", "-1", ERROR_INVALID_ARGUMENT, "inode");
	refused("proofs/inode", "\"12\"", ERROR_INVALID_ARGUMENT, "a whole number");
	refused("proofs/path", "\"a\\u0000b\"", ERROR_INVALID_ARGUMENT, "a string");
}

static void test_uuids(void **state)
{
	(void)state;
	static const char good_uuid[] = "0b3f1a9e-7c2d-4e5f-8a6b-112233445566";
	static const char *const bad[] = {"", "x", "0b3f1a9e-7c2d-4e5f-8a6b-11223344556", "0b3f1a9e-7c2d-4e5f-8a6b-1122334455667",
					  "0B3F1A9E-7C2D-4E5F-8A6B-112233445566", "0b3f1a9e07c2d-4e5f-8a6b-112233445566",
					  "0b3f1a9e-7c2d-4e5f-8a6b-11223344556g", "../../../../../../../../etc/passwd00"};
	assert_true(offer_uuid_valid(good_uuid));
	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
		if (offer_uuid_valid(bad[i]))
			fail_msg("'%s' was taken", bad[i]);
	/* One that is missing would be another at each reading. */
	refused("definition/uuid", NULL, ERROR_PEER_PROTOCOL, "no uuid");
	refused("definition/uuid", "null", ERROR_PEER_PROTOCOL, "no uuid");
}

static void test_epochs_end(void **state)
{
	(void)state;
	cleanup_json json_t *json = good_json();
	struct offer offer = {0};
	json_object_set_new(json, "epoch", json_integer(OFFER_EPOCH_MAX));
	assert_int_equal(offer_parse(json, &offer, NULL), 0);
	offer_done(&offer);
	refused("epoch", "9007199254740992", ERROR_INVALID_ARGUMENT, "epoch");
	refused("epoch", "9223372036854775807", ERROR_INVALID_ARGUMENT, "epoch");
}

static void test_ids(void **state)
{
	(void)state;
	assert_true(offer_id_valid(ID));
	char id[RANDOM_ID_SIZE];
	random_id(id);
	assert_true(offer_id_valid(id));
	static const char *const bad[] = {"",
					  "0",
					  "00112233445566778899aabbccddeef",
					  ID "0",
					  "00112233445566778899AABBCCDDEEFF",
					  "00112233445566778899aabbccddeefg",
					  "0x112233445566778899aabbccddeeff",
					  " 0112233445566778899aabbccddeeff",
					  "00112233-4455-6677-8899-aabbccdd"};
	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		cleanup_free char *quoted = xasprintf("\"%s\"", bad[i]);
		assert_false(offer_id_valid(bad[i]));
		refused("migration", quoted, ERROR_PEER_PROTOCOL, "'migration' is not an id");
		refused("journal", quoted, ERROR_PEER_PROTOCOL, "'journal' is not an id");
	}
	refused("proofs/token", "\"SSH-2.0-OpenSSH_9.2p1 Debian-2+d\"", ERROR_PEER_PROTOCOL, "proofs[0].token");
	refused("tls_key_hex", "\"\"", ERROR_PEER_PROTOCOL, "64 hex digits");
	refused("tls_key_hex", "\"" KEY "0\"", ERROR_PEER_PROTOCOL, "64 hex digits");
	refused("tls_key_hex", "\"" ID "\"", ERROR_PEER_PROTOCOL, "64 hex digits");
	refused("tls_key_hex", "\"g123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef\"",
		ERROR_PEER_PROTOCOL, "64 hex digits");
}

static void test_too_many(void **state)
{
	(void)state;
	cleanup_json json_t *proofs = json_array();
	cleanup_json json_t *json = good_json();
	json_t *proof = json_array_get(json_object_get(json, "proofs"), 0);
	for (int i = 0; i < DEFINITION_DISKS_MAX; i++)
		json_array_append(proofs, proof);
	json_object_set(json, "proofs", proofs);
	struct offer offer = {0};
	assert_int_equal(offer_parse(json, &offer, NULL), 0);
	offer_done(&offer);
	json_array_append(proofs, proof);
	cleanup_error struct error *e = NULL;
	assert_int_equal(offer_parse(json, &offer, &e), -1);
	assert_int_equal(e->code, ERROR_TOO_LARGE);
	cleanup_free char *name = xasprintf("\"%0100d\"", 7);
	refused("definition/name", name, ERROR_VM_DEFINITION, "name");
}

static void test_no_object(void **state)
{
	(void)state;
	static const char *const texts[] = {"null", "[]", "7", "\"x\"", "{}", "[{\"protocol\": 1}]"};
	for (size_t i = 0; i < sizeof(texts) / sizeof(texts[0]); i++) {
		cleanup_json json_t *json = json_loads(texts[i], JSON_DECODE_ANY, NULL);
		struct offer offer = {0};
		assert_int_equal(offer_parse(json, &offer, NULL), -1);
	}
	struct offer offer = {0};
	assert_int_equal(offer_parse(NULL, &offer, NULL), -1); /* a message without a body */
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_round_trip), cmocka_unit_test(test_without_key), cmocka_unit_test(test_missing),
		cmocka_unit_test(test_wrong),      cmocka_unit_test(test_uuids), cmocka_unit_test(test_epochs_end),
		cmocka_unit_test(test_ids),         cmocka_unit_test(test_too_many),
		cmocka_unit_test(test_no_object),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
