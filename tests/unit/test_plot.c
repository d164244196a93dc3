/* SPDX-License-Identifier: Apache-2.0 */
/* The picture of a migration: what it says, and that nothing which it is given spoils it. How it looks, people must see. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <fcntl.h>
#include <math.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/file.h"
#include "base/json.h"
#include "base/xalloc.h"
#include "cli/axis.h"
#include "cli/plot.h"

static json_t *parse(const char *text)
{
	json_t *json = NULL;
	cleanup_error struct error *e = NULL;
	if (json_parse(text, strlen(text), &json, &e) < 0)
		fail_msg("%s", e->message);
	return json;
}

static size_t count_of(const char *text, const char *what)
{
	size_t count = 0;
	for (const char *at = strstr(text, what); at; at = strstr(at + 1, what))
		count++;
	return count;
}

/* Whether every element is closed, in the right order, and all markup is made of whole elements. As much of XML as the picture
 * has. */
static void assert_well_formed(const char *svg)
{
	char open[16][16];
	size_t depth = 0;
	for (const char *at = strchr(svg, '<'); at; at = strchr(at, '<')) {
		const char *end = strchr(at, '>');
		assert_non_null(end);
		char name[16] = "";
		if (at[1] == '/') {
			sscanf(at + 2, "%15[a-z]", name);
			assert_true(depth > 0);
			assert_string_equal(name, open[--depth]);
		} else if (at[1] != '?' && end[-1] != '/') {
			sscanf(at + 1, "%15[a-z]", name);
			assert_true(depth < 16);
			memcpy(open[depth++], name, sizeof(name));
		}
		assert_int_equal(count_of(at, "\"") % 2, 0);
		at = end;
	}
	assert_int_equal(depth, 0);
	for (const char *and = strchr(svg, '&'); and; and = strchr(and + 1, '&'))
		assert_true(strcspn(and, ";") <= strlen("&quot"));
	for (const char *c = svg; *c; c++)
		assert_true((unsigned char)*c >= ' ' || *c == '\n');
	assert_null(strstr(svg, "nan"));
	assert_null(strstr(svg, "inf"));
}

static char *draw(const char *migration_text, const char *timeline_text)
{
	cleanup_json json_t *migration = parse(migration_text), *timeline = parse(timeline_text);
	char *svg = plot_svg(migration, timeline);
	assert_well_formed(svg);
	return svg;
}

#define MIGRATION                                                                                                              \
	"{\"id\":\"1f3c\",\"vm\":\"web1\",\"source\":\"host-a\",\"destination\":\"host-b\",\"status\":\"completed\","           \
	"\"ended\":true,\"total_ms\":1000,\"downtime_ms\":47.9,\"role\":\"source\",\"promise\":{\"max_downtime_ms\":300},"    \
	"\"phases\":[{\"name\":\"copying\",\"start_ms\":0,\"end_ms\":900,\"waited_for\":\"memory\"},"                          \
	"{\"name\":\"switching\",\"start_ms\":900,\"end_ms\":null}]}"

static void test_what_it_says(void **state)
{
	(void)state;
	cleanup_free char *svg = draw(MIGRATION,
				      "{\"points\":[{\"at_ms\":100,\"remaining_bytes\":1000,\"pass\":1,\"limit_ms\":5},"
				      "{\"at_ms\":800,\"remaining_bytes\":500,\"dirty_bytes_per_s\":7,\"pass\":2,\"limit_ms\":80,"
				      "\"throttle_percent\":85}],"
				      "\"events\":[{\"at_ms\":700,\"words\":\"it is throttled to 85 %\"}],\"events_lost\":3}");
	static const char *const words[] = {
		"web1 from host-a to host-b: completed<", "copying 900 ms, waiting for memory<", ">switching 100 ms<",
		">+700 ms: it is throttled to 85 %<", "3 more that have not been kept", "promised: 300 ms", ">paused for 47.9 ms<",
		">1000 B<", ">100 %<",
		"d=\"M180.0 ", /* a tenth of the way along the axis of time */
		"<rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>",
	};
	for (size_t i = 0; i < sizeof(words) / sizeof(words[0]); i++)
		if (!strstr(svg, words[i]))
			fail_msg("no %s in %s", words[i], svg);
	assert_int_equal(count_of(svg, ">1</text>"), 2); /* the mark's number: in the mark, and beside its words */
}

/* What the words of others hold comes out as text. */
static void test_words_of_others(void **state)
{
	(void)state;
	cleanup_free char *svg = draw(
		"{\"vm\":\"<script>\",\"status\":\"\\\"/><g onload='x'>\",\"reason\":{\"message\":\"a\\u0007b\\uffff & \\ufffe\","
		"\"code\":\"]]>\"},\"phases\":[{\"name\":\"<b>\",\"waited_for\":\"<i>&amp;\"}]}",
		"{\"events\":[{\"words\":\"</text></svg><script>alert(1)</script>\"}]}");
	assert_null(strstr(svg, "<script"));
	assert_null(strstr(svg, "<g "));
	assert_non_null(strstr(svg, "a?b? &amp; ?"));
	assert_non_null(strstr(svg, "&lt;i&gt;&amp;amp;"));
}

