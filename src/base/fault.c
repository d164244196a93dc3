/* SPDX-License-Identifier: Apache-2.0 */
/* Faults on purpose; see fault.h. */
#include "base/fault.h"

#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define FAULT_STOP_PREFIX "stop:"

static const char *fault_wanted;
static int fault_signal = SIGKILL;
static pthread_once_t fault_once = PTHREAD_ONCE_INIT;

static void fault_read(void)
{
	fault_wanted = getenv("FERRY_FAULT");
	if (fault_wanted && strncmp(fault_wanted, FAULT_STOP_PREFIX, strlen(FAULT_STOP_PREFIX)) == 0) {
		fault_wanted += strlen(FAULT_STOP_PREFIX);
		fault_signal = SIGSTOP;
	}
}

void fault_point(const char *when, const char *what)
{
	pthread_once(&fault_once, fault_read);
	if (!fault_wanted)
		return;
	size_t length = strlen(when);
	if (strncmp(fault_wanted, when, length) == 0 && strcmp(fault_wanted + length, what) == 0)
		kill(getpid(), fault_signal);
}
