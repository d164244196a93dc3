/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One migration as a picture; see plot.h. From the top: what it was, its phases as a coloured band, the decisions as numbered
 * marks, panels of curves over one axis of time, and the decisions in words. The parts are written one below the other, each
 * moving plot->y on; the panels' lower end must be known before, as passes and marks go through all of them.
 *
 * All words are escaped, as they come from elsewhere, and all numbers are brought into a range in which the sums cannot
 * overflow.
 */
#include "cli/plot.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/file.h"
#include "base/xalloc.h"
#include "cli/axis.h"
#include "cli/output.h"
#include "cli/report.h"
#include "cli/units.h"

/* All in units of SVG, which are pixels unless somebody enlarges it. */
#define WIDTH 1000
#define LEFT 92
#define PLOT_WIDTH (WIDTH - LEFT - 28)
#define LINE_HEIGHT 18
#define COLUMNS 132 /* characters of a line of text, as far as one can tell without its font */
#define CHARACTER_WIDTH 6.6
#define BAND_HEIGHT 22
#define MARK_RADIUS 8
#define MARK_ROWS_MAX 4
#define PANEL_TITLE_HEIGHT 34
#define NUMBER_MAX 1e15

#define COLOUR_TEXT "#1f2933"
#define COLOUR_MUTED "#66717f"
#define COLOUR_GRID "#dfe3e8"
/* For words that stand on lines. */
#define HALO "stroke=\"#ffffff\" stroke-width=\"4\" stroke-linejoin=\"round\" paint-order=\"stroke\""

struct plot {
	FILE *out;
	const json_t *migration, *phases, *points, *events;
	double end_ms; /* at the right edge */
	double y;      /* where the next part begins */
	double panels_top, panels_bottom;
};

struct curve {
	const char *key, *name, *colour;
	unsigned int first_pass; /* it is not known before */
};

#define CURVES_MAX 2
static const struct panel {
	const char *title;
	enum axis_scale scale;
	double height;
	bool steps; /* it is set, and stays so until the next time; else it is measured */
	struct curve curves[CURVES_MAX];
} panels[] = {
	{"memory that is left to send", AXIS_BYTES, 130, false, {{"remaining_bytes", NULL, "#3056c8", 0}}},
	{"rates", AXIS_RATE, 110, false,
	 {{"rate_bytes_per_s", "the link carries", "#1b7f5c", 0}, {"dirty_bytes_per_s", "the guest writes", "#c75a00", 2}}},
	{"throttle: of its processors' time the guest does without", AXIS_PERCENT, 80, true, {{"throttle_percent", NULL, "#b3261e", 0}}},
	{"pause limit: the longest that the rest of the memory may take", AXIS_LOG_MS, 100, true, {{"limit_ms", NULL, "#6a3fb5", 0}}},
};
#define PANEL_COUNT (sizeof(panels) / sizeof(panels[0]))

static double plot_number(const json_t *object, const char *key)
{
	return fmin(fmax(output_number(object, key), 0), NUMBER_MAX);
}

static double plot_x(const struct plot *plot, double at_ms)
{
	return LEFT + PLOT_WIDTH * fmin(at_ms / plot->end_ms, 1);
}

/* ---- words ---- */

static void plot_escape(FILE *out, const char *text, size_t length)
{
	cleanup_free char *safe = output_safe(text);
	for (const char *c = safe; c < safe + length && *c; c++)
		switch (*c) {
		case '&':
			fputs("&amp;", out);
			break;
		case '<':
			fputs("&lt;", out);
			break;
		case '>':
			fputs("&gt;", out);
			break;
		case '"':
			fputs("&quot;", out);
			break;
		default:
			/* U+FFFE and U+FFFF are no characters of XML. */
			if (strncmp(c, "\xef\xbf\xbe", 3) == 0 || strncmp(c, "\xef\xbf\xbf", 3) == 0) {
				fputc('?', out);
				c += 2;
			} else {
				fputc(*c, out);
			}
		}
}

/* `attributes` may be "". */
static void plot_text(const struct plot *plot, double x, double y, const char *attributes, const char *text)
{
	fprintf(plot->out, "<text x=\"%.1f\" y=\"%.1f\"%s%s>", x, y, *attributes ? " " : "", attributes);
	plot_escape(plot->out, text, strlen(text));
	fputs("</text>\n", plot->out);
}

