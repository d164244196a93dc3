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
#define HEAD_BYTES 4096 /* extensions that say the format are within */
#define HEAD_LENGTH_AT 100 /* from version 3 on */
#define HEAD_LENGTH_V2 72
#define BACKING_FORMAT 0xe2792acaU /* extensions: u32 what, u32 length, so many bytes, as many as make it a multiple of 8 */
#define EXTENSIONS_END 0
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

/* Where extensions begin. */
static bool skip_head(struct bytes *bytes, uint32_t version)
{
	struct bytes length_at = {.data = bytes->data, .size_bytes = bytes->size_bytes, .at = HEAD_LENGTH_AT};
	uint32_t length = HEAD_LENGTH_V2;
	if (version > 2 && (bytes->size_bytes < HEAD_LENGTH_AT || !bytes_take_u32(&length_at, &length)))
		return false;
	if (length > bytes->size_bytes)
		return false;
	bytes->at = length;
	return true;
}

static bool says_qcow2(struct bytes *bytes, uint32_t version)
{
	uint32_t what, length;
	const uint8_t *data;
	if (!skip_head(bytes, version))
		return false;
	while (bytes_take_u32(bytes, &what) && bytes_take_u32(bytes, &length) && what != EXTENSIONS_END) {
		if (length > HEAD_BYTES || !bytes_take(bytes, (length + 7) / 8 * 8, &data))
			return false;
		if (what == BACKING_FORMAT)
			return length == strlen("qcow2") && memcmp(data, "qcow2", length) == 0;
	}
	return false;
}

int image_backing_read(const char *path, struct image_backing *ret, struct error **e)
{
	uint8_t head[HEAD_BYTES];
	char name[NAME_MAX_BYTES + 1] = "";
	uint32_t magic, version, length;
	uint64_t at;
	cleanup_close int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
	if (fd < 0)
		return error_set_errno(e, errno == ENOENT ? ERROR_NOT_FOUND : ERROR_SYSTEM, errno, "cannot read the image %s", path);
	const ssize_t n = pread(fd, head, sizeof(head), 0);
	struct bytes bytes = {.data = head, .size_bytes = n < 0 ? 0 : (size_t)n};
	if (!bytes_take_u32(&bytes, &magic) || magic != QCOW2_MAGIC || !bytes_take_u32(&bytes, &version) || !bytes_take_u64(&bytes, &at) ||
	    !bytes_take_u32(&bytes, &length))
		return error_set(e, ERROR_INVALID_ARGUMENT, "%s is not a qcow2 image", path);
	*ret = (struct image_backing){0};
	if (at == 0)
		return 0;
	if (length == 0 || length > NAME_MAX_BYTES || at > INT64_MAX || pread(fd, name, length, (off_t)at) != (ssize_t)length)
		return error_set(e, ERROR_INVALID_ARGUMENT, "%s: the name of its backing file is damaged", path);
	const char *file = file_name(name);
	if (!file || !*file)
		return 0;
	*ret = (struct image_backing){.path = beside(path, file), .is_qcow2 = says_qcow2(&bytes, version)};
	return 0;
}
