/* SPDX-License-Identifier: Apache-2.0 */
/*
 * VM definitions (src/vm/definition.c), and QEMU's command line made of them. The input is the JSON document; a key
 * "maps" of it, an array, is what --map would say, and is taken out before.
 *
 * Properties: what is accepted is written and read back the same; its counts and lengths are within their limits; a map
 * changes names only; the command line has none of the arguments that only Ferry gives, and no control characters.
 */
#include "fuzz.h"

#include <string.h>

#include "base/cleanup.h"
#include "base/json.h"
#include "vm/definition.h"
#include "vm/qemu_arguments.h"

static void check_limits(const struct definition *definition)
{
	REQUIRE(definition_name_valid(definition->name));
	REQUIRE(strlen(definition->name) <= DEFINITION_NAME_MAX && !strchr(definition->name, '/'));
	REQUIRE(strlen(definition->uuid) == DEFINITION_UUID_SIZE - 1);
	REQUIRE(strlen(definition->owner) <= 63);
	REQUIRE(definition->disk_count <= DEFINITION_DISKS_MAX);
	REQUIRE(definition->nic_count <= DEFINITION_NICS_MAX);
	REQUIRE(definition->cpu_feature_count <= 256 && definition->extra_arg_count <= 256);
	REQUIRE(definition->vcpus >= 1 && definition->vcpus <= 255);
	REQUIRE(definition->memory_mib >= 1 && definition->memory_mib <= 16ULL << 20);
	for (size_t i = 0; i < definition->disk_count; i++) {
		REQUIRE(definition->disks[i].path[0] == '/' && strlen(definition->disks[i].path) <= 4096);
		REQUIRE(strlen(definition->disks[i].target) <= 16);
	}
	for (size_t i = 0; i < definition->nic_count; i++) {
		REQUIRE(strlen(definition->nics[i].bridge) <= 15 && !strchr(definition->nics[i].bridge, '/'));
		REQUIRE(strlen(definition->nics[i].mac) == 17);
	}
	for (size_t i = 0; i < definition->extra_arg_count; i++)
		REQUIRE(strlen(definition->extra_args[i]) <= 4096);
}

/* Comments of QEMU's option parser: a comma in a value is written twice, so that no value can add a key of its own. */
static void check_command_line(const struct definition *definition)
{
	const bool no_devices[DEFINITION_DISKS_MAX] = {false};
	struct qemu_arguments_host host = {
		.binary = "/usr/bin/qemu-system-x86_64", .machine_type = definition->machine, .accelerator = "tcg", .qemu_major = 7};
	memcpy(host.disk_is_block_device, no_devices, sizeof(host.disk_is_block_device));
	char **arguments = qemu_arguments_build(definition, &host);
	size_t count = 0;
	for (; arguments[count]; count++) {
		for (const char *c = arguments[count]; *c; c++)
			REQUIRE((unsigned char)*c >= 0x20 && *c != 0x7f);
		REQUIRE(strcmp(arguments[count], "-incoming") != 0);
	}
	REQUIRE(count >= definition->extra_arg_count);
	cleanup_free char *text = qemu_arguments_text(arguments);
	REQUIRE(text);
	(void)qemu_arguments_snapshot_mode(definition);
	(void)qemu_arguments_memory_kib(definition, "tcg", 7);
	qemu_arguments_free(arguments);
}

static void check_round_trip(const struct definition *definition)
{
	cleanup_json json_t *written = definition_to_json(definition);
	struct definition *again = NULL;
	REQUIRE(written);
	REQUIRE(definition_parse(written, &again, NULL) == 0);
	cleanup_json json_t *written_again = definition_to_json(again);
	REQUIRE(json_equal(written, written_again));
	definition_free(again);
}

static void check_map(const struct definition *definition, const json_t *maps)
{
	const char *texts[64];
	size_t count = 0, i;
	const json_t *map;
	json_array_foreach (maps, i, map)
		if (json_is_string(map) && count < 64)
			texts[count++] = json_string_value(map);
	struct definition *mapped = NULL;
	struct error *e = NULL;
	if (definition_map(definition, texts, count, &mapped, &e) < 0) {
		fuzz_check_error(e);
		return;
	}
	check_limits(mapped);
	REQUIRE(strcmp(mapped->uuid, definition->uuid) == 0);
	REQUIRE(mapped->disk_count == definition->disk_count && mapped->nic_count == definition->nic_count);
	if (count == 0) {
		cleanup_json json_t *before = definition_to_json(definition);
		cleanup_json json_t *after = definition_to_json(mapped);
		REQUIRE(json_equal(before, after));
	}
	definition_free(mapped);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	cleanup_json json_t *json = fuzz_parse_json((const char *)data, size);
	cleanup_json json_t *maps = NULL;
	if (!json)
		return 0;
	if (json_is_object(json)) {
		maps = json_incref(json_object_get(json, "maps"));
		json_object_del(json, "maps");
	}
	struct definition *definition = NULL;
	struct error *e = NULL;
	if (definition_parse(json, &definition, &e) < 0) {
		REQUIRE(!definition);
		REQUIRE(e->code == ERROR_VM_DEFINITION);
		fuzz_check_error(e);
		return 0;
	}
	check_limits(definition);
	check_round_trip(definition);
	check_command_line(definition);
	check_map(definition, maps);
	definition_free(definition);
	return 0;
}
