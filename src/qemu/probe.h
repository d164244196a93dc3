/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a QEMU binary can do on this host: asked once over QMP (-machine none: no guest, some 50 ms), never guessed from
 * a version, and kept in memory for as long as the binary at that path has the same size and time of change.
 *
 * A probe is immutable and lives as long as the process does (one more a QEMU upgrade). Any thread but the loop's.
 */
#ifndef FERRY_QEMU_PROBE_H
#define FERRY_QEMU_PROBE_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/error.h"
#include "net/loop.h"

struct qemu_probe;

struct qemu_probe_options {
	struct loop *loop;
	const char *binary;      /* NULL: the first of the usual paths */
	const char *accelerator; /* "kvm" or "tcg": CPU models differ by it */
	uid_t uid;               /* what it runs as, when change_user */
	gid_t gid;
	gid_t extra_gid; /* (gid_t)-1: none */
	bool change_user;
};

/* The first call for a binary starts it; threads that ask meanwhile wait for the same answer. Failures are not kept. */
int qemu_probe_get(const struct qemu_probe_options *options, const struct qemu_probe **ret,
		   struct error **e) MUST_CHECK;

const char *qemu_probe_binary(const struct qemu_probe *probe);
/* "7.2.22 (Debian 1:7.2+dfsg-7+deb12u18)" */
const char *qemu_probe_version(const struct qemu_probe *probe);
/* 7; only for what QEMU cannot tell about itself: its bugs. */
unsigned int qemu_probe_major(const struct qemu_probe *probe);
/* The versioned machine type behind a name ("pc" → "pc-i440fx-7.2"; a versioned one stays); NULL when there is none. */
const char *qemu_probe_machine(const struct qemu_probe *probe, const char *name);
/* Whether this QEMU with this accelerator has the CPU model. */
bool qemu_probe_cpu_known(const struct qemu_probe *probe, const char *model);
/* What this host lacks for the model with "+feature" and "-feature" put in: an array of names, owned by the caller,
 * empty when nothing is missing. */
json_t *qemu_probe_cpu_missing(const struct qemu_probe *probe, const char *model, char *const *features,
			       size_t feature_count);
/* Whether a guest can arrive here by post-copy, as the user that QEMU runs as. */
bool qemu_probe_postcopy(const struct qemu_probe *probe);
/* The size of a firmware file ("bios-256k.bin") in the first of QEMU's data folders that has it; -1: in none of them.
 */
int64_t qemu_probe_firmware_size(const struct qemu_probe *probe, const char *name);

#endif
