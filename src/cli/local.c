/* SPDX-License-Identifier: Apache-2.0 */
/*
 * HTTP to the local ferryd's unix socket; see local.h. One kept-alive connection, one request at a time. Of HTTP/1.1 this
 * takes what ferryd sends: answers with a Content-Length. A kept connection that the daemon has closed meanwhile is opened
 * again, where asking twice does no harm.
 */
#include "cli/local.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/json.h"
#include "base/xalloc.h"
#include "cli/interrupt.h"

#define LOCAL_HEAD_MAX 16384
#define LOCAL_BODY_MAX (64 << 20)

struct local {
	char *path;
	int fd; /* -1: not connected */
	bool used; /* at least one answer came on this connection */
	bool answered;
};

struct local_answer {
	char *data; /* head and body */
	size_t length, room;
	size_t head_length;   /* with the empty line; 0 while it is not complete */
	size_t body_length;
	unsigned int status;
	bool close;
};

static void local_disconnect(struct local *local)
{
	if (local->fd >= 0)
		close(local->fd);
	local->fd = -1;
	local->used = false;
}

static int local_open(struct local *local, struct error **e)
{
	if (local->fd >= 0)
		return 0;
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	if (strlen(local->path) >= sizeof(address.sun_path))
		return error_set(e, ERROR_INVALID_ARGUMENT, "the socket's path '%s' is too long", local->path);
	memcpy(address.sun_path, local->path, strlen(local->path) + 1);
	cleanup_close int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (fd < 0)
		return error_set_errno(e, ERROR_SYSTEM, errno, "cannot make a socket");
	if (connect(fd, (const struct sockaddr *)&address, sizeof(address)) < 0) {
		enum error_code code = errno == EACCES || errno == EPERM ? ERROR_PERMISSION : ERROR_DAEMON_UNREACHABLE;
		return error_set_errno(e, code, errno, "cannot reach ferryd at %s", local->path);
	}
	local->fd = take_fd(fd);
	return 0;
}

/* Wait until the socket is ready for events. */
static int local_wait(struct local *local, short events, int64_t deadline_us, struct error **e)
{
	for (;;) {
		if (client_interrupted())
			return error_set(e, ERROR_CANCELLED, "interrupted");
		int64_t left_us = deadline_us - clock_monotonic_us();
		if (left_us <= 0)
			return error_set(e, ERROR_TIMEOUT, "ferryd at %s did not answer in time", local->path);
		struct timespec wait = {.tv_sec = left_us / 1000000, .tv_nsec = left_us % 1000000 * 1000};
		struct pollfd poll_fd = {.fd = local->fd, .events = events};
		int n = ppoll(&poll_fd, 1, &wait, interrupt_waiting_mask());
		if (n > 0)
			return 0;
		if (n < 0 && errno != EINTR)
			return error_set_errno(e, ERROR_SYSTEM, errno, "cannot wait for ferryd");
	}
}

static int local_lost(struct local *local, int errnum, struct error **e)
{
	if (errnum)
		return error_set_errno(e, ERROR_DAEMON_UNREACHABLE, errnum, "the connection to ferryd at %s broke", local->path);
	return error_set(e, ERROR_DAEMON_UNREACHABLE, "ferryd at %s closed the connection", local->path);
}

static int local_send(struct local *local, const char *data, size_t length, int64_t deadline_us, struct error **e)
{
	while (length > 0) {
		ssize_t n = send(local->fd, data, length, MSG_NOSIGNAL | MSG_DONTWAIT);
		if (n >= 0) {
			data += n;
			length -= (size_t)n;
		} else if (errno == EAGAIN) {
			if (local_wait(local, POLLOUT, deadline_us, e) < 0)
				return -1;
		} else if (errno != EINTR) {
			return local_lost(local, errno, e);
		}
	}
	return 0;
}

/* Read the head once its empty line is there. The data has a NUL behind it. */
static int local_parse_head(struct local_answer *answer, struct error **e)
{
	const char *end = strstr(answer->data, "\r\n\r\n");
	if (!end) {
		if (answer->length > LOCAL_HEAD_MAX)
			return error_set(e, ERROR_DAEMON_UNREACHABLE, "what answers at ferryd's socket does not speak HTTP");
		return 0;
	}
	int minor;
	if (sscanf(answer->data, "HTTP/1.%d %3u", &minor, &answer->status) != 2)
		return error_set(e, ERROR_DAEMON_UNREACHABLE, "what answers at ferryd's socket does not speak HTTP");
	size_t head_length = (size_t)(end + 4 - answer->data);
	bool has_length = answer->status == 204;
	for (const char *line = strstr(answer->data, "\r\n") + 2; line < end + 2; line = strstr(line, "\r\n") + 2) {
		if (strncasecmp(line, "Content-Length:", 15) == 0) {
			unsigned long long value = strtoull(line + 15, NULL, 10);
			if (value > LOCAL_BODY_MAX)
				return error_set(e, ERROR_TOO_LARGE, "ferryd's answer is too large");
			answer->body_length = (size_t)value;
			has_length = true;
		} else if (strncasecmp(line, "Connection: close", 17) == 0) {
			answer->close = true;
		}
	}
	if (!has_length)
		return error_set(e, ERROR_DAEMON_UNREACHABLE, "ferryd's answer has no length");
	if (answer->status >= 200) {
		answer->head_length = head_length;
		return 0;
	}
	/* "100 Continue": the real one follows. */
	memmove(answer->data, answer->data + head_length, answer->length - head_length + 1);
	answer->length -= head_length;
	return answer->length > 0 ? local_parse_head(answer, e) : 0;
}

