"""Measure how the service bears many clients at once."""

from __future__ import annotations

import gc
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated

import psutil
import requests
import typer
from wasabi import msg

from benchmarks.harness import PIPELINE, ROOT, SENTENCE, machine
from common.errors import StepError, main
from common.records import record_inputs, write_json, writes


@writes("metrics", "service.json")
def service(
    model: Annotated[Path, typer.Argument(help="The pipeline", exists=True)],
    metrics: Annotated[Path, typer.Argument(help="Folder for service.json")],
    clients: Annotated[int, typer.Option(help="How many ask at the same time", min=1)] = 50,
    seconds: Annotated[float, typer.Option(help="For how long")] = 60,
) -> None:
    """Measure how the service bears many clients who ask for the entities of a sentence again and again."""
    with start_service(model) as (address, process):
        run_load(address, clients, min(5, seconds))  # after that, memory should not grow any more
        before = memory_of(process.pid)
        answers = run_load(address, clients, seconds)
        after = memory_of(process.pid)
    times = sorted(taken for status, taken in answers if status == 200)
    if not times:
        raise StepError("The service answered nothing.", f"Try it: python -m app.service {model}")
    statuses = [status for status, _ in answers]
    record = {
        "clients": clients,
        "seconds": seconds,
        "statuses": {str(status): statuses.count(status) for status in sorted(set(statuses))},
        "answers_per_second": len(times) / seconds,
        "seconds_p50": times[len(times) // 2],
        "seconds_p95": times[int(0.95 * len(times))],
        "rss_mb": {"before": before, "after": after},
        "machine": machine(),
        "inputs": record_inputs(model=model, code=Path(__file__), service=ROOT / "app/service.py", pipeline=PIPELINE),
    }
    write_json(metrics / "service.json", record)
    shown = ("statuses", "answers_per_second", "seconds_p50", "seconds_p95", "rss_mb")
    msg.table({key: str(record[key]) for key in shown}, aligns=("l", "r"))
    msg.good(f"Wrote {metrics / 'service.json'}")


@contextmanager
def start_service(model: Path, *options: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """Start the service in a process of its own, and interrupt it in the end.

    model (Path): The pipeline.
    *options (str): More of its command line.
    YIELDS (tuple[str, subprocess.Popen[str]]): The address of the service, which is ready, and its process.
    RAISES (StepError): If the service does not start.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "app.service", str(model.resolve()), "--port", str(port), *options]
    with (
        tempfile.TemporaryFile("w+") as log,
        subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log, text=True) as process,
    ):
        try:
            while process.poll() is None:
                with suppress(requests.ConnectionError):
                    if requests.get(f"http://127.0.0.1:{port}/ready", timeout=5).ok:
                        break
                time.sleep(0.2)
            else:
                log.seek(0)
                raise StepError("The service does not start.", "\n".join(log.read().splitlines()[-15:]))
            yield f"http://127.0.0.1:{port}", process
        finally:
            process.send_signal(signal.SIGINT)


def run_load(address: str, clients: int, seconds: float) -> list[tuple[int, float]]:
    """Let clients ask the service, each again as soon as it is answered, or when it is told to come again.

    address (str): Address of the service.
    clients (int): How many ask at the same time.
    seconds (float): For how long.
    RETURNS (list[tuple[int, float]]): For each answer its status, 0 for none, and the seconds it took.
    """
    gc.freeze()  # a look for garbage among all that is imported here would stop the clients for a third of a second
    end = time.monotonic() + seconds

    def ask() -> list[tuple[int, float]]:
        answers = []
        with requests.Session() as session:
            while time.monotonic() < end:
                began = time.perf_counter()
                status, wait = 0, 0.0
                with suppress(requests.RequestException):
                    response = session.post(f"{address}/v2/entities", json={"texts": [SENTENCE]}, timeout=120)
                    status, wait = response.status_code, float(response.headers.get("Retry-After", 0))
                answers.append((status, time.perf_counter() - began))
                time.sleep(wait)
        return answers

    with ThreadPoolExecutor(clients) as pool:
        return [answer for done in [pool.submit(ask) for _ in range(clients)] for answer in done.result()]


def memory_of(pid: int) -> float:
    """The resident memory of a process, in megabytes."""
    return float(round(psutil.Process(pid).memory_info().rss / 2**20, 1))


if __name__ == "__main__":
    main(service)
