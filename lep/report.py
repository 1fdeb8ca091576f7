"""What people read of a run: the table on the terminal and the page in the browser, both from its record alone.

Comes in: a `Result`, whose free-form sections hold plain data (the keys read are named where they are read). Goes out:
a rich table, and one HTML file that needs no network. A section that the record does not have is left out.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, FunctionLoader, Template
from rich import box
from rich.console import Group
from rich.table import Table

from lep.charts import Chart, line_chart
from lep.results import BITS, TOTAL, Result, Row, Score

SMALLEST_BITS = 0.0005  # per byte: a difference that would be shown as nothing
LANGUAGES = {"ru": "Russian", "en": "English"}
STOPS = {
    "end of turn": "end-of-turn token",
    "other end token": "another end token",
    "newline": "new line instead",
    "never": "never (out of budget)",
}
DIAGNOSTICS = {
    "rows": "rows used",
    "held_out_rows": "rows held out",
    "held_out_r2": "held-out R²",
    "held_out_r2_of_change": "held-out R² of the change",
    "condition_number": "condition number",
    "ridge": "ridge",
    "ridge_added": "ridge added to the diagonal",
    "map_change": "map's distance from 1",
    "relative_drift": "instruct's drift from the base",
    "relative_addition": "size of what is added",
    "kept_rows": "rows kept from instruct",
}
VOCABULARY_COSTS = {
    "characters_per_token": "characters a token",
    "characters_per_pre_token": "the most that any vocabulary could reach",
    "tokens_per_word": "tokens a word",
    "pre_tokens_per_word": "the fewest, by the pre-tokenizer",
}
VOCABULARY_GUARANTEES = {
    "unreachable_tokens": "tokens that no text gives",
    "unicode_characters_lost": "Unicode characters that do not come back",
    "digits_per_token": "digits a token, at most",
}
# What the suite `fair` says of a language beside the columns of the table: of its texts, and of writing.
FAIR = {
    ("text", "bits_per_character"): "bits a character",
    ("text", "tokens_per_word"): "tokens a word",
    ("text", "characters"): "characters of text",
    ("speed", "characters_per_second"): "characters a second, writing",
    ("speed", "tokens_per_second"): "tokens a second, writing",
    ("speed", "prefill_characters_per_second"): "characters a second, reading the prompts",
}
END_OF_TURN = {
    "won_in_original": "wins in the original",
    "won_before": "wins after propagation",
    "won_after": "wins after the repair",
    "wrongly_won_before": "wins inside answers, before",
    "wrongly_won_after": "wins inside answers, after",
    "relative_change": "change of its row",
}


def terminal_table(result: Result, *, width: int = 100) -> Group:
    """A block a model, a line a language; tasks, then the text measures. Too narrow a terminal has it in parts."""
    spoken = languages(result)
    columns = list(dict.fromkeys(task for language in spoken for task in tasks(result, language)))
    cells = {
        task: [_terminal_score(row.scores.get(f"{task}/{language}")) for row, language in _lines(result)]
        for task in columns
    }
    measures = [_terminal_measures(row, language) for row, language in _lines(result)]
    cells |= {name: [line[i] for line in measures] for i, name in enumerate(("chars a token", "bits a byte"))}
    room = width - max((len(row.name) for row in result.rows), default=0) - 4  # names, language, and spaces beside them
    # Words of a header break where that saves a second table; a number never does.
    roomy, tight = (_parts(cells, room, longest_word) for longest_word in (11, 8))
    parts = tight if len(tight) == 1 < len(roomy) else roomy
    return Group(*(part for found in parts for part in (_block_table(result, cells, found), "")))


def _parts(cells: Mapping[str, Sequence[str]], room: int, longest_word: int) -> list[dict[str, int]]:
    """Columns with their widths, in as few tables as have room for them."""
    parts, left = [dict[str, int]()], room
    for name, values in cells.items():
        width = max([*map(len, values), min(longest_word, max(map(len, name.split())))])
        if width + 1 > left and parts[-1]:
            parts.append({})
            left = room
        parts[-1][name], left = width, left - width - 1
    return parts


def _lines(result: Result) -> list[tuple[Row, str]]:
    return [(row, language) for row in result.rows for language in languages(result)]


def _block_table(result: Result, cells: Mapping[str, Sequence[str]], widths: Mapping[str, int]) -> Table:
    spoken = languages(result)
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=0)
    table.add_column("", no_wrap=True)
    table.add_column("", no_wrap=True)
    for name, width in widths.items():
        table.add_column(name, justify="right", width=width, overflow="fold")
    for number, (row, language) in enumerate(_lines(result)):
        table.add_row(
            "" if language != spoken[0] else row.name,
            language,
            *(cells[name][number] for name in widths),
            style="bold" if row.name == "original" else None,
            end_section=language == spoken[-1],
        )
    return table


def vocabulary_tables(result: Result) -> Group:
    """Tables for a terminal: the vocabularies with what they guarantee, and characters a token by domain."""
    facts = vocabulary_facts(result.tokenizer)
    tables = [_terminal_columns("Vocabulary, on held-out text", facts["names"], facts["lines"])]
    if facts["domains"]:
        tables.append(_terminal_columns("Characters a token by source", facts["names"], facts["domains"]))
    return Group(*(part for table in tables for part in (table, "")), *(f"{line}." for line in facts["sentences"]))


def _terminal_columns(title: str, names: Sequence[str], lines: Sequence[tuple[str, Sequence[str]]]) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    table.add_column("")  # on a narrow terminal the labels break, never a number
    for name in names:
        table.add_column(name, justify="right", no_wrap=True, min_width=7)
    for label, values in lines:
        table.add_row(label, *values)
    return table


def vocabulary_facts(tokenizer: Mapping[str, Any]) -> dict[str, Any]:
    """result.tokenizer as columns of vocabularies: their names, lines of (label, values), lines by domain, sentences.

    Keys read: "before", "after", "others" (name -> report), "operator", "change", "made".
    """
    if not (tokenizer.get("before") and tokenizer.get("after")):
        return {"names": [], "lines": [], "domains": [], "sentences": []}
    columns = {"before": tokenizer["before"], "after": tokenizer["after"], **tokenizer.get("others", {})}
    reports = list(columns.values())
    spoken = [language for language in reports[0]["languages"] if all(language in r["languages"] for r in reports)]
    lines = [("tokens", [number(report["size"]) for report in reports])]
    for key, label in VOCABULARY_COSTS.items():
        for language in spoken:
            values = [report["languages"][language].get(key) for report in reports]
            if None not in values:
                lines.append((f"{label}, {language_name(language)}", [f"{value:.2f}" for value in values]))
    lines.append(("share of the vocabulary used, %", [percent(report["share_used"]) for report in reports]))
    for key, label in VOCABULARY_GUARANTEES.items():
        if all(key in report for report in reports):
            lines.append((label, [number(report[key]) for report in reports]))
    domains = list(dict.fromkeys(name for report in reports for name in report.get("domains", {})))
    return {
        "names": list(columns),
        "lines": lines,
        # One source alone says what the languages have said.
        "domains": [
            (name, [f"{report['domains'][name]['characters_per_token']:.2f}" for report in reports]) for name in domains
        ]
        if len(domains) > 1
        else [],
        "sentences": _vocabulary_sentences(tokenizer),
    }


def _vocabulary_sentences(tokenizer: Mapping[str, Any]) -> list[str]:
    """What became of the old tokens, where the rows of the new ones come from, and how these were made."""
    sentences = []
    if change := tokenizer.get("change"):
        sentences.append(
            f"Of {number(change['old_tokens'])} old tokens, {number(change['kept_tokens'])} are kept, "
            f"{number(change['kept_ids'])} under their old ids"
        )
    if operator := tokenizer.get("operator"):
        sentences.append(
            f"Rows of T: {number(operator['exact'])} tokens are old tokens, {number(operator['composed'])} composed of "
            f"them, {number(operator['special'])} are special or stand for nothing; together they draw on "
            f"{number(operator['distinct_old_rows'])} of {number(operator['old_tokens'])} old rows"
        )
    if made := tokenizer.get("made"):
        sentences.append("Made: " + ", ".join(f"{name} {value}" for name, value in facts(made)))
    return sentences


def write_report(result: Result, path: Path, *, configuration: str = "") -> None:
    """Write the page. configuration: the run's resolved YAML, shown as it is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(render_report(result, configuration=configuration), encoding="utf-8")