/* How many bytes of the text make its first line: as many words as fit, or a part of one that is longer. */
static size_t plot_line_length(const char *text, size_t columns)
{
	size_t count = 0, length = 0, space = 0;
	for (; text[length]; length++) {
		if (((unsigned char)text[length] & 0xc0) != 0x80 && count++ == columns)
			return space ? space : length;
		if (text[length] == ' ')
			space = length;
	}
	return length;
}

/* Lines of text from plot->y on. */
static void plot_paragraph(struct plot *plot, const char *colour, const char *text)
{
	do {
		const size_t length = plot_line_length(text, COLUMNS);
		fprintf(plot->out, "<text x=\"%d\" y=\"%.1f\" fill=\"%s\">", LEFT, plot->y + 13, colour);
		plot_escape(plot->out, text, length);
		fputs("</text>\n", plot->out);
		plot->y += LINE_HEIGHT;
		text += length + strspn(text + length, " ");
	} while (*text);
}

static void plot_heading(struct plot *plot)
{
	const json_t *migration = plot->migration, *reason = json_object_get(migration, "reason");
	char date[OUTPUT_DATE_SIZE], total[UNITS_SIZE], pause[UNITS_SIZE], sent[UNITS_SIZE];
	const bool ended = json_is_true(json_object_get(migration, "ended"));
	cleanup_free char *title =
		xasprintf("%s from %s to %s: %s%s", output_string(migration, "vm"), output_string(migration, "source"),
			  output_string(migration, "destination"), output_string(migration, "status"), ended ? "" : ", goes on");
	plot_text(plot, LEFT, plot->y + 16, "font-size=\"19\" font-weight=\"bold\" fill=\"" COLOUR_TEXT "\"", title);
	plot->y += 28;
	const double pause_ms = plot_number(migration, "downtime_ms");
	cleanup_free char *figures =
		xasprintf("%s; total %s, %s%s%ssent %s; migration %s",
			  output_date(date, output_integer(migration, "started_at_ms")),
			  units_format_ms(total, plot_number(migration, "total_ms")), pause_ms > 0 ? "pause " : "",
			  pause_ms > 0 ? units_format_ms(pause, pause_ms) : "", pause_ms > 0 ? ", " : "",
			  units_format_bytes(sent, plot_number(migration, "wire_bytes")), output_string(migration, "id"));
	plot_paragraph(plot, COLOUR_MUTED, figures);
	cleanup_free char *promise = report_promise(migration);
	if (promise) {
		cleanup_free char *promised = xasprintf("Promised: %s", promise);
		plot_paragraph(plot, COLOUR_TEXT, promised);
	}
	if (json_is_object(reason)) {
		cleanup_free char *why = xasprintf("%s (%s)", output_message(reason, "message"), output_string(reason, "code"));
		plot_paragraph(plot, "#9c1c14", why);
	}
	plot->y += 12;
}

/* ---- phases ---- */

static const char *plot_phase_colour(const char *name)
{
	static const char *const colours[][2] = {
		{"checking", "#d3dae6"},  {"preparing", "#b9d2ee"},  {"copying", "#8fc1f0"},	{"switching", "#f4a58a"},
		{"completing", "#f7d08a"}, {"in-doubt", "#e9a6cf"}, {"recovering", "#cdb4ee"},
	};
	for (size_t i = 0; i < sizeof(colours) / sizeof(colours[0]); i++)
		if (strcmp(colours[i][0], name) == 0)
			return colours[i][1];
	return "#c4cad2";
}

/* Begin and end; one that goes on lasts to the right edge. */
static double plot_phase_span(const struct plot *plot, const json_t *phase, double *ret_end_ms)
{
	const double start_ms = plot_number(phase, "start_ms");
	*ret_end_ms = json_is_number(json_object_get(phase, "end_ms")) ? plot_number(phase, "end_ms") : plot->end_ms;
	if (*ret_end_ms < start_ms)
		*ret_end_ms = start_ms;
	return start_ms;
}

/* "copying 5.3 s, waiting for memory" */
static char *plot_phase_words(const struct plot *plot, const json_t *phase)
{
	double end_ms, start_ms = plot_phase_span(plot, phase, &end_ms);
	char length[UNITS_SIZE];
	const char *awaited = json_string_value(json_object_get(phase, "waited_for"));
	return xasprintf("%s %s%s%s", output_string(phase, "name"), units_format_ms(length, end_ms - start_ms),
			 awaited && *awaited ? ", waiting for " : "", awaited ? awaited : "");
}

