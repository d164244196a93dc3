/* SPDX-License-Identifier: Apache-2.0 */
/* Small files and folders; see file.h. */
#include "base/file.h"

#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/fault.h"
#include "base/xalloc.h"

int file_read(const char *path, size_t limit_bytes, char **ret_text, size_t *ret_length, struct error **e)
{
	cleanup_close int fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return error_set_errno(e, errno == ENOENT ? ERROR_NOT_FOUND : ERROR_SYSTEM, errno, "cannot open '%s'", path);
	/* Files of /proc say size 0, so grow until the end is seen. */
	size_t room = 4096, length = 0;
	cleanup_free char *text = xmalloc(room);
	for (;;) {
		if (length + 1 == room) {
			if (room > limit_bytes)
				return error_set(e, ERROR_TOO_LARGE, "'%s' is larger than %zu bytes", path, limit_bytes);
			room *= 2;
			text = xreallocarray(text, room, 1);
		}
		ssize_t n = read(fd, text + length, room - length - 1);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return error_set_errno(e, ERROR_SYSTEM, errno, "cannot read '%s'", path);
		if (n == 0)
			break;
		length += (size_t)n;
	}
	if (length > limit_bytes)
		return error_set(e, ERROR_TOO_LARGE, "'%s' is larger than %zu bytes", path, limit_bytes);
	text[length] = '\0';
	*ret_text = take_ptr(text);
	if (ret_length)
		*ret_length = length;
	return 0;
}

/* write(2) and fsync(2), but for tests. */
static ssize_t file_write(int fd, const char *data, size_t length)
{
	switch (fault_pass(FAULT_FILE_WRITE, NULL)) {
	case FAULT_ERROR:
		errno = EIO;
		return -1;
	case FAULT_SHORT:
		(void)!write(fd, data, length / 2);
		errno = ENOSPC;
		return -1;
	case FAULT_FULL:
		errno = ENOSPC;
		return -1;
	default:
		return write(fd, data, length);
	}
}

static int file_sync(int fd)
{
	if (fault_pass(FAULT_FILE_SYNC, NULL) == FAULT_ERROR) {
		errno = EIO;
		return -1;
	}
	return fsync(fd);
}

static int file_sync_folder_of(const char *path, struct error **e)
{
	cleanup_free char *folder = xstrdup(path);
	char *slash = strrchr(folder, '/');
	if (slash)
		slash[slash == folder ? 1 : 0] = '\0';
	cleanup_close int fd = open(slash ? folder : ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (fd < 0 || file_sync(fd) < 0)
		return error_set_errno(e, ERROR_SYSTEM, errno, "cannot sync the folder of '%s'", path);
	return 0;
}

int file_write_atomic(const char *path, const void *data, size_t length, mode_t mode, struct error **e)
{
	cleanup_free char *beside = xasprintf("%s.XXXXXX", path);
	cleanup_close int fd = mkostemp(beside, O_CLOEXEC);
	if (fd < 0)
		return error_set_errno(e, ERROR_SYSTEM, errno, "cannot create '%s'", beside);
	const char *at = data;
	size_t left = length;
	while (left > 0) {
		ssize_t n = file_write(fd, at, left);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			goto remove_beside;
		at += n;
		left -= (size_t)n;
	}
	if (fchmod(fd, mode) < 0 || file_sync(fd) < 0 || rename(beside, path) < 0)
		goto remove_beside;
	return file_sync_folder_of(path, e);

remove_beside:
	error_set_errno(e, ERROR_SYSTEM, errno, "cannot write '%s'", path);
	unlink(beside);
	return -1;
}

int file_make_folders(const char *path, mode_t mode, struct error **e)
{
	cleanup_free char *partial = xstrdup(path);
	for (char *slash = strchr(partial + 1, '/');; slash = strchr(slash + 1, '/')) {
		if (slash)
			*slash = '\0';
		if (mkdir(partial, mode) < 0 && errno != EEXIST)
			return error_set_errno(e, ERROR_SYSTEM, errno, "cannot make the folder '%s'", partial);
		if (!slash)
			return 0;
		*slash = '/';
	}
}

static int file_remove_one(const char *path, const struct stat *st, int kind, struct FTW *where)
{
	(void)st;
	(void)kind;
	(void)where;
	return remove(path);
}

int file_remove_tree(const char *path, struct error **e)
{
	if (nftw(path, file_remove_one, 16, FTW_DEPTH | FTW_PHYS) < 0 && errno != ENOENT)
		return error_set_errno(e, ERROR_SYSTEM, errno, "cannot remove '%s'", path);
	return 0;
}

char *file_tail(const char *path, size_t limit_bytes)
{
	cleanup_close int fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return xstrdup("");
	off_t size = lseek(fd, 0, SEEK_END);
	off_t from = size > (off_t)limit_bytes ? size - (off_t)limit_bytes : 0;
	char *text = xcalloc(limit_bytes + 1, 1);
	ssize_t n = pread(fd, text, limit_bytes, from);
	text[n > 0 ? n : 0] = '\0';
	return text;
}
