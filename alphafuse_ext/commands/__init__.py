"""The commands of the command line, a file for each group of them.

The texts of the command list are here, so that listing imports no command.
"""

from __future__ import annotations

from typing import NamedTuple


class Command(NamedTuple):
    """The help texts of a command.

    Attributes:
        module: of this package that implements it.
        help: one line, for the list of commands.
        example: a command line.
        more: a sentence or two more.
    """

    module: str
    help: str
    example: str
    more: str = ""


COMMANDS = {
    "train": Command(
        "train",
        "train a recommender on clicks and item texts or embeddings",
        "alphafuse train --interactions clicks.csv --items items.csv --output runs/first",
        "Without --interactions it trains on a small built-in catalog.",
    ),
    "refit": Command(
        "refresh",
        "train anew on everything, with a run's settings and number of epochs",
        "alphafuse refit runs/first --interactions new.csv --output runs/second",
        "Nothing is held out. Options for reading files default to those of the run.",
    ),
    "check": Command(
        "refresh",
        "refuse a new run that is worse than another on the last days' clicks",
        "alphafuse check runs/second --against runs/first --interactions last-days.csv",
        "The exit status is 1 for a worse run.",
    ),
    "evaluate": Command(
        "evaluate", "evaluate a trained run", "alphafuse evaluate runs/first --groups"
    ),
    "recommend": Command(
        "use",
        "recommend items to users, or for histories of new users",
        "alphafuse recommend runs/first --k 20 --output recommendations.parquet",
    ),
    "similar": Command(
        "use", "find similar items", "alphafuse similar runs/first --items B0001 B0002"
    ),
    "serve": Command(
        "serve",
        "answer requests over HTTP, with a page to try it",
        "alphafuse serve runs/first --port 8000",
    ),
    "export": Command(
        "use",
        "export item embeddings and encoder to FAISS, USearch, ONNX or safetensors",
        "alphafuse export runs/first --to onnx --output exported",
    ),
    "report": Command(
        "inspect",
        "write the HTML report of a run",
        "alphafuse report runs/first --output run.html",
    ),
    "describe": Command(
        "data",
        "describe a data set: sizes, lengths, popularity, repeats, times",
        "alphafuse describe --interactions clicks.csv --items items.csv --output data.html",
    ),
    "add-items": Command(
        "catalog",
        "add new items to a run's catalog without training",
        "alphafuse add-items runs/first --items new.csv --output runs/second",
        "Options for reading files default to those of the run.",
    ),
    "retire-items": Command(
        "catalog",
        "exclude items from all recommendations",
        "alphafuse retire-items runs/first --items B0001 --output runs/second",
    ),
    "restore-items": Command(
        "catalog",
        "recommend retired items again",
        "alphafuse restore-items runs/second --items B0001 --output runs/third",
    ),
    "upgrade-embeddings": Command(
        "catalog",
        "replace a run's language embeddings by those of another text encoder",
        "alphafuse upgrade-embeddings runs/first --embeddings better.npy --output runs/second",
        "Options for reading files default to those of the run.",
    ),
    "compare": Command(
        "experiments",
        "compare methods over data sets and seeds",
        "alphafuse compare --interactions clicks.csv --items items.csv "
        "--methods alphafuse llminit id --seeds 0 1 2 --output comparison",
        "The same command resumes: finished runs are not repeated.",
    ),
    "tune": Command(
        "experiments",
        "search for the best settings of methods, by validation",
        "alphafuse tune search.toml --trials 20 --output tuned",
        "The same command resumes: finished runs are not repeated.",
    ),
    "geometry": Command(
        "inspect",
        "measure how well a run preserves distances between language embeddings",
        "alphafuse geometry runs/first",
    ),
    "info": Command(
        "inspect",
        "show version, build and devices",
        "alphafuse info",
    ),
}
