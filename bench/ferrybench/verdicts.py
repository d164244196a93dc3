# SPDX-License-Identifier: Apache-2.0
"""What recorded moves say about promises: a pure function of the records, so that old ones can be judged anew."""

import math
import statistics

from .measure import CAPPED, COMPLETED, STAYED

# The client hears a guest each millisecond, over a network and on cores that are shared.
CLIENT_TOLERANCE_MS = 10
PREDICTIONS = (("at start", "predicted"), ("after the first pass", "predicted_first_pass"))
FAILS = "will-not-converge"
# Why a move is given up that has been found not to converge in time; anything else proves no prediction wrong.
NOT_IN_TIME = ("migration.not_converging", "migration.deadline", "migration.max_downtime")


def _longest_pause_ms(draw):
    return max(draw["max_downtime_ms"], draw["pause_ms"] or 0)


def judge(record):
    """Of one move. `kept` and `said` are None where there was nothing to keep, or nothing was said."""
    draw, move = record["draw"], record["move"]
    reported = move["reported"] or {}
    allowed_ms, reason = _longest_pause_ms(draw), reported.get("reason") or {}
    completed = move["outcome"] == COMPLETED
    reasoned = move["outcome"] == STAYED and bool(reason.get("code") and reason.get("message"))
    paused_ms = reported.get("downtime_ms") or 0
    deadline = None
    if draw["deadline_ms"]:
        deadline = reasoned if not completed else (reported.get("total_ms") or 0) <= draw["deadline_ms"]
    return {
        "number": record["number"], "completed": completed, "capped": move["outcome"] == CAPPED, "reasoned": reasoned,
        "code": reason.get("code"), "allowed_ms": allowed_ms, "paused_ms": paused_ms, "silent_ms": move["silent"],
        "steady": move["before"]["steady"], "dead": move["dead"], "wrong": move.get("guest", {}).get("pages_wrong", 0),
        "said": (reported.get("promise") or {}).get("kept"),
        "pause_kept": paused_ms <= allowed_ms,
        # A guest that was silent now and then before proves nothing by being silent.
        "pause_kept_by_client": None if move["silent"] is None or not move["before"]["steady"]
        else move["silent"] <= allowed_ms + CLIENT_TOLERANCE_MS,
        "deadline_kept": deadline,
        "over_deadline_ms": (reported.get("total_ms") or 0) - draw["deadline_ms"] if draw["deadline_ms"] else None,
    }


def fixed_keeps(draw, move):
    """Whether a move with a fixed setting was all that had been promised."""
    reported = move["reported"] or {}
    return bool(move["outcome"] == COMPLETED
                and (reported.get("downtime_ms") or 0) <= _longest_pause_ms(draw)
                and (move["silent"] or 0) <= _longest_pause_ms(draw) + CLIENT_TOLERANCE_MS
                and (not draw["deadline_ms"] or (reported.get("total_ms") or 0) <= draw["deadline_ms"]))


def _share(part, whole):
    return None if not whole else part / whole


def _percentile(values, part):
    """The smallest value that so many of them do not exceed."""
    return sorted(values)[math.ceil(len(values) * part) - 1] if values else None


def fixed_share(records, judged):
    """Of the moves in which some fixed setting keeps the promise, the part that Ferry completed. How many of those that it
    completed these are is known from a sample."""
    completed = [record for record, verdict in zip(records, judged) if verdict["completed"]]
    tried = [record for record in completed if record["fixed"]]
    missed = [record["number"] for record, verdict in zip(records, judged) if not verdict["completed"]
              and any(fixed_keeps(record["draw"], one["move"]) for one in record["fixed"])]
    sampled = sum(any(fixed_keeps(record["draw"], one["move"]) for one in record["fixed"]) for record in tried)
    both = len(completed) * sampled / len(tried) if tried else None
    return {"missed": missed, "tried": len(tried), "sampled": sampled,
            "share": None if both is None else _share(both, both + len(missed))}


