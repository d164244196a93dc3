/* SPDX-License-Identifier: Apache-2.0 */
/*
 * ferry migrate: put the request together, send it, follow the migration to its end.
 *
 * The source's ferryd drives; we may go away at any time. If the answer to the request is lost (ferryd restarted just
 * then), the list of migrations tells whether it was accepted; asking twice could start a second one.
 */
#include <stdio.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/xalloc.h"
#include "cli/interrupt.h"
#include "cli/output.h"
#include "cli/report.h"
#include "cli/units.h"
#include "cli/watch.h"

/* What `ferry migrate` and `ferry plan` both know. */
#define MOVE_OPTIONS                                                                                                           \
	{"to", "HOST", "where to; a name of `ferry host list` (required)"},                                                    \
		{"max-downtime", "TIME", "longest pause of the guest (300ms)"},                                                \
		{"deadline", "TIME", "give up, and leave the VM where it is, after this long"},                                \
		{"converge", "LIST",                                                                                           \
		 "what may be done about a guest that writes too fast: throttle, postcopy, pause=TIME, or none (throttle)"},   \
		{"policy", "NAME", "decide as this system does: ferry, or another for comparison (ferry)"},                    \
		{"bandwidth", "RATE", "use no more of the link than this"},                                                    \
		{"channels", "N", "connections that carry memory, 1 to 64 (1)"},                                               \
		{"map", "WHAT:A=B", "A is called B there, such as bridge:br0=br1; repeat for more"}

const struct verb_option migrate_options[] = {
	MOVE_OPTIONS,
	{"transport", "auto|native|relay", "how memory travels (auto)"},
	{"dry-run", NULL, "make all checks, tell every failure, move nothing"},
	{"paused", NULL, "leave the VM paused at the destination"},
	{"keep-source-definition", NULL, "leave a definition behind, marked as moved"},
	{"detach", NULL, "return once the request is accepted"},
	{NULL},
};

const struct verb_option plan_options[] = {MOVE_OPTIONS, {NULL}};

static int migrate_check_map(const char *map, struct error **e)
{
	size_t kind = strspn(map, "abcdefghijklmnopqrstuvwxyz-");
	const char *equals = map[kind] == ':' ? strchr(map + kind + 1, '=') : NULL;
	if (kind == 0 || !equals || equals == map + kind + 1 || !equals[1])
		return error_set(e, ERROR_INVALID_ARGUMENT, "'%s' is not a map; write it as bridge:br0=br1", map);
	return 0;
}

/* Up to the bound of QEMU, which ferryd knows. */
static int migrate_pause(const char *text, int64_t *ret_ms, struct error **e)
{
	int64_t pause_ms;
	if (units_parse_duration(text, &pause_ms, e) < 0)
		return -1;
	if (pause_ms > 2000000)
		return error_set(e, ERROR_INVALID_ARGUMENT, "a pause is of 2000s at most");
	*ret_ms = pause_ms;
	return 0;
}

/* "throttle,pause=4s", "none". */
static int migrate_converge(const char *text, json_t *body, struct error **e)
{
	cleanup_free char *copy = xstrdup(text);
	cleanup_json json_t *means = json_array();
	char *rest = copy;
	for (char *word; strcmp(text, "none") != 0 && (word = strsep(&rest, ","));) {
		int64_t pause_ms = 0;
		if (strncmp(word, "pause=", 6) == 0) {
			if (migrate_pause(word + 6, &pause_ms, e) < 0)
				return error_wrap(e, "--converge pause");
			json_object_set_new(body, "pause_ms", json_integer(pause_ms));
			json_array_append_new(means, json_string("pause"));
		} else if (strcmp(word, "throttle") == 0 || strcmp(word, "postcopy") == 0) {
			json_array_append_new(means, json_string(word));
		} else {
			return error_set(e, ERROR_INVALID_ARGUMENT,
					 "--converge: '%s' is not one of throttle, postcopy, pause=TIME; write them in the order in which they may"
					 " be used, or none",
					 word);
		}
	}
	json_object_set(body, "converge", means);
	return 0;
}

