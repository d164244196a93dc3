/* SPDX-License-Identifier: Apache-2.0 */
/* ferry stream analyze: what is in a migration stream that was kept in a file. Asks no ferryd. */
#include <stdio.h>
#include <stdlib.h>

#include "base/cleanup.h"
#include "base/xalloc.h"
#include "cli/output.h"
#include "cli/remote.h"
#include "cli/units.h"
#include "qemu/stream.h"
#include "relay/stream_analysis.h"

static void show_blocks(const json_t *blocks)
{
	const json_t *block;
	size_t i;
	if (json_array_size(blocks) == 0)
		return;
	struct table *table = table_new(2);
	table_add(table, "MEMORY", "SIZE");
	json_array_foreach(blocks, i, block) {
		char size[UNITS_SIZE];
		table_add(table, output_string(block, "name"), units_format_bytes(size, output_number(block, "size_bytes")));
	}
	table_print(table);
}

static void show_pages_line(const char *what, int64_t count, int64_t all)
{
	if (count > 0)
		printf("  %-12s %12lld  %5.1f %%\n", what, (long long)count, 100.0 * (double)count / (double)all);
}

static void show_pages(const json_t *analysis)
{
	const json_t *records = json_object_get(analysis, "records"), *pages = json_object_get(analysis, "pages");
	const int64_t zero_records = output_integer(records, "zero"), others = output_integer(pages, "others");
	const int64_t deltas = output_integer(records, "delta"), compressed = output_integer(records, "compressed");
	const int64_t all = zero_records + output_integer(records, "page") + deltas + compressed;
	char whole[UNITS_SIZE], small[UNITS_SIZE];
	printf("%-14s %12lld\n", "Pages", (long long)all);
	if (all == 0)
		return;
	show_pages_line("zero", zero_records + output_integer(pages, "zero"), all);
	show_pages_line("in images", output_integer(pages, "in_images"), all);
	show_pages_line("duplicates", output_integer(pages, "duplicates"), all);
	show_pages_line("others", others, all);
	show_pages_line("deltas", deltas, all);
	show_pages_line("compressed", compressed, all);
	if (others > 0) {
		const double bytes = (double)others * STREAM_PAGE_BYTES, less = output_number(pages, "others_compressed_bytes");
		printf("The others have %s; zstd makes %s of them, %.1f times less.\n", units_format_bytes(whole, bytes),
		       units_format_bytes(small, less), bytes / less);
	}
}

static void show_devices(const json_t *analysis)
{
	char state[UNITS_SIZE], description[UNITS_SIZE];
	const json_t *fields = json_object_get(analysis, "state");
	const size_t devices = json_object_size(fields) - (json_array_size(json_object_get(analysis, "blocks")) > 0 ? 1 : 0);
	if (output_number(analysis, "state_bytes") <= 0)
		return;
	units_format_bytes(state, output_number(analysis, "state_bytes"));
	if (output_number(analysis, "description_bytes") > 0)
		printf("Devices: %zu sections, %s, and %s that describe them; --output json shows their fields.\n", devices, state,
		       units_format_bytes(description, output_number(analysis, "description_bytes")));
	else
		printf("Devices: %s, and nothing that describes them.\n", state);
}

static void show(const json_t *analysis, const char *path)
{
	char size[UNITS_SIZE];
	const json_t *unread = json_object_get(analysis, "unread");
	printf("%s: %s, machine type %s\n", path, units_format_bytes(size, output_number(analysis, "bytes")),
	       output_string(analysis, "machine"));
	show_blocks(json_object_get(analysis, "blocks"));
	show_pages(analysis);
	show_devices(analysis);
	if (json_is_object(unread))
		printf("Not read from byte %lld on: %s.\n", (long long)output_integer(unread, "offset"), output_string(unread, "why"));
}

int stream_run(struct cli *cli)
{
	cleanup_error struct error *e = NULL;
	cleanup_json json_t *analysis = NULL;
	cleanup_free const char **images = xreallocarray(NULL, cli->option_count + 1, sizeof(*images));
	size_t image_count = 0;
	while ((images[image_count] = cli_option_nth(cli, "image", image_count)))
		image_count++;
	if (stream_analyze(cli->arguments[0], images, image_count, &analysis, &e) < 0)
		return cli_fail(cli, e);
	if (cli->json)
		output_json(analysis);
	else
		show(analysis, cli->arguments[0]);
	return EXIT_COMPLETED;
}
