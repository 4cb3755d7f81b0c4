"""Every check by name: what it looks at. docs/doctor.md is held equal to it."""

from __future__ import annotations

from typing import Dict

CHECKS: Dict[str, str] = {
    # versions
    "versions/matrix": "Python, torch, torch_npu, CANN, megatron-core, hydra-core, triton, "
    "triton-ascend and deepspeed are a row of the version matrix",
    "versions/trees": "`import megatron`, `mindspeed` and `deepspeed` give the installed package, "
    "not a second tree on PYTHONPATH",
    # CANN and the driver
    "cann/environment": "set_env.sh was sourced: ASCEND_HOME_PATH or ASCEND_TOOLKIT_HOME names a "
    "folder that is there",
    "cann/libraries": "libascendcl, libhccl and libopapi can be loaded (in a child process)",
    "driver/devices": "/dev/davinci*: as many NPUs as the run needs here, readable and writable",
    "driver/managers": "/dev/davinci_manager, devmm_svm and hisi_hdc, readable and writable",
    "driver/mount": "the driver's folder (/usr/local/Ascend/driver) is mounted, with its libraries",
    "driver/npu-smi": "`npu-smi info` ends well and in time; -8005: another process has the device",
    # this machine
    "host/shm": "/dev/shm is large enough for the ranks here",
    "host/open-files": "limit of open files against the sockets of this many ranks",
    "host/locked-memory": "RDMA between nodes may lock memory without limit",
    "host/processors": "processors that this container may use against ranks and their threads",
    "host/threads": "OMP_NUM_THREADS of all ranks together against the processors",
    "host/memory": "memory that this container may use against the ranks",
    "host/clock": "the clock is not behind the installed files, nor off from the file server's",
    "host/build-locks": "no lock of an extension's build was left behind (torch_extensions)",
    "disk/run-folder": "the run folder's disk has room for the checkpoints that are kept",
    "disk/data": "the dataset's disk has room",
    "disk/write-speed": "a file can be written to the run folder and synced, at a useful rate",
    # environment and network
    "environment/variables": "misspelt, malformed or contradictory variables of HCCL, torch_npu, "
    "CUDA, gloo and OpenMP",
    "environment/rank-table": "RANK_TABLE_FILE: version against chip, ranks, addresses, rights",
    "network/host-name": "the host's name resolves, to no loopback address where there are several",
    "network/port": "MASTER_PORT is free where the store will listen",
    "network/interface": "the interfaces of GLOO_, HCCL_ and NCCL_SOCKET_IFNAME exist and are up",
    # the run
    "run/config": "the settings can run together (the rules of `loopmoe train`)",
    "run/memory": "the simulated peak of the fullest rank fits the device of the cluster file",
    "run/data": "the datasets are there and whole; with enough text for the steps",
    "run/tokenizer": "the tokenizer is the one that made the dataset",
    "run/vocabulary": "every token id fits the model; a sample fits the splits",
    "run/checkpoint": "the newest checkpoint is whole to the byte and of this run",
    # the device
    "device/present": "the device of the run is there and computes",
    "device/ops": "every op of loopmoe_kernels against its definition, on its own cases",
    "device/determinism": "each op twice on the same input: the same bits",
    "device/matmul": "rate of a large matrix product against the cluster file",
    "device/bandwidth": "rate of a large copy against the cluster file",
    "device/memory": "free memory of the device against the simulated peak",
    "device/fallback": "operators that an NPU gave back to the processor while the ops ran",
    # all ranks together
    "cluster/meeting": "every rank comes to the store in time; who does not is named",
    "cluster/groups": "a right sum in every group of the layout, axis by axis; who does not come "
    "is named",
    "cluster/clocks": "clocks of the hosts against that of the first rank's",
    "cluster/software": "the same versions on every host",
    "cluster/settings": "the same composed run on every host",
    "cluster/data": "the same dataset on every host",
    "cluster/links": "all-reduce and all-to-all on every tier of cluster.links, against its rate",
    "cluster/ranks": "rate of a matrix product of every rank, all at once; a slow one is named",
    # after a crash
    "postmortem/end": "how the last attempt ended, and how many were made",
    "postmortem/spans": "phase and step in which every rank was last seen",
    "postmortem/first-error": "the earliest failure that a rank told, and when",
    "postmortem/suspect": "the rank and host that took the others along, and what to do",
    "postmortem/logs": "known messages of HCCL, CANN, CUDA and the system in the ranks' logs",
    "postmortem/metrics": "the last recorded step and whether its loss was a number",
    "postmortem/checkpoint": "the checkpoint from which the same command goes on",
}


def table() -> str:
    """The catalogue as Markdown."""
    rows = ["| check | looks at |", "|---|---|"]
    return "\n".join([*rows, *(f"| `{name}` | {what} |" for name, what in CHECKS.items())]) + "\n"


if __name__ == "__main__":
    print(table(), end="")
