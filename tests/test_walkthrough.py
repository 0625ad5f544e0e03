from __future__ import annotations

import nbformat
import pytest
from nbclient import NotebookClient

from tests.conftest import ROOT, Project, guard

NOTEBOOK = ROOT / "notebooks/walkthrough.ipynb"


def test_the_notebook_has_no_outputs_in_git() -> None:
    for cell in nbformat.read(NOTEBOOK, as_version=4).cells:
        assert not cell.get("outputs") and cell.get("execution_count") is None


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_the_notebook_runs_from_the_corpus_to_a_prediction(changeable: Project) -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    settings = next(cell for cell in notebook.cells if cell.cell_type == "code")
    assert settings.source.splitlines()[-1].startswith("SETTINGS = ")
    values = {"run": "tiny", "source": "sample", "encoder": str(changeable.encoder), "epochs": "1"}
    settings.source = f"SETTINGS = {values}"
    folder = {"metadata": {"path": str(changeable.folder)}}
    NotebookClient(notebook, timeout=int(guard(60)), kernel_name="python3", resources=folder).execute()
    shown = [
        str(output.get("data", {}).get("text/plain", "")) + str(output.get("text", ""))
        for cell in notebook.cells
        for output in cell.get("outputs", [])
    ]
    figures = [output for cell in notebook.cells for output in cell.get("outputs", []) if "SVG" in str(output)]
    assert len(figures) >= 5
    assert any("probability" in text for text in shown), "masked words"
    assert any("model-best" in text for text in shown), "experiments"
