# SPDX-License-Identifier: Apache-2.0
"""Measures Ferry beside `virsh migrate`, on the same guests, links and minutes.

What is where: cases.py (which guests on which links, moved by whom), campaign.py (a whole run of bench/compare or
bench/converge), stage.py (a lab with guests), contest.py (one case from boot to the last move), measure.py (one move,
measured), virsh.py and ferry.py (the two drivers), floor.py (what no mover can beat), rows.py (medians, ratios, tables),
machine.py (what it all ran on, and what it needs).
"""
