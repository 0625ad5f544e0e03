from __future__ import annotations

import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from common import training
from common.errors import StepError
from common.published import DAGGER, Run, find_present, read_metrics
from common.records import read_json
from scripts.document import (
    END,
    LEGEND,
    document,
    insert,
    tabulate_overview,
    tabulate_performance,
    tabulate_results,
)
from tests.conftest import ROOT, Project

README = (ROOT / "README.md").read_text("utf8")
PAGES = ("README.md", "docs/results.md", "docs/performance.md", "docs/commands.md")


def reference_runs() -> list[Path]:
    commands = yaml.safe_load((ROOT / "project.yml").read_text("utf8"))["commands"]
    line = next(command["script"][0] for command in commands if command["name"] == "document")
    return [ROOT / path for path in shlex.split(line) if path.startswith("metrics/")]


@pytest.mark.skipif(
    sys.version_info[:2] != (3, 11),
    reason="the figures were measured with Python 3.11, and the digest of the same code is another one elsewhere",
)
def test_the_pages_are_as_document_writes_them(tmp_path: Path) -> None:
    """Neither figures nor code nor commands have changed since."""
    (tmp_path / "docs").mkdir()
    for page in PAGES:
        shutil.copy(ROOT / page, tmp_path / page)
    document(
        tmp_path / "README.md", tmp_path / "docs", ROOT / "project.yml", ROOT / "configs/bert.cfg", reference_runs()
    )
    for page in PAGES:
        assert (tmp_path / page).read_text("utf8") == (ROOT / page).read_text("utf8"), f"{page} is stale: make document"


def test_the_snippet_in_the_readme_shows_what_the_verified_wheel_gave() -> None:
    example = read_json(ROOT / "metrics" / "reference" / "conll2003-minilm" / "package.json")["example"]
    assert f'doc = nlp("{example["text"]}")' in README
    assert f"# {[tuple(entity) for entity in example['entities']]}" in README


def test_the_readme_is_short_and_its_links_and_those_of_docs_lead_somewhere() -> None:
    assert len(README.splitlines()) <= 130
    for page in (ROOT / "README.md", ROOT / "CHANGELOG.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")):
        for part in page.read_text("utf8").split("](")[1:]:
            link = part.partition(")")[0].partition("#")[0]
            assert not link or link.startswith("http") or (page.parent / link).exists(), f"{page.name}: {link}"


# Tables


def test_what_trains_is_identified_as_train_does(project: Project) -> None:
    """A run of today has no daggers."""
    present = find_present(ROOT / "project.yml", ROOT / "configs/bert.cfg")
    run = read_metrics(project.folder / "metrics" / "tiny", present)
    assert not run.stale
    tables = tabulate_results([run])
    assert DAGGER not in tables and LEGEND not in tables
    assert set(training.CODE) <= set((ROOT / "bert_ner").glob("*.py"))


def test_results_of_a_new_run(project: Project) -> None:
    folder = project.folder / "metrics" / "tiny"
    run = read_metrics(folder, find_present(ROOT / "project.yml", ROOT / "configs/bert.cfg"))
    test, evaluation, package = (read_json(folder / f"{name}.json") for name in ("test", "evaluation", "package"))
    tables = tabulate_results([run])
    shipped, conditions, *_ = (row.split(" | ") for row in tables.splitlines() if row.startswith("| `tiny` |"))
    assert shipped[:3] == ["| `tiny`", "sample", "tiny"] and shipped[5] == f"{100 * (test['ents_f'] or 0):.1f}"
    assert shipped[-1] == f"{package['bytes'] / 1e6:.0f} MB |"
    assert [float(cell) for cell in conditions[1:5]] == [
        pytest.approx(100 * evaluation["test"][name]["ents_f"], abs=0.05)
        for name in ("gold_sentences", "lower", "upper", "raw")
    ]
    assert "| `tiny` | 30 | actor |" in tables and " for 97% |" in tables
    assert f"| `tiny` | sample | tiny | {shipped[5]} | {shipped[6]} | – | – | – |" in tabulate_overview([run])


