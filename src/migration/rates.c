/* SPDX-License-Identifier: Apache-2.0 */
/* What is remembered of links and VMs; see rates.h. */
#include "migration/rates.h"

#include <stdlib.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/xalloc.h"

/* Of VMs and hosts that have gone nothing needs to be known for long. */
#define FORGET_AFTER_MS (INT64_C(90) * 86400 * 1000)
/* Of what the kernel counts at least: huge pages are counted whole. Less than that, and the guest has begun to use more. */
#define SENT_PERCENT_MIN 70
#define METER_WINDOW_US 200000
#define METER_FULL_PERCENT 70
#define METER_JUMP_PERCENT 140

struct rates {
	struct database *db;
};

static const char *const schema[] = {
	"CREATE TABLE IF NOT EXISTS link_figures(host TEXT PRIMARY KEY, rate_bytes_per_s INTEGER NOT NULL,"
	" later_bytes_per_s INTEGER NOT NULL, scan_bytes_per_s INTEGER NOT NULL, before_us INTEGER NOT NULL,"
	" after_us INTEGER NOT NULL, pause_us INTEGER NOT NULL, round_trip_us INTEGER NOT NULL, at_ms INTEGER NOT NULL, moves INTEGER NOT NULL) STRICT",
	"CREATE TABLE IF NOT EXISTS vm_rate(vm_uuid TEXT PRIMARY KEY, touched_bytes INTEGER NOT NULL DEFAULT 0,"
	" touched_ms INTEGER NOT NULL DEFAULT 0, sent_percent INTEGER NOT NULL DEFAULT 0, short_us INTEGER NOT NULL DEFAULT 0,"
	" short_bytes INTEGER NOT NULL DEFAULT 0, long_us INTEGER NOT NULL DEFAULT 0, long_bytes INTEGER NOT NULL DEFAULT 0,"
	" writes_ms INTEGER NOT NULL DEFAULT 0, arrived_bytes INTEGER NOT NULL DEFAULT 0) STRICT",
};

int rates_open(struct database *db, struct rates **ret, struct error **e)
{
	const int64_t oldest_ms = clock_wall_ms() - FORGET_AFTER_MS;
	for (size_t i = 0; i < sizeof(schema) / sizeof(schema[0]); i++)
		if (database_run(db, e, schema[i], "") < 0)
			return -1;
	if (database_run(db, e, "DELETE FROM link_figures WHERE at_ms < ?", "i", oldest_ms) < 0 ||
	    database_run(db, e, "DELETE FROM vm_rate WHERE MAX(touched_ms, writes_ms) < ?", "i", oldest_ms) < 0)
		return -1;
	struct rates *rates = xcalloc(1, sizeof(*rates));
	rates->db = db;
	*ret = rates;
	return 0;
}

void rates_free(struct rates *rates)
{
	free(rates);
}

/* ---- links ---- */

static int read_link(void *user, const struct database_row *row, struct error **e)
{
	(void)e;
	struct rates_link *link = user;
	*link = (struct rates_link){
		.link = {.rate_bytes_per_s = (uint64_t)database_integer(row, 0),
			 .scan_bytes_per_s = (uint64_t)database_integer(row, 1),
			 .before_us = database_integer(row, 2),
			 .after_us = database_integer(row, 3),
			 .pause_us = database_integer(row, 4),
			 .later_bytes_per_s = (uint64_t)database_integer(row, 8)},
		.round_trip_us = database_integer(row, 5),
		.at_wall_ms = database_integer(row, 6),
		.moves = (unsigned int)database_integer(row, 7),
	};
	return 0;
}

bool rates_link(struct rates *rates, const char *host, struct rates_link *ret)
{
	cleanup_error struct error *e = NULL;
	if (!rates)
		return false;
	int rows = database_query(rates->db, &e, read_link, ret,
				  "SELECT rate_bytes_per_s, scan_bytes_per_s, before_us, after_us, pause_us, round_trip_us, at_ms, moves,"
				  " later_bytes_per_s FROM link_figures WHERE host = ?",
				  "s", host);
	if (rows < 0)
		log_failure(LOG_LEVEL_WARNING, "what is known of a link cannot be read", e);
	return rows > 0;
}

