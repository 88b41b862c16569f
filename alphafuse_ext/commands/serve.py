"""``alphafuse serve``: a trained run over HTTP."""

from __future__ import annotations

import argparse

from alphafuse_ext.commands.options import add_device, add_run, naming_flags


def add_serve(serving: argparse.ArgumentParser) -> None:
    serving.set_defaults(command=_serve)
    serving.add_argument("--host", default="127.0.0.1", help="address (default: 127.0.0.1)")
    serving.add_argument("--port", type=int, default=8000, help="(default: 8000; 0: any free one)")
    serving.add_argument(
        "--changes",
        action="store_true",
        help="let requests add, retire and restore items, and load other runs",
    )
    add_device(serving)
    add_run(serving)


def _serve(options: argparse.Namespace) -> None:
    try:
        from alphafuse_ext.serving.http import serve
    except ImportError as error:
        found = f"the package {error.name!r} is missing"
        raise ImportError(f"alphafuse serve: {found}; expected pip install '.[serve]'") from error
    with naming_flags(options):
        serve(options.run, options.host, options.port, options.changes, options.device)
