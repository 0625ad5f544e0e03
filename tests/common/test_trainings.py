from __future__ import annotations

from pathlib import Path

import pytest

from common.models import MIXED, find_trained
from common.records import read_json
from common.space import SHARE
from common.training import prepare
from common.trainings import Trainings, read_evaluations
from tests.conftest import ROOT

CONFIG = ROOT / "configs/bert.cfg"


def create_trainings(
    tmp_path: Path, corpus: Path, encoder: Path, train_on: str = "train", share: str = "0"
) -> Trainings:
    given = {"epochs": "1", "learn_rate": "auto", "batch_words": "auto", SHARE: share}
    folder = tmp_path / "training/tiny"
    trainings = Trainings(CONFIG, folder, folder.with_name("tiny-best"), corpus, encoder, train_on, -1, given)
    trainings.store.mkdir(parents=True)
    return trainings


def test_a_line_that_is_not_whole_yet_is_not_read(tmp_path: Path) -> None:
    curves = tmp_path / "curves.jsonl"
    assert read_evaluations(curves, 40) == []
    curves.write_text('{"step": 0, "dev": {"ents_f": 0.1}}\n{"step": 5, "dev": {"ents_f": 0.5}}\n{"step": 10, "dev"')
    assert read_evaluations(curves, 40) == [(12, 0.5)]


def test_a_share_that_is_not_the_run_s_own_is_mixed_aside(
    tmp_path: Path, synthesized: Path, tiny_encoder: Path
) -> None:
    trainings = create_trainings(tmp_path, synthesized, tiny_encoder, MIXED, "0.3")
    for settings, train_on in (({}, MIXED), ({SHARE: "0.30"}, MIXED), ({SHARE: "0"}, "train")):
        assert trainings.find_options(settings, 0)["train_on"] == train_on
        with trainings.find_corpus(settings) as corpus:
            assert corpus == synthesized
    options = trainings.find_options({SHARE: "0.5", "training.dropout": "0.2"}, 0)
    assert options["train_on"] == MIXED and options["overrides"] == "training.dropout=0.2"
    with trainings.find_corpus({SHARE: "0.5"}) as corpus:
        assert {path.name for path in corpus.iterdir()} == {"train.spacy", "dev.spacy", "mixed.spacy", "mixed.json"}
        assert read_json(corpus / "mixed.json")["inputs"]["share"] >= 0.5
    assert not corpus.exists() and not (synthesized / "mixed.spacy").exists(), "the run's own corpus stays as it is"
    own = create_trainings(tmp_path / "other", synthesized, tiny_encoder, "taught")
    assert own.find_options({}, 0)["train_on"] == "taught"


@pytest.mark.slow
def test_what_is_trained_with_a_share_is_found_by_a_run_that_has_it(
    tmp_path: Path, synthesized: Path, tiny_encoder: Path
) -> None:
    """With a real training, in another folder than the run's."""
    trainings = create_trainings(tmp_path, synthesized, tiny_encoder)
    settings = {SHARE: "0.4"}
    with trainings.train(trainings.plan(settings, 0), lambda *_: None) as result:
        trainings.plan(settings, 0).training.keep(trainings.target)
    with trainings.find_corpus(settings) as corpus:
        inputs, _ = prepare(CONFIG, corpus, tiny_encoder, epochs="1", train_on=MIXED)
    model = find_trained(trainings.target, inputs)
    assert model and inputs[MIXED]["share"] >= 0.4 and result.seconds > 0
    assert not list(trainings.store.glob("corpus-*"))
