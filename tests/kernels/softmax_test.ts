// Softmax and its losses against float64, gradients against finite differences.
import assert from "node:assert/strict";
import {
  argMax,
  crossEntropy,
  distillationLoss,
  logSoftmaxBackward,
  logSoftmaxForward,
  softmaxBackward,
  softmaxForward,
  topOneCorrect,
} from "../../kernels/softmax.ts";
import { assertClose, forEachTarget, randomArray, runKernel } from "../_gpu.ts";
import {
  crossEntropyReference,
  distillationReference,
  logSoftmaxReference,
  numericGradient,
  softmaxReference,
} from "../_reference.ts";

const SIZES = [[1, 1], [3, 5], [2, 33], [70, 10], [5, 16]] as const;
// exp and log of CPU adapters are good to 1e-5 absolute near 1; differences are good to 1e-9.
const CLOSE = { rtol: 2e-5, atol: 1e-5 };

function logits(seed: number, rows: number, classes: number) {
  return { shape: [rows, classes], data: randomArray(seed, rows * classes, { scale: 3 }) };
}

function labelsOf(rows: number, classes: number): Uint32Array<ArrayBuffer> {
  return Uint32Array.from({ length: rows }, (_, r) => (r * 7 + 3) % classes);
}

forEachTarget("softmaxForward(), softmaxBackward() agree with float64", async (device) => {
  for (const [rows, classes] of SIZES) {
    const spec = { rows, classes };
    const x = logits(1, rows, classes), dy = logits(2, rows, classes);
    const { y } = await runKernel(device, softmaxForward(spec), { x }, { y: x.shape });
    const reference = (v: Float64Array) => softmaxReference(v, classes);
    assertClose(y!, reference(x.data), CLOSE, `${x.shape}`);
    const inputs = { y: { shape: x.shape, data: y! }, dy };
    const { dx } = await runKernel(device, softmaxBackward(spec), inputs, { dx: x.shape });
    assertClose(dx!, numericGradient(reference, x.data, dy.data), CLOSE, `${x.shape}`);
  }
});

forEachTarget("softmaxForward() survives large logits", async (device) => {
  const x = { shape: [1, 3], data: [1000, 1001, -1000] };
  const { y } = await runKernel(device, softmaxForward({ rows: 1, classes: 3 }), { x }, {
    y: [1, 3],
  });
  assertClose(y!, [1 / (1 + Math.E), Math.E / (1 + Math.E), 0], CLOSE, "large");
});

forEachTarget("logSoftmaxForward(), logSoftmaxBackward() agree with float64", async (device) => {
  for (const [rows, classes] of SIZES) {
    const spec = { rows, classes };
    const x = logits(1, rows, classes), dy = logits(2, rows, classes);
    const { y } = await runKernel(device, logSoftmaxForward(spec), { x }, { y: x.shape });
    const reference = (v: Float64Array) => logSoftmaxReference(v, classes);
    assertClose(y!, reference(x.data), CLOSE, `${x.shape}`);
    const inputs = { y: { shape: x.shape, data: y! }, dy };
    const { dx } = await runKernel(device, logSoftmaxBackward(spec), inputs, { dx: x.shape });
    assertClose(dx!, numericGradient(reference, x.data, dy.data), CLOSE, `${x.shape}`);
  }
});

forEachTarget("crossEntropy() gives each row's loss and the mean's gradient", async (device) => {
  for (const [rows, classes] of SIZES) {
    const x = logits(1, rows, classes), labels = labelsOf(rows, classes);
    const weight = rows === 5 ? 0.3 : 1;
    const result = await runKernel(
      device,
      crossEntropy({ rows, classes, ...(weight !== 1 && { weight }) }),
      { logits: x, labels },
      { loss: [rows, 1], dlogits: x.shape },
    );
    const reference = (v: Float64Array) =>
      crossEntropyReference(v, labels, classes).map((loss) => loss * weight);
    assertClose(result.loss!, reference(x.data), CLOSE, `loss ${x.shape}`);
    const mean = new Float64Array(rows).fill(1 / rows);
    const numeric = numericGradient(reference, x.data, mean);
    assertClose(result.dlogits!, numeric, CLOSE, `dlogits ${x.shape}`);
  }
});

forEachTarget("distillationLoss() is T^2 times the divergence", async (device) => {
  for (const [rows, classes] of SIZES) {
    for (const temperature of [1, 4]) {
      const teacher = logits(1, rows, classes), student = logits(2, rows, classes);
      const weight = rows === 5 ? 0.3 : 1;
      const result = await runKernel(
        device,
        distillationLoss({ rows, classes, temperature, ...(weight !== 1 && { weight }) }),
        { teacher, logits: student },
        { loss: [rows, 1], dlogits: student.shape },
      );
      const reference = (v: Float64Array) =>
        distillationReference(teacher.data, v, classes, temperature).map((loss) => loss * weight);
      // The factor T^2 scales the errors of exp and log too.
      const tolerance = { rtol: 2e-5, atol: 1e-5 * temperature ** 2 };
      assertClose(result.loss!, reference(student.data), tolerance, `loss ${student.shape}`);
      const mean = new Float64Array(rows).fill(1 / rows);
      const numeric = numericGradient(reference, student.data, mean);
      assertClose(result.dlogits!, numeric, CLOSE, `dlogits ${student.shape}`);
    }
  }
});

forEachTarget("argMax(), topOneCorrect() find the first largest class", async (device) => {
  for (const [rows, classes] of SIZES) {
    const spec = { rows, classes };
    // Rounded to make ties; all below zero to catch padding that wins.
    const data = randomArray(1, rows * classes).map((v) => Math.round(v) - 9);
    const labels = labelsOf(rows, classes);
    const expected = Array.from({ length: rows }, (_, r) => {
      const row = Array.from(data.subarray(r * classes, (r + 1) * classes));
      return row.indexOf(Math.max(...row));
    });
    const x = device.fromArray([rows, classes], data);
    const y = device.uint32(new Uint32Array(rows).fill(77));
    device.run(argMax(spec), { x, y });
    assert.deepEqual(Array.from(await device.readUint32(y)).slice(0, rows), expected);
    const result = await runKernel(
      device,
      topOneCorrect(spec),
      { x: { shape: [rows, classes], data }, labels },
      { y: [rows, 1] },
    );
    const hits = expected.map((best, r) => best === labels[r] ? 1 : 0);
    assert.deepEqual(Array.from(result.y!), hits);
  }
});
