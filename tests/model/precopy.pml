/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The handover of a pre-copy migration, for spin. docs/model.md says what is modelled, what is left out, and how to read a
 * trail; tests/model/check.py runs it with several bounds, and mutilated (MUTILATE_*), when it must fail.
 *
 * One VM, two hosts (0 and 1), up to MIGRATIONS moves of it in either direction. Each migration has a source worker and a
 * destination side; each host a ferryd that may die and come back, a durable journal that may be lost, and a QEMU.
 *
 *	Network     A message that was ever sent may be handled at any time, any number of times, or never: that is loss,
 *	            repetition, delay without bound and old age in one. An answer, once given, may reach the asker as long as it
 *	            asks. What is asked again until it is answered is also handled by the destination's own process, so that
 *	            fairness (LIVE) guarantees it; what is only old is handled by `network`, which nobody hurries.
 *	Durable     what is written by *_STEP and set_row() is on disk at once; one d_step is one commit.
 *	Volatile    what kill_ferryd() clears.
 *	Ghosts      fresh, copied, excused, lost, refused_once, given_away: nobody reads them but the claims (and the person).
 *
 * Bounds, all exhaustive: MIGRATIONS; KILLS (a ferryd), CRASHES (a QEMU), REBOOTS (a host), LOSSES (a journal), FAILURES (the
 * record of `running` cannot be written), DECISIONS (a person fences a host and settles a migration). Cuts of the link, aborts, and refusals of `cont` are not bounded.
 */
#ifndef MIGRATIONS
#define MIGRATIONS 2
#endif
#ifndef KILLS
#define KILLS 1
#endif
#ifndef CRASHES
#define CRASHES 1
#endif
#ifndef REBOOTS
#define REBOOTS 0
#endif
#ifndef LOSSES
#define LOSSES 0
#endif
#ifndef DECISIONS
#define DECISIONS 0
#endif
#ifndef FAILURES
#define FAILURES 1
#endif

#include "claims.h"

/* ---- the baton: the states of handover.tbl; check.py compares the steps that are taken with those of that table ---- */
#define NONE 0
#define HOLDS 1
#define OFFERED 2
#define RELEASED 3
#define PREPARED 4
#define TAKEN 5
#define RUNNING 6
#define REFUSED 7

