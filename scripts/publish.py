"""Write what the Hugging Face hub shall have of a run, its pipeline or its corpus, with a card; push it if told to."""

from __future__ import annotations

import shlex
import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import requests
import typer
from wasabi import msg

from common.corpora import label_names, read_docs, split_sentences
from common.errors import StepError, main
from common.hub import causes_of, check_hub, explain
from common.licenses import RESEARCH, SOURCES, find_license
from common.quotes import check_sentences
from common.records import SPLITS, read_json, sha256, staged, write_json, writes
from common.wheels import newest_wheel

if TYPE_CHECKING:  # huggingface_hub costs time, which errors before the card should not
    from huggingface_hub import EvalResult, HfApi

HUB = "https://huggingface.co/"
MANIFEST = "manifest.json"  # in the repository too, where the next version finds what is its own
ATTRIBUTES = "".join(f"{name} filter=lfs diff=lfs merge=lfs -text\n" for name in ("*.whl", "*.parquet", "model"))
SPLIT_NAMES = {"train": "train", "dev": "validation", "test": "test"}  # the hub's names
AGAIN = "Run the same command again. What is there is whole, and large files that have arrived are not sent again."
PATIENCE = 60  # seconds without a sign of life. A commit may take longer than what check_hub waits for


class What(StrEnum):
    """What is published."""

    pipeline = "pipeline"
    dataset = "dataset"


class Push(StrEnum):
    """Whether it is pushed, or only written here."""

    no = "no"
    yes = "yes"


class Visibility(StrEnum):
    """Who can see the repository: those whom its owner lets, or everybody."""

    private = "private"
    public = "public"


INSTALL = """
```bash
pip install {url}/resolve/main/{wheel}
```

From a private repository, log in with `hf auth login`, then `hf download {repository} {wheel} --local-dir .` and
`pip install ./{wheel}`. The name of the wheel has its version, which pip 25.3 and later require. The files beside the
wheel are what it holds; to load them without it, its code is needed all the same.
"""

PROVENANCE = """
## What these figures are, and where this comes from

All figures are of this one training, measured on the corpus that is named above. Another seed gives others, and other
text too. `model-index` in the metadata has precision, recall and F1 of entities as shipped: the pipeline finds the
sentences itself.

The files are those of `{wheel}`, SHA-256 `{digest}`. This wheel was installed {where} and gave, offline, the
scores of test that stand above. `provenance.json` names the settings, and the checksums of the code, the
corpus and the encoder that decided the weights; `{manifest}` has size and SHA-256 of each file.
"""

DATASET = """# {name}

Documents in English with named entities: {labels}.

```python
from datasets import load_dataset

dataset = load_dataset("{repository}")
tags = dataset["train"].features["ner_tags"].feature  # tags.int2str(number), tags.names
```

A row is a sentence: `tokens`, `ner_tags` in IOB2, and `document`, the number of its document in the split. Parts of
speech and chunks, if the corpus has them, are not in it.

| split | documents | sentences | tokens | entities |
|---|---|---|---|---|
{rows}

## Where this comes from

It is the corpus that a pipeline was trained, tuned and tested on, as it was used there. The SHA-256 of its files before
their conversion: {digests}. `{manifest}` has size and SHA-256 of each file here.

## Limits

How many people annotated a text, and how far they agree, is not in it. Who uses it should read a sample first.
"""


