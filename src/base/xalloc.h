/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Small allocations, which end the process when memory is gone: a daemon that cannot get a few hundred bytes cannot
 * keep its promises either, and its state is on disk. For anything whose size a peer, a user or a guest decides, check
 * a limit first. Any thread. The caller owns what is returned and frees it with free().
 */
#ifndef FERRY_BASE_XALLOC_H
#define FERRY_BASE_XALLOC_H

#include <stdarg.h>
#include <stddef.h>

void *xmalloc(size_t size_bytes) __attribute__((returns_nonnull));
void *xcalloc(size_t count, size_t size_bytes) __attribute__((returns_nonnull));
/* Grow an array to hold count elements of size_bytes each; overflow ends the process. */
void *xreallocarray(void *array, size_t count, size_t size_bytes) __attribute__((returns_nonnull));
char *xstrdup(const char *text) __attribute__((returns_nonnull));
/* As xstrdup; NULL stays NULL. */
char *xstrdup_null(const char *text);
char *xasprintf(const char *format, ...) __attribute__((format(printf, 1, 2), returns_nonnull));
char *xvasprintf(const char *format, va_list ap) __attribute__((format(printf, 1, 0), returns_nonnull));

#endif
