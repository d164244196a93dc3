/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A whole host in memory for a fuzz target: journal and inventory in a database that is never written to disk, the fake
 * driver (tests/unit/fakes), a running event loop; and in place of the network a function of the target, which answers
 * what this host asks others. Made anew for each input, so that a finding can be repeated.
 */
#ifndef FERRY_TESTS_FUZZ_HOST_H
#define FERRY_TESTS_FUZZ_HOST_H

#include <pthread.h>

#include "migration/host.h"

#define FUZZ_HOST "host-b"  /* this host */
#define FUZZ_PEER "host-a"  /* the one that it talks with */
#define FUZZ_THIRD "host-c" /* known here, and none of the two */
#define FUZZ_VM "guest"
#define FUZZ_VM_UUID "0b3f1a9e-7c2d-4e5f-8a6b-112233445566"
/* In place of random ids: a corpus must be able to name them. */
#define FUZZ_JOURNAL "ffeeddccbbaa99887766554433221100"

struct fuzz_host {
	struct migration_host host;
	struct driver_host driver_host;
	struct database *db;
	pthread_t loop_thread;
};

void fuzz_host_open(struct fuzz_host *fuzz); /* database and tables; nothing is read yet */
int fuzz_host_load(struct fuzz_host *fuzz, struct error **e);
void fuzz_host_close(struct fuzz_host *fuzz);
/* Define FUZZ_VM, owned here, and start it. */
void fuzz_host_start_vm(struct fuzz_host *fuzz);

/* What http_client_request() does in a fuzz target: 0 and *ret, or an error and whether it was the other side's. */
typedef int fuzz_answer_function(const char *to, const char *method, const char *path, const json_t *body, json_t **ret,
				 bool *ret_answered, struct error **e);
extern fuzz_answer_function *fuzz_answer; /* NULL: nobody answers */

#endif
