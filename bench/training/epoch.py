"""One SASRec training epoch on real data: this package beside the same model in plain PyTorch.

    python bench/training/epoch.py --data DATA                        # amazon-beauty, both losses
    python bench/training/epoch.py amazon-industrial --data DATA --loss sampled_softmax
    python bench/training/epoch.py --data DATA --steps 20 --output /tmp   # a short look

Contenders have equal initial weights, batches, negatives, dropout masks and the same encoder; they
differ in the item side, which is the lookup of the histories, the loss with its candidates, the
backward of both, and the optimizer step of the ID embeddings:

- ``alphafuse_ext``: ``ItemTable`` and ``next_item_loss``, as the package's trainer uses them.
- ``PyTorch``: a frozen table of semantic rows and an ``nn.Embedding``; both are gathered and fused
  for each use.
- ``PyTorch, fused once``: the same, but one table of fused rows is made at the beginning of each
  step and gathered from. On a small catalog the better way.

``dense`` and ``sparse`` say which gradient the ID embeddings have, and so which optimizer: fused
Adam, or lazy Adam (``LazyAdam``, PyTorch's ``SparseAdam``), which leaves the moments of untouched
rows alone (another algorithm).

Losses and gradients on one batch without dropout are compared before anything is timed, and so are
the ranks: a mismatch ends the run. The step is cut at the borders of item side and encoder
(``detach``), so that each part has a time of its own. Contenders take turns, a block of steps each.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for what benchmarks share
import report
from measure import (
    RESULTS,
    add_counts,
    add_device_option,
    all_threads,
    choose_device,
    data_folder,
    device_slug,
    existing_folder,
    machine_facts,
    positive_int,
)
from training.contenders import build_contenders
from training.ranking import measure_ranking
from training.tables import page, terminal_lines
from training.turns import (
    check_agreement,
    make_batches,
    profile_steps,
    ratios,
    summarize,
    take_turns,
)

from alphafuse_ext.config import Config
from alphafuse_ext.data import (
    Split,
    leave_one_out,
    read_embeddings,
    read_interactions,
    read_items,
)
from alphafuse_ext.models import SASRec
from alphafuse_ext.runs.assembly import build_model, build_table

LOSSES = ("sampled_softmax", "cross_entropy")


def measure_setting(
    config: Config,
    split: Split,
    language: np.ndarray,
    args: argparse.Namespace,
) -> dict[str, Any]:
    """All figures of one loss."""
    torch.manual_seed(config.seed)
    table, _ = build_table(config, len(language), language)
    model = cast(SASRec, build_model(config, table).to(args.device))
    batches = make_batches(config, model, split, args.steps)
    contenders = build_contenders(config, model, batches, batches.trainer.targets_per_batch)
    check_agreement(contenders, batches.longest)
    print(f"{config.loss}: losses and gradients agree; {len(batches)} batches", flush=True)
    found = take_turns(contenders, len(batches), args.block, args.rounds)
    results = {name: summarize(rounds, batches) for name, rounds in found.items()}
    for contender in contenders:
        results[contender.name]["peak_bytes"] = contender.peak_bytes(batches.longest)
    profiled = min(len(batches), 20)
    ranking = measure_ranking(contenders[0], split, config, args.steps)
    trainer_line = batches.trainer.run_epoch()
    return {
        "config": config.to_dict(),
        "batches": len(batches),
        "batches_in_epoch": batches.in_epoch,
        "contenders": results,
        "ratios": ratios(results),
        "trainer": {
            "epoch_seconds": trainer_line["train_seconds"] * batches.in_epoch / len(batches),
            "validation_seconds": trainer_line["validation_seconds"],
        },
        "ranking": ranking,
        "profiled_steps": profiled,
        "profile": profile_steps(contenders[0], profiled, args.profile_rows),
    }


# --- the command line -----------------------------------------------------------------------------


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The arguments, checked; a bad one ends the program with one line that names it."""
    parser = argparse.ArgumentParser(
        usage="%(prog)s [DATASET] --data DATA [options]",
        description=(__doc__ or "").split("\n")[0],
    )
    add = parser.add_argument
    add("dataset", nargs="?", default="amazon-beauty", metavar="DATASET",
        help="folder below --data: amazon-beauty (default), amazon-industrial")  # fmt: skip
    add("--data", type=Path, required=True, help="folder of the data sets")
    add("--loss", nargs="+", choices=LOSSES, default=list(LOSSES), help="both by default")
    add("--fusion", choices=("concat", "add"), default="add", help="add by default")
    add_counts(
        parser,
        ("--dim", 256, "columns of a fused row"),
        ("--negatives", 256, "negatives of a sequence (sampled_softmax)"),
        ("--batch-size", 128, "sequences in a batch"),
        ("--block", 5, "steps of a contender before the next takes its turn"),
        ("--rounds", 1, "times that each contender trains on the batches"),
        ("--profile-rows", 30, "operators in the profile"),
        ("--threads", all_threads(), "CPU threads"),
    )
    add("--precision", choices=("float32", "bf16"), default="float32",
        help="bf16: all contenders under autocast to it; float32 by default")  # fmt: skip
    add_device_option(parser)
    add("--null-dim", type=positive_int, metavar="N",
        help="columns of an ID embedding; by default alphafuse_ext.Config's")  # fmt: skip
    add("--steps", type=positive_int, metavar="N",
        help="batches for each contender; a whole epoch by default")  # fmt: skip
    add("--seed", type=int, default=0, help="of weights and batches; %(default)s by default")
    add("--output", type=existing_folder, metavar="FOLDER",
        help="where to write; bench/results by default for whole epochs of all losses")  # fmt: skip
    args = parser.parse_args(arguments)
    args.folder = data_folder(parser, args)
    if args.output is None and args.steps is None and args.loss == list(LOSSES):
        args.output = RESULTS
    try:
        args.configs = [
            Config(
                dim=args.dim,
                null_dim=args.null_dim,
                fusion=args.fusion,
                negatives=None if loss == "cross_entropy" else args.negatives,
                batch_size=args.batch_size,
                precision=args.precision,
                seed=args.seed,
                loss=loss,
            )
            for loss in args.loss
        ]
    except ValueError as error:
        parser.error(str(error))
    return args


