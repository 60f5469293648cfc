"""The panel: what it shows at any width, on a console and on a terminal that a training runs in."""

import io
import os
import re
import signal
import sys

import pyte
import pytest
from conftest import tiny_config
from rich.console import Console
from terminal import Terminal

from imagenet_jax import config as config_io
from imagenet_jax import main
from imagenet_jax.logs import console as consoles
from imagenet_jax.logs.console import ConsoleWriter, Panel, draw_curve

TRAIN = {
    "epoch": 1.5,
    "loss": 2.25,
    "top1": 0.4375,
    "learning_rate": 0.125,
    "images_per_second": 2000.0,
    "input_wait": 0.015,
    "flops_per_second": 4.4e14,
    "peak_share": 0.444,
    "device_memory": 30 * 2**30,
}
EVAL = {"count": 50_000, "top1": 0.7613, "top5": 0.9286, "loss": 0.96}


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands until it is moved: clock[0] is the time in seconds."""
    now = [1000.0]
    monkeypatch.setattr(consoles.time, "monotonic", lambda: now[0])
    return now


def _shown(panel, width=80):
    console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None)
    console.print(panel)
    return console.file.getvalue()


def _panel():
    panel = Panel("resnet50  runs/a", 1000, 256, memory_limit=80 * 2**30)
    for loss in (4.0, 3.0, 2.25):
        panel.write(600, "train", TRAIN | {"loss": loss})
    panel.write(500, "validation", EVAL | {"weights": "ema"})
    panel.write(500, "validation", EVAL | {"weights": "raw", "top1": 0.1})
    return panel


def test_panel_shows_every_number(clock):
    panel = _panel()
    panel.saved(500)
    clock[0] += 3725
    panel.progress(600)
    text = _shown(panel)
    for part in (
        "resnet50  runs/a", "600/1,000", "60.0%", "epoch 1.50", "62.1 min so far",
        "51.2 s left",  # 400 steps of 256 at 2,000 a second
        "top-1 43.75%  loss 2.2500  learning rate 0.125", "2,000 img/s",
        "440 TFLOP/s (44.4% of peak)", "input wait 1.5%", "30.0 GiB of 80.0 GiB",
        "step 500: top-1 76.13%  top-5 92.86%  loss 0.9600  EMA weights",
        "step 500, 62.1 min ago", "training", "█▄▁",
    ):  # fmt: skip
        assert part in text, part


def test_panel_keeps_the_speed_where_the_last_interval_has_none(clock):
    panel = _panel()
    panel.write(1000, "train", {"epoch": 2.0, "loss": 1.0, "top1": 0.5, "learning_rate": 0.0})
    assert "2,000 img/s" in _shown(panel)
    assert "loss 1.0000" in _shown(panel)


def test_panel_shows_the_present_rate_before_the_first_interval_is_complete(clock):
    panel = Panel("m", 1000, 100, 0)
    assert "compiling" in _shown(panel)
    panel.progress(4)  # dispatched at once, none of them done
    clock[0] += 4
    assert "img/s" not in _shown(panel) and "left" not in _shown(panel)
    panel.progress(21, 500.0)
    text = _shown(panel)
    assert "500 img/s" in text
    assert "3.3 min left" in text  # 979 steps, 5 a second
    assert "of peak" not in text
    assert "not yet" in text


def test_a_run_without_average_shows_its_newest_evaluation(clock):
    panel = Panel("m", 1000, 100)
    panel.write(100, "validation", EVAL | {"weights": "raw"})
    panel.write(200, "validation", EVAL | {"weights": "raw", "top1": 0.8})
    assert "step 200: top-1 80.00%" in _shown(panel)


@pytest.mark.parametrize("width", [20, 40, 60, 80, 200])
def test_no_line_is_wider_than_the_terminal(clock, width):
    lines = _shown(_panel(), width).splitlines()
    assert max(map(len, lines)) <= width
    assert len(lines) == 9  # none is wrapped
    if width >= 60:
        assert "top-1 43.75%  loss 2.2500" in "\n".join(lines)


def test_words_of_a_run_are_not_taken_for_markup(clock):
    assert "[red]x[/] runs/[b]" in _shown(Panel("[red]x[/] runs/[b]", 10, 1))


def test_curve_is_as_wide_as_asked_and_spans_its_values():
    assert draw_curve([float(i) for i in range(8)], 8) == "▁▂▃▄▅▆▇█"
    assert draw_curve([1.0, 1.0, 1.0], 8) == "▁▁▁"
    assert draw_curve([0.0, float("nan"), 1.0], 8) == "▁█"
    assert draw_curve([5.0, 0.0, 1.0], 2) == "▁█"
    assert draw_curve([1.0, 2.0], 0) == ""


def test_quiet_says_what_goes_wrong_and_how_it_ends():
    console = ConsoleWriter(Panel("m", 10, 4), io.StringIO(), quiet=True)
    console.start()
    console.say("hello")
    console.write(5, "train", TRAIN)
    console.write(10, "validation", EVAL)
    console.warn("the disk is full")
    console.end("finished: 10 steps")
    console.close()
    wrong, evaluated, end = console._console.file.getvalue().splitlines()
    assert wrong == "the disk is full"
    assert "top-1  76.13%" in evaluated
    assert end == "finished: 10 steps"


def test_lines_appear_above_the_panel_and_it_stays_at_the_end():
    stream = io.StringIO()
    terminal = Console(file=stream, force_terminal=True, width=70, height=20)
    panel = _panel()
    console = ConsoleWriter(panel, console=terminal)
    console.start()
    console.say("a line said [meanwhile]")
    console.write(600, "train", TRAIN)
    panel.progress(600)
    console.end("stopped after 600 steps")
    console.close()
    screen = pyte.Screen(70, 20)
    pyte.Stream(screen).feed(stream.getvalue().replace("\n", "\r\n"))
    lines = [line.rstrip() for line in screen.display]
    assert lines[0] == "a line said [meanwhile]"
    assert lines[1] == "stopped after 600 steps"  # the points of training are the panel's
    assert lines[2].startswith("╭─ resnet50")
    assert lines[10].endswith("stopped ─╯")  # at step 600
    assert not screen.cursor.hidden
    assert "".join(lines[11:]) == ""


@pytest.fixture
def config_file(tmp_path, digits_path):
    config = tiny_config(digits_path)
    config.epochs = 3.0
    file = tmp_path / "config.json"
    file.write_text(config_io.to_json(config))
    return file


@pytest.fixture
def train_in_terminal(tmp_path, config_file):
    """train_in_terminal(columns, rows): the tiny training, in a Terminal."""
    started = []

    def start(columns, rows):
        command = (sys.executable, "-m", "imagenet_jax.main", f"--config={config_file}")
        started.append(Terminal(columns, rows, *command, f"--workdir={tmp_path}/run"))
        return started[-1]

    yield start
    for terminal in started:
        try:
            os.kill(terminal.pid, signal.SIGKILL)
            os.waitpid(terminal.pid, 0)
        except (ProcessLookupError, ChildProcessError):
            pass


@pytest.mark.slow
def test_training_in_a_terminal_that_is_resized_interrupted_and_continued(train_in_terminal):
    terminal = train_in_terminal(90, 24)
    terminal.until(r"compiling")
    terminal.until(r"top-1 .*  loss \d\.\d{4}  learning rate")
    assert not terminal.screen.cursor.hidden  # a process that is killed could not show it again
    terminal.resize(60, 16)
    os.kill(terminal.pid, signal.SIGINT)
    assert terminal.wait() == 130
    assert b"stopped by signal 2" in terminal.everything
    assert "stopped ─╯" in terminal.text()
    assert not terminal.screen.cursor.hidden

    terminal = train_in_terminal(60, 16)
    assert terminal.wait() == 0
    text = terminal.text()
    assert re.search(r"\d+/\d+  100\.0%", text)
    assert "finished ─╯" in text
    assert re.search(r"evaluated +step 90: top-1", text)
    assert re.search(r"FLOP/s  input wait", text)
    assert "of peak" not in text  # a CPU's is not known


@pytest.mark.full
def test_quiet_is_a_flag(call_command, tmp_path, config_file):
    code, out, err = call_command(
        main,
        [f"--config={config_file}", f"--workdir={tmp_path}/q", "--quiet", "--config.epochs=0.1"],
    )
    assert (code, err) == (0, "")
    evaluated, end = out.splitlines()
    assert "validation (EMA weights): 360 images" in evaluated
    assert end == f"finished: 3 steps in {tmp_path}/q"
