/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Errors: how every function of Ferry that can fail reports it.
 *
 * A function that can fail takes `struct error **e` as its last argument and returns 0 or more on
 * success, a negative number on failure. On failure it sets *e (never on success). The error has
 *   - a code from the one table src/base/error_codes.tbl: the stable name that the API, the CLI's
 *     exit status and the manual use;
 *   - a message for a person: what went wrong and, where there is one, what to do about it;
 *   - the chain of what was being done, outermost first, added by error_wrap() on the way out.
 *
 * e may be NULL when the caller does not care. Ownership: the caller owns *e and frees it with
 * error_free(), or by the `cleanup_error` attribute.  Any thread.
 */
#ifndef FERRY_BASE_ERROR_H
#define FERRY_BASE_ERROR_H

#include <stdbool.h>
#include <stddef.h>

enum error_code {
#define ERROR_CODE(symbol, name, http, meaning) symbol,
#include "base/error_codes.tbl"
#undef ERROR_CODE
	ERROR_CODE_COUNT
};

struct error {
	enum error_code code;
	int sys_errno; /* errno behind it, 0 when there is none */
	char *message; /* "cannot open '/x': No such file"; with the context put before it */
};

#define MUST_CHECK __attribute__((warn_unused_result))

/* A message is cut at this length: much of it may be a peer's or a guest's words. */
#define ERROR_MESSAGE_MAX_BYTES 4096
/* Cut text in place to at most so many bytes, not in the middle of a UTF-8 character. */
void error_cut_text(char *text, size_t max_bytes);

/* Set *e. Each returns -1, so that `return error_set(e, …)` reads well. An error that is already in *e is replaced. */
int error_set(struct error **e, enum error_code code, const char *format, ...) __attribute__((format(printf, 3, 4)));
/* As error_set, with ": strerror(errnum)" behind the message. */
int error_set_errno(struct error **e, enum error_code code, int errnum, const char *format, ...)
	__attribute__((format(printf, 4, 5)));
/* Put "context: " before the message of *e, which must be set if e is not NULL. Returns -1. */
int error_wrap(struct error **e, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* Hand `from` on to *e (or free it when e is NULL). Returns -1. */
int error_move(struct error **e, struct error *from);

struct error *error_copy(const struct error *e);
void error_free(struct error *e);

/* The stable name of a code, such as "dest.disk_missing"; and back: ERROR_CODE_COUNT when there is no such name. */
const char *error_code_name(enum error_code code);
enum error_code error_code_from_name(const char *name);
/* The HTTP status with which the API answers this error. */
unsigned int error_code_http_status(enum error_code code);
const char *error_code_meaning(enum error_code code);

#endif
