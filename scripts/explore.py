"""Describe a corpus: what its splits hold, what is hard about it, whether they are alike, what looks wrong."""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import matplotlib.pyplot as plt
import numpy as np
import spacy
import tqdm
import typer
from scipy.spatial.distance import jensenshannon  # type: ignore[import-untyped]
from spacy.tokens import Doc, Span
from transformers import AutoTokenizer
from wasabi import msg

from common.corpora import CONTEXT, EXAMPLES, KINDS, LENGTHS, iob_tags, kind_of, read_docs
from common.errors import main
from common.figures import COLUMNS, Figures, draw_matrix, draw_shares, save_figures, scale_log
from common.formatting import rows_of
from common.records import SPLITS, read_json, record_inputs, staged, write_json, writes

SHINGLE = 5  # words in a piece of a document
ALIKE = 0.5  # two documents are near-duplicates if they share so many of their pieces
OFTEN, MOSTLY = 5, 0.9  # a label is odd for a name that occurs so often, and with another label in so many cases


@writes("metrics")
def explore(
    corpus: Annotated[Path, typer.Argument(help="Folder with the .spacy files and provenance.json", exists=True)],
    encoder: Annotated[Path, typer.Argument(help="Folder of the encoder, for its tokenizer", exists=True)],
    metrics: Annotated[Path, typer.Argument(help="Folder for corpus.json, corpus-examples.json and figures")],
) -> None:
    """Describe a corpus in numbers and in figures."""
    source = read_json(corpus / "provenance.json")
    vocab = spacy.blank("en").vocab
    splits = {split: read_docs(corpus / f"{split}.spacy", vocab) for split in SPLITS}
    tokenizer = AutoTokenizer.from_pretrained(encoder)
    described = {split: describe(docs, tokenizer, split) for split, docs in splits.items()}
    odd, examples = find_oddities(splits)
    result = {
        "inputs": record_inputs(
            code=Path(__file__), encoder=encoder, **{split: corpus / f"{split}.spacy" for split in SPLITS}
        ),
        "corpus": source.get("corpus", {}).get("corpus", ""),
        "encoder": read_json(encoder / "config.json").get("_name_or_path", ""),
        "repaired": {split: counts.get("repaired", {}) for split, counts in source.get("counts", {}).items()},
        "splits": described,
        "against_train": {split: compare(splits["train"], splits[split]) for split in SPLITS[1:]},
        "oddities": odd,
    }
    with staged(metrics, "figures/corpus", "corpus-examples.json", "corpus.json") as new:
        result["captions"] = save_figures(FIGURES, result, new / "figures" / "corpus")
        write_json(new / "corpus-examples.json", examples)  # they quote the corpus, so git ignores them
        write_json(new / "corpus.json", result)
    show(result)
    msg.good(f"Wrote {metrics / 'corpus.json'} and {len(FIGURES)} figures")


