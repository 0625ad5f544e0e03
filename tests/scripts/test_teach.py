from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import spacy
from hypothesis import given
from hypothesis import strategies as st
from spacy.tokens import Doc, DocBin, Span
from spacy.training import Example

from bert_ner.recognizer import find_entities_of
from common.corpora import read_docs
from common.errors import StepError
from common.records import digest, read_json, sha256
from scripts import teach as step
from scripts.convert import convert
from scripts.teach import teach
from scripts.train import train
from tests.common.test_texts import write_texts
from tests.conftest import ROOT, Project, copy_project, name_as_on_the_hub, save_tiny_encoder, words, write_corpus

CONFIG = ROOT / "configs" / "bert.cfg"
nlp = spacy.blank("en")


@pytest.fixture(scope="module")
def teachers(tmp_path_factory: pytest.TempPathFactory, trained: Path, tiny_corpus: Path, tiny_encoder: Path) -> Path:
    """A folder with two trained pipelines, model-best and another."""
    folder = tmp_path_factory.mktemp("teachers")
    shutil.copytree(trained, folder / "model-best")
    train(CONFIG, folder, tiny_corpus, tiny_encoder, epochs="1", seed=1)
    return folder


@pytest.fixture
def corpus(tmp_path: Path, tiny_corpus: Path) -> Path:
    return Path(shutil.copytree(tiny_corpus, tmp_path / "student"))


# Texts

TEXTS = ["Mira left Turku.", "Oslo sleeps,\nand so does Peru.", "Kenya beat Malta."]


@pytest.mark.parametrize("kind", [".txt", ".jsonl", ".parquet", ".spacy"])
def test_texts_are_read_from_files_of_each_kind(tmp_path: Path, kind: str) -> None:
    texts = TEXTS[:1] if kind == ".txt" else TEXTS
    path = write_texts(tmp_path / f"texts{kind}", texts)
    assert [doc.text for doc in step.read_texts(path, nlp)] == texts


def test_a_folder_has_texts_in_files_of_several_kinds(tmp_path: Path) -> None:
    for place in ("a.txt", "b/c.jsonl", "d.spacy"):
        write_texts(tmp_path / place, TEXTS[:1])
    (tmp_path / "readme.md").write_text("Not a text.")
    assert [doc.text for doc in step.read_texts(tmp_path, nlp)] == TEXTS[:1] * 3


@pytest.mark.parametrize(
    ("name", "contents", "said"),
    [
        ("a.txt", b"Turku\nna\xefve", r"a\.txt, line 2: this is not UTF-8"),
        ("a.jsonl", b'{"text": "Turku"}\n{"text": ', r"a\.jsonl, line 2: this is not JSON"),
        ("a.jsonl", b'\n{"title": "Turku"}', r"a\.jsonl, line 2: there is no text"),
        ("a.jsonl", b'["Turku"]', r"a\.jsonl, line 1: there is no text"),
        ("a.jsonl", b'{"text": 3}', r"a\.jsonl, line 1: there is no text"),
        ("a.jsonl", b"\xff", r"a\.jsonl, line 1: this is not JSON"),
        ("a.parquet", b"PAR1", r"a\.parquet cannot be read"),
        ("a.spacy", b"Turku", r"a\.spacy is damaged"),
        ("a.csv", b"text\nna\xefve", r"a\.csv, line 2: this is not UTF-8"),
        ("a.docx", b"Turku", r"a\.docx cannot be read"),
        ("a.odt", b"Turku", r"a\.odt is not a file of a known kind"),
    ],
)
def test_what_is_no_text_is_refused_with_its_place(tmp_path: Path, name: str, contents: bytes, said: str) -> None:
    (tmp_path / name).write_bytes(contents)
    with pytest.raises(StepError, match=said) as error:
        list(step.read_texts(tmp_path / name, nlp))
    assert error.value.remedy


