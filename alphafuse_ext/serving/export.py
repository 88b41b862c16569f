"""Export of a trained model: its fused table as an index, its encoder as ONNX.

==================== ======================================================================
``items.parquet``     ``id`` of each item in indexes and histories, ``item``, ``title``, ``retired``
``items.safetensors`` ``embeddings``, float32 (M, dim), and ``ids``, int64 (M,)
``items.faiss``       an exact inner-product index of FAISS, which answers with ids
``items.usearch``     an index of USearch, which answers with ids; exact where it is asked to be
``encoder.onnx``      histories, int64 (B, L), oldest item first, to queries, float32 (B, dim)
``neighbors.safetensors``  the item-to-item neighbors of a run that ranks with them, ``together``
                      and ``language``, each as ``offsets`` (N + 1,), ``ids`` and ``values``
``export.json``       the longest history, the padding id, ``dim``, similarity, versions
==================== ======================================================================

Retired items are not in an index, but may occur in histories. Invalid ids, such as the padding id
or
-1, are ignored at any position, and longer histories are truncated to the newest items, as in
:meth:`Recommender.recommend`; the query of an empty history is NaN. With cosine similarity,
exported embeddings have norm 1, so inner products rank as cosines do.

An index ranks by the model alone. ``neighbors`` of ``export.json`` has the formula and the weights
by which its scores are mixed with the neighbors; the softmax in it is over the scores of all items,
retired ones among them, which ``items.safetensors`` has where none is retired.
"""

from __future__ import annotations

import copy
import importlib
import os
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import Tensor, nn

from alphafuse_ext.checks import invalid
from alphafuse_ext.choices import EXPORT_FORMATS
from alphafuse_ext.data.ids import storable
from alphafuse_ext.evaluation.run_neighbors import RunNeighbors
from alphafuse_ext.files import atomic_folder, save_tensors, write_json
from alphafuse_ext.models import SASRec, SequenceModel
from alphafuse_ext.runs.run_folder import RunFolder, environment

if TYPE_CHECKING:
    from alphafuse_ext.serving.served_run import ServedRun

_Rows = npt.NDArray[np.float32]
_Ids = npt.NDArray[np.int64]

_NEEDED = {"faiss": ["faiss"], "usearch": ["usearch.index"], "onnx": ["onnx", "onnxscript"]}


def export(
    recommender: ServedRun, output: str | os.PathLike[str], to: Sequence[str] = ("safetensors",)
) -> Path:
    """Write the folder described above, atomically.

    Args:
        recommender: to export.
        output: the new folder.
        to: of ``"safetensors"``, ``"faiss"``, ``"usearch"`` and ``"onnx"``.

    Returns:
        The folder.

    Raises:
        ValueError: an unknown format, or one twice.
        ImportError: the format's package is not installed.
        NotImplementedError: a model that ONNX cannot express: DreamRec, LLM-ESR; or one that
            torch's exporter does not support.
        OSError: ``output`` exists, or cannot be written.
    """
    chosen = [to] if isinstance(to, str) else list(to)
    for name in chosen:
        if name not in EXPORT_FORMATS:
            raise invalid("to", repr(name), f"of {', '.join(EXPORT_FORMATS)}")
    if not chosen or len(set(chosen)) < len(chosen):
        raise invalid("to", chosen, "one format or more, each once")
    for name in chosen:
        for module in _NEEDED.get(name, ()):
            try:
                importlib.import_module(module)
            except ImportError as error:
                found = f"{name}, for which {module} cannot be imported ({error})"
                raise invalid("to", found, "pip install '.[export]'", ImportError) from error
    model = recommender.model
    if "onnx" in chosen and type(model) is not SASRec:
        found = f"onnx, of {type(model).__name__}"
        raise invalid("to", found, "SASRec: the others are no plain encoders", NotImplementedError)
    for name in chosen:
        if name != "safetensors" and not recommender.config.trained:
            allowed = "safetensors: without a model there are no embeddings to index"
            raise invalid("to", name, allowed, NotImplementedError)
    folder = RunFolder.check_new(output)

    items = recommender.items
    retired = np.zeros(len(items), bool) if items.retired is None else items.retired
    live = np.flatnonzero(~retired)
    with torch.inference_mode():
        device = model.device
        whole = model.table(torch.arange(len(items), device=device)).float().cpu()
    ranked = whole
    if model.similarity == "cosine":
        ranked = torch.nn.functional.normalize(whole, dim=1, eps=1e-8)
    rows: _Rows = np.ascontiguousarray(ranked.numpy()[live])
    with atomic_folder(folder) as temporary:
        frame = pd.DataFrame({"id": np.arange(len(items)), "item": storable(items.tokens)})
        if items.titles is not None:
            frame["title"] = np.asarray(items.titles, dtype=object)
        frame["retired"] = retired
        frame.to_parquet(temporary / "items.parquet", index=False)
        for name in chosen:
            if name == "onnx":
                _write_onnx(temporary / "encoder.onnx", model, whole)
            else:
                _INDEXES[name](temporary / f"items.{name}", rows, live)
        mixed: dict[str, Any] = {}
        if (beside := recommender.ranking_neighbors(None)) is not None:
            mixed["neighbors"] = _write_neighbors(temporary, recommender, beside)
        write_json(
            temporary / "export.json",
            {
                "run": recommender.run.path.name,
                "formats": chosen,
                "history": model.history,
                "padding_id": len(items),
                "padding": "on either side; so is what is no id of items.parquet, such as -1",
                "longer_histories": "their newest items",
                "histories_without_items": "NaN",
                "dim": rows.shape[1],
                "similarity": model.similarity,
                **mixed,
                "environment": environment(),
            },
        )
    return folder


