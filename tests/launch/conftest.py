"""Stand-ins for gcloud, sbatch, srun, squeue, sky, kubectl, python ... on a separate PATH.

A stand-in appends its arguments to calls.jsonl and answers with the first reply, not used before,
whose text is in its command line; without one it says nothing and succeeds.
"""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]

STAND_IN = """#!{python} -IS
import json, os, signal, sys, time
here = {here!r}
call = [os.path.basename(sys.argv[0]), *sys.argv[1:]]
stdin = sys.stdin.read() if call[0] == "kubectl" else ""
line = json.dumps(dict(argv=call, pid=os.getpid(), stdin=stdin, env=dict(os.environ)))
with open(here + "/calls.jsonl", "a") as f:
    f.write(line + chr(10))
for i, (match, reply) in enumerate(json.load(open(here + "/replies.json"))):
    if match not in " ".join(call):
        continue
    try:
        os.mkdir(here + "/used-%d" % i)
    except FileExistsError:
        continue
    if "until_signal" in reply:
        def stop(number, frame):
            open(here + "/signals", "a").write("%d " % number)
            time.sleep(reply["until_signal"])
            os._exit(128 + number)
        signal.signal(signal.SIGTERM, stop)
        signal.signal(signal.SIGINT, stop)
        open(here + "/waiting-%d" % i, "w").close()
        time.sleep(60)
    print(reply.get("says", ""), end="")
    sys.exit(reply.get("code", 0))
"""

NAMES = (
    "gcloud", "sbatch", "srun", "scontrol", "scancel", "squeue", "sky", "kubectl",
    "python-of-test", "nvidia-smi",
)  # fmt: skip


@dataclass
class Fakes:
    """The folder of the stand-ins, with their replies and the calls they received."""

    folder: Path

    def answer(self, *replies: tuple[str, dict]) -> None:
        (self.folder / "replies.json").write_text(json.dumps(replies))

    def environment(self, **more: str) -> dict[str, str]:
        """Return this environment without a scheduler's variables, and with short pauses."""
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "SBATCH_"))}
        short = {"PAUSE_S": "0.01", "SETTLE_S": "0.01"}
        path = {"PATH": f"{self.folder}:{os.environ['PATH']}"}
        return kept | short | path | {"PYTHON": "python-of-test"} | more

    def run(self, script: str, *arguments: str, **more: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            ["bash", script, *arguments],
            cwd=REPOSITORY, env=self.environment(**more), capture_output=True, text=True,
            timeout=60,
        )  # fmt: skip

    def start(self, script: str, *arguments: str, **more: str) -> subprocess.Popen:
        return subprocess.Popen(
            ["bash", script, *arguments],
            cwd=REPOSITORY, env=self.environment(**more), stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True, start_new_session=True,
        )  # fmt: skip

    def calls(self, name: str = "") -> list[dict]:
        path = self.folder / "calls.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        every = [json.loads(line) for line in lines]
        return [call for call in every if name in ("", call["argv"][0])]

    def commands(self, name: str = "") -> list[list[str]]:
        return [call["argv"] for call in self.calls(name)]


@pytest.fixture
def fakes(tmp_path: Path) -> Fakes:
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in NAMES:
        (folder / name).write_text(STAND_IN.format(python=sys.executable, here=str(folder)))
        (folder / name).chmod(0o755)
    made = Fakes(folder)
    made.answer()
    return made
