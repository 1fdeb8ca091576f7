from itertools import islice

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from lep.training.data import BlockBatches, held_out_batches, held_out_windows


@pytest.fixture(scope="module")
def bytes_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE with the bytes and a few merges, so that tokens end inside and after characters."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("Ð", "¿"), ("Ð", "°"), ("Ð¿", "Ð°")]
    vocab = {token: i for i, token in enumerate([*alphabet, *(a + b for a, b in merges)])}
    tokenizer = Tokenizer(models.BPE(vocab, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def blocks_of(count: int) -> np.ndarray:
    return np.arange(count)[:, None].repeat(3, axis=1)


def first_ids(batches, count: int) -> list[list[int]]:
    return [batch[:, 0].tolist() for batch in islice(batches, count)]


def epochs_of(batches: BlockBatches, count: int) -> list[list[int]]:
    return [ids for _ in range(count) for ids in first_ids(iter(batches), len(batches))]


def test_an_epoch_gives_every_block_at_most_once_and_epochs_differ():
    batches = BlockBatches(blocks_of(23), batch_size=4, seed=1)
    first, second = (sum(first_ids(iter(batches), len(batches)), []) for _ in range(2))
    assert len(set(first)) == len(first) == 20
    assert first != second


def test_order_is_a_pure_function_of_seed_and_epoch():
    orders = [epochs_of(BlockBatches(blocks_of(40), batch_size=4, seed=seed), 2) for seed in (3, 3, 4)]
    assert orders[0] == orders[1] != orders[2]


@pytest.mark.parametrize("stop", [0, 3, 9, 10, 11, 17])
def test_position_goes_on_where_it_stood(stop: int):
    def given_out(batches: BlockBatches, count: int) -> list[list[int]]:
        out: list[list[int]] = []
        while len(out) < count:
            out += first_ids(iter(batches), count - len(out))
        return out

    whole = given_out(BlockBatches(blocks_of(40), batch_size=4, seed=5), 24)
    stopped = BlockBatches(blocks_of(40), batch_size=4, seed=5)
    given_out(stopped, stop)
    resumed = BlockBatches(blocks_of(40), batch_size=4, seed=5)
    started = iter(resumed)  # begun before the position is known, as Lightning does
    resumed.load_state_dict(stopped.state_dict())
    rest = first_ids(started, 24 - stop)
    assert rest + given_out(resumed, 24 - stop - len(rest)) == whole[stop:]


def test_ranks_share_each_step_of_the_same_order():
    single = BlockBatches(blocks_of(50), batch_size=8, seed=2)
    ranks = [BlockBatches(blocks_of(50), batch_size=4, seed=2, rank=rank, world_size=2) for rank in range(2)]
    shares = [first_ids(iter(rank), len(rank)) for rank in ranks]
    assert [a + b for a, b in zip(*shares, strict=True)] == first_ids(iter(single), len(single))


def test_an_epoch_is_a_whole_number_of_steps():
    assert len(BlockBatches(blocks_of(50), batch_size=4, seed=0, accumulate=5)) == 10


def test_too_little_text_is_refused():
    with pytest.raises(ValueError, match="7 blocks, fewer than the 8"):
        BlockBatches(blocks_of(7), batch_size=4, seed=0, accumulate=2)


def test_a_position_in_other_data_is_refused():
    state = BlockBatches(blocks_of(40), batch_size=4, seed=5).state_dict()
    with pytest.raises(ValueError, match="seed=5, this run has seed=6"):
        BlockBatches(blocks_of(40), batch_size=4, seed=6).load_state_dict(state)


@settings(max_examples=40, deadline=None)
@given(
    texts=st.lists(st.text(alphabet="па xe€😀", max_size=20), max_size=4),
    length=st.integers(1, 9),
    overlap=st.integers(0, 8),
    start_id=st.sampled_from([None, 0]),
)
def test_each_held_out_token_is_scored_once_after_its_true_context(texts, length, overlap, start_id, bytes_tokenizer):
    overlap = min(overlap, length - 1)
    windows = held_out_windows(texts, bytes_tokenizer, length=length, overlap=overlap, start_id=start_id)
    scored = [int(t) for window in windows for t in window.targets if t != -100]
    expected = [
        id for text in texts for id in bytes_tokenizer(text, add_special_tokens=False)["input_ids"][start_id is None :]
    ]
    assert scored == expected
    assert all(len(window.inputs) <= length for window in windows)
    for window in windows:  # a target follows its own input
        assert (window.inputs[1:] == window.targets[:-1])[window.targets[:-1] != -100].all()
    if start_id is not None:
        assert sum(window.num_bytes for window in windows) == sum(len(text.encode()) for text in texts)


def test_later_windows_see_the_overlap(bytes_tokenizer):
    windows = held_out_windows(["x" * 10], bytes_tokenizer, length=4, overlap=2, start_id=None)
    assert [(window.targets != -100).sum() for window in windows] == [4, 2, 2, 1]
    assert [len(window.inputs) for window in windows] == [4, 4, 4, 3]


def test_overlap_as_long_as_the_window_is_refused(bytes_tokenizer):
    with pytest.raises(ValueError, match="overlap=4"):
        held_out_windows(["x"], bytes_tokenizer, length=4, overlap=4, start_id=None)


def test_ranks_share_held_out_windows_in_as_many_batches(bytes_tokenizer):
    windows = held_out_windows(["па" * n for n in range(1, 8)], bytes_tokenizer, length=4, overlap=1, start_id=0)
    batches = held_out_batches("ru", windows, batch_size=3)
    for world_size in (1, 2, 5):
        shares = [[batch.share(rank, world_size) for batch in batches] for rank in range(world_size)]
        assert all(len(share) == len(batches) for share in shares)
        flat = [batch for share in shares for batch in share]
        assert sum(int(batch.num_bytes.sum()) for batch in flat) == sum(window.num_bytes for window in windows)
        assert sum(int((batch.targets != -100).sum()) for batch in flat) == sum(
            int((window.targets != -100).sum()) for window in windows
        )


def test_batches_of_blocks_are_integers_whatever_the_blocks_are():
    for blocks in (np.ones((4, 3), np.uint16), [torch.ones(3, dtype=torch.int64)] * 4):
        batch = next(iter(BlockBatches(blocks, batch_size=2, seed=0)))
        assert batch.dtype == torch.int64 and batch.shape == (2, 3)
