/* SPDX-License-Identifier: Apache-2.0 */
/*
 * ferryd's configuration (src/host/config.c, and lists of networks in src/net/socket.c). The input is the file.
 *
 * Properties: an error is one of the configuration and names the file; what is accepted is within its limits; networks
 * that were accepted can be asked.
 */
#include "fuzz.h"

#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/xalloc.h"
#include "host/config.h"
#include "net/socket.h"

static void check_config(const struct config *config)
{
	REQUIRE(config->control_port_number >= 1);
	REQUIRE(config->data_port_min >= 1 && config->data_port_min <= config->data_port_max);
	REQUIRE(config->times.finish_timeout_ms >= 1000 && config->times.finish_timeout_ms <= 86400000);
	REQUIRE(config->times.silence_limit_ms >= 1000 && config->times.silence_limit_ms <= 86400000);
	REQUIRE(config->uid != 0 && config->uid != (uid_t)-1 && config->gid != (gid_t)-1);
	REQUIRE(config->level >= LOG_LEVEL_ERROR && config->level <= LOG_LEVEL_DEBUG);
	REQUIRE(socket_networks_check(config->trusted_networks, NULL) == 0);
	REQUIRE(!socket_address_in_networks("no address", config->trusted_networks));
	(void)socket_address_in_networks("198.18.0.1", config->trusted_networks);
	(void)socket_address_in_networks("2001:db8::1", config->trusted_networks);
#define CONFIG_KEY(section, key, field, kind, fallback, meaning) REQUIRE(config->field);
#include "host/config.tbl"
#undef CONFIG_KEY
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	cleanup_close int fd = memfd_create("ferry.conf", MFD_CLOEXEC);
	REQUIRE(fd >= 0 && write(fd, data, size) == (ssize_t)size);
	cleanup_free char *path = xasprintf("/proc/self/fd/%d", fd);
	struct config config;
	struct error *e = NULL;
	if (config_read(path, false, &config, &e) < 0) {
		REQUIRE(e->code == ERROR_CONFIG);
		fuzz_check_error(e);
		return 0;
	}
	check_config(&config);
	config_done(&config);
	return 0;
}
