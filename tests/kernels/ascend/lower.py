"""The stages of triton-ascend's compiler up to its linalg form; the one behind needs CANN."""

from __future__ import annotations

from typing import Any, Dict

from triton._C.libtriton import ir
from triton.backends.compiler import GPUTarget
from triton.compiler.compiler import ASTSource, make_backend

from tests.kernels.launches import Launch

TARGET = GPUTarget("npu", "Ascend910B3", 0)


def lower(launch: Launch) -> str:
    """The linalg form ("ttadapter") of a launch's kernel.

    Raises:
        Exception: of many kinds, where the language's subset is left.
    """
    backend = make_backend(TARGET)
    options = backend.parse_options({})
    stages: Dict[str, Any] = {}
    backend.add_stages(stages, options)
    context = ir.context()
    ir.load_dialects(context)
    backend.load_dialects(context)
    arguments = {name: kind for name, kind in launch.signature.items() if kind != "constexpr"}
    source = ASTSource(launch.kernel, arguments, constants=launch.constants)
    codegen, modules = backend.get_codegen_implementation(), backend.get_module_map()
    form = source.make_ir(options, codegen, modules, context)
    metadata = {**options.__dict__}
    for stage in ("ttir", "ttadapter"):
        form = stages[stage](form, metadata)
    return str(form)
