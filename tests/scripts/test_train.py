from __future__ import annotations

import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any, cast
from unittest import mock

import pytest
import spacy
import srsly
from hypothesis import given, settings
from hypothesis import strategies as st
from spacy.language import Language
from spacy.tokens import Doc
from spacy.training import Corpus

from bert_ner.recognizer import BiluoEntityRecognizer
from common.errors import StepError
from common.records import read_json, sha256, write_json
from common.scoring import create_examples, record_tags
from common.statistics import number_tags, score_tags
from common.training import without_pooler_warning
from scripts import train as step
from scripts.convert import convert
from scripts.train import find_whole, move_into_place, train
from tests.conftest import ROOT, guard, python, save_tiny_encoder, words, write_corpus

CONFIG = ROOT / "configs" / "bert.cfg"


def command(folder: Path, corpus: Path, encoder: Path, *options: str) -> list[str]:
    paths = ["--corpus", str(corpus), "--encoder", str(encoder)]
    return ["-m", "scripts.train", str(CONFIG), str(folder), *paths, *(options or ["--epochs", "3"])]


def weights(model: Path) -> dict[str, bytes]:
    """All weights but those of the encoder's pooler, which nothing uses, and which checkpoints may not have."""
    nlp = spacy.load(model)
    encoder = cast(Any, nlp.get_pipe("transformer")).model.transformer.state_dict()
    found = {name: tensor.numpy().tobytes() for name, tensor in encoder.items() if not name.startswith("pooler.")}
    return found | {name: cast(Any, nlp.get_pipe(name)).model.to_bytes() for name in ("tok2vec", "senter", "ner")}


def test_two_trainings_give_the_same_weights_and_the_seed_changes_them(
    tmp_path: Path, tiny_corpus: Path, tiny_encoder: Path
) -> None:
    for name, seed in {"one": 0, "two": 0, "three": 1}.items():
        train(CONFIG, tmp_path / name, tiny_corpus, tiny_encoder, epochs="1", seed=seed)
    one, two, three = (weights(tmp_path / name / "model-best") for name in ("one", "two", "three"))
    assert one == two and len(one) > 10
    assert all(one[name] != three[name] for name in ("tok2vec", "senter", "ner"))


