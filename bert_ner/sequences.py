"""The legal sequences of BILUO tags: the most probable one, and sums over all of them, by numpy alone.

spaCy's registry gets `bert_ner.LegalSequences.v1`, which the entity recogniser of recognizer.py looks up there. A wheel
of the pipeline has a copy of this file.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from spacy.util import registry

SMALLEST = 1e-30  # a lower probability counts as this one, so that logarithms stay finite


@registry.misc("bert_ner.LegalSequences.v1")  # type: ignore[untyped-decorator,unused-ignore]
class LegalSequences:
    """The legal sequences of BILUO tags of each document, which is cut into pieces at `starts`.

    Between two tokens, a sequence is either outside of entities or in an open entity of one label. All sums are
    logarithms and have the names of Rabiner 1989 (https://doi.org/10.1109/5.18626). Tokens of all documents stand one
    after the other; their pieces are computed together, token by token.

    probabilities (list[np.ndarray]): The probabilities of each document, (tokens, 1 + 4 · labels), float: those of O,
        then of B, I, L and U of each label.
    starts (list[np.ndarray]): For each document (tokens,), bool: the tokens to which no entity goes on.

    These are its attributes:

    offsets (np.ndarray): The first token of each document, and the number of all tokens, (documents + 1,), int.
    pieces, sizes (np.ndarray): The first token of each piece and the number of its tokens, (pieces,), int.
    logs (np.ndarray): The logarithms of the probabilities, (tokens, tags).
    alpha_outside, alpha_opened (np.ndarray): The sum over all sequences up to each token, in the state before it,
        (tokens,) and (tokens, labels).
    beta_outside, beta_opened (np.ndarray): The sum over all sequences from the state after each token.
    psi_outside, psi_opened (np.ndarray): How the most probable sequence reached the state after each token. Outside: 0
        by O, then one number for U and one for L of each label, (tokens,), int. Open: whether the entity was open
        before the token, (tokens, labels), bool.
    total (np.ndarray): The sum over all sequences of the piece that each token belongs to, (tokens,).
    log_legal (float): The logarithm of the probability that a sequence is legal whose tags are drawn one by one, summed
        over pieces.
    """

    def __init__(self, probabilities: list[np.ndarray], starts: list[np.ndarray]) -> None:
        self.offsets = np.cumsum([0, *map(len, probabilities)])
        self.logs = self.take_logs(np.concatenate(probabilities or [np.zeros((0, 1))]).astype("float64"))
        begin, inside, last, unit = (self.logs[:, kind::4] for kind in (1, 2, 3, 4))
        standalone = np.concatenate((self.logs[:, :1], unit), axis=1)  # O and U, which join no token to another
        cut = np.concatenate([*starts, [True]])
        cut[self.offsets] = True
        self.pieces = np.flatnonzero(cut[:-1])
        self.sizes = np.diff(np.flatnonzero(cut))
        order = np.argsort(-self.sizes, kind="stable")  # the longest first, so that those that go on are always first
        first = self.pieces[order]
        steps = np.arange(self.sizes.max(initial=0))
        count = len(first) - np.searchsorted(np.sort(self.sizes), steps, side="right")  # of those that go on

        # Row 0 holds log alpha and row 1 log delta, which is that of the best sequence.
        tokens, labels = unit.shape
        outside, opened = np.zeros((2, len(first))), np.full((2, len(first), labels), -np.inf)
        self.alpha_outside, self.alpha_opened = np.zeros(tokens), np.zeros((tokens, labels))
        self.psi_outside, self.psi_opened = np.zeros(tokens, dtype=int), np.zeros((tokens, labels), dtype=bool)
        for step, n in enumerate(count):
            rows = first[:n] + step
            self.alpha_outside[rows], self.alpha_opened[rows] = outside[0, :n], opened[0, :n]
            to_outside = np.concatenate((outside[:, :n, None] + standalone[rows], opened[:, :n] + last[rows]), axis=2)
            to_opened = np.stack((outside[:, :n, None] + begin[rows], opened[:, :n] + inside[rows]), axis=3)
            self.psi_outside[rows], self.psi_opened[rows] = to_outside[1].argmax(1), to_opened[1].argmax(2)
            outside[:, :n] = np.logaddexp.reduce(to_outside[0], axis=1), to_outside[1].max(1)
            opened[:, :n] = np.logaddexp.reduce(to_opened[0], axis=2), to_opened[1].max(2)

        self.beta_outside, self.beta_opened = np.zeros(tokens), np.zeros((tokens, labels))
        after_outside, after_opened = np.zeros(len(first)), np.full((len(first), labels), -np.inf)
        for step, n in reversed(list(enumerate(count))):
            rows = first[:n] + step
            self.beta_outside[rows], self.beta_opened[rows] = after_outside[:n], after_opened[:n]
            from_outside = np.concatenate(
                (after_outside[:n, None] + standalone[rows], after_opened[:n] + begin[rows]), axis=1
            )
            after_opened[:n] = np.logaddexp(after_outside[:n, None] + last[rows], after_opened[:n] + inside[rows])
            after_outside[:n] = np.logaddexp.reduce(from_outside, axis=1)

        total = np.empty(len(first))
        total[order] = outside[0]
        self.total, self.log_legal = np.repeat(total, self.sizes), float(total.sum())

    @staticmethod
    def take_logs(probabilities: np.ndarray) -> np.ndarray:
        """Take the logarithms of probabilities, of which one below SMALLEST counts as that.

        probabilities (np.ndarray): Of any shape, float.
        RETURNS (np.ndarray): Of the same shape and dtype.
        """
        return np.asarray(np.log(np.maximum(probabilities, SMALLEST)))

    def find_posteriors(self) -> list[np.ndarray]:
        """Find the posterior probabilities of the tags: the share that the sequences with a tag have of all legal ones.

        RETURNS (list[np.ndarray]): For each document (tokens, tags), float32. Each row has the sum 1.
        """
        logs = self.logs - self.total[:, None]
        before, after = self.alpha_outside[:, None], self.beta_outside[:, None]
        logs[:, ::4] += before + after  # O and U
        logs[:, 1::4] += before + self.beta_opened
        logs[:, 2::4] += self.alpha_opened + self.beta_opened
        logs[:, 3::4] += self.alpha_opened + after
        posteriors = np.exp(logs).astype("float32")
        return [posteriors[start:end] for start, end in pairwise(self.offsets)]

    def find_entities(self) -> list[list[tuple[int, int, int, float]]]:
        """Find the entities of the most probable sequence of each document, and their posterior probabilities.

        RETURNS (list[list[tuple[int, int, int, float]]]): The entities of each document, in order: first token, token
            after the last, number of the label, and the posterior, in (0, 1].
        """
        begin, inside, last, unit = (self.logs[:, kind::4] for kind in (1, 2, 3, 4))
        labels, documents = unit.shape[1], len(self.offsets) - 1
        owner = np.repeat(np.arange(documents), np.diff(self.offsets))
        predicted: list[list[tuple[int, int, int, float]]] = [[] for _ in range(documents)]
        # From the end of each piece along the backpointers. The posterior of an entity from one row to another is
        # alpha before it, times the probabilities of its tags, times beta after it, divided by the total.
        for start, size in zip(self.pieces, self.sizes, strict=True):
            end = start + size
            while end > start:
                row = end - 1
                choice = self.psi_outside[row]
                if choice:
                    label = (choice - 1) % labels
                    weight = unit[row, label]
                    if choice > labels:
                        weight = last[row, label]
                        row -= 1
                        while self.psi_opened[row, label]:
                            weight += inside[row, label]
                            row -= 1
                        weight += begin[row, label]
                    log_posterior = self.alpha_outside[row] + weight + self.beta_outside[end - 1] - self.total[row]
                    score = min(1.0, float(np.exp(log_posterior)))
                    offset = self.offsets[owner[row]]
                    predicted[owner[row]].append((int(row - offset), int(end - offset), int(label), score))
                end = row
        return [sorted(entities) for entities in predicted]
