"""What a change gained, item by item, in the record and on the terminal."""

import pytest

from lep.benchmark.records import Record, compare, gains, samples
from lep.report import calibration_sentences, render_report
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


def found() -> dict[str, dict]:
    return {gain["task"]: gain for gain in gains(records(BEFORE), records(AFTER), records(WHOLE))}


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
    found = {gain["task"]: gain for gain in gains(records(BEFORE), records(short), records(WHOLE))}
    assert {*found} == {"copying/ru", "copying/en", "all tasks/ru", "all tasks/en"}
    assert found["all tasks/ru"]["n"] == 80
    both = {"a": records(AFTER), "b": records(short)}
    assert {pair["task"] for pair in compare(both)} == {pair["task"] for pair in compare({**both, "a": both["b"]})}
    assert {shown["task"] for shown in samples(both)} == {"copying"}
    assert {(pair["a"], pair["b"]) for pair in compare({"b": both["b"], "a": both["a"]})} == {("b", "a")}


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
