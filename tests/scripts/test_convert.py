from __future__ import annotations

import gzip
import random
import string
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import spacy
from hypothesis import given, settings
from hypothesis import strategies as st
from seqeval.metrics import classification_report
from seqeval.scheme import IOB2
from spacy.scorer import Scorer
from spacy.tokens import Doc, DocBin
from spacy.training import Example, iob_to_biluo

from common.conll import Conll, Document, Token, count, group, read_conll, write_conll
from common.errors import StepError
from common.records import SPLITS, read_json, sha256
from scripts.convert import convert, make_doc
from tests.conftest import CORPUS, ROOT, write_corpus

IOB1 = """-DOCSTART- -X- O O

Mira NNP I-NP I-PER
Solberg NNP I-NP I-PER
met VBD I-VP O
Kenya NNP I-NP I-LOC
Peru NNP B-NP B-LOC
Airbus NNP I-NP I-ORG

Turku NNP I-NP I-LOC
"""


def read(folder: Path, text: str | bytes) -> Conll:
    path = folder / "some.conll"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_conll(path)


def tags(conll: Conll) -> list[str]:
    return [token.entity for document in conll.documents for sentence in document for token in sentence]


def test_iob1_is_detected_and_normalised(tmp_path: Path) -> None:
    conll = read(tmp_path, IOB1)
    assert conll.schemes == {"entity": "IOB1", "chunk": "IOB1"}
    assert tags(conll) == ["B-PER", "I-PER", "O", "B-LOC", "B-LOC", "B-ORG", "B-LOC"]
    chunks = [token.chunk for token in conll.documents[0][0]]
    assert chunks == ["B-NP", "I-NP", "B-VP", "B-NP", "B-NP", "I-NP"]
    assert not any(conll.stray.values())


def test_iob2_is_kept_and_stray_tags_are_repaired_and_counted(tmp_path: Path) -> None:
    conll = read(tmp_path, "a B-PER\nb I-PER\n\nc B-LOC\nd B-LOC\n")
    assert conll.schemes == {"entity": "IOB2"} and tags(conll) == ["B-PER", "I-PER", "B-LOC", "B-LOC"]
    conll = read(tmp_path, "a B-PER\nb O\nc I-PER\nd I-PER\n\ne I-LOC\n")
    assert conll.schemes == {"entity": "mixed"} and tags(conll) == ["B-PER", "O", "B-PER", "I-PER", "B-LOC"]
    assert conll.stray["entity"] == [3, 6]


@pytest.mark.parametrize(
    "text",
    [
        IOB1.replace("\n", "\r\n"),
        IOB1.replace(" ", "\t"),
        "\ufeff" + IOB1,
        IOB1.rstrip("\n"),
        IOB1.removeprefix("-DOCSTART- -X- O O\n\n") + "\n-DOCSTART-\n",
        IOB1.replace("-DOCSTART- -X- O O", "-DOCSTART-\tO"),
        IOB1.replace("-DOCSTART- -X- O O", "-DOCSTART- -X- -X- O"),
        IOB1.replace("-DOCSTART- -X- O O", "-DOCSTART- (7 TURKU)"),
        IOB1.replace("\n\n", "\n\n \n\n"),
        IOB1.replace(" I-PER", " I-PER  "),
    ],
    ids=["crlf", "tabs", "bom", "no newline", "mark last", "mark tab", "mark -X-", "mark id", "blanks", "spaces"],
)
def test_what_editors_and_other_tools_do_to_files_changes_nothing(tmp_path: Path, text: str) -> None:
    assert read(tmp_path, text) == read(tmp_path, IOB1)


def test_what_is_repaired_or_missing_is_counted(tmp_path: Path) -> None:
    text = "\ufeffMira _ B-NP I-PER\r\nleft VBD - O\r\n\nPeru NNP I-NP B-LOC\r\nMalta -X- B-NP I-ORG"
    assert read(tmp_path, text).repaired == {
        "byte-order mark, removed": 1,
        "line ends of Windows, removed": 3,
        "part of speech missing": 2,
        "chunk missing": 1,
        "invisible character in a tag, removed": 0,
        "-DOCSTART- without a blank line before, read as one": 0,
        "entity that begins with I-, read as B-": 2,
        "chunk that begins with I-, read as B-": 1,
    }
    assert set(read(tmp_path, "Peru B-LOC\n").repaired.values()) == {0}


