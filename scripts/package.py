"""Prepare a pipeline for `spacy package`: a copy with metadata and a model card, and without paths of this machine."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from packaging.requirements import Requirement
from packaging.version import InvalidVersion, Version
from thinc.api import Config
from wasabi import msg

from common.errors import StepError, main
from common.forgetting import find_lost
from common.formatting import calibration_summary, interval_text, percent
from common.licenses import SOURCES, find_license
from common.records import made, read_json, staged, write_json, writes
from common.wheels import Weights

PYTHON = ">=3.11"
NEEDED = ("spacy-transformers", "transformers", "torch", "numpy")  # by the code in the wheel; spaCy adds itself


class Forgetting(StrEnum):
    """What becomes of a pipeline that has forgotten something of what the one knew that it went on from."""

    refuse = "refuse"
    accept = "accept"


CARD = """# {package}

{description}

```python
import spacy

nlp = spacy.load("{package}")
doc = nlp("My name is Wolfgang and I live in Berlin.")
print([(ent.text, ent.label_, ent._.score) for ent in doc.ents])
print([(span.text, span.label_) for span in doc.spans["concepts"]])  # actors, factors, mechanisms, by rules
```
{disabled}
Version {version}. Components: {components}. Labels: {labels}.

## Scores on the test set

| label | precision | recall | F1 | 95% interval of F1 | entities |
|---|---|---|---|---|---|
{label_rows}

An entity is correct if exactly its span and label are. `spacy evaluate` gives these scores; the pipeline finds the
sentences itself, and the intervals come from resampling documents. With the sentence boundaries of the corpus, as in
the literature, F1 is {gold_f}; with all words in lower case it is {lower_f}, in upper case {upper_f}, and from raw text
{raw_f}. F1 of sentences is {sents_f}.{tag_acc}{chunks_f} The entity tags of {token_accuracy} of the tokens are
correct, with a loss of {token_loss:.3f}.

`ent._.score`, above 0 and at most 1, is the probability that exactly this span and label is correct. Its expected
calibration error is {calibration_error:.3f}. {summary}

## Training

Corpus: {corpus}, with {documents} documents, {sentences} sentences and {tokens} tokens for training.
Encoder: {encoder}. The training took {seconds} seconds on {device}, with {versions}. Settings: {settings}.

## Limits and biases

The pipeline finds the kinds of names, in the kind of text, that its corpus has. Expect lower scores on other text. It
may be better with the names of some people, places or languages than with others; the table compares names seen in
training with unseen ones. The licences of what it was made from ({licenses}) bind this pipeline too.

| entities of test | | number | precision | recall | F1 |
|---|---|---|---|---|---|
{slice_rows}

