/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The VMs that this host knows; see inventory.h.
 *
 * One mutex guards the list and what readers see of an entry; it is never held across a call that can block for long. The
 * job of an entry is a word ("start") set under that mutex; its holder may then work without any lock. A janitor thread
 * tidies up after guests that ended by themselves, and QEMUs that could not be ended when they should: the loop's thread, which
 * notices, must not block.
 */
#include "vm/inventory.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/json.h"
#include "base/log.h"
#include "base/xalloc.h"

struct vm_entry {
	struct vm vm; /* first, so that a struct vm is its entry */
	struct inventory *inventory;
	char *job;    /* NULL: free */
	bool ends_soon;
	bool glanced_at; /* its job is of no interest to anybody: inventory_lock_to_glance() */
	bool look;    /* the janitor should look at the machine */
	int64_t look_not_before_us; /* it could not be tidied up just now */
	bool forget;  /* remove the entry when the job ends */
	struct vm_entry *next;
};

struct inventory {
	struct inventory_options options;
	char *host_name;
	pthread_mutex_t mutex;
	pthread_cond_t wake_janitor, job_ended;
	pthread_t janitor;
	bool janitor_runs, stopping;
	struct vm_entry *entries; /* sorted by name */
};

static const char schema[] = "CREATE TABLE IF NOT EXISTS vm("
			     " uuid TEXT PRIMARY KEY, name TEXT NOT NULL, owner TEXT NOT NULL, epoch INTEGER NOT NULL,"
			     " definition TEXT) STRICT";

static void entry_free(struct vm_entry *entry)
{
	definition_free(entry->vm.definition);
	free(entry->vm.name);
	free(entry->vm.owner);
	free(entry->job);
	free(entry);
}

/* ---- the list; the mutex is held ---- */

static void entry_insert(struct inventory *inventory, struct vm_entry *entry)
{
	struct vm_entry **at = &inventory->entries;
	while (*at && strcmp((*at)->vm.name, entry->vm.name) < 0)
		at = &(*at)->next;
	entry->inventory = inventory;
	entry->next = *at;
	*at = entry;
}

static void entry_remove(struct inventory *inventory, struct vm_entry *entry)
{
	for (struct vm_entry **at = &inventory->entries; *at; at = &(*at)->next) {
		if (*at == entry) {
			*at = entry->next;
			entry_free(entry);
			return;
		}
	}
}

static struct vm_entry *entry_by_uuid(struct inventory *inventory, const char *uuid)
{
	for (struct vm_entry *entry = inventory->entries; entry; entry = entry->next)
		if (strcmp(entry->vm.uuid, uuid) == 0)
			return entry;
	return NULL;
}

static size_t defined_count(const struct inventory *inventory)
{
	size_t count = 0;
	for (const struct vm_entry *entry = inventory->entries; entry; entry = entry->next)
		count += entry->vm.definition != NULL;
	return count;
}

/* By name or uuid. An entry that only remembers an ownership does not own its name: one that is defined goes first. */
static struct vm_entry *entry_find(struct inventory *inventory, const char *name)
{
	struct vm_entry *remembered = NULL;
	for (struct vm_entry *entry = inventory->entries; entry; entry = entry->next) {
		if (strcmp(entry->vm.uuid, name) == 0)
			return entry;
		if (strcmp(entry->vm.name, name) != 0)
			continue;
		if (entry->vm.definition)
			return entry;
		remembered = entry;
	}
	return remembered;
}

static bool is_ours(const struct inventory *inventory, const struct vm *vm)
{
	return strcmp(vm->owner, inventory->host_name) == 0;
}

/* ---- what readers see ---- */

static const char *entry_state(const struct vm_entry *entry)
{
	const struct inventory *inventory = entry->inventory;
	bool ours = is_ours(inventory, &entry->vm);
	/* Once it is ours it has arrived, although its migration may still be tidying up. */
	if (entry->vm.arriving && !ours)
		return "incoming";
	if (entry->vm.machine) {
		struct machine_state state;
		inventory->options.driver->state(entry->vm.machine, &state);
		/* Which kind of paused is the migration's affair. */
		return machine_run_name(state.run == MACHINE_HANDED_OVER ? MACHINE_PAUSED : state.run);
	}
	return ours ? "stopped" : "moved";
}

