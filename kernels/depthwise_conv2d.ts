// Depthwise 2-D convolution (one filter a channel) and its gradients: x [N, H, W, C], w [KH, KW, C], y [N, OH, OW, C].
// Bound by memory: an invocation owns 4 channels of a small block of output pixels, so that each input pixel it loads
// serves every tap of every output of the block. No subgroups and no workgroup memory. On CPU adapters strips
// (depthwise_conv2d_software) take the place of the blocks, except for large filters.
import {
  backwardInputConvolutions,
  type Conv2dSpec,
  forwardConvolution,
  leavesInput,
  shapeLabel,
  type TapAxis,
  type TapConvolution,
} from "./conv2d_plan.ts";
import { depthwiseSoftware, depthwiseStrips } from "./depthwise_conv2d_software.ts";
import { fitsStrips } from "./depthwise_strip.ts";
import { depthwiseWeightGradient } from "./depthwise_conv2d_weight.ts";
import {
  type Epilogue,
  epilogueBindings,
  epilogueSetup,
  epilogueStore,
  loadBias,
} from "./epilogue.ts";
import {
  type Binding,
  declareBindings,
  flatIndex,
  grid1d,
  type Kernel,
  type KernelSequence,
  padded,
  range,
  type Target,
} from "./kernel.ts";
import { decideTile } from "./tile_choice.ts";

const WORKGROUP = 64;

/** Kernels with more taps loop over the rows of the filter instead of unrolling them. */
const UNROLLED_TAPS = 25;

/** Output pixels of an invocation. */
interface Block {
  readonly height: number;
  readonly width: number;
}

/**
 * y[n, a, b, c] = epilogue(sum over taps of x[n, a * stride + tap, b * stride + tap, c] * w[tap, c]).
 *
 * @param spec Shape of the convolution; `group`, `inChannels` and `outChannels` are equal.
 * @param epilogue What is fused into the store.
 * @param target Kind of adapter.
 * @returns Kernels with bindings `x`, `w`, the epilogue's, and `y`.
 */
export function depthwiseConv2dForward(
  spec: Conv2dSpec,
  epilogue: Epilogue,
  target: Target,
): KernelSequence {
  return depthwise(spec, [forwardConvolution(spec, epilogue)], "forward", target);
}

/**
 * Gradient of the input: dx[n, i, j, c] = sum of dy[n, a, b, c] * w[tap, c] over the (a, b, tap) that read (i, j).
 *
 * @param spec Shape of the forward convolution.
 * @param target Kind of adapter.
 * @returns Kernels with bindings `dy`, `w` and `dx`.
 */
export function depthwiseConv2dBackwardInput(spec: Conv2dSpec, target: Target): KernelSequence {
  return depthwise(spec, backwardInputConvolutions(spec), "backward_input", target);
}

/**
 * Gradient of the weight: dw[tap, c] = sum over images and pixels of x[n, a * stride + tap, ..., c] * dy[n, a, b, c].
 *
 * @param spec Shape of the forward convolution.
 * @param target Kind of adapter.
 * @returns Kernels with bindings `x`, `dy` and `dw`; partial sums over pixels are added in a fixed order.
 */
export function depthwiseConv2dBackwardWeight(spec: Conv2dSpec, target: Target): KernelSequence {
  return depthwiseWeightGradient(spec, target);
}

/** Strips that write all parts at once where the family has them, blocks for each part otherwise. */
function depthwise(
  spec: Conv2dSpec,
  parts: readonly TapConvolution[],
  name: "forward" | "backward_input",
  target: Target,
): KernelSequence {
  if (target.family === "gpu" || !fitsStrips(spec)) {
    return { kernels: parts.map((part) => blocks(part, target)), temporaries: {} };
  }
  const [{ inputName, outputName, rows, columns }] = parts as [TapConvolution]; // one at least
  const key = `depthwise_conv2d_${name} ${shapeLabel(spec)}`;
  const plain = parts.map((part) => ({ ...part, epilogue: {} }));
  const { tile, choice } = decideTile({
    key,
    shapes: {
      [inputName]: [spec.batch, rows.inputSize, columns.inputSize, spec.group],
      w: [spec.kernelHeight, spec.kernelWidth, spec.group],
      [outputName]: [spec.batch, rows.outputSize, columns.outputSize, spec.group],
    },
    tiles: depthwiseStrips(parts, target),
    build: (strip) => ({
      kernels: [depthwiseSoftware(plain, target, strip, key)],
      temporaries: {},
    }),
  }, target);
  return { kernels: [{ ...depthwiseSoftware(parts, target, tile, key), choice }], temporaries: {} };
}

