"""Prepare a trained pipeline for `spacy package`: a copy with meta data, model card, and no path of this machine."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import spacy
import typer
from packaging.requirements import Requirement
from spacy.cli._util import import_code
from thinc.api import Config
from wasabi import msg

from scripts.steps import StepError, made, read_json, run, staged, write_json, writes

RESEARCH = "research only"
PYTHON = ">=3.11"
NEEDED = ("spacy-transformers", "transformers", "torch", "numpy")  # by scripts/functions.py; spaCy names itself
# What is known of corpora and encoders; others are named only.
SOURCES: dict[str, dict[str, str]] = {
    "conll2003": {
        "name": "CoNLL-2003, English",
        "url": "https://www.clips.uantwerpen.be/conll2003/ner/",
        "author": "Erik F. Tjong Kim Sang and Fien De Meulder; texts by Reuters",
        "license": RESEARCH,
    },
    "sample": {"name": "sample corpus of this project", "author": "the project", "license": "CC0-1.0"},
    "bert-base-uncased": {
        "name": "bert-base-uncased",
        "url": "https://huggingface.co/google-bert/bert-base-uncased",
        "author": "Jacob Devlin and others, Google",
        "license": "Apache-2.0",
    },
    "sentence-transformers/all-MiniLM-L6-v2": {
        "name": "all-MiniLM-L6-v2",
        "url": "https://huggingface.co/sentence-transformers/all-MiniLM-L6-v2",
        "author": "Sentence Transformers; MiniLM by Wenhui Wang and others, Microsoft",
        "license": "Apache-2.0",
    },
}
CARD = """# {package}

{description}

```python
import spacy

nlp = spacy.load("{package}")
doc = nlp("My name is Wolfgang and I live in Berlin.")
print([(ent.text, ent.label_, ent._.score) for ent in doc.ents])
print([(span.text, span.label_) for span in doc.spans["concepts"]])  # actors, factors, mechanisms, by rules
```

Version {version}. Components: {components}. Labels: {labels}.

## Scores on the test set

| label | precision | recall | F | 95% interval of F | entities |
|---|---|---|---|---|---|
{label_rows}

Scored by `spacy evaluate`: exact spans and labels, sentences found by the pipeline; intervals by resampling documents.
With the sentences of the corpus, as the literature reports it: F {gold_f}; all in lower case {lower_f}, in upper case
{upper_f}; from raw text {raw_f}. Sentences: F {sents_f}.{tag_acc} Tokens with the right entity tag: {token_accuracy},
loss {token_loss:.3f}.

`ent._.score`, above 0 and at most 1, says how likely exactly this span and label is right: expected calibration error
{calibration_error:.3f}. {worth}

## Training

Corpus: {corpus}: {documents} documents, {sentences} sentences, {tokens} tokens to train on. Encoder: {encoder}.
{seconds} seconds on {device}; {versions}. Settings: {settings}.

## Limits and biases

It finds the kinds of names, in the kind of text, that its corpus has: expect less on other text. Nothing keeps it from
being better with the names of some people, places or languages than of others; the table tells those that training had
from new ones. What the licences of the corpus and the encoder allow ({licenses}) holds for this pipeline too.

| of the entities in test | | entities | precision | recall | F |
|---|---|---|---|---|---|
{slice_rows}

Errors on test: {errors}.
"""


class Weights(StrEnum):
    """How the encoder's weights are saved; float16 halves the wheel. They are loaded as float32 in any case."""

    float32 = "float32"
    float16 = "float16"


