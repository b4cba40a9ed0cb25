"""What every answer says of itself: law, verdict, checks, assumptions, and the posterior it comes from."""

import json
from collections.abc import Mapping

from bayesqid.answers.draws import Posterior

# attributes that netCDF can hold only as JSON text
_JSON = ("checks", "posterior", "assumptions", "excluded")


def attrs(posterior: Posterior, verdict: str, assumptions: Mapping[str, str]) -> dict[str, str]:
    """Attributes of an answer's Dataset; intervals are equal-tailed."""
    return {
        "law": posterior.tree.attrs["law"], "model": posterior.tree.attrs["model"], "verdict": verdict,
        "interval": "eti", "checks": json.dumps(posterior.checks), "assumptions": json.dumps(assumptions),
        "posterior": json.dumps({"path": posterior.path, "sha256": posterior.sha256, "origin": posterior.origin}),
    }  # fmt: skip


def decoded(attributes: Mapping[str, str]) -> dict:
    """The attributes as the `--json` contract has them: plain values and objects."""
    return {name: json.loads(value) if name in _JSON else value for name, value in attributes.items()}
