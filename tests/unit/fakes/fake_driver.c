/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The fake driver; see fake_driver.h. One lock and one condition for the whole world; neither is held while a hook or
 * an observer runs. A machine stays in the world's list until it is ended or its host is rebooted; what an inventory
 * holds is counted, so that its memory stays as long as anybody may look at it.
 */
#include "fakes/fake_driver.h"

#include <assert.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/xalloc.h"

#define HOSTS_MAX 4
#define GUESTS_MAX 8
#define RAM_BYTES (64ULL << 20)
#define LINK_BYTES_PER_S 10000000
#define LIMITS_MAX 64
#define PAGE_BYTES 4096
/* A blocked wait returns after this at the latest, so that whoever looks at something once a period does it quickly. */
#define WAIT_SLICE_US 2000

struct machine {
	char host[64];
	struct definition *definition;
	struct machine_state state;
	enum move_state seen_move; /* what was last told of it */
	uint16_t port; /* an incoming one listens here */
	uint16_t partner_port;
	bool loaded;             /* all of a copy has arrived */
	bool sent;               /* all of it has gone to another machine, which may have run it */
	bool wants_to_run;       /* the guest ran before the copy stopped it */
	unsigned int generation; /* of the guest, when its state was sent */
	bool told_to_go_on;
	bool wants_postcopy;
	enum { DEVICES_TO_COME, DEVICES_SENT, SERVES_PAGES } postcopy; /* how far a source is in it */
	struct move_limits limits;
	bool in_world, held;
	struct machine_observer observer;
	struct loop_source *observer_timer; /* runs the observer on the loop's thread */
	struct machine *next;
};

struct host_script {
	char name[64];
	bool dead;
	bool leaves_unread; /* see fake_driver_leave_unread() */
	struct move_limits limits[LIMITS_MAX];
	size_t limit_count;
	uint64_t bandwidth_bytes_per_s;
	struct {
		enum fake_failure failure;
		unsigned int left, calls;
		void (*hook)(void *user);
		void *user;
	} calls[FAKE_CALL_COUNT];
};

/* How often a guest has begun to run, wherever: a copy of its state is worth nothing once it has run on. */
struct guest {
	char uuid[DEFINITION_UUID_SIZE];
	unsigned int generation;
};

static struct {
	pthread_mutex_t mutex;
	pthread_cond_t changed;
	struct machine *machines;
	struct host_script hosts[HOSTS_MAX];
	struct guest guests[GUESTS_MAX];
	enum fake_move_end move_end;
	enum fake_postcopy postcopy;
	unsigned int postcopy_breaks;
	char breach[256];
} world = {.mutex = PTHREAD_MUTEX_INITIALIZER};

static pthread_once_t world_once = PTHREAD_ONCE_INIT;

static void world_begin(void)
{
	cond_init(&world.changed);
}

static void world_lock(void)
{
	pthread_once(&world_once, world_begin);
	pthread_mutex_lock(&world.mutex);
}

#define WORLD_SCOPE                                                                                                    \
	world_lock();                                                                                                  \
	__attribute__((cleanup(cleanup_unlock_ptr), unused)) pthread_mutex_t *world_scope = &world.mutex

const char *fake_call_name(enum fake_call call)
{
	static const char *const names[] = {
		[FAKE_START] = "start",
		[FAKE_ATTACH] = "attach",
		[FAKE_RESUME] = "resume",
		[FAKE_END] = "end",
		[FAKE_DESCRIBE] = "describe",
		[FAKE_CHECK_INCOMING] = "check_incoming",
		[FAKE_START_INCOMING] = "start_incoming",
		[FAKE_WAIT_LOADED] = "wait_loaded",
		[FAKE_TAKE_OVER] = "take_over",
		[FAKE_MOVE_PREPARE] = "move_prepare",
		[FAKE_MOVE_START] = "move_start",
		[FAKE_MOVE_SAMPLE] = "move_sample",
		[FAKE_MOVE_SET_LIMITS] = "move_set_limits",
		[FAKE_MOVE_CONTINUE] = "move_continue",
		[FAKE_MOVE_CANCEL] = "move_cancel",
		[FAKE_MOVE_RESTORE] = "move_restore",
		[FAKE_PORTS_SHUT] = "ports_shut",
		[FAKE_PORTS_OPEN] = "ports_open",
		[FAKE_MOVE_START_POSTCOPY] = "move_start_postcopy",
		[FAKE_MOVE_LISTEN_AGAIN] = "move_listen_again",
		[FAKE_MOVE_RESUME] = "move_resume",
		[FAKE_REFRESH] = "refresh",
	};
	return names[call];
}

/* ---- small parts; the lock is held ---- */

static struct host_script *host_script(const char *name)
{
	for (size_t i = 0; i < HOSTS_MAX; i++) {
		struct host_script *host = &world.hosts[i];
		if (!*host->name)
			snprintf(host->name, sizeof(host->name), "%s", name);
		if (strcmp(host->name, name) == 0)
			return host;
	}
	abort(); /* more hosts than a test has any use for */
}

