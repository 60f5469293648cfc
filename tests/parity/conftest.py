"""torch beside jax: makes torchvision importable, and prints the parity table at the end."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")

try:
    import torch
except ImportError:  # the tests here skip themselves
    torch = None

import pytest

# table -> row -> column -> the largest error seen
_tables: dict[str, dict[str, dict[str, float]]] = {}
# Kept as long as the process: a Library that is collected takes its schemas with it.
_schemas = []

if torch is not None:
    if "PYTEST_XDIST_WORKER" in os.environ:
        torch.set_num_threads(1)  # there is one worker for each core
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
    """parity_table(table, row, column, error): a cell of a table that ends the run; the largest
    error counts."""

    def put(table: str, row: str, column: str, value: float) -> None:
        _merge({table: {row: {column: float(value)}}})

    return put


def _merge(tables):
    for title, rows in tables.items():
        for name, row in rows.items():
            cells = _tables.setdefault(title, {}).setdefault(name, {})
            for column, value in row.items():
                cells[column] = max(cells.get(column, 0.0), value)


def pytest_sessionfinish(session):
    if hasattr(session.config, "workeroutput"):  # a worker of pytest-xdist
        session.config.workeroutput["parity_tables"] = _tables


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node):
    _merge(getattr(node, "workeroutput", {}).get("parity_tables", {}))


def pytest_terminal_summary(terminalreporter):
    for title, rows in _tables.items():
        columns = sorted({column for row in rows.values() for column in row})
        write = terminalreporter.write_line
        terminalreporter.section(f"parity with torch: {title}, largest relative errors")
        write(f"| | {' | '.join(columns)} |")
        write("| --- |" + " --- |" * len(columns))
        for name, row in rows.items():
            cells = " | ".join(f"{row[c]:.1e}" if c in row else "" for c in columns)
            write(f"| {name} | {cells} |")
