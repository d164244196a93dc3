/* SPDX-License-Identifier: Apache-2.0 */
/* Addresses of hosts as they are written on the command line. Any thread. */
#ifndef FERRY_CLI_ADDRESS_H
#define FERRY_CLI_ADDRESS_H

#include <stdint.h>

#include "base/error.h"

#define ADDRESS_DEFAULT_PORT 4710

/* ADDRESS, ADDRESS:PORT, [V6]:PORT or a bare V6: *ret_port is 0 when none is given. The caller frees *ret_address. */
int address_parse(const char *text, char **ret_address, uint16_t *ret_port, struct error **e) MUST_CHECK;
/* NAME, NAME:PORT, NAME=ADDRESS, NAME=ADDRESS:PORT; the address is the name where none is given, the port the default. */
int address_parse_host(const char *text, char **ret_name, char **ret_address, uint16_t *ret_port, struct error **e) MUST_CHECK;

#endif
