/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The certificate authority of `ferry pki`; see pki.h.
 *
 * Keys are ECDSA P-256: a handshake with two of them costs about as little as with Ed25519, and browsers and older
 * clients understand them too. Certificates start a day in the past, since clocks of hosts differ. Serial numbers are
 * random, so that no counter has to be kept. Files are written with everything durable before the name appears.
 */
#include "net/pki.h"

#include <arpa/inet.h>
#include <errno.h>
#include <gnutls/abstract.h>
#include <gnutls/gnutls.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/file.h"
#include "base/xalloc.h"

#define PKI_DAY_S (24 * 60 * 60)
#define PKI_CA_DAYS 3650
#define PKI_LEAF_DAYS 365
#define PKI_ADDRESSES_MAX 64
#define PKI_FILE_LIMIT_BYTES (256 * 1024)

struct pki_pair {
	gnutls_x509_crt_t crt;
	gnutls_x509_privkey_t key;
};

static void pki_pair_done(struct pki_pair *pair)
{
	if (pair->crt)
		gnutls_x509_crt_deinit(pair->crt);
	if (pair->key)
		gnutls_x509_privkey_deinit(pair->key); /* wipes the key */
}
#define cleanup_pair __attribute__((cleanup(pki_pair_done)))

static int pki_gnutls_error(int rc, const char *doing, struct error **e)
{
	return error_set(e, ERROR_PKI, "cannot %s: %s", doing, gnutls_strerror(rc));
}

static int pki_pair_init(struct pki_pair *pair, struct error **e)
{
	int rc = gnutls_x509_crt_init(&pair->crt);
	if (rc >= 0)
		rc = gnutls_x509_privkey_init(&pair->key);
	return rc < 0 ? pki_gnutls_error(rc, "make room for a certificate", e) : 0;
}

/* A new key, and a certificate with it that says only who and until when. */
static int pki_pair_new(struct pki_pair *pair, const char *common_name, const char *unit, int days, struct error **e)
{
	if (pki_pair_init(pair, e) < 0)
		return -1;
	unsigned char serial[16];
	random_bytes(serial, sizeof(serial));
	serial[0] = (unsigned char)((serial[0] & 0x3f) | 0x40); /* positive, and always of the same length */
	time_t now = time(NULL);
	gnutls_x509_crt_t crt = pair->crt;
	int rc = gnutls_x509_privkey_generate(pair->key, GNUTLS_PK_ECDSA,
					      GNUTLS_CURVE_TO_BITS(GNUTLS_ECC_CURVE_SECP256R1), 0);
	if (rc >= 0)
		rc = gnutls_x509_crt_set_version(crt, 3);
	if (rc >= 0)
		rc = gnutls_x509_crt_set_serial(crt, serial, sizeof(serial));
	if (rc >= 0)
		rc = gnutls_x509_crt_set_activation_time(crt, now - PKI_DAY_S);
	if (rc >= 0)
		rc = gnutls_x509_crt_set_expiration_time(crt, now + (time_t)days * PKI_DAY_S);
	if (rc >= 0)
		rc = gnutls_x509_crt_set_dn_by_oid(crt, GNUTLS_OID_X520_COMMON_NAME, 0, common_name,
						   (unsigned int)strlen(common_name));
	if (rc >= 0 && unit)
		rc = gnutls_x509_crt_set_dn_by_oid(crt, GNUTLS_OID_X520_ORGANIZATIONAL_UNIT_NAME, 0, unit,
						   (unsigned int)strlen(unit));
	if (rc >= 0)
		rc = gnutls_x509_crt_set_key(crt, pair->key);
	unsigned char id[64];
	size_t id_length = sizeof(id);
	if (rc >= 0)
		rc = gnutls_x509_crt_get_key_id(crt, GNUTLS_KEYID_USE_SHA1, id, &id_length);
	if (rc >= 0)
		rc = gnutls_x509_crt_set_subject_key_id(crt, id, id_length);
	return rc < 0 ? pki_gnutls_error(rc, "make a key and certificate", e) : 0;
}

static int pki_sign(struct pki_pair *pair, const struct pki_pair *issuer, struct error **e)
{
	unsigned char id[64];
	size_t id_length = sizeof(id);
	int rc = 0;
	if (issuer != pair) {
		rc = gnutls_x509_crt_get_subject_key_id(issuer->crt, id, &id_length, NULL);
		if (rc >= 0)
			rc = gnutls_x509_crt_set_authority_key_id(pair->crt, id, id_length);
	}
	if (rc >= 0)
		rc = gnutls_x509_crt_sign2(pair->crt, issuer->crt, issuer->key, GNUTLS_DIG_SHA256, 0);
	return rc < 0 ? pki_gnutls_error(rc, "sign the certificate", e) : 0;
}

