"""tpu_vm.sh and queued_resource.sh against a pod of two workers that is played by this machine."""

import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from standins import SCRIPTS, Pod, call, write_program

QUOTA = "RESOURCE_EXHAUSTED: Quota limit 'TPUV5sLitepodPerProjectPerZoneForTPUAPI' has been exceeded. Limit: 0"
STOCKOUT = "There is no more capacity in the zone us-west4-a; you can try in another zone"
BOTH = pytest.mark.parametrize("script", ["tpu_vm.sh", "queued_resource.sh"])


@pytest.fixture
def make_pod(tmp_path: Path) -> Iterator[Callable[..., Pod]]:
    made: list[Pod] = []

    def make(*args: str, **faults: object) -> Pod:
        made.append(Pod(tmp_path, *args, **faults))
        return made[-1]

    yield make
    for pod in made:
        pod.end()


def remote_commands(pod: Pod) -> list[str]:
    """The commands on workers, but for the polls."""
    commands = [args[args.index("--command") + 1] for args in pod.calls("ssh")]
    return [command for command in commands if not command.endswith("worker.sh status")]


@BOTH
def test_one_command_takes_a_pod_from_nothing_to_a_finished_run(make_pod: Callable[..., Pod], script: str):
    pod = make_pod("finish")
    done = pod.call("train", script=script, fields=("--name", 'it\'s a "test" $HOME'))
    assert done.code == 0, done.err
    assert len(pod.calls("create")) == 1 and len(pod.calls("scp")) == 1 and not pod.calls("delete")
    for worker in (0, 1):  # quotes survive both shells, here and there
        assert pod.starts(worker) == [f'train demo/pretrain --workdir file://{pod.workdir} --name it\'s a "test" $HOME']
        home = pod.folder / f"worker{worker}"
        assert (home / "bertgpt/tpu_scripts/worker.sh").exists() and len((home / "bertgpt/COMMIT").read_text()) == 41
        assert not (home / "bertgpt/.venv").exists() and not list(home.glob("*.tar.gz"))
    assert "billed" in done.last_line() and "delete --name pod" in done.last_line()
    again = pod.call("status", script=script)
    assert again.out.splitlines()[1:] == ["finished", "finished"]


def test_calls_that_copy_the_same_commit_keep_out_of_each_others_files(make_pod: Callable[..., Pod], tmp_path: Path):
    pod = make_pod("finish")
    (tmp_path / "scratch").mkdir()
    assert pod.call("create").code == 0
    for _ in range(2):
        assert pod.call("copy", TMPDIR=str(tmp_path / "scratch")).code == 0
    first, second = (Path(args[4]) for args in pod.calls("scp"))
    assert first != second and first.name == second.name
    assert not list((tmp_path / "scratch").iterdir())


def test_a_file_system_is_mounted_on_every_worker_that_is_made(make_pod: Callable[..., Pod]):
    pod = make_pod("hang, finish", polls={"3": "preempt"})
    setup = f"mkdir -p mounted && echo $(basename $HOME) >>{pod.folder}/mounts"
    done = pod.call("train", "--setup", setup, "--workdir", str(pod.workdir))
    assert done.code == 0, done.err
    assert (pod.folder / "mounts").read_text().split() == ["worker0", "worker1"] * 2


def test_with_delete_nothing_is_billed_after_the_end(make_pod: Callable[..., Pod]):
    pod = make_pod("finish")
    assert pod.call("train", "--delete").code == 0
    assert len(pod.calls("delete")) == 1 and (pod.folder / "state").read_text() == ""


@BOTH
def test_quota_and_capacity_errors_are_tried_again(make_pod: Callable[..., Pod], script: str):
    pod = make_pod("finish", create=[QUOTA, STOCKOUT, QUOTA])
    done = pod.call("train", script=script)
    assert done.code == 0 and len(pod.calls("create")) == 4
    assert done.err.count(QUOTA) == 2 and STOCKOUT in done.err


def test_waiting_for_capacity_ends_at_max_wait(make_pod: Callable[..., Pod]):
    pod = make_pod("finish", create=[QUOTA] * 1000)
    done = pod.call("create", "--max-wait", "1")
    assert done.code == 75 and "not ready after 1 s" in done.last_line()


