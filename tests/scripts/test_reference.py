from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import spacy
from spacy.tokens import DocBin

from common.errors import StepError
from common.records import digest, read_json, write_json
from scripts.reference import NEEDED, reference
from tests.conftest import Project, words

TEXT = "Mira Solberg left Turku on Monday , and nobody in the harbour saw her again ."
MODEL = {"code": "0", "config": "1"}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A folder with the metrics and the corpus of a run, and with what quotes it."""
    metrics, corpus = tmp_path / "metrics" / "mine", tmp_path / "corpus" / "mine"
    for folder in (metrics / "figures", corpus):
        folder.mkdir(parents=True)
    doc = spacy.tokens.Doc(spacy.blank("en").vocab, words=TEXT.split())
    for split in ("train", "dev", "test"):
        DocBin(docs=[doc]).to_disk(corpus / f"{split}.spacy")
    for name in NEEDED:
        write_json(metrics / name, {"what": name})
    write_json(metrics / "evaluation.json", {"training": {"inputs": MODEL}})
    write_json(metrics / "package.json", {"inputs": {"model": digest(MODEL)}})
    write_json(metrics / "speed.json", {"words": 3, "machine": {"instructions": "avx2"}})
    write_json(metrics / "curve.json", {"summary": {"usual fine-tune": []}})
    for name in ("speed.svg", "curve.svg"):
        (metrics / name).write_text("<svg/>")
    write_json(metrics / "analysis-examples.json", {"missed": [TEXT]})
    for name in ("report.html", "figures/errors.svg", "predictions.spacy"):
        (metrics / name).write_text(TEXT)
    return tmp_path


def publish(run: Path) -> set[str]:
    folder = run / "metrics/reference/mine"
    reference(run / "metrics/mine", run / "corpus/mine", folder)
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_figures_are_copied_and_nothing_that_quotes(run: Path) -> None:
    assert publish(run) == {*NEEDED, "curve.json", "curve.svg", "avx2/speed.json", "avx2/speed.svg"}
    assert read_json(run / "metrics/reference/mine/corpus.json") == {"what": "corpus.json"}


def test_figures_that_were_published_are_replaced_and_other_benchmarks_stay(run: Path) -> None:
    published = run / "metrics/reference/mine"
    for folder in ("avx2", "bfloat16"):
        (published / folder).mkdir(parents=True)
        write_json(published / folder / "speed.json", {"words": 1})
    write_json(published / "ablation.json", {"of": "earlier"})
    assert "ablation.json" in publish(run)
    assert read_json(published / "avx2/speed.json")["words"] == 3
    assert read_json(published / "bfloat16/speed.json") == {"words": 1}, "of another kind of processor"
    assert read_json(published / "ablation.json") == {"of": "earlier"}


def test_what_quotes_the_corpus_is_refused(run: Path) -> None:
    write_json(run / "metrics/mine/analysis.json", {"errors": {"most": TEXT}})
    with pytest.raises(StepError, match=r"analysis\.json quotes the corpus: \w+"):
        publish(run)
    assert not (run / "metrics/reference").exists()


@pytest.mark.parametrize("package", [{"inputs": {"model": "other"}}, {"inputs": {}}, {}])
def test_scores_and_a_wheel_of_different_models_are_refused(run: Path, package: dict[str, Any]) -> None:
    write_json(run / "metrics/mine/package.json", package | {"bytes": 1})
    with pytest.raises(StepError, match=f"scores of the model {digest(MODEL)}, but a wheel of (other|an unknown one)"):
        publish(run)
    assert not (run / "metrics/reference").exists()


@pytest.mark.parametrize("name", NEEDED)
def test_a_run_without_results_is_refused(run: Path, name: str) -> None:
    (run / "metrics/mine" / name).unlink()
    with pytest.raises(StepError, match=f"lacks {name}"):
        publish(run)


def test_what_is_published_is_no_run(run: Path) -> None:
    shutil.copytree(run / "metrics/mine", run / "metrics/reference")
    with pytest.raises(StepError, match="the name reference is reserved"):
        reference(run / "metrics/reference", run / "corpus/mine", run / "metrics/reference/mine")


def test_a_whole_run_can_be_published(changeable: Project) -> None:
    done = changeable.run("reference")
    assert done.returncode == 0, done.stdout + done.stderr
    published = changeable.folder / "metrics/reference/tiny"
    assert {path.name for path in published.iterdir()} == set(NEEDED)
    assert "make document" in words(done.stdout)
    again = changeable.run("reference")
    assert "Skipping 'reference': nothing changed" in again.stdout
