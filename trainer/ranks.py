"""Ranks: the processes that train one run together, as torchrun starts them.

    torchrun --nproc-per-node 8 -m trainer.run --recipe vit-tiny --data PATH

Each process holds all of the state and sees its own images of every batch; what one process would
have summed over the batch is averaged over the ranks. So they stay alike, and the first speaks and
writes for all.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from accelerate import PartialState
from torch import Tensor

from models.nets.normalize import SharedBatchNormalizer
from models.nets.view import Share

Item = TypeVar("Item")

PATIENCE = timedelta(hours=2)
"""How long ranks wait for one that says nothing: the first writes the bundle alone. One that has
ended is noticed at once."""


class Ended(Exception):
    """Another process of the run has ended, so that this one cannot go on."""

    def __init__(self) -> None:
        super().__init__("another process of this run has ended")


@dataclass(frozen=True)
class Ranks:
    """This process among ``world_size``: its number, and its number on its machine."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0

    @property
    def is_first(self) -> bool:
        """Whether this one writes and evaluates."""
        return self.rank == 0

    @property
    def command(self) -> str:
        """What starts the training program as this one was started."""
        return "python -m trainer.run" if self.world_size == 1 else "torchrun ... -m trainer.run"

    @contextmanager
    def one_voice(self) -> Iterator[None]:
        """The first process of each machine speaks for the others. A traceback is always seen."""
        with ExitStack() as stack:
            if self.local_rank:
                nowhere = stack.enter_context(Path(os.devnull).open("w"))
                stack.enter_context(redirect_stdout(nowhere))
                stack.enter_context(redirect_stderr(nowhere))
            yield

    @contextmanager
    def connected(self, device: str) -> Iterator[None]:
        """Where the others can be reached. On GPUs each process takes cuda:LOCAL_RANK."""
        if self.world_size == 1:
            yield
            return
        on_gpu = torch.device(device).type == "cuda"
        # numbers of the run and the generator are on the CPU also where the supernet is on a GPU
        with _peers():
            dist.init_process_group("cpu:gloo,cuda:nccl" if on_gpu else "gloo", timeout=PATIENCE)
        if on_gpu:
            PartialState()
        try:
            yield
        finally:
            dist.destroy_process_group()

    @contextmanager
    def together(self) -> Iterator[None]:
        """What may fail in one process: then it fails in all, with the same words.

        Nothing inside may exchange anything with the ranks.
        """
        failure: ValueError | OSError | None = None
        try:
            yield
        except (ValueError, OSError) as error:
            if self.world_size == 1:
                raise
            failure = error
        if self.world_size > 1 and self.most(failure is not None):
            said = self._all([None if failure is None else _words(failure)])
            raise ValueError(next(words for words in said if words is not None)) from failure

    def most(self, number: float) -> float:
        """The largest of the ranks' numbers."""
        if self.world_size == 1:
            return number
        largest = torch.tensor(number, dtype=torch.float64)
        with _peers():
            dist.all_reduce(largest, dist.ReduceOp.MAX)
        return largest.item()

    def union(self, items: Sequence[str]) -> list[str]:
        """Of the ranks' items, in the order of the ranks."""
        if self.world_size == 1 or not self.most(len(items)):
            return list(items)
        return list(dict.fromkeys(self._all(items)))

    def mean_losses(self, drawn: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
        """FLOPs of subnets that all ranks have trained, and their losses over the whole batch."""
        if self.world_size == 1:
            return list(drawn)
        here = torch.tensor(drawn, dtype=torch.float64)
        each = [torch.empty_like(here) for _ in range(self.world_size)]
        with _peers():
            dist.all_gather(each, here)
        flops, losses = torch.stack(each).unbind(-1)
        assert bool((flops == flops[0]).all()), "ranks have trained different subnets"
        return list(zip((f for f, _ in drawn), losses.mean(0).tolist(), strict=True))

    def shared_out(self, items: Sequence[Item]) -> Sequence[Item]:
        """This rank's of some items that all ranks have alike."""
        return items[self.rank :: self.world_size]

    def gathered(self, here: Sequence[Item]) -> list[Item]:
        """What the ranks made of the items that ``shared_out`` gave them, in the items' order."""
        if self.world_size == 1:
            return list(here)
        every: list[list[Item]] = [[] for _ in range(self.world_size)]
        with _peers():
            dist.all_gather_object(every, list(here))
        longest = max(map(len, every))
        return [made[turn] for turn in range(longest) for made in every if turn < len(made)]

    def average(self, tensor: Tensor) -> Tensor:
        """The mean over the ranks, through which gradients flow back to all of them."""
        return tensor if self.world_size == 1 else _Average.apply(tensor)

    def shared(self, tensor: Tensor) -> Tensor:
        """A tensor that all ranks have alike, of whose gradient the mean is taken."""
        if self.world_size == 1 or not tensor.requires_grad:
            return tensor
        tensor = tensor.view_as(tensor)
        tensor.register_hook(_mean)
        return tensor

    def average_gradients(self, parameters: Iterable[Tensor]) -> None:
        """Put the mean over the ranks in place of every gradient, in one message per device.

        All ranks have gradients of the same parameters: those of the subnets that they trained.
        """
        if self.world_size == 1:
            return
        gradients = [p.grad for p in parameters if p.grad is not None]
        for device in dict.fromkeys(gradient.device for gradient in gradients):
            here = [gradient for gradient in gradients if gradient.device == device]
            mean = _mean(torch.cat([gradient.reshape(-1) for gradient in here]))
            for gradient, part in zip(here, mean.split([g.numel() for g in here]), strict=True):
                gradient.copy_(part.view_as(gradient))

    def begin_alike(self, tensors: Iterable[Tensor]) -> None:
        """Take the first rank's values: another kind of processor may have rounded otherwise."""
        if self.world_size > 1:
            with _peers(), torch.no_grad():
                for tensor in tensors:
                    dist.broadcast(tensor.data, 0)

    def wait(self) -> None:
        """Until all ranks have come here."""
        self.most(0)

    @property
    def normalizer(self) -> SharedBatchNormalizer | None:
        """What BatchNorm normalizes by; None for the batch that it sees, if that is all of it."""
        return None if self.world_size == 1 else SharedBatchNormalizer(self.average)

    def share(self, start: int, stop: int, size: int) -> Share:
        """Images start..stop-1 of this rank's ``size``: every n-th of the batch is on this rank."""
        first, last = (self.rank + self.world_size * place for place in (start, stop))
        return Share(size * self.world_size, slice(first, last, self.world_size))

    def _all(self, items: Sequence[Any]) -> list[Any]:
        every: list[Any] = [None] * self.world_size
        with _peers():
            dist.all_gather_object(every, list(items))
        return [item for items in every for item in items]


ALONE = Ranks()


def ranks_here() -> Ranks:
    """As torchrun has told this process."""
    rank, world_size, local_rank = (
        int(os.environ.get(name, default))
        for name, default in (("RANK", "0"), ("WORLD_SIZE", "1"), ("LOCAL_RANK", "0"))
    )
    return Ranks(rank, world_size, local_rank) if world_size > 1 else ALONE


class _Average(torch.autograd.Function):
    """If y is the mean of all x, then the gradient of x is the mean of all gradients of y."""

    @staticmethod
    def forward(*args: Any, **_: Any) -> Tensor:
        return _mean(args[1])

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Tensor:
        return _mean(grad_outputs[0])


def _mean(tensor: Tensor) -> Tensor:
    total = tensor.clone(memory_format=torch.contiguous_format)
    with _peers():
        dist.all_reduce(total)
    return total / dist.get_world_size()


@contextmanager
def _peers() -> Iterator[None]:
    """Around every exchange. Raises Ended when another process is gone."""
    try:
        yield
    except RuntimeError as error:
        raise Ended from error


def _words(error: ValueError | OSError) -> str:
    if isinstance(error, OSError):
        return f"{error.filename}: {error.strerror}" if error.filename else str(error)
    return str(error)
