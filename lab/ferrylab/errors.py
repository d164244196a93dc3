# SPDX-License-Identifier: Apache-2.0
"""The one exception that the lab raises on purpose; its text is meant for the user."""


class LabError(Exception):
    pass
