/* SPDX-License-Identifier: Apache-2.0 */
/* QEMU's command line: the layout must never change by accident, or moves between versions of Ferry break. */
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
#include "vm/qemu_arguments.h"

static struct definition *define(const char *more)
{
	cleanup_free char *text = xasprintf(
		"{\"name\": \"web-1\", \"uuid\": \"0b3f1a9e-7c2d-4e5f-8a6b-112233445566\", \"memory_mib\": 512%s%s}",
		more[0] ? ", " : "", more);
	cleanup_json json_t *json = NULL;
	struct definition *definition = NULL;
	struct error *e = NULL;
	if (json_parse(text, strlen(text), &json, &e) < 0 || definition_parse(json, &definition, &e) < 0)
		fail_msg("%s: %s", more, e->message);
	return definition;
}

static const struct qemu_arguments_host pc = {.binary = "/usr/bin/qemu-system-x86_64",
					      .machine_type = "pc-i440fx-7.2",
					      .accelerator = "tcg",
					      .qemu_major = 7};

/* Every item of `wanted`, in this order, others between them. */
static void assert_in_order(char *const *arguments, const char *const wanted[])
{
	size_t at = 0;
	for (size_t i = 0; arguments[i] && wanted[at]; i++) {
		if (strcmp(arguments[i], wanted[at]) == 0)
			at++;
	}
	if (wanted[at]) {
		cleanup_free char *text = qemu_arguments_text(arguments);
		fail_msg("'%s' is not where it should be in: %s", wanted[at], text);
	}
}

static bool has(char *const *arguments, const char *wanted)
{
	for (size_t i = 0; arguments[i]; i++) {
		if (strcmp(arguments[i], wanted) == 0)
			return true;
	}
	return false;
}

static void test_smallest(void **state)
{
	(void)state;
	struct definition *definition = define("\"serial\": \"none\"");
	char **arguments = qemu_arguments_build(definition, &pc);
	cleanup_free char *text = qemu_arguments_text(arguments);
	assert_string_equal(
		text,
		"/usr/bin/qemu-system-x86_64 -sandbox "
		"on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"
		" -nodefaults -no-user-config -display none -msg timestamp=on -S -name guest=web-1,debug-threads=on"
		" -uuid 0b3f1a9e-7c2d-4e5f-8a6b-112233445566 -machine "
		"pc-i440fx-7.2,dump-guest-core=off,suppress-vmdesc=on"
		" -accel tcg,thread=multi -cpu qemu64,enforce=on -m size=524296K -smp "
		"cpus=1,sockets=1,cores=1,threads=1"
		" -chardev socket,id=qmp,fd=3,server=on,wait=off -mon chardev=qmp,mode=control");
	qemu_arguments_free(arguments);
	definition_free(definition);
}

/* Two pages more, and only where QEMU would lose writes otherwise. */
static void test_memory(void **state)
{
	(void)state;
	struct definition *definition = define("\"serial\": \"none\"");
	assert_int_equal(qemu_arguments_memory_kib(definition, "tcg", 7), 524288 + 8);
	assert_int_equal(qemu_arguments_memory_kib(definition, "tcg", 8), 524288 + 8);
	assert_int_equal(qemu_arguments_memory_kib(definition, "tcg", 9), 524288);
	assert_int_equal(qemu_arguments_memory_kib(definition, "tcg", 10), 524288);
	assert_int_equal(qemu_arguments_memory_kib(definition, "kvm", 7), 524288);
	struct qemu_arguments_host host = pc;
	host.qemu_major = 10;
	char **arguments = qemu_arguments_build(definition, &host);
	assert_true(has(arguments, "size=524288K"));
	qemu_arguments_free(arguments);
	definition_free(definition);
}

