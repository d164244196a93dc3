/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A VM's definition: reading, checking and writing the JSON document of definition.h.
 *
 * The document is read strictly. Everything that QEMU's command line will hold is checked here once, so that the code
 * which builds that line (vm/qemu_arguments.c) can trust its input: character sets, limits, uniqueness. What depends on
 * the host (does the bridge exist, does this QEMU know the CPU) is left to the driver and to the migration's checks.
 */
#include "vm/definition.h"

#include <ctype.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/json.h"
#include "base/xalloc.h"

#define MEMORY_MIB_MAX (16LL * 1024 * 1024) /* 16 TiB */
#define VCPUS_MAX 255
#define SATA_DISKS_MAX 6 /* the ports of one AHCI controller */
#define FEATURES_MAX 256
#define EXTRA_ARGS_MAX 256
#define TEXT_MAX 4096 /* paths, kernel command line, one extra argument */

static const char *const disk_bus_names[] = {
	[DISK_BUS_VIRTIO] = "virtio", [DISK_BUS_SCSI] = "scsi", [DISK_BUS_SATA] = "sata"};
static const char *const disk_cache_names[] = {
	[DISK_CACHE_NONE] = "none",
	[DISK_CACHE_DIRECTSYNC] = "directsync",
	[DISK_CACHE_WRITEBACK] = "writeback",
	[DISK_CACHE_WRITETHROUGH] = "writethrough",
};

/* Arguments of QEMU that Ferry gives itself, or that would undo what the checks of a migration rely on. */
static const char *const reserved_arguments[] = {
	"incoming",    "S",
	"daemonize",   "preconfig",
	"accel",       "enable-kvm",
	"cpu",         "M",
	"smp",         "m",
	"name",        "uuid",
	"runas",       "chroot",
	"pidfile",     "sandbox",
	"loadvm",      "only-migratable",
	"no-shutdown", "no-reboot",
	"nodefaults",  "no-user-config",
	"add-fd",      "msg",
	"kernel",      "initrd",
	"append",
};

const char *disk_cache_name(enum disk_cache cache)
{
	return disk_cache_names[cache];
}

const char *disk_bus_name(enum disk_bus bus)
{
	return disk_bus_names[bus];
}

/* ---- character sets ---- */

static bool text_in(const char *text, size_t length_max, const char *also)
{
	size_t length = strlen(text);
	if (length == 0 || length > length_max)
		return false;
	for (size_t i = 0; i < length; i++) {
		unsigned char c = (unsigned char)text[i];
		bool alphanumeric = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9');
		if (!alphanumeric && !strchr(also, c))
			return false;
	}
	return true;
}

bool definition_name_valid(const char *name)
{
	return text_in(name, DEFINITION_NAME_MAX, "-_.") && name[0] != '-' && name[0] != '.';
}

/* Text that goes into a command line or a file: no control characters, so that logs stay lines. */
static bool text_printable(const char *text)
{
	for (const char *c = text; *c; c++) {
		if ((unsigned char)*c < 0x20 || *c == 0x7f)
			return false;
	}
	return strlen(text) <= TEXT_MAX;
}

static bool path_valid(const char *path)
{
	return path[0] == '/' && text_printable(path);
}

/* "52:54:00:…" in lower case into ret, or false. Multicast and all-zero addresses are no NIC's. */
static bool mac_normalise(const char *mac, char ret[18])
{
	if (strlen(mac) != 17)
		return false;
	bool zero = true;
	for (size_t i = 0; i < 17; i++) {
		if (i % 3 == 2) {
			if (mac[i] != ':')
				return false;
		} else if (!isxdigit((unsigned char)mac[i])) {
			return false;
		} else if (mac[i] != '0') {
			zero = false;
		}
		ret[i] = (char)tolower((unsigned char)mac[i]);
	}
	ret[17] = 0;
	char low = ret[1];
	int digit = low <= '9' ? low - '0' : low - 'a' + 10;
	return !zero && (digit & 1) == 0;
}

static bool uuid_normalise(const char *uuid, char ret[DEFINITION_UUID_SIZE])
{
	if (strlen(uuid) != DEFINITION_UUID_SIZE - 1)
		return false;
	for (size_t i = 0; i < DEFINITION_UUID_SIZE - 1; i++) {
		if (i == 8 || i == 13 || i == 18 || i == 23) {
			if (uuid[i] != '-')
				return false;
		} else if (!isxdigit((unsigned char)uuid[i])) {
			return false;
		}
		ret[i] = (char)tolower((unsigned char)uuid[i]);
	}
	ret[DEFINITION_UUID_SIZE - 1] = 0;
	return true;
}

