/* SPDX-License-Identifier: Apache-2.0 */
/*
 * HTTP to the local ferryd's unix socket. This does what net/http_client does there, without libcurl and GnuTLS: loading
 * those and the thirty libraries behind them takes 7 ms, longer than all else that `ferry migrate` does on its own.
 */
#ifndef FERRY_CLI_LOCAL_H
#define FERRY_CLI_LOCAL_H

#include "cli/client.h"

int local_connect(const char *path, struct client **ret, struct error **e) MUST_CHECK;

#endif
