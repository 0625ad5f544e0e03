from __future__ import annotations

import functools
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import spacy
from hypothesis import assume, given
from hypothesis import strategies as st

from benchmarks import curve as benchmark
from benchmarks.ablation import OURS, USUAL, USUAL_SETTINGS
from benchmarks.contenders import explosion, huggingface
from benchmarks.curve import (
    EXPLOSION,
    FIGURES,
    SPAN_MARKER,
    TAUGHT_OURS,
    TEACHERS,
    choose_sizes,
    curve,
    find_needed,
    score_other,
    summarize,
    train_taught,
    write_draw,
)
from common.corpora import read_docs
from common.devices import Training
from common.errors import StepError
from common.figures import save_figures
from common.formatting import describe_forecast, describe_threshold, tabulate_curve
from common.models import TAUGHT
from common.records import SPLITS, read_json, sha256
from tests.conftest import ROOT, Project, python, words

CONFIG = ROOT / "configs/bert.cfg"
PEERS = ROOT / ".venv-peers/bin/python"


def create_run(
    contender: str, documents: int, test: float, draw: int = 0, precision: float | None = None
) -> dict[str, Any]:
    run = {"contender": contender, "documents": documents, "draw": draw, "dev": test + 0.1, "test": test}
    if contender == OURS:
        calibration = {"expected_calibration_error": 0.02, "precision": precision, "recall": precision}
        run |= {"shipped": {"dev": test, "test": test - 0.1}, "calibration": calibration}
    return run | {"seconds": 10, "steps": 400}


RUNS = [
    *(create_run(USUAL, documents, f1) for documents, f1 in {10: 0.5, 40: 0.7, 160: 0.8}.items()),
    create_run(OURS, 10, 0.55),
    create_run(OURS, 10, 0.65, 1, 0.5),
    create_run(OURS, 40, 0.4, 0, 0.75),
    create_run(OURS, 160, 0.9, 0, 0.5),
    create_run(OURS, 160, 0.8, 1, 1.0),
]


# Corpora


def texts(folder: Path, split: str = "train") -> list[str]:
    return [doc.text for doc in read_docs(folder / f"{split}.spacy")]


def test_the_documents_of_a_draw_lie_within_each_other(project: Project, tmp_path: Path) -> None:
    corpus = project.folder / "corpus/tiny"
    whole = texts(corpus)
    drawn = {n: texts(write_draw(corpus, n, 0, tmp_path / f"{n}")) for n in (3, 10, 40, len(whole))}
    for documents, found in drawn.items():
        assert len(found) == documents and found == [text for text in whole if text in found], "in their order"
    assert set(drawn[3]) < set(drawn[10]) < set(drawn[40])
    assert set(texts(write_draw(corpus, 10, 1, tmp_path / "other"))) != set(drawn[10])
    again = write_draw(corpus, 10, 0, tmp_path / "again")
    assert sha256(again / "train.spacy") == sha256(tmp_path / "10/train.spacy"), "which identifies a model"
    for split in SPLITS:
        assert sha256(tmp_path / f"{len(whole)}/{split}.spacy") == sha256(corpus / f"{split}.spacy")
        assert split == "train" or sha256(again / f"{split}.spacy") == sha256(corpus / f"{split}.spacy")


def test_sizes_are_numbers_that_the_corpus_has(capsys: pytest.CaptureFixture[str]) -> None:
    assert choose_sizes("all, 25,10,25", 110) == [10, 25, 110] and not capsys.readouterr().out
    assert choose_sizes("quarter,half,all", 110) == [27, 55, 110] and choose_sizes("quarter,all", 2) == [1, 2]
    assert choose_sizes("10,200,1000", 110) == [10]
    assert "the corpus has 110 training documents: 200, 1000" in words(capsys.readouterr().out)
    for wrong in ("", "0", "ten", "10,,20", "-1", "1.5"):
        with pytest.raises(StepError, match="no numbers of documents"):
            choose_sizes(wrong, 110)
    with pytest.raises(StepError, match="only 110"):
        choose_sizes("200", 110)


