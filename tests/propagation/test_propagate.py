from functools import partial

import pytest
import torch
from pico_models import FAMILIES, identity_operator, pico_model, random_operator
from torch import Tensor
from torch.testing import assert_close

from lep.embeddings import Embeddings, embeddings_of, open_tables, set_embeddings_
from lep.propagation import propagate as propagate_lazily
from lep.propagation.conversion import conversion
from lep.propagation.delta import delta
from lep.propagation.overlap import overlap
from lep.propagation.swap import swap
from lep.shards import blocks, in_memory

RULES = [swap, delta, partial(overlap, ridge=1e-3), partial(conversion, ridge=1e-3)]


def propagate(*arguments, **options) -> tuple[Embeddings, dict]:
    result, diagnostics = propagate_lazily(*arguments, **options)
    return result.in_memory(), diagnostics


def tables(rows: int, *, seed: int, tied: bool = False, hidden: int = 8) -> Embeddings:
    generator = torch.Generator().manual_seed(seed)

    def draw() -> Tensor:
        return torch.randn(rows, hidden, generator=generator)

    return Embeddings(draw(), None if tied else draw())


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("tied", [True, False])
def test_input_and_output_go_through_the_rule_separately_and_once_when_tied(rule, tied):
    operator = random_operator(60, 40, shared=30)
    given = [tables(rows, seed=seed, tied=tied) for seed, rows in enumerate((60, 40, 40))]
    result, diagnostics = propagate(rule, *given, operator)
    assert_close(result.input, in_memory(rule(*(model.input for model in given), operator)[0]))
    assert set(diagnostics) == ({"input"} if tied else {"input", "output"})
    assert result.tied is tied
    if result.output is not None:
        assert_close(result.output, in_memory(rule(*(model.output for model in given), operator)[0]))


@pytest.mark.parametrize("rule", RULES)
def test_special_rows_are_the_instruct_models_bit_for_bit(rule):
    operator = random_operator(60, 40, shared=30, specials=4)
    given = [tables(rows, seed=seed).map(Tensor.bfloat16) for seed, rows in enumerate((60, 40, 42))]
    # The instruct model has two tokens more, at 40 and 41; the new vocabulary takes one as 60, and 2 is its 3.
    result, diagnostics = propagate(rule, *given, operator, kept_rows=[(60, 41), (2, 3)])
    assert result.input.shape == (61, 8) and result.input.dtype is torch.bfloat16
    for table, instruct in ((result.input, given[2].input), (result.output, given[2].output)):
        assert torch.equal(table[[0, 1, 2, 3, 60]], instruct[[0, 1, 3, 3, 41]])
    assert diagnostics["input"]["kept_rows"] == 5


def test_instruct_equal_to_base_gives_the_adapted_tables_under_every_rule():
    operator = random_operator(60, 40, shared=30)
    adapted, base = tables(60, seed=0), tables(40, seed=1)
    for rule in RULES:
        result, diagnostics = propagate(rule, adapted, base, base, operator)
        assert_close(result.input, adapted.input)
        assert_close(result.output, adapted.output)
        assert diagnostics["output"]["relative_drift"] == 0


@pytest.mark.parametrize("rule", RULES)
def test_tables_on_disk_give_what_tables_in_memory_give(tmp_path, rule):
    """Bit for bit, in any blocks: reading row by row is no other arithmetic."""
    operator = random_operator(60, 40, shared=30, specials=4)
    given = [tables(rows, seed=seed).map(Tensor.bfloat16) for seed, rows in enumerate((60, 40, 42))]
    for number, model in enumerate(given):
        model.save(tmp_path / f"{number}.safetensors")
    stored = [open_tables(tmp_path / f"{number}.safetensors") for number in range(3)]
    expected, facts = propagate(rule, *given, operator, kept_rows=[(63, 41)])
    found, same = propagate_lazily(rule, *stored, operator, kept_rows=[(63, 41)])
    assert same == facts
    assert found.output is not None and expected.output is not None
    for ours, theirs in ((found.input, expected.input), (found.output, expected.output)):
        assert torch.equal(in_memory(ours), theirs)
        assert_close(torch.cat(list(blocks(ours, rows=7))), theirs, rtol=2**-7, atol=0)


def test_results_are_rounded_once():
    """Bfloat16 in and out: within half a unit in the last place, which two roundings would exceed."""
    operator = random_operator(600, 400, shared=100)
    given = [tables(rows, seed=seed, tied=True).map(Tensor.bfloat16) for seed, rows in enumerate((600, 400, 400))]
    dense = torch.from_numpy(operator.weights.toarray()).double()
    adapted, base, instruct = (model.input.double() for model in given)
    exact = adapted + dense @ (instruct - base)
    result, _ = propagate(delta, *given, operator)
    units = 2.0 ** (exact.abs().log2().floor() - 7)  # bfloat16 has 8 significant bits
    assert ((result.input - exact).abs() <= 0.5001 * units).all()


def test_drift_is_the_relative_change_of_trained_rows():
    base = tables(40, seed=1, tied=True)
    instruct = Embeddings(base.input * 1.25)
    base.input[7] = 0
    _, diagnostics = propagate(swap, base, base, instruct, identity_operator(40))
    assert diagnostics["input"]["relative_drift"] == pytest.approx(0.25)
    assert diagnostics["input"]["untrained_rows"] == 1


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tied", [True, False])
def test_nothing_adapted_gives_the_instruct_model_in_every_family(family, tied):
    """base : adapted = instruct : result, with an adapted model that is the base: its logits come out."""
    base, instruct = (pico_model(family, tied=tied, seed=seed) for seed in (0, 1))
    ids = torch.arange(60)[None]
    expected = instruct(input_ids=ids).logits
    before = embeddings_of(base)
    result, _ = propagate(delta, before, before, embeddings_of(instruct), identity_operator(60, specials=3))
    set_embeddings_(instruct, result)
    assert_close(instruct(input_ids=ids).logits, expected)


@pytest.mark.parametrize(
    ("given", "kept", "message"),
    [
        ((tables(60, seed=0, tied=True), tables(40, seed=1), tables(40, seed=2)), [], r"only \['adapted'\] have tied"),
        ((tables(60, seed=0), tables(40, seed=1), tables(40, seed=2, hidden=4)), [], "hidden sizes differ"),
        ((tables(59, seed=0), tables(40, seed=1), tables(40, seed=2)), [], "adapted tables have 59 rows"),
        ((tables(60, seed=0), tables(40, seed=1), tables(39, seed=2)), [], "instruct tables have 39 rows"),
        ((tables(60, seed=0), tables(40, seed=1), tables(40, seed=2)), [(60, 40)], "outside the instruct"),
    ],
)
def test_what_does_not_fit_is_refused_before_any_work(given, kept, message):
    with pytest.raises(ValueError, match=message):
        propagate(swap, *given, random_operator(60, 40), kept_rows=kept)
