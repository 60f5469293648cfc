"""Traces of config.profile.steps, as the two viewers find them in the files."""

import gzip
import json

import jax
import pytest

from imagenet_jax import main
from imagenet_jax import train as loop
from imagenet_jax.errors import UserError
from imagenet_jax.training.experiment import make_experiment

QUICKSTART = "--config=configs/quickstart.py"


def _steps(workdir):
    """(of the one trace that Perfetto opens: step numbers of "train", XLA modules with operations),
    and the same of the one that xprof opens."""
    (path,) = (workdir / "profile").glob("plugins/profile/*/*.trace.json.gz")
    events = [
        e for e in json.loads(gzip.decompress(path.read_bytes()))["traceEvents"] if "args" in e
    ]
    numbers = sorted(int(e["args"]["step_num"]) for e in events if e["name"] == "train")
    modules = {e["args"]["hlo_module"] for e in events if "hlo_module" in e["args"]}

    (path,) = (workdir / "profile").glob("plugins/profile/*/*.xplane.pb")
    space = jax.profiler.ProfileData.from_file(str(path))
    events = [
        (e.name, dict(e.stats)) for p in space.planes for line in p.lines for e in line.events
    ]
    found = sorted(int(stats["step_num"]) for name, stats in events if name == "train")
    named = {stats["hlo_module"] for _, stats in events if "hlo_module" in stats}
    return (numbers, modules), (found, named)


@pytest.mark.slow
def test_trace_has_the_steps_and_the_program_for_both_viewers(quick, tmp_path, capsys):
    quick.profile.steps = "3:5"
    quick.log.group_norms = True
    assert loop.train(quick, tmp_path) == 0
    for numbers, modules in _steps(tmp_path):
        assert numbers == [3, 4, 5]
        assert "jit_train_step" in modules
        assert "jit_eval_step" not in modules  # after step 8
    (line,) = [x for x in capsys.readouterr().out.splitlines() if x.startswith("trace of steps")]
    assert "steps 3 to 5" in line
    assert line.split()[-1].endswith(".trace.json.gz")


@pytest.mark.full
def test_trace_continues_after_a_restart_within_the_window_only(quick, tmp_path, capsys):
    quick.profile.steps = "3:5"
    assert loop.train(quick, tmp_path, stop_after=3) == 0
    assert _steps(tmp_path)[0][0] == [3]
    for file in (tmp_path / "profile").rglob("*.*"):
        file.unlink()
    assert loop.train(quick, tmp_path) == 0
    assert _steps(tmp_path)[0][0] == [4, 5]
    capsys.readouterr()
    quick.epochs = 0.3  # 9 steps
    quick.resume_with_changes = True
    assert loop.train(quick, tmp_path) == 0
    assert "no trace: steps 3:5 are before step 9" in capsys.readouterr().out


@pytest.mark.full
def test_exception_in_the_window_keeps_the_trace_so_far(quick, tmp_path, monkeypatch):
    """The profiler can be started again."""
    real = loop.prefetch_to_device

    def batches(*args):
        for i, batch in enumerate(real(*args)):
            if i == 4:
                raise UserError("no fifth batch")
            yield batch

    monkeypatch.setattr(loop, "prefetch_to_device", batches)
    quick.profile.steps = "3:7"
    with pytest.raises(UserError, match="no fifth batch"):
        loop.train(quick, tmp_path / "failed")
    assert _steps(tmp_path / "failed")[0][0] == [3, 4, 5]
    with jax.profiler.trace(tmp_path / "again"):
        pass


def test_unwritable_directory_does_not_stop_training(quick, tmp_path, capsys):
    quick.profile.steps = "2:3"
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "profile").write_text("in the way")
    assert loop.train(quick, tmp_path / "run") == 0
    out = capsys.readouterr().out
    assert "the trace of steps 2 to 3 could not be written" in out
    assert "finished: 8 steps" in out


@pytest.mark.parametrize("text", ["3", "3:", "5:3", "0:2", "a:b", "-1:3", "1:2:3", "1.0:2", " 1:2"])
def test_malformed_windows_are_refused(fails, tmp_path, text):
    args = [QUICKSTART, f"--workdir={tmp_path}", f"--config.profile.steps={text}"]
    fails(main, args, "config.profile.steps", repr(text), "A:B")


def test_window_beyond_the_run_is_refused(quick):
    quick.profile.steps = "3:9"
    with pytest.raises(UserError, match="'3:9' is not within the run's 8 steps"):
        make_experiment(quick)
