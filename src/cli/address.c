/* SPDX-License-Identifier: Apache-2.0 */
/* Addresses of hosts as they are written on the command line; see address.h. */
#include "cli/address.h"

#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/xalloc.h"
#include "cli/units.h"

int address_parse(const char *text, char **ret_address, uint16_t *ret_port, struct error **e)
{
	cleanup_free char *address = xstrdup(text);
	const char *port_text = NULL;
	char *colon = strchr(address, ':');
	if (address[0] == '[') {
		char *end = strchr(address, ']');
		if (!end || (end[1] && end[1] != ':'))
			return error_set(e, ERROR_INVALID_ARGUMENT, "'%s' is not an address; write IPv6 as [2001:db8::2]:4710", text);
		if (end[1])
			port_text = end + 2;
		*end = '\0';
		memmove(address, address + 1, strlen(address));
	} else if (colon && !strchr(colon + 1, ':')) { /* two colons or more: IPv6 without a port */
		*colon = '\0';
		port_text = colon + 1;
	}
	int64_t port = 0;
	if (port_text && units_parse_integer(port_text, "the port", 1, 65535, &port, e) < 0)
		return error_wrap(e, "'%s'", text);
	if (!*address || strpbrk(address, " \t\n/="))
		return error_set(e, ERROR_INVALID_ARGUMENT, "'%s' is not an address; write it as 198.51.100.2 or 198.51.100.2:4710", text);
	*ret_address = take_ptr(address);
	*ret_port = (uint16_t)port;
	return 0;
}

int address_parse_host(const char *text, char **ret_name, char **ret_address, uint16_t *ret_port, struct error **e)
{
	cleanup_free char *name = xstrdup(text), *address = NULL;
	uint16_t port = 0;
	char *equals = strchr(name, '=');
	if (equals)
		*equals = '\0';
	if (address_parse(equals ? equals + 1 : name, &address, &port, e) < 0)
		return error_wrap(e, "-H, FERRY_HOST");
	if (!equals) {
		free(name);
		name = xstrdup(address);
	}
	if (!*name)
		return error_set(e, ERROR_INVALID_ARGUMENT, "-H, FERRY_HOST: '%s' lacks the host's name", text);
	*ret_name = take_ptr(name);
	*ret_address = take_ptr(address);
	*ret_port = port ? port : ADDRESS_DEFAULT_PORT;
	return 0;
}