static struct guest *guest_of(const char *uuid)
{
	for (size_t i = 0; i < GUESTS_MAX; i++) {
		struct guest *guest = &world.guests[i];
		if (!*guest->uuid)
			snprintf(guest->uuid, sizeof(guest->uuid), "%s", uuid);
		if (strcmp(guest->uuid, uuid) == 0)
			return guest;
	}
	abort();
}

static struct machine *machine_at(const char *host, const char *uuid)
{
	for (struct machine *machine = world.machines; machine; machine = machine->next)
		if (machine->in_world && strcmp(machine->host, host) == 0 &&
		    strcmp(machine->definition->uuid, uuid) == 0)
			return machine;
	return NULL;
}

static struct machine *machine_partner(const struct machine *source)
{
	for (struct machine *machine = world.machines; machine; machine = machine->next)
		if (machine->in_world && machine->port && machine->port == source->partner_port &&
		    machine->state.run != MACHINE_GONE)
			return machine;
	return NULL;
}

static void breach(const char *what, const struct machine *machine)
{
	if (!*world.breach)
		snprintf(world.breach, sizeof(world.breach), "%s on %s: %s", machine->definition->name, machine->host,
			 what);
}

static void changed(struct machine *machine)
{
	machine->state.change++;
	pthread_cond_broadcast(&world.changed);
}

static void set_run(struct machine *machine, enum machine_run run)
{
	if (machine->state.run == run || machine->state.run == MACHINE_GONE)
		return;
	if (run == MACHINE_RUNNING) {
		struct guest *guest = guest_of(machine->definition->uuid);
		for (struct machine *other = world.machines; other; other = other->next)
			if (other != machine && other->in_world && other->state.run == MACHINE_RUNNING &&
			    strcmp(other->definition->uuid, machine->definition->uuid) == 0)
				breach("the guest runs twice", machine);
		if ((machine->loaded || machine->sent) && machine->generation != guest->generation)
			breach("the guest runs from a state that it has left behind", machine);
		guest->generation++;
		machine->loaded = machine->sent = false; /* from now on its state is its own */
		machine->state.resumed_us = clock_monotonic_us();
	} else if (machine->state.run == MACHINE_RUNNING) {
		machine->state.stopped_us = clock_monotonic_us();
	}
	machine->state.run = run;
	changed(machine);
}

static bool move_ended(enum move_state move)
{
	return move == MOVE_COMPLETED || move == MOVE_CANCELLED || move == MOVE_FAILED;
}

static void set_move(struct machine *machine, enum move_state move)
{
	machine->state.move = move;
	if (move_ended(move))
		machine->state.move_ended_us = clock_monotonic_us();
	changed(machine);
}

static void set_gone(struct machine *machine)
{
	machine->state.run = MACHINE_GONE;
	machine->port = 0;
	if (machine->state.move != MOVE_NONE && !move_ended(machine->state.move))
		machine->state.move = MOVE_FAILED;
	changed(machine);
	if (machine->observer_timer)
		loop_timer_set(machine->observer_timer, 0, 0);
}

/* The copy ends without success: the source's QEMU lets the guest run on if it ran before; the other one, which has not
 * got everything, ends. */
static void break_move(struct machine *machine, enum move_state move)
{
	struct machine *partner = machine_partner(machine);
	if (partner && partner->state.run == MACHINE_INCOMING && !partner->loaded)
		set_gone(partner);
	if (partner && move_in_postcopy(partner->state.move))
		set_move(partner, MOVE_POSTCOPY_PAUSED);
	machine->partner_port = 0;
	set_move(machine, move);
	if (machine->wants_to_run)
		set_run(machine, MACHINE_RUNNING);
}

/* All that the other one needs in order to run has arrived; in post-copy that is not all. */
static void load(struct machine *machine, enum move_state move)
{
	struct machine *partner = machine_partner(machine);
	if (!partner)
		return;
	partner->loaded = true;
	set_move(partner, move);
	partner->generation = guest_of(machine->definition->uuid)->generation;
	changed(partner);
}

/* Nothing but a pause for all of its memory would do. */
static bool never_converges(const struct machine *machine)
{
	return world.move_end == FAKE_MOVE_NEVER_CONVERGES &&
	       (uint64_t)machine->limits.downtime_ms * LINK_BYTES_PER_S / 1000 < RAM_BYTES;
}

/* It has gone: from here on nothing but a failed move lets it run. */
static void send_whole(struct machine *machine, enum move_state move)
{
	machine->sent = true;
	machine->generation = guest_of(machine->definition->uuid)->generation;
	set_run(machine, MACHINE_HANDED_OVER);
	set_move(machine, move);
}