# Summary


def test_draws_are_summarized_by_contender_and_size() -> None:
    result = summarize(RUNS)
    summary = result["summary"]
    assert list(summary) == [OURS, USUAL] and [point["draws"] for point in summary[OURS]] == [2, 1, 2]
    few, more, most = summary[OURS]
    assert few["test"] == pytest.approx({"mean": 0.6, "lowest": 0.55, "highest": 0.65})
    assert few["dev"]["mean"] == pytest.approx(0.7) and few["shipped"]["mean"] == pytest.approx(0.5)
    assert few["seconds"] == 10 and few["steps"] == 400
    assert few["usual_needs"] == pytest.approx(20), "half way from 10 to 40, on a logarithmic scale"
    assert more["usual_needs"] == 10 and most["usual_needs"] is None
    assert few["calibration"]["sure"] == 1 and few["calibration"]["precision"] == 0.5
    assert most["calibration"] == {"error": pytest.approx(few["calibration"]["error"])} | {
        "sure": 2,
        "precision": 0.75,
        "recall": 0.75,
    }
    assert result["sure_from"] == 40
    assert all("usual_needs" not in point and "calibration" not in point for point in summary[USUAL])


def test_a_threshold_is_sure_only_if_it_is_so_in_all_draws_and_for_all_larger_corpora() -> None:
    assert summarize([create_run(OURS, 10, 0.5, 0, 0.9), create_run(OURS, 20, 0.5)])["sure_from"] is None
    assert summarize([create_run(OURS, 10, 0.5), create_run(OURS, 20, 0.5, 0, 0.9)])["sure_from"] == 20
    assert "usual_needs" not in summarize(RUNS[3:])["summary"][OURS][0], "it was not trained"


@given(
    st.dictionaries(st.integers(1, 10_000), st.floats(0, 1), min_size=2, max_size=6),
    st.floats(0, 1),
)
def test_the_curve_has_the_score_where_it_is_found_and_nowhere_before(scores: dict[int, float], score: float) -> None:
    import numpy as np

    scores = dict(sorted(scores.items()))
    sizes, values = list(scores), list(scores.values())
    found = find_needed(scores, score)
    if found is None:
        assert max(values) < score
        return
    assert sizes[0] <= found <= sizes[-1] * (1 + 1e-9)
    assert all(value < score for size, value in scores.items() if size < found * (1 - 1e-9))
    assume(values[0] < score and np.abs(np.diff(values)).min() > 1e-6)
    assert np.interp(np.log(found), np.log(sizes), values) == pytest.approx(score, abs=1e-6)


def test_a_curve_that_falls_is_read_where_it_reaches_the_score_first() -> None:
    assert find_needed({10: 0.5, 40: 0.4, 160: 0.6, 640: 0.9}, 0.55) == pytest.approx(40 * 4**0.75)


def test_the_table_says_what_the_usual_fine_tune_needs_and_where_dev_gives_a_threshold() -> None:
    header, rows = tabulate_curve(summarize(RUNS))
    assert header[:3] == ["training documents", OURS, USUAL] and {len(row) for row in rows} == {len(header)}
    assert rows[0] == [
        "10",
        "60.0 (55.0 to 65.0)",
        "50.0 (50.0 to 50.0)",
        "20 (2.0 times)",
        "50.0 (45.0 to 55.0)",
        "0.020",
        "50.0 and 50.0 (1 of 2 draws)",
    ]
    assert [row[3] for row in rows[1:]] == ["at most 10", "over 160", "–"]
    assert describe_threshold(summarize(RUNS)).startswith("From 40 training documents on, dev gives a threshold")
    assert "in all draws" in describe_threshold(summarize(RUNS[3:4]))
    _, others = tabulate_curve(summarize(RUNS[:3]))
    assert len(others) == 3, "what is forecast is ours"
    assert others[0] == ["10", "50.0 (50.0 to 50.0)", "–", "–", "–", "–"] and not describe_threshold(
        summarize(RUNS[:3])
    )


