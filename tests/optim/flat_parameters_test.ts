import assert from "node:assert/strict";
import { STATE_SIZE } from "../../kernels/schedule.ts";
import { Plan } from "../../src/gpu/plan.ts";
import { FlatLayout, FlatParameters } from "../../src/optim/flat_parameters.ts";
import { assertClose, testDevice } from "../_gpu.ts";

Deno.test("FlatLayout.take() starts every parameter at a multiple of 64 floats", () => {
  const layout = new FlatLayout();
  const starts = [1, 64, 65, 0, 3].map((floats) => layout.take(floats, 1));
  assert.deepEqual(starts, [0, 64, 128, 256, 256]);
  assert.equal(layout.size, 320);
});

Deno.test("FlatLayout.learningRates() gives each parameter its own rate", () => {
  const layout = new FlatLayout();
  layout.take(3, 0.5);
  layout.take(0, 9);
  layout.take(65, { scheduled: 0.25, decay: 0.125 });
  layout.take(1, 0);
  layout.take(2, { constant: 2 });
  assert.deepEqual([...layout.learningRates()], [
    ...[0.5, 0, 0, 0],
    ...[0.25, 0, 0.125, 0],
    ...[0.25, 0, 0.125, 0],
    ...[0, 0, 0, 0],
    ...[0, 2, 0, 0],
  ]);
});

Deno.test("FlatParameters.recordStep() moves each parameter against its gradient by its rate", async () => {
  const device = await testDevice();
  const layout = new FlatLayout();
  const moving = layout.take(4, 0.5);
  const frozen = layout.take(4, 0);
  const values = new Float32Array(layout.size);
  values.set([1, 2, 3, 4], moving);
  values.set([5, 6, 7, 8], frozen);
  using parameters = new FlatParameters(device, layout, values);
  for (const start of [moving, frozen]) {
    const { gradient } = parameters.trainable(start, [4], "w");
    device.upload(gradient, Float32Array.from([2, -0.1, 0, 30]));
  }
  // Step 0 of the schedule without warm-up: factor 1, corrections 1 - beta.
  const state = new Float32Array(STATE_SIZE);
  state.set([0, 1, 1 - 0.9, 1 - 0.99]);
  using plan = new Plan(device);
  const stateTensor = device.fromArray([STATE_SIZE], state, { label: "state" });
  parameters.recordStep(plan, stateTensor, { beta1: 0.9, beta2: 0.99 });
  plan.replay();
  const after = await parameters.read();
  // The first step of Adam is rate * sign(gradient); epsilon and f32 leave 1e-6 of it.
  assertClose(after.subarray(moving, moving + 4), [0.5, 2.5, 3, 3.5], { rtol: 1e-6, atol: 0 }, "w");
  assert.deepEqual([...after.subarray(frozen, frozen + 4)], [5, 6, 7, 8]);
  device.release(stateTensor);
});
