/* SPDX-License-Identifier: Apache-2.0 */
/* Which file a disk image stands on: the name of the backing file in qcow2's header (QEMU's docs/interop/qcow2.txt). Any thread. */
#ifndef FERRY_QEMU_IMAGE_CHAIN_H
#define FERRY_QEMU_IMAGE_CHAIN_H

#include "base/error.h"

#define IMAGE_CHAIN_MAX 64

/* *ret: the path of the image below this one, a relative name taken from where this one is; NULL where there is none, or it is no file (a
 * URL, a node of QEMU's). The caller frees it. Fails where the image cannot be read or its header contradicts itself. */
int image_backing_path(const char *path, char **ret, struct error **e) MUST_CHECK;

#endif
