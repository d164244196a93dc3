/* SPDX-License-Identifier: Apache-2.0 */
/* The checks before a migration; see checks.h. Each is a function of its own that adds what it finds. */
#include "migration/checks.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/file.h"
#include "base/json.h"
#include "base/log.h"
#include "base/xalloc.h"
#include "network/port.h"

void checks_add(json_t *failures, const char *side, enum error_code code, const char *format, ...)
{
	va_list ap;
	va_start(ap, format);
	cleanup_free char *message = xvasprintf(format, ap);
	va_end(ap);
	json_array_append_new(failures, json_pack("{ss ss ss}", "code", error_code_name(code), "side", side, "message", message));
}

void checks_add_error(json_t *failures, const char *side, struct error *e)
{
	checks_add(failures, side, e->code, "%s", e->message);
	error_free(e);
}

/* ---- source ---- */

void checks_source(const struct machine_state *state, const json_t *description, json_t *failures)
{
	if (state->run != MACHINE_RUNNING && state->run != MACHINE_PAUSED)
		checks_add(failures, "source", ERROR_VM_NOT_RUNNING, "the VM is %s; it must run or be paused",
			   machine_run_name(state->run));
	size_t i;
	const json_t *reason;
	json_array_foreach (json_object_get(description, "blocked_reasons"), i, reason)
		checks_add(failures, "source", ERROR_VM_BLOCKED, "QEMU says: %s", json_string_value(reason));
	if (json_is_true(json_object_get(description, "snapshot_mode")))
		checks_add(failures, "source", ERROR_VM_SNAPSHOT,
			   "the VM was started with -snapshot: its writes are in a temporary file of this host");
}

#define PROBE_PREFIX ".ferry-probe-"

/* Where the probe of a disk stands: beside the file itself, not beside a symbolic link to it. Who can write into a shared
 * folder could put a link there to any file of the other host; that the file's own folder is shared is what the probe
 * proves. NULL when there is no such file. */
static char *probe_path(const char *disk_path, const char *journal_id, const char *migration_id)
{
	cleanup_free char *real = realpath(disk_path, NULL);
	const char *slash = real ? strrchr(real, '/') : NULL;
	return slash ? xasprintf("%.*s/" PROBE_PREFIX "%s-%s", (int)(slash - real), real, journal_id, migration_id) : NULL;
}

/* One probe a folder; disks in the same folder share it. */
static int place_probe(const char *path, const char *token, struct error **e)
{
	cleanup_close int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0644);
	if (fd < 0)
		return error_set_errno(e, ERROR_SYSTEM, errno, "cannot make the probe file '%s', by which a shared folder is known",
				       path);
	ssize_t length = (ssize_t)strlen(token);
	/* fsync: a network file system need not show the content to the other side before. */
	if (write(fd, token, (size_t)length) != length || fsync(fd) < 0) {
		error_set_errno(e, ERROR_SYSTEM, errno, "cannot write the probe file '%s'", path);
		unlink(path);
		return -1;
	}
	return 0;
}

void checks_remove_probes(const json_t *proofs)
{
	size_t i;
	const json_t *proof;
	json_array_foreach (proofs, i, proof) {
		const char *path = json_string_value(json_object_get(proof, "probe"));
		if (unlink(path) < 0 && errno != ENOENT)
			log_warning("cannot remove the probe file '%s': %s", path, strerror(errno));
	}
}

static const json_t *find_probe(const json_t *proofs, const char *path)
{
	size_t i;
	const json_t *proof;
	json_array_foreach (proofs, i, proof)
		if (strcmp(json_string_value(json_object_get(proof, "probe")), path) == 0)
			return proof;
	return NULL;
}

