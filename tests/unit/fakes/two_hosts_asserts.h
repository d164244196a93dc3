/* SPDX-License-Identifier: Apache-2.0 */
/* What must hold of the two hosts in the end; each fails the test that calls it. */
#ifndef FERRY_TESTS_TWO_HOSTS_ASSERTS_H
#define FERRY_TESTS_TWO_HOSTS_ASSERTS_H

#include "fakes/two_hosts.h"

/* STUCK: its QEMU is there, and lets it run no more (it was on its way by post-copy). */
enum running { RUNS, PAUSED, ENDED, STUCK };

/* Nobody holds the guest's job there. */
void assert_free(struct test_host *host);
/* Both say that `owner` has the guest, and only that one has it. */
void assert_owned_by(struct two_hosts *hosts, struct test_host *owner, enum running running);
/* The same, once every migration of both has ended. */
void assert_settled(struct two_hosts *hosts, struct test_host *owner, enum running running);
/* Whoever both journals agree on. */
struct test_host *agreed_owner(struct two_hosts *hosts);
/* reason: its code, or NULL for none. */
void assert_status(struct migration *migration, const char *status, const char *reason);

/* For two_hosts_at(): the guest's QEMU on this host (its name) ends. */
void kill_guest(void *host_name);

/* What happens to the host of a dead daemon before it comes back. */
enum aftermath { RESTARTS, QEMU_GOES_ON, REBOOTS };
void come_back(struct test_host *host, enum aftermath aftermath);

/* A die that falls the same way for the same seed. */
void seed_die(unsigned int seed);
unsigned int throw_die(size_t sides);

#endif
