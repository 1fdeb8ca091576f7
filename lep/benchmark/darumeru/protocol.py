"""The two ways to run Darumeru, and every point on which they differ.

`paper2024` is what the published code did when the paper's tables were made; `corrected` is the same benchmark without
what made it depend on the vocabulary, on chance, or on a flaw in a measure. A result records which one it was made by.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from lep.benchmark.asking import Reading
from lep.benchmark.scoring import Sampling

ProtocolName = Literal["paper2024", "corrected"]


@dataclass(frozen=True)
class Protocol:
    """name: of the whole. choice: how an option's worth is read. sampling: how answers are drawn; None is greedily.

    prompt_characters: examples are dropped until a prompt is shorter; None counts prompt_tokens of the model's own
        tokenizer instead, so that a vocabulary with longer tokens sees more examples.
    characters_per_new_token: budgets for writing are this many characters for each token the paper allows; None counts
        the model's own tokens.
    cut: what an over-long prompt without examples loses: its beginning, with the words of the format, or the middle of
        its longest turn.
    system: what the system says in a chat; None leaves it to the template.
    headline_without_examples: whether MMLU's headline also stands where there are no examples.
    sentence_reading: how the sentences of an extractive summary are compared: over the first tokens that all have, or
        whole and by the character.
    stop_holds_text: whether a token that holds the end of a copied sentence beside the newline counts as copied.
    copied_over: what the longest common subsequence is divided by: the copy alone (a copy cut in half is perfect), or
        the longer of copy and source.
    matching: how that subsequence is found: difflib's matching blocks (a lower bound), or exactly.
    unicode_punctuation: whether ROUGE drops « » — … too, or ASCII punctuation alone.
    """

    name: ProtocolName
    choice: Reading
    sampling: Sampling | None
    prompt_characters: int | None
    prompt_tokens: int | None
    characters_per_new_token: int | None
    cut: Literal["beginning", "longest_turn"]
    system: str | None
    headline_without_examples: bool
    sentence_reading: Reading
    stop_holds_text: bool
    copied_over: Literal["copy", "longer"]
    matching: Literal["difflib", "exact"]
    unicode_punctuation: bool

    def described(self) -> dict[str, Any]:
        """As plain data, for the record of a run."""
        return asdict(self)


PROTOCOLS: dict[str, Protocol] = {
    "paper2024": Protocol(
        name="paper2024",
        choice="first_token",
        sampling=Sampling(temperature=0.1, top_k=40, top_p=0.9, seed=0),
        prompt_characters=None,
        prompt_tokens=4000,
        characters_per_new_token=None,
        cut="beginning",
        system="",
        headline_without_examples=False,
        sentence_reading="common_tokens",
        stop_holds_text=False,
        copied_over="copy",
        matching="difflib",
        unicode_punctuation=False,
    ),
    "corrected": Protocol(
        name="corrected",
        choice="full_string",
        sampling=None,
        prompt_characters=12_000,
        prompt_tokens=None,
        characters_per_new_token=4,
        cut="longest_turn",
        system=None,
        headline_without_examples=True,
        sentence_reading="per_character",
        stop_holds_text=True,
        copied_over="longer",
        matching="exact",
        unicode_punctuation=True,
    ),
}


def protocol_named(name: str) -> Protocol:
    if name not in PROTOCOLS:
        raise ValueError(f"benchmark.darumeru.protocol={name} is unknown. Use one of {', '.join(PROTOCOLS)}")
    return PROTOCOLS[name]