@writes("packages", "pipeline")
def package(
    model: Annotated[Path, typer.Argument(help="Trained pipeline", exists=True)],
    metrics: Annotated[Path, typer.Argument(help="With test.json, evaluation.json, analysis.json", exists=True)],
    packages: Annotated[Path, typer.Argument(help="Folder for pipeline/, the copy that `spacy package` takes")],
    name: Annotated[str, typer.Option(help="Name of the package, without en_")],
    version: Annotated[str, typer.Option(help="Version of the package")],
    license: Annotated[str, typer.Option(help="Licence of the package, or auto: what corpus and encoder allow")],
    weights: Annotated[Weights, typer.Option(help="How the encoder's weights are saved")],
    requirements: Annotated[Path, typer.Option(help="What the project needs, as pip reads it", exists=True)],
    code: Annotated[Path, typer.Option(help="Python file with registered functions", exists=True)],
) -> None:
    """Copy a trained pipeline, with description, licence, sources, scores and a model card."""
    if not re.fullmatch(r"[a-zA-Z0-9_]+", name) or not re.fullmatch(r"[0-9a-zA-Z.+!]+", version):
        raise StepError(
            f"A package cannot have the name {name!r} and the version {version!r}.",
            "Use letters, digits and _ in the name, and numbers in the version: --vars.name mine --vars.version 1.0.0",
        )
    made(packages, f"en_{name}-{version}")  # by `spacy package`, afterwards
    test, evaluation, analysis = (read_json(metrics / f"{name}.json") for name in ("test", "evaluation", "analysis"))
    if not (test and evaluation and analysis):
        raise StepError(f"{metrics} lacks test.json, evaluation.json or analysis.json.", "Run evaluate and analyze.")
    corpus, encoder = (SOURCES.get(evaluation[key], {"name": evaluation[key]}) for key in ("corpus", "encoder"))
    allowed = find_license(license, corpus, encoder)
    with staged(packages / "pipeline") as folder:
        shutil.copytree(model, folder, dirs_exist_ok=True)
        if weights is Weights.float16:
            import_code(code)
            transformer = spacy.load(folder).get_pipe("transformer")
            transformer.model.transformer.half()  # type: ignore[attr-defined]
            transformer.to_disk(folder / "transformer")  # type: ignore[attr-defined]
        config = Config().from_disk(folder / "config.cfg", interpolate=False)
        config["paths"] |= {"train": None, "dev": None, "encoder": encoder["name"]}
        config.to_disk(folder / "config.cfg")
        meta = read_json(folder / "meta.json") | {
            "name": name,
            "version": version,
            "license": allowed,
            "requirements": read_requirements(requirements),
            "description": f"Named entities in English, by {encoder['name']} fine-tuned on {corpus['name']}.",
            "sources": [corpus, encoder],
            "performance": {key: value for key, value in test.items() if key != "speed"},
        }
        write_json(folder / "meta.json", meta)
        (folder / "README.md").write_text(card(meta, test, evaluation, analysis), encoding="utf8")
    # Of the Python version spaCy's setup.py says nothing; setuptools reads that file too, and spaCy leaves it there
    place = packages / f"en_{name}-{version}"
    place.mkdir(exist_ok=True)
    shutil.rmtree(place / "build", ignore_errors=True)  # setuptools would put what an earlier pipeline had in the wheel
    (place / "setup.cfg").write_text(f"[options]\npython_requires = {PYTHON}\n", encoding="utf8")
    msg.good(f"Prepared {packages / 'pipeline'}")


def read_requirements(path: Path) -> list[str]:
    """What the code in the wheel imports, with the bounds that the project has for it.

    path (Path): A requirements file.
    """
    lines = (line.partition("#")[0].strip() for line in path.read_text("utf8").splitlines())
    known = {Requirement(line).name: line for line in lines if line}
    return [known[name] for name in NEEDED]


def find_license(asked: str, corpus: dict[str, str], encoder: dict[str, str]) -> str:
    """The licence of a pipeline, which cannot allow more than those of its corpus and its encoder.

    asked (str): A licence, or auto.
    corpus, encoder (dict[str, str]): As in SOURCES.
    RAISES (StepError): If what is asked for contradicts them.
    """
    bound = next((source for source in (corpus, encoder) if source.get("license") == RESEARCH), None)
    if bound and asked not in ("auto", RESEARCH):
        raise StepError(
            f"The licence {asked} contradicts that of {bound['name']}: {RESEARCH}.",
            f"Leave --vars.license at auto, which gives {RESEARCH}.",
        )
    if asked != "auto":
        return asked
    unknown = [source["name"] for source in (corpus, encoder) if "license" not in source]
    if bound:
        return RESEARCH
    return f"see the licences of {' and '.join(unknown)}" if unknown else encoder["license"]


