#!/usr/bin/env python3
"""PyTorch as a peer. `peer.py modes` prints the modes it has here, `peer.py MODE JOB` does a job in one of them."""
import json
import sys
import warnings

# Notices of libraries would stand between the table's lines.
warnings.filterwarnings("ignore")

import torch

from layerwise import distill_blocks
from mode import modes
from products import run_products
from protocol import attempt, say
from recipe import run_recipe
from small_cnn import run_small_cnn
from training import infer, infer_int8, train, train_qat


def main(arguments):
    if arguments == ["modes"]:
        print(json.dumps([mode.name for mode in modes()]))
        return
    name, file = arguments
    mode = next(mode for mode in modes() if mode.name == name)
    with open(file, encoding="utf-8") as opened:
        job = json.load(opened)
    mode.prepare(job["threads"])
    where = f"CPU, {job['threads']} threads" if mode.device == "cpu" else name.replace("cuda", "CUDA")
    say(peer=f"PyTorch {torch.__version__} {where}")
    run_products(job, mode)
    run_small_cnn(job, mode)
    run_resnet20(job, mode)


def run_resnet20(job, mode):
    """Measures what the job asks for; what PyTorch may fail to capture comes last."""
    cases = job.get("resnet20")
    if cases is None:
        return
    if "training" in cases:
        attempt(cases["training"]["case"], lambda: train(job, mode))
    if "inference" in cases:
        attempt(cases["inference"]["float"], lambda: infer(job, mode))
        attempt(cases["inference"]["int8"], lambda: infer_int8(job, mode))
    for recipe in cases["recipes"]:
        attempt(recipe["case"], lambda: run_recipe(job, mode, recipe))
    if "qat" in cases:
        attempt(cases["qat"]["case"], lambda: train_qat(job, mode))
    if "layerwise" in cases:
        attempt(cases["layerwise"]["case"], lambda: distill_blocks(job, mode))


if __name__ == "__main__":
    main(sys.argv[1:])
