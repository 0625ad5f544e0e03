"""The tab Annotate: what it says without a browser, and how people work with it in one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlencode

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Dialog, Error, Locator, Page, expect
from streamlit.testing.v1 import AppTest

from app.annotating import CONFLICTS, LABEL_ERRORS
from app.marking import Desk
from common.agreement import ADJUDICATED
from common.annotations import Annotation, Document, Named, Span
from common.records import write_json
from common.reviews import FINDINGS, LabelError
from common.store import STORE, Store
from tests.app.conftest import free_port, serve_page
from tests.conftest import ROOT, guard

NASTY = '<script>alert(1)</script> <img src=x onerror="alert(2)">'
SHIP = "🚢 Zoe\u0308 Ahl\u00e9n met 👩\u200d🚀 Mira Solberg in Turku."
ARABIC = "زارت ميرا مدينة توركو أمس."
CHINESE = "米拉昨天去了图尔库。"


def span_of(text: str, words: str, label: str, score: float | None = 0.9) -> Span:
    start = text.index(words)
    return Span(start=start, end=start + len(words), label=label, score=score, source="en_demo-1.0.0")


def make_store(run: Path, documents: dict[str, str], suggestions: dict[str, list[Span]]) -> Store:
    run.mkdir(parents=True)
    store = Store(run / STORE)
    store.add_documents([Document(id=name, text=text) for name, text in documents.items()])
    store.suggest("en_demo-1.0.0", suggestions)
    return store


def decided(store: Store, document: str, annotator: str = "ada") -> Annotation | None:
    (task,) = store.tasks([document])
    return next((one for one in task.annotations if one.annotator == annotator), None)


def words_in(store: Store, document: str, annotator: str = "ada") -> list[tuple[str, str]]:
    """The words and the labels of what an annotator marked."""
    (task,) = store.tasks([document])
    annotation = decided(store, document, annotator)
    spans = annotation.spans if annotation else []
    return [(task.document.text[span.start : span.end], span.label) for span in spans]


# Without a browser


@pytest.fixture
def page_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("app.annotate.get_installed_models", lambda: [])

    def open_page(**query: str) -> AppTest:
        app = AppTest.from_file(str(ROOT / "app/page.py"), default_timeout=guard(60))
        for name, value in {"tab": "Annotate", **query}.items():
            app.query_params[name] = value
        app.run()
        assert not app.exception, app.exception[0].message
        return app

    return open_page


def test_without_documents_the_tab_says_how_to_get_some(page_in: Any, tmp_path: Path) -> None:
    assert "make gather RUN=mine" in page_in().info[0].value
    make_store(tmp_path / "annotate/mine", {}, {})
    app = page_in(annotator="ada")
    assert "no documents yet" in app.info[0].value and not app.error


def test_a_name_is_asked_once_and_progress_is_shown(page_in: Any, tmp_path: Path) -> None:
    store = make_store(tmp_path / "annotate/mine", {"a": "Rain fell.", "b": "Snow fell."}, {})
    app = page_in()
    assert "by name" in app.info[0].value
    assert "is final" in app.text_input(key="annotator").set_value("adjudicated").run().error[0].value
    app.text_input(key="annotator").set_value("ada").run()
    assert [element.value for element in app.text] == ["0 of 2 done"] and "no labels yet" in app.info[0].value
    app.text_input(key="added").set_value(" METHOD ").run()
    assert not app.info and "METHOD" in app.query_params["label"]
    store.save(Annotation(document="a", annotator="ada", status="annotated", seconds=30))
    app.run()
    assert any("1 of 2 done · 120 documents an hour" in element.value for element in app.text)


def test_two_people_get_different_documents_and_see_how_far_both_are(page_in: Any, tmp_path: Path) -> None:
    store = make_store(tmp_path / "annotate/mine", {"a": "Rain fell.", "b": "Snow fell."}, {})
    store.divide(0)
    page_in(annotator="ada")
    say(store, "a", "ada")
    app = page_in(annotator="bo")
    assert app.text[0].value == "0 of 1 done · 1 of 2 by all together"
    assert "nothing left for you" in page_in(annotator="cy").error[0].value


def test_a_file_that_is_no_store_is_named(page_in: Any, tmp_path: Path) -> None:
    path = tmp_path / "annotate/mine" / STORE
    path.parent.mkdir(parents=True)
    path.write_text("These are notes, and they are no database. " * 100, encoding="utf8")
    assert "cannot be used" in page_in(annotator="ada").error[0].value


def test_a_long_document_has_parts(page_in: Any, tmp_path: Path) -> None:
    make_store(tmp_path / "annotate/mine", {"a": "Rain fell. " * 4000}, {})
    assert page_in(annotator="ada").number_input[0].max == 3


def say(store: Store, document: str, annotator: str, *spans: Span) -> None:
    store.save(Annotation(document=document, annotator=annotator, status="annotated", spans=list(spans)))


def write_findings(run: Path, store: Store, *found: tuple[str, str, Span | None, Span | None]) -> None:
    """Write what an audit has found: document, kind, what is annotated, and what the pipelines say."""
    findings = []
    for number, (document, kind, *sides) in enumerate(found):
        text = store.tasks([document])[0].document.text
        annotated, predicted = (side and Named(**side.model_dump(), text=text[side.start : side.end]) for side in sides)
        fields = {"document": document, "kind": kind, "score": 0.9 - number / 10, "context": text[:60]}
        findings.append(
            LabelError.model_validate(fields | {"annotated": annotated, "predicted": predicted}).model_dump()
        )
    write_json(run / FINDINGS, {"source": "corpus/mine/train.spacy", "findings": findings})


def test_each_kind_of_work_says_when_there_is_none(page_in: Any, tmp_path: Path) -> None:
    make_store(tmp_path / "annotate/mine", {"a": "Rain fell."}, {})
    assert "annotators agree" in page_in(annotator="ada", work=CONFLICTS).info[0].value
    assert "make audit RUN=mine" in page_in(annotator="ada", work=LABEL_ERRORS).info[0].value


def test_conflicts_and_label_errors_are_opened_from_the_address(page_in: Any, tmp_path: Path) -> None:
    run = tmp_path / "annotate/mine"
    store = make_store(run, {"a": "Rain fell in Tarn. " * 2000}, {})
    spans = [Span(start=start, end=start + 4, label="LOC") for start in (13, 30_013 // 19 * 19 + 13)]
    say(store, "a", "ada", spans[0])
    say(store, "a", "bo", spans[1])
    app = page_in(annotator="ada", work=CONFLICTS)
    assert any("0 of 1 done" in element.value for element in app.text) and not app.info
    say(store, "a", ADJUDICATED, *spans)
    write_findings(run, store, ("a", "spurious", spans[1], None))
    app = page_in(annotator="ada", work=LABEL_ERRORS)
    assert any("0 of 1 findings decided" in element.value for element in app.text)
    assert app.number_input[0].value == 2, "the part with the finding"
    (run / FINDINGS).write_text('{"findings": 7}', "utf8")
    assert "not as audit writes it" in page_in(annotator="ada", work=LABEL_ERRORS).error[0].value


def test_findings_in_a_corpus_are_shown_with_the_way_to_decide_on_them(page_in: Any, tmp_path: Path) -> None:
    elsewhere = make_store(tmp_path / "elsewhere", {"a": "Rain fell in Tarn."}, {})
    run = tmp_path / "annotate/mine"
    run.mkdir(parents=True)
    write_findings(run, elsewhere, ("a", "missed", None, Span(start=13, end=17, label="LOC")))
    app = page_in(annotator="ada")
    assert "cannot be changed here" in app.info[0].value
    assert app.dataframe[0].value.loc[0, ["annotated", "pipelines say"]].tolist() == ["nothing", "Tarn LOC"]
    assert "--vars.tool docbin --vars.annotated corpus/mine/train.spacy" in app.code[0].value
    assert list(run.iterdir()) == [run / FINDINGS], "looking makes no store"


# In a browser

expect.set_options(timeout=guard(5000))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder annotate of a project without any pipeline, where each test has a run of its own."""
    return tmp_path_factory.mktemp("project") / "annotate"