Errors on test: {errors}.
"""

CHUNKS = """
To find noun phrases, verb phrases and other chunks too, call `nlp.enable_pipe("chunker")`; `doc.spans["chunks"]` has
them then.
"""


@writes("packages", "pipeline")
def package(
    model: Annotated[Path, typer.Argument(help="Assembled pipeline", exists=True)],
    metrics: Annotated[Path, typer.Argument(help="With test.json, evaluation.json, analysis.json", exists=True)],
    packages: Annotated[Path, typer.Argument(help="Folder for pipeline/, the copy that `spacy package` takes")],
    name: Annotated[str, typer.Option(help="Name of the package, without en_")],
    version: Annotated[str, typer.Option(help="Version of the package")],
    license: Annotated[str, typer.Option(help="Licence of the package, or auto: what corpus and encoder allow")],
    weights: Annotated[Weights, typer.Option(help="How the encoder's weights are saved")],
    requirements: Annotated[Path, typer.Option(help="What the project needs, as pip reads it", exists=True)],
    forgetting: Annotated[Forgetting, typer.Option(help="Of a label that a pipeline before knew")] = Forgetting.refuse,
) -> None:
    """Copy a pipeline, and add description, licence, sources, scores and a model card."""
    check_name(name, version)
    made(packages, f"en_{name}-{version}")  # by `spacy package`, afterwards
    test, evaluation, analysis = (read_json(metrics / f"{name}.json") for name in ("test", "evaluation", "analysis"))
    if not (test and evaluation and analysis):
        raise StepError(f"{metrics} lacks test.json, evaluation.json or analysis.json.", "Run evaluate and analyze.")
    trained_from = evaluation["training"].get("inputs", {})
    if "start" in trained_from and forgetting is Forgetting.refuse:
        check_forgetting(metrics, evaluation)
    corpus, encoder = (SOURCES.get(evaluation[key], {"name": evaluation[key]}) for key in ("corpus", "encoder"))
    sources = [corpus, encoder]
    if "start" in trained_from:
        sources.append({"name": "the pipeline that it goes on from"})  # whose corpus nobody knows here
    elif "taught" in trained_from:
        sources.append({"name": "its teachers"})  # who were trained on a corpus that nobody knows here
    allowed = find_license(license, *sources)
    with staged(packages / "pipeline") as folder:
        shutil.copytree(model, folder, dirs_exist_ok=True)
        if weights is Weights.float16:
            halve(folder)
        config = Config().from_disk(folder / "config.cfg", interpolate=False)
        config["paths"] |= {"train": None, "dev": None, "encoder": encoder["name"]}
        config["components"]["transformer"]["model"]["name"] = encoder["name"]  # `spacy assemble` put the path here
        config.to_disk(folder / "config.cfg")
        meta = read_json(folder / "meta.json") | {
            "name": name,
            "version": version,
            "license": allowed,
            "requirements": read_requirements(requirements),
            "description": f"Named entities in English, by {encoder['name']} fine-tuned on {corpus['name']}.",
            "sources": sources,
            "performance": {key: value for key, value in test.items() if key != "speed"},
        }
        write_json(folder / "meta.json", meta)
        (folder / "README.md").write_text(card(meta, test, evaluation, analysis), encoding="utf8")
    # The setup.py that spaCy writes does not bound the Python version. setuptools reads setup.cfg too, and spaCy keeps
    # the one that stands there
    place = packages / f"en_{name}-{version}"
    place.mkdir(exist_ok=True)
    shutil.rmtree(place / "build", ignore_errors=True)  # else files of an earlier pipeline get into the wheel
    (place / "setup.cfg").write_text(f"[options]\npython_requires = {PYTHON}\n", encoding="utf8")
    msg.good(f"Prepared {packages / 'pipeline'}")


def check_name(name: str, version: str) -> None:
    """Make sure that a wheel has the name and the version of its package as they are, so that both are found again.

    name (str): The name of the package, without en_.
    version (str): Its version.
    RAISES (StepError): If setuptools or spaCy would write one of them in another way.
    """
    if not re.fullmatch(r"(?!en_)[a-z][a-z0-9]*(_[a-z0-9]+)*", name):
        raise StepError(
            f"A package cannot have the name {name!r}.",
            "Use small letters, digits and single _, and leave out en_, which comes before it: --vars.name my_ner",
        )
    try:
        normal = str(Version(version))
    except InvalidVersion:
        normal = "1.0.0"
    if version != normal:
        raise StepError(f"A package cannot have the version {version!r}.", f"For example: --vars.version {normal}")


def check_forgetting(metrics: Path, evaluation: dict[str, Any]) -> None:
    """Make sure that a pipeline has kept the labels of the one that it went on from.

    metrics (Path): With comparison.json.
    evaluation (dict[str, Any]): As the step evaluate writes it.
    RAISES (StepError): If F1 of a label has dropped on test by more than chance explains, if test has no entity of a
        label, or if nobody has compared the pipelines.
    """
    comparison = read_json(metrics / "comparison.json")
    if comparison.get("inputs", {}).get("model") != evaluation["inputs"]["model"]:
        raise StepError(f"{metrics} has no comparison.json of this pipeline.", "Run compare: make compare RUN=<run>")
    test = comparison["test"]
    lost, unknown = find_lost(test)
    problems = []
    for label in lost:
        row = test[label]
        before, after, low, high = (percent(share) for share in (row["before"], row["after"], *row["interval"]))
        problems.append(f"{label} had {before} before and has {after} now (the change is {low} to {high})")
    if unknown:
        problems.append(f"of {', '.join(unknown)} test has no entity, so that nobody knows")
    if problems:
        raise StepError(
            f"The pipeline may have forgotten what it knew before. F1 on test: {'; '.join(problems)}.",
            "Add documents with these labels to train and test, or more texts for rehearsal (--vars.texts). "
            "To package it as it is: --vars.forgetting accept",
        )


def halve(folder: Path) -> None:
    """Save the encoder of a pipeline in half precision. Only this loads the model, and with it PyTorch.

    folder (Path): The pipeline, which is changed.
    """
    import spacy

    import bert_ner  # noqa: F401 (registers what the pipeline names)

    transformer: Any = spacy.load(folder).get_pipe("transformer")
    transformer.model.transformer.half()
    transformer.to_disk(folder / "transformer")


def read_requirements(path: Path) -> list[str]:
    """Read what the code in the wheel imports, with the bounds that the project sets.

    path (Path): A requirements file.
    RETURNS (list[str]): Requirements as pip takes them.
    """
    lines = (line.partition("#")[0].strip() for line in path.read_text("utf8").splitlines())
    bounds = {Requirement(line).name: line for line in lines if line}
    return [bounds[name] for name in NEEDED]


def card(meta: dict[str, Any], test: dict[str, Any], evaluation: dict[str, Any], analysis: dict[str, Any]) -> str:
    """Write the model card.

    meta (dict[str, Any]): The metadata of the package.
    test (dict[str, Any]): As `spacy evaluate` writes it.
    evaluation, analysis (dict[str, Any]): As the steps evaluate and analyze write them.
    RETURNS (str): Markdown.
    """
    corpus, encoder, *_ = meta["sources"]
    counts, training = evaluation["counts"]["train"], evaluation["training"]
    scores = evaluation["test"]["calibration"]

    def figures(scores: dict[str, Any]) -> list[str]:
        return [percent(scores[name]) for name in ("precision", "recall", "f1")]

    return CARD.format(
        package=f"en_{meta['name']}",
        version=meta["version"],
        description=meta["description"],
        disabled=CHUNKS if "chunker" in meta["disabled"] else "",
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
        errors=", ".join(f"{kind} {numbers['overall']:,}" for kind, numbers in analysis["errors"].items()),
        token_accuracy=f"{100 * analysis['tokens']['test']['accuracy']:.2f} %",
        token_loss=analysis["tokens"]["test"]["loss"],
        gold_f=percent(evaluation["test"]["gold_sentences"]["ents_f"]),
        **{f"{name}_f": percent(evaluation["test"][name]["ents_f"]) for name in ("lower", "upper", "raw")},
        calibration_error=scores["expected_calibration_error"],
        summary=calibration_summary(scores),
        sents_f=percent(test.get("sents_f")),
        tag_acc=f" The accuracy of part-of-speech tags is {percent(test['tag_acc'])}." if test.get("tag_acc") else "",
        chunks_f=f" F1 of chunks is {percent(test['spans_chunks_f'])}." if test.get("spans_chunks_f") else "",
        corpus=corpus["name"],
        encoder=encoder["name"],
        licenses="; ".join(
            f"{source['name']}: {source.get('license', 'see its source')}" for source in meta["sources"]
        ),
        seconds=training["seconds"],
        device=training["device"],
        versions=", ".join(f"{package} {version}" for package, version in training["versions"].items()),
        settings=", ".join(f"{key} {value}" for key, value in training["inputs"]["settings"].items()),
        **{key: f"{counts[key]:,}" for key in ("documents", "sentences", "tokens")},
    )


def _rows(rows: Iterable[tuple[str, ...]]) -> str:
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in rows)


if __name__ == "__main__":
    main(package)
