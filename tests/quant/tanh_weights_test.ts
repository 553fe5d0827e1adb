import assert from "node:assert/strict";
import { STATE_SIZE } from "../../kernels/schedule.ts";
import { ndArray } from "../../src/core/nd_array.ts";
import { Plan } from "../../src/gpu/plan.ts";
import { convLayout } from "../../src/graph/weight_layout.ts";
import { dequantize, freezeWeight } from "../../src/quant/freeze.ts";
import { roundToOdd } from "../../src/quant/rounding.ts";
import { type LayerState, Student, weightsOnGrid } from "../../src/quant/student.ts";
import { onTanhGrid, tanhParameters, tanhWeights } from "../../src/quant/tanh_weights.ts";
import { TrainingParameters } from "../../src/quant/training_parameters.ts";
import { assertClose, forEachTarget, randomArray } from "../_gpu.ts";

Deno.test("roundToOdd() takes the nearest odd integer", () => {
  assert.deepEqual([-3.1, -2.1, -1.9, -0.1, 0.1, 1.9, 2.1, 15].map(roundToOdd), [
    -3,
    -3,
    -1,
    -1,
    1,
    1,
    3,
    15,
  ]);
});

for (const bits of [2, 4, 7, 8]) {
  const top = bits < 8 ? 2 ** bits - 1 : 127;

  Deno.test(`onTanhGrid() at ${bits} bits ends at the largest weight, with the least squares`, () => {
    const before = makeLayer(bits);
    const layer = onTanhGrid(before);
    assert.equal(layer.oddCodes ?? false, bits < 8);
    const again = onTanhGrid(layer);
    assertClose(again.latent.data, layer.latent.data, { rtol: 1e-6, atol: 0 }, "once is enough");
    const errorAt = (c: number, height: number) => {
      const weights = channel(before, c), largest = Math.max(...weights.map(Math.abs));
      return weights.reduce((sum, w) => {
        const v = w / largest * top, code = bits < 8 ? roundToOdd(v) : v;
        return sum + (code * height - w) ** 2;
      }, 0);
    };
    layer.logScale.forEach((log, c) => {
      const scale = Math.exp(log);
      assertClose(
        [Math.max(...channel(layer, c).map(Math.abs))],
        [scale * top],
        { rtol: 1e-6, atol: 0 }, // float32 logarithm
        "largest",
      );
      for (const factor of [0.98, 1.02]) {
        assert.ok(errorAt(c, scale) < errorAt(c, scale * factor), `channel ${c} times ${factor}`);
      }
    });
  });

  Deno.test(`freezeWeight() at ${bits} bits stores DoReFa's levels in int8, negative ones mirrored`, () => {
    const layer = onTanhGrid(makeLayer(bits));
    const { latent, axis, logScale, quantMin, quantMax, oddCodes = false } = layer;
    const qparams = {
      scale: logScale.map(Math.exp),
      zeroPoint: new Int32Array(3),
      quantMin,
      quantMax,
    };
    const multiplier = Float64Array.of(1, -2, 0.5);
    const { values, scale } = freezeWeight({ latent, qparams, axis, bits, oddCodes, multiplier });
    const codes = Array.from(values.data);
    assert.ok(codes.every((code) => Math.abs(code) <= top && (bits === 8 || code % 2 !== 0)));
    assert.equal(new Set(codes.map(Math.abs)).has(top), true);
    assert.deepEqual(
      [...scale],
      [...qparams.scale].map((s, c) => Math.fround(s * Math.abs(multiplier[c]!))),
    );
    const plain = weightsOnGrid(layer).data;
    const folded = dequantize({ values, scale, zeroPoint: new Int32Array(3), axis, bits }).data;
    const inner = plain.length / 3;
    const expected = plain.map((w, i) => w * multiplier[Math.floor(i / inner)]!);
    assertClose(folded, expected, { rtol: 1e-6, atol: 0 }, "values"); // float32 products
  });
}