static void uuid_make(char ret[DEFINITION_UUID_SIZE])
{
	unsigned char b[16];
	random_bytes(b, sizeof(b));
	b[6] = (unsigned char)((b[6] & 0x0f) | 0x40); /* version 4, variant 1 (RFC 4122) */
	b[8] = (unsigned char)((b[8] & 0x3f) | 0x80);
	snprintf(ret, DEFINITION_UUID_SIZE, "%02x%02x%02x%02x-%02x%02x-%02x%02x-%02x%02x-%02x%02x%02x%02x%02x%02x",
		 b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7], b[8], b[9], b[10], b[11], b[12], b[13], b[14], b[15]);
}

static char *mac_make(void)
{
	unsigned char b[3];
	random_bytes(b, sizeof(b));
	return xasprintf("52:54:00:%02x:%02x:%02x", b[0], b[1], b[2]);
}

/* ---- reading ---- */

/* Put `where` before the message and give it the definition's code, whatever base/json.c said. */
static int definition_wrong(struct error **e, const char *where)
{
	if (e && *e)
		(*e)->code = ERROR_VM_DEFINITION;
	return where[0] ? error_wrap(e, "%s", where) : -1;
}

/* One object of the document, and where it stands in it ("disks[1]"; "" for the document itself). */
struct place {
	const json_t *object;
	const char *where;
};

static int place_error(const struct place *place, const char *key, const char *what, struct error **e)
{
	return error_set(e, ERROR_VM_DEFINITION, "%s%s%s: %s", place->where, place->where[0] ? "." : "", key, what);
}

/* `later` are keys that DESIGN names but that do nothing yet: refused with a better word than "unknown". */
static int place_check_keys(const struct place *place, const char *const known[], const char *const later[],
			    struct error **e)
{
	if (!json_is_object(place->object))
		return error_set(e, ERROR_VM_DEFINITION, "%s: must be an object",
				 place->where[0] ? place->where : "the definition");
	for (size_t i = 0; later[i]; i++) {
		if (json_object_get(place->object, later[i]))
			return place_error(place, later[i], "this version of Ferry does not support that", e);
	}
	if (json_check_keys(place->object, known, e) < 0)
		return definition_wrong(e, place->where);
	return 0;
}

static int place_string(const struct place *place, const char *key, const char **ret, struct error **e)
{
	if (json_get_string_opt(place->object, key, ret, e) < 0)
		return definition_wrong(e, place->where);
	return 0;
}

static int place_integer(const struct place *place, const char *key, int64_t min, int64_t max, int64_t *ret,
			 struct error **e)
{
	if (json_get_integer_opt(place->object, key, min, max, ret, e) < 0)
		return definition_wrong(e, place->where);
	return 0;
}

static int place_bool(const struct place *place, const char *key, bool *ret, struct error **e)
{
	if (json_get_bool_opt(place->object, key, ret, e) < 0)
		return definition_wrong(e, place->where);
	return 0;
}

static int place_array(const struct place *place, const char *key, size_t count_max, json_t **ret, struct error **e)
{
	if (json_get_array_opt(place->object, key, ret, e) < 0)
		return definition_wrong(e, place->where);
	if (json_array_size(*ret) > count_max) {
		cleanup_free char *what = xasprintf("at most %zu are possible", count_max);
		return place_error(place, key, what, e);
	}
	return 0;
}

/* An optional path or text; NULL in *ret when absent. */
static int place_copy(const struct place *place, const char *key, bool path, char **ret, struct error **e)
{
	const char *text = NULL;
	if (place_string(place, key, &text, e) < 0)
		return -1;
	if (text && path && !path_valid(text))
		return place_error(place, key, "must be an absolute path without control characters", e);
	if (text && !text_printable(text))
		return place_error(place, key, "has control characters or is too long", e);
	*ret = xstrdup_null(text);
	return 0;
}

/* The index of value in names, or -1. */
static int name_index(const char *value, const char *const names[], size_t count)
{
	for (size_t i = 0; i < count; i++) {
		if (strcmp(value, names[i]) == 0)
			return (int)i;
	}
	return -1;
}

