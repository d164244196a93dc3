/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a running machine is, exactly, and whether this host could run what another host describes.
 *
 * Firmware is part of it: QEMU puts the BIOS and option ROMs into blocks of guest memory, and a block that has another
 * size on the destination fails the load. Their sizes are those of the files at the machine's start (a later upgrade of
 * the package does not change what runs), kept in actual.json.
 *
 * A named CPU model without a version is exact enough: the versioned machine type decides which version it stands for,
 * on every host. Only `max`, `host` and `base` mean something else on each.
 */
#include "vm/qemu_machine.h"

#include <string.h>

#include "base/cleanup.h"
#include "base/json.h"
#include "base/xalloc.h"
#include "vm/qemu_arguments.h"

#define FIRMWARE_ITEMS_MAX 64

/* The ROM that a device has unless its romfile= says otherwise. */
static const struct {
	const char *device, *file;
} device_roms[] = {
	/* -device */
	{"VGA", "vgabios-stdvga.bin"},
	{"secondary-vga", "vgabios-stdvga.bin"},
	{"cirrus-vga", "vgabios-cirrus.bin"},
	{"qxl-vga", "vgabios-qxl.bin"},
	{"vmware-svga", "vgabios-vmware.bin"},
	{"virtio-vga", "vgabios-virtio.bin"},
	{"bochs-display", "vgabios-bochs-display.bin"},
	{"ati-vga", "vgabios-ati.bin"},
	{"ramfb", "vgabios-ramfb.bin"},
	{"virtio-net-pci", "efi-virtio.rom"},
	{"e1000", "efi-e1000.rom"},
	{"e1000e", "efi-e1000e.rom"},
	{"rtl8139", "efi-rtl8139.rom"},
	{"pcnet", "efi-pcnet.rom"},
	{"ne2k_pci", "efi-ne2k_pci.rom"},
	{"i82559er", "efi-eepro100.rom"},
	{"vmxnet3", "efi-vmxnet3.rom"},
	/* -vga */
	{"std", "vgabios-stdvga.bin"},
	{"cirrus", "vgabios-cirrus.bin"},
	{"qxl", "vgabios-qxl.bin"},
	{"vmware", "vgabios-vmware.bin"},
	{"virtio", "vgabios-virtio.bin"},
};

static void add_firmware(json_t *list, const struct qemu_probe *probe, const char *name)
{
	size_t i;
	json_t *item;
	json_array_foreach (list, i, item) {
		if (strcmp(json_string_value(json_object_get(item, "name")), name) == 0)
			return;
	}
	int64_t size_bytes = qemu_probe_firmware_size(probe, name);
	/* What is not there is not in use either; QEMU has its own word on that at the start. */
	if (size_bytes >= 0)
		json_array_append_new(list,
				      json_pack("{s:s, s:I}", "name", name, "size_bytes", (json_int_t)size_bytes));
}

/* "DEVICE,…": its own romfile, else the usual one. */
static void add_device_firmware(json_t *list, const struct qemu_probe *probe, const char *device)
{
	size_t name_length = strcspn(device, ",");
	const char *own = strstr(device, ",romfile=");
	if (own) {
		cleanup_free char *file = xstrdup(own + strlen(",romfile="));
		file[strcspn(file, ",")] = 0;
		if (file[0])
			add_firmware(list, probe, file);
		return;
	}
	for (size_t i = 0; i < sizeof(device_roms) / sizeof(*device_roms); i++) {
		if (strlen(device_roms[i].device) == name_length &&
		    strncmp(device_roms[i].device, device, name_length) == 0)
			add_firmware(list, probe, device_roms[i].file);
	}
}

static bool is_option(const char *argument, const char *name)
{
	if (argument[0] != '-')
		return false;
	return strcmp(argument + (argument[1] == '-' ? 2 : 1), name) == 0;
}

