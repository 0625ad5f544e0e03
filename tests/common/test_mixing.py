from __future__ import annotations

from pathlib import Path

import pytest

from common.corpora import read_docs
from common.errors import StepError
from common.mixing import check_mixed, find_highest_share, read_texts, write_mixed
from common.models import find_mixed
from common.records import read_json, sha256, write_json


def test_the_same_share_of_the_same_texts_gives_the_same_bytes(tmp_path: Path, synthesized: Path) -> None:
    folders = [tmp_path / name for name in ("one", "two", "three")]
    for folder, share in zip(folders, (0.2, 0.2, 0.5), strict=True):
        folder.mkdir()
        reached = write_mixed(synthesized, share, folder)
        assert read_json(folder / "mixed.json")["inputs"] == {"share": reached, **read_texts(synthesized).inputs}
        assert share <= reached < share + 0.2
    one, two, three = (sha256(folder / "mixed.spacy") for folder in folders)
    assert one == two != three
    (folders[0] / "train.spacy").write_bytes((synthesized / "train.spacy").read_bytes())
    assert find_mixed(folders[0])["mixed"]["method"] == "recombine", "train knows what it learns from"


def test_texts_of_another_share_than_the_run_wants_now_are_not_trained_on(synthesized: Path) -> None:
    check_mixed(synthesized, 0.3, "mixed")  # that there are none, train says
    write_mixed(synthesized, 0.3, synthesized)
    check_mixed(synthesized, 0.3, "mixed")
    check_mixed(synthesized, 0, "train")
    with pytest.raises(StepError, match=r"mixed for another synthetic_share than 0\.5") as error:
        check_mixed(synthesized, 0.5, "mixed")
    assert "make synthesize RUN=tiny" in error.value.remedy
    with pytest.raises(StepError, match=r"trains on train, and its synthetic_share is 0\.3"):
        check_mixed(synthesized, 0.3, "train")


def test_the_highest_share_takes_all_texts(tmp_path: Path, synthesized: Path) -> None:
    assert write_mixed(synthesized, 0.99, tmp_path) == pytest.approx(find_highest_share(synthesized))
    mixed = read_docs(tmp_path / "mixed.spacy")
    assert len(mixed) == len(read_docs(synthesized / "train.spacy")) + len(read_docs(synthesized / "synthetic.spacy"))


def test_texts_that_are_missing_or_of_another_corpus_are_not_mixed(tmp_path: Path, synthesized: Path) -> None:
    record = read_json(synthesized / "synthetic.json")
    write_json(synthesized / "synthetic.json", record | {"inputs": record["inputs"] | {"train": "another"}})
    with pytest.raises(StepError, match=r"no synthetic\.spacy that was made from its present train") as error:
        write_mixed(synthesized, 0.3, tmp_path)
    assert "make synthesize RUN=tiny" in error.value.remedy
    write_json(synthesized / "synthetic.json", record)
    (synthesized / "synthetic.spacy").unlink()
    with pytest.raises(StepError, match=r"no synthetic\.spacy"):
        find_highest_share(synthesized)