static int parse_machine(const struct place *root, struct definition *definition, struct error **e)
{
	const char *machine = "pc";
	if (place_string(root, "machine", &machine, e) < 0)
		return -1;
	/* Only boards whose PCI layout qemu_arguments.c knows. */
	if (!text_in(machine, 64, "-_.") ||
	    (strcmp(machine, "pc") != 0 && strcmp(machine, "q35") != 0 && strncmp(machine, "pc-i440fx-", 10) != 0 &&
	     strncmp(machine, "pc-q35-", 7) != 0))
		return place_error(root, "machine", "must be 'pc', 'q35' or a version of them such as 'pc-q35-7.2'", e);
	definition->machine = xstrdup(machine);
	return 0;
}

static int parse_cpu(const struct place *root, struct definition *definition, struct error **e)
{
	static const char *const keys[] = {"model", "features", NULL};
	static const char *const later[] = {NULL};
	const char *model = "qemu64";
	json_t *features = NULL, *object = NULL;

	if (json_get_object_opt(root->object, "cpu", &object, e) < 0)
		return definition_wrong(e, root->where);
	if (object) {
		struct place place = {object, "cpu"};
		if (place_check_keys(&place, keys, later, e) < 0 || place_string(&place, "model", &model, e) < 0 ||
		    place_array(&place, "features", FEATURES_MAX, &features, e) < 0)
			return -1;
		if (!text_in(model, 64, "-_."))
			return place_error(&place, "model", "is not a CPU model's name", e);
	}
	definition->cpu_model = xstrdup(model);
	definition->cpu_features = xcalloc(json_array_size(features) + 1, sizeof(char *));
	for (size_t i = 0; i < json_array_size(features); i++) {
		const char *feature = json_string_value(json_array_get(features, i));
		cleanup_free char *where = xasprintf("cpu.features[%zu]", i);
		if (!feature)
			return error_set(e, ERROR_VM_DEFINITION, "%s: must be a string", where);
		char sign = feature[0] == '-' ? '-' : '+';
		const char *name = feature[0] == '-' || feature[0] == '+' ? feature + 1 : feature;
		if (!text_in(name, 64, "-_."))
			return error_set(e, ERROR_VM_DEFINITION, "%s: '%s' is not of the form +NAME or -NAME", where,
					 feature);
		definition->cpu_features[definition->cpu_feature_count++] = xasprintf("%c%s", sign, name);
	}
	return 0;
}

static int parse_disk(const struct place *place, struct definition_disk *disk, struct error **e)
{
	static const char *const keys[] = {"target", "path", "format", "bus", "cache", "readonly", NULL};
	static const char *const later[] = {"migrate", NULL};
	static const char *const formats[] = {"raw", "qcow2"};
	const char *target = NULL, *format = NULL, *bus = "virtio", *cache = "none";

	if (place_check_keys(place, keys, later, e) < 0 || place_string(place, "target", &target, e) < 0 ||
	    place_string(place, "format", &format, e) < 0 || place_string(place, "bus", &bus, e) < 0 ||
	    place_string(place, "cache", &cache, e) < 0 || place_bool(place, "readonly", &disk->readonly, e) < 0 ||
	    place_copy(place, "path", true, &disk->path, e) < 0)
		return -1;
	if (!target || !text_in(target, 16, ""))
		return place_error(place, "target",
				   target ? "must be 1 to 16 letters and digits, such as vda" : "is missing", e);
	if (!disk->path)
		return place_error(place, "path", "is missing", e);
	if (!format || name_index(format, formats, 2) < 0)
		return place_error(place, "format", format ? "must be 'raw' or 'qcow2'" : "is missing", e);
	int bus_index = name_index(bus, disk_bus_names, 3);
	if (bus_index < 0)
		return place_error(place, "bus", "must be 'virtio', 'scsi' or 'sata'", e);
	int cache_index = name_index(cache, disk_cache_names, 4);
	if (cache_index < 0)
		return place_error(place, "cache", "must be 'none', 'directsync', 'writeback' or 'writethrough'", e);
	disk->target = xstrdup(target);
	disk->format = xstrdup(format);
	disk->bus = (enum disk_bus)bus_index;
	disk->cache = (enum disk_cache)cache_index;
	if (disk->readonly && disk->bus == DISK_BUS_SATA)
		return place_error(place, "readonly", "a sata disk cannot be read-only; use virtio or scsi", e);
	return 0;
}

