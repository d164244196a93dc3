/* SPDX-License-Identifier: Apache-2.0 */
/* Ctrl-C and SIGTERM, counted; see interrupt.h. */
#include "cli/interrupt.h"

#include <stdbool.h>
#include <stddef.h>

static volatile sig_atomic_t interrupt_counter, interrupt_last;
static bool interrupt_caught;
static sigset_t interrupt_set, interrupt_mask;

static void interrupt_handle(int signal_number)
{
	interrupt_counter = interrupt_counter + 1;
	interrupt_last = signal_number;
}

void interrupt_catch(void)
{
	if (interrupt_caught)
		return;
	interrupt_caught = true;
	sigemptyset(&interrupt_set);
	sigaddset(&interrupt_set, SIGINT);
	sigaddset(&interrupt_set, SIGTERM);
	sigprocmask(SIG_BLOCK, &interrupt_set, &interrupt_mask);
	sigdelset(&interrupt_mask, SIGINT);
	sigdelset(&interrupt_mask, SIGTERM);
	/* No SA_RESTART: a wait must end. */
	struct sigaction action = {.sa_handler = interrupt_handle};
	sigemptyset(&action.sa_mask);
	sigaction(SIGINT, &action, NULL);
	sigaction(SIGTERM, &action, NULL);
}

int interrupt_count(void)
{
	return (int)interrupt_counter;
}

int interrupt_signal(void)
{
	return (int)interrupt_last;
}

const sigset_t *interrupt_waiting_mask(void)
{
	return interrupt_caught ? &interrupt_mask : NULL;
}

void interrupt_open(void)
{
	if (interrupt_caught)
		sigprocmask(SIG_UNBLOCK, &interrupt_set, NULL);
}

void interrupt_close(void)
{
	if (interrupt_caught)
		sigprocmask(SIG_BLOCK, &interrupt_set, NULL);
}