static json_t *entry_view(const struct vm_entry *entry, bool with_definition)
{
	json_t *view = json_pack("{ss ss ss ss sI ss*}", "name", entry->vm.name, "uuid", entry->vm.uuid, "state",
				 entry_state(entry), "owner", entry->vm.owner, "epoch", (json_int_t)entry->vm.epoch, "job",
				 entry->glanced_at ? NULL : entry->job);
	if (entry->vm.definition) {
		json_object_set_new(view, "memory_mib", json_integer((json_int_t)entry->vm.definition->memory_mib));
		json_object_set_new(view, "vcpus", json_integer(entry->vm.definition->vcpus));
		if (with_definition)
			json_object_set_new(view, "definition", definition_to_json(entry->vm.definition));
	}
	return view;
}

int inventory_show(struct inventory *inventory, const char *name, json_t **ret_view, struct error **e)
{
	LOCK_SCOPE(&inventory->mutex);
	struct vm_entry *entry = entry_find(inventory, name);
	if (!entry || (!entry->vm.definition && !entry->vm.arriving))
		return error_set(e, ERROR_VM_NOT_FOUND, "no VM '%s' is defined on %s%s%s", name, inventory->host_name,
				 entry ? "; it is owned by " : "", entry ? entry->vm.owner : "");
	*ret_view = entry_view(entry, true);
	return 0;
}

json_t *inventory_list(struct inventory *inventory)
{
	json_t *list = json_array();
	LOCK_SCOPE(&inventory->mutex);
	for (struct vm_entry *entry = inventory->entries; entry; entry = entry->next)
		if (entry->vm.definition || entry->vm.arriving)
			json_array_append_new(list, entry_view(entry, false));
	return list;
}

bool inventory_ownership(struct inventory *inventory, const char *uuid, char **ret_owner, uint64_t *ret_epoch)
{
	LOCK_SCOPE(&inventory->mutex);
	const struct vm_entry *entry = entry_by_uuid(inventory, uuid);
	if (!entry || entry->vm.epoch == 0)
		return false;
	*ret_owner = xstrdup(entry->vm.owner);
	*ret_epoch = entry->vm.epoch;
	return true;
}

/* ---- the janitor ---- */

#define TIDY_AGAIN_US 5000000

/* On the loop's thread. */
static void machine_changed(void *user, const struct machine_state *state)
{
	struct vm_entry *entry = user;
	if (state->run != MACHINE_GONE)
		return;
	LOCK_SCOPE(&entry->inventory->mutex);
	entry->look = true;
	pthread_cond_signal(&entry->inventory->wake_janitor);
}

static bool entry_elsewhere(const struct vm_entry *entry)
{
	return *entry->vm.owner && !is_ours(entry->inventory, &entry->vm);
}

/* The mutex is held. Whether there is something to tidy up, and nobody who will do it: a guest that has ended, or a QEMU that has handed
 * its guest over to the owner and could not be ended then. (What is left of a guest here after a person has settled that it is another
 * host's is theirs to look at.) */
static bool entry_untidy(struct vm_entry *entry)
{
	if (!entry->look || entry->job || clock_monotonic_us() < entry->look_not_before_us)
		return false;
	entry->look = false;
	if (!entry->vm.machine)
		return false;
	struct machine_state state;
	entry->inventory->options.driver->state(entry->vm.machine, &state);
	return state.run == MACHINE_GONE || (state.run == MACHINE_HANDED_OVER && entry_elsewhere(entry));
}

static void tidy_entry(struct inventory *inventory, struct vm_entry *entry)
{
	log_context_set(NULL, entry->vm.name);
	if (entry_elsewhere(entry))
		log_info("the VM is %s's: what is left of it here is ended", entry->vm.owner);
	else
		log_info("guest ended");
	cleanup_error struct error *e = NULL;
	if (vm_end(inventory, &entry->vm, &e) < 0) {
		log_failure(LOG_LEVEL_WARNING, "cannot tidy up after the guest; trying again later", e);
		LOCK_SCOPE(&inventory->mutex);
		entry->look_not_before_us = clock_monotonic_us() + TIDY_AGAIN_US;
	}
	log_context_set(NULL, NULL);
}

