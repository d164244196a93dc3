/* SPDX-License-Identifier: Apache-2.0 */
/* What verbs print: JSON values, tables, dates. Control characters in what others named are shown as '?'. */
#ifndef FERRY_CLI_OUTPUT_H
#define FERRY_CLI_OUTPUT_H

#include <jansson.h>
#include <stddef.h>
#include <stdint.h>

/* One JSON value and a newline on stdout. */
void output_json(const json_t *value);

/* A table: the first row is the heading. Columns are as wide as their widest cell. */
struct table;
struct table *table_new(size_t columns);
/* Add the cells of one row, `columns` strings; NULL is shown as "-". They are copied. */
void table_add(struct table *table, ...);
/* Print on stdout and free. */
void table_print(struct table *table);

/* Strings and numbers of an object for showing: "-" and 0 where there is no such key. Borrowed. A name that could move a
 * terminal's cursor is shown as "?". */
const char *output_string(const json_t *object, const char *key);
/* The same for words that may have line ends and the like in them: to be shown by output_safe(). */
const char *output_message(const json_t *object, const char *key);
double output_number(const json_t *object, const char *key);
int64_t output_integer(const json_t *object, const char *key);

#define OUTPUT_DATE_SIZE 32
/* "2024-11-21 12:03:04", local time. */
const char *output_date(char ret[OUTPUT_DATE_SIZE], int64_t wall_ms);
/* Copy text that came from elsewhere so that it cannot move a terminal's cursor. The caller frees it. */
char *output_safe(const char *text);

#endif
