# SPDX-License-Identifier: Apache-2.0
"""`ferry stream analyze` on the streams of real QEMUs: the machine's own, and the one that the lab's hosts have."""

import json
import os
import subprocess
import sys

import pytest

REPOSITORY = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path.insert(0, os.path.join(REPOSITORY, "lab"))

from ferrylab import qemu  # noqa: E402

FERRY = os.path.join(os.environ.get("FERRY_BUILD", os.path.join(REPOSITORY, "build")), "ferry")
MEMORY_MIB = 32
PAGE = 4096
BIOS = "/usr/share/seabios/bios-256k.bin"


def keep_stream(binary, path):
    """A guest that has not been started, only its BIOS put into its memory: each of its pages is sent once."""
    process = subprocess.Popen(
        [binary, "-M", "q35", "-m", str(MEMORY_MIB), "-S", "-accel", "tcg", "-display", "none", "-nodefaults", "-vga", "std",
         "-bios", BIOS, "-device", "virtio-balloon-pci", "-qmp", "stdio"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def execute(command, **arguments):
        process.stdin.write(json.dumps({"execute": command, "arguments": arguments}) + "\n")
        process.stdin.flush()

    def await_line(wanted):
        for line in process.stdout:
            said = json.loads(line)
            assert "error" not in said, said
            if wanted(said):
                return said
        raise AssertionError("QEMU has ended")

    execute("qmp_capabilities")
    execute("migrate-set-capabilities", capabilities=[{"capability": "events", "state": True}])
    execute("migrate", uri=f"exec:cat > {path}")
    ended = await_line(lambda said: said.get("event") == "MIGRATION" and said["data"]["status"] in ("completed", "failed"))
    assert ended["data"]["status"] == "completed"
    execute("quit")
    process.communicate(timeout=20)


@pytest.fixture(scope="module", params=["system", None], ids=["system", "lab"])
def stream(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("stream") / "state"
    keep_stream(qemu.provide(request.param).outside, path)
    return path


def analyze(*arguments):
    return subprocess.run([FERRY, "stream", "analyze", *map(str, arguments)], text=True, capture_output=True, timeout=60)


def analyzed(*arguments):
    done = analyze(*arguments, "--output", "json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def text_of(field):
    """A buffer of characters: "70 72 65 …" → "pre…"."""
    return bytes.fromhex(field).split(b"\0")[0].decode()


def test_memory(stream):
    analysis = analyzed(stream)
    blocks = {block["name"]: block["size_bytes"] for block in analysis["blocks"]}
    assert analysis["bytes"] == os.path.getsize(stream)
    assert analysis["machine"].startswith("pc-q35-")
    assert blocks["pc.ram"] == MEMORY_MIB << 20 and blocks["pc.bios"] == os.path.getsize(BIOS)
    records, pages = analysis["records"], analysis["pages"]
    assert (records["zero"] + records["page"]) * PAGE == sum(blocks.values())
    assert records["delta"] == records["compressed"] == 0
    assert pages["pages"] == records["page"] == pages["zero"] + pages["duplicates"] + pages["others"]
    assert 0 < pages["others_compressed_bytes"] < pages["others"] * PAGE


def test_pages_in_images(stream):
    alone, beside = analyzed(stream)["pages"], analyzed(stream, "--image", BIOS)["pages"]
    assert alone["in_images"] == 0 and beside["pages"] == alone["pages"]
    # Of the BIOS's pages some are zero; the rest stands in memory as it stands in the file.
    with open(BIOS, "rb") as file:
        content = file.read()
    filled = sum(any(content[at:at + PAGE]) for at in range(0, len(content), PAGE))
    assert beside["in_images"] >= filled
    assert beside["others"] < alone["others"]


def test_fields_of_devices(stream):
    analysis = analyzed(stream)
    state, (label,) = analysis["state"], [name for name in analysis["state"] if name.startswith("ram (")]
    assert state[label]["section sizes"]["pc.ram"] == f"0x{MEMORY_MIB << 20:016x}"
    names = {name.split(" (")[0]: value for name, value in state.items()}
    assert text_of(names["globalstate"]["runstate"]) == "prelaunch"
    # What the processor begins with.
    assert names["cpu"]["env.eip"] == "0x000000000000fff0"
    assert len(names["cpu"]["env.regs"]) == 16
    assert names["cpu_common"]["halted"] == "0x00000000"
    assert {"timer", "apic", "fw_cfg", "i8254", "mc146818rtc"} <= set(names)
    assert analysis["state_bytes"] > 10000 and analysis["description_bytes"] > 10000 and analysis["unread"] is None


def test_for_people(stream):
    done = analyze(stream, "--image", BIOS)
    assert done.returncode == 0 and not done.stderr
    for words in ("machine type pc-q35-", "pc.ram", "32.0 MiB", "in images", "zstd makes", "Devices: "):
        assert words in done.stdout


def test_cut_off(stream, tmp_path):
    """A file that is not whole says so, and where; it never passes for a smaller guest."""
    size = os.path.getsize(stream)
    cut = tmp_path / "cut"
    data = stream.read_bytes()
    for length in (0, 5, 20, 300, size // 3, size // 2, size - 20000, size - 1):
        cut.write_bytes(data[:length])
        done = analyze(cut, "--output", "json")
        error = json.loads(done.stdout)["error"]
        assert done.returncode == 1 and error["code"] == "data.stream", length
        assert "cut off" in error["message"] and str(cut) in error["message"], length


def test_damaged(stream, tmp_path):
    damaged = tmp_path / "damaged"
    data = bytearray(stream.read_bytes())
    data[data.index(b"pc.ram")] = 0x1b
    damaged.write_bytes(data)
    done = analyze(damaged)
    assert done.returncode == 1 and "damaged: at byte" in done.stderr and "\x1b" not in done.stderr


def test_wrong_files(tmp_path):
    other = tmp_path / "other"
    other.write_text("root:x:0:0\n")
    for path, code, words in ((other, "data.stream", "not a migration stream of QEMU"), (tmp_path / "none", "not_found", "No such file"),
                              (tmp_path, "invalid_argument", "no regular file")):
        done = analyze(path)
        assert done.returncode == (2 if code == "invalid_argument" else 1)
        assert f"({code})" in done.stderr and words in done.stderr
    assert analyze().returncode == 2
    assert "needs" in analyze().stderr


def test_missing_image(stream, tmp_path):
    done = analyze(stream, "--image", tmp_path / "none")
    assert done.returncode == 1 and "none" in done.stderr and "not_found" in done.stderr