@pytest.mark.parametrize("letters", ["BIES", "BILU"])
def test_bioes_and_biluo_are_read(tmp_path: Path, letters: str) -> None:
    begin, inside, end, single = list(letters)
    text = f"a {begin}-X\nb {inside}-X\nc {end}-X\nd {single}-X\ne {begin}-EU-L-x\nf {end}-EU-L-x\ng O\n"
    conll = read(tmp_path, text)
    assert tags(conll) == ["B-X", "I-X", "I-X", "B-X", "B-EU-L-x", "I-EU-L-x", "O"]
    assert conll.schemes == {"entity": "BIOES" if letters == "BIES" else "BILUO"} and conll.stray == {"entity": []}
    conll = read(tmp_path, f"a {single}-X\nb {inside}-X\nc {end}-X\nd {end}-X\n")  # nothing goes on after an end
    assert tags(conll) == ["B-X", "B-X", "I-X", "B-X"] and conll.stray == {"entity": [2, 4]}


@settings(max_examples=100)
@given(st.data(), st.sampled_from(["IOB1", "BILUO", "BIOES"]))
def test_every_scheme_says_the_same(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, scheme: str) -> None:
    """A column in IOB2 gives the same tags when it is written in another scheme."""
    expected = data.draw(iob2(8))
    written = iob_to_biluo(expected)
    if scheme == "BIOES":
        written = [{"L": "E", "U": "S"}.get(tag[0], tag[0]) + tag[1:] for tag in written]
    elif scheme == "IOB1":
        pairs = zip(["O", *expected], expected, strict=False)
        written = [f"I{tag[1:]}" if tag != "O" and before[1:] != tag[1:] else tag for before, tag in pairs]
    path = tmp_path_factory.getbasetemp() / "scheme.conll"
    path.write_text("".join(f"t {tag}\n" for tag in written), encoding="utf8")
    assert tags(read_conll(path)) == expected


def test_marks_are_told_from_tokens_and_what_is_odd_is_counted(tmp_path: Path) -> None:
    conll = read(tmp_path, "-DOCSTART- B-PER\n-DOCSTART-foo B-LOC\na O\n-DOCSTART- O\nb O\n\n-DOCSTART- O\n\nc O\n")
    found = [[[token.text for token in sentence] for sentence in document] for document in conll.documents]
    assert found == [[["-DOCSTART-", "-DOCSTART-foo", "a"]], [["b"]], [["c"]]] and conll.marked
    assert conll.repaired["-DOCSTART- without a blank line before, read as one"] == 1


def test_invisible_characters_are_removed_and_counted(tmp_path: Path) -> None:
    conll = read(tmp_path, "\ufeffa B-PER\u200b\n\ufeffb \u200eI-PER\nन\u200dx B-LOC\n")
    assert conll.documents == [[[Token("a", "B-PER"), Token("b", "I-PER"), Token("न\u200dx", "B-LOC")]]]
    assert conll.repaired["byte-order mark, removed"] == 2
    assert conll.repaired["invisible character in a tag, removed"] == 2


@pytest.mark.parametrize(
    ("data", "remedy"),
    [
        ("a O\n".encode("utf-16"), "iconv -f utf-16 -t utf8 some.conll"),
        ("a O\n".encode("utf-16-le"), "iconv -f utf-16-le -t utf8"),
        ("a O\n".encode("utf-16-be"), "iconv -f utf-16-be -t utf8"),
        (gzip.compress(b"a O\n"), "gunzip < some.conll > "),
    ],
    ids=["utf-16", "utf-16-le", "utf-16-be", "gzip"],
)
def test_files_of_another_kind_get_advice_that_helps(tmp_path: Path, data: bytes, remedy: str) -> None:
    with pytest.raises(StepError) as error:
        read(tmp_path, data)
    assert remedy in error.value.remedy


