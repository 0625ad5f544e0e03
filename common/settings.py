"""The settings of a training, as a person gives them: numbers, auto, multiples of auto, and values of the config."""

from __future__ import annotations

import difflib
import math
from pathlib import Path
from typing import Any

from spacy.util import dict_to_dot
from thinc.api import Config

from common.errors import StepError

TIED = {  # numbers of the config that hang together: they follow from options of train
    "system.seed",
    "training.seed",
    "training.max_steps",
    "training.eval_frequency",
    "training.batcher.batcher.size",
    "training.optimizer.learn_rate.initial_rate",
    "training.optimizer.learn_rate.total_steps",
}


def read_number(name: str, value: str, auto: float) -> float:
    """Read a setting that follows from corpus and encoder unless a person gives it.

    name (str): The setting, for the error.
    value (str): A number above 0, "auto", or a multiple of that: "auto*0.5".
    auto (float): What "auto" stands for.
    RETURNS (float): The number.
    RAISES (StepError): If it is something else.
    """
    try:
        number = auto * _factor(value) if value.startswith("auto") else float(value)
    except ValueError:
        number = 0
    if not 0 < number < math.inf:
        raise StepError(
            f"{name} is {value!r}, neither auto nor a number above 0.",
            f"For example: {name} auto, or twice that: auto*2",
        )
    return number


def _factor(value: str) -> float:
    """By what to multiply a derived value: 2 for "auto*2", 1 for "auto"."""
    return 1.0 if value == "auto" else float(value.removeprefix("auto*"))


def find_settings(config: Path, derived: dict[str, Any]) -> dict[str, bool | int | float]:
    """Find what a run may set in the config beside that which has an option of its own.

    These are the numbers and switches alone. What a path or a name stands for would not be in a model's provenance.

    config (Path): The training config.
    derived (dict[str, Any]): What `derive` or `prepare` gives, which comes before the config.
    RETURNS (dict[str, bool | int | float]): The values that they have, by dotted name.
    """
    known = dict_to_dot(Config().from_disk(config)) | derived
    return {name: value for name, value in known.items() if isinstance(value, int | float) and name not in TIED}


def split_overrides(text: str) -> dict[str, str]:
    """Split `name=value,name=value` into values by name.

    RAISES (StepError): If something else stands there.
    """
    pairs = [part.strip().partition("=") for part in text.split(",") if part.strip()]
    for name, equals, value in pairs:
        if not (name and equals and value):
            raise StepError(
                f"overrides has {name + equals + value!r}, which is no setting with its value.",
                "For example: --vars.overrides training.dropout=0.2,training.batcher.lowercase=0.15",
            )
    return {name.strip(): value.strip() for name, _, value in pairs}


def read_overrides(text: str, settings: dict[str, bool | int | float]) -> dict[str, bool | int | float]:
    """Read what a run sets in the config.

    text (str): As the command `train` takes it. A value is of the kind that the config has there, or a multiple of what
        stands there otherwise: `auto*2`.
    settings (dict[str, bool | int | float]): As `find_settings` gives them.
    RETURNS (dict[str, bool | int | float]): Values by dotted name, without those that change nothing.
    RAISES (StepError): If there is no such setting, or if it cannot have this value.
    """
    found: dict[str, bool | int | float] = {}
    for name, value in split_overrides(text).items():
        if name not in settings:
            near = difflib.get_close_matches(name, settings, n=3, cutoff=0.4)
            raise StepError(
                f"overrides sets {name}, which is no number or switch of the config that may be set.",
                f"Like this name are: {', '.join(near)}"
                if near
                else "Take the dotted name of a setting in the config.",
            )
        now = settings[name]
        kind, example = ("true or false", "true") if isinstance(now, bool) else ("a number", f"{now:g} or auto*2")
        try:
            if isinstance(now, bool):
                new: bool | int | float = {"true": True, "false": False}[value]
            else:
                number = now * _factor(value) if value.startswith("auto") else float(value)
                if isinstance(now, int) and not value.startswith("auto") and number % 1:
                    kind, example = "a whole number", f"{now}"
                    raise ValueError
                new = round(number) if isinstance(now, int) else number
                if not math.isfinite(new):
                    raise ValueError
        except (ValueError, KeyError, OverflowError) as error:
            raise StepError(
                f"overrides sets {name} to {value!r}, not to {kind}.", f"For example: {name}={example}"
            ) from error
        if new != now:
            found[name] = new
    return found
