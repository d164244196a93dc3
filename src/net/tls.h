/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Where a host or a remote client keeps its key and certificates, and what a certificate of Ferry says.
 * A certificate's CN (and a DNS SAN) is the host's name; its OU is its role: "host" or "client". Both ends of every
 * TCP connection show a certificate of the same CA (mutual TLS 1.3).
 */
#ifndef FERRY_NET_TLS_H
#define FERRY_NET_TLS_H

#include <gnutls/x509.h>
#include <stdbool.h>

#include "base/error.h"

enum tls_role { TLS_ROLE_NONE, TLS_ROLE_CLIENT, TLS_ROLE_HOST };

struct tls_files {
	char *ca_path;	 /* PEM, the certificate of the CA that signs all hosts and clients */
	char *cert_path; /* PEM, our own */
	char *key_path;	 /* PEM, mode 0600 */
};

#define TLS_NAME_SIZE 65

/* Role and name that a verified certificate (DER) states. */
int tls_identity_from_certificate(const gnutls_datum_t *der, enum tls_role *ret_role, char ret_name[TLS_NAME_SIZE],
				  struct error **e) MUST_CHECK;

/* Letters, digits, '-', '.' and '_', first a letter or digit, 64 at most: what a host or client may be called. */
bool tls_name_valid(const char *name);
/* "host" or "client": the OU, and the start of the files' names. */
const char *tls_role_name(enum tls_role role);
/* ERROR_TLS for the status bits of a failed verification. whose: "the other side's". Returns -1. */
int tls_error_from_status(unsigned int status, const char *whose, struct error **e);

/* Files ca.crt, host.crt, host.key in a folder (a client's: client.crt, client.key). */
void tls_files_in_folder(struct tls_files *files, const char *folder, enum tls_role role);
void tls_files_done(struct tls_files *files);
/* That the three files are there, fit together and have not expired; the error says which `ferry pki` command helps. */
int tls_files_check(const struct tls_files *files, struct error **e) MUST_CHECK;

/* Diffie-Hellman parameters in PKCS #3 PEM: the fixed group ffdhe2048 of RFC 7919, for a server that would otherwise generate
 * its own, which takes seconds. The caller frees the text. */
int tls_dh_parameters(char **ret_pem, struct error **e) MUST_CHECK;

#endif
