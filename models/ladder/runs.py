"""The controlled ladder's runs: what is trained, at which learning rate, and where it is saved."""

import sys
from dataclasses import dataclass
from pathlib import Path

from bayesqid import suite

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tiny"))
import corpus  # noqa: E402
import shapes  # noqa: E402
import train as tiny  # noqa: E402

# windows per step
BATCH = {"cpu": 16, "gpu": 128}
FLOOR = 0.1
QUARTERS = 4


@dataclass(frozen=True)
class Run:
    """One model, schedule and seed.

    `constant`: saved at every one of `millions` of tokens and at 1.2 times as many, and cooled down from the former to
    the latter, so that every cooled checkpoint has an undecayed partner at the same tokens. `cosine`: to 1.2 times the
    last of `millions`, saved at four quarters.
    """

    name: str
    family: str
    width: int
    layers: int
    millions: tuple[float, ...]
    peak_lr: float = 4e-3
    schedule: str = "constant"
    seed: int = 1
    scale: str = "cpu"

    @property
    def tokens_per_step(self) -> int:
        """Return the tokens of one step."""
        return BATCH[self.scale] * corpus.CONTEXT

    @property
    def starts(self) -> list[int]:
        """Return the steps that stand for `millions`."""
        return [round(m * 1e6 / self.tokens_per_step) for m in self.millions]

    @property
    def end(self) -> int:
        """Return the last step of the undecayed or the cosine run."""
        return tiny.cooldown_end(self.starts[-1])

    def build(self):
        """Return the model as the seed initialises it: a shape of the tiny ladder."""
        shape = f"tiny-{self.family.split('-')[1]}"
        return tiny.build(tiny.Run("", shape, self.width, self.layers, (), seed=self.seed))


SIX, FIVE, FOUR = (0.5, 1, 2, 4, 8, 16), (0.5, 1, 2, 4, 8), (0.5, 1, 2, 4)
# times 1.2 these end at 200 and 60 million tokens
LONG, SHORT = tuple(200 / 1.2 / 2**k for k in range(5, -1, -1)), (6.25, 12.5, 25, 50)
NEOX, LLAMA, GPU = "ladder-neox", "ladder-llama", "ladder-neox-gpu"
RUNS = (
    Run("ladder-neox-25k", NEOX, 32, 2, SIX),
    Run("ladder-neox-100k", NEOX, 64, 2, SIX),
    Run("ladder-neox-793k", NEOX, 128, 4, FOUR),
    Run("ladder-neox-224k", NEOX, 96, 2, FIVE),
    Run("ladder-neox-25k-cosine", NEOX, 32, 2, (8,), schedule="cosine"),
    Run("ladder-neox-100k-cosine", NEOX, 64, 2, (8,), schedule="cosine"),
    Run("ladder-neox-25k-seed2", NEOX, 32, 2, SIX, seed=2),
    Run("ladder-neox-100k-seed2", NEOX, 64, 2, SIX, seed=2),
    Run("ladder-llama-27k", LLAMA, 32, 2, FIVE),
    # peak learning rate 4e-3 x 96 / width: a rule of thumb for Adam, tried by nobody yet
    Run("ladder-neox-332k", GPU, 96, 3, LONG, 4e-3, scale="gpu"),
    Run("ladder-neox-983k", GPU, 128, 5, LONG, 3e-3, scale="gpu"),
    Run("ladder-neox-3m", GPU, 256, 4, LONG, 1.5e-3, scale="gpu"),
    Run("ladder-neox-11m", GPU, 384, 6, LONG, 1e-3, scale="gpu"),
    Run("ladder-neox-32m", GPU, 512, 10, SHORT, 7.5e-4, scale="gpu"),
    Run("ladder-neox-332k-cosine", GPU, 96, 3, LONG[-2:-1], 4e-3, "cosine", scale="gpu"),
    Run("ladder-neox-3m-cosine", GPU, 256, 4, LONG[-2:-1], 1.5e-3, "cosine", scale="gpu"),
    Run("ladder-neox-332k-seed2", GPU, 96, 3, LONG, 4e-3, seed=2, scale="gpu"),
    Run("ladder-neox-983k-seed2", GPU, 128, 5, LONG, 3e-3, seed=2, scale="gpu"),
)


def cosine_at(run: Run, step: int) -> tuple[str, float]:
    """Return phase and learning rate over peak of a cosine after its warm-up, at most of which it is flat."""
    rate = {"kind": "cosine", "warmup": tiny.WARMUP, "end": run.end, "floor": FLOOR}
    return suite.lr_at(rate, max(step, tiny.WARMUP), 0)


def lr_fraction(run: Run, step: int, start: int | None = None) -> float:
    """Return learning rate over peak once `step` steps are done; `start` begins a cooldown of a constant run."""
    shape = cosine_at(run, step)[1] if run.schedule == "cosine" else 1.0
    return shape * tiny.lr_fraction(step, start)


def phase(run: Run, save: tiny.Save) -> str:
    """Return the learning rate's phase at a checkpoint."""
    if run.schedule == "cosine":
        return cosine_at(run, save.step)[0]
    return "constant" if save.step == save.start else "annealed"


def saves(run: Run) -> list[tiny.Save]:
    """Return a run's checkpoints by step; of two at one step the undecayed one first."""
    if run.schedule == "cosine":
        steps = [round(run.end * quarter / QUARTERS) for quarter in range(1, QUARTERS + 1)]
        return [tiny.Save(step, step) for step in steps]
    ends = [tiny.cooldown_end(start) for start in run.starts]
    undecayed = [tiny.Save(step, step) for step in (*run.starts, *ends)]
    cooled = [tiny.Save(end, start) for start, end in zip(run.starts, ends, strict=True)]
    return sorted(undecayed + cooled, key=lambda save: (save.step, -save.start))


def flops_per_token(run: Run) -> float:
    """Return the floating-point operations of training on one token.

    6 (N + V w) + 6 L T w: forward and backward through all matrices and the head, and causal attention, of which half
    the square counts.
    """
    matrices = shapes.parameter_counts(run.build())[1] + shapes.VOCAB * run.width
    return 6 * matrices + 6 * run.layers * corpus.CONTEXT * run.width
