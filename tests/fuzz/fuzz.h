/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the fuzz targets share. A target is a program of libFuzzer: it feeds one input after the other to a parser, and
 * ends with a report when one crashes, hangs, leaks, trips a sanitizer or breaks a property (REQUIRE). See README.md.
 */
#ifndef FERRY_TESTS_FUZZ_H
#define FERRY_TESTS_FUZZ_H

#include <jansson.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/error.h"

/* Called by libFuzzer. */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerInitialize(int *argc, char ***argv);

/* A property that must hold whatever the input; abort() is what libFuzzer takes for a crash. */
#define REQUIRE(condition)                                                                                             \
	do {                                                                                                           \
		if (!(condition)) {                                                                                    \
			fprintf(stderr, "%s:%d: does not hold: %s\n", __FILE__, __LINE__, #condition);                 \
			abort();                                                                                       \
		}                                                                                                      \
	} while (0)

/* A function has failed: the error is whole, and its message can be said in JSON and on one line. Frees it. */
void fuzz_check_error(struct error *e);
/* Parse as ferryd does, and check that what is accepted is within the limits and survives being written and read. NULL
 * where it is refused. The caller owns the value. */
json_t *fuzz_parse_json(const char *text, size_t length);
/* A NUL-terminated copy, cut at the first NUL; the caller frees it. */
char *fuzz_text(const uint8_t *data, size_t size);
/* The same, in the middle: cut *at at the next `separator` (or the end) and move on. False at the end. The part has no
 * NUL behind it. */
bool fuzz_next_part(const char **at, const char *end, char separator, const char **ret_part, size_t *ret_length);

#endif
