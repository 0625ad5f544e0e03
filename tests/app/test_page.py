from __future__ import annotations

import io
import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import pytest
import spacy
import streamlit as st
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Dialog, Error, Page, Request, expect
from streamlit.testing.v1 import AppTest

from app import annotate, files, masked
from app.annotate import Annotator
from app.annotating import escape_markdown
from app.page import EXAMPLES, TABS, draw_triples, format_answer
from app.questions import Answer, Evidence
from tests.app.conftest import free_port, serve_page
from tests.conftest import ROOT, TEXT, Project, guard, save_tiny_encoder

PAGE_OF = os.environ.get("PAGE_OF")  # the folder of another project, for the screenshot of its page in docs/
NASTY = '<script>alert(1)</script> <img src=x onerror="alert(2)"> ![x](http://127.0.0.1:9/x.png)'


@pytest.fixture
def page_of(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Opens the page in a folder, without a browser."""

    def open_page(folder: Path, text: str = "") -> AppTest:
        monkeypatch.chdir(folder)
        monkeypatch.setattr("app.annotate.get_installed_models", lambda: [])
        app = AppTest.from_file(str(ROOT / "app/page.py"), default_timeout=guard(60))
        app.run()
        if text:
            app.text_area(key="text").set_value(text).run()
        assert not app.exception, app.exception[0].message
        return app

    st.cache_resource.clear()
    st.cache_data.clear()
    yield open_page


def frame(app: AppTest, column: str) -> Any:
    return next(element.value for element in app.dataframe if column in element.value)


def test_without_a_pipeline_the_page_says_what_to_do(page_of: Any, tmp_path: Path) -> None:
    assert "make quickstart" in page_of(tmp_path).error[0].value


def test_entities_are_shown_filtered_counted_and_downloaded(page_of: Any, ruled: Path) -> None:
    app = page_of(ruled, TEXT)
    marked = app.html[0].proto.body
    assert marked.count("<mark") == 4 and "Mira Solberg" in marked
    assert list(frame(app, "score")["text"]) == ["Mira Solberg", "Turku", "Norrvik Steel", "Norrvik Steel"]
    assert any("4 of 4 entities, ORG 2" in element.value for element in app.text)
    name = "packages/ruled/assembled"
    app.pills[0].set_value(["ORG"]).run()
    assert set(frame(app, "score")["label"]) == {"ORG"}
    app.slider(key=f"score {name}").set_value(0.5).run()
    assert frame(app, "score").empty, "these entities have no score"
    assert {button.label for button in app.get("download_button")} == {"JSON", "JSONL", "CSV", "CoNLL"}


def test_concepts_and_triples_are_shown(page_of: Any, ruled: Path) -> None:
    app = page_of(ruled, TEXT)
    triples = frame(app, "mechanism").values.tolist()
    assert ["Mira Solberg", "launched", "party"] in triples and ["", "not attack", "friends"] in triples
    assert app.get("graphviz_chart")
    assert "attack" in list(frame(app, "negated").query("negated")["text"])


def test_tokens_are_shown(page_of: Any, ruled: Path) -> None:
    tokens = frame(page_of(ruled, TEXT), "shape")
    assert list(tokens["token"])[:3] == ["Senator", "Mira", "Solberg"]
    assert tokens.loc[1, ["tag", "coarse tag", "IOB", "shape"]].tolist() == ["NNP", "PROPN", "B-PER", "Xxxx"]


def test_masked_words_are_guessed_where_the_encoder_can(page_of: Any, ruled: Path) -> None:
    folder = ruled / "assets/some/encoder"
    app = page_of(ruled)
    assert any("download" in element.value for element in app.info)
    save_tiny_encoder(folder)
    app.run()
    assert len(frame(app, "probability")) == 10
    app.text_input[0].set_value("no mask").run()
    assert "0 times" in app.error[0].value


def test_the_report_is_shown_if_it_is_about_the_chosen_pipeline(
    page_of: Any, project: Project, ruled: Path, tmp_path: Path
) -> None:
    """Wherever the project lies, and not for a pipeline that was trained since."""
    assert any("make report RUN=ruled" in element.value for element in page_of(ruled).info)
    folder = shutil.copytree(project.folder, tmp_path / "training/packages/x")
    app = page_of(folder)
    pipeline = next(field for field in app.selectbox if field.label == "Pipeline")
    assert len(app.get("iframe")) == 1 and pipeline.value.startswith("packages/tiny/")
    pipeline.set_value("packages/tiny/assembled").run()
    assert len(app.get("iframe")) == 1
    origin = folder / "packages/tiny/assembled/provenance.json"
    origin.write_text(json.dumps({"inputs": {"config": "another"}}), "utf8")
    app.run()
    assert not app.get("iframe") and any("make report RUN=tiny" in element.value for element in app.info)
    (folder / "metrics/tiny/evaluation.json").write_text("{", "utf8")
    app.run()
    assert not app.exception and "not valid JSON" in app.error[0].value


def test_an_installed_pipeline_has_no_report(page_of: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    app = page_of(tmp_path)
    monkeypatch.setattr(annotate, "get_installed_models", lambda: ["en_other"])
    monkeypatch.setattr(annotate, "load_pipeline", lambda name: Annotator(spacy.blank("en")))
    app.run()
    assert not app.exception and any("installed pipeline has no report" in element.value for element in app.info)


def count_calls(monkeypatch: pytest.MonkeyPatch, module: ModuleType, name: str) -> list[Any]:
    """The first arguments with which a function of a module is called from now on."""
    calls: list[Any] = []
    function = getattr(module, name)

    def count(*given: Any, **named: Any) -> Any:
        calls.append(given[0])
        return function(*given, **named)

    monkeypatch.setattr(module, name, count)
    return calls


def test_a_pipeline_is_loaded_once_and_anew_when_it_is_trained_anew(
    page_of: Any, ruled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(ruled, tmp_path / "project")
    loaded = count_calls(monkeypatch, annotate, "load_pipeline")
    app = page_of(folder, TEXT)
    app.run()
    assert len(loaded) == 1 and len(frame(app, "score")) == 4
    model = folder / "packages/ruled/assembled"
    nlp = spacy.load(model)
    nlp.remove_pipe("entity_ruler")
    nlp.to_disk(model)
    os.utime(model / "meta.json", (1, 1))
    app.run()
    assert len(loaded) == 2 and frame(app, "score").empty


def test_uploads_are_read_once(page_of: Any, ruled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = count_calls(monkeypatch, files, "read_upload")
    uploads = [io.BytesIO(b"text\nMira Solberg left .\nTurku ."), io.BytesIO(b"%PDF")]
    for upload, name in zip(uploads, ("a.csv", "b.pdf"), strict=True):
        upload.name = name
    monkeypatch.setattr(st, "file_uploader", lambda *_, **__: uploads[:1])
    app = page_of(ruled)
    assert list(frame(app, "score")["text"]) == ["Mira Solberg", "Turku"]
    app.run()
    assert calls == ["a.csv"]
    monkeypatch.setattr(st, "file_uploader", lambda *_, **__: uploads)
    for _ in range(2):
        app.run()
        assert "cannot be read" in app.error[0].value
    assert calls == ["a.csv", "b.pdf"], "nor is what cannot be read tried again"


def test_the_encoder_is_loaded_once(page_of: Any, ruled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = shutil.copytree(ruled, tmp_path / "project")
    save_tiny_encoder(folder / "assets/some/encoder")
    loaded = count_calls(monkeypatch, masked, "load_masked")
    app = page_of(folder)
    app.text_input[0].set_value("Turku is [MASK].").run()
    assert len(frame(app, "probability")) == 10 and len(loaded) == 1


def test_no_box_of_the_graph_is_empty() -> None:
    graph = draw_triples([["", "promised", "rivers"], ["Mira", "left", ""], ["", "", "old"]])
    assert '"? 0" [label="?"];' in graph and '"? 0" -> "rivers" [label="promised"];' in graph
    assert '". 1" [shape=point];' in graph and '"Mira" -> ". 1" [label="left"];' in graph
    assert '"? 2" -> "old" [dir=none, style=dashed];' in graph
    assert 'label=" "' not in graph and 'label=""' not in graph


def test_questions_are_answered_and_forgotten_with_the_text(page_of: Any, ruled: Path) -> None:
    app = page_of(ruled, TEXT)
    asked = next(field for field in app.text_input if field.label.startswith("Question"))
    asked.set_value("What did Solberg do?")
    next(button for button in app.button if button.label == "Ask").click().run()
    shown = "".join(str(element.proto.body) for element in app.html)
    assert (
        "launched … party" in shown and "<q>Senator Mira Solberg has launched" in shown and "characters 0 to" in shown
    )
    app.text_area(key="text").set_value("Another text").run()
    assert "launched … party" not in "".join(str(element.proto.body) for element in app.html)


def test_two_pipelines_are_compared(page_of: Any, project: Project) -> None:
    app = page_of(project.folder, "Mira left Turku.")
    other = next(field for field in app.selectbox if field.label == "Compare with")
    other.set_value(other.options[0]).run()
    assert not app.exception
    tables = [element.value for element in app.dataframe if "score" in element.value and "rule" not in element.value]
    assert len(tables) == 2 and tables[0].equals(tables[1]), "the packaged pipeline is the trained one"


def test_examples_fill_the_text(page_of: Any, ruled: Path) -> None:
    app = page_of(ruled)
    next(button for button in app.button if button.label == "A deal").click().run()
    assert "Norrvik Steel" in app.text_area(key="text").value and not app.exception


def test_what_is_typed_is_escaped_everywhere(page_of: Any, ruled: Path) -> None:
    app = page_of(ruled, f"{NASTY} {TEXT}")
    asked = next(field for field in app.text_input if field.label.startswith("Question"))
    asked.set_value(f"Who is {NASTY}?")
    next(button for button in app.button if button.label == "Ask").click().run()
    for element in app.html:
        assert "<script" not in element.proto.body and "<img" not in element.proto.body
    answer = Answer(text=NASTY, evidence=[Evidence(document_index=0, start=0, end=1, text=NASTY)], warning=NASTY)
    shown = format_answer(NASTY, answer, [NASTY])
    assert shown.count("&lt;script&gt;") == 5 and "<script" not in shown and "<img" not in shown
    assert re.sub(r"\\(.)", r"\1", escape_markdown(NASTY)) == NASTY and "![" not in escape_markdown(NASTY)
    graph = draw_triples([['a"]; b [label="', "\\N <b>", ""]])
    assert '"a\\"]; b [label=\\""' in graph and '"\\\\N <b>"' in graph


# In a browser

expect.set_options(timeout=guard(5000))


@pytest.fixture(scope="module")
def address(ruled: Path) -> Iterator[str]:
    """The page as a process."""
    port = free_port()
    with serve_page(Path(PAGE_OF or ruled), port):
        yield f"http://127.0.0.1:{port}"


def keep(found: list[Any], event: Any) -> None:
    found.append(event)


def open_text(page: Page, address: str, text: str) -> None:
    page.goto(address)
    expect(page.get_by_label("Text", exact=True)).to_be_visible(timeout=guard(20_000))
    page.get_by_label("Text", exact=True).fill(text)
    page.get_by_label("Text", exact=True).press("Control+Enter")
    expect(page.locator("mark").first).to_be_visible(timeout=guard(20_000))


@pytest.mark.parametrize(
    ("scheme", "width", "height"),
    [
        ("light", 1280, 900),
        pytest.param("dark", 390, 844, marks=pytest.mark.slow),
        pytest.param("light", 390, 844, marks=pytest.mark.slow),
        pytest.param("dark", 1280, 900, marks=pytest.mark.slow),
    ],
)
def test_the_page_is_accessible_and_fits(
    browser: Browser, address: str, tmp_path: Path, width: int, height: int, scheme: Literal["light", "dark"]
) -> None:
    page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
    errors: list[Error] = []
    page.on("pageerror", lambda error: keep(errors, error))
    open_text(page, address, EXAMPLES["A deal"] if PAGE_OF else TEXT)
    for tab in TABS:
        page.get_by_role("tab", name=tab, exact=True).first.click()
        page.wait_for_timeout(400)
        page.screenshot(path=str(tmp_path / f"{tab}.png"))
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
        serious = [
            (found["id"], [node["html"][:200] for node in found["nodes"]])
            for found in Axe().run(page).response["violations"]
            if found["impact"] in ("serious", "critical")
        ]
        assert not serious, tab
    assert not errors
    if (width, scheme) == (1280, "light") and PAGE_OF:
        shutil.copy(tmp_path / "Concepts.png", ROOT / "docs/app.png")
    page.close()


def test_a_visitor_pastes_filters_downloads_and_asks(browser: Browser, address: str) -> None:
    page = browser.new_page()
    open_text(page, address, TEXT)
    panel = page.get_by_role("tabpanel", name="Entities")
    expect(panel.locator("mark")).to_have_count(4)
    panel.get_by_role("button", name="ORG", exact=True).click()
    expect(panel.locator("mark")).to_have_count(2)
    with page.expect_download() as download:
        panel.get_by_role("button", name="CSV", exact=True).click()
    rows = Path(download.value.path()).read_text("utf8").splitlines()
    assert len(rows) == 3 and "Mira Solberg" in rows[1]
    page.get_by_role("tab", name="Annotate").click()
    expect(page.get_by_text("nothing to annotate yet")).to_be_visible()
    page.get_by_role("tab", name="Entities").click()
    expect(panel.locator("mark")).to_have_count(2)  # the text and the filter are there again
    page.get_by_role("tab", name="Concepts").first.click()
    expect(page.get_by_role("tabpanel").locator("svg g.node").first).to_be_visible()
    page.get_by_role("tab", name="Ask", exact=True).first.click()
    page.get_by_label("Question about the documents").fill("Who launched a party?")
    page.get_by_role("button", name="Ask", exact=True).click()
    expect(page.get_by_text("Mira Solberg launched \u2026 party.")).to_be_visible()
    page.close()


def test_nothing_that_is_typed_runs_and_nothing_leaves_the_machine(browser: Browser, address: str) -> None:
    page = browser.new_page()
    said: list[Dialog] = []
    requested: list[Request] = []
    page.on("dialog", lambda dialog: keep(said, dialog))
    page.on("request", lambda request: keep(requested, request))
    open_text(page, address, f"{NASTY} {TEXT}")
    name = "![x](http:x)<img src=x onerror=alert(3)>.pdf"
    upload = page.locator('input[type="file"]')
    upload.set_input_files({"name": name, "mimeType": "application/pdf", "buffer": b"no"})
    expect(page.get_by_text("cannot be read")).to_be_visible()
    page.wait_for_timeout(300)
    assert not said
    assert not [call.url for call in requested if not call.url.startswith((address, "data:", "blob:"))]
    page.close()