static void test_board(void **state)
{
	(void)state;
	struct definition *definition = define("\"cpu\": {\"model\": \"Westmere-v1\", \"features\": [\"aes\", "
					       "\"-svm\"]}, \"vcpus\": 4, \"kernel\": \"/boot/a,b\","
					       "\"initrd\": \"/boot/i\", \"cmdline\": \"root=/dev/vda a,b\", "
					       "\"extra_args\": [\"-device\", \"virtio-rng-pci\"]");
	struct qemu_arguments_host host = pc;
	host.accelerator = "kvm";
	host.incoming = true;
	char **arguments = qemu_arguments_build(definition, &host);
	assert_in_order(
		arguments,
		(const char *const[]){"-S",
				      "-incoming",
				      "defer",
				      "-accel",
				      "kvm",
				      "-cpu",
				      "Westmere-v1,aes=on,svm=off,enforce=on",
				      "size=524288K",
				      "cpus=4,sockets=1,cores=4,threads=1",
				      "fd=5,set=1,opaque=console-log",
				      "socket,id=console,fd=4,server=on,wait=off,logfile=/dev/fdset/1,logappend=on",
				      "-serial",
				      "chardev:console",
				      "-kernel",
				      "/boot/a,b",
				      "-initrd",
				      "/boot/i",
				      "-append",
				      "root=/dev/vda a,b",
				      "-device",
				      "virtio-rng-pci",
				      NULL});
	qemu_arguments_free(arguments);
	host.dirty_ring = true;
	arguments = qemu_arguments_build(definition, &host);
	assert_in_order(arguments, (const char *const[]){"-accel", "kvm,dirty-ring-size=4096", NULL});
	qemu_arguments_free(arguments);
	definition_free(definition);
}

static void test_nics(void **state)
{
	(void)state;
	struct definition *definition =
		define("\"nics\": [{\"bridge\": \"br0\", \"mac\": \"52:54:00:00:00:01\"},"
		       "{\"bridge\": \"br0\", \"mac\": \"52:54:00:00:00:02\", \"model\": \"e1000\"}]");
	char **arguments = qemu_arguments_build(definition, &pc);
	assert_in_order(arguments,
			(const char *const[]){
				"tap,id=net0,fd=6,vhost=off",
				"virtio-net-pci,id=nic0,netdev=net0,mac=52:54:00:00:00:01,bus=pci.0,addr=0x03,romfile=",
				"tap,id=net1,fd=7,vhost=off",
				"e1000,id=nic1,netdev=net1,mac=52:54:00:00:00:02,bus=pci.0,addr=0x04,romfile=", NULL});
	qemu_arguments_free(arguments);
	definition_free(definition);
}

static const char disks[] =
	"\"disks\": ["
	"{\"target\": \"vda\", \"path\": \"/a,\\\"b\", \"format\": \"qcow2\"},"
	"{\"target\": \"sda\", \"path\": \"/s\", \"format\": \"raw\", \"bus\": \"scsi\", \"cache\": \"directsync\"},"
	"{\"target\": \"sdb\", \"path\": \"/t\", \"format\": \"raw\", \"bus\": \"scsi\", \"readonly\": true},"
	"{\"target\": \"sdc\", \"path\": \"/u\", \"format\": \"raw\", \"bus\": \"sata\", \"cache\": \"writeback\"},"
	"{\"target\": \"vdb\", \"path\": \"/v\", \"format\": \"raw\", \"cache\": \"writethrough\"}]";

