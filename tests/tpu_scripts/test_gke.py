"""gke.sh against stand-ins for kubectl, docker and xpk, and the YAML that it renders."""

import shlex
from pathlib import Path

import pytest
import yaml
from standins import SCRIPTS, Recorded

RUN = (
    "--name", "my-run", "--image", "registry/bertgpt:1", "--experiment", "pretrain/bert_large", "--workdir", "gs://b/runs",
)  # fmt: skip
TPU = (*RUN, "--accelerator-type", "v5e:4x8")
GPU = (*RUN, "--accelerator-type", "nvidia-h100-80gb:8", "--hosts", "4")
AWKWARD = """it's "quoted" \\ & ${NAME} # : {}"""


@pytest.fixture
def programs(tmp_path: Path) -> Recorded:
    return Recorded(tmp_path, "kubectl", "docker", "xpk")


def render(programs: Recorded, *args: str) -> list[dict]:
    done = programs.call("gke.sh", "render", *args)
    assert done.code == 0, done.err
    return list(yaml.safe_load_all(done.out))


def pod_of(jobset: dict) -> tuple[dict, dict, dict]:
    """(replicated job, job, pod)."""
    (replicated,) = jobset["replicatedJobs"]
    job = replicated["template"]["spec"]
    return replicated, job, job["template"]["spec"]


