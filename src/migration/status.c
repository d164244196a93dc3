/* SPDX-License-Identifier: Apache-2.0 */
/* The states of a migration and of its handover, and what they are called; see migration.h. Both come from tables (status.tbl,
 * handover.tbl), which the models and the documentation are compared with. */
#include "migration/migration.h"

#include <string.h>

static const struct {
	const char *name;
	bool ended;
	const char *waits_for[2]; /* by enum migration_role */
} status_table[] = {
#define MIGRATION_STATUS(symbol, name, ended, meaning, source_waits_for, destination_waits_for)                                \
	[symbol] = {name, ended, {[MIGRATION_SOURCE] = source_waits_for, [MIGRATION_DESTINATION] = destination_waits_for}},
#include "migration/status.tbl"
#undef MIGRATION_STATUS
};

static const char *const handover_names[] = {
#define HANDOVER_STATE(symbol, name, side, may_run) [symbol] = name,
#include "migration/handover.tbl"
#undef HANDOVER_STATE
};

static const struct {
	enum handover_state from, to;
} handover_steps[] = {
#define HANDOVER_STEP(from, to, when) {from, to},
#include "migration/handover.tbl"
#undef HANDOVER_STEP
};

const char *migration_status_name(enum migration_status status)
{
	return status_table[status].name;
}

bool migration_status_ended(enum migration_status status)
{
	return status_table[status].ended;
}

enum migration_status migration_status_from_name(const char *name)
{
	enum migration_status status = 0;
	while (status < MIGRATION_STATUS_COUNT && strcmp(status_table[status].name, name) != 0)
		status++;
	return status;
}

const char *handover_state_name(enum handover_state state)
{
	return handover_names[state];
}

enum handover_state handover_state_from_name(const char *name)
{
	enum handover_state state = 0;
	while (state < HANDOVER_STATE_COUNT && strcmp(handover_names[state], name) != 0)
		state++;
	return state;
}

bool handover_step_allowed(enum handover_state from, enum handover_state to)
{
	for (size_t i = 0; i < sizeof(handover_steps) / sizeof(handover_steps[0]); i++)
		if (handover_steps[i].from == from && handover_steps[i].to == to)
			return true;
	return false;
}

const char *migration_status_waits_for(enum migration_status status, enum migration_role role)
{
	return status_table[status].waits_for[role];
}