@pytest.fixture(scope="module")
def address(runs: Path) -> Iterator[str]:
    port = free_port()
    with serve_page(runs.parent, port):
        yield f"http://127.0.0.1:{port}"


def open_tab(page: Page, address: str, store: Store, annotator: str = "ada", **query: list[str]) -> Locator:
    """Open the tab on a store, and return the text, which has the focus."""
    place = {"tab": "Annotate", "run": store.path.parent.name, "annotator": annotator}
    page.goto(f"{address}/?{urlencode(place | query, doseq=True)}")
    text = page.get_by_label("Text to annotate")
    expect(text).to_be_visible(timeout=guard(20_000))
    text.focus()
    return text


def press(page: Page, keys: str) -> None:
    """Press keys as fast as the browser takes them."""
    for key in keys.split():
        page.keyboard.press(key)


def tab_to(page: Page, goal: Locator) -> None:
    """Press Tab until something has the focus."""
    for _ in range(100):
        if goal.count() and goal.evaluate("element => element === element.getRootNode().activeElement"):
            return
        page.keyboard.press("Tab")
    raise AssertionError(f"the keyboard does not reach {goal}")


@pytest.mark.slow
def test_words_are_marked_with_the_keyboard_and_positions_are_those_of_python(
    browser: Browser, runs: Path, address: str
) -> None:
    documents = {"ship": SHIP, "arabic": ARABIC, "chinese": CHINESE, "accents": "Zoe\u0308s Fahrt", "empty": ""}
    store = make_store(
        runs / "keyboard", documents, {"ship": [span_of(SHIP, "Turku", "LOC"), span_of(SHIP, "Mira", "PER")]}
    )
    page = browser.new_page()
    open_tab(page, address, store)
    press(page, "Shift+ArrowRight 2 Home ArrowRight Shift+ArrowRight 2 a Enter")
    expect(page.get_by_text("arabic: new")).to_be_visible()
    assert words_in(store, "ship") == [("Zoe\u0308 Ahl\u00e9n", "PER"), ("Mira Solberg", "PER"), ("Turku", "LOC")]
    press(page, "ArrowLeft 2 Enter")
    expect(page.get_by_text("chinese: new")).to_be_visible()
    assert words_in(store, "arabic") == [("ميرا", "PER")]
    press(page, "c Shift+ArrowRight 2 Enter")
    expect(page.get_by_text("accents: new")).to_be_visible()
    assert words_in(store, "chinese") == [("米拉", "PER")]
    press(page, "Shift+ArrowRight Shift+ArrowRight 2 Enter")
    expect(page.get_by_text("empty: new")).to_be_visible()
    assert words_in(store, "accents") == [("Zoe\u0308", "PER")]
    press(page, "Enter")
    expect(page.get_by_text("That was the last document.")).to_be_visible()
    done = decided(store, "ship")
    assert done is not None and done.actions == 8 and done.seconds > 0, "moves count as well"
    page.close()


