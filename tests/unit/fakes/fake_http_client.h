/* SPDX-License-Identifier: Apache-2.0 */
/*
 * In the place of net/http_client.c, for programs in which nothing is sent anywhere: all of it but http_client_request(),
 * which each of them has of its own. And the time limits of a host in memory.
 */
#ifndef FERRY_TESTS_FAKE_HTTP_CLIENT_H
#define FERRY_TESTS_FAKE_HTTP_CLIENT_H

#include "net/http_client.h"

struct http_client {
	const struct tls_files *files; /* whose it is; only the address matters */
	char name[TLS_NAME_SIZE];      /* who is asked */
	bool answered;
	bool (*interrupted)(void *user);
	void *interrupted_user;
};

/* For a struct migration_times: as in the configuration, but for finish. */
#define FAKE_TIMES                                                                                                     \
	{.finish_timeout_ms = 1000,                                                                                    \
	 .silence_limit_ms = 60000,                                                                                    \
	 .check_timeout_ms = 20000,                                                                                    \
	 .prepare_timeout_ms = 60000,                                                                                  \
	 .refuse_timeout_ms = 10000,                                                                                   \
	 .outcome_timeout_ms = 5000,                                                                                   \
	 .check_lifetime_ms = 15000,                                                                                   \
	 .retry_limit_ms = 30000}

#endif
