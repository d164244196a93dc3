/* SPDX-License-Identifier: Apache-2.0 */
/* Allocations that cannot fail; see xalloc.h. */
#include "base/xalloc.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static void *must_have(void *memory)
{
	if (!memory) {
		static const char words[] = "out of memory\n";
		(void)!write(STDERR_FILENO, words, sizeof(words) - 1);
		abort();
	}
	return memory;
}

void *xmalloc(size_t size_bytes)
{
	return must_have(malloc(size_bytes ? size_bytes : 1));
}

void *xcalloc(size_t count, size_t size_bytes)
{
	return must_have(calloc(count ? count : 1, size_bytes ? size_bytes : 1));
}

void *xreallocarray(void *array, size_t count, size_t size_bytes)
{
	return must_have(reallocarray(array, count ? count : 1, size_bytes));
}

char *xstrdup(const char *text)
{
	return must_have(strdup(text));
}

char *xstrdup_null(const char *text)
{
	return text ? xstrdup(text) : NULL;
}

char *xvasprintf(const char *format, va_list ap)
{
	char *text = NULL;
	if (vasprintf(&text, format, ap) < 0)
		must_have(NULL);
	return must_have(text);
}

char *xasprintf(const char *format, ...)
{
	va_list ap;
	va_start(ap, format);
	char *text = xvasprintf(format, ap);
	va_end(ap);
	return text;
}
