"""What stands beside `spacy evaluate`: other conditions of the text, and what the scores of entities are worth."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import spacy
import tqdm
import typer
from sacremoses import MosesDetokenizer  # type: ignore[import-untyped]
from spacy.cli._util import import_code, setup_gpu
from spacy.language import Language
from spacy.scorer import PRFScore, Scorer
from spacy.tokens import Doc
from spacy.training import Example
from spacy.util import registry

from scripts.functions import recase
from scripts.steps import StepError, find_entity_texts, read_json, run, write_json, writes

SCORES = ("ents_p", "ents_r", "ents_f", "ents_per_type", "sents_f", "tag_acc")
PRECISION = 0.97  # which a user may want at least, and dev chooses a threshold of the score for
CONFIDENCE = 1.645  # standard errors: one can be 95% sure of it
BINS = 10


@writes("metrics", "evaluation.json", "test.json")  # the second by `spacy evaluate`, afterwards
def evaluate(
    model: Annotated[Path, typer.Argument(help="Trained pipeline", exists=True)],
    corpus: Annotated[Path, typer.Argument(help="Folder with dev.spacy, test.spacy and origin.json", exists=True)],
    metrics: Annotated[Path, typer.Argument(help="Folder for evaluation.json")],
    encoder: Annotated[Path, typer.Option(help="Origin of the encoder", exists=True)],
    code: Annotated[Path, typer.Option(help="Python file with registered functions", exists=True)],
    gpu_id: Annotated[int, typer.Option(help="GPU, or -1 for the CPU")] = -1,
) -> None:
    """Score a pipeline under several conditions, and write where it comes from."""
    setup_gpu(gpu_id, silent=True)
    import_code(code)
    nlp = spacy.load(model)
    corpus_origin, encoder_origin = read_json(corpus / "origin.json"), read_json(encoder)
    write_json(
        metrics / "evaluation.json",
        {
            **measure(nlp, corpus),
            "corpus": corpus_origin.get("corpus", {}).get("corpus", ""),
            "counts": corpus_origin.get("counts", {}),
            "encoder": encoder_origin.get("encoder", ""),
            "encoder_commit": encoder_origin.get("commit", ""),
            "training": read_json(model / "origin.json"),
        },
    )


def measure(nlp: Language, corpus: Path) -> dict[str, Any]:
    """All that this step measures.

    - predicted_sentences: as in use; for test that is what `spacy evaluate` gives.
    - gold_sentences: the corpus's own sentence starts given, documents whole, as in the literature. `spacy evaluate
      --gold-preproc` would cut the documents into sentences and throw away their context.
    - lower, upper: the same, all words in lower or upper case.
    - raw: natural text, which the pipeline tokenises itself; entities count by the offsets of their characters.
    - calibration: what the scores of the entities are worth, with predicted sentences.

    nlp (Language): The pipeline.
    corpus (Path): Folder with train.spacy, dev.spacy and test.spacy.
    RETURNS (dict[str, Any]): By split and condition.
    """
    conditions = ("predicted_sentences", "gold_sentences", "lower", "upper", "raw")
    results: dict[str, dict[str, Any]] = {"dev": {}, "test": {}}
    threshold = 1.0
    known = find_entity_texts(corpus / "train.spacy")
    with tqdm.tqdm(total=len(conditions) * len(results), desc="scoring", unit="pass", disable=None) as bar:
        for split, result in results.items():
            for condition in conditions:
                examples = list(create_examples(nlp, corpus / f"{split}.spacy", condition))
                result[condition] = score_text(nlp, examples) if condition == "raw" else score(nlp, examples)
                if condition == "predicted_sentences":
                    scores, right, old = judge(examples, known)
                    if split == "dev":
                        threshold = find_threshold(scores, right, old, PRECISION)
                    chosen, entities = scores >= threshold, sum(len(example.reference.ents) for example in examples)
                    result["calibration"] = {
                        "expected_calibration_error": calibration_error(scores, right),
                        "wanted": PRECISION,
                        "threshold": threshold,
                        "precision": float(right[chosen].mean()) if chosen.any() else None,
                        "recall": float(right[chosen].sum()) / entities if entities else None,
                    }
                bar.update()
    return results


def create_examples(nlp: Language, path: Path, condition: str) -> Iterator[Example]:
    """The examples of a split under a condition of `measure`.

    nlp (Language): The pipeline; only its tokenizer is used.
    path (Path): A .spacy file.
    condition (str): The condition.
    YIELDS (Example): What is to be predicted and what is right. For raw, tokens differ and the text is the same.
    """
    for example in registry.readers.get("bert_ner.Corpus.v2")(path, condition != "predicted_sentences")(nlp):
        if condition == "raw":
            reference = create_raw_doc(example.reference)
            yield Example(nlp.make_doc(reference.text), reference)
        elif condition in ("lower", "upper"):
            yield Example(*(recase(doc, getattr(str, condition)) for doc in (example.predicted, example.reference)))
        else:
            yield example


def score(nlp: Language, examples: list[Example]) -> dict[str, Any]:
    """Predict, and score by spaCy's scorer.

    nlp (Language): The pipeline.
    examples (list[Example]): Their predicted docs are replaced.
    RETURNS (dict[str, Any]): Precision, recall, F of entities, in all and by label; F of sentences; accuracy of tags.
    """
    predict(nlp, examples)
    scores = Scorer(nlp).score(examples)
    return {name: scores.get(name) for name in SCORES}


def predict(nlp: Language, examples: list[Example]) -> None:
    """Replace the predicted docs of examples by what the pipeline makes of them."""
    for example, doc in zip(examples, nlp.pipe(example.predicted for example in examples), strict=True):
        example.predicted = doc


def score_text(nlp: Language, examples: list[Example]) -> dict[str, Any]:
    """Predict, and score by offsets of characters, which spaCy's scorer would round to whole tokens.

    nlp (Language): The pipeline.
    examples (list[Example]): Docs of the same text, but perhaps of other tokens. The predicted ones are replaced.
    RETURNS (dict[str, Any]): Precision, recall and F of entities; F of the tokens, and what the language's own
        tokenizer would give.
    """
    predict(nlp, examples)
    plain = spacy.blank(str(nlp.lang))
    ents, tokens, plain_tokens = PRFScore(), PRFScore(), PRFScore()
    for example in examples:
        docs = (example.predicted, example.reference)
        ents.score_set(*({(ent.start_char, ent.end_char, ent.label_) for ent in doc.ents} for doc in docs))
        found, split, gold = (
            {(t.idx, t.idx + len(t)) for t in doc if not t.is_space}
            for doc in (example.predicted, plain.make_doc(example.text), example.reference)
        )
        tokens.score_set(found, gold)
        plain_tokens.score_set(split, gold)
    return {
        "ents_p": ents.precision,
        "ents_r": ents.recall,
        "ents_f": ents.fscore,
        "token_f": tokens.fscore,
        "plain_token_f": plain_tokens.fscore,
    }


def create_raw_doc(doc: Doc) -> Doc:
    """The document as somebody would have written it: prose in paragraphs, headlines and rows on lines of their own.

    Spaces are put where the detokeniser of Moses puts them. Its output has the same characters but for spaces.

    doc (Doc): Tokens, sentences, entities.
    RETURNS (Doc): The same tokens and entities, with the spaces, and line breaks as tokens between the lines.
    """
    detokenizer = MosesDetokenizer(lang="en")
    words: list[str] = []
    spaces: list[bool] = []
    ents: list[str] = []
    for tokens in split_lines(doc):
        line = [token.text for token in tokens]
        words += [*line, "\n"]
        spaces += [*find_spaces(line, detokenizer.detokenize(line, unescape=False)), False]
        ents += [*(f"{token.ent_iob_}-{token.ent_type_}" if token.ent_type_ else "O" for token in tokens), "O"]
    return Doc(doc.vocab, words=words, spaces=spaces, ents=ents)


def find_spaces(words: list[str], text: str) -> list[bool]:
    """Whether a space follows each word in a text. Where the text has other words, one follows all but the last."""
    spaces: list[bool] = []
    end = 0
    for word in words:
        if word.lower() == "n't" and spaces:  # Moses splits did|n't otherwise, and does not join it
            spaces[-1] = False
        start = text.find(word, end)
        if start < 0 or text[end:start].strip():
            return [True] * (len(words) - 1) + [False]
        end = start + len(word)
        spaces.append(text[end : end + 1] == " ")
    return spaces


def split_lines(doc: Doc) -> Iterator[list[Any]]:
    """Lists of tokens. A sentence is prose if it ends as one, is no headline, and most of its words begin small."""
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


def judge(examples: Iterable[Example], known: set[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The entities found: score, whether exactly this span and label is right, and whether training had the text.

    examples (Iterable[Example]): Predicted and right.
    known (set[str]): The entities of training, as text in lower case.
    RETURNS (tuple[np.ndarray, np.ndarray, np.ndarray]): Each (entities,): float, bool, bool.
    RAISES (StepError): If an entity has no score.
    """
    found = [
        (getattr(ent._, "score", None), (ent.start, ent.end, ent.label_) in gold, ent.text.lower() in known)
        for example in examples
        for gold in [{(ent.start, ent.end, ent.label_) for ent in example.reference.ents}]
        for ent in example.predicted.ents
    ]
    if any(score is None for score, *_ in found):
        raise StepError("The pipeline gives entities without a score, ent._.score.", "Train it with configs/bert.cfg.")
    scores, right, old = zip(*found, strict=True) if found else ((), (), ())
    return np.array(scores, dtype=float), np.array(right, dtype=bool), np.array(old, dtype=bool)


def calibration_error(scores: np.ndarray, right: np.ndarray) -> float:
    """The expected calibration error (Naeini et al. 2015), in bins of equal mass.

    scores (np.ndarray): Shape (entities,), from 0 to 1.
    right (np.ndarray): Shape (entities,), bool.
    RETURNS (float): The mean over entities of the distance between score and share of right ones in a bin.
    """
    order = np.argsort(scores, kind="stable")
    bins = [part for part in np.array_split(order, BINS) if len(part)]
    return float(sum(len(part) * abs(scores[part].mean() - right[part].mean()) for part in bins) / max(1, len(order)))


def find_threshold(scores: np.ndarray, right: np.ndarray, old: np.ndarray, precision: float) -> float:
    """The lowest score down to which the precision is at least `precision`, so that it holds for other texts too.

    Entities that training had and those it had not count the same, as later texts have more new names; and the
    precision less CONFIDENCE standard errors has to do.

    scores, right, old (np.ndarray): Each (entities,), as `judge` gives them.
    precision (float): From 0 to 1.
    RETURNS (float): The score, or 1 if there is none.
    """
    order = np.argsort(-scores, kind="stable")
    right, old = right[order], old[order]
    share = old.mean() if len(old) else 0
    weights = np.where(old, 1 - share, share) if 0 < share < 1 else np.ones(len(old))
    total = weights.cumsum()
    errors = np.sqrt(precision * (1 - precision) * (weights**2).cumsum()) / total
    good = np.flatnonzero((weights * right).cumsum() / total - CONFIDENCE * errors >= precision)
    return float(scores[order[good[-1]]]) if len(good) else 1.0


if __name__ == "__main__":
    run(evaluate)
