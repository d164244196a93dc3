/* SPDX-License-Identifier: Apache-2.0 */
/* ferryd's configuration; see config.h. */
#include "host/config.h"

#include <errno.h>
#include <grp.h>
#include <ini.h>
#include <pwd.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/file.h"
#include "base/xalloc.h"
#include "net/socket.h"

#define CONFIG_BYTES_MAX ((size_t)64 * 1024)
#define CONFIG_LINE_BYTES_MAX (INI_MAX_LINE - 2) /* inih's buffer holds a newline and a NUL too */

enum config_kind { TEXT, PORT, PORTS, NETWORKS, CHOICE, SECONDS, MEBIBYTES };

struct config_key {
	const char *section, *key;
	size_t offset;
	enum config_kind kind;
	const char *fallback, *meaning;
};

static const struct config_key keys[] = {
#define CONFIG_KEY(section, key, field, kind, fallback, meaning)                                                       \
	{section, key, offsetof(struct config, field), kind, fallback, meaning},
#include "host/config.tbl"
#undef CONFIG_KEY
};

#define KEY_COUNT (sizeof(keys) / sizeof(keys[0]))

static char **config_field(struct config *config, const struct config_key *key)
{
	return (char **)((char *)config + key->offset);
}

static int parse_number(const char *text, long min, long max, long *ret)
{
	char *end;
	errno = 0;
	long number = strtol(text, &end, 10);
	if (errno || end == text || *end || number < min || number > max)
		return -1;
	*ret = number;
	return 0;
}

static int parse_ports(const char *text, uint16_t *ret_min, uint16_t *ret_max)
{
	cleanup_free char *copy = xstrdup(text);
	char *dash = strchr(copy, '-');
	long min, max;
	if (!dash)
		return -1;
	*dash = '\0';
	if (parse_number(copy, 1, 65535, &min) < 0 || parse_number(dash + 1, min, 65535, &max) < 0)
		return -1;
	*ret_min = (uint16_t)min;
	*ret_max = (uint16_t)max;
	return 0;
}

/* Whether value is among the words of "[a|b|c]" at the beginning of the meaning. */
static bool choice_allowed(const char *meaning, const char *value)
{
	const char *close = strchr(meaning, ']');
	size_t length = strlen(value);
	for (const char *word = meaning + 1; word < close;) {
		size_t word_length = strcspn(word, "|]");
		if (word_length == length && strncmp(word, value, length) == 0)
			return true;
		word += word_length + 1;
	}
	return false;
}

static int check_value(const struct config_key *key, const char *value, struct error **e)
{
	long number;
	uint16_t min, max;
	struct error *problem = NULL;
	switch (key->kind) {
	case TEXT:
		return 0;
	case PORT:
		if (parse_number(value, 1, 65535, &number) < 0)
			return error_set(e, ERROR_CONFIG, "'%s' is not a port number", value);
		return 0;
	case PORTS:
		if (parse_ports(value, &min, &max) < 0)
			return error_set(e, ERROR_CONFIG, "'%s' is not a range of ports such as 49152-49215", value);
		return 0;
	case SECONDS:
		if (parse_number(value, 1, 86400, &number) < 0)
			return error_set(e, ERROR_CONFIG, "'%s' is not a number of seconds from 1 to 86400", value);
		return 0;
	case MEBIBYTES:
		if (parse_number(value, 0, 1048576, &number) < 0)
			return error_set(e, ERROR_CONFIG, "'%s' is not a number of MiB from 0 to 1048576", value);
		return 0;
	case NETWORKS:
		if (socket_networks_check(value, &problem) < 0) {
			problem->code = ERROR_CONFIG;
			return error_move(e, problem);
		}
		return 0;
	case CHOICE:
		if (!choice_allowed(key->meaning, value))
			return error_set(e, ERROR_CONFIG, "'%s' is not one of %.*s", value,
					 (int)(strchr(key->meaning, ']') - key->meaning + 1), key->meaning);
		return 0;
	}
	return 0;
}

