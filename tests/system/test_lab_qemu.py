# SPDX-License-Identifier: Apache-2.0
"""The lab's QEMU: where it comes from, what is used when it cannot be had, and that guests' user can run it."""

import os
import subprocess
import sys
import uuid

import pytest

REPOSITORY = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path.insert(0, os.path.join(REPOSITORY, "lab"))

from ferrylab import Lab, LabError, qemu  # noqa: E402

DEB822 = """\
# a comment
Types: deb deb-src
URIs: http://mirror.example/debian
Suites: bookworm bookworm-updates
Components: main contrib
Signed-By:
 -----BEGIN PGP PUBLIC KEY BLOCK-----
 .
 abc
 -----END PGP PUBLIC KEY BLOCK-----

Types: deb
URIs: http://mirror.example/debian-security
Suites: bookworm-security
Components: main
"""


@pytest.fixture
def sources(tmp_path):
    """Writes apt's sources and asks what would be used for the newer suite."""
    (tmp_path / "parts").mkdir()

    def ask(main="", **parts):
        (tmp_path / "sources.list").write_text(main)
        for name, text in parts.items():
            (tmp_path / "parts" / name.replace("_", ".")).write_text(text)
        return qemu.newer_source(tmp_path / "sources.list", tmp_path / "parts")

    return ask


def test_source_from_lines(sources):
    assert sources("# deb http://old.example bookworm main\ndeb-src http://m.example/debian bookworm main\n"
                   "deb http://m.example/debian-security bookworm-security main\n"
                   "deb [arch=amd64 signed-by=/k.gpg] http://m.example/debian bookworm main non-free # ours\n") == \
        ("newer.list", "deb [arch=amd64 signed-by=/k.gpg] http://m.example/debian bookworm-backports main\n")


def test_source_from_stanzas(sources):
    name, text = sources(debian_sources=DEB822)
    assert name == "newer.sources"
    assert text == ("types: deb\nuris: http://mirror.example/debian\nsuites: bookworm-backports\ncomponents: main\n"
                    "signed-by: \n -----BEGIN PGP PUBLIC KEY BLOCK-----\n .\n abc\n -----END PGP PUBLIC KEY BLOCK-----\n")


def test_no_source(sources):
    with pytest.raises(LabError, match="name no place"):
        sources("deb http://m.example/debian trixie main\n", off_sources="Enabled: no\n" + DEB822.split("\n", 1)[1])


class Fetches:
    """Counts the tries to fetch, each of which fails, on a machine with a QEMU of this version."""

    def __init__(self, monkeypatch, system="7.2.22", executable=True):
        self.count, self.said = 0, []
        monkeypatch.delenv("FERRY_LAB_QEMU", raising=False)
        monkeypatch.setattr(qemu, "_fetch", self.fetch)
        monkeypatch.setattr(qemu, "_version_of", lambda _: system)
        monkeypatch.setattr(qemu.os, "access", lambda *_: executable)

    def fetch(self, *_):
        self.count += 1
        raise LabError("no way there")


def test_falls_back(monkeypatch, tmp_path):
    fetches = Fetches(monkeypatch)
    for _ in range(2):  # the second time nothing is tried
        found = qemu.provide(build=tmp_path, say=fetches.said.append)
        assert (found.which, found.binary, found.folder) == ("system", qemu.SYSTEM_BINARY, None)
        assert not found.migrates_emulated
        assert fetches.count == 1
    assert len(fetches.said) == 2 and all("no way there" in text and "7.2.22" in text for text in fetches.said)
    # Who asks for it by name does not get another, and it is tried again.
    with pytest.raises(LabError, match="no way there"):
        qemu.provide("backports", build=tmp_path, say=fetches.said.append)
    assert fetches.count == 2


