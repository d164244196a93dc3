/* SPDX-License-Identifier: Apache-2.0 */
/*
 * QEMU's migration stream, version 3, as QEMU 7.2 to 10.x write it: the numbers that stand in it. All integers are
 * big-endian. Reading is stream_reader.h's, writing stream_writer.h's, the devices' fields device_state.h's.
 *
 *   header           u32 "QEVM", u32 3
 *   configuration    u8 7, u32 length, the machine type's name; then subsections (u8 5, u8 length, name, u32 version, body)
 *   then one after the other, each with its kind in the first byte:
 *     section        start (1), full (4): u32 id, u8 length, name, u32 instance, u32 version, body, footer
 *                    part (2), end (3):   u32 id, body, footer
 *                    the footer is u8 0x7e, u32 id. Only sections with parts are of any size: "ram", and a few of other kinds
 *     command (8)    u16 command, u16 length, so many bytes
 *     end (0)        nothing follows but, of pre-copy only, u8 6, u32 length, a description of the devices' fields in JSON
 *
 * The body of "ram" is a row of records that each begin with a u64: an offset within a block of memory, a multiple of the
 * page's size, and flags in the bits below.
 *
 * Source of all this: captures of these versions, read to the last byte, and QEMU's docs/devel/migration.
 */
#ifndef FERRY_QEMU_STREAM_H
#define FERRY_QEMU_STREAM_H

#include <stdint.h>

#define STREAM_MAGIC 0x5145564dU
#define STREAM_VERSION 3
#define STREAM_RAM_VERSION 4
#define STREAM_PAGE_BYTES 4096
#define STREAM_NAME_MAX 255   /* of sections and blocks: their length is one byte */
#define STREAM_BLOCKS_MAX 1024 /* a limit of ours; QEMU has one for each RAM, ROM and video memory */
#define STREAM_FOOTER_MARK 0x7e
#define STREAM_DELTA_MARK 1 /* before the bytes of XBZRLE */

enum stream_section_kind {
	STREAM_SECTION_START = 1,
	STREAM_SECTION_PART = 2,
	STREAM_SECTION_END = 3,
	STREAM_SECTION_FULL = 4,
};

/* What else may stand in the first byte. */
#define STREAM_BYTE_EOF 0
#define STREAM_BYTE_SUBSECTION 5
#define STREAM_BYTE_DESCRIPTION 6
#define STREAM_BYTE_CONFIGURATION 7
#define STREAM_BYTE_COMMAND 8

enum stream_command {
	STREAM_OPEN_RETURN_PATH = 1,
	STREAM_PING = 2,
	STREAM_POSTCOPY_ADVISE = 3, /* the sizes of all blocks' pages or-ed together, the target's page size: u64 each */
	STREAM_POSTCOPY_LISTEN = 4,
	STREAM_POSTCOPY_RUN = 5,
	STREAM_POSTCOPY_DISCARD = 6,
	STREAM_PACKAGED = 7, /* u32: so many bytes follow behind the command, a stream without header and end */
	STREAM_ENABLE_COLO = 8,
	STREAM_POSTCOPY_RESUME = 9,
	STREAM_RECEIVED_BITMAP = 10,
	STREAM_SWITCHOVER_START = 11, /* from QEMU 10.0 on */
};

/* Flags of a record of "ram". */
#define STREAM_RAM_ZERO 0x02	      /* u8: what it is filled with, always 0 */
#define STREAM_RAM_SIZES 0x04	      /* the offset is the size of all blocks, which follow; in the start section only */
#define STREAM_RAM_PAGE 0x08	      /* its content */
#define STREAM_RAM_END 0x10	      /* of the section's body */
#define STREAM_RAM_SAME_BLOCK 0x20    /* as the page before; else u8 length, block's name stand before what is said here */
#define STREAM_RAM_DELTA 0x40	      /* XBZRLE: u8 1, u16 length, so many bytes: what has changed in the page */
#define STREAM_RAM_COMPRESSED 0x100   /* u32 length, so many bytes of zlib; QEMU up to 9.0 */
#define STREAM_RAM_MULTIFD_FLUSH 0x200 /* nothing more */

/* A block of the guest's memory. */
struct stream_block {
	char name[STREAM_NAME_MAX + 1];
	uint8_t name_length;
	uint64_t size_bytes;
	uint64_t page_bytes; /* of the memory behind it, where the stream says so; else 0 */
};

#endif
