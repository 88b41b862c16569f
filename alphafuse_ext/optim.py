"""Optimizers of ``torch.optim``'s interface for tables with sparse gradients.

A step costs what its gradient touches: one pass over those rows, with float32 state, whatever the
size of the table and of its dtype.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from itertools import chain
from numbers import Real
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from alphafuse_ext.checks import invalid
from alphafuse_ext.ops import gradients, native
from alphafuse_ext.ops.graphs import outside_graphs

__all__ = ["LazyAdam", "RowWiseAdagrad"]


def __dir__() -> list[str]:
    return __all__


class _TouchedRows(torch.optim.Optimizer):
    """A step on the rows of a sparse gradient, and on no others."""

    STATE: ClassVar[tuple[str, ...]] = ()
    """Names of the state with a row for each of the parameter's, float32; ``step`` is beside it."""

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters with options of their own, as ``torch.optim.Optimizer`` does."""
        super().add_param_group(param_group)
        try:
            self._check_group(self.param_groups[-1])
            for parameter in self.param_groups[-1]["params"]:
                _check_parameter(parameter)
        except (TypeError, ValueError):
            del self.param_groups[-1]
            raise

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """Step the rows of each parameter that its gradient holds.

        A parameter whose ``grad`` is ``None`` is left alone; an empty gradient counts as a step.

        Args:
            closure: evaluates the model again and returns the loss.

        Returns:
            What ``closure`` returned.

        Raises:
            ValueError: a gradient that is not a sparse one of rows, or an option that is invalid
                by now. Nothing was changed.
            IndexError: a gradient with a row that the parameter does not have, or with rows out of
                order though it is marked as coalesced; on a GPU an error of a later call.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            self._check_group(group)
            for parameter in group["params"]:
                _check_gradient(parameter)
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._step(parameter, parameter.grad, group)
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:  # type: ignore[override]
        """Load the state of such an optimizer, or of PyTorch's of the same state.

        Args:
            state_dict: of ``state_dict()``; as with PyTorch's, tensors may be taken over as they
                are.

        Raises:
            ValueError: state or options that this optimizer does not have. Nothing was changed.
        """
        found: dict[Tensor, dict[str, Tensor]] = {}

        def check(_: torch.optim.Optimizer, given: dict[str, Any]) -> None:
            found.update(self._checked(given))

        hook = self.register_load_state_dict_pre_hook(check)  # sees what others have made of it
        try:
            super().load_state_dict(state_dict)
        finally:
            hook.remove()
        for parameter, state in found.items():  # PyTorch has rounded it to the parameter's dtype
            self.state[parameter] = state

    def _checked(self, given: Mapping[str, Any]) -> dict[Tensor, dict[str, Tensor]]:
        """The state of each parameter in a state dict, float32 and where it belongs."""
        for group in given["param_groups"]:
            self._check_group({**self.defaults, **group})
        names = chain.from_iterable(group["params"] for group in given["param_groups"])
        own = chain.from_iterable(group["params"] for group in self.param_groups)
        wanted = {"step", *self.STATE}
        found: dict[Tensor, dict[str, Tensor]] = {}
        for name, parameter in zip(names, own, strict=False):  # PyTorch counts them
            if not (state := given["state"].get(name)):
                continue
            if set(state) != wanted:
                keys = f"a state of {', '.join(sorted(state))} for parameter {name}"
                raise invalid("state_dict", keys, ", ".join(sorted(wanted)))
            shape = self._state_shape(parameter)
            found[parameter] = {"step": torch.tensor(int(state["step"]))}
            for key in self.STATE:
                if tuple(state[key].shape) != shape:
                    given_shape = f"{key} of shape {tuple(state[key].shape)} for parameter {name}"
                    raise invalid("state_dict", given_shape, f"shape {shape}")
                kept = state[key].to(parameter.device, torch.float32)
                found[parameter][key] = kept.contiguous()
        return found

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for group in self.param_groups:  # of another optimizer, which does not know all options
            for name, value in self.defaults.items():
                group.setdefault(name, value)

    @outside_graphs  # as what makes sparse gradients is
    def _step(self, parameter: Tensor, grad: Tensor, group: Mapping[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.int64)
            shape, first = self._state_shape(parameter), self._first_value(group)
            for key in self.STATE:
                state[key] = torch.full(shape, first, dtype=torch.float32, device=parameter.device)
        state["step"] += 1
        if grad._nnz() == 0 or parameter.shape[1] == 0:
            return
        ids, rows = _rows_of(grad)
        if group["maximize"]:
            rows = -rows
        kernels, where = native.kernels(parameter)
        self._update(kernels, where, (ids, rows, parameter), state, group)
        torch.autograd.graph.increment_version(parameter)  # as of any write in place

    def _state_shape(self, parameter: Tensor) -> tuple[int, ...]:
        """The shape of each of :attr:`STATE`."""
        return tuple(parameter.shape)

    def _first_value(self, group: Mapping[str, Any]) -> float:
        """What they are filled with before the first step."""
        return 0.0

    def _update(
        self,
        kernels: Any,
        where: Any,
        rows: tuple[Tensor, Tensor, Tensor],
        state: Mapping[str, Any],
        group: Mapping[str, Any],
    ) -> None:
        """Call the kernel with ids, gradients and parameter."""
        raise NotImplementedError

    def _check_group(self, group: Mapping[str, Any]) -> None:
        _check_number("lr", group["lr"], 0.0, "0 <= lr, finite")
        # Of a smaller one nothing is left in float32, and a row without a gradient divides 0 by 0.
        smallest = torch.finfo(torch.float32).tiny
        _check_number("eps", group["eps"], smallest, f"{smallest:.3g} <= eps, finite")
        for name in ("weight_decay", "lr_decay", "amsgrad"):
            if group.get(name):
                allowed = f"none with {type(self).__name__}"
                raise invalid(name, group[name], allowed)


class LazyAdam(_TouchedRows):
    """Adam of the rows that a sparse gradient holds; other rows and their moments stay as they are.

    The algorithm of ``torch.optim.SparseAdam``, whose state it loads, in one pass:

    .. code-block:: text

        m = m + (1 - beta1) (g - m),  v = v + (1 - beta2) (g^2 - v)     float32, of touched rows
        p = p - lr sqrt(1 - beta2^t) / (1 - beta1^t)  m / (sqrt(v) + eps)

    ``t`` counts the parameter's steps, whichever rows they touched. Rows of a gradient that is not
    coalesced are summed first, in float32. The result is the same for any number of threads. On the
    CPU, with float32 and a coalesced gradient, it is that of ``torch.optim.SparseAdam`` but for the
    square root, which here is rounded correctly. A float16 or bfloat16 parameter is rounded to
    nearest after each step, so that an update below half a unit in its last place is lost.

    There is no weight decay: it would be due in every row at every step, and a forward pass would
    read rows that it has not reached. Options of a group that ask for it are refused.

    Args:
        params: contiguous parameters of shape ``(N, columns)``, float32, bfloat16 or float16, or
            groups of them as dicts.
        lr: learning rate, 0 or more; a schedule of ``torch.optim.lr_scheduler`` may change it.
        betas: decay of the two moments, each in ``[0, 1)``.
        eps: above 0.
        maximize: ascend instead.

    Raises:
        ValueError, TypeError: an option or a parameter that is none of these.
    """

    STATE = ("exp_avg", "exp_avg_sq")

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        maximize: bool = False,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "maximize": maximize})

    def _check_group(self, group: Mapping[str, Any]) -> None:
        super()._check_group(group)
        betas = group["betas"]
        if not isinstance(betas, (tuple, list)) or len(betas) != 2:
            raise invalid("betas", repr(betas), "two numbers")
        for at, beta in enumerate(betas):
            _check_number(f"betas[{at}]", beta, 0.0, "0 <= beta < 1", below=1.0)

    def _update(
        self,
        kernels: Any,
        where: Any,
        rows: tuple[Tensor, Tensor, Tensor],
        state: Mapping[str, Any],
        group: Mapping[str, Any],
    ) -> None:
        (beta1, beta2), steps = map(float, group["betas"]), int(state["step"])
        step_size = float(group["lr"]) * math.sqrt(1 - beta2**steps) / (1 - beta1**steps)
        moments = state["exp_avg"], state["exp_avg_sq"]
        kernels.lazy_adam(*rows, *moments, step_size, beta1, beta2, float(group["eps"]), where)


