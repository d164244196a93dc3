# SPDX-License-Identifier: Apache-2.0
"""How a migration went: `migration show` and its picture, against a stand-in for ferryd and on real QEMU."""

import json
import os
import sys
import xml.etree.ElementTree as xml

import pytest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import test_cli  # noqa: E402
from fake_ferryd import ApiError  # noqa: E402
from moves import Pair  # noqa: E402

fake, ferry = test_cli.fake, test_cli.ferry
WORDS = "the guest dirties 114 MB/s, the link carries 117 MB/s; it is throttled to 85 %"
TIMELINE = {
    "points": [{"at_ms": at, "remaining_bytes": left << 20, "rate_bytes_per_s": 117_000_000, "dirty_bytes_per_s": 114_000_000,
                "wire_bytes": 0, "pass": number, "throttle_percent": 85 if at > 2000 else 0, "limit_ms": 5}
               for at, left, number in ((100, 640, 1), (2000, 200, 1), (4000, 30, 2), (5000, 4, 3))],
    "events": [{"at_ms": 2000.4, "words": WORDS}, {"at_ms": 4000.0, "words": "go <on> & \u001b[31mon"}], "events_lost": 2}


def texts(svg):
    """All text of a picture, which must be XML."""
    root = xml.fromstring(svg)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    return [one.text or "" for one in root.iter("{http://www.w3.org/2000/svg}text")]


@pytest.fixture
def moved(fake):
    id = fake.add_migration("web1", "host-b")
    for status in ("checking", "preparing", "copying", "switching", "completing"):
        fake.update(id, status=status)
    fake.update(id, **test_cli.COMPLETED)
    fake.timelines[id] = TIMELINE
    return id


# ---- show ----

def test_decisions_are_shown(fake, moved):
    shown = ferry(fake, "migration", "show", moved).stdout
    assert f"\ndecisions    +2.0 s     {WORDS}\n             +4.0 s     go <on> & ?[31mon\n" in shown
    assert shown.endswith("(before the last one, 2 more that have not been kept)\n")


@pytest.mark.parametrize("code", ["not_found", "migration.no_timeline", "internal"])
def test_show_does_without_a_timeline(fake, moved, code):
    fake.errors[("GET", f"/v1/migrations/{moved}/timeline")] = ApiError(404, code, "there is none")
    result = ferry(fake, "migration", "show", moved)
    assert (result.returncode, result.stderr) == (0, "") and "decisions" not in result.stdout


# ---- the picture ----

def test_plot(fake, moved, tmp_path):
    path = tmp_path / "a.svg"
    result = ferry(fake, "migration", "show", moved[:6], "--plot", str(path))
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout == ferry(fake, "migration", "show", moved).stdout
    said = texts(path.read_text())
    assert "web1 from host-a to host-b: completed" in said and f"+2.0 s: {WORDS}" in said
    assert "+4.0 s: go <on> & ?[31mon" in said
    assert os.listdir(tmp_path) == ["a.svg"]


def test_plot_to_stdout(fake, moved):
    result = ferry(fake, "migration", "show", moved, "--plot=-")
    assert result.returncode == 0 and f"+2.0 s: {WORDS}" in texts(result.stdout)
    result = ferry(fake, "migration", "show", moved, "--plot", "-", "--output", "json")
    assert result.returncode == 2 and json.loads(result.stdout)["error"]["code"] == "invalid_argument"


def test_plot_beside_json(fake, moved, tmp_path):
    result = ferry(fake, "migration", "show", moved, "--plot", str(tmp_path / "a.svg"), "--output", "json")
    assert result.returncode == 0 and json.loads(result.stdout) == fake.migrations[moved]
    assert texts((tmp_path / "a.svg").read_text())


@pytest.mark.parametrize("status, ended, points", [("copying", False, 4), ("copying", False, 1), ("checking", False, 0),
                                                   ("rolled-back", True, 4), ("failed", True, 0), ("in-doubt", False, 2)])
