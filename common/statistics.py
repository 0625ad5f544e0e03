"""Statistics of predictions: matched entities, calibration, intervals, scores of tags. They need no model."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from spacy.training import Example

from common.errors import StepError

BINS = 10  # of the calibration curve, with equally many entities
CONFIDENCE = 1.645  # standard errors below an estimate, of which one can be 95% sure
SAMPLES = 2000  # of the bootstrap
SMALLEST = 1e-10  # a lower probability counts as this one, so that a loss stays finite


def match_entities(examples: Iterable[Example], seen: set[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Compare the predicted entities with the corpus.

    examples (Iterable[Example]): Predicted documents, whose entities have a score, and references of the same tokens.
    seen (set[str]): The entities of training, as text in lower case.
    RETURNS (tuple[np.ndarray, np.ndarray, np.ndarray]): For each predicted entity, shape (entities,): its score,
        float; whether exactly this span and label is correct, bool; whether it was seen in training, bool.
    RAISES (StepError): If an entity has no score.
    """
    predicted = [
        (getattr(ent._, "score", None), (ent.start, ent.end, ent.label_) in gold, ent.text.lower() in seen)
        for example in examples
        for gold in [{(ent.start, ent.end, ent.label_) for ent in example.reference.ents}]
        for ent in example.predicted.ents
    ]
    if any(score is None for score, *_ in predicted):
        raise StepError("The pipeline gives entities without a score, ent._.score.", "Train it with configs/bert.cfg.")
    scores, correct, old = zip(*predicted, strict=True) if predicted else ((), (), ())
    return np.array(scores, dtype=float), np.array(correct, dtype=bool), np.array(old, dtype=bool)


def calibration_curve(scores: np.ndarray, correct: np.ndarray) -> list[dict[str, float]]:
    """Compare the scores of entities with how often they are correct.

    scikit-learn's function of this name puts the edges of its bins at quantiles, so that many equal scores, as of a
    pipeline that is sure, leave some bins empty. Here the bins have equally many entities whatever the scores.

    scores (np.ndarray): Shape (entities,), from 0 to 1.
    correct (np.ndarray): Shape (entities,), bool.
    RETURNS (list[dict[str, float]]): For each bin of at least one entity, by rising score: the mean `score`, the
        share that is `correct`, the number of `entities`.
    """
    bins = [part for part in np.array_split(np.argsort(scores, kind="stable"), BINS) if len(part)]
    return [
        {"score": float(scores[part].mean()), "correct": float(correct[part].mean()), "entities": len(part)}
        for part in bins
    ]


def calibration_error(scores: np.ndarray, correct: np.ndarray) -> float:
    """The expected calibration error (Naeini et al. 2015, https://doi.org/10.1609/aaai.v29i1.9602).

    scores, correct (np.ndarray): As `calibration_curve` takes them.
    RETURNS (float): The mean over entities of the distance between score and share of correct ones in their bin.
    """
    curve = calibration_curve(scores, correct)
    return sum(part["entities"] * abs(part["score"] - part["correct"]) for part in curve) / max(1, len(scores))


def find_threshold(scores: np.ndarray, correct: np.ndarray, seen: np.ndarray, precision: float) -> float:
    """Find the lowest score from which on the precision is at least as high as somebody wants it.

    The threshold shall hold for other texts too, which have more names that training did not have. So entities that
    were seen in training and those that were not get the same weight, and the precision has to be reached even when
    it is lowered by CONFIDENCE standard errors.

    scores, correct, seen (np.ndarray): Each (entities,), as `match_entities` gives them.
    precision (float): From 0 to 1.
    RETURNS (float): The score, or 1 if there is none.
    """
    order = np.argsort(-scores, kind="stable")
    scores, correct, seen = scores[order], correct[order], seen[order]
    share = seen.mean() if len(seen) else 0
    weights = np.where(seen, 1 - share, share) if 0 < share < 1 else np.ones(len(seen))
    total = weights.cumsum()
    errors = np.sqrt(precision * (1 - precision) * (weights**2).cumsum()) / total
    enough = (weights * correct).cumsum() / total - CONFIDENCE * errors >= precision
    enough[:-1] &= scores[1:] < scores[:-1]  # entities with one score are above a threshold together
    good = np.flatnonzero(enough)
    return float(scores[good[-1]]) if len(good) else 1.0


def number_tags(examples: Iterable[Example], tags: list[str]) -> list[np.ndarray]:
    """The BILUO tags of the corpus as numbers.

    examples (Iterable[Example]): Their references are numbered, token by token of the predicted documents.
    tags (list[str]): In the order of the numbers.
    RETURNS (list[np.ndarray]): For each example (tokens,), int; -1 where the tag is unknown.
    """
    numbers = {tag: number for number, tag in enumerate(tags)}
    return [np.array([numbers.get(tag or "-", -1) for tag in one.get_aligned_ner()], dtype=int) for one in examples]


def score_tags(gold: Iterable[np.ndarray], posteriors: Iterable[np.ndarray]) -> dict[str, float]:
    """Loss and accuracy of the BILUO tags of tokens.

    gold (Iterable[np.ndarray]): As `number_tags` gives them.
    posteriors (Iterable[np.ndarray]): For each document the posterior probabilities of the tags, (tokens, tags).
    RETURNS (dict[str, float]): `loss`: cross entropy of a token, in natural logarithms; `accuracy`: the share of tokens
        whose most probable tag is correct. Tokens whose tag is unknown are left out.
    """
    losses: list[np.ndarray] = []
    correct: list[np.ndarray] = []
    for numbers, array in zip(gold, posteriors, strict=True):
        known = np.flatnonzero(numbers >= 0)
        losses.append(-np.log(np.maximum(array[known, numbers[known]], SMALLEST)))
        correct.append(array[known].argmax(1) == numbers[known])
    count = max(1, sum(map(len, correct)))
    sums = {"loss": losses, "accuracy": correct}
    return {name: float(sum(part.sum() for part in parts) / count) for name, parts in sums.items()}


def f_score(counts: np.ndarray) -> Any:
    """F1 of entities.

    counts (np.ndarray): Shape (..., 3), int: correct, predicted, gold.
    RETURNS (float | np.ndarray): Shape (...), from 0 to 1.
    """
    return 2 * counts[..., 0] / np.maximum(1, counts[..., 1] + counts[..., 2])


def bootstrap(counts: np.ndarray) -> np.ndarray:
    """F1 on resampled test sets, as the mean over seeds.

    All calls draw the same documents, so that the samples of two pipelines can be compared in pairs.

    counts (np.ndarray): Shape (seeds, documents, 3), int: correct, predicted, gold.
    RETURNS (np.ndarray): Shape (SAMPLES,), float.
    """
    number = counts.shape[1]
    drawn = np.random.default_rng(0).multinomial(number, np.full(number, 1 / number), SAMPLES)
    return np.asarray(f_score(np.einsum("bd,sdk->bsk", drawn, counts)).mean(1))


def interval(samples: np.ndarray) -> list[float]:
    """The middle 95% of samples: the lowest and the highest."""
    return [float(value) for value in np.percentile(samples, (2.5, 97.5))]
