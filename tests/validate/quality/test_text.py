"""Python's own text: which files it is made of, and which are held out."""

import pytest

from ground.errors import UserError
from validate.quality.text import python_text

LONG = "word " * 300


@pytest.fixture
def library(tmp_path, monkeypatch):
    """A library of 40 modules, and files that are no part of it."""
    monkeypatch.setattr("validate.quality.text._topics", lambda only_held_out: iter(()))
    for number in range(40):
        (tmp_path / f"module{number}.py").write_text(f'"""{LONG} {number}"""\n')
    return tmp_path


def test_documents_are_the_docstrings_of_a_file(library):
    body = 'class A:\n    """Second."""\n    def f(self):\n        """Third."""\n        return "no"\n'
    (library / "written.py").write_text(f'"""First {LONG}"""\n{body}')
    corpus = python_text(library)
    text = next(one for one in corpus.documents if one.name == "written.py").text.decode()
    assert text.startswith("First word")
    assert text.endswith("Second.\n\nThird.\n")
    assert [one.name for one in corpus.documents] == sorted(one.name for one in corpus.documents)


def test_what_is_not_for_people_is_left_out(library):
    for name in ("test/a.py", "site-packages/b.py", "encodings/c.py", "bad.py", "short.py", "latin.py"):
        (library / name).parent.mkdir(exist_ok=True)
        (library / name).write_text(f'"""{LONG}"""\n')
    (library / "bad.py").write_text("def (:\n")
    (library / "short.py").write_text('"""Short."""\n')
    (library / "latin.py").write_bytes(b'"""\xe9' + LONG.encode() + b'"""\n')
    assert len(python_text(library).documents) == 40


def test_held_out_by_name_alone(library):
    corpus = python_text(library)
    assert 0 < len(corpus.held_out) < len(corpus.training)
    assert {one.name for one in corpus.held_out}.isdisjoint(one.name for one in corpus.training)
    assert python_text(library, only_held_out=True).documents == corpus.held_out
    for path in library.glob("*.py"):
        path.write_text(f'"""Other {LONG}"""\n')
    assert [one.name for one in python_text(library).held_out] == [one.name for one in corpus.held_out]


def test_another_text_has_another_hash(library):
    before = python_text(library).facts()
    assert python_text(library).facts() == before
    (library / "module0.py").write_text(f'"""Other {LONG}"""\n')
    assert python_text(library).facts()["sha256"] != before["sha256"]


def test_a_library_without_sources_is_refused(library):
    for path in library.glob("*.py"):
        path.unlink()
    with pytest.raises(UserError, match="holds 0 Python files"):
        python_text(library)


def test_the_topics_of_this_python_are_read():
    pytest.importorskip("pydoc_data.topics")
    from validate.quality.text import _topics

    every, held_out = dict(_topics(False)), dict(_topics(True))
    assert held_out.items() <= every.items()
    assert 0 < len(held_out) < len(every)
