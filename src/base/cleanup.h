/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Scope-bound clean-up: put the attribute before a local, initialise it at its declaration (pointers NULL, descriptors
 * -1), and it is released on every way out. take_ptr() and take_fd() hand the resource on and leave the local empty.
 */
#ifndef FERRY_BASE_CLEANUP_H
#define FERRY_BASE_CLEANUP_H

#include <jansson.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "base/error.h"

static inline void cleanup_free_ptr(void *p)
{
	free(*(void **)p);
}
static inline void cleanup_close_fd(const int *fd)
{
	if (*fd >= 0)
		close(*fd);
}
static inline void cleanup_fclose_ptr(FILE **f)
{
	if (*f)
		fclose(*f);
}
static inline void cleanup_error_ptr(struct error **e)
{
	error_free(*e);
}
static inline void cleanup_json_ptr(json_t **json)
{
	json_decref(*json);
}
static inline void cleanup_unlock_ptr(pthread_mutex_t **mutex)
{
	if (*mutex)
		pthread_mutex_unlock(*mutex);
}

#define cleanup_free __attribute__((cleanup(cleanup_free_ptr)))
#define cleanup_close __attribute__((cleanup(cleanup_close_fd)))
#define cleanup_fclose __attribute__((cleanup(cleanup_fclose_ptr)))
#define cleanup_error __attribute__((cleanup(cleanup_error_ptr)))
#define cleanup_json __attribute__((cleanup(cleanup_json_ptr)))

/* Lock until the end of the scope: LOCK_SCOPE(&mutex); */
#define LOCK_SCOPE_NAME2(line) lock_scope_##line
#define LOCK_SCOPE_NAME(line) LOCK_SCOPE_NAME2(line)
#define LOCK_SCOPE(mutex)                                                                                              \
	__attribute__((cleanup(cleanup_unlock_ptr), unused)) pthread_mutex_t *LOCK_SCOPE_NAME(__LINE__) =              \
		(pthread_mutex_lock(mutex), (mutex))

#define take_ptr(p)                                                                                                    \
	({                                                                                                             \
		__typeof__(p) *take_from = &(p);                                                                       \
		__typeof__(p) taken = *take_from;                                                                      \
		*take_from = NULL;                                                                                     \
		taken;                                                                                                 \
	})
#define take_fd(fd)                                                                                                    \
	({                                                                                                             \
		int *take_from = &(fd);                                                                                \
		int taken = *take_from;                                                                                \
		*take_from = -1;                                                                                       \
		taken;                                                                                                 \
	})

#endif