def test_a_jobset_of_tpu_slices_has_a_pod_for_each_host(programs: Recorded):
    (jobset,) = render(programs, *TPU, "--num-slices", "2", "--", "--mesh.dcn", "2", "--name", AWKWARD)
    assert (jobset["apiVersion"], jobset["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    assert jobset["metadata"]["labels"] == {"kueue.x-k8s.io/queue-name": "multislice-queue"}
    assert jobset["metadata"]["annotations"] == {
        "alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"
    }
    replicated, job, pod = pod_of(jobset["spec"])
    assert replicated["replicas"] == 2 and job["parallelism"] == job["completions"] == 8  # 32 chips, 4 on a host
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v5-lite-podslice",
        "cloud.google.com/gke-tpu-topology": "4x8",
    }
    (container,) = pod["containers"]
    assert container["resources"]["requests"] == container["resources"]["limits"] == {"google.com/tpu": 4}
    assert container["command"] == ["/bertgpt/tpu_scripts/worker.sh", "run"] and container["env"] == []
    assert [item["name"] for item in pod["volumes"]] == [item["name"] for item in container["volumeMounts"]]
    assert container["args"] == [
        "pretrain/bert_large", "--workdir", "gs://b/runs", "--mesh.dcn", "2", "--name", AWKWARD,
    ]  # fmt: skip


def test_failures_restart_all_hosts_and_a_refused_experiment_does_not(programs: Recorded):
    for kind in ("jobset", "kubeflow"):
        spec = render(programs, *TPU, "--kind", kind, "--max-restarts", "7")[0]["spec"]
        jobset = spec if kind == "jobset" else spec["template"]["spec"]
        assert jobset["failurePolicy"]["maxRestarts"] == 7
        assert jobset["failurePolicy"]["rules"][0]["action"] == "FailJobSet"
        _, job, pod = pod_of(jobset)
        assert job["backoffLimit"] == 0 and pod["restartPolicy"] == "Never"
        (rule,) = job["podFailurePolicy"]["rules"]
        assert rule["action"] == "FailJob" and rule["onExitCodes"]["values"] == [2]
        assert rule["onExitCodes"]["containerName"] == pod["containers"][0]["name"]


@pytest.mark.parametrize("kind", ["jobset", "kubeflow"])
def test_several_hosts_share_a_file_system(programs: Recorded, kind: str):
    args = ("--workdir", "/shared/runs", "--volume-claim", "filestore", "--kind", kind)
    spec = render(programs, *GPU, *args)[0]["spec"]
    _, _, pod = pod_of(spec if kind == "jobset" else spec["template"]["spec"])
    assert {"name": "shared", "persistentVolumeClaim": {"claimName": "filestore"}} in pod["volumes"]
    assert {"name": "shared", "mountPath": "/shared"} in pod["containers"][0]["volumeMounts"]


def test_hosts_with_gpus_are_told_who_they_are(programs: Recorded):
    (jobset,) = render(programs, *GPU)
    _, job, pod = pod_of(jobset["spec"])
    assert job["parallelism"] == 4 and pod["nodeSelector"] == {"cloud.google.com/gke-accelerator": "nvidia-h100-80gb"}
    environment = {item["name"]: item for item in pod["containers"][0]["env"]}
    assert environment["JAX_COORDINATOR_ADDRESS"]["value"] == "my-run-slice-0-0.my-run:8476"
    assert environment["JAX_NUM_PROCESSES"]["value"] == "4"
    index = environment["JAX_PROCESS_ID"]["valueFrom"]["fieldRef"]["fieldPath"]
    assert index == "metadata.annotations['batch.kubernetes.io/job-completion-index']"
    assert pod["containers"][0]["resources"]["limits"] == {"nvidia.com/gpu": 8}


def test_a_train_job_of_kubeflow_uses_a_jax_runtime_that_restarts(programs: Recorded):
    runtime, job = render(programs, *GPU, "--kind", "kubeflow", "--namespace", "team", "--", "--name", AWKWARD)
    assert runtime["apiVersion"] == job["apiVersion"] == "trainer.kubeflow.org/v1alpha1"
    assert (runtime["kind"], job["kind"]) == ("TrainingRuntime", "TrainJob")
    assert runtime["spec"]["mlPolicy"] == {"numNodes": 4, "jax": {}}
    assert job["spec"]["runtimeRef"] == {
        "apiGroup": "trainer.kubeflow.org", "kind": "TrainingRuntime", "name": runtime["metadata"]["name"],
    }  # fmt: skip
    assert runtime["metadata"]["namespace"] == job["metadata"]["namespace"] == "team"
    trainer = job["spec"]["trainer"]
    assert trainer["numNodes"] == 4 and trainer["resourcesPerNode"]["limits"] == {"nvidia.com/gpu": 8}
    assert trainer["args"][-1] == AWKWARD and trainer["image"] == "registry/bertgpt:1"
    # The plugin finds the pods by this label and this name, and points JAX_COORDINATOR_ADDRESS at them.
    replicated, _, pod = pod_of(runtime["spec"]["template"]["spec"])
    assert replicated["template"]["metadata"]["labels"] == {"trainer.kubeflow.org/trainjob-ancestor-step": "trainer"}
    assert replicated["name"] == pod["containers"][0]["name"] == "node"


@pytest.mark.parametrize(
    ("accelerator", "hosts", "chips"),
    [("v5e:1x1", 1, 1), ("v5e:16x16", 64, 4), ("v5p:4x4x8", 32, 4), ("v6e:2x2", 1, 4)],
)
def test_the_hosts_follow_from_the_topology(programs: Recorded, accelerator: str, hosts: int, chips: int):
    _, job, pod = pod_of(render(programs, *RUN, "--accelerator-type", accelerator)[0]["spec"])
    assert job["parallelism"] == hosts
    assert pod["containers"][0]["resources"]["limits"] == {"google.com/tpu": chips}


def test_start_submits_what_render_prints(programs: Recorded):
    done = programs.call("gke.sh", "start", *TPU)
    assert done.code == 0 and "gke.sh logs --name my-run" in done.last_line()
    (call,) = programs.calls()
    assert call["command"] == ["kubectl", "--namespace", "default", "create", "--filename", "-"]
    assert [yaml.safe_load(call["stdin"])] == render(programs, *TPU)


def test_a_dry_run_prints_a_command_that_does_the_same(programs: Recorded, tmp_path: Path):
    dry = programs.call("gke.sh", "start", *TPU, "--dry-run", "--", "--name", AWKWARD)
    assert dry.code == 0 and not programs.calls()
    first, *document, last = dry.out.splitlines()
    assert shlex.split(first) == ["kubectl", "--namespace", "default", "create", "--filename", "-", "<<YAML"]
    assert last == "YAML" and yaml.safe_load("\n".join(document))["kind"] == "JobSet"
    assert programs.call("gke.sh", "start", *TPU, "--", "--name", AWKWARD).code == 0
    assert programs.calls()[0]["stdin"].splitlines() == document


def test_what_the_cluster_refuses_is_said_in_one_line(programs: Recorded):
    programs.rules(
        {"match": "create", "err": 'Error from server (AlreadyExists): "my-run" already exists\n', "code": 1}
    )
    done = programs.call("gke.sh", "start", *TPU)
    assert done.code == 1 and done.last_line() == "gke.sh: my-run was not submitted, see kubectl's message above"
    assert "AlreadyExists" in done.err


def test_the_queue_has_a_quota_of_chips(programs: Recorded):
    done = programs.call("gke.sh", "queue", "--accelerator-type", "v5e:4x8", "--quota", "64", "--queue", "mine")
    assert done.code == 0, done.err
    flavor, cluster, local = yaml.safe_load_all(programs.calls()[0]["stdin"])
    assert [item["kind"] for item in (flavor, cluster, local)] == ["ResourceFlavor", "ClusterQueue", "LocalQueue"]
    (group,) = cluster["spec"]["resourceGroups"]
    assert group["coveredResources"] == ["google.com/tpu"]
    assert group["flavors"] == [{"name": "mine", "resources": [{"name": "google.com/tpu", "nominalQuota": 64}]}]
    assert flavor["metadata"]["name"] == local["metadata"]["name"] == local["spec"]["clusterQueue"] == "mine"


@pytest.mark.parametrize("kind", ["jobset", "kubeflow"])
def test_the_log_is_followed_through_broken_connections(programs: Recorded, kind: str):
    programs.rules({"match": "logs", "err": "error: unexpected EOF\n", "code": 1, "times": 3})
    done = programs.call("gke.sh", "logs", "--name", "my-run", "--worker", "3", "--kind", kind)
    assert done.code == 0
    commands = programs.commands()
    assert len(commands) == 4 and "batch.kubernetes.io/job-completion-index=3" in commands[0][-1]
    job = {"jobset": "slice", "kubeflow": "node"}[kind]
    assert f"jobset.sigs.k8s.io/replicatedjob-name={job}," in commands[0][-1]
    programs.rules({"match": "logs", "code": 1, "times": 99})
    assert programs.call("gke.sh", "logs", "--name", "my-run").code == 1


def test_deleting_asks_and_what_does_not_exist_is_no_error(programs: Recorded):
    refused = programs.call("gke.sh", "delete", "--name", "my-run")
    assert refused.code == 2 and "give --yes" in refused.last_line() and not programs.calls()
    assert programs.call("gke.sh", "delete", "--name", "my-run", "--yes").code == 0
    assert programs.commands() == [
        ["kubectl", "--namespace", "default", "delete", "jobset", "my-run", "--ignore-not-found"]
    ]
    programs.call("gke.sh", "stop", "--name", "my-run", "--yes", "--kind", "kubeflow")
    assert [command[4] for command in programs.commands()[1:]] == ["trainjob", "trainingruntime"]


def test_the_image_is_built_from_a_commit(programs: Recorded):
    done = programs.call(
        "gke.sh", "image", "--image", "registry/bertgpt:1", "--commit", "HEAD", "--extras", "cuda,text"
    )
    if "no commit HEAD" in done.err:
        pytest.skip("not a git checkout")
    build, push = programs.commands()
    assert build[:4] == ["docker", "build", "--tag", "registry/bertgpt:1"] and "EXTRAS=cuda,text" in build
    assert build[-1] == "-" and push == ["docker", "push", "registry/bertgpt:1"]
    assert all((SCRIPTS.parent / name).exists() for name in build if name.endswith("Dockerfile"))


def test_xpk_is_called_with_the_same_run(programs: Recorded):
    place = ("--xpk", "--cluster", "c", "--zone", "us-west4-a", "--project", "p")
    assert programs.call("gke.sh", "start", *TPU, *place, "--num-slices", "2", "--", "--name", "a b").code == 0
    (create,) = programs.commands()
    options = dict(zip(create[3::2], create[4::2], strict=True))
    assert create[:3] == ["xpk", "workload", "create"]
    assert options["--tpu-type"] == "v5litepod-32" and options["--num-slices"] == "2"
    assert shlex.split(options["--command"]) == [
        "/bertgpt/tpu_scripts/worker.sh", "run", "pretrain/bert_large", "--workdir", "gs://b/runs", "--name", "a b",
    ]  # fmt: skip
    assert "2" not in options["--restart-on-exit-codes"].split(",")
    assert programs.call("gke.sh", "delete", "--name", "my-run", *place, "--yes").code == 0
    assert programs.commands()[-1][:3] == ["xpk", "workload", "delete"]


WRONG = {
    "no topology": (("render", *RUN, "--accelerator-type", "v5e"), "must be like v5e:4x4"),
    "a bad topology": (("render", *RUN, "--accelerator-type", "v5e:16"), "no topology after the colon"),
    "chips that do not fit": (("render", *TPU, "--chips-per-host", "5"), "32 chips are no multiple"),
    "slices of GPUs": (("render", *GPU, "--num-slices", "2"), "--num-slices is for TPUs"),
    "no image": (("render", *RUN[:2], *RUN[4:], "--accelerator-type", "v5e:4x4"), "render needs --image"),
    "a local workdir": (("render", *TPU[:7], "runs", "--accelerator-type", "v5e:4x4"), "--workdir runs"),
    "an unknown kind": (("render", *TPU, "--kind", "job"), "--kind job: must be jobset or kubeflow"),
    "xpk without a cluster": (("start", *TPU, "--xpk"), "start needs --cluster"),
    "a line break": (("render", *TPU, "--", "--name", "a\nb"), "line breaks"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_arguments_are_one_line_that_names_them(programs: Recorded, name: str):
    args, expected = WRONG[name]
    done = programs.call("gke.sh", *args)
    assert done.code == 2 and expected in done.err and len(done.err.splitlines()) == 1, done.err
    assert not done.out and not programs.calls()
