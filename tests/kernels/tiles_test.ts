// Every tile that the tuner may take, of both families, against float64; and how a table's names are read.
import assert from "node:assert/strict";
import {
  conv2dBackwardInput,
  conv2dBackwardWeight,
  conv2dForward,
  type Conv2dSpec,
} from "../../kernels/conv2d.ts";
import {
  depthwiseConv2dBackwardInput,
  depthwiseConv2dBackwardWeight,
  depthwiseConv2dForward,
} from "../../kernels/depthwise_conv2d.ts";
import { gemm, type GemmSpec } from "../../kernels/gemm.ts";
import type { KernelSequence, TileChoice } from "../../kernels/kernel.ts";
import { cheapestTiles, decideTile, tileName } from "../../kernels/tile_choice.ts";
import { Device } from "../../src/gpu/device.ts";
import { assertClose, forEachTarget, randomArray, runKernel, type TestArray } from "../_gpu.ts";
import { gemmReference } from "../_reference.ts";
import {
  convShapes,
  convSpec,
  depthwiseToGrouped,
  groupedToDepthwise,
  referenceBackwardInput,
  referenceBackwardWeight,
  referenceForward,
  sizeOf,
} from "../_reference_conv.ts";

/** float32 sums of `terms` products of normal numbers: a few ulps of the largest partial sum. */
function tolerance(terms: number): { rtol: number; atol: number } {
  return { rtol: 1e-5, atol: 2e-6 * Math.sqrt(terms) };
}

function choicesOf({ kernels }: KernelSequence): TileChoice[] {
  return kernels.flatMap(({ choice }) => choice ?? []);
}

/** Runs a sequence of one choice with each of its tiles. */
async function checkTiles(
  device: Device,
  sequence: KernelSequence,
  inputs: Readonly<Record<string, TestArray>>,
  expected: ArrayLike<number>,
  terms: number,
): Promise<void> {
  const [choice, ...others] = choicesOf(sequence);
  assert(choice !== undefined && others.length === 0);
  assert(choice.tiles.length >= 2 && choice.tiles.length <= 8, `${choice.tiles.length} tiles`);
  const output = Object.keys(choice.shapes).find((name) => !Object.hasOwn(inputs, name))!;
  for (const tile of choice.tiles) {
    const found = await runKernel(device, choice.build(tile), inputs, {
      [output]: choice.shapes[output]!,
    });
    assertClose(found[output]!, expected, tolerance(terms), `${choice.key}, ${tile}`);
  }
}

const SPECS: Readonly<Record<string, Conv2dSpec>> = {
  "prime sizes": convSpec({ batch: 3, size: [5, 11], channels: [10, 34] }),
  "one channel, stride 2": convSpec({ size: [9, 8], channels: [1, 16], stride: [2, 2] }),
  "pointwise": convSpec({ size: [7, 5], channels: [12, 13], kernel: [1, 1], pad: [0, 0, 0, 0] }),
};

for (const [name, spec] of Object.entries(SPECS)) {
  forEachTarget(`convolutions give the same sums with every tile: ${name}`, async (device) => {
    const { target } = device;
    const shapes = convShapes(spec);
    const x = { shape: shapes.x, data: randomArray(1, sizeOf(shapes.x)) };
    const w = { shape: shapes.w, data: randomArray(2, sizeOf(shapes.w)) };
    const dy = { shape: shapes.y, data: randomArray(3, sizeOf(shapes.y)) };
    const taps = spec.kernelHeight * spec.kernelWidth;
    const pixels = spec.batch * spec.outHeight * spec.outWidth;
    const y = referenceForward(spec, x.data, w.data);
    await checkTiles(device, conv2dForward(spec, {}, target), { x, w }, y, taps * spec.inChannels);
    const dw = referenceBackwardWeight(spec, x.data, dy.data);
    await checkTiles(device, conv2dBackwardWeight(spec, target), { x, dy }, dw, pixels);
    if (spec.strideHeight > 1) return; // its phases each write a part of dx
    const dx = referenceBackwardInput(spec, dy.data, w.data);
    const backwardInput = conv2dBackwardInput(spec, target);
    await checkTiles(device, backwardInput, { dy, w }, dx, taps * spec.outChannels);
  });
}

forEachTarget(
  "a strided input gradient is the same with other tiles in a table",
  async (device) => {
    const spec = convSpec({ size: [9, 11], channels: [12, 16], stride: [2, 2] });
    const shapes = convShapes(spec);
    const dy = { shape: shapes.y, data: randomArray(3, sizeOf(shapes.y)) };
    const w = { shape: shapes.w, data: randomArray(2, sizeOf(shapes.w)) };
    const plain = conv2dBackwardInput(spec, device.target);
    const choices = choicesOf(plain);
    assert.equal(choices.length, 4);
    const tiles = new Map(choices.map(({ key, tiles }) => [key, tiles.at(-1)!]));
    const tuned = conv2dBackwardInput(spec, { ...device.target, tiles });
    assert.notDeepEqual(
      tuned.kernels.map(({ code }) => code),
      plain.kernels.map(({ code }) => code),
    );
    const { dx } = await runKernel(device, tuned, { dy, w }, { dx: shapes.x });
    const expected = referenceBackwardInput(spec, dy.data, w.data);
    assertClose(dx!, expected, tolerance(9 * spec.outChannels), "dx");
  },
);

