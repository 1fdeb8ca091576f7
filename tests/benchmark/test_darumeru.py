"""Darumeru end to end on the stand-in, with a pico model; prompts, examples and rules against what is published."""

import copy
import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from lep.assets import stand_in
from lep.benchmark import darumeru
from lep.benchmark.asking import Answer, Journal
from lep.benchmark.darumeru import MICRO_AVERAGE, Darumeru, complete_means, mean_of, task_items
from lep.benchmark.darumeru.protocol import PROTOCOLS
from lep.benchmark.darumeru.sources import Directory, StandIn, read_rows
from lep.benchmark.darumeru.tasks import TASKS, Exam, Judgement, Mmlu, Task
from lep.benchmark.records import compare
from lep.results import Score

CORRECTED, PAPER = PROTOCOLS["corrected"], PROTOCOLS["paper2024"]
PROMPTS = Darumeru()._prompts()


def task(name: str) -> Task:
    return next(task for task in TASKS if task.name == name)


@pytest.fixture(scope="module")
def model(bpe: PreTrainedTokenizerFast, pico_model: Callable[..., LlamaForCausalLM]) -> LlamaForCausalLM:
    model = pico_model(len(bpe))
    model.config.max_position_embeddings = 420  # rotary positions: any number will do
    return model


def test_the_seventeen_tasks_and_their_groups() -> None:
    assert len(TASKS) == len({task.name for task in TASKS}) == 17
    sizes = [sum(task.group == group for task in TASKS) for group in darumeru.GROUPS]
    assert sizes == [3, 8, 2, 2, 2]
    assert len(PROMPTS["subjects"]) == 57


@pytest.mark.parametrize("protocol", ["paper2024", "corrected"])
def test_the_whole_suite_on_the_stand_in(protocol: str, model: LlamaForCausalLM, bpe: PreTrainedTokenizerFast) -> None:
    found = Darumeru("stand_in", protocol=protocol, limit=2, chat=False, shots=1)(model, bpe)
    about = found.details["darumeru"]
    if protocol == "paper2024":
        # The two words begin with the same byte, and the pico vocabulary has no token that holds more of them.
        assert about["missing"] == ["rwsd"] and "begin with the same token" in about["tasks"]["rwsd"]["failed"]
        assert MICRO_AVERAGE not in found.scores and "DaruMERA/ru" not in found.scores
        assert about["protocol"]["copied_over"] == "copy" and found.scores["DaruMMLU/ru"].n == 3
        return
    assert about["missing"] == [] and not about["complete"], "of a limited suite the means are of the items asked"
    assert about["protocol"]["name"] == protocol and about["protocol"]["copied_over"] == "longer"
    tasks = [found.scores[f"{task.name}/{task.language}"] for task in TASKS]
    assert found.scores[MICRO_AVERAGE].value == pytest.approx(sum(score.value for score in tasks) / 17)
    assert found.scores["DaruMERA/ru"].n == 8
    assert {record.item.split("/")[0] for record in found.records} == {task.name for task in TASKS}
    assert all(0 <= record.value <= 1 for record in found.records)


def test_a_mean_is_not_given_where_a_task_is_missing(
    tmp_path: Path, model: LlamaForCausalLM, bpe: PreTrainedTokenizerFast
) -> None:
    stand_in.write(tmp_path)
    for config in stand_in.CONFIGS:
        if config not in ("parus", "cp_sent_en", "cp_para_en"):
            for path in (tmp_path / "data" / config).iterdir():
                path.unlink()
    found = Darumeru(str(tmp_path), limit=2)(model, bpe)
    assert set(found.scores) == {"parus/ru", "cp_sent_en/en", "cp_para_en/en", "DaruCopy-EN/en"}
    assert len(found.details["darumeru"]["missing"]) == 14 and not found.details["darumeru"]["complete"]
    with pytest.raises(ValueError, match="holds none of the tasks"):
        Darumeru(str(tmp_path), tasks=["use"])(model, bpe)
    with pytest.raises(ValueError, match="tasks holds 'boolq'"):
        Darumeru("stand_in", tasks=["boolq"])(model, bpe)


def test_micro_average_is_the_mean_over_tasks_and_not_over_groups() -> None:
    scores = {task.name: Score(float(task.group == "DaruMERA"), 0.1, 10) for task in TASKS}
    found = {key: mean_of([scores[name] for name in of]) for key, of in complete_means(scores).items()}
    assert found[MICRO_AVERAGE].value == pytest.approx(8 / 17)
    assert found[MICRO_AVERAGE].stderr == pytest.approx(0.1 / math.sqrt(17))
    assert (found["DaruMERA/ru"].value, found["DaruSum/ru"].value) == (1, 0)