struct reading {
	struct config *config;
	bool seen[KEY_COUNT];
	struct error *problem;
};

/* inih's handler: 0 stops with the line's number as the parser's result. */
static int on_key(void *user, const char *section, const char *name, const char *value)
{
	struct reading *reading = user;
	if (reading->problem)
		return 0; /* inih reads on, but says the first line */
	for (size_t i = 0; i < KEY_COUNT; i++) {
		if (strcmp(keys[i].section, section) != 0 || strcmp(keys[i].key, name) != 0)
			continue;
		char **field = config_field(reading->config, &keys[i]);
		/* Also a line that begins with a blank: inih takes it for one more value of the key above. */
		if (reading->seen[i]) {
			error_set(&reading->problem, ERROR_CONFIG, "[%s] %s is given twice", section, name);
			return 0;
		}
		reading->seen[i] = true;
		if (check_value(&keys[i], value, &reading->problem) < 0) {
			error_wrap(&reading->problem, "[%s] %s", section, name);
			return 0;
		}
		free(*field);
		*field = xstrdup(value);
		return 1;
	}
	error_set(&reading->problem, ERROR_CONFIG, "unknown key '%s' in section [%s]", name, section);
	return 0;
}

static int resolve_user(struct config *config, struct error **e)
{
	/* UID:GID; the highest number means "nobody in particular" to the kernel. */
	const char *colon = strchr(config->qemu_user, ':');
	if (colon && colon[1] >= '0' && colon[1] <= '9') {
		cleanup_free char *uid_text = xasprintf("%.*s", (int)(colon - config->qemu_user), config->qemu_user);
		long uid, gid;
		if (parse_number(uid_text, 1, UINT32_MAX - 1, &uid) == 0 && parse_number(colon + 1, 1, UINT32_MAX - 1, &gid) == 0) {
			config->uid = (uid_t)uid;
			config->gid = (gid_t)gid;
			return 0;
		}
	}
	const struct passwd *user = getpwnam(config->qemu_user);
	if (!user || user->pw_uid == 0)
		return error_set(e, ERROR_CONFIG,
				 "[qemu] user: there is no unprivileged user '%s'; make it with"
				 " `useradd --system --no-create-home %s`, or name another",
				 config->qemu_user, config->qemu_user);
	config->uid = user->pw_uid;
	config->gid = user->pw_gid;
	return 0;
}

/* Of a text that has been found to be a number of seconds. */
static int64_t seconds_to_ms(const char *text)
{
	return strtol(text, NULL, 10) * 1000;
}

static uint64_t mebibytes_to_bytes(const char *text)
{
	return strtoull(text, NULL, 10) * 1024 * 1024;
}

static int config_settle(struct config *config, struct error **e)
{
	static const struct {
		const char *name;
		enum log_level level;
	} levels[] = {{"error", LOG_LEVEL_ERROR}, {"warning", LOG_LEVEL_WARNING}, {"info", LOG_LEVEL_INFO}, {"debug", LOG_LEVEL_DEBUG}};
	if (!*config->host_name) {
		char name[256] = "";
		gethostname(name, sizeof(name) - 1);
		free(config->host_name);
		config->host_name = xstrdup(name);
	}
	if (!*config->data_address) {
		free(config->data_address);
		config->data_address = xstrdup(config->control_address);
	}
	config->control_port_number = (uint16_t)strtoul(config->control_port, NULL, 10);
	config->data_port_number = (uint16_t)strtoul(config->data_port, NULL, 10);
	(void)parse_ports(config->native_ports, &config->data_port_min, &config->data_port_max);
	config->times = (struct migration_times){
		.finish_timeout_ms = seconds_to_ms(config->finish_timeout_s),
		.silence_limit_ms = seconds_to_ms(config->silence_limit_s),
		.check_timeout_ms = seconds_to_ms(config->check_timeout_s),
		.prepare_timeout_ms = seconds_to_ms(config->prepare_timeout_s),
		.refuse_timeout_ms = seconds_to_ms(config->refuse_timeout_s),
		.outcome_timeout_ms = seconds_to_ms(config->outcome_timeout_s),
		.check_lifetime_ms = seconds_to_ms(config->check_lifetime_s),
		.retry_limit_ms = seconds_to_ms(config->retry_limit_s),
	};
	config->received_bytes = mebibytes_to_bytes(config->received_mib);
	config->copies_bytes = mebibytes_to_bytes(config->copies_mib);
	config->index_bytes = mebibytes_to_bytes(config->indexes_mib);
	config->stream_timeout_ms = seconds_to_ms(config->stream_timeout_s);
	config->sampling_ms = seconds_to_ms(config->sampling_interval_s);
	for (size_t i = 0; i < sizeof(levels) / sizeof(levels[0]); i++)
		if (strcmp(levels[i].name, config->log_level) == 0)
			config->level = levels[i].level;
	return resolve_user(config, e);
}

