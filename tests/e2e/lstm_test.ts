// LSTM networks from the file to the student's file: the forward pass beside PyTorch, students beside ONNX Runtime, which
// takes ranges at run time from a whole batch and so runs one input at a time.
import assert from "node:assert/strict";
import { ndArray } from "../../src/core/nd_array.ts";
import { type ImageSet, inputSizeOf, recogniseImages } from "../../src/data/image_set.ts";
import { distill } from "../../src/distill/distill.ts";
import { predict } from "../../src/distill/evaluate.ts";
import { NetworkValues, teacherValues } from "../../src/distill/inference.ts";
import { IntegerNetwork } from "../../src/distill/integer_network.ts";
import { prepareNetwork } from "../../src/distill/network.ts";
import { DEFAULT_RECIPE, type Recipe } from "../../src/distill/recipe.ts";
import { exportOnnx } from "../../src/formats/onnx_export.ts";
import { decodeWeightBundle, encodeWeightBundle } from "../../src/formats/weight_bundle.ts";
import type { Graph } from "../../src/graph/graph.ts";
import type { QuantizedGraph } from "../../src/graph/quantized_graph.ts";
import { LSTM_GOLDENS, LSTM_INPUT } from "../formats/_lstm_goldens.ts";
import { LEVELS, runOrt } from "../formats/_ort.ts";
import { assertClose, randomArray, testDevice } from "../_gpu.ts";

const BITS = { weightBits: 8, activationBits: 8, firstLastBits: 8 };
const INPUTS = 32;
const [, STEPS, FEATURES] = LSTM_INPUT;

function sequences(graph: Graph, data: Float32Array<ArrayBuffer>): ImageSet {
  const array = ndArray("float32", [data.length / STEPS / FEATURES, STEPS, FEATURES], data);
  return recogniseImages(array, inputSizeOf(graph, "model"), "x");
}

for (const { name, graph, x, y } of LSTM_GOLDENS) {
  for (const family of ["software", "gpu"] as const) {
    Deno.test(`predict() gives what PyTorch gives: ${name} [${family}]`, async () => {
      const device = await testDevice(family);
      const network = prepareNetwork(graph, BITS, false);
      using teacher = teacherValues(device, network);
      const found = await predict(device, network, teacher, sequences(graph, x), DEFAULT_RECIPE);
      assertClose(found, y, { rtol: 1e-5, atol: 1e-6 }, name);
    });
  }
  Deno.test(`exportOnnx() writes ONNX of a simplified network: ${name}`, async () => {
    const { folded, output } = prepareNetwork(graph, BITS, false);
    const found = await runOrt(exportOnnx(folded), { x: { shape: LSTM_INPUT, data: x } });
    assertClose(found[output]!, y, { rtol: 1e-5, atol: 1e-6 }, name);
  });
}

async function simulated(frozen: QuantizedGraph, set: ImageSet): Promise<Float32Array> {
  const device = await testDevice();
  const network = prepareNetwork(frozen.graph, BITS, false);
  const { activations, dynamicLayers } = frozen;
  const { initializers } = network.teacher.graph;
  using values = new NetworkValues(device, initializers, activations, dynamicLayers);
  return await predict(device, network, values, set, DEFAULT_RECIPE);
}

/** Students by name; each of all networks whose batch is open. */
const RECIPES: Readonly<Record<string, Partial<Recipe>>> = {
  "ranges at run time": { method: "ptq", activationRanges: "dynamic" },
  "ranges at run time, one scale a layer": {
    method: "ptq",
    activationRanges: "dynamic",
    weightGranularity: "tensor",
  },
  "calibrated ranges": { method: "ptq" },
  "weights of 4 bits": { method: "ptq", weightBits: 4, firstLastBits: 4, activationBits: null },
  "weights of 4 bits in groups": {
    method: "ptq",
    weightBits: 4,
    firstLastBits: 4,
    activationBits: null,
    weightGroup: 4,
  },
  "GPTQ, bias correction, hessian": {
    method: "ptq",
    weightBits: 4,
    weightRounding: "gptq",
    biasCorrection: "empirical",
    weightObserver: "hessian",
  },
};

