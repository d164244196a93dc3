/* SPDX-License-Identifier: Apache-2.0 */
/*
 * ferry migration resolve: a person says who owns the VM of a migration that waits in doubt, because a host is gone for good.
 *
 * The daemons never guess here, so this is the one verb that can do harm: it rests on a statement, that the other host is
 * fenced, which nobody but the person can check. Hence the statement is an option of its own that names the host, and on a
 * terminal the name is asked for once more, below a description of what is going to happen.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "cli/interrupt.h"
#include "cli/output.h"
#include "cli/report.h"
#include "cli/watch.h"

/* How long a migration that has been settled may still be called in doubt, while its daemon acts on it. */
#define RESOLVE_PATIENCE_MS 30000

const struct verb_option resolve_options[] = {
	{"owner", "HOST", "the host that owns the VM from now on: source or destination (required)"},
	{"fenced", "HOST", "the other one, of which you state that it is fenced (required)"},
	{"yes", NULL, "do not ask for the name of the fenced host again"},
	{NULL},
};

static void resolve_explain_fencing(void)
{
	fputs("  Fenced means: that host cannot run the VM and cannot write to its disks, and this stays so. It is powered off, or\n"
	      "  cut from the VM's storage and from its network. That it does not answer is no sign of it: a host behind a broken\n"
	      "  link runs on. If the statement is false, two copies of the VM run and destroy its disks.\n",
	      stderr);
}

/* ---- asking on a terminal ---- */

static bool resolve_is(const json_t *migration, const char *key, const char *text)
{
	return strcmp(output_string(migration, key), text) == 0;
}

/* The daemon decides what may be settled. But what is going to happen can only be said, and so agreed to, of a migration
 * that waits, and of its own two hosts. */
static int resolve_check(const json_t *migration, const char *owner, const char *fenced, struct error **e)
{
	const char *id = output_string(migration, "id");
	bool to_source = resolve_is(migration, "source", owner);
	if (json_is_true(json_object_get(migration, "ended")))
		return error_set(e, ERROR_MIGRATION_ENDED, "migration %s has ended; %s is owned by %s", id,
				 output_string(migration, "vm"), output_string(migration, "owner"));
	if (!resolve_is(migration, "status", "in-doubt"))
		return error_set(e, ERROR_MIGRATION_NOT_IN_DOUBT, "migration %s is %s: abort it, or wait", id,
				 output_string(migration, "status"));
	if (!to_source && !resolve_is(migration, "destination", owner))
		return error_set(e, ERROR_INVALID_ARGUMENT, "--owner '%s' is neither the source %s nor the destination %s", owner,
				 output_string(migration, "source"), output_string(migration, "destination"));
	if (!resolve_is(migration, to_source ? "destination" : "source", fenced))
		return error_set(e, ERROR_MIGRATION_NOT_FENCED, "--fenced '%s' is not the other host, %s", fenced,
				 output_string(migration, to_source ? "destination" : "source"));
	return 0;
}

static void resolve_describe(const json_t *migration, const char *owner, const char *fenced)
{
	cleanup_free char *vm = output_safe(output_string(migration, "vm"));
	cleanup_free char *awaited = report_waiting(migration);
	/* The daemon that is asked is one of the two; what it can do itself differs from what it can only put on record. */
	const char *asked = output_string(migration, resolve_is(migration, "role", "destination") ? "destination" : "source");
	fprintf(stderr, "The move of %s from %s to %s is in doubt", vm, output_string(migration, "source"),
		output_string(migration, "destination"));
	if (awaited)
		fprintf(stderr, ", waiting %s", awaited);
	fputs(".\n", stderr);
	if (strcmp(owner, asked) != 0)
		fprintf(stderr,
			"From now on %s owns %s: the copy on %s is ended, and %s gives the VM up for good. Do this only if you know\n"
			"that %s has it.\n",
			owner, vm, fenced, fenced, owner);
	else
		fprintf(stderr,
			"From now on %s owns %s, and whatever %s believes of it is void. It is left paused: resume it there only if you\n"
			"know that it has not run on %s since, else its disks have changed: stop it, and start it anew.\n",
			owner, vm, fenced, fenced);
	if (json_is_true(json_object_get(migration, "postcopy")))
		fprintf(stderr,
			"It is in post-copy: unless all of its memory has arrived, each host has a part of it, and the guest, as it runs\n"
			"now, is lost without the other: it can only be started anew on %s.\n",
			owner);
	fprintf(stderr, "This cannot be taken back. You state that %s is fenced.\n", fenced);
	resolve_explain_fencing();
}

/* One line of stdin without its end; false at the end of input. */
static bool resolve_read_line(char **ret)
{
	char *line = NULL;
	size_t room = 0;
	ssize_t length = getline(&line, &room, stdin);
	if (length < 0) {
		free(line);
		return false;
	}
	line[strcspn(line, "\r\n")] = '\0';
	*ret = line;
	return true;
}

/* Returns -1 to go on, else the exit status. A signal ends the program here: nothing has been asked for yet. */
static int resolve_confirm(struct cli *cli, const char *owner, const char *fenced)
{
	cleanup_error struct error *e = NULL;
	cleanup_client struct client *client = NULL;
	cleanup_json json_t *migration = NULL;
	cleanup_free char *path = client_path("migrations", cli->arguments[0], "");
	if (client_open(cli, &client, &e) < 0 ||
	    client_request(client, "GET", path, NULL, CLIENT_TIMEOUT_MS, &migration, &e) < 0 ||
	    resolve_check(migration, owner, fenced, &e) < 0)
		return cli_fail(cli, e);
	resolve_describe(migration, owner, fenced);
	fprintf(stderr, "Type the name of the fenced host to go on: ");
	cleanup_free char *typed = NULL;
	if (resolve_read_line(&typed) && strcmp(typed, fenced) == 0)
		return -1;
	fprintf(stderr, "%sferry: not confirmed; nothing was done\n", typed ? "" : "\n");
	return EXIT_CANCELLED;
}