static int64_t smooth(int64_t known, int64_t seen)
{
	return seen <= 0 ? known : known <= 0 ? seen : known + (seen - known) / 2;
}

/* One that carries so much more or less than it did is another link by now, and the old figures no part of its average. */
static bool is_another(uint64_t known, uint64_t seen)
{
	return seen > 0 && (seen / 3 > known / 2 || seen / 2 < known / 3);
}

void rates_note_link(struct rates *rates, const char *host, const struct rates_link *seen)
{
	cleanup_error struct error *e = NULL;
	struct rates_link known = {0};
	if (!rates)
		return;
	(void)rates_link(rates, host, &known);
	if (is_another(known.link.rate_bytes_per_s, seen->link.rate_bytes_per_s))
		known.link.rate_bytes_per_s = known.link.later_bytes_per_s = 0;
	if (database_run(rates->db, &e, "REPLACE INTO link_figures VALUES(?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", "siiiiiiiii", host,
			 smooth((int64_t)known.link.rate_bytes_per_s, (int64_t)seen->link.rate_bytes_per_s),
			 smooth((int64_t)known.link.later_bytes_per_s, (int64_t)seen->link.later_bytes_per_s),
			 smooth((int64_t)known.link.scan_bytes_per_s, (int64_t)seen->link.scan_bytes_per_s),
			 smooth(known.link.before_us, seen->link.before_us), smooth(known.link.after_us, seen->link.after_us),
			 smooth(known.link.pause_us, seen->link.pause_us), smooth(known.round_trip_us, seen->round_trip_us),
			 clock_wall_ms(), (int64_t)known.moves + 1) < 0)
		log_failure(LOG_LEVEL_WARNING, "what is known of a link cannot be kept", e);
}

/* ---- VMs ---- */

static int read_vm(void *user, const struct database_row *row, struct error **e)
{
	(void)e;
	struct rates_vm *vm = user;
	*vm = (struct rates_vm){
		.touched_bytes = (uint64_t)database_integer(row, 0),
		.touched_wall_ms = database_integer(row, 1),
		.sent_percent = (unsigned int)database_integer(row, 2),
		.writes = {{database_integer(row, 3), (uint64_t)database_integer(row, 4)},
			   {database_integer(row, 5), (uint64_t)database_integer(row, 6)}},
		.writes_wall_ms = database_integer(row, 7),
	};
	return 0;
}

bool rates_vm(struct rates *rates, const char *vm_uuid, struct rates_vm *ret)
{
	cleanup_error struct error *e = NULL;
	if (!rates)
		return false;
	int rows = database_query(rates->db, &e, read_vm, ret,
				  "SELECT touched_bytes, touched_ms, sent_percent, short_us, short_bytes, long_us, long_bytes, writes_ms"
				  " FROM vm_rate WHERE vm_uuid = ?",
				  "s", vm_uuid);
	if (rows < 0)
		log_failure(LOG_LEVEL_WARNING, "what is known of a VM cannot be read", e);
	return rows > 0;
}

void rates_note_touched(struct rates *rates, const char *vm_uuid, uint64_t touched_bytes)
{
	cleanup_error struct error *e = NULL;
	if (rates && database_run(rates->db, &e,
				  "INSERT INTO vm_rate(vm_uuid, touched_bytes, touched_ms) VALUES(?1, ?2, ?3) ON CONFLICT(vm_uuid)"
				  " DO UPDATE SET touched_bytes = ?2, touched_ms = ?3,"
				  " sent_percent = CASE WHEN arrived_bytes > 0 AND ?2 > 0"
				  " THEN MAX(?4, MIN(100, arrived_bytes * 100 / ?2)) ELSE sent_percent END,"
				  " arrived_bytes = CASE WHEN ?2 > 0 THEN 0 ELSE arrived_bytes END",
				  "siii", vm_uuid, (int64_t)touched_bytes, clock_wall_ms(), (int64_t)SENT_PERCENT_MIN) < 0)
		log_failure(LOG_LEVEL_WARNING, "what is known of a VM cannot be kept", e);
}