#define SOURCE_STEP(m, from, to)                                                                                              \
	assert(source[m] == from);                                                                                            \
	source[m] = to;                                                                                                       \
	c_code { step_taken("source " #from " " #to); };
#define DESTINATION_STEP(m, from, to)                                                                                         \
	assert(destination[m] == from);                                                                                       \
	destination[m] = to;                                                                                                  \
	c_code { step_taken("destination " #from " " #to); };

/* ---- QEMU ---- */
#define GONE 0	     /* no process */
#define RUN 1	     /* the guest runs, no copy under way */
#define COPY 2	     /* the guest runs, its memory is copied */
#define PRE 3	     /* stopped at pre-switchover */
#define DEVICE 4     /* stopped, the last part is sent */
#define COMPLETED 5  /* stopped for good, all has been sent and acknowledged */
#define INCOMING 6   /* waits for, or loads, a guest */
#define LOADED 7     /* has loaded all; -S keeps it paused */
#define PAUSED 8     /* whole; left to a person, see person.h */

/* ---- what a source's worker is doing ---- */
#define IDLE 0
#define BEGIN 1	   /* checked, nothing written yet */
#define ASK_PREPARE 2
#define COPYING 3
#define CANCEL 4   /* rolling back: the copy must end first */
#define TAKE_BACK 5 /* then the baton comes back */
#define RESUME 6   /* then the guest goes on */
#define TELL 7	   /* then the destination is told, once, before the end is shown */
#define ASK_FINISH 8
#define ASK_REFUSE 9
#define CONFIRM 10
#define ENDED 11   /* says that it has ended; not durable yet */
#define RETRY 12   /* ended; goes on telling the destination to refuse */

/* ---- what the destination is in the middle of, under the migration's mutex ---- */
#define START 1	    /* prepared is durable, QEMU is about to be started */
#define CONT 2	    /* taken is durable, cont has not been sent */
#define CONT_AGAIN 3 /* taken was found by a new ferryd */
#define RAN 4	    /* cont has been answered, or nobody can tell */
#define GIVE_BACK 5 /* proof that the guest never ran */
#define END 6	    /* refusing: QEMU is to be ended */
#define REFUSE 7    /* refusing: QEMU is gone */

/* Hosts, by number. Owners are hosts plus one: 0 is a VM that the journal does not know. */
bit up[2] = 1;
bit journal[2];	   /* the journal's random id */
byte owner[2], epoch[2];
byte qemu[2], qemu_of[2]; /* and the migration that it is sent by, or comes with */
byte job[2];	   /* the VM's job: the migration that holds it, plus one */
bit fenced[2];	   /* a person guarantees that no QEMU runs there until it has heard what was settled */

/* Migrations: durable. */
bit begun[MIGRATIONS];
bit from[MIGRATIONS];
byte migration_epoch[MIGRATIONS];
byte source[MIGRATIONS], destination[MIGRATIONS];
bit ended[MIGRATIONS];
bit told[MIGRATIONS]; /* the destination has heard how it ended: nothing is owed to it */
bit destination_journal[MIGRATIONS], source_journal[MIGRATIONS]; /* as each side heard it of the other */
/* Volatile. */
byte worker[MIGRATIONS], deciding[MIGRATIONS];
bit resolved[MIGRATIONS]; /* a person has settled it at the source; afterwards the VM's epoch tells */
bit checked[MIGRATIONS];  /* the destination has checked it, and would prepare it */
bit new_here[MIGRATIONS]; /* the destination did not know the VM before */
/* Messages that were ever sent, answers that were ever given. */
bit prepare_sent[MIGRATIONS], finish_sent[MIGRATIONS], refuse_sent[MIGRATIONS];
bit answered_prepared[MIGRATIONS], answered_running[MIGRATIONS], answered_refused[MIGRATIONS];
/* The stream between the two QEMUs. */
bit connected[MIGRATIONS], connected_once[MIGRATIONS], all_sent[MIGRATIONS], acknowledged[MIGRATIONS];

#ifdef LIVE
bit calm; /* no fault and no old message any more */
#else
#define calm false
#endif
byte kills = KILLS, crashes = CRASHES, reboots = REBOOTS, losses = LOSSES, failures = FAILURES;
#if DECISIONS
byte decisions = DECISIONS;
byte fenced_for;      /* the migration that a host was fenced for */
bit somebody_decided;
bit ours_sent[MIGRATIONS], theirs_sent[MIGRATIONS]; /* the news to the destination, ever */
#endif

/* Ghosts. */
bit fresh[2];		 /* this QEMU has the guest's latest state, whole */
bit copied[MIGRATIONS];	 /* what was sent is the guest's latest state */
bit excused;		 /* a journal was lost with the only word of who owns the VM */
bit lost[2];
bit refused_once[MIGRATIONS];
bit given_away[MIGRATIONS]; /* by a person, at the source */

#define OTHER(h) (1 - (h))
#define TO(m) (1 - from[m])
#define IS_RUNNING(h) (qemu[h] == RUN || qemu[h] == COPY)
#define IS_WHOLE(h) (IS_RUNNING(h) || qemu[h] == PRE || qemu[h] == DEVICE || qemu[h] == COMPLETED || qemu[h] == LOADED || qemu[h] == PAUSED)

/* Above the epoch that was offered: what was said before does not count any more. */
#ifdef MUTILATE_NO_EPOCH
#define SETTLED_EPOCH(m) migration_epoch[m]
#else
#define SETTLED_EPOCH(m) (migration_epoch[m] + 1)
#endif
#define SETTLED(m) given_away[m]
#if MIGRATIONS > 2
#define BEING_TOLD (SETTLED(0) && !told[0] || SETTLED(1) && !told[1] || SETTLED(2) && !told[2])
#elif MIGRATIONS > 1
#define BEING_TOLD (SETTLED(0) && !told[0] || SETTLED(1) && !told[1])
#else
#define BEING_TOLD (SETTLED(0) && !told[0])
#endif

inline set_row(h, new_owner, new_epoch)
{
	owner[h] = new_owner;
	epoch[h] = new_epoch;
}

/* ---- the claims ---- */

/* This journal says that the VM may be started here. */
#define MAY_START(h) (owner[h] == (h) + 1 && !fenced[h] && !UNDECIDED(h, 0) && !UNDECIDED(h, 1) && !UNDECIDED(h, 2))
#if MIGRATIONS > 2
#define UNDECIDED(h, m) (from[m] == (h) && source[m] == OFFERED)
#elif MIGRATIONS > 1
#define UNDECIDED(h, m) ((m) < 2 && from[(m) & 1] == (h) && source[(m) & 1] == OFFERED)
#else
#define UNDECIDED(h, m) ((m) < 1 && from[0] == (h) && source[0] == OFFERED)
#endif

inline check_migration(m)
{
	if
	:: destination[m] == REFUSED -> refused_once[m] = 1
	:: else
	fi;
	CLAIM("a tombstone holds", !refused_once[m] || destination[m] == REFUSED)
	CLAIM("released: the destination has taken", source[m] != RELEASED || destination[m] == RUNNING || lost[TO(m)] || SETTLED(m))
}

inline check()
{
	CLAIM("never two running", !(IS_RUNNING(0) && IS_RUNNING(1)))
	CLAIM("what runs is owned", (!IS_RUNNING(0) || owner[0] == 1 || lost[0]) && (!IS_RUNNING(1) || owner[1] == 2 || lost[1]))
	CLAIM("one owner", !(MAY_START(0) && MAY_START(1)))
	CLAIM("never lost", excused || owner[0] == 1 || owner[1] == 2 || BEING_TOLD)
	check_migration(0);
#if MIGRATIONS > 1
	check_migration(1);
#endif
#if MIGRATIONS > 2
	check_migration(2);
#endif
}

/* The guest begins to run at h. */
inline run_at(h)
{
	CLAIM("nothing stale runs", fresh[h])
	qemu[h] = RUN;
	fresh[OTHER(h)] = 0;
	copied[0] = 0;
#if MIGRATIONS > 1
	copied[1] = 0;
#endif
#if MIGRATIONS > 2
	copied[2] = 0;
#endif
}

/* ---- QEMU ---- */

inline stream_ends(m)
{
	connected[m] = 0;
}

inline qemu_gone(h)
{
	if
	:: qemu[h] == INCOMING || qemu[h] == LOADED ->
		all_sent[qemu_of[h]] = 0;
		copied[qemu_of[h]] = 0;
		stream_ends(qemu_of[h])
	:: qemu[h] == COPY || qemu[h] == PRE || qemu[h] == DEVICE -> stream_ends(qemu_of[h])
	:: else
	fi;
	qemu[h] = GONE;
	qemu_of[h] = 0;
	fresh[h] = 0
}

proctype qemu_process(bit h)
{
	do
	/* Little is left: QEMU stops the guest by itself, whether ferryd lives or not. */
	:: d_step { qemu[h] == COPY -> qemu[h] = PRE; check() }
	/* The stream is cut, or QEMU gives up: it lets the guest run on by itself, also when only the acknowledgement is lost. */
	:: d_step { qemu[h] == COPY -> stream_ends(qemu_of[h]); qemu[h] = RUN; check() }
	:: d_step { qemu[h] == DEVICE -> stream_ends(qemu_of[h]); run_at(h); check() }
	:: d_step { qemu[h] == DEVICE && acknowledged[qemu_of[h]] -> stream_ends(qemu_of[h]); qemu[h] = COMPLETED; check() }
	:: d_step { qemu[h] == INCOMING && all_sent[qemu_of[h]] ->
		qemu[h] = LOADED;
		all_sent[qemu_of[h]] = 0;
		acknowledged[qemu_of[h]] = 1;
		fresh[h] = copied[qemu_of[h]];
		check() }
	/* A stream that ends early ends the QEMU that loads it. */
	:: d_step { qemu[h] == INCOMING && connected_once[qemu_of[h]] && !connected[qemu_of[h]] -> qemu_gone(h); check() }
	od
}

/* ---- the source ---- */

/* cleanup_pending is kept with the end: what is owed to the destination is told until it has heard, also by a later ferryd. */
inline source_ends(m)
{
	ended[m] = 1;
	job[from[m]] = 0;
	told[m] = told[m] || (source[m] == HOLDS && answered_refused[m] || source[m] == RELEASED && !resolved[m]);
	if
	:: !told[m] -> worker[m] = RETRY
	:: else -> worker[m] = IDLE
	fi
}

inline begin(m, h)
{
	begun[m] = 1;
	from[m] = h;
#ifdef MUTILATE_NO_EPOCH
	migration_epoch[m] = 2;
#else
	migration_epoch[m] = epoch[h] + 1;
#endif
	destination_journal[m] = journal[OTHER(h)];
	checked[m] = 1;
	job[h] = m + 1;
	worker[m] = BEGIN
}

#define PREDECESSOR_BEGUN(m) ((m) == 0 || begun[((m) + MIGRATIONS - 1) % MIGRATIONS])
#define CAN_BEGIN(m, h) (!begun[m] && PREDECESSOR_BEGUN(m) && up[h] && up[OTHER(h)] && job[h] == 0 && owner[h] == (h) + 1 && qemu[h] == RUN)

#ifdef MUTILATE_RESOLVE_RESUMES_SOURCE
#define LEFT_PAUSED(m) false
#else
#define LEFT_PAUSED(m) (resolved[m])
#endif

proctype source_side(byte m)
{
	do
	/* begin, and the check that the destination answers: nothing of either is durable. */
	:: d_step { CAN_BEGIN(m, 0) -> begin(m, 0); check() }
	:: d_step { CAN_BEGIN(m, 1) -> begin(m, 1); check() }
	:: d_step { worker[m] == BEGIN -> SOURCE_STEP(m, NONE, HOLDS) prepare_sent[m] = 1; worker[m] = ASK_PREPARE; check() }

	/* prepare */
	:: d_step { worker[m] == ASK_PREPARE && answered_prepared[m] ->
		if
		:: qemu[from[m]] == RUN && qemu[TO(m)] == INCOMING && qemu_of[TO(m)] == m ->
			qemu[from[m]] = COPY;
			qemu_of[from[m]] = m;
			connected[m] = 1;
			connected_once[m] = 1;
			worker[m] = COPYING
		:: else -> worker[m] = CANCEL /* nobody listens there any more */
		fi;
		check() }

	/* copy: the baton is offered while memory is copied, or at the latest when QEMU has stopped the guest */
	:: d_step { worker[m] == COPYING && source[m] == HOLDS && (qemu[from[m]] == COPY || qemu[from[m]] == PRE) ->
		SOURCE_STEP(m, HOLDS, OFFERED) check() }
	:: d_step { worker[m] == COPYING && source[m] == OFFERED && qemu[from[m]] == PRE ->
		qemu[from[m]] = DEVICE;
		all_sent[m] = connected[m];
		copied[m] = connected[m];
		check() }
	:: d_step { worker[m] == COPYING && qemu[from[m]] == COMPLETED -> finish_sent[m] = 1; worker[m] = ASK_FINISH; check() }
#ifdef MUTILATE_FINISH_BEFORE_COMPLETED
	:: d_step { worker[m] == COPYING && qemu[from[m]] == DEVICE -> finish_sent[m] = 1; worker[m] = ASK_FINISH; check() }
#endif
	/* It failed, somebody aborts it, a limit has passed. */
	:: d_step { worker[m] == ASK_PREPARE || worker[m] == COPYING -> worker[m] = CANCEL; check() }

	/* roll back: end the copy, take the baton back, let the guest go on, tell the destination */
	:: d_step { worker[m] == CANCEL ->
		if
		:: qemu[from[m]] == COPY -> stream_ends(m); qemu[from[m]] = RUN
		:: qemu[from[m]] == PRE || qemu[from[m]] == DEVICE && !acknowledged[m] -> stream_ends(m); run_at(from[m])
		:: qemu[from[m]] == DEVICE && acknowledged[m] -> stream_ends(m); qemu[from[m]] = COMPLETED /* too late */
		:: else
		fi;
		worker[m] = TAKE_BACK;
		check() }
	:: d_step { worker[m] == TAKE_BACK ->
		if
		:: source[m] == OFFERED ->
			SOURCE_STEP(m, OFFERED, HOLDS)
			if
			:: resolved[m] -> set_row(from[m], from[m] + 1, SETTLED_EPOCH(m))
			:: else
			fi
		:: else
		fi;
		worker[m] = RESUME;
		check() }
	:: d_step { worker[m] == RESUME ->
		if
		:: qemu[from[m]] == COMPLETED && !LEFT_PAUSED(m) -> run_at(from[m])
		:: qemu[from[m]] == COMPLETED && LEFT_PAUSED(m) -> qemu[from[m]] = PAUSED
		:: else
		fi;
#if DECISIONS
		theirs_sent[m] = theirs_sent[m] || resolved[m];
#endif
		refuse_sent[m] = 1;
		worker[m] = TELL;
		check() }
	:: d_step { worker[m] == TELL -> worker[m] = ENDED; check() } /* answered or not */
	:: d_step { worker[m] == ENDED -> source_ends(m); check() }
	:: d_step { worker[m] == RETRY && (answered_refused[m] && source[m] == HOLDS || told[m] || destination_journal[m] != journal[TO(m)]) ->
		if /* given by a person to a host that has lost its journal: there is nothing that could be told, the person must define it anew */
		:: source[m] == RELEASED && !told[m] && destination_journal[m] != journal[TO(m)] -> excused = 1
		:: else
		fi;
		told[m] = 1;
		worker[m] = IDLE;
		check() }

	/* finish, or refuse where that is all that may still be asked: again and again, until the destination has decided */
	:: d_step { (worker[m] == ASK_FINISH || worker[m] == ASK_REFUSE) && answered_running[m] ->
		SOURCE_STEP(m, OFFERED, RELEASED)
		set_row(from[m], TO(m) + 1, migration_epoch[m]);
		worker[m] = CONFIRM;
		check() }
	:: d_step { (worker[m] == ASK_FINISH || worker[m] == ASK_REFUSE) && answered_refused[m] -> worker[m] = CANCEL; check() }
#ifdef MUTILATE_RESUME_ON_LOST_ANSWER
	:: d_step { worker[m] == ASK_FINISH -> worker[m] = CANCEL; check() }
#endif
#ifdef MUTILATE_RELEASE_ON_TAKEN
	:: d_step { worker[m] == ASK_FINISH && destination[m] == TAKEN ->
		SOURCE_STEP(m, OFFERED, RELEASED)
		set_row(from[m], TO(m) + 1, migration_epoch[m]);
		worker[m] = CONFIRM;
		check() }
#endif
	:: d_step { worker[m] == CONFIRM ->
		qemu_gone(from[m]);
#if DECISIONS
		ours_sent[m] = ours_sent[m] || resolved[m];
#endif
		worker[m] = ENDED;
		check() }
	od
}

/* ---- the destination ---- */

#define READY(m) (begun[m] && up[TO(m)] && deciding[m] == IDLE)
#ifdef MUTILATE_NO_EPOCH
#define OFFER_IS_NEWER(m) true
#else
#define OFFER_IS_NEWER(m) (epoch[TO(m)] < migration_epoch[m] && !(epoch[TO(m)] > 0 && owner[TO(m)] == TO(m) + 1))
#endif

inline handle_prepare(m)
{
	DESTINATION_STEP(m, NONE, PREPARED)
	new_here[m] = (epoch[TO(m)] == 0);
	/* An offer teaches nothing about a VM that is known; of one that is new here, whose it is. */
	if
	:: epoch[TO(m)] == 0 -> set_row(TO(m), from[m] + 1, 1)
	:: else
	fi;
	source_journal[m] = journal[from[m]];
	checked[m] = 0;
	job[TO(m)] = m + 1;
	deciding[m] = START
}
#define CAN_PREPARE(m)                                                                                                        \
	(READY(m) && prepare_sent[m] && checked[m] && destination[m] == NONE && job[TO(m)] == 0 && qemu[TO(m)] == GONE &&     \
	 !fenced[TO(m)] && OFFER_IS_NEWER(m))

/* Refused, or unknown, counts at the source only if it is the journal of prepare that says so. */
#ifdef MUTILATE_UNKNOWN_IS_REFUSED
#define UNKNOWN_COUNTS(m) true
#else
#define UNKNOWN_COUNTS(m) (journal[TO(m)] == destination_journal[m])
#endif
#ifdef MUTILATE_REFUSED_BY_ANOTHER_JOURNAL
#define REFUSAL_COUNTS(m) true
#else
#define REFUSAL_COUNTS(m) (journal[TO(m)] == destination_journal[m])
#endif

inline handle_finish(m)
{
	if
	:: destination[m] == PREPARED && qemu[TO(m)] == LOADED ->
#ifdef MUTILATE_TAKEN_AFTER_CONT
		run_at(TO(m));
#else
		DESTINATION_STEP(m, PREPARED, TAKEN)
		set_row(TO(m), TO(m) + 1, migration_epoch[m]);
#endif
		deciding[m] = CONT
	:: destination[m] == PREPARED && qemu[TO(m)] == GONE -> deciding[m] = REFUSE
	:: destination[m] == TAKEN -> deciding[m] = CONT_AGAIN
	:: destination[m] == RUNNING -> answered_running[m] = 1
	:: destination[m] == REFUSED && REFUSAL_COUNTS(m) -> answered_refused[m] = 1
	:: destination[m] == NONE && UNKNOWN_COUNTS(m) -> answered_refused[m] = 1
	:: else
	fi
}
/* Whether that would change anything: a message that changes nothing is no step of the model. */
#define FINISH_MATTERS(m)                                                                                                     \
	(destination[m] == PREPARED && qemu[TO(m)] != INCOMING || destination[m] == TAKEN || destination[m] == RUNNING && !answered_running[m] ||        \
	 !answered_refused[m] && (destination[m] == REFUSED && REFUSAL_COUNTS(m) || destination[m] == NONE && UNKNOWN_COUNTS(m)))

inline handle_refuse(m)
{
	if
#ifdef MUTILATE_REFUSE_NOT_DURABLE
	:: destination[m] == PREPARED -> answered_refused[m] = 1
#else
	:: destination[m] == PREPARED -> deciding[m] = END
#endif
	:: destination[m] == NONE -> DESTINATION_STEP(m, NONE, REFUSED) checked[m] = 0
	:: destination[m] == TAKEN -> deciding[m] = CONT_AGAIN
	:: destination[m] == RUNNING -> answered_running[m] = 1
	:: destination[m] == REFUSED && REFUSAL_COUNTS(m) -> answered_refused[m] = 1
	:: else
	fi
}
#define REFUSE_MATTERS(m)                                                                                                     \
	(destination[m] == PREPARED || destination[m] == NONE || destination[m] == TAKEN || destination[m] == RUNNING && !answered_running[m] ||         \
	 destination[m] == REFUSED && REFUSAL_COUNTS(m) && !answered_refused[m])

/* What the source answers when it is asked for the outcome. A journal that was lost since proves nothing. */
#ifdef MUTILATE_LOST_SOURCE_IS_ENDED
#define SOURCE_SAYS_ENDED(m) (up[from[m]] && (ended[m] || worker[m] == ENDED || source[m] == NONE) && source[m] != RELEASED)
#else
#define SOURCE_SAYS_ENDED(m) (up[from[m]] && (ended[m] || worker[m] == ENDED) && source[m] != RELEASED && source[m] != NONE)
#endif

/* The destination's own decision may never cost the only whole state of the guest. */
inline refuse_alone(m)
{
	CLAIM("the only whole state is kept", !(qemu[TO(m)] == LOADED && fresh[TO(m)]) || IS_WHOLE(from[m]) && fresh[from[m]])
	deciding[m] = END
}

/* A person has given the VM to this host. */
#define SETTLED_ABOVE(m) (epoch[TO(m)] > migration_epoch[m])
/* cont: QEMU does as it is told, or refuses, which is the proof that the guest never ran. */
#ifdef MUTILATE_RESOLVE_RUNS_DESTINATION
#define STAYS_PAUSED(m) false
#else
#define STAYS_PAUSED(m) SETTLED_ABOVE(m)
#endif
inline cont(m)
{
	if
	:: qemu[TO(m)] == LOADED && !STAYS_PAUSED(m) -> run_at(TO(m))
	:: qemu[TO(m)] == LOADED && STAYS_PAUSED(m) -> qemu[TO(m)] = PAUSED
	:: else
	fi;
	deciding[m] = RAN
}

proctype destination_side(byte m)
{
	do
	:: d_step { CAN_PREPARE(m) && worker[m] == ASK_PREPARE -> handle_prepare(m); check() }
	:: d_step { deciding[m] == START -> qemu[TO(m)] = INCOMING; qemu_of[TO(m)] = m; answered_prepared[m] = 1; deciding[m] = IDLE; check() }
	:: d_step { deciding[m] == START -> deciding[m] = REFUSE; check() } /* it does not start */

#ifndef MUTILATE_FINISH_IS_ASKED_ONCE
	:: d_step { READY(m) && worker[m] == ASK_FINISH && FINISH_MATTERS(m) -> handle_finish(m); check() }
#endif
	:: d_step { READY(m) && (worker[m] == ASK_REFUSE || worker[m] == TELL || worker[m] == RETRY) && REFUSE_MATTERS(m) ->
		handle_refuse(m); check() }

	/* taken */
	:: d_step { deciding[m] == CONT && qemu[TO(m)] != GONE || deciding[m] == CONT_AGAIN -> cont(m); check() }
	:: d_step { (deciding[m] == CONT || deciding[m] == CONT_AGAIN) && qemu[TO(m)] == LOADED -> deciding[m] = GIVE_BACK; check() }
	:: d_step { deciding[m] == CONT && qemu[TO(m)] == GONE -> deciding[m] = GIVE_BACK; check() } /* it ended before cont was sent */
#ifdef MUTILATE_REFUSE_WITHOUT_PROOF
	:: d_step { deciding[m] == CONT_AGAIN && qemu[TO(m)] == GONE -> deciding[m] = GIVE_BACK; check() }
#endif
	:: d_step { deciding[m] == RAN ->
#ifdef MUTILATE_TAKEN_AFTER_CONT
		if
		:: destination[m] == PREPARED -> DESTINATION_STEP(m, PREPARED, TAKEN)
		:: else
		fi;
		set_row(TO(m), TO(m) + 1, migration_epoch[m]);
#endif
		DESTINATION_STEP(m, TAKEN, RUNNING)
		deciding[m] = IDLE;
		job[TO(m)] = 0;
		check() }
	/* The record fails (a full disk): taken, until somebody asks again or ferryd is started again. */
	:: d_step { deciding[m] == RAN && failures > 0 && !calm -> failures--; deciding[m] = IDLE; check() }
	:: d_step { deciding[m] == GIVE_BACK && !SETTLED_ABOVE(m) ->
		DESTINATION_STEP(m, TAKEN, PREPARED)
		set_row(TO(m), from[m] + 1, migration_epoch[m] - 1);
		deciding[m] = END;
		check() }
	/* The source has given up for good: this host owns the VM all the same, stopped. */
	:: d_step { deciding[m] == GIVE_BACK && SETTLED_ABOVE(m) -> qemu_gone(TO(m)); deciding[m] = RAN; check() }

	/* refusing: QEMU first, that makes it true */
	:: d_step { deciding[m] == END -> qemu_gone(TO(m)); deciding[m] = REFUSE; check() }
	:: d_step { deciding[m] == REFUSE ->
		DESTINATION_STEP(m, PREPARED, REFUSED)
		if
		:: new_here[m] -> set_row(TO(m), 0, 0)
		:: else
		fi;
		new_here[m] = 0;
		deciding[m] = IDLE;
		job[TO(m)] = 0;
		check() }

	/* the watch over a prepared machine */
	:: d_step { READY(m) && destination[m] == PREPARED && qemu[TO(m)] == GONE -> deciding[m] = REFUSE; check() }
#ifndef MUTILATE_NOBODY_ASKS
	:: d_step { READY(m) && destination[m] == PREPARED && qemu[TO(m)] != GONE && SOURCE_SAYS_ENDED(m) ->
		if
		:: source[m] == NONE -> refuse_alone(m)
		:: else -> deciding[m] = END
		fi;
		check() }
#endif
	:: d_step { READY(m) && destination[m] == PREPARED && qemu[TO(m)] == INCOMING && (!up[from[m]] || source[m] == NONE) -> refuse_alone(m); check() }
	od
}

/* ---- what is late, what comes twice, what nobody waits for any more ---- */

proctype network(byte m)
{
	do
	/* An old check: it would make the destination ready to prepare once more. */
	:: d_step { !calm && READY(m) && prepare_sent[m] && !checked[m] && destination[m] == NONE && OFFER_IS_NEWER(m) -> checked[m] = 1; check() }
	:: d_step { !calm && CAN_PREPARE(m) -> handle_prepare(m); check() }
	:: d_step { !calm && READY(m) && finish_sent[m] && FINISH_MATTERS(m) -> handle_finish(m); check() }
	:: d_step { !calm && READY(m) && refuse_sent[m] && REFUSE_MATTERS(m) -> handle_refuse(m); check() }
	/* The link is cut: the source is silent although it lives. */
	:: d_step { !calm && READY(m) && destination[m] == PREPARED && qemu[TO(m)] == INCOMING -> refuse_alone(m); check() }
#ifdef MUTILATE_REFUSE_ON_SILENCE
	:: d_step { !calm && READY(m) && destination[m] == PREPARED && qemu[TO(m)] == LOADED -> refuse_alone(m); check() }
#endif
	od
}

/* ---- ferryd: its death, its start ---- */

inline forget_volatile(h, m)
{
	if
	:: begun[m] && from[m] == h -> worker[m] = IDLE; resolved[m] = resolved[m] && ended[m]
	:: begun[m] && from[m] != h -> deciding[m] = IDLE; checked[m] = 0; new_here[m] = 0
	:: else
	fi
}

inline kill_ferryd(h)
{
	up[h] = 0;
	job[h] = 0;
	forget_volatile(h, 0);
#if MIGRATIONS > 1
	forget_volatile(h, 1);
#endif
#if MIGRATIONS > 2
	forget_volatile(h, 2);
#endif
}

/* source_recover, destination_recover */
inline recover(h, m)
{
	if
#ifndef MUTILATE_NOBODY_ASKS
	:: begun[m] && from[m] == h && source[m] != NONE && ended[m] && !told[m] -> worker[m] = RETRY
#endif
	:: begun[m] && from[m] == h && source[m] != NONE && !ended[m] ->
		CLAIM("one job a VM", job[h] == 0)
		job[h] = m + 1;
#ifndef MUTILATE_RESOLUTION_IS_FORGOTTEN
		resolved[m] = (epoch[h] >= SETTLED_EPOCH(m));
#endif
		if
		:: source[m] == RELEASED -> worker[m] = CONFIRM
#ifdef MUTILATE_FINISH_AFTER_QEMU_DIED
		:: source[m] == OFFERED && qemu[h] == GONE -> finish_sent[m] = 1; worker[m] = ASK_FINISH
#else
		:: source[m] == OFFERED && qemu[h] == GONE -> refuse_sent[m] = 1; worker[m] = ASK_REFUSE
#endif
#ifdef MUTILATE_RECOVERY_TAKES_BACK
		:: source[m] == OFFERED && qemu[h] == COMPLETED -> worker[m] = CANCEL
#endif
		:: source[m] == OFFERED && qemu[h] == COMPLETED -> finish_sent[m] = 1; worker[m] = ASK_FINISH
		:: else -> worker[m] = CANCEL
		fi
	:: begun[m] && from[m] != h && (destination[m] == PREPARED || destination[m] == TAKEN) ->
		CLAIM("one job a VM", job[h] == 0)
		job[h] = m + 1;
		if
		:: destination[m] == TAKEN -> deciding[m] = CONT_AGAIN
		:: destination[m] == PREPARED && qemu[h] == GONE -> deciding[m] = REFUSE
		:: else
		fi
	:: else
	fi
}

inline lose_rows(h, m)
{
	if
	:: begun[m] && from[m] == h -> source[m] = NONE; ended[m] = 0; told[m] = 0
	:: begun[m] && from[m] != h -> destination[m] = NONE; refused_once[m] = 0
	:: else
	fi
}

proctype host(bit h)
{
	do
	:: d_step { !up[h] ->
		up[h] = 1;
		recover(h, 0);
#if MIGRATIONS > 1
		recover(h, 1);
#endif
#if MIGRATIONS > 2
		recover(h, 2);
#endif
		check() }
	od
}

/* ---- what happens to them ---- */

#ifdef MUTILATE_START_IGNORES_OWNER
#define STARTABLE(h) (owner[h] != 0)
#else
#define STARTABLE(h) (owner[h] == (h) + 1)
#endif

proctype fate(bit h)
{
	do
	:: d_step { !calm && up[h] && kills > 0 -> kills--; kill_ferryd(h); check() }
	:: d_step { !calm && qemu[h] != GONE && crashes > 0 -> crashes--; qemu_gone(h); check() }
	:: d_step { !calm && reboots > 0 -> reboots--; kill_ferryd(h); qemu_gone(h); check() }
	:: d_step { !calm && losses > 0 ->
		losses--;
		kill_ferryd(h);
		journal[h] = 1;
		lost[h] = 1;
		if
		:: owner[h] == h + 1 || owner[OTHER(h)] != OTHER(h) + 1 || BEING_TOLD -> excused = 1
		:: else
		fi;
		set_row(h, 0, 0);
		lose_rows(h, 0);
#if MIGRATIONS > 1
		lose_rows(h, 1);
#endif
#if MIGRATIONS > 2
		lose_rows(h, 2);
#endif
		check() }
	/* Somebody, or autostart, starts a stopped VM: from its disks. */
	:: d_step { !calm && up[h] && job[h] == 0 && STARTABLE(h) && qemu[h] == GONE && !fenced[h] -> fresh[h] = 1; run_at(h); check() }
#ifdef LIVE
	:: !calm -> calm = 1
#endif
	od
}

#if DECISIONS
#include "person.h"
#endif

#ifdef LIVE
/*
 * Once faults have ceased and both ferryds answer (calm), only what somebody still works on or still asks can move. That must
 * bring every migration to its end, whatever the order: pan finds no cycle (so nothing goes on for ever), and where nothing can
 * move any more, all of them have ended. What is left waiting is in doubt, which takes a lost journal of the other side.
 */
#define SOURCE_RESTS(m) (worker[m] == IDLE && (source[m] == NONE || ended[m]))
#define DESTINATION_RESTS(m) (deciding[m] == IDLE && destination[m] != PREPARED && destination[m] != TAKEN)
/* Waiting for a word that nobody can give any more. */
#define SOURCE_IN_DOUBT(m) (lost[TO(m)] && (worker[m] == ASK_FINISH || worker[m] == ASK_REFUSE))
#define DESTINATION_IN_DOUBT(m) (lost[from[m]] && deciding[m] == IDLE && destination[m] == PREPARED && qemu[TO(m)] == LOADED)

inline check_rest(m)
{
	CLAIM("every migration ends", SOURCE_RESTS(m) && DESTINATION_RESTS(m) || lost[0] || lost[1])
	CLAIM("nothing but in-doubt waits", (SOURCE_RESTS(m) || SOURCE_IN_DOUBT(m)) && (DESTINATION_RESTS(m) || DESTINATION_IN_DOUBT(m)))
}

proctype end_of_all()
{
end:	d_step { timeout ->
		check_rest(0);
#if MIGRATIONS > 1
		check_rest(1);
#endif
#if MIGRATIONS > 2
		check_rest(2);
#endif
		CLAIM("every ferryd comes back", up[0] && up[1])
	}
}
#endif

init
{
	byte i;
	atomic {
		c_code { steps_begin(); };
		owner[0] = 1;
		epoch[0] = 1;
		qemu[0] = RUN;
		fresh[0] = 1;
		for (i : 0 .. 1) {
			run qemu_process(i);
			run host(i);
			run fate(i);
#if DECISIONS
			run paused_guest(i)
#endif
		}
		for (i : 0 .. MIGRATIONS - 1) {
			run source_side(i);
			run destination_side(i);
			run network(i);
#if DECISIONS
			run person(i)
#endif
		}
#ifdef LIVE
		;
		run end_of_all()
#endif
	}
}
