"""The environment variables that decide how a device and its libraries work: one table.

Sources: the manuals of CANN 8.5 (HCCL) and of Ascend Extension for PyTorch 7.2, the messages in
torch_npu 2.13's own library, torch's and megatron-core's documentation. Nothing here has run on an
NPU. Needs no torch.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Callable, Mapping, Optional, Tuple

from loopmoe_train.config.schema import ClusterConfig, RunConfig

NPU, CUDA, ALL = ("npu",), ("cuda",), ("cpu", "cuda", "npu")
#: What a run wants, given what the user has set; None: nothing.
Wish = Callable[[RunConfig, Mapping[str, str]], Optional[str]]


@dataclass(frozen=True)
class Form:
    """What values of a variable look like: in words, and as a test."""

    words: str
    fits: Callable[[str], bool]


@dataclass(frozen=True)
class Setting:
    """One environment variable.

    Attributes:
        devices: those that it means something to.
        form: what values look like.
        why: why the value is what it is; of variables that are only checked, what they do.
        value: what every rank gets; None: it is only checked.
        rule: the same in words, for the table in docs/ascend.md.
        decided_by_run: it repeats a setting of the run, which counts more than what the user's
            environment holds.
        reader: who reads it: `torch_npu` (its library holds the name), else a library that is not
            in its package.
    """

    name: str
    devices: Tuple[str, ...]
    form: Form
    why: str
    value: Optional[Wish] = None
    rule: str = ""
    decided_by_run: bool = False
    reader: str = "torch_npu"


def whole(low: int, high: int = 2**31 - 1) -> Form:
    """A whole number from ``low`` to ``high``."""
    words = f"a whole number from {low}" + (f" to {high}" if high < 2**31 - 1 else " up")
    return Form(words, lambda text: text.isascii() and text.isdigit() and low <= int(text) <= high)


def one_of(*allowed: str) -> Form:
    """One of a few words; capitals do not matter."""
    low = [word.lower() for word in allowed]
    return Form(" | ".join(allowed), lambda text: text.lower() in low)


def like(words: str, pattern: str) -> Form:
    """What a regular expression takes."""
    return Form(words, lambda text: re.fullmatch(pattern, text) is not None)


ANY = like("any text", ".+")
_LEVELS = r"level[0-2]:[\w-]+(;level[0-2]:[\w-]+){0,2}"
_ALGORITHM = rf"({_LEVELS}|\w+={_LEVELS}(/\w+={_LEVELS})*)"
_OPTIONS = r"\w+:[\w.\[\]-]+(,\w+:[\w.\[\]-]+)*"


def exec_seconds(run: RunConfig, given: Mapping[str, str]) -> int:
    """HCCL_EXEC_TIMEOUT of a run: what the user says, else the trainer's own timeout."""
    said = given.get("HCCL_EXEC_TIMEOUT", "")
    return int(said) if said.isdigit() else math.ceil(60 * run.launcher.timeout_minutes)


def two_dies(cluster: ClusterConfig) -> bool:
    """Whether it is one of Ascend A3: two devices are the dies of one package."""
    return any(link.devices == 2 for link in cluster.links)


