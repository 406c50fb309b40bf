"""One training on two nodes, a process on each: srun in the rule, torchrun in the script, gloo between them."""

from __future__ import annotations

import re

import pytest
import torch

from kdtrans.artifacts import read_json
from kdtrans.training.checkpoint import load_torch
from tests.slurm.harness import Workflow, shown

TWO_NODES = "nodes=2,tasks=2,mpi=srun,tasks_per_gpu=0,gres=gpu:1,mem_mb=8000,runtime=60"
STUDENT = {"training": {"accumulate": 2, "max_duration_s": 8.0}}


def test_two_nodes_train_what_one_process_trains(whole: Workflow, tmp_path_factory: pytest.TempPathFactory) -> None:
    workflow = whole.copy(tmp_path_factory.mktemp("nodes") / "work", {"systems": {"one": STUDENT, "two": STUDENT}})
    models = {name: workflow.model(name) for name in ("one", "two")}
    assert workflow.run(workflow.target(models["one"])) == 0, workflow.tail()
    resources = [f"train_student:{resource}" for resource in TWO_NODES.split(",")]
    workflow.options += ["--set-resources", *resources]
    assert workflow.run(workflow.target(models["two"])) == 0, workflow.tail()
    one, two = (load_torch(model)["state_dict"] for model in models.values())
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=0, atol=1e-6, msg=name)
    assert [read_json(f"{model}.run.json")["processes"] for model in models.values()] == [1, 2]
    *_, job = re.findall(r"SLURM jobid (\d+) \(log: \S+rule_train_student/two", workflow.log.read_text())
    assert shown(job, "NodeList") == "n[1-2]"