/* The stream between the two breaks: each keeps what it has and waits. */
static void pause_postcopy(struct machine *machine)
{
	struct machine *partner = machine_partner(machine);
	if (partner) {
		partner->port = 0;
		set_move(partner, MOVE_POSTCOPY_PAUSED);
	}
	machine->partner_port = 0;
	set_move(machine, MOVE_POSTCOPY_PAUSED);
}

static void set_both(struct machine *machine, enum move_state move)
{
	set_move(machine_partner(machine), move);
	set_move(machine, move);
}

/* The same for the source of a post-copy. */
static bool advance_postcopy(struct machine *machine)
{
	const bool alone = !machine_partner(machine);
	const bool fails = world.postcopy == (machine->postcopy == DEVICES_TO_COME ? FAKE_POSTCOPY_FAILS : FAKE_POSTCOPY_FAILS_LATE);
	if (machine->state.run != MACHINE_HANDED_OVER)
		return false; /* a destination */
	if (machine->postcopy != SERVES_PAGES) {
		if (alone || fails) {
			break_move(machine, MOVE_FAILED);
			return true;
		}
		if (machine->postcopy++ == DEVICES_TO_COME)
			load(machine, MOVE_POSTCOPY);
		changed(machine);
	} else if (alone || world.postcopy_breaks > 0) {
		if (!alone)
			world.postcopy_breaks--;
		pause_postcopy(machine);
	} else {
		set_both(machine, MOVE_COMPLETED);
	}
	return true;
}

/* Two streams have been joined again: one waits for the other no longer. */
static bool advance_recovery(struct machine *machine)
{
	if (machine->state.run != MACHINE_HANDED_OVER)
		return false;
	if (machine_partner(machine))
		set_both(machine, MOVE_POSTCOPY);
	else
		pause_postcopy(machine);
	return true;
}

/* The next thing that happens in a copy; false when nothing does by itself. */
static bool advance(struct machine *machine)
{
	switch (machine->state.move) {
	case MOVE_SETUP:
		machine->state.pass = 1;
		machine->state.pass_us = clock_monotonic_us();
		set_move(machine, MOVE_ACTIVE);
		return true;
	case MOVE_ACTIVE:
		if (!machine_partner(machine)) {
			break_move(machine, MOVE_FAILED);
			return true;
		}
		if (!machine->wants_postcopy && (machine->state.pass < 2 || never_converges(machine))) {
			machine->state.pass++;
			changed(machine);
			return true;
		}
		if (world.move_end == FAKE_MOVE_STAYS_ACTIVE)
			return false;
		if (world.move_end == FAKE_MOVE_BREAKS) {
			break_move(machine, MOVE_FAILED);
			return true;
		}
		set_run(machine, MACHINE_PAUSED);
		set_move(machine, MOVE_PRE_SWITCHOVER);
		return true;
	case MOVE_PRE_SWITCHOVER:
		if (!machine->told_to_go_on)
			return false;
		set_move(machine, MOVE_DEVICE);
		return true;
	case MOVE_DEVICE:
		if (!machine_partner(machine) || world.move_end == FAKE_MOVE_BREAKS_LATE) {
			break_move(machine, MOVE_FAILED);
			return true;
		}
		if (machine->wants_postcopy) {
			machine->postcopy = DEVICES_TO_COME;
			send_whole(machine, MOVE_POSTCOPY);
			return true;
		}
		load(machine, MOVE_COMPLETED);
		if (world.move_end == FAKE_MOVE_LOST_LAST_ACK) {
			break_move(machine, MOVE_FAILED);
			return true;
		}
		send_whole(machine, MOVE_COMPLETED);
		return true;
	case MOVE_POSTCOPY:
		return advance_postcopy(machine);
	case MOVE_POSTCOPY_RECOVER:
		return advance_recovery(machine);
	default:
		return false;
	}
}

/* ---- the script ---- */

void fake_driver_fail(const char *host, enum fake_call call, enum fake_failure failure, unsigned int count)
{
	WORLD_SCOPE;
	struct host_script *script = host_script(host);
	script->calls[call].failure = failure;
	script->calls[call].left = count;
}

void fake_driver_hook(const char *host, enum fake_call call, void (*hook)(void *user), void *user)
{
	WORLD_SCOPE;
	struct host_script *script = host_script(host);
	script->calls[call].user = user;
	script->calls[call].hook = hook;
}

void fake_driver_script_move(enum fake_move_end end)
{
	WORLD_SCOPE;
	world.move_end = end;
}

void fake_driver_script_postcopy(enum fake_postcopy postcopy, unsigned int breaks)
{
	WORLD_SCOPE;
	world.postcopy = postcopy;
	world.postcopy_breaks = breaks;
}

void fake_driver_leave_unread(const char *host)
{
	WORLD_SCOPE;
	host_script(host)->leaves_unread = true;
}

unsigned int fake_driver_calls(const char *host, enum fake_call call)
{
	WORLD_SCOPE;
	return host_script(host)->calls[call].calls;
}

