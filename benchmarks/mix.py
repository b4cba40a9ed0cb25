"""What choosing the format of every linear layer gains over random assignments, and what a search costs.

    python benchmarks/mix.py [cost] [gain] [uniform] [noise]     # all without a name; ten minutes of one core

`cost`: CPU seconds of a search of 50 trials over those of evaluating the same 50 assignments one by one (rounding, all
blocks and the loss each time), one thread, one process: independent trials and trials that share trunks, linear layer
by linear layer and block by block, on models of the ladder and on random ones of 12 and 24 blocks. `gain`: QiD of
knapsack, greedy and the best of 50 less the mean of ten random assignments of the same budget, on the evaluation text;
all were chosen on the calibration text. `uniform`: knapsack at the bits of rtn-w3 less rtn-w3 for all layers. `noise`:
the best of 50 five times over, trials independent and with shared trunks: standard deviation of its ln QiD. Results are
added to benchmarks/results/mix.jsonl; what stands there is not done again. Nothing fails on time.
"""

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

RESULTS = Path(__file__).parent / "results" / "mix.jsonl"
NOBODY = {"family": None, "tokens": None, "lr_phase": "unknown", "called": None}
GAINS = (
    "tiny-neox/tiny-neox-25k@step1953", "tiny-llama/tiny-llama-27k@step977", "tiny-opt/tiny-opt-25k@step977",
    "tiny-neox/tiny-neox-100k@step1953", "tiny-opt/tiny-opt-51k@step977", "tiny-llama/tiny-llama-54k@step977",
    "tiny-neox/tiny-neox-25k@step244",
)  # fmt: skip
NOISY = ("tiny-neox/tiny-neox-25k@step1953", "tiny-opt/tiny-opt-51k@step977")
COSTLY = ("tiny-neox/tiny-neox-25k@step1953", "tiny-llama/tiny-llama-54k@step977", "random, 12 blocks",
          "random, 24 blocks")  # fmt: skip
BUDGETS = ("3bits", "3.5bits")
# what is searched over in `cost` -> formats and budget: two formats at a share of 0.75, five formats
SPACES = {"mxint4 at 0.75": (("rtn-mxint4", "none"), "7.1875bits"), "five formats": (None, "3.5bits")}
TRIALS, REPEATS, DRAWS = 50, 5, 10
# documents of the calibration text: in `gain` all
MOST, FEW, FEWEST = 128, 64, 16


def prepared(name: str, documents: int):
    """A checkpoint of the ladder before the calibration and before the evaluation text, with their tokens."""
    from bayesqid.measure import load, mix, text
    from bayesqid.measure import plan as planning
    from bayesqid.measure.checkpoint import prepare
    from bayesqid.measure.parts import Found

    load.quiet()
    plan = planning.make("tiny", ["none"], "cpu", {}, NOBODY)
    checkpoint = next(one for one in plan.checkpoints if one.id == name)
    ready = prepare(plan, checkpoint, Path(checkpoint.hub), {}, Found())
    tokenizer, context = Path(plan.tokenizer or checkpoint.hub), plan.protocol.context
    cut = text.cut(list(plan.calibration), plan.protocol.max_bytes)[:documents]
    return [mix.on_text(ready, documents, tokenizer, context, 10**6) for documents in (cut, plan.documents)]


def random_model(blocks_count: int):
    """A random Llama of a number of blocks before random tokens, and their number by window."""
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    from bayesqid.measure import blocks, layers, text, together
    from bayesqid.measure.checkpoint import _by_block

    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=256, hidden_size=64, num_hidden_layers=blocks_count, num_attention_heads=4,
                         num_key_value_heads=4, intermediate_size=192, max_position_embeddings=128)  # fmt: skip
    model = AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)
    ids = np.random.default_rng(0).integers(0, 256, (8, 97))
    windows = [text.Window(number, row[:-1], row[1:]) for number, row in enumerate(ids)]
    as_tuple = blocks.verify(model, torch.from_numpy(windows[0].inputs[None, :16]))
    ready = together.Ready(model, torch.device("cpu"), as_tuple, _by_block(model, layers.linears(model)), windows,
                           lambda seed: torch.empty(0), len(windows))  # fmt: skip
    ready.lay_out()
    return ready, np.full(len(windows), 96)


def spent(work) -> float:
    """CPU seconds of this process."""
    start = time.process_time()
    work()
    return time.process_time() - start


def table(ready, formats, granularity: str, budget: str):
    """What there is to choose from, and the budget in bits."""
    from bayesqid.measure import assign, mix

    choice = mix.table(ready.shapes, [assign.usable(name) for name in formats or mix.FORMATS], granularity)
    return choice, mix.budget_bits(budget, assign.weights(ready.shapes), 0)


