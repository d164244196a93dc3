/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The analysis of a stream in a file; see stream_analysis.h. The file is read twice through a window of bounded size: once to
 * learn what there is, and once more to compress what was found nowhere else. The devices' state at its end is read whole.
 */
#include "relay/stream_analysis.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/xalloc.h"
#include "qemu/device_state.h"
#include "qemu/stream_reader.h"
#include "relay/page_census.h"

#define WINDOW_BYTES (1 << 20)
#define STATE_MAX_BYTES (256 << 20)
#define COMMANDS_MAX 10000 /* that are named */

struct analysis {
	const char *path;
	int fd;
	uint64_t size_bytes;
	struct page_census *census;
	uint64_t pages, compressed_pages; /* of the first walk, and so far of the second */
	uint64_t zeros, deltas, compressed;
	json_t *machine, *blocks, *commands, *sizes, *unread;
	uint32_t ram_id;
	bool has_ram;
	uint64_t state_at; /* 0: not known */
	size_t description_bytes;
};

static void analysis_done(struct analysis *analysis)
{
	if (analysis->fd >= 0)
		close(analysis->fd);
	page_census_free(analysis->census);
	json_decref(analysis->machine);
	json_decref(analysis->blocks);
	json_decref(analysis->commands);
	json_decref(analysis->sizes);
	json_decref(analysis->unread);
}

static int read_at(const struct analysis *analysis, void *ret, size_t count, uint64_t offset, size_t *ret_got, struct error **e)
{
	size_t got = 0;
	while (got < count) {
		ssize_t r = pread(analysis->fd, (uint8_t *)ret + got, count - got, (off_t)(offset + got));
		if (r < 0 && errno == EINTR)
			continue;
		if (r < 0)
			return error_set_errno(e, ERROR_SYSTEM, errno, "cannot read '%s'", analysis->path);
		if (r == 0)
			break;
		got += (size_t)r;
	}
	*ret_got = got;
	return 0;
}

/* ---- the walks ---- */

/* Each item to `heed`, until the stream's end or what cannot be read. */
static int walk(struct analysis *analysis, int (*heed)(struct analysis *analysis, const struct stream_item *item, struct error **e),
		struct error **e)
{
	struct stream_reader *reader = stream_reader_new();
	cleanup_free uint8_t *window = xmalloc(WINDOW_BYTES);
	size_t filled = 0, at = 0;
	bool over = false;
	int r = 0;
	while (r == 0) {
		struct stream_item item;
		int found = stream_reader_next(reader, window + at, filled - at, &item, e);
		if (found < 0) {
			r = -1;
		} else if (found > 0) {
			if (item.kind == STREAM_REST)
				item.offset = stream_reader_offset(reader);
			r = heed(analysis, &item, e);
			at += item.size_bytes;
			if (item.kind == STREAM_REST)
				break;
		} else if (over) {
			r = stream_reader_finish(reader, e);
			break;
		} else {
			size_t got = 0;
			memmove(window, window + at, filled - at);
			filled -= at;
			at = 0;
			r = read_at(analysis, window + filled, WINDOW_BYTES - filled, stream_reader_offset(reader) + filled, &got, e);
			filled += got;
			over = got == 0;
		}
	}
	stream_reader_free(reader);
	return r;
}

static const char *command_name(enum stream_command command)
{
	static const char *const names[] = {
		[STREAM_OPEN_RETURN_PATH] = "open return path",
		[STREAM_PING] = "ping",
		[STREAM_POSTCOPY_ADVISE] = "post-copy advise",
		[STREAM_POSTCOPY_LISTEN] = "post-copy listen",
		[STREAM_POSTCOPY_RUN] = "post-copy run",
		[STREAM_POSTCOPY_DISCARD] = "post-copy discard",
		[STREAM_PACKAGED] = "package",
		[STREAM_ENABLE_COLO] = "enable colo",
		[STREAM_POSTCOPY_RESUME] = "post-copy resume",
		[STREAM_RECEIVED_BITMAP] = "received bitmap",
		[STREAM_SWITCHOVER_START] = "switchover start",
	};
	return command < sizeof(names) / sizeof(names[0]) && names[command] ? names[command] : "unknown";
}

static void add_block(struct analysis *analysis, const struct stream_block *block)
{
	json_array_append_new(analysis->blocks,
			      json_pack("{ss sI}", "name", block->name, "size_bytes", (json_int_t)block->size_bytes));
	json_object_set_new(analysis->sizes, block->name, json_sprintf("0x%016" PRIx64, block->size_bytes));
}

static int learn(struct analysis *analysis, const struct stream_item *item, struct error **e)
{
	(void)e;
	switch (item->kind) {
	case STREAM_CONFIGURATION:
		analysis->machine = json_string(item->name);
		break;
	case STREAM_SECTION:
		if (item->section.kind == STREAM_SECTION_START) {
			analysis->has_ram = true;
			analysis->ram_id = item->section.id;
		}
		break;
	case STREAM_BLOCK:
		add_block(analysis, item->block);
		break;
	case STREAM_COMMAND:
		if (json_array_size(analysis->commands) < COMMANDS_MAX)
			json_array_append_new(analysis->commands, json_string(command_name(item->command)));
		break;
	case STREAM_ZERO:
		analysis->zeros++;
		break;
	case STREAM_PAGE:
		analysis->pages++;
		page_census_add(analysis->census, item->data);
		break;
	case STREAM_DELTA:
		analysis->deltas++;
		break;
	case STREAM_COMPRESSED:
		analysis->compressed++;
		break;
	case STREAM_DESCRIPTION:
		analysis->description_bytes = item->offset;
		break;
	case STREAM_REST:
		if (item->devices)
			analysis->state_at = item->offset;
		else
			analysis->unread = json_pack("{sI ss}", "offset", (json_int_t)item->offset, "why", item->why);
		break;
	default:
		break;
	}
	return 0;
}

