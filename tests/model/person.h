/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A person settles a migration that is in doubt (`ferry migration resolve`), in the pre-copy model. The statement that the other
 * host is fenced is true: its QEMU is dead, and none runs there until it has heard. Nothing runs on by itself: a copy of the guest
 * that is whole stays paused, and the person, who knows whether it is the latest, resumes it or stops it.
 */
#define IN_DOUBT_AT_SOURCE(m) (begun[m] && up[from[m]] && !fenced[from[m]] && (worker[m] == ASK_FINISH || worker[m] == ASK_REFUSE))
#define IN_DOUBT_AT_DESTINATION(m)                                                                                            \
	(READY(m) && !fenced[TO(m)] && destination[m] == PREPARED && qemu[TO(m)] == LOADED && job[TO(m)] == (m) + 1)
#define FENCED_FOR(m, h) (fenced[h] && fenced_for == m)

inline fence(m, h)
{
	decisions--;
	fenced_for = m;
#ifndef MUTILATE_RESOLVE_WITHOUT_FENCING
	kill_ferryd(h);
	qemu_gone(h);
#endif
	fenced[h] = 1
}
#define CAN_FENCE(h) (decisions > 0 && !fenced[h] && !calm)

#ifdef MUTILATE_INHERIT_ONLY_WHAT_IS_KNOWN
#define CAN_INHERIT(m) (epoch[TO(m)] > 0 && epoch[TO(m)] < SETTLED_EPOCH(m))
#elif defined(MUTILATE_INHERIT_WITH_ANOTHER_JOURNAL)
#define CAN_INHERIT(m) (epoch[TO(m)] < SETTLED_EPOCH(m))
#else
/* A host that has lost its journal since cannot tell whether the VM has moved on. */
#define CAN_INHERIT(m) (epoch[TO(m)] < SETTLED_EPOCH(m) && journal[TO(m)] == destination_journal[m])
#endif

/* The news of it at the destination: `finish`, resolved. */
inline hear_ours(m)
{
	if
	:: destination[m] == PREPARED && qemu[TO(m)] == LOADED ->
		DESTINATION_STEP(m, PREPARED, TAKEN)
		set_row(TO(m), TO(m) + 1, SETTLED_EPOCH(m));
		deciding[m] = CONT
	:: destination[m] == PREPARED && qemu[TO(m)] == GONE -> deciding[m] = REFUSE
	:: destination[m] == TAKEN -> deciding[m] = CONT_AGAIN
	/* Too late for the guest's memory, not for the VM: the source has let go. */
	:: (destination[m] == REFUSED || destination[m] == RUNNING) && CAN_INHERIT(m) -> set_row(TO(m), TO(m) + 1, SETTLED_EPOCH(m)); told[m] = 1
	:: (destination[m] == REFUSED || destination[m] == RUNNING || destination[m] == NONE) && !CAN_INHERIT(m) ->
		told[m] = 1;
		if /* it must be defined anew there */
		:: lost[TO(m)] -> excused = 1
		:: else
		fi
	:: else
	fi
}
/* Whoever changes a VM's row holds its job. */
#ifdef MUTILATE_HEARD_WITHOUT_JOB
#define JOB_FREE_FOR(m, h) true
#else
#define JOB_FREE_FOR(m, h) (job[h] == 0 || job[h] == (m) + 1)
#endif
#define OURS_MATTERS(m) (JOB_FREE_FOR(m, TO(m)) && !(destination[m] == PREPARED && qemu[TO(m)] == INCOMING) && (!told[m] || CAN_INHERIT(m)))

/* Not if the VM has moved on since. */
#define MAY_CEDE(m) (epoch[TO(m)] == migration_epoch[m] && owner[TO(m)] == TO(m) + 1)

/* And `refuse`, resolved: what is here is not the VM any more. A guest that runs although it was said to be fenced is paused. */
inline hear_theirs(m)
{
	if
	:: destination[m] == PREPARED -> deciding[m] = END
	:: destination[m] == NONE -> DESTINATION_STEP(m, NONE, REFUSED) checked[m] = 0; told[m] = 1
	:: destination[m] == REFUSED -> told[m] = 1
	:: (destination[m] == TAKEN || destination[m] == RUNNING) && IS_RUNNING(TO(m)) && MAY_CEDE(m) -> qemu[TO(m)] = PAUSED
	:: (destination[m] == TAKEN || destination[m] == RUNNING) && qemu[TO(m)] == LOADED && MAY_CEDE(m) -> qemu_gone(TO(m))
	:: destination[m] == TAKEN && qemu[TO(m)] != LOADED && !IS_RUNNING(TO(m)) && MAY_CEDE(m) ->
		DESTINATION_STEP(m, TAKEN, REFUSED) set_row(TO(m), from[m] + 1, SETTLED_EPOCH(m)); job[TO(m)] = 0; told[m] = 1
	:: destination[m] == RUNNING && qemu[TO(m)] != LOADED && !IS_RUNNING(TO(m)) && MAY_CEDE(m) ->
		DESTINATION_STEP(m, RUNNING, REFUSED) set_row(TO(m), from[m] + 1, SETTLED_EPOCH(m)); told[m] = 1
	:: else
	fi
}
#define THEIRS_MATTERS(m)                                                                                                     \
	(JOB_FREE_FOR(m, TO(m)) &&                                                                                            \
	 (destination[m] == PREPARED || destination[m] == NONE || destination[m] == REFUSED && !told[m] ||                    \
	  (destination[m] == TAKEN || destination[m] == RUNNING) && MAY_CEDE(m)))

