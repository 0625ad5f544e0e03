"""A tiny random encoder, and one whole run of the project on it that many tests look at."""

from __future__ import annotations

import multiprocessing
import os
import re
import runpy
import shutil
import string
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from filelock import FileLock
from hypothesis import settings
from playwright.sync_api import Browser, sync_playwright

ROOT = Path(__file__).parent.parent
CORPUS = [  # documents of sentences of rows: token, part of speech, chunk, entity in IOB2
    [
        ["Mira NNP B-NP B-PER", "Solberg NNP I-NP I-PER", "left VBD B-VP O", "Turku NNP B-NP B-LOC", ". . O O"],
        ["OSLO NNP B-NP B-LOC", "2031-02-07 CD I-NP O"],
    ],
    [["Kenya NNP B-NP B-LOC", "beat VBD B-VP O", "Peru NNP B-NP B-LOC", "Malta NNP B-NP B-LOC", "twice RB B-ADVP O"]],
]

# Before any test imports the libraries that read these. Threads that wait for each other sleep: those that spin take
# four times the time as soon as other processes want the cores.
os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", OMP_WAIT_POLICY="PASSIVE")
# What somebody has set to use the project is none of the tests' business: a dtype, a key, a language model, which would
# get their texts. Nor does a proxy reach the servers of this machine that they start.
for variable in [*os.environ]:
    if variable.startswith("BERT_NER_"):
        del os.environ[variable]
direct = ",".join(filter(None, [os.environ.get("no_proxy") or os.environ.get("NO_PROXY"), "127.0.0.1"]))
os.environ.update(no_proxy=direct, NO_PROXY=direct)
# Tests race no clock, and so hypothesis must not either.
settings.register_profile("without a clock", deadline=None)
settings.load_profile("without a clock")


def write_corpus(folder: Path, text: str | None = None) -> Path:
    """A folder with train.conll, dev.conll and test.conll, all with the same text."""
    if text is None:
        blocks = ["\n\n".join("\n".join(sentence) for sentence in document) for document in CORPUS]
        text = "".join(f"-DOCSTART- -X- -X- O\n\n{block}\n\n" for block in blocks)
    folder.mkdir(parents=True, exist_ok=True)
    for split in ("train", "dev", "test"):
        (folder / f"{split}.conll").write_text(text, encoding="utf8")
    return folder


def save_tiny_encoder(folder: Path, width: int = 32, layers: int = 1) -> Path:
    """A random BERT with its head for masked words, as bert-base-uncased has; its tokenizer knows letters only."""
    import torch
    from transformers import BertConfig, BertForMaskedLM, BertTokenizerFast

    letters = string.ascii_lowercase + string.digits + string.punctuation
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters)]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(pieces), encoding="utf8")
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(pieces),
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=2,
        intermediate_size=2 * width,
    )
    BertForMaskedLM(config).save_pretrained(folder, safe_serialization=True)
    BertTokenizerFast(str(folder / "vocab.txt"), model_max_length=512).save_pretrained(folder)
    return folder


def name_as_on_the_hub(encoder: Path) -> Path:
    """Give the weights of a BERT their names in bert-base-uncased: gamma and beta for those of LayerNorm."""
    from safetensors.torch import load_file, save_file

    greek = {"weight": "gamma", "bias": "beta"}
    weights = load_file(encoder / "model.safetensors")
    named = {
        re.sub("LayerNorm.(weight|bias)", lambda m: f"LayerNorm.{greek[m[1]]}", name): weight
        for name, weight in weights.items()
    }
    assert any(name.startswith("bert.") for name in named) and any(name.startswith("cls.") for name in named)
    save_file(named, encoder / "model.safetensors", {"format": "pt"})
    return encoder