void rates_note_arrived(struct rates *rates, const char *vm_uuid, uint64_t used_bytes)
{
	cleanup_error struct error *e = NULL;
	if (rates && database_run(rates->db, &e,
				  "INSERT INTO vm_rate(vm_uuid, touched_bytes, sent_percent, writes_ms, arrived_bytes)"
				  " VALUES(?1, ?2, 100, ?3, ?2) ON CONFLICT(vm_uuid)"
				  " DO UPDATE SET touched_bytes = ?2, sent_percent = 100, arrived_bytes = ?2",
				  "sii", vm_uuid, (int64_t)used_bytes, clock_wall_ms()) < 0)
		log_failure(LOG_LEVEL_WARNING, "what is known of a VM cannot be kept", e);
}

void rates_note_sent(struct rates *rates, const char *vm_uuid, unsigned int sent_percent)
{
	cleanup_error struct error *e = NULL;
	struct rates_vm known = {0};
	if (!rates)
		return;
	(void)rates_vm(rates, vm_uuid, &known);
	if (database_run(rates->db, &e,
			 "INSERT INTO vm_rate(vm_uuid, sent_percent, writes_ms) VALUES(?1, ?2, ?3) ON CONFLICT(vm_uuid)"
			 " DO UPDATE SET sent_percent = ?2",
			 "sii", vm_uuid, smooth(known.sent_percent, sent_percent), clock_wall_ms()) < 0)
		log_failure(LOG_LEVEL_WARNING, "what is known of a VM cannot be kept", e);
}

void rates_note_writes(struct rates *rates, const char *vm_uuid, const struct predict_writes writes[2])
{
	cleanup_error struct error *e = NULL;
	if (rates && database_run(rates->db, &e,
				  "INSERT INTO vm_rate(vm_uuid, short_us, short_bytes, long_us, long_bytes, writes_ms)"
				  " VALUES(?1, ?2, ?3, ?4, ?5, ?6) ON CONFLICT(vm_uuid) DO UPDATE SET short_us = ?2, short_bytes = ?3,"
				  " long_us = ?4, long_bytes = ?5, writes_ms = ?6",
				  "siiiii", vm_uuid, writes[0].for_us, (int64_t)writes[0].bytes, writes[1].for_us,
				  (int64_t)writes[1].bytes, clock_wall_ms()) < 0)
		log_failure(LOG_LEVEL_WARNING, "what is known of a VM cannot be kept", e);
}

/* ---- a meter ---- */

void rates_meter_add(struct rates_meter *meter, uint64_t bytes, int64_t for_us)
{
	meter->pending_bytes += bytes;
	meter->pending_us += for_us;
	if (meter->pending_us < METER_WINDOW_US) /* what fits into buffers at once is no rate */
		return;
	const uint64_t rate = (uint64_t)((double)meter->pending_bytes * 1e6 / (double)meter->pending_us);
	if (rate > meter->best_bytes_per_s / 100 * METER_JUMP_PERCENT) { /* what came before was not all that it can carry */
		meter->bytes = 0;
		meter->for_us = 0;
	}
	if (rate > meter->best_bytes_per_s)
		meter->best_bytes_per_s = rate;
	if (rate >= meter->best_bytes_per_s / 100 * (meter->full_percent ? meter->full_percent : METER_FULL_PERCENT)) {
		meter->bytes += meter->pending_bytes;
		meter->for_us += meter->pending_us;
	}
	meter->pending_bytes = 0;
	meter->pending_us = 0;
}

uint64_t rates_meter_best(const struct rates_meter *meter)
{
	return meter->for_us > 0 ? meter->best_bytes_per_s : 0;
}

uint64_t rates_meter_read(const struct rates_meter *meter)
{
	return meter->for_us > 0 ? (uint64_t)((double)meter->bytes * 1e6 / (double)meter->for_us) : 0;
}
