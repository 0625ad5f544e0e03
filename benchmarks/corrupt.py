"""Corrupt some labels of train on purpose, and measure how many of them `audit` ranks first.

The corpus may have errors of its own, which are found too and count as wrong findings here: the precision is a lower
bound. A list of what is probably wrong in dev, as it is, shows what such findings are like. The pipelines that audit
trains are found again by their provenance, so that after an interruption the same command goes on where it was.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple, get_args

import numpy as np
import typer
from spacy.tokens import Doc, DocBin, Span
from wasabi import msg

from benchmarks.harness import PIPELINE, ROOT, machine
from common.corpora import read_docs
from common.errors import StepError, main
from common.formatting import tabulate_corruption
from common.gpu import use_gpu
from common.label_errors import Entity, Kind, describe, predict, rank_label_errors
from common.models import BEST
from common.records import SPLITS, read_json, record_inputs, sha256, write_json, writes

KINDS: tuple[Kind, ...] = get_args(Kind)
SHARE = 0.05  # of the labels are corrupted
FIRST = 100  # so many findings in dev are listed


class Corruption(NamedTuple):
    """A label that was corrupted.

    kind (Kind): How: another label, "type"; a word more or less at one end, "boundary"; taken away, "missed"; put where
        there was none, "spurious".
    document (int): The number of the document.
    before (Entity | None): What was there, in tokens.
    after (Entity | None): What is there now.
    """

    kind: Kind
    document: int
    before: Entity | None
    after: Entity | None


@writes("metrics", "corrupt.json", "corrupt-examples.json")
def corrupt(
    config: Annotated[Path, typer.Argument(help="Training config", exists=True)],
    folder: Annotated[Path, typer.Argument(help="Folder of the run, with its model-best", exists=True)],
    corpus: Annotated[Path, typer.Argument(help="Folder with train.spacy and dev.spacy", exists=True)],
    encoder: Annotated[Path, typer.Argument(help="Folder of the encoder", exists=True)],
    metrics: Annotated[Path, typer.Argument(help="Folder for corrupt.json and corrupt-examples.json")],
    folds: Annotated[int, typer.Option(help="As audit's", min=2)] = 3,
    epochs: Annotated[str, typer.Option(help="As train's")] = "auto",
    learn_rate: Annotated[str, typer.Option(help="As train's")] = "auto",
    batch_words: Annotated[str, typer.Option(help="As train's")] = "auto",
    seed: Annotated[int, typer.Option(help="Of what is corrupted, of the folds and of the trainings")] = 0,
    gpu_id: Annotated[int, typer.Option(help="GPU, or -1 for the CPU")] = -1,
) -> None:
    """Corrupt labels of train, let audit find them, and list what is probably wrong in dev."""
    use_gpu(gpu_id)
    model = folder / BEST
    if read_json(model / "provenance.json").get("inputs", {}).get("corpus", {}).get("train") != sha256(
        corpus / "train.spacy"
    ):
        raise StepError(f"{model} was not trained on {corpus / 'train.spacy'}.", "Run train first.")
    docs = read_docs(corpus / "train.spacy")
    corruptions = spoil(docs, SHARE, np.random.default_rng(seed))
    if not corruptions:
        raise StepError(f"{corpus / 'train.spacy'} has too few labels to corrupt some.", "Take a larger corpus.")
    options = {"folds": folds, "epochs": epochs, "learn-rate": learn_rate, "batch-words": batch_words, "seed": seed}
    findings = find_errors(docs, config, encoder, folder, options | {"gpu-id": gpu_id})
    listed = list_errors(model, read_docs(corpus / "dev.spacy"))
    record = {
        "machine": machine(),
        "inputs": record_inputs(
            config=config,
            code=Path(__file__),
            audit=ROOT / "scripts/audit.py",
            pipeline=PIPELINE,
            model=model,
            encoder=encoder,
            **{split: corpus / f"{split}.spacy" for split in SPLITS if split != "test"},
        ),
        "share": SHARE,
        "folds": folds,
        "findings": len(findings),
        **compare(docs, corruptions, findings),
        "dev": {"listed": len(listed), "kinds": dict(Counter(finding["kind"] for finding in listed))},
    }
    metrics.mkdir(parents=True, exist_ok=True)
    write_json(metrics / "corrupt-examples.json", {"dev": listed})
    write_json(metrics / "corrupt.json", record)
    header, rows = tabulate_corruption(record)
    msg.table(rows, header=header, divider=True)
    msg.good(f"Wrote {metrics / 'corrupt.json'}, and the first {len(listed)} findings in dev beside it")
    msg.info(f"The report has them when it is written again: make report RUN={metrics.name}")


def spoil(docs: Sequence[Doc], share: float, random: np.random.Generator) -> list[Corruption]:
    """Corrupt labels: equally many of each kind, no two of them in the same place.

    Of a boundary one end moves by one word, without leaving its sentence or reaching another entity. What is put where
    nothing was has the label and at most the length of some entity, and lies within a sentence.

    docs (Sequence[Doc]): Annotated documents with sentence starts; their entities are changed.
    share (float): How many corruptions there are for each entity.
    random (np.random.Generator): Draws.
    RETURNS (list[Corruption]): What was corrupted.
    """
    entities = [(number, (ent.start, ent.end, ent.label_)) for number, doc in enumerate(docs) for ent in doc.ents]
    labels = sorted({label for _, (_, _, label) in entities})
    kinds = [kind for kind in KINDS if kind != "type" or len(labels) > 1]
    wanted = [kinds[i % len(kinds)] for i in range(round(share * len(entities)))]
    # The tokens where no entity can go: white space, and what an entity has or had
    taken = [np.array([token.is_space or bool(token.ent_type_) for token in doc], dtype=bool) for doc in docs]
    sentences = [np.cumsum([bool(token.is_sent_start) for token in doc]) for doc in docs]
    victims = [entities[i] for i in random.permutation(len(entities))]
    models = [entity for _, entity in victims]  # of what is put where nothing was
    words = np.cumsum([0, *map(len, docs)])
    places = iter(random.permutation(words[-1]).tolist())

    def is_free(number: int, start: int, end: int, sentence: int) -> bool:
        inside = 0 <= start < end <= len(docs[number])
        if not inside or taken[number][start:end].any():
            return False
        return bool((sentences[number][start:end] == sentence).all())

    def change(kind: Kind, number: int, entity: Entity) -> Corruption | None:
        start, end, label = entity
        if kind == "type":
            others = [other for other in labels if other != label]
            return Corruption(kind, number, entity, (start, end, others[random.integers(len(others))]))
        if kind == "missed":
            return Corruption(kind, number, entity, None)
        sentence = sentences[number][start]
        ends = [(start + 1, end), (start, end - 1)] if end - start > 1 else []
        ends += [(start - 1, end)] * is_free(number, start - 1, start, sentence)
        ends += [(start, end + 1)] * is_free(number, end, end + 1, sentence)
        return Corruption(kind, number, entity, (*ends[random.integers(len(ends))], label)) if ends else None

    def put(model: Entity) -> Corruption | None:
        for place in places:
            number = int(np.searchsorted(words, place, side="right")) - 1
            start = int(place - words[number])
            for end in range(start + model[1] - model[0], start, -1):
                if is_free(number, start, end, sentences[number][start]):
                    return Corruption("spurious", number, None, (start, end, model[2]))
        return None

    done: list[Corruption] = []
    for kind in wanted:
        tries = (put(models[len(done)]),) if kind == "spurious" else (change(kind, *victims.pop()) for _ in [*victims])
        if found := next(filter(None, tries), None):
            done.append(found)
            if found.after:
                taken[found.document][slice(*found.after[:2])] = True
    for number in {one.document for one in done}:
        doc = docs[number]
        gone = {one.before for one in done if one.document == number}
        new = [one.after for one in done if one.document == number and one.after]
        kept = [entity for ent in doc.ents if (entity := (ent.start, ent.end, ent.label_)) not in gone]
        doc.set_ents([Span(doc, *entity) for entity in (*kept, *new)])
    return done


def find_errors(
    docs: Sequence[Doc], config: Path, encoder: Path, folder: Path, options: dict[str, Any]
) -> list[dict[str, Any]]:
    """Let `audit` find errors.

    docs (Sequence[Doc]): What it audits, in the place of train.
    config, encoder, folder: As `corrupt` takes them.
    options (dict[str, Any]): Other options of `audit`, by name.
    RETURNS (list[dict[str, Any]]): Its findings.
    RAISES (StepError): If it fails.
    """
    with tempfile.TemporaryDirectory() as place:
        audited = Path(place, "corrupted")
        audited.mkdir()
        DocBin(docs=docs, store_user_data=True).to_disk(audited / "train.spacy")
        command = [sys.executable, "-m", "scripts.audit", *map(str, (config, Path(place, "found"), audited, encoder))]
        command += [str(folder), *(part for name, value in options.items() for part in (f"--{name}", str(value)))]
        if subprocess.run(command).returncode:
            raise StepError("audit failed.", "See above. What is done is kept: run the same again.")
        findings: list[dict[str, Any]] = read_json(Path(place, "found/label-errors.json"))["findings"]
    return findings


def compare(
    docs: Sequence[Doc], corruptions: Sequence[Corruption], findings: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    """Count the corruptions among the first findings, as many as there are corruptions.

    A finding is right if it names exactly the corrupted entity, or if it shows an entity where one was taken away.

    docs (Sequence[Doc]): The corrupted documents.
    corruptions (Sequence[Corruption]): What was corrupted.
    findings (Sequence[dict[str, Any]]): As `audit` writes them, the most probable errors first.
    RETURNS (dict[str, Any]): `first`: how many findings count; `precision`: what share of them is right; `kinds`: by
        kind, and for "all", how many were `corrupted` and of these `found`; `findings` of this kind, and their
        `precision`, None if there is none.
    """
    changed: dict[tuple[int, int, int], int] = {}  # by document and characters the number of the corruption
    taken_away: dict[int, list[tuple[int, int, int]]] = {}
    for number, one in enumerate(corruptions):
        entity = one.after or one.before
        assert entity
        span = docs[one.document][entity[0] : entity[1]]
        if one.after:
            changed[one.document, span.start_char, span.end_char] = number
        else:
            taken_away.setdefault(one.document, []).append((span.start_char, span.end_char, number))
    found: set[int] = set()
    shown: Counter[str] = Counter()
    right: Counter[str] = Counter()
    for finding in findings[: len(corruptions)]:
        document, annotated, predicted = int(finding["document"]), finding["annotated"], finding["predicted"]
        if annotated:
            place = changed.get((document, annotated["start"], annotated["end"]))
            numbers = {place} if place is not None else set()
        else:
            spans = taken_away.get(document, [])
            numbers = {n for start, end, n in spans if predicted["start"] < end and start < predicted["end"]}
        shown[finding["kind"]] += 1
        right[finding["kind"]] += bool(numbers - found)
        found |= numbers
    kinds: dict[str, Any] = {
        kind: {
            "corrupted": sum(one.kind == kind for one in corruptions),
            "found": sum(corruptions[number].kind == kind for number in found),
            "findings": shown[kind],
            "precision": right[kind] / shown[kind] if shown[kind] else None,
        }
        for kind in KINDS
    }
    total, precise = shown.total(), right.total()
    precision = precise / total if total else None
    kinds["all"] = {"corrupted": len(corruptions), "found": len(found), "findings": total, "precision": precision}
    return {"first": len(corruptions), "precision": precision, "kinds": kinds}


def list_errors(model: Path, docs: list[Doc]) -> list[dict[str, Any]]:
    """List the labels that are probably wrong in documents that a pipeline was not trained on.

    Its best weights were chosen on dev and its scores were calibrated there, which teaches it no name.

    model (Path): The pipeline.
    docs (list[Doc]): The documents, with entities and sentence starts.
    RETURNS (list[dict[str, Any]]): The first FIRST findings, each with the number of its `document` from 0, and what
        `describe` says.
    """
    ranked = rank_label_errors(docs, *predict(model, docs))[:FIRST]
    return [{"document": finding.document, **describe(finding, docs[finding.document])} for finding in ranked]


if __name__ == "__main__":
    main(corrupt)