def _write_neighbors(folder: Path, recommender: ServedRun, found: RunNeighbors) -> dict[str, Any]:
    """Write the lists; returns what is done with them."""
    lists, tensors = found.neighbors, {}
    for name, matrix in zip(("together", "language"), lists.matrices(), strict=True):
        for part, array, kind in (
            ("offsets", matrix.indptr, np.int64),
            ("ids", matrix.indices, np.int32),
            ("values", matrix.data, np.float32),
        ):
            tensors[f"{name}.{part}"] = torch.from_numpy(array.astype(kind))
    save_tensors(folder / "neighbors", "neighbors", tensors)
    return {
        "file": "neighbors.safetensors",
        "p": "(1 - weight) * softmax(scores / temperature) + weight * knn",
        "scores": "of all items, whatever is excluded, retired items among them"
        + ("" if recommender.config.trained else "; their embeddings, the same for every history"),
        "knn": "together + language_weight * language, divided by its sum over all items",
        "together": "mean of the lists of the history's items, weighted by decay ** age",
        "language": "mean of the lists of the history's items, weighted by language_decay ** age",
        "age": "0 of the newest item; the newest items count, as many as last",
        **found.weights(),
        "decay": lists.decay,
        "language_decay": lists.language_decay,
        "last": lists.last,
        "indexes": "items.faiss, items.usearch and encoder.onnx rank by the model alone",
    }


def _write_safetensors(path: Path, rows: _Rows, ids: _Ids) -> None:
    tensors = {"embeddings": torch.from_numpy(rows), "ids": torch.from_numpy(ids)}
    save_tensors(path, "items", tensors)


def _write_faiss(path: Path, rows: _Rows, ids: _Ids) -> None:
    import faiss

    index = faiss.IndexIDMap2(faiss.IndexFlatIP(rows.shape[1]))
    index.add_with_ids(rows, ids)
    # FAISS and USearch pass over what fails when they close a file, the end of it on a full disk.
    with open(path, "wb") as file:
        faiss.write_index(index, faiss.PyCallbackIOWriter(file.write))  # type: ignore[attr-defined]


def _write_usearch(path: Path, rows: _Rows, ids: _Ids) -> None:
    from usearch.index import Index

    index = Index(ndim=rows.shape[1], metric="ip", dtype="f32")
    index.add(ids.astype(np.uint64), rows)
    written = index.save(None)
    assert written is not None, "to memory"
    path.write_bytes(written)


_INDEXES: dict[str, Callable[[Path, _Rows, _Ids], None]] = {
    "safetensors": _write_safetensors,
    "faiss": _write_faiss,
    "usearch": _write_usearch,
}


class _PlainTable(nn.Module):
    """An item table in operators that ONNX has: its rows, and one of zeros for the padding."""

    rows: Tensor

    def __init__(self, rows: Tensor) -> None:
        super().__init__()
        self.register_buffer("rows", torch.cat([rows, rows.new_zeros(1, rows.shape[1])]))
        self.padding_idx = len(rows)

    def forward(self, ids: Tensor) -> Tensor:
        return nn.functional.embedding(ids, self.rows)


class _Encoder(nn.Module):
    """A model's :meth:`encode`, of histories as other software has them."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, histories: Tensor) -> Tensor:
        padding, longest = self.model.table.padding_idx, self.model.history
        known = ((histories >= 0) & (histories < padding)).long()
        after = known.sum(1, keepdim=True) - known.cumsum(1)
        kept = (known == 1) & (after < longest)
        # To the left, in their order; the rest into a column that is cut off.
        places = torch.where(kept, kept.long().cumsum(1) - 1, longest)
        empty = histories.new_full((histories.shape[0], longest + 1), padding)
        queries = self.model.encode(empty.scatter(1, places, histories)[:, :longest])
        some = known.sum(1, keepdim=True) > 0  # ONNX takes any() of nothing for true
        return torch.where(some, queries, float("nan"))


def _write_onnx(path: Path, model: SequenceModel, rows: Tensor) -> None:
    """The encoder, of any number of histories of any length."""
    plain = copy.copy(model)  # a module's copy has dictionaries of its own to hold the table
    plain._modules = dict(model._modules)
    plain.table = _PlainTable(rows)  # type: ignore[assignment]
    plain = copy.deepcopy(plain).cpu().eval()
    example = torch.zeros(2, 3, dtype=torch.int64)
    sizes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("length")}
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        try:
            torch.onnx.export(
                _Encoder(plain),
                (example,),
                str(path),
                input_names=["histories"],
                output_names=["queries"],
                dynamic_shapes={"histories": sizes},
                dynamo=True,
                external_data=rows.numel() * 4 > 1 << 30,
                verbose=False,
            )
        except RuntimeError as error:  # many lines, with the graph
            said = str(error).strip().partition("\n")[0]
            found = f"onnx, which this version of torch cannot make of the model: {said}"
            raise invalid("to", found, "another format", NotImplementedError) from error
