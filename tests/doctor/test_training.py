"""The run before it is started: damaged data, foreign tokenizers, settings that cannot be."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from loopmoe_train.config.compose import compose, compose_unchecked
from loopmoe_train.config.schema import RunConfig
from loopmoe_train.data.prepare import ensure_prepared
from loopmoe_train.doctor import training
from loopmoe_train.doctor.environment import rank_table, variables
from tests.doctor.found import assert_finds, assert_passes, one
from tests.launcher.tiny_run import make_place, settings


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a corpus and its prepared dataset."""
    folder = make_place(tmp_path_factory.mktemp("place"))
    ensure_prepared(compose(settings(folder)), lambda line: None)
    return folder


@pytest.fixture
def run(place: Path, tmp_path: Path) -> RunConfig:
    """A run on a copy of the dataset, which a test may damage."""
    shutil.copytree(place / "data", tmp_path / "data")
    return compose([*settings(place), f"data.path={tmp_path}/data", f"runs_dir={tmp_path}/runs"])


def test_a_sound_one(run: RunConfig) -> None:
    checks = list(training.data(run, whole=True))
    for name in ("run/data", "run/tokenizer", "run/vocabulary"):
        assert_passes(checks, name)
    assert "every byte as written" in one(checks, "run/data").reason
    assert_passes(training.data(run, whole=False), "run/data")
    assert_passes(training.settings(run), "run/config")
    assert_passes(training.memory(run), "run/memory")


def test_nothing_is_prepared_yet(run: RunConfig, tmp_path: Path) -> None:
    run.data.path = str(tmp_path / "later")
    assert "not prepared yet" in one(training.data(run, True), "run/data").reason


def test_truncated_data(run: RunConfig) -> None:
    file = Path(run.data.path) / "train.bin"
    file.write_bytes(file.read_bytes()[:-2000])
    for whole in (True, False):
        checks = training.data(run, whole)
        assert_finds(checks, "run/data", "FAIL", "train.bin", "loopmoe data --force")


def test_a_flipped_bit_in_the_data(run: RunConfig) -> None:
    file = Path(run.data.path) / "train.bin"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    assert_finds(training.data(run, True), "run/data", "FAIL", "train.bin", "loopmoe data --force")
    assert_passes(training.data(run, False), "run/data")  # sizes do not tell


def test_a_foreign_tokenizer(run: RunConfig, tmp_path: Path) -> None:
    other = compose([f"data.source={Path(training.__file__).parent}", "tokenizer.vocab_size=440",
                     f"data.path={tmp_path}/other", "data.workers=1"])  # fmt: skip
    from loopmoe_train.data.prepare import ensure_tokenizer

    foreign = ensure_tokenizer(other, lambda line: None).path
    run.tokenizer.path = str(foreign)
    checks = training.data(run, False)
    assert_finds(checks, "run/tokenizer", "FAIL", "is not that of", "tokenizer.path=")
    run.tokenizer.path = None
    shutil.copy(foreign, Path(run.data.path) / "tokenizer.model")
    checks = training.data(run, False)
    assert_finds(
        checks, "run/tokenizer", "FAIL", "is not the one that made", "loopmoe data --force"
    )


def test_a_model_with_too_few_token_ids(run: RunConfig) -> None:
    run.model.vocab_size = 64
    checks = training.data(run, False)
    assert_finds(checks, "run/vocabulary", "FAIL", "model.vocab_size=64 is below", "raise it")


def test_a_sample_longer_than_a_split(run: RunConfig) -> None:
    run.sequence_length = 10**6
    checks = training.data(run, False)
    assert_finds(checks, "run/vocabulary", "FAIL", "sequence_length=1000000", "more text")


def test_too_little_text_for_the_steps(run: RunConfig) -> None:
    run.steps = 10**6
    assert_finds(training.data(run, False), "run/data", "WARN", "times in 1000000 steps", "steps=")


