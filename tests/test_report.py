import io
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf
from rich.console import Console

from lep import terminal
from lep.report import (
    facts,
    number,
    render_report,
    terminal_table,
    verdict,
    vocabulary_facts,
    vocabulary_tables,
    write_report,
)
from lep.results import BITS, Result, Row, Score

TASKS = ("questions", "copying", "translation", "facts, seen", "facts ranked, seen", "facts, recalled", "agreement")
HOSTILE = "<script>alert('&')</script>"


def row(name: str, share: float) -> Row:
    keys = [f"{task}/{language}" for language in ("en", "ru") for task in TASKS]
    stopped = {"end of turn": 0.75, "other end token": 0.0, "newline": 0.25, "never": 0.0}
    return Row(
        name,
        {key: Score(share, 0.021, 200) for key in keys},
        {"ru": 4.02, "en": 3.61},
        {"ru": Score(0.47, 0.01, 120), "en": Score(0.41, float("nan"), 1)},
        {"questions/ru": {"stopped": stopped}, "copying/ru": {"stopped": stopped, "length_ratio": 0.9}, "seconds": 7.0},
    )


def vocabulary(size: int, characters: float) -> dict[str, Any]:
    cost = {"characters_per_token": characters, "tokens_per_word": 6 / characters}
    return {"size": size, "unreachable_tokens": 0, "share_used": 0.98, "languages": {"ru": cost}}


@pytest.fixture
def result() -> Result:
    fit = {"rows": 1093, "held_out_r2": 0.9981, "condition_number": 7321.5, "ridge": 0.001, "relative_drift": 0.069}
    turn = {"changed": True, "unchanged_because": None, "won_before": 0.66, "won_after": 0.98}
    curve = [{"step": s, "train/loss": 5 - s / 40} for s in range(10, 101, 10)]
    curve += [{"step": s, "val/bits_per_byte/ru": 1 - s / 200, "val/bits_per_byte": 0.6} for s in (50, 100)]
    return Result(
        study="demo",
        run="tokenizer=extension",
        choices={"tokenizer": "extension"},
        seed=3,
        rows=[row("original", 0.951), row("swap", 0.702)],
        corpus={"documents": {"train": 12000}},
        tokenizer={
            "before": vocabulary(1100, 2.47),
            "after": vocabulary(1900, 4.02),
            "examples": [{"language": "ru", "tokens": {"before": ["На", "дя", "·по"], "after": ["Надя", HOSTILE]}}],
        },
        training={"curve": curve, "tokens_per_second": 7160.2},
        propagation={"overlap": {"input": fit, "output": {**fit, "novel_number": 17}, "end of turn": turn}},
        samples=[
            {
                "task": "questions",
                "language": "ru",
                "prompt": "Что нашёл Фёдор?",
                "expected": "Альбом.",
                "answers": [{"model": "swap", "answer": HOSTILE, "right": False}],
            }
        ],
    )


def difference(task: str, value: float, *, half: float = 0.02) -> dict[str, Any]:
    interval = {"difference": value, "low": value - half, "high": value + half}
    return {"task": task, "a": "swap", "b": "delta", **interval, "n": 200}


class Balance(HTMLParser):
    """Fails where an element is closed that is not open."""

    VOID = {"meta", "br", "wbr", "line", "polyline", "circle", "input"}

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag


def test_the_page_is_whole_and_asks_nothing_of_the_network(result: Result, tmp_path: Path) -> None:
    write_report(result, tmp_path / "run" / "report.html", configuration="seed: 3 # <me>")
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    balance = Balance()
    balance.feed(page)
    assert not balance.open
    for address in ("http:", "https:", "//", "src=", "@import", "url("):
        assert address not in page
    for text in (
        "95.1",
        "±2.1",
        "2.47",
        "4.02",
        "Надя",
        "condition number",
        "7322",
        "novel number",
        "seed: 3 # &lt;me&gt;",
    ):
        assert text in page


