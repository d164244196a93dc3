/* SPDX-License-Identifier: Apache-2.0 */
/* ferryd's configuration: every key, and what is refused with which words. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <grp.h>
#include <pwd.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/file.h"
#include "base/xalloc.h"
#include "host/config.h"

/* Some unprivileged user that every system has. */
#define USER "nobody"

static char path[] = "/tmp/ferry-test-config-XXXXXX";

static int read_text(const char *text, struct config *ret, struct error **e)
{
	assert_int_equal(file_write_atomic(path, text, strlen(text), 0600, NULL), 0);
	return config_read(path, false, ret, e);
}

static void read_good(const char *text, struct config *ret)
{
	struct error *e = NULL;
	if (read_text(text, ret, &e) < 0)
		fail_msg("%s: %s", text, e->message);
}

/* The error is of this line (0: of none in particular) and says `words`. */
static void read_bad(const char *text, int line, const char *words)
{
	struct config config;
	cleanup_error struct error *e = NULL;
	if (read_text(text, &config, &e) == 0)
		fail_msg("accepted: %s", text);
	assert_int_equal(e->code, ERROR_CONFIG);
	cleanup_free char *place = line ? xasprintf("%s:%d: ", path, line) : xstrdup("");
	if (strncmp(e->message, place, strlen(place)) != 0 || !strstr(e->message, words))
		fail_msg("'%s' says neither '%s' nor '%s'", e->message, place, words);
}

static void test_defaults(void **state)
{
	(void)state;
	struct config config;
	char host_name[256] = "";
	gethostname(host_name, sizeof(host_name) - 1);
	read_good("[qemu]\nuser = " USER "\n", &config);
	assert_string_equal(config.host_name, host_name);
	assert_string_equal(config.control_address, "");
	assert_int_equal(config.control_port_number, 4710);
	assert_string_equal(config.data_address, "");
	assert_int_equal(config.data_port_min, 49152);
	assert_int_equal(config.data_port_max, 49215);
	assert_int_equal(config.stream_timeout_ms, 30000);
	assert_string_equal(config.trusted_networks, "");
	assert_string_equal(config.qemu_binary, "");
	assert_string_equal(config.accelerator, "auto");
	assert_string_equal(config.dirty_ring, "no");
	assert_int_equal(config.times.finish_timeout_ms, 30000);
	assert_int_equal(config.times.silence_limit_ms, 60000);
	assert_int_equal(config.times.check_timeout_ms, 20000);
	assert_int_equal(config.times.prepare_timeout_ms, 60000);
	assert_int_equal(config.times.refuse_timeout_ms, 10000);
	assert_int_equal(config.times.outcome_timeout_ms, 5000);
	assert_int_equal(config.times.check_lifetime_ms, 15000);
	assert_int_equal(config.times.retry_limit_ms, 30000);
	assert_int_equal(config.level, LOG_LEVEL_INFO);
	assert_string_equal(config.state_folder, "/var/lib/ferry");
	assert_string_equal(config.run_folder, "/run/ferry");
	assert_string_equal(config.pki_folder, "/etc/ferry/pki");
	config_done(&config);
}

static void test_every_key(void **state)
{
	(void)state;
	struct config config;
	read_good("; a comment\n# another\n\n"
		  "[host]\nname = host-7\n"
		  "[control]\naddress = 198.18.0.7\nport = 4711\n"
		  "[data]\naddress = 198.18.1.7\nnative_ports = 50000-50000\nstream_timeout = 9\ntrusted = 198.18.1.0/24, fd00::/8\n"
		  "[qemu]\nbinary = /opt/qemu\naccelerator = tcg\ndirty_ring = yes\nuser = 1001:1002\n"
		  "[migration]\nfinish_timeout = 7\nsilence_limit = 8\ncheck_timeout = 1\nprepare_timeout = 2\n"
		  "refuse_timeout = 3\noutcome_timeout = 4\ncheck_lifetime = 5\nretry_limit = 6\nextra_args = refuse\n"
		  "[log]\nlevel = debug\n"
		  "[paths]\nstate = /s\nrun = /r\npki = /p\n",
		  &config);
	assert_string_equal(config.host_name, "host-7");
	assert_string_equal(config.control_address, "198.18.0.7");
	assert_int_equal(config.control_port_number, 4711);
	assert_string_equal(config.data_address, "198.18.1.7");
	assert_int_equal(config.data_port_min, 50000);
	assert_int_equal(config.data_port_max, 50000);
	assert_int_equal(config.stream_timeout_ms, 9000);
	assert_string_equal(config.trusted_networks, "198.18.1.0/24, fd00::/8");
	assert_string_equal(config.qemu_binary, "/opt/qemu");
	assert_string_equal(config.accelerator, "tcg");
	assert_string_equal(config.dirty_ring, "yes");
	assert_int_equal(config.uid, 1001);
	assert_int_equal(config.gid, 1002);
	assert_int_equal(config.times.finish_timeout_ms, 7000);
	assert_int_equal(config.times.silence_limit_ms, 8000);
	assert_int_equal(config.times.check_timeout_ms, 1000);
	assert_int_equal(config.times.prepare_timeout_ms, 2000);
	assert_int_equal(config.times.refuse_timeout_ms, 3000);
	assert_int_equal(config.times.outcome_timeout_ms, 4000);
	assert_int_equal(config.times.check_lifetime_ms, 5000);
	assert_int_equal(config.times.retry_limit_ms, 6000);
	assert_string_equal(config.extra_args, "refuse");
	assert_int_equal(config.level, LOG_LEVEL_DEBUG);
	assert_string_equal(config.state_folder, "/s");
	assert_string_equal(config.run_folder, "/r");
	assert_string_equal(config.pki_folder, "/p");
	config_done(&config);
}