static int pki_write_crt(gnutls_x509_crt_t crt, const char *path, struct error **e)
{
	gnutls_datum_t pem = {NULL, 0};
	int rc = gnutls_x509_crt_export2(crt, GNUTLS_X509_FMT_PEM, &pem);
	if (rc < 0)
		return pki_gnutls_error(rc, "write out the certificate", e);
	rc = file_write_atomic(path, pem.data, pem.size, 0644, e);
	gnutls_free(pem.data);
	return rc;
}

static int pki_write_key(gnutls_x509_privkey_t key, const char *path, struct error **e)
{
	gnutls_datum_t pem = {NULL, 0};
	int rc = gnutls_x509_privkey_export2_pkcs8(key, GNUTLS_X509_FMT_PEM, NULL, GNUTLS_PKCS_PLAIN, &pem);
	if (rc < 0)
		return pki_gnutls_error(rc, "write out the key", e);
	rc = file_write_atomic(path, pem.data, pem.size, 0600, e);
	gnutls_memset(pem.data, 0, pem.size);
	gnutls_free(pem.data);
	return rc;
}

static int pki_read_file(const char *path, gnutls_datum_t *ret_text, struct error **e)
{
	char *text = NULL;
	size_t length = 0;
	if (file_read(path, PKI_FILE_LIMIT_BYTES, &text, &length, e) < 0)
		return -1;
	*ret_text = (gnutls_datum_t){(unsigned char *)text, (unsigned int)length};
	return 0;
}

static int pki_read_crt(const char *path, gnutls_x509_crt_t crt, struct error **e)
{
	gnutls_datum_t text = {NULL, 0};
	if (pki_read_file(path, &text, e) < 0)
		return -1;
	int rc = gnutls_x509_crt_import(crt, &text, GNUTLS_X509_FMT_PEM);
	free(text.data);
	return rc < 0 ? error_set(e, ERROR_PKI, "'%s' is no certificate: %s", path, gnutls_strerror(rc)) : 0;
}

static int pki_read_ca(const char *ca_folder, struct pki_pair *ca, struct error **e)
{
	cleanup_free char *crt_path = xasprintf("%s/ca.crt", ca_folder);
	cleanup_free char *key_path = xasprintf("%s/ca.key", ca_folder);
	if (access(crt_path, F_OK) < 0 || access(key_path, F_OK) < 0)
		return error_set(e, ERROR_PKI, "no CA in '%s' (ca.crt, ca.key); make one with `ferry pki init`",
				 ca_folder);
	gnutls_datum_t text = {NULL, 0};
	if (pki_pair_init(ca, e) < 0 || pki_read_crt(crt_path, ca->crt, e) < 0 || pki_read_file(key_path, &text, e) < 0)
		return -1;
	int rc = gnutls_x509_privkey_import2(ca->key, &text, GNUTLS_X509_FMT_PEM, NULL, 0);
	gnutls_memset(text.data, 0, text.size);
	free(text.data);
	if (rc < 0)
		return error_set(e, ERROR_PKI, "'%s' is no private key: %s", key_path, gnutls_strerror(rc));
	if (gnutls_x509_crt_get_expiration_time(ca->crt) <= time(NULL))
		return error_set(e, ERROR_PKI, "the CA '%s' has expired; make a new one with `ferry pki init`",
				 crt_path);
	return 0;
}

static int pki_refuse_existing(const char *path, struct error **e)
{
	if (access(path, F_OK) == 0)
		return error_set(e, ERROR_EXISTS, "'%s' is there already", path);
	return 0;
}

int pki_init(const char *folder, struct error **e)
{
	cleanup_free char *crt_path = xasprintf("%s/ca.crt", folder);
	cleanup_free char *key_path = xasprintf("%s/ca.key", folder);
	if (pki_refuse_existing(crt_path, e) < 0 || pki_refuse_existing(key_path, e) < 0 ||
	    file_make_folders(folder, 0700, e) < 0)
		return -1;

	/* Two CAs never have the same name, or a certificate of the wrong one would fail with a puzzling message. */
	char id[RANDOM_ID_SIZE];
	random_id(id);
	cleanup_free char *common_name = xasprintf("Ferry CA %.8s", id);
	cleanup_pair struct pki_pair ca = {0};
	if (pki_pair_new(&ca, common_name, NULL, PKI_CA_DAYS, e) < 0)
		return -1;
	int rc = gnutls_x509_crt_set_basic_constraints(ca.crt, 1, 0);
	if (rc >= 0)
		rc = gnutls_x509_crt_set_key_usage(ca.crt, GNUTLS_KEY_KEY_CERT_SIGN | GNUTLS_KEY_CRL_SIGN);
	if (rc < 0)
		return pki_gnutls_error(rc, "make the CA's certificate", e);
	if (pki_sign(&ca, &ca, e) < 0 || pki_write_key(ca.key, key_path, e) < 0)
		return -1;
	if (pki_write_crt(ca.crt, crt_path, e) < 0) {
		unlink(key_path); /* so that the next try is not refused */
		return -1;
	}
	return 0;
}

