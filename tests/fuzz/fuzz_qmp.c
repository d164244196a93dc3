/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The byte stream of QEMU's monitor (src/qemu/qmp.c): lines, greeting, replies, events. The input is what QEMU sends.
 *
 * Properties: however the bytes are cut into reads, the same events and replies come out, and the connection ends at the
 * same place; a number that jansson cannot hold never ends it.
 */
#include "qemu/qmp.c" /* for the functions between the socket and those who wait */

#include "fuzz.h"

#define COMMANDS 4

struct listener {
	char *text;
	size_t length;
	FILE *file;
};

static void on_event(void *user, const char *name, const json_t *data, int64_t received_us)
{
	struct listener *listener = user;
	cleanup_free char *text = data ? json_text(data) : xstrdup("-");
	REQUIRE(received_us == 1);
	fprintf(listener->file, "event %s %s\n", name, text);
}

/* All that comes out when the input is read `chunk` bytes at a time. The caller frees it. */
static char *read_in_chunks(const uint8_t *data, size_t size, size_t chunk)
{
	struct listener listener = {0};
	listener.file = open_memstream(&listener.text, &listener.length);
	struct qmp qmp = {.fd = -1, .state = QMP_GREETING, .callbacks = {.event = on_event, .user = &listener}};
	struct command commands[COMMANDS] = {0};
	pthread_mutex_init(&qmp.lock, NULL);
	pthread_cond_init(&qmp.changed, NULL);
	for (int i = 0; i < COMMANDS; i++) { /* ids 2, 4, 6 and one out of band, 9 */
		commands[i].id = i == 3 ? 9 : 2 * (i + 1);
		commands[i].next = qmp.pending;
		pthread_cond_init(&commands[i].answered, NULL);
		qmp.pending = &commands[i];
		qmp.in_band_count++;
	}
	char *reason = NULL;
	for (size_t at = 0, n; at < size; at += n) {
		n = size - at < chunk ? size - at : chunk;
		qmp_make_room(&qmp);
		memcpy(qmp.buffer + qmp.buffer_used, data + at, n);
		qmp.buffer_used += n;
		if (!qmp_take_lines(&qmp, 1, &reason))
			break;
		REQUIRE(qmp.buffer_used <= LINE_LIMIT_BYTES && qmp.buffer_searched <= qmp.buffer_used);
	}
	for (int i = 0; i < COMMANDS; i++) {
		cleanup_free char *text = commands[i].reply ? json_text(commands[i].reply) : xstrdup("-");
		fprintf(listener.file, "reply %lld %s\n", (long long)commands[i].id, text);
		if (commands[i].reply) {
			cleanup_json json_t *value = NULL;
			struct error *e = NULL;
			if (take_return(commands[i].reply, "a-command", &value, &e) < 0)
				fuzz_check_error(e);
		}
		json_decref(commands[i].reply);
		pthread_cond_destroy(&commands[i].answered);
	}
	fprintf(listener.file, "%s: state %d oob %d\n", reason ? reason : "open", (int)qmp.state, qmp.has_oob);
	fclose(listener.file);
	free(reason);
	free(qmp.buffer);
	pthread_cond_destroy(&qmp.changed);
	pthread_mutex_destroy(&qmp.lock);
	return listener.text;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	if (size > READ_CHUNK_BYTES)
		return 0;
	cleanup_free char *whole = read_in_chunks(data, size, READ_CHUNK_BYTES);
	cleanup_free char *parts = read_in_chunks(data, size, size ? 1 + data[size / 2] % 61 : 1);
	REQUIRE(strcmp(whole, parts) == 0);

	/* As a number of a QEMU that is sane otherwise. */
	size_t digits = 0;
	while (digits < size && digits < 40 && data[digits] >= '0' && data[digits] <= '9')
		digits++;
	if (digits > 0 && data[0] != '0') {
		cleanup_free char *line = xasprintf("{\"return\": {\"n\": %.*s}, \"id\": 2}", (int)digits, (const char *)data);
		json_t *value = NULL;
		REQUIRE(qmp_parse(line, strlen(line), &value, NULL) == 0);
		REQUIRE(json_integer_value(json_object_get(json_object_get(value, "return"), "n")) > 0);
		json_decref(value);
	}
	return 0;
}
