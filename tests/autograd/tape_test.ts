import assert from "node:assert/strict";
import { binaryForward } from "../../kernels/elementwise.ts";
import { Tape } from "../../src/autograd/tape.ts";
import type { Device } from "../../src/gpu/device.ts";
import { Plan } from "../../src/gpu/plan.ts";
import type { Tensor } from "../../src/gpu/tensor.ts";
import { testDevice } from "../_gpu.ts";

Deno.test("Tape.backward() adds the gradients of a tensor used three times", async () => {
  await record(async ({ device, tape, add, x, dy }) => {
    tape.watch(x);
    const a = add(x, x), b = add(a, x); // 3 x
    tape.share(b, dy);
    tape.backward();
    tape.plan.replay(2);
    assert.deepEqual([...await device.read(tape.gradient(x)!)], [3, 6, 9]);
  });
});

Deno.test("Tape.share() never writes to a gradient that others hold", async () => {
  await record(async ({ device, tape, add, x, dy }) => {
    const z = device.tensor([3]);
    tape.watch(x);
    tape.watch(z);
    // z's gradient is dy itself; x's is the sum of two of them
    const y = add(add(x, z), x);
    tape.share(y, dy);
    tape.backward();
    tape.plan.replay();
    assert.deepEqual([...await device.read(tape.gradient(z)!)], [1, 2, 3]);
    assert.deepEqual([...await device.read(tape.gradient(x)!)], [2, 4, 6]);
    assert.deepEqual([...await device.read(dy)], [1, 2, 3]);
    device.release(z);
  });
});

Deno.test("Tape keeps a shared gradient until its last holder is done", async () => {
  await record(async ({ device, tape, add, x, dy }) => {
    const z = device.tensor([3]);
    tape.watch(x);
    tape.watch(z);
    // the gradient of the sum belongs to three tensors, and double's needs memory while two still hold it
    const y = double(tape, add(double(tape, x), z));
    tape.share(y, dy);
    tape.backward();
    tape.plan.replay(2);
    assert.deepEqual([...await device.read(tape.gradient(z)!)], [2, 4, 6]);
    assert.deepEqual([...await device.read(tape.gradient(x)!)], [4, 8, 12]);
    device.release(z);
  });
});

Deno.test("Tape.push() forgets what no gradient passes through", async () => {
  await record(({ device, tape, add, x, dy }) => {
    const constant = device.tensor([3]);
    const y = add(x, constant);
    assert.equal(tape.needs(y), false);
    tape.watch(constant);
    assert.equal(tape.needs(add(y, constant)), true);
    const length = tape.plan.length;
    tape.share(y, dy);
    tape.backward();
    assert.equal(tape.plan.length, length, "nothing was recorded");
    assert.equal(tape.gradient(constant), undefined);
    device.release(constant);
    return Promise.resolve();
  });
});

Deno.test("Tape.push() runs an operator that trains although its inputs have no gradient", async () => {
  await record(({ tape, x, dy }) => {
    const y = tape.plan.tensor([3], "y");
    const given: Tensor[] = [];
    tape.push([x], y, (gradient) => {
      given.push(gradient);
      tape.give(x, () => assert.fail("x wants no gradient"));
    }, true);
    tape.share(y, dy);
    tape.backward();
    assert.deepEqual(given, [dy]);
    return Promise.resolve();
  });
});

Deno.test("Tape.observe() shows the whole gradient of leaves and inner tensors once", async () => {
  await record(async ({ device, tape, add, x, dy }) => {
    const seen = new Map<string, Tensor>();
    const look = (name: string, tensor: Tensor) =>
      tape.observe(tensor, (g) => {
        assert.equal(seen.has(name), false, name);
        const copy = device.tensor([3]);
        tape.plan.run(addKernel([3]), { a: g, b: g, y: copy });
        seen.set(name, copy);
      });
    tape.watch(x);
    const a = double(tape, x);
    const b = add(add(a, x), a); // 5 x, and a is read twice
    const apart = double(tape, x); // nothing depends on it
    look("x", x);
    look("a", a);
    look("b", b);
    look("apart", apart);
    tape.share(b, dy);
    tape.backward();
    tape.plan.replay(2);
    const found = new Map<string, number[]>();
    for (const [name, tensor] of seen) {
      found.set(name, [...await device.read(tensor)]);
      device.release(tensor);
    }
    // twice the gradients 1, 2 and 5
    assert.deepEqual(Object.fromEntries(found), { x: [10, 20, 30], a: [4, 8, 12], b: [2, 4, 6] });
    assert.deepEqual([...await device.read(tape.gradient(x)!)], [5, 10, 15]);
  });
});

Deno.test("Tape.backward() lets a chain's gradients share memory", async () => {
  await record(async ({ device, tape, x, dy }) => {
    tape.watch(x);
    let y = x;
    for (let i = 0; i < 8; i++) y = double(tape, y);
    const before = device.liveBytes;
    tape.share(y, dy);
    tape.backward();
    // every link makes one gradient of 256 bytes; two take turns, and the sums reuse them
    assert(device.liveBytes - before <= 4 * 256, `${device.liveBytes - before} bytes`);
    tape.plan.replay(2);
    assert.deepEqual([...await device.read(tape.gradient(x)!)], [256, 512, 768]);
  });
});

interface Recording {
  readonly device: Device;
  readonly tape: Tape;
  readonly add: (a: Tensor, b: Tensor) => Tensor;
  readonly x: Tensor;
  readonly dy: Tensor;
}

/** 2 y, whose gradient is a tensor of its own. */
function double(tape: Tape, y: Tensor): Tensor {
  const { plan } = tape;
  const result = plan.tensor([3], "double");
  plan.run(addKernel([3]), { a: y, b: y, y: result });
  tape.push(
    [y],
    result,
    (dy) => tape.give(y, (dx) => plan.run(addKernel([3]), { a: dy, b: dy, y: dx })),
  );
  return result;
}

async function record(test: (recording: Recording) => Promise<void>): Promise<void> {
  const device = await testDevice();
  const start = device.liveBytes;
  {
    using plan = new Plan(device);
    const tape = new Tape(plan, addKernel);
    const x = device.fromArray([3], [5, 6, 7]), dy = device.fromArray([3], [1, 2, 3]);
    const add = (a: Tensor, b: Tensor) => {
      const y = plan.tensor([3], "sum");
      plan.run(addKernel([3]), { a, b, y });
      tape.push([a, b], y, (gradient) => {
        tape.share(a, gradient);
        tape.share(b, gradient);
      });
      return y;
    };
    await test({ device, tape, add, x, dy });
    device.release(x);
    device.release(dy);
  }
  assert.equal(device.liveBytes, start);
}

function addKernel(shape: readonly number[]) {
  return binaryForward({ operator: "add", a: shape, b: shape });
}
