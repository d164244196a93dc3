/* SPDX-License-Identifier: Apache-2.0 */
/*
 * ferryd, the daemon of a host: command line, start, and orderly end.
 *
 * Threads: the control loop (net/loop.h), one a connection (net/http_server.h), one a migration and side, the inventory's
 * janitor, and this one, which starts all others, waits for a signal and takes all down again. QEMU processes live on.
 */
#include <errno.h>
#include <getopt.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <systemd/sd-daemon.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/fault.h"
#include "base/file.h"
#include "base/json.h"
#include "base/log.h"
#include "base/xalloc.h"
#include "host/api.h"
#include "host/config.h"
#include "host/images.h"
#include "host/recovery.h"
#include "migration/destination.h"
#include "migration/sampling.h"

#define DESCRIPTORS_WANTED 8192

struct ferryd {
	struct config config;
	struct tls_files files;
	bool have_files;
	struct driver_host driver_host;
	char *vm_run_folder, *vm_log_folder;
	pthread_t loop_thread;
	struct database *db;
	struct migration_host host;
	struct api api;
	struct http_server *server;
};

static const char usage[] = "usage: ferryd [--config FILE] [--check-config]\n"
			    "\n"
			    "The daemon of a host whose virtual machines Ferry moves.\n"
			    "\n"
			    "  --config FILE    read FILE instead of " CONFIG_PATH "\n"
			    "  --check-config   say whether the configuration is right, and end\n"
			    "  --show-config    print all keys with their defaults and meanings, and end\n"
			    "  --version        print the version, and end\n"
			    "  --help           print this, and end\n"
#ifdef FERRY_FAULTS
			    "  --list-faults    print what faults can be made to happen (src/base/fault.h), and end\n"
#endif
	;

static void *loop_main(void *user)
{
	struct ferryd *ferryd = user;
	cleanup_error struct error *e = NULL;
	if (loop_run(ferryd->host.loop, &e) < 0) {
		log_failure(LOG_LEVEL_ERROR, "the event loop ended", e);
		abort();
	}
	return NULL;
}

/* Ask QEMU what it can do here, so that the first start or migration need not wait for it. "auto" is KVM where QEMU, as its
 * user, can be started with it. (A paravirtual-only KVM passes and still cannot run a stock guest: there the configuration must
 * say tcg.) */
static void warm_up(struct ferryd *ferryd)
{
	const char *configured = ferryd->config.accelerator;
	bool automatic = strcmp(configured, "auto") == 0;
	cleanup_error struct error *e = NULL;
	ferryd->driver_host.accelerator = automatic ? "kvm" : configured;
	if (automatic && access("/dev/kvm", F_OK) == 0 && vm_driver_qemu.warm_up(&ferryd->driver_host, &e) == 0)
		return;
	if (automatic) {
		log_info("accelerator=tcg: %s", e ? e->message : "there is no /dev/kvm");
		ferryd->driver_host.accelerator = "tcg";
	}
	if (vm_driver_qemu.warm_up(&ferryd->driver_host, &e) < 0)
		log_failure(LOG_LEVEL_WARNING, "no VM can run here", e);
}

static int make_folders(struct ferryd *ferryd, struct error **e)
{
	ferryd->vm_run_folder = xasprintf("%s/vms", ferryd->config.run_folder);
	ferryd->vm_log_folder = xasprintf("%s/vms", ferryd->config.state_folder);
	if (file_make_folders(ferryd->vm_run_folder, 0755, e) < 0 || file_make_folders(ferryd->vm_log_folder, 0750, e) < 0)
		return -1;
	return 0;
}

static int start_server(struct ferryd *ferryd, struct error **e)
{
	cleanup_free char *socket_path = xasprintf("%s/ferryd.sock", ferryd->config.run_folder);
	struct error *no_files = NULL;
	ferryd->have_files = tls_files_check(&ferryd->files, &no_files) == 0;
	if (!ferryd->have_files) {
		log_failure(LOG_LEVEL_WARNING, "no usable certificate: this host is reachable by its unix socket only", no_files);
		error_free(no_files);
	}
	struct http_server_options options = {
		.unix_path = socket_path,
		.address = *ferryd->config.control_address ? ferryd->config.control_address : NULL,
		.port = ferryd->have_files ? ferryd->config.control_port_number : 0,
		.files = &ferryd->files,
		.routes = api_routes,
		.is_host_address = api_is_host_address,
		.user = &ferryd->api,
	};
	ferryd->api.host = &ferryd->host;
	ferryd->api.db = ferryd->db;
	ferryd->host.files = &ferryd->files;
	if (ferryd->have_files && relay_gate_new(*ferryd->config.data_address ? ferryd->config.data_address : NULL,
						 ferryd->config.data_port_number, &ferryd->files, &ferryd->host.gate, e) < 0)
		return error_wrap(e, "the relay");
	return http_server_start(&options, &ferryd->server, e);
}

