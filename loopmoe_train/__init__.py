"""LoopMoE pretraining on megatron-core, for Ascend NPU, CUDA and CPU.

Importing this package installs an import finder that ports `megatron.core` to the selected
device when (and only when) something imports it. It needs neither torch nor megatron and takes
milliseconds, so torch-free commands (`loopmoe plan`) stay torch-free.

Raises:
    ImportOrderError: megatron.core was imported before this package, hence without the port.
"""

import os as _os

from loopmoe_train.device import port as _port

__version__ = "0.1.0"

# A torch_npu whose CANN is not there would end every `import torch` in a traceback, on the cpu too.
# The npu's backend imports it by name and says in one line what is missing.
_os.environ.setdefault("TORCH_DEVICE_BACKEND_AUTOLOAD", "0")
_port.install()
