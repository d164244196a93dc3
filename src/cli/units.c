/* SPDX-License-Identifier: Apache-2.0 */
/* Durations, rates and sizes as people write and read them; see units.h. */
#include "cli/units.h"

#include <ctype.h>
#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

/* What another program says may be any number. */
#define FORMAT_MAX 1e18

struct unit {
	const char *name;
	double factor;
};

/* "12.5" and what stands behind it. strtod() alone would also take "inf", "0x1p3", a sign or a space. */
static bool units_split(const char *text, double *ret_number, const char **ret_unit)
{
	size_t length = strspn(text, "0123456789.");
	if (length == 0 || length > 20 || !isdigit((unsigned char)text[0]))
		return false;
	char digits[24];
	memcpy(digits, text, length);
	digits[length] = '\0';
	char *end;
	double number = strtod(digits, &end);
	if (*end || digits[length - 1] == '.')
		return false;
	*ret_number = number;
	*ret_unit = text + length;
	return true;
}

static bool units_convert(const char *text, const struct unit *units, double *ret)
{
	double number;
	const char *name;
	if (!units_split(text, &number, &name))
		return false;
	for (; units->name; units++)
		if (strcasecmp(units->name, name) == 0) {
			*ret = number * units->factor;
			return true;
		}
	return false;
}

int units_parse_duration(const char *text, int64_t *ret_ms, struct error **e)
{
	static const struct unit units[] = {{"ms", 1}, {"s", 1000}, {"m", 60000}, {"min", 60000}, {"h", 3600000}, {NULL, 0}};
	double ms;
	if (!units_convert(text, units, &ms))
		return error_set(e, ERROR_INVALID_ARGUMENT, "'%s' is not a duration; write it as 300ms, 2s, 2m or 1h", text);
	if (ms < 1 || ms > 3600000.0 * 1000)
		return error_set(e, ERROR_INVALID_ARGUMENT, "'%s' is out of range; a duration is from 1ms to 1000h", text);
	*ret_ms = (int64_t)ms;
	return 0;
}

int units_parse_rate(const char *text, int64_t *ret_bytes_per_s, struct error **e)
{
	static const struct unit units[] = {{"kbit", 125},    {"mbit", 125e3},	 {"gbit", 125e6},
					    {"kib", 1 << 10}, {"mib", 1 << 20}, {"gib", 1 << 30}, {NULL, 0}};
	double bytes;
	if (!units_convert(text, units, &bytes))
		return error_set(e, ERROR_INVALID_ARGUMENT,
				 "'%s' is not a bandwidth; write it as 1Gbit or 500Mbit (bits a second) or 100MiB (bytes a "
				 "second)",
				 text);
	if (bytes < 1024 || bytes > 1e13)
		return error_set(e, ERROR_INVALID_ARGUMENT, "'%s' is out of range; a bandwidth is from 1KiB to 80000Gbit", text);
	*ret_bytes_per_s = (int64_t)bytes;
	return 0;
}

int units_parse_integer(const char *text, const char *what, int64_t min, int64_t max, int64_t *ret, struct error **e)
{
	char *end = NULL;
	errno = 0;
	long long number = isdigit((unsigned char)text[0]) ? strtoll(text, &end, 10) : 0;
	if (!end || *end || errno || number < min || number > max)
		return error_set(e, ERROR_INVALID_ARGUMENT, "%s '%s' must be a whole number from %lld to %lld", what, text,
				 (long long)min, (long long)max);
	*ret = number;
	return 0;
}

const char *units_format_bytes(char ret[UNITS_SIZE], double bytes)
{
	static const char *const names[] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB"};
	size_t i = 0;
	if (bytes > FORMAT_MAX)
		bytes = FORMAT_MAX;
	/* 1023.5 would be written as 1024, so go on to the next unit before. */
	while (bytes >= 1023.5 && i + 1 < sizeof(names) / sizeof(names[0])) {
		bytes /= 1024;
		i++;
	}
	snprintf(ret, UNITS_SIZE, i == 0 || bytes >= 99.95 ? "%.0f %s" : "%.1f %s", bytes, names[i]);
	return ret;
}

const char *units_format_ms(char ret[UNITS_SIZE], double ms)
{
	if (ms > FORMAT_MAX)
		ms = FORMAT_MAX;
	if (ms < 99.95)
		snprintf(ret, UNITS_SIZE, "%.1f ms", ms > -FORMAT_MAX ? ms : -FORMAT_MAX);
	else if (ms < 999.5)
		snprintf(ret, UNITS_SIZE, "%.0f ms", ms);
	else if (ms < 59950)
		snprintf(ret, UNITS_SIZE, "%.1f s", ms / 1000);
	else {
		int64_t seconds = (int64_t)(ms / 1000 + 0.5);
		if (seconds < 3600)
			snprintf(ret, UNITS_SIZE, "%d m %02d s", (int)(seconds / 60), (int)(seconds % 60));
		else
			snprintf(ret, UNITS_SIZE, "%lld h %02d m", (long long)(seconds / 3600), (int)(seconds / 60 % 60));
	}
	return ret;
}
