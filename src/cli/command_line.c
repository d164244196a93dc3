/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The command line of `ferry`: the table of all verbs, parsing by it, --help from it, suggestions for what was mistyped,
 * and how failures are told. A verb is one or two words ("migrate", "vm start"); its row says what it takes, so that
 * parser, help and completion cannot differ.
 */
#include "cli/cli.h"

#include <ctype.h>
#include <errno.h>
#include <getopt.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/xalloc.h"
#include "cli/output.h"

#ifndef FERRY_LIBEXEC
#define FERRY_LIBEXEC "/usr/libexec/ferry"
#endif

/* pki options live here, not in pki.c, which only ferry-remote is linked with. */
static const struct verb_option pki_init_options[] = {
	{"folder", "FOLDER", "where to put ca.crt and ca.key (/etc/ferry/pki)"},
	{NULL},
};
static const struct verb_option pki_issue_options[] = {
	{"address", "ADDRESS", "an address or further DNS name of the host; repeat for more"},
	{"client", NULL, "for a remote client, not for a host"},
	{"out", "FOLDER", "where to put the files (/etc/ferry/pki)"},
	{"ca", "FOLDER", "where ca.crt and ca.key are (/etc/ferry/pki)"},
	{NULL},
};
static const struct verb_option pki_renew_options[] = {
	{"folder", "FOLDER", "where the certificate is (/etc/ferry/pki)"},
	{"client", NULL, "it is a remote client's, not a host's"},
	{"ca", "FOLDER", "where ca.crt and ca.key are (/etc/ferry/pki)"},
	{NULL},
};
static const struct verb_option stream_options[] = {
	{"image", "FILE", "look for the pages in this file, too; repeat for more"},
	{NULL},
};

/* What needs TLS is done by the other program. */
static int run_pki(struct cli *cli)
{
	return cli->remote ? cli->remote->pki(cli) : cli_become_remote(cli);
}

static int run_stream(struct cli *cli)
{
	return cli->remote ? cli->remote->stream(cli) : cli_become_remote(cli);
}

