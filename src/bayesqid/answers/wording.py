"""Words and numbers of the answers as people read them."""

import textwrap
from collections.abc import Mapping

VERDICTS = {
    "ok": "ok: inside the range of the data",
    "extrapolation": "extrapolation: outside the range of the data, believe the law before you believe the band",
    "not identified": "not identified: the data do not inform the tokens exponent, the band is the prior's",
    "checks failed": "checks failed: the sampler's own checks did not pass, do not use these numbers",
}


def count_text(value: float) -> str:
    """A count in short form: 7e9 -> 7B, 1e14 -> 100T."""
    for unit, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            short = value / size
            return f"{short:.3g}{unit}" if short < 999.5 else f"{short:.0f}{unit}" if short < 1e4 else f"{value:.2g}"
    return f"{value:g}"


def short(value: float) -> str:
    """A number in at most seven characters, with three significant digits where they fit."""
    return next(text for text in (f"{value:.3g}", f"{value:.2g}", f"{value:.0e}") if len(text) <= 7)


def opening(record: Mapping, verdicts: Mapping[str, str] = VERDICTS) -> list[str]:
    """First lines of an answer for a terminal: failed checks, then the verdict. `record`: `record.decoded`."""
    failed = [name for name, good in record["checks"].items() if not good]
    lines = textwrap.wrap(f"Checks failed: {', '.join(failed)}.", 80) if failed else []
    return lines + textwrap.wrap(f"Verdict: {verdicts[record['verdict']]}.", 80)
