/* SPDX-License-Identifier: Apache-2.0 */
/*
 * An HTTP server on a unix socket that answers as a script says: one entry for each request, over all connections in
 * turn; NULL closes the connection without an answer. It counts what came.
 */
#ifndef FERRY_TESTS_SCRIPTED_SERVER_H
#define FERRY_TESTS_SCRIPTED_SERVER_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

struct scripted_server {
	int listener;
	const char *const *answers;
	size_t answer_count;
	atomic_uint requests, connections;
	pthread_t thread;
};

/* Read one request without a body, or with one that comes with its headers. */
static inline bool scripted_server_read(int fd)
{
	char text[8192];
	size_t length = 0;
	while (length < sizeof(text) - 1) {
		ssize_t n = read(fd, text + length, sizeof(text) - 1 - length);
		if (n <= 0)
			return false;
		length += (size_t)n;
		text[length] = '\0';
		if (strstr(text, "\r\n\r\n"))
			return true;
	}
	return false;
}

static inline void *scripted_server_run(void *user)
{
	struct scripted_server *server = user;
	for (;;) {
		int fd = accept(server->listener, NULL, NULL);
		if (fd < 0)
			return NULL;
		server->connections++;
		while (scripted_server_read(fd)) {
			unsigned int number = server->requests++;
			const char *answer = number < server->answer_count ? server->answers[number] : NULL;
			if (!answer || send(fd, answer, strlen(answer), MSG_NOSIGNAL) < 0)
				break;
		}
		close(fd);
	}
}

static inline void scripted_server_start(struct scripted_server *server, int listener, const char *const *answers,
					 size_t answer_count)
{
	server->listener = listener;
	server->answers = answers;
	server->answer_count = answer_count;
	atomic_store(&server->requests, 0);
	atomic_store(&server->connections, 0);
	pthread_create(&server->thread, NULL, scripted_server_run, server);
}

/* After the client has closed its connection. */
static inline void scripted_server_stop(struct scripted_server *server)
{
	shutdown(server->listener, SHUT_RDWR);
	pthread_join(server->thread, NULL);
	close(server->listener);
}

#endif