@pytest.mark.parametrize("message", ["PERMISSION_DENIED: Permission tpu.nodes.create denied", "INVALID_ARGUMENT: type"])
def test_what_will_never_be_granted_is_not_tried_again(make_pod: Callable[..., Pod], message: str):
    pod = make_pod("finish", create=[message] * 3)
    done = pod.call("train")
    assert done.code == 2 and len(pod.calls("create")) == 1
    assert message in done.err and "cannot be created" in done.last_line()


def test_without_a_login_the_script_ends_at_once(make_pod: Callable[..., Pod]):
    pod = make_pod("finish", describe=["You do not currently have an active account selected."] * 20)
    assert pod.call("train").code == 1
    assert len(pod.calls("describe")) == 1 and not pod.calls("create")


@BOTH
def test_a_preempted_pod_is_replaced_and_the_run_resumed(make_pod: Callable[..., Pod], script: str):
    pod = make_pod("hang, hang, finish", polls={"3": "preempt", "6": "preempt"})
    done = pod.call("train", script=script, fields=("--compute_dtype", "bfloat16"))
    assert done.code == 0, done.err
    assert len(pod.calls("create")) == 3 and len(pod.calls("delete")) == 2
    assert len(pod.starts()) == 3 and len(set(pod.starts())) == 1  # the same command each time
    assert len([line for line in done.err.splitlines() if "replaced" in line]) == 2


def test_preemptions_do_not_count_as_failures(make_pod: Callable[..., Pod]):
    preempted = {str(number): "preempt" for number in (2, 4)}
    pod = make_pod("hang, hang, finish", polls=preempted)
    assert pod.call("train", "--max-restarts", "1").code == 0
    assert len(pod.calls("create")) == 3


def test_a_pod_of_which_half_the_workers_cannot_be_reached_is_replaced(make_pod: Callable[..., Pod]):
    pod = make_pod("hang, finish", polls={"3": "half", "4": "half", "5": "half"})
    done = pod.call("train")
    assert done.code == 0, done.err
    assert len(pod.calls("create")) == 2 and len(pod.calls("delete")) == 1
    assert done.err.count("not every worker answers") == 3


def test_workers_that_are_away_for_a_moment_are_waited_for(make_pod: Callable[..., Pod]):
    pod = make_pod("hang, finish", polls={"3": "half", "4": "half", "6": "preempt"})
    assert pod.call("train").code == 0
    assert len(pod.calls("create")) == 2  # for the preemption


def test_half_the_workers_unreachable_while_the_code_is_sent(make_pod: Callable[..., Pod]):
    """scp fails for the whole of three tries: the pod is replaced."""
    pod = make_pod("finish", scp=["worker 1: Connection timed out"] * 3)
    done = pod.call("train")
    assert done.code == 0, done.err
    assert len(pod.calls("scp")) == 4 and len(pod.calls("create")) == 2


def test_a_run_that_fails_is_started_again_on_the_same_machines(make_pod: Callable[..., Pod]):
    pod = make_pod("fail 70, fail 3, finish")
    done = pod.call("train")
    assert done.code == 0, done.err
    assert len(pod.starts()) == 3 and len(pod.calls("create")) == 1


def test_a_run_that_always_fails_is_given_up_with_its_log(make_pod: Callable[..., Pod]):
    pod = make_pod("fail 70, fail 70, fail 70, fail 70")
    done = pod.call("train", "--max-restarts", "2")
    assert done.code == 1 and len(pod.starts()) == 3
    assert "given up after 2 restarts in a row (failed 70)" in done.last_line() and "billed" in done.last_line()
    assert "fail 70" in done.out


def test_a_refused_experiment_is_not_started_again(make_pod: Callable[..., Pod]):
    pod = make_pod("fail 2, finish")
    done = pod.call("train")
    assert done.code == 2 and len(pod.starts()) == 1
    assert "refused" in done.last_line() and "fail 2" in done.out


def test_a_second_call_watches_the_run_that_is_going_on(make_pod: Callable[..., Pod]):
    pod = make_pod("hang, finish", polls={"3": "preempt"})
    assert pod.call("create").code == pod.call("copy").code == pod.call("install").code == pod.call("start").code == 0
    assert pod.call("train").code == 0
    assert len(pod.starts()) == 2 and len(pod.calls("scp")) == 2  # the first copy, and after the preemption


