/* SPDX-License-Identifier: Apache-2.0 */
/* Strict reading of JSON; see json.h. */
#include "base/json.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/file.h"
#include "base/xalloc.h"

/* Whether brackets, as far as they stand outside of strings, are nested deeper than allowed. The text may be anything. */
static bool json_too_deep(const char *text, size_t length)
{
	size_t depth = 0;
	bool in_string = false;
	for (size_t i = 0; i < length; i++) {
		if (in_string && text[i] == '\\')
			i++;
		else if (text[i] == '"')
			in_string = !in_string;
		else if (!in_string && (text[i] == '[' || text[i] == '{') && ++depth > JSON_DEPTH_MAX)
			return true;
		else if (!in_string && (text[i] == ']' || text[i] == '}') && depth > 0)
			depth--;
	}
	return false;
}

int json_parse(const char *text, size_t length, json_t **ret, struct error **e)
{
	if (json_too_deep(text, length))
		return error_set(e, ERROR_TOO_LARGE, "JSON is nested deeper than %d levels", JSON_DEPTH_MAX);
	json_error_t where;
	json_t *value = json_loadb(text, length, JSON_REJECT_DUPLICATES, &where);
	if (!value)
		return error_set(e, ERROR_INVALID_JSON, "line %d, column %d: %s", where.line, where.column, where.text);
	*ret = value;
	return 0;
}

int json_parse_file(const char *path, size_t limit_bytes, json_t **ret, struct error **e)
{
	cleanup_free char *text = NULL;
	size_t length = 0;
	if (file_read(path, limit_bytes, &text, &length, e) < 0)
		return -1;
	if (json_parse(text, length, ret, e) < 0)
		return error_wrap(e, "%s", path);
	return 0;
}

char *json_text(const json_t *value)
{
	char *text = json_dumps(value, JSON_COMPACT | JSON_ENCODE_ANY);
	return text ? text : xstrdup("null");
}

/* The value of key if it is there and not null; the caller decides whether absence matters. */
static const json_t *json_present(const json_t *object, const char *key)
{
	const json_t *value = json_object_get(object, key);
	return json_is_null(value) ? NULL : value;
}

static int json_missing(const char *key, struct error **e)
{
	return error_set(e, ERROR_INVALID_ARGUMENT, "key '%s' is missing", key);
}

static int json_wrong_type(const char *key, const char *wanted, struct error **e)
{
	return error_set(e, ERROR_INVALID_ARGUMENT, "key '%s' must be %s", key, wanted);
}

int json_get_string_opt(const json_t *object, const char *key, const char **ret, struct error **e)
{
	const json_t *value = json_present(object, key);
	if (!value)
		return 0;
	if (!json_is_string(value) || strlen(json_string_value(value)) != json_string_length(value))
		return json_wrong_type(key, "a string", e);
	*ret = json_string_value(value);
	return 0;
}

int json_get_integer_opt(const json_t *object, const char *key, int64_t min, int64_t max, int64_t *ret, struct error **e)
{
	const json_t *value = json_present(object, key);
	if (!value)
		return 0;
	if (!json_is_integer(value))
		return json_wrong_type(key, "a whole number", e);
	int64_t number = json_integer_value(value);
	if (number < min || number > max)
		return error_set(e, ERROR_INVALID_ARGUMENT, "key '%s' must be from %lld to %lld, not %lld", key,
				 (long long)min, (long long)max, (long long)number);
	*ret = number;
	return 0;
}

int json_get_bool_opt(const json_t *object, const char *key, bool *ret, struct error **e)
{
	const json_t *value = json_present(object, key);
	if (!value)
		return 0;
	if (!json_is_boolean(value))
		return json_wrong_type(key, "true or false", e);
	*ret = json_is_true(value);
	return 0;
}

int json_get_object_opt(const json_t *object, const char *key, json_t **ret, struct error **e)
{
	const json_t *value = json_present(object, key);
	if (!value)
		return 0;
	if (!json_is_object(value))
		return json_wrong_type(key, "an object", e);
	*ret = json_object_get(object, key);
	return 0;
}

int json_get_array_opt(const json_t *object, const char *key, json_t **ret, struct error **e)
{
	const json_t *value = json_present(object, key);
	if (!value)
		return 0;
	if (!json_is_array(value))
		return json_wrong_type(key, "an array", e);
	*ret = json_object_get(object, key);
	return 0;
}

int json_get_string(const json_t *object, const char *key, const char **ret, struct error **e)
{
	return json_present(object, key) ? json_get_string_opt(object, key, ret, e) : json_missing(key, e);
}

int json_get_integer(const json_t *object, const char *key, int64_t min, int64_t max, int64_t *ret, struct error **e)
{
	return json_present(object, key) ? json_get_integer_opt(object, key, min, max, ret, e) : json_missing(key, e);
}

int json_get_bool(const json_t *object, const char *key, bool *ret, struct error **e)
{
	return json_present(object, key) ? json_get_bool_opt(object, key, ret, e) : json_missing(key, e);
}

int json_get_object(const json_t *object, const char *key, json_t **ret, struct error **e)
{
	return json_present(object, key) ? json_get_object_opt(object, key, ret, e) : json_missing(key, e);
}

int json_get_array(const json_t *object, const char *key, json_t **ret, struct error **e)
{
	return json_present(object, key) ? json_get_array_opt(object, key, ret, e) : json_missing(key, e);
}

int json_check_keys(const json_t *object, const char *const keys[], struct error **e)
{
	const char *key;
	const json_t *value;
	json_object_foreach ((json_t *)(uintptr_t)object, key, value) {
		bool known = false;
		for (size_t i = 0; keys[i] && !known; i++)
			known = strcmp(key, keys[i]) == 0;
		if (!known)
			return error_set(e, ERROR_INVALID_ARGUMENT, "unknown key '%s'", key);
	}
	return 0;
}
