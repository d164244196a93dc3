/* SPDX-License-Identifier: Apache-2.0 */
/* QEMU's migration through QMP: settings, and query-migrate as a struct; see migration.h. */
#include "qemu/migration.h"

#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/json.h"
#include "base/xalloc.h"

#define RATE_MBPS_MAX 8e9 /* a petabyte a second; more cannot be meant */

static const struct {
	const char *name;
	enum qemu_migration_status status;
} status_names[] = {
	{"none", QEMU_MIGRATION_NONE},
	{"setup", QEMU_MIGRATION_SETUP},
	{"wait-unplug", QEMU_MIGRATION_WAIT_UNPLUG},
	{"active", QEMU_MIGRATION_ACTIVE},
	{"pre-switchover", QEMU_MIGRATION_PRE_SWITCHOVER},
	{"device", QEMU_MIGRATION_DEVICE},
	{"postcopy-active", QEMU_MIGRATION_POSTCOPY_ACTIVE},
	{"postcopy-paused", QEMU_MIGRATION_POSTCOPY_PAUSED},
	{"postcopy-recover", QEMU_MIGRATION_POSTCOPY_RECOVER},
	{"postcopy-recover-setup", QEMU_MIGRATION_POSTCOPY_RECOVER}, /* from QEMU 9.1 on */
	{"colo", QEMU_MIGRATION_COLO},
	{"completed", QEMU_MIGRATION_COMPLETED},
	{"cancelling", QEMU_MIGRATION_CANCELLING},
	{"cancelled", QEMU_MIGRATION_CANCELLED},
	{"failed", QEMU_MIGRATION_FAILED},
};

/* The parameters that Ferry sets for a move, and thus puts back after it. */
static const char *const own_parameters[] = {"max-bandwidth",	"downtime-limit",	  "multifd-channels",	    "tls-creds",
					     "tls-hostname",	"cpu-throttle-initial",	  "cpu-throttle-increment", "max-cpu-throttle",
					     "throttle-trigger-threshold", "max-postcopy-bandwidth", NULL};

enum qemu_migration_status qemu_migration_status_from_name(const char *name)
{
	for (size_t i = 0; i < sizeof(status_names) / sizeof(*status_names); i++) {
		if (strcmp(status_names[i].name, name) == 0)
			return status_names[i].status;
	}
	return QEMU_MIGRATION_UNKNOWN;
}

/* Bytes a second out of megabits a second, of whatever QEMU says. */
static uint64_t rate_bytes_per_s(double megabits_per_s)
{
	if (!(megabits_per_s > 0))
		return 0;
	return (uint64_t)((megabits_per_s < RATE_MBPS_MAX ? megabits_per_s : RATE_MBPS_MAX) * 125000.0);
}

/* A number of QEMU's, never negative; 0 when it is not there. */
static uint64_t number(const json_t *object, const char *key)
{
	json_int_t value = json_integer_value(json_object_get(object, key));
	return value > 0 ? (uint64_t)value : 0;
}

int qemu_migration_query(struct qmp *qmp, struct qemu_migration_info *ret, struct error **e)
{
	cleanup_json json_t *reply = NULL;
	if (qmp_execute(qmp, "query-migrate", NULL, &reply, QMP_TIMEOUT_MS, e) < 0)
		return -1;

	/* "status" is missing while nothing has ever been migrated. */
	const char *status = json_string_value(json_object_get(reply, "status"));
	const json_t *ram = json_object_get(reply, "ram");
	const json_t *blocked = json_object_get(reply, "blocked-reasons");
	uint64_t page_size_bytes = number(ram, "page-size");

	*ret = (struct qemu_migration_info){
		.status = status ? qemu_migration_status_from_name(status) : QEMU_MIGRATION_NONE,
		.total_bytes = number(ram, "total"),
		.remaining_bytes = number(ram, "remaining"),
		.transferred_bytes = number(ram, "transferred"),
		.postcopy_bytes = number(ram, "postcopy-bytes"),
		.normal_pages = number(ram, "normal"),
		.zero_pages = number(ram, "duplicate"),
		.page_size_bytes = page_size_bytes,
		.dirty_bytes_per_s = number(ram, "dirty-pages-rate") * page_size_bytes,
		.rate_bytes_per_s = rate_bytes_per_s(json_number_value(json_object_get(ram, "mbps"))),
		.pass = (unsigned int)number(ram, "dirty-sync-count"),
		.throttle_percent = (unsigned int)number(reply, "cpu-throttle-percentage"),
		.total_ms = (int64_t)number(reply, "total-time"),
		.setup_ms = (int64_t)number(reply, "setup-time"),
		.downtime_ms = (int64_t)number(reply, "downtime"),
		.failure = xstrdup_null(json_string_value(json_object_get(reply, "error-desc"))),
		.blocked_reasons = json_is_array(blocked) ? json_deep_copy(blocked) : NULL,
	};
	return 0;
}

