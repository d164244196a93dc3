/* SPDX-License-Identifier: Apache-2.0 */
/*
 * QMP client; see qmp.h.
 *
 * Theory of operation. One line each way is one JSON object. Only the loop's thread reads; it cuts the bytes into lines
 * and gives each to the greeting, to the command whose id it carries, or to the owner's event callback. Threads that
 * execute write for themselves, one at a time (is_writing), and then wait for their reply on a condition of their own.
 *
 *   GREETING --{"QMP":…}--> NEGOTIATING --reply to qmp_capabilities--> READY --end, garbage, qmp_free--> CLOSED
 *
 * From any state a failure leads to CLOSED; `closed` is called only for a connection that was READY.
 *
 * A peer that floods us costs one line's memory (LINE_LIMIT_BYTES) and a share of the loop (READ_BUDGET_BYTES a turn).
 * A command whose time is up leaves the list of the pending, so its late reply finds nobody and is dropped; but it
 * still stands in QEMU's queue, so it counts in in_band_count until then. QEMU stops reading its monitor when 8
 * commands are queued, and then even an out-of-band command would not get through: never send more than IN_BAND_MAX at
 * once.
 *
 * The struct is kept by references: the owner's, one for each executing thread, one for the reading callback; so that
 * qmp_free() may be called from an event callback, and while other threads still wait.
 */
#include "qemu/qmp.h"

#include <assert.h>
#include <errno.h>
#include <limits.h>
#include <poll.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/json.h"
#include "base/log.h"
#include "base/xalloc.h"

#define LINE_LIMIT_BYTES ((size_t)16 << 20)
#define READ_CHUNK_BYTES ((size_t)64 << 10)
#define READ_BUDGET_BYTES ((size_t)1 << 20)
#define IN_BAND_MAX 7

enum qmp_state { QMP_GREETING, QMP_NEGOTIATING, QMP_READY, QMP_CLOSED };

/* A command that waits for its reply; on the stack of the thread that executes it. */
struct command {
	struct command *next;
	json_int_t id;
	json_t *reply; /* the whole object; NULL as long as there is none */
	pthread_cond_t answered;
};

struct qmp {
	struct loop *loop;
	int fd;
	struct qmp_callbacks callbacks;

	pthread_mutex_t lock; /* all below */
	unsigned int references;
	enum qmp_state state;
	struct loop_source *source; /* who takes it away removes it: the reading callback at the end, or qmp_free() */
	bool is_reading; /* the reading callback is running */
	bool is_freed;   /* by its owner: no callback any more */
	bool has_oob;
	char *close_reason; /* why we closed it; NULL: the peer did */
	struct command *pending;
	json_int_t next_sequence;
	unsigned int in_band_count;
	bool is_writing;        /* a thread is: nobody may put a line into the middle of its line */
	uint64_t line_count;    /* of which something was written */
	bool left_unread;       /* the peer died, and there was something of the last of them that it had not read */
	pthread_cond_t changed; /* state, is_reading, is_writing, in_band_count */

	/* The loop's thread only. */
	char *buffer;
	size_t buffer_size, buffer_used;
	size_t buffer_searched; /* there is no newline before this */
};

/* The lowest bit of an id tells replies out of band from the others. */
static bool id_is_oob(json_int_t id)
{
	return id & 1;
}

static void qmp_unref(struct qmp *qmp)
{
	pthread_mutex_lock(&qmp->lock);
	assert(qmp->references > 0);
	bool is_last = --qmp->references == 0;
	pthread_mutex_unlock(&qmp->lock);
	if (!is_last)
		return;
	close(qmp->fd);
	free(qmp->close_reason);
	free(qmp->buffer);
	pthread_cond_destroy(&qmp->changed);
	pthread_mutex_destroy(&qmp->lock);
	free(qmp);
}

/*
 * Enter CLOSED and wake everybody. The shutdown also ends a thread's wait to write, and tells QEMU, which otherwise
 * would serve nobody else. `reason` (may be NULL) is stolen. True if the connection was in use until now.
 */
static bool qmp_close(struct qmp *qmp, char *reason)
{
	LOCK_SCOPE(&qmp->lock);
	bool was_ready = qmp->state == QMP_READY;
	if (qmp->state == QMP_CLOSED) {
		free(reason);
		return false;
	}
	qmp->state = QMP_CLOSED;
	qmp->close_reason = reason;
	shutdown(qmp->fd, SHUT_RDWR);
	for (struct command *command = qmp->pending; command; command = command->next)
		pthread_cond_signal(&command->answered);
	pthread_cond_broadcast(&qmp->changed);
	return was_ready;
}

