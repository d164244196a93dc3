/* SPDX-License-Identifier: Apache-2.0 */
/* What the fuzz targets share; see fuzz.h. */
#include "fuzz.h"

#include <string.h>

#include "base/cleanup.h"
#include "base/json.h"
#include "base/log.h"
#include "base/xalloc.h"

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
	(void)argc;
	(void)argv;
	log_set_level((enum log_level)0); /* below ERROR: nothing. The journal's level prefix starts at 3. */
	return 0;
}

void fuzz_check_error(struct error *e)
{
	REQUIRE(e);
	REQUIRE(e->code < ERROR_CODE_COUNT);
	REQUIRE(e->message && *e->message);
	/* Something that "should not happen" must not be what somebody's input leads to. */
	REQUIRE(e->code != ERROR_INTERNAL);
	error_free(e);
}

static size_t depth_of(const json_t *value)
{
	size_t deepest = 0, i;
	const char *key;
	json_t *item;
	json_array_foreach (value, i, item) {
		size_t depth = depth_of(item);
		deepest = depth > deepest ? depth : deepest;
	}
	json_object_foreach ((json_t *)(uintptr_t)value, key, item) {
		size_t depth = depth_of(item);
		deepest = depth > deepest ? depth : deepest;
	}
	return deepest + (json_is_array(value) || json_is_object(value));
}

/* Each getter keeps what it promises, whatever the key holds. */
static void check_getters(const json_t *object)
{
	const char *key;
	json_t *value;
	json_object_foreach ((json_t *)(uintptr_t)object, key, value) {
		const char *text = NULL;
		int64_t number = 7;
		bool flag = false;
		json_t *inner = NULL;
		struct error *e = NULL;
		if (json_get_string(object, key, &text, &e) == 0)
			REQUIRE(json_is_string(value) && strlen(text) == json_string_length(value));
		else
			fuzz_check_error(take_ptr(e));
		if (json_get_integer(object, key, 1, 100, &number, &e) == 0)
			REQUIRE(json_is_integer(value) && number >= 1 && number <= 100);
		else
			fuzz_check_error(take_ptr(e));
		REQUIRE(number >= 1 && number <= 100);
		if (json_get_bool(object, key, &flag, &e) == 0)
			REQUIRE(json_is_boolean(value) && flag == json_is_true(value));
		else
			fuzz_check_error(take_ptr(e));
		if (json_get_object(object, key, &inner, &e) == 0)
			REQUIRE(json_is_object(value) && inner == value);
		else
			fuzz_check_error(take_ptr(e));
		if (json_get_array(object, key, &inner, &e) == 0)
			REQUIRE(json_is_array(value) && inner == value);
		else
			fuzz_check_error(take_ptr(e));
	}
}

json_t *fuzz_parse_json(const char *text, size_t length)
{
	json_t *value = NULL, *again = NULL;
	struct error *e = NULL;
	if (json_parse(text, length, &value, &e) < 0) {
		REQUIRE(!value);
		fuzz_check_error(e);
		return NULL;
	}
	REQUIRE(!e);
	REQUIRE(json_is_object(value) || json_is_array(value));
	REQUIRE(depth_of(value) <= JSON_DEPTH_MAX);
	check_getters(value);
	cleanup_free char *written = json_text(value);
	REQUIRE(json_parse(written, strlen(written), &again, NULL) == 0);
	REQUIRE(json_equal(value, again));
	json_decref(again);
	return value;
}

char *fuzz_text(const uint8_t *data, size_t size)
{
	char *text = xmalloc(size + 1);
	memcpy(text, data, size);
	text[size] = '\0';
	return text;
}

bool fuzz_next_part(const char **at, const char *end, char separator, const char **ret_part, size_t *ret_length)
{
	if (!*at || *at > end)
		return false;
	const char *stop = memchr(*at, separator, (size_t)(end - *at));
	*ret_part = *at;
	*ret_length = (size_t)((stop ? stop : end) - *at);
	*at = stop ? stop + 1 : NULL;
	return true;
}
