"""`bayesqid mix`: parse, call, write."""

from pathlib import Path
from typing import Annotated

import typer

from bayesqid.cli import common


def mix(
    model: Annotated[str, typer.Argument(metavar="FOLDER|HUB/ID@REVISION", help="The checkpoint.")],
    budget: Annotated[
        str, typer.Option(help="Bits per weight of the blocks' linear layers, 3.5bits, or bytes of all, 2.1MB.")
    ],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="File of the assignment, for bayesqid measure --recipes.")
    ] = None,
    granularity: Annotated[str, typer.Option(help="A format for each linear layer (matmul) or block (layer).")] = (
        "matmul"
    ),
    formats: Annotated[
        str | None,
        typer.Option(help="Formats to choose from, none is 16 bits.", show_default="rtn-w2,rtn-w3,rtn-w4,rtn-w8,none"),
    ] = None,
    search: Annotated[str, typer.Option(help="knapsack, greedy or random.")] = "knapsack",
    trials: Annotated[int, typer.Option(help="Trials of the random search.")] = 50,
    samples: Annotated[int, typer.Option(help="Windows of the search text, at most.")] = 1024,
    draws: Annotated[int, typer.Option(help="Random assignments of equal budget measured beside.")] = 10,
    independent: Annotated[
        bool, typer.Option("--independent", help="Independent trials; else most share their first blocks.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Seed of the random assignments.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    tokenizer: Annotated[Path | None, typer.Option(help="Folder of the tokenizer, when it is not the model's.")] = None,
    text: Annotated[Path | None, typer.Option(help="Evaluation documents, JSON lines with id and text.")] = None,
    calibration: Annotated[Path | None, typer.Option(help="Documents of the search, likewise.")] = None,
    context: Annotated[int | None, typer.Option(help="Tokens per window.", show_default="256")] = None,
    max_bytes: Annotated[int | None, typer.Option(help="Bytes kept of each document.", show_default="1024")] = None,
    documents: Annotated[
        int | None, typer.Option(help="Evaluation documents used, 0 for all.", show_default="all")
    ] = None,
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16 or float16.", show_default="float32")] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Leave a downloaded checkpoint in the hub's cache.")] = False,
    as_json: common.Json = False,
    quiet: common.Quiet = False,
) -> None:
    """Choose a number format for every linear layer of one checkpoint under a budget, and measure what it costs.

    \b
    knapsack   each layer is measured alone in each format on the calibration
               text; of all assignments within the budget the one of the least
               sum of these QiDs (assumed to add up), exact
    greedy     the same numbers; from the smallest formats up, the largest fall
               of QiD per bit first
    random     the best of --trials random assignments on the calibration text
    measured   the assignment, and --draws random ones of equal budget, on the
               evaluation text
    exit       0 done, 2 bad input, 130 stopped (no file is written)
    """
    from bayesqid import files
    from bayesqid.measure import assign, mix_run

    wanted = mix_run.with_formats(
        mix_run.Search(budget, mix_run.mix.FORMATS, granularity, search, trials, samples, draws, seed, independent),
        formats,
    )
    settings = {"context": context, "max_bytes": max_bytes, "documents": documents, "dtype": dtype}
    if output is not None:
        files.writable(output)
    result = mix_run.run(model, wanted, device, settings, text, calibration, tokenizer, keep)
    if output is not None:
        assign.write(mix_run.as_mix(result), output)
        typer.echo(f"Assignment: {output}; bayesqid measure {model} --recipes {output}", err=True)
    common.show(as_json, mix_run.as_json(result), mix_run.as_text(result))
