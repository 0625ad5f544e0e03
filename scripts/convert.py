"""CoNLL columns to DocBin: one Doc per document, with sentence starts, entities, part-of-speech tags and chunks."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import spacy
import tqdm
import typer
from spacy.tokens import Doc, DocBin, Span, SpanGroup
from spacy.vocab import Vocab
from wasabi import msg

from common.conll import COLUMNS, FEWEST_DOCS, MARK, Document, Token, count, group, read_conll
from common.errors import StepError, main
from common.records import SPLITS, claim, read_json, sha256, staged, write_json, writes


def make_doc(vocab: Vocab, document: Document) -> Doc:
    """A Doc with sentence starts, entities, `token.tag_`, and the chunks in `doc.spans["chunks"]`, if these are known.

    The files do not tell where spaces were: the Doc says so (`has_unknown_spaces`), and spaCy keeps its tokens.
    """
    tokens = [token for sentence in document for token in sentence]
    doc = Doc(
        vocab,
        words=[token.text for token in tokens],
        tags=[token.pos for token in tokens] if any(token.pos for token in tokens) else None,
        sent_starts=[i == 0 for sentence in document for i in range(len(sentence))],
        ents=[token.entity for token in tokens],
    )
    if any(token.chunk for token in tokens):
        starts = [i for i, token in enumerate(tokens) if token.chunk.startswith("B-")]
        doc.spans["chunks"] = SpanGroup(doc, name="chunks", spans=[_span(doc, tokens, start) for start in starts])
    return doc


def _span(doc: Doc, tokens: list[Token], start: int) -> Span:
    end = start + 1
    while end < len(tokens) and tokens[end].chunk.startswith("I-"):
        end += 1
    return Span(doc, start, end, label=tokens[start].chunk[2:])


@writes("corpus")
def convert(
    assets: Annotated[Path, typer.Argument(help="Folder with train.conll, dev.conll and test.conll", exists=True)],
    corpus: Annotated[Path, typer.Argument(help="Folder for the .spacy files and provenance.json", file_okay=False)],
) -> None:
    """Convert a corpus in CoNLL columns to DocBin."""
    claim(corpus, "provenance.json")
    splits = {split: read_conll(assets / f"{split}.conll") for split in SPLITS}
    separated = any(len(conll.documents) > 1 for conll in splits.values())  # a mark at the head alone separates nothing
    counts: dict[str, dict[str, Any]] = {}
    vocab = spacy.blank("en").vocab
    with staged(corpus, *(f"{split}.spacy" for split in SPLITS), "provenance.json") as folder:
        for split, conll in splits.items():
            marked = conll.marked and separated
            documents = conll.documents if marked else group(conll.documents[0])
            counts[split] = count(documents) | {
                "columns": COLUMNS[conll.columns].split(", "),
                "documents_marked": marked,
                "schemes": conll.schemes,
                "repaired": conll.repaired,
            }
            for name, lines in conll.stray.items():
                if lines:
                    msg.warn(
                        f"{assets / split}.conll, line {lines[0]}: {name} continues though none has begun; "
                        f"read as its beginning, here and {len(lines) - 1} more times."
                    )
            for what, number in conll.repaired.items():
                if number and what.startswith(("invisible", MARK)):
                    msg.warn(f"{assets / split}.conll: {what}: {number}.")
            docs = (make_doc(vocab, document) for document in documents)
            bar = tqdm.tqdm(docs, desc=split, total=len(documents), unit="doc", disable=None)
            DocBin(store_user_data=True, docs=bar).to_disk(folder / f"{split}.spacy")
        labels = {split: set(counts[split]["entities"]) for split in SPLITS}
        if not labels["train"]:
            raise StepError(f"{assets}/train.conll marks no entity: nothing can be learnt.", "Annotate some: B-TYPE.")
        for split in ("dev", "test"):
            if labels[split] - labels["train"]:
                unseen = ", ".join(sorted(labels[split] - labels["train"]))
                msg.warn(f"{assets}/{split}.conll has labels that training never sees: {unseen}")
        if counts["train"]["documents"] < FEWEST_DOCS:
            msg.warn(
                f"Only {counts['train']['documents']} training documents; spaCy recommends {FEWEST_DOCS} at least.",
                "All steps work; with more of them the pipeline will be better, and its scores surer.",
            )
        files = {split: sha256(folder / f"{split}.spacy") for split in SPLITS}
        origin = read_json(assets / "corpus.json")
        write_json(folder / "provenance.json", {"corpus": origin, "counts": counts, "sha256": files})
    numbers = ("documents", "sentences", "tokens")
    rows = [
        (split, *(f"{counts[split][n]:,}" for n in numbers), ", ".join(f"{k} {v:,}" for k, v in c["entities"].items()))
        for split, c in counts.items()
    ]
    msg.table(rows, header=("split", *numbers, "entities"), divider=True, aligns=("l", "r", "r", "r", "l"))
    msg.good(f"Wrote {corpus}")


if __name__ == "__main__":
    main(convert)
