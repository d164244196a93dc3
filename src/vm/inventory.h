/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The VMs that this host knows: their definitions, who owns each (DESIGN: owner and epoch), and the machines that run.
 *
 * Ownership is a durable fact about a VM: the row (uuid, owner, epoch) stays in the journal as long as a stale message or a
 * left-over definition could otherwise start a second copy, also when the VM is no longer defined here. The epoch is
 * raised at every handover and never falls.
 *
 * Locking: whoever changes a VM or its machine holds the VM's job (one at a time, named, so that others are told what is
 * going on). Reading never waits for a job: `inventory_show` and `inventory_list` answer during every step. Fields of
 * struct vm marked (job) may be read and written by the job's holder only. Any thread but the loop's.
 */
#ifndef FERRY_VM_INVENTORY_H
#define FERRY_VM_INVENTORY_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/database.h"
#include "vm/driver.h"

struct inventory;

/* So many VMs may be defined on one host; one more is ERROR_TOO_LARGE. (An ownership that is only remembered does not count: it
 * must never stand in the way of a VM.) */
#define INVENTORY_VMS_MAX 4096

struct vm {
	char uuid[DEFINITION_UUID_SIZE];
	char *name;
	struct definition *definition; /* (job) NULL: only its ownership is remembered */
	char *owner;		       /* (job) a host's name */
	uint64_t epoch;		       /* (job) */
	struct machine *machine;       /* (job) NULL: no process of it here */
	bool arriving;		       /* (job) an incoming migration put it here; it has not been taken yet */
};

struct inventory_options {
	struct database *db;
	const char *host_name; /* what `owner` says of VMs that are ours */
	const struct vm_driver *driver;
	const struct driver_host *driver_host;
	/* A VM has this definition here now: read at the start, defined, or come from another host. On any thread; no lock of the
	 * inventory's is held. NULL: nobody wants to know. */
	void (*defined)(void *user, const struct definition *definition);
	void *user;
};

/* Read the journal. Machines are not looked for yet. */
int inventory_new(const struct inventory_options *options, struct inventory **ret, struct error **e) MUST_CHECK;
/* Let go of all machines (they run on). */
void inventory_free(struct inventory *inventory);
const struct vm_driver *inventory_driver(const struct inventory *inventory);
const struct driver_host *inventory_driver_host(const struct inventory *inventory);
const char *inventory_host_name(const struct inventory *inventory);

/* Find the machines of an earlier ferryd again, for all VMs. Call once, before any job. */
void inventory_attach_machines(struct inventory *inventory);
/* End the QEMUs left here that have handed their guests over to other hosts and are in no job; in the background. Call when migrations
 * have been recovered: they hold the jobs of VMs whose owner is not settled. */
void inventory_tidy_up(struct inventory *inventory);
/* Whether a VM that is another host's still has a QEMU here. */
bool inventory_has_remains(struct inventory *inventory, const char *uuid);
/* Start the VMs marked autostart that are ours and have no machine; call when migrations have been recovered. */
void inventory_autostart(struct inventory *inventory);

/* Define a VM (owner: this host, epoch 1), or change the definition of one that is ours and not running here. */
int inventory_define(struct inventory *inventory, const json_t *definition, json_t **ret_view, struct error **e) MUST_CHECK;
/* What the API shows of a VM; by name or uuid. The caller owns the result. */
int inventory_show(struct inventory *inventory, const char *name, json_t **ret_view, struct error **e) MUST_CHECK;
json_t *inventory_list(struct inventory *inventory);
/* Who owns a VM as far as this host knows, also one that is not defined here any more. False when nothing is known of it;
 * *ret_owner ("": not settled) is the caller's. */
bool inventory_ownership(struct inventory *inventory, const char *uuid, char **ret_owner, uint64_t *ret_epoch);

/* Take a VM's job (waiting for one that ends soon); ERROR_VM_BUSY names the job that holds it. `what` is copied ("start", "migration 1f3c…"). */
int inventory_lock(struct inventory *inventory, const char *name, const char *what, struct vm **ret, struct error **e) MUST_CHECK;
/* Take the job of the VM with this uuid, making an empty entry named `name` (no definition, owner "", epoch 0) if there is
 * none. Refused with ERROR_VM_EXISTS when another VM has the name. The entry is not written to the journal by this. */
int inventory_lock_arriving(struct inventory *inventory, const char *uuid, const char *name, const char *what, struct vm **ret,
			    struct error **e) MUST_CHECK;
void inventory_unlock(struct inventory *inventory, struct vm *vm);
/* Take the job of a VM that has a machine for a moment, if nobody has it: false otherwise, without a wait. Whoever else wants it
 * waits that moment, and readers do not see it. */
bool inventory_lock_to_glance(struct inventory *inventory, const char *uuid, struct vm **ret);
/* By the job's holder: all that is left is a moment's tidying up, so whoever wants the job should wait for it (a few seconds at
 * most) rather than be told that the VM is busy. */
void inventory_job_ends_soon(struct inventory *inventory, struct vm *vm);

/* The daily verbs; the caller holds the job. */
int vm_start(struct inventory *inventory, struct vm *vm, struct error **e) MUST_CHECK;
int vm_end(struct inventory *inventory, struct vm *vm, struct error **e) MUST_CHECK;
int vm_undefine(struct inventory *inventory, struct vm *vm, struct error **e) MUST_CHECK;
/* That this host owns it; ERROR_VM_NOT_OWNER or ERROR_VM_OWNER_UNKNOWN otherwise. */
int vm_check_owned(struct inventory *inventory, const struct vm *vm, struct error **e) MUST_CHECK;

/* Ownership, for the handover; the caller holds the job. vm_write_row() writes the journal only, so that it can be one
 * statement of a transaction; vm_apply() changes the memory, and must follow once the row is durable. definition may be
 * NULL: only the ownership is remembered. vm_write() does both. */
int vm_write_row(struct inventory *inventory, const struct vm *vm, const char *owner, uint64_t epoch,
		 const struct definition *definition, struct error **e) MUST_CHECK;
void vm_apply(struct inventory *inventory, struct vm *vm, const char *owner, uint64_t epoch,
	      struct definition *definition /* stolen */);
int vm_write(struct inventory *inventory, struct vm *vm, const char *owner, uint64_t epoch,
	     struct definition *definition /* stolen, also on failure */, struct error **e) MUST_CHECK;
/* Give the machine to the VM (the inventory then watches it), or take it out (NULL). */
void vm_set_machine(struct inventory *inventory, struct vm *vm, struct machine *machine);
/* The observer to start a machine of this VM with. */
struct machine_observer vm_observer(struct inventory *inventory, struct vm *vm);
/* Drop the row and the entry: nothing is remembered of the VM. The entry goes at inventory_unlock(). */
int vm_forget(struct inventory *inventory, struct vm *vm, struct error **e) MUST_CHECK;

#endif
