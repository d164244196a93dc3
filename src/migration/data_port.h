/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The destination's data port before QEMU listens on it: reserved at the check, where it answers the source's probe, let go
 * when the machine is started. What a source sends there meanwhile is thrown away, so that it can see how much the link carries;
 * of one connection at a time, the newest, and up to a bound, as nobody can tell here who sends it.
 */
#ifndef FERRY_MIGRATION_DATA_PORT_H
#define FERRY_MIGRATION_DATA_PORT_H

#include "migration/host.h"

/* A port of [data] native_ports on which a probe is answered. */
struct data_port_sink;
struct data_port {
	struct loop *loop;
	struct loop_source *source;
	int fd;
	uint16_t port;
	char token[RANDOM_ID_SIZE];
	struct data_port_sink *sink; /* atomic: whoever takes it out ends it */
};

/* Find a free port and answer each connection to it with the token (on the loop's thread). ERROR_DATA_PORTS if none is free. *ret is
 * zero, or has one already, which is let go. */
int data_port_reserve(struct migration_host *host, struct data_port *ret, struct error **e) MUST_CHECK;
/* Let it go, so that a QEMU can listen there. */
void data_port_release(struct data_port *data_port);

#endif
