/* SPDX-License-Identifier: Apache-2.0 */
/* base: errors, strict JSON, small files, the database. (Processes have test_process.c.) */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <dirent.h>
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/database.h"
#include "base/file.h"
#include "base/json.h"
#include "base/xalloc.h"

static char folder[] = "/tmp/ferry-test-base-XXXXXX";

static char *in_folder(const char *name)
{
	return xasprintf("%s/%s", folder, name);
}

/* ---- errors ---- */

static int fail_deep(struct error **e)
{
	return error_set_errno(e, ERROR_SYSTEM, ENOENT, "cannot open '%s'", "/x");
}

static void test_error_chain(void **state)
{
	(void)state;
	cleanup_error struct error *e = NULL;
	assert_int_equal(fail_deep(&e), -1);
	assert_int_equal(error_wrap(&e, "reading %s", "the key"), -1);
	assert_int_equal(error_wrap(&e, "starting"), -1);
	assert_int_equal(e->code, ERROR_SYSTEM);
	assert_int_equal(e->sys_errno, ENOENT);
	assert_string_equal(e->message, "starting: reading the key: cannot open '/x': No such file or directory");
	cleanup_error struct error *copy = error_copy(e);
	assert_ptr_not_equal(copy, e);
	assert_string_equal(copy->message, e->message);
	assert_int_equal(copy->sys_errno, ENOENT);
	/* The last one counts, and may be made of the one before. */
	error_set(&e, ERROR_TIMEOUT, "after (%s)", e->message);
	assert_int_equal(e->code, ERROR_TIMEOUT);
	assert_int_equal(e->sys_errno, 0);
	assert_non_null(strstr(e->message, "after (starting: "));
	assert_null(error_copy(NULL));
}

static void test_error_nobody_cares(void **state)
{
	(void)state;
	assert_int_equal(fail_deep(NULL), -1);
	assert_int_equal(error_wrap(NULL, "x"), -1);
	struct error *e = NULL;
	assert_int_equal(error_wrap(&e, "x"), -1);
	assert_null(e);
	error_set(&e, ERROR_INTERNAL, "lost");
	assert_int_equal(error_move(NULL, e), -1); /* frees it */
	struct error *from = NULL, *to = NULL;
	error_set(&from, ERROR_NOT_FOUND, "new");
	error_set(&to, ERROR_EXISTS, "old");
	assert_int_equal(error_move(&to, from), -1);
	assert_int_equal(to->code, ERROR_NOT_FOUND);
	assert_int_equal(error_move(&to, to), -1); /* to itself: stays */
	assert_string_equal(to->message, "new");
	error_free(to);
	error_free(NULL);
}

/* Names are stable and unique, each has an HTTP status of an error, a meaning, and leads back to its code. */
/* What peers and guests say may be long, and stays text when it is cut. */
static void test_error_is_cut(void **state)
{
	(void)state;
	cleanup_error struct error *e = NULL;
	cleanup_free char *words = xmalloc(3 * ERROR_MESSAGE_MAX_BYTES + 1);
	for (size_t i = 0; i < 3 * ERROR_MESSAGE_MAX_BYTES; i += 3)
		memcpy(words + i, "\xe2\x82\xac", 4); /* three bytes each: the limit falls into one */
	error_set(&e, ERROR_PEER_REFUSED, "%s", words);
	assert_in_range(strlen(e->message), ERROR_MESSAGE_MAX_BYTES - 2, ERROR_MESSAGE_MAX_BYTES);
	assert_int_equal(strlen(e->message) % 3, 0);
	error_wrap(&e, "a");
	assert_in_range(strlen(e->message), ERROR_MESSAGE_MAX_BYTES - 2, ERROR_MESSAGE_MAX_BYTES);
	char text[] = "a\xc3\xa9z";
	error_cut_text(text, 4);
	assert_string_equal(text, "a\xc3\xa9z");
	error_cut_text(text, 3);
	assert_string_equal(text, "a\xc3\xa9");
	error_cut_text(text, 2);
	assert_string_equal(text, "a");
	error_cut_text(text, 0);
	assert_string_equal(text, "");
}