def render_report(result: Result, *, configuration: str = "") -> str:
    """The page as HTML. Everything from the record is escaped."""
    comparisons = result.comparisons
    return page_template("report.html.jinja").render(
        result=result,
        configuration=configuration,
        languages=languages(result),
        score_tables=[_score_table(result, language) for language in languages(result)],
        highlights=_highlights(result),
        text_rows=[
            row for row in result.rows if row.bits_per_byte or row.characters_per_token or "speed" in row.details
        ],
        verdict=verdict(comparisons),
        comparisons=sorted(comparisons, key=lambda c: (not _beyond_noise(c), -abs(c["difference"]))),
        beyond_noise=_beyond_noise,
        incomplete_sentences=incomplete_sentences(result),
        unequal_sentences=unequal_sentences(result),
        fair_lines=fair_lines(result),
        calibration_sentences=calibration_sentences(result),
        charts=_charts(result.training.get("curve", [])),
        stops=_stops(result.rows),
        stop_names=STOPS,
        vocabulary=vocabulary_facts(result.tokenizer),
        diagnostics=_diagnostics(result.propagation),
        turn_ends=_turn_ends(result.propagation),
        facts={
            "Corpus": facts(result.corpus),
            "Training": facts({k: v for k, v in result.training.items() if k != "curve"}),
            "Calibration": facts(_calibration_facts(result.calibration)),
            "Exports": facts(
                {
                    name: of["export"]
                    for name, of in (*result.propagation.items(), *result.calibration.items())
                    if "export" in of
                }
            ),
            "Artifacts": facts(result.artifacts),
            "Time and memory": facts(result.timings),
            "Environment": facts(result.environment),
        },
    )


