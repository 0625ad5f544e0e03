from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from benchmarks import effort as benchmark
from benchmarks.annotator import Gold
from benchmarks.curve import draw_order
from benchmarks.effort import FIGURES, RANDOM, SELECT, choose_next, effort, summarize
from common.annotations import Span
from common.errors import StepError
from common.figures import save_figures
from common.formatting import describe_effort, tabulate_effort
from common.records import SPLITS, read_json, sha256
from common.store import STORE, Store
from scripts.convert import convert
from tests.conftest import ROOT, python, write_corpus

CONFIG = ROOT / "configs/bert.cfg"


def create_run(order: str, documents: int, test: float, actions: int | None, draw: int = 0) -> dict[str, Any]:
    """A result of the batch that came last, in which select has shorter documents."""
    return {
        "order": order,
        "documents": documents,
        "draw": draw,
        "chosen": [*range(25)],
        "words": 5000 if order == RANDOM else 2500,
        "entities": 100,
        "actions": actions,
        "from_nothing": 220,
        "dev": test + 0.1,
        "test": test,
        "shipped": {"dev": test, "test": test - 0.1},
    }


RUNS = [
    create_run(RANDOM, 100, 0.8, 66),
    create_run(RANDOM, 25, 0.5, None),
    create_run(RANDOM, 50, 0.6, 150),
    create_run(RANDOM, 75, 0.7, 88),
    create_run(SELECT, 25, 0.5, None),
    create_run(SELECT, 50, 0.8, 150),
    create_run(SELECT, 25, 0.5, None, 1),
    create_run(SELECT, 50, 0.6, 130, 1),
    create_run(SELECT, 100, 0.9, 110),
]


def test_draws_are_summarized_by_order_and_size() -> None:
    result = summarize(RUNS)
    first, second, *_ = result["summary"][SELECT]
    assert first["actions"] is None and first["from_nothing"] == pytest.approx(2.2)
    assert second["actions"] == pytest.approx(1.4) and second["draws"] == 2
    assert second["test"] == pytest.approx({"mean": 0.7, "lowest": 0.6, "highest": 0.8})
    assert [point["documents"] for point in result["summary"][RANDOM]] == [25, 50, 75, 100]
    assert result["saved"] == {RANDOM: pytest.approx(0.65), SELECT: pytest.approx(0.5)}, "from 50 documents on"
    assert result["target"] == 100
    assert [point["words"] for point in result["summary"][SELECT]] == [2500, 5000, 7500]
    assert result["needed"] == {split: pytest.approx(50 * 2**0.5) for split in ("dev", "test")}
    words = 5000 * 1.5**0.5 / 20_000
    assert result["needed_words"] == {split: pytest.approx(words) for split in ("dev", "test")}
    alone = summarize(RUNS[1:3])
    assert alone["saved"] == {RANDOM: None} and alone["needed"] is None and alone["needed_words"] is None
    assert describe_effort(alone) == ""
    behind = [run | {"test": 0.1} if run["order"] == SELECT else run for run in RUNS]
    assert summarize(behind)["needed"]["test"] is None and summarize(behind)["needed_words"]["test"] is None


def test_the_table_and_the_sentence_say_what_was_saved() -> None:
    header, rows = tabulate_effort(summarize(RUNS))
    assert header[1].startswith(RANDOM) and header[4].startswith(SELECT) and {len(row) for row in rows} == {len(header)}
    f1 = ["50.0 (50.0 to 50.0)", "– (2.20 from nothing)"]
    assert rows[0] == ["25", "5,000", *f1, "2,500", *f1]
    assert rows[1][4:] == ["5,000", "70.0 (60.0 to 80.0)", "1.40 (2.20 from nothing)"] and rows[2][4:] == ["–"] * 3
    text = describe_effort(summarize(RUNS))
    assert "save 65.0% (random) and 50.0% (select) of the keys" in text
    needed = "71 (dev, 30.6% of the words) and 71 (test, 30.6% of the words) documents"
    assert f"{needed} reach the F1 that 100 documents at random give" in text
    behind = [run | {"test": 0.1} if run["order"] == SELECT else run for run in RUNS]
    assert "more than 100 (test)" in describe_effort(summarize(behind))