/* What a VM's disks hold may be found in its memory, and in that of others of its owner. */
static void add_images(void *user, const struct definition *definition)
{
	for (size_t i = 0; i < definition->disk_count; i++)
		page_supply_add_image(user, definition->disks[i].path, strcmp(definition->disks[i].format, "qcow2") == 0,
				      definition->owner);
}

static int start(struct ferryd *ferryd, struct error **e)
{
	struct migration_host *host = &ferryd->host;
	struct config *config = &ferryd->config;
	cleanup_free char *journal_path = xasprintf("%s/journal.db", config->state_folder);
	if (make_folders(ferryd, e) < 0 || database_open(journal_path, &ferryd->db, e) < 0 || loop_new(&host->loop, e) < 0)
		return -1;
	if (pthread_create(&ferryd->loop_thread, NULL, loop_main, ferryd) != 0)
		return error_set(e, ERROR_SYSTEM, "cannot start the event loop's thread");

	ferryd->driver_host = (struct driver_host){
		.loop = host->loop,
		.run_folder = ferryd->vm_run_folder,
		.log_folder = ferryd->vm_log_folder,
		.binary = *config->qemu_binary ? config->qemu_binary : NULL,
		.uid = config->uid,
		.gid = config->gid,
		.stream_timeout_ms = config->stream_timeout_ms,
		.dirty_ring = strcmp(config->dirty_ring, "yes") == 0,
	};
	warm_up(ferryd);
	cleanup_free char *index_folder = xasprintf("%s/indexes", config->state_folder);
	const struct page_supply_options supply_options = {
		.folder = index_folder, .received_bytes = config->received_bytes, .index_bytes = config->index_bytes};
	host->supply = page_supply_new(&supply_options);
	host->copies_bytes = config->copies_bytes;
	struct inventory_options inventory_options = {
		.db = ferryd->db,
		.host_name = config->host_name,
		.driver = &vm_driver_qemu,
		.driver_host = &ferryd->driver_host,
		.defined = add_images,
		.user = host->supply,
	};
	migration_host_init(host);
	host->name = config->host_name;
	host->data_address = config->data_address;
	host->data_port_min = config->data_port_min;
	host->data_port_max = config->data_port_max;
	host->trusted = config->trusted_networks;
	host->times = config->times;
	host->sampling_ms = strcmp(config->sampling, "yes") == 0 ? config->sampling_ms : 0;
	host->refuse_extra_args = strcmp(config->extra_args, "refuse") == 0;
	host->migrations = migration_list_new();
	tls_files_in_folder(&ferryd->files, config->pki_folder, TLS_ROLE_HOST);
	if (inventory_new(&inventory_options, &host->inventory, e) < 0 ||
	    journal_open(ferryd->db, host->inventory, &host->journal, e) < 0 ||
	    peers_new(ferryd->db, &ferryd->files, &host->peers, e) < 0 || rates_open(ferryd->db, &host->rates, e) < 0 || recovery_run(host, e) < 0)
		return -1;
	if (images_open(ferryd->db, host->supply, e) < 0)
		return -1;
	sampling_start(host);
	log_info("journal=%s durable_record_us=%lld accelerator=%s", journal_id(host->journal),
		 (long long)journal_commit_us(host->journal), ferryd->driver_host.accelerator);
	return start_server(ferryd, e);
}

/* Where nobody has raised it (systemd does, by our unit), the usual 1024 descriptors are fewer than the connections that may
 * be open. Children get what they need by name; select(2) is used nowhere. */
static void raise_descriptor_limit(void)
{
	struct rlimit limit;
	if (getrlimit(RLIMIT_NOFILE, &limit) < 0 || limit.rlim_cur >= DESCRIPTORS_WANTED)
		return;
	limit.rlim_cur = limit.rlim_max < DESCRIPTORS_WANTED ? limit.rlim_max : DESCRIPTORS_WANTED;
	if (setrlimit(RLIMIT_NOFILE, &limit) < 0)
		log_warning("cannot raise the limit of open files: %s", strerror(errno));
}

