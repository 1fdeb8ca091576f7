"""Laws of the corpus: nothing lost unseen, nothing held out trained on, every token in a block."""

import gzip
import itertools
import json
import os
import pickle
import random
import unicodedata
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from lep.corpus import (
    CorpusFilters,
    Document,
    HeldOut,
    Hub,
    HubDataset,
    PackedBlocks,
    PreparedCorpus,
    TextFiles,
    pack,
    parallel,
    prepare,
)
from lep.corpus.duplicates import Duplicates, num_bands, signature
from lep.corpus.filters import DROPPED, clean, document_language
from lep.corpus.packing import block_starts
from lep.corpus.paragraphs import admissible_starts, paragraph_levels, split_long_text
from lep.corpus.preparing import openings

RUSSIAN = (
    "ночь улица фонарь аптека бессмысленный и тусклый свет живи ещё хоть четверть века всё будет так исхода нет".split()
)
ENGLISH = (
    "the night the street the lamp the chemist a meaningless and dusky light live on for twenty years or more".split()
)
BOTH = CorpusFilters()
KEEP_ALL = CorpusFilters(max_dropped_share=1.0, near_duplicates=None)


@dataclass(frozen=True)
class Listed:
    """Documents from memory."""

    items: tuple[Document, ...]

    def documents(self):
        return iter(self.items)

    def fingerprint(self) -> dict:
        return {"items": len(self.items)}


def sentences(rng: random.Random, words: list[str], number: int, paragraphs: int = 3) -> str:
    lines = [" ".join(rng.choices(words, k=number)).capitalize() + "." for _ in range(paragraphs)]
    return "\n\n".join(lines)


def bilingual(number: int, *, seed: int = 0) -> Listed:
    """`number` documents of each language, no two alike."""
    rng = random.Random(seed)
    pairs = [(sentences(rng, RUSSIAN, 12), sentences(rng, ENGLISH, 12)) for _ in range(number)]
    return Listed(tuple(Document(text, "") for pair in pairs for text in pair))