def test_columns(tmp_path: Path) -> None:
    assert read(tmp_path, "Turku B-LOC\n").documents == [[[Token("Turku", "B-LOC")]]]
    assert read(tmp_path, "Turku NNP B-LOC\n").documents == [[[Token("Turku", "B-LOC", "NNP")]]]
    assert read(tmp_path, "Turku _ _ B-LOC\n").documents == [[[Token("Turku", "B-LOC")]]]
    assert read(tmp_path, "New York\tB-LOC\n").documents == [[[Token("New York", "B-LOC")]]]


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("Turku NNP B-NP B-LOC\nis VBZ B-VP\n", 2, "3 columns where the first row has 4"),
        ("Turku NNP B-NP B-LOC\nis VBZ B-VP O O\n", 2, "5 columns where the first row has 4"),
        ("Turku\n", 1, "1 column where 2 to 4 are understood"),
        ("\n\nTurku a b c d B-LOC\n", 3, "6 columns where 2 to 4 are understood"),
        ("Turku X-LOC\n", 1, "'X-LOC' is neither O nor B-TYPE nor I-TYPE"),
        ("Turku LOC\n", 1, "'LOC'"),
        ("Turku B-\n", 1, "'B-'"),
        ("Turku NNP NP B-LOC\n", 1, "chunk tag 'NP'"),
        ("a O\n\tO\n", 2, "empty cell"),
        ("\u2003\tO\n", 1, "empty cell"),
        (b"a O\nM\xfcller O\n", 2, "not UTF-8 (byte 0xfc)"),
        ("a O\nb\0 O\n", 2, "a zero byte"),
        ("a O\nb B-\x07\n", 2, "a control character in the tag"),
        ("a O\nb B-\u200b\n", 2, "'B-'"),
        (f"a O\nb B-{'x' * 100_000}\n", 2, "100,002 characters in the tag"),
        ("a NNP B-NP O\n\n-DOCSTART- B-PER\n", 3, "2 columns where the first row has 4"),
    ],
)
def test_bad_input_names_file_and_line(tmp_path: Path, text: str | bytes, line: int, words: str) -> None:
    with pytest.raises(StepError) as error:
        read(tmp_path, text)
    assert f"some.conll, line {line}: " in error.value.problem and words in error.value.problem
    assert error.value.remedy


@pytest.mark.parametrize("text", ["", "\n\n", "-DOCSTART- -X- -X- O\n\n"])
def test_an_empty_split_is_an_error(tmp_path: Path, text: str) -> None:
    with pytest.raises(StepError, match="holds no sentence"):
        read(tmp_path, text)


@settings(max_examples=300)
@given(
    st.one_of(st.binary(), st.text(), st.text(alphabet="ab-BIOX \t\r\n\ufeff_").map(lambda text: "-DOCSTART-\n" + text))
)
def test_any_file_gives_documents_or_a_clear_error(tmp_path_factory: pytest.TempPathFactory, data: str | bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any.conll"
    path.write_bytes(data if isinstance(data, bytes) else data.encode("utf8", "surrogatepass"))
    try:
        conll = read_conll(path)
    except StepError as error:
        assert str(path) in error.problem and error.remedy
    else:
        assert conll.documents and all(document and all(document) for document in conll.documents)
        for document in conll.documents:
            make_doc(spacy.blank("en").vocab, document)


words = st.text(st.characters(exclude_categories=["Cs", "Cc", "Zs", "Zl", "Zp"]), min_size=1).filter(
    lambda word: "\ufeff" not in word and word not in {"_", "-", "-X-", "-DOCSTART-"} and not word.isspace()
)
parts_of_speech = st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1, max_size=200).filter(
    lambda tag: tag not in {"_", "-", "-X-"}
)
labels = st.sampled_from(["PER", "LOC", "X-Y", "été"])


@st.composite
def iob2(draw: st.DrawFn, length: int) -> list[str]:
    drawn: list[str] = []
    for _ in range(length):
        continued = [f"I-{drawn[-1][2:]}"] if drawn and drawn[-1] != "O" else []
        drawn.append(draw(st.sampled_from(["O", f"B-{draw(labels)}", *continued])))
    return drawn


@st.composite
def documents(draw: st.DrawFn) -> list[Document]:
    wide = draw(st.booleans())

    def sentence() -> list[Token]:
        tokens = draw(st.lists(words, min_size=1, max_size=5))
        columns = [tokens, draw(iob2(len(tokens)))]
        if wide:
            of_speech = st.lists(parts_of_speech, min_size=len(tokens), max_size=len(tokens))
            columns += [draw(of_speech), draw(iob2(len(tokens)))]
        return [Token(*row) for row in zip(*columns, strict=True)]

    return [[sentence() for _ in range(draw(st.integers(1, 3)))] for _ in range(draw(st.integers(1, 3)))]


@settings(max_examples=150)
@given(documents())
def test_reading_what_was_written_gives_the_same(
    tmp_path_factory: pytest.TempPathFactory, given: list[Document]
) -> None:
    path = tmp_path_factory.getbasetemp() / "same.conll"
    write_conll(path, given)
    assert read_conll(path).documents == given