def once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """A folder that the first process of a test run makes, and all use."""
    root = factory.getbasetemp()
    root = root.parent if "PYTEST_XDIST_WORKER" in os.environ else root
    folder = root / name
    with FileLock(root / f"{name}.lock"):
        if not folder.exists():
            shutil.rmtree(root / f"unfinished-{name}", ignore_errors=True)  # of a process for which `make` failed
            make(root / f"unfinished-{name}")
            (root / f"unfinished-{name}").rename(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return once(tmp_path_factory, "tiny", save_tiny_encoder)


TEXT = (
    "Senator Mira Solberg has launched a young party in Turku . She did not attack her old friends in Norrvik Steel , "
    "but promised cleaner rivers .\n\nNorrvik Steel called the small party a threat ."
)
TAGS = {
    "NN": "party threat",
    "NNS": "friends rivers",
    "NNP": "senator mira solberg turku norrvik steel",
    "JJ": "young old small",
    "JJR": "cleaner",
    "VBZ": "has",
    "VBN": "launched",
    "VBD": "did promised called",
    "VB": "attack",
    "RB": "not",
    "DT": "a the",
    "IN": "in",
    "PRP": "she",
    "PRP$": "her",
    "CC": "but",
    ",": ",",
    ".": ".",
}


@pytest.fixture(scope="session")
def ruled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project whose pipeline knows the words of TEXT by rules: fast, and right."""
    import spacy

    from bert_ner.concepts import create_concept_rules

    nlp = spacy.blank("en")
    nlp.add_pipe("sentencizer")
    tagger: Any = nlp.add_pipe("attribute_ruler")
    for tag, words_ in TAGS.items():
        tagger.add([[{"LOWER": {"IN": words_.split()}}]], {"TAG": tag})
    names = {"PER": "Mira Solberg", "LOC": "Turku", "ORG": "Norrvik Steel"}
    ruler: Any = nlp.add_pipe("entity_ruler")
    ruler.add_patterns([{"label": label, "pattern": name} for label, name in names.items()])
    concepts: Any = nlp.add_pipe("bert_ner_concepts_v2", name="concepts")
    concepts.add_patterns(create_concept_rules())
    folder = tmp_path_factory.mktemp("ruled")
    (folder / "packages/ruled").mkdir(parents=True)
    nlp.to_disk(folder / "packages/ruled/assembled")
    return folder


@pytest.fixture(scope="module")  # for longer, its event loop would be in the way of others
def browser() -> Iterator[Browser]:
    """Headless Chromium from the system's packages."""
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("no Chromium here; on Debian: apt install chromium")
    with sync_playwright() as playwright:
        options = ["--no-sandbox", "--disable-quic", "--disable-background-networking", "--disable-component-update"]
        browser = playwright.chromium.launch(executable_path=path, args=options)
        yield browser
        browser.close()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that look at a whole run last: while one process makes it, the others have something to do."""
    items.sort(key=lambda item: "project" in getattr(item, "fixturenames", ()))


def copy_project(folder: Path) -> Path:
    """The project's own files, without anything generated, in another folder."""
    for name in ("app", "assets/sample", "bert_ner", "benchmarks", "common", "configs", "runs", "scripts"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("project.yml", "requirements.txt", "requirements-minilm.txt", "README.md"):
        shutil.copy(ROOT / name, folder)
    return folder


def guard(seconds: float) -> float:
    """How long a test waits until it calls something hung: many times what it takes, more on request."""
    return seconds * float(os.environ.get("PYTEST_TIMEOUT_SCALE", "10"))


BASE = {"PIP_NO_INDEX": "1", "COLUMNS": "200"}  # a package build does not reach for an index

# By these a new process computes as on a lesser processor: oneDNN multiplies matrices, ATen does the rest.
# torch.cpu.get_capabilities() asks the processor itself and does not follow them; resolve_dtype does.
PROCESSORS: dict[str, dict[str, str]] = {
    "avx2": {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"},
    "vnni": {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_VNNI", "ATEN_CPU_CAPABILITY": "avx512"},
    "native": {},
}


def new_python(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a Python that starts from nothing in a folder: seconds of imports."""
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env=os.environ | BASE | environment,
        capture_output=True,
        text=True,
        timeout=guard(120),
    )


# Processes are forked from one that has imported the large libraries and has done nothing else: each is as clean as a
# new Python, without its seconds of imports. Nothing may use several threads there, since a fork takes none along.
_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(
    [
        "tests.conftest",
        "spacy.cli",
        "spacy_transformers",
        "transformers.models.bert.modeling_bert",
        "transformers.models.bert.tokenization_bert_fast",
        "transformers.models.auto.modeling_auto",
        "torch",
        "seqeval.metrics",
    ]
)


def _become(module: str, arguments: list[str], folder: Path, environment: dict[str, str], output: str) -> None:
    """Go on, in a forked process, as `python -m module` in a folder would; weasel's commands are forked in turn."""
    for descriptor, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(f"{output}/{name}", os.O_WRONLY | os.O_CREAT | os.O_APPEND), descriptor)
    os.environ.update(environment)
    os.chdir(folder)
    sys.path[:] = [str(folder), *(path for path in sys.path if Path(path).resolve() != ROOT)]  # its code, not ours

    import weasel.cli.run

    weasel.cli.run.run_command = _fork_command
    _run(module, arguments)


def _fork_command(command: list[str], *, capture: bool = False) -> None:
    """What weasel does with a line of a script, the process being forked."""
    if command[0] != sys.executable or command[1] != "-m":
        raise ValueError(f"not a module of Python: {command}")
    process = multiprocessing.get_context("fork").Process(target=_run, args=(command[2], command[3:]))
    process.start()
    process.join()
    if process.exitcode:
        sys.exit(process.exitcode)


def _run(module: str, arguments: list[str]) -> None:
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def python(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run Python in a folder: a module in a forked process, anything else, or another environment, in a new one."""
    if environment or arguments[0] != "-m":
        return new_python(*arguments, cwd=cwd, **environment)
    with tempfile.TemporaryDirectory() as output:
        target = (arguments[1], [*arguments[2:]], cwd, dict(os.environ) | BASE, output)
        process = _SERVER.Process(target=_become, args=target)
        process.start()
        process.join(guard(120))
        if process.is_alive():
            process.kill()
            process.join()
        stdout, stderr = (Path(output, name).read_text("utf8") for name in ("stdout", "stderr"))
    assert process.exitcode is not None and process.exitcode >= 0, f"{arguments}: {stdout}{stderr}"
    return subprocess.CompletedProcess(arguments, process.exitcode, stdout, stderr)


def rounded(value: Any) -> Any:
    """Numbers to 8 decimals, wherever they stand: spaCy's records have about 10."""
    if isinstance(value, dict):
        return {key: rounded(each) for key, each in value.items()}
    return round(value, 8) if isinstance(value, float) else value


def words(output: str) -> str:
    """Output on one line: wasabi breaks messages wherever 80 columns are full."""
    return " ".join(output.split())


Start = Callable[..., subprocess.CompletedProcess[str]]


OUTPUT = "output.txt"
PROJECT = yaml.safe_load((ROOT / "project.yml").read_text("utf8"))
# Those steps of the workflow that weasel skips if nothing has changed
STEPS = [
    name
    for name in PROJECT["workflows"]["all"]
    for command in PROJECT["commands"]
    if command["name"] == name and command.get("outputs") and not command.get("no_skip")
]


class Project:
    """A copy of the project, run through its own commands on the sample corpus and the tiny encoder."""

    def __init__(self, folder: Path, encoder: Path) -> None:
        self.folder = folder
        self.encoder = encoder

    @property
    def output(self) -> str:
        """What `all` printed."""
        return (self.folder / OUTPUT).read_text("utf8")

    def start(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run Python in the project, as `python` does."""
        return python(*arguments, cwd=self.folder)

    def run(
        self, command: str, run: str = "tiny", start: Start = python, **variables: str
    ) -> subprocess.CompletedProcess[str]:
        """Run a command or a workflow of project.yml.

        command (str): Its name.
        run (str): The run's name.
        start (Start): How Python is run, in forked processes or in new ones.
        **variables (str): Other variables of project.yml.
        RETURNS (subprocess.CompletedProcess[str]): Exit code and output.
        """
        settings = {"run": run, "source": "sample", "encoder": str(self.encoder), "epochs": "1"} | variables
        options = [part for key, value in settings.items() for part in (f"--vars.{key}", value)]
        return start("-m", "spacy", "project", "run", command, ".", *options, cwd=self.folder)


@pytest.fixture(scope="session")
def tiny_corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """CORPUS as train, dev and test, converted, for tests that only read it."""
    from scripts.convert import convert

    folder = tmp_path_factory.mktemp("tiny-corpus")
    convert(write_corpus(folder / "assets"), folder / "corpus")
    return folder / "corpus"


@pytest.fixture
def synthesized(tmp_path: Path, tiny_corpus: Path) -> Path:
    """A copy of tiny_corpus with twice as much synthetic text as train has: the same sentences, each by itself."""
    from spacy.tokens import DocBin

    from common.corpora import read_docs
    from common.records import sha256, write_json

    folder = Path(shutil.copytree(tiny_corpus, tmp_path / "corpus/tiny"))
    texts = [sentence.as_doc() for doc in read_docs(folder / "train.spacy") for sentence in doc.sents]
    DocBin(docs=texts * 2, store_user_data=True).to_disk(folder / "synthetic.spacy")
    inputs = {"method": "recombine", "seed": 0, "train": sha256(folder / "train.spacy")}
    write_json(folder / "synthetic.json", {"inputs": inputs})
    return folder


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_corpus: Path, tiny_encoder: Path) -> Path:
    """A pipeline that was trained on tiny_corpus for one epoch; it knows LOC and PER."""
    from scripts.train import train

    def make(folder: Path) -> None:
        train(ROOT / "configs/bert.cfg", folder, tiny_corpus, tiny_encoder, epochs="1")

    return once(tmp_path_factory, "trained", make) / "model-best"


@pytest.fixture(scope="session")
def new_corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A converted corpus for which people were asked for EVENT alone, though it has places and persons too."""
    from scripts.convert import convert

    text = "The O\nTurku B-EVENT\nCup I-EVENT\nbegan O\nin O\nOslo O\n. O\n\nMira O\nwon O\n. O\n"
    folder = tmp_path_factory.mktemp("new-corpus")
    convert(write_corpus(folder / "assets", f"-DOCSTART- O\n\n{text}\n-DOCSTART- O\n\n{text}"), folder / "corpus")
    return folder / "corpus"


@pytest.fixture(scope="session")
def project(tmp_path_factory: pytest.TempPathFactory, tiny_encoder: Path) -> Project:
    """`all` of the sample, for tests that only look at it."""

    def make(folder: Path) -> None:
        done = Project(copy_project(folder), tiny_encoder).run("all")
        assert done.returncode == 0, done.stdout + done.stderr
        (folder / OUTPUT).write_text(done.stdout, encoding="utf8")

    return Project(once(tmp_path_factory, "project", make), tiny_encoder)


@pytest.fixture
def changeable(project: Project, tmp_path: Path) -> Project:
    """A copy of that, for tests that run or change something."""
    return Project(shutil.copytree(project.folder, tmp_path / "project"), project.encoder)