def byte_level_tokenizer(*, bos: bool = True) -> PreTrainedTokenizerFast:
    """Byte-level BPE with specials, trained on the words of this file."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    specials = ["<s>", "</s>"] if bos else ["</s>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=specials, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([" ".join(RUSSIAN + ENGLISH)] * 3, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="</s>", **({"bos_token": "<s>"} if bos else {})
    )


def metaspace_tokenizer() -> PreTrainedTokenizerFast:
    """Unigram in the manner of SentencePiece, whose pieces may reach across line ends."""
    characters = sorted(set(" ".join(RUSSIAN + ENGLISH).upper() + " ".join(RUSSIAN + ENGLISH) + ".\n")) + ["▁"]
    pieces = [("<unk>", 0.0), ("</s>", 0.0), (".\n\n", -2.0), *((c, -5.0) for c in characters)]
    pieces += [("▁" + word, -3.0) for word in sorted(set(RUSSIAN + ENGLISH))]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=0))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="first")
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", unk_token="<unk>")


# Sources


def test_every_format_gives_the_same_documents(tmp_path: Path) -> None:
    texts = ["Первый\nабзац.", "Second \U0001f600\u2028one."]
    lines = "".join(json.dumps({"text": text, "lang": "xx"}) + "\n" for text in texts)
    (tmp_path / "a.jsonl").write_text(lines)
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    (tmp_path / "c.jsonl.zst").write_bytes(zstandard.compress(lines.encode()))
    pyarrow.parquet.write_table(
        pyarrow.table({"id": [1, 2], "text": texts, "lang": ["xx", "xx"]}), tmp_path / "d.parquet"
    )
    for name in ("a.jsonl", "b.jsonl.gz", "c.jsonl.zst", "d.parquet"):
        source = TextFiles((str(tmp_path / name),), language_field="lang")
        assert list(source.documents()) == [Document(text, "xx", str(tmp_path / name)) for text in texts]
    plain = tmp_path / "deep" / "plain.txt"
    plain.parent.mkdir()
    plain.write_text(texts[0])
    (tmp_path / "deep" / "packed.txt.gz").write_bytes(gzip.compress(texts[1].encode()))
    found = TextFiles([str(tmp_path / "**" / "*.txt*")], language="ru").documents()  # type: ignore[arg-type]
    assert [(d.text, d.language) for d in found] == [(texts[1], "ru"), (texts[0], "ru")]


def test_home_is_expanded_and_a_file_matched_twice_is_read_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a[1].txt").write_text("text")
    assert len(list(TextFiles(("~/*.txt", "~/a[1].txt")).documents())) == 1


def test_a_plain_file_too_long_to_hold_comes_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lep.corpus.text_files.LONGEST_DOCUMENT", 100)
    text = "".join(f"line {number}\n" for number in range(100))
    (tmp_path / "long.txt").write_text(text)
    parts = [document.text for document in TextFiles((str(tmp_path / "long.txt"),)).documents()]
    assert "".join(parts) == text and len(parts) > 5 and all(part.endswith("\n") for part in parts)


@pytest.mark.parametrize(
    ("name", "content", "options", "message"),
    [
        (
            "a.jsonl",
            b'{"content": "x"}\n',
            {},
            r"a.jsonl, record 1: the field 'text' is missing.*\['content'\].*text_field",
        ),
        ("a.jsonl", b'{"text": 3}\n', {}, "is a int, not text"),
        ("a.jsonl", b'{"text": "x"}\n', {"language_field": "lang"}, "field 'lang' is missing"),
        ("a.jsonl", b'{"text": "x"}\n\n{"te\n', {}, "a.jsonl, line 3 is not JSON"),
        ("a.jsonl", b'["x"]\n', {}, "record 1: the field 'text' is missing; the record has list"),
        ("a.txt", "Ночь".encode("cp1251"), {}, "a.txt cannot be read as UTF-8"),
        ("a.jsonl.gz", b"no gzip", {}, "cannot be read"),
        ("a.docx", b"", {}, "no known ending; known are .jsonl"),
        ("a.parquet.gz", b"", {}, "no known ending"),
        ("a.parquet", b"PAR1 no parquet PAR1", {}, "a.parquet cannot be read as Parquet"),
    ],
)
def test_unusable_file_is_named(tmp_path: Path, name: str, content: bytes, options: dict, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        list(TextFiles((str(tmp_path / name),), **options).documents())


def test_a_parquet_file_damaged_inside_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"text": [f"text {i}" for i in range(1000)]}), path)
    content = bytearray(path.read_bytes())
    content[4:200] = bytes(196)
    path.write_bytes(content)
    with pytest.raises(ValueError, match="a.parquet cannot be read as Parquet"):
        list(TextFiles((str(path),)).documents())


def test_pattern_without_a_file_is_named(tmp_path: Path) -> None:
    for pattern, message in ((f"{tmp_path}/*.txt", "no file matches"), (str(tmp_path), "it is a directory, say")):
        with pytest.raises(ValueError, match=message):
            TextFiles((pattern,)).fingerprint()
    with pytest.raises(ValueError, match="contradict"):
        TextFiles(("a.txt",), language="ru", language_field="lang")


def test_fingerprint_is_plain_and_follows_the_files(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("one")
    before = TextFiles((str(path),)).fingerprint()
    assert json.loads(json.dumps(before)) == json.loads(json.dumps(TextFiles((str(path),)).fingerprint()))
    os.utime(path, ns=(1, 1))
    assert TextFiles((str(path),)).fingerprint() != before


def local_dataset(folder: Path, texts: list[str]) -> HubDataset:
    folder.mkdir()
    (folder / "train.jsonl").write_text("".join(json.dumps({"body": text}) + "\n" for text in texts))
    return HubDataset(str(folder), text_field="body", language="ru")


def test_hub_mixes_named_data_sets_by_weight(tmp_path: Path) -> None:
    many = local_dataset(tmp_path / "many", [f"много {i}" for i in range(400)])
    few = HubDataset(**{**local_dataset(tmp_path / "few", [f"мало {i}" for i in range(400)]).__dict__, "weight": 3.0})
    hub = Hub({"many": many, "few": few}, max_documents=200, seed=1)
    found = list(hub.documents())
    counts = Counter(document.source for document in found)
    assert counts.total() == 200 and 0.65 < counts["few"] / 200 < 0.85
    assert found == list(hub.documents()) and found != list(Hub(hub.mixture, 200, seed=2).documents())
    assert [d.text for d in found if d.source == "few"][:2] == ["мало 0", "мало 1"]
    assert json.dumps(hub.fingerprint())
    assert 400 < len(list(Hub(hub.mixture).documents())) < 600  # until `few` runs out
    with pytest.raises(ValueError, match=r"mixture.many \(.*record 1: the field 'text' is missing"):
        list(Hub({"many": HubDataset(many.path)}).documents())


# Filters

KEPT = "аЯё\u0301и\u0306 Zze\n\t.,—№€©→5½«"
GONE = "\u00ad\u200d中あ한。αשع😀👍🏽🇷❤\ufe0f\ufffd\ue000\x00\ud800\ufeff"
MIXED = st.text(st.sampled_from(KEPT + GONE), max_size=40)


@given(MIXED)
@settings(max_examples=100, deadline=None)
def test_cleaning_agrees_with_a_slow_filter(text: str) -> None:
    normal = unicodedata.normalize("NFC", text)
    # A Greek letter may have composed with its accent into one that GONE does not list.
    slow = "".join(c for c in normal if c not in GONE and unicodedata.normalize("NFD", c)[0] not in GONE)
    cleaned = clean(text, BOTH)
    assert cleaned.text == unicodedata.normalize("NFC", slow).strip("\n")
    assert sum(cleaned.dropped.values()) == len(normal) - len(slow) and cleaned.num_characters == len(normal)


@given(st.text(st.characters(), max_size=60) | MIXED, st.sampled_from(["NFC", "NFKC"]), st.booleans())
@settings(max_examples=100, deadline=None)
def test_cleaning_twice_is_cleaning_once(text: str, form: str, tidy: bool) -> None:
    filters = CorpusFilters(normalization=form, tidy_whitespace=tidy)  # type: ignore[arg-type]
    cleaned = clean(text, filters)
    again = clean(cleaned.text, filters)
    assert again.text == cleaned.text and not any(again.dropped.values())
    assert unicodedata.is_normalized(form, cleaned.text)
    cleaned.text.encode()  # no half of a surrogate pair is left
    assert not tidy or not any(wide in cleaned.text for wide in ("  ", "\n\n\n", " \n", "\n "))


def test_cleaning_keeps_two_scripts_and_counts_the_rest() -> None:
    cleaned = clean("Caf\u0065\u0301 №5: мёд — 20 °C, ½ €; αβ 中文。 😀👨\u200d👩 ok\u00ad\r\nда", BOTH)
    assert cleaned.text == "Caf\u0065\u0301 №5: мёд — 20 °C, ½ €;    ok\nда".replace("e\u0301", "é")
    assert cleaned.dropped == {"other scripts": 2, "logograms": 3, "emoji": 3, "control": 2}
    assert cleaned.letters == {"Cyrillic": 5, "Latin": 7}


def test_plain_text_passes_unchanged() -> None:
    for text in ("Съешь же ещё этих мягких французских булок — да выпей чаю!", "def f(x):\n\treturn [x] * 2  # ±1"):
        assert clean(text, BOTH).text == text and not any(clean(text, BOTH).dropped.values())


def test_language_is_named_or_that_of_most_letters() -> None:
    russian, english = clean("Это русский текст with Latin", BOTH), clean("This is text со словом", BOTH)
    assert document_language(russian, "", BOTH) == "ru" and document_language(english, "", BOTH) == "en"
    assert document_language(russian, "en", BOTH) == "en" and document_language(russian, "de", BOTH) is None
    assert document_language(clean("12345", BOTH), "", BOTH) is None
    greek = CorpusFilters(languages={"el": "Greek"}, scripts=("Greek", "Latin"))
    assert document_language(clean("αβγ", greek), "", greek) == "el"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scripts": ("Cyrilic",)}, "scripts=Cyrilic"),
        ({"languages": {"ru": "Greek"}}, "languages.ru=Greek"),
        ({"languages": {}}, "at least one"),
        ({"languages": {"../ru": "Cyrillic"}}, "names files"),
        ({"normalization": "nfc"}, "normalization=nfc"),
        ({"max_dropped_share": 1.5}, "max_dropped_share=1.5"),
        ({"near_duplicates": 0.0}, "near_duplicates=0.0"),
        ({"split_long_documents": 5}, "split_long_documents=5"),
    ],
)
def test_impossible_filter_is_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=f"corpus.filters.*{message}"):
        CorpusFilters(**options)


# Duplicates


def jaccard(first: str, second: str) -> float:
    a, b = ({tuple(w[i : i + 5]) for i in range(len(w) - 4)} for w in (first.split(), second.split()))
    return len(a & b) / len(a | b)


def test_near_duplicates_are_found_from_the_threshold_on() -> None:
    rng = random.Random(0)
    vocabulary = ["".join(rng.choices("абвгдежзик", k=6)) for _ in range(2000)]
    found: dict[bool, list[bool]] = {True: [], False: []}
    for changes in (1, 2, 10, 20, 40) * 20:
        words = rng.choices(vocabulary, k=200)
        other = list(words)
        for place in rng.sample(range(200), changes):
            other[place] = rng.choice(vocabulary)
        similarity = jaccard(" ".join(words), " ".join(other))
        seen = Duplicates(0.8)
        assert seen.reason(1, signature(" ".join(words))) is None
        found[similarity >= 0.8].append(seen.reason(2, signature(" ".join(other))) == "near duplicate")
        assert seen.reason(1, signature(" ".join(words))) == "exact duplicate"
    assert np.mean(found[True]) > 0.95 and np.mean(found[False]) < 0.05 and all(map(len, found.values()))


def test_bands_find_pairs_at_the_threshold() -> None:
    for threshold in (0.5, 0.7, 0.8, 0.9):
        bands = num_bands(threshold)
        assert 128 % bands == 0 and 1 - (1 - threshold ** (128 // bands)) ** bands >= 0.9


def test_short_texts_are_compared_by_all_their_words() -> None:
    seen = Duplicates(0.8)
    assert [seen.reason(n, signature(t)) for n, t in enumerate(("Да", "Нет", "ДА"))] == [None, None, "near duplicate"]


# Preparing


def prepared(source: Listed, folder: Path, **options) -> PreparedCorpus:
    prepare(source, folder, **{"filters": KEEP_ALL, "processes": 1, **options})
    return PreparedCorpus(folder)


def test_every_document_is_accounted_for(tmp_path: Path) -> None:
    source = bilingual(40)
    extra = (
        source.items[0],
        Document("中文中文中文 слово", ""),
        Document("\u00ad", ""),
        Document("Was ist das?", "de"),
    )
    near = Document(source.items[2].text + " ещё", "")
    source = Listed((*source.items, *extra, near, Document("123 456", "")))
    corpus = prepared(source, tmp_path, filters=BOTH, held_out=HeldOut(documents=5, share=0.2))
    counts = corpus.counts
    dropped = {"exact duplicate": 1, "script": 2, "language": 2, "near duplicate": 1}
    assert counts["documents_dropped"] == dropped and counts["documents_read"] == len(source.items)
    for language in ("ru", "en"):
        train, held_out = list(corpus.train_texts(language)), corpus.held_out(language)
        assert len(held_out) == 5 and len(train) == 35
        told = counts["languages"][language]
        assert told["train"]["documents"] == 35 and told["train"]["bytes"] == sum(len(t.encode()) for t in train)
        assert told["held_out"]["characters"] == sum(map(len, held_out))
    kept = [*corpus.train_texts(), *corpus.held_out("ru"), *corpus.held_out("en")]
    assert Counter(kept) == Counter(document.text for document in source.items[:80])
    assert set(counts["characters_dropped"]) == set(DROPPED) and counts["characters_dropped"]["logograms"] == 6
    assert list(corpus.train_texts()) == list(corpus.train_texts()) == list(iter(corpus.train_texts()))


def test_held_out_choice_hangs_on_the_seed_and_not_on_the_order(tmp_path: Path) -> None:
    source = bilingual(60)
    shuffled = Listed(tuple(random.Random(1).sample(source.items, len(source.items))))
    chosen = [
        set(prepared(items, tmp_path / str(number), seed=seed).held_out("ru"))
        for number, (items, seed) in enumerate([(source, 0), (shuffled, 0), (source, 1)])
    ]
    assert chosen[0] == chosen[1] != chosen[2] and len(chosen[0]) == 3


@pytest.mark.parametrize("reverse", [False, True])
def test_no_near_duplicate_of_a_held_out_document_is_trained_on(tmp_path: Path, reverse: bool) -> None:
    rng = random.Random(0)
    vocabulary = ["".join(rng.choices("абвгдежзик", k=6)) for _ in range(500)]
    texts = [sentences(rng, vocabulary, 50) for _ in range(40)]
    twins = [text.replace(text.split()[70], "иначе", 1) for text in texts]
    both = [*texts, *twins][:: -1 if reverse else 1]
    filters = CorpusFilters(languages={"ru": "Cyrillic"})
    source = Listed(tuple(Document(text, "") for text in both))
    corpus = prepared(source, tmp_path, filters=filters, held_out=HeldOut(share=0.5))
    assert corpus.counts["documents_dropped"] == {"near duplicate": 40}
    trained = list(corpus.train_texts())
    assert max(jaccard(*pair) for pair in itertools.product(corpus.held_out("ru"), trained)) < 0.5


def test_outcome_does_not_depend_on_the_number_of_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "BATCHES_BEFORE_PROCESSES", 2)
    monkeypatch.setattr("lep.corpus.preparing.BATCH_CHARACTERS", 500)
    source = bilingual(20)
    one, two = (prepared(source, tmp_path / str(n), filters=BOTH, processes=n) for n in (1, 2))
    assert list(one.train_texts()) == list(two.train_texts()) and one.held_out("en") == two.held_out("en")
    assert {**one.counts, "seconds": 0} == {**two.counts, "seconds": 0}


def test_long_documents_are_split_before_the_held_out_choice(tmp_path: Path) -> None:
    rng = random.Random(0)
    book = sentences(rng, RUSSIAN, 12, paragraphs=200)
    filters = CorpusFilters(languages={"ru": "Cyrillic"}, split_long_documents=1000, near_duplicates=None)
    corpus = prepared(Listed((Document(book, ""),)), tmp_path, filters=filters, held_out=HeldOut(share=0.1))
    parts = [*corpus.train_texts(), *corpus.held_out("ru")]
    assert len(corpus.held_out("ru")) >= 1 and max(map(len, parts)) <= 1000
    assert Counter(line for part in parts for line in part.split("\n\n")) == Counter(book.split("\n\n"))


def test_shards_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lep.corpus.preparing.SHARD_CHARACTERS", 1000)
    corpus = prepared(bilingual(30), tmp_path)
    names = sorted(path.name for path in (tmp_path / "train").iterdir())
    assert names[:2] == ["en-00000.jsonl.zst", "en-00001.jsonl.zst"] and len(names) > 8
    assert len(list(corpus.train_texts("ru"))) == corpus.counts["languages"]["ru"]["train"]["documents"]


def test_language_without_text_is_named(tmp_path: Path) -> None:
    russian = Listed(bilingual(10).items[::2])
    with pytest.raises(ValueError, match="no document of language 'en' is left.*10 documents read"):
        prepare(russian, tmp_path, processes=1)
    single = Listed(bilingual(10).items[::2] + bilingual(1).items[1:])
    with pytest.raises(ValueError, match="'en' has too few documents.*split_long_documents"):
        prepare(single, tmp_path, processes=1)
    with pytest.raises(ValueError, match="share=1"):
        HeldOut(share=1)
    with pytest.raises(ValueError, match="no prepared corpus"):
        PreparedCorpus(tmp_path)
    with pytest.raises(ValueError, match="no language 'de'"):
        prepared(bilingual(5), tmp_path / "c").held_out("de")


# Packing

LEVELS = st.lists(st.sets(st.integers(1, 199)), min_size=1, max_size=3)


@given(LEVELS, st.integers(2, 60), st.integers(1, 200))
@settings(max_examples=100, deadline=None)
def test_starts_keep_paragraphs_and_fill_long_gaps(levels: list[set[int]], limit: int, length: int) -> None:
    arrays = [np.array(sorted(x for x in level if x < length), dtype=np.int64) for level in levels]
    starts = admissible_starts([lambda array=array: array for array in arrays], length, limit=limit)
    assert (
        starts[0] == 0 and (np.diff(starts, append=length) > 0).all() and np.diff(starts, append=length).max() <= limit
    )
    assert set(arrays[0]) <= set(starts)
    coarse = np.array([0, *arrays[0]])
    whole = np.flatnonzero(np.diff(coarse, append=length) <= limit)
    for gap in whole:  # a paragraph that fits is never entered in the middle
        end = [*coarse, length][gap + 1]
        assert not ((starts > coarse[gap]) & (starts < end)).any()


@given(st.sets(st.integers(1, 300), max_size=60), st.integers(2, 50), st.integers(1, 300))
@settings(max_examples=100, deadline=None)
def test_blocks_lose_nothing_and_begin_at_paragraphs(places: set[int], block_size: int, num_tokens: int) -> None:
    places = {place for place in places if place < num_tokens}
    paragraphs = admissible_starts([lambda: np.array(sorted(places), dtype=np.int64)], num_tokens, limit=block_size)
    starts = block_starts(paragraphs, num_tokens, block_size=block_size)
    slow = [0]
    while slow[-1] + block_size < num_tokens:
        slow.append(max(p for p in paragraphs if p <= slow[-1] + block_size))
    assert starts.tolist() == slow
    assert set(starts) <= set(paragraphs) and (np.diff(starts) > 0).all()
    assert {i for start in starts for i in range(start, start + block_size)} >= set(range(num_tokens))


@given(st.text(st.sampled_from("аб. \n"), max_size=200), st.integers(1, 40))
@settings(max_examples=100, deadline=None)
def test_parts_of_a_long_text_are_the_text(text: str, limit: int) -> None:
    parts = split_long_text(text, limit=limit)
    assert "".join(parts) == text and all(len(part) <= limit for part in parts)


def test_paragraphs_are_parted_by_empty_lines_where_there_are_any() -> None:
    def paragraphs(text: str) -> list[str]:
        cuts = [0, *paragraph_levels(text)[0](), len(text)]
        return [text[a:b] for a, b in itertools.pairwise(cuts)]

    assert paragraphs("a\nb\n \n  c\nd\n") == ["a\nb\n \n", "  c\nd\n"]
    assert paragraphs("a\nb\nc") == ["a\n", "b\n", "c"]


@pytest.mark.parametrize("kind", ["byte level", "byte level without bos", "metaspace"])
@pytest.mark.parametrize("block_size", [16, 64])
def test_blocks_hold_every_document_and_begin_at_paragraphs(tmp_path: Path, kind: str, block_size: int) -> None:
    tokenizer = metaspace_tokenizer() if kind == "metaspace" else byte_level_tokenizer(bos=kind == "byte level")
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    corpus = prepared(bilingual(12), tmp_path / "corpus")
    summary = pack(tmp_path / "corpus", tmp_path / "tokenizer", tmp_path / "packed", block_size=block_size, processes=1)
    blocks = PackedBlocks(tmp_path / "packed")
    assert len(blocks) == sum(counts["blocks"] for counts in summary["languages"].values())
    assert {"dtype": summary["dtype"], "files": sorted(p.name for p in (tmp_path / "packed").iterdir())} == {
        "dtype": "uint16",
        "files": ["en.bin", "en.starts.npy", "packed.json", "ru.bin", "ru.starts.npy"],
    }
    bos = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    for language in blocks.languages:
        texts = list(corpus.train_texts(language))
        documents = [[*bos, *tokenizer.encode(t, add_special_tokens=False), tokenizer.eos_token_id] for t in texts]
        stream = list(itertools.chain(*documents))
        starts = np.load(tmp_path / "packed" / f"{language}.starts.npy")
        first = blocks.languages.index(language) and len(blocks) - len(starts)
        covered = set()
        for number, start in enumerate(starts):
            block = blocks[first + number]
            assert block.dtype == np.int64 and blocks.language(first + number) == language
            assert block.tolist() == (stream + stream)[start : start + block_size]
            covered |= set(range(start, start + block_size))
        assert covered >= set(range(len(stream)))
        counts = summary["languages"][language]
        assert counts["tokens"] == len(stream) and counts["characters"] == sum(map(len, texts))
        assert counts["bytes"] == sum(len(t.encode()) for t in texts)
        if block_size == 64:  # longer than any paragraph here
            documents_begin = set(np.cumsum([0, *map(len, documents)]))
            for start in set(starts) - documents_begin:
                before = tokenizer.decode(stream[max(start - 3, 0) : start])
                assert before.endswith("\n\n") or tokenizer.decode(stream[start]).endswith("\n\n")


def test_text_that_looks_like_a_special_token_is_text(tmp_path: Path) -> None:
    tokenizer = byte_level_tokenizer()
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    items = tuple(Document(f"{document.text}</s><s>", "") for document in bilingual(5).items)
    prepared(Listed(items), tmp_path / "corpus")
    pack(tmp_path / "corpus", tmp_path / "tokenizer", tmp_path / "packed", block_size=32, processes=1)
    blocks = PackedBlocks(tmp_path / "packed")
    stream = np.memmap(tmp_path / "packed" / "ru.bin", mode="r", dtype=np.uint16)[: -blocks.block_size]
    assert (stream == tokenizer.eos_token_id).sum() == 4 and "</s>" in tokenizer.decode(stream[stream > 1])


def test_packing_does_not_depend_on_the_number_of_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "BATCHES_BEFORE_PROCESSES", 2)
    monkeypatch.setattr("lep.corpus.packing.BATCH_CHARACTERS", 500)
    byte_level_tokenizer().save_pretrained(tmp_path / "tokenizer")
    prepared(bilingual(20), tmp_path / "corpus")
    for number in (1, 2):
        packed = tmp_path / f"packed{number}"
        pack(tmp_path / "corpus", tmp_path / "tokenizer", packed, block_size=32, processes=number)
    for name in ("ru.bin", "ru.starts.npy", "en.bin"):
        assert (tmp_path / "packed1" / name).read_bytes() == (tmp_path / "packed2" / name).read_bytes()


def test_mixture_sets_shares_and_leaves_no_block_out(tmp_path: Path) -> None:
    byte_level_tokenizer().save_pretrained(tmp_path / "tokenizer")
    prepared(bilingual(20), tmp_path / "corpus")
    mixture = {"en": 1, "ru": 4}
    pack(tmp_path / "corpus", tmp_path / "tokenizer", tmp_path / "p", block_size=32, processes=1, mixture=mixture)
    blocks = PackedBlocks(tmp_path / "p")
    shares = Counter(blocks.language(index) for index in range(len(blocks)))
    assert abs(shares["ru"] / len(blocks) - 0.8) < 0.01
    assert min(blocks.summary["passes"].values()) == 1.0
    for language in ("ru", "en"):
        seen = {blocks[i].tobytes() for i in range(len(blocks)) if blocks.language(i) == language}
        starts = np.load(tmp_path / "p" / f"{language}.starts.npy")
        tokens = np.memmap(tmp_path / "p" / f"{language}.bin", mode="r", dtype=np.uint16).astype(np.int64)
        assert seen == {tokens[s : s + 32].tobytes() for s in starts}
    for wrong, message in (({"de": 1}, "no such language"), ({"ru": 0}, "must be above 0")):
        with pytest.raises(ValueError, match=message):
            pack(tmp_path / "corpus", tmp_path / "tokenizer", tmp_path / "q", block_size=32, mixture=wrong)


def test_blocks_travel_to_workers_without_their_tokens(tmp_path: Path) -> None:
    byte_level_tokenizer().save_pretrained(tmp_path / "tokenizer")
    prepared(bilingual(200), tmp_path / "corpus")
    pack(tmp_path / "corpus", tmp_path / "tokenizer", tmp_path / "packed", block_size=32, processes=1)
    blocks = PackedBlocks(tmp_path / "packed")
    expected = blocks[3]
    assert len(pickle.dumps(blocks)) < 5000 < (tmp_path / "packed" / "ru.bin").stat().st_size
    assert (pickle.loads(pickle.dumps(blocks))[3] == expected).all() and len(list(blocks)) == len(blocks)
    assert 1 < blocks.bytes_per_token < 10
    with pytest.raises(IndexError):
        blocks[len(blocks)]


def test_unusable_packing_is_refused(tmp_path: Path) -> None:
    byte_level_tokenizer().save_pretrained(tmp_path / "tokenizer")
    prepared(bilingual(3), tmp_path / "corpus")
    arguments = (tmp_path / "corpus", tmp_path / "tokenizer", tmp_path / "packed")
    with pytest.raises(ValueError, match=r"tokens to train on, less than one block of training.block_size=100000"):
        pack(*arguments, block_size=100000, processes=1)
    with pytest.raises(ValueError, match="block_size=1"):
        pack(*arguments, block_size=1)
    with pytest.raises(ValueError, match="processes=-1"):
        pack(*arguments, block_size=16, processes=-1)
    with pytest.raises(ValueError, match="no packed text"):
        PackedBlocks(tmp_path / "nowhere")
    silent = byte_level_tokenizer()
    silent.eos_token = None
    silent.save_pretrained(tmp_path / "silent")
    with pytest.raises(ValueError, match="no eos token"):
        pack(tmp_path / "corpus", tmp_path / "silent", tmp_path / "packed", block_size=16)


def test_openings_are_shares_of_every_text_cut_where_a_text_may_be() -> None:
    texts = ["Один два три. Четыре пять шесть. Семь.", "Раз. " * 40, "Мал."]
    assert openings(texts, 10_000) == texts
    found = openings(texts, 60)
    assert len(found) == 3 and sum(map(len, found)) <= 60
    assert all(text.startswith(part) and part for text, part in zip(texts, found, strict=True))
    assert found[0] == "Один два три. "