def copy_run(folder: Path) -> dict[str, dict[str, Any]]:
    return {path.stem: read_json(path) for path in folder.glob("*.json")}


def test_what_was_asked_of_the_scores_and_how_much_was_marked_are_read_from_the_records() -> None:
    records = copy_run(reference_runs()[1])
    records["evaluation"]["test"]["calibration"]["min_precision"] = 0.955
    records["concepts"]["sentences"] = {"dev": 3, "test": 4}
    tables = tabulate_results([Run("some", records, set())])
    assert " for 95.5% |" in tables and "| `some` | 4 | actor |" in tables and DAGGER not in tables


def test_each_stale_figure_has_a_dagger_and_no_other_one() -> None:
    records = copy_run(reference_runs()[1])
    tables = tabulate_results([Run("new", records, set()), Run("old", records, {"test"})])
    shipped, conditions, labels, concepts = (table.strip() for table in tables.split("\n\n|") if table)
    new, old = (next(row for row in shipped.splitlines() if f"`{name}`" in row).split(" | ") for name in ("new", "old"))
    f1 = f"{100 * records['test']['ents_f']:.1f}"
    assert new[5] == f1 and old[5] == f1 + DAGGER and old[6] == new[6], "the others come from other records"
    assert LEGEND in shipped and LEGEND in labels and LEGEND not in conditions and LEGEND not in concepts
    assert all((DAGGER in row) == ("`old`" in row) for row in labels.splitlines()[2:-2])


def result(words_per_second: float, **more: object) -> dict[str, object]:
    rates = {"median": words_per_second, "min": words_per_second - 10, "max": words_per_second + 1000}
    return {"repetitions": [{}, {}], "words_per_second": rates, "f1": None, "peak_rss_mb": 900, **more}


def benchmarked() -> dict[str, dict[str, Any]]:
    machine = {"cpus": 2, "cpu": "Some"}
    return {
        "speed": {
            "machine": machine,
            "words": 2000,
            "reference": "other",
            "default_dtype": "int8",
            "contenders": {
                "other": result(1000, ratio_to_other=1.0, f1=0.5),
                "default": result(2500, ratio_to_other=2.5, share_of_bare_encoder=0.7),
                "bfloat16": {"unavailable": "dtype"},
                "flair": result(1234, ratio_to_other=1.234),
            },
            "starts": {
                "medians": {"load_after_imports": 0.61, "process_to_first_entity": 4},
                "sentence": {"p50": 0.004, "p99": 0.009},
            },
            "memory": [{"megabytes": 1.0, "peak_rss_mb": 1200.4}],
        },
        "training": {
            "machine": {"cpus": 4, "cpu": "Other"},
            "contenders": {"ours": result(4000), "explosion": result(1000)},
        },
        "training-full": {"epochs": 3, "contenders": {"ours": {"f1": 0.912}, "explosion": {"f1": 0.812}}},
        "service": {
            "machine": machine,
            "clients": 50,
            "seconds": 60,
            "answers_per_second": 80.2,
            "seconds_p50": 0.1,
            "seconds_p95": 0.25,
            "statuses": {"200": 4000, "429": 1200, "500": 1},
            "rss_mb": {"before": 900, "after": 905},
        },
        "corpora": {
            "machine": machine,
            "documents": 50,
            "words": 6000,
            "memory": "pss",
            "default_dtype": "int8",
            "engines": {
                "local-1": {"words_per_second": 1900.0, "share": 0.95, "start": 8.25, "peak_mb": 700},
                "ray-1": {"unavailable": "ray is not installed"},
            },
            "stream": {
                "megabytes": [5.0, 20.0],
                "nlp.pipe": {"mb_per_second": 1.5, "peak_mb": [200, 210]},
                "local-1": {"mb_per_second": None, "peak_mb": [300, 310]},
            },
            "cost": {
                "documents": 10**9,
                "checks": {"local": {"efficiency": 0.9, "error": -0.051}},
                "estimates": {"local": [{"machines": 1, "hours": 20_000.4}, {"machines": 10, "hours": 2000.1}]},
            },
        },
    }


