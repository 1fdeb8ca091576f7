"""The language of a text where it can be told, by lingua (n-grams of letters; an optional extra).

In: a text. Out: an ISO 639-1 code, or None where the detector is unsure. All its 75 languages are compared: among a
few, a text of yet another would be taken for one of them. The models take about 1 GB of memory, from the first text on.
"""

from functools import cache
from typing import Any

# A language is sure that is likelier than all others together. Names and words of one line rarely are, and pass.
SURE = 0.5


def sure_language(text: str) -> str | None:
    """The language that a text is in with a probability above a half; None if there is none such."""
    best, *_ = _detector().compute_language_confidence_values(text)
    return _code(best.language) if best.value > SURE else None


def known_languages() -> set[str]:
    """ISO 639-1 codes of the languages that can be told. ValueError with the remedy where lingua is not installed."""
    return {_code(language) for language in _lingua().Language.all()}


def _code(language: Any) -> str:
    return language.iso_code_639_1.name.lower()


def _lingua() -> Any:
    try:
        import lingua
    except ImportError as error:
        raise ValueError(
            "answers.filters.languages needs lingua, which is not installed: pip install 'lep[languages]', or take [] "
            "and filter by answers.filters.scripts alone"
        ) from error
    return lingua


@cache
def _detector() -> Any:
    return _lingua().LanguageDetectorBuilder.from_all_languages().build()
