from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import spacy
import srsly
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from spacy.util import registry

from scripts.convert import convert
from scripts.steps import StepError, read_json, sha256
from scripts.train import check_gpu, derive, find_whole, prepare, score_tags, train
from tests.conftest import ROOT, guard, python, save_tiny_encoder, words, write_corpus

CONFIG, CODE = ROOT / "configs" / "bert.cfg", ROOT / "scripts" / "functions.py"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("train")
    convert(write_corpus(folder / "assets"), folder / "corpus")
    return folder / "corpus"


def command(folder: Path, corpus: Path, encoder: Path, *options: str) -> list[str]:
    paths = ["--corpus", str(corpus), "--encoder", str(encoder), "--code", str(CODE)]
    return ["-m", "scripts.train", str(CONFIG), str(folder), *paths, *(options or ["--epochs", "3"])]


def weights(model: Path) -> dict[str, str]:
    return {path.name: sha256(model / path.name) for path in model.iterdir() if path.name in ("transformer", "ner")}


def test_two_trainings_give_the_same_weights_and_the_seed_changes_them(
    tmp_path: Path, corpus: Path, tiny_encoder: Path
) -> None:
    for name, seed in {"one": 0, "two": 0, "three": 1}.items():
        train(CONFIG, tmp_path / name, corpus, tiny_encoder, CODE, epochs="1", seed=seed)
    one, two, three = (weights(tmp_path / name / "model-best") for name in ("one", "two", "three"))
    assert one == two and len(one) == 2
    assert one != three


