"""Write tables as CSV, of which people make spreadsheets."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from typing import Any, TextIO


def write_csv(file: TextIO, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write a table whose texts come from anywhere.

    file (TextIO): Where to, opened with `newline=""`.
    header (Sequence[str]): The names of its columns.
    rows (Iterable[Sequence[Any]]): Its rows. Their texts are disarmed.
    """
    table = csv.writer(file)
    table.writerow(header)
    table.writerows([disarm(cell) for cell in row] for row in rows)


def disarm(cell: Any) -> Any:
    """A cell that no spreadsheet takes for a formula (https://owasp.org/www-community/attacks/CSV_Injection)."""
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(("=", "+", "-", "@", "\t", "\r", "\n")) else cell