static int parse_disks(const struct place *root, struct definition *definition, struct error **e)
{
	json_t *disks = NULL;
	size_t sata = 0;
	if (place_array(root, "disks", DEFINITION_DISKS_MAX, &disks, e) < 0)
		return -1;
	definition->disks = xcalloc(json_array_size(disks) + 1, sizeof(*definition->disks));
	for (size_t i = 0; i < json_array_size(disks); i++) {
		struct definition_disk *disk = &definition->disks[definition->disk_count++];
		cleanup_free char *where = xasprintf("disks[%zu]", i);
		struct place place = {json_array_get(disks, i), where};
		if (parse_disk(&place, disk, e) < 0)
			return -1;
		for (size_t j = 0; j < i; j++) {
			if (strcmp(definition->disks[j].target, disk->target) == 0)
				return place_error(&place, "target", "another disk has this target", e);
			/* QEMU's image locks would refuse it too, but only at the start. */
			if (strcmp(definition->disks[j].path, disk->path) == 0 &&
			    !(disk->readonly && definition->disks[j].readonly))
				return place_error(&place, "path", "another disk of the VM has this path", e);
		}
		if (disk->bus == DISK_BUS_SATA && ++sata > SATA_DISKS_MAX)
			return place_error(&place, "bus", "at most 6 sata disks are possible; use virtio or scsi", e);
	}
	return 0;
}

static int parse_nic(const struct place *place, struct definition_nic *nic, struct error **e)
{
	static const char *const keys[] = {"bridge", "mac", "model", NULL};
	static const char *const later[] = {NULL};
	static const char *const models[] = {"virtio", "e1000"};
	const char *bridge = NULL, *mac = NULL, *model = "virtio";

	if (place_check_keys(place, keys, later, e) < 0 || place_string(place, "bridge", &bridge, e) < 0 ||
	    place_string(place, "mac", &mac, e) < 0 || place_string(place, "model", &model, e) < 0)
		return -1;
	if (!bridge || !text_in(bridge, 15, "-_.") || strcmp(bridge, ".") == 0 || strcmp(bridge, "..") == 0)
		return place_error(place, "bridge", bridge ? "is not an interface name" : "is missing", e);
	if (name_index(model, models, 2) < 0)
		return place_error(place, "model", "must be 'virtio' or 'e1000'", e);
	char normal[18];
	if (mac && !mac_normalise(mac, normal))
		return place_error(place, "mac", "must be a unicast address such as 52:54:00:12:34:56", e);
	nic->bridge = xstrdup(bridge);
	nic->model = xstrdup(model);
	nic->mac = mac ? xstrdup(normal) : mac_make();
	return 0;
}

static int parse_nics(const struct place *root, struct definition *definition, struct error **e)
{
	json_t *nics = NULL;
	if (place_array(root, "nics", DEFINITION_NICS_MAX, &nics, e) < 0)
		return -1;
	definition->nics = xcalloc(json_array_size(nics) + 1, sizeof(*definition->nics));
	for (size_t i = 0; i < json_array_size(nics); i++) {
		struct definition_nic *nic = &definition->nics[definition->nic_count++];
		cleanup_free char *where = xasprintf("nics[%zu]", i);
		struct place place = {json_array_get(nics, i), where};
		if (parse_nic(&place, nic, e) < 0)
			return -1;
		for (size_t j = 0; j < i; j++) {
			if (strcmp(definition->nics[j].mac, nic->mac) == 0)
				return place_error(&place, "mac", "another NIC of the VM has this address", e);
		}
	}
	return 0;
}

static int parse_extra_args(const struct place *root, struct definition *definition, struct error **e)
{
	json_t *args = NULL;
	if (place_array(root, "extra_args", EXTRA_ARGS_MAX, &args, e) < 0)
		return -1;
	definition->extra_args = xcalloc(json_array_size(args) + 1, sizeof(char *));
	for (size_t i = 0; i < json_array_size(args); i++) {
		const char *text = json_string_value(json_array_get(args, i));
		cleanup_free char *where = xasprintf("extra_args[%zu]", i);
		if (!text || strlen(text) != json_string_length(json_array_get(args, i)) || !text_printable(text))
			return error_set(e, ERROR_VM_DEFINITION, "%s: must be a string without control characters",
					 where);
		if (text[0] == '-') {
			const char *name = text + (text[1] == '-' ? 2 : 1);
			if (name_index(name, reserved_arguments,
				       sizeof(reserved_arguments) / sizeof(*reserved_arguments)) >= 0)
				return error_set(e, ERROR_VM_DEFINITION, "%s: Ferry sets %s itself", where, text);
		}
		definition->extra_args[definition->extra_arg_count++] = xstrdup(text);
	}
	return 0;
}

