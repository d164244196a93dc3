/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Two hosts in one process: each with its own journal, inventory, event loop and migration_host, the fake driver
 * (fake_driver.h) below and the fake wire (fake_wire.h) between them. A host can be stopped, can crash at a point of
 * the program (base/fault.h; the linker puts this file in the way of fault_pass()), and can be started again from what
 * is on disk and the machines that are left.
 *
 * A crash is made without ending the process: from that moment the host's journal cannot be written, its driver does
 * nothing, and its messages do not arrive; what its threads still do leaves no trace.
 */
#ifndef FERRY_TESTS_TWO_HOSTS_H
#define FERRY_TESTS_TWO_HOSTS_H

#include "fakes/fake_driver.h"
#include "fakes/fake_wire.h"
#include "migration/host.h"

#define GUEST_NAME "guest"
#define GUEST_UUID "0b3f1a9e-7c2d-4e5f-8a6b-112233445566"

struct test_host {
	const char *name;
	char folder[64];
	struct tls_files files; /* empty: only their address matters, as whose they are */
	struct migration_host host;
	struct driver_host driver_host;
	struct database *db;
	pthread_t loop_thread;
	int64_t silence_limit_ms;
	bool up;
	bool crashed; /* under the pair's mutex */
};

struct two_hosts {
	struct test_host a, b; /* the guest begins on a */
	pthread_mutex_t mutex;
	pthread_cond_t changed;
};

/* Which steps of the handover table all the tests of the program together have taken. */
extern bool two_hosts_steps_taken[HANDOVER_STATE_COUNT][HANDOVER_STATE_COUNT];

/* Both hosts, the guest defined and running on a. Every earlier script is forgotten. */
struct two_hosts *two_hosts_new(void);
/* Stop both and remove all. Returns false (and prints it) if the world saw what should never happen. */
bool two_hosts_free(struct two_hosts *hosts);

void test_host_start(struct test_host *host);
/* An orderly stop of ferryd; of a crashed one, the rest of its end. */
void test_host_stop(struct test_host *host);
void test_host_restart(struct test_host *host);
/* As kill -9, from any thread. */
void test_host_crash(struct two_hosts *hosts, struct test_host *host);
/* Crash `host` when the point is passed the next time; NULL: never. */
void two_hosts_crash_at(struct two_hosts *hosts, struct test_host *host, const char *point);
/* Writing this state of the handover into the journal fails, the next time only. */
void two_hosts_fail_journal(struct two_hosts *hosts, struct test_host *host, const char *state);
/* The same until that host is restarted. */
void two_hosts_fail_journal_for_good(struct two_hosts *hosts, struct test_host *host, const char *state);
/* Called when the point is passed, in the thread that passes it. */
void two_hosts_at(const char *point, void (*hook)(void *user), void *user);

/* Begin to migrate the guest from one to the other with these keys more in the request; a reference is the caller's. */
struct migration *begin_migration(struct test_host *from, const struct test_host *to, const char *more);
/* Wait until it has ended here or its host has crashed; false after a few seconds. */
bool wait_ended(struct two_hosts *hosts, struct migration *migration);
/* Wait until the status is reached or the migration has ended; true when it was reached. */
bool wait_status(struct migration *migration, enum migration_status status);
/* Until nothing of it is left to be cleaned up, either. */
bool wait_final(struct migration *migration);
/* Until a guest that is another host's has no QEMU there any more. */
bool wait_remains_gone(struct test_host *host);
/* Wait until every migration of both hosts has ended, or a host has crashed. */
bool wait_all_ended(struct two_hosts *hosts);
/* The owner that this host's journal names, "" when it does not know the VM. The caller frees it. */
char *journal_owner(struct test_host *host, int64_t *ret_epoch);
/* The handover state that this host's journal has of its newest migration. The caller frees it. */
char *journal_handover(struct test_host *host, const char *role);

#endif
