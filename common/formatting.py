"""Format scores as text, and texts with marked spans as HTML."""

from __future__ import annotations

import html
from collections.abc import Iterable, Iterator
from typing import Any

from markupsafe import Markup
from spacy.displacy.render import EntityRenderer

from common.records import SPLITS


def calibration_summary(calibration: dict[str, Any]) -> str:
    """Say in a sentence what precision and recall test has at the threshold of the score that dev chose.

    calibration (dict[str, Any]): As the step evaluate writes it.
    RETURNS (str): The sentence.
    """
    least = f"{100 * calibration['min_precision']:g}%"
    if calibration["precision"] is None:
        return f"On dev no threshold of the score surely gives a precision of {least}, or no entity of test reaches it."
    precision, recall = percent(calibration["precision"]), percent(calibration["recall"])
    return (
        f"With the threshold {calibration['threshold']:.2f}, chosen on dev for a precision of {least}, "
        f"precision on test is {precision} and recall {recall}."
    )


def interval_text(scores: dict[str, Any]) -> str:
    """The ends of the `interval` of a score, as percentages."""
    return " to ".join(map(percent, scores["interval"]))


def score_rows(test: dict[str, Any]) -> list[tuple[str, ...]]:
    """Format the scores of entities as rows of a table.

    test (dict[str, Any]): As `spacy evaluate` writes it.
    RETURNS (list[tuple[str, ...]]): For each label, sorted, then for "all": label, precision, recall, F1.
    """
    scores = [*sorted((test["ents_per_type"] or {}).items()), ("all", {key: test[f"ents_{key}"] for key in "prf"})]
    return [(label, *(percent(score[key]) for key in "prf")) for label, score in scores]