def test_a_row_or_a_folder_without_text_is_refused(tmp_path: Path) -> None:
    pyarrow.parquet.write_table(pyarrow.table({"text": ["Turku", None]}), tmp_path / "a.parquet")
    with pytest.raises(StepError, match=r"a\.parquet, row 2: there is no text"):
        list(step.read_texts(tmp_path / "a.parquet", nlp))
    pyarrow.parquet.write_table(pyarrow.table({"title": ["Turku"]}), tmp_path / "b.parquet")
    with pytest.raises(StepError, match=r"b\.parquet, row 1: there is no text"):
        list(step.read_texts(tmp_path / "b.parquet", nlp))
    (tmp_path / "empty").mkdir()
    with pytest.raises(StepError, match="empty has no file of a known kind"):
        list(step.read_texts(tmp_path / "empty", nlp))


def test_long_texts_are_cut_and_empty_ones_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_texts(tmp_path / "texts.jsonl", ["Turku " * 4000, "", "Oslo"])
    docs = list(step.cut_texts([path], nlp))
    assert [len(doc) for doc in docs] == [1500, 1500, 1000, 1] and all(not doc.has_unknown_spaces for doc in docs)
    assert "Left out 1 documents" in words(capsys.readouterr().out)


# Targets


@given(st.integers(1, 6), st.integers(0, 2**32 - 1))
def test_a_target_is_half_the_tag_of_the_corpus_where_there_is_one(size: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    predicted = random.dirichlet(np.ones(5), size).astype("float32")
    gold = random.integers(-1, 5, size)
    tags = ["O", "B-LOC", "I-LOC", "L-LOC", "U-LOC"]
    targets = step.mix(predicted, step.find_allowed(gold, tags, ["LOC"]), np.ones(5, dtype=bool))
    np.testing.assert_allclose(targets.sum(1), 1, rtol=1e-5)
    for row, before, tag in zip(targets, predicted, gold, strict=True):
        expected = before if tag < 0 else before / 2 + np.eye(5)[tag] / 2
        np.testing.assert_allclose(row, expected, rtol=1e-5)


LABELS = ["EVENT", "LOC", "ORG"]  # of which the teacher knows the last two


@given(st.sets(st.sampled_from(LABELS)), st.integers(0, 2**32 - 1))
def test_no_o_is_learnt_for_a_label_for_which_nobody_was_asked(asked: set[str], seed: int) -> None:
    random = np.random.default_rng(seed)
    tags = ["O", *(f"{kind}-{label}" for label in LABELS for kind in "BILU")]
    known = np.array(["EVENT" not in tag for tag in tags])
    predicted = np.zeros((40, len(tags)), dtype="float32")
    predicted[:, known] = random.dirichlet(np.full(known.sum(), 0.1), 40)
    possible = [number for number, tag in enumerate(tags) if tag == "O" or tag[2:] in asked]
    gold = random.choice([-1, *possible], 40)
    targets = step.mix(predicted, step.find_allowed(gold, tags, asked), known)
    np.testing.assert_allclose(targets.sum(1), 1, rtol=1e-4)
    for number, row, before in zip(gold, targets, predicted, strict=True):
        if number > 0 and not known[number]:
            np.testing.assert_allclose(row, np.eye(len(tags))[number], atol=1e-6)  # the teacher cannot know it
        elif number > 0:
            np.testing.assert_allclose(row, before / 2 + np.eye(len(tags))[number] / 2, atol=1e-4)
        elif number == 0:
            unasked = [tag != "O" and tag[2:] not in asked for tag in tags]
            assert (row[unasked] >= before[unasked] - 1e-6).all(), "the teacher's entities stay"
            if not {"LOC", "ORG"} & asked:
                np.testing.assert_allclose(row, before, atol=1e-4)


def test_the_student_gets_the_mean_of_the_teachers_beside_the_corpus(
    corpus: Path, teachers: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = write_texts(tmp_path / "texts.jsonl", TEXTS)
    before = {path: sha256(path) for path in corpus.glob("*.spacy")}
    teach(corpus, f"{teachers}/model-best*", str(texts))
    assert all(sha256(path) == known for path, known in before.items()), "the corpus is what convert made of it"
    gold, docs = (read_docs(corpus / name, nlp.vocab) for name in ("train.spacy", "taught.spacy"))
    assert [doc.text for doc in docs] == [doc.text for doc in gold] + TEXTS
    pipelines = [spacy.load(path) for path in sorted(teachers.glob("model-best*"))]
    for i, doc in enumerate(docs):
        means = np.mean([predict(pipeline, doc, i < len(gold)) for pipeline in pipelines], axis=0)
        targets = doc.user_data["tag_targets"]
        assert targets.shape == (len(doc), 1 + 4 * 2) and targets.dtype == "float32"
        assert doc.has_annotation("SENT_START")
        if i < len(gold):
            assert [ent.label_ for ent in doc.ents] == [ent.label_ for ent in gold[i].ents]
            assert [token.tag_ for token in doc] == [token.tag_ for token in gold[i]]
            tags = pipelines[0].get_pipe("ner").tags  # type: ignore[attr-defined]
            labels = [tags.index(tag) for tag in Example(gold[i].copy(), gold[i]).get_aligned_ner()]
            means = means / 2 + np.eye(len(tags))[labels] / 2
        else:
            ents = [(ent.start, ent.end) for ent in doc.ents]
            doc.set_ents([])  # else they would be kept
            (entities,) = find_entities_of([doc], [targets])
            assert [entity[:2] for entity in entities] == ents
        np.testing.assert_allclose(targets, means, atol=1e-4)
    made = sha256(corpus / "taught.spacy")
    capsys.readouterr()
    teach(corpus, ",".join(map(str, sorted(teachers.glob("model-best*"), reverse=True))), str(texts))
    assert "is there" in words(capsys.readouterr().out) and sha256(corpus / "taught.spacy") == made
    teach(corpus, str(teachers / "model-best"), str(texts))
    assert sha256(corpus / "taught.spacy") != made


def predict(pipeline: Any, doc: Doc, with_starts: bool) -> np.ndarray:
    """The posteriors of a document, whose sentence starts are given or not."""
    spaces = None if doc.has_unknown_spaces else [bool(token.whitespace_) for token in doc]
    starts: Any = [token.is_sent_start for token in doc] if with_starts else None
    copied = Doc(pipeline.vocab, words=[token.text for token in doc], spaces=spaces, sent_starts=starts)
    for name in ("transformer", "tok2vec", "senter"):
        copied = pipeline.get_pipe(name)(copied)
    recognizer = pipeline.get_pipe("ner")
    (posteriors,) = recognizer.find_posteriors([copied], recognizer.predict([copied]))
    return np.asarray(posteriors)


def test_teachers_of_other_labels_and_other_folders_are_refused(
    tmp_path: Path, teachers: Path, tiny_corpus: Path
) -> None:
    convert(write_corpus(tmp_path / "assets", "Mira B-person\nsleeps O\n\nTurku B-LOC\n"), tmp_path / "other")
    with pytest.raises(StepError, match=r"model-best has the labels LOC, PER, and the corpus LOC, person"):
        teach(tmp_path / "other", str(teachers / "model-best"), "")
    with pytest.raises(StepError, match="is no pipeline of this project"):
        teach(tmp_path / "other", str(tiny_corpus), "")
    nlp.to_disk(tmp_path / "blank")
    with pytest.raises(StepError, match="is no pipeline of this project"):
        teach(tmp_path / "other", str(tmp_path / "blank"), "")
    with pytest.raises(StepError, match="has no teachers"):
        teach(tmp_path / "other", "", "")
    with pytest.raises(StepError, match="trains on train, from which") as error:
        teach(tmp_path / "other", str(teachers / "model-best"), "", train_on="train")
    assert "train_on: taught" in error.value.remedy
    assert not list((tmp_path / "other").glob("taught*"))


# Rehearsal


class Oracle:
    """Stands for a trained pipeline that is sure of some words: LOC for Oslo, PER for Mira, O for others but Cup."""

    component_names = ("ner", "chunker")
    labels = ("LOC", "PER")
    tags = ("O", *(f"{kind}-{label}" for label in ("LOC", "PER") for kind in "BILU"))

    def get_pipe(self, name: str) -> Oracle:
        return self

    def enable_pipe(self, name: str) -> None:
        assert name == "chunker"

    def predict(self, pipeline: Oracle, docs: list[Doc], name: str) -> tuple[list[Doc], list[np.ndarray]]:
        annotated, posteriors = [], []
        for doc in docs:
            annotated.append(Doc(doc.vocab, words=[t.text for t in doc], tags=["NN" for _ in doc]))
            annotated[-1].spans["chunks"] = [Span(annotated[-1], 0, 2, "NP")] if len(doc) > 1 else []
            array = np.full((len(doc), len(self.tags)), 0.005, dtype="float32")
            for row, token in zip(array, doc, strict=True):
                sure = 0.5 if token.text == "Cup" else 0.96
                row[{"Oslo": 4, "Mira": 8}.get(token.text, 0)] = sure
                row[1] += 0.96 - sure
            posteriors.append(array)
        return annotated, posteriors


@pytest.fixture
def oracle(monkeypatch: pytest.MonkeyPatch) -> Oracle:
    oracle = Oracle()
    monkeypatch.setattr(step, "load_trained", lambda _: oracle)
    monkeypatch.setattr(step, "predict", oracle.predict)
    return oracle


def create_doc(text: str, *spans: tuple[int, int, str]) -> Doc:
    doc = nlp(text)
    doc.set_ents([Span(doc, *span) for span in spans])
    return doc


def describe(doc: Doc) -> list[str]:
    return [f"{token.ent_iob_}-{token.ent_type_}" if token.ent_type_ else token.ent_iob_ for token in doc]


def test_old_labels_come_from_the_pipeline_and_new_ones_from_the_corpus(oracle: Oracle, tmp_path: Path) -> None:
    labelled = create_doc("Oslo Cup began in Oslo", (0, 2, "EVENT"))
    partial = create_doc("Mira won the Oslo Cup", (3, 5, "EVENT"))
    step.rehearse(tmp_path, [labelled], [], [partial])
    assert describe(labelled) == ["B-EVENT", "I-EVENT", "O", "O", "B-LOC"], "no annotated name is overwritten"
    targets = labelled.user_data["tag_targets"]
    assert targets.shape == (5, 1 + 4 * 3)
    assert targets.argmax(1).tolist() == [1, 3, 0, 0, 8] and targets[:2].max() == 1 and targets[4, 0] < 0.01
    assert [token.tag_ for token in labelled] == ["NN"] * 5, "the pipeline keeps its parts of speech"
    assert [(span.text, span.label_) for span in labelled.spans["chunks"]] == [("Oslo Cup", "NP")], "and its chunks"
    assert describe(partial) == ["B-PER", "O", "O", "B-EVENT", "I-EVENT"] and "tag_targets" not in partial.user_data


def test_where_people_were_asked_for_an_old_label_the_pipeline_adds_none(oracle: Oracle, tmp_path: Path) -> None:
    dev = [create_doc("Mira won in Oslo", (3, 4, "LOC")), create_doc("Oslo Cup", (0, 2, "EVENT"))]
    labelled = create_doc("Oslo Cup began in Oslo", (0, 2, "EVENT"), (4, 5, "LOC"))
    step.rehearse(tmp_path, [labelled], [], [*dev, create_doc("Mira in Oslo")])
    assert describe(dev[0]) == ["B-PER", "O", "O", "B-LOC"] and describe(dev[1]) == ["B-EVENT", "I-EVENT"]
    step.rehearse(tmp_path, [labelled], [], dev := [create_doc("Mira in Oslo"), create_doc("Oslo", (0, 1, "LOC"))])
    assert describe(dev[0]) == ["B-PER", "O", "O"]


def test_an_o_of_the_pipeline_may_be_a_new_label_in_a_text_without_labels(oracle: Oracle, tmp_path: Path) -> None:
    labelled = create_doc("The Regatta began in Oslo", (0, 2, "EVENT"))
    raw = create_doc("The Fair in Oslo began Cup")
    step.rehearse(tmp_path, [labelled], [raw], [])
    assert describe(raw) == ["", "", "O", "B-LOC", "O", ""]
    targets = raw.user_data["tag_targets"]
    assert targets.any(1).tolist() == [False, False, True, True, True, False]
    assert targets[3].argmax() == 8 and targets[[2, 4]].argmax(1).tolist() == [0, 0]
    assert raw.has_annotation("SENT_START") and raw[0].tag_ == "NN"


def test_a_token_that_nobody_annotated_may_be_of_a_new_label(oracle: Oracle, tmp_path: Path) -> None:
    labelled = nlp("The Cup began in Oslo")
    labelled.set_ents([Span(labelled, 1, 2, "EVENT")], outside=[labelled[2:4]], default="missing")
    step.rehearse(tmp_path, [labelled], [], [])
    assert labelled.user_data["tag_targets"].any(1).tolist() == [False, True, True, True, False]


def test_without_new_labels_a_text_has_all_that_the_pipeline_says(oracle: Oracle, tmp_path: Path) -> None:
    raw = create_doc("The Fair in Oslo")
    step.rehearse(tmp_path, [create_doc("Oslo sleeps", (0, 1, "LOC"))], [raw], [])
    assert describe(raw) == ["O", "O", "O", "B-LOC"] and raw.user_data["tag_targets"].any(1).all()


def test_a_pipeline_goes_on_with_a_new_label(
    tmp_path: Path, trained: Path, new_corpus: Path, tiny_encoder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Taught, trained, found again, and refused where the teaching is of another pipeline."""
    corpus = Path(shutil.copytree(new_corpus, tmp_path / "more"))
    options: dict[str, Any] = {"epochs": "1", "train_on": "taught", "start": trained}
    with pytest.raises(StepError, match="has no taught"):
        train(CONFIG, tmp_path / "run", corpus, tiny_encoder, **options)
    with pytest.raises(StepError, match="has teachers, and a pipeline to go on from"):
        teach(corpus, str(trained), start=trained)
    teach(corpus, start=trained)
    assert "where LOC, PER are, the pipeline says" in words(capsys.readouterr().out)
    taught = read_docs(corpus / "taught.spacy")
    gold = read_docs(corpus / "train.spacy")
    pipeline: Any = spacy.load(trained)
    for doc, original in zip(taught, gold, strict=True):
        posteriors = predict(pipeline, original, with_starts=True)
        outside = [token.i for token in original if token.ent_iob_ == "O"]
        known = [0, *range(5, 13)]
        np.testing.assert_allclose(doc.user_data["tag_targets"][outside][:, known], posteriors[outside], atol=1e-3)
        assert [ent.text for ent in doc.ents if ent.label_ == "EVENT"] == [ent.text for ent in original.ents]
    before = sha256(trained)
    train(CONFIG, tmp_path / "run", corpus, tiny_encoder, **options)
    record = read_json(tmp_path / "run/model-best/provenance.json")
    assert record["inputs"]["start"] == before == sha256(trained) and not record["resumed"]
    assert record["inputs"]["corpus"]["dev"] == sha256(corpus / "taught-dev.spacy")
    nlp_after: Any = spacy.load(tmp_path / "run/model-best")
    assert nlp_after.get_pipe("ner").labels == ("EVENT", "LOC", "PER") and "tagger" in nlp_after.pipe_names
    capsys.readouterr()
    train(CONFIG, tmp_path / "run", corpus, tiny_encoder, **options)
    assert "is trained already" in words(capsys.readouterr().out)
    with pytest.raises(StepError, match="has no taught"):
        train(CONFIG, tmp_path / "run", corpus, tiny_encoder, **options | {"start": tmp_path / "run/model-best"})
    with pytest.raises(StepError, match="has no taught"):
        train(CONFIG, tmp_path / "run", corpus, tiny_encoder, **options | {"start": None})


# Training


def test_a_student_is_trained_on_what_was_taught_and_names_its_teachers(
    corpus: Path, teachers: Path, tmp_path: Path, tiny_encoder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(**options: Any) -> dict[str, Any]:
        train(CONFIG, tmp_path / "run", corpus, tiny_encoder, epochs="1", **options)
        return read_json(tmp_path / "run/model-best/provenance.json")["inputs"]  # type: ignore[no-any-return]

    with pytest.raises(StepError, match=r"has no taught\.spacy that was made from its present train\.spacy"):
        run(train_on="taught")
    texts = write_texts(tmp_path / "texts.jsonl", TEXTS)
    teach(corpus, str(teachers / "model-best"), str(texts))
    taught, plain = run(train_on="taught"), run()
    known = read_json(teachers / "model-best/provenance.json")["inputs"]
    assert taught["taught"] == {"teachers": [digest(known)], "texts": [sha256(texts)]} and "taught" not in plain
    assert taught["corpus"]["train"] == sha256(corpus / "taught.spacy") != plain["corpus"]["train"]
    assert plain["corpus"]["train"] == known["corpus"]["train"]
    capsys.readouterr()
    assert run(train_on="taught") == taught and "Training in" not in capsys.readouterr().out
    with pytest.raises(StepError, match="train_on is 'dev'"):
        run(train_on="dev")
    DocBin(docs=[Doc(nlp.vocab, words=["Turku"], ents=["B-LOC"])]).to_disk(corpus / "train.spacy")
    with pytest.raises(StepError, match="has no taught"):
        run(train_on="taught")


@pytest.mark.slow
def test_a_large_teacher_makes_a_small_student_by_one_line(tmp_path: Path) -> None:
    """As bert-base-uncased on the hub, but for its weights, which are random, and its few wordpieces."""
    project = Project(copy_project(tmp_path / "project"), tmp_path / "large")
    name_as_on_the_hub(save_tiny_encoder(project.encoder, width=768, layers=12))
    source = write_corpus(tmp_path / "source")
    texts = write_texts(tmp_path / "texts.jsonl", TEXTS)
    shared: dict[str, Any] = {"source": str(source), "corpus": "mine"}
    for step_name in ("download", "convert"):
        done = project.run(step_name, run="teacher", **shared)
        assert done.returncode == 0, done.stdout + done.stderr
    done = project.run("train", run="teacher", **shared)
    assert done.returncode == 0, done.stdout + done.stderr

    student = shared | {"encoder": str(save_tiny_encoder(tmp_path / "small")), "environment": "present"}
    student |= {"teachers": "training/teacher/model-best", "texts": str(texts)}
    done = project.run("distill", run="student", **student)
    assert done.returncode == 1 and "train_on: taught" in words(done.stdout)
    student["train_on"] = "taught"
    done = project.run("all", run="student", **student)
    assert done.returncode == 1 and "corpus/student/taught.spacy" in words(done.stdout + done.stderr)
    done = project.run("distill", run="student", **student)
    assert done.returncode == 0, done.stdout + done.stderr
    model = project.folder / "training/student/model-best"
    packaged = read_json(project.folder / "packages/student/en_bert_ner-1.0.0/meta.json")
    assert "its teachers" in packaged["license"]
    teacher = read_json(project.folder / "training/teacher/model-best/provenance.json")["inputs"]
    assert read_json(model / "provenance.json")["inputs"]["taught"]["teachers"] == [digest(teacher)]
    assert sum(f.stat().st_size for f in model.rglob("*")) < 0.05 * sum(
        f.stat().st_size for f in (project.folder / "training/teacher/model-best").rglob("*")
    )
    before = sha256(model)
    done = project.run("all", run="student", **student)
    assert done.returncode == 0 and "Skipping 'train': nothing changed" in done.stdout and sha256(model) == before

    half = student | {"encoder": "training/teacher/model-best", "layers": "1,3,5,7,9,11"}
    done = project.run("download", run="half", **half)
    assert done.returncode == 0, done.stdout + done.stderr
    assert read_json(project.folder / "assets/half/encoder/config.json")["num_hidden_layers"] == 6