def test_a_doc_has_everything_the_rows_have(tmp_path: Path) -> None:
    document = read_conll(write_corpus(tmp_path) / "train.conll").documents[0]
    doc = make_doc(spacy.blank("en").vocab, document)
    assert [token.text for token in doc if token.is_sent_start] == ["Mira", "OSLO"]
    assert [(ent.text, ent.label_) for ent in doc.ents] == [
        ("Mira Solberg", "PER"),
        ("Turku", "LOC"),
        ("OSLO", "LOC"),
    ]
    assert [token.tag_ for token in doc] == ["NNP", "NNP", "VBD", "NNP", ".", "NNP", "CD"]
    chunks = [(chunk.text, chunk.label_) for chunk in doc.spans["chunks"]]
    assert chunks == [("Mira Solberg", "NP"), ("left", "VP"), ("Turku", "NP"), ("OSLO 2031-02-07", "NP")]


def test_convert_writes_corpus_and_counts_and_the_same_bytes_each_time(tmp_path: Path) -> None:
    assets = write_corpus(tmp_path / "assets")
    convert(assets, tmp_path / "one")
    convert(assets, tmp_path / "two")
    for split in SPLITS:
        assert (tmp_path / "one" / f"{split}.spacy").read_bytes() == (tmp_path / "two" / f"{split}.spacy").read_bytes()
    docs = list(DocBin().from_disk(tmp_path / "one" / "test.spacy").get_docs(spacy.blank("en").vocab))
    assert len(docs) == len(CORPUS) and docs[0].spans["chunks"][0].text == "Mira Solberg"
    assert docs[0].has_unknown_spaces  # or spaCy would tokenise again
    counts = read_json(tmp_path / "one" / "provenance.json")["counts"]["dev"]
    assert counts["documents"] == 2 and counts["sentences"] == 3 and counts["tokens"] == 12
    assert counts["entities"] == {"LOC": 5, "PER": 1} and counts["schemes"] == {"entity": "IOB2", "chunk": "IOB2"}


def test_a_corpus_without_documents_is_cut_into_groups() -> None:
    sentences = [[Token(str(i), "O")] for i in range(1234)]
    groups = group(sentences)
    assert [sentence for document in groups for sentence in document] == sentences
    assert {len(document) for document in groups[:-1]} == {10}
    assert len(group(sentences[:150])) == 150 and len(group(sentences[:7])) == 7


def test_one_mark_at_the_head_is_as_none(tmp_path: Path) -> None:
    rows = "\n\n".join(f"w{i} B-LOC\nx O" for i in range(250))
    convert(write_corpus(tmp_path / "assets", f"-DOCSTART- O\n\n{rows}\n"), tmp_path / "corpus")
    counts = read_json(tmp_path / "corpus/provenance.json")["counts"]["train"]
    assert (counts["documents"], counts["sentences"], counts["documents_marked"]) == (125, 250, False)
    (tmp_path / "assets/train.conll").write_text(f"-DOCSTART- O\n\n{rows}\n\n-DOCSTART- O\n\n{rows}\n")
    convert(tmp_path / "assets", tmp_path / "corpus")  # where train has documents, those of dev are documents too
    counts = read_json(tmp_path / "corpus/provenance.json")["counts"]
    assert (counts["train"]["documents"], counts["dev"]["documents"], counts["dev"]["documents_marked"]) == (2, 1, True)


def test_several_converts_at_once_leave_a_right_corpus(tmp_path: Path) -> None:
    assets = write_corpus(tmp_path / "assets")
    convert(assets, tmp_path / "alone")
    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(convert, assets, tmp_path / "corpus") for _ in range(8)]:
            done.result()
    assert sha256(tmp_path / "corpus") == sha256(tmp_path / "alone")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["alone", "assets", "corpus"]


def test_convert_leaves_what_it_did_not_make(tmp_path: Path) -> None:
    assets = write_corpus(tmp_path / "assets")
    convert(assets, tmp_path / "corpus")
    (tmp_path / "corpus/notes.txt").write_text("mine")
    convert(assets, tmp_path / "corpus")
    assert (tmp_path / "corpus/notes.txt").read_text() == "mine"


def test_a_convert_that_was_killed_while_it_published_can_be_run_again(tmp_path: Path) -> None:
    assets = write_corpus(tmp_path / "assets")
    convert(assets, tmp_path / "corpus")
    (tmp_path / "corpus/provenance.json").unlink()
    convert(assets, tmp_path / "corpus")
    assert (tmp_path / "corpus/provenance.json").exists()


