/* SPDX-License-Identifier: Apache-2.0 */
/* Durations, rates, sizes and addresses as people write and read them. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "cli/address.h"
#include "cli/output.h"
#include "cli/units.h"

static void test_durations(void **state)
{
	(void)state;
	static const struct {
		const char *text;
		int64_t ms;
	} good[] = {{"300ms", 300},  {"2s", 2000}, {"1.5s", 1500}, {"2m", 120000}, {"2min", 120000},
		    {"1h", 3600000}, {"1ms", 1},   {"0.001s", 1},  {"2S", 2000},   {"1000h", 3600000000}};
	for (size_t i = 0; i < sizeof(good) / sizeof(good[0]); i++) {
		int64_t ms = -1;
		assert_int_equal(units_parse_duration(good[i].text, &ms, NULL), 0);
		assert_int_equal(ms, good[i].ms);
	}
	static const char *const bad[] = {"",
					  "300",
					  "ms",
					  "0ms",
					  "0.5ms",
					  "-1s",
					  "+1s",
					  " 1s",
					  "1 s",
					  "1s ",
					  "1d",
					  "inf",
					  "nans",
					  "0x1s",
					  "1e3s",
					  ".5s",
					  "1.s",
					  "1.2.3s",
					  "1,5s",
					  "1001h",
					  "99999999999999999999s",
					  "111111111111111111111111111s"};
	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		cleanup_error struct error *e = NULL;
		int64_t ms = 42;
		assert_int_equal(units_parse_duration(bad[i], &ms, &e), -1);
		assert_int_equal(e->code, ERROR_INVALID_ARGUMENT);
		assert_int_equal(ms, 42);
	}
}

static void test_rates(void **state)
{
	(void)state;
	static const struct {
		const char *text;
		int64_t bytes_per_s;
	} good[] = {{"1Gbit", 125000000},  {"1gbit", 125000000}, {"500Mbit", 62500000}, {"2.5Gbit", 312500000},
		    {"100MiB", 104857600}, {"1KiB", 1024},       {"9Kbit", 1125},       {"1GiB", 1073741824}};
	for (size_t i = 0; i < sizeof(good) / sizeof(good[0]); i++) {
		int64_t rate = -1;
		assert_int_equal(units_parse_rate(good[i].text, &rate, NULL), 0);
		assert_int_equal(rate, good[i].bytes_per_s);
	}
	static const char *const bad[] = {"",      "1",    "1G",      "1GB",    "1Gb",         "0Gbit",
					  "8Kbit", "Gbit", "1Gbit/s", "-1Gbit", "99999999Gbit"};
	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		cleanup_error struct error *e = NULL;
		int64_t rate = 42;
		assert_int_equal(units_parse_rate(bad[i], &rate, &e), -1);
		assert_int_equal(e->code, ERROR_INVALID_ARGUMENT);
		assert_non_null(strstr(e->message, "Gbit"));
	}
}

static void test_formats(void **state)
{
	(void)state;
	char text[UNITS_SIZE];
	assert_string_equal(units_format_bytes(text, 0), "0 B");
	assert_string_equal(units_format_bytes(text, 1023), "1023 B");
	assert_string_equal(units_format_bytes(text, 1024), "1.0 KiB");
	assert_string_equal(units_format_bytes(text, 614 * 1048576.0), "614 MiB");
	/* Never "1024 MiB", never "100.0". */
	assert_string_equal(units_format_bytes(text, 1023.9 * 1048576), "1.0 GiB");
	assert_string_equal(units_format_bytes(text, 99.97 * 1048576), "100 MiB");
	assert_string_equal(units_format_bytes(text, 7.2e9), "6.7 GiB");
	assert_string_equal(units_format_ms(text, 7.94), "7.9 ms");
	assert_string_equal(units_format_ms(text, 99.97), "100 ms");
	assert_string_equal(units_format_ms(text, 290), "290 ms");
	assert_string_equal(units_format_ms(text, 999.7), "1.0 s");
	assert_string_equal(units_format_ms(text, 5712.3), "5.7 s");
	assert_string_equal(units_format_ms(text, 59960), "1 m 00 s");
	assert_string_equal(units_format_ms(text, 125000), "2 m 05 s");
	assert_string_equal(units_format_ms(text, 3725000), "1 h 02 m");
	/* Whatever another program says fits into the buffer. */
	assert_string_equal(units_format_ms(text, 1e300), "277777777777 h 46 m");
	assert_string_equal(units_format_ms(text, -1e300), "-1000000000000000000.0 ms");
	assert_string_equal(units_format_bytes(text, 1e300), "888 PiB");
	assert_true(strlen(units_format_bytes(text, -1e300)) < UNITS_SIZE);
}

