"""What a device could do at most: its peak in bfloat16 matrix products, as its maker states it."""

import re

# By `device_kind`, which must match as a whole: a slice of a GPU (MIG), or a variant that is not
# here, has no peak rather than another's. Dense, that is without structured sparsity, summed in
# float32, in TFLOP/s.
_TFLOPS = {
    # NVIDIA H100 datasheet (1979, 1513 and 1671 with sparsity); H200 datasheet (1979 and 1671).
    r"NVIDIA H100 80GB HBM3": 989.5,
    r"NVIDIA H100 PCIe": 756.5,
    r"NVIDIA H100 NVL": 835.5,
    r"NVIDIA H200": 989.5,
    r"NVIDIA H200 NVL": 835.5,
    # NVIDIA A100 datasheet.
    r"NVIDIA A100-(SXM4|PCIE)-(40|80)GB|NVIDIA A100 80GB PCIe": 312.0,
    # NVIDIA V100 datasheet; no bfloat16: float16 products.
    r"Tesla V100-SXM[23]-(16|32)GB": 125.0,
    r"Tesla V100-PCIE-(16|32)GB": 112.0,
    # NVIDIA T4 datasheet; float16 products, likewise.
    r"Tesla T4": 65.0,
    # NVIDIA L4 datasheet (242 with sparsity), L40S datasheet.
    r"NVIDIA L4": 121.0,
    r"NVIDIA L40S": 362.05,
    # NVIDIA's whitepapers of the architectures: Ampere GA102 and Ada.
    r"NVIDIA GeForce RTX 3090": 71.0,
    r"NVIDIA GeForce RTX 4090": 165.2,
    r"NVIDIA RTX A6000": 154.8,
    # Google's pages of each version, https://cloud.google.com/tpu/docs/v3 and so on. They count by
    # chip; of v2 and v3 a device is a core, half a chip.
    r"TPU v2": 45.0 / 2,
    r"TPU v3": 123.0 / 2,
    r"TPU v4": 275.0,
    r"TPU (v5 lite|v5e)": 197.0,
    r"TPU (v5|v5p)": 459.0,
    r"TPU (v6 lite|v6e)": 918.0,
}


def peak_flops(device_kind: str) -> float | None:
    """Operations a second of one device, an addition and a multiplication being two.

    None where its maker's figure is not known here, CPUs included.
    """
    for pattern, tera in _TFLOPS.items():
        if re.fullmatch(pattern, device_kind):
            return tera * 1e12
    return None
