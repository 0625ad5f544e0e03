"""What all benchmarks share: contenders in processes of their own, rates of what they did, and the machine.

Contenders take turns, so that the noise of a machine hits all of them alike. The process of a contender, which is
benchmarks/worker.py, may run in an environment without spaCy. Therefore this file imports at its head only what every
environment has.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import IO, Any

import tqdm
from wasabi import msg

from common.corpora import read_docs, split_sentences
from common.errors import StepError
from common.records import installed, write_json

ROOT = Path(__file__).resolve().parent.parent
SENTENCE = "My name is Wolfgang and I live in Berlin."
PIPELINE = ROOT / "bert_ner/__init__.py"  # which imports all the code of the pipeline


@dataclass
class Job:
    """What a contender works on. Paths are absolute; those that a benchmark does not use are empty.

    encoder (str): Folder of the encoder.
    docs (str): .spacy file with whole documents.
    sentences (list[dict[str, Any]]): The sentences of these documents, as `split_sentences` returns them.
    words (int): The number of words in these documents.
    package (str): Name of the installed wheel's package.
    model (str): Folder of the pipeline from which the wheel was made.
    config (str): Training config.
    corpus (str): Folder with train.spacy and dev.spacy.
    sentence_docs (str): .spacy file with a document for each sentence.
    dev_sentences (list[dict[str, Any]]): The sentences of dev, with which a full training is scored.
    epochs (int): How long to train; 0 for one pass in each repetition, without a score.
    """

    encoder: str
    docs: str
    sentences: list[dict[str, Any]]
    words: int
    package: str = ""
    model: str = ""
    config: str = ""
    corpus: str = ""
    sentence_docs: str = ""
    dev_sentences: list[dict[str, Any]] = field(default_factory=list)
    epochs: int = 0


@dataclass
class Contender:
    """Something to be timed.

    prepare (Callable[[], Any]): Makes the inputs of a repetition. The clock does not run.
    work (Callable[[Any], Any]): Does a repetition, given these inputs.
    score (Callable[[Any], float | None]): Returns F1 of the entities, from 0 to 1, given what the last repetition
        returned; None if there is no score.
    words (int): The number of words in a repetition, if it does not have all words of the job.
    """

    prepare: Callable[[], Any]
    work: Callable[[Any], Any]
    score: Callable[[Any], float | None] = lambda _: None
    words: int = 0


class Unavailable(Exception):
    """This machine cannot do what a contender does."""


def make_job(path: Path, number: int, folder: Path, encoder: Path, sentence_docs: bool = False) -> Job:
    """Write what contenders work on into a folder.

    path (Path): A .spacy file.
    number (int): How many of its documents to take, from the first; 0 for all.
    folder (Path): Folder for the documents.
    encoder (Path): Folder of the encoder.
    sentence_docs (bool): Whether to write a document for each sentence too.
    RETURNS (Job): The job, with the fields that these arguments decide.
    """
    from spacy.tokens import DocBin

    docs = read_docs(path)[: number or None]
    DocBin(docs=docs, store_user_data=True).to_disk(folder / "docs.spacy")
    job = Job(str(encoder.resolve()), str(folder / "docs.spacy"), split_sentences(docs), sum(map(len, docs)))
    if sentence_docs:
        DocBin(docs=[sent.as_doc() for doc in docs for sent in doc.sents]).to_disk(folder / "sentences.spacy")
        job.sentence_docs = str(folder / "sentences.spacy")
    return job


def predict_one_class(linear: Any, index: int) -> None:
    """Make an untrained classifier predict one class always: random entities would cost time that is not its own.

    linear (torch.nn.Linear): The last layer. Its weights are changed.
    index (int): Index of the class.
    """
    linear.weight.data.zero_()
    linear.bias.data.zero_()
    linear.bias.data[index] = 1.0


# Contenders' processes

_answers: IO[str] | None = None


def reserve_output() -> None:
    """Keep the standard output of this process for answers. What libraries print goes to standard error from now on."""
    global _answers
    _answers = os.fdopen(os.dup(1), "w", encoding="utf8")
    os.dup2(2, 1)


def emit(**answer: Any) -> None:
    """Write a line of JSON to the parent process, if this is a contender's process."""
    if _answers:
        print(json.dumps(answer), file=_answers, flush=True)