int checks_place_probes(const struct definition *definition, const char *journal_id, const char *migration_id,
			json_t **ret_proofs, struct error **e)
{
	cleanup_json json_t *proofs = json_array();
	for (size_t i = 0; i < definition->disk_count; i++) {
		const struct definition_disk *disk = &definition->disks[i];
		struct stat st;
		if (stat(disk->path, &st) < 0) {
			error_set_errno(e, ERROR_SYSTEM, errno, "disk '%s': cannot look at '%s'", disk->target, disk->path);
			goto remove_probes;
		}
		cleanup_free char *probe = probe_path(disk->path, journal_id, migration_id);
		if (!probe) {
			error_set_errno(e, ERROR_SYSTEM, errno, "disk '%s': cannot look at '%s'", disk->target, disk->path);
			goto remove_probes;
		}
		const json_t *earlier = find_probe(proofs, probe);
		char token[RANDOM_ID_SIZE];
		if (earlier) {
			snprintf(token, sizeof(token), "%s", json_string_value(json_object_get(earlier, "token")));
		} else {
			random_id(token);
			if (place_probe(probe, token, e) < 0)
				goto remove_probes;
		}
		json_array_append_new(proofs, json_pack("{ss ss sI ss ss}", "target", disk->target, "path", disk->path, "inode", (json_int_t)st.st_ino, "probe", probe,
							"token", token));
	}
	*ret_proofs = take_ptr(proofs);
	return 0;

remove_probes:
	checks_remove_probes(proofs);
	return -1;
}

static void remove_old_probes_beside(const char *disk_path, const char *journal_id)
{
	cleanup_free char *folder = realpath(disk_path, NULL);
	cleanup_free char *prefix = xasprintf(PROBE_PREFIX "%s-", journal_id);
	if (!folder)
		return;
	*(strrchr(folder, '/') + 1) = '\0';
	DIR *dir = opendir(folder);
	if (!dir)
		return;
	for (const struct dirent *file; (file = readdir(dir));) {
		if (strncmp(file->d_name, prefix, strlen(prefix)) != 0)
			continue;
		if (unlinkat(dirfd(dir), file->d_name, 0) < 0)
			log_warning("cannot remove the probe file '%s%s': %s", folder, file->d_name, strerror(errno));
	}
	closedir(dir);
}

void checks_remove_old_probes(struct migration_host *host)
{
	cleanup_json json_t *vms = inventory_list(host->inventory);
	size_t i, k;
	const json_t *vm, *disk;
	json_array_foreach (vms, i, vm) {
		cleanup_json json_t *view = NULL;
		if (inventory_show(host->inventory, json_string_value(json_object_get(vm, "uuid")), &view, NULL) < 0)
			continue;
		json_array_foreach (json_object_get(json_object_get(view, "definition"), "disks"), k, disk)
			remove_old_probes_beside(json_string_value(json_object_get(disk, "path")), journal_id(host->journal));
	}
}

/* ---- destination ---- */

static const char *const here = "destination";

static void check_vm(struct migration_host *host, const struct offer *offer, json_t *failures)
{
	/* Whoever has the job of the VM checks the rest; this one only reads. */
	cleanup_json json_t *view = NULL;
	if (inventory_show(host->inventory, offer->definition->uuid, &view, NULL) == 0) {
		const char *state = json_string_value(json_object_get(view, "state"));
		if (strcmp(state, "moved") != 0)
			checks_add(failures, here, ERROR_DEST_VM_EXISTS, "%s has a VM with uuid %s already; it is %s", host->name,
				   offer->definition->uuid, state);
	}
	json_decref(take_ptr(view));
	if (inventory_show(host->inventory, offer->definition->name, &view, NULL) == 0 &&
	    strcmp(json_string_value(json_object_get(view, "uuid")), offer->definition->uuid) != 0)
		checks_add(failures, here, ERROR_DEST_VM_EXISTS, "%s has another VM named '%s'", host->name, offer->definition->name);
}

/* Hosts that a VM went through since it was here, at most; each may have to be asked who it went on to. */
#define OWNERS_ASKED_MAX 8
#define OWNER_TIMEOUT_MS 3000
/* So often no VM is handed over while this host hears nothing of it. */
#define EPOCHS_UNSEEN_MAX (1 << 20)

/* Only the owner may offer a VM. That it is the owner is known here if it was the last time that this host heard of the VM;
 * else the VM has been handed on since, and those who did so can tell. Who offers what somebody else says to own is refused.
 * Where nobody can be asked (a host that is switched off does not keep its former guests from moving) the higher epoch
 * counts. */
