/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A person settles a migration that is in doubt (`ferry migration resolve`), in the pre-copy model. The statement that the other
 * host is fenced is true: its QEMU is dead, and none runs there until it has heard what was settled. What was settled is durable
 * where it was said, and repeated to the other host until that one has answered; it carries an epoch above the migration's, and
 * a host that knows a higher one does not listen.
 */
#define SETTLED_EPOCH(m) (migration_epoch[m] + 1)
#define IN_DOUBT_AT_SOURCE(m) (begun[m] && up[from[m]] && !fenced[from[m]] && (worker[m] == ASK_FINISH || worker[m] == ASK_REFUSE))
#define IN_DOUBT_AT_DESTINATION(m)                                                                                            \
	(READY(m) && !fenced[TO(m)] && destination[m] == PREPARED && qemu[TO(m)] == LOADED && job[TO(m)] == (m) + 1)

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
#ifdef MUTILATE_RESOLVE_WITHOUT_FENCING
#define CAN_FENCE(h) (decisions > 0)
#else
#define CAN_FENCE(h) (decisions > 0 && !fenced[h] && !calm)
#endif

inline settle(m, at, new_owner, with_memory)
{
	settled_migration = m + 1;
	settled_at = at;
	settled_owner = new_owner;
	settled_with_memory = with_memory;
#ifdef MUTILATE_SETTLEMENT_NOT_TOLD
	settled_heard = 1;
	fenced[OTHER(at)] = 0
#endif
}

inline hear_at_destination(m)
{
	if
	:: settled_owner == from[m] ->
		if
		:: destination[m] == NONE -> DESTINATION_STEP(m, NONE, REFUSED)
		:: destination[m] == PREPARED -> DESTINATION_STEP(m, PREPARED, REFUSED)
		:: destination[m] == TAKEN -> DESTINATION_STEP(m, TAKEN, REFUSED)
		:: destination[m] == RUNNING -> DESTINATION_STEP(m, RUNNING, REFUSED)
		:: else
		fi;
		set_row(TO(m), from[m] + 1, SETTLED_EPOCH(m));
		if
		:: job[TO(m)] == m + 1 -> job[TO(m)] = 0
		:: else
		fi
	:: settled_owner == TO(m) && destination[m] == PREPARED ->
		DESTINATION_STEP(m, PREPARED, TAKEN)
		set_row(TO(m), TO(m) + 1, SETTLED_EPOCH(m));
		if
		:: qemu[TO(m)] == LOADED && settled_with_memory -> deciding[m] = CONT
		:: else -> qemu_gone(TO(m)); deciding[m] = RAN
		fi
	:: settled_owner == TO(m) && destination[m] != PREPARED -> set_row(TO(m), TO(m) + 1, SETTLED_EPOCH(m))
	fi
}

inline hear_at_source(m)
{
	if
	:: source[m] == HOLDS -> SOURCE_STEP(m, HOLDS, RELEASED)
	:: source[m] == OFFERED -> SOURCE_STEP(m, OFFERED, RELEASED)
	:: else
	fi;
	set_row(from[m], TO(m) + 1, SETTLED_EPOCH(m));
	worker[m] = IDLE;
	ended[m] = 1;
	if
	:: job[from[m]] == m + 1 -> job[from[m]] = 0
	:: else
	fi
}

#ifdef MUTILATE_OLD_SETTLEMENT
#define SETTLEMENT_IS_NEWER(m) true
#else
#define SETTLEMENT_IS_NEWER(m) (epoch[OTHER(settled_at)] < SETTLED_EPOCH(m))
#endif

