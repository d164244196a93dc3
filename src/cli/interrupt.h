/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Ctrl-C and SIGTERM, counted. Both are blocked except while the program waits, so none is lost between a look at the
 * count and the wait: wait with ppoll(…, interrupt_waiting_mask()), or call interrupt_open() around a wait of others'.
 */
#ifndef FERRY_CLI_INTERRUPT_H
#define FERRY_CLI_INTERRUPT_H

#include <signal.h>

/* Count from now on instead of dying. */
void interrupt_catch(void);
/* How many came since interrupt_catch(); 0 if it was never called. */
int interrupt_count(void);
/* The last that came: SIGINT or SIGTERM. */
int interrupt_signal(void);
/* The mask to wait with, for ppoll(). */
const sigset_t *interrupt_waiting_mask(void);
/* Let them in, and keep them out again. */
void interrupt_open(void);
void interrupt_close(void);

#endif
