"""The tab Corpus: what it says without a browser, and how people use it in one."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any, Literal

import pytest
import streamlit as st
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, Request, expect
from streamlit.testing.v1 import AppTest

from app import annotate
from app.corpus import export_names, find_targets
from common.errors import StepError
from common.names import Names
from common.parts import MANIFEST, RECORDS
from tests.annotated import DOCUMENTS, write_parts
from tests.app.conftest import free_port, serve_page
from tests.conftest import ROOT, guard

NASTY = '<img src=x onerror="alert(2)"> ![x](http://127.0.0.1:9/x.png)'
BOLD = "**ORG**:red[x]"


def write_run(project: Path, name: str, target: str) -> None:
    (project / "runs").mkdir(exist_ok=True)
    (project / "runs" / f"{name}.yml").write_text(f"texts: somewhere\ntarget: {target}\n", "utf8")


# Without a browser


@pytest.fixture
def page_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Opens the tab in a folder. A pipeline is there, and must not be loaded."""

    def refuse(name: str) -> None:
        pytest.fail(f"{name} was loaded")

    def open_page() -> AppTest:
        app = AppTest.from_file(str(ROOT / "app/page.py"), default_timeout=guard(60))
        app.query_params["tab"] = "Corpus"
        app.run()
        assert not app.exception, app.exception[0].message
        return app

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(annotate, "get_installed_models", lambda: ["en_demo"])
    monkeypatch.setattr(annotate, "load_pipeline", refuse)
    st.cache_resource.clear()
    st.cache_data.clear()
    yield open_page
    st.cache_resource.clear()


def test_without_a_corpus_the_tab_says_how_to_get_one(page_in: Any, tmp_path: Path) -> None:
    assert "make annotate-corpus RUN=mine" in page_in().info[0].value
    write_run(tmp_path, "posts", "annotated")
    assert "make annotate-corpus RUN=posts" in page_in().info[0].value, "it has not begun"
    (write_parts(tmp_path / "annotated") / MANIFEST).unlink()
    app = page_in()
    assert "is not done" in app.info[0].value and not app.dataframe, "it has not ended"


def test_corpora_are_found_by_the_runs_that_name_them_and_in_the_folders_of_the_project(tmp_path: Path) -> None:
    write_run(tmp_path, "stored", "s3://name:secret@bucket/folder")
    write_run(tmp_path, "posts", "annotate/posts/out")
    write_run(tmp_path, "plain", '""')
    for folder in ("annotate/posts/out", "annotate/mine", "other"):
        (tmp_path / folder / RECORDS).mkdir(parents=True)
    assert find_targets(tmp_path) == {
        "posts: annotate/posts/out": (str(tmp_path / "annotate/posts/out"), "posts"),
        "stored": ("s3://name:secret@bucket/folder", "stored"),
        "other": (str(tmp_path / "other"), ""),
        "annotate/mine": (str(tmp_path / "annotate/mine"), ""),
    }
    for wrong in ("a: [", "words", "[1, 2]"):
        (tmp_path / "runs/wrong.yml").write_text(wrong, "utf8")
        with pytest.raises(StepError, match=r"runs/wrong.yml cannot be read"):
            find_targets(tmp_path)