class Worker:
    """A contender's process, seen from its parent. Use it as a context: at the end, the process is killed.

    name (str): Name of the contender.
    command (list[str]): Command line of the process.
    target (Path): Folder with the installed wheel.
    """

    def __init__(self, name: str, command: list[str], target: Path) -> None:
        self.name = name
        environment = os.environ | {
            "HF_HUB_OFFLINE": "1",
            "HF_ENDPOINT": "http://127.0.0.1:9",
            "TOKENIZERS_PARALLELISM": "false",
            "PYTHONPATH": str(target),
        }
        environment.pop("BERT_NER_DTYPE", None)  # it would overrule the dtype for which a contender asks
        environment.pop("THP_MEM_ALLOC_ENABLE", None)
        if name == "ours":  # our training, for which scripts/__init__.py does so
            environment["THP_MEM_ALLOC_ENABLE"] = "1"
        self.errors = tempfile.TemporaryFile("w+", encoding="utf8")  # noqa: SIM115
        self.process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
        )

    def answer(self, report: Callable[[float], None] = lambda _: None) -> dict[str, Any]:
        """Wait for the next answer.

        report (Callable[[float], None]): Called with the share that is done, from 0 to 1, as often as the process says.
        RETURNS (dict[str, Any]): The answer.
        RAISES (StepError): If the process reports a problem, or ends without an answer.
        """
        assert self.process.stdout
        for line in self.process.stdout:
            answer: dict[str, Any] = json.loads(line)
            if "problem" in answer:
                raise StepError(answer["problem"], answer["remedy"])
            if "progress" not in answer:
                return answer
            report(answer["progress"])
        self.errors.seek(0)
        last = "\n".join(self.errors.read().strip().splitlines()[-15:])
        raise StepError(f"The contender {self.name} ended before its time.", last)

    def repeat(self, report: Callable[[float], None] = lambda _: None) -> dict[str, Any]:
        """Let the contender work once.

        report (Callable[[float], None]): As in `answer`.
        RETURNS (dict[str, Any]): `seconds` and `words` of this repetition.
        """
        assert self.process.stdin
        try:
            self.process.stdin.write("\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # `answer` tells the reason
        return self.answer(report)

    def finish(self) -> dict[str, Any]:
        """Let the contender score its last repetition and end.

        RETURNS (dict[str, Any]): `f1`, `peak_rss_mb` before scoring, `versions` of libraries.
        """
        assert self.process.stdin
        self.process.stdin.close()
        return self.answer()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout, self.errors):
            if stream and not stream.closed:
                stream.close()


def worker_commands(names: Iterable[str], job: Job, folder: Path, pythons: dict[str, Path]) -> dict[str, list[str]]:
    """The command lines of contenders' processes.

    names (Iterable[str]): Names of the contenders.
    job (Job): What they work on. It is written into the folder.
    folder (Path): The folder.
    pythons (dict[str, Path]): The interpreters of those contenders that need another environment than this one.
    RETURNS (dict[str, list[str]]): A command line for each name.
    RAISES (StepError): If one of these interpreters is not there.
    """
    write_json(folder / "job.json", asdict(job))
    commands = {}
    for name in names:
        path = find_python(name, pythons)
        commands[name] = [path, "-W", "ignore", "-m", "benchmarks.worker", name, str(folder / "job.json")]
    return commands


def find_python(name: str, pythons: dict[str, Path]) -> str:
    """The interpreter of a contender's process.

    name (str): Name of the contender.
    pythons (dict[str, Path]): As `worker_commands` takes them.
    RETURNS (str): Its absolute path.
    RAISES (StepError): If it is not there.
    """
    python = pythons.get(name, Path(sys.executable))
    if not python.exists():
        raise StepError(
            f"{name} needs an environment of its own, {python}.",
            "make bench makes it; or: make .venv-peers/installed",
        )
    # The path is not resolved, since the link to the interpreter is what makes it another environment
    return str(python.absolute())


def compete(commands: dict[str, list[str]], repetitions: int, target: Path) -> dict[str, dict[str, Any]]:
    """Let contenders work in turns.

    commands (dict[str, list[str]]): The command line of each contender's process, by name.
    repetitions (int): How often each works, besides once to warm up.
    target (Path): Folder with the installed wheel.
    RETURNS (dict[str, dict[str, Any]]): By name `repetitions`, each with `seconds` and `words`, and what `finish` of
        Worker returns; or only `unavailable`, the reason why this machine cannot do it.
    """
    results: dict[str, dict[str, Any]] = {}
    workers: dict[str, Worker] = {}
    total = len(commands) * (repetitions + 1)
    with ExitStack() as stack, tqdm.tqdm(total=total, unit="pass", disable=None) as bar:
        for name, command in commands.items():
            bar.set_description(f"{name}: loading")
            worker = stack.enter_context(Worker(name, command, target))
            results[name] = worker.answer()
            bar.update()
            if results[name].pop("ready", False):
                workers[name] = worker
                results[name]["repetitions"] = []
        for i in range(repetitions):
            for name, worker in workers.items():
                bar.set_description(f"{name}: repetition {i + 1}")
                results[name]["repetitions"].append(worker.repeat())
                bar.update()
        for name, worker in workers.items():
            results[name] |= worker.finish()
    return results


