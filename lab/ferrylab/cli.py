# SPDX-License-Identifier: Apache-2.0
"""The command `lab/lab`: reads its line, calls class Lab, and speaks to people."""

import argparse
import json
import os
import sys

from . import disk, qemu
from .errors import LabError
from .lab import Lab


def command_up(arguments):
    lab = Lab(arguments.name)
    lab.up(hosts=arguments.hosts, rate=arguments.rate, delay=arguments.delay, trusted=arguments.trusted,
           ferryd=not arguments.no_ferryd, with_qemu=arguments.qemu)
    print(f"lab {lab.name!r} is up: " + ", ".join(f"{host.name} {host.address}" for host in lab.hosts)
          + (f"; QEMU {lab.qemu.version}" if lab.qemu else ""))
    return 0


def command_exec(arguments):
    command = arguments.command[1:] if arguments.command[:1] == ["--"] else arguments.command
    if not command:
        raise LabError("nothing to execute")
    host = Lab(arguments.name).host(arguments.host)
    entered = host.enter(command)
    os.execvpe(entered[0], entered, host.environment())


def command_down(arguments):
    Lab(arguments.name).down(keep_state=arguments.keep_state)
    return 0


def command_status(arguments):
    lab = Lab(arguments.name)
    hosts = [{"name": host.name, "address": host.address, "up": host.is_up(), "ferryd_pid": lab.ferryd_pid(host)}
             for host in lab.hosts]
    status = {"name": lab.name, "path": lab.path, "up": lab.is_up(), "rate_bits": lab.rate_bits,
              "delay_us": lab.delay_us, "trusted": lab.trusted, "hosts": hosts, "qemu": qemu.to_state(lab.qemu), "forwarder": lab.forwarder_stats()}
    if arguments.output == "json":
        print(json.dumps(status, indent=1))
        return 0 if status["up"] else 1
    print(f"lab {lab.name!r} is {'up' if status['up'] else 'not up'}"
          + (f", {lab.rate_bits / 1e6:g} Mbit/s" if lab.rate_bits else "")
          + (f", {lab.delay_us / 1e3:g} ms round trip" if lab.delay_us else "")
          + (f", QEMU {lab.qemu.version}" if lab.qemu else ""))
    for host in hosts:
        print(f"  {host['name']:8} {host['address']:13} {'up' if host['up'] else 'gone':5} "
              + (f"ferryd {host['ferryd_pid']}" if host["ferryd_pid"] else "no ferryd"))
    for name, counters in status["forwarder"].items():
        dropped = counters["dropped_full"] + counters["dropped_kernel"] + counters["dropped_send"]
        print(f"  delayed from {name}: {counters['frames_in']} frames, {dropped} dropped, "
              f"at most {counters['late_max_ns'] / 1e6:.3f} ms late")
    return 0 if status["up"] else 1


def command_guest(arguments):
    from . import guest  # pylint: disable=import-outside-toplevel  (a lab without guests need not have it)
    return guest.main(arguments)


def parser():
    top = argparse.ArgumentParser(prog="lab/lab", description="Hosts, links and guests on one machine.",
                                  epilog="A lab's name is --name, else $FERRY_LAB, else \"lab\". "
                                  "Binaries and state are in $FERRY_BUILD, else in build/.")
    verbs = top.add_subparsers(dest="verb", required=True, metavar="VERB")

    def verb(name, function, help_text):
        sub = verbs.add_parser(name, help=help_text, description=help_text)
        sub.add_argument("--name", help="the lab, where there are several")
        sub.set_defaults(function=function)
        return sub

    sub = verb("up", command_up, "make the hosts and connect them")
    sub.add_argument("--hosts", type=int, default=2, metavar="N", help="how many (default 2)")
    sub.add_argument("--rate", metavar="RATE", help="of each host's link, either direction, such as 1gbit; "
                     "default: as fast as the machine can")
    sub.add_argument("--delay", metavar="TIME", help="added round trip between any two hosts, such as 20ms "
                     "(half of it each way); default: none")
    sub.add_argument("--trusted", action="store_true", help="ferryd may send in plain text on this network")
    sub.add_argument("--no-ferryd", action="store_true", help="hosts and links only")
    sub.add_argument("--qemu", choices=qemu.CHOICES, help="what guests run on; default: see lab/lab qemu --help")

    sub = verb("exec", command_exec, "run a command in a host, the client or the switch")
    sub.add_argument("host", metavar="HOST", help="host-a, host-b, …, client or sw")
    sub.add_argument("command", metavar="-- COMMAND…", nargs=argparse.REMAINDER)

    sub = verb("down", command_down, "end everything in the lab and remove it")
    sub.add_argument("--keep-state", action="store_true", help="leave logs and files; a second down removes them")

    sub = verb("status", command_status, "show what is up; fails when the lab is not")
    sub.add_argument("--output", choices=("text", "json"), default="text")

    verbs.add_parser("guest", add_help=False, help="build a guest and print the path of its definition")
    verbs.add_parser("disk", add_help=False, help="say whether two guests wrote the image of a disk load at once")
    verbs.add_parser("qemu", add_help=False, help="fetch the QEMU that guests run on")
    return top


def main(argv):
    try:
        if argv[:1] == ["guest"]:
            return command_guest(argv[1:])
        if argv[:1] == ["disk"]:
            return disk.main(argv[1:])
        if argv[:1] == ["qemu"]:
            return qemu.main(argv[1:])
        arguments = parser().parse_args(argv)
        return arguments.function(arguments)
    except LabError as error:
        print(f"lab: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
