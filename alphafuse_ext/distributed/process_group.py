"""The group of processes that train a model together, with error handling."""

from __future__ import annotations

import functools
import os
import signal
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, ParamSpec, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from alphafuse_ext.checks import invalid
from alphafuse_ext.ops.declare import differentiates_otherwise
from alphafuse_ext.torchrun import RANK_TIMEOUT, FirstRankError, RankError

T = TypeVar("T")
P = ParamSpec("P")

# Timeout for what one rank does alone, such as encoding the texts of a catalog.
_ALONE = timedelta(days=1)


class ProcessGroup:
    """Processes that train together, of which the first reads, writes and logs.

    The constructor and all methods except :attr:`first` are collectives.

    Args:
        group: a group of `torch.distributed` whose backend supports the CPU and the training
            device, such as ``"gloo"`` or ``"cpu:gloo,cuda:nccl"``; ``None``: the default group.
        timeout: seconds that a rank waits for the others, for error messages; the group has its
            own.
        shard_items: shard the item table: each rank holds some of its rows, with their gradients
            and optimizer states.

    Attributes:
        rank, size: this process's rank, and the number of processes.
    """

    def __init__(
        self, group: Any = None, timeout: float | None = None, shard_items: bool = False
    ) -> None:
        self.shard_items = shard_items
        self.group: Any = dist.group.WORLD if group is None else group
        self.rank, self.size = dist.get_rank(self.group), dist.get_world_size(self.group)
        self.timeout = timeout
        with self.together():
            self._patient = dist.new_group(
                dist.get_process_group_ranks(self.group),
                timeout=_ALONE,
                backend="gloo",
                use_local_synchronization=True,
            )

    @property
    def first(self) -> bool:
        """Whether this is rank 0, which reads the data, writes the files and logs."""
        return self.rank == 0

    @contextmanager
    def together(self) -> Iterator[None]:
        """Raise a :class:`RankError` if a collective in the body fails because a rank was lost.

        Raises:
            RankError: instead of the backend's error.
        """
        try:
            yield
        except RankError:
            raise
        except RuntimeError as error:
            if not _of_a_lost_rank(error):
                raise
            waited = "" if self.timeout is None else f" for {self.timeout:g} s"
            raise RankError(
                f"rank {self.rank} of {self.size}: another rank has ended, or has not answered"
                f"{waited} ({_first_line(error)})"
            ) from error

    def broadcast(self, value: Any, failure: str | None = None) -> None:
        """Send a value from the first rank to the others, which wait in :meth:`receive`.

        Args:
            value: picklable.
            failure: the error message if this rank has failed, instead of a value.
        """
        self._broadcast([value, failure])

    def receive(self) -> Any:
        """Receive the value of :meth:`broadcast`; the first rank may take up to a day.

        Raises:
            FirstRankError: the first rank failed, and reports the error itself.
        """
        value, failure = self._broadcast([None, None])
        if failure is not None:
            raise FirstRankError(f"rank 0: {failure}")
        return value

    def _broadcast(self, objects: list[Any]) -> list[Any]:
        first = dist.get_global_rank(self.group, 0)
        with self.together():
            dist.broadcast_object_list(objects, first, group=self._patient)
        return objects

    def each(self, work: Callable[[], T]) -> T:
        """Run ``work`` on all ranks; returns this rank's result if none failed.

        Raises:
            Exception: raised by this rank's ``work``.
            RankError: another rank's ``work`` raised; the message has rank and error.
        """
        result: T | None = None
        failure: Exception | None = None
        try:
            result = work()
        except Exception as error:
            failure = error
        failures = self.gather(None if failure is None else str(failure))
        if failure is not None:
            raise failure
        for rank, said in enumerate(failures):
            if said is not None:
                raise RankError(f"rank {rank}: {said}")
        return result  # type: ignore[return-value]

    def check_same(self, facts: Mapping[str, Any]) -> None:
        """Check that values are the same on all ranks.

        Args:
            facts: values by name.

        Raises:
            ValueError: on all ranks; names the first value that differs, with that of each rank.
        """
        every = self.gather(dict(facts))
        for name in facts:
            found = [one[name] for one in every]
            if any(value != found[0] for value in found):
                raise invalid(name, f"{found} on ranks 0 to {self.size - 1}", "the same on each")

    def gather(self, value: Any) -> list[Any]:
        """The picklable values of all ranks, by rank."""
        values = [None] * self.size
        with self.together():
            dist.all_gather_object(values, value, group=self._patient)
        return values

    def sum(self, tensor: Tensor) -> Tensor:
        """Sum over all ranks, in place."""
        with self.together():
            dist.all_reduce(tensor, group=self.group)
        return tensor

    def maximum(self, tensor: Tensor) -> Tensor:
        """Maximum over all ranks, in place."""
        with self.together():
            dist.all_reduce(tensor, dist.ReduceOp.MAX, group=self.group)
        return tensor

    def parallel(
        self,
        module: nn.Module,
        device: torch.device,
        some_unused: bool = False,
        own: Iterable[str] = (),
    ) -> nn.Module:
        """Wrap a module so that its backward pass averages gradients over the ranks.

        Args:
            module: with the same parameters and buffers on each rank.
            device: where they are.
            some_unused: a rank may not use all parameters in a step.
            own: names of parameters that are not shared between ranks.
        """
        # Buffers, such as semantic rows, are the same on each rank and never change.
        left_out = [*own, *(name for name, _ in module.named_buffers())]
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(module, left_out)
        return DistributedDataParallel(
            module,
            device_ids=None if device.type == "cpu" else [device],
            process_group=self.group,
            init_sync=False,
            find_unused_parameters=some_unused,
            gradient_as_bucket_view=True,
        )


