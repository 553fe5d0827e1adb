// What the adapter can do at best: multiply-adds in registers without any memory, and a plain copy. Rates of kernels are
// given as a share of these.
import { copy } from "../../../kernels/elementwise.ts";
import {
  declareBindings,
  flatIndex,
  grid1d,
  type Kernel,
  range,
  type Target,
} from "../../../kernels/kernel.ts";
import type { Device } from "../../../src/gpu/device.ts";
import { checkElements, deviceTimes, gigaRates, type Row, row } from "../../harness.ts";

/** The largest measured rates. */
export interface Ceilings {
  readonly gigaflops: number;
  /** Bytes read and written, in GB/s. */
  readonly gigabytes: number;
}

const WORKGROUP = 64;
/** Multiply-adds of each vec4 accumulator. */
const STEPS = 1024;
const UNROLLED = 32;
/** vec4 accumulators of an invocation: enough to hide the latency, few enough for the registers. */
const ACCUMULATORS = [2, 3, 4, 6, 8];
/** Floats copied: within the caches of most adapters, and beyond. */
const COPIED = [2 ** 20, 2 ** 24];

/**
 * Measures both.
 *
 * @param device the adapter
 * @param samples timings of each candidate
 * @returns the ceilings and their figures
 */
export async function measureCeilings(
  device: Device,
  samples: number,
): Promise<{ ceilings: Ceilings; rows: Row[] }> {
  const products: Row[] = [];
  for (const accumulators of ACCUMULATORS) {
    products.push(await multiplyAdd(device, samples, accumulators));
  }
  const copies: Row[] = [];
  for (const size of COPIED) copies.push(await copyFloats(device, samples, size));
  const gigaflops = products.reduce((a, b) => b.best > a.best ? b : a);
  return {
    ceilings: {
      gigaflops: gigaflops.best,
      gigabytes: Math.max(...copies.map(({ best }) => best)),
    },
    rows: [gigaflops, ...copies],
  };
}

async function multiplyAdd(device: Device, samples: number, accumulators: number): Promise<Row> {
  const invocations = device.target.family === "software" ? 2 ** 14 : 2 ** 20;
  // Factor and addend 1, unknown to the compiler: every accumulator counts its steps, exactly.
  const x = device.fromArray([2 + accumulators, 4], range(8 + 4 * accumulators).map(() => 1));
  const y = device.tensor([invocations, 4]);
  const kernel = multiplyAddKernel(invocations, accumulators, device.target);
  const times = await deviceTimes(device, samples, [device.prepare(kernel, { x, y })]);
  const expected = range(WORKGROUP).map((i) =>
    [4 * i, accumulators * (1 + i + STEPS)] as [number, number]
  );
  checkElements("sum of accumulators", await device.read(y), expected, 0);
  device.release(x);
  device.release(y);
  const operations = invocations * accumulators * 4 * STEPS * 2;
  return row(
    { case: "ceiling: multiply-add in registers", metric: "rate" },
    "GFLOP/s",
    gigaRates(operations, times),
    { note: `${accumulators} vec4 accumulators` },
  );
}

/** y[i] = sum over accumulators of STEPS times v = fma(v, x[0], x[1]), each from its own start. */
function multiplyAddKernel(invocations: number, accumulators: number, _target: Target): Kernel {
  const bindings = [
    { name: "x", access: "read" },
    { name: "y", access: "read_write" },
  ] as const;
  const names = range(accumulators).map((i) => `v${i}`);
  const step = names.map((v) => `${v} = fma(${v}, factor, addend);`).join(" ");
  const code = /* wgsl */ `${declareBindings(bindings)}

@compute @workgroup_size(${WORKGROUP})
fn main(
  @builtin(workgroup_id) workgroup: vec3u,
  @builtin(num_workgroups) groups: vec3u,
  @builtin(local_invocation_index) local: u32,
) {
  let i = ${flatIndex(WORKGROUP)};
  let factor = vec4f(x[0].x);
  let addend = vec4f(x[1].x);
  ${names.map((v, n) => `var ${v} = x[${n + 2}] + f32(local);`).join("\n  ")}
  for (var t = 0u; t < ${STEPS / UNROLLED}u; t++) {
    ${range(UNROLLED).map(() => step).join("\n    ")}
  }
  y[i] = ${names.join(" + ")};
}
`;
  const label = `multiply_add ${accumulators}`;
  return { label, code, bindings, grid: grid1d(invocations, WORKGROUP) };
}

async function copyFloats(device: Device, samples: number, size: number): Promise<Row> {
  const shape = [size / 4, 4];
  const data = Float32Array.from({ length: size }, (_, i) => i);
  const x = device.fromArray(shape, data), y = device.tensor(shape);
  const times = await deviceTimes(device, samples, [device.prepare(copy(shape), { x, y })]);
  checkElements("copy", await device.read(y), data.entries(), 0);
  device.release(x);
  device.release(y);
  device.trim();
  return row(
    { case: `ceiling: copy of ${size * 4 / 2 ** 20} MiB`, metric: "bandwidth" },
    "GB/s",
    gigaRates(2 * 4 * size, times),
    { note: "bytes read and written" },
  );
}
