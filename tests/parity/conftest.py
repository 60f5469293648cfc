"""torch beside jax: makes torchvision importable, and prints the parity table at the end."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")

try:
    import torch
except ImportError:  # the tests here skip themselves
    torch = None

import pytest

_rows: dict[str, dict[str, float]] = {}
# Kept as long as the process: a Library that is collected takes its schemas with it.
_schemas = []

if torch is not None:
    # torchvision's compiled operators are absent beside a CPU build of torch from another index,
    # and its import registers Python kernels for two of them, which needs only their schemas.
    for namespace, schema in (
        ("torchvision", "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"),
        ("torchvision", "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"),
    ):
        library = torch.library.Library(namespace, "FRAGMENT")
        try:
            library.define(schema)
        except RuntimeError:  # declared already: this torchvision has its operators
            continue
        _schemas.append(library)


@pytest.fixture(scope="session")
def parity_table():
    """parity_table(model, quantity, error): one cell of the table that ends the run."""

    def put(row: str, column: str, value: float) -> None:
        _rows.setdefault(row, {})[column] = value

    return put


def pytest_terminal_summary(terminalreporter):
    if not _rows:
        return
    columns = list(dict.fromkeys(c for row in _rows.values() for c in row))
    terminalreporter.section("parity with torch: largest relative errors")
    terminalreporter.write_line(f"| model | {' | '.join(columns)} |")
    terminalreporter.write_line("|---|" + "---|" * len(columns))
    for name, row in _rows.items():
        cells = " | ".join(f"{row[c]:.1e}" if c in row else "" for c in columns)
        terminalreporter.write_line(f"| {name} | {cells} |")
