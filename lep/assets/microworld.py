"""The micro-world: a small bilingual world that writes its own corpus and its own benchmark.

Every sentence exists in English and in Russian with the same content, so a model's body can share meaning across the
two. People have facts that never change; half of them (`SEEN`) keep their facts in the adaptation text, the facts of
the others (`RECALLED`) stand in the base model's pre-training text only, so an answer about them cannot be re-learnt
from the adaptation text. Stories, copying and translation are drawn afresh every time: no text can give them away.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from lep.assets.lexicon import (
    ADJECTIVES,
    ANIMALS,
    FOODS,
    MEN,
    OBJECTS,
    PEOPLE,
    PLACES,
    PROFESSIONS,
    TIMES,
    TOWNS,
    WOMEN,
    Noun,
    article,
)
from lep.corpus import Document

Language = Literal["en", "ru"]
LANGUAGES: tuple[Language, Language] = ("en", "ru")

# One world for every seed: the shipped models know these facts, so they may not move with a run's seed.
_WORLD_SEED = 2412


@dataclass(frozen=True)
class Item:
    """One benchmark question. With `options` it is ranked (the first option is right), else answered in free text."""

    task: str
    language: str
    prompt: str
    answer: str
    options: tuple[str, ...] = ()


@dataclass(frozen=True)
class Line:
    """The same sentence in both languages."""

    en: str
    ru: str

    def __getitem__(self, language: str) -> str:
        return self.en if language == "en" else self.ru


@dataclass(frozen=True)
class Exchange:
    """A question and its answer in both languages."""

    question: Line
    answer: Line


@dataclass(frozen=True)
class Event:
    """Something that happened: a sentence, told with its time or without, and what may be asked about it."""

    told: Line
    plain: Line
    exchanges: tuple[Exchange, ...]


@dataclass(frozen=True)
class Person:
    """A person and the four facts about them, each an `Exchange` with its other wordings."""

    name: Noun
    town: Noun
    profession: Noun
    pet: Noun
    food: Noun

    @cached_property
    def facts(self) -> tuple[tuple[Exchange, tuple[Line, ...]], ...]:
        """(question and full-sentence answer, other wordings of the answer) for each relation."""
        name, town, work, pet, food = self.name, self.town, self.profession, self.pet, self.food
        return (
            (
                Exchange(
                    Line(f"Where does {name.en} live?", f"Где живёт {name.nom}?"),
                    Line(f"{name.en} lives in {town.en}.", f"{name.nom} живёт в {town.pre}."),
                ),
                (Line(f"{name.en}'s home is in {town.en}.", f"Дом {name.gen} стоит в {town.pre}."),),
            ),
            (
                Exchange(
                    Line(f"What is {name.en}'s work?", f"Кем работает {name.nom}?"),
                    Line(f"{name.en} works as {article(work.en)} {work.en}.", f"{name.nom} работает {work.ins}."),
                ),
                (Line(f"{name.en} is {article(work.en)} {work.en}.", f"{name.nom} — {work.nom}."),),
            ),
            (
                Exchange(
                    Line(f"What animal does {name.en} have?", f"Какое животное есть у {name.gen}?"),
                    Line(f"{name.en} has {article(pet.en)} {pet.en}.", f"У {name.gen} есть {pet.nom}."),
                ),
                (
                    Line(
                        f"{name.en} takes care of {article(pet.en)} {pet.en}.",
                        f"{name.nom} заботится о своём питомце: это {pet.nom}.",
                    ),
                ),
            ),
            (
                Exchange(
                    Line(f"What does {name.en} love to eat?", f"Что любит есть {name.nom}?"),
                    Line(f"{name.en} loves to eat {food.en}.", f"{name.nom} любит есть {food.acc}."),
                ),
                (Line(f"{name.en}'s favourite food is {food.en}.", f"Любимая еда {name.gen} — {food.nom}."),),
            ),
        )


def _populate() -> tuple[tuple[Person, ...], tuple[Person, ...]]:
    """The people of the world: those whose facts the adaptation text holds, and those whose facts it never does."""
    rng = random.Random(_WORLD_SEED)
    people = [
        Person(name, rng.choice(TOWNS), rng.choice(PROFESSIONS), rng.choice(ANIMALS), rng.choice(FOODS))
        for name in PEOPLE
    ]
    men, women = people[: len(MEN)], people[len(MEN) :]
    assert len(men) == len(MEN) and len(women) == len(WOMEN)
    rng.shuffle(men)
    rng.shuffle(women)
    half_men, half_women = len(men) // 2, len(women) // 2
    return tuple(men[:half_men] + women[:half_women]), tuple(men[half_men:] + women[half_women:])


SEEN, RECALLED = _populate()
PEOPLE_OF_THE_WORLD = SEEN + RECALLED

# ---------------------------------------------------------------------------------------------------------------------
# Events: each builder draws its own content for a person and says it in both languages.


def _by_gender(person: Noun, masculine: str) -> str:
    """The past tense for a man or a woman: пришёл/пришла are written out, the others add -а."""
    irregular = {"пошёл": "пошла", "пришёл": "пришла", "нашёл": "нашла", "съел": "съела"}
    return masculine if person.gender == "m" else irregular.get(masculine, masculine + "а")


def _with(person: Noun) -> str:
    """'with' before an instrumental: со before с and a consonant."""
    first, second = person.ins[0], person.ins[1]
    return f"со {person.ins}" if first == "С" and second not in "аеёиоуыэюя" else f"с {person.ins}"


def _told(rng: random.Random, plain: Line) -> Line:
    """The sentence as the story tells it: half of the time it opens with when it happened."""
    if rng.random() < 0.5:
        return plain
    time = rng.choice(TIMES)
    return Line(f"{time[0]} {plain.en}", f"{time[1]} {plain.ru}")


def _event(rng: random.Random, plain: Line, *questions: Line) -> Event:
    return Event(_told(rng, plain), plain, tuple(Exchange(question, plain) for question in questions))


def _thing(rng: random.Random) -> tuple[str, str, Noun]:
    """A described object: English with its article, Russian accusative, and the noun."""
    adjective, thing = rng.choice(ADJECTIVES), rng.choice(OBJECTS)
    en = f"{article(adjective.en)} {adjective.en} {thing.en}"
    return en, f"{adjective.acc(thing.gender)} {thing.acc}", thing


def _went(rng: random.Random, who: Noun, other: Noun) -> Event:
    place = rng.choice(PLACES)
    verb = _by_gender(who, "пошёл")
    plain = Line(f"{who.en} went {place.en_to}.", f"{who.nom} {verb} {place.ru_to}.")
    return _event(rng, plain, Line(f"Where did {who.en} go?", f"Куда {verb} {who.nom}?"))


def _acted_on_thing(en_verb: str, en_base: str, ru_verb: str) -> Callable[[random.Random, Noun, Noun], Event]:
    def build(rng: random.Random, who: Noun, other: Noun) -> Event:
        en, ru, _ = _thing(rng)
        verb = _by_gender(who, ru_verb)
        plain = Line(f"{who.en} {en_verb} {en}.", f"{who.nom} {verb} {ru}.")
        return _event(rng, plain, Line(f"What did {who.en} {en_base}?", f"Что {verb} {who.nom}?"))

    return build


def _gave(rng: random.Random, who: Noun, other: Noun) -> Event:
    en, ru, _ = _thing(rng)
    verb = _by_gender(who, "подарил")
    plain = Line(f"{who.en} gave {other.en} {en}.", f"{who.nom} {verb} {other.dat} {ru}.")
    return _event(
        rng,
        plain,
        Line(f"What did {who.en} give {other.en}?", f"Что {verb} {who.nom} {other.dat}?"),
        Line(f"Who got {en} from {who.en}?", f"Кому {who.nom} {verb} {ru}?"),
    )


def _saw(rng: random.Random, who: Noun, other: Noun) -> Event:
    animal, place = rng.choice(ANIMALS), rng.choice(PLACES)
    verb = _by_gender(who, "увидел")
    plain = Line(
        f"{who.en} saw {article(animal.en)} {animal.en} {place.en_in}.", f"{who.nom} {verb} {animal.acc} {place.ru_in}."
    )
    return _event(
        rng,
        plain,
        Line(f"What did {who.en} see?", f"Кого {verb} {who.nom}?"),
        Line(f"Where did {who.en} see {article(animal.en)} {animal.en}?", f"Где {who.nom} {verb} {animal.acc}?"),
    )


def _met(rng: random.Random, who: Noun, other: Noun) -> Event:
    place = rng.choice(PLACES)
    verb = _by_gender(who, "встретил")
    plain = Line(f"{who.en} met {other.en} {place.en_in}.", f"{who.nom} {verb} {other.acc} {place.ru_in}.")
    return _event(
        rng,
        plain,
        Line(f"Who did {who.en} meet?", f"Кого {verb} {who.nom}?"),
        Line(f"Where did {who.en} meet {other.en}?", f"Где {who.nom} {verb} {other.acc}?"),
    )


def _ate(rng: random.Random, who: Noun, other: Noun) -> Event:
    food = rng.choice(FOODS)
    verb = _by_gender(who, "съел")
    plain = Line(f"{who.en} ate {food.en}.", f"{who.nom} {verb} {food.acc}.")
    return _event(rng, plain, Line(f"What did {who.en} eat?", f"Что {verb} {who.nom}?"))


def _came(rng: random.Random, who: Noun, other: Noun) -> Event:
    verb = _by_gender(who, "пришёл")
    plain = Line(f"{who.en} came with {other.en}.", f"{who.nom} {verb} {_with(other)}.")
    return _event(rng, plain, Line(f"Who did {who.en} come with?", f"С кем {verb} {who.nom}?"))


def _likes(rng: random.Random, who: Noun, other: Noun) -> Event:
    adjective, thing = rng.choice(ADJECTIVES), rng.choice(OBJECTS)
    plain = Line(
        f"{who.en} likes the {adjective.en} {thing.en}.",
        f"{who.dat} нравится {adjective.nom(thing.gender)} {thing.nom}.",
    )
    # What somebody likes has no time of its own.
    return Event(plain, plain, (Exchange(Line(f"What does {who.en} like?", f"Что нравится {who.dat}?"), plain),))


EVENTS: tuple[Callable[[random.Random, Noun, Noun], Event], ...] = (
    _went,
    _acted_on_thing("bought", "buy", "купил"),
    _acted_on_thing("found", "find", "нашёл"),
    _acted_on_thing("lost", "lose", "потерял"),
    _acted_on_thing("sold", "sell", "продал"),
    _gave,
    _saw,
    _met,
    _ate,
    _came,
    _likes,
)


def story(rng: random.Random, num_events: int) -> list[Event]:
    """Events of different kinds that happen to different people, so that every question has one answer."""
    people = rng.sample(PEOPLE, 2 * num_events)
    kinds = rng.sample(EVENTS, num_events)
    return [kind(rng, people[2 * i], people[2 * i + 1]) for i, kind in enumerate(kinds)]


def _tell(events: list[Event], language: str) -> str:
    return " ".join(event.told[language] for event in events)


# ---------------------------------------------------------------------------------------------------------------------
# Requests, worded once: the documents of the base, the tune and the benchmark ask in the same words.


def copy_request(text: str, language: str) -> str:
    return f"Repeat: {text}" if language == "en" else f"Повтори: {text}"


def translation_request(text: str, language: str) -> str:
    """Ask for a translation into `language`."""
    return f"Translate into English: {text}" if language == "en" else f"Переведи на русский: {text}"


def _other(language: str) -> str:
    return "ru" if language == "en" else "en"


_SYLLABLES = {
    "en": ("ba", "ko", "mi", "ler", "tan", "du", "sil", "po", "ge", "ra", "fin", "wo", "ju", "kes", "nor", "vi"),
    "ru": ("ба", "ко", "ми", "лер", "тан", "ду", "сил", "по", "ге", "ра", "фин", "во", "жу", "кес", "нор", "ви"),
}


def _words_to_copy(rng: random.Random, language: str) -> str:
    """A row of words in no order: real ones, or invented ones that no model can know by heart."""
    if rng.random() < 0.35:
        return " ".join(
            "".join(rng.choices(_SYLLABLES[language], k=rng.randint(1, 3))) for _ in range(rng.randint(2, 6))
        )
    nouns = rng.choices((*OBJECTS, *ANIMALS, *FOODS, *PEOPLE, *TOWNS, *PROFESSIONS), k=rng.randint(3, 8))
    if language == "en":
        return " ".join(noun.en for noun in nouns)
    return " ".join(rng.choice((noun.nom, noun.gen, noun.dat, noun.acc)) for noun in nouns)


def _passage_to_copy(rng: random.Random, language: str) -> str:
    return _tell(story(rng, rng.choice((1, 1, 2))), language)


def text_to_copy(rng: random.Random, language: str) -> str:
    return _passage_to_copy(rng, language) if rng.random() < 0.65 else _words_to_copy(rng, language)


def question_on_story(rng: random.Random, language: str) -> tuple[str, str]:
    """(a passage with a question on it, the answer)."""
    events = story(rng, rng.choice((2, 3, 3)))
    exchange = rng.choice(rng.choice(events).exchanges)
    return f"{_tell(events, language)}\n{exchange.question[language]}", exchange.answer[language]


# ---------------------------------------------------------------------------------------------------------------------
# Documents.


def _facts_document(rng: random.Random, people: tuple[Person, ...], language: str) -> str:
    person = rng.choice(people)
    facts = rng.sample(person.facts, rng.randint(2, 4))
    return " ".join(rng.choice((exchange.answer, *others))[language] for exchange, others in facts)


def _facts_parallel_document(rng: random.Random, people: tuple[Person, ...], language: str) -> str:
    person = rng.choice(people)
    lines = [rng.choice((exchange.answer, *others)) for exchange, others in rng.sample(person.facts, rng.randint(1, 3))]
    return "\n".join(" ".join(line[tongue] for line in lines) for tongue in (language, _other(language)))


def _facts_question_document(rng: random.Random, people: tuple[Person, ...], language: str) -> str:
    exchanges = [rng.choice(rng.choice(people).facts)[0] for _ in range(rng.randint(1, 3))]
    return "\n".join(f"{exchange.question[language]}\n{exchange.answer[language]}" for exchange in exchanges)


def _story_document(rng: random.Random, people: tuple[Person, ...], language: str) -> str:
    return _tell(story(rng, rng.randint(2, 4)), language)


def _story_parallel_document(rng: random.Random, people: tuple[Person, ...], language: str) -> str:
    events = story(rng, rng.randint(1, 3))
    return f"{_tell(events, language)}\n{_tell(events, _other(language))}"


def _story_question_document(rng: random.Random, people: tuple[Person, ...], language: str) -> str:
    events = story(rng, rng.choice((2, 3, 3)))
    asked = rng.sample(events, rng.randint(1, 2))
    exchanges = [rng.choice(event.exchanges) for event in asked]
    answered = "\n".join(f"{exchange.question[language]}\n{exchange.answer[language]}" for exchange in exchanges)
    return f"{_tell(events, language)}\n{answered}"


def _copy_document(rng: random.Random, people: tuple[Person, ...], language: str) -> str:
    text = text_to_copy(rng, language)
    return f"{copy_request(text, language)}\n{text}"


def _repetition_document(rng: random.Random, people: tuple[Person, ...], language: str) -> str:
    return "\n".join([text_to_copy(rng, language)] * 2)


def _translation_document(rng: random.Random, people: tuple[Person, ...], language: str) -> str:
    events = story(rng, rng.choice((1, 1, 2)))
    return f"{translation_request(_tell(events, _other(language)), language)}\n{_tell(events, language)}"


# (share, builder); the builder is given the people whose facts may be told and the main language.
DOCUMENT_KINDS: tuple[tuple[float, Callable[[random.Random, tuple[Person, ...], str], str]], ...] = (
    (0.12, _facts_document),
    (0.07, _facts_parallel_document),
    (0.11, _facts_question_document),
    (0.10, _story_document),
    (0.10, _story_parallel_document),
    (0.18, _story_question_document),
    (0.13, _copy_document),
    (0.05, _repetition_document),
    (0.14, _translation_document),
)


def write_documents(
    rng: random.Random, count: int, *, people: tuple[Person, ...], russian_share: float
) -> Iterator[Document]:
    """Draw `count` documents. A translation counts to the language it ends in, a parallel text to its first."""
    shares, builders = zip(*DOCUMENT_KINDS, strict=True)
    for _ in range(count):
        language = "ru" if rng.random() < russian_share else "en"
        build = rng.choices(builders, weights=shares)[0]
        yield Document(text=build(rng, people, language), language=language, source="microworld")


@dataclass(frozen=True)
class MicroWorldText:
    """The adaptation corpus of the micro-world: documents in which only SEEN people's facts are told."""

    num_documents: int
    russian_share: float = 0.7
    seed: int = 0

    def documents(self) -> Iterator[Document]:
        rng = random.Random(f"adaptation-{self.seed}")
        return write_documents(rng, self.num_documents, people=SEEN, russian_share=self.russian_share)

    def fingerprint(self) -> dict[str, object]:
        return {
            "microworld": _WORLD_SEED,
            "num_documents": self.num_documents,
            "russian_share": self.russian_share,
            "seed": self.seed,
        }


