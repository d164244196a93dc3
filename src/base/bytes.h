/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Big-endian numbers and short names out of a piece of memory. Each takes what it is named after from where the cursor
 * stands and moves it on; false, the cursor as it was, where the piece ends before that.
 */
#ifndef FERRY_BASE_BYTES_H
#define FERRY_BASE_BYTES_H

#include <endian.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

struct bytes {
	const uint8_t *data;
	size_t size_bytes, at;
};

static inline size_t bytes_left(const struct bytes *bytes)
{
	return bytes->size_bytes - bytes->at;
}

/* So many bytes, in place. */
static inline bool bytes_take(struct bytes *bytes, size_t count, const uint8_t **ret)
{
	if (bytes_left(bytes) < count)
		return false;
	*ret = bytes->data + bytes->at;
	bytes->at += count;
	return true;
}

static inline bool bytes_take_u8(struct bytes *bytes, uint8_t *ret)
{
	const uint8_t *taken;
	if (!bytes_take(bytes, sizeof(*ret), &taken))
		return false;
	*ret = *taken;
	return true;
}

static inline bool bytes_take_u16(struct bytes *bytes, uint16_t *ret)
{
	const uint8_t *taken;
	if (!bytes_take(bytes, sizeof(*ret), &taken))
		return false;
	memcpy(ret, taken, sizeof(*ret));
	*ret = be16toh(*ret);
	return true;
}

static inline bool bytes_take_u32(struct bytes *bytes, uint32_t *ret)
{
	const uint8_t *taken;
	if (!bytes_take(bytes, sizeof(*ret), &taken))
		return false;
	memcpy(ret, taken, sizeof(*ret));
	*ret = be32toh(*ret);
	return true;
}

static inline bool bytes_take_u64(struct bytes *bytes, uint64_t *ret)
{
	const uint8_t *taken;
	if (!bytes_take(bytes, sizeof(*ret), &taken))
		return false;
	memcpy(ret, taken, sizeof(*ret));
	*ret = be64toh(*ret);
	return true;
}

/* A length of one byte, so many bytes; no NUL is behind them. */
static inline bool bytes_take_name(struct bytes *bytes, const uint8_t **ret, uint8_t *ret_length)
{
	const size_t at = bytes->at;
	if (bytes_take_u8(bytes, ret_length) && bytes_take(bytes, *ret_length, ret))
		return true;
	bytes->at = at;
	return false;
}

#endif