/* What pki_issue() and pki_renew() have in common: everything in a host's or client's certificate but the SAN. */
static int pki_leaf_new(struct pki_pair *pair, const char *name, enum tls_role role, struct error **e)
{
	if (pki_pair_new(pair, name, tls_role_name(role), PKI_LEAF_DAYS, e) < 0)
		return -1;
	int rc = gnutls_x509_crt_set_basic_constraints(pair->crt, 0, -1);
	if (rc >= 0)
		rc = gnutls_x509_crt_set_key_usage(pair->crt, GNUTLS_KEY_DIGITAL_SIGNATURE);
	/* A host is both: it asks other hosts. A client's certificate must never pass for a server's. */
	if (rc >= 0)
		rc = gnutls_x509_crt_set_key_purpose_oid(pair->crt, GNUTLS_KP_TLS_WWW_CLIENT, 0);
	if (rc >= 0 && role == TLS_ROLE_HOST)
		rc = gnutls_x509_crt_set_key_purpose_oid(pair->crt, GNUTLS_KP_TLS_WWW_SERVER, 0);
	return rc < 0 ? pki_gnutls_error(rc, "make the certificate", e) : 0;
}

static int pki_add_san(gnutls_x509_crt_t crt, const char *address, struct error **e)
{
	unsigned char binary[16];
	int rc;
	if (inet_pton(AF_INET, address, binary) == 1)
		rc = gnutls_x509_crt_set_subject_alt_name(crt, GNUTLS_SAN_IPADDRESS, binary, 4, GNUTLS_FSAN_APPEND);
	else if (inet_pton(AF_INET6, address, binary) == 1)
		rc = gnutls_x509_crt_set_subject_alt_name(crt, GNUTLS_SAN_IPADDRESS, binary, 16, GNUTLS_FSAN_APPEND);
	else if (strlen(address) <= 253 &&
		 strspn(address, "-._abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
				 "0123456789") == strlen(address) &&
		 address[0])
		rc = gnutls_x509_crt_set_subject_alt_name(crt, GNUTLS_SAN_DNSNAME, address,
							  (unsigned int)strlen(address), GNUTLS_FSAN_APPEND);
	else
		return error_set(e, ERROR_INVALID_ARGUMENT, "'%s' is neither an IP address nor a DNS name", address);
	return rc < 0 ? pki_gnutls_error(rc, "write an address into the certificate", e) : 0;
}

/* The CA's certificate beside the host's. A folder belongs to one CA: another one's is not replaced. */
static int pki_copy_ca(const char *ca_folder, const char *out_folder, struct error **e)
{
	cleanup_free char *from = xasprintf("%s/ca.crt", ca_folder);
	cleanup_free char *to = xasprintf("%s/ca.crt", out_folder);
	cleanup_free char *text = NULL, *there = NULL;
	size_t length = 0, there_length = 0;
	if (file_read(from, PKI_FILE_LIMIT_BYTES, &text, &length, e) < 0)
		return -1;
	if (access(to, F_OK) < 0)
		return file_write_atomic(to, text, length, 0644, e);
	if (file_read(to, PKI_FILE_LIMIT_BYTES, &there, &there_length, e) < 0)
		return -1;
	if (length != there_length || memcmp(text, there, length) != 0)
		return error_set(e, ERROR_EXISTS, "'%s' is the certificate of another CA", to);
	return 0;
}

int pki_issue(const char *ca_folder, const char *out_folder, const char *name, enum tls_role role,
	      const char *const *addresses, size_t address_count, struct error **e)
{
	if (!tls_name_valid(name))
		return error_set(e, ERROR_INVALID_ARGUMENT,
				 "'%s' cannot be a name: letters, digits, '-', '.', '_', 64 at most", name);
	if (role != TLS_ROLE_HOST && role != TLS_ROLE_CLIENT)
		return error_set(e, ERROR_INVALID_ARGUMENT, "a certificate is for a host or a client");
	if (address_count > PKI_ADDRESSES_MAX)
		return error_set(e, ERROR_INVALID_ARGUMENT, "more than %d addresses for '%s'", PKI_ADDRESSES_MAX, name);
	cleanup_pair struct pki_pair ca = {0}, leaf = {0};
	if (pki_read_ca(ca_folder, &ca, e) < 0)
		return -1;

	struct tls_files files;
	tls_files_in_folder(&files, out_folder, role);
	int rc = -1;
	if (pki_refuse_existing(files.cert_path, e) < 0 || pki_refuse_existing(files.key_path, e) < 0)
		goto done_files;
	if (pki_leaf_new(&leaf, name, role, e) < 0 || pki_add_san(leaf.crt, name, e) < 0)
		goto done_files;
	for (size_t i = 0; i < address_count; i++)
		if (strcmp(addresses[i], name) != 0 && pki_add_san(leaf.crt, addresses[i], e) < 0)
			goto done_files;
	if (pki_sign(&leaf, &ca, e) < 0 || file_make_folders(out_folder, 0700, e) < 0 ||
	    pki_copy_ca(ca_folder, out_folder, e) < 0 || pki_write_key(leaf.key, files.key_path, e) < 0)
		goto done_files;
	rc = pki_write_crt(leaf.crt, files.cert_path, e);
	if (rc < 0)
		unlink(files.key_path);
done_files:
	tls_files_done(&files);
	return rc;
}

