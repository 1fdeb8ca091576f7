"""The embedding tables while they are trained: float32 rows that move, and rows that do not.

In: a table [U, D]. Out: rows looked up for ids, the table in parts for the loss, and the whole table at the end.
"""

# U vocabulary, D hidden, F frozen first rows

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional


class TrainedTable(nn.Module):
    """An embedding table [U, D] of which the rows from `first_trained` on are trained.

    The trained rows are a float32 parameter, a copy of the given ones: AdamW loses small updates in bfloat16. The
    first rows are a frozen tensor, which may be cast to the dtype of the body: neither gradient nor optimizer state.
    `frozen_rows` are single rows among the trained ones that must not move (special tokens): before an optimizer step
    `zero_frozen_gradient_` keeps them out of gradient clipping and of the moments, and after it `restore_frozen_rows_`
    undoes their weight decay.
    """

    frozen_rows: Tensor
    kept_rows: Tensor

    def __init__(
        self,
        table: Tensor,
        *,
        first_trained: int = 0,
        frozen_rows: Sequence[int] = (),
    ) -> None:
        super().__init__()
        table = table.detach()
        self.first_trained = first_trained
        self.trained = nn.Parameter(table[first_trained:].to("cpu", torch.float32, copy=True))
        # A parameter and not a buffer: data-parallel training sends buffers around before every forward pass.
        self.frozen = nn.Parameter(table[:first_trained], requires_grad=False)
        self._first_rows = table[:first_trained]
        rows = torch.tensor([row - first_trained for row in frozen_rows if row >= first_trained], dtype=torch.int64)
        self.register_buffer("frozen_rows", rows, persistent=False)
        self.register_buffer("kept_rows", self.trained.detach()[rows], persistent=False)

    def forward(self, ids: Tensor) -> Tensor:
        """Rows [..., D] of the ids, float32."""
        if not self.first_trained:
            return functional.embedding(ids, self.trained)
        new = functional.embedding((ids - self.first_trained).clamp_min(0), self.trained)
        old = functional.embedding(ids.clamp_max(self.first_trained - 1), self.frozen)
        return torch.where((ids >= self.first_trained)[..., None], new, old.to(new.dtype))

    def parts(self) -> tuple[Tensor, ...]:
        """The table in parts along the vocabulary, the frozen one first."""
        return (self.frozen, self.trained) if self.first_trained else (self.trained,)

    def whole(self) -> Tensor:
        """The table as it now stands: float32 [U, D] on the CPU, a copy; frozen rows exactly as they were given."""
        return torch.cat([self._first_rows.to("cpu", torch.float32), self.trained.detach().cpu()])

    def zero_frozen_gradient_(self) -> None:
        """Take the frozen single rows out of the gradient. Call before gradients are clipped."""
        if len(self.frozen_rows) and self.trained.grad is not None:
            self.trained.grad.index_fill_(0, self.frozen_rows, 0.0)

    @torch.no_grad()
    def restore_frozen_rows_(self) -> None:
        """Put the frozen single rows back to their values. Call after each optimizer step."""
        if len(self.frozen_rows):
            self.trained.index_copy_(0, self.frozen_rows, self.kept_rows)
