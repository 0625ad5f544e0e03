"""Program that reads the text of a .pdf or .docx from standard input, within limits of time and memory.

A file of some kilobytes can unpack to gigabytes, or keep its reader busy for ever, so common/decoding.py runs this
program as a process of its own. It imports nothing of the project, and therefore starts fast.
"""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress

MAX_PAGES = 1000
MAX_UNPACKED = 100_000_000  # bytes that a .docx may hold once it is unpacked


class UnreadableError(Exception):
    """The reason why a file has no text that can be read, worded as a part of a sentence."""


def _read_pdf(data: bytes) -> Iterator[str]:
    from pypdf import PdfReader

    pages = PdfReader(io.BytesIO(data)).pages
    if len(pages) > MAX_PAGES:
        raise UnreadableError(f"it has {len(pages):,} pages, and {MAX_PAGES:,} are the most: split it")
    for page in pages:
        yield page.extract_text()


def _read_docx(data: bytes) -> Iterator[str]:
    from zipfile import ZipFile

    from docx import Document
    from docx.table import Table, _Cell

    with ZipFile(io.BytesIO(data)) as packed:  # zipfile never unpacks more bytes than the file declares here
        size = sum(info.file_size for info in packed.infolist())
    if size > MAX_UNPACKED:
        raise UnreadableError(f"it unpacks to {size / 1e6:,.0f} MB, and {MAX_UNPACKED / 1e6:,.0f} are the most")
    for block in Document(io.BytesIO(data)).iter_inner_content():
        if isinstance(block, Table):
            # Private parts of other libraries
            #
            # `row.cells` repeats a cell for each column that it claims to span, which may be a billion. We take the
            # cells from the XML, where each stands once, by `_Cell`, `_tbl`, `tr_lst` and `tc_lst`. This was checked
            # with python-docx 1.2.0. Where one of them is gone, a document with a table raises an error that names it.
            rows = ([_Cell(cell, block).text for cell in row.tc_lst] for row in block._tbl.tr_lst)
            yield "\n".join("\t".join(cells) for cells in rows)
        else:
            yield block.text


READERS: dict[str, Callable[[bytes], Iterator[str]]] = {".pdf": _read_pdf, ".docx": _read_docx}


def _join(blocks: Iterable[str], characters: int) -> str:
    """Join pages or paragraphs. We stop reading as soon as there are too many characters."""
    found, size = [], 0
    for block in blocks:
        found.append(block)
        size += len(block) + 2
        if size > characters + 2:
            raise UnreadableError(f"it has more than {characters:,} characters: split it")
    # A font may map to lone surrogates, halves of characters, which UTF-8 cannot hold
    return "\n\n".join(found).encode("utf8", "replace").decode()


def main(kind: str, seconds: int, memory: int, characters: int) -> None:
    """Read a file from standard input, and write {"text": ...} or {"problem": ...} as JSON to standard output.

    kind (str): .pdf or .docx.
    seconds (int): Processor time that the process may use, where the system can limit it.
    memory (int): Bytes of address space that the process may use, where the system can limit it.
    characters (int): The most characters that the text may have.
    """
    with suppress(ImportError):  # Windows has no such module
        import resource

        for limit, most in ((resource.RLIMIT_CPU, seconds), (resource.RLIMIT_AS, memory)):
            with suppress(OSError, ValueError):
                resource.setrlimit(limit, (most, most))
    try:
        answer = {"text": _join(READERS[kind](sys.stdin.buffer.read()), characters)}
    except UnreadableError as error:
        answer = {"problem": str(error)}
    except MemoryError:
        sys.exit(1)
    except Exception as error:  # libraries that read damaged files raise any kind of exception
        answer = {"problem": f"{type(error).__name__}: {error}"[:300]}
    json.dump(answer, sys.stdout)


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