def page_template(name: str) -> Template:
    """A template of the package, which escapes what it is given and may include the others."""
    loader = FunctionLoader(lambda other: files("lep").joinpath(other).read_text(encoding="utf-8"))
    environment = Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"change": change, "number": number, "percent": percent, "language": language_name}
    return environment.get_template(name)


def verdict(comparisons: Sequence[Mapping[str, Any]]) -> list[str]:
    """Where the rules differ beyond the noise and where not, in sentences, from paired 95 % intervals over items.

    comparisons: dicts {task: "task/language", a, b, difference, low, high, n}, shares, difference = a minus b.
    """
    if not comparisons:
        return []
    bits = [c for c in comparisons if _of_bits(c)]
    comparisons = [c for c in comparisons if not _of_bits(c)]
    return _verdict_on_tasks(comparisons) + _verdict_on_texts(bits)


def _verdict_on_texts(comparisons: Sequence[Mapping[str, Any]]) -> list[str]:
    apart = sorted(filter(_beyond_noise, comparisons), key=lambda c: -abs(c["difference"]))
    if comparisons and not apart:
        return ["Bits per byte of held-out text do not differ beyond the noise."]
    large = [c for c in apart if abs(c["difference"]) >= SMALLEST_BITS]
    small = [c for c in apart if c not in large]
    told = [_difference_sentence(c) for c in large]
    if small:
        told.append(
            f"{_count(small, 'difference')} on held-out text are beyond the noise and below {SMALLEST_BITS} {BITS}."
            if len(small) > 1
            else f"One difference on held-out text is beyond the noise and below {SMALLEST_BITS} {BITS}."
        )
    return told


