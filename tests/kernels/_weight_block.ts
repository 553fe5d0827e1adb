// A flat parameter buffer with the weights of a small block: two dense convolutions and a depthwise one, with padding,
// unequal code ranges and log-scales that share vec4s.
import type { WeightRow } from "../../kernels/weight_quantization.ts";
import { padded } from "../../kernels/kernel.ts";
import { Rng } from "../../src/core/rng.ts";
import { randomArray } from "../_gpu.ts";
import { awayFromThresholds } from "../_reference_quant.ts";

/** One scale with its codes. */
export interface WeightChannel {
  readonly scale: number;
  readonly logScale: number;
  readonly quantMin: number;
  readonly quantMax: number;
}

/** Float indices of one weight. */
export interface WeightElement {
  readonly at: number;
  readonly output: number;
  readonly channel: number;
}

/** The block: `parameters` is what the device gets, the rest says where everything is. */
export interface WeightBlock {
  readonly parameters: Float64Array<ArrayBuffer>;
  readonly rows: WeightRow[];
  readonly channels: WeightChannel[];
  readonly elements: WeightElement[];
  /** Padded weights; `channel` is -1. */
  readonly padding: WeightElement[];
  readonly paddedLogScales: number[];
  readonly outputSize: number;
}

const GRIDS = [[-2, 1], [-1, 2], [-8, 7], [-3, 0], [-128, 127]] as const;

/** A block of random weights, none near a rounding or clipping threshold. */
export function weightBlock(seed: number): WeightBlock {
  const rng = new Rng(seed);
  const parameters = new Float64Array(1024);
  const block: WeightBlock = {
    parameters,
    rows: [],
    channels: [],
    elements: [],
    padding: [],
    paddedLogScales: [],
    outputSize: 0,
  };
  let output = 0;
  const newChannel = (logScale: number): number => {
    const index = block.channels.length;
    const [quantMin, quantMax] = GRIDS[index % GRIDS.length]!; // modulo
    parameters[logScale] = Math.fround(-1.5 + rng.uniform());
    block.channels.push({ scale: Math.exp(parameters[logScale]), logScale, quantMin, quantMax });
    return index;
  };
  const place = (at: number, to: number, channel: number): void => {
    if (channel < 0) {
      block.padding.push({ at, output: to, channel });
      return;
    }
    const { scale } = block.channels[channel]!; // made by newChannel
    parameters[at] = awayFromThresholds(randomArray(rng.uint32(), 1), scale)[0]!; // one value
    block.elements.push({ at, output: to, channel });
  };
  /** Dense [outChannels, taps, inChannels]. */
  const dense = (start: number, logs: number, [outs, taps, ins]: readonly number[]): void => {
    const row = taps! * padded(ins!);
    for (let o = 0; o < outs!; o++) {
      const channel = newChannel(logs + o);
      const { quantMin, quantMax } = block.channels[channel]!; // just made
      const from = start + o * row;
      for (let i = 0; i < row; i++) {
        place(from + i, output + i, i % padded(ins!) < ins! ? channel : -1);
      }
      const ends = { start: from / 4, length: row / 4, logScale: logs + o, output: output / 4 };
      block.rows.push({ ...ends, quantMin, quantMax });
      output += row;
    }
  };
  /** Depthwise [taps, channels]. */
  const depthwise = (start: number, logs: number, taps: number, channels: number): void => {
    const stride = padded(channels);
    for (let c = 0; c < stride; c += 4) {
      const lanes = [0, 1, 2, 3].map((lane) => {
        if (c + lane < channels) return newChannel(logs + c + lane);
        block.paddedLogScales.push(logs + c + lane);
        return -1;
      });
      for (let tap = 0; tap < taps; tap++) {
        lanes.forEach((channel, lane) => {
          const i = tap * stride + c + lane;
          place(start + i, output + i, channel);
        });
      }
      const codes = lanes.map((channel) => block.channels[channel]);
      block.rows.push({
        start: (start + c) / 4,
        length: taps,
        logScale: logs + c,
        output: (output + c) / 4,
        stride: stride / 4,
        quantMin: codes.map((channel) => channel?.quantMin ?? 0),
        quantMax: codes.map((channel) => channel?.quantMax ?? 0),
      });
    }
    output += taps * stride;
  };
  dense(64, 0, [5, 9, 3]);
  dense(320, 8, [3, 1, 17]);
  depthwise(448, 20, 9, 5);
  return { ...block, outputSize: output };
}
