"""Measure what synthetic texts bring where there are few documents, against more of the same and against no model.

The documents are drawn as those of the learning curve. Each contender adds texts to the training documents of a draw,
made from these documents alone, and is trained for as many steps as without them. Results are found again by their
inputs, so that after an interruption the same command goes on where it was; what a language model answered is kept too.
"""

from __future__ import annotations

import functools
import itertools
import random
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import spacy
import typer
from spacy.tokens import Doc, DocBin
from wasabi import msg

import bert_ner  # noqa: F401 (registers what a trained pipeline names)
from benchmarks.curve import choose_sizes, write_draw
from benchmarks.harness import PIPELINE, choose, machine
from common import synthesis
from common.alignment import create_reader
from common.chat import Chat, find_chat
from common.corpora import read_docs
from common.errors import StepError, main
from common.forgetting import count_entities
from common.formatting import tabulate_synthetic
from common.mixing import mix
from common.models import train_aside
from common.prompts import Method, Seeds, Settings, check_labels, read_settings
from common.records import SPLITS, code_digest, digest, made, read_json, record_inputs, sha256, write_json, writes
from common.scoring import create_examples, predict
from common.sieve import Sieve
from common.statistics import bootstrap, f_score, interval
from common.synthesis import Made, find_limit, find_writer, generate, measure_diversity, recombine
from common.training import identify_recipe, prepare

SIZES = "25,50,100,200"
NONE, OVERSAMPLED = "none", "oversampled"
SIEVE = [Path(synthesis.__file__).with_name(f"{name}.py") for name in ("prompts", "sieve", "similarity")]
CONTENDERS = (NONE, OVERSAMPLED, str(Method.recombine), *(str(one) for one in Method if one != Method.recombine))


@writes("metrics", "synthetic.json")
def synthetic(
    config: Annotated[Path, typer.Argument(help="Training config", exists=True)],
    folder: Annotated[Path, typer.Argument(help="Folder of the run, where train keeps its models")],
    corpus: Annotated[Path, typer.Argument(help="Folder with train.spacy, dev.spacy, test.spacy", exists=True)],
    encoder: Annotated[Path, typer.Argument(help="Folder of the encoder", exists=True)],
    metrics: Annotated[Path, typer.Argument(help="Folder for synthetic.json")],
    settings: Annotated[Path, typer.Option(help="As synthesize takes them", exists=True)],
    store: Annotated[Path, typer.Option(help="Folder in which the small language model lies")],
    requirements: Annotated[Path, typer.Option(help="It pins the small language model", exists=True)],
    sizes: Annotated[str, typer.Option(help="Numbers of documents, or all, with commas between")] = SIZES,
    draws: Annotated[int, typer.Option(help="How many, from 0; a draw is the seed of its trainings too", min=1)] = 3,
    share: Annotated[float, typer.Option(help="What part of the training tokens is added")] = 0.3,
    sentences: Annotated[int, typer.Option(help="The most texts that a language model writes for a draw")] = 200,
    only: Annotated[str, typer.Option(help="Some contenders, with commas between")] = "",
    gpu_id: Annotated[int, typer.Option(help="GPU, or -1 for the CPU")] = -1,
) -> None:
    """Train with and without synthetic texts on few documents, and score on test by label."""
    names = choose(CONTENDERS, only)
    chosen = read_settings(settings)
    numbers = choose_sizes(sizes, len(read_docs(corpus / "train.spacy")))
    path = metrics / "synthetic.json"
    endpoint = find_chat()
    data = record_inputs(encoder=encoder, **{split: corpus / f"{split}.spacy" for split in SPLITS})
    data |= {"synthesis": code_digest(Path(synthesis.__file__)), "recipe": digest(identify_recipe(config))}
    with tempfile.TemporaryDirectory() as temporary, ExitStack() as stack:

        @functools.cache
        def find_draw(documents: int, draw: int) -> Path:
            return write_draw(corpus, documents, draw, Path(temporary, f"{documents}-{draw}"))

        @functools.cache
        def open_writer() -> Chat:
            return stack.enter_context(find_writer(requirements, store, chosen.parallel))

        def find_inputs(name: str, documents: int, draw: int) -> dict[str, Any]:
            inputs = data | {"train": sha256(find_draw(documents, draw) / "train.spacy"), "draw": draw}
            if name == NONE:
                return inputs
            inputs["share"] = share
            if name == OVERSAMPLED:
                return inputs
            inputs["sieve"] = code_digest(*SIEVE)
            if name == Method.recombine:
                return inputs | {"words": list(chosen.words)}
            writer = endpoint.name if endpoint else sha256(requirements)
            return inputs | {
                "writer": writer,
                "sentences": sentences,
                "settings": digest(chosen.model_dump(mode="json")),
            }

        runs = read_json(path).get("runs", {})
        current = {
            key: run
            for key, run in runs.items()
            if run["contender"] in CONTENDERS
            and run["inputs"] == find_inputs(run["contender"], run["documents"], run["draw"])
        }

        def write() -> dict[str, Any]:
            made_from = data | record_inputs(config=config, code=Path(__file__), pipeline=PIPELINE)
            record = {"machine": machine(), "inputs": made_from, "runs": runs, "summary": summarize(current.values())}
            write_json(path, record)
            return record

        for documents, draw, name in itertools.product(numbers, range(draws), names):
            key = f"{name}, {documents} documents, draw {draw}"
            msg.divider(key)
            if key in current:
                msg.good("measured already")
                continue
            drawn = find_draw(documents, draw)
            added: dict[str, Any] = {}
            target: Path = drawn
            options: dict[str, Any] = {"seed": draw}
            if name != NONE:
                target = write_draw(corpus, documents, draw, Path(temporary, f"{documents}-{draw}-{name}"))
                texts = None
                if name != OVERSAMPLED:
                    made(folder, "synthetic")
                    texts = make_texts(Method(name), drawn, chosen, open_writer, folder / "synthetic", sentences, draw)
                added = add_texts(target, texts, share, draw)
                options |= equal_steps(config, drawn, target, encoder, draw)
            provenance, _ = prepare(config, target, encoder, **options)
            model = train_aside(provenance, config, folder, target, encoder, **options, gpu_id=gpu_id)
            steps = provenance["settings"]["training.max_steps"]
            where = {"contender": name, "documents": documents, "draw": draw, "steps": steps}
            inputs = find_inputs(name, documents, draw)
            runs[key] = current[key] = {**where, **added, "inputs": inputs, "counts": count_by_label(model, corpus)}
            write()
    record = write()
    if record["summary"]:
        header, rows = tabulate_synthetic(record)
        msg.table(rows, header=header, divider=True)
    else:
        msg.warn(f"There is nothing to compare with: train {NONE} too.")
    msg.good(f"Wrote {path}")


