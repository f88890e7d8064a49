"""launch/sky.yaml read by SkyPilot itself, launch/gke_jobset.yaml held to the schema of JobSet's resource.

R1JAX_SKYPILOT_PYTHON names a Python with SkyPilot (`pip install skypilot`), R1JAX_JOBSET_CRD the file
config/components/crd/bases/jobset.x-k8s.io_jobsets.yaml of github.com/kubernetes-sigs/jobset; skipped without.
"""

import copy
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.environment import ROOT

SKY, CRD = (os.environ.get(f"R1JAX_{name}", "") for name in ("SKYPILOT_PYTHON", "JOBSET_CRD"))
READ_TASK = """
import json, sys
import sky
task = sky.Task.from_yaml(sys.argv[1])
(found,) = task.resources
print(json.dumps({"accelerators": found.accelerators, "spot": found.use_spot, "recovery": found.job_recovery,
                  "mounts": sorted(task.storage_mounts), "run": task.run}))
"""


@pytest.mark.slow
@pytest.mark.skipif(not SKY, reason="R1JAX_SKYPILOT_PYTHON names no Python with SkyPilot")
def test_skypilot_reads_its_file(tmp_path: Path) -> None:
    text = (ROOT / "launch" / "sky.yaml").read_text()
    file = tmp_path / "sky.yaml"
    file.write_text(text.replace('BUCKET: ""', "BUCKET: cheese").replace('HF_TOKEN: ""', "HF_TOKEN: x"))
    environment = {"HOME": str(tmp_path), "PATH": os.environ["PATH"]}
    command = [SKY, "-c", READ_TASK, str(file)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    found = yaml.safe_load(done.stdout.splitlines()[-1])
    assert found["accelerators"] == {"tpu-v6e-8": 1} and found["spot"]
    assert found["recovery"]["recover_on_exit_codes"] == [75] and found["recovery"]["max_restarts_on_errors"] == 3
    assert found["mounts"] == ["/bucket"] and "--workdir=/bucket/runs/r1jax" in found["run"]


def find_faults(schema: dict[str, Any], value: Any, place: str = "") -> list[str]:
    """Breaches of an OpenAPI schema of Kubernetes: types, choices, required and unknown fields."""
    if schema.get("x-kubernetes-int-or-string"):
        return [] if isinstance(value, int | str) else [f"{place}: {value!r}"]
    kinds = {"object": dict, "array": list, "string": str, "integer": int, "boolean": bool, "number": (int, float)}
    if not isinstance(value, kinds[schema["type"]]) or ("enum" in schema and value not in schema["enum"]):
        return [f"{place}: {value!r} is no {schema.get('enum') or schema['type']}"]
    if isinstance(value, list):
        return [fault for i, item in enumerate(value) for fault in find_faults(schema["items"], item, f"{place}[{i}]")]
    if not isinstance(value, dict):
        return []
    known, rest = schema.get("properties", {}), schema.get("additionalProperties")
    faults = [f"{place}: {key} is missing" for key in schema.get("required", ()) if key not in value]
    for key, item in value.items():
        if key in known or isinstance(rest, dict):
            faults += find_faults(known.get(key) or rest, item, f"{place}.{key}")
        elif known and not schema.get("x-kubernetes-preserve-unknown-fields"):
            faults.append(f"{place}: {key} is unknown")
    return faults


@pytest.mark.slow
@pytest.mark.skipif(not CRD, reason="R1JAX_JOBSET_CRD names no schema of JobSet")
def test_the_jobset_fits_the_schema_of_its_resource() -> None:
    versions = {version["name"]: version for version in yaml.safe_load(Path(CRD).read_text())["spec"]["versions"]}
    schema = versions["v1alpha2"]["schema"]["openAPIV3Schema"]
    jobset = yaml.safe_load((ROOT / "launch" / "gke_jobset.yaml").read_text())
    assert jobset["apiVersion"] == "jobset.x-k8s.io/v1alpha2" and find_faults(schema, jobset) == []
    wrong = copy.deepcopy(jobset)
    wrong["spec"]["failurePolicy"]["rules"][0]["action"] = "GiveUp"
    wrong["spec"]["replicatedJobs"][0]["template"]["spec"]["backofLimit"] = 0
    faults = find_faults(schema, wrong)
    assert len(faults) == 2 and "'GiveUp'" in faults[0] and "backofLimit is unknown" in faults[1]
