#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Checks the models of the handover with spin, and ends with one line, "N passed, N failed".

    tests/model/check.py [--all] [--only TEXT] [-j N]

Every claim must hold in every run that checks it, exhaustively; every mutilated model must break a claim that is named here;
and the steps that the models take must be those of src/migration/handover.tbl, no more and no less. --all adds runs with wider
bounds. What spin made of each run, and the trail of what broke, is in build/model/RUN.
"""
import argparse
import concurrent.futures
import os
import pathlib
import re
import shutil
import subprocess
import sys
import time

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
OUTPUT = ROOT / os.environ.get("BUILD", "build") / "model"
MEMORY_MIB = 1800 # for each of two at a time

TWO_RUN, STALE, OWNED, ONE_OWNER = "never two running", "nothing stale runs", "what runs is owned", "one owner"
NEVER_LOST, TOMBSTONE, RELEASED = "never lost", "a tombstone holds", "released: the destination has taken"
ONLY_WHOLE, ONE_JOB, ENDS = "the only whole state is kept", "one job a VM", "every migration ends"
NO_PAGE, BACK = "no page is lost", "every ferryd comes back"
DOUBT, RECOVERING = "nothing but in-doubt waits", "nothing but recovering waits"
COMMON = (TWO_RUN, STALE, OWNED, ONE_OWNER, NEVER_LOST, TOMBSTONE, RELEASED)
CLAIMS = {"precopy": (*COMMON, ONLY_WHOLE, ONE_JOB), "postcopy": (*COMMON, NO_PAGE)}
LIVE_CLAIMS = {"precopy": (ENDS, DOUBT, BACK), "postcopy": (ENDS, RECOVERING, BACK)}
ALL_CLAIMS = (*COMMON, ONLY_WHOLE, ONE_JOB, NO_PAGE, ENDS, DOUBT, RECOVERING, BACK)


class Run:
    """One model with one set of bounds; mutilated if `expected` says which claims then break."""

    def __init__(self, name, model, bounds, live=False, expected=(), wide=False):
        self.name, self.model, self.live, self.expected, self.wide = name, model, live, expected, wide
        self.options = [f"-D{word}" for word in bounds.split()] + (["-DLIVE"] if live else [])
        self.folder = OUTPUT / re.sub(r"\W+", "-", name)
        self.broken, self.steps, self.complete, self.trail = [], set(), False, None
        self.states = self.transitions = 0
        self.seconds, self.output = 0.0, ""

    def claims(self):
        return (*CLAIMS[self.model], *(LIVE_CLAIMS[self.model] if self.live else ()))

    def command(self, *words, **kwargs):
        return subprocess.run(words, cwd=self.folder, text=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT, check=False, **kwargs)

    def execute(self):
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        source = HERE / f"{self.model}.pml"
        made = self.command("spin", "-a", *self.options, str(source))
        if not (self.folder / "pan.c").exists():
            self.output = made.stdout
            return self
        # A cycle in which nothing ends would be one that never comes to rest: NP looks for all of them.
        kind = ["-DNP", "-DNOFAIR"] if self.live else ["-DSAFETY"]
        built = self.command("gcc", "-O1" if self.expected else "-O2", "-w", "-DCOLLAPSE", "-DVECTORSZ=2048", f"-DMEMLIM={MEMORY_MIB}",
                             *kind, "-o", "pan", "pan.c")
        if built.returncode != 0:
            self.output = built.stdout
            return self
        began = time.monotonic()
        self.output = self.command("./pan", "-n", "-m100000", *(["-l"] if self.live else ["-E"])).stdout
        self.seconds = time.monotonic() - began
        self.read()
        return self

    def read(self):
        def number(pattern):
            found = re.search(pattern, self.output)
            return int(found[1]) if found else 0

        self.states, self.transitions = number(r"(\d+) states, stored"), number(r"(\d+) transitions")
        self.broken = re.findall(r"^claim broken: (.*)$", self.output, re.MULTILINE)
        if "non-progress cycle" in self.output and re.search(r"^pan:\d+: non-progress cycle", self.output, re.MULTILINE):
            self.broken.append(ENDS)
        if not self.broken and re.search(r"^pan:\d+:", self.output, re.MULTILINE):
            self.broken.append(re.search(r"^pan:\d+: (.*)$", self.output, re.MULTILINE)[1])
        self.steps = {tuple(step.split()) for step in re.findall(r"^step (.*)$", self.output, re.MULTILINE)}
        self.complete = "errors: 0" in self.output and not re.search(
            r"Search not completed|max search depth too small|out of memory|reached -D?MEMLIM|hash-compact", self.output)
        self.trail = next(iter(self.folder.glob("*.trail")), None)

    def how_to_read(self):
        return f"tools/model-trail tests/model/{self.model}.pml {self.trail} {' '.join(self.options)}" if self.trail else self.output[-2000:]


def load_runs():
    """runs.tbl: what is run, one line each: kind | name | model | bounds | claims that break (mutilated only)."""
    runs = []
    for line in (HERE / "runs.tbl").read_text().splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        kind, name, model, bounds, *expected = (part.strip() for part in line.split("|"))
        breaks = tuple(part.strip() for part in expected[0].split(",")) if expected and expected[0] else ()
        unknown = [claim for claim in breaks if claim not in ALL_CLAIMS]
        if unknown or kind.split()[0] not in ("holds", "ends", "breaks") or kind.startswith("breaks") != bool(breaks):
            raise SystemExit(f"runs.tbl: cannot make sense of: {line}")
        runs.append(Run(name, model, bounds, live="ends" in kind, expected=breaks, wide="wide" in kind))
    return runs


def table_steps():
    text = (ROOT / "src" / "migration" / "handover.tbl").read_text()
    return set(re.findall(r"^HANDOVER_STEP\(HANDOVER_(\w+), HANDOVER_(\w+),", text, re.MULTILINE))


def report_mutilations(count):
    """A mutilation that no run uses would be forgotten; one that no model knows would mutilate nothing."""
    known = {name for path in (*HERE.glob("*.pml"), *HERE.glob("*.h")) for name in re.findall(r"\bMUTILATE_\w+", path.read_text())
             if name != "MUTILATE_"}
    used = set(re.findall(r"\bMUTILATE_\w+", (HERE / "runs.tbl").read_text()))
    count.say(known == used, f"mutilations: {len(known & used)} known to a model and used by a run", f"only one of both: {known ^ used}")


class Count:
    def __init__(self):
        self.passed = self.failed = 0

    def say(self, ok, line, detail=""):
        print(line, flush=True)
        if ok:
            self.passed += 1
        else:
            self.failed += 1
            print(f"--- FAILED\n{detail}\n---", flush=True)


def report_claims(count, runs):
    for claim in ALL_CLAIMS:
        of = [run for run in runs if not run.expected and claim in run.claims()]
        if not of:
            continue
        bad = [run for run in of if claim in run.broken]
        figures = f"{sum(r.states for r in of)} states, {sum(r.transitions for r in of)} transitions, {sum(r.seconds for r in of):.1f} s"
        whole = all(run.complete for run in of)
        count.say(not bad and whole, f"{claim}: {'ERROR' if bad else 'no error' if whole else 'NOT ALL WAS SEARCHED'}, {figures}",
                  "\n".join(f"{run.name}: {run.how_to_read()}" for run in bad))


def report_steps(count, runs):
    table = table_steps()
    taken = {step[1:] for run in runs if not run.expected for step in run.steps}
    never, unknown = table - taken, taken - table
    words = [f"{a.lower()} -> {b.lower()} is in handover.tbl, and no model takes it" for a, b in sorted(never)]
    words += [f"{a.lower()} -> {b.lower()} is taken by a model, and not in handover.tbl" for a, b in sorted(unknown)]
    count.say(not words, f"steps of handover.tbl: {len(table & taken)} of {len(table)} taken, {len(unknown)} others", "\n".join(words))


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--all", action="store_true", help="wider bounds as well")
    parser.add_argument("--only", default="", help="runs whose name has this text")
    parser.add_argument("-j", type=int, default=min(2, os.cpu_count() or 1), help="runs at a time")
    arguments = parser.parse_args()
    if not shutil.which("spin"):
        raise SystemExit("spin is not installed; tools/install-packages does it")
    runs = [run for run in load_runs() if (arguments.all or not run.wide) and arguments.only in run.name]
    count = Count()
    with concurrent.futures.ThreadPoolExecutor(arguments.j) as pool:
        for run in pool.map(Run.execute, runs):
            figures = f"{run.states} states, {run.transitions} transitions, {run.seconds:.1f} s"
            if run.expected:
                found = [claim for claim in run.broken if claim in run.expected]
                count.say(bool(found), f"mutilated {run.name}: {'error found: ' + found[0] if found else 'NO ERROR FOUND'} ({figures})",
                          f"expected one of {run.expected}, broken: {run.broken}\n{run.how_to_read()}")
            else:
                count.say(run.complete, f"model {run.name}: {'all searched' if run.complete else 'ERROR'}, {figures}",
                          f"broken: {run.broken}\n{run.how_to_read()}")
    report_claims(count, runs)
    if not arguments.only:
        report_steps(count, runs)
        report_mutilations(count)
    print(f"{count.passed} passed, {count.failed} failed")
    return 1 if count.failed else 0


if __name__ == "__main__":
    sys.exit(main())
