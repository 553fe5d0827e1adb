// The mean of a convolution's outputs, from mean inputs alone, against all outputs of a float64 convolution.
import assert from "node:assert/strict";
import { convLayout, toChannelsLastLayout } from "../../src/graph/weight_layout.ts";
import { meanOutputs, tapMeans } from "../../src/quant/mean_outputs.ts";
import type { NdArray } from "../../src/core/nd_array.ts";
import { evaluate } from "../graph/_evaluate.ts";
import { makeGraph, node, normal } from "../graph/_graphs.ts";
import { randomValues } from "../graph/_networks.ts";

const CASES = [
  { outputs: 5, inputs: 4, group: 1, stride: [1, 1], dilation: [1, 1], pads: [1, 0, 2, 1] },
  { outputs: 6, inputs: 4, group: 2, stride: [2, 3], dilation: [1, 2], pads: [1, 2, 1, 2] },
  { outputs: 4, inputs: 4, group: 4, stride: [2, 1], dilation: [2, 1], pads: [2, 1, 2, 1] },
] as const;

for (const { outputs, inputs, group, stride, dilation, pads } of CASES) {
  Deno.test(`meanOutputs() is the mean of all outputs, group ${group}`, () => {
    const batch = 3, height = 7, width = 6;
    const weight = normal(4, [outputs, inputs / group, 3, 2]) as NdArray<"float32">;
    const attributes = { group, strides: [...stride], dilations: [...dilation], pads: [...pads] };
    const graph = makeGraph(["N", inputs, height, width], [node("Conv", "x w", "y", attributes)], {
      w: weight,
    });
    const x = randomValues(2, [batch, inputs, height, width]);
    const y = evaluate(graph, x).get("y")!;
    const [, , outHeight = 0, outWidth = 0] = y.shape;
    const wanted = new Float64Array(outputs), image = new Float64Array(height * width * inputs);
    const pixels = outHeight * outWidth;
    y.data.forEach((v, i) => wanted[Math.floor(i / pixels) % outputs]! += v / batch / pixels);
    x.data.forEach((v, i) => {
      const c = Math.floor(i / height / width) % inputs;
      image[(i % (height * width)) * inputs + c]! += v / batch;
    });
    const layout = convLayout(weight.shape, group);
    const spec = {
      ...{ batch, inHeight: height, inWidth: width, inChannels: inputs },
      ...{ outHeight, outWidth, outChannels: outputs, kernelHeight: 3, kernelWidth: 2 },
      ...{ strideHeight: stride[0], strideWidth: stride[1], padTop: pads[0], padLeft: pads[1] },
      ...{ dilationHeight: dilation[0], dilationWidth: dilation[1], group },
    };
    const values = toChannelsLastLayout(weight, layout);
    const found = meanOutputs(spec, { values, axis: layout.channelAxis }, tapMeans(spec, image));
    // float64 sums in another order
    found.forEach((v, o) => assert.ok(Math.abs(v - wanted[o]!) < 1e-12, `${v}, ${wanted[o]}`));
  });
}
