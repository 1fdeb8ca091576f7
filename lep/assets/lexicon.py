"""The words of the micro-world: English, and Russian with its cases and agreement.

Nouns, names and adjectives are declined by rule; only words that follow a rule (or state their stem) are listed.
A `Noun` holds the six singular cases, so that every sentence template can ask for the form that grammar wants.
"""

from __future__ import annotations

from dataclasses import dataclass

CASES = ("nom", "gen", "dat", "acc", "ins", "pre")


@dataclass(frozen=True)
class Noun:
    """A noun or a name: its English word, its Russian gender ("m", "f", "n") and its six singular cases."""

    en: str
    gender: str
    nom: str
    gen: str
    dat: str
    acc: str
    ins: str
    pre: str


@dataclass(frozen=True)
class Place:
    """A place: English with its article and preposition, Russian with the preposition it takes (в, на, во)."""

    en_to: str
    en_in: str
    ru_to: str
    ru_in: str


# What each declension puts after the stem, in the order of CASES; the accusative of masculine nouns is set apart below.
_ENDINGS = {
    "m": ("", "а", "у", None, "ом", "е"),  # стол
    "m-hush": ("", "а", "у", None, "ем", "е"),  # заяц, with an unstressed ending after a sibilant or ц
    "m-soft": ("ь", "я", "ю", None, "ем", "е"),  # Игорь
    "m-y": ("й", "я", "ю", None, "ем", "е"),  # Андрей
    "f": ("а", "ы", "е", "у", "ой", "е"),  # лампа
    "f-velar": ("а", "и", "е", "у", "ой", "е"),  # книга
    "f-hush": ("а", "и", "е", "у", "ей", "е"),  # каша
    "f-ts": ("а", "ы", "е", "у", "ей", "е"),  # курица
    "f-soft": ("я", "и", "е", "ю", "ей", "е"),  # Катя
    "f-iya": ("я", "и", "и", "ю", "ей", "и"),  # Мария
    "f-sign": ("ь", "и", "и", "ь", "ью", "и"),  # Рязань
    "n": ("о", "а", "у", "о", "ом", "е"),  # яблоко
    "n-soft": ("е", "я", "ю", "е", "ем", "е"),  # варенье
}


def _stem_and_class(nominative: str, stem: str | None, gender: str | None) -> tuple[str, str]:
    """The stem and the declension that a nominative belongs to, by its last letters."""
    last = nominative[-1]
    body = nominative[:-1]
    if last == "а":
        declension = (
            "f-velar" if body[-1] in "гкх" else "f-ts" if body[-1] == "ц" else "f-hush" if body[-1] in "жшчщ" else "f"
        )
    elif last == "я":
        declension = "f-iya" if body[-1] == "и" else "f-soft"
    elif last == "о":
        declension = "n"
    elif last == "е":
        declension = "n-soft"
    elif last == "й":
        declension = "m-y"
    elif last == "ь":
        declension = "f-sign" if gender == "f" else "m-soft"
    else:
        body = nominative
        declension = "m-hush" if last in "ц" else "m"
    return stem or body, declension


def noun(en: str, nominative: str, *, stem: str | None = None, gender: str | None = None, alive: bool = False) -> Noun:
    """Decline a Russian noun. `stem`: one that loses its vowel; `alive`: its masculine accusative is the genitive."""
    oblique, declension = _stem_and_class(nominative, stem, gender)
    forms = [nominative] + [oblique + (ending or "") for ending in _ENDINGS[declension][1:]]
    if declension.startswith("m"):
        forms[3] = forms[1] if alive else nominative
    elif declension == "f-sign":
        forms[3] = nominative
    return Noun(en, declension[0], *forms)


@dataclass(frozen=True)
class Adjective:
    """A hard adjective, by its English word and the Russian stem; `ы` or `и` or `о` opens the masculine ending."""

    en: str
    stem: str
    masculine: str

    def nom(self, gender: str) -> str:
        return self.stem + {"m": self.masculine, "f": "ая", "n": "ое"}[gender]

    def acc(self, gender: str) -> str:
        """Accusative beside an inanimate noun."""
        return self.stem + {"m": self.masculine, "f": "ую", "n": "ое"}[gender]


def _adjective(en: str, masculine: str) -> Adjective:
    return Adjective(en, masculine[:-2], masculine[-2:])


