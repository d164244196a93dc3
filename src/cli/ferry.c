/* SPDX-License-Identifier: Apache-2.0 */
/*
 * ferry: the command line, as it is started by people and scripts. This program is linked with little, so that a
 * migration's request is on its way a millisecond after the start; what needs TLS (another host's ferryd, `ferry pki`,
 * the digests of `ferry stream`) is done by ferry-remote, the same program with libcurl and GnuTLS, which takes its
 * place then (cli_become_remote()).
 */
#include "cli/cli.h"

int main(int argc, char **argv)
{
	return cli_main(argc, argv, NULL);
}