/* Workers first: the server waits for its handlers, and some of these wait for workers. */
static void stop(struct ferryd *ferryd)
{
	struct migration_host *host = &ferryd->host;
	if (host->journal)
		migration_host_stop_workers(host);
	http_server_stop(ferryd->server);
	if (host->journal) { /* and those that the last messages have started */
		migration_host_stop_workers(host);
		destination_stop(host);
	}
	relay_gate_free(host->gate);
	migration_list_free(host->migrations);
	inventory_free(host->inventory);
	page_supply_free(host->supply);
	peers_free(host->peers);
	rates_free(host->rates);
	journal_free(host->journal);
	if (ferryd->loop_thread) {
		loop_quit(host->loop);
		pthread_join(ferryd->loop_thread, NULL);
	}
	loop_free(host->loop);
	database_close(ferryd->db);
	tls_files_done(&ferryd->files);
	free(ferryd->vm_run_folder);
	free(ferryd->vm_log_folder);
	config_done(&ferryd->config);
}

static int run(const char *config_path, bool config_optional, bool check_only)
{
	cleanup_error struct error *e = NULL;
	struct ferryd ferryd = {0};
#ifdef FERRY_FAULTS
	if (fault_set_from_environment(&e) < 0) {
		log_failure(LOG_LEVEL_ERROR, "faults", e);
		return 2;
	}
#endif
	if (config_read(config_path, config_optional, &ferryd.config, &e) < 0) {
		log_failure(LOG_LEVEL_ERROR, "configuration", e);
		return 2;
	}
	if (check_only) {
		printf("%s: good\n", config_path);
		config_done(&ferryd.config);
		return 0;
	}
	log_set_level(ferryd.config.level);
	raise_descriptor_limit();

	/* Blocked before any thread exists, so that only this one takes them. */
	sigset_t signals;
	sigemptyset(&signals);
	sigaddset(&signals, SIGTERM);
	sigaddset(&signals, SIGINT);
	pthread_sigmask(SIG_BLOCK, &signals, NULL);
	signal(SIGPIPE, SIG_IGN);

	int status = 1, number = 0;
	if (start(&ferryd, &e) < 0) {
		log_failure(LOG_LEVEL_ERROR, "cannot start", e);
	} else {
		log_info("ferryd %s ready on %s", FERRY_VERSION, ferryd.config.host_name);
		sd_notify(0, "READY=1");
		while (sigwait(&signals, &number) != 0)
			;
		log_info("stopping on signal %d; guests run on", number);
		sd_notify(0, "STOPPING=1");
		status = 0;
	}
	stop(&ferryd);
	return status;
}

int main(int argc, char **argv)
{
	static const struct option options[] = {{"config", required_argument, NULL, 'c'},
						{"check-config", no_argument, NULL, 'n'},
						{"show-config", no_argument, NULL, 's'},
						{"version", no_argument, NULL, 'V'},
						{"help", no_argument, NULL, 'h'},
#ifdef FERRY_FAULTS
						{"list-faults", no_argument, NULL, 'f'},
#endif
						{0}};
	const char *config_path = CONFIG_PATH;
	bool config_optional = true, check_only = false;
	for (int option; (option = getopt_long(argc, argv, "c:h", options, NULL)) >= 0;) {
		switch (option) {
		case 'c':
			config_path = optarg;
			config_optional = false;
			break;
		case 'n':
			check_only = true;
			break;
		case 's':
			config_print_keys(stdout);
			return 0;
		case 'V':
			printf("ferryd %s\n", FERRY_VERSION);
			return 0;
		case 'h':
			fputs(usage, stdout);
			return 0;
#ifdef FERRY_FAULTS
		case 'f': {
			cleanup_json json_t *table = fault_table();
			cleanup_free char *text = json_text(table);
			puts(text);
			return 0;
		}
#endif
		default:
			fputs(usage, stderr);
			return 2;
		}
	}
	if (optind < argc) {
		fprintf(stderr, "ferryd: unexpected argument '%s'\n%s", argv[optind], usage);
		return 2;
	}
	return run(config_path, config_optional, check_only);
}
