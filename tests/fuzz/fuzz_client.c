/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What `ferry` reads: the local ferryd's answers (src/cli/local.c), what it prints of them (report.c, output.c), and what
 * people write on its command line (units.c, address.c). The first byte of the input says which.
 *
 * Properties: nothing that another host has named reaches the terminal with control characters in it; a duration, rate or
 * number that is accepted is within its limits.
 */
#include "cli/local.c" /* for what reads an answer */

#include "cli/address.h"
#include "cli/output.h"
#include "cli/progress.h"
#include "cli/report.h"
#include "cli/units.h"
#include "fuzz.h"

/* ---- answers ---- */

static void read_answer(const char *bytes, size_t length)
{
	int fds[2];
	REQUIRE(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds) == 0);
	if (length > 65536)
		length = 65536; /* fits into the socket */
	REQUIRE(send(fds[1], bytes, length, MSG_NOSIGNAL) == (ssize_t)length);
	shutdown(fds[1], SHUT_WR);
	struct local local = {.path = (char[]){"/run/ferry/ferryd.sock"}, .fd = fds[0], .used = true};
	json_t *value = NULL;
	struct error *e = NULL;
	/* A closed connection is not opened again: the path is another's. */
	if (local_request(&local, "POST", "/v1/vms", NULL, 5000, &value, &e) < 0)
		fuzz_check_error(e);
	else
		REQUIRE(value);
	json_decref(value);
	local_disconnect(&local);
	close(fds[1]);
}

/* ---- printing ---- */

static void print_all(const json_t *migration)
{
	const struct cli cli = {0};
	(void)report_status(migration);
	(void)report_end(&cli, migration);
	report_show(&cli, migration, migration); /* a timeline of any shape, too */
	report_failures(json_object_get(migration, "failures"), output_string(migration, "vm"), "host-b");
	struct progress *progress = progress_new(false);
	progress_show(progress, migration);
	progress_end(progress);
	progress_free(progress);
	struct table *table = table_new(2);
	table_add(table, output_string(migration, "vm"), output_string(migration, "owner"));
	table_print(table);
}

/* What is printed for a JSON value, standard output and error in one. The caller frees it. */
static char *printed(const json_t *value)
{
	char *text = NULL;
	size_t length = 0;
	FILE *file = open_memstream(&text, &length), *before[] = {stdout, stderr};
	stdout = stderr = file;
	print_all(value);
	stdout = before[0];
	stderr = before[1];
	fclose(file);
	return text;
}

static void print_answer(const char *bytes, size_t length)
{
	cleanup_json json_t *value = fuzz_parse_json(bytes, length);
	if (!value)
		return;
	cleanup_free char *text = printed(value);
	for (const char *c = text; *c; c++)
		REQUIRE((unsigned char)*c >= 0x20 || *c == '\n');
	for (const char *c = text; *c; c++)
		REQUIRE(*c != 0x7f && !((unsigned char)c[0] == 0xc2 && (unsigned char)c[1] < 0xa0));
}

/* ---- the command line ---- */

static void read_words(const char *text)
{
	int64_t number = 0;
	uint16_t port = 0;
	char *name = NULL, *address = NULL, shown[UNITS_SIZE];
	struct error *e = NULL;
	if (units_parse_duration(text, &number, &e) == 0)
		REQUIRE(number >= 1 && number <= 3600000LL * 1000);
	else
		fuzz_check_error(take_ptr(e));
	if (units_parse_rate(text, &number, &e) == 0)
		REQUIRE(number >= 1024 && number <= 10000000000000LL);
	else
		fuzz_check_error(take_ptr(e));
	if (units_parse_integer(text, "--channels", 1, 64, &number, &e) == 0)
		REQUIRE(number >= 1 && number <= 64);
	else
		fuzz_check_error(take_ptr(e));
	REQUIRE(strlen(units_format_bytes(shown, (double)number)) < UNITS_SIZE - 1);
	REQUIRE(strlen(units_format_ms(shown, (double)number)) < UNITS_SIZE - 1);
	if (address_parse(text, &address, &port, &e) == 0) {
		REQUIRE(*address && strlen(address) <= strlen(text) && !strchr(address, '/'));
		free(take_ptr(address));
	} else {
		fuzz_check_error(take_ptr(e));
	}
	if (address_parse_host(text, &name, &address, &port, &e) == 0) {
		REQUIRE(*name && *address && port > 0);
		free(name);
		free(address);
	} else {
		fuzz_check_error(take_ptr(e));
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	if (size == 0)
		return 0;
	cleanup_free char *text = fuzz_text(data + 1, size - 1);
	if (data[0] == 'a')
		read_answer(text, size - 1);
	else if (data[0] == 'p')
		print_answer(text, size - 1);
	else if (data[0] == 'w')
		read_words(text);
	return 0;
}
