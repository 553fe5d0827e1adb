// Three small kernels for the tests of src/gpu: y = 2x + 1, y += x, and both in a row through a temporary.
import type { Kernel, KernelSequence } from "../../kernels/kernel.ts";

/** y[i] = 2 x[i] + 1 over `vectors` vec4s. */
export function doubleAndAdd(vectors: number, label = `double_and_add ${vectors}`): Kernel {
  return simple(label, vectors, "x", "y[i] = 2.0 * x[i] + 1.0;");
}

/** y[i] += x[i]. */
export function accumulate(vectors: number): Kernel {
  return simple(`accumulate ${vectors}`, vectors, "x", "y[i] += x[i];");
}

/** y = 2 (2x + 1) + 1 by way of the temporary `middle`. */
export function twice(vectors: number): KernelSequence {
  const first = doubleAndAdd(vectors),
    second = simple("second", vectors, "middle", "y[i] = 2.0 * middle[i] + 1.0;");
  const [x] = first.bindings;
  return {
    kernels: [
      {
        ...first,
        code: first.code.replaceAll("> y:", "> middle:").replaceAll("y[i]", "middle[i]"),
        bindings: [x!, { name: "middle", access: "read_write" }],
      },
      second,
    ],
    temporaries: { middle: vectors * 4 },
  };
}

function simple(label: string, vectors: number, input: string, body: string): Kernel {
  return {
    label,
    bindings: [{ name: input, access: "read" }, { name: "y", access: "read_write" }],
    grid: [Math.ceil(vectors / 64), 1, 1],
    code: /* wgsl */ `
@group(0) @binding(0) var<storage, read> ${input}: array<vec4f>;
@group(0) @binding(1) var<storage, read_write> y: array<vec4f>;

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3u) {
  let i = id.x;
  if (i >= ${vectors}u) { return; }
  ${body}
}`,
  };
}
