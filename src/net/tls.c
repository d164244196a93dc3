/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Certificates: what one of Ferry's says, and whether a folder's three files can be used; see tls.h.
 *
 * Trust comes from Ferry's own CA alone: neither the system's CA bundle nor the address somebody connects from counts.
 */
#include "net/tls.h"

#include <errno.h>
#include <gnutls/abstract.h>
#include <gnutls/gnutls.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

#include "base/cleanup.h"
#include "base/file.h"
#include "base/xalloc.h"

#define TLS_FILE_LIMIT_BYTES (256 * 1024)

static void cleanup_crt_ptr(gnutls_x509_crt_t *crt)
{
	if (*crt)
		gnutls_x509_crt_deinit(*crt);
}
static void cleanup_key_ptr(gnutls_x509_privkey_t *key)
{
	if (*key)
		gnutls_x509_privkey_deinit(*key);
}
static void cleanup_trust_ptr(gnutls_x509_trust_list_t *trust)
{
	if (*trust)
		gnutls_x509_trust_list_deinit(*trust, 1);
}
#define cleanup_crt __attribute__((cleanup(cleanup_crt_ptr)))
#define cleanup_key __attribute__((cleanup(cleanup_key_ptr)))
#define cleanup_trust __attribute__((cleanup(cleanup_trust_ptr)))

/* The one value of a DN's attribute. Two of them, or a NUL inside, could be read differently by different readers. */
static int tls_dn_value(gnutls_x509_crt_t crt, const char *oid, const char *what, char *ret_value, size_t size,
			struct error **e)
{
	char value[256], second[256];
	size_t length = sizeof(value), second_length = sizeof(second);
	if (gnutls_x509_crt_get_dn_by_oid(crt, oid, 0, 0, value, &length) < 0)
		return error_set(e, ERROR_TLS, "the certificate states no %s", what);
	if (gnutls_x509_crt_get_dn_by_oid(crt, oid, 1, 0, second, &second_length) !=
	    GNUTLS_E_REQUESTED_DATA_NOT_AVAILABLE)
		return error_set(e, ERROR_TLS, "the certificate states more than one %s", what);
	if (length == 0 || length >= size || memchr(value, '\0', length))
		return error_set(e, ERROR_TLS, "the certificate's %s is empty, too long or has a NUL in it", what);
	memcpy(ret_value, value, length);
	ret_value[length] = '\0';
	return 0;
}

