"""Write the results in README.md from the reference runs in metrics/, so that no figure there is typed by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from wasabi import msg

from scripts.package import percent, score_rows
from scripts.steps import StepError, read_json, run

START, END = "<!-- RESULTS START: written by `document` -->", "<!-- RESULTS END -->"


def document(
    readme: Annotated[Path, typer.Argument(help="File to write into", exists=True)],
    runs: Annotated[list[Path], typer.Argument(help="Folders of metrics, one a run, in the order of the table")],
) -> None:
    """Write the tables of results and speed into a README."""
    readme.write_text(insert(readme.read_text("utf8"), report(runs)), encoding="utf8")
    msg.good(f"Wrote the results of {', '.join(path.name for path in runs)} into {readme}")


def report(runs: list[Path]) -> str:
    """All tables: the results of the runs, and accuracy and speed of those that were benchmarked."""
    tables = [results(runs)]
    tables += [accuracies(path) for path in runs if (path / "accuracy.json").exists()]
    tables += [speeds(path) for path in runs if (path / "speed.json").exists()]
    return "\n\n".join(tables)


def results(runs: list[Path]) -> str:
    """Tables in Markdown with a row for each run: as shipped, under other conditions; then scores by label.

    runs (list[Path]): Folders with test.json, evaluation.json, package.json and concepts.json.
    RAISES (StepError): If one has no results.
    """
    rows, conditions, labels = [], [], []
    wanted = ""
    for path in runs:
        names = ("test", "evaluation", "package", "concepts")
        test, evaluation, package, marked = (read_json(path / f"{name}.json") for name in names)
        if not (test and evaluation and package and marked):
            lacking = ", ".join(f"{name}.json" for name in names if not (path / f"{name}.json").exists())
            raise StepError(f"{path} lacks {lacking or 'results'}.", "Run all for it first.")
        dev, training = evaluation["dev"], evaluation["training"]
        figures = [
            percent(dev["predicted_sentences"]["ents_f"]),
            percent(dev["gold_sentences"]["ents_f"]),
            percent(test["ents_f"]),
            percent(evaluation["test"]["gold_sentences"]["ents_f"]),
            percent(test.get("sents_f")),
            percent(test.get("tag_acc")),
        ]
        made = f"{training['seconds'] / 60:.0f} min on {training['device']}, {package['bytes'] / 1e6:.0f} MB"
        rows.append(
            f"| `{path.name}` | {evaluation['corpus']} | {evaluation['encoder']} | {' | '.join(figures)} | {made} |"
        )
        tested = evaluation["test"]
        calibration = tested["calibration"]
        wanted = f"{100 * calibration['wanted']:g}%"
        figures = [percent(tested[name]["ents_f"]) for name in ("gold_sentences", "lower", "upper", "raw")]
        figures += [percent(tested["raw"][name]) for name in ("token_f", "plain_token_f")]
        figures += [f"{calibration['expected_calibration_error']:.3f}", f"{calibration['threshold']:.2f}"]
        figures += [percent(calibration[name]) for name in ("precision", "recall")]
        conditions.append(f"| `{path.name}` | {' | '.join(figures)} |")
        scores = ", ".join(f"{label} {' / '.join(figures)}" for label, *figures in score_rows(test)[:-1])
        labels.append(f"- `{path.name}`, test, precision / recall / F by label: {scores}.")
        concepts = ", ".join(
            f"{label} {' / '.join(percent(scores[key]) for key in ('precision', 'recall', 'f'))}"
            for label, scores in marked["labels"]["test"].items()
        )
        held_out = f"{marked['sentences']['test']} sentences marked by hand and held out"
        labels.append(f"- `{path.name}`, concepts in {held_out}: {concepts}.")
    return "\n".join(
        [
            "| run | corpus | encoder | dev F | dev F, gold sentences | test F | test F, gold sentences | sentences F "
            "| part of speech | training, wheel |",
            "|---|---|---|---|---|---|---|---|---|---|",
            *rows,
            "",
            "| run, test | F, gold sentences | all lower case | ALL UPPER CASE | raw text | F of its tokens "
            f"| by spaCy's own rules | calibration error | threshold for {wanted} on dev | precision there "
            "| recall there |",
            "|---|---|---|---|---|---|---|---|---|---|---|",
            *conditions,
            "",
            *labels,
        ]
    )


def accuracies(path: Path) -> str:
    """A table in Markdown: the pipeline over several seeds, the usual fine-tune, the pipeline without its parts.

    path (Path): Folder with accuracy.json.
    """
    columns = ("gold_sentences", "predicted_sentences", "lower", "upper", "raw")
    lines = [
        f"`{path.name}`, mean over seeds ± standard deviation, 95% interval over the documents of test:",
        "",
        "| | seeds | dev F, gold sentences | test F, gold sentences | as shipped | all lower case | ALL UPPER CASE "
        "| raw text | calibration error | precision and recall at the threshold | ours is better by |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, entry in read_json(path / "accuracy.json")["summary"].items():
        test = [_mean(entry["test"].get(column)) for column in columns]
        test[0] += f" ({_interval(entry['interval'])})"
        calibration, gain = entry.get("calibration"), entry.get("gain")
        worth = ["–", "–"]
        if calibration:
            figures = " and ".join(percent(calibration.get(key)) for key in ("precision", "recall"))
            worth = [f"{calibration['expected_calibration_error']:.3f}", figures]
        gained = f"{percent(gain['mean'])} ({_interval(gain['interval'])})" if gain else "–"
        figures = " | ".join([_mean(entry["dev"]["gold_sentences"]), *test, *worth, gained])
        lines.append(f"| {name} | {entry['seeds']} | {figures} |")
    return "\n".join(lines)


def _mean(scores: dict[str, Any] | None) -> str:
    if scores is None:
        return "–"
    return percent(scores["mean"]) + (f" ± {100 * scores['sd']:.1f}" if scores["sd"] is not None else "")


def _interval(ends: list[float]) -> str:
    return " to ".join(percent(end) for end in ends)


def speeds(path: Path) -> str:
    """Tables in Markdown: words a second of this project and of others, annotating and training; starts and memory.

    path (Path): Folder with speed.json, training.json and perhaps training-full.json.
    RAISES (StepError): If there is no speed.json or training.json.
    """
    speed, training, whole = (read_json(path / f"{name}.json") for name in ("speed", "training", "training-full"))
    if not (speed and training):
        raise StepError(f"{path} lacks speed.json or training.json.", "Run benchmark for it first.")
    lines = [
        f"`{path.name}`, {speed['machine']['cpus']} cores of {speed['machine']['cpu']}, {speed['words']:,} words "
        f"of dev, medians of {len(speed['contenders'][speed['reference']]['repetitions'])} (lowest to highest), "
        f"default precision {speed['default_precision']}:",
        "",
        f"| annotating | words/s | to {speed['reference']} | share of the bare encoder | dev F, these documents |",
        "|---|---|---|---|---|",
    ]
    for name, result in speed["contenders"].items():
        if "words_per_second" in result:
            share = result.get("share_of_bare_encoder")
            ratio = result[f"ratio_to_{speed['reference']}"]
            figures = (rate(result), f"{ratio:.2f}", "–" if share is None else f"{share:.2f}", percent(result["f"]))
        else:
            figures = ("this machine cannot", "–", "–", "–")
        lines.append(f"| {name} | {' | '.join(figures)} |")
    starts = speed["starts"]
    sentence = " and ".join(f"{key} {1000 * starts['sentence'][key]:.1f} ms" for key in ("p50", "p99"))
    peaks = " and ".join(f"{once['peak_rss_mb']:,.0f} MB for {once['megabytes']:g} MB" for once in speed["memory"])
    lines += [
        "",
        f"One sentence, warm: {sentence}. `spacy.load` after imports: {starts['medians']['load_after_imports']:.1f} s; "
        f"process start to first entity: {starts['medians']['process_to_first_entity']:.1f} s. "
        f"Memory at most, annotating a stream: {peaks} of text.",
        *service_line(read_json(path / "service.json")),
        "",
        f"| training, {training['machine']['cpu']} | words/s | to ours | memory at most |",
        "|---|---|---|---|",
    ]
    ours = training["contenders"]["ours"]["words_per_second"]["median"]
    for name, result in training["contenders"].items():
        ratio = result["words_per_second"]["median"] / ours
        lines.append(f"| {name} | {rate(result)} | {ratio:.2f} | {result['peak_rss_mb']:,} MB |")
    if whole:
        scores = ", ".join(f"{name} {percent(result['f'])}" for name, result in whole["contenders"].items())
        lines += ["", f"Dev F after {whole['epochs']} epochs of the whole corpus: {scores}."]
    return "\n".join(lines)


def service_line(record: dict[str, Any]) -> list[str]:
    """What service.json says, in a paragraph; nothing if it is empty."""
    if not record:
        return []
    p50, p95 = (f"{1000 * record[f'seconds_{name}']:.0f} ms" for name in ("p50", "p95"))
    answered, refused = (record["statuses"].get(status, 0) for status in ("200", "429"))
    others = sum(record["statuses"].values()) - answered - refused
    memory = " and ".join(f"{megabytes:,.0f} MB {when}" for when, megabytes in record["rss_mb"].items())
    return [
        "",
        f"The service under {record['clients']} clients at once, {record['seconds']:.0f} s: "
        f"{record['answers_per_second']:.0f} answers a second, p50 {p50}, p95 {p95}; {refused:,} told to come again "
        f"(429), {others} errors; memory {memory}.",
    ]


def rate(result: dict[str, Any]) -> str:
    """Words a second: the median, lowest and highest in brackets."""
    median, least, most = (result["words_per_second"][key] for key in ("median", "min", "max"))
    return f"{median:,.0f} ({least:,.0f} to {most:,.0f})"


def insert(text: str, results: str) -> str:
    """Replace what stands between the marks.

    RAISES (StepError): If the marks are not there.
    """
    before, start, rest = text.partition(START)
    _, end, after = rest.partition(END)
    if not (start and end):
        raise StepError(f"There is no place for the results: {START} … {END}", "Put these two lines into the file.")
    return f"{before}{start}\n\n{results}\n\n{end}{after}"


if __name__ == "__main__":
    run(document)
