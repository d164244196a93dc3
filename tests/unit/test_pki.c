/* SPDX-License-Identifier: Apache-2.0 */
/* The CA and its certificates: what they say, file modes, nothing overwritten, renewal, and what a check finds wrong.
 */
#include "fakes/pki_fixture.h"

#include <arpa/inet.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

static char folder[] = "/tmp/ferry-test-pki-XXXXXX";
static char *ca_folder;

static char *in_folder(const char *name)
{
	return xasprintf("%s/%s", folder, name);
}

static int make_ca(void **state)
{
	(void)state;
	if (!mkdtemp(folder))
		return -1;
	ca_folder = in_folder("ca");
	return pki_init(ca_folder, NULL);
}

static int remove_folder(void **state)
{
	(void)state;
	free(ca_folder);
	return file_remove_tree(folder, NULL);
}

static mode_t mode_of(const char *path)
{
	struct stat st;
	assert_int_equal(stat(path, &st), 0);
	return st.st_mode & 0777;
}

static void test_ca(void **state)
{
	(void)state;
	cleanup_free char *crt_path = xasprintf("%s/ca.crt", ca_folder), *key_path = xasprintf("%s/ca.key", ca_folder);
	assert_int_equal(mode_of(key_path), 0600);
	assert_int_equal(mode_of(ca_folder), 0700);
	gnutls_x509_crt_t ca = fixture_load_crt(crt_path);
	unsigned int critical = 0, usage = 0;
	assert_int_equal(gnutls_x509_crt_get_ca_status(ca, &critical), 1);
	assert_true(gnutls_x509_crt_get_key_usage(ca, &usage, &critical) >= 0);
	assert_true(usage & GNUTLS_KEY_KEY_CERT_SIGN);
	time_t left = gnutls_x509_crt_get_expiration_time(ca) - time(NULL);
	assert_true(left > 3640 * 86400L && left < 3660 * 86400L);
	gnutls_x509_crt_deinit(ca);

	/* A second CA there would make all certificates of the first worthless. */
	cleanup_error struct error *e = NULL;
	cleanup_free char *before = NULL, *after = NULL;
	assert_int_equal(file_read(key_path, 65536, &before, NULL, NULL), 0);
	assert_int_equal(pki_init(ca_folder, &e), -1);
	assert_int_equal(e->code, ERROR_EXISTS);
	assert_int_equal(file_read(key_path, 65536, &after, NULL, NULL), 0);
	assert_string_equal(before, after);
}

static void test_host_certificate(void **state)
{
	(void)state;
	cleanup_free char *out = in_folder("host-a");
	static const char *const addresses[] = {"198.18.0.1", "fd00::1", "host-a.example.org"};
	assert_int_equal(pki_issue(ca_folder, out, "host-a", TLS_ROLE_HOST, addresses, 3, NULL), 0);
	struct tls_files files;
	tls_files_in_folder(&files, out, TLS_ROLE_HOST);
	assert_int_equal(mode_of(files.key_path), 0600);
	assert_int_equal(tls_files_check(&files, NULL), 0);

	gnutls_x509_crt_t crt = fixture_load_crt(files.cert_path);
	assert_true(gnutls_x509_crt_check_hostname(crt, "host-a"));
	assert_true(gnutls_x509_crt_check_hostname(crt, "host-a.example.org"));
	assert_false(gnutls_x509_crt_check_hostname(crt, "host-b"));
	unsigned char ip4[4], ip6[16];
	inet_pton(AF_INET, "198.18.0.1", ip4);
	inet_pton(AF_INET6, "fd00::1", ip6);
	assert_true(gnutls_x509_crt_check_ip(crt, ip4, 4, 0));
	assert_true(gnutls_x509_crt_check_ip(crt, ip6, 16, 0));
	time_t left = gnutls_x509_crt_get_expiration_time(crt) - time(NULL);
	assert_true(left > 360 * 86400L && left < 825 * 86400L);
	assert_true(gnutls_x509_crt_get_activation_time(crt) < time(NULL) - 3600); /* clocks differ */

	gnutls_datum_t der = {NULL, 0};
	enum tls_role role = TLS_ROLE_NONE;
	char name[TLS_NAME_SIZE];
	assert_true(gnutls_x509_crt_export2(crt, GNUTLS_X509_FMT_DER, &der) >= 0);
	assert_int_equal(tls_identity_from_certificate(&der, &role, name, NULL), 0);
	assert_int_equal(role, TLS_ROLE_HOST);
	assert_string_equal(name, "host-a");
	gnutls_free(der.data);
	gnutls_x509_crt_deinit(crt);
	tls_files_done(&files);
}