json_t *qemu_firmware_list(const struct definition *definition, const struct qemu_probe *probe)
{
	json_t *list = json_array();
	const char *bios = "bios-256k.bin";
	for (size_t i = 0; i + 1 < definition->extra_arg_count; i++) {
		if (is_option(definition->extra_args[i], "bios"))
			bios = definition->extra_args[i + 1];
		if (is_option(definition->extra_args[i], "device") || is_option(definition->extra_args[i], "vga"))
			add_device_firmware(list, probe, definition->extra_args[i + 1]);
	}
	add_firmware(list, probe, bios);
	return list;
}

uint64_t qemu_memory_bytes(const struct definition *definition, const struct driver_host *host,
			   const struct qemu_probe *probe)
{
	return qemu_arguments_memory_kib(definition, host->accelerator, qemu_probe_major(probe)) * 1024;
}

int qemu_describe(struct machine *machine, json_t **ret, struct error **e)
{
	struct qemu_migration_info info;
	struct machine_state state;
	if (qemu_migration_query(machine->qmp, &info, e) < 0)
		return -1;
	machine_state(machine, &state);
	json_t *blocked = take_ptr(info.blocked_reasons);
	qemu_migration_info_done(&info);
	const json_t *version = json_object_get(machine->record, "version");
	const json_t *accelerator = json_object_get(machine->record, "accelerator");
	json_t *firmware = json_object_get(machine->record, "firmware");
	*ret = json_pack("{s:o, s:s, s:s, s:o, s:I, s:o, s:b, s:s}", "definition",
			 definition_to_json(machine->definition), "qemu_version",
			 json_is_string(version) ? json_string_value(version) : "", "accelerator",
			 json_is_string(accelerator) ? json_string_value(accelerator) : "", "firmware",
			 json_is_array(firmware) ? json_deep_copy(firmware) : json_array(), "memory_bytes",
			 json_integer_value(json_object_get(machine->record, "memory_bytes")), "blocked_reasons",
			 blocked ? blocked : json_array(), "snapshot_mode",
			 qemu_arguments_snapshot_mode(machine->definition), "run", machine_run_name(state.run));
	return 0;
}

/* ---- the destination's checks ---- */

__attribute__((format(printf, 3, 4))) static void add_failure(json_t *failures, enum error_code code,
							      const char *format, ...)
{
	va_list ap;
	va_start(ap, format);
	cleanup_free char *message = xvasprintf(format, ap);
	va_end(ap);
	json_array_append_new(failures, json_pack("{s:s, s:s}", "code", error_code_name(code), "message", message));
}

/* "a, b, c" of an array of strings. */
static char *join(const json_t *strings)
{
	char *text = xstrdup("");
	size_t i;
	json_t *item;
	json_array_foreach (strings, i, item) {
		cleanup_free char *before = text;
		text = xasprintf("%s%s%s", before, i ? ", " : "", json_string_value(item));
	}
	return text;
}

static void check_cpu(const struct definition *definition, const struct driver_host *host,
		      const struct qemu_probe *probe, json_t *failures)
{
	const char *model = definition->cpu_model;
	if (strcmp(model, "host") == 0 || strcmp(model, "max") == 0 || strcmp(model, "base") == 0) {
		add_failure(failures, ERROR_DEST_CPU_MODEL,
			    "CPU model '%s' is whatever a host has and cannot be compared; name a model instead",
			    model);
		return;
	}
	if (!qemu_probe_cpu_known(probe, model)) {
		add_failure(failures, ERROR_DEST_CPU_MODEL, "QEMU %s has no CPU model '%s'", qemu_probe_version(probe),
			    model);
		return;
	}
	cleanup_json json_t *missing =
		qemu_probe_cpu_missing(probe, model, definition->cpu_features, definition->cpu_feature_count);
	cleanup_free char *names = join(missing);
	if (names[0])
		add_failure(failures, ERROR_DEST_CPU_FEATURES, "with %s this host cannot give the CPU '%s' its %s",
			    host->accelerator, model, names);
}

