# SPDX-License-Identifier: Apache-2.0
"""Statistics: from single moves to rows of medians and ratios, and to the printed table."""

import statistics

UNITS = {"wall": "ms", "qemu": "ms", "overhead": "ms", "downtime": "ms", "blackout": "ms", "bytes": "B", "cpu": "s",
         "lost_work": "s", "completed": "share"}
DIGITS = {"ms": 1, "B": 0, "s": 2, "share": 2}
# Of an overview: what tells one way to converge from another.
OVERVIEW = ("completed", "wall", "bytes", "downtime", "blackout", "lost_work", "cpu")


def _round(value, unit):
    return None if value is None else round(value, DIGITS[unit]) if DIGITS[unit] else int(round(value))


def median(moves, metric):
    values = [move[metric] for move in moves if move.get(metric) is not None]
    return statistics.median(values) if values else None


def make(case, variant, moves, floor):
    """moves: contender's name → list of measured moves. One row for each metric and baseline; a row for each metric
    alone when no baseline was measured."""
    ferry = moves.get("ferry", [])
    rows = []
    for baseline_name in [name for name in moves if name != "ferry"] or [None]:
        baseline = moves.get(baseline_name, [])
        for metric, unit in UNITS.items():
            ours, theirs = median(ferry, metric), median(baseline, metric)
            rows.append({
                "case": case, "variant": variant, "metric": metric, "unit": unit,
                "ferry": _round(ours, unit), "baseline_name": baseline_name, "baseline": _round(theirs, unit),
                "ratio": round(ours / theirs, 4) if ours is not None and theirs else None,
                "runs": min(len(side) for side in (ferry, baseline) if side) if ferry or baseline else 0,
                "floor": _round((floor or {}).get(metric), unit),
            })
    return rows


def make_variants(case, moves, baselines, floor):
    """Each of Ferry's variants beside each of the baselines that were measured; the baselines alone when no variant was."""
    theirs = {name: found for name, found in moves.items() if any(name == one.name for one in baselines)}
    found = []
    for name in moves:
        if name not in theirs:
            found += make(case, name, {"ferry": moves[name], **theirs}, floor)
    return found or make(case, None, theirs, floor)


def human(value, unit):
    if value is None:
        return "-"
    if unit == "B":
        return f"{value / 2**20:.1f} MiB"
    if unit == "s":
        return f"{value:.2f} s"
    if unit == "share":
        return f"{100 * value:.0f} %"
    return f"{value:.0f} ms" if abs(value) >= 100 else f"{value:.1f} ms"


def _spread(moves, metric, unit):
    values = [move[metric] for move in moves if move.get(metric) is not None]
    if len(values) < 2:
        return ""
    low, high = human(min(values), unit), human(max(values), unit)
    return f" ({low.split()[0]}..{high.split()[0]})"


def table(rows, moves):
    """Lines of text for the rows of one case and variant: a line for each metric, a pair of columns for each baseline."""
    baselines = list(dict.fromkeys(row["baseline_name"] for row in rows))
    by_key = {(row["metric"], row["baseline_name"]): row for row in rows}
    header = ["metric", "ferry"]
    for name in baselines:
        header += [name, "ratio"] if name else []
    header.append("floor")
    lines = [header]
    for metric, unit in UNITS.items():
        first = by_key[metric, baselines[0]]
        line = [metric, human(first["ferry"], unit) + _spread(moves.get("ferry", []), metric, unit)]
        for name in baselines:
            if name:
                row = by_key[metric, name]
                line += [human(row["baseline"], unit) + _spread(moves[name], metric, unit),
                         "-" if row["ratio"] is None else f"{row['ratio']:.2f}"]
        line.append(human(first["floor"], unit))
        lines.append(line)
    return _align(lines)


def overview(moves, floor):
    """Lines of text for many contenders: one each, a column a metric."""
    lines = [["contender", *OVERVIEW]]
    for name, found in moves.items():
        lines.append([name, *(human(median(found, metric), UNITS[metric]) + _spread(found, metric, UNITS[metric])
                              for metric in OVERVIEW)])
    if floor:
        lines.append(["floor", *(human(floor.get(metric), UNITS[metric]) for metric in OVERVIEW)])
    return _align(lines)


def _align(lines):
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return ["  ".join(text.ljust(width) if i == 0 else text.rjust(width)
                      for i, (text, width) in enumerate(zip(line, widths))) for line in lines]
