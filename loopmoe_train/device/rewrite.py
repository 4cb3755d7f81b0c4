"""Make the source of a megatron.core module device-neutral, by its syntax tree.

Every place that names CUDA becomes a use of the name `__accel__`, which the loader binds to
`loopmoe_train.device.accelerator.accel`:

    torch.cuda                          -> __accel__
    from torch.cuda.x import y          -> y = __accel__.import_from("torch.cuda.x", "y")
    import torch.cuda.x as y            -> y = __accel__.import_from("torch.cuda", "x")
    "cuda"                              -> __accel__.device_type
    f"cuda:{i}", torch.device("cuda",i) -> __accel__.device_string(i), __accel__.make_device(i)
    t.cuda(...)                         -> __accel__.to_device(t, ...)
    t.is_cuda                           -> __accel__.is_accelerated(t)
    t.record_stream(s)                  -> __accel__.record_stream(t, s)
    x == "torch.cuda.FloatTensor"       -> x == __accel__.type_string("torch.cuda.FloatTensor")
    f(pin_memory=p), t.pin_memory()     -> f(pin_memory=__accel__.may_pin(p)), __accel__.pin(t)
    Process(target=f)                   -> Process(target=__accel__.spawned(f))

Pinning is part of it because pinned memory needs an accelerator, and `Process` because a spawned
child has no import finder until this package is imported there.

Annotations stay: they name types that exist in every build of torch. So do patterns, docstrings,
messages and `Literal[...]`. Nodes keep the positions of what they replace, so that tracebacks
show the original lines.
"""

from __future__ import annotations

import ast
from types import CodeType
from typing import TypeVar

FACADE = "__accel__"
_TENSOR_TYPES = tuple(
    f"torch.cuda.{name}Tensor"
    for name in ("Float", "Half", "BFloat16", "Double", "Long", "Int", "Short", "Char", "Byte")
)
#: Modules in which "nccl" means "the backend of the device" rather than the name of an option.
_NCCL_IS_THE_BACKEND = (
    "megatron.core.utils",
    "megatron.core.pipeline_parallel.bridge_communicator",
)

_Node = TypeVar("_Node", bound=ast.AST)


def _is_name(node: ast.AST, name: str) -> bool:
    return isinstance(node, ast.Name) and node.id == name


def _is_torch_cuda(node: ast.AST) -> bool:
    return isinstance(node, ast.Attribute) and node.attr == "cuda" and _is_name(node.value, "torch")


def _is_text(node: ast.AST, *values: str) -> bool:
    return isinstance(node, ast.Constant) and node.value in values