# Results


def add_rates(results: dict[str, dict[str, Any]], reference: str) -> None:
    """Add words per second to each result: median, minimum, maximum, and the ratio of its median to the reference's.

    results (dict[str, dict[str, Any]]): As `compete` returns it. Results without repetitions stay as they are.
    reference (str): Name of the contender to compare with. If it has no repetitions, there are no ratios.
    """
    for result in results.values():
        if result.get("repetitions"):
            rates = [repetition["words"] / repetition["seconds"] for repetition in result["repetitions"]]
            result["words_per_second"] = {"median": statistics.median(rates), "min": min(rates), "max": max(rates)}
    medians = {
        name: result["words_per_second"]["median"] for name, result in results.items() if "words_per_second" in result
    }
    if reference in medians:
        for name, median in medians.items():
            results[name][f"ratio_to_{reference}"] = median / medians[reference]


def print_rates(results: dict[str, dict[str, Any]], reference: str) -> None:
    """Print a table of the results: words per second, ratio to the reference, F1, memory.

    results (dict[str, dict[str, Any]]): As `add_rates` leaves it.
    reference (str): Name of the contender that was compared with.
    """
    rows = []
    for name, result in results.items():
        if "words_per_second" not in result:
            rows.append((name, "unavailable", "", "", "", ""))
            continue
        ratio, share = (result.get(key) for key in (f"ratio_to_{reference}", "share_of_bare_encoder"))
        rows.append(
            (
                name,
                f"{result['words_per_second']['median']:,.0f}",
                "" if ratio is None else f"{ratio:.2f}",
                "" if share is None else f"{100 * share:.0f} %",
                "" if result["f1"] is None else f"{100 * result['f1']:.1f}",
                f"{result['peak_rss_mb']:,}",
            )
        )
    header = ("contender", "words/s", f"to {reference}", "of bare encoder", "F1", "peak MB")
    msg.table(rows, header=header, divider=True, aligns=("l", "r", "r", "r", "r", "r"))


def choose(names: Iterable[str], only: str) -> list[str]:
    """Choose some names among all.

    names (Iterable[str]): All names.
    only (str): The names that are wanted, with commas between, or nothing for all.
    RETURNS (list[str]): The names that are wanted, in the order of `names`.
    RAISES (StepError): If there is no such name.
    """
    names = list(names)
    asked = [name.strip() for name in only.split(",") if name.strip()] or names
    unknown = [name for name in asked if name not in names]
    if unknown:
        raise StepError(f"There is no contender {', '.join(unknown)}.", f"Choose with --only among {', '.join(names)}")
    return [name for name in names if name in asked]


def machine() -> dict[str, Any]:
    """Describe this machine.

    RETURNS (dict[str, Any]): `cpu`: name of the processor; `cpus`: number of logical cores; `capabilities`: its sets of
        instructions, as PyTorch names them; `instructions`: as `name_instructions` does; `simulated`: whether others
        are hidden from the libraries; `threads` that PyTorch uses; `python` and `versions` of libraries.
    """
    import torch

    from bert_ner.inference import name_instructions

    # An earlier PyTorch has no get_capabilities, and says only which of its kernels the processor can run
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return {
        "cpu": capabilities.get("cpu_name") or platform.processor() or platform.machine(),
        "cpus": os.cpu_count(),
        "capabilities": sorted(name for name, has in capabilities.items() if has is True)
        or [torch.backends.cpu.get_cpu_capability().lower()],
        "instructions": name_instructions(),
        "simulated": "ONEDNN_MAX_CPU_ISA" in os.environ,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "versions": versions(),
    }


def versions() -> dict[str, str]:
    """The versions of what `installed` names, and of the libraries that only contenders use."""
    found = installed()
    for name in ("accelerate", "flair", "span-marker", "tokenizers"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