static void plot_phases(struct plot *plot)
{
	size_t i;
	const json_t *phase;
	json_array_foreach (plot->phases, i, phase) {
		double end_ms, x = plot_x(plot, plot_phase_span(plot, phase, &end_ms));
		const char *name = output_string(phase, "name");
		const double width = fmax(plot_x(plot, end_ms) - x, 1.5);
		cleanup_free char *words = plot_phase_words(plot, phase);
		fprintf(plot->out, "<rect x=\"%.1f\" y=\"%.1f\" width=\"%.1f\" height=\"%d\" fill=\"%s\"><title>", x, plot->y, width,
			BAND_HEIGHT, plot_phase_colour(name));
		plot_escape(plot->out, words, strlen(words));
		fputs("</title></rect>\n", plot->out);
		if ((double)strlen(name) * CHARACTER_WIDTH + 8 < width)
			plot_text(plot, x + 5, plot->y + 15, "fill=\"" COLOUR_TEXT "\"", name);
	}
	plot->y += BAND_HEIGHT + 6;
	/* A list of them: many are too short for their names. */
	double x = LEFT;
	json_array_foreach (plot->phases, i, phase) {
		cleanup_free char *words = plot_phase_words(plot, phase);
		const double width = (double)strlen(words) * CHARACTER_WIDTH + 30;
		if (x > LEFT && x + width > LEFT + PLOT_WIDTH) {
			x = LEFT;
			plot->y += LINE_HEIGHT;
		}
		fprintf(plot->out, "<rect x=\"%.1f\" y=\"%.1f\" width=\"10\" height=\"10\" fill=\"%s\"/>\n", x, plot->y + 4,
			plot_phase_colour(output_string(phase, "name")));
		plot_text(plot, x + 15, plot->y + 13, "fill=\"" COLOUR_MUTED "\"", words);
		x += width;
	}
	plot->y += LINE_HEIGHT + 8;
}

/* ---- axes ---- */

/* The lowest (but 0) and the highest value in a panel, with what else is marked there. */
static void plot_extent(const struct plot *plot, const struct panel *panel, double *ret_lowest, double *ret_highest)
{
	const json_t *promise = json_object_get(plot->migration, "promise");
	double lowest = NUMBER_MAX, highest = 0;
	for (size_t c = 0; c < CURVES_MAX && panel->curves[c].key; c++) {
		size_t i;
		const json_t *point;
		json_array_foreach (plot->points, i, point) {
			const double value = plot_number(point, panel->curves[c].key);
			highest = fmax(highest, value);
			lowest = value > 0 ? fmin(lowest, value) : lowest;
		}
	}
	const double others[] = {plot_number(promise, "max_downtime_ms"), plot_number(plot->migration, "downtime_ms")};
	for (size_t i = 0; panel->scale == AXIS_LOG_MS && i < sizeof(others) / sizeof(others[0]); i++) {
		highest = fmax(highest, others[i]);
		lowest = others[i] > 0 ? fmin(lowest, others[i]) : lowest;
	}
	*ret_lowest = lowest;
	*ret_highest = highest;
}

static struct axis plot_axis(const struct plot *plot, const struct panel *panel)
{
	double lowest, highest;
	plot_extent(plot, panel, &lowest, &highest);
	struct axis axis = axis_fit(panel->scale, lowest, highest);
	axis.top = plot->y;
	axis.height = panel->height;
	double values[AXIS_VALUES_MAX];
	const size_t count = axis_values(&axis, values);
	for (size_t i = 0; i < count; i++) {
		char label[UNITS_SIZE];
		const double y = axis_y(&axis, values[i]);
		fprintf(plot->out, "<path d=\"M%d %.1fh%d\" stroke=\"" COLOUR_GRID "\"/>\n", LEFT, y, PLOT_WIDTH);
		plot_text(plot, LEFT - 8, y + 4, "text-anchor=\"end\" fill=\"" COLOUR_MUTED "\"",
			  axis_format(label, &axis, values[i]));
	}
	return axis;
}

static void plot_time_axis(struct plot *plot)
{
	const double step_ms = axis_time_step_ms(plot->end_ms);
	for (int i = 0; i * step_ms <= plot->end_ms; i++) {
		char label[UNITS_SIZE] = "0";
		const double x = plot_x(plot, i * step_ms);
		if (i > 0)
			units_format_ms(label, i * step_ms);
		fprintf(plot->out, "<path d=\"M%.1f %.1fv5\" stroke=\"" COLOUR_MUTED "\"/>\n", x, plot->y);
		plot_text(plot, x, plot->y + 18, "text-anchor=\"middle\" fill=\"" COLOUR_MUTED "\"", label);
	}
	fprintf(plot->out, "<path d=\"M%d %.1fh%d\" stroke=\"" COLOUR_MUTED "\"/>\n", LEFT, plot->y, PLOT_WIDTH);
	plot->y += 34;
}