size_t fake_driver_limits(const char *host, struct move_limits *ret, size_t room)
{
	WORLD_SCOPE;
	const struct host_script *script = host_script(host);
	size_t count = script->limit_count < room ? script->limit_count : room;
	assert(count <= LIMITS_MAX);
	for (size_t i = 0; i < count; i++)
		ret[i] = script->limits[(script->limit_count - count + i) % LIMITS_MAX];
	return script->limit_count;
}

uint64_t fake_driver_bandwidth(const char *host)
{
	WORLD_SCOPE;
	return host_script(host)->bandwidth_bytes_per_s;
}

enum verdict { DO_IT, DO_IT_AND_FAIL, FAIL };

/* What becomes of this call. Runs the hook; then, with the lock taken (which the caller gives back), decides. */
static enum verdict begin_call(const char *host, enum fake_call call, struct machine *machine, struct error **e)
{
	world_lock();
	struct host_script *script = host_script(host);
	void (*hook)(void *user) = script->calls[call].hook;
	void *user = script->calls[call].user;
	script->calls[call].calls++;
	pthread_mutex_unlock(&world.mutex);
	if (hook)
		hook(user);
	world_lock();
	if (script->dead) {
		error_set(e, ERROR_SYSTEM, "this ferryd is dead");
		return FAIL;
	}
	if (script->calls[call].left > 0) {
		script->calls[call].left--;
		enum fake_failure failure = script->calls[call].failure;
		if (failure == FAKE_FAIL_GONE && machine)
			set_gone(machine);
		error_set(e, failure == FAKE_FAIL_LATER ? ERROR_TIMEOUT : ERROR_QEMU_QMP, "%s was made to fail",
			  fake_call_name(call));
		const bool later = failure == FAKE_FAIL_LATER && call == FAKE_TAKE_OVER;
		return failure == FAKE_FAIL_DONE || later ? DO_IT_AND_FAIL : FAIL;
	}
	if (machine && machine->state.run == MACHINE_GONE && call != FAKE_END) {
		error_set(e, ERROR_QEMU_GONE, "the process has ended");
		return FAIL;
	}
	return DO_IT;
}

static void end_call(void)
{
	pthread_mutex_unlock(&world.mutex);
}

/* The usual body: `act` is done unless the call fails before it. */
#define FAKE_CALL_BODY(machine, call, act)                                                                             \
	do {                                                                                                           \
		enum verdict verdict = begin_call((machine)->host, call, machine, e);                                  \
		if (verdict != FAIL) {                                                                                 \
			act;                                                                                           \
		}                                                                                                      \
		end_call();                                                                                            \
		return verdict == DO_IT ? 0 : -1;                                                                      \
	} while (0)

/* ---- machines ---- */

static void observe(void *user)
{
	struct machine *machine = user;
	world_lock();
	struct machine_state state = machine->state;
	struct machine_observer observer = machine->observer;
	pthread_mutex_unlock(&world.mutex);
	if (observer.changed)
		observer.changed(observer.user, &state);
}

/* The lock is held, and stays so. */
static void hold(struct machine *machine, struct loop *loop, const struct machine_observer *observer)
{
	machine->held = true;
	machine->observer = *observer;
	machine->observer_timer = loop_add_timer(loop, -1, 0, observe, machine);
}

static struct machine *machine_new(const struct driver_host *host, const struct definition *definition,
				   const struct machine_observer *observer)
{
	struct machine *machine = xcalloc(1, sizeof(*machine));
	cleanup_json json_t *json = definition_to_json(definition);
	if (definition_parse(json, &machine->definition, NULL) < 0)
		abort();
	snprintf(machine->host, sizeof(machine->host), "%s", host->run_folder);
	machine->state.change = 1;
	machine->in_world = true;
	machine->next = world.machines;
	world.machines = machine;
	hold(machine, host->loop, observer);
	return machine;
}

/* The lock is held. */
static void machine_drop_if_unused(struct machine *machine)
{
	if (machine->in_world || machine->held)
		return;
	for (struct machine **at = &world.machines; *at; at = &(*at)->next) {
		if (*at == machine) {
			*at = machine->next;
			break;
		}
	}
	definition_free(machine->definition);
	free(machine);
}

static int fake_warm_up(const struct driver_host *host, struct error **e)
{
	(void)host;
	(void)e;
	return 0;
}

static int fake_start(const struct driver_host *host, const struct definition *definition, bool start_paused,
		      const struct machine_observer *observer, struct machine **ret, struct error **e)
{
	enum verdict verdict = begin_call(host->run_folder, FAKE_START, NULL, e);
	if (verdict == DO_IT) {
		*ret = machine_new(host, definition, observer);
		(*ret)->state.run = MACHINE_PAUSED;
		if (!start_paused)
			set_run(*ret, MACHINE_RUNNING);
	}
	end_call();
	return verdict == DO_IT ? 0 : -1;
}

