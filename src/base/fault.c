/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Faults on purpose; see fault.h. The specification becomes a short list of rules, which each pass of a point goes through
 * under a mutex; without rules a pass costs one look at a counter. What is to be done to the process itself (kill, stop,
 * delay) is done here, after the mutex was let go; all else is said to the passer.
 */
#include "base/fault.h"

#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/log.h"
#include "base/xalloc.h"

#define FAULT_RULES_MAX 32
#define FAULT_FIRED_MAX 256
#define FAULT_ENVIRONMENT "FERRY_FAULT"

/* The table's words. */
enum fault_side { SOURCE, DESTINATION, BOTH };
enum fault_kind { STEP, RECORD, SEND, RECEIVED, ANSWER, ANSWERED, STORE, CLOCK, FAULT_KIND_COUNT };

static const char *const side_names[] = {"source", "destination", "both"};
static const char *const kind_names[] = {"step", "record", "send", "received", "answer", "answered", "store", "clock"};

static const struct {
	const char *name, *when;
	enum fault_side side;
	enum fault_kind kind;
} points[] = {
#define FAULT_POINT(symbol, name, side, kind, when) [symbol] = {name, when, side, kind},
#include "base/fault.tbl"
#undef FAULT_POINT
};

#define AT(kind) (1u << (kind))
#define ANYWHERE (AT(FAULT_KIND_COUNT) - 1)

enum fault_number { NO_NUMBER, MAY_HAVE_NUMBER, NEEDS_NUMBER };

static const struct {
	const char *name;
	unsigned int kinds;
	enum fault_number number;
} actions[] = {
	[FAULT_KILL] = {"kill", ANYWHERE, NO_NUMBER},
	[FAULT_STOP] = {"stop", ANYWHERE, NO_NUMBER},
	[FAULT_DELAY] = {"delay", ANYWHERE, NEEDS_NUMBER},
	[FAULT_DROP] = {"drop", AT(SEND) | AT(RECEIVED) | AT(ANSWER) | AT(ANSWERED), NO_NUMBER},
	[FAULT_HOLD] = {"hold", AT(RECEIVED) | AT(ANSWER), NO_NUMBER},
	[FAULT_CUT] = {"cut", AT(SEND) | AT(ANSWER), NO_NUMBER},
	[FAULT_CORRUPT] = {"corrupt", AT(SEND) | AT(ANSWER), MAY_HAVE_NUMBER},
	[FAULT_REPEAT] = {"repeat", AT(SEND), NO_NUMBER},
	[FAULT_OLD] = {"old", AT(SEND), NO_NUMBER},
	[FAULT_ERROR] = {"error", AT(RECORD) | AT(STORE), NO_NUMBER},
	[FAULT_FULL] = {"full", AT(STORE), NO_NUMBER},
	[FAULT_SHORT] = {"short", AT(STORE), NO_NUMBER},
	[FAULT_FORGET] = {"forget", AT(STORE), MAY_HAVE_NUMBER},
	[FAULT_JUMP] = {"jump", AT(CLOCK), NEEDS_NUMBER},
};

struct fault_rule {
	enum fault_point point;
	enum fault_action action;
	int64_t number;
	uint64_t at; /* which pass */
	bool on;     /* and each one after it */
	uint64_t passed;
};

struct fault_fired {
	enum fault_point point;
	enum fault_action action;
	uint64_t pass;
};

struct fault_plan {
	struct fault_rule rules[FAULT_RULES_MAX];
	size_t rule_count;
};

static pthread_mutex_t fault_mutex = PTHREAD_MUTEX_INITIALIZER;
static struct fault_plan fault_plan;
static struct fault_fired fault_fired[FAULT_FIRED_MAX]; /* the first ones */
static size_t fault_fired_count;
static char *fault_text;
static bool fault_any; /* atomic: whether there are rules */

/* ---- the specification ---- */

/* Whether the action can be asked for at the point. forget is a state of the journal from its opening on, which one point stands
 * for; full and short are things that happen to a write. */
static bool fault_goes_with(enum fault_action action, enum fault_point point)
{
	if (action == FAULT_FORGET)
		return point == FAULT_JOURNAL_SYNC;
	/* What has been recorded has been; the database sees to it that nobody is told otherwise. */
	if (action == FAULT_ERROR && points[point].kind == RECORD)
		return strncmp(points[point].name, "before-", strlen("before-")) == 0;
	if (action == FAULT_FULL || action == FAULT_SHORT)
		return point == FAULT_JOURNAL_WRITE || point == FAULT_FILE_WRITE;
	return actions[action].name && (actions[action].kinds & AT(points[point].kind));
}

