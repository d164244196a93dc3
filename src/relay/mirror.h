/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Memory that is seen twice, the second time right behind the first: whatever lies across the end of a ring made of it can
 * be read in one piece. Any thread.
 */
#ifndef FERRY_RELAY_MIRROR_H
#define FERRY_RELAY_MIRROR_H

#include <stddef.h>
#include <stdint.h>

#include "base/error.h"

/* size_bytes: a multiple of 4096. *ret is 2 * size_bytes long; memory is used as far as it is written to. */
int mirror_map(size_t size_bytes, uint8_t **ret, struct error **e) MUST_CHECK;
void mirror_unmap(uint8_t *mirror, size_t size_bytes); /* NULL: nothing happens */

#endif