static void test_disks(void **state)
{
	(void)state;
	struct definition *definition = define(disks);
	struct qemu_arguments_host host = pc;
	host.disk_is_block_device[1] = true;
	char **arguments = qemu_arguments_build(definition, &host);
	assert_in_order(
		arguments,
		(const char *const[]){
			"-blockdev",
			"{\"driver\":\"file\",\"node-name\":\"disk-vda-file\",\"filename\":\"/"
			"a,\\\"b\",\"read-only\":false,"
			"\"locking\":\"on\",\"aio\":\"threads\",\"discard\":\"unmap\",\"cache\":{\"direct\":true,\"no-"
			"flush\":false}}",
			"{\"driver\":\"qcow2\",\"node-name\":\"disk-vda\",\"file\":\"disk-vda-file\",\"read-only\":"
			"false,"
			"\"discard\":\"unmap\",\"cache\":{\"direct\":true,\"no-flush\":false}}",
			"virtio-blk-pci,id=disk-vda-device,drive=disk-vda,write-cache=on,bootindex=1,bus=pci.0,addr="
			"0x0b",
			"{\"driver\":\"host_device\",\"node-name\":\"disk-sda-file\",\"filename\":\"/"
			"s\",\"read-only\":false,"
			"\"locking\":\"on\",\"aio\":\"threads\",\"discard\":\"unmap\",\"cache\":{\"direct\":true,\"no-"
			"flush\":false}}",
			"virtio-scsi-pci,id=scsi0,bus=pci.0,addr=0x0c",
			"scsi-hd,id=disk-sda-device,drive=disk-sda,write-cache=off,bootindex=2,bus=scsi0.0,channel=0,"
			"scsi-id=0,lun=0",
			"{\"driver\":\"raw\",\"node-name\":\"disk-sdb\",\"file\":\"disk-sdb-file\",\"read-only\":true,"
			"\"discard\":\"unmap\",\"cache\":{\"direct\":true,\"no-flush\":false}}",
			"scsi-hd,id=disk-sdb-device,drive=disk-sdb,write-cache=on,bootindex=3,bus=scsi0.0,channel=0,"
			"scsi-id=1,lun=0",
			"{\"driver\":\"raw\",\"node-name\":\"disk-sdc\",\"file\":\"disk-sdc-file\",\"read-only\":false,"
			"\"discard\":\"unmap\",\"cache\":{\"direct\":false,\"no-flush\":false}}",
			"ahci,id=sata0,bus=pci.0,addr=0x0e",
			"ide-hd,id=disk-sdc-device,drive=disk-sdc,write-cache=on,bootindex=4,bus=sata0.0",
			"virtio-blk-pci,id=disk-vdb-device,drive=disk-vdb,write-cache=off,bootindex=5,bus=pci.0,addr="
			"0x0f",
			NULL});
	qemu_arguments_free(arguments);

	/* q35: its own bus, and its own AHCI controller. */
	host.machine_type = "pc-q35-7.2";
	arguments = qemu_arguments_build(definition, &host);
	assert_true(has(arguments, "virtio-scsi-pci,id=scsi0,bus=pcie.0,addr=0x0c"));
	assert_true(has(arguments, "ide-hd,id=disk-sdc-device,drive=disk-sdc,write-cache=on,bootindex=4,bus=ide.0"));
	assert_false(has(arguments, "ahci,id=sata0,bus=pcie.0,addr=0x0e"));
	qemu_arguments_free(arguments);
	definition_free(definition);
}

static void test_text_is_for_a_shell(void **state)
{
	(void)state;
	char *arguments[] = {xstrdup("a"), xstrdup("b c"), xstrdup("it's"), xstrdup(""), NULL};
	cleanup_free char *text = qemu_arguments_text(arguments);
	assert_string_equal(text, "a 'b c' 'it'\\''s' ''");
	for (size_t i = 0; i < 4; i++)
		free(arguments[i]);
}

static void test_snapshot_mode(void **state)
{
	(void)state;
	static const struct {
		const char *more;
		bool snapshot;
	} cases[] = {
		{"", false},
		{"\"extra_args\": [\"-snapshot\"]", true},
		{"\"extra_args\": [\"--snapshot\"]", true},
		{"\"extra_args\": [\"-drive\", \"file=/a,if=virtio,snapshot=on\"]", true},
		{"\"extra_args\": [\"-drive\", \"file=/a,if=virtio,snapshot=off\"]", false},
		{"\"extra_args\": [\"-device\", \"virtio-rng-pci\"]", false},
	};
	for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
		struct definition *definition = define(cases[i].more);
		assert_int_equal(qemu_arguments_snapshot_mode(definition), cases[i].snapshot);
		definition_free(definition);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_smallest),      cmocka_unit_test(test_memory),
		cmocka_unit_test(test_board),         cmocka_unit_test(test_nics),
		cmocka_unit_test(test_disks),         cmocka_unit_test(test_text_is_for_a_shell),
		cmocka_unit_test(test_snapshot_mode),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
