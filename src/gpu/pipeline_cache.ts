// Compute pipelines by their WGSL, and the layouts they share.
import type { Access, Kernel } from "../../kernels/kernel.ts";
import type { ErrorWatch } from "./error_watch.ts";

/** A pipeline and the layout of its bind group. */
export interface CachedPipeline {
  readonly pipeline: GPUComputePipeline;
  readonly layout: GPUBindGroupLayout;
}

/** Makes every pipeline once. */
export class PipelineCache {
  readonly #gpu: GPUDevice;
  readonly #errors: ErrorWatch;
  readonly #pipelines = new Map<string, CachedPipeline>();
  readonly #layouts = new Map<string, { group: GPUBindGroupLayout; pipeline: GPUPipelineLayout }>();

  /**
   * @param gpu where the pipelines run
   * @param errors who is told when a shader does not compile
   */
  constructor(gpu: GPUDevice, errors: ErrorWatch) {
    this.#gpu = gpu;
    this.#errors = errors;
  }

  /** Whether a kernel has its pipeline already. */
  has({ code }: Kernel): boolean {
    return this.#pipelines.has(code);
  }

  /** The pipeline of a kernel. */
  get({ code, label, bindings }: Kernel): CachedPipeline {
    const cached = this.#pipelines.get(code);
    if (cached !== undefined) return cached;
    const made = this.#errors.within(label, () => {
      const layout = this.#layout(bindings.map((binding) => binding.access));
      const module = this.#gpu.createShaderModule({ code, label });
      const compute = { module, entryPoint: "main" };
      const pipeline = this.#gpu.createComputePipeline({ label, layout: layout.pipeline, compute });
      return { pipeline, layout: layout.group };
    });
    this.#pipelines.set(code, made);
    return made;
  }

  /** Explicit layouts, shared by all kernels with the same accesses ("auto" drops unused bindings). */
  #layout(accesses: readonly Access[]): { group: GPUBindGroupLayout; pipeline: GPUPipelineLayout } {
    const key = accesses.join();
    const cached = this.#layouts.get(key);
    if (cached !== undefined) return cached;
    const group = this.#gpu.createBindGroupLayout({
      entries: accesses.map((access, binding) => ({
        binding,
        visibility: GPUShaderStage.COMPUTE,
        buffer: { type: access === "read" ? "read-only-storage" as const : "storage" as const },
      })),
    });
    const pipeline = this.#gpu.createPipelineLayout({ bindGroupLayouts: [group] });
    const made = { group, pipeline };
    this.#layouts.set(key, made);
    return made;
  }
}
