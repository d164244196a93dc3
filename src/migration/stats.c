/* SPDX-License-Identifier: Apache-2.0 */
/* A summary of migrations; see stats.h. */
#include "migration/stats.h"

#include <math.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/xalloc.h"

/* ---- figures ---- */

static int compare(const void *a, const void *b)
{
	const double x = *(const double *)a, y = *(const double *)b;
	return (x > y) - (x < y);
}

/* The smallest value that this part of all does not exceed. */
static double percentile(const double *sorted, size_t count, double part)
{
	const size_t rank = (size_t)ceil(part * (double)count);
	return sorted[rank > 0 ? rank - 1 : 0];
}

static double median(const double *sorted, size_t count)
{
	return count % 2 ? sorted[count / 2] : (sorted[count / 2 - 1] + sorted[count / 2]) / 2;
}

/* The value at a path of keys such as "prediction_error/start/total_percent"; borrowed, NULL where there is none. */
static const json_t *value_at(const json_t *view, const char *path)
{
	char key[64];
	while (view && *path) {
		const size_t length = strcspn(path, "/");
		if (length >= sizeof(key))
			return NULL;
		memcpy(key, path, length);
		key[length] = '\0';
		view = json_object_get(view, key);
		path += length + (path[length] == '/');
	}
	return view;
}

static bool is_completed(const json_t *view)
{
	const char *status = json_string_value(json_object_get(view, "status"));
	return status && strcmp(status, "completed") == 0;
}

/* {count, median, p90} of what is at the path, without its sign; null where no completed migration has it. */
static json_t *figure(const json_t *views, const char *path)
{
	size_t count = 0, i;
	const json_t *view;
	cleanup_free double *values = xcalloc(json_array_size(views) + 1, sizeof(*values));
	json_array_foreach (views, i, view) {
		const json_t *value = value_at(view, path);
		if (is_completed(view) && json_is_number(value))
			values[count++] = fabs(json_number_value(value));
	}
	if (count == 0)
		return json_null();
	qsort(values, count, sizeof(*values), compare);
	return json_pack("{s:I, s:f, s:f}", "count", (json_int_t)count, "median", median(values, count), "p90",
			 percentile(values, count, 0.9));
}

/* How many have a truth at the path, and of how many it is `true`. */
static void count_truths(const json_t *views, const char *path, size_t *ret_count, size_t *ret_true)
{
	size_t i;
	const json_t *view;
	*ret_count = *ret_true = 0;
	json_array_foreach (views, i, view) {
		const json_t *truth = value_at(view, path);
		*ret_count += json_is_boolean(truth);
		*ret_true += json_is_true(truth);
	}
}

static json_t *percent(size_t part, size_t count)
{
	return count ? json_real((double)(part * 1000 / count) / 10) : json_null();
}

/* ---- the summary ---- */

static json_t *by_status(const json_t *views)
{
	size_t i;
	const json_t *view;
	json_t *counts = json_object();
	json_array_foreach (views, i, view) {
		const char *status = json_string_value(json_object_get(view, "status"));
		json_object_set_new(counts, status, json_integer(json_integer_value(json_object_get(counts, status)) + 1));
	}
	return counts;
}

static json_t *moves(const json_t *views)
{
	return json_pack("{s:I, s:o, s:o, s:o, s:o}", "count", (json_int_t)json_array_size(views), "by_status", by_status(views), "total_ms",
			 figure(views, "total_ms"), "downtime_ms", figure(views, "downtime_ms"), "wire_bytes",
			 figure(views, "wire_bytes"));
}

static json_t *promises(const json_t *views)
{
	size_t count, kept;
	count_truths(views, "promise/kept", &count, &kept);
	return json_pack("{s:I, s:I, s:o}", "count", (json_int_t)count, "kept", (json_int_t)kept, "kept_percent", percent(kept, count));
}

static json_t *predictions(const json_t *views, const char *when)
{
	static const char *const figures[] = {"total_percent", "downtime_ms", "wire_percent"};
	json_t *summary = json_object();
	size_t count, right;
	for (size_t i = 0; i < sizeof(figures) / sizeof(figures[0]); i++) {
		cleanup_free char *path = xasprintf("prediction_error/%s/%s", when, figures[i]);
		json_object_set_new(summary, figures[i], figure(views, path));
	}
	cleanup_free char *verdict = xasprintf("prediction_error/%s/verdict_right", when);
	count_truths(views, verdict, &count, &right);
	json_object_set_new(summary, "verdicts", json_integer((json_int_t)count));
	json_object_set_new(summary, "verdicts_right", json_integer((json_int_t)right));
	json_object_set_new(summary, "verdicts_right_percent", percent(right, count));
	return summary;
}

static json_t *by_destination(const json_t *views)
{
	size_t i;
	json_t *view, *list;
	const char *destination;
	cleanup_json json_t *lists = json_object();
	json_t *summary = json_array();
	json_array_foreach (views, i, view) {
		destination = json_string_value(json_object_get(view, "destination"));
		json_t *theirs = json_object_get(lists, destination);
		if (!theirs)
			json_object_set_new(lists, destination, theirs = json_array());
		json_array_append(theirs, view);
	}
	json_object_foreach (lists, destination, list) {
		json_t *one = moves(list);
		json_object_set_new(one, "destination", json_string(destination));
		json_array_append_new(summary, one);
	}
	return summary;
}

static bool counts(const json_t *view)
{
	const char *role = json_string_value(json_object_get(view, "role"));
	return role && strcmp(role, "source") == 0 && json_is_true(json_object_get(view, "ended")) &&
	       json_is_string(json_object_get(view, "status")) && json_is_string(json_object_get(view, "destination"));
}

json_t *stats_of_migrations(const json_t *views)
{
	size_t i;
	json_t *view;
	cleanup_json json_t *ended = json_array();
	json_array_foreach (views, i, view)
		if (counts(view))
			json_array_append(ended, view);
	json_t *summary = moves(ended);
	json_object_set_new(summary, "promise", promises(ended));
	json_object_set_new(summary, "prediction",
			    json_pack("{s:o, s:o}", "start", predictions(ended, "start"), "first_pass", predictions(ended, "first_pass")));
	json_object_set_new(summary, "by_destination", by_destination(ended));
	return summary;
}
