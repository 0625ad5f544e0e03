"""What the service answers to Label Studio, which asks as its connector does: by /health, /setup and /predict.

In the end Label Studio itself asks it, and shows in a browser what `export-tasks` writes.
"""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
import spacy
from fastapi.testclient import TestClient
from filelock import FileLock
from playwright.sync_api import Browser, Page, expect

from app.annotate import Annotator
from app.label_studio import MOST_TASKS, find_control
from app.service import create_app
from common.annotations import Document, Span
from common.store import STORE, Store
from scripts.export_tasks import export_tasks
from scripts.import_annotations import import_annotations
from tests.app.conftest import free_port, until
from tests.app.test_service import running
from tests.conftest import TEXT, guard

CONFIG = (
    '<View><Labels name="label" toName="text"><Label value="PER"/><Label value="ORG"/></Labels>'
    '<Text name="text" value="$body" granularity="word"/></View>'
)


@pytest.fixture(scope="module")
def client(annotator: Annotator) -> Iterator[TestClient]:
    with TestClient(create_app(annotator)) as client:
        yield client


def ask(client: TestClient, *texts: Any, config: str = CONFIG) -> Any:
    tasks = [{"id": number, "data": {"body": text, "id": "d1"}} for number, text in enumerate(texts)]
    request = {"tasks": tasks, "label_config": config, "project": "1.1790000000", "params": {"context": None}}
    body = json.dumps(request)  # which writes half a character, too
    return client.post("/label-studio/predict", content=body, headers={"Content-Type": "application/json"})


def test_label_studio_connects(client: TestClient, annotator: Annotator) -> None:
    version = f"en_{annotator.nlp.meta['name']}-{annotator.nlp.meta['version']}"
    assert client.get("/label-studio/health").json() == {"status": "UP", "model_version": version}
    request = {"project": "1.1790000000", "schema": CONFIG, "hostname": "", "access_token": "x", "extra_params": None}
    assert client.post("/label-studio/setup", json=request).json() == {"model_version": version}


def test_names_are_suggested_with_offsets_scores_and_the_names_of_the_project(
    client: TestClient, annotator: Annotator
) -> None:
    """Also after an emoji, where offsets count characters, as Label Studio does."""
    texts = [TEXT, f"\N{SHIP} {TEXT}", ""]
    answer = ask(client, *texts).json()
    assert answer["model_version"] == answer["results"][0]["model_version"]
    for text, analysis, prediction in zip(texts, annotator.annotate(texts), answer["results"], strict=True):
        wanted = [entity for entity in analysis.entities if entity.label in ("PER", "ORG")]
        assert [region["value"] for region in prediction["result"]] == [
            {"start": e.start, "end": e.end, "text": e.text, "labels": [e.label]} for e in wanted
        ]
        assert [region["score"] for region in prediction["result"]] == [e.score for e in wanted]
        assert all(text[r["value"]["start"] : r["value"]["end"]] == r["value"]["text"] for r in prediction["result"])
        assert {(r["from_name"], r["to_name"], r["type"]) for r in prediction["result"]} <= {
            ("label", "text", "labels")
        }
        assert prediction["score"] == min((e.score for e in wanted if e.score is not None), default=None)
        assert len({region["id"] for region in prediction["result"]}) == len(prediction["result"])
    assert any(prediction["result"] for prediction in answer["results"])
    assert any(entity.label not in ("PER", "ORG") for entity in annotator.annotate([TEXT])[0].entities)


@pytest.mark.parametrize(
    ("config", "texts", "told"),
    [
        ("<View", ["Turku"], "no XML"),
        ("<View/>", ["Turku"], "no <Labels> for a <Text"),
        (CONFIG.replace("$body", "Turku"), ["Turku"], "no <Labels> for a <Text"),
        (CONFIG.replace("$body", "$text"), ["Turku"], "task 0 has no text by the name of text"),
        (CONFIG, ["Turku \ud83d"], "surrogates not allowed"),
        (CONFIG, ["Turku", None], "task 1 has no text by the name of body"),
    ],
)
def test_what_cannot_be_suggested_for_is_told(client: TestClient, config: str, texts: list[Any], told: str) -> None:
    answer = ask(client, *texts, config=config)
    assert answer.status_code == 422 and told in answer.json()["detail"][0]["msg"]


def test_as_many_tasks_as_label_studio_sends_at_once_are_taken() -> None:
    with TestClient(create_app(Annotator(spacy.blank("en")))) as client:
        assert len(ask(client, *[""] * MOST_TASKS).json()["results"]) == MOST_TASKS
        assert ask(client, *[""] * (MOST_TASKS + 1)).status_code == 422


def test_the_labels_of_the_text_are_taken_and_not_those_of_something_else() -> None:
    other = '<Labels name="region" toName="picture"><Label value="CAT"/></Labels><Image name="picture" value="$url"/>'
    control = find_control(CONFIG.replace("<View>", f"<View>{other}"))
    assert (control.name, control.target, control.column) == ("label", "text", "body")
    assert control.labels == {"PER", "ORG"}