static int parse_identity(const struct place *root, struct definition *definition, struct error **e)
{
	const char *name = NULL, *uuid = NULL, *owner = "";
	if (place_string(root, "name", &name, e) < 0 || place_string(root, "uuid", &uuid, e) < 0 ||
	    place_string(root, "owner", &owner, e) < 0)
		return -1;
	if (!name)
		return place_error(root, "name", "is missing", e);
	if (!definition_name_valid(name))
		return place_error(
			root, "name",
			"must be 1 to 63 letters, digits, '-', '_' and '.', and begin with a letter, digit or '_'", e);
	if (!uuid)
		uuid_make(definition->uuid);
	else if (!uuid_normalise(uuid, definition->uuid))
		return place_error(root, "uuid", "is not a uuid", e);
	if (owner[0] && !text_in(owner, 63, "-_.@:"))
		return place_error(root, "owner", "must be at most 63 letters, digits and - _ . @ :", e);
	definition->name = xstrdup(name);
	definition->owner = xstrdup(owner);
	return 0;
}

static int parse_rest(const struct place *root, struct definition *definition, struct error **e)
{
	int64_t vcpus = 1, memory_mib = 0;
	const char *serial = "console";
	if (place_integer(root, "vcpus", 1, VCPUS_MAX, &vcpus, e) < 0 ||
	    place_integer(root, "memory_mib", 1, MEMORY_MIB_MAX, &memory_mib, e) < 0 ||
	    place_string(root, "serial", &serial, e) < 0 ||
	    place_copy(root, "kernel", true, &definition->kernel, e) < 0 ||
	    place_copy(root, "initrd", true, &definition->initrd, e) < 0 ||
	    place_copy(root, "cmdline", false, &definition->cmdline, e) < 0 ||
	    place_bool(root, "autostart", &definition->autostart, e) < 0)
		return -1;
	if (memory_mib == 0)
		return place_error(root, "memory_mib", "is missing", e);
	if (strcmp(serial, "console") != 0 && strcmp(serial, "none") != 0)
		return place_error(root, "serial", "must be 'console' or 'none'", e);
	if (!definition->kernel && (definition->initrd || definition->cmdline))
		return place_error(root, definition->initrd ? "initrd" : "cmdline", "needs a kernel", e);
	definition->vcpus = (unsigned int)vcpus;
	definition->memory_mib = (uint64_t)memory_mib;
	definition->serial = strcmp(serial, "console") == 0;
	return 0;
}

int definition_parse(const json_t *json, struct definition **ret, struct error **e)
{
	static const char *const keys[] = {"name",       "uuid",      "owner",      "machine", "cpu",    "vcpus",
					   "memory_mib", "disks",     "nics",       "serial",  "kernel", "initrd",
					   "cmdline",    "autostart", "extra_args", NULL};
	static const char *const later[] = {"firmware", "tpm", "graphics", NULL};
	struct place root = {json, ""};
	struct definition *definition = xcalloc(1, sizeof(*definition));

	if (place_check_keys(&root, keys, later, e) < 0 || parse_identity(&root, definition, e) < 0 ||
	    parse_machine(&root, definition, e) < 0 || parse_cpu(&root, definition, e) < 0 ||
	    parse_rest(&root, definition, e) < 0 || parse_disks(&root, definition, e) < 0 ||
	    parse_nics(&root, definition, e) < 0 || parse_extra_args(&root, definition, e) < 0) {
		definition_free(definition);
		return -1;
	}
	*ret = definition;
	return 0;
}