def test_convert_leaves_an_earlier_corpus_untouched_when_it_fails(tmp_path: Path) -> None:
    assets = write_corpus(tmp_path / "assets")
    convert(assets, tmp_path / "corpus")
    before = {path: path.read_bytes() for path in (tmp_path / "corpus").iterdir()}
    (assets / "test.conll").write_text("Turku LOC\n")
    with pytest.raises(StepError):
        convert(assets, tmp_path / "corpus")
    write_corpus(assets, "nothing O\n")
    with pytest.raises(StepError, match="marks no entity"):
        convert(assets, tmp_path / "corpus")
    assert {path: path.read_bytes() for path in (tmp_path / "corpus").iterdir()} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["assets", "corpus"]


def test_convert_does_not_write_over_files_of_another_origin(tmp_path: Path) -> None:
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "train.spacy").write_text("mine")
    with pytest.raises(StepError, match="another origin"):
        convert(write_corpus(tmp_path / "assets"), tmp_path / "corpus")
    assert (tmp_path / "corpus" / "train.spacy").read_text() == "mine"


def test_spacys_scorer_agrees_with_strict_seqeval_on_random_tags() -> None:
    drawn = random.Random(0)
    vocab = spacy.blank("en").vocab
    gold, predicted, examples = [], [], []
    for _ in range(200):
        length = drawn.randint(1, 30)
        pair = []
        for _ in range(2):
            tags = [drawn.choice(["O", "O", "B-PER", "I-PER", "B-LOC", "I-LOC"]) for _ in range(length)]
            pair.append(
                [
                    f"B-{t[2:]}" if t[0] == "I" and p[2:] != t[2:] else t
                    for p, t in zip(["O", *tags], tags, strict=False)
                ]
            )
        docs = [Doc(vocab, words=list(string.ascii_letters[:length]), ents=tags) for tags in pair]
        examples.append(Example(docs[1], docs[0]))
        gold.append(pair[0])
        predicted.append(pair[1])
    ours = Scorer.score_spans(examples, "ents")
    theirs = classification_report(gold, predicted, mode="strict", scheme=IOB2, output_dict=True)
    assert ours["ents_f"] == pytest.approx(theirs["micro avg"]["f1-score"])
    for label in ("PER", "LOC"):
        assert ours["ents_per_type"][label]["p"] == pytest.approx(theirs[label]["precision"])
        assert ours["ents_per_type"][label]["r"] == pytest.approx(theirs[label]["recall"])


@pytest.mark.parametrize(
    "column",
    ["I-NP I-NP B-NP I-VP I-PP O", "B-NP I-NP B-NP B-VP B-PP O", "B-NP L-NP U-NP U-VP U-PP O"],
    ids=["IOB1", "IOB2", "BILUO"],
)
def test_chunks_are_spans_whatever_their_scheme(tmp_path: Path, column: str) -> None:
    words = ["Mira", "Solberg", "today", "left", "for", "."]
    text = "".join(f"{word} X {tag} O\n" for word, tag in zip(words, column.split(), strict=True))
    (document,) = read(tmp_path, text).documents
    doc = make_doc(spacy.blank("en").vocab, document)
    assert [(chunk.text, chunk.label_) for chunk in doc.spans["chunks"]] == [
        ("Mira Solberg", "NP"),
        ("today", "NP"),
        ("left", "VP"),
        ("for", "PP"),
    ]


def test_no_chunks_and_no_word_of_chunks_are_two_things(tmp_path: Path) -> None:
    vocab = spacy.blank("en").vocab
    for text, known in (("Turku X O B-LOC\n", True), ("Turku X _ B-LOC\n", False), ("Turku B-LOC\n", False)):
        (document,) = read(tmp_path, text).documents
        stored = DocBin(docs=[make_doc(vocab, document)], store_user_data=True)
        (doc,) = DocBin().from_bytes(stored.to_bytes()).get_docs(vocab)
        assert ("chunks" in doc.spans) == known and not doc.spans.get("chunks")


def test_the_sample_corpus_is_what_its_readme_says() -> None:
    counts = {split: count(read_conll(ROOT / f"assets/sample/{split}.conll").documents) for split in SPLITS}
    assert [counts[split]["documents"] for split in SPLITS] == [110, 15, 15]
    assert sum(counts[split]["sentences"] for split in SPLITS) >= 750
    assert all(set(counts[split]["entities"]) == {"LOC", "MISC", "ORG", "PER"} for split in SPLITS)
