from __future__ import annotations

import re
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from common.errors import StepError
from common.licenses import RESEARCH, SOURCES
from common.records import read_json, sha256, write_json
from scripts.publish import MANIFEST, Push, Visibility, What, publish, push_folder
from tests.conftest import Project, new_python, words
from tests.hub import Hub, connected

WHEEL = "en_mine-1.0.0-py3-none-any.whl"
TOKEN, STRANGER = "hf_of_mira", "hf_of_somebody"
REPOSITORY, DATASET = "mira/en_mine", "datasets/mira/names"
SCORES = {"ents_p": 0.91234, "ents_r": 0.8, "ents_f": 0.85}
SENTENCE = "Mira Solberg left Turku ."  # of tests.conftest.CORPUS, with four words: too short to be a quote
QUOTE = "Kenya beat Peru , Malta twice"  # all of another one


def write_wheel(run: Path, version: str = "1.0.0", **meta: Any) -> None:
    """A wheel with the files of a pipeline, and what verify records of it."""
    sources = [{"name": "mine"}, {"name": "all-MiniLM-L6-v2", "license": "Apache-2.0"}]
    inside = run / f"inside/en_mine/en_mine-{version}"
    texts = {
        "README.md": "# en_mine\n\nNames.\n\n```python\nimport spacy\n```\n\n## Scores\n",
        "config.cfg": '[nlp]\nlang = "en"\n',
        "ner/model": "\0numbers\udcff" * 300,
        "vocab/strings.json": '["Kenya",\n"Malta"]',
    }
    for name, text in texts.items():
        (inside / name).parent.mkdir(parents=True, exist_ok=True)
        (inside / name).write_bytes(text.encode("utf8", "surrogateescape"))
    facts = {"lang": "en", "name": "mine", "version": version, "license": "see the licences of mine"}
    write_json(inside / "meta.json", facts | {"sources": sources} | meta)
    wheel = run / "dist" / f"en_mine-{version}-py3-none-any.whl"
    wheel.parent.mkdir(exist_ok=True)
    with zipfile.ZipFile(wheel, "w") as file:
        for path in sorted(path for path in (run / "inside").rglob("*") if path.is_file()):
            file.write(path, path.relative_to(run / "inside"))
        file.writestr(f"en_mine-{version}.dist-info/METADATA", f"Name: en_mine\nVersion: {version}\n")
    shutil.rmtree(run / "inside")
    verified = {"inputs": {"wheel": sha256(wheel), "model": "abc"}, "clean_environment": True, "why_not": ""}
    write_json(run / "metrics/package.json", verified)