static int fault_parse_number(const char *text, bool negative, int64_t *ret, const char *rule, struct error **e)
{
	char *end = NULL;
	long long number = strtoll(text, &end, 10);
	if (end == text || *end || number > INT32_MAX || number < (negative ? -(long long)INT32_MAX : 0))
		return error_set(e, ERROR_INVALID_ARGUMENT, "fault '%s': '%s' is not a number that fits there", rule, text);
	*ret = number;
	return 0;
}

/* "3", "3+" or "*". */
static int fault_parse_passes(char *text, struct fault_rule *rule, const char *whole, struct error **e)
{
	int64_t at = 1;
	char *plus = strchr(text, '+');
	bool each = strcmp(text, "*") == 0;
	rule->on = each || (plus && plus[1] == '\0');
	if (rule->on && plus)
		*plus = '\0';
	if (!each && fault_parse_number(text, false, &at, whole, e) < 0)
		return -1;
	if (at == 0)
		return error_set(e, ERROR_INVALID_ARGUMENT, "fault '%s': passes are counted from 1", whole);
	rule->at = (uint64_t)at;
	return 0;
}

/* "POINT=ACTION[:NUMBER][@N|@N+|@*]"; the text is cut up. */
static int fault_parse_rule(char *text, struct fault_rule *ret, struct error **e)
{
	cleanup_free char *rule = xstrdup(text);
	struct fault_rule parsed = {.point = FAULT_POINT_COUNT, .action = FAULT_NONE, .at = 1};
	char *action = strchr(text, '=');
	if (!action)
		return error_set(e, ERROR_INVALID_ARGUMENT, "fault '%s': it must be POINT=ACTION", rule);
	*action++ = '\0';
	char *at = strchr(action, '@');
	if (at)
		*at++ = '\0';
	char *number = strchr(action, ':');
	if (number)
		*number++ = '\0';
	for (size_t i = 0; i < FAULT_POINT_COUNT; i++)
		if (strcmp(points[i].name, text) == 0)
			parsed.point = (enum fault_point)i;
	if (parsed.point == FAULT_POINT_COUNT)
		return error_set(e, ERROR_INVALID_ARGUMENT, "fault '%s': there is no point '%s'", rule, text);
	for (size_t i = 0; i < FAULT_ACTION_COUNT; i++)
		if (actions[i].name && strcmp(actions[i].name, action) == 0)
			parsed.action = (enum fault_action)i;
	if (parsed.action == FAULT_NONE)
		return error_set(e, ERROR_INVALID_ARGUMENT, "fault '%s': there is no action '%s'", rule, action);
	if (!fault_goes_with(parsed.action, parsed.point))
		return error_set(e, ERROR_INVALID_ARGUMENT, "fault '%s': '%s' has no action '%s'", rule, text, action);
	if (number ? actions[parsed.action].number == NO_NUMBER : actions[parsed.action].number == NEEDS_NUMBER)
		return error_set(e, ERROR_INVALID_ARGUMENT, "fault '%s': '%s' takes %s number", rule, action,
				 number ? "no" : "a");
	if (number && fault_parse_number(number, parsed.action == FAULT_JUMP, &parsed.number, rule, e) < 0)
		return -1;
	if (at && fault_parse_passes(at, &parsed, rule, e) < 0)
		return -1;
	*ret = parsed;
	return 0;
}

int fault_set(const char *specification, struct error **e)
{
	struct fault_plan plan = {0};
	cleanup_free char *text = xstrdup(specification);
	char *rest = NULL;
	for (char *rule = strtok_r(text, ", \t\n", &rest); rule; rule = strtok_r(NULL, ", \t\n", &rest)) {
		if (plan.rule_count == FAULT_RULES_MAX)
			return error_set(e, ERROR_INVALID_ARGUMENT, "more than %d faults at once", FAULT_RULES_MAX);
		if (fault_parse_rule(rule, &plan.rules[plan.rule_count], e) < 0)
			return -1;
		plan.rule_count++;
	}
	LOCK_SCOPE(&fault_mutex);
	fault_plan = plan;
	fault_fired_count = 0;
	free(fault_text);
	fault_text = xstrdup(specification);
	__atomic_store_n(&fault_any, plan.rule_count > 0, __ATOMIC_RELEASE);
	return 0;
}

int fault_set_from_environment(struct error **e)
{
	const char *text = getenv(FAULT_ENVIRONMENT);
	if (text && fault_set(text, e) < 0)
		return error_wrap(e, FAULT_ENVIRONMENT);
	return 0;
}

/* ---- passing ---- */

static void fault_wait(int64_t ms)
{
	struct timespec left = {.tv_sec = ms / 1000, .tv_nsec = (ms % 1000) * 1000000};
	while (nanosleep(&left, &left) < 0)
		;
}