/* ---- settling ---- */

static int resolve_fail(const struct cli *cli, const struct error *e)
{
	int status = cli_fail(cli, e);
	if (e->code == ERROR_MIGRATION_NOT_FENCED)
		resolve_explain_fencing();
	return e->code == ERROR_MIGRATION_NOT_FENCED ? EXIT_USAGE : status;
}

static bool resolve_owned_by(const json_t *migration, const char *owner)
{
	return json_is_true(json_object_get(migration, "ended")) && resolve_is(migration, "owner", owner);
}

/* It has ended without us: the host that was awaited has answered, or somebody else settled it. Nothing is left to do if the
 * owner is the one that was stated. */
static int resolve_ended(struct watch *watch, const char *path, const char *owner, const struct error *ended)
{
	cleanup_error struct error *e = NULL;
	json_t *migration = NULL;
	if (watch_request(watch, "GET", path, CLIENT_TIMEOUT_MS, &migration, &e) < 0)
		return resolve_fail(watch->cli, ended);
	watch->migration = migration;
	if (!resolve_owned_by(migration, owner))
		return resolve_fail(watch->cli, ended);
	progress_note(watch->progress, "It is settled already.");
	(void)report_end(watch->cli, migration);
	return EXIT_COMPLETED;
}

/* The answer was lost: look whether it was done. If not, it is for the person to say it again, not for us. */
static int resolve_find(struct watch *watch, const char *path, struct error **e)
{
	cleanup_error struct error *failure = NULL;
	if (watch_request(watch, "GET", path, CLIENT_TIMEOUT_MS, &watch->migration, &failure) < 0)
		return error_set(e, ERROR_DAEMON_UNREACHABLE,
				 "ferryd went away before it answered, and does not answer now; `ferry migration show` will tell "
				 "whether the migration was settled");
	if (json_is_true(json_object_get(watch->migration, "ended")) || json_is_object(json_object_get(watch->migration, "resolved")))
		return 0;
	return error_set(e, ERROR_DAEMON_UNREACHABLE, "ferryd went away before it settled the migration; nothing was done");
}

/* Ask for it; watch->migration is set on success. Returns -1 to go on, else the exit status. */
static int resolve_send(struct watch *watch, const json_t *body, const char *owner)
{
	struct cli *cli = watch->cli;
	cleanup_error struct error *e = NULL;
	cleanup_free char *path = client_path("migrations", cli->arguments[0], "/resolve");
	cleanup_free char *show = client_path("migrations", cli->arguments[0], "");
	if (client_request(watch->client, "POST", path, body, CLIENT_LONG_TIMEOUT_MS, &watch->migration, &e) == 0)
		return -1;
	if (client_answered(watch->client))
		return e->code == ERROR_MIGRATION_ENDED ? resolve_ended(watch, show, owner, e) : resolve_fail(cli, e);
	bool left = client_interrupted();
	error_free(take_ptr(e));
	if (left) {
		error_set(&e, ERROR_CANCELLED,
			  "left before ferryd answered; `ferry migration show` tells whether the migration was settled");
		(void)cli_fail(cli, e);
		return EXIT_BY_SIGNAL + interrupt_signal();
	}
	if (resolve_find(watch, show, &e) == 0)
		return -1;
	(void)cli_fail(cli, e);
	return watch->migration ? EXIT_FAILED : EXIT_IN_DOUBT;
}

/* To the end, which is near: only what the daemon itself must do is left. */
static int resolve_follow(struct watch *watch, const char *owner)
{
	watch->stop_in_doubt = true;
	watch->in_doubt_until_us = clock_monotonic_us() + (int64_t)RESOLVE_PATIENCE_MS * 1000;
	int status = watch_to_end(watch, NULL);
	if (!json_is_true(json_object_get(watch->migration, "ended")))
		return status;
	return resolve_owned_by(watch->migration, owner) ? EXIT_COMPLETED : EXIT_FAILED;
}

int run_migration_resolve(struct cli *cli)
{
	cleanup_error struct error *e = NULL;
	const char *owner = cli_option(cli, "owner"), *fenced = cli_option(cli, "fenced");
	if (!owner || !*owner)
		return cli_usage(cli, "'ferry migration resolve' needs --owner HOST: who owns the VM from now on");
	if (!fenced || !*fenced) {
		int status = cli_usage(cli, "'ferry migration resolve' needs --fenced HOST: your statement that the host which is not "
					    "to own the VM is fenced");
		resolve_explain_fencing();
		return status;
	}
	if (strcmp(owner, fenced) == 0)
		return cli_usage(cli, "%s cannot own the VM and be fenced; --fenced names the other host", owner);
	cleanup_json json_t *body = json_pack("{ss ss}", "owner", owner, "fenced", fenced);
	if (!body)
		return cli_usage(cli, "a host's name is UTF-8");
	if (isatty(STDIN_FILENO) && !cli->json && !cli_flag(cli, "yes")) {
		int status = resolve_confirm(cli, owner, fenced);
		if (status >= 0)
			return status;
	}
	struct watch watch;
	if (watch_open(&watch, cli, &e) < 0)
		return cli_fail(cli, e);
	int status = resolve_send(&watch, body, owner);
	if (status < 0)
		status = resolve_follow(&watch, owner);
	watch_done(&watch);
	return status;
}