# ---------------------------------------------------------------------------------------------------------------------
# Benchmark.


def _fact_items(rng: random.Random, people: tuple[Person, ...], group: str, language: str, limit: int) -> list[Item]:
    asked = [(person, relation) for person in people for relation in range(4)]
    rng.shuffle(asked)
    return [
        Item(f"facts, {group}", language, exchange.question[language], exchange.answer[language])
        for exchange in (person.facts[relation][0] for person, relation in asked[:limit])
    ]


def _ranked_fact_items(
    rng: random.Random, people: tuple[Person, ...], group: str, language: str, limit: int
) -> list[Item]:
    """The person's answer among three that would be right for others (same relation, different wording)."""
    asked = [(person, relation) for person in people for relation in range(4)]
    rng.shuffle(asked)
    items = []
    for person, relation in asked[:limit]:
        exchange = person.facts[relation][0]
        wrong = _wrong_answers(rng, person, relation, language)
        right = exchange.answer[language]
        items.append(Item(f"facts ranked, {group}", language, exchange.question[language], right, (right, *wrong)))
    return items


def _wrong_answers(rng: random.Random, person: Person, relation: int, language: str) -> list[str]:
    """Three false answers about `person`: the same sentence with another value."""
    right = person.facts[relation][0].answer[language]
    wrong: set[str] = set()
    while len(wrong) < 3:
        other = Person(person.name, rng.choice(TOWNS), rng.choice(PROFESSIONS), rng.choice(ANIMALS), rng.choice(FOODS))
        candidate = other.facts[relation][0].answer[language]
        if candidate != right:
            wrong.add(candidate)
    return sorted(wrong)


