# SPDX-License-Identifier: Apache-2.0
"""What bench/compare and bench/converge have in common: options, one contest after the other, rows and tables."""

import json
import os
import signal
import subprocess
import sys
import time

from ferrylab import LabError
from ferrylab import qemu as lab_qemu
from ferrylab.guest import GuestError

from . import machine
from .contest import Contest


def add_options(parser, cases, runs):
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"such as {cases[0].name}")
    parser.add_argument("-n", type=int, metavar="RUNS", dest="runs", help=f"moves of each kind (default {runs})")
    parser.add_argument("--json", metavar="FILE", help="write the rows here")
    parser.add_argument("--moves", metavar="FILE", help="write every single move here, with all that is known of it")
    parser.add_argument("--no-floor", action="store_true", help="leave the floor out")
    parser.add_argument("--cap", type=float, metavar="SECONDS", help="abort what does not end after so long (default 600)")
    add_machine_options(parser)


def add_machine_options(parser):
    parser.add_argument("--reap-every", type=float, default=0, metavar="SECONDS",
                        help="imitate a machine whose init reaps orphans only so often (some containers and sandboxes; "
                        "libvirt waits for it in each move); default: at once, as systemd does")
    parser.add_argument("--lab", default="bench", metavar="NAME", help="name of the lab (default bench)")


def check_options(parser, arguments, cases, default_cases, runs):
    """Cases become objects; what was not said gets its default."""
    known = {case.name: case for case in cases}
    unknown = [name for name in arguments.cases if name not in known]
    if unknown:
        parser.error(f"no such case: {' '.join(unknown)}; there are: {' '.join(known)}")
    if arguments.runs is not None and arguments.runs < 1:
        parser.error("there must be one run at least")
    arguments.cases = [known[name] for name in arguments.cases] or default_cases
    arguments.runs = arguments.runs or runs


def write_json(path, value):
    partial = f"{path}.{os.getpid()}"
    with open(partial, "w", encoding="utf-8") as file:
        json.dump(value, file, indent=1)
        file.write("\n")
    os.replace(partial, path)


def groups(chosen):
    """Cases with the same guest share one boot."""
    found = {}
    for case in chosen:
        found.setdefault(json.dumps([case.kind, case.guest], sort_keys=True), []).append(case)
    return list(found.values())


class Clock:
    """Says things with the time that has passed."""

    def __init__(self):
        self.started = time.monotonic()

    def say(self, text):
        print(f"[{time.monotonic() - self.started:4.0f} s] {text}", flush=True)


def provide(with_virsh):
    """What measuring needs: root, the programs, QEMU. Returns that, and the machine in words."""
    if os.geteuid() != 0:
        raise machine.BenchError("needs root: the lab makes namespaces")
    if with_virsh:
        machine.provide_libvirt()
    qemu = lab_qemu.provide()
    return qemu, machine.describe(qemu)


def run(arguments, rounds, cap_s, evaluate):
    """Runs all cases. rounds: (name, whether it is encrypted, contenders) of each contest with the same cases; cap_s:
    contender's name → seconds. evaluate(case, name of the round, moves, floor) returns rows and the lines of a table."""
    clock = Clock()
    qemu, description = provide(any(one.side == "virsh" for _, _, contenders in rounds for one in contenders))
    print(description, flush=True)
    all_rows, all_moves, tables, floors = [], [], [], {}
    for group in groups(arguments.cases):
        for name, encrypted, contenders in rounds:
            clock.say(f"{' and '.join(case.name for case in group)}, {name}")
            with Contest(group[0], encrypted, contenders, qemu, arguments.lab, clock.say) as contest:
                for case in group:
                    clock.say(f"{case.name}, {name}: {case.about}")
                    contest.set_rate(case.rate)
                    if not arguments.no_floor and case.name not in floors:
                        floors[case.name] = contest.floor()
                    floor = floors.get(case.name)
                    moves = contest.run(case, arguments.runs, cap_s)
                    rows, lines = evaluate(case, name, moves, floor)
                    all_rows += rows
                    tables.append(lines)
                    all_moves.append({"case": case.name, "variant": name, "machine": description, "floor": floor,
                                      "moves": moves})
                    # Written after each case, so that an interruption costs one case only.
                    if arguments.json:
                        write_json(arguments.json, all_rows)
                    if arguments.moves:
                        write_json(arguments.moves, all_moves)
    print(f"\nMeasured on {description}.")
    for lines in tables:
        print("\n" + "\n".join(lines))
    clock.say("done")


def end(*_):
    """The lab has to be ended then too: as an exception, which its context sees; once, as another one would end that."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.exit(143)


def main(arguments, work):
    """Calls work() in a process below a reaper, and returns the exit status."""
    machine.fork_below_reaper(arguments.reap_every)
    signal.signal(signal.SIGTERM, end)
    try:
        work()
    except (machine.BenchError, LabError, GuestError, subprocess.TimeoutExpired) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0