/* ---- reading: the loop's thread ---- */

static void qmp_take_greeting(struct qmp *qmp, const json_t *greeting)
{
	bool has_oob = false;
	size_t i;
	json_t *capability;
	json_array_foreach (json_object_get(greeting, "capabilities"), i, capability)
		if (json_is_string(capability) && strcmp(json_string_value(capability), "oob") == 0)
			has_oob = true;
	LOCK_SCOPE(&qmp->lock);
	if (qmp->state != QMP_GREETING)
		return;
	qmp->has_oob = has_oob;
	qmp->state = QMP_NEGOTIATING;
	pthread_cond_broadcast(&qmp->changed);
}

static void qmp_take_event(struct qmp *qmp, const char *name, const json_t *message, int64_t received_us)
{
	pthread_mutex_lock(&qmp->lock);
	bool wanted = qmp->state == QMP_READY && !qmp->is_freed;
	pthread_mutex_unlock(&qmp->lock);
	if (wanted && qmp->callbacks.event)
		qmp->callbacks.event(qmp->callbacks.user, name, json_object_get(message, "data"), received_us);
}

/* The message is stolen: the thread that waits becomes its only owner. */
static void qmp_take_reply(struct qmp *qmp, json_t *stolen_message)
{
	cleanup_json json_t *message = stolen_message;
	const json_t *id_value = json_object_get(message, "id");
	if (!json_is_integer(id_value)) {
		/* QEMU answers so when it could not even parse a line; ours are whole: worth a line in the log. */
		cleanup_free char *text = json_text(message);
		log_warning("QEMU's monitor answered nobody: %.200s", text);
		return;
	}
	json_int_t id = json_integer_value(id_value);
	LOCK_SCOPE(&qmp->lock);
	if (!id_is_oob(id) && qmp->in_band_count > 0) {
		qmp->in_band_count--;
		pthread_cond_broadcast(&qmp->changed);
	}
	for (struct command *command = qmp->pending; command; command = command->next) {
		if (command->id != id || command->reply)
			continue;
		/* Ready from this line on, not when the waiting thread wakes: the next line may be an event. */
		if (qmp->state == QMP_NEGOTIATING && json_object_get(message, "return"))
			qmp->state = QMP_READY;
		command->reply = take_ptr(message);
		pthread_cond_signal(&command->answered);
		return;
	}
}

/* QEMU has 64-bit unsigned properties, jansson 64-bit signed integers: numbers beyond become the largest of these. The
 * line is changed in place; a number never grows by it, so a shorter one is filled up with spaces. */
static void qmp_clamp_numbers(char *line, size_t length)
{
	static const char largest[] = "9223372036854775807";
	const size_t digits_max = sizeof(largest) - 1;
	bool in_string = false;
	for (size_t i = 0; i < length; i++) {
		if (in_string && line[i] == '\\') {
			i++;
		} else if (line[i] == '"') {
			in_string = !in_string;
		} else if (!in_string && line[i] >= '0' && line[i] <= '9') {
			size_t digits = 1;
			while (i + digits < length && line[i + digits] >= '0' && line[i + digits] <= '9')
				digits++;
			if (digits > digits_max ||
			    (digits == digits_max && memcmp(line + i, largest, digits_max) > 0)) {
				memset(line + i, ' ', digits);
				memcpy(line + i, largest, digits_max);
			}
			i += digits - 1;
		}
	}
}

static int qmp_parse(const char *line, size_t length, json_t **ret, struct error **e)
{
	if (json_parse(line, length, ret, e) == 0)
		return 0;
	cleanup_free char *copy = xmalloc(length + 1);
	memcpy(copy, line, length);
	qmp_clamp_numbers(copy, length);
	return json_parse(copy, length, ret, NULL);
}

/* False when the line is not QMP; *ret_reason says what it is. */
static bool qmp_take_line(struct qmp *qmp, const char *line, size_t length, int64_t received_us, char **ret_reason)
{
	if (length > 0 && line[length - 1] == '\r')
		length--;
	if (length == 0)
		return true;
	cleanup_error struct error *error = NULL;
	cleanup_json json_t *message = NULL;
	if (qmp_parse(line, length, &message, &error) < 0 || !json_is_object(message)) {
		*ret_reason = xasprintf("QEMU's monitor sent what is not QMP (%s): %.*s",
					error ? error->message : "no object", length > 80 ? 80 : (int)length, line);
		return false;
	}
	const json_t *greeting = json_object_get(message, "QMP");
	const json_t *event = json_object_get(message, "event");
	if (greeting)
		qmp_take_greeting(qmp, greeting);
	else if (json_is_string(event))
		qmp_take_event(qmp, json_string_value(event), message, received_us);
	else
		qmp_take_reply(qmp, take_ptr(message));
	return true;
}

