"""What holds for every script of tpu_scripts/."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from standins import ROOT, SCRIPTS, call

MAIN = [path for path in sorted(SCRIPTS.glob("*.sh")) if path.stem not in ("lib", "tpu")]
SHELL = sorted([*SCRIPTS.glob("*.sh"), *SCRIPTS.glob("*.sbatch")])


def test_the_folder_is_shell_and_templates():
    assert {path.suffix for path in SCRIPTS.iterdir()} == {".sh", ".sbatch", ".yaml", ".md", ""}
    assert [path.name for path in SCRIPTS.iterdir() if not path.suffix] == ["Dockerfile"]


def test_shellcheck_finds_nothing():
    path = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if path is None:
        pytest.skip("without shellcheck, which the extra [test] brings")
    done = subprocess.run(
        [path, "--external-sources", *map(str, SHELL)], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("path", MAIN, ids=lambda path: path.name)
def test_help_describes_every_action_and_option(path: Path, tmp_path: Path):
    assert os.access(path, os.X_OK)
    done = call(path, "--help", tools=tmp_path / "tools")
    assert done.code == 0 and not done.err
    text = path.read_text(encoding="utf-8")
    actions = re.search(r"^ +([a-z| ]+)\) shift ;;", text + "    x) shift ;;", re.MULTILINE)[1]
    for action in actions.replace("|", " ").split() if actions != "x" else []:
        assert re.search(rf"^  {action} ", done.out, re.MULTILINE), f"{path.name}: {action}"
    parsed = re.search(r'parse_options "([^"]*)"\s*\\?\s*"([^"]*)"', text)
    for option in (parsed[1] + " " + parsed[2]).replace("\\\n", "").split() if parsed else []:
        assert f"--{option}" in done.out, f"{path.name}: --{option}"
    without = call(path, tools=tmp_path / "tools")
    assert without.code == 2 and without.out == done.out


def test_the_options_of_tpu_scripts_are_described():
    text = (SCRIPTS / "tpu.sh").read_text(encoding="utf-8")
    options = re.search(r'TPU_OPTIONS="([^"]*)"', text)[1] + " " + re.search(r'TPU_SWITCHES="([^"]*)"', text)[1]
    described = (SCRIPTS / "tpu_vm.sh").read_text(encoding="utf-8").partition("\n\n")[0]
    for option in options.replace("\\\n", "").split():
        assert f"--{option}" in described, option


def test_templates_name_where_their_fields_are_documented():
    for path in SCRIPTS.glob("*.yaml"):
        assert re.search("^# Sources?: ", path.read_text(encoding="utf-8"), re.MULTILINE), path.name
