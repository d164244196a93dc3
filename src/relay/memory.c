/* SPDX-License-Identifier: Apache-2.0 */
/* Memory of the relay; see memory.h. What is seen twice is a file without a name, mapped twice into a range that was reserved for both. */
#include "relay/memory.h"

#include <assert.h>
#include <errno.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/cleanup.h"

uint8_t *memory_map(size_t size_bytes)
{
	void *at = mmap(NULL, size_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	return at == MAP_FAILED ? NULL : at;
}

void memory_unmap(uint8_t *memory, size_t size_bytes)
{
	if (memory)
		munmap(memory, size_bytes);
}

static int map_twice(uint8_t *at, size_t size_bytes, struct error **e)
{
	cleanup_close int fd = memfd_create("ferry-relay", MFD_CLOEXEC);
	if (fd < 0 || ftruncate(fd, (off_t)size_bytes) < 0)
		return error_set_errno(e, ERROR_SYSTEM, errno, "no memory for the relay");
	for (int i = 0; i < 2; i++)
		if (mmap(at + (size_t)i * size_bytes, size_bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, 0) == MAP_FAILED)
			return error_set_errno(e, ERROR_SYSTEM, errno, "no memory for the relay");
	return 0;
}

int memory_map_twice(size_t size_bytes, uint8_t **ret, struct error **e)
{
	assert(size_bytes % 4096 == 0);
	uint8_t *at = mmap(NULL, 2 * size_bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (at == MAP_FAILED)
		return error_set_errno(e, ERROR_SYSTEM, errno, "no room for the relay's memory");
	if (map_twice(at, size_bytes, e) < 0) {
		memory_unmap(at, 2 * size_bytes);
		return -1;
	}
	*ret = at;
	return 0;
}
