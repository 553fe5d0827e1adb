// From tensors by binding name to what WebGPU binds. What can be checked on the host is checked here, since WebGPU's own
// messages about bindings name neither the kernel nor the binding.
import type { Kernel, KernelSequence } from "../../kernels/kernel.ts";
import type { Tensor } from "./tensor.ts";

/** Tensors by binding name. */
export type Bindings = Readonly<Record<string, Tensor>>;

/**
 * Entries of a kernel's bind group.
 *
 * @param kernel the kernel
 * @param bindings a tensor for every binding, by name
 * @param largestGrid workgroups that one dimension of a dispatch takes
 * @returns one entry a binding
 * @throws TypeError when a binding is missing or unknown, or one buffer is both read and written
 * @throws RangeError when the grid is too large
 */
export function bindingEntries(
  kernel: Kernel,
  bindings: Bindings,
  largestGrid: number,
): GPUBindGroupEntry[] {
  const { label } = kernel;
  if (kernel.grid.some((groups) => groups > largestGrid)) {
    throw new RangeError(
      `Kernel "${label}" has a grid of [${
        kernel.grid.join(", ")
      }], the adapter takes ${largestGrid}`,
    );
  }
  checkBindings({ kernels: [kernel] }, bindings);
  const accesses = new Map<GPUBuffer, Kernel["bindings"][number]>();
  return kernel.bindings.map((own, binding) => {
    const tensor = bindings[own.name];
    if (tensor === undefined) {
      throw new TypeError(`Kernel "${label}" needs a tensor for binding "${own.name}"`);
    }
    const { buffer, offset, byteLength: size } = tensor;
    const other = accesses.get(buffer);
    if (other !== undefined && other.access !== own.access) {
      throw new TypeError(
        `Kernel "${label}" reads and writes one buffer, "${tensor.label}": bindings "${other.name}" and "${own.name}"`,
      );
    }
    accesses.set(buffer, own);
    return { binding, resource: { buffer, offset, size } };
  });
}

/**
 * Checks that every given tensor has a binding.
 *
 * @param sequence the kernels that run
 * @param bindings tensors by name
 * @throws TypeError when a tensor is used by none of the kernels
 */
export function checkBindings(
  { kernels }: Pick<KernelSequence, "kernels">,
  bindings: Bindings,
): void {
  for (const name of Object.keys(bindings)) {
    if (kernels.some((kernel) => kernel.bindings.some((binding) => binding.name === name))) {
      continue;
    }
    const [first] = kernels;
    throw new TypeError(`Kernel "${first?.label}" has no binding "${name}"`);
  }
}

/** The bindings that a kernel of a sequence uses. */
export function pick(kernel: Kernel, bindings: Bindings): Record<string, Tensor> {
  const picked: Record<string, Tensor> = {};
  for (const { name } of kernel.bindings) {
    const tensor = bindings[name];
    if (tensor !== undefined) picked[name] = tensor;
  }
  return picked;
}
