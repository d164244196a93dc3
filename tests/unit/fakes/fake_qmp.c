/* SPDX-License-Identifier: Apache-2.0 */
/* A scripted QMP server for tests; see fake_qmp.h. */
#include "fake_qmp.h"

#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/xalloc.h"

#define COMMANDS_MAX 64

struct fake_qmp {
	const struct fake_qmp_step *steps;
	unsigned long count;
	int fd;
	int received_fd;
	pthread_t thread;
	sem_t gate;
	json_int_t ids[COMMANDS_MAX]; /* of the expected commands */
	unsigned int id_count;
	char *failure;
	char *line;
	size_t used, room;
};

static bool fail(struct fake_qmp *fake, char *why)
{
	free(fake->failure);
	fake->failure = why;
	return false;
}

/* Where in a JSON object a reader is. */
struct place {
	unsigned int depth;
	bool in_string, escaped;
};

/* Whether this byte ends the object. */
static bool ends_object(struct place *place, char byte)
{
	if (place->in_string) {
		place->in_string = place->escaped || byte != '"';
		place->escaped = !place->escaped && byte == '\\';
		return false;
	}
	place->in_string = byte == '"';
	if (byte == '{' || byte == '[')
		place->depth++;
	return (byte == '}' || byte == ']') && --place->depth == 0;
}

/* One object, in fake->line, as QEMU takes it, with or without a newline behind it; false at the end of the connection. Byte by
 * byte: tests are short. */
static bool read_line(struct fake_qmp *fake)
{
	struct place place = {0};
	fake->used = 0;
	for (;;) {
		if (fake->used + 1 >= fake->room)
			fake->line = xreallocarray(fake->line, fake->room = fake->room * 2 + 256, 1);
		char control[CMSG_SPACE(sizeof(int))];
		struct iovec iovec = {.iov_base = fake->line + fake->used, .iov_len = 1};
		struct msghdr message = {
			.msg_iov = &iovec, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof(control)};
		ssize_t n = recvmsg(fake->fd, &message, MSG_CMSG_CLOEXEC);
		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return false;
		struct cmsghdr *header = CMSG_FIRSTHDR(&message);
		if (header && header->cmsg_type == SCM_RIGHTS) {
			if (fake->received_fd >= 0)
				close(fake->received_fd);
			memcpy(&fake->received_fd, CMSG_DATA(header), sizeof(int));
		}
		if (fake->line[fake->used] == '\n')
			continue;
		if (ends_object(&place, fake->line[fake->used++])) {
			fake->line[fake->used] = '\0';
			return true;
		}
	}
}

static bool send_text(struct fake_qmp *fake, const char *text, size_t chunk)
{
	for (size_t left = strlen(text); left > 0;) {
		ssize_t n = send(fake->fd, text, left < chunk ? left : chunk, MSG_NOSIGNAL);
		if (n < 0)
			return fail(fake, xasprintf("cannot send '%.60s': %s", text, strerror(errno)));
		text += n;
		left -= (size_t)n;
	}
	return true;
}

/* Put the ids in the place of $N; the caller frees it. */
static char *fill_in(struct fake_qmp *fake, const char *text)
{
	char *filled = xstrdup("");
	while (*text) {
		size_t plain = strcspn(text, "$");
		char *more = xasprintf("%s%.*s", filled, (int)plain, text);
		free(filled);
		filled = more;
		text += plain;
		if (*text != '$')
			continue;
		char *end;
		unsigned long n = strtoul(text + 1, &end, 10);
		json_int_t id = n >= 1 && n <= fake->id_count ? fake->ids[n - 1] : -1;
		more = xasprintf("%s%lld", filled, (long long)id);
		free(filled);
		filled = more;
		text = end;
	}
	return filled;
}