static void check_memory(const struct definition *definition, uint64_t wanted_bytes, const struct driver_host *host,
			 const struct qemu_probe *probe, json_t *failures)
{
	uint64_t bytes = qemu_memory_bytes(definition, host, probe);
	if (bytes != wanted_bytes)
		add_failure(
			failures, ERROR_DEST_MACHINE_TYPE,
			"the VM has %llu KiB of memory where it runs, and would have %llu with QEMU %s here: emulated "
			"VMs do not move between QEMU before and from 9.0",
			(unsigned long long)wanted_bytes / 1024, (unsigned long long)bytes / 1024,
			qemu_probe_version(probe));
}

static int check_firmware(const json_t *firmware, const struct qemu_probe *probe, json_t *failures, struct error **e)
{
	size_t i;
	json_t *item;
	if (json_array_size(firmware) > FIRMWARE_ITEMS_MAX)
		return error_set(e, ERROR_TOO_LARGE, "more than %d firmware files", FIRMWARE_ITEMS_MAX);
	json_array_foreach (firmware, i, item) {
		const char *name = NULL;
		int64_t wanted_bytes = 0;
		if (json_get_string(item, "name", &name, e) < 0 ||
		    json_get_integer(item, "size_bytes", 0, INT64_MAX, &wanted_bytes, e) < 0)
			return error_wrap(e, "firmware[%zu]", i);
		int64_t size_bytes = qemu_probe_firmware_size(probe, name);
		if (size_bytes < 0)
			add_failure(failures, ERROR_DEST_FIRMWARE, "%s is not in QEMU's folders here", name);
		else if (size_bytes != wanted_bytes)
			add_failure(failures, ERROR_DEST_FIRMWARE,
				    "%s has %lld bytes here, %lld where the VM runs: install the same version", name,
				    (long long)size_bytes, (long long)wanted_bytes);
	}
	return 0;
}

int qemu_check_incoming(const struct driver_host *host, const json_t *description, json_t *failures, struct error **e)
{
	const struct qemu_probe *probe;
	json_t *definition_json = NULL, *firmware = NULL;
	const char *accelerator = NULL;
	int64_t memory_bytes = 0;
	struct definition *definition = NULL;
	if (json_get_object(description, "definition", &definition_json, e) < 0 ||
	    json_get_string(description, "accelerator", &accelerator, e) < 0 ||
	    json_get_array(description, "firmware", &firmware, e) < 0 ||
	    json_get_integer(description, "memory_bytes", 1, INT64_MAX, &memory_bytes, e) < 0 ||
	    definition_parse(definition_json, &definition, e) < 0)
		return error_wrap(e, "the description of the VM");
	if (qemu_machine_probe(host, &probe, e) < 0) {
		definition_free(definition);
		return -1;
	}

	if (strcmp(accelerator, host->accelerator) != 0)
		add_failure(failures, ERROR_DEST_ACCELERATOR, "the VM runs with %s, this host's QEMU with %s",
			    accelerator, host->accelerator);
	const char *machine_type = qemu_probe_machine(probe, definition->machine);
	if (!machine_type)
		add_failure(failures, ERROR_DEST_MACHINE_TYPE, "QEMU %s has no machine type '%s'",
			    qemu_probe_version(probe), definition->machine);
	else if (strcmp(machine_type, definition->machine) != 0)
		add_failure(failures, ERROR_DEST_MACHINE_TYPE,
			    "'%s' is no version of a machine type, it stands for '%s' here", definition->machine,
			    machine_type);
	else if (strcmp(accelerator, host->accelerator) == 0)
		check_memory(definition, (uint64_t)memory_bytes, host, probe, failures);
	check_cpu(definition, host, probe, failures);
	int result = check_firmware(firmware, probe, failures, e);
	definition_free(definition);
	return result;
}
