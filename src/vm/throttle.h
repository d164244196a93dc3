/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Slowing a guest's processors down from outside: the kernel's deadline scheduler gives each of their threads so much time in
 * every ten milliseconds, and no more. (SCHED_DEADLINE, sched(7); a constant bandwidth server.)
 *
 * Why not QEMU's own throttle: that comes into force only at the second synchronisation of the dirty bitmap at which the guest
 * was found to write too much, which with a large guest is after two passes over its memory; and it lets a processor run for
 * 10 ms and then sleep, at 93 % for 133 ms. This one is in force at once, at any moment, exactly, and goes away as quickly. A
 * thread that has had its time runs on until the processor's next tick, and sleeps the longer for it: at 93 % for 53 ms where
 * there are 250 a second, 13 ms where there are a thousand.
 *
 * It needs CAP_SYS_NICE, threads that may run on every processor of their scheduling domain, and some of the bandwidth that
 * the kernel lends to such threads; where one of these is missing, throttle_set() says so and QEMU's own is used.
 * Any thread.
 */
#ifndef FERRY_VM_THROTTLE_H
#define FERRY_VM_THROTTLE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/error.h"

#define THROTTLE_PERCENT_MAX 99

/* Take `percent` (1 to THROTTLE_PERCENT_MAX) of their time away from these threads, all of them or, on failure, none.
 * ERROR_UNSUPPORTED when one has a scheduling policy of its own that is not for us to change. May be called again with
 * another percentage. */
int throttle_set(const pid_t *threads, size_t count, unsigned int percent, struct error **e) MUST_CHECK;
/* How long a thread runs between two sleeps, at most: the processor's tick. */
unsigned int throttle_slice_ms(void);
/* Give it back. Threads that are not throttled, or gone, are left alone. Returns when they may be throttled again, on the monotonic
 * clock in microseconds, 0 for at once: one that is throttled sooner may never run again (see the .c file). */
int64_t throttle_release(const pid_t *threads, size_t count);
/* What was seen of a thread. */
struct throttle_watch {
	uint64_t worked_ns;
	int64_t since_us;
};
/* How much of its time the busiest of them works, in percent, 1 at least; 0: it is not known yet. For threads that are not throttled;
 * asked every now and then, as the next. */
unsigned int throttle_busy_percent(const pid_t *threads, size_t count, struct throttle_watch *watches);
/* Whether one of them wants to run and has not for much longer than it has to wait: then none should be throttled any more. Asked
 * every now and then; watches, one for each thread and zero at first, keep what was seen. */
bool throttle_is_stuck(const pid_t *threads, size_t count, unsigned int percent, struct throttle_watch *watches);

#endif
