"""What a change gained, item by item, in the record and on the terminal."""

import numpy as np
import pytest

from lep.benchmark.bits_per_byte import TextBits
from lep.benchmark.metrics import mean_estimate
from lep.benchmark.records import Record, SuiteResult, compare, gains, samples
from lep.report import calibration_sentences, render_report, verdict
from lep.results import Result


def records(values: dict[str, list[float]]) -> list[Record]:
    return [
        Record(task, language, f"{task} {i}", "a", "a", value)
        for key, found in values.items()
        for task, language in [key.split("/")]
        for i, value in enumerate(found)
    ]


BEFORE = {"copying/ru": [0, 0, 0, 1] * 20, "facts/ru": [1, 0] * 20, "copying/en": [1] * 40}
AFTER = {"copying/ru": [1, 1, 0, 1] * 20, "facts/ru": [1, 0] * 20, "copying/en": [1] * 40}
WHOLE = {"copying/ru": [1] * 80, "facts/ru": [1] * 40, "copying/en": [1] * 40}


def suite(values: dict[str, list[float]]) -> SuiteResult:
    return SuiteResult({}, {}, records(values))


def found() -> dict[str, dict]:
    return {gain["task"]: gain for gain in gains(suite(BEFORE), suite(AFTER), suite(WHOLE))}


def test_gains_are_of_every_task_and_of_all_tasks_of_a_language():
    by_task = found()
    assert {*by_task} == {"copying/ru", "facts/ru", "copying/en", "all tasks/ru", "all tasks/en"}
    copying, whole = by_task["copying/ru"], by_task["all tasks/ru"]
    assert (copying["before"], copying["after"], copying["difference"]) == (0.25, 0.75, 0.5)
    assert copying["recovered"]["share"] == pytest.approx(2 / 3)
    assert whole["n"] == 120 and whole["recovered"]["share"] == pytest.approx(40 / 80)
    assert by_task["copying/en"]["recovered"] is None and by_task["facts/ru"]["recovered"]["share"] == 0


def test_a_task_that_a_model_could_not_be_judged_on_is_left_out():
    short = {key: values for key, values in AFTER.items() if key != "facts/ru"}
    found = {gain["task"]: gain for gain in gains(suite(BEFORE), suite(short), suite(WHOLE))}
    assert {*found} == {"copying/ru", "copying/en", "all tasks/ru", "all tasks/en"}
    assert found["all tasks/ru"]["n"] == 80
    both = {"a": suite(AFTER), "b": suite(short)}
    assert {pair["task"] for pair in compare(both)} == {pair["task"] for pair in compare({**both, "a": both["b"]})}
    assert {shown["task"] for shown in samples({"a": records(AFTER), "b": records(short)})} == {"copying"}
    assert {(pair["a"], pair["b"]) for pair in compare({"b": both["b"], "a": both["a"]})} == {("b", "a")}


def test_a_score_that_is_no_mean_gains_by_itself_and_bits_per_byte_are_compared_apart():
    values = [[0, 1] * 20, [1, 1] * 20, [1] * 40]
    models = [
        SuiteResult(
            {}, {}, records({"rucola/ru": of}), {"rucola/ru": mean_estimate(np.square(of) / 2, name="rucola/ru")}
        )
        for of in values
    ]
    (gain, total) = gains(*models)
    assert gain["task"] == "rucola/ru" and (gain["before"], gain["after"]) == (0.25, 0.5)
    assert total["task"] == "all tasks/ru" and (total["before"], total["after"]) == (0.5, 1.0)
    bits = [TextBits([8.0, 9.0, 10.0], [4, 4, 4]), TextBits([7.0, 8.5, 9.0], [4, 4, 4])]
    texts = {
        name: SuiteResult({}, {}, [], {"bits per byte/ru": of.estimate}) for name, of in zip("ab", bits, strict=True)
    }
    (difference,) = compare(texts)
    assert difference["difference"] == pytest.approx(2.5 / 12) and difference["low"] > 0
    assert verdict([difference])[0].startswith("On held-out Russian, b is better than a by 0.208 bits per byte (95 %")


def result(seed: int, gain: dict[str, dict]) -> Result:
    calibration = {"delta + self": {"before": "delta", "by": "self", "gains": [*gain.values()], "against": []}}
    return Result("table4", f"seed={seed}", {}, seed, [], calibration=calibration)


def test_gains_are_told_in_sentences_and_on_the_page():
    (russian, english) = calibration_sentences(result(0, found()))
    assert (
        "delta + self, Russian, all tasks: 66.7, delta 33.3: +33.3 points" in russian and "50 % of the gap" in russian
    )
    assert "no gap to the original beyond the noise" in english
    page = render_report(result(0, found()))
    assert 'id="calibration"' in page and "copying/ru" in page
    assert 'id="calibration"' not in render_report(Result("study", "run", {}, 0, []))
