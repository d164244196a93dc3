/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How much of its memory a guest has touched, and how fast it writes: what a prediction of a move is made from. Neither has an
 * effect on the guest.
 *
 * The first is the kernel's count. Of small guests it is read of the one mapping that is the guest's memory: a QEMU that emulates
 * has a hundred MiB of its own beside it, which counts. Of large ones it is the whole process's, as the kernel would look at every
 * page of the mapping to answer.
 */
#include "vm/qemu_machine.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/file.h"
#include "base/xalloc.h"

#define MAPPINGS_BYTES_MAX ((size_t)8 * 1024 * 1024)
#define LOOKED_THROUGH_BYTES_MAX (UINT64_C(4) << 30)
/* Pages that are hashed, twice, to see how fast the guest writes: as many as take tens of milliseconds, within what QEMU allows. */
#define DIRTY_RATE_PAGES 16384
#define DIRTY_RATE_PER_GIB_MIN 512

/* ---- memory in use ---- */

uint64_t qemu_memory_of_mappings(const char *smaps, uint64_t memory_bytes)
{
	bool guests = false;
	uint64_t found_bytes = 0;
	for (const char *line = smaps; line && *line; line = strchr(line, '\n'), line = line ? line + 1 : NULL) {
		unsigned long long from, to, resident_kib;
		char access[5];
		if (sscanf(line, "%llx-%llx %4s", &from, &to, access) == 3)
			/* Not what QEMU has translated of an emulated guest, which is executable and may be as large. */
			guests = to - from == memory_bytes && strncmp(access, "rw-", 3) == 0;
		else if (guests && sscanf(line, "Rss: %llu kB", &resident_kib) == 1)
			found_bytes += resident_kib * 1024;
	}
	return found_bytes < memory_bytes ? found_bytes : memory_bytes;
}

/* All of the process that is not a file's. */
static int process_memory(const struct machine *machine, uint64_t *ret_bytes, struct error **e)
{
	cleanup_free char *path = xasprintf("/proc/%d/statm", (int)machine->process.pid);
	cleanup_free char *text = NULL;
	unsigned long long resident, shared;
	if (file_read(path, 4096, &text, NULL, e) < 0)
		return -1;
	if (sscanf(text, "%*u %llu %llu", &resident, &shared) != 2 || shared > resident)
		return error_set(e, ERROR_SYSTEM, "'%s' is not as expected", path);
	*ret_bytes = (resident - shared) * (uint64_t)sysconf(_SC_PAGESIZE);
	return 0;
}

static int look_closely(struct machine *machine, uint64_t process_bytes, uint64_t memory_bytes, uint64_t *ret_bytes, struct error **e)
{
	*ret_bytes = 0;
	if (process_bytes <= LOOKED_THROUGH_BYTES_MAX) {
		cleanup_free char *path = xasprintf("/proc/%d/smaps", (int)machine->process.pid);
		cleanup_free char *text = NULL;
		if (file_read(path, MAPPINGS_BYTES_MAX, &text, NULL, e) < 0)
			return -1;
		*ret_bytes = qemu_memory_of_mappings(text, memory_bytes);
	}
	/* Memory in huge pages or in several parts is not found there. */
	if (*ret_bytes == 0)
		*ret_bytes = process_bytes < memory_bytes ? process_bytes : memory_bytes;
	__atomic_store_n(&machine->other_bytes, (int64_t)(process_bytes - *ret_bytes), __ATOMIC_RELAXED);
	return 0;
}

int qemu_memory_use(struct machine *machine, bool closely, uint64_t *ret_total_bytes, uint64_t *ret_used_bytes, struct error **e)
{
	const uint64_t memory_bytes = (uint64_t)json_integer_value(json_object_get(machine->record, "memory_bytes"));
	const int64_t other_bytes = __atomic_load_n(&machine->other_bytes, __ATOMIC_RELAXED);
	uint64_t process_bytes, guest_bytes = 0;
	if (process_memory(machine, &process_bytes, e) < 0)
		return -1;
	if (closely) {
		if (look_closely(machine, process_bytes, memory_bytes, &guest_bytes, e) < 0)
			return -1;
	} else if (other_bytes >= 0 && process_bytes > (uint64_t)other_bytes) {
		guest_bytes = process_bytes - (uint64_t)other_bytes;
	}
	*ret_total_bytes = memory_bytes;
	*ret_used_bytes = guest_bytes < memory_bytes ? guest_bytes : memory_bytes;
	return 0;
}

/* ---- how fast it writes ---- */

/* QEMU before 8.2 counts in seconds, and does not know the argument that says otherwise. */
static void add_unit(json_t *arguments, bool in_ms)
{
	if (in_ms)
		json_object_set_new(arguments, "calc-time-unit", json_string("millisecond"));
}

/* By hashing some pages twice: the one of QEMU's modes that does not slow the guest down, works with every accelerator, and
 * does not crash QEMU 7.2 under TCG. It leaves blocks of memory below 128 MiB out. */
int qemu_measure_dirty_rate(struct machine *machine, unsigned int for_ms, struct error **e)
{
	const bool in_ms = for_ms % 1000 != 0;
	const uint64_t gib = (machine->definition->memory_mib + 1023) / 1024;
	const uint64_t pages = DIRTY_RATE_PAGES / gib < DIRTY_RATE_PER_GIB_MIN ? DIRTY_RATE_PER_GIB_MIN : DIRTY_RATE_PAGES / gib;
	json_t *arguments = json_pack("{s:i, s:I, s:s}", "calc-time", (int)(in_ms ? for_ms : for_ms / 1000), "sample-pages",
				      (json_int_t)pages, "mode", "page-sampling");
	add_unit(arguments, in_ms);
	if (machine_command(machine, "calc-dirty-rate", arguments, e) < 0)
		return -1;
	__atomic_store_n(&machine->dirty_rate_in_ms, in_ms, __ATOMIC_RELAXED);
	return 0;
}

int qemu_dirty_rate(struct machine *machine, uint64_t *ret_bytes_per_s, unsigned int *ret_for_ms, struct error **e)
{
	cleanup_json json_t *reply = NULL;
	const bool in_ms = __atomic_load_n(&machine->dirty_rate_in_ms, __ATOMIC_RELAXED);
	json_t *arguments = json_object();
	add_unit(arguments, in_ms);
	if (qmp_execute(machine->qmp, "query-dirty-rate", arguments, &reply, QMP_TIMEOUT_MS, e) < 0)
		return -1;
	const char *status = json_string_value(json_object_get(reply, "status"));
	if (!status || strcmp(status, "measured") != 0)
		return 0;
	const json_int_t mib_per_s = json_integer_value(json_object_get(reply, "dirty-rate"));
	*ret_for_ms = (unsigned int)json_integer_value(json_object_get(reply, "calc-time")) * (in_ms ? 1 : 1000);
	/* It says whole MiB a second, cut off. */
	*ret_bytes_per_s = mib_per_s > 0 ? ((uint64_t)mib_per_s << 20) + (1 << 19) : 0;
	return 1;
}