def _buffer_mib(run: RunConfig) -> str:
    return str(max(1, int(run.cluster.communicator_mib // 2)))


def _event_seconds(run: RunConfig, given: Mapping[str, str]) -> str:
    seconds = exec_seconds(run, given)
    return str(seconds + 60) if seconds else "0"


def _queue(run: RunConfig, given: Mapping[str, str]) -> str:
    return "0" if given.get("ASCEND_LAUNCH_BLOCKING") == "1" else "2"


def _one_connection(run: RunConfig, given: Mapping[str, str]) -> Optional[str]:
    shared = run.parallel.tensor_parallel_size > 1 or run.parallel.context_parallel_size > 1
    return "1" if shared else None


def _if_deterministic(value: str) -> Wish:
    return lambda run, given: value if run.cluster.deterministic else None


SETTINGS: Tuple[Setting, ...] = (
    # -- every device ---------------------------------------------------------------------------
    Setting(
        "LOOPMOE_DEVICE", ALL, one_of("cpu", "cuda", "npu"),
        "megatron.core is ported to a device when it is imported, before run.yaml is read",
        lambda run, given: run.cluster.device, "cluster.device", True, "loopmoe_train",
    ),
    Setting(
        "OMP_NUM_THREADS", ALL, whole(1),
        "several ranks share the cores of a machine; sums of products depend on it",
        lambda run, given: str(run.launcher.threads_per_rank), "launcher.threads_per_rank", True,
        "torch",
    ),
    Setting(
        "PYTHONUNBUFFERED", ALL, ANY, "what a killed rank has said is in its log",
        lambda run, given: "1", "1", False, "Python",
    ),
    Setting(
        "TORCH_DEVICE_BACKEND_AUTOLOAD", ALL, one_of("0", "1"),
        "a torch_npu without CANN would end `import torch`, on the cpu too; it is loaded where it "
        "is needed",
        lambda run, given: "0", "0", False, "torch",
    ),
    Setting(
        "GLOO_SOCKET_IFNAME", ALL, ANY,
        "network interface of gloo; a rank takes lo if all ranks are on its machine",
        reader="torch",
    ),
    # -- NVIDIA ---------------------------------------------------------------------------------
    Setting(
        "CUDA_DEVICE_MAX_CONNECTIONS", CUDA, whole(1, 32),
        "megatron-core's overlap of tensor-parallel collectives with products relies on the order "
        "of launches",
        _one_connection, "1 with tensor or context parallelism", False, "CUDA",
    ),
    Setting(
        "CUBLAS_WORKSPACE_CONFIG", CUDA, like(":4096:8 and the like", r"(:\d+:\d+)+"),
        "cuBLAS sums in one order only with a fixed workspace; torch refuses products without it",
        _if_deterministic(":4096:8"), "with cluster.deterministic: :4096:8", False, "cuBLAS",
    ),
    Setting(
        "NCCL_ALGO", CUDA, ANY, "sums inside the switch (NVLS) have no fixed order",
        _if_deterministic("^NVLS"), "with cluster.deterministic: ^NVLS", False, "NCCL",
    ),
    # -- Ascend: collectives --------------------------------------------------------------------
    Setting(
        "HCCL_CONNECT_TIMEOUT", NPU, whole(120, 7200),
        "seconds for the ranks to meet: thousands of them start at different speeds",
        lambda run, given: str(min(7200, max(120, math.ceil(60 * run.launcher.timeout_minutes)))),
        "launcher.timeout_minutes in seconds, within 120 to 7200",
    ),
    Setting(
        "HCCL_EXEC_TIMEOUT", NPU, whole(0),
        "seconds of a collective on the device, 0 for ever; its default of half an hour would "
        "outlast the trainer's own timeout",
        lambda run, given: str(exec_seconds(run, given)), "launcher.timeout_minutes in seconds",
    ),
    Setting(
        "HCCL_EVENT_TIMEOUT", NPU, whole(0),
        "seconds that torch_npu waits for an event; must be more than HCCL_EXEC_TIMEOUT, or the "
        "event fails first and hides which collective it was",
        _event_seconds, "HCCL_EXEC_TIMEOUT + 60",
    ),
    Setting(
        "HCCL_BUFFSIZE", NPU, whole(1),
        "MiB of a buffer; every communicator holds two. What `loopmoe plan` counts is what runs",
        lambda run, given: _buffer_mib(run), "cluster.communicator_mib / 2",
    ),
    Setting(
        "HCCL_DETERMINISTIC", NPU, one_of("true", "false", "strict"),
        "sums over ranks in one order; A2 does not without it",
        _if_deterministic("true"), "with cluster.deterministic: true",
    ),
    Setting(
        "HCCL_ALGO", NPU,
        like("level0:A;level1:B or op=level0:A;level1:B/op=...", _ALGORITHM),
        "algorithm of every level of the network; HCCL chooses well by itself",
    ),
    Setting(
        "HCCL_OP_EXPANSION_MODE", NPU,
        one_of("AI_CPU", "AIV", "HOST", "HOST_TS", "CCU_MS", "CCU_SCHED"),
        "who lays out a collective. A2: HOST, A3: AI_CPU by default; AIV on A2 is for inference",
        reader="HCCL",
    ),
    Setting(
        "HCCL_IF_BASE_PORT", NPU, whole(1024, 65520),
        "first of 16 ports of the host, 60000 by default: reserve them", reader="HCCL",
    ),
    Setting("HCCL_SOCKET_IFNAME", NPU, ANY, "network interface of the host", reader="HCCL"),
    Setting(
        "HCCL_IF_IP", NPU, like("an address", r"[0-9A-Fa-f.:]+"), "address of the host",
        reader="HCCL",
    ),
    Setting(
        "HCCL_WHITELIST_DISABLE", NPU, one_of("0", "1"),
        "0: only the hosts of HCCL_WHITELIST_FILE may join", reader="HCCL",
    ),
    Setting(
        "TORCH_HCCL_ASYNC_ERROR_HANDLING", NPU, whole(0, 3),
        "0: a collective that fails does not end its process, which then hangs",
    ),
    Setting(
        "HCCL_ASYNC_ERROR_HANDLING", NPU, whole(0, 3),
        "the older name of TORCH_HCCL_ASYNC_ERROR_HANDLING",
    ),
    # -- Ascend: operators and memory -----------------------------------------------------------
    Setting(
        "TASK_QUEUE_ENABLE", NPU, one_of("0", "1", "2"),
        "2: a second thread prepares operators, so that the device waits less for the host",
        _queue, "2; 0 with ASCEND_LAUNCH_BLOCKING=1",
    ),
    Setting(
        "CPU_AFFINITY_CONF", NPU,
        like("0 | 1 | 2, then npu_affine:1 or npu0:0-7,...", r"[012](,\w+:[\w-]+)*"),
        "1: a rank stays on cores of its own, next to its NPU",
        lambda run, given: "1", "1",
    ),
    Setting(
        "PYTORCH_NPU_ALLOC_CONF", NPU, like("option:value,...", _OPTIONS),
        "sizes differ from step to step (tokens of an expert): segments that grow fragment less",
        lambda run, given: "expandable_segments:True", "expandable_segments:True",
    ),
    Setting(
        "STREAMS_PER_DEVICE", NPU, one_of("8", "32"),
        "streams that torch_npu hands out; A3 has room for more",
        lambda run, given: "32" if two_dies(run.cluster) else None, "A3: 32",
    ),
    Setting(
        "MULTI_STREAM_MEMORY_REUSE", NPU, whole(0, 3),
        "memory that one stream frees may serve another; 1 by default, 0 needs more memory",
    ),
    Setting(
        "TORCH_NPU_FALLBACK_CPU_DISABLE", NPU, one_of("0", "1"),
        "1: an operator that the NPU lacks is an error instead of a slow detour over the host",
    ),
    Setting(
        "ASCEND_LAUNCH_BLOCKING", NPU, one_of("0", "1"),
        "1: the host waits for every operator: errors name their line, training is slow",
    ),
    Setting(
        "INF_NAN_MODE_ENABLE", NPU, one_of("0", "1"),
        "0: an overflow becomes the largest number instead of inf",
    ),
    Setting(
        "INF_NAN_MODE_FORCE_DISABLE", NPU, one_of("0", "1"),
        "1: as INF_NAN_MODE_ENABLE=0, on A2 and A3",
    ),
    Setting("ACL_DEVICE_SYNC_TIMEOUT", NPU, whole(1), "seconds that a synchronization may take"),
    Setting(
        "ASCEND_RT_VISIBLE_DEVICES", NPU, like("0,1,...", r"\d+(,\d+)*"),
        "NPUs that a process sees", reader="CANN",
    ),
    Setting(
        "ASCEND_HOME_PATH", NPU, ANY, "the folder of CANN; its set_env.sh sets it", reader="CANN"
    ),
)  # fmt: skip

BY_NAME = {setting.name: setting for setting in SETTINGS}

#: Others that mean something, so that they are not taken for misspelt ones.
KNOWN = frozenset(
    """
    HCCL_BLOCKING_WAIT HCCL_DESYNC_DEBUG HCCL_DFS_CONFIG HCCL_DIAGNOSE_ENABLE HCCL_ENTRY_LOG_ENABLE
    HCCL_HOST_SOCKET_PORT_RANGE HCCL_INTER_HCCS_DISABLE HCCL_INTRA_PCIE_ENABLE
    HCCL_INTRA_ROCE_ENABLE HCCL_LOGIC_SUPERPOD_ID HCCL_NPU_SOCKET_PORT_RANGE HCCL_NPU_NET_PROTOCOL
    HCCL_OP_BASE_FFTS_MODE HCCL_OP_BASE_FFTS_MODE_ENABLE HCCL_OP_RETRY_ENABLE HCCL_OP_RETRY_PARAMS
    HCCL_RDMA_PCIE_DIRECT_POST_NOSTRICT HCCL_RDMA_QP_PORT_CONFIG_PATH HCCL_RDMA_QPS_PER_CONNECTION
    HCCL_RDMA_SL HCCL_RDMA_TC HCCL_RDMA_TIMEOUT HCCL_RDMA_RETRY_CNT HCCL_SOCKET_FAMILY
    HCCL_WHITELIST_FILE HCCL_CONCURRENT_ENABLE HCCL_DEBUG_CONFIG HCCL_MULTI_QP_THRESHOLD
    P2P_HCCL_BUFFSIZE RANK_TABLE_FILE TORCH_HCCL_BLOCKING_WAIT TORCH_HCCL_DESYNC_DEBUG
    TORCH_HCCL_DUMP_ON_TIMEOUT TORCH_HCCL_ENABLE_MONITORING TORCH_HCCL_HEARTBEAT_TIMEOUT_SEC
    TORCH_HCCL_HIGH_PRIORITY TORCH_HCCL_RANKS_PER_ROOT TORCH_HCCL_STATUS_SAVE_ENABLE
    TORCH_HCCL_STATUS_SAVE_INTERVAL TORCH_HCCL_STATUS_SAVE_PATH TORCH_HCCL_TRACE_BUFFER_SIZE
    TORCH_HCCL_TRACE_CPP_STACK TORCH_HCCL_WAIT_TIMEOUT_DUMP_MILSEC TORCH_HCCL_ZERO_COPY
    TORCH_HCCL_COORD_CHECK_MILSEC TORCH_HCCL_DEBUG_INFO_PIPE_FILE TORCH_HCCL_DEBUG_INFO_TEMP_FILE
    ASCEND_OPP_PATH ASCEND_TOOLKIT_HOME ASCEND_CUSTOM_OPP_PATH ASCEND_AICPU_PATH
    ASCEND_GLOBAL_LOG_LEVEL ASCEND_GLOBAL_EVENT_ENABLE ASCEND_SLOG_PRINT_TO_STDOUT
    ASCEND_PROCESS_LOG_PATH ASCEND_VISIBLE_DEVICES ASCEND_WORK_PATH ASCEND_CACHE_PATH
    ASCEND_ENHANCE_ENABLE ASCEND_DOCKER_RUNTIME ASCEND_DEVICE_ID ASCEND_MAX_OP_CACHE_SIZE
    PYTORCH_NO_NPU_MEMORY_CACHING COMBINED_ENABLE PER_STREAM_QUEUE OP_HOOK_ENABLE
    TORCH_NPU_COMPACT_ERROR_OUTPUT TORCH_NPU_DISABLED_WARNING TORCH_NPU_LOGS TORCH_NPU_LOGS_FILTER
    TORCH_NPU_LAZY_FUSION TORCH_NPU_LEGACY_IMPL_LIST TORCH_NPU_USE_COMPATIBLE_IMPL
    TORCH_NPU_WARNING_DISABLE TORCH_NPU_DEVICE_CAPABILITY TORCH_NPU_SANITIZER
    CUDA_VISIBLE_DEVICES CUDA_DEVICE_ORDER CUDA_LAUNCH_BLOCKING NCCL_ALGO NCCL_PROTO NCCL_DEBUG
    """.split()
)
