"""The corpus is tests.conftest.CORPUS, whose second document is one sentence: Kenya beat Peru Malta twice."""

from __future__ import annotations

import re
import shutil
import zipfile
from pathlib import Path
from typing import Any

import pytest

from common.errors import StepError
from common.quotes import check_quotes, check_sentences
from common.records import write_json


@pytest.mark.parametrize(
    "quote",
    [
        "So Kenya beat Peru , Malta twice .",
        {"examples": [{"before": "Kenya", "text": "Mira Solberg left Turku. Oslo, 2031"}]},
        ["KENYA", "BEAT", "PERU", "MALTA", "TWICE"],
        {"kenya beat peru malta twice": 1},
        "Kenya beat 12 Peru\nMalta twice",
    ],
    ids=["tokens", "natural text, two sentences", "tokens in capitals", "a key", "with a number and a line break"],
)
def test_five_words_in_a_row_are_a_quote(tmp_path: Path, tiny_corpus: Path, quote: Any) -> None:
    write_json(tmp_path / "analysis.json", {"errors": {"most": quote}})
    with pytest.raises(StepError, match=r"analysis\.json quotes the corpus: (kenya|mira) \w+"):
        check_quotes([tmp_path / "analysis.json"], tiny_corpus)


def test_a_figure_is_looked_through_too(tmp_path: Path, tiny_corpus: Path) -> None:
    (tmp_path / "speed.svg").write_text("<svg><text>Kenya beat Peru Malta twice</text></svg>")
    with pytest.raises(StepError, match=r"speed\.svg quotes"):
        check_quotes([tmp_path / "speed.svg"], tiny_corpus)


def test_names_labels_and_numbers_are_no_quotes(tmp_path: Path, tiny_corpus: Path) -> None:
    figures = {"name": "Kenya beat Peru Malta", "labels": {"PER": [1, 2], "Turku": 3}, "text": "twice"}
    write_json(tmp_path / "analysis.json", figures)
    check_quotes([tmp_path / "analysis.json"], tiny_corpus)


@pytest.mark.parametrize(
    ("name", "text", "quoted"),
    [
        ("README.md", "In the corpus:\nKENYA beat\n  Peru Malta (twice)!", True),
        ("meta.json", '{"description":"Kenya beat\\nPeru, Malta twice"}', True),
        ("concepts/patterns", '{"pattern": [["Kenya", "beat", "Peru", "Malta", "twice"]]}', True),
        ("vocab/strings.json", '[\n"a",\n"Kenya beat Peru, Malta twice",\n"b"]', True),
        ("vocab/strings.json", '["Kenya",\n"beat",\n"Peru",\n"Malta",\n"twice"]', False),
        ("README.md", "Kenya beat Peru. Mira Solberg left Turku. OSLO 2031-02-07", False),
        ("ner/model", "\udcff Kenya beat Peru, Malta twice", False),
    ],
    ids=["card", "an escape", "rules", "an entry", "words", "short or half", "numbers"],
)
def test_a_sentence_of_the_corpus_is_refused(
    tmp_path: Path, tiny_corpus: Path, name: str, text: str, quoted: bool
) -> None:
    folder = tmp_path / "folder"
    (folder / name).parent.mkdir(parents=True)
    (folder / name).write_bytes(text.encode("utf8", "surrogateescape"))
    with zipfile.ZipFile(tmp_path / "wheel.whl", "w") as wheel:
        wheel.write(folder / name, name)
    (tmp_path / "wheels").mkdir()
    shutil.move(tmp_path / "wheel.whl", tmp_path / "wheels")
    for where, place in ((folder, name), (tmp_path / "wheels", f"wheel.whl, {name}")):
        if quoted:
            with pytest.raises(StepError, match=f"^{re.escape(place)} quotes the corpus: kenya beat peru malta twice"):
                check_sentences(where, tiny_corpus)
        else:
            check_sentences(where, tiny_corpus)
