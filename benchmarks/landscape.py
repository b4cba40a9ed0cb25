"""What the loss landscape of a checkpoint costs, and how well its curvature is taken.

    python benchmarks/landscape.py [cost] [accuracy] [--repeats 3]      # both without a name; minutes on one core

`cost`: CPU seconds of all features of the tiny ladder's largest model, for its seven default recipes and for 26, over
those of one forward pass of the evaluation text, against the budget of 3 passes and 2 per probe; and over those of
evaluating the same recipes, quantization included. `accuracy`: curvature from two forward passes, at several steps,
against exact products with the Hessian, both in float32, and what each costs in forward passes of the same text.
Prints JSON lines; nothing fails on time.
"""

import argparse
import json
import os
import time
from collections.abc import Callable
from functools import partial

os.environ.setdefault("OMP_NUM_THREADS", "1")

MANY = tuple(
    f"{method}-{form}"
    for method, forms in {
        "rtn": ("w2", "w3", "w4", "w2-g32", "w3-g32", "w4-g32", "w2-g128", "w3-g128", "w4-g128", "mxint2", "mxint3",
                "mxint4", "mxint6", "mxint2-g128", "mxint3-g128", "mxint4-g128", "mxint6-g128", "mxfp4", "fp8e4m3"),
        "gptq": ("w2", "w3", "w4", "w2-g32", "w3-g32", "w4-g32"),
    }.items()
    for form in forms
)  # fmt: skip
STEPS = (0.003, 0.01, 0.02, 0.03)
NOBODY = {"family": None, "tokens": None, "lr_phase": "unknown", "called": None}


def seconds(work: Callable[[], object], repeats: int) -> float:
    """Least CPU seconds of several runs, after one that warms up."""
    work()
    spent = []
    for _ in range(repeats):
        start = time.process_time()
        work()
        spent.append(time.process_time() - start)
    return min(spent)


def planned(recipes: list[str] | None):
    """Plan for the bundled ladder with its largest checkpoint last of its model."""
    from bayesqid.measure import plan

    return plan.make("tiny", recipes, "cpu", {}, NOBODY, landscape=plan.Landscape())


def cost(repeats: int) -> None:
    import torch

    from bayesqid.measure import checkpoint as one
    from bayesqid.measure import landscape, landscape_run, load
    from bayesqid.measure.parts import Found

    for label, recipes in (("the suite's 7", None), (f"{len(MANY)}", list(MANY))):
        plan = planned(recipes)
        largest = max(plan.checkpoints, key=lambda checkpoint: (checkpoint.n_params, checkpoint.train_tokens))
        source, settings, documents = load.folder(largest.hub, largest.revision), plan.landscape, len(plan.documents)
        at = landscape_run.read(plan, source)
        whole, point = at(range(documents)), at(settings.chosen(documents))
        unit = seconds(partial(landscape.nats, whole), repeats)

        def features(wanted, own: bool, plan=plan, source=source) -> object:
            read = landscape_run.read(plan, source)
            return landscape_run.features(read, len(plan.documents), plan.landscape, wanted, own, lambda: None)

        probes = [partial(landscape.probe, point.found, number, 0) for number in range(settings.probes)]
        parts = {
            "everything": partial(features, plan.recipes, True),
            "along the recipes": partial(features, plan.recipes, False),
            "trace": partial(landscape.second_order, point, probes),
            "flatness": lambda p=point, s=settings: landscape.flatness(
                p, landscape.nats(p), s.radii, s.directions, s.seed
            ),
        }
        found = {name: seconds(work, repeats) / unit for name, work in parts.items()}

        def evaluate(plan=plan, largest=largest, source=source) -> None:
            from bayesqid.measure import together

            with torch.inference_mode():
                ready = one.prepare(plan, largest, source, {}, Found())
                waiting, size = list(plan.recipes), together.lanes_at_once(ready, plan.recipes)
                while waiting:
                    together.measure(ready, waiting[:size], {}, False, lambda amount: None)
                    del waiting[:size]

        evaluation = seconds(evaluate, 1) / unit
        budget = 3 + 2 * settings.probes
        grids = len({landscape.twin(recipe) for recipe in plan.recipes[1:]})
        print(json.dumps({
            "checkpoint": largest.id, "recipes": label, "grids": grids, "documents": len(settings.chosen(documents)),
            "of": documents, "probes": settings.probes, "pass_s": round(unit, 3),
            "passes": {name: round(value, 2) for name, value in found.items()}, "budget_passes": budget,
            "over_budget": round(found["everything"] / budget, 3), "evaluating_passes": round(evaluation, 1),
            "over_evaluating": round(found["everything"] / evaluation, 3),
        }), flush=True)  # fmt: skip


def accuracy(repeats: int) -> None:
    from bayesqid.measure import landscape, landscape_run, load
    from bayesqid.recipe import parse

    plan = planned(None)
    last = {checkpoint.model: checkpoint for checkpoint in plan.checkpoints if checkpoint.lr_phase == "constant"}
    for name in ("tiny-neox-793k", "tiny-neox-25k", "tiny-llama-54k", "tiny-opt-51k"):
        at = landscape_run.read(plan, load.folder(last[name].hub, last[name].revision))
        point = at(plan.landscape.chosen(len(plan.documents)))
        here, total = landscape.nats(point), point.tokens.sum()
        unit = seconds(partial(landscape.nats, point), repeats)
        for recipe in ("rtn-w2", "rtn-w3", "rtn-w4", "rtn-w8"):
            direction = landscape.rounding_error(point.found, parse(recipe))
            exact = landscape.second_order(point, [lambda d=direction: d])[1][0]
            off = {step: landscape.along(point, direction, here, step).curvature.sum() / total / exact - 1
                   for step in STEPS}  # fmt: skip
            print(json.dumps({
                "checkpoint": last[name].id, "recipe": recipe, "exact": float(f"{exact:.4g}"),
                "relative_error_by_step": {str(step): float(f"{value:.1e}") for step, value in off.items()},
            }), flush=True)  # fmt: skip
        two = seconds(partial(landscape.along, point, direction, here, 0.01), repeats)
        several = [lambda d=direction: d] * 5
        product = seconds(partial(landscape.second_order, point, several), repeats)
        product = (product - seconds(partial(landscape.second_order, point, several[:1]), repeats)) / 4
        print(json.dumps({"checkpoint": last[name].id, "passes_difference": round(two / unit, 2),
                          "passes_product": round(product / unit, 2)}), flush=True)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("what", nargs="*", default=[], help="cost, accuracy; both if none is named")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    import torch

    from bayesqid.measure import load

    torch.set_num_threads(1)
    load.quiet()
    for what in options.what or ("cost", "accuracy"):
        {"cost": cost, "accuracy": accuracy}[what](options.repeats)


if __name__ == "__main__":
    main()
