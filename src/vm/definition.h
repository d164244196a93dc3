/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A VM's definition: one JSON document, the same in the file, the API and the journal (docs/definition.md lists the keys).
 * definition_parse() checks everything that can be checked without looking at the host; unknown keys are errors
 * (ERROR_VM_DEFINITION, naming the key, such as disks[1].cache). Immutable after parsing; any thread.
 */
#ifndef FERRY_VM_DEFINITION_H
#define FERRY_VM_DEFINITION_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"

#define DEFINITION_NAME_MAX 63	 /* letters, digits, '-', '_' and '.', not starting with '-' or '.' */
#define DEFINITION_DISKS_MAX 20
#define DEFINITION_NICS_MAX 8
#define DEFINITION_UUID_SIZE 37

enum disk_bus { DISK_BUS_VIRTIO, DISK_BUS_SCSI, DISK_BUS_SATA };
enum disk_cache { DISK_CACHE_NONE, DISK_CACHE_DIRECTSYNC, DISK_CACHE_WRITEBACK, DISK_CACHE_WRITETHROUGH };

struct definition_disk {
	char *target; /* "vda": the name by which people call it; unique in the VM */
	char *path;   /* absolute */
	char *format; /* "raw" or "qcow2" */
	enum disk_bus bus;
	enum disk_cache cache; /* default none */
	bool readonly;
};

struct definition_nic {
	char *bridge;
	char *mac;   /* "52:54:00:…", lower case; made up at definition when absent */
	char *model; /* "virtio" or "e1000" */
};

struct definition {
	char *name;
	char uuid[DEFINITION_UUID_SIZE]; /* made up at definition when absent */
	char *owner;			 /* label of whose VM it is; "" by default */
	char *machine;			 /* as given: "pc", "q35" or a versioned type; default "pc" */
	char *cpu_model;		 /* default "qemu64" */
	char **cpu_features;		 /* "+aes", "-svm"; a bare name means "+" */
	size_t cpu_feature_count;
	unsigned int vcpus;  /* 1-255 */
	uint64_t memory_mib; /* 1 to 16 TiB */
	struct definition_disk *disks;
	size_t disk_count;
	struct definition_nic *nics;
	size_t nic_count;
	bool serial; /* "serial": "console" (default) or "none" */
	char *kernel, *initrd, *cmdline; /* NULL when absent */
	bool autostart;
	char **extra_args;
	size_t extra_arg_count;
};

/* *ret is the caller's; what is missing gets its default (a new uuid, macs). */
int definition_parse(const json_t *json, struct definition **ret, struct error **e) MUST_CHECK;
void definition_free(struct definition *definition);
/* The whole document with every default written out; parsing it again gives an equal definition. The caller owns it. */
json_t *definition_to_json(const struct definition *definition);
/* A copy with names of the destination put in: map is "bridge:br0=br1" or "disk:/a/x=/b/x" (count of them). */
int definition_map(const struct definition *definition, const char *const *maps, size_t map_count, struct definition **ret,
		   struct error **e) MUST_CHECK;
bool definition_name_valid(const char *name);
const char *disk_cache_name(enum disk_cache cache);
const char *disk_bus_name(enum disk_bus bus);

#endif
