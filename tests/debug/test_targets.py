"""Costs on hardware that is not here: compiled programs, names of targets, memory and time."""

import dataclasses
import re
from importlib.util import find_spec

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import REPOSITORY

from imagenet_jax import main as command
from imagenet_jax.debug import cost, dry_run, targets
from imagenet_jax.debug.compiled import ProgramCost, read_cost
from imagenet_jax.errors import UserError
from imagenet_jax.models import outline
from imagenet_jax.training.state import count_parameters

PROGRAM = """HloModule jit_step, is_scheduled=true, entry_computation_layout={(f32[8,4])->f32[]}

%body.1 (p.1: (s32[], f32[16])) -> (s32[], f32[16]) {
  %p.1 = (s32[], f32[16]{0}) parameter(0)
  %gte.1 = f32[16]{0:T(256)} get-tuple-element(%p.1), index=1
  %double = f32[16]{0} fusion(%gte.1), kind=kLoop, calls=%c, backend_config={"estimated_cycles":"7"}
  ROOT %out.1 = (s32[], f32[16]{0}) tuple(%gte.0, %double)
}

ENTRY %main.9 (a: f32[8,4]) -> f32[] {
  %a = f32[8,4]{1,0:T(8,128)S(1)} parameter(0)
  %conv = (bf16[8,2]{1,0}, u8[1000]{0}) custom-call(%a, %a), custom_call_target="__cudnn$conv"
  %y = bf16[8,2]{1,0} get-tuple-element(%conv), index=0
  %sum = bf16[]{:T(256)} fusion(%y), calls=%r, backend_config={"estimated_cycles":"100"}
  %start = (f32[8,4]{1,0}, f32[8,4]{1,0}) all-gather-start(%a), dimensions={0}
  %done = f32[8,4]{1,0} all-gather-done(%start)
  %ar = f32[8,4]{1,0} all-reduce(%done), to_apply=%add
  %w = (s32[], f32[16]{0}) while(%t), condition=%cond, body=%body.1, \
backend_config={"known_trip_count":{"n":"3"}}
  ROOT %r = f32[] bitcast(%sum)
}
"""


def test_the_cost_of_a_program_by_hand():
    got = read_cost(PROGRAM)
    a, y = 8 * 4 * 4, 8 * 2 * 2
    kernels = {
        "conv": 2 * a + y,  # without its scratch memory
        "sum": y + 2,
        "all-gather": a + 2 * a,
        "all-reduce": 2 * a,
        "double, three times": 3 * 2 * 16 * 4,
    }
    assert got.bytes == sum(kernels.values())
    assert got.kernels == 4 + 3
    assert got.cycles == 100 + 3 * 7
    assert got.collectives == {"all-gather": 1, "all-reduce": 1}
    assert got.collective_bytes == {"all-gather": 2 * a, "all-reduce": a}


