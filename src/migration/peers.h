/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The other hosts: names and addresses (durable), kept-alive connections to their ferryd, so that a migration does not begin
 * with a TLS handshake, and the messages that go over them. Any thread; a connection that was taken is its taker's alone until
 * it is given back.
 */
#ifndef FERRY_MIGRATION_PEERS_H
#define FERRY_MIGRATION_PEERS_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/database.h"
#include "net/http_client.h"

#define CONTROL_PORT 4710

struct peers;

int peers_new(struct database *db, const struct tls_files *files, struct peers **ret, struct error **e) MUST_CHECK;
void peers_free(struct peers *peers);
/* So many hosts may be known to one; one more is ERROR_TOO_LARGE. */
#define PEERS_MAX 4096
int peers_add(struct peers *peers, const char *name, const char *address, uint16_t port, struct error **e) MUST_CHECK;
int peers_remove(struct peers *peers, const char *name, struct error **e) MUST_CHECK;
/* Reading waits for nothing. */
json_t *peers_list(struct peers *peers);
bool peers_have_address(struct peers *peers, const char *address);
/* {name, address, port}; ERROR_DEST_UNKNOWN. */
int peers_get(struct peers *peers, const char *name, json_t **ret, struct error **e) MUST_CHECK;

int peers_take(struct peers *peers, const char *name, struct http_client **ret, struct error **e) MUST_CHECK;
/* broken: the connection failed; it is closed instead of kept. Accepts NULL. */
void peers_give_back(struct peers *peers, const char *name, struct http_client *client, bool broken);

/* What one host asks another about a migration; docs/protocol.md. */
enum peer_message { PEER_CHECK, PEER_PREPARE, PEER_FINISH, PEER_REFUSE, PEER_OUTCOME, PEER_MESSAGE_COUNT };

struct peer_question {
	enum peer_message message;
	const char *host; /* who is asked */
	const char *migration_id;
	const json_t *body; /* NULL for outcome, which has only the id */
	int64_t timeout_ms;
};

/* What an error code of another host means here. Two say something of the host that sets them, and would mean here that
 * somebody has cancelled the migration, or that this ferryd is stopping: they become ERROR_PEER_REFUSED. */
enum error_code peers_code_of_other(enum error_code code);

/* Ask over a connection that was taken; the one way by which such a message leaves. *ret_body may be NULL, as in
 * http_client_request(), whose errors it has (codes of the other side by peers_code_of_other()). *ret_answered (may be NULL; always set): whether the other side has answered, good
 * or bad; if not, nobody knows whether the message was acted on. */
int peers_ask(struct http_client *client, const struct peer_question *question, json_t **ret_body, bool *ret_answered,
	      struct error **e) MUST_CHECK;

/* Ask a host who owns a VM, and at which epoch. False when it does not answer, or knows nothing of the VM. */
bool peers_ask_owner(struct peers *peers, const char *name, const char *vm_uuid, int64_t timeout_ms, char **ret_owner,
		     uint64_t *ret_epoch);

#endif
