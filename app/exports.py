"""Write analyses as the text of a file: JSON, JSONL, CSV or CoNLL columns."""

from __future__ import annotations

import io
import json
from bisect import bisect_left
from collections.abc import Sequence

from app.annotate import Analysis
from common.tables import write_csv


def export_analyses(analyses: Sequence[Analysis], kind: str) -> str:
    """Write analyses as the text of a file.

    csv has a row for each entity; a cell that a spreadsheet would run as a formula gets an apostrophe before it. conll
    has a token in each line; a token that reads like the mark between documents gets other hyphens.

    analyses (Sequence[Analysis]): The analyses. conll needs their tokens.
    kind (str): json or jsonl, with everything that was found; csv; or conll.
    RETURNS (str): The text.
    """
    if kind == "json":
        return json.dumps([analysis.model_dump() for analysis in analyses], ensure_ascii=False, indent=2)
    if kind == "jsonl":
        return "".join(json.dumps(analysis.model_dump(), ensure_ascii=False) + "\n" for analysis in analyses)
    return _write_csv(analyses) if kind == "csv" else _write_conll(analyses)


def _write_csv(analyses: Sequence[Analysis]) -> str:
    out = io.StringIO()
    rows = (
        (number, ent.start, ent.end, ent.text, ent.label, ent.score)
        for number, analysis in enumerate(analyses, 1)
        for ent in analysis.entities
    )
    write_csv(out, ["document", "start", "end", "text", "label", "score"], rows)
    return out.getvalue()


def _write_conll(analyses: Sequence[Analysis]) -> str:
    out = io.StringIO()
    for analysis in analyses:
        out.write("-DOCSTART- -X- -X- O\n\n")
        sentences, starts = {sentence.start for sentence in analysis.sentences}, [t.start for t in analysis.tokens]
        tags = {}
        # We do not use the tokens' own IOB tags: the page may have filtered the entities since
        for ent in analysis.entities:
            for number in range(bisect_left(starts, ent.start), bisect_left(starts, ent.end)):
                tags[number] = f"{'I' if starts[number] > ent.start else 'B'}-{ent.label}"
        for number, token in enumerate(analysis.tokens):
            if number and token.start in sentences:
                out.write("\n")
            word = "".join(token.text.split())  # spaces separate the columns
            word = word.replace("-DOCSTART-", "\u2010DOCSTART\u2010")
            out.write(f"{word} {token.tag or '-X-'} -X- {tags.get(number, 'O')}\n")
        out.write("\n")
    return out.getvalue()