@pytest.mark.slow
def test_the_keyboard_goes_by_words_lines_and_marks(browser: Browser, runs: Path, address: str) -> None:
    suggestion = {"other": [Span(start=0, end=1, label="LOC"), Span(start=0, end=1, label="PER")]}
    store = make_store(runs / "moves", {"lines": "one two three\nfour five six", "other": "Rain"}, suggestion)
    page = browser.new_page()
    open_tab(page, address, store)
    press(page, "ArrowDown 1 End 1 ArrowUp 2 Home ArrowRight Shift+ArrowRight o Shift+ArrowLeft 1 p x Enter")
    expect(page.get_by_text("other: new")).to_be_visible()
    assert words_in(store, "lines") == [("one two three", "LOC"), ("four", "LOC")]
    page.close()


@pytest.mark.slow
def test_words_are_marked_changed_and_removed_with_the_mouse(browser: Browser, runs: Path, address: str) -> None:
    store = make_store(
        runs / "mouse", {"ship": SHIP}, {"ship": [span_of(SHIP, "Turku", "LOC"), span_of(SHIP, "met", "PER")]}
    )
    page = browser.new_page()
    text = open_tab(page, address, store)
    first, last = (text.get_by_text(word, exact=True).bounding_box() for word in ("Zoe\u0308", "Ahl\u00e9n"))
    assert first and last
    page.mouse.move(first["x"] + 3, first["y"] + 5)
    page.mouse.down()
    page.mouse.move(last["x"] + 3, last["y"] + 5, steps=5)
    page.mouse.up()
    page.get_by_role("button", name="PER").click()
    expect(page.get_by_text("ship: draft, 2 to decide")).to_be_visible()
    text.get_by_text("met", exact=True).click()
    page.get_by_role("button", name="Remove").click()
    expect(page.get_by_text("ship: draft, 1 to decide")).to_be_visible()
    page.get_by_role("button", name="Accept all").click()
    text.get_by_text("Turku", exact=True).click()
    page.get_by_role("button", name="PER").click()
    page.get_by_role("button", name="Flag").click()
    expect(page.get_by_text("ship: draft, flagged")).to_be_visible()
    assert words_in(store, "ship") == [("Zoe\u0308 Ahl\u00e9n", "PER"), ("Turku", "PER")]
    page.get_by_role("button", name="Undo").click()
    page.get_by_role("button", name="Undo").click()
    expect(page.get_by_text("ship: draft", exact=True)).to_be_visible()
    page.get_by_role("button", name="Done").click()
    expect(page.get_by_text("1 of 1 done")).to_be_visible()
    assert words_in(store, "ship") == [("Zoe\u0308 Ahl\u00e9n", "PER"), ("Turku", "LOC")]
    page.close()


