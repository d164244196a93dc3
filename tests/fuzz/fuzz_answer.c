/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a destination answers, as the source reads it (src/migration/source*.c, peers.c): a whole migration with the fake
 * driver, whose questions are answered by the lines of the input, in turn: a JSON object; "!CODE MESSAGE", an error;
 * anything else: no answer. When the lines are used up nobody answers any more, and ferryd is stopped.
 *
 * Properties: never two running guests (the fake world watches); the guest is given up only after an answer "running" to
 * finish, or to refuse if it was offered and the answer says that a person has settled it; a migration that has ended in any
 * other way has left the guest running here.
 */
#include "fuzz.h"

#include <string.h>

#include "base/cleanup.h"
#include "base/json.h"
#include "base/xalloc.h"
#include "fakes/fake_driver.h"
#include "host.h"
#include "migration/source.h"

#define UNANSWERED_MAX 6
#define PATIENCE_US 20000000

static struct {
	pthread_mutex_t mutex;
	const char *at, *end; /* the lines that are left */
	unsigned int unanswered;
	bool said_running; /* to finish; or to refuse, saying that a person has given the VM to it (resolve.h) */
	uint16_t port;	   /* of the last check */
	struct driver_host driver_host;
	struct machine *arriving; /* what prepare has started over there */
} destination = {.mutex = PTHREAD_MUTEX_INITIALIZER};

static void observe_nothing(void *user, const struct machine_state *state)
{
	(void)user;
	(void)state;
}

/* What a destination that answers so would have done. */
static void act(const char *path, const json_t *question, const json_t *answer)
{
	const char *state = json_string_value(json_object_get(answer, "state"));
	const json_t *data = json_object_get(answer, "data");
	if (json_is_object(data))
		destination.port = (uint16_t)json_integer_value(json_object_get(data, "port"));
	if (strcmp(path, "/v1/peer/prepare") == 0 && !destination.arriving) {
		const struct machine_observer observer = {.changed = observe_nothing};
		const struct move_options move = {.address = "198.18.0.1", .port = destination.port, .channels = 1};
		struct definition *definition = NULL;
		REQUIRE(definition_parse(json_object_get(question, "definition"), &definition, NULL) == 0);
		REQUIRE(vm_driver_fake.start_incoming(&destination.driver_host, definition, &move, &observer,
						      &destination.arriving, NULL) == 0);
		definition_free(definition);
	}
	bool finish = strcmp(path, "/v1/peer/finish") == 0;
	bool settled = strcmp(path, "/v1/peer/refuse") == 0 && json_is_true(json_object_get(answer, "settled"));
	if ((finish || settled) && state && strcmp(state, "running") == 0) {
		bool ran = false;
		destination.said_running = true;
		if (destination.arriving && finish)
			(void)vm_driver_fake.take_over(destination.arriving, false, &ran, NULL);
	}
}

static int answer_error(const char *text, struct error **e)
{
	const char *space = strchrnul(text, ' ');
	cleanup_free char *name = xasprintf("%.*s", (int)(space - text), text);
	enum error_code code = error_code_from_name(name);
	return error_set(e, code == ERROR_CODE_COUNT ? ERROR_PEER_REFUSED : code, "%s", *space ? space + 1 : "?");
}

static int answer(const char *to, const char *method, const char *path, const json_t *question, json_t **ret,
		  bool *ret_answered, struct error **e)
{
	const char *part;
	size_t length;
	(void)method;
	LOCK_SCOPE(&destination.mutex);
	if (!fuzz_next_part(&destination.at, destination.end, '\n', &part, &length)) {
		destination.unanswered++;
		return error_set(e, ERROR_DAEMON_UNREACHABLE, "%s does not answer", to);
	}
	cleanup_free char *line = fuzz_text((const uint8_t *)part, length);
	if (line[0] == '!') {
		*ret_answered = true;
		return answer_error(line + 1, e);
	}
	json_t *json = fuzz_parse_json(line, strlen(line));
	if (!json)
		return error_set(e, ERROR_PEER_PROTOCOL, "the answer of %s is no JSON", to);
	act(path, question, json);
	*ret = json;
	return 0;
}

static bool nobody_answers(void)
{
	LOCK_SCOPE(&destination.mutex);
	return destination.unanswered >= UNANSWERED_MAX;
}

/* Until it has ended or nobody answers; it never hangs. */
static void wait_for_end(struct migration *migration)
{
	int64_t deadline_us = clock_monotonic_us() + PATIENCE_US;
	while (!migration_final(migration) && !nobody_answers()) {
		pthread_mutex_lock(&migration->mutex);
		uint64_t seen = migration->change;
		pthread_mutex_unlock(&migration->mutex);
		if (!migration_final(migration))
			(void)migration_wait_change(migration, seen, clock_monotonic_us() + 2000);
		REQUIRE(clock_monotonic_us() < deadline_us);
	}
}

static void check_end(const struct migration *migration, bool ended)
{
	REQUIRE(!fake_world_breach());
	if (migration->status == MIGRATION_COMPLETED)
		REQUIRE(destination.said_running);
	if (!destination.said_running)
		REQUIRE(fake_world_has(FUZZ_HOST, FUZZ_VM_UUID));
	/* Nobody takes what was never offered to him. */
	REQUIRE(migration->handover != HANDOVER_RELEASED || migration->offered);
	if (!ended || migration->status == MIGRATION_COMPLETED)
		return;
	/* "running" in answer to a refusal: a person has given the VM to the destination (resolve.h). */
	enum machine_run run = fake_world_run(FUZZ_HOST, FUZZ_VM_UUID);
	REQUIRE(run == (migration->handover == HANDOVER_RELEASED ? MACHINE_PAUSED : MACHINE_RUNNING));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct fuzz_host fuzz;
	struct migration *migration = NULL;
	struct migration_request request = {.to = xstrdup(FUZZ_PEER),
					    .transport = xstrdup("auto"),
					    .channels = 1,
					    .promise = {.max_downtime_ms = 300},
					    .policy = &converge_policy_ferry};
	fuzz_answer = answer;
	fuzz_host_open(&fuzz);
	REQUIRE(fuzz_host_load(&fuzz, NULL) == 0);
	fuzz_host_start_vm(&fuzz);
	destination.at = (const char *)data;
	destination.end = (const char *)data + size;
	destination.unanswered = 0;
	destination.said_running = false;
	destination.port = 0;
	destination.driver_host = (struct driver_host){.loop = fuzz.host.loop, .run_folder = FUZZ_PEER};
	destination.arriving = NULL;

	REQUIRE(source_begin(&fuzz.host, FUZZ_VM, &request, &migration, NULL) == 0);
	wait_for_end(migration);
	cleanup_json json_t *view = migration_view(migration);
	REQUIRE(json_is_object(view));
	cleanup_free char *text = json_text(view);
	REQUIRE(strlen(text) < (1 << 20));
	bool ended = migration_ended(migration);
	migration_host_stop_workers(&fuzz.host);
	check_end(migration, ended);
	migration_unref(migration);
	if (destination.arriving) {
		REQUIRE(vm_driver_fake.end(destination.arriving, NULL) == 0);
		vm_driver_fake.detach(destination.arriving);
	}
	fuzz_host_close(&fuzz);
	return 0;
}