Deno.test("freezeWeight() with odd codes keeps a weight of 0", () => {
  const latent = ndArray("float32", [1, 3], Float32Array.of(0, 0.1, -3));
  const qparams = {
    scale: Float32Array.of(1),
    zeroPoint: new Int32Array(1),
    quantMin: Int32Array.of(-3),
    quantMax: Int32Array.of(3),
  };
  const { values } = freezeWeight({ latent, qparams, axis: 0, bits: 2, oddCodes: true });
  assert.deepEqual([...values.data], [0, 1, -3]);
});

Deno.test("tanhWeights() undoes tanhParameters()", () => {
  const layer = onTanhGrid(makeLayer(4));
  const parameters = tanhParameters(layer);
  const { data } = layer.latent;
  assertClose(tanhWeights(layer, parameters), data, { rtol: 1e-5, atol: 1e-7 }, "weights");
  assert.ok(parameters.every((u) => Math.abs(u) <= 1.0001), "where tanh is steep");
});

forEachTarget("TrainingParameters quantizes as DoReFa what it freezes", async (device) => {
  for (const bits of [3, 8]) {
    const student = new Student([makeLayer(bits)], []);
    const state = device.fromArray([STATE_SIZE], [
      0,
      1,
      0.1,
      0.01,
      ...Array(STATE_SIZE - 4).fill(0),
    ]);
    const rates = { weights: 0.02, weightScales: 1, activationScales: 1, biases: 0 };
    let trained = new Float32Array();
    {
      using parameters = new TrainingParameters(device, student, ["conv"], new Map(), state, {
        rates,
        weightQuantizer: "dorefa",
        batchNormMomentum: 0.1,
        roundingRegularizer: 0,
        beta1: 0.9,
        beta2: 0.99,
      });
      using plan = new Plan(device);
      parameters.recordForward(plan);
      parameters.recordStep(plan);
      const { value, gradient } = parameters.parameter("conv.weight")!;
      device.upload(gradient!, randomArray(8, 54));
      plan.replay();
      const start = await device.read(value);
      const put = weightsOnGrid(onTanhGrid(makeLayer(bits))).data;
      compare(start, put, `${bits} bits at the start`);
      for (let i = 0; i < 10; i++) plan.replay();
      plan.replay(); // the last step of the optimizer is not in `value`
      await parameters.store();
      using after = new Plan(device);
      parameters.recordForward(after);
      after.replay();
      trained = await device.read(value) as Float32Array<ArrayBuffer>;
      assert.ok(trained.filter((w, i) => w !== start[i]).length > 10, "it trains");
    }
    compare(weightsOnGrid(student.layers.get("conv")!).data, trained, `${bits} bits, frozen`);
    device.release(state);
  }
});

/** Equal but for weights so near to the middle of two levels that float32 decides. */
function compare(actual: Float32Array, expected: Float32Array, label: string): void {
  const other = actual.filter((w, i) => Math.abs(w - expected[i]!) > 1e-5 * Math.abs(expected[i]!));
  assert.ok(other.length <= 1, `${label}: ${other.length} of ${actual.length} differ`);
}

function channel({ latent }: LayerState, c: number): number[] {
  const inner = latent.data.length / 3;
  return Array.from(latent.data.subarray(c * inner, (c + 1) * inner));
}

function makeLayer(bits: number): LayerState {
  return {
    node: "conv",
    weight: "conv.weight",
    input: "x",
    latent: ndArray(
      "float32",
      [3, 3, 3, 2],
      Float32Array.from(randomArray(7, 54, { scale: 0.3 })),
    ),
    layout: convLayout([3, 2, 3, 3], 1),
    axis: 0,
    bits,
    logScale: Float32Array.of(-2, -2.5, -1.5),
    quantMin: new Int32Array(3).fill(-(2 ** (bits - 1))),
    quantMax: new Int32Array(3).fill(2 ** (bits - 1) - 1),
  };
}
