// The Gram matrix of a convolution's patches, h[g] = X^T X with X [rows, K], K = KH * KW * C / group in the order of the
// weight [O, KH, KW, C / group]: how much each pair of a layer's weights matters to its output (Frantar et al. 2023).
// The patches of chosen output pixels are gathered once (im2col); a GEMM does the rest, or, for groups, whose matrices
// are small, a kernel with one 4x4 tile of h an invocation.
import { type Conv2dSpec, shapeLabel } from "./conv2d_plan.ts";
import { gemm } from "./gemm.ts";
import {
  COMPONENTS,
  declareBindings,
  flatIndex,
  grid1d,
  type Kernel,
  type KernelSequence,
  padded,
  range,
  type Target,
} from "./kernel.ts";

/** A convolution and how many of its output pixels are looked at. */
export interface GramSpec extends Conv2dSpec {
  readonly rows: number;
}

/**
 * h[g, i, j] = sum over rows of X[g, row, i] * X[g, row, j].
 *
 * @param spec Shape of the convolution and the number of rows.
 * @param target Kind of adapter.
 * @returns Kernels with bindings `x`, `pixels` (u32 [rows]: which of the batch * OH * OW output pixels) and `h`
 * [group * K, K].
 */
export function gram(spec: GramSpec, target: Target): KernelSequence {
  const { rows, group } = spec;
  const size = patchSize(spec);
  const floats = group * rows * padded(size);
  if (group > 1) {
    return { kernels: [patches(spec), smallGrams(spec)], temporaries: { patches: floats } };
  }
  const product = gemm(
    { m: size, n: size, k: rows, transposeA: true, transposeB: false },
    {},
    target,
  );
  const names: Readonly<Record<string, string>> = { a: "patches", b: "patches", y: "h" };
  const kernels = product.kernels.map(({ choice: _, ...kernel }): Kernel => ({
    ...kernel,
    bindings: kernel.bindings.map(({ name, access }) => ({ name: names[name] ?? name, access })),
  }));
  return {
    kernels: [patches(spec), ...kernels],
    temporaries: { patches: floats, ...product.temporaries },
  };
}

/** Weights of one output channel: the order of a matrix. */
export function patchSize({ kernelHeight, kernelWidth, inChannels, group }: Conv2dSpec): number {
  return kernelHeight * kernelWidth * inChannels / group;
}

/** patches[g, row, (kh, kw, c)] = x[pixel of the row moved by the tap, g * C / group + c]. */
function patches(spec: GramSpec): Kernel {
  const { rows, group, kernelWidth, outHeight, outWidth, inHeight, inWidth } = spec;
  const depth = spec.inChannels / group, size = patchSize(spec), vectors = padded(size) / 4;
  const bindings = [
    { name: "x", access: "read" },
    { name: "pixels", access: "read" },
    { name: "patches", access: "read_write" },
  ] as const;
  const code = /* wgsl */ `${declareBindings(bindings, { x: "f32", pixels: "u32" })}

fn element(n: u32, row: i32, column: i32, group: u32, k: u32) -> f32 {
  let tap = k / ${depth}u;
  let i = row + i32(tap / ${kernelWidth}u) * ${spec.dilationHeight};
  let j = column + i32(tap % ${kernelWidth}u) * ${spec.dilationWidth};
  let inside = k < ${size}u && u32(i) < ${inHeight}u && u32(j) < ${inWidth}u;
  let at = ((n * ${inHeight}u + u32(i)) * ${inWidth}u + u32(j)) * ${padded(spec.inChannels)}u;
  return select(0.0, x[select(0u, at + group * ${depth}u + k % ${depth}u, inside)], inside);
}

@compute @workgroup_size(64)
fn main(
  @builtin(workgroup_id) workgroup: vec3u,
  @builtin(num_workgroups) groups: vec3u,
  @builtin(local_invocation_index) local: u32,
) {
  let flat = ${flatIndex(64)};
  if (flat >= ${group * rows * vectors}u) { return; }
  let group = flat / ${rows * vectors}u;
  let pixel = pixels[flat / ${vectors}u % ${rows}u];
  let n = pixel / ${outHeight * outWidth}u;
  let row = i32(pixel / ${outWidth}u % ${outHeight}u) * ${spec.strideHeight} - ${spec.padTop};
  let column = i32(pixel % ${outWidth}u) * ${spec.strideWidth} - ${spec.padLeft};
  let k = flat % ${vectors}u * 4u;
  patches[flat] = vec4f(
${range(4).map((i) => `    element(n, row, column, group, k + ${i}u)`).join(",\n")},
  );
}
`;
  return {
    label: `gram_patches ${shapeLabel(spec)} of ${rows}`,
    code,
    bindings,
    grid: grid1d(group * rows * vectors, 64),
  };
}

/** h of every group, summed over the rows in order. */
function smallGrams(spec: GramSpec): Kernel {
  const { rows, group } = spec;
  const size = patchSize(spec), vectors = padded(size) / 4, tiles = vectors ** 2;
  const bindings = [
    { name: "patches", access: "read" },
    { name: "h", access: "read_write" },
  ] as const;
  const code = /* wgsl */ `${declareBindings(bindings)}

@compute @workgroup_size(64)
fn main(
  @builtin(workgroup_id) workgroup: vec3u,
  @builtin(num_workgroups) groups: vec3u,
  @builtin(local_invocation_index) local: u32,
) {
  let flat = ${flatIndex(64)};
  if (flat >= ${group * tiles}u) { return; }
  let group = flat / ${tiles}u;
  let i = flat / ${vectors}u % ${vectors}u;
  let j = flat % ${vectors}u;
  ${COMPONENTS.map((c) => `var sum_${c} = vec4f();`).join(" ")}
  for (var row = group * ${rows}u; row < (group + 1u) * ${rows}u; row++) {
    let a = patches[row * ${vectors}u + i];
    let b = patches[row * ${vectors}u + j];
${COMPONENTS.map((c) => `    sum_${c} = fma(vec4f(a.${c}), b, sum_${c});`).join("\n")}
  }
  let at = (group * ${size}u + i * 4u) * ${vectors}u + j;
${
    COMPONENTS.map((c, m) =>
      `  if (i * 4u + ${m}u < ${size}u) { h[at + ${m * vectors}u] = sum_${c}; }`
    ).join("\n")
  }
}
`;
  return {
    label: `gram ${group}x${size}x${size} of ${rows}`,
    code,
    bindings,
    grid: grid1d(group * tiles, 64),
  };
}
