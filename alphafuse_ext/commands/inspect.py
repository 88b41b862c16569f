"""``alphafuse report``, ``geometry`` and ``info``."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from alphafuse_ext.commands.options import add_run, check_new_file


def add_report(report: argparse.ArgumentParser) -> None:
    report.set_defaults(command=_report)
    report.add_argument("--output", type=Path, help="a new file (default: report.html in the run)")
    add_run(report)


def add_geometry(geometry: argparse.ArgumentParser) -> None:
    geometry.set_defaults(command=_geometry)
    geometry.add_argument(
        "--embeddings",
        type=Path,
        help="the run's language embeddings (default: from the run's own file or texts)",
    )
    geometry.add_argument("--ids-are-rows", action="store_true", help="as for train")
    geometry.add_argument(
        "--seed", type=int, default=0, help="seed of the sampled pairs (default: 0)"
    )
    add_run(geometry)


def add_info(info: argparse.ArgumentParser) -> None:
    info.set_defaults(command=_info)


def _report(options: argparse.Namespace) -> None:
    from alphafuse_ext.reports.run import write_run_report
    from alphafuse_ext.serving.recommender import Recommender

    if options.output is not None:
        check_new_file(options.output)
    recommender = Recommender.load(options.run, "cpu")
    print(f"report: {write_run_report(recommender, options.output)}")


def _geometry(options: argparse.Namespace) -> None:
    from alphafuse_ext.serving.geometry import write_geometry

    report = write_geometry(options.run, options.embeddings, options.ids_are_rows, options.seed)
    print("rank correlation of distances between items with those of their language embeddings:")
    for name, value in report["rank_correlation"].items():
        print(f"{name:>15} {value:6.3f}")
    print(f"map: {Path(options.run).absolute() / 'geometry.png'}")


def _info(options: argparse.Namespace) -> None:
    import torch

    from alphafuse_ext.runs.run_folder import environment

    facts = environment()
    facts["cuda devices"] = [
        torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())
    ]
    print(json.dumps(facts, indent=2))
