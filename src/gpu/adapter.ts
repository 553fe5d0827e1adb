// The first adapter with all its limits and, where it has them, timestamps, float16 and subgroups.
import type { Target, TileTable } from "../../kernels/kernel.ts";
import { GpuError } from "../core/errors.ts";
import { prepareEnvironment } from "./environment.ts";

/** What tiles are measured for: an adapter and the kernels that are taken for it. */
export interface AdapterDescription extends Pick<Target, "family" | "subgroupSize"> {
  /** For example `llvmpipe (LLVM 15.0.6, 256 bits)`. */
  readonly name: string;
}

/** Finds the tiles measured on an adapter. */
export type FindTiles = (adapter: AdapterDescription) => Promise<TileTable | undefined>;

/** An adapter and the device that was opened on it. */
export interface OpenAdapter {
  /** The device. */
  readonly gpu: GPUDevice;
  /** The adapter's name for reports. */
  readonly name: string;
  /** What kernels must know of it. */
  readonly target: Target;
}

/**
 * Opens the adapter.
 *
 * @param options whether to ask for subgroups, a kernel family other than the adapter's own, and measured tiles
 * @returns the device with its adapter
 * @throws GpuError when there is no adapter
 */
export async function openAdapter(
  { subgroups, family, findTiles }: {
    readonly subgroups: boolean;
    readonly family: Target["family"] | undefined;
    readonly findTiles: FindTiles | undefined;
  },
): Promise<OpenAdapter> {
  prepareEnvironment();
  const adapter = await navigator.gpu.requestAdapter({ powerPreference: "high-performance" });
  if (adapter === null) {
    throw new GpuError(
      "No WebGPU adapter: install a Vulkan driver (Debian: apt-get install mesa-vulkan-drivers)",
    );
  }
  const requiredLimits: Record<string, number> = {};
  for (const name in adapter.limits) {
    const value = adapter.limits[name as keyof GPUSupportedLimits];
    if (typeof value === "number") requiredLimits[name] = value;
  }
  const features = (["timestamp-query", "shader-f16"] as const)
    .filter((feature) => adapter.features.has(feature));
  const request = (extra: GPUFeatureName[]) =>
    adapter.requestDevice({ requiredFeatures: [...features, ...extra], requiredLimits });
  let gpu: GPUDevice | undefined;
  let subgroupSize = 0;
  if (subgroups) {
    // Deno does not list the feature on its adapters, but grants it where the driver has it.
    gpu = await request(["subgroups" as GPUFeatureName]).catch(() => undefined);
    const info = adapter.info as GPUAdapterInfo & {
      subgroupMinSize?: number;
      subgroupMaxSize?: number;
    };
    if (gpu !== undefined && info.subgroupMinSize === info.subgroupMaxSize) {
      subgroupSize = info.subgroupMinSize ?? 0;
    }
  }
  gpu ??= await request([]);
  const own = adapter.info.isFallbackAdapter ? "software" : "gpu";
  const name = adapter.info.description || adapter.info.vendor || "unknown adapter";
  const target: Target = { family: family ?? own, subgroupSize };
  const tiles = await findTiles?.({ name, ...target });
  return { gpu, name, target: tiles ? { ...target, tiles } : target };
}