int migrate_promise(const struct cli *cli, json_t *body, struct error **e)
{
	const char *value;
	int64_t number;
	if ((value = cli_option(cli, "max-downtime"))) {
		if (migrate_pause(value, &number, e) < 0)
			return error_wrap(e, "--max-downtime");
		json_object_set_new(body, "max_downtime_ms", json_integer(number));
	}
	if ((value = cli_option(cli, "deadline"))) {
		number = 0;
		if (strcmp(value, "none") != 0 && units_parse_duration(value, &number, e) < 0)
			return error_wrap(e, "--deadline");
		json_object_set_new(body, "deadline_ms", json_integer(number));
	}
	if ((value = cli_option(cli, "bandwidth"))) {
		number = 0;
		if (strcmp(value, "none") != 0 && units_parse_rate(value, &number, e) < 0)
			return error_wrap(e, "--bandwidth");
		json_object_set_new(body, "bandwidth_bytes_per_s", json_integer(number));
	}
	value = cli_option(cli, "converge");
	return value ? migrate_converge(value, body, e) : 0;
}

int migrate_request(const struct cli *cli, json_t *body, struct error **e)
{
	const char *value;
	int64_t number;
	json_object_set_new(body, "to", json_string(cli_option(cli, "to")));
	if (cli_flag(cli, "dry-run"))
		json_object_set_new(body, "dry_run", json_true());
	if (cli_flag(cli, "paused"))
		json_object_set_new(body, "paused", json_true());
	if (cli_flag(cli, "keep-source-definition"))
		json_object_set_new(body, "keep_source_definition", json_true());
	if ((value = cli_option(cli, "transport"))) {
		if (strcmp(value, "auto") != 0 && strcmp(value, "native") != 0 && strcmp(value, "relay") != 0)
			return error_set(e, ERROR_INVALID_ARGUMENT, "'%s' is not a transport; there are auto, native and relay", value);
		json_object_set_new(body, "transport", json_string(value));
	}
	if (migrate_promise(cli, body, e) < 0)
		return -1;
	if ((value = cli_option(cli, "policy")))
		json_object_set_new(body, "policy", json_string(value));
	if ((value = cli_option(cli, "channels"))) {
		if (units_parse_integer(value, "--channels", 1, 64, &number, e) < 0)
			return -1;
		json_object_set_new(body, "channels", json_integer(number));
	}
	json_t *maps = json_array();
	for (size_t i = 0; (value = cli_option_nth(cli, "map", i)); i++) {
		if (migrate_check_map(value, e) < 0) {
			json_decref(maps);
			return error_wrap(e, "--map");
		}
		json_array_append_new(maps, json_string(value));
	}
	if (json_array_size(maps) > 0)
		json_object_set(body, "maps", maps);
	json_decref(maps);
	return 0;
}

static int migrate_dry_run(struct watch *watch, const char *path, const json_t *body)
{
	struct cli *cli = watch->cli;
	cleanup_error struct error *e = NULL;
	cleanup_json json_t *answer = NULL;
	if (client_request(watch->client, "POST", path, body, CLIENT_LONG_TIMEOUT_MS, &answer, &e) < 0) {
		cli_fail(cli, e);
		return e->code == ERROR_CANCELLED ? EXIT_CANCELLED : cli_migration_refusal(e->code);
	}
	bool ok = json_is_true(json_object_get(answer, "ok"));
	const char *vm = cli->arguments[0], *to = cli_option(cli, "to");
	if (!ok)
		report_failures(json_object_get(answer, "failures"), vm, to);
	if (cli->json)
		output_json(answer);
	else if (ok)
		printf("%s can move to %s: all checks passed.\n", vm, to);
	return ok ? EXIT_COMPLETED : EXIT_REFUSED;
}

