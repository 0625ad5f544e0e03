"""Groups of documents that are nearly the same, which share a split wherever they come from."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

import tqdm

from common.annotations import Document
from common.similarity import group_similar, sketch

GROUP = "group"  # in a document's meta: what names those that are nearly the same


def group_documents(documents: Sequence[Document]) -> dict[str, str]:
    """Group the documents that are nearly the same, so that no two splits can share them.

    documents (Sequence[Document]): The documents.
    RETURNS (dict[str, str]): For each that is not alone the least id in its group.
    """
    bar = tqdm.tqdm(documents, "comparing", unit="doc", disable=None)
    members: dict[int, list[str]] = defaultdict(list)
    for document, first in zip(documents, group_similar([sketch(document.text) for document in bar]), strict=True):
        members[first].append(document.id)
    return {name: min(names) for names in members.values() if len(names) > 1 for name in names}


def regroup(documents: Iterable[Document], groups: dict[str, str]) -> dict[str, dict[str, str | None]]:
    """Find the documents whose meta has another group than they are in now.

    documents (Iterable[Document]): The documents.
    groups (dict[str, str]): As `group_documents` gives them.
    RETURNS (dict[str, dict[str, str | None]]): What their meta shall have, as `Store.describe` takes it.
    """
    return {
        document.id: {GROUP: groups.get(document.id)}
        for document in documents
        if document.meta.get(GROUP) != groups.get(document.id)
    }