def _verdict_on_tasks(comparisons: Sequence[Mapping[str, Any]]) -> list[str]:
    if not comparisons:
        return []
    tasks = list(dict.fromkeys(c["task"] for c in comparisons))
    names = list(dict.fromkeys(name for c in comparisons for name in (c["a"], c["b"])))
    apart = sorted(filter(_beyond_noise, comparisons), key=lambda c: -abs(c["difference"]))
    sentences = [_difference_sentence(c) for c in apart]
    level = [task for task in tasks if task not in {c["task"] for c in apart}]
    if level:
        which = (
            "On every task" if not apart else f"On the other {_count(level, 'task')} ({_listed(map(task_name, level))})"
        )
        sentences.append(f"{which} {_listed(names)} do not differ beyond the noise.")
    widest = max(comparisons, key=lambda c: c["high"] - c["low"])
    sentences.append(
        f"The intervals reach up to ±{_points((widest['high'] - widest['low']) / 2)} points, so smaller differences "
        f"can be there unseen; and of the {_count(comparisons, 'comparison')} one in twenty would leave the noise by "
        "chance alone."
    )
    return sentences


def incomplete_sentences(result: Result) -> list[str]:
    """Suites that were not judged whole, by row: what is missing, and how many items a task had."""
    found = []
    for row in result.rows:
        about = row.details.get("darumeru")
        if about and not about["complete"]:
            missing = f"; missing: {', '.join(about['missing'])}" if about["missing"] else ""
            limit = f"; {about['limit']} items a task" if about["limit"] else ""
            found.append(f"Darumeru of {row.name}{limit}{missing}")
    return found


def unequal_sentences(result: Result) -> list[str]:
    """Where models were not asked alike, as their contexts had room for other numbers of examples, or cut prompts."""
    asked = {row.name: row.details["darumeru"]["tasks"] for row in result.rows if "darumeru" in row.details}
    found = []
    for task in dict.fromkeys(task for of in asked.values() for task in of):
        for key, what in (("shots", "examples before a question, on average"), ("prompts_cut", "prompts cut short")):
            values = {name: of[task][key] for name, of in asked.items() if key in of.get(task, {})}
            if len({*values.values()}) > 1:
                each = ", ".join(f"{name} {number(value)}" for name, value in values.items())
                found.append(f"{task}: {what}: {each}; fewer shots, or a longer context, ask all alike")
    return found


def fair_lines(result: Result) -> list[tuple[str, list[str]]]:
    """(label, a value for each row) of what the suite `fair` measured beside the table's columns."""
    lines = []
    for language in languages(result):
        for (part, key), label in FAIR.items():
            values = [row.details.get(f"{part}/{language}", {}).get(key) for row in result.rows]
            if any(value is not None for value in values):
                lines.append((f"{label}, {language_name(language)}", [number(value) for value in values]))
    return lines


def calibration_sentences(result: Result) -> list[str]:
    """What each calibration gained over all tasks of a language, and how much of the gap to the original it closed."""
    return [
        _gain_sentence(row, of["before"], gain)
        for row, of in result.calibration.items()
        for gain in of["gains"]
        if gain["task"].startswith(f"{TOTAL}/")
    ]


def _gain_sentence(row: str, before: str, gain: Mapping[str, Any]) -> str:
    share, language = gain["recovered"], language_name(gain["task"].rpartition("/")[2])
    gap = "there is no gap to the original beyond the noise"
    if share:
        part, low, high = (f"{100 * share[key]:.0f}" for key in ("share", "low", "high"))
        gap = f"{part} % of the gap to the original ({low} to {high})"
    low, high = (f"{100 * gain[key]:+.1f}" for key in ("low", "high"))
    return (
        f"{row}, {language}, {TOTAL}: {percent(gain['after'])}, {before} {percent(gain['before'])}: "
        f"{100 * gain['difference']:+.1f} points (95 % interval {low} to {high}, n\u00a0=\u00a0{gain['n']}); {gap}"
    )


