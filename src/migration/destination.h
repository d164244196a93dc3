/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The destination's side of a migration: it answers the source's messages, each of which may come late, twice, or never.
 * `caller` is the name in the asking host's certificate. docs/protocol.md describes the messages.
 */
#ifndef FERRY_MIGRATION_DESTINATION_H
#define FERRY_MIGRATION_DESTINATION_H

#include "migration/host.h"

/* check: look at everything, start nothing; reserve a data port and answer on it until prepare. */
int destination_check(struct migration_host *host, const char *caller, const json_t *body, json_t **ret, struct error **e) MUST_CHECK;
/* prepare: start a machine that waits. */
int destination_prepare(struct migration_host *host, const char *caller, const json_t *body, json_t **ret, struct error **e) MUST_CHECK;
/* finish and refuse: decide who has the VM, durably, then answer {state, journal, message, took_us}; idempotent. */
int destination_finish(struct migration_host *host, const char *caller, const json_t *body, json_t **ret, struct error **e) MUST_CHECK;
int destination_refuse(struct migration_host *host, const char *caller, const json_t *body, json_t **ret, struct error **e) MUST_CHECK;
/* outcome: what has been decided, without deciding anything. Answered by both sides: {state, role, ended, journal}. */
int destination_outcome(struct migration_host *host, const char *caller, const char *migration_id, json_t **ret, struct error **e) MUST_CHECK;
/* owner: who has the VM as far as this host knows: {vm_uuid, owner, epoch}. */
int destination_owner(struct migration_host *host, const char *vm_uuid, json_t **ret, struct error **e) MUST_CHECK;
/* Take up an arrival that an earlier ferryd left unsettled; the VM's machine (if any) is attached. */
int destination_recover(struct migration_host *host, struct migration *migration, struct error **e) MUST_CHECK;
/* Let go of what arrivals hold outside of the journal (ports, timers); their machines wait on. When ferryd stops: no message is
 * being answered any more and all workers have ended. */
void destination_stop(struct migration_host *host);

#endif