_MEN = """Иван Ivan|Антон Anton|Борис Boris|Денис Denis|Максим Maxim|Роман Roman|Виктор Victor|Олег Oleg
Степан Stepan|Марк Mark|Егор Egor|Руслан Ruslan|Игорь Igor|Андрей Andrey|Сергей Sergey|Николай Nikolay"""
_WOMEN = """Анна Anna|Вера Vera|Лена Lena|Нина Nina|Ирина Irina|Марина Marina|Светлана Svetlana|Полина Polina
Галина Galina|Тамара Tamara|Лариса Larisa|Ольга Olga|Катя Katya|Юля Yulya|Мария Maria|Дарья Darya"""
_TOWNS = """Рязань Ryazan|Тула Tula|Москва Moscow|Самара Samara|Казань Kazan|Пермь Perm|Уфа Ufa|Вологда Vologda
Тверь Tver|Саратов Saratov|Ростов Rostov|Псков Pskov|Томск Tomsk|Курск Kursk|Мурманск Murmansk|Воронеж Voronezh"""
_PROFESSIONS = """врач doctor|повар cook|юрист lawyer|инженер engineer|пилот pilot|актёр actor|библиотекарь librarian
садовник gardener|музыкант musician|художник artist|программист programmer|водитель driver|учитель teacher
строитель builder|журналист journalist|переводчик translator"""
_ANIMALS = """кошка cat|собака dog|корова cow|коза goat|белка squirrel|курица hen|черепаха turtle|лошадь horse
кролик rabbit|попугай parrot|хомяк hamster|медведь bear|утка duck|волк wolf|олень deer|обезьяна monkey"""
_FOODS = """хлеб bread|суп soup|рис rice|сыр cheese|каша porridge|рыба fish|капуста cabbage|картошка potato
морковь carrot|молоко milk|мясо meat|масло butter|варенье jam|шоколад chocolate|торт cake|малина raspberry"""
_OBJECTS = """лампа lamp|книга book|чашка cup|тарелка plate|картина picture|сумка bag|шапка cap|рубашка shirt
гитара guitar|машина car|лодка boat|игрушка toy|корзина basket|коробка box|подушка pillow
газета newspaper|карта map|тетрадь notebook|дверь door|стол table|стул chair|диван sofa
шкаф wardrobe|телефон telephone|велосипед bicycle|самолёт plane|чемодан suitcase|зонт umbrella
карандаш pencil|журнал magazine|фонарик flashlight|ковёр carpet|барабан drum|зеркало mirror
кресло armchair|одеяло blanket|колесо wheel|кольцо ring|ведро bucket|окно window"""
_ADJECTIVES = """красный red|чёрный black|белый white|зелёный green|жёлтый yellow|серый grey|новый new|старый old
красивый beautiful|тяжёлый heavy|круглый round|деревянный wooden|дешёвый cheap|странный strange|чистый clean|большой big
дорогой expensive|маленький little|мягкий soft|яркий bright"""

_STEMS = {"ковёр": "ковр"}
_FEMININE_SIGN = {"Рязань", "Казань", "Пермь", "Тверь", "лошадь", "морковь", "тетрадь", "дверь"}
# Masculine nouns in a sibilant with an unstressed ending take -ем; the rule of the spelling cannot see the stress.
_STRESSED_ELSEWHERE = {"Воронеж"}


def _nouns(block: str, *, alive: bool = False) -> tuple[Noun, ...]:
    found = []
    for entry in block.replace("\n", "|").split("|"):
        nominative, en = entry.split()
        gender = "f" if nominative in _FEMININE_SIGN else None
        word = noun(en, nominative, stem=_STEMS.get(nominative), gender=gender, alive=alive)
        if nominative in _STRESSED_ELSEWHERE:
            word = Noun(word.en, word.gender, word.nom, word.gen, word.dat, word.acc, nominative + "ем", word.pre)
        found.append(word)
    return tuple(found)


MEN = _nouns(_MEN, alive=True)
WOMEN = _nouns(_WOMEN, alive=True)
PEOPLE = MEN + WOMEN
TOWNS = _nouns(_TOWNS)
PROFESSIONS = _nouns(_PROFESSIONS, alive=True)
ANIMALS = _nouns(_ANIMALS, alive=True)
FOODS = _nouns(_FOODS)
OBJECTS = _nouns(_OBJECTS)
ADJECTIVES = tuple(
    _adjective(en, ru) for ru, en in (entry.split() for entry in _ADJECTIVES.replace("\n", "|").split("|"))
)

PLACES = tuple(
    Place(f"to the {en}", f"{en_in} the {en}", f"{ru_to}", f"{ru_in}")
    for en, en_in, ru_to, ru_in in (
        ("park", "in", "в парк", "в парке"),
        ("shop", "in", "в магазин", "в магазине"),
        ("school", "in", "в школу", "в школе"),
        ("library", "in", "в библиотеку", "в библиотеке"),
        ("theatre", "in", "в театр", "в театре"),
        ("museum", "in", "в музей", "в музее"),
        ("hospital", "in", "в больницу", "в больнице"),
        ("forest", "in", "в лес", "в лесу"),
        ("garden", "in", "в сад", "в саду"),
        ("restaurant", "in", "в ресторан", "в ресторане"),
        ("kitchen", "in", "на кухню", "на кухне"),
        ("market", "at", "на рынок", "на рынке"),
        ("station", "at", "на вокзал", "на вокзале"),
        ("stadium", "at", "на стадион", "на стадионе"),
        ("street", "in", "на улицу", "на улице"),
        ("yard", "in", "во двор", "во дворе"),
    )
)

# When something happened: opens the sentence, in both languages.
TIMES = (
    ("On Monday", "В понедельник"),
    ("On Tuesday", "Во вторник"),
    ("On Wednesday", "В среду"),
    ("On Thursday", "В четверг"),
    ("On Friday", "В пятницу"),
    ("On Saturday", "В субботу"),
    ("On Sunday", "В воскресенье"),
    ("Yesterday", "Вчера"),
    ("Today", "Сегодня"),
    ("Recently", "Недавно"),
    ("In the morning", "Утром"),
    ("In the evening", "Вечером"),
)


def article(word: str) -> str:
    """The English indefinite article before `word`."""
    return "an" if word[0] in "aeiou" else "a"