def test_the_figure_has_both_orders(tmp_path: Path) -> None:
    save_figures(FIGURES, summarize(RUNS), tmp_path)
    drawing = (tmp_path / "effort.svg").read_text("utf8")
    for text in (
        "annotated documents",
        "random, with suggestions",
        "select, from nothing",
        "keys and clicks for an entity",
    ):
        assert f">{text}</text>" in drawing, text


# The order of work


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve documents of one sentence, with two entities each."""
    folder = tmp_path_factory.mktemp("twelve")
    sentence = "Mira NNP B-NP B-PER\nleft VBD B-VP O\nTurku NNP B-NP B-LOC\n{} CD I-NP O\n. . O O\n"
    text = "".join(f"-DOCSTART- -X- -X- O\n\n{sentence.format(2000 + i)}\n" for i in range(12))
    convert(write_corpus(folder / "assets", text), folder / "corpus")
    return folder / "corpus"


class Work:
    """Stands for everything that takes long: what was trained on, what was annotated, and what chose it."""

    def __init__(self) -> None:
        self.trained: list[str] = []
        self.annotated: list[tuple[list[int], str | None]] = []
        self.asked: list[tuple[list[int], str]] = []
        self.broken_at = 0

    def prepare(self, config: Path, part: Path, encoder: Path, **options: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        return {"corpus": {"train": sha256(part / "train.spacy")}, "settings": options}, {}

    def train_aside(
        self, provenance: dict[str, Any], config: Path, folder: Path, part: Path, *_: Any, **__: Any
    ) -> Path:
        return Path(provenance["corpus"]["train"][:8])

    def score_ours(self, model: Path, part: Path) -> dict[str, Any]:
        if self.broken_at and len(self.trained) == self.broken_at:
            raise StepError("broken", "")
        self.trained.append(model.name)
        return {"dev": 0.6, "test": 0.5, "shipped": {"dev": 0.5, "test": 0.4}, "seconds": 1, "steps": 2}

    def annotate(self, documents: Sequence[Gold], model: Path | None) -> int:
        numbers = [int(one.id) for one in documents]
        self.annotated.append((numbers, model.name if model else None))
        return len(numbers) if model else 5 * len(numbers)

    def choose_next(self, pool: list[Gold], done: Sequence[int], model: Path, number: int, *_: Any) -> list[int]:
        self.asked.append(([*done], model.name))
        return [int(one.id) for one in pool if int(one.id) not in done][:number]


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> Work:
    work = Work()
    for name in ("prepare", "train_aside", "score_ours", "annotate", "choose_next"):
        monkeypatch.setattr(benchmark, name, getattr(work, name))
    monkeypatch.setattr(benchmark, "save_figures", lambda *_: {})
    return work


def run(corpus: Path, encoder: Path, folder: Path, **options: Any) -> dict[str, Any]:
    effort(
        CONFIG, folder / "training", corpus, encoder, folder / "tiny", **{"step": 4, "most": 8, "draws": 1} | options
    )
    return read_json(folder / "tiny/effort.json")


def test_each_batch_is_suggested_and_chosen_by_the_pipeline_of_those_before(
    corpus: Path, tiny_encoder: Path, tmp_path: Path, work: Work
) -> None:
    record = run(corpus, tiny_encoder, tmp_path)
    order = draw_order(12, 0)
    chosen = {key: one["chosen"] for key, one in record["runs"].items()}
    assert chosen["random, 4 documents, draw 0"] == chosen["select, 4 documents, draw 0"] == order[:4]
    assert chosen["random, 8 documents, draw 0"] == order[4:8]
    assert chosen["select, 8 documents, draw 0"] == [number for number in range(12) if number not in order[:4]][:4]
    assert len(work.trained) == 3, "the first batch is the same"
    first = work.trained[0]
    assert work.asked == [(order[:4], first)], "select sees what is annotated so far"
    suggested = [model for _, model in work.annotated]
    assert suggested == [None] * 4 + [first, None] * 2, (
        "the first batch has no suggestions; each is marked from nothing too"
    )
    last = record["runs"]["select, 8 documents, draw 0"]
    assert (last["entities"], last["actions"], last["from_nothing"]) == (8, 4, 20)
    assert record["runs"]["select, 4 documents, draw 0"]["actions"] == 20
    assert set(record["inputs"]) == {"config", "code", "pipeline", "encoder", *SPLITS}


def test_an_interrupted_run_goes_on_where_it_was(corpus: Path, tiny_encoder: Path, tmp_path: Path, work: Work) -> None:
    work.broken_at = 2
    with pytest.raises(StepError, match="broken"):
        run(corpus, tiny_encoder, tmp_path)
    work.broken_at, before = 0, len(work.trained)
    record = run(corpus, tiny_encoder, tmp_path)
    assert len(work.trained) == before + 1 and len(record["runs"]) == 4
    assert len(work.asked) == 2, "the choice that was under way is made again"
    more = run(corpus, tiny_encoder, tmp_path, most=12, only=RANDOM)
    assert [point["documents"] for point in more["summary"][RANDOM]] == [4, 8, 12]
    assert [point["documents"] for point in more["summary"][SELECT]] == [4, 8], "is kept, and does not go on"
    other = run(corpus, tiny_encoder, tmp_path, epochs="9")
    assert len(work.trained) == before + 2 + 3, "other settings give other models"
    assert other["summary"][RANDOM][0]["draws"] == 1


def test_a_batch_larger_than_the_corpus_is_refused(corpus: Path, tiny_encoder: Path, tmp_path: Path) -> None:
    with pytest.raises(StepError, match="only 12 training documents"):
        run(corpus, tiny_encoder, tmp_path, step=25)
    with pytest.raises(StepError, match="no contender best"):
        run(corpus, tiny_encoder, tmp_path, only="best")


def test_select_chooses_among_those_that_are_not_annotated(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pool = [Gold(str(i), f"Turku {i}.", [Span(start=0, end=5, label="LOC")]) for i in range(6)]
    commands: list[list[str]] = []

    def start(command: list[str]) -> subprocess.CompletedProcess[str]:
        commands.append(command)
        store = Store(Path(command[3], STORE))
        names = [task.document.id for task in store.tasks()]
        assert all(not task.annotations and not task.suggestions for task in store.tasks())
        store.arrange({name: (-int(name), "uncertain") for name in names})
        return subprocess.CompletedProcess(command, int("broken" in command))

    monkeypatch.setattr(subprocess, "run", start)
    assert choose_next(pool, [5, 2], tmp_path / "model", 3, 7, -1) == [4, 3, 1]
    (command,) = commands
    assert command[1:3] == ["-m", "scripts.select"] and command[4:] == [
        *("--pipeline", str(tmp_path / "model"), "--batch", "3", "--seed", "7", "--gpu-id", "-1")
    ]
    with pytest.raises(StepError, match="select failed"):
        choose_next(pool, [], Path("broken"), 3, 7, -1)


@pytest.mark.slow
def test_it_works_with_real_trainings_and_the_real_select(corpus: Path, tiny_encoder: Path, tmp_path: Path) -> None:
    paths = [CONFIG, tmp_path / "training/tiny", corpus, tiny_encoder, tmp_path / "tiny"]
    options = ["--step", "4", "--most", "8", "--draws", "1", "--epochs", "1"]
    for _ in range(2):
        done = python("-m", "benchmarks.effort", *map(str, paths), *options, cwd=ROOT)
        assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("Arranged") == 0, "the second time nothing is done again"
    record = read_json(tmp_path / "tiny/effort.json")
    assert (tmp_path / "tiny/effort.svg").exists() and record["captions"].keys() == {"effort"}
    assert len({*record["runs"]["select, 8 documents, draw 0"]["chosen"]}) == 4
    assert all(run["from_nothing"] == 4 * (2 * 2 + 1) for run in record["runs"].values())
    assert len(list((tmp_path / "training/tiny").glob("model-best-*"))) == 3
