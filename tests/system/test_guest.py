# SPDX-License-Identifier: Apache-2.0
"""The lab's guest programs, run here without a guest: does the load program find what is wrong with its memory, does
the heartbeat client count right, are definitions as they should be. If these cannot be trusted, no test of a
migration can."""

import contextlib
import json
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(REPO / "lab"))

from ferrylab import disk, guest  # noqa: E402

PAGE = 4096
MAGIC = b"FRRYPAG1"
BEAT = struct.Struct("=18Q")
BEAT_MAGIC = 0x3354414542525246


def program(name):
    path = guest.build_dir() / "lab" / name
    assert path.exists(), f"{path} is missing: build first, or set FERRY_BUILD"
    return str(path)


def run_load(*arguments):
    return subprocess.run([program("load"), *arguments], capture_output=True, text=True, timeout=60)


@contextlib.contextmanager
def running_load(*arguments):
    """A load program that says it is ready; ended by SIGTERM if the test has not ended it."""
    process = subprocess.Popen([program("load"), *arguments], stdout=subprocess.PIPE, text=True)
    try:
        assert "ready" in process.stdout.readline()
        yield process
    finally:
        process.terminate()
        process.communicate(timeout=30)


class Client:
    """A heartbeat client on a port of its own, and a socket to send it beats from."""

    def __init__(self, directory):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.control = str(directory / "control")
        self.process = subprocess.Popen(
            [program("heartbeat-client"), "--port", str(self.port), "--control", self.control],
            stdout=subprocess.PIPE, text=True)
        assert self.process.stdout.readline() == "ready\n"
        self.sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.sender.connect(("127.0.0.1", self.port))

    def ask(self, question):
        return guest.ask(self.control, question)

    def beat(self, seq, boot_id=7, wrong=0, mono=None, ready=True, work=0):
        self.sender.send(BEAT.pack(BEAT_MAGIC, boot_id, seq, seq if mono is None else mono, 0, work, 0, 0, wrong, 0, 0,
                                   0, int(ready), 0, 0, 0, 0, 0))

    def beats(self, *numbers, **fields):
        for seq in numbers:
            self.beat(seq, **fields)

    def only_guest(self):
        guests = self.ask("report")["guests"]
        assert len(guests) == 1
        return guests[0]

    def close(self):
        self.sender.close()
        self.process.terminate()
        return json.loads(self.process.communicate(timeout=30)[0])


@pytest.fixture
def client(tmp_path):
    client = Client(tmp_path)
    yield client
    client.close()


# ---- the load program ----

def test_load_finds_nothing_wrong_in_memory_that_is_right():
    result = run_load("--load", "8:40", "--fill", "text:4", "--seconds", "2")
    assert result.returncode == 0, result.stdout
    sums = dict(pair.split("=") for pair in result.stdout.split("end, ")[1].split())
    assert sums["wrong"] == "0" and sums["clock_back"] == "0"
    assert int(sums["passes"]) >= 5
    assert 0.7 * 80e6 < int(sums["dirty_bytes"]) < 1.05 * 80e6


@pytest.mark.parametrize("kind, found, wrong", [("flip", "damaged", 1), ("stale", "stale", 1), ("zero", "zero", 1),
                                                ("swap", "swapped", 2)])
def test_load_finds_what_it_spoiled_itself(kind, found, wrong):
    result = run_load("--load", "8:100", "--seconds", "1", "--break", kind)
    assert result.returncode == 1
    assert f"wrong={wrong} " in result.stdout
    assert len(re.findall(rf"WRONG page \d+: {found},", result.stdout)) == wrong


def pages_of(process):
    """(address, content) of each page in the memory of a load program that was written by page_write()."""
    for line in Path(f"/proc/{process.pid}/maps").read_text().splitlines():
        match = re.match(r"([0-9a-f]+)-([0-9a-f]+) rw-p 00000000 00:00 0\s*$", line)
        if not match:
            continue
        start, end = (int(text, 16) for text in match.groups())
        with open(f"/proc/{process.pid}/mem", "rb") as memory:
            memory.seek(start)
            content = memory.read(end - start)
        for at in range(0, len(content), PAGE):
            if content[at:at + 8] == MAGIC:
                yield start + at, content[at:at + PAGE]


