/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Large pieces of memory for the relay, filled with zeros, and used only as far as they are written to. Any thread.
 *
 * One can be seen twice, the second time right behind the first: whatever lies across the end of a ring made of it can be read in one piece.
 */
#ifndef FERRY_RELAY_MEMORY_H
#define FERRY_RELAY_MEMORY_H

#include <stddef.h>
#include <stdint.h>

#include "base/error.h"

/* More than 0 bytes. NULL, errno says why: there is no room. */
uint8_t *memory_map(size_t size_bytes);
void memory_unmap(uint8_t *memory, size_t size_bytes); /* NULL: nothing happens */

/* size_bytes: a multiple of 4096; *ret is 2 * size_bytes long. To be unmapped as so much. */
int memory_map_twice(size_t size_bytes, uint8_t **ret, struct error **e) MUST_CHECK;

#endif
