/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Files that ferryd finds at its start, and that somebody or a broken disk may have changed. The first byte of the input
 * says which: the journal's rows ('j': JSON, {"vm": [row], "migration": [row]} with the columns by name), the record of
 * a running machine ('r': actual.json, 's': settings.json, 'p': the pid file), a certificate ('c': DER), the three files
 * of a PKI folder ('k': PEM, one after the other with a line "-" between).
 *
 * Properties: an error, or what was read is whole and within its limits; from a journal that can be read ferryd starts
 * and shows what it has, and never lets two guests run.
 */
#include "vm/qemu_start.c" /* for what reads a machine's record */

#include <sys/mman.h>

#include "fakes/fake_driver.h"
#include "fuzz.h"
#include "host.h"
#include "net/tls.h"

#define ROWS_MAX 6

/* ---- the journal ---- */

static const char *column(const json_t *row, const char *name, const char *fallback)
{
	const char *text = json_string_value(json_object_get(row, name));
	return text ? text : fallback;
}

static int64_t number(const json_t *row, const char *name, int64_t fallback)
{
	const json_t *value = json_object_get(row, name);
	return json_is_integer(value) ? json_integer_value(value) : fallback;
}

static void insert_vm(struct database *db, const json_t *row)
{
	cleanup_free char *definition = json_text(json_object_get(row, "definition"));
	const json_t *value = json_object_get(row, "definition");
	(void)!database_run(db, NULL, "INSERT OR REPLACE INTO vm(uuid, name, owner, epoch, definition) VALUES(?, ?, ?, ?, ?)",
			    "sssis", column(row, "uuid", FUZZ_VM_UUID), column(row, "name", FUZZ_VM),
			    column(row, "owner", FUZZ_HOST), number(row, "epoch", 1),
			    json_is_string(value) ? json_string_value(value) : json_is_object(value) ? definition : NULL);
}

static void insert_migration(struct database *db, const json_t *row)
{
	cleanup_free char *view = json_text(json_object_get(row, "view"));
	const json_t *value = json_object_get(row, "view");
	(void)!database_run(
		db, NULL,
		"INSERT OR REPLACE INTO migration(id, role, state, vm_uuid, vm_name, source, destination, epoch, peer_journal,"
		" began_ms, ended, paused, keep, view) VALUES(?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
		"sssssssisiiiis", column(row, "id", FUZZ_JOURNAL), column(row, "role", "source"), column(row, "state", "holds"),
		column(row, "vm_uuid", FUZZ_VM_UUID), column(row, "vm_name", FUZZ_VM), column(row, "source", FUZZ_HOST),
		column(row, "destination", FUZZ_PEER), number(row, "epoch", 2), column(row, "peer_journal", ""),
		number(row, "began_ms", 1), number(row, "ended", 0), number(row, "paused", 0), number(row, "keep", 0),
		json_is_string(value) ? json_string_value(value) : json_is_object(value) ? view : NULL);
}

static void read_journal(const char *bytes, size_t length)
{
	cleanup_json json_t *json = fuzz_parse_json(bytes, length);
	size_t i;
	const json_t *row;
	if (!json)
		return;
	struct fuzz_host fuzz;
	struct error *e = NULL;
	fuzz_answer = NULL;
	fuzz_host_open(&fuzz);
	json_array_foreach (json_object_get(json, "vm"), i, row)
		if (i < ROWS_MAX)
			insert_vm(fuzz.db, row);
	json_array_foreach (json_object_get(json, "migration"), i, row)
		if (i < ROWS_MAX)
			insert_migration(fuzz.db, row);
	if (fuzz_host_load(&fuzz, &e) < 0) {
		fuzz_check_error(e);
	} else {
		cleanup_json json_t *vms = inventory_list(fuzz.host.inventory);
		cleanup_json json_t *migrations = migration_list_view(fuzz.host.migrations);
		cleanup_free char *vms_text = json_text(vms), *migrations_text = json_text(migrations);
		REQUIRE(vms_text[0] == '[' && migrations_text[0] == '[');
	}
	fuzz_host_close(&fuzz);
}

