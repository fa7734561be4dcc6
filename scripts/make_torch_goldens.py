#!/usr/bin/env python3
"""Writes tests/formats/golden/torch: files of torch.save and what their tensors are.

    python3 -m venv /tmp/venv && /tmp/venv/bin/pip install torch numpy
    /tmp/venv/bin/python scripts/make_torch_goldens.py
"""
import collections
import json
import pathlib

import torch

FOLDER = pathlib.Path(__file__).resolve().parent.parent / "tests/formats/golden/torch"
DTYPES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.float64: "F64",
          torch.int64: "I64", torch.uint8: "U8", torch.bool: "BOOL"}


def main():
    FOLDER.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    base = torch.arange(12, dtype=torch.float32).reshape(3, 4)
    tensors = collections.OrderedDict(
        matrix=base,
        transposed=base.t(),
        columns=base[:, 1:3],
        row=base[1],
        scalar=torch.tensor(2.5),
        empty=torch.zeros(0, 4),
        half=torch.tensor([1.5, -2.0], dtype=torch.float16),
        bfloat=torch.tensor([[0.5], [3.0]], dtype=torch.bfloat16),
        double=torch.tensor([1e10], dtype=torch.float64),
        long=torch.tensor([1, -1, 2**40]),
        byte=torch.tensor([0, 255], dtype=torch.uint8),
        bool=torch.tensor([True, False]),
        parameter=torch.nn.Parameter(torch.tensor([7.0, 8.0])),
    )
    module = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    files = {
        "archive.bin": (tensors, {}),
        "old.bin": (tensors, {"_use_new_zipfile_serialization": False}),
        "protocol4.bin": (tensors, {"pickle_protocol": 4}),
        "module.bin": (module.state_dict(), {}),  # with its _metadata
        "checkpoint.bin": ({"epoch": 3, "loss": 0.5, "state_dict": tensors, "done": None}, {}),
    }
    for name, (value, options) in files.items():
        torch.save(value, FOLDER / name, **options)
    expected = {}
    for name, (value, _) in files.items():
        held = value.get("state_dict", value)
        expected[name] = {key: {"dtype": DTYPES[tensor.dtype], "shape": list(tensor.shape),
                                "values": tensor.detach().double().flatten().tolist()}
                          for key, tensor in held.items()}
    (FOLDER / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")


if __name__ == "__main__":
    main()
