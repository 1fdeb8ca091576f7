"""A study laid out at Weights & Biases: `python -m lep.saved_view STUDY --entity NAME` saves a report of it there.

Comes in: the name of a study whose runs were logged there (`logger=[csv,wandb]`, online or synced). Goes out: a report
with a table of the runs, scores against what a token holds, curves, and where the runs' configs differ. Needs
`pip install 'lep[wandb-report]'` and `wandb login`. It names what `lep.loggers` logs, and reads no run.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from wandb_workspaces import expr  # type: ignore[import-not-found]
from wandb_workspaces.reports.v2 import interface as wr  # type: ignore[import-not-found]

PROJECT = "lep"
# What runs are sorted by: the option of a config group, or any other value of the config.
BY = "choices.tokenizer"
WIDE = wr.Layout(w=24, h=10)


def lay_out(
    study: str, *, entity: str, project: str = PROJECT, by: str = BY, languages: Sequence[str] = ("ru", "en")
) -> wr.Report:
    """The report of a study, not yet saved.

    by: the key of the config that the bars group runs by, so that seeds become one bar. languages: the one that the
    vocabulary was made for comes first.
    """
    blocks = [
        wr.H1(study),
        wr.P("The best propagated model of each run: shares of right answers, bits a byte, characters a token."),
        wr.PanelGrid(runsets=[runs(study, by, languages)], panels=figures(by, languages)),
        wr.H2("Training"),
        wr.PanelGrid(runsets=[runs(study, by, languages)], panels=curves(languages)),
        wr.H2("Every model and rule"),
        wr.PanelGrid(runsets=[runs(study, by, languages)], panels=details()),
    ]
    return wr.Report(entity=entity, project=project, title=f"lep: {study}", blocks=blocks, width="fluid")


def runs(study: str, by: str, languages: Sequence[str]) -> wr.Runset:
    """The runs of a study, best first, with the columns that compare them."""
    group, _, option = by.partition(".")
    return wr.Runset(
        name=study,
        filters=expr.And(expr.Metric("Group") == study),
        order=[wr.OrderBy(wr.SummaryMetric(f"best/score/{languages[0]}"), ascending=False)],
        pinned_columns=[f"config:{group}.value" + (f".{option}" if option else "")],
        visible_columns=["run:state", "config:seed.value", *(f"summary:{name}" for name in compared(languages))],
        lock_columns=True,
    )


def compared(languages: Sequence[str]) -> list[str]:
    """Names of the figures in the table of runs."""
    of_language = ("best/score", "original/score", "best/bits_per_byte", "characters_per_token")
    return [
        "best/model",
        *(f"{name}/{language}" for name in of_language for language in languages),
        "tokens_per_second",
        "seconds",
    ]


def figures(by: str, languages: Sequence[str]) -> list[wr.PanelTypes]:
    """Bars with standard errors over the runs that share `by`; scores against characters a token, a point a run."""
    bars = [
        wr.BarPlot(
            title=f"{title}, {language}",
            metrics=[wr.SummaryMetric(f"{name}/{language}")],
            groupby=wr.Config(by),
            groupby_aggfunc="mean",
            groupby_rangefunc="stderr",
        )
        for name, title in (("best/score", "score"), ("best/bits_per_byte", "bits a byte"))
        for language in languages
    ]
    points = [
        wr.ScatterPlot(
            title=f"score against characters a token, {language}",
            x=wr.SummaryMetric(f"characters_per_token/{language}"),
            y=wr.SummaryMetric(f"best/score/{language}"),
        )
        for language in languages
    ]
    return [*bars, *points]


def curves(languages: Sequence[str]) -> list[wr.PanelTypes]:
    """What changes in training, against the step."""
    measures = {f"val/bits_per_byte/{language}": f"bits a byte, {language}" for language in languages}
    measures |= {"train/loss": "loss a token (not comparable across vocabularies)", "train/tokens_per_second": "speed"}
    return [wr.LinePlot(title=title, x="trainer/global_step", y=[name]) for name, title in measures.items()]


def details() -> list[wr.PanelTypes]:
    """Tables of scores, diagnostics and answers, and where configs differ."""
    tables = [
        wr.WeavePanelSummaryTable(table_name=name, layout=WIDE) for name in ("benchmark", "propagation", "answers")
    ]
    return [*tables, wr.RunComparer(diff_only="split", layout=WIDE)]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", help="the group of the runs")
    parser.add_argument("--entity", required=True, help="whose project it is: a user or a team")
    parser.add_argument("--project", default=PROJECT)
    parser.add_argument("--by", default=BY, help="a key of the config by which bars group the runs")
    parser.add_argument("--languages", nargs="+", default=["ru", "en"])
    given = parser.parse_args(arguments)
    report = lay_out(given.study, entity=given.entity, project=given.project, by=given.by, languages=given.languages)
    print(report.save().url)


if __name__ == "__main__":
    main()