function blocks(convolution: TapConvolution, target: Target): Kernel {
  const { rows, columns, epilogue, inputName, outputName, batch } = convolution;
  const channels = convolution.group;
  const vectors = padded(channels) / 4;
  const block = chooseBlock(convolution, target);
  const across = Math.ceil(columns.positions / block.width);
  const down = Math.ceil(rows.positions / block.height);
  const invocations = batch * down * across * vectors;
  const bindings: Binding[] = [
    { name: inputName, access: "read" },
    { name: "w", access: "read" },
    ...epilogueBindings(epilogue),
    { name: outputName, access: "read_write" },
  ];
  const code = /* wgsl */ `${declareBindings(bindings)}

@compute @workgroup_size(${WORKGROUP})
fn main(
  @builtin(workgroup_id) workgroup: vec3u,
  @builtin(num_workgroups) groups: vec3u,
  @builtin(local_invocation_index) local: u32,
) {
  let flat = ${flatIndex(WORKGROUP)};
  if (flat >= ${invocations}u) { return; }
  let channel = flat % ${vectors}u;
  let b = i32(flat / ${vectors}u % ${across}u) * ${block.width};
  let a = i32(flat / ${vectors * across}u % ${down}u) * ${block.height};
  let n = i32(flat / ${vectors * across * down}u);
  ${epilogueSetup(epilogue)}
  ${loadBias(epilogue, "channel_bias", "channel")}
${
    range(block.height).map((i) =>
      "  " + range(block.width).map((j) => `var c${i}_${j} = vec4f();`).join(" ")
    ).join("\n")
  }
${sum(convolution, block, vectors)}
${store(convolution, block, vectors)}
}
`;
  return {
    label: `depthwise_${convolution.label}`,
    code,
    bindings,
    grid: grid1d(invocations, WORKGROUP),
  };
}

/** The block with the fewest loads and stores for a useful output. */
function chooseBlock({ rows, columns }: TapConvolution, target: Target): Block {
  const taps = rows.taps.count * columns.taps.count;
  const most = target.family === "software" ? 16 : 8;
  let best: Block = { height: 1, width: 1 };
  let bestCost = Infinity;
  for (const height of taps > UNROLLED_TAPS ? [1] : [1, 2, 3, 4]) {
    for (const width of range(Math.min(8, columns.positions)).map((i) => i + 1)) {
      if (height * width > most || height * width * taps > 200 && height * width > 4) continue;
      const loads = inputOffsets(rows, height).length * inputOffsets(columns, width).length;
      const blocks = Math.ceil(rows.positions / height) * Math.ceil(columns.positions / width);
      const cost = (loads + taps + height * width) * blocks;
      if (cost < bestCost) [best, bestCost] = [{ height, width }, cost];
    }
  }
  return best;
}

/** Distinct input positions, relative to the first, that `count` neighbouring outputs read. */
function inputOffsets(axis: TapAxis, count: number): number[] {
  const offsets = new Set<number>();
  for (const position of range(count)) {
    for (const tap of range(axis.taps.count)) {
      offsets.add(
        position * axis.inputStep + axis.taps.offsetStart + tap * axis.taps.offsetStep,
      );
    }
  }
  return [...offsets].sort((x, y) => x - y);
}

/** The tap of an axis that carries input offset `offset` to output `position`, if there is one. */
function tapOf(axis: TapAxis, offset: number, position: number): number | undefined {
  return range(axis.taps.count).find((tap) =>
    position * axis.inputStep + axis.taps.offsetStart + tap * axis.taps.offsetStep === offset
  );
}

