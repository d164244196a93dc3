/* SPDX-License-Identifier: Apache-2.0 */
/* The policies of other systems, as settings of the same QEMU; for comparison (converge.h says how a policy works). */
#ifndef FERRY_MIGRATION_CONVERGE_PEERS_H
#define FERRY_MIGRATION_CONVERGE_PEERS_H

#include "migration/converge.h"

extern const struct converge_policy converge_policy_qemu, converge_policy_auto_converge, converge_policy_fixed,
	converge_policy_fixed_throttle, converge_policy_proxmox, converge_policy_ovirt, converge_policy_ovirt_suspend, converge_policy_kubevirt;

#endif