def test_a_benchmark_becomes_tables() -> None:
    tables = tabulate_performance([Run("some", benchmarked(), set())])
    assert "| default | 2,500 (2,490 to 3,500) | 2.50 | 0.70 | – |" in tables and "| 1.00 | – | 50.0 |" in tables
    assert "| bfloat16 | this machine cannot | – |" in tables and "| 4.0 ms and 9.0 ms |" in tables
    assert "on 2 cores of Some" in tables and "| `some`, training on 4 cores of Other |" in tables
    assert "a stream of 1 MB of text | 1,200 MB |" in tables
    assert "| explosion | 1,000 (990 to 2,000) | 0.25 | 900 MB | 81.2 |" in tables
    assert "dev F1 after 3 epochs of the whole corpus" in tables
    assert "| answers per second | 80 |" in tables and "| 100 ms and 250 ms |" in tables
    assert "| local-1 | 1,900 | 95% | 8.2 s | 700 MB |" in tables and "| ray is not installed |" in tables
    assert "| local-1 | too little text to tell | 300 MB | 310 MB |" in tables and "6,000 words by" in tables
    assert "| 1,000,000,000 documents | 1 machine | 10 machines | efficiency | error of the law |" in tables
    assert "| local | 20,000 h | 2,000 h | 90% | -5% |" in tables
    assert "(429) | 1,200 |" in tables and "| errors | 1 |" in tables and "| 900 MB and 905 MB |" in tables
    assert DAGGER not in tables


def test_a_benchmark_of_other_code_has_daggers_and_a_run_without_one_has_no_tables() -> None:
    tables = tabulate_performance([Run("some", benchmarked(), {"speed", "training-full"})])
    assert "| 2,500 (2,490 to 3,500)† | 2.50† | 0.70† | – |" in tables and "| this machine cannot† | – |" in tables
    assert "| 900 MB | 81.2† |" in tables and "| answers per second | 80 |" in tables
    assert tables.count(LEGEND) == 3, "speed, starts, training"
    assert tabulate_performance([Run("some", {}, set())]) == ""


def test_the_table_of_the_readme_compares_with_others_by_what_was_measured() -> None:
    records = copy_run(reference_runs()[0]) | benchmarked()
    records["ablation"] = {"summary": {"usual fine-tune": {"test": {"gold_sentences": {"mean": 0.8765}}}}}
    text = tabulate_overview([Run("some", records, {"ablation"})])
    assert "| 87.6† | 2,500 | 1,000 |" in text and text.endswith(LEGEND)
    assert (
        "2 cores of Some, dtype int8. With the same encoder and an untrained head, Flair annotates 1,234 words/s."
        in text
    )
    assert "reaches 81.2 dev F1, and ours 91.2." in text
    for name in ("training", "training-full"):
        del records[name]
    assert "explosion" not in tabulate_overview([Run("some", records, set())])


def test_a_curve_becomes_a_figure_and_a_table() -> None:
    f1 = {"mean": 0.5, "lowest": 0.4, "highest": 0.6}
    usual: dict[str, Any] = {"documents": 10, "draws": 3, "test": f1}
    calibration = {"error": f1, "sure": 3, "precision": 0.97, "recall": 0.7}
    ours = usual | {"documents": 5, "usual_needs": 10.0, "shipped": f1, "calibration": calibration}
    curve = {"summary": {"ours": [ours], "usual fine-tune": [usual]}, "sure_from": 5, "min_precision": 0.97}
    records = copy_run(reference_runs()[1]) | {"curve": curve | {"captions": {"curve": "F1 over documents."}}}
    text = tabulate_results([Run("some", records, set())])
    assert "![F1 over documents.](../metrics/reference/some/curve.svg)" in text and DAGGER not in text
    row = "| 5 | 50.0 (40.0 to 60.0) | – | at most 10 | 50.0 (40.0 to 60.0) | 0.500 | 97.0 and 70.0 |"
    assert row in text and "mean of 3 draws (lowest to highest). From 5 training documents on, dev" in text
    marked = tabulate_results([Run("some", records, {"curve"})])
    assert "| 5 | 50.0 (40.0 to 60.0)† | – | at most 10† |" in marked and marked.count(LEGEND) == 1