def tabulate_curve(curve: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Format what benchmarks/curve.py measured as a table.

    curve (dict[str, Any]): As it writes it.
    RETURNS (tuple[list[str], list[list[str]]]): The header, and a row for each number of training documents: test F1 of
        each contender; then of ours how many documents the usual fine-tune needs for the same, F1 as shipped, the
        calibration error, and precision and recall at the threshold. If there is a forecast, it is the last row.
    """
    points = {name: {point["documents"]: point for point in group} for name, group in curve["summary"].items()}
    ours, usual = (points.get(name, {}) for name in ("ours", "usual fine-tune"))
    rows = []
    for documents in sorted({documents for group in points.values() for documents in group}):
        row = [
            f"{documents:,}",
            *(_spread(group[documents]["test"]) if documents in group else "–" for group in points.values()),
        ]
        point = ours.get(documents)
        needed = "–"
        if point and usual:
            number = point["usual_needs"]
            if number is None:
                needed = f"over {max(usual):,}"
            elif number <= min(usual):
                needed = f"at most {min(usual):,}"
            else:
                needed = f"{number:,.0f} ({number / documents:.1f} times)"
        row.append(needed)
        if point:
            calibration = point["calibration"]
            worth = "–"
            if calibration["sure"]:
                worth = " and ".join(percent(calibration[key]) for key in ("precision", "recall"))
                if calibration["sure"] < point["draws"]:
                    worth += f" ({calibration['sure']} of {point['draws']} draws)"
            row += [_spread(point["shipped"]), f"{calibration['error']['mean']:.3f}", worth]
        else:
            row += ["–", "–", "–"]
        rows.append(row)
    header = [
        "training documents",
        *points,
        "usual fine-tune needs",
        "ours, as shipped",
        "calibration error",
        "precision and recall at the threshold",
    ]
    if ahead := curve.get("forecast"):
        now = ours[ahead["documents"]]["test"]["mean"]
        expected, *ends = (percent(now + gain) for gain in (ahead["gain"], *ahead["interval"]))
        row = [f"{ahead['documents'] + ahead['more']:,} (forecast)", *"–" * (len(header) - 1)]
        row[header.index("ours")] = f"{expected} ({' to '.join(ends)})"
        rows.append(row)
    return header, rows


def _spread(values: dict[str, float]) -> str:
    return f"{percent(values['mean'])} ({percent(values['lowest'])} to {percent(values['highest'])})"


def describe_threshold(curve: dict[str, Any]) -> str:
    """Say in a sentence from how many documents on the threshold of the score is sure.

    curve (dict[str, Any]): As benchmarks/curve.py writes it.
    RETURNS (str): The sentence; nothing if ours was not trained.
    """
    if "ours" not in curve["summary"]:
        return ""
    least = f"a precision of {100 * curve['min_precision']:g}%"
    if curve["sure_from"] is None:
        return f"Even with most documents, dev does not give a threshold of the score for {least} in all draws."
    start = f"From {curve['sure_from']:,} training documents on"
    return f"{start}, dev gives a threshold of the score for {least} in all draws."


def describe_forecast(curve: dict[str, Any]) -> str:
    """Say in a sentence what more training documents would bring, and how sure that is.

    curve (dict[str, Any]): As benchmarks/curve.py writes it.
    RETURNS (str): The sentence; nothing if there is no forecast.
    """
    if not (ahead := curve.get("forecast")):
        return ""
    gain, low, high = (f"{100 * value:+.1f}" for value in (ahead["gain"], *ahead["interval"]))
    text = (
        f"Another {ahead['more']:,} training documents would change the F1 of ours on test by about {gain} points (95% "
        f"interval {low} to {high}), if the power law through {ahead['sizes']} numbers of documents holds on."
    )
    if ahead["interval"][0] <= 0:
        text += " The trainings scatter so much that this may be nothing: more draws or sizes would tell."
    return text


def tabulate_effort(effort: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Format what benchmarks/effort.py measured as a table.

    effort (dict[str, Any]): As it writes it.
    RETURNS (tuple[list[str], list[list[str]]]): The header, and a row for each number of annotated documents: for each
        order the words, test F1, and keys and clicks for an entity of the batch that came last, with suggestions and
        from nothing.
    """
    points = {name: {point["documents"]: point for point in group} for name, group in effort["summary"].items()}
    header = ["annotated documents"]
    for name in points:
        header += [f"{name}: words", f"{name}: test F1", f"{name}: keys and clicks for an entity"]
    rows = []
    for documents in sorted({documents for group in points.values() for documents in group}):
        row = [f"{documents:,}"]
        for group in points.values():
            if point := group.get(documents):
                actions = "–" if point["actions"] is None else f"{point['actions']:.2f}"
                keys = f"{actions} ({point['from_nothing']:.2f} from nothing)"
                row += [f"{point['words']:,}", _spread(point["test"]), keys]
            else:
                row += ["–", "–", "–"]
        rows.append(row)
    return header, rows


def describe_effort(effort: dict[str, Any]) -> str:
    """Say in a sentence or two what suggestions save, and what the order of `select` saves.

    effort (dict[str, Any]): As benchmarks/effort.py writes it.
    RETURNS (str): The sentences; nothing if too little was measured.
    """
    saved = [f"{percent(share)}% ({name})" for name, share in effort["saved"].items() if share is not None]
    parts = []
    if saved:
        start = f"After the first {effort['start']} documents"
        parts.append(f"{start}, suggestions save {' and '.join(saved)} of the keys and clicks.")
    if effort["needed"]:
        needed = [
            f"more than {effort['target']:,} ({split})"
            if number is None
            else f"{number:,.0f} ({split}, {percent(effort['needed_words'][split])}% of the words)"
            for split, number in effort["needed"].items()
        ]
        reach = f"the F1 that {effort['target']:,} documents at random give"
        parts.append(f"In the order of select, {' and '.join(needed)} documents reach {reach}.")
    return " ".join(parts)


def tabulate_corruption(corrupt: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Format what benchmarks/corrupt.py measured as a table.

    corrupt (dict[str, Any]): As it writes it.
    RETURNS (tuple[list[str], list[list[str]]]): The header, and a row for each kind of error, then for all: how many
        labels were corrupted, how many of these are among the first findings, how many of the first findings are of
        this kind, and what share of them was corrupted.
    """
    header = ["kind", "corrupted", "of these found", "first findings", "of these corrupted"]
    rows = [
        [
            kind,
            f"{row['corrupted']:,}",
            percent(row["found"] / row["corrupted"] if row["corrupted"] else None),
            f"{row['findings']:,}",
            percent(row["precision"]),
        ]
        for kind, row in corrupt["kinds"].items()
    ]
    return header, rows


def tabulate_synthesis(synthesis: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Format what became of the texts that the step synthesize looked at as a table.

    synthesis (dict[str, Any]): As it writes it.
    RETURNS (tuple[list[str], list[list[str]]]): The header, and a row for those that were kept, then for each reason
        why others were not.
    """
    counts = {"kept": synthesis["kept"], **synthesis["reasons"]}
    rows = [[name, f"{number:,}", percent(number / synthesis["tried"])] for name, number in counts.items()]
    return ["", "texts", "%"], rows


def describe_synthesis(synthesis: dict[str, Any]) -> str:
    """Say in some sentences how synthetic texts were made, and what they have.

    synthesis (dict[str, Any]): As the step synthesize writes it.
    RETURNS (str): The sentences.
    """
    inputs = synthesis["inputs"]
    writer = f", by {inputs['writer']}" if "writer" in inputs else ", without a language model"
    names = ", ".join(f"{label} {number:,}" for label, number in synthesis["labels"].items())
    text = (
        f"Of {synthesis['tried']:,} texts, made by the method {inputs['method']}{writer}, {synthesis['kept']:,} were "
        f"kept. They have these names: {names}."
    )
    if synthesis["marked"]:
        text += f" In {synthesis['marked']:,} of them the judge finds other names."
    if "minutes_per_1000" in synthesis:
        text += f" 1,000 of them take {synthesis['minutes_per_1000']:,.0f} minutes."
    return text


def tabulate_synthetic(synthetic: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Format what benchmarks/synthetic.py measured as a table.

    synthetic (dict[str, Any]): As it writes it, with something in its summary.
    RETURNS (tuple[list[str], list[list[str]]]): The header, and a row for each number of training documents and each
        kind of texts that were added: by label F1, and how much that is more than without texts, with its interval.
    """
    labels = synthetic["summary"][0]["labels"]
    rows = []
    for point in synthetic["summary"]:
        row = [f"{point['documents']:,}", point["contender"], f"{point['draws']:,}"]
        for score in point["labels"].values():
            more = f" ({_change(score['more'], score['interval'])})" if any(score["draws"]) else ""
            row.append(f"{percent(score['f1'])}{more}")
        rows.append(row)
    return ["training documents", "texts", "draws", *labels], rows


def tabulate_continuing(continuing: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Format what benchmarks/continuing.py measured as a table.

    continuing (dict[str, Any]): As it writes it when it is done.
    RETURNS (tuple[list[str], list[list[str]]]): The header, and a row for each number of documents and each way to go
        on with them: F1 of the old labels before and after, of the new label, and on the text of before.
    """
    columns = ("before", "after", "new", "plain_before", "plain_after")
    rows = [
        [row["kind"], f"{row['documents']:,}", row["way"], *(percent(row.get(name)) for name in columns)]
        for row in continuing["summary"]
    ]
    header = ["went on with", "documents", "way", "old labels before", "after", continuing["label"]]
    return [*header, "text as before: before", "after"], rows


def describe_whole(continuing: dict[str, Any]) -> str:
    """Say in a sentence what a training from the encoder on all documents reaches, label by label.

    continuing (dict[str, Any]): As benchmarks/continuing.py writes it when it is done.
    RETURNS (str): The sentence.
    """
    scores = ", ".join(f"{label} {percent(f1)}" for label, f1 in continuing["whole"].items())
    return f"Trained from the encoder on all documents, the pipeline has F1: {scores}."


def tabulate_comparison(comparison: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Format what a pipeline has lost and won of the labels that it had before as a table.

    comparison (dict[str, Any]): As the step compare writes it.
    RETURNS (tuple[list[str], list[list[str]]]): The header, and a row for each label, then for all of them, on test.
    """
    rows = [
        [
            label,
            percent(row["before"]),
            percent(row["after"]),
            _change(row["change"], row["interval"]),
            f"{row['entities']:,}",
        ]
        for label, row in comparison["test"].items()
    ]
    return ["label", "F1 before", "F1 after", "change", "entities"], rows


def _change(change: float, interval: list[float]) -> str:
    change_text, low, high = (f"{100 * value:+.1f}" for value in (change, *interval))
    return f"{change_text}: {low} to {high}"


def percent(share: float | None) -> str:
    """A share, from 0 to 1, as a percentage with one decimal; a dash for None."""
    return "–" if share is None else f"{100 * share:.1f}"


def rows_of(result: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    """Format the most telling numbers of a corpus as rows of a table.

    result (dict[str, Any]): As the step explore writes it.
    YIELDS (tuple[str, ...]): A name, then the number of train, dev and test; nothing for train where a split is
        compared with it.
    """
    splits, against = result["splits"], result["against_train"]
    for name in ("documents", "sentences", "tokens"):
        yield name, *(f"{splits[split][name]:,}" for split in SPLITS)
    yield "entities", *(f"{sum(splits[split]['entities'].values()):,}" for split in SPLITS)
    yield "tokens in entities", *(f"{100 * splits[split]['entity_token_share']:.1f} %" for split in SPLITS)
    yield "wordpieces per token", *(f"{splits[split]['wordpieces_per_token']:.2f}" for split in SPLITS)
    for name, label in {"unseen_overall": "entities not in train", "unknown_words": "tokens not in train"}.items():
        shares = (against[split][name] for split in SPLITS[1:])
        yield label, "", *("–" if share is None else f"{100 * share:.1f} %" for share in shares)
    for name in ("same_documents", "near_duplicates", "same_sentences"):
        yield f"{name.replace('_', ' ')} in train", "", *(f"{against[split][name]:,}" for split in SPLITS[1:])
    for name, label in {
        "ambiguous": "entities whose name has several labels",
        "unmarked_elsewhere": "entities whose name is unmarked elsewhere",
        "rare_label": "entities with a label rare for their name",
        "cut_by_a_sentence_start": "names cut by a sentence start",
    }.items():
        yield label, *(f"{result['oddities']['splits'][split][name]:,}" for split in SPLITS)


def tabulate_trials(search: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Format the trials of a search as a table.

    search (dict[str, Any]): As the step search writes it.
    RETURNS (tuple[list[str], list[list[str]]]): The header, and a row for each trial that was begun, the best first.
    """
    begun = [(number, trial) for number, trial in enumerate(search["trials"]) if trial["state"] != "to come"]
    begun.sort(key=lambda one: (one[1]["state"] != "finished", -(one[1]["ents_f"] or 0)))
    rows = []
    for number, trial in begun:
        settings = ", ".join(f"{shorten_name(name)} {value}" for name, value in trial["settings"].items())
        what = trial["problem"] or settings or ("the default" if number == search["default"] else "")
        minutes = "–" if trial["seconds"] is None else f"{trial['seconds'] / 60:.1f}"
        rows.append([str(number), trial["state"], percent(trial["ents_f"]), minutes, what])
    return ["trial", "", "dev F1", "minutes", "settings"], rows


def tabulate_parameters(search: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Format what was searched as a table.

    search (dict[str, Any]): As the step search writes it.
    RETURNS (tuple[list[str], list[list[str]]]): The header, and a row for each setting: its range, its default, the
        value of the best trial, its importance if that is known, and what it does.
    """
    importance = search["importance"]
    best = {} if search["best"] is None else search["trials"][search["best"]]["params"]
    rows = []
    for name, parameter in search["parameters"].items():
        row = [name, parameter["range"], parameter["default"], f"{best[name]:.3g}" if name in best else "–"]
        if importance:
            row.append(percent(importance.get(name)))
        rows.append([*row, parameter["explain"]])
    return ["setting", "tried", "default", "best", *["importance, %"] * bool(importance), "what it does"], rows


def shorten_name(name: str) -> str:
    """The end of a dotted name that tells it from others."""
    return ".".join(name.split(".")[-2:]) if name.startswith("components.") else name.rpartition(".")[2]


def describe_search(search: dict[str, Any]) -> str:
    """Say in some sentences what a search gave, and whether that is more than noise.

    search (dict[str, Any]): As the step search writes it.
    RETURNS (str): The sentences.
    """
    counts, best, default = search["counts"], search["best"], search["default"]
    text = f"{len(search['trials'])} trials: {', '.join(f'{number} {state}' for state, number in counts.items())}."
    if default is None:
        return f"{text} The default settings have not been trained to the end, so that nothing can be compared."
    scores = [search["trials"][number]["ents_f"] for number in (best, default)]
    if best == default:
        return f"{text} The default settings were not beaten: with F1 {percent(scores[1])} on dev they are the best."
    text += f" The best is trial {best} with F1 {percent(scores[0])} on dev; the default has {percent(scores[1])}."
    if not (confirmed := search["confirmed"]):
        return (
            f"{text} This is one training each, chosen on dev from all trials: the difference may be noise. Other "
            "seeds would tell."
        )
    means = [percent(sum(confirmed[name]) / len(confirmed[name])) for name in ("best", "default")]
    gain, low, high = (f"{100 * value:+.1f}" for value in (confirmed["difference"], *confirmed["interval"]))
    text += (
        f" Trained again with {confirmed['seeds']} other seeds, the best settings have {means[0]} in the mean and the "
        f"default {means[1]}: a difference of {gain} points (95% interval {low} to {high})."
    )
    if confirmed["interval"][0] > 0:
        return (
            f"{text} This is more than the noise of seeds. Dev chose the settings, so only test can tell their worth."
        )
    return f"{text} The noise of seeds explains this: the default settings were not beaten."


COLORS = {
    "PER": "#ffd7a8", "ORG": "#b9d8ff", "LOC": "#c6ecc0", "MISC": "#e5d0f5",
    "actor": "#b9d8ff", "factor": "#ffe08a", "mechanism": "#c6ecc0",
}  # fmt: skip


# displaCy's own template does not set the colour of the text, which is then as light as the mark on a dark page
MARK = (
    '<mark class="entity" style="background: {bg}; color: #111; padding: 0.2em 0.35em; border-radius: 0.35em">{text}'
    '<span style="font-size: 0.75em; font-weight: bold; margin-left: 0.4em">{label}</span></mark>'
)


def highlight(text: str, spans: Iterable[dict[str, Any]]) -> Markup:
    """Mark spans in a text as displaCy does.

    We use displaCy's renderer, because `displacy.render` keeps its result in a global variable, which two sessions of
    the page would overwrite. The renderer escapes the text but not the labels, so they are escaped here.

    text (str): The text.
    spans (Iterable[dict[str, Any]]): Spans with start and end (offsets of characters) and label, without overlaps.
    RETURNS (Markup): HTML.
    """
    ents = [span | {"label": html.escape(span["label"])} for span in sorted(spans, key=lambda span: span["start"])]
    if not ents:
        return Markup(f'<div class="entities">{html.escape(text)}</div>')
    renderer = EntityRenderer({"colors": COLORS, "template": MARK})
    return Markup(renderer.render([{"text": text, "ents": ents}]).strip())