/* The mutex is held. When something is to be looked at again, INT64_MAX if nothing is. */
static int64_t next_look_us(const struct inventory *inventory)
{
	int64_t next_us = INT64_MAX;
	for (const struct vm_entry *entry = inventory->entries; entry; entry = entry->next)
		if (entry->look && !entry->job && entry->look_not_before_us < next_us)
			next_us = entry->look_not_before_us;
	return next_us;
}

static void *janitor_main(void *user)
{
	struct inventory *inventory = user;
	pthread_mutex_lock(&inventory->mutex);
	while (!inventory->stopping) {
		struct vm_entry *entry = inventory->entries;
		while (entry && !entry_untidy(entry))
			entry = entry->next;
		if (!entry) {
			int64_t next_us = next_look_us(inventory);
			if (next_us == INT64_MAX)
				pthread_cond_wait(&inventory->wake_janitor, &inventory->mutex);
			else
				(void)cond_wait_until(&inventory->wake_janitor, &inventory->mutex, next_us);
			continue;
		}
		entry->job = xstrdup("tidying up");
		entry->ends_soon = true;
		pthread_mutex_unlock(&inventory->mutex);
		tidy_entry(inventory, entry);
		inventory_unlock(inventory, &entry->vm);
		pthread_mutex_lock(&inventory->mutex);
	}
	pthread_mutex_unlock(&inventory->mutex);
	return NULL;
}

/* ---- life of the inventory ---- */

static void tell_defined(const struct inventory *inventory, const struct definition *definition)
{
	if (definition && inventory->options.defined)
		inventory->options.defined(inventory->options.user, definition);
}

static int load_row(void *user, const struct database_row *row, struct error **e)
{
	struct inventory *inventory = user;
	const char *text = database_text(row, 4);
	struct definition *definition = NULL;
	if (*text) {
		cleanup_json json_t *json = NULL;
		if (json_parse(text, strlen(text), &json, e) < 0 || definition_parse(json, &definition, e) < 0)
			return error_wrap(e, "the journal's definition of VM '%s'", database_text(row, 1));
	}
	struct vm_entry *entry = xcalloc(1, sizeof(*entry));
	snprintf(entry->vm.uuid, sizeof(entry->vm.uuid), "%s", database_text(row, 0));
	entry->vm.name = xstrdup(database_text(row, 1));
	entry->vm.owner = xstrdup(database_text(row, 2));
	entry->vm.epoch = (uint64_t)database_integer(row, 3);
	entry->vm.definition = definition;
	entry_insert(inventory, entry);
	tell_defined(inventory, definition);
	return 0;
}

int inventory_new(const struct inventory_options *options, struct inventory **ret, struct error **e)
{
	struct inventory *inventory = xcalloc(1, sizeof(*inventory));
	inventory->options = *options;
	inventory->host_name = xstrdup(options->host_name);
	pthread_mutex_init(&inventory->mutex, NULL);
	cond_init(&inventory->wake_janitor);
	cond_init(&inventory->job_ended);
	if (database_run(options->db, e, schema, "") < 0 ||
	    database_query(options->db, e, load_row, inventory, "SELECT uuid, name, owner, epoch, definition FROM vm", "") < 0) {
		inventory_free(inventory);
		return -1;
	}
	pthread_create(&inventory->janitor, NULL, janitor_main, inventory);
	inventory->janitor_runs = true;
	*ret = inventory;
	return 0;
}

void inventory_free(struct inventory *inventory)
{
	if (!inventory)
		return;
	if (inventory->janitor_runs) {
		pthread_mutex_lock(&inventory->mutex);
		inventory->stopping = true;
		pthread_cond_signal(&inventory->wake_janitor);
		pthread_mutex_unlock(&inventory->mutex);
		pthread_join(inventory->janitor, NULL);
	}
	while (inventory->entries) {
		if (inventory->entries->vm.machine)
			inventory->options.driver->detach(inventory->entries->vm.machine);
		entry_remove(inventory, inventory->entries);
	}
	pthread_mutex_destroy(&inventory->mutex);
	pthread_cond_destroy(&inventory->wake_janitor);
	pthread_cond_destroy(&inventory->job_ended);
	free(inventory->host_name);
	free(inventory);
}

const struct vm_driver *inventory_driver(const struct inventory *inventory)
{
	return inventory->options.driver;
}

