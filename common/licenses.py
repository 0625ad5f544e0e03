"""The licences of the corpora and encoders that this project knows, and what a pipeline made from them may have."""

from __future__ import annotations

from common.errors import StepError

RESEARCH = "research only"
# Corpora and encoders whose licence is known here; of others only the name is given.
SOURCES: dict[str, dict[str, str]] = {
    "conll2003": {
        "name": "CoNLL-2003, English",
        "url": "https://www.clips.uantwerpen.be/conll2003/ner/",
        "author": "Erik F. Tjong Kim Sang and Fien De Meulder; texts by Reuters",
        "license": RESEARCH,
    },
    "sample": {"name": "sample corpus of this project", "author": "the project", "license": "CC0-1.0"},
    "bert-base-uncased": {
        "name": "bert-base-uncased",
        "url": "https://huggingface.co/google-bert/bert-base-uncased",
        "author": "Jacob Devlin and others, Google",
        "license": "Apache-2.0",
    },
    "sentence-transformers/all-MiniLM-L6-v2": {
        "name": "all-MiniLM-L6-v2",
        "url": "https://huggingface.co/sentence-transformers/all-MiniLM-L6-v2",
        "author": "Sentence Transformers; MiniLM by Wenhui Wang and others, Microsoft",
        "license": "Apache-2.0",
    },
}


def find_license(asked: str, *sources: dict[str, str]) -> str:
    """Choose the licence of a pipeline, which cannot allow more than those of what it was made from.

    asked (str): A licence, or auto.
    *sources (dict[str, str]): The corpus, the encoder and perhaps more, as in SOURCES.
    RETURNS (str): The licence.
    RAISES (StepError): If the licence that was asked for contradicts them.
    """
    bound = next((source for source in sources if source.get("license") == RESEARCH), None)
    if bound and asked not in ("auto", RESEARCH):
        raise StepError(
            f"The licence {asked} contradicts that of {bound['name']}: {RESEARCH}.",
            f"Leave --vars.license at auto, which gives {RESEARCH}.",
        )
    if asked != "auto":
        return asked
    unknown = [source["name"] for source in sources if "license" not in source]
    if bound:
        return RESEARCH
    return f"see the licences of {' and '.join(unknown)}" if unknown else sources[1]["license"]