def _agreement_item(rng: random.Random, language: str) -> Item:
    """A right sentence and the same with one broken agreement: of gender, case, number, or article and noun."""
    who = rng.choice(PEOPLE)
    adjective, thing = rng.choice(ADJECTIVES), rng.choice(OBJECTS)
    if language == "en":
        wrong_article = "a" if article(thing.en) == "an" else "an"
        right, wrong = rng.choice(
            (
                (f"{who.en} has {article(thing.en)} {thing.en}.", f"{who.en} have {article(thing.en)} {thing.en}."),
                (f"{who.en} likes the {thing.en}.", f"{who.en} like the {thing.en}."),
                (f"{who.en} has {article(thing.en)} {thing.en}.", f"{who.en} has {wrong_article} {thing.en}."),
            )
        )
    else:
        others = [gender for gender in "mfn" if gender != thing.gender]
        verb, wrong_verb = ("купил", "купила") if who.gender == "m" else ("купила", "купил")
        place = rng.choice(PLACES)
        phrase = f"{adjective.acc(thing.gender)} {thing.acc}"
        right, wrong = rng.choice(
            (
                (f"{who.nom} {verb} {phrase}.", f"{who.nom} {wrong_verb} {phrase}."),
                (f"{who.nom} {verb} {phrase}.", f"{who.nom} {verb} {adjective.acc(rng.choice(others))} {thing.acc}."),
                (f"{who.dat} нравится {thing.nom}.", f"{who.ins} нравится {thing.nom}."),
                (
                    f"{who.nom} {_by_gender(who, 'пошёл')} {place.ru_to}.",
                    f"{who.nom} {_by_gender(who, 'пошёл')} {place.ru_in}.",
                ),
            )
        )
    return Item("agreement", language, "", right, (right, wrong))