const struct driver_host *inventory_driver_host(const struct inventory *inventory)
{
	return inventory->options.driver_host;
}

const char *inventory_host_name(const struct inventory *inventory)
{
	return inventory->host_name;
}

struct machine_observer vm_observer(struct inventory *inventory, struct vm *vm)
{
	(void)inventory;
	return (struct machine_observer){.changed = machine_changed, .user = vm};
}

void inventory_attach_machines(struct inventory *inventory)
{
	for (struct vm_entry *entry = inventory->entries; entry; entry = entry->next) {
		cleanup_error struct error *e = NULL;
		struct machine *machine = NULL;
		struct machine_observer observer = vm_observer(inventory, &entry->vm);
		if (inventory->options.driver->attach(inventory->options.driver_host, entry->vm.uuid, &observer, &machine,
						      &e) < 0) {
			if (e->code != ERROR_QEMU_GONE)
				log_failure(LOG_LEVEL_ERROR, "a running guest cannot be taken up again", e);
			continue;
		}
		log_info("found the running guest '%s' again", entry->vm.name);
		vm_set_machine(inventory, &entry->vm, machine);
	}
}

void inventory_tidy_up(struct inventory *inventory)
{
	LOCK_SCOPE(&inventory->mutex);
	for (struct vm_entry *entry = inventory->entries; entry; entry = entry->next)
		entry->look = true;
	pthread_cond_signal(&inventory->wake_janitor);
}

bool inventory_has_remains(struct inventory *inventory, const char *uuid)
{
	LOCK_SCOPE(&inventory->mutex);
	const struct vm_entry *entry = entry_by_uuid(inventory, uuid);
	return entry && entry->vm.machine && entry_elsewhere(entry);
}

/* Those that may be started are looked for first: nobody else's VM is busy meanwhile. */
static json_t *list_autostart(struct inventory *inventory)
{
	json_t *list = json_array();
	LOCK_SCOPE(&inventory->mutex);
	for (struct vm_entry *entry = inventory->entries; entry; entry = entry->next)
		if (entry->vm.definition && entry->vm.definition->autostart && !entry->vm.machine)
			json_array_append_new(list, json_string(entry->vm.uuid));
	return list;
}

void inventory_autostart(struct inventory *inventory)
{
	cleanup_json json_t *list = list_autostart(inventory);
	size_t i;
	const json_t *uuid;
	json_array_foreach (list, i, uuid) {
		cleanup_error struct error *e = NULL;
		struct vm *vm = NULL;
		if (inventory_lock(inventory, json_string_value(uuid), "start", &vm, &e) < 0)
			continue; /* a migration that is being recovered holds it */
		if (vm->definition && vm->definition->autostart && !vm->machine && vm_check_owned(inventory, vm, NULL) == 0 &&
		    vm_start(inventory, vm, &e) < 0)
			log_failure(LOG_LEVEL_ERROR, "autostart", e);
		inventory_unlock(inventory, vm);
	}
}

/* ---- jobs ---- */

#define JOB_PATIENCE_US 5000000

/* The mutex is held. The entry may go while it is waited for, so it is looked for again each time. */
static struct vm_entry *entry_wait_free(struct inventory *inventory, struct vm_entry *(*find)(struct inventory *, const char *),
					const char *key)
{
	int64_t deadline_us = clock_monotonic_us() + JOB_PATIENCE_US;
	struct vm_entry *entry = find(inventory, key);
	while (entry && entry->job && entry->ends_soon &&
	       cond_wait_until(&inventory->job_ended, &inventory->mutex, deadline_us))
		entry = find(inventory, key);
	return find(inventory, key);
}

static int entry_take_job(struct vm_entry *entry, const char *what, struct vm **ret, struct error **e)
{
	if (entry->job)
		return error_set(e, ERROR_VM_BUSY, "VM '%s' is busy: %s", entry->vm.name, entry->job);
	entry->job = xstrdup(what);
	entry->ends_soon = false;
	*ret = &entry->vm;
	return 0;
}

int inventory_lock(struct inventory *inventory, const char *name, const char *what, struct vm **ret, struct error **e)
{
	LOCK_SCOPE(&inventory->mutex);
	struct vm_entry *entry = entry_wait_free(inventory, entry_find, name);
	if (!entry)
		return error_set(e, ERROR_VM_NOT_FOUND, "no VM '%s' is defined on %s", name, inventory->host_name);
	return entry_take_job(entry, what, ret, e);
}

