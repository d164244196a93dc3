/* SPDX-License-Identifier: Apache-2.0 */
/* Durations, rates and sizes as people write and read them. Any thread. */
#ifndef FERRY_CLI_UNITS_H
#define FERRY_CLI_UNITS_H

#include <stddef.h>
#include <stdint.h>

#include "base/error.h"

/* "300ms", "1.5s", "2m", "1h": more than 0, at most 1000 hours. The unit is required. */
int units_parse_duration(const char *text, int64_t *ret_ms, struct error **e) MUST_CHECK;
/* "1Gbit", "500Mbit" (decimal, bits a second), "100MiB" (binary, bytes a second); upper and lower case are alike. The unit
 * is required. At least 1 KiB a second. */
int units_parse_rate(const char *text, int64_t *ret_bytes_per_s, struct error **e) MUST_CHECK;
/* A whole number from min to max; what names it in the error ("--channels"). */
int units_parse_integer(const char *text, const char *what, int64_t min, int64_t max, int64_t *ret, struct error **e) MUST_CHECK;

/* "614 MiB", "7.9 ms", "5.7 s", "2 m 05 s": short forms for people, written to a buffer that the caller keeps. */
#define UNITS_SIZE 32
const char *units_format_bytes(char ret[UNITS_SIZE], double bytes);
const char *units_format_ms(char ret[UNITS_SIZE], double ms);

#endif