def cost(name: str) -> dict[str, Any]:
    """CPU seconds of searches against those of their assignments one by one."""
    from bayesqid.measure import assign, mix, mix_search
    from bayesqid.recipe import NONE

    ready, tokens = random_model(int(name.split()[1])) if name.startswith("random") else prepared(name, FEWEST)[0]
    plain = dict.fromkeys(assign.joined(ready.shapes), NONE)
    mix.nats(ready, [plain])
    found = {"blocks": len(ready.shapes), "tokens": int(tokens.sum()), "searches": []}
    for space, (formats, budget) in SPACES.items():
        alone = 0.0
        for granularity in ("layer", "matmul"):
            choice, bits = table(ready, formats, granularity, budget)
            kinds = {"independent": lambda rng, c=choice, b=bits: np.array(
                         [mix_search.drawn(c.costs, b, rng) for _ in range(TRIALS)]),
                     "shared trunks": lambda rng, c=choice, b=bits: mix_search.branched(
                         c.costs, c.depths, b, TRIALS, rng)}  # fmt: skip
            for kind, draw in kinds.items():
                trials = [choice.assignment(one) for one in draw(np.random.default_rng(0))]
                runs: list[int] = []
                together = spent(lambda t=trials, r=runs: mix.nats(ready, [plain, *t], r.append))
                # what one assignment costs by itself does not depend on how it was drawn
                alone = alone or spent(lambda t=trials: [mix.nats(ready, [one]) for one in t])
                found["searches"].append({
                    "space": space, "granularity": granularity, "trials": kind, "search_s": round(together, 3),
                    "one_by_one_s": round(alone, 3), "ratio": round(together / alone, 3),
                    "blocks_run": sum(runs) / (TRIALS * len(ready.shapes)),
                    "distinct": len({json.dumps({k: str(v) for k, v in one.items()}) for one in trials}),
                })  # fmt: skip
    return found


def gain(name: str) -> dict[str, Any]:
    """QiD of three searches less that of random assignments of the same budget."""
    from bayesqid.measure import assign, mix, mix_search
    from bayesqid.recipe import NONE

    (ready, seen), (evaluation, tokens) = prepared(name, MOST)
    found: dict[str, Any] = {"budgets": {}}
    sensitivity = None
    for budget in BUDGETS:
        choice, bits = table(ready, None, "matmul", budget)
        sensitivity = sensitivity or mix.sensitivity(ready, choice, seen)
        chosen = {search: mix.by_sensitivity(choice, *sensitivity, seen, bits, search)
                  for search in ("knapsack", "greedy")}  # fmt: skip
        chosen["best of 50"] = mix.by_trials(ready, choice, seen, bits, TRIALS, np.random.default_rng(1), True)
        rng = np.random.default_rng(2)
        rest = [mix_search.drawn(choice.costs, bits, rng) for _ in range(DRAWS)]
        plain = dict.fromkeys(assign.joined(ready.shapes), NONE)
        every = [choice.assignment(one) for one in (*(one.formats for one in chosen.values()), *rest)]
        losses = mix.nats(evaluation, [plain, *every])
        found["budgets"][budget] = {
            search: {"predicted": one.predicted.qid, "predicted_se": one.predicted.se,
                     **mix.compared(losses[0], losses[number], losses[1 + len(chosen):], tokens)}
            for number, (search, one) in enumerate(chosen.items(), 1)}  # fmt: skip
    return found


def uniform(name: str) -> dict[str, Any]:
    """QiD of knapsack less that of rtn-w3 for all layers, at the same bits."""
    from bayesqid.measure import assign, mix
    from bayesqid.recipe import NONE, parse

    (ready, seen), (evaluation, tokens) = prepared(name, MOST)
    same = dict.fromkeys(assign.joined(ready.shapes), parse("rtn-w3"))
    bits = assign.bits(same, ready.shapes)
    choice, _ = table(ready, None, "matmul", "3bits")
    one = mix.by_sensitivity(choice, *mix.sensitivity(ready, choice, seen), seen, bits, "knapsack")
    chosen = choice.assignment(one.formats)
    losses = mix.nats(evaluation, [dict.fromkeys(same, NONE), chosen, same])
    gap = mix.estimate(losses[1] - losses[2], tokens)
    return {"effective_bits": assign.average(same, ready.shapes), "chosen_bits": assign.average(chosen, ready.shapes),
            "predicted": one.predicted.qid, "qid": mix.estimate(losses[1] - losses[0], tokens).qid,
            "uniform_qid": mix.estimate(losses[2] - losses[0], tokens).qid,
            "difference": gap.qid, "difference_se": gap.se}  # fmt: skip


def noise(name: str) -> dict[str, Any]:
    """Spread of the best of 50 over repeats of the search, on the evaluation text."""
    from bayesqid.measure import mix

    (ready, seen), (evaluation, tokens) = prepared(name, FEW)
    found = {}
    choice, bits = table(ready, None, "matmul", "3.5bits")
    for kind, independent in (("independent", True), ("shared trunks", False)):
        best = [mix.by_trials(ready, choice, seen, bits, TRIALS, np.random.default_rng((3, repeat)), independent)
                for repeat in range(REPEATS)]  # fmt: skip
        qids = [mix.measured(evaluation, tokens, choice.assignment(one.formats), [])["qid"] for one in best]
        found[kind] = {"qid": qids, "chosen_by": [one.predicted.qid for one in best],
                       "sd_ln": float(np.std(np.log(qids), ddof=1)),
                       "mean_ln": float(np.mean(np.log(qids)))}  # fmt: skip
    return found


PARTS = {"cost": (cost, COSTLY), "gain": (gain, GAINS), "uniform": (uniform, GAINS), "noise": (noise, NOISY)}


def stored() -> list[dict[str, Any]]:
    """Results so far."""
    return [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.exists() else []


def main() -> None:
    """Run the named parts, or all, and add what is missing to the stored results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", help=", ".join(PARTS))
    parser.add_argument("--only", help="one model")
    given = parser.parse_args()
    import torch

    torch.set_num_threads(1)
    for part in given.parts or PARTS:
        work, names = PARTS[part]
        for name in names:
            known = any(row["part"] == part and row["model"] == name for row in stored())
            if known or given.only not in (None, name):
                continue
            print(part, name, file=sys.stderr)
            row = {"part": part, "model": name} | work(name)
            with RESULTS.open("a") as stream:
                stream.write(json.dumps(row) + "\n")
            print(json.dumps(row))


if __name__ == "__main__":
    main()