@pytest.mark.slow
def test_batches_in_parts_teach_the_same(tmp_path: Path, tiny_corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nothing is drawn: neither dropout, nor what the batcher replaces."""
    monkeypatch.setenv("BERT_NER_DTYPE", "float32")
    parts = mock.Mock(side_effect=Language.update)
    monkeypatch.setattr(Language, "update", lambda *given, **options: parts(*given, **options))
    encoder = save_tiny_encoder(tmp_path / "encoder")
    description = read_json(encoder / "config.json")
    write_json(encoder / "config.json", description | {"hidden_dropout_prob": 0})
    names = ("dropout", "batcher.replace_names", "batcher.lowercase", "batcher.uppercase")
    drawn = [f"training.{name}=0" for name in names]
    numbers, losses = [], []
    for number in (1, 2):
        overrides = ",".join([*drawn, f"training.accumulate_gradient={number}"])
        train(CONFIG, tmp_path / str(number), tiny_corpus, encoder, epochs="3", overrides=overrides)
        rows = list(srsly.read_jsonl(tmp_path / str(number) / "model-best/curves.jsonl"))
        losses.append([value for row in rows for value in (*row["losses"].values(), row["dev"]["loss"])])
        numbers.append(parts.call_count)
    assert numbers == [4, 4 + 8], "a batch has two documents"
    assert losses[1] == pytest.approx(losses[0], rel=1e-3) and len(losses[0]) > 20


def test_a_finished_model_is_kept_and_found_again(
    tmp_path: Path, tiny_corpus: Path, tiny_encoder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    best = tmp_path / "model-best"

    def run(seed: int, aside: bool = False) -> str:
        train(CONFIG, tmp_path, tiny_corpus, tiny_encoder, epochs="1", seed=seed, aside=aside)
        return words(capsys.readouterr().out)

    run(0)
    first = sha256(best)
    assert "is trained already" in run(0) and sha256(best) == first
    assert "is now" in run(1)
    assert sha256(best) != first
    (kept,) = tmp_path.glob("model-best-*")
    assert sha256(kept) == first
    assert "Training in" not in run(0), "a model from these inputs was there"
    assert sha256(best) == first and not list(tmp_path.glob("unfinished-*"))
    provenance = read_json(best / "provenance.json")
    assert provenance["inputs"]["settings"]["system.seed"] == 0
    assert provenance["device"] == "CPU" and not provenance["resumed"]
    assert "Training in" in run(2, aside=True) and "is trained already" in run(2, aside=True)
    assert sha256(best) == first and len(list(tmp_path.glob("model-best-*"))) == 2


def test_every_training_leaves_its_curves(
    tmp_path: Path, tiny_corpus: Path, tiny_encoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("common.training.EVALUATIONS", 3)
    train(CONFIG, tmp_path, tiny_corpus, tiny_encoder, epochs="20")
    rows = list(srsly.read_jsonl(tmp_path / "model-best" / "curves.jsonl"))
    steps = [row["step"] for row in rows]
    assert steps[0] == 0 and steps == sorted(set(steps)) and len(steps) == 4
    assert rows[0]["learn_rate"] < rows[1]["learn_rate"] > rows[-1]["learn_rate"]
    nlp = spacy.load(tmp_path / "model-best")
    recognizer: Any = nlp.get_pipe("ner")
    recognizer.model.get_ref("softmax").attrs["softmax_temperature"] = 1.0  # which calibration changed afterwards
    examples = list(create_examples(nlp, tiny_corpus / "dev.spacy", "predicted_sentences"))
    with record_tags(nlp) as recorded:
        scores = nlp.evaluate(examples)
    expected = score_tags(number_tags(examples, recognizer.tags), recorded.posteriors)
    expected["ents_f"] = scores["ents_f"]
    assert expected in [{key: pytest.approx(row["dev"][key], abs=1e-5) for key in expected} for row in rows]
    for row in rows:
        assert row["train"] == {key: pytest.approx(row["dev"][key]) for key in ("loss", "accuracy")}, "the same texts"
        assert row["dev"]["loss"] > 0 and set(row["losses"]) >= {"transformer", "ner"} and "ents_f" in row["dev"]


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of predictions that are no numbers
def test_a_training_that_diverges_says_so(tmp_path: Path, tiny_corpus: Path, tiny_encoder: Path) -> None:
    with pytest.raises(StepError, match=r"The training diverged: the loss of .* is no number at step \d+"):
        train(CONFIG, tmp_path, tiny_corpus, tiny_encoder, epochs="8", learn_rate="auto*1e30")


def test_dev_is_predicted_once_at_each_evaluation_and_the_corpus_is_read_once(
    tmp_path: Path, tiny_corpus: Path, tiny_encoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the logger, for the curves: spaCy itself reads the corpus for training, and dev at each evaluation."""
    passes: Counter[str] = Counter()
    evaluate, predict, read = Language.evaluate, BiluoEntityRecognizer.predict, Corpus.__call__

    def count_evaluations(nlp: Language, *arguments: Any, **options: Any) -> dict[str, Any]:
        passes["evaluations"] += 1
        return evaluate(nlp, *arguments, **options)

    def count_docs(recognizer: BiluoEntityRecognizer, docs: list[Doc]) -> Any:
        passes[recognizer.name] += len(docs)
        return predict(recognizer, docs)

    def count_reads(reader: Corpus, nlp: Language) -> Any:
        passes[f"{Path(reader.path).name} read"] += 1
        return read(reader, nlp)

    monkeypatch.setattr(Language, "evaluate", count_evaluations)
    monkeypatch.setattr(BiluoEntityRecognizer, "predict", count_docs)
    monkeypatch.setattr(Corpus, "__call__", count_reads)
    monkeypatch.setattr("scripts.train.calibrate", lambda *_: 1.0)
    monkeypatch.setattr("common.training.EVALUATIONS", 3)
    train(CONFIG, tmp_path, tiny_corpus, tiny_encoder, epochs="20")
    assert passes["evaluations"] == 4
    documents = 2  # of each split
    for name in ("ner", "chunker"):
        assert passes[name] == passes["evaluations"] * 2 * documents, "dev, and a part of train"
    assert passes["dev.spacy read"] == passes["evaluations"] + 1


def test_only_the_new_pooler_is_not_worth_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("transformers.modeling_utils")
    told = "Some weights of BertModel were not initialized from the model checkpoint at x and are newly initialized: {}"
    pooler, more = ["pooler.dense.bias", "pooler.dense.weight"], ["encoder.layer.0.weight", "pooler.dense.bias"]
    monkeypatched = logger.propagate
    logger.propagate = True
    logger.addHandler(caplog.handler)
    try:
        with without_pooler_warning():
            logger.warning(told.format(pooler))
            logger.warning(told.format(more))
            logger.warning("something else about 'pooler.dense.bias'")
        logger.warning(told.format(pooler))
    finally:
        logger.removeHandler(caplog.handler)
        logger.propagate = monkeypatched
    assert [str(more) in text or "something" in text for text in dict.fromkeys(caplog.messages)] == [True, True, False]


def test_a_model_that_was_not_made_here_is_not_overwritten(
    tmp_path: Path, tiny_corpus: Path, tiny_encoder: Path
) -> None:
    (tmp_path / "model-best").mkdir()
    (tmp_path / "model-best" / "meta.json").write_text("{}")
    with pytest.raises(StepError, match="another origin"):
        train(CONFIG, tmp_path, tiny_corpus, tiny_encoder)
    assert [path.name for path in (tmp_path / "model-best").iterdir()] == ["meta.json"]


def test_an_emptied_folder_is_no_model_that_has_to_be_kept(tmp_path: Path) -> None:
    model, place = tmp_path / "unfinished-1/model-best", tmp_path / "model-best"
    model.mkdir(parents=True)
    place.mkdir()
    write_json(model / "provenance.json", {"inputs": {"seed": 1}})
    move_into_place(model, place)
    assert [path.name for path in tmp_path.iterdir()] == ["model-best"]
    assert read_json(place / "provenance.json")["inputs"] == {"seed": 1}


def test_after_ctrl_c_the_same_command_goes_on(
    tmp_path: Path,
    tiny_corpus: Path,
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
            train(CONFIG, tmp_path, tiny_corpus, tiny_encoder, epochs="4")
    assert not (tmp_path / "model-best").exists()
    train(CONFIG, tmp_path, tiny_corpus, tiny_encoder, epochs="4")
    told = words(capsys.readouterr().out)
    assert "was interrupted: going on from its best weights" in told and "start afresh" in told
    best = tmp_path / "model-best"
    assert read_json(best / "provenance.json")["resumed"] and spacy.load(best)("Mira left Turku .") is not None
    assert not list(tmp_path.glob("unfinished-*")) and "source" not in (best / "config.cfg").read_text()


@pytest.mark.slow
def test_after_a_kill_the_best_is_loadable_and_the_same_command_goes_on(
    tmp_path: Path, tiny_corpus: Path, tiny_encoder: Path
) -> None:
    arguments = command(tmp_path / "run", tiny_corpus, tiny_encoder, "--epochs", "40")
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
    assert read_json(tmp_path / "run" / "model-best" / "provenance.json")["resumed"] and not unfinished.exists()


def write_checkpoint(folder: Path, names: list[str], when: int) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(str(when))
        os.utime(path, ns=(when, when))


FILES = ["config.cfg", "meta.json", "ner/model", "transformer/model", "vocab/strings.json"]


@settings(max_examples=100)
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


def test_a_corpus_without_parts_of_speech_trains_no_tagger(tmp_path: Path, tiny_encoder: Path) -> None:
    convert(write_corpus(tmp_path / "assets", "Mira B-person\nsleeps O\n\nTurku B-city\n"), tmp_path / "corpus")
    train(CONFIG, tmp_path / "run", tmp_path / "corpus", tiny_encoder, epochs="1")
    nlp = spacy.load(tmp_path / "run" / "model-best")
    assert nlp.pipe_names == ["transformer", "tok2vec", "senter", "ner", "doc_cleaner"]
    assert set(nlp.pipe_labels["ner"]) == {"person", "city"}


def test_components_that_come_from_a_pipeline_cannot_be_set(
    tmp_path: Path, tiny_corpus: Path, tiny_encoder: Path
) -> None:
    setting = "components.senter.model.grad_factor=0.5"
    with pytest.raises(StepError, match=r"nothing can set components\.senter"):
        train(CONFIG, tmp_path / "more", tiny_corpus, tiny_encoder, start=tmp_path, overrides=setting)


@pytest.mark.slow
def test_what_goes_on_from_a_pipeline_without_a_tagger_gets_one_where_there_are_tags(
    tmp_path: Path, tiny_corpus: Path, tiny_encoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An interruption in between changes nothing: what is trained goes on from the checkpoint, not from the start."""
    convert(write_corpus(tmp_path / "assets", "Mira B-person\nsleeps O\n\nTurku B-city\n"), tmp_path / "corpus")
    train(CONFIG, tmp_path / "plain", tmp_path / "corpus", tiny_encoder, epochs="1")
    start = tmp_path / "plain/model-best"
    train(CONFIG, tmp_path / "same", tmp_path / "corpus", tiny_encoder, epochs="1", start=start)
    assert "tagger" not in spacy.load(tmp_path / "same/model-best").pipe_names
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(step, "calibrate", mock.Mock(side_effect=KeyboardInterrupt))
        train(CONFIG, tmp_path / "more", tiny_corpus, tiny_encoder, epochs="1", start=start)
    train(CONFIG, tmp_path / "more", tiny_corpus, tiny_encoder, epochs="1", start=start)
    nlp = spacy.load(tmp_path / "more/model-best")
    assert "tagger" in nlp.pipe_names and nlp.pipe_labels["ner"] == ["LOC", "PER", "city", "person"]
    assert read_json(tmp_path / "more/model-best/provenance.json")["resumed"]
    assert not list((tmp_path / "more").glob("unfinished-*"))
