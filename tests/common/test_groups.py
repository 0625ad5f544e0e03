from __future__ import annotations

from common.annotations import Document
from common.groups import group_documents, regroup

TEXT = "On day 7 the boat left at noon, and on day 8 another one came into the harbour with fog behind it"


def test_documents_that_are_nearly_the_same_are_one_group_and_only_changes_are_told() -> None:
    texts = {"b": f"{TEXT}.", "a": f"{TEXT}!", "c": "Rain fell."}
    documents = [Document(id=name, text=text, meta={"group": "a"}) for name, text in texts.items()]
    groups = group_documents(documents)
    assert groups == {"a": "a", "b": "a"}
    assert regroup(documents, groups) == {"c": {"group": None}}
