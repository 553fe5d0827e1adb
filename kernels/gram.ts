// The Gram matrix of a convolution's patches, h[g] = X^T X with X [rows, K], K = KH * KW * C / group in the order of the
// weight [O, KH, KW, C / group]: how much each pair of a layer's weights matters to its output (Frantar et al. 2023).
// The patches of chosen output pixels are gathered once (im2col); a GEMM does the rest, or, for groups, whose matrices
// are small, a kernel with one 4x4 tile of h an invocation.
import { type Conv2dSpec, shapeLabel } from "./conv2d_plan.ts";
import { flatKernel, read, write } from "./flat_kernel.ts";
import { gemm } from "./gemm.ts";
import {
  COMPONENTS,
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
  return flatKernel({
    label: `gram_patches ${shapeLabel(spec)} of ${rows}`,
    size: group * rows * vectors,
    bindings: [read("x"), read("pixels"), write("patches")],
    types: { x: "f32", pixels: "u32" },
    declarations: /* wgsl */ `fn element(n: u32, row: i32, column: i32, group: u32, k: u32) -> f32 {
  let tap = k / ${depth}u;
  let i = row + i32(tap / ${kernelWidth}u) * ${spec.dilationHeight};
  let j = column + i32(tap % ${kernelWidth}u) * ${spec.dilationWidth};
  let inside = k < ${size}u && u32(i) < ${inHeight}u && u32(j) < ${inWidth}u;
  let at = ((n * ${inHeight}u + u32(i)) * ${inWidth}u + u32(j)) * ${padded(spec.inChannels)}u;
  return select(0.0, x[select(0u, at + group * ${depth}u + k % ${depth}u, inside)], inside);
}`,
    body: `let group = i / ${rows * vectors}u;
  let pixel = pixels[i / ${vectors}u % ${rows}u];
  let n = pixel / ${outHeight * outWidth}u;
  let row = i32(pixel / ${outWidth}u % ${outHeight}u) * ${spec.strideHeight} - ${spec.padTop};
  let column = i32(pixel % ${outWidth}u) * ${spec.strideWidth} - ${spec.padLeft};
  let k = i % ${vectors}u * 4u;
  patches[i] = vec4f(
${range(4).map((u) => `    element(n, row, column, group, k + ${u}u)`).join(",\n")},
  );`,
  });
}

/** h of every group, summed over the rows in order. */
function smallGrams(spec: GramSpec): Kernel {
  const { rows, group } = spec;
  const size = patchSize(spec), vectors = padded(size) / 4, tiles = vectors ** 2;
  return flatKernel({
    label: `gram ${group}x${size}x${size} of ${rows}`,
    size: group * tiles,
    bindings: [read("patches"), write("h")],
    body: `let group = i / ${tiles}u;
  let down = i / ${vectors}u % ${vectors}u;
  let across = i % ${vectors}u;
  ${COMPONENTS.map((c) => `var sum_${c} = vec4f();`).join(" ")}
  for (var row = group * ${rows}u; row < (group + 1u) * ${rows}u; row++) {
    let a = patches[row * ${vectors}u + down];
    let b = patches[row * ${vectors}u + across];
${COMPONENTS.map((c) => `    sum_${c} = fma(vec4f(a.${c}), b, sum_${c});`).join("\n")}
  }
  let at = (group * ${size}u + down * 4u) * ${vectors}u + across;
${
      COMPONENTS.map((c, m) =>
        `  if (down * 4u + ${m}u < ${size}u) { h[at + ${m * vectors}u] = sum_${c}; }`
      ).join("\n")
    }`,
  });
}