def _calibration_facts(calibration: Mapping[str, Any]) -> dict[str, Any]:
    """What each was tuned on and how, without the tables and the curve that are shown elsewhere."""
    shown = ("gains", "against", "curve", "export", "before", "by")
    return {row: {key: value for key, value in of.items() if key not in shown} for row, of in calibration.items()}


def languages(result: Result) -> list[str]:
    """Languages of the scores and text measures, in order of appearance, Russian first if it is there."""
    found = [key.rpartition("/")[2] for row in result.rows for key in row.scores]
    found += [language for row in result.rows for language in (*row.characters_per_token, *row.bits_per_byte)]
    return sorted(dict.fromkeys(found), key=lambda language: language != "ru")


def tasks(result: Result, language: str) -> list[str]:
    """Tasks that any model was scored on in this language, in order of appearance."""
    keys = [key.rpartition("/") for row in result.rows for key in row.scores]
    return list(dict.fromkeys(task for task, _, of in keys if of == language))


def task_name(key: str) -> str:
    """Such as “copying” in Russian."""
    task, _, language = key.rpartition("/")
    return f"“{task}” in {language_name(language)}"


def language_name(code: str) -> str:
    return LANGUAGES.get(code, code)


def facts(section: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Name and value of every plain entry of a nested section; long lists are counted instead of shown."""
    found: list[tuple[str, str]] = []
    for key, value in section.items():
        name = f"{prefix}{str(key).replace('_', ' ')}"
        if isinstance(value, Mapping):
            found += facts(value, f"{name} · ")
        elif isinstance(value, (list, tuple)):
            short = len(value) <= 6 and all(isinstance(item, (str, int, float)) for item in value)
            found.append((name, ", ".join(map(number, value)) if short else _count(value, "entry")))
        else:
            found.append((name, number(value)))
    return found


def number(value: Any) -> str:
    """A value for people: four significant digits, thousands apart, yes and no for truth values, a dash for none."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int) or (isinstance(value, float) and 10_000 <= abs(value) < 1e9):
        return f"{value:,.0f}".replace(",", "\u202f")
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def percent(value: float | None) -> str:
    return "–" if value is None or math.isnan(value) else f"{100 * value:.1f}"


def _terminal_measures(row: Row, language: str) -> tuple[str, str]:
    characters, bits = row.characters_per_token.get(language), row.bits_per_byte.get(language)
    return "–" if characters is None else f"{characters:.2f}", "–" if bits is None else f"{bits.value:.3f}"


def _terminal_score(score: Score | None) -> str:
    if score is None:
        return "–"
    value = percent(score.value).replace("100.0", "100")
    return value if math.isnan(score.stderr) else f"{value}±{percent(score.stderr)}"


def _score_table(result: Result, language: str) -> dict[str, Any]:
    names = tasks(result, language)
    counts = {
        task: {row.scores[key].n for row in result.rows if (key := f"{task}/{language}") in row.scores}
        for task in names
    }
    return {
        "language": language,
        "tasks": [{"name": task, "n": ", ".join(map(str, sorted(counts[task])))} for task in names],
        "rows": [
            {"name": row.name, "scores": [row.scores.get(f"{task}/{language}") for task in names]}
            for row in result.rows
        ],
    }


def _highlights(result: Result) -> list[dict[str, str]]:
    """The vocabulary's gain at a glance: characters a token, first model against last, in each language."""
    rows = [row for row in result.rows if row.characters_per_token]
    if len(rows) < 2:
        return []
    first, last = rows[0].characters_per_token, rows[-1].characters_per_token
    return [
        {
            "label": f"characters a token, {language_name(language)}",
            "before": f"{first[language]:.2f}",
            "after": f"{last[language]:.2f}",
        }
        for language in languages(result)
        if language in first and language in last
    ]


def _beyond_noise(comparison: Mapping[str, Any]) -> bool:
    return comparison["low"] > 0 or comparison["high"] < 0


def _difference_sentence(comparison: Mapping[str, Any]) -> str:
    bits, sign = _of_bits(comparison), 1 if comparison["difference"] > 0 else -1
    better, worse = (comparison["a"], comparison["b"])[:: -sign if bits else sign]
    figures = (abs(comparison["difference"]), *sorted(sign * comparison[edge] for edge in ("low", "high")))
    size, low, high = (f"{figure:.3f}" if bits else _points(figure) for figure in figures)
    where = (
        f"held-out {language_name(comparison['task'].rpartition('/')[2])}" if bits else task_name(comparison["task"])
    )
    return (
        f"On {where}, {better} is better than {worse} by {size} {BITS if bits else 'points'} (95 % interval {low} to "
        f"{high}, n\u00a0=\u00a0{comparison['n']})."
    )


def _points(share: float) -> str:
    return f"{100 * share:.1f}"


def change(comparison: Mapping[str, Any], key: str) -> str:
    """A figure of a comparison with its sign: points, or bits per byte."""
    value = comparison[key]
    return f"{value:+.3f} bits" if _of_bits(comparison) else f"{100 * value:+.1f}"


def _of_bits(comparison: Mapping[str, Any]) -> bool:
    return comparison["task"].startswith(f"{BITS}/")


def _count(things: Sequence[Any], noun: str) -> str:
    plural = noun[:-1] + "ies" if noun.endswith("y") else noun + "s"
    return f"{len(things)} {noun if len(things) == 1 else plural}"


def _listed(names: Iterable[str]) -> str:
    *most, last = names
    return f"{', '.join(most)} and {last}" if most else last


def _stops(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """How each model's written answers ended, over all tasks: from details[task/language]["stopped"], shares."""
    found = []
    for row in rows:
        parts = [
            (row.scores[key].n, detail["stopped"])
            for key, detail in row.details.items()
            if key in row.scores and isinstance(detail, Mapping) and "stopped" in detail
        ]
        if total := sum(n for n, _ in parts):
            shares = {stop: sum(n * stopped.get(stop, 0) for n, stopped in parts) / total for stop in STOPS}
            found.append({"name": row.name, "shares": shares, "n": total})
    return found


def _diagnostics(propagation: Mapping[str, Any]) -> dict[str, Any]:
    """propagation[rule]["input" | "output"] = {name: number}: a line a rule and table, a column a number."""
    lines = [
        {"rule": rule, "table": table, "values": values}
        for rule, tables in propagation.items()
        for table, values in tables.items()
        if table in ("input", "output")
    ]
    keys = dict.fromkeys(key for line in lines for key in line["values"])
    known = [key for key in DIAGNOSTICS if key in keys]
    return {"lines": lines, "columns": {key: DIAGNOSTICS.get(key, key.replace("_", " ")) for key in [*known, *keys]}}


def _turn_ends(propagation: Mapping[str, Any]) -> dict[str, Any]:
    """propagation[rule]["end of turn"]: what became of the token that ends an answer, and of its repair."""
    lines = [{"rule": rule, "values": of["end of turn"]} for rule, of in propagation.items() if of.get("end of turn")]
    return {"lines": lines, "columns": END_OF_TURN}


def _charts(curve: Sequence[Mapping[str, float]]) -> list[Chart]:
    """From training["curve"]: rows {step, "train/loss"} and {step, "val/bits_per_byte/LANGUAGE"}."""
    loss = [(row["step"], row["train/loss"]) for row in curve if row.get("train/loss") is not None]
    bits: dict[str, list[tuple[float, float]]] = {}
    for row in curve:
        for key, value in row.items():
            if key.startswith("val/bits_per_byte/") and value is not None:
                bits.setdefault(language_name(key.rpartition("/")[2]), []).append((row["step"], value))
    charts = [("Training loss (nats a token)", {"loss": loss}), ("Bits per byte on held-out text", bits)]
    return [
        line_chart(title, lines, x_label="training steps")
        for title, lines in charts
        if any(len(points) > 1 for points in lines.values())
    ]