static void check_owner(struct migration_host *host, const struct offer *offer, json_t *failures)
{
	cleanup_free char *owner = NULL;
	const char *uuid = offer->definition->uuid;
	uint64_t epoch = 0;
	if (!inventory_ownership(host->inventory, uuid, &owner, &epoch))
		return;
	cleanup_json json_t *view = NULL;
	if (strcmp(owner, host->name) == 0 && inventory_show(host->inventory, uuid, &view, NULL) == 0)
		return; /* that it is here already has been said */
	if (epoch >= offer->epoch) {
		checks_add(failures, here, ERROR_PEER_STALE, "the offer is of epoch %llu; %s knows epoch %llu",
			   (unsigned long long)offer->epoch, host->name, (unsigned long long)epoch);
		return;
	}
	if (offer->epoch - epoch > EPOCHS_UNSEEN_MAX) {
		checks_add(failures, here, ERROR_PEER_PROTOCOL, "the offer is of epoch %llu, and %s knows %llu: that is too far ahead",
			   (unsigned long long)offer->epoch, host->name, (unsigned long long)epoch);
		return;
	}
	for (int asked = 0; strcmp(owner, offer->source) != 0; asked++) {
		cleanup_free char *next = NULL;
		uint64_t next_epoch = 0;
		bool ours = strcmp(owner, host->name) == 0;
		bool answered = !ours && asked < OWNERS_ASKED_MAX && *owner && epoch + 1 < offer->epoch &&
				peers_ask_owner(host->peers, owner, uuid, OWNER_TIMEOUT_MS, &next, &next_epoch);
		/* Between these two epochs there is no handover to the one who offers it; or the owner says itself that it is. */
		if (ours || epoch + 1 == offer->epoch || (answered && (strcmp(next, owner) == 0 || next_epoch >= offer->epoch))) {
			checks_add(failures, here, ERROR_PEER_NOT_OWNER, "the VM is owned by %s (epoch %llu), not by %s",
				   answered ? next : owner, (unsigned long long)(answered ? next_epoch : epoch), offer->source);
			return;
		}
		if (!answered || next_epoch <= epoch) {
			log_warning("%s offers a VM that %s was the last known owner of, and nobody can be asked", offer->source,
				    owner);
			return;
		}
		char *before = owner;
		owner = take_ptr(next);
		free(before);
		epoch = next_epoch;
	}
}

/* What may be called otherwise here (--map). */
static void forget_mapped(json_t *definition, const char *array, const char *key)
{
	size_t i;
	json_t *item;
	json_array_foreach (json_object_get(definition, array), i, item)
		json_object_del(item, key);
}

/* What the driver looks at (below; it knows what it needs of a description) must be what will be started. */
static void check_description(const struct offer *offer, json_t *failures)
{
	cleanup_json json_t *offered = definition_to_json(offer->definition);
	cleanup_json json_t *described = json_deep_copy(json_object_get(offer->description, "definition"));
	const char *key;
	const json_t *value;
	forget_mapped(offered, "disks", "path");
	forget_mapped(described, "disks", "path");
	forget_mapped(offered, "nics", "bridge");
	forget_mapped(described, "nics", "bridge");
	if (described)
		json_object_foreach (offered, key, value)
			if (!json_equal(value, json_object_get(described, key)))
				checks_add(failures, here, ERROR_PEER_PROTOCOL,
					   "key '%s': the definition and the description differ", key);
}

static void check_extra_args(const struct migration_host *host, const struct offer *offer, json_t *failures)
{
	if (host->refuse_extra_args && offer->definition->extra_arg_count > 0)
		checks_add(failures, here, ERROR_DEST_EXTRA_ARGS, "the VM has extra_args (%s …); %s is configured to refuse them",
			   offer->definition->extra_args[0], host->name);
}

static void check_memory(const struct offer *offer, json_t *failures)
{
	cleanup_free char *text = NULL;
	if (file_read("/proc/meminfo", 65536, &text, NULL, NULL) < 0)
		return;
	const char *line = strstr(text, "MemAvailable:");
	unsigned long long available_mib = line ? strtoull(line + strlen("MemAvailable:"), NULL, 10) / 1024 : UINT64_MAX;
	if (available_mib < offer->definition->memory_mib)
		checks_add(failures, here, ERROR_DEST_MEMORY, "the VM has %llu MiB of memory, %llu MiB are available",
			   (unsigned long long)offer->definition->memory_mib, available_mib);
}

static void check_bridges(const struct offer *offer, json_t *failures)
{
	for (size_t i = 0; i < offer->definition->nic_count; i++) {
		const char *bridge = offer->definition->nics[i].bridge;
		if (!port_bridge_exists(bridge))
			checks_add(failures, here, ERROR_DEST_BRIDGE, "there is no bridge '%s'; name another with --map bridge:%s=NAME",
				   bridge, bridge);
	}
}

