"""Write the tables of README.md and docs/ from the published metrics and from project.yml, so that nobody types them.

A figure that was measured with other code than the present one gets a dagger, so that no figure outlives its code.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from wasabi import msg

from common.errors import StepError, main
from common.formatting import (
    describe_effort,
    describe_forecast,
    describe_threshold,
    describe_whole,
    interval_text,
    percent,
    score_rows,
    tabulate_continuing,
    tabulate_corruption,
    tabulate_curve,
    tabulate_effort,
    tabulate_synthetic,
)
from common.published import DAGGER, NEEDED, PROCESSORS, Run, find_present, read_metrics
from common.scaling import tabulate_scaling

START, END = "<!-- TABLES START: written by `document` -->", "<!-- TABLES END -->"
LEGEND = f"{DAGGER} Measured with other code than the present one."

SHIPPED = [
    "run",
    "corpus",
    "encoder",
    "dev F1",
    "dev F1 (gold sentences)",
    "test F1",
    "test F1 (gold sentences)",
    "sentences F1",
    "part of speech",
    "chunks F1",
    "training",
    "wheel",
]
CONDITIONS = [
    "run (test)",
    "F1 (gold sentences)",
    "all lower case",
    "ALL UPPER CASE",
    "raw text",
    "F1 of its tokens",
    "by spaCy's own rules",
    "calibration error",
    "threshold for a precision on dev",
    "precision on test",
    "recall on test",
]
ABLATION = [
    "pipeline",
    "seeds",
    "dev F1 (gold sentences)",
    "test F1 (gold sentences)",
    "as shipped",
    "all lower case",
    "ALL UPPER CASE",
    "raw text",
    "calibration error",
    "precision and recall at the threshold",
    "ours is better by",
]


def document(
    readme: Annotated[Path, typer.Argument(help="README.md", exists=True, dir_okay=False)],
    docs: Annotated[Path, typer.Argument(help="Folder with results.md, performance.md, commands.md", exists=True)],
    project: Annotated[Path, typer.Argument(help="project.yml", exists=True)],
    config: Annotated[Path, typer.Argument(help="Training config", exists=True)],
    runs: Annotated[list[Path], typer.Argument(help="Folders of metrics, one for each run, in the order of the table")],
) -> None:
    """Write the tables of results, speed and commands into README.md and docs/."""
    present = find_present(project, config)
    found = [read_metrics(folder, present) for folder in runs]
    tables = {
        readme: tabulate_overview(found),
        docs / "results.md": tabulate_results(found),
        docs / "performance.md": tabulate_performance(
            [read_metrics(folder, present, name) for folder in runs for name in PROCESSORS if (folder / name).exists()]
        ),
        docs / "commands.md": tabulate_commands(project),
    }
    texts = {path: insert(path, text) for path, text in tables.items()}
    for path, text in texts.items():
        path.write_text(text, encoding="utf8")
    msg.good(f"Wrote the tables of {', '.join(str(path) for path in tables)}")
    for run in found:
        if run.stale:
            msg.warn(f"{run.name}: measured with other code than the present one: {', '.join(sorted(run.stale))}")


def tabulate_overview(runs: list[Run]) -> str:
    """The table of README.md, in Markdown: F1 and speed of each run, beside the usual ways to use the same encoder."""
    rows, notes = [], []
    for run in runs:
        evaluation = run.records["evaluation"]
        usual = run.records.get("ablation", {}).get("summary", {}).get("usual fine-tune")
        figures = [
            run.mark("test", percent(run.records["test"]["ents_f"])),
            run.mark("evaluation", percent(evaluation["test"]["gold_sentences"]["ents_f"])),
            run.mark("ablation", percent(usual["test"]["gold_sentences"]["mean"]), "older" in usual) if usual else "–",
        ]
        if speed := run.records.get("speed"):
            figures += [run.mark("speed", _words(speed, name)) for name in ("default", speed["reference"])]
            notes.append(compare_with_others(run))
        else:
            figures += ["–", "–"]
        rows.append([f"`{run.name}`", evaluation["corpus"], evaluation["encoder"], *figures])
    header = [
        "run",
        "corpus",
        "encoder",
        "test F1, as shipped",
        "test F1, gold sentences",
        "usual fine-tune, gold sentences",
        "words/s",
        "spacy-transformers, words/s",
    ]
    return _explain(_join(_table(header, rows), *notes))


def compare_with_others(run: Run) -> str:
    """A sentence on where the words per second were measured, and what others reach with the same encoder."""
    speed, full = run.records["speed"], run.records.get("training-full")
    parts = [f"Words/s of `{run.name}`: {_machine(speed)}, dtype {speed['default_dtype']}."]
    rates = [
        f"{title} annotates {run.mark('speed', _words(speed, name))} words/s"
        for name, title in {"flair": "Flair", "span-marker": "SpanMarker"}.items()
        if "words_per_second" in speed["contenders"].get(name, {})
    ]
    if rates:
        parts.append(f"With the same encoder and an untrained head, {' and '.join(rates)}.")
    if full and "explosion" in full["contenders"]:
        ours, theirs = (run.mark("training-full", percent(full["contenders"][k]["f1"])) for k in ("ours", "explosion"))
        parts.append(
            f"After {full['epochs']} epochs, the config of explosion's `ner_conll03` with this encoder reaches "
            f"{theirs} dev F1, and ours {ours}."
        )
    return " ".join(parts)


def _words(speed: dict[str, Any], name: str) -> str:
    return f"{speed['contenders'][name]['words_per_second']['median']:,.0f}"


def tabulate_results(runs: list[Run]) -> str:
    """The tables of docs/results.md, in Markdown: each run by condition and by label, and what its parts are worth."""
    shipped, conditions, labels, concepts = [], [], [], []
    for run in runs:
        test, evaluation, package, marked = (run.records[name] for name in NEEDED)
        name, dev, trained = f"`{run.name}`", evaluation["dev"], evaluation["training"]
        shipped.append(
            [
                name,
                evaluation["corpus"],
                evaluation["encoder"],
                *(
                    run.mark("evaluation", percent(dev[key]["ents_f"]))
                    for key in ("predicted_sentences", "gold_sentences")
                ),
                run.mark("test", percent(test["ents_f"])),
                run.mark("evaluation", percent(evaluation["test"]["gold_sentences"]["ents_f"])),
                *(run.mark("test", percent(test.get(key))) for key in ("sents_f", "tag_acc", "spans_chunks_f")),
                run.mark("evaluation", f"{trained['seconds'] / 60:.0f} min on {trained['device']}"),
                run.mark("package", f"{package['bytes'] / 1e6:.0f} MB"),
            ]
        )
        tested = evaluation["test"]
        calibration = tested["calibration"]
        figures = [
            *(percent(tested[key]["ents_f"]) for key in ("gold_sentences", "lower", "upper", "raw")),
            *(percent(tested["raw"][key]) for key in ("token_f1", "plain_token_f1")),
            f"{calibration['expected_calibration_error']:.3f}",
            f"{calibration['threshold']:.2f} for {100 * calibration['min_precision']:g}%",
            *(percent(calibration[key]) for key in ("precision", "recall")),
        ]
        conditions.append([name, *(run.mark("evaluation", figure) for figure in figures)])
        for label, *scores in score_rows(test):
            labels.append([name, label, *(run.mark("test", score) for score in scores)])
        for label, found in marked["labels"]["test"].items():
            figures = [percent(found[key]) for key in ("precision", "recall", "f1")]
            concepts.append(
                [name, marked["sentences"]["test"], label, *(run.mark("concepts", figure) for figure in figures)]
            )
    tables = [
        _table(SHIPPED, shipped),
        _table(CONDITIONS, conditions),
        _table(["run (test)", "label", "precision", "recall", "F1"], labels),
        _table(["run", "held-out sentences", "concept", "precision", "recall", "F1"], concepts),
        *(tabulate_ablation(run) for run in runs if "ablation" in run.records),
        *(tabulate_sizes(run) for run in runs if "curve" in run.records),
        *(tabulate_work(run) for run in runs if "effort" in run.records),
        *(tabulate_errors(run) for run in runs if "corrupt" in run.records),
        *(tabulate_texts(run) for run in runs if "synthetic" in run.records),
        *(tabulate_further(run) for run in runs if "continuing" in run.records),
    ]
    return _join(*map(_explain, tables))


def tabulate_ablation(run: Run) -> str:
    """A table in Markdown: the pipeline with several seeds, the usual fine-tune, and the pipeline without its parts."""
    columns = ("gold_sentences", "predicted_sentences", "lower", "upper", "raw")
    rows = []
    for name, entry in run.records["ablation"]["summary"].items():
        test = [_mean(entry["test"].get(column)) for column in columns]
        test[0] += f" ({interval_text(entry)})"
        calibration, gain = entry.get("calibration"), entry.get("gain")
        worth = ["–", "–"]
        if calibration:
            precision, recall = (percent(calibration.get(key)) for key in ("precision", "recall"))
            worth = [f"{calibration['expected_calibration_error']:.3f}", f"{precision} and {recall}"]
        gained = f"{percent(gain['mean'])} ({interval_text(gain)})" if gain else "–"
        figures = [_mean(entry["dev"]["gold_sentences"]), *test, *worth, gained]
        rows.append([name, entry["seeds"], *(run.mark("ablation", figure, "older" in entry) for figure in figures)])
    title = f"`{run.name}`: mean over seeds ± standard deviation, and the 95% interval over the documents of test."
    return _join(title, _table(ABLATION, rows))


def tabulate_sizes(run: Run) -> str:
    """A figure and a table in Markdown: test F1 of this pipeline and others by the number of training documents."""
    curve = run.records["curve"]
    draws = max(point["draws"] for points in curve["summary"].values() for point in points)
    title = f"`{run.name}`, test F1 with gold sentences: mean of {draws} draws (lowest to highest)."
    text = " ".join(filter(None, (title, describe_threshold(curve), describe_forecast(curve))))
    return _join(text, _figure(run, "curve"), _mark_table(run, "curve", *tabulate_curve(curve)))


def tabulate_work(run: Run) -> str:
    """A figure and a table in Markdown: what annotating costs and buys, with suggestions and by the order of work."""
    effort = run.records["effort"]
    draws = max(point["draws"] for points in effort["summary"].values() for point in points)
    title = (
        f"`{run.name}`, a simulated annotator: test F1 with gold sentences, mean of {draws} draws (lowest to highest), "
        "and keys and clicks for an entity of the batch that came last."
    )
    text = f"{title} {describe_effort(effort)}".strip()
    return _join(text, _figure(run, "effort"), _mark_table(run, "effort", *tabulate_effort(effort)))


def tabulate_errors(run: Run) -> str:
    """A table in Markdown: how many labels that were corrupted on purpose are among the first findings of audit."""
    corrupt = run.records["corrupt"]
    title = (
        f"`{run.name}`, {percent(corrupt['share'])}% of the labels of train corrupted on purpose, and the first "
        f"{corrupt['first']:,} findings of `audit`, by pipelines of {corrupt['folds']} folds."
    )
    return _join(title, _mark_table(run, "corrupt", *tabulate_corruption(corrupt)))


def tabulate_texts(run: Run) -> str:
    """A table in Markdown: what synthetic texts bring where there are few training documents."""
    title = (
        f"`{run.name}`, test F1 with gold sentences, mean of the draws, with synthetic texts beside the training "
        "documents; in brackets how much more that is than without, with its 95% interval over the documents of test."
    )
    return _join(title, _mark_table(run, "synthetic", *tabulate_synthetic(run.records["synthetic"]), names=3))


def tabulate_further(run: Run) -> str:
    """A table in Markdown: what a pipeline learns and forgets when it goes on with a few documents."""
    continuing = run.records["continuing"]
    title = f"`{run.name}`, test F1 of a pipeline that goes on from one trained without {continuing['label']}."
    text = f"{title} {describe_whole(continuing)}"
    return _join(text, _mark_table(run, "continuing", *tabulate_continuing(continuing), names=3))


def _figure(run: Run, name: str) -> str:
    return f"![{run.records[name]['captions'][name]}](../metrics/reference/{run.name}/{name}.svg)"


def _mark_table(run: Run, record: str, header: list[str], rows: list[list[str]], names: int = 1) -> str:
    """A table whose first columns name what its figures are of."""
    return _table(header, [[*row[:names], *(run.mark(record, figure) for figure in row[names:])] for row in rows])


def _mean(scores: dict[str, Any] | None) -> str:
    if scores is None:
        return "–"
    return percent(scores["mean"]) + (f" ± {100 * scores['sd']:.1f}" if scores["sd"] is not None else "")


def tabulate_performance(runs: list[Run]) -> str:
    """The tables of docs/performance.md, in Markdown: speed, starts, memory and service of each run that has them."""
    tables = []
    for run in runs:
        if "speed" in run.records:
            tables += [tabulate_speed(run), tabulate_starts(run)]
        if "service" in run.records:
            tables.append(tabulate_service(run))
        if "training" in run.records:
            tables.append(tabulate_training(run))
        if "corpora" in run.records:
            tables.append(tabulate_corpora(run))
    return _join(*map(_explain, tables))


def tabulate_speed(run: Run) -> str:
    """Words per second of this pipeline and of other ways to use its encoder."""
    speed = run.records["speed"]
    reference = speed["reference"]
    rows = []
    for name, result in speed["contenders"].items():
        figures = ["this machine cannot", "–", "–", "–"]
        if "words_per_second" in result:
            share = result.get("share_of_bare_encoder")
            figures = [
                _rate(result),
                f"{result[f'ratio_to_{reference}']:.2f}",
                "–" if share is None else f"{share:.2f}",
                percent(result["f1"]),
            ]
        rows.append([name, *(run.mark("speed", figure) for figure in figures)])
    title = (
        f"`{run.name}`, annotating {speed['words']:,} words of dev on {_machine(speed)}: medians of "
        f"{len(speed['contenders'][reference]['repetitions'])} (lowest to highest). "
        f"The default dtype is {speed['default_dtype']} there."
    )
    header = [
        "annotating",
        "words/s",
        f"ratio to {reference}",
        "share of the bare encoder's speed",
        "dev F1 (these documents)",
    ]
    return _join(title, _table(header, rows))


def tabulate_starts(run: Run) -> str:
    """How long a start and a sentence take, and how much memory a stream of text."""
    speed = run.records["speed"]
    medians, sentence = speed["starts"]["medians"], speed["starts"]["sentence"]
    rows = [
        ["one sentence, warm, p50 and p99", " and ".join(f"{1000 * sentence[key]:.1f} ms" for key in ("p50", "p99"))],
        ["`spacy.load` after imports", f"{medians['load_after_imports']:.1f} s"],
        ["process start to first entity", f"{medians['process_to_first_entity']:.1f} s"],
        *(
            [f"peak memory, annotating a stream of {once['megabytes']:g} MB of text", f"{once['peak_rss_mb']:,.0f} MB"]
            for once in speed["memory"]
        ),
    ]
    return _table(
        [f"`{run.name}` on {_machine(speed)}", ""], [[name, run.mark("speed", figure)] for name, figure in rows]
    )


def tabulate_service(run: Run) -> str:
    """What the service bears."""
    service = run.records["service"]
    statuses = service["statuses"]
    answered, refused = (statuses.get(status, 0) for status in ("200", "429"))
    p50, p95 = (f"{1000 * service[f'seconds_{name}']:.0f} ms" for name in ("p50", "p95"))
    rows = [
        ["answers per second", f"{service['answers_per_second']:.0f}"],
        ["time of an answer, p50 and p95", f"{p50} and {p95}"],
        ["requests told to come again (429)", f"{refused:,}"],
        ["errors", f"{sum(statuses.values()) - answered - refused:,}"],
        ["memory before and after", " and ".join(f"{service['rss_mb'][key]:,.0f} MB" for key in ("before", "after"))],
    ]
    title = f"`{run.name}`, service, {service['clients']} clients for {service['seconds']:.0f} s on {_machine(service)}"
    return _table([title, ""], [[name, run.mark("service", figure)] for name, figure in rows])


def tabulate_training(run: Run) -> str:
    """Words per second in training; F1 after whole epochs, where that was measured."""
    record, full = run.records["training"], run.records.get("training-full", {})
    ours = record["contenders"]["ours"]["words_per_second"]["median"]
    rows = []
    for name, result in record["contenders"].items():
        ratio = result["words_per_second"]["median"] / ours
        figures = [_rate(result), f"{ratio:.2f}", f"{result['peak_rss_mb']:,} MB"]
        score = percent(full["contenders"].get(name, {}).get("f1")) if full else "–"
        rows.append([name, *(run.mark("training", figure) for figure in figures), run.mark("training-full", score)])
    after = f"dev F1 after {full['epochs']} epochs of the whole corpus" if full else "dev F1 after whole epochs"
    header = [f"`{run.name}`, training on {_machine(record)}", "words/s", "ratio to ours", "peak memory", after]
    return _table(header, rows)


def tabulate_corpora(run: Run) -> str:
    """How fast the engines of annotate-corpus are, in how much memory, and what a large corpus costs."""
    record = run.records["corpora"]
    title = (
        f"`{run.name}`, annotating a corpus of {record['documents']:,} documents and {record['words']:,} words by "
        f"`annotate-corpus` on {_machine(record)}, dtype {record['default_dtype']}."
    )
    return _join(title, *(_mark_table(run, "corpora", *table) for table in tabulate_scaling(record)))


def tabulate_commands(project: Path) -> str:
    """The commands and workflows of project.yml, in Markdown.

    `spacy project document` writes the same, but its link to project.yml works in the project's folder only.
    """
    config = yaml.safe_load(project.read_text("utf8"))
    commands = [[f"`{command['name']}`", f"{command['help']}."] for command in config["commands"]]
    workflows = [
        [f"`{name}`", " → ".join(f"`{step}`" for step in steps)] for name, steps in config["workflows"].items()
    ]
    return _join(_table(["command", "what it does"], commands), _table(["workflow", "its commands"], workflows))


def _machine(record: dict[str, Any]) -> str:
    machine = record["machine"]
    kind = f" ({machine['instructions']}{', simulated' * machine['simulated']})" if "instructions" in machine else ""
    return f"{machine['cpus']} cores of {machine['cpu']}{kind}"


def _rate(result: dict[str, Any]) -> str:
    median, least, most = (result["words_per_second"][key] for key in ("median", "min", "max"))
    return f"{median:,.0f} ({least:,.0f} to {most:,.0f})"


def _table(header: list[str], rows: Iterable[Iterable[Any]]) -> str:
    return "\n".join(f"| {' | '.join(map(str, row))} |" for row in (header, ["---"] * len(header), *rows))


def _explain(text: str) -> str:
    """Tables, with a line that explains the dagger if they have one."""
    return f"{text}\n\n{LEGEND}" if DAGGER in text else text


def _join(*parts: str) -> str:
    return "\n\n".join(part for part in parts if part)


def insert(path: Path, tables: str) -> str:
    """The text of a file with other tables between its marks.

    RAISES (StepError): If the marks are not there.
    """
    before, start, rest = path.read_text("utf8").partition(START)
    _, end, after = rest.partition(END)
    if not (start and end):
        raise StepError(f"{path} has no place for tables: {START} … {END}", "Put these two lines into the file.")
    return f"{before}{start}\n\n{tables}\n\n{end}{after}"


if __name__ == "__main__":
    main(document)
