"""Trainings on several devices: one at a time on each, in a process of its own, and none of them done twice."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import psutil
import torch
import tqdm
from wasabi import msg

from common.errors import StepError
from common.models import BEST, find_trained
from common.records import digest, locked, made, replace

LOGS = "logs"  # in the folder of a run
PATIENCE = 3  # how often a job is begun whose process is killed, since anybody may have killed it
PAUSE = 0.2  # seconds between two looks at the processes
MEMORY = 4  # GB that a training of the small encoder takes at most


class TrainingFailed(Exception):
    """A training that ended without a model.

    why (str): The reason.
    killed (bool): Whether its process was killed, so that the training itself may be right.
    """

    def __init__(self, why: str, killed: bool = False) -> None:
        super().__init__(why)
        self.killed = killed


class Job(Protocol):
    """What a process does on a device."""

    @property
    def log(self) -> Path:
        """Where to write what the process prints; only that of a job that fails is kept."""

    def begin(self, gpu_id: int) -> list[str] | None:
        """Give the command line for a GPU, or -1 for the CPU; None if everything is done already."""

    def end(self) -> None:
        """Put things in order, after the process has ended in whatever way and will not be started again."""


@dataclass(frozen=True)
class Training:
    """A training of a run by the command `train`.

    Several of them can be at work, since each has a place beside the folder of the run.

    inputs (dict[str, Any]): Of the provenance of the model, as `prepare` gives them.
    config, corpus, encoder (Path): As `train` takes them.
    folder (Path): The folder of the run.
    options (dict[str, Any]): Other options of `train`, without the GPU.
    """

    inputs: dict[str, Any]
    config: Path
    folder: Path
    corpus: Path
    encoder: Path
    options: dict[str, Any]

    @property
    def name(self) -> str:
        """The digest of the inputs."""
        return digest(self.inputs)

    @property
    def place(self) -> Path:
        """The folder where it trains. It is a run's folder of its own, since `train` works alone in one."""
        return self.folder.with_name(f"{self.folder.name}-{self.name}")

    @property
    def log(self) -> Path:
        """See `Job`."""
        return self.folder / LOGS / f"{self.name}.log"

    def create_command(self, gpu_id: int) -> list[str]:
        """The command line of `train`."""
        command = [sys.executable, "-m", "scripts.train", str(self.config), str(self.place)]
        paths = {"corpus": self.corpus, "encoder": self.encoder, "gpu_id": gpu_id}
        for name, value in (paths | self.options).items():
            command += [f"--{name.replace('_', '-')}", str(value)]
        return command

    def begin(self, gpu_id: int) -> list[str] | None:
        """See `Job`."""
        return None if self.find_model() else self.create_command(gpu_id)

    def end(self) -> None:
        """See `Job`. The model is kept in the folder of the run."""
        self.keep(self.folder)
        shutil.rmtree(self.place, ignore_errors=True)

    def find_model(self, *others: Path) -> Path | None:
        """Find a trained model: of the run, of other runs, or of a process that was killed.

        What a killed training has left is removed: if it went on from there, it would get more training than others.

        *others (Path): Folders of other runs.
        """
        with locked(self.place):  # a training may outlive the process that began it
            found = (find_trained(folder, self.inputs) for folder in (self.folder, *others, self.place))
            model = next(filter(None, found), None)
            for path in self.place.glob("unfinished-*") if not model else ():
                shutil.rmtree(path)
        return model

    def keep(self, home: Path, instead: Iterable[str] = ()) -> None:
        """Keep the model, if there is a new one, beside the model-best of a run, where `train` finds it.

        home (Path): The folder of the run.
        instead (Iterable[str]): Digests of models that need not be kept there any longer.
        """
        model = self.place / BEST
        if model.exists():
            with locked(home):
                made(home, f"{BEST}-{self.name}")
                replace(model, home / f"{BEST}-{self.name}")
                for other in {*instead} - {self.name}:
                    shutil.rmtree(home / f"{BEST}-{other}", ignore_errors=True)


def choose_devices(gpu_id: int, gpus: str, processes: int) -> list[int]:
    """Choose the devices for trainings.

    gpu_id (int): The only GPU, or -1 for the CPU.
    gpus (str): Several GPUs instead, with commas between.
    processes (int): How many processes share the cores where there is no GPU.
    RETURNS (list[int]): A GPU for each training that can be at work at a time, or -1 for the CPU.
    RAISES (StepError): If there are no such GPUs, or if processes are to share one.
    """
    if processes > 1 and (gpus or gpu_id >= 0):
        raise StepError(
            "Several processes share the cores of a machine; a GPU has one training at a time.",
            "Take --vars.gpus 0,1 alone, or --vars.trainings 2 alone.",
        )
    if not gpus:
        return [gpu_id] * processes
    numbers = [part.strip() for part in gpus.split(",")]
    if not all(number.isdecimal() for number in numbers) or len({*numbers}) < len(numbers):
        raise StepError(f"gpus is {gpus!r}, which are no different GPUs.", "For example: --vars.gpus 0,1")
    devices, present = [int(number) for number in numbers], torch.cuda.device_count()
    if max(devices) >= present:
        raise StepError(
            f"GPU {max(devices)} was asked for; PyTorch finds {present}, from 0.",
            "See nvidia-smi and whether this PyTorch is built for it, or train on the CPU: --vars.trainings 2",
        )
    return devices