static int fake_attach(const struct driver_host *host, const char *uuid, const struct machine_observer *observer,
		       struct machine **ret, struct error **e)
{
	if (begin_call(host->run_folder, FAKE_ATTACH, NULL, e) == FAIL) {
		end_call();
		return -1;
	}
	struct machine *machine = machine_at(host->run_folder, uuid);
	if (machine && machine->state.run == MACHINE_GONE) {
		machine->in_world = false;
		machine_drop_if_unused(machine);
		machine = NULL;
	}
	if (machine) {
		hold(machine, host->loop, observer);
		*ret = machine;
	} else {
		error_set(e, ERROR_QEMU_GONE, "there is no process of it");
	}
	end_call();
	return machine ? 0 : -1;
}

static int fake_resume(struct machine *machine, struct error **e)
{
	enum verdict verdict = begin_call(machine->host, FAKE_RESUME, machine, e);
	if (verdict == DO_IT && machine->state.run == MACHINE_HANDED_OVER && move_in_postcopy(machine->state.move)) {
		error_set(e, ERROR_QEMU_QMP, "a guest that was on its way by post-copy does not run here any more");
		verdict = FAIL;
	}
	if (verdict != FAIL)
		set_run(machine, MACHINE_RUNNING);
	end_call();
	return verdict == DO_IT ? 0 : -1;
}

static int fake_pause(struct machine *machine, struct error **e)
{
	(void)e;
	WORLD_SCOPE;
	set_run(machine, MACHINE_PAUSED);
	return 0;
}

static int fake_power_down(struct machine *machine, struct error **e)
{
	(void)e;
	WORLD_SCOPE;
	set_gone(machine);
	return 0;
}

static int fake_reset(struct machine *machine, struct error **e)
{
	(void)machine;
	(void)e;
	return 0;
}

/* The lock is held. */
static bool in_postcopy(const struct machine *machine)
{
	return machine->in_world && machine->state.run != MACHINE_GONE && move_in_postcopy(machine->state.move);
}

/* Whether the guest runs, and needs what this one and another have of it; the lock is held. */
static bool is_needed(const struct machine *machine)
{
	for (const struct machine *other = world.machines; other; other = other->next)
		if (other != machine && in_postcopy(machine) && in_postcopy(other) &&
		    strcmp(other->definition->uuid, machine->definition->uuid) == 0 &&
		    (machine->state.run == MACHINE_RUNNING || other->state.run == MACHINE_RUNNING))
			return true;
	return false;
}

static int fake_end(struct machine *machine, struct error **e)
{
	FAKE_CALL_BODY(machine, FAKE_END, if (is_needed(machine)) breach("ended in the middle of post-copy", machine);
		       set_gone(machine); machine->in_world = false);
}

static void fake_detach(struct machine *machine)
{
	struct loop_source *timer = machine->observer_timer;
	world_lock();
	machine->observer_timer = NULL;
	pthread_mutex_unlock(&world.mutex);
	loop_source_remove(timer); /* waits for an observer that is being called */
	world_lock();
	machine->observer = (struct machine_observer){0};
	machine->held = false;
	machine_drop_if_unused(machine);
	pthread_mutex_unlock(&world.mutex);
}

static void fake_state(struct machine *machine, struct machine_state *ret)
{
	WORLD_SCOPE;
	if (!host_script(machine->host)->leaves_unread)
		machine->seen_move = machine->state.move;
	*ret = machine->state;
	ret->move = machine->seen_move;
}

static bool fake_wait_change(struct machine *machine, uint64_t seen, int64_t deadline_us)
{
	WORLD_SCOPE;
	int64_t slice_us = clock_monotonic_us() + WAIT_SLICE_US;
	if (machine->state.change != seen || host_script(machine->host)->dead)
		return true;
	if (machine->state.run != MACHINE_GONE && advance(machine))
		return true;
	while (machine->state.change == seen &&
	       cond_wait_until(&world.changed, &world.mutex, deadline_us < slice_us ? deadline_us : slice_us))
		;
	return machine->state.change != seen;
}

static void fake_nudge(struct machine *machine)
{
	WORLD_SCOPE;
	changed(machine);
}

static int fake_refresh(struct machine *machine, struct error **e)
{
	FAKE_CALL_BODY(machine, FAKE_REFRESH, host_script(machine->host)->leaves_unread = false);
}

static int fake_describe(struct machine *machine, json_t **ret, struct error **e)
{
	enum verdict verdict = begin_call(machine->host, FAKE_DESCRIBE, machine, e);
	if (verdict == DO_IT)
		*ret = json_pack("{so ss ss s[] sI s[] sb ss}", "definition", definition_to_json(machine->definition),
				 "qemu_version", "7.2.0", "accelerator", "tcg", "firmware", "memory_bytes",
				 (json_int_t)RAM_BYTES, "blocked_reasons", "snapshot_mode", 0, "run",
				 machine_run_name(machine->state.run));
	end_call();
	return verdict == DO_IT ? 0 : -1;
}