static void test_error_codes(void **state)
{
	(void)state;
	for (enum error_code code = 0; code < ERROR_CODE_COUNT; code++) {
		const char *name = error_code_name(code);
		assert_int_equal(strspn(name, "abcdefghijklmnopqrstuvwxyz_."), strlen(name));
		assert_int_equal(error_code_from_name(name), code);
		assert_in_range(error_code_http_status(code), 400, 599);
		assert_true(strlen(error_code_meaning(code)) > 10);
	}
	assert_int_equal(error_code_from_name("no.such"), ERROR_CODE_COUNT);
	assert_int_equal(error_code_from_name(""), ERROR_CODE_COUNT);
	assert_int_equal(error_code_from_name(NULL), ERROR_CODE_COUNT); /* a peer's answer without a code */
	assert_string_equal(error_code_name(ERROR_CODE_COUNT), "internal");
	assert_int_equal(error_code_http_status(ERROR_CODE_COUNT), 500);
}

/* ---- JSON ---- */

static void assert_parse(const char *text, bool good)
{
	cleanup_json json_t *json = NULL;
	cleanup_error struct error *e = NULL;
	int r = json_parse(text, strlen(text), &json, &e);
	if (good != (r == 0))
		fail_msg("%s is %s", text, good ? "refused" : "accepted");
	if (!good)
		assert_int_equal(e->code, ERROR_INVALID_JSON);
}

static void test_json_parse(void **state)
{
	(void)state;
	assert_parse("{}", true);
	assert_parse(" [1, 2] \n", true);
	static const char *const bad[] = {"",
					  "7",
					  "\"x\"",
					  "null",
					  "{",
					  "{}{}",
					  "{} x",
					  "{\"a\": 1,}",
					  "{'a': 1}",
					  "{\"a\": 1, \"a\": 1}",
					  "{\"a\": 01}",
					  "{\"a\": NaN}",
					  "{\"a\": \"\xff\"}",
					  "[1, 2",
					  "{\"a\" 1}",
					  "// x\n{}",
					  "{\"a\": 99999999999999999999}"};
	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
		assert_parse(bad[i], false);
	/* The error says where. */
	cleanup_json json_t *json = NULL;
	cleanup_error struct error *e = NULL;
	assert_int_equal(json_parse("{\n\"a\": x}", 9, &json, &e), -1);
	assert_non_null(strstr(e->message, "line 2"));
	/* A text is as long as is said, not up to a NUL. */
	assert_int_equal(json_parse("{}\0{}", 5, &json, NULL), -1);
	assert_int_equal(json_parse("{}garbage", 2, &json, NULL), 0);
}

/* Levels of arrays, or of objects, around a string that has brackets in it. */
static char *nested(bool objects, size_t levels)
{
	char *text = NULL;
	size_t length = 0;
	FILE *file = open_memstream(&text, &length);
	for (size_t i = 0; i < levels; i++)
		fputs(objects ? "{\"a\": " : "[", file);
	fputs("\"\\\"[[[{{{\"", file);
	for (size_t i = 0; i < levels; i++)
		fputc(objects ? '}' : ']', file);
	fclose(file);
	return text;
}

static void test_json_depth(void **state)
{
	(void)state;
	for (int objects = 0; objects < 2; objects++) {
		cleanup_free char *deepest = nested(objects, JSON_DEPTH_MAX);
		cleanup_free char *deeper = nested(objects, JSON_DEPTH_MAX + 1);
		cleanup_error struct error *e = NULL;
		cleanup_json json_t *json = NULL;
		assert_parse(deepest, true);
		assert_int_equal(json_parse(deeper, strlen(deeper), &json, &e), -1);
		assert_int_equal(e->code, ERROR_TOO_LARGE);
		assert_null(json);
	}
	/* Side by side is not deep; and nesting without end uses no stack without end. */
	cleanup_free char *wide = xmalloc(4001);
	wide[0] = '[';
	for (size_t i = 0; i < 1999; i++)
		memcpy(wide + 1 + 2 * i, i % 2 == 0 ? "[]" : ", ", 2);
	memcpy(wide + 3999, "]", 2);
	assert_parse(wide, true);
	cleanup_free char *endless = xmalloc(200001);
	memset(endless, '[', 200000);
	endless[200000] = '\0';
	assert_int_equal(json_parse(endless, 200000, (json_t *[]){NULL}, NULL), -1);
}