def test_vocabularies_stand_side_by_side(result: Result) -> None:
    operator = {"exact": 1100, "composed": 790, "special": 10, "tokens": 1900, "distinct_old_rows": 640}
    tokenizer = {
        **result.tokenizer,
        "others": {"llama3": vocabulary(128256, 3.13)},
        "operator": {**operator, "old_tokens": 1110},
        "made": {"new_tokens": 800},
    }
    for name, characters in (("before", 2.0), ("after", 4.0)):
        domains = {"fiction": {"characters_per_token": characters}, "manuals": {"characters_per_token": characters + 1}}
        tokenizer[name] = {**tokenizer[name], "domains": domains}
    tokenizer["others"]["llama3"]["domains"] = tokenizer["before"]["domains"]
    facts = vocabulary_facts(tokenizer)
    assert facts["names"] == ["before", "after", "llama3"]
    lines = dict(facts["lines"])
    assert lines["characters a token, Russian"] == ["2.47", "4.02", "3.13"] and lines["tokens that no text gives"]
    assert facts["domains"] == [("fiction", ["2.00", "4.00", "2.00"]), ("manuals", ["3.00", "5.00", "3.00"])]
    page = render_report(replace(result, tokenizer=tokenizer))
    assert all(text in page for text in ("790 composed", "640 of 1\u202f110 old rows", "manuals", "new tokens 800"))


def test_what_models_wrote_stays_text(result: Result) -> None:
    page = render_report(result)
    assert "<script" not in page
    assert page.count("&lt;script&gt;") == 2


def test_sections_without_data_are_left_out(result: Result) -> None:
    sections = {
        "scores": {"rows": []},
        "vocabulary": {"tokenizer": {}},
        "training": {"training": {}},
        "propagation": {"propagation": {}},
        "samples": {"samples": []},
    }
    assert all(f'id="{section}"' in render_report(result) for section in sections)
    for section, without in sections.items():
        assert f'id="{section}"' not in render_report(replace(result, **without))
    empty = render_report(Result("study", "run", {}, 0, []))
    assert "<section" not in empty and "study" in empty


def test_stopping_is_counted_over_all_written_answers(result: Result) -> None:
    page = render_report(result)
    assert 'id="stopping"' in page and "400" in page and "75.0" in page
    assert "wins after the repair" in page and "98.0" in page


def test_a_model_without_tasks_still_has_its_text_measures() -> None:
    """A run on real models: no micro benchmark, speed of generation, a continued text."""
    speed = {"characters_per_second": 312.5, "tokens_per_second": 70.25}
    rows = [
        Row("original", {}, {"ru": 2.1}, {}, {"speed": speed}),
        Row("swap", {}, {"ru": 4.4}, {"ru": Score(1.1, 0.01, 9)}),
    ]
    samples = [{"prompt": "Однажды", "answers": [{"model": "swap", "answer": "утром"}]}]
    page = render_report(Result("real", "run", {}, 0, rows, samples=samples))
    assert "312.5" in page and "Однажды" in page and 'id="scores"' not in page
    assert "right</span>" not in page


def test_the_terminal_shows_every_number_in_a_hundred_columns(result: Result) -> None:
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(terminal_table(result))
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= 100
    assert text.count("95.1±2.1") == 14 and text.count("4.02") == 2 and "0.470" in text
    assert "…" not in text
    lines = [line.split()[:2] for line in text.splitlines() if "95.1±2.1" in line or "70.2±2.1" in line]
    assert lines[0] == ["original", "ru"] and lines[1][0] == "en" and lines[2] == ["swap", "ru"]


def test_a_narrow_terminal_has_every_number_in_several_tables(result: Result) -> None:
    console = Console(width=60, record=True, file=io.StringIO())
    console.print(terminal_table(result, width=60))
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= 60 and "…" not in text
    assert text.count("95.1±2.1") == 14 and text.count("4.02") == 2 and "0.470" in text
    assert 2 <= sum(line.split()[:2] == ["original", "ru"] for line in text.splitlines()) <= 3