/* The data network follows the control network unless it is said. */
static void test_data_address(void **state)
{
	(void)state;
	struct config config;
	read_good("[control]\naddress = 198.18.0.7\n[qemu]\nuser = " USER "\n", &config);
	assert_string_equal(config.data_address, "198.18.0.7");
	config_done(&config);
}

/* What config_print_keys() writes is a configuration file itself, and has every key. */
static void test_printed_keys(void **state)
{
	(void)state;
	char *text = NULL;
	size_t length = 0;
	FILE *out = open_memstream(&text, &length);
	config_print_keys(out);
	fclose(out);
#define CONFIG_KEY(section, key, field, kind, fallback, meaning)                                                       \
	assert_non_null(strstr(text, "\n"                                                                              \
				     "" key " = " fallback)                                                            \
				?: strstr(text, "\n# " key " = " fallback));
#include "host/config.tbl"
#undef CONFIG_KEY
	char *user = strstr(text, "user = ");
	assert_non_null(user);
	cleanup_free char *changed =
		xasprintf("%.*suser = " USER "\n%s", (int)(user - text), text, strchr(user, '\n') + 1);
	struct config config;
	read_good(changed, &config);
	assert_int_equal(config.control_port_number, 4710);
	config_done(&config);
	free(text);
}

static void test_unknown(void **state)
{
	(void)state;
	read_bad("[host]\nname = a\nnmae = b\n", 3, "unknown key 'nmae' in section [host]");
	read_bad("[hots]\nname = a\n", 2, "unknown key 'name' in section [hots]");
	read_bad("name = a\n", 1, "unknown key 'name' in section []");
	read_bad("[control]\nname = a\n", 2, "unknown key 'name' in section [control]");
	read_bad("[host]\nname\n", 2, "not a section, a key or a comment");
	/* The first of several, with its own line. */
	read_bad("[log]\nlevel = loud\n[control]\nport = x\n", 2, "[log] level: 'loud'");
	read_bad("[log]\nlevel = loud\n", 2, "[error|warning|info|debug]");
}

static void test_twice(void **state)
{
	(void)state;
	read_bad("[control]\nport = 1\nport = 2\n", 3, "[control] port is given twice");
	/* inih takes an indented line for more of the value above: half of a list must not get lost. */
	read_bad("[data]\ntrusted = 198.18.0.0/24\n  10.0.0.0/8\n", 3, "[data] trusted is given twice");
}

static void test_values(void **state)
{
	(void)state;
	static const struct {
		const char *text, *words;
	} rows[] = {
		{"[control]\nport = 0\n", "'0' is not a port number"},
		{"[control]\nport = 65536\n", "'65536' is not a port number"},
		{"[control]\nport = -1\n", "not a port number"},
		{"[control]\nport = 47x\n", "not a port number"},
		{"[control]\nport =\n", "not a port number"},
		{"[control]\nport = 99999999999999999999\n", "not a port number"},
		{"[data]\nnative_ports = 5000\n", "not a range of ports"},
		{"[data]\nnative_ports = 5000-4999\n", "not a range of ports"},
		{"[data]\nnative_ports = 5000-70000\n", "not a range of ports"},
		{"[data]\nnative_ports = 5000-\n", "not a range of ports"},
		{"[data]\nnative_ports = -5000\n", "not a range of ports"},
		{"[data]\ntrusted = 198.18.0.0/33\n", "[data] trusted"},
		{"[data]\ntrusted = somewhere\n", "[data] trusted"},
		{"[qemu]\naccelerator = xen\n", "'xen' is not one of [auto|kvm|tcg]"},
		{"[qemu]\naccelerator = kv\n", "'kv' is not one of"},
		{"[qemu]\naccelerator = auto|kvm\n", "is not one of"},
		{"[qemu]\naccelerator =\n", "is not one of"},
		{"[migration]\nfinish_timeout = 0\n", "seconds"},
		{"[migration]\nfinish_timeout = 1.5\n", "seconds"},
		{"[migration]\nsilence_limit = 86401\n", "seconds"},
	};
	for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++)
		read_bad(rows[i].text, 2, rows[i].words);
}

