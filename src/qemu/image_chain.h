/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Which file a qcow2 image stands on, by its header (QEMU's docs/interop/qcow2.txt). To be asked only of files that are known to be
 * qcow2: a guest can write into a raw disk what looks like such a header, and name in it any file of the host's. Any thread.
 */
#ifndef FERRY_QEMU_IMAGE_CHAIN_H
#define FERRY_QEMU_IMAGE_CHAIN_H

#include <stdbool.h>

#include "base/error.h"

struct image_backing {
	char *path;    /* a relative name is taken from where the image is. NULL: there is none, or it is no file (a URL, a node of QEMU's) */
	bool is_qcow2; /* as the header says; false also where it does not */
};

/* ret->path is the caller's to free. Fails where the image cannot be read, is not qcow2, or contradicts itself. */
int image_backing_read(const char *path, struct image_backing *ret, struct error **e) MUST_CHECK;

#endif