/* ---- curves ---- */

/* Write the curve's path; returns how many points it goes through. */
static size_t plot_path(const struct plot *plot, FILE *out, const struct panel *panel, const struct curve *curve,
			const struct axis *axis, double *ret_first_x)
{
	size_t i, count = 0;
	const json_t *point;
	json_array_foreach (plot->points, i, point) {
		if (plot_number(point, "pass") < curve->first_pass)
			continue;
		const double x = plot_x(plot, plot_number(point, "at_ms"));
		const double y = axis_y(axis, plot_number(point, curve->key));
		if (count++ == 0)
			fprintf(out, "M%.1f %.1fh0.1", x, y); /* a line also where it is all */
		else if (panel->steps)
			fprintf(out, "H%.1fV%.1f", x, y);
		else
			fprintf(out, "L%.1f %.1f", x, y);
		if (count == 1)
			*ret_first_x = x;
	}
	return count;
}

static void plot_curve(const struct plot *plot, const struct panel *panel, const struct curve *curve, const struct axis *axis)
{
	cleanup_free char *path = NULL;
	size_t size;
	double first_x = LEFT;
	FILE *out = open_memstream(&path, &size);
	if (!out)
		abort();
	const size_t count = plot_path(plot, out, panel, curve, axis, &first_x);
	fclose(out);
	if (count == 0)
		return;
	if (!curve->name) /* alone in its panel */
		fprintf(plot->out, "<path d=\"%sV%.1fH%.1fZ\" fill=\"%s\" fill-opacity=\"0.12\"/>\n", path,
			axis->top + axis->height, first_x, curve->colour);
	/* The ends are round, so that a single point is a dot. */
	fprintf(plot->out, "<path d=\"%s\" fill=\"none\" stroke=\"%s\" stroke-width=\"%s\" stroke-linejoin=\"round\""
		" stroke-linecap=\"round\"/>\n", path, curve->colour, count == 1 ? "6" : "1.8");
}

/* What was promised beside what came of it. */
static void plot_pause(const struct plot *plot, const struct axis *axis)
{
	const json_t *promise = json_object_get(plot->migration, "promise");
	const double promised_ms = plot_number(promise, "max_downtime_ms"), pause_ms = plot_number(plot->migration, "downtime_ms");
	char length[UNITS_SIZE];
	if (promised_ms > 0) {
		const double y = axis_y(axis, promised_ms);
		cleanup_free char *words = xasprintf("promised: %s, all of the pause", units_format_ms(length, promised_ms));
		fprintf(plot->out, "<path d=\"M%d %.1fh%d\" stroke=\"" COLOUR_TEXT "\" stroke-dasharray=\"5 4\"/>\n", LEFT, y,
			PLOT_WIDTH);
		plot_text(plot, LEFT + 6, y - 4, HALO " fill=\"" COLOUR_TEXT "\"", words);
	}
	size_t i;
	const json_t *phase;
	json_array_foreach (plot->phases, i, phase) {
		if (pause_ms <= 0 || strcmp(output_string(phase, "name"), "switching") != 0)
			continue;
		const double x = plot_x(plot, plot_number(phase, "start_ms")), y = axis_y(axis, pause_ms);
		cleanup_free char *words = xasprintf("paused for %s", units_format_ms(length, pause_ms));
		fprintf(plot->out, "<circle cx=\"%.1f\" cy=\"%.1f\" r=\"4.5\" fill=\"#d1360f\"/>\n", x, y);
		plot_text(plot, x - 9, y + 4, HALO " text-anchor=\"end\" fill=\"#b02c0a\" font-weight=\"bold\"", words);
	}
}

