# SPDX-License-Identifier: Apache-2.0
"""Which QEMU the lab's guests run on.

QEMU before 9.0 loses writes of an emulated guest while it migrates it (see vm/qemu_arguments.c for what Ferry does about
it), and Debian 12 has 7.2. So the lab takes the newer one that Debian offers for its stable release, the package in
"backports": fetched by the machine's own apt from wherever the machine gets Debian from, unpacked into
$FERRY_BUILD/qemu and never installed. Where it cannot be had, the machine's own is used, with a word about it.

    provide()   the QEMU to use, fetched if need be; the second time costs nothing
    main(argv)  `lab/lab qemu`

The folder may be in a place that guests' user cannot reach (a checkout below /root), so hosts see it at /run/qemu; its
wrapper, `qemu-system-x86_64`, finds everything from where it stands, and does as [qemu] binary and as libvirt's emulator.
"""

import argparse
import contextlib
import fcntl
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from .errors import LabError

REPO = Path(__file__).resolve().parent.parent.parent
SUITE = "bookworm"
NEWER_SUITE = "bookworm-backports"
PACKAGES = ("qemu-system-x86", "qemu-system-common", "qemu-system-data", "seabios")
SYSTEM_BINARY = "/usr/bin/qemu-system-x86_64"
IN_HOSTS = "/run/qemu"
LIBRARIES = "usr/lib/x86_64-linux-gnu"
MIGRATES_EMULATED = (9, 0)  # from this version on, no write of an emulated guest is lost
CHOICES = ("backports", "system")
FAILURE_KEPT_S = 900  # a machine without a way to the packages is not asked at each `lab up`

WRAPPER = """\
#!/bin/sh
# QEMU from a package that is unpacked beside this file. Written by lab/ferrylab/qemu.py.
here=${{0%/*}}
export QEMU_MODULE_DIR="$here/root/{libraries}/qemu"
{library_path}exec "$here/root/usr/bin/qemu-system-x86_64" -L "$here/root/usr/share/qemu" -L "$here/root/usr/share/seabios" \\
	-L /usr/lib/ipxe/qemu "$@"
"""


@dataclass(frozen=True)
class Qemu:
    which: str  # "backports" or "system"
    version: str  # "10.0.2"
    binary: str  # as hosts of a lab see it
    folder: str | None  # what hosts see at /run/qemu

    @property
    def numbers(self):
        return tuple(int(word) for word in self.version.split("."))

    @property
    def migrates_emulated(self):
        """Whether it migrates emulated guests without losing writes."""
        return self.numbers >= MIGRATES_EMULATED

    @property
    def outside(self):
        """The binary's path on the machine itself."""
        return os.path.join(self.folder, "qemu-system-x86_64") if self.folder else self.binary


def of_lab(state):
    """The QEMU of a lab by its state.json; None: it has none."""
    return Qemu(**state["qemu"]) if state.get("qemu") else None


def to_state(qemu):
    return asdict(qemu) if qemu else None


def _build_dir(build=None):
    return Path(build or os.environ.get("FERRY_BUILD") or REPO / "build").resolve()


def _run(command, **options):
    done = subprocess.run([str(word) for word in command], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, text=True, check=False, **options)
    if done.returncode != 0:
        tail = "\n".join(done.stdout.strip().splitlines()[-4:])
        raise LabError(f"{command[0]} {command[-1]} failed with {done.returncode}: {tail}")
    return done.stdout


def _version_of(binary):
    found = re.match(r"QEMU emulator version (\d+\.\d+\.\d+)", _run([binary, "--version"]))
    if not found:
        raise LabError(f"{binary} --version says nothing that is known")
    return found.group(1)


# ---- where the machine gets Debian from ----

def _apt_paths():
    """The file and the folder of apt's sources."""
    text = _run(["apt-config", "shell", "file", "Dir::Etc::sourcelist/f", "folder", "Dir::Etc::sourceparts/d"])
    found = dict(re.findall(r"^(\w+)='(.*)'$", text, re.M))
    return Path(found["file"]), Path(found["folder"])


def _from_lines(text):
    """One-line format: the line for the newer suite, made of that for the stable one."""
    for line in text.splitlines():
        match = re.match(r"\s*deb\s+(\[[^]]*\]\s+)?(\S+)\s+(\S+)\s+([^#]+)", line)
        if match and match.group(3).rstrip("/") == SUITE and "main" in match.group(4).split():
            yield f"deb {match.group(1) or ''}{match.group(2)} {NEWER_SUITE} main\n"


