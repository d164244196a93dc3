# SPDX-License-Identifier: Apache-2.0
"""Measures Ferry beside `virsh migrate`, on the same guests, links and minutes.

What is where: cases.py (which guests on which links), contest.py (one case from boot to the last move), measure.py (one
move, measured), virsh.py and ferry.py (the two drivers), floor.py (what no mover can beat), rows.py (medians, ratios,
table), machine.py (what it all ran on, and what it needs).
"""
