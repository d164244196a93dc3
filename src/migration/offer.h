/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The offer: what a source tells a destination about a VM that it wants to hand over. The body of the peer messages
 * `check` and `prepare` (docs/protocol.md). Parsing trusts nothing: types, lengths, ids and the definition are checked.
 */
#ifndef FERRY_MIGRATION_OFFER_H
#define FERRY_MIGRATION_OFFER_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/clock.h"
#include "vm/definition.h"

struct offer {
	char migration_id[RANDOM_ID_SIZE];
	char *source; /* host name; must be the caller's certificate's */
	char source_journal[RANDOM_ID_SIZE];
	uint64_t epoch;			/* of the VM once it has been taken */
	struct definition *definition;	/* as it shall be at the destination (mapped) */
	json_t *description;		/* the driver's, see vm/driver.h */
	json_t *proofs;			/* [{target, path, inode, probe, token}] of shared disks */
	bool paused;
	unsigned int channels;
	bool postcopy; /* it may come to post-copy */
	bool relay;    /* memory comes by the relay; channels are QEMU's own, 1 then */
	char *tls_key_hex; /* in prepare, when the copy is encrypted; NULL otherwise */
};

#define OFFER_KEY_HEX_SIZE 65 /* 256 bits and a NUL */

int offer_parse(const json_t *json, struct offer *ret, struct error **e) MUST_CHECK;
json_t *offer_to_json(const struct offer *offer);
void offer_done(struct offer *offer);
/* Whether text is an id as random_id() makes them. */
bool offer_id_valid(const char *text);
/* Whether text is a uuid as definition_parse() writes them: 36 characters, lower case. */
bool offer_uuid_valid(const char *text);

/* The key of an encrypted copy. */
bool offer_key_valid(const char *text);
void offer_make_key(char ret_hex[OFFER_KEY_HEX_SIZE]);

/* No epoch is higher: every reader of JSON can hold it, and a VM that is handed over each second gets there in no time that
 * matters. Without a bound a peer could make one that nothing comes after. */
#define OFFER_EPOCH_MAX ((INT64_C(1) << 53) - 1)

#endif