@pytest.fixture
def run(tmp_path: Path, tiny_corpus: Path) -> Path:
    """What publish reads of a run."""
    (tmp_path / "metrics").mkdir()
    write_wheel(tmp_path)
    scores = {split: {"predicted_sentences": SCORES} for split in ("test", "dev")}
    encoder = {"encoder": "sentence-transformers/all-MiniLM-L6-v2", "encoder_commit": ""}
    evaluation = {"inputs": {"model": "abc"}, "corpus": "mine", **encoder, **scores}
    write_json(tmp_path / "metrics/evaluation.json", evaluation)
    shutil.copytree(tiny_corpus, tmp_path / "corpus")
    edit_json(tmp_path / "corpus/provenance.json", corpus={"corpus": "mine", "sha256": {"train.conll": "0123"}})
    return tmp_path


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub on which Mira may write to what is hers."""
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "no-login"))
    monkeypatch.setattr("huggingface_hub.utils._http.time", SimpleNamespace(sleep=lambda _: None))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with (
        Hub({}, {TOKEN: "mira", STRANGER: "somebody"}, tmp_path / "store") as hub,
        connected(hub, tmp_path / "cache", monkeypatch),
    ):
        yield hub


def go(run: Path, push: str = "yes", what: str = "pipeline", repository: str = "", **options: Any) -> Path:
    """Publish, by default with a push to Mira's repository. RETURNS (Path): The folder."""
    publish(
        What(what),
        run / "packages/mine",
        run / "metrics",
        run / "corpus",
        run / "dist",
        repository or (REPOSITORY if what == "pipeline" else DATASET.removeprefix("datasets/")),
        push=Push(push),
        **options,
    )
    return run / "packages/mine/hub" / what


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def metadata(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((folder / "README.md").read_text("utf8").split("---\n")[1])
    return found


def edit_json(path: Path, **values: Any) -> None:
    write_json(path, read_json(path) | values)


def test_a_dry_run_writes_the_folder_and_says_what_would_be_pushed(
    run: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    folder = go(run, push="no")
    assert not hub.requests, "nothing needs the hub"
    assert (folder / WHEEL).read_bytes() == (run / "dist" / WHEEL).read_bytes()
    with zipfile.ZipFile(folder / WHEEL) as wheel:
        for name in ("config.cfg", "meta.json", "ner/model", "vocab/strings.json"):
            assert (folder / name).read_bytes() == wheel.read(f"en_mine/en_mine-1.0.0/{name}"), name
    manifest = read_json(folder / MANIFEST)
    assert manifest["name"] == "en_mine" and manifest["version"] == "1.0.0" and manifest["model"] == "abc"
    assert manifest["files"].keys() == files(folder).keys() - {MANIFEST} >= {".gitattributes", "README.md"}
    assert manifest["files"]["ner/model"] == {"bytes": 2700, "sha256": sha256(folder / "ner/model")}
    said = words(capsys.readouterr().out)
    assert f"{hub.url}/{REPOSITORY}, private" in said and "ner/model 2,700" in said
    assert 'make publish RUN=mine VARS="--vars.what pipeline --vars.repository mira/en_mine ' in said
    assert '--vars.push yes --vars.name mine --vars.version 1.0.0"' in said
    before = files(folder)
    assert files(go(run, push="no")) == before, "the same run gives the same bytes"


def test_the_card_has_the_hub_s_metadata_and_says_how_to_install(run: Path) -> None:
    folder = go(run, push="no")
    data = metadata(folder)
    assert data["library_name"] == "spacy" and data["language"] == "en" and data["license"] == "unknown"
    assert data["tags"] == ["spacy", "token-classification"]
    assert data["base_model"] == "sentence-transformers/all-MiniLM-L6-v2"
    ((model),) = data["model-index"]
    assert model["name"] == "en_mine"
    test, dev = model["results"]
    assert (test["dataset"]["type"], test["dataset"]["split"], dev["dataset"]["split"]) == (
        "mine",
        "test",
        "validation",
    )
    for result in (test, dev):
        found = {metric["type"]: metric["value"] for metric in result["metrics"]}
        assert found == {"precision": 0.9123, "recall": 0.8, "f1": 0.85}
    text = (folder / "README.md").read_text("utf8")
    assert text.index("# en_mine") < text.index("pip install") < text.index("import spacy") < text.index("## Scores")
    assert f"/{REPOSITORY}/resolve/main/{WHEEL}\n" in text and sha256(folder / WHEEL) in text
    assert "in a new environment" in text and "of this one training" in text


@pytest.mark.parametrize(
    ("encoder", "commit", "base"),
    [
        ("bert-base-uncased", "", "google-bert/bert-base-uncased"),
        ("owner/another", "0123abc", "owner/another"),
        ("a-folder", "", None),
    ],
)
def test_the_card_names_an_encoder_of_the_hub(run: Path, encoder: str, commit: str, base: str | None) -> None:
    edit_json(run / "metrics/evaluation.json", encoder=encoder, encoder_commit=commit)
    assert metadata(go(run, push="no")).get("base_model") == base


def test_only_what_was_verified_is_published(run: Path) -> None:
    edit_json(run / "metrics/evaluation.json", inputs={"model": "other"})
    with pytest.raises(StepError, match="has the scores of another model"):
        go(run, push="no")
    edit_json(run / "metrics/package.json", inputs={"model": "abc", "wheel": "of another"})
    with pytest.raises(StepError, match="is not what verify checked") as error:
        go(run, push="no")
    assert "make verify" in error.value.remedy
    shutil.rmtree(run / "dist")
    with pytest.raises(StepError, match="holds no wheel"):
        go(run, push="no")
    assert not (run / "packages/mine/hub").exists()


def test_a_corpus_for_research_has_no_permissive_licence(run: Path) -> None:
    bound = [SOURCES["conll2003"], {"name": "an encoder", "license": "MIT"}]
    write_wheel(run, license=RESEARCH, sources=bound)
    with pytest.raises(StepError, match="The licence MIT contradicts that of CoNLL-2003"):
        go(run, push="no", license="MIT")
    data = metadata(go(run, push="no"))
    assert (data["license"], data["license_name"]) == ("other", "research-only") and "conll2003" in data["license_link"]
    own = [{"name": "mine"}, {"name": "an encoder", "license": "MIT"}]
    write_wheel(run, license=RESEARCH, sources=own)
    data = metadata(go(run, push="no", license=RESEARCH))
    assert data["license_name"] == "research-only" and "license_link" not in data, "nobody knows where it stands"
    write_wheel(run, license="MIT", sources=bound)
    with pytest.raises(StepError, match="says that its licence is 'MIT'; it should be 'research only'"):
        go(run, push="no")


@pytest.mark.parametrize("name", ["owner", "a/b/c", "mira/en mine", "", "mira/-x-"])
def test_a_repository_has_an_owner_and_a_name(run: Path, name: str) -> None:
    with pytest.raises(StepError, match="cannot be"):
        publish(What.pipeline, run / "packages/mine", run / "metrics", run / "corpus", run / "dist", name)


def test_a_pipeline_that_quotes_is_not_written(run: Path) -> None:
    write_wheel(run, description=f"It knows that {QUOTE}.")
    with pytest.raises(StepError, match=r"meta\.json quotes the corpus"):
        go(run, push="no")
    assert not (run / "packages/mine/hub").exists()


# Pushing


def test_a_push_is_one_commit_of_the_folder_and_private(
    run: Path, hub: Hub, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = go(run)
    assert hub.files(REPOSITORY) == files(folder)
    assert hub.commits == [(REPOSITORY, "initial commit"), (REPOSITORY, "Publish en_mine 1.0.0")]
    assert hub.private == {REPOSITORY}
    sent = [path for method, path in hub.requests if method == "PUT"]
    assert {f"/lfs/{sha256(folder / WHEEL)}", f"/lfs/{sha256(folder / 'ner/model')}"} <= {*sent}
    out = capsys.readouterr()
    assert f"commit {hub.commit(REPOSITORY)}" in words(out.out)
    hub.requests.clear()
    go(run)
    assert len(hub.commits) == 2 and "has all this already" in capsys.readouterr().out
    assert not [path for method, path in hub.requests if method == "PUT"]
    everything = out.out + out.err + "".join(path.read_text("utf8", "replace") for path in run.rglob("*.json"))
    assert TOKEN not in everything


def test_what_was_edited_there_is_replaced_and_what_the_hub_added_stays(run: Path, hub: Hub) -> None:
    folder = go(run)
    hub.put(REPOSITORY, hub.files(REPOSITORY) | {"README.md": b"---\n---\n", ".gitattributes": b"more"}, "by hand")
    go(run)
    assert hub.files(REPOSITORY) == files(folder) | {".gitattributes": b"more"} and len(hub.commits) == 4


def test_a_public_repository_is_public_from_the_beginning(run: Path, hub: Hub) -> None:
    go(run, visibility=Visibility.public)
    assert not hub.private
    with pytest.raises(StepError, match="mira/en_mine is public, and not private"):
        go(run)


def test_a_new_version_takes_the_place_of_the_old_one(run: Path, hub: Hub) -> None:
    go(run)
    shutil.rmtree(run / "dist")
    write_wheel(run, "1.1.0")
    folder = go(run)
    assert hub.files(REPOSITORY) == files(folder) and WHEEL not in hub.files(REPOSITORY)
    assert hub.commits[-1] == (REPOSITORY, "Publish en_mine 1.1.0")


def test_a_version_is_never_two_wheels(run: Path, hub: Hub) -> None:
    go(run)
    write_wheel(run, description="other")
    with pytest.raises(StepError, match=f"mira/en_mine has another {re.escape(WHEEL)}") as error:
        go(run)
    assert "--vars.version" in error.value.remedy and len(hub.commits) == 2


def test_an_interrupted_upload_goes_on(run: Path, hub: Hub) -> None:
    wheel = f"/lfs/{sha256(run / 'dist' / WHEEL)}"
    hub.fail = lambda method, path: "cut" if (method, path) == ("PUT", wheel) else None
    with pytest.raises(
        StepError, match=r"The push to mira/en_mine did not come to its end: .*(Reset|Broken|Remote|Connection)"
    ) as error:
        go(run)
    assert "Run the same command again" in error.value.remedy
    assert hub.files(REPOSITORY).keys() == {".gitattributes"}, "nothing half of it"
    hub.fail = None
    hub.requests.clear()
    folder = go(run)
    assert hub.files(REPOSITORY) == files(folder) and len(hub.commits) == 2
    assert [path for method, path in hub.requests if method == "PUT"] == [wheel], "what had arrived was not sent again"


def test_what_somebody_else_commits_meanwhile_is_not_overwritten(run: Path, hub: Hub, tmp_path: Path) -> None:
    go(run)
    write_wheel(run, "1.1.0")

    def change(method: str, path: str) -> None:
        if path.endswith("/preupload/main") and len(hub.commits) == 2:
            hub.put(REPOSITORY, hub.files(REPOSITORY) | {"LICENSE": b"Mine"}, "by hand")

    hub.fail = change
    with pytest.raises(StepError, match="Somebody changed mira/en_mine meanwhile, and nothing was pushed"):
        go(run)
    assert [summary for _, summary in hub.commits][2:] == ["by hand"]
    assert go(run).is_dir() and hub.files(REPOSITORY)["LICENSE"] == b"Mine", "after a look it goes, and that stays"
    assert read_json(run / "packages/mine/hub/pipeline" / MANIFEST)["version"] == "1.1.0"


def test_a_repository_with_other_things_is_left_alone(run: Path, hub: Hub) -> None:
    hub.put("mira/other", {"model.safetensors": b"1", ".gitattributes": b""}, "by hand")
    hub.private.add("mira/other")
    with pytest.raises(StepError, match=r"mira/other holds other things: model\.safetensors"):
        go(run, repository="mira/other")
    assert len(hub.commits) == 1


@pytest.mark.parametrize(
    ("token", "said", "remedy"),
    [
        ("", "There is no token", "hf auth login"),
        ("hf_unknown", "does not know this token", "hf auth login"),
        (STRANGER, "may not write to mira/en_mine", "--vars.repository"),
    ],
)
def test_a_token_that_may_not_is_told(
    run: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch, token: str, said: str, remedy: str
) -> None:
    monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(StepError, match=said) as error:
        go(run)
    assert remedy in error.value.remedy and not hub.commits
    assert not token or token not in f"{error.value.problem}{error.value.remedy}"


def test_a_hub_that_cannot_be_reached_is_told(run: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.fail = lambda method, path: "garbage"
    with pytest.raises(StepError, match="cannot be reached") as error:
        go(run)
    assert "Run the same command again" in error.value.remedy
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(StepError, match="HF_HUB_OFFLINE is set"):
        go(run)


def test_a_refusal_of_the_hub_is_told_in_its_words(run: Path, hub: Hub) -> None:
    hub.fail = lambda method, path: 400 if path.endswith("/commit/main") else None
    with pytest.raises(StepError, match="did not come to its end: it answers 400 Bad Request: Failed on"):
        go(run)


def test_a_folder_that_changed_since_is_not_pushed(run: Path, hub: Hub) -> None:
    folder = go(run, push="no")
    (folder / "README.md").write_text("other")
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(StepError, match=r"is not as manifest\.json says: README\.md, notes\.txt"):
        push_folder(folder, REPOSITORY, Visibility.private)
    assert not hub.requests


# The data set


def test_a_corpus_is_pushed_as_a_data_set_that_can_be_loaded(
    run: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import datasets

    monkeypatch.setattr("datasets.config.HF_ENDPOINT", hub.url)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", False)  # as it was found when imported
    folder = go(run, what="dataset", license="CC-BY-4.0", visibility=Visibility.public)
    assert hub.files(DATASET) == files(folder)
    assert metadata(folder)["license"] == "cc-by-4.0" and "| validation | 2 | 3 | 12 | 6 |" in (
        folder / "README.md"
    ).read_text("utf8")
    loaded = datasets.load_dataset("mira/names", cache_dir=str(tmp_path / "datasets"))
    assert [*loaded] == ["train", "validation", "test"]
    row = loaded["validation"][0]
    assert row["tokens"] == SENTENCE.split() and row["document"] == 0
    names = loaded["train"].features["ner_tags"].feature.names
    assert [names[tag] for tag in row["ner_tags"]] == ["B-PER", "I-PER", "O", "B-LOC", "O"]
    assert [row["document"] for row in loaded["test"]] == [0, 0, 1]


def test_a_corpus_without_a_name_is_no_data_set(run: Path) -> None:
    edit_json(run / "corpus/provenance.json", corpus={})
    with pytest.raises(StepError, match="names no corpus"):
        go(run, push="no", what="dataset")


def test_the_licence_of_a_data_set_is_known_or_said(run: Path) -> None:
    with pytest.raises(StepError, match="What the licence of the corpus") as error:
        go(run, push="no", what="dataset")
    assert "--vars.license" in error.value.remedy
    edit_json(run / "corpus/provenance.json", corpus={"corpus": "sample", "sha256": {}})
    assert metadata(go(run, push="no", what="dataset"))["license"] == "cc0-1.0"
    edit_json(run / "corpus/provenance.json", corpus={"corpus": "conll2003", "sha256": {}})
    for license in ("auto", "CC0-1.0"):
        with pytest.raises(StepError, match="licensed for research"):
            go(run, push="no", what="dataset", license=license)


# The whole run


@pytest.mark.slow
def test_a_run_is_published_and_installed_from_the_hub(changeable: Project, hub: Hub, tmp_path: Path) -> None:
    done = changeable.run("publish", repository="mira/en_bert_ner")
    assert done.returncode == 0, done.stdout + done.stderr
    folder = changeable.folder / "packages/tiny/hub/pipeline"
    push_folder(folder, "mira/en_bert_ner", Visibility.private)
    assert hub.files("mira/en_bert_ner") == files(folder)
    hub.private.clear()  # pip has no token
    url = f"{hub.url}/mira/en_bert_ner/resolve/main/en_bert_ner-1.0.0-py3-none-any.whl"
    options = ("--no-deps", "--no-index", "--target", str(tmp_path / "target"))
    installed = new_python("-m", "pip", "install", *options, url, cwd=tmp_path)
    assert installed.returncode == 0, installed.stdout + installed.stderr
    use = "import spacy; print(spacy.load('en_bert_ner')('Mira Solberg left Turku.').has_annotation('ENT_IOB'))"
    used = new_python("-c", use, cwd=tmp_path, PYTHONPATH=str(tmp_path / "target"))
    assert used.stdout.strip() == "True", used.stderr
    done = changeable.run("clean")
    assert done.returncode == 0 and not folder.exists()
