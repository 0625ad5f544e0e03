"""Remove what the steps of a run made."""

from __future__ import annotations

import shutil
from pathlib import Path, PurePosixPath
from typing import Annotated

import typer
from wasabi import msg

from common.errors import main
from common.records import AREAS, LOCK, RECORD, check_run, drop_if_empty, locked, made


def clean(
    name: Annotated[str, typer.Option("--run", help="Name of the run")],
) -> None:
    """Remove what the steps of a run recorded that they made, in all areas, and nothing else."""
    folders = [Path(f"{area}/{name}") for area in AREAS]
    for folder in folders:
        check_run(folder)
    for folder in folders:
        if folder.is_dir() and (folder / RECORD).exists():
            with locked(folder):
                _remove(folder)
                drop_if_empty(folder)
            if not folder.exists():
                msg.good(f"Removed {folder}")
        elif folder.exists():
            msg.warn(
                f"Left {folder} alone: no {RECORD} in it says that a step made it.",
                "If you need nothing of it, remove it by hand.",
            )


def _remove(folder: Path) -> None:
    """Remove what the record names, and the record."""
    for name in sorted(made(folder)):
        path = folder / name
        parts = PurePosixPath(name).parts
        if not parts or ".." in parts or "\0" in name or not path.parent.resolve().is_relative_to(folder.resolve()):
            msg.warn(f"Left alone what {folder / RECORD} names {name!r}: it is not a part of the folder.")
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
        for parent in path.relative_to(folder).parents[:-1]:
            if (folder / parent).is_dir() and not any((folder / parent).iterdir()):
                (folder / parent).rmdir()
    (folder / RECORD).unlink()
    others = sorted(path.name for path in folder.iterdir() if path.name != LOCK)
    if others:
        msg.warn(f"Left in {folder} what no step made: {', '.join(others[:10])}{', …' * (len(others) > 10)}")


if __name__ == "__main__":
    main(clean)