function sum(convolution: TapConvolution, block: Block, vectors: number): string {
  const { rows, columns, kernelWidth } = convolution;
  const rowTaps = rows.taps.count;
  const columnTaps = columns.taps.count;
  if (rowTaps * columnTaps === 0) return "";
  const weights = (name: string, kernelRow: string): string[] =>
    range(columnTaps).map((tap) => {
      const column = columns.taps.kernelStart + tap * columns.taps.kernelStep;
      return `let w${name}_${tap} = w[(${kernelRow} * ${kernelWidth}u + ${column}u) * ${vectors}u + channel];`;
    });
  if (rowTaps * columnTaps > UNROLLED_TAPS) {
    const kernelRow = `(${rows.taps.kernelStart}u + t * ${rows.taps.kernelStep}u)`;
    const offset = `${rows.taps.offsetStart} + i32(t) * (${rows.taps.offsetStep})`;
    return [
      `  for (var t = 0u; t < ${rowTaps}u; t++) {`,
      ...weights("t", kernelRow),
      ...inputRow(convolution, block, vectors, "", offset, [[0, "t"]]),
      "  }",
    ].join("\n    ");
  }
  return [
    ...range(rowTaps).flatMap((tap) =>
      weights(`${tap}`, `${rows.taps.kernelStart + tap * rows.taps.kernelStep}u`)
    ),
    ...inputOffsets(rows, block.height).flatMap((offset, r) => {
      const uses = range(block.height).flatMap((i): [number, string][] => {
        const tap = tapOf(rows, offset, i);
        return tap === undefined ? [] : [[i, `${tap}`]];
      });
      return inputRow(convolution, block, vectors, `${r}_`, `${offset}`, uses);
    }),
  ].map((line) => "  " + line).join("\n");
}

/** Loads one input row of the window and adds it to the output rows `uses`: (row of the block, row of weights). */
function inputRow(
  { rows, columns, inputName }: TapConvolution,
  block: Block,
  vectors: number,
  name: string,
  offset: string,
  uses: readonly (readonly [number, string])[],
): string[] {
  // Blocks at the lower and right edge may reach past the last output; what they load is clamped, what they sum unused.
  const checksRows = leavesInput({
    ...rows,
    positions: Math.ceil(rows.positions / block.height) * block.height,
  });
  const checksColumns = leavesInput({
    ...columns,
    positions: Math.ceil(columns.positions / block.width) * block.width,
  });
  const lines = [
    `let row${name} = a * ${rows.inputStep} + ${offset};`,
    `let inside${name} = ${checksRows ? `u32(row${name}) < ${rows.inputSize}u` : "true"};`,
    `let line${name} = (n * ${rows.inputSize} + select(0, row${name}, inside${name})) * ${columns.inputSize};`,
  ];
  const window = inputOffsets(columns, block.width);
  window.forEach((shift, s) => {
    const column = `(b * ${columns.inputStep} + ${shift})`;
    const inside = checksColumns
      ? `inside${name} && u32${column} < ${columns.inputSize}u`
      : `inside${name}`;
    lines.push(
      `let inside${name}_${s} = ${inside};`,
      `let x${name}${s} = select(vec4f(), ${inputName}[u32(line${name} + select(0, ${column}, inside${name}_${s})) * ${vectors}u + channel], inside${name}_${s});`,
    );
  });
  for (const [i, weightRow] of uses) {
    for (const j of range(block.width)) {
      window.forEach((shift, s) => {
        const tap = tapOf(columns, shift, j);
        if (tap === undefined) return;
        lines.push(`c${i}_${j} = fma(x${name}${s}, w${weightRow}_${tap}, c${i}_${j});`);
      });
    }
  }
  return lines;
}

function store(convolution: TapConvolution, block: Block, vectors: number): string {
  const { rows, columns, outputName, epilogue, group } = convolution;
  const lines: string[] = [];
  for (const i of range(block.height)) {
    lines.push(
      `let out${i} = (n * ${rows.outputSize} + (a + ${i}) * ${rows.outputStep} + ${rows.outputStart}) * ${columns.outputSize} + b * ${columns.outputStep} + ${columns.outputStart};`,
    );
    for (const j of range(block.width)) {
      const index = `at${i}_${j}`;
      const store = epilogueStore(epilogue, {
        value: `c${i}_${j}`,
        output: outputName,
        index,
        channel: "channel",
        bias: "channel_bias",
        channels: group,
      });
      const guards = [
        i === 0 || rows.positions % block.height === 0 ? "" : `a + ${i} < ${rows.positions}`,
        j === 0 || columns.positions % block.width === 0 ? "" : `b + ${j} < ${columns.positions}`,
      ].filter(Boolean);
      lines.push(
        `let ${index} = u32(out${i} + ${j * columns.outputStep}) * ${vectors}u + channel;`,
        guards.length > 0 ? `if (${guards.join(" && ")}) ${store}` : store,
      );
    }
  }
  return lines.map((line) => "  " + line).join("\n");
}