def describe(docs: list[Doc], tokenizer: Any, name: str) -> dict[str, Any]:
    """Describe what a split holds.

    docs (list[Doc]): With sentences and entities, and perhaps tags and chunks.
    tokenizer (Any): The tokenizer of the encoder.
    name (str): The name of the split, for the progress bar.
    RETURNS (dict[str, Any]): How much there is; lengths; entities; classes of tokens in IOB2; tags and chunks, and
        those of the last token of each entity; kinds of sentences; how many documents are longer than a window.
    """
    sentences = [sentence for doc in docs for sentence in doc.sents]
    ents = [ent for doc in docs for ent in doc.ents]
    labels = Counter(ent.label_ for ent in ents)
    by_length = {label: dict.fromkeys(LENGTHS, 0) for label in sorted(labels)}
    tags_of: dict[str, Counter[str]] = defaultdict(Counter)
    chunks_of: dict[str, Counter[str]] = defaultdict(Counter)
    chunks: Counter[str] = Counter()
    wordpieces: list[int] = []
    for doc in tqdm.tqdm(docs, desc=name, unit="doc", disable=None):
        chunk_at = {token.i: chunk.label_ for chunk in doc.spans.get("chunks", []) for token in chunk}
        chunks.update(chunk.label_ for chunk in doc.spans.get("chunks", []))
        for ent in doc.ents:
            by_length[ent.label_][LENGTHS[min(len(ent), len(LENGTHS)) - 1]] += 1
            tags_of[ent.label_][ent[-1].tag_] += 1
            chunks_of[ent.label_][chunk_at.get(ent.end - 1, "none")] += 1
        if len(doc):
            rows = tokenizer([token.text for token in doc], add_special_tokens=False)["input_ids"]
            wordpieces += [sum(map(len, rows))]
    tokens = sum(map(len, docs))
    kinds = Counter(kind_of(sentence) for sentence in sentences)
    return {
        "documents": len(docs),
        "sentences": len(sentences),
        "tokens": tokens,
        "lengths": {
            "tokens of a document": spread([len(doc) for doc in docs]),
            "tokens of a sentence": spread([len(sentence) for sentence in sentences]),
            "wordpieces of a document": spread(wordpieces),
        },
        "wordpieces_per_token": sum(wordpieces) / max(1, tokens),
        "longer_than_128_tokens": sum(len(doc) > 128 for doc in docs),
        "longer_than_510_wordpieces": sum(number > 510 for number in wordpieces),
        "entities": dict(sorted(labels.items())),
        "entities_by_length": by_length,
        "entity_imbalance": max(labels.values()) / min(labels.values()) if labels else None,
        "entity_token_share": sum(map(len, ents)) / max(1, tokens),
        "token_classes": dict(Counter(itertools.chain.from_iterable(map(iob_tags, docs))).most_common()),
        "tags": dict(Counter(token.tag_ for doc in docs for token in doc if token.tag_).most_common()),
        "chunks": dict(chunks.most_common()),
        "tags_of_entities": {label: dict(tags_of[label].most_common()) for label in sorted(tags_of)},
        "chunks_of_entities": {label: dict(chunks_of[label].most_common()) for label in sorted(chunks_of)},
        "kinds_of_sentences": {kind: kinds[kind] for kind in KINDS},
        "capitals_only": sum(sentence.text.isupper() for sentence in sentences),
    }


def spread(numbers: list[int]) -> dict[str, Any]:
    """Describe the distribution of numbers.

    numbers (list[int]): Not negative.
    RETURNS (dict[str, Any]): `mean`, `median`, `p95`, the 95th percentile, `max`, and a `histogram`: counts by the
        lower edge of a bin, each edge twice the one before. Empty if there are no numbers.
    """
    if not numbers:
        return {}
    edges = [0, *(2**i for i in range(int(max(numbers)).bit_length() + 1))]
    counts, _ = np.histogram(numbers, edges)
    return {
        "mean": float(np.mean(numbers)),
        "median": float(np.median(numbers)),
        "p95": float(np.percentile(numbers, 95)),
        "max": max(numbers),
        "histogram": dict(zip(map(str, edges[:-1]), counts.tolist(), strict=True)),
    }


def compare(train: list[Doc], other: list[Doc]) -> dict[str, Any]:
    """Compare another split with train: how it differs, and how much of it train has too.

    train, other (list[Doc]): The splits.
    RETURNS (dict[str, Any]): Apart from case, `unseen` and `unseen_overall`: the share of entities whose text is no
        entity of train, by label and overall; `unknown_words`: the share of tokens that train does not have.
        `divergence` of labels, tags and chunks: Jensen-Shannon divergence, from 0 to 1. `same_documents`,
        `near_duplicates` and, of five tokens or more, `same_sentences`: how many train has too.
    """
    seen = {ent.text.lower() for doc in train for ent in doc.ents}
    words = {token.lower for doc in train for token in doc}
    ents = [ent for doc in other for ent in doc.ents]
    unseen: dict[str, list[bool]] = defaultdict(list)
    for ent in ents:
        unseen[ent.label_].append(ent.text.lower() not in seen)
    tokens = [token for doc in other for token in doc]
    texts, sentences = {tuple(words_of(doc)) for doc in train}, {tuple(words_of(s)) for doc in train for s in doc.sents}
    return {
        "unseen": {label: float(np.mean(unseen[label])) for label in sorted(unseen)},
        "unseen_overall": float(np.mean([ent.text.lower() not in seen for ent in ents])) if ents else None,
        "unknown_words": float(np.mean([token.lower not in words for token in tokens])) if tokens else None,
        "divergence": {
            "labels": divergence(*(Counter(ent.label_ for doc in docs for ent in doc.ents) for docs in (train, other))),
            "tags": divergence(*(Counter(t.tag_ for doc in docs for t in doc if t.tag_) for docs in (train, other))),
            "chunks": divergence(
                *(Counter(c.label_ for doc in docs for c in doc.spans.get("chunks", [])) for docs in (train, other))
            ),
        },
        "same_documents": sum(tuple(words_of(doc)) in texts for doc in other),
        "same_sentences": sum(
            len(sentence) >= SHINGLE and tuple(words_of(sentence)) in sentences
            for doc in other
            for sentence in doc.sents
        ),
        "near_duplicates": count_near_duplicates(train, other),
    }