bool inventory_lock_to_glance(struct inventory *inventory, const char *uuid, struct vm **ret)
{
	LOCK_SCOPE(&inventory->mutex);
	struct vm_entry *entry = entry_by_uuid(inventory, uuid);
	if (!entry || !entry->vm.machine || entry_take_job(entry, "a glance at how fast it writes", ret, NULL) < 0)
		return false;
	entry->ends_soon = entry->glanced_at = true;
	return true;
}

void inventory_job_ends_soon(struct inventory *inventory, struct vm *vm)
{
	LOCK_SCOPE(&inventory->mutex);
	((struct vm_entry *)vm)->ends_soon = true;
}

int inventory_lock_arriving(struct inventory *inventory, const char *uuid, const char *name, const char *what, struct vm **ret,
			    struct error **e)
{
	LOCK_SCOPE(&inventory->mutex);
	const struct vm_entry *namesake = entry_find(inventory, name);
	if (namesake && namesake->vm.definition && strcmp(namesake->vm.uuid, uuid) != 0)
		return error_set(e, ERROR_DEST_VM_EXISTS, "%s has another VM named '%s' (uuid %s)", inventory->host_name, name,
				 namesake->vm.uuid);
	struct vm_entry *entry = entry_wait_free(inventory, entry_by_uuid, uuid);
	if (!(entry && entry->vm.definition) && defined_count(inventory) >= INVENTORY_VMS_MAX)
		return error_set(e, ERROR_TOO_LARGE, "%d VMs are defined on %s, and no more are possible", INVENTORY_VMS_MAX,
				 inventory->host_name);
	if (!entry) {
		entry = xcalloc(1, sizeof(*entry));
		snprintf(entry->vm.uuid, sizeof(entry->vm.uuid), "%s", uuid);
		entry->vm.name = xstrdup(name);
		entry->vm.owner = xstrdup("");
		entry_insert(inventory, entry);
	}
	return entry_take_job(entry, what, ret, e);
}

void inventory_unlock(struct inventory *inventory, struct vm *vm)
{
	struct vm_entry *entry = (struct vm_entry *)vm;
	LOCK_SCOPE(&inventory->mutex);
	free(take_ptr(entry->job));
	entry->glanced_at = false;
	pthread_cond_broadcast(&inventory->job_ended);
	/* An entry that was made for an arrival which did not happen has nothing to remember. */
	if (entry->forget || (!vm->definition && vm->epoch == 0)) {
		entry_remove(inventory, entry);
		return;
	}
	entry->look = true; /* its guest may have ended while the job was held */
	pthread_cond_signal(&inventory->wake_janitor);
}

/* ---- rows ---- */

int vm_write_row(struct inventory *inventory, const struct vm *vm, const char *owner, uint64_t epoch,
		 const struct definition *definition, struct error **e)
{
	cleanup_free char *text = NULL;
	if (definition) {
		cleanup_json json_t *json = definition_to_json(definition);
		text = json_text(json);
	}
	return database_run(inventory->options.db, e,
			    "INSERT OR REPLACE INTO vm(uuid, name, owner, epoch, definition) VALUES(?, ?, ?, ?, ?)", "sssis",
			    vm->uuid, definition ? definition->name : vm->name, owner, (int64_t)epoch, text);
}

void vm_apply(struct inventory *inventory, struct vm *vm, const char *owner, uint64_t epoch, struct definition *definition)
{
	if (definition != vm->definition)
		tell_defined(inventory, definition);
	LOCK_SCOPE(&inventory->mutex);
	if (owner != vm->owner) {
		free(vm->owner);
		vm->owner = xstrdup(owner);
	}
	vm->epoch = epoch;
	if (definition != vm->definition) {
		definition_free(vm->definition);
		vm->definition = definition;
	}
	if (definition && strcmp(definition->name, vm->name) != 0) {
		free(vm->name);
		vm->name = xstrdup(definition->name);
	}
}