static const struct verb verbs[] = {
	{"migrate", "VM", 1, 1, migrate_options, "move a running VM to another host",
	 "While it runs on a terminal, a line shows how far it is. Ctrl-C asks for the move to be cancelled and waits until\n"
	 "the VM is settled where it was; a second Ctrl-C leaves at once, and the migration goes on without you.\n"
	 "TIME: 300ms, 2s, 2m or 1h. RATE: 1Gbit, 500Mbit (bits a second) or 100MiB (bytes a second).\n"
	 "Exit status: 0 completed, or accepted with --detach; 1 rolled back or failed; 2 usage; 3 refused by a check;\n"
	 "4 in doubt, or ferryd does not answer any more; 5 cancelled; 130 or 143 left by a second signal.",
	 "ferry migrate web1 --to host-b --max-downtime 100ms", run_migrate},
	{"plan", "VM", 1, 1, plan_options, "say what moving a VM would take, and whether it would work",
	 "Makes all checks, then measures for a second what the link carries and how fast the guest writes. Nothing is moved.\n"
	 "Exit status: 0 it would work; 1 it would not converge; 2 usage; 3 refused by a check.",
	 "ferry plan web1 --to host-b --max-downtime 100ms", run_plan},
	{"migration list", "", 0, 0, NULL, "list migrations, newest first", NULL, "ferry migration list", run_migration_list},
	{"migration show", "ID", 1, 1, show_options, "show one migration", "ID may be shortened to four digits or more.",
	 "ferry migration show 1f3c", run_migration_show},
	{"migration watch", "ID", 1, 1, NULL, "follow a migration to its end",
	 "Ctrl-C stops watching; the migration goes on. The exit status is that of `ferry migrate`.",
	 "ferry migration watch 1f3c", run_migration_watch},
	{"migration abort", "ID", 1, 1, NULL, "cancel a migration and wait until the VM is settled",
	 "Exit status: 0 it was cancelled; 1 it ended otherwise, or was too far; 4 in doubt.", "ferry migration abort 1f3c",
	 run_migration_abort},
	{"migration set", "ID", 1, 1, set_options, "change what is promised while the VM is copied",
	 "What is not named stays as it is. --deadline counts from the beginning of the migration.",
	 "ferry migration set 1f3c --max-downtime 2s", run_migration_set},
	{"migration complete", "ID", 1, 1, NULL, "switch now, whatever the pause", "Then follow the migration to its end, as `watch` does.",
	 "ferry migration complete 1f3c", run_migration_complete},
	{"migration stats", "", 0, 0, NULL, "how the migrations from this host have gone",
	 "Medians and 90th percentiles of those that ferryd remembers, and how good its predictions were.", "ferry migration stats",
	 run_migration_stats},
	{"migration recover", "ID", 1, 1, NULL, "mend an interrupted post-copy now",
	 "It is mended by itself as soon as the link is back, tried at growing distances; this tries at once, and follows it\n"
	 "to its end. Ask the source.",
	 "ferry migration recover 1f3c", run_migration_recover},
	{"migration resolve", "ID", 1, 1, resolve_options, "settle a migration in doubt whose other host is gone for good",
	 "A migration in doubt is settled by itself as soon as the other host answers; use this only if it never will, and only\n"
	 "once it is fenced: powered off, or cut from the VM's storage and from its network, and sure to stay so. If that is\n"
	 "not true, two copies of the VM run and destroy its disks. --fenced is your statement that it is true.\n"
	 "Ask the host where the migration waits, usually the source. On a terminal the name is asked for again.\n"
	 "The VM is left paused: resume it only if it has not run on the fenced host since, else stop it and start it anew.\n"
	 "Exit status: 0 the VM is owned by --owner; 1 it is not; 2 usage; 4 still in doubt; 5 not confirmed.",
	 "ferry migration resolve 1f3c --owner host-a --fenced host-b", run_migration_resolve},
	{"vm define", "FILE", 1, 1, NULL, "make a VM known to this host by its definition", "FILE is a JSON document; - reads it from stdin.",
	 "ferry vm define web1.json", run_vm_define},
	{"vm list", "", 0, 0, NULL, "list the VMs of this host", NULL, "ferry vm list", run_vm_list},
	{"vm show", "VM", 1, 1, NULL, "show a VM: its state, owner and definition", NULL, "ferry vm show web1", run_vm_show},
	{"vm start", "VM", 1, 1, NULL, "start a VM", NULL, "ferry vm start web1", run_vm_change},
	{"vm shutdown", "VM", 1, 1, NULL, "ask the guest to shut down", NULL, "ferry vm shutdown web1", run_vm_change},
	{"vm stop", "VM", 1, 1, NULL, "end a VM at once, as by pulling the plug", NULL, "ferry vm stop web1", run_vm_change},
	{"vm reboot", "VM", 1, 1, NULL, "reset a VM", NULL, "ferry vm reboot web1", run_vm_change},
	{"vm pause", "VM", 1, 1, NULL, "stop a VM's processors", NULL, "ferry vm pause web1", run_vm_change},
	{"vm resume", "VM", 1, 1, NULL, "let a paused VM run on", NULL, "ferry vm resume web1", run_vm_change},
	{"vm undefine", "VM", 1, 1, NULL, "forget a stopped VM; its disks stay", NULL, "ferry vm undefine web1", run_vm_undefine},
	{"vm console", "VM", 1, 1, NULL, "connect this terminal to the VM's serial console", "Ctrl-] leaves. On the VM's own host only.",
	 "ferry vm console web1", run_vm_console},
	{"host add", "NAME ADDRESS", 2, 2, NULL, "make another host known to this one",
	 "NAME is the name in its certificate. ADDRESS may carry a port: 198.51.100.2:4710 or [2001:db8::2]:4710.",
	 "ferry host add host-b 198.51.100.2", run_host_add},
	{"host list", "", 0, 0, NULL, "list the hosts known to this one", NULL, "ferry host list", run_host_list},
	{"host show", "[NAME]", 0, 1, NULL, "show a host and whether it answers; without NAME, this one", NULL,
	 "ferry host show host-b", run_host_show},
	{"host remove", "NAME", 1, 1, NULL, "forget a host", NULL, "ferry host remove host-b", run_host_remove},
	{"image index", "FILE", 1, 1, image_options, "prepare this host to supply guests' memory from an image",
	 "Pages of memory that stand in an image at the destination are not sent. Images of VMs that are defined on a host are\n"
	 "indexed by themselves; this is for one that VMs will come with, or have in common, such as a base image. Waits until the\n"
	 "index is made, about a second a GiB. FILE may also be a block device.",
	 "ferry image index /srv/images/base.qcow2 --format qcow2 --public", run_image_index},
	{"image list", "", 0, 0, NULL, "list the images that can supply memory here", NULL, "ferry image list", run_image_list},
	{"image forget", "FILE", 1, 1, NULL, "take back `image index`", "It serves on until ferryd is started anew.",
	 "ferry image forget /srv/images/base.qcow2", run_image_forget},
	{"pki init", "", 0, 0, pki_init_options, "make a certificate authority for your hosts",
	 "Do this once, on one machine, and keep its ca.key there.", "ferry pki init", run_pki},
	{"pki issue", "NAME", 1, 1, pki_issue_options, "issue a key and a certificate to a host or a remote client",
	 "Copy the folder's ca.crt, host.crt and host.key to /etc/ferry/pki of that host (client.crt and client.key of a remote\n"
	 "client to ~/.config/ferry/pki of its user).",
	 "ferry pki issue host-b --address 198.51.100.2 --out host-b-pki", run_pki},
	{"pki renew", "", 0, 0, pki_renew_options, "issue a host's or client's certificate again, with a new key", NULL,
	 "ferry pki renew --folder host-b-pki", run_pki},
	{"stream analyze", "FILE", 1, 1, stream_options, "show what is in a migration stream that was kept in a file",
	 "Its memory, its pages by what need not be sent of them, and with --output json each field of its devices' state.\n"
	 "FILE is what QEMU's `migrate` wrote. ferryd is not asked.",
	 "ferry stream analyze /var/tmp/web1.state --image /srv/images/base.raw", run_stream},
	{NULL},
};