static bool has_purpose(gnutls_x509_crt_t crt, const char *wanted)
{
	for (unsigned int i = 0;; i++) {
		char oid[64];
		size_t size = sizeof(oid);
		if (gnutls_x509_crt_get_key_purpose_oid(crt, i, oid, &size, NULL) < 0)
			return false;
		if (strcmp(oid, wanted) == 0)
			return true;
	}
}

static void test_client_certificate_is_no_server(void **state)
{
	(void)state;
	cleanup_free char *out = in_folder("client");
	struct tls_files files;
	fixture_issue(ca_folder, out, "alice", TLS_ROLE_CLIENT, false, &files);
	gnutls_x509_crt_t crt = fixture_load_crt(files.cert_path);
	assert_true(has_purpose(crt, GNUTLS_KP_TLS_WWW_CLIENT));
	assert_false(has_purpose(crt, GNUTLS_KP_TLS_WWW_SERVER));
	gnutls_x509_crt_deinit(crt);
	tls_files_done(&files);
}

static void test_issue_overwrites_nothing(void **state)
{
	(void)state;
	cleanup_free char *out = in_folder("twice"), *other_ca = in_folder("ca2");
	cleanup_free char *before = NULL, *after = NULL;
	cleanup_error struct error *e = NULL;
	struct tls_files files;
	fixture_issue(ca_folder, out, "host-t", TLS_ROLE_HOST, false, &files);
	assert_int_equal(file_read(files.key_path, 65536, &before, NULL, NULL), 0);
	assert_int_equal(pki_issue(ca_folder, out, "host-u", TLS_ROLE_HOST, NULL, 0, &e), -1);
	assert_int_equal(e->code, ERROR_EXISTS);
	assert_int_equal(file_read(files.key_path, 65536, &after, NULL, NULL), 0);
	assert_string_equal(before, after);

	/* Nor does a folder change its CA by the way. */
	assert_int_equal(pki_init(other_ca, NULL), 0);
	assert_int_equal(pki_issue(other_ca, out, "alice", TLS_ROLE_CLIENT, NULL, 0, &e), -1);
	assert_int_equal(e->code, ERROR_EXISTS);
	tls_files_done(&files);
}

static void test_issue_refuses_bad_arguments(void **state)
{
	(void)state;
	static const char *const names[] = {
		"",     "a b",     "a/b",
		"../x", "-a",      ".a",
		"a\nb", "host;rm", "0123456789012345678901234567890123456789012345678901234567890123456789"};
	cleanup_free char *out = in_folder("bad"), *no_ca = in_folder("no-ca");
	for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
		cleanup_error struct error *e = NULL;
		if (pki_issue(ca_folder, out, names[i], TLS_ROLE_HOST, NULL, 0, &e) == 0)
			fail_msg("the name '%s' was taken", names[i]);
		assert_int_equal(e->code, ERROR_INVALID_ARGUMENT);
	}
	cleanup_error struct error *e = NULL;
	static const char *const addresses[] = {"1.2.3.4/8"};
	assert_int_equal(pki_issue(ca_folder, out, "host-x", TLS_ROLE_HOST, addresses, 1, &e), -1);
	assert_int_equal(e->code, ERROR_INVALID_ARGUMENT);
	assert_int_equal(access(out, F_OK), -1);
	assert_int_equal(pki_issue(no_ca, out, "host-x", TLS_ROLE_HOST, NULL, 0, &e), -1);
	assert_int_equal(e->code, ERROR_PKI);
	assert_non_null(strstr(e->message, "ferry pki init"));
}

