/* SPDX-License-Identifier: Apache-2.0 */
/* What is asked for and promised, from the JSON of the API; see request.h. */
#include "migration/request.h"

#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/json.h"
#include "base/xalloc.h"
#include "migration/predict.h"
#include "vm/definition.h"

#define MIGRATION_MAPS_MAX 64
#define MIGRATION_MAP_BYTES_MAX 8256 /* "disk:", two of the longest paths */
/* Beyond these the sums of a promise would not fit into 64 bits; as in the units of `ferry`. */
#define MIGRATION_BANDWIDTH_MAX INT64_C(10000000000000) /* 80 Tbit/s */
#define MIGRATION_DOWNTIME_MS_MAX 2000000 /* QEMU's own bound */
#define MIGRATION_DEADLINE_MS_MAX INT64_C(3600000000)	/* 1000 hours */

bool migration_promise_allows(const struct migration_promise *promise, enum converge_means means)
{
	return converge_allows(promise->means, promise->means_count, means);
}

uint64_t migration_promise_rate(const struct migration_promise *promise, uint64_t rate_bytes_per_s)
{
	return predict_within(rate_bytes_per_s, promise->bandwidth_bytes_per_s);
}

static int parse_means(const json_t *list, struct migration_promise *ret, struct error **e)
{
	size_t i;
	const json_t *one;
	unsigned int seen = 0;
	ret->means_count = 0;
	json_array_foreach (list, i, one) {
		const char *name = json_is_string(one) ? json_string_value(one) : "";
		enum converge_means means = 0;
		while (means < CONVERGE_MEANS_COUNT && strcmp(name, converge_means_name(means)) != 0)
			means++;
		if (means == CONVERGE_MEANS_COUNT)
			return error_set(e, ERROR_INVALID_ARGUMENT, "converge[%zu] is not one of throttle, postcopy, pause", i);
		if (seen & 1U << means)
			return error_set(e, ERROR_INVALID_ARGUMENT, "converge names '%s' twice", name);
		seen |= 1U << means;
		ret->means[ret->means_count++] = means;
	}
	return 0;
}

#define PROMISE_KEYS "bandwidth_bytes_per_s", "max_downtime_ms", "deadline_ms", "converge", "pause_ms"

/* Without a look at unknown keys. */
static int promise_parse(const json_t *json, struct migration_promise *promise, struct error **e)
{
	struct migration_promise wanted = *promise;
	json_t *means = NULL;
	int64_t bandwidth = (int64_t)promise->bandwidth_bytes_per_s;
	if (json_get_integer_opt(json, "bandwidth_bytes_per_s", 0, MIGRATION_BANDWIDTH_MAX, &bandwidth, e) < 0 ||
	    json_get_integer_opt(json, "max_downtime_ms", 1, MIGRATION_DOWNTIME_MS_MAX, &wanted.max_downtime_ms, e) < 0 ||
	    json_get_integer_opt(json, "deadline_ms", 0, MIGRATION_DEADLINE_MS_MAX, &wanted.deadline_ms, e) < 0 ||
	    json_get_integer_opt(json, "pause_ms", 1, MIGRATION_DOWNTIME_MS_MAX, &wanted.pause_ms, e) < 0 ||
	    json_get_array_opt(json, "converge", &means, e) < 0 || (means && parse_means(means, &wanted, e) < 0))
		return -1;
	wanted.bandwidth_bytes_per_s = (uint64_t)bandwidth;
	const bool pauses = migration_promise_allows(&wanted, CONVERGE_PAUSE);
	if (pauses && wanted.pause_ms == 0)
		return error_set(e, ERROR_INVALID_ARGUMENT, "'pause' among converge needs its bound, pause_ms");
	if (pauses && wanted.pause_ms <= wanted.max_downtime_ms)
		return error_set(e, ERROR_INVALID_ARGUMENT, "pause_ms must be more than max_downtime_ms, which is %lld",
				 (long long)wanted.max_downtime_ms);
	*promise = wanted;
	return 0;
}

int migration_promise_parse(const json_t *json, struct migration_promise *promise, struct error **e)
{
	static const char *const keys[] = {PROMISE_KEYS, NULL};
	return json_check_keys(json, keys, e) < 0 ? -1 : promise_parse(json, promise, e);
}

