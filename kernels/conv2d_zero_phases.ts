// Zeros for those pixels of an input gradient that no output of a strided convolution reads: with a kernel smaller than
// the stride most phases have no taps (three of four under a pointwise convolution of stride 2), and one kernel
// writes them all, neighbouring channels by neighbouring lanes.
import type { TapConvolution } from "./conv2d_plan.ts";
import { flatKernel, write } from "./flat_kernel.ts";
import { type Kernel, padded, range } from "./kernel.ts";

/** Positions of an invocation, neighbours in a row. */
const RUN = 4;

/** Whether a phase sums nothing. */
export function isZero({ rows, columns }: TapConvolution): boolean {
  return rows.taps.count === 0 || columns.taps.count === 0;
}

/**
 * Kernel that writes zeros.
 *
 * @param label Name of the kernel.
 * @param phases Those without taps; at least one.
 * @returns The kernel; its binding is the output.
 */
export function zeroPhases(label: string, phases: readonly TapConvolution[]): Kernel {
  const { batch, group, channels, outputName, rows, columns } = phases[0]!;
  const vectors = padded(channels) / 4 * group;
  const most = (axes: readonly { readonly positions: number }[]) =>
    Math.max(...axes.map(({ positions }) => positions));
  const down = most(phases.map((phase) => phase.rows));
  const across = Math.ceil(most(phases.map((phase) => phase.columns)) / RUN);
  const invocations = batch * down * across * vectors;
  const stores = phases.flatMap((phase) => {
    const row = `(n * ${rows.outputSize}u + a * ${rows.outputStep}u + ${phase.rows.outputStart}u)`;
    return range(RUN).map((j) => {
      const column = `(b + ${j}u) * ${columns.outputStep}u + ${phase.columns.outputStart}u`;
      const guards = [
        phase.rows.positions < down ? `a < ${phase.rows.positions}u` : "",
        phase.columns.positions < across * RUN ? `b + ${j}u < ${phase.columns.positions}u` : "",
      ].filter(Boolean);
      const index = `(${row} * ${columns.outputSize}u + ${column}) * ${vectors}u + channel`;
      const store = `${outputName}[${index}] = vec4f();`;
      return guards.length > 0 ? `  if (${guards.join(" && ")}) { ${store} }` : `  ${store}`;
    });
  });
  return flatKernel({
    label,
    size: invocations,
    bindings: [write(outputName)],
    body: `let channel = i % ${vectors}u;
  let b = i / ${vectors}u % ${across}u * ${RUN}u;
  let a = i / ${vectors * across}u % ${down}u;
  let n = i / ${vectors * across * down}u;
${stores.join("\n")}`,
  });
}