def words_of(part: Doc | Span) -> list[str]:
    """The words of a document or a part of it, in lower case."""
    return [token.lower_ for token in part]


def divergence(one: Counter[str], other: Counter[str]) -> float | None:
    """The Jensen-Shannon divergence of two distributions, to the base 2; None if one of them is empty."""
    if not one or not other:
        return None
    keys = sorted(one | other)
    return float(jensenshannon([one[key] for key in keys], [other[key] for key in keys], base=2) ** 2)


def count_near_duplicates(train: list[Doc], other: list[Doc]) -> int:
    """Count the documents that share at least ALIKE of their pieces of SHINGLE words with one of train.

    As in Broder 1997, https://doi.org/10.1109/SEQUEN.1997.666900.
    """

    def pieces(doc: Doc) -> set[tuple[str, ...]]:
        words = words_of(doc)
        return {tuple(words[i : i + SHINGLE]) for i in range(max(1, len(words) - SHINGLE + 1))}

    where: dict[tuple[str, ...], list[int]] = defaultdict(list)
    sizes = []
    for i, doc in enumerate(train):
        own = pieces(doc)
        sizes.append(len(own))
        for piece in own:
            where[piece].append(i)
    number = 0
    for doc in other:
        own = pieces(doc)
        common = Counter(i for piece in own for i in where.get(piece, ()))
        number += any(n / (len(own) + sizes[i] - n) >= ALIKE for i, n in common.items())
    return number


