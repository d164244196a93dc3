/* SPDX-License-Identifier: Apache-2.0 */
/* See two_hosts_asserts.h. */
#include "fakes/two_hosts_asserts.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include <string.h>

#include "base/cleanup.h"
#include "base/json.h"

void kill_guest(void *host_name)
{
	fake_world_kill(host_name, GUEST_UUID);
}

void assert_free(struct test_host *host)
{
	struct vm *vm = NULL;
	cleanup_error struct error *e = NULL;
	if (inventory_lock(host->host.inventory, GUEST_UUID, "test", &vm, &e) == 0)
		inventory_unlock(host->host.inventory, vm);
	else if (e->code != ERROR_VM_NOT_FOUND)
		fail_msg("%s: %s", host->name, e->message);
}

void assert_owned_by(struct two_hosts *hosts, struct test_host *owner, enum running running)
{
	struct test_host *other = owner == &hosts->a ? &hosts->b : &hosts->a;
	const char *breach = fake_world_breach();
	if (breach)
		fail_msg("breach: %s", breach);
	cleanup_free char *own_word = journal_owner(owner, NULL);
	cleanup_free char *other_word = journal_owner(other, NULL);
	assert_string_equal(own_word, owner->name);
	if (*other_word)
		assert_string_equal(other_word, owner->name);
	assert_int_equal(fake_world_running(GUEST_UUID), running == RUNS);
	if (running == RUNS)
		assert_int_equal(fake_world_run(owner->name, GUEST_UUID), MACHINE_RUNNING);
	if (running == PAUSED)
		assert_int_equal(fake_world_run(owner->name, GUEST_UUID), MACHINE_PAUSED);
	if (running == STUCK)
		assert_int_equal(fake_world_run(owner->name, GUEST_UUID), MACHINE_HANDED_OVER);
	assert_false(fake_world_has(other->name, GUEST_UUID));
	assert_free(owner);
	assert_free(other);
}

void assert_settled(struct two_hosts *hosts, struct test_host *owner, enum running running)
{
	assert_true(wait_all_ended(hosts));
	assert_owned_by(hosts, owner, running);
}

struct test_host *agreed_owner(struct two_hosts *hosts)
{
	cleanup_free char *word = journal_owner(&hosts->a, NULL);
	return strcmp(word, hosts->a.name) == 0 ? &hosts->a : &hosts->b;
}

void assert_status(struct migration *migration, const char *status, const char *reason)
{
	cleanup_json json_t *view = migration_view(migration);
	const json_t *why = json_object_get(view, "reason");
	const char *code = json_string_value(json_object_get(why, "code"));
	if (strcmp(json_string_value(json_object_get(view, "status")), status) != 0)
		fail_msg("the migration is %s, not %s: %s", json_string_value(json_object_get(view, "status")), status,
			 json_string_value(json_object_get(why, "message")));
	if (reason)
		assert_string_equal(code ? code : "", reason);
	else
		assert_null(code);
}

void come_back(struct test_host *host, enum aftermath aftermath)
{
	if (aftermath == QEMU_GOES_ON)
		fake_world_go_on(host->name, GUEST_UUID);
	if (aftermath == REBOOTS)
		fake_world_reboot(host->name);
	test_host_restart(host);
}

static unsigned int die;

void seed_die(unsigned int seed)
{
	die = seed;
}

unsigned int throw_die(size_t sides)
{
	die = die * 1103515245 + 12345;
	return (die >> 16) % (unsigned int)sides;
}
