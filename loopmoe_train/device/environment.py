"""What the environment of the ranks shall hold, and what is wrong with one. Needs no torch.

`for_ranks` is what a launcher puts into every rank's environment; `problems` looks for values that
cannot be, contradict each other or the run, and for misspelt names, which their readers ignore
silently. `python -m loopmoe_train.device.environment` prints the table of docs/ascend.md.
"""

from __future__ import annotations

import difflib
import os
import re
from typing import Dict, Iterator, List, Mapping, Optional

from loopmoe_train.config.schema import RunConfig
from loopmoe_train.device.environment_table import BY_NAME, KNOWN, SETTINGS, exec_seconds
from loopmoe_train.device.problem import Problem


def for_ranks(run: RunConfig, given: Mapping[str, str]) -> Dict[str, str]:
    """Variables that every rank of ``run`` shall find in its environment.

    A value that the user has set wins, unless it only repeats a setting of the run. What the user
    has set of the table is part of the answer, so that ranks on other machines get it too.

    Args:
        given: the environment of the user.
    """
    found: Dict[str, str] = {}
    for setting in SETTINGS:
        if run.cluster.device not in setting.devices:
            continue
        said = given.get(setting.name)
        if said and not setting.decided_by_run:
            found[setting.name] = said
        elif setting.value is not None:
            wish = setting.value(run, given)
            if wish is not None:
                found[setting.name] = wish
    return found


def problems(env: Mapping[str, str], device: str, run: Optional[RunConfig] = None) -> List[Problem]:
    """What is wrong with ``env`` for ``device``, and for ``run`` if there is one already."""
    found = [*_malformed(env, device)]
    wrong = {problem.name for problem in found}
    # a value that is no number cannot be compared
    sound = {name: value for name, value in env.items() if name not in wrong}
    if device == "npu":
        found += _ascend(sound)
    if run is not None:
        found += _against_run(sound, run)
    return found + list(_misspelt(env))


def _malformed(env: Mapping[str, str], device: str) -> Iterator[Problem]:
    for setting in SETTINGS:
        said = env.get(setting.name)
        if said and device in setting.devices and not setting.form.fits(said):
            yield Problem(
                setting.name, "FAIL", f"{setting.name}={said} is malformed",
                f"set it to {setting.form.words}, or unset it",
            )  # fmt: skip


def _ascend(env: Mapping[str, str]) -> Iterator[Problem]:
    """Contradictions among variables of Ascend's libraries."""
    get = env.get
    if get("ASCEND_LAUNCH_BLOCKING") == "1" and get("TASK_QUEUE_ENABLE", "0") != "0":
        yield Problem(
            "TASK_QUEUE_ENABLE", "WARN",
            f"ASCEND_LAUNCH_BLOCKING=1 switches off the queue that TASK_QUEUE_ENABLE="
            f"{env['TASK_QUEUE_ENABLE']} asks for", "unset one of the two",
        )  # fmt: skip
    yield from _allocator(env)
    first, second = get("HCCL_EXEC_TIMEOUT"), get("HCCL_EVENT_TIMEOUT")
    if first and second and 0 < int(second) <= (int(first) or int(second)):
        yield Problem(
            "HCCL_EVENT_TIMEOUT", "WARN",
            f"HCCL_EVENT_TIMEOUT={second} is not above HCCL_EXEC_TIMEOUT={first}: waiting gives up "
            "before the collective does",
            "unset HCCL_EVENT_TIMEOUT, or raise it above",
        )  # fmt: skip
    if get("INF_NAN_MODE_ENABLE") == "0" or get("INF_NAN_MODE_FORCE_DISABLE") == "1":
        name = "INF_NAN_MODE_ENABLE"
        if get("INF_NAN_MODE_FORCE_DISABLE") == "1":
            name = "INF_NAN_MODE_FORCE_DISABLE"
        yield Problem(
            name, "FAIL",
            f"{name}={env[name]}: overflows become large numbers, so gradients that are not finite "
            "go unseen", "unset it",
        )  # fmt: skip
    for name in ("TORCH_HCCL_ASYNC_ERROR_HANDLING", "HCCL_ASYNC_ERROR_HANDLING"):
        if get(name) == "0":
            yield Problem(
                name, "WARN", f"{name}=0: a rank hangs when a collective fails", "unset it"
            )
    if get("HCCL_OP_EXPANSION_MODE", "").upper() == "AIV":
        yield Problem(
            "HCCL_OP_EXPANSION_MODE", "WARN",
            "HCCL_OP_EXPANSION_MODE=AIV takes vector cores from the model, serves one communicator "
            "at a time and on A2 is for inference",
            "unset it",
        )  # fmt: skip
    if get("HCCL_WHITELIST_DISABLE") == "0" and not get("HCCL_WHITELIST_FILE"):
        yield Problem(
            "HCCL_WHITELIST_DISABLE", "WARN",
            "HCCL_WHITELIST_DISABLE=0 but no HCCL_WHITELIST_FILE names who may join",
            "set HCCL_WHITELIST_FILE, or unset HCCL_WHITELIST_DISABLE",
        )  # fmt: skip
    yield from _toolkit(get("ASCEND_HOME_PATH"))


