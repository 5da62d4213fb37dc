"""Stand-ins for the programs that the scripts of tpu_scripts/ call: they record calls, and fail on purpose."""

import json
import os
import shutil
import subprocess
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
SCRIPTS = ROOT / "tpu_scripts"

# Any program. The rules are {"match": text of the command, "times": how often, "out", "err", "code"}; the first that
# matches and is left counts; without one the program prints nothing and succeeds.
RECORDER = """
    import json, os, sys
    folder = os.environ["STANDINS"]
    command = [os.path.basename(sys.argv[0]), *sys.argv[1:]]
    stdin = "" if sys.stdin is None or sys.stdin.isatty() or "-" not in command else sys.stdin.read()
    with open(f"{folder}/calls.jsonl", "a") as file:
        file.write(json.dumps({"command": command, "stdin": stdin}) + "\\n")
    rules = json.load(open(f"{folder}/rules.json"))
    for rule in rules:
        if rule["match"] in " ".join(command) and rule.get("times", 1) > 0:
            rule["times"] = rule.get("times", 1) - 1
            json.dump(rules, open(f"{folder}/rules.json", "w"))
            sys.stdout.write(rule.get("out", ""))
            sys.stderr.write(rule.get("err", ""))
            sys.exit(rule.get("code", 0))
"""


# A pod of two workers, each a folder of its own on this machine, behind `gcloud compute tpus tpu-vm …` and
# `… queued-resources …`. POD/state is what Cloud TPU says of it. Faults come from POD/faults.json:
# {action, such as "create": [error messages], "polls": {number of the status poll: "preempt" or "half"}}.
GCLOUD = """
    import json, os, re, shutil, signal, subprocess, sys
    pod, args = os.environ["POD"], sys.argv[1:]
    with open(f"{pod}/calls.jsonl", "a") as file:
        file.write(json.dumps(args) + "\\n")
    queued, action = args[2] == "queued-resources", args[3]
    faults = json.load(open(f"{pod}/faults.json"))
    option = lambda name: args[args.index(name) + 1]
    ready = "ACTIVE" if queued else "READY"

    def state(new=None):
        if new is not None:
            open(f"{pod}/state", "w").write(new)
        return open(f"{pod}/state").read()

    def fail(message):
        sys.exit(f"ERROR: (gcloud.compute.tpus.{args[2]}.{action}) {message}")

    def next_fault():
        if messages := faults.get(action):
            message = messages.pop(0)
            json.dump(faults, open(f"{pod}/faults.json", "w"))
            if message:
                fail(message)

    def end_workers():  # as when the machines are taken away
        for worker in ("0", "1"):
            home = f"{pod}/worker{worker}"
            if os.path.exists(f"{home}/.bertgpt/pid"):
                try:
                    os.killpg(int(open(f"{home}/.bertgpt/pid").read()), signal.SIGKILL)
                except ProcessLookupError:
                    pass
            shutil.rmtree(home, ignore_errors=True)
            os.makedirs(home)

    if action == "describe":
        next_fault()
        if not state():
            fail("NOT_FOUND: Resource was not found")
        print(state())
    elif action == "create":
        next_fault()
        end_workers()
        state(ready)
    elif action == "delete":
        next_fault()
        if not state():
            fail("NOT_FOUND: Resource was not found")
        end_workers()
        state("")
    elif action in ("ssh", "scp"):
        chosen, unreachable = option("--worker"), []
        workers = ["0", "1"] if chosen == "all" else [chosen]
        next_fault()
        if action == "ssh" and option("--command").endswith("worker.sh status"):
            number = faults["number"] = faults.get("number", 0) + 1
            json.dump(faults, open(f"{pod}/faults.json", "w"))
            event = faults.get("polls", {}).get(str(number))
            if event == "preempt":
                end_workers()
                state("SUSPENDED" if queued else "PREEMPTED")
            unreachable = ["1"] if event == "half" else []
        if state() != ready:
            fail("the machine cannot be reached")
        code = 0
        for worker in workers:
            home = f"{pod}/worker{worker}"
            if worker in unreachable:
                print("ssh: connect to host: Connection timed out", file=sys.stderr)
                code = 255
            elif action == "scp":
                shutil.copy(args[4], f"{home}/{args[5].partition(':')[2]}")
            else:
                environment = os.environ | {"HOME": home, "PATH": f"{pod}/tools:{os.environ['PATH']}"}
                code = subprocess.run(["bash", "-c", option("--command")], cwd=home, env=environment).returncode or code
        sys.exit(code)
"""

# On a worker: `uv`, which installs the next two. `bertgpt train`: line N of WORKDIR/script says what start number N of
# this worker does: finish, hang, or fail CODE. `python`, asked whether the results are there.
UV = """
    import os, shutil, sys
    if sys.argv[1] == "venv":
        os.makedirs(f"{sys.argv[-1]}/bin", exist_ok=True)
    else:
        target = os.path.dirname(os.path.dirname(sys.argv[sys.argv.index("--python") + 1] + "/bin/x"))
        for name in ("bertgpt", "python"):
            shutil.copy(f"{os.environ['POD']}/worker_tools/{name}", f"{target}/bin/{name}")
"""
BERTGPT = """
    import os, re, signal, sys, time
    folder = sys.argv[sys.argv.index("--workdir") + 1].removeprefix("file://")
    counter = f"{folder}/starts.{os.path.basename(os.environ['HOME'])}"
    open(counter, "a").write(" ".join(sys.argv[1:]) + "\\n")
    what = open(f"{folder}/script").read().splitlines()[len(open(counter).read().splitlines()) - 1]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # saved
    print(what, flush=True)
    if what == "hang":
        time.sleep(60)
    if what.startswith("fail"):
        sys.exit(int(what.split()[1]))
    time.sleep(0.2)
    open(f"{folder}/results.json", "w").write("{}")
"""
PYTHON = """
    import os, sys
    sys.exit(not os.path.exists(sys.argv[sys.argv.index("--workdir") + 1].removeprefix("file://") + "/results.json"))
"""


