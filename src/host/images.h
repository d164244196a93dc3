/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Images that a person has prepared this host with (`ferry image index`), for guests that will come: remembered in the journal's database, and
 * given to the relay (relay/page_supply.h). Images of VMs that are defined here need no preparation. Any thread.
 */
#ifndef FERRY_HOST_IMAGES_H
#define FERRY_HOST_IMAGES_H

#include <jansson.h>

#include "base/database.h"
#include "relay/page_supply.h"

/* Give those that are remembered to the supply. */
int images_open(struct database *db, struct page_supply *supply, struct error **e) MUST_CHECK;
/* Body {path, owner, format} or {path, public: true, format}; no owner: for VMs without one. Of format "qcow2", what it stands on is
 * prepared, too; "raw" by default. */
int images_add(struct database *db, struct page_supply *supply, const json_t *body, struct error **e) MUST_CHECK;
/* Body {path}: it is not prepared any more. ERROR_NOT_FOUND where it was not. It serves on until ferryd is started anew. */
int images_remove(struct database *db, const json_t *body, struct error **e) MUST_CHECK;

#endif
