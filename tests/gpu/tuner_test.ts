import assert from "node:assert/strict";
import type { Kernel, TileChoice } from "../../kernels/kernel.ts";
import { conv2dForward } from "../../kernels/conv2d.ts";
import { GpuError } from "../../src/core/errors.ts";
import { KernelSurvey } from "../../src/gpu/kernel_survey.ts";
import { tileTable, type TunedTile, tuneTiles } from "../../src/gpu/tuner.ts";
import { testDevice } from "../_gpu.ts";
import { convSpec } from "../_reference_conv.ts";

const VECTORS = 64;

/** y[i] = sum of `turns` times x[i], for a loop that takes its time. */
function repeatedSum(turns: number, end = ""): Kernel {
  return {
    label: `repeated_sum ${turns}`,
    bindings: [{ name: "x", access: "read" }, { name: "y", access: "read_write" }],
    grid: [VECTORS / 64, 1, 1],
    code: /* wgsl */ `
@group(0) @binding(0) var<storage, read> x: array<vec4f>;
@group(0) @binding(1) var<storage, read_write> y: array<vec4f>;

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3u) {
  var sum = vec4f();
  for (var turn = 0u; turn < ${turns}u; turn++) { sum = fma(sum, vec4f(0.0), x[id.x]); }
  y[id.x] = sum${end};
}`,
  };
}

function choiceOf(tiles: Readonly<Record<string, () => Kernel>>): TileChoice {
  return {
    key: "repeated_sum",
    tiles: Object.keys(tiles),
    shapes: { x: [VECTORS, 4], y: [VECTORS, 4] },
    build: (tile) => ({ kernels: [tiles[tile]!()], temporaries: {} }),
  };
}

Deno.test("tuneTiles() takes a tile that is clearly faster, and refuses wrong and broken ones", async () => {
  const device = await testDevice();
  const choice = choiceOf({
    slow: () => repeatedSum(20_000),
    fast: () => repeatedSum(10),
    wrong: () => repeatedSum(1, " + 1.0"),
    broken: () => repeatedSum(1, " + no_such_name"),
  });
  const seen: string[] = [];
  const before = device.liveBytes;
  const [tuned, ...others] = await tuneTiles(device, [choice], {
    onTuned: ({ key }, done) => seen.push(`${done} ${key}`),
  });
  assert.deepEqual(others, []);
  assert.deepEqual(seen, ["1 repeated_sum"]);
  assert.equal(tuned!.defaultTile, "slow");
  assert.equal(tuned!.tile, "fast");
  assert.deepEqual(tuned!.refused, ["wrong", "broken"]);
  assert.ok(tuned!.nanoseconds < tuned!.defaultNanoseconds / 2);
  assert.equal(device.liveBytes, before);
});

Deno.test("tuneTiles() keeps a default that is alone or faster", async () => {
  const device = await testDevice();
  const alone = choiceOf({ only: () => repeatedSum(10) });
  const faster = choiceOf({ fast: () => repeatedSum(10), slow: () => repeatedSum(20_000) });
  const tuned = await tuneTiles(device, [alone, faster]);
  assert.deepEqual(tuned.map(({ tile }) => tile), ["only", "fast"]);
});

Deno.test("tuneTiles() throws when the default is broken, or when it is stopped", async () => {
  const device = await testDevice();
  const broken = choiceOf({ only: () => repeatedSum(1, " + no_such_name") });
  await assert.rejects(tuneTiles(device, [broken]), GpuError);
  const stopped = tuneTiles(device, [broken], { signal: AbortSignal.abort("SIGINT") });
  await assert.rejects(stopped, (error) => error === "SIGINT");
});

Deno.test("tileTable() holds only what differs from the defaults", () => {
  const row = (key: string, tile: string): TunedTile => ({
    key,
    defaultTile: "a",
    defaultNanoseconds: 2,
    tile,
    nanoseconds: 1,
    refused: [],
  });
  assert.deepEqual([...tileTable([row("k", "a"), row("l", "b")])], [["l", "b"]]);
});

Deno.test("KernelSurvey collects each choice once, without memory or shaders", async () => {
  const device = await testDevice();
  using survey = new KernelSurvey(device);
  const before = device.liveBytes;
  const spec = convSpec({ batch: 512, size: [256, 256], channels: [64, 64] });
  const x = survey.tensor([512, 256, 256, 64], "x"); // 8 GiB, if it were real
  for (let i = 0; i < 2; i++) survey.run(conv2dForward(spec, {}, device.target), { x, y: x });
  survey.replay();
  assert.equal(device.liveBytes, before);
  assert.equal(survey.length, 0);
  assert.deepEqual(survey.choices.map(({ shapes }) => shapes.x), [x.shape]);
});
