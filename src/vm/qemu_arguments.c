/* SPDX-License-Identifier: Apache-2.0 */
/*
 * QEMU's command line for a definition; the layout it makes is in qemu_arguments.h.
 *
 * Values were checked by definition_parse(); the ones that may hold commas (paths) go into JSON (-blockdev) or stand
 * alone (-kernel), so nothing needs QEMU's comma escapes.
 */
#include "vm/qemu_arguments.h"

#include <jansson.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/json.h"
#include "base/xalloc.h"

#define SLOT_NIC 0x03
#define SLOT_DISK 0x0b

/*
 * QEMU before 9.0 loses writes of an emulated guest (TCG, not KVM) during a migration: its fast way of reading the
 * dirty bitmap, 64 pages at a time, does not make the emulated TLB trap the next write to these pages. Every move of
 * more than one live pass then arrived with some tens of wrong pages. The slow way, a page at a time, is right, and is
 * taken when the length of the memory is no multiple of 64 pages: so an emulated guest gets two pages more than it was
 * defined with. It costs 0.5-7 us a dirty page at each reading.
 */
#define TCG_EXTRA_KIB 8
#define DIRTY_RING_PAGES "4096" /* of each processor, 64 KiB; what QEMU's documentation has */
#define TCG_MENDED_MAJOR 9

struct argument_list {
	char **items;
	size_t count, room;
};

static void list_take(struct argument_list *list, char *item)
{
	if (list->count == list->room) {
		list->room = list->room ? 2 * list->room : 64;
		list->items = xreallocarray(list->items, list->room, sizeof(char *));
	}
	list->items[list->count++] = item;
}

__attribute__((format(printf, 3, 4))) static void list_add(struct argument_list *list, const char *option,
							   const char *format, ...)
{
	va_list ap;
	va_start(ap, format);
	list_take(list, xstrdup(option));
	list_take(list, xvasprintf(format, ap));
	va_end(ap);
}

static void list_add_json(struct argument_list *list, const char *option, json_t *value)
{
	list_take(list, xstrdup(option));
	list_take(list, json_text(value));
	json_decref(value);
}

static bool machine_is_q35(const char *machine_type)
{
	return strncmp(machine_type, "pc-q35-", 7) == 0;
}

/* "MODEL,a=on,b=off,enforce=on" */
static char *cpu_text(const struct definition *definition)
{
	char *text = xstrdup(definition->cpu_model);
	for (size_t i = 0; i < definition->cpu_feature_count; i++) {
		const char *feature = definition->cpu_features[i];
		cleanup_free char *before = text;
		text = xasprintf("%s,%s=%s", before, feature + 1, feature[0] == '-' ? "off" : "on");
	}
	/* enforce: a feature that this host lacks is an error, not a silently different CPU. */
	cleanup_free char *before = text;
	return xasprintf("%s,enforce=on", before);
}

uint64_t qemu_arguments_memory_kib(const struct definition *definition, const char *accelerator,
				   unsigned int qemu_major)
{
	uint64_t kib = definition->memory_mib * 1024;
	return strcmp(accelerator, "tcg") == 0 && qemu_major < TCG_MENDED_MAJOR ? kib + TCG_EXTRA_KIB : kib;
}

static void add_board(struct argument_list *list, const struct definition *definition,
		      const struct qemu_arguments_host *host)
{
	list_add(list, "-name", "guest=%s,debug-threads=on", definition->name);
	list_add(list, "-uuid", "%s", definition->uuid);
	/* suppress-vmdesc: the stream's description of itself (50-100 KB of JSON, only read by debugging tools) would
	 * be sent while the guest is paused. */
	list_add(list, "-machine", "%s,dump-guest-core=off,suppress-vmdesc=on", host->machine_type);
	if (strcmp(host->accelerator, "tcg") == 0)
		list_add(list, "-accel", "%s", "tcg,thread=multi");
	else
		list_add(list, "-accel", "%s%s", host->accelerator, host->dirty_ring ? ",dirty-ring-size=" DIRTY_RING_PAGES : "");
	list_take(list, xstrdup("-cpu"));
	list_take(list, cpu_text(definition));
	list_add(list, "-m", "size=%lluK",
		 (unsigned long long)qemu_arguments_memory_kib(definition, host->accelerator, host->qemu_major));
	list_add(list, "-smp", "cpus=%u,sockets=1,cores=%u,threads=1", definition->vcpus, definition->vcpus);
}

