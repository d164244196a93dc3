/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The hosts of a test, joined without a network: this file's http_client_*() take the place of net/http_client.c in a
 * test program that links it. A request is handed, as text, to the other host's handler of peer messages, in the asking
 * thread. On the way it can get lost, its answer can get lost, it can arrive twice, or be kept and delivered later. Any
 * thread.
 */
#ifndef FERRY_TESTS_FAKE_WIRE_H
#define FERRY_TESTS_FAKE_WIRE_H

#include <jansson.h>

#include "migration/host.h"
#include "net/tls.h"

enum wire_fault {
	WIRE_LOSE_REQUEST, /* it never arrives */
	WIRE_LOSE_ANSWER,  /* it is handled, and nobody hears of it */
	WIRE_TWICE,        /* it is handled twice; the second answer comes back */
	WIRE_KEEP,         /* the asker hears nothing; wire_deliver_kept() hands it over later */
};

/* A host is reachable from now on, and is the one who asks where a client is made with these files. */
void wire_connect(const char *name, const struct tls_files *files, struct migration_host *host);
/* Nothing more comes in or goes out, from now on; returns at once, so that a handler may call it. */
void wire_cut(const char *name);
/* Cut, wait until no message of this host is being handled, and forget it. */
void wire_disconnect(const char *name);
/* The next `count` messages named so ("prepare", "finish", "outcome"…) from any host suffer this. */
void wire_fault(const char *message, enum wire_fault fault, unsigned int count);
/* Called when such a message has arrived, before it is handled; then, with `after`, after it was handled. */
void wire_hook(const char *message, bool after, void (*hook)(void *user), void *user);
/* Hand over what was kept, in order. Returns how many. */
unsigned int wire_deliver_kept(void);
/* How many such messages have been handled, and how many were tried. */
unsigned int wire_handled(const char *message);
/* Ask a host as another one, without any fault: *ret or an error. */
int wire_ask(const char *from, const char *to, const char *message, const json_t *body, json_t **ret, struct error **e);
void wire_reset(void);

#endif
