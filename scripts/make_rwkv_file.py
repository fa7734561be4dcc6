#!/usr/bin/env python3
"""Makes a .pth file with the names of RWKV-7's authors, as torch.save writes it (an archive with a
pickle of protocol 2), of a checkpoint directory of flash-linear-attention in f32.

    venv/bin/pip install numpy safetensors
    venv/bin/python scripts/make_rwkv_file.py tests/model/golden/rwkv7 tests/model/golden/rwkv7.pth

PyTorch is not needed: the pickle names its functions and types, and nothing is called.
"""

import collections
import io
import pathlib
import pickle
import sys
import types
import zipfile

from safetensors.numpy import load_file


def stand_in(module, name):
    """A type that a pickle names as module.name."""
    kind = type(name, (), {"__module__": module, "__qualname__": name})
    setattr(sys.modules[module], name, kind)
    return kind


for module in ("torch", "torch._utils"):
    sys.modules[module] = types.ModuleType(module)
FLOAT_STORAGE = stand_in("torch", "FloatStorage")
REBUILD = stand_in("torch._utils", "_rebuild_tensor_v2")


class Storage:
    def __init__(self, key, count):
        self.key, self.count = key, count


class Tensor:
    def __init__(self, storage, shape):
        self.storage, self.shape = storage, shape

    def __reduce__(self):
        strides, stride = [], 1
        for size in reversed(self.shape):
            strides.insert(0, stride)
            stride *= size
        return REBUILD, (self.storage, 0, tuple(self.shape), tuple(strides), False,
                         collections.OrderedDict())


class Pickler(pickle.Pickler):
    def persistent_id(self, thing):
        if not isinstance(thing, Storage):
            return None
        return "storage", FLOAT_STORAGE, thing.key, "cpu", thing.count


def renamed(tensors):
    """Tensors under the authors' names, in their shapes."""
    parts = {"r_proj.weight": "receptance.weight", "k_proj.weight": "key.weight",
             "v_proj.weight": "value.weight", "o_proj.weight": "output.weight",
             "g_norm.weight": "ln_x.weight", "g_norm.bias": "ln_x.bias"}
    for letter in "wavg":
        for ours, number in (("0.weight", 1), ("2.weight", 2), ("2.bias", 0)):
            parts[f"{letter}_lora.lora.{ours}"] = f"{letter}{number}"
    tops = {"model.embeddings.weight": "emb.weight", "lm_head.weight": "head.weight",
            "model.norm.weight": "ln_out.weight", "model.norm.bias": "ln_out.bias"}
    for name, values in tensors.items():
        if name in tops:
            yield tops[name], values
            continue
        layer, part = name.removeprefix("model.layers.").split(".", 1)
        kind, _, last = part.partition(".")
        norms = {"pre_norm": "ln0", "attn_norm": "ln1", "ffn_norm": "ln2"}
        if kind in norms:
            yield f"blocks.{layer}.{norms[kind]}.{last}", values
            continue
        last = parts.get(last, last)
        if "lora" in part and part.endswith("weight"):
            values = values.T  # these are multiplied from the right
        is_row = last[:2] in ("x_", "k_") or last in ("w0", "a0", "v0")
        name = f"blocks.{layer}.{'att' if kind == 'attn' else 'ffn'}.{last}"
        yield name, values.reshape(1, 1, -1) if is_row else values
    # The first layer has these, and never uses them.
    width = tensors["model.embeddings.weight"].shape[1]
    rank = tensors["model.layers.1.attn.v_lora.lora.0.weight"].shape[0]
    some = tensors["model.embeddings.weight"].reshape(-1)
    yield "blocks.0.att.v0", some[:width].reshape(1, 1, width)
    yield "blocks.0.att.v1", some[:width * rank].reshape(width, rank)
    yield "blocks.0.att.v2", some[:width * rank].reshape(rank, width)


def write(tensors, path):
    state, numbers = {}, []
    for name, values in renamed(tensors):
        state[name] = Tensor(Storage(str(len(numbers)), values.size), list(values.shape))
        numbers.append(values.astype("<f4").tobytes())
    data = io.BytesIO()
    Pickler(data, 2).dump(state)
    files = {"data.pkl": data.getvalue(), "byteorder": b"little"}
    files |= {f"data/{i}": part for i, part in enumerate(numbers)}
    files["version"] = b"3\n"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, part in files.items():
            # Of no time, so that the file is the same whenever this runs.
            archive.writestr(zipfile.ZipInfo(f"{path.stem}/{name}"), part)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    write(load_file(pathlib.Path(sys.argv[1]) / "model.safetensors"), pathlib.Path(sys.argv[2]))
