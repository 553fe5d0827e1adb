// How much a sample's activation matters to the network's output, from gradients g of random projections of the output
// (Hutchinson 1990): the label-free Hessian of EPTQ (Gordon et al. 2023). g: [samples * positions, C].
import { flatKernel, read, write } from "./flat_kernel.ts";
import { type Kernel, padded } from "./kernel.ts";

/** A gradient with several positions (pixels) a sample. */
export interface SampleImportanceSpec {
  readonly samples: number;
  readonly positions: number;
  readonly channels: number;
}

/**
 * importance += the largest over the channels of the sum over the positions of g^2.
 *
 * Bindings: g (read), importance (read_write, [samples, 1]).
 */
export function addSampleImportance(spec: SampleImportanceSpec): Kernel {
  const { samples, positions, channels } = spec;
  const quads = padded(channels) / 4;
  return flatKernel({
    label: `sample_importance ${samples}x${positions}x${channels}`,
    size: samples,
    bindings: [read("g"), write("importance")],
    body: `var largest = vec4f(0.0);
  for (var channel = 0u; channel < ${quads}u; channel++) {
    var sum = vec4f(0.0);
    for (var position = 0u; position < ${positions}u; position++) {
      let value = g[(i * ${positions}u + position) * ${quads}u + channel];
      sum = fma(value, value, sum);
    }
    largest = max(largest, sum);
  }
  importance[i].x += max(max(largest.x, largest.y), max(largest.z, largest.w));`,
  });
}