def test_records_are_read_from_the_published_layout(tmp_path: Path) -> None:
    stand_in.write(tmp_path)
    for config in stand_in.CONFIGS:
        assert Directory(tmp_path).rows(config, "test") == json.loads(json.dumps(stand_in.rows(config, "test")))
        assert len(stand_in.rows(config, "test") or ()) == 20
    assert Directory(tmp_path).rows("flores", "test") is None
    (tmp_path / "broken.jsonl").write_text('{"a": 1}\n{"a"\n')
    with pytest.raises(ValueError, match="broken.jsonl:2 is no JSON"):
        read_rows(tmp_path / "broken.jsonl")


def test_rucola_comes_from_csv_and_its_examples_begin_at_row_29(
    tmp_path: Path, model: LlamaForCausalLM, bpe: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [f"{i},Sentence {i}.,{i % 2},0,source" for i in range(40)]
    (tmp_path / "train.csv").write_text("\n".join(["id,sentence,acceptable,error_type,detailed_source", *rows]))
    files = {"rucola": {split: [str(tmp_path / "train.csv")] for split in ("test", "prompt")}}
    suite = Darumeru("stand_in", files=files, tasks=["rucola"], shots=3, chat=False)
    monkeypatch.setattr(model.config, "max_position_embeddings", 4000)
    found = suite(model, bpe)
    assert found.scores["rucola/ru"].n == 35, "the rows 29 to 33 may serve as examples and are not asked"
    prompt = found.records[0].prompt
    shown = [line for line in prompt.splitlines() if line.startswith(("Текст:", "Ответ:"))]
    assert shown == [
        *("Текст: Sentence 31.", "Ответ: 1", "Текст: Sentence 30.", "Ответ: 0", "Текст: Sentence 29.", "Ответ: 1"),
        *("Текст: Sentence 0.", "Ответ:"),
    ]
    assert prompt.endswith("Ответ:") and "Ответ: 1\n\nПрочитай" in prompt
    asked = [record.prompt for record in replace(suite, shots=8)(model, bpe).records]
    assert len(asked) == 32 and not any(prompt.count(prompt.splitlines()[-2] + "\n") > 1 for prompt in asked)


def test_parus_always_first_is_worth_nothing(bpe: PreTrainedTokenizerFast) -> None:
    parus = task("parus")
    items, _ = task_items(parus, StandIn(), PROMPTS) or ([], {})
    first, second = Answer(scores=(1.0, 0.0)), Answer(scores=(0.0, 1.0))
    always = [parus.judge(item, [first, first], bpe, CORRECTED) for item in items]
    assert parus.score(always).score.value == 0
    right = [parus.judge(i, [first, second] if i.gold == "1" else [second, first], bpe, CORRECTED) for i in items]
    assert parus.score(right).score == Score(1.0, 0.0, 20)
    swapped = dict(items[0].meta["swapped"])["user"].splitlines()
    straight = items[0].turns[0][1].splitlines()
    assert [swapped[2][3:], swapped[3][3:]] == [straight[3][3:], straight[2][3:]]


def test_the_exam_is_scored_by_variant_and_limited_to_whole_ones() -> None:
    exam = task("use")
    assert isinstance(exam, Exam)
    judged = [Judgement(1.0, "", "", {"points": 17.0}, unit) for unit in ("1", "1", "2")]
    score = exam.score(judged).score
    assert (score.value, score.n) == (0.75, 2)
    items, _ = task_items(exam, StandIn(), PROMPTS) or ([], {})
    items = [replace(item, unit=str(number % 4)) for number, item in enumerate(items)]
    assert [item.unit for item in exam.limited(items, 6)] == ["0", "1"] * 5


def test_mmlu_is_averaged_by_subject_then_category() -> None:
    mmlu = task("mmlu_ru")
    units = ["STEM/a"] * 3 + ["STEM/b", "other/c"]
    found = mmlu.score([Judgement(v, "", "", {}, u) for v, u in zip([1, 1, 1, 0, 0], units, strict=True)])
    score, metrics = found.score, found.metrics
    assert found.estimate.value == pytest.approx(score.value)
    assert metrics == {"STEM": 0.5, "other": 0.0} and score.value == 0.25
    items, _ = task_items(mmlu, StandIn(), PROMPTS) or ([], {})
    assert isinstance(mmlu, Mmlu)
    assert sorted(item.examples for item in mmlu.limited(items, 4)) == sorted(stand_in.SUBJECTS)


def prompts_of(suite: Darumeru, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, name: str) -> list[str]:
    found = task_items(task(name), StandIn(), PROMPTS)
    assert found
    return suite._dialogue(tokenizer, suite._protocol()).queries(task(name), *found, model).prompts


def test_the_headline_of_mmlu_stands_once_and_in_the_paper_not_without_examples(
    model: LlamaForCausalLM, bpe: PreTrainedTokenizerFast
) -> None:
    headline = "Далее идут вопросы"
    for protocol, shots, count in (("paper2024", 0, 0), ("corrected", 0, 1), ("paper2024", 2, 1), ("corrected", 2, 1)):
        suite = Darumeru("stand_in", protocol=protocol, shots=shots, chat=False)
        prompt = prompts_of(suite, model, bpe, "mmlu_ru")[0]
        assert prompt.count(headline) == count and prompt.count("Сколько") == shots + 1
        assert not count or prompt.startswith(headline)


def test_examples_are_dropped_and_texts_cut_until_a_prompt_fits(
    model: LlamaForCausalLM, bpe: PreTrainedTokenizerFast
) -> None:
    small = type("Small", (), {"config": type("Config", (), {"max_position_embeddings": 400})})
    suite = Darumeru("stand_in", shots=2, chat=False)
    found = task_items(task("parus"), StandIn(), PROMPTS)
    assert found
    dialogue = suite._dialogue(bpe, CORRECTED)
    whole, tight = (dialogue.queries(task("parus"), *found, of) for of in (model, small))  # type: ignore[arg-type]
    assert whole.facts == {"shots": 2.0, "prompts_cut": 0} and tight.facts["shots"] < 2
    assert max(len(bpe(text)["input_ids"]) for text in tight.prompts) < 400
    assert all(long.endswith(short) for long, short in zip(whole.prompts, tight.prompts, strict=True))
    small.config.max_position_embeddings = 60
    cut = dialogue.queries(task("parus"), *found, small)  # type: ignore[arg-type]
    assert cut.facts == {"shots": 0.0, "prompts_cut": 40}
    assert max(len(bpe(text)["input_ids"]) for text in cut.prompts) < 60
    chatting = copy.deepcopy(bpe)
    chatting.bos_token, chatting.chat_template = "<|user|>", bpe.chat_template
    for protocol in (CORRECTED, replace(PAPER, system=None)):
        cut = replace(suite, chat=True)._dialogue(chatting, protocol).queries(task("parus"), *found, small)  # type: ignore
        assert cut.facts["prompts_cut"] == 40 and all(text.startswith("<|user|>") for text in cut.prompts)
        assert max(len(chatting(text, add_special_tokens=False)["input_ids"]) for text in cut.prompts) < 60


def test_an_over_long_turn_loses_its_middle_and_the_format_nothing(bpe: PreTrainedTokenizerFast) -> None:
    dialogue = Darumeru("stand_in", shots=0, chat=True, system="Кратко.")._dialogue(bpe, CORRECTED)
    source = StandIn()
    found = task_items(task("treeway_abstractive"), source, PROMPTS)
    assert found
    small = type("Small", (), {"config": type("Config", (), {"max_position_embeddings": 2 * 160})})
    whole = type("Whole", (), {"config": type("Config", (), {"max_position_embeddings": 10_000})})
    cut, full = (dialogue.queries(task("treeway_abstractive"), *found, of) for of in (small, whole))  # type: ignore
    assert cut.facts["prompts_cut"] == len(cut.prompts) and full.facts["prompts_cut"] == 0
    for short, long in zip(cut.prompts, full.prompts, strict=True):
        assert 100 < len(bpe(short, add_special_tokens=False)["input_ids"]) < 160
        kept = next(n for n in range(len(short), 0, -1) if long.startswith(short[:n]))
        assert long.endswith(short[kept:]) and kept > len("<|system|>\nКратко.<|end|>\n<|user|>\n")
        assert short.count("<|user|>") == short.count("<|assistant|>") == 1


def test_the_papers_protocol_lets_no_system_speak_where_the_format_has_one(bpe: PreTrainedTokenizerFast) -> None:
    suite, talkative, silent = Darumeru("stand_in", shots=0, chat=True), copy.deepcopy(bpe), copy.deepcopy(bpe)
    talkative.chat_template = (
        "{% if messages[0].role != 'system' %}<|system|>\nYou help.<|end|>\n{% endif %}" + bpe.chat_template  # type: ignore
    )
    silent.chat_template = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    silent.chat_template += bpe.chat_template  # type: ignore[operator]
    (item,) = task_items(task("rcb"), StandIn(), PROMPTS)[0][:1]  # type: ignore[index]

    def said(tokenizer: PreTrainedTokenizerFast, name: str) -> str:
        protocol = PROTOCOLS[name]
        return suite._dialogue(tokenizer, protocol)._text(task("rcb"), item, item.turns, ())

    assert "You help." in said(talkative, "corrected") and "You help." not in said(talkative, "paper2024")
    assert said(silent, "paper2024") == said(silent, "corrected") == said(bpe, "corrected")


def test_models_are_compared_by_the_scores_of_the_table(model: LlamaForCausalLM, bpe: PreTrainedTokenizerFast) -> None:
    """Every one of them: also those with Matthews' correlation, macro-F1 or strata in them, and the means of groups."""
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.lm_head.weight.add_(torch.randn(other.lm_head.weight.shape, generator=torch.Generator().manual_seed(0)))
    suite = Darumeru("stand_in", limit=8, chat=False, shots=0)
    a, b = (suite(of, bpe) for of in (model, other))
    found = {pair["task"]: pair for pair in compare({"a": a, "b": b})}
    assert {*found} == {key for key, score in a.scores.items() if score.n > 1}
    for key, pair in found.items():
        assert pair["difference"] == pytest.approx(a.scores[key].value - b.scores[key].value), key
        assert pair["low"] - 1e-9 <= pair["difference"] <= pair["high"] + 1e-9, key
    assert found[MICRO_AVERAGE]["n"] == 17
    same = {pair["task"]: pair for pair in compare({"a": a, "b": suite(model, bpe)})}
    assert all((pair["low"], pair["high"]) == (0, 0) for pair in same.values())


def test_a_chat_model_is_asked_in_its_format_with_the_answer_begun(
    model: LlamaForCausalLM, bpe: PreTrainedTokenizerFast
) -> None:
    prompt = prompts_of(Darumeru("stand_in"), model, bpe, "rcb")[0]
    assert prompt.startswith("<|user|>\n") and prompt.endswith("<|end|>\n<|assistant|>\nОтвет:")
    prompt = prompts_of(Darumeru("stand_in", shots=1, system="Будь краток."), model, bpe, "rcb")[0]
    assert prompt.startswith("<|system|>\nБудь краток.<|end|>\n<|user|>") and prompt.count("<|assistant|>") == 2


def test_sentences_are_compared_by_their_own_letters_or_as_the_paper_did_from_the_opening_on(
    model: LlamaForCausalLM, bpe: PreTrainedTokenizerFast
) -> None:
    extract = task("treeway_extractive")
    items, examples = task_items(extract, StandIn(), PROMPTS) or ([], {})
    suite = Darumeru("stand_in", chat=False, shots=0)
    roomy = type("Roomy", (), {"config": type("Config", (), {"max_position_embeddings": 10_000})})
    for protocol in (CORRECTED, PAPER):
        asked = suite._dialogue(bpe, protocol).queries(extract, items, examples, roomy)  # type: ignore[arg-type]
        for item, query in zip(items, asked.queries, strict=True):
            whole = [query.prompt + option for option in query.options]
            assert all(text.endswith(f"{item.opening} {s}") for text, s in zip(whole, item.options, strict=True))
            assert query.prompt.endswith(item.opening) == (protocol is CORRECTED)


@pytest.mark.parametrize("wrong", [{"limit": 0}, {"shots": -1}])
def test_numbers_out_of_range_are_told(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"benchmark\.darumeru\.(limit=0|shots=-1) is out of range"):
        Darumeru("stand_in", **wrong)  # type: ignore[arg-type]


def test_broken_records_and_wordings_are_told_by_name(
    tmp_path: Path, model: LlamaForCausalLM, bpe: PreTrainedTokenizerFast
) -> None:
    broken, wording = tmp_path / "broken.jsonl", tmp_path / "wording.yaml"
    row = (StandIn().rows(task("rcb").config, "test") or [])[0]
    config = task("rcb").config
    broken.write_text(json.dumps({key: value for key, value in row.items() if key != "outputs"}) + "\n")
    files = {config: {"test": [str(broken)]}}
    with pytest.raises(ValueError, match=rf"a record of {config}, or .* lacks 'outputs'"):
        Darumeru("stand_in", files=files, tasks=["rcb"], shots=0, chat=False)(model, bpe)
    with pytest.raises(ValueError, match="wording.yaml is no file"):
        Darumeru("stand_in", prompts=str(wording))._prompts()
    wording.write_text("- rucola\n")
    with pytest.raises(ValueError, match="must map names to wordings"):
        Darumeru("stand_in", prompts=str(wording))._prompts()


def test_a_perfect_copy_is_worth_one_under_both_stops(bpe: PreTrainedTokenizerFast) -> None:
    copying = task("cp_sent_ru")
    items, _ = task_items(copying, StandIn(), PROMPTS) or ([], {})
    count = len(bpe(" " + items[0].gold)["input_ids"])
    answer = Answer(text=" " + items[0].gold, tokens=count, whole_tokens=count - 1, ended="stop character")
    assert copying.judge(items[0], [answer], bpe, CORRECTED).value == 1
    assert copying.judge(items[0], [answer], bpe, PAPER).value == pytest.approx(
        (min(count, 128) - (count <= 128)) / min(count, 128)
    )


def test_answers_are_remembered_and_never_asked_again(
    tmp_path: Path, model: LlamaForCausalLM, bpe: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    suite = Darumeru("stand_in", tasks=["parus", "multiq"], limit=5, chat=False, shots=0)
    first = suite(model, bpe, journal=Journal(tmp_path / "j", suite.fingerprint()))
    path = tmp_path / "j.0.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    assert len(lines) == 1 + 10 + 5
    path.write_text("".join(lines[:9]) + lines[9][:20], encoding="utf-8")  # killed while it wrote
    asked = []
    choose = darumeru.ask.__globals__["_choose"]
    monkeypatch.setitem(
        darumeru.ask.__globals__, "_choose", lambda m, t, queries: asked.extend(queries) or choose(m, t, queries)
    )
    again = suite(model, bpe, journal=Journal(tmp_path / "j", suite.fingerprint()))
    assert again.scores == first.scores and len(asked) == 7, "all of multiq and three of parus were known"
    with pytest.raises(ValueError, match="holds answers of another model, other prompts or another protocol"):
        Journal(tmp_path / "j", replace(suite, protocol="paper2024").fingerprint())


def test_prompts_can_be_replaced(tmp_path: Path, model: LlamaForCausalLM, bpe: PreTrainedTokenizerFast) -> None:
    own = tmp_path / "own.yaml"
    own.write_text("rucola:\n  user: 'Годится? {sentence}'\n  assistant: 'Ответ:'\n")
    suite = Darumeru("stand_in", prompts=str(own), tasks=["rucola"], limit=1, shots=0, chat=False)
    assert suite(model, bpe).records[0].prompt.startswith("Годится? ")
    assert suite.fingerprint() != replace(suite, prompts=None).fingerprint()
    own.write_text("rucolla: {}")
    with pytest.raises(ValueError, match="'rucolla' is no prompt of Darumeru"):
        suite(model, bpe)


def test_the_hub_that_is_not_there_is_told_with_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    asked = []

    def load(repository: str, name: str | None, *, split: str, revision: str | None) -> list[dict]:
        asked.append((repository, name, split))
        if name == "rcb":
            raise ConnectionError("no network")
        return [{"a": 1}]

    monkeypatch.setattr(datasets, "load_dataset", load)
    source = Darumeru("hub")._source()
    assert source.rows("rucola", "test") == [{"a": 1}] and source.rows("mmlu_nlpcoreteam", "prompt") == [{"a": 1}]
    assert asked == [("RussianNLP/rucola", None, "validation"), ("RefalMachine/darumeru", "mmlu_nlpcoreteam", "dev")]
    with pytest.raises(ValueError, match="not to be had from the hub: no network. Give a directory"):
        source.rows("rcb", "test")
    with pytest.raises(ValueError, match="is no directory"):
        Darumeru("nowhere")._source()


def test_the_model_that_knows_the_answers_gets_them(
    bpe: PreTrainedTokenizerFast, model: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scores read off the golds by an oracle in the model's place: every choice and ranking is worth 1."""
    golds = {}
    for name in ("rcb", "rucola", "mmlu_en", "treeway_extractive"):
        for item in (task_items(task(name), StandIn(), PROMPTS) or ([], {}))[0]:
            right = {item.options[i] for i in item.gold} if name == "treeway_extractive" else {item.gold}
            golds[item.key] = [float(option in right) for option in item.options]

    def oracle(_model: object, _tokenizer: object, queries: list) -> list[Answer]:
        return [Answer(scores=tuple(golds[query.key])) for query in queries]

    monkeypatch.setitem(darumeru.ask.__globals__, "_choose", oracle)
    found = Darumeru("stand_in", tasks=["rcb", "rucola", "mmlu_en", "treeway_extractive"])(model, bpe)
    assert [score.value for score in found.scores.values()] == [1.0] * 4
