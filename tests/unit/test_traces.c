/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Copies of real guests, as ferryd's log has them (traces/), through the policy once more: from the same samples it comes to the
 * same decisions, in the same words. traces/record makes them anew.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <glob.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "migration/converge.h"

#define LINE_SIZE 512
#define SAMPLES_MIN 10 /* fewer are no trace */

struct trace {
	struct converge converge;
	bool begun;
	unsigned int samples, decisions, told; /* told: decisions that the trace has */
	char decided[LINE_SIZE];	       /* what comes next in the trace, by the policy; "": nothing */
};

static void parse_options(const char *line, struct trace *trace)
{
	char policy[32];
	long long max_downtime_ms, overhead_ms, deadline_us, longest_pause_ms;
	struct converge_options options = {0};
	assert_int_equal(sscanf(line, "options policy=%31s max_downtime_ms=%lld overhead_ms=%lld deadline_us=%lld longest_pause_ms=%lld",
				policy, &max_downtime_ms, &overhead_ms, &deadline_us, &longest_pause_ms),
			 5);
	options.max_downtime_ms = max_downtime_ms;
	options.overhead_ms = overhead_ms;
	options.deadline_us = deadline_us;
	options.longest_pause_ms = longest_pause_ms;
	const char *means = strstr(line, "means:");
	assert_non_null(means);
	for (int one = 0; one < CONVERGE_MEANS_COUNT; one++) /* in the traces there is one of them at most */
		if (strstr(means, converge_means_name((enum converge_means)one)))
			options.means[options.means_count++] = (enum converge_means)one;
	if (trace->begun)
		converge_set_options(&trace->converge, &options);
	else
		converge_init(&trace->converge, converge_policy_find(policy), &options);
	trace->begun = true;
}

static void parse_sample(const char *line, struct converge_sample *ret)
{
	long long at_us;
	unsigned long long remaining, rate, dirty, sampled, total;
	int began;
	*ret = (struct converge_sample){0};
	assert_int_equal(sscanf(line,
				"sample at_us=%lld pass=%u began=%d remaining=%llu rate=%llu dirty=%llu sampled=%llu throttle=%u slice_ms=%u busy=%u"
				" total=%llu",
				&at_us, &ret->pass, &began, &remaining, &rate, &dirty, &sampled, &ret->throttle_percent, &ret->throttle_slice_ms, &ret->busy_percent, &total),
			 11);
	ret->at_us = at_us;
	ret->pass_began = began;
	ret->remaining_bytes = remaining;
	ret->rate_bytes_per_s = rate;
	ret->dirty_bytes_per_s = dirty;
	ret->sampled_dirty_bytes_per_s = sampled;
	ret->total_bytes = total;
}

static void decide(struct trace *trace, const char *line)
{
	struct converge_sample sample;
	assert_string_equal(trace->decided, ""); /* the trace does not have it */
	parse_sample(line, &sample);
	const struct converge_decision decision = converge_decide(&trace->converge, &sample);
	trace->samples++;
	if (!decision.changed)
		return;
	trace->decisions++;
	snprintf(trace->decided, sizeof(trace->decided), "pass=%u limit_ms=%u throttle=%u%%: %s", sample.pass, decision.settings.limit_ms,
		 decision.settings.throttle_percent, decision.words);
}

static void replay(const char *path)
{
	char line[LINE_SIZE];
	struct trace trace = {0};
	FILE *file = fopen(path, "r");
	assert_non_null(file);
	while (fgets(line, sizeof(line), file)) {
		line[strcspn(line, "\n")] = '\0';
		if (strncmp(line, "options ", 8) == 0) {
			parse_options(line, &trace);
		} else if (strncmp(line, "sample ", 7) == 0) {
			decide(&trace, line);
		} else {
			assert_string_equal(line, trace.decided);
			trace.decided[0] = '\0';
			trace.told++;
		}
	}
	fclose(file);
	print_message("# %s: %u samples, %u decisions\n", path, trace.samples, trace.decisions);
	assert_string_equal(trace.decided, "");
	assert_true(trace.begun && trace.samples >= SAMPLES_MIN && trace.told == trace.decisions && trace.decisions > 0);
}

static void test_traces(void **state)
{
	(void)state;
	glob_t found;
	assert_int_equal(glob(TRACES "/*.trace", 0, NULL, &found), 0);
	for (size_t i = 0; i < found.gl_pathc; i++)
		replay(found.gl_pathv[i]);
	assert_true(found.gl_pathc >= 6);
	globfree(&found);
}

int main(void)
{
	const struct CMUnitTest tests[] = {cmocka_unit_test(test_traces)};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
