/* SPDX-License-Identifier: Apache-2.0 */
/*
 * QEMU's own migration, as seen through QMP: its capabilities and parameters (read, set, put back) and query-migrate as
 * a struct. Which of them a move wants, and when, is decided above (vm/qemu_move.c). Any thread but the loop's.
 */
#ifndef FERRY_QEMU_MIGRATION_H
#define FERRY_QEMU_MIGRATION_H

#include <jansson.h>
#include <stdint.h>

#include "base/error.h"
#include "qemu/qmp.h"

enum qemu_migration_status {
	QEMU_MIGRATION_NONE,
	QEMU_MIGRATION_SETUP,
	QEMU_MIGRATION_WAIT_UNPLUG,
	QEMU_MIGRATION_ACTIVE,
	QEMU_MIGRATION_PRE_SWITCHOVER,
	QEMU_MIGRATION_DEVICE,
	QEMU_MIGRATION_POSTCOPY_ACTIVE,
	QEMU_MIGRATION_POSTCOPY_PAUSED,
	QEMU_MIGRATION_POSTCOPY_RECOVER,
	QEMU_MIGRATION_COLO,
	QEMU_MIGRATION_COMPLETED,
	QEMU_MIGRATION_CANCELLING,
	QEMU_MIGRATION_CANCELLED,
	QEMU_MIGRATION_FAILED,
	QEMU_MIGRATION_UNKNOWN /* a state that a later QEMU has added */
};

/* By QEMU's name, as in query-migrate and in the event MIGRATION. */
enum qemu_migration_status qemu_migration_status_from_name(const char *name);

/* query-migrate. What QEMU did not say is 0 or NULL. */
struct qemu_migration_info {
	enum qemu_migration_status status;
	uint64_t total_bytes, remaining_bytes, transferred_bytes, postcopy_bytes;
	uint64_t normal_pages, zero_pages, page_size_bytes;
	uint64_t dirty_bytes_per_s, rate_bytes_per_s;
	unsigned int pass; /* dirty-sync-count: 1 is the first */
	unsigned int throttle_percent;
	int64_t total_ms, setup_ms, downtime_ms;
	char *failure;           /* error-desc */
	json_t *blocked_reasons; /* array of strings, or NULL */
};
int qemu_migration_query(struct qmp *qmp, struct qemu_migration_info *ret, struct error **e) MUST_CHECK;
void qemu_migration_info_done(struct qemu_migration_info *info);

/* All capabilities and parameters as they are: {capabilities: {name: bool}, parameters: {name: value}}. */
int qemu_migration_settings_read(struct qmp *qmp, json_t **ret, struct error **e) MUST_CHECK;
/* Switch the capabilities named in `on` (NULL-terminated) on and all others off; `settings` says how they stand. What
 * is in order already is not sent. ERROR_UNSUPPORTED when this QEMU lacks one. */
int qemu_migration_set_capabilities(struct qmp *qmp, const json_t *settings, const char *const on[],
				    struct error **e) MUST_CHECK;
/* Put back the capabilities and those parameters that Ferry ever sets. */
int qemu_migration_settings_restore(struct qmp *qmp, const json_t *settings, struct error **e) MUST_CHECK;

#endif