def card(meta: dict[str, Any], test: dict[str, Any], evaluation: dict[str, Any], analysis: dict[str, Any]) -> str:
    """The model card, in Markdown.

    meta (dict[str, Any]): Of the package.
    test (dict[str, Any]): As `spacy evaluate` writes it.
    evaluation, analysis (dict[str, Any]): As the steps evaluate and analyze write them.
    """
    corpus, encoder = meta["sources"]
    counts, training = evaluation["counts"]["train"], evaluation["training"]
    scores = evaluation["test"]["calibration"]

    def figures(scores: dict[str, Any]) -> list[str]:
        return [percent(scores[name]) for name in ("precision", "recall", "f")]

    return CARD.format(
        package=f"en_{meta['name']}",
        version=meta["version"],
        description=meta["description"],
        components=", ".join(meta["pipeline"]),
        labels=", ".join(sorted(meta["labels"]["ner"])),
        label_rows=_rows(
            (
                label,
                *figures(scores),
                interval_text(scores),
                f"{scores['entities']:,}",
            )
            for label, scores in analysis["labels"].items()
        ),
        slice_rows=_rows(
            (name, part, f"{scores['entities']:,}", *figures(scores))
            for name, parts in analysis["slices"].items()
            for part, scores in parts.items()
        ),
        errors=", ".join(f"{kind} {found['in all']:,}" for kind, found in analysis["errors"].items()),
        token_accuracy=f"{100 * analysis['tokens']['test']['accuracy']:.2f} %",
        token_loss=analysis["tokens"]["test"]["loss"],
        gold_f=percent(evaluation["test"]["gold_sentences"]["ents_f"]),
        **{f"{name}_f": percent(evaluation["test"][name]["ents_f"]) for name in ("lower", "upper", "raw")},
        calibration_error=scores["expected_calibration_error"],
        worth=worth_of_scores(scores),
        sents_f=percent(test.get("sents_f")),
        tag_acc=f" Part-of-speech tags: accuracy {percent(test['tag_acc'])}." if test.get("tag_acc") else "",
        corpus=corpus["name"],
        encoder=encoder["name"],
        licenses="; ".join(
            f"{source['name']}: {source.get('license', 'see its origin')}" for source in (corpus, encoder)
        ),
        seconds=training["seconds"],
        device=training["device"],
        versions=", ".join(f"{package} {version}" for package, version in training["versions"].items()),
        settings=", ".join(f"{key} {value}" for key, value in training["made_from"]["settings"].items()),
        **{key: f"{counts[key]:,}" for key in ("documents", "sentences", "tokens")},
    )


def worth_of_scores(calibration: dict[str, Any]) -> str:
    """What precision and recall on test are down to the score that dev chooses for a precision, as a sentence.

    calibration (dict[str, Any]): As the step evaluate writes it.
    """
    wanted = f"{100 * calibration['wanted']:g}%"
    if calibration["precision"] is None:
        return f"Dev is sure of a precision of {wanted} at no score, or test has no entity with such a score."
    precision, recall = percent(calibration["precision"]), percent(calibration["recall"])
    threshold = f"{calibration['threshold']:.2f}"
    return (
        f"Down to {threshold}, which dev chooses for a precision of {wanted}, precision is {precision} "
        f"and recall {recall}."
    )


def _rows(rows: Iterable[tuple[str, ...]]) -> str:
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in rows)


def interval_text(scores: dict[str, Any]) -> str:
    """The ends of the interval of a score, as percentages."""
    return " to ".join(map(percent, scores["interval"]))


def score_rows(test: dict[str, Any]) -> list[tuple[str, ...]]:
    """Label, precision, recall and F of each kind of entity, by name, then of all.

    test (dict[str, Any]): As `spacy evaluate` writes it.
    """
    scores = [*sorted((test["ents_per_type"] or {}).items()), ("all", {key: test[f"ents_{key}"] for key in "prf"})]
    return [(label, *(percent(score[key]) for key in "prf")) for label, score in scores]


def percent(share: float | None) -> str:
    """A share as a percentage with one decimal, or a dash where there is none."""
    return "–" if share is None else f"{100 * share:.1f}"


if __name__ == "__main__":
    run(package)
