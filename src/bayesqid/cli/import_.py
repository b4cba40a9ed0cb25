"""`bayesqid import`: parse, call, write."""

from pathlib import Path
from typing import Annotated

import typer

from bayesqid.cli import common


def import_(
    paths: Annotated[
        list[Path] | None,
        typer.Argument(metavar="PATH", help="A folder of lm-eval, a llama.cpp log, a table.", show_default=False),
    ] = None,
    kind: Annotated[
        str | None,
        typer.Option("--from", help="lm-eval, llama.cpp, gptq, table or measured.", show_default="by content"),
    ] = None,
    baseline: Annotated[
        Path | None, typer.Option(help="Results of the unquantized model, where PATH does not hold them.")
    ] = None,
    recipe: Annotated[
        str | None, typer.Option(help="How it was quantized, e.g. gptq-w4-g128.", show_default="read from the results")
    ] = None,
    effective_bits: Annotated[
        float | None, typer.Option(help="Bits per weight with scales counted.", show_default="by recipe or file")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="The model, e.g. LLaMA-3-8B; a known one needs no more.", show_default="as named")
    ] = None,
    family: Annotated[str | None, typer.Option(help="Its family.", show_default="by name")] = None,
    params: Annotated[float | None, typer.Option(help="Its non-embedding parameters.", show_default="by name")] = None,
    tokens: Annotated[float | None, typer.Option(help="Tokens it was trained on.", show_default="by name")] = None,
    lr_phase: Annotated[
        str | None,
        typer.Option(help="Learning rate when saved: constant, decaying, annealed, unknown.", show_default="by name"),
    ] = None,
    vocabulary: Annotated[float | None, typer.Option(help="Size of its vocabulary.", show_default="by name")] = None,
    tokenizer: Annotated[
        Path | None, typer.Option(help="Folder of its tokenizer, to count the tokens of lm-eval's documents.")
    ] = None,
    tokens_per_byte: Annotated[
        float | None, typer.Option(help="Instead: tokens per byte of text, 1 for a model of bytes.")
    ] = None,
    mapping: Annotated[Path | None, typer.Option(help="TOML file that names the columns of a table.")] = None,
    ppl: Annotated[str | None, typer.Option(help="Reported perplexities for gptq, e.g. 5.47:5.63.")] = None,
    text: Annotated[str | None, typer.Option(help="Name of the evaluation text.", show_default="as named")] = None,
    context: Annotated[float | None, typer.Option(help="Tokens per window.", show_default="as recorded")] = None,
    source: Annotated[
        str | None, typer.Option(help="Whose results these are; results of one source share its protocol.")
    ] = None,
    check: Annotated[
        Path | None, typer.Option(help="Import nothing: check whether this CSV can be a source of the atlas.")
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="File of cells to write.")] = Path("cells.nc"),
    quiet: common.Quiet = False,
) -> None:
    """Turn results of lm-eval, llama.cpp, GPTQ or a table into cells that sample reads."""
    from bayesqid import files, importers
    from bayesqid.errors import BadInput
    from bayesqid.importers import formats

    if check is not None:
        from bayesqid.importers import check as checking

        problems = checking.check(check)
        print("\n".join(problems) or "good")
        for note in [] if quiet else checking.notes(check):
            typer.echo(note, err=True)
        raise typer.Exit(2 if problems else 0)
    if not paths:
        raise BadInput("Name the results to import, e.g. bayesqid import results, or use --check FILE.")
    files.writable(output)
    count = None
    if tokenizer is not None:
        from bayesqid.measure import load

        counting = load.tokenizer(tokenizer)
        count = lambda text: len(counting.encode(text, add_special_tokens=False))  # noqa: E731
    given = formats.Given(model, family, params, tokens, lr_phase, vocabulary, recipe, effective_bits, baseline,
                          mapping, ppl, text, context, source, tokens_per_byte, count)  # fmt: skip
    made, notes = importers.read(paths, given, kind)
    files.write_netcdf(made, output)
    if notes:
        typer.echo("\n".join(notes), err=True)
    print(formats.table(made))
    print(f"Wrote {made.sizes['cell']} cells to {output}.")