def poke(process, address, data):
    with open(f"/proc/{process.pid}/mem", "r+b", buffering=0) as memory:
        memory.seek(address)
        memory.write(data)


@pytest.mark.parametrize("load, where", [("4:0", 2000), ("4:0", 0), ("4:0", PAGE - 1), ("4:100", 77)])
def test_load_finds_one_bit_changed_from_outside(load, where, client):
    """Whatever changes its memory behind its back, as a bad migration would; in any byte of the page."""
    with running_load("--load", load, "--client", f"127.0.0.1:{client.port}") as process:
        client.ask("wait 127.0.0.1 10")
        assert client.only_guest()["pages_wrong"] == 0
        process.send_signal(signal.SIGSTOP)
        address, content = list(pages_of(process))[500]
        poke(process, address + where, bytes([content[where] ^ 4]))
        process.send_signal(signal.SIGCONT)
        deadline = time.monotonic() + 20
        while client.only_guest()["pages_wrong"] == 0:
            assert time.monotonic() < deadline, "the changed page was not found"
            client.ask("wait 127.0.0.1 1")
            client.ask("mark")
        assert client.only_guest()["pages_wrong"] == 1


def test_load_finds_a_page_that_is_right_for_another_time():
    """The page as it was one pass ago, whole: only the counter tells."""
    with running_load("--load", "4:20") as process:
        process.send_signal(signal.SIGSTOP)
        old = dict(pages_of(process))
        process.send_signal(signal.SIGCONT)
        time.sleep(0.5)  # more than two passes, whatever the pace
        process.send_signal(signal.SIGSTOP)
        address = sorted(old)[300]
        poke(process, address, old[address])
        process.send_signal(signal.SIGCONT)
        assert re.match(r"load: WRONG page \d+: stale", process.stdout.readline())


def test_pages_are_unique_and_do_not_compress():
    with running_load("--load", "8:0", "--fill", "random:8") as process:
        first = [content for _, content in pages_of(process)]
    assert len(first) == 2 * 8 * 256
    assert len(set(first)) == len(first)
    # Nor is there anything shared below the size of a page, beyond the two words of each head.
    words = [content[at:at + 16] for content in first[::16] for at in range(32, PAGE, 16)]
    assert len(set(words)) == len(words)
    sample = b"".join(first[::16])
    assert len(zlib.compress(sample, 6)) > 0.99 * len(sample)


def test_rewritten_page_shares_nothing_with_what_it_was():
    """Else a delta would do better on the load than on real memory."""
    with running_load("--load", "4:40") as process:
        process.send_signal(signal.SIGSTOP)
        old = dict(pages_of(process))
        process.send_signal(signal.SIGCONT)
        time.sleep(0.5)
        process.send_signal(signal.SIGSTOP)
        new = dict(pages_of(process))
        process.send_signal(signal.SIGCONT)
    changed = [address for address in old if old[address] != new[address]]
    assert len(changed) > 500
    address = changed[0]
    same = sum(a == b for a, b in zip(old[address][32:], new[address][32:]))
    assert same < 50  # 16 expected by chance


def test_beat_has_a_gap_but_no_hole_when_the_program_is_stopped(client):
    with running_load("--load", "1:1", "--client", f"127.0.0.1:{client.port}") as process:
        client.ask("wait * 100")
        client.ask("mark")
        process.send_signal(signal.SIGSTOP)
        time.sleep(0.3)
        process.send_signal(signal.SIGCONT)
        since = client.ask("wait * 100")["guests"][0]["since_mark"]
    assert 295 < since["max_gap_ms"] < 500
    assert since["late_beats"] >= 290
    assert (since["lost"], since["doubled"], since["two_copies"], since["reordered"]) == (0, 0, 0, 0)