static char *fake_last_words(struct machine *machine)
{
	(void)machine;
	return xstrdup("last words");
}

static const struct definition *fake_definition(const struct machine *machine)
{
	return machine->definition;
}

/* ---- destination ---- */

static int fake_check_incoming(const struct driver_host *host, const json_t *description, json_t *failures,
			       struct error **e)
{
	(void)description;
	enum verdict verdict = begin_call(host->run_folder, FAKE_CHECK_INCOMING, NULL, e);
	end_call();
	if (verdict == DO_IT_AND_FAIL) { /* not an error of the check: a finding */
		error_free(e ? take_ptr(*e) : NULL);
		json_array_append_new(failures, json_pack("{ss ss}", "code", "dest.machine_type", "message",
							  "it does not have this machine type"));
		return 0;
	}
	return verdict == DO_IT ? 0 : -1;
}

static int fake_start_incoming(const struct driver_host *host, const struct definition *definition,
			       const struct move_options *move, const struct machine_observer *observer,
			       struct machine **ret, struct error **e)
{
	enum verdict verdict = begin_call(host->run_folder, FAKE_START_INCOMING, NULL, e);
	if (verdict == DO_IT) {
		*ret = machine_new(host, definition, observer);
		(*ret)->state.run = MACHINE_INCOMING;
		(*ret)->port = move->port;
	}
	end_call();
	return verdict == DO_IT ? 0 : -1;
}

static int fake_wait_loaded(struct machine *machine, int64_t deadline_us, struct error **e)
{
	enum verdict verdict = begin_call(machine->host, FAKE_WAIT_LOADED, machine, e);
	while (verdict == DO_IT && !machine->loaded && machine->state.run == MACHINE_INCOMING &&
	       cond_wait_until(&world.changed, &world.mutex, deadline_us))
		;
	if (verdict == DO_IT && !machine->loaded) {
		error_set(e, machine->state.run == MACHINE_INCOMING ? ERROR_TIMEOUT : ERROR_QEMU_GONE, "not loaded");
		verdict = FAIL;
	}
	if (verdict == DO_IT)
		set_run(machine, MACHINE_PAUSED);
	end_call();
	return verdict == DO_IT ? 0 : -1;
}

static int fake_take_over(struct machine *machine, bool paused, bool *ret_ran, struct error **e)
{
	enum verdict verdict = begin_call(machine->host, FAKE_TAKE_OVER, machine, e);
	if (verdict != FAIL && !paused)
		set_run(machine, MACHINE_RUNNING);
	/* A dead ferryd has no answer, and no answer proves nothing. */
	*ret_ran = verdict != FAIL || host_script(machine->host)->dead;
	end_call();
	return verdict == DO_IT ? 0 : -1;
}

/* ---- source ---- */

/* The lock is held. */
static void set_limits(struct machine *machine, const struct move_limits *limits)
{
	struct host_script *script = host_script(machine->host);
	machine->limits = script->limits[script->limit_count++ % LIMITS_MAX] = *limits;
}

static int fake_move_prepare(struct machine *machine, const struct move_options *move, struct error **e)
{
	FAKE_CALL_BODY(machine, FAKE_MOVE_PREPARE, set_limits(machine, &move->limits);
		       host_script(machine->host)->bandwidth_bytes_per_s = move->bandwidth_bytes_per_s;
		       machine->wants_to_run = machine->state.run == MACHINE_RUNNING);
}

static int fake_move_start(struct machine *machine, const struct move_options *move, struct error **e)
{
	FAKE_CALL_BODY(machine, FAKE_MOVE_START, machine->partner_port = move->port; machine->told_to_go_on = false;
		       machine->wants_postcopy = false; machine->state.pass = 0; set_move(machine, MOVE_SETUP));
}

static int fake_move_sample(struct machine *machine, struct move_sample *ret, struct error **e)
{
	enum verdict verdict = begin_call(machine->host, FAKE_MOVE_SAMPLE, NULL, e);
	if (verdict == DO_IT) {
		const struct machine_state *state = &machine->state;
		bool much = world.move_end == FAKE_MOVE_NEVER_CONVERGES ||
			    (world.move_end == FAKE_MOVE_TOO_MUCH_AT_SWITCH && state->move == MOVE_PRE_SWITCHOVER);
		*ret = (struct move_sample){
			.state = state->move,
			/* Samples far enough apart for a rate, although no time passes: a second a pass. */
			.at_us = clock_monotonic_us() + (int64_t)state->pass * 1000000,
			.total_bytes = RAM_BYTES,
			.transferred_bytes = (uint64_t)state->pass * LINK_BYTES_PER_S,
			.postcopy_bytes = machine->postcopy == SERVES_PAGES ? PAGE_BYTES : 0,
			.remaining_bytes = much ? RAM_BYTES : 4 * PAGE_BYTES,
			.normal_pages = 100,
			.page_size_bytes = PAGE_BYTES,
			.rate_bytes_per_s = LINK_BYTES_PER_S,
			.dirty_bytes_per_s = 1000000,
			.pass = state->pass,
			.throttle_percent = machine->limits.throttle_percent,
			.total_ms = 7,
			.failure = state->move == MOVE_FAILED ? xstrdup("the fake's copy broke") : NULL,
		};
	}
	end_call();
	return verdict == DO_IT ? 0 : -1;
}