bool tls_name_valid(const char *name)
{
	static const char letters[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789";
	size_t length = strlen(name);
	return length > 0 && length < TLS_NAME_SIZE && strchr(letters, name[0]) &&
	       strspn(name + 1, "-._abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789") == length - 1;
}

const char *tls_role_name(enum tls_role role)
{
	return role == TLS_ROLE_HOST ? "host" : role == TLS_ROLE_CLIENT ? "client" : "none";
}

int tls_identity_from_certificate(const gnutls_datum_t *der, enum tls_role *ret_role, char ret_name[TLS_NAME_SIZE],
				  struct error **e)
{
	cleanup_crt gnutls_x509_crt_t crt = NULL;
	int rc = gnutls_x509_crt_init(&crt);
	if (rc >= 0)
		rc = gnutls_x509_crt_import(crt, der, GNUTLS_X509_FMT_DER);
	if (rc < 0)
		return error_set(e, ERROR_TLS, "the certificate cannot be read: %s", gnutls_strerror(rc));

	char name[TLS_NAME_SIZE], unit[16];
	if (tls_dn_value(crt, GNUTLS_OID_X520_COMMON_NAME, "name (CN)", name, sizeof(name), e) < 0 ||
	    tls_dn_value(crt, GNUTLS_OID_X520_ORGANIZATIONAL_UNIT_NAME, "role (OU)", unit, sizeof(unit), e) < 0)
		return -1;
	if (!tls_name_valid(name))
		return error_set(e, ERROR_TLS, "the certificate's name has characters that no host's name may have");
	if (gnutls_x509_crt_get_ca_status(crt, NULL) > 0)
		return error_set(e, ERROR_TLS, "the certificate of '%s' is one of a CA", name);
	enum tls_role role = strcmp(unit, "host") == 0     ? TLS_ROLE_HOST
			     : strcmp(unit, "client") == 0 ? TLS_ROLE_CLIENT
							   : TLS_ROLE_NONE;
	if (role == TLS_ROLE_NONE)
		return error_set(e, ERROR_TLS, "the certificate of '%s' has an unknown role (OU) '%s'", name, unit);
	*ret_role = role;
	memcpy(ret_name, name, sizeof(name));
	return 0;
}

int tls_error_from_status(unsigned int status, const char *whose, struct error **e)
{
	if (status & GNUTLS_CERT_EXPIRED)
		return error_set(e, ERROR_TLS,
				 "%s certificate has expired (or the clocks differ); run `ferry pki renew` for it",
				 whose);
	if (status & GNUTLS_CERT_NOT_ACTIVATED)
		return error_set(e, ERROR_TLS, "%s certificate is not valid yet: the clocks differ", whose);
	if (status & (GNUTLS_CERT_SIGNER_NOT_FOUND | GNUTLS_CERT_SIGNATURE_FAILURE | GNUTLS_CERT_SIGNER_NOT_CA))
		return error_set(e, ERROR_TLS, "%s certificate was not issued by the CA that we trust", whose);
	if (status & GNUTLS_CERT_PURPOSE_MISMATCH)
		return error_set(e, ERROR_TLS, "%s certificate is not meant for this side of a connection", whose);
	gnutls_datum_t text = {NULL, 0};
	gnutls_certificate_verification_status_print(status, GNUTLS_CRT_X509, &text, 0);
	error_set(e, ERROR_TLS, "%s certificate is refused: %s", whose,
		  text.data ? (const char *)text.data : "unknown");
	gnutls_free(text.data);
	return -1;
}

void tls_files_in_folder(struct tls_files *files, const char *folder, enum tls_role role)
{
	const char *name = tls_role_name(role);
	files->ca_path = xasprintf("%s/ca.crt", folder);
	files->cert_path = xasprintf("%s/%s.crt", folder, name);
	files->key_path = xasprintf("%s/%s.key", folder, name);
}

void tls_files_done(struct tls_files *files)
{
	free(files->ca_path);
	free(files->cert_path);
	free(files->key_path);
	*files = (struct tls_files){0};
}

static int tls_file_load(const char *path, gnutls_datum_t *ret_text, struct error **e)
{
	cleanup_error struct error *why = NULL;
	char *text = NULL;
	size_t length = 0;
	if (file_read(path, TLS_FILE_LIMIT_BYTES, &text, &length, &why) < 0)
		return error_set(e, ERROR_PKI, "%s; keys and certificates are made with `ferry pki issue`",
				 why->message);
	*ret_text = (gnutls_datum_t){(unsigned char *)text, (unsigned int)length};
	return 0;
}

static int tls_key_mode_check(const char *path, struct error **e)
{
	struct stat st;
	if (stat(path, &st) < 0)
		return error_set_errno(e, ERROR_PKI, errno, "cannot look at '%s'; `ferry pki issue` makes it", path);
	if (st.st_mode & (S_IRWXG | S_IRWXO))
		return error_set(e, ERROR_PKI, "others than its owner may use the key '%s'; run: chmod 600 '%s'", path,
				 path);
	return 0;
}

/* The certificates and key as GnuTLS objects; which of the three is unreadable is said. */
static int tls_files_load(const struct tls_files *files, gnutls_x509_trust_list_t trust, gnutls_x509_crt_t crt,
			  gnutls_x509_privkey_t key, struct error **e)
{
	gnutls_datum_t text = {NULL, 0};
	if (tls_file_load(files->ca_path, &text, e) < 0)
		return -1;
	int rc = gnutls_x509_trust_list_add_trust_mem(trust, &text, NULL, GNUTLS_X509_FMT_PEM, 0, 0);
	free(text.data);
	if (rc <= 0)
		return error_set(e, ERROR_PKI, "'%s' holds no certificate of a CA", files->ca_path);

	if (tls_file_load(files->cert_path, &text, e) < 0)
		return -1;
	rc = gnutls_x509_crt_import(crt, &text, GNUTLS_X509_FMT_PEM);
	free(text.data);
	if (rc < 0)
		return error_set(e, ERROR_PKI, "'%s' is no certificate: %s", files->cert_path, gnutls_strerror(rc));

	if (tls_file_load(files->key_path, &text, e) < 0)
		return -1;
	rc = gnutls_x509_privkey_import2(key, &text, GNUTLS_X509_FMT_PEM, NULL, 0);
	gnutls_memset(text.data, 0, text.size);
	free(text.data);
	if (rc < 0)
		return error_set(e, ERROR_PKI, "'%s' is no private key: %s", files->key_path, gnutls_strerror(rc));
	return 0;
}

static int tls_key_matches(const struct tls_files *files, gnutls_x509_crt_t crt, gnutls_x509_privkey_t key,
			   struct error **e)
{
	unsigned char crt_id[64], key_id[64];
	size_t crt_length = sizeof(crt_id), key_length = sizeof(key_id);
	if (gnutls_x509_crt_get_key_id(crt, GNUTLS_KEYID_USE_SHA256, crt_id, &crt_length) < 0 ||
	    gnutls_x509_privkey_get_key_id(key, GNUTLS_KEYID_USE_SHA256, key_id, &key_length) < 0 ||
	    crt_length != key_length || memcmp(crt_id, key_id, crt_length) != 0)
		return error_set(e, ERROR_PKI,
				 "'%s' is not the key of '%s' (was a renewal interrupted?); run `ferry pki renew`",
				 files->key_path, files->cert_path);
	return 0;
}

int tls_files_check(const struct tls_files *files, struct error **e)
{
	cleanup_trust gnutls_x509_trust_list_t trust = NULL;
	cleanup_crt gnutls_x509_crt_t crt = NULL;
	cleanup_key gnutls_x509_privkey_t key = NULL;
	if (gnutls_x509_trust_list_init(&trust, 0) < 0 || gnutls_x509_crt_init(&crt) < 0 ||
	    gnutls_x509_privkey_init(&key) < 0)
		return error_set(e, ERROR_PKI, "GnuTLS gave no memory for certificates");
	if (tls_key_mode_check(files->key_path, e) < 0 || tls_files_load(files, trust, crt, key, e) < 0 ||
	    tls_key_matches(files, crt, key, e) < 0)
		return -1;

	unsigned int status = 0;
	int rc = gnutls_x509_trust_list_verify_crt2(trust, &crt, 1, NULL, 0, 0, &status, NULL);
	if (rc < 0)
		return error_set(e, ERROR_PKI, "'%s' cannot be verified: %s", files->cert_path, gnutls_strerror(rc));
	if (status & GNUTLS_CERT_EXPIRED) {
		time_t until = gnutls_x509_crt_get_expiration_time(crt);
		struct tm tm;
		char day[32];
		if (until > time(NULL)) /* then it is the CA's that has */
			return error_set(e, ERROR_PKI, "the CA '%s' has expired; make a new one with `ferry pki init`",
					 files->ca_path);
		gmtime_r(&until, &tm);
		strftime(day, sizeof(day), "%Y-%m-%d", &tm);
		return error_set(e, ERROR_PKI, "the certificate '%s' expired on %s; run `ferry pki renew`",
				 files->cert_path, day);
	}
	if (status != 0) {
		cleanup_error struct error *why = NULL;
		cleanup_free char *whose = xasprintf("'%s': this", files->cert_path);
		tls_error_from_status(status, whose, &why);
		return error_set(e, ERROR_PKI, "%s; run `ferry pki issue`", why->message);
	}

	unsigned char der[8192];
	size_t der_length = sizeof(der);
	enum tls_role role;
	char name[TLS_NAME_SIZE];
	if (gnutls_x509_crt_export(crt, GNUTLS_X509_FMT_DER, der, &der_length) < 0)
		return error_set(e, ERROR_PKI, "'%s' is larger than any certificate of Ferry", files->cert_path);
	const gnutls_datum_t datum = {der, (unsigned int)der_length};
	if (tls_identity_from_certificate(&datum, &role, name, e) < 0) {
		if (e)
			(*e)->code = ERROR_PKI;
		return error_wrap(e, "'%s'", files->cert_path);
	}
	return 0;
}

int tls_dh_parameters(char **ret_pem, struct error **e)
{
	gnutls_dh_params_t parameters = NULL;
	gnutls_datum_t pem = {0};
	int status = gnutls_dh_params_init(&parameters);
	if (status == GNUTLS_E_SUCCESS)
		status = gnutls_dh_params_import_raw(parameters, &gnutls_ffdhe_2048_group_prime,
						     &gnutls_ffdhe_2048_group_generator);
	if (status == GNUTLS_E_SUCCESS)
		status = gnutls_dh_params_export2_pkcs3(parameters, GNUTLS_X509_FMT_PEM, &pem);
	gnutls_dh_params_deinit(parameters);
	if (status != GNUTLS_E_SUCCESS)
		return error_set(e, ERROR_TLS, "Diffie-Hellman parameters: %s", gnutls_strerror(status));
	*ret_pem = xasprintf("%.*s", (int)pem.size, (const char *)pem.data);
	gnutls_free(pem.data);
	return 0;
}