def test_the_forecast_is_the_last_row_and_says_how_sure_it_is() -> None:
    result = summarize(create_run(OURS, n, 1 - n**-0.5 + 0.001 * d, d) for n in (16, 64, 256) for d in range(3))
    ahead = result["forecast"]
    _, (*_, last) = tabulate_curve(result)
    expected = 100 * (result["summary"][OURS][-1]["test"]["mean"] + ahead["gain"])
    assert last[0] == "456 (forecast)" and last[1].startswith(f"{expected:.1f} (") and set(last[2:]) == {"–"}
    text = describe_forecast(result)
    assert text.startswith(f"Another 200 training documents would change the F1 of ours on test by about +{1.6}")
    assert "may be nothing" not in text
    assert "may be nothing" in describe_forecast(summarize(RUNS)), "40 documents gave less than 10"
    assert describe_forecast(summarize(RUNS[3:5])) == "", "one number of documents says nothing"


def test_the_figure_has_all_contenders_on_both_splits(tmp_path: Path) -> None:
    save_figures(FIGURES, summarize(RUNS), tmp_path)
    drawing = (tmp_path / "curve.svg").read_text("utf8")
    for text in ("training documents", "dev", "test", OURS, USUAL, "forecast", "10", "40", "160", "F1 of entities, %"):
        assert f">{text}</text>" in drawing, text


# Trainings


