# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the system tests. Those which need a lab make one a module and use it over."""

import os
import sys

import pytest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))


def pytest_configure(config):
    config.addinivalue_line("markers", "slow: takes long; run with `make test-slow`, not with `make test`")


@pytest.fixture(autouse=True)
def guests_found(request):
    """Each test begins with its module's hosts at work and its guests where they are, whatever the one before has left."""
    if "pair" in request.fixturenames:
        request.getfixturevalue("pair").find_guests()
