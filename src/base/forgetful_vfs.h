/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A layer below SQLite (a VFS around the system's) for tests of what a power cut and a bad disk do to the journal. In builds
 * with FERRY_FAULTS every database is opened through it.
 *
 * Each write passes FAULT_JOURNAL_WRITE and each sync FAULT_JOURNAL_SYNC, of every file that belongs to a database.
 *
 * With journal-sync=forget[:SEED] in force when a file is opened, what has been written and not synced stays in this process's
 * memory, so that a kill -9 loses what a power cut may lose, and keeps what it must keep. Without a seed nothing reaches the
 * disk before a sync. With one, each sector of 512 bytes that is written reaches it early or does not, by chance from that
 * seed: that is how writes come to be torn and out of order. A sync that fails (journal-sync=error) leaves what it was to write
 * as Linux does: to be read by this process, but no longer to be written by a later sync, unless it is written anew.
 *
 * Not modelled: names. A file that has been made or removed stays so (SQLite syncs the folder of those that matter).
 */
#ifndef FERRY_BASE_FORGETFUL_VFS_H
#define FERRY_BASE_FORGETFUL_VFS_H

#include <stdbool.h>

/* The name to give to sqlite3_open_v2(); registered at the first call. Any thread. */
const char *forgetful_vfs(void);
/* Whether any file is open that forgets. */
bool forgetful_vfs_forgets(void);

#endif
