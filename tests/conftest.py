"""A tiny random encoder, and one whole run of the project on it that many tests look at."""

from __future__ import annotations

import os
import shutil
import string
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, sync_playwright

ROOT = Path(__file__).parent.parent
CORPUS = [  # documents of sentences of rows: token, part of speech, chunk, entity in IOB2
    [
        ["Mira NNP B-NP B-PER", "Solberg NNP I-NP I-PER", "left VBD B-VP O", "Turku NNP B-NP B-LOC", ". . O O"],
        ["OSLO NNP B-NP B-LOC", "2031-02-07 CD I-NP O"],
    ],
    [["Kenya NNP B-NP B-LOC", "beat VBD B-VP O", "Peru NNP B-NP B-LOC", "Malta NNP B-NP B-LOC", "twice RB B-ADVP O"]],
]

os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")  # before any test imports the hub's client


def write_corpus(folder: Path, text: str | None = None) -> Path:
    """A folder with train.conll, dev.conll and test.conll, all with the same text."""
    if text is None:
        blocks = ["\n\n".join("\n".join(sentence) for sentence in document) for document in CORPUS]
        text = "".join(f"-DOCSTART- -X- -X- O\n\n{block}\n\n" for block in blocks)
    folder.mkdir(parents=True, exist_ok=True)
    for split in ("train", "dev", "test"):
        (folder / f"{split}.conll").write_text(text, encoding="utf8")
    return folder


def save_tiny_encoder(folder: Path, width: int = 32) -> Path:
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
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=2 * width,
    )
    BertForMaskedLM(config).save_pretrained(folder, safe_serialization=True)
    BertTokenizerFast(str(folder / "vocab.txt"), model_max_length=512).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_encoder(tmp_path_factory.mktemp("encoders") / "tiny")


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

    from scripts.functions import create_concept_rules

    nlp = spacy.blank("en")
    nlp.add_pipe("sentencizer")
    tagger: Any = nlp.add_pipe("attribute_ruler")
    for tag, words_ in TAGS.items():
        tagger.add([[{"LOWER": {"IN": words_.split()}}]], {"TAG": tag})
    names = {"PER": "Mira Solberg", "LOC": "Turku", "ORG": "Norrvik Steel"}
    ruler: Any = nlp.add_pipe("entity_ruler")
    ruler.add_patterns([{"label": label, "pattern": name} for label, name in names.items()])
    concepts: Any = nlp.add_pipe("bert_ner_concepts_v1", name="concepts")
    concepts.add_patterns(create_concept_rules())
    folder = tmp_path_factory.mktemp("ruled")
    (folder / "training/ruled").mkdir(parents=True)
    nlp.to_disk(folder / "training/ruled/model-best")
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


def copy_project(folder: Path) -> Path:
    """The project's own files, without anything generated, in another folder."""
    for name in ("assets/sample", "configs", "scripts"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("project.yml", "requirements-minilm.txt", "README.md"):
        shutil.copy(ROOT / name, folder)
    return folder


def python(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run Python in a folder; a package build does not reach for an index."""
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env=os.environ | {"PIP_NO_INDEX": "1", "COLUMNS": "200"} | environment,
        capture_output=True,
        text=True,
        timeout=300,
    )


def words(output: str) -> str:
    """Output on one line: wasabi breaks messages wherever 80 columns are full."""
    return " ".join(output.split())


class Project:
    """A copy of the project, run through its own commands on the sample corpus and the tiny encoder."""

    def __init__(self, folder: Path, encoder: Path) -> None:
        self.folder = folder
        self.encoder = encoder
        self.output = ""
        self.environment: dict[str, str] = {}

    def run(self, command: str, run: str = "tiny", **variables: str) -> subprocess.CompletedProcess[str]:
        settings = {"run": run, "source": "sample", "encoder": str(self.encoder), "epochs": "1"} | variables
        options = [part for key, value in settings.items() for part in (f"--vars.{key}", value)]
        command_line = ("-m", "spacy", "project", "run", command, ".", *options)
        return python(*command_line, cwd=self.folder, **self.environment)


@pytest.fixture(scope="session")
def projects(tmp_path_factory: pytest.TempPathFactory, tiny_encoder: Path) -> list[Project]:
    """`all`, run on the sample and on a corpus of one's own, at the same time: on one core most of it is imports."""
    folders = [copy_project(tmp_path_factory.mktemp(name)) for name in ("project", "own")]
    source = folders[1] / "source"
    source.mkdir()
    for split in ("train", "dev", "test"):  # two columns, tabs, own labels, no documents
        rows = (ROOT / f"assets/sample/{split}.conll").read_text("utf8").splitlines()
        pairs = [row.split() for row in rows if not row.startswith("-DOCSTART-")]
        text = "\n".join(f"{row[0]}\t{row[3].replace('PER', 'person')}" if row else "" for row in pairs)
        (source / f"{split}.txt").write_text(text, "utf8")
    projects = [Project(folder, tiny_encoder) for folder in folders]
    projects[1].environment["OMP_NUM_THREADS"] = "1"  # threads of two processes would wait for each other
    own = {"run": "other", "source": str(source), "corpus": "mine", "name": "other"}
    with ThreadPoolExecutor() as pool:
        started = [pool.submit(projects[0].run, "all"), pool.submit(projects[1].run, "all", **own)]
    for project, running in zip(projects, started, strict=True):
        done = running.result()
        assert done.returncode == 0, done.stdout + done.stderr
        project.output = done.stdout
    return projects


@pytest.fixture(scope="session")
def project(projects: list[Project]) -> Project:
    """`all` of the sample, for tests that only look at it."""
    return projects[0]


@pytest.fixture
def changeable(project: Project, tmp_path: Path) -> Project:
    """A copy of that, for tests that run or change something."""
    return Project(shutil.copytree(project.folder, tmp_path / "project"), project.encoder)
