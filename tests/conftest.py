"""Hypothesis draws the same examples on every run of continuous integration; elsewhere it goes on exploring."""

import os

from hypothesis import settings

settings.register_profile("repeatable", derandomize=True, database=None)
if os.environ.get("CI"):
    settings.load_profile("repeatable")
