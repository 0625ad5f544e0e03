"""Suggest spans for the documents that nobody has annotated yet; tags and chunks come along."""

from __future__ import annotations

from collections import Counter
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import tqdm
import typer
from wasabi import msg

from common.annotations import Span, Task
from common.errors import StepError, main
from common.gpu import use_gpu
from common.records import writes
from common.store import Store, open_store
from common.suggestions import (
    WORDS,
    Finder,
    Word,
    drop_overlaps,
    find_by_patterns,
    find_by_pipeline,
    parse_labels,
    rename,
)
from common.texts import LONGEST

BATCH = 32  # documents that are saved at once


class Precedence(StrEnum):
    """Whose span stays where two overlap."""

    PATTERNS = "patterns"
    PIPELINE = "pipeline"


@writes("folder")
def prelabel(
    folder: Annotated[Path, typer.Argument(help="Folder of the run, with its store")],
    pipeline: Annotated[str, typer.Option(help="A pipeline: a folder, an installed name, or stanza:<language>")] = "",
    patterns: Annotated[str, typer.Option(help="Terms and patterns, a .jsonl as spaCy's entity_ruler reads it")] = "",
    precedence: Annotated[Precedence, typer.Option(help="Whose span stays where two overlap")] = Precedence.PATTERNS,
    labels: Annotated[str, typer.Option(help="Labels to suggest, some renamed: PERSON=PER,ORG; nothing for all")] = "",
    test: Annotated[bool, typer.Option("--test", help="Suggest for test too, which flatters its figures")] = False,
    gpu_id: Annotated[int, typer.Option(help="GPU, or -1 for the CPU")] = -1,
) -> None:
    """Suggest spans for all documents that nobody has begun, in the place of what was suggested for them before."""
    store = open_store(folder)
    wanted = parse_labels(labels)
    finders: dict[str, Finder] = {}
    use_gpu(gpu_id)
    if patterns:
        finders |= [find_by_patterns(Path(patterns))]
    if pipeline:
        finders |= [find_by_pipeline(pipeline)]
    if not finders:
        raise StepError(
            "There is nothing that could suggest spans.",
            "Name a pipeline or a file of patterns: --vars.pipeline en_bert_ner, --vars.patterns path/to/terms.jsonl",
        )
    if precedence == Precedence.PIPELINE:
        finders = dict(reversed(finders.items()))
    tasks = [task for task in store.tasks() if not task.annotations and (test or task.document.split != "test")]
    long = [task.document.id for task in tasks if len(task.document.text) > LONGEST]
    if long:
        msg.warn(f"Left out {len(long)} documents of more than {LONGEST:,} characters: {', '.join(long[:10])}")
    found = suggest(store, [task for task in tasks if len(task.document.text) <= LONGEST], finders, wanted)
    counts = Counter((span.label, span.source) for span in found)
    labels_found = sorted({label for label, _ in counts})
    for label in sorted(set(wanted.values()) - set(labels_found)):
        msg.warn(f"Nothing was found as {label}.", "If the pipeline calls it otherwise, rename it: PERSON=PER")
    rows = [(label, *(f"{counts[label, source]:,}" for source in finders)) for label in labels_found]
    if rows:
        msg.table(rows, header=("label", *finders), divider=True, aligns=("l", *"r" * len(finders)))
    msg.good(f"Suggested {len(found):,} spans for {len(tasks) - len(long):,} documents")


def suggest(store: Store, tasks: list[Task], finders: dict[str, Finder], wanted: dict[str, str]) -> list[Span]:
    """Save what is found in documents, and take away what was found in them before.

    The tags and chunks that the first finder with some has found are kept with the document, for the corpus.

    store (Store): The store.
    tasks (list[Task]): The documents.
    finders (dict[str, Finder]): By source. Of spans that overlap, that of the earlier finder stays.
    wanted (dict[str, str]): The labels, as `parse_labels` gives them.
    RETURNS (list[Span]): All that is suggested.
    """
    found: list[Span] = []
    batches = [tasks[start : start + BATCH] for start in range(0, len(tasks), BATCH)]
    for batch in tqdm.tqdm(batches, "suggesting", unit="batch", disable=None):
        texts = [task.document.text for task in batch]
        taken: list[list[Span]] = [[] for _ in batch]
        words: list[tuple[Word, ...]] = [()] * len(batch)
        for find in finders.values():
            new = list(find(texts))
            spans = [drop_overlaps(rename(one.spans, wanted), old) for one, old in zip(new, taken, strict=True)]
            words = [old or one.words for one, old in zip(new, words, strict=True)]
            taken = [[*old, *more] for old, more in zip(taken, spans, strict=True)]
        # Once more, because somebody may have begun one of them meanwhile.
        now = store.tasks([task.document.id for task in batch])
        free = [one for one in zip(now, taken, words, strict=True) if not one[0].annotations]
        for source in dict.fromkeys([*finders, *(span.source for task, _, _ in free for span in task.suggestions)]):
            store.suggest(
                source,
                {task.document.id: [span for span in spans if span.source == source] for task, spans, _ in free},
            )
        store.describe(
            {task.document.id: {WORDS: rows} for task, _, rows in free if rows or task.document.meta.get(WORDS)}
        )
        found += [span for _, spans, _ in free for span in spans]
    return found


if __name__ == "__main__":
    main(prelabel)
