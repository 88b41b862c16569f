"""Declaration of ops: a plain function, from whose annotations the rest is derived.

Eager calls run the function directly, or through a ``torch.autograd.Function`` if a gradient may be
needed: PyTorch's dispatcher would cost more than a small op itself. Under tracing
(``torch.compile``, fake tensors, functorch, any dispatch mode or tensor subclass) the same function
runs as a custom op of ``torch.library``.

Derivatives without a kernel (second derivatives, forward mode, functorch transforms) are those of
the op's definition in plain PyTorch, which stores intermediate results that the kernels do not.
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Optional

import torch
from torch import Tensor
from torch.autograd import forward_ad

from alphafuse_ext.checks import invalid
from alphafuse_ext.ops.graphs import constant_in_graphs, is_traced
from alphafuse_ext.ops.tables import FusedTables

# An argument `tables` of a declared function is these of the custom op.
_TABLES = {
    "semantic_rows": Optional[Tensor],  # noqa: UP045 (as torch.library knows it)
    "id_embeddings": Optional[Tensor],  # noqa: UP045
    "fusion": str,
    "cosine": bool,
    "precision": str,
}

OPS: list[Op] = []
"""Every op that has been declared."""

Gradients = Mapping[str, Tensor | None]


class Op:
    """An op on plain tensors, differentiable if it has ``backward``.

    Args:
        forward: ``forward(*arguments)``, annotated with types that ``torch.library.infer_schema``
            knows; ``tables: FusedTables`` may be among them. Returns new tensors.
        fake: of the same arguments: empty tensors of the result's shapes and dtypes.
        save: ``save(ctx, output, *arguments)`` keeps on ``ctx`` what backward needs.
        backward: ``backward(ctx, *grads)`` returns gradients by the arguments' names;
            ``ctx.needs[name]`` says which are wanted. It calls other declared ops, so that it can
            be traced as well.
        definition: what ``forward`` computes, in plain PyTorch, which is what ONNX has of it.
        differentiable: whether derivatives other than those of ``backward`` are the definition's;
            all, of an op without ``backward`` that is the backward of another.

    The op is ``torch.ops.alphafuse.<name>``, by the name of ``forward`` without its underscore.
    """

    def __init__(
        self,
        forward: Callable[..., Any],
        fake: Callable[..., Any],
        save: Callable[..., None] | None = None,
        backward: Callable[..., Gradients] | None = None,
        definition: Callable[..., Any] | None = None,
        differentiable: bool = True,
    ) -> None:
        self.name = forward.__name__.removeprefix("_")
        self.forward, self.definition = forward, definition
        self.differentiable = differentiable and definition is not None
        OPS.append(self)
        self._function: Any = None
        flat, self._tables_at = _flat_signature(forward)

        def flat_forward(*arguments: Any) -> Any:
            return forward(*self._nested(arguments))

        flat_forward.__signature__ = flat  # type: ignore[attr-defined]
        self._custom = torch.library.custom_op(
            f"alphafuse::{self.name}",
            flat_forward,
            mutates_args=(),
            schema=torch.library.infer_schema(flat_forward, mutates_args=()),
        )
        self._custom.register_fake(lambda *arguments: fake(*self._nested(arguments)))
        if not self.differentiable:
            return
        if save is None or backward is None:
            save, backward = self._save_all, self._backward_by_definition

        names = self._names = tuple(flat.parameters)

        def flat_save(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
            save(ctx, output, *self._nested(inputs))

        def gradients(
            ctx: Any, needs: Sequence[bool], grads: Sequence[Tensor]
        ) -> tuple[Tensor | None, ...]:
            ctx.needs = dict(zip(names, needs, strict=True))
            found = backward(ctx, *grads)
            return tuple(found.get(name) if ctx.needs[name] else None for name in names)

        def flat_backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
            return gradients(ctx, ctx.needs_input_grad, grads)

        def forward_and_save(ctx: Any, arguments: tuple[Any, ...], *flat: Any) -> Any:
            # In one, for a setup_context apart has its arguments bound by inspect, slowly.
            output = forward(*arguments)
            save(ctx, output, *arguments)
            return output

        def backward_of_flat(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
            return None, *gradients(ctx, ctx.needs_input_grad[1:], grads)

        self._custom.register_autograd(flat_backward, setup_context=flat_save)
        self._function = type(
            self.name,
            (torch.autograd.Function,),
            {
                "forward": staticmethod(forward_and_save),
                "backward": staticmethod(backward_of_flat),
            },
        )

    def __call__(self, *arguments: Any) -> Any:
        flat = self._flat(arguments)
        if self.differentiable and differentiates_otherwise():
            assert self.definition is not None
            return self.definition(*arguments)
        if torch.compiler.is_compiling() or is_traced(flat):
            if self.definition is not None and _is_for_onnx():
                return self.definition(*arguments)
            return self._custom(*flat)
        if self._function is not None and torch.is_grad_enabled():
            for argument in flat:
                if isinstance(argument, Tensor) and argument.requires_grad:
                    # The flat ones are there for autograd to see.
                    return self._function.apply(arguments, *flat)
        return self.forward(*arguments)

    def _save_all(self, ctx: Any, output: Any, *arguments: Any) -> None:
        flat = self._flat(arguments)
        ctx.save_for_backward(*(one if isinstance(one, Tensor) else None for one in flat))
        ctx.others = [None if isinstance(one, Tensor) else one for one in flat]

    def _backward_by_definition(self, ctx: Any, *grads: Tensor) -> Gradients:
        pairs = zip(ctx.saved_tensors, ctx.others, strict=True)
        flat = [other if tensor is None else tensor for tensor, other in pairs]
        wanted = [name for name in self._names if ctx.needs[name]]

        def of_wanted(*values: Tensor) -> Any:
            given = dict(zip(self._names, flat, strict=True))
            given.update(zip(wanted, values, strict=True))
            assert self.definition is not None
            return self.definition(*self._nested(tuple(given.values())))

        values = (flat[self._names.index(name)] for name in wanted)
        pullback = torch.func.vjp(of_wanted, *values)[1]
        return dict(zip(wanted, pullback(grads if len(grads) > 1 else grads[0]), strict=True))

    def _flat(self, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        at = self._tables_at
        if at is None:
            return arguments
        return (*arguments[:at], *arguments[at].flat, *arguments[at + 1 :])

    def _nested(self, flat: tuple[Any, ...]) -> tuple[Any, ...]:
        at = self._tables_at
        if at is None:
            return flat
        end = at + len(_TABLES)
        return (*flat[:at], FusedTables(*flat[at:end]), *flat[end:])


def _flat_signature(forward: Callable[..., Any]) -> tuple[inspect.Signature, int | None]:
    """The signature with its tables as four arguments, and where they begin."""
    hints = typing.get_type_hints(forward)
    flat: dict[str, Any] = {}
    at = None
    for place, name in enumerate(inspect.signature(forward).parameters):
        if hints[name] is FusedTables:
            at = place
            flat |= _TABLES
        else:
            flat[name] = _spelled(hints[name])
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    parameters = [inspect.Parameter(name, kind, annotation=hint) for name, hint in flat.items()]
    return inspect.Signature(parameters, return_annotation=hints["return"]), at


def _spelled(hint: Any) -> Any:
    """A list as ``typing`` writes it: schemas of torch 2.6 and 2.7 know no other."""
    if typing.get_origin(hint) is list:
        return typing.List[typing.get_args(hint)]  # type: ignore[misc]  # noqa: UP006
    return hint


@constant_in_graphs  # compiled graphs are guarded by both
def differentiates_otherwise() -> bool:
    """Whether there are derivatives that do not come from backward passes of the ops.

    Of forward mode, and those of functorch's transforms, which no custom op knows.
    """
    if forward_ad._current_level >= 0:
        return True
    stack = torch._C._functorch.get_interpreter_stack()
    return stack is not None and any(one.key() in _DERIVATIVES for one in stack)


_DERIVATIVES = (torch._C._functorch.TransformType.Grad, torch._C._functorch.TransformType.Jvp)


def refuse_second_derivatives(what: str) -> None:
    """For backward passes that have no derivative: else it would be left out in silence.

    Raises:
        NotImplementedError: a graph of this backward pass is asked for.
    """
    if torch.is_grad_enabled():
        raise invalid("create_graph", f"True, {what}", "False", NotImplementedError)


@constant_in_graphs
def _is_for_onnx() -> bool:
    """Whether what is traced becomes ONNX, which has none of these ops."""
    return torch.onnx.is_in_onnx_export()