def _allocator(env: Mapping[str, str]) -> Iterator[Problem]:
    said = env.get("PYTORCH_NPU_ALLOC_CONF", "")
    options = dict(option.split(":", 1) for option in said.split(",") if option)
    if options.get("expandable_segments", "").lower() != "true":
        return
    for other in ("max_split_size_mb", "garbage_collection_threshold"):
        if other in options:
            yield Problem(
                "PYTORCH_NPU_ALLOC_CONF", "FAIL",
                f"PYTORCH_NPU_ALLOC_CONF={said}: {other} does not go with expandable_segments:True",
                "leave one of the two out",
            )  # fmt: skip


def _toolkit(home: Optional[str]) -> Iterator[Problem]:
    fix = "source CANN's set_env.sh"
    if not home:
        what = "ASCEND_HOME_PATH is not set: nothing has told where CANN is"
        yield Problem("ASCEND_HOME_PATH", "WARN", what, fix)
    elif not os.path.isdir(home):
        what = f"ASCEND_HOME_PATH={home}: there is no such folder"
        yield Problem("ASCEND_HOME_PATH", "FAIL", what, fix)


#: What a deterministic run needs, by device: a variable and the values that do.
_FIXED_ORDER = {
    "npu": ("HCCL_DETERMINISTIC", ("true", "strict")),
    "cuda": ("CUBLAS_WORKSPACE_CONFIG", (":4096:8", ":16:8")),
}


def _against_run(env: Mapping[str, str], run: RunConfig) -> Iterator[Problem]:
    """What is set and is not what the run says."""
    device, get = run.cluster.device, env.get
    if run.cluster.deterministic and device in _FIXED_ORDER:
        name, allowed = _FIXED_ORDER[device]
        if get(name) and env[name].lower() not in allowed:
            yield Problem(
                name, "FAIL", f"{name}={env[name]} contradicts cluster.deterministic=true",
                f"set it to {allowed[0]}, or unset it",
            )  # fmt: skip
    if device != "npu":
        return
    ours, theirs = 60 * run.launcher.timeout_minutes, exec_seconds(run, env)
    if 0 < theirs < ours:
        yield Problem(
            "HCCL_EXEC_TIMEOUT", "WARN",
            f"HCCL_EXEC_TIMEOUT={theirs}: the device gives up a collective before "
            f"launcher.timeout_minutes={run.launcher.timeout_minutes:g} is over",
            "unset it, or lower launcher.timeout_minutes",
        )  # fmt: skip
    yield from _buffer(get("HCCL_BUFFSIZE"), run)


def _buffer(said: Optional[str], run: RunConfig) -> Iterator[Problem]:
    parallel = run.parallel
    shared = parallel.tensor_parallel_size * parallel.context_parallel_size
    tokens = run.micro_batch_size * run.sequence_length // shared
    sent = tokens * run.model.hidden_size * (2 if run.precision == "bf16" else 4) / 2**20
    planned = run.cluster.communicator_mib / 2
    size = int(said) if said else int(planned)
    if sent > size:
        yield Problem(
            "HCCL_BUFFSIZE", "WARN",
            f"HCCL_BUFFSIZE={size}: the tokens of a micro-batch are {sent:.0f} MiB, so collectives "
            "go in several rounds",
            f"set cluster.communicator_mib={2 * int(sent + 1)} (two buffers)",
        )  # fmt: skip
    if size > planned + 1:
        yield Problem(
            "HCCL_BUFFSIZE", "WARN",
            f"HCCL_BUFFSIZE={size}: the plan counts two buffers of {planned:.0f} MiB for every "
            "communicator", f"set cluster.communicator_mib={2 * size}",
        )  # fmt: skip


#: Beginnings of names that belong to the table's readers.
_FAMILIES = re.compile(
    "HCC|HCL|TORCH_H|TORCH_NPU|PYTORCH_NPU|ASCEND|ASEND|TASK_Q|TASKQ|CPU_AFF|MULTI_STREAM|STREAMS|"
    "INF_NAN|CUDA_DEVICE_M|CUBLAS|GLOO|OMP_NUM|OMP_THREAD|TORCH_DEVICE_B|LOOPMOE_DEV"
)


def _misspelt(env: Mapping[str, str]) -> Iterator[Problem]:
    names = [*BY_NAME, *KNOWN]
    for name in sorted(env):
        if name in BY_NAME or name in KNOWN or not _FAMILIES.match(name.upper()):
            continue
        near = difflib.get_close_matches(name.upper(), names, n=1, cutoff=0.85)
        if near:
            yield Problem(
                name, "WARN", f"{name} is set but nothing is known to read it",
                f"did you mean {near[0]}?",
            )  # fmt: skip


def table() -> str:
    """The settings as a table in Markdown."""
    lines = ["| variable | device | every rank gets | may be | why |", "|---|---|---|---|---|"]
    for setting in SETTINGS:
        devices = "all" if len(setting.devices) > 1 else setting.devices[0]
        words = setting.form.words.replace("|", "\\|")
        lines.append(
            f"| `{setting.name}` | {devices} | {setting.rule or '-'} | {words} | {setting.why} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