static void test_json_getters(void **state)
{
	(void)state;
	static const char text[] =
		"{\"s\": \"x\", \"i\": 7, \"r\": 7.0, \"b\": true, \"o\": {}, \"a\": [], \"n\": null,"
		" \"big\": 9223372036854775807, \"nul\": \"a\\u0000b\"}";
	cleanup_json json_t *json = json_loads(text, JSON_ALLOW_NUL, NULL);
	const char *s = "before";
	int64_t i = -1;
	bool b = false;
	json_t *o = NULL;
	assert_int_equal(json_get_string(json, "s", &s, NULL), 0);
	assert_string_equal(s, "x");
	assert_int_equal(json_get_integer(json, "i", 7, 7, &i, NULL), 0);
	assert_int_equal(i, 7);
	assert_int_equal(json_get_integer(json, "big", INT64_MIN, INT64_MAX, &i, NULL), 0);
	assert_true(i == INT64_MAX);
	assert_int_equal(json_get_bool(json, "b", &b, NULL), 0);
	assert_true(b);
	assert_int_equal(json_get_object(json, "o", &o, NULL), 0);
	assert_int_equal(json_get_array(json, "a", &o, NULL), 0);

	/* What fails leaves the result alone and names the key. */
	s = "before";
	i = 42;
	o = NULL;
	cleanup_error struct error *e = NULL;
	assert_int_equal(json_get_string(json, "i", &s, &e), -1);
	assert_string_equal(e->message, "key 'i' must be a string");
	assert_int_equal(e->code, ERROR_INVALID_ARGUMENT);
	assert_int_equal(json_get_string(json, "nul", &s, &e), -1); /* C would see half of it */
	assert_string_equal(s, "before");
	assert_int_equal(json_get_integer(json, "s", 0, 9, &i, &e), -1);
	assert_int_equal(json_get_integer(json, "r", 0, 9, &i, &e), -1);
	assert_int_equal(json_get_integer(json, "b", 0, 9, &i, &e), -1);
	assert_int_equal(json_get_integer(json, "i", 8, 9, &i, &e), -1);
	assert_string_equal(e->message, "key 'i' must be from 8 to 9, not 7");
	assert_int_equal(json_get_integer(json, "i", 0, 6, &i, &e), -1);
	assert_int_equal(i, 42);
	assert_int_equal(json_get_bool(json, "i", &b, &e), -1);
	assert_int_equal(json_get_object(json, "a", &o, &e), -1);
	assert_int_equal(json_get_array(json, "o", &o, &e), -1);
	assert_null(o);
}

static void test_json_missing(void **state)
{
	(void)state;
	cleanup_json json_t *json = json_loads("{\"n\": null, \"wrong\": []}", 0, NULL);
	static const char *const keys[] = {"n", "missing"};
	for (size_t k = 0; k < 2; k++) {
		const char *s = "before";
		int64_t i = 42;
		bool b = true;
		json_t *o = json;
		cleanup_error struct error *e = NULL;
		assert_int_equal(json_get_string(json, keys[k], &s, &e), -1);
		assert_non_null(strstr(e->message, "is missing"));
		assert_int_equal(json_get_integer(json, keys[k], 0, 99, &i, &e), -1);
		assert_int_equal(json_get_bool(json, keys[k], &b, &e), -1);
		assert_int_equal(json_get_object(json, keys[k], &o, &e), -1);
		assert_int_equal(json_get_array(json, keys[k], &o, &e), -1);
		/* Optional: absent or null is no error, and no change. */
		assert_int_equal(json_get_string_opt(json, keys[k], &s, NULL), 0);
		assert_int_equal(json_get_integer_opt(json, keys[k], 0, 99, &i, NULL), 0);
		assert_int_equal(json_get_bool_opt(json, keys[k], &b, NULL), 0);
		assert_int_equal(json_get_object_opt(json, keys[k], &o, NULL), 0);
		assert_int_equal(json_get_array_opt(json, keys[k], &o, NULL), 0);
		assert_string_equal(s, "before");
		assert_int_equal(i, 42);
		assert_true(b);
		assert_ptr_equal(o, json);
	}
	/* Of the wrong type it is one. */
	const char *s = NULL;
	int64_t i = 0;
	assert_int_equal(json_get_string_opt(json, "wrong", &s, NULL), -1);
	assert_int_equal(json_get_integer_opt(json, "wrong", 0, 1, &i, NULL), -1);
}

