/* SPDX-License-Identifier: Apache-2.0 */
/* Which file an image stands on; see image_chain.h. */
#include "qemu/image_chain.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/cleanup.h"
#include "base/xalloc.h"

#define QCOW2_MAGIC 0x514649fbU
#define HEAD_BYTES 20 /* magic, version, where the name is, how long it is */
#define NAME_MAX_BYTES 1023

/* A name that QEMU would not take for a file's: "json:…", "nbd://…"; "file:…" is one. */
static const char *file_name(const char *name)
{
	const size_t word = strcspn(name, ":/");
	if (name[word] != ':')
		return name;
	return strncmp(name, "file:", strlen("file:")) == 0 ? name + strlen("file:") : NULL;
}

static char *beside(const char *path, const char *name)
{
	const char *slash = strrchr(path, '/');
	if (*name == '/' || !slash)
		return xstrdup(name);
	return xasprintf("%.*s/%s", (int)(slash - path), path, name);
}

int image_backing_path(const char *path, char **ret, struct error **e)
{
	uint8_t head[HEAD_BYTES];
	char name[NAME_MAX_BYTES + 1] = "";
	uint32_t magic, version, length;
	uint64_t at;
	cleanup_close int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
	if (fd < 0)
		return error_set_errno(e, errno == ENOENT ? ERROR_NOT_FOUND : ERROR_SYSTEM, errno, "cannot read the image %s", path);
	*ret = NULL;
	const ssize_t n = pread(fd, head, sizeof(head), 0);
	struct bytes bytes = {.data = head, .size_bytes = n < 0 ? 0 : (size_t)n};
	if (!bytes_take_u32(&bytes, &magic) || magic != QCOW2_MAGIC || !bytes_take_u32(&bytes, &version) || !bytes_take_u64(&bytes, &at) ||
	    !bytes_take_u32(&bytes, &length) || at == 0)
		return 0;
	if (length == 0 || length > NAME_MAX_BYTES || at > INT64_MAX || pread(fd, name, length, (off_t)at) != (ssize_t)length)
		return error_set(e, ERROR_INVALID_ARGUMENT, "%s: the name of its backing file is damaged", path);
	const char *file = file_name(name);
	if (file && *file)
		*ret = beside(path, file);
	return 0;
}