/* The file as text that inih reads as it stands there: inih cuts what is longer than its buffer, and would take the rest
 * of a line for a line of its own; and it ends at a NUL. *ret_text is "" where there is no file and none is needed. */
static int config_read_text(const char *path, bool optional, char **ret_text, struct error **e)
{
	cleanup_free char *text = NULL;
	struct error *problem = NULL;
	size_t length = 0;
	if (file_read(path, CONFIG_BYTES_MAX, &text, &length, &problem) < 0) {
		bool missing = problem->code == ERROR_NOT_FOUND;
		problem->code = ERROR_CONFIG;
		if (!(missing && optional))
			return error_move(e, problem);
		error_free(problem);
		*ret_text = xstrdup("");
		return 0;
	}
	unsigned int number = 1;
	for (const char *line = text; line < text + length; number++) {
		const char *end = memchr(line, '\n', (size_t)(text + length - line));
		size_t line_length = (size_t)((end ? end : text + length) - line);
		if (line_length > CONFIG_LINE_BYTES_MAX)
			return error_set(e, ERROR_CONFIG, "%s:%u: the line is longer than %d bytes", path, number,
					 CONFIG_LINE_BYTES_MAX);
		if (memchr(line, '\0', line_length))
			return error_set(e, ERROR_CONFIG, "%s:%u: there is a NUL in the line", path, number);
		line += line_length + 1;
	}
	*ret_text = take_ptr(text);
	return 0;
}

int config_read(const char *path, bool optional, struct config *ret, struct error **e)
{
	cleanup_free char *text = NULL;
	if (config_read_text(path, optional, &text, e) < 0)
		return -1;
	struct config config = {0};
	struct reading reading = {.config = &config};
	for (size_t i = 0; i < KEY_COUNT; i++)
		*config_field(&config, &keys[i]) = xstrdup(keys[i].fallback);
	int line = ini_parse_string(text, on_key, &reading);
	if (line > 0) {
		if (reading.problem)
			error_wrap(&reading.problem, "%s:%d", path, line);
		else
			error_set(&reading.problem, ERROR_CONFIG, "%s:%d: not a section, a key or a comment", path, line);
	}
	if (reading.problem || config_settle(&config, &reading.problem) < 0) {
		config_done(&config);
		return error_move(e, reading.problem);
	}
	*ret = config;
	return 0;
}

void config_done(struct config *config)
{
	for (size_t i = 0; i < KEY_COUNT; i++)
		free(*config_field(config, &keys[i]));
	*config = (struct config){0};
}

void config_print_keys(FILE *out)
{
	const char *section = "";
	for (size_t i = 0; i < KEY_COUNT; i++) {
		if (strcmp(section, keys[i].section) != 0)
			fprintf(out, "%s[%s]\n", *section ? "\n" : "", keys[i].section);
		section = keys[i].section;
		fprintf(out, "# %s\n%s%s = %s\n", keys[i].meaning, *keys[i].fallback ? "" : "# ", keys[i].key, keys[i].fallback);
	}
}