static void test_renew(void **state)
{
	(void)state;
	cleanup_free char *out = in_folder("renewed");
	static const char *const addresses[] = {"198.18.0.9", "nine.example.org"};
	assert_int_equal(pki_issue(ca_folder, out, "host-n", TLS_ROLE_HOST, addresses, 2, NULL), 0);
	struct tls_files files;
	tls_files_in_folder(&files, out, TLS_ROLE_HOST);
	cleanup_free char *old_key = NULL, *new_key = NULL;
	assert_int_equal(file_read(files.key_path, 65536, &old_key, NULL, NULL), 0);
	assert_int_equal(pki_renew(ca_folder, out, TLS_ROLE_HOST, NULL), 0);
	assert_int_equal(file_read(files.key_path, 65536, &new_key, NULL, NULL), 0);
	assert_string_not_equal(old_key, new_key);
	assert_int_equal(mode_of(files.key_path), 0600);
	assert_int_equal(tls_files_check(&files, NULL), 0);
	gnutls_x509_crt_t crt = fixture_load_crt(files.cert_path);
	assert_true(gnutls_x509_crt_check_hostname(crt, "host-n"));
	assert_true(gnutls_x509_crt_check_hostname(crt, "nine.example.org"));
	unsigned char ip4[4];
	inet_pton(AF_INET, "198.18.0.9", ip4);
	assert_true(gnutls_x509_crt_check_ip(crt, ip4, 4, 0));
	gnutls_x509_crt_deinit(crt);

	cleanup_error struct error *e = NULL;
	assert_int_equal(pki_renew(ca_folder, out, TLS_ROLE_CLIENT, &e), -1);
	assert_int_equal(e->code, ERROR_NOT_FOUND);

	/* A renewal that died between its renames: the check says what to do, and doing it helps. */
	assert_int_equal(file_write_atomic(files.key_path, old_key, strlen(old_key), 0600, NULL), 0);
	assert_int_equal(tls_files_check(&files, &e), -1);
	assert_non_null(strstr(e->message, "ferry pki renew"));
	assert_int_equal(pki_renew(ca_folder, out, TLS_ROLE_HOST, NULL), 0);
	assert_int_equal(tls_files_check(&files, NULL), 0);
	tls_files_done(&files);
}

static void check_says(const struct tls_files *files, const char *words)
{
	cleanup_error struct error *e = NULL;
	assert_int_equal(tls_files_check(files, &e), -1);
	assert_int_equal(e->code, ERROR_PKI);
	if (!strstr(e->message, words))
		fail_msg("'%s' does not say '%s'", e->message, words);
}

static void test_check_finds(void **state)
{
	(void)state;
	struct tls_files expired, future, open_key, missing;
	cleanup_free char *a = in_folder("expired"), *b = in_folder("future"), *c = in_folder("open"),
			  *d = in_folder("none");
	fixture_issue(ca_folder, a, "host-e", TLS_ROLE_HOST, true, &expired);
	check_says(&expired, "expired on ");
	check_says(&expired, "ferry pki renew");

	fixture_issue(ca_folder, b, "host-f", TLS_ROLE_HOST, false, &future);
	fixture_move_times(ca_folder, future.cert_path, time(NULL) + 100000, time(NULL) + 200000);
	check_says(&future, "not valid yet");

	fixture_issue(ca_folder, c, "host-o", TLS_ROLE_HOST, false, &open_key);
	assert_int_equal(chmod(open_key.key_path, 0644), 0);
	check_says(&open_key, "chmod 600");
	assert_int_equal(chmod(open_key.key_path, 0600), 0);
	assert_int_equal(file_write_atomic(open_key.cert_path, "rubbish", 7, 0644, NULL), 0);
	check_says(&open_key, "is no certificate");

	tls_files_in_folder(&missing, d, TLS_ROLE_HOST);
	check_says(&missing, "ferry pki issue");
	tls_files_done(&expired);
	tls_files_done(&future);
	tls_files_done(&open_key);
	tls_files_done(&missing);
}

