from itertools import islice

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pico_models import FAMILIES, pico_model
from transformers import PretrainedConfig

from lep.calibration import InstructionBatches, Rendered, attention_masks, pack
from lep.calibration.packing import ROWS, block_mask

LENGTHS = (30, 20, 1, 7, 40, 12)
WINDOWS = {
    "llama": {},
    "mistral": {"sliding_window": 8},
    "qwen2": {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1},
    "qwen3": {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1},
    "gemma3_text": {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]},
}


def conversations(lengths: tuple[int, ...] | list[int], seed: int = 0) -> list[Rendered]:
    rng = np.random.default_rng(seed)
    return [Rendered(rng.integers(3, 60, n).astype(np.int32), rng.random(n) < 0.5) for n in lengths]


def batch_of(blocks) -> dict[str, torch.Tensor]:
    whole = InstructionBatches(blocks, batch_size=len(blocks), seed=0)
    return whole.batch(np.arange(len(blocks)))


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("windowed", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_packed_conversation_has_the_logits_it_has_alone(family: str, windowed: bool, attention: str):
    model = pico_model(family, tied=False, **(WINDOWS[family] if windowed else {}))
    model.set_attn_implementation(attention)
    rendered = conversations(LENGTHS)
    blocks = pack(rendered, 64, pad_id=0)
    assert len(blocks) == 2 and 0.8 < blocks.filled < 0.9  # several in a block, and padding
    batch = batch_of(blocks)
    masks = attention_masks(model.config, batch["documents"], model.dtype)
    with torch.no_grad():
        together = model(batch["input_ids"], position_ids=batch["position_ids"], attention_mask=masks).logits
        for row, numbers in enumerate(blocks.layout):
            for document, number in enumerate(numbers):
                alone = model(torch.from_numpy(rendered[number].ids)[None].long()).logits[0]
                packed = together[row][batch["documents"][row] == document]
                torch.testing.assert_close(packed, alone, atol=1e-5, rtol=0)
    assert not together.isnan().any()


def test_without_the_masks_conversations_see_each_other():
    """The law above can fail: with causal attention alone a neighbour changes the logits."""
    model = pico_model("llama", tied=False)
    batch = batch_of(pack(conversations(LENGTHS), 64, pad_id=0))
    with torch.no_grad():
        masks = attention_masks(model.config, batch["documents"], model.dtype)
        reset = model(batch["input_ids"], position_ids=batch["position_ids"], attention_mask=masks).logits
        causal = block_mask(torch.zeros_like(batch["documents"]))
        mixed = model(batch["input_ids"], position_ids=batch["position_ids"], attention_mask=causal).logits
    assert (reset - mixed).abs().max() > 0.1


def test_the_mask_agrees_with_its_definition():
    documents = torch.tensor([[0, 0, 0, 1, 1, -1, -1], [0, 1, 2, 2, 2, 2, -1]])
    for window in (None, 1, 2, 3):
        mask = block_mask(documents, sliding_window=window)
        assert mask.shape == (2, 1, 7, 7)
        for b in range(2):
            for i in range(7):
                for j in range(7):
                    near = window is None or i - j < window
                    assert mask[b, 0, i, j] == (j <= i and near and documents[b, i] == documents[b, j])


@given(st.lists(st.integers(1, 32), max_size=40))
def test_every_conversation_is_in_one_block_whole_and_in_order(lengths: list[int]):
    rendered = conversations(lengths)
    blocks = pack(rendered, 32, pad_id=7)
    seen = []
    for i in range(len(blocks)):
        inputs, labels, positions, documents = blocks[i]
        assert blocks[i].shape == (len(ROWS), 32) and blocks[i].dtype == np.int64
        for document, number in enumerate(blocks.layout[i]):
            one, (place,) = rendered[number], np.nonzero(documents == document)
            assert inputs[place].tolist() == one.ids.tolist() and positions[place].tolist() == list(range(len(one)))
            expected = [int(t) if a and k else -100 for k, (t, a) in enumerate(zip(one.ids, one.answered, strict=True))]
            assert labels[place].tolist() == expected
            assert np.array_equal(place, np.arange(place[0], place[0] + len(one)))
            seen.append(number)
        filler = documents == -1
        assert (inputs[filler] == 7).all() and (labels[filler] == -100).all()
        assert (~filler).sum() == sum(len(rendered[number]) for number in blocks.layout[i])
    assert sorted(seen) == list(range(len(lengths)))
    # Two blocks at most half full would have been one: fewer than twice what is needed, and one more.
    assert len(blocks) <= 2 * -(-sum(lengths) // 32) + 1
    assert [list(b) for b in pack(rendered, 32, 7).layout] == [list(b) for b in blocks.layout]


def test_best_fit_takes_the_fullest_block_with_room():
    assert pack(conversations([10, 6, 7, 3, 4]), 10, 0).layout == [[0], [2, 3], [1, 4]]


def test_batches_are_shared_shuffled_and_resumed():
    blocks = pack(conversations([20, 18, 17, 25, 30, 31, 29, 22]), 32, pad_id=0)

    def loader(**ranks: int) -> InstructionBatches:
        return InstructionBatches(blocks, batch_size=2, seed=3, **ranks)

    whole = [batch["input_ids"].tolist() for batch in loader()]
    assert sorted(sum(whole, [])) == sorted(blocks[i][0].tolist() for i in range(len(blocks)))
    shares = [[batch["input_ids"].tolist() for batch in loader(rank=rank, world_size=2)] for rank in (0, 1)]
    assert [part for pair in zip(*shares, strict=True) for part in pair] == whole
    begun, again = loader(), loader()
    list(islice(begun, 1))
    again.load_state_dict(begun.state_dict())
    assert [batch["input_ids"].tolist() for batch in again] == whole[1:]
    assert [batch["input_ids"].tolist() for batch in again] != whole  # the next epoch
    with pytest.raises(ValueError, match="instruction data packs into 8 blocks.*calibration.batch_size=9"):
        InstructionBatches(blocks, batch_size=9, seed=0)


def test_what_cannot_be_packed_is_refused():
    with pytest.raises(ValueError, match="33 tokens is longer than a block of 32"):
        pack(conversations([33]), 32, 0)
    documents = torch.zeros(1, 4, dtype=torch.int64)
    config = PretrainedConfig(attn_implementation="flash_attention_2")
    with pytest.raises(ValueError, match="attn_implementation=flash_attention_2"):
        attention_masks(config, documents, torch.float32)
    config = PretrainedConfig(attn_implementation="sdpa")
    config.layer_types = ["full_attention", "linear_attention"]
    with pytest.raises(ValueError, match="linear_attention"):
        attention_masks(config, documents, torch.float32)
