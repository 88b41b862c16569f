"""A tensor to read: what ``weight`` of an item table gives where no parameter is the weight."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from alphafuse_ext.checks import invalid

# They rebuild a tensor from its class and memory: of a plain one, which is its owner's to write.
_COPIES = (Tensor.__deepcopy__, Tensor.__reduce_ex__)


class ComputedWeight(Tensor):
    """All embeddings of a table, computed from what it stores; it refuses to be written to.

    A write would be lost, or would change frozen rows. So ``nn.init.zeros_(table.weight)``,
    ``table.weight.data.normal_()`` and ``table.weight[3] = row`` raise a ``RuntimeError``, as does
    a write to any view of it, ``.detach()`` among them. Everything else is as with a plain tensor,
    gradients included, and gives plain tensors; ``.clone()`` is the caller's own.
    """

    @classmethod
    def of(cls, rows: Tensor) -> Tensor:
        """``rows``, to read only; as they are where a graph is traced, which knows no subclass."""
        if type(rows) is not Tensor or rows.is_meta or torch.compiler.is_compiling():
            return rows
        return rows.as_subclass(cls)

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        # The functions of nn.init hand on their arguments by name.
        written = args[0] if args else next(iter(kwargs.values()), None)
        if (isinstance(written, cls) and _writes(func)) or isinstance(kwargs.get("out"), cls):
            raise invalid(
                "table.weight",
                f"a write to it ({func.__name__})",
                "one to table.id_embeddings, or to table.weight.clone(): the weight is computed "
                "from the stored rows, and a write to it would be lost",
                RuntimeError,
            )
        with torch._C.DisableTorchFunctionSubclass():
            if func in _COPIES:
                return func(args[0].as_subclass(Tensor), *args[1:], **kwargs)
            result = func(*args, **kwargs)
            return _views_kept(result, written) if isinstance(written, cls) else result


def _writes(func: Callable[..., Any]) -> bool:
    """Whether a function of torch changes its first argument, by the names that torch gives."""
    name = func.__name__
    return name in ("__set__", "__setitem__") or (name.endswith("_") and name[-2] != "_")


def _views_kept(result: Any, weight: ComputedWeight) -> Any:
    """The result; tensors in it that share the weight's memory refuse writes as well."""
    if type(result) is Tensor:
        if torch._C._functorch.is_functorch_wrapped_tensor(result):  # it has no memory of its own
            return result
        memory = result.untyped_storage().data_ptr()
        if memory != weight.untyped_storage().data_ptr():
            return result
        return result.as_subclass(ComputedWeight)
    if type(result) in (tuple, list):  # of split, chunk, unbind; named ones hold no views
        return type(result)(_views_kept(one, weight) for one in result)
    return result
