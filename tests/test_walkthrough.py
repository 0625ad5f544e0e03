from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

from common.alignment import align, create_reader
from common.annotations import Document, Task
from common.formats import Options
from common.formats.known import FORMATS
from common.store import STORE, Store
from common.texts import find_sources, read_documents
from tests.conftest import ROOT, Project, copy_project, guard

NOTEBOOKS = ROOT / "notebooks"
CONSERVATION = ROOT / "assets/conservation"
QUIET = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")


def execute(name: str, project: Path, /, **settings: str) -> list[Any]:
    """Run a notebook in a project, with settings in the place of some of its own, and return its outputs."""
    notebook = nbformat.read(NOTEBOOKS / name, as_version=4)
    cell = next(cell for cell in notebook.cells if cell.cell_type == "code")
    cell.source += f"\nSETTINGS |= {settings}"
    folder = {"metadata": {"path": str(project)}}
    NotebookClient(notebook, timeout=int(guard(180)), kernel_name="python3", resources=folder).execute()
    return [output for cell in notebook.cells for output in cell.get("outputs", [])]


def text_of(outputs: list[Any]) -> str:
    return "\n".join(str(one.get("data", {}).get("text/plain", "")) + str(one.get("text", "")) for one in outputs)


@pytest.mark.parametrize("path", sorted(NOTEBOOKS.glob("*.ipynb")), ids=lambda path: path.stem)
def test_a_notebook_has_no_outputs_in_git(path: Path) -> None:
    for cell in nbformat.read(path, as_version=4).cells:
        assert not cell.get("outputs") and cell.get("execution_count") is None


@pytest.mark.slow
@QUIET
def test_the_notebook_runs_from_the_corpus_to_a_prediction(changeable: Project) -> None:
    outputs = execute(
        "walkthrough.ipynb", changeable.folder, run="tiny", encoder=str(changeable.encoder), epochs="1", name="bert_ner"
    )
    assert len([output for output in outputs if "SVG" in str(output)]) >= 5
    assert "probability" in text_of(outputs), "masked words"
    assert "model-best" in text_of(outputs), "experiments"


@pytest.mark.slow
@QUIET
def test_the_notebook_runs_from_texts_to_an_installed_wheel(
    tiny_encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its texts, list of terms and annotations are those of the project; the encoder has learnt nothing before."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))  # where the notebook leaves the wheel installed
    project = copy_project(tmp_path / "project")
    shutil.copytree(CONSERVATION, project / "assets/conservation")
    outputs = execute("annotation.ipynb", project, encoder=str(tiny_encoder), epochs="1", learn_rate="0.01")
    tasks = Store(project / "annotate/mine" / STORE).tasks()
    assert [len(task.annotations) for task in tasks] == [1] * 30
    assert sum(task.document.split == "test" for task in tasks) == 6
    assert (project / "packages/mine/en_my_ner-1.0.0/dist/en_my_ner-1.0.0-py3-none-any.whl").exists()
    assert "METHOD" in text_of(outputs) and "SUBSTANCE" in text_of(outputs)
    assert any("displacy" in str(output) or "entities" in str(output) for output in outputs)


def test_what_is_marked_in_the_texts_of_the_walkthrough_stands_there() -> None:
    """As they say of themselves: thirty texts, two labels, and by ids that `gather` gives."""
    sources, _ = find_sources(str(CONSERVATION / "texts"))
    documents = [document for source in sources for document in read_documents(source)]
    known = {document.id: Task(document=document) for document in documents if isinstance(document, Document)}
    entries = list(FORMATS["brat"].read(CONSERVATION / "annotated", known, Options(annotator="ada", approved=True)))
    assert len(known) == 30 and {entry.task.document.id for entry in entries} == known.keys()
    assert not [finding for entry in entries for finding in entry.findings]
    spans = [span for entry in entries for span in entry.task.annotations[0].spans]
    assert Counter(span.label for span in spans) == {"SUBSTANCE": 136, "METHOD": 51}
    nlp = create_reader()
    for entry in entries:
        aligned = align(nlp, entry.task.document.text, entry.task.annotations[0].spans)
        assert not aligned.cut and not aligned.overlapping, entry.place
