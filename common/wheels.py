"""Find wheels, install them elsewhere, and use them there."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from enum import StrEnum
from pathlib import Path

from common.errors import StepError


class Weights(StrEnum):
    """How the weights of the encoder are saved. float16 halves the wheel; in both cases they are loaded as float32."""

    float32 = "float32"
    float16 = "float16"


def newest_wheel(folder: Path) -> Path:
    """Find the wheel that was made last in a folder or in folders below it.

    folder (Path): The folder.
    RETURNS (Path): The wheel.
    RAISES (StepError): If there is none.
    """
    wheel = max(folder.rglob("*.whl"), key=lambda path: path.stat().st_mtime, default=None)
    if wheel is None:
        raise StepError(f"{folder} holds no wheel.", "Run the step package again: make package RUN=<run>")
    return wheel


def fetch_wheel(requirements: Path, folder: Path, instead: str) -> Path:
    """Fetch the one wheel that a requirements file pins by its hash, with pip, and without what it depends on.

    requirements (Path): The file.
    folder (Path): Where the wheel shall lie.
    instead (str): What people can do who cannot fetch it, for the error.
    RETURNS (Path): The wheel.
    RAISES (StepError): If pip cannot have it, or has another one.
    """
    pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--require-hashes", "--disable-pip-version-check"]
    done = subprocess.run([*pip, "-r", str(requirements), "-d", str(folder)], stderr=subprocess.PIPE, text=True)
    if done.returncode:
        reason = "\n".join(line for line in done.stderr.splitlines() if not line.startswith("WARNING"))
        raise StepError(
            f"pip could not fetch the package in {requirements}:\n{reason.strip()}",
            f"Check the network and pip's index; or {instead}",
        )
    return next(folder.glob("*.whl"))


def install(wheel: Path, target: Path) -> str:
    """Install a wheel in a folder, without what it depends on.

    wheel (Path): The wheel.
    target (Path): The folder, which is made.
    RETURNS (str): The name of its package.
    """
    options = ["--no-deps", "--no-index", "--quiet", "--target", str(target)]
    python_elsewhere(["-m", "pip", "install", *options, str(wheel.resolve())])
    return wheel.name.split("-")[0]


def python_elsewhere(arguments: list[str], target: Path | None = None, python: str = sys.executable) -> str:
    """Run another Python in an empty folder. It finds packages in `target`, and it cannot reach the hub.

    arguments (list[str]): The arguments of Python.
    target (Path | None): A folder with packages, in addition to those that this Python has.
    python (str): The interpreter, of this environment or of another one.
    RETURNS (str): What it wrote to standard output.
    RAISES (StepError): If it fails, with the end of what it wrote.
    """
    environment = os.environ | {
        "HF_HUB_OFFLINE": "1",
        "HF_ENDPOINT": "http://127.0.0.1:9",
        "PYTHONPATH": str(target or ""),
    }
    with tempfile.TemporaryDirectory() as folder:
        command = [python, "-P", "-s", "-W", "ignore", *arguments]
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode:
        last = "\n".join((done.stdout + done.stderr).strip().splitlines()[-15:])
        what = arguments[1] if arguments[0] == "-m" else "a script"
        raise StepError(f"The wheel does not work elsewhere: {what} failed.", last)
    return done.stdout