static void plot_panel(struct plot *plot, const struct panel *panel)
{
	double x = LEFT;
	plot_text(plot, x, plot->y + PANEL_TITLE_HEIGHT - 9, "fill=\"" COLOUR_TEXT "\" font-weight=\"bold\"", panel->title);
	x += (double)strlen(panel->title) * CHARACTER_WIDTH + 24;
	plot->y += PANEL_TITLE_HEIGHT;
	const struct axis axis = plot_axis(plot, panel);
	for (size_t i = 0; i < CURVES_MAX && panel->curves[i].key; i++) {
		const struct curve *curve = &panel->curves[i];
		plot_curve(plot, panel, curve, &axis);
		if (!curve->name)
			continue;
		fprintf(plot->out, "<path d=\"M%.1f %.1fh16\" stroke=\"%s\" stroke-width=\"3\"/>\n", x, axis.top - 13, curve->colour);
		plot_text(plot, x + 21, axis.top - 9, "fill=\"" COLOUR_MUTED "\"", curve->name);
		x += (double)strlen(curve->name) * CHARACTER_WIDTH + 44;
	}
	if (panel->scale == AXIS_LOG_MS)
		plot_pause(plot, &axis);
	plot->y += panel->height;
}

/* ---- passes and decisions, through all panels ---- */

static void plot_passes(const struct plot *plot)
{
	double pass = 0, line_x = 0, label_x = 0;
	size_t i;
	const json_t *point;
	json_array_foreach (plot->points, i, point) {
		const double x = plot_x(plot, plot_number(point, "at_ms"));
		if (plot_number(point, "pass") == pass)
			continue;
		pass = plot_number(point, "pass");
		if (x - line_x < 2)
			continue; /* a grey area would say nothing */
		line_x = x;
		fprintf(plot->out, "<path d=\"M%.1f %.1fV%.1f\" stroke=\"" COLOUR_GRID "\"/>\n", x, plot->panels_top + PANEL_TITLE_HEIGHT,
			plot->panels_bottom);
		if (x - label_x < 26)
			continue;
		label_x = x;
		char label[UNITS_SIZE];
		snprintf(label, sizeof(label), "%s%.0f", pass <= 1 ? "pass " : "", pass);
		plot_text(plot, x + 2, plot->panels_top + PANEL_TITLE_HEIGHT + 9, "font-size=\"9\" fill=\"" COLOUR_MUTED "\"", label);
	}
}

/* Marks that are close to each other stand in rows: the first that is free at x, or the last. */
static size_t plot_mark_row(double last_x[MARK_ROWS_MAX], double x)
{
	size_t row = 0;
	while (row + 1 < MARK_ROWS_MAX && x - last_x[row] < 2 * MARK_RADIUS + 1)
		row++;
	last_x[row] = x;
	return row;
}

static double plot_marks_height(const struct plot *plot)
{
	double last_x[MARK_ROWS_MAX] = {0};
	size_t i, rows = 0;
	const json_t *event;
	json_array_foreach (plot->events, i, event) {
		const size_t row = plot_mark_row(last_x, plot_x(plot, plot_number(event, "at_ms")));
		rows = row + 1 > rows ? row + 1 : rows;
	}
	return (double)rows * (2 * MARK_RADIUS + 2);
}

static void plot_marks(const struct plot *plot)
{
	double last_x[MARK_ROWS_MAX] = {0};
	size_t i;
	const json_t *event;
	json_array_foreach (plot->events, i, event) {
		const double x = plot_x(plot, plot_number(event, "at_ms"));
		const size_t row = plot_mark_row(last_x, x);
		const double y = plot->y + (double)row * (2 * MARK_RADIUS + 2) + MARK_RADIUS;
		fprintf(plot->out,
			"<path d=\"M%.1f %.1fV%.1f\" stroke=\"" COLOUR_TEXT "\" stroke-opacity=\"0.3\" stroke-dasharray=\"2 3\"/>\n"
			"<circle cx=\"%.1f\" cy=\"%.1f\" r=\"%d\" fill=\"" COLOUR_TEXT "\"/>\n"
			"<text x=\"%.1f\" y=\"%.1f\" text-anchor=\"middle\" font-size=\"9.5\" fill=\"#ffffff\">%zu</text>\n",
			x, y, plot->panels_bottom, x, y, MARK_RADIUS, x, y + 3.5, i + 1);
	}
}

static void plot_decisions(struct plot *plot, const json_t *timeline)
{
	const long long lost = (long long)output_integer(timeline, "events_lost");
	size_t i;
	const json_t *event;
	json_array_foreach (plot->events, i, event) {
		char number[UNITS_SIZE], at[UNITS_SIZE];
		snprintf(number, sizeof(number), "%zu", i + 1);
		cleanup_free char *words = xasprintf("+%s: %s", units_format_ms(at, plot_number(event, "at_ms")),
						     output_message(event, "words"));
		plot_text(plot, LEFT - 10, plot->y + 13, "text-anchor=\"end\" font-weight=\"bold\" fill=\"" COLOUR_TEXT "\"", number);
		plot_paragraph(plot, COLOUR_TEXT, words);
	}
	if (lost > 0) {
		cleanup_free char *words = xasprintf("(before the last one, %lld more that have not been kept)", lost);
		plot_paragraph(plot, COLOUR_MUTED, words);
	}
}