proctype person(byte m)
{
	do
	/* At the source. Its guest may have run over there since, so it does not go on by itself. */
	:: d_step { IN_DOUBT_AT_SOURCE(m) && CAN_FENCE(TO(m)) -> fence(m, TO(m)); check() }
	:: d_step { IN_DOUBT_AT_SOURCE(m) && FENCED_FOR(m, TO(m)) && !somebody_decided ->
		somebody_decided = 1;
		resolved[m] = 1;
		worker[m] = CANCEL;
		check() }
	/* This side gives up; its QEMU is ended. */
	:: d_step { IN_DOUBT_AT_SOURCE(m) && decisions > 0 && !somebody_decided && !calm ->
		decisions--;
		somebody_decided = 1;
		resolved[m] = 1;
		SOURCE_STEP(m, OFFERED, RELEASED)
		set_row(from[m], TO(m) + 1, SETTLED_EPOCH(m));
		given_away[m] = 1;
		worker[m] = CONFIRM;
		check() }

	/* At the destination. The source may have let the guest run on since, so it stays paused here. */
	:: d_step { IN_DOUBT_AT_DESTINATION(m) && CAN_FENCE(from[m]) -> fence(m, from[m]); check() }
	:: d_step { IN_DOUBT_AT_DESTINATION(m) && FENCED_FOR(m, from[m]) && !somebody_decided ->
		somebody_decided = 1;
		DESTINATION_STEP(m, PREPARED, TAKEN)
		set_row(TO(m), TO(m) + 1, SETTLED_EPOCH(m));
		deciding[m] = CONT;
		check() }

	/* The news, repeated until it is heard. */
#ifndef MUTILATE_SETTLEMENT_NOT_TOLD
	:: d_step { READY(m) && resolved[m] && (worker[m] == RETRY || worker[m] == TELL) && source[m] == RELEASED && OURS_MATTERS(m) ->
		hear_ours(m); check() }
	:: d_step { READY(m) && resolved[m] && (worker[m] == RETRY || worker[m] == TELL) && source[m] == HOLDS && THEIRS_MATTERS(m) ->
		hear_theirs(m); check() }
	/* Old ones. */
	:: d_step { !calm && READY(m) && ours_sent[m] && OURS_MATTERS(m) -> hear_ours(m); check() }
	:: d_step { !calm && READY(m) && theirs_sent[m] && THEIRS_MATTERS(m) -> hear_theirs(m); check() }
#endif
	/* A prepared destination asks, and hears that it has been given the VM. */
	:: d_step { READY(m) && destination[m] == PREPARED && qemu[TO(m)] == LOADED && up[from[m]] && source[m] == RELEASED ->
		hear_ours(m); check() }

	/* A source that has the VM by its own word tells the destination so, and hears that a person has given it away. */
	:: d_step { (worker[m] == TELL || worker[m] == RETRY) && !resolved[m] && source[m] == HOLDS && answered_running[m] &&
		    epoch[from[m]] + 1 == migration_epoch[m] && JOB_FREE_FOR(m, from[m]) ->
		if
		:: IS_RUNNING(from[m]) -> qemu[from[m]] = PAUSED
		:: else ->
			SOURCE_STEP(m, HOLDS, RELEASED)
			set_row(from[m], TO(m) + 1, migration_epoch[m]);
			told[m] = 1;
			if
			:: worker[m] == TELL -> worker[m] = ENDED
			:: else -> worker[m] = IDLE
			fi
		fi;
		check() }

	/* Who has heard need not be fenced any more; nor if nothing was settled in the end. */
	:: d_step { FENCED_FOR(m, TO(m)) && (somebody_decided && destination[m] == REFUSED && deciding[m] == IDLE || !somebody_decided && !IN_DOUBT_AT_SOURCE(m)) ->
		fenced[TO(m)] = 0; check() }
	:: d_step { FENCED_FOR(m, from[m]) && (somebody_decided && source[m] != HOLDS && source[m] != OFFERED || !somebody_decided && !IN_DOUBT_AT_DESTINATION(m)) ->
		fenced[from[m]] = 0; check() }
#ifdef MUTILATE_SETTLEMENT_NOT_TOLD
	:: d_step { FENCED_FOR(m, from[m]) -> fenced[from[m]] = 0; check() }
	:: d_step { FENCED_FOR(m, TO(m)) -> fenced[TO(m)] = 0; check() }
#endif
	od
}

/* The person knows whether the guest has run elsewhere since. */
#ifdef MUTILATE_PERSON_RESUMES_ANYWAY
#define IS_LATEST(h) true
#else
#define IS_LATEST(h) fresh[h]
#endif
proctype paused_guest(bit h)
{
	do
	:: d_step { up[h] && qemu[h] == PAUSED && owner[h] == h + 1 && job[h] == 0 && !fenced[h] && IS_LATEST(h) -> run_at(h); check() }
	:: d_step { up[h] && qemu[h] == PAUSED && job[h] == 0 -> qemu_gone(h); check() }
	od
}
