// Plain convolution kernels for grouped convolutions whose groups do not fill whole vec4s: one invocation for each
// output vec4, scalar loops inside. Correct for every shape, not fast.
import { type Conv2dSpec, shapeLabel } from "./conv2d_plan.ts";
import { type Epilogue, epilogueBindings, epilogueSetup, epilogueStore } from "./epilogue.ts";
import {
  type Binding,
  COMPONENTS,
  declareBindings,
  flatIndex,
  grid1d,
  type Kernel,
  padded,
} from "./kernel.ts";

const WORKGROUP = 64;

/** y[n, a, b, o] = sum of x[n, a * stride + tap, b * stride + tap, c of o's group] * w[o, tap, c]. */
export function directForward(spec: Conv2dSpec, epilogue: Epilogue): Kernel {
  const depth = spec.inChannels / spec.group;
  const body = `
  let row = i32(place / ${spec.outWidth}u % ${spec.outHeight}u) * ${spec.strideHeight} - ${spec.padTop};
  let column = i32(place % ${spec.outWidth}u) * ${spec.strideWidth} - ${spec.padLeft};
  let image = i32(place / ${spec.outHeight * spec.outWidth}u);
  var sum = vec4f();
  for (var i = 0u; i < 4u; i++) {
    let o = channel * 4u + i;
    if (o >= ${spec.outChannels}u) { break; }
    let first = o / ${spec.outChannels / spec.group}u * ${depth}u;
    var total = 0.0;
    for (var tap = 0u; tap < ${spec.kernelHeight * spec.kernelWidth}u; tap++) {
      let in_row = row + i32(tap / ${spec.kernelWidth}u) * ${spec.dilationHeight};
      let in_column = column + i32(tap % ${spec.kernelWidth}u) * ${spec.dilationWidth};
      if (u32(in_row) >= ${spec.inHeight}u || u32(in_column) >= ${spec.inWidth}u) { continue; }
      let at = u32((image * ${spec.inHeight} + in_row) * ${spec.inWidth} + in_column) * ${
    padded(spec.inChannels)
  }u + first;
      let weight_at = (o * ${spec.kernelHeight * spec.kernelWidth}u + tap) * ${padded(depth)}u;
      for (var c = 0u; c < ${depth}u; c++) {
        total = fma(x[at + c], w[weight_at + c], total);
      }
    }
    sum[i] = total;
  }
  ${epilogueSetup(epilogue)}
  ${
    epilogueStore(epilogue, {
      value: "sum",
      output: "y",
      index: "flat",
      channel: "channel",
      channels: spec.outChannels,
    })
  }`;
  return direct(
    `conv2d_forward ${shapeLabel(spec)}`,
    [
      { name: "x", access: "read" },
      { name: "w", access: "read" },
      ...epilogueBindings(epilogue),
      { name: "y", access: "read_write" },
    ],
    { x: "f32", w: "f32" },
    spec.batch * spec.outHeight * spec.outWidth,
    padded(spec.outChannels) / 4,
    body,
  );
}

/** dx[n, i, j, c] = sum over outputs (a, b, o of c's group) and taps that read (i, j) of dy[n, a, b, o] * w[o, tap, c]. */
export function directBackwardInput(spec: Conv2dSpec): Kernel {
  const depth = spec.inChannels / spec.group;
  const channels = spec.outChannels / spec.group;
  const body = `
  let row = i32(place / ${spec.inWidth}u % ${spec.inHeight}u) + ${spec.padTop};
  let column = i32(place % ${spec.inWidth}u) + ${spec.padLeft};
  let image = i32(place / ${spec.inHeight * spec.inWidth}u);
  var sum = vec4f();
  for (var i = 0u; i < 4u; i++) {
    let c = channel * 4u + i;
    if (c >= ${spec.inChannels}u) { break; }
    let first = c / ${depth}u * ${channels}u;
    var total = 0.0;
    for (var tap = 0u; tap < ${spec.kernelHeight * spec.kernelWidth}u; tap++) {
      let scaled_row = row - i32(tap / ${spec.kernelWidth}u) * ${spec.dilationHeight};
      let scaled_column = column - i32(tap % ${spec.kernelWidth}u) * ${spec.dilationWidth};
      let a = scaled_row / ${spec.strideHeight};
      let b = scaled_column / ${spec.strideWidth};
      if (scaled_row < 0 || scaled_column < 0 || a * ${spec.strideHeight} != scaled_row || b * ${spec.strideWidth} != scaled_column
        || a >= ${spec.outHeight} || b >= ${spec.outWidth}) { continue; }
      let at = u32((image * ${spec.outHeight} + a) * ${spec.outWidth} + b) * ${
    padded(spec.outChannels)
  }u + first;
      for (var o = 0u; o < ${channels}u; o++) {
        let weight_at = ((first + o) * ${spec.kernelHeight * spec.kernelWidth}u + tap) * ${
    padded(depth)
  }u + c % ${depth}u;
        total = fma(dy[at + o], w[weight_at], total);
      }
    }
    sum[i] = total;
  }
  dx[flat] = sum;`;
  return direct(
    `conv2d_backward_input ${shapeLabel(spec)}`,
    [
      { name: "dy", access: "read" },
      { name: "w", access: "read" },
      { name: "dx", access: "read_write" },
    ],
    { dy: "f32", w: "f32" },
    spec.batch * spec.inHeight * spec.inWidth,
    padded(spec.inChannels) / 4,
    body,
  );
}