void qemu_migration_info_done(struct qemu_migration_info *info)
{
	free(info->failure);
	json_decref(info->blocked_reasons);
	info->failure = NULL;
	info->blocked_reasons = NULL;
}

int qemu_migration_settings_read(struct qmp *qmp, json_t **ret, struct error **e)
{
	cleanup_json json_t *list = NULL, *parameters = NULL;
	if (qmp_execute(qmp, "query-migrate-capabilities", NULL, &list, QMP_TIMEOUT_MS, e) < 0 ||
	    qmp_execute(qmp, "query-migrate-parameters", NULL, &parameters, QMP_TIMEOUT_MS, e) < 0)
		return -1;

	json_t *capabilities = json_object();
	size_t i;
	json_t *item;
	json_array_foreach (list, i, item) {
		const char *name = json_string_value(json_object_get(item, "capability"));
		if (name)
			json_object_set(capabilities, name, json_object_get(item, "state"));
	}
	*ret = json_pack("{s:o, s:O}", "capabilities", capabilities, "parameters", parameters);
	return 0;
}

static int send_capabilities(struct qmp *qmp, json_t *list, struct error **e)
{
	if (json_array_size(list) == 0) {
		json_decref(list);
		return 0;
	}
	return qmp_execute(qmp, "migrate-set-capabilities", json_pack("{s:o}", "capabilities", list), NULL,
			   QMP_TIMEOUT_MS, e);
}

static json_t *capability(const char *name, bool state)
{
	return json_pack("{s:s, s:b}", "capability", name, "state", state);
}

int qemu_migration_set_capabilities(struct qmp *qmp, const json_t *settings, const char *const on[], struct error **e)
{
	json_t *known = json_object_get(settings, "capabilities");
	for (size_t i = 0; on[i]; i++) {
		if (!json_object_get(known, on[i]))
			return error_set(e, ERROR_UNSUPPORTED, "this QEMU has no migration capability '%s'", on[i]);
	}

	/* One command for all: QEMU checks the combination only once they are together. */
	json_t *changes = json_array();
	const char *name;
	json_t *state;
	json_object_foreach (known, name, state) {
		bool wanted = false;
		for (size_t i = 0; on[i] && !wanted; i++)
			wanted = strcmp(name, on[i]) == 0;
		if (wanted != json_is_true(state))
			json_array_append_new(changes, capability(name, wanted));
	}
	return send_capabilities(qmp, changes, e);
}

int qemu_migration_settings_restore(struct qmp *qmp, const json_t *settings, struct error **e)
{
	json_t *capabilities = json_array(), *parameters = json_object();
	const json_t *saved = json_object_get(settings, "parameters");
	const char *name;
	json_t *state;

	json_object_foreach (json_object_get(settings, "capabilities"), name, state)
		json_array_append_new(capabilities, capability(name, json_is_true(state)));
	for (size_t i = 0; own_parameters[i]; i++) {
		json_t *value = json_object_get(saved, own_parameters[i]);
		if (value)
			json_object_set(parameters, own_parameters[i], value);
	}
	/* Parameters first: tls-creds must no longer be named when its object is deleted, whatever else fails. */
	if (qmp_execute(qmp, "migrate-set-parameters", parameters, NULL, QMP_TIMEOUT_MS, e) < 0) {
		json_decref(capabilities);
		return -1;
	}
	return send_capabilities(qmp, capabilities, e);
}
