# SPDX-License-Identifier: Apache-2.0
"""One real migration there and back, an aborted one and a refused one, for a build with ASan and UBSan (run by
tools/run-tests with FERRY_BUILD pointing at it; it also passes on an ordinary build). A sanitizer's report is the failure."""

import json
import re
import signal
import sys
from pathlib import Path

REPO = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(REPO / "lab"))

from ferrylab import Lab, guest  # noqa: E402

REPORT = re.compile(r"(ERROR: (Address|Leak|Undefined)\w*Sanitizer.*|SUMMARY: .*Sanitizer.*|.*runtime error:.*)")


def ferry(host, *arguments, expect=0):
    result = host.run(["ferry", *arguments], check=False)
    assert result.returncode == expect, (arguments, result.stdout, result.stderr)
    assert not REPORT.search(result.stderr), result.stderr
    return result.stdout


def test_migration():
    with Lab("san").up(hosts=2, rate="1gbit") as lab:
        a, b = lab.hosts
        definition = guest.define("tiny", name="g", memory=128, load="16:10", lab=lab.name)
        ferry(a, "vm", "define", definition)
        ferry(a, "vm", "start", "g")
        for source, destination in ((a, b), (b, a)):
            result = json.loads(ferry(source, "migrate", "g", "--to", destination.name, "--output", "json"))
            assert result["status"] == "completed", result
        ferry(a, "migrate", "g", "--to", "nowhere", expect=3)
        ferry(a, "migrate", "g", "--to", b.name, "--bandwidth", "1Mbit", "--detach")
        running = json.loads(ferry(a, "migration", "list", "--output", "json"))[0]
        ferry(a, "migration", "abort", running["id"])
        host_a = json.loads(a.run(["ferry", "migration", "watch", running["id"], "--output", "json"], check=False).stdout)
        assert host_a["status"] == "cancelled", host_a
        assert json.loads(ferry(a, "vm", "show", "g", "--output", "json"))["state"] == "running"
        ferry(a, "vm", "stop", "g")
        ferry(a, "vm", "undefine", "g")
        for host in (a, b):
            lab.stop_ferryd(host, signal.SIGTERM)
            text = Path(lab.ferryd_log(host)).read_text()
            assert not REPORT.search(text), text
            assert "stopping on signal" in text, text