static int fake_move_set_limits(struct machine *machine, const struct move_limits *limits, struct error **e)
{
	FAKE_CALL_BODY(machine, FAKE_MOVE_SET_LIMITS, set_limits(machine, limits));
}

static int fake_memory_use(struct machine *machine, bool closely, uint64_t *ret_total_bytes, uint64_t *ret_used_bytes, struct error **e)
{
	(void)closely;
	(void)machine;
	(void)e;
	*ret_total_bytes = RAM_BYTES;
	*ret_used_bytes = RAM_BYTES;
	return 0;
}

static int fake_measure_dirty_rate(struct machine *machine, unsigned int for_ms, struct error **e)
{
	(void)machine;
	(void)for_ms;
	(void)e;
	return 0;
}

static int fake_dirty_rate(struct machine *machine, uint64_t *ret_bytes_per_s, unsigned int *ret_for_ms, struct error **e)
{
	(void)machine;
	(void)e;
	*ret_bytes_per_s = 0;
	*ret_for_ms = 1000;
	return 1;
}

static int fake_move_set_bandwidth(struct machine *machine, uint64_t bytes_per_s, struct error **e)
{
	(void)e;
	WORLD_SCOPE;
	host_script(machine->host)->bandwidth_bytes_per_s = bytes_per_s;
	return 0;
}

static int fake_check_postcopy(const struct driver_host *host, struct error **e)
{
	(void)host;
	(void)e;
	return 0;
}

static int fake_move_start_postcopy(struct machine *machine, struct error **e)
{
	FAKE_CALL_BODY(machine, FAKE_MOVE_START_POSTCOPY, machine->wants_postcopy = true);
}

/* Both sides: one that has not noticed that the stream broke lets go of it. */
static bool paused_postcopy(struct machine *machine, struct error **e)
{
	if (machine->state.move == MOVE_POSTCOPY)
		set_move(machine, MOVE_POSTCOPY_PAUSED);
	if (machine->state.move == MOVE_POSTCOPY_PAUSED)
		return true;
	error_set(e, ERROR_MIGRATION_QEMU, "the post-copy is not paused");
	return false;
}

static int fake_move_listen_again(struct machine *machine, const struct move_options *move, struct error **e)
{
	enum verdict verdict = begin_call(machine->host, FAKE_MOVE_LISTEN_AGAIN, machine, e);
	if (verdict == DO_IT && !paused_postcopy(machine, e))
		verdict = FAIL;
	if (verdict != FAIL)
		machine->port = move->port;
	end_call();
	return verdict == DO_IT ? 0 : -1;
}

static int fake_move_resume(struct machine *machine, const struct move_options *move, struct error **e)
{
	enum verdict verdict = begin_call(machine->host, FAKE_MOVE_RESUME, machine, e);
	if (verdict == DO_IT && !paused_postcopy(machine, e))
		verdict = FAIL;
	machine->partner_port = verdict != FAIL ? move->port : 0;
	if (verdict != FAIL && machine_partner(machine)) {
		set_both(machine, MOVE_POSTCOPY_RECOVER);
	} else if (verdict == DO_IT) {
		error_set(e, ERROR_DATA_UNREACHABLE, "nobody listens at port %u", move->port);
		verdict = FAIL;
	}
	end_call();
	return verdict == DO_IT ? 0 : -1;
}

static int fake_move_continue(struct machine *machine, struct error **e)
{
	FAKE_CALL_BODY(machine, FAKE_MOVE_CONTINUE, machine->told_to_go_on = true);
}

static int fake_move_cancel(struct machine *machine, int64_t timeout_ms, struct error **e)
{
	(void)timeout_ms;
	FAKE_CALL_BODY(machine, FAKE_MOVE_CANCEL,
		       if (machine->state.move != MOVE_NONE && machine->state.move != MOVE_COMPLETED &&
			   machine->state.move != MOVE_FAILED && machine->state.move != MOVE_CANCELLED)
			       break_move(machine, MOVE_CANCELLED));
}

static int fake_move_restore(struct machine *machine, struct error **e)
{
	FAKE_CALL_BODY(machine, FAKE_MOVE_RESTORE, (void)0);
}

static int fake_ports_shut(struct machine *machine, struct error **e)
{
	FAKE_CALL_BODY(machine, FAKE_PORTS_SHUT, (void)0);
}