for (const [recipeName, recipe] of Object.entries(RECIPES)) {
  Deno.test(`an LSTM student runs in ONNX Runtime as simulated: ${recipeName}`, async (t) => {
    const device = await testDevice();
    for (const { name, graph } of LSTM_GOLDENS) {
      if (graph.inputs[0]!.shape[0] !== "N") continue;
      await t.step(name, async () => {
        const data = Float32Array.from(randomArray(7, INPUTS * STEPS * FEATURES));
        const set = sequences(graph, data);
        const start = device.liveBytes;
        const { student } = await distill(
          graph,
          { calibration: set },
          { ...recipe, heldOut: 0 },
          { device },
        );
        assert.equal(device.liveBytes, start);
        const expected = await simulated(student, set);
        const network = prepareNetwork(graph, BITS, false);
        using teacher = teacherValues(device, network);
        const float = await predict(device, network, teacher, set, DEFAULT_RECIPE);
        const largest = Math.max(...float.map(Math.abs));
        const changed = Math.max(...float.map((value, i) => Math.abs(value - expected[i]!)));
        assert.ok(changed > 1e-4 * largest, "it is quantized");
        // rounding differs where float32 sums do: by one code of one tensor
        const tolerance = { rtol: 0, atol: 0.02 * largest };
        const file = exportOnnx(student);
        const size = expected.length / INPUTS;
        for (const level of LEVELS) {
          const close: number[] = [];
          for (let i = 0; i < INPUTS; i++) {
            const one = data.subarray(i * STEPS * FEATURES, (i + 1) * STEPS * FEATURES);
            const inputs = { x: { shape: [1, STEPS, FEATURES], data: one } };
            const found = (await runOrt(file, inputs, level))[student.graph.outputs[0]!.name]!;
            const wanted = expected.subarray(i * size, (i + 1) * size);
            assertClose(found, wanted, tolerance, `${level}, input ${i}`);
            found.forEach((value, j) => close.push(Math.abs(value - wanted[j]!)));
          }
          const mean = close.reduce((sum, value) => sum + value, 0) / close.length;
          assert.ok(mean < 1e-3 * largest, `${level}: mean error ${mean / largest}`);
        }
      });
    }
  });
}

/** Methods that train, with few steps: all of them lower the error of the student that they start from. */
const TRAINED: Readonly<Record<string, Partial<Recipe>>> = {
  blockwise: { method: "blockwise", steps: 60 },
  layerwise: { method: "layerwise", steps: 60 },
  joint: { method: "joint", steps: 60 },
  brecq: { method: "brecq", steps: 60, learningRate: 0.02 },
  "the whole network behind blocks": { method: "blockwise", steps: 30, networkSteps: 60 },
};

for (const [name, recipe] of Object.entries(TRAINED)) {
  Deno.test(`distill() trains an LSTM student: ${name}`, async () => {
    const device = await testDevice();
    const { graph } = LSTM_GOLDENS[1]!;
    const set = sequences(graph, Float32Array.from(randomArray(3, 4 * INPUTS * STEPS * FEATURES)));
    const common = { weightBits: 3, activationBits: 8, heldOut: 0, samples: 4 * INPUTS } as const;
    const start = device.liveBytes;
    const error = async (changes: Partial<Recipe>) => {
      const { report } = await distill(
        graph,
        { calibration: set },
        { ...common, ...changes },
        { device },
      );
      const layers = report.layers.filter(({ opType }) => opType === "LSTM");
      assert.equal(layers.length, 2);
      assert.ok(layers.every(({ weightBits }) => weightBits === 3));
      return layers.reduce((sum, { mseAfter }) => sum + mseAfter, 0);
    };
    const before = await error({ method: "ptq" }), after = await error(recipe);
    assert.ok(after < 0.8 * before, `${after} of ${before}`);
    assert.equal(device.liveBytes, start);
  });
}