static void test_json_keys(void **state)
{
	(void)state;
	static const char *const known[] = {"a", "b", NULL};
	cleanup_json json_t *good = json_loads("{\"b\": 1}", 0, NULL);
	cleanup_json json_t *bad = json_loads("{\"a\": 1, \"c\": null}", 0, NULL);
	cleanup_error struct error *e = NULL;
	assert_int_equal(json_check_keys(good, known, NULL), 0);
	assert_int_equal(json_check_keys(bad, known, &e), -1);
	assert_string_equal(e->message, "unknown key 'c'");
}

static void test_json_text(void **state)
{
	(void)state;
	cleanup_json json_t *json = json_loads("{ \"a\" : [ 1 , \"x\" ] }", 0, NULL);
	cleanup_free char *text = json_text(json);
	assert_string_equal(text, "{\"a\":[1,\"x\"]}");
	cleanup_free char *null_text = json_text(NULL);
	assert_string_equal(null_text, "null");
	cleanup_free char *path = in_folder("value.json");
	assert_int_equal(file_write_atomic(path, text, strlen(text), 0600, NULL), 0);
	cleanup_json json_t *again = NULL;
	assert_int_equal(json_parse_file(path, 100, &again, NULL), 0);
	assert_true(json_equal(json, again));
	cleanup_json json_t *none = NULL;
	cleanup_error struct error *e = NULL;
	assert_int_equal(json_parse_file(path, 5, &none, &e), -1);
	assert_int_equal(e->code, ERROR_TOO_LARGE);
}

/* ---- files ---- */

static unsigned int count_entries(const char *path)
{
	unsigned int count = 0;
	DIR *dir = opendir(path);
	for (const struct dirent *entry; (entry = readdir(dir));)
		count += entry->d_name[0] != '.';
	closedir(dir);
	return count;
}

static void test_file_write_and_read(void **state)
{
	(void)state;
	cleanup_free char *sub = in_folder("files");
	cleanup_free char *path = in_folder("files/one");
	assert_int_equal(file_make_folders(sub, 0700, NULL), 0);
	assert_int_equal(file_write_atomic(path, "old content", 11, 0640, NULL), 0);
	struct stat st;
	assert_int_equal(stat(path, &st), 0);
	assert_int_equal(st.st_mode & 07777, 0640);
	/* Whoever has the old file open keeps it: the new one takes its place, it is not written over. */
	cleanup_fclose FILE *old = fopen(path, "r");
	assert_int_equal(file_write_atomic(path, "new\0", 4, 0600, NULL), 0);
	char line[20] = "";
	assert_non_null(fgets(line, sizeof(line), old));
	assert_string_equal(line, "old content");
	assert_int_equal(stat(path, &st), 0);
	assert_int_equal(st.st_mode & 07777, 0600);
	cleanup_free char *text = NULL;
	size_t length = 0;
	assert_int_equal(file_read(path, 4, &text, &length, NULL), 0);
	assert_int_equal(length, 4);
	assert_memory_equal(text, "new\0", 5);   /* with the NUL behind it */
	assert_int_equal(count_entries(sub), 1); /* nothing is left beside it */
}