static void add_monitor(struct argument_list *list)
{
	list_add(list, "-chardev", "socket,id=qmp,fd=%d,server=on,wait=off", QEMU_FD_QMP);
	list_add(list, "-mon", "%s", "chardev=qmp,mode=control");
}

static void add_console(struct argument_list *list)
{
	/* The log's descriptor goes by way of a set: QEMU opens "/dev/fdset/1" where it wants a path. */
	list_add(list, "-add-fd", "fd=%d,set=1,opaque=console-log", QEMU_FD_CONSOLE_LOG);
	list_add(list, "-chardev", "socket,id=console,fd=%d,server=on,wait=off,logfile=/dev/fdset/1,logappend=on",
		 QEMU_FD_CONSOLE);
	list_add(list, "-serial", "%s", "chardev:console");
}

static void add_nic(struct argument_list *list, const struct definition_nic *nic, unsigned int index, const char *bus)
{
	/* vhost stays off: it would need /dev/vhost-net in QEMU's reach. */
	list_add(list, "-netdev", "tap,id=net%u,fd=%u,vhost=off", index, QEMU_FD_NIC + index);
	list_add(list, "-device", "%s,id=nic%u,netdev=net%u,mac=%s,bus=%s,addr=0x%02x,romfile=",
		 strcmp(nic->model, "e1000") == 0 ? "e1000" : "virtio-net-pci", index, index, nic->mac, bus,
		 SLOT_NIC + index);
}

/* The block nodes of a disk: the file or device, and the format on top of it. */
static void add_disk_nodes(struct argument_list *list, const struct definition_disk *disk, bool block_device)
{
	bool direct = disk->cache == DISK_CACHE_NONE || disk->cache == DISK_CACHE_DIRECTSYNC;
	/* The image locks stay on: they keep a second QEMU off the disk, whoever started it. */
	list_add_json(list, "-blockdev",
		      json_pack("{s:s, s:o, s:s, s:b, s:s, s:s, s:s, s:{s:b, s:b}}", "driver",
				block_device ? "host_device" : "file", "node-name",
				json_sprintf("disk-%s-file", disk->target), "filename", disk->path, "read-only",
				disk->readonly, "locking", "on", "aio", "threads", "discard", "unmap", "cache",
				"direct", direct, "no-flush", 0));
	list_add_json(list, "-blockdev",
		      json_pack("{s:s, s:o, s:o, s:b, s:s, s:{s:b, s:b}}", "driver", disk->format, "node-name",
				json_sprintf("disk-%s", disk->target), "file",
				json_sprintf("disk-%s-file", disk->target), "read-only", disk->readonly, "discard",
				"unmap", "cache", "direct", direct, "no-flush", 0));
}

struct disk_buses {
	bool q35;
	const char *board_bus;
	unsigned int scsi_count, sata_count; /* given out so far */
};

static void add_disk(struct argument_list *list, const struct definition_disk *disk, unsigned int index,
		     struct disk_buses *buses)
{
	unsigned int slot = SLOT_DISK + index;
	bool write_cache = disk->cache == DISK_CACHE_NONE || disk->cache == DISK_CACHE_WRITEBACK;
	cleanup_free char *common = xasprintf("id=disk-%s-device,drive=disk-%s,write-cache=%s,bootindex=%u",
					      disk->target, disk->target, write_cache ? "on" : "off", index + 1);