def _from_stanzas(text):
    """deb822 format: the stanza with the suite replaced, so that a key in it, by name or whole, stays."""
    for stanza in re.split(r"\n\s*\n", text):
        fields = {}
        last = None
        for line in stanza.splitlines():
            if line.startswith("#"):
                continue
            if line[:1] in " \t" and last:
                fields[last] += "\n" + line
            elif ":" in line:
                last, _, value = line.partition(":")
                last = last.strip().lower()
                fields[last] = value.strip()
        if "deb" not in fields.get("types", "").split() or SUITE not in fields.get("suites", "").split() or \
                "main" not in fields.get("components", "").split() or \
                fields.get("enabled", "yes").lower() in ("no", "false", "0", "off", "without", "disable"):
            continue
        fields.update({"types": "deb", "suites": NEWER_SUITE, "components": "main"})
        yield "".join(f"{key}: {value}\n" for key, value in fields.items())


def newer_source(source_file, source_folder):
    """(name, text) of a file of sources for the newer suite, from the place, and with the key, that the machine's own
    sources name for the stable one."""
    files = [Path(source_file), *sorted(Path(source_folder).glob("*.list")), *sorted(Path(source_folder).glob("*.sources"))]
    for path in files:
        with contextlib.suppress(FileNotFoundError):
            text = path.read_text(encoding="utf-8", errors="replace")
            stanzas = path.suffix == ".sources"
            for found in (_from_stanzas if stanzas else _from_lines)(text):
                return "newer.sources" if stanzas else "newer.list", found
    raise LabError(f"apt's sources name no place for Debian's {SUITE}")


# ---- fetching ----

def _private_apt(scratch):
    """apt's options for lists, cache and sources of our own; the machine's proxies and keys hold."""
    for name in ("sources", "lists/partial", "cache/archives/partial", "none"):
        (scratch / name).mkdir(parents=True)
    name, text = newer_source(*_apt_paths())
    (scratch / "sources" / name).write_text(text)
    (scratch / "status").touch()
    options = {
        "Dir::Etc::sourcelist": "/dev/null", "Dir::Etc::sourceparts": scratch / "sources",
        "Dir::Etc::preferences": "/dev/null", "Dir::Etc::preferencesparts": scratch / "none",
        "Dir::State": scratch, "Dir::State::lists": scratch / "lists", "Dir::State::status": scratch / "status",
        "Dir::Cache": scratch / "cache", "APT::Sandbox::User": "root", "Acquire::Languages": "none",
        "Acquire::Retries": "2", "Acquire::http::Timeout": "20", "Acquire::https::Timeout": "20",
    }
    return [word for key, value in options.items() for word in ("-o", f"{key}={value}")]


def _unpack(folder, root):
    for deb in sorted(folder.glob("*.deb")):
        _run(["dpkg", "-x", deb, root])


def _lacking(binary, libraries):
    done = _run(["ldd", binary], env={**os.environ, "LD_LIBRARY_PATH": str(libraries), "LC_ALL": "C"})
    return re.findall(r"^\s*(\S+) => not found", done, re.M)


