"""Write docs/reference.md from the tables that the program itself reads: laws, quantizers, importers, suites.

python docs/make_tables.py
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from bayesqid import importers, laws, methods, recipe, suite

PAGE = Path(__file__).resolve().parent / "reference.md"
HEAD = """# Reference: laws, quantizers, importers, suites

This page is written by `make docs` from the tables in the code: `bayesqid.laws`, `bayesqid.recipe`, `bayesqid.methods`,
`bayesqid.importers` and the manifests in `models/`. What they mean stands in [the laws](laws.md),
[measuring](measuring.md) and [the commands](cli.md); how to add a row in [add a law](add-a-law.md),
[add a quantizer](add-a-quantizer.md) and [add an importer](add-an-importer.md).
"""


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table; a | inside a cell is no border."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)


def code(names: Iterable[object]) -> str:
    """Names as code, with commas between."""
    return ", ".join(f"`{name}`" for name in names)


def shared(kind: str) -> list[tuple]:
    """(item, laws that have it) of all terms, covariates or effects, those of the most laws first."""
    held: dict = {}
    for law in laws.LAWS.values():
        for item in getattr(law, kind):
            held.setdefault(item, []).append(law.name)
    return sorted(held.items(), key=lambda pair: -len(pair[1]))


def holders(names: Sequence[str]) -> str:
    """Laws that have an item, in words."""
    others = [name for name in laws.LAWS if name not in names]
    if not others:
        return "all"
    return code(names) if len(names) <= len(others) else f"all but {code(others)}"


def of_laws() -> str:
    """The laws, and whatever some law has."""
    formulas = [
        (f"`{law.name}`", f"`{law.formula}`",
         f"{law.lam:g}" if isinstance(law.lam, float) else f"Normal({law.lam[0]:g}, {law.lam[1]:g})",
         f"HalfNormal({law.scatter:g})", law.citation)
        for law in laws.LAWS.values()
    ]  # fmt: skip
    terms = [(f"`{t.name}`", f"`{t.factor}`", f"Normal({t.mean:g}, {t.sd:g})", f"HalfNormal({t.spread:g})", t.sentence,
              holders(names)) for t, names in shared("terms")]  # fmt: skip
    covariates = [(f"`{c.name}`", f"`{c.factor}`", f"Normal({c.mean:g}, {c.sd:g})", c.sentence, holders(names))
                  for c, names in shared("covariates")]  # fmt: skip
    effects = [(f"`{e.name}`", e.by, f"`{e.factor}`", f"HalfNormal({e.spread:g})", e.sentence, holders(names))
               for e, names in shared("effects")]  # fmt: skip
    published = [(f"`{law.name}`", name, ", ".join(f"{key} = {value:g}" for key, value in constants.items()))
                 for law in laws.LAWS.values() for name, constants in law.published.items()]  # fmt: skip
    return "\n\n".join([
        "## Laws", table(("law", "formula", "lam", "scatter", "source"), formulas),
        "### Terms", "One value per family about a population mean; `between families` is the prior of their spread.",
        table(("term", "multiplies", "prior", "between families", "in words", "laws"), terms),
        "### Covariates", "Shared by all cells.",
        table(("covariate", "multiplies", "prior", "in words", "laws"), covariates),
        "### Effects", "One deviation for each level of what it is by.",
        table(("effect", "by", "multiplies", "prior of its spread", "in words", "laws"), effects),
        "### Published constants", "In the units of the source.", table(("law", "set", "constants"), published),
        "### On request", table(("option", "value", "what it does"), [
            *(("`--drivers`", f"`{name}`", words) for name, words in laws.DRIVERS.items()),
            *(("`--with`", f"`{name}`", words) for name, words in laws.EXTRAS.items())]),
    ])  # fmt: skip


def of_quantizers() -> str:
    """What recipes can say, and what is known of the quantizers that tables name."""
    told = [(f"`{name}`", code(sorted({kind.partition("-")[0] for kind in method.formats})), code(method.grids),
             code(method.options) or "-", "yes" if method.calibrated else "no")
            for name, method in recipe.METHODS.items()]  # fmt: skip
    formats = [
        (code(recipe.spelled(kind, bits) for bits in form.bits),
         ", ".join("row" if size == -1 else str(size) for size in form.groups),
         "row" if form.usual_group == -1 else form.usual_group, form.scale_bits, form.matrix_bits or "-",
         "yes" if form.inputs else "no", code(name for name, one in recipe.METHODS.items() if kind in one.formats))
        for kind, form in recipe.FORMATS.items()
    ]  # fmt: skip
    printed = Counter(methods.effect_key(*pair) for pair in methods.METHODS.values())
    known = sorted(methods.GENERATION.items(), key=lambda item: methods.GENERATIONS.index(item[1][0]))
    return "\n\n".join([
        "## Quantizers", "### Methods that `measure` has",
        table(("method", "formats", "grids, the usual one first", "options", "needs calibration text"), told),
        "### Number formats", "A group of `row` is one scale per output row; bits of a scale count into P.",
        table(("written", "groups", "usual", "bits of a scale", "bits of a matrix", "inputs too (`wa`)", "methods"),
              formats),
        "### Options", table(("option", "what it does"), [(f"`{k}`", words) for k, words in recipe.OPTIONS.items()]),
        "### Quantizers that tables name",
        "An effect is estimated for each; one that is not here is drawn from the population. `names` counts the "
        "printed names that mean it.",
        table(("quantizer", "generation", "why", "names"),
              [(f"`{key}`", generation, why, printed[key]) for key, (generation, why) in known]),
    ])  # fmt: skip


def of_importers() -> str:
    """What `bayesqid import` reads."""
    rows = [(f"`{name}`", f"`bayesqid.importers.{one.module}`", one.sentence)
            for name, one in importers.IMPORTERS.items()]  # fmt: skip
    return "\n\n".join([
        "## Importers", "In the order in which they are asked whether a file is theirs; `--from` names one.",
        table(("name", "module", "reads"), rows),
    ])  # fmt: skip


def of_suites() -> str:
    """The suites in models/."""
    from bayesqid.cli.show import suites_text

    loaded = [suite.load(name) for name in suite.names()]
    # the same counts as in `bayesqid show suites`
    counts = dict(line.split(maxsplit=1) for line in suites_text(loaded).splitlines()[1 : len(loaded) + 1])
    rows = [(f"`{one.name}`", one.title, *counts[one.name].split(),
             ", ".join(f"{count} {phase}" for phase, count in Counter(
                 c.lr_phase for c in one.checkpoints if c.excluded is None).items()))
            for one in loaded]  # fmt: skip
    return "\n\n".join([
        "## Suites", "Sizes are non-embedding parameters. What each rests on: `bayesqid show suites NAME`.",
        table(("suite", "what it is", "models", "checkpoints", "left out", "N", "tokens", "learning rate"), rows),
    ])  # fmt: skip


def page() -> str:
    """The whole page."""
    return "\n".join([HEAD, "\n\n".join([of_laws(), of_quantizers(), of_importers(), of_suites()]), ""])


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