def test_plot_of_any_state(fake, status, ended, points):
    id = fake.add_migration("web1", "host-b", total_ms=5500.0)
    fake.update(id, status="copying")
    if status != "copying":
        fake.update(id, status=status, reason={"code": "migration.deadline", "message": "the <deadline> has come"})
    fake.timelines[id] = {**TIMELINE, "points": TIMELINE["points"][:points]}
    said = texts(ferry(fake, "migration", "show", id, "--plot", "-").stdout)
    assert f"web1 from host-a to host-b: {status}{'' if ended else ', goes on'}" in said
    assert ("memory that is left to send" in said) == (points > 0)
    assert ("the <deadline> has come (migration.deadline)" in said) == (status != "copying")


def test_plot_of_a_destination_names_the_source(fake):
    id = fake.add_migration("web1", "host-a", role="destination", source="host-b")
    said = texts(ferry(fake, "migration", "show", id, "--plot", "-").stdout)
    assert "This is the destination's record. The copy is measured at the source: ask host-b." in said


@pytest.mark.parametrize("code", ["not_found", "migration.no_timeline"])
def test_no_plot_without_a_timeline(fake, moved, tmp_path, code):
    """Of a ferryd that had none yet, or that has not kept this one."""
    fake.errors[("GET", f"/v1/migrations/{moved}/timeline")] = ApiError(404, code, "there is none")
    result = ferry(fake, "migration", "show", moved, "--plot", str(tmp_path / "a.svg"))
    assert result.returncode == 1 and "(migration.no_timeline)" in result.stderr and not os.listdir(tmp_path)


def test_plot_that_cannot_be_written(fake, moved, tmp_path):
    for path, words in ((tmp_path / "no" / "a.svg", "No such file"), (tmp_path, "directory")):
        result = ferry(fake, "migration", "show", moved, "--plot", str(path))
        assert result.returncode == 1 and words in result.stderr and result.stdout == ""
    assert not os.listdir(tmp_path)


def test_plot_completes_files(fake, moved, tmp_path):
    (tmp_path / "a.svg").touch()
    assert test_cli.complete(fake, "migration", "show", moved, "--plot", str(tmp_path / "a")) == {str(tmp_path / "a.svg")}
    assert "--plot" in test_cli.complete(fake, "migration", "show", moved, "--")


# ---- on real QEMU ----

@pytest.fixture(scope="module")
def pair():
    pair = Pair("tl")
    yield pair
    pair.close()


def test_of_a_real_move(pair):
    guest = pair.guest("g")
    result = pair.migrate(guest, "host-b")
    id = result["id"]
    assert [phase["name"] for phase in result["phases"]] == ["checking", "preparing", "copying", "switching", "completing"]
    assert all(phase["waited_for"] for phase in result["phases"])
    timeline = pair.api("host-a", "GET", f"/v1/migrations/{id}/timeline")
    points = timeline["points"]
    assert points and points == sorted(points, key=lambda point: point["at_ms"])
    copying = result["phases"][2]
    assert all(copying["start_ms"] <= point["at_ms"] <= copying["end_ms"] for point in points)
    assert points[-1]["remaining_bytes"] < points[0]["remaining_bytes"] and points[-1]["pass"] >= 2
    # The destination has measured nothing, and says so.
    assert pair.api("host-b", "GET", f"/v1/migrations/{id}/timeline")["points"] == []
    # It outlives ferryd, and so does the picture.
    pair.restart_ferryd("host-a")
    assert pair.api("host-a", "GET", f"/v1/migrations/{id}/timeline") == timeline
    drawn = texts(pair.ferry("host-a", "migration", "show", id, "--plot", "-").stdout)
    assert any(line.startswith("paused for") for line in drawn)
    assert pair.refusal("host-a", "GET", "/v1/migrations/ffffffff/timeline") == "migration.not_found"
