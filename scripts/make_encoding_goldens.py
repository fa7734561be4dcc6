#!/usr/bin/env python3
"""Writes tests/tensor/golden/encodings.gguf: two rows of every encoding of blocks, as random bytes
with scales of usual size, and the numbers that the gguf package takes them for.

    python3 -m venv venv && venv/bin/pip install gguf
    venv/bin/python scripts/make_encoding_goldens.py
"""
import os

import gguf
import numpy as np
from gguf.quants import dequantize

NAMES = ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL",
         "IQ4_XS", "MXFP4"]
# Bytes of a block that are 16-bit floats.
FLOATS = {"Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2], "Q8_0": [0], "Q2_K": [80, 82],
          "Q3_K": [108], "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208], "IQ4_NL": [0],
          "IQ4_XS": [0], "MXFP4": []}

ROWS, ROW = 2, 256


def main():
    random = np.random.default_rng(11)
    path = os.path.join(os.path.dirname(__file__), "..", "tests", "tensor", "golden",
                        "encodings.gguf")
    os.makedirs(os.path.dirname(path), exist_ok=True)
    writer = gguf.GGUFWriter(path, "none")
    for name in NAMES:
        kind = gguf.GGMLQuantizationType[name]
        block, size = gguf.GGML_QUANT_SIZES[kind]
        blocks = random.integers(0, 256, (ROWS * ROW // block, size), dtype=np.uint8)
        for at in FLOATS[name]:
            scales = random.normal(0, 0.02, len(blocks)).astype(np.float16)
            scales[0] = np.float16(6e-8)  # subnormal
            blocks[:, at:at + 2] = scales.view(np.uint8).reshape(-1, 2)
        if name == "MXFP4":
            blocks[:, 0] = np.arange(len(blocks)) * 9  # from 2^-128 on
        rows = blocks.reshape(ROWS, -1)
        numbers = dequantize(rows, kind).astype(np.float32)
        assert np.isfinite(numbers).all()
        writer.add_tensor(name, rows, raw_shape=rows.shape, raw_dtype=kind)
        writer.add_tensor(name + ".f32", numbers)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    main()
