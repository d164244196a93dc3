/* SPDX-License-Identifier: Apache-2.0 */
/* Small files and folders: read whole, write atomically, remove trees. Any thread. */
#ifndef FERRY_BASE_FILE_H
#define FERRY_BASE_FILE_H

#include <stddef.h>
#include <sys/types.h>

#include "base/error.h"

/* Read a file of at most limit_bytes whole. *ret_text has a NUL behind it; the caller frees it. ret_length may be NULL. */
int file_read(const char *path, size_t limit_bytes, char **ret_text, size_t *ret_length, struct error **e) MUST_CHECK;
/* Write beside the path, fsync, rename over it, fsync the folder: after a crash either the old or the new one is there. */
int file_write_atomic(const char *path, const void *data, size_t length, mode_t mode, struct error **e) MUST_CHECK;
/* mkdir -p. Folders that are there already keep their mode. */
int file_make_folders(const char *path, mode_t mode, struct error **e) MUST_CHECK;
/* rm -r, never following links. A path that is not there is no error. */
int file_remove_tree(const char *path, struct error **e) MUST_CHECK;
/* The last limit_bytes of a file, for error messages: "" when it cannot be read. The caller frees it. */
char *file_tail(const char *path, size_t limit_bytes);

#endif