def test_nothing_at_all(monkeypatch, tmp_path):
    fetches = Fetches(monkeypatch, executable=False)
    with pytest.raises(LabError, match="no way there"):
        qemu.provide(build=tmp_path)
    with pytest.raises(LabError, match="install-packages"):
        qemu.provide("system", build=tmp_path)
    assert fetches.count == 1


def test_new_enough(monkeypatch, tmp_path):
    fetches = Fetches(monkeypatch, system="10.0.8")
    found = qemu.provide(build=tmp_path)
    assert found.which == "system" and found.migrates_emulated
    assert fetches.count == 0


def test_choices(monkeypatch, tmp_path):
    fetches = Fetches(monkeypatch)
    monkeypatch.setenv("FERRY_LAB_QEMU", "system")
    assert qemu.provide(build=tmp_path).version == "7.2.22"
    monkeypatch.setenv("FERRY_LAB_QEMU", "sytem")
    with pytest.raises(LabError, match="sytem"):
        qemu.provide(build=tmp_path)
    assert fetches.count == 0


def test_apt_cannot(monkeypatch, tmp_path):
    """The real apt with a source that is not there: an error of one line, and nothing left but the lock and the note."""
    (tmp_path / "sources.list").write_text("deb [trusted=yes] file:/nonexistent bookworm main\n")
    monkeypatch.setattr(qemu, "_apt_paths", lambda: (tmp_path / "sources.list", tmp_path / "parts"))
    with pytest.raises(LabError, match="apt-get"):
        qemu.provide("backports", build=tmp_path / "build", say=lambda _: None)
    assert sorted(os.listdir(tmp_path / "build")) == ["qemu.failure", "qemu.lock"]


@pytest.mark.skipif(os.geteuid() != 0, reason="namespaces need root")
def test_guests_user_can_run_it(tmp_path):
    """Whatever the build directory's place (this one is closed to all but root): in a host it works, and it can say all
    of its types, as libvirt asks it to, whatever other QEMU the machine has."""
    try:
        found = qemu.provide("backports", say=lambda _: None)
    except LabError as error:
        pytest.skip(str(error))
    os.chmod(tmp_path, 0o700)
    subprocess.run(["cp", "-a", found.folder, tmp_path / "qemu"], check=True)
    with Lab("test-" + uuid.uuid4().hex[:8], build=tmp_path).up(hosts=1, ferryd=False, with_qemu="backports") as lab:
        assert lab.qemu.version == found.version and lab.qemu.folder == str(tmp_path / "qemu")
        said = lab.host("host-a").run(
            ["setpriv", "--reuid=61000", "--regid=61000", "--clear-groups", lab.qemu.binary, "-nodefaults", "-display",
             "none", "-machine", "none", "-accel", "tcg", "-S", "-qmp", "stdio"],
            input="".join(f'{{"execute": "{name}"}}\n' for name in ("qmp_capabilities", "qom-list-types", "quit"))).stdout
        assert f'"major": {lab.qemu.numbers[0]}' in said and '"name": "virtio-blk-device"' in said
        folders = lab.host("host-a").run([lab.qemu.binary, "-L", "help"]).stdout.splitlines()
        assert folders[0] == "/run/qemu/root/usr/share/qemu"


@pytest.mark.skipif(os.geteuid() != 0, reason="namespaces need root")
def test_driver_with_it():
    """The driver's unit tests run on the machine's own QEMU; here on the lab's, which may be another."""
    with Lab("test-" + uuid.uuid4().hex[:8]).up(hosts=1, ferryd=False, with_qemu=qemu.provide().which) as lab:
        program = os.path.join(lab.build, "tests", "unit", "test_driver_qemu")
        if not os.access(program, os.X_OK):
            pytest.skip(f"{program} is not built")
        done = lab.host("host-a").run([program], env={"FERRY_TEST_QEMU": lab.qemu.binary}, check=False, timeout=300)
        assert done.returncode == 0 and "PASSED" in done.stdout + done.stderr, done.stdout + done.stderr
        assert "SKIPPED" not in done.stdout + done.stderr