def test_a_suggestion_is_told_from_a_decision(browser: Browser, runs: Path, address: str) -> None:
    store = make_store(
        runs / "told",
        {"ship": SHIP},
        {"ship": [span_of(SHIP, "Mira Solberg", "PER", 0.8), span_of(SHIP, "Turku", "LOC")]},
    )
    page = browser.new_page()
    text = open_tab(page, address, store)
    expect(text.locator(".chip")).to_have_text(["PER?", "LOC?"])
    expect(page.get_by_role("status").filter(has_text="Mira Solberg")).to_have_text(
        "Mira Solberg · PER?, suggested by en_demo-1.0.0, 80%"
    )
    dashed = text.locator(".mark").first.evaluate("element => getComputedStyle(element).borderTopStyle")
    press(page, "Space")
    expect(text.locator(".chip")).to_have_text(["PER", "LOC?"])
    solid = text.locator(".mark").first.evaluate("element => getComputedStyle(element).borderTopStyle")
    assert (dashed, solid) == ("dashed", "solid")
    press(page, "Enter")
    expect(page.get_by_role("alert").filter(has_text="1 suggested mark is undecided")).to_be_visible()
    page.close()


@pytest.mark.slow
def test_a_label_is_added_and_is_there_after_a_reload(browser: Browser, runs: Path, address: str) -> None:
    store = make_store(runs / "labels", {"ship": SHIP}, {"ship": [span_of(SHIP, "Turku", "LOC")]})
    page = browser.new_page()
    open_tab(page, address, store)
    page.get_by_text("Run, name and labels").click()
    for name in ("METHOD", NASTY):
        page.get_by_label("Add a label").fill(name)
        page.get_by_label("Add a label").press("Enter")
        expect(page.get_by_role("button", name=name)).to_be_visible()
    page.reload()
    expect(page.get_by_role("group", name="Labels").get_by_role("button")).to_have_text(
        ["LOC 1", "METHOD 2", f"{NASTY} 3"], timeout=guard(20_000)
    )
    page.close()


