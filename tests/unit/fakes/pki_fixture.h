/* SPDX-License-Identifier: Apache-2.0 */
/* A folder with CAs and certificates for tests, also ones that `ferry pki` would never make: expired, or of another CA.
 */
#ifndef FERRY_TESTS_PKI_FIXTURE_H
#define FERRY_TESTS_PKI_FIXTURE_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <gnutls/gnutls.h>
#include <gnutls/x509.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/cleanup.h"
#include "base/file.h"
#include "base/xalloc.h"
#include "net/pki.h"
#include "net/tls.h"

static inline gnutls_x509_crt_t fixture_load_crt(const char *path)
{
	cleanup_free char *text = NULL;
	size_t length = 0;
	gnutls_x509_crt_t crt;
	assert_int_equal(file_read(path, 65536, &text, &length, NULL), 0);
	const gnutls_datum_t pem = {(unsigned char *)text, (unsigned int)length};
	assert_true(gnutls_x509_crt_init(&crt) >= 0);
	assert_true(gnutls_x509_crt_import(crt, &pem, GNUTLS_X509_FMT_PEM) >= 0);
	return crt;
}

static inline gnutls_x509_privkey_t fixture_load_key(const char *path)
{
	cleanup_free char *text = NULL;
	size_t length = 0;
	gnutls_x509_privkey_t key;
	assert_int_equal(file_read(path, 65536, &text, &length, NULL), 0);
	const gnutls_datum_t pem = {(unsigned char *)text, (unsigned int)length};
	assert_true(gnutls_x509_privkey_init(&key) >= 0);
	assert_true(gnutls_x509_privkey_import2(key, &pem, GNUTLS_X509_FMT_PEM, NULL, 0) >= 0);
	return key;
}

static inline void fixture_write_crt(gnutls_x509_crt_t crt, const char *path)
{
	gnutls_datum_t pem = {NULL, 0};
	assert_true(gnutls_x509_crt_export2(crt, GNUTLS_X509_FMT_PEM, &pem) >= 0);
	assert_int_equal(file_write_atomic(path, pem.data, pem.size, 0644, NULL), 0);
	gnutls_free(pem.data);
}

/* Sign a certificate of the folder again, with its times moved. */
static inline void fixture_move_times(const char *ca_folder, const char *crt_path, time_t from, time_t until)
{
	cleanup_free char *ca_crt_path = xasprintf("%s/ca.crt", ca_folder);
	cleanup_free char *ca_key_path = xasprintf("%s/ca.key", ca_folder);
	gnutls_x509_crt_t ca = fixture_load_crt(ca_crt_path), crt = fixture_load_crt(crt_path);
	gnutls_x509_privkey_t key = fixture_load_key(ca_key_path);
	assert_true(gnutls_x509_crt_set_activation_time(crt, from) >= 0);
	assert_true(gnutls_x509_crt_set_expiration_time(crt, until) >= 0);
	assert_true(gnutls_x509_crt_sign2(crt, ca, key, GNUTLS_DIG_SHA256, 0) >= 0);
	fixture_write_crt(crt, crt_path);
	gnutls_x509_crt_deinit(ca);
	gnutls_x509_crt_deinit(crt);
	gnutls_x509_privkey_deinit(key);
}

/* Issue for name into folder/out; with expired, a certificate whose time is over. */
static inline void fixture_issue(const char *ca_folder, const char *out_folder, const char *name, enum tls_role role,
				 bool expired, struct tls_files *ret_files)
{
	assert_int_equal(pki_issue(ca_folder, out_folder, name, role, NULL, 0, NULL), 0);
	tls_files_in_folder(ret_files, out_folder, role);
	if (expired)
		fixture_move_times(ca_folder, ret_files->cert_path, time(NULL) - 1000000, time(NULL) - 500000);
}

#endif
