"""Understand a corpus: what its splits hold, what is hard about it, whether the splits are alike, what looks wrong."""

from __future__ import annotations

import itertools
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any

import matplotlib
import numpy as np
import spacy
import tqdm
import typer
from scipy.spatial.distance import jensenshannon  # type: ignore[import-untyped]
from spacy.tokens import Doc, Span
from transformers import AutoTokenizer
from wasabi import msg

from scripts.steps import SPLITS, read_docs, read_json, run, staged, write_json, writes

matplotlib.use("svg")
import matplotlib.pyplot as plt

KINDS = ("prose", "headline", "row")
LENGTHS = ("1", "2", "3", "4", "5 or more")
SHINGLE, ALIKE = 5, 0.5  # words in a piece of a document; share of common pieces from which two are near-duplicates
OFTEN, MOSTLY = 5, 0.9  # how often a name has to occur, and with what share of one label, for another to be odd
EXAMPLES = 50
CONTEXT = 8  # tokens on each side of what is quoted
COLUMNS = 12  # of a figure; the JSON has all


@writes("metrics")
def explore(
    corpus: Annotated[Path, typer.Argument(help="Folder with the .spacy files and origin.json", exists=True)],
    encoder: Annotated[Path, typer.Argument(help="Folder of the encoder, for its tokenizer", exists=True)],
    metrics: Annotated[Path, typer.Argument(help="Folder for corpus.json, corpus-examples.json and figures")],
) -> None:
    """Describe a corpus in figures, of both kinds."""
    origin = read_json(corpus / "origin.json")
    vocab = spacy.blank("en").vocab
    splits = {split: read_docs(corpus / f"{split}.spacy", vocab) for split in SPLITS}
    tokenizer = AutoTokenizer.from_pretrained(encoder)
    described = {split: describe(docs, tokenizer, split) for split, docs in splits.items()}
    odd, examples = find_oddities(splits)
    result = {
        "corpus": origin.get("corpus", {}).get("corpus", ""),
        "sha256": origin.get("sha256", {}),
        "encoder": read_json(encoder / "config.json").get("_name_or_path", ""),
        "repaired": {split: counts.get("repaired", {}) for split, counts in origin.get("counts", {}).items()},
        "splits": described,
        "against_train": {split: compare(splits["train"], splits[split]) for split in SPLITS[1:]},
        "oddities": odd,
    }
    with staged(metrics, "figures/corpus", "corpus-examples.json", "corpus.json") as new:
        save_figures(FIGURES, result, new / "figures" / "corpus")
        write_json(new / "corpus-examples.json", examples)  # which quote the corpus, so git ignores them
        write_json(new / "corpus.json", result)
    show(result)
    msg.good(f"Wrote {metrics / 'corpus.json'} and {len(FIGURES)} figures")


