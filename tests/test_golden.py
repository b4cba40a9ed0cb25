"""Today's code gives what is stored for the bundled ladder: tests/golden/ladder.json, written by tests/golden/make.py."""

import json
from importlib.util import find_spec

import pytest

from bayesqid import measurements
from golden import make

GOLDEN = json.loads(make.STORED.read_text())
STORED = GOLDEN["checkpoints"]
# one of each architecture, small enough for every day
QUICK = ("tiny-neox/tiny-neox-25k@step1953", "tiny-llama/tiny-llama-27k@step244", "tiny-opt/tiny-opt-25k@step977")
# packages of the extra `quantizers`
NEEDS = {"rtn-nf4": "bitsandbytes", "hqq-w4-g64": "hqq"}
EXACT = ("effective_bits",)
