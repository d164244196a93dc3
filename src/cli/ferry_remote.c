/* SPDX-License-Identifier: Apache-2.0 */
/* ferry-remote: all of `ferry`, with TLS; started by ferry.c where that is needed. */
#include "cli/remote.h"

int main(int argc, char **argv)
{
	return cli_main(argc, argv, &cli_remote_tls);
}
