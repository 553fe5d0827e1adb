// Matrix products of three sizes, one of them in all four transpositions.
import { gemm, type GemmSpec } from "../../../kernels/gemm.ts";
import { Rng } from "../../../src/core/rng.ts";
import type { Device } from "../../../src/gpu/device.ts";
import { Plan } from "../../../src/gpu/plan.ts";
import { checkElements, deviceTimes, gigaRates, type Row, row } from "../../harness.ts";
import type { Ceilings } from "./ceilings.ts";

/** Elements checked, drawn at random. */
const CHECKED = 64;

const PRODUCTS: readonly GemmSpec[] = [
  square(256, false, false),
  square(512, false, false),
  square(512, false, true),
  square(512, true, false),
  square(512, true, true),
  square(1024, false, false),
];

/**
 * Measures every product.
 *
 * @param device the adapter
 * @param samples timings of each
 * @param ceilings of the adapter
 */
export async function* measureProducts(
  device: Device,
  samples: number,
  { gigaflops }: Ceilings,
): AsyncGenerator<Row> {
  for (const spec of PRODUCTS) {
    const { m, n, k, transposeA, transposeB } = spec;
    const rng = new Rng(1);
    const random = (length: number) => Float32Array.from({ length }, () => rng.normal());
    const aData = random(m * k), bData = random(k * n);
    const a = device.fromArray(transposeA ? [k, m] : [m, k], aData);
    const b = device.fromArray(transposeB ? [n, k] : [k, n], bData);
    const y = device.tensor([m, n]);
    using plan = new Plan(device);
    plan.run(gemm(spec, {}, device.target), { a, b, y });
    plan.replay();
    const letters = `${transposeA ? "T" : "N"}${transposeB ? "T" : "N"}`;
    const name = { case: `gemm ${m}x${n}x${k} ${letters}`, metric: "rate" };
    const expected = Array.from({ length: CHECKED }, () => {
      const index = rng.integer(m * n);
      return [index, productAt(spec, aData, bData, index)] as [number, number];
    });
    // float32 sums of k products of unit variance
    checkElements(name.case, await device.read(y), expected, 1e-6 * k);
    const times = await deviceTimes(device, samples, plan.commands);
    yield row(name, "GFLOP/s", gigaRates(2 * m * n * k, times), { ceiling: gigaflops });
    for (const tensor of [a, b, y]) device.release(tensor);
  }
}

function square(size: number, transposeA: boolean, transposeB: boolean): GemmSpec {
  return { m: size, n: size, k: size, transposeA, transposeB };
}

/** Element of op(a) op(b) in float64. */
function productAt(
  { m, n, k, transposeA, transposeB }: GemmSpec,
  a: Float32Array,
  b: Float32Array,
  index: number,
): number {
  const i = Math.floor(index / n), j = index % n;
  let sum = 0;
  for (let t = 0; t < k; t++) {
    sum += a[transposeA ? t * m + i : i * k + t]! * b[transposeB ? j * k + t : t * n + j]!;
  }
  return sum;
}
