/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The checks before a migration. Each side runs all of its own and reports all failures at once, as
 * [{code, side, message}]; nothing has been started by then. docs/migration.md lists them; the codes are rows of
 * base/error_codes.tbl.
 */
#ifndef FERRY_MIGRATION_CHECKS_H
#define FERRY_MIGRATION_CHECKS_H

#include <jansson.h>
#include <sys/types.h>

#include "migration/host.h"
#include "migration/offer.h"

void checks_add(json_t *failures, const char *side, enum error_code code, const char *format, ...)
	__attribute__((format(printf, 4, 5)));
/* Add an error as a failure and free it. */
void checks_add_error(json_t *failures, const char *side, struct error *e);

/* Source: what the machine itself says. */
void checks_source(const struct machine_state *state, const json_t *description, json_t *failures);

/* Source: put a probe file beside each of the VM's disks and say what the destination must find there. The probes are
 * removed again by checks_remove_probes(). Their names begin with the journal's id, so that what an earlier ferryd of this
 * host has left, and nobody else's, can be removed at the start. */
int checks_place_probes(const struct definition *definition, const char *journal_id, const char *migration_id,
			json_t **ret_proofs, struct error **e) MUST_CHECK;
void checks_remove_probes(const json_t *proofs);
void checks_remove_old_probes(struct migration_host *host);

/* The files that stand for an offer's disks here: what was looked at by the checks must be what is opened after them. Of a
 * disk that is not there both are 0. */
struct checks_file {
	dev_t device;
	ino_t inode;
};
void checks_disk_files(const struct definition *definition, struct checks_file ret[DEFINITION_DISKS_MAX]);
/* Destination: everything about the offer that can be looked at without starting anything. */
int checks_destination(struct migration_host *host, const struct offer *offer, json_t *failures, struct error **e) MUST_CHECK;

#endif
