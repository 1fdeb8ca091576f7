"""A stand-in for Darumeru's data: records of our own in its published schema, told by the micro-world.

For tests, and for trying the suite without the data: 20 records a task. What a model scores here says nothing of what
it scores on Darumeru. `python -m lep.assets.stand_in DIR` writes them as `DIR/data/<config>/{test,prompt}.jsonl`.
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lep.assets.lexicon import ANIMALS, FOODS, MEN, OBJECTS, PEOPLE, PROFESSIONS, TOWNS, WOMEN, Noun
from lep.assets.microworld import story

Row = dict[str, Any]
TEST_ROWS = 20
# RuCoLA's examples begin at row 29 of its training split.
PROMPT_ROWS = {"rucola": 40}
# (what happens, why, what follows)
HAPPENINGS = (
    ("Лампа погасла.", "Отключили электричество.", "В комнате стало темно."),
    ("Дождь шёл всю ночь.", "С моря пришли тучи.", "Утром на улице были лужи."),
    ("Мальчик опоздал в школу.", "Он долго спал.", "Учитель сделал ему замечание."),
    ("Суп остыл.", "Его долго не ели.", "Его пришлось греть снова."),
    ("Поезд остановился.", "На путях лежало дерево.", "Пассажиры вышли из вагонов."),
    ("Цветы завяли.", "Их забыли полить.", "Бабушка купила новые."),
    ("Чашка упала на пол.", "Кошка прыгнула на стол.", "Она разбилась."),
    ("Ключ потерялся.", "В кармане была дыра.", "Пришлось ломать дверь."),
    ("Река замёрзла.", "Ударил сильный мороз.", "Дети катались на коньках."),
    ("Хлеб зачерствел.", "Он неделю лежал на столе.", "Им накормили птиц."),
)
SUBJECTS = ("astronomy", "philosophy", "sociology", "nutrition")


def rows(config: str, split: str) -> list[Row] | None:
    """The records of a config (None if there is no such), always the same; those of "prompt" are answered."""
    if config not in CONFIGS:
        return None
    rng = random.Random(f"{config}/{split}")
    count = TEST_ROWS if split == "test" else PROMPT_ROWS.get(config, 10)
    return [CONFIGS[config](rng, number, split == "prompt") for number in range(count)]


def write(directory: Path) -> None:
    """Every record, laid out as the published data."""
    for config in CONFIGS:
        for split in ("test", "prompt"):
            path = directory / "data" / config / f"{split}.jsonl"
            path.parent.mkdir(parents=True, exist_ok=True)
            lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows(config, split) or ())
            path.write_text("".join(lines), encoding="utf-8")


def _record(user: str, inputs: Row, answer: Any, answered: bool, *, opening: str = "Ответ:", **meta: Any) -> Row:
    shown = answer if isinstance(answer, str) else answer[0]["segment"]
    messages = [{"role": "user", "content": user}]
    messages.append({"role": "bot", "content": f"{opening} {shown}" if answered else opening})
    return {"messages": messages, "inputs": inputs, "outputs": answer, "meta": meta}


def _parus(rng: random.Random, number: int, answered: bool) -> Row:
    wanted = ("cause", "effect")[number % 2]
    place = 1 + number % 2
    happening, other = HAPPENINGS[number // 2 % len(HAPPENINGS)], HAPPENINGS[(number // 2 + 3) % len(HAPPENINGS)]
    right = rng.randint(1, 2)
    choices = {f"choice{right}": happening[place], f"choice{3 - right}": other[place]}
    question = "Что было причиной?" if wanted == "cause" else "Что было дальше?"
    user = f"{{premise}}\n{question}\n1. {{choice1}}\n2. {{choice2}}\nНазови номер."
    return _record(user, {"premise": happening[0], **choices}, str(right), answered, task=wanted, id=number)


def _rcb(rng: random.Random, number: int, answered: bool) -> Row:
    first, second = story(rng, 2)
    line = first.exchanges[0].answer["ru"]
    label = number % 3
    hypothesis = (line, f"Неверно, что было так: {line}", second.exchanges[0].answer["ru"])[label]
    user = "{premise}\nВерно ли: {hypothesis}\n1 значит да, 2 значит нет, 3 значит неизвестно."
    inputs = {"premise": first.told["ru"], "hypothesis": hypothesis}
    return _record(user, inputs, str(label + 1), answered, verb="", negation="", genre="", id=number)


def _rwsd(rng: random.Random, number: int, answered: bool) -> Row:
    man, woman = rng.choice(MEN), rng.choice(WOMEN)
    caller, called = (man, woman) if rng.random() < 0.5 else (woman, man)
    pronoun, means = ("он", man) if rng.random() < 0.5 else ("она", woman)
    asked = rng.choice((man, woman))
    verb = "позвал" if caller is man else "позвала"
    text = f"{caller.nom} {verb} {called.acc}, потому что {pronoun} хорошо знает дорогу."
    inputs = {
        "text": text,
        "span1_index": str(0 if asked is caller else 2),
        "span1_text": asked.nom,
        "span2_index": "5",
        "span2_text": pronoun,
    }
    user = "{text}\nСлово «{span2_text}» значит «{span1_text}»? Ответь Да или Нет."
    return _record(user, inputs, "Да" if asked is means else "Нет", answered, id=number)


def _multiq(rng: random.Random, number: int, answered: bool) -> Row:
    near, far = rng.sample(PEOPLE, 2)
    town = rng.choice(TOWNS).pre
    support = f"{far.nom} живёт в {town}."
    inputs = {
        "question": f"Где живёт {near.nom}?",
        "text": f"{near.nom} живёт в одном городе с {far.ins}.",
        "support_text": support,
    }
    answer = [{"label": "answer", "length": len(town), "offset": support.index(town), "segment": town}]
    user = "{support_text}\n{text}\n{question} Назови город."
    return _record(user, inputs, answer, answered, opening="Ответ: в", id=number, bridge_answers=far.nom)


def _use(rng: random.Random, number: int, answered: bool) -> Row:
    kinds = ("text", "matching", "multiple_choice_independent_options", "multiple_choice_based_on_text")
    kind = kinds[number % 4]
    meta = {"id_task": "16" if number % 8 == 3 else str(number % 4 + 1), "variant": 1, "score": 1, "type": kind}
    if kind == "text":
        word = rng.choice(FOODS).nom
        task, choices, answer = "Напиши слово из текста строчными буквами.", "", word.lower()
        text = f"Слово: {word}"
    else:
        named = [(rng.choice(FOODS), "еда") if rng.random() < 0.5 else (rng.choice(ANIMALS), "зверь") for _ in range(5)]
        named[0] = (rng.choice(FOODS), "еда")
        text, choices = "", "\n".join(f"{place}. {noun.nom}" for place, (noun, _) in enumerate(named, 1))
        if kind == "matching":
            task = "Для каждого слова напиши 1, если это еда, и 2, если зверь, через запятую."
            answer = ",".join("1" if group == "еда" else "2" for _, group in named)
        else:
            task = "Назови через запятую номера слов, которые значат еду."
            answer = ",".join(str(place) for place, (_, group) in enumerate(named, 1) if group == "еда")
    inputs = {"task": task, "text": text, "choices": choices, "additional_text": ""}
    return _record("{task}\n{text}\n{choices}", inputs, answer, answered, id=number, **meta)


def _four(rng: random.Random, right: str, wrong: list[str]) -> tuple[dict[str, str], str]:
    """Options in a random order, and the letter of the right one."""
    texts = [right, *wrong]
    rng.shuffle(texts)
    return {f"option_{letter}": text for letter, text in zip("abcd", texts, strict=True)}, "ABCD"[texts.index(right)]


def _which(rng: random.Random, of: tuple[Noun, ...], others: tuple[Noun, ...]) -> tuple[dict[str, str], str]:
    return _four(rng, rng.choice(of).nom, [noun.nom for noun in rng.sample(others, 3)])


OPTIONS = "\nA. {option_a}\nB. {option_b}\nC. {option_c}\nD. {option_d}\nНазови букву."


def _ruopenbookqa(rng: random.Random, number: int, answered: bool) -> Row:
    options, letter = _which(rng, FOODS, OBJECTS)
    inputs = {"text": "Что из этого едят?", **options}
    return _record("{text}" + OPTIONS, inputs, letter, answered, id=number)


def _ruworldtree(rng: random.Random, number: int, answered: bool) -> Row:
    options, letter = _which(rng, ANIMALS, PROFESSIONS)
    meta = {"id": number, "exam_name": "", "school_grade": 1, "knowledge_type": ""}
    return _record(
        "{question}" + OPTIONS, {"question": "Кто из них зверь или птица?", **options}, letter, answered, **meta
    )


def _rummlu(rng: random.Random, number: int, answered: bool) -> Row:
    question, right, wrong = _sum(rng)
    options, letter = _four(rng, right, wrong)
    inputs = {"text": f"Сколько будет {question}?", **options, "subject": "elementary_mathematics"}
    return _record("{text}" + OPTIONS, inputs, letter, answered, id=number, domain="elementary_mathematics")


def _sum(rng: random.Random) -> tuple[str, str, list[str]]:
    a, b = rng.randint(1, 9), rng.randint(1, 9)
    return f"{a} + {b}", str(a + b), [str(a + b + step) for step in rng.sample((-2, -1, 1, 2, 3), 3)]


def _mmlu(rng: random.Random, number: int, answered: bool) -> Row:
    question, right, wrong = _sum(rng)
    choices = [right, *wrong]
    rng.shuffle(choices)
    return {
        "question_en": f"What is {question}?",
        "choices_en": choices,
        "question_ru": f"Сколько будет {question}?",
        "choices_ru": choices,
        "answer": choices.index(right),
        "subject": SUBJECTS[number % len(SUBJECTS)],
    }


def _rucola(rng: random.Random, number: int, answered: bool) -> Row:
    sentence = story(rng, 1)[0].exchanges[0].answer["ru"]
    label = int(rng.random() < 0.7)
    if not label:
        words = sentence.rstrip(".").split()
        sentence = " ".join(words[::-1]) + "."
    return {
        "id": number,
        "sentence": sentence,
        "label": label,
        "error_type": "0" if label else "Syntax",
        "source": "own",
    }


def _summary(rng: random.Random, number: int, answered: bool) -> Row:
    events = story(rng, 4)
    chosen = sorted(rng.sample(range(4), 2))
    return {
        "src_sents": [event.told["ru"] for event in events],
        "summary_sents": [events[place].exchanges[0].answer["ru"] for place in chosen],
        "extractive_summary": chosen,
    }


def _copy(language: str, events: int) -> Callable[[random.Random, int, bool], Row]:
    request, opening = {
        "ru": ("Повтори этот текст слово в слово: {text}", "Текст:"),
        "en": ("Repeat this text word by word: {text}", "Text:"),
    }[language]

    def make(rng: random.Random, number: int, answered: bool) -> Row:
        text = " ".join(event.told[language] for event in story(rng, events))
        return _record(request, {"text": text}, text, answered, opening=opening, id=number)

    return make


CONFIGS: dict[str, Callable[[random.Random, int, bool], Row]] = {
    "parus": _parus,
    "rcb": _rcb,
    "rwsd": _rwsd,
    "multiq": _multiq,
    "use": _use,
    "ruopenbookqa": _ruopenbookqa,
    "ruworldtree": _ruworldtree,
    "rummlu": _rummlu,
    "mmlu_nlpcoreteam": _mmlu,
    "rucola": _rucola,
    "daru_treeway_eval": _summary,
    "cp_sent_en": _copy("en", 1),
    "cp_sent_ru": _copy("ru", 1),
    "cp_para_en": _copy("en", 3),
    "cp_para_ru": _copy("ru", 3),
}

if __name__ == "__main__":
    write(Path(sys.argv[1]))