def make_texts(
    method: Method,
    corpus: Path,
    settings: Settings,
    open_writer: Callable[[], Chat],
    logs: Path,
    sentences: int,
    seed: int,
) -> Made:
    """Make synthetic texts from the training documents of a corpus, as `synthesize` does.

    method (Method): How.
    corpus (Path): Folder with train.spacy, dev.spacy, test.spacy.
    settings (Settings): The settings.
    open_writer (Callable[[], Chat]): Gives the endpoint, which is not needed for recombine.
    logs (Path): Folder for what it answers.
    sentences (int): The most texts that a language model writes. recombine makes as many as there are sentences.
    seed (int): What is drawn.
    RETURNS (Made): The texts.
    RAISES (StepError): If the endpoint fails before there are enough, or before a limit of the settings is reached.
    """
    nlp = create_reader()
    train = read_docs(corpus / "train.spacy", nlp.vocab)
    held_out = [doc for split in ("dev", "test") for doc in read_docs(corpus / f"{split}.spacy", nlp.vocab)]
    seeds = Seeds(train)
    check_labels(seeds, settings)
    sieve = Sieve(nlp, method, settings, seeds, train, held_out)
    if method == Method.recombine:
        return recombine(sieve, train, sum(1 for doc in train for _ in doc.sents), seed)
    found = generate(sieve, open_writer(), logs, sentences, seed)
    if found.stopped and not find_limit(settings, found.usage):
        raise StepError(found.stopped, "What is done is kept: run the same again.")
    return found


def add_texts(corpus: Path, found: Made | None, share: float, seed: int) -> dict[str, Any]:
    """Add texts to train.spacy.

    corpus (Path): Folder with train.spacy, which is replaced.
    found (Made | None): The texts, or None to repeat documents of train.
    share (float): What part of the tokens they shall be; all are taken if there are too few.
    seed (int): Of the order of documents that are repeated.
    RETURNS (dict[str, Any]): `share` that was reached, and of synthetic texts: `kept`, `tried`, `usage`, `diversity`.
    """
    train = read_docs(corpus / "train.spacy")
    texts: Iterable[Doc] = _repeat(train, seed) if found is None else found.docs
    mixed = mix(train, texts, share)
    DocBin(docs=mixed, store_user_data=True).to_disk(corpus / "train.spacy")
    result: dict[str, Any] = {"share": 1 - sum(map(len, train)) / sum(map(len, mixed))}
    if found is None:
        return result
    added = [doc.text for doc in mixed[len(train) :]]
    counts = {"kept": len(found.docs), "tried": len(found.verdicts)}
    return result | counts | {"usage": found.usage, "diversity": measure_diversity(added)}


