/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Strict reading of JSON objects (jansson): each getter checks the type and the range, and the error names the key.
 * Strings and objects that are returned are borrowed from `object`. Errors have code ERROR_INVALID_ARGUMENT (a missing
 * or wrong key) or ERROR_INVALID_JSON (text that does not parse). Any thread, as long as nobody changes the object.
 */
#ifndef FERRY_BASE_JSON_H
#define FERRY_BASE_JSON_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"

/* How deep arrays and objects may be nested. jansson parses 2048 levels, but writes, copies and compares them by calling
 * itself, with some 300 bytes of stack a level: that many would end a connection's thread, and ferryd with it. The
 * deepest that Ferry reads is QEMU's list of images, one level for each file of a backing chain. */
#define JSON_DEPTH_MAX 128

/* Parse text (one object or array, nothing behind it). Duplicate keys are errors; so is what is nested deeper than
 * JSON_DEPTH_MAX (ERROR_TOO_LARGE). The caller owns *ret. */
int json_parse(const char *text, size_t length, json_t **ret, struct error **e) MUST_CHECK;
int json_parse_file(const char *path, size_t limit_bytes, json_t **ret, struct error **e) MUST_CHECK;
/* Compact text of a value; the caller frees it. */
char *json_text(const json_t *value);

/* Required keys. */
int json_get_string(const json_t *object, const char *key, const char **ret, struct error **e) MUST_CHECK;
int json_get_integer(const json_t *object, const char *key, int64_t min, int64_t max, int64_t *ret, struct error **e) MUST_CHECK;
int json_get_bool(const json_t *object, const char *key, bool *ret, struct error **e) MUST_CHECK;
int json_get_object(const json_t *object, const char *key, json_t **ret, struct error **e) MUST_CHECK;
int json_get_array(const json_t *object, const char *key, json_t **ret, struct error **e) MUST_CHECK;
/* Optional keys: absent or null leaves *ret as it is. */
int json_get_string_opt(const json_t *object, const char *key, const char **ret, struct error **e) MUST_CHECK;
int json_get_integer_opt(const json_t *object, const char *key, int64_t min, int64_t max, int64_t *ret, struct error **e) MUST_CHECK;
int json_get_bool_opt(const json_t *object, const char *key, bool *ret, struct error **e) MUST_CHECK;
int json_get_object_opt(const json_t *object, const char *key, json_t **ret, struct error **e) MUST_CHECK;
int json_get_array_opt(const json_t *object, const char *key, json_t **ret, struct error **e) MUST_CHECK;
/* Every key of object must be one of the NULL-terminated list. */
int json_check_keys(const json_t *object, const char *const keys[], struct error **e) MUST_CHECK;

#endif
