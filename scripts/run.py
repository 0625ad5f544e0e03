"""Run a command or a workflow of project.yml with the variables that a run's file gives."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from weasel.cli.run import project_run
from weasel.util import load_project_config, parse_config_overrides

from common.errors import StepError, main
from common.records import check_run


def run(
    context: typer.Context,
    command: Annotated[str, typer.Argument(help="A command or workflow of project.yml")],
    name: Annotated[str, typer.Argument(help="The run: runs/<name>.yml has its variables")],
) -> None:
    """Run a command of the project for a run; --vars.<variable> comes before what the run's file says."""
    overrides = {f"vars.{key}": value for key, value in read_run(Path("runs") / f"{name}.yml", Path.cwd()).items()}
    added = parse_config_overrides([*quote(context.args)])
    known = {f"vars.{key}" for key in find_variables(Path.cwd())}
    if unknown := sorted(added.keys() - known):  # which weasel would take without a word
        raise StepError(
            f"There is no variable for --{unknown[0]}.",
            f"Like this are: {', '.join(f'--{key}' for key in get_close_matches(unknown[0], known)) or 'none'}; "
            "project.yml has all of them at its top.",
        )
    project_run(Path.cwd(), command, overrides=overrides | added)


def quote(arguments: Iterable[str]) -> Iterator[str]:
    """Quote the values on a command line, so that weasel takes them as they are written.

    It would take 1.10 for the number 1.1, and 0.3 for 0.30000000000000004.

    arguments (Iterable[str]): `--vars.<variable>` and values, beside each other or with = between.
    YIELDS (str): The same beside each other, each value as a string of JSON.
    """
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if not argument.startswith("--"):
            yield json.dumps(argument)
        elif equals:
            yield from (name, json.dumps(value))
        else:
            yield name


def find_variables(project: Path) -> dict[str, Any]:
    """The variables of project.yml with their defaults."""
    return dict(load_project_config(project, interpolate=False)["vars"])


def read_run(path: Path, project: Path) -> dict[str, str]:
    """The variables of project.yml that a run's file sets, as they are written there, and `run`, the name of the file.

    path (Path): The file.
    project (Path): The folder of the project.
    RAISES (StepError): If there is no such file, or it sets something else.
    """
    check_run(Path("metrics") / path.stem)
    if not path.exists():
        known = ", ".join(sorted(other.stem for other in path.parent.glob("*.yml")))
        raise StepError(f"There is no {path}.", f"Copy one of the others and change it; there are: {known}")
    try:
        found = yaml.load(path.read_text("utf8"), yaml.BaseLoader) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise StepError(
            f"{path} is not valid YAML: {error}", "A line is a variable and its value: encoder: minilm"
        ) from error
    if not isinstance(found, dict):
        raise StepError(f"{path} holds no variables.", "A line is a variable and its value: encoder: minilm")
    variables = {key: value for key, value in find_variables(project).items() if key != "run"}
    for key, value in found.items():
        if key not in variables:
            raise StepError(
                f"{path} sets {key}, which is no variable of a run.", f"There are: {', '.join(sorted(variables))}"
            )
        nothing = value in ("~", "null") or (value == "" and variables[key] != "")
        if not isinstance(value, str) or '"' in value or nothing:
            raise StepError(f"{path} sets {key} to {value!r}.", "A value is one word, path or number, without quotes.")
    return found | {"run": path.stem}


if __name__ == "__main__":
    main(run, context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