@pytest.mark.slow
def test_results_are_found_again_by_their_inputs(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[tuple[str, int, int]] = []

    def train(name: str, encoder: Path, corpus: Path, seed: int, gpu_id: int, peers: Path | None) -> dict[str, Any]:
        if broken:
            raise StepError("broken", "")
        done.append((name, len(texts(corpus)), seed))
        return {"dev": 0.5, "test": 0.5, "seconds": 1, "steps": 2}

    def run(sizes: str, only: str, draws: int = 1) -> dict[str, Any]:
        done.clear()
        corpus = project.folder / "corpus/tiny"
        folders = (tmp_path / "training", corpus, project.encoder, tmp_path / "tiny")
        curve(CONFIG, *folders, sizes=sizes, draws=draws, only=only)
        return read_json(tmp_path / "tiny/curve.json")

    broken = False
    monkeypatch.setattr(benchmark, "score_other", train)
    monkeypatch.setattr(benchmark, "train_aside", lambda *_, **__: tmp_path)
    scores = {key: value for key, value in create_run(OURS, 0, 0.6).items() if key not in ("documents", "draw")}
    monkeypatch.setattr(benchmark, "score_ours", lambda *_: scores)
    record = run("4,9", USUAL, 2)
    assert done == [(USUAL, 4, 0), (USUAL, 4, 1), (USUAL, 9, 0), (USUAL, 9, 1)]
    assert set(record["inputs"]) == {"config", "code", "pipeline", "encoder", *SPLITS}
    assert (tmp_path / "tiny/curve.svg").exists() and record["captions"].keys() == {"curve"}
    record = run("4,all", f"{OURS},{USUAL}")
    assert done == [(USUAL, 110, 0)], "the others are there"
    assert [point["documents"] for point in record["summary"][USUAL]] == [4, 9, 110]
    assert record["runs"]["ours, 4 documents, draw 0"]["inputs"]["model"]
    monkeypatch.setitem(benchmark.SETTINGS, USUAL, {"num_train_epochs": 1})
    broken = True
    with pytest.raises(StepError, match="broken"):
        run("4", USUAL)
    broken = False
    record = run("4", f"{USUAL},{EXPLOSION}")
    assert done == [(USUAL, 4, 0), (EXPLOSION, 4, 0)], "other settings give other results"
    assert [point["documents"] for point in record["summary"][USUAL]] == [4], "those of before do not count"
    assert "usual fine-tune, 9 documents, draw 0" in record["runs"], "but are kept"
    monkeypatch.setattr(benchmark, "MOST_ON_CPU", {SPAN_MARKER: 4})
    record = run("4,9", SPAN_MARKER)
    assert done == [(SPAN_MARKER, 4, 0)] and list(record["summary"]) == [OURS, USUAL, EXPLOSION, SPAN_MARKER]


def test_on_several_devices_ours_and_its_teachers_are_trained_first(
    tiny_corpus: Path, tiny_encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: dict[str, Training] = {}
    asked: list[dict[str, Any]] = []

    def train_all(trainings: dict[str, Training], devices: list[int]) -> None:
        assert devices == [-1, -1]
        trained.update(trainings)

    def train_aside(provenance: dict[str, Any], *_: Any, **__: Any) -> Path:
        asked.append(provenance)
        return tmp_path

    monkeypatch.setattr("common.training.code_digest", lambda *_: "code")
    monkeypatch.setattr("common.training.spacy.blank", functools.cache(spacy.blank))
    for name in ("save_figures", "record_inputs"):
        monkeypatch.setattr(benchmark, name, lambda *_, **__: {"dev": "dev", "test": "test", "train": "train"})
    monkeypatch.setattr(benchmark, "train_all", train_all)
    monkeypatch.setattr(benchmark, "train_aside", train_aside)
    monkeypatch.setattr(benchmark, "score_ours", lambda *_: create_run(OURS, 1, 0.5))
    monkeypatch.setattr(benchmark, "subprocess", SimpleNamespace(run=lambda _: SimpleNamespace(returncode=1)))
    paths = (tmp_path / "training", tiny_corpus, tiny_encoder, tmp_path / "tiny")
    with pytest.raises(StepError, match="teachers could not annotate"):
        curve(CONFIG, *paths, sizes="1", draws=1, only=f"{OURS},{TAUGHT_OURS}", processes=2)
    assert [training.inputs for training in trained.values()] == asked and len(asked) == 1 + TEACHERS
    assert [*trained][:2] == [f"{name}, 1 documents, draw 0, seed 0" for name in (OURS, TAUGHT_OURS)]


def test_nothing_measured_is_an_error(project: Project, tmp_path: Path) -> None:
    folders = (tmp_path / "training", project.folder / "corpus/tiny", project.encoder, tmp_path / "tiny")
    with pytest.raises(StepError, match="Nothing was measured"):
        curve(CONFIG, *folders, sizes="all", only=SPAN_MARKER)


def test_a_small_corpus_gets_as_many_steps_as_ours_does_and_few_looks_at_dev(
    tiny_corpus: Path, tiny_encoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("accelerate")
    monkeypatch.setattr(benchmark, "FEWEST_STEPS", 20)
    assert score_other(USUAL, tiny_encoder, tiny_corpus, 0, -1)["steps"] == 20
    result = huggingface.fine_tune(tiny_encoder, tiny_corpus, 0, -1, USUAL_SETTINGS, 20)
    assert len(result["dev_by_epoch"]) == 7, "each third of 20 epochs, and the last"
    assert huggingface.fine_tune(tiny_encoder, tiny_corpus, 0, -1, USUAL_SETTINGS)["steps"] == 5


def test_explosion_s_config_learns(tiny_corpus: Path, tiny_encoder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    create = explosion.create_config

    def create_faster(job: Any) -> dict[str, Any]:
        config = create(job)
        config["training"]["optimizer"]["learn_rate"]["initial_rate"] = 1e-2
        return config

    monkeypatch.setattr(explosion, "create_config", create_faster)
    settings = {"epochs": 5, "evaluations": 3}
    result = explosion.fine_tune(tiny_encoder, tiny_corpus, 0, -1, settings, 60)
    assert result["steps"] == 60 and result["dev"] == result["test"] > 0.9, "it saw these texts"
    assert explosion.fine_tune(tiny_encoder, tiny_corpus, 0, -1, settings, 1)["steps"] == 6, "two for each evaluation"


def test_an_environment_that_is_missing_is_named(tiny_corpus: Path, tiny_encoder: Path, tmp_path: Path) -> None:
    corpus = write_draw(tiny_corpus, 2, 0, tmp_path / "corpus")
    with pytest.raises(StepError, match="an environment of its own") as error:
        score_other(SPAN_MARKER, tiny_encoder, corpus, 0, -1, tmp_path / "python")
    assert "make .venv-peers/installed" in error.value.remedy


@pytest.mark.slow
def test_span_marker_trains_in_its_own_environment(
    tiny_corpus: Path, tiny_encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not PEERS.exists():
        pytest.skip("no .venv-peers here")
    monkeypatch.setattr(benchmark, "FEWEST_STEPS", 150)
    monkeypatch.setitem(benchmark.SETTINGS, SPAN_MARKER, benchmark.SETTINGS[SPAN_MARKER] | {"learning_rate": 1e-2})
    corpus = write_draw(tiny_corpus, 2, 0, tmp_path / "corpus")
    result = score_other(SPAN_MARKER, tiny_encoder, corpus, 0, -1, PEERS)
    assert result["steps"] == 150 and result["dev"] == result["test"] > 0.9, "it saw these texts"


@pytest.mark.slow
def test_ours_is_trained_aside_on_few_documents_and_found_again(changeable: Project, tmp_path: Path) -> None:
    folders = [changeable.folder / name for name in ("training/tiny", "corpus/tiny")]
    paths = [CONFIG, *folders, changeable.encoder, tmp_path / "tiny"]
    options = ["--sizes", "5,all", "--draws", "1", "--epochs", "1", "--only", "ours"]
    before = {path.name for path in folders[0].iterdir()}
    done = python("-m", "benchmarks.curve", *map(str, paths), *options, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len({path.name for path in folders[0].iterdir() if path.is_dir()} - before) == 1, "all was trained already"
    record = read_json(tmp_path / "tiny/curve.json")
    evaluation = read_json(changeable.folder / "metrics/tiny/evaluation.json")
    whole = record["runs"]["ours, 110 documents, draw 0"]
    for split in ("dev", "test"):
        assert whole[split] == evaluation[split]["gold_sentences"]["ents_f"]
        assert whole["shipped"][split] == evaluation[split]["predicted_sentences"]["ents_f"]
    assert whole["calibration"] == evaluation["test"]["calibration"] and whole["steps"] > 0
    assert [point["documents"] for point in record["summary"]["ours"]] == [5, 110]
    again = python("-m", "benchmarks.curve", *map(str, paths), *options, cwd=ROOT)
    assert again.stdout.count("measured already") == 2


@pytest.mark.slow
def test_teachers_see_the_other_documents_without_their_annotation(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus, model = project.folder / "corpus/tiny", project.folder / "training/tiny/model-best"
    drawn = write_draw(corpus, 100, 0, tmp_path / "drawn")
    trained: list[tuple[str, int]] = []

    def train(*_: Any, train_on: str, seed: int, **__: Any) -> Path:
        trained.append((train_on, seed))
        return model

    monkeypatch.setattr(benchmark, "train_aside", train)
    settings = {"epochs": "1", "learn_rate": "auto", "batch_words": "auto", "seed": 3, "gpu_id": -1}
    assert train_taught(CONFIG, tmp_path, drawn, corpus, project.encoder, settings) == model
    assert trained == [*(("train", seed) for seed in range(TEACHERS)), (TAUGHT, 3)]
    given = read_docs(drawn / "texts.spacy")
    assert all(doc.has_unknown_spaces for doc in given), "or they would be tokenised anew"
    assert len(given) == 10 and not any(doc.has_annotation(name) for doc in given for name in ("ENT_IOB", "SENT_START"))
    assert {*texts(drawn, "texts")}.isdisjoint(texts(drawn)) and len(read_docs(drawn / "taught.spacy")) >= 110
