/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Faults on purpose, by name, for tests of what they leave behind. fault.tbl lists the points of the program; a specification
 * says at which of them what happens:
 *
 *	POINT=ACTION[:NUMBER][@N|@N+|@*] , ...      finish-answer=drop   prepare-received=delay:500   after-taken=kill
 *
 * It happens the first time that the point is passed, the Nth, from the Nth on, or every time (@*); passes are counted from when
 * it was given. It is given by the environment variable FERRY_FAULT, or while ferryd-faults runs by PUT /v1/faults
 * {"faults": "..."} on the unix socket, which replaces what was to happen; each one that has happened is logged ("fault=POINT
 * action=ACTION") and reported by GET /v1/faults. `ferryd-faults --list-faults` prints the table and what goes with each point.
 *
 *	kill, stop      any point: the process ends as by kill -9, or stops (SIGSTOP) until it is continued
 *	delay:MS        any point
 *	drop            SEND: never sent, an error to the asker. RECEIVED: the connection is closed, nothing done. ANSWER: done,
 *	                and the connection closed without the answer. ANSWERED: the answer is thrown away.
 *	                (A message whose kept-alive connection is closed is sent again, once, on another: drop@* for both)
 *	hold            RECEIVED, ANSWER: as drop, but the connection stays open and silent (half-open) until the asker gives up
 *	cut             SEND, ANSWER: the connection is closed in the middle of the message
 *	corrupt[:SEED]  SEND, ANSWER: some bytes of the body are others (of outcome, which has none, the id)
 *	repeat          SEND: the message goes out twice, and the second answer counts
 *	old             SEND: the last message of this kind of an earlier migration to that host goes out first
 *	error           RECORD, before one: it cannot be made. STORE: EIO, or SQLite's error of that call. What a failed sync was to write is never written by a later one
 *	full, short     STORE, writes only: ENOSPC after nothing was written, or after half of it was
 *	forget[:SEED]   journal-sync, from the start of the process on: what has not been made durable is lost when the process
 *	                ends, as in a power cut; see base/forgetful_vfs.h
 *	jump:SECONDS    CLOCK: the wall clock is so much ahead (or, negative, behind) from then on
 *
 * To add a point: a row in fault.tbl, and FAULT(FAULT_...) where it is passed, or fault_pass() where more can happen than that
 * the process ends, stops or waits there. The fault matrix (tests/fault/) finds it by itself.
 *
 * All of it exists only where FERRY_FAULTS is defined (the library of ferryd-faults and of the unit tests): a product build has
 * neither the points nor their names. Any thread.
 */
#ifndef FERRY_BASE_FAULT_H
#define FERRY_BASE_FAULT_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"

enum fault_point {
#define FAULT_POINT(symbol, name, side, kind, when) symbol,
#include "base/fault.tbl"
#undef FAULT_POINT
	FAULT_POINT_COUNT
};

/* What the passer of a point must do; kill, stop and delay have been done when fault_pass() returns, and are never returned. */
enum fault_action {
	FAULT_NONE,
	FAULT_KILL,
	FAULT_STOP,
	FAULT_DELAY,
	FAULT_DROP,
	FAULT_HOLD,
	FAULT_CUT,
	FAULT_CORRUPT,
	FAULT_REPEAT,
	FAULT_OLD,
	FAULT_ERROR,
	FAULT_FULL,
	FAULT_SHORT,
	FAULT_FORGET,
	FAULT_JUMP,
	FAULT_ACTION_COUNT
};

#ifdef FERRY_FAULTS
/* ret_number (may be NULL): the action's number, 0 without one. */
enum fault_action fault_pass(enum fault_point point, int64_t *ret_number);
/* Replace what is to happen; "" for nothing. An unknown point, or an action that its kind does not have, is
 * ERROR_INVALID_ARGUMENT and changes nothing. Passes are counted from here on, and what has happened so far is forgotten. */
int fault_set(const char *specification, struct error **e) MUST_CHECK;
/* FERRY_FAULT; called once, early. */
int fault_set_from_environment(struct error **e) MUST_CHECK;
/* Whether such an action stands at the point, fired or not; passes nothing. */
bool fault_waits(enum fault_point point, enum fault_action action, int64_t *ret_number);
const char *fault_point_name(enum fault_point point);
/* Other bytes in place of some of these, the same ones for the same seed: FAULT_CORRUPT. */
void fault_corrupt(char *bytes, size_t length, int64_t seed);
/* {"points": [{"name", "side", "kind", "when"}], "actions": {kind: [action]}}; the caller's. */
json_t *fault_table(void);
/* {"faults": specification, "fired": [{"point", "action", "pass"}]}; the caller's. */
json_t *fault_report(void);
#else
static inline enum fault_action fault_pass(enum fault_point point, int64_t *ret_number)
{
	(void)point;
	(void)ret_number;
	return FAULT_NONE;
}
#endif

/* A point at which only kill, stop and delay make sense. */
#define FAULT(point) ((void)fault_pass((point), NULL))

#endif
