// How much a sample's activation matters to the network's output, from gradients g of random projections of the output
// (Hutchinson 1990): the label-free Hessian of EPTQ (Gordon et al. 2023). g: [samples * positions, C].
import { declareBindings, flatIndex, grid1d, type Kernel, padded } from "./kernel.ts";

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
  const bindings = [
    { name: "g", access: "read" },
    { name: "importance", access: "read_write" },
  ] as const;
  const code = /* wgsl */ `${declareBindings(bindings)}
@compute @workgroup_size(16)
fn main(@builtin(workgroup_id) workgroup: vec3u, @builtin(num_workgroups) groups: vec3u,
    @builtin(local_invocation_index) local: u32) {
  let sample = ${flatIndex(16)};
  if (sample >= ${samples}u) { return; }
  var largest = vec4f(0.0);
  for (var channel = 0u; channel < ${quads}u; channel++) {
    var sum = vec4f(0.0);
    for (var position = 0u; position < ${positions}u; position++) {
      let value = g[(sample * ${positions}u + position) * ${quads}u + channel];
      sum = fma(value, value, sum);
    }
    largest = max(largest, sum);
  }
  importance[sample].x += max(max(largest.x, largest.y), max(largest.z, largest.w));
}
`;
  return {
    label: `sample_importance ${samples}x${positions}x${channels}`,
    code,
    bindings,
    grid: grid1d(samples, 16),
  };
}