def main(arguments: list[str] | None = None) -> None:
    """Measure, print, and write what the arguments ask for."""
    args = parse_arguments(arguments)
    args.device = choose_device(args.device)
    load_before = os.getloadavg()[0]  # over a minute; other work would show
    torch.set_num_threads(args.threads)
    torch.set_float32_matmul_precision("highest")
    folder = args.folder
    catalog = read_items(folder / f"{args.dataset}.item")
    clicks = read_interactions(folder / f"{args.dataset}.inter", catalog)
    language = read_embeddings(folder / "minilm-l6.npy", catalog).rows
    split = leave_one_out(clicks)
    settings = []
    for config in args.configs:
        resolved = config.resolve(language.shape[1], len(language))
        settings.append(measure_setting(resolved, split, language, args))
        print("", *terminal_lines(settings[-1]), sep="\n", flush=True)
    machine = machine_facts(args.device)
    machine["load_average"] = f"{load_before:.2f} before, {os.getloadavg()[0]:.2f} after"
    setting = {
        "dim": args.dim,
        "null_dim": settings[0]["config"]["null_dim"],
        "fusion": args.fusion,
        "precision": args.precision,
        "blocks": settings[0]["config"]["blocks"],
        "history": settings[0]["config"]["history"],
        "dropout": settings[0]["config"]["dropout"],
        "zero_sink": settings[0]["config"]["zero_sink"],
        "batch_size": args.batch_size,
        "items": clicks.num_items,
        "block": args.block,
        "rounds": args.rounds,
        "seed": args.seed,
    }
    results = {
        "command": report.command(),
        "dataset": args.dataset,
        "machine": machine,
        "setting": setting,
        "settings": settings,
    }
    if args.output is None:
        for measured in settings:
            print(measured["profile"])
        return
    kind = "" if args.precision == "float32" else f"-{args.precision}"
    report.write(args.output / f"training-{device_slug(args.device)}{kind}.md", page(results))


if __name__ == "__main__":
    main()
