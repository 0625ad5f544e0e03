from __future__ import annotations

import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, Literal

import pytest
import spacy
import srsly
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser
from spacy.tokens import DocBin, Span

from common.errors import StepError
from common.records import SPLITS, read_json, write_json
from scripts.report import report
from tests.conftest import ROOT, Project, words

TEMPLATE = ROOT / "scripts/report.html"
VOID = {"meta", "img", "br", "link", "hr"}


class Page(HTMLParser):
    """What a page has: its elements, that they close, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture
def metrics(project: Project, tmp_path: Path) -> Path:
    return Path(shutil.copytree(project.folder / "metrics/tiny", tmp_path / "tiny"))


def test_the_report_is_whole_and_needs_no_network(project: Project) -> None:
    text = (project.folder / "metrics/tiny/report.html").read_text("utf8")
    page = Page(text)
    assert not page.open and len(text.encode()) < 5e6
    for tag, attrs in page.elements:
        assert tag not in ("script", "link", "iframe") and not any(name.startswith("on") for name in attrs)
        for name in ("src", "href"):
            assert (attrs.get(name) or "#").startswith(("#", "data:image/svg+xml;base64,"))
        assert tag != "img" or attrs["alt"]
    ids = [attrs["id"] for _, attrs in page.elements if "id" in attrs]
    assert len(ids) == len(set(ids))
    for _, attrs in page.elements:
        assert (attrs.get("href") or "#data")[1:] in ids
    tokens = read_json(project.folder / "metrics/tiny/corpus.json")["splits"]["test"]["tokens"]
    assert f"{tokens:,}" in page.text and "At each evaluation" in page.text


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(("width", "height"), [(1280, 900), (390, 844)])
def test_the_report_in_a_browser(
    project: Project, browser: Browser, tmp_path: Path, scheme: Literal["light", "dark"], width: int, height: int
) -> None:
    page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
    complaints: list[str] = []
    requests: list[str] = []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda request: requests.append(request.url.partition(":")[0]))
    page.goto((project.folder / "metrics/tiny/report.html").as_uri())
    assert page.locator("h2").count() == 6 and page.locator("mark").first.is_visible()
    assert page.evaluate("[...document.images].every(image => image.complete && image.naturalWidth > 0)")
    assert page.evaluate("document.documentElement.scrollWidth") <= width, "only tables scroll sideways"
    assert page.screenshot(path=tmp_path / "report.png", full_page=True)
    response = Axe().run(page).response
    assert response["passes"], "it looked at something"
    assert not [found["help"] for found in response["violations"] if found["impact"] in ("serious", "critical")]
    assert not complaints and set(requests) <= {"file", "data"}
    assert page.pdf().startswith(b"%PDF")
    page.close()


def test_text_of_the_corpus_cannot_act(metrics: Path) -> None:
    evil = "<script>alert(1)</script><img src=x onerror=alert(1)>"
    text = f"before {evil} after"
    label = "<b onclick=alert(1)>"
    span = {"start": 7, "end": 7 + len(evil), "label": label}
    examples = read_json(metrics / "analysis-examples.json")
    quotes = [{"document": 0, "text": text, "corpus": None, "pipeline": span, "score": 0.9}]
    write_json(metrics / "analysis-examples.json", examples | {"most_confident_disagreements": quotes})
    corpus = read_json(metrics / "corpus.json")
    write_json(metrics / "corpus.json", corpus | {"repaired": {split: {evil: 1} for split in SPLITS}})
    report(TEMPLATE, metrics)
    page = Page((metrics / "report.html").read_text("utf8"))
    assert not any(tag in ("script", "b") or "onerror" in attrs for tag, attrs in page.elements)
    assert page.text.count(evil) == 3 and label in page.text


def test_a_curve_is_shown_if_it_is_of_this_corpus(metrics: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def show(**inputs: str) -> str:
        f1 = {"mean": 0.1234, "lowest": 0.1, "highest": 0.2}
        summary = {"usual fine-tune": [{"documents": 25, "draws": 1, "dev": f1, "test": f1}]}
        curve = {"inputs": measured | inputs, "captions": {"curve": "F1 over documents."}, "summary": summary}
        write_json(metrics / "curve.json", curve)
        report(TEMPLATE, metrics)
        page = Page((metrics / "report.html").read_text("utf8"))
        assert not page.open
        return page.text

    measured = read_json(metrics / "analysis.json")["inputs"]
    with pytest.raises(StepError, match=r"curve\.svg is missing") as error:
        show()
    assert error.value.remedy == "Run curve again."
    (metrics / "curve.svg").write_text("<svg/>")
    text = show()
    assert "12.3 (10.0 to 20.0)" in text and "F1 over documents." in text and "curve.json" in text
    capsys.readouterr()
    assert "F1 over documents." not in show(test="other")
    assert "of another corpus" in words(capsys.readouterr().out)


def test_the_command_shows_what_was_measured_since(changeable: Project) -> None:
    """Though all that the report needs is as it was."""
    row = {"before": 0.9, "after": 0.8, "change": -0.1, "interval": [-0.2, -0.05], "entities": 3}
    record = {"inputs": {}, "dev": {}, "test": {"PER": row}}
    write_json(changeable.folder / "metrics/tiny/comparison.json", record)
    done = changeable.run("report")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "F1 before" in (changeable.folder / "metrics/tiny/report.html").read_text("utf8")


def test_few_documents_are_scored_by_folds_instead_of_dev(metrics: Path, tmp_path: Path) -> None:
    def show(**audited: object) -> str:
        write_json(tmp_path / "label-errors.json", {"folds": 5, "f1": 0.654, "interval": [0.5, 0.75]} | audited)
        report(TEMPLATE, metrics, tmp_path / "label-errors.json")
        page = Page((metrics / "report.html").read_text("utf8"))
        assert not page.open
        return words(page.text)

    assert "are luck" not in show(documents=40)
    corpus = read_json(metrics / "corpus.json")
    for split, number in {"train": 28, "dev": 6, "test": 6}.items():
        corpus["splits"][split]["documents"] = number
    write_json(metrics / "corpus.json", corpus)
    text = show(documents=40)
    assert (
        "5 folds take the place of dev: of all 40 documents" in text
        and "F1 is 65.4 (95% interval 50.0 to 75.0)" in text
    )
    text = show(documents=30)
    assert "make audit RUN=tiny VARS='--vars.folds 5'" in text and "make report RUN=tiny" in text, "of another corpus"


def test_what_annotating_costs_and_what_audit_finds_are_shown(metrics: Path) -> None:
    measured = {split: read_json(metrics / "analysis.json")["inputs"][split] for split in SPLITS}
    f1 = {"mean": 0.1234, "lowest": 0.1, "highest": 0.2}
    point: dict[str, Any] = {"documents": 25, "draws": 1, "words": 5000, "actions": 0.5, "from_nothing": 2.25}
    point |= dict.fromkeys(("dev", "test", "shipped"), f1)
    effort = {"summary": {"random": [point]}, "start": 50, "saved": {"random": 0.777}, "target": None, "needed": None}
    write_json(metrics / "effort.json", effort | {"inputs": measured, "captions": {"effort": "Keys and clicks."}})
    (metrics / "effort.svg").write_text("<svg/>")
    row = {"corrupted": 4, "found": 3, "findings": 4, "precision": 0.654}
    corrupt = {"share": 0.05, "first": 4, "precision": 0.654, "kinds": {"all": row}, "folds": 3}
    write_json(metrics / "corrupt.json", corrupt | {"inputs": {"train": measured["train"], "dev": measured["dev"]}})
    mark = {"start": 0, "end": 5, "label": "LOC", "text": "<b>Turku"}
    finding = {"score": 0.98765, "kind": "spurious", "annotated": mark, "predicted": None, "context": "<i>in Turku"}
    write_json(metrics / "corrupt-examples.json", {"dev": [finding]})
    report(TEMPLATE, metrics)
    page = Page((metrics / "report.html").read_text("utf8"))
    assert not page.open
    shown = words(page.text)
    for text in ("0.50 (2.25 from nothing)", "suggestions save 77.7% (random)", "Keys and clicks.", "<b>Turku (LOC)"):
        assert text in shown, text
    assert "first 4 findings, as many as there are corruptions, 65.4 % are such" in shown
    assert "0.988" in shown and "<i>in Turku" in shown
    write_json(metrics / "corrupt.json", corrupt | {"inputs": {"train": "other"}})
    report(TEMPLATE, metrics)
    assert "Labels that are probably wrong" not in (metrics / "report.html").read_text("utf8")


def test_a_search_is_shown_if_it_is_of_this_corpus(metrics: Path, capsys: pytest.CaptureFixture[str]) -> None:
    inputs = read_json(metrics / "analysis.json")["inputs"]
    trial = {"state": "finished", "ents_f": 0.612, "seconds": 90, "settings": {}, "problem": ""}
    trials = [trial | {"params": {"training.dropout": value}, "ents_f": 0.6 + value / 10} for value in (0.1, 0.223)]
    parameter = {"explain": "Which share is switched off & why.", "range": "0 to 0.4", "default": "0.1"}
    search = {
        "inputs": {split: inputs[split] for split in ("train", "dev")},
        "parameters": {"training.dropout": parameter},
        "trials": trials,
        "counts": {"finished": 2},
        "default": 0,
        "best": 1,
        "importance": None,
        "enough": 50,
        "confirmed": None,
        "captions": {"search": "F1 over <each> setting."},
    }
    write_json(metrics / "search.json", search)
    (metrics / "search.svg").write_text("<svg/>")
    report(TEMPLATE, metrics)
    page = Page((metrics / "report.html").read_text("utf8"))
    assert not page.open
    shown = words(page.text)
    for text in ("the difference may be noise", "0.223", "switched off & why", "over <each> setting", "that takes 50"):
        assert text in shown, text
    write_json(metrics / "search.json", search | {"importance": {"training.dropout": 0.987}})
    report(TEMPLATE, metrics)
    assert "98.7" in (shown := words(Page((metrics / "report.html").read_text("utf8")).text)) and "PED-ANOVA" in shown
    write_json(metrics / "search.json", search | {"inputs": {"train": "other", "dev": "other"}})
    report(TEMPLATE, metrics)
    assert "The search for settings" not in (metrics / "report.html").read_text("utf8")
    assert "of another corpus" in words(capsys.readouterr().out)


def test_what_was_measured_beside_the_training_is_shown(metrics: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def show(**records: dict[str, Any]) -> str:
        for name, record in records.items():
            write_json(metrics / f"{name}.json", {"inputs": inputs} | record)
        report(TEMPLATE, metrics)
        page = Page((metrics / "report.html").read_text("utf8"))
        assert not page.open
        return words(page.text)

    inputs = {key: read_json(metrics / "analysis.json")["inputs"][key] for key in (*SPLITS, "model")}
    none = {"f1": 0.612, "more": 0.0, "interval": [0.0, 0.0], "draws": [0.0, 0.0]}
    more = {"f1": 0.634, "more": 0.022, "interval": [-0.004, 0.041], "draws": [0.03, 0.014]}
    points = [
        {"documents": 25, "contender": name, "draws": 2, "labels": {"all": score, "LOC": score}}
        for name, score in {"none": none, "recombine": more}.items()
    ]
    learnt = {"kind": "a new label", "documents": 10, "way": "rehearsal", "draws": 1}
    scores = {"before": 0.801, "after": 0.799, "new": 0.456}
    row = {"before": 0.871, "after": 0.867, "change": -0.004, "interval": [-0.012, 0.003], "entities": 1234}
    text = show(
        synthetic={"summary": points},
        continuing={"label": "MISC", "whole": {"LOC": 0.9}, "summary": [learnt | scores]},
        comparison={"dev": {}, "test": {"overall": row}},
    )
    for shown in (
        "63.4 (+2.2: -0.4 to +4.1)",
        "rehearsal",
        "45.6",
        "all documents, the pipeline has F1: LOC 90.0",
        "-0.4: -1.2 to +0.3",
        "1,234",
    ):
        assert shown in text, shown
    assert "61.2 (" not in text, "without texts there is nothing to compare with"
    other = {"inputs": inputs | {"model": "other"}, "dev": {}, "test": {"overall": row}}
    text = show(synthetic={"summary": []}, continuing={"runs": {}}, comparison=other)
    for heading in ("What synthetic texts bring", "Going on from a trained pipeline", "Before and after going on"):
        assert heading not in text
    said = words(capsys.readouterr().out)
    assert "comparison.json is of another corpus or model. Run compare." in said
    assert "synthetic.json is not finished" in said and "continuing.json is not finished" in said


def test_synthetic_texts_are_shown_beside_real_ones(
    metrics: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nlp = spacy.blank("en")
    nlp.add_pipe("sentencizer")
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for name, text in {"synthetic": "Turku has <b>rain</b>.", "train": "Snow fell. Then they met Mira."}.items():
        doc = nlp(text)
        place = 0 if name == "synthetic" else len(doc) - 2
        doc.set_ents([Span(doc, place, place + 1, "LOC")])
        DocBin(docs=[doc]).to_disk(corpus / f"{name}.spacy")
    verdicts = [{"text": "Turku has <b>rain</b>.", "verdict": ""}, {"text": "<i>Turku " * 99, "verdict": "repeated"}]
    srsly.write_jsonl(corpus / "synthetic.jsonl", verdicts)
    record = {
        "inputs": {
            "method": "marked",
            "writer": "a model",
            "train": read_json(metrics / "analysis.json")["inputs"]["train"],
        },
        "kept": 1,
        "tried": 2,
        "reasons": {"repeated": 1},
        "marked": 1,
        "labels": {"LOC": 1},
        "minutes_per_1000": 1234.5,
    }
    write_json(corpus / "synthetic.json", record)
    report(TEMPLATE, metrics, corpus_folder=corpus)
    text = (metrics / "report.html").read_text("utf8")
    page = Page(text)
    assert not page.open and not any(tag in ("b", "i") for tag, _ in page.elements)
    made, real = text.split("<h4>")[1:]
    assert "has &lt;b&gt;rain" in made and "Mira" in real and "Snow fell" not in real, "a sentence with a name"
    assert '<th scope="row">repeated</th><td>1</td><td>50.0</td>' in text
    shown = words(page.text)
    for said in (
        "by a model, 1 were kept",
        "In 1 of them the judge",
        "take 1,234 minutes",
        "Turku …",
    ):
        assert said in shown, said
    write_json(corpus / "synthetic.json", record | {"inputs": {"train": "other"}})
    report(TEMPLATE, metrics, corpus_folder=corpus)
    assert "Synthetic texts" not in (metrics / "report.html").read_text("utf8")
    assert "Run synthesize" in words(capsys.readouterr().out)


def test_what_is_missing_or_of_another_run_is_named(metrics: Path) -> None:
    analysis = read_json(metrics / "analysis.json")
    write_json(metrics / "analysis.json", analysis | {"inputs": analysis["inputs"] | {"model": "other"}})
    with pytest.raises(StepError, match="different models"):
        report(TEMPLATE, metrics)
    write_json(metrics / "analysis.json", analysis | {"inputs": analysis["inputs"] | {"test": "other"}})
    with pytest.raises(StepError, match="different corpora"):
        report(TEMPLATE, metrics)
    concepts = read_json(metrics / "concepts.json")
    write_json(metrics / "analysis.json", analysis)
    write_json(metrics / "concepts.json", concepts | {"inputs": concepts["inputs"] | {"model": "other"}})
    with pytest.raises(StepError, match=r"concepts\.json and analysis\.json are of different models") as error:
        report(TEMPLATE, metrics)
    assert "Run concepts" in error.value.remedy
    write_json(metrics / "concepts.json", concepts)
    write_json(metrics / "analysis.json", analysis)
    (metrics / "figures/corpus/tags.svg").unlink()
    with pytest.raises(StepError, match=r"tags\.svg is missing"):
        report(TEMPLATE, metrics)
    (metrics / "evaluation.json").unlink()
    with pytest.raises(StepError, match=r"lacks evaluation\.json") as error:
        report(TEMPLATE, metrics)
    assert "Run evaluate" in error.value.remedy
