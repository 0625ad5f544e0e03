"""Forecast what more training documents would bring, by the power law that learning curves follow."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.optimize import approx_fprime, least_squares  # type: ignore[import-untyped]
from scipy.stats import t as student  # type: ignore[import-untyped]

FEWEST_SIZES = 3  # through two points goes any law
SIZES_FOR_A_FLOOR = 5  # fewer do not tell the error that stays from the error that falls
LEAST_ERROR = 1e-4  # a lower one counts as this, because the logarithm of 0 is infinite


def forecast(documents: Sequence[int], scores: Sequence[float]) -> dict[str, Any] | None:
    """Forecast F1 with more training documents than there are.

    The error, 1 - F1, falls with the number n of documents as a · n^-b + c (Hestness et al. 2017,
    https://arxiv.org/abs/1712.00409), where c is the error that no number of documents takes away. The law is fitted to
    the logarithm of the errors by least squares. With few sizes c is 0, and the forecast rather too high.

    The interval is that of the gain, by Student's t: it knows how far the trainings scatter around the law, and not
    whether the law holds. It is therefore asked for at most twice as many documents as there are.

    documents (Sequence[int]): With how many documents each training was.
    scores (Sequence[float]): F1 of each training, from 0 to 1.
    RETURNS (dict[str, Any] | None): `documents`, the largest number that there is; `more`, how many come on top of it;
        `gain` of F1 by these, and its 95% `interval`; `sizes`, the number of different sizes; and `law`: a, b and c.
        None if there are fewer than FEWEST_SIZES sizes.
    """
    sizes, errors = np.array(documents, dtype=float), 1 - np.array(scores, dtype=float)
    known = len(np.unique(sizes))
    if known < FEWEST_SIZES:
        return None
    logarithms = np.log(np.maximum(errors, LEAST_ERROR))
    slope, height = np.polyfit(np.log(sizes), logarithms, 1)
    first, low, high = [height, -slope], [-np.inf, -np.inf], [np.inf, np.inf]
    if known >= SIZES_FOR_A_FLOOR:
        least = float(np.exp(logarithms.min()))
        first, low, high = [*first, least / 2], [*low, 0], [*high, least]
    # Steps of the size of each parameter, since c is far smaller than the others
    fit = least_squares(
        lambda law: np.log(error_at(law, sizes)) - logarithms, first, bounds=(low, high), x_scale="jac", xtol=1e-12
    )
    largest = int(sizes.max())
    more = round_down(largest)

    def gain(law: np.ndarray) -> float:
        return float(error_at(law, largest) - error_at(law, largest + more))

    freedom = len(sizes) - len(first)
    slopes = approx_fprime(fit.x, gain, 1e-7)
    variance = 2 * fit.cost / freedom * (slopes @ np.linalg.pinv(fit.jac.T @ fit.jac) @ slopes)
    margin = float(student.ppf(0.975, freedom) * np.sqrt(max(0.0, variance)))
    middle = gain(fit.x)
    height, power, *floor = (float(value) for value in fit.x)
    return {
        "documents": largest,
        "more": more,
        "gain": middle,
        "interval": [middle - margin, middle + margin],
        "sizes": known,
        "law": {"a": float(np.exp(height)), "b": power, "c": floor[0] if floor else 0.0},
    }


def error_at(law: np.ndarray, documents: Any) -> Any:
    """The error that a law gives.

    law (np.ndarray): The logarithm of a, then b, and perhaps c.
    documents (Any): A number of documents, or an array of such.
    RETURNS (Any): The error, or an array of the same shape.
    """
    return np.exp(law[0] - law[1] * np.log(documents)) + (law[2] if len(law) > 2 else 0)


def round_down(number: int) -> int:
    """The largest of 1, 2, 5, 10, 20, 50, ... that is not above a number, which is at least 1."""
    power = int(10 ** (len(str(number)) - 1))
    return max(digit * power for digit in (1, 2, 5) if digit * power <= number)
