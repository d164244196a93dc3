/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Another host's ferryd, by mutual TLS (net/http_client). The certificate shown there is the user's own from
 * ~/.config/ferry/pki, else the machine's client certificate from /etc/ferry/pki, else, for root, that host's own.
 */
#include "cli/remote.h"

#include <arpa/inet.h>
#include <netdb.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/xalloc.h"
#include "cli/address.h"
#include "cli/interrupt.h"
#include "net/http_client.h"
#include "net/tls.h"

#define REMOTE_PKI_FOLDER "/etc/ferry/pki"

static bool remote_interrupted(void *user)
{
	(void)user;
	return client_interrupted();
}

static int remote_request(void *connection, const char *method, const char *path, const json_t *body, int64_t timeout_ms,
			  json_t **ret, struct error **e)
{
	interrupt_open();
	int result = http_client_request(connection, method, path, body, timeout_ms, ret, e);
	interrupt_close();
	return result;
}

static bool remote_answered(const void *connection)
{
	return http_client_answered(connection);
}

static void remote_free(void *connection)
{
	http_client_free(connection);
}

/* The folder and role of the certificate to use. *ret_folder is the caller's; NULL when there is none. */
static void remote_find_files(char **ret_folder, enum tls_role *ret_role)
{
	const char *home = getenv("HOME"), *config = getenv("XDG_CONFIG_HOME");
	cleanup_free char *own = config && *config ? xasprintf("%s/ferry/pki", config)
				 : home && *home   ? xasprintf("%s/.config/ferry/pki", home)
						   : NULL;
	const struct {
		const char *folder, *key;
		enum tls_role role;
	} places[] = {{own, "client.key", TLS_ROLE_CLIENT},
		      {REMOTE_PKI_FOLDER, "client.key", TLS_ROLE_CLIENT},
		      {REMOTE_PKI_FOLDER, "host.key", TLS_ROLE_HOST}};
	*ret_folder = NULL;
	for (size_t i = 0; i < sizeof(places) / sizeof(places[0]); i++) {
		cleanup_free char *key = places[i].folder ? xasprintf("%s/%s", places[i].folder, places[i].key) : NULL;
		if (key && access(key, R_OK) == 0) {
			*ret_folder = xstrdup(places[i].folder);
			*ret_role = places[i].role;
			return;
		}
	}
}

static int remote_resolve(const char *address, char ret_numeric[INET6_ADDRSTRLEN], struct error **e)
{
	struct addrinfo hints = {.ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM, .ai_flags = AI_ADDRCONFIG}, *found = NULL;
	int result = getaddrinfo(address, NULL, &hints, &found);
	if (result == 0)
		result = getnameinfo(found->ai_addr, found->ai_addrlen, ret_numeric, INET6_ADDRSTRLEN, NULL, 0, NI_NUMERICHOST);
	if (found)
		freeaddrinfo(found);
	if (result != 0)
		return error_set(e, ERROR_DAEMON_UNREACHABLE, "cannot find the address of '%s': %s", address, gai_strerror(result));
	return 0;
}

static int remote_connect(const char *where, struct client **ret, struct error **e)
{
	static const struct client_operations operations = {remote_request, remote_answered, remote_free};
	cleanup_free char *name = NULL, *address = NULL, *folder = NULL;
	char numeric[INET6_ADDRSTRLEN];
	uint16_t port;
	enum tls_role role = TLS_ROLE_NONE;
	if (address_parse_host(where, &name, &address, &port, e) < 0)
		return -1;
	remote_find_files(&folder, &role);
	if (!folder)
		return error_set(e, ERROR_PKI,
				 "no certificate for talking to other hosts is in ~/.config/ferry/pki or " REMOTE_PKI_FOLDER);
	if (remote_resolve(address, numeric, e) < 0)
		return -1;
	struct tls_files files;
	tls_files_in_folder(&files, folder, role);
	struct http_client *http = NULL;
	int result = tls_files_check(&files, e);
	if (result == 0)
		result = http_client_new_tls(name, numeric, port, &files, &http, e);
	tls_files_done(&files);
	if (result < 0)
		return -1;
	http_client_set_interrupt(http, remote_interrupted, NULL);
	*ret = client_new(&operations, http);
	return 0;
}

const struct cli_remote cli_remote_tls = {remote_connect, pki_run, stream_run};