class RowWiseAdagrad(_TouchedRows):
    """Adagrad with one number for each row: what a table of millions of rows has memory for.

    FBGEMM's exact row-wise Adagrad, without weight decay:

    .. code-block:: text

        s = s + mean of g^2 over the row's columns                      float32, of touched rows
        p = p - lr g / (sqrt(s) + eps)

    Parameters, gradients and precision are as for :class:`LazyAdam`; it is deterministic likewise.

    Args:
        params: as for :class:`LazyAdam`.
        lr: learning rate, 0 or more. Steps shrink with the sum, so it is larger than Adam's.
        eps: above 0.
        initial_accumulator_value: of ``s``, 0 or more.
        maximize: ascend instead.

    Raises:
        ValueError, TypeError: an option or a parameter that is none of these.
    """

    STATE = ("sum",)

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-2,
        eps: float = 1e-10,
        initial_accumulator_value: float = 0.0,
        maximize: bool = False,
    ) -> None:
        options = {"initial_accumulator_value": initial_accumulator_value, "maximize": maximize}
        super().__init__(params, {"lr": lr, "eps": eps, **options})

    def _check_group(self, group: Mapping[str, Any]) -> None:
        super()._check_group(group)
        name = "initial_accumulator_value"
        _check_number(name, group[name], 0.0, f"0 <= {name}, finite")

    def _state_shape(self, parameter: Tensor) -> tuple[int, ...]:
        return len(parameter), 1

    def _first_value(self, group: Mapping[str, Any]) -> float:
        return float(group["initial_accumulator_value"])

    def _update(
        self,
        kernels: Any,
        where: Any,
        rows: tuple[Tensor, Tensor, Tensor],
        state: Mapping[str, Any],
        group: Mapping[str, Any],
    ) -> None:
        rate, eps = float(group["lr"]), float(group["eps"])
        kernels.row_wise_adagrad(*rows, state["sum"], rate, eps, where)