def train_all(trainings: Mapping[str, Training], devices: list[int]) -> None:
    """Train whatever is not trained yet. `train_aside` finds the models then.

    trainings (Mapping[str, Training]): By what they are called for a person.
    devices (list[int]): As `choose_devices` gives them.
    RAISES (StepError): If trainings failed, once the others have ended and are kept.
    """
    missing = {each.name: each for each in trainings.values() if not find_trained(each.folder, each.inputs)}
    jobs = {name: each for name, each in trainings.items() if missing.get(each.name) is each}
    for folder in {each.folder for each in jobs.values()}:
        made(folder, LOGS)
        (folder / LOGS).mkdir(exist_ok=True)
    with tqdm.tqdm(total=len(jobs), desc="trainings", unit="training", disable=None) as bar:
        try:
            run_all(jobs, devices, lambda ended: bar.update(ended - bar.n))
        except KeyboardInterrupt:
            msg.warn("Interrupted. All trainings that have ended are kept, and the same command goes on.")
            raise


def run_all(jobs: Mapping[str, Job], devices: list[int], follow: Callable[[int], object]) -> None:
    """Do jobs, one at a time on each device. One that is killed is done again, on another device if one is free.

    All processes are killed when this is interrupted.

    jobs (Mapping[str, Job]): By what they are called for a person, in the order in which they begin.
    devices (list[int]): As `choose_devices` gives them.
    follow (Callable[[int], object]): Called again and again with how many have ended.
    RAISES (StepError): If jobs failed, once the others have ended.
    """
    processes = min(len(devices), len(jobs))
    threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, torch.get_num_threads() // max(1, processes)))
    if jobs:
        free = psutil.virtual_memory().available / 1e9
        msg.info(
            f"{processes} trainings at a time, each with OMP_NUM_THREADS={threads}. One of the small encoder takes up "
            f"to {MEMORY} GB of memory, so that this takes up to {processes * MEMORY} GB; {free:.0f} GB are free."
        )
    waiting, idle = deque((name, 1) for name in jobs), deque(devices)
    running: dict[str, tuple[subprocess.Popen[bytes], int, int]] = {}
    failures: dict[str, str] = {}
    ended = 0
    try:
        while waiting or running:
            while waiting and idle:
                name, attempt = waiting.popleft()
                if command := jobs[name].begin(idle[0]):
                    process = start(command, jobs[name].log, OMP_NUM_THREADS=threads)
                    running[name] = process, attempt, (device := idle.popleft())
                    where = f"GPU {device}" if device >= 0 else "the CPU"
                    msg.info(f"{name}: begun on {where}; what it prints is in {jobs[name].log}")
                else:
                    jobs[name].end()
                    ended += 1
                    msg.good(f"{name}: done already")
            time.sleep(PAUSE if running else 0)
            for name, (process, attempt, device) in [*running.items()]:
                if process.poll() is None:
                    continue
                idle.append(device)
                del running[name]
                try:
                    check_end(process, jobs[name].log)
                    msg.good(f"{name}: finished")
                except TrainingFailed as error:
                    if error.killed and attempt < PATIENCE:
                        msg.warn(f"{name}: {error}. It is done again.")
                        waiting.append((name, attempt + 1))
                        continue
                    failures[name] = str(error)
                    msg.fail(f"{name}: {error}")
                jobs[name].end()
                ended += 1
            follow(ended)
    except BaseException:
        for name, (process, *_) in running.items():
            kill(process)
            jobs[name].end()
            jobs[name].log.unlink()
        raise
    if failures:
        told = "; ".join(f"{name}: {why}" for name, why in failures.items())
        raise StepError(
            f"{len(failures)} of {len(jobs)} have failed. {told}",
            "Mend that, and run the same command again: all others have ended and are kept.",
        )


def run_training(command: list[str], log: Path, follow: Callable[[], object]) -> None:
    """Run a training in a process of its own.

    command (list[str]): Its command line.
    log (Path): Where to write what it prints; only that of a training that fails is kept.
    follow (Callable[[], object]): Called every second, and once more at the end. What it raises ends the training.
    RAISES (TrainingFailed): If the training failed, and why.
    """
    process = start(command, log)
    try:
        while process.poll() is None:
            with suppress(subprocess.TimeoutExpired):
                process.wait(1)
            follow()
    except BaseException:
        kill(process)
        log.unlink()
        raise
    check_end(process, log)


def start(command: list[str], log: Path, **environment: str) -> subprocess.Popen[bytes]:
    """Start a process that prints into a file.

    command (list[str]): Its command line.
    log (Path): The file.
    **environment (str): Variables of its environment, beside those of this process.
    RETURNS (subprocess.Popen[bytes]): The process.
    """
    plain = {"ANSI_COLORS_DISABLED": "1", "PYTHONUTF8": "1"}
    with log.open("w") as output:
        return subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=os.environ | plain | environment)


def check_end(process: subprocess.Popen[bytes], log: Path) -> None:
    """Look how a process has ended. What it printed is removed if it ended well.

    RAISES (TrainingFailed): If it failed, and why.
    """
    if process.returncode:
        text = log.read_text("utf8", errors="replace")
        told = text.rpartition("✘ ")[2] if "✘ " in text else text.strip().rpartition("\n")[2]
        killed = process.returncode < 0
        how = f"killed by {signal.Signals(-process.returncode).name}" if killed else " ".join(told.split())
        raise TrainingFailed(f"{how} (see {log})", killed)
    log.unlink()


def kill(process: subprocess.Popen[bytes]) -> None:
    """Kill a process, and what it has started."""
    with suppress(psutil.NoSuchProcess):
        family = psutil.Process(process.pid).children(recursive=True)
        process.kill()
        for child in family:
            with suppress(psutil.NoSuchProcess):
                child.kill()
    process.wait()
