import assert from "node:assert/strict";
import {
  type LayerReport,
  layerTable,
  networkRows,
  networkTable,
  printable,
  type Report,
  reportJson,
} from "../../src/distill/report.ts";

function layer(name: string, sqnrDb: number, rolledBack = false): LayerReport {
  return {
    name,
    opType: "Conv",
    weightBits: 4,
    activationBits: 4,
    mseBefore: 0.0125,
    mseAfter: 0.01,
    sqnrDb,
    cosine: 0.999,
    rolledBack,
  };
}

const REPORT: Report = {
  stilla: "0.1.0",
  adapter: "test",
  tunedTiles: 0,
  method: "blockwise",
  weightBits: 4,
  activationBits: 4,
  activationRanges: "static",
  activationExponent: 2.4,
  seed: 0,
  streamed: false,
  notEqualized: {},
  samples: { train: 896, heldOut: 128 },
  layers: [layer("conv1", 20), layer("conv2", 10, true), layer("exact", Infinity)],
  network: {
    evaluated: 10000,
    top1Teacher: 0.9173,
    top1Student: 0.9105,
    agreement: 0.95,
    sizeBytes: { float32: 1024 * 1000, int8: 1024 * 250 },
    weightBytes: 100000,
  },
  seconds: { calibrate: 1, distill: 20, evaluate: 3, total: 24 },
};

Deno.test("networkTable() shows top-1, drop, size and time, aligned", () => {
  assert.equal(
    networkTable(networkRows(REPORT)),
    [
      "network         top-1 %  drop  size KiB  seconds",
      "fp32              91.73  0.00    1000.0        -",
      "blockwise W4A4    91.05  0.68     250.0     24.0",
    ].join("\n"),
  );
});

Deno.test("networkTable() shows a dash for what was not measured", () => {
  const network = { ...REPORT.network, top1Teacher: null, top1Student: null, sizeBytes: null };
  const lines = networkTable(networkRows({ ...REPORT, network })).split("\n");
  assert.match(lines[2]!, /^blockwise W4A4 +- +- +- +24\.0$/);
});

Deno.test("layerTable() puts the worst layers first and marks what was rolled back", () => {
  const lines = layerTable(REPORT, { count: 2 }).split("\n");
  assert.equal(lines.length, 3);
  assert.match(lines[1]!, /^conv2 +W4A4 +1\.25e-2 +1\.00e-2 +10\.0 +0\.99900 +rolled back$/);
  assert.match(lines[2]!, /^conv1 /);
});

Deno.test("layerTable() ranks a NaN layer worst", () => {
  const layers = [layer("good", 30), layer("dead", NaN)];
  assert.match(layerTable({ ...REPORT, layers }).split("\n")[1]!, /^dead /);
});

Deno.test("reportJson() writes null for numbers that JSON has not", () => {
  const read = JSON.parse(reportJson(REPORT));
  assert.equal(read.layers[2].sqnrDb, null);
  assert.equal(read.network.top1Student, 0.9105);
});

Deno.test("printable() escapes what acts on a terminal", () => {
  assert.equal(printable("a\x1b[31m\nb\u202e\u009b"), "a\\u{1b}[31m\\u{a}b\\u{202e}\\u{9b}");
  assert.equal(printable("conv/é 層"), "conv/é 層");
});