/* The probe shows that the folder is the source's; the file itself could still be another one bound over it, so its
 * inode must be the source's too. (Not its size: a qcow2 file grows while the guest writes.)
 *
 * The probe's name is made here, of the source's journal and this migration, and not taken from the message: probes that
 * this host itself shows to others are named after its own journal, and must prove nothing when they are sent back. */
static void check_proof(const struct offer *offer, const json_t *proof, const char *path, json_t *failures)
{
	const char *target = json_string_value(json_object_get(proof, "target"));
	struct stat st;
	if (stat(path, &st) < 0) {
		checks_add(failures, here, ERROR_DEST_DISK_MISSING, "disk '%s': '%s': %s", target, path, strerror(errno));
		return;
	}
	cleanup_free char *probe = probe_path(path, offer->source_journal, offer->migration_id);
	cleanup_free char *token = NULL;
	bool shared = probe && file_read(probe, 256, &token, NULL, NULL) == 0 &&
		      strcmp(token, json_string_value(json_object_get(proof, "token"))) == 0;
	if (!shared || (json_int_t)st.st_ino != json_integer_value(json_object_get(proof, "inode")))
		checks_add(failures, here, ERROR_DEST_NOT_SAME_FILE,
			   "disk '%s': '%s' is there, but it is not the file that the source uses; the storage is not shared", target, path);
}

static void check_disks(const struct offer *offer, json_t *failures)
{
	for (size_t i = 0; i < offer->definition->disk_count; i++) {
		const struct definition_disk *disk = &offer->definition->disks[i];
		const json_t *found = NULL, *proof;
		size_t k;
		json_array_foreach (offer->proofs, k, proof)
			if (strcmp(json_string_value(json_object_get(proof, "target")), disk->target) == 0)
				found = proof;
		if (found)
			check_proof(offer, found, disk->path, failures);
		else
			checks_add(failures, here, ERROR_DEST_NOT_SAME_FILE, "disk '%s': the source gave no proof of it", disk->target);
	}
}

void checks_disk_files(const struct definition *definition, struct checks_file ret[DEFINITION_DISKS_MAX])
{
	memset(ret, 0, DEFINITION_DISKS_MAX * sizeof(ret[0]));
	for (size_t i = 0; i < definition->disk_count; i++) {
		struct stat st;
		if (stat(definition->disks[i].path, &st) == 0)
			ret[i] = (struct checks_file){st.st_dev, st.st_ino};
	}
}

static void check_boot_file(const char *what, const char *path, json_t *failures)
{
	if (path && access(path, R_OK) < 0)
		checks_add(failures, here, ERROR_DEST_KERNEL, "%s '%s': %s", what, path, strerror(errno));
}

int checks_destination(struct migration_host *host, const struct offer *offer, json_t *failures, struct error **e)
{
	/* Else our own probes would seem to be the source's. */
	if (strcmp(offer->source_journal, journal_id(host->journal)) == 0)
		checks_add(failures, here, ERROR_DEST_SAME_HOST, "the offer is of the journal of %s itself", host->name);
	check_vm(host, offer, failures);
	check_owner(host, offer, failures);
	check_description(offer, failures);
	check_extra_args(host, offer, failures);
	check_memory(offer, failures);
	check_bridges(offer, failures);
	check_disks(offer, failures);
	check_boot_file("kernel", offer->definition->kernel, failures);
	check_boot_file("initrd", offer->definition->initrd, failures);

	/* The driver's own: machine type, CPU, firmware, accelerator. It names only codes and messages; the side is added here. */
	cleanup_json json_t *driver_failures = json_array();
	if (inventory_driver(host->inventory)
		    ->check_incoming(inventory_driver_host(host->inventory), offer->description, driver_failures, e) < 0)
		return -1;
	struct error *no_postcopy = NULL;
	if (offer->postcopy &&
	    inventory_driver(host->inventory)->check_postcopy(inventory_driver_host(host->inventory), &no_postcopy) < 0)
		checks_add_error(failures, here, no_postcopy);
	size_t i;
	json_t *failure;
	json_array_foreach (driver_failures, i, failure) {
		json_object_set_new(failure, "side", json_string(here));
		json_array_append(failures, failure);
	}
	return 0;
}
