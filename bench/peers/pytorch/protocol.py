"""How PyTorch is asked and how it answers: protocol.ts and the inputs of cases.ts in Python."""
import json
import math
import statistics
import time

import numpy

# A sample lasts at least so long, as for every peer.
SAMPLE_SECONDS = 0.2
MOST_RUNS = 4096


def say(**line):
    """Prints a line of JSON."""
    print(json.dumps(line), flush=True)


def say_row(case, metric, unit, values, note=None):
    """Says a figure; the best of rates is the largest, of everything else the smallest."""
    better = max if unit.endswith("/s") or unit == "%" else min
    row = {
        "case": case,
        "metric": metric,
        "unit": unit,
        "median": statistics.median(values),
        "best": better(values),
        "samples": len(values),
    }
    say(row=row if note is None else {**row, "note": note})


def attempt(case, work):
    """Does one case; an error becomes the reason why there is no figure for it."""
    try:
        work()
    except Exception as error:
        text = str(error).strip().splitlines()
        say(case=case, missing=f"{type(error).__name__}: {text[0] if text else ''}")


def measure(case, samples, run, finish, operations=None):
    """Times work that may be queued many times before anyone waits for it."""
    times = queued_times(samples, run, finish)
    say_row(case, "time", "ms", times)
    if operations is not None:
        say_row(case, "rate", "GFLOP/s", [operations / ms / 1e6 for ms in times])


def queued_times(samples, run, finish):
    """Milliseconds of one run, from samples of as many runs as fill the time of a sample."""

    def timed(runs):
        start = time.perf_counter()
        for _ in range(runs):
            run()
        finish()
        return time.perf_counter() - start

    timed(3)
    runs = 1
    seconds = timed(runs)
    while seconds < SAMPLE_SECONDS and runs < MOST_RUNS:
        runs = min(MOST_RUNS, math.ceil(1.2 * runs * SAMPLE_SECONDS / seconds))
        seconds = timed(runs)
    return [1e3 * timed(runs) / runs for _ in range(samples)]


def inputs(length, seed, scale=1.0):
    """Numbers that look random and are the same in every language: see cases.ts."""
    hashes = numpy.arange(length, dtype=numpy.uint32)
    hashes += numpy.uint32(seed * 0x9E3779B9 & 0xFFFFFFFF)
    hashes ^= hashes >> numpy.uint32(16)
    hashes *= numpy.uint32(0x85EBCA6B)
    hashes ^= hashes >> numpy.uint32(13)
    hashes *= numpy.uint32(0xC2B2AE35)
    hashes ^= hashes >> numpy.uint32(16)
    signed = hashes.view(numpy.int32).astype(numpy.float64)
    return (scale * (signed / 2**31)).astype(numpy.float32)


def check_close(name, found, expected, tolerance):
    """Raises ValueError where two tensors or lists of numbers differ by more than the tolerance."""
    found = numpy.asarray(found, dtype=numpy.float64).ravel()
    expected = numpy.asarray(expected, dtype=numpy.float64).ravel()
    if found.shape != expected.shape:
        raise ValueError(f"{name} has {found.size} elements, expected {expected.size}")
    errors = numpy.abs(found - expected)
    if not numpy.all(errors <= tolerance):
        worst = int(numpy.argmax(numpy.nan_to_num(errors, nan=numpy.inf)))
        raise ValueError(f"{name}[{worst}] is {found[worst]}, expected {expected[worst]} within {tolerance}")