static int error_no_policy(const char *name, struct error **e)
{
	cleanup_free char *names = xstrdup("");
	for (size_t i = 0; converge_policy_at(i); i++) {
		char *longer = xasprintf("%s%s%s", names, i ? ", " : "", converge_policy_at(i)->name);
		free(names);
		names = longer;
	}
	return error_set(e, ERROR_INVALID_ARGUMENT, "policy '%s' is not one of %s", name, names);
}

int migration_request_parse(const json_t *json, struct migration_request *ret, struct error **e)
{
	static const char *const keys[] = {"to", "dry_run", "paused", "keep_source_definition", "transport", "channels",
					   "maps", "policy", PROMISE_KEYS, NULL};
	const char *to = NULL, *transport = "auto", *policy = converge_policy_ferry.name;
	int64_t channels = 1;
	json_t *maps = NULL;
	struct migration_request request = {.promise = {.max_downtime_ms = 300, .means = {CONVERGE_THROTTLE}, .means_count = 1}};
	if (json_check_keys(json, keys, e) < 0 || json_get_string(json, "to", &to, e) < 0 ||
	    json_get_bool_opt(json, "dry_run", &request.dry_run, e) < 0 ||
	    json_get_bool_opt(json, "paused", &request.paused, e) < 0 ||
	    json_get_bool_opt(json, "keep_source_definition", &request.keep_source_definition, e) < 0 ||
	    json_get_string_opt(json, "transport", &transport, e) < 0 ||
	    json_get_string_opt(json, "policy", &policy, e) < 0 ||
	    json_get_integer_opt(json, "channels", 1, 64, &channels, e) < 0 || promise_parse(json, &request.promise, e) < 0 ||
	    json_get_array_opt(json, "maps", &maps, e) < 0)
		return -1;
	if (channels > 1 && migration_promise_allows(&request.promise, CONVERGE_POSTCOPY))
		return error_set(e, ERROR_INVALID_ARGUMENT, "post-copy needs one channel, not %lld", (long long)channels);
	if (strcmp(transport, "auto") != 0 && strcmp(transport, "native") != 0 && strcmp(transport, "relay") != 0)
		return error_set(e, ERROR_INVALID_ARGUMENT, "transport '%s' is not one of auto, native, relay", transport);
	if (strcmp(transport, "relay") == 0 && migration_promise_allows(&request.promise, CONVERGE_POSTCOPY))
		return error_set(e, ERROR_INVALID_ARGUMENT, "the relay does not carry post-copy yet; leave one of the two out");
	request.policy = converge_policy_find(policy);
	if (!request.policy)
		return error_no_policy(policy, e);
	size_t i;
	const json_t *map;
	if (json_array_size(maps) > MIGRATION_MAPS_MAX)
		return error_set(e, ERROR_TOO_LARGE, "more than %d maps", MIGRATION_MAPS_MAX);
	json_array_foreach (maps, i, map)
		if (!json_is_string(map) || json_string_length(map) > MIGRATION_MAP_BYTES_MAX)
			return error_set(e, ERROR_INVALID_ARGUMENT, "maps[%zu] must be a string such as bridge:br0=br1, of %d bytes at most",
					 i, MIGRATION_MAP_BYTES_MAX);
	if (!definition_name_valid(to))
		return error_set(e, ERROR_INVALID_ARGUMENT, "key 'to' is not a host name: letters, digits, '-', '_' and '.', at most %d",
				 DEFINITION_NAME_MAX);
	request.to = xstrdup(to);
	request.transport = xstrdup(transport);
	request.channels = (unsigned int)channels;
	request.maps = xcalloc(json_array_size(maps) + 1, sizeof(*request.maps));
	json_array_foreach (maps, i, map)
		request.maps[request.map_count++] = xstrdup(json_string_value(map));
	*ret = request;
	return 0;
}

void migration_request_done(struct migration_request *request)
{
	for (size_t i = 0; i < request->map_count; i++)
		free(request->maps[i]);
	free(request->maps);
	free(request->to);
	free(request->transport);
	*request = (struct migration_request){0};
}
