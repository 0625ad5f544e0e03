"""Write what the other steps measured on one page, which a browser shows without a network."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import srsly
import typer
from jinja2 import Environment, StrictUndefined
from wasabi import msg

from common.errors import StepError, main
from common.formatting import (
    calibration_summary,
    describe_effort,
    describe_forecast,
    describe_search,
    describe_threshold,
    highlight,
    interval_text,
    percent,
    rows_of,
    tabulate_corruption,
    tabulate_curve,
    tabulate_effort,
    tabulate_parameters,
    tabulate_trials,
)
from common.records import SPLITS, read_json, staged, writes
from common.splits import FEW

NEEDED = {  # files of metrics and the steps that write them
    "corpus": "explore",
    "evaluation": "evaluate",
    "analysis": "analyze",
    "analysis-examples": "analyze",
    "concepts": "concepts",
}
OPTIONAL = ("curve", "effort", "corrupt", "search")  # which take hours, so that most runs have none
ERROR_KINDS = {
    "type": "the span is correct, the label is not",
    "boundary": "the label is correct, the span is not",
    "both": "neither is correct, but they overlap",
    "missed": "the pipeline has nothing there",
    "spurious": "the corpus has nothing there",
}


@writes("metrics")
def report(
    template: Annotated[Path, typer.Argument(help="Template of the page", exists=True)],
    metrics: Annotated[Path, typer.Argument(help="Folder of the run's metrics; report.html is written there")],
    audited: Annotated[
        Path | None, typer.Option(help="label-errors.json of audit, for a corpus of few documents")
    ] = None,
) -> None:
    """Write the report of a run."""
    results = {name: read_json(metrics / f"{name}.json") for name in NEEDED}
    for name, step in NEEDED.items():
        if not results[name]:
            raise StepError(f"{metrics} lacks {name}.json.", f"Run {step} first.")
    corpus, analysis = results["corpus"], results["analysis"]
    measured = analysis["inputs"]
    if any(corpus["inputs"][split] != measured[split] for split in SPLITS):
        raise StepError(
            f"{metrics}/corpus.json and analysis.json are of different corpora.", "Run explore and analyze."
        )
    for name in ("evaluation", "concepts"):
        if results[name]["inputs"]["model"] != measured["model"]:
            raise StepError(
                f"{metrics}/{name}.json and analysis.json are of different models.", f"Run {NEEDED[name]} and analyze."
            )
    for name in OPTIONAL:
        if record := read_json(metrics / f"{name}.json"):
            if all(record["inputs"].get(split, measured[split]) == measured[split] for split in SPLITS):
                results[name] = record
            else:
                msg.warn(f"Left out: {metrics}/{name}.json is of another corpus. Run {name}.")
    total = sum(corpus["splits"][split]["documents"] for split in SPLITS)
    if total < FEW:
        folds = read_json(audited) if audited else {}
        results["folds"] = folds if folds.get("documents") == total else {}
    page = render(template.read_text("utf8"), metrics, results)
    with staged(metrics, "report.html") as new:
        (new / "report.html").write_text(page, encoding="utf8")
    msg.good(f"Wrote {metrics / 'report.html'} ({len(page.encode()) / 1e6:.1f} MB)")


def render(template: str, metrics: Path, results: dict[str, dict[str, Any]]) -> str:
    """Render the page. Text of the corpus is escaped.

    template (str): A template of Jinja.
    metrics (Path): The folder with the figures, which has the name of the run.
    results (dict[str, dict[str, Any]]): The contents of the files NEEDED, and perhaps of those OPTIONAL, by name; for
        a corpus of fewer than FEW documents `folds`, what audit found in all of them, empty if it has not.
    RETURNS (str): HTML.
    """
    corpus, evaluation, analysis = (results[name] for name in ("corpus", "evaluation", "analysis"))
    training, tested = evaluation["training"], evaluation["test"]
    curve, effort, corrupt, search = (results.get(name) for name in OPTIONAL)
    captions = {name: results[name]["captions"] for name in ("corpus", "analysis")}
    figures = dict(read_figures(metrics / "figures", captions))
    for name in OPTIONAL:
        if caption := results.get(name, {}).get("captions", {}).get(name):
            figures[name] = read_figure(metrics / f"{name}.svg", caption, name)
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(template).render(
        run=metrics.resolve().name,
        percent=percent,
        interval_text=interval_text,
        calibration_summary=calibration_summary,
        corpus=corpus,
        evaluation=evaluation,
        shipped=tested["predicted_sentences"],
        calibration=tested["calibration"],
        figures=figures,
        size_table=tabulate_curve(curve) if curve else None,
        threshold=describe_threshold(curve) if curve else "",
        forecast=describe_forecast(curve) if curve else "",
        effort_table=tabulate_effort(effort) if effort else None,
        effort_summary=describe_effort(effort) if effort else "",
        few=FEW,
        folds=results.get("folds"),
        corrupt=corrupt,
        corrupt_table=tabulate_corruption(corrupt) if corrupt else None,
        finding_rows=[
            (
                f"{finding['score']:.3f}",
                finding["kind"],
                *(describe_entity(finding[side]) for side in ("annotated", "predicted")),
                finding["context"],
            )
            for finding in (read_json(metrics / "corrupt-examples.json").get("dev", []) if corrupt else [])
        ],
        search=search,
        search_summary=describe_search(search) if search else "",
        parameter_table=tabulate_parameters(search) if search else None,
        trial_table=tabulate_trials(search) if search else None,
        corpus_rows=list(rows_of(corpus)),
        repaired_rows=[
            (name, *(f"{corpus['repaired'][split].get(name, 0):,}" for split in SPLITS))
            for name in dict.fromkeys(name for repaired in corpus["repaired"].values() for name in repaired)
        ],
        divergence_rows=[
            (name, *(_number(corpus["against_train"][split]["divergence"][name]) for split in ("dev", "test")))
            for name in ("labels", "tags", "chunks")
        ],
        setting_rows=list(training.get("inputs", {}).get("settings", {}).items()),
        curve_rows=[
            (
                row["step"],
                row["epoch"],
                f"{row['learn_rate']:.1e}",
                *(part for split in ("train", "dev") for part in _token_scores(row[split])),
                percent(row["dev"].get("ents_f")),
            )
            for row in analysis["curves"]
        ],
        token_rows=[(split, *_token_scores(scores)) for split, scores in analysis["tokens"].items()],
        condition_rows=[
            (name.replace("_", " "), *(percent(evaluation[split][name]["ents_f"]) for split in ("dev", "test")))
            for name in ("predicted_sentences", "gold_sentences", "lower", "upper", "raw")
        ],
        label_rows=[
            (
                label,
                *(percent(scores[key]) for key in ("precision", "recall", "f1")),
                interval_text(scores),
                f"{scores['entities']:,}",
            )
            for label, scores in analysis["labels"].items()
        ],
        concept_rows=[
            (label, *(percent(scores[key]) for key in ("precision", "recall", "f1")), scores["spans"])
            for label, scores in results["concepts"]["labels"]["test"].items()
        ],
        error_rows=[(kind, f"{analysis['errors'][kind]['overall']:,}", what) for kind, what in ERROR_KINDS.items()],
        slice_rows=[
            (name, part, f"{scores['entities']:,}", *(percent(scores[key]) for key in ("precision", "recall", "f1")))
            for name, parts in analysis["slices"].items()
            for part, scores in parts.items()
        ],
        disagreements=[
            {
                "score": error["score"],
                **{
                    side: highlight(error["text"], [error[side]] if error[side] else [])
                    for side in ("corpus", "pipeline")
                },
            }
            for error in results["analysis-examples"]["most_confident_disagreements"]
        ],
        provenance_rows=[
            ("trained on", training.get("device", "–")),
            ("seconds of training", f"{training.get('seconds', 0):,}"),
            *training.get("versions", {}).items(),
        ],
        provenance=srsly.json_dumps(training, indent=2),
        input_rows=[
            (f"{name}.json", ", ".join(f"{what} {value[:8]}" for what, value in results[name]["inputs"].items()))
            for name in results
            if name not in ("analysis-examples", "folds")
        ],
    )


def describe_entity(entity: dict[str, Any] | None) -> str:
    """The text and the label of an entity, or a dash where there is none."""
    return f"{entity['text']} ({entity['label']})" if entity else "–"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _token_scores(scores: dict[str, float]) -> tuple[str, str]:
    return f"{scores['loss']:.3f}", f"{100 * scores['accuracy']:.2f} %"


def read_figures(folder: Path, captions: dict[str, dict[str, str]]) -> Iterator[tuple[str, dict[str, str]]]:
    """Read the figures as data URIs.

    folder (Path): The folder with a folder for each kind of figures.
    captions (dict[str, dict[str, str]]): The captions by kind and name.
    YIELDS (tuple[str, dict[str, str]]): Kind and name of a figure, joined by a hyphen; its `source` and `caption`.
    RAISES (StepError): If a figure is missing.
    """
    for kind, texts in captions.items():
        for name, caption in texts.items():
            yield f"{kind}-{name}", read_figure(folder / kind / f"{name}.svg", caption, "explore and analyze")


def read_figure(path: Path, caption: str, steps: str) -> dict[str, str]:
    """Read a figure as a data URI.

    path (Path): The figure.
    caption (str): Its caption.
    steps (str): Which steps draw it.
    RETURNS (dict[str, str]): `source` and `caption`.
    RAISES (StepError): If it is missing.
    """
    if not path.exists():
        raise StepError(f"{path} is missing.", f"Run {steps} again.")
    source = f"data:image/svg+xml;base64,{base64.b64encode(path.read_bytes()).decode()}"
    return {"source": source, "caption": caption}


if __name__ == "__main__":
    main(report)
