/* SPDX-License-Identifier: Apache-2.0 */
/* VM definitions: what is accepted, what is refused and with which words, what is written out. */
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
#include "vm/definition.h"

/* A definition with a name and memory, and `more` keys. */
static int parse(const char *more, struct definition **ret, struct error **e)
{
	cleanup_free char *text =
		xasprintf("{\"name\": \"web-1\", \"memory_mib\": 512%s%s}", more[0] ? ", " : "", more);
	cleanup_json json_t *json = NULL;
	if (json_parse(text, strlen(text), &json, e) < 0)
		fail_msg("the test's JSON: %s", (*e)->message);
	return definition_parse(json, ret, e);
}

static struct definition *parse_good(const char *more)
{
	struct definition *definition = NULL;
	struct error *e = NULL;
	if (parse(more, &definition, &e) < 0)
		fail_msg("%s: %s", more, e->message);
	return definition;
}

static void test_defaults(void **state)
{
	(void)state;
	struct definition *definition = parse_good("");
	assert_string_equal(definition->name, "web-1");
	assert_int_equal(strlen(definition->uuid), 36);
	assert_string_equal(definition->owner, "");
	assert_string_equal(definition->machine, "pc");
	assert_string_equal(definition->cpu_model, "qemu64");
	assert_int_equal(definition->cpu_feature_count, 0);
	assert_int_equal(definition->vcpus, 1);
	assert_int_equal(definition->memory_mib, 512);
	assert_int_equal(definition->disk_count, 0);
	assert_int_equal(definition->nic_count, 0);
	assert_true(definition->serial);
	assert_null(definition->kernel);
	assert_false(definition->autostart);
	struct definition *other = parse_good("");
	assert_string_not_equal(definition->uuid, other->uuid);
	definition_free(other);
	definition_free(definition);
}

static const char everything[] =
	"\"uuid\": \"0B3F1A9E-7C2D-4E5F-8A6B-112233445566\", \"owner\": \"team-a\", \"machine\": \"pc-q35-7.2\","
	"\"cpu\": {\"model\": \"Westmere-v1\", \"features\": [\"aes\", \"-svm\", \"+x2apic\"]}, \"vcpus\": 4,"
	"\"disks\": [{\"target\": \"vda\", \"path\": \"/srv/a,b c.qcow2\", \"format\": \"qcow2\"},"
	"            {\"target\": \"sda\", \"path\": \"/dev/vg/b\", \"format\": \"raw\", \"bus\": \"scsi\", \"cache\": "
	"\"writeback\","
	"             \"readonly\": true}],"
	"\"nics\": [{\"bridge\": \"br0\", \"mac\": \"52:54:00:AB:CD:EF\", \"model\": \"e1000\"}, {\"bridge\": "
	"\"br1\"}],"
	"\"serial\": \"none\", \"kernel\": \"/boot/vmlinuz\", \"initrd\": \"/boot/initrd\", \"cmdline\": "
	"\"root=/dev/vda quiet\","
	"\"autostart\": true, \"extra_args\": [\"-device\", \"virtio-rng-pci\"]";

static void test_everything(void **state)
{
	(void)state;
	struct definition *definition = parse_good(everything);
	assert_string_equal(definition->uuid, "0b3f1a9e-7c2d-4e5f-8a6b-112233445566");
	assert_int_equal(definition->cpu_feature_count, 3);
	assert_string_equal(definition->cpu_features[0], "+aes");
	assert_string_equal(definition->cpu_features[1], "-svm");
	assert_string_equal(definition->cpu_features[2], "+x2apic");
	assert_int_equal(definition->disk_count, 2);
	assert_int_equal(definition->disks[0].bus, DISK_BUS_VIRTIO);
	assert_int_equal(definition->disks[0].cache, DISK_CACHE_NONE);
	assert_false(definition->disks[0].readonly);
	assert_int_equal(definition->disks[1].bus, DISK_BUS_SCSI);
	assert_int_equal(definition->disks[1].cache, DISK_CACHE_WRITEBACK);
	assert_true(definition->disks[1].readonly);
	assert_string_equal(definition->nics[0].mac, "52:54:00:ab:cd:ef");
	assert_string_equal(definition->nics[1].model, "virtio");
	assert_memory_equal(definition->nics[1].mac, "52:54:00:", 9);
	assert_false(definition->serial);

	/* Written out and read again it is the same, the uuid and the made-up address included. */
	cleanup_json json_t *written = definition_to_json(definition);
	struct definition *again = NULL;
	assert_int_equal(definition_parse(written, &again, NULL), 0);
	cleanup_json json_t *rewritten = definition_to_json(again);
	assert_true(json_equal(written, rewritten));
	definition_free(again);
	definition_free(definition);
}