static void test_file_write_fails(void **state)
{
	(void)state;
	cleanup_free char *sub = in_folder("full");
	cleanup_free char *target = in_folder("full/folder");
	cleanup_free char *inside = in_folder("full/folder/x");
	assert_int_equal(file_make_folders(target, 0700, NULL), 0);
	assert_int_equal(file_write_atomic(inside, "", 0, 0600, NULL), 0);
	/* A folder that is not empty cannot be replaced by a file: nothing of the attempt is left. */
	cleanup_error struct error *e = NULL;
	assert_int_equal(file_write_atomic(target, "text", 4, 0600, &e), -1);
	assert_int_equal(e->code, ERROR_SYSTEM);
	assert_non_null(strstr(e->message, target));
	assert_int_equal(count_entries(sub), 1);
	cleanup_free char *nowhere = in_folder("no/such/folder");
	assert_int_equal(file_write_atomic(nowhere, "text", 4, 0600, &e), -1);
	assert_int_equal(e->sys_errno, ENOENT);
}

static void test_file_read_limits(void **state)
{
	(void)state;
	cleanup_free char *path = in_folder("long");
	cleanup_free char *data = xmalloc(100000);
	memset(data, 'x', 100000);
	assert_int_equal(file_write_atomic(path, data, 100000, 0600, NULL), 0);
	static const size_t limits[] = {0, 1, 4095, 4096, 8192, 99999};
	for (size_t i = 0; i < sizeof(limits) / sizeof(limits[0]); i++) {
		char *text = NULL;
		cleanup_error struct error *e = NULL;
		assert_int_equal(file_read(path, limits[i], &text, NULL, &e), -1);
		assert_int_equal(e->code, ERROR_TOO_LARGE);
		assert_null(text);
	}
	cleanup_free char *text = NULL;
	size_t length;
	assert_int_equal(file_read(path, 100000, &text, &length, NULL), 0);
	assert_int_equal(length, 100000);
	/* Files of /proc have no size. */
	cleanup_free char *status = NULL;
	assert_int_equal(file_read("/proc/self/status", 65536, &status, NULL, NULL), 0);
	assert_non_null(strstr(status, "Pid:"));
	cleanup_error struct error *e = NULL;
	char *none = NULL;
	assert_int_equal(file_read("/nonexistent", 10, &none, NULL, &e), -1);
	assert_int_equal(e->code, ERROR_NOT_FOUND);
	assert_int_equal(file_read("/tmp", 10, &none, NULL, &e), -1);
	assert_int_equal(e->code, ERROR_SYSTEM);

	cleanup_free char *tail = file_tail(path, 5);
	assert_string_equal(tail, "xxxxx");
	cleanup_free char *no_tail = file_tail("/nonexistent", 5);
	assert_string_equal(no_tail, "");
}

static void test_file_trees(void **state)
{
	(void)state;
	cleanup_free char *deep = in_folder("tree/a/b/c");
	cleanup_free char *tree = in_folder("tree");
	cleanup_free char *link = in_folder("tree/a/link");
	cleanup_free char *outside = in_folder("outside");
	assert_int_equal(file_make_folders(deep, 0700, NULL), 0);
	assert_int_equal(file_make_folders(deep, 0700, NULL), 0);
	assert_int_equal(file_make_folders(outside, 0700, NULL), 0);
	assert_int_equal(symlink(outside, link), 0);
	assert_int_equal(file_remove_tree(tree, NULL), 0);
	assert_int_equal(access(tree, F_OK), -1);
	assert_int_equal(access(outside, F_OK), 0); /* the link went, not what it points to */
	assert_int_equal(file_remove_tree(tree, NULL), 0);
	cleanup_free char *file = in_folder("a-file");
	cleanup_free char *below = in_folder("a-file/x/y");
	cleanup_error struct error *e = NULL;
	assert_int_equal(file_write_atomic(file, "", 0, 0600, NULL), 0);
	assert_int_equal(file_make_folders(below, 0700, &e), -1);
	assert_int_equal(e->code, ERROR_SYSTEM);
}

