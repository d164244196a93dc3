/* SPDX-License-Identifier: Apache-2.0 */
/* What needs TLS or its cryptography: other hosts' ferryd, `ferry pki` and `ferry stream`. Only ferry-remote is linked with it
 * (see ferry.c). */
#ifndef FERRY_CLI_REMOTE_H
#define FERRY_CLI_REMOTE_H

#include "cli/client.h"

extern const struct cli_remote cli_remote_tls;

/* pki.c */
int pki_run(struct cli *cli);
/* stream.c */
int stream_run(struct cli *cli);

#endif