def test_a_finished_model_is_kept_and_found_again(
    tmp_path: Path, corpus: Path, tiny_encoder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    best = tmp_path / "model-best"

    def run(seed: int, aside: bool = False) -> str:
        train(CONFIG, tmp_path, corpus, tiny_encoder, CODE, epochs="1", seed=seed, aside=aside)
        return words(capsys.readouterr().out)

    run(0)
    first = sha256(best)
    assert "is trained already" in run(0) and sha256(best) == first
    assert "is now" in run(1)
    assert sha256(best) != first
    (kept,) = tmp_path.glob("model-best-*")
    assert sha256(kept) == first
    assert "Training in" not in run(0), "a model of this origin was there"
    assert sha256(best) == first and not list(tmp_path.glob("unfinished-*"))
    origin = read_json(best / "origin.json")
    assert origin["made_from"]["settings"]["system.seed"] == 0 and origin["device"] == "CPU" and not origin["resumed"]
    assert "Training in" in run(2, aside=True) and "is trained already" in run(2, aside=True)
    assert sha256(best) == first and len(list(tmp_path.glob("model-best-*"))) == 2


def test_every_training_leaves_its_curves(
    tmp_path: Path, corpus: Path, tiny_encoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scripts.train.EVALUATIONS", 3)
    train(CONFIG, tmp_path, corpus, tiny_encoder, CODE, epochs="20")
    rows = list(srsly.read_jsonl(tmp_path / "model-best" / "curves.jsonl"))
    steps = [row["step"] for row in rows]
    assert steps[0] == 0 and steps == sorted(set(steps)) and len(steps) == 4
    assert rows[0]["learn_rate"] < rows[1]["learn_rate"] > rows[-1]["learn_rate"]
    nlp = spacy.load(tmp_path / "model-best")
    read = registry.readers.get("bert_ner.Corpus.v2")(corpus / "dev.spacy", sentence_starts=False)
    accuracy = score_tags(nlp, read(nlp))["accuracy"]
    assert accuracy in [pytest.approx(row["dev"]["accuracy"]) for row in rows]
    for row in rows:
        assert row["train"] == {key: pytest.approx(row["dev"][key]) for key in ("loss", "accuracy")}, "the same texts"
        assert row["dev"]["loss"] > 0 and set(row["losses"]) >= {"transformer", "ner"} and "ents_f" in row["dev"]


def test_a_model_that_was_not_made_here_is_not_overwritten(tmp_path: Path, corpus: Path, tiny_encoder: Path) -> None:
    (tmp_path / "model-best").mkdir()
    (tmp_path / "model-best" / "meta.json").write_text("{}")
    with pytest.raises(StepError, match="another origin"):
        train(CONFIG, tmp_path, corpus, tiny_encoder, CODE)
    assert [path.name for path in (tmp_path / "model-best").iterdir()] == ["meta.json"]


def test_after_ctrl_c_the_same_command_goes_on(
    tmp_path: Path,
    corpus: Path,
    tiny_encoder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    evaluations = 0

    def interrupt(*arguments: Any) -> dict[str, float]:
        nonlocal evaluations
        evaluations += 1
        if evaluations > 4:  # two splits at each evaluation: the third one
            raise KeyboardInterrupt
        return score_tags(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr("scripts.train.score_tags", interrupt)
        with pytest.raises(KeyboardInterrupt):
            train(CONFIG, tmp_path, corpus, tiny_encoder, CODE, epochs="4")
    assert not (tmp_path / "model-best").exists()
    train(CONFIG, tmp_path, corpus, tiny_encoder, CODE, epochs="4")
    told = words(capsys.readouterr().out)
    assert "was interrupted: going on from its best weights" in told and "start afresh" in told
    best = tmp_path / "model-best"
    assert read_json(best / "origin.json")["resumed"] and spacy.load(best)("Mira left Turku .") is not None
    assert not list(tmp_path.glob("unfinished-*")) and "source" not in (best / "config.cfg").read_text()


@pytest.mark.slow
def test_after_a_kill_the_best_is_loadable_and_the_same_command_goes_on(
    tmp_path: Path, corpus: Path, tiny_encoder: Path
) -> None:
    arguments = command(tmp_path / "run", corpus, tiny_encoder, "--epochs", "40")
    process = subprocess.Popen(
        [sys.executable, *arguments], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + guard(60)
    saved: list[Path] = []
    while not saved and process.poll() is None and time.monotonic() < deadline:
        saved = list(tmp_path.glob("run/unfinished-*/model-best/vocab"))
        time.sleep(0.01)
    assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "run" / "model-best").exists()
    unfinished = saved[0].parent.parent
    whole = find_whole(unfinished)
    assert whole is not None and spacy.load(whole).pipe_names[-1] == "doc_cleaner"
    done = python(*arguments, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "was interrupted: going on from its best weights" in words(done.stdout)
    assert read_json(tmp_path / "run" / "model-best" / "origin.json")["resumed"] and not unfinished.exists()


def write_checkpoint(folder: Path, names: list[str], when: int) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(str(when))
        os.utime(path, ns=(when, when))


FILES = ["config.cfg", "meta.json", "ner/model", "transformer/model", "vocab/strings.json"]


@settings(deadline=None, max_examples=100)
@given(st.sampled_from(["saving", "removing", "copying", "done"]), st.integers(0, len(FILES)), st.randoms())
def test_a_whole_checkpoint_is_found_whenever_the_kill_comes(
    tmp_path_factory: pytest.TempPathFactory, stage: str, files: int, order: Any
) -> None:
    """Replays `save_checkpoint` of spaCy's loop, up to a kill: after `files` files of a stage, in any order of them."""
    folder = tmp_path_factory.mktemp("checkpoints")
    best, last = folder / "model-best", folder / "model-last"
    write_checkpoint(best, FILES, 10)
    shutil.copytree(best, last)
    names = order.sample(FILES, len(FILES))
    if stage == "saving":
        write_checkpoint(last, names[:files], 20)
        assert find_whole(folder) == best
        return
    write_checkpoint(last, FILES, 20)
    if stage != "done":
        for name in names if stage == "copying" else names[:files]:
            (best / name).unlink()
    if stage == "copying":
        for name in names[:files]:
            shutil.copy2(last / name, best / name)
        if files < len(FILES):
            (best / names[files]).write_text("")  # begun, its time not yet that of the original
    with mock.patch("scripts.train.spacy.load"):  # what these files stand for can be loaded
        whole = find_whole(folder)
    assert whole is not None
    contents = {(whole / name).read_text() for name in FILES}
    assert len(contents) == 1, "a mixture of two checkpoints"


def test_nothing_is_whole_before_the_first_evaluation(tmp_path: Path) -> None:
    assert find_whole(tmp_path) is None
    write_checkpoint(tmp_path / "model-last", ["config.cfg"], 10)
    assert find_whole(tmp_path) is None


@pytest.mark.parametrize(("width", "rate"), [(768, 5e-5), (384, 2e-4), (32, 5e-4)])
def test_learning_rate_and_steps_follow_encoder_and_corpus(
    tmp_path: Path, corpus: Path, width: int, rate: float
) -> None:
    encoder = save_tiny_encoder(tmp_path, width)
    settings = derive(CONFIG, corpus / "train.spacy", encoder, "auto", "auto", "auto")
    assert settings["training.optimizer.learn_rate.initial_rate"] == pytest.approx(rate)
    assert settings["training.max_steps"] >= 400  # one step an epoch
    assert settings["training.max_steps"] % settings["training.eval_frequency"] == 0  # the last step is evaluated
    assert derive(CONFIG, corpus / "train.spacy", encoder, "3", "0.1", "7")["training.batcher.batcher.size"] == 7


def test_a_batch_has_at_least_one_word(corpus: Path, tiny_encoder: Path) -> None:
    settings = derive(CONFIG, corpus / "train.spacy", tiny_encoder, "1", "auto", "0.5")
    assert settings["training.batcher.batcher.size"] == 1


def test_the_steps_of_long_documents_are_those_of_their_pieces(tmp_path: Path, tiny_encoder: Path) -> None:
    text = "\n".join(["Mira B-PER\nleft O\nTurku B-LOC\n. O\n"] * 2000)
    marks = "-DOCSTART- O\n\n"
    convert(write_corpus(tmp_path / "assets", f"{marks}{text}\n{marks}Turku B-LOC\n"), tmp_path / "corpus")
    settings = derive(CONFIG, tmp_path / "corpus/train.spacy", tiny_encoder, "1", "auto", "1500")
    assert settings["training.max_steps"] == 6  # of 8,001 words in documents of at most 1,500


def test_how_it_is_calibrated_is_part_of_a_models_origin(
    corpus: Path, tiny_encoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, _ = prepare(CONFIG, corpus, tiny_encoder, CODE)
    monkeypatch.setattr("scripts.train.calibrate", lambda model, train, dev: 1.0)
    after, _ = prepare(CONFIG, corpus, tiny_encoder, CODE)
    assert {key for key in before if before[key] != after[key]} == {"calibration"}


@pytest.mark.parametrize("value", ["", "-1", "0", "many", "nan", "inf"])
def test_a_setting_that_is_no_number_is_refused(corpus: Path, tiny_encoder: Path, value: str) -> None:
    with pytest.raises(StepError, match="neither auto nor a number above 0"):
        derive(CONFIG, corpus / "train.spacy", tiny_encoder, value, "auto", "auto")


def test_a_corpus_without_parts_of_speech_trains_no_tagger(tmp_path: Path, tiny_encoder: Path) -> None:
    convert(write_corpus(tmp_path / "assets", "Mira B-person\nsleeps O\n\nTurku B-city\n"), tmp_path / "corpus")
    train(CONFIG, tmp_path / "run", tmp_path / "corpus", tiny_encoder, CODE, epochs="1")
    nlp = spacy.load(tmp_path / "run" / "model-best")
    assert nlp.pipe_names == ["transformer", "tok2vec", "senter", "ner", "concepts", "doc_cleaner"]
    assert set(nlp.pipe_labels["ner"]) == {"person", "city"}


def test_a_gpu_that_is_not_there_is_named_before_anything_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    check_gpu(-1)
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(torch.version, "hip", None)
    with pytest.raises(StepError, match="built for the CPU"):
        check_gpu(0)
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(StepError, match="driver"):
        check_gpu(0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(StepError, match="there are 1"):
        check_gpu(1)
    monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.raises(StepError, match="CuPy is missing"):
        check_gpu(0)
