/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The devices' state in QEMU's migration stream, field by field. Only the description that QEMU puts behind the end of a
 * pre-copy stream says what the bytes are: {"page_size", "devices": [{"name", "instance_id", "fields", "subsections"}]}. It is
 * there for people who look for a fault; nothing of a migration depends on it.
 *
 * Any thread.
 */
#ifndef FERRY_QEMU_DEVICE_STATE_H
#define FERRY_QEMU_DEVICE_STATE_H

#include <jansson.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"

#define DEVICE_DESCRIPTION_MAX_BYTES (32 << 20)

/* The description at the end of a whole stream, and where its frame begins, which is behind the stream's end. The caller owns
 * *ret. ERROR_NOT_FOUND where there is none: streams of post-copy, and machines that were told to leave it out. */
int device_state_description(const uint8_t *stream, size_t size_bytes, json_t **ret, size_t *ret_begins_at, struct error **e)
	MUST_CHECK;

/*
 * `state` is from the first full section up to the stream's end, that byte included; `offset` is where it stands in the stream, for
 * messages. *ret, the caller's: {"NAME (ID)": {FIELD: value}} in the stream's order, as QEMU's scripts/analyze-migration.py
 * shows them:
 *   whole numbers  "0x0000002a" in their width, the same and " (-1)" behind it where they are negative
 *   truth          true, false
 *   all else       its bytes, "00 2a"
 *   structures     objects, subsections in them under their names; fields of one name, so arrays too, are lists
 * Fails with ERROR_DATA_STREAM where state and description do not fit each other.
 */
int device_state_decode(const uint8_t *state, size_t size_bytes, uint64_t offset, const json_t *description, json_t **ret,
			struct error **e) MUST_CHECK;

#endif
