/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The server's side of mutual TLS 1.3: our certificate, and who may connect. Each session is set up before its
 * handshake; a client without a valid certificate of our CA fails in the handshake and never gets an answer. When the
 * files change
 * (`ferry pki renew`), sessions from then on use the new ones. Any thread.
 */
#ifndef FERRY_NET_TLS_SERVER_H
#define FERRY_NET_TLS_SERVER_H

#include <gnutls/gnutls.h>

#include "net/tls.h"

/* GnuTLS priorities of both sides. */
#define TLS_PRIORITIES                                                                                                 \
	"NONE:+VERS-TLS1.3:+AES-128-GCM:+AES-256-GCM:+CHACHA20-POLY1305:+AEAD:+GROUP-X25519:+GROUP-SECP256R1:"         \
	"+SIGN-ECDSA-SECP256R1-SHA256:+SIGN-EDDSA-ED25519:+SIGN-ECDSA-SECP384R1-SHA384:+SIGN-RSA-PSS-RSAE-SHA256:"     \
	"+CTYPE-X509:%NO_TICKETS"

struct tls_server;
struct tls_server_credentials;

/* Who is at the other end, once the handshake has ended well; TLS_ROLE_NONE before that. */
struct tls_server_peer {
	enum tls_role role;
	char name[TLS_NAME_SIZE];
};

int tls_server_new(const struct tls_files *files, struct tls_server **ret, struct error **e) MUST_CHECK;
/* All sessions must have been released. */
void tls_server_free(struct tls_server *server);
/* Set up a session before its handshake. The session's user pointer is used for peer, which must live as long as it. */
struct tls_server_credentials *tls_server_attach(struct tls_server *server, gnutls_session_t session,
						 struct tls_server_peer *peer);
/* After the session's end. */
void tls_server_release(struct tls_server *server, struct tls_server_credentials *credentials);

#endif
