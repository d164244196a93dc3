/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A VM's network port on a Linux bridge: a tap device whose descriptor QEMU holds. The device is not persistent: it goes
 * when the last holder of the descriptor goes, so a QEMU that has ended leaves no port behind. A shut port is enslaved but
 * forwards nothing in either direction; opening it takes one netlink message (40-200 us; forwarding has begun when
 * port_open() returns, unless the bridge runs STP with a forward delay). Errors are ERROR_PORT. Linux rtnetlink(7),
 * Documentation/networking/tuntap. Any thread; blocking for microseconds.
 */
#ifndef FERRY_NETWORK_PORT_H
#define FERRY_NETWORK_PORT_H

#include <net/if.h>
#include <stdbool.h>
#include <stddef.h>

#include "base/error.h"

/* The device's name, the same at every start: "fy" + 8 hex digits of the VM's uuid + "-" + NIC number. */
void port_name(const char *vm_uuid, unsigned int nic_index, char ret_name[IF_NAMESIZE]);

/* Make the tap, put it on the bridge, open or shut. *ret_fd goes to QEMU; close it afterwards. With leftovers of the same
 * name ERROR_PORT. vnet_hdr is on (virtio); IPv6 is off on the device, so that the host sends nothing by itself. */
int port_create(const char *name, const char *bridge, bool open, int *ret_fd, struct error **e) MUST_CHECK;
/* Close descriptors of ports in the background: with the last one the device goes, which takes the kernel some 20 ms (it waits
 * until no CPU uses it any more) that nobody needs to wait for. port_create() waits for those under way. */
void port_release(const int *fds, size_t count);
/* Until all closings under way are done (two seconds at most). */
void port_wait_released(void);
/* Let it forward, and tell the bridge at once that mac is behind it. */
int port_open(const char *name, const char *bridge, const char *mac, struct error **e) MUST_CHECK;
/* Shut it; the bridge forgets what it learnt behind it. */
int port_shut(const char *name, struct error **e) MUST_CHECK;
bool port_bridge_exists(const char *bridge);
/* The bridge's MTU. */
int port_bridge_mtu(const char *bridge, unsigned int *ret_mtu, struct error **e) MUST_CHECK;

#endif