/* ---- arguments ---- */

bool cli_flag(const struct cli *cli, const char *name)
{
	return cli_option_nth(cli, name, 0) != NULL;
}

const char *cli_option(const struct cli *cli, const char *name)
{
	const char *value = NULL;
	for (size_t i = 0; i < cli->option_count; i++)
		if (strcmp(cli->option_values[2 * i], name) == 0)
			value = cli->option_values[2 * i + 1];
	return value;
}

const char *cli_option_nth(const struct cli *cli, const char *name, size_t index)
{
	for (size_t i = 0; i < cli->option_count; i++)
		if (strcmp(cli->option_values[2 * i], name) == 0 && index-- == 0)
			return cli->option_values[2 * i + 1];
	return NULL;
}

/* ---- telling failures ---- */

static void cli_error_json(const struct cli *cli, const char *code, const char *message)
{
	if (!cli->json)
		return;
	/* A message may quote an argument that is not UTF-8, which JSON cannot hold. */
	cleanup_free char *text = xstrdup(message);
	cleanup_json json_t *words = json_string(text);
	for (char *c = text; !words && *c; c++)
		if (*c & 0x80)
			*c = '?';
	cleanup_json json_t *value =
		json_pack("{s{sssO}}", "error", "code", code, "message", words ? words : (words = json_string(text)));
	output_json(value);
}

int cli_usage(const struct cli *cli, const char *format, ...)
{
	va_list ap;
	va_start(ap, format);
	cleanup_free char *words = xvasprintf(format, ap);
	va_end(ap);
	cleanup_free char *safe = output_safe(words);
	cli_error_json(cli, error_code_name(ERROR_INVALID_ARGUMENT), safe);
	fprintf(stderr, "ferry: %s\n", safe);
	if (cli->verb)
		fprintf(stderr, "Try 'ferry %s --help'.\n", cli->verb->name);
	else
		fprintf(stderr, "Try 'ferry --help'.\n");
	return EXIT_USAGE;
}