/* The source, if nobody has taken it to remove it. */
static struct loop_source *qmp_take_source(struct qmp *qmp, bool by_owner)
{
	LOCK_SCOPE(&qmp->lock);
	qmp->is_freed |= by_owner;
	return take_ptr(qmp->source);
}

static bool qmp_is_freed(struct qmp *qmp)
{
	LOCK_SCOPE(&qmp->lock);
	return qmp->is_freed;
}

/* Hand on every whole line of the buffer, keep the rest. False when the connection is not to be read any more. */
static bool qmp_take_lines(struct qmp *qmp, int64_t received_us, char **ret_reason)
{
	size_t start = 0;
	for (;;) {
		const char *from = qmp->buffer + qmp->buffer_searched;
		const char *newline = memchr(from, '\n', qmp->buffer_used - qmp->buffer_searched);
		if (!newline)
			break;
		size_t end = (size_t)(newline - qmp->buffer);
		if (!qmp_take_line(qmp, qmp->buffer + start, end - start, received_us, ret_reason))
			return false;
		if (qmp_is_freed(qmp)) /* by the event callback */
			return false;
		start = qmp->buffer_searched = end + 1;
	}
	qmp->buffer_used -= start;
	if (start > 0)
		memmove(qmp->buffer, qmp->buffer + start, qmp->buffer_used);
	qmp->buffer_searched = qmp->buffer_used;
	if (qmp->buffer_used == 0 && qmp->buffer_size > READ_BUDGET_BYTES) { /* keep no room for one huge reply */
		qmp->buffer_size = 0;
		free(take_ptr(qmp->buffer));
		qmp->buffer_searched = 0;
	}
	if (qmp->buffer_used > LINE_LIMIT_BYTES) {
		*ret_reason = xasprintf("QEMU's monitor sent a line of more than %zu bytes", LINE_LIMIT_BYTES);
		return false;
	}
	return true;
}

static void qmp_make_room(struct qmp *qmp)
{
	if (qmp->buffer_size - qmp->buffer_used >= READ_CHUNK_BYTES)
		return;
	qmp->buffer_size = qmp->buffer_size ? qmp->buffer_size * 2 : 2 * READ_CHUNK_BYTES;
	qmp->buffer = xreallocarray(qmp->buffer, qmp->buffer_size, 1);
}

/* What a unix socket says of a peer that closed it, or died, while something we had sent was unread: the end of all, at least. */
static void qmp_note_unread(struct qmp *qmp)
{
	LOCK_SCOPE(&qmp->lock);
	qmp->left_unread = true;
}

/* Read until there is nothing more or the turn's budget is used up. False at the end, with the reason if it is ours. */
static bool qmp_read(struct qmp *qmp, char **ret_reason)
{
	for (size_t budget = READ_BUDGET_BYTES; budget >= READ_CHUNK_BYTES; budget -= READ_CHUNK_BYTES) {
		qmp_make_room(qmp);
		ssize_t n = recv(qmp->fd, qmp->buffer + qmp->buffer_used, READ_CHUNK_BYTES, MSG_DONTWAIT);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0 && errno == EAGAIN)
			return true;
		if (n < 0 && errno == ECONNRESET)
			qmp_note_unread(qmp);
		if (n <= 0)
			return false;
		qmp->buffer_used += (size_t)n;
		if (!qmp_take_lines(qmp, clock_monotonic_us(), ret_reason))
			return false;
	}
	return true;
}

static void qmp_on_readable(void *user, uint32_t epoll_events)
{
	(void)epoll_events;
	struct qmp *qmp = user;
	pthread_mutex_lock(&qmp->lock);
	qmp->references++;
	qmp->is_reading = true;
	pthread_mutex_unlock(&qmp->lock);

	char *reason = NULL;
	if (!qmp_read(qmp, &reason)) {
		if (reason)
			log_warning("%s", reason);
		struct loop_source *source = qmp_take_source(qmp, false);
		loop_source_remove(source);
		if (qmp_close(qmp, reason) && !qmp_is_freed(qmp) && qmp->callbacks.closed)
			qmp->callbacks.closed(qmp->callbacks.user);
	}

	pthread_mutex_lock(&qmp->lock);
	qmp->is_reading = false;
	pthread_cond_broadcast(&qmp->changed);
	pthread_mutex_unlock(&qmp->lock);
	qmp_unref(qmp);
}