static void test_check_finds_another_ca(void **state)
{
	(void)state;
	cleanup_free char *other = in_folder("ca3"), *out = in_folder("host-w"),
			  *ca_path = xasprintf("%s/ca.crt", other);
	struct tls_files files;
	assert_int_equal(pki_init(other, NULL), 0);
	fixture_issue(ca_folder, out, "host-w", TLS_ROLE_HOST, false, &files);
	free(files.ca_path);
	files.ca_path = xstrdup(ca_path);
	check_says(&files, "not issued by the CA");
	tls_files_done(&files);
}

/* A certificate with a DN that can be read in two ways is refused, though our CA has signed it. */
static void test_identity_is_strict(void **state)
{
	(void)state;
	static const struct {
		const char *names[2], *units[2], *words;
	} cases[] = {
		{{"host-a", NULL}, {"host", NULL}, NULL},
		{{"host-a", "host-b"}, {"host", NULL}, "more than one name"},
		{{"host-a", NULL}, {"client", "host"}, "more than one role"},
		{{NULL, NULL}, {"host", NULL}, "no name"},
		{{"host-a", NULL}, {NULL, NULL}, "no role"},
		{{"host-a", NULL}, {"admin", NULL}, "unknown role"},
		{{"a b", NULL}, {"host", NULL}, "characters"},
	};
	gnutls_x509_privkey_t key;
	assert_true(gnutls_x509_privkey_init(&key) >= 0);
	assert_true(gnutls_x509_privkey_generate(key, GNUTLS_PK_EDDSA_ED25519, 256, 0) >= 0);
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		gnutls_x509_crt_t crt;
		assert_true(gnutls_x509_crt_init(&crt) >= 0);
		gnutls_x509_crt_set_version(crt, 3);
		gnutls_x509_crt_set_serial(crt, "\1", 1);
		gnutls_x509_crt_set_activation_time(crt, 1);
		gnutls_x509_crt_set_expiration_time(crt, 1000000);
		gnutls_x509_crt_set_key(crt, key);
		for (int k = 0; k < 2; k++) {
			if (cases[i].names[k])
				gnutls_x509_crt_set_dn_by_oid(crt, GNUTLS_OID_X520_COMMON_NAME, 0, cases[i].names[k],
							      (unsigned int)strlen(cases[i].names[k]));
			if (cases[i].units[k])
				gnutls_x509_crt_set_dn_by_oid(crt, GNUTLS_OID_X520_ORGANIZATIONAL_UNIT_NAME, 0,
							      cases[i].units[k],
							      (unsigned int)strlen(cases[i].units[k]));
		}
		assert_true(gnutls_x509_crt_sign2(crt, crt, key, GNUTLS_DIG_SHA512, 0) >= 0);
		gnutls_datum_t der = {NULL, 0};
		assert_true(gnutls_x509_crt_export2(crt, GNUTLS_X509_FMT_DER, &der) >= 0);
		enum tls_role role = TLS_ROLE_NONE;
		char name[TLS_NAME_SIZE] = "untouched";
		cleanup_error struct error *e = NULL;
		int rc = tls_identity_from_certificate(&der, &role, name, &e);
		assert_int_equal(rc, cases[i].words ? -1 : 0);
		if (cases[i].words) {
			assert_non_null(strstr(e->message, cases[i].words));
			assert_string_equal(name, "untouched");
			assert_int_equal(role, TLS_ROLE_NONE);
		}
		gnutls_free(der.data);
		gnutls_x509_crt_deinit(crt);
	}
	gnutls_x509_privkey_deinit(key);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_ca),
		cmocka_unit_test(test_host_certificate),
		cmocka_unit_test(test_client_certificate_is_no_server),
		cmocka_unit_test(test_issue_overwrites_nothing),
		cmocka_unit_test(test_issue_refuses_bad_arguments),
		cmocka_unit_test(test_renew),
		cmocka_unit_test(test_check_finds),
		cmocka_unit_test(test_check_finds_another_ca),
		cmocka_unit_test(test_identity_is_strict),
	};
	return cmocka_run_group_tests(tests, make_ca, remove_folder);
}