	switch (disk->bus) {
	case DISK_BUS_VIRTIO:
		list_add(list, "-device", "virtio-blk-pci,%s,bus=%s,addr=0x%02x", common, buses->board_bus, slot);
		break;
	case DISK_BUS_SCSI:
		if (buses->scsi_count == 0)
			list_add(list, "-device", "virtio-scsi-pci,id=scsi0,bus=%s,addr=0x%02x", buses->board_bus,
				 slot);
		list_add(list, "-device", "scsi-hd,%s,bus=scsi0.0,channel=0,scsi-id=%u,lun=0", common,
			 buses->scsi_count++);
		break;
	case DISK_BUS_SATA:
		if (buses->sata_count == 0 && !buses->q35)
			list_add(list, "-device", "ahci,id=sata0,bus=%s,addr=0x%02x", buses->board_bus, slot);
		list_add(list, "-device", "ide-hd,%s,bus=%s.%u", common, buses->q35 ? "ide" : "sata0",
			 buses->sata_count++);
		break;
	}
}

char **qemu_arguments_build(const struct definition *definition, const struct qemu_arguments_host *host)
{
	struct argument_list list = {0};
	bool q35 = machine_is_q35(host->machine_type);
	struct disk_buses buses = {.q35 = q35, .board_bus = q35 ? "pcie.0" : "pci.0"};

	list_take(&list, xstrdup(host->binary));
	list_add(&list, "-sandbox", "%s", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny");
	list_take(&list, xstrdup("-nodefaults"));
	list_take(&list, xstrdup("-no-user-config"));
	list_add(&list, "-display", "%s", "none");
	list_add(&list, "-msg", "%s", "timestamp=on");
	/* Always: the record of who may run it is written before `cont`, not before exec. */
	list_take(&list, xstrdup("-S"));
	if (host->incoming)
		list_add(&list, "-incoming", "%s", "defer");
	add_board(&list, definition, host);
	add_monitor(&list);
	if (definition->serial)
		add_console(&list);
	for (unsigned int i = 0; i < definition->nic_count; i++)
		add_nic(&list, &definition->nics[i], i, buses.board_bus);
	for (unsigned int i = 0; i < definition->disk_count; i++) {
		add_disk_nodes(&list, &definition->disks[i], host->disk_is_block_device[i]);
		add_disk(&list, &definition->disks[i], i, &buses);
	}
	if (definition->kernel)
		list_add(&list, "-kernel", "%s", definition->kernel);
	if (definition->initrd)
		list_add(&list, "-initrd", "%s", definition->initrd);
	if (definition->cmdline)
		list_add(&list, "-append", "%s", definition->cmdline);
	/* Last, so that what has a fixed place above has it already. */
	for (size_t i = 0; i < definition->extra_arg_count; i++)
		list_take(&list, xstrdup(definition->extra_args[i]));
	list_take(&list, NULL);
	return list.items;
}

void qemu_arguments_free(char **arguments)
{
	for (size_t i = 0; arguments && arguments[i]; i++)
		free(arguments[i]);
	free(arguments);
}

char *qemu_arguments_text(char *const *arguments)
{
	char *text = NULL;
	size_t length = 0;
	FILE *out = open_memstream(&text, &length);
	if (!out)
		return xstrdup("");
	for (size_t i = 0; arguments[i]; i++) {
		const char *argument = arguments[i];
		bool plain = argument[0] && argument[strcspn(argument, " '\"\\{}[]()<>|&;$`*?!#~\t")] == 0;
		fputs(i ? " " : "", out);
		if (!plain)
			fputc('\'', out);
		for (const char *c = argument; *c; c++) {
			if (*c == '\'')
				fputs("'\\''", out);
			else
				fputc(*c, out);
		}
		if (!plain)
			fputc('\'', out);
	}
	fclose(out);
	return text;
}

bool qemu_arguments_snapshot_mode(const struct definition *definition)
{
	for (size_t i = 0; i < definition->extra_arg_count; i++) {
		const char *argument = definition->extra_args[i];
		if (strcmp(argument, "-snapshot") == 0 || strcmp(argument, "--snapshot") == 0)
			return true;
		/* -drive file=…,snapshot=on */
		const char *option = strstr(argument, "snapshot=");
		if (option && strncmp(option + strlen("snapshot="), "off", 3) != 0)
			return true;
	}
	return false;
}
