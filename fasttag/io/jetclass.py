"""JetClass (Zenodo 6619768) and files like it: a ROOT tree `tree` with part_*, jet_* and label_*, through uproot."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import CorruptFileError, FormatError
from ..interop import require
from ..jets import Jets
from ._checks import spans
from ._particles import BLOCK, assemble, wanted


def blocks(path: str | os.PathLike, start: int, stop: int | None, columns: Collection[str] | None) -> Iterator[Jets]:
    """See fasttag.io.read."""
    uproot, ak = require("uproot"), require("awkward")
    where = f"{path}: tree"
    with uproot.open(Path(path)) as file:
        names = file.keys(recursive=False, cycle=False)
        if "tree" not in names or file.classname_of("tree") != "TTree":
            raise FormatError(f"{where} must be a TTree, the file has {', '.join(names) or 'nothing'}")
        tree = file["tree"]
        _check_names(tree, where)
        parts, labels = wanted(tree.keys(recursive=False), columns, where)
        for name in (*parts, *labels):
            _check(tree, name, uproot.AsJagged if name in parts else uproot.AsDtype, where)
        for begin, end in spans(start, stop, tree.num_entries, BLOCK):
            arrays = tree.arrays([*parts, *labels], entry_start=begin, entry_stop=end, library="ak", how=dict)
            for name, array in arrays.items():
                if len(array) != end - begin:
                    raise CorruptFileError(f"{where}: {name} has {len(array)} rows of {begin}:{end}")
            lists = {name: _flat(ak, arrays[name]) for name in parts}
            yield assemble(lists, {name: ak.to_numpy(arrays[name]) for name in labels}, columns, where, begin)


def _check_names(tree: Any, where: str) -> None:
    """ROOT keeps a name three times; two that agree against the branch tell that its name is damaged."""
    for branch in tree.branches:
        leaf, title = branch.member("fLeaves")[0].member("fName"), re.split(r"[/\[]", branch.title)[0]
        if leaf == title != branch.name and leaf.startswith(("part_", "jet_", "label")):
            raise CorruptFileError(f"{where}: the branch of {leaf} is called {branch.name!r}")


def _check(tree: Any, name: str, kind: type, where: str) -> None:
    branch = tree[name]
    if branch.num_entries != tree.num_entries:
        raise CorruptFileError(f"{where}: {name} has {branch.num_entries} entries, the tree {tree.num_entries}")
    interpretation = branch.interpretation
    content = getattr(interpretation, "content", interpretation)
    if type(interpretation) is not kind or content.to_dtype.kind not in "biuf" or content.to_dtype.ndim:
        raise FormatError(f"{where}: {name} must be numbers{' in lists' if kind.__name__ == 'AsJagged' else ''}")


def _flat(ak: Any, array: Any) -> tuple[np.ndarray, np.ndarray]:
    return ak.to_numpy(ak.flatten(array)), ak.to_numpy(ak.num(array))