def test_a_member_of_a_mixture_is_missing(run: RunConfig, tmp_path: Path) -> None:
    words = [f"data.mixture=[{{path:{run.data.path},weight:1}},{{path:{tmp_path}/no,weight:1}}]"]
    mixed = compose(words)
    from loopmoe_train.doctor.check import look

    checks = look("run/data", lambda: training.data(mixed, False))
    assert_finds(checks, "run/data", "FAIL", "no prepared dataset", "loopmoe data data.source")


def test_settings_that_cannot_be() -> None:
    run = compose_unchecked(["global_batch_size=7", "optim.lr=-1"])
    checks = training.settings(run)
    assert [check.status for check in checks] == ["FAIL"] * len(checks)
    assert any("optim.lr=-1" in check.reason for check in checks)


def test_a_model_that_does_not_fit() -> None:
    words = ["cluster=ascend_a2", "cluster.devices=8", "model=loopmoe_9b", "precision=bf16"]
    big = compose([*words, "global_batch_size=32", "sequence_length=4096", "micro_batch_size=4"])
    finds = ("GiB simulated on the fullest rank, 60.3 GiB", "loopmoe plan")
    assert_finds(training.memory(big), "run/memory", "FAIL", *finds)
    small = compose([*words[:2], "global_batch_size=32"])
    assert_passes(training.memory(small), "run/memory")
    big.cluster.links = []
    assert_finds(training.memory(big), "run/memory", "WARN", "no cluster.links", "ascend_a2.yaml")


@pytest.mark.parametrize(
    ("planted", "status", "reason", "fix"),
    [
        ({"HCCL_CONECT_TIMEOUT": "600"}, "WARN", "HCCL_CONECT_TIMEOUT", "HCCL_CONNECT_TIMEOUT"),
        ({"HCCL_CONNECT_TIMEOUT": "ten"}, "FAIL", "=ten is malformed", "a whole number"),
        (
            {"ASCEND_LAUNCH_BLOCKING": "1", "TASK_QUEUE_ENABLE": "2"},
            "WARN", "TASK_QUEUE_ENABLE=2", "unset one of the two",
        ),
        (
            {"PYTORCH_NPU_ALLOC_CONF": "expandable_segments:True,max_split_size_mb:64"},
            "FAIL", "max_split_size_mb", "leave one of the two out",
        ),
    ],
)  # fmt: skip
def test_a_wrong_environment(planted: dict[str, str], status: str, reason: str, fix: str) -> None:
    assert_passes(variables({"HCCL_CONNECT_TIMEOUT": "600"}, "npu"), "environment/variables")
    assert_finds(variables(planted, "npu"), "environment/variables", status, reason, fix)


def test_a_wrong_rank_table(tmp_path: Path) -> None:
    file = tmp_path / "hccl.json"
    cluster = compose(["cluster=ascend_a2", "cluster.devices=2", "micro_batch_size=1"]).cluster
    devices = [
        {"device_id": str(number), "device_ip": f"192.168.100.{number + 1}", "rank_id": str(number)}
        for number in range(2)
    ]
    table = {
        "version": "1.0", "server_count": "1", "status": "completed",
        "server_list": [{"server_id": "10.0.0.1", "device": devices}],
    }  # fmt: skip
    variable = {"RANK_TABLE_FILE": str(file)}
    assert_passes(rank_table({}, cluster), "environment/rank-table")
    file.write_text(json.dumps(table))
    file.chmod(0o640)
    assert_passes(rank_table(variable, cluster), "environment/rank-table")
    devices[1]["rank_id"] = "0"
    file.write_text(json.dumps(table))
    found = rank_table(variable, cluster)
    assert_finds(found, "environment/rank-table", "FAIL", "rank", "anew")
    gone = rank_table({"RANK_TABLE_FILE": "/nowhere/hccl.json"}, cluster)
    assert_finds(gone, "environment/rank-table", "FAIL", "/nowhere/hccl.json", "")
