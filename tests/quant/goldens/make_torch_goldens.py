#!/usr/bin/env python3
"""Goldens of tests/quant/torch_observers_test.ts, from PyTorch's observers and fake quantization.

  python3 make_torch_goldens.py && deno fmt torch_observers.json    writes it beside this file (PyTorch 1.13.0)

The values of the moving average are multiples of 1/64 and its constant is 1/8, so that float32 and float64 agree exactly.
"""
import json
import os
import warnings

import torch
from torch.ao.quantization import observer as ob

warnings.filterwarnings("ignore")
HERE = os.path.dirname(os.path.abspath(__file__))
torch.manual_seed(7)
BATCHES, SIZE = 3, 40
AVERAGING = 0.125


def dyadic(x):
    return torch.round(x * 64) / 64


def batches_of(kind):
    x = torch.randn(BATCHES, SIZE)
    if kind == "relu":
        x = torch.relu(x) ** 2
    if kind == "negative":
        x = -torch.relu(x) - 0.25
    if kind == "skewed":
        x = torch.where(x > 0, 3 * x, x)
    if kind == "constant":
        x = torch.full_like(x, 1.5)
    if kind == "zeros":
        x = torch.zeros_like(x)
    return dyadic(x)


def numbers(x):
    return [float(v) for v in x.reshape(-1)]


def range_and_qparams(o, batches):
    for b in batches:
        o(b)
    scale, zero_point = o.calculate_qparams()
    return {"min": numbers(o.min_val), "max": numbers(o.max_val), "scale": numbers(scale),
            "zeroPoint": [int(z) for z in zero_point.reshape(-1)]}


def observer_cases():
    cases = []
    for kind in ("normal", "relu", "negative", "skewed", "constant", "zeros"):
        batches = batches_of(kind)
        case = {"kind": kind, "batches": [numbers(b) for b in batches], "bits": []}
        for bits in (2, 4, 8):
            top, half = 2 ** bits - 1, 2 ** (bits - 1) - 1
            affine = dict(dtype=torch.quint8, qscheme=torch.per_tensor_affine, quant_min=0, quant_max=top)
            # the narrow range: PyTorch's symmetric scale is max |x| / ((quant_max - quant_min) / 2)
            symmetric = dict(dtype=torch.qint8, qscheme=torch.per_tensor_symmetric, quant_min=-half, quant_max=half)
            case["bits"].append({
                "bits": bits,
                "minMax": range_and_qparams(ob.MinMaxObserver(**affine), batches),
                "minMaxSymmetric": range_and_qparams(ob.MinMaxObserver(**symmetric), batches),
                "movingAverage": range_and_qparams(
                    ob.MovingAverageMinMaxObserver(averaging_constant=AVERAGING, **affine), batches),
            })
        cases.append(case)
    return cases


def histogram_cases():
    """The range of HistogramObserver and the squared error of what fake quantization makes of it."""
    cases = []
    for kind in ("normal", "relu", "skewed"):
        x = torch.cat([torch.cat([b, b ** 3 / 4]) for b in batches_of(kind)])
        case = {"kind": kind, "x": numbers(x), "bits": []}
        for bits in (2, 4, 8):
            o = ob.HistogramObserver(bins=2048, dtype=torch.quint8, quant_min=0, quant_max=2 ** bits - 1)
            o(x)
            scale, zero_point = o.calculate_qparams()
            y = torch.fake_quantize_per_tensor_affine(x, float(scale), int(zero_point), 0, 2 ** bits - 1)
            case["bits"].append({"bits": bits, "scale": float(scale), "zeroPoint": int(zero_point),
                                 "error": float(((x - y).double() ** 2).sum())})
        cases.append(case)
    return cases


def channel_case():
    w = torch.randn(5, 2, 3, 3) * torch.tensor([1, 0.01, 30, 1, 1]).reshape(-1, 1, 1, 1)
    w[3] = w[3].abs()
    w[4] = 0
    result = {"shape": list(w.shape), "weight": numbers(w), "bits": []}
    for bits in (2, 4, 8):
        half = 2 ** (bits - 1) - 1
        o = ob.PerChannelMinMaxObserver(ch_axis=0, dtype=torch.qint8, qscheme=torch.per_channel_symmetric,
                                        quant_min=-half, quant_max=half)
        found = range_and_qparams(o, [w])
        y = torch.fake_quantize_per_channel_affine(
            w, torch.tensor(found["scale"]), torch.zeros(5, dtype=torch.int32), 0, -half, half)
        result["bits"].append({"bits": bits, **found, "values": numbers(y)})
    return result


def fake_quantize_cases():
    cases = []
    for scale, zero_point, low, high in [(0.125, 3, 0, 15), (0.0625, 128, 0, 255), (0.5, 0, -2, 1), (0.0371, 7, 0, 255)]:
        halves = (torch.arange(-12, 12) + 0.5) * scale
        x = torch.randn(30) * scale * 6
        # Ties only where x * (1 / scale), PyTorch's way, and x / scale are both exact.
        x = torch.cat([halves, x]) if scale in (0.125, 0.0625, 0.5) else x
        y = torch.fake_quantize_per_tensor_affine(x, scale, zero_point, low, high)
        cases.append({"scale": float(torch.tensor(scale)), "zeroPoint": zero_point, "quantMin": low,
                      "quantMax": high, "x": numbers(x), "values": numbers(y)})
    return cases


with open(os.path.join(HERE, "torch_observers.json"), "w") as file:
    json.dump({"averaging": AVERAGING, "observers": observer_cases(), "histograms": histogram_cases(),
               "perChannel": channel_case(), "fakeQuantize": fake_quantize_cases()}, file, separators=(",", ":"))
    file.write("\n")
