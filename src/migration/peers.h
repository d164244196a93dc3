/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The other hosts: names and addresses (durable), and kept-alive connections to their ferryd, so that a migration does not
 * begin with a TLS handshake. Any thread; a connection that was taken is its taker's alone until it is given back.
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
int peers_add(struct peers *peers, const char *name, const char *address, uint16_t port, struct error **e) MUST_CHECK;
int peers_remove(struct peers *peers, const char *name, struct error **e) MUST_CHECK;
int peers_list(struct peers *peers, json_t **ret, struct error **e) MUST_CHECK;
/* {name, address, port}; ERROR_DEST_UNKNOWN. */
int peers_get(struct peers *peers, const char *name, json_t **ret, struct error **e) MUST_CHECK;

int peers_take(struct peers *peers, const char *name, struct http_client **ret, struct error **e) MUST_CHECK;
/* broken: the connection failed; it is closed instead of kept. Accepts NULL. */
void peers_give_back(struct peers *peers, const char *name, struct http_client *client, bool broken);

#endif
