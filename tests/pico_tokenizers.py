"""Pico tokenizers of the three families, trained in code on a few sentences: milliseconds each, no files."""

import json
from functools import cache

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from tokenizers.trainers import BpeTrainer, UnigramTrainer
from transformers import PreTrainedTokenizerFast

LLAMA3_SPLIT = "|".join(
    [
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)",
        r"[^\r\n\p{L}\p{N}]?\p{L}+",
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n]*",
        r"\s*[\r\n]+|\s+(?!\S)|\s+",
    ]
)
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|user|>{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
MARKS = ("<s>", "</s>", "<pad>", "<|user|>", "<|assistant|>", "<|end|>")
ENGLISH = [
    f"{who} {verb} {what} in the {place}, and it's {n} o'clock.\n"
    for who, verb in [("Anna", "reads"), ("The old teacher", "writes"), ("My brother", "finds"), ("Nobody", "takes")]
    for what in ("a long letter", "the red book", "another story")
    for place, n in [("garden", 7), ("school", 12), ("city", 2024)]
]
RUSSIAN = [
    f"{who} {verb} {what} {place}, а потом живёт там — {n} лет!\n"
    for who, verb in [("Анна", "читает"), ("Старый учитель", "пишет"), ("Мой брат", "находит"), ("Никто", "берёт")]
    for what in ("длинное письмо", "красную книгу", "другой рассказ", "новости")
    for place, n in [("в саду", 7), ("около школы", 12), ("в городе", 2024)]
]
STEMS = "город сад дом брат завод народ поезд остров пароход самолёт переход разговор забор ответ привет совет".split()
ENDINGS = ("", "а", "у", "ом", "е", "ы", "ов", "ам", "ами", "ах")
FORMS = [" ".join(stem + ending for stem in STEMS[i:] + STEMS[:i]) for i, ending in enumerate(ENDINGS)]
BILINGUAL = ENGLISH + RUSSIAN + FORMS * 2


def wrap(backend: Tokenizer, **named: str) -> PreTrainedTokenizerFast:
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, clean_up_tokenization_spaces=False, **named)
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def _marks(backend: Tokenizer, marks: tuple[str, ...]) -> None:
    backend.add_special_tokens([AddedToken(mark, special=True, normalized=False) for mark in marks])


def _with_bos(backend: Tokenizer) -> None:
    bos = backend.token_to_id("<s>")
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", bos)]
    )


@cache
def byte_level_bpe(*, vocab_size: int = 420, ignore_merges: bool = False, hole: int = 0) -> PreTrainedTokenizerFast:
    """Like LLaMa-3: marks behind the model's vocabulary, numbers in threes, a template with <s>.

    `hole` leaves that many ids unused between the vocabulary and the marks. With `ignore_merges` the vocabulary also
    holds a word that no merge makes, as LLaMa-3's does. `<tool>` is an added token that is not flagged special.
    """
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(LLAMA3_SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = BpeTrainer(vocab_size=vocab_size, initial_alphabet=alphabet, show_progress=False)
    backend.train_from_iterator(ENGLISH * 3 + RUSSIAN[:8], trainer)
    spec = json.loads(backend.to_str())
    vocab = spec["model"]["vocab"]
    spec["model"]["ignore_merges"] = ignore_merges
    if ignore_merges:
        vocab["zyx"] = len(vocab)
    if hole:
        first = len(vocab) + hole
        vocab |= {mark: first + i for i, mark in enumerate((*MARKS, "<tool>"))}
    backend = Tokenizer.from_str(json.dumps(spec))
    _marks(backend, MARKS)
    backend.add_tokens([AddedToken("<tool>", special=False, normalized=False)])
    _with_bos(backend)
    return wrap(backend, bos_token="<s>", eos_token="</s>", pad_token="<pad>")


@cache
def sentencepiece_bpe(*, vocab_size: int = 460) -> PreTrainedTokenizerFast:
    """Like Mistral-v0.1: marks, then `<0x00>`.. bytes, then pieces with metaspaces; no digit pairs, no line ends."""
    trained = Tokenizer(models.BPE())
    word = Regex(r"▁?\p{L}+|▁?\p{N}|▁?[^\p{L}\p{N}\s▁]+|▁+")
    trained.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split("\n", "removed"),
            pre_tokenizers.Metaspace(prepend_scheme="first", split=False),
            pre_tokenizers.Split(word, "isolated"),
        ]
    )
    size = vocab_size - 256 - len(MARKS) - 1
    trainer = BpeTrainer(vocab_size=size, show_progress=False)
    trained.train_from_iterator([text + "  -    ." for text in ENGLISH * 3 + RUSSIAN[:8]], trainer)
    model = json.loads(trained.to_str())["model"]
    pieces = ["<unk>", *MARKS, *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces += sorted(model["vocab"], key=model["vocab"].__getitem__)
    merges = [(left, right) for left, right in model["merges"]]
    ids = {piece: i for i, piece in enumerate(pieces)}
    return _metaspace(models.BPE(ids, merges, fuse_unk=True, byte_fallback=True))


@cache
def metaspace_unigram(*, vocab_size: int = 300) -> PreTrainedTokenizerFast:
    """A SentencePiece-style Unigram with byte fallback."""
    trained = Tokenizer(models.Unigram())
    trained.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=True)
    trainer = UnigramTrainer(vocab_size=vocab_size, unk_token="<unk>", special_tokens=["<unk>"], show_progress=False)
    trained.train_from_iterator([text.replace("\n", " ") for text in BILINGUAL], trainer)
    scored = json.loads(trained.to_str())["model"]["vocab"]
    known = [("<unk>", 0.0), *((mark, 0.0) for mark in MARKS), *((f"<0x{byte:02X}>", -200.0) for byte in range(256))]
    known += [(piece, score) for piece, score in scored if piece != "<unk>"]
    return _metaspace(models.Unigram(known, unk_id=0, byte_fallback=True))


def _metaspace(model: models.Model) -> PreTrainedTokenizerFast:
    backend = Tokenizer(model)
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    _marks(backend, ("<unk>", *MARKS))
    _with_bos(backend)
    return wrap(backend, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>")
