# SPDX-License-Identifier: Apache-2.0
"""A lab of two hosts, guests that are paused but for the one that is measured, and links whose rate can change."""

import json
import os

from ferrylab import Lab, links
from ferrylab import guest as lab_guest

from .ferry import Ferry
from .measure import Heartbeats
from .virsh import Virsh, start_daemon

BOOT_S = 600


class Stage:
    def __init__(self, qemu, encrypted, lab_name, say=print):
        self.qemu, self.encrypted, self.say = qemu, encrypted, say
        self.lab = Lab(lab_name)
        self.beats = None
        self.active = None
        self.limited = False

    def up(self, with_ferry=True, with_virsh=False, config=None, **heartbeats):
        """In a `try`, since what fails here has to be taken down as well. heartbeats: more for Heartbeats()."""
        self.lab.up(hosts=2, trusted=not self.encrypted, ferryd=with_ferry, with_qemu=self.qemu.which,
                    config=config)
        self.beats = Heartbeats(self.lab, **heartbeats)
        if with_virsh:
            for host in self.lab.hosts:
                start_daemon(host)

    def down(self):
        self.lab.down()

    def define(self, name, side, kind, guest):
        """A driver for a new guest that has not been started yet."""
        path = lab_guest.define(kind, name=name, lab=self.lab.name, **guest)
        with open(os.path.join(self.lab.path, "shared", os.path.basename(path)), encoding="utf-8") as file:
            definition = json.load(file)
        address = lab_guest.guest_address(definition)
        if side is Ferry:
            return Ferry(self.lab, definition, address, path, self.encrypted)
        return Virsh(self.lab, definition, address)

    def boot(self, *drivers):
        """Starts their guests, all at once; they are paused once they are heard."""
        self.beats.ask("mark")
        for driver in drivers:
            driver.start(driver.host or self.lab.hosts[0])
        for driver in drivers:
            self.beats.wait(driver.address, 1, BOOT_S)
        for driver in drivers:
            driver.pause()

    def activate(self, driver):
        """Its guest runs, and no other."""
        if self.active is not driver:
            self.rest()
            driver.resume()
            self.active = driver

    def rest(self):
        if self.active is not None:
            self.active.pause()
            self.active = None

    def revive(self, driver):
        """After a move, or its lost memory, has killed the guest: more is to be measured."""
        self.say("    booting the guest anew")
        driver.stop()
        self.beats.ask("mark")
        driver.start(driver.host)
        self.beats.wait(driver.address, 1, BOOT_S)

    def other_host(self, driver):
        return next(host for host in self.lab.hosts if host is not driver.host)

    def set_rate(self, rate):
        """Of each host's link, both ways; None: as fast as the machine can."""
        ends = [(host, "eth0") for host in self.lab.hosts]
        ends += [(self.lab.switch, f"m{host.number}") for host in self.lab.hosts]
        for host, interface in ends:
            if self.limited:
                host.net("tc", [f"qdisc del dev {interface} root"])
            if rate:
                host.net("tc", [f"qdisc add dev {interface} root {links.token_bucket(links.parse_rate(rate), 0)}"])
        self.limited = bool(rate)
