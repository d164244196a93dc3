/* SPDX-License-Identifier: Apache-2.0 */
/*
 * QEMU's command line for a definition. Pure: looks at nothing but its arguments, so the same definition gives the same
 * guest-visible machine on every host, which is what a migration needs.
 *
 * The machine's layout, fixed for good (a change of it would break moves between versions of Ferry):
 *   - all devices sit on the board's own bus (pci.0 of pc, pcie.0 of q35);
 *   - NIC i has slot 0x03 + i (8 of them: 0x03-0x0a), disk i has slot 0x0b + i (20: 0x0b-0x1e);
 *   - a disk on scsi or sata needs no slot of its own: the first one of its bus lends its slot to the controller
 *     (virtio-scsi; ahci on pc, while q35 has one on board), so no slot is ever wanted twice;
 *   - slots 0x01 and 0x02 are left to what extra_args adds without an address, a display adapter first;
 *   - no device carries an option ROM (romfile=): a ROM is part of the guest's state and its size must be the same on
 *     both hosts, which differing ipxe packages break; it also makes the guest's start slower. A guest that boots from
 * the network names such a card in extra_args.
 */
#ifndef FERRY_VM_QEMU_ARGUMENTS_H
#define FERRY_VM_QEMU_ARGUMENTS_H

#include <stdbool.h>
#include <stdint.h>

#include "vm/definition.h"

/* Descriptors in QEMU: these numbers on, NICs in their order from the last one. */
#define QEMU_FD_QMP 3
#define QEMU_FD_CONSOLE 4
#define QEMU_FD_CONSOLE_LOG 5
#define QEMU_FD_NIC 6

struct qemu_arguments_host {
	const char *binary;
	const char *machine_type; /* versioned; never an alias */
	const char *accelerator;  /* "kvm" or "tcg" */
	bool dirty_ring;	  /* with kvm */
	unsigned int qemu_major;  /* of its version */
	bool incoming;            /* wait for a migration */
	/* Per disk of the definition: whether its path is a block device on this host. */
	bool disk_is_block_device[DEFINITION_DISKS_MAX];
};

/* A NULL-terminated array; free it with qemu_arguments_free(). The guest does not run until `cont` (-S), always. */
char **qemu_arguments_build(const struct definition *definition, const struct qemu_arguments_host *host);
void qemu_arguments_free(char **arguments);
/* As one line that a shell would read the same way, for the log. The caller frees it. */
char *qemu_arguments_text(char *const *arguments);

/* The guest's memory as QEMU is told: before QEMU 9 with the accelerator tcg two pages more than defined; the reason is
 * in the .c file. */
uint64_t qemu_arguments_memory_kib(const struct definition *definition, const char *accelerator,
				   unsigned int qemu_major);

/* Whether writes of the guest go to a temporary file (-snapshot and its like in extra_args). */
bool qemu_arguments_snapshot_mode(const struct definition *definition);

#endif
