/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The messages between hosts, as the destination takes them (src/migration/destination.c, arrival.c, offer.c), and what it
 * hears of a VM afterwards (forecast.c). The input is a conversation, a line each: "a check {…}", "c finish {…}": who asks
 * (host-a, who runs the guest, or host-c, who has nothing to do with it), the message, its body. Two more lines are events:
 * "copy" (all of the guest's memory has arrived), "kill" (the arriving QEMU ends).
 *
 * Properties: never two running guests, and never one that has not arrived whole (the fake world watches); a host that
 * did not offer the guest cannot make it run; an answer is an answer or an error with a code and a message.
 */
#include "fuzz.h"

#include <string.h>

#include "base/cleanup.h"
#include "base/json.h"
#include "base/xalloc.h"
#include "fakes/fake_driver.h"
#include "host.h"
#include "migration/destination.h"
#include "migration/forecast.h"

#define LINES_MAX 8 /* the fake world knows so many guests */

/* The guest at its source, and its copy. */
struct source_machine {
	struct driver_host driver_host;
	struct machine *machine;
};

static void observe_nothing(void *user, const struct machine_state *state)
{
	(void)user;
	(void)state;
}

static void source_start(struct source_machine *source, struct loop *loop)
{
	const struct machine_observer observer = {.changed = observe_nothing};
	cleanup_json json_t *json = json_pack("{ss ss si}", "name", FUZZ_VM, "uuid", FUZZ_VM_UUID, "memory_mib", 1);
	struct definition *definition = NULL;
	*source = (struct source_machine){{.loop = loop, .run_folder = FUZZ_PEER}, NULL};
	REQUIRE(definition_parse(json, &definition, NULL) == 0);
	REQUIRE(vm_driver_fake.start(&source->driver_host, definition, false, &observer, &source->machine, NULL) == 0);
	definition_free(definition);
}

/* To its end, if somebody waits for it. */
static void source_copy(struct source_machine *source)
{
	const struct move_options move = {.address = "198.18.0.2", .port = 49152, .channels = 1};
	struct machine_state state;
	vm_driver_fake.state(source->machine, &state);
	if (state.run != MACHINE_RUNNING || !fake_world_has(FUZZ_HOST, FUZZ_VM_UUID) ||
	    vm_driver_fake.move_prepare(source->machine, &move, NULL) < 0 ||
	    vm_driver_fake.move_start(source->machine, &move, NULL) < 0)
		return;
	for (int i = 0; i < 100 && state.move != MOVE_COMPLETED && state.move != MOVE_FAILED; i++) {
		(void)vm_driver_fake.wait_change(source->machine, state.change, 0);
		vm_driver_fake.state(source->machine, &state);
		if (state.move == MOVE_PRE_SWITCHOVER && vm_driver_fake.move_continue(source->machine, NULL) < 0)
			break;
	}
	if (state.move == MOVE_COMPLETED)
		fake_driver_fail(FUZZ_HOST, FAKE_WAIT_LOADED, FAKE_FAIL, 0);
}

static void source_end(struct source_machine *source)
{
	REQUIRE(vm_driver_fake.end(source->machine, NULL) == 0);
	vm_driver_fake.detach(source->machine);
}

/* What was heard goes into predictions, and no figure of these is out of range. */
static int hear(struct migration_host *host, const char *caller, const json_t *body, json_t **ret, struct error **e)
{
	struct predict_guest guest = {.memory_bytes = UINT64_C(1) << 44, .used_bytes = UINT64_C(1) << 43};
	const struct converge_options options = {.max_downtime_ms = 300, .means = {CONVERGE_POSTCOPY}, .means_count = 1};
	struct predict_link link;
	struct rates_vm vm = {0};
	struct prediction prediction;
	if (forecast_hear(host, caller, body, e) < 0)
		return -1;
	(void)rates_vm(host->rates, json_string_value(json_object_get(body, "vm_uuid")), &vm);
	for (size_t i = 0; i < 2; i++)
		predict_add_writes(&guest, vm.writes[i].for_us, vm.writes[i].bytes);
	if (forecast_know_link(host, caller, &link)) {
		predict_move(&guest, &link, &converge_policy_ferry, &options, &prediction);
		REQUIRE(prediction.total_us > 0 && prediction.downtime_us >= 0);
	}
	*ret = json_object();
	return 0;
}

static int ask(struct migration_host *host, const char *caller, const char *message, const json_t *body, json_t **ret,
	       struct error **e)
{
	if (strcmp(message, "check") == 0)
		return destination_check(host, caller, body, ret, e);
	if (strcmp(message, "prepare") == 0)
		return destination_prepare(host, caller, body, ret, e);
	if (strcmp(message, "finish") == 0)
		return destination_finish(host, caller, body, ret, e);
	if (strcmp(message, "refuse") == 0)
		return destination_refuse(host, caller, body, ret, e);
	if (strcmp(message, "outcome") == 0) {
		const char *id = json_string_value(json_object_get(body, "migration"));
		return destination_outcome(host, caller, id ? id : "", ret, e);
	}
	if (strcmp(message, "learned") == 0)
		return hear(host, caller, body, ret, e);
	return error_set(e, ERROR_NOT_FOUND, "no such message");
}

/* "a check {…}" */
static void run_message(struct migration_host *host, char *line)
{
	char *message = strchr(line, ' ');
	char *text = message ? strchr(message + 1, ' ') : NULL;
	if (!text)
		return;
	*message++ = '\0';
	*text++ = '\0';
	const char *caller = strcmp(line, "a") == 0 ? FUZZ_PEER : FUZZ_THIRD;
	cleanup_json json_t *body = fuzz_parse_json(text, strlen(text));
	cleanup_json json_t *answer = NULL;
	struct error *e = NULL;
	if (!json_is_object(body))
		return; /* the HTTP server has refused it */
	unsigned int before = fake_world_running(FUZZ_VM_UUID);
	if (ask(host, caller, message, body, &answer, &e) < 0) {
		fuzz_check_error(e);
	} else {
		REQUIRE(json_is_object(answer));
		cleanup_free char *written = json_text(answer);
		REQUIRE(strlen(written) < 65536);
	}
	REQUIRE(!fake_world_breach());
	if (strcmp(message, "finish") != 0 || strcmp(caller, FUZZ_PEER) != 0)
		REQUIRE(fake_world_running(FUZZ_VM_UUID) <= before);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct fuzz_host fuzz;
	struct source_machine source;
	fuzz_answer = NULL;
	fuzz_host_open(&fuzz);
	REQUIRE(fuzz_host_load(&fuzz, NULL) == 0);
	source_start(&source, fuzz.host.loop);
	fake_driver_fail(FUZZ_HOST, FAKE_WAIT_LOADED, FAKE_FAIL_LATER, 1000);

	const char *at = (const char *)data, *end = at + size, *part;
	size_t length;
	for (int i = 0; i < LINES_MAX && fuzz_next_part(&at, end, '\n', &part, &length); i++) {
		cleanup_free char *line = fuzz_text((const uint8_t *)part, length);
		if (strcmp(line, "copy") == 0)
			source_copy(&source);
		else if (strcmp(line, "kill") == 0 && fake_world_has(FUZZ_HOST, FUZZ_VM_UUID))
			fake_world_kill(FUZZ_HOST, FUZZ_VM_UUID);
		else
			run_message(&fuzz.host, line);
	}
	REQUIRE(fake_world_running(FUZZ_VM_UUID) <= 1);
	source_end(&source);
	fuzz_host_close(&fuzz);
	return 0;
}