def _rows_of(grad: Tensor) -> tuple[Tensor, Tensor]:
    """The ids of a gradient's rows, ascending, and for each its values."""
    ids, values = grad._indices()[0].contiguous(), grad._values().contiguous()
    # Autograd forgets that a gradient was coalesced; as those of sparse tables are, it still is.
    if grad.is_coalesced() or bool((ids[1:] > ids[:-1]).all()):
        return ids, values
    native.check_ids("gradient", ids, 0, grad.shape[0] - 1)
    groups = gradients.group_ids(ids, grad.shape[0], True)
    sums = gradients.empty_rows(groups, grad.shape[0], grad.shape[1], grad.device, True)
    kernels, where = native.kernels(values)
    kernels.lookup_backward(values, groups, sums, where)
    return gradients.touched_ids(groups, grad.device), sums


def _check_number(
    name: str, value: Any, minimum: float, allowed: str, below: float = math.inf
) -> None:
    number = isinstance(value, Real) and not isinstance(value, bool)
    if not number and not (isinstance(value, Tensor) and value.numel() == 1):
        raise invalid(name, repr(value), "a number", TypeError)
    if not minimum <= float(value) < below:  # which a NaN is not either
        raise invalid(name, float(value), allowed)


def _check_parameter(parameter: Tensor) -> None:
    allowed = "contiguous parameters (N, columns) of float32, bfloat16 or float16"
    if parameter.layout is not torch.strided or is_traceable_wrapper_subclass(parameter):
        kind = f"a {type(parameter).__name__} of layout {parameter.layout}"
        raise invalid("params", kind, allowed)
    if parameter.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        raise invalid("params", f"one of {parameter.dtype}", allowed, TypeError)
    if parameter.dim() != 2:
        raise invalid("params", f"one of shape {tuple(parameter.shape)}", allowed)
    if not parameter.is_contiguous():
        raise invalid("params", f"one of strides {parameter.stride()}", allowed)


def _check_gradient(parameter: Tensor) -> None:
    grad = parameter.grad
    if grad is None:
        return
    shape = tuple(parameter.shape)
    allowed = "a sparse one of rows, which sparse=True makes; torch.optim.Adam takes dense ones"
    if not grad.is_sparse:
        raise invalid("grad", f"a dense gradient of a parameter of shape {shape}", allowed)
    if grad.sparse_dim() != 1:
        found = f"one of {grad.sparse_dim()} sparse dimensions of a parameter of shape {shape}"
        raise invalid("grad", found, allowed)
    if not parameter.is_contiguous():
        raise invalid("params", f"one of strides {parameter.stride()}", "contiguous parameters")