@writes("packages")
def publish(
    what: Annotated[What, typer.Argument(help="What is published")],
    packages: Annotated[Path, typer.Argument(help="Folder for hub/, with what would be pushed")],
    metrics: Annotated[Path, typer.Argument(help="With evaluation.json, and package.json of verify")],
    corpus: Annotated[Path, typer.Argument(help="The run's corpus, which a pipeline must not quote", exists=True)],
    dist: Annotated[Path, typer.Option(help="Folder with the wheel")],
    repository: Annotated[str, typer.Option(help="Where, as owner/name")],
    license: Annotated[str, typer.Option(help="Licence, or auto: what corpus and encoder allow")] = "auto",
    visibility: Annotated[Visibility, typer.Option(help="Who can see the repository")] = Visibility.private,
    push: Annotated[Push, typer.Option(help="yes: push it; no: write it here and say what would be pushed")] = Push.no,
) -> None:
    """Write the folder of a repository on the hub, whole and with a manifest, and push it as one commit if told to."""
    check_repository(repository)
    name = f"hub/{what}"
    with staged(packages, name) as new:
        folder = new / name
        folder.mkdir(parents=True)
        (folder / ".gitattributes").write_text(ATTRIBUTES, encoding="utf8")
        if what is What.pipeline:
            about = write_pipeline(folder, newest_wheel(dist), metrics, repository, license)
            check_sentences(folder, corpus)
        else:
            about = write_dataset(folder, corpus, repository, license)
        write_json(folder / MANIFEST, {"what": what, **about, "files": _list_files(folder)})
    folder = packages / name
    tell(folder, f"{_url(repository, what)}, {visibility}")
    if push is Push.yes:
        push_folder(folder, repository, visibility)
        return
    options = {"what": what, "repository": repository, "visibility": visibility, "license": license, "push": Push.yes}
    if what is What.pipeline:  # or it would look for the wheel that the run's file names
        options |= {"name": about["name"].removeprefix("en_"), "version": about["version"]}
    variables = " ".join(f"--vars.{key} {shlex.quote(value)}" for key, value in options.items())
    print(f'Nothing was pushed. To push it:\n    make publish RUN={packages.name} VARS="{variables}"')