static int local_receive(struct local *local, struct local_answer *answer, int64_t deadline_us, struct error **e)
{
	while (answer->head_length == 0 || answer->length < answer->head_length + answer->body_length) {
		size_t wanted = answer->head_length ? answer->head_length + answer->body_length : answer->length + 8192;
		if (wanted + 1 > answer->room) {
			answer->room = wanted + 1;
			answer->data = xreallocarray(answer->data, answer->room, 1);
		}
		ssize_t n = recv(local->fd, answer->data + answer->length, answer->room - answer->length - 1, MSG_DONTWAIT);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0 && errno == EAGAIN) {
			if (local_wait(local, POLLIN, deadline_us, e) < 0)
				return -1;
			continue;
		}
		if (n <= 0)
			return local_lost(local, n < 0 ? errno : 0, e);
		answer->length += (size_t)n;
		answer->data[answer->length] = '\0';
		if (answer->head_length == 0 && local_parse_head(answer, e) < 0)
			return -1;
	}
	return 0;
}

static int local_exchange(struct local *local, const char *text, size_t length, int64_t deadline_us,
			  struct local_answer *answer, struct error **e)
{
	if (local_open(local, e) < 0 || local_send(local, text, length, deadline_us, e) < 0 ||
	    local_receive(local, answer, deadline_us, e) < 0)
		return -1;
	local->used = true;
	if (answer->close)
		local_disconnect(local);
	return 0;
}

/* Give back the error that the body tells of. */
static int local_error(unsigned int status, const json_t *body, struct error **e)
{
	const json_t *error = json_object_get(body, "error");
	const char *name = json_string_value(json_object_get(error, "code"));
	const char *message = json_string_value(json_object_get(error, "message"));
	if (!name || !message)
		return error_set(e, ERROR_PEER_PROTOCOL, "ferryd answered HTTP status %u without saying why", status);
	enum error_code code = error_code_from_name(name);
	/* A newer daemon may have codes that are unknown here. */
	if (code == ERROR_CODE_COUNT)
		return error_set(e, ERROR_PEER_REFUSED, "%s (%s)", message, name);
	return error_set(e, code, "%s", message);
}

static int local_request(void *connection, const char *method, const char *path, const json_t *body, int64_t timeout_ms,
			 json_t **ret, struct error **e)
{
	struct local *local = connection;
	local->answered = false;
	int64_t deadline_us = clock_monotonic_us() + timeout_ms * 1000;
	cleanup_free char *content = body ? json_text(body) : NULL;
	cleanup_free char *text =
		content ? xasprintf("%s %s HTTP/1.1\r\nHost: ferryd\r\nContent-Type: application/json\r\n"
				    "Content-Length: %zu\r\n\r\n%s",
				    method, path, strlen(content), content)
			: xasprintf("%s %s HTTP/1.1\r\nHost: ferryd\r\n%s\r\n", method, path,
				    strcmp(method, "POST") == 0 ? "Content-Length: 0\r\n" : "");
	struct local_answer answer = {0};
	cleanup_error struct error *failure = NULL;
	bool may_repeat = local->used && strcmp(method, "GET") == 0;
	int result = local_exchange(local, text, strlen(text), deadline_us, &answer, &failure);
	if (result < 0)
		local_disconnect(local);
	if (result < 0 && may_repeat && failure->code == ERROR_DAEMON_UNREACHABLE && answer.length == 0)
		result = local_exchange(local, text, strlen(text), deadline_us, &answer, &failure);
	cleanup_free char *data = answer.data;
	if (result < 0) {
		local_disconnect(local);
		return error_move(e, take_ptr(failure));
	}
	local->answered = true;
	cleanup_json json_t *value = NULL;
	if (answer.body_length > 0 && json_parse(data + answer.head_length, answer.body_length, &value, e) < 0)
		return error_wrap(e, "ferryd's answer");
	if (answer.status >= 400)
		return local_error(answer.status, value, e);
	if (ret)
		*ret = value ? take_ptr(value) : json_object();
	return 0;
}

static bool local_answered(const void *connection)
{
	const struct local *local = connection;
	return local->answered;
}

static void local_free(void *connection)
{
	struct local *local = connection;
	local_disconnect(local);
	free(local->path);
	free(local);
}

int local_connect(const char *path, struct client **ret, struct error **e)
{
	static const struct client_operations operations = {local_request, local_answered, local_free};
	struct local *local = xcalloc(1, sizeof(*local));
	local->path = xstrdup(path);
	local->fd = -1;
	if (local_open(local, e) < 0) {
		local_free(local);
		return -1;
	}
	*ret = client_new(&operations, local);
	return 0;
}
