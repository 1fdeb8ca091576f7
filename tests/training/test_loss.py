import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from lep.training.loss import chunked_cross_entropy


def problem(positions: int, sizes: list[int], width: int = 5, dtype: torch.dtype = torch.float64, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(positions, width, generator=generator, dtype=dtype, requires_grad=True)
    tables = [torch.randn(size, width, generator=generator, dtype=dtype, requires_grad=True) for size in sizes]
    targets = torch.randint(0, sum(sizes), (positions,), generator=generator)
    return hidden, tables, targets


def whole(hidden: Tensor, tables: list[Tensor], targets: Tensor, reduction: str = "mean") -> Tensor:
    return functional.cross_entropy(hidden @ torch.cat(tables).T, targets, reduction=reduction)


@settings(max_examples=25, deadline=None)
@given(
    positions=st.integers(1, 12),
    sizes=st.lists(st.integers(1, 7), min_size=1, max_size=3),
    chunk_size=st.integers(1, 13),
    reduction=st.sampled_from(["mean", "sum"]),
    ignored=st.integers(0, 11),
    seed=st.integers(0, 1000),
)
def test_loss_and_gradients_are_those_of_whole_logits(positions, sizes, chunk_size, reduction, ignored, seed):
    hidden, tables, targets = problem(positions, sizes, seed=seed)
    targets[: min(ignored, positions - 1)] = -100
    ours = chunked_cross_entropy(hidden, tables, targets=targets, chunk_size=chunk_size, reduction=reduction)
    reference = whole(hidden, tables, targets, reduction)
    torch.testing.assert_close(ours, reference)
    for mine, theirs in zip(
        torch.autograd.grad(3 * ours, (hidden, *tables)),
        torch.autograd.grad(3 * reference, (hidden, *tables)),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs)


def test_gradients_pass_gradcheck():
    hidden, tables, targets = problem(4, [3, 2], width=2)
    targets[1] = -100
    assert torch.autograd.gradcheck(
        lambda h, a, b: chunked_cross_entropy(h, (a, b), targets=targets, chunk_size=3), (hidden, *tables)
    )


def test_a_retained_graph_gives_the_same_gradients_again():
    hidden, tables, targets = problem(6, [7])
    loss = chunked_cross_entropy(hidden, tables, targets=targets, chunk_size=4)
    first = torch.autograd.grad(2 * loss, tables[0], retain_graph=True)[0]
    torch.testing.assert_close(torch.autograd.grad(2 * loss, tables[0])[0], first)


def test_frozen_parts_get_no_gradient_and_change_no_other():
    hidden, (old, new), targets = problem(9, [4, 3])
    chunked_cross_entropy(hidden, (old.detach(), new), targets=targets, chunk_size=2).backward()
    expected = torch.autograd.grad(whole(hidden, [old, new], targets), new)[0]
    assert old.grad is None
    torch.testing.assert_close(new.grad, expected)


def test_no_position_that_counts_costs_nothing():
    hidden, tables, targets = problem(3, [4])
    loss = chunked_cross_entropy(hidden, tables, targets=torch.full_like(targets, -100))
    loss.backward()
    assert loss == 0 and hidden.grad is not None and not hidden.grad.any()


@pytest.mark.parametrize("autocast", [True, False])
def test_bfloat16_products_keep_float32_softmax_and_gradients(autocast: bool):
    hidden, tables, targets = problem(64, [40, 30], width=16, dtype=torch.float32)
    states = hidden if autocast else hidden.detach().bfloat16().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        loss = chunked_cross_entropy(states, tables, targets=targets, chunk_size=10)
    loss.backward()
    reference = whole(hidden, tables, targets)
    expected = torch.autograd.grad(reference, tables)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, reference, rtol=1e-2, atol=0)
    for table, gradient in zip(tables, expected, strict=True):
        assert table.grad is not None and table.grad.dtype == torch.float32
        assert (table.grad - gradient).norm() < 2e-2 * gradient.norm()


class LargestTensor(TorchDispatchMode):
    """Counts the elements of the largest tensor that any operation makes."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        tensors = [leaf for leaf in tree_flatten(out)[0] if isinstance(leaf, Tensor)]
        self.elements = max([self.elements, *(tensor.numel() for tensor in tensors)])
        return out


def test_logits_of_a_batch_never_exist_whole():
    positions, vocabulary = 512, 4096
    hidden, tables, targets = problem(positions, [vocabulary // 2] * 2, width=8, dtype=torch.float32)
    with LargestTensor() as chunked:
        chunked_cross_entropy(hidden, tables, targets=targets, chunk_size=16).backward()
    with LargestTensor() as plain:
        whole(hidden, tables, targets).backward()
    assert plain.elements == positions * vocabulary
    assert chunked.elements == 16 * vocabulary


def test_the_default_chunk_bounds_the_logits_of_a_long_vocabulary():
    from lep.training.loss import positions_at_once

    for device in ("cpu", "cuda"):
        assert positions_at_once(128_000, device) * 128_000 * 4 <= 2**28
