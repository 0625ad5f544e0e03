"""Write what the other steps measured on one page, which a browser shows without a network."""

from __future__ import annotations

import base64
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import srsly
import typer
from jinja2 import Environment, StrictUndefined
from spacy.tokens import Doc
from spacy.tokens import Span as DocSpan
from wasabi import msg

from common.corpora import read_docs
from common.errors import StepError, main
from common.formatting import (
    calibration_summary,
    describe_effort,
    describe_forecast,
    describe_search,
    describe_synthesis,
    describe_threshold,
    describe_whole,
    highlight,
    interval_text,
    percent,
    rows_of,
    tabulate_comparison,
    tabulate_continuing,
    tabulate_corruption,
    tabulate_curve,
    tabulate_effort,
    tabulate_parameters,
    tabulate_synthesis,
    tabulate_synthetic,
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
OPTIONAL = {  # those that most runs have not, because they take hours, or are about runs that go on from a pipeline
    "curve": "curve",
    "effort": "effort",
    "corrupt": "corrupt",
    "search": "search",
    "synthetic": "synthetic",
    "continuing": "continuing",
    "comparison": "compare",
}
EXAMPLES = 5  # texts of each kind that are quoted
QUOTE = 200  # characters of a text that was not kept
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
    corpus_folder: Annotated[
        Path | None, typer.Option("--corpus", help="Folder of the run's corpus, where synthesize may have written")
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
    for name, step in OPTIONAL.items():
        if record := read_json(metrics / f"{name}.json"):
            if any(record["inputs"].get(key, measured[key]) != measured[key] for key in (*SPLITS, "model")):
                msg.warn(f"Left out: {metrics}/{name}.json is of another corpus or model. Run {step}.")
            elif not record.get("summary", name not in ("synthetic", "continuing")):
                msg.warn(f"Left out: {metrics}/{name}.json is not finished. Run {step}.")
            else:
                results[name] = record
    if corpus_folder and (synthesis := read_json(corpus_folder / "synthetic.json")):
        if synthesis["inputs"]["train"] == measured["train"]:
            results["synthesis"] = synthesis | quote_texts(corpus_folder)
        else:
            msg.warn(f"Left out: {corpus_folder}/synthetic.json is of another corpus. Run synthesize.")
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
        a corpus of fewer than FEW documents `folds`, what audit found in all of them, empty if it has not; perhaps
        `synthesis`, what synthesize has written, with what `quote_texts` gives.
    RETURNS (str): HTML.
    """
    corpus, evaluation, analysis = (results[name] for name in ("corpus", "evaluation", "analysis"))
    training, tested = evaluation["training"], evaluation["test"]
    curve, effort, corrupt, search, synthetic, continuing, comparison = (results.get(name) for name in OPTIONAL)
    synthesis = results.get("synthesis")
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
        synthesis=synthesis,
        synthesis_summary=describe_synthesis(synthesis) if synthesis else "",
        synthesis_table=tabulate_synthesis(synthesis) if synthesis else None,
        synthetic_table=tabulate_synthetic(synthetic) if synthetic else None,
        continuing_table=tabulate_continuing(continuing) if continuing else None,
        whole=describe_whole(continuing) if continuing else "",
        comparison_table=tabulate_comparison(comparison) if comparison else None,
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
            if name not in ("analysis-examples", "folds", "synthesis")
        ],
    )


def quote_texts(corpus: Path) -> dict[str, Any]:
    """Quote what synthesize made, beside what people wrote.

    corpus (Path): Folder with train.spacy, and with synthetic.spacy and synthetic.jsonl.
    RETURNS (dict[str, Any]): `made` and `real`: HTML of some synthetic texts and of some sentences of train that have
        names, each in the order of its file; `thrown_away`: rows with a reason and the first text that was not kept for
        it.
    """
    made = read_docs(corpus / "synthetic.spacy")
    real = [sentence for doc in read_docs(corpus / "train.spacy") for sentence in doc.sents if sentence.ents]
    rejected: dict[str, str] = {}
    for line in srsly.read_jsonl(corpus / "synthetic.jsonl"):
        if line["verdict"] not in ("", "marked"):
            rejected.setdefault(line["verdict"], textwrap.shorten(line["text"], QUOTE, placeholder=" …"))
    return {"made": _quote(made), "real": _quote(real), "thrown_away": list(rejected.items())}


def _quote(texts: Sequence[Doc | DocSpan]) -> list[str]:
    """Some texts from all parts of a file, with their names marked."""
    chosen = texts[:: max(1, len(texts) // EXAMPLES)][:EXAMPLES]
    return [
        highlight(
            one.text,
            [
                {"start": ent.start_char - start, "end": ent.end_char - start, "label": ent.label_}
                for start in [one[0].idx]
                for ent in one.ents
            ],
        )
        for one in chosen
    ]


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