/* ---- the whole ---- */

/* The latest moment that is known of. */
static double plot_end_ms(const struct plot *plot)
{
	double end_ms = fmax(plot_number(plot->migration, "total_ms"), 1);
	size_t i;
	const json_t *one;
	json_array_foreach (plot->phases, i, one)
		end_ms = fmax(end_ms, fmax(plot_number(one, "start_ms"), plot_number(one, "end_ms")));
	json_array_foreach (plot->points, i, one)
		end_ms = fmax(end_ms, plot_number(one, "at_ms"));
	json_array_foreach (plot->events, i, one)
		end_ms = fmax(end_ms, plot_number(one, "at_ms"));
	return end_ms;
}

static void plot_panels(struct plot *plot)
{
	double height = 0;
	for (size_t i = 0; i < PANEL_COUNT; i++)
		height += PANEL_TITLE_HEIGHT + panels[i].height;
	plot->panels_top = plot->y + plot_marks_height(plot);
	plot->panels_bottom = plot->panels_top + height;
	plot_passes(plot);
	plot_marks(plot);
	plot->y = plot->panels_top;
	for (size_t i = 0; i < PANEL_COUNT; i++)
		plot_panel(plot, &panels[i]);
	plot_time_axis(plot);
}

/* In place of panels that would be empty. */
static void plot_nothing(struct plot *plot)
{
	const bool there = strcmp(output_string(plot->migration, "role"), "destination") == 0;
	cleanup_free char *words = there ? xasprintf("This is the destination's record. The copy is measured at the source: ask %s.",
						     output_string(plot->migration, "source"))
					 : xstrdup("Nothing of a copy has been measured.");
	plot_time_axis(plot);
	plot_paragraph(plot, COLOUR_MUTED, words);
}

char *plot_svg(const json_t *migration, const json_t *timeline)
{
	cleanup_free char *body = NULL;
	size_t size;
	struct plot plot = {
		.out = open_memstream(&body, &size),
		.migration = migration,
		.phases = json_object_get(migration, "phases"),
		.points = json_object_get(timeline, "points"),
		.events = json_object_get(timeline, "events"),
		.y = 22,
	};
	if (!plot.out)
		abort();
	plot.end_ms = plot_end_ms(&plot);
	plot_heading(&plot);
	plot_phases(&plot);
	if (json_array_size(plot.points) > 0)
		plot_panels(&plot);
	else
		plot_nothing(&plot);
	plot_decisions(&plot, timeline);
	fclose(plot.out);
	const int height = (int)plot.y + 16;
	/* With a ground of its own: viewers show what is transparent as white or as black. */
	return xasprintf("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n"
			 "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"%d\" height=\"%d\" viewBox=\"0 0 %d %d\""
			 " font-family=\"Helvetica, Arial, 'Liberation Sans', sans-serif\" font-size=\"12\">\n"
			 "<rect width=\"100%%\" height=\"100%%\" fill=\"#ffffff\"/>\n%s</svg>\n",
			 WIDTH, height, WIDTH, height, body);
}

/* ---- the file ---- */

static int plot_write_through(const char *path, const char *svg, struct error **e)
{
	cleanup_fclose FILE *out = fopen(path, "we");
	if (!out || fputs(svg, out) < 0 || fflush(out) != 0)
		return error_set_errno(e, ERROR_SYSTEM, errno, "cannot write '%s'", path);
	return 0;
}

int plot_write(const char *path, const char *svg, struct error **e)
{
	if (strcmp(path, "-") == 0) {
		fputs(svg, stdout); /* whether it could be written is asked at the end */
		return 0;
	}
	struct stat st;
	const bool there = stat(path, &st) == 0;
	/* A pipe or a device must not be replaced by a file. */
	if (there && !S_ISREG(st.st_mode))
		return plot_write_through(path, svg, e);
	cleanup_free char *file = there ? realpath(path, NULL) : NULL; /* behind a link, what it leads to */
	const mode_t mask = umask(0);
	umask(mask);
	return file_write_atomic(file ? file : path, svg, strlen(svg), there ? st.st_mode & 0777 : 0666 & ~mask, e);
}