/* ---- the database ---- */

static struct database *open_database(const char *name)
{
	cleanup_free char *path = in_folder(name);
	struct database *db = NULL;
	struct error *e = NULL;
	if (database_open(path, &db, &e) < 0)
		fail_msg("%s", e->message);
	return db;
}

static void run(struct database *db, const char *sql)
{
	cleanup_error struct error *e = NULL;
	if (database_run(db, &e, sql, "") < 0)
		fail_msg("%s", e->message);
}

static int read_number(void *user, const struct database_row *row, struct error **e)
{
	(void)e;
	*(int64_t *)user = database_integer(row, 0);
	return 0;
}

static int64_t count_rows(struct database *db)
{
	int64_t count = -1;
	assert_int_equal(database_query(db, NULL, read_number, &count, "SELECT count(*) FROM t", ""), 1);
	return count;
}

static int read_pair(void *user, const struct database_row *row, struct error **e)
{
	if (strcmp(database_text(row, 0), "stop") == 0)
		return error_set(e, ERROR_CANCELLED, "enough");
	snprintf(user, 100, "%s=%lld", database_text(row, 0), (long long)database_integer(row, 1));
	return 0;
}

static void test_database_values(void **state)
{
	(void)state;
	struct database *db = open_database("values.db");
	run(db, "CREATE TABLE t(k TEXT, v INTEGER) STRICT");
	char text[100] = "";
	assert_int_equal(database_run(db, NULL, "INSERT INTO t VALUES(?, ?)", "si", "it's; DROP TABLE t", INT64_MIN),
			 1);
	assert_int_equal(database_query(db, NULL, read_pair, text, "SELECT k, v FROM t", ""), 1);
	assert_string_equal(text, "it's; DROP TABLE t=-9223372036854775808");
	assert_int_equal(database_run(db, NULL, "UPDATE t SET k = ?", "s", NULL), 1);
	assert_int_equal(database_query(db, NULL, read_pair, text, "SELECT k, v FROM t WHERE k IS NULL", ""), 1);
	assert_int_equal(text[0], '='); /* NULL reads as "" */
	assert_int_equal(database_run(db, NULL, "UPDATE t SET v = 1 WHERE k = 'nobody'", ""), 0);
	/* A callback may stop the query, with its own error. */
	run(db, "INSERT INTO t VALUES('stop', 1)");
	cleanup_error struct error *e = NULL;
	assert_int_equal(database_query(db, &e, read_pair, text, "SELECT k, v FROM t", ""), -1);
	assert_int_equal(e->code, ERROR_CANCELLED);
	/* Wrong SQL, a wrong number of values, a broken rule: ERROR_JOURNAL. */
	static const char *const bad[] = {"NONSENSE", "INSERT INTO missing VALUES(1)",
					  "INSERT INTO t VALUES('x', 'no number')"};
	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		assert_int_equal(database_run(db, &e, bad[i], ""), -1);
		assert_int_equal(e->code, ERROR_JOURNAL);
	}
	assert_int_equal(database_run(db, &e, "INSERT INTO t VALUES('a', 1)", "s", "too many"), -1);
	assert_int_equal(database_query(db, &e, read_pair, text, "SELECT k FROM missing", ""), -1);
	assert_int_equal(count_rows(db), 2);
	database_close(db);
}

struct body {
	struct database *db;
	bool fail_own, fail_sql;
	int64_t seen;
};

static int insert_two(void *user, struct error **e)
{
	struct body *body = user;
	if (database_run(body->db, e, "INSERT INTO t VALUES(1)", "") < 0 ||
	    database_run(body->db, e, body->fail_sql ? "INSERT INTO missing VALUES(2)" : "INSERT INTO t VALUES(2)",
			 "") < 0)
		return -1;
	body->seen = count_rows(body->db); /* its own work is seen inside */
	return body->fail_own ? error_set(e, ERROR_CANCELLED, "second thoughts") : 0;
}

