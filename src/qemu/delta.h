/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What has changed in a page, as XBZRLE says it in a record STREAM_RAM_DELTA: the pages XORed, then by turns a run of bytes
 * that are 0 and are left out, and a run of others, given as they are in the new page. Each begins with its length in LEB128; the first
 * may be 0, and a last run of zeros is left out. (QEMU's docs/xbzrle.txt.) Pure.
 */
#ifndef FERRY_QEMU_DELTA_H
#define FERRY_QEMU_DELTA_H

#include <stddef.h>
#include <stdint.h>

#include "qemu/stream.h"

/* How many bytes it takes, all in `ret`; 0: the pages are equal; -1: it takes more than limit_bytes, which is STREAM_PAGE_BYTES at most. */
int delta_encode(const uint8_t old_page[STREAM_PAGE_BYTES], const uint8_t new_page[STREAM_PAGE_BYTES], uint8_t *ret, size_t limit_bytes);

/* Change the page so. -1: it cannot be such a delta, and the page is changed in part. */
int delta_apply(uint8_t page[STREAM_PAGE_BYTES], const uint8_t *delta, size_t delta_bytes);

#endif