def test_the_key_is_the_password_of_basic_authentication(annotator: Annotator) -> None:
    with TestClient(create_app(annotator, "sesame")) as client:
        for user in ("", "label-studio", "Zo\u00eb"):
            encoded = base64.b64encode(f"{user}:sesame".encode()).decode()
            assert client.get("/label-studio/health", headers={"Authorization": f"Basic {encoded}"}).status_code == 200
        wrong = [f"Basic {base64.b64encode(b'u:other').decode()}", "Basic ?", "Basic /w==", "Bearer sesame", ""]
        for header in wrong:
            assert client.get("/label-studio/health", headers={"Authorization": header}).status_code == 401


# Label Studio itself

RELEASE = "label-studio==1.23.2"
USER, PASSWORD, TOKEN = "ada@example.org", "sesame-sesame", "0123456789abcdef" * 2 + "01234567"
SHIP = "\N{SHIP} Mira Solberg of Norrvik Steel met Tuesday in Turku with Ola Brandt."


@pytest.fixture(scope="module")
def label_studio(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Its address. It has an environment of its own, in pytest's cache, since its pins clash with ours."""
    environment = request.config.cache.mkdir(RELEASE.replace("==", "-"))
    with FileLock(f"{environment}.lock"):  # another process may have the other test
        if not (environment / "installed").exists():
            subprocess.run([sys.executable, "-m", "venv", "--clear", environment], check=True)
            pip = [str(environment / "bin/python"), "-m", "pip", "install", "--disable-pip-version-check", RELEASE]
            done = subprocess.run(pip, capture_output=True, text=True)
            if f"No matching distribution found for {RELEASE}" in done.stderr:
                pytest.skip(f"no package index with {RELEASE} can be reached from here")
            assert done.returncode == 0, done.stderr
            (environment / "installed").touch()
    home, port = tmp_path_factory.mktemp("label-studio"), str(free_port())
    local = {"HOME": str(home), "USE_DEFAULT_BANNED_SUBNETS": "false"}  # else it asks nothing that is on 127.0.0.1
    quiet = {"COLLECT_ANALYTICS": "false", "LATEST_VERSION_CHECK": "false", "SENTRY_DSN": "", "FRONTEND_SENTRY_DSN": ""}
    user = ["--username", USER, "--password", PASSWORD, "--user-token", TOKEN, "--enable-legacy-api-token"]
    command = ["start", "--init", "--no-browser", "--internal-host", "127.0.0.1", "--port", port, *user]
    with (
        (home / "log.txt").open("wb") as log,
        subprocess.Popen(
            [environment / "bin/label-studio", *command], env=os.environ | local | quiet, stdout=log, stderr=log
        ) as process,
    ):
        address = f"http://127.0.0.1:{port}"

        def is_up() -> bool:
            assert process.poll() is None, (home / "log.txt").read_text("utf8")
            try:
                return requests.get(f"{address}/health", timeout=guard(5)).ok
            except requests.ConnectionError:
                return False

        try:
            until(is_up, 120)  # it writes its database first
            yield address
        finally:
            process.terminate()


def call(address: str, method: str, path: str, **more: Any) -> Any:
    """Ask Label Studio's interface, and return its answer."""
    headers = {"Authorization": f"Token {TOKEN}"}
    answer = requests.request(method, f"{address}/api/{path}", headers=headers, timeout=guard(60), **more)
    assert answer.ok, answer.text
    return answer.json()


def make_project(address: str, folder: Path) -> int:
    """Make a project of what `export-tasks` wrote, and return its number."""
    config = (folder / "labels.xml").read_text("utf8")
    project: int = call(address, "POST", "projects", json={"title": "walkthrough", "label_config": config})["id"]
    call(address, "POST", f"projects/{project}/import", json=json.loads((folder / "tasks.json").read_text("utf8")))
    return project


def import_from(address: str, project: int, folder: Path) -> None:
    """Export a project as JSON, and import it as ada's."""
    asked = {"exportType": "JSON", "download_all_tasks": "true"}
    export = folder / "export.json"
    export.write_text(json.dumps(call(address, "GET", f"projects/{project}/export", params=asked)), "utf8")
    import_annotations(folder, [export], "label-studio", annotator="ada")


def open_task(page: Page, address: str, project: int) -> None:
    """Log in, and open the next task of a project."""
    page.set_default_timeout(guard(20_000))
    page.goto(f"{address}/user/login/?next=/projects/{project}/data%3Flabeling%3D1")
    page.locator("input[name=email]").fill(USER)
    page.locator("input[name=password]").fill(PASSWORD)
    page.locator("input[name=password]").press("Enter")


def select(page: Page, words: str) -> None:
    """Draw the mouse over words that have no label."""
    left, right, middle = page.locator(".lsf-htx-richtext").evaluate(
        """(root, words) => {
          const walker = document.createTreeWalker(root, NodeFilter.SHOW_TEXT);
          while (walker.nextNode() && !walker.currentNode.data.includes(words));
          const range = document.createRange(), start = walker.currentNode.data.indexOf(words);
          range.setStart(walker.currentNode, start);
          range.setEnd(walker.currentNode, start + words.length);
          const box = range.getBoundingClientRect();
          return [box.left, box.right, (box.top + box.bottom) / 2];
        }""",
        words,
    )
    page.mouse.move(left + 2, middle)
    page.mouse.down()
    page.mouse.move(right - 2, middle, steps=5)
    page.mouse.up()


def span_of(words: str, label: str, score: float | None = None) -> Span:
    start = SHIP.index(words)
    source = "" if score is None else "en_demo-1.0.0"
    return Span(start=start, end=start + len(words), label=label, score=score, source=source)


@pytest.mark.live
def test_what_is_done_in_label_studio_itself_comes_back(label_studio: str, browser: Browser, tmp_path: Path) -> None:
    """After an emoji: a suggestion is accepted, one changed, one removed, and a name added. Another text is skipped."""
    mira, turku = span_of("Mira Solberg", "PER", 0.98), span_of("Turku", "LOC", 0.9)
    steel, tuesday = span_of("Norrvik Steel", "PER", 0.55), span_of("Tuesday", "LOC", 0.4)
    store = Store(tmp_path / STORE)
    store.add_documents(
        [Document(id="ship", text=SHIP), Document(id="rain", text="Rain fell."), Document(id="new", text="Snow fell.")]
    )
    store.suggest("en_demo-1.0.0", {"ship": [mira, steel, tuesday, turku]})
    export_tasks(tmp_path, "label-studio", tool_labels="ORG")
    project = make_project(label_studio, tmp_path / "label-studio")

    page = browser.new_page()
    open_task(page, label_studio, project)
    marks = page.locator(".htx-highlight")
    expect(marks).to_have_text(["Mira Solberg", "Norrvik Steel", "Tuesday", "Turku"])
    expect(page.get_by_text("0.98")).to_be_visible()
    marks.get_by_text("Norrvik Steel").click()
    page.keyboard.press("1")
    expect(marks.and_(page.locator("[data-label$=ORG]"))).to_have_text(["Norrvik Steel"])
    page.keyboard.press("Escape")
    marks.get_by_text("Tuesday").click()
    page.keyboard.press("Backspace")
    expect(marks).to_have_text(["Mira Solberg", "Norrvik Steel", "Turku"])
    page.keyboard.press("3")
    select(page, "Ola Brandt")
    expect(marks).to_have_text(["Mira Solberg", "Norrvik Steel", "Turku", "Ola Brandt"])
    page.get_by_role("button", name="Submit current annotation").click()
    expect(page.get_by_text("Rain fell.").first).to_be_visible()
    page.get_by_role("button", name="skip-task").click()
    expect(page.get_by_text("Snow fell.").first).to_be_visible()
    page.close()

    import_from(label_studio, project, tmp_path)
    ship, rain, new = (store.tasks([document])[0].annotations for document in ("ship", "rain", "new"))
    changed, added = span_of("Norrvik Steel", "ORG"), span_of("Ola Brandt", "PER")
    assert [(one.annotator, one.status) for one in (*ship, *rain)] == [("ada", "annotated"), ("ada", "skipped")]
    assert ship[0].spans == [mira, changed, turku, added] and ship[0].seconds > 0
    assert new == []


@pytest.mark.live
def test_label_studio_itself_asks_the_service(
    label_studio: str, annotator: Annotator, browser: Browser, tmp_path: Path
) -> None:
    """Its suggestions are shown, and come back as such."""
    store = Store(tmp_path / STORE)
    store.add_documents([Document(id="ship", text=SHIP)])
    export_tasks(tmp_path, "label-studio", tool_labels="ORG,LOC,PER")
    project = make_project(label_studio, tmp_path / "label-studio")
    with running(create_app(annotator, "sesame")) as (address, _):
        backend = {
            "project": project,
            "url": f"{address}/label-studio",
            "title": "service",
            "auth_method": "BASIC_AUTH",
        }
        key = {"basic_auth_user": "label-studio", "basic_auth_pass": "sesame"}
        assert call(label_studio, "POST", "ml", json=backend | key)["state"] == "CO"
        page = browser.new_page()
        open_task(page, label_studio, project)
        expect(page.locator(".htx-highlight")).to_have_text(["Mira Solberg", "Norrvik Steel", "Turku"])
        page.get_by_role("button", name="Submit current annotation").click()
        expect(page.get_by_text("No More Tasks Left in Queue")).to_be_visible()
        page.close()
    import_from(label_studio, project, tmp_path)
    (annotation,) = store.tasks(["ship"])[0].annotations
    assert [(SHIP[span.start : span.end], span.label) for span in annotation.spans] == [
        ("Mira Solberg", "PER"),
        ("Norrvik Steel", "ORG"),
        ("Turku", "LOC"),
    ]
    assert {span.source for span in annotation.spans} == {"prediction"}, "its export does not name the service"