/** dw[o, tap, c] = sum over images and output pixels of x[n, pixel of tap, c of o's group] * dy[n, a, b, o]. */
export function directBackwardWeight(spec: Conv2dSpec): Kernel {
  const depth = spec.inChannels / spec.group;
  const channels = spec.outChannels / spec.group;
  const taps = spec.kernelHeight * spec.kernelWidth;
  const body = `
  let tap = place % ${taps}u;
  let o = place / ${taps}u;
  let first = o / ${channels}u * ${depth}u + channel * 4u;
  let row = i32(tap / ${spec.kernelWidth}u) * ${spec.dilationHeight} - ${spec.padTop};
  let column = i32(tap % ${spec.kernelWidth}u) * ${spec.dilationWidth} - ${spec.padLeft};
  var sum = vec4f();
  for (var pixel = 0u; pixel < ${spec.batch * spec.outHeight * spec.outWidth}u; pixel++) {
    let in_row = i32(pixel / ${spec.outWidth}u % ${spec.outHeight}u) * ${spec.strideHeight} + row;
    let in_column = i32(pixel % ${spec.outWidth}u) * ${spec.strideWidth} + column;
    if (u32(in_row) >= ${spec.inHeight}u || u32(in_column) >= ${spec.inWidth}u) { continue; }
    let image = pixel / ${spec.outHeight * spec.outWidth}u;
    let at = ((image * ${spec.inHeight}u + u32(in_row)) * ${spec.inWidth}u + u32(in_column)) * ${
    padded(spec.inChannels)
  }u + first;
    let slope = dy[pixel * ${padded(spec.outChannels)}u + o];
    sum += vec4f(${
    COMPONENTS.map((_, i) => `select(0.0, x[at + ${i}u], channel * 4u + ${i}u < ${depth}u)`)
      .join(", ")
  }) * slope;
  }
  dw[flat] = sum;`;
  return direct(
    `conv2d_backward_weight ${shapeLabel(spec)}`,
    [
      { name: "x", access: "read" },
      { name: "dy", access: "read" },
      { name: "dw", access: "read_write" },
    ],
    { x: "f32", dy: "f32" },
    spec.outChannels * taps,
    padded(depth) / 4,
    body,
  );
}

/** A kernel with one invocation for each of `places` x `vectors` output vec4s, indexed by `place` and `channel`. */
function direct(
  label: string,
  bindings: readonly Binding[],
  types: Readonly<Record<string, string>>,
  places: number,
  vectors: number,
  body: string,
): Kernel {
  const code = /* wgsl */ `${declareBindings(bindings, types)}

@compute @workgroup_size(${WORKGROUP})
fn main(
  @builtin(workgroup_id) workgroup: vec3u,
  @builtin(num_workgroups) groups: vec3u,
  @builtin(local_invocation_index) local: u32,
) {
  let flat = ${flatIndex(WORKGROUP)};
  if (flat >= ${places * vectors}u) { return; }
  let place = flat / ${vectors}u;
  let channel = flat % ${vectors}u;
${body}
}
`;
  return { label, code, bindings, grid: grid1d(places * vectors, WORKGROUP) };
}
