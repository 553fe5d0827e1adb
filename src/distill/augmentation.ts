// Augmented copies of calibration inputs: each image shifted by a few pixels, with black coming in at the border, and
// mirrored at random. The labels stay valid, and a teacher needs none. Also the same on the GPU, anew in every step.
import { augmentImages, packShiftFlip } from "../../kernels/augment.ts";
import { Rng } from "../core/rng.ts";
import type { ImageSet } from "../data/image_set.ts";
import type { Plan } from "../gpu/plan.ts";
import type { Tensor } from "../gpu/tensor.ts";
import type { AugmentRecipe } from "./recipe.ts";

const AUGMENT_STREAM = 0x0a06_3e47;
const TRANSFORM_STREAM = 0x7a95_0e11;

/**
 * Makes the copies.
 *
 * @param rows [N, H, W, C] normalized images
 * @param size their height, width and channels
 * @param black [C]: a black pixel after normalization
 * @param recipe how many versions, the clean one included, and how far they differ
 * @param seed of the random choices
 * @returns `copies - 1` arrays like `rows`
 */
export function augmentedCopies(
  rows: Float32Array<ArrayBuffer>,
  { height, width, channels }: Pick<ImageSet, "height" | "width" | "channels">,
  black: Float32Array,
  { copies, shift, flip }: Omit<AugmentRecipe, "copies"> & { readonly copies: number },
  seed: number,
): Float32Array<ArrayBuffer>[] {
  const rng = new Rng(seed ^ AUGMENT_STREAM);
  const size = height * width * channels;
  const result: Float32Array<ArrayBuffer>[] = [];
  for (let copy = 1; copy < copies; copy++) {
    const augmented = new Float32Array(rows.length);
    for (let start = 0; start < rows.length; start += size) {
      const dy = rng.integer(2 * shift + 1) - shift;
      const dx = rng.integer(2 * shift + 1) - shift;
      const mirrored = flip && rng.uniform() < 0.5;
      for (let y = 0; y < height; y++) {
        for (let x = 0; x < width; x++) {
          const fromY = y + dy;
          const fromX = (mirrored ? width - 1 - x : x) + dx;
          const inside = fromY >= 0 && fromY < height && fromX >= 0 && fromX < width;
          const from = start + (fromY * width + fromX) * channels;
          const to = start + (y * width + x) * channels;
          for (let c = 0; c < channels; c++) {
            augmented[to + c] = inside ? rows[from + c]! : black[c]!;
          }
        }
      }
    }
    result.push(augmented);
  }
  return result;
}

/**
 * A random shift and flip for every image of every step.
 *
 * @param recipe how far they go
 * @param size images of all steps together
 * @param seed of the random choices
 * @returns a table for {@linkcode recordAugmentation}
 */
export function transformTable(
  { shift, flip }: Pick<AugmentRecipe, "shift" | "flip">,
  size: number,
  seed: number,
): Uint32Array<ArrayBuffer> {
  const rng = new Rng(seed ^ TRANSFORM_STREAM);
  return Uint32Array.from({ length: size }, () => {
    const dy = rng.integer(2 * shift + 1) - shift;
    const dx = rng.integer(2 * shift + 1) - shift;
    return packShiftFlip({ dy, dx, flip: flip && rng.uniform() < 0.5 });
  });
}

/**
 * Records the augmentation of a mini-batch.
 *
 * @param plan where to record
 * @param x [N, H, W, C]; its memory is given back
 * @param tables transforms of all steps, [C] a black pixel, and the training state
 * @param steps steps of the table
 * @returns the augmented images
 */
export function recordAugmentation(
  plan: Plan,
  x: Tensor,
  { transforms, black, state }: {
    readonly transforms: Tensor;
    readonly black: Tensor;
    readonly state: Tensor;
  },
  steps: number,
): Tensor {
  const [images = 1, height = 1, width = 1, channels = 1] = x.shape;
  const y = plan.tensor(x.shape, "augmented inputs");
  const kernel = augmentImages({ images, height, width, channels, steps }, plan.device.target);
  const always = { x, fill: black, transforms, y };
  plan.run(kernel, steps > 1 ? { ...always, state } : always);
  plan.release(x);
  return y;
}
