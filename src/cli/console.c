/* SPDX-License-Identifier: Apache-2.0 */
/*
 * ferry vm console: the terminal and the VM's serial console, joined until Ctrl-] or until the VM has gone. The console is
 * a unix socket of QEMU's own, so this works on the VM's host only.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <termios.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/xalloc.h"
#include "cli/client.h"
#include "cli/output.h"

#define CONSOLE_LEAVE 0x1d /* Ctrl-] */

static int console_connect(const char *uuid, int *ret_fd, struct error **e)
{
	/* ferryd keeps the records of running VMs beside its socket. */
	const char *ferryd = client_local_socket(), *slash = strrchr(ferryd, '/');
	cleanup_free char *path = xasprintf("%.*s/vms/%s/console.sock", (int)(slash ? slash - ferryd : 0), ferryd, uuid);
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	if (!slash || strlen(path) >= sizeof(address.sun_path))
		return error_set(e, ERROR_INVALID_ARGUMENT, "FERRY_SOCKET must be an absolute path, and a shorter one");
	memcpy(address.sun_path, path, strlen(path) + 1);
	cleanup_close int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (fd < 0 || connect(fd, (const struct sockaddr *)&address, sizeof(address)) < 0)
		return error_set_errno(e, errno == EACCES ? ERROR_PERMISSION : ERROR_NOT_FOUND, errno,
				       "cannot reach the console at %s", address.sun_path);
	*ret_fd = take_fd(fd);
	return 0;
}

static bool console_write(int fd, const char *data, size_t length)
{
	while (length > 0) {
		ssize_t n = write(fd, data, length);
		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return false;
		data += n;
		length -= (size_t)n;
	}
	return true;
}

/* Carry bytes both ways. True when the VM's side ended. */
static bool console_join(int console)
{
	struct pollfd fds[] = {{.fd = STDIN_FILENO, .events = POLLIN}, {.fd = console, .events = POLLIN}};
	char data[4096];
	for (;;) {
		if (poll(fds, 2, -1) < 0) {
			if (errno == EINTR)
				continue;
			return false;
		}
		if (fds[1].revents) {
			ssize_t n = read(console, data, sizeof(data));
			if (n <= 0)
				return true;
			if (!console_write(STDOUT_FILENO, data, (size_t)n))
				return false;
		}
		if (fds[0].revents) {
			ssize_t n = read(STDIN_FILENO, data, sizeof(data));
			if (n <= 0)
				return false;
			const char *leave = memchr(data, CONSOLE_LEAVE, (size_t)n);
			if (!console_write(console, data, leave ? (size_t)(leave - data) : (size_t)n))
				return true;
			if (leave)
				return false;
		}
	}
}

int run_vm_console(struct cli *cli)
{
	cleanup_error struct error *e = NULL;
	cleanup_client struct client *client = NULL;
	cleanup_json json_t *vm = NULL;
	cleanup_close int console = -1;
	if (cli->host)
		return cli_usage(cli, "a console can be reached on the VM's own host only; leave out -H and FERRY_HOST");
	cleanup_free char *path = client_path("vms", cli->arguments[0], "");
	if (client_open(cli, &client, &e) < 0 || client_request(client, "GET", path, NULL, CLIENT_TIMEOUT_MS, &vm, &e) < 0 ||
	    console_connect(output_string(vm, "uuid"), &console, &e) < 0)
		return cli_fail(cli, e);
	bool terminal = isatty(STDIN_FILENO);
	struct termios saved, raw;
	if (terminal && tcgetattr(STDIN_FILENO, &saved) == 0) {
		fprintf(stderr, "The console of %s; Ctrl-] leaves.\r\n", output_string(vm, "name"));
		raw = saved;
		cfmakeraw(&raw);
		tcsetattr(STDIN_FILENO, TCSADRAIN, &raw);
	} else {
		terminal = false;
	}
	bool ended = console_join(console);
	if (terminal)
		tcsetattr(STDIN_FILENO, TCSADRAIN, &saved);
	if (ended)
		fprintf(stderr, "\nferry: the console was closed by the VM's side\n");
	return ended ? EXIT_FAILED : EXIT_COMPLETED;
}
