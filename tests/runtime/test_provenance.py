"""Code and machine in provenance.json, against git, coreutils and NumPy."""

import platform
import shutil
import subprocess
import sys
import types

import pytest

import imagenet_jax
from imagenet_jax import config as config_io
from imagenet_jax.config import python_files
from imagenet_jax.runtime.provenance import ROOT, describe_code, describe_machine, find_revision


@pytest.fixture
def git(tmp_path):
    def run(*args):
        identity = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
        return subprocess.check_output(["git", "-C", tmp_path, *identity, *args], text=True)

    run("init", "-q")
    return run


@pytest.fixture
def checkout(tmp_path, git, monkeypatch):
    """A checkout with a package, a config, results and an ignored folder."""
    for name, text in {
        "imagenet_jax/step.py": "lr = 1\n",
        "configs/shipped.py": "def get_config():\n    return __import__('defaults').get()\n",
        "baselines/README.md": "98 %\n",
        ".gitignore": "runs/\n",
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    git("add", ".")
    git("commit", "-q", "-m", "Begin")
    monkeypatch.setattr(python_files, "executed", set())  # other tests load configs in this process
    return tmp_path


def test_a_changed_file_makes_a_checkout_dirty_but_results_do_not(checkout, git):
    clean = {
        "git_revision": git("rev-parse", "HEAD").strip(), "git_dirty": False, "git_untracked": [],
    }  # fmt: skip
    assert find_revision(checkout) == clean
    for name in ("notes.txt", "unused.py", "runs/first/metrics.jsonl"):
        (checkout / name).parent.mkdir(parents=True, exist_ok=True)
        (checkout / name).write_text("mine\n")
    (checkout / "baselines/README.md").unlink()  # to be published again
    assert find_revision(checkout) == clean
    (checkout / "imagenet_jax/step.py").write_text("lr = 2\n")
    assert find_revision(checkout) == clean | {"git_dirty": True}
    assert describe_code(clean, 7) == clean["git_revision"][:7]


CONFIG = """from imagenet_jax.config.fields import defaults

def get_config(arg=""):
    return defaults("resnet18")
"""


@pytest.mark.parametrize("where", ["configs/mine.py", "runs/mine.py"])
def test_an_untracked_config_makes_a_checkout_dirty(checkout, git, where):
    """Even if it is ignored, but only if it is the loaded config."""
    path = checkout / where
    path.parent.mkdir(exist_ok=True)
    path.write_text(CONFIG)
    config_io.load(str(path))
    got = find_revision(checkout)
    assert (got["git_dirty"], got["git_untracked"]) == (True, [where])
    config_io.load(str(ROOT / "configs/quickstart.py"))
    assert where not in find_revision(checkout)["git_untracked"]
    git("add", "-f", where)
    git("commit", "-q", "-m", "Add a config")
    config_io.load(str(path))
    assert not find_revision(checkout)["git_dirty"]


def test_untracked_modules_of_the_config_and_the_package_count(checkout, monkeypatch):
    python_files.executed.clear()
    (checkout / "configs/shipped.py").write_text("from configs_beside import VALUE\n" + CONFIG)
    (checkout / "configs_beside.py").write_text("VALUE = 1\n")
    config_io.load(str(checkout / "configs/shipped.py"))
    sys.modules.pop("configs_beside", None)
    extra = types.ModuleType("extra")
    extra.__file__ = str(checkout / "imagenet_jax/extra.py")
    monkeypatch.setitem(sys.modules, "imagenet_jax.extra", extra)
    got = find_revision(checkout)
    assert got["git_untracked"] == ["configs_beside.py", "imagenet_jax/extra.py"]


def test_a_module_without_a_file_does_not_count(checkout, monkeypatch):
    """torch.classes and torch.ops have `__file__ = "_classes.py"`, which does not exist."""
    monkeypatch.chdir(checkout)
    made_up = types.ModuleType("made_up")
    made_up.__file__ = "_classes.py"
    monkeypatch.setitem(sys.modules, "made_up", made_up)
    assert find_revision(checkout)["git_untracked"] == []


def test_an_installed_package_is_not_identified_by_the_repository_around_it(checkout):
    site = checkout / "venv/lib/python3/site-packages"
    package = site / "imagenet_jax"
    shutil.copytree(ROOT / "imagenet_jax/data", package / "data")
    (package / "a b.py").write_text("x = 1\n")
    (package / "__pycache__").mkdir()
    (package / "__pycache__/step.pyc").write_text("compiled")
    sums = subprocess.check_output(
        "find imagenet_jax -type f -not -path '*/__pycache__/*' | LC_ALL=C sort | "
        "tr '\\n' '\\0' | xargs -0 sha256sum | sha256sum",
        shell=True, text=True, cwd=site,
    )  # fmt: skip
    got = find_revision(site)
    assert got == {
        "git_revision": None,
        "git_dirty": False,
        "version": imagenet_jax.__version__,
        "code_sha256": sums.split()[0],
    }
    assert describe_code(got, 7) == f"{imagenet_jax.__version__}+{sums[:7]}"
    (package / "a b.py").write_text("x = 2\n")
    assert find_revision(site)["code_sha256"] != got["code_sha256"]


def test_this_checkout_has_a_revision():
    assert (
        find_revision()["git_revision"]
        == subprocess.check_output(["git", "-C", ROOT, "rev-parse", "HEAD"], text=True).strip()
    )


@pytest.mark.skipif(platform.system() != "Linux", reason="only Linux has /proc/cpuinfo")
def test_the_cpu_agrees_with_nproc_numpy_and_lscpu():
    cpu = describe_machine()["cpu"]
    assert cpu["cores"] == int(subprocess.check_output(["nproc"], text=True))
    assert cpu["architecture"] == platform.machine()
    if platform.machine() == "x86_64":
        from numpy._core._multiarray_umath import __cpu_features__ as numpy_sees

        for vector, feature in (("avx", "AVX"), ("avx2", "AVX2"), ("avx512f", "AVX512F")):
            assert (vector in cpu["vectors"]) == numpy_sees[feature]
        assert cpu["model name"] in subprocess.check_output(["lscpu"], text=True)


def test_only_settings_that_change_the_bits_are_recorded(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_max_isa=AVX2")
    monkeypatch.setenv("JAX_ENABLE_X64", "")
    monkeypatch.setenv("JAX_TRACEBACK_FILTERING", "off")
    settings = describe_machine()["environment"]
    assert settings["XLA_FLAGS"] == "--xla_cpu_max_isa=AVX2"
    assert settings.keys().isdisjoint({"JAX_ENABLE_X64", "JAX_TRACEBACK_FILTERING"})