def test_beat_of_two_copies_is_seen_end_to_end(client):
    with running_load("--load", "1:1", "--break", "beat", "--client", f"127.0.0.1:{client.port}"):
        client.ask("wait * 500")
        assert client.only_guest()["total"]["two_copies"] >= 4


@pytest.mark.parametrize("load", ["8:40:skewed", "8:40:sparse"])
def test_load_of_another_mode_finds_nothing_wrong_in_memory_that_is_right(load):
    result = run_load("--load", load, "--seconds", "2")
    assert result.returncode == 0, result.stdout
    found = sums(result.stdout)
    assert found["wrong"] == 0 and 0.7 * 80e6 < found["dirty_bytes"] < 1.05 * 80e6
    # Nine writes of ten go to a tenth: the rest is gone through a tenth as fast, less what a tenth is smaller by.
    assert found["passes"] in ((0, 1) if "skewed" in load else range(6, 11))


@pytest.mark.parametrize("mode, kind, wrong", [("skewed", "stale", 1), ("skewed", "swap", 2), ("sparse", "flip", 1),
                                               ("sparse", "stale", 1), ("sparse", "zero", 1)])
def test_load_of_another_mode_finds_what_it_spoiled_itself(mode, kind, wrong):
    # Sparse: a byte that is not going to be written is looked at in one of 16 passes.
    result = run_load("--load", f"1:100:{mode}", "--seconds", "1", "--break", f"{kind}:1")
    assert result.returncode == 1 and sums(result.stdout)["wrong"] == wrong, result.stdout


def test_sparse_load_changes_64_bytes_of_a_page():
    with running_load("--load", "4:40:sparse") as process:
        stop(process)
        old = dict(pages_of(process))
        process.send_signal(signal.SIGCONT)
        time.sleep(0.5)
        stop(process)
        new = dict(pages_of(process))
        process.send_signal(signal.SIGCONT)
    changed = [address for address in old if old[address] != new[address]]
    assert len(changed) > 500
    for address in changed[:100]:
        places = {at // 64 for at in range(PAGE) if old[address][at] != new[address][at]}
        assert len(places) == 1 and places != {0}


def test_skewed_load_writes_a_tenth_of_its_pages_nine_times_of_ten():
    def counter(content):
        return int.from_bytes(content[16:24], sys.byteorder)

    with running_load("--load", "10:40:skewed") as process:
        time.sleep(1)
        stop(process)
        counters = [counter(content) for _, content in sorted(pages_of(process))]
        process.send_signal(signal.SIGCONT)
    hot, cold = counters[:256], counters[256:]
    assert sum(hot) - 256 > 8 * (sum(cold) - len(cold)) > 0
    assert max(hot) - min(hot) <= 1 and max(cold) - min(cold) <= 1, "each is gone through in order"


@pytest.mark.parametrize("before", ["0", "4:0", "4:10:skewed"])
def test_load_changes_when_it_is_ordered_to(client, before):
    with running_load("--load", before, "--client", f"127.0.0.1:{client.port}", "--fill", "text:1") as process:
        client.ask("wait * 10")
        for order, pages, rate in (("8:40", 2048, 40e6), ("8:20", 2048, 20e6), ("2:20:sparse", 512, 20e6), ("0", 0, 0)):
            assert "error" not in client.ask(f"load 127.0.0.1 {order}")
            client.ask("mark")
            since = client.ask("wait * 1000")["guests"][0]["since_mark"]
            assert since["dirty_bytes_per_s"] == pytest.approx(rate, rel=0.25), order
            stop(process)
            assert len(list(pages_of(process))) == pages, order
            process.send_signal(signal.SIGCONT)
        assert client.ask("load 127.0.0.1 nonsense") == {"error": "the guest does not understand the load"}
        assert client.ask("load 127.0.0.1 1:5")["guests"][0]["pages_wrong"] == 0


def test_load_looks_at_all_there_is_before_it_changes(client):
    with running_load("--load", "4:0", "--client", f"127.0.0.1:{client.port}") as process:
        client.ask("wait * 10")
        stop(process)
        address, content = list(pages_of(process))[-1]
        poke(process, address + 99, bytes([content[99] ^ 4]))
        process.send_signal(signal.SIGCONT)
        assert client.ask("load 127.0.0.1 1:1")["guests"][0]["pages_wrong"] == 1


# ---- the disk load ----

BLOCK = 4096
LOG_END = BLOCK + (1 << 20) // 4  # of a disk of 1 MiB: the "now" block and a quarter


@pytest.fixture
def image(tmp_path):
    path = tmp_path / "image"
    with open(path, "wb") as file:
        file.truncate(1 << 20)
    return path


def sums(output):
    return {key: int(number) for key, number in re.findall(r"(\w+)=(\d+)", output.split("load: end, ")[1])}


def stop(process):
    process.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)  # again at once, if it was stopped already


