"""Host twin of the Ascend C API: builds a kernel's unchanged source with g++, runs it block by
block and checks every call. README.md says what a pass means and what it does not."""

from loopmoe_kernels.twin.execute import Report, TwinFault, plan, run
from loopmoe_kernels.twin.library import Kernel, TwinError, build, compile_source, kernels

__all__ = [
    "Kernel",
    "Report",
    "TwinError",
    "TwinFault",
    "build",
    "compile_source",
    "kernels",
    "plan",
    "run",
]
