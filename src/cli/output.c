/* SPDX-License-Identifier: Apache-2.0 */
/* What verbs print; see output.h. */
#include "cli/output.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/xalloc.h"

struct table {
	size_t columns, count, room;
	char **cells;
};

void output_json(const json_t *value)
{
	json_dumpf(value, stdout, JSON_INDENT(2) | JSON_ENCODE_ANY | JSON_REAL_PRECISION(15));
	putchar('\n');
}

struct table *table_new(size_t columns)
{
	struct table *table = xcalloc(1, sizeof(*table));
	table->columns = columns;
	return table;
}

void table_add(struct table *table, ...)
{
	if (table->count + table->columns > table->room) {
		table->room = 2 * table->room + 16 * table->columns;
		table->cells = xreallocarray(table->cells, table->room, sizeof(*table->cells));
	}
	va_list ap;
	va_start(ap, table);
	for (size_t i = 0; i < table->columns; i++) {
		const char *text = va_arg(ap, const char *);
		table->cells[table->count++] = output_safe(text ? text : "-");
	}
	va_end(ap);
}

/* Columns of UTF-8 text: bytes that do not continue a character. */
static size_t text_width(const char *text)
{
	size_t width = 0;
	for (; *text; text++)
		width += (*text & 0xc0) != 0x80;
	return width;
}

void table_print(struct table *table)
{
	for (size_t at = 0; at < table->count; at += table->columns) {
		for (size_t column = 0; column < table->columns; column++) {
			const char *cell = table->cells[at + column];
			fputs(cell, stdout);
			if (column + 1 == table->columns)
				break;
			size_t widest = 0;
			for (size_t i = column; i < table->count; i += table->columns)
				if (text_width(table->cells[i]) > widest)
					widest = text_width(table->cells[i]);
			for (size_t i = text_width(cell); i < widest + 2; i++)
				putchar(' ');
		}
		putchar('\n');
	}
	for (size_t i = 0; i < table->count; i++)
		free(table->cells[i]);
	free(table->cells);
	free(table);
}

/* How many bytes of a control character stand here, 0 for none. Those from U+0080 on count: some terminals obey them. */
static size_t control_length(const char *text)
{
	unsigned char first = (unsigned char)text[0];
	if (first == 0xc2 && (unsigned char)text[1] >= 0x80 && (unsigned char)text[1] < 0xa0)
		return 2;
	return (first != 0 && first < ' ') || first == 0x7f;
}

const char *output_message(const json_t *object, const char *key)
{
	const char *text = json_string_value(json_object_get(object, key));
	return text && *text ? text : "-";
}

const char *output_string(const json_t *object, const char *key)
{
	const char *text = output_message(object, key);
	for (const char *c = text; *c; c++)
		if (control_length(c) > 0)
			return "?";
	return text;
}

double output_number(const json_t *object, const char *key)
{
	return json_number_value(json_object_get(object, key));
}

int64_t output_integer(const json_t *object, const char *key)
{
	return (int64_t)json_integer_value(json_object_get(object, key));
}

const char *output_date(char ret[OUTPUT_DATE_SIZE], int64_t wall_ms)
{
	time_t seconds = (time_t)(wall_ms / 1000);
	struct tm parts;
	if (wall_ms <= 0 || !localtime_r(&seconds, &parts) || !strftime(ret, OUTPUT_DATE_SIZE, "%Y-%m-%d %H:%M:%S", &parts))
		snprintf(ret, OUTPUT_DATE_SIZE, "-");
	return ret;
}

char *output_safe(const char *text)
{
	char *safe = xstrdup(text);
	for (char *c = safe; *c; c++)
		for (size_t length = control_length(c); length > 0; length--)
			c[length - 1] = '?';
	return safe;
}
