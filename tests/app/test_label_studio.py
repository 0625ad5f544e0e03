"""What the service answers to Label Studio, which asks as its connector does: by /health, /setup and /predict."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi.testclient import TestClient

from app.annotate import Annotator
from app.label_studio import find_control
from app.service import create_app
from tests.conftest import TEXT

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


def test_the_labels_of_the_text_are_taken_and_not_those_of_something_else() -> None:
    other = '<Labels name="region" toName="picture"><Label value="CAT"/></Labels><Image name="picture" value="$url"/>'
    control = find_control(CONFIG.replace("<View>", f"<View>{other}"))
    assert (control.name, control.target, control.column) == ("label", "text", "body")
    assert control.labels == {"PER", "ORG"}


def test_the_key_is_the_password_of_basic_authentication(annotator: Annotator) -> None:
    with TestClient(create_app(annotator, "sesame")) as client:
        for user in ("", "label-studio"):
            encoded = base64.b64encode(f"{user}:sesame".encode()).decode()
            assert client.get("/label-studio/health", headers={"Authorization": f"Basic {encoded}"}).status_code == 200
        wrong = [f"Basic {base64.b64encode(b'u:other').decode()}", "Basic ?", "Basic /w==", "Bearer sesame", ""]
        for header in wrong:
            assert client.get("/label-studio/health", headers={"Authorization": header}).status_code == 401