static int pki_copy_sans(gnutls_x509_crt_t from, gnutls_x509_crt_t to, struct error **e)
{
	for (unsigned int i = 0;; i++) {
		unsigned char value[512];
		size_t length = sizeof(value);
		int type = gnutls_x509_crt_get_subject_alt_name(from, i, value, &length, NULL);
		if (type == GNUTLS_E_REQUESTED_DATA_NOT_AVAILABLE)
			return 0;
		if (type < 0)
			return pki_gnutls_error(type, "read the addresses of the old certificate", e);
		int rc = gnutls_x509_crt_set_subject_alt_name(to, (gnutls_x509_subject_alt_name_t)type, value,
							      (unsigned int)length, GNUTLS_FSAN_APPEND);
		if (rc < 0)
			return pki_gnutls_error(rc, "write an address into the certificate", e);
	}
}

static int pki_identity(gnutls_x509_crt_t crt, enum tls_role *ret_role, char ret_name[TLS_NAME_SIZE], struct error **e)
{
	gnutls_datum_t der = {NULL, 0};
	int rc = gnutls_x509_crt_export2(crt, GNUTLS_X509_FMT_DER, &der);
	if (rc < 0)
		return pki_gnutls_error(rc, "read the old certificate", e);
	rc = tls_identity_from_certificate(&der, ret_role, ret_name, e);
	gnutls_free(der.data);
	return rc;
}

/* Put the new pair in place of the old: both new files are on disk before the first rename. Dying between the two
 * renames leaves a key that does not fit its certificate, which tls_files_check() says, and which renewing again puts
 * right. */
static int pki_replace_pair(const struct pki_pair *leaf, const struct tls_files *files, struct error **e)
{
	cleanup_free char *new_crt = xasprintf("%s.new", files->cert_path);
	cleanup_free char *new_key = xasprintf("%s.new", files->key_path);
	if (pki_write_crt(leaf->crt, new_crt, e) < 0)
		return -1;
	if (pki_write_key(leaf->key, new_key, e) < 0)
		goto remove_crt;
	if (rename(new_key, files->key_path) < 0) {
		error_set_errno(e, ERROR_SYSTEM, errno, "cannot replace '%s'", files->key_path);
		goto remove_key;
	}
	if (rename(new_crt, files->cert_path) < 0) {
		error_set_errno(e, ERROR_SYSTEM, errno, "cannot replace '%s'", files->cert_path);
		goto remove_crt;
	}
	return 0;

remove_key:
	unlink(new_key);
remove_crt:
	unlink(new_crt);
	return -1;
}

int pki_renew(const char *ca_folder, const char *folder, enum tls_role role, struct error **e)
{
	cleanup_pair struct pki_pair ca = {0}, old = {0}, leaf = {0};
	if (pki_read_ca(ca_folder, &ca, e) < 0 || pki_pair_init(&old, e) < 0)
		return -1;
	struct tls_files files;
	tls_files_in_folder(&files, folder, role);
	char name[TLS_NAME_SIZE];
	enum tls_role old_role;
	int rc = -1;
	if (pki_read_crt(files.cert_path, old.crt, e) < 0 || pki_identity(old.crt, &old_role, name, e) < 0)
		goto done_files;
	if (old_role != role) {
		error_set(e, ERROR_PKI, "'%s' is the certificate of a %s", files.cert_path, tls_role_name(old_role));
		goto done_files;
	}
	if (pki_copy_ca(ca_folder, folder, e) < 0 || pki_leaf_new(&leaf, name, role, e) < 0 ||
	    pki_copy_sans(old.crt, leaf.crt, e) < 0 || pki_sign(&leaf, &ca, e) < 0)
		goto done_files;
	rc = pki_replace_pair(&leaf, &files, e);
done_files:
	tls_files_done(&files);
	return rc;
}
