/* SPDX-License-Identifier: Apache-2.0 */
/* What a user asks for: a migration's request, and the promise in it, which may be changed later on. Any thread. */
#ifndef FERRY_MIGRATION_REQUEST_H
#define FERRY_MIGRATION_REQUEST_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"
#include "migration/converge.h"

/* What the user was promised, and how much of the link it may take; may be changed while the copy is under way. */
struct migration_promise {
	int64_t max_downtime_ms;
	int64_t deadline_ms;		/* from the request; 0: none */
	uint64_t bandwidth_bytes_per_s; /* 0: unlimited */
	enum converge_means means[CONVERGE_MEANS_COUNT];
	size_t means_count;
	int64_t pause_ms; /* the bound of CONVERGE_PAUSE, where that is allowed */
};
bool migration_promise_allows(const struct migration_promise *promise, enum converge_means means);
/* As much of a link's rate as it may use. */
uint64_t migration_promise_rate(const struct migration_promise *promise, uint64_t rate_bytes_per_s);
/* Take what the object says of it into *promise, which is untouched on failure; keys that are not there change nothing. */
int migration_promise_parse(const json_t *json, struct migration_promise *promise, struct error **e) MUST_CHECK;

/* What was asked for. */
struct migration_request {
	char *to;
	bool dry_run;
	bool paused;		       /* leave it paused at the destination */
	bool keep_source_definition;
	char *transport;	       /* "auto", "relay" or "native" */
	unsigned int channels;	       /* 1 or more */
	struct migration_promise promise;
	const struct converge_policy *policy;
	char **maps;
	size_t map_count;
};
int migration_request_parse(const json_t *json, struct migration_request *ret, struct error **e) MUST_CHECK;
void migration_request_done(struct migration_request *request);

#endif