/* What to do about an error, where the message does not say it itself. */
static const char *cli_remedy(enum error_code code)
{
	switch (code) {
	case ERROR_DAEMON_UNREACHABLE:
		return "Is ferryd running there? `systemctl status ferryd` tells. Another host is chosen with -H, another socket with "
		       "FERRY_SOCKET.";
	case ERROR_PERMISSION:
		return "Run it as root, or use a client's certificate (`ferry pki issue NAME --client`) and -H HOST.";
	case ERROR_VM_NOT_FOUND:
		return "`ferry vm list` shows the VMs of this host.";
	case ERROR_DEST_UNKNOWN:
		return "`ferry host list` shows the hosts that are known; `ferry host add NAME ADDRESS` adds one.";
	case ERROR_MIGRATION_NOT_FOUND:
		return "`ferry migration list` shows all migrations.";
	case ERROR_VM_NOT_RUNNING:
		return "`ferry vm start` starts a VM.";
	case ERROR_VM_RUNNING:
		return "`ferry vm shutdown` or `ferry vm stop` ends it.";
	case ERROR_INVALID_ARGUMENT:
	case ERROR_NOT_FOUND:
	case ERROR_SYSTEM:
	case ERROR_EXISTS:
	case ERROR_TIMEOUT:
	case ERROR_UNSUPPORTED:
	case ERROR_CANCELLED:
	case ERROR_CODE_COUNT:
		return NULL;
	default:
		return error_code_meaning(code);
	}
}

int cli_fail(const struct cli *cli, const struct error *e)
{
	cleanup_free char *message = output_safe(e->message);
	cli_error_json(cli, error_code_name(e->code), message);
	fprintf(stderr, "ferry: %s (%s)\n", message, error_code_name(e->code));
	const char *remedy = cli_remedy(e->code);
	if (remedy)
		fprintf(stderr, "  %s\n", remedy);
	return e->code == ERROR_INVALID_ARGUMENT ? EXIT_USAGE : EXIT_FAILED;
}

int cli_migration_refusal(enum error_code code)
{
	static const char *const kinds[] = {"dest.", "source.", "data.", "peer.", "disk."};
	const char *name = error_code_name(code);
	if (code == ERROR_PEER_REFUSED) /* an error that the other side has no better word for is no check */
		return EXIT_FAILED;
	for (size_t i = 0; i < sizeof(kinds) / sizeof(kinds[0]); i++)
		if (strncmp(name, kinds[i], strlen(kinds[i])) == 0)
			return EXIT_REFUSED;
	switch (code) {
	case ERROR_VM_NOT_RUNNING:
	case ERROR_VM_NOT_OWNER:
	case ERROR_VM_OWNER_UNKNOWN:
	case ERROR_VM_BLOCKED:
	case ERROR_VM_SNAPSHOT:
		return EXIT_REFUSED;
	case ERROR_INVALID_ARGUMENT:
		return EXIT_USAGE;
	default:
		return EXIT_FAILED;
	}
}

/* ---- the program with TLS ---- */

int cli_become_remote(struct cli *cli)
{
	/* Beside this program (a build folder), else where it is installed. */
	char self[PATH_MAX];
	ssize_t length = readlink("/proc/self/exe", self, sizeof(self) - 1);
	if (length > 0) {
		self[length] = '\0';
		char *slash = strrchr(self, '/');
		cleanup_free char *beside = xasprintf("%.*s/ferry-remote", (int)(slash ? slash - self : 0), self);
		execv(beside, cli->argv);
	}
	execv(FERRY_LIBEXEC "/ferry-remote", cli->argv);
	cleanup_error struct error *e = NULL;
	error_set_errno(&e, ERROR_SYSTEM, errno, "cannot start %s, which talks to other hosts", FERRY_LIBEXEC "/ferry-remote");
	return cli_fail(cli, e);
}

/* ---- help ---- */

static void help_option(const char *name, const char *argument, const char *help)
{
	cleanup_free char *left = xasprintf("--%s%s%s", name, argument ? " " : "", argument ? argument : "");
	printf("  %-26s %s\n", left, help);
}

static int help_verb(const struct verb *verb)
{
	printf("Usage: ferry [-H HOST] %s%s%s [OPTION]...\n\n%c%s.\n\n", verb->name, *verb->arguments ? " " : "",
	       verb->arguments, toupper((unsigned char)verb->summary[0]), verb->summary + 1);
	for (const struct verb_option *option = verb->options; option && option->name; option++)
		help_option(option->name, option->argument, option->help);
	if (verb->run != run_vm_console)
		help_option("output", "json", "print one JSON value and nothing else");
	help_option("help", NULL, "show this");
	if (verb->notes)
		printf("\n%s\n", verb->notes);
	printf("\nExample: %s\n", verb->example);
	return EXIT_COMPLETED;
}

