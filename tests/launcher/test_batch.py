"""Jobs for Slurm and Volcano: golden files, quotes that hold, and a script that runs."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any, Dict, List

import pytest
import yaml

from loopmoe_train.cli import main
from loopmoe_train.config.compose import compose
from loopmoe_train.launcher import batch
from tests.launcher.tiny_run import STEPS, losses, make_place, settings

GOLDEN = Path(__file__).parent / "golden"
ASCEND = ["cluster=ascend_a2", "cluster.devices=16", "launcher.nodes=2", "global_batch_size=64",
          "parallel=data", "precision=bf16"]  # fmt: skip
POD = ["launcher=volcano", "launcher.image=registry/loopmoe:1", "launcher.volume=disk"]
JOBS = {
    "slurm-npu.sbatch": ["launcher=slurm", "launcher.queue=npu", "launcher.minutes=90", *ASCEND],
    "slurm-cpu.sbatch": ["launcher=slurm"],
    "volcano-npu.yaml": [*POD, "launcher.queue=train", *ASCEND],
    "volcano-cuda.yaml": [*POD, "cluster=h100", "cluster.devices=8", "parallel=data",
                          "global_batch_size=32"],
    "volcano-cpu.yaml": [*POD, "launcher.nodes=2", "cluster.devices=4", "global_batch_size=16"],
}  # fmt: skip
NASTY = "a'b\"c $(touch broken) `touch broken` $HOME #x @{y} %j é"


def made(words: List[str], monkeypatch: pytest.MonkeyPatch, folder: Path) -> str:
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "executable", "/env/bin/python")
    return batch.job(compose(words), words).replace(str(folder), "/shared/job")


@pytest.mark.parametrize("name", JOBS)
def test_as_it_was(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    text = made(JOBS[name], monkeypatch, tmp_path)
    if os.environ.get("WRITE_GOLDEN"):
        (GOLDEN / name).write_text(text)
    assert text == (GOLDEN / name).read_text(), "meant? WRITE_GOLDEN=1, and see the diff"
    assert "@" not in text.replace("TERM@120", "") and "# if" not in text


@pytest.mark.parametrize("name", [name for name in JOBS if name.endswith("yaml")])
def test_a_manifest_is_one(name: str) -> None:
    manifest = yaml.safe_load((GOLDEN / name).read_text())
    assert (manifest["apiVersion"], manifest["kind"]) == ("batch.volcano.sh/v1alpha1", "Job")
    spec, nodes = manifest["spec"], 1 if "cuda" in name else 2
    (task,) = spec["tasks"]
    assert spec["minAvailable"] == task["replicas"] == nodes and "svc" in spec["plugins"]
    policies = {
        str(one.get("exitCode", one.get("event"))): one["action"] for one in spec["policies"]
    }
    assert policies["2"] == "TerminateJob" and policies["PodFailed"] == "RestartJob"
    # Volcano takes the first that fits, and a failed pod fits both.
    assert list(policies).index("3") < list(policies).index("PodFailed")
    pod = task["template"]["spec"]
    (container,) = pod["containers"]
    assert pod["restartPolicy"] == "Never" and container["image"] == "registry/loopmoe:1"
    volumes = {one["name"] for one in pod["volumes"]}
    assert {one["name"] for one in container["volumeMounts"]} == volumes
    resource = {"npu": ("limits", "huawei.com/Ascend910", 8),
                "cuda": ("limits", "nvidia.com/gpu", 8),
                "cpu": ("requests", "cpu", 2)}  # fmt: skip
    kind, key, count = resource[name.removesuffix(".yaml").removeprefix("volcano-")]
    assert container["resources"] == {kind: {key: count}}
    assert ("driver" in volumes) == ("npu" in name)


@pytest.mark.parametrize("kind", ["slurm", "volcano"])
def test_nothing_breaks_out(kind: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = tmp_path / "a $(touch broken) 'b"
    folder.mkdir()
    word = "observe.sample_prompt='" + NASTY.replace("'", "\\'") + "'"
    words = [*(POD if kind == "volcano" else ["launcher=slurm"]), "name='x $(touch broken) - y'",
             word]  # fmt: skip
    run = compose(words)
    assert run.observe.sample_prompt == NASTY
    monkeypatch.chdir(folder)
    text = batch.job(run, words)
    if kind == "volcano":
        manifest = yaml.safe_load(text)
        (task,) = manifest["spec"]["tasks"]
        command = task["template"]["spec"]["containers"][0]["args"]
        # What Kubernetes makes of it: $(NAME) would be a variable, $$ is a dollar.
        assert not any("$" in part.replace("$$", "") for part in command)
        assert [part.replace("$$", "$") for part in command][2:4] == words[-2:]
        assert manifest["metadata"]["name"] == "x-touch-broken-y"
        return
    script = folder / "job"
    script.write_text(text)
    assert subprocess.run(["bash", "-n", str(script)], check=False).returncode == 0
    stand_ins(folder, srun='printf "%s\\n" "$@"')
    done = run_script(script, folder)
    assert done.returncode == 0, done.stderr
    assert words[-1] in done.stdout.splitlines() and words[-2] in done.stdout.splitlines()
    assert not list(tmp_path.rglob("broken"))


def stand_ins(folder: Path, **programs: str) -> None:
    (folder / "bin").mkdir()
    for name, body in programs.items():
        path = folder / "bin" / name
        path.write_text(f"#!/bin/bash\n{body}\n")
        path.chmod(0o755)


def run_script(script: Path, folder: Path, **more: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PATH": f"{folder}/bin:{os.environ['PATH']}", "SLURM_JOB_ID": "1234",
           "SLURM_JOB_NODELIST": "n[1-2]", **more}  # fmt: skip
    return subprocess.run(
        ["bash", str(script)], env=env, capture_output=True, text=True, check=False
    )


def test_a_submitted_slurm_job_trains_on_two_nodes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """sbatch runs the script, srun starts the command once a node; the rest is real."""
    place = make_place(tmp_path)
    monkeypatch.chdir(tmp_path)
    srun = 'while [[ $1 == --* ]]; do shift; done\n"$@" & a=$!\n"$@" & b=$!\nwait $a && wait $b'
    sbatch = 'printf "%s\\n" "$@" > given\nfor last; do :; done\nbash "$last" >job.out 2>&1'
    sbatch += ' || { tail -n 3 job.out >&2; exit 1; }\necho "Submitted batch job 1234"'
    stand_ins(tmp_path, srun=srun, sbatch=sbatch, scontrol="echo 127.0.0.1; echo 127.0.0.1")
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_ID", str(os.getpid()))
    monkeypatch.setenv("SLURM_JOB_NODELIST", "n[1-2]")
    words = settings(place, "name=batch", "launcher=slurm", "launcher.nodes=2",
                     "cluster.devices_per_node=1",
                     "launcher.arguments=['--account=me']")  # fmt: skip
    code = main(["train", *words])
    told = capsys.readouterr()
    assert code == 0, told.err
    assert "Submitted batch job 1234" in told.out
    given = (tmp_path / "given").read_text().splitlines()
    assert "--account=me" in given and given[0] == f"--output={place}/runs/batch/slurm-%j.out"
    assert sorted(losses(place / "runs" / "batch")) == list(range(1, STEPS + 1))
    assert {path.name for path in (place / "runs/batch/logs").glob("node-*")} == {
        "node-0",
        "node-1",
    }


@pytest.mark.parametrize("kind, program", [("slurm", "sbatch"), ("volcano", "kubectl")])
def test_what_the_scheduler_says_is_told(
    kind: str, program: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    more = POD[1:] if kind == "volcano" else []
    words = ["train", f"launcher={kind}", f"runs_dir={tmp_path}/runs", "name=x", *more]
    monkeypatch.setenv("PATH", f"{tmp_path}/bin")
    assert main(words) == 2
    assert f"there is no {program} on PATH" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()
    stand_ins(tmp_path, **{program: "echo no such queue >&2; exit 3"})
    assert main(words) == 1
    assert f"{program} did not take" in (err := capsys.readouterr().err) and "no such queue" in err


def test_no_secret_is_written_or_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MY_TOKEN", "canary-0123456789")
    words = ["train", "launcher=slurm", f"runs_dir={tmp_path}/runs", "name=x",
             "observe.wandb_project=canary-0123456789"]  # fmt: skip
    stand_ins(tmp_path, sbatch="exit 0")
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:/usr/bin:/bin")
    assert main([*words, "launcher.dry_run=true"]) == 0
    assert "canary" not in (out := capsys.readouterr().out) and "wandb_project=***" in out
    assert main(words) == 2
    assert "a setting holds the value of $MY_TOKEN" in capsys.readouterr().err
    assert not list(tmp_path.rglob("*.sbatch"))


def test_a_dry_run_prints_what_would_be_submitted(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", *JOBS["slurm-npu.sbatch"], "launcher.dry_run=true"]) == 0
    lines = capsys.readouterr().out.rstrip().splitlines()
    assert lines[0] == "#!/bin/bash" and lines[-1].startswith("# sbatch --output=")
    (command,) = [line for line in lines if "loopmoe_train.cli" in line]
    found: Dict[str, Any] = dict(
        word.split("=", 1) for word in shlex.split(command) if word.startswith("launcher")
    )
    assert found == {
        "launcher": "torchrun",
        "launcher.nodes": "2",
        "launcher.endpoint": "$endpoint",
    }