static bool expect(struct fake_qmp *fake, const char *wanted, bool with_fd)
{
	if (fake->received_fd >= 0)
		close(take_fd(fake->received_fd));
	if (!read_line(fake))
		return fail(fake, xasprintf("'%s' expected, but the connection ended", wanted));
	cleanup_json json_t *message = json_loads(fake->line, JSON_REJECT_DUPLICATES, NULL);
	const char *verb = json_object_get(message, "exec-oob") ? "exec-oob" : "execute";
	const char *name = json_string_value(json_object_get(message, verb));
	const json_t *id = json_object_get(message, "id");
	if (!name || !json_is_integer(id) || fake->id_count == COMMANDS_MAX)
		return fail(fake, xasprintf("'%s' expected, but '%s' came", wanted, fake->line));
	fake->ids[fake->id_count++] = json_integer_value(id);

	size_t name_length = strcspn(wanted, " ");
	cleanup_free char *got = xasprintf("%s%s", strcmp(verb, "execute") == 0 ? "" : "exec-oob:", name);
	if (strlen(got) != name_length || strncmp(got, wanted, name_length) != 0)
		return fail(fake, xasprintf("'%s' expected, but '%s' came", wanted, fake->line));
	if (wanted[name_length]) {
		cleanup_json json_t *arguments = json_loads(wanted + name_length + 1, 0, NULL);
		if (!arguments || !json_equal(arguments, json_object_get(message, "arguments")))
			return fail(fake, xasprintf("'%s' expected, but '%s' came", wanted, fake->line));
	}
	if (with_fd != (fake->received_fd >= 0))
		return fail(fake, xasprintf("'%s' came %s a descriptor", wanted, with_fd ? "without" : "with"));
	return true;
}

static bool read_bytes(struct fake_qmp *fake, unsigned long count)
{
	for (char byte; count > 0; count--)
		if (recv(fake->fd, &byte, 1, 0) <= 0)
			return fail(fake, xasprintf("%lu bytes more expected, but the connection ended", count));
	return true;
}

static bool serve(struct fake_qmp *fake)
{
	while (read_line(fake)) {
		cleanup_json json_t *message = json_loads(fake->line, 0, NULL);
		json_int_t id = json_integer_value(json_object_get(message, "id"));
		cleanup_free char *reply = xasprintf("{\"return\": {}, \"id\": %lld}\r\n", (long long)id);
		if (!send_text(fake, reply, SIZE_MAX))
			return false;
	}
	return true;
}

static void flood(struct fake_qmp *fake, unsigned long count)
{
	char block[65536];
	memset(block, 'x', sizeof(block));
	while (count > 0) {
		ssize_t n = send(fake->fd, block, count < sizeof(block) ? count : sizeof(block), MSG_NOSIGNAL);
		if (n < 0)
			return;
		count -= (unsigned long)n;
	}
}

static bool play(struct fake_qmp *fake, const struct fake_qmp_step *step)
{
	switch (step->kind) {
	case FAKE_QMP_SEND:
	case FAKE_QMP_SEND_BYTES: {
		cleanup_free char *text = fill_in(fake, step->text);
		return send_text(fake, text, step->kind == FAKE_QMP_SEND ? SIZE_MAX : 1);
	}
	case FAKE_QMP_EXPECT:
		return expect(fake, step->text, false);
	case FAKE_QMP_EXPECT_FD:
		return expect(fake, step->text, true);
	case FAKE_QMP_READ:
		return read_bytes(fake, step->count);
	case FAKE_QMP_GATE:
		while (sem_wait(&fake->gate) < 0)
			;
		return true;
	case FAKE_QMP_FLOOD:
		flood(fake, step->count);
		return true;
	case FAKE_QMP_SERVE:
		return serve(fake);
	case FAKE_QMP_EXPECT_END:
		return !read_line(fake) || fail(fake, xasprintf("the end expected, but '%s' came", fake->line));
	case FAKE_QMP_CLOSE:
		return false;
	}
	return false;
}

static void *play_all(void *user)
{
	struct fake_qmp *fake = user;
	for (unsigned long i = 0; i < fake->count; i++)
		if (!play(fake, &fake->steps[i]))
			break;
	close(fake->fd); /* as a QEMU that dies: the client is told if it has not read all */
	return NULL;
}

struct fake_qmp *fake_qmp_new(const struct fake_qmp_step *steps, unsigned long count, int *ret_client_fd)
{
	int fds[2];
	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds) < 0)
		abort();
	struct fake_qmp *fake = xcalloc(1, sizeof(*fake));
	fake->steps = steps;
	fake->count = count;
	fake->fd = fds[0];
	fake->received_fd = -1;
	sem_init(&fake->gate, 0, 0);
	*ret_client_fd = fds[1];
	if (pthread_create(&fake->thread, NULL, play_all, fake) != 0)
		abort();
	return fake;
}

void fake_qmp_open_gate(struct fake_qmp *fake)
{
	sem_post(&fake->gate);
}

int fake_qmp_received_fd(struct fake_qmp *fake)
{
	return fake->received_fd;
}

char *fake_qmp_end(struct fake_qmp *fake)
{
	pthread_join(fake->thread, NULL);
	char *failure = fake->failure;
	if (fake->received_fd >= 0)
		close(fake->received_fd);
	sem_destroy(&fake->gate);
	free(fake->line);
	free(fake);
	return failure;
}
