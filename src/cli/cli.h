/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the verbs of `ferry` share: one row a verb, its parsed arguments, exit statuses, and how failures are told.
 *
 * A verb's function does all its talking itself and returns the exit status. stdout carries results only: with
 * `--output json` exactly one JSON value, also on failure ({"error": {…}}); words about failures go to stderr.
 * One thread; blocking.
 */
#ifndef FERRY_CLI_CLI_H
#define FERRY_CLI_CLI_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"

enum exit_status {
	EXIT_COMPLETED = 0,
	EXIT_FAILED = 1, /* rolled back, failed, or an error of any other verb */
	EXIT_USAGE = 2,
	EXIT_REFUSED = 3, /* by a check */
	EXIT_IN_DOUBT = 4, /* in doubt, recovering, or nobody answers any more who could tell */
	EXIT_CANCELLED = 5,
	EXIT_BY_SIGNAL = 128, /* plus the signal: left without waiting for the end */
};

/* An option of a verb. --output and --help need no row. */
struct verb_option {
	const char *name;     /* "max-downtime" */
	const char *argument; /* what stands for it in --help; NULL: a flag */
	const char *help;
};

struct cli;
struct verb {
	const char *name;		   /* "vm start" */
	const char *arguments;		   /* "VM" */
	int min_arguments, max_arguments;  /* positional ones; max -1: any number */
	const struct verb_option *options; /* ends with a row without name; NULL: none */
	const char *summary;
	const char *notes; /* more for --help, or NULL */
	const char *example;
	int (*run)(struct cli *cli);
};

/* What only the program that is linked with TLS can do (remote.c). */
struct client;
struct cli_remote {
	int (*connect)(const char *where, struct client **ret, struct error **e);
	int (*pki)(struct cli *cli);
	int (*stream)(struct cli *cli);
};

struct cli {
	char **argv;		  /* the whole command line */
	const char *host;	  /* -H or FERRY_HOST; NULL: the local ferryd */
	bool json;		  /* --output json */
	const struct verb *verb;
	char **arguments; /* positional ones */
	int argument_count;
	const char **option_values; /* pairs: option's name, its value ("" for a flag), in the order given */
	size_t option_count;
	const struct cli_remote *remote; /* NULL in the small program */
};

int cli_main(int argc, char **argv, const struct cli_remote *remote);
/* Start the program that has TLS in place of this one, with the same command line. Returns only if that fails. */
int cli_become_remote(struct cli *cli);

bool cli_flag(const struct cli *cli, const char *name);
/* The last value given, or NULL. */
const char *cli_option(const struct cli *cli, const char *name);
/* The index-th value of an option that may be repeated, or NULL. */
const char *cli_option_nth(const struct cli *cli, const char *name, size_t index);

/* Tell of a wrong command line; returns EXIT_USAGE. */
int cli_usage(const struct cli *cli, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* Tell of an error (as {"error": …} on stdout too, with --output json) and what to do about it; the status is EXIT_USAGE
 * where the server calls an argument wrong, else EXIT_FAILED. */
int cli_fail(const struct cli *cli, const struct error *e);
/* The status of a migration that was refused with this code. */
int cli_migration_refusal(enum error_code code);

/* One function a verb, or a group where they are alike. */
int run_migrate(struct cli *cli);
int run_migration_list(struct cli *cli);
int run_migration_show(struct cli *cli);
int run_migration_watch(struct cli *cli);
int run_migration_abort(struct cli *cli);
int run_migration_resolve(struct cli *cli);
int run_migration_set(struct cli *cli);
int run_migration_stats(struct cli *cli);
int run_plan(struct cli *cli);
int run_migration_complete(struct cli *cli);
int run_migration_recover(struct cli *cli);
int run_vm_define(struct cli *cli);
int run_vm_list(struct cli *cli);
int run_vm_show(struct cli *cli);
int run_vm_change(struct cli *cli); /* start, shutdown, stop, reboot, pause, resume */
int run_vm_undefine(struct cli *cli);
int run_vm_console(struct cli *cli);
int run_host_add(struct cli *cli);
int run_host_list(struct cli *cli);
int run_host_show(struct cli *cli);
int run_host_remove(struct cli *cli);
int run_image_index(struct cli *cli);
int run_image_list(struct cli *cli);
int run_image_forget(struct cli *cli);

/* --max-downtime, --deadline, --bandwidth and --converge, as far as given, into the body of a request. */
int migrate_promise(const struct cli *cli, json_t *body, struct error **e) MUST_CHECK;
/* All of the request, for `ferry plan` too; what was not given is left out, so that defaults are the daemon's. */
int migrate_request(const struct cli *cli, json_t *body, struct error **e) MUST_CHECK;

extern const struct verb_option image_options[], migrate_options[], plan_options[], resolve_options[], set_options[], show_options[];

#endif
