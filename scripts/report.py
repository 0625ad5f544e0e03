"""Put what the other steps measured on one page that a browser shows without a network."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import srsly
import typer
from jinja2 import Environment, StrictUndefined
from wasabi import msg

from scripts.analyze import FIGURES as ANALYSIS_FIGURES
from scripts.application import highlight
from scripts.explore import FIGURES as CORPUS_FIGURES
from scripts.explore import rows_of
from scripts.package import interval_text, percent, worth_of_scores
from scripts.steps import SPLITS, StepError, read_json, run, staged, writes

NEEDED = {
    "corpus": "explore",
    "evaluation": "evaluate",
    "analysis": "analyze",
    "analysis-examples": "analyze",
    "concepts": "concepts",
}
KINDS = {
    "type": "the span is right, the label is not",
    "boundary": "the label is right, the span is not",
    "both": "neither is right, but they overlap",
    "missed": "the pipeline has nothing there",
    "spurious": "the corpus has nothing there",
}


@writes("metrics")
def report(
    template: Annotated[Path, typer.Argument(help="Template of the page", exists=True)],
    metrics: Annotated[Path, typer.Argument(help="Folder of the run's metrics; report.html is written there")],
) -> None:
    """Write the report of a run."""
    results = {name: read_json(metrics / f"{name}.json") for name in NEEDED}
    for name, step in NEEDED.items():
        if not results[name]:
            raise StepError(f"{metrics} lacks {name}.json.", f"Run {step} first.")
    corpus, analysis = results["corpus"], results["analysis"]
    if corpus["sha256"].get("test") != analysis["test"]:
        raise StepError(
            f"{metrics}/corpus.json and analysis.json are of different corpora.", "Run explore and analyze."
        )
    if results["evaluation"]["training"].get("made_from", {}) != analysis["model"]:
        raise StepError(
            f"{metrics}/evaluation.json and analysis.json are of different models.", "Run evaluate, analyze."
        )
    page = render(template.read_text("utf8"), metrics, results)
    with staged(metrics, "report.html") as new:
        (new / "report.html").write_text(page, encoding="utf8")
    msg.good(f"Wrote {metrics / 'report.html'} ({len(page.encode()) / 1e6:.1f} MB)")


def render(template: str, metrics: Path, results: dict[str, dict[str, Any]]) -> str:
    """The page. Whatever comes from the corpus is escaped.

    template (str): For Jinja.
    metrics (Path): Folder with the figures; its name is that of the run.
    results (dict[str, dict[str, Any]]): By name those NEEDED.
    RETURNS (str): HTML.
    """
    corpus, evaluation, analysis = (results[name] for name in ("corpus", "evaluation", "analysis"))
    training, tested = evaluation["training"], evaluation["test"]
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(template).render(
        run=metrics.resolve().name,
        percent=percent,
        worth_of_scores=worth_of_scores,
        corpus=corpus,
        evaluation=evaluation,
        shipped=tested["predicted_sentences"],
        calibration=tested["calibration"],
        figures=dict(read_figures(metrics / "figures")),
        corpus_rows=list(rows_of(corpus)),
        repaired_rows=[
            (name, *(f"{corpus['repaired'][split].get(name, 0):,}" for split in SPLITS))
            for name in dict.fromkeys(name for found in corpus["repaired"].values() for name in found)
        ],
        divergence_rows=[
            (name, *(_number(corpus["against_train"][split]["divergence"][name]) for split in ("dev", "test")))
            for name in ("labels", "tags", "chunks")
        ],
        setting_rows=list(training.get("made_from", {}).get("settings", {}).items()),
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
                *(percent(scores[key]) for key in ("precision", "recall", "f")),
                interval_text(scores),
                f"{scores['entities']:,}",
            )
            for label, scores in analysis["labels"].items()
        ],
        concept_rows=[
            (label, *(percent(scores[key]) for key in ("precision", "recall", "f")), scores["spans"])
            for label, scores in results["concepts"]["labels"]["test"].items()
        ],
        error_rows=[(kind, f"{analysis['errors'][kind]['in all']:,}", what) for kind, what in KINDS.items()],
        slice_rows=[
            (name, part, f"{scores['entities']:,}", *(percent(scores[key]) for key in ("precision", "recall", "f")))
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
        origin_rows=[
            ("trained on", training.get("device", "–")),
            ("seconds of training", f"{training.get('seconds', 0):,}"),
            *training.get("versions", {}).items(),
        ],
        origin=srsly.json_dumps(training, indent=2),
    )


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _token_scores(scores: dict[str, float]) -> tuple[str, str]:
    return f"{scores['loss']:.3f}", f"{100 * scores['accuracy']:.2f} %"


def read_figures(folder: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """The figures as data URIs, with the docstring of what drew them as caption.

    YIELDS (tuple[str, dict[str, str]]): Name, and `source` and `caption`.
    RAISES (StepError): If one is missing.
    """
    for kind, figures in {"corpus": CORPUS_FIGURES, "analysis": ANALYSIS_FIGURES}.items():
        for name, draw in figures.items():
            path = folder / kind / f"{name}.svg"
            if not path.exists():
                raise StepError(f"{path} is missing.", "Run explore and analyze again.")
            source = f"data:image/svg+xml;base64,{base64.b64encode(path.read_bytes()).decode()}"
            yield f"{kind}-{name}", {"source": source, "caption": draw.__doc__ or name}


if __name__ == "__main__":
    run(report)
