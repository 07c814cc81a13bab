"""A file is whole under its name, or what was there before."""

from pathlib import Path

import pytest

from ground.whole_file import whole_file


def test_it_replaces_what_was_there_at_the_end(tmp_path: Path) -> None:
    target = tmp_path / "numbers.json"
    for text in ("old", "new"):
        with whole_file(target) as partial:
            partial.write_text(text)
            assert not target.exists() or target.read_text() != text
        assert target.read_text() == text
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("before", [None, "old"])
def test_work_that_fails_leaves_what_was_there(tmp_path: Path, before: str | None) -> None:
    target = tmp_path / "numbers.json"
    if before is not None:
        target.write_text(before)

    def fail(partial: Path) -> None:
        partial.write_text("half")
        raise RuntimeError

    with pytest.raises(RuntimeError), whole_file(target) as partial:
        fail(partial)
    assert (target.read_text() if target.exists() else None) == before
