"""Predict a corpus under several conditions of its text, and score what was predicted."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import spacy
import tqdm
from sacremoses import MosesDetokenizer  # type: ignore[import-untyped]
from spacy.language import Language
from spacy.scorer import PRFScore, Scorer
from spacy.tokens import Doc
from spacy.training import Example
from spacy.util import registry

from bert_ner.corpus import recase
from common.corpora import find_entity_texts, iob_tags
from common.statistics import calibration_error, find_threshold, match_entities

CONDITIONS = ("predicted_sentences", "gold_sentences", "lower", "upper", "raw")
SPANS = tuple(f"{prefix}_{score}" for prefix in ("ents", "spans_chunks") for score in ("p", "r", "f", "per_type"))
SCORES = (*SPANS, "sents_f", "tag_acc")
MIN_PRECISION = 0.97  # the threshold of the score that gives at least this precision is chosen on dev

Keep = Callable[[str, str, list[Example], list[np.ndarray]], None]


def measure(nlp: Language, corpus: Path, keep: Keep | None = None) -> dict[str, Any]:
    """Predict dev and test once for each text that CONDITIONS make of them, and score that under all of CONDITIONS.

    - predicted_sentences: as in use; for test that is what `spacy evaluate` gives.
    - gold_sentences: the sentence starts of the corpus are given and documents stay whole, as in the literature.
      `spacy evaluate --gold-preproc` would cut the documents into sentences and throw away their context.
    - lower, upper: the same, with all words in lower or upper case.
    - raw: natural text, which the pipeline tokenises itself; entities are compared by the offsets of their characters.

    With predicted sentences it also measures how well the scores of entities are calibrated.

    nlp (Language): The pipeline, with a component `ner`.
    corpus (Path): Folder with train.spacy, dev.spacy and test.spacy.
    keep (Keep | None): Called after each pass with split, condition, the predicted examples, and for each example the
        posterior probabilities of the tags, (tokens, tags). Whoever needs more than scores takes it from here.
    RETURNS (dict[str, Any]): By split and condition what `score` or `score_text` returns, and by split `calibration`.
    """
    results: dict[str, dict[str, Any]] = {"dev": {}, "test": {}}
    shipped: list[Example] = []
    recorded = Recorded()
    chunks: list[np.ndarray] = []
    threshold = 1.0
    seen = find_entity_texts(corpus / "train.spacy")
    with tqdm.tqdm(total=len(CONDITIONS) * len(results), desc="scoring", unit="pass", disable=None) as bar:
        for split, result in results.items():
            given = list(_read_examples(nlp, corpus / f"{split}.spacy"))
            for condition in CONDITIONS:
                examples = list(_vary(nlp, given, condition))
                if condition == "gold_sentences":  # the text is that of the pass before
                    decode_again(nlp, examples, shipped, {"ner": recorded.probabilities, "chunker": chunks})
                    result[condition] = score_annotated(nlp, examples)
                else:
                    with record_tags(nlp) as recorded, _record_chunks(nlp) as chunks:
                        result[condition] = score_text(nlp, examples) if condition == "raw" else score(nlp, examples)
                if condition == "predicted_sentences":
                    shipped = examples
                    scores, correct, old = match_entities(examples, seen)
                    if split == "dev":
                        threshold = find_threshold(scores, correct, old, MIN_PRECISION)
                    chosen, entities = scores >= threshold, sum(len(example.reference.ents) for example in examples)
                    result["calibration"] = {
                        "expected_calibration_error": calibration_error(scores, correct),
                        "min_precision": MIN_PRECISION,
                        "threshold": threshold,
                        "precision": float(correct[chosen].mean()) if chosen.any() else None,
                        "recall": float(correct[chosen].sum()) / entities if entities else None,
                    }
                if keep:
                    keep(split, condition, examples, recorded.posteriors)
                bar.update()
    return results


@dataclass
class Recorded:
    """What the component `ner` predicted, for each document in the order in which they were predicted.

    probabilities (list[np.ndarray]): What `predict` gives, (tokens, tags), from which entities can be decoded again.
    posteriors (list[np.ndarray]): The posterior probabilities of the tags, (tokens, tags).
    """

    probabilities: list[np.ndarray] = field(default_factory=list)
    posteriors: list[np.ndarray] = field(default_factory=list)


@contextmanager
def record_tags(nlp: Language) -> Iterator[Recorded]:
    """Record what the component `ner` predicts during the block, so that no second pass has to compute it.

    nlp (Language): The pipeline.
    YIELDS (Recorded): To its lists the documents of the block are added.
    """
    recognizer: Any = nlp.get_pipe("ner")
    recorded = Recorded()

    def record(docs: list[Doc], probabilities: list[np.ndarray]) -> None:
        recorded.probabilities.extend(probabilities)
        recorded.posteriors.extend(recognizer.find_posteriors(docs, probabilities))

    with _watch(recognizer, record):
        yield recorded


@contextmanager
def _record_chunks(nlp: Language) -> Iterator[list[np.ndarray]]:
    """Record the probabilities that the component `chunker` predicts during the block, if the pipeline runs one."""
    recorded: list[np.ndarray] = []
    if "chunker" not in nlp.pipe_names:
        yield recorded
        return
    with _watch(nlp.get_pipe("chunker"), lambda _, probabilities: recorded.extend(probabilities)):
        yield recorded


@contextmanager
def _watch(component: Any, see: Callable[[list[Doc], list[np.ndarray]], None]) -> Iterator[None]:
    """Call `see` with the documents and the probabilities of each `predict` of a component during the block."""
    predict = component.predict

    def predict_and_show(docs: Any) -> list[np.ndarray]:
        probabilities: list[np.ndarray] = predict(docs)
        see(docs, probabilities)
        return probabilities

    component.predict = predict_and_show
    try:
        yield
    finally:
        del component.predict  # the method of the class is there again


def create_examples(nlp: Language, path: Path, condition: str) -> Iterator[Example]:
    """Read the examples of a split under one of CONDITIONS.

    nlp (Language): The pipeline; only its tokenizer is used.
    path (Path): A .spacy file.
    condition (str): The condition.
    YIELDS (Example): The document to annotate and its reference. For raw they have the same text but other tokens.
    """
    return _vary(nlp, _read_examples(nlp, path), condition)


def _read_examples(nlp: Language, path: Path) -> Iterator[Example]:
    """Read the examples of a split, with the sentence starts of the corpus."""
    examples: Iterator[Example] = registry.readers.get("bert_ner.Corpus.v2")(path, True)(nlp)
    return examples


def _vary(nlp: Language, examples: Iterable[Example], condition: str) -> Iterator[Example]:
    """Put examples with sentence starts under one of CONDITIONS; those given stay as they are."""
    for example in examples:
        if condition == "raw":
            reference = create_raw_doc(example.reference)
            yield Example(nlp.make_doc(reference.text), reference)
        elif condition in ("lower", "upper"):
            yield Example(*(recase(doc, getattr(str, condition)) for doc in (example.predicted, example.reference)))
        else:
            doc = example.predicted.copy()
            if condition == "predicted_sentences":
                doc.from_array(["SENT_START"], np.eye(1, len(doc), dtype="uint64")[0])  # the first token alone
            yield Example(doc, example.reference)


def score(nlp: Language, examples: list[Example]) -> dict[str, Any]:
    """Predict, and score by spaCy's scorer.

    nlp (Language): The pipeline.
    examples (list[Example]): Their predicted docs are replaced.
    RETURNS (dict[str, Any]): SCORES by name: precision, recall and F1 of entities and of chunks, overall and by label;
        F1 of sentences; accuracy of part-of-speech tags. None where the pipeline or the corpus lacks something.
    """
    predict(nlp, examples)
    return score_annotated(nlp, examples)


def score_annotated(nlp: Language, examples: list[Example]) -> dict[str, Any]:
    """Score examples that are annotated already, as `score` does."""
    scores = Scorer(nlp).score(examples)
    return {name: scores.get(name) for name in SCORES}


def decode_again(
    nlp: Language, examples: list[Example], annotated: list[Example], probabilities: dict[str, list[np.ndarray]]
) -> None:
    """Annotate documents whose sentence starts are given, from what was predicted for the same words without them.

    Of all that is predicted, only the boundaries of entities, chunks and sentences depend on these starts.

    nlp (Language): The pipeline.
    examples (list[Example]): Their predicted docs have sentence starts, and are annotated.
    annotated (list[Example]): The same documents, whose predicted docs the pipeline has annotated.
    probabilities (dict[str, list[np.ndarray]]): What components gave for them, by name, as `record_tags` records it.
        Those that the pipeline does not run do not count.
    """
    docs = [example.predicted for example in examples]
    for doc, other in zip(docs, annotated, strict=True):
        doc.from_array(["TAG"], other.predicted.to_array(["TAG"]))
    for name, component in nlp.pipeline:
        if name in probabilities:
            cast(Any, component).set_annotations(docs, probabilities[name])


def predict(nlp: Language, examples: list[Example]) -> None:
    """Replace the predicted docs of examples by the same docs, annotated by the pipeline."""
    for example, doc in zip(examples, nlp.pipe(example.predicted for example in examples), strict=True):
        example.predicted = doc


def score_text(nlp: Language, examples: list[Example]) -> dict[str, Any]:
    """Predict, and score by offsets of characters, which spaCy's scorer would round to whole tokens.

    nlp (Language): The pipeline.
    examples (list[Example]): Docs of the same text, but perhaps of other tokens. The predicted ones are replaced.
    RETURNS (dict[str, Any]): Precision, recall and F1 of entities, `ents_p`, `ents_r`, `ents_f`; F1 of the tokens,
        `token_f1`, and F1 of the tokens that the language's own tokenizer gives, `plain_token_f1`.
    """
    predict(nlp, examples)
    plain = spacy.blank(str(nlp.lang))
    ents, tokens, plain_tokens = PRFScore(), PRFScore(), PRFScore()
    for example in examples:
        docs = (example.predicted, example.reference)
        ents.score_set(*({(ent.start_char, ent.end_char, ent.label_) for ent in doc.ents} for doc in docs))
        own, others, gold = (
            {(t.idx, t.idx + len(t)) for t in doc if not t.is_space}
            for doc in (example.predicted, plain.make_doc(example.text), example.reference)
        )
        tokens.score_set(own, gold)
        plain_tokens.score_set(others, gold)
    return {
        "ents_p": ents.precision,
        "ents_r": ents.recall,
        "ents_f": ents.fscore,
        "token_f1": tokens.fscore,
        "plain_token_f1": plain_tokens.fscore,
    }


def create_raw_doc(doc: Doc) -> Doc:
    """Write a document as its author would have: prose in paragraphs, headlines and rows on lines of their own.

    The detokeniser of Moses decides where a space stands. Apart from spaces it leaves the characters as they are.

    doc (Doc): With tokens, sentences and entities.
    RETURNS (Doc): The same tokens and entities, with these spaces, and with line breaks as tokens between the lines.
    """
    detokenizer = MosesDetokenizer(lang="en")
    words: list[str] = []
    spaces: list[bool] = []
    ents: list[str] = []
    for tokens in split_lines(doc):
        line = [token.text for token in tokens]
        words += [*line, "\n"]
        spaces += [*find_spaces(line, detokenizer.detokenize(line, unescape=False)), False]
        ents += [*iob_tags(tokens), "O"]
    return Doc(doc.vocab, words=words, spaces=spaces, ents=ents)


def find_spaces(words: list[str], text: str) -> list[bool]:
    """Whether a space follows each word in a text.

    words (list[str]): The words.
    text (str): The same words with spaces between some of them. If it has other words, a space follows all words but
        the last.
    RETURNS (list[bool]): For each word.
    """
    spaces: list[bool] = []
    end = 0
    for word in words:
        if word.lower() == "n't" and spaces:  # Moses splits didn't elsewhere, so it does not join these parts
            spaces[-1] = False
        start = text.find(word, end)
        if start < 0 or text[end:start].strip():
            return [True] * (len(words) - 1) + [False]
        end = start + len(word)
        spaces.append(text[end : end + 1] == " ")
    return spaces


def split_lines(doc: Doc) -> Iterator[list[Any]]:
    """The lines of a document, as lists of tokens.

    Sentences of prose that follow each other share a line; any other sentence has one of its own. A sentence is prose
    if it has more than five tokens, ends with a mark that ends sentences, and at least half of its words begin with a
    small letter.
    """
    paragraph: list[Any] = []
    for i, sentence in enumerate(doc.sents if doc.has_annotation("SENT_START") else [doc[:]]):
        words = [token for token in sentence if token.text[0].isalpha()]
        small = sum(token.text[0].islower() for token in words)
        if i and sentence[-1].text in {".", "?", "!", '"', "'"} and len(sentence) > 5 and 2 * small >= len(words):
            paragraph += sentence
            continue
        if paragraph:
            yield paragraph
        paragraph = []
        yield list(sentence)
    if paragraph:
        yield paragraph
