/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How long the HTTP server's connections may take over one thing. libmicrohttpd has time limits for silence only: a client
 * that sends or reads a byte every few seconds is never silent, and could keep a connection, and so a place among those
 * that may be open, for ever. Here each connection has a moment at which it is cut off, whatever it does. Any thread.
 */
#ifndef FERRY_NET_HTTP_PATIENCE_H
#define FERRY_NET_HTTP_PATIENCE_H

#include <stdint.h>

struct http_patience;

/* One connection. Its owner keeps it and does not look into it. */
struct http_patience_entry {
	struct http_patience *patience; /* NULL: not watched */
	int fd;
	int64_t deadline_us; /* 0: none */
	struct http_patience_entry *next, *previous;
};

struct http_patience *http_patience_new(void);
/* No entry may be left. Accepts NULL. */
void http_patience_free(struct http_patience *patience);

/* The descriptor must stay open until the entry is removed. */
void http_patience_add(struct http_patience *patience, struct http_patience_entry *entry, int fd, int64_t limit_ms);
/* A new time limit, counted from now; 0: none. */
void http_patience_set(struct http_patience_entry *entry, int64_t limit_ms);
void http_patience_remove(struct http_patience_entry *entry);

#endif