/* Long words are broken into lines, never within a character. */
static void test_long_words(void **state)
{
	(void)state;
	cleanup_free char *words = xcalloc(1, 4001);
	for (size_t i = 0; i < 2000; i++)
		memcpy(words + 2 * i, "\xc3\xa4", 2);
	cleanup_json json_t *migration = json_object();
	cleanup_json json_t *timeline = json_pack("{s[{ss}]}", "events", "words", words);
	cleanup_free char *svg = plot_svg(migration, timeline);
	assert_well_formed(svg);
	assert_true(count_of(svg, "\xc3\xa4</text>") >= 2000 / 140);
	assert_int_equal(count_of(svg, "\xc3\xa4"), 2000);
	assert_null(strstr(svg, ">\xa4"));
}

/* Nothing in it must be as it should be: a ferryd of another version, or none at all, may have said it. */
static void test_anything(void **state)
{
	(void)state;
	static const char *const migrations[] = {
		"{}", MIGRATION, "{\"phases\":{},\"promise\":[],\"total_ms\":\"x\",\"reason\":7,\"downtime_ms\":-1}",
		("{\"total_ms\":1e308,\"downtime_ms\":1e308,\"started_at_ms\":9223372036854775807,\"promise\":{\"max_downtime_ms\":1e308},"
		 "\"phases\":[{\"name\":\"switching\",\"start_ms\":1e308,\"end_ms\":-1e308}]}"),
	};
	static const char *const timelines[] = {
		"{}", "[]", "{\"points\":[],\"events\":[],\"events_lost\":0}", "{\"points\":7,\"events\":[7,null,{\"at_ms\":\"x\"}]}",
		"{\"points\":[7,{},{\"at_ms\":-5,\"remaining_bytes\":-1,\"limit_ms\":-1,\"throttle_percent\":1e300,\"pass\":-3}]}",
		("{\"points\":[{\"at_ms\":1e308,\"remaining_bytes\":1e308,\"limit_ms\":1e308,\"rate_bytes_per_s\":1e308,\"pass\":1e308},"
		 "{\"at_ms\":1e-308,\"remaining_bytes\":1e-308,\"limit_ms\":1e-308,\"rate_bytes_per_s\":1e-308,\"pass\":1e-308}]}"),
		"{\"points\":[{\"at_ms\":5,\"remaining_bytes\":9007199254740993,\"pass\":1}],\"events_lost\":-9223372036854775808}",
	};
	for (size_t m = 0; m < sizeof(migrations) / sizeof(migrations[0]); m++)
		for (size_t t = 0; t < sizeof(timelines) / sizeof(timelines[0]); t++)
			free(draw(migrations[m], timelines[t]));
}

static void test_many_points(void **state)
{
	(void)state;
	cleanup_json json_t *migration = parse(MIGRATION), *points = json_array(), *events = json_array();
	for (int i = 0; i < 256; i++)
		json_array_append_new(points, json_pack("{si si si}", "at_ms", i * 1000, "remaining_bytes", 256 - i, "pass", i));
	for (int i = 0; i < 64; i++)
		json_array_append_new(events, json_pack("{si ss}", "at_ms", i, "words", "again"));
	cleanup_json json_t *timeline = json_pack("{sO sO}", "points", points, "events", events);
	cleanup_free char *svg = plot_svg(migration, timeline);
	assert_well_formed(svg);
	assert_int_equal(count_of(svg, ": again<"), 64);
	assert_int_equal(count_of(svg, "<circle"), 64 + 1);
}

/* ---- axes ---- */