static void test_refused(void **state)
{
	(void)state;
	/* The message must name the key. */
	static const struct {
		const char *more, *words;
	} cases[] = {
		{"\"colour\": 1", "'colour'"},
		{"\"firmware\": {\"type\": \"uefi\"}", "firmware: this version"},
		{"\"graphics\": []", "graphics: this version"},
		{"\"tpm\": true", "tpm: this version"},
		{"\"uuid\": \"0b3f1a9e7c2d4e5f8a6b112233445566\"", "uuid"},
		{"\"owner\": \"a b\"", "owner"},
		{"\"machine\": \"microvm\"", "machine"},
		{"\"machine\": \"pc-q35-7.2,accel=kvm\"", "machine"},
		{"\"cpu\": \"host\"", "'cpu'"},
		{"\"cpu\": {\"model\": \"a,b\"}", "cpu.model"},
		{"\"cpu\": {\"model\": 5}", "cpu"},
		{"\"cpu\": {\"speed\": 5}", "cpu"},
		{"\"cpu\": {\"features\": [\"+aes\", \"x=y\"]}", "cpu.features[1]"},
		{"\"cpu\": {\"features\": [5]}", "cpu.features[0]"},
		{"\"vcpus\": 0", "'vcpus'"},
		{"\"vcpus\": 256", "'vcpus'"},
		{"\"vcpus\": \"2\"", "'vcpus'"},
		{"\"serial\": \"yes\"", "serial"},
		{"\"kernel\": \"boot/vmlinuz\"", "kernel"},
		{"\"initrd\": \"/boot/initrd\"", "initrd: needs"},
		{"\"cmdline\": \"quiet\"", "cmdline: needs"},
		{"\"kernel\": \"/k\", \"cmdline\": \"a\\nb\"", "cmdline"},
		{"\"autostart\": 1", "'autostart'"},
		{"\"disks\": {}", "'disks'"},
		{"\"disks\": [5]", "disks[0]"},
		{"\"disks\": [{}]", "disks[0].target"},
		{"\"disks\": [{\"target\": \"vda\", \"path\": \"/a\"}]", "disks[0].format"},
		{"\"disks\": [{\"target\": \"vda\", \"format\": \"raw\"}]", "disks[0].path"},
		{"\"disks\": [{\"target\": \"vda\", \"path\": \"a\", \"format\": \"raw\"}]", "disks[0].path"},
		{"\"disks\": [{\"target\": \"v,a\", \"path\": \"/a\", \"format\": \"raw\"}]", "disks[0].target"},
		{"\"disks\": [{\"target\": \"vda\", \"path\": \"/a\", \"format\": \"vmdk\"}]", "disks[0].format"},
		{"\"disks\": [{\"target\": \"vda\", \"path\": \"/a\", \"format\": \"raw\", \"bus\": \"ide\"}]",
		 "disks[0].bus"},
		{"\"disks\": [{\"target\": \"vda\", \"path\": \"/a\", \"format\": \"raw\"}, {\"target\": \"vdb\", "
		 "\"path\": \"/b\", "
		 "\"format\": \"raw\", \"cache\": \"unsafe\"}]",
		 "disks[1].cache"},
		{"\"disks\": [{\"target\": \"vda\", \"path\": \"/a\", \"format\": \"raw\"}, {\"target\": \"vda\", "
		 "\"path\": \"/b\", "
		 "\"format\": \"raw\"}]",
		 "disks[1].target"},
		{"\"disks\": [{\"target\": \"vda\", \"path\": \"/a\", \"format\": \"raw\"}, {\"target\": \"vdb\", "
		 "\"path\": \"/a\", "
		 "\"format\": \"raw\"}]",
		 "disks[1].path"},
		{"\"disks\": [{\"target\": \"vda\", \"path\": \"/a\", \"format\": \"raw\", \"migrate\": \"copy\"}]",
		 "disks[0].migrate"},
		{"\"disks\": [{\"target\": \"sda\", \"path\": \"/a\", \"format\": \"raw\", \"bus\": \"sata\", "
		 "\"readonly\": true}]",
		 "disks[0].readonly"},
		{"\"nics\": [{}]", "nics[0].bridge"},
		{"\"nics\": [{\"bridge\": \"a/b\"}]", "nics[0].bridge"},
		{"\"nics\": [{\"bridge\": \"a-name-that-is-too-long\"}]", "nics[0].bridge"},
		{"\"nics\": [{\"bridge\": \"br0\", \"mac\": \"53:54:00:00:00:01\"}]", "nics[0].mac"},
		{"\"nics\": [{\"bridge\": \"br0\", \"mac\": \"00:00:00:00:00:00\"}]", "nics[0].mac"},
		{"\"nics\": [{\"bridge\": \"br0\", \"mac\": \"52:54:00:00:00:1\"}]", "nics[0].mac"},
		{"\"nics\": [{\"bridge\": \"br0\", \"model\": \"rtl8139\"}]", "nics[0].model"},
		{"\"nics\": [{\"bridge\": \"br0\", \"mac\": \"52:54:00:00:00:01\"}, {\"bridge\": \"br0\", \"mac\": "
		 "\"52:54:00:00:00:01\"}]",
		 "nics[1].mac"},
		{"\"extra_args\": \"-snapshot\"", "'extra_args'"},
		{"\"extra_args\": [\"-S\"]", "extra_args[0]"},
		{"\"extra_args\": [\"-device\", \"x\", \"--incoming\", \"defer\"]", "extra_args[2]"},
		{"\"extra_args\": [5]", "extra_args[0]"},
	};
	for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
		struct definition *definition = NULL;
		cleanup_error struct error *e = NULL;
		if (parse(cases[i].more, &definition, &e) == 0)
			fail_msg("accepted: %s", cases[i].more);
		if (e->code != ERROR_VM_DEFINITION || !strstr(e->message, cases[i].words))
			fail_msg("%s: %s: '%s'", cases[i].more, error_code_name(e->code), e->message);
	}
}