def describe(docs: list[Doc], tokenizer: Any, name: str) -> dict[str, Any]:
    """What a split holds.

    docs (list[Doc]): With sentences and entities, and perhaps tags and chunks.
    tokenizer (Any): Of the encoder.
    name (str): For the progress bar.
    RETURNS (dict[str, Any]): Numbers; lengths; entities; classes of tokens in IOB2; tags and chunks, and those of the
        entities, by the last token of each; kinds of sentences; what is longer than a window.
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
        "token_classes": dict(
            Counter(f"{t.ent_iob_}-{t.ent_type_}" if t.ent_type_ else "O" for doc in docs for t in doc).most_common()
        ),
        "tags": dict(Counter(token.tag_ for doc in docs for token in doc if token.tag_).most_common()),
        "chunks": dict(chunks.most_common()),
        "tags_of_entities": {label: dict(tags_of[label].most_common()) for label in sorted(tags_of)},
        "chunks_of_entities": {label: dict(chunks_of[label].most_common()) for label in sorted(chunks_of)},
        "kinds_of_sentences": {kind: kinds[kind] for kind in KINDS},
        "capitals_only": sum(sentence.text.isupper() for sentence in sentences),
    }


def spread(numbers: list[int]) -> dict[str, Any]:
    """Mean, median, 95th percentile, maximum, and a histogram: lower edges by doubling, and counts."""
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


def kind_of(sentence: Span) -> str:
    """Prose, a headline in capitals, or another line: a row of a table, a byline, a date."""
    words = [token.text for token in sentence if token.text[0].isalpha()]
    if len(words) > 1 and 2 * sum(word.isupper() for word in words) > len(words):
        return "headline"
    small = sum(word[0].islower() or not word[0].isupper() for word in words)  # scripts without case are small
    return "prose" if len(words) > 3 and 2 * small >= len(words) else "row"


def compare(train: list[Doc], other: list[Doc]) -> dict[str, Any]:
    """How another split differs from train, and what it has from it.

    train, other (list[Doc]): The splits.
    RETURNS (dict[str, Any]): `unseen`: share of entities by label, and in all, whose text train does not have among its
        entities; `unknown_words`: share of tokens; both but for case. `divergence` of labels, tags and chunks: Jensen
        and Shannon's, from 0 to 1. Of documents and sentences of five tokens or more, how many train has too, and of
        documents how many nearly.
    """
    known = {ent.text.lower() for doc in train for ent in doc.ents}
    words = {token.lower for doc in train for token in doc}
    ents = [ent for doc in other for ent in doc.ents]
    unseen: dict[str, list[bool]] = defaultdict(list)
    for ent in ents:
        unseen[ent.label_].append(ent.text.lower() not in known)
    tokens = [token for doc in other for token in doc]
    texts, sentences = {tuple(words_of(doc)) for doc in train}, {tuple(words_of(s)) for doc in train for s in doc.sents}
    return {
        "unseen": {label: float(np.mean(unseen[label])) for label in sorted(unseen)},
        "unseen_in_all": float(np.mean([ent.text.lower() not in known for ent in ents])) if ents else None,
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
    """The words, in lower case."""
    return [token.lower_ for token in part]


def divergence(one: Counter[str], other: Counter[str]) -> float | None:
    """Jensen-Shannon divergence of two distributions, to the base 2; None where one is empty."""
    if not one or not other:
        return None
    keys = sorted(one | other)
    return float(jensenshannon([one[key] for key in keys], [other[key] for key in keys], base=2) ** 2)


def count_near_duplicates(train: list[Doc], other: list[Doc]) -> int:
    """How many documents share at least ALIKE of their pieces of SHINGLE words with one of train (Broder 1997)."""

    def pieces(doc: Doc) -> set[tuple[str, ...]]:
        words = words_of(doc)
        return {tuple(words[i : i + SHINGLE]) for i in range(max(1, len(words) - SHINGLE + 1))}

    where: dict[tuple[str, ...], list[int]] = defaultdict(list)
    sizes = []
    for i, doc in enumerate(train):
        found = pieces(doc)
        sizes.append(len(found))
        for piece in found:
            where[piece].append(i)
    number = 0
    for doc in other:
        found = pieces(doc)
        common = Counter(i for piece in found for i in where.get(piece, ()))
        number += any(n / (len(found) + sizes[i] - n) >= ALIKE for i, n in common.items())
    return number


def find_oddities(splits: dict[str, list[Doc]]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What is ambiguous or looks wrong, in figures and in examples.

    splits (dict[str, list[Doc]]): All of them.
    RETURNS (tuple[dict[str, Any], dict[str, Any]]): Figures for each split, and for all: names with several labels,
        entities of such names, their pairs of labels, entities whose text occurs unmarked too, entities with a label
        that this name hardly ever has, entities next to each other with one label, and of these those on two sides of
        a sentence start, mostly halves of one name. Then examples of the same, with their words.
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
    """How often each text stands, in whole tokens, where no entity is."""
    lengths = sorted({text.count(" ") + 1 for text in texts})
    found: Counter[str] = Counter()
    for doc in docs:
        free = [token.text if not token.ent_type else None for token in doc]
        for length in lengths:
            for i in range(len(free) - length + 1):
                words = free[i : i + length]
                if None not in words and (text := " ".join(map(str, words))) in texts:
                    found[text] += 1
    return found


def around(ent: Span) -> str:
    """The text around an entity."""
    return str(ent.doc[max(0, ent.start - CONTEXT) : ent.end + CONTEXT].text)


# Figures: each takes the result and returns a matplotlib Figure

STYLE = [
    "seaborn-v0_8-colorblind",
    {
        "figure.constrained_layout.use": True,
        "svg.fonttype": "none",
        "text.parse_math": False,
        "axes.spines.top": False,
        "axes.spines.right": False,
    },
]


def save_figures(figures: dict[str, Callable[[dict[str, Any]], Any]], result: dict[str, Any], folder: Path) -> None:
    """Draw each figure of a result, in one style, and write it as SVG under its name."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, draw in figures.items():
        with plt.style.context(STYLE), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph .* missing")  # here; the text stays text, and browsers have fonts
            figure = draw(result)
            figure.savefig(folder / f"{name}.svg")
            plt.close(figure)


def scale_log(axes: Any) -> None:
    """Make the horizontal axis logarithmic, with plain numbers: those of matplotlib are markup, which STYLE shows."""
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:,.10g}")
    axes.xaxis.set_minor_formatter("")


def draw_lengths(result: dict[str, Any]) -> Any:
    """Lengths of documents and sentences in tokens, and of documents in wordpieces."""
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
    """Entities by label and split."""
    values = {split: described["entities"] for split, described in result["splits"].items()}
    return draw_shares(values, "label", "share of the entities, %")


def draw_unseen(result: dict[str, Any]) -> Any:
    """Entities by label whose text train does not have."""
    values = {split: compared["unseen"] for split, compared in result["against_train"].items()}
    return draw_shares(values, "label", "not in train, %", of_all=False)


