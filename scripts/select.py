"""Choose which documents people annotate next."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tqdm
import typer
from wasabi import msg

from common.alignment import create_tokenizer
from common.annotations import Task
from common.errors import StepError, main
from common.gpu import use_gpu
from common.records import writes
from common.scoring import record_tags
from common.selection import doubt_spans, doubt_tags, order_work
from common.similarity import sketch
from common.store import OVERLAP, is_shared, open_store
from common.suggestions import load_pipeline
from common.texts import LONGEST


@writes("folder")
def select(
    folder: Annotated[Path, typer.Argument(help="Folder of the run, with its store")],
    pipeline: Annotated[str, typer.Option(help="A pipeline of this project, a folder or an installed name")] = "",
    batch: Annotated[int, typer.Option(help="Documents in a batch, a tenth of them at random", min=2)] = 20,
    overlap: Annotated[float, typer.Option(help="Share of the documents that everybody gets", min=0, max=1)] = OVERLAP,
    seed: Annotated[int, typer.Option(help="Draws those at random")] = 0,
    gpu_id: Annotated[int, typer.Option(help="GPU, or -1 for the CPU")] = -1,
) -> None:
    """Arrange the work: test, then what a pipeline is least sure of, some at random. What is begun keeps its place.

    It says also how several people share the work.
    """
    use_gpu(gpu_id)
    store = open_store(folder)
    tasks = store.tasks()
    random = np.random.default_rng(seed)
    waiting = [task for task in tasks if not task.annotations and task.document.split != "test"]
    doubts = measure_tags(pipeline, waiting) if pipeline else measure_suggestions(waiting)
    tasks = store.tasks()  # once more, because somebody may have begun one of them meanwhile
    begun_now = {task.document.id for task in tasks if task.annotations}
    free = [number for number, task in enumerate(waiting) if task.document.id not in begun_now]
    waiting, doubts = [waiting[number] for number in free], doubts[free]
    if waiting and not doubts.any():
        msg.warn(
            "Nothing says how sure a pipeline is of these texts: they come at random.",
            "Scores come from a pipeline of this project: make prelabel with one, or name it by --vars.chooser",
        )
    sketches = np.stack([sketch(task.document.text) for task in waiting]) if waiting else np.zeros((0, 1))
    order = order_work(doubts, sketches, batch, random)
    begun = (task.document.rank for task in tasks if task.annotations and task.document.rank is not None)
    start = 1 + max(begun, default=-1.0)
    ranks = {waiting[number].document.id: (start + place, reason) for place, (number, reason) in enumerate(order)}
    test = [task for task in tasks if task.document.split == "test"]
    ranks |= {
        task.document.id: (random.random() - 1, "test")
        for task in test
        if not task.annotations and task.document.rank is None
    }
    store.arrange(ranks)
    store.divide(overlap)
    rows = [("test", len(test)), *Counter(reason for _, reason in order).most_common()]
    rows.append(("begun", sum(bool(task.annotations) for task in tasks if task.document.split != "test")))
    msg.table([(reason, f"{number:,}") for reason, number in rows], header=("place", "documents"), aligns=("l", "r"))
    msg.good(f"Arranged {len(order):,} documents in batches of {batch}")
    shared = sum(is_shared(task.document.id, overlap) for task in tasks)
    msg.info(f"Every annotator gets {shared:,} of the {len(tasks):,} documents; each other one is given to one of them")


def measure_suggestions(tasks: list[Task]) -> np.ndarray:
    """How uncertain the suggestions for documents are.

    tasks (list[Task]): The documents.
    RETURNS (np.ndarray): (documents,), as `doubt_spans` gives it.
    """
    nlp = create_tokenizer()
    doubts = []
    for task in tqdm.tqdm(tasks, "measuring", unit="doc", disable=None):
        text, scores = task.document.text, [span.score for span in task.suggestions]
        with nlp.memory_zone():
            doubts.append(doubt_spans(scores, len(nlp.make_doc(text))))
    return np.array(doubts)


def measure_tags(pipeline: str, tasks: list[Task]) -> np.ndarray:
    """How uncertain a pipeline is of the tags of documents.

    pipeline (str): A pipeline of this project.
    tasks (list[Task]): The documents. One of more than LONGEST characters gets 0.
    RETURNS (np.ndarray): (documents,), as `doubt_tags` gives it.
    RAISES (StepError): If the pipeline gives no probabilities of tags.
    """
    nlp = load_pipeline(pipeline)
    recognizer: Any = nlp.get_pipe("ner") if "ner" in nlp.pipe_names else None
    if not hasattr(recognizer, "tags"):
        raise StepError(
            f"{pipeline} gives no probabilities of tags, as the pipelines of this project do.",
            "Leave it out of the choice, which then goes by the scores of the suggestions: --vars.chooser ''",
        )
    doubts = np.zeros(len(tasks))
    numbers = [number for number, task in enumerate(tasks) if len(task.document.text) <= LONGEST]
    bar = tqdm.tqdm(numbers, "measuring", unit="doc", disable=None)
    with record_tags(nlp) as recorded, nlp.memory_zone():
        for number, _ in zip(bar, nlp.pipe(tasks[number].document.text for number in numbers), strict=True):
            doubts[number] = doubt_tags(recorded.posteriors.pop(0))
            recorded.probabilities.clear()
    return doubts


if __name__ == "__main__":
    main(select)
