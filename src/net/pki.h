/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A small certificate authority in a folder (ca.crt, ca.key) for hosts and remote clients: Ed25519 or ECDSA P-256 keys,
 * CA 10 years, hosts and clients 1 year (825 days at most). Keys are written with mode 0600 and never overwritten
 * unless renewing. Used by `ferry pki` only; blocking.
 */
#ifndef FERRY_NET_PKI_H
#define FERRY_NET_PKI_H

#include <stddef.h>

#include "net/tls.h"

/* Make the CA in folder (created if needed). Refused with ERROR_EXISTS when there is one. */
int pki_init(const char *folder, struct error **e) MUST_CHECK;
/* Issue key and certificate for name into out_folder: ca.crt and host.crt, host.key (or client.crt, client.key).
 * addresses: IP addresses or further DNS names for the SAN. */
int pki_issue(const char *ca_folder, const char *out_folder, const char *name, enum tls_role role,
	      const char *const *addresses, size_t address_count, struct error **e) MUST_CHECK;
/* Issue again for the same name, role and addresses with a new key; the old pair stays in place until both new files are written. */
int pki_renew(const char *ca_folder, const char *folder, enum tls_role role, struct error **e) MUST_CHECK;

#endif
