import pytest
import torch

from lep.propagation.audit import extreme_rows


def rows(count: int = 60) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.randn(count, 16, generator=torch.Generator().manual_seed(0)), dim=1)


def test_tables_that_moved_alike_have_no_extreme_rows():
    table = rows()
    turn = torch.linalg.qr(torch.randn(16, 16, generator=torch.Generator().manual_seed(1))).Q
    found = extreme_rows(1.3 * table @ turn, table)
    assert found["long_rows"] == found["rescaled_rows"] == 0
    assert found["longest_over_median"] == pytest.approx(1)


def test_rows_that_grew_or_shrank_alone_are_counted():
    table, result = rows(), rows()
    result[3] *= 6  # long, and rescaled
    result[4] *= 3  # rescaled
    result[5] *= 0.4  # rescaled
    found = extreme_rows(result, table)
    assert (found["long_rows"], found["rescaled_rows"], found["longest_row"]) == (1, 3, 3)
    assert found["longest_over_median"] == pytest.approx(6, rel=1e-3)


def test_rows_that_were_long_before_or_stand_for_nothing_are_no_news():
    table, result = rows(), rows()
    table[3] *= 9
    result[3] *= 9
    table[7], result[8] = 0, 0
    found = extreme_rows(torch.cat([result, 99 * rows(2)]), table)  # two ids that only the instruct model has
    assert found["long_rows"] == found["rescaled_rows"] == 0
