from __future__ import annotations

import os
import statistics
from pathlib import Path
from typing import Any

import pytest

from benchmarks.contenders import ours, pipelines, spacy_transformers
from benchmarks.harness import Contender, Job, Unavailable
from benchmarks.speed import FIGURES, add_encoder_shares
from benchmarks.worker import SPEED
from common.errors import StepError
from common.figures import save_figures
from common.records import read_json, record_inputs, sha256
from common.wheels import newest_wheel
from tests.conftest import ROOT, Project, python, words


def test_the_reference_has_neither_our_forward_nor_our_windows(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    from spacy_transformers.layers.hf_wrapper import pt_forward

    models = []

    def keep(nlp: object, path: Path) -> Contender:
        models.append(dict(nlp.pipeline)["transformer"].model)  # type: ignore[attr-defined]
        return Contender(list, list)

    monkeypatch.setattr(pipelines, "annotate", keep)
    spacy_transformers.load(job)
    (model,) = models
    assert model.layers[0]._func is pt_forward
    assert model.attrs["get_spans"].keywords == {"window": 128, "stride": 96}
    assert not model.layers[0].shims[0]._mixed_precision
    assert model.layers[0].shims[0].model_cls.__module__.startswith("transformers.")


def test_a_dtype_that_the_machine_has_not_is_unavailable(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    import bert_ner  # noqa: F401 (registers what the pipeline names, which the installed wheel does itself)

    monkeypatch.setattr("torch.cpu.get_capabilities", dict)
    job.package = job.model
    with pytest.raises(Unavailable, match="this machine cannot"):
        ours.load(job, dtype="bfloat16")
    with pytest.raises(Unavailable, match="this machine cannot"):
        SPEED["encoder-int8"](job)


@pytest.mark.parametrize("name", ["spacy-transformers", "encoder-float32", "huggingface-8"])
def test_contenders_annotate(name: str, job: Job) -> None:
    contender = SPEED[name](job)
    assert contender.score(contender.work(contender.prepare())) is None


def test_the_share_of_the_bare_encoder_is_that_of_the_same_dtype() -> None:
    rates = {"default": 6, "float32": 2, "encoder-int8": 24, "encoder-float32": 4, "spacy-transformers": 1}
    results: dict[str, dict[str, Any]] = {name: {"words_per_second": {"median": rate}} for name, rate in rates.items()}
    add_encoder_shares(results | {"int8": {"unavailable": "so"}}, "int8")
    shares = {name: result["share_of_bare_encoder"] for name, result in results.items() if len(result) > 1}
    assert shares == {"default": 0.25, "float32": 0.5}


@pytest.mark.parametrize("rates", [(900, 12_000), (1_400, 1_500)])
def test_the_figure_has_a_labelled_bar_for_each_contender(rates: tuple[int, int], tmp_path: Path) -> None:
    scores = (0.9, None)
    results = {
        f"contender {rate}": {"words_per_second": {"median": rate}, "f1": f1}
        for rate, f1 in zip(rates, scores, strict=True)
    } | {"unable": {"unavailable": "so"}}
    save_figures(FIGURES, results, tmp_path)
    drawing = (tmp_path / "speed.svg").read_text("utf8")
    assert f">{rates[0]:,} (F1 90.0)</text>" in drawing and f">{rates[1]:,}</text>" in drawing
    assert f">contender {rates[1]}</text>" in drawing
    assert "$" not in drawing and "mathdefault" not in drawing and "unable" not in drawing


def test_the_newest_wheel_of_a_run_is_found_whatever_its_name(tmp_path: Path) -> None:
    with pytest.raises(StepError, match="holds no wheel"):
        newest_wheel(tmp_path)
    for seconds, name in ((20, "en_new-2.0.0"), (10, "en_old-1.0.0")):
        (tmp_path / name / "dist").mkdir(parents=True)
        (tmp_path / name / "dist" / f"{name}-py3-none-any.whl").touch()
        os.utime(tmp_path / name / "dist" / f"{name}-py3-none-any.whl", (seconds, seconds))
    assert newest_wheel(tmp_path).name == newest_wheel(tmp_path / "en_new-2.0.0/dist").name
    assert newest_wheel(tmp_path / "en_old-1.0.0").name == "en_old-1.0.0-py3-none-any.whl"


@pytest.mark.slow
def test_speed_from_end_to_end(project: Project, tmp_path: Path) -> None:
    metrics = tmp_path / "tiny"
    folders = ["packages/tiny", "packages/tiny/assembled", "corpus/tiny"]
    paths = [str(project.folder / folder) for folder in folders] + [str(project.encoder), str(metrics)]
    options = ["--only", "default,spacy-transformers", "--documents", "3", "--repetitions", "2", "--memory", "0.02"]
    done = python("-m", "benchmarks.speed", *paths, *options, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    record = read_json(metrics / "speed.json")
    assert (metrics / "speed.svg").exists()
    inputs = record["inputs"]
    assert inputs["wheel"] == sha256(newest_wheel(project.folder / "packages"))
    assert inputs["encoder"] == sha256(project.encoder)
    assert inputs["dev"] == sha256(project.folder / "corpus/tiny/dev.spacy")
    assert inputs["model"] == record_inputs(model=project.folder / "training/tiny/model-best")["model"]
    assert inputs["code"] == record_inputs(code=ROOT / "benchmarks/speed.py")["code"]
    assert list(record["contenders"]) == ["spacy-transformers", "default"]
    for result in record["contenders"].values():
        rates = [repetition["words"] / repetition["seconds"] for repetition in result["repetitions"]]
        assert len(rates) == 2 and result["words_per_second"]["median"] == pytest.approx(statistics.median(rates))
        assert result["peak_rss_mb"] > 100 and result["versions"]["spacy"]
    assert 0 <= record["contenders"]["default"]["f1"] <= 1
    assert record["words"] == record["contenders"]["default"]["repetitions"][0]["words"]
    assert all(seconds > 0 for seconds in record["starts"]["medians"].values())
    assert record["memory"][0]["peak_rss_mb"] > 100 and record["machine"]["threads"] >= 1
    assert "to spacy-transformers" in words(done.stdout)
