"""The file formats of annotations, by the names that users call them."""

from __future__ import annotations

from common.errors import StepError
from common.formats import Format, argilla, brat, conll, docbin, doccano, jsonl, label_studio, parquet, prodigy, webanno

FORMATS: dict[str, Format] = {
    format.name: format
    for format in (
        label_studio.FORMAT,
        prodigy.FORMAT,
        doccano.FORMAT,
        argilla.FORMAT,
        brat.FORMAT,
        webanno.FORMAT,
        conll.COLUMNS,
        conll.CONLL_U,
        parquet.FORMAT,
        docbin.FORMAT,
        jsonl.FORMAT,
    )
}


def find_format(name: str) -> Format:
    """The format of this name.

    RAISES (StepError): If there is none, with the names that there are.
    """
    if name not in FORMATS:
        raise StepError(f"{name!r} is no tool or format that is known.", f"Known are {', '.join(FORMATS)}.")
    return FORMATS[name]