/* The verbs whose first word is `group`; all of them for NULL. */
static void help_list(FILE *to, const char *group)
{
	size_t length = group ? strlen(group) : 0;
	for (const struct verb *verb = verbs; verb->name; verb++)
		if (!group || (strncmp(verb->name, group, length) == 0 && verb->name[length] == ' ')) {
			cleanup_free char *left = xasprintf("%s %s", verb->name, verb->arguments);
			fprintf(to, "  %-24s %s\n", left, verb->summary);
		}
}

static int help_all(void)
{
	puts("Usage: ferry [-H HOST] VERB [ARGUMENT]... [OPTION]...\n\n"
	     "Moves running virtual machines between hosts.\n");
	help_list(stdout, NULL);
	puts("\n  -H, --host HOST          talk to that host's ferryd, by TLS: NAME, NAME=ADDRESS or NAME=ADDRESS:PORT\n"
	     "      --version            show the version\n"
	     "      --help               show this; `ferry VERB --help` shows a verb's options and an example\n\n"
	     "Without -H or FERRY_HOST the local ferryd is asked, through /run/ferry/ferryd.sock (or FERRY_SOCKET).\n\n"
	     "Example: ferry migrate web1 --to host-b");
	return EXIT_COMPLETED;
}

/* ---- suggestions ---- */

#define DISTANCE_MAX_LENGTH 40
/* How many letters must be put in, left out, changed or swapped to make a of b. */
static size_t edit_distance(const char *a, const char *b)
{
	size_t length_a = strlen(a), length_b = strlen(b);
	size_t d[DISTANCE_MAX_LENGTH + 1][DISTANCE_MAX_LENGTH + 1];
	if (length_a > DISTANCE_MAX_LENGTH || length_b > DISTANCE_MAX_LENGTH)
		return SIZE_MAX;
	for (size_t i = 0; i <= length_a; i++)
		for (size_t j = 0; j <= length_b; j++) {
			if (i == 0 || j == 0) {
				d[i][j] = i + j;
				continue;
			}
			size_t best = d[i - 1][j - 1] + (a[i - 1] != b[j - 1]);
			best = d[i - 1][j] + 1 < best ? d[i - 1][j] + 1 : best;
			best = d[i][j - 1] + 1 < best ? d[i][j - 1] + 1 : best;
			if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] && d[i - 2][j - 2] + 1 < best)
				best = d[i - 2][j - 2] + 1;
			d[i][j] = best;
		}
	return d[length_a][length_b];
}

/* Keep in *best the candidate that is nearest to text, if it is near at all. */
static void suggest(const char *text, const char *candidate, const char **best, size_t *best_distance)
{
	size_t distance = edit_distance(text, candidate);
	/* One letter wrong in a short word, a third of a long one. */
	if (distance <= 1 + strlen(text) / 4 && distance < *best_distance) {
		*best = candidate;
		*best_distance = distance;
	}
}

static bool is_group(const char *word)
{
	size_t length = strlen(word);
	for (const struct verb *verb = verbs; verb->name; verb++)
		if (strncmp(verb->name, word, length) == 0 && verb->name[length] == ' ')
			return true;
	return false;
}

static int unknown_verb(struct cli *cli, const char *first, const char *second)
{
	cleanup_free char *both = xasprintf("%s%s%s", first, second ? " " : "", second ? second : "");
	const char *best = NULL;
	size_t distance = SIZE_MAX;
	for (const struct verb *verb = verbs; verb->name; verb++) {
		suggest(both, verb->name, &best, &distance);
		suggest(first, verb->name, &best, &distance);
	}
	/* A group's name alone, mistyped: show what would be in it. */
	for (const struct verb *verb = verbs; verb->name && !best; verb++) {
		cleanup_free char *group = xstrdup(verb->name);
		group[strcspn(group, " ")] = '\0';
		if (edit_distance(first, group) <= 1)
			best = verb->name;
	}
	/* `ferry list`, `ferry start web1`: the second word without the first. */
	for (const struct verb *verb = verbs; verb->name && !best; verb++) {
		const char *space = strchr(verb->name, ' ');
		if (space && strcmp(space + 1, first) == 0)
			best = verb->name;
	}
	const char *said = second && is_group(first) ? both : first;
	if (best)
		return cli_usage(cli, "there is no verb '%s'; did you mean 'ferry %s'?", said, best);
	return cli_usage(cli, "there is no verb '%s'", said);
}