static void test_names(void **state)
{
	(void)state;
	assert_true(definition_name_valid("a"));
	assert_true(definition_name_valid("_a.b-C9"));
	assert_false(definition_name_valid(""));
	assert_false(definition_name_valid("-a"));
	assert_false(definition_name_valid(".."));
	assert_false(definition_name_valid("a/b"));
	assert_false(definition_name_valid("a b"));
	assert_false(definition_name_valid("a\xc3\xa4"));
	char name[DEFINITION_NAME_MAX + 2];
	memset(name, 'a', sizeof(name));
	name[DEFINITION_NAME_MAX] = 0;
	assert_true(definition_name_valid(name));
	name[DEFINITION_NAME_MAX] = 'a';
	name[DEFINITION_NAME_MAX + 1] = 0;
	assert_false(definition_name_valid(name));
}

static void test_limits(void **state)
{
	(void)state;
	cleanup_json json_t *root = json_pack("{s:s, s:i, s:[]}", "name", "a", "memory_mib", 64, "disks");
	json_t *disks = json_object_get(root, "disks");
	for (int i = 0; i < DEFINITION_DISKS_MAX; i++)
		json_array_append_new(disks, json_pack("{s:o, s:o, s:s, s:s}", "target", json_sprintf("d%d", i), "path",
						       json_sprintf("/d%d", i), "format", "raw", "bus", "virtio"));
	struct definition *definition = NULL;
	assert_int_equal(definition_parse(root, &definition, NULL), 0);
	definition_free(definition);
	cleanup_error struct error *e = NULL;
	for (size_t i = 0; i < 7; i++)
		json_object_set_new(json_array_get(disks, i), "bus", json_string("sata"));
	assert_int_equal(definition_parse(root, &definition, &e), -1);
	assert_non_null(strstr(e->message, "disks[6].bus"));
	error_free(take_ptr(e));
	json_array_append_new(disks, json_object());
	assert_int_equal(definition_parse(root, &definition, &e), -1);
	assert_non_null(strstr(e->message, "disks"));
}

static void test_map(void **state)
{
	(void)state;
	struct definition *definition = parse_good(everything), *mapped = NULL;
	const char *const maps[] = {"bridge:br0=br1", "bridge:br1=br0", "disk:/dev/vg/b=/dev/other/b",
				    "disk:/not/there=/x"};
	assert_int_equal(definition_map(definition, maps, 4, &mapped, NULL), 0);
	/* All at once: a swap is a swap. */
	assert_string_equal(mapped->nics[0].bridge, "br1");
	assert_string_equal(mapped->nics[1].bridge, "br0");
	assert_string_equal(mapped->disks[0].path, definition->disks[0].path);
	assert_string_equal(mapped->disks[1].path, "/dev/other/b");
	assert_string_equal(mapped->uuid, definition->uuid);
	assert_string_equal(mapped->nics[1].mac, definition->nics[1].mac);
	assert_string_equal(definition->nics[0].bridge, "br0");
	definition_free(mapped);

	static const char *const wrong[] = {"", "bridge", "bridge:", "bridge:a", "bridge:=a", "bridge:a=", "cable:a=b"};
	for (size_t i = 0; i < sizeof(wrong) / sizeof(*wrong); i++) {
		cleanup_error struct error *e = NULL;
		assert_int_equal(definition_map(definition, &wrong[i], 1, &mapped, &e), -1);
		assert_int_equal(e->code, ERROR_INVALID_ARGUMENT);
	}
	cleanup_error struct error *e = NULL;
	const char *const bad_name[] = {"bridge:br0=a/b"};
	assert_int_equal(definition_map(definition, bad_name, 1, &mapped, &e), -1);
	assert_int_equal(e->code, ERROR_VM_DEFINITION);
	definition_free(definition);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_defaults), cmocka_unit_test(test_everything), cmocka_unit_test(test_refused),
		cmocka_unit_test(test_names),    cmocka_unit_test(test_limits),     cmocka_unit_test(test_map),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