def _repeat(docs: list[Doc], seed: int) -> Iterator[Doc]:
    while True:
        yield from random.Random(seed).sample(docs, len(docs))


def equal_steps(config: Path, plain: Path, mixed: Path, encoder: Path, seed: int) -> dict[str, str]:
    """Find the options with which a training on more texts has as many steps, of as many words, as one without them.

    Where it has less than EVALUATIONS epochs, dev is scored once for each, and there may be a few steps more.

    config (Path): Training config.
    plain, mixed (Path): Folders of the two corpora.
    encoder (Path): Folder of the encoder.
    seed (int): Of both.
    RETURNS (dict[str, str]): `batch_words` and `epochs`.
    """
    before = prepare(config, plain, encoder, seed=seed)[1]
    words = str(before["training.batcher.batcher.size"])
    once = prepare(config, mixed, encoder, epochs="1", batch_words=words, seed=seed)[1]["training.max_steps"]
    # Half a step less, since steps are rounded up
    return {"batch_words": words, "epochs": str((before["training.max_steps"] - 0.5) / once)}


def count_by_label(model: Path, corpus: Path) -> dict[str, list[list[int]]]:
    """Count entities of test, with gold sentences.

    model (Path): The trained pipeline.
    corpus (Path): Folder with test.spacy.
    RETURNS (dict[str, list[list[int]]]): By label, for each document the numbers of entities that are correct,
        predicted and gold.
    """
    nlp = spacy.load(model)
    examples = list(create_examples(nlp, corpus / "test.spacy", "gold_sentences"))
    predict(nlp, examples)
    labels = sorted({ent.label_ for example in examples for ent in example.reference.ents})
    return dict(zip(labels, count_entities(examples, labels).tolist(), strict=True))


def summarize(runs: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Summarize the draws.

    runs (Iterable[dict[str, Any]]): As `synthetic` writes them.
    RETURNS (list[dict[str, Any]]): For each number of `documents`, from the lowest, and each `contender`: the number of
        `draws` that were trained without texts too; `labels`: by label, and by "all", the mean F1 on test over these
        draws, `f1`; how much that is `more` than without texts; `interval`: the 95% interval of this difference, over
        resampled test documents; `draws`: the difference in each draw.
    """
    every = sorted(runs, key=lambda run: run["draw"])
    plain = {(run["documents"], run["draw"]): run for run in every if run["contender"] == NONE}
    groups: dict[tuple[int, str], list[dict[str, Any]]] = {}
    for run in every:
        if (run["documents"], run["draw"]) in plain:
            groups.setdefault((run["documents"], run["contender"]), []).append(run)
    order = sorted(groups, key=lambda key: (key[0], CONTENDERS.index(key[1])))
    return [
        {"documents": documents, "contender": name, "draws": len(group), "labels": _compare(group, plain)}
        for documents, name in order
        for group in [groups[documents, name]]
    ]


def _compare(group: list[dict[str, Any]], plain: dict[tuple[int, int], dict[str, Any]]) -> dict[str, Any]:
    others = [plain[run["documents"], run["draw"]] for run in group]
    result: dict[str, Any] = {}
    for label in ("all", *group[0]["counts"]):
        with_texts, without = (np.array([_counts_of(run, label) for run in side]) for side in (group, others))
        scores, before = (f_score(counts.sum(1)) for counts in (with_texts, without))
        result[label] = {
            "f1": float(scores.mean()),
            "more": float((scores - before).mean()),
            "interval": interval(bootstrap(with_texts) - bootstrap(without)),
            "draws": [float(value) for value in scores - before],
        }
    return result


def _counts_of(run: dict[str, Any], label: str) -> Any:
    """The counts of a label, or of all of them, shape (documents, 3)."""
    return np.sum(list(run["counts"].values()), 0) if label == "all" else np.array(run["counts"][label])


if __name__ == "__main__":
    main(synthetic)
