// Elementwise kernels against float64, with every kind of broadcasting; gradients against finite differences.
import assert from "node:assert/strict";
import type { Activation } from "../../kernels/activation.ts";
import { broadcastShape } from "../../kernels/broadcast.ts";
import {
  accumulate,
  activationLayerBackward,
  activationLayerForward,
  binaryBackward,
  binaryBackwardReads,
  binaryForward,
  type BinarySpec,
  copy,
  fill,
  scale,
  unaryBackward,
  unaryForward,
  type UnarySpec,
} from "../../kernels/elementwise.ts";
import { assertClose, forEachTarget, randomArray, runKernel, testDevice } from "../_gpu.ts";
import { activationReference, broadcastReference, numericGradient, sizeOf } from "../_reference.ts";

const SHAPES: readonly (readonly [readonly number[], readonly number[]])[] = [
  [[1], [1]],
  [[2, 3, 3, 5], [2, 3, 3, 5]],
  [[2, 3, 3, 5], [5]],
  [[7], [3, 7]],
  [[2, 3, 5], [1]],
  [[3, 2, 2, 5], [3, 1, 1, 5]], // gates of squeeze and excitation
  [[3, 2, 3, 5], [3, 2, 3, 1]],
  [[3, 2, 3, 5], [1, 2, 1, 5]],
  [[3, 1, 3, 4], [1, 2, 1, 4]], // both sides repeat
  [[70, 5], [5]], // several chunks
];

const BINARY: Readonly<Record<BinarySpec["operator"], (a: number, b: number) => number>> = {
  add: (a, b) => a + b,
  sub: (a, b) => a - b,
  mul: (a, b) => a * b,
  div: (a, b) => a / b,
};
const OPERATORS = ["add", "sub", "mul", "div"] as const;

/** Numbers away from zero, to divide by and to take logarithms of. */
function positive(seed: number, shape: readonly number[]) {
  const data = randomArray(seed, sizeOf(shape)).map((v) => Math.fround(0.5 + Math.abs(v)));
  return { shape, data };
}

function random(seed: number, shape: readonly number[]) {
  return { shape, data: randomArray(seed, sizeOf(shape)) };
}

function reference({ operator, a, b }: BinarySpec, x: Float64Array, y: Float64Array): Float64Array {
  const shape = broadcastShape(a, b);
  const right = broadcastReference(y, b, shape);
  return broadcastReference(x, a, shape).map((v, i) => BINARY[operator](v, right[i]!));
}

forEachTarget("binaryForward() broadcasts channels-last shapes", async (device) => {
  for (const [a, b] of SHAPES) {
    for (const operator of OPERATORS) {
      for (const spec of [{ operator, a, b }, { operator, a: b, b: a }]) {
        const inputs = { a: random(1, spec.a), b: positive(2, spec.b) };
        const shape = broadcastShape(a, b);
        const { y } = await runKernel(device, binaryForward(spec), inputs, { y: shape });
        const expected = reference(spec, inputs.a.data, inputs.b.data);
        // One float32 operation.
        assertClose(y!, expected, { rtol: 2e-7, atol: 1e-12 }, `${operator} [${a}] [${b}]`);
      }
    }
  }
});

forEachTarget("binaryBackward() sums over repeated axes", async (device) => {
  for (const [a, b] of SHAPES) {
    for (const operator of OPERATORS) {
      const spec = { operator, a, b };
      const inputs = { a: random(1, a), b: positive(2, b) };
      const dy = random(3, broadcastShape(a, b));
      for (const side of ["a", "b"] as const) {
        const reads = binaryBackwardReads(operator, side);
        const bound = Object.fromEntries(reads.map((name) => [name, inputs[name]]));
        const kernels = binaryBackward(spec, side, device.target);
        const output = `d${side}`;
        const result = await runKernel(device, kernels, { dy, ...bound }, {
          [output]: inputs[side].shape,
        });
        const numeric = numericGradient(
          (v) =>
            side === "a" ? reference(spec, v, inputs.b.data) : reference(spec, inputs.a.data, v),
          inputs[side].data,
          dy.data,
        );
        // Sums of up to 70 float32 terms of size 1 (up to 16 where it divides by b^2).
        const label = `${operator} [${a}] [${b}] to ${side}`;
        assertClose(result[output]!, numeric, { rtol: 1e-5, atol: 3e-5 }, label);
      }
    }
  }
});