Deno.test("distill() learns from labels of every step", async () => {
  const device = await testDevice();
  const { graph } = LSTM_GOLDENS[1]!;
  const data = Float32Array.from(randomArray(5, 4 * INPUTS * STEPS * FEATURES));
  const set = sequences(graph, data);
  // The class is the largest feature of the step's input: nothing that the teacher knows.
  const labels = Uint32Array.from({ length: 4 * INPUTS * STEPS }, (_, i) => {
    const step = data.subarray(i * FEATURES, (i + 1) * FEATURES);
    return step.indexOf(Math.max(...step));
  });
  const inputs = {
    calibration: set,
    calibrationLabels: labels,
    evaluation: set,
    evaluationLabels: labels,
  };
  const recipe = { method: "qat", teacherWeight: 0, heldOut: 0, samples: 4 * INPUTS } as const;
  const { report } = await distill(
    graph,
    inputs,
    { ...recipe, steps: 0, networkSteps: 200, learningRate: 0.02 },
    { device },
  );
  const { top1Student, top1Teacher, evaluated } = report.network;
  assert.equal(evaluated, 4 * INPUTS);
  assert.ok(top1Student! > 0.6 && top1Teacher! < 0.5, `${top1Teacher} to ${top1Student}`);
});

Deno.test("IntegerNetwork refuses an LSTM", async () => {
  const device = await testDevice();
  const { graph, x } = LSTM_GOLDENS[0]!;
  const recipe = { method: "ptq", heldOut: 0 } as const;
  const { student } = await distill(graph, { calibration: sequences(graph, x) }, recipe, {
    device,
  });
  assert.throws(
    () => new IntegerNetwork(device, student),
    /"LSTM"|LSTM.*IntegerNetwork has no LSTM of integers/,
  );
});

Deno.test("the weights of an LSTM are the bundle's", async () => {
  const device = await testDevice();
  const { graph, x } = LSTM_GOLDENS[0]!;
  const recipe = { method: "ptq", heldOut: 0, activationRanges: "dynamic" } as const;
  const { student } = await distill(graph, { calibration: sequences(graph, x) }, recipe, {
    device,
  });
  const bundle = decodeWeightBundle(encodeWeightBundle(student));
  assert.deepEqual(bundle.weights, student.weights);
  assert.deepEqual(bundle.dynamicLayers, student.dynamicLayers);
  const shapes = [...bundle.weights.values()].map(({ values }) => values.shape.join("x"));
  assert.deepEqual(shapes, ["6x3", "32x14", "32x16", "4x8"]);
});

Deno.test("GPTQ and the observer hessian leave an LSTM as it is, and its bias stays float", async () => {
  const device = await testDevice();
  const { graph } = LSTM_GOLDENS[0]!;
  const set = sequences(graph, Float32Array.from(randomArray(3, INPUTS * STEPS * FEATURES)));
  const frozen = async (recipe: Partial<Recipe>) => {
    const common = { method: "ptq", weightBits: 4, firstLastBits: 4, heldOut: 0 } as const;
    return (await distill(graph, { calibration: set }, { ...common, ...recipe }, { device }))
      .student;
  };
  const nearest = await frozen({ weightExponent: 2 });
  const changes = { weightRounding: "gptq", weightObserver: "hessian" } as const;
  const other = await frozen(changes);
  const equal = [...nearest.weights].map(([name, { values, scale }]) => {
    const { values: codes, scale: scales } = other.weights.get(name)!;
    return values.data.join() === codes.data.join() && scale.join() === scales.join();
  });
  // two linear layers around two LSTMs
  assert.deepEqual(equal, [false, true, true, false]);
  const integers = nearest.graph.nodes.map(({ inputs }) => nearest.biases.has(inputs[2] ?? ""));
  assert.deepEqual(integers.filter(Boolean).length, 2);
  for (const { opType, inputs } of nearest.graph.nodes) {
    if (opType === "LSTM") assert.ok(!nearest.biases.has(inputs[2]!));
  }
});