@pytest.mark.slow
def test_two_windows_on_one_document_do_not_overwrite_each_other(browser: Browser, runs: Path, address: str) -> None:
    store = make_store(
        runs / "windows", {"ship": SHIP}, {"ship": [span_of(SHIP, "Turku", "LOC"), span_of(SHIP, "met", "PER")]}
    )
    store.divide(1)
    contexts = [browser.new_context() for _ in range(3)]
    first, second, other = (context.new_page() for context in contexts)
    for page, name in ((first, "ada"), (second, "ada"), (other, "bo")):
        open_tab(page, address, store, name)
    press(first, "x")
    expect(first.get_by_text("ship: draft, 1 to decide")).to_be_visible()
    press(second, "a")
    expect(second.get_by_role("alert").filter(has_text="saved elsewhere under your name")).to_be_visible()
    press(other, "a")
    expect(other.get_by_text("ship: draft", exact=True)).to_be_visible()
    assert words_in(store, "ship") == [] and len(words_in(store, "ship", "bo")) == 2
    press(second, "r")
    expect(second.get_by_text("ship: draft, 1 to decide")).to_be_visible()
    press(second, "a")
    expect(second.get_by_text("ship: draft", exact=True)).to_be_visible()
    assert words_in(store, "ship") == [("Turku", "LOC")]
    for context in contexts:
        context.close()


def test_a_lost_action_is_sent_again_even_if_streamlit_clears_up_late(browser: Browser, tmp_path: Path) -> None:
    desk = Desk(make_store(tmp_path / "late", {"ship": SHIP}, {"ship": [span_of(SHIP, "Turku", "LOC")]}), "ada")
    page = browser.new_page()
    page.clock.install()
    page.set_content((ROOT / "app/marking.html").read_text("utf8"))
    kinds = page.evaluate(
        """async ([code, data]) => {
            const { default: show } = await import(URL.createObjectURL(new Blob([code], { type: "text/javascript" })));
            window.sent = [];
            const setTriggerValue = (name, action) => window.sent.push(action.kind);
            const clearUp = show({ data, parentElement: document.body, setTriggerValue });
            show({ data, parentElement: document.body, setTriggerValue });
            clearUp();
            document.querySelector("[data-key=a]").click();
            return window.sent;
        }""",
        [(ROOT / "app/marking.js").read_text("utf8"), desk.view([], 0, SHIP)],
    )
    assert kinds == ["accept_all"]
    page.clock.run_for(10_000)
    assert set(page.evaluate("window.sent.slice(1)")) == {"accept_all"}
    page.close()


def test_a_held_key_decides_once_and_a_label_of_the_list_can_be_given_again(browser: Browser, tmp_path: Path) -> None:
    desk = Desk(make_store(tmp_path / "held", {"ship": SHIP}, {}), "ada")
    page = browser.new_page()
    page.set_content((ROOT / "app/marking.html").read_text("utf8"))
    page.evaluate(
        """async ([code, data]) => {
            const { default: show } = await import(URL.createObjectURL(new Blob([code], { type: "text/javascript" })));
            window.sent = [];
            const setTriggerValue = (name, action) => window.sent.push(action);
            window.answer = async () => {
                show({ data: { ...data, handled: sent.at(-1)?.id }, parentElement: document.body, setTriggerValue });
                await new Promise((resolve) => setTimeout(resolve)); // after what waited
                return sent.map((action) => action.label ?? action.kind);
            };
            await answer();
        }""",
        [(ROOT / "app/marking.js").read_text("utf8"), desk.view([f"LABEL{number}" for number in range(12)], 0, SHIP)],
    )
    page.get_by_label("Text to annotate").focus()
    page.keyboard.down("Enter")
    page.keyboard.down("Enter")  # what a browser says of a key that is held
    assert page.evaluate("answer()") == ["finish"]
    more = page.get_by_label("More labels")
    for number in (1, 2):
        more.select_option("LABEL11")
        assert page.evaluate("answer()") == ["finish", *["LABEL11"] * number]
        expect(more).to_have_value("")
    page.close()


def test_nothing_in_a_document_runs(browser: Browser, runs: Path, address: str) -> None:
    text = f"{NASTY} Mira left."
    suggestion = span_of(text, "Mira", NASTY).model_copy(update={"source": NASTY})
    store = make_store(runs / "nasty", {NASTY: text}, {NASTY: [suggestion]})
    page = browser.new_page()
    said: list[Dialog | Error] = []
    page.on("dialog", lambda dialog: said.append(dialog))
    page.on("pageerror", lambda error: said.append(error))
    shown = open_tab(page, address, store)
    expect(shown).to_contain_text(text[:60])
    press(page, "a")
    expect(page.get_by_text(f"{NASTY}: draft")).to_be_visible()
    assert page.locator("img[src=x]").count() == 0 and not said
    assert words_in(store, NASTY) == [("Mira", NASTY)]
    page.close()


