# SPDX-License-Identifier: Apache-2.0
"""What must become of a migration: step and fault in, result out. The one table that the fault matrix believes.

Exactly one rule holds for each cell (test_table.py sees to it). A rule's results are what both records and the guest may
say in the end; it names two only where it depends on how far QEMU came by itself, and says so. `matrix --rules` prints
the table for docs/failure-model.md.

A result is what the source's record says, then what the guest does and where. "forgotten": the source has no record, as
it ended before the first one.
"""

import fnmatch
from dataclasses import dataclass

COMPLETED = "completed, runs at the destination"
FAILED = "failed, runs at the source"
ROLLED_BACK = "rolled-back, runs at the source"
CANCELLED = "cancelled, runs at the source"
FORGOTTEN = "forgotten, runs at the source"
STOPPED_THERE = "completed, stopped at the destination"
STOPPED_FAILED = "failed, stopped at the source"
STOPPED_BACK = "rolled-back, stopped at the source"
STOPPED_CANCELLED = "cancelled, stopped at the source"
STOPPED_FORGOTTEN = "forgotten, stopped at the source"
PAUSED_BACK = "rolled-back, paused at the source"


@dataclass(frozen=True)
class Rule:
    name: str
    phases: tuple
    faults: tuple  # patterns
    results: tuple
    why: str
    points: tuple = ("*",)  # only these of the phases

    def holds(self, cell):
        return cell.phase in self.phases and any(fnmatch.fnmatchcase(cell.fault, f) for f in self.faults) and \
            any(fnmatch.fnmatchcase(f"{cell.point}@{cell.side}", p) for p in self.points)


def rule(name, phases, faults, results, why, points="*"):
    split = lambda text: tuple(text.split())  # noqa: E731
    return Rule(name, split(phases), split(faults), (results,) if isinstance(results, str) else tuple(results), why, split(points))


BEFORE = "check begun prepared copying offered switching"
BACK = "back-begun back-held back-asked back-refused"
AFTER = "taken entered running heard released"