int vm_write(struct inventory *inventory, struct vm *vm, const char *owner, uint64_t epoch, struct definition *definition,
	     struct error **e)
{
	if (vm_write_row(inventory, vm, owner, epoch, definition, e) < 0) {
		if (definition != vm->definition)
			definition_free(definition);
		return -1;
	}
	vm_apply(inventory, vm, owner, epoch, definition);
	return 0;
}

int vm_forget(struct inventory *inventory, struct vm *vm, struct error **e)
{
	if (database_run(inventory->options.db, e, "DELETE FROM vm WHERE uuid = ?", "s", vm->uuid) < 0)
		return -1;
	LOCK_SCOPE(&inventory->mutex);
	((struct vm_entry *)vm)->forget = true;
	return 0;
}

/* ---- verbs ---- */

int inventory_define(struct inventory *inventory, const json_t *json, json_t **ret_view, struct error **e)
{
	struct definition *definition = NULL;
	if (definition_parse(json, &definition, e) < 0)
		return -1;
	struct vm *vm = NULL;
	if (inventory_lock_arriving(inventory, definition->uuid, definition->name, "define", &vm, e) < 0) {
		if (e && *e && (*e)->code == ERROR_DEST_VM_EXISTS)
			(*e)->code = ERROR_VM_EXISTS;
		definition_free(definition);
		return -1;
	}
	int r = -1;
	cleanup_free char *uuid = xstrdup(vm->uuid);
	if (vm->machine) {
		error_set(e, ERROR_VM_RUNNING, "VM '%s' runs; stop it before its definition is changed", vm->name);
	} else if (vm->epoch == 0) {
		r = vm_write(inventory, vm, inventory->host_name, 1, take_ptr(definition), e);
	} else if (vm_check_owned(inventory, vm, e) == 0) {
		r = vm_write(inventory, vm, vm->owner, vm->epoch, take_ptr(definition), e);
	}
	definition_free(definition);
	inventory_unlock(inventory, vm);
	if (r < 0)
		return -1;
	return inventory_show(inventory, uuid, ret_view, e);
}

int vm_check_owned(struct inventory *inventory, const struct vm *vm, struct error **e)
{
	if (is_ours(inventory, vm))
		return 0;
	if (!*vm->owner)
		return error_set(e, ERROR_VM_OWNER_UNKNOWN, "it is not settled who owns VM '%s'", vm->name);
	return error_set(e, ERROR_VM_NOT_OWNER, "VM '%s' is owned by host '%s' (epoch %llu); it can be started only there",
			 vm->name, vm->owner, (unsigned long long)vm->epoch);
}

void vm_set_machine(struct inventory *inventory, struct vm *vm, struct machine *machine)
{
	LOCK_SCOPE(&inventory->mutex);
	vm->machine = machine;
}

int vm_start(struct inventory *inventory, struct vm *vm, struct error **e)
{
	if (!vm->definition)
		return error_set(e, ERROR_VM_NOT_FOUND, "no VM '%s' is defined on %s", vm->name, inventory->host_name);
	if (vm->machine)
		return error_set(e, ERROR_VM_RUNNING, "VM '%s' runs already", vm->name);
	if (vm_check_owned(inventory, vm, e) < 0)
		return -1;
	struct machine *machine = NULL;
	struct machine_observer observer = vm_observer(inventory, vm);
	if (inventory->options.driver->start(inventory->options.driver_host, vm->definition, false, &observer, &machine, e) < 0)
		return -1;
	vm_set_machine(inventory, vm, machine);
	log_info("started");
	return 0;
}

int vm_end(struct inventory *inventory, struct vm *vm, struct error **e)
{
	struct machine *machine = vm->machine;
	if (!machine)
		return 0;
	if (inventory->options.driver->end(machine, e) < 0)
		return -1;
	vm_set_machine(inventory, vm, NULL);
	inventory->options.driver->detach(machine);
	return 0;
}

int vm_undefine(struct inventory *inventory, struct vm *vm, struct error **e)
{
	if (vm->machine)
		return error_set(e, ERROR_VM_RUNNING, "VM '%s' runs; stop it first", vm->name);
	/* Of a VM that moved away the ownership must stay known here, or a stale message could bring a second copy. */
	if (!is_ours(inventory, vm))
		return vm_write(inventory, vm, vm->owner, vm->epoch, NULL, e);
	return vm_forget(inventory, vm, e);
}
