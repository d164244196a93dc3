/* SPDX-License-Identifier: Apache-2.0 */
/* Errors: see error.h for the contract. Running out of memory for a message ends the process (xalloc.h). */
#include "base/error.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/xalloc.h"

static const struct {
	const char *name;
	unsigned int http_status;
	const char *meaning;
} error_code_table[] = {
#define ERROR_CODE(symbol, name, http, meaning) [symbol] = {name, http, meaning},
#include "base/error_codes.tbl"
#undef ERROR_CODE
};

void error_cut_text(char *text, size_t max_bytes)
{
	if (strnlen(text, max_bytes + 1) <= max_bytes)
		return;
	while (max_bytes > 0 && ((unsigned char)text[max_bytes] & 0xc0) == 0x80)
		max_bytes--;
	text[max_bytes] = '\0';
}

static int error_store(struct error **e, enum error_code code, int errnum, char *message)
{
	if (!e) {
		free(message);
		return -1;
	}
	error_cut_text(message, ERROR_MESSAGE_MAX_BYTES);
	error_free(*e);
	*e = xcalloc(1, sizeof(**e));
	(*e)->code = code;
	(*e)->sys_errno = errnum;
	(*e)->message = message;
	return -1;
}

int error_set(struct error **e, enum error_code code, const char *format, ...)
{
	va_list ap;
	va_start(ap, format);
	char *message = xvasprintf(format, ap);
	va_end(ap);
	return error_store(e, code, 0, message);
}

int error_set_errno(struct error **e, enum error_code code, int errnum, const char *format, ...)
{
	va_list ap;
	va_start(ap, format);
	cleanup_free char *what = xvasprintf(format, ap);
	va_end(ap);
	return error_store(e, code, errnum, xasprintf("%s: %s", what, strerror(errnum)));
}

int error_wrap(struct error **e, const char *format, ...)
{
	if (!e || !*e)
		return -1;
	va_list ap;
	va_start(ap, format);
	cleanup_free char *context = xvasprintf(format, ap);
	va_end(ap);
	char *message = xasprintf("%s: %s", context, (*e)->message);
	free((*e)->message);
	(*e)->message = message;
	error_cut_text(message, ERROR_MESSAGE_MAX_BYTES);
	return -1;
}

int error_move(struct error **e, struct error *from)
{
	if (!e || *e == from) {
		if (!e)
			error_free(from);
		return -1;
	}
	error_free(*e);
	*e = from;
	return -1;
}

struct error *error_copy(const struct error *e)
{
	if (!e)
		return NULL;
	struct error *copy = xcalloc(1, sizeof(*copy));
	copy->code = e->code;
	copy->sys_errno = e->sys_errno;
	copy->message = xstrdup(e->message);
	return copy;
}

void error_free(struct error *e)
{
	if (!e)
		return;
	free(e->message);
	free(e);
}

const char *error_code_name(enum error_code code)
{
	return code < ERROR_CODE_COUNT ? error_code_table[code].name : "internal";
}

enum error_code error_code_from_name(const char *name)
{
	for (size_t i = 0; i < ERROR_CODE_COUNT; i++)
		if (name && strcmp(error_code_table[i].name, name) == 0)
			return (enum error_code)i;
	return ERROR_CODE_COUNT;
}

unsigned int error_code_http_status(enum error_code code)
{
	return code < ERROR_CODE_COUNT ? error_code_table[code].http_status : 500;
}

const char *error_code_meaning(enum error_code code)
{
	return code < ERROR_CODE_COUNT ? error_code_table[code].meaning : "";
}