def prediction_errors(records, key):
    """Errors of the total time, as parts of what it was, of moves that took place and were expected to; and how often it
    was right whether they would."""
    errors, right, known = [], 0, 0
    for record in records:
        reported = record["move"]["reported"] or {}
        predicted, completed = reported.get(key), record["move"]["outcome"] == COMPLETED
        if not predicted or not (completed or (reported.get("reason") or {}).get("code") in NOT_IN_TIME):
            continue
        known += 1
        right += (predicted["verdict"] == FAILS) != completed
        if completed and predicted["verdict"] != FAILS and reported.get("total_ms"):
            errors.append(abs(predicted["total_ms"] - reported["total_ms"]) / reported["total_ms"])
    return {"moves": len(errors), "median": statistics.median(errors) if errors else None,
            "p90": _percentile(errors, 0.9), "verdicts": known, "verdict_right": _share(right, known)}


def summarise(records):
    """Everything, as one dictionary."""
    judged = [judge(record) for record in records]
    with_deadline = [one for one in judged if one["deadline_kept"] is not None]
    heard = [one for one in judged if one["pause_kept_by_client"] is not None]
    overruns = [one for one in judged if not one["pause_kept"] or one["pause_kept_by_client"] is False]
    return {
        "moves": len(judged), "steady": sum(one["steady"] for one in judged),
        "completed": sum(one["completed"] for one in judged), "rolled_back": sum(one["reasoned"] for one in judged),
        "capped": [one["number"] for one in judged if one["capped"]],
        "dead": [one["number"] for one in judged if one["dead"]],
        "pages_wrong": [one["number"] for one in judged if one["wrong"]],
        "kept": _share(sum(one["pause_kept"] for one in judged), len(judged)),
        "heard": len(heard), "kept_by_client": _share(sum(one["pause_kept_by_client"] for one in heard), len(heard)),
        "overruns": [one["number"] for one in overruns],
        "overruns_said": _share(sum(one["said"] is False for one in overruns), len(overruns)),
        "with_deadline": len(with_deadline),
        "deadline_kept": _share(sum(one["deadline_kept"] for one in with_deadline), len(with_deadline)),
        "deadline_broken": [one["number"] for one in with_deadline if not one["deadline_kept"]],
        "fixed": fixed_share(records, judged),
        "predictions": {name: prediction_errors(records, key) for name, key in PREDICTIONS},
    }


def _percent(share):
    return "-" if share is None else f"{100 * share:.1f} %"


def _which(numbers):
    return f" (moves {', '.join(map(str, numbers))})" if numbers else ""


def lines(summary):
    """The same for people."""
    fixed = summary["fixed"]
    found = [
        f"moves: {summary['moves']}, of which {summary['completed']} completed and {summary['rolled_back']} were rolled back "
        f"with a reason; {summary['moves'] - summary['steady']} began on a guest that did not get steady (busy machine)",
        f"pause kept: {_percent(summary['kept'])} by what Ferry measured, {_percent(summary['kept_by_client'])} by what the "
        f"client heard (and {CLIENT_TOLERANCE_MS} ms) of the {summary['heard']} that were steady before",
        f"overruns, by either: {len(summary['overruns'])}{_which(summary['overruns'])}, of which Ferry says so: "
        f"{_percent(summary['overruns_said'])}",
        f"deadline kept or rolled back with a reason: {_percent(summary['deadline_kept'])} of {summary['with_deadline']}"
        f"{_which(summary['deadline_broken'])}",
        f"completed where a fixed setting keeps the promise: {_percent(fixed['share'])} (a fixed setting did in "
        f"{len(fixed['missed'])} that Ferry gave up{_which(fixed['missed'])}, and in {fixed['sampled']} of {fixed['tried']} "
        "tried that it completed)",
    ]
    for name, errors in summary["predictions"].items():
        found.append(f"predicted {name}: total time off by {_percent(errors['median'])} in the median, "
                     f"{_percent(errors['p90'])} at the 90th percentile, of {errors['moves']}; whether it will converge right "
                     f"in {_percent(errors['verdict_right'])} of {errors['verdicts']}")
    for name, words in (("capped", "had not ended when the time was over"), ("dead", "left a dead guest"),
                        ("pages_wrong", "left wrong pages")):
        if summary[name]:
            found.append(f"{len(summary[name])} {words}{_which(summary[name])}")
    return found
