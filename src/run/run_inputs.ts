// From a recipe's paths to what the engine takes. All bad input is found here, before a GPU is asked for.
import { FormatError } from "../core/errors.ts";
import type { LabelFit } from "../data/labels.ts";
import { checkNormalization, type InputSize, inputSizeOf } from "../data/image_set.ts";
import type { RecognisedData } from "../distill/distill.ts";
import type { Recipe } from "../distill/recipe.ts";
import type { Graph } from "../graph/graph.ts";
import { inferShapes } from "../graph/shape_inference.ts";
import { readInputs, readLabels, readModel } from "./input_files.ts";
import { MNIST_EXAMPLE, mnistExample } from "./mnist_example.ts";

/** Everything a run reads. */
export interface RunInputs {
  readonly model: Graph;
  /** Size of the model file. */
  readonly modelBytes: number;
  /** Content of the model file. */
  readonly modelDigest: string;
  readonly data: RecognisedData;
}

/**
 * Reads and checks everything a recipe names.
 *
 * @param recipe a complete recipe; the built-in example fills in the files that are not named
 * @returns the network and its data
 * @throws FormatError, UnsupportedError or RangeError for the first thing that does not fit
 */
export async function readRunInputs(recipe: Recipe): Promise<RunInputs> {
  const paths = inputPaths(recipe);
  const { graph: model, sizeBytes: modelBytes, digest: modelDigest } = await readModel(paths.model);
  const size = inputSizeOf(model, paths.model);
  const fit = classesOf(model, size);
  const calibration = await readInputs(paths.calibration, size);
  checkNormalization(recipe, calibration.channels);
  const calibrationLabels = paths.calibrationLabels === null
    ? undefined
    : await readLabels(paths.calibrationLabels, { count: calibration.count, ...fit });
  const evaluation = paths.evaluate === null ? undefined : await readInputs(paths.evaluate, size);
  const evaluationLabels = paths.labels === null || evaluation === undefined
    ? undefined
    : await readLabels(paths.labels, { count: evaluation.count, ...fit });
  const data: RecognisedData = {
    calibration,
    ...(calibrationLabels && { calibrationLabels }),
    ...(evaluation && { evaluation }),
    ...(evaluationLabels && { evaluationLabels }),
  };
  return { model, modelBytes, modelDigest, data };
}

/** Keys of a recipe that are paths. */
export const PATH_KEYS: readonly string[] = [
  "model",
  "calibration",
  "calibrationLabels",
  "evaluate",
  "labels",
  "out",
];

/**
 * Whether a run learns from class numbers.
 *
 * @param recipe the recipe
 * @returns true when labels of the calibration inputs are to be handed over
 */
export function usesLabels({ method }: Pick<Recipe, "method">): boolean {
  return method === "qat";
}

interface InputPaths {
  readonly model: string;
  readonly calibration: string;
  readonly calibrationLabels: string | null;
  readonly evaluate: string | null;
  readonly labels: string | null;
}

function inputPaths(recipe: Recipe): InputPaths {
  const needsLabels = usesLabels(recipe);
  if (recipe.model !== MNIST_EXAMPLE) {
    const { model, calibration, calibrationLabels, evaluate, labels } = recipe;
    if (calibration === null) {
      throw new FormatError("recipe", "calibration", "found null, expected a file of inputs");
    }
    return {
      model,
      calibration,
      calibrationLabels: needsLabels ? calibrationLabels : null,
      evaluate,
      labels,
    };
  }
  // Files of the user's go with labels of the user's.
  const example = mnistExample();
  const own = recipe.calibration !== null;
  const calibrationLabels = own ? recipe.calibrationLabels : example.calibrationLabels;
  return {
    model: example.model,
    calibration: recipe.calibration ?? example.calibration,
    calibrationLabels: needsLabels ? calibrationLabels : null,
    evaluate: recipe.evaluate ?? example.evaluate,
    labels: recipe.evaluate === null ? example.labels : recipe.labels,
  };
}

/** What the network classifies, as far as the input's size is known; on the way every operator and shape is checked. */
function classesOf(
  graph: Graph,
  { channels, height, width }: InputSize,
): Omit<LabelFit, "count"> {
  if (channels === null || height === null || width === null) return { classes: null };
  const shape = inferShapes(graph, 1).get(graph.outputs[0]?.name ?? "") ?? [];
  const steps = shape.slice(1, -1).reduce((product, size) => product * size, 1);
  return { classes: shape.at(-1) ?? null, steps };
}
