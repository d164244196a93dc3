/* SPDX-License-Identifier: Apache-2.0 */
/* How a copy went, in the journal: it outlives ferryd, costs no memory, and goes with the migration that it belongs to. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "fakes/two_hosts.h"

#define OLD_COUNT "1200" /* more than MIGRATIONS_KEPT */

static struct migration *moved(struct two_hosts *hosts)
{
	struct migration *migration = begin_migration(&hosts->a, &hosts->b, "");
	struct vm *vm = NULL;
	assert_true(wait_all_ended(hosts));
	/* Everything is on record before the VM is let go. */
	if (inventory_lock(hosts->a.host.inventory, GUEST_UUID, "test", &vm, NULL) == 0)
		inventory_unlock(hosts->a.host.inventory, vm);
	return migration;
}

/* As the API asks for it, by id; NULL with the error's code when there is none. */
static json_t *timeline_of(struct test_host *host, const char *id, const char **ret_code)
{
	struct migration *migration = NULL;
	cleanup_error struct error *e = NULL;
	json_t *timeline = NULL;
	assert_int_equal(migration_find(host->host.migrations, id, &migration, &e), 0);
	int r = journal_timeline(host->host.journal, migration, &timeline, &e);
	migration_unref(migration);
	*ret_code = r < 0 ? error_code_name(e->code) : NULL;
	assert_int_equal(r < 0, timeline == NULL);
	return timeline;
}

static void run_sql(struct test_host *host, const char *sql)
{
	cleanup_error struct error *e = NULL;
	if (database_run(host->db, &e, sql, "") < 0)
		fail_msg("%s: %s", sql, e->message);
}

static int read_count(void *user, const struct database_row *row, struct error **e)
{
	(void)e;
	*(int64_t *)user = database_integer(row, 0);
	return 0;
}

static int64_t kept_count(struct test_host *host)
{
	int64_t count = -1;
	assert_int_equal(database_query(host->db, NULL, read_count, &count, "SELECT count(*) FROM timeline", ""), 1);
	return count;
}

static void teardown(struct two_hosts *hosts, struct migration *migration)
{
	migration_unref(migration);
	assert_true(two_hosts_free(hosts));
}

static void test_survives_a_restart(void **state)
{
	(void)state;
	struct two_hosts *hosts = two_hosts_new();
	struct migration *migration = moved(hosts);
	char id[RANDOM_ID_SIZE];
	const char *code;
	memcpy(id, migration->id, sizeof(id));
	assert_null(migration->timeline); /* it does not stay in memory */
	cleanup_json json_t *before = timeline_of(&hosts->a, id, &code);
	assert_true(json_array_size(json_object_get(before, "points")) >= 2);
	migration_unref(migration);
	test_host_restart(&hosts->a);
	cleanup_json json_t *after = timeline_of(&hosts->a, id, &code);
	assert_true(json_equal(before, after));
	/* The destination has seen nothing of the copy, and says so. */
	cleanup_json json_t *there = timeline_of(&hosts->b, id, &code);
	assert_int_equal(json_array_size(json_object_get(there, "points")), 0);
	assert_int_equal(kept_count(&hosts->b), 0);
	teardown(hosts, NULL);
}

/* Whatever else is done with the record: what went before is not written over by nothing. */
static void test_kept_once(void **state)
{
	(void)state;
	struct two_hosts *hosts = two_hosts_new();
	struct migration *migration = moved(hosts);
	const char *code;
	cleanup_error struct error *e = NULL;
	assert_int_equal(journal_keep_view(hosts->a.host.journal, migration, &e), 0);
	cleanup_json json_t *timeline = timeline_of(&hosts->a, migration->id, &code);
	assert_true(json_array_size(json_object_get(timeline, "points")) >= 2);
	teardown(hosts, migration);
}

/* A disk that is full, say: the migration ends as it would, and it is all there until ferryd ends. */
static void test_cannot_be_kept(void **state)
{
	(void)state;
	struct two_hosts *hosts = two_hosts_new();
	run_sql(&hosts->a, "CREATE TEMP TRIGGER fail_timeline BEFORE INSERT ON timeline BEGIN SELECT RAISE(ABORT, 'full'); END");
	struct migration *migration = moved(hosts);
	char id[RANDOM_ID_SIZE];
	const char *code;
	memcpy(id, migration->id, sizeof(id));
	assert_int_equal(migration->status, MIGRATION_COMPLETED);
	cleanup_json json_t *timeline = timeline_of(&hosts->a, id, &code);
	assert_true(json_array_size(json_object_get(timeline, "points")) >= 2);
	migration_unref(migration);
	test_host_restart(&hosts->a);
	assert_null(timeline_of(&hosts->a, id, &code));
	assert_string_equal(code, "migration.no_timeline");
	cleanup_json json_t *there = timeline_of(&hosts->b, id, &code);
	assert_non_null(there);
	teardown(hosts, NULL);
}

/* Of one that the journal does not have, either: refused by a check. */
static void test_refused(void **state)
{
	(void)state;
	struct two_hosts *hosts = two_hosts_new();
	fake_driver_fail("host-b", FAKE_CHECK_INCOMING, FAKE_FAIL, 1);
	struct migration *migration = moved(hosts);
	const char *code;
	assert_int_equal(migration->status, MIGRATION_FAILED);
	cleanup_json json_t *timeline = timeline_of(&hosts->a, migration->id, &code);
	assert_int_equal(json_array_size(json_object_get(timeline, "points")), 0);
	teardown(hosts, migration);
}

/* Migrations with timelines from a time before this one. */
static void add_old_ones(struct test_host *host)
{
	run_sql(host, "INSERT INTO migration WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < " OLD_COUNT ")"
		      " SELECT printf('%032x', i), 'source', 'released', 'uuid', 'old', 'host-a', 'host-b', 1, '', i, 1, 0, 0, 0,"
		      " '{\"status\":\"completed\"}' FROM n");
	run_sql(host, "INSERT INTO timeline(migration_id, role, view) SELECT id, role, '{}' FROM migration WHERE vm_name = 'old'");
}

static void test_old_ones_go(void **state)
{
	(void)state;
	struct two_hosts *hosts = two_hosts_new();
	add_old_ones(&hosts->a);
	/* While ferryd runs on. */
	struct migration *migration = moved(hosts);
	char id[RANDOM_ID_SIZE];
	const char *code;
	memcpy(id, migration->id, sizeof(id));
	migration_unref(migration);
	assert_int_equal(kept_count(&hosts->a), MIGRATIONS_KEPT);
	/* With the words about their migrations. */
	run_sql(&hosts->a, "DELETE FROM timeline WHERE migration_id IN (SELECT id FROM migration WHERE vm_name = 'old')");
	run_sql(&hosts->a, "INSERT INTO timeline(migration_id, role, view) SELECT id, role, '{}' FROM migration WHERE vm_name = 'old'");
	test_host_restart(&hosts->a);
	assert_int_equal(kept_count(&hosts->a), MIGRATIONS_KEPT);
	cleanup_json json_t *timeline = timeline_of(&hosts->a, id, &code);
	assert_true(json_array_size(json_object_get(timeline, "points")) >= 2);
	/* With the migrations themselves. */
	run_sql(&hosts->a, "DELETE FROM migration WHERE vm_name = 'old'");
	assert_int_equal(kept_count(&hosts->a), 1);
	teardown(hosts, NULL);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_survives_a_restart), cmocka_unit_test(test_kept_once), cmocka_unit_test(test_cannot_be_kept),
		cmocka_unit_test(test_refused),		   cmocka_unit_test(test_old_ones_go),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