/* What this pass makes happen, in the order of the specification. */
static size_t fault_count_pass(enum fault_point point, struct fault_rule ret_rules[FAULT_RULES_MAX])
{
	LOCK_SCOPE(&fault_mutex);
	size_t count = 0;
	for (size_t i = 0; i < fault_plan.rule_count; i++) {
		struct fault_rule *rule = &fault_plan.rules[i];
		if (rule->point != point || rule->action == FAULT_FORGET)
			continue;
		rule->passed++;
		if (rule->on ? rule->passed < rule->at : rule->passed != rule->at)
			continue;
		if (fault_fired_count < FAULT_FIRED_MAX)
			fault_fired[fault_fired_count++] = (struct fault_fired){point, rule->action, rule->passed};
		ret_rules[count++] = *rule;
	}
	return count;
}

enum fault_action fault_pass(enum fault_point point, int64_t *ret_number)
{
	if (ret_number)
		*ret_number = 0;
	if (!__atomic_load_n(&fault_any, __ATOMIC_ACQUIRE))
		return FAULT_NONE;
	struct fault_rule rules[FAULT_RULES_MAX];
	size_t count = fault_count_pass(point, rules);
	enum fault_action action = FAULT_NONE;
	for (size_t i = 0; i < count; i++) {
		log_warning("fault=%s action=%s pass=%llu", points[point].name, actions[rules[i].action].name,
			    (unsigned long long)rules[i].passed);
		if (rules[i].action == FAULT_KILL) {
			raise(SIGKILL);
		} else if (rules[i].action == FAULT_STOP) {
			raise(SIGSTOP); /* at this thread: a signal to the process may let it go on for a moment */
		} else if (rules[i].action == FAULT_DELAY) {
			fault_wait(rules[i].number);
		} else {
			action = rules[i].action;
			if (ret_number)
				*ret_number = rules[i].number;
		}
	}
	return action;
}

bool fault_waits(enum fault_point point, enum fault_action action, int64_t *ret_number)
{
	LOCK_SCOPE(&fault_mutex);
	for (size_t i = 0; i < fault_plan.rule_count; i++) {
		if (fault_plan.rules[i].point != point || fault_plan.rules[i].action != action)
			continue;
		if (ret_number)
			*ret_number = fault_plan.rules[i].number;
		return true;
	}
	return false;
}

/* ---- what happens to bytes ---- */

void fault_corrupt(char *bytes, size_t length, int64_t seed)
{
	uint64_t state = (uint64_t)seed * 2 + 1;
	for (size_t i = 0; length > 0 && i < 1 + length / 64; i++) {
		state = state * 6364136223846793005u + 1442695040888963407u;
		/* Printable for printable, so that not every one is found by the first look of a parser. */
		char *byte = &bytes[(state >> 33) % length];
		*byte = (char)(*byte ^ (1 << ((state >> 20) % 4)));
	}
}

/* ---- what can be asked ---- */

const char *fault_point_name(enum fault_point point)
{
	return points[point].name;
}

json_t *fault_table(void)
{
	json_t *list = json_array(), *by_kind = json_object();
	bool stands[FAULT_KIND_COUNT] = {false};
	for (size_t i = 0; i < FAULT_POINT_COUNT; i++) {
		json_t *names = json_array();
		for (size_t a = 0; a < FAULT_ACTION_COUNT; a++)
			if (fault_goes_with((enum fault_action)a, (enum fault_point)i))
				json_array_append_new(names, json_string(actions[a].name));
		json_array_append_new(list, json_pack("{ss ss ss ss so}", "name", points[i].name, "side",
						      side_names[points[i].side], "kind", kind_names[points[i].kind],
						      "when", points[i].when, "actions", names));
		stands[points[i].kind] = true;
	}
	for (size_t kind = 0; kind < FAULT_KIND_COUNT; kind++) {
		json_t *names = json_array();
		for (size_t a = 0; a < FAULT_ACTION_COUNT; a++)
			if (actions[a].name && stands[kind] && (actions[a].kinds & AT(kind)))
				json_array_append_new(names, json_string(actions[a].name));
		json_object_set_new(by_kind, kind_names[kind], names);
	}
	return json_pack("{so so}", "points", list, "actions", by_kind);
}

json_t *fault_report(void)
{
	json_t *fired = json_array();
	LOCK_SCOPE(&fault_mutex);
	for (size_t i = 0; i < fault_fired_count; i++)
		json_array_append_new(fired, json_pack("{ss ss sI}", "point", points[fault_fired[i].point].name, "action",
						       actions[fault_fired[i].action].name, "pass",
						       (json_int_t)fault_fired[i].pass));
	return json_pack("{ss so}", "faults", fault_text ? fault_text : "", "fired", fired);
}