def size_of(process_group: ProcessGroup | None) -> int:
    """How many processes train together; 1 without a process group."""
    return 1 if process_group is None else process_group.size


@contextmanager
def broadcasting(process_group: ProcessGroup | None) -> Iterator[Callable[[Any], None]]:
    """Context for work of the first rank; the others wait in :meth:`ProcessGroup.receive`.

    Args:
        process_group: this process is its first; ``None``: there are no others.

    Yields:
        A function that takes the value for the others. It is broadcast at the end of the body, as
        is an exception of the body.
    """
    values: list[Any] = [None]
    try:
        yield lambda value: values.insert(0, value)
    except Exception as error:
        if process_group is not None:
            process_group.broadcast(None, str(error))
        raise
    if process_group is not None:
        process_group.broadcast(values[0])


def collective(method: Callable[P, T]) -> Callable[P, T]:
    """A collective method of an object with a ``process_group``; a lost rank is a `RankError`.

    Raises:
        NotImplementedError: in forward-mode AD or a functorch transform.
    """

    @functools.wraps(method)
    def together(*args: P.args, **kwargs: P.kwargs) -> T:
        holder: Any = args[0]
        if differentiates_otherwise():
            found = f"{method.__name__} of a sharded table in forward mode or a transform"
            raise invalid(
                "torch.func", found, "backward(), by which it learns", NotImplementedError
            )
        with holder.process_group.together():
            return method(*args, **kwargs)

    return together


@contextmanager
def torchrun_process_group(
    device: str, timeout: float = RANK_TIMEOUT, shard_items: bool = False
) -> Iterator[tuple[ProcessGroup, str]]:
    """The processes that ``torchrun`` has started, of which this is one.

    Args:
        device: ``"cpu"``, or ``"cuda"`` for the GPU with the local rank's number.
        timeout: seconds until the run fails if a rank does not answer.
        shard_items: as for :class:`ProcessGroup`.

    Yields:
        The process group, and this process's device.

    Raises:
        RankError: in the body: torchrun has terminated this rank, since another has failed.
    """
    backend, here = "gloo", device
    if device == "cuda":
        backend, here = "cpu:gloo,cuda:nccl", f"cuda:{os.environ['LOCAL_RANK']}"
        torch.cuda.set_device(here)
    dist.init_process_group(backend, timeout=timedelta(seconds=timeout))
    rank, size = dist.get_rank(), dist.get_world_size()

    def ended(*_: Any) -> None:
        raise RankError(f"rank {rank} of {size}: ended by torchrun, as another rank has failed")

    before = signal.signal(signal.SIGTERM, ended)
    try:
        yield ProcessGroup(None, timeout, shard_items), here
    finally:
        signal.signal(signal.SIGTERM, before)
        dist.destroy_process_group()


def _of_a_lost_rank(error: RuntimeError) -> bool:
    """Whether the error is of a collective, and not of a computation."""
    if isinstance(error, dist.DistError):
        return True
    said = str(error).lower()
    return any(word in said for word in ("gloo", "connection", "nccl", "timed out", "socket"))


def _first_line(error: RuntimeError) -> str:
    return str(error).strip().partition("\n")[0]