/* ---- executing: any other thread ---- */

static int set_gone(struct qmp *qmp, const char *doing, struct error **e)
{
	if (qmp->close_reason)
		return error_set(e, ERROR_QEMU_GONE, "%s: %s", doing, qmp->close_reason);
	return error_set(e, ERROR_QEMU_GONE, "%s: QEMU closed its monitor", doing);
}

static int set_timeout(const char *doing, int64_t timeout_ms, struct error **e)
{
	return error_set(e, ERROR_TIMEOUT, "%s: QEMU's monitor did not answer within %lld ms", doing,
			 (long long)timeout_ms);
}

/* A command's line on its way to QEMU. */
struct outgoing {
	const char *line;
	size_t length, written;
	int fd; /* beside its first byte; -1: none */
	uint64_t number; /* of all lines */
};

/* Write one line. 0 or a negative errno. A line that is cut by the deadline leaves a stream that nobody can follow, so the
 * connection is closed then. */
static int qmp_write_line(struct qmp *qmp, struct outgoing *outgoing, int64_t deadline_us)
{
	const char *line = outgoing->line;
	const size_t length = outgoing->length;
	const int fd = outgoing->fd;
	while (outgoing->written < length) {
		union {
			char bytes[CMSG_SPACE(sizeof(int))];
			struct cmsghdr align;
		} control = {0};
		struct iovec iovec = {.iov_base = (char *)(uintptr_t)line + outgoing->written, .iov_len = length - outgoing->written};
		struct msghdr message = {.msg_iov = &iovec, .msg_iovlen = 1};
		if (fd >= 0 && outgoing->written == 0) {
			message.msg_control = control.bytes;
			message.msg_controllen = sizeof(control.bytes);
			struct cmsghdr *header = CMSG_FIRSTHDR(&message);
			header->cmsg_level = SOL_SOCKET;
			header->cmsg_type = SCM_RIGHTS;
			header->cmsg_len = CMSG_LEN(sizeof(int));
			memcpy(CMSG_DATA(header), &fd, sizeof(fd));
		}
		ssize_t n = sendmsg(qmp->fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
		if (n >= 0) {
			outgoing->written += (size_t)n;
			continue;
		}
		if (errno == EINTR)
			continue;
		if (errno != EAGAIN)
			return -errno;
		struct pollfd pollfd = {.fd = qmp->fd, .events = POLLOUT};
		int64_t left_us = deadline_us - clock_monotonic_us();
		int64_t left_ms = left_us > 0 ? (left_us + 999) / 1000 : 0;
		if (left_us > 0 && poll(&pollfd, 1, left_ms > INT_MAX ? INT_MAX : (int)left_ms) != 0)
			continue; /* an error shows at the next write */
		if (outgoing->written > 0)
			shutdown(qmp->fd, SHUT_RDWR); /* the loop's thread sees the end and does the rest */
		return -ETIMEDOUT;
	}
	return 0;
}

/* As qmp_write_line, when it is our turn. */
static int qmp_write(struct qmp *qmp, struct outgoing *outgoing, int64_t deadline_us)
{
	pthread_mutex_lock(&qmp->lock);
	bool in_time = true;
	while (qmp->is_writing && in_time)
		in_time = cond_wait_until(&qmp->changed, &qmp->lock, deadline_us);
	if (qmp->is_writing) {
		pthread_mutex_unlock(&qmp->lock);
		return -ETIMEDOUT;
	}
	qmp->is_writing = true;
	pthread_mutex_unlock(&qmp->lock);

	int result = qmp_write_line(qmp, outgoing, deadline_us);

	pthread_mutex_lock(&qmp->lock);
	if (outgoing->written > 0)
		outgoing->number = ++qmp->line_count;
	qmp->is_writing = false;
	pthread_cond_broadcast(&qmp->changed);
	pthread_mutex_unlock(&qmp->lock);
	return result;
}

static json_t *command_object(const char *verb, const char *name, json_int_t id, json_t *arguments)
{
	json_t *object = json_object();
	json_object_set_new(object, verb, json_string(name));
	if (arguments)
		json_object_set(object, "arguments", arguments);
	json_object_set_new(object, "id", json_integer(id));
	return object;
}

/* Wait for a place in QEMU's queue and enter the list of those who wait for a reply. */
static int qmp_enqueue(struct qmp *qmp, struct command *command, const char *name, bool is_oob, int64_t deadline_us,
		       int64_t timeout_ms, struct error **e)
{
	LOCK_SCOPE(&qmp->lock);
	if (is_oob && !qmp->has_oob)
		return error_set(e, ERROR_UNSUPPORTED, "%s: this QEMU's monitor has no out-of-band commands", name);
	while (qmp->state != QMP_CLOSED && !is_oob && qmp->in_band_count >= IN_BAND_MAX)
		if (!cond_wait_until(&qmp->changed, &qmp->lock, deadline_us) && qmp->in_band_count >= IN_BAND_MAX)
			return set_timeout(name, timeout_ms, e);
	if (qmp->state == QMP_CLOSED)
		return set_gone(qmp, name, e);
	command->id = (++qmp->next_sequence << 1) | (is_oob ? 1 : 0);
	command->next = qmp->pending;
	qmp->pending = command;
	if (!is_oob)
		qmp->in_band_count++;
	return 0;
}

static void qmp_dequeue(struct qmp *qmp, struct command *command, bool was_sent)
{
	LOCK_SCOPE(&qmp->lock);
	struct command **link = &qmp->pending;
	while (*link != command)
		link = &(*link)->next;
	*link = command->next;
	if (!was_sent && !id_is_oob(command->id)) {
		qmp->in_band_count--;
		pthread_cond_broadcast(&qmp->changed);
	}
}

/* What the reply says. Steals nothing; *ret is a new reference. */
static int take_return(const json_t *reply, const char *name, json_t **ret, struct error **e)
{
	json_t *value = json_object_get(reply, "return");
	if (value) {
		if (ret)
			*ret = json_incref(value);
		return 0;
	}
	const char *description = json_string_value(json_object_get(json_object_get(reply, "error"), "desc"));
	return error_set(e, ERROR_QEMU_QMP, "QEMU refused '%s': %s", name,
			 description ? description : "(no reason given)");
}

/* ret_heard: NULL where nobody wants to know. The line then has no newline, which QEMU does not wait for: if anything of it is
 * unread, that is the last brace, without which there is no command. */
static int qmp_execute_any(struct qmp *qmp, const char *name, json_t *stolen_arguments, int fd, bool is_oob,
			   json_t **ret, int64_t timeout_ms, bool *ret_heard, struct error **e)
{
	cleanup_json json_t *arguments = stolen_arguments;
	if (ret_heard)
		*ret_heard = false;
	assert(!loop_is_current(qmp->loop)); /* it would wait for itself */
	int64_t deadline_us = clock_monotonic_us() + timeout_ms * 1000;

	struct command command = {0};
	if (qmp_enqueue(qmp, &command, name, is_oob, deadline_us, timeout_ms, e) < 0)
		return -1;
	cond_init(&command.answered);
	cleanup_json json_t *object = command_object(is_oob ? "exec-oob" : "execute", name, command.id, arguments);
	cleanup_free char *text = json_text(object);
	struct outgoing outgoing = {.line = text, .length = strlen(text), .fd = fd};
	if (!ret_heard)
		text[outgoing.length++] = '\n'; /* in place of the NUL */

	int write_result = qmp_write(qmp, &outgoing, deadline_us);

	pthread_mutex_lock(&qmp->lock);
	bool in_time = true;
	while (write_result == 0 && !command.reply && qmp->state != QMP_CLOSED && in_time)
		in_time = cond_wait_until(&command.answered, &qmp->lock, deadline_us);
	if (ret_heard)
		*ret_heard = outgoing.written > 0 && !(qmp->left_unread && outgoing.number == qmp->line_count);
	pthread_mutex_unlock(&qmp->lock);
	qmp_dequeue(qmp, &command, write_result == 0);
	pthread_cond_destroy(&command.answered);

	/* A reply that came before the connection broke is as good as any. */
	cleanup_json json_t *reply = command.reply;
	if (reply)
		return take_return(reply, name, ret, e);
	if (write_result == -ETIMEDOUT || (write_result == 0 && !in_time))
		return set_timeout(name, timeout_ms, e);
	if (write_result < 0 && write_result != -EPIPE && write_result != -ECONNRESET)
		return error_set_errno(e, ERROR_SYSTEM, -write_result, "cannot send '%s' to QEMU", name);
	LOCK_SCOPE(&qmp->lock);
	return set_gone(qmp, name, e);
}

/* With a reference of our own, for the owner may free the client while we wait. */
static int qmp_execute_held(struct qmp *qmp, const char *name, json_t *arguments, int fd, bool is_oob, json_t **ret,
			    int64_t timeout_ms, bool *ret_heard, struct error **e)
{
	pthread_mutex_lock(&qmp->lock);
	qmp->references++;
	pthread_mutex_unlock(&qmp->lock);
	int result = qmp_execute_any(qmp, name, arguments, fd, is_oob, ret, timeout_ms, ret_heard, e);
	qmp_unref(qmp);
	return result;
}

int qmp_execute(struct qmp *qmp, const char *command, json_t *arguments, json_t **ret, int64_t timeout_ms,
		struct error **e)
{
	return qmp_execute_held(qmp, command, arguments, -1, false, ret, timeout_ms, NULL, e);
}

int qmp_execute_heard(struct qmp *qmp, const char *command, json_t *arguments, json_t **ret, int64_t timeout_ms, bool *ret_heard,
		     struct error **e)
{
	return qmp_execute_held(qmp, command, arguments, -1, false, ret, timeout_ms, ret_heard, e);
}

int qmp_execute_with_fd(struct qmp *qmp, const char *command, json_t *arguments, int fd, json_t **ret,
			int64_t timeout_ms, struct error **e)
{
	return qmp_execute_held(qmp, command, arguments, fd, false, ret, timeout_ms, NULL, e);
}

int qmp_execute_oob(struct qmp *qmp, const char *command, json_t *arguments, json_t **ret, int64_t timeout_ms,
		    struct error **e)
{
	return qmp_execute_held(qmp, command, arguments, -1, true, ret, timeout_ms, NULL, e);
}

/* ---- beginning and end ---- */

static int qmp_negotiate(struct qmp *qmp, int64_t timeout_ms, struct error **e)
{
	int64_t deadline_us = clock_monotonic_us() + timeout_ms * 1000;
	pthread_mutex_lock(&qmp->lock);
	bool in_time = true;
	while (qmp->state == QMP_GREETING && in_time)
		in_time = cond_wait_until(&qmp->changed, &qmp->lock, deadline_us);
	enum qmp_state state = qmp->state;
	bool has_oob = qmp->has_oob;
	int result = state == QMP_CLOSED ? set_gone(qmp, "greeting", e) : 0;
	pthread_mutex_unlock(&qmp->lock);
	if (state == QMP_GREETING)
		return error_set(e, ERROR_TIMEOUT,
				 "QEMU's monitor sent no greeting within %lld ms; does another client hold it?",
				 (long long)timeout_ms);
	if (result < 0)
		return -1;

	json_t *arguments = has_oob ? json_pack("{s:[s]}", "enable", "oob") : NULL;
	return qmp_execute(qmp, "qmp_capabilities", arguments, NULL, (deadline_us - clock_monotonic_us()) / 1000, e);
}

int qmp_new(struct loop *loop, int fd, const struct qmp_callbacks *callbacks, int64_t timeout_ms, struct qmp **ret,
	    struct error **e)
{
	struct qmp *qmp = xcalloc(1, sizeof(*qmp));
	qmp->loop = loop;
	qmp->fd = fd;
	if (callbacks)
		qmp->callbacks = *callbacks;
	qmp->references = 1;
	pthread_mutex_init(&qmp->lock, NULL);
	cond_init(&qmp->changed);
	/* The callback may run, and take the source away, before the assignment: so it waits for the lock first. */
	pthread_mutex_lock(&qmp->lock);
	qmp->source = loop_add_fd(loop, fd, EPOLLIN, qmp_on_readable, qmp);
	pthread_mutex_unlock(&qmp->lock);
	if (qmp_negotiate(qmp, timeout_ms, e) < 0) {
		qmp_free(qmp);
		return -1;
	}
	*ret = qmp;
	return 0;
}

void qmp_free(struct qmp *qmp)
{
	if (!qmp)
		return;
	loop_source_remove(qmp_take_source(qmp, true));
	/* Where the reading callback has removed the source itself, it may still be at work: let it end first. */
	if (!loop_is_current(qmp->loop)) {
		LOCK_SCOPE(&qmp->lock);
		while (qmp->is_reading)
			pthread_cond_wait(&qmp->changed, &qmp->lock);
	}
	qmp_close(qmp, xstrdup("the connection was given up"));
	qmp_unref(qmp);
}
