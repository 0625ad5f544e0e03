"""Run a command or a workflow of project.yml with the variables that a run's file gives."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

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
    project_run(Path.cwd(), command, overrides=overrides | parse_config_overrides(list(context.args)))


def read_run(path: Path, project: Path) -> dict[str, str]:
    """The variables of project.yml that a run's file sets, and `run`, the name of the file.

    path (Path): The file.
    project (Path): The folder of the project.
    RAISES (StepError): If there is no such file, or it sets something else.
    """
    check_run(Path("metrics") / path.stem)
    if not path.exists():
        known = ", ".join(sorted(other.stem for other in path.parent.glob("*.yml")))
        raise StepError(f"There is no {path}.", f"Copy one of the others and change it; there are: {known}")
    try:
        found = yaml.safe_load(path.read_text("utf8")) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise StepError(
            f"{path} is not valid YAML: {error}", "A line is a variable and its value: encoder: minilm"
        ) from error
    if not isinstance(found, dict):
        raise StepError(f"{path} holds no variables.", "A line is a variable and its value: encoder: minilm")
    variables = set(load_project_config(project, interpolate=False)["vars"]) - {"run"}
    for key, value in found.items():
        if key not in variables:
            raise StepError(
                f"{path} sets {key}, which is no variable of a run.", f"There are: {', '.join(sorted(variables))}"
            )
        if not isinstance(value, str | int | float) or isinstance(value, bool) or '"' in str(value):
            raise StepError(f"{path} sets {key} to {value!r}.", "A value is one word, path or number, without quotes.")
    return {key: str(value) for key, value in found.items()} | {"run": path.stem}


if __name__ == "__main__":
    main(run, context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