Deno.test("broadcastShape() rejects sizes that differ", () => {
  assert.throws(() => broadcastShape([2, 3], [2, 4]), /sizes 3 and 4 differ/);
});

const UNARY: Readonly<Record<UnarySpec["operator"], (x: number) => number>> = {
  neg: (x) => -x,
  abs: Math.abs,
  exp: Math.exp,
  log: Math.log,
  sqrt: Math.sqrt,
  square: (x) => x * x,
  reciprocal: (x) => 1 / x,
};

forEachTarget("unaryForward(), unaryBackward() agree with float64", async (device) => {
  for (const [name, f] of Object.entries(UNARY)) {
    const operator = name as UnarySpec["operator"]; // the keys of UNARY
    for (const shape of [[1], [3, 5], [33, 17], [70, 8]]) {
      const x = positive(1, shape), dy = random(2, shape);
      const { y } = await runKernel(device, unaryForward({ operator, shape }), { x }, { y: shape });
      // lavapipe's log is good to 1e-6 absolute near 1.
      assertClose(y!, x.data.map(f), { rtol: 3e-6, atol: 2e-6 }, `${name} ${shape}`);
      const backward = unaryBackward({ operator, shape });
      const { dx } = await runKernel(device, backward, { x, dy }, { dx: shape });
      const numeric = numericGradient((v) => v.map(f), x.data, dy.data);
      assertClose(dx!, numeric, { rtol: 3e-6, atol: 2e-6 }, `${name} ${shape} backward`);
    }
  }
});

const ACTIVATIONS: readonly Activation[] = [
  { kind: "relu" },
  { kind: "clip", min: 0, max: 1 },
  { kind: "clip", min: 0.5, max: 1 },
  { kind: "leakyRelu", alpha: 0.1 },
  { kind: "sigmoid" },
  { kind: "hardSigmoid", alpha: 0.2, beta: 0.5 },
  { kind: "hardSwish" },
  { kind: "silu" },
  { kind: "tanh" },
  { kind: "gelu" },
];

forEachTarget("activationLayerForward(), activationLayerBackward() agree", async (device) => {
  const shape = [35, 5];
  for (const activation of ACTIVATIONS) {
    const x = { shape, data: randomArray(1, 175, { scale: 2 }) }, dy = random(2, shape);
    const label = activation.kind;
    const f = (v: Float64Array) => v.map((one) => activationReference(activation, one));
    const forward = activationLayerForward({ activation, shape });
    const { y } = await runKernel(device, forward, { x }, { y: shape });
    // The polynomial of gelu is good to 1.5e-7; |x| reaches 7.
    assertClose(y!, f(x.data), { rtol: 5e-6, atol: 3e-6 }, label);
    const backward = activationLayerBackward({ activation, shape });
    const { dx } = await runKernel(device, backward, { x, dy }, { dx: shape });
    assertClose(dx!, numericGradient(f, x.data, dy.data), { rtol: 5e-6, atol: 5e-6 }, label);
  }
});

forEachTarget("scale(), fill(), copy() write every element", async (device) => {
  // At the last shape an invocation takes four vec4, and the last workgroup is not full.
  for (const shape of [[1], [3, 5], [33, 17], [263, 253]]) {
    const x = random(1, shape);
    const scaled = await runKernel(device, scale(shape, -0.3), { x }, { y: shape });
    const factor = Math.fround(-0.3);
    assertClose(scaled.y!, x.data.map((v) => Math.fround(v * factor)), { rtol: 0, atol: 0 }, "");
    const filled = await runKernel(device, fill(shape, 2.5), {}, { y: shape });
    assertClose(filled.y!, x.data.map(() => 2.5), { rtol: 0, atol: 0 }, "fill");
    const copied = await runKernel(device, copy(shape), { x }, { y: shape });
    assertClose(copied.y!, x.data, { rtol: 0, atol: 0 }, "copy");
  }
});

Deno.test("accumulate() adds to what is there", async () => {
  const device = await testDevice();
  const x = device.fromArray([2, 3], [1, 2, 3, 4, 5, 6]);
  const y = device.fromArray([2, 3], [10, 20, 30, 40, 50, 60]);
  device.run(accumulate([2, 3]), { x, y });
  device.run(accumulate([2, 3]), { x, y });
  assert.deepEqual(Array.from(await device.read(y)), [12, 24, 36, 48, 60, 72]);
});
