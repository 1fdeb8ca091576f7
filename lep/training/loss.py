"""Cross-entropy over a long vocabulary, in chunks of positions, so that the logits of a batch never exist whole.

In: last hidden states, the output table in one part or several, targets. Out: the scalar loss, with its gradients.
The gradients are worked out in the forward pass, chunk by chunk, while the logits of the chunk are at hand: three
matrix products a chunk as in plain training, against four where the backward pass computes the logits again.
"""

# N positions, D hidden, U vocabulary, C positions of a chunk

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

IGNORED = -100
# Elements of the logits of one chunk: an accelerator wants large products (256 MB in float32); a CPU is faster where a
# chunk stays near its caches, as long as it has positions enough that reading the table is not most of the work.
CHUNK_ELEMENTS = 2**26
CPU_CHUNK_ELEMENTS, CPU_CHUNK_POSITIONS = 2**19, 128
# Rows of the table whose gradient is summed at once where the products are bfloat16 and the sum is float32.
SUMMED_ROWS = 2**14


def chunked_cross_entropy(
    hidden: Tensor,
    tables: Sequence[Tensor],
    *,
    targets: Tensor,
    chunk_size: int | None = None,
    reduction: Literal["mean", "sum"] = "mean",
) -> Tensor:
    """Cross-entropy of the targets under `softmax(hidden @ table.T)`, equal to that of the whole logits.

    `hidden` [N, D]; `tables`: the output table in parts along the vocabulary, [U1, D], [U2, D], ..., with or without
    gradient each; `targets` [N] int64, where -100 marks a position that does not count. Products are in the dtype of
    `hidden` (or of autocast, where it is on), softmax and sums in float32 at least. `chunk_size` is in positions; None
    picks it by vocabulary and device. The mean is over the positions that count; with none of them it is zero.
    """
    assert hidden.ndim == 2 and targets.shape == hidden.shape[:1], (hidden.shape, targets.shape)
    size = chunk_size or positions_at_once(sum(len(table) for table in tables), hidden.device.type)
    wanted = [torch.is_grad_enabled() and tensor.requires_grad for tensor in (hidden, *tables)]
    job = _Job(targets, size, reduction == "mean", _product_dtype(hidden), wanted)
    return _ChunkedCrossEntropy.apply(job, hidden, *tables)  # pyright: ignore[reportReturnType]


def positions_at_once(vocabulary: int, device: str) -> int:
    """Positions of a chunk, unless it is told, on a type of device ("cpu", "cuda")."""
    if device == "cpu":
        return max(CPU_CHUNK_POSITIONS, CPU_CHUNK_ELEMENTS // vocabulary)
    return max(1, CHUNK_ELEMENTS // vocabulary)


def _product_dtype(hidden: Tensor) -> torch.dtype:
    device = hidden.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype


class _Job:
    """What one loss is computed with, beside its differentiable inputs."""

    def __init__(self, targets: Tensor, size: int, mean: bool, dtype: torch.dtype, wanted: list[bool]) -> None:
        self.counts = targets != IGNORED
        self.targets = targets.where(self.counts, 0)
        self.size = size
        self.dtype = dtype
        self.sum_dtype = torch.promote_types(dtype, torch.float32)
        self.wanted = wanted
        weight = self.counts.to(self.sum_dtype)
        self.weight = weight / self.counts.sum().clamp_min(1) if mean else weight

    def run(self, hidden: Tensor, tables: tuple[Tensor, ...]) -> tuple[Tensor, list[Tensor | None]]:
        """The loss and the gradients of those of (hidden, *tables) that want one."""
        with torch.no_grad(), torch.autocast(hidden.device.type, enabled=False):
            grads = [
                torch.zeros_like(tensor, dtype=self.sum_dtype if i else tensor.dtype) if wanted else None
                for i, (tensor, wanted) in enumerate(zip((hidden, *tables), self.wanted, strict=True))
            ]
            parts = [table.to(self.dtype) for table in tables]
            loss = torch.zeros((), dtype=self.sum_dtype, device=hidden.device)
            for start in range(0, len(hidden), self.size):
                loss += self._chunk(slice(start, start + self.size), hidden, parts, grads)
            return loss, grads

    def _chunk(self, at: slice, hidden: Tensor, parts: list[Tensor], grads: list[Tensor | None]) -> Tensor:
        """Loss of one chunk; adds the chunk's share to the gradients in place."""
        states, weight, targets = hidden[at].to(self.dtype), self.weight[at], self.targets[at, None]
        products = [states @ part.T for part in parts]
        logits = (products[0] if len(products) == 1 else torch.cat(products, dim=1)).to(self.sum_dtype)
        del products
        surprise = torch.log_softmax(logits, dim=1)
        del logits
        loss = -(surprise.gather(1, targets).squeeze(1) * weight).sum()
        if any(self.wanted):
            slope = surprise.exp_()  # d loss / d logits, once the target's entry is lowered by one
            slope.scatter_add_(1, targets, slope.new_full((1, 1), -1.0).expand_as(targets))
            self._add_gradients(at, slope.to(self.dtype), states, weight[:, None], parts, grads)
        return loss

    def _add_gradients(
        self,
        at: slice,
        slope: Tensor,
        states: Tensor,
        weight: Tensor,
        parts: list[Tensor],
        grads: list[Tensor | None],
    ) -> None:
        # The weights go onto the D side of each product, which is narrow, not onto the vocabulary side.
        weighted = (states * weight).to(self.dtype)
        start = 0
        for part, grad in zip(parts, grads[1:], strict=True):
            columns = slope[:, start : start + len(part)]
            start += len(part)
            if grads[0] is not None:
                grads[0][at] += (columns @ part * weight).to(grads[0].dtype)
            if grad is not None:
                _add_product_(grad, columns.T, weighted)


def _add_product_(total: Tensor, left: Tensor, right: Tensor) -> None:
    """total += left @ right, with a short-lived buffer where the sum is wider than the product."""
    if total.dtype == left.dtype:
        total.addmm_(left, right)
        return
    for start in range(0, len(total), SUMMED_ROWS):
        total[start : start + SUMMED_ROWS] += left[start : start + SUMMED_ROWS] @ right


class _ChunkedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, job: _Job, hidden: Tensor, *tables: Tensor) -> Tensor:
        loss, ctx.grads = job.run(hidden, tables)
        ctx.job = job
        ctx.save_for_backward(hidden, *tables)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        hidden, *tables = ctx.saved_tensors
        # The first backward pass scales the stored gradients in place and gives them away; another one (a retained
        # graph) starts anew.
        grads = ctx.grads or ctx.job.run(hidden, tuple(tables))[1]
        ctx.grads = None
        scaled = [None if grad is None else grad.mul_(grad_output) for grad in grads]
        return None, *(
            None if grad is None else grad.to(tensor.dtype)
            for grad, tensor in zip(scaled, (hidden, *tables), strict=True)
        )
