"""What a search for settings tries: the range of each setting, and the settings that Optuna proposes from them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import Trial

from common.errors import StepError

OPTIONS = ("epochs", "learn_rate", "batch_words")  # of `train`, which takes multiples of what it derives
SHARE = "synthetic_share"  # of the corpus, not of the config: what part of its tokens is synthetic
KINDS = ("times", "between", "one_of")
Value = bool | int | float


class Parameter(NamedTuple):
    """A setting to search: its values, of which one is the default, and what it does.

    If `times`, a value says by what to multiply the one that the setting has otherwise. If `whole`, the setting has
    whole numbers only. If `optional`, it is left out where the corpus has nothing to try it with.
    """

    distribution: FloatDistribution | IntDistribution | CategoricalDistribution
    times: bool
    default: Value
    explain: str
    whole: bool = False
    optional: bool = False


def read_space(path: Path, settings: dict[str, Value]) -> dict[str, Parameter]:
    """Read what is searched.

    path (Path): The file, such as configs/search.yml, which explains it.
    settings (dict[str, Value]): The settings of the config that may be set, and SHARE, with the run's own values.
    RETURNS (dict[str, Parameter]): By the name of the setting.
    RAISES (StepError): If a setting is unknown, if a range is empty, or if it lacks the default.
    """
    try:
        found = yaml.safe_load(path.read_text("utf8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise StepError(f"{path} is not valid YAML: {error}", "Look at configs/search.yml.") from error
    if not isinstance(found, dict) or not found:
        raise StepError(f"{path} names no settings.", "Look at configs/search.yml.")
    parameters = {}
    for name, entry in found.items():
        if name not in settings and name not in OPTIONS:
            raise StepError(
                f"{path} searches {name}, which is no setting that may be set.",
                f"Take the dotted name of a number or a switch in the config, {SHARE}, or one of {', '.join(OPTIONS)}.",
            )
        try:
            parameters[name] = (
                read_share(entry, settings[name]) if name == SHARE else read_parameter(entry, settings.get(name))
            )
        except ValueError as error:
            raise StepError(f"{path}, {name}: {error}.", "Look at configs/search.yml.") from error
    return parameters


def read_share(entry: Any, now: Value) -> Parameter:
    """Read the range of the share of synthetic texts, beside which `optional: true` may stand.

    entry, now, RETURNS, RAISES: As `read_parameter` has them.
    """
    rest = dict(entry) if isinstance(entry, dict) else {}
    optional = rest.pop("optional", False)
    if not isinstance(optional, bool):
        raise ValueError(f"optional is {optional!r}, neither true nor false")
    parameter = read_parameter(rest, now)
    distribution = parameter.distribution
    if (
        not isinstance(distribution, FloatDistribution)
        or parameter.times
        or not 0 <= distribution.low <= distribution.high < 1
    ):
        raise ValueError("it takes a range of parts of 1, the highest below 1: between: [0, 0.5]")
    return parameter._replace(optional=optional)


def limit(parameter: Parameter, highest: float) -> Parameter:
    """The same parameter without what lies above the highest value that can be reached; its default stays in."""
    distribution = parameter.distribution
    assert isinstance(distribution, FloatDistribution)
    high = max(parameter.default, min(distribution.high, highest))
    return parameter._replace(distribution=FloatDistribution(distribution.low, high))


def read_parameter(entry: Any, now: Value | None) -> Parameter:
    """Read the range of a setting.

    entry (Any): What stands in the file.
    now (Value | None): The value that the setting has otherwise, None for an option of train.
    RETURNS (Parameter): The parameter.
    RAISES (ValueError): If the entry is wrong, and how.
    """
    kinds = [kind for kind in KINDS if isinstance(entry, dict) and kind in entry]
    if len(kinds) != 1 or set(entry) != {kinds[0], "explain"}:
        raise ValueError(f"it needs a line `explain` and one of {', '.join(KINDS)}, and nothing else")
    (kind,) = kinds
    values, explain = entry[kind], str(entry["explain"])
    if not isinstance(values, list) or not values:
        raise ValueError(f"{kind} is {values!r}, not a list")
    switches = [isinstance(value, bool) for value in values]
    if isinstance(now, bool) and not (kind == "one_of" and all(switches)):
        raise ValueError("it is a switch: one_of: [true, false]")
    if not isinstance(now, bool) and (
        any(switches) or not all(isinstance(value, int | float) and math.isfinite(value) for value in values)
    ):
        raise ValueError(f"{kind} is {values!r}, not all numbers")
    whole = isinstance(now, int)
    if whole and kind != "times" and not all(isinstance(value, int) for value in values):
        raise ValueError(f"the setting has whole numbers, and {values!r} are others")
    if now is None and kind != "times":
        raise ValueError("it takes multiples of what the training derives: times")
    if now is not None and kind == "one_of":
        if now not in values:
            raise ValueError(f"the default, {now}, is not among {values!r}")
        return Parameter(CategoricalDistribution(values), False, now, explain)
    default = 1.0 if kind == "times" or now is None else now
    if len(values) != 2 or values[0] >= values[1]:
        raise ValueError(f"the range {values!r} is empty: give the lowest and the highest value")
    low, high = values
    if not low <= default <= high:
        raise ValueError(f"the default, {default:g}, is not between {low} and {high}")
    if kind == "times":
        if low <= 0:
            raise ValueError(f"the range {values!r} of multiples has to begin above 0")
        return Parameter(FloatDistribution(low, high, log=True), True, default, explain, whole)
    if isinstance(default, float):
        return Parameter(FloatDistribution(low, high), False, default, explain)
    return Parameter(IntDistribution(low, high), False, default, explain)


def describe_parameter(parameter: Parameter) -> dict[str, str]:
    """What a parameter does, and its range, as text."""
    distribution = parameter.distribution
    if isinstance(distribution, CategoricalDistribution):
        values = ", ".join(map(str, distribution.choices))
    else:
        values = f"{distribution.low:g} to {distribution.high:g}" + " times" * parameter.times
    return {"explain": parameter.explain, "range": values, "default": f"{parameter.default:g}"}


def propose(trial: Trial, parameters: dict[str, Parameter], given: dict[str, str]) -> dict[str, str]:
    """Let Optuna propose the settings of a trial.

    trial (Trial): The trial.
    parameters (dict[str, Parameter]): What is searched.
    given (dict[str, str]): What the run sets itself; a multiple is one of that.
    RETURNS (dict[str, str]): The settings, as `train` and the file of a run take them: with three digits, so that what
        is written is what was tried.
    """
    settings = {}
    for name, parameter in parameters.items():
        distribution = parameter.distribution
        if isinstance(distribution, CategoricalDistribution):
            value: Any = trial.suggest_categorical(name, distribution.choices)
        elif isinstance(distribution, IntDistribution):
            value = trial.suggest_int(name, distribution.low, distribution.high)
        else:
            value = trial.suggest_float(name, distribution.low, distribution.high, log=distribution.log)
        own = given.get(name, "auto")
        settings[name] = multiply(own, value, parameter.whole) if parameter.times else format_value(value)
    return settings


def multiply(given: str, factor: float, whole: bool = False) -> str:
    """Multiply a number, `auto` or a multiple of that. A product that has to be a `whole` number is rounded."""
    word, _, number = given.rpartition("*") if "*" in given else (given, "", "1")
    if word == "auto":
        return f"auto*{float(number) * factor:.3g}"
    product = float(given) * factor
    return str(round(product)) if whole else f"{product:.3g}"


def format_value(value: Value) -> str:
    """A value as `train` reads it."""
    return str(value).lower() if isinstance(value, bool) else f"{value:.3g}" if isinstance(value, float) else str(value)