static void test_users(void **state)
{
	(void)state;
	struct config config;
	const struct passwd *user = getpwnam(USER);
	assert_non_null(user);
	uid_t uid = user->pw_uid;
	gid_t gid = user->pw_gid;
	read_good("[qemu]\nuser = " USER "\n", &config);
	assert_int_equal(config.uid, uid);
	assert_int_equal(config.gid, gid);
	config_done(&config);
	/* Root in every dress, and numbers that become root or "no change" in the kernel. */
	static const char *const bad[] = {"root",
					  "0:0",
					  "0:100",
					  "4294967296:0",
					  "4294967295:100",
					  "100:4294967295",
					  "-1:-1",
					  "18446744073709551615:0",
					  "99999999999999999999:1",
					  "1:",
					  ":1",
					  "1:2:3",
					  "1:2x",
					  "12",
					  "",
					  "no-such-user"};
	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		cleanup_free char *text = xasprintf("[qemu]\nuser = %s\n", bad[i]);
		read_bad(text, 0, "[qemu] user");
	}
}

static void test_no_file(void **state)
{
	(void)state;
	struct config config;
	cleanup_error struct error *e = NULL;
	assert_int_equal(config_read("/nonexistent/ferry.conf", false, &config, &e), -1);
	assert_int_equal(e->code, ERROR_CONFIG);
	assert_non_null(strstr(e->message, "/nonexistent/ferry.conf"));
	/* Optional: the defaults, of which the user need not exist on this machine. */
	error_free(take_ptr(e));
	if (config_read("/nonexistent/ferry.conf", true, &config, &e) == 0) {
		assert_int_equal(config.control_port_number, 4710);
		config_done(&config);
	} else {
		assert_non_null(strstr(e->message, "[qemu] user"));
	}
	/* A folder is no file, optional or not. */
	error_free(take_ptr(e));
	assert_int_equal(config_read("/tmp", true, &config, &e), -1);
}

#define USED "[qemu]\nuser = " USER "\n"

static void test_limits(void **state)
{
	(void)state;
	struct config config;
	/* The longest line, and a byte more: what is behind it must not become a line of its own. */
	cleanup_free char *longest = xasprintf(USED "[paths]\nstate = /%0*d\n", 198 - 9, 0);
	read_good(longest, &config);
	assert_int_equal(strlen(config.state_folder), 198 - 8);
	config_done(&config);
	cleanup_free char *longer = xasprintf(USED "[paths]\nstate = /%0*d\n", 199 - 9, 0);
	read_bad(longer, 4, "longer than 198 bytes");
	cleanup_free char *comment = xasprintf(USED "[control]\n# %0*d\n", 190, 0);
	read_good(comment, &config);
	config_done(&config);
	cleanup_free char *hidden = xasprintf("[control]\n\n# %0*d port = 1", 194, 0);
	read_bad(hidden, 3, "longer than 198 bytes");
	/* The largest file: comments only. */
	cleanup_free char *large = xmalloc(65536 + 2);
	for (size_t i = 0; i < 65536 + 1; i++)
		large[i] = i % 64 == 63 ? '\n' : '#';
	memcpy(large, USED, strlen(USED));
	large[65536] = '\0';
	read_good(large, &config);
	config_done(&config);
	large[65536] = '#';
	large[65537] = '\0';
	read_bad(large, 0, "larger than 65536 bytes");
}

static int make_file(void **state)
{
	(void)state;
	int fd = mkstemp(path);
	return fd < 0 ? -1 : close(fd);
}

static int remove_file(void **state)
{
	(void)state;
	return unlink(path);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_defaults),     cmocka_unit_test(test_every_key),
		cmocka_unit_test(test_data_address), cmocka_unit_test(test_printed_keys),
		cmocka_unit_test(test_unknown),      cmocka_unit_test(test_twice),
		cmocka_unit_test(test_values),       cmocka_unit_test(test_users),
		cmocka_unit_test(test_no_file),      cmocka_unit_test(test_limits),
	};
	return cmocka_run_group_tests(tests, make_file, remove_file);
}