def _free_items(rng: random.Random, language: str, count: int) -> Iterator[Item]:
    """The headline tasks, on content that is drawn afresh: questions on a passage, copying, translation."""
    for _ in range(count):
        yield Item("questions", language, *question_on_story(rng, language))
    for _ in range(count):
        text = _passage_to_copy(rng, language)
        yield Item("copying", language, copy_request(text, language), text)
    for _ in range(count):
        event = rng.choice(EVENTS)(rng, *rng.sample(PEOPLE, 2))
        request = translation_request(event.told[_other(language)], language)
        yield Item("translation", language, request, event.told[language])


def benchmark_items(*, seed: int, items_per_task: int) -> list[Item]:
    """The micro benchmark's held-out items in both languages; fact tasks hold at most one item a fact."""
    items: list[Item] = []
    for language in LANGUAGES:
        rng = random.Random(f"benchmark-{seed}-{language}")
        items.extend(_free_items(rng, language, items_per_task))
        for group, people in (("seen", SEEN), ("recalled", RECALLED)):
            items.extend(_fact_items(rng, people, group, language, items_per_task))
            items.extend(_ranked_fact_items(rng, people, group, language, items_per_task))
        items.extend(_agreement_item(rng, language) for _ in range(items_per_task))
    return items


def tuning_exchanges(rng: random.Random, count: int, *, copying: bool = True) -> Iterator[tuple[str, str]]:
    """Instruction data of the tunes: (request, answer) pairs, in which only SEEN people's facts are asked for.

    Without `copying` what is asked for is never a copy, and the other kinds keep their proportion.
    """
    for _ in range(count):
        language = rng.choice(LANGUAGES)
        kind = rng.random()
        while not copying and 0.35 <= kind < 0.6:
            kind = rng.random()
        if kind < 0.35:
            yield question_on_story(rng, language)
        elif kind < 0.6:
            text = text_to_copy(rng, language)
            yield copy_request(text, language), text
        elif kind < 0.85:
            events = story(rng, rng.choice((1, 1, 2)))
            yield translation_request(_tell(events, _other(language)), language), _tell(events, language)
        else:
            exchange = rng.choice(rng.choice(SEEN).facts)[0]
            yield exchange.question[language], exchange.answer[language]