static int compress(struct analysis *analysis, const struct stream_item *item, struct error **e)
{
	if (item->kind != STREAM_PAGE)
		return 0;
	if (analysis->compressed_pages == analysis->pages)
		return error_set(e, ERROR_DATA_STREAM, "'%s' grows while it is read", analysis->path);
	analysis->compressed_pages++;
	page_census_compress(analysis->census, item->data);
	return 0;
}

/* ---- the devices ---- */

/* *ret: {} where nothing describes them. */
static int decode_devices(struct analysis *analysis, json_t **ret, uint64_t *ret_state_bytes, struct error **e)
{
	const uint64_t size = analysis->size_bytes - analysis->state_at;
	cleanup_json json_t *description = NULL;
	struct error *problem = NULL;
	size_t got = 0, begins_at = 0;
	if (size > STATE_MAX_BYTES)
		return error_set(e, ERROR_TOO_LARGE, "%" PRIu64 " bytes follow behind the memory; at most %d are devices' state", size,
				 STATE_MAX_BYTES);
	cleanup_free uint8_t *state = xmalloc(size > 0 ? size : 1);
	if (read_at(analysis, state, size, analysis->state_at, &got, e) < 0)
		return -1;
	if (device_state_description(state, got, &description, &begins_at, &problem) < 0) {
		if (problem->code != ERROR_NOT_FOUND)
			return error_move(e, problem);
		error_free(problem);
		*ret = json_object();
		*ret_state_bytes = got;
		return 0;
	}
	analysis->description_bytes = got - begins_at;
	*ret_state_bytes = begins_at;
	return device_state_decode(state, begins_at, analysis->state_at, description, ret, e);
}

/* ---- all of it ---- */

static json_t *pages_to_json(const struct page_counts *counts)
{
	return json_pack("{sI sI sI sI sI sI}", "pages", (json_int_t)counts->pages, "zero", (json_int_t)counts->zero, "in_images",
			 (json_int_t)counts->in_images, "duplicates", (json_int_t)counts->duplicates, "others",
			 (json_int_t)counts->others, "others_compressed_bytes", (json_int_t)counts->compressed_bytes);
}

static json_t *state_to_json(const struct analysis *analysis, json_t *devices)
{
	json_t *state = json_object();
	if (analysis->has_ram) {
		cleanup_free char *label = xasprintf("ram (%u)", analysis->ram_id);
		json_object_set_new(state, label, json_pack("{sO}", "section sizes", analysis->sizes));
	}
	json_object_update(state, devices);
	return state;
}

static int open_stream(struct analysis *analysis, struct error **e)
{
	struct stat about;
	analysis->fd = open(analysis->path, O_RDONLY | O_CLOEXEC);
	if (analysis->fd < 0)
		return error_set_errno(e, errno == ENOENT ? ERROR_NOT_FOUND : ERROR_SYSTEM, errno, "cannot open '%s'", analysis->path);
	if (fstat(analysis->fd, &about) < 0)
		return error_set_errno(e, ERROR_SYSTEM, errno, "cannot look at '%s'", analysis->path);
	if (!S_ISREG(about.st_mode))
		return error_set(e, ERROR_INVALID_ARGUMENT, "'%s' is no regular file; keep the stream in one", analysis->path);
	analysis->size_bytes = (uint64_t)about.st_size;
	return 0;
}

static int analyze(struct analysis *analysis, const char *const images[], size_t image_count, json_t **ret, struct error **e)
{
	cleanup_json json_t *devices = NULL;
	uint64_t state_bytes = 0;
	if (open_stream(analysis, e) < 0 || walk(analysis, learn, e) < 0)
		return -1;
	if (analysis->state_at == 0)
		devices = json_object();
	else if (decode_devices(analysis, &devices, &state_bytes, e) < 0)
		return -1;
	for (size_t i = 0; i < image_count; i++)
		if (page_census_search(analysis->census, images[i], e) < 0)
			return -1;
	if (walk(analysis, compress, e) < 0)
		return -1;
	if (analysis->compressed_pages != analysis->pages)
		return error_set(e, ERROR_DATA_STREAM, "'%s' shrinks while it is read", analysis->path);
	const struct page_counts counts = page_census_counts(analysis->census);
	*ret = json_pack("{sI sO? sO sO s{sI sI sI sI} so so sI sI sO?}", "bytes", (json_int_t)analysis->size_bytes, "machine",
			 analysis->machine, "blocks", analysis->blocks, "commands", analysis->commands, "records", "zero",
			 (json_int_t)analysis->zeros, "page", (json_int_t)analysis->pages, "delta", (json_int_t)analysis->deltas,
			 "compressed", (json_int_t)analysis->compressed, "pages", pages_to_json(&counts), "state",
			 state_to_json(analysis, devices), "state_bytes", (json_int_t)state_bytes, "description_bytes",
			 (json_int_t)analysis->description_bytes, "unread", analysis->unread);
	return 0;
}

int stream_analyze(const char *path, const char *const images[], size_t image_count, json_t **ret, struct error **e)
{
	struct analysis analysis = {.path = path, .fd = -1, .census = page_census_new()};
	analysis.blocks = json_array();
	analysis.commands = json_array();
	analysis.sizes = json_object();
	int r = analyze(&analysis, images, image_count, ret, e);
	analysis_done(&analysis);
	return r < 0 ? error_wrap(e, "%s", path) : 0;
}
