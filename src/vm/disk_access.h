/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Making sure that QEMU's own user can open a VM's disks, before QEMU is started. Any thread; blocks as the file
 * systems do.
 */
#ifndef FERRY_VM_DISK_ACCESS_H
#define FERRY_VM_DISK_ACCESS_H

#include <stdbool.h>
#include <sys/types.h>

#include "vm/definition.h"

/* Look at each disk; a regular file that the user may not open as the definition wants is given to him (its owner
 * changes, and the log says so). Anything else that he may not open, or that is not there, is an error that names the
 * disk. ret_is_block_device says, per disk, whether its path is a block device. */
int disk_access_prepare(const struct definition *definition, uid_t uid, gid_t gid,
			bool ret_is_block_device[DEFINITION_DISKS_MAX], struct error **e) MUST_CHECK;
/* Whether that user may open path so; as himself, with no other groups. Negative errno otherwise. */
int disk_access_check(const char *path, bool write, uid_t uid, gid_t gid) MUST_CHECK;

#endif
