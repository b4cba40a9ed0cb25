"""Today's code gives what is stored for the bundled ladder in tests/golden/ladder.json, by tests/golden/make.py."""

import json
from importlib.util import find_spec

import numpy as np
import pytest

from bayesqid import cells
from golden import make

STORED = json.loads(make.STORED.read_text())["checkpoints"]
# one of each architecture, small enough for every day
QUICK = ("tiny-neox/tiny-neox-25k@step1953", "tiny-llama/tiny-llama-27k@step244", "tiny-opt/tiny-opt-25k@step977")
# packages of the extra `quantizers`
NEEDS = {"rtn-nf4": "bitsandbytes", "hqq-w4-g64": "hqq"}
# nats per token: another instruction set moves recipes without calibration by 1.3e-7, batches and threads not at all
TOLERANCE = 1e-6
# Calibrated ones are as near in over half of the cells. In the others noise in the last digit tips a weight half-way
# between two codes, and what follows goes another way: other batches or instructions moved QiD by up to 1.8 and KL by
# up to .3 of what another draw of the calibration text does
TIPPED = {"qid": 3.0, "kl_base_q": 1.0, "kl_q_base": 1.0}


def drawn(qid: float) -> float:
    """Standard deviation of QiD over draws of the calibration text, nats per token (docs/calibration-noise.md)."""
    return 0.1 * float(np.hypot(qid, cells.EVEN_QID))


def compare(checkpoints, recipes) -> None:
    """Measure cells anew: all as near to what is stored as is tolerated, and of each recipe one really near."""
    found = make.results(make.measure(checkpoints, recipes))
    assert set(found) == set(checkpoints)
    far, near = [], set()
    for name, now in found.items():
        stored = STORED[name]
        assert now["weight_sha256"] == stored["weight_sha256"]
        assert now["tokens"] == stored["tokens"]
        assert now["loss16"] == pytest.approx(stored["loss16"], abs=TOLERANCE)
        for recipe, cell in now["recipes"].items():
            before = stored["recipes"][recipe]
            assert cell["effective_bits"] == before["effective_bits"]
            apart = {key: abs(cell[key] - before[key]) for key in before}
            tipped = recipe in make.CALIBRATED
            allowed = {key: TOLERANCE + tipped * share * drawn(before["qid"]) for key, share in TIPPED.items()}
            allowed["top1"] = 0.02 if tipped else 2e-4
            far += [(name, recipe, key, cell[key], before[key]) for key in allowed if apart[key] > allowed[key]]
            near |= {recipe} if all(apart[key] <= TOLERANCE for key in TIPPED) else set()
    assert far == []
    assert near == {"none", *recipes}


def there(recipes) -> list[str]:
    return [name for name in recipes if name not in NEEDS or find_spec(NEEDS[name])]


def test_three_checkpoints_measure_as_they_did():
    compare(QUICK, there((*make.PLAIN, "gptq-w3-g32", "awq-w3-g32")))


@pytest.mark.soak
def test_all_stored_cells_measure_as_they_did():
    compare(make.CHECKPOINTS, there((*make.PLAIN, *make.CALIBRATED)))


def test_what_is_stored_tells_recipes_apart():
    for name, stored in STORED.items():
        values = [cell["qid"] for recipe, cell in stored["recipes"].items() if recipe != "none"]
        assert len(set(np.round(values, 7))) == len(values), name
