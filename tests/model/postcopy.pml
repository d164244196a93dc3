/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The handover of a post-copy migration, for spin: the guest runs at the destination while its memory still comes from the
 * source, so each of two QEMUs has a part of it and neither may be ended. Its own rule:
 *
 *	offered is durable before migrate-start-postcopy; finish is sent only when the source's QEMU serves pages, after which it
 *	lets nothing run by itself any more (it says postcopy-active earlier, and may still fail then); taken is durable before cont; the source serves pages, and releases only when
 *	both QEMUs have completed (or one of them is gone, so that nobody needs the other's pages); on any fault the status is
 *	`recovering`, and no ferryd ends a QEMU, but for what is left of a guest when the source's is gone.
 *
 * One migration from host 0 to host 1; otherwise as precopy.pml: every message lost, repeated, late; a ferryd or a QEMU dies at
 * any moment; the stream between the QEMUs breaks, and is mended. Bounds: KILLS, CRASHES, REBOOTS, CUTS.
 */
#ifndef KILLS
#define KILLS 2
#endif
#ifndef CRASHES
#define CRASHES 1
#endif
#ifndef REBOOTS
#define REBOOTS 0
#endif
#ifndef CUTS
#define CUTS 2
#endif

#include "claims.h"

/* ---- the baton: as in precopy.pml ---- */
#define NONE 0
#define HOLDS 1
#define OFFERED 2
#define RELEASED 3
#define PREPARED 4
#define TAKEN 5
#define RUNNING 6
#define REFUSED 7

#define SOURCE_STEP(was, to)                                                                                                  \
	assert(source == was);                                                                                                \
	source = to;                                                                                                          \
	c_code { step_taken("source " #was " " #to); };
#define DESTINATION_STEP(was, to)                                                                                             \
	assert(destination == was);                                                                                           \
	destination = to;                                                                                                     \
	c_code { step_taken("destination " #was " " #to); };

/* ---- QEMU ---- */
#define GONE 0
#define RUN 1
#define COPY 2	    /* the guest runs, a first pass over memory */
#define PRE 3	    /* stopped at pre-switchover */
#define SERVING 4   /* it serves pages, or is postcopy-paused while the stream is broken: stopped for good */
#define COMPLETED 5 /* nobody needs its pages */
#define INCOMING 6
#define LISTENING 7 /* has the devices' state; -S keeps it paused */
#define ACTIVE 8    /* says postcopy-active, but is still sending the devices' state: if the stream errs now, it lets the guest run */

/* ---- what a source's worker is doing ---- */
#define IDLE 0
#define BEGIN 1
#define ASK_PREPARE 2
#define COPYING 3
#define CANCEL 4
#define TAKE_BACK 5
#define RESUME 6
#define TELL 7
#define ASK_FINISH 8 /* and serve: asked until the destination has everything */
#define ASK_REFUSE 9
#define CONFIRM 10
#define ENDED 11
#define RETRY 12

/* ---- what the destination is in the middle of ---- */
#define START 1
#define CONT 2
#define CONT_AGAIN 3
#define RAN 4
#define GIVE_BACK 5
#define END 6
#define REFUSE 7

/* ---- the two hosts ---- */
#define S 0
#define D 1
bit up[2] = 1;
byte owner[2]; /* hosts plus one; 0: not known */
byte qemu[2];
byte source, destination, worker, deciding;
bit ended, checked;
bit prepare_sent, finish_sent, refuse_sent, answered_prepared, answered_running, answered_refused;
bit answered_done; /* the destination runs, and needs nothing of the source any more */
bit stream, package; /* between the QEMUs: whole; the devices' state is under way */
bit whole;	     /* the destination has every page */
byte kills = KILLS, crashes = CRASHES, reboots = REBOOTS, cuts = CUTS;
#ifdef LIVE
bit calm;
#else
#define calm false
#endif

/* Ghosts. */
bit ran_there;	    /* the guest has run at the destination */
bit ran_here_since; /* the guest has run at the source since its devices' state was sent */
bit refused_once;

#define IS_RUNNING(h) (qemu[h] == RUN || qemu[h] == COPY)

inline check()
{
	if
	:: destination == REFUSED -> refused_once = 1
	:: else
	fi;
	CLAIM("never two running", !(IS_RUNNING(S) && IS_RUNNING(D)))
	CLAIM("what runs is owned", (!IS_RUNNING(S) || owner[S] == 1) && (!IS_RUNNING(D) || owner[D] == 2))
	CLAIM("one owner", !(owner[S] == 1 && source != OFFERED && owner[D] == 2))
	CLAIM("never lost", owner[S] == 1 || owner[D] == 2)
	CLAIM("a tombstone holds", !refused_once || destination == REFUSED)
	CLAIM("released: the destination has taken", source != RELEASED || destination == RUNNING)
}

inline run_at_source()
{
	CLAIM("nothing stale runs", !ran_there)
	ran_here_since = 1;
	qemu[S] = RUN
}

inline run_at_destination()
{
	CLAIM("nothing stale runs", !ran_here_since)
	ran_there = 1;
	qemu[D] = RUN
}

/* By ferryd, never by a fault: a QEMU whose pages somebody needs is not ended. */
inline end_source_qemu()
{
	CLAIM("no page is lost", qemu[S] != SERVING || whole || qemu[D] == GONE)
	qemu[S] = GONE
}
inline end_lost_qemu()
{
	CLAIM("no page is lost", qemu[S] == GONE)
	qemu[D] = GONE;
	stream = 0
}
inline end_destination_qemu()
{
	CLAIM("no page is lost", qemu[D] != RUN)
	qemu[D] = GONE;
	package = 0;
	stream = 0;
	whole = 0
}

proctype qemus()
{
	do
	:: d_step { qemu[S] == COPY -> qemu[S] = PRE; check() }
	:: d_step { qemu[S] == COPY -> stream = 0; qemu[S] = RUN; check() }
	:: d_step { qemu[D] == INCOMING && package -> package = 0; qemu[D] = LISTENING; check() }
	:: d_step { qemu[D] == INCOMING && !stream && !package && qemu[S] != RUN -> qemu[D] = GONE; check() }
	:: d_step { qemu[S] == ACTIVE -> qemu[S] = SERVING; check() }
	:: d_step { qemu[S] == ACTIVE -> stream = 0; run_at_source(); check() }
	/* All pages have come: the destination knows first, then the source. */
	:: d_step { stream && qemu[S] == SERVING && (qemu[D] == LISTENING || qemu[D] == RUN) && !whole -> whole = 1; check() }
	:: d_step { stream && qemu[S] == SERVING && whole -> qemu[S] = COMPLETED; check() }
	/* The stream breaks; both ferryds mend it (migrate-recover, migrate with resume): until then, `recovering`. */
	:: d_step { !calm && cuts > 0 && stream && qemu[S] == SERVING -> cuts--; stream = 0; check() }
	:: d_step { !stream && qemu[S] == SERVING && (qemu[D] == LISTENING || qemu[D] == RUN) && up[S] && up[D] -> stream = 1; check() }
	od
}

proctype source_side()
{
	do
	:: d_step { source == NONE && worker == IDLE && !ended && up[S] && up[D] && qemu[S] == RUN && owner[S] == 1 ->
		checked = 1; worker = BEGIN; check() }
	:: d_step { worker == BEGIN -> SOURCE_STEP(NONE, HOLDS) prepare_sent = 1; worker = ASK_PREPARE; check() }
	:: d_step { worker == ASK_PREPARE && answered_prepared ->
		if
		:: qemu[S] == RUN && qemu[D] == INCOMING -> qemu[S] = COPY; stream = 1; worker = COPYING
		:: else -> worker = CANCEL
		fi;
		check() }
#ifndef MUTILATE_OFFERED_AT_THE_END
	:: d_step { worker == COPYING && source == HOLDS && (qemu[S] == COPY || qemu[S] == PRE) -> SOURCE_STEP(HOLDS, OFFERED) check() }
#define MAY_START source == OFFERED
#else
#define MAY_START true
#endif
	/* migrate-start-postcopy: the devices' state goes out, and may arrive whatever becomes of the rest. */
	:: d_step { worker == COPYING && MAY_START && qemu[S] == PRE ->
		qemu[S] = ACTIVE; package = (qemu[D] == INCOMING); ran_here_since = 0; check() }
	:: d_step { worker == COPYING && (qemu[S] == SERVING || qemu[S] == COMPLETED) -> finish_sent = 1; worker = ASK_FINISH; check() }
#ifdef MUTILATE_FINISH_BEFORE_ACTIVE
	:: d_step { worker == COPYING && MAY_START && qemu[S] == PRE -> finish_sent = 1; check() }
#endif
#ifdef MUTILATE_FINISH_WHEN_ACTIVE
	:: d_step { worker == COPYING && qemu[S] == ACTIVE -> finish_sent = 1; check() }
#endif
	:: d_step { worker == ASK_PREPARE || worker == COPYING && qemu[S] != ACTIVE && qemu[S] != SERVING && qemu[S] != COMPLETED ->
		worker = CANCEL; check() }

	:: d_step { worker == CANCEL ->
		if
		:: qemu[S] == COPY -> stream = 0; qemu[S] = RUN
		:: qemu[S] == PRE -> stream = 0; run_at_source()
		:: else
		fi;
		worker = TAKE_BACK;
		check() }
	:: d_step { worker == TAKE_BACK ->
		if
		:: source == OFFERED -> SOURCE_STEP(OFFERED, HOLDS)
		:: else
		fi;
		worker = RESUME;
		check() }
	:: d_step { worker == RESUME ->
		if
		:: qemu[S] == SERVING || qemu[S] == COMPLETED -> stream = 0; run_at_source()
		:: else
		fi;
		refuse_sent = 1;
		worker = TELL;
		check() }
	:: d_step { worker == TELL -> worker = ENDED; check() }
	:: d_step { worker == ENDED ->
		ended = 1;
		if
		:: source == HOLDS && !answered_refused -> worker = RETRY
		:: else -> worker = IDLE
		fi;
		check() }
	:: d_step { worker == RETRY && answered_refused -> worker = IDLE; check() }

#ifdef MUTILATE_RELEASE_WHEN_ONE_COMPLETED
#define MAY_RELEASE answered_running
#else
#define MAY_RELEASE (answered_done && qemu[S] != SERVING || answered_done && qemu[D] == GONE || qemu[S] == GONE && answered_running)
#endif
	:: d_step { (worker == ASK_FINISH || worker == ASK_REFUSE) && answered_running && MAY_RELEASE ->
#ifdef MUTILATE_OFFERED_AT_THE_END
		SOURCE_STEP(HOLDS, OFFERED)
#endif
		SOURCE_STEP(OFFERED, RELEASED) owner[S] = D + 1; worker = CONFIRM; check() }
	:: d_step { (worker == ASK_FINISH || worker == ASK_REFUSE) && answered_refused -> worker = CANCEL; check() }
#ifdef MUTILATE_FAULT_ROLLS_BACK
	:: d_step { worker == ASK_FINISH && !stream && qemu[S] == SERVING -> worker = CANCEL; check() }
#endif
	:: d_step { worker == CONFIRM -> end_source_qemu(); worker = ENDED; check() }
	od
}

#define READY (up[D] && deciding == IDLE)
#define CAN_PREPARE (READY && prepare_sent && checked && destination == NONE && qemu[D] == GONE)
inline handle_prepare()
{
	DESTINATION_STEP(NONE, PREPARED)
	owner[D] = S + 1;
	checked = 0;
	deciding = START
}

inline handle_finish()
{
	if
	:: destination == PREPARED && qemu[D] == LISTENING ->
#ifdef MUTILATE_CONT_BEFORE_TAKEN
		run_at_destination();
		deciding = RAN
#else
		DESTINATION_STEP(PREPARED, TAKEN)
		owner[D] = D + 1;
		deciding = CONT
#endif
	:: destination == PREPARED && qemu[D] == GONE -> deciding = REFUSE
	:: destination == RUNNING -> answered_running = 1; answered_done = (whole || qemu[D] == GONE)
	:: destination == REFUSED -> answered_refused = 1
	:: else
	fi
}
#define FINISH_MATTERS                                                                                                        \
	(destination == PREPARED && qemu[D] != INCOMING || destination == REFUSED && !answered_refused ||                     \
	 destination == RUNNING && (!answered_running || !answered_done && (whole || qemu[D] == GONE)))

inline handle_refuse()
{
	if
	:: destination == PREPARED -> deciding = END
	:: destination == NONE -> DESTINATION_STEP(NONE, REFUSED) checked = 0
	:: destination == RUNNING -> answered_running = 1; answered_done = (whole || qemu[D] == GONE)
	:: destination == REFUSED -> answered_refused = 1
	:: else
	fi
}
#define REFUSE_MATTERS (destination == PREPARED || destination == NONE || destination == RUNNING && FINISH_MATTERS || destination == REFUSED && !answered_refused)

proctype destination_side()
{
	do
	:: d_step { CAN_PREPARE && worker == ASK_PREPARE -> handle_prepare(); check() }
	:: d_step { deciding == START -> qemu[D] = INCOMING; answered_prepared = 1; deciding = IDLE; check() }
	:: d_step { deciding == START -> deciding = REFUSE; check() }
	:: d_step { READY && worker == ASK_FINISH && FINISH_MATTERS -> handle_finish(); check() }
	:: d_step { READY && (worker == ASK_REFUSE || worker == TELL || worker == RETRY) && REFUSE_MATTERS -> handle_refuse(); check() }

	:: d_step { deciding == CONT && qemu[D] != GONE || deciding == CONT_AGAIN ->
		if
		:: qemu[D] == LISTENING -> run_at_destination()
		:: else
		fi;
		deciding = RAN;
		check() }
	:: d_step { (deciding == CONT || deciding == CONT_AGAIN) && qemu[D] == LISTENING -> deciding = GIVE_BACK; check() }
	:: d_step { deciding == CONT && qemu[D] == GONE -> deciding = GIVE_BACK; check() }
	:: d_step { deciding == RAN ->
#ifdef MUTILATE_CONT_BEFORE_TAKEN
		if
		:: destination == PREPARED -> DESTINATION_STEP(PREPARED, TAKEN)
		:: else
		fi;
		owner[D] = D + 1;
#endif
		DESTINATION_STEP(TAKEN, RUNNING) deciding = IDLE; check() }
	:: d_step { deciding == GIVE_BACK -> DESTINATION_STEP(TAKEN, PREPARED) owner[D] = S + 1; deciding = END; check() }
	:: d_step { deciding == END -> end_destination_qemu(); deciding = REFUSE; check() }
	:: d_step { deciding == REFUSE -> DESTINATION_STEP(PREPARED, REFUSED) deciding = IDLE; check() }

	:: d_step { READY && destination == PREPARED && qemu[D] == GONE -> deciding = REFUSE; check() }
	:: d_step { READY && destination == PREPARED && qemu[D] != GONE && up[S] && (ended || worker == ENDED) -> deciding = END; check() }
	:: d_step { READY && destination == PREPARED && qemu[D] == INCOMING && !up[S] -> deciding = END; check() }
#ifdef MUTILATE_FAULT_ENDS_DESTINATION
	:: d_step { READY && destination == RUNNING && !stream && !whole && qemu[D] == RUN -> deciding = END; check() }
#endif
#ifdef MUTILATE_RUNS_BY_ITSELF
	:: d_step { qemu[D] == LISTENING -> run_at_destination(); check() }
#endif
	od
}

proctype network()
{
	do
	:: d_step { !calm && READY && prepare_sent && !checked && destination == NONE -> checked = 1; check() }
	:: d_step { !calm && CAN_PREPARE -> handle_prepare(); check() }
	:: d_step { !calm && READY && finish_sent && FINISH_MATTERS -> handle_finish(); check() }
	:: d_step { !calm && READY && refuse_sent && REFUSE_MATTERS -> handle_refuse(); check() }
	:: d_step { !calm && READY && destination == PREPARED && qemu[D] == INCOMING -> deciding = END; check() }
	/* The source has let go, and something is missing here: its QEMU is gone, and the guest is lost. */
	:: d_step { READY && destination == RUNNING && source == RELEASED && qemu[D] == RUN && !whole -> end_lost_qemu(); check() }
	od
}

inline kill_ferryd(h)
{
	up[h] = 0;
	if
	:: h == S -> worker = IDLE
	:: else -> deciding = IDLE; checked = 0
	fi
}

inline qemu_dies(h)
{
	if
	:: qemu[h] == COPY || qemu[h] == PRE || qemu[h] == ACTIVE || qemu[h] == SERVING || h == D -> stream = 0
	:: else
	fi;
	if
	:: h == D -> package = 0; whole = 0
	:: else
	fi;
	qemu[h] = GONE
}

proctype host(bit h)
{
	do
	:: d_step { !up[h] ->
		up[h] = 1;
		if
		:: h == S && source != NONE && !ended ->
			if
			:: source == RELEASED -> worker = CONFIRM
			:: source == OFFERED && qemu[S] == GONE -> refuse_sent = 1; worker = ASK_REFUSE
			:: source == OFFERED && (qemu[S] == SERVING || qemu[S] == COMPLETED) -> finish_sent = 1; worker = ASK_FINISH
#ifdef MUTILATE_RECOVERY_FINISHES_WHEN_ACTIVE
			:: source == OFFERED && qemu[S] == ACTIVE -> finish_sent = 1; worker = ASK_FINISH
#else
			:: source == OFFERED && qemu[S] == ACTIVE -> worker = COPYING
#endif
			:: else -> worker = CANCEL
			fi
		:: h == D && destination == TAKEN -> deciding = CONT_AGAIN
		:: else
		fi;
		check() }
	od
}

proctype fate(bit h)
{
	do
	:: d_step { !calm && up[h] && kills > 0 -> kills--; kill_ferryd(h); check() }
	:: d_step { !calm && qemu[h] != GONE && crashes > 0 -> crashes--; qemu_dies(h); check() }
	:: d_step { !calm && reboots > 0 -> reboots--; kill_ferryd(h); qemu_dies(h); check() }
#ifdef LIVE
	:: !calm -> calm = 1
#endif
	od
}

#ifdef LIVE
/* A guest that needs pages of a QEMU that is gone waits for ever (`recovering`): that is the price of post-copy. */
#define RECOVERING (qemu[S] == GONE && qemu[D] == RUN && !whole)
proctype end_of_all()
{
end:	d_step { timeout ->
		CLAIM("every migration ends", worker == IDLE && deciding == IDLE && (source == NONE || ended) && destination != PREPARED && destination != TAKEN)
		CLAIM("nothing but recovering waits", destination != RUNNING || whole || qemu[D] == GONE || RECOVERING)
		CLAIM("every ferryd comes back", up[S] && up[D])
	}
}
#endif

init
{
	atomic {
		c_code { steps_begin(); };
		owner[S] = 1;
		qemu[S] = RUN;
		ran_here_since = 1;
		run qemus();
		run source_side();
		run destination_side();
		run network();
		run host(S);
		run host(D);
		run fate(S);
		run fate(D)
#ifdef LIVE
		;
		run end_of_all()
#endif
	}
}