static int unknown_option(struct cli *cli, const char *text)
{
	const char *best = NULL, *name = text + strspn(text, "-");
	cleanup_free char *bare = xstrdup(name);
	bare[strcspn(bare, "=")] = '\0';
	size_t distance = SIZE_MAX;
	for (const struct verb_option *option = cli->verb ? cli->verb->options : NULL; option && option->name; option++)
		suggest(bare, option->name, &best, &distance);
	suggest(bare, "output", &best, &distance);
	suggest(bare, "help", &best, &distance);
	if (best)
		return cli_usage(cli, "there is no option '%s'; did you mean '--%s'?", text, best);
	return cli_usage(cli, "there is no option '%s'", text);
}

/* ---- parsing ---- */

static bool parse_output(struct cli *cli, const char *value)
{
	cli->json = strcmp(value, "json") == 0;
	return cli->json || strcmp(value, "text") == 0;
}

/* Whether errors in the command line itself must be told as JSON too: looked at before anything else is understood. */
static bool wants_json(int argc, char **argv)
{
	for (int i = 1; i < argc && strcmp(argv[i], "--") != 0; i++)
		if (strcmp(argv[i], "--output=json") == 0 ||
		    (strcmp(argv[i], "--output") == 0 && i + 1 < argc && strcmp(argv[i + 1], "json") == 0))
			return true;
	return false;
}

enum { OPTION_OUTPUT = 1000, OPTION_HELP, OPTION_VERSION, OPTION_OF_VERB };

/* The options before the verb. Returns -1 to go on, else the exit status. */
static int parse_global(struct cli *cli, int argc, char **argv)
{
	static const struct option options[] = {{"host", required_argument, NULL, 'H'},
						{"output", required_argument, NULL, OPTION_OUTPUT},
						{"help", no_argument, NULL, OPTION_HELP},
						{"version", no_argument, NULL, OPTION_VERSION},
						{NULL}};
	opterr = 0;
	for (;;) {
		int c = getopt_long(argc, argv, "+:H:h", options, NULL);
		switch (c) {
		case -1:
			return -1;
		case 'H':
			cli->host = optarg;
			break;
		case OPTION_OUTPUT:
			if (!parse_output(cli, optarg))
				return cli_usage(cli, "'%s' is not an output; there are json and text", optarg);
			break;
		case 'h':
		case OPTION_HELP:
			return help_all();
		case OPTION_VERSION:
			puts("ferry " FERRY_VERSION);
			return EXIT_COMPLETED;
		case ':':
			return cli_usage(cli, "option '%s' needs a value", argv[optind - 1]);
		default:
			return unknown_option(cli, argv[optind - 1]);
		}
	}
}

