"""What a wheel has to do where it is installed: find the same by its name, in new processes and by spaCy's command.

It needs Python and what pip installs with the wheel, and nothing of the project. CI runs it where the commands of the
project do not run, on Windows:

    python tests/installed.py metrics/quickstart/package.json
"""

from __future__ import annotations

import json
import multiprocessing
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import spacy
from spacy.tokens import Doc, DocBin

TEXTS = ["Senator Mira Solberg left Turku for Oslo on Monday.", "Kenya beat Peru twice in Malta."]


def check(record: Path) -> None:
    """Make sure that an installed wheel finds what it found where it was made, and the same in whatever process.

    record (Path): package.json, as `verify` has written it: the name of the wheel, and a text with its entities.
    """
    verified = json.loads(record.read_text("utf8"))
    package, example = verified["wheel"].partition("-")[0], verified["example"]
    texts = [example["text"], *TEXTS]
    nlp = spacy.load(package)
    docs = [*nlp.pipe(texts)]
    entities = [[[ent.text, ent.label_] for ent in doc.ents] for doc in docs]
    assert entities[0] == example["entities"], f"other than where it was made: {entities[0]}"
    expected = [find(doc) for doc in docs]
    assert [find(doc) for doc in nlp.pipe(texts, n_process=2, batch_size=1)] == expected, "other in two processes"
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "texts.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts), "utf8")
        command = [sys.executable, "-m", "spacy", "apply", package, "texts.jsonl", "docs.spacy"]
        subprocess.run(command, cwd=folder, check=True)
        stored = DocBin().from_disk(Path(folder, "docs.spacy"))
    assert [find(doc) for doc in stored.get_docs(spacy.blank("en").vocab)] == expected, "other by spacy apply"
    print(f"{package}: the same names on {sys.platform} with Python {sys.version.split()[0]}: {entities}")


def find(doc: Doc) -> dict[str, Any]:
    """What was found in a document. Scores have to be there, but their last digits may be others in another batch."""
    assert all(0 < ent._.score <= 1 for ent in doc.ents)
    return {
        "entities": [(ent.start_char, ent.end_char, ent.label_) for ent in doc.ents],
        "concepts": [(span.start_char, span.end_char, span.label_, span._.entity) for span in doc.spans["concepts"]],
        "triples": [*map(str, doc._.triples)],
    }


if __name__ == "__main__":  # a spawned process imports this file
    multiprocessing.set_start_method("spawn")
    check(Path(sys.argv[1]))
