/* SPDX-License-Identifier: Apache-2.0 */
/* The host's HTTP API; see api.h. In the order of docs/openapi.yaml: host, hosts, vms, migrations, peer messages. */
#include "host/api.h"

#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/fault.h"
#include "base/forgetful_vfs.h"
#include "base/json.h"
#include "base/log.h"
#include "host/images.h"
#include "migration/destination.h"
#include "migration/forecast.h"
#include "migration/plan.h"
#include "migration/resolve.h"
#include "migration/source.h"
#include "migration/stats.h"

#define HOST_PROBE_TIMEOUT_MS 5000
#define WAIT_MAX_MS 60000
#define HOST_ADDRESS_BYTES_MAX 253 /* of a DNS name */

static const json_t *body_or_empty(const struct http_request *request)
{
	static json_t *empty;
	if (request->body)
		return request->body;
	if (!empty)
		empty = json_object();
	return empty;
}

/* ---- host and hosts ---- */

static int get_host(void *user, struct http_request *request, json_t **ret, struct error **e)
{
	(void)request;
	(void)e;
	const struct api *api = user;
	const struct driver_host *driver_host = inventory_driver_host(api->host->inventory);
	*ret = json_pack("{ss ss si ss ss ss ss}", "name", api->host->name, "version", FERRY_VERSION, "protocol", MIGRATION_PROTOCOL,
			 "journal", journal_id(api->host->journal), "driver", inventory_driver(api->host->inventory)->name,
			 "accelerator", driver_host->accelerator, "data_address", api->host->data_address);
	json_object_set_new(*ret, "journal_commit_us", json_integer(journal_commit_us(api->host->journal)));
	return 0;
}

static int list_hosts(void *user, struct http_request *request, json_t **ret, struct error **e)
{
	(void)request;
	(void)e;
	const struct api *api = user;
	*ret = json_pack("{so}", "hosts", peers_list(api->host->peers));
	return 0;
}

