"""The functions, architectures and components that spaCy's registry has to know.

`import bert_ner` registers all of them, and is the one way in which the project itself gets them; spaCy's own commands
do the same by `--code bert_ner/__init__.py`. No file of this folder imports another, so that `spacy package --code` can
copy those that a pipeline needs in use into its wheel, as they are. Several wheels may be loaded in one process, each
with its copy, and of one name the registry keeps one function: whatever behaves in another way than before gets a name
with a higher version.
"""

from bert_ner import (
    concepts,
    corpus,
    encoder,
    features,
    finetuning,
    inference,
    optimizer,
    recognizer,
    sequences,
    tokenizer,
    wordpieces,
)

__all__ = [
    "concepts",
    "corpus",
    "encoder",
    "features",
    "finetuning",
    "inference",
    "optimizer",
    "recognizer",
    "sequences",
    "tokenizer",
    "wordpieces",
]