@pytest.mark.parametrize(
    ("scheme", "width", "height"),
    [
        ("light", 390, 844),
        pytest.param("dark", 390, 844, marks=pytest.mark.slow),
        pytest.param("light", 1280, 900, marks=pytest.mark.slow),
        pytest.param("dark", 1280, 900, marks=pytest.mark.slow),
    ],
)
def test_the_tab_is_accessible_and_fits(
    browser: Browser,
    runs: Path,
    address: str,
    tmp_path: Path,
    scheme: Literal["light", "dark"],
    width: int,
    height: int,
) -> None:
    text = f"{SHIP} {'Mira Solberg said that the harbour of Turku is old. ' * 20}"
    several = [span_of(text, "Mira", "PER"), span_of(text, "Turku", "LOC"), span_of(text, "old", "a long label " * 8)]
    store = make_store(runs / f"{scheme} {width}", {"ship": text, "more": SHIP}, {"ship": several})
    page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
    shown = open_tab(page, address, store, label=[f"LABEL{number}" for number in range(12)])
    page.get_by_text("Keys", exact=True).click()
    shown.focus()
    expect(page.get_by_label("More labels")).to_be_visible()
    press(page, "Space")
    expect(page.get_by_text("ship: draft, 2 to decide")).to_be_visible()
    page.screenshot(path=str(tmp_path / f"{scheme} {width}.png"), full_page=True)
    check_layout(page)
    page.close()


def check_layout(page: Page) -> None:
    """Check that nothing is beyond the window, and that axe finds nothing serious."""
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    serious = [
        (found["id"], [node["html"][:200] for node in found["nodes"]])
        for found in Axe().run(page).response["violations"]
        if found["impact"] in ("serious", "critical")
    ]
    assert not serious


@pytest.mark.parametrize(
    ("work", "scheme", "width"),
    [
        (CONFLICTS, "light", 390),
        pytest.param(CONFLICTS, "dark", 1280, marks=pytest.mark.slow),
        pytest.param(LABEL_ERRORS, "light", 1280, marks=pytest.mark.slow),
        pytest.param(LABEL_ERRORS, "dark", 390, marks=pytest.mark.slow),
    ],
)
def test_reviews_are_accessible_and_fit(
    browser: Browser, runs: Path, address: str, tmp_path: Path, work: str, scheme: Literal["light", "dark"], width: int
) -> None:
    store = review(runs / f"{work} {scheme} {width}")
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    open_tab(page, address, store, work=[work])
    expect(page.get_by_role("group", name="Choices for this place").get_by_role("button")).to_have_count(2)
    press(page, "k")
    if work == LABEL_ERRORS:
        expect(page.get_by_text("2. e2: spurious")).to_be_visible()
        page.get_by_text("Log of decisions").click()
        expect(page.get_by_test_id("stDataFrame").locator("canvas").first).to_be_visible()
        page.get_by_label("Text to annotate").focus()
    else:
        expect(page.get_by_text("c1: draft, 1 to decide")).to_be_visible()
    page.screenshot(path=str(tmp_path / f"{work} {scheme} {width}.png"), full_page=True)
    check_layout(page)
    page.close()


PEOPLE = ("Mira Solberg", "Tuomas Kallio", "Zoe\u0308 Ahl\u00e9n", "Ines Varga", "Bo Lindqvist")
PLACES = ("Turku", "Oslo", "Tarn", "Lahti", "Norrvik")