def spoil(process, image, at, data):
    """Changes the image behind the back of a load program."""
    stop(process)
    with open(image, "r+b") as file:
        file.seek(at)
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    process.send_signal(signal.SIGCONT)


def block_at(image, at):
    with open(image, "rb") as file:
        file.seek(at)
        return file.read(BLOCK)


def disk_passes(client, number):
    """Waits for so many more."""
    before = client.only_guest()["total"]["disk_passes"]
    deadline = time.monotonic() + 30
    while client.only_guest()["total"]["disk_passes"] < before + number:
        assert time.monotonic() < deadline
        client.ask("mark")
        client.ask("wait * 10")


@contextlib.contextmanager
def disk_load(client, image, rate=8):
    with running_load("--disk-load", f"{image}:{rate}", "--client", f"127.0.0.1:{client.port}") as process:
        client.ask("wait * 10")
        yield process


def test_disk_load_finds_nothing_wrong_on_a_disk_that_is_right(image):
    result = run_load("--disk-load", f"{image}:4", "--seconds", "2")
    assert result.returncode == 0, result.stdout
    found = sums(result.stdout)
    assert (found["disk_wrong"], found["disk_foreign"]) == (0, 0)
    assert found["disk_passes"] >= 3 and found["disk_ticks"] > 50
    seen = disk.check(image)
    assert seen["single"] and seen["lives"][0]["last_sequence"] == found["disk_ticks"], seen
    # Started again: another life of the same disk, after the first.
    assert run_load("--disk-load", f"{image}:4", "--seconds", "1").returncode == 0
    seen = disk.check(image)
    assert seen["single"] and len(seen["lives"]) == 2, seen


@pytest.mark.parametrize("where", [LOG_END + 7 * BLOCK + 2000, LOG_END + 8 * BLOCK, 17])
def test_disk_load_finds_one_bit_changed(client, image, where):
    with disk_load(client, image) as process:
        disk_passes(client, 1)
        stop(process)
        spoil(process, image, where, bytes([image.read_bytes()[where] ^ 4]))
        disk_passes(client, 2)
        seen = client.only_guest()
        assert (seen["disk_wrong"], seen["disk_foreign"]) == (1, 0)


def test_disk_load_tells_its_own_lost_write_from_another_writer(client, image):
    with disk_load(client, image, rate=0.5) as process:
        disk_passes(client, 1)
        before = block_at(image, LOG_END)
        deadline = time.monotonic() + 30
        while block_at(image, LOG_END) == before and time.monotonic() < deadline:
            time.sleep(0.01)
        spoil(process, image, LOG_END, before)
        disk_passes(client, 2)
        seen = client.only_guest()
        assert (seen["disk_wrong"], seen["disk_foreign"]) == (1, 0)

        # A block that is sound, of the same guest, and of a time at which this copy did not write it.
        stop(process)
        words = list(struct.unpack("=512Q", block_at(image, LOG_END)))
        words[5] += 1
        words[1] = (words[1] + 1) & (1 << 64) - 1
        spoil(process, image, LOG_END, struct.pack("=512Q", *words))
        disk_passes(client, 2)
        seen = client.only_guest()
        assert (seen["disk_wrong"], seen["disk_foreign"]) == (1, 1)