/* Whether this migration can be the one that we asked for at wall_ms. */
static bool migrate_is_ours(const struct cli *cli, const json_t *migration, int64_t wall_ms)
{
	const char *vm = cli->arguments[0];
	if (strcmp(output_string(migration, "vm"), vm) != 0 && strcmp(output_string(migration, "vm_uuid"), vm) != 0)
		return false;
	if (strcmp(output_string(migration, "destination"), cli_option(cli, "to")) != 0)
		return false;
	/* Another host's clock cannot be compared with ours, so there only one that still goes on counts. */
	if (!json_is_true(json_object_get(migration, "ended")))
		return true;
	return !cli->host && output_integer(migration, "started_at_ms") >= wall_ms;
}

/* The answer to our request was lost: find out whether it was accepted. */
static int migrate_find(struct watch *watch, int64_t wall_ms, struct error **e)
{
	cleanup_json json_t *answer = NULL;
	if (watch_request(watch, "GET", "/v1/migrations", CLIENT_TIMEOUT_MS, &answer, e) < 0)
		return -1;
	const json_t *list = json_object_get(answer, "migrations");
	for (size_t i = 0; i < json_array_size(list); i++)
		if (migrate_is_ours(watch->cli, json_array_get(list, i), wall_ms)) {
			watch->migration = json_incref(json_array_get(list, i));
			return 0;
		}
	return error_set(e, ERROR_DAEMON_UNREACHABLE, "ferryd went away before it accepted the migration; nothing was started");
}

/* Send the request; watch->migration is set on success. Returns -1 to go on, else the exit status. */
static int migrate_send(struct watch *watch, const char *path, const json_t *body)
{
	struct cli *cli = watch->cli;
	cleanup_error struct error *e = NULL;
	int64_t wall_ms = clock_wall_ms();
	/* The first signal waits for the answer, since only that says what to cancel. */
	client_set_interrupts(1);
	int result = client_request(watch->client, "POST", path, body, CLIENT_TIMEOUT_MS, &watch->migration, &e);
	if (result < 0 && client_answered(watch->client)) {
		cli_fail(cli, e);
		return cli_migration_refusal(e->code);
	}
	if (result < 0 && !client_interrupted()) {
		error_free(take_ptr(e));
		result = migrate_find(watch, wall_ms, &e);
	}
	if (result < 0 && client_interrupted()) {
		error_free(take_ptr(e));
		error_set(&e, ERROR_CANCELLED, "left before ferryd answered; `ferry migration list` tells whether the move was accepted");
		cli_fail(cli, e);
		return EXIT_BY_SIGNAL + interrupt_signal();
	}
	if (result < 0) {
		cli_fail(cli, e);
		return client_answered(watch->client) ? EXIT_FAILED : EXIT_IN_DOUBT;
	}
	return -1;
}

int run_migrate(struct cli *cli)
{
	cleanup_error struct error *e = NULL;
	const char *to = cli_option(cli, "to");
	if (!to || !*to)
		return cli_usage(cli, "'ferry migrate' needs --to HOST");
	cleanup_json json_t *body = json_object();
	if (migrate_request(cli, body, &e) < 0)
		return cli_usage(cli, "%s", e->message);
	struct watch watch;
	if (watch_open(&watch, cli, &e) < 0)
		return cli_fail(cli, e);
	watch.abort_on_interrupt = true;
	watch.stop_in_doubt = true;
	cleanup_free char *path = client_path("vms", cli->arguments[0], "/migrate");
	int status;
	if (cli_flag(cli, "dry-run")) {
		status = migrate_dry_run(&watch, path, body);
	} else {
		status = migrate_send(&watch, path, body);
		if (status < 0 && cli_flag(cli, "detach")) {
			if (cli->json)
				output_json(watch.migration);
			else
				printf("%s is on its way to %s. Follow it with: ferry migration watch %s\n",
				       output_string(watch.migration, "vm"), to, output_string(watch.migration, "id"));
			status = EXIT_COMPLETED;
		} else if (status < 0) {
			status = watch_to_end(&watch, NULL);
		}
	}
	watch_done(&watch);
	return status;
}