static void test_database_transaction(void **state)
{
	(void)state;
	struct database *db = open_database("transaction.db");
	run(db, "CREATE TABLE t(v INTEGER) STRICT");
	struct body body = {.db = db};
	assert_int_equal(database_transaction(db, insert_two, &body, NULL), 0);
	assert_int_equal(body.seen, 2);
	assert_int_equal(count_rows(db), 2);
	/* All or nothing, whoever fails; and the next one works. */
	cleanup_error struct error *e = NULL;
	body.fail_own = true;
	assert_int_equal(database_transaction(db, insert_two, &body, &e), -1);
	assert_int_equal(e->code, ERROR_CANCELLED);
	assert_int_equal(body.seen, 4);
	assert_int_equal(count_rows(db), 2);
	body.fail_sql = true;
	assert_int_equal(database_transaction(db, insert_two, &body, &e), -1);
	assert_int_equal(e->code, ERROR_JOURNAL);
	assert_int_equal(count_rows(db), 2);
	body.fail_own = body.fail_sql = false;
	assert_int_equal(database_transaction(db, insert_two, &body, NULL), 0);
	assert_int_equal(count_rows(db), 4);
	/* A COMMIT that fails (here: a deferred rule) leaves nothing, and no transaction open. */
	run(db, "CREATE TABLE parent(id INTEGER PRIMARY KEY)");
	run(db, "DROP TABLE t");
	run(db, "CREATE TABLE t(v INTEGER REFERENCES parent(id) DEFERRABLE INITIALLY DEFERRED)");
	assert_int_equal(database_transaction(db, insert_two, &body, &e), -1);
	assert_int_equal(e->code, ERROR_JOURNAL);
	assert_int_equal(count_rows(db), 0);
	run(db, "INSERT INTO parent VALUES(1)");
	run(db, "INSERT INTO parent VALUES(2)");
	assert_int_equal(database_transaction(db, insert_two, &body, NULL), 0);
	database_close(db);
	/* It is there the next time. */
	db = open_database("transaction.db");
	assert_int_equal(count_rows(db), 2);
	database_close(db);
}

static void test_database_crash(void **state)
{
	(void)state;
	cleanup_free char *path = in_folder("crash.db");
	struct database *db = open_database("crash.db");
	run(db, "CREATE TABLE t(v INTEGER) STRICT");
	database_close(db);
	pid_t child = fork();
	if (child == 0) {
		struct database *own = NULL;
		struct body body;
		if (database_open(path, &own, NULL) < 0)
			_exit(1);
		body = (struct body){.db = own};
		if (database_transaction(own, insert_two, &body, NULL) < 0 ||
		    database_run(own, NULL, "BEGIN IMMEDIATE", "") < 0 ||
		    database_run(own, NULL, "INSERT INTO t VALUES(3)", "") < 0)
			_exit(1);
		_exit(0); /* without closing, in the middle of a transaction */
	}
	int status = -1;
	assert_int_equal(waitpid(child, &status, 0), child);
	assert_int_equal(status, 0);
	db = open_database("crash.db");
	assert_int_equal(count_rows(db), 2);
	database_close(db);
}

static void test_database_one_opener(void **state)
{
	(void)state;
	cleanup_free char *path = in_folder("one.db");
	struct database *db = open_database("one.db"), *second = NULL;
	cleanup_free char *log = in_folder("one.db-wal");
	struct stat status_of_file;
	run(db, "CREATE TABLE t(v INTEGER) STRICT");
	/* Nobody else reads it either. */
	assert_int_equal(stat(path, &status_of_file), 0);
	assert_int_equal(status_of_file.st_mode & 0777, 0600);
	assert_int_equal(stat(log, &status_of_file), 0);
	assert_int_equal(status_of_file.st_mode & 0777, 0600);
	cleanup_error struct error *e = NULL;
	int r = database_open(path, &second, &e);
	if (r == 0)
		fail_msg("a second ferryd shares the journal");
	assert_int_equal(e->code, ERROR_JOURNAL);
	assert_null(second);
	/* Nor another process, nor one that only reads. */
	pid_t child = fork();
	if (child == 0)
		_exit(database_open(path, &second, NULL) < 0 ? 7 : 0);
	int status = -1;
	assert_int_equal(waitpid(child, &status, 0), child);
	assert_int_equal(WEXITSTATUS(status), 7);
	run(db, "INSERT INTO t VALUES(1)"); /* the first is none the worse */
	database_close(db);
	/* From the opening on, not only from the first write. */
	db = open_database("one.db");
	assert_int_equal(database_open(path, &second, NULL), -1);
	database_close(db);
	database_close(NULL);
	assert_int_equal(database_open("/nonexistent/x.db", &second, &e), -1);
	assert_non_null(strstr(e->message, "/nonexistent/x.db"));
}

