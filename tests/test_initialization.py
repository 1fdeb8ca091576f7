import pytest
import torch
from pico_models import identity_operator, random_operator
from torch.testing import assert_close

from lep.initialization import mean as mean_rule
from lep.initialization import random as random_rule
from lep.shards import in_memory


def mean(*arguments, **options) -> torch.Tensor:
    return in_memory(mean_rule.mean(*arguments, **options))


def random(*arguments, **options) -> torch.Tensor:
    return in_memory(random_rule.random(*arguments, **options))


RULES = [mean, random]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("rule", RULES)
def test_the_same_vocabulary_keeps_its_table(rule):
    table = torch.randn(30, 8)
    assert_close(rule(table, identity_operator(30, specials=3), generator=seeded()), table, rtol=0, atol=0)


@pytest.mark.parametrize("rule", RULES)
def test_shared_and_special_rows_are_kept_and_padding_is_not_read(rule):
    operator = random_operator(50, 30, shared=20, specials=3)
    table = torch.randn(30, 8)
    padded = torch.cat([table, torch.full((6, 8), 1e6)])
    begun = rule(padded, operator, generator=seeded())
    assert begun.shape == (50, 8) and begun.dtype is torch.float32
    assert_close(begun[:20], table[:20])
    assert_close(begun, rule(table, operator, generator=seeded()))


def test_mean_rows_average_the_subtoken_rows():
    operator, table = random_operator(50, 30, shared=20), torch.randn(30, 8, dtype=torch.float64)
    dense = torch.from_numpy(operator.weights.toarray()).double()
    assert_close(mean(table, operator, generator=seeded()).double(), dense @ table, rtol=1e-5, atol=1e-6)


def test_random_rows_have_the_spread_of_the_table_and_follow_the_generator():
    operator, table = random_operator(2000, 100, shared=10), 0.03 * torch.randn(100, 32, generator=seeded())
    begun = random(table, operator, generator=seeded(1))
    assert abs(begun[10:].std() / table.std() - 1) < 0.02 and abs(begun[10:].mean()) < 1e-3
    assert torch.equal(begun, random(table, operator, generator=seeded(1)))
    assert not torch.equal(begun, random(table, operator, generator=seeded(2)))


@pytest.mark.parametrize("rule", RULES)
def test_bfloat16_tables_give_float32_rows(rule):
    table = torch.randn(30, 8).bfloat16()
    begun = rule(table, random_operator(50, 30, shared=20), generator=seeded())
    assert begun.dtype is torch.float32