def check_repository(repository: str) -> None:
    """Make sure that a repository is named as the hub names one.

    repository (str): The name.
    RAISES (StepError): If it is not owner/name.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined] # documented, but not in __all__

    problem = "" if repository.count("/") == 1 else "there is no owner/name"
    try:
        validate_repo_id(repository)
    except HFValidationError as error:
        problem = str(error).splitlines()[0]
    if problem:
        raise StepError(f"The repository {repository!r} cannot be: {problem}", "Name it: --vars.repository owner/name")


def write_pipeline(folder: Path, wheel: Path, metrics: Path, repository: str, license: str) -> dict[str, str]:
    """Write a wheel, the files of the pipeline that it holds, and a model card.

    folder (Path): The folder.
    wheel (Path): The wheel.
    metrics (Path): With evaluation.json, and with package.json, which says what `verify` checked.
    repository (str): The repository, for the card.
    license (str): The licence, or auto.
    RETURNS (dict[str, str]): What the manifest says of it.
    RAISES (StepError): If it is another wheel than `verify` checked, if the scores are of another model, or if the
        licence of the wheel is not what corpus and encoder allow.
    """
    from huggingface_hub import ModelCard, ModelCardData

    verified, evaluation = read_json(metrics / "package.json"), read_json(metrics / "evaluation.json")
    digest = sha256(wheel)
    if verified.get("inputs", {}).get("wheel") != digest:
        raise StepError(f"{wheel} is not what verify checked.", f"Check it: make verify RUN={metrics.name}")
    if evaluation.get("inputs", {}).get("model") != verified["inputs"]["model"]:
        raise StepError(
            f"{metrics / 'evaluation.json'} has the scores of another model than {wheel.name}.",
            f"Run all steps again: make all RUN={metrics.name}",
        )
    package, version = wheel.name.split("-")[:2]
    inside = f"{package}/{package}-{version}"
    with tempfile.TemporaryDirectory() as temporary, zipfile.ZipFile(wheel) as files:
        files.extractall(temporary, [name for name in files.namelist() if name.startswith(f"{inside}/")])
        shutil.copytree(Path(temporary, inside), folder, dirs_exist_ok=True)
    shutil.copy2(wheel, folder)  # with its date, so that it is not the newest of two
    meta = read_json(folder / "meta.json")
    if meta["license"] != (allowed := find_license(license, *meta["sources"])):
        raise StepError(
            f"{wheel.name} says that its licence is {meta['license']!r}; it should be {allowed!r}.",
            f"Make it again, with the same --vars.license: make package verify RUN={metrics.name}",
        )
    data = ModelCardData(
        language=meta["lang"],
        library_name="spacy",
        pipeline_tag="token-classification",
        tags=["spacy", "token-classification"],
        base_model=find_base(evaluation),
        model_name=package,
        eval_results=list_results(evaluation, meta["sources"][0]["name"]),
        **name_license(meta["license"], meta["sources"]),
    )
    head, code, rest = (folder / "README.md").read_text("utf8").partition("\n```python\n")
    url = _url(repository, What.pipeline)
    where = "in a new environment" if verified["clean_environment"] else f"in another folder ({verified['why_not']})"
    text = head + INSTALL.format(url=url, repository=repository, wheel=wheel.name) + code + rest
    text += PROVENANCE.format(wheel=wheel.name, digest=digest, where=where, manifest=MANIFEST)
    ModelCard(f"---\n{data.to_yaml()}\n---\n\n{text}").save(folder / "README.md")
    return {"name": package, "version": version, "license": allowed, "model": verified["inputs"]["model"]}


def find_base(evaluation: dict[str, Any]) -> str | None:
    """Find the encoder on the hub that a pipeline was fine-tuned from.

    evaluation (dict[str, Any]): As the step evaluate writes it.
    RETURNS (str | None): Its id there; None if it came from a folder or from a pipeline.
    """
    name: str = evaluation["encoder"]
    url = SOURCES.get(name, {}).get("url", "")
    if url.startswith(HUB):
        return url.removeprefix(HUB)
    return name if evaluation["encoder_commit"] else None


def list_results(evaluation: dict[str, Any], corpus: str) -> list[EvalResult]:
    """List precision, recall and F1 of entities on test and dev, as shipped, for `model-index`.

    evaluation (dict[str, Any]): As the step evaluate writes it.
    corpus (str): The name of the corpus in words.
    RETURNS (list[EvalResult]): The results, of test first.
    """
    from huggingface_hub import EvalResult

    metrics = {"precision": "ents_p", "recall": "ents_r", "f1": "ents_f"}
    return [
        EvalResult(
            task_type="token-classification",
            task_name="Named entities",
            dataset_type=evaluation["corpus"],
            dataset_name=corpus,
            dataset_split=SPLIT_NAMES[split],
            metric_type=metric,
            metric_name=f"{metric} of entities, as shipped",
            metric_value=round(evaluation[split]["predicted_sentences"][key], 4),
        )
        for split in ("test", "dev")
        for metric, key in metrics.items()
    ]


def name_license(license: str, sources: list[dict[str, str]]) -> dict[str, Any]:
    """Name a licence as the hub does: by an identifier, or as another one with name and link.

    license (str): As `find_license` gives it.
    sources (list[dict[str, str]]): What it comes from.
    RETURNS (dict[str, Any]): Fields of a card's metadata.
    """
    if license == RESEARCH:
        links = [source["url"] for source in sources if source.get("license") == RESEARCH]
        named = {"license": "other", "license_name": RESEARCH.replace(" ", "-")}
        return named | ({"license_link": links[0]} if links else {})  # a corpus of one's own has none
    return {"license": "unknown" if " " in license else license.lower()}  # a sentence says that nobody knows it here


def write_dataset(folder: Path, corpus: Path, repository: str, license: str) -> dict[str, str]:
    """Write a corpus as parquet, with the names of the tags in it, and a data set card.

    folder (Path): The folder.
    corpus (Path): Folder with provenance.json and a .spacy file for each split.
    repository (str): The repository, for the card.
    license (str): The licence; auto is enough if this project knows it.
    RETURNS (dict[str, str]): What the manifest says of it.
    RAISES (StepError): If the corpus must not be given away, or if nobody says what its licence is.
    """
    import pyarrow
    from datasets import ClassLabel, Features, Sequence, Value
    from huggingface_hub import DatasetCard, DatasetCardData
    from pyarrow.parquet import write_table

    provenance = read_json(corpus / "provenance.json")
    if not (name := provenance.get("corpus", {}).get("corpus")):
        raise StepError(f"{corpus / 'provenance.json'} names no corpus.", f"Make it: make convert RUN={corpus.name}")
    known = SOURCES.get(name, {"name": name})
    if known.get("license") == RESEARCH:
        raise StepError(
            f"{known['name']} is licensed for research: nobody but its owners gives it away.",
            "Publish the pipeline: --vars.what pipeline",
        )
    if (allowed := known.get("license", "") if license == "auto" else license) == "":
        raise StepError(
            f"What the licence of the corpus {name} is, is not known here.",
            "Say what the owners of its texts and annotations allow, for example: --vars.license CC-BY-4.0",
        )
    splits = {
        split: [
            {"document": number, "tokens": sentence["words"], "ner_tags": sentence["tags"]}
            for number, doc in enumerate(read_docs(corpus / f"{split}.spacy"))
            for sentence in split_sentences([doc])
        ]
        for split in SPLITS
    }
    names = label_names([{"tags": row["ner_tags"]} for rows in splits.values() for row in rows])
    numbers = {tag: number for number, tag in enumerate(names)}
    tags = Sequence(ClassLabel(names=names))
    schema = Features({"document": Value("int64"), "tokens": Sequence(Value("string")), "ner_tags": tags}).arrow_schema
    (folder / "data").mkdir()
    for split, rows in splits.items():
        table = [row | {"ner_tags": [numbers[tag] for tag in row["ner_tags"]]} for row in rows]
        write_table(pyarrow.Table.from_pylist(table, schema=schema), folder / f"data/{SPLIT_NAMES[split]}.parquet")
    places = [{"split": split, "path": f"data/{split}.parquet"} for split in SPLIT_NAMES.values()]
    data = DatasetCardData(
        language="en",
        pretty_name=known["name"],
        task_categories=["token-classification"],
        task_ids=["named-entity-recognition"],
        configs=[{"config_name": "default", "data_files": places}],
        **name_license(allowed, []),
    )
    counts = {split: provenance["counts"][split] for split in SPLITS}
    text = DATASET.format(
        name=known["name"],
        repository=repository,
        labels=", ".join(sorted({name[2:] for name in names[1:]})),
        rows="\n".join(
            f"| {SPLIT_NAMES[split]} | {count['documents']:,} | {count['sentences']:,} | {count['tokens']:,} "
            f"| {sum(count['entities'].values()):,} |"
            for split, count in counts.items()
        ),
        digests=", ".join(f"{file} `{digest}`" for file, digest in provenance["corpus"]["sha256"].items()),
        manifest=MANIFEST,
    )
    DatasetCard(f"---\n{data.to_yaml()}\n---\n\n{text}").save(folder / "README.md")
    return {"name": name, "license": allowed}


def tell(folder: Path, where: str) -> None:
    """Show what is in the folder of a repository, and where it goes.

    folder (Path): The folder, with its manifest.
    where (str): The address and who can see it.
    """
    manifest = read_json(folder / MANIFEST)
    rows = [(name, f"{file['bytes']:,}", file["sha256"][:12]) for name, file in manifest["files"].items()]
    msg.table(rows, header=("file", "bytes", "SHA-256"), divider=True, aligns=("l", "r", "l"))
    total = sum(file["bytes"] for file in manifest["files"].values())
    msg.good(f"Wrote {folder}: {len(rows)} files and {MANIFEST}, {total / 1e6:.1f} MB, licence {manifest['license']}")
    msg.info(f"For {where}")


def push_folder(folder: Path, repository: str, visibility: Visibility) -> None:
    """Push a folder to a repository, which is made if there is none, as one commit.

    Large files come first, and the commit makes all visible at once. What has arrived is not sent again. The commit is
    refused if somebody else has committed since this looked at the repository.

    folder (Path): The folder, with its manifest.
    repository (str): Its name.
    visibility (Visibility): Who shall see it; an existing repository must be so already.
    RAISES (StepError): If a file is not as the manifest says, if the hub refuses it or cannot be reached, or if the
        repository holds other things.
    """
    from huggingface_hub import HfApi, configure_http_backend, constants, get_token

    manifest = read_json(folder / MANIFEST)
    present = _list_files(folder)
    wrong = {name for name in manifest["files"].keys() | present if manifest["files"].get(name) != present.get(name)}
    if wrong:
        raise StepError(f"{folder} is not as {MANIFEST} says: {', '.join(sorted(wrong))}.", "Run the command again.")
    if constants.HF_HUB_OFFLINE:
        raise StepError("HF_HUB_OFFLINE is set, so that nothing can be pushed.", "Unset this variable.")
    if not (token := get_token()):
        raise StepError(
            "There is no token for the hub.",
            "Make one that may write, on the page of your account there, and log in: .venv/bin/hf auth login",
        )
    what, url = What(manifest["what"]), _url(repository, What(manifest["what"]))
    kind = "model" if what is What.pipeline else "dataset"
    try:
        check_hub()
    except StepError as error:
        raise StepError(error.problem, AGAIN) from error
    with _told(repository):
        configure_http_backend(_PatientSession)
        api = HfApi(token=token)
        parent, before = find_state(api, repository, kind, visibility, manifest)
        done = api.upload_folder(
            repo_id=repository,
            repo_type=kind,
            folder_path=folder,
            commit_message=" ".join(filter(None, ("Publish", manifest["name"], manifest.get("version")))),
            parent_commit=parent,
            delete_patterns=[*(before.get("files", {}).keys() - manifest["files"].keys())],
            ignore_patterns=[".gitattributes"] if before else None,  # to which the hub may have added since
        )
    msg.good(f"{url} has all this already." if done.oid == parent else f"Pushed to {url}, commit {done.oid}")


def find_state(
    api: HfApi, repository: str, kind: str, visibility: Visibility, manifest: dict[str, Any]
) -> tuple[str, dict[str, Any]]:
    """Find out what a repository holds, before a folder takes the place of that. It is made if there is none.

    api (HfApi): The hub's client.
    repository, kind (str): Its name, and whether it is of a model or dataset.
    visibility (Visibility): Who shall see it.
    manifest (dict[str, Any]): That of the folder.
    RETURNS (tuple[str, dict[str, Any]]): Its last commit, and its manifest, empty if it is new.
    RAISES (StepError): If others can see it than wanted, if it holds other things, or if a wheel there has the version
        of another one here.
    """
    from huggingface_hub.errors import RepositoryNotFoundError

    private = visibility is Visibility.private
    try:
        info = api.repo_info(repository, repo_type=kind)
    except RepositoryNotFoundError:
        api.create_repo(repository, repo_type=kind, private=private, exist_ok=True)
        info = api.repo_info(repository, repo_type=kind)
    if info.private is not private:
        seen = Visibility.private if info.private else Visibility.public
        raise StepError(
            f"{repository} is {seen}, and not {visibility}.",
            f"Change that on its page, take another repository, or say --vars.visibility {seen}",
        )
    found = {file.rfilename for file in info.siblings or ()} - {".gitattributes"}
    before: dict[str, Any] = {}
    if MANIFEST in found:
        with tempfile.TemporaryDirectory() as cache:
            path = api.hf_hub_download(repository, MANIFEST, repo_type=kind, revision=info.sha, cache_dir=cache)
            before = read_json(Path(path))
    if found and before.get("name") != manifest["name"]:
        raise StepError(
            f"{repository} holds other things: {', '.join(sorted(found)[:5])}.",
            "Take another repository; this command makes one that does not exist: --vars.repository owner/name",
        )
    for name, file in manifest["files"].items():
        if name.endswith(".whl") and before.get("files", {}).get(name, file) != file:
            remedy = "Give this one a new version: --vars.version, for package too"
            raise StepError(f"{repository} has another {name}.", remedy)
    return str(info.sha), before


@contextmanager
def _told(repository: str) -> Iterator[None]:
    """Errors of the hub's client in words."""
    from huggingface_hub.errors import HfHubHTTPError

    refusals: dict[int | None, tuple[str, str]] = {
        HTTPStatus.UNAUTHORIZED: (
            "The hub does not know this token.",
            "Make a new one that may write, and log in, or set HF_TOKEN: .venv/bin/hf auth login",
        ),
        HTTPStatus.FORBIDDEN: (
            f"This token may not write to {repository}.",
            "Take a token that may write, and an owner to whom you belong: --vars.repository owner/name",
        ),
        HTTPStatus.PRECONDITION_FAILED: (
            f"Somebody changed {repository} meanwhile, and nothing was pushed.",
            "Look at what is there now, and run the same command again.",
        ),
    }
    try:
        yield
    except (OSError, RuntimeError, ValueError) as error:
        answers = (cause.response for cause in causes_of(error) if isinstance(cause, HfHubHTTPError))
        status = next((answer.status_code for answer in answers if answer is not None), None)
        told = refusals.get(status, (f"The push to {repository} did not come to its end: {explain(error)}", AGAIN))
        raise StepError(*told) from error


class _PatientSession(requests.Session):
    """Waits PATIENCE for each sign of life, where the hub's client knows no limit."""

    def send(self, request: requests.PreparedRequest, **kwargs: Any) -> requests.Response:
        return super().send(request, **kwargs | {"timeout": PATIENCE})


def _list_files(folder: Path) -> dict[str, dict[str, Any]]:
    """The files of a folder but its manifest: size and SHA-256 by name."""
    return {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": sha256(path)}
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path != folder / MANIFEST
    }


def _url(repository: str, what: What) -> str:
    from huggingface_hub import constants

    return "/".join([constants.ENDPOINT, *["datasets"] * (what is What.dataset), repository])


if __name__ == "__main__":
    main(publish)
