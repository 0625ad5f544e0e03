"""Remove what a run generated."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated

import typer
from wasabi import msg

from scripts.steps import StepError, run


def clean(
    folders: Annotated[list[Path], typer.Argument(help="Folders to remove")],
    keep: Annotated[Path, typer.Option(help="A folder never to remove, with what is in it", exists=True)],
) -> None:
    """Remove folders, those that are there, except one that is part of the project."""
    for folder in folders:
        if keep.resolve().is_relative_to(folder.resolve()):
            raise StepError(f"{folder} belongs to the project.", "Name the run to remove: --vars.run quickstart")
    for folder in folders:
        if folder.exists():
            shutil.rmtree(folder)
            msg.good(f"Removed {folder}")


if __name__ == "__main__":
    run(clean)