void definition_free(struct definition *definition)
{
	if (!definition)
		return;
	for (size_t i = 0; i < definition->disk_count; i++) {
		free(definition->disks[i].target);
		free(definition->disks[i].path);
		free(definition->disks[i].format);
	}
	for (size_t i = 0; i < definition->nic_count; i++) {
		free(definition->nics[i].bridge);
		free(definition->nics[i].mac);
		free(definition->nics[i].model);
	}
	for (size_t i = 0; i < definition->cpu_feature_count; i++)
		free(definition->cpu_features[i]);
	for (size_t i = 0; i < definition->extra_arg_count; i++)
		free(definition->extra_args[i]);
	free(definition->disks);
	free(definition->nics);
	free(definition->cpu_features);
	free(definition->extra_args);
	free(definition->name);
	free(definition->owner);
	free(definition->machine);
	free(definition->cpu_model);
	free(definition->kernel);
	free(definition->initrd);
	free(definition->cmdline);
	free(definition);
}

/* ---- writing ---- */

static json_t *strings_to_json(char *const *strings, size_t count)
{
	json_t *array = json_array();
	for (size_t i = 0; i < count; i++)
		json_array_append_new(array, json_string(strings[i]));
	return array;
}

json_t *definition_to_json(const struct definition *definition)
{
	json_t *disks = json_array(), *nics = json_array();
	for (size_t i = 0; i < definition->disk_count; i++) {
		const struct definition_disk *disk = &definition->disks[i];
		json_array_append_new(disks,
				      json_pack("{s:s, s:s, s:s, s:s, s:s, s:b}", "target", disk->target, "path",
						disk->path, "format", disk->format, "bus", disk_bus_name(disk->bus),
						"cache", disk_cache_name(disk->cache), "readonly", disk->readonly));
	}
	for (size_t i = 0; i < definition->nic_count; i++) {
		const struct definition_nic *nic = &definition->nics[i];
		json_array_append_new(nics, json_pack("{s:s, s:s, s:s}", "bridge", nic->bridge, "mac", nic->mac,
						      "model", nic->model));
	}
	/* `s*` leaves a key out when its value is NULL. */
	return json_pack("{s:s, s:s, s:s, s:s, s:{s:s, s:o}, s:i, s:I, s:o, s:o, s:s, s:s*, s:s*, s:s*, s:b, s:o}",
			 "name", definition->name, "uuid", definition->uuid, "owner", definition->owner, "machine",
			 definition->machine, "cpu", "model", definition->cpu_model, "features",
			 strings_to_json(definition->cpu_features, definition->cpu_feature_count), "vcpus",
			 (int)definition->vcpus, "memory_mib", (json_int_t)definition->memory_mib, "disks", disks,
			 "nics", nics, "serial", definition->serial ? "console" : "none", "kernel", definition->kernel,
			 "initrd", definition->initrd, "cmdline", definition->cmdline, "autostart",
			 definition->autostart, "extra_args",
			 strings_to_json(definition->extra_args, definition->extra_arg_count));
}

/* ---- mapping to another host's names ---- */

int definition_map(const struct definition *definition, const char *const *maps, size_t map_count,
		   struct definition **ret, struct error **e)
{
	/* By way of JSON: the result passes the same checks as one that a user wrote. All maps look at the original
	 * names, so that two of them can swap A and B. */
	cleanup_json json_t *original = definition_to_json(definition);
	cleanup_json json_t *mapped = json_deep_copy(original);

	for (size_t i = 0; i < map_count; i++) {
		const char *colon = strchr(maps[i], ':');
		const char *equals = colon ? strchr(colon, '=') : NULL;
		const char *array = NULL, *key = NULL;
		if (colon && strncmp(maps[i], "bridge:", 7) == 0) {
			array = "nics";
			key = "bridge";
		} else if (colon && strncmp(maps[i], "disk:", 5) == 0) {
			array = "disks";
			key = "path";
		}
		if (!array || !equals || equals == colon + 1 || equals[1] == 0)
			return error_set(e, ERROR_INVALID_ARGUMENT,
					 "map '%s' is not of the form bridge:A=B or disk:/PATH=/PATH", maps[i]);
		cleanup_free char *from = strndup(colon + 1, (size_t)(equals - colon - 1));
		json_t *old = json_object_get(original, array), *new = json_object_get(mapped, array);
		for (size_t j = 0; from && j < json_array_size(old); j++) {
			if (strcmp(json_string_value(json_object_get(json_array_get(old, j), key)), from) == 0)
				json_object_set_new(json_array_get(new, j), key, json_string(equals + 1));
		}
	}
	if (definition_parse(mapped, ret, e) < 0)
		return error_wrap(e, "with the destination's names");
	return 0;
}