def test_two_writers_are_noticed_by_both_and_from_outside(image):
    pair = [subprocess.Popen([program("load"), "--disk-load", f"{image}:2", "--seconds", "2"], stdout=subprocess.PIPE,
                             text=True) for _ in range(2)]
    for process in pair:
        output = process.communicate(timeout=30)[0]
        assert process.returncode == 1 and sums(output)["disk_foreign"] > 10, output
    seen = disk.check(image)
    assert not seen["single"] and seen["overlaps"] == 1 and len(seen["lives"]) == 2, seen


def test_disk_seen_from_outside_tells_doubles_forks_and_damage(image, tmp_path):
    """A log written here, so that each finding is had by itself."""
    def record(sequence, time_ns, before_ns):
        words = [0x31574F4E52524546, 0, 99, sequence, time_ns, time_ns, before_ns, before_ns] + [0] * 56
        words[1] = sum(words) & (1 << 64) - 1
        return struct.pack("=64Q", *words)

    def write(*records):
        path = tmp_path / "log"
        path.write_bytes(bytes(BLOCK) + b"".join(records) + bytes((1 << 20) - BLOCK - 512 * len(records)))
        found = disk.check(path)
        assert found["damaged"] == (1 << 20) // BLOCK - LOG_END // BLOCK, "no block was ever written"
        return found["doubles"], found["forks"]

    good = [record(1, 10, 0), record(2, 20, 10), record(3, 30, 20)]
    assert write(*good) == (0, 0)
    assert write(*good, record(3, 31, 20)) == (1, 0)
    assert write(*good, record(4, 40, 31)) == (0, 1)
    assert write(*good, record(9, 90, 80)) == (0, 0), "what lies between has been written over"
    with pytest.raises(AssertionError, match="no block"):
        write(*good[:2], good[2][:100] + b"x" + good[2][101:])
    assert disk.check(image) == {"single": True, "doubles": 0, "forks": 0, "overlaps": 0, "damaged": 0, "lives": []}
    assert disk.main([str(image)]) == 0 and disk.main([str(tmp_path / "log")]) == 1


# ---- the client ----

def test_client_counts_beats_in_order(client):
    client.beats(*range(10, 110))
    guest_ = client.only_guest()
    assert guest_["last_seq"] == 109 and guest_["address"] == "127.0.0.1"
    counts = guest_["total"]
    assert counts["received"] == 100
    assert [counts[key] for key in ("lost", "doubled", "two_copies", "reordered", "readdressed")] == [0] * 5


def test_client_tells_lost_reordered_and_doubled_apart(client):
    client.beats(0, 1, 2, 5, 4, 6, 6, 8)  # 3 and 7 never come; 4 comes late; 6 comes twice, the same
    counts = client.only_guest()["total"]
    assert counts["received"] == 8
    assert (counts["lost"], counts["reordered"], counts["doubled"], counts["two_copies"]) == (2, 1, 1, 0)


def test_client_sees_two_copies_in_turns(client):
    client.beats(*range(100))
    for seq in range(100, 110):
        client.beat(seq, mono=1000 + seq)
        client.beat(seq, mono=2000 + seq)
    counts = client.only_guest()["total"]
    assert (counts["two_copies"], counts["doubled"], counts["lost"]) == (10, 10, 0)


def test_client_sees_a_copy_that_starts_again_from_the_past(client):
    """A source resumed after its destination ran on: all its numbers have been used."""
    client.beats(*range(1000))
    client.beats(*range(500, 520), mono=9)
    assert client.only_guest()["total"]["two_copies"] == 20


def test_client_sees_a_copy_from_longer_ago_than_it_remembers(client):
    client.beats(1, 2, 3, 500000)
    client.beats(4, mono=9)
    assert client.only_guest()["total"]["two_copies"] == 1


def test_client_takes_a_reboot_for_another_guest(client):
    client.beats(0, 1, 2, boot_id=1)
    client.beats(0, 1, boot_id=2)
    guests = client.ask("report")["guests"]
    assert [(g["total"]["received"], g["total"]["doubled"]) for g in guests] == [(3, 0), (2, 0)]