/* What follows the verb. Returns -1 to go on, else the exit status. */
static int parse_verb(struct cli *cli, int argc, char **argv)
{
	const struct verb *verb = cli->verb;
	size_t count = 0;
	while (verb->options && verb->options[count].name)
		count++;
	cleanup_free struct option *options = xcalloc(count + 4, sizeof(*options));
	for (size_t i = 0; i < count; i++)
		options[i] = (struct option){verb->options[i].name, verb->options[i].argument ? required_argument : no_argument,
					     NULL, OPTION_OF_VERB + (int)i};
	options[count] = (struct option){"output", required_argument, NULL, OPTION_OUTPUT};
	options[count + 1] = (struct option){"help", no_argument, NULL, OPTION_HELP};
	options[count + 2] = (struct option){"host", required_argument, NULL, 'H'};
	cli->option_values = xcalloc(2 * (size_t)argc, sizeof(*cli->option_values));
	optind = 0; /* glibc: start over, with another option string */
	for (;;) {
		int at = optind ? optind : 1;
		int c = getopt_long(argc, argv, ":H:h", options, NULL);
		if (c == -1)
			break;
		if (c == 'H') {
			cli->host = optarg;
		} else if (c == OPTION_OUTPUT) {
			if (!parse_output(cli, optarg))
				return cli_usage(cli, "'%s' is not an output; there are json and text", optarg);
		} else if (c == 'h' || c == OPTION_HELP) {
			return help_verb(verb);
		} else if (c == ':') {
			return cli_usage(cli, "option '%s' needs a value", argv[optind - 1]);
		} else if (c >= OPTION_OF_VERB) {
			cli->option_values[2 * cli->option_count] = verb->options[c - OPTION_OF_VERB].name;
			cli->option_values[2 * cli->option_count++ + 1] = optarg ? optarg : "";
		} else {
			/* getopt has moved arguments about; the option is the one before optind, or, in a group of
			 * letters, still at `at`. */
			return unknown_option(cli, optind > 1 && argv[optind - 1][0] == '-' ? argv[optind - 1] : argv[at]);
		}
	}
	cli->arguments = argv + optind;
	cli->argument_count = argc - optind;
	if (cli->argument_count < verb->min_arguments)
		return cli_usage(cli, "'ferry %s' needs %s", verb->name, verb->arguments);
	if (verb->max_arguments >= 0 && cli->argument_count > verb->max_arguments)
		return cli_usage(cli, "'%s' is one argument too many for 'ferry %s'", cli->arguments[verb->max_arguments], verb->name);
	for (int i = 0; i < cli->argument_count; i++)
		if (!*cli->arguments[i])
			return cli_usage(cli, "an argument of 'ferry %s' is empty", verb->name);
	return -1;
}

static const struct verb *find_verb(const char *first, const char *second, int *ret_words)
{
	for (const struct verb *verb = verbs; verb->name; verb++) {
		size_t length = strlen(first);
		if (strncmp(verb->name, first, length) != 0)
			continue;
		if (!verb->name[length]) {
			*ret_words = 1;
			return verb;
		}
		if (verb->name[length] == ' ' && second && strcmp(verb->name + length + 1, second) == 0) {
			*ret_words = 2;
			return verb;
		}
	}
	return NULL;
}

static int run_command_line(struct cli *cli, int argc, char **argv)
{
	/* getopt moves arguments about, but the program that may take our place needs them as they came. */
	int status = parse_global(cli, argc, argv);
	if (status >= 0)
		return status;
	if (optind == argc) {
		fputs("Usage: ferry [-H HOST] VERB [ARGUMENT]... [OPTION]...\n", stderr);
		help_list(stderr, NULL);
		return cli_usage(cli, "a verb is missing");
	}
	const char *first = argv[optind], *second = optind + 1 < argc ? argv[optind + 1] : NULL;
	int words = 0;
	cli->verb = find_verb(first, second, &words);
	if (!cli->verb && is_group(first) && second && (strcmp(second, "--help") == 0 || strcmp(second, "-h") == 0)) {
		printf("Usage: ferry [-H HOST] %s VERB [ARGUMENT]... [OPTION]...\n\n", first);
		help_list(stdout, first);
		return EXIT_COMPLETED;
	}
	if (!cli->verb && is_group(first) && (!second || second[0] == '-')) {
		help_list(stderr, first);
		return cli_usage(cli, "'ferry %s' needs a verb", first);
	}
	if (!cli->verb)
		return unknown_verb(cli, first, second && second[0] != '-' ? second : NULL);
	/* getopt wants the program's name first: the last word of the verb stands there. */
	int skip = optind + words - 1;
	status = parse_verb(cli, argc - skip, argv + skip);
	if (status >= 0)
		return status;
	return cli->verb->run(cli);
}

int cli_main(int argc, char **argv, const struct cli_remote *remote)
{
	const char *host = getenv("FERRY_HOST");
	struct cli cli = {.argv = argv, .host = host && *host ? host : NULL, .remote = remote, .json = wants_json(argc, argv)};
	cleanup_free char **copy = xcalloc((size_t)argc + 1, sizeof(*copy));
	memcpy(copy, argv, (size_t)argc * sizeof(*copy));
	int status = run_command_line(&cli, argc, copy);
	free(cli.option_values);
	/* A full disk or a closed pipe must not look like success to a script that reads our output. */
	if (fflush(stdout) != 0 || ferror(stdout)) {
		fprintf(stderr, "ferry: cannot write the output: %s\n", strerror(errno));
		return status == EXIT_COMPLETED ? EXIT_FAILED : status;
	}
	return status;
}