class _Rewriter(ast.NodeTransformer):
    """One pass over one module; the table is in the module docstring."""

    def __init__(self, module_name: str) -> None:
        self._nccl = module_name in _NCCL_IS_THE_BACKEND

    # -- building blocks ---------------------------------------------------------------------
    def _facade(self, at: ast.AST) -> ast.Name:
        return ast.copy_location(ast.Name(FACADE, ast.Load()), at)

    def _attribute(self, name: str, at: ast.AST) -> ast.Attribute:
        return ast.copy_location(ast.Attribute(self._facade(at), name, ast.Load()), at)

    def _call(
        self,
        name: str,
        arguments: list[ast.expr],
        at: ast.AST,
        keywords: list[ast.keyword] | None = None,
    ) -> ast.Call:
        # The callee stands where the original one stood: Python reports the line of its end.
        callee = at.func if isinstance(at, ast.Call) else at
        called = self._attribute(name, callee)
        return ast.copy_location(ast.Call(called, arguments, keywords or []), at)

    def _text(self, value: str, at: ast.AST) -> ast.Constant:
        return ast.copy_location(ast.Constant(value), at)

    # -- what is left alone ------------------------------------------------------------------
    def visit_arg(self, node: ast.arg) -> ast.arg:
        return node

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AnnAssign:
        if node.value is not None:
            node.value = self.visit(node.value)
        node.target = self.visit(node.target)
        return node

    def _visit_function(self, node: _Node) -> _Node:
        returns, node.returns = node.returns, None  # type: ignore[attr-defined]
        self.generic_visit(node)
        node.returns = returns  # type: ignore[attr-defined]
        return node

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.FunctionDef:
        return self._visit_function(node)

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> ast.AsyncFunctionDef:
        return self._visit_function(node)

    def visit_Expr(self, node: ast.Expr) -> ast.Expr:
        # A docstring: as an expression it would also end the place for __future__ imports.
        return node if isinstance(node.value, ast.Constant) else self.generic_visit(node)  # type: ignore

    def visit_MatchValue(self, node: ast.MatchValue) -> ast.MatchValue:
        return node  # a pattern must stay a constant

    def visit_Subscript(self, node: ast.Subscript) -> ast.Subscript:
        return node if _is_name(node.value, "Literal") else self.generic_visit(node)  # type: ignore

    # -- names and constants -----------------------------------------------------------------
    def visit_Attribute(self, node: ast.Attribute) -> ast.expr:
        if _is_torch_cuda(node):
            return self._facade(node)
        self.generic_visit(node)
        if node.attr == "is_cuda" and isinstance(node.ctx, ast.Load):
            return self._call("is_accelerated", [node.value], node)
        return node

    def visit_Constant(self, node: ast.Constant) -> ast.expr:
        return self._attribute("device_type", node) if _is_text(node, "cuda") else node

    def visit_JoinedStr(self, node: ast.JoinedStr) -> ast.expr:
        # the constant pieces of an f-string cannot become expressions: visit the others only
        for piece in node.values:
            if isinstance(piece, ast.FormattedValue):
                self.visit(piece)
        if len(node.values) == 2 and _is_text(node.values[0], "cuda:"):
            value = node.values[1]
            if isinstance(value, ast.FormattedValue) and value.format_spec is None:
                return self._call("device_string", [value.value], node)
        return node

    def visit_Compare(self, node: ast.Compare) -> ast.Compare:
        self.generic_visit(node)
        node.comparators = [self._compared(item) for item in node.comparators]
        return node

    def _compared(self, node: ast.expr) -> ast.expr:
        if isinstance(node, (ast.List, ast.Tuple, ast.Set)):
            node.elts = [self._compared(item) for item in node.elts]
        elif _is_text(node, *_TENSOR_TYPES):
            return self._call("type_string", [node], node)
        elif self._nccl and _is_text(node, "nccl"):
            return self._attribute("communication_backend", node)
        return node

    # -- calls -------------------------------------------------------------------------------
    def visit_Call(self, node: ast.Call) -> ast.expr:
        if isinstance(node.func, ast.Name) and node.func.id in ("hasattr", "getattr", "setattr"):
            node.args = [
                item if isinstance(item, ast.Constant) else self.visit(item) for item in node.args
            ]
            return node
        method = node.func.attr if isinstance(node.func, ast.Attribute) else ""
        owner = node.func.value if isinstance(node.func, ast.Attribute) else node.func
        makes_device = method == "device" and _is_name(owner, "torch")
        if makes_device and len(node.args) == 2 and _is_text(node.args[0], "cuda"):
            return self._call("make_device", [self.visit(node.args[1])], node)
        moved = {"cuda": "to_device", "record_stream": "record_stream", "pin_memory": "pin"}
        self.generic_visit(node)
        for keyword in node.keywords:
            self._rewrite_keyword(keyword, method)
        if method in moved and isinstance(node.func, ast.Attribute):
            return self._call(moved[method], [node.func.value, *node.args], node, node.keywords)
        return node

    def _rewrite_keyword(self, keyword: ast.keyword, method: str) -> None:
        if keyword.arg == "pin_memory":
            keyword.value = self._call("may_pin", [keyword.value], keyword.value)
        elif keyword.arg == "target" and method == "Process":
            keyword.value = self._call("spawned", [keyword.value], keyword.value)
        elif keyword.arg == "backend" and self._nccl and _is_text(keyword.value, "nccl"):
            keyword.value = self._attribute("communication_backend", keyword.value)

    # -- imports -----------------------------------------------------------------------------
    def _bind(self, name: str, module: str, attribute: str, at: ast.stmt) -> ast.stmt:
        value = self._call("import_from", [self._text(module, at), self._text(attribute, at)], at)
        target = ast.copy_location(ast.Name(name, ast.Store()), at)
        return ast.copy_location(ast.Assign([target], value), at)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> ast.stmt | list[ast.stmt]:
        module = node.module or ""
        if module == "torch" and any(item.name == "cuda" for item in node.names):
            rest = [item for item in node.names if item.name != "cuda"]
            name = next(item.asname or "cuda" for item in node.names if item.name == "cuda")
            target = ast.copy_location(ast.Name(name, ast.Store()), node)
            bound = ast.copy_location(ast.Assign([target], self._facade(node)), node)
            if not rest:
                return bound
            node.names = rest
            return [node, bound]
        if module == "torch.cuda" or module.startswith("torch.cuda."):
            return [self._bind(i.asname or i.name, module, i.name, node) for i in node.names]
        return node

    def visit_Import(self, node: ast.Import) -> ast.stmt | list[ast.stmt]:
        # `import torch.cuda.x` without a name binds `torch`, which is right as it is
        aliased = [i for i in node.names if i.asname and i.name.startswith("torch.cuda.")]
        if not aliased:
            return node
        kept = [item for item in node.names if item not in aliased]
        statements: list[ast.stmt] = []
        if kept:
            node.names = kept
            statements.append(node)
        for item in aliased:
            parent, _, name = item.name.rpartition(".")
            statements.append(self._bind(str(item.asname), parent, name, node))
        return statements


def rewrite(source: bytes | str, path: str, module_name: str) -> CodeType:
    """Compile the source of megatron.core's module `module_name` with its device names replaced.

    Args:
        source: the text of the file; bytes honour a coding declaration.
        path: what tracebacks show and where they read the lines from.
        module_name: dotted name; it decides the few rewrites that depend on the module.

    Raises:
        SyntaxError: the file is not valid Python for this interpreter.
    """
    tree = ast.parse(source, filename=path)
    tree = _Rewriter(module_name).visit(tree)
    ast.fix_missing_locations(tree)
    return compile(tree, path, "exec", dont_inherit=True)