static void test_output(void **state)
{
	(void)state;
	cleanup_json json_t *object = json_pack("{ss ss ss si}", "good", "h\xc3\xb6st-1", "cursor", "a\x1b[2J", "c1",
						"a\xc2\x9b"
						"2J",
						"id", 5);
	assert_string_equal(output_string(object, "good"), "h\xc3\xb6st-1");
	assert_string_equal(output_string(object, "cursor"), "?");
	assert_string_equal(output_string(object, "c1"), "?");
	assert_string_equal(output_string(object, "id"), "-");
	assert_string_equal(output_message(object, "cursor"), "a\x1b[2J");
	cleanup_free char *cursor = output_safe("a\x1b[2J\n\x7f");
	cleanup_free char *c1 = output_safe("a\xc2\x9b"
					    "2J\xc3\xb6");
	assert_string_equal(cursor, "a?[2J??");
	assert_string_equal(c1, "a??2J\xc3\xb6");
}

static void check_address(const char *text, const char *address, unsigned int port)
{
	cleanup_free char *parsed = NULL;
	uint16_t parsed_port = 1;
	assert_int_equal(address_parse(text, &parsed, &parsed_port, NULL), 0);
	assert_string_equal(parsed, address);
	assert_int_equal(parsed_port, port);
}

static void test_addresses(void **state)
{
	(void)state;
	check_address("198.51.100.2", "198.51.100.2", 0);
	check_address("198.51.100.2:4711", "198.51.100.2", 4711);
	check_address("host-b.example", "host-b.example", 0);
	check_address("2001:db8::2", "2001:db8::2", 0);
	check_address("[2001:db8::2]", "2001:db8::2", 0);
	check_address("[2001:db8::2]:4711", "2001:db8::2", 4711);
	static const char *const bad[] = {"",     ":4710",  "a:",      "a:0", "a:65536", "a:x",
					  "[::1", "[::1]x", "[]:4710", "a b", "a/b"};
	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		cleanup_error struct error *e = NULL;
		char *parsed = NULL;
		uint16_t port = 0;
		if (address_parse(bad[i], &parsed, &port, &e) == 0)
			fail_msg("'%s' was taken for '%s', port %u", bad[i], parsed, port);
		assert_int_equal(e->code, ERROR_INVALID_ARGUMENT);
		assert_null(parsed);
	}
}

static void check_host(const char *text, const char *name, const char *address, unsigned int port)
{
	cleanup_free char *parsed_name = NULL, *parsed = NULL;
	uint16_t parsed_port = 0;
	assert_int_equal(address_parse_host(text, &parsed_name, &parsed, &parsed_port, NULL), 0);
	assert_string_equal(parsed_name, name);
	assert_string_equal(parsed, address);
	assert_int_equal(parsed_port, port);
}

static void test_hosts(void **state)
{
	(void)state;
	check_host("host-b", "host-b", "host-b", 4710);
	check_host("host-b:4711", "host-b", "host-b", 4711);
	check_host("host-b=198.51.100.2", "host-b", "198.51.100.2", 4710);
	check_host("host-b=[2001:db8::2]:4711", "host-b", "2001:db8::2", 4711);
	static const char *const bad[] = {"", "=", "=198.51.100.2", "host-b=", "host-b=a=b"};
	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		char *name = NULL, *address = NULL;
		uint16_t port = 0;
		if (address_parse_host(bad[i], &name, &address, &port, NULL) == 0)
			fail_msg("'%s' was taken for '%s' at '%s'", bad[i], name, address);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {cmocka_unit_test(test_durations), cmocka_unit_test(test_rates),
					   cmocka_unit_test(test_formats),   cmocka_unit_test(test_addresses),
					   cmocka_unit_test(test_hosts),     cmocka_unit_test(test_output)};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
