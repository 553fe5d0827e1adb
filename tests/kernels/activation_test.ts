import assert from "node:assert/strict";
import {
  type Activation,
  activationForward,
  activationKeepsZero,
  literal,
} from "../../kernels/activation.ts";
import {
  fusedLayerBackward,
  fusedLayerChunks,
  fusedLayerForward,
} from "../../kernels/fused_layer.ts";
import { assertClose, forEachTarget, runKernel } from "../_gpu.ts";
import { activationReference } from "../_reference.ts";
import { derivative } from "../_reference_quant.ts";
import { ACTIVATIONS, nameOf } from "./_activations.ts";

/** Off the kinks of every activation; 6 is where the reference of gelu ends. */
const MODERATE = Float64Array.from({ length: 118 }, (_, i) => Math.fround(-5.93 + i * 0.1003));
const LARGE = [-1e30, -1e4, -100, -20, 20, 100, 1e4, 1e30];

for (const activation of ACTIVATIONS) {
  forEachTarget(`activationForward() ${nameOf(activation)} and its derivative`, async (device) => {
    const shape = [2, 63]; // with a padded channel
    const x = Float64Array.from([...MODERATE, ...LARGE]);
    const spec = { rows: 2, channels: 63, batchNorm: false, residual: false, activation } as const;
    const inputs = { x: { shape, data: x } };
    const { y } = await runKernel(device, fusedLayerForward(spec, device.target), inputs, {
      y: shape,
    });
    // the polynomial of gelu is good to 1.5e-7 of x; the rest is exp in float32, at most 2^-21 relative
    const forward = { rtol: 2e-6, atol: 2e-6 };
    const moderate = MODERATE.map((value) => activationReference(activation, value));
    assertClose(y!.slice(0, MODERATE.length), moderate, forward, "y");
    assertClose(
      y!.slice(MODERATE.length),
      LARGE.map((v) => limit(activation, v)),
      forward,
      "large",
    );

    const { dz } = await runKernel(
      device,
      fusedLayerBackward(spec, device.target),
      { ...inputs, dy: { shape, data: x.map(() => 1) } },
      { dz: shape, partials: [fusedLayerChunks(spec, device.target) * 3, 63] },
    );
    const slopes = MODERATE.map((value) =>
      derivative((moved) => activationReference(activation, moved), value)
    );
    // differences over 1e-5 are good to 1e-10; the derivatives are products of two or three float32 functions
    const backward = { rtol: 1e-5, atol: 3e-6 };
    assertClose(dz!.slice(0, MODERATE.length), slopes, backward, "derivative");
    const far = LARGE.map((value) => limit(activation, value, 1));
    assertClose(dz!.slice(MODERATE.length), far, backward, "derivative, large");
  });
}

Deno.test("activationKeepsZero() says whether 0 stays 0", () => {
  for (const activation of ACTIVATIONS) {
    const stays = activationReference(activation, 0) === 0;
    assert.equal(activationKeepsZero(activation), stays, nameOf(activation));
  }
  assert.equal(activationKeepsZero({ kind: "clip", min: 0.5, max: 1 }), false);
  assert.equal(activationKeepsZero({ kind: "hardSigmoid", alpha: 0.2, beta: -1 }), true);
});

Deno.test("activationForward() may be given a sum", () => {
  for (const activation of ACTIVATIONS) {
    const text = activationForward(activation, "(a + b)");
    assert(!text.replaceAll("(a + b)", "").includes("a + b"), nameOf(activation));
  }
});

Deno.test("literal() writes float32 numbers that WGSL reads as floats", () => {
  for (const value of [0, 1, -3, 0.1, 1e-7, -2.5e30, 2 ** -149]) {
    const text = literal(value);
    assert.equal(Number(text), Math.fround(value));
    assert.match(text, /[.e]/);
  }
  assert(Number.isFinite(Math.fround(Number(literal(Infinity)))));
});

/** Value or slope far from 0, where the reference's series do not reach. */
function limit(activation: Activation, x: number, order = 0): number {
  const above = x > 0;
  switch (activation.kind) {
    case "sigmoid":
    case "hardSigmoid":
      return order === 0 && above
        ? 1
        : order === 0 && activation.kind === "sigmoid"
        ? 1 / (1 + Math.exp(-x))
        : 0;
    case "tanh":
      return order === 0 ? Math.sign(x) : 0;
    case "clip":
      return order === 0
        ? Math.min(Math.max(x, activation.min), activation.max)
        : insideOf(x, activation);
    case "leakyRelu":
      return above ? (order === 0 ? x : 1) : activation.alpha * (order === 0 ? x : 1);
    default: // x above, 0 below; silu at -20 still is -4e-8
      return above ? (order === 0 ? x : 1) : 0;
  }
}

function insideOf(x: number, { min, max }: { min: number; max: number }): number {
  return x > min && x < max ? 1 : 0;
}