def test_the_verdict_names_what_differs_and_what_does_not() -> None:
    sentences = verdict([difference("translation/ru", -0.052), difference("copying/ru", 0.004)])
    assert sentences[0].startswith(
        "On “translation” in Russian, delta is better than swap by 5.2 points (95 % interval 3.2 to 7.2"
    )
    assert sentences[1] == "On the other 1 task (“copying” in Russian) swap and delta do not differ beyond the noise."
    assert "±2.0 points" in sentences[-1]


def test_without_a_difference_the_verdict_says_so() -> None:
    sentences = verdict([difference("translation/ru", -0.01), difference("copying/en", 0.004)])
    assert sentences[0] == "On every task swap and delta do not differ beyond the noise."
    assert verdict([]) == []


def test_numbers_and_facts_are_for_people() -> None:
    assert [number(v) for v in (None, float("nan"), True, 12000, 0.12345, 12345.6, "x")] == [
        "–", "–", "yes", "12\u202f000", "0.1235", "12\u202f346", "x",
    ]  # fmt: skip
    assert facts({"a_b": {"c": 1}, "long": list(range(9)), "short": [1, 2]}) == [
        ("a b · c", "1"),
        ("long", "9 entries"),
        ("short", "1, 2"),
    ]


def test_reports_need_no_torch() -> None:
    code = "import sys, lep.report; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_page_says_what_the_checks_of_an_export_saw(result: Result) -> None:
    servers = {"llama.cpp": {"ready": False, "remedy": HOSTILE}}
    export = {"rows": 1152, "checks": {"decoding": "3 answers of 8 tokens"}, "servers": servers}
    page = render_report(replace(result, propagation={"delta": {"input": {}, "export": export}}))
    assert "<summary>Exports</summary>" in page and "3 answers of 8 tokens" in page
    assert "delta · servers · llama.cpp · remedy" in page and HOSTILE not in page
    assert "<summary>Exports</summary>" not in render_report(result)


def test_vocabularies_side_by_side_keep_their_numbers_on_a_narrow_terminal(result: Result) -> None:
    others = {name: vocabulary(128256, 2.912) for name in ("llama3", "mistral", "qwen3")}
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(vocabulary_tables(replace(result, tokenizer=result.tokenizer | {"others": others})))
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= 80
    assert text.count("2.91") == 3 and text.count("128\u202f256") == 3 and "…" not in text


def test_differences_in_bits_that_would_be_shown_as_nothing_are_counted():
    def compared(*differences: float) -> list[str]:
        of = {"task": f"{BITS}/ru", "a": "swap", "b": "delta", "n": 200}
        return verdict([{**of, "difference": d, "low": d - 1e-4, "high": d + 1e-4} for d in differences])

    assert compared(2e-5) == ["Bits per byte of held-out text do not differ beyond the noise."]
    (one,) = compared(2e-4)
    assert one == "One difference on held-out text is beyond the noise and below 0.0005 bits per byte."
    large, small = compared(2e-4, -3e-4, 7e-4)
    assert "delta is better than swap by 0.001 bits per byte" in large
    assert small == "2 differences on held-out text are beyond the noise and below 0.0005 bits per byte."


def test_a_curve_without_the_scores_that_were_asked_for_is_told(result: Result):
    def unwatched(every: int | None, result: Result) -> bool:
        asked = OmegaConf.create({"during_training": {"every_steps": every}, "training": {"steps": 100}})
        return terminal.unwatched(result, asked)

    assert unwatched(50, result)
    assert not unwatched(None, result) and not unwatched(101, result)
    watched = [*result.training["curve"], {"step": 50, "benchmark/copying/ru": 0.5}]
    assert not unwatched(50, replace(result, training={"curve": watched}))
    assert not unwatched(50, replace(result, training={}))
