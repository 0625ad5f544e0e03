"""Tables of how fast the engines of annotate-corpus are, and of what a large corpus costs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

Table = tuple[list[str], list[list[str]]]  # a header, and rows whose first cell names what the others are of


def tabulate_scaling(record: Mapping[str, Any]) -> Iterator[Table]:
    """Format what benchmarks/corpus.py measured as tables.

    record (Mapping[str, Any]): As it writes it.
    YIELDS (Table): Words per second and memory of each engine; what passes through without a model; and for each engine
        what a large corpus costs, and how far the law behind that is from what was measured.
    """
    rows = []
    for name, result in record["engines"].items():
        figures = [result.get("unavailable", ""), "–", "–", "–"]
        if "words_per_second" in result:
            share = f"{100 * result['share']:.0f}%" if "share" in result else "–"
            rate = f"{result['words_per_second']:,.0f}"
            figures = [rate, share, f"{result['start']:.1f} s", f"{result['peak_mb']:,.0f} MB"]
        rows.append([name, *figures])
    header = ["engine, and its workers", "words/s", "of one `nlp.pipe`, each", "start"]
    yield [*header, f"memory ({record['memory'].upper()})"], rows

    stream, cost = record["stream"], record["cost"]
    rows = []
    for name in ("nlp.pipe", "local-1"):
        rate = stream[name]["mb_per_second"]
        peaks = [f"{peak:,.0f} MB" for peak in stream[name]["peak_mb"]]
        rows.append([name, "too little text to tell" if rate is None else f"{rate:.1f} MB/s", *peaks])
    yield ["without a model", "text", *(f"memory, {size:,.0f} MB" for size in stream["megabytes"])], rows

    if not cost["estimates"]:
        return
    rows = []
    for engine, estimates in cost["estimates"].items():
        hours = [f"{one['hours']:,.0f} h" for one in estimates]
        check = cost["checks"][engine]
        rows.append([engine, *hours, f"{100 * check['efficiency']:.0f}%", f"{100 * check['error']:+.0f}%"])
    machines = [f"{one['machines']:,} machine{'s' * (one['machines'] > 1)}" for one in estimates]
    yield [f"{cost['documents']:,} documents", *machines, "efficiency", "error of the law"], rows