def test_client_measures_gaps_and_lists_the_long_ones(client):
    client.beat(0)
    before = time.time_ns()
    time.sleep(0.05)
    client.beats(1, 2)
    counts = client.only_guest()["total"]
    assert 50 <= counts["max_gap_ms"] < 250
    assert counts["gap_count"] == 1
    gap = counts["gaps"][0]
    assert gap["start_ns"] <= before < gap["end_ns"] and gap["ms"] == counts["max_gap_ms"]


def test_client_counts_anew_from_the_mark(client):
    client.beats(0, 1, 1, 3)
    time.sleep(0.1)
    client.beats(4, wrong=2)
    client.ask("mark")
    client.beats(5, 6, wrong=2)
    client.beats(7, wrong=3)
    guest_ = client.only_guest()
    assert (guest_["total"]["received"], guest_["total"]["lost"], guest_["total"]["doubled"]) == (8, 1, 1)
    since = guest_["since_mark"]
    assert (since["received"], since["lost"], since["doubled"]) == (3, 0, 0)
    assert since["max_gap_ms"] < 100 <= guest_["total"]["max_gap_ms"]
    assert guest_["pages_wrong"] == 3 and since["pages_wrong"] == 1


def test_client_gives_a_gap_to_the_mark_that_falls_into_it(client):
    client.beats(0, 1)
    time.sleep(0.05)
    client.ask("mark")
    time.sleep(0.05)
    client.beats(2)
    assert client.only_guest()["since_mark"]["max_gap_ms"] >= 100


def test_client_lists_the_longest_gaps(client):
    """Of more than it has room for: those of a throttled guest come by the thousand, and the switch comes last."""
    for seq in range(300):
        client.beat(seq)
        time.sleep(0.012)
    time.sleep(0.1)
    client.beat(300)
    since = client.only_guest()["since_mark"]
    assert since["gap_count"] == 300 and len(since["gaps"]) == 256
    assert max(gap["ms"] for gap in since["gaps"]) == since["max_gap_ms"] > 100


def test_client_waits_for_ready_beats_of_one_address(client):
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as waiter:
        waiter.connect(client.control)
        waiter.sendall(b"wait 127.0.0.1 3\n")
        waiter.settimeout(0.2)
        client.beats(0, 1, 2, 3, ready=False)
        client.beats(4, 5)
        with pytest.raises(TimeoutError):
            waiter.recv(1)
        client.beats(6)
        waiter.settimeout(10)
        assert waiter.recv(1) == b"{"


def test_client_forgets_a_guest_that_starts_again_from_a_saved_state(client):
    client.beats(*range(1000))
    assert client.ask("forget 127.0.0.2") == {"forgotten": True}
    assert client.only_guest()["total"]["received"] == 1000
    assert client.ask("forget 127.0.0.1") == {"forgotten": True}
    client.beats(*range(500, 520), mono=9)
    assert client.ask("wait 127.0.0.1 20")["guests"][0]["total"]["two_copies"] == 0
    client.beats(*range(500, 510), mono=8)
    assert client.only_guest()["total"]["two_copies"] == 10, "one that comes after is another copy"


def test_client_ignores_what_is_no_beat(client):
    client.sender.send(b"hello")
    client.sender.send(BEAT.pack(1, *range(17)))
    client.sender.send(BEAT.pack(BEAT_MAGIC, *range(17)) + b"more")
    client.beat(0)
    report = client.ask("report")
    assert report["strangers"] == 3 and len(report["guests"]) == 1
    assert client.ask("nonsense") == {"error": "not a question"}


def test_client_reports_when_it_ends(tmp_path):
    client = Client(tmp_path)
    client.beats(0, 1)
    client.ask("wait * 2")
    assert client.close()["guests"][0]["total"]["received"] == 2
    assert not os.path.exists(client.control)


# ---- definitions ----

