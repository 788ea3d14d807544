"""Shared by all tests: one thread each (pytest-xdist keeps the cores busy), and sibling modules importable by folder."""

import os
import sys
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parent))


def pytest_addoption(parser):
    parser.addoption("--regenerate", action="store_true", help="write the golden files anew; review the difference")