def write_program(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!{sys.executable} -IS\n{textwrap.dedent(text)}", encoding="utf-8")
    path.chmod(0o755)


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str

    def last_line(self) -> str:
        return self.err.rstrip().rpartition("\n")[2]


def call(script: Path, *args: str, tools: Path, timeout: float = 60, **variables: str) -> Outcome:
    """Runs a script with these programs first on PATH and no time lost in back-off."""
    waits = {"BERTGPT_POLL_SECONDS": "0.1", "BERTGPT_BACKOFF_SECONDS": "0", "BERTGPT_UNREACHABLE_POLLS": "3"}
    environment = {
        "PATH": f"{tools}:/usr/local/bin:/usr/bin:/bin", "HOME": str(tools.parent), "LANG": "C.UTF-8",
    }  # fmt: skip
    done = subprocess.run(
        ["bash", str(script), *args], env=environment | waits | variables, cwd=tools.parent, timeout=timeout,
        stdin=subprocess.DEVNULL, capture_output=True, text=True,
    )  # fmt: skip
    return Outcome(done.returncode, done.stdout, done.stderr)


class Recorded:
    """Programs that only record what they are called with."""

    def __init__(self, folder: Path, *programs: str):
        self.folder, self.tools = folder, folder / "tools"
        for name in programs:
            write_program(self.tools / name, RECORDER)
        self.rules()

    def rules(self, *rules: dict) -> None:
        (self.folder / "rules.json").write_text(json.dumps(rules), encoding="utf-8")

    def call(self, script: str, *args: str, **variables: str) -> Outcome:
        return call(SCRIPTS / script, *args, tools=self.tools, STANDINS=str(self.folder), **variables)

    def calls(self) -> list[dict]:
        path = self.folder / "calls.jsonl"
        return [json.loads(line) for line in path.read_text("utf-8").splitlines()] if path.exists() else []

    def commands(self) -> list[list[str]]:
        return [call["command"] for call in self.calls()]


class Pod:
    """Two workers behind a stand-in for gcloud, and a checkout whose scripts they are given."""

    def __init__(self, folder: Path, script: str = "finish", **faults: object):
        self.folder, self.tools, self.workdir = folder, folder / "local", folder / "runs"
        write_program(self.tools / "gcloud", GCLOUD)
        write_program(folder / "tools/uv", UV)
        write_program(folder / "worker_tools/bertgpt", BERTGPT)
        write_program(folder / "worker_tools/python", PYTHON)
        self.workdir.mkdir()
        (self.workdir / "script").write_text(script.replace(", ", "\n"), encoding="utf-8")
        (folder / "state").write_text("", encoding="utf-8")
        (folder / "faults.json").write_text(json.dumps(faults), encoding="utf-8")
        self.checkout = folder / "checkout"
        shutil.copytree(SCRIPTS, self.checkout / "tpu_scripts")
        (self.checkout / ".gitignore").write_text(".venv/\n", encoding="utf-8")
        (self.checkout / ".venv").mkdir()
        (self.checkout / ".venv/large").write_text("not to be sent", encoding="utf-8")
        self.git("init", "-q")
        self.git("add", "-A")
        self.git("-c", "user.name=test", "-c", "user.email=test@example.com", "commit", "-q", "-m", "all")

    def git(self, *args: str) -> None:
        subprocess.run(["git", *args], cwd=self.checkout, check=True, timeout=30)

    def call(self, action: str, *args: str, script: str = "tpu_vm.sh", fields: tuple[str, ...] = (), **variables: str):
        words = [action, "--name", "pod", "--zone", "us-west4-a", *args]
        if action in ("train", "start"):
            words += ["--experiment", "demo/pretrain"]
            words += [] if "--workdir" in args else ["--workdir", f"file://{self.workdir}"]
        if action in ("train", "create"):
            words += ["--accelerator-type", "v5litepod-16"]
        if fields:
            words += ["--", *fields]
        path = self.checkout / "tpu_scripts" / script
        return call(path, *words, tools=self.tools, POD=str(self.folder), **variables)

    def calls(self, action: str) -> list[list[str]]:
        """What gcloud was called with for this action (create, ssh …)."""
        path = self.folder / "calls.jsonl"
        lines = path.read_text("utf-8").splitlines() if path.exists() else []
        return [args for args in map(json.loads, lines) if args[3] == action]

    def starts(self, worker: int = 0) -> list[str]:
        path = self.workdir / f"starts.worker{worker}"
        return path.read_text("utf-8").splitlines() if path.exists() else []

    def end(self) -> None:
        """Ends what still runs on the workers."""
        for path in self.folder.glob("worker*/.bertgpt/pid"):
            try:
                os.killpg(int(path.read_text()), 9)
            except (ProcessLookupError, ValueError):
                pass
