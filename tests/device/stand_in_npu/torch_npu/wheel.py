"""What the wheel of torch_npu holds, read without CANN: its Python sources and its library."""

from __future__ import annotations

import ast
import functools
import inspect
import os
import re
from pathlib import Path
from typing import Any, Dict, Set

FOLDER = Path(os.environ.get("STAND_IN_WHEEL", "")) / "torch_npu"


@functools.cache
def tree(file: str) -> ast.Module:
    """The source of one of its modules."""
    return ast.parse((FOLDER / file).read_text())


def signature_of(node: ast.FunctionDef) -> inspect.Signature:
    """Names and kinds of parameters; defaults are there, without their values."""
    arguments = node.args
    for one in [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]:
        one.annotation = None
    for special in (arguments.vararg, arguments.kwarg):
        if special is not None:
            special.annotation = None
    arguments.defaults = [ast.Constant(None) for _ in arguments.defaults]
    arguments.kw_defaults = [default and ast.Constant(None) for default in arguments.kw_defaults]
    plain = ast.FunctionDef("f", arguments, [ast.Pass()], [], None)
    scope: Dict[str, Any] = {}
    module = ast.Module([plain], [])
    exec(compile(ast.fix_missing_locations(module), "<wheel>", "exec"), scope)
    return inspect.signature(scope["f"])


@functools.cache
def signatures(folder: str) -> Dict[str, inspect.Signature]:
    """Signatures of functions and of methods ("Class.method") in the modules of a folder."""
    found: Dict[str, inspect.Signature] = {}
    for file in sorted((FOLDER / folder).glob("*.py")):
        for node in tree(f"{folder}/{file.name}").body:
            if isinstance(node, ast.FunctionDef):
                found.setdefault(node.name, signature_of(node))
            elif isinstance(node, ast.ClassDef):
                for inner in node.body:
                    if isinstance(inner, ast.FunctionDef):
                        found.setdefault(f"{node.name}.{inner.name}", signature_of(inner))
    return found


@functools.cache
def names(file: str) -> Set[str]:
    """What a module binds at its top level."""
    bound: Set[str] = set()
    for node in ast.walk(tree(file)):
        if isinstance(node, ast.ImportFrom) and node.names[0].name == "*":
            bound |= names(f"{Path(file).parent}/{node.module}.py")
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            bound |= {alias.asname or alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            bound.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            bound.add(node.id)
    return bound | {path.stem for path in (FOLDER / file).parent.glob("*.py")}


@functools.cache
def schema(name: str) -> str:
    """Schema of one of its operators: its library registers them as text.

    Raises:
        LookupError: it has no such operator.
    """
    text = (FOLDER / "lib/libtorch_npu.so").read_bytes()
    at = text.find(b"\0" + name.encode() + b"(")
    if at < 0:
        raise LookupError(f"torch_npu 2.13 has no operator {name}")
    return text[at + 1 : text.index(b"\0", at + 1)].decode()


@functools.cache
def collectives() -> Set[str]:
    """Methods of ProcessGroupHCCL that start work, from its header."""
    header = FOLDER / "include/torch_npu/csrc/distributed/ProcessGroupHCCL.hpp"
    return set(re.findall(r"intrusive_ptr<c10d::Work> (\w+)\(", header.read_text()))
