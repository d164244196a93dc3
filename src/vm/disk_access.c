/* SPDX-License-Identifier: Apache-2.0 */
/*
 * May QEMU's user open the disks? See disk_access.h.
 *
 * The question is put to the kernel as that user: this thread's file-system identity (fsuid, fsgid, groups; all of them
 * are the thread's own in Linux, glibc merely hides it) is changed for one faccessat2(2). Unlike reading mode bits this
 * is right with ACLs, with folders on the way, and on NFS; unlike open(2) it wakes nobody who watches block devices
 * being closed.
 */
#include "vm/disk_access.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/fsuid.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/log.h"
#include "base/xalloc.h"

int disk_access_check(const char *path, bool write, uid_t uid, gid_t gid)
{
	int mode = write ? R_OK | W_OK : R_OK;
	if (geteuid() != 0 || uid == 0)
		return syscall(SYS_faccessat2, AT_FDCWD, path, mode, AT_EACCESS) < 0 ? -errno : 0;

	int group_count = getgroups(0, NULL);
	if (group_count < 0)
		return -errno;
	cleanup_free gid_t *groups = xcalloc((size_t)group_count + 1, sizeof(gid_t));
	group_count = getgroups(group_count, groups);
	if (group_count < 0)
		return -errno;
	if (syscall(SYS_setgroups, 0, NULL) < 0)
		return -errno;
	int old_gid = setfsgid(gid);
	int old_uid = setfsuid(uid); /* last: it drops the right to do the rest */

	int result = syscall(SYS_faccessat2, AT_FDCWD, path, mode, AT_EACCESS) < 0 ? -errno : 0;

	setfsuid((uid_t)old_uid);
	setfsgid((gid_t)old_gid);
	if (syscall(SYS_setgroups, group_count, groups) < 0)
		log_warning("cannot take this thread's groups again: %s", strerror(errno));
	return result;
}

int disk_access_prepare(const struct definition *definition, uid_t uid, gid_t gid,
			bool ret_is_block_device[DEFINITION_DISKS_MAX], struct error **e)
{
	for (size_t i = 0; i < definition->disk_count; i++) {
		const struct definition_disk *disk = &definition->disks[i];
		struct stat st;
		if (stat(disk->path, &st) < 0)
			return error_set_errno(e, ERROR_QEMU_START, errno, "disk %s: %s", disk->target, disk->path);
		if (!S_ISREG(st.st_mode) && !S_ISBLK(st.st_mode))
			return error_set(e, ERROR_QEMU_START, "disk %s: %s is neither a file nor a block device",
					 disk->target, disk->path);
		ret_is_block_device[i] = S_ISBLK(st.st_mode);

		int wrong = disk_access_check(disk->path, !disk->readonly, uid, gid);
		if (wrong == -EACCES && S_ISREG(st.st_mode) && !disk->readonly && geteuid() == 0) {
			if (chown(disk->path, uid, gid) < 0)
				return error_set_errno(e, ERROR_QEMU_START, errno,
						       "disk %s: cannot give %s to QEMU's user", disk->target,
						       disk->path);
			log_info("gave a disk to QEMU's user vm=%s path='%s' owner=%u:%u before=%u:%u",
				 definition->name, disk->path, uid, gid, st.st_uid, st.st_gid);
			wrong = disk_access_check(disk->path, true, uid, gid);
		}
		if (wrong < 0)
			return error_set_errno(e, ERROR_QEMU_START, -wrong,
					       "disk %s: QEMU's user (uid %u) may not open %s for %s", disk->target,
					       uid, disk->path, disk->readonly ? "reading" : "reading and writing");
	}
	return 0;
}
