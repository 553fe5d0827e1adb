import assert from "node:assert/strict";
import { planChunks, reducePartials } from "../../kernels/reduce_partials.ts";
import { assertClose, forEachTarget, randomArray, runKernel } from "../_gpu.ts";

for (
  const [chunks, size, stride, offset] of [[1, 1, 1, 0], [7, 3, 5, 2], [129, 5, 5, 0], [
    66,
    17,
    51,
    34,
  ]] as const
) {
  forEachTarget(
    `reducePartials() sums ${chunks} chunks of ${size} at ${offset} of ${stride}`,
    async (device) => {
      const data = randomArray(chunks, chunks * stride * 4);
      const inputs = { partials: { shape: [chunks, stride * 4], data } };
      const kernel = reducePartials({ chunks, size, stride, offset }, device.target);
      const { sums } = await runKernel(device, kernel, inputs, { sums: [size * 4] });
      const expected = new Float64Array(size * 4);
      for (let chunk = 0; chunk < chunks; chunk++) {
        for (let i = 0; i < size * 4; i++) expected[i]! += data[(chunk * stride + offset) * 4 + i]!;
      }
      assertClose(sums!, expected, { rtol: 1e-6, atol: 1e-5 }, "sums"); // 129 terms of order 1
    },
  );
}

Deno.test("planChunks() leaves no chunk empty", () => {
  for (const family of ["software", "gpu"] as const) {
    for (const rows of [1, 7, 129, 8191, 65536, 1000003]) {
      for (const quads of [1, 4, 300]) {
        const { chunks } = planChunks(rows, quads, { family, subgroupSize: 0 });
        assert.ok(chunks >= 1 && chunks <= rows, `${chunks} chunks of ${rows} rows`);
      }
    }
  }
});