static void test_axes(void **state)
{
	(void)state;
	static const struct {
		enum axis_scale scale;
		double lowest, highest, low, high;
		const char *label; /* of its high end */
	} rows[] = {
		{AXIS_BYTES, 0, 0, 0, 1, "1 B"},
		{AXIS_BYTES, 0, 640e6, 0, 800 * 1048576.0, "800 MiB"},
		{AXIS_BYTES, 0, 1048576, 0, 1048576, "1.0 MiB"},
		{AXIS_RATE, 0, 117e6, 0, 150e6, "150 MB/s"},
		{AXIS_RATE, 0, 10e6, 0, 10e6, "10 MB/s"},
		{AXIS_PERCENT, 0, 3, 0, 100, "100 %"},
		{AXIS_LOG_MS, 5, 230, 1, 1000, "1.0 s"},
		{AXIS_LOG_MS, 10, 10, 10, 100, "100 ms"},
		{AXIS_LOG_MS, 1e15, 0, 1, 10, "10.0 ms"},
	};
	for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
		struct axis axis = axis_fit(rows[i].scale, rows[i].lowest, rows[i].highest);
		char label[UNITS_SIZE];
		print_message("# row %zu: %g to %g\n", i, axis.low, axis.high);
		assert_true(fabs(axis.low - rows[i].low) < 1e-9);
		assert_true(fabs(axis.high - rows[i].high) < 1e-6);
		assert_string_equal(axis_format(label, &axis, axis.high), rows[i].label);
		axis.top = 50;
		axis.height = 100;
		assert_true(fabs(axis_y(&axis, axis.high) - 50) < 1e-6);
		assert_true(fabs(axis_y(&axis, axis.low) - 150) < 1e-6);
		assert_true(fabs(axis_y(&axis, axis.high * 100) - 50) < 1e-6);
		double values[AXIS_VALUES_MAX];
		assert_in_range(axis_values(&axis, values), 2, AXIS_VALUES_MAX);
	}
	const struct axis tenfold = {.scale = AXIS_LOG_MS, .low = 1, .high = 100, .top = 0, .height = 100};
	assert_true(fabs(axis_y(&tenfold, 10) - 50) < 1e-9);
}

static void test_time_steps(void **state)
{
	(void)state;
	static const double rows[][2] = {{1, 1},	{13, 2},	 {1000, 100},	   {7700, 1000},
					 {90e3, 10e3},	{3600e3, 300e3}, {86400e3, 7200e3}, {86400e3 * 30, 86400e3 * 3}};
	for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++)
		assert_true(fabs(axis_time_step_ms(rows[i][0]) - rows[i][1]) < 1e-3);
	for (double end_ms = 1; end_ms < 1e15; end_ms *= 1.3)
		assert_in_range((int)(end_ms / axis_time_step_ms(end_ms)), 1, 12);
}

/* ---- the file ---- */

static char folder[] = "/tmp/ferry-test-plot-XXXXXX";

static char *path_in_folder(const char *name)
{
	return xasprintf("%s/%s", folder, name);
}

static void assert_file_is(const char *path, const char *expected)
{
	cleanup_free char *text = NULL;
	cleanup_error struct error *e = NULL;
	assert_int_equal(file_read(path, 1000, &text, NULL, &e), 0);
	assert_string_equal(text, expected);
}

static void test_file(void **state)
{
	(void)state;
	cleanup_free char *file = path_in_folder("a.svg"), *link = path_in_folder("link.svg"), *missing = path_in_folder("no/a.svg");
	cleanup_error struct error *e = NULL;
	struct stat st;
	const mode_t mask = umask(027);
	assert_int_equal(plot_write(file, "one", &e), 0);
	umask(mask);
	assert_file_is(file, "one");
	assert_int_equal(stat(file, &st), 0);
	assert_int_equal(st.st_mode & 07777, 0640);
	/* A link stays one, and the file behind it keeps its mode. */
	assert_int_equal(symlink("a.svg", link), 0);
	assert_int_equal(plot_write(link, "two", &e), 0);
	assert_file_is(file, "two");
	assert_int_equal(lstat(link, &st), 0);
	assert_true(S_ISLNK(st.st_mode));
	assert_int_equal(stat(file, &st), 0);
	assert_int_equal(st.st_mode & 07777, 0640);
	assert_int_equal(plot_write(missing, "three", &e), -1);
	assert_int_equal(e->code, ERROR_SYSTEM);
}

/* Root may well write to /dev/stdout or into a pipe: they must be there afterwards. (Not tried on a device, which a mistake would
 * replace.) */
static void test_no_file(void **state)
{
	(void)state;
	cleanup_free char *pipe_path = path_in_folder("pipe");
	cleanup_error struct error *e = NULL;
	struct stat st;
	assert_int_equal(mkfifo(pipe_path, 0600), 0);
	cleanup_close int reader = open(pipe_path, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
	assert_int_equal(plot_write(pipe_path, "one", &e), 0);
	char text[4] = "";
	assert_int_equal(read(reader, text, 3), 3);
	assert_string_equal(text, "one");
	assert_int_equal(lstat(pipe_path, &st), 0);
	assert_true(S_ISFIFO(st.st_mode));
	assert_int_equal(plot_write(folder, "one", &e), -1);
	assert_non_null(strstr(e->message, "directory"));
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
		cmocka_unit_test(test_what_it_says), cmocka_unit_test(test_words_of_others), cmocka_unit_test(test_long_words),
		cmocka_unit_test(test_anything),     cmocka_unit_test(test_many_points),     cmocka_unit_test(test_axes),
		cmocka_unit_test(test_time_steps),   cmocka_unit_test(test_file),	     cmocka_unit_test(test_no_file),
	};
	return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
