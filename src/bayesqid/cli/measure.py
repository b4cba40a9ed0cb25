"""`bayesqid measure`: parse, call, print."""

from pathlib import Path
from typing import Annotated

import typer

from bayesqid.cli import common


def measure(
    target: Annotated[str, typer.Argument(metavar="SUITE|FOLDER|HUB/ID@REVISION", help="What to measure.")] = "tiny",
    recipes: Annotated[
        str | None,
        typer.Option(
            "--recipes", "--recipe",
            help="Recipes, or files of bayesqid mix, with commas between: rtn-w3,gptq-w4-g128.", show_default="suite's",
        ),
    ] = None,
    output: Annotated[
        str, typer.Option("--output", "-o", help="File to write or to go on with; also s3://bucket/name.nc.")
    ] = "measurements.nc",
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    family: Annotated[str | None, typer.Option(help="Family of a model of your own.")] = None,
    tokens: Annotated[float | None, typer.Option(help="Tokens a model of your own was trained on, e.g. 3e11.")] = None,
    lr_phase: Annotated[
        str, typer.Option(help="Its learning rate when saved: constant, decaying, annealed, unknown.")
    ] = "unknown",
    name: Annotated[str | None, typer.Option(help="Its name; else that of its folder.", show_default=False)] = None,
    tokenizer: Annotated[Path | None, typer.Option(help="Folder of the tokenizer, when it is not the model's.")] = None,
    text: Annotated[Path | None, typer.Option(help="Evaluation documents, JSON lines with id and text.")] = None,
    calibration: Annotated[Path | None, typer.Option(help="Calibration documents for GPTQ, likewise.")] = None,
    context: Annotated[int | None, typer.Option(help="Tokens per window.", show_default="suite's")] = None,
    max_bytes: Annotated[int | None, typer.Option(help="Bytes kept of each document.", show_default="1024")] = None,
    documents: Annotated[int | None, typer.Option(help="Documents used, 0 for all.", show_default="all")] = None,
    calibration_windows: Annotated[
        int | None, typer.Option(help="Windows of calibration text.", show_default="128")
    ] = None,
    calibration_seeds: Annotated[
        str | None,
        typer.Option(help="Draws of the calibration text, e.g. 0,1,2, one recipe each.", show_default="0"),
    ] = None,
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16 or float16.", show_default="float32")] = None,
    quantized: Annotated[
        list[Path] | None,
        typer.Option(help="Checkpoint saved quantized (GPTQ, compressed-tensors); the target is its baseline."),
    ] = None,
    quantized_method: Annotated[
        str | None, typer.Option(help="How it was quantized, rtn, gptq or awq, if its files do not say.")
    ] = None,
    save_quantized: Annotated[
        Path | None, typer.Option(help="Folder for checkpoints in GPTQ's format of what is quantized now.")
    ] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Leave downloaded checkpoints in the hub's cache.")] = False,
    landscape: Annotated[
        bool, typer.Option("--landscape", help="Also the loss landscape, for the law of that name.")
    ] = False,
    landscape_documents: Annotated[
        int | None, typer.Option(help="Documents it is taken on.", show_default="one in 16, at least 12")
    ] = None,
    probes: Annotated[int | None, typer.Option(help="Random probes of its Hessian trace.", show_default="4")] = None,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Try cells that failed again.")] = False,
    jobs: Annotated[int, typer.Option(help="Checkpoints measured at once, 0 to choose.")] = 0,
    shard: Annotated[
        str | None, typer.Option(help="Only share I of N of the checkpoints, e.g. 2/8.", show_default="all")
    ] = None,
    engine: Annotated[str, typer.Option(help="local, or ray for a cluster.")] = "local",
    address: Annotated[
        str | None, typer.Option(help="Ray cluster: auto, or HOST:PORT.", show_default="one on this machine")
    ] = None,
    gpus_per_worker: Annotated[
        float | None, typer.Option(help="GPUs of a Ray worker, e.g. 1 or 0.25.", show_default="1 if there are any")
    ] = None,
    cpus_per_worker: Annotated[
        float | None, typer.Option(help="CPU cores of a Ray worker, its threads.", show_default="1")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    quiet: common.Quiet = False,
) -> None:
    """Measure how much quantization raises the loss of a suite's checkpoints or of one model.

    \b
    Protocol, written into the file:
    text         documents cut to --max-bytes, each behind a bos (else eos) token
    windows      --context tokens, side by side, never across documents; a short
                 last one starts earlier
    score        every token once, in nats; float32 weights and logits
                 (--dtype), sums in float64
    pairs        the same tokens in the same batches before and after; documents
                 are the clusters
    results      QiD, both KL divergences, top-1 agreement, bits per byte, each
                 with its standard error
    quantized    all linear layers of the blocks, not embeddings and head;
                 weights only
    calibration  --calibration-windows windows of other documents, in an order
                 drawn with a seed
    landscape    with --landscape: SQNR, slope and curvature along the rounding
                 error, Hessian trace, flatness
    identity     weight files hashed into SUITE.lock, copies refused,
                 safetensors only, no remote code
    failures     kept with their reason, tried again only with --retry-failed;
                 finished cells are never lost
    together     runs on several machines may share an output: each checkpoint
                 is measured by one of them
    exit         0 measured, 2 bad input, 3 some cells failed, 130 stopped
    """
    import json

    from bayesqid import files, measurements
    from bayesqid.measure import plan as planning
    from bayesqid.measure import ray_engine, run, store

    settings = {
        "context": context,
        "max_bytes": max_bytes,
        "documents": documents,
        "calibration_windows": calibration_windows,
        "dtype": dtype,
    }
    facts = {"family": family, "tokens": tokens, "lr_phase": lr_phase, "called": name}
    seeds = planning.seeds(calibration_seeds)
    names = None if recipes is None else recipes.split(",")
    plan = planning.make(target, names, device, settings, facts, text, calibration, tokenizer, seeds,
                         quantized or (), quantized_method, save_quantized, keep,
                         planning.landscape(landscape, landscape_documents, probes))  # fmt: skip
    cluster = ray_engine.asked(engine, address, gpus_per_worker, cpus_per_worker)
    place = output if store.is_url(output) else files.writable(output)
    data = run.run(plan, place, jobs, retry_failed, planning.shard(shard), cluster)
    result = run.summary(data, output)
    typer.echo(json.dumps(result) if as_json else measurements.table(data))
    for where, reason in result["failures"].items():
        typer.echo(f"failed {where}: {reason}", err=True)
    typer.echo(f"{output}: {result['measured']} cells measured, {result['failed']} failed", err=True)
    if result["failures"]:
        raise typer.Exit(3)