static void *insert_many(void *user)
{
	struct body body = {.db = user};
	static char complaint[] = "a thread saw half of another's transaction";
	for (int i = 0; i < 50; i++)
		if (database_transaction(user, insert_two, &body, NULL) < 0 || body.seen % 2 != 0)
			return complaint;
	return NULL;
}

static void test_database_threads(void **state)
{
	(void)state;
	struct database *db = open_database("threads.db");
	run(db, "PRAGMA synchronous = OFF"); /* this is not about disks */
	run(db, "CREATE TABLE t(v INTEGER) STRICT");
	pthread_t threads[4];
	for (size_t i = 0; i < 4; i++)
		assert_int_equal(pthread_create(&threads[i], NULL, insert_many, db), 0);
	for (size_t i = 0; i < 4; i++) {
		void *complaint = NULL;
		pthread_join(threads[i], &complaint);
		if (complaint)
			fail_msg("%s", (char *)complaint);
	}
	assert_int_equal(count_rows(db), 400);
	int64_t commit_us = -1;
	assert_int_equal(database_measure_commit_us(db, &commit_us, NULL), 0);
	assert_true(commit_us >= 0);
	database_close(db);
}

/* ---- the clock, and ids ---- */

static void test_clock(void **state)
{
	(void)state;
	int64_t before_us = clock_monotonic_us();
	pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
	pthread_cond_t cond;
	cond_init(&cond);
	pthread_mutex_lock(&mutex);
	assert_false(cond_wait_until(&cond, &mutex, before_us - 1)); /* long past */
	while (cond_wait_until(&cond, &mutex, before_us + 2000))
		;
	pthread_mutex_unlock(&mutex);
	assert_true(clock_monotonic_us() >= before_us + 2000);
	assert_true(clock_wall_ms() > 1600000000000);
	pthread_cond_destroy(&cond);
	char a[RANDOM_ID_SIZE], b[RANDOM_ID_SIZE];
	random_id(a);
	random_id(b);
	assert_int_equal(strspn(a, "0123456789abcdef"), 32);
	assert_string_not_equal(a, b);
}

static int make_folder(void **state)
{
	(void)state;
	return mkdtemp(folder) ? 0 : -1;
}

static int remove_folder(void **state)
{
	(void)state;
	return file_remove_tree(folder, NULL);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_error_chain),
		cmocka_unit_test(test_error_nobody_cares),
		cmocka_unit_test(test_error_is_cut),
		cmocka_unit_test(test_error_codes),
		cmocka_unit_test(test_json_parse),
		cmocka_unit_test(test_json_depth),
		cmocka_unit_test(test_json_getters),
		cmocka_unit_test(test_json_missing),
		cmocka_unit_test(test_json_keys),
		cmocka_unit_test(test_json_text),
		cmocka_unit_test(test_file_write_and_read),
		cmocka_unit_test(test_file_write_fails),
		cmocka_unit_test(test_file_read_limits),
		cmocka_unit_test(test_file_trees),
		cmocka_unit_test(test_database_values),
		cmocka_unit_test(test_database_transaction),
		cmocka_unit_test(test_database_crash),
		cmocka_unit_test(test_database_one_opener),
		cmocka_unit_test(test_database_threads),
		cmocka_unit_test(test_clock),
	};
	return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