def _fetch_libraries(scratch, root):
    """What the program needs and the machine does not have, from the machine's own release, unpacked as well; whether
    there was any."""
    binary, libraries, seen = root / "usr/bin/qemu-system-x86_64", root / LIBRARIES, set(PACKAGES)
    places = [scratch / "debs"]
    while lacking := _lacking(binary, libraries):
        depends = ", ".join(_run(["dpkg-deb", "-f", deb, "Depends"]) for place in places for deb in place.glob("*.deb"))
        wanted = []
        for name in sorted(set(re.findall(r"(?:^|,)\s*([a-z0-9][a-z0-9+.-]+)", depends.replace("\n", ""))) - seen):
            known = subprocess.run(["dpkg-query", "-W", "-f", "${db:Status-Status}", name], text=True, check=False,
                                   stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
            seen.add(name)
            if known.stdout.strip() != "installed":
                wanted.append(name)
        if not wanted:
            raise LabError(f"no package has {', '.join(lacking)}")
        places = [scratch / f"debs{len(seen)}"]
        places[0].mkdir()
        _run(["apt-get", "-q", "-o", "APT::Sandbox::User=root", "download", *wanted], cwd=places[0])
        _unpack(places[0], root)
    return len(seen) > len(PACKAGES)


def _hide_other_modules(target):
    """QEMU looks into the folder of the machine's own QEMU for modules that are not in ours, and aborts on those of
    another build as soon as somebody asks it for all of its types, as libvirt does. What is empty it only skips."""
    with contextlib.suppress(FileNotFoundError):
        for name in os.listdir("/" + LIBRARIES + "/qemu"):
            place = target / "root" / LIBRARIES / "qemu" / name
            if name.endswith(".so") and not place.exists():
                place.touch()


def _fetch(target, say):
    """Everything into a folder that gets its name when it is whole."""
    scratch = Path(tempfile.mkdtemp(prefix="qemu-tmp-", dir=target.parent))
    try:
        (scratch / "debs").mkdir()
        (scratch / "new").mkdir()
        root = scratch / "new" / "root"
        apt = _private_apt(scratch)
        say(f"fetching QEMU from {NEWER_SUITE} (15 MB)")
        _run(["apt-get", "-q", *apt, "--error-on=any", "update"])
        _run(["apt-get", "-q", *apt, "download", *PACKAGES], cwd=scratch / "debs")
        _unpack(scratch / "debs", root)
        own_libraries = _fetch_libraries(scratch, root)
        wrapper = scratch / "new" / "qemu-system-x86_64"
        library_path = f'export LD_LIBRARY_PATH="$here/root/{LIBRARIES}"\n' if own_libraries else ""
        wrapper.write_text(WRAPPER.format(libraries=LIBRARIES, library_path=library_path))
        for path in (scratch / "new", root, wrapper):
            os.chmod(path, 0o755)
        version = _version_of(wrapper)
        (scratch / "new" / "version").write_text(version + "\n")
        os.rename(scratch / "new", target)
        return version
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


@contextlib.contextmanager
def _locked(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", encoding="ascii") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _backports(build, say, insist):
    target = build / "qemu"
    with contextlib.suppress(FileNotFoundError):
        version = (target / "version").read_text().strip()
        _hide_other_modules(target)  # each time: more of them may have been installed
        return Qemu("backports", version, IN_HOSTS + "/qemu-system-x86_64", str(target))
    failure = build / "qemu.failure"
    with _locked(build / "qemu.lock"):
        if not (target / "version").exists():
            with contextlib.suppress(OSError):
                if not insist and 0 <= time.time() - failure.stat().st_mtime < FAILURE_KEPT_S:
                    raise LabError(failure.read_text().strip())
            try:
                _fetch(target, say)
            except (LabError, OSError) as error:
                failure.write_text(f"{error}\n")
                raise LabError(str(error)) from None
    failure.unlink(missing_ok=True)
    return _backports(build, say, insist)


def _say(message):
    print(f"lab: {message}", file=sys.stderr, flush=True)


def provide(which=None, build=None, say=_say):
    """which: "backports", "system", or None: $FERRY_LAB_QEMU, and if that is not set the machine's own if it migrates
    emulated guests rightly, else the one of backports, else the machine's own all the same."""
    which = which or os.environ.get("FERRY_LAB_QEMU") or None
    if which not in (None, *CHOICES):
        raise LabError(f"no QEMU {which!r} for the lab; there are: {' '.join(CHOICES)}")
    system = None
    if which != "backports" and os.access(SYSTEM_BINARY, os.X_OK):
        system = Qemu("system", _version_of(SYSTEM_BINARY), SYSTEM_BINARY, None)
    if which == "system":
        if not system:
            raise LabError(f"there is no {SYSTEM_BINARY}: tools/install-packages brings it")
        return system
    if system and system.migrates_emulated:
        return system
    try:
        return _backports(_build_dir(build), say, insist=which is not None)
    except LabError as error:
        if not system:
            raise LabError(f"cannot have QEMU of {NEWER_SUITE}: {error}") from None
        say(f"cannot have QEMU of {NEWER_SUITE} ({error}); using the machine's own, {system.version}: the first "
            "synchronisation of each move takes longer there")
        return system


def main(argv):
    parser = argparse.ArgumentParser(
        prog="lab/lab qemu", description="Provides the QEMU that the lab's guests run on; prints its version and path.",
        epilog="Without --which: the machine's own from 9.0 on, else the one of Debian's backports (fetched, unpacked into "
        "$FERRY_BUILD/qemu, not installed), else the machine's own. $FERRY_LAB_QEMU chooses for all of the lab.")
    parser.add_argument("--which", choices=CHOICES)
    arguments = parser.parse_args(argv)
    qemu = provide(arguments.which)
    print(f"{qemu.version} {qemu.outside}")
    return 0