def draw_entity_lengths(result: dict[str, Any]) -> Any:
    """Lengths of the entities of train, by label."""
    return draw_shares(result["splits"]["train"]["entities_by_length"], "tokens", "share of the label in train, %")


def draw_kinds(result: dict[str, Any]) -> Any:
    """Sentences by kind and split."""
    values = {split: described["kinds_of_sentences"] for split, described in result["splits"].items()}
    return draw_shares(values, "kind of sentence", "share of the sentences, %")


def draw_shares(values: dict[str, dict[str, float]], xlabel: str, ylabel: str, of_all: bool = True) -> Any:
    """Groups of bars: a group for each key of the inner dictionaries, the first COLUMNS; a bar for each outer one."""
    keys = list(dict.fromkeys(key for inner in values.values() for key in inner))[:COLUMNS]
    figure, axes = plt.subplots(figsize=(max(6.0, 0.25 * len(keys) * len(values)), 3.4))
    width = 0.8 / max(1, len(values))
    for i, (name, inner) in enumerate(list(values.items())[:COLUMNS]):
        total = sum(inner.values()) if of_all else 1
        heights = [100 * inner.get(key, 0) / max(total, 1e-9) for key in keys]
        axes.bar(np.arange(len(keys)) + i * width, heights, width, label=name)
    axes.set_xticks(np.arange(len(keys)) + 0.4 - width / 2, keys, rotation=60 if len(keys) > 8 else 0)
    axes.set(xlabel=xlabel, ylabel=ylabel)
    axes.legend()
    return figure


def draw_classes(result: dict[str, Any]) -> Any:
    """Tokens of train by class, on a logarithmic axis: how few those of entities are."""
    classes = dict(list(result["splits"]["train"]["token_classes"].items())[: 2 * COLUMNS])
    figure, axes = plt.subplots(figsize=(6, 0.6 + 0.3 * len(classes)))
    axes.barh(list(classes)[::-1], list(classes.values())[::-1])
    axes.set(xlabel="tokens of train", ylabel="class")
    scale_log(axes)
    return figure


def draw_tags(result: dict[str, Any]) -> Any:
    """Part of speech of the last token of entities of train, by label."""
    return draw_matrix(result["splits"]["train"]["tags_of_entities"], "part of speech of the last token")


def draw_chunks(result: dict[str, Any]) -> Any:
    """Chunk of the last token of entities of train, by label."""
    return draw_matrix(result["splits"]["train"]["chunks_of_entities"], "chunk of the last token")


def draw_matrix(values: dict[str, dict[str, int]], xlabel: str) -> Any:
    """Shares in a row for each label, the first COLUMNS, with the most frequent columns and the rest as one."""
    values = dict(list(values.items())[:COLUMNS])
    common = sum((Counter(inner) for inner in values.values()), Counter[str]())
    keys = [key for key, _ in common.most_common(COLUMNS)]
    rows = []
    for inner in values.values():
        shares = [100 * inner.get(key, 0) / max(1, sum(inner.values())) for key in keys]
        rows.append([*shares, max(0.0, 100 - sum(shares))])
    figure, axes = plt.subplots(figsize=(1.5 + 0.6 * (len(keys) + 1), 1.4 + 0.4 * len(rows)))
    axes.imshow(rows, cmap="Blues", vmin=0, vmax=100, aspect="auto")
    axes.set_xticks(range(len(keys) + 1), [key or "none" for key in keys] + ["others"], rotation=60)
    axes.set_yticks(range(len(rows)), list(values))
    for y, row in enumerate(rows):
        for x, share in enumerate(row):
            axes.text(x, y, f"{share:.0f}", ha="center", va="center", color="white" if share > 50 else "black")
    axes.set(xlabel=f"{xlabel}, share of the label, %", ylabel="label")
    return figure


FIGURES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "lengths": draw_lengths,
    "entities": draw_entities,
    "entity-lengths": draw_entity_lengths,
    "unseen": draw_unseen,
    "classes": draw_classes,
    "kinds": draw_kinds,
    "tags": draw_tags,
    "chunks": draw_chunks,
}


def show(result: dict[str, Any]) -> None:
    """Print the most telling figures."""
    rows = list(rows_of(result))
    msg.table(rows, header=("", *SPLITS), divider=True, aligns=("l", "r", "r", "r"))


def rows_of(result: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    """The most telling figures: a name, and the figure of each split."""
    splits, against = result["splits"], result["against_train"]
    for name in ("documents", "sentences", "tokens"):
        yield name, *(f"{splits[split][name]:,}" for split in SPLITS)
    yield "entities", *(f"{sum(splits[split]['entities'].values()):,}" for split in SPLITS)
    yield "tokens in entities", *(f"{100 * splits[split]['entity_token_share']:.1f} %" for split in SPLITS)
    yield "wordpieces per token", *(f"{splits[split]['wordpieces_per_token']:.2f}" for split in SPLITS)
    for name, label in {"unseen_in_all": "entities not in train", "unknown_words": "tokens not in train"}.items():
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


if __name__ == "__main__":
    run(explore)
