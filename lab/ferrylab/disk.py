# SPDX-License-Identifier: Apache-2.0
"""Reads the image of a disk load (lab/disk.h) from outside, and says whether more than one copy of the guest wrote it.

    check(path)   what it proves, as a dict; see there
    main(argv)    `lab/lab disk FILE`

It needs neither the guest nor its heartbeats: what both copies of a guest have written is on the disk, even of those
that nobody heard and that are gone.
"""

import argparse
import json
import struct
import sys

BLOCK = 4096
SLOT = 512
LOG_BYTES_MAX = 4 << 20
NOW_MAGIC = 0x31574F4E52524546  # "FERRNOW1"
BLOCK_MAGIC = 0x314B4C4252524546  # "FERRBLK1"
MASK = (1 << 64) - 1
# Two lives of one disk, of a guest that was started again, follow each other; a guest's wall clock is late by the pauses
# of its moves, and may drift by some more.
OVERLAP_NS = 500_000_000


def _sound(words, magic):
    return words[0] == magic and words[1] == (sum(words) - words[1]) & MASK


def _log_bytes(size):
    log = min(size // 4, LOG_BYTES_MAX)
    return log - log % BLOCK


def check(path):
    """{"doubles", "forks", "overlaps": any of them not 0 proves that two copies, or two guests, wrote at once;
    "damaged": slots and blocks that nobody can have written so;
    "lives": [{"boot_id", "records", "last_sequence", "first_ns", "last_ns", "wrong", "foreign"}], what each boot of a guest
    has left in the log, with what it had found itself;
    "single": whether all of that is as it must be}

    doubles: tick numbers with two different stamps. forks: ticks whose predecessor in the log is not the one that they
    name. overlaps: lives that were written at the same time."""
    with open(path, "rb") as file:
        image = file.read()
    log_end = BLOCK + _log_bytes(len(image))
    damaged, lives = 0, {}
    places = [image[:BLOCK], *(image[at:at + SLOT] for at in range(BLOCK, log_end, SLOT))]
    for place in places:
        if not any(place):
            continue
        words = struct.unpack(f"={len(place) // 8}Q", place)
        if not _sound(words, NOW_MAGIC):
            damaged += 1
            continue
        boot_id, sequence, *rest = words[2:10]
        life = lives.setdefault(boot_id, {"ticks": {}, "times": [], "wrong": 0, "foreign": 0})
        # The "now" block and its record in the log are the same.
        life["ticks"].setdefault(sequence, set()).add((tuple(rest[0:2]), tuple(rest[2:4])))
        life["times"].append(rest[1])
        life["wrong"] = max(life["wrong"], rest[4])
        life["foreign"] = max(life["foreign"], rest[5])
    for at in range(log_end, len(image) - BLOCK + 1, BLOCK):
        block = image[at:at + BLOCK]
        words = struct.unpack(f"={BLOCK // 8}Q", block)
        # Zero, or what the guest's own first writing has not come to: no guest has run to its first tick yet.
        if not (_sound(words, BLOCK_MAGIC) and words[3] == at // BLOCK) and (lives or any(block)):
            damaged += 1
    doubles = forks = 0
    for life in lives.values():
        for sequence, ticks in life["ticks"].items():
            doubles += len(ticks) > 1
            before = {stamp for stamp, _ in life["ticks"].get(sequence - 1, ())}
            forks += bool(before) and any(previous not in before for _, previous in ticks)
    spans = sorted((min(life["times"]), max(life["times"])) for life in lives.values())
    overlaps = sum(later[0] + OVERLAP_NS < earlier[1] for earlier, later in zip(spans, spans[1:]))
    listed = [{"boot_id": f"{boot_id:016x}", "records": len(life["times"]), "last_sequence": max(life["ticks"]),
               "first_ns": min(life["times"]), "last_ns": max(life["times"]), "wrong": life["wrong"],
               "foreign": life["foreign"]} for boot_id, life in lives.items()]
    listed.sort(key=lambda life: life["first_ns"])
    found = {"doubles": doubles, "forks": forks, "overlaps": overlaps, "damaged": damaged}
    single = not any(found.values()) and not any(life["wrong"] or life["foreign"] for life in listed)
    return {"single": single, **found, "lives": listed}


def main(argv):
    parser = argparse.ArgumentParser(
        prog="lab/lab disk", description="Says whether one guest wrote this image of a disk load, or two at once; "
        "fails if two, or if a block is damaged.")
    parser.add_argument("file")
    arguments = parser.parse_args(argv)
    try:
        found = check(arguments.file)
    except OSError as error:
        print(f"disk: {error}", file=sys.stderr)
        return 2
    print(json.dumps(found, indent=1))
    return 0 if found["single"] else 1
