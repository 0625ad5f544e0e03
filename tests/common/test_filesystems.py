from __future__ import annotations

from pathlib import Path

from common.filesystems import file_system


def test_a_url_and_a_path_lead_to_the_same_place(tmp_path: Path) -> None:
    assert file_system(str(tmp_path))[1] == file_system(f"{tmp_path.as_uri()}/")[1]