static int fake_ports_open(struct machine *machine, struct error **e)
{
	FAKE_CALL_BODY(machine, FAKE_PORTS_OPEN, (void)0);
}

const struct vm_driver vm_driver_fake = {
	.name = "fake",
	.warm_up = fake_warm_up,
	.start = fake_start,
	.attach = fake_attach,
	.resume = fake_resume,
	.pause = fake_pause,
	.power_down = fake_power_down,
	.reset = fake_reset,
	.end = fake_end,
	.detach = fake_detach,
	.state = fake_state,
	.wait_change = fake_wait_change,
	.nudge = fake_nudge,
	.refresh = fake_refresh,
	.describe = fake_describe,
	.last_words = fake_last_words,
	.definition = fake_definition,
	.check_incoming = fake_check_incoming,
	.start_incoming = fake_start_incoming,
	.wait_loaded = fake_wait_loaded,
	.take_over = fake_take_over,
	.move_prepare = fake_move_prepare,
	.move_start = fake_move_start,
	.move_sample = fake_move_sample,
	.memory_use = fake_memory_use,
	.measure_dirty_rate = fake_measure_dirty_rate,
	.dirty_rate = fake_dirty_rate,
	.check_postcopy = fake_check_postcopy,
	.move_start_postcopy = fake_move_start_postcopy,
	.move_listen_again = fake_move_listen_again,
	.move_resume = fake_move_resume,
	.move_set_limits = fake_move_set_limits,
	.move_set_bandwidth = fake_move_set_bandwidth,
	.move_continue = fake_move_continue,
	.move_cancel = fake_move_cancel,
	.move_restore = fake_move_restore,
	.ports_shut = fake_ports_shut,
	.ports_open = fake_ports_open,
};

/* ---- the world ---- */

void fake_world_reset(void)
{
	WORLD_SCOPE;
	for (struct machine *machine = world.machines, *next; machine; machine = next) {
		next = machine->next;
		machine->in_world = false;
		machine_drop_if_unused(machine);
	}
	if (world.machines)
		abort(); /* some inventory still holds one */
	memset(world.hosts, 0, sizeof(world.hosts));
	memset(world.guests, 0, sizeof(world.guests));
	world.move_end = FAKE_MOVE_GOOD;
	world.postcopy = FAKE_POSTCOPY_GOOD;
	world.postcopy_breaks = 0;
	*world.breach = '\0';
}

const char *fake_world_breach(void)
{
	WORLD_SCOPE;
	return *world.breach ? world.breach : NULL;
}

unsigned int fake_world_running(const char *uuid)
{
	WORLD_SCOPE;
	unsigned int count = 0;
	for (const struct machine *machine = world.machines; machine; machine = machine->next)
		count += machine->in_world && machine->state.run == MACHINE_RUNNING &&
			 strcmp(machine->definition->uuid, uuid) == 0;
	return count;
}

enum machine_run fake_world_run(const char *host, const char *uuid)
{
	WORLD_SCOPE;
	const struct machine *machine = machine_at(host, uuid);
	return machine ? machine->state.run : MACHINE_GONE;
}

enum move_state fake_world_move(const char *host, const char *uuid)
{
	WORLD_SCOPE;
	const struct machine *machine = machine_at(host, uuid);
	return machine ? machine->state.move : MOVE_NONE;
}

bool fake_world_has(const char *host, const char *uuid)
{
	WORLD_SCOPE;
	return machine_at(host, uuid) != NULL;
}

/* The lock is held: the process ends, and whoever copies to or from it notices. */
static void kill_machine(struct machine *machine)
{
	struct machine *partner = machine->partner_port ? machine_partner(machine) : NULL;
	if (partner && partner->state.run == MACHINE_INCOMING && !partner->loaded)
		set_gone(partner);
	else if (partner && move_in_postcopy(partner->state.move))
		pause_postcopy(machine);
	set_gone(machine);
	machine->loaded = false;
}

void fake_world_kill(const char *host, const char *uuid)
{
	WORLD_SCOPE;
	struct machine *machine = machine_at(host, uuid);
	if (machine)
		kill_machine(machine);
}

void fake_world_reboot(const char *host)
{
	WORLD_SCOPE;
	for (struct machine *machine = world.machines, *next; machine; machine = next) {
		next = machine->next;
		if (strcmp(machine->host, host) != 0)
			continue;
		kill_machine(machine);
		machine->in_world = false;
		machine_drop_if_unused(machine);
	}
}

void fake_world_go_on(const char *host, const char *uuid)
{
	WORLD_SCOPE;
	struct machine *machine = machine_at(host, uuid);
	for (int i = 0; machine && machine->state.run != MACHINE_GONE && i < 10; i++)
		(void)advance(machine);
}

void fake_world_set_dead(const char *host, bool dead)
{
	WORLD_SCOPE;
	host_script(host)->dead = dead;
	pthread_cond_broadcast(&world.changed);
}
