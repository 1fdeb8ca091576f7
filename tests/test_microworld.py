"""The micro-world says the same in both languages, in true Russian, and keeps the facts of some people to itself."""

import random
import re
from collections import Counter

from lep.assets import lexicon, microworld
from lep.assets.microworld import RECALLED, SEEN, MicroWorldText, benchmark_items

FORMS = {
    "лампа": ("лампа", "лампы", "лампе", "лампу", "лампой", "лампе"),
    "чашка": ("чашка", "чашки", "чашке", "чашку", "чашкой", "чашке"),
    "курица": ("курица", "курицы", "курице", "курицу", "курицей", "курице"),
    "тетрадь": ("тетрадь", "тетради", "тетради", "тетрадь", "тетрадью", "тетради"),
    "ковёр": ("ковёр", "ковра", "ковру", "ковёр", "ковром", "ковре"),
    "медведь": ("медведь", "медведя", "медведю", "медведя", "медведем", "медведе"),
    "Мария": ("Мария", "Марии", "Марии", "Марию", "Марией", "Марии"),
    "Дарья": ("Дарья", "Дарьи", "Дарье", "Дарью", "Дарьей", "Дарье"),
    "Андрей": ("Андрей", "Андрея", "Андрею", "Андрея", "Андреем", "Андрее"),
    "Воронеж": ("Воронеж", "Воронежа", "Воронежу", "Воронеж", "Воронежем", "Воронеже"),
    "кольцо": ("кольцо", "кольца", "кольцу", "кольцо", "кольцом", "кольце"),
}
EVERY_NOUN = {
    noun.nom: noun
    for nouns in (
        lexicon.PEOPLE,
        lexicon.TOWNS,
        lexicon.PROFESSIONS,
        lexicon.ANIMALS,
        lexicon.FOODS,
        lexicon.OBJECTS,
    )
    for noun in nouns
}


def test_nouns_decline_as_a_grammar_says():
    for nominative, forms in FORMS.items():
        noun = EVERY_NOUN[nominative]
        assert (noun.nom, noun.gen, noun.dat, noun.acc, noun.ins, noun.pre) == forms


def test_adjectives_agree():
    red, big = (next(a for a in lexicon.ADJECTIVES if a.en == en) for en in ("red", "big"))
    assert [red.nom(g) for g in "mfn"] == ["красный", "красная", "красное"]
    assert [red.acc(g) for g in "mfn"] == ["красный", "красную", "красное"]
    assert [big.nom(g) for g in "mfn"] == ["большой", "большая", "большое"]


def test_verbs_agree_with_their_subject():
    woman, man = lexicon.WOMEN[0], lexicon.MEN[0]
    rng = random.Random(0)
    for build in microworld.EVENTS:
        told_of_her, told_of_him = (build(rng, who, man).plain.ru for who in (woman, man))
        if woman.dat in told_of_her:  # "likes" is said of what is liked
            continue
        assert re.match(rf"{woman.nom} \w+а\b", told_of_her), told_of_her
        assert not re.match(rf"{man.nom} \w+а\b", told_of_him), told_of_him


def test_both_languages_tell_the_same_people():
    english = {noun.en: noun for noun in lexicon.PEOPLE}
    rng = random.Random(1)
    for _ in range(200):
        for event in microworld.story(rng, 3):
            for word in re.findall(r"[A-Z][a-z]+", event.plain.en):
                if word in english:
                    noun = english[word]
                    assert any(form in event.plain.ru for form in (noun.nom, noun.gen, noun.dat, noun.acc, noun.ins))


def test_a_question_on_a_passage_has_its_answer_in_the_passage():
    rng = random.Random(2)
    for language in microworld.LANGUAGES:
        for _ in range(200):
            prompt, answer = microworld.question_on_story(rng, language)
            passage = prompt.split("\n")[0]
            assert answer in passage or answer[0].lower() + answer[1:] in passage


def test_people_are_split_in_two():
    names = [person.name.nom for person in (*SEEN, *RECALLED)]
    assert len(set(names)) == len(names) == len(lexicon.PEOPLE)
    assert len(SEEN) == len(RECALLED)


def test_no_fact_of_the_recalled_stands_in_the_adaptation_text():
    """In no wording and in neither language; the facts of the others do."""
    text = "\n".join(document.text for document in MicroWorldText(20_000).documents())

    def told(people: tuple[microworld.Person, ...]) -> int:
        lines = [line for p in people for fact, others in p.facts for line in (fact.answer, *others)]
        return sum(line[language] in text for line in lines for language in microworld.LANGUAGES)

    assert told(RECALLED) == 0
    assert told(SEEN) == len(SEEN) * 4 * 2 * len(microworld.LANGUAGES)
    questions = [fact.question[language] for p in RECALLED for fact, _ in p.facts for language in ("en", "ru")]
    assert not any(question in text for question in questions)
    assert all(person.name.nom in text for person in RECALLED)  # their names are learnt from stories


def test_the_corpus_is_a_function_of_its_settings():
    one, again, other = (list(MicroWorldText(50, seed=seed).documents()) for seed in (0, 0, 1))
    assert one == again != other
    assert MicroWorldText(50).fingerprint() != MicroWorldText(50, seed=1).fingerprint()


def test_benchmark_items_are_fair():
    items = benchmark_items(seed=0, items_per_task=30)
    counts = Counter((item.task, item.language) for item in items)
    assert {task for task, _ in counts} == {
        "questions",
        "copying",
        "translation",
        "facts, seen",
        "facts, recalled",
        "facts ranked, seen",
        "facts ranked, recalled",
        "agreement",
    }
    assert set(counts.values()) == {30}
    for item in items:
        assert item.answer.strip() == item.answer and "\n" not in item.answer
        if item.options:
            assert item.options[0] == item.answer and len(set(item.options)) == len(item.options)


def test_benchmark_content_is_not_in_the_adaptation_text():
    """Headline items are drawn afresh: hardly any whole answer also stands in the corpus."""
    text = {document.text for document in MicroWorldText(20_000).documents()}
    joined = "\n".join(text)
    items = [i for i in benchmark_items(seed=0, items_per_task=50) if i.task in ("questions",)]
    whole = sum(item.prompt.split("\n")[0] in joined for item in items)
    assert whole <= len(items) // 20