/* ---- the run folder ---- */

static const char *folder(void)
{
	static char *path;
	if (!path) {
		const char *parent = getenv("TMPDIR"); /* of the runner, which removes it */
		path = xasprintf("%s/files-XXXXXX", parent ? parent : "/tmp");
		REQUIRE(mkdtemp(path));
	}
	return path;
}

static void write_file(const char *name, const char *bytes, size_t length)
{
	cleanup_free char *path = xasprintf("%s/%s", folder(), name);
	cleanup_close int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	REQUIRE(fd >= 0 && write(fd, bytes, length) == (ssize_t)length);
}

static void read_run_folder(const char *name, const char *bytes, size_t length)
{
	struct process_id id = {0};
	json_t *record = NULL;
	struct definition *definition = NULL;
	struct error *e = NULL;
	write_file(name, bytes, length);
	cleanup_free char *pid_path = xasprintf("%s/pid", folder());
	if (process_read_pid_file(pid_path, &id, &e) < 0)
		fuzz_check_error(take_ptr(e));
	else
		REQUIRE(id.pid > 0);
	if (read_record(folder(), &record, &definition, &e) < 0) {
		REQUIRE(!record && !definition);
		fuzz_check_error(e);
		return;
	}
	const struct driver_host host = {.run_folder = "/dev/shm", .log_folder = "/dev/shm", .accelerator = "tcg"};
	struct machine *machine = machine_new(&host, definition, NULL);
	free(machine->folder);
	machine->folder = xstrdup(folder());
	machine->record = record;
	read_marks(machine);
	machine_free(machine);
}

/* ---- certificates ---- */

static void read_certificate(const char *bytes, size_t length)
{
	const gnutls_datum_t der = {(unsigned char *)(uintptr_t)bytes, (unsigned int)length};
	enum tls_role role = TLS_ROLE_NONE;
	char name[TLS_NAME_SIZE] = "";
	struct error *e = NULL;
	if (tls_identity_from_certificate(&der, &role, name, &e) < 0) {
		fuzz_check_error(e);
		REQUIRE(role == TLS_ROLE_NONE && !*name);
		return;
	}
	REQUIRE(role == TLS_ROLE_HOST || role == TLS_ROLE_CLIENT);
	REQUIRE(tls_name_valid(name) && memchr(name, '\0', sizeof(name)));
}

static void read_pki(const char *text)
{
	const char *rest[] = {text, "", ""};
	for (int i = 1; i < 3; i++) {
		const char *mark = strstr(rest[i - 1], "\n-\n");
		if (mark)
			rest[i] = mark + 3;
	}
	write_file("ca.crt", rest[0], strcspn(rest[0], "\x01"));
	write_file("host.crt", rest[1], strlen(rest[1]));
	write_file("host.key", rest[2], strlen(rest[2]));
	struct tls_files files;
	struct error *e = NULL;
	tls_files_in_folder(&files, folder(), TLS_ROLE_HOST);
	if (tls_files_check(&files, &e) < 0)
		fuzz_check_error(e);
	tls_files_done(&files);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	if (size == 0)
		return 0;
	cleanup_free char *text = fuzz_text(data + 1, size - 1);
	switch (data[0]) {
	case 'j':
		read_journal(text, size - 1);
		break;
	case 'r':
		read_run_folder("actual.json", text, size - 1);
		break;
	case 's':
		read_run_folder("settings.json", text, size - 1);
		break;
	case 'p':
		read_run_folder("pid", text, size - 1);
		break;
	case 'c':
		read_certificate(text, size - 1);
		break;
	case 'k':
		read_pki(text);
		break;
	default:
		break;
	}
	return 0;
}
