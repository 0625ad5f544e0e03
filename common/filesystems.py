"""File systems here and elsewhere, such as object stores: what a URL leads to, and what may fail on the way."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow
from fsspec.implementations.arrow import ArrowFSWrapper  # type: ignore[import-untyped]
from pyarrow.fs import FileInfo, FileSelector, FileSystem, FileType, LocalFileSystem

from common.errors import StepError


class FileSystemError(StepError):
    """A file system elsewhere does not answer, or refuses: no text is to blame, and none is given up."""


@contextmanager
def reaching(system: FileSystem) -> Iterator[None]:
    """Raise a FileSystemError instead of an OSError of a file system elsewhere, unless a file is not there."""
    try:
        yield
    except FileNotFoundError:
        raise
    except OSError as error:
        if isinstance(system, LocalFileSystem):
            raise
        raise FileSystemError(
            f"The file system {system.type_name} fails: {(str(error).strip() or repr(error)).splitlines()[0]}",
            "Look at the URL, the credentials and the network, and run the same again: what is done is kept.",
        ) from error


@cache
def file_system(place: str) -> tuple[FileSystem, str]:
    """Find the file system of a place.

    place (str): A path, or a URL that pyarrow knows: s3://bucket/folder, gs://, hdfs://, abfs://, file://.
    RETURNS (tuple[FileSystem, str]): The file system, and the path in it.
    RAISES (StepError): If the URL is of an unknown kind, or if its file system cannot be reached.
    """
    if "://" not in place:
        return LocalFileSystem(), Path(place).absolute().as_posix()
    scheme = place.partition("://")[0]  # the rest of a URL may hold a password
    try:
        system, path = FileSystem.from_uri(place)
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise StepError(
            f"A URL of {scheme}:// cannot be used: {str(error).replace(place, f'{scheme}://…')}",
            "See https://arrow.apache.org/docs/python/filesystems.html for the kinds of URLs and their credentials.",
        ) from error
    return system, path.rstrip("/")


def list_files(system: FileSystem, path: str) -> list[FileInfo]:
    """List the files at a path, wherever in a folder, or of a pattern with `*` and `**`, sorted.

    RAISES (FileSystemError): If the file system is elsewhere and cannot be reached.
    RAISES (StepError): If a file has a name that is no text.
    """
    infos = []
    with reaching(system), _decoding():
        matches = ArrowFSWrapper(system).glob(path) if "*" in path else [path]
        for info in system.get_file_info(matches) if matches else ():
            if info.type == FileType.File:
                infos.append(info)
            elif info.type == FileType.Directory:
                inside = system.get_file_info(FileSelector(info.path, recursive=True))
                infos += [one for one in inside if one.type == FileType.File]
        return sorted(infos, key=lambda info: info.path)


@contextmanager
def _decoding() -> Iterator[None]:
    """Name the file whose name pyarrow cannot decode."""
    try:
        yield
    except UnicodeDecodeError as error:
        raise StepError(f"The name of a file is not in UTF-8: {os.fsdecode(error.object)!r}.", "Rename it.") from error


def open_file(place: str, path: str) -> Any:
    """Open a file for reading.

    place (str): A path or URL, as `file_system` takes it, from which its file system is known.
    path (str): Its path in that file system.
    RETURNS (Any): The file, in bytes.
    RAISES (FileSystemError): Now or while it is read, if it is elsewhere and cannot be reached.
    """
    system, _ = file_system(place)
    with reaching(system):
        stream = system.open_input_file(path)
    return stream if isinstance(system, LocalFileSystem) else _Remote(system, stream)


class _Remote(io.RawIOBase):
    """A file elsewhere. What pyarrow raises for the network is what it raises for damaged parquet: here they differ."""

    def __init__(self, system: FileSystem, stream: Any) -> None:
        self.system = system
        self.stream = stream

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        position: int = self.stream.seek(offset, whence)
        return position

    def tell(self) -> int:
        position: int = self.stream.tell()
        return position

    def readinto(self, buffer: Any) -> int:
        with reaching(self.system):
            length: int = self.stream.readinto(buffer)
        return length

    def readall(self) -> bytes:
        with reaching(self.system):
            data: bytes = self.stream.read()
        return data
