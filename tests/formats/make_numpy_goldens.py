# Makes numpy_goldens.json: .npy and .npz files as NumPy writes them, with the values they hold.
# Made with NumPy 1.24.2; run: python3 make_numpy_goldens.py > numpy_goldens.json
import base64, io, json
import numpy as np

def text(data):
    return base64.b64encode(data).decode()

def npy(array, version=None):
    stream = io.BytesIO()
    np.lib.format.write_array(stream, array, version=version)
    return stream.getvalue()

def entry(array, version=None):
    return {
        "file": text(npy(array, version)),
        "shape": list(array.shape),
        "values": [float(value) for value in array.flatten().tolist()],
    }

values = np.arange(24).reshape(2, 3, 4)
goldens = {}
for dtype in ["<f2", "<f4", "<f8", "|i1", "|u1", "<i2", "<u2", "<i4", "<u4", "<i8"]:
    goldens[f"C {dtype}"] = entry((values - 5 if dtype[1] != "u" else values).astype(dtype))
for dtype in [">f2", ">f4", ">f8", ">i2", ">u4", ">i8"]:
    goldens[f"big-endian {dtype}"] = entry((values * 257 % 30011).astype(dtype))
goldens["bool"] = entry(values % 3 == 0)
goldens["fortran"] = entry(np.asfortranarray(values.astype("<f4")))
goldens["fortran big-endian"] = entry(np.asfortranarray(values.astype(">i4")))
goldens["scalar"] = entry(np.array(2.5, "<f4"))
goldens["empty"] = entry(np.zeros((0, 3), "<f4"))
goldens["one axis"] = entry(np.arange(5, dtype="<i4"))
goldens["version 2"] = entry(values.astype("<f4"), (2, 0))
goldens["version 3"] = entry(values.astype("<f4"), (3, 0))
half = np.array([0, 1, -2, 65504, 2.0**-24, 2.0**-14, 0.333], "<f2")
goldens["half"] = entry(half)

arrays = {"w": values.astype("<f4"), "b": np.arange(4, dtype="<i8")}
archives = {}
for name, save in [("stored", np.savez), ("deflated", np.savez_compressed)]:
    stream = io.BytesIO()
    save(stream, **arrays)
    archives[name] = text(stream.getvalue())

pickled = io.BytesIO()
np.save(pickled, np.array([{}, 1], object), allow_pickle=True)
structured = npy(np.zeros(2, [("a", "<f4"), ("b", "<i4")]))
refused = {
    "objects": text(pickled.getvalue()),
    "structured": text(structured),
    "text": text(npy(np.array(["a", "b"]))),
    "complex": text(npy(np.zeros(2, "<c8"))),
    "uint64": text(npy(np.zeros(2, "<u8"))),
}
print(json.dumps({"arrays": goldens, "archives": archives, "refused": refused}, indent=1))
