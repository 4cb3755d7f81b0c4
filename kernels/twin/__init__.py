"""Host twin of the Ascend C API: builds a kernel's unchanged source with g++, runs it block by
block and checks every call. README.md says what a pass means and what it does not."""

from loopmoe_kernels.twin.build import Kernel, TwinError, build, compile_source, kernels
from loopmoe_kernels.twin.run import Report, TwinFault, plan, run

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