def test_names_are_shown_filtered_and_looked_at(page_in: Any, tmp_path: Path) -> None:
    write_run(tmp_path, "posts", "annotated")
    write_parts(tmp_path / "annotated")
    app = page_in()
    names, company, spelled, months = (table.value for table in app.dataframe)
    assert names.values.tolist()[:2] == [["Mira Solberg", "PER", 3, 2], ["Turku", "LOC", 3, 3]]
    assert "'=Turku" in list(names["name"]), "the table can be downloaded as it is shown"
    assert company.values.tolist() == [["Norrvik Steel", "ORG", 1], ["Turku", "LOC", 1]]
    assert spelled.values.tolist() == [["Mira Solberg", 2], ["Mira Solburg", 1]]
    assert months.values.tolist() == [["2031-02", 3, 2]] and len(app.get("vega_lite_chart")) == 1
    assert any("1 documents with names have no date in date" in element.value for element in app.text)
    next(field for field in app.selectbox if field.label == "Name").set_value(("Turku", "LOC")).run()
    assert app.dataframe[3].value.values.tolist() == [["2031-02", 1, 1], ["2031-03", 1, 1]]
    app.pills[0].set_value(["ORG"]).run()
    assert list(app.dataframe[0].value["name"]) == ["'=Turku", "Norrvik Steel"]
    assert app.dataframe[3].value.empty and not app.get("vega_lite_chart"), "its document has no date"
    app.text_input[0].set_value("NORR").run()
    assert app.dataframe[0].value.values.tolist() == [["Norrvik Steel", "ORG", 1, 1]]
    app.text_input[0].set_value("' OR 1=1 --").run()
    assert "No name has" in app.info[0].value and not app.dataframe and not app.exception


def test_the_file_has_the_names_that_pass_the_filter_and_no_formula(tmp_path: Path) -> None:
    names = Names(str(write_parts(tmp_path / "out")))
    rows = [*csv.reader(io.StringIO(export_names(names, ["ORG"], ""), newline=""))]
    assert rows == [
        ["name", "label", "mentions", "documents"],
        ["'=Turku", "ORG", "1", "1"],
        ["Norrvik Steel", "ORG", "1", "1"],
    ]


# In a browser


@pytest.mark.slow
def test_a_visitor_looks_at_a_name_by_the_keyboard(browser: Browser, tmp_path: Path) -> None:
    """No pipeline is there at all. A spelling and a label that hold code are shown as they are."""
    write_run(tmp_path, "posts", "annotated")
    write_parts(tmp_path / "annotated", documents=[*DOCUMENTS, ("2031-05-01", [f"{NASTY} {BOLD}"])])
    port, faults = free_port(), list[str]()
    address = f"http://127.0.0.1:{port}"
    with serve_page(tmp_path, port):
        page = open_tab(browser, address, 1280, "light", faults)
        chosen = page.get_by_role("combobox", name="Name").last
        chosen.focus()
        page.keyboard.type("img")
        expect(page.get_by_role("option")).to_have_count(1)
        page.keyboard.press("Enter")
        expect(chosen).to_have_value(f"{NASTY} \u00b7 {BOLD}")
        with page.expect_download() as download:
            page.get_by_role("button", name="Names as CSV").focus()
            page.keyboard.press("Enter")
        assert "'=Turku" in Path(download.value.path()).read_text("utf8")
        page.get_by_label("Names with").focus()
        page.keyboard.type("tur")
        page.keyboard.press("Enter")
        expect(chosen).to_have_value("Turku \u00b7 LOC")
        check(page, tmp_path / "wide.png")
        check(open_tab(browser, address, 390, "dark", faults), tmp_path / "narrow.png")
    assert not faults


def open_tab(browser: Browser, address: str, width: int, scheme: Literal["light", "dark"], faults: list[str]) -> Page:
    """Open the tab. What goes wrong in the page, opens a dialog or is fetched from elsewhere is put into `faults`."""

    def request(found: Request) -> None:
        if not found.url.startswith((address, "data:", "blob:")):
            faults.append(found.url)

    page = browser.new_page(viewport={"width": width, "height": 1900}, color_scheme=scheme)
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("dialog", lambda dialog: faults.append(dialog.message))
    page.on("request", request)
    page.goto(f"{address}/?tab=Corpus")
    expect(page.get_by_test_id("stVegaLiteChart")).to_be_visible(timeout=guard(30_000))
    return page


def check(page: Page, picture: Path) -> None:
    """Check that a page fits and is accessible, and take a picture of it."""
    page.screenshot(path=str(picture))
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    found = Axe().run(page).response["violations"]
    assert not [(one["id"], one["nodes"]) for one in found if one["impact"] in ("serious", "critical")]
    page.close()
