from __future__ import annotations

from pathlib import Path

import pytest
import spacy
from spacy.tokens import DocBin

from common.errors import StepError
from scripts.convert import convert
from scripts.debug import debug
from tests.conftest import ROOT, write_corpus

CONFIG = ROOT / "configs/bert.cfg"


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    convert(write_corpus(tmp_path / "assets"), tmp_path / "corpus")
    return tmp_path / "corpus"


def test_a_small_corpus_gets_advice_and_goes_on(
    corpus: Path, tiny_encoder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    debug(CONFIG, corpus, tiny_encoder)
    output = capsys.readouterr().out
    assert "2 training docs" in output and "Low number of examples to train a new pipeline (2)" in output


def test_an_error_in_the_config_stops(corpus: Path, tiny_encoder: Path, tmp_path: Path) -> None:
    config = tmp_path / "other.cfg"
    config.write_text(CONFIG.read_text("utf8").replace("bert_ner_v", "nothing_of_ours_v"), "utf8")
    with pytest.raises(StepError, match=r"other\.cfg: .*nothing_of_ours"):
        debug(config, corpus, tiny_encoder)
    config.write_text(CONFIG.read_text("utf8").replace("max_steps", "most_steps"), "utf8")
    with pytest.raises(SystemExit) as exit:
        debug(config, corpus, tiny_encoder)
    assert exit.value.code == 1


def test_a_corpus_from_which_nothing_can_be_learnt_stops(corpus: Path, tiny_encoder: Path) -> None:
    good = (corpus / "train.spacy").read_bytes()
    (corpus / "train.spacy").write_bytes(good[:-20])
    with pytest.raises(StepError, match=r"train\.spacy is damaged"):
        debug(CONFIG, corpus, tiny_encoder)
    for texts, words in (([], "holds no document"), (["Turku"], "marks no entity")):
        DocBin(docs=map(spacy.blank("en"), texts)).to_disk(corpus / "train.spacy")
        with pytest.raises(StepError, match=words):
            debug(CONFIG, corpus, tiny_encoder)