def test_the_bytes_of_a_program_that_runs_here():
    """Three arrays of a known size go in, one comes out; XLA fuses all of it into one kernel."""

    def add(a, b, c):
        return jnp.tanh(a) + b * c

    shape = jax.ShapeDtypeStruct((256, 128), jnp.float32)
    compiled = jax.jit(add).lower(shape, shape, shape).compile()
    assert read_cost(compiled.as_text()).bytes == 4 * 256 * 128 * 4


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("v5f:2x4", "--target = 'v5f': use v4 | v5e .* did you mean 'v5"),
        ("h100:2x4", "--target=h100:2x4: give the number of GPUs, such as h100:8"),
        ("h100:0", "such as h100:8"),
        ("v5e:8", "--target=v5e:8: give the topology in chips, such as v5e:2x4"),
        ("v5e:2x4x", "such as v5e:2x4"),
    ],
)
def test_a_wrong_target_is_named_in_one_line(name, words):
    with pytest.raises(UserError, match=words) as e:
        targets.make_target(name)
    assert len(str(e.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("name", "package"), [("v5e:2x4", "'jax[tpu]'"), ("h100", "jax-cuda12-plugin jax-cuda12-pjrt")]
)
def test_a_missing_compiler_is_named_with_its_package(name, package, monkeypatch):
    monkeypatch.setattr(targets, "find_spec", lambda module: None)
    with pytest.raises(UserError, match=re.escape(f"pip install {package}")):
        targets.make_target(name)


def test_a_target_needs_a_dry_run():
    flags = [f"--config={REPOSITORY}/configs/quickstart.py", "--workdir=x", "--target=h100"]
    with pytest.raises(UserError, match="--target and --price need --dry_run"):
        command.main(flags)


@pytest.fixture
def here():
    """The eight devices of the tests as if they were four chips of two devices each."""
    chip = targets.Accelerator(memory=2e9, bandwidth=1e9, dollars_per_hour=2.0)
    return targets.Target("here:4", chip, 4, jax.devices())


def test_memory_by_kind_is_that_of_the_arrays(tiny, here):
    got = cost.target_cost(tiny, here)
    _, params, stats = outline(tiny.model)
    size = 4 * count_parameters(params)
    assert got.memory["parameters"] == got.memory["optimizer"] - 4 == size  # and a step counter
    assert got.memory["batch statistics"] == 4 * count_parameters(stats)
    side = tiny.augment.image_size
    assert got.memory["batch"] == tiny.batch_size * (3 * side**2 + 4) / 8
    assert got.program.collectives["all-reduce"] > 0
    assert got.seconds["memory"] == got.program.bytes / 0.5e9  # half a chip each


@pytest.mark.full
def test_operations_grow_with_the_batch_and_not_with_the_devices(tiny, here):
    one = dataclasses.replace(here, chips=1, devices=jax.devices()[:1])
    twice = type(tiny)(tiny.to_dict())
    twice.batch_size *= 2
    first, second, wide = (
        cost.target_cost(c, t).flops for c, t in ((tiny, one), (twice, one), (tiny, here))
    )
    assert first == wide
    assert second == pytest.approx(2 * first, rel=0.02)  # the update does not grow


@pytest.mark.slow
def test_the_report_prices_the_whole_recipe(tiny, here, capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(dry_run, "make_target", lambda name: here)
    tiny.data.update(source="auto", path=f"{tmp_path}/nothing")
    with pytest.raises(UserError, match="--config.data.synthetic.images=N"):
        dry_run.dry_run(tiny, "here:4", 3.0)
    tiny.model.num_classes = 1000
    dry_run.dry_run(tiny, "here:4", 3.0)
    out = " ".join(capsys.readouterr().out.split())
    assert "assuming ImageNet's 1,281,167 training images" in out
    assert "it fits" in out and " of 953.7 MiB " in out  # half of 2 GB
    hours, dollars = re.search(
        r"whole recipe: ([\d,.]+) h .*?; ([\d,]+) dollars at 3.00", out
    ).groups()
    hours, dollars = float(hours.replace(",", "")), float(dollars.replace(",", ""))
    assert dollars == pytest.approx(hours * 4 * 3.0, rel=0.05, abs=1)
    assert re.search(r"largest batch: about [\d,]+ images", out)


@pytest.mark.parametrize("power", [1.0, 1.05, 1.1])
def test_the_largest_batch_was_compiled_and_is_close_to_the_limit(tiny, here, monkeypatch, power):
    """Memory grows as the batch does, or faster."""

    def cost_of(config, target):
        memory = {"batch": 1e3 * config.batch_size, "activations": 2e5 * config.batch_size**power}
        compiled.append(config.batch_size)
        return cost.TargetCost(config, target, memory, ProgramCost())

    compiled = []
    monkeypatch.setattr(dry_run, "target_cost", cost_of)
    text = dry_run._largest_batch(tiny, cost_of(tiny, here))
    found = int(re.search(r"about ([\d,]+) images", text)[1].replace(",", ""))
    assert found == compiled[-1] and found % 8 == 0
    limit = next(n for n in range(8, 10**4) if 1e3 * n + 2e5 * n**power > here.memory)
    assert 0.9 * limit < found < limit


def test_a_product_without_tiles_is_compiled_without_triton(quick, here, monkeypatch):
    compile_ = jax.stages.Lowered.compile

    def refuse(self, compiler_options=None):
        if compiler_options.get("xla_gpu_enable_triton_gemm", True):
            raise jax.errors.JaxRuntimeError("INTERNAL: Couldn't find output tile sizes")
        return compile_(self)

    monkeypatch.setattr(jax.stages.Lowered, "compile", refuse)
    monkeypatch.setattr(targets.Target, "compiler_options", {"xla_gpu_autotune_level": 0})
    assert cost.target_cost(quick, here).memory["activations"] > 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("error", "needs"),
    [
        ("Ran out of memory in space hbm. Used 21.5G of 15.75G hbm", "21.5G of the 15.75G"),
        (
            "Ran out of memory on HBM, the total memory required for HLO temporaries (730.75G) "
            "exceeds available HBM (15.75G)",
            "730.75G of the 15.75G",
        ),
        ("Allocation failed", "more than the memory"),
    ],
)
def test_a_batch_that_does_not_fit_is_a_sentence(error, needs, tiny, here, capsys, monkeypatch):
    """The compiler refuses the batch of the config; half of it fits."""
    compile_ = jax.stages.Lowered.compile

    def refuse(self, compiler_options=None):
        if tiny.batch_size == compiled.pop(0):
            raise jax.errors.JaxRuntimeError(f"RESOURCE_EXHAUSTED: {error}")
        return compile_(self)

    real = cost.target_cost
    compiled = []

    def target_cost(config, target):
        compiled.append(config.batch_size)
        return real(config, target)

    monkeypatch.setattr(jax.stages.Lowered, "compile", refuse)
    monkeypatch.setattr(dry_run, "make_target", lambda name: here)
    monkeypatch.setattr(dry_run, "target_cost", target_cost)
    dry_run.dry_run(tiny, "here:4")
    out = capsys.readouterr().out
    assert (
        f"config.batch_size = {tiny.batch_size} does not fit: a step needs {needs} of a device"
        in out
    )
    assert "it does not fit: lower config.batch_size" in out


@pytest.mark.parametrize(
    ("name", "module", "devices"),
    [
        ("v5e:1x1", "libtpu", 1),
        ("h100:2", "jax_cuda12_plugin", 2),
        pytest.param("v5e:2x2", "libtpu", 4, marks=pytest.mark.full),
        pytest.param("v6e:2x4", "libtpu", 8, marks=pytest.mark.full),
        pytest.param("a100:1", "jax_cuda12_plugin", 1, marks=pytest.mark.full),
    ],
)
def test_a_small_network_compiles_for_hardware_that_is_not_here(tiny, name, module, devices):
    if find_spec(module) is None:
        pytest.skip(f"{module} is not installed")
    target = targets.make_target(name)
    assert len(target.devices) == devices
    got = cost.target_cost(tiny, target)
    assert got.memory["activations"] > 0 and np.isfinite(list(got.seconds.values())).all()
    assert bool(got.program.collectives) == (devices > 1)
    assert bool(got.program.cycles) == (module == "libtpu")
