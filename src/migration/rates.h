/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What earlier moves and quiet looks at running guests have told of links and VMs, kept in the journal's database so that the
 * next move can be predicted without a probe. A cache: where it cannot be read nothing is known, and a failed write is logged and
 * forgotten. Figures are smoothed, a new one counting for half; but a link's rate that is off by half is believed at once. Any thread;
 * each call may wait for the disk.
 */
#ifndef FERRY_MIGRATION_RATES_H
#define FERRY_MIGRATION_RATES_H

#include "base/database.h"
#include "migration/predict.h"

struct rates;

int rates_open(struct database *db, struct rates **ret, struct error **e) MUST_CHECK;
void rates_free(struct rates *rates);
/* All calls below accept NULL: nothing is known, and nothing is kept. */

/* To another host. A figure of 0 in `link` is one that is not known, and none to be learned. */
struct rates_link {
	struct predict_link link;
	int64_t round_trip_us;
	int64_t at_wall_ms; /* the last move */
	unsigned int moves;
};
bool rates_link(struct rates *rates, const char *host, struct rates_link *ret);
void rates_note_link(struct rates *rates, const char *host, const struct rates_link *seen);

struct rates_vm {
	uint64_t touched_bytes; /* of its memory, by the kernel's count */
	int64_t touched_wall_ms;
	unsigned int sent_percent; /* of that, what a first pass had to send; 0: not known */
	struct predict_writes writes[2]; /* within a short and a longer time, as in struct predict_guest; for_us 0: not known */
	int64_t writes_wall_ms;
};
bool rates_vm(struct rates *rates, const char *vm_uuid, struct rates_vm *ret);
void rates_note_touched(struct rates *rates, const char *vm_uuid, uint64_t touched_bytes);
/* It has just come from another host, with so much: all of it, and nothing else, has been touched here. What the first look at it
 * finds beyond that are zeros within pages of the kernel's. */
void rates_note_arrived(struct rates *rates, const char *vm_uuid, uint64_t used_bytes);
void rates_note_sent(struct rates *rates, const char *vm_uuid, unsigned int sent_percent);
/* The newest counts, as guests change what they do. */
void rates_note_writes(struct rates *rates, const char *vm_uuid, const struct predict_writes writes[2]);

/* ---- what a link carries, of a stream that does not fill it all the time ---- */

struct rates_meter {
	unsigned int full_percent; /* of the best rate, what counts as a stream that fills the link; 0: seven tenths */
	uint64_t best_bytes_per_s;
	uint64_t bytes, pending_bytes;
	int64_t for_us, pending_us;
};
/* So much in so long. While zero pages are looked for, or the guest's last pages are waited for, less goes out than could: that
 * does not count. */
void rates_meter_add(struct rates_meter *meter, uint64_t bytes, int64_t for_us);
/* The most within a fifth of a second, and on the whole; 0: too little has been seen. */
uint64_t rates_meter_best(const struct rates_meter *meter);
uint64_t rates_meter_read(const struct rates_meter *meter);

#endif
