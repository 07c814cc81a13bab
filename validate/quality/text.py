"""Text that comes with Python itself: the docstrings of its standard library, and the topics of its `help()`."""

from __future__ import annotations

import ast
import hashlib
import platform
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ground.errors import UserError

# Not of the standard library (installed beside it), or not written for people: tests, tables and generated files.
_LEFT_OUT = frozenset(
    {"site-packages", "dist-packages", "test", "tests", "idle_test", "lib2to3", "idlelib", "turtledemo"}
    | {"ensurepip", "encodings", "pydoc_data"}
)
# A document says enough only from here on; shorter ones are left out.
_SHORTEST = 800
# One document in so many is held out, chosen by its name alone.
_HELD_OUT = 8


@dataclass(frozen=True)
class Document:
    """One file's docstrings, or one topic. What the model is judged by is held out by whole documents."""

    name: str
    text: bytes

    @property
    def held_out(self) -> bool:
        return _is_held_out(self.name)


@dataclass(frozen=True)
class Corpus:
    """All documents, in order of their names."""

    documents: list[Document]

    @property
    def training(self) -> list[Document]:
        return [document for document in self.documents if not document.held_out]

    @property
    def held_out(self) -> list[Document]:
        return [document for document in self.documents if document.held_out]

    def facts(self) -> dict[str, Any]:
        """What it is and its hash: another Python has another text."""
        digest = hashlib.sha256()
        for document in self.documents:
            digest.update(document.name.encode() + b"\0" + document.text + b"\0")
        return {
            "source": "docstrings of the standard library by file, and the topics of pydoc_data",
            "python": platform.python_version(),
            "documents": len(self.documents),
            "held_out": len(self.held_out),
            "bytes": sum(len(document.text) for document in self.documents),
            "sha256": digest.hexdigest(),
        }


def python_text(library: Path | None = None, *, only_held_out: bool = False) -> Corpus:
    """The text of this interpreter's standard library, or of the one in folder `library`: all, or what is held out.

    Raises:
        UserError: there is too little of it, as where Python was installed without its sources.
    """
    library = library or Path(sysconfig.get_path("stdlib"))
    named = (*_docstrings(library, only_held_out), *_topics(only_held_out))
    documents = [Document(name, text.encode()) for name, text in named]
    documents = sorted((one for one in documents if len(one.text) >= _SHORTEST), key=lambda one: one.name)
    corpus = Corpus(documents)
    if not corpus.held_out or not (corpus.training or only_held_out):
        raise UserError(
            f"{library}: holds {len(documents)} Python files with {_SHORTEST} bytes of docstrings; "
            "expected a standard library with its sources"
        )
    return corpus


def _is_held_out(name: str) -> bool:
    return hashlib.sha256(name.encode()).digest()[0] % _HELD_OUT == 0


def _docstrings(library: Path, only_held_out: bool) -> Iterator[tuple[str, str]]:
    commented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for path in library.rglob("*.py"):
        name = path.relative_to(library)
        if _LEFT_OUT.intersection(name.parts) or (only_held_out and not _is_held_out(name.as_posix())):
            continue
        try:
            tree = ast.parse(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, SyntaxError):
            continue  # a library may hold what is no Python 3 on purpose
        found = [ast.get_docstring(node) for node in ast.walk(tree) if isinstance(node, commented)]
        yield name.as_posix(), "\n\n".join(text for text in found if text) + "\n"


def _topics(only_held_out: bool) -> Iterator[tuple[str, str]]:
    try:
        from pydoc_data.topics import topics
    except ImportError:  # some distributions leave it out
        return
    for topic, text in topics.items():
        name = f"pydoc_data/topics.py:{topic}"
        if _is_held_out(name) or not only_held_out:
            yield name, text
