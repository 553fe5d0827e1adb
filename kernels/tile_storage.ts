// How the operands of a product lie in workgroup memory on GPUs: as float32, or as float16 (WGSL extension f16), which
// takes half the memory and half its bandwidth. Operands are rounded to 11 bits on their way in, and beyond 65504 become
// infinite, which a loss shows; products and sums are float32 either way.

/** Element type of workgroup-memory tiles. */
export type TileStorage = "float32" | "float16";

/** The WGSL of a storage. */
export interface TileForm {
  /** What the shader begins with. */
  readonly enable: string;
  /** Type of 4 elements. */
  readonly type: string;
  /** Expression for the tile, from one of type vec4f. */
  keep(value: string): string;
  /** Expression of type vec4f, from one of the tile. */
  load(element: string): string;
}

/** By storage. */
export const TILE_FORMS: Readonly<Record<TileStorage, TileForm>> = {
  float32: { enable: "", type: "vec4f", keep: (value) => value, load: (element) => element },
  float16: {
    enable: "enable f16;\n\n",
    type: "vec4h",
    keep: (value) => `vec4h(${value})`,
    load: (element) => `vec4f(${element})`,
  },
};