/** Depthwise shapes whose strips leave rests along both axes, and whose rows carry sums over one, two and more rows. */
const DEPTHWISE: Readonly<Record<string, Conv2dSpec>> = {
  "prime sizes": convSpec({ batch: 3, size: [11, 19], channels: [10, 10], group: 10 }),
  "stride 2": convSpec({
    batch: 2,
    size: [13, 23],
    channels: [5, 5],
    stride: [2, 2],
    group: 5,
  }),
  "stride 2, last row and column unread": convSpec({
    size: [14, 18],
    channels: [8, 8],
    stride: [2, 2],
    pad: [0, 0, 0, 0],
    group: 8,
  }),
  "stride 3 over 2 taps, stride 1 over 5": convSpec({
    size: [11, 13],
    channels: [4, 4],
    kernel: [2, 5],
    stride: [3, 1],
    pad: [0, 1, 0, 3],
    group: 4,
  }),
  "dilation 3 with stride 2": convSpec({
    size: [12, 17],
    channels: [7, 7],
    dilation: [3, 3],
    stride: [2, 2],
    pad: [3, 3, 3, 3],
    group: 7,
  }),
};

for (const subgroups of [true, false]) {
  for (const [name, spec] of Object.entries(DEPTHWISE)) {
    const lanes = subgroups ? "with" : "without";
    Deno.test(`depthwise kernels give the same sums with every tile: ${name}, ${lanes} subgroups`, async () => {
      using device = await Device.open({ family: "software", subgroups });
      const { target } = device;
      const { kernelHeight, kernelWidth, inChannels } = spec;
      const shapes = { ...convShapes(spec), w: [kernelHeight, kernelWidth, inChannels] };
      const x = { shape: shapes.x, data: randomArray(1, sizeOf(shapes.x)) };
      const w = { shape: shapes.w, data: randomArray(2, sizeOf(shapes.w)) };
      const dy = { shape: shapes.y, data: randomArray(3, sizeOf(shapes.y)) };
      const filters = depthwiseToGrouped(spec, w.data);
      const taps = kernelHeight * kernelWidth;
      const y = referenceForward(spec, x.data, filters);
      await checkTiles(device, depthwiseConv2dForward(spec, {}, target), { x, w }, y, taps);
      const dx = referenceBackwardInput(spec, dy.data, filters);
      await checkTiles(device, depthwiseConv2dBackwardInput(spec, target), { dy, w }, dx, taps);
      const dw = groupedToDepthwise(spec, referenceBackwardWeight(spec, x.data, dy.data));
      const pixels = spec.batch * spec.outHeight * spec.outWidth;
      await checkTiles(device, depthwiseConv2dBackwardWeight(spec, target), { x, dy }, dw, pixels);
    });
  }
}

forEachTarget("products give the same sums with every tile", async (device) => {
  const specs: GemmSpec[] = [
    { m: 33, n: 21, k: 45, transposeA: false, transposeB: true },
    { m: 18, n: 9, k: 2051, transposeA: true, transposeB: false }, // split
  ];
  for (const spec of specs) {
    const { m, n, k, transposeA, transposeB } = spec;
    const a = { shape: transposeA ? [k, m] : [m, k], data: randomArray(1, m * k) };
    const b = { shape: transposeB ? [n, k] : [k, n], data: randomArray(2, k * n) };
    const y = gemmReference(spec, a.data, b.data);
    await checkTiles(device, gemm(spec, {}, device.target), { a, b }, y, k);
  }
});

Deno.test("decideTile() takes the table's tile, and the default where the name is not one of its own", () => {
  const work = {
    key: "copy 4",
    shapes: {},
    tiles: [{ rows: 4, run: 1 }, { rows: 8, run: 2 }],
    build: () => ({ kernels: [], temporaries: {} }),
  };
  const decide = (name?: string) =>
    decideTile(work, {
      family: "gpu",
      subgroupSize: 0,
      ...(name && { tiles: new Map([["copy 4", name]]) }),
    }).tile;
  assert.deepEqual(decide(), { rows: 4, run: 1 });
  assert.deepEqual(decide("rows 8, run 2"), { rows: 8, run: 2 });
  assert.deepEqual(decide("rows 64, run 2"), { rows: 4, run: 1 });
  assert.equal(tileName({ rows: 8, run: 2 }), "rows 8, run 2");
  const { choice } = decideTile(work, { family: "gpu", subgroupSize: 0 });
  assert.throws(() => choice.build("rows 64, run 2"), RangeError);
});

Deno.test("cheapestTiles() keeps a handful of different kinds, the cheapest first", () => {
  const tiles = Array.from({ length: 40 }, (_, cost) => ({ cost: 100 + cost, kind: cost >> 2 }));
  const kept = cheapestTiles(tiles.toReversed(), ({ cost }) => cost, ({ kind }) => kind);
  assert.deepEqual(kept.map(({ cost }) => cost), [100, 101, 104, 105, 108, 109, 112, 113]);
  const costs = cheapestTiles([1, 1.5, 1.7, 9], (cost) => cost, (cost) => cost);
  assert.deepEqual(costs, [1, 1.5]);
});