@pytest.fixture
def built(tmp_path, monkeypatch):
    """define() with small files in place of what takes apt and a minute to build."""
    cache = tmp_path / "cache"
    cache.mkdir()
    files = {name: cache / name for name in ("vmlinuz", "initramfs", "base")}
    for path in files.values():
        path.write_bytes(b"x" * 10000)
    monkeypatch.setattr(guest, "build_kernel", lambda: {"vmlinuz": files["vmlinuz"]})
    monkeypatch.setattr(guest, "build_tiny", lambda: files["initramfs"])
    monkeypatch.setattr(guest, "build_debian", lambda: files["base"])
    shared = tmp_path / "shared"
    shared.mkdir()
    return shared


def read(shared, view_path):
    assert view_path.startswith("/srv/shared/")
    return json.loads((shared / view_path.removeprefix("/srv/shared/")).read_text())


def test_definition_has_the_keys_that_ferry_knows(built):
    definition = read(built, guest.define("tiny", load="200:20", fill="text:16", memory=512, shared=built))
    assert set(definition) == {"name", "uuid", "owner", "machine", "cpu", "vcpus", "memory_mib", "disks", "nics",
                               "serial", "kernel", "initrd", "cmdline"}
    assert definition["name"] == "tiny1" and definition["memory_mib"] == 512 and definition["disks"] == []
    words = definition["cmdline"].split()
    for word in ("ferry.load=200:20", "ferry.fill=text:16", "ferry.ip=198.18.1.10/24",
                 "ferry.client=198.18.1.250:4799"):
        assert word in words
    # The kernel is the file in the cache, not a copy of it.
    kernel = built / definition["kernel"].removeprefix("/srv/shared/")
    assert kernel.stat().st_nlink == 2


def test_definition_with_a_disk_load(built):
    definition = read(built, guest.define("tiny", disk_load="4:1.5", disk=True, shared=built))
    assert "ferry.disk-load=/dev/vdb:1.5" in definition["cmdline"].split()
    assert (built / "tiny1.load").stat().st_size == 4 << 20
    node = json.loads(definition["extra_args"][1])
    assert (node["filename"], node["locking"]) == ("/srv/shared/tiny1.load", "off")
    with pytest.raises(guest.GuestError, match="disk load"):
        guest.define("tiny", disk_load="fast", shared=built)


def test_definitions_of_one_lab_share_nothing(built):
    definitions = [read(built, guest.define("tiny", shared=built)) for _ in range(3)]
    for values in zip(*[(d["name"], d["uuid"], d["nics"][0]["mac"], guest.guest_address(d)) for d in definitions]):
        assert len(set(values)) == 3
    seeds = {re.search(r"ferry\.seed=(\S+)", d["cmdline"]).group(1) for d in definitions}
    assert len(seeds) == 3


def test_definition_refuses_what_cannot_be(built):
    guest.define("tiny", name="one", ip="198.18.1.20", shared=built)
    for wrong in ({"name": "one"}, {"ip": "198.18.1.20"}, {"ip": "10.0.0.1"}, {"load": "fast"}, {"fill": "zeros"},
                  {"load": "300:1", "memory": 256}, {"name": "../x"}):
        with pytest.raises(guest.GuestError):
            guest.define("tiny", shared=built, **wrong)
    with pytest.raises(guest.GuestError, match="is the lab up"):
        guest.define("tiny", shared=built / "nowhere")


def test_debian_guest_has_a_disk_of_its_own(built):
    definition = read(built, guest.define("debian", shared=built))
    (disk,) = definition["disks"]
    assert disk == {"target": "vda", "path": "/srv/shared/debian1.img", "format": "raw", "bus": "virtio",
                    "cache": "none"}
    status = (built / "debian1.img").stat()
    assert status.st_nlink == 1 and status.st_mode & 0o777 == 0o600
    if os.geteuid() == 0:
        assert (status.st_uid, status.st_gid) == guest.QEMU_USER
    assert "ferry.root=/dev/vda" in definition["cmdline"] and "ferry.warm=1" in definition["cmdline"]
    assert not [path for path in built.iterdir() if path.name.startswith(".debian1")]
