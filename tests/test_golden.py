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


def tie(qid: float) -> float:
    """Standard deviation of QiD over draws of the calibration text, nats per token (docs/calibration-noise.md).

    Calibrated recipes come out alike to the bit on one machine; on others noise in the last digit tips weights half-way
    between two codes, which has to move QiD by less than other calibration text does.
    """
    return 0.1 * float(np.hypot(qid, cells.EVEN_QID))


def differences(checkpoints, recipes) -> dict[str, tuple[float, float]]:
    """By cell: how far QiD and KL are from what is stored, in units of what is tolerated, where that is too far."""
    found = make.results(make.measure(checkpoints, recipes))
    assert set(found) == set(checkpoints)
    far = {}
    for name, now in found.items():
        stored = STORED[name]
        assert now["weight_sha256"] == stored["weight_sha256"]
        assert now["tokens"] == stored["tokens"]
        assert now["loss16"] == pytest.approx(stored["loss16"], abs=TOLERANCE)
        for recipe, cell in now["recipes"].items():
            before = stored["recipes"][recipe]
            assert cell["effective_bits"] == before["effective_bits"]
            allowed = tie(before["qid"]) if recipe in make.CALIBRATED else TOLERANCE
            apart = tuple(abs(cell[key] - before[key]) / allowed for key in ("qid", "kl_base_q", "kl_q_base"))
            top = abs(cell["top1"] - before["top1"]) / (0.02 if recipe in make.CALIBRATED else 2e-4)
            if max(*apart, top) > 1:
                far[f"{name} {recipe}"] = (max(apart), top)
    return far


def there(recipes) -> list[str]:
    return [name for name in recipes if name not in NEEDS or find_spec(NEEDS[name])]


def test_three_checkpoints_measure_as_they_did():
    assert differences(QUICK, there((*make.PLAIN, "gptq-w3-g32", "awq-w3-g32"))) == {}


@pytest.mark.soak
def test_all_stored_cells_measure_as_they_did():
    assert differences(make.CHECKPOINTS, there((*make.PLAIN, *make.CALIBRATED))) == {}


def test_what_is_stored_tells_recipes_apart():
    for name, stored in STORED.items():
        values = [cell["qid"] for recipe, cell in stored["recipes"].items() if recipe != "none"]
        assert len(set(np.round(values, 7))) == len(values), name
