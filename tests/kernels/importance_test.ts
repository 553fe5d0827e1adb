import { addSampleImportance } from "../../kernels/importance.ts";
import { assertClose, forEachTarget, randomArray } from "../_gpu.ts";

/** [samples, positions, channels]: more than a workgroup of samples, padded channels. */
const CASES = [[1, 1, 1], [19, 7, 5], [3, 49, 64], [33, 1, 10]] as const;

for (const [samples, positions, channels] of CASES) {
  forEachTarget(`addSampleImportance() [${samples}, ${positions}, ${channels}]`, async (device) => {
    const size = samples * positions * channels;
    const before = randomArray(1, samples);
    const gradients = [randomArray(2, size), randomArray(3, size)];
    const kernel = addSampleImportance({ samples, positions, channels });
    const importance = device.fromArray([samples, 1], before);
    const expected = Float64Array.from(before);
    for (const values of gradients) {
      const g = device.fromArray([samples * positions, channels], values);
      device.run(kernel, { g, importance });
      device.release(g);
      for (let sample = 0; sample < samples; sample++) {
        const sums = new Float64Array(channels);
        const own = values.subarray(sample * positions * channels).subarray(
          0,
          positions * channels,
        );
        own.forEach((value, i) => sums[i % channels]! += value * value);
        expected[sample]! += Math.max(...sums);
      }
    }
    // float32 sums of up to 49 squares
    const found = await device.read(importance);
    assertClose(found, expected, { rtol: 1e-5, atol: 1e-6 }, "importance");
    device.release(importance);
  });
}