def fifty() -> list[tuple[str, list[Span], list[tuple[str, str]], str]]:
    """50 documents: text, suggestions, the marks that are right, and the keys that correct the suggestions."""
    found = []
    for number in range(50):
        person, place = PEOPLE[number // 5 % 5], PLACES[number % 7 % 5]
        text = f"🚢 Number {number}: {person} left {place} at dawn."
        right = [(person, "PER"), (place, "LOC")]
        both = [span_of(text, person, "PER"), span_of(text, place, "LOC")]
        wrong = [span_of(text, person, "LOC"), both[1]]
        short = [span_of(text, person.split()[0], "PER"), both[1]]
        false = [*both, span_of(text, "dawn", "LOC", 0.2)]
        words = "ArrowRight " * 4  # past the ship, the word Number, its number and the colon
        suggestions, keys = (
            (both, "a Enter"),
            (wrong, "2 a Enter"),
            ([], f"{words}Shift+ArrowRight 2 ArrowRight ArrowRight 1 Enter"),
            (false, "n n x u x a f Enter"),
            (short, "Shift+ArrowRight 2 n Space Enter"),
        )[number % 5]
        found.append((text, suggestions, right, keys))
    return found


@pytest.mark.slow
def test_fifty_documents_are_corrected_by_keyboard_alone_and_a_kill_loses_nothing(
    browser: Browser, tmp_path: Path
) -> None:
    documents = fifty()
    names = [f"d{number:02}" for number in range(50)]
    texts = {name: text for name, (text, *_) in zip(names, documents, strict=True)}
    store = make_store(
        tmp_path / "annotate/mine", texts, {name: spans for name, (_, spans, *_) in zip(names, documents, strict=True)}
    )
    store.save(Annotation(document="d49", annotator="bo", status="draft", spans=[span_of(texts["d49"], "dawn", "PER")]))
    port = free_port()
    page = browser.new_page()
    text = page.get_by_label("Text to annotate")
    with serve_page(tmp_path, port) as process:
        page.goto(f"http://127.0.0.1:{port}")
        expect(page.get_by_role("tab", name="Annotate")).to_be_visible(timeout=guard(20_000))
        tab_to(page, page.get_by_role("tab", name="Entities"))
        press(page, "ArrowLeft Enter")
        tab_to(page, page.get_by_label("Your name"))
        page.keyboard.type("ada")
        press(page, "Enter")
        expect(text).to_be_visible()
        tab_to(page, text)
        for name, (*_, keys) in zip(names[:25], documents[:25], strict=True):
            expect(page.get_by_text(f"{name}: new")).to_be_visible()
            press(page, keys)
        expect(page.get_by_text("d25: new")).to_be_visible()
        press(page, "Space")
        expect(page.get_by_text("d25: draft, 1 to decide")).to_be_visible()
        process.kill()
    assert [words_in(store, name) for name in names[:25]] == [right for _, _, right, _ in documents[:25]]
    assert words_in(store, "d25") == documents[25][2][:1]
    press(page, "Space")  # while nobody listens
    with serve_page(tmp_path, port):
        expect(page.get_by_text("d25: draft", exact=True)).to_be_visible(timeout=guard(20_000))
        tab_to(page, text)
        press(page, "Enter")
        for name, (*_, keys) in zip(names[26:], documents[26:], strict=True):
            expect(page.get_by_text(f"{name}: new")).to_be_visible()
            press(page, keys)
        expect(page.get_by_text("50 of 50 done")).to_be_visible()
    assert [words_in(store, name) for name in names] == [right for _, _, right, _ in documents]
    flagged = [name for name in names if (one := decided(store, name)) and one.flagged]
    assert flagged == names[3::5]
    page.close()


def review(run: Path) -> Store:
    """Documents with conflicts, and others with labels that are probably wrong."""
    text = "🚢 Mira Solberg left Turku at dawn for Norrvik."
    person, place, wrong = (
        span_of(text, words, label, None)
        for words, label in (("Mira Solberg", "PER"), ("Turku", "LOC"), ("dawn", "PER"))
    )
    first, company = span_of(text, "Mira", "PER", None), span_of(text, "Norrvik", "ORG", None)
    store = make_store(run, dict.fromkeys(("c1", "c2", "c3", "e1", "e2", "e3", "e4"), text), {})
    store.divide(1)
    for name in ("c1", "c2", "c3"):
        say(store, name, "ada", person, place)
        say(store, name, "bo", first, place, company)
    say(store, "e1", "ada", person.model_copy(update={"label": "ORG"}), company)
    say(store, "e2", "ada", person, place, wrong)
    say(store, "e3", "ada", first)
    say(store, "e4", "ada", person)
    write_findings(
        run,
        store,
        ("e1", "type", person.model_copy(update={"label": "ORG"}), person),
        ("e2", "spurious", wrong, None),
        ("e3", "boundary", first, person),
        ("e4", "missed", None, company),
    )
    return store


@pytest.mark.slow
def test_conflicts_and_label_errors_are_decided_by_keyboard_alone_and_a_kill_loses_nothing(
    browser: Browser, tmp_path: Path
) -> None:
    store = review(tmp_path / "annotate/mine")
    port = free_port()
    page = browser.new_page()
    text = page.get_by_label("Text to annotate")
    choices = page.get_by_role("group", name="Choices for this place").get_by_role("button")

    def choose_work(name: str) -> None:
        tab_to(page, page.get_by_role("radio", name="To annotate"))
        press(page, "ArrowRight " * (1 + (name == LABEL_ERRORS)))
        expect(page.get_by_role("radio", name=name)).to_be_checked()

    with serve_page(tmp_path, port) as process:
        page.goto(f"http://127.0.0.1:{port}/?tab=Annotate&annotator=di")
        expect(text).to_be_visible(timeout=guard(20_000))
        choose_work(CONFLICTS)
        expect(page.get_by_text("c1: new, 2 to decide")).to_be_visible()
        tab_to(page, text)
        expect(choices).to_have_text(["ada: “Mira Solberg” PER j", "bo: “Mira” PER k"])
        press(page, "j k Enter")
        expect(page.get_by_text("c2: new, 2 to decide")).to_be_visible()
        press(page, "j u Home ArrowRight k")
        expect(text.locator(".mark").first).to_have_text("Mira")
        expect(page.get_by_text("1 of 3 done")).to_be_visible()
        process.kill()
    assert words_in(store, "c1", ADJUDICATED) == [("Mira Solberg", "PER"), ("Turku", "LOC"), ("Norrvik", "ORG")]
    assert words_in(store, "c2", ADJUDICATED) == [("Mira", "PER"), ("Turku", "LOC")]
    press(page, "j")  # while nobody listens: nobody, of Norrvik
    with serve_page(tmp_path, port) as process:
        expect(page.get_by_text("c2: draft", exact=True)).to_be_visible(timeout=guard(20_000))
        tab_to(page, text)
        press(page, "Enter")
        expect(page.get_by_text("c3: new, 2 to decide")).to_be_visible()
        press(page, "Home ArrowRight Shift+ArrowRight 2 n n x Enter")
        expect(page.get_by_text("3 of 3 done")).to_be_visible()
        tab_to(page, page.get_by_role("radio", name=CONFLICTS))
        press(page, "ArrowRight")
        expect(page.get_by_text("1. e1: type, score 0.90, to decide")).to_be_visible()
        tab_to(page, text)
        expect(choices).to_have_text(
            ["the pipelines say: “Mira Solberg” PER j", "keep what is annotated: “Mira Solberg” ORG k"]
        )
        press(page, "j")
        expect(page.get_by_text("2. e2: spurious")).to_be_visible()
        press(page, "k")
        expect(page.get_by_text("3. e3: boundary")).to_be_visible()
        process.kill()
    assert [change.decision for change in store.changes()] == ["accepted", "kept"]
    press(page, "j")  # while nobody listens
    with serve_page(tmp_path, port):
        expect(page.get_by_text("4. e4: missed")).to_be_visible(timeout=guard(20_000))
        tab_to(page, text)
        press(page, "Shift+ArrowLeft 2 Enter")
        expect(page.get_by_text("4 of 4 findings decided, 2 accepted, 1 kept, 1 edited")).to_be_visible()
        press(page, "u u")
        expect(page.get_by_text("3. e3: boundary, score 0.70, to decide")).to_be_visible()
    assert words_in(store, "e1", ADJUDICATED) == [("Mira Solberg", "PER"), ("Norrvik", "ORG")]
    assert words_in(store, "e3", ADJUDICATED) == [("Mira", "PER")]
    decisions = [change.decision for change in store.changes()]
    assert decisions == ["accepted", "kept", "accepted", "edited", "undone", "undone"]
    page.close()
