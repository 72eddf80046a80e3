"""The files of examples/cluster: scripts run as far as they do without a scheduler, manifests fit the schema."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from clipguard.benchmark.results.result import BenchResult
from clipguard.cli import run

FOLDER = Path(__file__).parents[1] / "examples/cluster"
SMALL = ["--n-samples", "9", "--attack", "fgsm", "--device", "cpu"]


def command(script: str, folder: Path, **variables: str) -> list[str]:
    """The command line that a script ends in, without `clipguard`."""
    seen = folder / "seen"
    for name, line in (
        ("srun", 'exec "$@"'),
        ("ray", 'while [ "$1" != -- ]; do shift; done; shift; exec "$@"'),
        ("scontrol", 'printf "%s\\n" node1 node2'),
        ("clipguard", f'printf "%s\\n" "$@" >{seen}'),
    ):
        (folder / name).write_text(f"#!/bin/sh\n{line}\n")
        (folder / name).chmod(0o755)
    environment = {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}", **variables}
    subprocess.run(["bash", FOLDER / script], check=True, env=environment, cwd=folder)
    return seen.read_text().splitlines()


def test_an_array_of_parts_and_its_table_are_the_table_of_one_process(tmp_path: Path) -> None:
    parts = [
        command("array.sbatch", tmp_path, PARTS="3", STORE=f"{tmp_path}/store", SLURM_ARRAY_TASK_ID=f"{part}")
        for part in (3, 1, 2, 1)
    ]
    for part in parts:
        assert run(["-q", *part, *SMALL]) == 0
    table = command("array.sbatch", tmp_path, PARTS="0", STORE=f"{tmp_path}/store", OUT=f"{tmp_path}/out")
    assert run(["-q", *table, *SMALL]) == 0
    made = BenchResult.load(tmp_path / "out")
    assert [cost["computed"] for cost in made.run["costs"]] == [0, 0]
    assert run(["-q", *table, *SMALL, "--no-store", "--out", f"{tmp_path}/alone"]) == 0
    assert (tmp_path / "out/samples.parquet").read_bytes() == (tmp_path / "alone/samples.parquet").read_bytes()
    assert (tmp_path / "out/results.md").read_bytes() == (tmp_path / "alone/results.md").read_bytes()


def test_more_parts_than_images_are_no_error(tmp_path: Path) -> None:
    line = ["-q", "bench", "-d", "emoji-food", "--store", f"{tmp_path}/store", *SMALL, "--shard", "12/12"]
    assert run(line) == 0
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize(
    "options", [["--shard", "1/2", "--no-store"], ["--shard", "1/2", "--out", "x"], ["--shard", "1/2", "-f", "json"]]
)
def test_what_a_part_cannot_do_is_refused(options: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["bench", *options]) == 2
    assert "--shard" in capfd.readouterr().err


def test_scripts_for_ray_name_the_cluster_of_their_job(tmp_path: Path) -> None:
    several = command("ray.sbatch", tmp_path, SLURM_JOB_NODELIST="node[1-2]", SLURM_JOB_NUM_NODES="2")
    assert several[several.index("--ray") + 1] == "auto"
    one = command("node.sbatch", tmp_path, WORKERS="2")
    assert one[one.index("--workers") + 1] == "2"


def documents(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((FOLDER / name).read_text()))


def problems(value: Any, kind: str, path: str) -> list[str]:
    """What does not fit a model of the Kubernetes client, whose models are made from its OpenAPI schema."""
    import kubernetes.client as client

    if kind.startswith("list["):
        return [p for i, item in enumerate(value) for p in problems(item, kind[5:-1], f"{path}[{i}]")]
    if kind.startswith("dict("):
        of_values = kind[5:-1].partition(", ")[2]
        return [p for key, item in value.items() for p in problems(item, of_values, f"{path}.{key}")]
    if not hasattr(client, kind):
        wanted = {"str": (str,), "int": (int,), "bool": (bool,), "float": (float, int)}.get(kind, (object,))
        return [] if isinstance(value, wanted) else [f"{path} is no {kind}"]
    model = getattr(client, kind)
    if not isinstance(value, dict):
        return [f"{path} is no {kind}"]
    names = {key: name for name, key in model.attribute_map.items()}
    found = [f"{path}.{key} is unknown" for key in value if key not in names]
    try:
        model(**{names[key]: item for key, item in value.items() if key in names})
    except ValueError as error:  # a field that must be there
        found.append(f"{path}: {error}")
    return found + [
        p
        for key, item in value.items()
        if key in names
        for p in problems(item, model.openapi_types[names[key]], f"{path}.{key}")
    ]


def test_jobs_fit_the_schema_of_kubernetes() -> None:
    parts, table = documents("indexed-job.yaml")
    for job in (parts, table):
        assert (job["apiVersion"], job["kind"]) == ("batch/v1", "Job")
        assert problems(job, "V1Job", "job") == []
    assert problems({**parts, "spec": {"completion": 3}}, "V1Job", "job")  # it would find a wrong name
    shell = parts["spec"]["template"]["spec"]["containers"][0]["args"][0]
    assert f"+ 1))/{parts['spec']['completions']}" in shell


def test_pods_of_the_ray_job_fit_the_schema_of_kubernetes() -> None:
    (job,) = documents("ray-job.yaml")
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    cluster = job["spec"]["rayClusterSpec"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        assert problems(group["template"], "V1PodTemplateSpec", "template") == []
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())
