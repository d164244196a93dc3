/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a host can supply of guests' memory without its being sent: pages that stand in disk images here (image_index.h), and pages that
 * came through the relay before (page_store.h).
 *
 * To answer whether a page is here tells the asker something of whoever it is from. So an image serves the owners of whose VMs it is a
 * disk, or everybody where it was said to be public; and a received page serves VMs of the owner of the VM that it came with. Owners are
 * labels of VMs' definitions; all VMs without one are of one owner.
 *
 * Any thread; a supplier is one thread's at a time.
 */
#ifndef FERRY_RELAY_PAGE_SUPPLY_H
#define FERRY_RELAY_PAGE_SUPPLY_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"
#include "relay/page_digest.h"

struct page_supply;

struct page_supply_options {
	const char *folder;    /* for indexes of images; made when it is not there */
	size_t received_bytes; /* memory for received pages; 0: none */
	uint64_t index_bytes;  /* disk space for indexes; those not used for the longest time go first */
};

/* A thread begins which makes indexes at the lowest priority. */
struct page_supply *page_supply_new(const struct page_supply_options *options);
/* There is no supplier any more. */
void page_supply_free(struct page_supply *supply);

/* This file or device is a disk of a VM of this owner (NULL: is public): make an index of it in the background, unless there is one of
 * its present content. What a qcow2 image stands on is added, too; say is_qcow2 only where that is known otherwise than from the file, which
 * a guest may have written. An image that cannot be read is logged and left out. */
void page_supply_add_image(struct page_supply *supply, const char *path, bool is_qcow2, const char *owner);
/* [{path, state: indexing | ready | failed, public, owners, pages, problem: {code, message} or null}]. The caller owns it. */
json_t *page_supply_view(struct page_supply *supply);
/* Until all indexes are made; false: it takes longer. */
bool page_supply_wait(struct page_supply *supply, int64_t timeout_ms);

enum page_origin { PAGE_NOWHERE, PAGE_IN_IMAGE, PAGE_RECEIVED };

/* For one VM that comes. It sees the images that there are now; those whose index is made later, later. */
struct page_supplier;
struct page_supplier *page_supplier_new(struct page_supply *supply, const char *owner);
void page_supplier_free(struct page_supplier *supplier);

/* The page of this digest, verified. Unless it is PAGE_NOWHERE all of ret_page is written. */
enum page_origin page_supplier_find(struct page_supplier *supplier, const struct page_digest *digest, uint8_t ret_page[STREAM_PAGE_BYTES]);
/* These will be asked for next: what has to be read from disk is read meanwhile. */
void page_supplier_expect(struct page_supplier *supplier, const struct page_digest *digests, size_t count);
/* A page has come, and its digest by the word of its sender. */
void page_supplier_keep(struct page_supplier *supplier, const struct page_digest *digest, const uint8_t page[STREAM_PAGE_BYTES]);

#endif
