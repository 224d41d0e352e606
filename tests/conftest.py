"""Fixtures and settings of the whole suite."""

from __future__ import annotations

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # for strategies.py, under importlib import mode

from fmnist import process

process.prepare()  # as the commands do it, before torch

from hypothesis import settings

settings.register_profile("suite", derandomize=bool(os.environ.get("CI")), print_blob=True)
settings.load_profile("suite")