RULES = (
    # ---- the source's ferryd dies, is forgetful, or both die ----
    rule("source-dies-unrecorded", "check", "source-ferryd source-ferryd-late source-power both-ferryds", FORGOTTEN,
         "nothing was recorded: nobody knows of it, and the VM never noticed"),
    rule("both-die-before-prepared", "begun prepared", "both-ferryds", (FAILED, ROLLED_BACK),
         "failed, if the source saw the destination die before it died itself"),
    rule("both-die-before-the-switch", "copying offered", "both-ferryds", ROLLED_BACK, "as if the source had died alone"),
    rule("source-dies-before-the-switch", "begun prepared copying offered", "source-ferryd source-ferryd-late source-power",
         ROLLED_BACK, "the next ferryd finds an unfinished migration whose finish was never sent, cancels QEMU's copy and takes the VM back"),
    rule("source-dies-in-the-switch", "switching", "source-ferryd source-power both-ferryds", (COMPLETED, ROLLED_BACK),
         "QEMU goes on by itself: if it has completed when the next ferryd looks, that one sends finish, else it takes the VM back"),
    rule("source-dies-in-the-switch-for-long", "switching", "source-ferryd-late", (COMPLETED, ROLLED_BACK),
         "the destination asks; one that has everything waits for an answer, one that has not refuses"),
    rule("source-dies-when-all-is-sent", "sent", "source-ferryd source-power both-ferryds", COMPLETED,
         "its QEMU still says completed: the next ferryd sends finish"),
    rule("source-dies-when-all-is-sent-for-long", "sent", "source-ferryd-late", COMPLETED,
         "the destination has everything and must not throw it away: in doubt until the source is back and sends finish"),
    rule("source-dies-after-finish", "asked " + AFTER, "source-ferryd source-ferryd-late source-power", COMPLETED,
         "the destination goes on, and tells the next ferryd when it is asked again"),
    rule("both-die-after-finish", "asked " + AFTER, "both-ferryds", COMPLETED,
         "each goes on from its journal; finish is sent again"),
    rule("source-dies-on-the-way-back", "back-begun back-held back-asked back-refused", "source-ferryd source-ferryd-late source-power both-ferryds",
         (ROLLED_BACK, CANCELLED), "the next ferryd goes on with it; that it was asked for is known only once the end is recorded"),
    # ---- the destination's ferryd dies ----
    rule("destination-dies-before-prepared", "check begun", "destination-ferryd destination-power", FAILED,
         "the source's question goes unanswered"),
    rule("destination-dies-preparing", "prepared", "destination-ferryd destination-power", FAILED,
         "the source's question goes unanswered; the next ferryd refuses", "after-prepared@* incoming-started@* prepare-answer@*"),
    rule("destination-dies-prepared", "prepared", "destination-ferryd destination-power", COMPLETED,
         "QEMU copies on; in doubt until the next ferryd answers finish", "prepare-answered@*"),
    rule("destination-dies-before-taken", "copying offered switching sent asked", "destination-ferryd destination-power", COMPLETED,
         "QEMU copies on; in doubt until the next ferryd, which finds the waiting QEMU again, answers finish"),
    rule("destination-dies-after-taken", AFTER, "destination-ferryd destination-power", COMPLETED,
         "the next one goes on from its journal and answers; meanwhile the migration is in doubt, if the source has not heard yet"),
    rule("destination-dies-on-the-way-back", BACK, "destination-ferryd destination-power", CANCELLED,
         "the source runs its VM again and tells the next ferryd later"),
    # ---- one of them stands still ----
    rule("source-stands-still-unrecorded", "check", "source-stall", (COMPLETED, FAILED),
         "failed, if the destination had been asked and has let go by then of what it had reserved"),
    rule("source-stands-still", "begun", "source-stall", (FAILED, ROLLED_BACK),
         "the destination has let go of what it had reserved, or has prepared, asked, got no answer, and refused"),
    rule("source-stands-still-prepared", "prepared copying offered", "source-stall", (ROLLED_BACK, FAILED),
         "the destination asks, gets no answer, and refuses: the copy fails"),
    rule("source-stands-still-in-the-switch", "switching", "source-stall", (COMPLETED, ROLLED_BACK),
         "a destination that has everything waits for the source; one that has not refuses"),
    rule("source-stands-still-when-all-is-sent", "sent", "source-stall", COMPLETED,
         "the destination has everything: it waits, in doubt, until the source goes on"),
    rule("source-stands-still-after-finish", "asked " + AFTER, "source-stall", COMPLETED, "everything is decided, or is without it"),
    rule("source-stands-still-on-the-way-back", BACK, "source-stall", CANCELLED, "the VM is the source's, whatever the destination does meanwhile"),
    rule("destination-stands-still-before-prepared", "check begun", "destination-stall", FAILED,
         "the source gives up; what the destination then does is refused"),
    rule("destination-stands-still-preparing", "prepared", "destination-stall", FAILED,
         "the source gives up; what the destination has prepared is refused", "after-prepared@* incoming-started@* prepare-answer@*"),
    rule("destination-stands-still-prepared", "prepared", "destination-stall", COMPLETED,
         "QEMU copies on; in doubt until it goes on", "prepare-answered@*"),
    rule("destination-stands-still", "copying offered switching sent asked " + AFTER, "destination-stall", COMPLETED,
         "QEMU copies on; in doubt until it goes on, if the source has not heard yet"),
    rule("destination-stands-still-on-the-way-back", BACK, "destination-stall", CANCELLED, "it is told again until it answers"),
    # ---- QEMU ----
    rule("source-qemu-unrecorded", "check begun prepared copying offered", "source-qemu", (STOPPED_FAILED, STOPPED_BACK),
         "the guest crashed where it was owned, and may be started there"),
    rule("source-qemu-in-the-switch", "switching", "source-qemu", (STOPPED_BACK, COMPLETED),
         "it had sent everything, or had not"),
    rule("source-qemu-when-all-is-sent", "sent asked " + AFTER, "source-qemu", COMPLETED,
         "what the destination has is whole: the guest is saved"),
    rule("source-qemu-on-the-way-back", BACK, "source-qemu", STOPPED_CANCELLED, "the guest crashed where it was owned"),
    rule("destination-qemu-before-taken", "prepared copying offered switching sent asked", "destination-qemu", (ROLLED_BACK, FAILED),
         "the destination refuses; the guest goes on at the source"),
    rule("destination-qemu-taken", "taken", "destination-qemu", ROLLED_BACK,
         "cont cannot be sent any more, which proves that the guest never ran: the destination refuses"),
    rule("destination-qemu-after-cont", "entered running heard released", "destination-qemu", STOPPED_THERE,
         "it may have run: the destination owns a VM that crashed, and the source must not resume"),
    rule("destination-qemu-on-the-way-back", BACK, "destination-qemu", CANCELLED, "nothing was there to keep"),
    # ---- hosts ----
    rule("source-host-unrecorded", "check", "source-host both-hosts", STOPPED_FORGOTTEN, "the guest crashed with its host"),
    rule("source-host-before-the-offer", "begun prepared copying", "source-host both-hosts", (STOPPED_FAILED, STOPPED_BACK),
         "the guest crashed with its host; rolled back it is called if the baton was offered before"),
    rule("source-host-before-finish", "offered switching sent", "source-host both-hosts", STOPPED_BACK,
         "finish was not sent, or is not any more: nobody can tell whether the source's QEMU let the guest go on before it ended"),
    rule("source-host-after-finish", "asked " + AFTER, "source-host", COMPLETED, "the destination goes on with what it has"),
    rule("source-host-on-the-way-back", BACK, "source-host both-hosts", (STOPPED_BACK, STOPPED_CANCELLED, STOPPED_FAILED),
         "the guest crashed with its host; what it is called depends on what was recorded by then"),
    rule("destination-host-before-prepared", "check begun", "destination-host", FAILED, "the source's question goes unanswered"),
    rule("destination-host-before-taken", "prepared copying offered switching sent asked", "destination-host", (ROLLED_BACK, FAILED),
         "its QEMU is gone and it had not taken the VM: it refuses"),
    rule("both-hosts-before-taken", "asked", "both-hosts", STOPPED_BACK, "not taken, so refused; the guest crashed with its host"),
    rule("destination-host-after-taken", AFTER, "destination-host both-hosts", STOPPED_THERE,
         "taken is on disk and the guest may have run: it crashed at the destination, and may be started there only"),
    rule("destination-host-on-the-way-back", BACK, "destination-host", CANCELLED, "nothing was there to keep"),
    # ---- post-copy ----
    rule("postcopy-source-dies-beginning", "postcopy-begun", "source-ferryd", (COMPLETED, ROLLED_BACK),
         "QEMU goes on by itself: if it is in post-copy when the next ferryd looks, that one sends finish once it serves pages, "
         "else it takes the VM back"),
    rule("postcopy-source-dies", "postcopy-asked postcopy-serving postcopy-mending postcopy-done", "source-ferryd", COMPLETED,
         "both QEMUs go on; the next ferryd asks, serves and mends on"),
    rule("postcopy-destination-dies", "postcopy-begun postcopy-asked postcopy-serving postcopy-mending postcopy-done", "destination-ferryd",
         COMPLETED, "both QEMUs go on; the next ferryd answers finish, and listens again where that is needed"),
    rule("postcopy-source-qemu-beginning", "postcopy-begun", "source-qemu", STOPPED_BACK,
         "finish was never sent: the guest crashed where it was owned"),
    rule("postcopy-source-qemu-asked", "postcopy-asked", "source-qemu", (STOPPED_THERE, STOPPED_BACK),
         "taken and lost, as below, if the devices' state was loaded by then; else refused, and it crashed where it was owned"),
    rule("postcopy-source-qemu", "postcopy-serving postcopy-mending", "source-qemu", STOPPED_THERE,
         "the guest is lost: the source lets go of it, the destination hears so and ends what it has, with the reason `qemu.gone`"),
    rule("postcopy-source-qemu-done", "postcopy-done", "source-qemu", COMPLETED, "everything is there"),
    rule("postcopy-destination-qemu-beginning", "postcopy-begun", "destination-qemu", (ROLLED_BACK, PAUSED_BACK),
         "the guest has not run there, so it is the source's; once QEMU is in post-copy it lets it run no more: it is to be stopped and started"),
    rule("postcopy-destination-qemu-asked", "postcopy-asked", "destination-qemu", PAUSED_BACK,
         "refused, as the guest has not run there; at the source QEMU lets it run no more: it is to be stopped and started"),
    rule("postcopy-destination-qemu", "postcopy-serving postcopy-mending postcopy-done", "destination-qemu", STOPPED_THERE,
         "the guest is lost, or crashed as any: the destination owns it, with the reason `qemu.gone`; the source lets go of the rest"),
    rule("postcopy-link-beginning", "postcopy-begun", "link-there link-back link-both", (COMPLETED, ROLLED_BACK, PAUSED_BACK),
         "the destination hears nothing: it waits if it has all that the guest needs to run, else refuses, which the source's QEMU finds out "
         "in post-copy or before"),
    rule("postcopy-link", "postcopy-asked postcopy-serving postcopy-mending postcopy-done", "link-there link-back link-both", COMPLETED,
         "pages that are missing come when the link is back, over another stream if this one broke"),
    # ---- the client ----
    rule("client", f"{BEFORE} sent asked {AFTER}", "client", COMPLETED, "the source drives; who asked may go away"),
    rule("client-on-the-way-back", BACK, "client", CANCELLED, "who asked may go away"),
    # ---- links ----
    rule("link-moment", f"{BEFORE} sent asked {AFTER}", "link-moment", COMPLETED, "TCP brings all of it later"),
    rule("link-on-the-way-back", BACK, "link-*", CANCELLED, "the VM is the source's; the destination is told later"),
    rule("link-before-the-switch", "check begun prepared copying", "link-there link-back link-both", (FAILED, ROLLED_BACK),
         "unanswered questions and a copy that stands still end it"),
    rule("link-offered", "offered switching", "link-there link-back link-both", (ROLLED_BACK, COMPLETED),
         "the switch is undone when it lasts longer than promised; or, if QEMU had completed, goes on when the link is back"),
    rule("link-when-all-is-sent", "sent", "link-there link-both", COMPLETED,
         "finish does not arrive: both are in doubt until the link is back"),
    rule("link-back-when-all-is-sent", "sent", "link-back", COMPLETED, "finish arrives, its answer does not: in doubt until the link is back"),
    rule("link-after-finish", "asked " + AFTER, "link-there link-back link-both", COMPLETED,
         "in doubt until the link is back, if the source has not heard yet"),
    # ---- messages ----
    rule("check-lost", "check", "drop-all hold cut corrupt", FAILED, "no answer is no consent"),
    rule("check-lost-once", "check", "drop", (FAILED, COMPLETED), "asked again if the connection was an old one"),
    rule("prepare-lost", "begun prepared", "drop-all hold cut corrupt", FAILED, "no answer, or none that can be understood: the destination is told to refuse"),
    rule("prepare-lost-once", "begun prepared", "drop", (FAILED, COMPLETED), "asked again if the connection was an old one"),
    rule("outcome-lost", "copying", "drop drop-all hold cut corrupt", (ROLLED_BACK, COMPLETED),
         "a source that does not answer has given up: the destination refuses"),
    rule("finish-lost", "sent asked running heard", "drop drop-all hold cut corrupt", COMPLETED, "in doubt until it is answered"),
    rule("refuse-lost", BACK, "drop drop-all hold cut corrupt", CANCELLED, "told again until it is answered"),
    rule("outcome-late", "copying", "delay", ROLLED_BACK, "an answer that comes later than the destination waits is none",
         "outcome-received@* outcome-answer@*"),
    rule("outcome-asked-late", "copying", "delay", COMPLETED, "the time for an answer begins with the question",
         "outcome-send@* outcome-answered@*"),
    rule("outcome-repeated", "copying", "repeat old", COMPLETED, "the same question gets the same answer"),
    rule("message-repeated", "check begun prepared sent asked running heard", "repeat old delay", COMPLETED,
         "the same question gets the same answer; one of an earlier migration is refused"),
    rule("refuse-repeated", BACK, "repeat old delay", CANCELLED, "the same question gets the same answer"),
    # ---- records ----
    rule("holds-not-written", "check", "error error-all", FAILED, "without a journal there is no migration"),
    rule("prepared-not-written", "begun", "error error-all", FAILED, "the destination cannot promise anything"),
    rule("offered-not-written", "copying", "error error-all", ROLLED_BACK, "what is not recorded is not done"),
    rule("taken-not-written", "asked entered", "error error-all", COMPLETED, "in doubt; asked again until the record is written"),
    rule("released-not-written", "heard", "error error-all", COMPLETED, "the source's guest stays stopped until the record is written"),
    rule("taken-back-not-written", "back-begun", "error error-all", (CANCELLED, ROLLED_BACK),
         "the guest stays stopped until the record is written"),
    rule("refused-not-written", "back-asked", "error error-all", CANCELLED, "told again until the record is written"),
    rule("ended-not-written", "running released back-refused", "error", (COMPLETED, CANCELLED, ROLLED_BACK),
         "only the words are lost; the baton's record is what counts"),
    # ---- storage and time ----
    rule("storage", "storage", "error@* full@* short@*", (COMPLETED, FAILED, ROLLED_BACK, FORGOTTEN),
         "which record it is decides: one that is not written is not acted upon"),
    rule("clock", "clock", "ahead behind", (COMPLETED, CANCELLED), "dates are for readers; nothing is decided by them"),
)


def rule_for(cell):
    found = [rule for rule in RULES if rule.holds(cell)]
    if len(found) != 1:
        raise LookupError(f"{cell.name} ({cell.phase}): {len(found)} rules: {' '.join(r.name for r in found)}")
    return found[0]


def markdown():
    """The table as docs/failure-model.md has it."""
    lines = ["| rule | when | what happens | result | because |", "|---|---|---|---|---|"]
    for r in RULES:
        points = "" if r.points == ("*",) else f" ({', '.join(p.removesuffix('@*') for p in r.points)})"
        lines.append(f"| `{r.name}` | {', '.join(r.phases)}{points} | {', '.join(f'`{f}`' for f in r.faults)} | "
                     f"{' or: '.join(r.results)} | {r.why} |")
    return "\n".join(lines) + "\n"
