/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A machine of the QEMU driver whose QEMU is a script (fake_qmp.h), with a loop of its own. The rest of it is the test's to fill in,
 * before or after; all of that stays the test's.
 */
#ifndef FERRY_TESTS_SCRIPTED_MACHINE_H
#define FERRY_TESTS_SCRIPTED_MACHINE_H

#include <pthread.h>
#include <stdlib.h>

#include "base/error.h"
#include "fakes/fake_qmp.h"
#include "net/loop.h"
#include "vm/qemu_machine.h"

#define SCRIPTED_MACHINE_PATIENCE_MS 10000

struct scripted_machine {
	struct machine machine;
	struct fake_qmp *fake;
	struct loop *loop;
	pthread_t thread;
};

static inline void *scripted_machine_loop(void *user)
{
	if (loop_run(user, NULL) < 0)
		abort();
	return NULL;
}

static inline void scripted_machine_begin(struct scripted_machine *scripted, const struct fake_qmp_step *steps, size_t count)
{
	int fd;
	assert_int_equal(loop_new(&scripted->loop, NULL), 0);
	assert_int_equal(pthread_create(&scripted->thread, NULL, scripted_machine_loop, scripted->loop), 0);
	scripted->fake = fake_qmp_new(steps, count, &fd);
	assert_int_equal(qmp_new(scripted->loop, fd, NULL, SCRIPTED_MACHINE_PATIENCE_MS, &scripted->machine.qmp, NULL), 0);
}

/* NULL if all went by the script, else what did not (free it). */
static inline char *scripted_machine_end(struct scripted_machine *scripted)
{
	qmp_free(scripted->machine.qmp);
	char *problem = fake_qmp_end(scripted->fake);
	loop_quit(scripted->loop);
	pthread_join(scripted->thread, NULL);
	loop_free(scripted->loop);
	return problem;
}

#endif
