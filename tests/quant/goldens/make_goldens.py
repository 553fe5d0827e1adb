#!/usr/bin/env python3
"""Goldens of tests/quant, from NumPy: codes in float32 arithmetic and the exhaustive weight-scale search.

  python3 make_goldens.py && deno fmt *.json    writes quantize.json and weight_search.json beside this file (NumPy 2.4.6)
"""
import json
import os

import numpy as np

HERE = os.path.dirname(os.path.abspath(__file__))
rng = np.random.RandomState(7)


def dump(name, value):
    with open(os.path.join(HERE, name), "w") as file:
        json.dump(value, file, separators=(",", ":"))
        file.write("\n")


def quantize(x, scale, zero_point, low, high):
    """ONNX QuantizeLinear: float32 division, rint, zero point, saturation."""
    codes = np.rint(x / np.float32(scale)).astype(np.float64) + zero_point
    return np.clip(codes, low, high).astype(np.int64)


def quantize_cases():
    cases = []
    for scale, zero_point, low, high in [
        (0.1, 0, -128, 127), (0.0234375, 128, 0, 255), (1 / 3, 3, 0, 15), (0.7, 0, -1, 2), (1e-7, 0, -8, 7),
    ]:
        scale = np.float32(scale)
        halves = (np.arange(-20, 20) + 0.5).astype(np.float32) * scale
        x = np.concatenate([halves, np.nextafter(halves, np.float32(np.inf)),
                            rng.standard_normal(40).astype(np.float32) * scale * 6]).astype(np.float32)
        codes = quantize(x, scale, zero_point, low, high)
        values = (codes - zero_point).astype(np.float32) * scale
        cases.append({"scale": float(scale), "zeroPoint": zero_point, "quantMin": low, "quantMax": high,
                      "x": x.astype(float).tolist(), "codes": codes.tolist(), "values": values.astype(float).tolist()})
    return cases


def search(w, bits, grid, p=2.4, n=80):
    """Every scale on every grid in float64; returns the least error, its scale and lowest code."""
    levels = 2 ** bits
    offset_grid = grid == "offset" and bits <= 4
    offsets = list(range(levels)) if offset_grid else [levels // 2]
    if grid == "flip" and bits < 8:
        offsets = [levels // 2, levels // 2 - 1]
    if offset_grid:
        widest = (max(w.max(), 0) - min(w.min(), 0)) / (levels - 1)
    else:
        widest = np.abs(w).max() / (levels / 2 - 0.5)
    best = None
    for offset in offsets:
        for k in range(1, n + 1):
            scale = np.float64(np.float32(widest * 1.1 * k / n))
            q = np.clip(np.rint(w / scale), -offset, levels - 1 - offset) * scale
            error = (np.abs(q - w) ** p).sum()
            if best is None or error < best[0]:
                best = (error, scale, -offset)
    return best


def search_cases():
    w = (rng.standard_normal((6, 27)) * np.array([1, 0.01, 30, 1, 1, 1])[:, None]).astype(np.float32)
    w[3] = np.abs(w[3])          # one-sided
    w[4] = w[4] ** 3             # heavy tails
    w[5, 0] = 9                  # an outlier
    w = w.astype(np.float32)
    results = []
    for bits in (2, 3, 4, 5, 8):
        for grid in ("symmetric", "flip", "offset"):
            found = [search(row.astype(np.float64), bits, grid) for row in w]
            results.append({"bits": bits, "grid": grid, "error": [float(f[0]) for f in found],
                            "scale": [float(f[1]) for f in found], "quantMin": [int(f[2]) for f in found]})
    return {"shape": [6, 3, 3, 3], "weight": w.astype(float).ravel().tolist(), "results": results}


dump("quantize.json", quantize_cases())
dump("weight_search.json", search_cases())
