/* SPDX-License-Identifier: Apache-2.0 */
/* ferryd's configuration, read once at start (INI, by inih). All keys are rows of config.tbl. */
#ifndef FERRY_HOST_CONFIG_H
#define FERRY_HOST_CONFIG_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/types.h>

#include "base/error.h"
#include "base/log.h"
#include "migration/host.h"

#define CONFIG_PATH "/etc/ferry/ferry.conf"

struct config {
	/* As written, one text a key. */
#define CONFIG_KEY(section, key, field, kind, fallback, meaning) char *field;
#include "host/config.tbl"
#undef CONFIG_KEY
	/* What it comes to. */
	uint16_t control_port_number, data_port_number, data_port_min, data_port_max;
	struct migration_times times;
	int64_t stream_timeout_ms;
	uint64_t received_bytes, copies_bytes, index_bytes;
	int64_t sampling_ms; /* whether or not it is wanted */
	enum log_level level;
	uid_t uid; /* of QEMU */
	gid_t gid;
};

/* Read a file; one that is not there is an empty one if `optional`. The error names file and line. */
int config_read(const char *path, bool optional, struct config *ret, struct error **e) MUST_CHECK;
void config_done(struct config *config);
/* All keys with their defaults and meanings, in the form of a configuration file. */
void config_print_keys(FILE *out);

#endif