def test_effort_and_corruption_become_tables() -> None:
    f1 = {"mean": 0.5, "lowest": 0.4, "highest": 0.6}
    point: dict[str, Any] = {"documents": 25, "draws": 3, "words": 5000, "actions": 0.5, "from_nothing": 2.25}
    point |= dict.fromkeys(("dev", "test", "shipped"), f1)
    saved = {"random": 0.7, "select": 0.65}
    needed: dict[str, Any] = {"dev": 130.4, "test": None}
    effort = {
        "summary": {name: [point] for name in saved},
        "saved": saved,
        "start": 50,
        "target": 200,
        "needed": needed,
        "needed_words": {"dev": 0.7, "test": None},
    }
    row = {"corrupted": 4, "found": 3, "findings": 4, "precision": 0.75}
    corrupt = {"share": 0.05, "first": 1175, "folds": 3, "precision": 0.75, "kinds": {"type": row, "all": row}}
    records = copy_run(reference_runs()[1]) | {"corrupt": corrupt}
    records["effort"] = effort | {"captions": {"effort": "Keys and clicks."}}
    text = tabulate_results([Run("some", records, set())])
    assert "![Keys and clicks.](../metrics/reference/some/effort.svg)" in text and DAGGER not in text
    cells = "5,000 | 50.0 (40.0 to 60.0) | 0.50 (2.25 from nothing)"
    assert f"| 25 | {cells} | {cells} |" in text and "mean of 3 draws" in text
    assert "save 70.0% (random) and 65.0% (select)" in text
    assert "130 (dev, 70.0% of the words) and more than 200 (test) documents" in text
    assert "| type | 4 | 75.0 | 4 | 75.0 |" in text and "first 1,175 findings of `audit`" in text
    marked = tabulate_results([Run("some", records, {"corrupt"})])
    assert "| all | 4† | 75.0† | 4† | 75.0† |" in marked and f"| 25 | {cells} |" in marked


def test_synthetic_texts_and_going_on_become_tables() -> None:
    score = {"f1": 0.8, "more": 0.012, "interval": [-0.01, 0.03], "draws": [0.012]}
    synthetic = {"summary": [{"documents": 50, "contender": "recombine", "draws": 1, "labels": {"all": score}}]}
    row = {"kind": "a new label", "documents": 10, "way": "rehearsal", "draws": 1, "before": 0.9, "after": 0.895}
    continuing = {"label": "MISC", "whole": {"LOC": 0.9, "MISC": 0.8}, "summary": [row | {"new": 0.6}]}
    records = copy_run(reference_runs()[1]) | {"synthetic": synthetic, "continuing": continuing}
    text = tabulate_results([Run("some", records, {"synthetic"})])
    assert "| 50 | recombine | 1 | 80.0 (+1.2: -1.0 to +3.0)† |" in text
    assert "| a new label | 10 | rehearsal | 90.0 | 89.5 | 60.0 | – | – |" in text
    assert (
        "trained without MISC. Trained from the encoder on all documents, the pipeline has F1: LOC 90.0, MISC 80.0"
        in text
    )


def test_a_page_without_marks_is_refused(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"{END} without a start")
    with pytest.raises(StepError, match="no place for tables"):
        insert(page, "")


def test_nothing_is_written_if_one_page_has_no_place(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    for page in PAGES:
        (tmp_path / page).write_text((ROOT / page).read_text("utf8").replace("2", "3"), "utf8")
    (tmp_path / "docs/commands.md").write_text("# Commands")
    before = {page: (tmp_path / page).read_text("utf8") for page in PAGES}
    with pytest.raises(StepError, match=r"commands\.md has no place"):
        document(
            tmp_path / "README.md", tmp_path / "docs", ROOT / "project.yml", ROOT / "configs/bert.cfg", reference_runs()
        )
    assert before == {page: (tmp_path / page).read_text("utf8") for page in PAGES}