/* As far as it can be told without asking anybody. */
static bool host_address_valid(const char *address)
{
	size_t length = strlen(address);
	return length > 0 && length <= HOST_ADDRESS_BYTES_MAX &&
	       strspn(address, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._:%") == length;
}

static int add_host(void *user, struct http_request *request, json_t **ret, struct error **e)
{
	static const char *const keys[] = {"name", "address", "port", NULL};
	const struct api *api = user;
	const json_t *body = body_or_empty(request);
	const char *name, *address;
	int64_t port = CONTROL_PORT;
	if (json_check_keys(body, keys, e) < 0 || json_get_string(body, "name", &name, e) < 0 ||
	    json_get_string(body, "address", &address, e) < 0 || json_get_integer_opt(body, "port", 1, 65535, &port, e) < 0)
		return -1;
	if (!definition_name_valid(name))
		return error_set(e, ERROR_INVALID_ARGUMENT, "'%s' is not a host name: letters, digits, '-', '_' and '.', at most %d",
				 name, DEFINITION_NAME_MAX);
	if (!host_address_valid(address))
		return error_set(e, ERROR_INVALID_ARGUMENT, "key 'address' is neither an IP address nor a DNS name");
	if (strcmp(name, api->host->name) == 0)
		return error_set(e, ERROR_INVALID_ARGUMENT, "'%s' is this host", name);
	if (peers_add(api->host->peers, name, address, (uint16_t)port, e) < 0)
		return -1;
	request->status = 201;
	return peers_get(api->host->peers, name, ret, e);
}

static int show_host(void *user, struct http_request *request, json_t **ret, struct error **e)
{
	const struct api *api = user;
	cleanup_json json_t *peer = NULL;
	cleanup_json json_t *answer = NULL;
	cleanup_error struct error *problem = NULL;
	struct http_client *client = NULL;
	const char *name = request->parameters[0];
	if (peers_get(api->host->peers, name, &peer, e) < 0)
		return -1;
	int r = peers_take(api->host->peers, name, &client, &problem);
	if (r == 0)
		r = http_client_request(client, "GET", "/v1/peer/hello", NULL, HOST_PROBE_TIMEOUT_MS, &answer, &problem);
	json_object_set_new(peer, "reachable", json_boolean(r == 0));
	if (r == 0) {
		json_object_update_missing(peer, answer);
		json_object_set_new(peer, "round_trip_ms", json_real((double)http_client_last_us(client) / 1000.0));
	} else {
		json_object_set_new(peer, "error",
				    json_pack("{ss ss}", "code", error_code_name(problem->code), "message", problem->message));
	}
	peers_give_back(api->host->peers, name, client, r < 0);
	*ret = take_ptr(peer);
	return 0;
}

static int remove_host(void *user, struct http_request *request, json_t **ret, struct error **e)
{
	(void)ret;
	const struct api *api = user;
	return peers_remove(api->host->peers, request->parameters[0], e);
}

/* ---- images ---- */

static int list_images(void *user, struct http_request *request, json_t **ret, struct error **e)
{
	(void)request;
	(void)e;
	const struct api *api = user;
	*ret = json_pack("{so}", "images", page_supply_view(api->host->supply));
	return 0;
}

static int add_image(void *user, struct http_request *request, json_t **ret, struct error **e)
{
	const struct api *api = user;
	if (images_add(api->db, api->host->supply, body_or_empty(request), e) < 0)
		return -1;
	request->status = 202;
	return list_images(user, request, ret, e);
}

static int remove_image(void *user, struct http_request *request, json_t **ret, struct error **e)
{
	(void)ret;
	const struct api *api = user;
	return images_remove(api->db, body_or_empty(request), e);
}

/* ---- vms ---- */

static int list_vms(void *user, struct http_request *request, json_t **ret, struct error **e)
{
	(void)request;
	(void)e;
	const struct api *api = user;
	*ret = json_pack("{so}", "vms", inventory_list(api->host->inventory));
	return 0;
}

static int define_vm(void *user, struct http_request *request, json_t **ret, struct error **e)
{
	const struct api *api = user;
	if (inventory_define(api->host->inventory, body_or_empty(request), ret, e) < 0)
		return -1;
	request->status = 201;
	return 0;
}

static int show_vm(void *user, struct http_request *request, json_t **ret, struct error **e)
{
	const struct api *api = user;
	return inventory_show(api->host->inventory, request->parameters[0], ret, e);
}

/* A verb on a VM, with its job held. */
typedef int vm_verb(struct inventory *inventory, struct vm *vm, struct error **e);

static int with_vm(const struct api *api, const char *name, const char *what, vm_verb *verb, json_t **ret, struct error **e)
{
	struct vm *vm = NULL;
	if (inventory_lock(api->host->inventory, name, what, &vm, e) < 0)
		return -1;
	log_context_set(NULL, vm->name);
	int r = verb(api->host->inventory, vm, e);
	log_info("%s: %s", what, r < 0 ? "failed" : "done");
	log_context_set(NULL, NULL);
	inventory_unlock(api->host->inventory, vm);
	if (r < 0)
		return -1;
	if (ret && inventory_show(api->host->inventory, name, ret, NULL) < 0)
		*ret = json_object();
	return 0;
}

static int undefine_vm(void *user, struct http_request *request, json_t **ret, struct error **e)
{
	(void)ret;
	return with_vm(user, request->parameters[0], "undefine", vm_undefine, NULL, e);
}

static int start_vm(void *user, struct http_request *request, json_t **ret, struct error **e)
{
	return with_vm(user, request->parameters[0], "start", vm_start, ret, e);
}

static int need_machine(const struct vm *vm, struct error **e)
{
	return vm->machine ? 0 : error_set(e, ERROR_VM_NOT_RUNNING, "VM '%s' is not running", vm->name);
}

static int verb_stop(struct inventory *inventory, struct vm *vm, struct error **e)
{
	return need_machine(vm, e) < 0 ? -1 : vm_end(inventory, vm, e);
}

#define MACHINE_VERB(function, driver_call)                                                                            \
	static int function(struct inventory *inventory, struct vm *vm, struct error **e)                              \
	{                                                                                                              \
		return need_machine(vm, e) < 0 ? -1 : inventory_driver(inventory)->driver_call(vm->machine, e);        \
	}
MACHINE_VERB(verb_shutdown, power_down)
MACHINE_VERB(verb_reboot, reset)
MACHINE_VERB(verb_pause, pause)

/* A copy that another host owns may stand here paused; it can be stopped, and nothing else. */
static int verb_resume(struct inventory *inventory, struct vm *vm, struct error **e)
{
	if (need_machine(vm, e) < 0 || vm_check_owned(inventory, vm, e) < 0)
		return -1;
	return inventory_driver(inventory)->resume(vm->machine, e);
}

static int stop_vm(void *user, struct http_request *request, json_t **ret, struct error **e)
{
	return with_vm(user, request->parameters[0], "stop", verb_stop, ret, e);
}

static int shutdown_vm(void *user, struct http_request *request, json_t **ret, struct error **e)
{
	return with_vm(user, request->parameters[0], "shutdown", verb_shutdown, ret, e);
}

static int reboot_vm(void *user, struct http_request *request, json_t **ret, struct error **e)
{
	return with_vm(user, request->parameters[0], "reboot", verb_reboot, ret, e);
}

static int pause_vm(void *user, struct http_request *request, json_t **ret, struct error **e)
{
	return with_vm(user, request->parameters[0], "pause", verb_pause, ret, e);
}

static int resume_vm(void *user, struct http_request *request, json_t **ret, struct error **e)
{
	return with_vm(user, request->parameters[0], "resume", verb_resume, ret, e);
}

/* ---- migrations ---- */

static int migrate_vm(void *user, struct http_request *request, json_t **ret, struct error **e)
{
	const struct api *api = user;
	struct migration_request wanted = {0};
	if (migration_request_parse(body_or_empty(request), &wanted, e) < 0)
		return -1;
	if (wanted.dry_run) {
		json_t *failures = NULL;
		if (source_dry_run(api->host, request->parameters[0], &wanted, &failures, e) < 0)
			return -1;
		*ret = json_pack("{sb so}", "ok", json_array_size(failures) == 0, "failures", failures);
		return 0;
	}
	struct migration *migration = NULL;
	if (source_begin(api->host, request->parameters[0], &wanted, &migration, e) < 0)
		return -1;
	request->status = 202;
	*ret = migration_view(migration);
	migration_unref(migration);
	return 0;
}

static int plan_vm(void *user, struct http_request *request, json_t **ret, struct error **e)
{
	const struct api *api = user;
	struct migration_request wanted = {0};
	if (migration_request_parse(body_or_empty(request), &wanted, e) < 0)
		return -1;
	return plan_migration(api->host, request->parameters[0], &wanted, ret, e);
}

static int list_migrations(void *user, struct http_request *request, json_t **ret, struct error **e)
{
	(void)request;
	(void)e;
	const struct api *api = user;
	*ret = json_pack("{so}", "migrations", migration_list_view(api->host->migrations));
	return 0;
}

static int show_stats(void *user, struct http_request *request, json_t **ret, struct error **e)
{
	(void)request;
	(void)e;
	const struct api *api = user;
	cleanup_json json_t *views = migration_list_view(api->host->migrations);
	*ret = stats_of_migrations(views);
	return 0;
}

static int query_number(const struct http_request *request, const char *key, int64_t fallback, int64_t *ret, struct error **e)
{
	const char *text = http_request_query(request, key);
	char *end = NULL;
	*ret = text ? strtoll(text, &end, 10) : fallback;
	if (text && (end == text || *end || *ret < 0))
		return error_set(e, ERROR_INVALID_ARGUMENT, "%s must be a number, not '%s'", key, text);
	return 0;
}

static int show_migration(void *user, struct http_request *request, json_t **ret, struct error **e)
{
	const struct api *api = user;
	struct migration *migration = NULL;
	int64_t seen, wait_ms;
	if (query_number(request, "seen", -1, &seen, e) < 0 || query_number(request, "wait_ms", 0, &wait_ms, e) < 0 ||
	    migration_find(api->host->migrations, request->parameters[0], &migration, e) < 0)
		return -1;
	if (seen >= 0 && !migration_final(migration)) {
		/* In slices, so that a stopping ferryd does not wait for those who wait for it. */
		int64_t deadline_us = clock_monotonic_us() + (wait_ms < WAIT_MAX_MS ? wait_ms : WAIT_MAX_MS) * 1000;
		while (clock_monotonic_us() < deadline_us && !migration_host_stopping(api->host) &&
		       !migration_wait_change(migration, (uint64_t)seen,
					      deadline_us < clock_monotonic_us() + 500000 ? deadline_us
											  : clock_monotonic_us() + 500000))
			;
	}
	*ret = migration_view(migration);
	migration_unref(migration);
	return 0;
}

/* What a source is asked to do about a migration, without a body. */
typedef int migration_verb(struct migration_host *host, struct migration *migration, struct error **e);

static int with_migration(const struct api *api, const char *id, migration_verb *verb, json_t **ret, struct error **e)
{
	struct migration *migration = NULL;
	if (migration_find(api->host->migrations, id, &migration, e) < 0)
		return -1;
	int r = verb(api->host, migration, e);
	if (r == 0)
		*ret = migration_view(migration);
	migration_unref(migration);
	return r;
}

static int abort_migration(void *user, struct http_request *request, json_t **ret, struct error **e)
{
	return with_migration(user, request->parameters[0], source_abort, ret, e);
}

static int complete_migration(void *user, struct http_request *request, json_t **ret, struct error **e)
{
	return with_migration(user, request->parameters[0], source_complete, ret, e);
}

static int recover_migration(void *user, struct http_request *request, json_t **ret, struct error **e)
{
	return with_migration(user, request->parameters[0], source_mend_now, ret, e);
}

static int set_migration(void *user, struct http_request *request, json_t **ret, struct error **e)
{
	const struct api *api = user;
	struct migration *migration = NULL;
	if (migration_find(api->host->migrations, request->parameters[0], &migration, e) < 0)
		return -1;
	int r = source_set(api->host, migration, body_or_empty(request), e);
	if (r == 0)
		*ret = migration_view(migration);
	migration_unref(migration);
	return r;
}

static int show_timeline(void *user, struct http_request *request, json_t **ret, struct error **e)
{
	const struct api *api = user;
	struct migration *migration = NULL;
	if (migration_find(api->host->migrations, request->parameters[0], &migration, e) < 0)
		return -1;
	int r = journal_timeline(api->host->journal, migration, ret, e);
	migration_unref(migration);
	return r;
}

static int resolve_migration_request(void *user, struct http_request *request, json_t **ret, struct error **e)
{
	static const char *const keys[] = {"owner", "fenced", NULL};
	const struct api *api = user;
	const json_t *body = body_or_empty(request);
	const char *owner, *fenced = NULL;
	struct migration *migration = NULL;
	if (json_check_keys(body, keys, e) < 0 || json_get_string(body, "owner", &owner, e) < 0 ||
	    json_get_string_opt(body, "fenced", &fenced, e) < 0 ||
	    migration_find(api->host->migrations, request->parameters[0], &migration, e) < 0)
		return -1;
	log_context_set(migration->id, migration->vm_name);
	int r = resolve_migration(api->host, migration, owner, fenced, e);
	log_context_set(NULL, NULL);
	if (r == 0)
		*ret = migration_view(migration);
	migration_unref(migration);
	return r;
}

/* ---- messages between hosts ---- */

static int peer_hello(void *user, struct http_request *request, json_t **ret, struct error **e)
{
	(void)request;
	(void)e;
	const struct api *api = user;
	*ret = json_pack("{ss ss si ss}", "host", api->host->name, "version", FERRY_VERSION, "protocol", MIGRATION_PROTOCOL, "journal",
			 journal_id(api->host->journal));
	return 0;
}

static const struct {
	enum fault_point received, answer;
} message_points[PEER_MESSAGE_COUNT] = {
	[PEER_CHECK] = {FAULT_CHECK_RECEIVED, FAULT_CHECK_ANSWER},
	[PEER_PREPARE] = {FAULT_PREPARE_RECEIVED, FAULT_PREPARE_ANSWER},
	[PEER_FINISH] = {FAULT_FINISH_RECEIVED, FAULT_FINISH_ANSWER},
	[PEER_REFUSE] = {FAULT_REFUSE_RECEIVED, FAULT_REFUSE_ANSWER},
	[PEER_OUTCOME] = {FAULT_OUTCOME_RECEIVED, FAULT_OUTCOME_ANSWER},
};

/* A message has come, or has been acted on; false when that is the last thing that may happen with it. */
static bool pass_message(struct http_request *request, enum fault_point point)
{
#ifdef FERRY_FAULTS
	request->fault = fault_pass(point, &request->fault_seed);
	return request->fault == FAULT_NONE;
#else
	(void)request;
	(void)point;
	return true;
#endif
}

typedef int message_handler(struct migration_host *host, const char *caller, const json_t *body, json_t **ret, struct error **e);

static int with_caller(void *user, struct http_request *request, enum peer_message message, message_handler *handler, json_t **ret,
		       struct error **e)
{
	const struct api *api = user;
	if (!pass_message(request, message_points[message].received))
		return 0;
	int r = message == PEER_OUTCOME ? destination_outcome(api->host, request->caller_name, request->parameters[0], ret, e)
					: handler(api->host, request->caller_name, body_or_empty(request), ret, e);
	log_context_set(NULL, NULL);
	(void)pass_message(request, message_points[message].answer);
	return r;
}

static int peer_check(void *user, struct http_request *request, json_t **ret, struct error **e)
{
	return with_caller(user, request, PEER_CHECK, destination_check, ret, e);
}

static int peer_prepare(void *user, struct http_request *request, json_t **ret, struct error **e)
{
	return with_caller(user, request, PEER_PREPARE, destination_prepare, ret, e);
}

static int peer_finish(void *user, struct http_request *request, json_t **ret, struct error **e)
{
	return with_caller(user, request, PEER_FINISH, destination_finish, ret, e);
}

static int peer_refuse(void *user, struct http_request *request, json_t **ret, struct error **e)
{
	return with_caller(user, request, PEER_REFUSE, destination_refuse, ret, e);
}

static int peer_outcome(void *user, struct http_request *request, json_t **ret, struct error **e)
{
	return with_caller(user, request, PEER_OUTCOME, NULL, ret, e);
}

static int peer_owner(void *user, struct http_request *request, json_t **ret, struct error **e)
{
	const struct api *api = user;
	return destination_owner(api->host, request->parameters[0], ret, e);
}

static int peer_learned(void *user, struct http_request *request, json_t **ret, struct error **e)
{
	(void)ret;
	const struct api *api = user;
	return forecast_hear(api->host, request->caller_name, body_or_empty(request), e);
}

#ifdef FERRY_FAULTS
/* ---- faults on purpose, for root on the spot ---- */

static int faults_allowed(const struct http_request *request, struct error **e)
{
	return request->local ? 0 : error_set(e, ERROR_PERMISSION, "faults are for the unix socket");
}

static int get_faults(void *user, struct http_request *request, json_t **ret, struct error **e)
{
	(void)user;
	if (faults_allowed(request, e) < 0)
		return -1;
	*ret = fault_report();
	return 0;
}

static int put_faults(void *user, struct http_request *request, json_t **ret, struct error **e)
{
	static const char *const keys[] = {"faults", NULL};
	const json_t *body = body_or_empty(request);
	const char *faults;
	if (faults_allowed(request, e) < 0 || json_check_keys(body, keys, e) < 0 || json_get_string(body, "faults", &faults, e) < 0)
		return -1;
	if (strstr(faults, "=forget") && !forgetful_vfs_forgets())
		return error_set(e, ERROR_INVALID_ARGUMENT, "what the journal forgets is settled when ferryd starts");
	if (fault_set(faults, e) < 0)
		return -1;
	return get_faults(user, request, ret, e);
}
#endif

bool api_is_host_address(void *user, const char *address)
{
	const struct api *api = user;
	return peers_have_address(api->host->peers, address);
}

const struct http_route api_routes[] = {
	{"GET", "/v1/host", HTTP_CALLER_CLIENT, get_host},
	{"GET", "/v1/hosts", HTTP_CALLER_CLIENT, list_hosts},
	{"POST", "/v1/hosts", HTTP_CALLER_CLIENT, add_host},
	{"GET", "/v1/hosts/{name}", HTTP_CALLER_CLIENT, show_host},
	{"DELETE", "/v1/hosts/{name}", HTTP_CALLER_CLIENT, remove_host},
	{"GET", "/v1/images", HTTP_CALLER_CLIENT, list_images},
	{"POST", "/v1/images", HTTP_CALLER_CLIENT, add_image},
	{"DELETE", "/v1/images", HTTP_CALLER_CLIENT, remove_image},
	{"GET", "/v1/vms", HTTP_CALLER_CLIENT, list_vms},
	{"POST", "/v1/vms", HTTP_CALLER_CLIENT, define_vm},
	{"GET", "/v1/vms/{name}", HTTP_CALLER_CLIENT, show_vm},
	{"DELETE", "/v1/vms/{name}", HTTP_CALLER_CLIENT, undefine_vm},
	{"POST", "/v1/vms/{name}/start", HTTP_CALLER_CLIENT, start_vm},
	{"POST", "/v1/vms/{name}/stop", HTTP_CALLER_CLIENT, stop_vm},
	{"POST", "/v1/vms/{name}/shutdown", HTTP_CALLER_CLIENT, shutdown_vm},
	{"POST", "/v1/vms/{name}/reboot", HTTP_CALLER_CLIENT, reboot_vm},
	{"POST", "/v1/vms/{name}/pause", HTTP_CALLER_CLIENT, pause_vm},
	{"POST", "/v1/vms/{name}/resume", HTTP_CALLER_CLIENT, resume_vm},
	{"POST", "/v1/vms/{name}/migrate", HTTP_CALLER_CLIENT, migrate_vm},
	{"POST", "/v1/vms/{name}/plan", HTTP_CALLER_CLIENT, plan_vm},
	{"GET", "/v1/migrations", HTTP_CALLER_CLIENT, list_migrations},
	{"GET", "/v1/migrations/stats", HTTP_CALLER_CLIENT, show_stats}, /* no id begins so */
	{"GET", "/v1/migrations/{id}", HTTP_CALLER_CLIENT, show_migration},
	{"POST", "/v1/migrations/{id}/abort", HTTP_CALLER_CLIENT, abort_migration},
	{"POST", "/v1/migrations/{id}/complete", HTTP_CALLER_CLIENT, complete_migration},
	{"POST", "/v1/migrations/{id}/recover", HTTP_CALLER_CLIENT, recover_migration},
	{"POST", "/v1/migrations/{id}/set", HTTP_CALLER_CLIENT, set_migration},
	{"GET", "/v1/migrations/{id}/timeline", HTTP_CALLER_CLIENT, show_timeline},
	{"POST", "/v1/migrations/{id}/resolve", HTTP_CALLER_CLIENT, resolve_migration_request},
	{"GET", "/v1/peer/hello", HTTP_CALLER_HOST, peer_hello},
	{"POST", "/v1/peer/check", HTTP_CALLER_HOST, peer_check},
	{"POST", "/v1/peer/prepare", HTTP_CALLER_HOST, peer_prepare},
	{"POST", "/v1/peer/finish", HTTP_CALLER_HOST, peer_finish},
	{"POST", "/v1/peer/refuse", HTTP_CALLER_HOST, peer_refuse},
	{"GET", "/v1/peer/outcome/{id}", HTTP_CALLER_HOST, peer_outcome},
	{"GET", "/v1/peer/owner/{uuid}", HTTP_CALLER_HOST, peer_owner},
	{"POST", "/v1/peer/learned", HTTP_CALLER_HOST, peer_learned},
#ifdef FERRY_FAULTS
	{"GET", "/v1/faults", HTTP_CALLER_CLIENT, get_faults},
	{"PUT", "/v1/faults", HTTP_CALLER_CLIENT, put_faults},
#endif
	{0},
};