def find_oddities(splits: dict[str, list[Doc]]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Find what is ambiguous or looks wrong.

    splits (dict[str, list[Doc]]): All splits.
    RETURNS (tuple[dict[str, Any], dict[str, Any]]): First how much there is, for each split or for all: names with
        several labels, and entities of such names; which pairs of labels they have; entities whose text occurs without
        a mark too; entities with a label that their name hardly ever has; neighbouring entities with the same label;
        and of these neighbours those with a sentence start between them, which are mostly halves of one name. Then
        examples of the same, with their words.
    """
    labels: dict[str, Counter[str]] = defaultdict(Counter)
    for ent in (ent for docs in splits.values() for doc in docs for ent in doc.ents):
        labels[ent.text][ent.label_] += 1
    ambiguous = {text for text, counts in labels.items() if len(counts) > 1}
    unmarked = count_unmarked(itertools.chain.from_iterable(splits.values()), set(labels))
    pairs = Counter(pair for text in ambiguous for pair in itertools.combinations(sorted(labels[text]), 2))
    figures: dict[str, Any] = {
        "names": len(labels),
        "names_with_several_labels": len(ambiguous),
        "pairs_of_labels": {" and ".join(pair): number for pair, number in pairs.most_common()},
        "splits": {},
    }
    rare, halves = [], []
    for split, docs in splits.items():
        counts: Counter[str] = Counter()
        for doc in docs:
            for ent in doc.ents:
                counts["ambiguous"] += ent.text in ambiguous
                counts["unmarked_elsewhere"] += bool(unmarked[ent.text])
                total = labels[ent.text].total()
                most, number = labels[ent.text].most_common(1)[0]
                if total >= OFTEN and most != ent.label_ and number >= MOSTLY * total:
                    counts["rare_label"] += 1
                    rare.append(
                        {"split": split, "text": ent.text, "label": ent.label_, "usual": most, "in": around(ent)}
                    )
            for one, two in itertools.pairwise(doc.ents):
                if one.end == two.start and one.label_ == two.label_:
                    counts["next_to_its_like"] += 1
                    if two[0].is_sent_start:
                        counts["cut_by_a_sentence_start"] += 1
                        halves.append({"split": split, "text": f"{one.text} | {two.text}", "label": one.label_})
        names = ("ambiguous", "unmarked_elsewhere", "rare_label", "next_to_its_like", "cut_by_a_sentence_start")
        figures["splits"][split] = {name: counts[name] for name in names}
    several = sorted(ambiguous, key=lambda text: -labels[text].total())
    examples = {
        "several_labels": [{"text": text, "labels": dict(labels[text])} for text in several[:EXAMPLES]],
        "unmarked_elsewhere": [{"text": text, "times": number} for text, number in unmarked.most_common(EXAMPLES)],
        "rare_label": rare[:EXAMPLES],
        "cut_by_a_sentence_start": halves[:EXAMPLES],
    }
    return figures, examples


def count_unmarked(docs: Iterable[Doc], texts: set[str]) -> Counter[str]:
    """Count how often each text occurs where no entity is, in whole tokens."""
    lengths = sorted({text.count(" ") + 1 for text in texts})
    times: Counter[str] = Counter()
    for doc in docs:
        free = [token.text if not token.ent_type else None for token in doc]
        for length in lengths:
            for i in range(len(free) - length + 1):
                words = free[i : i + length]
                if None not in words and (text := " ".join(map(str, words))) in texts:
                    times[text] += 1
    return times


def around(ent: Span) -> str:
    """The text of an entity with CONTEXT tokens on each side."""
    return str(ent.doc[max(0, ent.start - CONTEXT) : ent.end + CONTEXT].text)


def draw_lengths(result: dict[str, Any]) -> Any:
    names = list(result["splits"]["train"]["lengths"])
    figure, all_axes = plt.subplots(1, len(names), figsize=(4 * len(names), 3.2))
    for axes, name in zip(all_axes, names, strict=True):
        for split, described in result["splits"].items():
            histogram = described["lengths"][name].get("histogram", {})
            total = max(1, sum(histogram.values()))
            shares = [100 * number / total for number in histogram.values()]
            axes.plot([max(0.5, float(edge)) for edge in histogram], shares, "o-", label=split)
        axes.set(xlabel=f"{name}, from", ylabel="share of the split, %")
        scale_log(axes)
    all_axes[0].legend()
    return figure


def draw_entities(result: dict[str, Any]) -> Any:
    values = {split: described["entities"] for split, described in result["splits"].items()}
    return draw_shares(values, "label", "share of the entities, %")


def draw_unseen(result: dict[str, Any]) -> Any:
    values = {split: compared["unseen"] for split, compared in result["against_train"].items()}
    return draw_shares(values, "label", "not in train, %", of_all=False)


def draw_entity_lengths(result: dict[str, Any]) -> Any:
    return draw_shares(result["splits"]["train"]["entities_by_length"], "tokens", "share of the label in train, %")


def draw_kinds(result: dict[str, Any]) -> Any:
    values = {split: described["kinds_of_sentences"] for split, described in result["splits"].items()}
    return draw_shares(values, "kind of sentence", "share of the sentences, %")


def draw_classes(result: dict[str, Any]) -> Any:
    classes = dict(list(result["splits"]["train"]["token_classes"].items())[: 2 * COLUMNS])
    figure, axes = plt.subplots(figsize=(6, 0.6 + 0.3 * len(classes)))
    axes.barh(list(classes)[::-1], list(classes.values())[::-1])
    axes.set(xlabel="tokens of train", ylabel="class")
    scale_log(axes)
    return figure


def draw_tags(result: dict[str, Any]) -> Any:
    return draw_matrix(result["splits"]["train"]["tags_of_entities"], "part of speech of the last token")


def draw_chunks(result: dict[str, Any]) -> Any:
    return draw_matrix(result["splits"]["train"]["chunks_of_entities"], "chunk of the last token")


FIGURES: Figures = {
    "lengths": (draw_lengths, "Lengths of documents and sentences in tokens, and of documents in wordpieces."),
    "entities": (draw_entities, "Entities by label and split."),
    "entity-lengths": (draw_entity_lengths, "Lengths of the entities of train, by label."),
    "unseen": (draw_unseen, "Entities whose text train does not have, by label."),
    "classes": (draw_classes, "Tokens of train by class, on a logarithmic axis: few tokens are part of an entity."),
    "kinds": (draw_kinds, "Sentences by kind and split."),
    "tags": (draw_tags, "Part of speech of the last token of entities of train, by label."),
    "chunks": (draw_chunks, "Chunk of the last token of entities of train, by label."),
}


def show(result: dict[str, Any]) -> None:
    """Print the most telling figures."""
    rows = list(rows_of(result))
    msg.table(rows, header=("", *SPLITS), divider=True, aligns=("l", "r", "r", "r"))


if __name__ == "__main__":
    main(explore)