def test_stop_lets_the_run_save_and_starting_again_resumes(make_pod: Callable[..., Pod]):
    pod = make_pod("hang, finish")
    for action in ("create", "copy", "install", "start"):
        assert pod.call(action).code == 0
    assert pod.call("status").out.splitlines() == ["pod: READY", "running", "running"]
    assert pod.call("stop").code == 0
    assert pod.call("status").out.splitlines() == ["pod: READY", "stopped", "stopped"]
    assert pod.call("stop").code == 0  # nothing runs: nothing to do
    assert pod.call("train").code == 0 and len(pod.starts()) == 2


def test_the_log_is_followed_through_broken_connections(make_pod: Callable[..., Pod]):
    pod = make_pod("finish")
    assert pod.call("train").code == 0
    (pod.folder / "faults.json").write_text('{"ssh": ["client_loop: send disconnect: Broken pipe", "timed out"]}')
    done = pod.call("logs", "--worker", "1")
    assert done.code == 0 and done.out == "finish\n"
    (pod.folder / "faults.json").write_text('{"ssh": ["refused", "refused"]}')
    (pod.folder / "state").write_text("")
    gone = pod.call("logs")
    assert gone.code == 1 and gone.last_line() == "tpu_vm.sh: pod does not exist in us-west4-a"


def test_a_command_is_run_on_all_workers_or_on_one(make_pod: Callable[..., Pod]):
    pod = make_pod("finish")
    pod.call("create")
    assert pod.call("run", fields=("printf", "%s\n", "a b")).out == "a b\na b\n"
    assert pod.call("run", "--worker", "1", fields=("pwd",)).out.strip().endswith("worker1")
    assert pod.call("run", fields=("false",)).code == 1


@BOTH
def test_deleting_needs_yes_and_what_does_not_exist_is_no_error(make_pod: Callable[..., Pod], script: str):
    pod = make_pod("finish")
    done = pod.call("delete", "--yes", script=script)
    assert done.code == 0 and "nothing to delete" in done.last_line() and not pod.calls("delete")
    pod.call("create", script=script)
    refused = pod.call("delete", script=script)
    assert refused.code == 2 and "give --yes" in refused.last_line() and not pod.calls("delete")
    assert pod.call("delete", "--yes", script=script).code == 0
    assert ("--force" in pod.calls("delete")[0]) == (script == "queued_resource.sh")


def test_deleting_is_tried_again_when_it_fails(make_pod: Callable[..., Pod]):
    pod = make_pod("finish", delete=["INTERNAL: try again", "INTERNAL: try again"])
    pod.call("create")
    assert pod.call("delete", "--yes").code == 0 and len(pod.calls("delete")) == 3


def test_several_slices_are_one_request_and_reached_together(make_pod: Callable[..., Pod]):
    pod = make_pod("finish")
    done = pod.call("train", "--num-slices", "2", script="queued_resource.sh", fields=("--mesh.dcn", "2"))
    assert done.code == 0, done.err
    create = pod.calls("create")[0]
    assert create[create.index("--node-count") + 1] == "2" and create[create.index("--node-prefix") + 1] == "pod"
    assert "--node-id" not in create
    assert all(args[args.index("--node") + 1] == "all" for args in pod.calls("ssh") + pod.calls("scp"))


@BOTH
def test_a_dry_run_prints_each_command_as_it_would_be_run_and_runs_none(make_pod: Callable[..., Pod], script: str):
    pod = make_pod("finish")
    fields = ("--name", "a b'c")
    dry = pod.call("train", "--dry-run", "--spot", "--delete", script=script, fields=fields)
    assert dry.code == 0 and not (pod.folder / "calls.jsonl").exists()
    printed = [shlex.split(line) for line in dry.out.splitlines()]
    assert pod.call("train", "--spot", "--delete", script=script, fields=fields).code == 0
    done = [args for action in ("describe", "create", "scp", "ssh", "delete") for args in pod.calls(action)]
    in_temporary = re.compile(r"/.*/(bertgpt-[^/]*\.tar\.gz)")
    done = [[in_temporary.sub(r"/tmp/\1", word) for word in args] for args in done]  # in a folder of its own
    assert [words[1:] for words in printed if words[0] == "git"][0][:3] == ["-C", str(pod.checkout), "archive"]
    commands = [words[1:] for words in printed if words[0] == "gcloud"]
    assert len(commands) == 8 and all(command in done for command in commands)  # word for word
    assert [command for command in done if command not in commands] == []


