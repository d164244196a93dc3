/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The heartbeat: one UDP datagram, sent by the load program in a guest (load.c) each millisecond and received by the
 * heartbeat client (client.c) outside of it. Both are built from the same tree for the same machine, so the words
 * stand in the machine's own order; a datagram of another size or with another magic is not a heartbeat.
 *
 * seq has no holes at the sender: a beat that could not be sent, or that came too late to be sent at its time, takes
 * no number. So a hole at the receiver is a lost packet, and a pause of the guest is a gap in time only. Two beats
 * with one boot id, one seq and different contents prove that two copies of one guest ran.
 */
#ifndef FERRY_LAB_BEAT_H
#define FERRY_LAB_BEAT_H

#include <stdint.h>

#define BEAT_MAGIC UINT64_C(0x3354414542525246) /* "FRRBEAT3" */
#define ORDER_MAGIC UINT64_C(0x315244524f525246) /* "FRRORDR1" */
#define BEAT_PORT 4799
#define BEAT_INTERVAL_US 1000

enum beat_flags {
    BEAT_READY = 1, /* all regions of memory, and the disk, are filled and the rewriting has begun */
    BEAT_ORDER_REFUSED = 2, /* the last order was not understood */
};

struct beat {
    uint64_t magic;
    uint64_t boot_id; /* drawn at random when the load program starts; survives a migration, not a reboot */
    uint64_t seq;
    uint64_t monotonic_ns; /* the guest's clocks when the beat was sent */
    uint64_t realtime_ns;
    uint64_t work; /* units of work done: pages gone through, and turns of the spinner where it runs */
    uint64_t passes; /* whole passes over the rewritten region */
    uint64_t pages_checked;
    uint64_t pages_wrong;
    uint64_t clock_back; /* times that one of the clocks went back */
    uint64_t dirty_bytes; /* written since the start */
    uint64_t late_beats; /* beats skipped because the guest did not get to run in time */
    uint64_t flags; /* enum beat_flags */
    /* Of the disk load (disk.h); 0 without one. */
    uint64_t disk_wrong; /* blocks that were not as written */
    uint64_t disk_foreign; /* blocks, or ticks, that somebody else had written: a second copy of the guest */
    uint64_t disk_passes;
    uint64_t disk_ticks;
    uint64_t order; /* the number of the last order that was carried out, or refused; 0: none yet */
};

/*
 * An order: a datagram the other way, from the client to where the beats come from. The load is to change. The client sends
 * it until a beat says that it was carried out; the number makes one that comes twice harmless.
 */
struct order {
    uint64_t magic;
    uint64_t number; /* none is used twice */
    char load[48]; /* as the option of the load program, MIB:MBPS:MODE; ended by a zero */
};

#endif
