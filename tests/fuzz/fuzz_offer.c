/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The offer (src/migration/offer.c), and the destination's checks of what it describes (src/vm/qemu_describe.c) against
 * a QEMU that is made up here. The input is the JSON body of `check` and `prepare`.
 *
 * Properties: what is accepted is written and read back the same; ids, counts and the definition are within their limits;
 * the checks end with failures that have a code and a message, or with an error.
 */
#include "qemu/probe.c" /* to put a probe into its cache, in place of asking a QEMU */

#include "base/json.h"
#include "fuzz.h"
#include "migration/offer.h"
#include "vm/qemu_machine.h"

#define BINARY "/proc/self/exe"

static struct qemu_probe probe = {.stage = PROBE_READY, .version = (char[]){"7.2.11"}, .major = 7};

static void make_probe(void)
{
	struct stat st;
	REQUIRE(stat(BINARY, &st) == 0);
	probe.binary = xstrdup(BINARY);
	probe.accelerator = xstrdup("tcg");
	probe.size_bytes = st.st_size;
	probe.changed = st.st_mtim;
	probe.machines = json_pack("{ss ss}", "pc", "pc-i440fx-7.2", "pc-i440fx-7.2", "pc-i440fx-7.2");
	probe.cpu_models = json_pack("{s[] s[s]}", "qemu64", "Skylake-Server", "avx512f");
	probe.cpu_features = json_pack("{sb sb}", "aes", 1, "svm", 0);
	probe.data_folders = json_pack("[s]", "/usr/share/seabios");
	cache = &probe;
}

static void check_description(const json_t *description)
{
	const struct driver_host host = {.binary = BINARY, .accelerator = "tcg", .uid = 0, .gid = 0};
	cleanup_json json_t *failures = json_array();
	struct error *e = NULL;
	if (!cache)
		make_probe();
	if (qemu_check_incoming(&host, description, failures, &e) < 0)
		fuzz_check_error(e);
	size_t i;
	const json_t *failure;
	json_array_foreach (failures, i, failure) {
		const char *code = json_string_value(json_object_get(failure, "code"));
		REQUIRE(code && error_code_from_name(code) < ERROR_CODE_COUNT);
		REQUIRE(json_is_string(json_object_get(failure, "message")));
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	cleanup_json json_t *json = fuzz_parse_json((const char *)data, size);
	struct offer offer = {0}, again = {0};
	struct error *e = NULL;
	if (!json)
		return 0;
	check_description(json_object_get(json, "description"));
	if (offer_parse(json, &offer, &e) < 0) {
		REQUIRE(!offer.definition && !offer.source);
		fuzz_check_error(e);
		return 0;
	}
	REQUIRE(offer_id_valid(offer.migration_id) && offer_id_valid(offer.source_journal));
	REQUIRE(offer.epoch >= 2 && offer.epoch <= INT64_MAX);
	REQUIRE(offer.channels >= 1 && offer.channels <= 64);
	REQUIRE(json_array_size(offer.proofs) <= DEFINITION_DISKS_MAX);
	REQUIRE(!offer.tls_key_hex || strlen(offer.tls_key_hex) == 64);
	cleanup_json json_t *written = offer_to_json(&offer);
	REQUIRE(offer_parse(written, &again, NULL) == 0);
	cleanup_json json_t *written_again = offer_to_json(&again);
	REQUIRE(json_equal(written, written_again));
	offer_done(&offer);
	offer_done(&again);
	return 0;
}