inline hear(m)
{
	if
	:: SETTLEMENT_IS_NEWER(m) && settled_at == from[m] -> hear_at_destination(m)
	:: SETTLEMENT_IS_NEWER(m) && settled_at == TO(m) -> hear_at_source(m)
	:: else
	fi;
	fenced[OTHER(settled_at)] = 0;
	settled_heard = 1
}
/* Whoever changes a VM's row holds its job: not while another migration of it is being settled there. */
#ifdef MUTILATE_SETTLEMENT_WITHOUT_JOB
#define HAS_JOB(m) true
#else
#define HAS_JOB(m) (job[OTHER(settled_at)] == 0 || job[OTHER(settled_at)] == (m) + 1)
#endif
#define CAN_HEAR(m)                                                                                                           \
	(settled_migration == (m) + 1 && up[OTHER(settled_at)] && (!calm || up[settled_at]) && HAS_JOB(m) && (settled_at == TO(m) || deciding[m] == IDLE) &&             \
	 (!settled_heard || SETTLEMENT_IS_NEWER(m)))

proctype person(byte m)
{
	do
	/* At the source. The guest may have run over there since its memory here was whole: only its disks are good. */
	:: d_step { IN_DOUBT_AT_SOURCE(m) && CAN_FENCE(TO(m)) -> fence(m, TO(m)); check() }
	:: d_step { IN_DOUBT_AT_SOURCE(m) && fenced[TO(m)] && fenced_for == m && settled_migration == 0 ->
#ifdef MUTILATE_RESOLVE_RESUMES_SOURCE
		SOURCE_STEP(m, OFFERED, HOLDS)
		set_row(from[m], from[m] + 1, SETTLED_EPOCH(m));
		settle(m, from[m], from[m], false);
		worker[m] = RESUME;
#else
		qemu_gone(from[m]);
		worker[m] = GIVE_UP;
#endif
		check() }
	:: d_step { worker[m] == GIVE_UP ->
		SOURCE_STEP(m, OFFERED, HOLDS)
		set_row(from[m], from[m] + 1, SETTLED_EPOCH(m));
		settle(m, from[m], from[m], false);
		worker[m] = ENDED;
		check() }
	/* This side gives up. That its own QEMU had completed vouches for the destination's memory. */
	:: d_step { IN_DOUBT_AT_SOURCE(m) && decisions > 0 && settled_migration == 0 ->
		decisions--;
		SOURCE_STEP(m, OFFERED, RELEASED)
		set_row(from[m], TO(m) + 1, SETTLED_EPOCH(m));
		settle(m, from[m], TO(m), (worker[m] == ASK_FINISH));
		worker[m] = CONFIRM;
		check() }

	/* At the destination. The source may have let the guest run on since: only its disks are good. */
	:: d_step { IN_DOUBT_AT_DESTINATION(m) && CAN_FENCE(from[m]) -> fence(m, from[m]); check() }
	:: d_step { IN_DOUBT_AT_DESTINATION(m) && fenced[from[m]] && fenced_for == m && settled_migration == 0 ->
#ifdef MUTILATE_RESOLVE_RUNS_DESTINATION
		DESTINATION_STEP(m, PREPARED, TAKEN)
		set_row(TO(m), TO(m) + 1, SETTLED_EPOCH(m));
		settle(m, TO(m), TO(m), false);
		deciding[m] = CONT;
#else
		qemu_gone(TO(m));
		deciding[m] = OWN;
#endif
		check() }
	:: d_step { deciding[m] == OWN ->
		DESTINATION_STEP(m, PREPARED, TAKEN)
		set_row(TO(m), TO(m) + 1, SETTLED_EPOCH(m));
		settle(m, TO(m), TO(m), false);
		deciding[m] = RAN;
		check() }

	:: d_step { CAN_HEAR(m) -> hear(m); check() }
	/* Nothing was settled in the end: the host was only ended. */
	:: d_step { settled_migration == 0 && fenced_for == m && fenced[from[m]] && !IN_DOUBT_AT_DESTINATION(m) && deciding[m] != OWN ->
		fenced[from[m]] = 0; check() }
	:: d_step { settled_migration == 0 && fenced_for == m && fenced[TO(m)] && !IN_DOUBT_AT_SOURCE(m) && worker[m] != GIVE_UP ->
		fenced[TO(m)] = 0; check() }
	od
}