def test_secrets_of_the_environment_are_not_printed(make_pod: Callable[..., Pod]):
    pod = make_pod("fail 70, finish", create=[QUOTA])
    secrets = {"HF_TOKEN": "hf_secret", "AWS_SECRET_ACCESS_KEY": "aws_secret", "CLOUDSDK_AUTH_ACCESS_TOKEN": "g_secret"}
    done = pod.call("train", **secrets)
    assert done.code == 0 and not re.search("hf_secret|aws_secret|g_secret", done.out + done.err)
    assert not re.search("hf_secret|aws_secret|g_secret", (pod.folder / "calls.jsonl").read_text())


def test_uncommitted_changes_are_not_left_behind_silently(make_pod: Callable[..., Pod]):
    pod = make_pod("finish")
    pod.call("create")
    (pod.checkout / "tpu_scripts/lib.sh").open("a").write("# changed\n")
    refused = pod.call("copy")
    assert refused.code == 2 and "uncommitted changes" in refused.last_line() and not pod.calls("scp")
    assert pod.call("copy", "--commit", "HEAD").code == 0
    unknown = pod.call("copy", "--commit", "v9")
    assert unknown.code == 2 and unknown.last_line().endswith("no commit v9")


WRONG = {
    "no action": ((), "usage"),
    "an unknown action": (("launch",), "no action 'launch'; there are create"),
    "an unknown option": (("stop", "--nme", "x"), "no option --nme; there are --name --zone"),
    "no name": (("stop", "--zone", "z"), "stop needs --name"),
    "a name that is none": (("stop", "--name", "My Pod", "--zone", "z"), "--name 'My Pod': use at most 40"),
    "no zone": (("stop", "--name", "x"), "stop needs --zone"),
    "an option without its value": (("stop", "--name"), "--name needs a value"),
    "an empty value": (("stop", "--name", ""), "--name needs a value"),
    "a switch with a value": (("stop", "--yes=1"), "--yes takes no value"),
    "a word too many": (("stop", "pod"), "unexpected argument 'pod'"),
    "no experiment": (("train", "--name", "x", "--zone", "z"), "train needs --experiment"),
    "a local workdir": (
        ("train", "--name", "x", "--zone", "z", "--experiment", "e", "--workdir", "runs"), "--workdir runs: the disk"
    ),
    "an unknown accelerator": (
        ("create", "--name", "x", "--zone", "z", "--accelerator-type", "v9-8"), "give --runtime-version too"
    ),
    "no number": (("create", "--name", "x", "--zone", "z", "--max-wait", "1h"), "must be a positive whole number"),
    "an end that is not the end": (
        ("train", "--name", "x", "--zone", "z", "--experiment", "e", "--workdir", "gs://b", "--", "--stop_after", "5"),
        "--stop_after ends a run early",
    ),
    "words after -- that nothing takes": (("stop", "--name", "x", "--zone", "z", "--", "a"), "takes no words after --"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_wrong_arguments_are_one_line_that_names_them(tmp_path: Path, name: str):
    args, expected = WRONG[name]
    write_program(tmp_path / "tools/gcloud", "raise SystemExit(70)")
    done = call(SCRIPTS / "tpu_vm.sh", *args, tools=tmp_path / "tools")
    assert done.code == 2
    if args:
        assert expected in done.err and len(done.err.splitlines()) == 1 and not done.out


def test_a_missing_tool_is_named(tmp_path: Path):
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in ("bash", "dirname", "sed", "rm", "mktemp", "cat", "grep"):
        (tools / name).symlink_to(Path("/bin") / name if (Path("/bin") / name).exists() else Path("/usr/bin") / name)
    done = call(SCRIPTS / "tpu_vm.sh", "stop", "--name", "x", "--zone", "z", tools=tools, PATH=str(tools))
    assert done.code == 2
    assert (
        done.last_line()
        == "tpu_vm.sh: gcloud is not installed or not on PATH: https://cloud.google.com/sdk/docs/install"
    )
